//! The failover rule against members that are played by a script.

use super::super::{Kind, Lines};
use super::*;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

/// What a scripted member does with each request in turn.
#[derive(Clone)]
enum Act {
    Answer(&'static str),
    /// Reads the request, then closes without a word.
    HangUp,
    /// Reads the request and stays silent.
    Silence,
}

struct Script {
    endpoint: Endpoint,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn play(acts: &[Act]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (acts, heard) = (acts.to_vec(), Arc::clone(&seen));
        thread::spawn(move || {
            for act in acts {
                let (mut socket, _) = listener.accept().unwrap();
                heard.lock().push(read_request(&mut socket));
                match act {
                    Act::Answer(text) => socket.write_all(text.as_bytes()).unwrap(),
                    Act::HangUp => {}
                    // Until the client gives up and closes.
                    Act::Silence => drop(socket.read(&mut [0]).unwrap_or(0)),
                }
            }
        });
        Self { endpoint, seen }
    }

    fn requests(&self) -> Vec<String> {
        self.seen.lock().clone()
    }
}

/// Head and as much body as it announces.
fn read_request(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let read = socket.read(&mut buffer).unwrap();
        bytes.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let announced =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
            if body.len() >= announced.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
        assert!(read > 0, "the request broke off: {text}");
    }
}

/// An endpoint that refuses connections.
fn closed() -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    Endpoint::parse(&listener.local_addr().unwrap().to_string()).unwrap()
}

const OK: Act = Act::Answer("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nyes");
const NO_LEADER: Act = Act::Answer(concat!(
    "HTTP/1.1 503 x\r\nconnection: close\r\ncontent-type: application/problem+json\r\ncontent-length: 74\r\n\r\n",
    r#"{"code":"no-leader","title":"No leader","applied":"no","retryable":true } "#
));
const OUTCOME_UNKNOWN: Act = Act::Answer(concat!(
    "HTTP/1.1 504 x\r\nconnection: close\r\ncontent-length: 64\r\n\r\n",
    r#"{"code":"outcome-unknown","applied":"unknown","retryable":true} "#
));

fn client(endpoints: &[&Endpoint], timeout: Duration) -> Client {
    let endpoints = endpoints.iter().map(|endpoint| (*endpoint).clone()).collect();
    Client::new(Options { endpoints, timeout, send_timeout: false, credentials: Credentials::default() }).unwrap()
}

fn put() -> Request {
    Request::on_key(Method::Put, "/v1/kv/", b"k").body(Body::Inline(Bytes::from_static(b"v")))
}

fn get() -> Request {
    Request::on_key(Method::Get, "/v1/kv/", b"k")
}

const FIVE_S: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_write_moves_on_when_it_certainly_did_not_happen() {
    let (refusing, taking) = (Script::play(&[NO_LEADER]), Script::play(&[OK, OK]));
    let client = client(&[&closed(), &refusing.endpoint, &taking.endpoint], FIVE_S);
    let answer = client.send(&put()).await.unwrap();
    assert_eq!((answer.status(), &answer.body[..]), (200, &b"yes"[..]));
    assert_eq!(answer.endpoint(), taking.endpoint.base());
    let outcomes: Vec<String> = client.take_attempts().into_iter().map(|attempt| attempt.outcome).collect();
    assert_eq!(outcomes.len(), 3, "{outcomes:?}");
    assert!(outcomes[0].starts_with("cannot reach") && outcomes[1] == "No leader" && outcomes[2] == "status 200");
    // The endpoint that answered is asked first from now on.
    client.send(&put()).await.unwrap();
    assert_eq!((refusing.requests().len(), taking.requests().len()), (1, 2));
    assert!(
        taking.requests()[0].starts_with("PUT /v1/kv/k HTTP/1.1\r\n") && taking.requests()[0].ends_with("\r\n\r\nv")
    );
}

#[tokio::test]
async fn a_write_that_may_have_happened_is_never_sent_again() {
    for act in [OUTCOME_UNKNOWN, Act::HangUp, Act::Silence, Act::Answer("HTTP/1.1 502 x\r\ncontent-length: 0\r\n\r\n")]
    {
        let (first, second) = (Script::play(&[act]), Script::play(&[OK]));
        let client = client(&[&first.endpoint, &second.endpoint], Duration::from_millis(200));
        let error = client.send(&put()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::OutcomeUnknown, "{error}");
        assert_eq!((first.requests().len(), second.requests().len()), (1, 0));
    }
}

#[tokio::test]
async fn a_read_may_always_move_on() {
    for act in [NO_LEADER, Act::HangUp, Act::Silence] {
        let (first, second) = (Script::play(&[act]), Script::play(&[OK]));
        let client = client(&[&first.endpoint, &second.endpoint], Duration::from_millis(200));
        assert_eq!(&client.send(&get()).await.unwrap().body[..], b"yes");
    }
}

#[tokio::test]
async fn a_final_refusal_ends_the_search() {
    let missing = "HTTP/1.1 404 x\r\ncontent-length: 24\r\n\r\n{\"code\":\"key-not-found\"}";
    let (first, second) = (Script::play(&[Act::Answer(missing)]), Script::play(&[OK]));
    let client = client(&[&first.endpoint, &second.endpoint], FIVE_S);
    assert_eq!(client.send(&get()).await.unwrap_err().kind(), Kind::NotFound);
    assert!(second.requests().is_empty());
}

#[tokio::test]
async fn a_members_words_beat_an_unreachable_neighbour() {
    let refusing = Script::play(&[NO_LEADER]);
    let client = client(&[&refusing.endpoint, &closed()], FIVE_S);
    let error = client.send(&put()).await.unwrap_err();
    assert_eq!((error.to_string().as_str(), error.kind()), ("No leader", Kind::Unavailable));
}

#[tokio::test]
async fn nobody_there_is_unavailable() {
    let error = client(&[&closed(), &closed()], FIVE_S).send(&put()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn the_deadline_is_told_when_asked_for() {
    let script = Script::play(&[OK]);
    let options = Options {
        endpoints: vec![script.endpoint.clone()],
        timeout: Duration::from_millis(2500),
        send_timeout: true,
        credentials: Credentials::default(),
    };
    Client::new(options).unwrap().send(&get()).await.unwrap();
    assert!(script.requests()[0].starts_with("GET /v1/kv/k?timeout=2500ms HTTP/1.1"), "{:?}", script.requests());
}

#[tokio::test]
async fn lines_are_cut_across_chunks_and_a_broken_stream_is_an_error() {
    let chunks =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{\"a\r\n5\r\n\":1}\n\r\n7\r\n\n{}\n{}\n\r\n";
    let whole: &'static str = Box::leak(format!("{chunks}0\r\n\r\n").into_boxed_str());
    let script = Script::play(&[Act::Answer(whole), Act::Answer(Box::leak(chunks.to_owned().into_boxed_str()))]);
    let client = client(&[&script.endpoint], FIVE_S);
    let mut lines = Lines::new(client.open(&get().streaming()).await.unwrap());
    for wanted in ["{\"a\":1}", "{}", "{}"] {
        assert_eq!(lines.next().await.unwrap().unwrap(), wanted.as_bytes());
    }
    assert_eq!(lines.next().await.unwrap(), None);
    let client = super::tests::client(&[&script.endpoint], FIVE_S);
    let mut lines = Lines::new(client.open(&get().streaming()).await.unwrap());
    for _ in 0..3 {
        lines.next().await.unwrap().unwrap();
    }
    assert_eq!(lines.next().await.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test]
async fn bodies_come_from_files_when_sent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("value");
    std::fs::write(&path, b"from a file").unwrap();
    let script = Script::play(&[OK]);
    let client = client(&[&script.endpoint], FIVE_S);
    client.send(&put().body(Body::File(path.clone()))).await.unwrap();
    assert!(script.requests()[0].ends_with("\r\n\r\nfrom a file"));
    std::fs::remove_file(&path).unwrap();
    let error = client.send(&put().body(Body::File(path))).await.unwrap_err();
    assert!(matches!(error, Error::Local { .. }), "{error:?}");
}
