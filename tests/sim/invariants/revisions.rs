//! Revisions rise: what a member shows to stale readers never goes back, restarts included.

use std::collections::BTreeMap;
use tenure::model::Revision;
use tenure::raft::MemberId;

#[derive(Debug, Default)]
pub(crate) struct MemberRevisions {
    shown: BTreeMap<MemberId, Revision>,
}

impl MemberRevisions {
    pub(crate) fn shows(&mut self, member: MemberId, revision: Revision) -> Option<String> {
        let shown = self.shown.entry(member).or_insert(revision);
        let before = std::mem::replace(shown, revision.max(*shown));
        (revision < before).then(|| format!("revisions: member {member} showed {before} and then {revision}"))
    }
}
