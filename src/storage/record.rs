//! One record of history: what a key became at one revision, and the bytes of a block of records.
//!
//! Invariants: records are immutable and ordered by their `Place`; a block holds at least one
//! record, in strictly rising order; decoding never panics and never allocates more than the bytes
//! it is given. It must not know the engine, where blocks are kept, or which records still matter.
//!
//! A block: version (1 byte), count (4), first main (8), first sub (4), length of the body (4), the
//! body, crc32c of all before (4); integers little-endian. The body holds, per record: the length of
//! the rest as a varint, then main as the distance from the record before, sub, flags, the distance
//! from create revision to main, version, lease (8 bytes, if any), content type (if any), the key
//! with its length, and the value up to the end.

use crate::model::{DeleteReason, Fault, LeaseId, Revision};
use bytes::Bytes;
use std::sync::Arc;

/// Where a record stands in history: its revision, and its number within the transaction.
pub type Place = (Revision, u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    Put,
    Tombstone(DeleteReason),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub main: Revision,
    pub sub: u32,
    pub kind: RecordKind,
    pub create_revision: Revision,
    pub version: i64,
    /// 0 if the key has none.
    pub lease: LeaseId,
    pub content_type: Option<Arc<str>>,
    pub key: Bytes,
    pub value: Bytes,
}

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 21;
const TRAILER_BYTES: usize = 4;
/// The most that a record's numbers, flags and lengths take.
const FIXED_BYTES_MAX: usize = 64;
const VARINT_BYTES_MAX: usize = 10;

const KIND_MASK: u8 = 0b11;
const HAS_LEASE: u8 = 0b100;
const HAS_CONTENT_TYPE: u8 = 0b1000;
const KNOWN_FLAGS: u8 = KIND_MASK | HAS_LEASE | HAS_CONTENT_TYPE;

impl Record {
    #[must_use]
    pub fn place(&self) -> Place {
        (self.main, self.sub)
    }

    /// About the bytes this record takes in a block; the unit of all accounting by size.
    #[must_use]
    pub fn weight(&self) -> usize {
        let content_type = self.content_type.as_ref().map_or(0, |content_type| content_type.len() + 1);
        let lease = if self.lease == 0 { 0 } else { 8 };
        // Length, distances, sub, flags, version and the key's length, at their usual sizes.
        12 + content_type + lease + self.key.len() + self.value.len()
    }

    /// The same record with bytes of its own, so that it keeps no larger buffer alive.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self { key: Bytes::copy_from_slice(&self.key), value: Bytes::copy_from_slice(&self.value), ..self.clone() }
    }

    fn encode(&self, previous_main: Revision, out: &mut Vec<u8>) {
        let mut head = Scratch::default();
        head.varint(self.main.wrapping_sub(previous_main).cast_unsigned());
        head.varint(u64::from(self.sub));
        let mut flags = match self.kind {
            RecordKind::Put => 0,
            RecordKind::Tombstone(DeleteReason::Deleted) => 1,
            RecordKind::Tombstone(DeleteReason::Expired) => 2,
            RecordKind::Tombstone(DeleteReason::LeaseRevoked) => 3,
        };
        if self.lease != 0 {
            flags |= HAS_LEASE;
        }
        if self.content_type.is_some() {
            flags |= HAS_CONTENT_TYPE;
        }
        head.push(&[flags]);
        head.varint(self.main.wrapping_sub(self.create_revision).cast_unsigned());
        head.varint(self.version.cast_unsigned());
        if self.lease != 0 {
            head.push(&self.lease.to_le_bytes());
        }
        let content_type = self.content_type.as_deref().map(str::as_bytes);
        let content_type_bytes = content_type.map_or(0, |bytes| varint_len(bytes.len()) + bytes.len());
        let rest =
            head.used().len() + content_type_bytes + varint_len(self.key.len()) + self.key.len() + self.value.len();
        write_varint(out, widen(rest));
        out.extend_from_slice(head.used());
        if let Some(bytes) = content_type {
            write_varint(out, widen(bytes.len()));
            out.extend_from_slice(bytes);
        }
        write_varint(out, widen(self.key.len()));
        out.extend_from_slice(&self.key);
        out.extend_from_slice(&self.value);
    }
}

/// Encodes records, in strictly rising order and at least one, as a block.
///
/// # Errors
/// A fault if there is no record, the order is violated or the block would pass 4 GiB.
pub fn encode_block(records: &[Arc<Record>]) -> Result<Bytes, Fault> {
    let first = records.first().ok_or_else(|| Fault::Invariant("a block of no records".into()))?;
    let estimate: usize = records.iter().map(|record| record.weight() + FIXED_BYTES_MAX / 4).sum();
    let mut out = Vec::with_capacity(HEADER_BYTES + estimate + TRAILER_BYTES);
    out.push(FORMAT);
    out.extend_from_slice(&narrow(records.len())?.to_le_bytes());
    out.extend_from_slice(&first.main.to_le_bytes());
    out.extend_from_slice(&first.sub.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let mut previous: Option<Place> = None;
    for record in records {
        if previous.is_some_and(|previous| previous >= record.place()) {
            return Err(Fault::Invariant(format!("records out of order at {:?}", record.place())));
        }
        record.encode(previous.map_or(first.main, |(main, _)| main), &mut out);
        previous = Some(record.place());
    }
    let body = narrow(out.len() - HEADER_BYTES)?;
    out[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&body.to_le_bytes());
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    Ok(out.into())
}

/// A block whose checksum and header hold. Records are decoded on demand.
#[derive(Debug, Clone)]
pub struct Block {
    bytes: Bytes,
    first: Place,
    count: u32,
}

impl Block {
    /// # Errors
    /// A fault if the bytes are no block of a known format, or damaged.
    pub fn open(bytes: Bytes) -> Result<Self, Fault> {
        let corrupt = |detail: &str| Fault::corrupt("a block of history", detail);
        if bytes.first().is_some_and(|version| *version != FORMAT) {
            return Err(corrupt("its format version is unknown to this release"));
        }
        let Some(body) = bytes.len().checked_sub(HEADER_BYTES + TRAILER_BYTES) else {
            return Err(corrupt("it is too short"));
        };
        let (covered, crc) = bytes.split_at(HEADER_BYTES + body);
        let mut fields = Cursor { bytes: &covered[1..] };
        let (count, main, sub, length) = fields.header().ok_or_else(|| corrupt("it is too short"))?;
        if u32::from_le_bytes(crc.try_into().map_err(|_| corrupt("it is too short"))?) != crc32c::crc32c(covered) {
            return Err(corrupt("its checksum does not match"));
        }
        if usize::try_from(length).ok() != Some(body) || count == 0 {
            return Err(corrupt("its header does not fit its body"));
        }
        Ok(Self { first: (main, sub), count, bytes })
    }

    #[must_use]
    pub fn first(&self) -> Place {
        self.first
    }

    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// How many records the header promises.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of the block as stored.
    #[must_use]
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The record at `place`, with bytes of its own unless it is most of the block.
    ///
    /// # Errors
    /// A fault if the block is malformed up to there.
    pub fn find(&self, place: Place) -> Result<Option<Record>, Fault> {
        let mut entries = self.entries();
        while let Some(entry) = entries.next_entry()? {
            if entry.place >= place {
                return if entry.place == place { Ok(Some(self.own(entry.decode(&self.bytes)?))) } else { Ok(None) };
            }
        }
        Ok(None)
    }

    /// The records from `place` on, in order, with bytes of their own.
    ///
    /// # Errors
    /// A fault if the block is malformed.
    pub fn records_from(&self, place: Place) -> Result<Vec<Arc<Record>>, Fault> {
        let mut out = Vec::new();
        let mut entries = self.entries();
        while let Some(entry) = entries.next_entry()? {
            if entry.place >= place {
                out.push(Arc::new(self.own(entry.decode(&self.bytes)?)));
            }
        }
        Ok(out)
    }

    /// Shows every record from `place` on to `visit`, in order, while that says to go on; they share the block's
    /// bytes. `own` makes one that may be kept.
    ///
    /// # Errors
    /// A fault if the block is malformed up to there.
    pub fn visit_from(&self, place: Place, mut visit: impl FnMut(Record) -> bool) -> Result<(), Fault> {
        let mut entries = self.entries();
        while let Some(entry) = entries.next_entry()? {
            if entry.place >= place && !visit(entry.decode(&self.bytes)?) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Shows every record to `visit`, in order; they share the block's bytes.
    ///
    /// # Errors
    /// A fault if the block is malformed.
    pub fn for_each(&self, mut visit: impl FnMut(Record)) -> Result<(), Fault> {
        let mut entries = self.entries();
        while let Some(entry) = entries.next_entry()? {
            visit(entry.decode(&self.bytes)?);
        }
        Ok(())
    }

    /// The record with bytes of its own, unless it is most of this block.
    pub(crate) fn own(&self, record: Record) -> Record {
        // A slice would keep the whole block in memory for one small record.
        if record.value.len() * 2 >= self.bytes.len() { record } else { record.detached() }
    }

    fn entries(&self) -> Entries<'_> {
        let body = &self.bytes[HEADER_BYTES..self.bytes.len() - TRAILER_BYTES];
        Entries { cursor: Cursor { bytes: body }, previous: None, first: self.first, left: self.count }
    }
}

struct Entries<'a> {
    cursor: Cursor<'a>,
    previous: Option<Place>,
    first: Place,
    left: u32,
}

struct Entry<'a> {
    place: Place,
    /// From the flags on.
    rest: Cursor<'a>,
}

impl<'a> Entries<'a> {
    fn next_entry(&mut self) -> Result<Option<Entry<'a>>, Fault> {
        if self.left == 0 {
            return if self.cursor.bytes.is_empty() { Ok(None) } else { Err(malformed()) };
        }
        self.left -= 1;
        let entry = self.read().ok_or_else(malformed)?;
        Ok(Some(entry))
    }

    fn read(&mut self) -> Option<Entry<'a>> {
        let length = self.cursor.length()?;
        let mut rest = Cursor { bytes: self.cursor.take(length)? };
        let distance = rest.varint()?.cast_signed();
        let previous_main = self.previous.map_or(self.first.0, |(main, _)| main);
        let place = (previous_main.wrapping_add(distance), u32::try_from(rest.varint()?).ok()?);
        let in_order = match self.previous {
            Some(previous) => place > previous,
            None => place == self.first,
        };
        self.previous = Some(place);
        in_order.then_some(Entry { place, rest })
    }
}

impl Entry<'_> {
    fn decode(mut self, block: &Bytes) -> Result<Record, Fault> {
        self.read(block).ok_or_else(malformed)
    }

    fn read(&mut self, block: &Bytes) -> Option<Record> {
        let (main, sub) = self.place;
        let rest = &mut self.rest;
        let flags = *rest.take(1)?.first()?;
        if flags & !KNOWN_FLAGS != 0 {
            return None;
        }
        let kind = match flags & KIND_MASK {
            0 => RecordKind::Put,
            1 => RecordKind::Tombstone(DeleteReason::Deleted),
            2 => RecordKind::Tombstone(DeleteReason::Expired),
            _ => RecordKind::Tombstone(DeleteReason::LeaseRevoked),
        };
        let create_revision = main.wrapping_sub(rest.varint()?.cast_signed());
        let version = rest.varint()?.cast_signed();
        let lease = if flags & HAS_LEASE == 0 { 0 } else { LeaseId::from_le_bytes(rest.take(8)?.try_into().ok()?) };
        let content_type = if flags & HAS_CONTENT_TYPE == 0 {
            None
        } else {
            let length = rest.length()?;
            Some(Arc::from(std::str::from_utf8(rest.take(length)?).ok()?))
        };
        let key_length = rest.length()?;
        let key = block.slice_ref(rest.take(key_length)?);
        let value = block.slice_ref(rest.bytes);
        Some(Record { main, sub, kind, create_revision, version, lease, content_type, key, value })
    }
}

fn malformed() -> Fault {
    Fault::corrupt("a block of history", "a record in it is malformed")
}

struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some(taken)
    }

    fn header(&mut self) -> Option<(u32, Revision, u32, u32)> {
        let count = u32::from_le_bytes(self.take(4)?.try_into().ok()?);
        let main = Revision::from_le_bytes(self.take(8)?.try_into().ok()?);
        let sub = u32::from_le_bytes(self.take(4)?.try_into().ok()?);
        let length = u32::from_le_bytes(self.take(4)?.try_into().ok()?);
        Some((count, main, sub, length))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for (position, byte) in self.bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * u32::try_from(position).ok()?;
            if position == VARINT_BYTES_MAX - 1 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                self.bytes = &self.bytes[position + 1..];
                return Some(value);
            }
        }
        None
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(self.varint()?).ok()
    }
}

/// The numbers of one record, whose total length must be known before they are written.
struct Scratch {
    bytes: [u8; FIXED_BYTES_MAX],
    length: usize,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { bytes: [0; FIXED_BYTES_MAX], length: 0 }
    }
}

impl Scratch {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    fn varint(&mut self, mut value: u64) {
        loop {
            let low = value.to_le_bytes()[0] & 0x7f;
            value >>= 7;
            if value == 0 {
                self.push(&[low]);
                return;
            }
            self.push(&[low | 0x80]);
        }
    }

    fn used(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

fn varint_len(value: usize) -> usize {
    let bits = usize::BITS - value.leading_zeros();
    usize::try_from(bits.div_ceil(7).max(1)).unwrap_or(VARINT_BYTES_MAX)
}

fn widen(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn narrow(length: usize) -> Result<u32, Fault> {
    u32::try_from(length).map_err(|_| Fault::Invariant("a block above 4 GiB".into()))
}

#[cfg(test)]
mod tests;
