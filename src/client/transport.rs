//! Sending: one attempt, and the rule by which another endpoint is tried.

use super::{Applied, Body, Credentials, Endpoint, Error, Method, Problem, Request};
use crate::net::root_cause;
use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use serde::de::DeserializeOwned;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

/// The server's own answer about a deadline is more exact than ours: it gets this much longer.
const GRACE: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(2);
/// A stream that is silent for longer is taken for dead.
const STREAM_SILENCE_MAX: Duration = Duration::from_secs(60);
/// A value or transaction read into memory; the server's own limit is lower.
const BODY_BYTES_MAX: u64 = 64 << 20;
const UPLOAD_CHUNK_BYTES: usize = 64 << 10;

#[derive(Debug, Clone)]
pub struct Options {
    pub endpoints: Vec<Endpoint>,
    /// For each endpoint tried.
    pub timeout: Duration,
    /// Also tell the server; otherwise its default holds there.
    pub send_timeout: bool,
    /// Said with every request.
    pub credentials: Credentials,
}

/// One endpoint asked once, for `--verbose`.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub endpoint: String,
    pub outcome: String,
    pub request_id: Option<String>,
}

#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    options: Options,
    /// The endpoint that answered last is asked first.
    current: AtomicUsize,
    attempts: Mutex<Vec<Attempt>>,
}

impl Client {
    pub fn new(options: Options) -> Result<Self, Error> {
        if options.endpoints.is_empty() {
            return Err(Error::Usage("there is no endpoint to talk to".to_owned()));
        }
        let http = reqwest::Client::builder()
            .user_agent(concat!("tenure/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.timeout.min(CONNECT_TIMEOUT_MAX))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| Error::local("HTTP client", &error))?;
        Ok(Self { http, options, current: AtomicUsize::new(0), attempts: Mutex::new(Vec::new()) })
    }

    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.options.endpoints
    }

    #[must_use]
    pub fn credentials(&self) -> &Credentials {
        &self.options.credentials
    }

    /// Asks another endpoint first from now on: this one does not answer.
    pub fn prefer_next(&self) {
        let next = (self.current.load(Ordering::Relaxed) + 1) % self.options.endpoints.len();
        self.current.store(next, Ordering::Relaxed);
    }

    /// What has been tried since the last call.
    #[must_use]
    pub fn take_attempts(&self) -> Vec<Attempt> {
        std::mem::take(&mut self.attempts.lock())
    }

    /// The request as it goes out: with the deadline, if one was asked for.
    #[must_use]
    pub fn prepared(&self, request: &Request) -> Request {
        let tell = self.options.send_timeout && !request.streams && request.path.starts_with("/v1/");
        let request = request.clone();
        if tell { request.with("timeout", duration_text(self.options.timeout)) } else { request }
    }

    /// Sends and reads the whole answer. Any status from 400 on is an error.
    pub async fn send(&self, request: &Request) -> Result<Answer, Error> {
        let stream = self.open(request).await?;
        stream.collect(self.deadline(request)).await
    }

    /// As `send`, to this endpoint only.
    pub async fn send_to(&self, endpoint: &Endpoint, request: &Request) -> Result<Answer, Error> {
        let request = self.prepared(request);
        let body = load(&request.body)?.map(reqwest::Body::from);
        let stream = self.attempt(endpoint, &request, body).await?;
        stream.collect(self.deadline(&request)).await
    }

    /// Sends and reads the head of the answer.
    pub async fn open(&self, request: &Request) -> Result<Stream, Error> {
        let request = self.prepared(request);
        let body = load(&request.body)?;
        let first = self.current.load(Ordering::Relaxed);
        let count = self.options.endpoints.len();
        let mut failure = None;
        for index in (0..count).map(|step| (first + step) % count) {
            let outcome = self.attempt(&self.options.endpoints[index], &request, body.clone().map(Into::into)).await;
            match outcome {
                Ok(stream) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(stream);
                }
                Err(error) if error.may_go_elsewhere(request.read_only) => {
                    // A member's own words tell more than an unreachable neighbour.
                    if !matches!(failure, Some(Error::Refused(_))) {
                        failure = Some(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| Error::Usage("there is no endpoint to talk to".to_owned())))
    }

    /// Sends a body that can be read only once, to the endpoint that answered last.
    pub async fn upload(&self, request: &Request, body: Upload) -> Result<Answer, Error> {
        let endpoint = &self.options.endpoints[self.current.load(Ordering::Relaxed)];
        let stream = self.attempt(endpoint, request, Some(body.0)).await?;
        stream.collect(self.deadline(request)).await
    }

    fn deadline(&self, request: &Request) -> Option<Duration> {
        (!request.streams).then(|| self.options.timeout + request.wait + GRACE)
    }

    async fn attempt(
        &self,
        endpoint: &Endpoint,
        request: &Request,
        body: Option<reqwest::Body>,
    ) -> Result<Stream, Error> {
        let outcome = self.attempt_once(endpoint, request, body).await;
        let (text, request_id) = match &outcome {
            Ok(stream) => (format!("status {}", stream.head.status), stream.header("x-request-id").map(str::to_owned)),
            Err(error) => (error.to_string(), error.problem().and_then(|problem| problem.request_id.clone())),
        };
        self.attempts.lock().push(Attempt { endpoint: endpoint.to_string(), outcome: text, request_id });
        outcome
    }

    async fn attempt_once(
        &self,
        endpoint: &Endpoint,
        request: &Request,
        body: Option<reqwest::Body>,
    ) -> Result<Stream, Error> {
        let method = match request.method {
            Method::Get => reqwest::Method::GET,
            Method::Put => reqwest::Method::PUT,
            Method::Post => reqwest::Method::POST,
            Method::Delete => reqwest::Method::DELETE,
        };
        let mut builder = self.http.request(method, format!("{}{}", endpoint.base(), request.target()));
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        if let Some(authorization) = self.options.credentials.header() {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        if let Some(body) = body {
            builder = builder.body(body);
        }
        if let Some(deadline) = self.deadline(request) {
            builder = builder.timeout(deadline);
        }
        let response = builder.send().await.map_err(|error| failed(endpoint, request.read_only, &error))?;
        let head = Head {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            endpoint: endpoint.to_string(),
        };
        let stream = Stream { head, response, read_only: request.read_only };
        if stream.head.status < 400 {
            return Ok(stream);
        }
        // The status already tells the outcome; a body that breaks off only costs the explanation.
        let status = stream.head.status;
        let body = stream.collect(Some(GRACE)).await.map(|answer| answer.body).unwrap_or_default();
        let mut problem = Problem::decode(status, &body);
        if request.read_only {
            problem.applied = Some(Applied::No);
        }
        Err(Error::Refused(Box::new(problem)))
    }
}

fn duration_text(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}

/// A failure without an answer: before anything was sent, or after.
fn failed(endpoint: &Endpoint, read_only: bool, error: &reqwest::Error) -> Error {
    let endpoint = endpoint.to_string();
    if error.is_builder() {
        return Error::local("request", error);
    }
    if error.is_connect() {
        let message = if error.is_timeout() { "connecting timed out".to_owned() } else { root_cause(error) };
        return Error::Unreachable { endpoint, message };
    }
    let message = if error.is_timeout() { "timed out".to_owned() } else { root_cause(error) };
    if read_only { Error::NoAnswer { endpoint, message } } else { Error::Lost { endpoint, message } }
}

fn load(body: &Body) -> Result<Option<Bytes>, Error> {
    match body {
        Body::None => Ok(None),
        Body::Inline(bytes) => Ok(Some(bytes.clone())),
        Body::File(path) => read_file(path).map(Some),
        Body::Stdin => read_bounded("standard input", std::io::stdin().lock()).map(Some),
    }
}

fn read_file(path: &Path) -> Result<Bytes, Error> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|error| Error::local(&name, &error))?;
    read_bounded(&name, file)
}

fn read_bounded(name: &str, source: impl Read) -> Result<Bytes, Error> {
    let mut bytes = Vec::new();
    source.take(BODY_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| Error::local(name, &error))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > BODY_BYTES_MAX {
        return Err(Error::Usage(format!("{name} has more than {BODY_BYTES_MAX} bytes; a value may not be that long")));
    }
    Ok(bytes.into())
}

/// A body that is sent while it is read.
#[derive(Debug)]
pub struct Upload(reqwest::Body);

impl Upload {
    pub fn from_reader(reader: impl AsyncRead + Send + 'static) -> Self {
        Self(reqwest::Body::wrap_stream(ReaderStream::with_capacity(reader, UPLOAD_CHUNK_BYTES)))
    }
}

#[derive(Debug, Clone)]
struct Head {
    status: u16,
    headers: HeaderMap,
    endpoint: String,
}

impl Head {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Of an answer that ended before its end: what was only read can be asked for again.
    fn cut_short(&self, read_only: bool, message: String) -> Error {
        let endpoint = self.endpoint.clone();
        if read_only { Error::NoAnswer { endpoint, message } } else { Error::Lost { endpoint, message } }
    }
}

/// An answer whose body is still to be read.
#[derive(Debug)]
pub struct Stream {
    head: Head,
    response: reqwest::Response,
    read_only: bool,
}

impl Stream {
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.head.endpoint
    }

    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    #[must_use]
    pub fn content_length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The next piece, `None` at the proper end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        match tokio::time::timeout(STREAM_SILENCE_MAX, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(self.broken(root_cause(&error))),
            Err(_) => Err(self.broken(format!("silent for {} s", STREAM_SILENCE_MAX.as_secs()))),
        }
    }

    fn broken(&self, message: String) -> Error {
        self.head.cut_short(self.read_only, message)
    }

    async fn collect(self, deadline: Option<Duration>) -> Result<Answer, Error> {
        let Self { head, response, read_only } = self;
        let body = match deadline {
            None => response.bytes().await,
            Some(deadline) => match tokio::time::timeout(deadline, response.bytes()).await {
                Ok(body) => body,
                Err(_) => return Err(head.cut_short(read_only, "timed out in the middle of the answer".to_owned())),
            },
        };
        let body = body.map_err(|error| head.cut_short(read_only, root_cause(&error)))?;
        Ok(Answer { head, body })
    }
}

#[derive(Debug, Clone)]
pub struct Answer {
    head: Head,
    pub body: Bytes,
}

impl Answer {
    #[must_use]
    pub fn status(&self) -> u16 {
        self.head.status
    }

    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.head.endpoint
    }

    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|error| Error::NotTenure {
            endpoint: self.head.endpoint.clone(),
            message: format!("the answer is not the expected JSON: {error}"),
        })
    }
}

#[cfg(test)]
mod tests;
