//! Passwords: hashed and compared on the blocking pool, a bounded number at once and waiting.
//!
//! Invariants: no user's password takes all places; it takes as long for a user that does not exist; a
//! password that was found right is remembered only as a keyed hash together with the stored hash it fits,
//! so that a changed password is never taken for the former one; nothing here shows or keeps a password.

use crate::env::{Clock, Entropy, TaskSet};
use crate::model::{Failure, PasswordHash, Rejection, Why, limits};
use argon2::password_hash::SaltString;
use argon2::{Argon2, PasswordHasher, PasswordVerifier};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// As a client gave it.
#[derive(Clone)]
pub struct Password(String);

impl Password {
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

pub(super) struct Passwords {
    tasks: TaskSet,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// How many of these are for one stored hash, or for none.
    waiting_for: Arc<Mutex<BTreeMap<Option<String>, usize>>>,
    /// Of this process.
    key: [u8; 32],
    remembered: Mutex<BTreeMap<[u8; 32], Duration>>,
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passwords").finish_non_exhaustive()
    }
}

/// One of the places that one user's password has.
struct Place {
    of: Arc<Mutex<BTreeMap<Option<String>, usize>>>,
    stored: Option<String>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut of = self.of.lock();
        if let Some(count) = of.get_mut(&self.stored) {
            *count -= 1;
            if *count == 0 {
                of.remove(&self.stored);
            }
        }
    }
}

pub(super) fn random<const N: usize>(entropy: &dyn Entropy) -> [u8; N] {
    let mut bytes = [0; N];
    for part in bytes.chunks_mut(8) {
        part.copy_from_slice(&entropy.next_u64().to_le_bytes()[..part.len()]);
    }
    bytes
}

impl Passwords {
    pub(super) fn new(tasks: TaskSet, clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        Self {
            key: random(&*entropy),
            tasks,
            clock,
            entropy,
            running: Arc::new(Semaphore::new(limits::AUTH_HASHES_AT_ONCE)),
            waiting: Arc::new(Semaphore::new(limits::AUTH_HASHES_WAITING_MAX + limits::AUTH_HASHES_AT_ONCE)),
            waiting_for: Arc::default(),
            remembered: Mutex::new(BTreeMap::new()),
        }
    }

    /// Does `work` when its turn comes; it keeps its place until it has ended, whether or not anybody still waits.
    async fn in_turn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
        let place = self.waiting.clone().try_acquire_owned();
        let place = place.map_err(|_| Failure::not_proposed(Why::Overloaded))?;
        let turn = self.running.clone().acquire_owned().await;
        let turn = turn.map_err(|_| Failure::not_proposed(Why::ShuttingDown))?;
        let done = self.tasks.blocking(move || {
            let done = work();
            drop((turn, place));
            done
        });
        done.await.ok_or_else(|| Failure::Fault("hashing a password panicked".to_owned()))
    }

    fn place(&self, stored: Option<&PasswordHash>) -> Result<Place, Failure> {
        let stored = stored.map(|stored| stored.as_str().to_owned());
        let mut of = self.waiting_for.lock();
        let count = of.entry(stored.clone()).or_default();
        if *count >= limits::AUTH_HASHES_OF_ONE_MAX {
            return Err(Failure::not_proposed(Why::Overloaded));
        }
        *count += 1;
        Ok(Place { of: Arc::clone(&self.waiting_for), stored })
    }

    pub(super) async fn hash(&self, Password(password): Password) -> Result<PasswordHash, Failure> {
        if password.len() > limits::AUTH_PASSWORD_BYTES_MAX {
            let problem = format!("a password has at most {} bytes", limits::AUTH_PASSWORD_BYTES_MAX);
            return Err(Rejection::Invalid { field: "password".to_owned(), problem }.into());
        }
        let salt: [u8; 16] = random(&*self.entropy);
        let hashed = self.in_turn(move || hash(&password, &salt)).await?;
        hashed.map(PasswordHash::new).ok_or_else(|| Failure::Fault("a password could not be hashed".to_owned()))
    }

    /// Whether the hash is of this password; never if there is none.
    pub(super) async fn verify(&self, password: &Password, stored: Option<PasswordHash>) -> Result<bool, Failure> {
        let password = password.0.clone();
        if password.len() > limits::AUTH_PASSWORD_BYTES_MAX {
            return Ok(false);
        }
        let salt: [u8; 16] = random(&*self.entropy);
        let place = self.place(stored.as_ref())?;
        let compare = move || {
            let same = match stored {
                Some(stored) => verify(&password, stored.as_str()),
                // As much work, for nothing.
                None => hash(&password, &salt).is_none(),
            };
            drop(place);
            same
        };
        self.in_turn(compare).await
    }

    /// As `verify`, but for some time only once.
    pub(super) async fn remembered_or_verified(
        &self,
        password: &str,
        stored: Option<PasswordHash>,
    ) -> Result<bool, Failure> {
        let Some(known) = &stored else { return self.verify(&Password::new(password.to_owned()), None).await };
        let digest = Sha256::new().chain_update(self.key).chain_update(known.as_str()).chain_update([0]);
        let mark: [u8; 32] = digest.chain_update(password).finalize().into();
        let now = self.clock.monotonic();
        if self.remembered.lock().get(&mark).is_some_and(|until| *until > now) {
            return Ok(true);
        }
        let same = self.verify(&Password::new(password.to_owned()), stored).await?;
        if same {
            self.remember(mark);
        }
        Ok(same)
    }

    fn remember(&self, mark: [u8; 32]) {
        let now = self.clock.monotonic();
        let mut remembered = self.remembered.lock();
        if remembered.len() >= limits::AUTH_REMEMBERED_MAX {
            remembered.retain(|_, until| *until > now);
        }
        if remembered.len() >= limits::AUTH_REMEMBERED_MAX {
            // Any: it is hashed again at its next use.
            remembered.pop_first();
        }
        remembered.insert(mark, now + Duration::from_secs(limits::AUTH_REMEMBERED_S));
    }
}

fn hash(password: &str, salt: &[u8; 16]) -> Option<String> {
    let salt = SaltString::encode_b64(salt).ok()?;
    Some(Argon2::default().hash_password(password.as_bytes(), &salt).ok()?.to_string())
}

fn verify(password: &str, stored: &str) -> bool {
    let parsed = argon2::PasswordHash::new(stored);
    parsed.is_ok_and(|stored| Argon2::default().verify_password(password.as_bytes(), &stored).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::{ManualClock, SeededEntropy};

    fn passwords(clock: &Arc<ManualClock>) -> Passwords {
        Passwords::new(TaskSet::new(), clock.clone(), Arc::new(SeededEntropy::new(1)))
    }

    fn is_overloaded<T>(result: &Result<T, Failure>) -> bool {
        matches!(result, Err(Failure::Unavailable { why: Why::Overloaded, .. }))
    }

    #[tokio::test]
    async fn a_password_fits_its_own_hash_only_and_no_hash_fits_nothing() {
        let passwords = passwords(&Arc::new(ManualClock::new(0)));
        let (one, other) = (Password::new("one".into()), Password::new("other".into()));
        let hashed = passwords.hash(one.clone()).await.unwrap();
        assert!(!hashed.as_str().contains("one"));
        assert_ne!(passwords.hash(one.clone()).await.unwrap(), hashed, "salted");
        assert!(passwords.verify(&one, Some(hashed.clone())).await.unwrap());
        assert!(!passwords.verify(&other, Some(hashed)).await.unwrap());
        assert!(!passwords.verify(&one, None).await.unwrap());
        assert!(!passwords.verify(&one, Some(PasswordHash::new("nonsense".into()))).await.unwrap());
        assert!(passwords.hash(Password::new("x".repeat(1025))).await.is_err());
    }

    #[tokio::test]
    async fn one_user_never_takes_all_places() {
        let passwords = passwords(&Arc::new(ManualClock::new(0)));
        let (one, other) = (Password::new("one".into()), Password::new("other".into()));
        let (ann, bob) = (passwords.hash(one.clone()).await.unwrap(), passwords.hash(other.clone()).await.unwrap());
        let held: Vec<Place> = (0..limits::AUTH_HASHES_OF_ONE_MAX)
            .map(|_| passwords.place(Some(&ann)).unwrap_or_else(|_| panic!()))
            .collect();
        assert!(is_overloaded(&passwords.verify(&one, Some(ann.clone())).await));
        assert!(passwords.verify(&other, Some(bob)).await.unwrap());
        assert!(!passwords.verify(&one, None).await.unwrap());
        drop(held);
        assert!(passwords.verify(&one, Some(ann)).await.unwrap());
        assert!(passwords.waiting_for.lock().is_empty(), "no place is kept");
    }

    #[tokio::test]
    async fn what_is_remembered_ends_with_the_password_and_with_time() {
        let clock = Arc::new(ManualClock::new(0));
        let passwords = passwords(&clock);
        let hashed = passwords.hash(Password::new("one".into())).await.unwrap();
        let asked = async |stored: &PasswordHash| {
            // With no place to wait, only what is remembered is answered.
            let places = passwords.waiting.clone().try_acquire_many_owned(65).unwrap();
            let answer = passwords.remembered_or_verified("one", Some(stored.clone())).await;
            drop(places);
            answer
        };
        assert!(is_overloaded(&asked(&hashed).await));
        assert!(passwords.remembered_or_verified("one", Some(hashed.clone())).await.unwrap());
        assert!(asked(&hashed).await.unwrap());
        let changed = passwords.hash(Password::new("two".into())).await.unwrap();
        assert!(is_overloaded(&asked(&changed).await), "another hash is another question");
        assert!(!passwords.remembered_or_verified("one", Some(changed)).await.unwrap());
        clock.advance(Duration::from_secs(limits::AUTH_REMEMBERED_S));
        assert!(is_overloaded(&asked(&hashed).await));
    }
}
