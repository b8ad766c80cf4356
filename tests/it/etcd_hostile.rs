//! Bad input to etcd's door over gRPC: the right status, bounded memory, and nobody else disturbed.

use crate::support::grpc::{Etcd, bytes, etcd, get_op, listing, put_op, said, watching};
use crate::support::{Node, resident_bytes};
use bytes::{BufMut, Bytes, BytesMut};
use etcd::watch_request::RequestUnion;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::{Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::time::Duration;
use tokio::net::TcpStream;
use tonic::Code;

const WAIT: Duration = Duration::from_secs(30);

async fn started() -> (Node, Etcd) {
    let node = Node::start().await;
    let etcd = Etcd::at(node.address()).await;
    (node, etcd)
}

/// A connection without a gRPC library, for what that would not send.
async fn raw(node: &Node) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(node.address()).await.unwrap();
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn call(path: &str, body: Bytes) -> Request<Full<Bytes>> {
    Request::post(format!("http://localhost{path}"))
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(body))
        .unwrap()
}

/// A message in its frame; `claimed` is the length that the frame tells.
fn frame(message: &[u8], claimed: usize) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(claimed).unwrap());
    frame.put_slice(message);
    frame.freeze()
}

/// The status of the call: from the head, or from the trailers.
async fn status(sender: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> i32 {
    let answered = async {
        let answer = sender.send_request(request).await.unwrap();
        let (head, body) = answer.into_parts();
        let body = body.collect().await.unwrap();
        let found = head.headers.get("grpc-status").or_else(|| body.trailers()?.get("grpc-status")).cloned();
        found.expect("a status").to_str().unwrap().parse().unwrap()
    };
    tokio::time::timeout(WAIT, answered).await.expect("an answer")
}

#[tokio::test]
async fn enumerations_out_of_range_are_refused() {
    let (_node, etcd) = started().await;
    for request in [
        etcd::RangeRequest { sort_target: 7, ..listing("/") },
        etcd::RangeRequest { sort_order: -1, ..listing("/") },
        etcd::RangeRequest { sort_target: i32::MAX, sort_order: 1, ..listing("/") },
    ] {
        assert_eq!(said(etcd.range(request.clone()).await).0, Code::InvalidArgument, "{request:?}");
        let op = etcd::RequestOp { request: Some(etcd::request_op::Request::RequestRange(request)) };
        let nested = etcd::TxnRequest { success: vec![op], ..Default::default() };
        assert_eq!(said(etcd.txn(nested).await).0, Code::InvalidArgument);
    }
    for (result, target) in [(9, 0), (0, 9), (-1, 0)] {
        let compare = etcd::Compare { result, target, key: bytes("k"), ..Default::default() };
        let txn = etcd::TxnRequest { compare: vec![compare], ..Default::default() };
        assert_eq!(said(etcd.txn(txn).await).0, Code::InvalidArgument);
    }
    let alarm = etcd::AlarmRequest { action: 9, ..Default::default() };
    assert_eq!(said(etcd.maintenance().alarm(alarm).await).0, Code::InvalidArgument);
    let downgrade = etcd::DowngradeRequest { action: 9, ..Default::default() };
    assert_eq!(said(etcd.maintenance().downgrade(downgrade).await).0, Code::InvalidArgument);
    let mut watch = etcd.watch().await;
    watch.create(etcd::WatchCreateRequest { filters: vec![7, -1], ..watching("/", 0) }).await;
    assert!(watch.next().await.unwrap().created, "an unknown filter filters nothing, as in etcd");
    etcd.put("/a", "1").await;
    assert_eq!(watch.next().await.unwrap().events.len(), 1);
}

#[tokio::test]
async fn unset_members_of_a_choice_are_refused_or_mean_nothing() {
    let (_node, etcd) = started().await;
    let unset = etcd::TxnRequest { success: vec![etcd::RequestOp { request: None }], ..Default::default() };
    assert_eq!(said(etcd.txn(unset).await), (Code::InvalidArgument, "etcdserver: key not found".to_owned()));
    let compare = etcd::Compare { target: 2, key: bytes("missing"), ..Default::default() };
    let txn = etcd::TxnRequest { compare: vec![compare], success: vec![put_op("a", "1", 0)], ..Default::default() };
    assert!(etcd.txn(txn).await.unwrap().succeeded, "a revision that is not given is zero");
    let mut sender = raw(&_node).await;
    // A watch request with nothing in it, and the stream's end.
    let ended = sender.send_request(call("/etcdserverpb.Watch/Watch", frame(&[], 0))).await.unwrap();
    assert_eq!(ended.status(), 200);
}

#[tokio::test]
async fn negative_limits_and_reversed_ranges_are_no_errors() {
    let (_node, etcd) = started().await;
    for key in ["a", "b", "c"] {
        etcd.put(key, "1").await;
    }
    let range =
        |key: &str, end: &str| etcd::RangeRequest { key: bytes(key), range_end: bytes(end), ..Default::default() };
    assert_eq!(etcd.range(etcd::RangeRequest { limit: -5, ..range("a", "z") }).await.unwrap().kvs.len(), 3);
    assert_eq!(etcd.range(etcd::RangeRequest { limit: i64::MIN, ..range("a", "z") }).await.unwrap().kvs.len(), 3);
    assert_eq!(etcd.range(etcd::RangeRequest { revision: -3, ..range("a", "z") }).await.unwrap().kvs.len(), 3);
    let reversed = etcd.range(range("z", "a")).await.unwrap();
    assert_eq!((reversed.kvs.len(), reversed.count), (0, 0));
    let delete = etcd::DeleteRangeRequest { key: bytes("z"), range_end: bytes("a"), ..Default::default() };
    assert_eq!(etcd.kv().delete_range(delete).await.unwrap().into_inner().deleted, 0);
    let mut watch = etcd.watch().await;
    watch.create(etcd::WatchCreateRequest { key: bytes("z"), range_end: bytes("a"), ..Default::default() }).await;
    let refused = watch.next().await.unwrap();
    assert!(refused.created && refused.canceled && refused.watch_id == -1, "{refused:?}");
    assert_eq!(said(etcd.compact(-1).await).0, Code::OutOfRange);
    let grant = etcd::LeaseGrantRequest { ttl: -7, id: -3 };
    assert!(etcd.lease().lease_grant(grant).await.is_err(), "an id is positive");
    assert_eq!(etcd.range(range("a", "z")).await.unwrap().count, 3);
}

#[tokio::test]
async fn broken_frames_and_messages_end_their_call_only() {
    let (node, etcd) = started().await;
    let mut sender = raw(&node).await;
    let bomb = [0xff; 4 << 10];
    let range = "/etcdserverpb.KV/Range";
    let (invalid, unimplemented, unknown, exhausted) = (3, 12, 2, 8);
    // A number that never ends; a length beyond the message; a tag that is none.
    for message in [&bomb[..], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x07], &[0x00], &[0x0f]] {
        let answer = status(&mut sender, call(range, frame(message, message.len()))).await;
        assert!([invalid, unknown, 13].contains(&answer), "{answer} for {:?}", &message[..message.len().min(8)]);
    }
    // A frame that announces 4 GiB, or more than it has.
    let answer = status(&mut sender, call(range, frame(b"", 4_000_000_000))).await;
    assert!([exhausted, 11].contains(&answer), "{answer}");
    let answer = status(&mut sender, call(range, frame(b"abc", 100))).await;
    assert!([invalid, unknown, 13].contains(&answer), "{answer}");
    // Compressed, which was not agreed on.
    let mut compressed = frame(b"", 0).to_vec();
    compressed[0] = 1;
    let answer = status(&mut sender, call(range, compressed.into())).await;
    assert!([invalid, unimplemented, 13].contains(&answer), "{answer}");
    // Nested deeper than anybody means.
    let mut nested = Vec::new();
    for _ in 0..200 {
        let mut outer = vec![0x22];
        put_varint(&mut outer, nested.len());
        outer.extend_from_slice(&nested);
        let mut txn = vec![0x12];
        put_varint(&mut txn, outer.len());
        txn.extend_from_slice(&outer);
        nested = txn;
    }
    let answer = status(&mut sender, call("/etcdserverpb.KV/Txn", frame(&nested, nested.len()))).await;
    assert!([invalid, unknown, 13].contains(&answer), "{answer}");
    assert!(etcd.range(listing("/")).await.is_ok(), "others go on");
}

fn put_varint(into: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        into.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    into.push(u8::try_from(number).unwrap());
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let (_node, etcd) = started().await;
    let large = etcd::PutRequest { key: bytes("k"), value: vec![0; 1_600_000].into(), ..Default::default() };
    let too_large = (Code::InvalidArgument, "etcdserver: request is too large".to_owned());
    assert_eq!(said(etcd.kv().put(large).await), too_large);
    let huge = etcd::PutRequest { key: vec![b'k'; 1_500_000].into(), ..Default::default() };
    assert!(etcd.kv().put(huge).await.is_ok(), "as in etcd, only the request has a limit");
    let beyond = etcd::PutRequest { key: vec![b'k'; 5 << 20].into(), ..Default::default() };
    assert!([Code::ResourceExhausted, Code::OutOfRange].contains(&said(etcd.kv().put(beyond).await).0));
    let many = etcd::TxnRequest { success: (0..129).map(|n| get_op(&n.to_string())).collect(), ..Default::default() };
    assert_eq!(said(etcd.txn(many).await).1, "etcdserver: too many operations in txn request");
    assert_eq!(said(etcd.range(etcd::RangeRequest::default()).await).1, "etcdserver: key is not provided");
}

#[tokio::test]
async fn a_half_closed_watch_still_listens_and_a_half_closed_keep_alive_ends() {
    let (_node, etcd) = started().await;
    let mut watch = etcd.watch().await;
    watch.create(watching("/", 0)).await;
    assert!(watch.next().await.unwrap().created);
    let mut answers = watch.half_close();
    etcd.put("/a", "1").await;
    let event = tokio::time::timeout(WAIT, answers.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(event.events.len(), 1);
    let lease = etcd.grant(60).await;
    let requests = futures_util::stream::iter([etcd::LeaseKeepAliveRequest { id: lease }]);
    let mut renewed = etcd.lease().lease_keep_alive(requests).await.unwrap().into_inner();
    assert_eq!(renewed.message().await.unwrap().unwrap().ttl, 60);
    assert!(tokio::time::timeout(WAIT, renewed.message()).await.unwrap().unwrap().is_none());
}

#[tokio::test]
async fn ten_thousand_watches_on_one_stream() {
    let (node, etcd) = started().await;
    let mut watch = etcd.watch().await;
    for n in 0..10_000 {
        watch.create(watching(&format!("/{n}/"), 0)).await;
        // What is not read holds up only the one who does not read.
        if n % 16 == 15 {
            for _ in 0..16 {
                assert!(watch.next().await.unwrap().created);
            }
        }
    }
    etcd.put("/9999/a", "1").await;
    etcd.put("/0/a", "1").await;
    let ids = [watch.next().await.unwrap().watch_id, watch.next().await.unwrap().watch_id];
    assert_eq!(ids, [9999, 0]);
    for id in 0..10_000 {
        watch.ask(RequestUnion::CancelRequest(etcd::WatchCancelRequest { watch_id: id })).await;
        let canceled = watch.next().await.unwrap();
        assert!(canceled.canceled && canceled.watch_id == id);
    }
    etcd.put("/1/a", "1").await;
    assert!(watch.is_silent(Duration::from_millis(300)).await);
    let bytes = resident_bytes(node.pid()).unwrap();
    assert!(bytes < 500 << 20, "{bytes} bytes");
}

#[tokio::test]
async fn rapid_resets_and_floods_of_headers_disturb_nobody() {
    let (node, etcd) = started().await;
    etcd.put("/a", "1").await;
    for _ in 0..10 {
        let mut sender = raw(&node).await;
        for _ in 0..500 {
            let answer = sender.send_request(call("/etcdserverpb.KV/Range", frame(&[0x0a, 1, b'a'], 3)));
            // Polled once, so that it is sent, and then dropped: a reset.
            if tokio::time::timeout(Duration::ZERO, answer).await.is_ok_and(|answer| answer.is_err()) {
                break;
            }
        }
    }
    for (count, length) in [(2_000, 10), (10, 20_000)] {
        let mut sender = raw(&node).await;
        let mut flood = call("/etcdserverpb.KV/Range", frame(&[0x0a, 1, b'a'], 3));
        for n in 0..count {
            let name = hyper::header::HeaderName::try_from(format!("x-{n}")).unwrap();
            flood.headers_mut().insert(name, "v".repeat(length).parse().unwrap());
        }
        let answered = tokio::time::timeout(WAIT, sender.send_request(flood)).await.expect("an answer or an end");
        assert!(answered.is_err() || answered.is_ok_and(|answer| answer.status() != 200), "{count} of {length}");
    }
    let answer =
        tokio::time::timeout(Duration::from_secs(5), etcd.range(listing("/"))).await.expect("at once").unwrap();
    assert_eq!(answer.count, 1);
    assert!(resident_bytes(node.pid()).unwrap() < 500 << 20);
}

#[tokio::test]
async fn each_protocol_on_the_others_paths_and_unknown_services() {
    let (node, etcd) = started().await;
    let mut sender = raw(&node).await;
    let unimplemented = 12;
    for path in ["/v1/kv/a", "/", "/nosuch.Service/Call", "/etcdserverpb.KV/NoSuch", "/etcdserverpb.KV", "/v3/kv/range"]
    {
        assert_eq!(status(&mut sender, call(path, frame(&[], 0))).await, unimplemented, "{path}");
    }
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for path in ["/etcdserverpb.KV/Range", "/grpc.health.v1.Health/Check"] {
        let answer = http.post(format!("{}{path}", node.url())).json(&serde_json::json!({"key": "YQ=="})).send();
        assert_eq!(answer.await.unwrap().status(), 404, "{path}");
        let old = http.post(format!("{}{path}", node.url())).header("content-type", "application/grpc").send();
        assert_eq!(old.await.unwrap().status(), 505, "gRPC over HTTP/1.1");
    }
    assert!(etcd.range(listing("/")).await.is_ok());
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let (node, _etcd) = started().await;
    let mut sender = raw(&node).await;
    let health = "/grpc.health.v1.Health/Check";
    assert_eq!(status(&mut sender, call(health, frame(&[], 0))).await, 0);
    let named = b"\x0a\x0fetcdserverpb.KV";
    assert_eq!(status(&mut sender, call(health, frame(named, named.len()))).await, 0);
    let unknown = b"\x0a\x03abc";
    assert_eq!(status(&mut sender, call(health, frame(unknown, unknown.len()))).await, 5);
    for version in ["v1", "v1alpha"] {
        // list_services = 7
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        let answer = sender.send_request(call(&path, frame(b"\x3a\x00", 2))).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        for service in ["etcdserverpb.KV", "etcdserverpb.Watch", "v3lockpb.Lock", "grpc.health.v1.Health"] {
            assert!(body.windows(service.len()).any(|window| window == service.as_bytes()), "{version}: {service}");
        }
    }
}
