//! State machine safety: no two members apply different things at one place of the log, nor tell
//! different events of one revision; not before, between or after restarts and snapshots.

use super::replay::same_event;
use std::collections::BTreeMap;
use tenure::machine::View;
use tenure::model::{LogPosition, RevisionEvents};
use tenure::raft::MemberId;

#[derive(Debug, Default)]
pub(crate) struct StateMachine {
    states: BTreeMap<u64, (LogPosition, u128, MemberId)>,
}

impl StateMachine {
    pub(crate) fn same_events(member: MemberId, known: &RevisionEvents, told: &RevisionEvents) -> Option<String> {
        let same = known.events.len() == told.events.len()
            && known.events.iter().zip(told.events.iter()).all(|(one, other)| same_event(one, other));
        (!same).then(|| {
            let brief = |events: &RevisionEvents| {
                let each = events
                    .events
                    .iter()
                    .map(|event| format!("{:?} {:?}={:?}", event.kind, event.kv.key, event.kv.value));
                each.collect::<Vec<_>>().join(", ")
            };
            format!(
                "state machine safety: revision {} is [{}] and at member {member} [{}]",
                told.revision,
                brief(known),
                brief(told)
            )
        })
    }

    pub(crate) fn applied(&mut self, member: MemberId, view: &View) -> Option<String> {
        let at = view.applied()?;
        let hash = view.state_hash();
        let (first, known, by) = *self.states.entry(at.index).or_insert((at, hash, member));
        if first != at {
            return Some(format!("state machine safety: member {by} applied {first:?} and member {member} {at:?}"));
        }
        (known != hash)
            .then(|| format!("state machine safety: members {by} and {member} differ after entry {}", at.index))
    }

    pub(crate) fn compared(&self) -> usize {
        self.states.len()
    }
}
