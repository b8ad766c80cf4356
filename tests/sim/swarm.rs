//! What one seed's run is made of: its size, its pace, and which kinds of faults it has. Each seed
//! leaves some kinds out, so that none can hide what another would show.

use super::rng::Rng;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The process dies; what it wrote without a sync is still there.
    Kill,
    /// Power fails: of what was not synced, a random part is left.
    PowerCut,
    /// Power fails everywhere at once.
    PowerCutAll,
    /// The process stands still.
    Pause,
    /// A member hears nobody and nobody hears it.
    Isolate,
    /// A member is heard and hears nothing, or the other way round.
    OneWay,
    /// Two halves.
    Split,
    /// What goes between a member and the others takes up to seconds.
    Slow,
    /// What others send a member, and then what it sends them, waits until it all arrives in order: a
    /// network that carries nothing for a while and breaks no connection.
    Late,
    /// The log's disk does not answer.
    DiskHang,
    /// The wall clock jumps.
    WallStep,
    /// Leadership is handed over.
    Transfer,
    /// A member is added, made a voter, and later removed.
    Membership,
}

pub(crate) const FAULTS: [Fault; 13] = [
    Fault::Kill,
    Fault::PowerCut,
    Fault::PowerCutAll,
    Fault::Pause,
    Fault::Isolate,
    Fault::OneWay,
    Fault::Split,
    Fault::Slow,
    Fault::Late,
    Fault::DiskHang,
    Fault::WallStep,
    Fault::Transfer,
    Fault::Membership,
];

#[derive(Debug, Clone)]
pub(crate) struct Swarm {
    pub(crate) members: u64,
    pub(crate) tick_us: u64,
    /// How long the faults last; the healing comes after.
    pub(crate) faulty_ms: u64,
    pub(crate) fault_every_ms: u64,
    pub(crate) faults: Vec<Fault>,
    /// Of 100 members that come to lead, so many bring about a fault at once, where a term begins.
    pub(crate) faults_at_begin: u64,
    pub(crate) delay_us: (u64, u64),
    /// Of 10,000 messages between members, so many are lost, and so many calls arrive twice.
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    /// Of 10,000 answers to clients, so many are lost.
    pub(crate) lost_answers: u64,
    /// A sync takes as long.
    pub(crate) sync_us: (u64, u64),
    pub(crate) snapshot_log_bytes: u64,
    pub(crate) ring_bytes: usize,
    pub(crate) segment_bytes: u64,
    pub(crate) workers: u64,
    /// Snapshots and compactions besides those that are due by themselves.
    pub(crate) snapshots: bool,
    pub(crate) compactions: bool,
}

/// The kinds of faults that `TENURE_SIM_FAULTS` names, instead of those that a seed draws.
pub(crate) fn wanted() -> Option<Vec<Fault>> {
    let text = std::env::var("TENURE_SIM_FAULTS").ok()?;
    let named = |name: &str| FAULTS.into_iter().find(|fault| format!("{fault:?}") == name);
    let faults: Option<Vec<Fault>> = text.split(',').map(named).collect();
    Some(faults.unwrap_or_else(|| panic!("TENURE_SIM_FAULTS={text}: expected some of {FAULTS:?}, with commas")))
}

impl Swarm {
    pub(crate) fn drawn(rng: &mut Rng) -> Self {
        let mut faults: Vec<Fault> = FAULTS.into_iter().filter(|_| rng.percent(60)).collect();
        if faults.is_empty() {
            faults.push(Fault::Kill);
        }
        if let Some(wanted) = wanted() {
            faults = wanted;
        }
        let slowest = if rng.percent(70) { 6_000 } else { 40_000 };
        Self {
            members: if rng.percent(75) { 3 } else { 5 },
            tick_us: 4_000,
            faulty_ms: rng.between(10_000, 14_000),
            fault_every_ms: rng.between(400, 1_500),
            faults,
            faults_at_begin: if rng.percent(50) { rng.between(20, 100) } else { 0 },
            delay_us: (200, rng.between(1_000, slowest)),
            lost: if rng.percent(50) { rng.between(1, 60) } else { 0 },
            doubled: if rng.percent(50) { rng.between(1, 300) } else { 0 },
            lost_answers: if rng.percent(70) { rng.between(1, 300) } else { 0 },
            sync_us: (500, rng.between(1_000, 12_000)),
            snapshot_log_bytes: rng.between(8, 64) << 10,
            ring_bytes: if rng.percent(50) { 4 << 10 } else { 1 << 20 },
            segment_bytes: rng.between(16, 128) << 10,
            workers: rng.between(3, 6),
            snapshots: rng.percent(60),
            compactions: rng.percent(60),
        }
    }
}
