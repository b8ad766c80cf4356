//! What one connection does over time, kept without a clock read or a timer per request.
//!
//! hyper's own head timeout also runs while a kept-alive connection is idle, and costs a timer for
//! each request. Here the socket notes what happens as flags; the connection's task looks at them
//! once per tick, and arms a short timer only for a request head that did not arrive at once.

use hyper::body::{Body, Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The client's connection preface of HTTP/2 (RFC 9113 §3.4); its first line is enough to tell.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// An answer's extension: its connection ends once what was sent has not been acknowledged for this long, as
/// the end of the connection means something. It stays so for the rest of the connection.
#[derive(Debug, Clone, Copy)]
pub struct Vanishing(pub Duration);

/// What a socket can be told about the peer's silence.
pub(super) trait Noticing {
    /// Bytes sent and not acknowledged for this long end the connection.
    fn notice_within(&self, unacknowledged: Duration) -> io::Result<()>;
}

/// Shared by a connection's socket, its requests and its task.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// Bytes arrived while no request was being served, and no request has begun since.
    head_open: AtomicBool,
    /// The peer speaks HTTP/2, where frames between requests are normal.
    multiplexed: AtomicBool,
    /// A write is waiting for the peer to take bytes.
    write_blocked: AtomicBool,
    /// `Vanishing` in milliseconds, until the socket has taken it over; 0 is nothing.
    vanishing_ms: AtomicU32,
    leaving: AtomicBool,
    /// Requests whose answer has not been handed over completely.
    in_flight: AtomicU32,
    /// Grows with every read and write that moved bytes.
    moved: AtomicU64,
}

impl Activity {
    pub(super) fn head_is_open(&self) -> bool {
        self.head_open.load(Relaxed) && self.is_http1()
    }

    fn is_http1(&self) -> bool {
        !self.multiplexed.load(Relaxed)
    }

    /// The connection is about to end.
    pub(super) fn leave(&self) {
        self.leaving.store(true, Relaxed);
    }

    /// The client must be told by the answer that nothing follows it; HTTP/2 has a frame for that.
    pub(super) fn answers_last(&self) -> bool {
        self.leaving.load(Relaxed) && self.is_http1()
    }

    /// The next request may be on its way, and HTTP/1 has no way to turn it back.
    pub(super) fn awaits_request(&self) -> bool {
        self.is_http1() && self.in_flight.load(Relaxed) == 0
    }

    /// Takes effect with the next bytes that are sent.
    pub(super) fn notice_within(&self, Vanishing(within): Vanishing) {
        self.vanishing_ms.store(u32::try_from(within.as_millis()).unwrap_or(u32::MAX), Relaxed);
    }

    /// One request's share in the connection, until dropped.
    pub(super) fn begin_request(self: &Arc<Self>) -> InFlight {
        self.head_open.store(false, Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(Arc::clone(self))
    }
}

#[derive(Debug)]
pub(super) struct InFlight(Arc<Activity>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// Counts quiet ticks: what `Activity` showed at the last tick, and for how long it has not changed.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    seen: u64,
    ticks: u32,
}

/// How many ticks without a byte are allowed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) idle_ticks: u32,
    pub(super) stalled_ticks: u32,
}

impl Quiet {
    /// True if the connection has used up its patience.
    pub(super) fn tick(&mut self, activity: &Activity, patience: Patience) -> bool {
        let moved = activity.moved.load(Relaxed);
        if moved != self.seen {
            self.seen = moved;
            self.ticks = 0;
            return false;
        }
        self.ticks += 1;
        if activity.write_blocked.load(Relaxed) {
            return self.ticks >= patience.stalled_ticks;
        }
        // A request being served may be quiet for long: a blocking read, a watch without events.
        // How fast its body must arrive is the business of who reads it.
        activity.in_flight.load(Relaxed) == 0 && self.ticks >= patience.idle_ticks
    }
}

/// A socket that notes what happens on it.
#[derive(Debug)]
pub(super) struct Socket<S> {
    inner: S,
    activity: Arc<Activity>,
    /// How many bytes of the HTTP/2 preface have matched so far; `None` once it is decided.
    preface: Option<usize>,
    written: bool,
}

impl<S> Socket<S> {
    pub(super) fn new(inner: S, activity: Arc<Activity>) -> Self {
        Self { inner, activity, preface: Some(0), written: false }
    }

    fn note_read(&mut self, bytes: &[u8]) {
        if let Some(matched) = self.preface {
            let expected = &H2_PREFACE[matched..];
            let common = expected.len().min(bytes.len());
            self.preface = if expected[..common] != bytes[..common] {
                None
            } else if common == expected.len() {
                self.activity.multiplexed.store(true, Relaxed);
                None
            } else {
                Some(matched + common)
            };
        }
        self.activity.moved.fetch_add(1, Relaxed);
        if self.activity.in_flight.load(Relaxed) == 0 {
            self.activity.head_open.store(true, Relaxed);
        }
    }

    /// Before a write, so that it holds for what is written.
    fn before_write(&self) -> io::Result<()>
    where
        S: Noticing,
    {
        if self.activity.vanishing_ms.load(Relaxed) == 0 {
            return Ok(());
        }
        let within = self.activity.vanishing_ms.swap(0, Relaxed);
        self.inner.notice_within(Duration::from_millis(within.into()))
    }

    fn note_write<T>(&mut self, result: &Poll<io::Result<T>>) {
        self.written = true;
        self.activity.write_blocked.store(result.is_pending(), Relaxed);
        if result.is_ready() {
            self.activity.moved.fetch_add(1, Relaxed);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        if matches!(result, Poll::Ready(Ok(()))) && buf.filled().len() > before {
            self.note_read(&buf.filled()[before..]);
        }
        result
    }
}

impl<S: AsyncWrite + Noticing + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.before_write()?;
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.note_write(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.before_write()?;
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.note_write(&result);
        result
    }

    /// HTTP/2 asks first before it has written anything, and then decides below which size it copies frames
    /// together, to write many at once: 256 bytes where writes are vectored, 1,024 where they are not. Most
    /// answers and events lie between, and would cost a system call each. Later it asks for each write, and there
    /// a large frame is worth a vectored one.
    fn is_write_vectored(&self) -> bool {
        let asks_for_copying = self.activity.multiplexed.load(Relaxed) && !self.written;
        self.inner.is_write_vectored() && !asks_for_copying
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// An answer's body that keeps its request in flight until it has been handed over.
#[derive(Debug)]
pub(super) struct Counted<B> {
    pub(super) inner: B,
    pub(super) _in_flight: InFlight,
}

impl<B: Body + Unpin> Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Security, Wire};

    const PATIENCE: Patience = Patience { idle_ticks: 3, stalled_ticks: 2 };

    fn read(socket: &mut Socket<()>, chunks: &[&[u8]]) {
        chunks.iter().for_each(|chunk| socket.note_read(chunk));
    }

    #[test]
    fn a_head_is_open_from_its_first_byte_to_the_request() {
        let activity = Arc::new(Activity::default());
        let mut socket = Socket::new((), Arc::clone(&activity));
        assert!(!activity.head_is_open());
        read(&mut socket, &[b"GET / HT"]);
        assert!(activity.head_is_open());
        let request = activity.begin_request();
        assert!(!activity.head_is_open());
        read(&mut socket, &[b"body bytes"]);
        assert!(!activity.head_is_open(), "a body is not a head");
        drop(request);
        read(&mut socket, &[b"P"]);
        assert!(activity.head_is_open());
    }

    #[test]
    fn http2_is_told_by_its_preface_however_it_is_cut() {
        for cut in 1..H2_PREFACE.len() {
            let activity = Arc::new(Activity::default());
            let mut socket = Socket::new((), Arc::clone(&activity));
            read(&mut socket, &[&H2_PREFACE[..cut]]);
            assert!(activity.head_is_open(), "cut at {cut}");
            read(&mut socket, &[&H2_PREFACE[cut..], b"\r\nSM\r\n\r\n"]);
            assert!(!activity.head_is_open(), "cut at {cut}");
        }
        let activity = Arc::new(Activity::default());
        read(&mut Socket::new((), Arc::clone(&activity)), &[b"PRI * HTTP/1.1\r\n"]);
        assert!(activity.head_is_open());
    }

    /// Small frames of HTTP/2 are copied together, so that they share a system call.
    #[tokio::test]
    async fn http2_copies_small_frames_and_writes_large_ones_vectored() {
        use tokio::io::AsyncWriteExt;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (preface, at_first) in [(H2_PREFACE, false), (&b"GET / HTTP/1.1\r\n"[..], true)] {
            let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let server = Security::default().accept(listener.accept().await.unwrap().0).await.unwrap();
            let mut socket = Socket::new(server, Arc::new(Activity::default()));
            socket.note_read(preface);
            assert_eq!(socket.is_write_vectored(), at_first);
            socket.write_all(b"settings").await.unwrap();
            assert!(socket.is_write_vectored());
            drop(client);
        }
    }

    #[tokio::test]
    async fn an_answer_that_must_not_outlive_its_reader_says_so_to_the_socket() {
        use tokio::io::AsyncWriteExt;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let server = Security::default().accept(listener.accept().await.unwrap().0).await.unwrap();
        let timeout = |socket: &Socket<Wire>| {
            let Wire::Plain(stream) = &socket.inner;
            rustix::net::sockopt::tcp_user_timeout(stream).unwrap()
        };
        let activity = Arc::new(Activity::default());
        let mut socket = Socket::new(server, Arc::clone(&activity));
        socket.write_all(b"an answer").await.unwrap();
        assert_eq!(timeout(&socket), 0);
        activity.notice_within(Vanishing(Duration::from_secs(15)));
        socket.write_all(b"a stream begins").await.unwrap();
        assert_eq!(timeout(&socket), 15_000);
        drop(client);
    }

    #[test]
    fn idle_connections_run_out_of_patience_and_busy_ones_do_not() {
        let activity = Arc::new(Activity::default());
        let mut quiet = Quiet::default();
        activity.moved.store(1, Relaxed);
        assert_eq!([0; 4].map(|_| quiet.tick(&activity, PATIENCE)), [false, false, false, true]);
        let mut quiet = Quiet::default();
        let _request = activity.begin_request();
        assert_eq!([0; 5].map(|_| quiet.tick(&activity, PATIENCE)), [false; 5]);
        activity.write_blocked.store(true, Relaxed);
        assert!(quiet.tick(&activity, PATIENCE), "an answer that is not taken ends even a busy connection");
    }
}
