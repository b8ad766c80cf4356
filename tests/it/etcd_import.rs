//! `tenure import --from-etcd`: a Tenure member stands for the etcd, which it speaks as; with a real etcd where
//! one is installed.

mod accounts;
mod compaction;

use crate::support::grpc::{Etcd, delete_op, etcd, listing, put_op};
use crate::support::{Data, Node, eventually};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

const PATIENCE: Duration = Duration::from_secs(60);

/// A running import, and what it says on stderr.
struct Import {
    child: Child,
    said: Lines<BufReader<ChildStderr>>,
}

fn import(source: &str, target: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenure"));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("TENURE_ENDPOINTS", target);
    command.args(["import", "--from-etcd", source]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn ended(source: &str, target: &str, args: &[&str]) -> (i32, String, String) {
    let output = tokio::time::timeout(PATIENCE, import(source, target, args).output()).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

impl Import {
    fn start(source: &str, target: &str) -> Self {
        Self::start_with(source, target, &[])
    }

    fn start_with(source: &str, target: &str, args: &[&str]) -> Self {
        let mut child = import(source, target, args).spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, said }
    }

    async fn says(&mut self, text: &str) {
        let mut instead = Vec::new();
        let wait = async {
            while let Some(line) = self.said.next_line().await.unwrap() {
                if line.contains(text) {
                    return true;
                }
                instead.push(line);
            }
            false
        };
        let said = tokio::time::timeout(PATIENCE, wait).await;
        assert_eq!(said, Ok(true), "it says {instead:#?} and not {text:?}");
    }

    async fn cut_over(mut self) -> String {
        let id = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), Signal::TERM).unwrap();
        self.says("cutting over").await;
        // The pipe is read to its end.
        while let Ok(Some(_)) = self.said.next_line().await {}
        let output = tokio::time::timeout(PATIENCE, self.child.wait_with_output()).await.unwrap().unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap()
    }
}

type Content = BTreeMap<Vec<u8>, (Vec<u8>, i64)>;

async fn content(etcd: &Etcd) -> Content {
    let all = etcd::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let kvs = etcd.range(all).await.unwrap().kvs;
    kvs.into_iter().map(|kv| (kv.key.to_vec(), (kv.value.to_vec(), kv.lease))).collect()
}

async fn two() -> (Node, Etcd, Node, Etcd) {
    let (source, target) = (Node::start().await, Node::start().await);
    let (from, to) = (Etcd::at(source.address()).await, Etcd::at(target.address()).await);
    (source, from, target, to)
}

async fn fill(from: &Etcd) -> i64 {
    let lease = from.grant(600).await;
    for n in 0..500 {
        let lease = if n % 10 == 0 { lease } else { 0 };
        let success = vec![put_op(&format!("app/{n:03}"), &format!("value {n}"), lease)];
        from.txn(etcd::TxnRequest { success, ..Default::default() }).await.unwrap();
    }
    let binary =
        etcd::PutRequest { key: vec![0xff, 0, 1].into(), value: vec![0; 300_000].into(), ..Default::default() };
    from.kv().put(binary).await.unwrap();
    lease
}

#[tokio::test]
async fn everything_is_copied_with_its_lease_until_synced() {
    let (source, from, target, to) = two().await;
    let lease = fill(&from).await;
    let unused = from.grant(300).await;
    let (code, out, err) = ended(&source.url(), &target.url(), &["--until-synced"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(
        out.starts_with("cut over at revision 502 of the etcd: 501 keys copied, 0 changes followed, 2 leases"),
        "{out}"
    );
    assert_eq!(content(&to).await, content(&from).await);
    for (id, ttl) in [(lease, 600), (unused, 300)] {
        let left = to.lease().lease_time_to_live(etcd::LeaseTimeToLiveRequest { id, keys: true }).await.unwrap();
        let left = left.into_inner();
        assert_eq!((left.granted_ttl, left.keys.len()), (ttl, if id == lease { 50 } else { 0 }));
    }
}

#[tokio::test]
async fn changes_are_followed_until_the_cut_over() {
    let (source, from, target, to) = two().await;
    fill(&from).await;
    let import = {
        let mut import = Import::start(&source.url(), &target.url());
        import.says("synced at revision").await;
        import
    };
    let short = from.grant(2).await;
    let success = (0..100).map(|n| put_op(&format!("many/{n}"), "1", 0)).chain([put_op("short", "1", short)]);
    from.txn(etcd::TxnRequest { success: success.collect(), ..Default::default() }).await.unwrap();
    from.txn(etcd::TxnRequest { success: vec![delete_op("app/000")], ..Default::default() }).await.unwrap();
    let (key, range_end) = crate::support::grpc::prefix("app/1");
    from.kv().delete_range(etcd::DeleteRangeRequest { key, range_end, ..Default::default() }).await.unwrap();
    eventually("the copy has caught up", PATIENCE, async || content(&to).await == content(&from).await).await;
    eventually("the short lease ends in both", PATIENCE, async || {
        let both = [&from, &to].map(|etcd| async { etcd.range(listing("short")).await.unwrap().count });
        futures_util::future::join_all(both).await == [0, 0]
    })
    .await;
    from.put("last", "words").await;
    let out = import.cut_over().await;
    assert!(out.contains("changes followed"), "{out}");
    assert_eq!(content(&to).await, content(&from).await);
}

#[tokio::test]
async fn a_lease_that_is_renewed_there_lives_on_here() {
    let (source, from, target, to) = two().await;
    let lease = from.grant(3).await;
    from.txn(etcd::TxnRequest { success: vec![put_op("kept", "1", lease)], ..Default::default() }).await.unwrap();
    let mut import = Import::start(&source.url(), &target.url());
    import.says("synced at revision").await;
    for _ in 0..12 {
        let request = futures_util::stream::iter([etcd::LeaseKeepAliveRequest { id: lease }]);
        let mut renewed = from.lease().lease_keep_alive(request).await.unwrap().into_inner();
        assert!(renewed.message().await.unwrap().unwrap().ttl > 0);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(to.range(listing("kept")).await.unwrap().count, 1, "it has ended here");
    }
    import.cut_over().await;
}

#[tokio::test]
async fn a_member_that_restarts_meanwhile_is_waited_for_and_compaction_starts_again() {
    let (source, from, target, to) = two().await;
    fill(&from).await;
    let mut import = Import::start(&source.url(), &target.url());
    import.says("synced at revision").await;
    // It hears nothing while this happens, and then what came between is gone.
    target.pause();
    for n in 0..50 {
        from.put("busy", &n.to_string()).await;
    }
    from.txn(etcd::TxnRequest { success: vec![delete_op("app/001")], ..Default::default() }).await.unwrap();
    target.resume();
    eventually("the copy has caught up", PATIENCE, async || content(&to).await == content(&from).await).await;
    import.cut_over().await;
}

#[tokio::test]
async fn what_is_here_already_is_kept_unless_it_is_to_be_replaced() {
    let (source, from, target, to) = two().await;
    fill(&from).await;
    to.put("mine", "1").await;
    let (code, _, err) = ended(&source.url(), &target.url(), &["--until-synced"]).await;
    assert!(code == 4 && err.contains("there are 1 keys here already") && err.contains("--replace"), "{code} {err}");
    assert_eq!(content(&to).await.len(), 1);
    let (code, _, err) = ended(&source.url(), &target.url(), &["--until-synced", "--replace"]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(content(&to).await, content(&from).await);
}

#[tokio::test]
async fn bad_sources_are_named() {
    let target = Node::start().await;
    let (code, _, err) = ended("http://127.0.0.1:1", &target.url(), &[]).await;
    assert!(code == 7 && err.contains("cannot reach http://127.0.0.1:1"), "{code} {err}");
    let (code, _, err) = ended(&target.url(), &target.url(), &[]).await;
    assert!(code == 2 && err.contains("that is to be imported into"), "{code} {err}");
    let (code, _, err) = ended("ftp://x/y", &target.url(), &[]).await;
    assert!(code == 2 && err.contains("expected HOST:PORT"), "{code} {err}");
    let (code, _, err) = ended("http://127.0.0.1:1", &target.url(), &["--on-conflict", "fail"]).await;
    assert!(code == 2 && err.contains("cannot be used with"), "{code} {err}");
    // A web server that knows nothing of gRPC.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let web = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.ok();
        }
    });
    let (code, _, err) = ended(&web, &target.url(), &[]).await;
    serving.abort();
    assert!(code == 1 && err.contains("does not answer as an etcd does"), "{code} {err}");
}

#[tokio::test]
async fn a_real_etcd_is_copied_and_followed() {
    let Some((_etcd, _data, address)) = real_etcd().await else {
        println!("no etcd is installed: nothing was copied from one");
        return;
    };
    let target = Node::start_with(&Data::fresh(), &[]).await;
    let (from, to) = (Etcd::at(&address).await, Etcd::at(target.address()).await);
    fill(&from).await;
    let mut import = Import::start(&address, &target.url());
    import.says("synced at revision").await;
    for n in 0..20 {
        from.put(&format!("later/{n}"), "1").await;
    }
    from.txn(etcd::TxnRequest { success: vec![delete_op("app/004")], ..Default::default() }).await.unwrap();
    import.cut_over().await;
    assert_eq!(content(&to).await, content(&from).await);
}

/// A process that ends with its handle, its data, and where it listens.
async fn real_etcd() -> Option<(Child, Data, String)> {
    let data = Data::fresh();
    let port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (client, peer) = (format!("http://127.0.0.1:{}", port()), format!("http://127.0.0.1:{}", port()));
    let child = Command::new("etcd")
        .arg("--data-dir")
        .arg(data.path())
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client, "--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let address = client.trim_start_matches("http://").to_owned();
    eventually("etcd is there", PATIENCE, async || {
        let Ok(answer) = reqwest::get(format!("{client}/health")).await else { return false };
        answer.text().await.is_ok_and(|text| text.contains("true"))
    })
    .await;
    Some((child, data, address))
}
