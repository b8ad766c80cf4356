//! The accept loop and the life of each connection's task.

use super::connection::{Activity, Counted, Patience, Quiet, Socket, Vanishing};
use super::wire::Security;
use crate::env::TaskSet;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use socket2::{SockRef, TcpKeepalive};
use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;

/// A tick of the idle watch; see `connection`.
const TICK: Duration = Duration::from_secs(30);
/// Connections that the kernel holds until they are accepted. Beyond it a client's first packets are
/// dropped, and it tries again 0.2 to 1 s later: a burst of some hundred clients must not meet that.
const BACKLOG: u32 = 4096;
/// Keep-alive probes of TCP, for connections on which nothing is said.
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// Streams of one HTTP/2 connection, and resets of streams not yet accepted, before it is cut off.
const H2_STREAMS_MAX: u32 = 256;
const H2_RESETS_MAX: usize = 20;
const H2_STREAM_WINDOW: u32 = 256 << 10;
const H2_CONNECTION_WINDOW: u32 = 1 << 20;
/// An HTTP/2 peer is asked this often whether it lives, and has this long to say so.
const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a connection that is to end waits for a request that its client may be sending just now. It is answered
/// and told that it was the last: of one that meets a closed connection nobody would know what became of it.
const FAREWELL: Duration = Duration::from_millis(50);

/// What a listener allows its peers.
#[derive(Debug, Clone)]
pub struct Limits {
    pub connections_max: usize,
    pub head_bytes_max: usize,
    pub headers_max: usize,
    /// From the first byte of a request's head to its last.
    pub head_timeout: Duration,
    /// Without a request.
    pub idle_timeout: Duration,
    /// Without the peer taking a byte of its answer.
    pub stall_timeout: Duration,
}

/// A bound address, not yet accepting.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restarted member takes its port back at once.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let socket = socket.listen(BACKLOG)?;
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    /// With the port that was chosen, if 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts until `stop` is cancelled, then lets open requests end for at most `drain`, then cuts
    /// what is left. Returns when every connection is closed, and whether none had to be cut.
    pub async fn serve<H, F, B>(
        self,
        handler: H,
        limits: Limits,
        tasks: TaskSet,
        stop: CancellationToken,
        drain: Duration,
    ) -> bool
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data = hyper::body::Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let slots = Arc::new(Semaphore::new(limits.connections_max));
        let all = u32::try_from(limits.connections_max).unwrap_or(u32::MAX);
        let shared =
            Arc::new(Shared { builder: builder(&limits), limits, stop: stop.clone(), cut: CancellationToken::new() });
        // Over the cap the connection is dropped at once: a refusal the client sees beats a place in a
        // queue that it does not.
        let admit = |stream| {
            if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
                tasks.spawn("connection", connection(stream, slot, handler.clone(), Arc::clone(&shared)));
            } else {
                tracing::debug!("connection refused: as many as allowed are open");
            }
        };
        while let Some(accepted) = stop.run_until_cancelled(self.socket.accept()).await {
            match accepted {
                Ok((stream, _)) => admit(stream),
                Err(error) => {
                    // Out of file descriptors, most likely: accepting at once again would spin.
                    tracing::warn!(%error, "accept failed");
                    let pause = sleep(Duration::from_millis(50));
                    stop.run_until_cancelled(pause).await;
                }
            }
        }
        // The kernel has let these in, and their clients may have sent something.
        if let Ok(socket) = self.socket.into_std() {
            let waiting = std::iter::from_fn(|| socket.accept().ok()).take(BACKLOG as usize);
            waiting.filter_map(|(stream, _)| from_std(stream).ok()).for_each(admit);
        }
        let closed = slots.acquire_many(all);
        let in_time = tokio::time::timeout(drain, closed).await.is_ok();
        if !in_time {
            shared.cut.cancel();
            // The tasks end at their next poll; an error is impossible, as nobody closes the semaphore.
            drop(slots.acquire_many(all).await);
        }
        in_time
    }
}

fn from_std(stream: std::net::TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream)
}

struct Shared {
    builder: Builder<TokioExecutor>,
    limits: Limits,
    stop: CancellationToken,
    cut: CancellationToken,
}

fn builder(limits: &Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(limits.headers_max)
        .max_buf_size(limits.head_bytes_max);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_pending_accept_reset_streams(H2_RESETS_MAX)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .keep_alive_interval(H2_PING_INTERVAL)
        .keep_alive_timeout(H2_PING_TIMEOUT);
    builder
}

async fn connection<H, F, B>(stream: TcpStream, _slot: OwnedSemaphorePermit, handler: H, shared: Arc<Shared>)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = hyper::body::Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    if let Err(error) = prepare(&stream, shared.limits.stall_timeout) {
        tracing::debug!(%error, "connection lost before its first request");
        return;
    }
    let Ok(stream) = Security::default().accept(stream).await else { return };
    let activity = Arc::new(Activity::default());
    let io = TokioIo::new(Socket::new(stream, Arc::clone(&activity)));
    let for_requests = Arc::clone(&activity);
    let service = service_fn(move |request| {
        let in_flight = for_requests.begin_request();
        let answer = handler(request);
        let activity = Arc::clone(&for_requests);
        async move {
            let mut answer = answer.await;
            if activity.answers_last() {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            if let Some(vanishing) = answer.extensions().get::<Vanishing>() {
                activity.notice_within(*vanishing);
            }
            Ok::<_, Infallible>(answer.map(|inner| Counted { inner, _in_flight: in_flight }))
        }
    });
    let mut serving = pin!(shared.builder.serve_connection(io, service));
    let patience =
        Patience { idle_ticks: ticks(shared.limits.idle_timeout), stalled_ticks: ticks(shared.limits.stall_timeout) };
    let mut watch = Watch { quiet: Quiet::default(), patience, head: None, tick: Box::pin(sleep(TICK)) };
    let mut stopping = pin!(shared.stop.cancelled());
    let mut cut = pin!(shared.cut.cancelled());
    let (mut farewell, mut draining) = (None, false);
    poll_fn(|cx| {
        if !draining && stopping.as_mut().poll(cx).is_ready() {
            activity.leave();
            let farewell = farewell.get_or_insert_with(|| Box::pin(sleep(FAREWELL)));
            if !activity.awaits_request() || farewell.as_mut().poll(cx).is_ready() {
                draining = true;
                serving.as_mut().graceful_shutdown();
            }
        }
        if farewell.is_some() && cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if let Poll::Ready(ended) = serving.as_mut().poll(cx) {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection ended");
            }
            return Poll::Ready(());
        }
        watch.poll(cx, &activity, shared.limits.head_timeout)
    })
    .await;
}

/// A peer that has vanished is noticed even where nothing is sent to it, and one that takes nothing
/// even where it still answers probes.
fn prepare(stream: &TcpStream, stall_timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(stall_timeout))?;
    Ok(())
}

fn ticks(within: Duration) -> u32 {
    u32::try_from(within.as_secs().div_ceil(TICK.as_secs())).unwrap_or(u32::MAX).max(1)
}

/// Ends a connection that is quiet for too long.
struct Watch {
    quiet: Quiet,
    patience: Patience,
    /// Runs while a request's head has begun and not ended.
    head: Option<Pin<Box<Sleep>>>,
    tick: Pin<Box<Sleep>>,
}

impl Watch {
    fn poll(&mut self, cx: &mut std::task::Context<'_>, activity: &Activity, head_timeout: Duration) -> Poll<()> {
        if activity.head_is_open() {
            let timer = self.head.get_or_insert_with(|| Box::pin(sleep(head_timeout)));
            if timer.as_mut().poll(cx).is_ready() {
                tracing::debug!("connection closed: a request's head did not arrive in time");
                return Poll::Ready(());
            }
        } else if self.head.is_some() {
            self.head = None;
        }
        while self.tick.as_mut().poll(cx).is_ready() {
            if self.quiet.tick(activity, self.patience) {
                return Poll::Ready(());
            }
            self.tick = Box::pin(sleep(TICK));
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures_util::FutureExt;
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LONG: Duration = Duration::from_secs(3_600);
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n";

    struct Served {
        address: SocketAddr,
        stop: CancellationToken,
        tasks: TaskSet,
    }

    async fn serve() -> Served {
        let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let (address, stop, tasks) = (listener.address(), CancellationToken::new(), TaskSet::new());
        let limits = Limits {
            connections_max: 10,
            head_bytes_max: 16 << 10,
            headers_max: 10,
            head_timeout: LONG,
            idle_timeout: LONG,
            stall_timeout: LONG,
        };
        let handler = |_| async { Response::new(Full::new(Bytes::from_static(b"answered"))) };
        let serving = listener.serve(handler, limits, tasks.clone(), stop.clone(), LONG);
        tasks.spawn("listener", serving.map(drop));
        Served { address, stop, tasks }
    }

    async fn ask(client: &mut TcpStream) -> String {
        client.write_all(REQUEST).await.unwrap();
        let mut answer = String::new();
        while !answer.ends_with("answered") {
            let mut piece = [0; 1_024];
            let length = client.read(&mut piece).await.unwrap();
            assert!(length > 0, "it ended after {answer:?}");
            answer.push_str(std::str::from_utf8(&piece[..length]).unwrap());
        }
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_meets_the_end_is_answered_and_told_that_it_was_the_last() {
        let served = serve().await;
        let mut kept = TcpStream::connect(served.address).await.unwrap();
        let mut silent = TcpStream::connect(served.address).await.unwrap();
        assert!(!ask(&mut kept).await.contains("connection: close"));
        // Simulated time stands still while there is work.
        let busy = TaskSet::new();
        busy.spawn_until_stop("busy", async {
            loop {
                tokio::task::yield_now().await;
            }
        });
        served.stop.cancel();
        assert!(ask(&mut kept).await.contains("connection: close"));
        assert_eq!(kept.read(&mut [0]).await.unwrap(), 0);
        assert!(busy.stop(LONG).await);
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "who asks nothing is not waited for");
        assert!(served.tasks.stop(LONG).await);
    }

    #[tokio::test]
    async fn who_was_let_in_by_the_kernel_is_answered() {
        let served = serve().await;
        // On this one thread nothing is accepted before the next wait.
        let waiting: Vec<_> = (0..3).map(|_| std::net::TcpStream::connect(served.address).unwrap()).collect();
        served.stop.cancel();
        for client in waiting {
            let mut client = from_std(client).unwrap();
            assert!(ask(&mut client).await.contains("connection: close"));
        }
        assert!(served.tasks.stop(LONG).await);
    }
}
