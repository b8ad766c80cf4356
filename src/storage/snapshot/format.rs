//! The bytes of a snapshot file, and of nothing else.
//!
//! Header: magic (8), format version (4), length of the meta (4), meta, crc32c of all before (4).
//! Block: length (4, never 0), crc32c over the block's number (8) and its bytes (4), bytes.
//! Trailer: 0 (4), number of blocks (8), sum of their lengths (8), zeros up to a multiple of 512, SHA-256 of all
//! before (32). etcd's client knows by that length that a backup ends with a digest.
//! Integers are little-endian. Nothing follows the trailer.

use super::SnapshotMeta;
use crate::model::{Fault, codec, limits};

const MAGIC: [u8; 8] = *b"TENURESN";
/// 1 had no zeros in its trailer, and was in no release.
const FORMAT: u32 = 2;
pub(super) const HEADER_FIXED_BYTES: usize = 16;
pub(super) const CRC_BYTES: usize = 4;
pub(super) const FRAME_BYTES: usize = 8;
pub(super) const COUNTS_BYTES: usize = 16;
pub(super) const DIGEST_BYTES: usize = 32;
const ALIGNMENT: u64 = 512;

pub(super) fn header(meta: &SnapshotMeta) -> Result<Vec<u8>, Fault> {
    let meta = codec::encode(meta)?;
    if meta.len() > limits::SNAPSHOT_META_BYTES_MAX {
        return Err(Fault::Invariant("the snapshot's meta is too large".into()));
    }
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&length(meta.len())?);
    out.extend_from_slice(&meta);
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    Ok(out)
}

/// The meta's length, from the fixed part of a header.
pub(super) fn meta_length(what: &str, fixed: &[u8]) -> Result<usize, Fault> {
    let corrupt = |detail: &str| Fault::corrupt(what, detail);
    let (magic, rest) = fixed.split_first_chunk::<8>().ok_or_else(|| corrupt("it is too short"))?;
    let (format, rest) = rest.split_first_chunk::<4>().ok_or_else(|| corrupt("it is too short"))?;
    let (length, _) = rest.split_first_chunk::<4>().ok_or_else(|| corrupt("it is too short"))?;
    if *magic != MAGIC {
        return Err(corrupt("it is not a snapshot file"));
    }
    let format = u32::from_le_bytes(*format);
    if format != FORMAT {
        return Err(corrupt(&format!("format version {format} is unknown to this release")));
    }
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > limits::SNAPSHOT_META_BYTES_MAX {
        return Err(corrupt("its header promises too much"));
    }
    Ok(length)
}

pub(super) fn block_crc(number: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), bytes)
}

pub(super) fn frame(number: u64, bytes: &[u8]) -> Result<[u8; FRAME_BYTES], Fault> {
    if bytes.is_empty() || bytes.len() > limits::SNAPSHOT_BLOCK_BYTES_MAX {
        return Err(Fault::Invariant(format!("a snapshot block of {} bytes", bytes.len())));
    }
    let mut out = [0; FRAME_BYTES];
    out[..4].copy_from_slice(&length(bytes.len())?);
    out[4..].copy_from_slice(&block_crc(number, bytes).to_le_bytes());
    Ok(out)
}

/// The trailer but for its digest.
pub(super) fn counts(blocks: u64, payload_bytes: u64) -> Vec<u8> {
    let mut out = 0u32.to_le_bytes().to_vec();
    out.extend_from_slice(&blocks.to_le_bytes());
    out.extend_from_slice(&payload_bytes.to_le_bytes());
    out
}

/// Zeros between the counts, which end at `position`, and the digest.
pub(super) fn padding(position: u64) -> usize {
    usize::try_from(position.next_multiple_of(ALIGNMENT) - position).unwrap_or_default()
}

fn length(length: usize) -> Result<[u8; 4], Fault> {
    let length = u32::try_from(length).map_err(|_| Fault::Invariant("a part of a snapshot above 4 GiB".into()))?;
    Ok(length.to_le_bytes())
}
