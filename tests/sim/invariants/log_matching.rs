//! Log matching: two logs that have an entry of one index, term and leader have the same entry there,
//! and the same before it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use tenure::raft::MemberId;
use tenure::storage::wal::{Wal, WalEntry};

/// How far back a look goes: what is older has been looked at before, or is committed.
const LOOK_BACK: u64 = 64;
const HEADER_BYTES: usize = 26;

#[derive(Debug, Default)]
pub(crate) struct LogMatching {
    /// What stands at a place, and the place before it.
    seen: BTreeMap<Place, (u64, Option<Place>)>,
    pub(crate) looked_at: u64,
}

/// Index, term and leader.
type Place = (u64, u64, u64);

fn place(entry: &WalEntry) -> Option<Place> {
    let number = |from: usize| Some(u64::from_le_bytes(entry.bytes.get(from..from + 8)?.try_into().ok()?));
    let head = entry.bytes.len() >= HEADER_BYTES;
    head.then(|| Some((number(18)?, number(2)?, number(10)?))).flatten()
}

impl LogMatching {
    pub(crate) fn look(&mut self, member: MemberId, wal: &Wal) -> Option<String> {
        let last = wal.last_index()?;
        let first = wal.first_index()?.max(last.saturating_sub(LOOK_BACK));
        let entries = wal.read(first, last + 1, usize::MAX).ok()?;
        let mut before = None;
        for entry in &entries {
            let Some(at) = place(entry) else {
                return Some(format!("log matching: member {member} has an unreadable entry {}", entry.index));
            };
            let mut hasher = DefaultHasher::new();
            entry.bytes.hash(&mut hasher);
            let digest = hasher.finish();
            self.looked_at += 1;
            let known = self.seen.entry(at).or_insert((digest, before));
            if known.0 != digest {
                return Some(format!("log matching: member {member} has another entry at {at:?} than others"));
            }
            if known.1.is_some() && before.is_some() && known.1 != before {
                return Some(format!(
                    "log matching: before {at:?} member {member} has {before:?}, another has {:?}",
                    known.1
                ));
            }
            known.1 = known.1.or(before);
            before = Some(at);
        }
        None
    }
}
