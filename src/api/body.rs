//! The body of an answer: nothing, bytes, or a stream; with its share of the byte budget, which is
//! given back when the last byte has been handed over.

use crate::service::Admission;
use bytes::Bytes;
use futures_util::Stream;
use hyper::body::{Frame, SizeHint};
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

/// An error ends the connection before the body's end, so that the client sees it was cut short.
type Chunks = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

pub struct Body {
    content: Content,
    admission: Option<Admission>,
}

enum Content {
    Full(Bytes),
    /// With the length of it all, if that is known.
    Stream(Chunks, Option<u64>),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.content {
            Content::Full(bytes) => write!(f, "Body({} bytes)", bytes.len()),
            Content::Stream(..) => f.write_str("Body(stream)"),
        }
    }
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self::full(Bytes::new())
    }

    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        Self { content: Content::Full(bytes.into()), admission: None }
    }

    pub(crate) fn stream(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self { content: Content::Stream(Box::pin(chunks), None), admission: None }
    }

    /// A stream that yields exactly so many bytes, or fails.
    pub(crate) fn sized(length: u64, chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        Self { content: Content::Stream(Box::pin(chunks), Some(length)), admission: None }
    }

    pub(crate) fn admitted(mut self, admission: Option<Admission>) -> Self {
        self.admission = admission.or(self.admission);
        self
    }

    /// The length, unless it is a stream.
    pub(crate) fn len(&self) -> Option<usize> {
        match &self.content {
            Content::Full(bytes) => Some(bytes.len()),
            Content::Stream(..) => None,
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.content {
            Content::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Content::Stream(chunks, _) => {
                chunks.as_mut().poll_next(cx).map(|chunk| chunk.map(|bytes| bytes.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.content, Content::Full(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Stream(_, Some(length)) => SizeHint::with_exact(*length),
            Content::Stream(_, None) => SizeHint::default(),
        }
    }
}
