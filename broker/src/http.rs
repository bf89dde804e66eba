//! The HTTP listener for probes and metrics: `/healthz`, `/readyz`, `/metrics`.
//!
//! It knows nothing of MQTT: whether the broker is ready is told to it through [`Readiness`], whose one writer is
//! the server. Connections are few and short: [`CONNECTIONS_MAX`] at once, [`CONNECTION_LIFETIME_MAX`] each.

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections served at once; more wait in the backlog of the operating system.
pub const CONNECTIONS_MAX: usize = 64;
/// Time a connection may take to send the head of a request.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which a connection is closed, whatever it does.
pub const CONNECTION_LIFETIME_MAX: Duration = Duration::from_mins(1);

/// Whether clients are accepted: written by the server, read by `/readyz`. Clones share the state.
#[derive(Clone)]
pub struct Readiness {
    state: watch::Sender<ReadyState>,
    /// Says why clients are not served at this moment, though they are accepted as a rule.
    hindrance: Arc<OnceLock<Hindrance>>,
}

type Hindrance = Box<dyn Fn() -> Option<&'static str> + Send + Sync>;

/// What `/readyz` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyState {
    /// Not yet; this is what it waits for.
    Starting(&'static str),
    /// Clients are accepted.
    Ready,
    /// Not now: clients go to other pods.
    TurningAway,
    /// No longer: the broker shuts down.
    Draining,
    /// Never again: the broker stops because it cannot go on.
    Failed,
}

impl Default for Readiness {
    fn default() -> Self {
        let state = watch::Sender::new(ReadyState::Starting("starting"));
        Self { state, hindrance: Arc::default() }
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Readiness").field(&self.state()).finish()
    }
}

impl Readiness {
    /// Changes what `/readyz` says. Only [`ReadyState::Failed`] follows [`ReadyState::Draining`], and nothing follows
    /// that: a start that completes late does not make a stopping broker ready.
    pub fn set(&self, state: ReadyState) {
        self.state.send_if_modified(|current| {
            let changed = match *current {
                ReadyState::Starting(_) | ReadyState::Ready | ReadyState::TurningAway => *current != state,
                ReadyState::Draining => state == ReadyState::Failed,
                ReadyState::Failed => false,
            };
            if changed {
                *current = state;
            }
            changed
        });
    }

    /// From now on `/readyz` asks `hindrance` each time whether clients are served at that moment: if not, it says why.
    /// The first one that is given stays.
    pub fn ask(&self, hindrance: impl Fn() -> Option<&'static str> + Send + Sync + 'static) {
        // Whoever else might have given one has the same to say.
        let _ = self.hindrance.set(Box::new(hindrance));
    }

    /// What the broker takes itself for.
    #[must_use]
    pub fn state(&self) -> ReadyState {
        *self.state.borrow()
    }

    /// Waits until clients are accepted, or never will be: then `false`. Cancel-safe.
    pub async fn wait_ready(&self) -> bool {
        let mut state_rx = self.state.subscribe();
        let settled = state_rx.wait_for(|state| !matches!(state, ReadyState::Starting(_))).await;
        settled.is_ok_and(|state| *state == ReadyState::Ready)
    }
}

/// Serves probes and metrics on `listener` until `shutdown`, then closes what is open.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    registry: Arc<Registry>,
    shutdown: CancellationToken,
) {
    let router = router(readiness, registry);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &permits) => accepted,
        };
        match accepted {
            Ok((stream, permit)) => {
                let (router, shutdown) = (router.clone(), shutdown.clone());
                tasks.spawn(async move {
                    let _permit = permit;
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        () = serve_connection(stream, router) => {}
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: others will free some.
                tracing::warn!(%error, "http connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

async fn serve_connection(stream: TcpStream, router: Router) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_LIFETIME_MAX, connection).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "http connection failed"),
    }
}

#[derive(Clone)]
struct Shared {
    readiness: Readiness,
    registry: Arc<Registry>,
}

fn router(readiness: Readiness, registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(|| async { (StatusCode::NOT_FOUND, "served here: /healthz /readyz /metrics\n") })
        .with_state(Shared { readiness, registry })
}

async fn healthz(State(shared): State<Shared>) -> Response {
    match shared.readiness.state() {
        ReadyState::Starting(_) | ReadyState::Ready | ReadyState::TurningAway | ReadyState::Draining => {
            "ok\n".into_response()
        }
        ReadyState::Failed => (StatusCode::SERVICE_UNAVAILABLE, "failed\n").into_response(),
    }
}

async fn readyz(State(shared): State<Shared>) -> Response {
    match shared.readiness.state() {
        ReadyState::Ready => match shared.readiness.hindrance.get().and_then(|why| why()) {
            None => "ready\n".into_response(),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
        },
        ReadyState::TurningAway | ReadyState::Draining => {
            (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response()
        }
        ReadyState::Failed => (StatusCode::SERVICE_UNAVAILABLE, "failed\n").into_response(),
        ReadyState::Starting(what) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {what}\n")).into_response()
        }
    }
}

async fn metrics(State(shared): State<Shared>) -> Result<Response, Infallible> {
    let mut text = String::new();
    Ok(match prometheus_client::encoding::text::encode(&mut text, &shared.registry) {
        Ok(()) => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, content_type)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::metrics::Metrics;

    struct Server {
        addr: SocketAddr,
        readiness: Readiness,
        shutdown: CancellationToken,
        tasks: TaskTracker,
    }

    async fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut registry = Registry::default();
        Metrics::register(&mut registry).connections_opened.inc();
        let (readiness, shutdown, tasks) =
            (Readiness::default(), CancellationToken::new(), TaskTracker::new());
        tasks.spawn(serve(listener, readiness.clone(), Arc::new(registry), shutdown.clone()));
        Server { addr, readiness, shutdown, tasks }
    }

    async fn request(addr: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    #[tokio::test]
    async fn readiness_follows_the_broker() {
        let server = start().await;
        let readyz = || request(server.addr, "/readyz");
        assert_eq!(readyz().await, (503, "not ready: starting\n".to_owned()));
        server.readiness.set(ReadyState::Starting("opening the store"));
        assert_eq!(readyz().await, (503, "not ready: opening the store\n".to_owned()));
        server.readiness.set(ReadyState::Ready);
        assert!(server.readiness.wait_ready().await);
        assert_eq!(readyz().await, (200, "ready\n".to_owned()));
        server.readiness.set(ReadyState::TurningAway);
        assert_eq!(readyz().await, (503, "draining\n".to_owned()));
        assert_eq!(request(server.addr, "/healthz").await, (200, "ok\n".to_owned()));
        server.readiness.set(ReadyState::Ready);
        assert_eq!(readyz().await, (200, "ready\n".to_owned()));
        server.readiness.set(ReadyState::Draining);
        server.readiness.set(ReadyState::Ready);
        assert_eq!(readyz().await, (503, "draining\n".to_owned()));
        assert!(!server.readiness.wait_ready().await);
        assert_eq!(request(server.addr, "/healthz").await, (200, "ok\n".to_owned()));
        server.readiness.set(ReadyState::Failed);
        server.readiness.set(ReadyState::Draining);
        assert_eq!(readyz().await, (503, "failed\n".to_owned()));
        assert_eq!(request(server.addr, "/healthz").await, (503, "failed\n".to_owned()));
    }

    #[tokio::test]
    async fn metrics_and_unknown_paths() {
        let server = start().await;
        let (status, text) = request(server.addr, "/metrics").await;
        assert_eq!(status, 200);
        assert!(text.contains("weir_connections_opened_total 1\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
        assert_eq!(request(server.addr, "/").await.0, 404);
    }

    #[tokio::test]
    async fn silent_connections_neither_block_others_nor_the_end() {
        let server = start().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX - 1 {
            silent.push(TcpStream::connect(server.addr).await.unwrap());
        }
        assert_eq!(request(server.addr, "/healthz").await.0, 200);
        server.shutdown.cancel();
        server.tasks.close();
        server.tasks.wait().await;
        assert_eq!(silent[0].read(&mut [0; 1]).await.unwrap(), 0, "closed");
    }
}
