//! One HTTP/1.1 connection with one request at a time: the least that measures a server.
//!
//! It understands what a member may answer (a length or chunks) and refuses everything else.

use crate::client::{Credentials, Endpoint};
use std::io;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const HEAD_BYTES_MAX: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    /// What has arrived and is not consumed yet.
    buffer: Vec<u8>,
}

/// The line of a request's head that says who asks; nothing where nobody does.
pub(super) fn authorization(credentials: &Credentials) -> String {
    credentials.authorization().map_or_else(String::new, |value| format!("authorization: {value}\r\n"))
}

/// The head of an answer as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    status: u16,
    body: Body,
    closes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Length(usize),
    Chunked,
}

impl Wire {
    pub(super) async fn open(endpoint: &Endpoint) -> io::Result<Self> {
        let stream = TcpStream::connect(endpoint.authority()).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(16 << 10) })
    }

    /// Sends the bytes of a request and reads its whole answer; gives the status, and whether the
    /// connection can be used again.
    pub(super) async fn exchange(&mut self, request: &[u8]) -> io::Result<(u16, bool)> {
        let (head, _, end) = self.answer(request).await?;
        self.buffer.drain(..end);
        Ok((head.status, !head.closes))
    }

    /// The same, with the body of an answer that tells its length.
    pub(super) async fn ask(&mut self, request: &[u8]) -> io::Result<(u16, Vec<u8>)> {
        let (head, from, end) = self.answer(request).await?;
        let body = self.buffer.drain(..end).skip(from).collect();
        if head.body == Body::Chunked { Err(odd("an answer in chunks")) } else { Ok((head.status, body)) }
    }

    /// Reads a whole answer into the buffer: its head, and where its body begins and ends.
    async fn answer(&mut self, request: &[u8]) -> io::Result<(Head, usize, usize)> {
        self.stream.write_all(request).await?;
        let mut from = 0;
        let head_end = loop {
            if let Some(at) = find(&self.buffer[from..], b"\r\n\r\n") {
                break from + at + 4;
            }
            from = self.buffer.len().saturating_sub(3);
            if self.buffer.len() > HEAD_BYTES_MAX {
                return Err(odd("the answer's head does not end"));
            }
            self.more().await?;
        };
        let head = parse_head(&self.buffer[..head_end])?;
        let end = match head.body {
            Body::Length(length) => head_end + length,
            Body::Chunked => self.chunks_end(head_end).await?,
        };
        while self.buffer.len() < end {
            self.more().await?;
        }
        Ok((head, head_end, end))
    }

    /// Where the last chunk ends.
    async fn chunks_end(&mut self, mut at: usize) -> io::Result<usize> {
        loop {
            let line_end = loop {
                match find(&self.buffer[at.min(self.buffer.len())..], b"\r\n") {
                    Some(length) => break at + length,
                    None => self.more().await?,
                }
            };
            let size = std::str::from_utf8(&self.buffer[at..line_end]).ok();
            let size = size.and_then(|text| usize::from_str_radix(text.split(';').next()?.trim(), 16).ok());
            let size = size.ok_or_else(|| odd("a chunk has no size"))?;
            at = line_end + 2 + size + 2;
            if size == 0 {
                return Ok(at);
            }
        }
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed")),
            _ => Ok(()),
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn parse_head(head: &[u8]) -> io::Result<Head> {
    let text = std::str::from_utf8(head).map_err(|_| odd("the answer's head is not text"))?;
    let mut lines = text.split("\r\n");
    let status_line =
        lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).ok_or_else(|| odd("not HTTP/1.1"))?;
    let status: u16 = status_line.get(..3).and_then(|code| code.parse().ok()).ok_or_else(|| odd("no status"))?;
    // 204 and 304 have no body whatever the headers say.
    let mut body = matches!(status, 204 | 304).then_some(Body::Length(0));
    let mut closes = false;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let length = value.parse().map_err(|_| odd("a strange content-length"))?;
            body = body.or(Some(Body::Length(length)));
        } else if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            body = body.or(Some(Body::Chunked));
        } else if name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close") {
            closes = true;
        }
    }
    let body = body.ok_or_else(|| odd("the answer's length is unknown"))?;
    Ok(Head { status, body, closes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    #[test]
    fn heads() {
        let parsed = |text: &str| parse_head(text.as_bytes()).ok();
        let plain = parsed("HTTP/1.1 201 Created\r\nETag: \"3\"\r\nContent-Length: 12\r\n\r\n");
        assert_eq!(plain, Some(Head { status: 201, body: Body::Length(12), closes: false }));
        let chunked = parsed("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n");
        assert_eq!(chunked, Some(Head { status: 200, body: Body::Chunked, closes: true }));
        assert_eq!(parsed("HTTP/1.1 304 Not Modified\r\n\r\n").unwrap().body, Body::Length(0));
        for wrong in ["HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "SSH-2.0\r\n\r\n"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }

    /// Answers arrive in pieces of every size, one after the other on one connection.
    #[tokio::test]
    async fn answers_are_found_however_they_are_cut() {
        let answers = concat!(
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\na;x=y\r\n0123456789\r\n0\r\n\r\n",
            "HTTP/1.1 201 Created\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        );
        for piece in [1, 2, 3, 5, 17, 1000] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = Endpoint::parse(&listener.local_addr().unwrap().to_string()).unwrap();
            let server = std::thread::spawn(move || {
                let (mut socket, _) = listener.accept().unwrap();
                socket.set_nodelay(true).unwrap();
                let mut request = [0; 4];
                socket.read_exact(&mut request).unwrap();
                answers.as_bytes().chunks(piece).for_each(|bytes| socket.write_all(bytes).unwrap());
                // Until the client is done.
                socket.read_to_end(&mut Vec::new()).unwrap();
            });
            let mut wire = Wire::open(&endpoint).await.unwrap();
            assert_eq!(wire.exchange(b"ping").await.unwrap(), (200, true));
            assert_eq!(wire.exchange(b"ping").await.unwrap(), (404, true));
            assert_eq!(wire.exchange(b"ping").await.unwrap(), (201, false));
            drop(wire);
            server.join().unwrap();
        }
    }
}
