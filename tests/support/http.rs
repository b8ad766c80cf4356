//! A blocking HTTP/1.1 client that knows whether a request can have reached the server: one
//! connection, no retries, no redirects.

use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    timeout: Duration,
    connection: Option<BufReader<TcpStream>>,
}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

#[derive(Debug)]
#[allow(dead_code, reason = "the errors are there for failure messages, which print them with Debug")]
pub(crate) enum Lost {
    /// No connection: the request was never sent.
    NotSent(io::Error),
    /// No whole answer came back: anything may have happened.
    Unknown(io::Error),
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("status {}: not JSON ({error}): {}", self.status, String::from_utf8_lossy(&self.body))
        })
    }

    /// `Tenure-Revision`, which every answer about keys carries.
    pub(crate) fn revision(&self) -> i64 {
        let header = self.header("tenure-revision").and_then(|text| text.parse().ok());
        header.unwrap_or_else(|| panic!("no Tenure-Revision on a {}: {:?}", self.status, self.headers))
    }
}

impl Client {
    pub(crate) fn new(address: SocketAddr, timeout: Duration) -> Self {
        Self { address, timeout, connection: None }
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<Response, Lost> {
        self.request("GET", path, &[], b"")
    }

    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, Lost> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().map_err(Lost::NotSent)?,
        };
        let response = exchange(&mut connection, method, path, headers, body).map_err(Lost::Unknown)?;
        if response.header("connection").is_none_or(|value| !value.eq_ignore_ascii_case("close")) {
            self.connection = Some(connection);
        }
        Ok(response)
    }

    fn connect(&self) -> io::Result<BufReader<TcpStream>> {
        let stream = TcpStream::connect_timeout(&self.address, self.timeout)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        stream.set_nodelay(true)?;
        Ok(BufReader::new(stream))
    }
}

fn send(
    connection: &mut BufReader<TcpStream>,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<()> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    bytes.push_str("\r\n");
    let mut bytes = bytes.into_bytes();
    bytes.extend_from_slice(body);
    connection.get_mut().write_all(&bytes)
}

fn exchange(
    connection: &mut BufReader<TcpStream>,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    send(connection, method, path, headers, body)?;
    let (status, headers) = read_head(connection)?;
    let mut response = Response { status, headers, body: Vec::new() };
    if response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        response.body = read_chunks(connection)?;
    } else if status != 204 && status != 304 {
        let length = response.header("content-length").and_then(|text| text.parse().ok());
        let length: usize = length.ok_or_else(|| io::Error::other("an answer without a length"))?;
        response.body = vec![0; length];
        connection.read_exact(&mut response.body)?;
    }
    Ok(response)
}

fn read_line(connection: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if connection.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

fn read_head(connection: &mut impl BufRead) -> io::Result<(u16, Vec<(String, String)>)> {
    let status = read_line(connection)?;
    let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code.ok_or_else(|| io::Error::other(format!("not a status line: {status}")))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(connection)?;
        match line.split_once(':') {
            Some((name, value)) => headers.push((name.trim().to_owned(), value.trim().to_owned())),
            None if line.is_empty() => return Ok((code, headers)),
            None => return Err(io::Error::other(format!("not a header: {line}"))),
        }
    }
}

fn read_chunks(connection: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(connection)?;
        let length = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; length];
        connection.read_exact(&mut chunk)?;
        body.extend_from_slice(&chunk);
        read_line(connection)?;
        if length == 0 {
            return Ok(body);
        }
    }
}
