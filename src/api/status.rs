//! The one table from failures to what HTTP clients see. Every match is exhaustive: a new rejection
//! does not compile until it has its row here.

use super::json::Writer;
use crate::model::{AuthRefusal, Failure, Need, Outcome, Rejection, Why};

/// The codes, and the list of all of them for the tests.
macro_rules! codes {
    ($($code:ident,)*) => {
        /// Stable names that clients switch on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Code {
            $($code,)*
        }

        impl Code {
            #[cfg(test)]
            pub(super) const ALL: &[Code] = &[$(Code::$code,)*];
        }
    };
}

codes! {
    InvalidParameter,
    InvalidBody,
    EmptyKey,
    RangeRequired,
    BadCursor,
    RevisionInFuture,
    DuplicateKey,
    BadTtl,
    Forbidden,
    CrossSite,
    KeyNotFound,
    LeaseNotFound,
    NoSuchRoute,
    MethodNotAllowed,
    NotAcceptable,
    RequestTimeout,
    TooLarge,
    KeyTooLong,
    UnsupportedMediaType,
    OutOfRange,
    NotACounter,
    Overflow,
    NotJson,
    LeaseExists,
    SharedLease,
    KeyExists,
    Compacted,
    PreconditionFailed,
    TxnNotSucceeded,
    IdempotencyKeyReused,
    Throttled,
    Internal,
    NoLeader,
    TooStale,
    NotReady,
    ShuttingDown,
    OutcomeUnknown,
    Timeout,
    RevisionNotReached,
    DiskStalled,
    StorageFull,
    CostOverBurst,
    ClaimNotFound,
    LockHeld,
    LeaderExists,
    NotLeader,
    LimitMismatch,
    Fenced,
    RateLimited,
    MemberNotFound,
    MemberExists,
    ChangeInProgress,
    LearnerBehind,
    WouldLoseQuorum,
    NotAVoter,
    BadSnapshot,
    Unauthenticated,
}

/// What is known of a write that was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    No,
    Unknown,
}

/// A code's row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    pub(crate) status: u16,
    pub(crate) slug: &'static str,
    pub(crate) title: &'static str,
    pub(crate) hint: Option<&'static str>,
    /// The same request may succeed later, and repeating it does no harm.
    pub(crate) retryable: bool,
}

const fn row(status: u16, slug: &'static str, title: &'static str) -> Facts {
    Facts { status, slug, title, hint: None, retryable: false }
}

impl Facts {
    const fn hint(self, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..self }
    }

    const fn retryable(self) -> Self {
        Self { retryable: true, ..self }
    }
}

impl Code {
    pub(crate) fn facts(self) -> Facts {
        match self {
            Self::InvalidParameter => row(400, "invalid-parameter", "Invalid parameter"),
            Self::InvalidBody => row(400, "invalid-body", "Invalid body"),
            Self::EmptyKey => row(400, "empty-key", "Empty key").hint("a key has at least one byte; GET /v1/kv lists"),
            Self::RangeRequired => row(400, "range-required", "Range required")
                .hint("give exactly one of a non-empty `prefix`, `start` and `end`, or `all=true`"),
            Self::BadCursor => row(400, "bad-cursor", "Bad cursor")
                .hint("a cursor belongs to the query that gave it; start again without one"),
            Self::RevisionInFuture => row(400, "revision-in-future", "Revision in the future")
                .hint("to wait for a revision to arrive here, use `min_revision`"),
            Self::DuplicateKey => row(400, "duplicate-key", "Key written twice")
                .hint("a transaction writes each key at most once per branch"),
            Self::BadTtl => {
                row(400, "bad-ttl", "Bad TTL").hint("a TTL is between 1s and 8760h (365 days), for example ttl=30s")
            }
            Self::Forbidden => row(403, "forbidden", "Forbidden"),
            Self::CrossSite => {
                row(403, "cross-site", "Refused for a browser").hint("allow the page's origin with --cors-origin")
            }
            Self::KeyNotFound => row(404, "key-not-found", "Key not found"),
            Self::LeaseNotFound => row(404, "lease-not-found", "Lease not found"),
            Self::NoSuchRoute => row(404, "no-such-route", "No such route").hint("GET / shows what there is"),
            Self::MethodNotAllowed => row(405, "method-not-allowed", "Method not allowed"),
            Self::NotAcceptable => row(406, "not-acceptable", "Not acceptable"),
            Self::RequestTimeout => row(408, "request-timeout", "Request too slow").retryable(),
            Self::TooLarge => row(413, "too-large", "Too large"),
            Self::KeyTooLong => row(414, "key-too-long", "Key too long"),
            Self::UnsupportedMediaType => row(415, "unsupported-media-type", "Unsupported media type"),
            Self::OutOfRange => row(409, "out-of-range", "Out of range"),
            Self::NotACounter => {
                row(409, "not-a-counter", "Not a counter").hint("a counter's value is a decimal 64-bit integer as text")
            }
            Self::Overflow => row(409, "overflow", "Counter overflow"),
            Self::NotJson => row(409, "not-json", "Not JSON").hint("a merge patch needs a stored value that is JSON"),
            Self::LeaseExists => row(409, "lease-exists", "Lease exists"),
            Self::SharedLease => row(409, "shared-lease", "Shared lease")
                .hint("the key is on a lease of its own accord: keep that lease alive instead"),
            Self::KeyExists => {
                row(409, "key-exists", "Key exists").hint("use on_conflict=skip or on_conflict=overwrite")
            }
            Self::Compacted => {
                row(410, "compacted", "Compacted").hint("read at the current revision, or start the listing again")
            }
            Self::PreconditionFailed => row(412, "precondition-failed", "Precondition failed")
                .hint("read the key again and retry with the new ETag"),
            Self::TxnNotSucceeded => row(412, "txn-not-succeeded", "Transaction not succeeded"),
            Self::IdempotencyKeyReused => row(422, "idempotency-key-reused", "Idempotency key reused")
                .hint("use a new Idempotency-Key for each new request"),
            Self::Throttled => row(429, "throttled", "Throttled").retryable(),
            Self::Internal => row(500, "internal", "Internal error"),
            Self::NoLeader => row(503, "no-leader", "No leader").retryable(),
            Self::TooStale => row(503, "too-stale", "Too stale").retryable(),
            Self::NotReady => row(503, "not-ready", "Not ready").retryable(),
            Self::ShuttingDown => row(503, "shutting-down", "Shutting down").hint("ask another member").retryable(),
            Self::OutcomeUnknown => row(504, "outcome-unknown", "Outcome unknown")
                .hint("the write may have happened: repeat it only with the same Idempotency-Key"),
            Self::Timeout => row(504, "timeout", "Deadline passed").retryable(),
            Self::RevisionNotReached => row(504, "revision-not-reached", "Revision not reached").retryable(),
            Self::DiskStalled => row(503, "disk-stalled", "Disk stalled").hint("ask another member").retryable(),
            Self::MemberNotFound => row(404, "member-not-found", "Member not found"),
            Self::MemberExists => {
                row(409, "member-exists", "Member exists").hint("remove the old member first, or choose another name")
            }
            Self::ChangeInProgress => row(409, "change-in-progress", "Change in progress").retryable(),
            Self::LearnerBehind => row(409, "learner-behind", "Learner behind").retryable(),
            Self::WouldLoseQuorum => row(409, "would-lose-quorum", "Would lose the quorum")
                .hint("bring the unreachable voters back first; force=true removes all the same"),
            Self::BadSnapshot => {
                row(400, "bad-snapshot", "Bad snapshot").hint("`tenure snapshot inspect FILE` says what is in a file")
            }
            Self::Unauthenticated => row(401, "unauthenticated", "Not authenticated")
                .hint("send `Authorization: Bearer TOKEN`, with a token of POST /v3/auth/authenticate, or a user and password as Basic"),
            Self::NotAVoter => row(409, "not-a-voter", "Not a voter").hint("promote the learner first"),
            Self::StorageFull => {
                row(507, "storage-full", "Storage full").hint("delete keys or compact history; reads and deletes go on")
            }
            Self::CostOverBurst => row(400, "cost-over-burst", "Cost over burst")
                .hint("more than `burst` permits can never be had at once: raise `burst` or lower `cost`"),
            Self::ClaimNotFound => row(404, "claim-not-found", "Claim not found"),
            Self::LockHeld => row(409, "lock-held", "Lock held").hint("give `wait` to wait for it"),
            Self::LeaderExists => row(409, "leader-exists", "Leader exists").hint("give `wait` to wait for the office"),
            Self::NotLeader => row(409, "not-leader", "Not the leader"),
            Self::LimitMismatch => row(409, "limit-mismatch", "Limit mismatch")
                .hint("the first caller set the limit: leave `limit` out, or give the same"),
            Self::Fenced => row(412, "fenced", "Fenced off").hint("the claim is lost: stop the work that it guarded"),
            Self::RateLimited => row(429, "rate-limited", "Rate limited").retryable(),
        }
    }
}

/// A failure's row, with the members that only this failure has.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) code: Code,
    pub(crate) applied: Applied,
    pub(crate) members: Writer,
}

pub(crate) fn verdict(failure: &Failure) -> Verdict {
    let mut members = Writer::default();
    let (code, applied) = match failure {
        Failure::Rejected(rejection) => (rejected(rejection, &mut members), Applied::No),
        Failure::Unavailable { why, outcome } => unavailable(*why, *outcome),
        // What broke may have broken after the write was logged.
        Failure::Fault(_) => (Code::Internal, Applied::Unknown),
    };
    Verdict { code, applied, members }
}

fn unavailable(why: Why, outcome: Outcome) -> (Code, Applied) {
    match (outcome, why) {
        (Outcome::Unknown, _) => (Code::OutcomeUnknown, Applied::Unknown),
        (Outcome::NotProposed, why) => {
            let code = match why {
                Why::NoLeader => Code::NoLeader,
                Why::Timeout => Code::Timeout,
                Why::Overloaded | Why::TooManyStreams => Code::Throttled,
                Why::ShuttingDown => Code::ShuttingDown,
                Why::NotReady | Why::Diverged | Why::NotStaged => Code::NotReady,
                Why::TooStale => Code::TooStale,
                Why::RevisionNotReached => Code::RevisionNotReached,
                Why::DiskStalled => Code::DiskStalled,
            };
            (code, Applied::No)
        }
    }
}

fn rejected(rejection: &Rejection, members: &mut Writer) -> Code {
    match rejection {
        Rejection::Compacted { requested: _, compacted, current: _ } => {
            members.int("compacted_revision", *compacted);
            Code::Compacted
        }
        Rejection::FutureRevision { .. } => Code::RevisionInFuture,
        Rejection::EmptyKey => Code::EmptyKey,
        Rejection::KeyTooLong { bytes: _, limit } => {
            members.count("limit_bytes", *limit);
            Code::KeyTooLong
        }
        Rejection::TooLarge { bytes: _, limit } => {
            members.count("limit_bytes", *limit);
            Code::TooLarge
        }
        Rejection::KeyNotFound { key } => {
            members.key(key);
            Code::KeyNotFound
        }
        Rejection::DuplicateKey(key) => {
            members.key(key);
            Code::DuplicateKey
        }
        Rejection::TooManyOps { what: _, count: _, limit: _ } => Code::InvalidBody,
        Rejection::LeaseNotFound(_) => Code::LeaseNotFound,
        Rejection::LeaseExists(_) => Code::LeaseExists,
        Rejection::NotACounter { key } => {
            members.key(key);
            Code::NotACounter
        }
        Rejection::Overflow { key } => {
            members.key(key);
            Code::Overflow
        }
        Rejection::OutOfRange { key, current, min, max, operation } => {
            members.key(key);
            members.int("current", *current);
            if let Some(min) = min {
                members.int("min", *min);
            }
            if let Some(max) = max {
                members.int("max", *max);
            }
            members.int("operation", i64::from(*operation));
            Code::OutOfRange
        }
        Rejection::NotJson { key } => {
            members.key(key);
            Code::NotJson
        }
        Rejection::QuotaExceeded { quota_bytes } => {
            members.count("quota_bytes", *quota_bytes);
            Code::StorageFull
        }
        Rejection::DiskFull => Code::StorageFull,
        Rejection::IdempotencyKeyReused => Code::IdempotencyKeyReused,
        Rejection::IdempotencyTableFull => Code::Throttled,
        Rejection::PermissionDenied(need) => {
            members.text("action", need.action());
            if let Need::Read(range) | Need::Write(range) = need {
                members.key(&range.start);
            }
            Code::Forbidden
        }
        Rejection::Auth(refusal) => unauthorized(refusal, members),
        Rejection::SharedLease { key, lease } => {
            members.key(key);
            members.text("lease", &format!("{lease:016x}"));
            Code::SharedLease
        }
        // Only what the lessor proposes can be late for its term, and nobody is answered with it.
        Rejection::StaleTerm { .. } => Code::NoLeader,
        Rejection::Fenced { of, token, holder } => {
            members.text(of.kind.singular(), &of.name);
            members.int("token", *token);
            match holder {
                None => members.raw("holder", b"null"),
                Some(holder) => {
                    members.name("holder");
                    members.open();
                    members.int("token", holder.token);
                    members.text("lease", &format!("{:016x}", holder.lease));
                    members.close();
                }
            }
            Code::Fenced
        }
        Rejection::ClaimNotFound { of, lease: _ } => {
            members.text(of.kind.singular(), &of.name);
            Code::ClaimNotFound
        }
        Rejection::NotLeader { of } => {
            members.text(of.kind.singular(), &of.name);
            Code::NotLeader
        }
        Rejection::LimitMismatch { of, limit } => {
            members.text(of.kind.singular(), &of.name);
            members.count("limit", *limit);
            Code::LimitMismatch
        }
        Rejection::MemberNotFound(_) => Code::MemberNotFound,
        Rejection::MemberExists(_) => Code::MemberExists,
        Rejection::ChangeInProgress => Code::ChangeInProgress,
        Rejection::LearnerBehind { lag_entries, reachable: _ } => {
            members.count("lag_entries", *lag_entries);
            Code::LearnerBehind
        }
        Rejection::WouldLoseQuorum { .. } => Code::WouldLoseQuorum,
        Rejection::NotAVoter(_) => Code::NotAVoter,
        Rejection::BadSnapshot(_) => Code::BadSnapshot,
        Rejection::Invalid { field, problem: _ } => {
            members.text("parameter", field);
            Code::InvalidParameter
        }
    }
}

fn unauthorized(refusal: &AuthRefusal, members: &mut Writer) -> Code {
    match refusal {
        AuthRefusal::NobodyGiven | AuthRefusal::InvalidToken | AuthRefusal::OldRevision | AuthRefusal::Failed => {
            Code::Unauthenticated
        }
        AuthRefusal::TooMany { .. } => Code::Throttled,
        // No request of REST's changes users or roles so far.
        AuthRefusal::NotEnabled
        | AuthRefusal::RootUserMissing
        | AuthRefusal::RootRoleMissing
        | AuthRefusal::RootIsNeeded
        | AuthRefusal::UserNameEmpty
        | AuthRefusal::RoleNameEmpty
        | AuthRefusal::UserExists(_)
        | AuthRefusal::UserNotFound(_)
        | AuthRefusal::RoleExists(_)
        | AuthRefusal::RoleNotFound(_)
        | AuthRefusal::RoleNotGranted
        | AuthRefusal::PermissionNotGranted
        | AuthRefusal::BadPermission => {
            members.text("parameter", "auth");
            Code::InvalidParameter
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The contract: changing a line here is changing what clients switch on.
    const GOLDEN: &str = "\
400 invalid-parameter
400 invalid-body
400 empty-key
400 range-required
400 bad-cursor
400 revision-in-future
400 duplicate-key
400 bad-ttl
403 forbidden
403 cross-site
404 key-not-found
404 lease-not-found
404 no-such-route
405 method-not-allowed
406 not-acceptable
408 request-timeout retryable
413 too-large
414 key-too-long
415 unsupported-media-type
409 out-of-range
409 not-a-counter
409 overflow
409 not-json
409 lease-exists
409 shared-lease
409 key-exists
410 compacted
412 precondition-failed
412 txn-not-succeeded
422 idempotency-key-reused
429 throttled retryable
500 internal
503 no-leader retryable
503 too-stale retryable
503 not-ready retryable
503 shutting-down retryable
504 outcome-unknown
504 timeout retryable
504 revision-not-reached retryable
503 disk-stalled retryable
507 storage-full
400 cost-over-burst
404 claim-not-found
409 lock-held
409 leader-exists
409 not-leader
409 limit-mismatch
412 fenced
429 rate-limited retryable
404 member-not-found
409 member-exists
409 change-in-progress retryable
409 learner-behind retryable
409 would-lose-quorum
409 not-a-voter
400 bad-snapshot
401 unauthenticated
";

    #[test]
    fn the_table_is_the_contract() {
        let mut table = String::new();
        for code in Code::ALL {
            let facts = code.facts();
            let retryable = if facts.retryable { " retryable" } else { "" };
            table += &format!("{} {}{retryable}\n", facts.status, facts.slug);
        }
        assert_eq!(table, GOLDEN);
    }

    #[test]
    fn slugs_are_unique() {
        let slugs: BTreeSet<_> = Code::ALL.iter().map(|code| code.facts().slug).collect();
        assert_eq!(slugs.len(), Code::ALL.len());
    }

    #[test]
    fn only_an_unknown_outcome_or_a_fault_leaves_it_open_whether_a_write_happened() {
        use Why::*;
        for why in [
            NoLeader,
            Timeout,
            Overloaded,
            TooManyStreams,
            ShuttingDown,
            NotReady,
            Diverged,
            NotStaged,
            TooStale,
            RevisionNotReached,
            DiskStalled,
        ] {
            let unknown = verdict(&Failure::Unavailable { why, outcome: Outcome::Unknown });
            assert_eq!((unknown.code, unknown.applied), (Code::OutcomeUnknown, Applied::Unknown));
            let refused = verdict(&Failure::not_proposed(why));
            assert_eq!(refused.applied, Applied::No);
            assert!(refused.code.facts().retryable, "{why}");
        }
        assert_eq!(verdict(&Failure::Fault("x".into())).applied, Applied::Unknown);
        assert_eq!(verdict(&Rejection::DiskFull.into()).applied, Applied::No);
    }
}
