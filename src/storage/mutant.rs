//! Positive controls: known bugs that a run can ask for, to prove that the checks find them.
//!
//! With the feature `mutants` off, `active` is a constant `None` and every planted bug is compiled
//! away. It must not know what the planting code does.

/// One planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// Log entries are acknowledged without a sync.
    NoFsyncOnAppend,
    /// A vote is acknowledged without a sync.
    NoFsyncOnVote,
    /// A failed sync counts as done.
    FsyncErrorIgnored,
    /// Damage in the middle of the log is cut off like a torn tail.
    DamagedMiddleCut,
    /// Entries are applied before this disk holds them.
    ApplyAheadOfFlush,
    /// A snapshot is published before this disk holds the log up to it.
    SnapshotAheadOfFlush,
    /// A byte of a value is flipped where it is applied, if the value begins with "flip".
    FlipStateByte,
}

#[cfg(feature = "mutants")]
impl Mutant {
    fn named(name: &str) -> Option<Self> {
        match name {
            "NoFsyncOnAppend" => Some(Self::NoFsyncOnAppend),
            "NoFsyncOnVote" => Some(Self::NoFsyncOnVote),
            "FsyncErrorIgnored" => Some(Self::FsyncErrorIgnored),
            "DamagedMiddleCut" => Some(Self::DamagedMiddleCut),
            "ApplyAheadOfFlush" => Some(Self::ApplyAheadOfFlush),
            "SnapshotAheadOfFlush" => Some(Self::SnapshotAheadOfFlush),
            "FlipStateByte" => Some(Self::FlipStateByte),
            _ => None,
        }
    }
}

/// The bug this process was started with: `TENURE_MUTANT`, read once.
///
/// # Panics
/// If the name is unknown: a control that plants nothing would pass for a check that finds nothing.
#[cfg(feature = "mutants")]
#[must_use]
pub fn active() -> Option<Mutant> {
    static ACTIVE: std::sync::OnceLock<Option<Mutant>> = std::sync::OnceLock::new();
    *ACTIVE.get_or_init(|| {
        let name = std::env::var("TENURE_MUTANT").ok().filter(|name| !name.is_empty())?;
        let mutant = Mutant::named(&name);
        assert!(mutant.is_some(), "TENURE_MUTANT={name} names no mutant");
        mutant
    })
}

/// No bug is planted in this build.
#[cfg(not(feature = "mutants"))]
#[must_use]
pub const fn active() -> Option<Mutant> {
    None
}
