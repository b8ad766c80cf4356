//! A backup put in the place of a running cluster's state.
//!
//! Its file is staged on every voter, and loaded there for trial, under its digest; then one log entry that
//! names the digest activates it: each member, as it applies that entry, goes on with the backup's state.
//! A member that applies the entry without having the file asks the others for it, and waits. Invariants:
//! what does not load on every voter is not activated; a staged file stays for as long as the entry may
//! be applied again at a restart.

use super::apply::Applier;
use super::consensus::Consensus;
use super::network::{Call, Lane, Peer};
use super::snapshots::{Restored, Snapshots, Stored};
use super::transfer::{self, Purpose};
use super::types::{LogBatch, MemberId};
use crate::model::{Batch, Caller, Command, Failure, Fault, Outcome, Proposal, Rejection, Reply, Revision, Why, codec};
use crate::storage::snapshot::VerifiedImport;
use futures_util::future::join_all;
use openraft::errors::RaftError;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A backup is sent to a member, checked and loaded there in this time.
const STAGE: Duration = Duration::from_secs(600);
/// A state that was loaded for trial and not activated in this time is dropped; its file stays.
const PREPARED: Duration = Duration::from_secs(120);
/// Before members are asked again for a file that an entry names.
const ASK_PAUSE: Duration = Duration::from_millis(500);

pub(super) type Digest = [u8; 32];

/// What is staged here.
#[derive(Debug)]
pub(super) struct Staging {
    /// A file that an entry names and that is not here.
    wanted: watch::Sender<Option<Digest>>,
    /// Which entry activated a file.
    activated: Mutex<BTreeMap<Digest, u64>>,
}

impl Default for Staging {
    fn default() -> Self {
        Self { wanted: watch::Sender::new(None), activated: Mutex::default() }
    }
}

impl Snapshots {
    /// Loads a staged file into a machine beside the present one. False if it is not here.
    pub(super) async fn prepare(self: &Arc<Self>, applier: &Arc<Applier>, digest: Digest) -> Result<bool, Fault> {
        if applier.is_prepared(&digest) {
            return Ok(true);
        }
        let (this, applier) = (self.clone(), applier.clone());
        self.blocking(move || {
            let Some(reader) = this.store().read_staged(&digest)? else { return Ok(false) };
            applier.prepare(digest, this.load(reader, this.new_store()?)?);
            Ok(true)
        })
        .await
    }

    /// Waits until the file that an entry names is here and loaded.
    pub(super) async fn prepare_for_apply(
        self: &Arc<Self>,
        applier: &Arc<Applier>,
        digest: Digest,
    ) -> Result<(), Fault> {
        while !self.prepare(applier, digest).await? {
            self.staging().wanted.send_replace(Some(digest));
            tokio::time::sleep(ASK_PAUSE).await;
        }
        self.staging().wanted.send_replace(None);
        Ok(())
    }

    pub(super) fn note_activated(&self, digest: Digest, index: u64) {
        self.staging().activated.lock().insert(digest, index);
    }

    /// The log up to here is purged: what its entries named is not needed any more.
    pub(super) async fn unstage(&self, purged: u64) {
        let old: Vec<Digest> = {
            let mut activated = self.staging().activated.lock();
            let old = activated.iter().filter(|(_, index)| **index <= purged).map(|(digest, _)| *digest).collect();
            activated.retain(|_, index| *index > purged);
            old
        };
        if !old.is_empty() {
            self.unstage_where(move |digest| old.contains(digest)).await;
        }
    }

    async fn unstage_where(&self, unwanted: impl Fn(&Digest) -> bool + Send + 'static) {
        let store = self.store().clone();
        if let Err(fault) = self.blocking(move || store.unstage(unwanted)).await {
            tracing::warn!(%fault, "a staged backup could not be removed");
        }
    }
}

fn bad(fault: Fault) -> Failure {
    match fault {
        Fault::Corrupt { .. } => Rejection::BadSnapshot(fault.to_string()).into(),
        Fault::Invariant(why) => Rejection::BadSnapshot(why).into(),
        fault @ Fault::Io { .. } => fault.into(),
    }
}

impl Consensus {
    /// Stages a backup on this member and on all the others; on each it is loaded for trial.
    ///
    /// # Errors
    /// If it does not load, or a voter cannot take it.
    pub async fn stage(&self, import: VerifiedImport) -> Result<[u8; 32], Failure> {
        let (digest, bytes) = (import.summary().digest, import.summary().file_bytes);
        self.stage_here(import).await?;
        let (own, voters) = (self.link().id, self.voters());
        let others = self.members().into_iter().filter(|(id, _)| *id != own);
        let voters = &voters;
        let sent = others.map(|(id, member)| async move {
            let name = member.name.clone();
            let staged = self.send_staged_to(Peer { id, member }, (digest, bytes)).await;
            match staged {
                Ok(()) => Ok(()),
                Err(Failure::Rejected(rejection)) => Err(rejection.into()),
                // A learner, or one that is away, asks for it when it comes to the entry.
                Err(failure) if !voters.contains(&id) => {
                    tracing::warn!(member = name, %failure, "the backup is not staged on this learner");
                    Ok(())
                }
                Err(failure) => {
                    tracing::warn!(member = name, %failure, "the backup could not be staged");
                    Err(Failure::not_proposed(Why::NotStaged))
                }
            }
        });
        join_all(sent).await.into_iter().collect::<Result<(), Failure>>()?;
        Ok(digest)
    }

    pub(super) async fn stage_here(&self, import: VerifiedImport) -> Result<(), Failure> {
        let (snapshots, applier) = (self.snapshots().clone(), self.link().applier.clone());
        let digest = import.summary().digest;
        let kept: Vec<Digest> = snapshots.staging().activated.lock().keys().copied().collect();
        snapshots.unstage_where(move |staged| *staged != digest && !kept.contains(staged)).await;
        snapshots.blocking(move || import.stage()).await?;
        match snapshots.prepare(&applier, digest).await {
            Ok(_) => {}
            Err(fault) => {
                snapshots.unstage_where(move |staged| *staged == digest).await;
                return Err(bad(fault));
            }
        }
        self.tasks().spawn_until_stop("staged backup", async move {
            tokio::time::sleep(PREPARED).await;
            applier.forget_prepared(&digest);
        });
        Ok(())
    }

    async fn send_staged_to(&self, peer: Peer, (digest, bytes): (Digest, u64)) -> Result<(), Failure> {
        let stored = Stored::Staged { digest, bytes, snapshots: self.snapshots().clone() };
        let what = (super::network::Meta::default(), stored);
        let sent = transfer::send::<Result<(), Failure>>(&*self.link().transport, peer, Purpose::Stage, what, STAGE);
        match tokio::time::timeout(STAGE, sent).await {
            Ok(Ok(staged)) => staged,
            Ok(Err(error)) => Err(Failure::Fault(error.to_string())),
            Err(_) => Err(Failure::not_proposed(Why::Timeout)),
        }
    }

    /// Sends a staged backup to a member that lacks it.
    pub(super) async fn send_staged(&self, to: MemberId, digest: Digest) -> Result<bool, Failure> {
        let store = self.snapshots().store().clone();
        let raw = self.snapshots().blocking(move || store.raw_staged(&digest)).await?;
        let (Some(raw), Some(member)) = (raw, self.member(to)) else { return Ok(false) };
        self.send_staged_to(Peer { id: to, member }, (digest, raw.length())).await.map(|()| true)
    }

    /// Asks the others for files that an entry names and that are not here. Until Raft ends.
    pub(super) async fn fetch_staged(self) {
        let mut wanted = self.snapshots().staging().wanted.subscribe();
        loop {
            let digest = *wanted.borrow_and_update();
            if let Some(digest) = digest {
                let own = self.link().id;
                let members = self.members().into_iter().filter(|(id, _)| *id != own);
                for (id, member) in members {
                    let name = member.name.clone();
                    let call = Call::SendStaged { to: own, digest };
                    let asked = self.link().call(Peer { id, member }, Lane::Snapshot, &call, STAGE).await;
                    match asked {
                        Ok(Ok(true)) => break,
                        Ok(Ok(false)) | Err(_) => {}
                        Ok(Err::<bool, Failure>(failure)) => {
                            tracing::warn!(member = name, %failure, "a restored backup is not here yet");
                        }
                    }
                }
                tokio::time::sleep(ASK_PAUSE).await;
            } else if wanted.changed().await.is_err() {
                return;
            }
        }
    }

    /// Puts a staged backup in the place of the state, on all members; gives the new revision. For the leader.
    ///
    /// # Errors
    /// If this member does not lead; unknown if it is not known whether it was done.
    pub async fn activate(&self, digest: [u8; 32], wall_ms: u64) -> Result<Revision, Failure> {
        self.ensure_writable()?;
        let command = Command::Restore { digest };
        let proposals = vec![Proposal { caller: Caller::System, idempotency: None, command }];
        let proposed_at_ms = self.link().applier.progress().now_ms;
        let bytes = codec::encode(&Batch { proposed_at_ms, wall_ms, proposals })?;
        // By itself, not through the batcher: nothing else is in its entry.
        let write = self.raft().client_write(LogBatch { bytes: bytes.into() });
        let unknown = |why| Failure::Unavailable { why, outcome: Outcome::Unknown };
        let written = tokio::time::timeout(STAGE, write).await.map_err(|_| unknown(Why::Timeout))?;
        let outcomes = match written {
            Ok(written) => written.data.0,
            Err(RaftError::APIError(openraft::errors::ClientWriteError::ForwardToLeader(_))) => {
                return Err(Failure::not_proposed(Why::NoLeader));
            }
            Err(_) => return Err(unknown(Why::NoLeader)),
        };
        match outcomes.into_iter().next().map(|outcome| outcome.result) {
            Some(Ok(Reply::Restored { revision })) => Ok(revision),
            other => Err(Failure::Fault(format!("a restore was answered with {other:?}"))),
        }
    }
}

/// The backup that a batch puts in the place of the state. Such a command stands alone.
pub(super) fn restores(batch: &Batch) -> Option<Digest> {
    match batch.proposals.as_slice() {
        [Proposal { command: Command::Restore { digest }, .. }] => Some(*digest),
        _ => None,
    }
}

/// A machine beside the present one.
pub(super) type Prepared = Option<(Digest, Restored)>;
