//! `recover`: a new cluster from what is left of one that lost its quorum, without a server.

use crate::cli::args::Recover;
use crate::cli::exit::{CliError, OTHER};
use crate::cli::output::{Mode, Out};
use crate::cli::session::note;
use crate::node::recover::recover_offline;
use crate::node::restore::RestoreError;
use serde_json::json;

const MODES: &[Mode] = &[Mode::Human, Mode::Json, Mode::Ndjson];

pub(in crate::cli) fn recover(args: &Recover, mode: Mode, out: &mut Out) -> Result<(), CliError> {
    let mode = mode.among(MODES)?;
    let report = recover_offline(&args.data_dir, &args.into, &args.name).map_err(|error| {
        let hint = match error {
            RestoreError::NotEmpty { .. } => "name a directory that does not exist yet",
            RestoreError::BadSnapshot(_) => {
                "try the directory of another member, or a backup with `tenure snapshot restore`"
            }
            RestoreError::Identity(_) | RestoreError::Io(_) => {
                "--data-dir is the directory that `tenure serve` had, of a member that has ended"
            }
        };
        CliError::Failed { message: error.to_string(), hint: Some(hint.to_owned()), code: OTHER }
    })?;
    if mode == Mode::Human {
        out.line(format!(
            "recovered {} keys into {}: revision {} (found up to revision {}, log entry {} of term {})",
            report.keys,
            args.into.display(),
            report.revision,
            report.found_revision,
            report.last_index,
            report.last_term
        ))?;
    } else {
        out.json(&json!({
            "into": args.into.display().to_string(),
            "former_cluster_id": format!("{:016x}", report.cluster_id),
            "keys": report.keys,
            "revision": report.revision,
            "found_revision": report.found_revision,
            "last_index": report.last_index,
            "last_term": report.last_term,
        }))?;
    }
    note("writes that only the lost members had are gone; leases, locks and idempotency keys are dropped");
    note(
        "of several members that are left, the one with the highest term, then entry, has the most: compare before you go on",
    );
    note("never start the members of the former cluster on their old data again: delete it once this one serves");
    note(&format!(
        "next: tenure serve --name {} --data-dir {}; then let others --join it",
        args.name,
        args.into.display()
    ));
    out.flush()
}
