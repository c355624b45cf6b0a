//! The HTTP proxy: CONNECT, and plain requests that name their target (`GET http://…`). RFC 9110, RFC 9112.
//!
//! hyper reads and writes the messages; this file decides where they go. A client's requests are served one after the
//! other. CONNECT turns the connection into bytes both ways. Any other request is sent on by its origin form: headers of
//! the hop are taken out in both directions, `Host` follows the target, `Via` is added, and bodies stream, as large as
//! they like. The connection to the last target is kept for the next request to it. With a certificate clients speak TLS
//! with the proxy, and all of the above inside.
//!
//! What cannot be done is said by a status and a line of text: see the table in `failure.rs`. 407 asks for
//! credentials, and a client may try again on the same connection, for as long as a handshake may take: it is half-open
//! until it is let in.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use base64ct::{Base64, Encoding};
use http_body_util::{Either, Full};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::Authority;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use super::Context;
use super::clients::{Clients, HalfOpen, Served};
use super::counters::Counters;
use super::credentials::Credentials;
use super::dial::dial;
use super::failure::Failure;
use super::network::{Connection, Network};
use super::relay::relay;
use super::socks5::message::host_of_name;
use crate::proxy::config::{Http, Target};

/// A request's line and headers, and what is read at once of a body.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// For the next request of a client that was let in: from the end of the one before to its last header.
const NEXT_REQUEST_TIME: Duration = Duration::from_secs(60);
/// For a kept connection to say that it can take another request.
const REUSE_TIME: Duration = Duration::from_millis(250);
const HTTP_PORT: u16 = 80;
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const VIA: HeaderValue = HeaderValue::from_static("1.1 adit");
const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"adit\", charset=\"UTF-8\"");

/// Somebody else's, as it comes, or ours.
type Body = Either<Incoming, Full<Bytes>>;

/// What all clients of a listener share.
struct Server<N: Network> {
    context: Context<N>,
    clients: Clients,
    credentials: Option<Credentials>,
    /// For clients that speak TLS.
    acceptor: Option<TlsAcceptor>,
}

/// One client's connection.
struct Session<N: Network> {
    server: Arc<Server<N>>,
    from: SocketAddr,
    state: Mutex<State<N>>,
    /// The client is let in.
    admitted: Notify,
}

/// What one request leaves behind for the next, or for the end of HTTP.
struct State<N: Network> {
    served: Option<Served>,
    /// The connection to the last target.
    upstream: Option<Upstream>,
    /// CONNECT was answered: what the connection is to be joined with.
    tunnel: Option<(OnUpgrade, N::Stream)>,
}

/// A connection to a target, driven by a task of its own.
struct Upstream {
    authority: Authority,
    sender: SendRequest<Body>,
    driver: AbortHandle,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Serves clients for ever.
pub(super) async fn serve<N: Network>(listener: TcpListener, description: &Http, context: Context<N>) -> Infallible {
    let clients = context.clients();
    let server = Arc::new(Server {
        clients: clients.clone(),
        credentials: Credentials::new(description.username.as_deref(), description.password.as_ref()),
        acceptor: description.certificate.as_ref().map(|certificate| TlsAcceptor::from(certificate.server())),
        context,
    });
    clients
        .shake_hands(&listener, |stream, from, half_open| {
            let server = Arc::clone(&server);
            async move {
                let context = server.context.clone();
                let served = match server.acceptor.clone() {
                    None => client(server, spoken(stream), from, half_open).await,
                    Some(acceptor) => {
                        let opening = async {
                            let accepted = acceptor.accept(spoken(stream).await?).await;
                            accepted.inspect_err(|error| tracing::debug!(client = %from, %error, "no TLS"))
                        };
                        client(server, opening, from, half_open).await
                    }
                };
                if let Err(failure) = served {
                    context.counters.failed(failure);
                    tracing::debug!(client = %from, %failure, "not served");
                }
            }
        })
        .await
}

/// The connection, once its client has said something: who says nothing costs no buffer.
async fn spoken(stream: TcpStream) -> io::Result<TcpStream> {
    stream.readable().await?;
    Ok(stream)
}

/// Serves the client of a connection that is what `opening` gives: a part of its handshake.
async fn client<N: Network, S: Connection>(
    server: Arc<Server<N>>,
    opening: impl Future<Output = io::Result<S>>,
    from: SocketAddr,
    half_open: HalfOpen,
) -> Result<(), Failure> {
    let context = server.context.clone();
    let state = Mutex::new(State { served: None, upstream: None, tunnel: None });
    let session = Arc::new(Session { server, from, state, admitted: Notify::new() });
    let first = async {
        let stream = opening.await.map_err(|_| Failure::Malformed)?;
        let answering = Arc::clone(&session);
        let service = service_fn(move |request| Arc::clone(&answering).answer(request));
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(NEXT_REQUEST_TIME)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .preserve_header_case(true)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = Box::pin(connection);
        Ok(tokio::select! {
            ended = connection.as_mut() => (connection, Some(ended)),
            () = session.admitted.notified() => (connection, None),
        })
    };
    let (connection, ended) = half_open.within(Box::pin(first)).await??;
    let ended = match ended {
        Some(ended) => ended,
        None => connection.await,
    };
    match ended {
        Ok(()) => {}
        Err(error) if error.is_parse() => return Err(Failure::Malformed),
        // The client has asked all that it wanted, or has gone.
        Err(error) => {
            tracing::debug!(client = %from, %error, "the connection ended");
            return Ok(());
        }
    }
    let tunnel = session.state().tunnel.take();
    let Some((upgrade, mut target)) = tunnel else { return Ok(()) };
    let Ok(upgraded) = upgrade.await else { return Ok(()) };
    let parts = upgraded.downcast::<TokioIo<S>>().expect("the connection was made of this");
    // What the client has sent ahead of the answer.
    let broken = |error: io::Error| {
        tracing::debug!(client = %from, %error, "the connection broke");
        Failure::Broken
    };
    target.write_all(&parts.read_buf).await.map_err(broken)?;
    context.counters.sent(parts.read_buf.len());
    let stream = parts.io.into_inner();
    relay(stream, target, None, &context.buffers, &context.counters).await.map_err(broken)
}

impl<N: Network> Session<N> {
    fn state(&self) -> MutexGuard<'_, State<N>> {
        // Nothing is left half-done by a panic: each critical section changes one field.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to one request; that of a failure, if there is one.
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let outcome = match self.admit(&request) {
            Ok(()) if request.method() == Method::CONNECT => self.connect(request).await,
            Ok(()) => self.forward(request).await,
            Err(failure) => Err(failure),
        };
        Ok(outcome.unwrap_or_else(|failure| {
            self.server.context.counters.failed(failure);
            tracing::debug!(client = %self.from, %failure, "not served");
            refusal(failure)
        }))
    }

    /// Lets the client in, once: if it may, and if there is room.
    fn admit(&self, request: &Request<Incoming>) -> Result<(), Failure> {
        if let Some(credentials) = &self.server.credentials
            && !may(credentials, request.headers())
        {
            return Err(Failure::Unauthenticated);
        }
        let mut state = self.state();
        if state.served.is_none() {
            state.served = Some(self.server.clients.admit()?);
            self.admitted.notify_one();
        }
        Ok(())
    }

    async fn dial(&self, target: &Target) -> Result<N::Stream, Failure> {
        let context = &self.server.context;
        dial(&context.network, target, context.strategy(), context.limits.connect_timeout).await
    }

    /// CONNECT: joins the connection with one to the target, after the answer. [RFC 9110 §9.3.6]
    async fn connect(&self, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
        let authority = request.uri().authority().ok_or(Failure::Malformed)?;
        // A body would have to be cut out of what is for the target.
        if !request.body().is_end_stream() {
            return Err(Failure::Malformed);
        }
        let connection = self.dial(&target(authority, None)?).await?;
        self.state().upstream = None;
        self.state().tunnel = Some((hyper::upgrade::on(request), connection));
        Ok(Response::new(Either::Right(Full::default())))
    }

    /// Any other request: sent on to the host that it names.
    async fn forward(&self, mut request: Request<Incoming>) -> Result<Response<Body>, Failure> {
        let uri = request.uri();
        if uri.scheme_str() != Some("http") {
            return Err(Failure::Malformed);
        }
        let authority = without_userinfo(uri.authority().ok_or(Failure::Malformed)?)?;
        let target = target(&authority, Some(HTTP_PORT))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse::<Uri>().map_err(|_| Failure::Malformed)?;
        *request.version_mut() = Version::HTTP_11;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Failure::Malformed)?;
        let in_chunks = request.body().size_hint().exact().is_none();
        let headers = request.headers_mut();
        take_hop_out(headers);
        if in_chunks {
            // Unasked, hyper does so for some methods only, and drops the body of a GET.
            headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        // [RFC 9112 §3.2.2]: the target of the request counts, whatever the client said of the host.
        headers.insert(header::HOST, host);
        headers.append(header::VIA, VIA);

        let mut response = self.send(request.map(Either::Left), authority, &target).await?;
        take_hop_out(response.headers_mut());
        response.headers_mut().append(header::VIA, VIA);
        *response.version_mut() = Version::HTTP_11;
        Ok(response.map(Either::Left))
    }

    /// Sends a request, over the kept connection if that leads to the same target and is still good.
    async fn send(
        &self,
        mut request: Request<Body>,
        authority: Authority,
        target: &Target,
    ) -> Result<Response<Incoming>, Failure> {
        let kept = self.state().upstream.take();
        if let Some(mut upstream) = kept.filter(|upstream| upstream.authority == authority)
            && let Ok(Ok(())) = tokio::time::timeout(REUSE_TIME, upstream.sender.ready()).await
        {
            let again = repeated(&request);
            match upstream.sender.try_send_request(request).await {
                Ok(response) => {
                    self.state().upstream = Some(upstream);
                    return Ok(response);
                }
                // It was closed before a byte of the request was sent, so the request is still whole; or while it was,
                // which is no reason to fail what may be asked twice.
                Err(mut error) => match error.take_message().or(again) {
                    Some(unsent) => request = unsent,
                    None => return Err(self.broken(target, error.error())),
                },
            }
        }
        let connection = self.dial(target).await?;
        let counters = Arc::clone(&self.server.context.counters);
        let io = TokioIo::new(Counted { connection, counters });
        let handshake = hyper::client::conn::http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .preserve_header_case(true)
            .handshake(io);
        let (mut sender, connection) = handshake.await.map_err(|error| self.broken(target, &error))?;
        let driver = tokio::spawn(async move {
            // What goes wrong is told to who waits for the response.
            let _ = connection.await;
        });
        let driver = driver.abort_handle();
        let response = sender.try_send_request(request).await;
        let upstream = Upstream { authority, sender, driver };
        let response = response.map_err(|error| self.broken(target, error.error()))?;
        self.state().upstream = Some(upstream);
        Ok(response)
    }

    fn broken(&self, target: &Target, error: &hyper::Error) -> Failure {
        tracing::debug!(client = %self.from, %target, %error, "no response");
        Failure::Broken
    }
}

/// Whether the request carries the right credentials. [RFC 7617 §2]
fn may(credentials: &Credentials, headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::PROXY_AUTHORIZATION) else { return false };
    let value = value.as_bytes();
    let Some((scheme, encoded)) = value.split_at_checked("Basic ".len()) else { return false };
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return false;
    }
    let mut decoded = Zeroizing::new(vec![0; encoded.len()]);
    let Ok(decoded) = Base64::decode(encoded.trim_ascii(), &mut decoded) else { return false };
    let Some(colon) = decoded.iter().position(|&byte| byte == b':') else { return false };
    credentials.match_with(&decoded[..colon], &decoded[colon + 1..])
}

/// The same request, if it may be sent twice and has no body that the first time has used up. [RFC 9110 §9.2.2]
fn repeated(request: &Request<Body>) -> Option<Request<Body>> {
    if !request.method().is_safe() || !request.body().is_end_stream() {
        return None;
    }
    let mut again = Request::new(Either::Right(Full::default()));
    again.method_mut().clone_from(request.method());
    again.uri_mut().clone_from(request.uri());
    again.headers_mut().clone_from(request.headers());
    again.extensions_mut().clone_from(request.extensions());
    Some(again)
}

/// Where an authority leads to: to its port, or else to the `usual` one, if there is one.
fn target(authority: &Authority, usual: Option<u16>) -> Result<Target, Failure> {
    let host = authority.host();
    let text = authority.as_str();
    let text = text.rsplit_once('@').map_or(text, |(_, text)| text);
    let port = match text.strip_prefix(host).ok_or(Failure::Malformed)? {
        "" | ":" => usual,
        port => port
            .strip_prefix(':')
            .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|port| port.parse().ok()),
    };
    let port = port.ok_or(Failure::Malformed)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let host = host_of_name(host.as_bytes()).ok_or(Failure::NameNotResolved)?;
    if port == 0 { Err(Failure::NotAllowed) } else { Ok(Target { host, port }) }
}

/// The authority that the target may see. [RFC 9110 §4.2.4]
fn without_userinfo(authority: &Authority) -> Result<Authority, Failure> {
    match authority.as_str().rsplit_once('@') {
        Some((_, host)) => host.parse().map_err(|_| Failure::Malformed),
        None => Ok(authority.clone()),
    }
}

/// Removes what is said to the next hop only: what `Connection` lists, and what is so by definition. hyper frames the
/// body anew; a length that is not that of chunks beside it must not survive them. [RFC 9110 §7.6.1], [RFC 9112 §6.3]
fn take_hop_out(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    let always = [
        header::CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    // Who lists these wants to hide the length of a body or where it goes, which no hop may.
    let never = [header::CONTENT_LENGTH, header::HOST];
    for name in listed.iter().chain(&always).filter(|name| !never.contains(name)) {
        headers.remove(name);
    }
}

/// What a client is told that is not served.
fn refusal(failure: Failure) -> Response<Body> {
    let mut response = Response::new(Either::Right(Full::from(format!("{failure}\n"))));
    *response.status_mut() = failure.status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    match failure.status() {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            headers.insert(header::PROXY_AUTHENTICATE, CHALLENGE);
        }
        // There is no place for another request of this client either.
        StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}

/// A connection whose bytes are counted.
struct Counted<S> {
    connection: S,
    counters: Arc<Counters>,
}

impl<S: Connection> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.connection).poll_read(cx, buffer);
        self.counters.received(buffer.filled().len() - before);
        polled
    }
}

impl<S: Connection> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.connection).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = polled {
            self.counters.sent(written);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}
