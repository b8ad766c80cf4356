//! `edit`: a value through `$EDITOR`, written back only if nobody else wrote meanwhile.

use super::history::diff;
use crate::cli::args::Edit;
use crate::cli::exit::CliError;
use crate::cli::output::{Mode, shown};
use crate::cli::session::{Session, note};
use crate::client::{self, Body, Entry, Kind, Method, Request};
use bytes::Bytes;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const KV: &str = "/v1/kv/";

/// The state that the edited text is based on.
struct Base {
    value: Vec<u8>,
    /// 0: there is no such key.
    revision: i64,
    content_type: Option<String>,
    on_lease: bool,
}

impl From<Option<Entry>> for Base {
    fn from(entry: Option<Entry>) -> Self {
        match entry {
            None => Self { value: Vec::new(), revision: 0, content_type: None, on_lease: false },
            Some(entry) => Self {
                value: entry.value_bytes(),
                revision: entry.mod_revision,
                on_lease: entry.lease.is_some() || entry.ttl_ms.is_some(),
                content_type: entry.content_type,
            },
        }
    }
}

pub(in crate::cli) async fn edit(session: &mut Session, args: &Edit) -> Result<(), CliError> {
    session.mode.among(&[Mode::Human])?;
    session.no_curl("edit")?;
    let key = &args.key.0;
    let mut base = read(session, key).await?;
    let file = Scratch::create(key, base.content_type.as_deref(), &base.value)?;
    loop {
        let outcome = run_editor(&file.path);
        let edited = std::fs::read(&file.path).map_err(|error| CliError::io("the edited file", &error))?;
        if let Err(message) = outcome {
            let error = CliError::other(message);
            return Err(if edited == base.value { file.remove().err().unwrap_or(error) } else { kept(error, &file) });
        }
        if edited == base.value {
            note("not changed");
            return file.remove();
        }
        match save(session, key, &base, &edited).await {
            Ok(revision) => {
                session.out.line(format!("saved, revision {revision}"))?;
                return file.remove();
            }
            Err(CliError::Client(error)) if error.kind() == Kind::ConditionFailed => {
                let theirs = read(session, key).await?;
                session.out.line(format!("{} was changed meanwhile; theirs (-) and yours (+):", shown(key)))?;
                diff(&mut session.out, &theirs.value, &edited)?;
                session.out.flush()?;
                match ask()? {
                    Choice::Overwrite => {
                        let revision =
                            save(session, key, &theirs, &edited).await.map_err(|error| kept(error, &file))?;
                        session.out.line(format!("saved, revision {revision}"))?;
                        return file.remove();
                    }
                    Choice::Again => base = theirs,
                    Choice::Abort => return Err(kept(error.into(), &file)),
                }
            }
            Err(error) => return Err(kept(error, &file)),
        }
    }
}

/// Work is never thrown away with an error: the file stays and is named.
fn kept(error: CliError, file: &Scratch) -> CliError {
    error.advised(format!("your text is kept in {}", file.path.display()))
}

async fn read(session: &mut Session, key: &[u8]) -> Result<Base, CliError> {
    let request = Request::on_key(Method::Get, KV, key).with("format", "json");
    match session.send(&request).await {
        Ok(answer) => Ok(Some(answer.json::<Entry>()?).into()),
        Err(CliError::Client(error)) if missing(&error) => Ok(None.into()),
        Err(error) => Err(error),
    }
}

fn missing(error: &client::Error) -> bool {
    error.problem().is_some_and(|problem| problem.code == "key-not-found")
}

async fn save(session: &mut Session, key: &[u8], base: &Base, text: &[u8]) -> Result<i64, CliError> {
    let mut request = Request::on_key(Method::Put, KV, key).body(Body::Inline(Bytes::copy_from_slice(text)));
    request = match base.revision {
        0 => request.header("If-None-Match", "*"),
        revision => request.header("If-Match", format!("\"{revision}\"")),
    };
    if let Some(content_type) = &base.content_type {
        request = request.header("Content-Type", content_type.clone());
    }
    let request = request.flag("keep_ttl", base.on_lease);
    let saved: serde_json::Value = session.send(&request).await?.json()?;
    Ok(saved["revision"].as_i64().unwrap_or(0))
}

enum Choice {
    Again,
    Overwrite,
    Abort,
}

fn ask() -> Result<Choice, CliError> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(Choice::Abort);
    }
    let mut stderr = std::io::stderr();
    write!(stderr, "edit yours again (e), overwrite theirs (o), or abort (a)? ")
        .and_then(|()| stderr.flush())
        .map_err(|error| CliError::io("stderr", &error))?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|error| CliError::io("standard input", &error))?;
    Ok(match answer.trim() {
        "e" => Choice::Again,
        "o" => Choice::Overwrite,
        _ => Choice::Abort,
    })
}

/// `$VISUAL` or `$EDITOR` may hold arguments, so a shell splits it; the file is passed on as an argument.
fn run_editor(file: &Path) -> Result<(), String> {
    let chosen = ["VISUAL", "EDITOR"].into_iter().filter_map(std::env::var_os).find(|editor| !editor.is_empty());
    let editor = chosen.unwrap_or_else(|| OsString::from("vi"));
    let mut script = editor.clone();
    script.push(" \"$@\"");
    match Command::new("sh").arg("-c").arg(script).arg("sh").arg(file).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the editor {} ended with {status}; nothing was saved", editor.to_string_lossy())),
        Err(error) => Err(format!("sh: {error}")),
    }
}

/// A private file with the value, named so that editors recognise its syntax.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn create(key: &[u8], content_type: Option<&str>, value: &[u8]) -> Result<Self, CliError> {
        let last = key.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let name: String = String::from_utf8_lossy(last)
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' })
            .take(64)
            .collect();
        let extension = match content_type {
            Some("application/json") if !name.ends_with(".json") => ".json",
            _ => "",
        };
        let directory = std::env::temp_dir();
        for attempt in 0..100 {
            let path = directory.join(format!("tenure-{}-{attempt}-{name}{extension}", std::process::id()));
            let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            match opened {
                Ok(mut file) => {
                    file.write_all(value).map_err(|error| CliError::io(&path.display().to_string(), &error))?;
                    return Ok(Self { path });
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(CliError::io(&path.display().to_string(), &error)),
            }
        }
        Err(CliError::other(format!("no free file name in {}", directory.display())))
    }

    fn remove(self) -> Result<(), CliError> {
        std::fs::remove_file(&self.path).map_err(|error| CliError::io(&self.path.display().to_string(), &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn the_scratch_file_is_private_and_named_for_the_editor() {
        let file = Scratch::create(b"app/opt s", Some("application/json"), b"{}").unwrap();
        assert!(file.path.to_str().unwrap().ends_with("opt_s.json"));
        assert_eq!(std::fs::metadata(&file.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read(&file.path).unwrap(), b"{}");
        let second = Scratch::create(b"app/opt s", Some("application/json"), b"").unwrap();
        assert_ne!(file.path, second.path);
        file.remove().unwrap();
        second.remove().unwrap();
    }
}
