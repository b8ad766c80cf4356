//! What the tests share: calls to the log, a naive model of it, and the one rule of recovery.

use crate::model::Fault;
use crate::storage::disk::Disk;
use crate::storage::mutant::Mutant;
use crate::storage::simdisk::SimDisk;
use crate::storage::wal::{Done, Fatal, Recovered, Threading, Wal, WalEntry, WalError, WalOptions};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub(super) const DIR: &str = "/data/wal";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    /// Entries with payloads of these lengths.
    Append(Vec<usize>),
    Vote,
    Committed,
    /// Keeps this many of the live entries.
    Truncate(u64),
    /// Forgets this many of the live entries; more than there are moves the start beyond the end.
    Purge(u64),
    /// Everything queued since the last one becomes one group.
    Pump,
}

/// The state of a log as a naive implementation would keep it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Model {
    pub vote: Option<Bytes>,
    pub purged: Option<(u64, Bytes)>,
    pub entries: BTreeMap<u64, Bytes>,
    /// What no entry and no purge tells: where the next entry of an emptied log goes.
    next: u64,
}

/// What the log said, in order.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The newest call that was acknowledged.
    pub acked: usize,
    pub refused: usize,
    pub fatal: usize,
    pub acked_after_fatal: bool,
}

pub(super) struct Driver {
    pub wal: Wal,
    pub disk: SimDisk,
    /// The model after each record; the first is where the log started. What is not acknowledged may
    /// survive in part, record by record.
    pub history: Vec<Model>,
    pub committed: Vec<Option<Bytes>>,
    pub told: Arc<Mutex<Told>>,
    /// Makes every payload, vote and position unique.
    pub serial: u64,
}

pub(super) fn payload(serial: u64, len: usize) -> Bytes {
    let mut bytes = serial.to_le_bytes().repeat(len / 8 + 1);
    bytes.truncate(len);
    bytes.into()
}

pub(super) fn sim_options(segment_bytes: u64, mutant: Option<Mutant>, fatal: Fatal) -> WalOptions {
    let mut options = WalOptions::new(DIR, fatal);
    options.segment_bytes = segment_bytes;
    options.cache_bytes = 700;
    options.threading = Threading::Pumped;
    options.mutant = mutant;
    options
}

pub(super) fn told_fatal(told: &Arc<Mutex<Told>>) -> Fatal {
    let told = told.clone();
    Arc::new(move |_| told.lock().fatal += 1)
}

pub(super) fn open_sim(
    disk: &SimDisk,
    segment_bytes: u64,
    mutant: Option<Mutant>,
    told: &Arc<Mutex<Told>>,
) -> Result<(Wal, Recovered), WalError> {
    Wal::open(Arc::new(disk.clone()), sim_options(segment_bytes, mutant, told_fatal(told)))
}

/// All entries, read in three ways that must agree.
pub(super) fn read_all(wal: &Wal) -> Result<BTreeMap<u64, Bytes>, Fault> {
    let at_once = wal.read(0, u64::MAX, usize::MAX)?;
    let mut one_by_one = Vec::new();
    let mut in_chunks = Vec::new();
    if let (Some(first), Some(last)) = (wal.first_index(), wal.last_index()) {
        for index in first..=last {
            one_by_one.extend(wal.read(index, index + 1, 0)?);
        }
        let mut from = first;
        while from <= last {
            let chunk = wal.read(from, last + 1, 300)?;
            assert!(!chunk.is_empty(), "a read returns at least one entry");
            from += chunk.len() as u64;
            in_chunks.extend(chunk);
        }
    }
    assert_eq!(at_once, one_by_one);
    assert_eq!(at_once, in_chunks);
    Ok(at_once.into_iter().map(|WalEntry { index, bytes }| (index, bytes)).collect())
}

/// The state of an open log, as the model has it.
pub(super) fn observe(wal: &Wal) -> Model {
    let entries = read_all(wal).expect("an intact log reads");
    let model = Model { vote: wal.vote(), purged: wal.purged(), entries, next: 0 };
    assert_eq!(wal.first_index(), model.entries.keys().next().copied());
    assert_eq!(wal.last_index(), model.entries.keys().next_back().copied());
    if let (Some(first), Some(last)) = (wal.first_index(), wal.last_index()) {
        assert_eq!(model.entries.len() as u64, last - first + 1, "there is a hole");
        assert!(model.purged.as_ref().is_none_or(|(purged, _)| purged + 1 == first));
    }
    model
}

impl Model {
    pub(super) fn same_as(&self, other: &Self) -> bool {
        (&self.vote, &self.purged, &self.entries) == (&other.vote, &other.purged, &other.entries)
    }

    fn next(&self) -> u64 {
        let after_last = self.entries.keys().next_back().map(|last| last + 1);
        after_last.or(self.purged.as_ref().map(|(purged, _)| purged + 1)).unwrap_or(self.next)
    }

    fn append(&mut self, index: u64, bytes: Bytes) {
        self.entries.insert(index, bytes);
    }

    fn truncate(&mut self, last: Option<u64>) {
        self.next = self.entries.keys().next().copied().unwrap_or(self.next());
        self.entries.retain(|index, _| last.is_some_and(|last| *index <= last));
    }

    fn purge(&mut self, index: u64, position: Bytes) {
        if self.purged.as_ref().is_none_or(|(purged, _)| *purged < index) {
            self.purged = Some((index, position));
            self.entries.retain(|live, _| *live > index);
        }
    }
}

impl Driver {
    pub(super) fn open(disk: &SimDisk, segment_bytes: u64, mutant: Option<Mutant>) -> Result<Self, WalError> {
        Self::open_threaded(disk, segment_bytes, mutant, Threading::Pumped)
    }

    pub(super) fn open_threaded(
        disk: &SimDisk,
        segment_bytes: u64,
        mutant: Option<Mutant>,
        threading: Threading,
    ) -> Result<Self, WalError> {
        let told = Arc::new(Mutex::new(Told::default()));
        let mut options = sim_options(segment_bytes, mutant, told_fatal(&told));
        options.threading = threading;
        let (wal, _) = Wal::open(Arc::new(disk.clone()), options)?;
        let start = observe(&wal);
        let committed = vec![wal.committed()];
        Ok(Self { wal, disk: disk.clone(), history: vec![start], committed, told, serial: 0 })
    }

    /// Acknowledges everything up to the last of the `records` that are being queued.
    fn done(&self, records: usize) -> Done {
        let told = self.told.clone();
        let call = self.history.len() - 1 + records;
        Box::new(move |outcome| {
            let mut told = told.lock();
            match outcome {
                Ok(()) => {
                    assert!(told.acked < call, "acknowledged out of order");
                    told.acked = call;
                    told.acked_after_fatal |= told.fatal > 0;
                }
                Err(_) => told.refused += 1,
            }
        })
    }

    pub(super) fn call(&mut self, call: &Call) {
        self.serial += 1;
        let stamp = payload(self.serial, 16);
        let mut model = self.history.last().expect("it has a start").clone();
        match call {
            Call::Append(lengths) => {
                let mut entries = Vec::new();
                let done = self.done(lengths.len().max(1));
                for (at, len) in lengths.iter().enumerate() {
                    self.serial += 1;
                    let entry = WalEntry { index: model.next(), bytes: payload(self.serial, *len) };
                    model.append(entry.index, entry.bytes.clone());
                    entries.push(entry);
                    if at + 1 < lengths.len() {
                        self.history.push(model.clone());
                    }
                }
                self.wal.append(entries, done);
            }
            Call::Vote => {
                model.vote = Some(stamp.clone());
                self.wal.save_vote(stamp, self.done(1));
            }
            Call::Committed => {
                self.committed.push(Some(stamp.clone()));
                return self.wal.save_committed(stamp);
            }
            Call::Truncate(kept) => {
                let first = model.entries.keys().next().copied().unwrap_or(model.next());
                let last = (first + kept).checked_sub(1).filter(|_| *kept > 0 || model.purged.is_some());
                model.truncate(last);
                self.wal.truncate_after(last, self.done(1));
            }
            Call::Purge(count) => {
                let first = model.entries.keys().next().copied().unwrap_or(model.next());
                let index = first + count;
                model.purge(index, stamp.clone());
                self.wal.purge(index, stamp, self.done(1));
            }
            Call::Pump => return self.wal.pump(),
        }
        self.history.push(model);
    }

    pub(super) fn run(&mut self, calls: &[Call]) {
        for call in calls {
            self.call(call);
        }
        self.wal.pump();
    }

    pub(super) fn newest(&self) -> &Model {
        self.history.last().expect("it has a start")
    }

    /// The rule: a recovered log is the model after some record, none older than the last acknowledged
    /// one. Returns which.
    pub(super) fn check_recovered(&self, recovered: &Wal) -> Result<usize, String> {
        let found = observe(recovered);
        let acked = self.told.lock().acked;
        let Some(call) = (acked..self.history.len()).rev().find(|call| self.history[*call].same_as(&found)) else {
            let older = self.history[..acked].iter().position(|model| model.same_as(&found));
            return Err(format!("acknowledged up to record {acked}, found that of {older:?}: {found:?}"));
        };
        let committed = recovered.committed();
        if !self.committed.contains(&committed) {
            return Err(format!("committed is {committed:?}, which was never saved"));
        }
        Ok(call)
    }
}

/// Opens the log again and applies the rule.
pub(super) fn check(driver: &Driver, disk: &SimDisk, segment_bytes: u64, mutant: Option<Mutant>) -> Result<(), String> {
    let told = Arc::new(Mutex::new(Told::default()));
    let (wal, recovered) = open_sim(disk, segment_bytes, mutant, &told).map_err(|error| error.to_string())?;
    driver.check_recovered(&wal)?;
    assert_eq!(recovered.first_index, wal.first_index());
    assert_eq!(recovered.last_index, wal.last_index());
    assert_eq!((recovered.vote, recovered.purged), (wal.vote(), wal.purged()));
    wal.abandon();
    Ok(())
}

pub(super) fn segment_files(disk: &SimDisk) -> Vec<String> {
    names_of(disk, ".wal")
}

pub(super) fn names_of(disk: &SimDisk, suffix: &str) -> Vec<String> {
    let names = disk.list(Path::new(DIR)).unwrap();
    names.into_iter().filter(|name| name.ends_with(suffix)).collect()
}

/// A bit of everything, in groups of different sizes, over several segments of 2 KiB.
pub(super) fn mixed_calls() -> Vec<Call> {
    use Call::{Append, Committed, Pump, Purge, Truncate, Vote};
    vec![
        Vote,
        Pump,
        Append(vec![100]),
        Pump,
        Append(vec![0, 7, 200]),
        Committed,
        Append(vec![300]),
        Pump,
        Vote,
        Append(vec![60; 4]),
        Pump,
        Truncate(5),
        Append(vec![500, 500]),
        Pump,
        Committed,
        Append(vec![900]),
        Append(vec![700]),
        Vote,
        Pump,
        Purge(3),
        Append(vec![10]),
        Pump,
        Append(vec![3000]),
        Truncate(4),
        Append(vec![40, 41]),
        Pump,
        Committed,
        Purge(2),
        Pump,
        Append(vec![1000, 1000, 1000]),
        Pump,
        Vote,
        Pump,
        Purge(50),
        Append(vec![20, 30]),
        Pump,
    ]
}
