//! A seeded checker: random writers, compactions, snapshot installs, slow readers, resumes and future
//! starts, groups with and without room, each stream compared with the full list of events. Plus the same rules under
//! real threads.

use super::*;
use proptest::prelude::*;

const KEYS: [&str; 7] = ["a", "a/1", "a/2", "b", "c", "_tenure/locks/x", "_tenure0"];

#[derive(Debug, Clone)]
enum Step {
    /// Which keys, and whether each is put or deleted; published or (`false`) only applied and then reset.
    Write(Vec<(usize, bool)>),
    Install(usize),
    Match,
    /// Compacts this share (of 8) of the history.
    Compact(i64),
    /// Opens a stream at an offset from the newest revision, in the group or by itself.
    Open(Vec<usize>, Option<i64>, bool),
    Read(prop::sample::Index, usize),
    /// Reads what the group has at hand, with room for so many answers.
    ReadGroup(usize),
    Progress(prop::sample::Index),
    Drop(prop::sample::Index),
}

fn targets() -> Vec<KeyRange> {
    let span = KeyRange { start: "a/1".into(), end: Some("c".into()) };
    let mut ranges = vec![KeyRange::all(), KeyRange::prefix("a"), KeyRange::prefix("_tenure/"), span];
    ranges.extend(KEYS.map(KeyRange::key));
    ranges
}

fn step() -> impl Strategy<Value = Step> {
    let txn =
        || prop::collection::btree_map(0..KEYS.len(), any::<bool>(), 1..4).prop_map(|txn| txn.into_iter().collect());
    let offset = prop_oneof![Just(None), (-40_i64..10).prop_map(Some)];
    prop_oneof![
        12 => txn().prop_map(Step::Write),
        1 => (1_usize..20).prop_map(Step::Install),
        4 => Just(Step::Match),
        1 => (1_i64..=8).prop_map(Step::Compact),
        2 => (prop::collection::vec(0..targets().len(), 1..4), offset, any::<bool>())
            .prop_map(|(t, o, grouped)| Step::Open(t, o, grouped)),
        3 => (0_usize..6).prop_map(Step::ReadGroup),
        6 => (any::<prop::sample::Index>(), 1_usize..12).prop_map(|(w, n)| Step::Read(w, n)),
        2 => any::<prop::sample::Index>().prop_map(Step::Progress),
        1 => any::<prop::sample::Index>().prop_map(Step::Drop),
    ]
}

/// One stream and what it must say next.
struct Stream {
    watcher: Watcher,
    /// In the group, if it is in one.
    id: Option<i64>,
    targets: Vec<KeyRange>,
    /// Everything wanted up to here was delivered.
    position: Revision,
}

impl Stream {
    fn open(
        store: &Store,
        group: Option<(&Group, i64)>,
        targets: &[KeyRange],
        after: Option<Revision>,
    ) -> Option<Self> {
        let result = store.hub.watch(spec(targets, after));
        let compacted = store.past.compacted_revision();
        let refused = after.is_some_and(|after| after + 1 < compacted);
        assert_eq!(result.is_err(), refused, "after {after:?}, compacted {compacted}: {result:?}");
        let mut watcher = result.ok()?;
        let position = watcher.start();
        assert_eq!(position, after.unwrap_or(store.hub.revision()));
        if let Some((group, id)) = group {
            watcher.join(group, Tag { id, prev: false });
        }
        Some(Self { watcher, id: group.map(|(_, id)| id), targets: targets.to_vec(), position })
    }

    /// The first revision not yet delivered that has anything for this stream.
    fn expected(&self, store: &Store) -> Option<(Revision, Vec<Event>)> {
        let revisions = store.past.revisions.lock();
        revisions.iter().filter(|events| events.revision > self.position).find_map(|all| {
            let shown = |event: &&Event| self.targets.iter().any(|target| target.shows(&event.kv.key));
            let events: Vec<Event> = all.events.iter().filter(shown).cloned().collect();
            (!events.is_empty()).then_some((all.revision, events))
        })
    }

    fn progressed(&mut self, store: &Store, revision: Revision) {
        assert!(revision >= self.position, "progress went back from {} to {revision}", self.position);
        assert!(revision <= store.revision(), "progress {revision} is ahead of the store");
        if let Some((due, _)) = self.expected(store) {
            assert!(revision < due, "progress {revision} ran ahead of the event at {due}");
        }
        self.position = revision;
    }

    fn got(&mut self, store: &Store, events: &RevisionEvents) {
        let (revision, wanted) = self.expected(store).expect("events that were due");
        assert_eq!(events.revision, revision);
        assert_eq!(&events.events[..], &wanted[..], "at revision {revision}");
        self.position = revision;
    }

    fn item(&mut self, store: &Store, group: &Group, item: WatchItem) {
        let due = self.expected(store);
        match item {
            WatchItem::Events(events) => self.got(store, &events),
            WatchItem::Progress(revision) => self.progressed(store, revision),
            WatchItem::Compacted { requested, compacted, current } => {
                assert_eq!((compacted, current), (store.past.compacted_revision(), store.revision()));
                assert!(requested > self.position && requested < compacted);
                assert!(due.is_none_or(|(revision, _)| requested <= revision), "something was skipped before the gap");
                let group = self.id.map(|id| (group, id));
                *self = Self::open(store, group, &self.targets, Some(compacted)).expect("resuming there is allowed");
            }
            item @ (WatchItem::Nudged | WatchItem::Closed(_)) => panic!("{item:?}"),
        }
    }
}

/// Has the group hand out what it has, as long as there is room; how many answers it gave.
fn read_group(store: &Store, group: &Group, streams: &mut [Stream], mut room: usize) -> usize {
    let mut answers = 0;
    group.read(|Handed { tag, targets, revisions }| {
        if room == 0 {
            return false;
        }
        let stream = streams.iter_mut().find(|stream| stream.id == Some(tag.id)).expect("a stream that is there");
        assert_eq!(targets, &stream.targets[..]);
        assert!(!revisions.is_empty());
        revisions.iter().for_each(|events| stream.got(store, events));
        (room, answers) = (room - 1, answers + 1);
        true
    });
    answers
}

/// Reads until this stream has got on, or is to be silent. How many answers the group gave meanwhile.
async fn read(store: &Store, group: &Group, streams: &mut [Stream], pick: usize) -> usize {
    let mut answers = 0;
    let before = streams[pick].position;
    if streams[pick].expected(store).is_none() {
        streams[pick].watcher.request_progress();
        if before > store.revision() {
            // Of others it may have heard.
            answers += read_group(store, group, streams, usize::MAX);
            assert!(is_silent(&mut streams[pick].watcher).await, "a future start must be silent");
            return answers;
        }
    }
    let due = tokio::time::Instant::now() + Duration::from_secs(10);
    while streams[pick].position == before {
        let item = tokio::select! {
            item = streams[pick].watcher.next() => Some(item),
            () = group.heard() => None,
            () = tokio::time::sleep_until(due) => panic!("nothing comes"),
        };
        match item {
            Some(WatchItem::Progress(revision)) if revision == before => {
                streams[pick].progressed(store, revision);
                break;
            }
            Some(item) => streams[pick].item(store, group, item),
            None => answers += read_group(store, group, streams, usize::MAX),
        }
    }
    answers
}

async fn run(steps: Vec<Step>) {
    let store = Store::new(tiny());
    let group = store.hub.group();
    let mut streams: Vec<Stream> = Vec::new();
    let mut opened = 0;
    for step in steps {
        match step {
            Step::Write(txn) => {
                store.write(&txn.iter().map(|(key, put)| (KEYS[*key], *put)).collect::<Vec<_>>());
            }
            Step::Install(count) => {
                for i in 0..count {
                    store.apply(&[(KEYS[i % KEYS.len()], true)]);
                }
                store.hub.reset(store.revision());
            }
            Step::Match => store.hub.match_all(),
            Step::Compact(share) => {
                let target = (store.revision() * share / 8).max(store.past.compacted_revision());
                store.compact(target);
            }
            Step::Open(picks, offset, grouped) => {
                let targets: Vec<KeyRange> = picks.iter().map(|pick| targets()[*pick].clone()).collect();
                let after = offset.map(|offset| (store.revision() + offset).max(0));
                if streams.len() < 20 {
                    opened += 1;
                    streams.extend(Stream::open(&store, grouped.then_some((&group, opened)), &targets, after));
                }
            }
            Step::Read(pick, count) if !streams.is_empty() => {
                let pick = pick.index(streams.len());
                for _ in 0..count {
                    store.hub.match_all();
                    read(&store, &group, &mut streams, pick).await;
                }
            }
            Step::ReadGroup(room) => {
                read_group(&store, &group, &mut streams, room);
            }
            Step::Progress(pick) if !streams.is_empty() => {
                let pick = pick.index(streams.len());
                let stream = &mut streams[pick];
                match stream.watcher.progress() {
                    Some(revision) if stream.position <= store.revision() => stream.progressed(&store, revision),
                    Some(revision) => panic!("progress {revision} of a future start at {}", stream.position),
                    None => assert!(stream.position > store.revision()),
                }
            }
            Step::Drop(pick) if !streams.is_empty() => {
                streams.swap_remove(pick.index(streams.len()));
            }
            Step::Read(..) | Step::Progress(_) | Step::Drop(_) => {}
        }
    }
    // Everybody catches up with the store and then says so.
    store.hub.match_all();
    for pick in 0..streams.len() {
        while streams[pick].position < store.revision() {
            read(&store, &group, &mut streams, pick).await;
        }
        assert!(streams[pick].expected(&store).is_none());
    }
    drop(streams);
    drop(group);
    assert!(store.hub.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_stream_is_ordered_unique_atomic_complete_and_resumable(steps in prop::collection::vec(step(), 1..250)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run(steps));
    }
}

/// Real threads: a writer at full speed and readers that keep changing between live and catch-up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_between_threads() {
    const WRITES: usize = 6_000;
    const READERS: usize = 24;
    let store = Store::new(tiny());
    store.tasks.spawn("watch-hub", store.hub.clone().run());
    let targets = targets();
    let mut readers = Vec::new();
    for reader in 0..READERS {
        let target = targets[reader % targets.len()].clone();
        let mut watcher = store.watch(std::slice::from_ref(&target), Some(1));
        let past = Arc::clone(&store.past);
        readers.push(async move {
            let mut seen = Vec::new();
            let last = 1 + i64::try_from(WRITES).expect("small");
            while watcher.progress().is_none_or(|revision| revision < last) {
                // Dropped and asked again now and then, as a stream that also sends bookmarks does.
                let patience = Duration::from_micros(if reader % 3 == 0 { 50 } else { 2_000 });
                match tokio::time::timeout(patience, watcher.next()).await {
                    Ok(WatchItem::Events(events)) => seen.push((events.revision, events.events.len())),
                    Ok(other) => panic!("{other:?}"),
                    Err(_) => {}
                }
                if reader % 4 == 0 && seen.len() % 64 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            let revisions = past.revisions.lock();
            let wanted: Vec<(Revision, usize)> = revisions
                .iter()
                .map(|all| (all.revision, all.events.iter().filter(|event| target.shows(&event.kv.key)).count()))
                .filter(|(_, count)| *count > 0)
                .collect();
            assert!(seen == wanted, "reader {reader}: {} revisions seen, {} wanted", seen.len(), wanted.len());
        });
    }
    let readers: Vec<_> = readers.into_iter().map(spawn).collect();
    for i in 0..WRITES {
        store.write(&[(KEYS[i % KEYS.len()], true), (KEYS[(i * 5 + 1) % KEYS.len()], i % 2 == 0)][..1 + i % 2]);
        if i % 97 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for reader in readers {
        tokio::time::timeout(Duration::from_secs(60), reader).await.expect("readers end").expect("no reader failed");
    }
    assert!(store.metrics.watch_catchups.get() > 0, "nobody ever fell behind: the run proves nothing");
}
