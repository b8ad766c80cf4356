//! What only the leader can answer, asked from any member: the time of leases, and a restore.
//!
//! Invariant: a keep-alive is answered by the member that counts the lease's time, after it has made
//! sure that it leads.

use super::{Context, Service};
use crate::model::{Caller, Failure, LeaseId, Revision, Why, codec};
use crate::raft::LeaderHandler;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Question {
    /// Answered by the TTL and the revision it was looked up at.
    KeepAlive { caller: Caller, id: LeaseId },
    /// What is left of these, in order; answered by `Vec<Option<u64>>`.
    Left(Vec<LeaseId>),
    /// Put this staged backup in the place of the state; answered by the new revision.
    Restore([u8; 32]),
    /// Answered by `Together`.
    KeepAlives(Vec<(Caller, LeaseId)>),
}

impl Service {
    /// Answers the questions of other members while this one leads.
    pub(super) fn answer_as_leader(&self) {
        let service = self.downgrade();
        let handler: LeaderHandler = Arc::new(move |question: Bytes, timeout| {
            let service = service.upgrade();
            Box::pin(async move {
                let service = service.ok_or(Failure::not_proposed(Why::ShuttingDown))?;
                match codec::decode("question to the leader", &question)? {
                    Question::KeepAlive { caller, id } => {
                        let answer = service.keep_alive_here(&Context::new(caller, timeout), id).await?;
                        Ok(codec::encode(&(answer.body, answer.header.revision))?.into())
                    }
                    Question::KeepAlives(asked) => {
                        Ok(codec::encode(&service.keep_alive_together(&asked, timeout).await?)?.into())
                    }
                    Question::Restore(digest) => {
                        let wall_ms = service.inner.parts.clock.wall_ms();
                        let revision = service.inner.parts.consensus.activate(digest, wall_ms).await?;
                        Ok(codec::encode(&revision)?.into())
                    }
                    Question::Left(ids) => {
                        let left: Vec<Option<u64>> = ids.into_iter().map(|id| service.lease_left_ms(id)).collect();
                        Ok(codec::encode(&left)?.into())
                    }
                }
            })
        });
        self.inner.parts.consensus.answer_as_leader(handler);
    }

    pub(super) async fn ask<T: DeserializeOwned>(&self, within: Duration, question: &Question) -> Result<T, Failure> {
        let question = codec::encode(question)?;
        let answer = self.inner.parts.consensus.ask_leader(question.into(), within).await?;
        Ok(codec::decode("answer of the leader", &answer)?)
    }

    pub(super) async fn activate(&self, context: &Context, digest: [u8; 32]) -> Result<Revision, Failure> {
        self.ask(context.timeout, &Question::Restore(digest)).await
    }

    /// What the leader knows to be left of these leases; `None` for one that it does not know.
    pub(super) async fn left_elsewhere(
        &self,
        context: &Context,
        ids: Vec<LeaseId>,
    ) -> Result<Vec<Option<u64>>, Failure> {
        self.ask(context.timeout, &Question::Left(ids)).await
    }
}
