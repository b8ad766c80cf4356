//! One cluster under load through fault after fault, until enough has happened; then the verdict.
//!
//! What is enough comes from the environment (`scripts/chaos.sh` sets it): `TENURE_CHAOS_SECONDS`,
//! `_OPS`, `_FAULTS`, `_LEADERS`, `_CUTS`, all of which must be reached, within `_MAX_SECONDS`; the
//! members are `_MEMBERS`, the clients `_CLIENTS`, each with `_PACE_MS` between its operations at least.

use super::fleet::Fleet;
use super::load::Load;
use super::nemesis::{Acted, Fault, Nemesis, deck};
use super::op::Answer;
use super::verdict::{judge, one_state};
use super::witness::Witness;
use super::{env_number, machine, seed};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Operations that must complete from a fault's strike to the end of its window.
const WINDOW_OPS: u64 = 50;
const WINDOW_WITHIN: Duration = Duration::from_secs(45);
/// After a fault has ended, all members serve again within this, also where the machine does much else; how long it
/// took is in the table.
const WELL_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Enough {
    seconds: u64,
    max_seconds: u64,
    ops: u64,
    faults: u64,
    leaders: u64,
    cuts: u64,
}

#[derive(Debug, Default)]
struct Tally {
    struck: u64,
    counted: u64,
    ops: u64,
    void: Vec<String>,
}

/// A window that counts or not, for the outages later: when it was, by the journals' clock.
#[derive(Debug)]
struct Window {
    fault: Fault,
    from: u64,
    to: u64,
}

struct Campaign {
    fleet: Fleet,
    load: Load,
    witness: Witness,
    rng: StdRng,
    enough: Enough,
    tallies: BTreeMap<Fault, Tally>,
    windows: Vec<Window>,
    failures: Vec<String>,
    begun: Instant,
}

impl Campaign {
    fn elapsed(&self) -> u64 {
        self.begun.elapsed().as_secs()
    }

    fn counted(&self) -> u64 {
        self.tallies.values().map(|tally| tally.counted).sum()
    }

    fn cuts(&self) -> u64 {
        let cuts = self.tallies.iter().filter(|(fault, _)| fault.is_power_cut());
        cuts.map(|(_, tally)| tally.counted).sum()
    }

    fn lacks(&self) -> Vec<String> {
        let leaders = u64::try_from(self.witness.leaders()).unwrap().saturating_sub(1);
        let cuts = if self.fleet.has_disks() { self.enough.cuts } else { 0 };
        let rows = [
            ("seconds", self.elapsed(), self.enough.seconds),
            ("operations", self.load.answered(), self.enough.ops),
            ("faults", self.counted(), self.enough.faults),
            ("leader changes", leaders, self.enough.leaders),
            ("power cuts", self.cuts(), cuts),
        ];
        let short = rows.iter().filter(|(_, is, wanted)| is < wanted);
        short.map(|(what, is, wanted)| format!("{is} of {wanted} {what}")).collect()
    }

    fn run(&mut self) {
        let mut weighted = false;
        loop {
            for fault in deck(&self.fleet, &mut self.rng, weighted) {
                let over = self.lacks().is_empty() && (weighted || self.elapsed() >= self.enough.seconds);
                if over || !self.failures.is_empty() || self.load.has_failed() {
                    return;
                }
                if self.elapsed() > self.enough.max_seconds {
                    self.failures.push(format!("out of time with {}", self.lacks().join(", ")));
                    return;
                }
                self.one(fault);
            }
            // The first deck has one of each kind, so that no kind is left out of a short run.
            weighted = true;
            if self.lacks().is_empty() {
                return;
            }
        }
    }

    fn one(&mut self, fault: Fault) {
        let (before, from, began) = (self.load.answered(), self.load.now(), Instant::now());
        let acted = Nemesis { fleet: &mut self.fleet, rng: &mut self.rng }.strike(fault);
        if let Err(why) = self.fleet.await_ready(WELL_WITHIN) {
            self.failures.push(format!("after {fault:?}: {why}"));
        }
        let patience = Instant::now() + WINDOW_WITHIN;
        let written = self.load.written();
        while self.load.answered() < before + WINDOW_OPS || self.load.written() == written {
            if Instant::now() > patience {
                self.failures.push(format!("after {fault:?} nothing is written within {WINDOW_WITHIN:?}"));
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.windows.push(Window { fault, from, to: self.load.now() });
        self.note(fault, &acted, self.load.answered() - before, began.elapsed());
    }

    fn note(&mut self, fault: Fault, acted: &Acted, ops: u64, took: Duration) {
        let tally = self.tallies.entry(fault).or_default();
        tally.struck += 1;
        tally.ops += ops;
        let counts = acted.is_ok() && ops >= WINDOW_OPS;
        if counts {
            tally.counted += 1;
        } else {
            tally.void.push(format!("{acted:?}, {ops} operations"));
        }
        eprintln!(
            "[{:>5} s] {:>4} {fault:?}: {}{}; {ops} operations in {:.1} s; {} in all, {} leaders",
            self.begun.elapsed().as_secs(),
            self.counted(),
            if counts { "" } else { "VOID " },
            match acted {
                Ok(what) | Err(what) => what,
            },
            took.as_secs_f64(),
            self.load.answered(),
            self.witness.leaders(),
        );
    }
}

/// The longest time without a write acknowledged that touches each kind's windows, and in all.
fn outages(written: &mut [u64], windows: &[Window]) -> (BTreeMap<Fault, Duration>, Duration) {
    written.sort_unstable();
    let mut by_fault = BTreeMap::new();
    let mut longest = 0;
    for pair in written.windows(2) {
        let gap = pair[1] - pair[0];
        longest = longest.max(gap);
        // Short ones are no outages, and there are very many of them.
        if gap < 20_000_000 {
            continue;
        }
        let touched = windows.iter().filter(|window| window.from <= pair[1] && pair[0] <= window.to);
        for window in touched {
            let worst = by_fault.entry(window.fault).or_insert(Duration::ZERO);
            *worst = (*worst).max(Duration::from_nanos(gap));
        }
    }
    (by_fault, Duration::from_nanos(longest))
}

fn campaign(name: &str, enough: Enough) {
    let seed = seed(name);
    let members = usize::try_from(env_number("TENURE_CHAOS_MEMBERS").unwrap_or(3)).unwrap();
    let clients = usize::try_from(env_number("TENURE_CHAOS_CLIENTS").unwrap_or(18)).unwrap();
    let pace = Duration::from_millis(env_number("TENURE_CHAOS_PACE_MS").unwrap_or(10));
    // Small snapshots, so that faults also hit their writing, the log's purge and catching up by one.
    let flags = ["--snapshot-bytes=256KiB", "--disk-reserve-bytes=64MiB", "--disk-stall-abort=20s"];
    let fleet = Fleet::start_with_everything(members, &flags);
    let load = Load::start(&fleet.view, clients, pace, seed);
    let witness = Witness::start(&fleet.view);
    let mut campaign = Campaign {
        fleet,
        load,
        witness,
        rng: StdRng::seed_from_u64(seed),
        enough,
        tallies: BTreeMap::new(),
        windows: Vec::new(),
        failures: Vec::new(),
        begun: Instant::now(),
    };
    campaign.run();
    let lacks = campaign.lacks();
    let Campaign { mut fleet, load, witness, tallies, windows, mut failures, begun, .. } = campaign;
    let ran = begun.elapsed();
    let journal = load.stop();
    // The account must reach what was last acknowledged.
    let last = journal.ops.iter().filter_map(|op| op.answer.revision()).max().unwrap_or(1);
    let patience = Instant::now() + WELL_WITHIN;
    while witness.position() < last && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(20));
    }
    // Unknown operations may still be applied until the members are level.
    std::thread::sleep(Duration::from_secs(3));
    let testimony = witness.end();
    let hash = one_state(&mut fleet, &testimony.log).unwrap_or_else(|why| {
        failures.push(why);
        String::new()
    });
    failures.extend(fleet.panics());
    let (violations, keys) = judge(&journal, &testimony);
    failures.extend(violations.into_iter().map(|what| format!("VIOLATION: {what}")));
    if failures.is_empty() && !lacks.is_empty() {
        failures.push(format!("too little happened: {}", lacks.join(", ")));
    }

    let count = |wanted: fn(&Answer) -> bool| journal.ops.iter().filter(|op| wanted(&op.answer)).count();
    let (unknown, refused) = (count(|answer| *answer == Answer::Unknown), count(|answer| *answer == Answer::No));
    let answered = journal.ops.len() - unknown - refused;
    let mut written: Vec<u64> =
        journal.ops.iter().filter(|op| matches!(op.answer, Answer::Written { .. })).map(|op| op.returned).collect();
    let (gaps, longest) = outages(&mut written, &windows);
    let mut report =
        format!("\n{:<16} {:>6} {:>6} {:>10} {:>16}\n", "fault", "struck", "counts", "operations", "longest outage");
    let mut void = 0;
    for (fault, tally) in &tallies {
        let gap = gaps.get(fault).copied().unwrap_or_default();
        writeln!(
            report,
            "{:<16} {:>6} {:>6} {:>10} {:>14.2} s",
            format!("{fault:?}"),
            tally.struck,
            tally.counted,
            tally.ops,
            gap.as_secs_f64()
        )
        .unwrap();
        void += tally.void.len();
        for why in &tally.void {
            writeln!(report, "    void: {why}").unwrap();
        }
    }
    let leaders = testimony.leaders.len().saturating_sub(1);
    let cuts: u64 = tallies.iter().filter(|(fault, _)| fault.is_power_cut()).map(|(_, tally)| tally.counted).sum();
    let counted: u64 = tallies.values().map(|tally| tally.counted).sum();
    writeln!(
        report,
        "\n{name} (seed {seed}): {members} members, {clients} clients, {:.0} s\n\
         {answered} operations answered, {unknown} unknown, {refused} not applied, {} repeated safely\n\
         {counted} faults count, {void} void; {cuts} power cuts; {leaders} leader changes; {} snapshots installed; longest outage {:.2} s\n\
         {} revisions, {} compactions, {} stretches of watches compared, {keys} keys searched for a linear order\n\
         state hash {hash}, the same on every member",
        ran.as_secs_f64(),
        journal.repeats,
        fleet.snapshots_installed(),
        longest.as_secs_f64(),
        testimony.log.len(),
        testimony.compactions,
        testimony.heard.len(),
    )
    .unwrap();
    eprintln!("{report}");
    assert!(failures.is_empty(), "{name} (seed {seed}) FAILED:\n{}", failures.join("\n"));
    assert!(void <= 2 + usize::try_from(counted).unwrap() / 10, "{name}: {void} faults are void");
    drop(fleet);
    eprintln!("{name}: PASSED");
}

/// Each kind of fault once, and more until the time is up.
#[test]
fn faults_break_no_promise() {
    let _machine = machine();
    let number = |name: &str, or: u64| env_number(name).unwrap_or(or);
    let enough = Enough {
        seconds: number("TENURE_CHAOS_SECONDS", 90),
        max_seconds: number("TENURE_CHAOS_MAX_SECONDS", 600),
        ops: number("TENURE_CHAOS_OPS", 3_000),
        faults: number("TENURE_CHAOS_FAULTS", 15),
        leaders: number("TENURE_CHAOS_LEADERS", 4),
        cuts: number("TENURE_CHAOS_CUTS", 2),
    };
    campaign("chaos", enough);
}
