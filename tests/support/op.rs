//! What clients did and what they were told: the journal that both checkers read.
//!
//! Every written value is unique, and so is every counter's increment, so that what is found in the
//! store names the operation it came from.

use std::collections::{BTreeMap, BTreeSet};

pub(crate) type Key = String;
/// A key's value and the revision that wrote it.
pub(crate) type Version = (i64, String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    Put {
        key: Key,
        value: String,
    },
    /// Replaces exactly the version expected; `None` creates.
    Cas {
        key: Key,
        expected: Option<Version>,
        value: String,
    },
    Delete {
        key: Key,
    },
    Add {
        key: Key,
        by: i64,
    },
    /// Puts all if `key` is as expected (as in `Cas`), else nothing.
    Txn {
        key: Key,
        expected: Option<Version>,
        puts: BTreeMap<Key, String>,
    },
    Read {
        key: Key,
    },
    /// All at one revision.
    ReadMany {
        keys: BTreeSet<Key>,
    },
    /// Of whatever the member asked has applied.
    StaleRead {
        key: Key,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Written, at this revision.
    Written {
        revision: i64,
    },
    /// The condition did not hold, as of this revision.
    Refused {
        revision: i64,
    },
    /// How many keys; the revision is the delete's own if any.
    Deleted {
        revision: i64,
        count: u64,
    },
    Sum {
        revision: i64,
        value: i64,
    },
    /// The key's version as of this revision of the store.
    Value {
        revision: i64,
        version: Option<Version>,
    },
    /// The same of several keys.
    Values {
        revision: i64,
        versions: BTreeMap<Key, Option<Version>>,
    },
    /// Certainly not done (`applied: no`, or never sent).
    No,
    /// Perhaps done (`applied: unknown`, or no answer).
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Op {
    /// Nanoseconds on one clock: before sending, after the answer. Of an unknown operation: the moment
    /// after which it cannot happen any more, because the member has died since; `u64::MAX`: none.
    pub(crate) call: u64,
    pub(crate) returned: u64,
    pub(crate) action: Action,
    pub(crate) answer: Answer,
}

impl Action {
    /// Keys and values this would put, counters apart.
    pub(crate) fn puts(&self) -> Vec<(&Key, &String)> {
        match self {
            Self::Put { key, value } | Self::Cas { key, value, .. } => vec![(key, value)],
            Self::Txn { puts, .. } => puts.iter().collect(),
            Self::Delete { .. }
            | Self::Add { .. }
            | Self::Read { .. }
            | Self::ReadMany { .. }
            | Self::StaleRead { .. } => Vec::new(),
        }
    }

    pub(crate) fn is_read(&self) -> bool {
        matches!(self, Self::Read { .. } | Self::ReadMany { .. } | Self::StaleRead { .. })
    }

    pub(crate) fn keys(&self) -> Vec<&Key> {
        match self {
            Self::Put { key, .. }
            | Self::Cas { key, .. }
            | Self::Delete { key }
            | Self::Add { key, .. }
            | Self::Read { key }
            | Self::StaleRead { key } => vec![key],
            Self::ReadMany { keys } => keys.iter().collect(),
            Self::Txn { key, puts, .. } => puts.keys().chain([key]).collect(),
        }
    }
}

impl Answer {
    /// The store's revision that the answer speaks of.
    pub(crate) fn revision(&self) -> Option<i64> {
        match self {
            Self::Written { revision }
            | Self::Refused { revision }
            | Self::Deleted { revision, .. }
            | Self::Sum { revision, .. }
            | Self::Value { revision, .. }
            | Self::Values { revision, .. } => Some(*revision),
            Self::No | Self::Unknown => None,
        }
    }
}

/// The store's own account, from a watch: what each revision changed. `None` is a delete.
pub(crate) type Log = BTreeMap<i64, BTreeMap<Key, Option<String>>>;

/// What the store held at some revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) revision: i64,
    pub(crate) keys: BTreeMap<Key, Version>,
}

impl State {
    pub(crate) fn empty() -> Self {
        Self { revision: 1, keys: BTreeMap::new() }
    }

    pub(crate) fn replay(&mut self, log: &Log) {
        for (revision, changes) in log.range(self.revision + 1..) {
            self.revision = *revision;
            for (key, value) in changes {
                match value {
                    Some(value) => self.keys.insert(key.clone(), (*revision, value.clone())),
                    None => self.keys.remove(key),
                };
            }
        }
    }
}
