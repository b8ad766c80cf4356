//! Linearizability of one key by Wing and Gong's search with Lowe's memory of visited states. It
//! trusts nothing the store says of revisions: only values, and the order of calls and returns.
//!
//! Keep a key to some 250 operations: the search is exponential in what overlaps.

use super::op::{Action, Answer, Key, Op};
use std::collections::{BTreeMap, HashSet};

/// More steps than this is no verdict, which fails a run.
const STEPS_MAX: usize = 2_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Linearizable,
    /// No order explains these operations.
    Broken,
    TooHard,
}

/// What an operation does to one key, and what was seen of it.
#[derive(Debug, Clone)]
struct Step {
    call: u64,
    returned: u64,
    effect: Effect,
}

#[derive(Debug, Clone)]
enum Effect {
    Write(String),
    /// With the outcome, if it is known.
    Swap {
        expected: Option<String>,
        value: Option<String>,
        done: Option<bool>,
    },
    Delete {
        found: Option<bool>,
    },
    Add {
        by: i64,
        sum: Option<i64>,
    },
    Read(Option<String>),
}

type Value = Option<String>;

impl Effect {
    /// The state after it, if it can have happened in `state` as seen.
    fn apply(&self, state: &Value) -> Option<Value> {
        match self {
            Self::Write(value) => Some(Some(value.clone())),
            Self::Swap { expected, value, done } => {
                let holds = state == expected;
                let fits = done.is_none_or(|done| done == holds);
                let after = if holds { value.clone().or_else(|| state.clone()) } else { state.clone() };
                fits.then_some(after)
            }
            Self::Delete { found } => found.is_none_or(|found| found == state.is_some()).then_some(None),
            Self::Add { by, sum } => {
                let before = state.as_ref().map_or(Some(0), |text| text.parse::<i64>().ok())?;
                let after = before.checked_add(*by)?;
                sum.is_none_or(|sum| sum == after).then(|| Some(after.to_string()))
            }
            Self::Read(seen) => (seen == state).then(|| state.clone()),
        }
    }
}

/// Checks every key by itself. Transactions count on each key they touch.
pub(crate) fn check(ops: &[Op]) -> Result<usize, (Key, Verdict)> {
    let mut keys: BTreeMap<&Key, Vec<Step>> = BTreeMap::new();
    for op in ops {
        for (key, effect) in effects(op) {
            keys.entry(key).or_default().push(Step { call: op.call, returned: op.returned, effect });
        }
    }
    let count = keys.len();
    for (key, steps) in keys {
        match search(&steps) {
            Verdict::Linearizable => {}
            verdict => return Err((key.clone(), verdict)),
        }
    }
    Ok(count)
}

fn effects(op: &Op) -> Vec<(&Key, Effect)> {
    let unknown = op.answer == Answer::Unknown;
    let refused = matches!(op.answer, Answer::Refused { .. });
    let expected_value = |expected: &Option<(i64, String)>| expected.as_ref().map(|(_, value)| value.clone());
    match (&op.action, &op.answer) {
        (_, Answer::No) | (Action::Read { .. }, Answer::Unknown) => Vec::new(),
        (Action::Read { key }, Answer::Value { version, .. }) => {
            vec![(key, Effect::Read(version.as_ref().map(|(_, value)| value.clone())))]
        }
        (Action::Put { key, value }, _) => vec![(key, Effect::Write(value.clone()))],
        (Action::Cas { key, expected, value }, _) => {
            let (expected, value) = (expected_value(expected), Some(value.clone()));
            vec![(key, Effect::Swap { expected, value, done: (!unknown).then_some(!refused) })]
        }
        (Action::Txn { key, expected, puts }, _) => {
            let condition = Effect::Swap {
                expected: expected_value(expected),
                value: puts.get(key).cloned(),
                done: (!unknown).then_some(!refused),
            };
            let others = puts.iter().filter(|(other, _)| *other != key && !refused);
            others.map(|(key, value)| (key, Effect::Write(value.clone()))).chain([(key, condition)]).collect()
        }
        (Action::Delete { key }, answer) => {
            let found = match answer {
                Answer::Deleted { count, .. } => Some(*count > 0),
                _ => None,
            };
            vec![(key, Effect::Delete { found })]
        }
        (Action::Add { key, by }, answer) => {
            let sum = match answer {
                Answer::Sum { value, .. } => Some(*value),
                _ => None,
            };
            vec![(key, Effect::Add { by: *by, sum })]
        }
        (Action::Read { .. }, answer) => panic!("a read was answered with {answer:?}"),
    }
}

/// Steps in the order of their calls; which are done is a bit set, and with it goes the state.
fn search(steps: &[Step]) -> Verdict {
    let mut steps: Vec<&Step> = steps.iter().collect();
    steps.sort_by_key(|step| step.call);
    let must: usize = steps.iter().filter(|step| step.returned != u64::MAX).count();
    let mut done = vec![false; steps.len()];
    let mut seen: HashSet<(Vec<u64>, Value)> = HashSet::new();
    // Each level: the state before, where to go on looking, and what was taken.
    let mut stack: Vec<(Value, usize, usize)> = Vec::new();
    let (mut state, mut from, mut finished, mut first, mut tried): (Value, usize, usize, usize, usize) =
        (None, 0, 0, 0, 0);
    loop {
        if finished == must {
            return Verdict::Linearizable;
        }
        tried += 1;
        if tried > STEPS_MAX {
            return Verdict::TooHard;
        }
        while first < steps.len() && done[first] {
            first += 1;
        }
        from = from.max(first);
        // Nothing may go before a step that had returned before it was called.
        let horizon = earliest_return(&steps[first..], &done[first..]);
        let next = (from..steps.len()).take_while(|at| steps[*at].call <= horizon).find_map(|at| {
            if done[at] {
                return None;
            }
            let after = steps[at].effect.apply(&state)?;
            done[at] = true;
            let new = seen.insert((bits(&done), after.clone()));
            if !new {
                done[at] = false;
            }
            new.then_some((at, after))
        });
        if let Some((at, after)) = next {
            stack.push((std::mem::replace(&mut state, after), at, first));
            finished += usize::from(steps[at].returned != u64::MAX);
            from = 0;
        } else if let Some((before, at, earlier)) = stack.pop() {
            done[at] = false;
            finished -= usize::from(steps[at].returned != u64::MAX);
            (state, from, first) = (before, at + 1, earlier);
        } else {
            return Verdict::Broken;
        }
    }
}

fn earliest_return(steps: &[&Step], done: &[bool]) -> u64 {
    let mut horizon = u64::MAX;
    for (step, done) in steps.iter().zip(done) {
        if step.call > horizon {
            break;
        }
        if !done {
            horizon = horizon.min(step.returned);
        }
    }
    horizon
}

fn bits(done: &[bool]) -> Vec<u64> {
    done.chunks(64).map(|chunk| chunk.iter().rev().fold(0, |bits, done| bits << 1 | u64::from(*done))).collect()
}
