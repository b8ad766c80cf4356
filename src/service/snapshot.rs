//! The store as a stream of bytes, for backups: the newest state, written once to the snapshot
//! directory like any other snapshot and read from there, so that a slow download pins nothing.

use super::{Answer, Context, Service, SnapshotStream, fault};
use crate::model::Failure;
use crate::storage::snapshot::SnapshotId;

/// Chunks read ahead of a slow client.
const CHUNKS_AHEAD: usize = 4;

impl Service {
    /// A full image of the store as bytes, ending in its SHA-256. Chunks come through a bounded channel.
    pub async fn snapshot(&self, context: &Context) -> Result<Answer<SnapshotStream>, Failure> {
        self.barrier(context).await?;
        let at = self.inner.parts.consensus.trigger_snapshot(context.timeout).await?;
        let (store, tasks) = (self.inner.parts.snapshots.clone(), self.inner.parts.tasks.clone());
        let id = SnapshotId { index: at.index, term: at.term };
        let opened = tasks.blocking(move || Ok((store.read(id)?.meta().revision, store.raw(id)?))).await;
        let panicked = || Err(crate::model::Fault::Invariant("opening a snapshot panicked".to_owned()));
        let (revision, raw) = opened.unwrap_or_else(panicked).map_err(|problem| fault(&problem))?;
        let length = raw.length();
        let (sender, chunks) = tokio::sync::mpsc::channel(CHUNKS_AHEAD);
        // The reads block; they end with the file, with the client, or, as the channel's other end is
        // dropped with the connection, at shutdown.
        let reads = tasks.clone();
        tasks.spawn("snapshot download", async move {
            let read = move || {
                for chunk in raw {
                    if sender.blocking_send(chunk).is_err() {
                        return;
                    }
                }
            };
            if reads.blocking(read).await.is_none() {
                tracing::error!("reading a snapshot panicked");
            }
        });
        let body = SnapshotStream { revision, length, chunks };
        Ok(self.answer(self.header_at(revision), body, false))
    }
}
