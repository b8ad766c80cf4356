//! Named cases: compaction, trims, images, and readers beside them.

use super::support::*;
use crate::machine::TrimStep;
use crate::model::{Caller, Command, DeleteReason, EventKind, KeyRange, LeaseChoice, RangeOp, Rejection, Reply, Txn};

#[test]
fn former_values_are_at_hand_once_they_are_asked_for() {
    let mut rig = Rig::new();
    let first = rig.put("a", "1");
    let second = rig.put("a", "2");
    let values = rig.machine.root.values.clone();
    let view = rig.machine.reader().view();
    let prev = view.events(second, 1).unwrap()[0].events[0].prev.unwrap();
    assert_eq!(view.record(prev).unwrap().value, "1", "from the store");
    let third = rig.put("a", "3");
    assert!(values.former(first, 0).is_none(), "nobody had asked yet");
    assert_eq!(values.former(second, 0).unwrap().slot.get().unwrap(), "2");
    let view = rig.machine.reader().view();
    let prev = view.events(third, 1).unwrap()[0].events[0].prev.unwrap();
    assert_eq!(view.record(prev).unwrap().value, "2");
}

#[test]
fn compaction_follows_etcd() {
    let mut rig = Rig::new();
    for value in ["1", "2", "3"] {
        rig.put("a", value);
    }
    let compact = |revision| Command::Compact { revision };
    assert!(matches!(rig.command(compact(5)), Err(Rejection::FutureRevision { .. })));
    rig.command(compact(3)).unwrap();
    assert!(matches!(rig.command(compact(3)), Err(Rejection::Compacted { compacted: 3, .. })));
    assert!(matches!(rig.command(compact(2)), Err(Rejection::Compacted { .. })));
    let view = rig.machine.reader().view();
    let read = |revision| view.range(&Caller::Anonymous, &RangeOp { revision, ..RangeOp::newest(single("a")) });
    assert!(read(2).is_err());
    assert_eq!(read(3).unwrap().kvs[0].value, "2", "the compacted revision itself stays readable");
    assert!(view.events(2, 10).is_err());
    assert_eq!(view.events(3, 10).unwrap().len(), 2);
}

#[test]
fn compaction_at_a_delete_keeps_later_events_and_their_former_state() {
    let mut rig = Rig::new();
    rig.put("a", "1");
    let deleted = rig.delete(single("a"));
    rig.put("a", "2");
    rig.put("a", "3");
    rig.command(Command::Compact { revision: deleted }).unwrap();
    rig.trim();
    let view = rig.machine.reader().view();
    let events = view.events(deleted + 1, 10).unwrap();
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].events[0].prev, None);
    let prev = events[1].events[0].prev.unwrap();
    assert_eq!(view.record(prev).unwrap().value, "2");
}

/// A delete at exactly the compacted revision is told until the next compaction, by this member and by
/// one that was restored from its image, whether or not anything came after it.
/// (etcd #18089 and #19179 lost it.)
#[test]
fn issue_19179_a_delete_at_the_compacted_revision_is_told_until_the_next() {
    for later in [false, true] {
        let mut rig = Rig::new();
        rig.put("a", "1");
        rig.put("b", "1");
        let deleted = rig.delete(single("a"));
        if later {
            rig.put("a", "2");
        }
        rig.command(Command::Compact { revision: deleted }).unwrap();
        let told = |rig: &Rig| {
            let events = rig.machine.reader().view().events(deleted, 1).unwrap();
            let event = &events[0].events[0];
            assert_eq!((events[0].revision, &event.kind), (deleted, &EventKind::Delete(DeleteReason::Deleted)));
            assert_eq!(event.prev, None, "the state before it may not be told any more");
        };
        told(&rig);
        rig.trim();
        told(&rig);
        told(&rig.restored());
        assert!(rig.machine.reader().view().events(deleted - 1, 10).is_err());
        let next = rig.put("b", "2");
        rig.command(Command::Compact { revision: next }).unwrap();
        rig.trim();
        let view = rig.machine.reader().view();
        assert!(view.events(deleted, 10).is_err());
        assert_eq!(view.stats().indexed_keys, 1 + u64::from(later), "the tombstone is gone with its key");
    }
}

/// A store whose newest revisions are deletes that have been compacted fell back to an older revision
/// after a crash, because it took the newest one from its records.
#[test]
fn issue_17780_the_revision_outlives_the_compaction_of_its_deletes() {
    let mut rig = Rig::new();
    rig.put("a", "1");
    rig.put("b", "1");
    rig.delete(single("b"));
    let newest = rig.delete(single("a"));
    for steps in 0..5 {
        if steps == 1 {
            rig.command(Command::Compact { revision: newest }).unwrap();
        }
        if steps > 1 {
            rig.machine.trim_step(1).unwrap();
        }
        assert_eq!(rig.restored().machine.reader().view().revision(), newest, "after {steps} steps");
    }
    rig = rig.restored();
    assert_eq!(rig.put("c", "1"), newest + 1);
}

#[test]
fn readers_keep_their_handle_when_an_image_is_installed() {
    let mut rig = Rig::new();
    rig.put("a", "1");
    let mut other = Rig::new();
    for _ in 0..5 {
        other.put("b", "2");
    }
    let reader = rig.machine.reader();
    let before = reader.view();
    rig.machine.install(restore(&other.options, other.blocks()).unwrap());
    assert_eq!(reader.view().state_hash(), other.machine.reader().view().state_hash());
    assert!(reader.view().get(&Caller::Anonymous, &"b".into(), 0).unwrap().is_some());
    assert!(before.get(&Caller::Anonymous, &"a".into(), 0).unwrap().is_some(), "an old view goes on");
    rig.index = 100;
    rig.put("c", "3");
    assert_eq!(reader.view().revision(), 7);
}

#[test]
fn readers_see_whole_batches_and_never_a_hole() {
    let mut rig = Rig::new();
    rig.options.value_cache_bytes = 1000;
    rig.machine = crate::machine::Machine::new(store(), &rig.options);
    rig.ops(vec![put("a", "0"), put("b", "0")]).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let reader = rig.machine.reader();
    let rig = parking_lot::Mutex::new(rig);
    let (reads, steps): (u64, u64) = std::thread::scope(|scope| {
        let trimmer = scope.spawn(|| {
            let mut steps = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                if let TrimStep::Index(compacted) = reader.trim(20).unwrap() {
                    let trimmed = rig.lock().machine.trim_index(&compacted);
                    trimmed.finish();
                    steps += 1;
                }
            }
            steps
        });
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut reads = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) || reads == 0 {
                        let view = reader.view();
                        let all = view.range(&Caller::Anonymous, &RangeOp::newest(KeyRange::all())).unwrap();
                        assert_eq!(all.kvs.len(), 2);
                        assert_eq!(all.kvs[0].value, all.kvs[1].value);
                        let old = view.compacted_revision().max(2);
                        let op = RangeOp { revision: old, ..RangeOp::newest(KeyRange::all()) };
                        assert_eq!(view.range(&Caller::Anonymous, &op).unwrap().kvs.len(), 2);
                        for events in view.events(view.compacted_revision().max(1) + 1, 100).unwrap() {
                            assert_eq!(events.events.len(), 2);
                        }
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        for n in 0..1500 {
            let value = format!("{n}{}", "x".repeat(500));
            let mut rig = rig.lock();
            let revision = rig.ops(vec![put("b", &value), put("a", &value)]).unwrap().revision;
            if n % 50 == 49 {
                rig.command(Command::Compact { revision: revision - 10 }).unwrap();
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        (readers.into_iter().map(|reader| reader.join().unwrap()).sum(), trimmer.join().unwrap())
    });
    assert!(reads > 0 && steps > 0);
    let mut rig = rig.into_inner();
    rig.trim();
    let stats = rig.machine.values.store.stats();
    assert!(stats.records + stats.tail_records < 200, "{stats:?}");
}

#[test]
fn a_held_view_keeps_what_it_reads() {
    let mut rig = Rig::new();
    rig.options.value_cache_bytes = 0;
    rig.machine = crate::machine::Machine::new(store(), &rig.options);
    for n in 0..200 {
        rig.put(&format!("k{n:03}"), &"old".repeat(100));
    }
    let held = rig.machine.reader().view();
    for n in 0..200 {
        rig.put(&format!("k{n:03}"), &"new".repeat(100));
    }
    let current = rig.machine.reader().view().revision();
    rig.command(Command::Compact { revision: current }).unwrap();
    rig.trim();
    assert!(rig.machine.trim_pending(), "the view holds it up");
    let old = held.range(&Caller::Anonymous, &RangeOp::newest(KeyRange::all())).unwrap();
    assert!(old.kvs.len() == 200 && old.kvs.iter().all(|kv| kv.value.starts_with(b"old")));
    drop(held);
    rig.trim();
    assert!(!rig.machine.trim_pending());
    let stats = rig.machine.values.store.stats();
    assert!(stats.records + stats.tail_records < 300, "{stats:?}");
}

#[test]
fn a_write_takes_with_it_what_compaction_released() {
    let mut rig = Rig::new();
    for n in 0..100 {
        rig.put("a", &n.to_string());
    }
    let held = rig.machine.reader().view();
    let versions = |rig: &Rig| rig.machine.root.index.get(b"a").unwrap().history.len() + 1;
    let newest = rig.put("a", "100");
    rig.command(Command::Compact { revision: newest }).unwrap();
    let refused = Txn { success: vec![put("a", "x"), put_with("b", "x", LeaseChoice::Attach(77))], ..Txn::default() };
    rig.txn(refused).unwrap_err();
    assert_eq!((versions(&rig), rig.machine.outlived.len()), (101, 0), "what was taken back took nothing");
    rig.put("a", "101");
    assert_eq!((versions(&rig), rig.machine.outlived.len()), (2, 100), "without the trimmer");
    let old = held.range(&Caller::Anonymous, &RangeOp { revision: 50, ..RangeOp::newest(single("a")) });
    assert_eq!(old.unwrap().kvs[0].value, "48", "whoever reads the state before has it all");
    rig.trim();
    assert!(rig.machine.outlived.is_empty() && rig.machine.trim_pending());
    let old = held.range(&Caller::Anonymous, &RangeOp { revision: 50, ..RangeOp::newest(single("a")) });
    assert_eq!(old.unwrap().kvs[0].value, "48", "in the block store too");
    let at_compacted = RangeOp { revision: newest, ..RangeOp::newest(single("a")) };
    assert_eq!(rig.range(&at_compacted).kvs[0].value, "100");
    drop(held);
    rig.trim();
    assert!(!rig.machine.trim_pending());
    assert_eq!(rig.range(&at_compacted).kvs[0].value, "100");
}

#[test]
fn an_image_holds_up_trims_until_it_is_dropped() {
    let mut rig = Rig::new();
    for n in 0..300 {
        rig.put("a", &format!("{n}{}", "x".repeat(300)));
    }
    rig.command(Command::Compact { revision: 301 }).unwrap();
    while rig.machine.root.trimmed < 301 {
        rig.machine.trim_step(10).unwrap();
    }
    // Of the newest root, so that only its pin speaks for it.
    let image = rig.machine.image();
    rig.trim();
    assert!(rig.machine.trim_pending());
    let mut blocks = 0;
    let mut count = |_: &[u8]| {
        blocks += 1;
        Ok(())
    };
    image.write_to(&|| Ok(()), &mut count).unwrap();
    assert_eq!(blocks, 4, "the header, steps, records and the end");
    drop(image);
    rig.trim();
    assert!(!rig.machine.trim_pending());
    let stats = rig.machine.values.store.stats();
    assert!(stats.records + stats.tail_records < 150, "{stats:?}");
}

#[test]
fn an_unknown_feature_level_is_a_fault() {
    let mut rig = Rig::new();
    assert_eq!(rig.command(Command::RaiseFeatureLevel { level: 1 }), Ok(Reply::FeatureLevel { level: 1 }));
    let batch = crate::model::Batch {
        proposed_at_ms: 0,
        wall_ms: 0,
        proposals: vec![propose(Command::RaiseFeatureLevel { level: 99 })],
    };
    let at = crate::model::LogPosition { term: 1, node: 1, index: 100 };
    assert!(rig.machine.apply(at, &batch).is_err());
}

#[test]
fn a_damaged_image_is_refused() {
    let mut rig = Rig::new();
    rig.command(Command::LeaseGrant { id: 1, ttl_ms: 1000 }).unwrap();
    rig.ops(vec![put_with("a", "1", LeaseChoice::Attach(1)), put("b", "2")]).unwrap();
    let blocks = rig.blocks();
    assert!(restore(&rig.options, blocks.clone()).is_ok());
    for at in 0..blocks.len() {
        let mut missing = blocks.clone();
        missing.remove(at);
        assert!(restore(&rig.options, missing).is_err(), "without block {at}");
        let mut twice = blocks.clone();
        twice.insert(at, blocks[at].clone());
        assert!(restore(&rig.options, twice).is_err(), "with block {at} twice");
        for bit in 0..blocks[at].len() * 8 {
            let mut flipped = blocks.clone();
            let mut bytes = blocks[at].to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            flipped[at] = bytes.into();
            let Ok(machine) = restore(&rig.options, flipped) else { continue };
            // What the hash does not cover (where in the log it stood, buckets' times) has the
            // snapshot file's own digest; everything else must be as it was.
            let (a, b) = (machine.reader().view(), rig.machine.reader().view());
            assert_eq!((a.state_hash(), a.stats().keys), (b.state_hash(), b.stats().keys), "block {at}, bit {bit}");
        }
    }
}
