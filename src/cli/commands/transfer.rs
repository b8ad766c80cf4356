//! `export` and `import`: entries as NDJSON, streamed.

use crate::cli::args::{Export, Import, OnConflict};
use crate::cli::exit::CliError;
use crate::cli::output::Mode;
use crate::cli::progress::Progress;
use crate::cli::session::{Session, note, reading};
use crate::client::{Body, Error, Lines, Method, Request, Upload};
use clap::ValueEnum as _;
use serde_json::Value;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};

const NDJSON: &str = "application/x-ndjson";

pub(in crate::cli) async fn export(session: &mut Session, args: &Export) -> Result<(), CliError> {
    session.mode.among(&[Mode::Human, Mode::Ndjson])?;
    let prefix = args.prefix.as_ref().map_or(&b""[..], |prefix| &prefix.0);
    let request = reading(Request::new(Method::Get, "/v1/kv").with("prefix", prefix), &args.read)
        .header("Accept", NDJSON)
        .streaming();
    let mut printed = request.clone();
    printed.save_as.clone_from(&args.file);
    if session.prints_curl(&printed)? {
        return Ok(());
    }
    let stream = session.open_stream(&request).await?;
    let revision = stream.header("tenure-revision").map(str::to_owned);
    let mut lines = Lines::new(stream);
    let mut target = args.file.as_deref().map(Target::create).transpose()?;
    // On standard output the data itself shows how far it is.
    let mut progress = target.is_some().then(|| Progress::bytes("exporting", None));
    let mut count: u64 = 0;
    while let Some(line) = lines.next().await? {
        match &mut target {
            Some(target) => target.line(&line)?,
            None => {
                session.out.bytes(&line)?;
                session.out.bytes(b"\n")?;
            }
        }
        if let Some(progress) = &mut progress {
            progress.add(line.len() + 1);
        }
        count += 1;
    }
    drop(progress);
    if let Some(target) = target {
        target.publish()?;
        let at = revision.map(|revision| format!(" at revision {revision}")).unwrap_or_default();
        note(&format!("exported {count} entries{at}"));
    }
    Ok(())
}

/// A file that appears under its name only when it is complete and on disk.
#[derive(Debug)]
pub(super) struct Target {
    part: PathBuf,
    path: PathBuf,
    writer: BufWriter<File>,
    published: bool,
}

impl Target {
    pub(super) fn create(path: &Path) -> Result<Self, CliError> {
        let Some(name) = path.file_name() else {
            return Err(CliError::Usage(format!("{} does not name a file", path.display())));
        };
        let mut part_name = name.to_owned();
        part_name.push(".part");
        let part = path.with_file_name(part_name);
        let file = File::create(&part).map_err(|error| CliError::io(&part.display().to_string(), &error))?;
        Ok(Self { part, path: path.to_owned(), writer: BufWriter::with_capacity(1 << 20, file), published: false })
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.writer.write_all(bytes).map_err(|error| CliError::io(&self.part.display().to_string(), &error))
    }

    fn line(&mut self, line: &[u8]) -> Result<(), CliError> {
        self.bytes(line)?;
        self.bytes(b"\n")
    }

    /// File and name reach the disk before the command says so.
    pub(super) fn publish(mut self) -> Result<(), CliError> {
        let publish = || {
            self.writer.flush()?;
            self.writer.get_ref().sync_all()?;
            std::fs::rename(&self.part, &self.path)?;
            self.published = true;
            let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
        };
        let shown = self.path.display().to_string();
        let mut publish = publish;
        publish().map_err(|error| CliError::io(&shown, &error))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if !self.published {
            // Half a file is of no use; one that cannot be removed is found by its name.
            std::fs::remove_file(&self.part).ok();
        }
    }
}

pub(in crate::cli) async fn import(session: &mut Session, args: &Import) -> Result<(), CliError> {
    if let Some(urls) = &args.from_etcd {
        return Box::pin(super::etcd::import(session, urls, args)).await;
    }
    let mode = session.mode.among(&[Mode::Human, Mode::Json, Mode::Ndjson])?;
    let mut request = Request::new(Method::Post, "/v1/import").header("Content-Type", NDJSON).streaming();
    if args.on_conflict != OnConflict::Overwrite {
        let name = args.on_conflict.to_possible_value();
        request = request.with("on_conflict", name.map_or_else(String::new, |value| value.get_name().to_owned()));
    }
    if let Some(prefix) = &args.prefix {
        request = request.with("prefix", &prefix.0);
    }
    let from_stdin = args.file == Path::new("-");
    let body = if from_stdin { Body::Stdin } else { Body::File(args.file.clone()) };
    if session.prints_curl(&request.clone().body(body))? {
        return Ok(());
    }
    let upload = if from_stdin {
        Upload::from_reader(Counted::new(tokio::io::stdin(), None))
    } else {
        upload_of(&args.file).await?
    };
    // A stream can be sent once only: first find a member that answers.
    session.send(&Request::new(Method::Get, "/v1/status")).await?;
    let answer = session.client.upload(&request, upload).await.map_err(with_what_stays)?;
    if mode != Mode::Human {
        return session.out.json_as_sent(&answer.body);
    }
    let result: Value = answer.json()?;
    session.out.line(format!(
        "imported {}, skipped {}, revision {}",
        result["imported"], result["skipped"], result["revision"]
    ))
}

/// A file's content, with its progress told.
pub(super) async fn upload_of(path: &Path) -> Result<Upload, CliError> {
    let shown = path.display().to_string();
    let file = tokio::fs::File::open(path).await.map_err(|error| CliError::io(&shown, &error))?;
    let total = file.metadata().await.ok().map(|metadata| metadata.len());
    Ok(Upload::from_reader(Counted::new(file, total)))
}

/// An import is not atomic as a whole: what came before the failure is told.
fn with_what_stays(error: Error) -> CliError {
    let stays = error.problem().and_then(|problem| problem.more.get("imported")?.as_u64()).filter(|count| *count > 0);
    match stays {
        None => error.into(),
        Some(count) => CliError::from(error).advised(format!("{count} entries were imported before that, and stay")),
    }
}

/// Tells the progress of what is read through it.
struct Counted<R> {
    inner: R,
    progress: Progress,
}

impl<R> Counted<R> {
    fn new(inner: R, total: Option<u64>) -> Self {
        Self { inner, progress: Progress::bytes("importing", total) }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        if read > 0 {
            self.progress.add(read);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_appears_complete_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.ndjson");
        let mut dropped = Target::create(&path).unwrap();
        dropped.line(b"half").unwrap();
        drop(dropped);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut whole = Target::create(&path).unwrap();
        whole.line(b"whole").unwrap();
        assert!(!path.exists());
        whole.publish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
