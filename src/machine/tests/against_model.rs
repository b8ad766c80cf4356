//! Random proposals against the naive model, with compaction, trims, restores and reads in between;
//! and the same log applied in different ways.

use super::generate::{Dice, key, next_ms, proposal, range, range_op};
use super::model::{Model, ModelEvent, ModelLease, listing};
use super::support::{Rig, blocks, restore};
use crate::machine::hash::{self, Sum};
use crate::machine::index::Direction;
use crate::machine::read::{Source, live_in};
use crate::machine::{LeaseInfo, Machine, Options, View};
use crate::model::{
    Batch, Caller, Delimiter, Failure, HistoryItem, HistoryOp, KeyRange, KeyValue, ListOp, LogPosition, Proposal,
    RangeSort, RevisionEvents, SortOrder,
};
use bytes::Bytes;
use std::hash::{BuildHasher, Hasher};

const ANYBODY: Caller = Caller::Anonymous;

/// Fixed seeds, and some that no run had before; `TENURE_SEED` runs one again.
fn seeds(fixed: u64, fresh: u64) -> Vec<u64> {
    if let Ok(seed) = std::env::var("TENURE_SEED") {
        return vec![seed.parse().expect("TENURE_SEED is a number")];
    }
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (0..fixed).chain((0..fresh).map(|n| random.wrapping_add(n))).collect()
}

/// Prints the seed when its test fails.
struct Announce(u64);

impl Drop for Announce {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "the seed of a failed test")]
            {
                eprintln!("failed with TENURE_SEED={}", self.0);
            }
        }
    }
}

fn options(dice: &mut Dice) -> Options {
    Options {
        value_cache_bytes: dice.pick(&[0, 2000, 1 << 20]),
        idempotency_records_max: dice.pick(&[3, 1000]),
        ..Options::default()
    }
}

// Two tests, so that they run side by side.
#[test]
fn the_machine_agrees_with_the_model() {
    agree_with_the_model(seeds(100, 0));
}

#[test]
fn the_machine_agrees_with_the_model_on_new_seeds() {
    agree_with_the_model(seeds(0, 100));
}

fn agree_with_the_model(seeds: Vec<u64>) {
    for seed in seeds {
        let _announce = Announce(seed);
        let mut dice = Dice(seed);
        let options = options(&mut dice);
        let mut model = Model::new(options.quota_bytes, options.idempotency_records_max);
        let mut rig = Rig::with(options);
        let mut applied = 0;
        while applied < 520 {
            // Two take turns: what counts is whether it is another, and both propose.
            rig.term = if dice.one_in(8) { 3 - rig.term } else { rig.term };
            rig.now_ms = next_ms(&mut dice, rig.now_ms);
            let proposals: Vec<Proposal> = (0..=dice.below(4)).map(|_| proposal(&mut dice, model.revision)).collect();
            applied += proposals.len();
            batch(&mut rig, &mut model, &proposals);
            match dice.below(12) {
                0 => drop(rig.machine.trim_step(1 + dice.below(20) as usize).unwrap()),
                1 => reads(&rig, &model, &mut dice),
                2 => listings(&rig, &model, &mut dice),
                3 => histories(&rig, &model, &mut dice),
                _ => {}
            }
            if dice.one_in(60) {
                rig.trim();
            }
            if dice.one_in(60) {
                rig = rig.restored();
            }
            if dice.one_in(30) {
                whole_state(&rig, &model);
            }
        }
        whole_state(&rig, &model);
        rig.trim();
        whole_state(&rig, &model);
    }
}

fn batch(rig: &mut Rig, model: &mut Model, proposals: &[Proposal]) {
    let before = model.revision;
    let applied = rig.apply(proposals.to_vec());
    for (proposal, outcome) in proposals.iter().zip(&applied.outcomes) {
        let (result, replayed) = model.apply((rig.term, rig.now_ms), proposal);
        assert_eq!((&outcome.result, outcome.replayed), (&result, replayed), "{proposal:#?}");
    }
    assert_eq!(applied.revision, model.revision);
    let view = rig.machine.reader().view();
    assert_eq!(view.revision(), model.revision);
    compare_events(&view, model, &applied.events, before + 1, 0);
}

/// Former states are told of above `prev_above`.
fn compare_events(view: &View, model: &Model, events: &[RevisionEvents], from: i64, prev_above: i64) {
    let revisions: Vec<i64> = events.iter().map(|events| events.revision).collect();
    let expected: Vec<i64> = (from..).take(events.len()).collect();
    assert_eq!(revisions, expected);
    for RevisionEvents { revision, events } in events {
        let expected = &model.events[revision];
        assert_eq!(events.len(), expected.len());
        for (event, ModelEvent { kind, kv, prev }) in events.iter().zip(expected) {
            assert_eq!((&event.kind, &event.kv), (kind, kv));
            assert_eq!(event.prev.is_some(), prev.is_some() && *revision > prev_above, "at {revision}");
            // Compaction may have come right after, in the same batch.
            if let (Some(place), Some(prev)) = (event.prev, prev)
                && *revision > model.compacted
            {
                assert_eq!(view.record(place).unwrap(), *prev);
            }
        }
    }
}

/// What some ranges show of all readable history.
fn some_events(view: &View, model: &Model, targets: &[KeyRange]) {
    let shown = |kv: &KeyValue| targets.iter().any(|target| target.shows(&kv.key));
    let (mut told, mut next) = (Vec::new(), model.compacted);
    while next <= model.revision {
        let page = view.events_of(targets, next, 7).unwrap();
        assert!(page.upto >= next && page.upto <= model.revision);
        assert!(page.revisions.iter().all(|events| (next..=page.upto).contains(&events.revision)));
        for RevisionEvents { revision, events } in page.revisions {
            assert!(!events.is_empty());
            told.extend(events.iter().map(|event| (revision, event.kind.clone(), event.kv.clone())));
        }
        next = page.upto + 1;
    }
    let expected = model.events.range(model.compacted..).flat_map(|(revision, events)| {
        let events = events.iter().filter(|event| shown(&event.kv));
        events.map(|event| (*revision, event.kind.clone(), event.kv.clone()))
    });
    assert_eq!(told, expected.collect::<Vec<_>>());
}

fn reads(rig: &Rig, model: &Model, dice: &mut Dice) {
    let view = rig.machine.reader().view();
    for _ in 0..20 {
        let op = range_op(dice, model.revision);
        let expected = model.read(&model.state, &op);
        match (view.range(&ANYBODY, &op), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{op:?}"),
            (Err(Failure::Rejected(found)), Err(expected)) => assert_eq!(found, expected),
            other => panic!("{op:?}: {other:?}"),
        }
        let (key, revision) = (key(dice), op.revision);
        if let Some(keys) = model.at(revision) {
            assert_eq!(view.get(&ANYBODY, &key, revision).unwrap(), keys.get(&key).cloned());
        }
    }
}

fn listings(rig: &Rig, model: &Model, dice: &mut Dice) {
    let view = rig.machine.reader().view();
    for _ in 0..10 {
        let range = if dice.one_in(2) { KeyRange::all() } else { range(dice) };
        let revision = if dice.one_in(2) { 0 } else { dice.revision(model.revision) };
        let Some(keys) = model.at(revision) else { continue };
        let delimiter = dice.one_in(2).then(|| Delimiter {
            bytes: dice.pick(&[Bytes::from("/"), Bytes::from("x/"), Bytes::from_static(b"\xff")]),
            prefix_len: dice.pick(&[0, 0, 1, 2]),
        });
        let after = if dice.one_in(3) { dice.revision(model.revision) } else { 0 };
        let order = dice.pick(&[SortOrder::Ascending, SortOrder::Descending]);
        let grouping = delimiter.as_ref().map(|delimiter| (&delimiter.bytes[..], delimiter.prefix_len));
        let expected = listing(&keys, &range, after, grouping, order);
        let mut op = ListOp {
            range,
            resume: None,
            revision,
            limit: 1 + dice.below(7),
            bytes_max: dice.pick(&[1, 300, 1 << 20]),
            keys_only: false,
            count: true,
            count_only: false,
            delimiter,
            modified_after: (after > 0).then_some(after),
            order,
            sort: RangeSort::Key,
        };
        let mut items = Vec::new();
        let mut prefixes = Vec::new();
        loop {
            let page = view.list(&ANYBODY, &op).unwrap();
            let entries = page.items.len() + page.prefixes.len();
            assert!(entries as u64 <= op.limit && (entries > 0 || page.next.is_none()));
            assert_eq!(page.count, Some(keys.keys().filter(|key| op.range.shows(key)).count() as u64));
            assert_eq!(page.more, page.next.is_some());
            items.extend(page.items);
            prefixes.extend(page.prefixes);
            op.resume = page.next;
            if op.resume.is_none() {
                break;
            }
        }
        let expected_items: Vec<_> = expected.iter().filter_map(|entry| entry.as_ref().ok().copied()).collect();
        let expected_prefixes: Vec<_> = expected.iter().filter_map(|entry| entry.as_ref().err()).collect();
        assert_eq!(items.iter().collect::<Vec<_>>(), expected_items, "{op:?}");
        assert_eq!(prefixes.iter().collect::<Vec<_>>(), expected_prefixes, "{op:?}");
    }
}

fn histories(rig: &Rig, model: &Model, dice: &mut Dice) {
    let view = rig.machine.reader().view();
    for _ in 0..10 {
        let key = key(dice);
        let expected = model.history(&key);
        let mut op = HistoryOp { key, limit: 1 + dice.below(5), before: None, keys_only: false };
        let mut found = Vec::new();
        loop {
            let Some(page) = view.history(&ANYBODY, &op).unwrap() else {
                assert!(expected.is_empty());
                break;
            };
            assert!(!expected.is_empty());
            found.extend(page.items);
            if !page.more {
                break;
            }
            op.before = found.last().map(|item| match item {
                HistoryItem::Put(kv) => kv.mod_revision,
                HistoryItem::Delete { revision, .. } => *revision,
            });
        }
        assert_eq!(format!("{found:?}"), format!("{expected:?}"));
    }
}

/// Everything: all readable events, leases, sizes, and the hash made anew.
fn whole_state(rig: &Rig, model: &Model) {
    let view = rig.machine.reader().view();
    assert!(view.events(model.compacted - 1, 10).is_err() || model.compacted == 0);
    let mut from = model.compacted;
    while from <= model.revision.max(1) {
        let events = view.events(from, 7).unwrap();
        let Some(last) = events.last() else { break };
        compare_events(&view, model, &events, from.max(2), model.compacted);
        from = last.revision + 1;
    }
    assert_eq!(from.max(2), model.revision + 1);
    match model.revision % 3 {
        0 => some_events(&view, model, &[KeyRange::prefix("d/")]),
        1 => some_events(&view, model, &[KeyRange::all()]),
        _ => some_events(&view, model, &[KeyRange::prefix("_tenure/"), KeyRange::key("a")]),
    }
    let leases = view.leases(0, 1000).into_iter().map(|lease| {
        let LeaseInfo { id, ttl_ms, implicit, checkpoint_ms, generation, label } = lease;
        let label = label.as_deref().cloned().unwrap_or_default();
        (id, ModelLease { ttl_ms, implicit, remaining_ms: checkpoint_ms, generation, label })
    });
    assert_eq!(leases.collect::<Vec<_>>(), model.state.leases.clone().into_iter().collect::<Vec<_>>());
    for id in model.state.leases.keys() {
        let attached: Vec<_> = model.state.keys.values().filter(|kv| kv.lease == *id).map(|kv| &kv.key).collect();
        assert_eq!(view.lease_keys(&ANYBODY, *id, 1000).iter().collect::<Vec<_>>(), attached);
    }
    let stats = view.stats();
    assert_eq!(stats.keys, model.state.keys.len() as u64);
    assert_eq!(stats.live_bytes, model.live_bytes());
    assert_eq!(stats.retained_bytes, model.retained_bytes());
    assert_eq!(stats.idempotency_records, model.remembered() as u64);
    assert_eq!(stats.used_bytes, model.used());
    hash_made_anew(rig);
    let in_slots: u64 =
        rig.machine.root.index.iter(&KeyRange::all(), Direction::Forward, 0).map(|key| key.slot.counted_bytes()).sum();
    assert_eq!(stats.cached_value_bytes, in_slots);
    let restored = rig.restored();
    let copy = restored.machine.reader().view();
    assert_eq!(copy.state_hash(), view.state_hash());
    assert_eq!((copy.applied(), copy.stats().used_bytes), (view.applied(), stats.used_bytes));
}

fn hash_made_anew(rig: &Rig) {
    let root = &rig.machine.root;
    let source = Source { root, pending: &[], newest: root.numbers.revision };
    let mut sum = Sum::default();
    for range in [KeyRange::all(), KeyRange::prefix("_tenure/")] {
        for live in live_in(root, &range, Direction::Forward, root.numbers.revision, 0) {
            sum.add(hash::record(&source.fetch(live.place).unwrap()));
            if live.key.head.lease != 0 {
                sum.add(hash::attachment(live.key.head.lease, &live.key.key));
            }
        }
    }
    for (id, lease) in root.leases.iter() {
        sum.add(hash::lease(id, &lease));
    }
    for record in root.idempotency.iter() {
        sum.add(record.hash());
    }
    sum.add(root.idempotency.steps().unwrap().hash());
    assert_eq!(sum, root.sum);
}

/// One log, applied one proposal at a time and in whole batches, imaged and trimmed at different
/// points: the same outcomes, the same state.
#[test]
fn how_a_log_is_applied_leaves_no_trace() {
    for seed in seeds(12, 4) {
        let _announce = Announce(seed);
        let mut dice = Dice(seed);
        let settings = options(&mut dice);
        let mut now_ms = 1_000_000;
        let log: Vec<(u64, Proposal)> = (0..800)
            .map(|at| {
                now_ms = next_ms(&mut dice, now_ms);
                (now_ms, proposal(&mut dice, 2 + at / 3))
            })
            .collect();
        let cache = |bytes| Options { value_cache_bytes: bytes, ..settings.clone() };
        let (outcomes, last) = run(&log, 1, &cache(1 << 20), &mut Dice(0), false);
        for (most, bytes) in [(1, 0), (7, 3000), (64, 1 << 20), (256, 0)] {
            let (others, other) = run(&log, most, &cache(bytes), &mut dice, true);
            assert_eq!(outcomes, others);
            let (a, b) = (last.reader().view(), other.reader().view());
            assert_eq!((a.state_hash(), a.revision()), (b.state_hash(), b.revision()));
            let everything = crate::model::RangeOp::newest(KeyRange::all());
            assert_eq!(a.range(&ANYBODY, &everything).unwrap(), b.range(&ANYBODY, &everything).unwrap());
            assert_eq!(a.stats().used_bytes, b.stats().used_bytes);
            let from = a.compacted_revision();
            let events = |view: &View| format!("{:?}", view.events(from, usize::MAX).unwrap());
            assert_eq!(events(&a), events(&b));
        }
    }
}

fn run(
    log: &[(u64, Proposal)],
    most: usize,
    options: &Options,
    dice: &mut Dice,
    disturbed: bool,
) -> (Vec<crate::machine::Outcome>, Machine) {
    let mut machine = Machine::new(super::support::store(), options);
    let mut outcomes = Vec::new();
    let mut index = 0;
    for at_one_time in log.chunk_by(|a, b| a.0 == b.0) {
        for chunk in at_one_time.chunks(most) {
            index += 1;
            let proposals = chunk.iter().map(|(_, proposal)| proposal.clone()).collect();
            let batch = Batch { proposed_at_ms: chunk[0].0, wall_ms: index, proposals };
            let at = LogPosition { term: 1 + chunk[0].0 / 50_000 % 2, node: 1, index };
            outcomes.extend(machine.apply(at, &batch).unwrap().outcomes);
            if disturbed && dice.one_in(20) {
                machine = restore(options, blocks(&machine)).unwrap();
            }
            if disturbed && dice.one_in(5) {
                machine.trim_step(1 + dice.below(50) as usize).unwrap();
            }
        }
    }
    (outcomes, machine)
}
