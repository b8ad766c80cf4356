//! Three members: the leader is cut off with its leases, and another takes over.

use crate::model::{
    Caller, Command, DeleteReason, EventKind, KeyRange, LeaseChoice, Proposal, RangeOp, Rejection, Reply,
};
use crate::raft::tests::{LONG, eventually};
use crate::service::LeaseGrant;
use crate::service::tests::{Members, context};
use std::time::Duration;
use tokio::time::Instant;

const TTL: Duration = Duration::from_secs(2);

fn grant(id: i64, ttl: Duration) -> LeaseGrant {
    LeaseGrant { id: Some(id), ttl_ms: ttl.as_millis().try_into().unwrap(), ..LeaseGrant::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_gives_every_lease_its_whole_ttl_and_the_old_one_ends_and_renews_none() {
    let members = Members::start().await;
    let first = &members.services[&1];
    for (id, key) in [(7, "silent"), (8, "kept")] {
        first.lease_grant(&context(LONG), grant(id, TTL), None).await.unwrap();
        members.put(1, key, LeaseChoice::Attach(id)).await;
    }
    first.lease_keep_alive(&context(LONG), 8).await.unwrap();
    for id in 2..=3 {
        eventually("followers apply", || members.has(id, "kept")).await;
    }
    tokio::time::sleep(TTL * 3 / 4).await;
    let cut = Instant::now();
    members.cluster.net.cut.lock().insert(1);
    // The old leader does not know yet; what it cannot confirm it must not answer.
    let stale = first.lease_keep_alive(&context(Duration::from_secs(1)), 7).await;
    assert!(stale.is_err(), "{stale:?}");
    let leader = members.cluster.leader_among(&[2, 3]).await;
    let second = &members.services[&leader];
    second.lease_keep_alive(&context(LONG), 8).await.unwrap();
    let mut kept = Instant::now();
    while members.has(leader, "silent") {
        assert!(cut.elapsed() < LONG, "the lease never ended");
        let sent = Instant::now();
        second.lease_keep_alive(&context(LONG), 8).await.unwrap();
        kept = sent;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(cut.elapsed() >= TTL, "ended {:?} after the old leader could still have renewed it", cut.elapsed());
    assert!(members.has(leader, "kept"), "a renewed lease ended with the other");
    eventually("the other ends too", || !members.has(leader, "kept")).await;
    assert!(kept.elapsed() >= TTL, "ended {:?} after it was renewed", kept.elapsed());
    // By its own clock the old leader's leases have run out long ago, and it could end none.
    assert!(members.has(1, "silent") && members.has(1, "kept"));
    members.cluster.net.cut.lock().clear();
    eventually("the old leader follows", || !members.has(1, "kept")).await;
    let hashes = || {
        let views = members.cluster.nodes.values().map(|node| node.consensus.reader().view());
        views.map(|view| (view.applied().map(|at| at.index), view.state_hash())).collect::<Vec<_>>()
    };
    eventually("all have the same state", || hashes().windows(2).all(|pair| pair[0] == pair[1])).await;
    members.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_former_leader_proposes_ends_nothing() {
    let members = Members::start().await;
    let first = &members.services[&1];
    first.lease_grant(&context(LONG), grant(7, LONG), None).await.unwrap();
    members.put(1, "key", LeaseChoice::Attach(7)).await;
    let consensus = &members.cluster.nodes[&1].consensus;
    let term = consensus.state().term;
    let start = |generation| crate::model::LeaseStart { id: 7, generation };
    let generation = consensus.reader().view().lease(7).unwrap().generation;
    let expire = async |term, generation| {
        let command = Command::LeaseExpire { term, leases: vec![start(generation)] };
        let proposal = Proposal { caller: Caller::System, idempotency: None, command };
        consensus.propose(&proposal, LONG).await.unwrap().result
    };
    let refused = expire(term - 1, generation).await;
    assert_eq!(refused, Err(Rejection::StaleTerm { proposed: term - 1, current: term }));
    let passed_over = expire(term, generation + 1).await;
    assert!(matches!(passed_over, Ok(Reply::LeasesExpired { leases: 0, deleted: 0, .. })), "{passed_over:?}");
    assert!(members.has(1, "key"));
    let ended = expire(term, generation).await;
    assert!(matches!(ended, Ok(Reply::LeasesExpired { leases: 1, deleted: 1, .. })), "{ended:?}");
    let range = RangeOp::newest(KeyRange::all());
    assert_eq!(consensus.reader().view().range(&Caller::Anonymous, &range).unwrap().count, 0);
    let events = consensus.reader().view().events(2, 100).unwrap();
    assert_eq!(events.last().unwrap().events[0].kind, EventKind::Delete(DeleteReason::Expired));
    members.stop().await;
}
