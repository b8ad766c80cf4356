//! Who may ask for what at all, for every operation of both doors, and how a request says who sends it.
//!
//! Invariants: each operation of REST has its row, or this does not compile; each method of etcd's has its
//! row, or it is refused and a test fails; what an operation does to keys is decided where it does it. What
//! is open to anybody tells nothing of what is stored.

use super::routes::Operation;
use crate::model::AuthRefusal;
use crate::service::{Admits, Shown};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HeaderMap};

impl Operation {
    pub(crate) fn admits(self) -> Admits {
        match self {
            Self::Livez
            | Self::Readyz
            | Self::Health
            | Self::Version
            | Self::Metrics
            | Self::OpenapiYaml
            | Self::OpenapiJson
            | Self::Root => Admits::Anybody,
            Self::KvGet
            | Self::KvHead
            | Self::KvPut
            | Self::KvPatch
            | Self::KvDelete
            | Self::KvList
            | Self::KvDeleteRange
            | Self::KvImport
            | Self::Txn
            | Self::WatchGet
            | Self::HistoryGet
            | Self::CounterGet
            | Self::CounterAdd
            | Self::TtlGet
            | Self::TtlPut
            | Self::TtlDelete
            | Self::LeaseGrant
            | Self::LeaseList
            | Self::LeaseGet
            | Self::LeaseRevoke
            | Self::LeaseKeepalive
            | Self::LeaseHold
            | Self::RateGet
            | Self::RateTake
            | Self::RateReset
            | Self::LockList
            | Self::LockGet
            | Self::LockAcquire
            | Self::LockBreak
            | Self::LockHold
            | Self::LockClaimGet
            | Self::LockRelease
            | Self::SemaphoreList
            | Self::SemaphoreGet
            | Self::SemaphoreAcquire
            | Self::SemaphoreBreak
            | Self::SemaphoreHold
            | Self::SemaphoreClaimGet
            | Self::SemaphoreRelease
            | Self::ElectionList
            | Self::ElectionGet
            | Self::ElectionCampaign
            | Self::ElectionHold
            | Self::ElectionObserve
            | Self::ElectionClaimGet
            | Self::ElectionProclaim
            | Self::ElectionResign
            | Self::ClusterGet
            | Self::MemberList
            | Self::MemberGet
            | Self::StatusGet => Admits::Users,
            Self::Compact
            | Self::MemberAdd
            | Self::MemberPatch
            | Self::MemberRemove
            | Self::MemberPromote
            | Self::MemberReplace
            | Self::LeaderMove
            | Self::SnapshotGet
            | Self::Restore => Admits::Root,
            Self::HashGet | Self::ConfigGet | Self::LogLevelPut => Admits::RootHere,
        }
    }
}

/// Every method of etcd's services by its path's two parts.
pub(super) const METHODS: &[(&str, &[&str], Admits)] = &[
    ("etcdserverpb.KV", &["Range", "RangeStream", "Put", "DeleteRange", "Txn"], Admits::Users),
    ("etcdserverpb.KV", &["Compact"], Admits::Root),
    ("etcdserverpb.Watch", &["Watch"], Admits::Users),
    (
        "etcdserverpb.Lease",
        &["LeaseGrant", "LeaseRevoke", "LeaseKeepAlive", "LeaseTimeToLive", "LeaseLeases"],
        Admits::Users,
    ),
    ("etcdserverpb.Cluster", &["MemberList"], Admits::Users),
    ("etcdserverpb.Cluster", &["MemberAdd", "MemberRemove", "MemberUpdate", "MemberPromote"], Admits::Root),
    // To ask for alarms is any user's affair; to change them is checked where it is told apart.
    ("etcdserverpb.Maintenance", &["Alarm", "Status"], Admits::Users),
    ("etcdserverpb.Maintenance", &["Snapshot", "MoveLeader", "Downgrade"], Admits::Root),
    ("etcdserverpb.Maintenance", &["Defragment", "Hash", "HashKV"], Admits::RootHere),
    ("etcdserverpb.Auth", &["Authenticate"], Admits::Anybody),
    // What may be seen by whom, and that only root changes it, is decided by the auth tables themselves.
    (
        "etcdserverpb.Auth",
        &[
            "AuthEnable",
            "AuthDisable",
            "AuthStatus",
            "UserAdd",
            "UserGet",
            "UserList",
            "UserDelete",
            "UserChangePassword",
            "UserGrantRole",
            "UserRevokeRole",
            "RoleAdd",
            "RoleGet",
            "RoleList",
            "RoleDelete",
            "RoleGrantPermission",
            "RoleRevokePermission",
        ],
        Admits::Users,
    ),
    ("v3lockpb.Lock", &["Lock", "Unlock"], Admits::Users),
    ("v3electionpb.Election", &["Campaign", "Proclaim", "Leader", "Observe", "Resign"], Admits::Users),
    ("grpc.health.v1.Health", &["Check", "Watch"], Admits::Anybody),
    ("grpc.reflection.v1.ServerReflection", &["ServerReflectionInfo"], Admits::Anybody),
    ("grpc.reflection.v1alpha.ServerReflection", &["ServerReflectionInfo"], Admits::Anybody),
];

/// By a method's path; a method without a row is for root.
pub(super) fn method_admits(path: &str) -> Admits {
    let parts = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    let row = parts.and_then(|(service, method)| {
        METHODS.iter().find(|(of, methods, _)| *of == service && methods.contains(&method))
    });
    row.map_or(Admits::Root, |(_, _, admits)| *admits)
}

/// What a request shows, with the text that is borrowed from.
#[derive(Default)]
pub(super) enum Credentials {
    #[default]
    Nothing,
    Token(String),
    Password {
        user: String,
        password: String,
    },
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.shown().fmt(f)
    }
}

impl Credentials {
    pub(super) fn shown(&self) -> Shown<'_> {
        match self {
            Self::Nothing => Shown::Nothing,
            Self::Token(token) => Shown::Token(token),
            Self::Password { user, password } => Shown::Password { user, password },
        }
    }

    /// Of `Authorization`: a bearer token, a user and password, or, as etcd's clients have it, a bare token.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, AuthRefusal> {
        Self::in_header(headers, AUTHORIZATION.as_str())
    }

    /// As etcd reads its metadata: `token` comes first.
    pub(super) fn of_grpc(headers: &HeaderMap) -> Result<Self, AuthRefusal> {
        match Self::in_header(headers, "token")? {
            Self::Nothing => Self::of(headers),
            found => Ok(found),
        }
    }

    fn in_header(headers: &HeaderMap, name: &str) -> Result<Self, AuthRefusal> {
        let Some(value) = headers.get(name) else { return Ok(Self::Nothing) };
        let text = value.to_str().map_err(|_| AuthRefusal::InvalidToken)?.trim();
        match text.split_once(' ') {
            None if text.is_empty() => Ok(Self::Nothing),
            None => Ok(Self::Token(text.to_owned())),
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Self::Token(token.trim().to_owned())),
            Some((scheme, encoded)) if scheme.eq_ignore_ascii_case("basic") => Self::basic(encoded.trim()),
            Some(_) => Err(AuthRefusal::InvalidToken),
        }
    }

    fn basic(encoded: &str) -> Result<Self, AuthRefusal> {
        let decoded = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let (user, password) = decoded.as_deref().and_then(|text| text.split_once(':')).ok_or(AuthRefusal::Failed)?;
        Ok(Self::Password { user: user.to_owned(), password: password.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;
    use proptest::prelude::*;

    fn read(value: &[u8]) -> Option<(String, String)> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        match Credentials::of(&headers) {
            Ok(Credentials::Nothing) => Some((String::new(), String::new())),
            Ok(Credentials::Token(token)) => Some(("token".into(), token)),
            Ok(Credentials::Password { user, password }) => Some((user, password)),
            Err(_) => None,
        }
    }

    #[test]
    fn every_way_to_say_who_one_is() {
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(read(b"Bearer abc.1"), pair("token", "abc.1"));
        assert_eq!(read(b"bearer  abc"), pair("token", "abc"));
        assert_eq!(read(b"abc.1"), pair("token", "abc.1"));
        assert_eq!(read(b"Basic YW5uOnA6dw=="), pair("ann", "p:w"));
        assert_eq!(read(b""), pair("", ""));
        for nonsense in [&b"Basic !!!"[..], b"Basic YW5u", b"Digest x", b"Basic", b"\xff\xfe"] {
            let found = read(nonsense);
            assert!(found.is_none() || found == pair("token", "Basic"), "{nonsense:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert("token", HeaderValue::from_static("first"));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("second"));
        assert!(matches!(Credentials::of_grpc(&headers), Ok(Credentials::Token(token)) if token == "first"));
        assert!(!format!("{:?}", Credentials::of(&headers)).contains("second"));
    }

    proptest! {
        #[test]
        fn no_header_is_too_much(value in prop::collection::vec(prop_oneof![32_u8..127, 128_u8..], 0..200)) {
            read(&value);
            read(&[b"Basic ", &value[..]].concat());
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_for_root() {
        assert_eq!(method_admits("/etcdserverpb.KV/Range"), Admits::Users);
        assert_eq!(method_admits("/etcdserverpb.KV/Compact"), Admits::Root);
        for unknown in ["/etcdserverpb.KV/Range2", "/etcdserverpb.KV/", "", "/", "//", "etcdserverpb.KV/Range"] {
            assert_eq!(method_admits(unknown), Admits::Root, "{unknown}");
        }
    }
}
