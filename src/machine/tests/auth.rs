//! Users, roles and tokens in the machine: named cases of etcd's rules, a naive model under random
//! commands, and what images carry.

use super::support::{Rig, put, put_with, restore};
use crate::machine::{AUTH_FEATURE_LEVEL, Request, View};
use crate::model::{
    Access, AuthCommand, AuthRefusal, Batch, Caller, Command, Compare, CompareOp, CompareTarget, KeyRange, LeaseChoice,
    LogPosition, Need, Op, PasswordHash, Permission, Proposal, PutOp, RangeOp, Rejection, Reply, TokenHash, Txn,
    limits,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.command(Command::RaiseFeatureLevel { level: AUTH_FEATURE_LEVEL }).unwrap();
    rig
}

fn change_by(rig: &mut Rig, caller: Caller, command: AuthCommand) -> Result<i64, AuthRefusal> {
    let proposal = Proposal { caller, idempotency: None, command: Command::Auth(command) };
    match rig.apply(vec![proposal]).outcomes.remove(0).result {
        Ok(Reply::Auth { auth_revision, .. }) => Ok(auth_revision),
        Err(Rejection::Auth(refusal)) => Err(refusal),
        other => panic!("a change of users was answered {other:?}"),
    }
}

fn change(rig: &mut Rig, command: AuthCommand) -> Result<i64, AuthRefusal> {
    change_by(rig, Caller::System, command)
}

fn secret(text: &str) -> PasswordHash {
    PasswordHash::new(text.into())
}

fn add_user(name: &str) -> AuthCommand {
    AuthCommand::UserAdd { name: name.into(), password: Some(secret("hash")) }
}

fn grant(user: &str, role: &str) -> AuthCommand {
    AuthCommand::UserGrant { user: user.into(), role: role.into() }
}

fn permit(role: &str, access: Access, range: KeyRange) -> AuthCommand {
    AuthCommand::RoleGrant { role: role.into(), permission: Permission { range, access } }
}

fn token(n: u8) -> TokenHash {
    TokenHash::new([n; 32])
}

fn issue(rig: &Rig, n: u8, user: &str) -> AuthCommand {
    let since = view(rig).credentials(user).map_or(0, |credentials| credentials.since);
    AuthCommand::TokenIssue { hash: token(n), user: user.into(), since, ttl_ms: 10_000 }
}

fn view(rig: &Rig) -> View {
    rig.machine.reader().view()
}

fn user(name: &str) -> Caller {
    Caller::User { name: name.into(), auth_revision: i64::MAX }
}

/// With root, and ann, who may read `r`, write `w` and both `b`; on.
fn peopled() -> Rig {
    let mut rig = rig();
    for command in [
        add_user("root"),
        grant("root", "root"),
        add_user("ann"),
        AuthCommand::RoleAdd { name: "app".into() },
        permit("app", Access::Read, KeyRange::prefix("r")),
        permit("app", Access::Write, KeyRange::prefix("w")),
        permit("app", Access::ReadWrite, KeyRange::prefix("b")),
        grant("ann", "app"),
        AuthCommand::Enable,
    ] {
        change(&mut rig, command).unwrap();
    }
    rig
}

fn by(rig: &mut Rig, caller: &Caller, command: Command) -> Result<Reply, Rejection> {
    let proposal = Proposal { caller: caller.clone(), idempotency: None, command };
    rig.apply(vec![proposal]).outcomes.remove(0).result
}

fn ops(success: Vec<Op>) -> Command {
    Command::Txn(Txn { success, ..Txn::default() })
}

fn denied(result: &Result<Reply, Rejection>) -> Option<&Need> {
    if let Err(Rejection::PermissionDenied(need)) = result { Some(need) } else { None }
}

#[test]
fn authentication_needs_a_root_who_then_cannot_go() {
    let mut rig = rig();
    assert_eq!(change(&mut rig, AuthCommand::Enable), Err(AuthRefusal::RootUserMissing));
    change(&mut rig, add_user("root")).unwrap();
    assert_eq!(change(&mut rig, AuthCommand::Enable), Err(AuthRefusal::RootRoleMissing));
    change(&mut rig, grant("root", "root")).unwrap();
    change(&mut rig, AuthCommand::RoleAdd { name: "root".into() }).unwrap();
    change(&mut rig, AuthCommand::Enable).unwrap();
    change(&mut rig, AuthCommand::Enable).unwrap();
    for command in [
        AuthCommand::UserDelete { name: "root".into() },
        AuthCommand::UserRevoke { user: "root".into(), role: "root".into() },
        AuthCommand::RoleDelete { name: "root".into() },
    ] {
        assert_eq!(change(&mut rig, command), Err(AuthRefusal::RootIsNeeded));
    }
    change(&mut rig, AuthCommand::Disable).unwrap();
    change(&mut rig, AuthCommand::UserDelete { name: "root".into() }).unwrap();
}

#[test]
fn every_refusal_is_etcds() {
    let mut rig = peopled();
    let name = || "no".to_owned();
    let cases = [
        (add_user("ann"), AuthRefusal::UserExists("ann".into())),
        (add_user(""), AuthRefusal::UserNameEmpty),
        (AuthCommand::UserDelete { name: name() }, AuthRefusal::UserNotFound(name())),
        (AuthCommand::UserPassword { name: name(), password: secret("x") }, AuthRefusal::UserNotFound(name())),
        (grant("no", "app"), AuthRefusal::UserNotFound(name())),
        (grant("ann", "no"), AuthRefusal::RoleNotFound(name())),
        (AuthCommand::UserRevoke { user: "root".into(), role: "app".into() }, AuthRefusal::RoleNotGranted),
        (AuthCommand::RoleAdd { name: "app".into() }, AuthRefusal::RoleExists("app".into())),
        (AuthCommand::RoleAdd { name: String::new() }, AuthRefusal::RoleNameEmpty),
        (AuthCommand::RoleDelete { name: name() }, AuthRefusal::RoleNotFound(name())),
        (permit("no", Access::Read, KeyRange::key("a")), AuthRefusal::RoleNotFound(name())),
        (permit("app", Access::Read, KeyRange::all()), AuthRefusal::BadPermission),
        (
            permit("app", Access::Read, KeyRange { start: "b".into(), end: Some("a".into()) }),
            AuthRefusal::BadPermission,
        ),
        (AuthCommand::RoleRevoke { role: "app".into(), range: KeyRange::key("r") }, AuthRefusal::PermissionNotGranted),
        (
            AuthCommand::TokenIssue { hash: token(1), user: "ann".into(), since: 0, ttl_ms: 1000 },
            AuthRefusal::OldRevision,
        ),
    ];
    for (command, refusal) in cases {
        let before = rig.machine.state_hash();
        let revision = view(&rig).auth();
        assert_eq!(change(&mut rig, command.clone()), Err(refusal), "{command:?}");
        assert_eq!((rig.machine.state_hash(), view(&rig).auth()), (before, revision), "{command:?} left a trace");
    }
    let had = view(&rig).auth();
    change(&mut rig, grant("ann", "app")).unwrap();
    assert_eq!(view(&rig).auth(), had, "granted twice is granted once");
}

#[test]
fn nobody_and_who_is_void_may_do_nothing_not_even_nothing() {
    let mut rig = peopled();
    let nothing = || Command::Txn(Txn::default());
    assert_eq!(by(&mut rig, &Caller::Anonymous, nothing()), Err(AuthRefusal::NobodyGiven.into()));
    assert_eq!(by(&mut rig, &user("nobody"), nothing()), Err(AuthRefusal::InvalidToken.into()));
    assert!(by(&mut rig, &user("ann"), nothing()).is_ok());
    let early = Caller::User { name: "ann".into(), auth_revision: view(&rig).auth().1 };
    assert!(by(&mut rig, &early, nothing()).is_ok());
    change(&mut rig, AuthCommand::UserPassword { name: "ann".into(), password: secret("new") }).unwrap();
    assert_eq!(by(&mut rig, &early, nothing()), Err(AuthRefusal::OldRevision.into()));
    assert_eq!(view(&rig).allows(&early, &KeyRange::key("r")), Err(AuthRefusal::OldRevision.into()));
    let again = Caller::User { name: "ann".into(), auth_revision: view(&rig).auth().1 };
    change(&mut rig, AuthCommand::UserDelete { name: "ann".into() }).unwrap();
    change(&mut rig, add_user("ann")).unwrap();
    assert_eq!(by(&mut rig, &again, nothing()), Err(AuthRefusal::OldRevision.into()), "another ann");
}

/// Every operation bare, in a transaction, in its else-branch, and nested up to three deep, by who lacks one right.
#[test]
fn no_operation_is_out_of_sight_wherever_it_stands() {
    let op = |key: &'static str, prev_kv: bool| {
        Op::Put(PutOp {
            key: key.into(),
            value: "v".into(),
            content_type: None,
            lease: LeaseChoice::Detach,
            prev_kv,
            ignore_value: false,
        })
    };
    let delete = |range: KeyRange, prev_kv: bool| Op::Delete { range, prev_kv };
    let read = |range: KeyRange| Op::Range(RangeOp::newest(range));
    let from = |start: &'static str| KeyRange { start: start.into(), end: None };
    let allowed = [
        op("w1", false),
        op("b1", true),
        delete(KeyRange::prefix("w"), false),
        delete(KeyRange::prefix("b"), true),
        read(KeyRange::prefix("r")),
        read(KeyRange::key("r7")),
    ];
    let refused = [
        op("r1", false),
        op("w1", true),
        op("x", false),
        delete(KeyRange::prefix("w"), true),
        delete(from("w"), false),
        delete(KeyRange { start: "z".into(), end: Some("a".into()) }, false),
        read(KeyRange::key("w1")),
        read(KeyRange::all()),
        read(from("r")),
        read(KeyRange::prefix("_tenure/")),
        Op::Range(RangeOp { revision: 2, ..RangeOp::newest(KeyRange::key("x")) }),
        Op::Range(RangeOp { count_only: true, ..RangeOp::newest(KeyRange::key("x")) }),
    ];
    let mut rig = peopled();
    let ann = user("ann");
    for (ops, fine) in [(&allowed[..], true), (&refused[..], false)] {
        for op in ops {
            for depth in 0..4 {
                for taken in [true, false] {
                    let mut txn = Txn::default();
                    if taken { &mut txn.success } else { &mut txn.failure }.push(op.clone());
                    for _ in 0..depth {
                        txn = Txn { failure: vec![Op::Txn(Box::new(txn))], ..Txn::default() };
                    }
                    let result = by(&mut rig, &ann, Command::Txn(txn));
                    assert_eq!(denied(&result).is_none(), fine, "{op:?} at {depth}, {taken}: {result:?}");
                }
            }
        }
    }
    let compare = |key: &'static str| {
        let target = CompareTarget::Version(0);
        Txn { compares: vec![Compare { range: KeyRange::key(key), op: CompareOp::Equal, target }], ..Txn::default() }
    };
    assert!(by(&mut rig, &ann, Command::Txn(compare("r"))).is_ok());
    assert!(denied(&by(&mut rig, &ann, Command::Txn(compare("w")))).is_some());
    let nested = Txn { success: vec![Op::Txn(Box::new(compare("w")))], ..Txn::default() };
    assert!(denied(&by(&mut rig, &ann, Command::Txn(nested))).is_some());
    for command in [
        Command::Compact { revision: 1 },
        Command::SetQuota { bytes: 1 },
        Command::RaiseFeatureLevel { level: 1 },
        Command::LeaseExpire { term: 1, leases: Vec::new() },
        Command::LeaseCheckpoint { term: 1, leases: Vec::new() },
        Command::Auth(AuthCommand::Disable),
        Command::Auth(permit("app", Access::ReadWrite, KeyRange::prefix("x"))),
        Command::Auth(grant("ann", "root")),
        Command::Auth(issue(&rig, 9, "root")),
    ] {
        let result = by(&mut rig, &ann, command.clone());
        assert_eq!(denied(&result), Some(&Need::Administer), "{command:?}");
    }
}

#[test]
fn a_lease_is_as_hard_to_touch_as_the_keys_on_it() {
    let mut rig = peopled();
    let ann = user("ann");
    let root = user("root");
    for id in [1, 2] {
        by(&mut rig, &ann, Command::LeaseGrant { id, ttl_ms: 60_000 }).unwrap();
    }
    let attach = |key: &'static str, id: i64| ops(vec![put_with(key, "v", LeaseChoice::Attach(id))]);
    by(&mut rig, &root, attach("x", 1)).unwrap();
    by(&mut rig, &ann, attach("b", 2)).unwrap();
    let revoke = |id: i64| Command::LeaseRevoke { id, reason: crate::model::DeleteReason::LeaseRevoked };
    for command in [revoke(1), attach("b", 1), Command::LeaseRenew { id: 1 }] {
        assert_eq!(denied(&by(&mut rig, &ann, command)), Some(&Need::Lease(1)));
    }
    assert!(view(&rig).allows(&ann, &Need::LeaseKeys(1)).is_err());
    assert!(view(&rig).lease_keys(&ann, 1, 9).is_empty());
    by(&mut rig, &ann, revoke(2)).unwrap();
    by(&mut rig, &root, revoke(1)).unwrap();
    assert_eq!(by(&mut rig, &Caller::Anonymous, revoke(1)), Err(AuthRefusal::NobodyGiven.into()));
}

#[test]
fn one_sees_oneself_and_ones_roles_and_root_sees_all() {
    let rig = peopled();
    let view = view(&rig);
    let (ann, root) = (user("ann"), user("root"));
    assert_eq!(view.user(&ann, "ann").unwrap(), ["app"]);
    assert!(matches!(view.user(&ann, "root"), Err(Rejection::PermissionDenied(_))));
    assert!(matches!(view.user(&ann, "nobody"), Err(Rejection::PermissionDenied(_))), "nor who there is");
    assert_eq!(view.role(&ann, "app").unwrap().unwrap().len(), 3);
    assert!(matches!(view.role(&ann, "other"), Err(Rejection::PermissionDenied(_))));
    assert!(view.users(&ann).is_err() && view.roles(&ann).is_err());
    assert_eq!((view.users(&root).unwrap(), view.roles(&root).unwrap().len()), (vec!["ann".into(), "root".into()], 1));
    assert_eq!(view.user(&root, "nobody"), Err(AuthRefusal::UserNotFound("nobody".into()).into()));
}

#[test]
fn tokens_end_with_time_with_the_password_with_the_user_and_with_authentication() {
    let mut rig = peopled();
    let holder = |rig: &Rig, n: u8| view(rig).token(&token(n)).map(|token| token.caller);
    for n in 1..=3 {
        let command = issue(&rig, n, "ann");
        change(&mut rig, command).unwrap();
    }
    let command = issue(&rig, 4, "root");
    change(&mut rig, command).unwrap();
    assert_eq!(holder(&rig, 1), Some(Caller::User { name: "ann".into(), auth_revision: view(&rig).auth().1 }));
    rig.now_ms += 9_000;
    change(&mut rig, AuthCommand::TokensRenew { hashes: vec![token(1), token(9)] }).unwrap();
    rig.now_ms += 1_000;
    change(&mut rig, AuthCommand::TokensExpire).unwrap();
    assert!(holder(&rig, 1).is_some() && holder(&rig, 2).is_none() && holder(&rig, 4).is_none());
    assert_eq!(view(&rig).next_token_end_ms(), Some(rig.now_ms + 9_000));
    change(&mut rig, AuthCommand::TokensRenew { hashes: vec![token(2)] }).unwrap();
    assert!(holder(&rig, 2).is_none(), "what has run out is not renewed");
    change(&mut rig, AuthCommand::UserPassword { name: "ann".into(), password: secret("new") }).unwrap();
    assert!(holder(&rig, 1).is_none());
    let command = issue(&rig, 5, "ann");
    change(&mut rig, command).unwrap();
    change(&mut rig, AuthCommand::UserDelete { name: "ann".into() }).unwrap();
    assert!(holder(&rig, 5).is_none());
    let command = issue(&rig, 6, "root");
    change(&mut rig, command).unwrap();
    change(&mut rig, AuthCommand::Disable).unwrap();
    assert!(holder(&rig, 6).is_none());
    let command = issue(&rig, 7, "root");
    assert_eq!(change(&mut rig, command), Err(AuthRefusal::NotEnabled));
}

#[test]
fn a_user_without_a_password_gets_no_token_and_no_password() {
    let mut rig = peopled();
    change(&mut rig, AuthCommand::UserAdd { name: "cert".into(), password: None }).unwrap();
    let command = issue(&rig, 1, "cert");
    assert_eq!(change(&mut rig, command), Err(AuthRefusal::Failed));
    change(&mut rig, AuthCommand::UserPassword { name: "cert".into(), password: secret("x") }).unwrap();
    assert_eq!(view(&rig).credentials("cert").unwrap().password, None);
}

#[test]
fn the_tables_are_bounded() {
    let mut rig = rig();
    change(&mut rig, AuthCommand::RoleAdd { name: "r".into() }).unwrap();
    let big = "k".repeat(limits::AUTH_ROLE_BYTES_MAX);
    let refused = change(&mut rig, permit("r", Access::Read, KeyRange::prefix(big)));
    assert!(matches!(refused, Err(AuthRefusal::TooMany { .. })), "{refused:?}");
    let name = "n".repeat(limits::AUTH_NAME_BYTES_MAX + 1);
    assert!(matches!(rig.command(Command::Auth(add_user(&name))), Err(Rejection::Invalid { .. })));
}

#[test]
fn before_all_members_know_users_there_are_none() {
    let mut rig = Rig::new();
    assert!(matches!(rig.command(Command::Auth(add_user("a"))), Err(Rejection::Invalid { .. })));
}

#[test]
fn images_and_hashes_without_users_are_those_of_releases_without_them() {
    let mut rig = Rig::new();
    rig.ops(vec![put("a", "1")]).unwrap();
    assert!(rig.blocks().iter().all(|block| block[0] != 9));
    let mut peopled = peopled();
    let command = issue(&peopled, 1, "ann");
    change(&mut peopled, command).unwrap();
    let blocks = peopled.blocks();
    let at = blocks.iter().position(|block| block[0] == 9).unwrap();
    let restored = restore(&peopled.options, blocks.clone()).unwrap();
    assert_eq!(restored.state_hash(), peopled.machine.state_hash());
    assert_eq!(restored.reader().view().token(&token(1)), view(&peopled).token(&token(1)));
    let mut without = blocks;
    without.remove(at);
    assert!(restore(&peopled.options, without).is_err(), "a snapshot that lost its users is none");
}

#[test]
fn a_backup_brings_its_users_and_nobodys_session() {
    let mut backup = peopled();
    let command = issue(&backup, 1, "ann");
    change(&mut backup, command).unwrap();
    let mut rig = peopled();
    for _ in 0..5 {
        change(&mut rig, AuthCommand::UserPassword { name: "ann".into(), password: secret("x") }).unwrap();
    }
    let before = Caller::User { name: "ann".into(), auth_revision: view(&rig).auth().1 };
    rig.index += 1;
    let at = LogPosition { term: 1, node: 1, index: rig.index };
    let batch = Batch { proposed_at_ms: rig.now_ms, wall_ms: 0, proposals: Vec::new() };
    let copy = restore(&backup.options, backup.blocks()).unwrap();
    rig.machine.succeed(copy, at, &batch).unwrap();
    let view = view(&rig);
    assert!(view.auth().0 && view.token(&token(1)).is_none());
    assert_eq!(view.allows(&before, &KeyRange::key("r")), Err(AuthRefusal::OldRevision.into()));
    assert!(view.allows(&user("ann"), &KeyRange::key("r")).is_ok());
    let again = restore(&rig.options, rig.blocks()).unwrap();
    assert_eq!(again.state_hash(), rig.machine.state_hash());
}

/// What the tables say, as simply as it can be put.
#[derive(Debug, Default)]
struct Naive {
    users: BTreeMap<String, BTreeSet<String>>,
    roles: BTreeMap<String, BTreeMap<KeyRange, Access>>,
}

impl Naive {
    fn apply(&mut self, command: &AuthCommand) -> bool {
        match command {
            AuthCommand::UserAdd { name, .. } => {
                let new = !self.users.contains_key(name);
                self.users.entry(name.clone()).or_default();
                new
            }
            AuthCommand::UserDelete { name } => self.users.remove(name).is_some(),
            AuthCommand::UserGrant { user, role } => {
                let known = self.roles.contains_key(role);
                match self.users.get_mut(user) {
                    Some(roles) if known => {
                        roles.insert(role.clone());
                        true
                    }
                    _ => false,
                }
            }
            AuthCommand::UserRevoke { user, role } => self.users.get_mut(user).is_some_and(|roles| roles.remove(role)),
            AuthCommand::RoleAdd { name } => {
                let new = !self.roles.contains_key(name);
                self.roles.entry(name.clone()).or_default();
                new
            }
            AuthCommand::RoleDelete { name } => {
                self.users.values_mut().for_each(|roles| roles.retain(|role| role != name));
                self.roles.remove(name).is_some()
            }
            AuthCommand::RoleGrant { role, permission: Permission { range, access } } => {
                self.roles.get_mut(role).map(|had| had.insert(range.clone(), *access)).is_some()
            }
            AuthCommand::RoleRevoke { role, range } => {
                self.roles.get_mut(role).is_some_and(|had| had.remove(range).is_some())
            }
            other => panic!("{other:?} is not generated"),
        }
    }

    fn allows(&self, user: &str, key: &str, writes: bool) -> bool {
        let roles = self.users.get(user).into_iter().flatten();
        roles
            .filter_map(|role| self.roles.get(role))
            .flatten()
            .any(|(range, access)| range.shows(key.as_bytes()) && if writes { access.writes() } else { access.reads() })
    }
}

const KEYS: [&str; 6] = ["a", "aa", "b", "_tenure/x", "c", "zz"];

fn some_range() -> impl Strategy<Value = KeyRange> {
    let key = || prop::sample::select(&KEYS[..]);
    prop_oneof![
        key().prop_map(KeyRange::key),
        key().prop_map(KeyRange::prefix),
        key().prop_map(|start| KeyRange { start: start.into(), end: None }),
        (key(), key())
            .prop_filter("not empty", |(a, b)| a < b)
            .prop_map(|(start, end)| KeyRange { start: start.into(), end: Some(end.into()) }),
    ]
}

fn some_command() -> impl Strategy<Value = AuthCommand> {
    let user = || prop::sample::select(vec!["u1".to_owned(), "u2".to_owned()]);
    let role = || prop::sample::select(vec!["r1".to_owned(), "r2".to_owned(), "r3".to_owned()]);
    let access = prop::sample::select(vec![Access::Read, Access::Write, Access::ReadWrite]);
    prop_oneof![
        2 => user().prop_map(|name| add_user(&name)),
        1 => user().prop_map(|name| AuthCommand::UserDelete { name }),
        4 => (user(), role()).prop_map(|(user, role)| AuthCommand::UserGrant { user, role }),
        1 => (user(), role()).prop_map(|(user, role)| AuthCommand::UserRevoke { user, role }),
        3 => role().prop_map(|name| AuthCommand::RoleAdd { name }),
        1 => role().prop_map(|name| AuthCommand::RoleDelete { name }),
        6 => (role(), access, some_range()).prop_map(|(role, access, range)| permit(&role, access, range)),
        2 => (role(), some_range()).prop_map(|(role, range)| AuthCommand::RoleRevoke { role, range }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_tables_agree_with_the_naive_ones(commands in prop::collection::vec(some_command(), 1..60)) {
        let mut rig = rig();
        for command in [add_user("root"), grant("root", "root"), AuthCommand::Enable] {
            change(&mut rig, command).unwrap();
        }
        let mut naive = Naive::default();
        for command in &commands {
            let before = view(&rig).auth().1;
            let changed = change(&mut rig, command.clone());
            prop_assert_eq!(changed.is_ok(), naive.apply(command), "{:?}: {:?}", command, changed);
            prop_assert!(changed.is_ok() || view(&rig).auth().1 == before);
        }
        let view = view(&rig);
        for name in ["u1", "u2"] {
            for key in KEYS {
                for (writes, need) in
                    [(false, Need::Read(KeyRange::key(key))), (true, Need::Write(KeyRange::key(key)))]
                {
                    let found = view.allows(&user(name), &need).is_ok();
                    prop_assert_eq!(found, naive.allows(name, key, writes), "{} {} {}", name, key, writes);
                }
            }
        }
        let restored = restore(&rig.options, rig.blocks()).unwrap();
        prop_assert_eq!(restored.state_hash(), rig.machine.state_hash());
    }
}

/// The sum that is kept is the sum of what is there.
#[test]
fn what_is_added_and_taken_away_leaves_no_trace_in_the_hash() {
    let mut rig = rig();
    let before = rig.machine.root.auth.hashed();
    assert_eq!(before, crate::machine::hash::Sum::default());
    for command in [add_user("a"), AuthCommand::RoleAdd { name: "r".into() }, grant("a", "r")] {
        change(&mut rig, command).unwrap();
    }
    let mut needs = 0;
    Command::Auth(AuthCommand::Enable).needs(&mut |need| needs += usize::from(need == Need::Administer));
    assert_eq!(needs, 1);
    let mut sum = rig.machine.root.auth.hashed();
    sum.add(rig.machine.root.idempotency.steps().unwrap().hash());
    assert_eq!(rig.machine.root.sum, sum);
}
