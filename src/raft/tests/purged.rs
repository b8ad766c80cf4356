//! What of the log has been purged is never sent: what begins behind the hole is not what was asked for.

use super::super::log_store::LogStore;
use super::super::network::{Directory, Network};
use super::super::types::{LogBatch, LogId, Types, Vote, log_id};
use super::*;
use crate::model::{LogPosition, codec};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use openraft::EntryPayload;
use openraft::alias::EntryOf;
use openraft::network::{NetStreamAppend, RPCOption, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendError};
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};

fn at(index: u64) -> LogId {
    log_id(LogPosition { term: 1, node: 1, index })
}

fn entry(index: u64) -> EntryOf<Types> {
    let payload = EntryPayload::Normal(LogBatch { bytes: Bytes::from_static(b"x") });
    EntryOf::<Types> { log_id: at(index), payload }
}

/// Thirty entries, of which those up to the twentieth are purged.
async fn purged_log() -> LogStore {
    let (wal, recovered) = open_wal(&SimDisk::new(), &Arc::default(), Threading::Own);
    let mut log = LogStore::new(wal, &recovered).unwrap();
    log.append((0..=30).map(entry).collect::<Vec<_>>(), IOFlushed::noop()).await.unwrap();
    log.purge(at(20)).await.unwrap();
    log
}

#[tokio::test]
async fn a_range_that_begins_behind_the_purged_part_has_no_entries() {
    let mut log = purged_log().await;
    let read = async |log: &mut LogStore, from, to| {
        let entries = log.limited_get_log_entries(from, to).await.unwrap();
        entries.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>()
    };
    eventually_purged(&mut log).await;
    assert_eq!(read(&mut log, 10, 31).await, [] as [u64; 0], "entries from 21 on are not those from 10 on");
    assert_eq!(read(&mut log, 20, 31).await, [] as [u64; 0]);
    assert_eq!(read(&mut log, 21, 31).await, (21..31).collect::<Vec<_>>());
    assert!(log.is_purged_behind(None) && log.is_purged_behind(Some(at(19))));
    assert!(!log.is_purged_behind(Some(at(20))) && !log.is_purged_behind(Some(at(30))));
}

/// The log's writer takes the purge up in its turn.
async fn eventually_purged(log: &mut LogStore) {
    for _ in 0..1000 {
        if log.limited_get_log_entries(20, 21).await.unwrap().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the log is not purged");
}

/// Keeps what it is given to send. Streams get no answers, calls a heartbeat's.
#[derive(Debug, Default)]
struct Sent(Arc<Mutex<Vec<Bytes>>>);

impl Transport for Sent {
    fn call(&self, _: Peer, _: Lane, request: Bytes, _: Duration) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        self.0.lock().push(request);
        let answer = codec::encode(&AppendEntriesResponse::<Types>::Conflict).unwrap();
        Box::pin(async move { Ok(answer.into()) })
    }

    fn stream(
        &self,
        _: Peer,
        _: Lane,
        requests: BoxStream<'static, Bytes>,
        _: Duration,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError>> {
        let sent = self.0.clone();
        let taken = requests.filter_map(move |request| {
            sent.lock().push(request);
            std::future::ready(None)
        });
        Box::pin(async move { Ok(taken.boxed()) })
    }
}

fn append_behind(index: u64) -> AppendEntriesRequest<Types> {
    AppendEntriesRequest {
        vote: Vote::new_committed(1, 1),
        prev_log_id: Some(at(index)),
        entries: Vec::new(),
        leader_commit: None,
    }
}

#[tokio::test]
async fn a_stream_of_appends_ends_with_an_error_before_what_was_purged_and_heartbeats_go_on() {
    let log = purged_log().await;
    let (sent, option) = (Sent::default(), RPCOption::new(LONG));
    let kept = sent.0.clone();
    let mut network = Network::new(Arc::new(sent), Directory::default(), log);
    let requests = || stream::iter([25, 20, 5, 26].map(append_behind)).boxed();

    let mut client = network.new_client(2, &member(2)).await;
    let answers: Vec<_> = client.stream_append(requests(), option.clone()).await.unwrap().collect().await;
    assert_eq!(
        std::mem::take(&mut *kept.lock()).len(),
        2,
        "the third is about entries that are gone, nothing follows it"
    );
    let [Err(error)] = answers.as_slice() else { panic!("{answers:?}") };
    assert!(error.to_string().contains("purged"), "{error}");

    let mut heartbeats = network.new_heartbeat_client(2, &member(2)).await;
    let answers: Vec<_> = heartbeats.stream_append(requests(), option).await.unwrap().collect().await;
    assert_eq!(kept.lock().len(), 4, "heartbeats carry no entries");
    let conflicts = [25, 20, 5, 26].map(|index| Err(StreamAppendError::Conflict(at(index))));
    assert_eq!(answers.into_iter().map(Result::unwrap).collect::<Vec<_>>(), conflicts);
}
