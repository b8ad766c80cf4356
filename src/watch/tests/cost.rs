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
