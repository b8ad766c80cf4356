//! Named cases: what etcd does, and what implementers of it get wrong.

use super::support::*;
use crate::machine::{self, Machine};
use crate::model::CompareOp::{Equal, Greater, Less, NotEqual};
use crate::model::{
    Caller, Command, Compare, CompareTarget, DeleteReason, EventKind, KeyRange, LeaseChoice, LeaseRemaining,
    LeaseStart, Op, OpReply, RangeOp, RangeSort, Rejection, Reply, SortOrder,
};

fn keys(reply: &crate::model::RangeReply) -> Vec<&str> {
    reply.kvs.iter().map(|kv| std::str::from_utf8(&kv.key).unwrap()).collect()
}

#[test]
fn the_empty_store_is_at_revision_1() {
    let mut rig = Rig::new();
    assert_eq!(rig.machine.reader().view().revision(), 1);
    assert_eq!(rig.put("a", "1"), 2);
    assert_eq!(rig.delete(single("missing")), 2, "deleting nothing writes nothing");
    assert_eq!(rig.ops(vec![get("a")]).unwrap().revision, 2, "reading writes nothing");
    assert_eq!(rig.delete(single("a")), 3);
}

#[test]
fn one_transaction_has_one_revision() {
    let mut rig = Rig::new();
    let applied = rig.apply(vec![propose(Command::Txn(txn(vec![], vec![put("a", "1"), put("b", "2")], vec![])))]);
    assert_eq!(applied.events.len(), 1);
    assert_eq!(applied.events[0].revision, 2);
    assert_eq!(applied.events[0].events.iter().map(|e| e.kv.mod_revision).collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn a_value_compare_of_a_missing_key_never_holds() {
    let mut rig = Rig::new();
    for op in [Equal, NotEqual, Less, Greater] {
        let reply = rig.txn(txn(vec![compare("x", op, CompareTarget::Value("".into()))], vec![], vec![])).unwrap();
        assert!(!reply.succeeded, "{op:?}");
        assert_eq!(reply.failed_if, [0]);
    }
    for target in [CompareTarget::Version(0), CompareTarget::ModRevision(0), CompareTarget::Lease(0)] {
        assert!(rig.txn(txn(vec![compare("x", Equal, target)], vec![], vec![])).unwrap().succeeded);
    }
}

#[test]
fn a_range_compare_holds_for_every_key() {
    let mut rig = Rig::new();
    let all = |op, target| Compare { range: KeyRange::prefix("p/"), op, target };
    assert!(rig.txn(txn(vec![all(Equal, CompareTarget::Version(0))], vec![], vec![])).unwrap().succeeded);
    rig.put("p/a", "1");
    rig.put("p/b", "1");
    rig.put("p/b", "2");
    assert!(rig.txn(txn(vec![all(Greater, CompareTarget::Version(0))], vec![], vec![])).unwrap().succeeded);
    assert!(!rig.txn(txn(vec![all(Equal, CompareTarget::Version(1))], vec![], vec![])).unwrap().succeeded);
    assert!(!rig.txn(txn(vec![all(Equal, CompareTarget::Version(0))], vec![], vec![])).unwrap().succeeded);
}

#[test]
fn nested_compares_see_the_state_before_the_outer_writes() {
    let mut rig = Rig::new();
    let inner = txn(
        vec![compare("a", Equal, CompareTarget::Version(0))],
        vec![put("inner-then", "1"), get("a")],
        vec![put("inner-else", "1")],
    );
    let reply = rig.ops(vec![put("a", "1"), Op::Txn(Box::new(inner))]).unwrap();
    let OpReply::Txn(inner) = &reply.results[1] else { panic!("{reply:?}") };
    assert!(inner.succeeded, "the put of the outer transaction must not be seen by the compare");
    assert_eq!(inner.revision, 2);
    let OpReply::Range(range) = &inner.results[1] else { panic!("{inner:?}") };
    assert_eq!(keys(range), ["a"], "but by the read");
}

#[test]
fn a_key_is_written_once_in_a_transaction() {
    let mut rig = Rig::new();
    let nested = |success, failure| Op::Txn(Box::new(txn(vec![], success, failure)));
    let twice: Vec<Vec<Op>> = vec![
        vec![put("k", "1"), put("k", "2")],
        vec![put("k", "1"), delete("k")],
        vec![delete("k"), put("k", "1")],
        vec![Op::Delete { range: KeyRange::prefix("k"), prev_kv: false }, put("k1", "1")],
        vec![put("k", "1"), nested(vec![put("k", "2")], vec![])],
        vec![put("k", "1"), nested(vec![], vec![put("k", "2")])],
        vec![put("k", "1"), nested(vec![], vec![nested(vec![delete("k")], vec![])])],
        vec![nested(vec![put("k", "1")], vec![]), nested(vec![], vec![delete("k")])],
        vec![nested(vec![], vec![delete("k")]), nested(vec![put("k", "1")], vec![])],
        vec![nested(vec![put("k", "1")], vec![delete("k")]), delete("k")],
        vec![put("k", "1"), nested(vec![put("a", "1")], vec![delete("k")])],
        vec![nested(vec![put("l", "1")], vec![]), Op::Delete { range: KeyRange::prefix("l"), prev_kv: false }],
        vec![nested(vec![delete("a"), delete("k")], vec![delete("j"), delete("b")]), put("k", "1")],
        vec![put("k", "1"), add("k", 1)],
    ];
    for ops in twice {
        let reversed = txn(vec![], vec![], ops.clone());
        assert!(matches!(rig.ops(ops.clone()), Err(Rejection::DuplicateKey(_))), "{ops:?}");
        assert!(matches!(rig.txn(reversed), Err(Rejection::DuplicateKey(_))), "in a branch that is not taken: {ops:?}");
    }
    rig.ops(vec![delete("k"), Op::Delete { range: KeyRange::prefix("k"), prev_kv: false }]).unwrap();
    rig.ops(vec![nested(vec![put("k", "1")], vec![put("k", "2")])]).unwrap();
    rig.ops(vec![nested(vec![put("k", "1")], vec![delete("k")])]).expect("only one branch runs");
    rig.ops(vec![nested(vec![nested(vec![delete("k")], vec![])], vec![put("k", "1")]), put("l", "1")]).unwrap();
    rig.txn(txn(vec![], vec![put("k", "1")], vec![delete("k")])).unwrap();
    let whole = Op::Delete { range: KeyRange::all(), prev_kv: false };
    rig.ops(vec![whole, put("_tenure/locks/a", "1")]).expect("a whole-store delete does not touch hidden keys");
}

#[test]
fn operations_are_limited_across_nesting() {
    let mut rig = Rig::new();
    let many = |count: usize| (0..count).map(|n| put(&format!("k{n}"), "")).collect::<Vec<_>>();
    assert!(rig.ops(many(128)).is_ok());
    assert!(matches!(rig.ops(many(129)), Err(Rejection::TooManyOps { .. })));
    let nested = |count| Op::Txn(Box::new(txn(vec![], many(count), vec![])));
    assert!(rig.ops(vec![nested(127)]).is_ok());
    assert!(matches!(rig.ops(vec![nested(128)]), Err(Rejection::TooManyOps { .. })));
    let mut deep = get("a");
    for _ in 0..32 {
        deep = Op::Txn(Box::new(txn(vec![], vec![deep], vec![])));
    }
    assert!(matches!(rig.ops(vec![deep]), Err(Rejection::TooManyOps { .. })));
    assert!(matches!(rig.ops(vec![put("", "1")]), Err(Rejection::EmptyKey)));
}

/// etcd #18667: a read of a compacted revision inside a transaction.
#[test]
fn issue_18667_a_transaction_that_reads_a_compacted_revision_is_rejected_whole() {
    let mut rig = Rig::new();
    for value in ["1", "2", "3"] {
        rig.put("a", value);
    }
    rig.command(Command::Compact { revision: 3 }).unwrap();
    let before = rig.machine.reader().view().state_hash();
    let read_at = |revision| Op::Range(RangeOp { revision, ..RangeOp::newest(single("a")) });
    for trimmed in [false, true] {
        if trimmed {
            rig.trim();
        }
        for (revision, compacted) in [(2, true), (5, false)] {
            let result = rig.ops(vec![put("b", "1"), put("c", "1"), read_at(revision)]);
            match result {
                Err(Rejection::Compacted { requested: 2, compacted: 3, current: 4 }) => assert!(compacted),
                Err(Rejection::FutureRevision { requested: 5, current: 4 }) => assert!(!compacted),
                other => panic!("{other:?}"),
            }
        }
        let view = rig.machine.reader().view();
        assert_eq!((view.revision(), view.state_hash()), (4, before), "nothing of it was applied");
        assert_eq!(view.stats().indexed_keys, 1);
    }
    let reply = rig.ops(vec![put("a", "new"), read_at(3), get("a")]).unwrap();
    let values: Vec<_> = reply.results[1..]
        .iter()
        .map(|result| if let OpReply::Range(range) = result { range.kvs[0].value.clone() } else { panic!() })
        .collect();
    assert_eq!(values, ["2", "new"], "an old revision is read as it was, the newest with own writes");
}

/// etcd #17247 was a cache serving a transaction's own intermediate state.
#[test]
fn issue_17247_a_rejected_transaction_leaves_nothing_in_the_cache() {
    let mut rig = Rig::new();
    rig.put("a", "old");
    let lease_missing = put_with("z", "1", LeaseChoice::Attach(99));
    assert!(matches!(rig.ops(vec![put("a", "aborted"), lease_missing]), Err(Rejection::LeaseNotFound(99))));
    // The next write gets the very place that the aborted one had.
    assert_eq!(rig.put("b", "kept"), 3);
    let reply = rig.ops(vec![get("a"), get("b")]).unwrap();
    let value = |at: usize| match &reply.results[at] {
        OpReply::Range(range) => range.kvs[0].value.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!((&value(0)[..], &value(1)[..]), (&b"old"[..], &b"kept"[..]));
}

#[test]
fn filters_do_not_change_the_count_and_ties_keep_key_order() {
    let mut rig = Rig::new();
    for (key, value) in [("a", "1"), ("b", "2"), ("c", "1"), ("d", "2")] {
        rig.put(key, value);
    }
    let all = RangeOp::newest(KeyRange::all());
    let reply = rig.range(&RangeOp { min_mod_revision: 4, limit: 1, ..all.clone() });
    assert_eq!((keys(&reply), reply.count, reply.more), (vec!["c"], 4, true));
    let sorted = |order| RangeOp { sort: RangeSort::Value, order, ..all.clone() };
    assert_eq!(keys(&rig.range(&sorted(SortOrder::Ascending))), ["a", "c", "b", "d"]);
    assert_eq!(keys(&rig.range(&sorted(SortOrder::Descending))), ["b", "d", "a", "c"]);
    let reply = rig.range(&RangeOp { order: SortOrder::Descending, limit: 3, ..all.clone() });
    assert_eq!((keys(&reply), reply.count, reply.more), (vec!["d", "c", "b"], 4, true));
    let reply = rig.range(&RangeOp { limit: 4, ..all });
    assert!(!reply.more);
}

/// Only the leader of the entry's own term has counted; and what was started again since is another lease.
#[test]
fn what_a_former_leader_proposes_ends_and_shortens_nothing() {
    let mut rig = Rig::new();
    rig.command(Command::LeaseGrant { id: 7, ttl_ms: 120_000 }).unwrap();
    rig.ops(vec![put_with("a", "1", LeaseChoice::Attach(7))]).unwrap();
    let lease = |rig: &Rig| rig.machine.reader().view().lease(7);
    let granted = lease(&rig).unwrap();
    let start = LeaseStart { id: 7, generation: granted.generation };
    let remaining = LeaseRemaining { start, remaining_ms: 1000 };
    // The rig's entries are of term 1.
    for proposed in [0, 2] {
        let refused = Err(Rejection::StaleTerm { proposed, current: 1 });
        for command in [
            Command::LeaseExpire { term: proposed, leases: vec![start] },
            Command::LeaseCheckpoint { term: proposed, leases: vec![remaining] },
        ] {
            let told = rig.command(command);
            assert_eq!(told, refused, "VIOLATION: the leader of term {proposed} decided in term 1");
        }
        assert_eq!(lease(&rig), Some(granted.clone()), "VIOLATION: the lease was changed");
    }
    rig.command(Command::LeaseRenew { id: 7 }).unwrap();
    let passed_over = rig.command(Command::LeaseExpire { term: 1, leases: vec![start] });
    assert!(matches!(passed_over, Ok(Reply::LeasesExpired { leases: 0, deleted: 0, .. })), "{passed_over:?}");
    let start = LeaseStart { id: 7, generation: lease(&rig).unwrap().generation };
    let ended = rig.command(Command::LeaseExpire { term: 1, leases: vec![start] });
    assert!(matches!(ended, Ok(Reply::LeasesExpired { leases: 1, deleted: 1, .. })), "{ended:?}");
}

#[test]
fn revoking_a_lease_deletes_its_keys_in_one_revision_in_key_order() {
    let mut rig = Rig::new();
    rig.command(Command::LeaseGrant { id: 7, ttl_ms: 1000 }).unwrap();
    assert!(matches!(rig.command(Command::LeaseGrant { id: 7, ttl_ms: 1000 }), Err(Rejection::LeaseExists(7))));
    assert!(matches!(rig.command(Command::LeaseGrant { id: 8, ttl_ms: 999 }), Err(Rejection::Invalid { .. })));
    for key in ["c", "a", "b"] {
        rig.ops(vec![put_with(key, "1", LeaseChoice::Attach(7))]).unwrap();
    }
    rig.put("b", "detached");
    let revoke = Command::LeaseRevoke { id: 7, reason: DeleteReason::Expired };
    let applied = rig.apply(vec![propose(revoke.clone())]);
    assert_eq!(applied.outcomes[0].result, Ok(Reply::LeaseRevoked { deleted: 2, revision: 6 }));
    let events: Vec<_> = applied.events[0].events.iter().map(|e| (e.kv.key.clone(), e.kind.clone())).collect();
    let expired = EventKind::Delete(DeleteReason::Expired);
    assert_eq!(events, [("a".into(), expired.clone()), ("c".into(), expired)]);
    assert!(matches!(rig.command(revoke), Err(Rejection::LeaseNotFound(7))));
    rig.command(Command::LeaseGrant { id: 9, ttl_ms: 1000 }).unwrap();
    let revoke = Command::LeaseRevoke { id: 9, reason: DeleteReason::LeaseRevoked };
    assert_eq!(rig.command(revoke), Ok(Reply::LeaseRevoked { deleted: 0, revision: 6 }));
}

#[test]
fn an_implicit_lease_lives_as_long_as_its_key_has_it() {
    let mut rig = Rig::new();
    let ttl = |id| LeaseChoice::Implicit { id, ttl_ms: 5000 };
    let leases = |rig: &Rig| rig.machine.reader().view().leases(0, 10).iter().map(|l| l.id).collect::<Vec<_>>();
    rig.ops(vec![put_with("a", "1", ttl(1))]).unwrap();
    assert_eq!(leases(&rig), [1]);
    rig.ops(vec![put_with("a", "2", LeaseChoice::Keep)]).unwrap();
    assert_eq!(leases(&rig), [1]);
    rig.ops(vec![put_with("a", "3", ttl(2))]).unwrap();
    assert_eq!(leases(&rig), [2], "a new TTL replaces the lease");
    rig.put("a", "4");
    assert!(leases(&rig).is_empty(), "a put without TTL drops it");
    rig.ops(vec![put_with("a", "5", ttl(3))]).unwrap();
    rig.delete(single("a"));
    assert!(leases(&rig).is_empty(), "a delete drops it");
    let result = rig.ops(vec![put_with("a", "6", LeaseChoice::Implicit { id: 4, ttl_ms: 999 })]);
    assert!(matches!(result, Err(Rejection::Invalid { .. })));
}

#[test]
fn a_version_is_shown_on_the_lease_it_has_until_a_write_replaces_it() {
    let mut rig = Rig::new();
    let ttl = |id| LeaseChoice::Implicit { id, ttl_ms: 5000 };
    let written = rig.ops(vec![put_with("a", "1", ttl(1))]).unwrap().revision;
    rig.command(Command::TtlClear { key: "a".into() }).unwrap();
    let past = Op::Range(RangeOp { revision: written, ..RangeOp::newest(single("a")) });
    let reply = rig.ops(vec![past.clone(), put("a", "2"), past.clone()]).unwrap();
    let after = rig.ops(vec![past]).unwrap();
    let shown = [&reply.results[0], &reply.results[2], &after.results[0]].map(|result| {
        let OpReply::Range(range) = result else { panic!("a range was answered {result:?}") };
        range.kvs[0].lease
    });
    assert_eq!(shown, [0, 1, 1], "the write before it in its own transaction counts");
}

#[test]
fn hidden_keys_are_touched_only_by_ranges_that_start_below_their_prefix() {
    let mut rig = Rig::new();
    for key in ["_", "_tenure/locks/x", "_tenure0", "z"] {
        rig.put(key, "1");
    }
    let reply = rig.range(&RangeOp::newest(KeyRange::all()));
    assert_eq!((keys(&reply), reply.count), (vec!["_", "_tenure0", "z"], 3));
    assert_eq!(rig.range(&RangeOp::newest(KeyRange::prefix("_tenure/"))).count, 1);
    let reply = rig.ops(vec![Op::Delete { range: KeyRange::all(), prev_kv: false }]).unwrap();
    assert!(matches!(reply.results[0], OpReply::Delete { deleted: 3, .. }));
    assert_eq!(rig.range(&RangeOp::newest(single("_tenure/locks/x"))).count, 1);
}

#[test]
fn a_cursor_does_not_reach_hidden_keys() {
    let mut rig = Rig::new();
    for key in ["_", "_tenure/locks/x", "z"] {
        rig.put(key, "1");
    }
    let list = |resume: &'static str, order| crate::model::ListOp {
        range: KeyRange::all(),
        resume: Some(resume.into()),
        revision: 0,
        limit: 10,
        bytes_max: 1000,
        keys_only: true,
        count: false,
        count_only: false,
        delimiter: None,
        modified_after: None,
        order,
        sort: RangeSort::Key,
    };
    let view = rig.machine.reader().view();
    let found = |op| view.list(&Caller::Anonymous, &op).unwrap().items.into_iter().map(|kv| kv.key).collect::<Vec<_>>();
    assert_eq!(found(list("_tenure/a", SortOrder::Ascending)), ["z"]);
    assert_eq!(found(list("_tenure/z", SortOrder::Descending)), ["_"]);
}

/// Readers race with writes, compaction and trims, with a cache that holds next to nothing.
#[test]
fn a_repeated_request_gets_the_first_answer() {
    let mut rig = Rig::new();
    let command = |by| Command::Txn(txn(vec![], vec![add("n", by)], vec![]));
    let first = rig.apply(vec![keyed("k", 1, command(1))]).outcomes.remove(0);
    assert!(!first.replayed);
    let again = rig.apply(vec![keyed("k", 1, command(1))]).outcomes.remove(0);
    assert!(again.replayed);
    assert_eq!(again.result, first.result);
    assert_eq!(rig.machine.reader().view().revision(), 2, "applied once");
    let other = rig.apply(vec![keyed("k", 2, command(5))]).outcomes.remove(0);
    assert_eq!(other.result, Err(Rejection::IdempotencyKeyReused));
    let mut of_other = keyed("k", 2, command(5));
    of_other.caller = Caller::User { name: "ann".into(), auth_revision: 1 };
    assert!(!rig.apply(vec![of_other]).outcomes.remove(0).replayed, "keys are each caller's own");
    // Ten minutes, by a clock that is a tenth fast.
    rig.now_ms += 660_000;
    assert!(rig.apply(vec![keyed("k", 1, command(1))]).outcomes.remove(0).replayed, "old, but kept");
    rig.now_ms += 1;
    assert!(!rig.apply(vec![keyed("k", 1, command(1))]).outcomes.remove(0).replayed, "too old");
}

/// Where a term begins log time may step over hours: what one wrong clock had it behind, or what passed without a leader.
#[test]
fn what_log_time_steps_over_where_a_term_begins_ages_no_request() {
    let mut rig = Rig::new();
    let mut is_replayed = |term, passed_ms| {
        (rig.term, rig.now_ms) = (term, rig.now_ms + passed_ms);
        let command = Command::Txn(txn(vec![], vec![add("n", 1)], vec![]));
        let replayed = rig.apply(vec![keyed("k", 1, command)]).outcomes.remove(0).replayed;
        rig = rig.restored();
        replayed
    };
    let hour = 3_600_000;
    assert!(!is_replayed(1, 0));
    assert!(is_replayed(1, 659_999));
    assert!(is_replayed(2, 2 * hour));
    assert!(is_replayed(7, hour));
    assert!(is_replayed(7, 1));
    assert!(!is_replayed(7, 1), "but within a term");
}

#[test]
fn a_large_answer_is_replayed_as_its_outcome_and_a_full_quota_is_not_remembered() {
    let mut rig = Rig::new();
    let large = "v".repeat(5000);
    rig.put("a", &large);
    let overwrite = Command::Txn(txn(vec![], vec![put("a", "1")], vec![]));
    rig.apply(vec![keyed("large", 1, overwrite.clone())]);
    let again = rig.apply(vec![keyed("large", 1, overwrite)]).outcomes.remove(0);
    assert_eq!(again.result, Ok(Reply::Outcome { succeeded: true, revision: 3 }));
    rig.command(Command::SetQuota { bytes: 10 }).unwrap();
    let write = Command::Txn(txn(vec![], vec![put("b", "1")], vec![]));
    let refused = rig.apply(vec![keyed("full", 1, write.clone())]).outcomes.remove(0);
    assert_eq!(refused.result, Err(Rejection::QuotaExceeded { quota_bytes: 10 }));
    rig.command(Command::SetQuota { bytes: 1 << 20 }).unwrap();
    let retried = rig.apply(vec![keyed("full", 1, write)]).outcomes.remove(0);
    assert!(!retried.replayed && retried.result.is_ok());
}

#[test]
fn over_the_quota_only_growth_is_refused() {
    let mut rig = Rig::new();
    rig.put("a", &"v".repeat(1000));
    rig.put("a", &"v".repeat(1000));
    rig.command(Command::SetQuota { bytes: 2150 }).unwrap();
    assert!(matches!(rig.ops(vec![put("b", "1")]), Err(Rejection::QuotaExceeded { .. })));
    assert!(matches!(rig.command(Command::LeaseGrant { id: 1, ttl_ms: 1000 }), Err(Rejection::QuotaExceeded { .. })));
    let used = |rig: &Rig| rig.machine.reader().view().stats().used_bytes;
    let full = used(&rig);
    rig.command(Command::Compact { revision: 3 }).unwrap();
    assert!(used(&rig) < full, "compaction gives back what was superseded");
    rig.put("b", "1");
    rig.command(Command::SetQuota { bytes: 10 }).unwrap();
    rig.delete(single("a"));
    rig.command(Command::Compact { revision: 5 }).unwrap();
    assert_eq!(used(&rig), 66);
}

#[test]
fn what_fails_in_the_middle_takes_everything_back() {
    let mut rig = Rig::new();
    rig.command(Command::LeaseGrant { id: 1, ttl_ms: 1000 }).unwrap();
    rig.ops(vec![put_with("a", "1", LeaseChoice::Attach(1)), put("text", "no number")]).unwrap();
    let view = rig.machine.reader().view();
    let state = (view.state_hash(), view.stats(), view.revision());
    let implicit = LeaseChoice::Implicit { id: 5, ttl_ms: 2000 };
    let prelude = || vec![put_with("a", "2", LeaseChoice::Detach), put_with("new", "1", implicit), delete("gone")];
    let ignore = Op::Put(crate::model::PutOp {
        key: "missing".into(),
        value: "".into(),
        content_type: None,
        lease: LeaseChoice::Detach,
        prev_kv: false,
        ignore_value: true,
    });
    let patch = |key: &'static str| Op::MergePatch {
        key: key.into(),
        patch: "{}".into(),
        prev_kv: false,
        lease: LeaseChoice::Keep,
    };
    for (failing, code) in [
        (add("text", 1), Rejection::NotACounter { key: "text".into() }),
        (patch("text"), Rejection::NotJson { key: "text".into() }),
        (patch("missing"), Rejection::KeyNotFound { key: "missing".into() }),
        (ignore, Rejection::KeyNotFound { key: "missing".into() }),
        (put_with("b", "1", LeaseChoice::Attach(9)), Rejection::LeaseNotFound(9)),
        (put_with("b", "1", implicit), Rejection::LeaseExists(5)),
    ] {
        let ops = prelude().into_iter().chain([failing]).collect();
        assert_eq!(rig.ops(ops), Err(code));
        let view = rig.machine.reader().view();
        assert_eq!((view.state_hash(), view.stats(), view.revision()), state);
    }
}

#[test]
fn what_was_restored_from_a_file_is_read_from_there_and_taken_into_the_next_image() {
    let mut rig = Rig::new();
    let large = "l".repeat(100_000);
    for round in 0..40 {
        rig.put(&format!("k{}", round % 7), &format!("{round}{}", "v".repeat(900)));
        rig.put("large", &format!("{round}{large}"));
    }
    let blocks = rig.blocks();
    let file = snapshot_of(&blocks);
    // Nothing stays in memory.
    let options = machine::Options { value_cache_bytes: 0, ..machine::Options::default() };
    let restored = Machine::restore_over(file.bytes(), store(), &options, file).unwrap();
    let view = (rig.machine.reader().view(), restored.reader().view());
    for revision in 2..=view.0.revision() {
        for key in ["k0", "k3", "k6", "large"] {
            let got = |view: &machine::View| view.get(&Caller::Anonymous, &key.into(), revision).unwrap();
            assert_eq!(got(&view.0), got(&view.1), "{key} at {revision}");
        }
    }
    assert_eq!(super::support::blocks(&restored), blocks);
}
