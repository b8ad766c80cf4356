//! The faults of a run: what is done to its machines and its network, when, and when it is over.

use super::host::Trace;
use super::rng::Rng;
use super::swarm::{Fault, Swarm};
use super::world::World;
use std::time::Duration;
use tenure::model::Caller;
use tenure::raft::MemberId;
use tenure::service::{CompactTarget, Context};
use tenure::storage::simdisk::Survivors;

const ASKED: Duration = Duration::from_secs(3);

/// When the next fault is due, and what mends the last ones.
pub(crate) struct Nemesis {
    rng: Rng,
    next_us: u64,
    /// Who led when it was last looked.
    led: Option<MemberId>,
    mends: Vec<(u64, Mend)>,
    /// When a snapshot or a compaction is due, beside the faults.
    upkeep_us: u64,
    /// Faults that acted.
    pub(crate) acted: u64,
}

enum Mend {
    Link(MemberId, MemberId),
    Slow(MemberId),
}

impl Nemesis {
    pub(crate) fn new(rng: Rng) -> Self {
        Self { rng, next_us: 1_500_000, led: None, mends: Vec::new(), upkeep_us: 1_000_000, acted: 0 }
    }

    /// What is due now.
    pub(crate) fn step(&mut self, world: &mut World) {
        let now_us = world.now_us();
        let (due, later) = std::mem::take(&mut self.mends).into_iter().partition(|(at, _)| *at <= now_us);
        self.mends = later;
        for (_, mend) in due {
            match mend {
                Mend::Link(from, to) => world.net().mend(from, to),
                Mend::Slow(to) => world.net().slow(to, 0),
            }
        }
        if now_us >= self.upkeep_us {
            self.upkeep_us = now_us + self.rng.between(200_000, 1_200_000);
            self.upkeep(world);
        }
        let swarm: &Swarm = world.swarm();
        let led = std::mem::replace(&mut self.led, world.leader());
        let begins = led != self.led && self.led.is_some();
        if now_us < self.next_us && !(begins && self.rng.percent(swarm.faults_at_begin)) {
            return;
        }
        let every_us = swarm.fault_every_ms * 1000;
        let fault = self.rng.pick(&swarm.faults).copied();
        self.next_us = now_us + self.rng.between(every_us / 2, every_us * 3 / 2);
        if let Some(fault) = fault
            && let Some(what) = self.act(fault, world)
        {
            self.acted += 1;
            trace(world.trace(), now_us, &format!("{fault:?}: {what}"));
        }
    }

    fn until(&mut self, world: &World, low_ms: u64, high_ms: u64) -> u64 {
        world.now_us() + self.rng.between(low_ms, high_ms) * 1000
    }

    /// A member that is up; mostly the leader, where most can go wrong.
    fn victim(&mut self, world: &World) -> Option<MemberId> {
        let up = world.up();
        let leader = world.leader().filter(|_| self.rng.percent(60));
        leader.or_else(|| self.rng.pick(&up).copied())
    }

    fn cut(&mut self, world: &World, from: MemberId, to: MemberId, until_us: u64) {
        world.net().cut(from, to);
        self.mends.push((until_us, Mend::Link(from, to)));
    }

    /// Answers what was done, if anything was.
    fn act(&mut self, fault: Fault, world: &mut World) -> Option<String> {
        let victim = self.victim(world)?;
        match fault {
            Fault::Kill => {
                let until_us = self.until(world, 20, 2_500);
                world.kill(victim, None, until_us);
            }
            Fault::PowerCut => {
                let until_us = self.until(world, 20, 2_500);
                world.kill(victim, Some(self.survivors()), until_us);
            }
            Fault::PowerCutAll => {
                if self.rng.percent(60) {
                    return None;
                }
                for id in world.up() {
                    let until_us = self.until(world, 20, 1_000);
                    world.kill(id, Some(self.survivors()), until_us);
                }
                return Some("everybody".to_owned());
            }
            Fault::Pause => {
                let until_us = self.until(world, 100, 4_000);
                world.pause(victim, until_us);
            }
            Fault::DiskHang => {
                let until_us = self.until(world, 100, 3_000);
                world.hang_disk(victim, until_us);
            }
            Fault::WallStep => {
                let offset_ms = i64::try_from(self.rng.below(7_200_000)).unwrap_or(0) - 3_600_000;
                world.step_wall(victim, offset_ms);
                // Whoever measures leadership by it must not go on leading.
                if self.rng.percent(75) {
                    self.divide(Fault::Isolate, victim, world);
                }
                return Some(format!("member {victim} by {offset_ms} ms"));
            }
            Fault::Isolate | Fault::OneWay | Fault::Split | Fault::Slow => return self.divide(fault, victim, world),
            Fault::Late => return Some(self.hold_back(world.leader().unwrap_or(victim), world)),
            Fault::Transfer => {
                let home = world.net().home(victim)?;
                home.runtime.clone().spawn(async move { home.consensus.hand_over().await });
            }
            Fault::Membership => world.request_change(),
        }
        Some(format!("member {victim}"))
    }

    /// What goes on all the time in runs that have it.
    fn upkeep(&mut self, world: &World) -> Option<()> {
        let up = world.up();
        let home = world.net().home(*self.rng.pick(&up)?)?;
        let swarm = world.swarm();
        if swarm.snapshots && self.rng.percent(40) {
            let home = home.clone();
            home.runtime.clone().spawn(async move { drop(home.consensus.trigger_snapshot(ASKED).await) });
        }
        if swarm.compactions {
            // Mostly so near that slow watchers are left behind it.
            let most = if self.rng.percent(60) { 8 } else { 200 };
            let keep = i64::try_from(self.rng.between(1, most)).unwrap_or(1);
            home.runtime.clone().spawn(async move {
                let context = Context::new(Caller::System, ASKED);
                drop(home.service.compact(&context, CompactTarget::KeepRevisions(keep)).await);
            });
        }
        Some(())
    }

    fn survivors(&mut self) -> Survivors {
        match self.rng.below(3) {
            0 => Survivors::Nothing,
            _ => Survivors::Seeded(self.rng.next()),
        }
    }

    fn divide(&mut self, fault: Fault, victim: MemberId, world: &World) -> Option<String> {
        let until_us = self.until(world, if fault == Fault::Slow { 2_000 } else { 300 }, 5_000);
        let everybody = world.known();
        let others: Vec<MemberId> = everybody.iter().copied().filter(|id| *id != victim).collect();
        match fault {
            Fault::OneWay => {
                let deaf = self.rng.percent(50);
                for other in others {
                    let (from, to) = if deaf { (other, victim) } else { (victim, other) };
                    self.cut(world, from, to, until_us);
                }
                return Some(format!("member {victim}, deaf: {deaf}"));
            }
            Fault::Slow => {
                let by_us = self.rng.between(200_000, 1_300_000);
                world.net().slow(victim, by_us);
                self.mends.push((until_us, Mend::Slow(victim)));
                return Some(format!("member {victim} by {} ms", by_us / 1000));
            }
            Fault::Split => {
                let mut order = everybody;
                self.rng.shuffle(&mut order);
                let (one, other) = order.split_at(order.len() / 2);
                for (a, b) in one.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
                    self.cut(world, a, b, until_us);
                    self.cut(world, b, a, until_us);
                }
                return Some(format!("{one:?} from {other:?}"));
            }
            _ => {
                for other in others {
                    self.cut(world, other, victim, until_us);
                    self.cut(world, victim, other, until_us);
                }
            }
        }
        Some(format!("member {victim}"))
    }

    /// For long enough for an election. Answers to what the victim could still send are among what
    /// waits, and what one of them brings about finds others still on their way.
    fn hold_back(&mut self, victim: MemberId, world: &World) -> String {
        let (deaf_us, until_us) = (world.now_us(), self.until(world, 700, 1_800));
        let dumb_us = deaf_us + self.rng.between(20_000, 200_000);
        let later_us = self.rng.between(0, 400_000);
        for other in world.known().into_iter().filter(|id| *id != victim) {
            let until_us = until_us + self.rng.between(0, 400_000);
            world.net().hold(other, victim, (deaf_us, until_us));
            world.net().hold(victim, other, (dumb_us, until_us + later_us));
        }
        format!("member {victim} until {} ms", until_us / 1000)
    }
}

fn trace(trace: &Trace, now_us: u64, what: &str) {
    trace.note(format!("{:>6} ms {what}", now_us / 1000));
}
