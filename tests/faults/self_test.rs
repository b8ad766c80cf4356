//! The checkers on trial: histories of a simulated store that is right must pass; the same histories
//! with one lie planted must be refused, and for the right reason.

use super::check::{Kind, check};
use super::linear::{self, Verdict};
use super::op::{Action, Answer, Key, Log, Op, State, Version};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng, seq::IteratorRandom};
use std::collections::BTreeMap;

const SEEDS: u64 = 100;

/// A right store, and what eight clients with overlapping requests would journal of it.
#[derive(Clone)]
struct History {
    base: State,
    ops: Vec<Op>,
    log: Log,
}

struct Simulation {
    rng: StdRng,
    base: State,
    state: State,
    log: Log,
    next_value: i64,
}

impl Simulation {
    fn value(&mut self) -> String {
        self.next_value += 1;
        format!("v{}", self.next_value)
    }

    fn action(&mut self) -> Action {
        let number = self.rng.random_range(0..4);
        let key = format!("key/{number}");
        let expected = match self.rng.random_ratio(3, 4) {
            true => self.state.keys.get(&key).cloned(),
            false => None,
        };
        let value = self.value();
        match self.rng.random_range(0..14) {
            0..3 => Action::Put { key, value },
            3..5 => Action::Cas { key, expected, value },
            5 => Action::Delete { key },
            6 => {
                let puts = BTreeMap::from([(key.clone(), value), (format!("key/{}", (number + 1) % 4), self.value())]);
                Action::Txn { key, expected, puts }
            }
            7 | 8 => {
                self.next_value += 1;
                Action::Add { key: "counter".to_owned(), by: self.next_value }
            }
            9 => Action::ReadMany { keys: (0..3).map(|at| format!("key/{at}")).collect() },
            10 => Action::StaleRead { key },
            _ => Action::Read { key },
        }
    }

    fn commit(&mut self, changes: BTreeMap<Key, Option<String>>) -> i64 {
        let revision = self.state.revision + 1;
        self.log.insert(revision, changes);
        self.state.replay(&self.log);
        revision
    }

    fn perform(&mut self, action: &Action) -> Answer {
        let revision = self.state.revision;
        if let Action::Cas { key, expected, .. } | Action::Txn { key, expected, .. } = action
            && self.state.keys.get(key) != expected.as_ref()
        {
            return Answer::Refused { revision };
        }
        match action {
            Action::Read { key } => Answer::Value { revision, version: self.state.keys.get(key).cloned() },
            Action::StaleRead { key } => {
                // As of some revision that is not the newest.
                let back = self.rng.random_range(0..4).min(revision - self.base.revision);
                let mut state = self.base.clone();
                state.replay(&self.log.range(..=revision - back).map(|(at, changes)| (*at, changes.clone())).collect());
                Answer::Value { revision: revision - back, version: state.keys.get(key).cloned() }
            }
            Action::ReadMany { keys } => {
                let version = |key: &Key| (key.clone(), self.state.keys.get(key).cloned());
                Answer::Values { revision, versions: keys.iter().map(version).collect() }
            }
            Action::Delete { key } if self.state.keys.contains_key(key) => {
                Answer::Deleted { revision: self.commit(BTreeMap::from([(key.clone(), None)])), count: 1 }
            }
            Action::Delete { .. } => Answer::Deleted { revision, count: 0 },
            Action::Add { key, by } => {
                let before = self.state.keys.get(key).map_or(0, |(_, text)| text.parse::<i64>().unwrap());
                let change = BTreeMap::from([(key.clone(), Some((before + by).to_string()))]);
                Answer::Sum { revision: self.commit(change), value: before + by }
            }
            action => {
                let puts = action.puts().into_iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
                Answer::Written { revision: self.commit(puts) }
            }
        }
    }
}

/// `count` operations; every moment some are under way, and each happens somewhere in between.
fn simulate(seed: u64, count: u64) -> History {
    let rng = StdRng::seed_from_u64(seed);
    let mut sim = Simulation { rng, base: State::empty(), state: State::empty(), log: Log::new(), next_value: 0 };
    for _ in 0..5 {
        let action = sim.action();
        sim.perform(&action);
    }
    let base = std::mem::take(&mut sim.log);
    assert!(base.len() <= 5);
    let base = sim.state.clone();
    sim.base = base.clone();
    let mut ops = Vec::new();
    for at in 1..=count {
        let action = sim.action();
        let moment = at * 100;
        let (call, returned) =
            (moment - sim.rng.random_range(0..400).min(moment), moment + sim.rng.random_range(1..400));
        let read = action.is_read();
        let (returned, answer) = match sim.rng.random_range(0..20) {
            0 if !read => (returned, Answer::No),
            1 if !read => {
                if sim.rng.random() {
                    sim.perform(&action);
                }
                (u64::MAX, Answer::Unknown)
            }
            _ => (returned, sim.perform(&action)),
        };
        ops.push(Op { call, returned, action, answer });
    }
    History { base, ops, log: sim.log }
}

#[test]
fn right_histories_pass() {
    for seed in 0..SEEDS * 3 {
        let history = simulate(seed, 120);
        let verdict = check(&history.base, &history.ops, &history.log);
        assert!(verdict.is_ok(), "seed {seed}: {verdict:?}");
        assert!(linear::check(&with_base(&history)).is_ok(), "seed {seed}");
    }
}

/// The search by key starts from nothing, so the base becomes writes that came before.
fn with_base(history: &History) -> Vec<Op> {
    let writes = history.base.keys.iter().map(|(key, (revision, value))| Op {
        call: 0,
        returned: 0,
        action: Action::Put { key: key.clone(), value: value.clone() },
        answer: Answer::Written { revision: *revision },
    });
    let later =
        history.ops.iter().cloned().map(|op| Op { call: op.call + 1, returned: op.returned.saturating_add(1), ..op });
    writes.chain(later).collect()
}

type Lie = fn(&mut History, &mut StdRng) -> Option<()>;

/// Changes one random operation that `pick` can change.
fn change(history: &mut History, rng: &mut StdRng, pick: impl Fn(&mut Op) -> bool) -> Option<()> {
    let candidates: Vec<usize> = (0..history.ops.len()).filter(|at| pick(&mut history.ops[*at].clone())).collect();
    let at = candidates.into_iter().choose(rng)?;
    pick(&mut history.ops[at]).then_some(())
}

fn acknowledged(history: &History, rng: &mut StdRng, wanted: fn(&Op) -> bool) -> Option<Op> {
    history.ops.iter().filter(|op| wanted(op)).choose(rng).cloned()
}

fn last(history: &History) -> i64 {
    history.log.last_key_value().map_or(history.base.revision, |(revision, _)| *revision)
}

fn append(history: &mut History, changes: BTreeMap<Key, Option<String>>) {
    history.log.insert(last(history) + 1, changes);
}

fn puts_of(op: &Op) -> BTreeMap<Key, Option<String>> {
    op.action.puts().into_iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect()
}

fn is_written(op: &Op) -> bool {
    matches!(op.answer, Answer::Written { .. })
}

const LIES: &[(&str, &[Kind], Lie)] = &[
    ("stale read", &[Kind::WrongRead], |history, rng| {
        let log = history.log.clone();
        change(history, rng, |op| {
            let (Action::Read { key }, Answer::Value { version: Some(version), .. }) = (&op.action, &mut op.answer)
            else {
                return false;
            };
            let older = log.range(..version.0).rev().find_map(|(at, changes)| Some((*at, changes.get(key)?.clone()?)));
            older.inspect(|older| version.clone_from(older)).is_some()
        })
    }),
    ("stale read that owns up to its age", &[Kind::RealTime], |history, rng| {
        let (base, log) = (history.base.clone(), history.log.clone());
        let mut ops = history.ops.clone();
        ops.sort_by_key(|op| op.returned);
        change(history, rng, |op| {
            let (Action::Read { key }, Answer::Value { revision, version }) = (&op.action, &mut op.answer) else {
                return false;
            };
            let before = ops.iter().filter(|other| other.returned < op.call).filter_map(|o| o.answer.revision()).max();
            let Some(floor) = before.filter(|floor| *floor > base.revision) else { return false };
            let mut state = base.clone();
            state.replay(&log.range(..floor).map(|(at, changes)| (*at, changes.clone())).collect());
            *revision = floor - 1;
            *version = state.keys.get(key).cloned();
            true
        })
    }),
    ("tail lost at a crash", &[Kind::LostWrite, Kind::FutureRevision], |history, rng| {
        let lost = acknowledged(history, rng, is_written)?.answer.revision()?;
        history.log.split_off(&lost);
        Some(())
    }),
    ("write lost, its revision used again", &[Kind::LostWrite], |history, rng| {
        let op = acknowledged(history, rng, |op| is_written(op) && op.action.puts().len() == 1)?;
        let other = BTreeMap::from([("elsewhere".to_owned(), Some("x".to_owned()))]);
        history.log.insert(op.answer.revision()?, other).map(drop)
    }),
    ("phantom", &[Kind::Phantom], |history, _| {
        append(history, BTreeMap::from([("key/0".to_owned(), Some("nobody's".to_owned()))]));
        Some(())
    }),
    ("phantom delete", &[Kind::Phantom], |history, _| {
        append(history, BTreeMap::from([("key/9".to_owned(), None)]));
        Some(())
    }),
    ("acknowledged write applied twice", &[Kind::Duplicate], |history, rng| {
        let op = acknowledged(history, rng, is_written)?;
        append(history, puts_of(&op));
        Some(())
    }),
    ("unknown write applied twice", &[Kind::Duplicate], |history, rng| {
        let op =
            acknowledged(history, rng, |op| matches!((&op.action, &op.answer), (Action::Put { .. }, Answer::Unknown)))?;
        append(history, puts_of(&op));
        append(history, puts_of(&op));
        Some(())
    }),
    ("refused write applied", &[Kind::AppliedNo], |history, rng| {
        let op = acknowledged(history, rng, |op| op.answer == Answer::No && !op.action.puts().is_empty())?;
        append(history, puts_of(&op));
        Some(())
    }),
    ("refused condition applied", &[Kind::AppliedNo], |history, rng| {
        let op = acknowledged(history, rng, |op| matches!(op.answer, Answer::Refused { .. }))?;
        append(history, puts_of(&op));
        Some(())
    }),
    ("counter added twice", &[Kind::Duplicate], |history, rng| {
        let op = acknowledged(history, rng, |op| matches!(op.answer, Answer::Sum { .. }))?;
        let Action::Add { key, by } = op.action else { return None };
        let mut state = history.base.clone();
        state.replay(&history.log);
        let sum = state.keys.get(&key)?.1.parse::<i64>().ok()? + by;
        append(history, BTreeMap::from([(key, Some(sum.to_string()))]));
        Some(())
    }),
    ("wrong sum", &[Kind::WrongSum], |history, rng| {
        change(history, rng, |op| match &mut op.answer {
            Answer::Sum { value, .. } => {
                *value += 1;
                true
            }
            _ => false,
        })
    }),
    ("half a transaction", &[Kind::WrongChanges], |history, rng| {
        let op = acknowledged(history, rng, |op| is_written(op) && op.action.puts().len() == 2)?;
        history.log.get_mut(&op.answer.revision()?)?.pop_last();
        Some(())
    }),
    ("transaction split over two revisions", &[Kind::Duplicate, Kind::WrongChanges], |history, rng| {
        let op = acknowledged(history, rng, |op| is_written(op) && op.action.puts().len() == 2)?;
        let (key, value) = history.log.get_mut(&op.answer.revision()?)?.pop_last()?;
        append(history, BTreeMap::from([(key, value)]));
        Some(())
    }),
    ("revision skipped", &[Kind::Gap], |history, rng| {
        let at = history.log.keys().copied().filter(|at| *at != last(history)).choose(rng)?;
        history.log.remove(&at).map(drop)
    }),
    ("later write at an earlier revision", &[Kind::RealTime], |history, rng| {
        let late = acknowledged(history, rng, is_written)?;
        let at = history.ops.iter().position(|op| *op == late)?;
        let floor = history.ops.iter().filter(|op| op.returned != u64::MAX).map(|op| op.returned).max()?;
        (history.ops[at].call, history.ops[at].returned) = (floor + 1, floor + 2);
        (late.answer.revision()? < last(history)).then_some(())
    }),
    ("two winners of one version", &[Kind::WrongCondition], |history, rng| {
        let winner = acknowledged(history, rng, |op| {
            is_written(op) && matches!(op.action, Action::Cas { expected: Some(_), .. })
        })?;
        let Action::Cas { key, expected, .. } = winner.action else { return None };
        let moment = winner.call.max(history.ops.iter().map(|op| op.call).max()?) + 1;
        let action = Action::Cas { key: key.clone(), expected, value: "twin".to_owned() };
        append(history, BTreeMap::from([(key, Some("twin".to_owned()))]));
        let answer = Answer::Written { revision: last(history) };
        history.ops.push(Op { call: moment, returned: moment + 1, action, answer });
        Some(())
    }),
    ("refused though it held", &[Kind::WrongCondition], |history, rng| {
        let version: Version = history.base.keys.iter().next().map(|(_, version)| version.clone())?;
        let key = history.base.keys.keys().next()?.clone();
        let revision = history.base.revision;
        let action = Action::Cas { key, expected: Some(version), value: "never".to_owned() };
        let at = rng.random_range(0..2);
        history.ops.push(Op { call: 0, returned: at, action, answer: Answer::Refused { revision } });
        Some(())
    }),
    ("delete of nothing that was there", &[Kind::WrongDelete, Kind::RealTime], |history, rng| {
        change(history, rng, |op| match &mut op.answer {
            Answer::Deleted { revision, count } if *count == 1 => {
                (*revision, *count) = (*revision - 1, 0);
                true
            }
            _ => false,
        })
    }),
    ("stale read of what never was", &[Kind::WrongRead], |history, rng| {
        change(history, rng, |op| match (&op.action, &mut op.answer) {
            (Action::StaleRead { .. }, Answer::Value { version, .. }) => {
                *version = Some((2, "never".to_owned()));
                true
            }
            _ => false,
        })
    }),
    ("several keys read at two revisions", &[Kind::WrongRead], |history, rng| {
        let log = history.log.clone();
        change(history, rng, |op| {
            let Answer::Values { versions, .. } = &mut op.answer else { return false };
            let older = |key: &Key, at: i64| {
                log.range(..at).rev().find_map(|(at, changes)| Some((*at, changes.get(key)?.clone()?)))
            };
            let torn = versions.iter_mut().find_map(|(key, version)| {
                let found = older(key, version.as_ref()?.0)?;
                *version = Some(found);
                Some(())
            });
            torn.is_some()
        })
    }),
    ("answer from the future", &[Kind::FutureRevision, Kind::RealTime], |history, rng| {
        let future = last(history) + 1;
        change(history, rng, |op| match &mut op.answer {
            Answer::Value { revision, .. } => {
                *revision = future;
                true
            }
            _ => false,
        })
    }),
];

#[test]
fn every_lie_is_found_for_what_it_is() {
    for (name, kinds, lie) in LIES {
        let mut told = 0;
        for seed in 0..SEEDS {
            let mut history = simulate(seed, 120);
            let mut rng = StdRng::seed_from_u64(seed);
            if lie(&mut history, &mut rng).is_none() {
                continue;
            }
            told += 1;
            match check(&history.base, &history.ops, &history.log) {
                Ok(()) => panic!("{name}: believed with seed {seed}"),
                Err(violation) => {
                    assert!(kinds.contains(&violation.kind), "{name}, seed {seed}: taken for {violation:?}");
                }
            }
        }
        assert!(told > SEEDS / 2, "{name}: told only {told} times");
    }
    assert!(LIES.len() >= 10);
}

fn op(call: u64, returned: u64, action: Action, answer: Answer) -> Op {
    Op { call, returned, action, answer }
}

fn put(value: &str) -> Action {
    Action::Put { key: "k".to_owned(), value: value.to_owned() }
}

fn cas(expected: Option<&str>, value: &str) -> Action {
    let expected = expected.map(|value| (0, value.to_owned()));
    Action::Cas { key: "k".to_owned(), expected, value: value.to_owned() }
}

fn read(call: u64, returned: u64, value: Option<&str>) -> Op {
    let version = value.map(|value| (0, value.to_owned()));
    op(call, returned, Action::Read { key: "k".to_owned() }, Answer::Value { revision: 0, version })
}

/// Revisions play no part in the search.
const DONE: Answer = Answer::Written { revision: 0 };
const REFUSED: Answer = Answer::Refused { revision: 0 };

#[test]
fn the_search_refuses_what_no_order_explains() {
    let delete = || Action::Delete { key: "k".to_owned() };
    let deleted = |count| Answer::Deleted { revision: 0, count };
    let add = |by| Action::Add { key: "k".to_owned(), by };
    let sum = |value| Answer::Sum { revision: 0, value };
    let broken: Vec<(&str, Vec<Op>)> = vec![
        ("stale read", vec![op(0, 1, put("a"), DONE), op(2, 3, put("b"), DONE), read(4, 5, Some("a"))]),
        ("lost write", vec![op(0, 1, put("a"), DONE), read(2, 3, None)]),
        (
            "reads go back",
            vec![op(0, 1, put("a"), DONE), op(2, 100, put("b"), DONE), read(3, 4, Some("b")), read(5, 6, Some("a"))],
        ),
        ("value from nowhere", vec![read(0, 1, Some("a"))]),
        ("read before its write", vec![read(0, 1, Some("a")), op(2, 3, put("a"), DONE)]),
        ("refused write seen", vec![op(0, 1, put("a"), Answer::No), read(2, 3, Some("a"))]),
        (
            "unknown write seen, gone, and back",
            vec![
                op(0, u64::MAX, put("a"), Answer::Unknown),
                read(1, 2, Some("a")),
                op(3, 4, put("b"), DONE),
                read(5, 6, Some("a")),
            ],
        ),
        (
            "unknown write that came after its end",
            vec![op(0, 10, put("a"), Answer::Unknown), read(11, 12, None), read(13, 14, Some("a"))],
        ),
        ("two creators", vec![op(0, 9, cas(None, "a"), DONE), op(0, 9, cas(None, "b"), DONE)]),
        (
            "two winners",
            vec![op(0, 1, put("a"), DONE), op(2, 9, cas(Some("a"), "b"), DONE), op(2, 9, cas(Some("a"), "c"), DONE)],
        ),
        ("refused though it held", vec![op(0, 1, put("a"), DONE), op(2, 3, cas(Some("a"), "b"), REFUSED)]),
        (
            "deleted twice",
            vec![op(0, 1, put("a"), DONE), op(2, 9, delete(), deleted(1)), op(2, 9, delete(), deleted(1))],
        ),
        ("deleted, yet read", vec![op(0, 1, put("a"), DONE), op(2, 3, delete(), deleted(1)), read(4, 5, Some("a"))]),
        ("lost increment", vec![op(0, 1, add(1), sum(1)), op(2, 3, add(1), sum(1))]),
        ("double increment", vec![op(0, 1, add(1), sum(1)), op(2, 3, add(1), sum(3))]),
    ];
    assert!(broken.len() >= 10);
    for (name, ops) in broken {
        assert_eq!(linear::check(&ops), Err(("k".to_owned(), Verdict::Broken)), "{name}");
    }
}

#[test]
fn the_search_allows_what_overlapping_and_unknown_operations_may_do() {
    let fine: Vec<Vec<Op>> = vec![
        vec![op(0, 9, put("a"), DONE), read(1, 2, None), read(3, 4, Some("a"))],
        vec![op(0, 9, put("a"), DONE), op(0, 9, put("b"), DONE), read(1, 2, Some("b")), read(10, 11, Some("a"))],
        vec![op(0, u64::MAX, put("a"), Answer::Unknown), read(1, 2, None), read(100, 101, Some("a"))],
        vec![op(0, u64::MAX, put("a"), Answer::Unknown), read(100, 101, None)],
        vec![op(0, u64::MAX, cas(None, "a"), Answer::Unknown), op(5, 6, cas(None, "b"), REFUSED)],
    ];
    for ops in fine {
        assert_eq!(linear::check(&ops), Ok(1), "{ops:?}");
    }
}

/// One stale read in a long, busy history is found, and quickly enough to be of use.
#[test]
fn the_search_finds_one_lie_among_many_operations() {
    let mut found = 0;
    for seed in 0..30 {
        let mut history = simulate(seed, 300);
        if LIES[0].2(&mut history, &mut StdRng::seed_from_u64(seed)).is_none() {
            continue;
        }
        match linear::check(&with_base(&history)) {
            Err((_, Verdict::Broken)) => found += 1,
            // An older version may still be right where operations overlap.
            Ok(_) => {}
            Err((key, verdict)) => panic!("seed {seed}: {key} is {verdict:?}"),
        }
    }
    assert!(found > 15, "only {found} of 30 found");
}
