//! The checker by revision order: takes the store's own account of what each revision changed and
//! holds every operation of one fault window against it. Linear in time.
//!
//! The rules: an acknowledged write is at its revision, with its value and nothing else; an unknown
//! one is there at most once; a refused one never; nothing is there that nobody wrote; an operation
//! that began after another ended does not see an older store; every answer equals the state at the
//! revision it names.

use super::op::{Action, Answer, Key, Log, Op, State, Version};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A revision is missing from the store's account.
    Gap,
    /// An acknowledged write is not at its revision.
    LostWrite,
    /// A revision holds more or other changes than its write made.
    WrongChanges,
    /// Applied more than once.
    Duplicate,
    /// Applied, though the client was told it was not.
    AppliedNo,
    /// Written by nobody.
    Phantom,
    /// A later operation got an older revision.
    RealTime,
    /// An answer names a revision that the store never reached.
    FutureRevision,
    /// A read is not the state at its revision.
    WrongRead,
    /// A condition was decided wrongly.
    WrongCondition,
    /// A counter's sum is not the one of its history.
    WrongSum,
    /// A delete counted wrongly.
    WrongDelete,
}

#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    pub(crate) detail: String,
}

type Verdict = Result<(), Violation>;

fn violation(kind: Kind, detail: String) -> Verdict {
    Err(Violation { kind, detail })
}

/// Checks the operations of one window. `base` is the store when it began, `log` all it did since.
/// Every operation must have begun after the window and be over (the store has been restarted since).
pub(crate) fn check(base: &State, ops: &[Op], log: &Log) -> Verdict {
    let view = View::new(base, log);
    view.contiguous()?;
    view.real_time(ops)?;
    for op in ops {
        view.answer(op)?;
    }
    view.attribution(ops)
}

struct View<'a> {
    base: &'a State,
    log: &'a Log,
    last: i64,
    /// Per key: its versions in the window, in order.
    versions: BTreeMap<&'a Key, Vec<(i64, Option<&'a String>)>>,
}

impl<'a> View<'a> {
    fn new(base: &'a State, log: &'a Log) -> Self {
        let mut versions: BTreeMap<&Key, Vec<(i64, Option<&String>)>> = BTreeMap::new();
        for (revision, changes) in log {
            for (key, value) in changes {
                versions.entry(key).or_default().push((*revision, value.as_ref()));
            }
        }
        let last = log.last_key_value().map_or(base.revision, |(revision, _)| *revision);
        Self { base, log, last, versions }
    }

    fn contiguous(&self) -> Verdict {
        for (expected, (revision, changes)) in (self.base.revision + 1..).zip(self.log) {
            if expected != *revision || changes.is_empty() {
                return violation(Kind::Gap, format!("revision {expected} is missing, {revision} follows"));
            }
        }
        Ok(())
    }

    fn at(&self, key: &Key, revision: i64) -> Option<Version> {
        let versions = self.versions.get(key).map_or(&[][..], Vec::as_slice);
        let upto = versions.partition_point(|(at, _)| *at <= revision);
        match upto.checked_sub(1) {
            Some(last) => versions[last].1.map(|value| (versions[last].0, value.clone())),
            None => self.base.keys.get(key).cloned(),
        }
    }

    fn real_time(&self, ops: &[Op]) -> Verdict {
        let dated = |op: &&Op| op.answer.revision().is_some() && !matches!(op.action, Action::StaleRead { .. });
        let mut by_call: Vec<&Op> = ops.iter().filter(dated).collect();
        let mut by_return = by_call.clone();
        by_call.sort_by_key(|op| op.call);
        by_return.sort_by_key(|op| op.returned);
        let mut returned = by_return.into_iter().peekable();
        let mut floor = self.base.revision;
        for op in by_call {
            while let Some(earlier) = returned.next_if(|earlier| earlier.returned < op.call) {
                floor = floor.max(earlier.answer.revision().unwrap_or(0));
            }
            let revision = op.answer.revision().unwrap_or(0);
            let own = is_change(&op.answer);
            if revision < floor || own && revision == floor {
                return violation(Kind::RealTime, format!("after revision {floor} was answered: {op:?}"));
            }
        }
        Ok(())
    }

    fn answer(&self, op: &Op) -> Verdict {
        let Some(revision) = op.answer.revision() else { return Ok(()) };
        if revision > self.last {
            let kind = if is_change(&op.answer) { Kind::LostWrite } else { Kind::FutureRevision };
            return violation(kind, format!("the store ends at {}: {op:?}", self.last));
        }
        match (&op.action, &op.answer) {
            (Action::Read { key } | Action::StaleRead { key }, Answer::Value { version, .. }) => {
                let actual = self.at(key, revision);
                let wrong = || violation(Kind::WrongRead, format!("the key was {actual:?}: {op:?}"));
                if actual == *version { Ok(()) } else { wrong() }
            }
            (Action::ReadMany { .. }, Answer::Values { versions, .. }) => {
                let wrong = versions.iter().find(|(key, version)| self.at(key, revision) != **version);
                let Some((key, _)) = wrong else { return Ok(()) };
                violation(Kind::WrongRead, format!("{key} was {:?}: {op:?}", self.at(key, revision)))
            }
            (Action::Cas { key, expected, .. } | Action::Txn { key, expected, .. }, Answer::Refused { .. }) => {
                let held = self.at(key, revision) == *expected;
                if held { violation(Kind::WrongCondition, format!("refused, but it held: {op:?}")) } else { Ok(()) }
            }
            (action, Answer::Written { .. }) => {
                self.condition(op, revision)?;
                let changes = action.puts().into_iter().map(|(key, value)| (key.clone(), Some(value.clone())));
                self.changed(op, revision, &changes.collect())
            }
            (Action::Delete { key }, Answer::Deleted { count, .. }) => self.delete(op, key, revision, *count),
            (Action::Add { key, by }, Answer::Sum { value, .. }) => {
                let before = self.at(key, revision - 1).map_or(Ok(0), |(_, text)| text.parse::<i64>());
                if before != Ok(value - by) {
                    return violation(Kind::WrongSum, format!("the counter was {before:?}: {op:?}"));
                }
                self.changed(op, revision, &BTreeMap::from([(key.clone(), Some(value.to_string()))]))
            }
            _ => panic!("the journal holds an answer that does not fit: {op:?}"),
        }
    }

    fn condition(&self, op: &Op, revision: i64) -> Verdict {
        let (Action::Cas { key, expected, .. } | Action::Txn { key, expected, .. }) = &op.action else {
            return Ok(());
        };
        let before = self.at(key, revision - 1);
        let wrong = || violation(Kind::WrongCondition, format!("done, but the key was {before:?}: {op:?}"));
        if before == *expected { Ok(()) } else { wrong() }
    }

    fn changed(&self, op: &Op, revision: i64, wanted: &BTreeMap<Key, Option<String>>) -> Verdict {
        let found = self.log.get(&revision);
        if found == Some(wanted) {
            return Ok(());
        }
        let present = found.is_some_and(|found| wanted.iter().any(|change| found.get(change.0) == Some(change.1)));
        let kind = if present { Kind::WrongChanges } else { Kind::LostWrite };
        violation(kind, format!("revision {revision} is {found:?}: {op:?}"))
    }

    fn delete(&self, op: &Op, key: &Key, revision: i64, count: u64) -> Verdict {
        if count == 0 {
            let nothing = self.at(key, revision).is_none();
            return if nothing { Ok(()) } else { violation(Kind::WrongDelete, format!("it was there: {op:?}")) };
        }
        if count != 1 || self.at(key, revision - 1).is_none() {
            return violation(Kind::WrongDelete, format!("{op:?}"));
        }
        self.changed(op, revision, &BTreeMap::from([(key.clone(), None)]))
    }

    /// Every change has exactly one operation that can have made it.
    fn attribution(&self, ops: &[Op]) -> Verdict {
        let mut open = Open::new(ops);
        let acknowledged: BTreeSet<i64> =
            ops.iter().filter(|op| is_change(&op.answer)).filter_map(|op| op.answer.revision()).collect();
        for (revision, changes) in self.log {
            if acknowledged.contains(revision) {
                open.acknowledged_again(*revision, changes)?;
                continue;
            }
            let before = |key: &Key| self.at(key, revision - 1);
            open.explain(*revision, changes, &before)?;
        }
        Ok(())
    }
}

fn is_change(answer: &Answer) -> bool {
    match answer {
        Answer::Written { .. } | Answer::Sum { .. } => true,
        Answer::Deleted { count, .. } => *count > 0,
        Answer::Refused { .. } | Answer::Value { .. } | Answer::Values { .. } | Answer::No | Answer::Unknown => false,
    }
}

/// Operations that may still explain a revision nobody was told of.
struct Open<'a> {
    writers: BTreeMap<&'a String, &'a Op>,
    used: BTreeSet<*const Op>,
    deletes: BTreeMap<&'a Key, u64>,
    adds: BTreeMap<(&'a Key, i64), &'a Op>,
}

impl<'a> Open<'a> {
    fn new(ops: &'a [Op]) -> Self {
        let mut open =
            Self { writers: BTreeMap::new(), used: BTreeSet::new(), deletes: BTreeMap::new(), adds: BTreeMap::new() };
        for op in ops {
            for (_, value) in op.action.puts() {
                open.writers.insert(value, op);
            }
            match (&op.action, &op.answer) {
                (Action::Delete { key }, Answer::Unknown) => *open.deletes.entry(key).or_default() += 1,
                (Action::Add { key, by }, _) => {
                    open.adds.insert((key, *by), op);
                }
                _ => {}
            }
        }
        open
    }

    /// A value that an acknowledged write put at its own revision may not come back at another.
    fn acknowledged_again(&mut self, revision: i64, changes: &BTreeMap<Key, Option<String>>) -> Verdict {
        for value in changes.values().flatten() {
            if let Some(op) = self.writers.get(value)
                && op.answer.revision() != Some(revision)
            {
                return violation(Kind::Duplicate, format!("also at revision {revision}: {op:?}"));
            }
        }
        Ok(())
    }

    fn explain(
        &mut self,
        revision: i64,
        changes: &BTreeMap<Key, Option<String>>,
        before: &dyn Fn(&Key) -> Option<Version>,
    ) -> Verdict {
        let Some((key, value)) = changes.first_key_value() else { return Ok(()) };
        let Some(value) = value else { return self.explain_delete(revision, changes, key) };
        let writer = self.writers.get(value).copied().or_else(|| {
            let previous = before(key).map_or(Some(0), |(_, text)| text.parse::<i64>().ok())?;
            let by = value.parse::<i64>().ok()?.checked_sub(previous)?;
            self.adds.iter().find(|((k, b), _)| *k == key && *b == by).map(|(_, op)| *op)
        });
        let Some(op) = writer else {
            return violation(Kind::Phantom, format!("nobody wrote {changes:?} of revision {revision}"));
        };
        match op.answer {
            Answer::Unknown => {}
            Answer::No | Answer::Refused { .. } => {
                return violation(Kind::AppliedNo, format!("done at revision {revision}: {op:?}"));
            }
            _ => return violation(Kind::Duplicate, format!("also at revision {revision}: {op:?}")),
        }
        if !self.used.insert(op) {
            return violation(Kind::Duplicate, format!("again at revision {revision}: {op:?}"));
        }
        let whole: BTreeMap<Key, Option<String>> = match &op.action {
            Action::Add { key, .. } => BTreeMap::from([(key.clone(), Some(value.clone()))]),
            action => action.puts().into_iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect(),
        };
        if whole != *changes {
            return violation(Kind::WrongChanges, format!("revision {revision} is {changes:?}: {op:?}"));
        }
        if let Action::Cas { key, expected, .. } | Action::Txn { key, expected, .. } = &op.action
            && before(key) != *expected
        {
            return violation(Kind::WrongCondition, format!("done at {revision} on {:?}: {op:?}", before(key)));
        }
        Ok(())
    }

    fn explain_delete(&mut self, revision: i64, changes: &BTreeMap<Key, Option<String>>, key: &Key) -> Verdict {
        match self.deletes.get_mut(key) {
            Some(left) if *left > 0 && changes.len() == 1 => {
                *left -= 1;
                Ok(())
            }
            _ => violation(Kind::Phantom, format!("nobody deleted {changes:?} of revision {revision}")),
        }
    }
}
