//! A segment file: its name, and the header of 64 bytes before its first record.
//!
//! The header names the exact end of the segment before it and the checksum of the last record
//! there, so that a segment cut short, swapped or missing is noticed. The header's own checksum seeds
//! those of the segment's records. Its size, its magic, its version and the place of its checksum are
//! the same in all format versions.

use bytes::{Buf, BufMut};
use crc32c::crc32c;

pub(super) const HEADER_BYTES: usize = 64;
/// Where the first record starts.
pub(super) const FIRST_RECORD: u32 = 64;
pub(super) const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"TENURWAL";
const SUFFIX: &str = ".wal";

/// The preallocated file that becomes the next segment.
pub(super) const SPARE_NAME: &str = "next.spare";

/// Of a segment that is no part of the log any more, and whose space is being freed.
pub(super) const DROPPED_SUFFIX: &str = ".dropped";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub segment: u32,
    /// The file was this long, all zeros, before its first record.
    pub allocated: u32,
    pub previous_end: u32,
    pub previous_crc: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderProblem {
    Damaged,
    ForeignVersion(u32),
}

impl Header {
    /// The bytes, and the seed of this segment's record checksums.
    pub(super) fn encode(&self) -> ([u8; HEADER_BYTES], u32) {
        let mut bytes = [0; HEADER_BYTES];
        let mut out = &mut bytes[..];
        out.put_slice(&MAGIC);
        out.put_u32_le(FORMAT_VERSION);
        out.put_u32_le(self.segment);
        out.put_u32_le(self.allocated);
        out.put_u32_le(self.previous_end);
        out.put_u32_le(self.previous_crc);
        let crc = crc32c(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        (bytes, crc)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, u32), HeaderProblem> {
        let bytes = bytes.get(..HEADER_BYTES).ok_or(HeaderProblem::Damaged)?;
        let mut crc_field = &bytes[HEADER_BYTES - 4..];
        let crc = crc_field.get_u32_le();
        if bytes[..8] != MAGIC || crc != crc32c(&bytes[..HEADER_BYTES - 4]) {
            return Err(HeaderProblem::Damaged);
        }
        let mut fields = &bytes[8..];
        let version = fields.get_u32_le();
        if version != FORMAT_VERSION {
            return Err(HeaderProblem::ForeignVersion(version));
        }
        let header = Self {
            segment: fields.get_u32_le(),
            allocated: fields.get_u32_le(),
            previous_end: fields.get_u32_le(),
            previous_crc: fields.get_u32_le(),
        };
        Ok((header, crc))
    }
}

pub(super) fn file_name(segment: u32) -> String {
    format!("{segment:010}{SUFFIX}")
}

pub(super) fn dropped_name(segment: u32) -> String {
    format!("{}{DROPPED_SUFFIX}", file_name(segment))
}

/// The segment that a file of this name holds, if it is one of ours.
pub(super) fn segment_of(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(SUFFIX)?;
    let well_formed = digits.len() == 10 && digits.bytes().all(|byte| byte.is_ascii_digit());
    if well_formed { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_and_no_flipped_bit_passes() {
        let header = Header { segment: 3, allocated: 4096, previous_end: 640, previous_crc: 0xDEAD_BEEF };
        let (bytes, seed) = header.encode();
        assert_eq!(Header::decode(&bytes), Ok((header, seed)));
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[at / 8] ^= 1 << (at % 8);
            assert_eq!(Header::decode(&bad), Err(HeaderProblem::Damaged));
        }
        assert_eq!(Header::decode(&bytes[..63]), Err(HeaderProblem::Damaged));
    }

    /// The layout on disk: never edited, a new format version gets its own.
    #[test]
    fn the_layout_is_fixed() {
        let (bytes, _) = Header { segment: 3, allocated: 4096, previous_end: 640, previous_crc: 0xDEAD_BEEF }.encode();
        assert_eq!(bytes[..28], GOLDEN);
        assert_eq!(bytes[28..60], [0; 32]);
        assert_eq!(bytes[60..], [174, 122, 146, 235]);
    }

    const GOLDEN: [u8; 28] =
        [84, 69, 78, 85, 82, 87, 65, 76, 1, 0, 0, 0, 3, 0, 0, 0, 0, 16, 0, 0, 128, 2, 0, 0, 239, 190, 173, 222];

    #[test]
    fn another_version_is_named() {
        let (mut bytes, _) = Header { segment: 1, allocated: 0, previous_end: 0, previous_crc: 0 }.encode();
        bytes[8] = 9;
        let crc = crc32c(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&bytes), Err(HeaderProblem::ForeignVersion(9)));
    }

    #[test]
    fn names_map_to_segments_and_back() {
        assert_eq!(file_name(42), "0000000042.wal");
        assert_eq!(segment_of("0000000042.wal"), Some(42));
        assert_eq!(segment_of("4294967295.wal"), Some(u32::MAX));
        for other in [
            "42.wal",
            "4294967296.wal",
            "IDENTITY",
            SPARE_NAME,
            "+000000042.wal",
            "0000000042.wal.bak",
            &dropped_name(42),
        ] {
            assert_eq!(segment_of(other), None, "{other}");
        }
    }
}
