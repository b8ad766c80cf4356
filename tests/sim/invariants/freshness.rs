//! The read barrier: a linearizable answer reflects all that anyone was told before it was asked for,
//! and each answer is the state at the revision that it names. Writes come after what was told before.

use super::replay::Replay;
use crate::ledger::{Book, Fate, Read, Write};

pub(crate) fn check(book: &Book, replay: &Replay) -> Vec<String> {
    let reads = book.reads.iter().filter_map(|read| judge(read, replay));
    reads.chain(book.writes.iter().filter_map(later)).collect()
}

fn judge(read: &Read, replay: &Replay) -> Option<String> {
    let Read { who, linearizable, floor, revision, at, range, seen } = read;
    if *linearizable && revision < floor {
        return Some(format!("freshness: {who} was answered as of {revision}, after {floor} had been acknowledged"));
    }
    if *revision > replay.newest().max(1) {
        return Some(format!("freshness: {who} was answered as of {revision}, which never was"));
    }
    let wanted = replay.range_at(range, *at);
    let same = wanted.len() == seen.len()
        && wanted
            .iter()
            .zip(seen)
            .all(|(kv, seen)| kv.key == seen.key && kv.value == seen.value && kv.mod_revision == seen.mod_revision);
    (!same).then(|| {
        let brief = |kv: &tenure::model::KeyValue| format!("{:?}={:?}@{}", kv.key, kv.value, kv.mod_revision);
        let wanted: Vec<String> = wanted.into_iter().map(brief).collect();
        let seen: Vec<String> = seen.iter().map(brief).collect();
        format!("freshness: {who} at {at} saw {seen:?} instead of {wanted:?}")
    })
}

fn later(write: &Write) -> Option<String> {
    let Fate::Acked { revision, succeeded } = write.fate else { return None };
    let branch = if succeeded { &write.success } else { &write.failure };
    let wrote = !branch.puts.is_empty();
    let late = if wrote { revision <= write.floor } else { revision < write.floor };
    late.then(|| {
        format!("freshness: {} was applied at {revision}, after {} had been acknowledged", write.who, write.floor)
    })
}
