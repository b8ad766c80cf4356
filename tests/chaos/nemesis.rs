//! What goes wrong, one fault at a time, and how it is seen to have gone wrong.
//!
//! A fault has three parts: it strikes, it lasts, it ends. It counts only if it was observed to act
//! (a process that had run is dead, every thread stopped, bytes held back, a thread stuck in the disk,
//! a disk said to be full, another leader…).

use super::eventually;
use super::fleet::Fleet;
use super::proxy::Rule;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    KillOne,
    KillLeader,
    KillMajority,
    KillAll,
    PauseOne,
    PauseLeader,
    PauseMajority,
    /// One member, or the leader, hears and is heard of nobody.
    CutOff,
    CutOffLeader,
    /// The leader with a minority on one side, the majority on the other.
    Split,
    /// The leader is heard and hears nothing, or the reverse.
    DeafLeader,
    MuteLeader,
    /// Two halves that only one member connects.
    Bridge,
    Slow,
    PowerOne,
    PowerLeader,
    PowerAll,
    StuckDisk,
    FullDisk,
    NoSpace,
    /// A member's wall clock jumps by an hour or by years, either way, and back.
    Clock,
    Transfer,
    Restart,
    Replace,
}

/// What the fault did, if it was seen to act.
pub(crate) type Acted = Result<String, String>;

impl Fault {
    pub(crate) const ALL: [Self; 24] = [
        Self::KillOne,
        Self::KillLeader,
        Self::KillMajority,
        Self::KillAll,
        Self::PauseOne,
        Self::PauseLeader,
        Self::PauseMajority,
        Self::CutOff,
        Self::CutOffLeader,
        Self::Split,
        Self::DeafLeader,
        Self::MuteLeader,
        Self::Bridge,
        Self::Slow,
        Self::PowerOne,
        Self::PowerLeader,
        Self::PowerAll,
        Self::StuckDisk,
        Self::FullDisk,
        Self::NoSpace,
        Self::Clock,
        Self::Transfer,
        Self::Restart,
        Self::Replace,
    ];

    /// How many of it there are in one deck.
    const fn weight(self) -> usize {
        match self {
            Self::KillLeader | Self::PauseLeader | Self::Transfer | Self::PowerOne | Self::PowerLeader => 3,
            Self::KillOne | Self::PauseOne | Self::CutOffLeader | Self::PowerAll | Self::Split => 2,
            Self::KillMajority
            | Self::KillAll
            | Self::PauseMajority
            | Self::CutOff
            | Self::DeafLeader
            | Self::MuteLeader
            | Self::Bridge
            | Self::Slow
            | Self::StuckDisk
            | Self::FullDisk
            | Self::NoSpace
            | Self::Clock
            | Self::Restart
            | Self::Replace => 1,
        }
    }

    pub(crate) const fn is_power_cut(self) -> bool {
        matches!(self, Self::PowerOne | Self::PowerLeader | Self::PowerAll)
    }

    const fn needs_disks(self) -> bool {
        self.is_power_cut() || matches!(self, Self::StuckDisk | Self::FullDisk | Self::NoSpace)
    }
}

/// Every kind that is possible here, in a random order, as often as its weight says.
pub(crate) fn deck(fleet: &Fleet, rng: &mut StdRng, weighted: bool) -> Vec<Fault> {
    let only = std::env::var("TENURE_CHAOS_ONLY").unwrap_or_default();
    let asked = |fault: &Fault| only.is_empty() || only.split(',').any(|name| name == format!("{fault:?}"));
    let possible = Fault::ALL.into_iter().filter(|fault| {
        (fleet.has_disks() || !fault.needs_disks()) && asked(fault) && (fleet.has_clocks() || *fault != Fault::Clock)
    });
    let mut deck: Vec<Fault> =
        possible.flat_map(|fault| std::iter::repeat_n(fault, if weighted { fault.weight() } else { 1 })).collect();
    assert!(!deck.is_empty(), "TENURE_CHAOS_ONLY={only} leaves no fault");
    deck.shuffle(rng);
    deck
}

/// A disk that takes no writes until this is dropped; another process thaws it if this one dies.
struct Frozen {
    path: String,
    watchdog: Child,
}

impl Frozen {
    fn new(path: &std::path::Path) -> Result<Self, String> {
        let path = path.to_str().expect("a plain path").to_owned();
        let watchdog = Command::new("sh")
            .args(["-c", "sleep 20; fsfreeze -u \"$0\"", &path])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| error.to_string())?;
        let frozen = Self { path, watchdog };
        let status = Command::new("fsfreeze").args(["-f", &frozen.path]).status().map_err(|error| error.to_string())?;
        if status.success() { Ok(frozen) } else { Err(format!("fsfreeze: {status}")) }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _already_thawed = Command::new("fsfreeze").args(["-u", &self.path]).stderr(Stdio::null()).status();
        let _already_gone = self.watchdog.kill();
        let _already_gone = self.watchdog.wait();
    }
}

pub(crate) struct Nemesis<'a> {
    pub(crate) fleet: &'a mut Fleet,
    pub(crate) rng: &'a mut StdRng,
}

impl Nemesis<'_> {
    /// Strikes, lasts, ends. The members need not be well again on return, but all of them run.
    pub(crate) fn strike(&mut self, fault: Fault) -> Acted {
        match fault {
            Fault::KillOne => {
                let one = self.any();
                self.kill(&[one])
            }
            Fault::KillLeader => {
                let leader = self.leader();
                self.kill(&[leader])
            }
            Fault::KillMajority => {
                let some = self.some(self.majority());
                self.kill(&some)
            }
            Fault::KillAll => self.kill(&self.everyone()),
            Fault::PauseOne => {
                let one = self.any();
                self.pause(&[one])
            }
            Fault::PauseLeader => {
                let leader = self.leader();
                self.pause(&[leader])
            }
            Fault::PauseMajority => {
                let some = self.some(self.majority());
                self.pause(&some)
            }
            Fault::CutOff => {
                let one = self.any();
                self.partition(&self.around(&[one], true, true))
            }
            Fault::CutOffLeader => {
                let leader = self.leader();
                self.partition(&self.around(&[leader], true, true))
            }
            Fault::Split => {
                let leader = self.leader();
                let mut side: Vec<usize> = self.others(leader);
                side.truncate(self.fleet.count() - self.majority() - 1);
                side.push(leader);
                self.partition(&self.around(&side, true, true))
            }
            Fault::DeafLeader => {
                let leader = self.leader();
                self.partition(&self.around(&[leader], false, true))
            }
            Fault::MuteLeader => {
                let leader = self.leader();
                self.partition(&self.around(&[leader], true, false))
            }
            Fault::Bridge => self.bridge(),
            Fault::Slow => self.slow(),
            Fault::PowerOne => {
                let one = self.any();
                self.cut_power(&[one])
            }
            Fault::PowerLeader => {
                let leader = self.leader();
                self.cut_power(&[leader])
            }
            Fault::PowerAll => self.cut_power(&self.everyone()),
            Fault::StuckDisk => self.stuck_disk(),
            Fault::FullDisk => self.full_disk(24 << 20),
            Fault::NoSpace => self.full_disk(0),
            Fault::Clock => self.step_clock(),
            Fault::Transfer => self.transfer(),
            Fault::Restart => self.restart(),
            Fault::Replace => {
                let slot = self.rng.random_range(0..self.fleet.count());
                let old = self.fleet.name(slot);
                self.fleet.replace(slot).map(|()| format!("{old} by {}", self.fleet.name(slot)))
            }
        }
    }

    fn everyone(&self) -> Vec<usize> {
        (0..self.fleet.count()).collect()
    }

    fn others(&mut self, but: usize) -> Vec<usize> {
        let mut others: Vec<usize> = self.everyone().into_iter().filter(|slot| *slot != but).collect();
        others.shuffle(self.rng);
        others
    }

    fn any(&mut self) -> usize {
        self.rng.random_range(0..self.fleet.count())
    }

    fn some(&mut self, count: usize) -> Vec<usize> {
        let mut some = self.everyone();
        some.shuffle(self.rng);
        some.truncate(count);
        some
    }

    fn majority(&self) -> usize {
        self.fleet.count() / 2 + 1
    }

    fn leader(&mut self) -> usize {
        self.fleet.leader().0
    }

    fn names(&self, slots: &[usize]) -> String {
        let names: Vec<String> = slots.iter().map(|slot| self.fleet.name(*slot)).collect();
        names.join(" ")
    }

    fn last(&mut self, least_ms: u64, most_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.rng.random_range(least_ms..=most_ms)));
    }

    fn kill(&mut self, slots: &[usize]) -> Acted {
        let had_run: Vec<bool> = slots.iter().map(|slot| self.fleet.kill(*slot)).collect();
        self.last(0, 1_200);
        slots.iter().for_each(|slot| self.fleet.launch(*slot));
        let names = self.names(slots);
        if had_run.iter().all(|ran| *ran) { Ok(names) } else { Err(format!("{names}: some had ended before")) }
    }

    fn pause(&mut self, slots: &[usize]) -> Acted {
        slots.iter().for_each(|slot| self.fleet.pause(*slot));
        self.last(200, 2_500);
        slots.iter().for_each(|slot| self.fleet.resume(*slot));
        Ok(self.names(slots))
    }

    /// The links between these members and the rest, out of them, into them, or both.
    fn around(&self, inside: &[usize], out: bool, into: bool) -> Vec<(usize, usize)> {
        let mut links = Vec::new();
        for one in inside {
            for other in self.everyone().iter().filter(|slot| !inside.contains(slot)) {
                let (one, other) = (self.fleet.number(*one), self.fleet.number(*other));
                links.extend(out.then_some((one, other)));
                links.extend(into.then_some((other, one)));
            }
        }
        links
    }

    fn partition(&mut self, links: &[(usize, usize)]) -> Acted {
        let rule = if self.rng.random() { Rule::Hold } else { Rule::Lose };
        let before = self.fleet.net.touched();
        self.fleet.net.set(links, rule);
        self.last(800, 3_000);
        self.fleet.net.heal();
        let touched = self.fleet.net.touched() - before;
        let what = format!("{links:?} {rule:?}, {touched} bytes");
        if touched > 0 { Ok(what) } else { Err(what) }
    }

    fn bridge(&mut self) -> Acted {
        let mut slots = self.everyone();
        slots.shuffle(self.rng);
        let (left, right) = slots[1..].split_at((slots.len() - 1) / 2);
        let number = |slot: &usize| self.fleet.number(*slot);
        let both = |one: &usize| {
            right.iter().flat_map(|two| [(number(one), number(two)), (number(two), number(one))]).collect::<Vec<_>>()
        };
        let links: Vec<(usize, usize)> = left.iter().flat_map(both).collect();
        self.partition(&links)
    }

    fn slow(&mut self) -> Acted {
        let one = self.any();
        let links = if self.rng.random() {
            self.around(&[one], true, true)
        } else {
            self.around(&self.everyone()[..1], true, false)
        };
        let delay = Duration::from_millis(self.rng.random_range(20..=250));
        let before = self.fleet.net.touched();
        self.fleet.net.set(&links, Rule::Delay(delay));
        self.last(1_000, 3_000);
        self.fleet.net.heal();
        let touched = self.fleet.net.touched() - before;
        let what = format!("{links:?} by {delay:?}, {touched} bytes");
        if touched > 0 { Ok(what) } else { Err(what) }
    }

    fn cut_power(&mut self, slots: &[usize]) -> Acted {
        let ran = slots.iter().all(|slot| self.fleet.is_running(*slot));
        self.fleet.cut_power(slots)?;
        self.last(0, 1_000);
        slots.iter().for_each(|slot| self.fleet.launch(*slot));
        let names = self.names(slots);
        if ran { Ok(names) } else { Err(format!("{names}: some had ended before")) }
    }

    fn stuck_disk(&mut self) -> Acted {
        let slot = if self.rng.random() { self.leader() } else { self.any() };
        let frozen = Frozen::new(self.fleet.mount(slot).path())?;
        let patience = Instant::now() + Duration::from_secs(3);
        while !self.fleet.is_stuck(slot) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        let stuck = self.fleet.is_stuck(slot);
        self.last(300, 2_500);
        drop(frozen);
        let name = self.fleet.name(slot);
        if stuck { Ok(name) } else { Err(format!("{name}: no thread waited for the disk")) }
    }

    fn full_disk(&mut self, leave: u64) -> Acted {
        let slot = self.any();
        let name = self.fleet.name(slot);
        let ballast = self.fleet.mount(slot).fill(leave)?;
        let patience = Instant::now() + Duration::from_secs(5);
        let mut seen = false;
        while !seen && Instant::now() < patience && self.fleet.is_running(slot) {
            let status = self.fleet.json(slot, "/v1/status").unwrap_or_default();
            seen = status["alarms"].as_array().is_some_and(|alarms| alarms.iter().any(|alarm| alarm == "storage-full"));
        }
        self.last(300, 1_500);
        // With nothing left it ends, once it has used up what it holds in reserve.
        let patience = Instant::now() + Duration::from_secs(if leave == 0 { 3 } else { 0 });
        while self.fleet.is_running(slot) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
        let ended = !self.fleet.is_running(slot);
        std::fs::remove_file(ballast).map_err(|error| error.to_string())?;
        // A write that has failed ends it a moment later.
        if leave == 0 {
            std::thread::sleep(Duration::from_secs(1));
        }
        if ended || !self.fleet.is_running(slot) {
            let status = self.fleet.await_end(slot);
            let said = self.fleet.tail(slot);
            self.fleet.launch(slot);
            if status.success() || said.contains("panicked") {
                return Err(format!("{name} ended with {status}:\n{said}"));
            }
            return Ok(format!("{name} ended for want of space"));
        }
        if seen { Ok(name) } else { Err(format!("{name} did not notice")) }
    }

    fn step_clock(&mut self) -> Acted {
        let slot = if self.rng.random() { self.leader() } else { self.any() };
        let by = ["+3600", "-3600", "+315360000", "-315360000"][self.rng.random_range(0..4)];
        let other = (slot + 1) % self.fleet.count();
        self.fleet.step_clock(slot, by);
        let patience = Instant::now() + Duration::from_secs(4);
        let apart = |fleet: &Fleet| Some(fleet.hour(slot)? != fleet.hour(other)?);
        while apart(self.fleet) != Some(true) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
        let acted = apart(self.fleet) == Some(true);
        self.last(500, 2_000);
        self.fleet.step_clock(slot, "+0");
        let what = format!("{} by {by} s", self.fleet.name(slot));
        if acted { Ok(what) } else { Err(format!("{what}: its clock stays")) }
    }

    fn transfer(&mut self) -> Acted {
        let (leader, term) = self.fleet.leader();
        let to = self.others(leader)[0];
        let target = format!("/v1/cluster/leader?to={}", self.fleet.name(to));
        let asked = self.any();
        let answer = self.fleet.ask(asked, "POST", &target, Duration::from_secs(8));
        let status = answer.as_ref().map(|answer| answer.status);
        if status != Some(200) {
            let said = answer.map(|answer| String::from_utf8_lossy(&answer.body).into_owned());
            return Err(format!("{target}: {said:?}"));
        }
        let (now, newer) = eventually("the term has risen", Duration::from_secs(10), || {
            self.fleet.leadership().filter(|(_, newer)| *newer > term)
        });
        Ok(format!("{} to {}, term {term} to {newer}", self.fleet.name(leader), self.fleet.name(now)))
    }

    fn restart(&mut self) -> Acted {
        let slot = self.leader();
        let name = self.fleet.name(slot);
        let status = self.fleet.terminate(slot);
        self.fleet.launch(slot);
        if status.success() { Ok(name) } else { Err(format!("{name} ended with {status}")) }
    }
}
