//! Where clients connect: sockets are bound here, and connections accepted within the limits. What comes over a
//! connection is not looked at here.

mod peer;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::Broker;
use crate::config::Config;
use crate::connection;
use crate::metrics::Closed;
use crate::slots::Slots;

pub use peer::{Certificate, Peer, PeerAddr};

/// Connections that the operating system may hold before they are accepted.
const BACKLOG: u32 = 4096;
/// Wait after an error of `accept`, such as too many open files.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

/// One way in, as its connections know it.
#[derive(Debug)]
pub struct Listener {
    /// Its name, unique in this process.
    pub name: String,
}

/// A listener whose socket is bound.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) listener: Arc<Listener>,
    pub(crate) addr: SocketAddr,
    socket: TcpListener,
}

/// What all listeners share.
#[derive(Clone)]
pub(crate) struct Accepting {
    broker: Arc<Broker>,
    /// One for each connection that may be open.
    slots: Slots,
    clients: TaskTracker,
    shutdown: CancellationToken,
}

/// Binds every listener of `config`.
pub(crate) fn bind_all(config: &Config) -> anyhow::Result<Vec<Bound>> {
    let bind = |(n, config): (usize, &crate::config::Listener)| {
        let socket = bind(config.addr).with_context(|| {
            format!(
                "listen on {config}: is another broker running? `--listen mqtt://ADDR` takes another address"
            )
        })?;
        let name = if n == 0 { "mqtt".to_owned() } else { format!("mqtt-{}", n + 1) };
        Ok(Bound { listener: Arc::new(Listener { name }), addr: socket.local_addr()?, socket })
    };
    config.listeners.iter().enumerate().map(bind).collect()
}

/// A listening socket at `addr`.
pub(crate) fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

impl Accepting {
    /// Clients of `broker` become tasks of `clients` until `shutdown`.
    pub(crate) fn new(broker: &Arc<Broker>, clients: &TaskTracker, shutdown: &CancellationToken) -> Self {
        Self {
            broker: Arc::clone(broker),
            slots: Slots::new(broker.limits.max_connections),
            clients: clients.clone(),
            shutdown: shutdown.clone(),
        }
    }

    /// Serves who comes to `bound` until shutdown. Each connection holds a slot from here to its end, CONNECT or not;
    /// without one it is closed at once.
    pub(crate) async fn run(self, bound: Bound) {
        loop {
            let accepted = tokio::select! {
                accepted = bound.socket.accept() => accepted,
                () = self.shutdown.cancelled() => return,
            };
            match accepted {
                Ok((stream, addr)) => {
                    let metrics = &self.broker.metrics;
                    metrics.connections_opened.inc();
                    let Some(slot) = self.slots.enter() else {
                        metrics.connections_closed.inc(Closed::TooManyConnections);
                        continue;
                    };
                    let listener = Arc::clone(&bound.listener);
                    let peer = Peer { listener, addr: addr.into(), certificate: None };
                    let broker = Arc::clone(&self.broker);
                    self.clients.spawn(connection::serve(broker, stream, peer, slot, self.shutdown.clone()));
                }
                Err(error) => {
                    tracing::warn!(listener = %bound.listener.name, %error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_WAIT).await;
                }
            }
        }
    }
}
