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
    /// A linearizable read asks nobody.
    LocalReads,
    /// A read barrier is good for an election timeout, by the wall clock.
    LeaseReadsOnWallClock,
    /// A read barrier believes openraft's own confirmation, which answers to earlier appends may give.
    LateAnswersConfirm,
    /// An entry counts as applied before its data can be read.
    AppliedAheadOfData,
    /// The leader takes a follower to hold what has only been sent to it.
    AckBeforeQuorum,
    /// A watch begins with the revision that it was to begin after.
    WatchResumesTwice,
    /// A watch that has fallen behind compaction goes on without a word.
    WatchSkipsCompacted,
    /// The events of one revision come in two parts.
    WatchSplitsRevision,
    /// A bookmark says how far the store is, not the stream.
    BookmarkAhead,
    /// A repeated request is taken for a new one.
    RequestIdForgotten,
    /// Records of requests age by what log time steps over where a term begins.
    StepsAgeRequests,
    /// Whoever led once may end leases.
    FormerLeaderExpires,
    /// A new leader does not give leases their whole TTL.
    NewLeaderCutsLeases,
    /// A term begins though no quorum has told the time.
    TermBeginsUnasked,
    /// A keep-alive is answered by whoever believes that it leads.
    KeepAliveWithoutQuorum,
    /// A snapshot has no idempotency records.
    SnapshotForgetsRequests,
    /// A snapshot has no leases.
    SnapshotForgetsLeases,
    /// A claim is granted from what this member happens to know.
    ClaimNotConfirmed,
    /// A byte of a value is flipped where it is applied, if the value begins with "flip".
    FlipStateByte,
}

#[cfg(feature = "mutants")]
impl Mutant {
    const ALL: &[Self] = &[
        Self::NoFsyncOnAppend,
        Self::NoFsyncOnVote,
        Self::FsyncErrorIgnored,
        Self::DamagedMiddleCut,
        Self::ApplyAheadOfFlush,
        Self::SnapshotAheadOfFlush,
        Self::LocalReads,
        Self::LeaseReadsOnWallClock,
        Self::LateAnswersConfirm,
        Self::AppliedAheadOfData,
        Self::AckBeforeQuorum,
        Self::WatchResumesTwice,
        Self::WatchSkipsCompacted,
        Self::WatchSplitsRevision,
        Self::BookmarkAhead,
        Self::RequestIdForgotten,
        Self::StepsAgeRequests,
        Self::FormerLeaderExpires,
        Self::NewLeaderCutsLeases,
        Self::TermBeginsUnasked,
        Self::KeepAliveWithoutQuorum,
        Self::SnapshotForgetsRequests,
        Self::SnapshotForgetsLeases,
        Self::ClaimNotConfirmed,
        Self::FlipStateByte,
    ];

    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|mutant| format!("{mutant:?}") == name)
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

/// Whether this process was started with this bug.
#[must_use]
pub fn is_active(mutant: Mutant) -> bool {
    active() == Some(mutant)
}
