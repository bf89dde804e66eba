//! Where clients connect: sockets are bound here, connections accepted within the limits, and brought to the first
//! byte of MQTT. What MQTT says is not looked at here.
//!
//! Bounds: `limits.maxConnections` and each listener's own, `limits.connectionRate`; the time until CONNECT is the
//! connection's. A listener's [`Peer`] is all that the rest of the broker learns.

mod bind;
mod establish;
mod metrics;
mod pace;
mod peer;
mod proxy;
mod reload;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_auth::Network;
use weir_env::clock::{Clock, Instant};

use crate::broker::Broker;
use crate::config::{self, Config, ListenAt};
use crate::connection;
use crate::metrics::{Closed, Metrics};
use crate::slots::{Slot, Slots};
use crate::transport::{Socket, Stream};
use bind::Listening;
use metrics::ByListener;
use pace::Pace;

pub(crate) use establish::establish;
pub use metrics::ListenerMetrics;
pub use peer::{Certificate, Peer, PeerAddr};
pub(crate) use reload::follow;
pub(crate) use tls::{Reloaded, TlsServer};

/// Wait after an error of `accept`, such as too many open files.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);
/// Time between two lines in the log about connections of one listener that failed.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// One way in, as its connections know it.
#[derive(Debug)]
pub struct Listener {
    /// Its name, unique in this process.
    pub name: String,
    /// What is counted of its connections.
    pub metrics: ListenerMetrics,
    tls: Option<TlsServer>,
    is_websocket: bool,
    paths: Vec<String>,
    origins: Vec<String>,
    proxy_protocol: bool,
    /// Who may send its header; nobody named: everybody.
    proxy_from: Vec<Network>,
    /// One for each connection it may have, if it has a bound of its own.
    permits: Option<Arc<Semaphore>>,
    clock: Clock,
    log: LogLimit,
}

/// A listener whose socket is bound.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) listener: Arc<Listener>,
    /// As a URL, with the port that was taken.
    pub(crate) url: String,
    /// Of TCP.
    pub(crate) addr: Option<SocketAddr>,
    socket: Listening,
}

/// How often something may be logged that clients cause.
#[derive(Debug, Default)]
struct LogLimit(Mutex<Logged>);

#[derive(Debug, Default)]
struct Logged {
    last: Option<Instant>,
    unlogged: u64,
}

/// What all listeners share.
#[derive(Clone)]
pub(crate) struct Accepting {
    broker: Arc<Broker>,
    slots: Slots,
    pace: Arc<Pace>,
    clients: TaskTracker,
    shutdown: CancellationToken,
}

/// The places of a connection, in the broker and at its listener, given up when dropped.
pub(crate) struct Entry {
    /// In the broker.
    pub(crate) slot: Slot,
    listener: Arc<Listener>,
    _own: Option<OwnedSemaphorePermit>,
}

/// Binds every listener of `config` and registers their metrics.
pub(crate) fn bind_all(config: &Config, clock: Clock, registry: &mut Registry) -> anyhow::Result<Vec<Bound>> {
    let metrics = ByListener::register(registry);
    let bind = |one: &config::Listener| {
        let listener = Arc::new(Listener::load(one, &metrics, clock)?);
        let socket = Listening::bind(one, &config.listeners)?;
        let addr = socket.addr()?;
        Ok(Bound { listener, url: bind::shown(one, addr), addr, socket })
    };
    config.listeners.iter().map(bind).collect()
}

/// A listening socket at `addr`, for something other than MQTT.
pub(crate) fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    bind::bind_tcp(addr, true)
}

impl Listener {
    fn load(config: &config::Listener, metrics: &ByListener, clock: Clock) -> anyhow::Result<Self> {
        use anyhow::Context;
        if config.proxy_protocol && config.proxy_from.is_empty() && matches!(config.at, ListenAt::Ip(_)) {
            let listener = &*config.name;
            tracing::warn!(
                listener,
                "proxyProtocol without proxyFrom: whoever reaches this listener says what address it comes from"
            );
        }
        let tls =
            config.transport.is_tls().then(|| TlsServer::load(&config.tls, config.transport)).transpose();
        Ok(Self {
            name: config.name.clone(),
            metrics: metrics.of(&config.name),
            tls: tls.with_context(|| format!("TLS of {config}"))?,
            is_websocket: config.transport.is_websocket(),
            paths: config.paths.clone(),
            origins: config.origins.clone(),
            proxy_protocol: config.proxy_protocol,
            proxy_from: config.proxy_from.clone(),
            permits: config.max_connections.map(semaphore),
            clock,
            log: LogLimit::default(),
        })
    }

    /// One without a socket.
    #[cfg(test)]
    pub(crate) fn in_memory(clock: Clock, registry: &mut Registry) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::load(&config::Listener::tcp(any), &ByListener::register(registry), clock).unwrap()
    }

    /// Whether `peer` may say for whom it speaks. A Unix socket has its mode for that.
    fn trusts_proxy(&self, peer: &PeerAddr) -> bool {
        match peer {
            PeerAddr::Ip(addr) if !self.proxy_from.is_empty() => {
                self.proxy_from.iter().any(|network| network.contains(addr.ip()))
            }
            PeerAddr::Ip(_) | PeerAddr::Local => true,
        }
    }

    /// Its connections begin with MQTT.
    fn is_plain(&self) -> bool {
        self.tls.is_none() && !self.is_websocket && !self.proxy_protocol
    }
}

impl LogLimit {
    /// Whether something may be logged `now`: how many things were not since the last.
    fn permit(&self, now: Instant) -> Option<u64> {
        let mut logged = self.0.lock();
        if logged.last.is_some_and(|last| now < last + LOG_INTERVAL) {
            logged.unlogged += 1;
            return None;
        }
        logged.last = Some(now);
        Some(std::mem::take(&mut logged.unlogged))
    }
}

impl Accepting {
    /// Clients of `broker` become tasks of `clients` until `shutdown`.
    pub(crate) fn new(broker: &Arc<Broker>, clients: &TaskTracker, shutdown: &CancellationToken) -> Self {
        Self {
            broker: Arc::clone(broker),
            slots: Slots::new(broker.limits.max_connections),
            pace: Arc::new(Pace::new(broker.limits.connection_rate)),
            clients: clients.clone(),
            shutdown: shutdown.clone(),
        }
    }

    /// Serves who comes to `bound` until shutdown.
    pub(crate) async fn run(self, bound: Bound) {
        let shutdown = self.shutdown.clone();
        // The socket is gone when this returns, and its file.
        shutdown.run_until_cancelled(self.accept_all(&bound)).await;
    }

    async fn accept_all(&self, bound: &Bound) {
        loop {
            match bound.socket.accept().await {
                Ok((socket, addr)) => {
                    self.serve(&bound.listener, socket, addr);
                    let wait = self.pace.count(self.broker.clock.now());
                    if !wait.is_zero() {
                        self.broker.metrics.accept_waits.inc();
                        tokio::time::sleep(wait).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(listener = %bound.listener.name, %error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_WAIT).await;
                }
            }
        }
    }

    /// Each connection holds a slot from here to its end, CONNECT or not; without one it is closed at once.
    pub(crate) fn serve(&self, listener: &Arc<Listener>, socket: Socket, addr: PeerAddr) {
        let metrics = &self.broker.metrics;
        metrics.connections_opened.inc();
        listener.metrics.opened.inc();
        let Some(entry) = self.enter(listener) else {
            metrics.connections_closed.inc(Closed::TooManyConnections);
            listener.metrics.count_closed(Closed::TooManyConnections);
            return;
        };
        let peer = Peer { listener: Arc::clone(listener), addr, certificate: None };
        let broker = Arc::clone(&self.broker);
        let served = connection::serve(broker, Stream::new(socket), peer, entry, self.shutdown.clone());
        self.clients.spawn(served);
    }

    fn enter(&self, listener: &Arc<Listener>) -> Option<Entry> {
        let own = match &listener.permits {
            Some(permits) => Some(Arc::clone(permits).try_acquire_owned().ok()?),
            None => None,
        };
        let slot = self.slots.enter()?;
        listener.metrics.connections.inc();
        Some(Entry { slot, listener: Arc::clone(listener), _own: own })
    }
}

impl Entry {
    /// Counts the end of the connection.
    pub(crate) fn ended(self, broker: &Metrics, why: Closed) {
        broker.connections_closed.inc(why);
        self.listener.metrics.count_closed(why);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.listener.metrics.connections.dec();
    }
}

fn semaphore(permits: u32) -> Arc<Semaphore> {
    let permits = usize::try_from(permits).unwrap_or(usize::MAX);
    Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_in_the_log_each_second_says_how_many_are_missing() {
        let log = LogLimit::default();
        let start = Clock::system().now();
        assert_eq!(log.permit(start), Some(0));
        assert_eq!(log.permit(start), None);
        assert_eq!(log.permit(start + Duration::from_millis(999)), None);
        assert_eq!(log.permit(start + Duration::from_secs(1)), Some(2));
        assert_eq!(log.permit(start + Duration::from_secs(2)), Some(0));
    }
}
