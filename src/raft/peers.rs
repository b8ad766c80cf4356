//! The receiving side of the peer protocol: bytes of another member in, bytes of the answer out.
//!
//! What a transport received goes in here, after it has checked who sent it. Invariants: a snapshot
//! is handed to Raft only when it is whole, its digest holds, it is of this cluster, and it fits the
//! vote it came with and what is committed here (openraft panics on one that does not).

use super::consensus::Consensus;
use super::divergence::Standing;
use super::members::Change;
use super::network::{Call, Lane, TransportError};
use super::snapshots::Stored;
use super::transfer::{Head, Purpose, Spool};
use super::types::{MemberId, Types};
use crate::model::{Failure, Fault, Outcome, Why, codec};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use openraft::Snapshot;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError};
use serde::Serialize;
use std::time::Duration;
use tokio::sync::oneshot;

impl Consensus {
    /// Answers one request of a peer's `Transport::call`.
    ///
    /// # Errors
    /// If the request is not understood, or Raft has ended here.
    pub async fn answer(&self, request: Bytes) -> Result<Bytes, TransportError> {
        let call = codec::decode::<Call>("peer's request", &request).map_err(broken)?;
        let is_raft_s = matches!(call, Call::Vote(_) | Call::PreVote(_) | Call::TransferLeader(_) | Call::Heartbeat(_));
        if is_raft_s && self.is_ending() {
            return Err(ended("this member shuts down"));
        }
        match call {
            Call::Vote(vote) => encode(&self.raft().vote(vote).await.map_err(ended)?),
            Call::PreVote(vote) => encode(&self.raft().pre_vote(vote).await.map_err(ended)?),
            Call::TransferLeader(transfer) => {
                encode(&self.raft().handle_transfer_leader(transfer).await.map_err(ended)?)
            }
            Call::Heartbeat(beat) => {
                let response = self.raft().append_entries(beat).await.map_err(ended)?;
                if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                    self.note_leader_heard();
                }
                encode(&response)
            }
            Call::Propose(batch) => encode(&match self.ensure_writable() {
                Ok(()) => self.batcher().propose_while_leading(batch, self.leading()).await,
                Err(failure) => vec![Err(failure); batch.len()],
            }),
            Call::ReadIndex { remaining_ms } => encode(&self.read_index(Duration::from_millis(remaining_ms)).await),
            Call::Ask { question, remaining_ms } => {
                encode(&self.answer_question(question, Duration::from_millis(remaining_ms)).await)
            }
            Call::Change { change, remaining_ms } => {
                encode(&self.change_for_another(change, Duration::from_millis(remaining_ms)).await)
            }
            Call::IsLatestTerm(term) => encode(&(self.link().log.term() <= term)),
            Call::WouldLead => encode(&self.would_lead()),
            Call::IsMember(id) => encode(&self.has_member(id)),
            Call::About => encode(&self.about()),
            Call::Members => encode(&self.member_states_here()),
            Call::StateHash(at) => encode(&self.state_hash_at(at).await),
            Call::Verdict(verdict) => {
                self.take_verdict(&verdict);
                encode(&())
            }
            Call::SendImage { to, at_least, remaining_ms } => {
                encode(&self.send_image(to, at_least, Duration::from_millis(remaining_ms)).await)
            }
            Call::SendStaged { to, digest } => encode(&self.send_staged(to, digest).await),
            Call::WallClock => encode(&self.clock().wall_ms()),
        }
    }

    /// In a task of its own: no other change is begun meanwhile, and answers are polled only while the peer takes them.
    async fn change_for_another(&self, change: Change, within: Duration) -> Result<MemberId, Failure> {
        let (consensus, (done, outcome)) = (self.clone(), oneshot::channel());
        self.tasks().spawn_until_stop("change of members", async move {
            drop(done.send(consensus.change_here(change, within).await));
        });
        outcome
            .await
            .unwrap_or_else(|_| Err(Failure::Unavailable { why: Why::ShuttingDown, outcome: Outcome::Unknown }))
    }

    /// Answers the requests of a peer's `Transport::stream`, in order. The answers end with the
    /// requests, or at the first error.
    #[must_use]
    pub fn answer_stream(
        &self,
        lane: Lane,
        requests: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, TransportError>> {
        match lane {
            Lane::Append | Lane::Control => self.answer_appends(requests),
            Lane::Snapshot => self.answer_snapshot(requests),
        }
    }

    fn answer_appends(&self, requests: BoxStream<'static, Bytes>) -> BoxStream<'static, Result<Bytes, TransportError>> {
        // A request that is not understood ends the stream, as a broken connection would.
        let receiver = self.clone();
        let requests = requests
            .map(|request| codec::decode::<AppendEntriesRequest<Types>>("peer's append", &request))
            .take_while(move |request| std::future::ready(request.is_ok() && !receiver.is_ending()))
            .filter_map(|request| std::future::ready(request.ok()));
        let consensus = self.clone();
        let answers = self.raft().stream_append(requests).map(move |answer| {
            let answer = answer.map_err(ended)?;
            // A conflict is an answer to the leader too; only a sender of an older term is none.
            if !matches!(answer, Err(StreamAppendError::HigherVote(_))) {
                consensus.note_leader_heard();
            }
            encode(&answer)
        });
        answers.boxed()
    }

    /// Two answers: how much of the file is here already, and what became of it.
    fn answer_snapshot(
        &self,
        mut requests: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, TransportError>> {
        let (opening, receiving) = (self.clone(), self.clone());
        let opened = async move {
            let head = requests.next().await.ok_or_else(|| refused("an empty snapshot stream"))?;
            let head: Head = codec::decode("snapshot head", &head).map_err(broken)?;
            let spool = opening.open_spool(&head).await?;
            Ok((head, spool, requests))
        };
        let answers = stream::once(opened).flat_map(move |opened| {
            let (head, spool, requests) = match opened {
                Ok(opened) => opened,
                Err(error) => return stream::once(std::future::ready(Err(error))).boxed(),
            };
            let held = encode(&spool.bytes);
            let receiving = receiving.clone();
            let taken = async move { receiving.receive_snapshot(head, spool, requests).await };
            stream::once(std::future::ready(held)).chain(stream::once(taken)).boxed()
        });
        answers.boxed()
    }

    /// Refuses what would not be taken before any of it is sent.
    async fn open_spool(&self, head: &Head) -> Result<Spool, TransportError> {
        match &head.purpose {
            Purpose::Install(vote) => {
                let Some(last) = head.meta.last_log_id else { return Err(refused("a snapshot of nothing")) };
                let committed = self.raft().metrics().borrow_watched().local_committed;
                if committed.is_some_and(|committed| last > committed && last.index <= committed.index) {
                    return Err(refused("the snapshot contradicts what is committed here"));
                }
                if !vote.committed || last.leader_id > vote.leader_id {
                    return Err(refused("the snapshot is newer than the leader that sends it"));
                }
            }
            Purpose::Repair if self.standing() != Standing::Outvoted => {
                return Err(refused("the state of this member is not to be rebuilt"));
            }
            Purpose::Repair | Purpose::Stage => {}
        }
        self.snapshots().spool(head).await.map_err(broken)
    }

    async fn receive_snapshot(
        &self,
        head: Head,
        spool: Spool,
        requests: BoxStream<'static, Bytes>,
    ) -> Result<Bytes, TransportError> {
        let import = self.snapshots().receive(&head, spool, requests).await.map_err(broken)?;
        match head.purpose {
            Purpose::Install(vote) => {
                let snapshot = Snapshot { meta: head.meta, snapshot: Stored::Received(import.into()) };
                self.note_leader_heard();
                let response: SnapshotResponse<Types> =
                    self.raft().install_full_snapshot(vote, snapshot).await.map_err(ended)?;
                encode(&response)
            }
            Purpose::Repair => encode(&self.take_image(import).await.map_err(broken)?),
            Purpose::Stage => encode(&self.stage_here(*import).await),
        }
    }
}

fn encode(answer: &impl Serialize) -> Result<Bytes, TransportError> {
    codec::encode(answer).map(Bytes::from).map_err(broken)
}

fn broken(fault: Fault) -> TransportError {
    TransportError::Failed(fault.to_string())
}

fn ended(error: impl ToString) -> TransportError {
    TransportError::Failed(error.to_string())
}

fn refused(why: &str) -> TransportError {
    TransportError::Failed(why.into())
}
