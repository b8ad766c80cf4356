//! The receiving side: what arrives at the peer port, checked and handed on.
//!
//! Before this member belongs to a cluster only meetings are answered. Invariants: a request that
//! fails the handshake is answered with the reason and reaches nobody; a snapshot whose sender has
//! fallen silent ends; what is not the peer protocol is told so, and said once in the log.

use super::codec::{Answer as Answered, Call, Message, Messages};
use super::hello::{Hello, Identity, Refusal};
use super::quiet::Quiet;
use crate::env::Clock;
use crate::model::limits;
use crate::raft::{Consensus, Lane, MemberId, TransportError};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tonic::body::Body;
use tonic::codegen::http::{self, HeaderValue, StatusCode, header};
use tonic::codegen::{self, BoxStream as AnswerStream, StdError};
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};

/// Calls between members of one cluster, any number of them over one stream.
pub(super) const EXCHANGE: &str = "/tenure.peer.v1.Peer/Exchange";
/// Unary requests between members that are not in one cluster yet.
pub(super) const MEET: &str = "/tenure.peer.v1.Peer/Meet";
const APPEND: &str = "/tenure.peer.v1.Peer/Append";
const CONTROL: &str = "/tenure.peer.v1.Peer/Control";
const SNAPSHOT: &str = "/tenure.peer.v1.Peer/Snapshot";
/// Said by a member that starts: no reason for concern.
pub(super) const NOT_YET: &str = "the member is not ready for its peers yet";
/// A snapshot's next piece must arrive within this time.
const SNAPSHOT_IDLE: Duration = Duration::from_secs(20);

pub(super) fn lane_path(lane: Lane) -> &'static str {
    match lane {
        Lane::Append => APPEND,
        Lane::Control => CONTROL,
        Lane::Snapshot => SNAPSHOT,
    }
}

/// What stands behind the door once this member belongs to a cluster.
pub trait Answerer: Debug + Send + Sync + 'static {
    fn answer(&self, request: Bytes) -> BoxFuture<'static, Result<Bytes, TransportError>>;
    fn answer_stream(
        &self,
        lane: Lane,
        requests: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, TransportError>>;
    /// The incarnation that the membership has of a member; 0 if it is not known.
    fn incarnation(&self, id: MemberId) -> u128;
}

impl Answerer for Consensus {
    fn answer(&self, request: Bytes) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let consensus = self.clone();
        Box::pin(async move { consensus.answer(request).await })
    }

    fn answer_stream(
        &self,
        lane: Lane,
        requests: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, TransportError>> {
        self.answer_stream(lane, requests)
    }

    fn incarnation(&self, id: MemberId) -> u128 {
        self.member(id).map_or(0, |member| member.incarnation)
    }
}

/// Answers a meeting: bytes in, bytes out, or why not.
pub type Meeting = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<Bytes, String>> + Send + Sync>;

/// A cheap handle on the receiving side.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

struct Inner {
    inside: OnceLock<(Identity, Arc<dyn Answerer>)>,
    meeting: Meeting,
    quiet: Quiet,
}

impl Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Door").field("inside", &self.0.inside).finish_non_exhaustive()
    }
}

impl Door {
    #[must_use]
    pub fn new(meeting: Meeting, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { inside: OnceLock::new(), meeting, quiet: Quiet::new(clock) }))
    }

    /// From now on peers of this cluster are let in.
    pub fn open(&self, me: Identity, answerer: Arc<dyn Answerer>) {
        // Opened once, by the node.
        drop(self.0.inside.set((me, answerer)));
    }

    /// Answers one request of the peer port.
    pub async fn handle<B>(self, request: http::Request<B>) -> http::Response<Body>
    where
        B: codegen::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<StdError> + Send,
    {
        let lane = match request.uri().path() {
            EXCHANGE => return grpc::<Answered, Call>().streaming(Exchanges(self), request).await,
            MEET => return grpc::<Bytes, Bytes>().unary(Meetings(self), request).await,
            APPEND => Lane::Append,
            CONTROL => Lane::Control,
            SNAPSHOT => Lane::Snapshot,
            _ => return self.stranger(&request),
        };
        grpc::<Bytes, Bytes>().streaming(Streams { door: self, lane }, request).await
    }

    fn stranger<B>(&self, request: &http::Request<B>) -> http::Response<Body> {
        if self.0.quiet.may_say("a client") {
            let (method, path) = (request.method(), request.uri().path());
            tracing::warn!(%method, path, "a client came to the peer port; clients go to the address of --listen-client");
        }
        let text = "this is the port for other members; clients go to the address of --listen-client\n";
        let mut answer = http::Response::new(Body::new(text.to_owned()));
        *answer.status_mut() = StatusCode::MISDIRECTED_REQUEST;
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        answer
    }

    fn admit(&self, metadata: &MetadataMap) -> Result<Admitted, Status> {
        let Some((me, answerer)) = self.0.inside.get() else {
            return Err(Status::failed_precondition(NOT_YET));
        };
        let admitted = Hello::read(metadata).and_then(|hello| {
            hello.check(*me, answerer.incarnation(hello.from.node_id))?;
            Ok(Admitted { answerer: answerer.clone(), hello: Hello { from: *me, to: hello.from } })
        });
        admitted.map_err(|Refusal(why)| {
            if self.0.quiet.may_say(&why) {
                tracing::warn!("a member was refused at the peer port: {why}");
            }
            Status::failed_precondition(why)
        })
    }
}

struct Admitted {
    answerer: Arc<dyn Answerer>,
    hello: Hello,
}

impl Admitted {
    fn response<T>(&self, message: T) -> Response<T> {
        let mut response = Response::new(message);
        Hello::write(&self.hello.header(), response.metadata_mut());
        response
    }
}

fn grpc<E: Message, D: Message>() -> Grpc<Messages<E, D>> {
    Grpc::new(Messages::new())
        .max_decoding_message_size(limits::PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(limits::PEER_MESSAGE_BYTES_MAX)
}

fn failed(error: &TransportError) -> Status {
    Status::internal(error.to_string())
}

type Answer<T> = BoxFuture<'static, Result<Response<T>, Status>>;

struct Exchanges(Door);

impl StreamingService<Call> for Exchanges {
    type Response = Answered;
    type ResponseStream = AnswerStream<Answered>;
    type Future = Answer<AnswerStream<Answered>>;

    fn call(&mut self, request: Request<Streaming<Call>>) -> Self::Future {
        let admitted = self.0.admit(request.metadata());
        Box::pin(async move {
            let admitted = admitted?;
            let answerer = Arc::clone(&admitted.answerer);
            // A broken request ends the stream with its reason, and so the calls that are still open.
            let answers = request.into_inner().map(move |call| {
                let answerer = Arc::clone(&answerer);
                async move { Ok(answer(answerer, call?).await) }
            });
            let answers = answers.buffer_unordered(limits::PEER_CALLS_MAX);
            let answers: AnswerStream<Answered> = Box::pin(answers);
            Ok(admitted.response(answers))
        })
    }
}

/// Nobody waits for it longer than the call says, so neither does this end.
async fn answer(answerer: Arc<dyn Answerer>, Call { number, within, request }: Call) -> Answered {
    let outcome = match tokio::time::timeout(within, answerer.answer(request)).await {
        Ok(Ok(answer)) if answer.len() > Answered::OUTCOME_MAX => {
            Err(format!("the answer of {} bytes is too long", answer.len()))
        }
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    };
    Answered { number, outcome }
}

struct Meetings(Door);

impl UnaryService<Bytes> for Meetings {
    type Response = Bytes;
    type Future = Answer<Bytes>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let answer = (self.0.0.meeting)(request.into_inner());
        Box::pin(async move { answer.await.map(Response::new).map_err(Status::failed_precondition) })
    }
}

struct Streams {
    door: Door,
    lane: Lane,
}

impl StreamingService<Bytes> for Streams {
    type Response = Bytes;
    type ResponseStream = AnswerStream<Bytes>;
    type Future = Answer<AnswerStream<Bytes>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (admitted, lane) = (self.door.admit(request.metadata()), self.lane);
        Box::pin(async move {
            let admitted = admitted?;
            let idle = (lane == Lane::Snapshot).then_some(SNAPSHOT_IDLE);
            let requests = pieces(request.into_inner(), idle);
            let answers = admitted.answerer.answer_stream(lane, requests);
            let answers = answers.map(|answer| answer.map_err(|error| failed(&error)));
            let answers: AnswerStream<Bytes> = Box::pin(answers);
            Ok(admitted.response(answers))
        })
    }
}

/// The requests of a stream; a broken one, and one that is silent for too long, ends.
fn pieces(requests: Streaming<Bytes>, idle: Option<Duration>) -> BoxStream<'static, Bytes> {
    let next = move |mut requests: Streaming<Bytes>| async move {
        let piece = match idle {
            Some(idle) => tokio::time::timeout(idle, requests.message()).await.ok()?,
            None => requests.message().await,
        };
        piece.ok().flatten().map(|piece| (piece, requests))
    };
    stream::unfold(requests, next).boxed()
}
