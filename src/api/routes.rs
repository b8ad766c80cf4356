//! The table of routes: it makes the router and is compared with openapi.yaml, both ways.

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter};

/// One operation of the HTTP API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Upper case, as on the wire.
    pub method: &'static str,
    /// As in openapi.yaml; a last segment `{key}` takes the rest of the path, slashes included, `{id}` one.
    pub path: &'static str,
    pub operation_id: &'static str,
}

macro_rules! routes {
    ($($operation:ident $method:ident $path:literal $id:literal),+ $(,)?) => {
        /// What a request asks for; a position in `ROUTES`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Operation { $($operation),+ }

        impl Operation {
            const ALL: &'static [Operation] = &[$(Operation::$operation),+];
        }

        pub const ROUTES: &[Route] = &[$(Route { method: stringify!($method), path: $path, operation_id: $id }),+];
    };
}

routes! {
    KvGet GET "/v1/kv/{key}" "kvGet",
    KvHead HEAD "/v1/kv/{key}" "kvHead",
    KvPut PUT "/v1/kv/{key}" "kvPut",
    KvPatch PATCH "/v1/kv/{key}" "kvPatch",
    KvDelete DELETE "/v1/kv/{key}" "kvDelete",
    KvList GET "/v1/kv" "kvList",
    KvDeleteRange DELETE "/v1/kv" "kvDeleteRange",
    Txn POST "/v1/txn" "txn",
    WatchGet GET "/v1/watch" "watch",
    HistoryGet GET "/v1/history/{key}" "historyGet",
    CounterGet GET "/v1/counters/{key}" "counterGet",
    CounterAdd POST "/v1/counters/{key}" "counterAdd",
    TtlGet GET "/v1/ttl/{key}" "ttlGet",
    TtlPut PUT "/v1/ttl/{key}" "ttlPut",
    TtlDelete DELETE "/v1/ttl/{key}" "ttlDelete",
    LeaseGrant POST "/v1/leases" "leaseGrant",
    LeaseList GET "/v1/leases" "leaseList",
    LeaseGet GET "/v1/leases/{id}" "leaseGet",
    LeaseRevoke DELETE "/v1/leases/{id}" "leaseRevoke",
    LeaseKeepalive POST "/v1/leases/{id}/keepalive" "leaseKeepalive",
    LeaseHold POST "/v1/leases/{id}/hold" "leaseHold",
    RateGet GET "/v1/ratelimits/{key}" "rateGet",
    RateTake POST "/v1/ratelimits/{key}" "rateTake",
    RateReset DELETE "/v1/ratelimits/{key}" "rateReset",
    LockList GET "/v1/locks" "lockList",
    LockGet GET "/v1/locks/{name}" "lockGet",
    LockAcquire POST "/v1/locks/{name}" "lockAcquire",
    LockBreak DELETE "/v1/locks/{name}" "lockBreak",
    LockHold POST "/v1/locks/{name}/hold" "lockHold",
    LockClaimGet GET "/v1/locks/{name}/claims/{lease}" "lockClaimGet",
    LockRelease DELETE "/v1/locks/{name}/claims/{lease}" "lockRelease",
    SemaphoreList GET "/v1/semaphores" "semaphoreList",
    SemaphoreGet GET "/v1/semaphores/{name}" "semaphoreGet",
    SemaphoreAcquire POST "/v1/semaphores/{name}" "semaphoreAcquire",
    SemaphoreBreak DELETE "/v1/semaphores/{name}" "semaphoreBreak",
    SemaphoreHold POST "/v1/semaphores/{name}/hold" "semaphoreHold",
    SemaphoreClaimGet GET "/v1/semaphores/{name}/claims/{lease}" "semaphoreClaimGet",
    SemaphoreRelease DELETE "/v1/semaphores/{name}/claims/{lease}" "semaphoreRelease",
    ElectionList GET "/v1/elections" "electionList",
    ElectionGet GET "/v1/elections/{name}" "electionGet",
    ElectionCampaign POST "/v1/elections/{name}" "electionCampaign",
    ElectionHold POST "/v1/elections/{name}/hold" "electionHold",
    ElectionObserve GET "/v1/elections/{name}/observe" "electionObserve",
    ElectionClaimGet GET "/v1/elections/{name}/claims/{lease}" "electionClaimGet",
    ElectionProclaim PUT "/v1/elections/{name}/claims/{lease}" "electionProclaim",
    ElectionResign DELETE "/v1/elections/{name}/claims/{lease}" "electionResign",
    KvImport POST "/v1/import" "kvImport",
    Compact POST "/v1/compact" "compact",
    ClusterGet GET "/v1/cluster" "clusterGet",
    MemberList GET "/v1/cluster/members" "memberList",
    MemberAdd POST "/v1/cluster/members" "memberAdd",
    MemberGet GET "/v1/cluster/members/{id}" "memberGet",
    MemberPatch PATCH "/v1/cluster/members/{id}" "memberPatch",
    MemberRemove DELETE "/v1/cluster/members/{id}" "memberRemove",
    MemberPromote POST "/v1/cluster/members/{id}/promote" "memberPromote",
    MemberReplace POST "/v1/cluster/members/{id}/replace" "memberReplace",
    LeaderMove POST "/v1/cluster/leader" "leaderMove",
    StatusGet GET "/v1/status" "statusGet",
    HashGet GET "/v1/hash" "hashGet",
    ConfigGet GET "/v1/config" "configGet",
    LogLevelPut PUT "/v1/log-level" "logLevelPut",
    SnapshotGet GET "/v1/snapshot" "snapshotGet",
    Restore POST "/v1/restore" "restore",
    Livez GET "/livez" "livez",
    Readyz GET "/readyz" "readyz",
    Health GET "/health" "health",
    Version GET "/version" "version",
    Metrics GET "/metrics" "metrics",
    OpenapiYaml GET "/openapi.yaml" "openapiYaml",
    OpenapiJson GET "/openapi.json" "openapiJson",
    Root GET "/" "root",
}

impl Operation {
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    pub(crate) fn at(index: usize) -> Option<Self> {
        Self::ALL.get(index).copied()
    }

    /// True if it can change the store, so that a failure must say whether it did.
    pub(crate) fn mutates(self) -> bool {
        use Operation::{Compact, CounterAdd, KvDelete, KvDeleteRange, KvImport, KvPatch, KvPut, Txn};
        use Operation::{LeaderMove, MemberAdd, MemberPatch, MemberPromote, MemberRemove, MemberReplace};
        use Operation::{LeaseGrant, LeaseHold, LeaseKeepalive, LeaseRevoke, TtlDelete, TtlPut};
        use Operation::{RateReset, RateTake};
        matches!(self, KvPut | KvPatch | KvDelete | KvDeleteRange | KvImport | Txn | CounterAdd | Compact)
            || matches!(self, LeaderMove | MemberAdd | MemberPatch | MemberPromote | MemberRemove | MemberReplace)
            || matches!(self, LeaseGrant | LeaseHold | LeaseKeepalive | LeaseRevoke | TtlDelete | TtlPut)
            || matches!(self, RateReset | RateTake | Self::Restore)
            || self.changes_claims()
    }

    fn changes_claims(self) -> bool {
        use Operation::{
            ElectionCampaign, ElectionHold, ElectionProclaim, ElectionResign, LockAcquire, LockBreak, LockHold,
            LockRelease, SemaphoreAcquire, SemaphoreBreak, SemaphoreHold, SemaphoreRelease,
        };
        matches!(
            self,
            LockAcquire
                | LockBreak
                | LockHold
                | LockRelease
                | SemaphoreAcquire
                | SemaphoreBreak
                | SemaphoreHold
                | SemaphoreRelease
                | ElectionCampaign
                | ElectionHold
                | ElectionProclaim
                | ElectionResign
        )
    }

    /// Streams have no HEAD: their length is unknown and their cost is the whole.
    fn streams(self) -> bool {
        matches!(self, Self::SnapshotGet | Self::WatchGet | Self::ElectionObserve)
    }
}

/// All operations of one path.
#[derive(Debug)]
struct Path {
    /// Of a path with `{key}`: what stands before it.
    text: &'static str,
    wildcard: bool,
    operations: Vec<(&'static str, Operation)>,
}

fn paths() -> Vec<Path> {
    let mut paths: Vec<Path> = Vec::new();
    for (route, &operation) in ROUTES.iter().zip(Operation::ALL) {
        let (text, wildcard) = match route.path.strip_suffix("{key}") {
            Some(before) => (before, true),
            None => (route.path, false),
        };
        let known = paths.iter_mut().find(|path| path.text == text && path.wildcard == wildcard);
        match known {
            Some(path) => path.operations.push((route.method, operation)),
            None => paths.push(Path { text, wildcard, operations: vec![(route.method, operation)] }),
        }
    }
    paths
}

/// What a method and a path name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// `rest` is where in the path the `{key}` or `{id}` begins.
    Operation {
        operation: Operation,
        rest: usize,
    },
    /// The path exists, with these methods.
    OtherMethods(Vec<&'static str>),
    Nothing,
}

/// The router of all routes: `handle` is told what was found, also where nothing was.
pub(crate) fn router<S, H, F>(handle: H) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
    H: Fn(S, Found, Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let endpoint = |found: Found| {
        let handle = handle.clone();
        move |State(state): State<S>, request: Request| handle(state, found.clone(), request)
    };
    let mut router = Router::new();
    for path in paths() {
        let mut methods = MethodRouter::new().fallback(endpoint(Found::OtherMethods(methods(&path))));
        for &(method, operation) in &path.operations {
            let found = Found::Operation { operation, rest: path.text.find('{').unwrap_or(path.text.len()) };
            // axum's filter for GET takes HEAD too; a stream's HEAD is refused.
            if method == "GET" && operation.streams() {
                methods = methods.on(MethodFilter::HEAD, endpoint(Found::OtherMethods(vec!["GET"])));
            }
            methods = methods.on(filter(method), endpoint(found));
        }
        router = if path.wildcard {
            // A wildcard does not take nothing: the empty key is for the handler to refuse.
            router.route(&format!("{}{{*key}}", path.text), methods.clone()).route(path.text, methods)
        } else {
            router.route(path.text, methods)
        };
    }
    router.fallback(endpoint(Found::Nothing))
}

fn filter(method: &str) -> MethodFilter {
    match method {
        "HEAD" => MethodFilter::HEAD,
        "PUT" => MethodFilter::PUT,
        "POST" => MethodFilter::POST,
        "PATCH" => MethodFilter::PATCH,
        "DELETE" => MethodFilter::DELETE,
        _ => MethodFilter::GET,
    }
}

fn methods(entry: &Path) -> Vec<&'static str> {
    let mut methods: Vec<&'static str> = entry.operations.iter().map(|(method, _)| *method).collect();
    let head = entry.operations.iter().any(|(method, operation)| *method == "GET" && !operation.streams());
    if head && !methods.contains(&"HEAD") {
        methods.push("HEAD");
    }
    methods
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::response::IntoResponse;
    use std::collections::BTreeSet;
    use tower::ServiceExt;

    fn find(method: &str, path: &str) -> Found {
        let found = std::sync::Arc::new(std::sync::Mutex::new(None));
        let seen = std::sync::Arc::clone(&found);
        let router = router(move |(), what, _: Request| {
            *seen.lock().unwrap() = Some(what);
            async { ().into_response() }
        });
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(router.with_state(()).oneshot(request)).unwrap();
        let found = found.lock().unwrap().take();
        found.unwrap()
    }

    #[test]
    fn every_route_finds_itself() {
        for (route, &operation) in ROUTES.iter().zip(Operation::ALL) {
            let path = route.path.replace("{key}", "a/b//c/%FF%00/").replace("{id}", "7f");
            let rest = route.path.find('{').unwrap_or(route.path.len());
            assert_eq!(find(route.method, &path), Found::Operation { operation, rest }, "{route:?}");
            assert_eq!(ROUTES[operation.index()].operation_id, route.operation_id);
        }
    }

    #[test]
    fn operation_ids_are_unique() {
        let ids: BTreeSet<_> = ROUTES.iter().map(|route| route.operation_id).collect();
        assert_eq!(ids.len(), ROUTES.len());
    }

    #[test]
    fn a_key_may_be_empty_for_the_handler_to_refuse_and_a_collection_is_not_a_key() {
        let found = find("GET", "/v1/kv/");
        assert_eq!(found, Found::Operation { operation: Operation::KvGet, rest: "/v1/kv/".len() });
        let found = find("GET", "/v1/kv");
        assert_eq!(found, Found::Operation { operation: Operation::KvList, rest: "/v1/kv".len() });
    }

    #[test]
    fn head_follows_get_except_for_streams() {
        let operation = Operation::StatusGet;
        assert_eq!(find("HEAD", "/v1/status"), Found::Operation { operation, rest: "/v1/status".len() });
        assert_eq!(find("HEAD", "/v1/snapshot"), Found::OtherMethods(vec!["GET"]));
    }

    #[test]
    fn other_methods_and_other_paths_are_told_apart() {
        assert_eq!(find("POST", "/v1/compact/"), Found::Nothing);
        assert_eq!(find("GET", "/v1/txn"), Found::OtherMethods(vec!["POST"]));
        let Found::OtherMethods(methods) = find("POST", "/v1/kv/a") else { panic!("other methods") };
        assert_eq!(methods, ["GET", "HEAD", "PUT", "PATCH", "DELETE"]);
        assert_eq!(find("GET", "/v1/locks/a/b"), Found::Nothing);
    }
}
