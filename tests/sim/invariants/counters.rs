//! Exactly once: a counter that is added to under idempotency keys, again and again until it is answered,
//! stands at the number of additions that were acknowledged, give or take those never settled.

use super::replay::Replay;
use crate::ledger::Book;
use std::collections::BTreeSet;

pub(crate) fn check(book: &Book, replay: &Replay) -> Vec<String> {
    let mut found = Vec::new();
    for (key, counter) in &book.counters {
        let text = replay.at(key, replay.newest()).map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
        let value: u64 = text.and_then(|text| text.parse().ok()).unwrap_or(0);
        let acked = counter.acked.len() as u64;
        if value < acked || value > acked + counter.unsettled {
            found.push(format!(
                "exactly once: {key:?} is {value} after {acked} acknowledged and {} unsettled additions",
                counter.unsettled
            ));
        }
        let distinct: BTreeSet<i64> = counter.acked.iter().copied().collect();
        if distinct.len() != counter.acked.len() {
            found.push(format!("exactly once: two additions to {key:?} were answered with one value"));
        }
    }
    found
}
