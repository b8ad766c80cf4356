//! The Rust library `etcd-client` against a running node: keys, transactions, watches, leases, locks, elections
//! and users, each with what an etcd would answer. Ends with an error at the first difference.

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, EventType, GetOptions, LockOptions, Permission,
    ProclaimOptions, PutOptions, ResignOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, WatchFilterType,
    WatchOptions,
};
use std::time::Duration;
use tokio::time::timeout;

type Done = Result<(), Box<dyn std::error::Error>>;

const LONG: Duration = Duration::from_secs(20);

/// Code and text of a refusal.
fn said<T: std::fmt::Debug>(answer: Result<T, Error>) -> (i32, String) {
    match answer {
        Err(Error::GRpcStatus(status)) => (i32::from(status.code()), status.message().to_owned()),
        other => panic!("a refusal is expected: {other:?}"),
    }
}

async fn keys(client: &mut Client, prefix: &str) -> Done {
    let key = |name: &str| format!("{prefix}{name}");
    let first = client.put(key("a"), "1", None).await?.header().expect("a header").revision();
    let again = client.put(key("a"), "2", Some(PutOptions::new().with_prev_key())).await?;
    assert_eq!(again.prev_key().expect("the former value").value_str()?, "1");
    assert_eq!(again.header().expect("a header").revision(), first + 1);
    client.put(key("b"), [0, 255, 7], None).await?;
    let found = client.get(key("b"), None).await?;
    assert_eq!((found.count(), found.kvs()[0].value()), (1, &[0, 255, 7][..]));
    assert_eq!(found.kvs()[0].version(), 1);
    let old = client.get(key("a"), Some(GetOptions::new().with_revision(first))).await?;
    assert_eq!(old.kvs()[0].value_str()?, "1");
    let sorted = GetOptions::new().with_prefix().with_limit(1).with_sort(SortTarget::Key, SortOrder::Descend);
    let sorted = client.get(prefix, Some(sorted)).await?;
    assert_eq!((sorted.count(), sorted.more(), sorted.kvs()[0].key_str()?), (2, true, key("b").as_str()));
    let counted = client.get(prefix, Some(GetOptions::new().with_prefix().with_count_only())).await?;
    assert_eq!((counted.count(), counted.kvs().len()), (2, 0));
    let gone = client.delete(prefix, Some(DeleteOptions::new().with_prefix().with_prev_key())).await?;
    assert_eq!((gone.deleted(), gone.prev_kvs().len()), (2, 2));
    let future = client.get(key("a"), Some(GetOptions::new().with_revision(i64::MAX))).await;
    assert_eq!(said(future), (11, "etcdserver: mvcc: required revision is a future revision".into()));
    assert_eq!(said(client.put("", "1", None).await), (3, "etcdserver: key is not provided".into()));
    Ok(())
}

async fn transactions(client: &mut Client, prefix: &str) -> Done {
    let key = format!("{prefix}txn");
    let create = || {
        Txn::new()
            .when([Compare::version(key.clone(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key.clone(), "mine", None)])
            .or_else([TxnOp::get(key.clone(), None)])
    };
    assert!(client.txn(create()).await?.succeeded());
    let lost = client.txn(create()).await?;
    assert!(!lost.succeeded());
    let [TxnOpResponse::Get(found)] = &lost.op_responses()[..] else { panic!("{lost:?}") };
    assert_eq!(found.kvs()[0].value_str()?, "mine");
    let twice = Txn::new().and_then([TxnOp::put(key.clone(), "1", None), TxnOp::put(key.clone(), "2", None)]);
    assert_eq!(said(client.txn(twice).await), (3, "etcdserver: duplicate key given in txn request".into()));
    let nested = Txn::new().and_then([TxnOp::txn(Txn::new().and_then([TxnOp::delete(key.clone(), None)]))]);
    assert!(client.txn(nested).await?.succeeded());
    assert_eq!(client.get(key, None).await?.count(), 0);
    Ok(())
}

async fn watches(client: &mut Client, prefix: &str) -> Done {
    let key = |name: &str| format!("{prefix}watched/{name}");
    let first = client.put(key("a"), "1", None).await?.header().expect("a header").revision();
    client.put(key("a"), "2", None).await?;
    client.delete(key("a"), None).await?;
    let options = WatchOptions::new().with_prefix().with_start_revision(first).with_prev_key();
    let mut watch = client.watch(format!("{prefix}watched/"), Some(options)).await?;
    let mut seen = Vec::new();
    let mut id = None;
    while seen.len() < 3 {
        let answer = timeout(LONG, watch.message()).await??.expect("the stream goes on");
        if answer.created() {
            id = Some(answer.watch_id());
        }
        for event in answer.events() {
            let former = event.prev_kv().map(|kv| kv.value_str().map(str::to_owned)).transpose()?;
            seen.push((event.event_type() == EventType::Delete, event.kv().expect("a key").version(), former));
        }
    }
    let one = || Some("1".to_owned());
    assert_eq!(seen, [(false, 1, None), (false, 2, one()), (true, 0, Some("2".to_owned()))]);
    watch.request_progress().await?;
    let progress = timeout(LONG, watch.message()).await??.expect("the stream goes on");
    assert!(progress.events().is_empty() && progress.header().expect("a header").revision() >= first + 2);
    // A second one on the same stream, without deletes.
    let filtered = WatchOptions::new().with_watch_id(77).with_filters([WatchFilterType::NoDelete]);
    watch.watch(key("b"), Some(filtered)).await?;
    let created = timeout(LONG, watch.message()).await??.expect("the stream goes on");
    assert_eq!((created.created(), created.watch_id()), (true, 77));
    watch.cancel(id.expect("it was created")).await?;
    assert!(timeout(LONG, watch.message()).await??.expect("the stream goes on").canceled());
    client.put(key("b"), "1", None).await?;
    client.delete(key("b"), None).await?;
    client.put(key("b"), "2", None).await?;
    let mut values = Vec::new();
    while values.len() < 2 {
        let answer = timeout(LONG, watch.message()).await??.expect("the stream goes on");
        assert_eq!(answer.watch_id(), 77);
        for event in answer.events() {
            values.push(event.kv().expect("a key").value_str()?.to_owned());
        }
    }
    assert_eq!(values, ["1", "2"]);
    Ok(())
}

async fn leases(client: &mut Client, prefix: &str) -> Done {
    let key = format!("{prefix}leased");
    let lease = client.lease_grant(60, None).await?;
    assert!(lease.id() > 0 && lease.ttl() == 60);
    client.put(key.clone(), "1", Some(PutOptions::new().with_lease(lease.id()))).await?;
    let (mut keeper, mut kept) = client.lease_keep_alive(lease.id()).await?;
    for _ in 0..3 {
        keeper.keep_alive().await?;
        assert_eq!(timeout(LONG, kept.message()).await??.expect("the stream goes on").ttl(), 60);
    }
    let options = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
    let left = client.lease_time_to_live(lease.id(), Some(options)).await?;
    assert_eq!((left.granted_ttl(), left.keys()), (60, &[key.clone().into_bytes()][..]));
    assert!(client.leases().await?.leases().iter().any(|one| one.id() == lease.id()));
    client.lease_revoke(lease.id()).await?;
    assert_eq!(client.get(key.clone(), None).await?.count(), 0);
    let unknown = client.put(key.clone(), "1", Some(PutOptions::new().with_lease(lease.id()))).await;
    assert_eq!(said(unknown), (5, "etcdserver: requested lease not found".into()));
    assert_eq!(client.lease_time_to_live(lease.id(), None).await?.ttl(), -1);
    // One that runs out by itself.
    let short = client.lease_grant(2, None).await?.id();
    client.put(key.clone(), "1", Some(PutOptions::new().with_lease(short))).await?;
    let mut watch = client.watch(key.clone(), None).await?;
    let ended = async {
        loop {
            let answer = watch.message().await?.expect("the stream goes on");
            if answer.events().iter().any(|event| event.event_type() == EventType::Delete) {
                return Ok::<_, Error>(());
            }
        }
    };
    timeout(LONG, ended).await??;
    Ok(())
}

async fn locks(client: &mut Client, prefix: &str) -> Done {
    let name = format!("{prefix}lock");
    let (one, two) = (client.lease_grant(60, None).await?.id(), client.lease_grant(60, None).await?.id());
    let held = client.lock(name.clone(), Some(LockOptions::new().with_lease(one))).await?;
    assert!(held.key().starts_with(name.as_bytes()));
    let again = client.lock(name.clone(), Some(LockOptions::new().with_lease(one))).await?;
    assert_eq!(again.key(), held.key(), "who holds it holds it");
    let mut other = client.clone();
    let waiting = other.lock(name.clone(), Some(LockOptions::new().with_lease(two)));
    tokio::pin!(waiting);
    assert!(timeout(Duration::from_millis(300), &mut waiting).await.is_err(), "two hold one lock");
    client.unlock(held.key()).await?;
    let next = timeout(LONG, waiting).await??;
    assert_ne!(next.key(), held.key());
    client.lease_revoke(two).await?;
    assert_eq!(client.get(name, Some(GetOptions::new().with_prefix())).await?.count(), 0);
    client.lease_revoke(one).await?;
    Ok(())
}

async fn elections(client: &mut Client, prefix: &str) -> Done {
    let name = format!("{prefix}election");
    let none = client.leader(name.clone()).await;
    assert_eq!(said(none).1, "election: no leader");
    let (one, two) = (client.lease_grant(60, None).await?.id(), client.lease_grant(60, None).await?.id());
    let won = client.campaign(name.clone(), "one", one).await?;
    let leader = won.leader().expect("a leader").clone();
    let mut other = client.clone();
    let waiting = other.campaign(name.clone(), "two", two);
    tokio::pin!(waiting);
    assert!(timeout(Duration::from_millis(300), &mut waiting).await.is_err(), "two lead");
    let mut observed = client.observe(name.clone()).await?;
    let value = async |observed: &mut etcd_client::ObserveStream| -> Result<String, Box<dyn std::error::Error>> {
        let told = timeout(LONG, observed.message()).await??.expect("the stream goes on");
        Ok(told.kv().expect("a leader").value_str()?.to_owned())
    };
    assert_eq!(value(&mut observed).await?, "one");
    client.proclaim("uno", Some(ProclaimOptions::new().with_leader(leader.clone()))).await?;
    assert_eq!(value(&mut observed).await?, "uno");
    assert_eq!(client.leader(name.clone()).await?.kv().expect("a leader").value_str()?, "uno");
    client.resign(Some(ResignOptions::new().with_leader(leader.clone()))).await?;
    let next = timeout(LONG, waiting).await??;
    assert_eq!(value(&mut observed).await?, "two");
    let stale = client.proclaim("late", Some(ProclaimOptions::new().with_leader(leader))).await;
    assert_eq!(said(stale).1, "election: not leader");
    client.resign(Some(ResignOptions::new().with_leader(next.leader().expect("a leader").clone()))).await?;
    client.lease_revoke(one).await?;
    client.lease_revoke(two).await?;
    Ok(())
}

/// Turns authentication on, and off again whatever happens.
async fn users(client: &mut Client, endpoint: &str, prefix: &str) -> Done {
    client.user_add("root", "rootpw", None).await?;
    client.role_add("root").await.ok();
    client.user_grant_role("root", "root").await?;
    client.auth_enable().await?;
    let done = with_users(client, endpoint, prefix).await;
    let mut root = as_user(endpoint, "root", "rootpw").await?;
    root.auth_disable().await?;
    client.user_delete("root").await?;
    client.role_delete("root").await.ok();
    done
}

async fn as_user(endpoint: &str, name: &str, password: &str) -> Result<Client, Error> {
    Client::connect([endpoint], Some(ConnectOptions::new().with_user(name, password))).await
}

async fn with_users(nobody: &mut Client, endpoint: &str, prefix: &str) -> Done {
    assert_eq!(said(nobody.get("a", None).await), (3, "etcdserver: user name is empty".into()));
    let wrong = as_user(endpoint, "root", "wrong").await.map(drop);
    assert_eq!(said(wrong), (3, "etcdserver: authentication failed, invalid user ID or password".into()));
    let mut root = as_user(endpoint, "root", "rootpw").await?;
    root.role_add("rust").await?;
    root.role_grant_permission("rust", Permission::read_write(prefix).with_prefix()).await?;
    root.role_grant_permission("rust", Permission::read("elsewhere")).await?;
    let permissions = root.role_get("rust").await?.permissions();
    assert_eq!(permissions.len(), 2);
    root.user_add("rusty", "pw", None).await?;
    root.user_grant_role("rusty", "rust").await?;
    assert_eq!(root.user_get("rusty").await?.roles(), ["rust"]);
    let mut rusty = as_user(endpoint, "rusty", "pw").await?;
    rusty.put(format!("{prefix}mine"), "1", None).await?;
    assert_eq!(rusty.get("elsewhere", None).await?.count(), 0);
    assert_eq!(said(rusty.put("elsewhere", "1", None).await), (7, "etcdserver: permission denied".into()));
    let all = rusty.get("", Some(GetOptions::new().with_all_keys())).await;
    assert_eq!(said(all), (7, "etcdserver: permission denied".into()));
    assert_eq!(said(rusty.user_list().await), (7, "etcdserver: permission denied".into()));
    let lease = rusty.lease_grant(60, None).await?.id();
    let lock = rusty.lock(format!("{prefix}lock"), Some(LockOptions::new().with_lease(lease))).await?;
    rusty.unlock(lock.key()).await?;
    rusty.lease_revoke(lease).await?;
    root.user_change_password("rusty", "new").await?;
    assert!(as_user(endpoint, "rusty", "pw").await.is_err());
    let mut rusty = as_user(endpoint, "rusty", "new").await?;
    root.user_revoke_role("rusty", "rust").await?;
    assert_eq!(said(rusty.get(format!("{prefix}mine"), None).await), (7, "etcdserver: permission denied".into()));
    root.role_delete("rust").await?;
    root.user_delete("rusty").await?;
    assert_eq!(root.user_list().await?.users(), ["root"]);
    Ok(())
}

async fn others(client: &mut Client) -> Done {
    let status = client.status().await?;
    assert!(status.version().starts_with("3.") && status.leader() != 0, "{status:?}");
    let members = client.member_list().await?;
    assert!(members.members().iter().all(|member| !member.name().is_empty() && !member.client_urls().is_empty()));
    assert!(client.hash_kv(0).await?.hash() != 0);
    client.defragment().await?;
    let mut snapshot = client.snapshot().await?;
    let mut bytes = 0;
    while let Some(part) = timeout(LONG, snapshot.message()).await?? {
        bytes += part.blob().len();
    }
    assert!(bytes > 0);
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Done {
    let endpoint = std::env::args().nth(1).ok_or("usage: etcd-clients HOST:PORT")?;
    let prefix = format!("etcd-client-rust/{}/", std::process::id());
    let mut client = Client::connect([&endpoint], None).await?;
    keys(&mut client, &prefix).await?;
    transactions(&mut client, &prefix).await?;
    watches(&mut client, &prefix).await?;
    leases(&mut client, &prefix).await?;
    locks(&mut client, &prefix).await?;
    elections(&mut client, &prefix).await?;
    others(&mut client).await?;
    users(&mut client, &endpoint, &prefix).await?;
    client.delete(prefix, Some(DeleteOptions::new().with_prefix())).await?;
    println!("etcd-client of Rust: all as expected");
    Ok(())
}
