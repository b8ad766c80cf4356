//! Renewals of leases on their way from this member to the leader, many in one question.
//!
//! One question is under way at a time; whoever comes meanwhile shares the next, so that any number of
//! renewals costs the leader one check of its lead for each question. What takes the leader more than a look
//! (a lease that is ending, or whose renewal is logged) is asked for alone. Invariants: the leader's check
//! begins after each of its renewals was asked for; nobody waits for another's lease. There are never more
//! waiting than there are requests. It must not know what becomes of a lease: the leader alone does.

use super::leader::Question;
use super::{Answer, Context, Service};
use crate::model::{Caller, Failure, LeaseId, Revision, limits};
use parking_lot::Mutex;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long one question may take before those in it ask alone.
const QUESTION_PATIENCE: Duration = Duration::from_secs(1);

/// What those who ask together are told: TTLs in their order, with `None` for whoever has to ask alone, and
/// the revision they were looked up at.
pub(super) type Together = (Vec<Option<u64>>, Revision);

#[derive(Debug, Default)]
pub(super) struct Renewals(Mutex<Gathered>);

#[derive(Debug, Default)]
struct Gathered {
    waiting: Vec<Waiting>,
    /// A task asks, and will ask for all that wait.
    asking: bool,
}

#[derive(Debug)]
struct Waiting {
    caller: Caller,
    id: LeaseId,
    told: oneshot::Sender<Option<(u64, Revision)>>,
}

impl Renewals {
    /// `true`: somebody has to begin asking.
    fn add(&self, waiting: Waiting) -> bool {
        let mut gathered = self.0.lock();
        gathered.waiting.push(waiting);
        !std::mem::replace(&mut gathered.asking, true)
    }

    /// Those of the next question; none, and nobody asks any more.
    fn take(&self) -> Vec<Waiting> {
        let mut gathered = self.0.lock();
        let count = gathered.waiting.len().min(limits::RENEWALS_TOGETHER_MAX);
        gathered.asking = count > 0;
        gathered.waiting.drain(..count).collect()
    }
}

impl Service {
    /// Asks the leader.
    pub(super) async fn keep_alive_elsewhere(&self, context: &Context, id: LeaseId) -> Result<Answer<u64>, Failure> {
        let clock = &self.inner.parts.clock;
        let until = clock.monotonic().saturating_add(context.timeout);
        let (told, answered) = oneshot::channel();
        if self.inner.renewals.add(Waiting { caller: context.caller.clone(), id, told }) {
            let service = self.clone();
            self.inner.parts.tasks.spawn("renewals", async move { service.ask_together().await });
        }
        let (ttl_ms, revision) = match tokio::time::timeout(context.timeout, answered).await {
            Ok(Ok(Some(renewed))) => renewed,
            _ => {
                let timeout = until.saturating_sub(clock.monotonic());
                let question = Question::KeepAlive { caller: context.caller.clone(), id };
                self.ask(timeout, &question).await?
            }
        };
        Ok(self.answer(self.header_at(revision), ttl_ms, false))
    }

    async fn ask_together(&self) {
        loop {
            let waiting = self.inner.renewals.take();
            if waiting.is_empty() {
                return;
            }
            let question = Question::KeepAlives(waiting.iter().map(|one| (one.caller.clone(), one.id)).collect());
            let asked = self.ask::<Together>(QUESTION_PATIENCE, &question);
            let (renewed, revision) = match self.stopping().run_until_cancelled(asked).await {
                Some(Ok(together)) => together,
                // Each learns by itself why.
                Some(Err(_)) | None => (Vec::new(), 0),
            };
            let renewed = renewed.into_iter().chain(std::iter::repeat(None));
            for (one, ttl_ms) in waiting.into_iter().zip(renewed) {
                // Whoever has gone needs no answer.
                one.told.send(ttl_ms.map(|ttl_ms| (ttl_ms, revision))).ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(id: LeaseId) -> Waiting {
        Waiting { caller: Caller::Anonymous, id, told: oneshot::channel().0 }
    }

    fn ids(taken: Vec<Waiting>) -> Vec<LeaseId> {
        taken.into_iter().map(|one| one.id).collect()
    }

    #[test]
    fn one_asks_for_all_who_come_meanwhile() {
        let renewals = Renewals::default();
        assert!(renewals.add(waiting(1)));
        assert_eq!(ids(renewals.take()), [1]);
        assert!(!renewals.add(waiting(2)) && !renewals.add(waiting(3)), "the first still asks");
        assert_eq!(ids(renewals.take()), [2, 3]);
        assert!(renewals.take().is_empty());
        assert!(renewals.add(waiting(4)), "nobody asks any more");
    }

    #[test]
    fn a_question_is_bounded_and_the_rest_comes_next() {
        let renewals = Renewals::default();
        for id in 0..i64::try_from(limits::RENEWALS_TOGETHER_MAX).unwrap() + 1 {
            renewals.add(waiting(id));
        }
        assert_eq!(renewals.take().len(), limits::RENEWALS_TOGETHER_MAX);
        assert_eq!(renewals.take().len(), 1);
    }
}
