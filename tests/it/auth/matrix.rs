//! Every route of REST and every method of etcd's, against everybody who may come: what each may do is
//! one table, and a route or method without a row fails.

use super::{Door, Who, b64, node};
use crate::support::{Node, eventually};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// What it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    /// To be any user.
    AnyUser,
    /// On the key `m/key`.
    Read,
    Write,
    Both,
    /// On all keys below `m/`.
    ReadAll,
    WriteAll,
    BothAll,
    Root,
}

/// Who comes, and what that one may: read and write the key, read and write all below its prefix.
struct Principal {
    name: &'static str,
    who: Who,
    is_somebody: bool,
    key: (bool, bool),
    prefix: (bool, bool),
    is_root: bool,
}

impl Principal {
    fn has(&self, takes: Takes) -> bool {
        let both = |(reads, writes): (bool, bool)| reads && writes;
        self.is_root
            || match takes {
                Takes::Nothing | Takes::AnyUser => true,
                Takes::Read => self.key.0,
                Takes::Write => self.key.1,
                Takes::Both => both(self.key),
                Takes::ReadAll => self.prefix.0,
                Takes::WriteAll => self.prefix.1,
                Takes::BothAll => both(self.prefix),
                Takes::Root => false,
            }
    }
}

/// The whole of `m/`, and of the claims named `m/…`; the second lies in the hidden space.
const PREFIXES: [(&str, &str); 2] = [("m/", "m0"), ("_tenure/", "_tenure0")];

/// A member with authentication on, and a token that has run out there: issued for a second only.
async fn secured() -> (Node, Door, Who) {
    let (node, door) = node(&["--auth-token-ttl", "1s"]).await;
    let root = door.secured().await;
    door.add_user(&root, "u-expired", "pw", None).await;
    let expired = door.token("u-expired", "pw").await;
    eventually("it runs out", Duration::from_secs(20), async || {
        // Each look is a use, and puts off the end.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        door.status(&expired, "GET", "/v1/status", "").await == 401
    })
    .await;
    let node = node.restart().await;
    let door = Door::new(node.url());
    (node, door, expired)
}

async fn principals(door: &Door, root: Who, expired: Who) -> Vec<Principal> {
    let all = |access: &'static str| PREFIXES.map(|(key, end)| (access, key, end));
    let (read, write, both) = (all("READ"), all("WRITE"), all("READWRITE"));
    door.add_role(&root, "one", &[("READ", "m/key", "")]).await;
    door.add_role(&root, "reads", &read).await;
    door.add_role(&root, "writes", &write).await;
    door.add_role(&root, "both", &both).await;
    for (name, role) in [
        ("u-none", None),
        ("u-one", Some("one")),
        ("u-reads", Some("reads")),
        ("u-writes", Some("writes")),
        ("u-both", Some("both")),
        ("u-deleted", Some("both")),
        ("u-changed", Some("both")),
    ] {
        door.add_user(&root, name, "pw", role).await;
    }
    door.call(&root, "auth/user/grant", json!({"user": "u-expired", "role": "both"})).await;
    door.call(&root, "auth/user/add", json!({"name": "u-cert", "options": {"no_password": true}})).await;
    door.call(&root, "auth/user/grant", json!({"user": "u-cert", "role": "both"})).await;
    let (_elsewhere, other) = node(&[]).await;
    other.secured().await;
    other.add_user(&other.token("root", "rootpw").await, "u-both", "pw", None).await;
    let foreign = other.token("u-both", "pw").await;
    let token = async |name: &str| door.token(name, "pw").await;
    let (deleted, changed) = (token("u-deleted").await, token("u-changed").await);
    door.call(&root, "auth/user/delete", json!({"name": "u-deleted"})).await;
    door.call(&root, "auth/user/changepw", json!({"name": "u-changed", "password": "new"})).await;
    let nobody = |name: &'static str, who: Who| Principal {
        name,
        who,
        is_somebody: false,
        key: (false, false),
        prefix: (false, false),
        is_root: false,
    };
    let user = |name: &'static str, who: Who, key: (bool, bool), prefix: (bool, bool)| Principal {
        key,
        prefix,
        is_somebody: true,
        ..nobody(name, who)
    };
    vec![
        nobody("anonymous", Who::Nobody),
        nobody("garbage", Who::Token("garbage.12".into())),
        nobody("expired token", expired),
        nobody("token of another cluster", foreign),
        nobody("token of a deleted user", deleted),
        nobody("token older than the password", changed),
        nobody("user without a password", Who::Basic("u-cert", "pw")),
        nobody("wrong password", Who::Basic("u-both", "wrong")),
        user("no role", token("u-none").await, (false, false), (false, false)),
        user("reads one key", token("u-one").await, (true, false), (false, false)),
        user("reads", token("u-reads").await, (true, false), (true, false)),
        user("writes", token("u-writes").await, (false, true), (false, true)),
        user("reads and writes", token("u-both").await, (true, true), (true, true)),
        user("reads and writes, by password", Who::Basic("u-both", "pw"), (true, true), (true, true)),
        Principal { is_root: true, ..user("root", root, (true, true), (true, true)) },
    ]
}

/// A request for an operation of REST that does no harm when it is allowed, and what it takes.
fn rest(operation: &str) -> (&'static str, &'static str, Takes) {
    match operation {
        "kvGet" | "kvHead" => ("/v1/kv/m/key", "", Takes::Read),
        "kvPut" => ("/v1/kv/m/key", "v", Takes::Write),
        "kvPatch" => ("/v1/kv/m/key", r#"{"a":1}"#, Takes::Write),
        "kvDelete" => ("/v1/kv/m/key", "", Takes::Write),
        "kvList" => ("/v1/kv?prefix=m/", "", Takes::ReadAll),
        "kvDeleteRange" => ("/v1/kv?prefix=m/", "", Takes::WriteAll),
        "kvImport" => ("/v1/import?on_conflict=overwrite", r#"{"key":"m/key","value":"v"}"#, Takes::Write),
        "txn" => ("/v1/txn", r#"{"then":[{"get":{"key":"m/key"}},{"put":{"key":"m/key","value":"v"}}]}"#, Takes::Both),
        "watch" => ("/v1/watch?prefix=m/&wait=1ms", "", Takes::ReadAll),
        "historyGet" => ("/v1/history/m/key", "", Takes::Read),
        "counterGet" => ("/v1/counters/m/key", "", Takes::Read),
        "counterAdd" => ("/v1/counters/m/key?add=1", "", Takes::Both),
        "ttlGet" => ("/v1/ttl/m/key", "", Takes::Read),
        "ttlPut" => ("/v1/ttl/m/key?ttl=60s", "", Takes::Write),
        "ttlDelete" => ("/v1/ttl/m/key", "", Takes::Write),
        "leaseGrant" => ("/v1/leases?ttl=1s", "", Takes::AnyUser),
        "leaseList" => ("/v1/leases", "", Takes::AnyUser),
        // The lease of `m/key`'s neighbour: see `matrix`.
        "leaseGet" => ("/v1/leases/0000000000000077", "", Takes::AnyUser),
        "leaseRevoke" => ("/v1/leases/0000000000000077", "", Takes::WriteAll),
        "leaseKeepalive" => ("/v1/leases/0000000000000077/keepalive", "", Takes::WriteAll),
        "leaseHold" => ("/v1/leases/0000000000000077/hold", "", Takes::WriteAll),
        "rateGet" => ("/v1/ratelimits/m/key?limit=10&per=1s", "", Takes::BothAll),
        "rateTake" => ("/v1/ratelimits/m/key?limit=10&per=1s", "", Takes::BothAll),
        "rateReset" => ("/v1/ratelimits/m/key", "", Takes::WriteAll),
        // Claims that are not there: it ends with the look. `nobody_lets_go_of_what_is_not_theirs` has those that are.
        "lockList" => ("/v1/locks", "", Takes::ReadAll),
        "lockGet" => ("/v1/locks/m", "", Takes::ReadAll),
        "lockAcquire" => ("/v1/locks/m?ttl=1s", "", Takes::BothAll),
        "lockBreak" => ("/v1/locks/m", "", Takes::BothAll),
        "lockHold" => ("/v1/locks/m/hold?ttl=1s", "", Takes::BothAll),
        "lockClaimGet" => ("/v1/locks/m/claims/0000000000000001", "", Takes::ReadAll),
        "lockRelease" => ("/v1/locks/m/claims/0000000000000001", "", Takes::ReadAll),
        "semaphoreList" => ("/v1/semaphores", "", Takes::ReadAll),
        "semaphoreGet" => ("/v1/semaphores/m", "", Takes::ReadAll),
        "semaphoreAcquire" => ("/v1/semaphores/m?limit=2&ttl=1s", "", Takes::BothAll),
        "semaphoreBreak" => ("/v1/semaphores/m", "", Takes::BothAll),
        "semaphoreHold" => ("/v1/semaphores/m/hold?limit=2&ttl=1s", "", Takes::BothAll),
        "semaphoreClaimGet" => ("/v1/semaphores/m/claims/0000000000000001", "", Takes::ReadAll),
        "semaphoreRelease" => ("/v1/semaphores/m/claims/0000000000000001", "", Takes::ReadAll),
        "electionList" => ("/v1/elections", "", Takes::ReadAll),
        "electionGet" => ("/v1/elections/m", "", Takes::ReadAll),
        "electionCampaign" => ("/v1/elections/m?ttl=1s", "", Takes::BothAll),
        "electionHold" => ("/v1/elections/m/hold?ttl=1s", "", Takes::BothAll),
        "electionObserve" => ("/v1/elections/m/observe", "", Takes::ReadAll),
        "electionClaimGet" => ("/v1/elections/m/claims/0000000000000001", "", Takes::ReadAll),
        "electionProclaim" => ("/v1/elections/m/claims/0000000000000001", "v", Takes::ReadAll),
        "electionResign" => ("/v1/elections/m/claims/0000000000000001", "", Takes::ReadAll),
        "clusterGet" => ("/v1/cluster", "", Takes::AnyUser),
        "memberList" => ("/v1/cluster/members", "", Takes::AnyUser),
        "memberGet" => ("/v1/cluster/members/n1", "", Takes::AnyUser),
        "statusGet" => ("/v1/status", "", Takes::AnyUser),
        "memberAdd" => ("/v1/cluster/members", "", Takes::Root),
        "memberPatch" => ("/v1/cluster/members/nobody?name=x", "", Takes::Root),
        "memberRemove" => ("/v1/cluster/members/nobody", "", Takes::Root),
        "memberPromote" => ("/v1/cluster/members/nobody/promote", "", Takes::Root),
        "memberReplace" => ("/v1/cluster/members/nobody/replace", "", Takes::Root),
        "leaderMove" => ("/v1/cluster/leader?to=nobody", "", Takes::Root),
        "compact" => ("/v1/compact?revision=99999999", "", Takes::Root),
        "snapshotGet" => ("/v1/snapshot", "", Takes::Root),
        "restore" => ("/v1/restore", "", Takes::Root),
        "hashGet" => ("/v1/hash", "", Takes::Root),
        "configGet" => ("/v1/config", "", Takes::Root),
        "logLevelPut" => ("/v1/log-level?level=nonsense", "", Takes::Root),
        "livez" => ("/livez", "", Takes::Nothing),
        "readyz" => ("/readyz", "", Takes::Nothing),
        "health" => ("/health", "", Takes::Nothing),
        "version" => ("/version", "", Takes::Nothing),
        "metrics" => ("/metrics", "", Takes::Nothing),
        "openapiYaml" => ("/openapi.yaml", "", Takes::Nothing),
        "openapiJson" => ("/openapi.json", "", Takes::Nothing),
        "root" => ("/", "", Takes::Nothing),
        unknown => panic!("no row says who may ask for {unknown}"),
    }
}

/// A lease that hangs on keys below `m/`, so that it takes the right to write them.
async fn hang(door: &Door, root: &Who) {
    let grant = json!({"ID": "119", "TTL": "600"});
    door.ask(root, "POST", "/v3/lease/grant", &grant.to_string()).await;
    door.call(root, "kv/put", json!({"key": b64("m/leased"), "value": b64("v"), "lease": "119"})).await;
    door.call(root, "kv/put", json!({"key": b64("m/key"), "value": b64("{}")})).await;
}

#[tokio::test]
async fn every_route_against_everybody() {
    let (_node, door, expired) = secured().await;
    let root = door.token("root", "rootpw").await;
    let principals = principals(&door, root.clone(), expired).await;
    let mut wrong = Vec::new();
    for route in tenure::api::ROUTES {
        let (target, body, takes) = rest(route.operation_id);
        for principal in &principals {
            if matches!(route.operation_id, "leaseRevoke" | "kvPatch" | "ttlGet" | "leaseKeepalive" | "leaseHold") {
                hang(&door, &root).await;
            }
            let status = door.status(&principal.who, route.method, target, body).await;
            if (route.operation_id, status) == ("leaseHold", 200) {
                // The lease goes with the connection, which ended with the answer; not while it is hung on again.
                eventually("the held lease has gone", Duration::from_secs(20), async || {
                    door.status(&root, "GET", "/v1/leases/0000000000000077", "").await == 404
                })
                .await;
            }
            let refused = match status {
                401 => Some(401),
                403 => Some(403),
                _ => None,
            };
            let expected = if takes == Takes::Nothing || principal.is_somebody && principal.has(takes) {
                None
            } else if principal.is_somebody {
                Some(403)
            } else {
                Some(401)
            };
            if refused != expected || status >= 500 {
                wrong.push(format!("{} by {}: {status}, takes {takes:?}", route.operation_id, principal.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{} cells:\n{}", wrong.len(), wrong.join("\n"));
}

const LAST: &str = "Auth.AuthDisable";

/// A request for a method of etcd's that does no harm when it is allowed.
fn etcd(method: &str) -> (&'static str, Value, Takes) {
    let key = || json!({"key": b64("m/key")});
    let claim = || json!({"leader": {"name": b64("m/e"), "key": b64("m/e/1"), "rev": "1", "lease": "1"}});
    match method {
        "KV.Range" => ("kv/range", key(), Takes::Read),
        "KV.Put" => ("kv/put", json!({"key": b64("m/key"), "prev_kv": true}), Takes::Both),
        "KV.DeleteRange" => ("kv/deleterange", json!({"key": b64("m/"), "range_end": b64("m0")}), Takes::WriteAll),
        "KV.Txn" => {
            let inner = json!({"failure": [{"request_put": {"key": b64("m/key")}}]});
            ("kv/txn", json!({"failure": [{"request_txn": inner}]}), Takes::Write)
        }
        "KV.Compact" => ("kv/compaction", json!({"revision": "99999999"}), Takes::Root),
        "Lease.LeaseGrant" => ("lease/grant", json!({"TTL": "2"}), Takes::AnyUser),
        "Lease.LeaseRevoke" => ("lease/revoke", json!({"ID": "119"}), Takes::WriteAll),
        "Lease.LeaseTimeToLive" => ("lease/timetolive", json!({"ID": "119", "keys": true}), Takes::ReadAll),
        "Lease.LeaseLeases" => ("lease/leases", json!({}), Takes::AnyUser),
        "Cluster.MemberList" => ("cluster/member/list", json!({}), Takes::AnyUser),
        "Cluster.MemberAdd" => ("cluster/member/add", json!({}), Takes::Root),
        "Cluster.MemberRemove" => ("cluster/member/remove", json!({"ID": "1"}), Takes::Root),
        "Cluster.MemberUpdate" => ("cluster/member/update", json!({"ID": "1"}), Takes::Root),
        "Cluster.MemberPromote" => ("cluster/member/promote", json!({"ID": "1"}), Takes::Root),
        "Maintenance.Alarm" => ("maintenance/alarm", json!({"action": "DEACTIVATE"}), Takes::Root),
        "Maintenance.Status" => ("maintenance/status", json!({}), Takes::AnyUser),
        "Maintenance.Defragment" => ("maintenance/defragment", json!({}), Takes::Root),
        "Maintenance.Hash" => ("maintenance/hash", json!({}), Takes::Root),
        "Maintenance.HashKV" => ("maintenance/hashkv", json!({}), Takes::Root),
        "Maintenance.Snapshot" => ("maintenance/snapshot", json!({}), Takes::Root),
        "Maintenance.MoveLeader" => ("maintenance/transfer-leadership", json!({"targetID": "1"}), Takes::Root),
        "Maintenance.Downgrade" => ("maintenance/downgrade", json!({}), Takes::Root),
        "Auth.AuthEnable" => ("auth/enable", json!({}), Takes::Root),
        // The last row: after root's cell, which is its last, everything stands open.
        LAST => ("auth/disable", json!({}), Takes::Root),
        "Auth.AuthStatus" => ("auth/status", json!({}), Takes::Root),
        "Auth.Authenticate" => ("auth/authenticate", json!({"name": "root", "password": "rootpw"}), Takes::Nothing),
        "Auth.UserAdd" => ("auth/user/add", json!({"name": "root", "password": "x"}), Takes::Root),
        "Auth.UserGet" => ("auth/user/get", json!({"name": "root"}), Takes::Root),
        "Auth.UserList" => ("auth/user/list", json!({}), Takes::Root),
        "Auth.UserDelete" => ("auth/user/delete", json!({"name": "no"}), Takes::Root),
        "Auth.UserChangePassword" => ("auth/user/changepw", json!({"name": "no", "password": "x"}), Takes::Root),
        "Auth.UserGrantRole" => ("auth/user/grant", json!({"user": "u-both", "role": "both"}), Takes::Root),
        "Auth.UserRevokeRole" => ("auth/user/revoke", json!({"name": "u-both", "role": "no"}), Takes::Root),
        "Auth.RoleAdd" => ("auth/role/add", json!({"name": "both"}), Takes::Root),
        "Auth.RoleGet" => ("auth/role/get", json!({"role": "root"}), Takes::Root),
        "Auth.RoleList" => ("auth/role/list", json!({}), Takes::Root),
        "Auth.RoleDelete" => ("auth/role/delete", json!({"role": "no"}), Takes::Root),
        "Auth.RoleGrantPermission" => {
            ("auth/role/grant", json!({"name": "no", "perm": {"key": b64("m/")}}), Takes::Root)
        }
        "Auth.RoleRevokePermission" => ("auth/role/revoke", json!({"role": "no", "key": b64("m/")}), Takes::Root),
        "Lock.Lock" => ("lock/lock", json!({"name": b64("m/l"), "lease": "1"}), Takes::BothAll),
        "Lock.Unlock" => ("lock/unlock", json!({"key": b64("m/l/1")}), Takes::WriteAll),
        "Election.Campaign" => ("election/campaign", json!({"name": b64("m/e"), "lease": "1"}), Takes::BothAll),
        "Election.Proclaim" => ("election/proclaim", claim(), Takes::BothAll),
        "Election.Leader" => ("election/leader", json!({"name": b64("m/e")}), Takes::ReadAll),
        "Election.Resign" => ("election/resign", claim(), Takes::BothAll),
        "Watch.Watch" => {
            ("watch", json!({"create_request": {"key": b64("m/"), "range_end": b64("m0")}}), Takes::ReadAll)
        }
        "Lease.LeaseKeepAlive" => ("lease/keepalive", json!({"ID": "119"}), Takes::WriteAll),
        "Election.Observe" => ("election/observe", json!({"name": b64("m/e")}), Takes::ReadAll),
        unknown => panic!("no row says who may call {unknown}"),
    }
}

/// Without a path on the gateway, or a way to be refused: its rows are in `api::access`, against the same descriptors.
const GRPC_ONLY: &[&str] = &["KV.RangeStream", "Health.Check", "Health.Watch"];

/// `Service.Method`, as the protos have them.
fn methods() -> BTreeSet<String> {
    let mut methods = BTreeSet::new();
    for proto in ["rpc", "lock", "election", "health"] {
        let path = format!("{}/src/api/etcd/proto/{proto}.proto", env!("CARGO_MANIFEST_DIR"));
        let mut service = String::new();
        for line in std::fs::read_to_string(path).unwrap().lines() {
            let mut words = line.trim().split([' ', '(']);
            match (words.next(), words.next()) {
                (Some("service"), Some(name)) => service = name.to_owned(),
                (Some("rpc"), Some(name)) => drop(methods.insert(format!("{service}.{name}"))),
                _ => {}
            }
        }
    }
    methods
}

/// How the first answer refuses, if it does. A stream that has nothing to say yet does not.
async fn refusal(door: &Door, who: &Who, path: &str, body: &Value) -> Option<String> {
    let first = async {
        let mut answer = door.ask(who, "POST", &format!("/v3/{path}"), &body.to_string()).await;
        answer.chunk().await.ok().flatten().unwrap_or_default()
    };
    let text = tokio::time::timeout(SILENCE, first).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    REFUSALS.iter().find(|known| text.contains(**known)).map(|known| (*known).to_owned())
}

/// After which a stream is taken to be open.
const SILENCE: Duration = Duration::from_secs(2);
const REFUSALS: [&str; 5] =
    ["permission denied", "user name is empty", "invalid auth token", "authentication failed", "auth store is old"];

/// What is wrong with the cells of a method.
async fn row(door: &Door, principals: &[Principal], method: &str) -> Vec<String> {
    let (path, body, takes) = etcd(method);
    let mut wrong = Vec::new();
    for principal in principals {
        if method.starts_with("Lease.") {
            hang(door, &Who::Basic("root", "rootpw")).await;
        }
        let refused = refusal(door, &principal.who, path, &body).await;
        let fine = if takes == Takes::Nothing || principal.is_somebody && principal.has(takes) {
            refused.is_none()
        } else if principal.is_somebody {
            refused.as_deref() == Some("permission denied")
        } else {
            refused.as_deref().is_some_and(|refused| refused != "permission denied")
        };
        if !fine {
            wrong.push(format!("{method} by {}: {refused:?}, takes {takes:?}", principal.name));
        }
    }
    wrong
}

#[tokio::test]
async fn every_method_of_etcds_against_everybody() {
    let methods = methods();
    assert!(methods.len() > 45, "{methods:?}");
    let (_node, door, expired) = secured().await;
    let root = door.token("root", "rootpw").await;
    let principals = principals(&door, root.clone(), expired).await;
    let mut wrong = Vec::new();
    for method in methods.iter().filter(|method| **method != LAST && !GRPC_ONLY.contains(&method.as_str())) {
        wrong.extend(row(&door, &principals, method).await);
    }
    let both = Who::Basic("u-both", "pw");
    // One's own record, and one's own role, may be seen.
    door.call(&both, "auth/user/get", json!({"name": "u-both"})).await;
    door.call(&both, "auth/role/get", json!({"role": "both"})).await;
    assert!(methods.contains(LAST) && principals.last().is_some_and(|last| last.is_root));
    wrong.extend(row(&door, &principals, LAST).await);
    assert!(wrong.is_empty(), "{} cells:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(refusal(&door, &Who::Nobody, "kv/range", &json!({"key": b64("m/key")})).await, None);
}

#[tokio::test]
async fn nobody_lets_go_of_what_is_not_theirs() {
    let (_node, door) = node(&[]).await;
    let root = door.secured().await;
    door.add_role(&root, "reads", &[("READ", "_tenure/", "_tenure0")]).await;
    door.add_user(&root, "reader", "pw", Some("reads")).await;
    let reader = door.token("reader", "pw").await;
    for kind in ["locks", "elections"] {
        let claim: Value = door.ask(&root, "POST", &format!("/v1/{kind}/mine?ttl=60s"), "").await.json().await.unwrap();
        let lease = claim["lease"].as_str().unwrap_or_else(|| panic!("{claim}")).to_owned();
        let path = format!("/v1/{kind}/mine/claims/{lease}");
        assert_eq!(door.status(&reader, "GET", &path, "").await, 200);
        assert_eq!(door.status(&reader, "DELETE", &path, "").await, 403);
        for lease_path in [format!("/v1/leases/{lease}"), format!("/v1/leases/{lease}/keepalive")] {
            let method = if lease_path.ends_with("keepalive") { "POST" } else { "DELETE" };
            assert_eq!(door.status(&reader, method, &lease_path, "").await, 403, "{lease_path}");
        }
        assert_eq!(door.status(&Who::Nobody, "DELETE", &path, "").await, 401);
        if kind == "locks" {
            assert_eq!(door.status(&reader, "DELETE", "/v1/locks/mine", "").await, 403, "breaking it");
        }
        assert_eq!(door.status(&root, "DELETE", &path, "").await, 200);
    }
}
