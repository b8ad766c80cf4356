//! The one table from failures to what etcd's clients see: its codes and its exact texts, by which they
//! tell errors apart. Every match is exhaustive: a new rejection does not compile without its row.

use crate::model::{AuthRefusal, Failure, Outcome, Rejection, Why};
use tonic::{Code, Status};

/// A code and a text that clients know.
pub(super) type Known = (Code, &'static str);

pub(super) const EMPTY_KEY: Known = (Code::InvalidArgument, "etcdserver: key is not provided");
pub(super) const KEY_NOT_FOUND: Known = (Code::InvalidArgument, "etcdserver: key not found");
pub(super) const VALUE_PROVIDED: Known = (Code::InvalidArgument, "etcdserver: value is provided");
pub(super) const LEASE_PROVIDED: Known = (Code::InvalidArgument, "etcdserver: lease is provided");
pub(super) const TOO_MANY_OPS: Known = (Code::InvalidArgument, "etcdserver: too many operations in txn request");
pub(super) const DUPLICATE_KEY: Known = (Code::InvalidArgument, "etcdserver: duplicate key given in txn request");
pub(super) const INVALID_SORT: Known = (Code::InvalidArgument, "etcdserver: invalid sort option");
pub(super) const INVALID_COMPARE: Known = (Code::InvalidArgument, "etcdserver: invalid compare target or result");
pub(super) const COMPACTED: Known = (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
pub(super) const FUTURE_REVISION: Known =
    (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
pub(super) const NO_SPACE: Known = (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
pub(super) const LEASE_NOT_FOUND: Known = (Code::NotFound, "etcdserver: requested lease not found");
pub(super) const LEASE_EXISTS: Known = (Code::FailedPrecondition, "etcdserver: lease already exists");
pub(super) const LEASE_TTL_TOO_LARGE: Known = (Code::OutOfRange, "etcdserver: too large lease TTL");
pub(super) const MEMBER_EXISTS: Known = (Code::FailedPrecondition, "etcdserver: member ID already exist");
pub(super) const MEMBER_NOT_FOUND: Known = (Code::NotFound, "etcdserver: member not found");
pub(super) const MEMBER_BAD_URLS: Known = (Code::InvalidArgument, "etcdserver: given member URLs are invalid");
pub(super) const MEMBER_NOT_LEARNER: Known =
    (Code::FailedPrecondition, "etcdserver: can only promote a learner member");
pub(super) const LEARNER_NOT_READY: Known =
    (Code::FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader");
pub(super) const NOT_ENOUGH_STARTED: Known =
    (Code::FailedPrecondition, "etcdserver: re-configuration failed due to not enough started members");
pub(super) const PEER_URL_EXISTS: Known = (Code::FailedPrecondition, "etcdserver: Peer URLs already exists");
pub(super) const BAD_TRANSFEREE: Known = (Code::FailedPrecondition, "etcdserver: bad leader transferee");
pub(super) const TOO_LARGE: Known = (Code::InvalidArgument, "etcdserver: request is too large");
pub(super) const TOO_MANY_REQUESTS: Known = (Code::ResourceExhausted, "etcdserver: too many requests");
pub(super) const ROOT_USER_MISSING: Known = (Code::FailedPrecondition, "etcdserver: root user does not exist");
pub(super) const AUTH_NOT_ENABLED: Known = (Code::FailedPrecondition, "etcdserver: authentication is not enabled");
pub(super) const USER_NOT_FOUND: Known = (Code::FailedPrecondition, "etcdserver: user name not found");
pub(super) const ROLE_NOT_FOUND: Known = (Code::FailedPrecondition, "etcdserver: role name not found");
pub(super) const ROOT_ROLE_MISSING: Known = (Code::FailedPrecondition, "etcdserver: root user does not have root role");
pub(super) const USER_EXISTS: Known = (Code::FailedPrecondition, "etcdserver: user name already exists");
pub(super) const USER_EMPTY: Known = (Code::InvalidArgument, "etcdserver: user name is empty");
pub(super) const ROLE_EXISTS: Known = (Code::FailedPrecondition, "etcdserver: role name already exists");
pub(super) const ROLE_EMPTY: Known = (Code::InvalidArgument, "etcdserver: role name is empty");
pub(super) const AUTH_FAILED: Known =
    (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password");
pub(super) const PERMISSION_NOT_GIVEN: Known = (Code::InvalidArgument, "etcdserver: permission not given");
pub(super) const ROLE_NOT_GRANTED: Known = (Code::FailedPrecondition, "etcdserver: role is not granted to the user");
pub(super) const PERMISSION_NOT_GRANTED: Known =
    (Code::FailedPrecondition, "etcdserver: permission is not granted to the role");
pub(super) const INVALID_AUTH_TOKEN: Known = (Code::Unauthenticated, "etcdserver: invalid auth token");
pub(super) const INVALID_AUTH_MGMT: Known = (Code::InvalidArgument, "etcdserver: invalid auth management");
pub(super) const AUTH_OLD_REVISION: Known = (Code::InvalidArgument, "etcdserver: revision of auth store is old");
pub(super) const PERMISSION_DENIED: Known = (Code::PermissionDenied, "etcdserver: permission denied");
pub(super) const NO_LEADER: Known = (Code::Unavailable, "etcdserver: no leader");
pub(super) const STOPPED: Known = (Code::Unavailable, "etcdserver: server stopped");
pub(super) const TIMEOUT: Known = (Code::Unavailable, "etcdserver: request timed out");
pub(super) const TIMEOUT_APPLY: Known =
    (Code::Unavailable, "etcdserver: request timed out, waiting for the applied index took too long");
pub(super) const UNHEALTHY: Known = (Code::Unavailable, "etcdserver: unhealthy cluster");
pub(super) const DOWNGRADE_FORMAT: Known = (Code::InvalidArgument, "etcdserver: wrong downgrade target version format");
pub(super) const DOWNGRADE_TARGET: Known = (Code::InvalidArgument, "etcdserver: invalid downgrade target version");
pub(super) const NO_DOWNGRADE: Known = (Code::FailedPrecondition, "etcdserver: no inflight downgrade job");

pub(super) fn known((code, text): Known) -> Status {
    Status::new(code, text)
}

pub(super) fn status(failure: &Failure) -> Status {
    match failure {
        Failure::Rejected(rejection) => rejected(rejection),
        Failure::Unavailable { why, outcome } => known(unavailable(*why, *outcome)),
        // What is wrong inside is for the log.
        Failure::Fault(problem) => {
            tracing::error!(%problem, "a request failed inside");
            Status::internal("etcdserver: this member has failed")
        }
    }
}

fn unavailable(why: Why, outcome: Outcome) -> Known {
    match (why, outcome) {
        // It may have happened: the one text on which no client repeats a write.
        (_, Outcome::Unknown) => TIMEOUT,
        (Why::NoLeader, _) => NO_LEADER,
        (Why::Timeout, _) => TIMEOUT,
        (Why::Overloaded | Why::TooManyStreams, _) => TOO_MANY_REQUESTS,
        (Why::ShuttingDown, _) => STOPPED,
        (Why::NotReady | Why::TooStale | Why::DiskStalled | Why::NotStaged | Why::Diverged, _) => UNHEALTHY,
        (Why::RevisionNotReached, _) => TIMEOUT_APPLY,
    }
}

fn rejected(rejection: &Rejection) -> Status {
    known(match rejection {
        Rejection::Compacted { .. } => COMPACTED,
        Rejection::FutureRevision { .. } => FUTURE_REVISION,
        Rejection::EmptyKey => EMPTY_KEY,
        Rejection::KeyTooLong { .. } | Rejection::TooLarge { .. } => TOO_LARGE,
        Rejection::KeyNotFound { .. } => KEY_NOT_FOUND,
        Rejection::DuplicateKey(_) => DUPLICATE_KEY,
        Rejection::TooManyOps { .. } => TOO_MANY_OPS,
        Rejection::LeaseNotFound(_) => LEASE_NOT_FOUND,
        Rejection::LeaseExists(_) => LEASE_EXISTS,
        Rejection::QuotaExceeded { .. } | Rejection::DiskFull => NO_SPACE,
        Rejection::PermissionDenied(_) => PERMISSION_DENIED,
        Rejection::Auth(refusal) => unauthorized(refusal),
        Rejection::MemberNotFound(_) => MEMBER_NOT_FOUND,
        Rejection::MemberExists(_) => MEMBER_EXISTS,
        Rejection::LearnerBehind { .. } => LEARNER_NOT_READY,
        Rejection::WouldLoseQuorum { .. } => NOT_ENOUGH_STARTED,
        Rejection::NotAVoter(_) => BAD_TRANSFEREE,
        Rejection::ChangeInProgress => UNHEALTHY,
        Rejection::StaleTerm { .. } => NO_LEADER,
        Rejection::IdempotencyTableFull => TOO_MANY_REQUESTS,
        Rejection::Invalid { .. } => return Status::invalid_argument(format!("etcdserver: {rejection}")),
        // No request of etcd's can be refused so; what is said is true all the same.
        Rejection::NotACounter { .. }
        | Rejection::Overflow { .. }
        | Rejection::OutOfRange { .. }
        | Rejection::NotJson { .. }
        | Rejection::IdempotencyKeyReused
        | Rejection::SharedLease { .. }
        | Rejection::Fenced { .. }
        | Rejection::ClaimNotFound { .. }
        | Rejection::NotLeader { .. }
        | Rejection::BadSnapshot(_)
        | Rejection::LimitMismatch { .. } => {
            return Status::failed_precondition(format!("etcdserver: {rejection}"));
        }
    })
}

fn unauthorized(refusal: &AuthRefusal) -> Known {
    match refusal {
        AuthRefusal::NobodyGiven | AuthRefusal::UserNameEmpty => USER_EMPTY,
        AuthRefusal::InvalidToken => INVALID_AUTH_TOKEN,
        AuthRefusal::OldRevision => AUTH_OLD_REVISION,
        AuthRefusal::Failed => AUTH_FAILED,
        AuthRefusal::NotEnabled => AUTH_NOT_ENABLED,
        AuthRefusal::RootUserMissing => ROOT_USER_MISSING,
        AuthRefusal::RootRoleMissing => ROOT_ROLE_MISSING,
        AuthRefusal::RootIsNeeded | AuthRefusal::BadPermission => INVALID_AUTH_MGMT,
        AuthRefusal::RoleNameEmpty => ROLE_EMPTY,
        AuthRefusal::UserExists(_) => USER_EXISTS,
        AuthRefusal::UserNotFound(_) => USER_NOT_FOUND,
        AuthRefusal::RoleExists(_) => ROLE_EXISTS,
        AuthRefusal::RoleNotFound(_) => ROLE_NOT_FOUND,
        AuthRefusal::RoleNotGranted => ROLE_NOT_GRANTED,
        AuthRefusal::PermissionNotGranted => PERMISSION_NOT_GRANTED,
        AuthRefusal::TooMany { .. } => TOO_MANY_REQUESTS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubernetes_matches_by_text_is_exact() {
        let of = |rejection: Rejection| {
            let status = status(&rejection.into());
            (status.code(), status.message().to_owned())
        };
        let compacted = of(Rejection::Compacted { requested: 1, compacted: 2, current: 3 });
        assert_eq!(compacted, (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted".to_owned()));
        let future = of(Rejection::FutureRevision { requested: 9, current: 3 });
        assert_eq!(future.1, "etcdserver: mvcc: required revision is a future revision");
        let full = of(Rejection::QuotaExceeded { quota_bytes: 1 });
        assert_eq!(full, (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded".to_owned()));
        assert_eq!(
            of(Rejection::LeaseNotFound(1)),
            (Code::NotFound, "etcdserver: requested lease not found".to_owned())
        );
    }

    #[test]
    fn a_write_that_may_have_happened_is_never_said_to_be_refused() {
        for why in [Why::NoLeader, Why::Overloaded, Why::ShuttingDown, Why::NotReady] {
            let status = status(&Failure::Unavailable { why, outcome: Outcome::Unknown });
            assert_eq!((status.code(), status.message()), TIMEOUT, "{why}");
        }
    }

    #[test]
    fn a_fault_does_not_tell_its_inside() {
        assert!(!status(&Failure::Fault("EIO".into())).message().contains("EIO"));
    }
}
