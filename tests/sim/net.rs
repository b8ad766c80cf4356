//! The network between members, and between them and clients: one queue of parcels in the order of
//! their arrival.
//!
//! Between members a call or a stream is as on a real connection: what is sent arrives once and, on one
//! stream, in order, or the connection breaks. Calls overtake each other. Only calls on the control
//! lane may be made to arrive twice. A parcel that meets a cut link vanishes, and its connection is
//! reset later or never. What was sent to a member's earlier life never reaches the next.

use super::rng::Rng;
use super::swarm::Swarm;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tenure::raft::{Consensus, Lane, MemberId, Peer, Transport, TransportError};
use tenure::service::Service;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Where clients are.
pub(crate) const CLIENTS: MemberId = 0;

/// A member that runs.
#[derive(Clone)]
pub(crate) struct Home {
    pub(crate) runtime: Handle,
    pub(crate) consensus: Consensus,
    pub(crate) service: Service,
    pub(crate) life: u64,
}

type Action = Box<dyn FnOnce() + Send>;

struct Wires {
    now_us: u64,
    rng: Rng,
    swarm: Swarm,
    /// By time of arrival, and a number that keeps them apart.
    parcels: BTreeMap<(u64, u64), Parcel>,
    numbered: u64,
    cut: BTreeSet<(MemberId, MemberId)>,
    /// What is added to the way between a member and the others.
    slow_us: BTreeMap<MemberId, u64>,
    /// Since when, and until when, nothing arrives.
    held_us: BTreeMap<(MemberId, MemberId), (u64, u64)>,
    homes: BTreeMap<MemberId, Home>,
    calm: bool,
    carried: u64,
}

struct Parcel {
    from: MemberId,
    to: MemberId,
    /// The life it is meant for; `None` for clients.
    life: Option<u64>,
    action: Action,
}

#[derive(Clone)]
pub(crate) struct Net(Arc<Mutex<Wires>>);

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Net")
    }
}

impl Net {
    pub(crate) fn new(swarm: &Swarm, rng: Rng) -> Self {
        Self(Arc::new(Mutex::new(Wires {
            now_us: 0,
            rng,
            swarm: swarm.clone(),
            parcels: BTreeMap::new(),
            numbered: 0,
            cut: BTreeSet::new(),
            slow_us: BTreeMap::new(),
            held_us: BTreeMap::new(),
            homes: BTreeMap::new(),
            calm: false,
            carried: 0,
        })))
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.0.lock().now_us
    }

    pub(crate) fn carried(&self) -> u64 {
        self.0.lock().carried
    }

    pub(crate) fn move_in(&self, id: MemberId, home: Home) {
        self.0.lock().homes.insert(id, home);
    }

    pub(crate) fn move_out(&self, id: MemberId) {
        let gone = self.0.lock().homes.remove(&id);
        drop(gone);
    }

    pub(crate) fn home(&self, id: MemberId) -> Option<Home> {
        self.0.lock().homes.get(&id).cloned()
    }

    pub(crate) fn running(&self) -> Vec<MemberId> {
        self.0.lock().homes.keys().copied().collect()
    }

    pub(crate) fn cut(&self, from: MemberId, to: MemberId) {
        self.0.lock().cut.insert((from, to));
    }

    pub(crate) fn mend(&self, from: MemberId, to: MemberId) {
        self.0.lock().cut.remove(&(from, to));
    }

    pub(crate) fn slow(&self, to: MemberId, by_us: u64) {
        self.0.lock().slow_us.insert(to, by_us);
    }

    /// Between the two, what would arrive arrives after the second.
    pub(crate) fn hold(&self, from: MemberId, to: MemberId, between_us: (u64, u64)) {
        self.0.lock().held_us.insert((from, to), between_us);
    }

    /// A running member that is far behind the others, if there is one.
    pub(crate) fn slowed(&self) -> Option<MemberId> {
        let wires = self.0.lock();
        let slow = wires.slow_us.iter().filter(|(id, by_us)| **by_us > 0 && wires.homes.contains_key(id));
        slow.map(|(id, _)| *id).next()
    }

    /// From now on nothing is lost, doubled, cut off or slow.
    pub(crate) fn calm(&self) {
        let mut wires = self.0.lock();
        wires.calm = true;
        wires.cut.clear();
        wires.slow_us.clear();
        wires.held_us.clear();
    }

    /// Moves the time, and hands over what has arrived by then.
    pub(crate) fn deliver(&self, now_us: u64) {
        self.0.lock().now_us = now_us;
        loop {
            let parcel = {
                let mut wires = self.0.lock();
                let due = wires.parcels.first_key_value().map(|(key, _)| *key).filter(|(at, _)| *at <= now_us);
                let Some(parcel) = due.and_then(|key| wires.parcels.remove(&key)) else { return };
                let there = wires.homes.get(&parcel.to).map(|home| home.life);
                let stale = parcel.life.is_some() && parcel.life != there;
                if wires.is_cut(parcel.from, parcel.to) {
                    wires.strand(parcel);
                    continue;
                }
                wires.carried += 1;
                (!stale).then_some(parcel)
            };
            if let Some(parcel) = parcel {
                (parcel.action)();
            }
        }
    }

    /// Sends `action` on its way. It is dropped without being run if the connection is lost. Answers when
    /// it will arrive, for what must not arrive before it.
    fn send(&self, from: MemberId, to: MemberId, after: u64, action: impl FnOnce() + Send + 'static) -> u64 {
        let mut wires = self.0.lock();
        let life = wires.homes.get(&to).map(|home| home.life);
        let at = wires.arrival(from, to).max(after);
        if to != CLIENTS && life.is_none() {
            return at;
        }
        let parcel = Parcel { from, to, life, action: Box::new(action) };
        let lost = wires.loses(from, to);
        if lost {
            wires.strand(parcel);
        } else {
            wires.put(at, parcel);
        }
        at
    }

    /// Whether a new connection can be made; if not, how long it takes to notice.
    fn connects(&self, from: MemberId, to: MemberId) -> Result<(), Duration> {
        let mut wires = self.0.lock();
        if !wires.homes.contains_key(&to) {
            return Err(Duration::from_millis(1));
        }
        // Half of the time there is a connection already, which nobody knows to be dead.
        if (wires.is_cut(from, to) || wires.is_cut(to, from)) && wires.rng.percent(50) {
            return Err(Duration::from_millis(wires.rng.between(5, 150)));
        }
        Ok(())
    }

    fn doubles(&self, lane: Lane) -> bool {
        let mut wires = self.0.lock();
        let often = wires.swarm.doubled;
        lane == Lane::Control && !wires.calm && wires.rng.below(10_000) < often
    }

    /// As a member's transport.
    pub(crate) fn wire(&self, from: MemberId) -> Wire {
        Wire { net: self.clone(), from }
    }

    /// Has `ask` run at a member and brings its answer to a client. Run on the client's runtime.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        to: MemberId,
        patience: Duration,
        ask: impl FnOnce(Home) -> BoxFuture<'static, T> + Send + 'static,
    ) -> Reach<T> {
        if self.home(to).is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            return Reach::NotSent;
        }
        let (give, take) = oneshot::channel();
        let net = self.clone();
        self.send(CLIENTS, to, 0, move || {
            let Some(home) = net.home(to) else { return };
            let back = net.clone();
            home.runtime.clone().spawn(async move {
                let answer = ask(home).await;
                back.send(to, CLIENTS, 0, move || drop(give.send(answer)));
            });
        });
        match tokio::time::timeout(patience, take).await {
            Ok(Ok(answer)) => Reach::Got(answer),
            Ok(Err(_)) | Err(_) => Reach::Lost,
        }
    }
}

/// What became of a client's request.
#[derive(Debug)]
pub(crate) enum Reach<T> {
    Got(T),
    /// It may have reached the member.
    Lost,
    NotSent,
}

impl Wires {
    fn is_cut(&self, from: MemberId, to: MemberId) -> bool {
        self.cut.contains(&(from, to))
    }

    fn arrival(&mut self, from: MemberId, to: MemberId) -> u64 {
        let (low, high) = self.swarm.delay_us;
        let slow = |id: MemberId| self.slow_us.get(&id).copied().unwrap_or(0);
        let slow_us = if from == CLIENTS || to == CLIENTS { 0 } else { slow(from).max(slow(to)) };
        let at = self.now_us + self.rng.between(low, high) + slow_us;
        match self.held_us.get(&(from, to)) {
            // In order, and much faster than it was sent.
            Some((since, until)) if (*since..*until).contains(&at) => until + (at - since) / 32,
            _ => at,
        }
    }

    fn loses(&mut self, from: MemberId, to: MemberId) -> bool {
        let often = match (from, to) {
            (_, CLIENTS) => self.swarm.lost_answers,
            (CLIENTS, _) => 0,
            _ => self.swarm.lost,
        };
        !self.calm && self.rng.below(10_000) < often
    }

    fn put(&mut self, at: u64, parcel: Parcel) {
        self.numbered += 1;
        self.parcels.insert((at, self.numbered), parcel);
    }

    /// What is lost keeps its connection hanging for a while; then it is reset.
    fn strand(&mut self, parcel: Parcel) {
        let reset_us = self.now_us + self.rng.between(1_000, 1_500_000);
        let Parcel { action, .. } = parcel;
        self.put(reset_us, Parcel { from: CLIENTS, to: CLIENTS, life: None, action: Box::new(move || drop(action)) });
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Wire {
    net: Net,
    from: MemberId,
}

fn lost() -> TransportError {
    TransportError::Failed("the connection was lost".into())
}

impl Wire {
    fn send_call(&self, to: MemberId, request: Bytes, answer: Option<oneshot::Sender<Result<Bytes, TransportError>>>) {
        let (net, from) = (self.net.clone(), self.from);
        self.net.send(from, to, 0, move || {
            let Some(home) = net.home(to) else { return };
            let back = net.clone();
            home.runtime.clone().spawn(async move {
                let answered = home.consensus.answer(request).await;
                if let Some(answer) = answer {
                    back.send(to, from, 0, move || drop(answer.send(answered)));
                }
            });
        });
    }
}

impl Transport for Wire {
    fn call(
        &self,
        peer: Peer,
        lane: Lane,
        request: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let wire = self.clone();
        Box::pin(async move {
            if let Err(after) = wire.net.connects(wire.from, peer.id) {
                tokio::time::sleep(after.min(timeout)).await;
                return Err(TransportError::Unreachable(format!("no way to {}", peer.id)));
            }
            let (give, take) = oneshot::channel();
            if wire.net.doubles(lane) {
                wire.send_call(peer.id, request.clone(), None);
            }
            wire.send_call(peer.id, request, Some(give));
            match tokio::time::timeout(timeout, take).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(lost()),
                Err(_) => Err(TransportError::Failed("no answer in time".into())),
            }
        })
    }

    fn stream(
        &self,
        peer: Peer,
        lane: Lane,
        requests: BoxStream<'static, Bytes>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes, TransportError>>, TransportError>> {
        let wire = self.clone();
        Box::pin(async move {
            if let Err(after) = wire.net.connects(wire.from, peer.id) {
                tokio::time::sleep(after.min(timeout)).await;
                return Err(TransportError::Unreachable(format!("no way to {}", peer.id)));
            }
            Ok(wire.open(peer.id, lane, requests))
        })
    }
}

impl Wire {
    fn open(
        &self,
        to: MemberId,
        lane: Lane,
        requests: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, TransportError>> {
        let broken = CancellationToken::new();
        let (up, at_peer) = mpsc::unbounded_channel::<Bytes>();
        let (down, at_home) = mpsc::unbounded_channel::<Result<Bytes, TransportError>>();
        let way = Way::new(&self.net, (self.from, to), &broken);
        let back = Way::new(&self.net, (to, self.from), &broken);
        let serve = {
            let (net, broken) = (self.net.clone(), broken.clone());
            move || {
                let Some(home) = net.home(to) else { return broken.cancel() };
                home.runtime.clone().spawn(async move {
                    let requests = stream::unfold((at_peer, broken.clone()), |(mut at_peer, broken)| async move {
                        let next = broken.run_until_cancelled(at_peer.recv()).await??;
                        Some((next, (at_peer, broken)))
                    });
                    let mut answers = home.consensus.answer_stream(lane, requests.boxed());
                    while let Some(Some(answer)) = broken.run_until_cancelled(answers.next()).await {
                        let down = down.clone();
                        back.send(move || drop(down.send(answer)));
                    }
                    back.send(move || drop(down));
                });
            }
        };
        way.send(serve);
        tokio::spawn(async move {
            let mut requests = requests;
            while let Some(Some(request)) = way.broken.run_until_cancelled(requests.next()).await {
                let up = up.clone();
                way.send(move || drop(up.send(request)));
            }
            way.send(move || drop(up));
        });
        let open = Open { broken, at_home };
        stream::unfold(Some(open), |open| async move {
            let mut open = open?;
            let broken = open.broken.clone();
            match broken.run_until_cancelled(open.at_home.recv()).await {
                Some(Some(answer)) => Some((answer, Some(open))),
                Some(None) => None,
                None => Some((Err(lost()), None)),
            }
        })
        .boxed()
    }
}

/// The asking end of a stream; the stream ends with it.
struct Open {
    broken: CancellationToken,
    at_home: mpsc::UnboundedReceiver<Result<Bytes, TransportError>>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.broken.cancel();
    }
}

/// One direction of a stream: in order and without a hole, or broken.
struct Way {
    net: Net,
    from: MemberId,
    to: MemberId,
    last: AtomicU64,
    sent: AtomicU64,
    received: Arc<AtomicU64>,
    broken: CancellationToken,
}

/// Breaks the stream if what it guards is dropped on the way.
struct Carried {
    broken: CancellationToken,
    arrived: bool,
}

impl Drop for Carried {
    fn drop(&mut self) {
        if !self.arrived {
            self.broken.cancel();
        }
    }
}

impl Way {
    fn new(net: &Net, (from, to): (MemberId, MemberId), broken: &CancellationToken) -> Self {
        Self {
            net: net.clone(),
            from,
            to,
            last: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: Arc::default(),
            broken: broken.clone(),
        }
    }

    fn send(&self, action: impl FnOnce() + Send + 'static) {
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let received = self.received.clone();
        let carried = Carried { broken: self.broken.clone(), arrived: false };
        let at = self.net.send(self.from, self.to, self.last.load(Ordering::Relaxed), move || {
            // Whole, so that it is dropped with what carries it.
            let mut carried = carried;
            // After a loss nothing of the stream arrives any more.
            let in_order = received.compare_exchange(number, number + 1, Ordering::Relaxed, Ordering::Relaxed);
            if in_order.is_ok() && !carried.broken.is_cancelled() {
                carried.arrived = true;
                action();
            }
        });
        self.last.store(at, Ordering::Relaxed);
    }
}
