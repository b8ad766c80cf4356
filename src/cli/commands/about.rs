//! What the program says about itself: version, completions, manual pages, the API's document.

use crate::cli::args::{Cli, Completion, Man};
use crate::cli::exit::CliError;
use crate::cli::output::{Mode, Out};
use serde_json::json;

const OPENAPI: &str = include_str!("../../../openapi.yaml");

pub(in crate::cli) fn version(mode: Mode, out: &mut Out) -> Result<(), CliError> {
    let version = env!("CARGO_PKG_VERSION");
    match mode.among(&[Mode::Human, Mode::Json, Mode::Ndjson, Mode::Value])? {
        Mode::Human => out.line(format!("tenure {version}"))?,
        Mode::Value => out.line(version)?,
        _ => out.json(&json!({ "tenure": version }))?,
    }
    out.flush()
}

pub(in crate::cli) fn openapi(out: &mut Out) -> Result<(), CliError> {
    out.bytes(OPENAPI.as_bytes())?;
    out.flush()
}

pub(in crate::cli) fn completion(args: &Completion, out: &mut Out) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::definition(), "tenure", &mut script);
    out.bytes(&script)?;
    out.flush()
}

pub(in crate::cli) fn man(args: &Man) -> Result<(), CliError> {
    let shown = args.dir.display().to_string();
    std::fs::create_dir_all(&args.dir)
        .and_then(|()| clap_mangen::generate_to(Cli::definition(), &args.dir))
        .map_err(|error| CliError::io(&shown, &error))
}
