//! Requests written byte by byte, for what no well-behaved client would send.

#![expect(clippy::large_futures, reason = "a test may hold a whole exchange on its stack")]

use crate::support::Node;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longer than any time-out of the server that a test waits for.
const PATIENCE: Duration = Duration::from_secs(40);

/// A connection and what came back on it.
pub(crate) struct Wire {
    stream: TcpStream,
    received: Vec<u8>,
}

/// An answer as text, and its parts.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Raw {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub(crate) fn code(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Wire {
    pub(crate) async fn connect(node: &Node) -> Self {
        let stream = TcpStream::connect(node.address()).await.expect("the port is open");
        stream.set_nodelay(true).expect("a socket option");
        Self { stream, received: Vec::new() }
    }

    /// Says whether the peer still took it.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// The next answer with a `Content-Length`, or none if the connection ends first.
    pub(crate) async fn answer(&mut self) -> Option<Raw> {
        tokio::time::timeout(PATIENCE, self.read_answer()).await.expect("an answer or an end in time")
    }

    async fn read_answer(&mut self) -> Option<Raw> {
        let end = loop {
            if let Some(at) = self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.read_more().await?;
        };
        let head = String::from_utf8_lossy(&self.received[..end]).into_owned();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let mut raw = Raw { status, head, body: Vec::new() };
        let length: usize = raw.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        while self.received.len() < end + length {
            self.read_more().await?;
        }
        raw.body = self.received[end..end + length].to_vec();
        self.received.drain(..end + length);
        Some(raw)
    }

    async fn read_more(&mut self) -> Option<()> {
        let mut chunk = [0; 16 << 10];
        match self.stream.read(&mut chunk).await {
            Ok(0) | Err(_) => None,
            Ok(count) => {
                self.received.extend_from_slice(&chunk[..count]);
                Some(())
            }
        }
    }

    /// Waits for the peer to close; false if it sends something or takes too long.
    pub(crate) async fn is_closed_within(&mut self, within: Duration) -> bool {
        matches!(tokio::time::timeout(within, self.read_more()).await, Ok(None))
    }
}

/// One request on a connection of its own.
pub(crate) async fn exchange(node: &Node, request: &[u8]) -> Raw {
    let mut wire = Wire::connect(node).await;
    wire.send(request).await;
    wire.answer()
        .await
        .unwrap_or_else(|| panic!("no answer to {}", String::from_utf8_lossy(&request[..request.len().min(200)])))
}

pub(crate) async fn get(node: &Node, target: &str) -> Raw {
    exchange(node, format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await
}

pub(crate) async fn put(node: &Node, target: &str, body: &[u8]) -> Raw {
    let mut request =
        format!("PUT {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    request.extend_from_slice(body);
    exchange(node, &request).await
}
