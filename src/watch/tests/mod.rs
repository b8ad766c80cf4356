//! The hub against a store of plain vectors whose history is as hostile as the contract allows.

mod checker;
mod cost;
mod etcd_bugs;
mod group;
mod hub;
mod index;

use super::*;
use crate::env::TaskSet;
use crate::model::{DeleteReason, Event, EventKind, EventPage, KeyRange, KeyValue, RevisionEvents};
use crate::telemetry::Metrics;
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Revision 1 is the empty store. Below the compacted revision history has holes on purpose.
#[derive(Debug)]
struct Past {
    revisions: Mutex<Vec<RevisionEvents>>,
    state: Mutex<(Revision, Revision)>,
    reads: AtomicUsize,
    /// Events of others that one read passes.
    passed_max: usize,
}

impl History for Past {
    fn revision(&self) -> Revision {
        self.state.lock().0
    }

    fn compacted_revision(&self) -> Revision {
        self.state.lock().1
    }

    fn events(&self, ranges: &[KeyRange], from: Revision, max_records: usize) -> Result<EventPage, Fault> {
        let (newest, compacted) = *self.state.lock();
        self.reads.fetch_add(1, Ordering::Relaxed);
        let revisions = self.revisions.lock();
        let mut page = EventPage { revisions: Vec::new(), upto: newest };
        let (mut records, mut passed) = (0, 0);
        let first = revisions.partition_point(|events| events.revision < from.max(compacted));
        for whole in revisions[first..].iter().take_while(|events| events.revision <= newest) {
            if records >= max_records || passed >= self.passed_max {
                page.upto = whole.revision - 1;
                break;
            }
            let shown = |event: &&Event| ranges.iter().any(|range| range.shows(&event.kv.key));
            let events: Arc<[Event]> = whole.events.iter().filter(shown).cloned().collect();
            (records, passed) = (records + events.len(), passed + whole.events.len() - events.len());
            if !events.is_empty() {
                page.revisions.push(RevisionEvents { revision: whole.revision, events });
            }
        }
        Ok(page)
    }
}

struct Store {
    past: Arc<Past>,
    hub: Hub,
    tasks: TaskSet,
    metrics: Metrics,
}

fn tiny() -> HubOptions {
    HubOptions { ring_bytes: 2_000, queue_events: 3, queue_bytes: 700, streams: 50, catch_ups: 2 }
}

fn roomy() -> Store {
    Store::new(HubOptions::default())
}

impl Store {
    fn new(options: HubOptions) -> Self {
        let past = Arc::new(Past {
            revisions: Mutex::default(),
            state: Mutex::new((1, 0)),
            reads: AtomicUsize::new(0),
            passed_max: options.queue_events + 2,
        });
        let tasks = TaskSet::new();
        let metrics = Metrics::new(&mut prometheus_client::registry::Registry::default());
        let history: Arc<dyn History> = Arc::<Past>::clone(&past);
        let hub = Hub::new(history, options, tasks.clone(), metrics.clone());
        Self { past, hub, tasks, metrics }
    }

    /// Applies one transaction: it can be read first, then it is published.
    fn write(&self, events: &[(&str, bool)]) -> Revision {
        let events = self.apply(events);
        self.hub.publish(std::slice::from_ref(&events));
        events.revision
    }

    fn put(&self, key: &str) -> Revision {
        self.write(&[(key, true)])
    }

    fn apply(&self, events: &[(&str, bool)]) -> RevisionEvents {
        let revision = self.past.revision() + 1;
        let events =
            RevisionEvents { revision, events: events.iter().map(|(k, put)| event(revision, k, *put)).collect() };
        self.past.revisions.lock().push(events.clone());
        self.past.state.lock().0 = revision;
        events
    }

    fn compact(&self, revision: Revision) {
        self.past.state.lock().1 = revision;
    }

    fn revision(&self) -> Revision {
        self.past.revision()
    }

    fn watch(&self, targets: &[KeyRange], after: Option<Revision>) -> Watcher {
        self.hub.watch(spec(targets, after)).expect("the watch is accepted")
    }
}

fn spec(targets: &[KeyRange], after: Option<Revision>) -> WatchSpec {
    WatchSpec { targets: targets.to_vec(), after, kinds: Kinds::ALL }
}

fn event(revision: Revision, key: &str, put: bool) -> Event {
    let value = if put { Bytes::from(format!("{key}@{revision}")) } else { Bytes::new() };
    let kv = KeyValue {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value_size: value.len() as u64,
        value,
        content_type: None,
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        lease: 0,
    };
    let kind = if put { EventKind::Put } else { EventKind::Delete(DeleteReason::Deleted) };
    Event { kind, kv, prev: None }
}

/// The next item, which must come.
async fn must(watcher: &mut Watcher) -> WatchItem {
    tokio::time::timeout(Duration::from_secs(10), watcher.next()).await.expect("the item comes")
}

async fn must_events(watcher: &mut Watcher) -> RevisionEvents {
    match must(watcher).await {
        WatchItem::Events(events) => events,
        other => panic!("events expected, got {other:?}"),
    }
}

/// Keys of the next revision, which must be `revision`.
async fn keys_at(watcher: &mut Watcher, revision: Revision) -> Vec<String> {
    let events = must_events(watcher).await;
    assert_eq!(events.revision, revision);
    events.events.iter().map(|event| String::from_utf8_lossy(&event.kv.key).into_owned()).collect()
}

/// Polls once: true if there is nothing for now.
async fn is_silent(watcher: &mut Watcher) -> bool {
    futures_util::future::poll_immediate(watcher.next()).await.is_none()
}

#[expect(clippy::disallowed_methods, reason = "a test joins its tasks to see their panics")]
fn spawn<F: Future<Output: Send> + Send + 'static>(task: F) -> tokio::task::JoinHandle<F::Output> {
    tokio::spawn(task)
}
