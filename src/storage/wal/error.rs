//! Why a log can't be opened, in words that say what to do.

use super::segment::file_name;
use crate::model::Fault;
use std::fmt;
use thiserror::Error;

/// What proves that bad bytes had been durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// A sound record at this offset was written later.
    Record(u32),
    /// The next segment was begun later.
    NextSegment,
    /// A segment has no name before its first record is durable.
    Checkpoint,
}

/// How it is known that a segment is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// There are segments on both sides.
    Between,
    /// Entries from this index on are in no segment.
    Entries { from: u64 },
}

const WHAT_TO_DO: &str = "Nothing was changed. Don't edit or delete files of the log. If other members hold the data, \
     remove this member from the cluster and add it again with an empty data directory under a new identity; a sole \
     member is restored from a backup, or with `tenure recover`, which gives up what can't be read";

#[derive(Debug, Clone, Error)]
pub enum WalError {
    #[error("the log file {} is damaged at byte {offset}: {later}, so this is no torn write. {WHAT_TO_DO}", file_name(*segment))]
    DamagedMiddle { segment: u32, offset: u32, later: Damage },
    #[error("the header of the log file {} is damaged. {WHAT_TO_DO}", file_name(*segment))]
    DamagedHeader { segment: u32 },
    #[error(
        "the log file {} is {actual} bytes long, {expected} were allocated: it was cut. {WHAT_TO_DO}",
        file_name(*segment)
    )]
    Truncated { segment: u32, expected: u64, actual: u64 },
    #[error("a log file before {} is missing: {missing}. {WHAT_TO_DO}", file_name(*before))]
    MissingSegment { before: u32, missing: Missing },
    #[error("the log file {} says it is {}: it was renamed or copied. {WHAT_TO_DO}", file_name(*segment), file_name(*header))]
    Misnamed { segment: u32, header: u32 },
    #[error(
        "the log file {} has format version {version}, this release reads only version 1. Start the release that wrote it",
        file_name(*segment)
    )]
    ForeignVersion { segment: u32, version: u32 },
    #[error(
        "the log file {} has entry {found} at byte {offset} where {expected} belongs. {WHAT_TO_DO}",
        file_name(*segment)
    )]
    Gap { segment: u32, offset: u32, expected: u64, found: u64 },
    #[error("the log file {} contradicts itself at byte {offset}: {detail}. {WHAT_TO_DO}", file_name(*segment))]
    Inconsistent { segment: u32, offset: u32, detail: &'static str },
    #[error(transparent)]
    Io(#[from] Fault),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(offset) => write!(f, "the sound record at byte {offset} was written after it was durable"),
            Self::NextSegment => f.write_str("the next file was begun after it was durable"),
            Self::Checkpoint => f.write_str("the file got its name after it was durable"),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Between => f.write_str("older ones are there"),
            Self::Entries { from } => write!(f, "entries from {from} on are in none of the files"),
        }
    }
}
