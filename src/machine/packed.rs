//! An ordered copy-on-write table of small rows, packed tightly: for tables of a million entries.
//!
//! Rows lie in runs, each one allocation of exactly its size; a tree finds the run. A node of that tree
//! keeps room for entries to come, which is why the rows are not in it. Invariants: rows rise within a run
//! and from run to run; no run is empty or longer than `RUN_MAX`; a run is filed under a bound that is not
//! above its first row and above every row before it, except that the first run's may be too high; cloning
//! is O(1), and a change copies one run and the tree's path to it.

use imbl::OrdMap;
use std::cmp::Ordering;
use std::sync::Arc;

/// A change copies a run, so runs are short; each costs about 60 bytes beside its rows.
const RUN_MAX: usize = 32;
/// Shorter ones are joined to a neighbour where that leaves room for growth.
const RUN_MIN: usize = RUN_MAX / 4;
const JOINED_MAX: usize = RUN_MAX * 3 / 4;

pub(super) trait Row: Clone {
    /// Says where rows begin.
    type Bound: Ord + Clone;

    /// The bound at exactly this row.
    fn bound(&self) -> Self::Bound;

    /// A cheap bound above `left` and not above this row.
    fn bound_after(&self, left: &Self) -> Self::Bound;

    fn order(&self, bound: &Self::Bound) -> Ordering;
}

#[derive(Debug, Clone)]
pub(super) struct Packed<T: Row> {
    runs: OrdMap<T::Bound, Arc<[T]>>,
    len: usize,
}

impl<T: Row> Default for Packed<T> {
    fn default() -> Self {
        Self { runs: OrdMap::new(), len: 0 }
    }
}

fn search<T: Row>(run: &[T], bound: &T::Bound) -> Result<usize, usize> {
    run.binary_search_by(|row| row.order(bound))
}

/// A run with `row` before its item at `at`, or instead of it.
fn with<T: Row>(run: &[T], at: usize, row: T, instead: bool) -> Arc<[T]> {
    let (left, right) = run.split_at(at);
    left.iter().cloned().chain([row]).chain(right.iter().skip(usize::from(instead)).cloned()).collect()
}

impl<T: Row> Packed<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, bound: &T::Bound) -> Option<&T> {
        let (_, run) = self.runs.get_prev(bound)?;
        search(run, bound).ok().and_then(|at| run.get(at))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.runs.values().flat_map(|run| run.iter())
    }

    /// Rows that are not below `from`.
    pub(super) fn range(&self, from: T::Bound) -> impl Iterator<Item = &T> {
        let first = self.runs.get_prev(&from).map_or_else(|| from.clone(), |(bound, _)| bound.clone());
        let rows = self.runs.range(first..).flat_map(|(_, run)| run.iter());
        rows.skip_while(move |row| row.order(&from) == Ordering::Less)
    }

    /// Answers the row whose place it takes.
    pub(super) fn insert(&mut self, row: T) -> Option<T> {
        let bound = row.bound();
        let Some((first, run)) = self.runs.get_prev_mut(&bound) else {
            self.insert_lowest(row);
            return None;
        };
        match search(run, &bound) {
            Ok(at) => {
                let old = run[at].clone();
                match Arc::get_mut(run) {
                    Some(rows) => rows[at] = row,
                    None => *run = with(run, at, row, true),
                }
                Some(old)
            }
            Err(at) => {
                self.len += 1;
                if run.len() < RUN_MAX {
                    *run = with(run, at, row, false);
                } else {
                    let (first, run) = (first.clone(), Arc::clone(run));
                    self.split(first, &run, at, row);
                }
                None
            }
        }
    }

    /// A row below all others.
    fn insert_lowest(&mut self, row: T) {
        self.len += 1;
        match self.runs.get_min().cloned() {
            Some((first, run)) if run.len() < RUN_MAX => {
                self.runs.remove(&first);
                self.runs.insert(row.bound(), with(&run, 0, row, false));
            }
            _ => drop(self.runs.insert(row.bound(), [row].into())),
        }
    }

    /// A full run becomes two. Rows that come in rising order leave full runs behind.
    fn split(&mut self, first: T::Bound, run: &[T], at: usize, row: T) {
        let middle = if at == run.len() { at } else { run.len() / 2 };
        let (left, right) = run.split_at(middle);
        let (left, right): (Arc<[T]>, Arc<[T]>) = if at < middle {
            (with(left, at, row, false), right.into())
        } else {
            (left.into(), with(right, at - middle, row, false))
        };
        if let (Some(last), Some(next)) = (left.last(), right.first()) {
            self.runs.insert(next.bound_after(last), Arc::clone(&right));
        }
        self.runs.insert(first, left);
    }

    pub(super) fn remove(&mut self, bound: &T::Bound) -> Option<T> {
        let (first, run) = self.runs.get_prev(bound)?;
        let at = search(run, bound).ok()?;
        let old = run.get(at).cloned()?;
        let first = first.clone();
        let left: Arc<[T]> = run[..at].iter().chain(&run[at + 1..]).cloned().collect();
        self.len -= 1;
        if left.is_empty() {
            self.runs.remove(&first);
        } else {
            self.shrunk(first, left);
        }
        Some(old)
    }

    /// Puts a run that has lost a row back, joined to a neighbour if both are short.
    fn shrunk(&mut self, first: T::Bound, run: Arc<[T]>) {
        if run.len() < RUN_MIN {
            let fits = |(_, other): &(&T::Bound, &Arc<[T]>)| run.len() + other.len() <= JOINED_MAX;
            let owned = |(bound, other): (&T::Bound, &Arc<[T]>)| (bound.clone(), Arc::clone(other));
            let before = self.runs.range(..&first).next_back().filter(fits).map(owned);
            if let Some((bound, before)) = before {
                self.runs.remove(&first);
                self.runs.insert(bound, before.iter().chain(run.iter()).cloned().collect());
                return;
            }
            let next = self.runs.range(&first..).nth(1).filter(fits).map(owned);
            if let Some((bound, next)) = next {
                self.runs.remove(&bound);
                self.runs.insert(first, run.iter().chain(next.iter()).cloned().collect());
                return;
            }
        }
        self.runs.insert(first, run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A key of two parts and a value.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Item((u8, u8), u32);

    impl Row for Item {
        type Bound = (u8, Option<u8>);

        fn bound(&self) -> Self::Bound {
            (self.0.0, Some(self.0.1))
        }

        fn bound_after(&self, left: &Self) -> Self::Bound {
            (self.0.0, (self.0.0 == left.0.0).then_some(self.0.1))
        }

        fn order(&self, bound: &Self::Bound) -> Ordering {
            self.bound().cmp(bound)
        }
    }

    fn assert_sound(packed: &Packed<Item>) {
        let rows: Vec<&Item> = packed.iter().collect();
        assert_eq!(rows.len(), packed.len());
        assert!(rows.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let mut last: Option<&Item> = None;
        for (bound, run) in &packed.runs {
            assert!((1..=RUN_MAX).contains(&run.len()));
            let is_above = last.is_none_or(|last| last.order(bound) == Ordering::Less);
            assert!(is_above && run[0].order(bound) != Ordering::Less);
            last = run.last();
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert((u8, u8), u32),
        Remove((u8, u8)),
        Share,
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = || (0..4_u8, 0..100_u8);
        prop_oneof![
            5 => (key(), any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
            4 => key().prop_map(Step::Remove),
            1 => Just(Step::Share),
        ]
    }

    proptest! {
        #[test]
        fn it_is_an_ordered_map_whose_clones_stay(steps in proptest::collection::vec(step(), 0..1500)) {
            let (mut packed, mut model) = (Packed::default(), BTreeMap::new());
            let mut shared = None;
            for step in steps {
                match step {
                    Step::Insert(key, value) => {
                        let old = packed.insert(Item(key, value)).map(|item| item.1);
                        prop_assert_eq!(old, model.insert(key, value));
                    }
                    Step::Remove(key) => {
                        let old = packed.remove(&(key.0, Some(key.1))).map(|item| item.1);
                        prop_assert_eq!(old, model.remove(&key));
                    }
                    Step::Share => shared = Some((packed.clone(), model.clone())),
                }
            }
            for (packed, model) in shared.into_iter().chain([(packed, model)]) {
                assert_sound(&packed);
                let all: Vec<_> = packed.iter().map(|item| (item.0, item.1)).collect();
                prop_assert_eq!(&all, &model.clone().into_iter().collect::<Vec<_>>());
                for high in 0..5_u8 {
                    for low in [None, Some(0), Some(50)] {
                        let from = (high, low.unwrap_or(0));
                        let bound = (high, low);
                        let found: Vec<_> = packed.range(bound).map(|item| item.0).collect();
                        prop_assert_eq!(found, model.range(from..).map(|(key, _)| *key).collect::<Vec<_>>());
                        let value = low.and_then(|low| model.get(&(high, low)));
                        prop_assert_eq!(packed.get(&bound).map(|item| &item.1), value);
                    }
                }
            }
        }
    }

    #[test]
    fn runs_are_full_after_rising_keys_and_joined_after_removals() {
        let mut packed = Packed::default();
        let keys = || (0..200_u8).flat_map(|high| (0..200_u8).map(move |low| (high, low)));
        for key in keys() {
            packed.insert(Item(key, 0));
        }
        assert_sound(&packed);
        assert_eq!(packed.runs.len(), 40_000 / RUN_MAX);
        for key in keys().filter(|key| key.1 % 16 != 0) {
            packed.remove(&(key.0, Some(key.1)));
        }
        assert_sound(&packed);
        assert!(packed.runs.len() < packed.len() / 4, "{} runs of {} rows", packed.runs.len(), packed.len());
    }
}
