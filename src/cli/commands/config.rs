//! `config`: the server's settings, here or of a running member.

use crate::cli::args::ConfigCheck;
use crate::cli::exit::CliError;
use crate::cli::output::{Mode, Out};
use crate::cli::server_flags::ServerFlags;
use crate::cli::session::{Session, note};
use crate::client::{Method, Request};
use serde::Deserialize;
use serde_json::json;

const MODES: &[Mode] = &[Mode::Human, Mode::Json, Mode::Ndjson];
const HEADER: [&str; 3] = ["SETTING", "VALUE", "SOURCE"];

#[derive(Debug, Deserialize)]
struct Running {
    settings: Vec<RunningSetting>,
}

#[derive(Debug, Deserialize)]
struct RunningSetting {
    name: String,
    value: Option<String>,
    source: String,
}

pub(in crate::cli) fn check(args: &ConfigCheck, out: &mut Out) -> Result<(), CliError> {
    let checked = ServerFlags::only_file(&args.file)?.check()?;
    let set = checked.shown.iter().filter(|shown| shown.source != crate::node::config::Source::Default).count();
    out.line(format!("{}: fine, {set} settings", args.file.display()))?;
    out.flush()
}

pub(in crate::cli) fn show(flags: ServerFlags, mode: Mode, out: &mut Out) -> Result<(), CliError> {
    let mode = mode.among(MODES)?;
    let checked = flags.layered()?.check()?;
    checked.warnings.iter().for_each(|warning| note(&format!("warning: {warning}")));
    match mode {
        Mode::Human => {
            let row = |shown: &crate::node::config::ShownSetting| {
                vec![shown.name.to_owned(), shown.value.clone(), shown.source.to_string()]
            };
            out.table(&HEADER, checked.shown.iter().map(row).collect())?;
        }
        Mode::Ndjson => checked.shown.iter().try_for_each(|shown| out.json_line(shown))?,
        _ => out.json(&json!({ "settings": checked.shown }))?,
    }
    out.flush()
}

pub(in crate::cli) async fn show_running(session: &mut Session) -> Result<(), CliError> {
    let mode = session.mode.among(MODES)?;
    let request = Request::new(Method::Get, "/v1/config");
    if session.prints_curl(&request)? {
        return Ok(());
    }
    let answer = session.send(&request).await?;
    if mode != Mode::Human {
        return session.out.json_as_sent(&answer.body);
    }
    let running: Running = answer.json()?;
    let row = |setting: RunningSetting| vec![setting.name, setting.value.unwrap_or_default(), setting.source];
    session.out.table(&HEADER, running.settings.into_iter().map(row).collect())
}
