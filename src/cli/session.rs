//! What a client command works with: the client, the output, and the options that hold for both.

use super::args::{Global, ReadFrom, Retry};
use super::context;
use super::credentials;
use super::exit::CliError;
use super::output::{Mode, Out};
use crate::client::{Answer, Client, Endpoint, Options, Request, Stream, curl_line};
use crate::node::config::parse;
use std::future::Future;
use std::io::Write as _;
use std::time::Duration;

const DEFAULT_ENDPOINT: &str = "127.0.0.1:2379";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) out: Out,
    pub(super) mode: Mode,
    curl: bool,
    verbose: bool,
}

impl Session {
    /// Flag > environment > context > default.
    pub(super) fn open(global: &Global) -> Result<Self, CliError> {
        let context = context::load(global.context.as_deref())?;
        let timeout = match (global.timeout, context.timeout) {
            (Some(timeout), _) => Some(timeout),
            (None, Some(text)) => Some(
                parse::duration(&text).map_err(|problem| CliError::Usage(format!("timeout {text:?}: {problem}")))?,
            ),
            (None, None) => None,
        };
        let named = global.endpoints.clone().or(context.endpoints).filter(|named| !named.is_empty());
        let endpoints = named
            .unwrap_or_else(|| vec![DEFAULT_ENDPOINT.to_owned()])
            .iter()
            .map(|endpoint| Endpoint::parse(endpoint.trim()))
            .collect::<Result<Vec<_>, _>>()?;
        let options = Options {
            endpoints,
            timeout: timeout.unwrap_or(DEFAULT_TIMEOUT),
            send_timeout: timeout.is_some(),
            credentials: credentials::of(global, context.user.as_deref(), context.password_file)?,
        };
        Ok(Self {
            client: Client::new(options)?,
            out: Out::new(global),
            mode: global.output.or(context.output).unwrap_or_default(),
            curl: global.curl,
            verbose: global.verbose,
        })
    }

    /// With `--curl`: prints the line, and there is nothing left to do.
    pub(super) fn prints_curl(&mut self, request: &Request) -> Result<bool, CliError> {
        if self.curl {
            let base = self.client.endpoints()[0].base();
            let line = curl_line(base, &self.client.prepared(request), self.client.credentials());
            self.out.line(line)?;
        }
        Ok(self.curl)
    }

    /// Refuses `--curl` where no single line would do.
    pub(super) fn no_curl(&self, what: &str) -> Result<(), CliError> {
        if self.curl {
            Err(CliError::Usage(format!("{what} is more than one request; --curl cannot print it")))
        } else {
            Ok(())
        }
    }

    pub(super) async fn send(&mut self, request: &Request) -> Result<Answer, CliError> {
        Ok(self.client.send(request).await?)
    }

    pub(super) async fn open_stream(&mut self, request: &Request) -> Result<Stream, CliError> {
        Ok(self.client.open(request).await?)
    }

    /// Ends the command: everything written reaches its reader, and `--verbose` tells what was tried.
    pub(super) fn close(mut self, outcome: Result<(), CliError>) -> Result<(), CliError> {
        let outcome = outcome.and_then(|()| self.out.flush());
        if self.verbose {
            for attempt in self.client.take_attempts() {
                let id = attempt.request_id.map(|id| format!(", request id {id}")).unwrap_or_default();
                note(&format!("{}: {}{id}", attempt.endpoint, attempt.outcome));
            }
        }
        outcome
    }
}

/// A line on stderr. That it may be lost changes nothing.
pub(super) fn note(text: &str) {
    writeln!(std::io::stderr(), "{text}").ok();
}

/// The options that every read shares.
pub(super) fn reading(request: Request, read: &ReadFrom) -> Request {
    let request = request.maybe("revision", read.rev);
    if read.stale { request.with("consistency", "stale") } else { request }
}

pub(super) fn repeatable(request: Request, retry: &Retry) -> Request {
    match &retry.idempotency_key {
        Some(key) => request.header("Idempotency-Key", key.clone()),
        None => request,
    }
}

/// Durations as the API reads them.
pub(super) fn duration_text(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}

/// Runs a command's future on this thread.
pub(super) fn block_on(command: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| CliError::io("async runtime", &error))?.block_on(command)
}
