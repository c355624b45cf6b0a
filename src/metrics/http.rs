//! The HTTP server for scrapers and probes: `/metrics`, `/livez`, `/readyz`, by GET and HEAD.
//!
//! One thread with a runtime of its own sleeps until somebody connects; what may take its time (a scrape of many peers)
//! runs on one of a few threads beside it, so that a probe is answered meanwhile. What is shown is a [`Site`]'s matter.
//!
//! | path | status | body |
//! |---|---|---|
//! | `/metrics` | 200 | OpenMetrics |
//! | `/livez` | 200, or 503 when the site is not alive | `ok`, or why not |
//! | `/readyz` | 200, or 503 when the site is not ready | `ok`, or why not, a line for each reason |
//! | any other | 404 | |
//! | any, by another method | 405 | |
//!
//! Strangers may connect, so everything that one can hold is bounded:
//! - [`CONNECTIONS_MAX`] at once; one more ends the oldest, so that those who hold connections never keep a probe out;
//! - a connection serves one request and lives no longer than [`CONNECTION_LIMIT`]; its head comes within [`HEAD_LIMIT`]
//!   and is not longer than [`HEAD_BYTES_MAX`];
//! - [`SCRAPES_MAX`] scrapes at once, others wait for their turn; what a slow reader has not taken yet is a few chunks of
//!   [`CHUNK_BYTES`] and the figures that the text is made from.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::timeout;

use super::exposition::{self, Exposition};
use crate::device::Device;

/// Connections at once: a few scrapers and probes need one each for milliseconds; more are somebody's mistake or worse.
pub const CONNECTIONS_MAX: usize = 32;
/// How long a connection may take in all: longer than scrapers wait (10 s unless told otherwise), for very many peers.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// How long a request's head may take: a probe's is one packet.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of a request's head; the least that hyper takes. Scrapers send a few hundred.
const HEAD_BYTES_MAX: usize = 8192;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// Scrapes at once: two scrapers, as those have who want to lose none.
const SCRAPES_MAX: usize = 2;
/// Threads for what may take its time: scrapes, and probes beside them.
const THREADS_MAX: usize = SCRAPES_MAX + 2;
/// Bytes of text that are written at once: a system call for each 100 peers.
const CHUNK_BYTES: usize = 32 << 10;
/// Chunks that wait for the reader.
const CHUNKS_WAITING: usize = 1;
/// How long to pause when the system gives no connection, for want of descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the end may wait for a scrape under way.
const STOP_LIMIT: Duration = Duration::from_millis(200);

/// What is shown. Each method may be called from several threads at once, and may take its time but for `is_alive`.
pub trait Site: Send + Sync + 'static {
    /// Whether it works at all: a supervisor restarts what does not. Must not wait.
    ///
    /// # Errors
    /// Why not, in a line.
    fn is_alive(&self) -> Result<(), String>;

    /// Whether it does what it is there for: traffic is kept from what does not. Takes its present state into account.
    ///
    /// # Errors
    /// Why not: a line for each reason.
    fn is_ready(&self) -> Result<(), Vec<String>>;

    /// The present metrics; `None` when there is nothing any more that they could be of.
    fn metrics(&self) -> Option<Exposition>;
}

/// A device alone: alive and ready while its threads run.
pub struct DeviceSite {
    /// Gone when the device has been dropped.
    pub device: Weak<Device>,
}

impl DeviceSite {
    const ENDED: &'static str = "the device has ended";
}

impl Site for DeviceSite {
    fn is_alive(&self) -> Result<(), String> {
        let device = self.device.upgrade().filter(|device| device.is_running());
        device.map(drop).ok_or_else(|| Self::ENDED.to_owned())
    }

    fn is_ready(&self) -> Result<(), Vec<String>> {
        self.is_alive().map_err(|reason| vec![reason])
    }

    fn metrics(&self) -> Option<Exposition> {
        let device = self.device.upgrade()?;
        Some(Exposition::new(&device.name(), &device.snapshot(), device.figures()))
    }
}

/// A server that runs; dropping it ends it.
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("The server of metrics panicked");
        }
    }
}

/// Serves `site` to whoever connects, from a thread of its own, which has what the caller's has of privileges.
///
/// # Errors
/// What the system says when it refuses the thread or what it waits with.
pub fn serve(listener: TcpListener, site: Arc<dyn Site>) -> io::Result<Server> {
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(THREADS_MAX)
        .thread_name("metrics-scrape")
        .build()?;
    let (stop, stopped) = oneshot::channel();
    let thread =
        thread::Builder::new().name("metrics".to_owned()).spawn(move || run(runtime, listener, site, stopped))?;
    Ok(Server { address, stop: Some(stop), thread: Some(thread) })
}

fn run(runtime: Runtime, listener: TcpListener, site: Arc<dyn Site>, stopped: oneshot::Receiver<Infallible>) {
    runtime.block_on(async {
        let listener = match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!("Metrics cannot be served: {error}"),
        };
        let scrapes = Arc::new(Semaphore::new(SCRAPES_MAX));
        tokio::select! {
            // Ends by the sender's end.
            _ = stopped => {}
            never = accept(listener, site, scrapes) => match never {},
        }
    });
    // Connections end here, and with them what writes for them.
    runtime.shutdown_timeout(STOP_LIMIT);
}

async fn accept(listener: tokio::net::TcpListener, site: Arc<dyn Site>, scrapes: Arc<Semaphore>) -> Infallible {
    let mut connections: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!("No connection for metrics: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= CONNECTIONS_MAX
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let (site, scrapes) = (site.clone(), scrapes.clone());
        let service = service_fn(move |request| answer(request, site.clone(), scrapes.clone()));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .keep_alive(false)
            // Who has said everything may say so, and still wants the answer.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service);
        // A connection that fails or is late is its peer's matter.
        connections.push_back(tokio::spawn(async { drop(timeout(CONNECTION_LIMIT, connection).await) }).abort_handle());
    }
}

async fn answer<B>(
    request: Request<B>,
    site: Arc<dyn Site>,
    scrapes: Arc<Semaphore>,
) -> Result<Response<Text>, Infallible> {
    let path = request.uri().path();
    if !["/metrics", "/livez", "/readyz"].contains(&path) {
        return Ok(plain(StatusCode::NOT_FOUND, "there are /metrics, /livez and /readyz\n"));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "by GET or HEAD only\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    Ok(match path {
        "/livez" => verdict(site.is_alive().map_err(|reason| vec![reason])),
        "/readyz" => match spawn_blocking(move || site.is_ready()).await {
            Ok(result) => verdict(result),
            Err(_) => failed(),
        },
        _ if *request.method() == Method::HEAD => metrics(Text::default()),
        _ => metrics(scrape(site, scrapes)),
    })
}

fn verdict(result: Result<(), Vec<String>>) -> Response<Text> {
    match result {
        Ok(()) => plain(StatusCode::OK, "ok\n"),
        Err(reasons) => {
            let lines: String = reasons.iter().map(|reason| format!("{reason}\n")).collect();
            plain(StatusCode::SERVICE_UNAVAILABLE, lines)
        }
    }
}

fn failed() -> Response<Text> {
    plain(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be made\n")
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Text> {
    let mut response = Response::new(Text::Whole(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn metrics(text: Text) -> Response<Text> {
    let mut response = Response::new(text);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(exposition::CONTENT_TYPE));
    response
}

/// The metrics, made on another thread and handed over piece by piece as the reader takes them.
fn scrape(site: Arc<dyn Site>, scrapes: Arc<Semaphore>) -> Text {
    let (chunks, text) = mpsc::channel(CHUNKS_WAITING);
    tokio::spawn(async move {
        // Nobody closes the semaphore. A reader who has gone meanwhile costs nothing more.
        let Ok(_turn) = scrapes.acquire_owned().await else { return };
        if chunks.is_closed() {
            return;
        }
        let mut writer = Chunks { text: String::with_capacity(CHUNK_BYTES), chunks: chunks.clone() };
        let written = spawn_blocking(move || {
            let exposition = site.metrics().ok_or(fmt::Error)?;
            exposition.write(&mut writer)?;
            writer.flush()
        });
        if !matches!(written.await, Ok(Ok(()))) {
            // The connection ends before its time, so that nobody takes the text for whole.
            let _ = chunks.send(Err(Interrupted)).await;
        }
    });
    Text::Chunks(text)
}

/// The text ends before its time.
#[derive(Debug)]
struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the text could not be written to its end")
    }
}

impl std::error::Error for Interrupted {}

/// Gathers text to chunks, and waits while the reader has enough of them.
struct Chunks {
    text: String,
    chunks: mpsc::Sender<Result<Bytes, Interrupted>>,
}

impl Chunks {
    fn flush(&mut self) -> fmt::Result {
        let chunk = std::mem::replace(&mut self.text, String::with_capacity(CHUNK_BYTES));
        // Refused when the reader has gone.
        self.chunks.blocking_send(Ok(chunk.into())).map_err(|_| fmt::Error)
    }
}

impl fmt::Write for Chunks {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.text.len() + text.len() > CHUNK_BYTES && !self.text.is_empty() {
            self.flush()?;
        }
        self.text.push_str(text);
        Ok(())
    }
}

/// The body of an answer.
enum Text {
    /// In one piece, which is taken when it is sent.
    Whole(Bytes),
    /// As it is written.
    Chunks(mpsc::Receiver<Result<Bytes, Interrupted>>),
}

impl Default for Text {
    fn default() -> Self {
        Self::Whole(Bytes::new())
    }
}

impl Body for Text {
    type Data = Bytes;
    type Error = Interrupted;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Chunks(chunks) => chunks.poll_recv(context).map(|chunk| Some(chunk?.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Chunks(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests;
