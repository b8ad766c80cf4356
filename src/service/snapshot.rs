//! The store as a stream of bytes, for backups: the newest state, written once to the snapshot
//! directory like any other snapshot and read from there, so that a slow download pins nothing.

use super::{Answer, Context, Service, SnapshotStream};
use crate::model::{Failure, Fault};
use std::io::Read;

const CHUNK_BYTES: usize = 256 << 10;
/// Chunks read ahead of a slow client.
const CHUNKS_AHEAD: usize = 4;

impl Service {
    /// A full image of the store as bytes, ending in its SHA-256. Chunks come through a bounded channel.
    pub async fn snapshot(&self, context: &Context) -> Result<Answer<SnapshotStream>, Failure> {
        self.barrier(context).await?;
        let taken = self.inner.parts.consensus.snapshot_file().await?;
        let (sender, chunks) = tokio::sync::mpsc::channel(CHUNKS_AHEAD);
        let (tasks, mut file) = (self.inner.parts.tasks.clone(), taken.file);
        let owner = tasks.clone();
        tasks.spawn_until_stop("snapshot-download", async move {
            // The reads are blocking; the thread ends with the file, with the client, or at shutdown.
            owner
                .blocking(move || {
                    loop {
                        let mut chunk = vec![0; CHUNK_BYTES];
                        let read = match file.read(&mut chunk) {
                            Ok(0) => return,
                            Ok(read) => read,
                            Err(error) => {
                                let fault = Fault::io("read the snapshot", &error);
                                if sender.blocking_send(Err(fault)).is_err() {
                                    tracing::debug!("the snapshot's reader is gone");
                                }
                                return;
                            }
                        };
                        chunk.truncate(read);
                        if sender.blocking_send(Ok(chunk.into())).is_err() {
                            return;
                        }
                    }
                })
                .await;
        });
        let header = self.header_at(taken.revision);
        let body = SnapshotStream { revision: taken.revision, size_hint: Some(taken.bytes), chunks };
        Ok(self.answer(header, body, false))
    }
}
