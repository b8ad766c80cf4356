//! Three members over an in-memory transport.

use super::*;
use crate::model::{Outcome as Known, Why, codec};
use crate::raft::network::Call;
use crate::storage::mutant::Mutant;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use openraft::ChangeMembers;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{oneshot, watch};

/// More than a test writes, so that it says itself when there are snapshots.
const LOG_BYTES: u64 = 1 << 20;

/// Who is there, and who is cut off from everybody.
#[derive(Debug, Default)]
pub(crate) struct Net {
    members: Mutex<BTreeMap<MemberId, Consensus>>,
    pub(crate) cut: Mutex<BTreeSet<MemberId>>,
    /// How many of the next offers of the lead get lost.
    lost_offers: Mutex<usize>,
    /// Messages that wait until that is over.
    held: watch::Sender<BTreeSet<Way>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Question { from: MemberId, to: MemberId },
    Answer { from: MemberId, to: MemberId },
}

impl Net {
    async fn passes(&self, way: Way) {
        drop(self.held.subscribe().wait_for(|held| !held.contains(&way)).await);
    }

    fn hold(&self, way: Way) {
        self.held.send_modify(|held| held.extend([way]));
    }

    fn release(&self, way: Way) {
        self.held.send_modify(|held| held.retain(|other| *other != way));
    }

    fn reach(&self, from: MemberId, to: MemberId) -> Result<Consensus, TransportError> {
        let cut = self.cut.lock();
        let member = self.members.lock().get(&to).cloned();
        match member {
            Some(member) if !cut.contains(&from) && !cut.contains(&to) => Ok(member),
            _ => Err(TransportError::Unreachable(format!("no way to {to}"))),
        }
    }

    fn loses(&self, request: &[u8]) -> bool {
        let mut lost = self.lost_offers.lock();
        let is_lost = *lost > 0 && matches!(codec::decode("request", request), Ok(Call::TransferLeader(_)));
        *lost -= usize::from(is_lost);
        is_lost
    }
}

#[derive(Debug, Clone)]
struct Wire {
    net: Arc<Net>,
    from: MemberId,
}

impl Transport for Wire {
    fn call(
        &self,
        peer: Peer,
        _: Lane,
        request: Bytes,
        _: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let wire = self.clone();
        Box::pin(async move {
            if wire.net.loses(&request) {
                return Err(TransportError::Failed("the connection was reset".to_owned()));
            }
            let member = wire.net.reach(wire.from, peer.id)?;
            wire.net.passes(Way::Question { from: wire.from, to: peer.id }).await;
            let answer = member.answer(request).await;
            wire.net.passes(Way::Answer { from: peer.id, to: wire.from }).await;
            answer
        })
    }

    fn stream(
        &self,
        peer: Peer,
        lane: Lane,
        requests: BoxStream<'static, Bytes>,
        _: Duration,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError>> {
        let wire = self.clone();
        Box::pin(async move {
            let member = wire.net.reach(wire.from, peer.id)?;
            let there = wire.clone();
            let requests = requests.take_while(move |_| {
                let there = there.clone();
                async move {
                    there.net.passes(Way::Question { from: there.from, to: peer.id }).await;
                    there.net.reach(there.from, peer.id).is_ok()
                }
            });
            let answers = member.answer_stream(lane, requests.boxed());
            let back = answers.then(move |answer| {
                let wire = wire.clone();
                async move {
                    wire.net.passes(Way::Answer { from: peer.id, to: wire.from }).await;
                    wire.net.reach(wire.from, peer.id).and(answer)
                }
            });
            Ok(back.boxed())
        })
    }
}

/// Keeps a log's writer going, until the disk hangs.
struct Pump {
    hung: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Pump {
    fn start(wal: Wal) -> Self {
        let (hung, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (hangs, ends) = (hung.clone(), ended.clone());
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::SeqCst) {
                if !hangs.load(Ordering::SeqCst) {
                    wal.pump();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { hung, ended, thread: Some(thread) }
    }

    fn hang(&self, hung: bool) {
        self.hung.store(hung, Ordering::SeqCst);
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

pub(crate) struct Cluster {
    pub(crate) net: Arc<Net>,
    pub(crate) nodes: BTreeMap<MemberId, Node>,
    pub(crate) disks: BTreeMap<MemberId, SimDisk>,
    /// Drives member 1's log.
    pump: Pump,
    /// What member 1 is told of its disk.
    stall: DiskStall,
}

impl Cluster {
    async fn start(mutant: Option<Mutant>) -> Self {
        Self::start_with(mutant, |_| Arc::new(Unwatched)).await
    }

    pub(crate) async fn start_with(mutant: Option<Mutant>, publisher: impl Fn(MemberId) -> Arc<dyn Publisher>) -> Self {
        Self::start_each(|_| mutant, publisher).await
    }

    pub(crate) async fn start_each(
        mutant: impl Fn(MemberId) -> Option<Mutant>,
        publisher: impl Fn(MemberId) -> Arc<dyn Publisher>,
    ) -> Self {
        let net = Arc::new(Net::default());
        let stall = DiskStall::new(Arc::new(SystemClock::new()), Duration::from_millis(1200), None);
        let (mut nodes, mut disks, mut pump) = (BTreeMap::new(), BTreeMap::new(), None);
        for id in 1..=3 {
            let disk = SimDisk::new();
            let wire = Arc::new(Wire { net: net.clone(), from: id });
            let watched = (id == 1).then(|| stall.clone());
            let options =
                Options { mutant: mutant(id), snapshot_log_bytes: LOG_BYTES, disk: watched, ..Options::new(id) };
            let open = |disk: &SimDisk, faults: &_| {
                let threading = if id == 1 { Threading::Pumped } else { Threading::Own };
                let (wal, recovered) = open_wal(disk, faults, threading);
                if id == 1 {
                    pump = Some(Pump::start(wal.clone()));
                }
                (wal, recovered)
            };
            let node = Node::start_with(&disk, options, (wire, publisher(id)), open).await.unwrap();
            net.members.lock().insert(id, node.consensus.clone());
            nodes.insert(id, node);
            disks.insert(id, disk);
        }
        let first = &nodes[&1].consensus;
        first.bootstrap([(1, member(1))].into()).await.unwrap();
        assert!(first.wait_recovered(LONG).await);
        for id in 2..=3 {
            first.raft().add_learner(id, member(id), true).await.unwrap();
        }
        let voters = ChangeMembers::AddVoterIds([2, 3].into());
        first.raft().change_membership(voters, false).await.unwrap();
        Self { net, nodes, disks, pump: pump.unwrap(), stall }
    }

    pub(crate) async fn stop(mut self) {
        // The followers first: there is nobody to hand over to then.
        for (_, node) in std::mem::take(&mut self.nodes).into_iter().rev() {
            self.net.cut.lock().insert(node.consensus.state().id);
            node.stop().await;
        }
    }

    pub(crate) async fn leader_among(&self, ids: &[MemberId]) -> MemberId {
        let mut leader = 0;
        eventually("a leader is elected", || {
            let found = ids.iter().find(|id| self.nodes[id].consensus.state().is_leader);
            leader = found.copied().unwrap_or(0);
            leader != 0
        })
        .await;
        leader
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_reach_every_member_and_survive_the_leader() {
    let cluster = Cluster::start(None).await;
    for i in 0..30 {
        cluster.nodes[&1].put(&format!("k{i}"), "v").await.unwrap();
    }
    cluster.nodes[&1].consensus.read_barrier(LONG).await.unwrap();
    for id in 2..=3 {
        eventually("followers apply", || cluster.nodes[&id].get("k29").is_some()).await;
        let written = cluster.nodes[&id].put(&format!("through-{id}"), "v").await.unwrap();
        assert!(written.result.is_ok());
        cluster.nodes[&id].consensus.read_barrier(LONG).await.unwrap();
        assert!(
            cluster.nodes[&id].get(&format!("through-{id}")).is_some(),
            "a follower's barrier waits for the leader's log"
        );
    }
    cluster.net.cut.lock().insert(1);
    let leader = cluster.leader_among(&[2, 3]).await;
    cluster.nodes[&leader].put("after", "v").await.unwrap();
    // The old leader still thinks it leads; it can neither write nor confirm a read.
    let barrier = cluster.nodes[&1].consensus.read_barrier(Duration::from_secs(3)).await;
    assert!(barrier.is_err());
    let write = cluster.nodes[&1].consensus.propose(&put("lost", "v"), Duration::from_secs(1)).await;
    assert!(matches!(write, Err(Failure::Unavailable { .. })), "{write:?}");
    cluster.net.cut.lock().clear();
    eventually("the old leader follows", || cluster.nodes[&1].get("after").is_some()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_left_behind_is_brought_up_by_a_snapshot() {
    let cluster = Cluster::start(None).await;
    cluster.nodes[&1].put("k0", "v").await.unwrap();
    cluster.net.cut.lock().insert(3);
    let first = &cluster.nodes[&1];
    for round in 0..3 {
        for i in 0..20 {
            first.put(&format!("r{round}-{i}"), "v").await.unwrap();
        }
        first.consensus.trigger_snapshot(LONG).await.unwrap();
    }
    eventually("the log is purged", || first.consensus.state().purged.is_some()).await;
    cluster.net.cut.lock().clear();
    eventually("the third catches up", || cluster.nodes[&3].get("r2-19").is_some()).await;
    eventually("it was by a snapshot", || {
        let third = cluster.nodes[&3].consensus.state();
        third.snapshot.is_some() && third.purged == third.snapshot
    })
    .await;
    first.put("after", "v").await.unwrap();
    eventually("and follows", || cluster.nodes[&3].get("after").is_some()).await;
    let disk = cluster.disks[&3].clone();
    cluster.stop().await;

    // What was installed is enough to start from.
    let node = Node::start(&disk, Options { mutant: None, ..Options::new(3) }).await.unwrap();
    assert!(node.get("r2-19").is_some());
    node.stop().await;
}

/// It would have to apply all the log since the last one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_written_anew_for_a_member_if_the_log_has_grown_since() {
    let cluster = Cluster::start(None).await;
    cluster.net.cut.lock().insert(3);
    let first = &cluster.nodes[&1];
    for key in ["a", "b"] {
        first.put(key, "v").await.unwrap();
        first.consensus.trigger_snapshot(LONG).await.unwrap();
    }
    eventually("the log is purged", || first.consensus.state().purged.is_some()).await;
    let long = "v".repeat(16 << 10);
    for i in 0..10 {
        first.put(&format!("k{i}"), &long).await.unwrap();
    }
    let last = first.consensus.state().last_log;
    cluster.net.cut.lock().clear();
    eventually("the third catches up", || cluster.nodes[&3].get("k9").is_some()).await;
    eventually("by a snapshot of now", || cluster.nodes[&3].consensus.state().snapshot >= last).await;
    // A short tail is sent as it is.
    cluster.net.cut.lock().insert(3);
    let mut newest = None;
    for key in ["c", "d"] {
        first.put(key, "v").await.unwrap();
        newest = Some(first.consensus.trigger_snapshot(LONG).await.unwrap().index);
    }
    eventually("the log is purged", || first.consensus.state().purged > last).await;
    first.put("e", "v").await.unwrap();
    cluster.net.cut.lock().clear();
    eventually("the third catches up again", || cluster.nodes[&3].get("e").is_some()).await;
    eventually("by a snapshot", || cluster.nodes[&3].consensus.state().snapshot == newest).await;
    assert_eq!(first.consensus.state().snapshot, newest, "none was written for it");
    cluster.stop().await;
}

/// With a quorum elsewhere an entry is committed while the leader's own disk hangs.
async fn applies_while_its_disk_hangs(mutant: Option<Mutant>) -> bool {
    let cluster = Cluster::start(mutant).await;
    let first = &cluster.nodes[&1];
    first.put("before", "v").await.unwrap();
    cluster.pump.hang(true);
    let answered = first.consensus.propose(&put("hung", "v"), Duration::from_millis(1500)).await;
    let applied = first.get("hung").is_some();
    assert_eq!(answered.is_ok(), applied);
    let elsewhere = cluster.nodes[&2].consensus.state().last_log;
    assert!(elsewhere >= first.consensus.state().last_log, "the entry did not reach the others: nothing was shown");
    cluster.pump.hang(false);
    eventually("it is applied in the end", || first.get("hung").is_some()).await;
    cluster.stop().await;
    applied
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_applies_nothing_that_its_own_disk_does_not_hold() {
    assert!(!applies_while_its_disk_hangs(None).await);
    assert!(
        applies_while_its_disk_hangs(Some(Mutant::ApplyAheadOfFlush)).await,
        "the check does not find the bug it is there for"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_hangs_gives_the_lead_away_and_refuses_at_once() {
    let cluster = Cluster::start(None).await;
    let first = &cluster.nodes[&1];
    first.put("before", "v").await.unwrap();
    cluster.pump.hang(true);
    cluster.stall.write_began();
    // It goes on sending heartbeats, so that nobody would take the lead by themselves.
    let leader = cluster.leader_among(&[2, 3]).await;
    cluster.nodes[&leader].put("meanwhile", "v").await.unwrap();
    let stalled =
        |result| matches!(result, Err(Failure::Unavailable { why: Why::DiskStalled, outcome: Known::NotProposed }));
    assert!(stalled(first.put("refused", "v").await.map(drop)));
    assert!(stalled(first.consensus.read_barrier(LONG).await));
    assert!(first.get("meanwhile").is_none(), "nothing is applied that this disk does not hold");
    cluster.pump.hang(false);
    cluster.stall.write_ended();
    eventually("it follows", || first.get("meanwhile").is_some()).await;
    assert!(first.get("refused").is_none());
    cluster.stop().await;
}

/// A leader that lost its lead hears late what others had answered before: that it commits by the first of these
/// answers, and tells the others so, must not make of the second one an answer to what it told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_come_late_confirm_no_leader() {
    let cluster = Cluster::start(None).await;
    let first = &cluster.nodes[&1];
    first.put("k", "old").await.unwrap();
    let last = |id: MemberId| cluster.nodes[&id].consensus.state().last_log;
    let before = last(1);
    eventually("all have it", || (2..=3).all(|id| last(id) == before)).await;
    (2..=3).for_each(|from| cluster.net.hold(Way::Answer { from, to: 1 }));
    let tasks = TaskSet::new();
    let (written, late) = oneshot::channel();
    let old_leader = first.consensus.clone();
    tasks.spawn("late write", async move { drop(written.send(old_leader.propose(&put("late", "v"), LONG).await)) });
    eventually("the others have it", || (2..=3).all(|id| last(id) > before)).await;
    let questions = (2..=3).flat_map(|id| [Way::Question { from: 1, to: id }, Way::Question { from: id, to: 1 }]);
    questions.clone().for_each(|way| cluster.net.hold(way));
    let leader = cluster.leader_among(&[2, 3]).await;
    cluster.nodes[&leader].put("k", "new").await.unwrap();
    let (passed, mut barrier) = oneshot::channel();
    let old_leader = first.consensus.clone();
    tasks.spawn("read", async move { drop(passed.send(old_leader.read_barrier(LONG).await)) });
    let a_moment = Duration::from_millis(50);
    tokio::time::sleep(a_moment).await;
    cluster.net.release(Way::Answer { from: 2, to: 1 });
    eventually("it commits", || first.get("late").is_some()).await;
    tokio::time::sleep(a_moment).await;
    assert!(first.consensus.state().is_leader, "in its own eyes");
    cluster.net.release(Way::Answer { from: 3, to: 1 });
    tokio::time::sleep(a_moment).await;
    if let Ok(Ok(())) = barrier.try_recv() {
        assert_eq!(first.get("k").as_deref(), Some("new"), "a read that was stale");
    }
    questions.for_each(|way| cluster.net.release(way));
    assert!(late.await.unwrap().is_ok());
    while first.consensus.read_barrier(LONG).await.is_err() {}
    assert_eq!(first.get("k").as_deref(), Some("new"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_is_not_taken_is_taken_back() {
    let cluster = Cluster::start(None).await;
    let first = &cluster.nodes[&1];
    first.put("before", "v").await.unwrap();
    // Nobody but the first would stand for election by themselves.
    for id in 2..=3 {
        cluster.nodes[&id].consensus.raft().runtime_config().elect(false);
    }
    *cluster.net.lost_offers.lock() = usize::MAX;
    let term = first.consensus.state().term;
    let moved = first.consensus.change(Change::Lead { to: Some(3) }, LONG).await;
    let refused = matches!(moved, Err(Failure::Unavailable { why: Why::Timeout, outcome: Known::NotProposed }));
    assert!(refused, "{moved:?}");
    let written = first.consensus.propose(&put("after", "v"), Duration::from_secs(10)).await;
    assert!(written.is_ok(), "a transfer that nobody took ended all writes: {written:?}");
    let state = first.consensus.state();
    assert!(state.is_leader && state.term > term, "{state:?}");
    eventually("whom it was offered follows", || cluster.nodes[&3].get("after").is_some()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offer_that_was_lost_is_made_again() {
    let cluster = Cluster::start(None).await;
    let first = &cluster.nodes[&1];
    first.put("before", "v").await.unwrap();
    // One message goes to each of the others, of which one is told that it is not meant.
    *cluster.net.lost_offers.lock() = 2;
    let moved = first.consensus.change(Change::Lead { to: Some(3) }, LONG).await;
    assert!(moved.is_ok(), "{moved:?}");
    assert_eq!(*cluster.net.lost_offers.lock(), 0);
    assert_eq!(cluster.leader_among(&[3]).await, 3);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_is_offered_to_nobody_who_would_not_take_it() {
    let cluster = Cluster::start(None).await;
    let first = &cluster.nodes[&1];
    first.put("before", "v").await.unwrap();
    let term = first.consensus.state().term;
    let leads_on = || {
        let state = first.consensus.state();
        state.is_leader && state.term == term
    };
    // One cannot be reached, the other wants to go itself.
    cluster.net.cut.lock().insert(2);
    cluster.nodes[&3].consensus.leave().await;
    first.consensus.hand_over().await;
    assert!(leads_on());
    let moved = first.consensus.change(Change::Lead { to: Some(2) }, LONG).await;
    assert!(matches!(moved, Err(Failure::Unavailable { why: Why::Timeout, .. })), "{moved:?}");
    assert!(leads_on());
    first.put("after", "v").await.unwrap();
    cluster.net.cut.lock().clear();
    first.consensus.hand_over().await;
    assert_eq!(cluster.leader_among(&[2]).await, 2);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_forsaken_once_no_leader_is_known() {
    let cluster = Cluster::start(None).await;
    let first = &cluster.nodes[&1];
    first.put("before", "v").await.unwrap();
    let mut forsaken = Box::pin(first.consensus.forsaken());
    let patience = first.consensus.options().election_max;
    assert!(tokio::time::timeout(patience * 3, &mut forsaken).await.is_err(), "it leads");
    cluster.net.cut.lock().extend([2, 3]);
    // It leads in its own eyes, and nobody hears it.
    tokio::time::timeout(LONG, forsaken).await.unwrap();
    cluster.net.cut.lock().clear();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lead_is_handed_to_a_voter_that_is_heard() {
    let cluster = Cluster::start(None).await;
    let first = &cluster.nodes[&1];
    first.put("before", "v").await.unwrap();
    eventually("both have it", || (2..=3).all(|id| cluster.nodes[&id].get("before").is_some())).await;
    cluster.net.cut.lock().insert(3);
    eventually("its silence is noticed", || first.consensus.link().heirs() == [2]).await;
    first.consensus.hand_over().await;
    eventually("it leads no more", || !first.consensus.state().is_leader).await;
    assert_eq!(cluster.leader_among(&[2]).await, 2);
    first.put("after", "v").await.unwrap();
    cluster.net.cut.lock().clear();
    cluster.stop().await;
}
