//! History that the source forgets while it is copied and followed: what was missed is copied again, and nothing
//! that went meanwhile stays.

use super::{Import, PATIENCE, content, real_etcd};
use crate::support::grpc::{Etcd, delete_op, etcd, put_op};
use crate::support::{Node, eventually};
use rustix::process::{Pid, Signal, kill_process};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// So many that a copy takes several pages, which double from 100 keys on.
const KEYS: usize = 12_800;
/// More than a connection, what stands between it and a watch, and the memory of recent changes hold.
const MISSED: usize = 1_000;
const MISSED_BYTES: usize = 60_000;
/// Of a copy's writes: some pages of them, and far from all.
const LET_THROUGH: usize = 64 << 10;

/// The way to a target, which shuts in the middle of a copy until it is opened.
struct Gate {
    url: String,
    is_shut: watch::Receiver<bool>,
    open: watch::Sender<bool>,
}

impl Gate {
    async fn before(target: &Node) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let ((shut, is_shut), (open, opened)) = (watch::channel(false), watch::channel(false));
        let (shut, sent, target) = (Arc::new(shut), Arc::new(AtomicUsize::new(0)), target.address().to_owned());
        tokio::spawn(async move {
            while let Ok((inside, _)) = listener.accept().await {
                let outside = TcpStream::connect(&target).await.unwrap();
                let (mut from, mut back) = inside.into_split();
                let (mut answers, mut to) = outside.into_split();
                let (shut, sent, mut opened) = (Arc::clone(&shut), Arc::clone(&sent), opened.clone());
                tokio::spawn(async move { tokio::io::copy(&mut answers, &mut back).await });
                tokio::spawn(async move {
                    let mut bytes = vec![0; 16 << 10];
                    while let Ok(count @ 1..) = from.read(&mut bytes).await {
                        if sent.fetch_add(count, Ordering::SeqCst) > LET_THROUGH {
                            shut.send_replace(true);
                            opened.wait_for(|open| *open).await.ok();
                        }
                        if to.write_all(&bytes[..count]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { url, is_shut, open }
    }

    async fn shuts(&mut self) {
        let shut = tokio::time::timeout(PATIENCE, self.is_shut.wait_for(|shut| *shut)).await;
        shut.expect("nothing is copied").unwrap();
    }
}

async fn many(from: &Etcd) {
    for chunk in 0..KEYS / 128 {
        let puts = (0..128).map(|n| put_op(&format!("many/{:06}", chunk * 128 + n), "before", 0));
        from.txn(etcd::TxnRequest { success: puts.collect(), ..Default::default() }).await.unwrap();
    }
}

/// Changes, deletes, and forgets everything before.
async fn churn(from: &Etcd, value: &str, times: usize) {
    let mut revision = 0;
    for n in 0..times {
        revision = from.put(&format!("churned/{n:06}"), value).await;
    }
    let deletes = [delete_op("many/000000"), delete_op("many/012799"), delete_op("many/006000")];
    from.txn(etcd::TxnRequest { success: deletes.into(), ..Default::default() }).await.unwrap();
    from.compact(revision + 1).await.unwrap();
}

async fn is_the_same(from: &Etcd, to: &Etcd) {
    eventually("the copy has caught up", PATIENCE, async || content(to).await == content(from).await).await;
}

async fn while_it_is_copied(address: &str) {
    let target = Node::start().await;
    let (from, to) = (Etcd::at(address).await, Etcd::at(target.address()).await);
    many(&from).await;
    let mut gate = Gate::before(&target).await;
    let mut import = Import::start(address, &gate.url);
    // It waits for its write, and reads the next page only after that.
    gate.shuts().await;
    churn(&from, "1", 20).await;
    gate.open.send_replace(true);
    import.says("compacted what was to be read next: copying again").await;
    import.says("synced at revision").await;
    from.put("after", "1").await;
    is_the_same(&from, &to).await;
    let out = import.cut_over().await;
    assert_eq!(content(&to).await, content(&from).await, "{out}");
}

async fn while_it_is_followed(address: &str) {
    let target = Node::start().await;
    let (from, to) = (Etcd::at(address).await, Etcd::at(target.address()).await);
    many(&from).await;
    let mut import = Import::start(address, &target.url());
    import.says("synced at revision").await;
    let id = Pid::from_raw(i32::try_from(import.child.id().unwrap()).unwrap()).unwrap();
    kill_process(id, Signal::STOP).unwrap();
    churn(&from, &"x".repeat(MISSED_BYTES), MISSED).await;
    kill_process(id, Signal::CONT).unwrap();
    import.says("compacted what was to be read next: copying again").await;
    import.says("synced at revision").await;
    from.put("after", "1").await;
    is_the_same(&from, &to).await;
    let out = import.cut_over().await;
    assert_eq!(content(&to).await, content(&from).await, "{out}");
}

#[tokio::test]
async fn a_copy_begins_again_when_its_revision_is_compacted() {
    let source = Node::start().await;
    while_it_is_copied(source.address()).await;
}

#[tokio::test]
async fn following_begins_again_when_what_comes_next_is_compacted() {
    let source = Node::start().await;
    while_it_is_followed(source.address()).await;
}

#[tokio::test]
async fn a_real_etcd_compacts_meanwhile() {
    for case in 0..2 {
        let Some((_etcd, _data, address)) = real_etcd().await else {
            println!("no etcd is installed: none has compacted");
            return;
        };
        match case {
            0 => while_it_is_copied(&address).await,
            _ => while_it_is_followed(&address).await,
        }
    }
}
