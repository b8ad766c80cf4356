//! How a member whose state differs from the others' comes by theirs, without a restart.
//!
//! It stops applying where it is, asks a sound peer for a snapshot of at least that entry, applies its
//! own log up to exactly the snapshot's, and puts the snapshot's state in the place of its own there. Its
//! log, vote and identity stay: they were never in doubt. Invariants: nothing is served from the first
//! verdict to a comparison that finds the new state right, also over a restart; of its own snapshots
//! those after the last agreed entry are discarded, once the peer's is on this disk.

use super::consensus::Consensus;
use super::divergence::Standing;
use super::link::millis;
use super::network::{Call, Lane, Peer};
use super::snapshots::Restored;
use super::transfer::{self, Purpose};
use super::types::MemberId;
use crate::model::{Failure, Fault, Why};
use crate::storage::snapshot::VerifiedImport;
use std::time::Duration;

/// Before a peer is asked again.
const ASK_PAUSE: Duration = Duration::from_secs(1);
/// A peer's snapshot is written, sent, checked and loaded in this time, or asked for again.
const IMAGE: Duration = Duration::from_secs(600);

impl Consensus {
    /// Rebuilds this member's state whenever it is outvoted. Until Raft ends.
    pub(super) async fn repair(self) {
        let mut standing = self.link().agreement.watch();
        loop {
            let now = *standing.borrow_and_update();
            match now {
                Standing::Outvoted => {
                    if let Err(why) = self.rebuild().await {
                        tracing::warn!("this member's state is not rebuilt yet: {why}");
                        tokio::time::sleep(ASK_PAUSE).await;
                    }
                    continue;
                }
                Standing::Sound => self.snapshots().suspect(false).await,
                Standing::Undecided | Standing::Rebuilt => {}
            }
            if standing.changed().await.is_err() {
                return;
            }
        }
    }

    async fn rebuild(&self) -> Result<(), String> {
        self.snapshots().suspect(true).await;
        if self.link().leads() {
            self.hand_over().await;
            if self.link().leads() {
                return Err("no other voter takes the lead from it".to_owned());
            }
        }
        let at_least = self.link().applier.hold();
        let mut problems = Vec::new();
        let known = self.link().agreement.known();
        for id in known.sound.into_iter().filter(|id| *id != self.link().id) {
            let Some(member) = self.member(id) else { continue };
            let name = member.name.clone();
            let call = Call::SendImage { to: self.link().id, at_least, remaining_ms: millis(IMAGE) };
            let asked = self.link().call(Peer { id, member }, Lane::Snapshot, &call, IMAGE).await;
            match asked {
                Ok(Ok(())) => return Ok(()),
                Ok(Err::<(), Failure>(failure)) => problems.push(format!("{name}: {failure}")),
                Err(error) => problems.push(format!("{name}: {error}")),
            }
        }
        Err(problems.join("; "))
    }

    /// Sends a snapshot of at least that entry to a member whose state is to be rebuilt.
    pub(super) async fn send_image(&self, to: MemberId, at_least: u64, within: Duration) -> Result<(), Failure> {
        if self.standing() != Standing::Sound {
            return Err(Failure::not_proposed(Why::Diverged));
        }
        let Some(member) = self.member(to) else {
            return Err(Failure::Fault(format!("there is no member {to:x}")));
        };
        let sending = async {
            self.link().applied(at_least).await?;
            self.trigger_snapshot(within).await?;
            let Some(snapshot) = self.snapshots().current() else {
                return Err(Failure::not_proposed(Why::NotReady));
            };
            let what = (snapshot.meta, snapshot.snapshot);
            let transport = &*self.link().transport;
            let sent = transfer::send::<()>(transport, Peer { id: to, member }, Purpose::Repair, what, within).await;
            sent.map_err(|error| Failure::Fault(error.to_string()))
        };
        tokio::time::timeout(within, sending).await.unwrap_or(Err(Failure::not_proposed(Why::Timeout)))
    }

    /// Takes over a sound peer's state.
    pub(super) async fn take_image(&self, import: Box<VerifiedImport>) -> Result<(), Fault> {
        let (applier, snapshots) = (self.link().applier.clone(), self.snapshots().clone());
        let at = import.summary().meta.last;
        let loading = snapshots.clone();
        let (restored, local, import) = snapshots
            .blocking(move || {
                let (restored, local) =
                    loading.restore(import.summary().clone(), import.read()?, loading.new_store()?)?;
                Ok((restored, local, import))
            })
            .await?;
        applier.allow_up_to(at.index);
        let mut progress = applier.watch();
        if progress.wait_for(|progress| progress.covers(at.index)).await.is_err() {
            return Err(Fault::Invariant("this member is ending".into()));
        }
        let agreed = self.link().agreement.known().agreed;
        let publishing = snapshots.clone();
        let replaced = snapshots
            .blocking(move || {
                let Restored { machine, store } = restored;
                if !applier.replace_at(at, Restored { machine, store }) {
                    return Ok(false);
                }
                import.publish()?;
                publishing.store().discard(|id| id.index > agreed && id.index != at.index)?;
                publishing.published(local);
                applier.allow_all();
                Ok(true)
            })
            .await?;
        if !replaced {
            return Err(Fault::Invariant(format!("this member has gone past entry {}", at.index)));
        }
        tracing::info!(at = at.index, agreed, "this member has a peer's state now");
        self.link().agreement.rebuilt();
        Ok(())
    }
}
