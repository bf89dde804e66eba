//! What is counted by listener. The label is the listener's name, so the number of series is fixed by the
//! configuration.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::metrics::{Closed, Label};

/// The counters of one listener.
#[derive(Debug)]
pub struct ListenerMetrics {
    /// Connections that are open, CONNECT or not.
    pub connections: Gauge,
    /// Connections accepted.
    pub opened: Counter,
    /// Bytes of MQTT read.
    pub received: Counter,
    /// Bytes of MQTT written.
    pub sent: Counter,
    /// TLS handshakes that failed.
    pub tls_failures: Counter,
    /// Connections of proxies that are not trusted.
    pub proxies_refused: Counter,
    closed: Box<[Counter]>,
}

impl ListenerMetrics {
    /// Counts the end of a connection.
    pub fn count_closed(&self, why: Closed) {
        self.closed[why.index()].inc();
    }
}

type Labels = Vec<(&'static str, String)>;

/// The metrics of all listeners, by name.
#[derive(Debug, Default)]
pub(super) struct ByListener {
    connections: Family<Labels, Gauge>,
    opened: Family<Labels, Counter>,
    closed: Family<Labels, Counter>,
    received: Family<Labels, Counter>,
    sent: Family<Labels, Counter>,
    tls_failures: Family<Labels, Counter>,
    proxies_refused: Family<Labels, Counter>,
}

impl ByListener {
    /// Adds them to `registry`.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let families = Self::default();
        let r = registry.sub_registry_with_prefix("weir_listener");
        r.register("connections", "Connections open now", families.connections.clone());
        r.register("connections_opened", "Connections accepted", families.opened.clone());
        r.register("connections_closed", "Connections ended", families.closed.clone());
        let help = "Bytes of MQTT read from clients";
        r.register_with_unit("received", help, Unit::Bytes, families.received.clone());
        let help = "Bytes of MQTT written to clients";
        r.register_with_unit("sent", help, Unit::Bytes, families.sent.clone());
        r.register("tls_handshake_failures", "TLS handshakes that failed", families.tls_failures.clone());
        let help = "Connections refused because proxyFrom does not name them";
        r.register("proxies_refused", help, families.proxies_refused.clone());
        families
    }

    /// The counters of the listener `name`, all at zero.
    pub(super) fn of(&self, name: &str) -> ListenerMetrics {
        let labels = vec![("listener", name.to_owned())];
        let closed = |why: &Closed| {
            let labels = vec![("listener", name.to_owned()), (Closed::NAME, why.as_str().to_owned())];
            self.closed.get_or_create_owned(&labels)
        };
        ListenerMetrics {
            connections: self.connections.get_or_create_owned(&labels),
            opened: self.opened.get_or_create_owned(&labels),
            received: self.received.get_or_create_owned(&labels),
            sent: self.sent.get_or_create_owned(&labels),
            tls_failures: self.tls_failures.get_or_create_owned(&labels),
            proxies_refused: self.proxies_refused.get_or_create_owned(&labels),
            closed: Closed::ALL.iter().map(closed).collect(),
        }
    }
}
