//! Election safety: in one term, one leader commits. (Raft here orders leaders by term and member, so
//! two may stand up in a term one after another; then the first has committed nothing.)

use std::collections::BTreeMap;
use tenure::model::LogPosition;

#[derive(Debug, Default)]
pub(crate) struct Election {
    committed: BTreeMap<u64, u64>,
}

impl Election {
    pub(crate) fn committed(&mut self, at: LogPosition) -> Option<String> {
        let first = *self.committed.entry(at.term).or_insert(at.node);
        let LogPosition { term, node, index } = at;
        (first != node)
            .then(|| format!("election: members {first} and {node} both committed in term {term} (entry {index})"))
    }

    pub(crate) fn terms(&self) -> usize {
        self.committed.len()
    }
}
