//! Building a machine from the blocks of an image.
//!
//! Invariants: nothing in the blocks is trusted: order, counts, references between tables and the
//! state hash are checked, and what does not fit is a `Fault::Corrupt`; a restored machine has the
//! hash and gives the answers of the one that was imaged.

use super::auth::PortableAuth;
use super::hash;
use super::idempotency::Portable;
use super::image::{
    ATTACHMENTS, AUTH, BLOCK_LENGTH_BYTES, END, End, HEADER, Header, IDEMPOTENCY, LEASES, PortableLease, RECORDS, STEPS,
};
use super::image_file::Places;
use super::index::{Head, History, Index, KeyRecord, Slot};
use super::root::{FEATURE_LEVEL_MAX, Lease, Root, logical_bytes};
use super::values::Values;
use super::writer::{ContentTypes, Machine, Options};
use crate::model::{Fault, LeaseId, codec};
use crate::storage::blocks::{BlockStore, EncodedBlock};
use crate::storage::record::{Block, Place, Record, RecordKind};
use crate::storage::snapshot::SnapshotBytes;
use bytes::Bytes;
use std::sync::Arc;

/// Threads that decode blocks of records, and how many each gets at a time.
const DECODERS: usize = 4;
const BLOCKS_EACH: usize = 4;
/// Put in order between two moments of giving way.
const KEYS_BETWEEN: usize = 128;

impl Machine {
    /// The machine of an image, over an empty block store, which is filled.
    ///
    /// # Errors
    /// `Corrupt` if the blocks are not a whole image; faults of the blocks or of the store.
    pub fn restore(
        store: Arc<BlockStore>,
        options: &Options,
        blocks: impl Iterator<Item = Result<Bytes, Fault>>,
    ) -> Result<Self, Fault> {
        Self::restore_from(store, options, blocks, None)
    }

    /// As `restore`, over a store that is new; the blocks of history are left where they lie.
    ///
    /// # Errors
    /// As `restore`.
    pub fn restore_over(
        file: SnapshotBytes,
        store: Arc<BlockStore>,
        options: &Options,
        blocks: impl Iterator<Item = Result<Bytes, Fault>>,
    ) -> Result<Self, Fault> {
        let (places, engine) = Places::begin(file);
        store.adopt(engine)?;
        Self::restore_from(store, options, blocks, Some(places))
    }

    fn restore_from(
        store: Arc<BlockStore>,
        options: &Options,
        blocks: impl Iterator<Item = Result<Bytes, Fault>>,
        places: Option<Places>,
    ) -> Result<Self, Fault> {
        let values = Arc::new(Values::new(store, options.value_cache_bytes));
        let mut restore = Restore::new(Root::empty(values, options), options, places);
        for block in blocks {
            restore.block(&block?)?;
        }
        restore.finish().map(Self::from_root)
    }
}

struct Restore {
    root: Root,
    places: Option<Places>,
    header: Option<Header>,
    attachments: Vec<(Bytes, LeaseId)>,
    /// Every version as a key of its own: a run sorted by key from each block, the blocks in order.
    versions: Vec<Arc<KeyRecord>>,
    /// With where they lie.
    undecoded: Vec<(Bytes, Option<u64>)>,
    /// Bytes of the records whose values stay in memory, and where that ends. A value's bytes are its
    /// own: a slice would keep a whole block of the image alive.
    value_bytes: u64,
    value_bytes_max: u64,
    give_way: fn(),
    last: Place,
    end: Option<End>,
}

fn corrupt(detail: impl Into<String>) -> Fault {
    Fault::corrupt("the image", detail)
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

impl Restore {
    fn new(root: Root, options: &Options, places: Option<Places>) -> Self {
        Self {
            root,
            places,
            value_bytes: 0,
            value_bytes_max: options.value_cache_bytes,
            give_way: options.give_way,
            header: None,
            attachments: Vec::new(),
            versions: Vec::new(),
            undecoded: Vec::new(),
            last: (0, 0),
            end: None,
        }
    }

    fn block(&mut self, block: &Bytes) -> Result<(), Fault> {
        if self.end.is_some() {
            return Err(corrupt("blocks after its end"));
        }
        let Some(kind) = block.first() else { return Err(corrupt("an empty block")) };
        if self.header.is_some() == (*kind == HEADER) {
            return Err(corrupt("its header is not its first block"));
        }
        let content = block.slice(1..);
        let lies_at = self.places.as_mut().map(|places| places.pass(block).saturating_add(1));
        match *kind {
            HEADER => self.header(codec::decode("the image's header", &content)?),
            LEASES => self.leases(codec::decode("the image's leases", &content)?),
            ATTACHMENTS => self.attachments(codec::decode("the image's attachments", &content)?),
            IDEMPOTENCY => codec::decode::<Vec<Portable>>("the image's idempotency records", &content)?
                .into_iter()
                .try_for_each(|record| self.root.idempotency.restore(record, &mut self.root.sum)),
            STEPS => {
                let steps = codec::decode("the image's steps of time", &content)?;
                self.root.idempotency.restore_steps(steps, &mut self.root.sum)
            }
            AUTH => codec::decode::<Vec<PortableAuth>>("the image's users and roles", &content)?
                .into_iter()
                .try_for_each(|entry| self.root.auth.restore(entry, &mut self.root.sum).map_err(corrupt)),
            RECORDS => {
                self.undecoded.push((content, lies_at));
                if self.undecoded.len() == DECODERS * BLOCKS_EACH { self.records() } else { Ok(()) }
            }
            END => {
                self.end = Some(codec::decode("the image's end", &content)?);
                Ok(())
            }
            unknown => Err(corrupt(format!("block kind {unknown} is unknown to this release"))),
        }
    }

    fn header(&mut self, header: Header) -> Result<(), Fault> {
        if header.numbers.feature_level > FEATURE_LEVEL_MAX {
            return Err(Fault::Invariant(format!(
                "the image needs feature level {}, this release knows {FEATURE_LEVEL_MAX}",
                header.numbers.feature_level
            )));
        }
        if !header.timeline.is_sound() || header.numbers.compacted > header.numbers.revision {
            return Err(corrupt("its numbers contradict each other"));
        }
        self.header = Some(header);
        Ok(())
    }

    fn leases(&mut self, leases: Vec<PortableLease>) -> Result<(), Fault> {
        for PortableLease { id, ttl_ms, remaining_ms, generation, label, implicit } in leases {
            let lease = Lease { ttl_ms, remaining_ms, generation, label: label.map(Arc::new), implicit };
            self.root.sum.add(hash::lease(id, &lease));
            self.root.lease_bytes += lease.bytes();
            if self.root.leases.insert(id, lease).is_some() {
                return Err(corrupt("a lease twice"));
            }
        }
        Ok(())
    }

    fn attachments(&mut self, attachments: Vec<(LeaseId, Bytes)>) -> Result<(), Fault> {
        for (id, key) in attachments {
            if !self.root.leases.contains(id) {
                return Err(corrupt("a key attached to no lease"));
            }
            self.root.sum.add(hash::attachment(id, &key));
            self.root.attached.insert(id, key.clone());
            self.attachments.push((key, id));
        }
        Ok(())
    }

    /// Decodes and hashes the blocks that have gathered, in parallel, and stores them.
    fn records(&mut self) -> Result<(), Fault> {
        let blocks = std::mem::take(&mut self.undecoded);
        let (with_values, give_way) = (self.value_bytes < self.value_bytes_max, self.give_way);
        let share = blocks.len().div_ceil(DECODERS).max(1);
        let decoded: Vec<Result<Vec<Decoded>, Fault>> = std::thread::scope(|scope| {
            let decode_all = |blocks: &[(Bytes, _)]| {
                blocks.iter().map(|(block, at)| decode(block, *at, with_values, give_way)).collect()
            };
            let workers: Vec<_> = blocks.chunks(share).map(|blocks| scope.spawn(move || decode_all(blocks))).collect();
            let joined = workers.into_iter().map(|worker| {
                worker.join().unwrap_or_else(|_| Err(Fault::Invariant("decoding an image's block panicked".into())))
            });
            joined.collect()
        });
        for part in decoded {
            for Decoded { blocks, versions, value_bytes } in part? {
                for (first, last) in blocks.iter().filter_map(EncodedBlock::span) {
                    if first <= self.last {
                        return Err(corrupt("records out of order"));
                    }
                    self.last = last;
                }
                self.value_bytes += value_bytes;
                self.root.values.store.append_encoded(blocks)?;
                self.versions.extend(versions);
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Root, Fault> {
        self.records()?;
        let (Some(header), Some(end)) = (self.header.take(), self.end.take()) else {
            return Err(corrupt("its end is missing"));
        };
        let records = number(self.versions.len());
        let index = self.index()?;
        let mut root = self.root;
        root.index = index;
        root.timeline = header.timeline;
        root.idempotency.restore_sequence(header.idempotency_next);
        root.lease_starts = header.lease_starts;
        let live_bytes = root.numbers.live_bytes;
        root.numbers = header.numbers;
        root.applied = header.applied;
        root.membership = header.membership;
        root.trimmed = header.numbers.compacted;
        let found = End {
            leases: number(root.leases.len()),
            attachments: number(root.attached.len()),
            idempotency: number(root.idempotency.len()),
            records,
            state_hash: root.state_hash(),
        };
        if found != end || live_bytes != root.numbers.live_bytes || self.last.0 > root.numbers.revision {
            return Err(corrupt(format!("it promises {end:?} and holds {found:?}")));
        }
        Ok(root)
    }

    /// Sorts the versions into keys with histories.
    fn index(&mut self) -> Result<Index, Fault> {
        let mut versions = std::mem::take(&mut self.versions);
        // Stable, and quick because of the runs.
        versions.sort_by(|a, b| a.key.cmp(&b.key));
        self.attachments.sort();
        let mut attachments = std::mem::take(&mut self.attachments).into_iter().peekable();
        let mut keys: Vec<Arc<KeyRecord>> = Vec::with_capacity(versions.len());
        let mut versions = versions.into_iter().peekable();
        while let Some(mut newest) = versions.next() {
            let mut older = Vec::new();
            while let Some(next) = versions.next_if(|next| next.key == newest.key) {
                let place = newest.head.place();
                if place.main == next.head.main {
                    return Err(corrupt("a key written twice at one revision"));
                }
                older.push(place);
                newest = next;
            }
            let lease = attachments.next_if(|(key, _)| *key == newest.key).map_or(0, |(_, id)| id);
            if lease != 0 && !newest.head.is_live() {
                return Err(corrupt("a deleted key is attached to a lease"));
            }
            if let Some(key) = Arc::get_mut(&mut newest) {
                if key.head.lease != lease {
                    key.slot.rehang();
                }
                key.head.lease = lease;
                key.history = History::from_places(older.into_iter());
                self.count(key);
            }
            keys.push(newest);
            if keys.len().is_multiple_of(KEYS_BETWEEN) {
                (self.give_way)();
            }
        }
        if attachments.next().is_some() {
            return Err(corrupt("a lease is attached to a key that does not exist, or a key to two"));
        }
        Ok(Index::build(keys))
    }

    fn count(&mut self, key: &KeyRecord) {
        self.root.values.adopt(key);
        if key.head.is_live() {
            self.root.sum.add(hash::join(key.head.hash));
            let value = usize::try_from(key.head.value_size).unwrap_or(usize::MAX);
            self.root.numbers.live_bytes += logical_bytes(key.key.len(), value, key.head.content_type.as_deref());
        }
    }
}

/// The blocks of records in one block of the image, and each record as a key of its own, sorted by key.
#[derive(Default)]
struct Decoded {
    blocks: Vec<EncodedBlock>,
    versions: Vec<Arc<KeyRecord>>,
    /// Of the values that stay in memory.
    value_bytes: u64,
}

fn decode(block: &Bytes, lies_at: Option<u64>, with_values: bool, give_way: fn()) -> Result<Decoded, Fault> {
    let mut decoded = Decoded::default();
    let mut content_types = ContentTypes::default();
    let mut rest = block.clone();
    while !rest.is_empty() {
        give_way();
        let within = number(block.len() - rest.len());
        let inner = split_block(&mut rest).ok_or_else(|| corrupt("a block is cut short"))?;
        let block = Block::open(inner.clone())?;
        let encoded = EncodedBlock::new(inner);
        let mut encoded = match lies_at {
            Some(at) => encoded.stored(at.saturating_add(within)),
            None => encoded,
        };
        let mut sound = true;
        block.for_each(|mut record| {
            encoded.note(&record);
            let hash = hash::record(&record);
            record.content_type = record.content_type.map(|declared| content_types.shared(&declared));
            match version(&record, hash, with_values) {
                Some(version) => decoded.versions.push(Arc::new(version)),
                None => sound = false,
            }
            if with_values {
                decoded.value_bytes += number(record.weight());
            }
        })?;
        if !sound {
            return Err(corrupt("a record that contradicts itself"));
        }
        decoded.blocks.push(encoded);
    }
    // Stable: a key's versions stay in revision order.
    decoded.versions.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(decoded)
}

fn split_block(rest: &mut Bytes) -> Option<Bytes> {
    let length = u32::from_le_bytes(*rest.first_chunk::<BLOCK_LENGTH_BYTES>()?);
    let end = usize::try_from(length).ok()?.checked_add(BLOCK_LENGTH_BYTES).filter(|end| *end <= rest.len())?;
    Some(rest.split_to(end).slice(BLOCK_LENGTH_BYTES..))
}

fn version(record: &Record, hash: u128, with_value: bool) -> Option<KeyRecord> {
    let head = Head {
        main: record.main,
        create: record.create_revision,
        version: record.version,
        lease: record.lease,
        content_type: record.content_type.clone(),
        hash: hash::split(hash),
        value_size: u32::try_from(record.value.len()).ok()?,
        sub: record.sub,
    };
    let is_sound = head.is_live() == (record.kind == RecordKind::Put) && !record.key.is_empty();
    let slot =
        if with_value && head.is_live() { Slot::full(Bytes::copy_from_slice(&record.value)) } else { Slot::default() };
    is_sound.then(|| KeyRecord { key: Bytes::copy_from_slice(&record.key), head, history: History::None, slot })
}
