//! The clients of a run: writers and readers, watchers, holders of leases and of locks.

use super::client::{Client, Settled, idempotency, modified_at, one, put, write};
use super::invariants::GUARDED;
use super::ledger::{Branch, Fate, Grant, LeaseLife, Ledger, Said, Stream, Write};
use super::net::Reach;
use bytes::Bytes;
use std::time::Duration;
use tenure::model::{
    ClaimKind, ClaimName, Fence, KeyRange, LeaseChoice, LeaseLabel, Op, OpReply, Reply, Revision, Txn,
};
use tenure::raft::MemberId;
use tenure::service::claims::{Acquired, ClaimRequest, Session};
use tenure::service::{Change, Context, Kinds, LeaseGrant, OnCompacted, WatchRequest, WatchStart, WatchStep};

const KEYS: u64 = 10;
const COUNTERS: u64 = 2;

fn key(number: u64) -> Bytes {
    format!("k/{number}").into()
}

impl Client {
    fn key(&mut self) -> Bytes {
        key(self.rng.below(KEYS))
    }

    fn value(&mut self) -> (String, Bytes) {
        let who = self.fresh("write");
        (who.clone(), format!("{who} {}", "x".repeat(usize::try_from(self.rng.below(80)).unwrap_or(0))).into())
    }

    /// Writes and reads until the run ends.
    pub(crate) async fn work(mut self) {
        while !self.is_over() {
            match self.rng.below(100) {
                0..20 => self.put().await,
                20..32 => self.nested().await,
                32..46 => self.swap().await,
                46..52 => self.delete().await,
                52..62 => self.count().await,
                62..66 => self.vanishing().await,
                66..82 => drop(self.read_some(true).await),
                82..94 => drop(self.read_some(false).await),
                _ => self.read_old().await,
            }
            self.think(0, 60).await;
        }
    }

    /// Reads from one member all the time, so that somebody waits there whatever happens to it.
    pub(crate) async fn probe(mut self, member: MemberId) {
        while !self.is_over() {
            self.read_from(member, KeyRange::prefix("k/"), true, 0).await;
            self.think(20, 200).await;
        }
    }

    async fn put(&mut self) {
        let (key, (who, value)) = (self.key(), self.value());
        let repeated = self.rng.percent(30);
        let txn = one(put(&key, &value, LeaseChoice::Detach));
        let branch = Branch { puts: vec![(key, value)], deletes: Vec::new() };
        self.write(Write { repeated, ..write(who, branch) }, txn).await;
    }

    /// Several keys at two depths, in either branch.
    async fn nested(&mut self) {
        let (who, value) = self.value();
        let first = self.rng.below(KEYS);
        let keys: Vec<Bytes> = (0..3).map(|at| key((first + at) % KEYS)).collect();
        let expected: Revision = if self.rng.percent(70) { self.seen(&keys[0]).await } else { 0 };
        let put_one = |at: usize, suffix: &str| {
            let value = Bytes::from([&value[..], suffix.as_bytes()].concat());
            (put(&keys[at], &value, LeaseChoice::Detach), (keys[at].clone(), value))
        };
        let ((a, wrote_a), (b, wrote_b), (c, wrote_c)) = (put_one(0, "a"), put_one(1, "b"), put_one(2, "c"));
        let inner = Txn { success: vec![b], ..Txn::default() };
        let txn = Txn {
            compares: vec![modified_at(&keys[0], expected)],
            success: vec![a, Op::Txn(Box::new(inner))],
            failure: vec![c],
        };
        let write = Write {
            failure: Branch { puts: vec![wrote_c], deletes: Vec::new() },
            expected: vec![(keys[0].clone(), expected)],
            ..write(who, Branch { puts: vec![wrote_a, wrote_b], deletes: Vec::new() })
        };
        self.write(write, txn).await;
    }

    async fn seen(&mut self, key: &Bytes) -> Revision {
        let linearizable = self.rng.percent(50);
        let seen = self.read(KeyRange::key(key.clone()), linearizable, 0).await;
        seen.and_then(|seen| seen.first().map(|kv| kv.mod_revision)).unwrap_or(0)
    }

    /// Compare and swap on what was read before.
    async fn swap(&mut self) {
        let (key, (who, value)) = (self.key(), self.value());
        let expected = self.seen(&key).await;
        let txn = Txn {
            compares: vec![modified_at(&key, expected)],
            success: vec![put(&key, &value, LeaseChoice::Detach)],
            failure: Vec::new(),
        };
        let branch = Branch { puts: vec![(key.clone(), value)], deletes: Vec::new() };
        self.write(Write { expected: vec![(key, expected)], ..write(who, branch) }, txn).await;
    }

    async fn delete(&mut self) {
        let (key, who) = (self.key(), self.fresh("delete"));
        let txn = one(Op::Delete { range: KeyRange::key(key.clone()), prev_kv: true });
        self.write(write(who, Branch { puts: Vec::new(), deletes: vec![key] }), txn).await;
    }

    /// Adds to a counter, again and again under one idempotency key until that is settled.
    async fn count(&mut self) {
        let (counter, who) = (Bytes::from(format!("c/{}", self.rng.below(COUNTERS))), self.fresh("add"));
        let add = Op::Add {
            key: counter.clone(),
            by: 1,
            initial: 0,
            min: None,
            max: None,
            clamp: false,
            lease: LeaseChoice::Keep,
        };
        let mut settled = None;
        let mut unknown = false;
        for _ in 0..15 {
            if let Some(to) = self.anyone() {
                match self.txn(to, one(add.clone()), Some(idempotency(&who))).await {
                    (Fate::Acked { .. }, reply) => {
                        settled = reply;
                        break;
                    }
                    (Fate::Unknown, _) => unknown = true,
                    (Fate::No, _) => {}
                }
            }
            self.think(20, 500).await;
        }
        let mut book = self.ledger.book();
        let counter = book.counters.entry(counter).or_default();
        match settled {
            Some(Reply::Txn(reply)) => match reply.results.first() {
                Some(OpReply::Add { value, .. }) => counter.acked.push(*value),
                _ => counter.unsettled += 1,
            },
            Some(_) => counter.unsettled += 1,
            None => counter.unsettled += u64::from(unknown),
        }
    }

    /// A key with a TTL of its own.
    async fn vanishing(&mut self) {
        let (who, value) = self.value();
        let key = Bytes::from(format!("t/{who}"));
        let ttl_ms = self.rng.between(1_000, 2_500);
        let Ok(id) = i64::try_from(self.rng.next() >> 2) else { return };
        let txn = one(put(&key, &value, LeaseChoice::Implicit { id, ttl_ms }));
        let sent_us = self.net.now_us();
        let branch = Branch { puts: vec![(key.clone(), value)], deletes: Vec::new() };
        let (fate, _) = self.write(write(who, branch), txn).await;
        let void = !matches!(fate, Fate::Acked { .. });
        self.ledger.book().leases.push(LeaseLife { id, key, ttl_us: ttl_ms * 1000, sent_us, void });
    }

    async fn read_some(&mut self, linearizable: bool) -> Option<()> {
        let range = match self.rng.below(3) {
            0 => KeyRange::prefix("k/"),
            _ => KeyRange::key(self.key()),
        };
        self.read(range, linearizable, 0).await.map(drop)
    }

    async fn read_old(&mut self) {
        let newest = self.ledger.floor();
        let back = i64::try_from(self.rng.below(60)).unwrap_or(0);
        if newest > back + 1 {
            let linearizable = self.rng.percent(50);
            self.read(KeyRange::prefix("k/"), linearizable, newest - back).await;
        }
    }

    /// Watches, now here and now there, each time from where it was.
    pub(crate) async fn follow(mut self) {
        let mut position: Option<Revision> = None;
        while !self.is_over() {
            let Some(to) = self.anyone() else {
                self.think(50, 200).await;
                continue;
            };
            let range = match self.rng.below(4) {
                0 => KeyRange::key(self.key()),
                1 => KeyRange::prefix("k/"),
                2 => KeyRange::prefix("t/"),
                _ => KeyRange::all(),
            };
            // Mostly on from the last stream, else from some way back or ahead of it.
            let after = match self.rng.below(4) {
                0 => self.ledger.floor() - 30 + i64::try_from(self.rng.below(45)).unwrap_or(0),
                _ => position.unwrap_or(1),
            };
            position = self.stream(to, range, after.max(1)).await;
            self.think(1, 100).await;
        }
    }

    /// One stream, read for a while. Answers how far it came; none if that is compacted.
    async fn stream(&mut self, to: MemberId, range: KeyRange, after: Revision) -> Option<Revision> {
        let who = format!("{} (member {to})", self.fresh("watch"));
        let request = WatchRequest {
            targets: vec![range.clone()],
            start: WatchStart::After(after),
            initial: false,
            on_compacted: OnCompacted::Fail,
            kinds: Kinds::ALL,
            prev: self.rng.percent(50),
            keys_only: false,
            progress_every: Some(Duration::from_millis(self.rng.between(40, 300))),
            min_revision: None,
        };
        let lasts = Duration::from_millis(self.rng.between(300, 4_000));
        // A slow reader falls out of the ring, and perhaps behind a compaction.
        let pause = Duration::from_millis(if self.rng.percent(50) { self.rng.between(50, 1_200) } else { 0 });
        let (context, ledger) = (self.context(), self.ledger.clone());
        let at = {
            let mut book = self.ledger.book();
            book.streams.push(Stream { who, range, after, said: Vec::new() });
            book.streams.len() - 1
        };
        let reading = self.net.ask(to, lasts * 3, move |home| {
            Box::pin(async move {
                let mut stream = home.service.watch(&context, request).await.ok()?.body;
                let reading = async {
                    while let Some(step) = stream.next().await {
                        if !note(&ledger, at, step) {
                            return false;
                        }
                        tokio::time::sleep(pause).await;
                    }
                    true
                };
                tokio::time::timeout(lasts, reading).await.ok().or(Some(true))
            })
        });
        match reading.await {
            Reach::Got(Some(true)) | Reach::Lost | Reach::NotSent => {
                let book = self.ledger.book();
                let last = book.streams[at].said.last().map(|said| match said {
                    Said::Change { events, .. } => events.revision,
                    Said::Progress(revision) => *revision,
                });
                Some(last.unwrap_or(after).max(after))
            }
            Reach::Got(_) => None,
        }
    }

    /// Holds leases, renews each for a while, and lets it run out.
    pub(crate) async fn lease(mut self) {
        while !self.is_over() {
            self.hold_lease().await;
            self.think(10, 300).await;
        }
    }

    async fn hold_lease(&mut self) -> Option<()> {
        let (who, value) = self.value();
        let key = Bytes::from(format!("l/{who}"));
        let ttl_ms = self.rng.between(1_000, 3_000);
        let id = i64::try_from(self.rng.next() >> 2).ok()?;
        let (to, context) = (self.anyone()?, self.context());
        let mut sent_us = self.net.now_us();
        let grant = LeaseGrant { id: Some(id), ttl_ms, label: LeaseLabel::default() };
        let granted =
            self.ask(to, move |home| Box::pin(async move { home.service.lease_grant(&context, grant, None).await }));
        let Settled::Answer(..) = granted.await else { return None };
        let branch = Branch { puts: vec![(key.clone(), value.clone())], deletes: Vec::new() };
        let (fate, _) = self.write(write(who, branch), one(put(&key, &value, LeaseChoice::Attach(id)))).await;
        let at = {
            let mut book = self.ledger.book();
            let void = !matches!(fate, Fate::Acked { .. });
            book.leases.push(LeaseLife { id, key, ttl_us: ttl_ms * 1000, sent_us, void });
            book.leases.len() - 1
        };
        for _ in 0..self.rng.below(16) {
            self.think(ttl_ms / 8, ttl_ms / 3).await;
            let Some(to) = self.anyone().filter(|_| !self.is_over()) else { break };
            sent_us = self.net.now_us();
            let context = self.context();
            let kept =
                self.ask(to, move |home| Box::pin(async move { home.service.lease_keep_alive(&context, id).await }));
            match kept.await {
                Settled::Answer(..) => self.ledger.book().leases[at].sent_us = sent_us,
                Settled::Refused => return None,
                Settled::No | Settled::Unknown => {}
            }
        }
        Some(())
    }

    /// Takes locks, writes under their fences, and gives them up or lets them go.
    pub(crate) async fn lock(mut self) {
        while !self.is_over() {
            self.hold_lock().await;
            self.think(5, 200).await;
        }
    }

    async fn hold_lock(&mut self) -> Option<()> {
        let name = format!("lock-{}", self.rng.below(2));
        let of = ClaimName::new(ClaimKind::Lock, name.clone());
        // Mostly where it would be noticed that a claim is granted by who does not know.
        let slowed = self.net.slowed().filter(|_| self.rng.percent(70));
        let to = slowed.or_else(|| self.anyone())?;
        let wait = Duration::from_millis(self.rng.between(100, 4_000));
        let session = Session::New { ttl_ms: self.rng.between(1_000, 1_800), label: LeaseLabel::default() };
        let request = ClaimRequest { of: of.clone(), session, value: Bytes::new(), permits: 1, limit: None };
        let context = Context { timeout: Duration::from_secs(3), ..self.context() };
        let asked_us = self.net.now_us();
        let asked = self.ask(to, move |home| {
            Box::pin(async move { home.service.claim_acquire(&context, request, wait, None).await })
        });
        let Settled::Answer(answer) = asked.await else { return None };
        let Acquired::Held(claim) = answer.body else { return None };
        self.ledger.book().grants.push(Grant {
            of: of.clone(),
            key: claim.key.clone(),
            token: claim.token,
            member: to,
            revision: answer.header.revision,
            asked_us,
            told_us: self.net.now_us(),
        });
        let lease = claim.lease;
        for _ in 0..self.rng.below(4) {
            // Sometimes longer than the lease lasts: then the fence must refuse.
            self.think(10, 500).await;
            self.guarded(&name, Fence { of: of.clone(), token: claim.token }).await;
        }
        if self.rng.percent(70) {
            let (to, context) = (self.anyone()?, self.context());
            let released = self.ask(to, move |home| {
                Box::pin(async move { home.service.claim_release(&context, (&of, lease), None).await })
            });
            released.await;
        }
        Some(())
    }

    async fn guarded(&mut self, name: &str, fence: Fence) -> Option<()> {
        let key = Bytes::from([GUARDED, name.as_bytes()].concat());
        let value = Bytes::from(fence.token.to_string());
        let (to, context) = (self.anyone()?, self.context());
        let context = Context { fences: vec![fence], ..context };
        let txn = one(put(&key, &value, LeaseChoice::Detach));
        let asked = self.ask(to, move |home| Box::pin(async move { home.service.txn(&context, txn, None).await }));
        if let Settled::Answer(answer) = asked.await {
            self.ledger.acked(answer.header.revision);
        }
        Some(())
    }
}

/// Records what a stream said. False if it has ended.
fn note(ledger: &Ledger, at: usize, step: WatchStep) -> bool {
    let more: Vec<Said> = match step {
        WatchStep::Changes(changes) => {
            let said = |Change { events, previous }| Said::Change { events, previous };
            changes.into_iter().map(said).collect()
        }
        WatchStep::Progress(revision) => vec![Said::Progress(revision)],
        WatchStep::Failed(_) => return false,
        other => {
            ledger.violate(format!("watch: a plain stream said {other:?}"));
            return false;
        }
    };
    ledger.book().streams[at].said.extend(more);
    true
}
