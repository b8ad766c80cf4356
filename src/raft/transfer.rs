//! A snapshot on its way from one member to another: in pieces, and where a broken connection left off.
//!
//! The sender says what it has and by which digest; the receiver answers how much of that file it holds
//! already; the rest follows, and at the end one answer. Invariants: nothing is held but a piece at
//! each end, the file grows on the receiver's disk; what arrived counts only when all of it is there and
//! its digest holds; of files that broke off at most one is kept, and none over a restart.

use super::network::{Lane, Meta, Peer, Transport, TransportError};
use super::snapshots::{Snapshots, Stored};
use super::types::Vote;
use crate::model::{Fault, codec};
use crate::storage::snapshot::{SnapshotImport, VerifiedImport};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// What the receiver is to do with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// A leader's, for a follower that is behind its log. Answered by a `SnapshotResponse`.
    Install(Vote),
    /// For a member whose state was found to differ from the others'. Answered by nothing.
    Repair,
    /// A backup that is to be put in the place of the state later. Answered by `Result<(), Failure>`.
    Stage,
}

/// What a snapshot's stream begins with. The answer is how many bytes of the file are there already.
#[derive(Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) purpose: Purpose,
    pub(crate) meta: Meta,
    pub(crate) digest: [u8; 32],
    pub(crate) bytes: u64,
}

fn broken(fault: Fault) -> TransportError {
    TransportError::Failed(fault.to_string())
}

/// Sends a snapshot of this member's store; gives the receiver's answer.
pub(super) async fn send<T: DeserializeOwned>(
    transport: &dyn Transport,
    peer: Peer,
    purpose: Purpose,
    what: (Meta, Stored),
    timeout: Duration,
) -> Result<T, TransportError> {
    offer(transport, peer, purpose, what, timeout).await?.send().await
}

/// A snapshot that the receiver knows of.
pub(super) struct Offer {
    /// How many bytes of it are there already.
    pub(super) offset: u64,
    bytes: u64,
    tell: oneshot::Sender<u64>,
    answers: Answers,
}

type Answers = BoxStream<'static, Result<Bytes, TransportError>>;

async fn next<T: DeserializeOwned>(answers: &mut Answers) -> Result<T, TransportError> {
    match answers.next().await {
        Some(answer) => codec::decode("peer's answer", &answer?).map_err(broken),
        None => Err(TransportError::Failed("the peer ended the snapshot without an answer".into())),
    }
}

/// Tells the receiver of a snapshot of this member's store. Dropped, it is not sent.
pub(super) async fn offer(
    transport: &dyn Transport,
    peer: Peer,
    purpose: Purpose,
    (meta, stored): (Meta, Stored),
    timeout: Duration,
) -> Result<Offer, TransportError> {
    let Some((digest, bytes)) = stored.digest() else {
        return Err(TransportError::Failed("there is no snapshot to send".into()));
    };
    let head = codec::encode(&Head { purpose, meta, digest, bytes }).map_err(broken)?;
    let (tell, told) = oneshot::channel();
    let pieces = stream::once(told).flat_map(move |offset| match offset {
        Ok(offset) => stored.clone().pieces(offset),
        Err(_) => stream::empty().boxed(),
    });
    let requests = stream::once(std::future::ready(Bytes::from(head))).chain(pieces).boxed();
    let mut answers = transport.stream(peer, Lane::Snapshot, requests, timeout).await?;
    let offset = next(&mut answers).await?;
    Ok(Offer { offset, bytes, tell, answers })
}

impl Offer {
    /// Sends the rest; gives the receiver's answer.
    pub(super) async fn send<T: DeserializeOwned>(self) -> Result<T, TransportError> {
        let Self { offset, bytes, tell, mut answers } = self;
        if offset > 0 {
            tracing::info!(offset, bytes, "a snapshot is sent on from where it broke off");
        }
        // If the stream of requests is gone, its answer says why.
        tell.send(offset).ok();
        next(&mut answers).await
    }
}

/// A file that broke off.
#[derive(Debug)]
pub(super) struct Partial {
    digest: [u8; 32],
    bytes: u64,
    import: SnapshotImport,
}

/// A file that is arriving. Dropped before it is whole, what there is of it is kept for another attempt.
pub(super) struct Spool {
    snapshots: Arc<Snapshots>,
    digest: [u8; 32],
    /// That have arrived.
    pub(super) bytes: u64,
    import: Option<SnapshotImport>,
}

impl Spool {
    fn write(&mut self, piece: &[u8], bytes_max: u64) -> Result<(), Fault> {
        self.bytes += u64::try_from(piece.len()).unwrap_or(u64::MAX);
        let fits = self.bytes <= bytes_max;
        let written = match self.import.as_mut().filter(|_| fits) {
            Some(import) => import.write(piece),
            None => Err(Fault::corrupt("received snapshot", "it is longer than it was said to be")),
        };
        if written.is_err() {
            self.import = None;
        }
        written
    }

    fn verify(mut self) -> Result<VerifiedImport, Fault> {
        let import = self.import.take().ok_or_else(|| Fault::Invariant("a spool without a file".into()))?;
        let verified = import.verify()?;
        if verified.summary().digest == self.digest {
            return Ok(verified);
        }
        Err(Fault::corrupt("received snapshot", "its digest is another than was announced"))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Some(import) = self.import.take().filter(|_| self.bytes > 0) {
            *self.snapshots.partial().lock() = Some(Partial { digest: self.digest, bytes: self.bytes, import });
        }
    }
}

impl Snapshots {
    /// Opens the file that `head` announces, as far as it is here.
    pub(super) async fn spool(self: &Arc<Self>, head: &Head) -> Result<Spool, Fault> {
        let kept = self.partial().lock().take();
        let (digest, snapshots) = (head.digest, self.clone());
        if let Some(Partial { bytes, import, .. }) =
            kept.filter(|kept| kept.digest == digest && kept.bytes <= head.bytes)
        {
            return Ok(Spool { snapshots, digest, bytes, import: Some(import) });
        }
        let store = self.store().clone();
        let import = self.blocking(move || store.import()).await?;
        Ok(Spool { snapshots, digest, bytes: 0, import: Some(import) })
    }

    /// Takes in the rest and verifies all of it; nothing is published yet.
    pub(super) async fn receive(
        self: &Arc<Self>,
        head: &Head,
        mut spool: Spool,
        mut pieces: BoxStream<'static, Bytes>,
    ) -> Result<Box<VerifiedImport>, Fault> {
        let bytes_max = head.bytes;
        while spool.bytes < bytes_max {
            let Some(piece) = pieces.next().await else {
                let detail = format!("it broke off after {} of {bytes_max} bytes, which are kept", spool.bytes);
                return Err(Fault::corrupt("received snapshot", detail));
            };
            spool = self.blocking(move || spool.write(&piece, bytes_max).map(|()| spool)).await?;
        }
        let verified = self.background(move || spool.verify()).await?;
        if !matches!(head.purpose, Purpose::Stage) {
            self.check_received(verified.summary(), head)?;
        }
        Ok(Box::new(verified))
    }
}
