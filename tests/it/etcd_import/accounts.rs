//! Users, roles and logins: from a Tenure member in an etcd's place, and from a real etcd where one is installed.

use super::{Import, PATIENCE, ended, import, real_etcd};
use crate::support::grpc::{Etcd as Raw, etcd};
use crate::support::{Data, Node, eventually};
use etcd::auth_client::AuthClient;
use std::collections::BTreeMap;
use std::process::Stdio;
use tenure::client::Endpoint;
use tenure::client::etcd::pb::authpb::Permission;
use tenure::client::etcd::{Etcd, EtcdError, Login, Write};
use tonic::transport::Channel;

const READ: i32 = 0;
const READWRITE: i32 = 2;

/// A client that has logged in.
async fn logged_in(address: &str, name: &str, password: &str) -> Result<Etcd, EtcdError> {
    let login = Login::Password { name: name.to_owned(), password: password.to_owned() };
    Etcd::connect(vec![Endpoint::parse(address).unwrap()], login).await.map(|(etcd, _)| etcd)
}

async fn auth(address: &str) -> AuthClient<Channel> {
    AuthClient::new(Raw::at(address).await.0)
}

fn permission(perm_type: i32, key: &str, range_end: &str) -> Permission {
    Permission { perm_type, key: key.to_owned().into(), range_end: range_end.to_owned().into() }
}

/// Root, who turns authentication on.
async fn secure(address: &str, password: &str) -> Etcd {
    let (etcd, _) = Etcd::connect(vec![Endpoint::parse(address).unwrap()], Login::Nobody).await.unwrap();
    etcd.add_user("root", password.to_owned()).await.unwrap();
    etcd.add_role("root").await.unwrap();
    etcd.give_role("root", "root").await.unwrap();
    auth(address).await.auth_enable(etcd::AuthEnableRequest {}).await.unwrap();
    logged_in(address, "root", password).await.unwrap()
}

/// Keys, and people with rights on them.
async fn people(root: &Etcd) {
    let put = |key: &str| Write::Put { key: key.to_owned().into(), value: "1".into(), lease: 0 };
    root.write(vec![put("app/a"), put("app/b"), put("other")]).await.unwrap();
    root.add_role("app").await.unwrap();
    root.permit("app", permission(READWRITE, "app/", "app0")).await.unwrap();
    root.permit("app", permission(READ, "other", "")).await.unwrap();
    root.add_role("all").await.unwrap();
    root.permit("all", permission(READWRITE, "\0", "\0")).await.unwrap();
    for (name, role) in [("ann", "app"), ("bob", "app"), ("reader", "all")] {
        root.add_user(name, format!("{name}-canary")).await.unwrap();
        root.give_role(name, role).await.unwrap();
    }
}

type Rights = BTreeMap<String, Vec<String>>;

/// Everybody's roles, and what every role permits.
async fn rights(root: &Etcd) -> (Rights, Rights) {
    let (mut users, mut roles) = (Rights::new(), Rights::new());
    for name in root.users().await.unwrap() {
        users.insert(name.clone(), root.roles_of(&name).await.unwrap().unwrap());
    }
    for name in root.roles().await.unwrap() {
        let permissions = root.permissions(&name).await.unwrap().unwrap();
        let permissions = permissions.iter().filter(|_| name != "root").map(|one| format!("{one:?}")).collect();
        roles.insert(name, permissions);
    }
    (users, roles)
}

async fn keys(etcd: &Etcd) -> u64 {
    etcd.count().await.unwrap().0
}

/// Copies all of it, whatever stands at the source.
async fn all_of(source: &str) {
    let root = secure(source, "root-canary").await;
    people(&root).await;
    let target = Node::start().await;
    let (code, out, err) =
        ended(source, &target.url(), &["--until-synced", "--etcd-user", "root:root-canary", "-o", "json"]).await;
    assert_eq!(code, 0, "{err}");
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    let outcomes: BTreeMap<&str, &str> = told["users"]
        .as_array()
        .unwrap()
        .iter()
        .map(|user| (user["name"].as_str().unwrap(), user["outcome"].as_str().unwrap()))
        .collect();
    let needs = "needs-password";
    assert_eq!(outcomes, [("ann", needs), ("bob", needs), ("reader", needs), ("root", "copied")].into());
    assert!(!format!("{out}{err}").contains("canary"), "{out}{err}");
    assert_eq!(told["roles"].as_array().unwrap().len(), 3, "{out}");
    auth(target.address()).await.auth_enable(etcd::AuthEnableRequest {}).await.unwrap();
    // Root's password came over, since it was used; the others' did not.
    let here = logged_in(target.address(), "root", "root-canary").await.unwrap();
    assert_eq!(rights(&here).await, rights(&root).await);
    assert_eq!(keys(&here).await, keys(&root).await);
    for (name, password) in [("ann", "ann-canary"), ("ann", ""), ("bob", "bob-canary")] {
        assert!(matches!(logged_in(target.address(), name, password).await, Err(EtcdError::Denied { .. })));
    }
    let mut changing = tonic::Request::new(etcd::AuthUserChangePasswordRequest {
        name: "ann".into(),
        password: "new".into(),
        ..Default::default()
    });
    let basic = tenure::client::Credentials::password("root", "root-canary").unwrap();
    changing.metadata_mut().insert("authorization", basic.authorization().unwrap().parse().unwrap());
    auth(target.address()).await.user_change_password(changing).await.unwrap();
    let ann = logged_in(target.address(), "ann", "new").await.unwrap();
    assert!(ann.write(vec![Write::Delete { key: "app/a".into() }]).await.is_ok());
    assert!(matches!(ann.write(vec![Write::Delete { key: "other".into() }]).await, Err(EtcdError::Denied { .. })));
}

#[tokio::test]
async fn users_and_roles_come_over_without_their_passwords() {
    let source = Node::start().await;
    all_of(source.address()).await;
}

#[tokio::test]
async fn users_and_roles_of_a_real_etcd_come_over() {
    let Some((_etcd, _data, address)) = real_etcd().await else {
        println!("no etcd is installed: nobody was copied from one");
        return;
    };
    all_of(&address).await;
}

#[tokio::test]
async fn who_reads_and_who_writes_is_said_in_several_ways() {
    let (source, target) = (Node::start().await, Node::start().await);
    let root = secure(source.address(), "p:w").await;
    people(&root).await;
    let own = secure(target.address(), "own").await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "p:w\n").unwrap();
    let file = file.display().to_string();
    let url = |user: &str| format!("http://{user}@{}", source.address());
    let run = async |source: &str, env: &[(&str, &str)], args: &[&str]| {
        let mut command = import(source, &target.url(), args);
        command.envs(env.iter().copied()).arg("--until-synced");
        let output = tokio::time::timeout(PATIENCE, command.stderr(Stdio::piped()).output()).await.unwrap().unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (output.status.code().unwrap(), said)
    };
    let here = ("TENURE_USER", "root:own");
    for (source, env, args, text) in [
        (source.url(), &[here][..], &[][..], "user name is empty"),
        (source.url(), &[here], &["--etcd-user", "root:canary"], "authentication failed"),
        (url("root:canary"), &[here], &[], "authentication failed"),
        (source.url(), &[], &["--etcd-user", "root:p:w"], "user name is empty"),
        (source.url(), &[("TENURE_USER", "root:canary")], &["--etcd-user", "root:p:w"], "authentication failed"),
        // Who may read some keys only.
        (source.url(), &[here], &["--etcd-user", "ann:ann-canary"], "permission denied"),
    ] {
        let (code, said) = run(&source, env, args).await;
        assert!(code == 6 && said.contains(text) && said.contains("--etcd-user"), "{args:?}: {code} {said}");
        assert!(!said.contains("canary"), "{said}");
    }
    let usage = run(&source.url(), &[], &["--etcd-user", "root:canary", "--etcd-password-file", &file]).await;
    assert!(usage.0 == 2 && usage.1.contains("say one of them") && !usage.1.contains("canary"), "{usage:?}");
    let several = format!("{},{}", url("a:canary"), url("b:canary"));
    let usage = run(&several, &[], &[]).await;
    assert!(usage.0 == 2 && usage.1.contains("several users") && !usage.1.contains("canary"), "{usage:?}");
    for (source, env, args) in [
        (url("root:p%3Aw"), &[here][..], &["--replace"][..]),
        (source.url(), &[here, ("TENURE_ETCD_USER", "root:p:w")], &["--replace"]),
        (url("nobody:x"), &[here], &["--replace", "--etcd-user", "root", "--etcd-password-file", &file]),
    ] {
        let (code, said) = run(&source, env, args).await;
        assert!(code == 0 && !said.contains("p:w"), "{args:?}: {said}");
        assert!(said.contains("was here already"), "root stays who it was: {said}");
        assert_eq!(rights(&own).await, rights(&root).await);
        assert_eq!(keys(&own).await, 3);
    }
    // Who was here keeps what is allowed here, and that is said.
    own.take_role("bob", "app").await.unwrap();
    let (code, said) = run(&source.url(), &[here], &["--replace", "--etcd-user", "root:p:w"]).await;
    assert!(code == 0 && said.contains("with other rights: left as it was"), "{said}");
    assert_eq!(own.roles_of("bob").await.unwrap(), Some(vec![]));
    // Keys can be read by others than root; users cannot.
    let (code, said) = run(&source.url(), &[here], &["--replace", "--etcd-user", "reader:reader-canary"]).await;
    assert!(code == 0 && said.contains("users and roles are not copied"), "{said}");
    let fresh = Node::start().await;
    let (code, _, err) = ended(&url("root:p%3Aw"), &fresh.url(), &["--until-synced", "--without-users"]).await;
    assert_eq!(code, 0, "{err}");
    let fresh = Etcd::connect(vec![Endpoint::parse(fresh.address()).unwrap()], Login::Nobody).await.unwrap().0;
    assert_eq!((fresh.users().await.unwrap(), keys(&fresh).await), (vec![], 3));
}

/// A login that ends meanwhile, and rights that change meanwhile.
async fn follows(source: &str) {
    let root = secure(source, "root-canary").await;
    people(&root).await;
    let target = Node::start().await;
    let here = Etcd::connect(vec![Endpoint::parse(target.address()).unwrap()], Login::Nobody).await.unwrap().0;
    let mut following = Import::start_with(source, &target.url(), &["--etcd-user", "root:root-canary"]);
    following.says("synced at revision").await;
    // Every token of root's ends with that, whoever had it.
    let mut changing = auth_as(source).await;
    changing.set_password("root", "root-canary").await;
    let root = logged_in(source, "root", "root-canary").await.unwrap();
    root.take_role("ann", "app").await.unwrap();
    root.delete_user("bob").await.unwrap();
    root.forbid("app", permission(READ, "other", "")).await.unwrap();
    root.add_user("eve", "eve-canary".into()).await.unwrap();
    let put = |n: u32| Write::Put { key: format!("later/{n}").into(), value: "1".into(), lease: 0 };
    for n in 0..20 {
        root.write(vec![put(n)]).await.unwrap();
    }
    eventually("it goes on after another login", PATIENCE, async || keys(&here).await == 23).await;
    let said = following.cut_over().await;
    assert!(said.contains("eve") && !said.contains("bob"), "{said}");
    assert_eq!(rights(&here).await, rights(&root).await);
    assert_eq!(keys(&here).await, keys(&root).await);
}

struct Passwords {
    client: AuthClient<Channel>,
    token: String,
}

/// With a token of its own, for what the client of the import has no method for.
async fn auth_as(address: &str) -> Passwords {
    let mut client = auth(address).await;
    let request = etcd::AuthenticateRequest { name: "root".into(), password: "root-canary".into() };
    let token = client.authenticate(request).await.unwrap().into_inner().token;
    Passwords { client, token }
}

impl Passwords {
    async fn set_password(&mut self, name: &str, password: &str) {
        let mut request = tonic::Request::new(etcd::AuthUserChangePasswordRequest {
            name: name.into(),
            password: password.into(),
            ..Default::default()
        });
        request.metadata_mut().insert("authorization", self.token.parse().unwrap());
        self.client.user_change_password(request).await.unwrap();
    }
}

#[tokio::test]
async fn a_login_that_ends_is_renewed_and_rights_are_those_of_the_cut_over() {
    let source = Node::start_with(&Data::fresh(), &[]).await;
    follows(source.address()).await;
}

#[tokio::test]
async fn the_same_with_a_real_etcd() {
    let Some((_etcd, _data, address)) = real_etcd().await else {
        println!("no etcd is installed: none was followed");
        return;
    };
    follows(&address).await;
}
