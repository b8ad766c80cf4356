//! Each bug of etcd's table of watch bugs that the hub alone could have, by its number there. Those
//! of the machine are in its own tests: #17247 (a transaction's values in a cache), #17780 (the revision
//! falls back), #18667 (reading a compacted revision inside a transaction), #19179 (a delete at the
//! compacted revision). What takes more than one member is in `tests/it/etcd_bugs.rs` (#15220, #15271 and #20221 once
//! more) and `tests/chaos/etcd_issues.rs` (#20418, a stale read after a change of leader).

use super::*;

/// A watch on a future revision returned old events and notifications.
#[tokio::test]
async fn issue_15220_future_revision_gets_no_old_events_or_progress() {
    let store = Store::new(tiny());
    let mut watcher = store.watch(&[KeyRange::all()], Some(100));
    for _ in 0..99 {
        let revision = store.put("a");
        store.hub.match_all();
        watcher.request_progress();
        assert!(revision >= 100 || is_silent(&mut watcher).await, "not silent at {revision}");
    }
    store.put("a");
    store.hub.match_all();
    assert!(matches!(must(&mut watcher).await, WatchItem::Events(events) if events.revision == 101));
}

/// A watch on a future revision got notifications below its start, and then old events, when it was
/// served by way of catching up: from a ring that had moved on, or after a snapshot was installed.
#[tokio::test]
async fn issue_20221_a_future_start_is_kept_through_catching_up() {
    for installed in [false, true] {
        let store = Store::new(tiny());
        let mut watcher = store.watch(&[KeyRange::all()], Some(100));
        for _ in 0..60 {
            store.put("a");
        }
        watcher.request_progress();
        if installed {
            store.hub.reset(store.revision());
        }
        store.hub.match_all();
        assert!(is_silent(&mut watcher).await && watcher.progress().is_none());
        // Far more than the ring holds, and the reader has not looked.
        for _ in 0..80 {
            if installed {
                store.apply(&[("a", true)]);
            } else {
                store.put("a");
            }
        }
        if installed {
            store.hub.reset(store.revision());
        }
        store.hub.match_all();
        let mut next = 101;
        while next <= store.revision() {
            match must(&mut watcher).await {
                WatchItem::Events(events) => {
                    assert_eq!(events.revision, next);
                    next += 1;
                }
                WatchItem::Progress(revision) => assert!(revision >= 100 && revision < next),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Progress was announced before events that precede it had been sent.
#[tokio::test]
async fn issue_15220_progress_is_in_step_with_the_stream() {
    let store = Store::new(tiny());
    let mut watcher = store.watch(&[KeyRange::key("a")], None);
    for i in 0..300 {
        store.put(if i % 3 == 0 { "a" } else { "b" });
    }
    let (mut progress, mut seen) = (0, 0);
    while progress < store.revision() {
        store.hub.match_all();
        watcher.request_progress();
        match must(&mut watcher).await {
            WatchItem::Events(events) => {
                assert!(events.revision > progress, "{} after progress {progress}", events.revision);
                seen += 1;
            }
            WatchItem::Progress(revision) => progress = revision,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, 100);
}

/// A watch went back in time after a snapshot was installed.
#[tokio::test]
async fn issue_15271_a_snapshot_install_does_not_repeat_events() {
    let store = Store::new(tiny());
    let mut watcher = store.watch(&[KeyRange::all()], None);
    for _ in 0..10 {
        store.put("a");
    }
    store.hub.match_all();
    let mut last = 1;
    for _ in 0..4 {
        last = must_events(&mut watcher).await.revision;
    }
    store.hub.reset(store.revision());
    store.put("a");
    store.hub.match_all();
    for revision in last + 1..=12 {
        assert_eq!(must_events(&mut watcher).await.revision, revision);
    }
}

/// Events were lost when a stream starved.
#[tokio::test]
async fn issue_17529_a_starved_stream_loses_nothing() {
    let store = Store::new(tiny());
    let mut watcher = store.watch(&[KeyRange::all()], None);
    let mut expected = 2;
    for round in 0..40 {
        for _ in 0..round {
            store.put("a");
            store.hub.match_all();
        }
        if round % 3 == 0 && expected <= store.revision() {
            assert_eq!(must_events(&mut watcher).await.revision, expected);
            expected += 1;
        }
    }
    for revision in expected..=store.revision() {
        assert_eq!(must_events(&mut watcher).await.revision, revision);
    }
}

/// A delete at exactly the compacted revision was lost without a word, to a watch that starts there:
/// it must come, and once a compaction has passed it, it is an explicit gap.
#[tokio::test]
async fn issue_18089_a_compaction_on_a_delete_is_delivered_or_said() {
    let store = Store::new(tiny());
    store.put("a");
    let deleted = store.write(&[("a", false)]);
    for _ in 0..50 {
        store.put("b");
    }
    let mut early = store.watch(&[KeyRange::key("a")], Some(deleted - 1));
    store.compact(deleted);
    let mut watcher = store.watch(&[KeyRange::key("a")], Some(deleted - 1));
    let events = must_events(&mut watcher).await;
    assert_eq!((events.revision, &events.events[0].kind), (deleted, &EventKind::Delete(DeleteReason::Deleted)));
    store.compact(deleted + 1);
    let WatchItem::Compacted { requested, .. } = must(&mut early).await else { panic!("a silent gap") };
    assert_eq!(requested, deleted);
}

/// An event was delivered twice: to the live set and again on catching up.
#[tokio::test]
async fn issue_17247_changing_between_live_and_catch_up_repeats_nothing() {
    let store = Store::new(tiny());
    let mut watcher = store.watch(&[KeyRange::all()], None);
    let mut expected = 2;
    for round in 0..200_usize {
        store.put("a");
        // Matched late, at once, or after the reader took it already.
        if round % 5 != 0 {
            store.hub.match_all();
        }
        if round % 17 < 8 {
            continue;
        }
        while expected <= store.hub.revision() - i64::from(round % 3 == 0) {
            store.hub.match_all();
            assert_eq!(must_events(&mut watcher).await.revision, expected);
            expected += 1;
        }
    }
    assert!(expected > 150);
}
