//! `raft::Transport` over gRPC: a stream is one of HTTP/2's, with its own flow control, deadline and end, and the calls
//! of a lane share another (`exchange`).
//!
//! Invariants: at most one set of connections per peer; a refused handshake is logged once, not at
//! every try; dropping the answers of a stream ends its requests too.

use super::codec::{Call, Message, Messages};
use super::door::{EXCHANGE, NOT_YET, lane_path};
use super::exchange::Exchange;
use super::hello::{Hello, Identity, Refusal};
use super::link::{Care, channel, never_sent};
use crate::env::{Clock, Entropy, TaskSet};
use crate::model::limits;
use crate::net::{Patience, Security, root_cause};
use crate::raft::{Lane, Member, MemberId, Peer, Transport, TransportError};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

/// A stream of appends, of a snapshot or of calls opens within this time, whatever its requests are given.
const OPEN_MIN: Duration = Duration::from_secs(2);
/// Connections of a peer that was not called for this long are let go when another is met.
const FORGET: Duration = Duration::from_secs(60);
/// What is left of calls gets, at the end.
const STOP: Duration = Duration::from_secs(1);

/// The time scale of this member's peers.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub security: Security,
    pub election_max: Duration,
}

impl Settings {
    pub(super) fn care(self) -> Care {
        Care {
            security: self.security,
            patience: Patience {
                connect: (self.election_max * 2).max(Duration::from_secs(1)),
                unacknowledged: (self.election_max * 8).max(Duration::from_secs(4)),
            },
            ping_interval: self.election_max.max(Duration::from_millis(200)),
            ping_timeout: (self.election_max * 4).max(Duration::from_secs(2)),
        }
    }
}

/// The calling side of the peer protocol. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PeerTransport(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    me: OnceLock<Identity>,
    settings: Settings,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    /// Those who open the streams of calls and read the answers. Not the node's own: calls go on while it hands the
    /// lead over.
    tasks: TaskSet,
    peers: Mutex<BTreeMap<MemberId, Arc<Connections>>>,
}

#[derive(Debug)]
struct Connections {
    me: Identity,
    peer: Peer,
    hello: MetadataValue<Ascii>,
    append: Line,
    control: Line,
    snapshot: Line,
    used: Mutex<Duration>,
    /// What was last said of it in the log.
    trouble: Mutex<Option<Trouble>>,
}

/// One of the connections.
#[derive(Debug)]
struct Line {
    channel: Channel,
    /// The calls' stream, open or being opened.
    exchange: Mutex<Option<Arc<Exchange>>>,
}

/// Why a peer is not talked to.
#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    Unreachable,
    Refused(String),
}

impl PeerTransport {
    #[must_use]
    pub fn new(settings: Settings, clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        let peers = Mutex::new(BTreeMap::new());
        Self(Arc::new(Inner { me: OnceLock::new(), settings, clock, entropy, tasks: TaskSet::new(), peers }))
    }

    /// Ends what is left of calls.
    pub async fn end(&self) {
        self.0.tasks.stop(STOP).await;
    }

    /// Says who this member is. Before that, nobody is reachable.
    pub fn identify(&self, me: Identity) {
        self.0.me.get_or_init(|| me);
    }
}

impl Inner {
    fn connections(&self, peer: &Peer) -> Result<Arc<Connections>, TransportError> {
        let me = self.me.get().ok_or_else(|| TransportError::Unreachable("this member has no identity yet".into()))?;
        let now = self.clock.monotonic();
        let mut peers = self.peers.lock();
        if let Some(known) = peers.get(&peer.id).filter(|known| known.peer.member == peer.member) {
            *known.used.lock() = now;
            return Ok(known.clone());
        }
        let open = || {
            let made = channel(&peer.member.peer_url, self.settings.care(), self.clock.clone(), self.entropy.clone());
            let channel = made.map_err(TransportError::Unreachable)?;
            Ok(Line { channel, exchange: Mutex::default() })
        };
        let connections = Arc::new(Connections {
            me: *me,
            peer: peer.clone(),
            hello: Hello { from: *me, to: me.expected(peer) }.header(),
            append: open()?,
            control: open()?,
            snapshot: open()?,
            used: Mutex::new(now),
            trouble: Mutex::new(None),
        });
        peers.retain(|_, known| now.saturating_sub(*known.used.lock()) < FORGET);
        peers.insert(peer.id, connections.clone());
        Ok(connections)
    }
}

impl Connections {
    fn line(&self, lane: Lane) -> &Line {
        match lane {
            Lane::Append => &self.append,
            Lane::Control => &self.control,
            Lane::Snapshot => &self.snapshot,
        }
    }

    /// Opens a stream with a peer that is who it is taken for.
    async fn open<E: Message, D: Message>(
        &self,
        line: &Line,
        path: &'static str,
        requests: impl Stream<Item = E> + Send + 'static,
    ) -> Result<Streaming<D>, TransportError> {
        let mut grpc = Grpc::new(line.channel.clone())
            .max_decoding_message_size(limits::PEER_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::PEER_MESSAGE_BYTES_MAX);
        grpc.ready().await.map_err(|error| TransportError::Unreachable(error.to_string()))?;
        let mut request = Request::new(requests);
        Hello::write(&self.hello, request.metadata_mut());
        let answers = grpc.streaming(request, PathAndQuery::from_static(path), Messages::new()).await;
        let answers = answers.map_err(|status| self.failed(&status))?;
        self.check(answers.metadata())?;
        Ok(answers.into_inner())
    }

    /// The stream of a lane's calls, opened if there is none. A task opens it, since whoever asks may not be polled
    /// any more while others wait for the same.
    fn exchange(self: &Arc<Self>, lane: Lane, tasks: &TaskSet) -> Arc<Exchange> {
        let mut known = self.line(lane).exchange.lock();
        if let Some(open) = known.as_ref().filter(|open| !open.has_ended()) {
            return Arc::clone(open);
        }
        let (open, opened) = oneshot::channel();
        let (exchange, calls, reading) = Exchange::new(tasks.stopping(), opened);
        let connections = Arc::clone(self);
        tasks.spawn("calls to a peer", async move {
            let opening = connections.open(connections.line(lane), EXCHANGE, calls);
            let opening = reading.while_wanted(tokio::time::timeout(OPEN_MIN, opening)).await;
            let answers = match opening {
                Some(Ok(Ok(answers))) => answers,
                Some(Ok(Err(TransportError::Unreachable(why) | TransportError::Failed(why)))) => {
                    return reading.end(&why);
                }
                Some(Err(_)) => return reading.end("no answer in time"),
                None => return,
            };
            // They are gone when nobody calls any more, which ends the stream.
            let url = connections.peer.member.peer_url.clone();
            drop(connections);
            open.send(()).ok();
            reading.read(answers, |status| format!("{url}: {}", told(status))).await;
        });
        Arc::clone(known.insert(Arc::new(exchange)))
    }

    async fn call(
        self: &Arc<Self>,
        lane: Lane,
        request: Bytes,
        within: Duration,
        tasks: &TaskSet,
    ) -> Result<Bytes, TransportError> {
        if request.len() > Call::REQUEST_MAX {
            return Err(TransportError::Unreachable(format!("a request of {} bytes is too long", request.len())));
        }
        self.exchange(lane, tasks).call(request, within).await
    }

    /// The peer's own word on who it is.
    fn check(&self, metadata: &MetadataMap) -> Result<(), TransportError> {
        let answered = Hello::read(metadata).and_then(|hello| hello.check(self.me, self.peer.member.incarnation));
        match answered {
            Ok(()) => {
                if self.trouble.lock().take().is_some() {
                    let Member { name, peer_url, .. } = &self.peer.member;
                    tracing::info!(peer = %name, url = %peer_url, "the peer is back");
                }
                Ok(())
            }
            Err(refusal) => Err(self.refused(refusal)),
        }
    }

    fn refused(&self, Refusal(why): Refusal) -> TransportError {
        self.note(Trouble::Refused(why.clone()), &why);
        TransportError::Unreachable(why)
    }

    /// Says what is new, and not at every try.
    fn note(&self, trouble: Trouble, why: &str) {
        let mut last = self.trouble.lock();
        if last.as_ref() == Some(&trouble) {
            return;
        }
        let Member { name, peer_url, .. } = &self.peer.member;
        match &trouble {
            Trouble::Unreachable => tracing::info!(peer = %name, url = %peer_url, "the peer cannot be reached: {why}"),
            Trouble::Refused(_) => {
                tracing::warn!(peer = %name, url = %peer_url, "the peer and this member refuse each other: {why}")
            }
        }
        *last = Some(trouble);
    }

    fn failed(&self, status: &Status) -> TransportError {
        // The peer's door says so before it hands anything on.
        if status.code() == Code::FailedPrecondition && status.message() == NOT_YET {
            return TransportError::Unreachable(NOT_YET.to_owned());
        }
        if status.code() == Code::FailedPrecondition {
            return self.refused(Refusal(status.message().to_owned()));
        }
        // A port that speaks HTTP/2 and something else, such as a client port.
        if status.code() == Code::Unimplemented {
            return self.refused(Refusal::no_member());
        }
        match never_sent(status) {
            Some(why) => {
                self.note(Trouble::Unreachable, &why);
                TransportError::Unreachable(why)
            }
            None => TransportError::Failed(format!("{}: {}", self.peer.member.peer_url, told(status))),
        }
    }

    fn late(&self, timeout: Duration) -> TransportError {
        let url = &self.peer.member.peer_url;
        TransportError::Failed(format!("{url}: no answer within {} ms", timeout.as_millis()))
    }
}

/// What a status says, or what it comes from.
fn told(status: &Status) -> String {
    std::error::Error::source(status).map_or_else(|| status.message().to_owned(), root_cause)
}

impl Transport for PeerTransport {
    fn call(
        &self,
        peer: Peer,
        lane: Lane,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (connections, tasks) = (self.0.connections(&peer), self.0.tasks.clone());
        Box::pin(async move { connections?.call(lane, request, timeout, &tasks).await })
    }

    fn stream(
        &self,
        peer: Peer,
        lane: Lane,
        requests: BoxStream<'static, Bytes>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError>> {
        let connections = self.0.connections(&peer);
        let timeout = if lane == Lane::Control { timeout } else { timeout.max(OPEN_MIN) };
        // HTTP/2 would go on sending requests whose answers nobody takes.
        let given_up = CancellationToken::new();
        let requests = requests.take_until(given_up.clone().cancelled_owned()).boxed();
        let given_up = given_up.drop_guard();
        Box::pin(async move {
            let connections = connections?;
            let opening = connections.open(connections.line(lane), lane_path(lane), requests);
            let opened = tokio::time::timeout(timeout, opening).await;
            let answers = opened.unwrap_or_else(|_| Err(connections.late(timeout)))?;
            let answers = answers.map(move |answer| {
                let _until_dropped = &given_up;
                answer.map_err(|status| connections.failed(&status))
            });
            Ok(answers.boxed())
        })
    }
}
