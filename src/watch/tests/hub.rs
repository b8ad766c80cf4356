//! One behaviour per test.

use super::*;
use crate::model::{Failure, Rejection, Why};

#[tokio::test]
async fn a_watcher_gets_what_matches_and_nothing_else() {
    let store = roomy();
    let mut key = store.watch(&[KeyRange::key("a")], None);
    let mut prefix = store.watch(&[KeyRange::prefix("a")], None);
    store.put("b");
    store.put("a");
    store.put("a/b");
    store.hub.match_all();
    assert_eq!(keys_at(&mut key, 3).await, ["a"]);
    assert!(is_silent(&mut key).await);
    assert_eq!(keys_at(&mut prefix, 3).await, ["a"]);
    assert_eq!(keys_at(&mut prefix, 4).await, ["a/b"]);
    assert!(is_silent(&mut prefix).await);
}

#[tokio::test]
async fn a_transaction_arrives_whole_and_in_its_own_order() {
    let store = roomy();
    let mut watcher = store.watch(&[KeyRange::prefix("x"), KeyRange::key("b"), KeyRange::prefix("xa")], None);
    store.write(&[("xb", true), ("c", true), ("xa", false), ("b", true)]);
    store.hub.match_all();
    assert_eq!(keys_at(&mut watcher, 2).await, ["xb", "xa", "b"]);
    assert!(is_silent(&mut watcher).await);
}

#[tokio::test]
async fn kinds_filter_events_not_revisions() {
    let store = roomy();
    let spec = WatchSpec { kinds: Kinds { puts: false, deletes: true }, ..spec(&[KeyRange::all()], None) };
    let mut watcher = store.hub.watch(spec).unwrap();
    store.put("a");
    store.write(&[("a", false), ("b", true)]);
    store.hub.match_all();
    assert_eq!(keys_at(&mut watcher, 3).await, ["a"]);
    watcher.request_progress();
    assert!(matches!(must(&mut watcher).await, WatchItem::Progress(3)));
}

#[tokio::test]
async fn a_nudge_reaches_each_watcher_once_whether_it_waits_or_not() {
    let store = roomy();
    let mut waiting = store.watch(&[KeyRange::all()], None);
    let mut busy = store.watch(&[KeyRange::all()], None);
    {
        let next = waiting.next();
        tokio::pin!(next);
        assert!(futures_util::poll!(next.as_mut()).is_pending());
        store.put("a");
        store.hub.nudge();
        assert!(matches!(next.await, WatchItem::Nudged));
    }
    store.hub.match_all();
    assert!(matches!(must(&mut busy).await, WatchItem::Nudged));
    for watcher in [&mut waiting, &mut busy] {
        assert_eq!(keys_at(watcher, 2).await, ["a"]);
        assert!(is_silent(watcher).await);
    }
}

#[tokio::test]
async fn the_hidden_prefix_is_only_seen_from_below_it() {
    let store = roomy();
    let mut all = store.watch(&[KeyRange::all()], None);
    let mut hidden = store.watch(&[KeyRange::prefix("_tenure/")], None);
    store.write(&[("_tenure/locks/a", true), ("z", true)]);
    store.put("_tenure/locks/b");
    store.hub.match_all();
    assert_eq!(keys_at(&mut all, 2).await, ["z"]);
    assert!(is_silent(&mut all).await);
    assert_eq!(keys_at(&mut hidden, 2).await, ["_tenure/locks/a"]);
    assert_eq!(keys_at(&mut hidden, 3).await, ["_tenure/locks/b"]);
}

#[tokio::test]
async fn a_start_in_the_past_is_served_from_the_ring_or_from_history() {
    for options in [HubOptions::default(), tiny()] {
        let store = Store::new(options);
        for _ in 0..100 {
            store.put("a");
        }
        let mut watcher = store.watch(&[KeyRange::key("a")], Some(10));
        for revision in 11..=101 {
            assert_eq!(keys_at(&mut watcher, revision).await, ["a"]);
        }
        assert!(is_silent(&mut watcher).await);
        store.put("a");
        store.hub.match_all();
        assert_eq!(keys_at(&mut watcher, 102).await, ["a"]);
    }
}

#[tokio::test]
async fn a_slow_watcher_falls_back_to_history_and_rejoins() {
    let store = Store::new(tiny());
    let mut slow = store.watch(&[KeyRange::key("a")], None);
    for _ in 0..200 {
        store.put("a");
        store.hub.match_all();
    }
    for revision in 2..=201 {
        assert_eq!(keys_at(&mut slow, revision).await, ["a"]);
    }
    assert_eq!(store.metrics.watch_catchups.get(), 1);
    store.put("a");
    store.hub.match_all();
    assert_eq!(keys_at(&mut slow, 202).await, ["a"]);
    assert_eq!(store.metrics.watch_catchups.get(), 1, "the last one came from the ring");
}

#[tokio::test]
async fn a_quiet_watcher_needs_no_history_however_much_others_write() {
    let store = Store::new(tiny());
    let mut quiet = store.watch(&[KeyRange::key("quiet")], None);
    assert!(is_silent(&mut quiet).await);
    for _ in 0..500 {
        store.put("busy");
        store.hub.match_all();
    }
    store.compact(490);
    assert_eq!(quiet.progress(), Some(501));
    store.put("quiet");
    store.hub.match_all();
    assert_eq!(keys_at(&mut quiet, 502).await, ["quiet"]);
    assert_eq!(store.metrics.watch_catchups.get(), 0);
}

/// Whoever lags among others' writes learns how far history was looked at, also where nothing was for it.
#[tokio::test]
async fn a_lagging_watcher_passes_what_others_wrote() {
    let store = Store::new(tiny());
    let mut lagging = store.watch(&[KeyRange::key("a")], None);
    for round in 0..10 {
        for _ in 0..20 {
            store.put("busy");
        }
        if round % 3 == 0 {
            store.put("a");
        }
    }
    store.hub.match_all();
    for revision in [22, 83, 144, 205] {
        assert_eq!(keys_at(&mut lagging, revision).await, ["a"]);
    }
    let reads = store.past.reads.load(Ordering::Relaxed);
    assert!((20..45).contains(&reads), "{reads} reads of history, each passes {} others", store.past.passed_max);
    lagging.request_progress();
    assert!(matches!(must(&mut lagging).await, WatchItem::Progress(205)));
    // All of it was others': nothing is said, and the place moves on all the same.
    let mut nothing = store.watch(&[KeyRange::key("b")], Some(1));
    nothing.request_progress();
    loop {
        match must(&mut nothing).await {
            WatchItem::Progress(205) => break,
            WatchItem::Progress(revision) => assert!(revision < 205),
            other => panic!("{other:?}"),
        }
        nothing.request_progress();
    }
}

#[tokio::test]
async fn a_compacted_start_says_so_first() {
    let store = Store::new(tiny());
    for _ in 0..50 {
        store.put("a");
    }
    store.compact(20);
    for after in [0, 10, 18] {
        let refused = store.hub.watch(spec(&[KeyRange::key("a")], Some(after))).unwrap_err();
        let Failure::Rejected(rejection) = refused else { panic!("{refused:?}") };
        assert_eq!(rejection, Rejection::Compacted { requested: after + 1, compacted: 20, current: 51 });
    }
    assert!(store.hub.is_empty());
    for after in [19, 20] {
        let mut first = store.watch(&[KeyRange::key("a")], Some(after));
        assert_eq!(keys_at(&mut first, after + 1).await, ["a"]);
    }
}

#[tokio::test]
async fn compaction_behind_a_lagging_watcher_is_said_never_skipped() {
    let store = Store::new(tiny());
    let mut watcher = store.watch(&[KeyRange::key("a")], None);
    for _ in 0..50 {
        store.put("a");
    }
    assert_eq!(keys_at(&mut watcher, 2).await, ["a"]);
    store.hub.match_all();
    let held = watcher.progress().unwrap();
    for _ in 0..100 {
        store.put("a");
    }
    store.compact(140);
    loop {
        match must(&mut watcher).await {
            WatchItem::Events(events) => assert!(events.revision > held && events.revision < 140),
            WatchItem::Compacted { requested, compacted, current } => {
                assert!(requested > held && requested < 140);
                assert_eq!((compacted, current), (140, 151));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(must(&mut watcher).await, WatchItem::Closed(Closed::Compacted)));
    assert!(matches!(must(&mut watcher).await, WatchItem::Closed(Closed::Compacted)));
}

#[tokio::test]
async fn a_start_in_the_future_waits_in_silence() {
    let store = roomy();
    let mut watcher = store.watch(&[KeyRange::key("a")], Some(4));
    watcher.request_progress();
    for revision in 2..=3 {
        store.put("a");
        store.hub.match_all();
        assert!(is_silent(&mut watcher).await, "silent at {revision}");
        assert_eq!(watcher.progress(), None);
    }
    store.put("a");
    store.hub.match_all();
    assert!(matches!(must(&mut watcher).await, WatchItem::Progress(4)), "revision 4 itself was not asked for");
    store.put("a");
    store.hub.match_all();
    assert_eq!(keys_at(&mut watcher, 5).await, ["a"]);
}

/// Also if nothing that it wants ever happens, and whether a group reads for it or not.
#[tokio::test]
async fn who_was_asked_before_its_start_says_how_far_it_is_when_that_has_come() {
    let store = roomy();
    let group = store.hub.group();
    let mut alone = store.watch(&[KeyRange::key("a")], Some(3));
    let mut grouped = store.watch(&[KeyRange::key("a")], Some(3));
    let mut gone = store.watch(&[KeyRange::key("a")], Some(3));
    grouped.join(&group, Tag { id: 1, prev: false });
    for watcher in [&mut alone, &mut grouped, &mut gone] {
        watcher.request_progress();
        assert!(is_silent(watcher).await);
    }
    drop(gone);
    let waiting = spawn(async move { (must(&mut alone).await, must(&mut grouped).await) });
    tokio::task::yield_now().await;
    for _ in 0..2 {
        store.put("b");
        store.hub.match_all();
    }
    let told = waiting.await.unwrap();
    assert!(matches!(told, (WatchItem::Progress(3), WatchItem::Progress(3))), "{told:?}");
    drop(group);
    assert!(store.hub.is_empty());
}

#[tokio::test]
async fn progress_waits_for_matching_and_for_the_reader() {
    let store = roomy();
    let mut watcher = store.watch(&[KeyRange::key("a")], None);
    assert!(is_silent(&mut watcher).await);
    store.put("b");
    store.put("a");
    store.put("b");
    assert_eq!(watcher.progress(), Some(1), "nothing was matched yet");
    store.hub.match_all();
    assert_eq!(watcher.progress(), Some(2), "something waits to be read");
    watcher.request_progress();
    assert_eq!(keys_at(&mut watcher, 3).await, ["a"]);
    assert!(matches!(must(&mut watcher).await, WatchItem::Progress(4)));
}

#[tokio::test]
async fn a_snapshot_install_sends_every_watcher_to_history() {
    let store = roomy();
    let mut watcher = store.watch(&[KeyRange::key("a")], None);
    let mut gone = store.watch(&[KeyRange::key("a")], Some(2));
    let mut future = store.watch(&[KeyRange::key("a")], Some(30));
    store.put("a");
    store.hub.match_all();
    assert_eq!(keys_at(&mut watcher, 2).await, ["a"]);
    for _ in 0..40 {
        store.apply(&[("a", true)]);
    }
    store.hub.reset(store.revision());
    store.hub.match_all();
    for revision in 3..=42 {
        assert_eq!(keys_at(&mut watcher, revision).await, ["a"]);
    }
    assert_eq!(keys_at(&mut future, 31).await, ["a"]);
    store.compact(10);
    assert!(matches!(must(&mut gone).await, WatchItem::Compacted { requested: 3, compacted: 10, current: 42 }));
}

#[tokio::test]
async fn a_jump_in_what_is_published_is_filled_from_history() {
    let store = roomy();
    let mut watcher = store.watch(&[KeyRange::key("a")], None);
    store.put("a");
    for _ in 0..3 {
        store.apply(&[("a", true)]);
    }
    store.put("a");
    store.hub.match_all();
    for revision in 2..=6 {
        assert_eq!(keys_at(&mut watcher, revision).await, ["a"]);
    }
}

#[tokio::test]
async fn dropping_a_watcher_frees_its_place() {
    let store = Store::new(HubOptions { streams: 2, ..tiny() });
    let first = store.watch(&[KeyRange::prefix("a"), KeyRange::key("b"), KeyRange::all()], None);
    let second = store.hub.wait_key(Bytes::from_static(b"b")).unwrap();
    let refused = store.hub.watch(spec(&[KeyRange::all()], None)).unwrap_err();
    assert!(matches!(refused, Failure::Unavailable { why: Why::TooManyStreams, .. }));
    assert_eq!((store.hub.streams(), store.metrics.watchers.get()), (2, 2));
    drop(first);
    let third = store.watch(&[KeyRange::all()], None);
    drop((second, third));
    assert_eq!((store.hub.streams(), store.metrics.watchers.get()), (0, 0));
    assert!(store.hub.is_empty());
}

#[tokio::test]
async fn a_nudge_is_heard_while_history_is_read() {
    let store = Store::new(tiny());
    for _ in 0..300 {
        store.put("a");
    }
    let mut watcher = store.watch(&[KeyRange::key("a")], Some(1));
    {
        let next = watcher.next();
        tokio::pin!(next);
        assert!(futures_util::poll!(next.as_mut()).is_pending(), "history is read elsewhere");
        store.hub.nudge();
        assert!(matches!(futures_util::poll!(next), std::task::Poll::Ready(WatchItem::Nudged)));
    }
    for revision in 2..=301 {
        assert_eq!(keys_at(&mut watcher, revision).await, ["a"]);
    }
}

#[tokio::test]
async fn a_dropped_next_loses_nothing() {
    let store = Store::new(tiny());
    for _ in 0..300 {
        store.put("a");
    }
    let mut watcher = store.watch(&[KeyRange::key("a")], Some(1));
    assert!(is_silent(&mut watcher).await, "history is read elsewhere");
    assert!(watcher.is_reading());
    for revision in 2..=301 {
        let polled = futures_util::future::poll_immediate(watcher.next()).await;
        let events = match polled {
            Some(WatchItem::Events(events)) => events,
            None => must_events(&mut watcher).await,
            Some(other) => panic!("{other:?}"),
        };
        assert_eq!(events.revision, revision);
    }
}

#[tokio::test]
async fn stopping_ends_everything() {
    let store = roomy();
    let mut watcher = store.watch(&[KeyRange::all()], None);
    let mut wait = store.hub.wait_key(Bytes::from_static(b"a")).unwrap();
    let hub = store.hub.clone();
    store.tasks.spawn("watch-hub", hub.run());
    let (item, changed, ended) =
        tokio::join!(watcher.next(), wait.changed(), store.tasks.stop(Duration::from_secs(10)));
    assert!(matches!(item, WatchItem::Closed(Closed::Stopping)));
    assert!(!changed && ended);
    let refused = store.hub.watch(spec(&[KeyRange::all()], None)).unwrap_err();
    assert!(matches!(refused, Failure::Unavailable { why: Why::ShuttingDown, .. }));
}

#[tokio::test]
async fn a_key_wait_wakes_for_its_key_alone() {
    let store = roomy();
    let mut wait = store.hub.wait_key(Bytes::from_static(b"a")).unwrap();
    store.put("b");
    store.put("a/b");
    store.hub.match_all();
    assert!(futures_util::future::poll_immediate(wait.changed()).await.is_none());
    store.write(&[("a", false)]);
    store.hub.match_all();
    assert_eq!(futures_util::future::poll_immediate(wait.changed()).await, Some(true));
    assert!(futures_util::future::poll_immediate(wait.changed()).await.is_none());
}

#[tokio::test]
async fn targets_are_counted() {
    let store = roomy();
    for count in [0, 65] {
        let targets = vec![KeyRange::all(); count];
        assert!(matches!(store.hub.watch(spec(&targets, None)), Err(Failure::Rejected(Rejection::Invalid { .. }))));
    }
    drop(store.watch(&vec![KeyRange::all(); 64], None));
    assert!(store.hub.is_empty());
}

#[test]
#[should_panic(expected = "revision 2 published after 2")]
fn publishing_out_of_order_is_refused() {
    let store = roomy();
    store.put("a");
    store.hub.publish(&[RevisionEvents { revision: 2, events: [event(2, "a", true)].into() }]);
}

#[tokio::test]
async fn a_revision_larger_than_the_ring_still_arrives_whole() {
    let store = Store::new(tiny());
    let keys: Vec<String> = (0..400).map(|i| format!("k{i:03}")).collect();
    let mut watcher = store.watch(&[KeyRange::prefix("k")], None);
    store.write(&keys.iter().map(|key| (key.as_str(), false)).collect::<Vec<_>>());
    store.put("k");
    store.hub.match_all();
    assert_eq!(keys_at(&mut watcher, 2).await, keys);
    assert_eq!(keys_at(&mut watcher, 3).await, ["k"]);
}
