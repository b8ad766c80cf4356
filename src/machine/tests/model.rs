//! A naive model of the machine: every revision's whole state, in maps, with no thought for cost.
//! It shares with the machine only the vocabulary, `validate`, and the pieces of which the quota is made.

use crate::machine::validate;
use crate::model::failure::Holder;
use crate::model::{
    Caller, Command, Compare, CompareOp, CompareTarget, DeleteReason, EventKind, Fence, HistoryItem, KeyRange,
    KeyValue, LeaseChoice, LeaseId, LeaseLabel, LeaseRemaining, LeaseStart, Op, OpReply, Proposal, RangeOp, RangeReply,
    RangeSort, Rejection, Reply, Revision, SortOrder, Txn, TxnReply, codec, limits,
};
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::BTreeMap;

pub(super) type Keys = BTreeMap<Bytes, KeyValue>;
type Outcome = (Result<Reply, Rejection>, bool);

#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModelEvent {
    pub(super) kind: EventKind,
    pub(super) kv: KeyValue,
    pub(super) prev: Option<KeyValue>,
}

#[derive(Debug, Clone)]
struct Remembered {
    scope: (Caller, String),
    fingerprint: [u8; 16],
    outcome: Result<Reply, Rejection>,
    at_ms: u64,
    bytes: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) keys: Keys,
    pub(super) leases: BTreeMap<LeaseId, ModelLease>,
    /// How many leases have been started.
    starts: u64,
    /// The leases that versions were written with, where a TTL changed them later.
    written: BTreeMap<(Bytes, Revision), LeaseId>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModelLease {
    pub(super) ttl_ms: u64,
    pub(super) implicit: bool,
    pub(super) remaining_ms: Option<u64>,
    pub(super) generation: u64,
    pub(super) label: LeaseLabel,
}

impl State {
    fn start(&mut self, id: LeaseId, ttl_ms: u64, implicit: bool, label: LeaseLabel) {
        self.starts += 1;
        let generation = self.starts;
        self.leases.insert(id, ModelLease { ttl_ms, implicit, remaining_ms: None, generation, label });
    }

    /// An implicit lease ends with its last key.
    fn drop_unused(&mut self, id: LeaseId) {
        let is_used = self.keys.values().any(|kv| kv.lease == id);
        if !is_used && self.leases.get(&id).is_some_and(|lease| lease.implicit) {
            self.leases.remove(&id);
        }
    }

    fn rehang(&mut self, key: &Bytes, lease: LeaseId) {
        let kv = self.keys.get_mut(key).unwrap();
        let old = std::mem::replace(&mut kv.lease, lease);
        self.written.entry((key.clone(), kv.mod_revision)).or_insert(old);
    }

    fn as_written(&self, kv: KeyValue) -> KeyValue {
        let lease = self.written.get(&(kv.key.clone(), kv.mod_revision)).copied().unwrap_or(kv.lease);
        KeyValue { lease, ..kv }
    }

    /// A version is shown on the lease it has while it is the newest, then on the one it was written with.
    fn shown(&self, kv: &KeyValue) -> KeyValue {
        match self.keys.get(&kv.key) {
            Some(newest) if newest.mod_revision == kv.mod_revision => newest.clone(),
            _ => self.as_written(kv.clone()),
        }
    }

    fn has(&self, start: LeaseStart) -> bool {
        self.leases.get(&start.id).is_some_and(|lease| lease.generation == start.generation)
    }
}

fn lease_weight(lease: &ModelLease) -> u64 {
    let name = lease.label.name.as_ref().map_or(0, String::len);
    (64 + name + lease.label.metadata.as_ref().map_or(0, Bytes::len)) as u64
}

#[derive(Debug)]
pub(super) struct Model {
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
    pub(super) now_ms: u64,
    pub(super) term: u64,
    /// Log time that passed within terms.
    within_terms_ms: u64,
    pub(super) quota: u64,
    pub(super) state: State,
    /// The keys after each revision.
    pub(super) states: BTreeMap<Revision, Keys>,
    pub(super) events: BTreeMap<Revision, Vec<ModelEvent>>,
    remembered: Vec<Remembered>,
    remembered_max: usize,
    /// First revision, time and superseded bytes of what was written within a second.
    buckets: Vec<(Revision, u64, u64)>,
}

/// A transaction under way.
struct Run<'a> {
    before: &'a Keys,
    state: State,
    main: Revision,
    events: Vec<ModelEvent>,
    superseded: u64,
    grew: bool,
}

fn weight(kv: &KeyValue) -> u64 {
    (64 + kv.key.len() + kv.value.len() + kv.content_type.as_ref().map_or(0, String::len)) as u64
}

impl Model {
    pub(super) fn new(quota: u64, remembered_max: usize) -> Self {
        Self {
            revision: 1,
            compacted: 0,
            now_ms: 0,
            term: 0,
            within_terms_ms: 0,
            quota,
            state: State::default(),
            states: BTreeMap::from([(1, Keys::new())]),
            events: BTreeMap::new(),
            remembered: Vec::new(),
            remembered_max,
            buckets: Vec::new(),
        }
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.state.keys.values().map(weight).sum()
    }

    pub(super) fn retained_bytes(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.2).sum()
    }

    fn lease_bytes(&self) -> u64 {
        self.state.leases.values().map(lease_weight).sum()
    }

    pub(super) fn used(&self) -> u64 {
        let remembered: u64 = self.remembered.iter().map(|record| record.bytes).sum();
        self.live_bytes() + self.retained_bytes() + self.lease_bytes() + remembered
    }

    pub(super) fn remembered(&self) -> usize {
        self.remembered.len()
    }

    pub(super) fn apply(&mut self, (term, now_ms): (u64, u64), proposal: &Proposal) -> Outcome {
        if term == self.term {
            self.within_terms_ms += now_ms.saturating_sub(self.now_ms);
        }
        self.term = term;
        self.now_ms = self.now_ms.max(now_ms);
        let is_old = |record: &Remembered, clock_ms: u64| clock_ms - record.at_ms > limits::IDEMPOTENCY_KEPT_MS;
        for _ in 0..8 {
            if self.remembered.first().is_some_and(|record| is_old(record, self.within_terms_ms)) {
                self.remembered.remove(0);
            }
        }
        let Some(asked) = &proposal.idempotency else { return (self.execute(&proposal.command), false) };
        let scope = (proposal.caller.clone(), asked.key.clone());
        let known =
            self.remembered.iter().find(|record| record.scope == scope && !is_old(record, self.within_terms_ms));
        if let Some(record) = known {
            return if record.fingerprint == asked.fingerprint {
                (record.outcome.clone(), true)
            } else {
                (Err(Rejection::IdempotencyKeyReused), false)
            };
        }
        if self.remembered.len() >= self.remembered_max {
            return (Err(Rejection::IdempotencyTableFull), false);
        }
        let result = self.execute(&proposal.command);
        if matches!(result, Err(Rejection::QuotaExceeded { .. })) {
            return (result, false);
        }
        let mut kept = result.clone();
        if codec::encode(&kept).unwrap().len() > 4096 {
            let succeeded = !matches!(&kept, Ok(Reply::Txn(txn)) if !txn.succeeded);
            kept = Ok(Reply::Outcome { succeeded, revision: self.revision });
        }
        let name = if let Caller::User { name, .. } = &proposal.caller { name.len() } else { 0 };
        let bytes = (128 + 9 + name + asked.key.len() + codec::encode(&kept).unwrap().len()) as u64;
        self.remembered.retain(|record| record.scope != scope);
        self.remembered.push(Remembered {
            scope,
            fingerprint: asked.fingerprint,
            outcome: kept,
            at_ms: self.within_terms_ms,
            bytes,
        });
        (result, false)
    }

    fn execute(&mut self, command: &Command) -> Result<Reply, Rejection> {
        validate(command)?;
        match command {
            Command::Txn(txn) => {
                let before = self.state.keys.clone();
                let mut run = self.run(&before);
                run.foresee(self, txn)?;
                let mut reply = run.txn(self, txn, None)?;
                let growth = run.state.keys.values().map(weight).sum::<u64>() as i128 - self.live_bytes() as i128
                    + i128::from(run.superseded)
                    + run.state.leases.values().map(lease_weight).sum::<u64>() as i128
                    - self.lease_bytes() as i128;
                if run.grew && i128::from(self.used()) + growth > i128::from(self.quota) {
                    return Err(Rejection::QuotaExceeded { quota_bytes: self.quota });
                }
                let Run { state, events, superseded, .. } = run;
                self.commit(state, events, superseded);
                stamp(&mut reply, self.revision);
                Ok(Reply::Txn(reply))
            }
            Command::LeaseGrant { id, ttl_ms } => self.grant(*id, *ttl_ms, &LeaseLabel::default()),
            Command::LeaseGrantLabelled { id, ttl_ms, label } => self.grant(*id, *ttl_ms, label),
            Command::LeaseRevoke { id, reason } => {
                if !self.state.leases.contains_key(id) {
                    return Err(Rejection::LeaseNotFound(*id));
                }
                let deleted = self.end(*id, *reason);
                Ok(Reply::LeaseRevoked { deleted, revision: self.revision })
            }
            Command::LeaseExpire { term, leases } => {
                in_term(*term, self.term)?;
                let (mut ended, mut deleted) = (0, 0);
                for start in leases {
                    if self.state.has(*start) {
                        deleted += self.end(start.id, DeleteReason::Expired);
                        ended += 1;
                    }
                }
                Ok(Reply::LeasesExpired { leases: ended, deleted, revision: self.revision })
            }
            Command::LeaseCheckpoint { term, leases } => {
                in_term(*term, self.term)?;
                let mut noted = 0;
                for LeaseRemaining { start, remaining_ms } in leases {
                    if self.state.has(*start) {
                        self.state.leases.get_mut(&start.id).unwrap().remaining_ms = Some(*remaining_ms);
                        noted += 1;
                    }
                }
                Ok(Reply::LeasesCheckpointed { leases: noted })
            }
            Command::LeaseRenew { id } => {
                let lease = self.state.leases.get(id).cloned().ok_or(Rejection::LeaseNotFound(*id))?;
                self.state.start(*id, lease.ttl_ms, lease.implicit, lease.label);
                Ok(Reply::LeaseRenewed { id: *id, ttl_ms: lease.ttl_ms, revision: self.revision })
            }
            Command::TtlSet { key, id, ttl_ms } => self.set_ttl(key, *id, *ttl_ms),
            Command::TtlClear { key } => {
                let old = self.state.keys.get(key).ok_or_else(|| Rejection::KeyNotFound { key: key.clone() })?.lease;
                self.state.rehang(key, 0);
                self.state.drop_unused(old);
                Ok(Reply::Ttl { lease: 0, ttl_ms: 0, revision: self.revision })
            }
            Command::Compact { revision } => {
                let current = self.revision;
                if *revision <= self.compacted {
                    let compacted = self.compacted;
                    return Err(Rejection::Compacted { requested: *revision, compacted, current });
                }
                if *revision > current {
                    return Err(Rejection::FutureRevision { requested: *revision, current });
                }
                self.compacted = *revision;
                while self.buckets.get(1).map_or(current, |next| next.0 - 1) <= *revision && !self.buckets.is_empty() {
                    self.buckets.remove(0);
                }
                Ok(Reply::Compact { compacted_revision: *revision, revision: current })
            }
            Command::Restore { .. } => unreachable!("restores are not generated"),
            Command::SetQuota { bytes } => {
                self.quota = *bytes;
                Ok(Reply::Quota { bytes: *bytes })
            }
            Command::Fenced { fences, command } => {
                for fence in fences {
                    let first = self.first_claim(fence);
                    if !self.holds(fence) {
                        let holder = first.map(|kv| Holder { token: kv.create_revision, lease: kv.lease });
                        return Err(Rejection::Fenced { of: fence.of.clone(), token: fence.token, holder });
                    }
                }
                self.execute(command)
            }
            Command::RaiseFeatureLevel { .. } => Ok(Reply::FeatureLevel { level: 1 }),
            Command::Auth(_) => panic!("users and roles have a model of their own"),
        }
    }

    fn first_claim(&self, fence: &Fence) -> Option<&KeyValue> {
        let claims = self.state.keys.values().filter(|kv| fence.of.claims().shows(&kv.key));
        claims.min_by_key(|kv| (kv.create_revision, kv.key.clone()))
    }

    fn holds(&self, fence: &Fence) -> bool {
        let first = self.first_claim(fence);
        first.is_some_and(|kv| kv.create_revision == fence.token && self.state.leases.contains_key(&kv.lease))
    }

    fn grant(&mut self, id: LeaseId, ttl_ms: u64, label: &LeaseLabel) -> Result<Reply, Rejection> {
        if self.state.leases.contains_key(&id) {
            return Err(Rejection::LeaseExists(id));
        }
        let mut with = self.state.clone();
        with.start(id, ttl_ms, false, label.clone());
        if self.used() + lease_weight(&with.leases[&id]) > self.quota {
            return Err(Rejection::QuotaExceeded { quota_bytes: self.quota });
        }
        self.state = with;
        Ok(Reply::LeaseGranted { id, ttl_ms, revision: self.revision })
    }

    /// Ends a lease with its keys, at a revision of its own if it has any.
    fn end(&mut self, id: LeaseId, reason: DeleteReason) -> u64 {
        let before = self.state.keys.clone();
        let mut run = self.run(&before);
        let attached: Vec<Bytes> = before.values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect();
        for key in &attached {
            run.delete(key, reason);
        }
        run.state.leases.remove(&id);
        let Run { state, events, superseded, .. } = run;
        self.commit(state, events, superseded);
        attached.len() as u64
    }

    fn set_ttl(&mut self, key: &Bytes, id: LeaseId, ttl_ms: u64) -> Result<Reply, Rejection> {
        let current = self.state.keys.get(key).ok_or_else(|| Rejection::KeyNotFound { key: key.clone() })?.lease;
        let lease = match self.state.leases.get(&current) {
            Some(lease) if lease.implicit => current,
            Some(_) => return Err(Rejection::SharedLease { key: key.clone(), lease: current }),
            None if self.used() + 64 > self.quota => {
                return Err(Rejection::QuotaExceeded { quota_bytes: self.quota });
            }
            None if self.state.leases.contains_key(&id) => return Err(Rejection::LeaseExists(id)),
            None => id,
        };
        self.state.start(lease, ttl_ms, true, LeaseLabel::default());
        self.state.rehang(key, lease);
        Ok(Reply::Ttl { lease, ttl_ms, revision: self.revision })
    }

    /// The keys at a revision that can be read, as they are shown now.
    pub(super) fn at(&self, revision: Revision) -> Option<Keys> {
        self.seen_from(&self.state, revision)
    }

    /// A transaction sees the past as its writes so far have left it: a version that it has replaced is
    /// not the newest any more.
    fn seen_from(&self, state: &State, revision: Revision) -> Option<Keys> {
        if revision <= 0 {
            return Some(state.keys.clone());
        }
        let keys = self.states.get(&revision).filter(|_| revision >= self.compacted)?;
        Some(keys.iter().map(|(key, kv)| (key.clone(), state.shown(kv))).collect())
    }

    fn run<'a>(&self, before: &'a Keys) -> Run<'a> {
        let (state, main) = (self.state.clone(), self.revision + 1);
        Run { before, state, main, events: Vec::new(), superseded: 0, grew: false }
    }

    fn commit(&mut self, state: State, events: Vec<ModelEvent>, superseded: u64) {
        self.state = state;
        if events.is_empty() {
            return;
        }
        self.revision += 1;
        self.states.insert(self.revision, self.state.keys.clone());
        self.events.insert(self.revision, events);
        match self.buckets.last_mut() {
            Some(last) if self.now_ms < last.1 + 1000 => last.2 += superseded,
            _ => self.buckets.push((self.revision, self.now_ms, superseded)),
        }
    }

    pub(super) fn read(&self, state: &State, op: &RangeOp) -> Result<RangeReply, Rejection> {
        let current = self.revision;
        let keys = match op.revision {
            requested if requested > current => return Err(Rejection::FutureRevision { requested, current }),
            requested if requested > 0 && requested < self.compacted => {
                return Err(Rejection::Compacted { requested, compacted: self.compacted, current });
            }
            revision => self.seen_from(state, revision).unwrap(),
        };
        let mut found: Vec<KeyValue> = keys.values().filter(|kv| op.range.shows(&kv.key)).cloned().collect();
        let count = found.len() as u64;
        if op.count_only {
            return Ok(RangeReply { kvs: vec![], count, more: false });
        }
        let within = |at: Revision, min: Revision, max: Revision| (min == 0 || at >= min) && (max == 0 || at <= max);
        found.retain(|kv| {
            within(kv.mod_revision, op.min_mod_revision, op.max_mod_revision)
                && within(kv.create_revision, op.min_create_revision, op.max_create_revision)
        });
        let by = |a: &KeyValue, b: &KeyValue| match op.sort {
            RangeSort::Key => a.key.cmp(&b.key),
            RangeSort::Version => a.version.cmp(&b.version),
            RangeSort::Create => a.create_revision.cmp(&b.create_revision),
            RangeSort::Mod => a.mod_revision.cmp(&b.mod_revision),
            RangeSort::Value => a.value.cmp(&b.value),
        };
        match op.order {
            SortOrder::Ascending => found.sort_by(by),
            SortOrder::Descending => found.sort_by(|a, b| by(b, a)),
        }
        let limit = if op.limit == 0 { usize::MAX } else { op.limit as usize };
        let matching = found.len();
        found.truncate(limit);
        if op.keys_only {
            found.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        let mut bytes = 0;
        found.retain(|kv| {
            let fits = op.bytes_max == 0 || bytes < op.bytes_max;
            bytes += (64 + kv.key.len() + kv.value.len()) as u64;
            fits
        });
        let more = found.len() < matching;
        Ok(RangeReply { kvs: found, count, more })
    }

    /// A key's readable versions, newest first.
    pub(super) fn history(&self, key: &Bytes) -> Vec<HistoryItem> {
        let mut items = Vec::new();
        let mut current = None;
        for (revision, events) in &self.events {
            let Some(event) = events.iter().find(|event| event.kv.key == *key) else { continue };
            let item = match event.kind {
                EventKind::Put => HistoryItem::Put(self.state.shown(&event.kv)),
                EventKind::Delete(reason) => HistoryItem::Delete { revision: *revision, reason },
            };
            if *revision <= self.compacted {
                // A delete is told of until the next compaction.
                current = Some(item).filter(|item| matches!(item, HistoryItem::Put(_)) || *revision == self.compacted);
            } else {
                items.push(item);
            }
        }
        items.splice(0..0, current);
        items.reverse();
        items
    }
}

fn in_term(proposed: u64, current: u64) -> Result<(), Rejection> {
    if proposed == current { Ok(()) } else { Err(Rejection::StaleTerm { proposed, current }) }
}

fn stamp(reply: &mut TxnReply, revision: Revision) {
    reply.revision = revision;
    for result in &mut reply.results {
        if let OpReply::Txn(inner) = result {
            stamp(inner, revision);
        }
    }
}

impl Run<'_> {
    /// The operations that run, without the transactions that they are nested in.
    fn path<'t>(&self, model: &Model, txn: &'t Txn, path: &mut Vec<&'t Op>) {
        let succeeded = txn.compares.iter().all(|compare| self.holds(model, compare));
        for op in if succeeded { &txn.success } else { &txn.failure } {
            match op {
                Op::Txn(inner) => self.path(model, inner, path),
                op => path.push(op),
            }
        }
    }

    /// What is wrong with any put comes before what is wrong with any read, and both before the rest.
    fn foresee(&self, model: &Model, txn: &Txn) -> Result<(), Rejection> {
        let mut path = Vec::new();
        self.path(model, txn, &mut path);
        let mut granted = Vec::new();
        for op in &path {
            match op {
                Op::Put(put) => {
                    let needs_key = put.ignore_value || put.lease == LeaseChoice::KeepOfExisting;
                    if needs_key && !self.before.contains_key(&put.key) {
                        return Err(Rejection::KeyNotFound { key: put.key.clone() });
                    }
                    match put.lease {
                        LeaseChoice::Attach(id) if id != 0 && !granted.contains(&id) => {
                            self.state.leases.get(&id).ok_or(Rejection::LeaseNotFound(id))?;
                        }
                        LeaseChoice::Implicit { id, .. } => granted.push(id),
                        _ => {}
                    }
                }
                Op::Add { lease: LeaseChoice::Implicit { id, .. }, .. }
                | Op::MergePatch { lease: LeaseChoice::Implicit { id, .. }, .. }
                | Op::RateTake { lease: id, .. }
                | Op::Session { id, .. } => granted.push(*id),
                _ => {}
            }
        }
        for op in path {
            if let Op::Range(range) = op {
                let (requested, current, compacted) = (range.revision, model.revision, model.compacted);
                if requested > current {
                    return Err(Rejection::FutureRevision { requested, current });
                }
                if requested > 0 && requested < compacted {
                    return Err(Rejection::Compacted { requested, compacted, current });
                }
            }
        }
        Ok(())
    }

    fn txn(&mut self, model: &Model, txn: &Txn, top: Option<u32>) -> Result<TxnReply, Rejection> {
        let failed_if: Vec<u32> =
            (0..).zip(&txn.compares).filter(|(_, c)| !self.holds(model, c)).map(|(at, _)| at).collect();
        let succeeded = failed_if.is_empty();
        let mut results = Vec::new();
        for (position, op) in (0..).zip(if succeeded { &txn.success } else { &txn.failure }) {
            results.push(self.op(model, op, top.unwrap_or(position))?);
        }
        Ok(TxnReply { succeeded, failed_if, revision: 0, results })
    }

    /// Against the state before the transaction.
    fn holds(&self, model: &Model, compare: &Compare) -> bool {
        if let CompareTarget::Holder(fence) = &compare.target {
            return model.holds(fence);
        }
        let found: Vec<&KeyValue> = self.before.values().filter(|kv| compare.range.shows(&kv.key)).collect();
        let one = |kv: Option<&KeyValue>| {
            let number = |actual: Option<i64>, wanted: i64| Some(actual.unwrap_or(0).cmp(&wanted));
            let ordering = match &compare.target {
                CompareTarget::Version(wanted) => number(kv.map(|kv| kv.version), *wanted),
                CompareTarget::CreateRevision(wanted) => number(kv.map(|kv| kv.create_revision), *wanted),
                CompareTarget::ModRevision(wanted) => number(kv.map(|kv| kv.mod_revision), *wanted),
                CompareTarget::Holder(_) => unreachable!(),
                CompareTarget::Lease(wanted) => number(kv.map(|kv| kv.lease), *wanted),
                CompareTarget::Value(wanted) => kv.map(|kv| kv.value.cmp(wanted)),
            };
            ordering.is_some_and(|ordering| match compare.op {
                CompareOp::Equal => ordering == Ordering::Equal,
                CompareOp::NotEqual => ordering != Ordering::Equal,
                CompareOp::Less => ordering == Ordering::Less,
                CompareOp::LessOrEqual => ordering != Ordering::Greater,
                CompareOp::Greater => ordering == Ordering::Greater,
                CompareOp::GreaterOrEqual => ordering != Ordering::Less,
            })
        };
        if found.is_empty() { one(None) } else { found.into_iter().all(|kv| one(Some(kv))) }
    }

    fn op(&mut self, model: &Model, op: &Op, operation: u32) -> Result<OpReply, Rejection> {
        match op {
            Op::Txn(txn) => self.txn(model, txn, Some(operation)).map(OpReply::Txn),
            Op::Range(range) => model.read(&self.state, range).map(OpReply::Range),
            Op::Session { id, .. } if self.state.leases.contains_key(id) => Err(Rejection::LeaseExists(*id)),
            Op::Session { id, ttl_ms, label } => {
                self.state.start(*id, *ttl_ms, true, label.clone());
                self.grew = true;
                Ok(OpReply::Session { lease: *id })
            }
            Op::RateTake { key, rate, cost, lease } => {
                let stored =
                    self.state.keys.get(key).and_then(|kv| std::str::from_utf8(&kv.value).ok()?.parse::<u64>().ok());
                let (interval, now) = (i128::from(rate.interval_ns), i128::from(model.now_ms) * 1_000_000);
                let full = interval * i128::from(rate.burst);
                let level = full - (i128::from(stored.unwrap_or(0)) - now).clamp(0, full);
                let after = level - interval * i128::from((*cost).max(1));
                let left = if after >= 0 && *cost > 0 { after } else { level };
                let ms = |ns: i128| u64::try_from((ns.max(0) + 999_999) / 1_000_000).unwrap();
                if after >= 0 && *cost > 0 {
                    let value = (now + full - left).to_string();
                    let ttl_ms = ms(full - left).max(1000);
                    self.put(key, value.into(), None, LeaseChoice::Implicit { id: *lease, ttl_ms })?;
                }
                let remaining = u64::try_from(left / interval).unwrap();
                Ok(OpReply::RateTake {
                    allowed: after >= 0,
                    remaining,
                    retry_after_ms: ms(-after),
                    reset_ms: ms(full - left),
                })
            }
            Op::Put(put) => {
                let old = self.state.keys.get(&put.key).cloned();
                let (value, content_type) = match (&old, put.ignore_value) {
                    (Some(old), true) => (old.value.clone(), old.content_type.clone()),
                    (None, true) => return Err(Rejection::KeyNotFound { key: put.key.clone() }),
                    (_, false) => (put.value.clone(), put.content_type.clone()),
                };
                let kv = self.put(&put.key, value, content_type, put.lease)?;
                Ok(OpReply::Put {
                    key: kv.key,
                    version: kv.version,
                    created: kv.version == 1,
                    lease: kv.lease,
                    prev: old.filter(|_| put.prev_kv),
                })
            }
            Op::Delete { range, prev_kv } => {
                let found: Vec<KeyValue> =
                    self.state.keys.values().filter(|kv| range.shows(&kv.key)).cloned().collect();
                for kv in &found {
                    self.delete(&kv.key, DeleteReason::Deleted);
                }
                Ok(OpReply::Delete { deleted: found.len() as u64, prev: if *prev_kv { found } else { vec![] } })
            }
            Op::Add { key, by, initial, min, max, clamp, lease } => {
                let old = self.state.keys.get(key).cloned();
                let previous = match &old {
                    None => *initial,
                    Some(old) => std::str::from_utf8(&old.value)
                        .ok()
                        .and_then(|text| text.parse().ok())
                        .ok_or(Rejection::NotACounter { key: key.clone() })?,
                };
                let sum = i128::from(previous) + i128::from(*by);
                let low = min.map_or(i128::MIN, i128::from);
                let high = max.map_or(i128::MAX, i128::from);
                if !(low..=high).contains(&sum) && !clamp {
                    let key = key.clone();
                    return Err(Rejection::OutOfRange { key, current: previous, min: *min, max: *max, operation });
                }
                let bounded = sum.clamp(low, high);
                let value = i64::try_from(bounded).map_err(|_| Rejection::Overflow { key: key.clone() })?;
                let content_type = old.as_ref().and_then(|old| old.content_type.clone());
                let kv = self.put(key, value.to_string().into(), content_type, *lease)?;
                Ok(OpReply::Add {
                    key: kv.key,
                    value,
                    previous,
                    existed: old.is_some(),
                    clamped: bounded != sum,
                    version: kv.version,
                    lease: kv.lease,
                })
            }
            Op::MergePatch { key, patch, prev_kv, lease } => {
                let old = self.state.keys.get(key).cloned().ok_or(Rejection::KeyNotFound { key: key.clone() })?;
                let mut value: serde_json::Value =
                    serde_json::from_slice(&old.value).map_err(|_| Rejection::NotJson { key: key.clone() })?;
                json_patch::merge(&mut value, &serde_json::from_slice(patch).unwrap());
                let content_type = old.content_type.clone().or(Some("application/json".into()));
                let kv = self.put(key, value.to_string().into(), content_type, *lease)?;
                let prev = Some(old).filter(|_| *prev_kv);
                Ok(OpReply::MergePatch { key: kv.key, version: kv.version, lease: kv.lease, prev })
            }
        }
    }

    fn put(
        &mut self,
        key: &Bytes,
        value: Bytes,
        content_type: Option<String>,
        choice: LeaseChoice,
    ) -> Result<KeyValue, Rejection> {
        let old = self.state.keys.get(key).cloned();
        let lease = match choice {
            LeaseChoice::Detach => 0,
            LeaseChoice::Keep | LeaseChoice::KeepOfExisting => old.as_ref().map_or(0, |old| old.lease),
            LeaseChoice::Attach(id) if id == 0 || self.state.leases.contains_key(&id) => id,
            LeaseChoice::Attach(id) => return Err(Rejection::LeaseNotFound(id)),
            LeaseChoice::Implicit { id, .. } if self.state.leases.contains_key(&id) => {
                return Err(Rejection::LeaseExists(id));
            }
            LeaseChoice::Implicit { id, ttl_ms } => {
                self.state.start(id, ttl_ms, true, LeaseLabel::default());
                id
            }
        };
        let kv = KeyValue {
            key: key.clone(),
            value_size: value.len() as u64,
            value,
            content_type,
            create_revision: old.as_ref().map_or(self.main, |old| old.create_revision),
            mod_revision: self.main,
            version: old.as_ref().map_or(1, |old| old.version + 1),
            lease,
        };
        self.state.keys.insert(key.clone(), kv.clone());
        self.superseded += old.as_ref().map_or(0, weight);
        self.grew = true;
        self.events.push(ModelEvent {
            kind: EventKind::Put,
            kv: kv.clone(),
            prev: old.clone().map(|old| self.state.as_written(old)),
        });
        self.state.drop_unused(old.map_or(0, |old| old.lease));
        Ok(kv)
    }

    fn delete(&mut self, key: &Bytes, reason: DeleteReason) {
        let old = self.state.keys.remove(key);
        self.superseded += old.as_ref().map_or(0, weight) + 64 + key.len() as u64;
        let kv = KeyValue {
            key: key.clone(),
            value: Bytes::new(),
            value_size: 0,
            content_type: None,
            create_revision: 0,
            mod_revision: self.main,
            version: 0,
            lease: 0,
        };
        self.events.push(ModelEvent {
            kind: EventKind::Delete(reason),
            kv,
            prev: old.clone().map(|old| self.state.as_written(old)),
        });
        self.state.drop_unused(old.map_or(0, |old| old.lease));
    }
}

/// What a whole listing holds: keys and groups, in the order asked for.
pub(super) fn listing<'a>(
    keys: &'a Keys,
    range: &KeyRange,
    after: Revision,
    delimiter: Option<(&[u8], usize)>,
    order: SortOrder,
) -> Vec<Result<&'a KeyValue, Bytes>> {
    let mut listed: Vec<Result<&KeyValue, Bytes>> = Vec::new();
    let found: Vec<&KeyValue> = keys.values().filter(|kv| range.shows(&kv.key) && kv.mod_revision > after).collect();
    for kv in found {
        let group = delimiter.and_then(|(bytes, prefix)| {
            let at = kv.key.get(prefix..)?.windows(bytes.len()).position(|window| window == bytes)?;
            Some(kv.key.slice(..prefix + at + bytes.len()))
        });
        match group {
            None => listed.push(Ok(kv)),
            Some(group) if listed.last() == Some(&Err(group.clone())) => {}
            Some(group) => listed.push(Err(group)),
        }
    }
    if order == SortOrder::Descending {
        listed.reverse();
    }
    listed
}
