//! What matching costs, counted in steps, not in time.

use super::super::index::{Index, parts_of};
use super::*;

const WATCHERS: u64 = 10_000;

#[test]
fn one_event_among_ten_thousand_watchers_is_logarithmic() {
    let mut index = Index::new();
    for id in 0..WATCHERS {
        let targets = [
            KeyRange::key(format!("key/{id:05}")),
            KeyRange::prefix(format!("dir/{id:05}/")),
            KeyRange { start: format!("span/{id:05}").into(), end: Some(format!("span/{:05}", id + 3).into()) },
        ];
        index.insert(&parts_of(&targets), id, &id);
    }
    for (key, matches) in
        [("key/04711", 1), ("dir/04711/x", 1), ("span/04711", 3), ("dir/", 0), ("nothing", 0), ("zzz", 0)]
    {
        let mut hits = Vec::new();
        let cost = index.matching(key.as_bytes(), |id| hits.push(*id));
        assert_eq!(hits.len(), matches, "{key}");
        assert!(cost < 200, "{key} cost {cost} steps among {WATCHERS} watchers");
    }
}

#[test]
fn watchers_of_one_prefix_are_one_node() {
    let mut index = Index::new();
    let parts = parts_of(&[KeyRange::prefix("a/")]);
    for id in 0..WATCHERS {
        index.insert(&parts, id, &id);
    }
    assert!(index.matching(b"b", |_| ()) < 10);
    assert_eq!(index.matching(b"a/x", |_| ()), 2 + 10_000);
}

/// However many watch: the publisher touches the ring alone, and a reader that has not looked since
/// the last event is not told twice.
#[tokio::test]
async fn publishing_does_not_depend_on_watchers_and_waking_is_once() {
    let store = Store::new(HubOptions { streams: 10_000, ..HubOptions::default() });
    let mut watchers: Vec<Watcher> = (0..1_000).map(|_| store.watch(&[KeyRange::all()], None)).collect();
    for _ in 0..100 {
        store.put("a");
    }
    assert!(watchers.iter().all(Watcher::is_unhinted), "publishing alone tells nobody");
    store.hub.match_all();
    for watcher in &mut watchers {
        assert_eq!(must_events(watcher).await.revision, 2);
    }
}

/// Thousands of streams, most of which never look: each holds its place and nothing else, and whoever
/// looks at last gets everything that it follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_streams_cost_their_places_alone() {
    const STREAMS: usize = 4_000;
    const KEYS: usize = 100;
    const ROUNDS: i64 = 30;
    let options = HubOptions { streams: STREAMS, ring_bytes: 64 << 10, ..HubOptions::default() };
    let store = Store::new(options);
    store.tasks.spawn("watch-hub", store.hub.clone().run());
    let key = |at: usize| format!("key/{:03}", at % KEYS);
    let mut streams: Vec<Watcher> = (0..STREAMS).map(|at| store.watch(&[KeyRange::key(key(at))], None)).collect();
    for _ in 0..ROUNDS {
        for at in 0..KEYS {
            store.put(&key(at));
        }
    }
    let revision = store.revision();
    // Watched keys were written so long ago that the ring has forgotten the first.
    let lag = store.hub.lag();
    assert!(lag.slowest_revisions <= u64::try_from(revision).unwrap() && lag.catching_up == 0, "{lag:?}");
    for (at, stream) in streams.iter_mut().enumerate() {
        let mut seen = 0;
        while seen < ROUNDS {
            let events = must_events(stream).await;
            assert_eq!(events.revision, 2 + seen * i64::try_from(KEYS).unwrap() + i64::try_from(at % KEYS).unwrap());
            seen += 1;
        }
    }
    assert!(store.metrics.watch_catchups.get() > 0, "nobody had to catch up: the run proves nothing");
    drop(streams);
    assert!(store.hub.is_empty());
    assert_eq!(store.hub.lag(), Lag::default());
}

/// What is read from history is cut to a stream's bound; the rest is read when it is due.
#[tokio::test]
async fn a_stream_holds_no_more_of_history_than_its_bound() {
    let store = Store::new(tiny());
    for _ in 0..300 {
        store.put("a");
    }
    let mut watcher = store.watch(&[KeyRange::key("a")], Some(1));
    let mut next = 2;
    while next <= 301 {
        let mut held = 0;
        let mut events = Some(must_events(&mut watcher).await);
        while let Some(found) = events {
            assert_eq!(found.revision, next);
            next += 1;
            held += events_bytes(&found.events);
            events = watcher.next_ready();
        }
        assert!(held <= tiny().queue_bytes, "{held} bytes at once");
    }
    let lag = store.hub.lag();
    assert_eq!(lag.slowest_revisions, 0, "{lag:?}");
}

#[tokio::test]
async fn lag_is_told_of_the_slowest() {
    let store = Store::new(tiny());
    let mut quick = store.watch(&[KeyRange::key("a")], None);
    let slow = store.watch(&[KeyRange::key("b")], None);
    for _ in 0..4 {
        store.put("a");
    }
    store.put("b");
    store.put("c");
    store.hub.match_all();
    for revision in 2..=5 {
        assert_eq!(must_events(&mut quick).await.revision, revision);
    }
    assert!(is_silent(&mut quick).await);
    assert_eq!(store.hub.lag(), Lag { slowest_revisions: 2, catching_up: 0 });
    drop(slow);
    assert_eq!(store.hub.lag().slowest_revisions, 0);
}
