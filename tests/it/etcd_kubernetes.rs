//! What a Kubernetes apiserver needs of its store, call by call, over gRPC; at the end its pattern of traffic.

use crate::support::Node;
use crate::support::grpc::{
    Etcd, Watch, bytes, delete_op, etcd, get_op, guarded, listing, mvccpb, prefix, put_op, revision, said, watching,
};
use crate::support::members::Cluster;
use etcd::response_op::Response;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tonic::Code;

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";

async fn started() -> (Node, Etcd) {
    let node = Node::start().await;
    let etcd = Etcd::at(node.address()).await;
    (node, etcd)
}

async fn fill(etcd: &Etcd, name: &str, count: usize) -> i64 {
    let mut last = 0;
    for n in 0..count {
        last = etcd.put(&format!("{name}{n:04}"), "v").await;
    }
    last
}

#[tokio::test]
async fn get_answers_a_missing_key_without_an_error_and_the_revision_begins_at_one() {
    let (_node, etcd) = started().await;
    let missing = etcd::RangeRequest { key: bytes("/registry/pods"), limit: 1, ..Default::default() };
    let answer = etcd.range(missing.clone()).await.unwrap();
    assert_eq!((answer.kvs.len(), answer.count, revision(&answer.header)), (0, 0, 1));
    let put = etcd.put("/registry/pods/a", "1").await;
    assert!(revision(&etcd.range(missing).await.unwrap().header) >= put, "current revision, read on the prefix");
    let health = etcd::RangeRequest { key: bytes("/registry/health"), ..Default::default() };
    assert!(etcd.range(health).await.is_ok());
}

#[tokio::test]
async fn list_pages_are_pinned_and_tell_the_exact_count_that_is_left() {
    let (_node, etcd) = started().await;
    fill(&etcd, "/registry/pods/", 25).await;
    let mut request = etcd::RangeRequest { limit: 10, ..listing("/registry/pods/") };
    let mut keys = Vec::new();
    for (page, left) in [(0, 25), (1, 15), (2, 5)] {
        let answer = etcd.range(request.clone()).await.unwrap();
        assert_eq!(answer.count, left, "page {page}: the keys left in the range, whatever the limit");
        assert_eq!(answer.more, page < 2);
        keys.extend(answer.kvs.iter().map(|kv| kv.key.clone()));
        if page == 0 {
            request.revision = revision(&answer.header);
            // What comes later is in no page.
            etcd.put("/registry/pods/0011x", "new").await;
        }
        let mut next = answer.kvs.last().unwrap().key.to_vec();
        next.push(0);
        request.key = next.into();
    }
    assert_eq!(keys.len(), 25);
    assert!(keys.is_sorted());
}

#[tokio::test]
async fn a_list_at_an_exact_old_revision_is_what_was_there() {
    let (_node, etcd) = started().await;
    let old = fill(&etcd, "/registry/pods/", 3).await;
    etcd.txn(guarded("/registry/pods/0001", old - 1, delete_op("/registry/pods/0001"), None)).await.unwrap();
    let then = etcd.range(etcd::RangeRequest { revision: old, ..listing("/registry/pods/") }).await.unwrap();
    let now = etcd.range(listing("/registry/pods/")).await.unwrap();
    assert_eq!((then.count, now.count), (3, 2));
    assert!(then.kvs.iter().all(|kv| kv.mod_revision <= old));
}

#[tokio::test]
async fn counts_are_exact_and_keys_only_has_no_values() {
    let (_node, etcd) = started().await;
    fill(&etcd, "/registry/pods/", 30).await;
    let count = etcd.range(etcd::RangeRequest { count_only: true, ..listing("/registry/pods/") }).await.unwrap();
    assert_eq!((count.count, count.kvs.len()), (30, 0));
    let keys = etcd.range(etcd::RangeRequest { keys_only: true, ..listing("/registry/pods/") }).await.unwrap();
    assert!(keys.kvs.len() == 30 && keys.kvs.iter().all(|kv| kv.value.is_empty() && kv.mod_revision > 0));
}

#[tokio::test]
async fn range_stream_chunks_concatenate_to_the_range_answer() {
    let (_node, etcd) = started().await;
    fill(&etcd, "/registry/pods/", 75).await;
    for (limit, pinned) in [(0, 0), (33, 0), (0, 40)] {
        let request = etcd::RangeRequest { limit, revision: pinned, ..listing("/registry/pods/") };
        let whole = etcd.range(request.clone()).await.unwrap();
        let mut stream = etcd.kv().range_stream(request).await.unwrap().into_inner();
        let mut chunks = Vec::new();
        while let Some(chunk) = stream.message().await.unwrap() {
            chunks.push(chunk.range_response.expect("a chunk has its part"));
        }
        let (last, firsts) = chunks.split_last().unwrap();
        assert!(!firsts.is_empty(), "more than one chunk");
        assert!(firsts.iter().all(|chunk| chunk.header.is_none() && chunk.count == 0 && !chunk.more));
        assert_eq!((last.count, last.more), (whole.count, whole.more), "limit {limit}, revision {pinned}");
        assert_eq!(revision(&last.header), revision(&whole.header), "a pinned one tells the latest, too");
        let kvs: Vec<_> = chunks.into_iter().flat_map(|chunk| chunk.kvs).collect();
        assert_eq!(kvs, whole.kvs);
    }
}

#[tokio::test]
async fn range_stream_refuses_what_etcd_does_not_stream_so_that_clients_fall_back() {
    let (_node, etcd) = started().await;
    let refused = [
        etcd::RangeRequest { sort_order: 2, ..listing("/") },
        etcd::RangeRequest { sort_target: 3, ..listing("/") },
        etcd::RangeRequest { min_mod_revision: 1, ..listing("/") },
        etcd::RangeRequest { max_create_revision: 1, ..listing("/") },
    ];
    for request in refused {
        let status = etcd.kv().range_stream(request).await.expect_err("a refusal");
        assert_eq!(status.code(), Code::Unimplemented);
    }
    fill(&etcd, "/registry/", 3).await;
    etcd.compact(3).await.unwrap();
    let old = etcd::RangeRequest { revision: 2, ..listing("/registry/") };
    let answer = match etcd.kv().range_stream(old).await {
        Ok(stream) => stream.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    assert_eq!(said(answer), (Code::OutOfRange, COMPACTED.to_owned()));
}

#[tokio::test]
async fn create_update_and_delete_are_guarded_by_the_mod_revision() {
    let (_node, etcd) = started().await;
    let created = etcd.txn(guarded("/k", 0, put_op("/k", "1", 0), None)).await.unwrap();
    let at = revision(&created.header);
    assert!(created.succeeded && at == 2);
    assert!(!etcd.txn(guarded("/k", 0, put_op("/k", "2", 0), None)).await.unwrap().succeeded, "it exists");
    let stale = etcd.txn(guarded("/k", at - 1, put_op("/k", "2", 0), Some(get_op("/k")))).await.unwrap();
    let Some(Response::ResponseRange(current)) = &stale.responses[0].response else { panic!("{stale:?}") };
    assert_eq!((stale.succeeded, stale.responses.len(), &current.kvs[0].value[..]), (false, 1, &b"1"[..]));
    assert_eq!(revision(&stale.header), at, "a failed update takes no revision");
    let updated = etcd.txn(guarded("/k", at, put_op("/k", "2", 0), Some(get_op("/k")))).await.unwrap();
    assert_eq!(revision(&updated.header), at + 1);
    let deleted = etcd.txn(guarded("/k", at + 1, delete_op("/k"), Some(get_op("/k")))).await.unwrap();
    assert_eq!((deleted.succeeded, revision(&deleted.header)), (true, at + 2), "a delete takes a revision");
    let gone = etcd.txn(guarded("/k", at + 1, delete_op("/k"), Some(get_op("/k")))).await.unwrap();
    let Some(Response::ResponseRange(nothing)) = &gone.responses[0].response else { panic!("{gone:?}") };
    assert!(!gone.succeeded && nothing.kvs.is_empty());
    let recreated = etcd.txn(guarded("/k", 0, put_op("/k", "3", 0), Some(get_op("/k")))).await.unwrap();
    assert!(recreated.succeeded, "revision 0 with an Else, too");
}

/// If nobody else has compacted since version `seen`, notes the revision and compacts; answers what is known now.
async fn compactor(etcd: &Etcd, seen: i64, revision: i64) -> (bool, i64) {
    use etcd::compare::{CompareResult, CompareTarget, TargetUnion};
    let compare = etcd::Compare {
        result: i32::from(CompareResult::Equal),
        target: i32::from(CompareTarget::Version),
        key: bytes("compact_rev_key"),
        target_union: Some(TargetUnion::Version(seen)),
        ..Default::default()
    };
    let txn = etcd::TxnRequest {
        compare: vec![compare],
        success: vec![put_op("compact_rev_key", &revision.to_string(), 0)],
        failure: vec![get_op("compact_rev_key")],
    };
    let answer = etcd.txn(txn).await.unwrap();
    if !answer.succeeded {
        let Some(Response::ResponseRange(range)) = &answer.responses[0].response else { panic!("{answer:?}") };
        return (false, range.kvs[0].version);
    }
    if revision > 0 {
        etcd.compact(revision).await.unwrap();
    }
    (true, seen + 1)
}

#[tokio::test]
async fn one_compactor_wins_by_the_version_of_its_key() {
    let (_node, etcd) = started().await;
    let at = fill(&etcd, "/registry/", 10).await;
    assert_eq!(compactor(&etcd, 0, 0).await, (true, 1), "no compaction at the first");
    assert_eq!(compactor(&etcd, 0, 0).await, (false, 1), "the other apiserver learns the version");
    let mut watch = etcd.watch().await;
    watch.create(etcd::WatchCreateRequest { key: bytes("compact_rev_key"), ..Default::default() }).await;
    assert!(watch.next().await.unwrap().created);
    assert_eq!(compactor(&etcd, 1, at).await, (true, 2));
    let event = watch.next().await.unwrap();
    assert_eq!(&event.events[0].kv.as_ref().unwrap().value[..], at.to_string().as_bytes());
    let gone = etcd.range(etcd::RangeRequest { revision: at - 1, ..listing("/registry/") }).await;
    assert_eq!(said(gone), (Code::OutOfRange, COMPACTED.to_owned()));
    assert!(etcd.range(etcd::RangeRequest { revision: at, ..listing("/registry/") }).await.is_ok());
    assert_eq!(said(etcd.compact(at).await), (Code::OutOfRange, COMPACTED.to_owned()));
    let future = etcd.range(etcd::RangeRequest { revision: at + 1000, ..listing("/registry/") }).await;
    assert_eq!(said(future).1, "etcdserver: mvcc: required revision is a future revision");
}

#[tokio::test]
async fn a_watch_tells_every_change_once_in_order_with_what_was_before() {
    let (_node, etcd) = started().await;
    let from = etcd.put("/registry/pods/a", "1").await + 1;
    etcd.put("/registry/pods/a", "2").await;
    let both = etcd::TxnRequest {
        success: vec![put_op("/registry/pods/b", "1", 0), delete_op("/registry/pods/a")],
        ..Default::default()
    };
    let txn = revision(&etcd.txn(both).await.unwrap().header);
    let mut watch = etcd.watch().await;
    watch.create(watching("/registry/pods/", from)).await;
    assert!(watch.next().await.unwrap().created);
    let mut events = Vec::new();
    while events.len() < 3 {
        events.extend(watch.next().await.unwrap().events);
    }
    let seen: Vec<i64> = events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision).collect();
    assert_eq!(seen, [from, txn, txn]);
    assert_eq!(&events[0].prev_kv.as_ref().unwrap().value[..], b"1", "an update without it is fatal there");
    assert!(events[1].prev_kv.is_none(), "a create has none");
    let deleted = events[2].prev_kv.as_ref().unwrap();
    assert_eq!((&deleted.value[..], events[2].r#type), (&b"2"[..], 1), "a delete tells the object");
}

#[tokio::test]
async fn a_watch_from_the_future_waits_silently_without_progress_below_its_start() {
    let (_node, etcd) = started().await;
    let at = etcd.put("/a", "1").await;
    let mut watch = etcd.watch().await;
    watch.create(etcd::WatchCreateRequest { progress_notify: true, ..watching("/", at + 3) }).await;
    assert!(watch.next().await.unwrap().created);
    watch.ask_progress().await;
    etcd.put("/b", "1").await;
    etcd.put("/c", "1").await;
    let third = etcd.put("/d", "1").await;
    let mut events = Vec::new();
    while events.is_empty() {
        let answer = watch.next().await.unwrap();
        assert!(!answer.events.is_empty() || revision(&answer.header) >= third - 1, "{answer:?}");
        events = answer.events;
    }
    assert_eq!(events[0].kv.as_ref().unwrap().mod_revision, third);
}

#[tokio::test]
async fn a_watch_from_a_compacted_revision_is_cancelled_before_any_event() {
    let (_node, etcd) = started().await;
    let at = fill(&etcd, "/registry/", 5).await;
    etcd.compact(at).await.unwrap();
    let mut watch = etcd.watch().await;
    watch.create(watching("/registry/", at - 2)).await;
    let created = watch.next().await.unwrap();
    assert!(created.created && !created.canceled);
    let canceled = watch.next().await.unwrap();
    assert!(canceled.canceled && canceled.events.is_empty());
    assert_eq!((canceled.compact_revision, canceled.watch_id), (at, created.watch_id));
}

#[tokio::test]
async fn a_watch_with_hasleader_ends_when_nobody_leads() {
    let mut cluster = Cluster::start(3, &[]).await;
    let leader = cluster.leader().await;
    let stays = (leader + 1) % 3;
    let etcd = Etcd::at(&cluster.client_address(stays)).await;
    let mut watch = etcd.watch().await;
    watch.create(watching("/", 0)).await;
    assert!(watch.next().await.unwrap().created);
    for member in (0..3).filter(|member| *member != stays) {
        cluster.kill(member);
    }
    let status = watch.next().await.expect_err("the stream ends");
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    let mut request = tonic::Request::new(listing("/"));
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    let refused = etcd.kv().range(request).await;
    assert_eq!(said(refused), (Code::Unavailable, "etcdserver: no leader".to_owned()));
}

#[tokio::test]
async fn a_lease_shared_by_many_objects_ends_with_delete_events_that_tell_them() {
    let (_node, etcd) = started().await;
    let lease = etcd.grant(2).await;
    for n in 0..50 {
        let name = format!("/registry/events/{n}");
        assert!(etcd.txn(guarded(&name, 0, put_op(&name, "event", lease), None)).await.unwrap().succeeded);
    }
    let mut watch = etcd.watch().await;
    watch.create(watching("/registry/events/", 0)).await;
    assert!(watch.next().await.unwrap().created);
    let mut deleted = Vec::new();
    while deleted.len() < 50 {
        deleted.extend(watch.next().await.unwrap().events);
    }
    assert!(deleted.iter().all(|event| event.r#type == 1));
    assert!(deleted.iter().all(|event| event.prev_kv.as_ref().is_some_and(|kv| &kv.value[..] == b"event")));
    let one = deleted[0].kv.as_ref().unwrap().mod_revision;
    assert!(deleted.iter().all(|event| event.kv.as_ref().unwrap().mod_revision == one), "in one revision");
}

#[tokio::test]
async fn status_has_a_version_that_switches_consistent_reads_on_and_a_size() {
    let cluster = Cluster::start(3, &[]).await;
    for member in 0..3 {
        let etcd = Etcd::at(&cluster.client_address(member)).await;
        let status = etcd.maintenance().status(etcd::StatusRequest {}).await.unwrap().into_inner();
        let version: Vec<u32> = status.version.split('.').map(|part| part.parse().unwrap()).collect();
        assert!(version.len() == 3 && version >= vec![3, 6, 0], "{}", status.version);
        assert!(status.db_size > 0 && status.leader != 0);
    }
}

type Objects = BTreeMap<bytes::Bytes, i64>;

/// What an apiserver's cache holds, made of its list and its watch alone.
struct Cache {
    watch: Watch,
    listed: Objects,
    /// Revision and key of each event, and whether it deleted.
    log: Vec<(i64, bytes::Bytes, bool)>,
    seen: i64,
}

impl Cache {
    /// Takes what is said until progress is known up to this revision.
    async fn wait(&mut self, at_least: i64) {
        while self.seen < at_least {
            self.watch.ask_progress().await;
            // Every 100 ms, as an apiserver asks.
            let until = Instant::now() + Duration::from_millis(100);
            while Instant::now() < until && self.seen < at_least {
                let left = until.saturating_duration_since(Instant::now());
                if let Ok(answer) = tokio::time::timeout(left, self.watch.next()).await {
                    self.take(answer.unwrap());
                }
            }
        }
    }

    fn take(&mut self, answer: etcd::WatchResponse) {
        assert!(!answer.canceled, "{answer:?}");
        if answer.events.is_empty() {
            if !answer.created {
                assert_eq!(answer.watch_id, -1, "progress that was asked for");
                self.seen = self.seen.max(revision(&answer.header));
            }
            return;
        }
        for event in answer.events {
            let kv = event.kv.unwrap();
            assert!(kv.mod_revision > self.seen, "progress has overtaken an event");
            let deleted = event.r#type == i32::from(mvccpb::event::EventType::Delete);
            assert!(!deleted || event.prev_kv.is_some());
            self.log.push((kv.mod_revision, kv.key, deleted));
        }
    }

    fn at(&self, revision: i64) -> Objects {
        let mut objects = self.listed.clone();
        for (at, key, deleted) in self.log.iter().filter(|(at, ..)| *at <= revision) {
            if *deleted {
                assert!(objects.remove(key).is_some(), "a delete of what was not there");
            } else {
                objects.insert(key.clone(), *at);
            }
        }
        objects
    }
}

#[tokio::test]
async fn an_apiservers_pattern_of_traffic() {
    let (_node, etcd) = started().await;
    fill(&etcd, "/registry/pods/", 200).await;
    let listed = etcd.range(listing("/registry/pods/")).await.unwrap();
    let from = revision(&listed.header) + 1;
    let mut cache = Cache {
        watch: etcd.watch().await,
        listed: listed.kvs.into_iter().map(|kv| (kv.key, kv.mod_revision)).collect(),
        log: Vec::new(),
        seen: from - 1,
    };
    // A hundred watches on one stream, of which one sees the objects.
    cache.watch.create(watching("/registry/pods/", from)).await;
    for n in 0..99 {
        cache.watch.create(watching(&format!("/registry/kind{n}/"), from)).await;
    }
    for _ in 0..100 {
        let answer = cache.watch.next().await.unwrap();
        assert!(answer.created && !answer.canceled);
    }
    let writers = (0..4).map(|writer| {
        let etcd = etcd.clone();
        tokio::spawn(async move {
            let lease = etcd.grant(600).await;
            for n in 0..250 {
                let event = format!("/registry/events/{writer}/{n}");
                assert!(etcd.txn(guarded(&event, 0, put_op(&event, "e", lease), None)).await.unwrap().succeeded);
                let pod = format!("/registry/pods/{:04}", (n * 7 + writer) % 200);
                let read = etcd::RangeRequest { key: bytes(&pod), ..Default::default() };
                let read = etcd.range(read).await.unwrap();
                let at = read.kvs.first().map_or(0, |kv| kv.mod_revision);
                let write = if n % 10 == 0 && at != 0 { delete_op(&pod) } else { put_op(&pod, "new", 0) };
                // Another may have been quicker: then the answer has the object as it is.
                let answer = etcd.txn(guarded(&pod, at, write, Some(get_op(&pod)))).await.unwrap();
                assert!(answer.succeeded || answer.responses.len() == 1);
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut version = compactor(&etcd, 0, 0).await.1;
    for round in 0..5 {
        // A consistent list from the cache: as of now, once progress says so.
        let (key, _) = prefix("/registry/pods/");
        let now = revision(&etcd.range(etcd::RangeRequest { key, ..Default::default() }).await.unwrap().header);
        cache.wait(now).await;
        let seen = cache.seen;
        let exact = etcd.range(etcd::RangeRequest { revision: seen, ..listing("/registry/pods/") }).await.unwrap();
        let objects: Objects = exact.kvs.into_iter().map(|kv| (kv.key, kv.mod_revision)).collect();
        assert_eq!(cache.at(seen), objects, "round {round}: the cache at {seen} is what the store had then");
        version = compactor(&etcd, version, now - 1).await.1;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let listed = etcd.range(listing("/registry/pods/")).await.unwrap();
    cache.wait(revision(&listed.header)).await;
    let objects: Objects = listed.kvs.into_iter().map(|kv| (kv.key, kv.mod_revision)).collect();
    assert_eq!(cache.at(i64::MAX), objects);
    let leased = etcd::RangeRequest { count_only: true, ..listing("/registry/events/") };
    assert_eq!(etcd.range(leased).await.unwrap().count, 1000);
}
