//! What members say to each other, as opaque bytes over a `Transport` that others implement.
//!
//! openraft's messages are encoded here and nowhere else, so a transport moves bytes and knows
//! nothing. Invariants: a peer that cannot be reached grants nothing (openraft's default for
//! pre-vote would); appends of one stream are answered in order, and its answers end when it does.

use super::divergence::Verdict;
use super::log_store::LogStore;
use super::members::Change;
use super::snapshots::Stored;
use super::transfer::{self, Purpose};
use super::types::{Member, MemberId, Types, Vote};
use crate::model::{Fault, LogPosition, codec};
#[cfg(feature = "mutants")]
use crate::storage::mutant::{self, Mutant};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use openraft::OptionalSend;
use openraft::alias::{SnapshotOf, WatchReceiverOf};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::base::BoxFuture as RaftFuture;
use openraft::base::BoxStream as RaftStream;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::metrics::RaftServerMetrics;
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption, RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use thiserror::Error;

/// Before a stream of appends that could not be opened is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(50);

/// Kept apart so that a bulk append or a snapshot never delays a heartbeat or a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Append,
    Control,
    Snapshot,
}

#[derive(Debug, Clone, Error)]
pub enum TransportError {
    /// It was certainly not sent, and may be tried again; worth a pause.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// It may have been sent, and whether it was acted on is unknown.
    #[error("{0}")]
    Failed(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub id: MemberId,
    pub member: Member,
}

/// Moves bytes between members. A request's bytes go to the peer's `Consensus::answer` or
/// `Consensus::answer_stream`.
pub trait Transport: Debug + Send + Sync + 'static {
    /// One request and its answer, within `timeout`.
    fn call(
        &self,
        peer: Peer,
        lane: Lane,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>>;

    /// Requests and their answers, in order; the answers end when the requests have ended and been
    /// answered, or at an error. `timeout` bounds a pause, not the stream.
    fn stream(
        &self,
        peer: Peer,
        lane: Lane,
        requests: BoxStream<'static, Bytes>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError>>;
}

/// The transport of a member that has no peers: nobody is reachable.
#[derive(Debug, Default)]
pub struct NoPeers;

impl NoPeers {
    fn unreachable(peer: &Peer) -> TransportError {
        TransportError::Unreachable(format!("this member has no way to reach member {}", peer.id))
    }
}

impl Transport for NoPeers {
    fn call(&self, peer: Peer, _: Lane, _: Bytes, _: Duration) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        Box::pin(async move { Err(Self::unreachable(&peer)) })
    }

    fn stream(
        &self,
        peer: Peer,
        _: Lane,
        _: BoxStream<'static, Bytes>,
        _: Duration,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError>> {
        Box::pin(async move { Err(Self::unreachable(&peer)) })
    }
}

/// One request of `Transport::call`. Times are what is left of a deadline.
#[derive(Serialize, Deserialize)]
pub(crate) enum Call {
    Vote(VoteRequest<Types>),
    PreVote(VoteRequest<Types>),
    TransferLeader(TransferLeaderRequest<Types>),
    /// An append of nothing.
    Heartbeat(AppendEntriesRequest<Types>),
    /// To the leader: answered by `Vec<Answer>`.
    Propose(Vec<Forwarded>),
    /// To the leader: answered by `Result<u64, Failure>`, up to where to apply before reading.
    ReadIndex {
        remaining_ms: u64,
    },
    /// To the leader: a question of a layer above, answered by `Result<Bytes, Failure>`.
    Ask {
        question: Bytes,
        remaining_ms: u64,
    },
    /// Answered by the wall clock in ms.
    WallClock,
    /// To the leader: answered by `Result<MemberId, Failure>`.
    Change {
        change: Change,
        remaining_ms: u64,
    },
    /// To the leader: answered by `Option<Vec<MemberState>>`, none if it does not lead.
    Members,
    /// Answered by `About`.
    About,
    /// Whether that term is the latest heard of: answered by `bool`.
    IsLatestTerm(u64),
    /// To whom the lead is to be offered: answered by whether it would take it.
    WouldLead,
    /// Whether there is such a member: answered by `Option<bool>`, none if the one asked does not lead.
    IsMember(MemberId),
    /// The hash of the state at that entry: answered by `Option<u128>`, none if it is not known.
    StateHash(LogPosition),
    /// What a comparison of states came to: answered by nothing.
    Verdict(Verdict),
    /// A snapshot of at least that entry, please: answered by `Result<(), Failure>` once it was taken over.
    SendImage {
        to: MemberId,
        at_least: u64,
        remaining_ms: u64,
    },
    /// The staged backup of that digest, please: answered by `Result<bool, Failure>`, whether it was there.
    SendStaged {
        to: MemberId,
        digest: [u8; 32],
    },
}

/// A proposal on its way to the leader.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Forwarded {
    pub(crate) remaining_ms: u64,
    /// `codec::encode` of the proposal.
    pub(crate) encoded: Bytes,
}

pub(crate) type Meta = openraft::alias::SnapshotMetaOf<Types>;

/// Where members are reached now. openraft keeps a client for as long as a member is one, and hands
/// it no other address when the member's changes.
#[derive(Clone, Default)]
pub(crate) struct Directory(Arc<OnceLock<ServerMetrics>>);

pub(super) type ServerMetrics = WatchReceiverOf<Types, RaftServerMetrics<Types>>;

impl Directory {
    /// Told once Raft is there.
    pub(crate) fn open(&self, metrics: ServerMetrics) {
        self.0.get_or_init(|| metrics);
    }

    fn find(&self, id: MemberId) -> Option<Member> {
        self.0.get()?.borrow_watched().membership_config.membership().get_node(&id).cloned()
    }
}

#[derive(Clone)]
pub(crate) struct Network {
    transport: Arc<dyn Transport>,
    directory: Directory,
    log: LogStore,
}

impl Network {
    pub(crate) fn new(transport: Arc<dyn Transport>, directory: Directory, log: LogStore) -> Self {
        Self { transport, directory, log }
    }

    fn client(&self, id: MemberId, member: &Member, append_lane: Lane) -> Client {
        let Self { transport, directory, log } = self.clone();
        Client { transport, directory, log, id, member: member.clone(), append_lane, has_renewed: false }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: MemberId, node: &Member) -> Client {
        self.client(target, node, Lane::Append)
    }

    async fn new_heartbeat_client(&mut self, target: MemberId, node: &Member) -> Client {
        self.client(target, node, Lane::Control)
    }

    async fn new_snapshot_client(&mut self, target: MemberId, node: &Member) -> Client {
        self.client(target, node, Lane::Snapshot)
    }
}

pub(crate) struct Client {
    transport: Arc<dyn Transport>,
    directory: Directory,
    log: LogStore,
    id: MemberId,
    /// As it was when the client was made.
    member: Member,
    append_lane: Lane,
    /// Whether a snapshot was written anew for that member. Once is enough, however fast the log grows.
    has_renewed: bool,
}

impl Client {
    fn peer(&self) -> Peer {
        Peer { id: self.id, member: self.directory.find(self.id).unwrap_or_else(|| self.member.clone()) }
    }

    async fn call<T: DeserializeOwned>(&self, call: &Call, timeout: Duration) -> Result<T, RPCError<Types>> {
        let request = codec::encode(call).map_err(broken)?;
        let answer = self.transport.call(self.peer(), Lane::Control, request.into(), timeout);
        codec::decode("peer's answer", &answer.await.map_err(failed)?).map_err(broken)
    }

    /// A call, since openraft opens a stream for each, and every round of a read barrier has some.
    async fn heartbeat(
        &self,
        beat: AppendEntriesRequest<Types>,
        timeout: Duration,
    ) -> Result<StreamAppendResult<Types>, RPCError<Types>> {
        let prev_log_id = beat.prev_log_id;
        match self.call::<AppendEntriesResponse<Types>>(&Call::Heartbeat(beat), timeout).await? {
            AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_) => Ok(Ok(prev_log_id)),
            AppendEntriesResponse::HigherVote(vote) => Ok(Err(StreamAppendError::HigherVote(vote))),
            AppendEntriesResponse::Conflict => match prev_log_id {
                Some(conflict) => Ok(Err(StreamAppendError::Conflict(conflict))),
                None => Err(RPCError::Network(NetworkError::from_string("a conflict with nothing"))),
            },
        }
    }
}

fn broken(fault: Fault) -> RPCError<Types> {
    RPCError::Network(NetworkError::from_string(fault))
}

fn failed(error: TransportError) -> RPCError<Types> {
    match error {
        TransportError::Unreachable(why) => RPCError::Unreachable(Unreachable::from_string(why)),
        TransportError::Failed(why) => RPCError::Network(NetworkError::from_string(why)),
    }
}

impl NetBackoff<Types> for Client {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

impl NetVote<Types> for Client {
    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(&Call::Vote(rpc), option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(&Call::PreVote(rpc), option.soft_ttl()).await
    }
}

impl NetTransferLeader<Types> for Client {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.call(&Call::TransferLeader(req), option.soft_ttl()).await
    }
}

impl NetStreamAppend<Types> for Client {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> RaftFuture<'s, Result<RaftStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>>
    where
        S: futures_util::Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        if self.append_lane == Lane::Control {
            let this = &*self;
            let answers: RaftStream<'s, _> = Box::pin(input.then(move |beat| this.heartbeat(beat, option.hard_ttl())));
            return Box::pin(std::future::ready(Ok(answers)));
        }
        #[cfg(feature = "mutants")]
        let (input, sent) = noted(input);
        // Entries that have been purged since can't be sent any more.
        let log = self.log.clone();
        let gap = Arc::new(AtomicBool::new(false));
        let found = gap.clone();
        let input = input.take_while(move |request| {
            let is_gap = log.is_purged_behind(request.prev_log_id);
            found.fetch_or(is_gap, Ordering::Relaxed);
            std::future::ready(!is_gap)
        });
        // What cannot be encoded ends the stream of requests, and with it that of the answers.
        let requests = input.map(|request| codec::encode(&request).map(Bytes::from));
        let requests = requests.take_while(|request| std::future::ready(request.is_ok()));
        let requests = requests.filter_map(|request| std::future::ready(request.ok())).boxed();
        let answers = self.transport.stream(self.peer(), Lane::Append, requests, option.soft_ttl());
        Box::pin(async move {
            let answers = match answers.await {
                Ok(answers) => answers,
                Err(error) => {
                    // openraft pauses before a request it hands out; here none was taken, so it would
                    // open the next stream at once.
                    tokio::time::sleep(REOPEN_PAUSE).await;
                    return Err(failed(error));
                }
            };
            let answers = answers.map(|answer| {
                codec::decode::<StreamAppendResult<Types>>("peer's answer", &answer.map_err(failed)?).map_err(broken)
            });
            #[cfg(feature = "mutants")]
            if mutant::is_active(Mutant::AckBeforeQuorum) {
                let answers: RaftStream<'s, _> = Box::pin(taken_for_answers(sent, answers));
                return Ok(answers);
            }
            let ended = stream::once(async move {
                let why = "entries to send have been purged";
                gap.load(Ordering::Relaxed).then(|| Err(failed(TransportError::Failed(why.into()))))
            });
            let answers = answers.chain(ended.filter_map(std::future::ready));
            let answers: RaftStream<'s, _> = Box::pin(answers);
            Ok(answers)
        })
    }
}

/// The planted bug: what was sent last, told as soon as it is.
#[cfg(feature = "mutants")]
type Sent = tokio::sync::mpsc::Receiver<Option<super::types::LogId>>;

#[cfg(feature = "mutants")]
fn noted<S>(input: S) -> (impl futures_util::Stream<Item = AppendEntriesRequest<Types>> + Unpin, Sent)
where
    S: futures_util::Stream<Item = AppendEntriesRequest<Types>> + Unpin,
{
    let (note, sent) = tokio::sync::mpsc::channel(1024);
    let input = input.map(move |request: AppendEntriesRequest<Types>| {
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        note.try_send(last).ok();
        request
    });
    (input, sent)
}

/// In place of the peer's answers, which are read and forgotten.
#[cfg(feature = "mutants")]
fn taken_for_answers<'s>(
    sent: Sent,
    answers: impl futures_util::Stream<Item = Result<StreamAppendResult<Types>, RPCError<Types>>> + Send + 's,
) -> impl futures_util::Stream<Item = Result<StreamAppendResult<Types>, RPCError<Types>>> + Send + 's {
    let sent = stream::unfold(sent, |mut sent| async move { Some((Some(Ok(Ok(sent.recv().await?))), sent)) });
    let forgotten = answers.map(|answer| answer.err().map(Err));
    stream::select(sent, forgotten).filter_map(std::future::ready)
}

impl NetSnapshot<Types> for Client {
    type SnapshotData = Stored;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, Stored>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let stored = snapshot.snapshot.clone();
        let what = (snapshot.meta, snapshot.snapshot);
        let exchange = async {
            let offer = transfer::offer(&*self.transport, self.peer(), Purpose::Install(vote), what, option.soft_ttl());
            let offer = offer.await.map_err(failed)?;
            // What broke off is sent on.
            if offer.offset == 0 && !self.has_renewed && stored.lacks_much() {
                drop(offer);
                self.has_renewed = true;
                stored.renew().await;
                // openraft tries again at once, with the newest there is.
                return Err(failed(TransportError::Failed("the log was too long for the snapshot there was".into())));
            }
            offer.send().await.map_err(failed)
        };
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            result = exchange => result.map_err(StreamingError::from),
        }
    }
}
