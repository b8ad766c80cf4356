//! Equal state: members that have applied the same log have the same state hash.

use tenure::machine::View;
use tenure::raft::MemberId;

/// Why these members are not all in one state.
pub(crate) fn unequal(views: &[(MemberId, View)]) -> Option<String> {
    let state = |view: &View| (view.applied().map(|at| at.index), view.revision(), view.state_hash());
    let (_, first) = views.first()?;
    let differs = views.iter().find(|(_, view)| state(view) != state(first));
    differs.map(|_| {
        let each = views.iter().map(|(id, view)| format!("member {id}: {:?}", state(view)));
        format!("equal state: {}", each.collect::<Vec<_>>().join("; "))
    })
}
