//! Acknowledged writes survive, whole, at their revision; what was refused never happened; what is
//! unknown happened at most once, whole or not at all; and each answer about compares is true.

use super::replay::Replay;
use crate::ledger::{Book, Branch, Fate, Write};
use bytes::Bytes;
use std::collections::BTreeMap;
use tenure::model::{EventKind, Revision};

/// Where each value was written.
type Places = BTreeMap<Bytes, Vec<(Revision, Bytes)>>;

fn places(book: &Book) -> Places {
    let mut places = Places::new();
    for (revision, told) in &book.told {
        for event in told.events.events.iter().filter(|event| event.kind == EventKind::Put) {
            places.entry(event.kv.value.clone()).or_default().push((*revision, event.kv.key.clone()));
        }
    }
    places
}

/// The revisions in which a branch's values were written.
fn happened(branch: &Branch, places: &Places) -> Vec<Vec<Revision>> {
    let of = |(key, value): &(Bytes, Bytes)| {
        let found = places.get(value).into_iter().flatten().filter(|(_, at)| at == key);
        found.map(|(revision, _)| *revision).collect()
    };
    branch.puts.iter().map(of).collect()
}

pub(crate) fn check(book: &Book, replay: &Replay) -> Vec<String> {
    let places = places(book);
    book.writes.iter().filter_map(|write| judge(write, &places, replay)).collect()
}

fn judge(write: &Write, places: &Places, replay: &Replay) -> Option<String> {
    let who = &write.who;
    let (success, failure) = (happened(&write.success, places), happened(&write.failure, places));
    let never = |found: &[Vec<Revision>]| found.iter().all(Vec::is_empty);
    match write.fate {
        Fate::No => (!never(&success) || !never(&failure))
            .then(|| format!("writes: {who} was told that it did not happen, and it did, at {success:?} {failure:?}")),
        Fate::Unknown => {
            let once = |found: &[Vec<Revision>]| {
                let first = found.first().cloned().unwrap_or_default();
                first.len() <= 1 && found.iter().all(|at| *at == first)
            };
            let both = !never(&success) && !never(&failure);
            (!once(&success) || !once(&failure) || both)
                .then(|| format!("writes: {who} is unknown, and happened in part or twice: {success:?} {failure:?}"))
        }
        Fate::Acked { revision, succeeded } => {
            let (done, not_done) = if succeeded { (&success, &failure) } else { (&failure, &success) };
            if done.iter().any(|at| at != &[revision]) {
                return Some(format!("writes: {who} was acknowledged at {revision}, and happened at {done:?}"));
            }
            if !never(not_done) {
                return Some(format!("writes: {who} ran the branch that it was told did not run, at {not_done:?}"));
            }
            let branch = if succeeded { &write.success } else { &write.failure };
            if let Some(key) = branch.deletes.iter().find(|key| replay.at(key, revision).is_some()) {
                return Some(format!("writes: {who} deleted {key:?} at {revision}, and it is there"));
            }
            compared(write, branch, revision, succeeded, replay)
        }
    }
}

fn compared(write: &Write, branch: &Branch, revision: Revision, succeeded: bool, replay: &Replay) -> Option<String> {
    if write.expected.is_empty() {
        return None;
    }
    let wrote = !branch.puts.is_empty() || !branch.deletes.is_empty();
    let before = if wrote { revision - 1 } else { revision };
    let held = write
        .expected
        .iter()
        .all(|(key, expected)| replay.at(key, before).map_or(0, |kv| kv.mod_revision) == *expected);
    (held != succeeded)
        .then(|| format!("writes: {} was told {succeeded} of its compares at {revision}, which is {held}", write.who))
}
