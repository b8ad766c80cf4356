//! Who asks: tokens and passwords become callers; users, roles and tokens are changed by proposals.
//!
//! Invariants: what a caller may do is decided by `machine`, never here; a password leaves this module
//! only as a salted hash, a token only towards who authenticated; hashing happens on the blocking pool,
//! a bounded number at once; whatever a member lags behind, a token or password that counts is found
//! behind a read barrier before it is refused.

mod keeper;
mod password;

pub use keeper::run;
pub use password::Password;

use super::{Answer, Context, ReadOptions, Service};
use crate::machine::{AUTH_FEATURE_LEVEL, Credentials, TokenInfo};
use crate::model::{
    AuthCommand, AuthRefusal, Caller, Command, Failure, KeyRange, Need, Outcome, PasswordHash, Permission, Rejection,
    Reply, TokenHash, Why, limits,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use password::Passwords;
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// For what is asked of the cluster before a request itself is looked at.
const AUTHENTICATE: Duration = Duration::from_secs(5);
/// How often a password is checked again because it was changed meanwhile.
const ISSUE_ATTEMPTS: usize = 4;
/// How long a member may take to say which release it is of.
const ABOUT: Duration = Duration::from_millis(500);
/// The first release that knows users.
const SINCE_RELEASE: [u64; 3] = [0, 1, 0];

/// What a request shows of who sent it.
#[derive(Clone, Copy)]
pub enum Shown<'a> {
    Nothing,
    Token(&'a str),
    Password { user: &'a str, password: &'a str },
}

impl std::fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Token(_) => "Token(…)",
            Self::Password { .. } => "Password(…)",
        })
    }
}

/// What an operation takes before it is looked at more closely: what it does to keys is checked where it does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admits {
    Anybody,
    /// Any user.
    Users,
    /// The role root.
    Root,
    /// The role root, as far as this member knows: for what is this member's alone, and must work without a leader.
    RootHere,
}

/// A token as its client gets it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    #[must_use]
    pub fn into_text(self) -> String {
        self.0
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Whether authentication is on, and the revision of users and roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuthStatus {
    pub enabled: bool,
    pub auth_revision: i64,
}

/// What the service keeps for all this.
#[derive(Debug)]
pub(super) struct Auth {
    passwords: Passwords,
    token_ttl: Duration,
    /// Log time as it was applied last, and when that was.
    log_time: Mutex<(u64, Duration)>,
    /// Of the state applied here; streams look at their rights again when it changes.
    changes: watch::Sender<AuthStatus>,
    used: mpsc::Sender<TokenHash>,
    /// For the keeper, once.
    using: Mutex<Option<mpsc::Receiver<TokenHash>>>,
}

impl Auth {
    pub(super) fn new(parts: &super::Parts, token_ttl: Duration) -> Self {
        let (used, using) = mpsc::channel(limits::AUTH_RENEWALS_MAX);
        let passwords = Passwords::new(parts.tasks.clone(), parts.clock.clone(), parts.entropy.clone());
        let changes = watch::channel(AuthStatus { enabled: false, auth_revision: 0 }).0;
        let log_time = Mutex::new((0, parts.clock.monotonic()));
        Self { passwords, token_ttl, log_time, changes, used, using: Mutex::new(Some(using)) }
    }
}

/// The order of versions, as far as their numbers go.
fn knows_users(version: &str) -> bool {
    let parts = version.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    parts.take(SINCE_RELEASE.len()).collect::<Vec<u64>>() >= SINCE_RELEASE.to_vec()
}

fn hash_of(token: &str) -> TokenHash {
    TokenHash::new(Sha256::digest(token.as_bytes()).into())
}

fn refused<T>(refusal: AuthRefusal) -> Result<T, Failure> {
    Err(refusal.into())
}

/// Who asks.
impl Service {
    fn auth_status_here(&self) -> AuthStatus {
        let (enabled, auth_revision) = self.newest().auth();
        AuthStatus { enabled, auth_revision }
    }

    /// As far as this member knows.
    #[must_use]
    pub fn is_auth_enabled(&self) -> bool {
        self.auth_status_here().enabled
    }

    /// Changes whenever users, roles or authentication as a whole do, in the state applied here.
    pub(super) fn auth_changes(&self) -> watch::Receiver<AuthStatus> {
        self.inner.auth.changes.subscribe()
    }

    /// Whose request this is. While authentication is off, everybody is `Anonymous`.
    ///
    /// # Errors
    /// `InvalidToken` or `Failed`: what was shown does not count.
    pub async fn caller(&self, shown: Shown<'_>) -> Result<Caller, Failure> {
        match shown {
            Shown::Nothing => Ok(Caller::Anonymous),
            Shown::Token(_) | Shown::Password { .. } if !self.may_be_enabled().await => Ok(Caller::Anonymous),
            Shown::Token(token) => self.by_token(token).await,
            Shown::Password { user, password } => self.by_password(user, password).await,
        }
    }

    /// Whoever shows something got it somewhere: perhaps this member has not heard of it yet.
    async fn may_be_enabled(&self) -> bool {
        if !self.auth_status_here().enabled && self.leader_id().is_some() {
            self.barrier(&Context::system(AUTHENTICATE)).await.ok();
        }
        self.auth_status_here().enabled
    }

    async fn by_token(&self, token: &str) -> Result<Caller, Failure> {
        let hash = hash_of(token);
        let found = match self.newest().token(&hash) {
            Some(found) => Some(found),
            None => {
                self.barrier(&Context::system(AUTHENTICATE)).await?;
                self.newest().token(&hash)
            }
        };
        let Some(token) = found else { return refused(AuthRefusal::InvalidToken) };
        if self.is_half_over(&token) {
            // When the queue is full, the next use asks again.
            self.inner.auth.used.try_send(hash).ok();
        }
        Ok(token.caller)
    }

    /// Log time stands still while nothing is written; about what it would be now.
    fn log_time_now_ms(&self) -> u64 {
        let (ms, at) = *self.inner.auth.log_time.lock();
        ms.saturating_add(super::millis(self.inner.parts.clock.monotonic().saturating_sub(at)))
    }

    fn is_half_over(&self, token: &TokenInfo) -> bool {
        token.ends_ms.saturating_sub(self.log_time_now_ms()) < token.ttl_ms / 2
    }

    async fn by_password(&self, name: &str, password: &str) -> Result<Caller, Failure> {
        let here = self.newest().credentials(name);
        if let Some(since) = self.matches(here.as_ref(), password).await? {
            return Ok(Caller::User { name: name.to_owned(), auth_revision: since });
        }
        self.barrier(&Context::system(AUTHENTICATE)).await?;
        let now = self.newest().credentials(name);
        if now != here
            && let Some(since) = self.matches(now.as_ref(), password).await?
        {
            return Ok(Caller::User { name: name.to_owned(), auth_revision: since });
        }
        refused(AuthRefusal::Failed)
    }

    /// Since when the password is the user's, if it is. It takes as long for nobody's.
    async fn matches(&self, credentials: Option<&Credentials>, password: &str) -> Result<Option<i64>, Failure> {
        let hash = credentials.and_then(|credentials| credentials.password.clone());
        let same = self.inner.auth.passwords.remembered_or_verified(password, hash).await?;
        Ok(credentials.filter(|_| same).map(|credentials| credentials.since))
    }

    /// Whether the caller may ask for such an operation at all.
    ///
    /// # Errors
    /// As `View::allows`.
    pub async fn admit_caller(&self, caller: &Caller, admits: Admits, timeout: Duration) -> Result<(), Failure> {
        let need = match admits {
            Admits::Anybody => return Ok(()),
            Admits::Users => Need::Grant,
            Admits::Root => {
                // Without a leader and without authentication, the operation itself says what is missing.
                if self.auth_status_here().enabled || self.leader_id().is_some() {
                    let confirmed = self.barrier(&Context::system(timeout)).await;
                    if self.auth_status_here().enabled {
                        confirmed?;
                    }
                }
                Need::Administer
            }
            Admits::RootHere => Need::Administer,
        };
        Ok(self.newest().allows(caller, &need)?)
    }
}

/// What etcd's clients ask of users and roles.
impl Service {
    /// Whether the caller has a right, as far as this member knows.
    ///
    /// # Errors
    /// As `View::allows`.
    pub fn may(&self, context: &Context, need: &Need) -> Result<(), Failure> {
        Ok(self.newest().allows(&context.caller, need)?)
    }

    pub async fn auth_status(&self, context: &Context) -> Result<Answer<AuthStatus>, Failure> {
        let (header, view) = self.view(context, ReadOptions::default()).await?;
        view.allows(&context.caller, &Need::Administer)?;
        let (enabled, auth_revision) = view.auth();
        Ok(self.answer(header, AuthStatus { enabled, auth_revision }, false))
    }

    /// The roles of a user, for the user and for root.
    pub async fn user(&self, context: &Context, name: &str) -> Result<Answer<Vec<String>>, Failure> {
        let (header, view) = self.view(context, ReadOptions::default()).await?;
        Ok(self.answer(header, view.user(&context.caller, name)?, false))
    }

    pub async fn users(&self, context: &Context) -> Result<Answer<Vec<String>>, Failure> {
        let (header, view) = self.view(context, ReadOptions::default()).await?;
        Ok(self.answer(header, view.users(&context.caller)?, false))
    }

    /// The permissions of a role, for who has it and for root; `None` for `root`, which has all.
    pub async fn role(&self, context: &Context, name: &str) -> Result<Answer<Option<Vec<Permission>>>, Failure> {
        let (header, view) = self.view(context, ReadOptions::default()).await?;
        Ok(self.answer(header, view.role(&context.caller, name)?, false))
    }

    pub async fn roles(&self, context: &Context) -> Result<Answer<Vec<String>>, Failure> {
        let (header, view) = self.view(context, ReadOptions::default()).await?;
        Ok(self.answer(header, view.roles(&context.caller)?, false))
    }

    pub async fn auth_enable(&self, context: &Context) -> Result<Answer<i64>, Failure> {
        self.change_auth(context, AuthCommand::Enable).await
    }

    pub async fn auth_disable(&self, context: &Context) -> Result<Answer<i64>, Failure> {
        self.change_auth(context, AuthCommand::Disable).await
    }

    /// Without a password nobody can authenticate as this user by one.
    pub async fn user_add(
        &self,
        context: &Context,
        name: String,
        password: Option<Password>,
    ) -> Result<Answer<i64>, Failure> {
        let password = match password {
            Some(password) => Some(self.hashed(context, password).await?),
            None => None,
        };
        self.change_auth(context, AuthCommand::UserAdd { name, password }).await
    }

    pub async fn user_password(
        &self,
        context: &Context,
        name: String,
        password: Password,
    ) -> Result<Answer<i64>, Failure> {
        let password = self.hashed(context, password).await?;
        self.change_auth(context, AuthCommand::UserPassword { name, password }).await
    }

    pub async fn user_delete(&self, context: &Context, name: String) -> Result<Answer<i64>, Failure> {
        self.change_auth(context, AuthCommand::UserDelete { name }).await
    }

    pub async fn user_grant(&self, context: &Context, user: String, role: String) -> Result<Answer<i64>, Failure> {
        self.change_auth(context, AuthCommand::UserGrant { user, role }).await
    }

    pub async fn user_revoke(&self, context: &Context, user: String, role: String) -> Result<Answer<i64>, Failure> {
        self.change_auth(context, AuthCommand::UserRevoke { user, role }).await
    }

    pub async fn role_add(&self, context: &Context, name: String) -> Result<Answer<i64>, Failure> {
        self.change_auth(context, AuthCommand::RoleAdd { name }).await
    }

    pub async fn role_delete(&self, context: &Context, name: String) -> Result<Answer<i64>, Failure> {
        self.change_auth(context, AuthCommand::RoleDelete { name }).await
    }

    pub async fn role_grant(
        &self,
        context: &Context,
        role: String,
        permission: Permission,
    ) -> Result<Answer<i64>, Failure> {
        self.change_auth(context, AuthCommand::RoleGrant { role, permission }).await
    }

    pub async fn role_revoke(&self, context: &Context, role: String, range: KeyRange) -> Result<Answer<i64>, Failure> {
        self.change_auth(context, AuthCommand::RoleRevoke { role, range }).await
    }

    /// A hash costs time: nobody gets it who may not change users anyway.
    async fn hashed(&self, context: &Context, password: Password) -> Result<PasswordHash, Failure> {
        self.newest().allows(&context.caller, &Need::Administer)?;
        self.inner.auth.passwords.hash(password).await
    }

    /// Answers the revision of users and roles.
    async fn change_auth(&self, context: &Context, command: AuthCommand) -> Result<Answer<i64>, Failure> {
        let command = Command::Auth(command);
        crate::machine::validate(&command)?;
        self.ensure_all_know_users(context).await?;
        let answer = self.propose(context, command, None).await?;
        match answer.body {
            Reply::Auth { auth_revision, .. } => Ok(self.answer(answer.header, auth_revision, false)),
            other => Err(Failure::Fault(format!("a change of users was answered with {other:?}"))),
        }
    }

    /// A member of a release that knows no users could not follow the log any more.
    async fn ensure_all_know_users(&self, context: &Context) -> Result<(), Failure> {
        if self.newest().feature_level() >= AUTH_FEATURE_LEVEL {
            return Ok(());
        }
        self.newest().allows(&context.caller, &Need::Administer)?;
        let consensus = &self.inner.parts.consensus;
        let about = consensus.about_members(ABOUT).await;
        for (id, member) in consensus.members() {
            let problem = match about.get(&id) {
                None => "does not answer",
                Some(about) if !knows_users(&about.version) => "is of a release without users",
                Some(_) => continue,
            };
            let problem = format!("member {} {problem}: all members must know users before there are any", member.name);
            return Err(Rejection::Invalid { field: "feature_level".to_owned(), problem }.into());
        }
        let raise = Command::RaiseFeatureLevel { level: AUTH_FEATURE_LEVEL };
        self.propose(&Context::system(context.timeout), raise, None).await.map(|_| ())
    }

    /// A token for a user, against the password.
    ///
    /// # Errors
    /// `NotEnabled`; `Failed`, whether it is the user or the password that is wrong.
    pub async fn authenticate(
        &self,
        context: &Context,
        name: String,
        password: Password,
    ) -> Result<Answer<Token>, Failure> {
        for _ in 0..ISSUE_ATTEMPTS {
            self.barrier(context).await?;
            let view = self.newest();
            if !view.auth().0 {
                return refused(AuthRefusal::NotEnabled);
            }
            let credentials = view.credentials(&name);
            drop(view);
            let hash = credentials.as_ref().and_then(|credentials| credentials.password.clone());
            let same = self.inner.auth.passwords.verify(&password, hash).await?;
            let Some(Credentials { since, .. }) = credentials.filter(|_| same) else {
                return refused(AuthRefusal::Failed);
            };
            let token = self.new_token();
            let ttl_ms = super::millis(self.inner.auth.token_ttl);
            let issue = AuthCommand::TokenIssue { hash: hash_of(&token.0), user: name.clone(), since, ttl_ms };
            let system = Context::system(context.timeout);
            match self.propose(&system, Command::Auth(issue), None).await {
                Ok(answer) => return Ok(self.answer(answer.header, token, false)),
                // The password was changed while it was being checked.
                Err(Failure::Rejected(Rejection::Auth(AuthRefusal::OldRevision))) => {}
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::Unavailable { why: Why::Overloaded, outcome: Outcome::NotProposed })
    }

    fn new_token(&self) -> Token {
        let secret: [u8; 32] = password::random(&*self.inner.parts.entropy);
        Token(URL_SAFE_NO_PAD.encode(secret))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_told_apart_by_their_numbers() {
        assert!(knows_users("0.1.0") && knows_users("0.10.0") && knows_users("1.0.0") && knows_users("0.1.0-rc.1"));
        assert!(!knows_users("0.0.9") && !knows_users("") && !knows_users("x"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!(
            "{:?} {:?} {:?} {:?}",
            Token("canary".into()),
            Shown::Token("canary"),
            Shown::Password { user: "u", password: "canary" },
            Password::new("canary".into()),
        );
        assert!(!shown.contains("canary"), "{shown}");
    }
}
