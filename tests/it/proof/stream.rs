//! One watch over a socket of its own, so that it can stand still for real: NDJSON or server-sent events.

use super::oracle::Line;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

/// Small, so that a reader that stands still is felt by the server soon.
const RECEIVE_BUFFER: u32 = 8 << 10;
const CONNECT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Stream {
    socket: BufReader<TcpStream>,
    body: VecDeque<u8>,
    /// How much of `body` is known to hold no newline.
    searched: usize,
    sse: bool,
    /// Of the server-sent event that is being read.
    id: Option<i64>,
    pub(super) starts_after: i64,
}

/// What a request for a stream was answered.
#[derive(Debug)]
pub(super) enum Answer {
    Opened(Box<Stream>),
    /// The problem's text.
    Refused(u16, String),
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Stream {
    pub(super) async fn open(address: &str, target: &str, sse: bool, headers: &str) -> io::Result<Answer> {
        tokio::time::timeout(CONNECT, Self::ask(address, target, sse, headers))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn ask(address: &str, target: &str, sse: bool, headers: &str) -> io::Result<Answer> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        let mut socket = socket.connect(address.parse().map_err(|_| broken("no address"))?).await?;
        let accept = if sse { "text/event-stream" } else { "application/x-ndjson" };
        let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nAccept: {accept}\r\n{headers}\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut socket = BufReader::with_capacity(2 << 10, socket);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if socket.read_line(&mut head).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok()).ok_or_else(|| broken("no status"))?;
        let header = |name: &str| {
            let find = |line: &str| line.to_ascii_lowercase().strip_prefix(name).map(|text| text.trim().to_owned());
            head.lines().find_map(find)
        };
        if status != 200 {
            let length = header("content-length:").and_then(|text| text.parse().ok()).unwrap_or(0);
            let mut body = vec![0; length];
            socket.read_exact(&mut body).await?;
            return Ok(Answer::Refused(status, String::from_utf8_lossy(&body).into_owned()));
        }
        let starts_after = header("tenure-revision:").and_then(|text| text.parse().ok());
        let starts_after = starts_after.ok_or_else(|| broken("no revision"))?;
        Ok(Answer::Opened(Box::new(Self { socket, body: VecDeque::new(), searched: 0, sse, id: None, starts_after })))
    }

    /// The next chunk of the body; false at its end.
    async fn chunk(&mut self) -> io::Result<bool> {
        let mut size = String::new();
        if self.socket.read_line(&mut size).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let size = usize::from_str_radix(size.trim(), 16).map_err(|_| broken("no size of a chunk"))?;
        let mut bytes = vec![0; size + 2];
        self.socket.read_exact(&mut bytes).await?;
        self.body.extend(&bytes[..size]);
        Ok(size > 0)
    }

    async fn text(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let end = self.body.iter().skip(self.searched).position(|byte| *byte == b'\n');
            if let Some(at) = end {
                let line = self.body.drain(..=self.searched + at).collect();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.body.len();
            if !self.chunk().await? {
                return Ok(None);
            }
        }
    }

    /// The next line; `None` at a clean end. A line that breaks the form is an error of kind `InvalidData`.
    pub(super) async fn line(&mut self) -> io::Result<Option<Line>> {
        while let Some(text) = self.text().await? {
            let text = text.trim_ascii_end();
            let json = if self.sse {
                if let Some(id) = text.strip_prefix(b"id: ") {
                    self.id = std::str::from_utf8(id).ok().and_then(|id| id.parse().ok());
                }
                text.strip_prefix(b"data: ").unwrap_or_default()
            } else {
                text
            };
            if json.is_empty() {
                continue;
            }
            let line: Line = serde_json::from_slice(json).map_err(|error| broken(&error.to_string()))?;
            let resumable = !line.partial && !line.initial && !matches!(line.kind.as_str(), "reset" | "problem");
            if self.sse && self.id.take() != resumable.then_some(line.revision) {
                return Err(broken(&format!("another id than of {line:?}")));
            }
            return Ok(Some(line));
        }
        Ok(None)
    }
}
