//! Leases: none ends before its TTL after the sending of the last renewal that was answered, whatever
//! becomes of leaders, clocks and processes. (That each ends in bounded time once all is well, the healing
//! waits for.)

use crate::ledger::Book;
use tenure::model::{DeleteReason, EventKind};

/// Members' and clients' time move in ticks.
const SLACK_US: u64 = 20_000;

pub(crate) fn check(book: &Book) -> Vec<String> {
    let mut found = Vec::new();
    for told in book.told.values() {
        for event in told.events.events.iter().filter(|event| event.kind == EventKind::Delete(DeleteReason::Expired)) {
            let lives = book.leases.iter().filter(|life| life.key == event.kv.key && !life.void);
            found.extend(lives.filter_map(|life| {
                let due_us = life.sent_us + life.ttl_us;
                (told.first_us + SLACK_US < due_us).then(|| {
                    format!(
                        "leases: {:x} of {:?} ended {} ms before the TTL of {} ms after its last answered renewal",
                        life.id,
                        life.key,
                        (due_us - told.first_us) / 1000,
                        life.ttl_us / 1000
                    )
                })
            }));
        }
    }
    found
}
