//! The watches of one stream, and what they have said when the client asked how far they are.
//!
//! A round of asking ends when every watch has said that it is at least as far as the store was when the
//! round began; asked again meanwhile, another follows. A watch whose start is still to come says nothing,
//! so that the round waits for it.

use crate::env::Signal;
use crate::model::Revision;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
pub(super) struct Watches(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    watches: BTreeMap<i64, Entry>,
    next: i64,
    round: Option<Round>,
}

/// Rung for a watch that is to say how far it is, or to end.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: Signal,
    ends: AtomicBool,
}

impl Bell {
    pub(super) async fn rung(&self) {
        self.rung.heard().await;
    }

    pub(super) fn ends(&self) -> bool {
        self.ends.load(Ordering::Acquire)
    }

    fn ask(&self) {
        self.rung.give();
    }

    fn end(&self) {
        self.ends.store(true, Ordering::Release);
        self.rung.give();
    }
}

#[derive(Debug)]
struct Entry {
    bell: Arc<Bell>,
    ended: CancellationToken,
    answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    NotAsked,
    Awaited,
    At(Revision),
}

#[derive(Debug)]
struct Round {
    /// The store's revision when it began.
    from: Revision,
    again: bool,
}

/// What a watch's word on its progress was good for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    NotAsked,
    /// It is not as far as the question.
    NotYet,
    Noted,
}

impl Watches {
    pub(super) fn len(&self) -> usize {
        self.0.lock().watches.len()
    }

    /// The id of a new watch: the client's, if it gives one, or the next free; `None` if that is taken.
    pub(super) fn choose(&self, asked: i64) -> Option<i64> {
        let mut inner = self.0.lock();
        if asked != 0 {
            return (!inner.watches.contains_key(&asked)).then_some(asked);
        }
        while inner.watches.contains_key(&inner.next) {
            inner.next += 1;
        }
        inner.next += 1;
        Some(inner.next - 1)
    }

    pub(super) fn add(&self, id: i64, bell: Arc<Bell>, ended: CancellationToken) {
        let mut inner = self.0.lock();
        let answer = if inner.round.is_some() { Answer::Awaited } else { Answer::NotAsked };
        if answer == Answer::Awaited {
            bell.ask();
        }
        inner.watches.insert(id, Entry { bell, ended, answer });
    }

    /// Tells a watch to end; the token says when it has.
    pub(super) fn cancel(&self, id: i64) -> Option<CancellationToken> {
        let inner = self.0.lock();
        let entry = inner.watches.get(&id)?;
        entry.bell.end();
        Some(entry.ended.clone())
    }

    pub(super) fn forget(&self, id: i64) {
        self.0.lock().watches.remove(&id);
    }

    /// Begins a round, or has another follow the one under way.
    pub(super) fn ask(&self, revision: Revision) {
        let mut inner = self.0.lock();
        match &mut inner.round {
            Some(round) => round.again = true,
            None => inner.begin(revision),
        }
    }

    pub(super) fn told(&self, id: i64, revision: Revision) -> Told {
        let mut inner = self.0.lock();
        let Some(from) = inner.round.as_ref().map(|round| round.from) else { return Told::NotAsked };
        match inner.watches.get_mut(&id) {
            Some(entry) if entry.answer == Answer::Awaited && revision < from => Told::NotYet,
            Some(entry) if entry.answer == Answer::Awaited => {
                entry.answer = Answer::At(revision);
                Told::Noted
            }
            _ => Told::NotAsked,
        }
    }

    /// If the round is over: how far all of them are. It is told once.
    pub(super) fn settled(&self) -> Option<Revision> {
        let mut inner = self.0.lock();
        let from = inner.round.as_ref()?.from;
        let mut least = None;
        for entry in inner.watches.values() {
            let Answer::At(revision) = entry.answer else { return None };
            least = Some(least.map_or(revision, |least: Revision| least.min(revision)));
        }
        let again = inner.round.take().is_some_and(|round| round.again);
        for entry in inner.watches.values_mut() {
            entry.answer = Answer::NotAsked;
        }
        if again {
            // Begun by `again`, once the answer of this round is on its way.
            inner.round = Some(Round { from: Revision::MAX, again: true });
        }
        Some(least.unwrap_or(from))
    }

    /// Begins the round that was asked for during the one before.
    pub(super) fn again(&self, revision: Revision) {
        let mut inner = self.0.lock();
        if inner.round.as_ref().is_some_and(|round| round.from == Revision::MAX) {
            inner.begin(revision);
        }
    }
}

impl Inner {
    fn begin(&mut self, from: Revision) {
        self.round = Some(Round { from, again: false });
        for entry in self.watches.values_mut() {
            entry.answer = Answer::Awaited;
            entry.bell.ask();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(watches: &Watches, id: i64) {
        watches.add(id, Arc::default(), CancellationToken::new());
    }

    #[test]
    fn ids_are_the_clients_or_the_next_free() {
        let watches = Watches::default();
        add(&watches, 1);
        assert_eq!(watches.choose(1), None);
        assert_eq!(watches.choose(7), Some(7));
        assert_eq!(watches.choose(0), Some(0));
        assert_eq!(watches.choose(0), Some(2), "one is taken");
    }

    #[test]
    fn a_round_waits_for_all_and_tells_the_least() {
        let watches = Watches::default();
        add(&watches, 0);
        add(&watches, 1);
        assert_eq!(watches.told(0, 9), Told::NotAsked);
        watches.ask(5);
        assert_eq!(watches.told(0, 4), Told::NotYet);
        assert_eq!(watches.told(0, 8), Told::Noted);
        assert_eq!(watches.settled(), None);
        assert_eq!(watches.told(1, 6), Told::Noted);
        assert_eq!(watches.settled(), Some(6));
        assert_eq!(watches.settled(), None);
    }

    #[test]
    fn asked_again_meanwhile_another_round_follows() {
        let watches = Watches::default();
        add(&watches, 0);
        watches.ask(5);
        watches.ask(6);
        assert_eq!(watches.told(0, 5), Told::Noted);
        assert_eq!(watches.settled(), Some(5));
        assert_eq!(watches.settled(), None);
        watches.again(7);
        assert_eq!(watches.told(0, 6), Told::NotYet);
        assert_eq!(watches.told(0, 7), Told::Noted);
        assert_eq!(watches.settled(), Some(7));
        assert_eq!(watches.settled(), None);
    }

    #[test]
    fn without_watches_the_store_itself_is_the_answer() {
        let watches = Watches::default();
        watches.ask(5);
        assert_eq!(watches.settled(), Some(5));
    }

    #[test]
    fn a_watch_that_goes_does_not_hold_up_the_others() {
        let watches = Watches::default();
        add(&watches, 0);
        add(&watches, 1);
        watches.ask(5);
        assert_eq!(watches.told(0, 5), Told::Noted);
        watches.forget(1);
        assert_eq!(watches.settled(), Some(5));
    }
}
