//! What bytes travel over, and how both ends make one: the seam for TLS.
//!
//! Plain TCP is the only security there is yet; TLS will be one more variant of `Security` and of
//! `Wire`, and nothing above this module will see the difference. Invariant: a wire has no delay of
//! small writes, and one that was dialled gives up on a peer that acknowledges nothing.

use super::connection::Noticing;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How a connection is protected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Security {
    #[default]
    Plain,
}

/// One connection.
#[derive(Debug)]
pub enum Wire {
    Plain(TcpStream),
}

/// How long the other end may be silent.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub connect: Duration,
    /// Bytes sent and not acknowledged for this long end the connection (`TCP_USER_TIMEOUT`).
    pub unacknowledged: Duration,
}

impl Security {
    /// Makes an accepted connection ready for use.
    pub(super) async fn accept(self, stream: TcpStream) -> io::Result<Wire> {
        stream.set_nodelay(true)?;
        match self {
            Self::Plain => Ok(Wire::Plain(stream)),
        }
    }

    /// Connects to `HOST:PORT`.
    ///
    /// # Errors
    /// If the name has no address, or nothing there answers in time.
    pub async fn dial(self, authority: &str, patience: Patience) -> io::Result<Wire> {
        let connected = tokio::time::timeout(patience.connect, TcpStream::connect(authority)).await;
        let stream =
            connected.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer to the connection"))??;
        stream.set_nodelay(true)?;
        let wire = match self {
            Self::Plain => Wire::Plain(stream),
        };
        wire.notice_within(patience.unacknowledged)?;
        Ok(wire)
    }
}

impl Noticing for Wire {
    fn notice_within(&self, unacknowledged: Duration) -> io::Result<()> {
        let Self::Plain(stream) = self;
        let unacknowledged = u32::try_from(unacknowledged.as_millis()).unwrap_or(u32::MAX);
        Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, unacknowledged)?)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
