//! Both sides over real sockets, with an answerer that notes what reaches it.

use super::*;
use crate::env::{Clock, Entropy, SeededEntropy, SystemClock, TaskSet};
use crate::model::limits;
use crate::net::{Limits, Listener, Security};
use crate::raft::{Lane, Member, MemberId, Peer, Transport, TransportError};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(20);
const N1: Identity = Identity { cluster_id: 0xc1, node_id: 1, incarnation: 0xa1 };
const N2: Identity = Identity { cluster_id: 0xc1, node_id: 2, incarnation: 0xa2 };

/// Answers with what it is asked; `hang` is never answered.
#[derive(Debug, Default)]
struct Echo {
    asked: AtomicUsize,
    ended: Arc<Notify>,
}

impl Answerer for Echo {
    fn answer(&self, request: Bytes) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            match &request[..] {
                b"hang" => std::future::pending().await,
                b"fail" => Err(TransportError::Failed("no".into())),
                _ => Ok(request),
            }
        })
    }

    fn answer_stream(
        &self,
        _: Lane,
        requests: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, TransportError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        /// Tells when the requests are given up.
        struct Told(Arc<Notify>);
        impl Drop for Told {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        let told = Told(self.ended.clone());
        requests
            .map(move |request| {
                let _kept = &told;
                Ok(request)
            })
            .boxed()
    }

    fn incarnation(&self, id: MemberId) -> u128 {
        if id == N1.node_id { N1.incarnation } else { 0 }
    }
}

struct There {
    address: SocketAddr,
    url: String,
    echo: Arc<Echo>,
    door: Door,
    closing: CancellationToken,
    tasks: TaskSet,
}

impl There {
    async fn start() -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into()).await
    }

    async fn start_at(address: SocketAddr) -> Self {
        let meeting: Meeting = Arc::new(|question: Bytes| {
            Box::pin(async move { if question.is_empty() { Err("who?".to_owned()) } else { Ok(question) } })
        });
        let (door, closing, tasks) =
            (Door::new(meeting, Arc::new(SystemClock::new())), CancellationToken::new(), TaskSet::new());
        let listener = Listener::bind(address).await.unwrap();
        let address = listener.address();
        let url = format!("http://{address}");
        let limits = Limits {
            connections_max: 16,
            head_bytes_max: 16 << 10,
            headers_max: 100,
            head_timeout: LONG,
            idle_timeout: LONG,
            stall_timeout: LONG,
        };
        let for_requests = door.clone();
        let handler = move |request| for_requests.clone().handle(request);
        let serving = listener.serve(handler, limits, tasks.clone(), closing.clone(), Duration::ZERO);
        tasks.spawn("door", serving.map(drop));
        Self { address, url, echo: Arc::new(Echo::default()), door, closing, tasks }
    }

    async fn opened() -> Self {
        let there = Self::start().await;
        there.door.open(N2, there.echo.clone());
        there
    }

    /// The member there, as N1 knows it.
    fn peer(&self) -> Peer {
        let member =
            Member { name: "n2".into(), peer_url: self.url.clone(), incarnation: N2.incarnation, ..Member::default() };
        Peer { id: N2.node_id, member }
    }

    fn asked(&self) -> usize {
        self.echo.asked.load(Ordering::SeqCst)
    }

    async fn stop(self) {
        self.closing.cancel();
        assert!(self.tasks.stop(LONG).await);
    }
}

fn settings() -> Settings {
    Settings { security: Security::Plain, election_max: Duration::from_millis(300) }
}

fn outside() -> (Arc<dyn Clock>, Arc<dyn Entropy>) {
    (Arc::new(SystemClock::new()), Arc::new(SeededEntropy::new(1)))
}

fn transport(me: Identity) -> PeerTransport {
    let (clock, entropy) = outside();
    let transport = PeerTransport::new(settings(), clock, entropy);
    transport.identify(me);
    transport
}

async fn call(me: Identity, peer: Peer, what: &'static str) -> Result<Bytes, TransportError> {
    transport(me).call(peer, Lane::Control, Bytes::from_static(what.as_bytes()), LONG).await
}

#[tokio::test]
async fn calls_and_streams_carry_bytes_in_order() {
    let there = There::opened().await;
    let transport = transport(N1);
    for lane in [Lane::Append, Lane::Control, Lane::Snapshot] {
        let answer = transport.call(there.peer(), lane, Bytes::from_static(b"hello"), LONG).await.unwrap();
        assert_eq!(answer, "hello");
        let large = Bytes::from(vec![7; 3 << 20]);
        let pieces = vec![Bytes::from_static(b"one"), large.clone(), Bytes::new(), Bytes::from_static(b"last")];
        let answers = transport.stream(there.peer(), lane, stream::iter(pieces.clone()).boxed(), LONG).await.unwrap();
        // They end by themselves, with the requests.
        let answers: Vec<Bytes> = answers.map(Result::unwrap).collect().await;
        assert!(answers == pieces);
    }
    there.stop().await;
}

#[tokio::test]
async fn a_peer_that_is_not_who_it_is_taken_for_is_refused_and_reaches_nobody() {
    let there = There::opened().await;
    let as_known = there.peer();
    let wiped = Peer { member: Member { incarnation: 9, ..as_known.member.clone() }, ..as_known.clone() };
    let exchanged = Peer { id: 3, ..as_known.clone() };
    for (me, peer, fact) in [
        (Identity { cluster_id: 0xc2, ..N1 }, as_known.clone(), "cluster id differs"),
        (Identity { incarnation: 5, ..N1 }, as_known.clone(), "incarnation differs: member 1"),
        (N1, wiped, "incarnation differs: member 2"),
        (N1, exchanged, "node id differs"),
    ] {
        match call(me, peer.clone(), "hello").await {
            Err(TransportError::Unreachable(why)) => assert!(why.starts_with(fact), "{why}"),
            other => panic!("{fact}: {other:?}"),
        }
        let requests = stream::once(std::future::ready(Bytes::from_static(b"append"))).boxed();
        let opened = transport(me).stream(peer, Lane::Append, requests, LONG).await;
        assert!(matches!(opened.err(), Some(TransportError::Unreachable(_))), "{fact}");
    }
    assert_eq!(there.asked(), 0);
    assert!(call(N1, as_known, "hello").await.is_ok());
    there.stop().await;
}

#[tokio::test]
async fn only_what_was_never_sent_is_called_unreachable() {
    let there = There::opened().await;
    let late = transport(N1).call(there.peer(), Lane::Control, Bytes::from_static(b"hang"), Duration::from_millis(200));
    assert!(matches!(late.await, Err(TransportError::Failed(_))), "it was sent");
    assert_eq!(there.asked(), 1);
    assert!(matches!(call(N1, there.peer(), "fail").await, Err(TransportError::Failed(_))));
    let peer = there.peer();
    there.stop().await;
    let transport = transport(N1);
    for _ in 0..3 {
        let gone = transport.call(peer.clone(), Lane::Control, Bytes::from_static(b"hello"), LONG).await;
        assert!(matches!(gone, Err(TransportError::Unreachable(_))), "{gone:?}");
    }
    let nowhere = Peer { member: Member { peer_url: String::new(), ..peer.member }, ..peer };
    assert!(matches!(call(N1, nowhere, "hello").await, Err(TransportError::Unreachable(_))));
}

#[tokio::test]
async fn calls_that_nobody_waits_for_any_more_are_in_nobody_s_way() {
    let there = There::opened().await;
    let transport = transport(N1);
    let call = |what: &'static str, within| {
        transport.call(there.peer(), Lane::Control, Bytes::from_static(what.as_bytes()), within)
    };
    let hanging: Vec<_> = (0..2 * limits::PEER_CALLS_MAX).map(|_| call("hang", Duration::from_millis(300))).collect();
    let (hanging, answer) = tokio::join!(futures_util::future::join_all(hanging), call("hello", LONG));
    assert!(hanging.iter().all(|late| matches!(late, Err(TransportError::Failed(_)))));
    assert_eq!(answer.unwrap(), "hello");
    there.stop().await;
}

#[tokio::test]
async fn a_member_that_comes_back_is_called_over_a_new_stream() {
    let there = There::opened().await;
    let (address, peer, transport) = (there.address, there.peer(), transport(N1));
    let call = |what: &'static str| transport.call(peer.clone(), Lane::Control, Bytes::from(what), LONG);
    assert_eq!(call("hello").await.unwrap(), "hello");
    let (in_flight, ()) = tokio::join!(call("hang"), async {
        while there.asked() < 2 {
            tokio::task::yield_now().await;
        }
        there.stop().await;
    });
    assert!(matches!(in_flight, Err(TransportError::Failed(_))), "it was sent: {in_flight:?}");
    let gone = call("hello").await;
    assert!(matches!(gone, Err(TransportError::Unreachable(_))), "{gone:?}");
    let there = There::start_at(address).await;
    there.door.open(N2, there.echo.clone());
    let back = async {
        // Connections that fail are paused for.
        while call("hello").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, back).await.unwrap();
    assert_eq!(there.asked(), 1);
    // At the end what is open is told, and the tasks are gone.
    let (in_flight, ()) = tokio::join!(call("hang"), async {
        while there.asked() < 2 {
            tokio::task::yield_now().await;
        }
        transport.end().await;
    });
    assert!(matches!(in_flight, Err(TransportError::Failed(_))), "{in_flight:?}");
    there.stop().await;
}

/// A client that reads nothing keeps a request's future from being polled, with whatever it holds.
#[tokio::test]
async fn a_caller_that_is_not_polled_is_in_nobody_s_way() {
    let there = There::opened().await;
    let transport = transport(N1);
    let call = |what: &'static str| transport.call(there.peer(), Lane::Control, Bytes::from(what), LONG);
    let mut opening = call("first");
    assert!(futures_util::poll!(&mut opening).is_pending());
    let mut queued = call("second");
    assert!(futures_util::poll!(&mut queued).is_pending());
    assert_eq!(tokio::time::timeout(LONG, call("third")).await.unwrap().unwrap(), "third");
    assert_eq!((opening.await.unwrap(), queued.await.unwrap()), (Bytes::from("first"), Bytes::from("second")));
    there.stop().await;
}

#[tokio::test]
async fn what_answers_nothing_was_sent_nothing() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let member = Member { peer_url: format!("http://{}", silent.local_addr().unwrap()), ..Member::default() };
    let (peer, transport) = (Peer { id: 2, member }, transport(N1));
    let call = |ms| transport.call(peer.clone(), Lane::Control, Bytes::from("hello"), Duration::from_millis(ms));
    let (first, second) = tokio::join!(call(50), call(100));
    for late in [first, second] {
        assert!(matches!(late, Err(TransportError::Unreachable(_))), "{late:?}");
    }
}

#[tokio::test]
async fn a_member_that_is_not_ready_is_tried_again() {
    let there = There::start().await;
    let transport = transport(N1);
    let early = transport.call(there.peer(), Lane::Control, Bytes::from_static(b"hello"), LONG).await;
    assert!(matches!(early, Err(TransportError::Unreachable(_))), "{early:?}");
    there.door.open(N2, there.echo.clone());
    assert!(transport.call(there.peer(), Lane::Control, Bytes::from_static(b"hello"), LONG).await.is_ok());
    there.stop().await;
}

#[tokio::test]
async fn dropping_the_answers_ends_the_requests_at_both_ends() {
    let there = There::opened().await;
    let (send, requests) = mpsc::channel(4);
    let requests = stream::unfold(requests, |mut requests| async move { Some((requests.recv().await?, requests)) });
    let mut answers = transport(N1).stream(there.peer(), Lane::Append, requests.boxed(), LONG).await.unwrap();
    send.send(Bytes::from_static(b"one")).await.unwrap();
    assert_eq!(answers.next().await.unwrap().unwrap(), "one");
    drop(answers);
    tokio::time::timeout(LONG, there.echo.ended.notified()).await.expect("the other end gives the requests up");
    tokio::time::timeout(LONG, send.closed()).await.expect("this end gives the requests up");
    there.stop().await;
}

#[tokio::test]
async fn members_meet_before_they_have_a_cluster() {
    let there = There::start().await;
    let ask = async |question: &'static [u8]| {
        let (clock, entropy) = outside();
        meet(&there.url, Bytes::from_static(question), settings(), clock, entropy, LONG).await
    };
    assert_eq!(ask(b"hello").await.unwrap(), "hello");
    assert_eq!(ask(b"").await.unwrap_err(), "who?");
    there.stop().await;
}

/// What a connection of the peer port gets that does not keep to the protocol costs it its request, and nobody else
/// anything.
#[tokio::test]
async fn garbage_and_messages_that_are_too_long_end_a_request_and_nothing_else() {
    use tonic::body::Body;
    use tonic::codegen::{Service, http};
    let there = There::opened().await;
    let (send, requests) = mpsc::channel(4);
    let requests = stream::unfold(requests, |mut requests| async move { Some((requests.recv().await?, requests)) });
    let mut bystander = transport(N1).stream(there.peer(), Lane::Append, requests.boxed(), LONG).await.unwrap();
    let hello = hello::Hello { from: N1, to: N2 }.header();
    let (clock, entropy) = outside();
    let mut raw = link::channel(&there.url, settings().care(), clock, entropy).unwrap();
    let mut refused = async |path: &str, body: &'static str| {
        let request = http::Request::post(format!("{}{path}", there.url)).header("content-type", "application/grpc");
        let request = request.header("tenure-peer", hello.to_str().unwrap()).body(Body::new(body.to_owned())).unwrap();
        std::future::poll_fn(|context| raw.poll_ready(context)).await.unwrap();
        let answer = tokio::time::timeout(LONG, raw.call(request)).await.expect("it is answered").unwrap();
        answer.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned())
    };
    // A frame of two gigabytes, a flag that there is not, and a frame that breaks off.
    for body in ["\0\x7f\x7f\x7f\x7fx", "\x07\0\0\0\x01x", "\0\0\0\x01\0x"] {
        let status = refused(door::MEET, body).await;
        assert!(status.as_deref().is_some_and(|status| status != "0"), "{body:?}: {status:?}");
        refused(door::EXCHANGE, body).await;
        refused(door::lane_path(Lane::Append), body).await;
    }
    // Calls that break off in their number and in their time.
    for body in ["\0\0\0\0\x01x", "\0\0\0\0\x08number 1", "\0\0\0\0\x09number 1x"] {
        refused(door::EXCHANGE, body).await;
    }
    assert_eq!(there.asked(), 4, "only the streams were opened");
    send.send(Bytes::from_static(b"one")).await.unwrap();
    assert_eq!(bystander.next().await.unwrap().unwrap(), "one");
    assert!(call(N1, there.peer(), "hello").await.is_ok());
    drop(bystander);
    there.stop().await;
}

#[tokio::test]
async fn a_port_that_is_not_a_member_s_is_told_apart() {
    let (closing, tasks) = (CancellationToken::new(), TaskSet::new());
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let url = format!("http://{}", listener.address());
    let limits = Limits {
        connections_max: 16,
        head_bytes_max: 16 << 10,
        headers_max: 100,
        head_timeout: LONG,
        idle_timeout: LONG,
        stall_timeout: LONG,
    };
    let handler = |_| async {
        let mut answer = tonic::codegen::http::Response::new(tonic::body::Body::empty());
        *answer.status_mut() = tonic::codegen::http::StatusCode::NOT_FOUND;
        answer
    };
    let serving = listener.serve(handler, limits, tasks.clone(), closing.clone(), Duration::ZERO);
    tasks.spawn("another port", serving.map(drop));
    let member = Member { peer_url: url.clone(), ..Member::default() };
    match call(N1, Peer { id: 2, member }, "hello").await {
        Err(TransportError::Unreachable(why)) => assert!(why.contains("a client port"), "{why}"),
        other => panic!("{other:?}"),
    }
    let (clock, entropy) = outside();
    let met = meet(&url, Bytes::from_static(b"hello"), settings(), clock, entropy, LONG).await;
    assert!(met.as_ref().is_err_and(|why| why.contains("--listen-peer")), "{met:?}");
    closing.cancel();
    assert!(tasks.stop(LONG).await);
}
