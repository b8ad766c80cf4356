//! The watches of one stream, and what they have said when the client asked how far they are.
//!
//! A round of asking ends when every watch has said that it is at least as far as the store was when the
//! round began; asked again meanwhile, another follows. A watch whose start is still to come says nothing,
//! so that the round waits for it. Clients take the answer as the place where each watch is. So those that are up
//! with the store count as they stand at the end of the round, and if a watch has told of something newer than
//! another has said, all are asked again.

use crate::env::Signal;
use crate::model::Revision;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
pub(super) struct Watches {
    inner: Mutex<Inner>,
    /// The newest revision that a change was told of.
    newest: AtomicI64,
}

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
    /// How many have not answered yet.
    awaited: usize,
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
        self.inner.lock().watches.len()
    }

    /// The id of a new watch: the client's, if it gives one, or the next free; `None` if that is taken.
    pub(super) fn choose(&self, asked: i64) -> Option<i64> {
        let mut inner = self.inner.lock();
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
        let mut inner = self.inner.lock();
        let mut answer = Answer::NotAsked;
        if let Some(round) = &mut inner.round {
            (round.awaited, answer) = (round.awaited + 1, Answer::Awaited);
            bell.ask();
        }
        inner.watches.insert(id, Entry { bell, ended, answer });
    }

    /// Tells a watch to end; the token says when it has.
    pub(super) fn cancel(&self, id: i64) -> Option<CancellationToken> {
        let inner = self.inner.lock();
        let entry = inner.watches.get(&id)?;
        entry.bell.end();
        Some(entry.ended.clone())
    }

    pub(super) fn forget(&self, id: i64) {
        let mut inner = self.inner.lock();
        let was_awaited = inner.watches.remove(&id).is_some_and(|entry| entry.answer == Answer::Awaited);
        if let Some(round) = inner.round.as_mut().filter(|_| was_awaited) {
            round.awaited -= 1;
        }
    }

    /// Begins a round, or has another follow the one under way.
    pub(super) fn ask(&self, revision: Revision) {
        let mut inner = self.inner.lock();
        match &mut inner.round {
            Some(round) => round.again = true,
            None => inner.begin(revision, false),
        }
    }

    pub(super) fn told(&self, id: i64, revision: Revision) -> Told {
        let inner = &mut *self.inner.lock();
        let Some(round) = &mut inner.round else { return Told::NotAsked };
        match inner.watches.get_mut(&id) {
            Some(entry) if entry.answer == Answer::Awaited && revision < round.from => Told::NotYet,
            Some(entry) if entry.answer == Answer::Awaited => {
                entry.answer = Answer::At(revision);
                round.awaited -= 1;
                Told::Noted
            }
            _ => Told::NotAsked,
        }
    }

    /// A change of this revision is told.
    pub(super) fn tell(&self, revision: Revision) {
        self.newest.fetch_max(revision, Ordering::Relaxed);
    }

    /// If the round is over: how far all of them are, of which those that are up with the store are where `standing`
    /// says. It is told once.
    pub(super) fn settled(&self, standing: impl FnOnce() -> (Revision, BTreeSet<i64>)) -> Option<Revision> {
        let mut inner = self.inner.lock();
        let round = inner.round.as_ref().filter(|round| round.awaited == 0 && round.from < Revision::MAX)?;
        let (from, again) = (round.from, round.again);
        let (up, of) = standing();
        let places = inner.watches.iter().filter_map(|(id, entry)| match entry.answer {
            Answer::At(revision) => Some(if of.contains(id) { up.max(revision) } else { revision }),
            Answer::NotAsked | Answer::Awaited => None,
        });
        let least = places.min();
        inner.round = None;
        if least.is_some_and(|least| least < self.newest.load(Ordering::Relaxed)) {
            inner.begin(from, again);
            return None;
        }
        for entry in inner.watches.values_mut() {
            entry.answer = Answer::NotAsked;
        }
        if again {
            // Begun by `again`, once the answer of this round is on its way.
            inner.round = Some(Round { from: Revision::MAX, awaited: 0, again: true });
        }
        Some(least.unwrap_or(from))
    }

    /// Begins the round that was asked for during the one before.
    pub(super) fn again(&self, revision: Revision) {
        let mut inner = self.inner.lock();
        if inner.round.as_ref().is_some_and(|round| round.from == Revision::MAX) {
            inner.begin(revision, false);
        }
    }
}

impl Inner {
    fn begin(&mut self, from: Revision, again: bool) {
        self.round = Some(Round { from, awaited: self.watches.len(), again });
        for entry in self.watches.values_mut() {
            entry.answer = Answer::Awaited;
            entry.bell.ask();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(watches: &Watches) -> Option<Revision> {
        watches.settled(|| (0, BTreeSet::new()))
    }

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
        assert_eq!(settled(&watches), None);
        assert_eq!(watches.told(1, 6), Told::Noted);
        assert_eq!(settled(&watches), Some(6));
        assert_eq!(settled(&watches), None);
    }

    #[test]
    fn asked_again_meanwhile_another_round_follows() {
        let watches = Watches::default();
        add(&watches, 0);
        watches.ask(5);
        watches.ask(6);
        assert_eq!(watches.told(0, 5), Told::Noted);
        assert_eq!(settled(&watches), Some(5));
        assert_eq!(settled(&watches), None);
        watches.again(7);
        assert_eq!(watches.told(0, 6), Told::NotYet);
        assert_eq!(watches.told(0, 7), Told::Noted);
        assert_eq!(settled(&watches), Some(7));
        assert_eq!(settled(&watches), None);
    }

    /// Asked at 5, where the first is; then a change at 7 is told, and the second is there.
    fn overtaken() -> Watches {
        let watches = Watches::default();
        add(&watches, 0);
        add(&watches, 1);
        watches.ask(5);
        assert_eq!(watches.told(0, 5), Told::Noted);
        watches.tell(7);
        assert_eq!(watches.told(1, 7), Told::Noted);
        watches
    }

    #[test]
    fn a_round_that_was_overtaken_by_changes_is_held_again() {
        let watches = overtaken();
        assert_eq!(settled(&watches), None, "5 is before what was told");
        assert_eq!((watches.told(0, 8), watches.told(1, 7)), (Told::Noted, Told::Noted));
        assert_eq!(settled(&watches), Some(7));
        assert_eq!(settled(&watches), None);
    }

    #[test]
    fn who_is_up_with_the_store_counts_as_it_stands_at_the_end() {
        let watches = overtaken();
        assert_eq!(watches.settled(|| (8, [0].into())), Some(7));
    }

    #[test]
    fn without_watches_the_store_itself_is_the_answer() {
        let watches = Watches::default();
        watches.ask(5);
        assert_eq!(settled(&watches), Some(5));
    }

    #[test]
    fn a_watch_that_goes_does_not_hold_up_the_others() {
        let watches = Watches::default();
        add(&watches, 0);
        add(&watches, 1);
        watches.ask(5);
        assert_eq!(watches.told(0, 5), Told::Noted);
        watches.forget(1);
        assert_eq!(settled(&watches), Some(5));
    }
}
