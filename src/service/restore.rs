//! A backup taken in while the cluster runs: spooled to this member's disk, checked, staged on all
//! members, and activated by the leader. What it means for the state is `machine`'s affair.

use super::{Answer, Context, Service, fault, unknown_since};
use crate::env::TaskSet;
use crate::model::{Failure, Fault, Rejection, Revision, Why};
use crate::storage::snapshot::SnapshotImport;
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// How long the members may take to go over to the backup once it is staged on all.
const ACTIVATE: Duration = Duration::from_secs(600);

/// A backup that is arriving; dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct Upload {
    import: SnapshotImport,
    tasks: TaskSet,
    _alone: OwnedSemaphorePermit,
}

async fn blocking<T: Send + 'static>(
    tasks: &TaskSet,
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let panicked = || Err(Fault::Invariant("work on a backup panicked".to_owned()));
    tasks.blocking(work).await.unwrap_or_else(panicked)
}

impl Upload {
    /// # Errors
    /// A fault of the disk.
    pub async fn write(self, chunk: Bytes) -> Result<Self, Failure> {
        let Self { mut import, tasks, _alone } = self;
        let written = blocking(&tasks, move || import.write(&chunk).map(|()| import)).await;
        Ok(Self { import: written.map_err(|problem| fault(&problem))?, tasks, _alone })
    }
}

impl Service {
    /// Begins to take a backup in.
    ///
    /// # Errors
    /// If another is being taken in, or the disk has no room.
    pub async fn begin_restore(&self) -> Result<Upload, Failure> {
        self.ensure_disk_room()?;
        let alone = self.inner.restoring.clone().try_acquire_owned();
        let alone = alone.map_err(|_| Failure::not_proposed(Why::Overloaded))?;
        let (store, tasks) = (self.inner.parts.snapshots.clone(), self.inner.parts.tasks.clone());
        let import = blocking(&tasks, move || store.import()).await.map_err(|problem| fault(&problem))?;
        Ok(Upload { import, tasks, _alone: alone })
    }

    /// Puts the backup in the place of everything, on all members; gives the new revision.
    ///
    /// # Errors
    /// `BadSnapshot` if it is not whole or does not load; if a voter cannot take it; unknown if the
    /// leader's answer was lost.
    pub async fn restore(&self, context: &Context, upload: Upload) -> Result<Answer<Revision>, Failure> {
        let Upload { import, tasks, _alone } = upload;
        let verified = match blocking(&tasks, move || import.verify()).await {
            Ok(verified) => verified,
            Err(problem @ Fault::Corrupt { .. }) => return Err(Rejection::BadSnapshot(problem.to_string()).into()),
            Err(problem) => return Err(fault(&problem)),
        };
        let digest = self.inner.parts.consensus.stage(verified).await?;
        let context = Context { timeout: context.timeout.max(ACTIVATE), ..context.clone() };
        let revision = self.activate(&context, digest).await?;
        self.reached(revision, ACTIVATE).await.map_err(unknown_since)?;
        Ok(self.answer(self.header_at(revision), revision, false))
    }
}
