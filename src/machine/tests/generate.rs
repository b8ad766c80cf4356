//! Random proposals over few keys, so that they meet.

use crate::model::{
    Caller, Command, Compare, CompareOp, CompareTarget, DeleteReason, Idempotency, KeyRange, LeaseChoice, LeaseLabel,
    LeaseRemaining, LeaseStart, Op, Proposal, PutOp, RangeOp, RangeSort, Revision, SortOrder, Txn,
};
use bytes::Bytes;

/// SplitMix64: small, and the same everywhere.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn one_in(&mut self, chance: u64) -> bool {
        self.below(chance) == 0
    }

    pub(super) fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize].clone()
    }

    pub(super) fn revision(&mut self, current: Revision) -> Revision {
        match self.below(4) {
            0 => 0,
            1 => (current - self.below(8) as i64).max(0),
            _ => self.below(current as u64 + 2) as i64,
        }
    }
}

const KEYS: &[&[u8]] = &[
    b"a",
    b"a\0",
    b"aa",
    b"b",
    b"d/1",
    b"d/2",
    b"d/x/1",
    b"d/x/2",
    b"d/x/y/3",
    b"d0",
    b"e/",
    b"_",
    b"_tenure",
    b"_tenure/l/1",
    b"_tenure/l/2",
    b"_tenure0",
    b"f\xff",
    b"f\xff\xff",
    b"\xff",
    b"\xff\xff",
    b"n1",
    b"n2",
];
const VALUES: &[&[u8]] = &[
    b"",
    b"1",
    b"-7",
    b"9223372036854775807",
    b"text",
    b"{}",
    br#"{"a":1,"b":{"c":"x"}}"#,
    br#"{"a":[1,2]}"#,
    b"\xff\xfe",
];
const PATCHES: &[&[u8]] = &[b"{}", br#"{"a":null}"#, br#"{"b":{"d":true}}"#, br#"{"z":"y"}"#, b"[1]", b"7"];

pub(super) fn key(dice: &mut Dice) -> Bytes {
    // Some keys are far more common than others.
    let count = if dice.one_in(3) { KEYS.len() } else { 6 };
    let key = Bytes::from_static(KEYS[dice.below(count as u64) as usize]);
    if dice.one_in(12) { [&key[..], format!("{:02}", dice.below(60)).as_bytes()].concat().into() } else { key }
}

pub(super) fn range(dice: &mut Dice) -> KeyRange {
    match dice.below(8) {
        0..=3 => KeyRange::key(key(dice)),
        4 => KeyRange::prefix(dice.pick(&[&b"d/"[..], b"d/x/", b"_", b"_tenure/", b"a", b"f", b"\xff", b""])),
        5 => KeyRange { start: key(dice), end: None },
        6 => KeyRange { start: key(dice), end: Some(key(dice)) },
        _ => KeyRange::all(),
    }
}

fn lease_id(dice: &mut Dice) -> i64 {
    1 + dice.below(6) as i64
}

fn lease(dice: &mut Dice) -> LeaseChoice {
    match dice.below(10) {
        0 => LeaseChoice::Attach(if dice.one_in(3) { 10 + dice.below(30) as i64 } else { lease_id(dice) }),
        1 => LeaseChoice::Implicit { id: 10 + dice.below(30) as i64, ttl_ms: 500 + dice.below(9) * 500 },
        2 | 3 => LeaseChoice::Keep,
        _ => LeaseChoice::Detach,
    }
}

pub(super) fn range_op(dice: &mut Dice, current: Revision) -> RangeOp {
    let mut op = RangeOp::newest(range(dice));
    op.revision = if dice.one_in(2) { 0 } else { dice.revision(current) };
    op.limit = dice.pick(&[0, 0, 1, 2, 5]);
    op.bytes_max = dice.pick(&[0, 0, 0, 1, 200, 400]);
    op.sort = dice.pick(&[
        RangeSort::Key,
        RangeSort::Key,
        RangeSort::Version,
        RangeSort::Create,
        RangeSort::Mod,
        RangeSort::Value,
    ]);
    op.order = dice.pick(&[SortOrder::Ascending, SortOrder::Descending]);
    op.keys_only = dice.one_in(4);
    op.count_only = dice.one_in(8);
    for filter in
        [&mut op.min_mod_revision, &mut op.max_mod_revision, &mut op.min_create_revision, &mut op.max_create_revision]
    {
        *filter = if dice.one_in(8) { dice.revision(current) } else { 0 };
    }
    op
}

fn compare(dice: &mut Dice, current: Revision) -> Compare {
    let target = match dice.below(5) {
        0 => CompareTarget::Version(dice.below(4) as i64),
        1 => CompareTarget::CreateRevision(dice.revision(current)),
        2 => CompareTarget::ModRevision(dice.revision(current)),
        3 => CompareTarget::Value(Bytes::from_static(dice.pick(VALUES))),
        _ => CompareTarget::Lease(dice.below(6) as i64),
    };
    use CompareOp::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    let op = dice.pick(&[Equal, NotEqual, Less, LessOrEqual, Greater, GreaterOrEqual]);
    Compare { range: range(dice), op, target }
}

fn op(dice: &mut Dice, current: Revision, depth: u32) -> Op {
    match dice.below(16) {
        0..=6 => Op::Put(PutOp {
            key: key(dice),
            value: if dice.one_in(40) {
                vec![b'v'; 3000 + dice.below(4000) as usize].into()
            } else {
                Bytes::from_static(dice.pick(VALUES))
            },
            content_type: dice.pick(&[None, None, Some("text/plain".into()), Some("application/json".into())]),
            lease: lease(dice),
            prev_kv: dice.one_in(2),
            ignore_value: dice.one_in(8),
        }),
        7 | 8 => Op::Delete { range: range(dice), prev_kv: dice.one_in(2) },
        9 | 10 => Op::Range(range_op(dice, current)),
        11 | 12 => Op::Add {
            key: if dice.one_in(3) { key(dice) } else { dice.pick(&[Bytes::from("n1"), Bytes::from("n2")]) },
            by: dice.pick(&[1, -1, 5, i64::MAX, i64::MIN]),
            initial: dice.pick(&[0, 0, 7]),
            min: dice.pick(&[None, None, Some(0), Some(-10)]),
            max: dice.pick(&[None, None, Some(10), Some(-20)]),
            clamp: dice.one_in(2),
            lease: lease(dice),
        },
        13 => Op::MergePatch {
            key: key(dice),
            patch: Bytes::from_static(dice.pick(PATCHES)),
            prev_kv: dice.one_in(2),
            lease: lease(dice),
        },
        _ if depth < 3 => Op::Txn(Box::new(txn(dice, current, depth + 1))),
        _ => Op::Delete { range: KeyRange::key(key(dice)), prev_kv: false },
    }
}

fn txn(dice: &mut Dice, current: Revision, depth: u32) -> Txn {
    let compares = (0..dice.pick(&[0, 0, 1, 2])).map(|_| compare(dice, current)).collect();
    let mut branch = |most: u64| {
        let count = dice.below(most + 1);
        (0..count).map(|_| op(dice, current, depth)).collect()
    };
    Txn { compares, success: branch(4), failure: branch(2) }
}

fn about_leases(dice: &mut Dice) -> Command {
    let ttl_ms = 900 + dice.below(5) * 100;
    let label = LeaseLabel {
        name: dice.pick(&[None, Some("worker".into()), Some(String::new())]),
        metadata: dice.pick(&[None, Some("{}".into()), Some(vec![b'm'; 3000].into())]),
    };
    let any = if dice.one_in(2) { lease_id(dice) } else { 10 + dice.below(30) as i64 };
    let term = if dice.one_in(5) { 2 } else { 1 };
    // Which generation a lease has is not known here: some of these are right.
    let first = dice.below(100);
    let starts = (first..first + 50).map(|generation| LeaseStart { id: any, generation });
    match dice.below(10) {
        0 | 1 => Command::LeaseGrant { id: lease_id(dice), ttl_ms },
        2 => Command::LeaseGrantLabelled { id: lease_id(dice), ttl_ms, label },
        3 => Command::LeaseExpire { term, leases: starts.collect() },
        4 | 5 => {
            let remaining_ms = dice.below(1000);
            Command::LeaseCheckpoint {
                term,
                leases: starts.map(|start| LeaseRemaining { start, remaining_ms }).collect(),
            }
        }
        6 => Command::LeaseRenew { id: any },
        7 | 8 => Command::TtlSet { key: key(dice), id: 10 + dice.below(30) as i64, ttl_ms },
        _ => Command::TtlClear { key: key(dice) },
    }
}

fn command(dice: &mut Dice, current: Revision) -> Command {
    match dice.below(100) {
        0..=39 => Command::Txn(Txn { success: vec![op(dice, current, 3)], ..Txn::default() }),
        40..=79 => Command::Txn(txn(dice, current, 0)),
        80..=89 => about_leases(dice),
        90..=93 => Command::LeaseRevoke {
            id: if dice.one_in(2) { lease_id(dice) } else { 10 + dice.below(30) as i64 },
            reason: dice.pick(&[DeleteReason::Expired, DeleteReason::LeaseRevoked]),
        },
        94..=96 => Command::Compact {
            revision: if dice.one_in(3) { current } else { (current - dice.below(30) as i64).max(0) + 1 },
        },
        97 => Command::SetQuota { bytes: dice.pick(&[2000, 6000, 20_000, 1 << 30, 1 << 30]) },
        _ => Command::RaiseFeatureLevel { level: dice.below(2) as u32 },
    }
}

pub(super) fn proposal(dice: &mut Dice, current: Revision) -> Proposal {
    let caller = dice.pick(&[
        Caller::Anonymous,
        Caller::System,
        Caller::User { name: "ann".into(), auth_revision: 1 },
        Caller::User { name: "bob".into(), auth_revision: 1 },
    ]);
    let idempotency = dice
        .one_in(4)
        .then(|| Idempotency { key: format!("request-{}", dice.below(12)), fingerprint: [dice.below(2) as u8; 16] });
    Proposal { caller, idempotency, command: command(dice, current) }
}

/// When the next batch is proposed: mostly soon, sometimes past every age, sometimes earlier.
pub(super) fn next_ms(dice: &mut Dice, now_ms: u64) -> u64 {
    match dice.below(100) {
        0 => now_ms + 700_000,
        1..=10 => now_ms + 5000,
        11..=40 => now_ms + dice.below(900),
        41..=45 => now_ms - dice.below(4000),
        _ => now_ms,
    }
}
