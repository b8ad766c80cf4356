//! What a renewed state keeps and what it drops.

use super::support::*;
use crate::model::{Caller, Command, Failure, KeyRange, LeaseChoice, LogPosition, RangeOp, Rejection, Revision, Txn};
use bytes::Bytes;

const BUMP: Revision = 1_000_000_000;
const BEGINNING: LogPosition = LogPosition { term: 0, node: 7, index: 0 };

fn used() -> Rig {
    let mut rig = Rig::new();
    rig.put("kept", "1");
    rig.put("kept", "2");
    rig.put("gone", "1");
    rig.delete(KeyRange::key("gone"));
    rig.command(Command::LeaseGrant { id: 5, ttl_ms: 10_000 }).unwrap();
    rig.ops(vec![put_with("leased/1", "x", LeaseChoice::Attach(5)), put_with("leased/2", "y", LeaseChoice::Attach(5))])
        .unwrap();
    rig.command(Command::LeaseGrant { id: 6, ttl_ms: 10_000 }).unwrap();
    rig.ops(vec![put_with("ttl", "z", LeaseChoice::Implicit { id: 9, ttl_ms: 5_000 })]).unwrap();
    rig.ops(vec![put_with("_tenure/locks/deploy/5", "", LeaseChoice::Attach(5))]).unwrap();
    rig.apply(vec![keyed("once", 1, Command::Txn(Txn { success: vec![add("hits", 1)], ..Txn::default() }))]);
    rig
}

#[test]
fn only_what_nobody_owns_outlives_its_history() {
    let mut rig = used();
    let (before, kept) = (rig.machine.reader().view(), rig.range(&RangeOp::newest(single("kept"))));
    let revision = rig.machine.renew(BUMP, BEGINNING, Bytes::from_static(b"members")).unwrap();
    let view = rig.machine.reader().view();
    assert!(revision >= before.revision() + BUMP, "{revision}");
    assert_eq!((view.revision(), view.compacted_revision()), (revision, revision));
    let stats = view.stats();
    assert_eq!((stats.keys, stats.leases, stats.idempotency_records, stats.retained_bytes), (2, 0, 0, 0));
    assert_eq!(rig.range(&RangeOp::newest(single("kept"))).kvs, kept.kvs, "value, revisions and version stay");
    assert!(rig.range(&RangeOp::newest(KeyRange::prefix("_tenure/"))).kvs.is_empty());
    assert!(rig.range(&RangeOp::newest(KeyRange::prefix("leased/"))).kvs.is_empty());
    let past = view.get(&Caller::Anonymous, &Bytes::from_static(b"kept"), before.revision());
    assert!(matches!(past, Err(Failure::Rejected(Rejection::Compacted { .. }))), "{past:?}");
    assert_eq!(
        (view.applied(), view.membership()),
        (Some(BEGINNING), Some((Some(BEGINNING), Bytes::from_static(b"members"))))
    );
}

#[test]
fn a_renewed_state_survives_its_image_and_goes_on() {
    let mut rig = used();
    let revision = rig.machine.renew(BUMP, BEGINNING, Bytes::new()).unwrap();
    let mut restored = rig.restored();
    assert_eq!(restored.machine.reader().view().state_hash(), rig.machine.reader().view().state_hash());
    for rig in [&mut rig, &mut restored] {
        rig.index = BEGINNING.index;
        assert_eq!(rig.put("new", "1"), revision + 1);
        let again = keyed("once", 1, Command::Txn(Txn { success: vec![add("hits", 1)], ..Txn::default() }));
        assert!(!rig.apply(vec![again]).outcomes[0].replayed, "what was answered before is forgotten");
        rig.trim();
    }
    assert_eq!(restored.machine.reader().view().state_hash(), rig.machine.reader().view().state_hash());
}

#[test]
fn an_empty_store_can_be_renewed_and_an_exhausted_one_is_refused() {
    let mut rig = Rig::new();
    assert_eq!(rig.machine.renew(BUMP, BEGINNING, Bytes::new()).unwrap(), 1 + BUMP);
    assert!(rig.machine.renew(Revision::MAX - 5, BEGINNING, Bytes::new()).is_err());
}
