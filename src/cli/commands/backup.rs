//! `snapshot`: a verified download, what is done with the file without a server, and its way back.

use super::transfer::{Target, upload_of};
use crate::cli::args::{SnapshotInspect, SnapshotRestore, SnapshotSave};
use crate::cli::exit::CliError;
use crate::cli::output::{Mode, Out};
use crate::cli::progress::Progress;
use crate::cli::session::Session;
use crate::client::{Body, Method, Request};
use crate::node::restore::{RestoreError, RestoreOptions, inspect as inspect_file, restore_offline};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::path::Path;

const MODES: &[Mode] = &[Mode::Human, Mode::Json, Mode::Ndjson];
const DIGEST_BYTES: usize = 32;

pub(in crate::cli) async fn save(session: &mut Session, args: &SnapshotSave) -> Result<(), CliError> {
    let mode = session.mode.among(MODES)?;
    let mut request = Request::new(Method::Get, "/v1/snapshot").streaming();
    request.save_as = Some(args.file.clone());
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let shown = args.file.display().to_string();
    if !args.force && args.file.exists() {
        return Err(CliError::Failed {
            message: format!("{shown} exists"),
            hint: Some("--force replaces it, once the new backup is complete".to_owned()),
            code: crate::cli::exit::OTHER,
        });
    }
    let mut stream = session.open_stream(&request).await?;
    let revision: Option<i64> = stream.header("tenure-revision").and_then(|text| text.parse().ok());
    let mut target = Target::create(&args.file)?;
    let mut progress = Progress::bytes("saving", stream.content_length());
    let mut trailer = Trailer::default();
    while let Some(chunk) = stream.chunk().await? {
        trailer.take(&chunk);
        target.bytes(&chunk)?;
        progress.add(chunk.len());
    }
    let digest =
        trailer.verified().map_err(|why| CliError::other(format!("the backup is damaged: {why}; nothing was kept")))?;
    let bytes = progress.done();
    drop(progress);
    target.publish()?;
    if mode != Mode::Human {
        return session.out.json(&json!({ "file": shown, "bytes": bytes, "revision": revision, "sha256": digest }));
    }
    let at = revision.map(|revision| format!(", revision {revision}")).unwrap_or_default();
    session.out.line(format!("saved {shown}: {bytes} bytes{at}, sha256 {digest}"))
}

/// Checks that a stream ends with the SHA-256 of everything before it.
#[derive(Debug, Default)]
struct Trailer {
    hasher: Sha256,
    /// The last bytes seen; they may turn out to be the digest.
    held: Vec<u8>,
}

impl Trailer {
    fn take(&mut self, chunk: &[u8]) {
        self.held.extend_from_slice(chunk);
        let body = self.held.len().saturating_sub(DIGEST_BYTES);
        self.hasher.update(&self.held[..body]);
        self.held.drain(..body);
    }

    fn verified(self) -> Result<String, &'static str> {
        if self.held.len() < DIGEST_BYTES {
            return Err("it is shorter than its own checksum");
        }
        let computed = self.hasher.finalize();
        if computed[..] != self.held[..] {
            return Err("its SHA-256 does not match its content");
        }
        Ok(computed.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

pub(in crate::cli) fn inspect(args: &SnapshotInspect, mode: Mode, out: &mut Out) -> Result<(), CliError> {
    let mode = mode.among(MODES)?;
    let report = inspect_file(&args.file).map_err(failed)?;
    if mode != Mode::Human {
        out.json(&json!({
            "revision": report.revision,
            "compacted_revision": report.compacted_revision,
            "cluster_id": format!("{:x}", report.cluster_id),
            "applied_index": report.applied_index,
            "applied_term": report.applied_term,
            "keys": report.keys,
            "bytes": report.bytes,
            "sha256": report.sha256,
        }))?;
        return out.flush();
    }
    for (name, value) in [
        ("revision", report.revision.to_string()),
        ("compacted", report.compacted_revision.to_string()),
        ("cluster", format!("{:x}", report.cluster_id)),
        ("applied", format!("index {} of term {}", report.applied_index, report.applied_term)),
        ("keys", report.keys.to_string()),
        ("bytes", report.bytes.to_string()),
        ("sha256", report.sha256),
    ] {
        out.line(format!("{name:<10} {value}"))?;
    }
    out.flush()
}

/// Replaces what a running cluster holds.
pub(in crate::cli) async fn restore_running(session: &mut Session, args: &SnapshotRestore) -> Result<(), CliError> {
    let mode = session.mode.among(MODES)?;
    let request = Request::new(Method::Post, "/v1/restore")
        .header("Content-Type", "application/octet-stream")
        .maybe("confirm", args.confirm.as_ref())
        .streaming();
    if session.prints_curl(&request.clone().body(Body::File(args.file.clone())))? {
        return Ok(());
    }
    let upload = upload_of(&args.file).await?;
    // A stream can be sent once only: first find a member that answers.
    session.send(&Request::new(Method::Get, "/v1/status")).await?;
    let answer = session.client.upload(&request, upload).await?;
    if mode != Mode::Human {
        return session.out.json_as_sent(&answer.body);
    }
    let result: serde_json::Value = answer.json()?;
    session.out.line(format!("restored {}: revision {}", args.file.display(), result["revision"]))
}

pub(in crate::cli) fn restore(
    file: &Path,
    data_dir: &Path,
    name: String,
    mode: Mode,
    out: &mut Out,
) -> Result<(), CliError> {
    let mode = mode.among(MODES)?;
    let options = RestoreOptions { name };
    let report = restore_offline(file, data_dir, &options).map_err(failed)?;
    if mode == Mode::Human {
        out.line(format!(
            "restored {} keys into {}: revision {} (the backup's {}; older ones count as compacted)",
            report.keys,
            data_dir.display(),
            report.revision,
            report.snapshot_revision
        ))?;
    } else {
        out.json(&json!({
            "data_dir": data_dir.display().to_string(),
            "keys": report.keys,
            "bytes": report.bytes,
            "revision": report.revision,
            "snapshot_revision": report.snapshot_revision,
        }))?;
    }
    out.flush()
}

fn failed(error: RestoreError) -> CliError {
    let hint = match error {
        RestoreError::NotEmpty { .. } => Some("name a directory that does not exist yet".to_owned()),
        RestoreError::BadSnapshot(_) | RestoreError::Identity(_) | RestoreError::Io(_) => None,
    };
    CliError::Failed { message: error.to_string(), hint, code: crate::cli::exit::OTHER }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(bytes: &[u8], chunk: usize) -> Result<String, &'static str> {
        let mut trailer = Trailer::default();
        bytes.chunks(chunk).for_each(|chunk| trailer.take(chunk));
        trailer.verified()
    }

    #[test]
    fn the_trailer_is_checked_however_the_stream_is_cut() {
        let body: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let file = [body.clone(), Sha256::digest(&body).to_vec()].concat();
        for chunk in [1, 7, 31, 32, 33, 1000, 5000] {
            assert_eq!(verdict(&file, chunk).unwrap().len(), 64);
            let mut flipped = file.clone();
            flipped[500] ^= 1;
            assert!(verdict(&flipped, chunk).is_err());
            assert!(verdict(&file[..file.len() - 1], chunk).is_err());
        }
        assert!(verdict(b"short", 5).is_err());
    }
}
