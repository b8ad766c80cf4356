//! Newline-delimited JSON from a stream of chunks, one bounded line at a time.

use super::{Error, Problem, Stream};
use bytes::{Bytes, BytesMut};

/// The longest line: an entry of the largest request, in base64 and with its names.
const LINE_BYTES_MAX: usize = 128 << 20;

#[derive(Debug)]
pub struct Lines {
    stream: Stream,
    buffer: BytesMut,
    searched: usize,
    ended: bool,
}

impl Lines {
    #[must_use]
    pub fn new(stream: Stream) -> Self {
        Self { stream, buffer: BytesMut::new(), searched: 0, ended: false }
    }

    /// The next line without its newline; empty lines are skipped. `None` at a clean end: a stream that
    /// breaks off, or ends with a problem, is an error, so that half a listing is never taken for all of it.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let line = self.next_line().await?;
        match line.as_deref().and_then(Problem::from_line) {
            Some(problem) => Err(Error::Refused(Box::new(problem))),
            None => Ok(line),
        }
    }

    async fn next_line(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let end = self.searched + at;
                self.searched = 0;
                let line = self.buffer.split_to(end + 1).freeze().slice(..end);
                if !line.is_empty() {
                    return Ok(Some(line));
                }
                continue;
            }
            self.searched = self.buffer.len();
            if self.ended {
                self.searched = 0;
                let rest = self.buffer.split().freeze();
                return Ok((!rest.is_empty()).then_some(rest));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(Error::NotTenure {
                    endpoint: self.stream.endpoint().to_owned(),
                    message: format!("a line of more than {LINE_BYTES_MAX} bytes"),
                });
            }
            match self.stream.chunk().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => self.ended = true,
            }
        }
    }
}
