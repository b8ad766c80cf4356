//! Reads: a barrier or none, then one immutable view.

use super::{Answer, Consistency, Context, HashReply, Header, ReadOptions, Service, WaitOp, millis, timed_out};
use crate::machine::View;
use crate::model::{
    Failure, HistoryOp, HistoryPage, KeyRange, ListOp, ListPage, RangeOp, RangeReply, Rejection, Revision, Why,
};
use std::time::Duration;

impl Service {
    /// A read as etcd knows it, at the newest or an old revision.
    pub async fn range(
        &self,
        context: &Context,
        read: ReadOptions,
        range: RangeOp,
    ) -> Result<Answer<RangeReply>, Failure> {
        let (header, view) = self.view(context, read).await?;
        let body = view.range(&context.caller, &range)?;
        Ok(self.answer(header, body, false))
    }

    /// One page of a listing (REST's list, NDJSON listings and export page through this).
    pub async fn list(&self, context: &Context, read: ReadOptions, list: ListOp) -> Result<Answer<ListPage>, Failure> {
        let (header, view) = self.view(context, read).await?;
        let body = view.list(&context.caller, &list)?;
        Ok(self.answer(header, body, false))
    }

    /// A key's versions, newest first, deletes included. `None` if it was never seen since compaction.
    pub async fn history(
        &self,
        context: &Context,
        read: ReadOptions,
        request: HistoryOp,
    ) -> Result<Answer<Option<HistoryPage>>, Failure> {
        let (header, view) = self.view(context, read).await?;
        let body = view.history(&context.caller, &request)?;
        Ok(self.answer(header, body, false))
    }

    /// Blocks while the key's mod revision is `known` (`None`: while it does not exist), at most `wait`.
    /// Answers the key's state then: changed, unchanged or missing.
    pub async fn wait_key(
        &self,
        context: &Context,
        read: ReadOptions,
        wait: WaitOp,
    ) -> Result<Answer<RangeReply>, Failure> {
        // Registered before the first look, so that no change falls between.
        let mut changes = self.inner.parts.hub.wait_key(wait.key.clone())?;
        let range = RangeOp::newest(KeyRange::key(wait.key));
        let (mut header, mut view) = self.view(context, read).await?;
        let over = tokio::time::sleep(wait.wait);
        tokio::pin!(over);
        loop {
            let body = view.range(&context.caller, &range)?;
            let unchanged = body.kvs.first().map(|kv| kv.mod_revision) == wait.known;
            if !unchanged || over.is_elapsed() {
                return Ok(self.answer(header, body, false));
            }
            drop(view);
            self.ensure_sound()?;
            tokio::select! {
                running = changes.changed() => if !running {
                    return Err(timed_out(Why::ShuttingDown));
                },
                () = &mut over => {}
            }
            view = self.newest();
            header = self.header_at(view.revision());
        }
    }

    /// The logical state hash of this member's newest applied state.
    pub async fn hash(&self, context: &Context, revision: Option<Revision>) -> Result<Answer<HashReply>, Failure> {
        let read = ReadOptions { consistency: Consistency::Stale { max_staleness: None }, min_revision: revision };
        let (header, view) = self.view(context, read).await?;
        let current = view.revision();
        if let Some(requested) = revision.filter(|requested| *requested != current) {
            let compacted = view.compacted_revision();
            if requested < compacted {
                return Err(Rejection::Compacted { requested, compacted, current }.into());
            }
            let problem = format!("the hash is kept of the newest state only, which is at revision {current}");
            return Err(Rejection::Invalid { field: "revision".to_owned(), problem }.into());
        }
        let body = HashReply {
            hash: format!("{:032x}", view.state_hash()),
            revision: current,
            compacted_revision: view.compacted_revision(),
            applied_index: view.applied().map_or(0, |position| position.index),
        };
        Ok(self.answer(header, body, false))
    }

    /// The view a read is answered from, and the header that goes with it.
    pub(super) async fn view(&self, context: &Context, read: ReadOptions) -> Result<(Header, View), Failure> {
        let staleness_ms = match read.consistency {
            Consistency::Linearizable => {
                self.barrier(context).await?;
                None
            }
            Consistency::Stale { max_staleness } => self.stale(context, max_staleness).await?,
        };
        if let Some(revision) = read.min_revision {
            self.reached(revision, context.timeout).await?;
        }
        let view = self.newest();
        let header = Header { staleness_ms, ..self.header_at(view.revision()) };
        Ok((header, view))
    }

    /// How old this member's state may be; beyond the bound the leader has to confirm it.
    async fn stale(&self, context: &Context, bound: Option<Duration>) -> Result<Option<u64>, Failure> {
        let state = self.inner.parts.consensus.state();
        if !state.recovered {
            // What was read here before a restart may not be applied yet.
            return Err(Failure::not_proposed(Why::NotReady));
        }
        self.ensure_sound()?;
        let age = state.millis_since_leader_heard;
        match bound {
            Some(bound) if age.is_none_or(|age| age > millis(bound)) => match self.barrier(context).await {
                Ok(()) => Ok(Some(0)),
                Err(_) => Err(Failure::not_proposed(Why::TooStale)),
            },
            _ => Ok(age),
        }
    }

    /// Not even a stale answer comes from a state that is known to be wrong.
    pub(super) fn ensure_sound(&self) -> Result<(), Failure> {
        match self.inner.parts.consensus.standing().may_serve() {
            true => Ok(()),
            false => Err(Failure::not_proposed(Why::Diverged)),
        }
    }

    pub(super) async fn reached(&self, revision: Revision, within: Duration) -> Result<(), Failure> {
        let mut applied = self.inner.parts.consensus.applied();
        if applied.borrow_and_update().revision >= revision {
            return Ok(());
        }
        let reached = applied.wait_for(|applied| applied.revision >= revision);
        tokio::select! {
            waited = tokio::time::timeout(within, reached) => match waited {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) => Err(timed_out(Why::ShuttingDown)),
                Err(_) => Err(timed_out(Why::RevisionNotReached)),
            },
            () = self.stopping().cancelled() => Err(timed_out(Why::ShuttingDown)),
        }
    }
}
