//! Members whose states differ are found out, and come by the majority's.

use super::cluster::Cluster;
use super::*;
use crate::model::{Outcome as Known, Why, codec};
use crate::raft::divergence::Standing;
use crate::raft::network::Lane;
use crate::raft::transfer::{Head, Purpose};
use crate::storage::mutant::Mutant;
use futures_util::StreamExt;
use futures_util::stream;
use openraft::async_runtime::watch::WatchReceiver;

/// A cluster in which only this member flips a byte of what begins with "flip".
async fn with_flipping(odd: MemberId) -> Cluster {
    let mutant = move |id| (id == odd).then_some(Mutant::FlipStateByte);
    Cluster::start_each(mutant, |_| Arc::new(Unwatched)).await
}

fn refused(result: Result<(), Failure>) -> bool {
    matches!(result, Err(Failure::Unavailable { why: Why::Diverged, outcome: Known::NotProposed }))
}

/// Follows a member until its state was rebuilt and confirmed; it must not serve meanwhile.
async fn rebuilt(consensus: Consensus) {
    let mut standing = consensus.link().agreement.watch();
    let following = async {
        standing.wait_for(|standing| *standing == Standing::Outvoted).await.unwrap();
        loop {
            let now = *standing.borrow_and_update();
            if now == Standing::Sound {
                break;
            }
            let barrier = consensus.read_barrier(LONG).await;
            // It may have been confirmed between the two looks.
            assert!(refused(barrier) || consensus.standing() == Standing::Sound, "a wrong state was served");
            standing.changed().await.unwrap();
        }
    };
    assert!(tokio::time::timeout(LONG, following).await.is_ok(), "never found or never rebuilt");
}

fn one_hash(cluster: &Cluster) -> bool {
    let hashes = cluster.nodes.values().map(|node| {
        let view = node.consensus.reader().view();
        (view.applied(), view.state_hash())
    });
    let hashes: Vec<_> = hashes.collect();
    hashes.iter().all(|hash| *hash == hashes[0])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_with_a_flipped_byte_takes_the_others_state() {
    let cluster = with_flipping(3).await;
    let third = &cluster.nodes[&3];
    tokio::join!(rebuilt(third.consensus.clone()), async {
        cluster.nodes[&1].put("k", "flip").await.unwrap();
        eventually("the wrong value is there", || third.get("k").as_deref() == Some("glip")).await;
        // What it wrote of its wrong state must not be what it starts from later.
        third.consensus.trigger_snapshot(LONG).await.unwrap();
    });
    assert_eq!(third.get("k").as_deref(), Some("flip"));
    cluster.nodes[&1].put("after", "v").await.unwrap();
    third.put("through-it", "v").await.unwrap();
    eventually("one hash", || one_hash(&cluster)).await;
    let disk = cluster.disks[&3].clone();
    cluster.stop().await;
    let node = Node::start(&disk, Options { mutant: None, ..Options::new(3) }).await.unwrap();
    assert_eq!(node.get("k").as_deref(), Some("flip"), "the wrong snapshot was kept");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_with_a_flipped_byte_gives_the_lead_away_and_is_rebuilt() {
    let cluster = with_flipping(1).await;
    let first = &cluster.nodes[&1];
    let (_, written) = tokio::join!(rebuilt(first.consensus.clone()), first.put("k", "flip"));
    written.unwrap();
    assert_eq!(cluster.nodes[&1].get("k").as_deref(), Some("flip"));
    let leader = cluster.leader_among(&[2, 3]).await;
    cluster.nodes[&leader].put("after", "v").await.unwrap();
    eventually("one hash", || one_hash(&cluster)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_writes_are_refused_until_there_is_one() {
    let cluster = with_flipping(2).await;
    let first = &cluster.nodes[&1];
    cluster.net.cut.lock().insert(3);
    first.put("k", "flip").await.unwrap();
    eventually("both know that they differ", || {
        [1, 2].iter().all(|id| cluster.nodes[id].consensus.standing() == Standing::Undecided)
    })
    .await;
    assert!(refused(first.put("refused", "v").await.map(drop)));
    assert!(refused(cluster.nodes[&2].put("refused", "v").await.map(drop)));
    first.consensus.read_barrier(LONG).await.unwrap();
    tokio::join!(rebuilt(cluster.nodes[&2].consensus.clone()), async { cluster.net.cut.lock().clear() });
    eventually("the majority writes again", || first.consensus.standing() == Standing::Sound).await;
    first.put("after", "v").await.unwrap();
    assert!(first.get("refused").is_none());
    assert_eq!(cluster.nodes[&2].get("k").as_deref(), Some("flip"), "called right without having been replaced");
    eventually("one hash", || one_hash(&cluster)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_agree_are_left_alone() {
    let cluster = with_flipping(0).await;
    for i in 0..50 {
        cluster.nodes[&1].put(&format!("k{i}"), "flip").await.unwrap();
    }
    let index = cluster.nodes[&1].consensus.state().applied.unwrap();
    let agreed = |id: &MemberId| cluster.nodes[id].consensus.link().agreement.known().agreed >= index;
    eventually("all are told that they agree", || [1, 2, 3].iter().all(agreed)).await;
    assert!(cluster.nodes.values().all(|node| node.consensus.standing() == Standing::Sound));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_doubt_outlives_a_restart() {
    let disk = SimDisk::new();
    let node = Node::bootstrap(&disk).await;
    node.put("k", "v").await.unwrap();
    node.consensus.snapshots().suspect(true).await;
    node.stop().await;
    let node = Node::restart(&disk).await;
    assert!(refused(node.consensus.read_barrier(LONG).await));
    // Who is the only voter is the majority.
    eventually("it is confirmed", || node.consensus.standing() == Standing::Sound).await;
    node.put("after", "v").await.unwrap();
    eventually("and that is noted", || {
        !SnapshotStore::open(Arc::new(disk.clone()), "/data/snapshot").unwrap().is_suspect().unwrap()
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_broke_off_is_sent_on_from_there() {
    let cluster = Cluster::start_with(None, |_| Arc::new(Unwatched)).await;
    let first = &cluster.nodes[&1];
    cluster.net.cut.lock().insert(3);
    let value: String = (0..2000u32).map(|i| format!("{i:x}")).collect();
    for i in 0..200 {
        first.put(&format!("k{i}"), &value).await.unwrap();
    }
    first.consensus.trigger_snapshot(LONG).await.unwrap();
    let snapshot = first.consensus.snapshots().current().unwrap();
    let (digest, bytes) = snapshot.snapshot.digest().unwrap();
    let vote = first.consensus.raft().metrics().borrow_watched().vote;
    let head = Head { purpose: Purpose::Install(vote), meta: snapshot.meta, digest, bytes };
    let head = Bytes::from(codec::encode(&head).unwrap());
    let pieces: Vec<Bytes> = snapshot.snapshot.pieces(0).collect().await;
    assert!(pieces.len() > 2, "{} pieces are too few to break off between them", pieces.len());
    let third = cluster.nodes[&3].consensus.clone();
    let send = |pieces: Vec<Bytes>| {
        let requests = stream::iter(std::iter::once(head.clone()).chain(pieces)).boxed();
        third.answer_stream(Lane::Snapshot, requests).collect::<Vec<_>>()
    };
    let offset =
        |answer: &Result<Bytes, TransportError>| -> u64 { codec::decode("offset", answer.as_ref().unwrap()).unwrap() };
    let answers = send(pieces[..1].to_vec()).await;
    assert_eq!((offset(&answers[0]), answers.len()), (0, 2));
    assert!(answers[1].is_err(), "a part was taken for the whole");
    let answers = send(pieces[1..].to_vec()).await;
    assert_eq!(offset(&answers[0]), u64::try_from(pieces[0].len()).unwrap());
    assert!(answers[1].is_ok(), "{:?}", answers[1]);
    assert_eq!(cluster.nodes[&3].get("k199"), Some(value));
    cluster.net.cut.lock().clear();
    cluster.stop().await;
}
