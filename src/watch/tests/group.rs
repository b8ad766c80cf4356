//! Watchers for which a group reads: when it does, and when it sends them back on their own way.

use super::*;
use futures_util::FutureExt as _;

/// What the group has at hand, by the ids of those it is for, if there is room for them.
fn at_hand(group: &Group, room: usize) -> Vec<(i64, Vec<Revision>)> {
    let mut handed = Vec::new();
    group.read(|Handed { tag, revisions, .. }| {
        let has_room = handed.len() < room;
        if has_room {
            handed.push((tag.id, revisions.iter().map(|events| events.revision).collect()));
        }
        has_room
    });
    handed
}

fn joined(store: &Store, group: &Group, id: i64, key: &str, after: Option<Revision>) -> Watcher {
    let mut watcher = store.watch(&[KeyRange::key(key.to_owned())], after);
    watcher.join(group, Tag { id, prev: false });
    watcher
}

#[tokio::test]
async fn who_is_up_with_the_hub_is_read_for() {
    let store = roomy();
    let group = store.hub.group();
    let mut watchers: Vec<Watcher> = (0..3).map(|id| joined(&store, &group, id, "a", None)).collect();
    for watcher in &mut watchers {
        assert!(is_silent(watcher).await);
    }
    assert_eq!(group.heard().now_or_never(), None);
    let revision = store.put("a");
    store.hub.match_all();
    assert_eq!(watchers[0].progress(), Some(revision - 1), "it is not handed out yet");
    assert_eq!(group.heard().now_or_never(), Some(()));
    assert_eq!(at_hand(&group, 9), [(0, vec![revision]), (1, vec![revision]), (2, vec![revision])]);
    for watcher in &mut watchers {
        assert_eq!(watcher.progress(), Some(revision));
        assert!(is_silent(watcher).await, "it was handed out");
    }
    assert_eq!(store.metrics.watch_events.get(), 3);
    drop(watchers.pop());
    let revision = store.put("a");
    store.hub.match_all();
    assert_eq!(at_hand(&group, 9), [(0, vec![revision]), (1, vec![revision])]);
}

/// One with things still to hand out joins once it has done so.
#[tokio::test]
async fn who_catches_up_joins_afterwards() {
    let store = Store::new(tiny());
    let group = store.hub.group();
    for _ in 0..40 {
        store.put("a");
    }
    let mut watcher = joined(&store, &group, 7, "a", Some(1));
    for revision in 2..=41 {
        assert_eq!(keys_at(&mut watcher, revision).await, ["a"]);
        assert_eq!(at_hand(&group, 9), []);
    }
    assert!(is_silent(&mut watcher).await);
    store.put("a");
    store.hub.match_all();
    assert_eq!(at_hand(&group, 9), [(7, vec![42])]);
}

/// Whoever was not given room reads on by itself, and joins again.
#[tokio::test]
async fn without_room_a_watcher_takes_it_from_there_itself() {
    let store = roomy();
    let group = store.hub.group();
    let mut first = joined(&store, &group, 1, "a", None);
    let mut second = joined(&store, &group, 2, "a", None);
    assert!(is_silent(&mut first).await && is_silent(&mut second).await);
    let (one, two) = (store.put("a"), store.put("a"));
    store.hub.match_all();
    assert_eq!(at_hand(&group, 1), [(1, vec![one, two])]);
    let three = store.put("a");
    store.hub.match_all();
    assert_eq!(second.progress(), Some(one - 1));
    for revision in [one, two, three] {
        assert_eq!(must_events(&mut second).await.revision, revision);
    }
    assert_eq!(at_hand(&group, 9), [(1, vec![three])]);
    assert!(is_silent(&mut second).await);
    let four = store.put("a");
    store.hub.match_all();
    assert_eq!(at_hand(&group, 9), [(1, vec![four]), (2, vec![four])]);
}

/// Nobody read while the ring moved on, or a snapshot was installed: each reads history by itself.
#[tokio::test]
async fn what_the_ring_has_lost_each_reads_from_history() {
    let store = Store::new(tiny());
    let group = store.hub.group();
    let mut watcher = joined(&store, &group, 1, "a", None);
    assert!(is_silent(&mut watcher).await);
    for _ in 0..40 {
        store.put("a");
    }
    store.hub.match_all();
    assert!(store.hub.lag().slowest_revisions >= 40, "{:?}", store.hub.lag());
    assert_eq!(at_hand(&group, 9), []);
    for revision in 2..=41 {
        assert_eq!(keys_at(&mut watcher, revision).await, ["a"]);
    }
    assert!(is_silent(&mut watcher).await);
    assert_eq!(watcher.progress(), Some(41));
    store.apply(&[("a", true)]);
    store.hub.reset(42);
    store.hub.match_all();
    assert_eq!(group.heard().now_or_never(), Some(()));
    assert_eq!(at_hand(&group, 9), []);
    assert_eq!(keys_at(&mut watcher, 42).await, ["a"]);
}

/// Of more than is read at once the reader hears again, also if nothing is written any more.
#[tokio::test]
async fn of_what_is_left_the_group_is_heard_again() {
    let store = Store::new(tiny());
    let group = store.hub.group();
    let mut watcher = joined(&store, &group, 1, "a", None);
    assert!(is_silent(&mut watcher).await);
    for _ in 0..5 {
        store.put("a");
    }
    store.hub.match_all();
    let mut revisions = Vec::new();
    while group.heard().now_or_never().is_some() {
        revisions.extend(at_hand(&group, 9).into_iter().flat_map(|(_, revisions)| revisions));
        assert_eq!(watcher.progress(), revisions.last().copied());
    }
    assert_eq!(revisions, [2, 3, 4, 5, 6]);
    assert_eq!(store.hub.lag().slowest_revisions, 0);
}

/// Others hear of it, it does not: its start is still to come.
#[tokio::test]
async fn a_start_in_the_future_is_kept_in_a_group() {
    let store = roomy();
    let group = store.hub.group();
    let mut now = joined(&store, &group, 1, "a", None);
    let mut later = joined(&store, &group, 2, "a", Some(4));
    // In this order: who begins later does not keep others out.
    assert!(is_silent(&mut later).await && is_silent(&mut now).await);
    store.put("a");
    store.put("a");
    store.hub.match_all();
    assert_eq!(group.standing(), (1, [1, 2].into()));
    assert_eq!(at_hand(&group, 9), [(1, vec![2, 3])]);
    assert_eq!(group.standing(), (3, [1, 2].into()));
    assert_eq!(later.progress(), None);
    store.put("a");
    store.hub.match_all();
    assert_eq!(at_hand(&group, 9), [(1, vec![4])]);
    assert_eq!(later.progress(), Some(4));
    store.put("a");
    store.hub.match_all();
    assert_eq!(at_hand(&group, 9), [(1, vec![5]), (2, vec![5])]);
}

/// The word came between the last look at the ring and joining.
#[tokio::test]
async fn who_was_left_word_for_meanwhile_does_not_join() {
    let store = roomy();
    let group = store.hub.group();
    let mut watcher = joined(&store, &group, 1, "a", None);
    let revision = store.put("a");
    store.hub.match_all();
    watcher.rest();
    assert_eq!(at_hand(&group, 9), []);
    assert_eq!(must_events(&mut watcher).await.revision, revision);
}

/// The group has passed what is not matched yet, and would not come back to it.
#[tokio::test]
async fn who_is_not_as_far_as_the_group_does_not_join() {
    let store = roomy();
    let group = store.hub.group();
    let mut first = joined(&store, &group, 1, "a", None);
    let mut second = store.watch(&[KeyRange::key("b")], None);
    assert!(is_silent(&mut first).await && is_silent(&mut second).await);
    second.join(&group, Tag { id: 2, prev: false });
    let one = store.put("a");
    store.hub.match_all();
    let two = store.put("b");
    assert_eq!(at_hand(&group, 9), [(1, vec![one])]);
    assert!(is_silent(&mut second).await, "it is not matched yet");
    store.hub.match_all();
    assert_eq!(must_events(&mut second).await.revision, two);
    assert!(is_silent(&mut second).await);
    let three = store.put("b");
    store.hub.match_all();
    assert_eq!(at_hand(&group, 9), [(2, vec![three])]);
}

#[tokio::test]
async fn a_nudge_reaches_who_is_read_for() {
    let store = roomy();
    let group = store.hub.group();
    let mut watcher = joined(&store, &group, 1, "a", None);
    assert!(is_silent(&mut watcher).await);
    store.hub.nudge();
    assert!(matches!(must(&mut watcher).await, WatchItem::Nudged));
    assert!(is_silent(&mut watcher).await);
    store.put("a");
    store.hub.match_all();
    assert_eq!(at_hand(&group, 9), [(1, vec![2])]);
}

/// Real threads: a writer in bursts that grow beyond the ring, and groups whose readers have no room now and then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_between_a_group_and_its_watchers() {
    const WRITES: i64 = 6_000;
    const READERS: usize = 4;
    const KEYS: [&str; 5] = ["a", "a/1", "a/2", "b", "c"];
    let store = Store::new(tiny());
    store.tasks.spawn("watch-hub", store.hub.clone().run());
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let group = store.hub.group();
        let ranges: Vec<KeyRange> = KEYS.map(KeyRange::key).into_iter().chain([KeyRange::prefix("a")]).collect();
        let watch = |(id, range): (usize, &KeyRange)| {
            let mut watcher = store.watch(std::slice::from_ref(range), Some(1));
            watcher.join(&group, Tag { id: id.try_into().unwrap(), prev: false });
            watcher
        };
        let mut watchers: Vec<Watcher> = ranges.iter().enumerate().map(watch).collect();
        let past = Arc::clone(&store.past);
        readers.push(async move {
            let mut seen = vec![Vec::new(); watchers.len()];
            let (mut turns, mut grouped) = (0, 0);
            while watchers.iter().any(|watcher| watcher.progress().is_none_or(|at| at <= WRITES)) {
                let nexts = watchers.iter_mut().map(|watcher| Box::pin(watcher.next()));
                let (id, item) = tokio::select! {
                    (item, id, _) = futures_util::future::select_all(nexts) => (id, item),
                    () = group.heard() => {
                        turns += 1;
                        group.read(|Handed { tag, revisions, .. }| {
                            let has_room = (turns + tag.id) % 13 != 0;
                            if has_room {
                                grouped += 1;
                                let seen = &mut seen[usize::try_from(tag.id).unwrap()];
                                seen.extend(revisions.iter().map(|events| (events.revision, events.events.len())));
                            }
                            has_room
                        });
                        continue;
                    }
                    () = tokio::time::sleep(Duration::from_millis(1)) => continue,
                };
                match item {
                    WatchItem::Events(events) => seen[id].push((events.revision, events.events.len())),
                    other => panic!("{other:?}"),
                }
            }
            let revisions = past.revisions.lock();
            for (range, seen) in ranges.iter().zip(seen) {
                let count = |all: &RevisionEvents| all.events.iter().filter(|event| range.shows(&event.kv.key)).count();
                let wanted = revisions.iter().map(|all| (all.revision, count(all))).filter(|(_, count)| *count > 0);
                assert!(wanted.eq(seen.iter().copied()), "{range:?}: {} revisions seen", seen.len());
            }
            grouped
        });
    }
    let readers: Vec<_> = readers.into_iter().map(spawn).collect();
    for i in 0..usize::try_from(WRITES).unwrap() {
        store.write(&[(KEYS[i % KEYS.len()], true), (KEYS[(i * 3 + 1) % KEYS.len()], i % 2 == 0)][..1 + i % 2]);
        if i % (1 + i / 400) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    for reader in readers {
        let grouped = tokio::time::timeout(Duration::from_secs(60), reader).await.expect("readers end");
        assert!(grouped.expect("no reader failed") > 0, "the group never read: the run proves nothing");
    }
    assert!(store.metrics.watch_catchups.get() > 0, "nobody ever fell behind: the run proves nothing");
}
