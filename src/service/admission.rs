//! The member's byte budget: what requests and answers in flight may hold together. It waits for
//! nothing and may be resized while running. Invariant: what is taken is given back exactly once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
pub(super) struct Budget {
    taken: AtomicU64,
    limit: AtomicU64,
}

impl Budget {
    pub(super) fn new(limit: u64) -> Self {
        Self { taken: AtomicU64::new(0), limit: AtomicU64::new(limit.max(1)) }
    }

    /// What is taken already stays, even if it is more.
    pub(super) fn resize(&self, limit: u64) {
        self.limit.store(limit.max(1), Ordering::Relaxed);
    }

    /// More than the whole budget asks for all of it, so that nothing is refused for ever.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Option<Admission> {
        let limit = self.limit.load(Ordering::Relaxed);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX).clamp(1, limit);
        let fits = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= limit);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Admission { budget: Arc::clone(self), bytes })
    }
}

/// Holds a share of the member's byte budget until dropped.
#[derive(Debug)]
#[must_use]
pub struct Admission {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_until_something_is_given_back() {
        let budget = Arc::new(Budget::new(100));
        let first = budget.take(60).unwrap();
        assert!(budget.take(41).is_none());
        let second = budget.take(40).unwrap();
        assert!(budget.take(0).is_none(), "nothing is free of charge");
        drop(first);
        let third = budget.take(60).unwrap();
        drop((second, third));
        assert_eq!(budget.taken.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn more_than_everything_waits_its_turn_and_then_goes_alone() {
        let budget = Arc::new(Budget::new(100));
        let small = budget.take(1).unwrap();
        assert!(budget.take(usize::MAX).is_none());
        drop(small);
        let all = budget.take(usize::MAX).unwrap();
        assert!(budget.take(1).is_none());
        drop(all);
        assert!(budget.take(100).is_some());
    }

    #[test]
    fn a_smaller_budget_takes_nothing_away_and_a_larger_one_gives_at_once() {
        let budget = Arc::new(Budget::new(100));
        let held = budget.take(80).unwrap();
        budget.resize(50);
        assert!(budget.take(1).is_none());
        budget.resize(200);
        let more = budget.take(120).unwrap();
        budget.resize(50);
        drop((held, more));
        assert!(budget.take(50).is_some());
    }
}
