//! One record of the log: a header of 32 bytes, the payload, zeros up to a multiple of eight.
//!
//! The header's checksum covers the payload's checksum, the record's offset and the segment's seed,
//! so bytes that stood elsewhere or in another segment never pass. `group` is the offset from which
//! on nothing was known to be durable when the record was written: damage before the `group` of any
//! valid record can't be a torn write.

use bytes::{Buf, BufMut, Bytes};
use crc32c::{crc32c, crc32c_append};

pub(super) const HEADER_BYTES: usize = 32;
pub(super) const ALIGNMENT: usize = 8;
const MAGIC: u16 = 0x5EC7;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Entry,
    Vote,
    Committed,
    /// Entries from `index` on are dropped.
    Truncate,
    /// Entries up to `index` are dropped; the payload is that index's opaque position.
    Purge,
    /// First in every segment: all state that earlier segments established.
    Checkpoint,
    /// Says only that everything before it was durable.
    Mark,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Entry => 1,
            Self::Vote => 2,
            Self::Committed => 3,
            Self::Truncate => 4,
            Self::Purge => 5,
            Self::Checkpoint => 6,
            Self::Mark => 7,
        }
    }

    fn of(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Entry,
            2 => Self::Vote,
            3 => Self::Committed,
            4 => Self::Truncate,
            5 => Self::Purge,
            6 => Self::Checkpoint,
            7 => Self::Mark,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub kind: Kind,
    pub len: u32,
    pub index: u64,
    pub group: u32,
    pub payload_crc: u32,
    /// The header's own checksum; filled in by `push` and `decode`.
    pub crc: u32,
}

fn padding(len: usize) -> usize {
    len.wrapping_neg() % ALIGNMENT
}

/// Bytes that a record with a payload of `len` bytes takes.
pub(super) fn footprint(len: usize) -> usize {
    HEADER_BYTES + len + padding(len)
}

/// The checksum of a payload with its padding.
pub(super) fn payload_crc(payload: &[u8]) -> u32 {
    crc32c_append(crc32c(payload), &[0; ALIGNMENT][..padding(payload.len())])
}

fn header_crc(seed: u32, offset: u32, head: &[u8]) -> u32 {
    crc32c_append(crc32c_append(seed, &offset.to_le_bytes()), head)
}

/// Appends the record to `out`; returns the header's checksum.
pub(super) fn push(out: &mut Vec<u8>, seed: u32, offset: u32, header: &Header, payload: &[u8]) -> u32 {
    let start = out.len();
    out.reserve(footprint(payload.len()));
    out.put_u16_le(MAGIC);
    out.put_u8(header.kind.code());
    out.put_u8(0);
    out.put_u32_le(header.len);
    out.put_u64_le(header.index);
    out.put_u32_le(header.group);
    out.put_u32_le(header.payload_crc);
    out.put_u32_le(0);
    let crc = header_crc(seed, offset, &out[start..]);
    out.put_u32_le(crc);
    out.put_slice(payload);
    out.put_bytes(0, padding(payload.len()));
    crc
}

/// The header at the start of `bytes`, if one of this segment was written at `offset`.
pub(super) fn decode(bytes: &[u8], seed: u32, offset: u32) -> Option<Header> {
    let head = bytes.get(..HEADER_BYTES)?;
    let mut fields = head;
    if fields.get_u16_le() != MAGIC {
        return None;
    }
    let kind = Kind::of(fields.get_u8())?;
    let reserved = fields.get_u8();
    let len = fields.get_u32_le();
    let index = fields.get_u64_le();
    let group = fields.get_u32_le();
    let payload_crc = fields.get_u32_le();
    let spare = fields.get_u32_le();
    let crc = fields.get_u32_le();
    if reserved != 0 || spare != 0 || group > offset || crc != header_crc(seed, offset, &head[..HEADER_BYTES - 4]) {
        return None;
    }
    Some(Header { kind, len, index, group, payload_crc, crc })
}

/// The whole record at the start of `bytes`: header and payload, if both are sound.
pub(super) fn decode_whole(bytes: &[u8], seed: u32, offset: u32) -> Option<(Header, &[u8])> {
    let header = decode(bytes, seed, offset)?;
    let len = usize::try_from(header.len).ok()?;
    let end = HEADER_BYTES.checked_add(len)?.checked_add(padding(len))?;
    let body = bytes.get(HEADER_BYTES..end)?;
    (crc32c(body) == header.payload_crc).then(|| (header, &body[..len]))
}

/// What a segment starts with, so that all earlier segments can be deleted once their entries are
/// purged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
    pub purged: Option<(u64, Bytes)>,
    /// First index of the live log and the index that comes next; equal if it is empty.
    pub live: Option<(u64, u64)>,
}

fn put_optional(out: &mut Vec<u8>, bytes: Option<&Bytes>) {
    match bytes.map(|bytes| (u32::try_from(bytes.len()), bytes)) {
        Some((Ok(len), bytes)) => {
            out.put_u8(1);
            out.put_u32_le(len);
            out.put_slice(bytes);
        }
        _ => out.put_u8(0),
    }
}

fn get_optional(from: &mut &[u8]) -> Option<Option<Bytes>> {
    if from.try_get_u8().ok()? == 0 {
        return Some(None);
    }
    let len = usize::try_from(from.try_get_u32_le().ok()?).ok()?;
    let (bytes, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some(Some(Bytes::copy_from_slice(bytes)))
}

impl Checkpoint {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_optional(&mut out, self.vote.as_ref());
        put_optional(&mut out, self.committed.as_ref());
        put_optional(&mut out, self.purged.as_ref().map(|(_, position)| position));
        out.put_u64_le(self.purged.as_ref().map_or(0, |(index, _)| *index));
        out.put_u8(u8::from(self.live.is_some()));
        let (first, next) = self.live.unwrap_or_default();
        out.put_u64_le(first);
        out.put_u64_le(next);
        out
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let from = &mut bytes;
        let vote = get_optional(from)?;
        let committed = get_optional(from)?;
        let position = get_optional(from)?;
        let purged_index = from.try_get_u64_le().ok()?;
        let has_live = from.try_get_u8().ok()? == 1;
        let first = from.try_get_u64_le().ok()?;
        let next = from.try_get_u64_le().ok()?;
        let live = has_live.then_some((first, next));
        let purged = position.map(|position| (purged_index, position));
        let follows_purge =
            purged.is_none() || (has_live && purged_index.checked_add(1).is_some_and(|after| after == first));
        let sane = from.is_empty() && first <= next && follows_purge;
        sane.then_some(Self { vote, committed, purged, live })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(payload: &[u8]) -> (Vec<u8>, Header) {
        let len = u32::try_from(payload.len()).unwrap();
        let mut header =
            Header { kind: Kind::Entry, len, index: 9, group: 64, payload_crc: payload_crc(payload), crc: 0 };
        let mut out = Vec::new();
        header.crc = push(&mut out, 77, 128, &header, payload);
        (out, header)
    }

    #[test]
    fn a_record_reads_back_and_is_aligned() {
        for len in 0..20 {
            let payload = vec![5; len];
            let (bytes, header) = record(&payload);
            assert_eq!(bytes.len(), footprint(len));
            assert_eq!(bytes.len() % ALIGNMENT, 0);
            assert_eq!(decode_whole(&bytes, 77, 128), Some((header, payload.as_slice())));
        }
    }

    #[test]
    fn no_flipped_bit_passes_nor_another_place_or_segment() {
        let (bytes, _) = record(b"some payload");
        for at in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[at / 8] ^= 1 << (at % 8);
            assert_eq!(decode_whole(&bad, 77, 128), None, "bit {at}");
        }
        assert_eq!(decode_whole(&bytes, 77, 136), None);
        assert_eq!(decode_whole(&bytes, 78, 128), None);
        assert_eq!(decode_whole(&bytes[..bytes.len() - 1], 77, 128), None);
    }

    #[test]
    fn a_checkpoint_reads_back() {
        let full = Checkpoint {
            vote: Some(Bytes::from_static(b"vote")),
            committed: Some(Bytes::new()),
            purged: Some((7, Bytes::from_static(b"p"))),
            live: Some((8, 11)),
        };
        for checkpoint in [Checkpoint::default(), full] {
            let bytes = checkpoint.encode();
            assert_eq!(Checkpoint::decode(&bytes), Some(checkpoint));
            for cut in 0..bytes.len() {
                assert_eq!(Checkpoint::decode(&bytes[..cut]), None);
            }
        }
    }

    /// The layout on disk: never edited, a new format version gets its own.
    #[test]
    fn the_layout_is_fixed() {
        let (bytes, _) = record(b"abc");
        assert_eq!(bytes, GOLDEN);
    }

    const GOLDEN: [u8; 40] = [
        199, 94, 1, 0, 3, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 237, 58, 178, 250, 0, 0, 0, 0, 25, 196, 173,
        212, 97, 98, 99, 0, 0, 0, 0, 0,
    ];
}
