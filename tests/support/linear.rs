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
    /// It may also never have happened.
    optional: bool,
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
        let optional = op.answer == Answer::Unknown;
        for (key, effect) in effects(op) {
            keys.entry(key).or_default().push(Step { call: op.call, returned: op.returned, optional, effect });
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
        (_, Answer::No) | (Action::StaleRead { .. }, _) => Vec::new(),
        (action, Answer::Unknown) if action.is_read() => Vec::new(),
        (Action::ReadMany { .. }, Answer::Values { versions, .. }) => {
            let seen = |version: &Option<(i64, String)>| version.as_ref().map(|(_, value)| value.clone());
            versions.iter().map(|(key, version)| (key, Effect::Read(seen(version)))).collect()
        }
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
        (Action::Read { .. } | Action::ReadMany { .. }, answer) => panic!("a read was answered with {answer:?}"),
    }
}

/// The order found so far: which steps are in it, and the state they lead to.
struct Order<'a> {
    steps: Vec<&'a Step>,
    taken: Vec<bool>,
    state: Value,
    /// Steps that must be in it and are.
    finished: usize,
    /// Everything before this step is in the order.
    first: usize,
    /// The latest call among the steps taken: what had ended before it is too late.
    latest_call: u64,
    seen: HashSet<(Vec<u64>, Value)>,
}

/// What to go back to.
struct Choice {
    at: usize,
    state: Value,
    first: usize,
    latest_call: u64,
}

fn search(steps: &[Step]) -> Verdict {
    let mut order = Order::new(steps);
    let must = steps.iter().filter(|step| !step.optional).count();
    let mut choices: Vec<Choice> = Vec::new();
    let mut from = 0;
    for _ in 0..STEPS_MAX {
        if order.finished == must {
            return Verdict::Linearizable;
        }
        if let Some(choice) = order.take(from) {
            choices.push(choice);
            from = 0;
        } else if let Some(choice) = choices.pop() {
            from = choice.at + 1;
            order.give_back(choice);
        } else {
            return Verdict::Broken;
        }
    }
    Verdict::TooHard
}

impl<'a> Order<'a> {
    fn new(steps: &'a [Step]) -> Self {
        let mut steps: Vec<&Step> = steps.iter().collect();
        steps.sort_by_key(|step| step.call);
        let taken = vec![false; steps.len()];
        Self { steps, taken, state: None, finished: 0, first: 0, latest_call: 0, seen: HashSet::new() }
    }

    /// Appends the first step from `from` on that may come next and leads to a state not seen yet.
    fn take(&mut self, from: usize) -> Option<Choice> {
        // Nothing may go before a step that had returned before it was called.
        let horizon = self.horizon();
        for at in from.max(self.first)..self.steps.len() {
            let step = self.steps[at];
            if step.call > horizon {
                return None;
            }
            if self.taken[at] || step.optional && step.returned < self.latest_call {
                continue;
            }
            let Some(after) = step.effect.apply(&self.state) else { continue };
            self.taken[at] = true;
            if !self.seen.insert((bits(&self.taken), after.clone())) {
                self.taken[at] = false;
                continue;
            }
            let state = std::mem::replace(&mut self.state, after);
            let choice = Choice { at, state, first: self.first, latest_call: self.latest_call };
            self.finished += usize::from(!step.optional);
            self.latest_call = self.latest_call.max(step.call);
            while self.taken.get(self.first).is_some_and(|taken| *taken) {
                self.first += 1;
            }
            return Some(choice);
        }
        None
    }

    fn give_back(&mut self, choice: Choice) {
        self.taken[choice.at] = false;
        self.finished -= usize::from(!self.steps[choice.at].optional);
        (self.state, self.first, self.latest_call) = (choice.state, choice.first, choice.latest_call);
    }

    /// The earliest return among the steps that are still to come.
    fn horizon(&self) -> u64 {
        let mut horizon = u64::MAX;
        for at in self.first..self.steps.len() {
            let step = self.steps[at];
            if step.call > horizon {
                break;
            }
            if !self.taken[at] && !step.optional {
                horizon = horizon.min(step.returned);
            }
        }
        horizon
    }
}

fn bits(done: &[bool]) -> Vec<u64> {
    done.chunks(64).map(|chunk| chunk.iter().rev().fold(0, |bits, done| bits << 1 | u64::from(*done))).collect()
}
