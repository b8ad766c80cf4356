//! What can be refused before anything is proposed. Apply decides again: this only spares the log.

use crate::model::{Op, Txn};

/// True when applying this could make the store larger: refused while the disk is nearly full.
pub(super) fn grows(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        Op::Put(_) | Op::Add { .. } | Op::MergePatch { .. } | Op::RateTake { .. } | Op::Session { .. } => true,
        Op::Txn(inner) => grows(inner),
        Op::Delete { .. } | Op::Range(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{KeyRange, RangeOp};

    #[test]
    fn deletes_and_reads_do_not_grow_the_store_but_a_nested_put_does() {
        let delete = Op::Delete { range: KeyRange::all(), prev_kv: false };
        let read = Op::Range(RangeOp::newest(KeyRange::all()));
        let mut txn = Txn { success: vec![delete, read], ..Txn::default() };
        assert!(!grows(&txn));
        let put = Op::Add {
            key: "a".into(),
            by: 1,
            initial: 0,
            min: None,
            max: None,
            clamp: false,
            lease: crate::model::LeaseChoice::Detach,
        };
        txn.failure.push(Op::Txn(Box::new(Txn { failure: vec![put], ..Txn::default() })));
        assert!(grows(&txn));
    }
}
