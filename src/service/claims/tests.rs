//! Claims on three members, one of which knows less than the others.

use super::{Acquired, ClaimRequest, Session};
use crate::env::TaskSet;
use crate::model::{Caller, ClaimKind, ClaimName, Failure, LeaseId, Rejection};
use crate::raft::tests::{LONG, eventually};
use crate::service::tests::{Members, context};
use crate::service::{LeaseGrant, QueueRequest, Service};
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::oneshot;

async fn grant(service: &Service, id: LeaseId) {
    let grant = LeaseGrant { id: Some(id), ttl_ms: 600_000, ..LeaseGrant::default() };
    service.lease_grant(&context(LONG), grant, None).await.unwrap();
}

fn request(of: &ClaimName, lease: LeaseId) -> ClaimRequest {
    ClaimRequest { of: of.clone(), session: Session::Lease(lease), value: Bytes::new(), permits: 1, limit: None }
}

const HOLDER: LeaseId = 1;
const WAITER: LeaseId = 2;
const NEXT: LeaseId = 3;

async fn take(service: &Service, of: &ClaimName, lease: LeaseId) {
    let taken = service.claim_acquire(&context(LONG), request(of, lease), Duration::ZERO, None).await.unwrap();
    assert!(matches!(taken.body, Acquired::Held(_)), "{taken:?}");
}

/// Three members, all leases, and a lock that `HOLDER` holds.
async fn held_lock() -> (Members, ClaimName) {
    let members = Members::start().await;
    let of = ClaimName::new(ClaimKind::Lock, "l");
    for lease in [HOLDER, WAITER, NEXT] {
        grant(&members.services[&1], lease).await;
    }
    take(&members.services[&1], &of, HOLDER).await;
    (members, of)
}

/// Whose claims a member knows of, in their order.
fn claims(service: &Service, of: &ClaimName) -> Vec<LeaseId> {
    let queue = service.queue_in(&service.newest(), &Caller::System, of).unwrap();
    queue.claims.iter().map(|claim| claim.lease).collect()
}

/// Through which door the waiter of a test came.
#[derive(Debug, Clone, Copy)]
enum Door {
    Claims,
    /// etcd's lock service.
    Queues,
}

async fn enter(service: Service, door: Door, of: ClaimName, lease: LeaseId) -> Result<String, Failure> {
    match door {
        Door::Claims => {
            let told = service.claim_acquire(&context(LONG), request(&of, lease), LONG, None).await?;
            Ok(format!("{:?}", told.body))
        }
        Door::Queues => {
            let name = "_tenure/locks/l".into();
            let asked = QueueRequest { name, lease: Some(lease), ttl_ms: 0, value: None };
            Ok(format!("{:?}", service.queue_enter(&context(LONG), asked).await?.body))
        }
    }
}

fn wait_at(service: Service, door: Door, of: &ClaimName) -> oneshot::Receiver<Result<String, Failure>> {
    let entering = enter(service, door, of.clone(), WAITER);
    let (give, waiter) = oneshot::channel();
    TaskSet::new().spawn("waiter", async move {
        give.send(entering.await).ok();
    });
    waiter
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_on_a_member_left_behind_is_not_told_that_it_holds() {
    left_behind(Door::Claims).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_is_one_that_came_by_etcds_lock_service() {
    left_behind(Door::Queues).await;
}

/// etcd's Jepsen report on locks: whoever has waited long looks at an old state, in which it is first in the queue
/// and its lease lives. It must not be told that it holds while another does.
async fn left_behind(door: Door) {
    let (members, of) = held_lock().await;
    let (first, third) = (&members.services[&1], members.services[&3].clone());
    let mut waiter = wait_at(third, door, &of);
    // Its member takes in that the lock is free, and does not tell it yet.
    let claims = |id: u64| claims(&members.services[&id], &of);
    eventually("the waiter is queued", || claims(3) == [HOLDER, WAITER]).await;
    // Registered as well: for its own claim and for the one before it.
    eventually("the waiter waits", || members.watchers(3) == 2).await;
    first.claim_release(&context(LONG), (&of, HOLDER), None).await.unwrap();
    eventually("its member knows", || claims(3) == [WAITER]).await;
    members.cluster.net.cut.lock().insert(3);
    // The others go on: the waiter's lease ends, and another takes the lock.
    first.lease_revoke(&context(LONG), WAITER, None).await.unwrap();
    take(first, &of, NEXT).await;
    assert_eq!(claims(3), [WAITER], "its member knew of it: nothing was tried");
    members.wake_watchers(3);
    let told = tokio::time::timeout(Duration::from_secs(1), &mut waiter).await;
    assert!(told.is_err(), "VIOLATION: a waiter was told {told:?} while another holds");
    members.cluster.net.cut.lock().clear();
    let told = waiter.await.unwrap();
    let refused = match door {
        Door::Claims => matches!(told, Err(Failure::Rejected(Rejection::LeaseNotFound(WAITER)))),
        Door::Queues => matches!(told, Err(Failure::Rejected(_))),
    };
    assert!(refused, "VIOLATION: a waiter whose lease has ended was told {told:?}");
    members.stop().await;
}

#[tokio::test]
async fn a_claim_is_not_said_to_hold_by_what_was_learned_after_it_was_queued() {
    learned_late(Door::Claims).await;
}

#[tokio::test]
async fn nor_is_one_that_was_queued_by_etcds_lock_service() {
    learned_late(Door::Queues).await;
}

/// A claim is queued behind another, and its member hears of that together with the other's end, long after both:
/// then its lease has ended, and somebody else holds. On one thread, so that nobody looks in between.
async fn learned_late(door: Door) {
    let (members, of) = held_lock().await;
    let (first, third) = (&members.services[&1], members.services[&3].clone());
    let claims = |id: u64| claims(&members.services[&id], &of);
    eventually("its member knows who holds", || claims(3) == [HOLDER]).await;
    let late = &members.cluster.nodes[&3];
    late.hold_applying();
    let mut waiter = wait_at(third, door, &of);
    eventually("the waiter is queued", || claims(1) == [HOLDER, WAITER]).await;
    first.claim_release(&context(LONG), (&of, HOLDER), None).await.unwrap();
    let released = members.cluster.nodes[&1].consensus.state().applied;
    eventually("its member has logged that", || late.consensus.state().committed >= released).await;
    members.cluster.net.cut.lock().insert(3);
    first.lease_revoke(&context(LONG), WAITER, None).await.unwrap();
    take(first, &of, NEXT).await;
    assert_eq!(claims(3), [HOLDER], "its member did not wait: nothing was tried");
    late.apply_on();
    eventually("its member knows that the lock is free", || claims(3) == [WAITER]).await;
    let told = tokio::time::timeout(Duration::from_secs(1), &mut waiter).await;
    assert!(told.is_err(), "VIOLATION: a waiter was told {told:?} while another holds");
    members.cluster.net.cut.lock().clear();
    members.wake_watchers(3);
    let told = waiter.await.unwrap();
    assert!(matches!(told, Err(Failure::Rejected(_))), "VIOLATION: a waiter whose lease has ended was told {told:?}");
    members.stop().await;
}
