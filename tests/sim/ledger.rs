//! What happened in a run, as seen from outside: what every member applied, and what every client asked
//! and was told. The invariants judge it, some while it goes on and the rest at its end.

use super::invariants::{Election, LogMatching, MemberRevisions, StateMachine};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, BTreeSet};
use tenure::machine::View;
use tenure::model::{ClaimName, Fault, KeyRange, KeyValue, LeaseId, Revision, RevisionEvents};
use tenure::raft::MemberId;

#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Book>);

/// The events of one revision.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) events: RevisionEvents,
    /// When they were first applied anywhere.
    pub(crate) first_us: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) election: Election,
    pub(crate) log_matching: LogMatching,
    pub(crate) state_machine: StateMachine,
    pub(crate) member_revisions: MemberRevisions,
    pub(crate) told: BTreeMap<Revision, Told>,
    /// When a member first applied a revision.
    pub(crate) local_us: BTreeMap<(MemberId, Revision), u64>,
    /// The greatest revision that any client was told with certainty.
    pub(crate) acked_max: Revision,
    pub(crate) writes: Vec<Write>,
    pub(crate) reads: Vec<Read>,
    pub(crate) counters: BTreeMap<Bytes, Counter>,
    pub(crate) streams: Vec<Stream>,
    pub(crate) leases: Vec<LeaseLife>,
    pub(crate) grants: Vec<Grant>,
    dead: BTreeSet<(MemberId, u64)>,
    violations: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// With what the member answered: whether the compares held, and the revision.
    Acked {
        revision: Revision,
        succeeded: bool,
    },
    No,
    Unknown,
}

/// What one branch of a transaction writes. Values are used once in a run, except by deletes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Branch {
    pub(crate) puts: Vec<(Bytes, Bytes)>,
    pub(crate) deletes: Vec<Bytes>,
}

#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) who: String,
    pub(crate) success: Branch,
    pub(crate) failure: Branch,
    /// Keys and the mod revisions that they must have.
    pub(crate) expected: Vec<(Bytes, Revision)>,
    /// The greatest revision that anyone had been told before this was asked.
    pub(crate) floor: Revision,
    /// Several attempts under one idempotency key.
    pub(crate) repeated: bool,
    pub(crate) fate: Fate,
}

#[derive(Debug, Clone)]
pub(crate) struct Read {
    pub(crate) who: String,
    pub(crate) linearizable: bool,
    pub(crate) floor: Revision,
    /// What the answer says it reflects, and the older revision that was asked for, if any.
    pub(crate) revision: Revision,
    pub(crate) at: Revision,
    pub(crate) range: KeyRange,
    pub(crate) seen: Vec<KeyValue>,
}

/// A counter that is added to under idempotency keys.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counter {
    pub(crate) acked: Vec<i64>,
    pub(crate) unsettled: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Said {
    Change { events: RevisionEvents, previous: Vec<Option<KeyValue>> },
    Progress(Revision),
}

/// One watch stream, from its start to its end.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) who: String,
    pub(crate) range: KeyRange,
    pub(crate) after: Revision,
    pub(crate) said: Vec<Said>,
}

#[derive(Debug, Clone)]
pub(crate) struct LeaseLife {
    pub(crate) id: LeaseId,
    pub(crate) key: Bytes,
    pub(crate) ttl_us: u64,
    /// When the last renewal was sent that was answered, or the grant.
    pub(crate) sent_us: u64,
    /// Ended on purpose, or perhaps never there: nothing is promised.
    pub(crate) void: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Grant {
    pub(crate) of: ClaimName,
    pub(crate) key: Bytes,
    pub(crate) token: Revision,
    pub(crate) member: MemberId,
    /// What the answer reflects.
    pub(crate) revision: Revision,
    pub(crate) asked_us: u64,
    pub(crate) told_us: u64,
}

impl Ledger {
    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock()
    }

    pub(crate) fn violate(&self, violation: String) {
        self.0.lock().violations.push(violation);
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.0.lock().violations.clone()
    }

    pub(crate) fn failed(&self) -> bool {
        !self.0.lock().violations.is_empty()
    }

    /// A process that has been killed says nothing any more.
    pub(crate) fn dies(&self, member: MemberId, life: u64) {
        self.0.lock().dead.insert((member, life));
    }

    /// A process ends itself.
    pub(crate) fn fault(&self, member: MemberId, life: u64, fault: &Fault) {
        let mut book = self.0.lock();
        if !book.dead.contains(&(member, life)) {
            book.violations.push(format!("member {member} ended itself: {fault}"));
        }
    }

    /// A member has applied these revisions; the view is of the state right after.
    pub(crate) fn applied(&self, member: MemberId, now_us: u64, revisions: &[RevisionEvents], view: Option<&View>) {
        let mut book = self.0.lock();
        let book = &mut *book;
        let mut found = Vec::new();
        for events in revisions {
            book.local_us.entry((member, events.revision)).or_insert(now_us);
            let told =
                book.told.entry(events.revision).or_insert_with(|| Told { events: events.clone(), first_us: now_us });
            found.extend(StateMachine::same_events(member, &told.events, events));
        }
        if let Some(view) = view {
            found.extend(book.state_machine.applied(member, view));
            found.extend(view.applied().and_then(|at| book.election.committed(at)));
        }
        book.violations.extend(found);
    }

    /// The floor for what is asked now.
    pub(crate) fn floor(&self) -> Revision {
        self.0.lock().acked_max
    }

    pub(crate) fn acked(&self, revision: Revision) {
        let mut book = self.0.lock();
        book.acked_max = book.acked_max.max(revision);
    }
}
