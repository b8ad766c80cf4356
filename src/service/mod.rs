//! The command core (rank 4): the meaning of every operation, for any client. REST and etcd are
//! translators onto it; it is designed for an ideal client and shaped by neither.
//!
//! It validates, admits by bytes, authorises early (apply decides), proposes with a deadline, and
//! reads behind a barrier. Invariants: every write carries a `Caller` and a deadline; every failure
//! says whether the write may have happened. It must not know HTTP, JSON field names or protobuf.

pub mod types;

pub use types::*;

use crate::model::{Failure, Idempotency, Op, RangeOp, RangeReply, Reply, Revision, Txn};
use std::time::Duration;

/// A cheap handle on one member's command core.
#[derive(Debug, Clone)]
pub struct Service {}

impl Service {
    /// Waits for nothing: refuses with `Overloaded` when the bytes in flight would pass the budget.
    /// Hold the permit until the answer has been sent.
    pub fn admit(&self, bytes: usize) -> Result<Admission, Failure> {
        unimplemented!()
    }

    /// Proposes a transaction (a single put, delete, add… is one of one operation).
    pub async fn txn(
        &self,
        context: &Context,
        txn: Txn,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<Reply>, Failure> {
        unimplemented!()
    }

    /// One operation, unconditionally: `txn` with only that one in `success`.
    pub async fn operation(
        &self,
        context: &Context,
        op: Op,
        idempotency: Option<Idempotency>,
    ) -> Result<Answer<Reply>, Failure> {
        self.txn(context, Txn { success: vec![op], ..Txn::default() }, idempotency).await
    }

    pub async fn compact(&self, context: &Context, target: CompactTarget) -> Result<Answer<Revision>, Failure> {
        unimplemented!()
    }

    /// A read as etcd knows it, at the newest or an old revision.
    pub async fn range(
        &self,
        context: &Context,
        read: ReadOptions,
        range: RangeOp,
    ) -> Result<Answer<RangeReply>, Failure> {
        unimplemented!()
    }

    /// One page of a listing (REST's list, NDJSON listings and export page through this).
    pub async fn list(&self, context: &Context, read: ReadOptions, list: ListOp) -> Result<Answer<ListPage>, Failure> {
        unimplemented!()
    }

    /// A key's versions, newest first, deletes included. `None` if it was never seen since compaction.
    pub async fn history(
        &self,
        context: &Context,
        read: ReadOptions,
        request: HistoryOp,
    ) -> Result<Answer<Option<HistoryPage>>, Failure> {
        unimplemented!()
    }

    /// Blocks while the key's mod revision is `known` (`None`: while it does not exist), at most `wait`.
    /// Answers the key's state then: changed, unchanged or missing.
    pub async fn wait_key(
        &self,
        context: &Context,
        read: ReadOptions,
        wait: WaitOp,
    ) -> Result<Answer<RangeReply>, Failure> {
        unimplemented!()
    }

    /// This member's facts, without any barrier.
    pub fn status(&self) -> Status {
        unimplemented!()
    }

    /// The header an answer would carry now, without any barrier.
    pub fn header(&self) -> Header {
        unimplemented!()
    }

    /// The logical state hash: of the newest state, with the applied position it belongs to.
    pub async fn hash(&self, context: &Context, revision: Option<Revision>) -> Result<Answer<HashReply>, Failure> {
        unimplemented!()
    }

    /// A full image of the store as bytes, ending in its SHA-256. Chunks come through a bounded channel.
    pub async fn snapshot(&self, context: &Context) -> Result<Answer<SnapshotStream>, Failure> {
        unimplemented!()
    }

    /// The checks behind `/readyz` and `/health`, in a fixed order.
    pub async fn readiness(&self, timeout: Duration) -> Vec<Check> {
        unimplemented!()
    }

    /// Cancelled when shutdown begins: streams and waits end on it.
    pub fn stopping(&self) -> &tokio_util::sync::CancellationToken {
        unimplemented!()
    }
}
