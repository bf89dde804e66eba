//! The broker's figures at one moment, read from the counters that Prometheus sees too, and what each is called
//! below `$SYS/broker/`. Changes nothing.

use std::time::Duration;

use weir_codec::PacketType;
use weir_core::keyspace::retained::RetainedUsage;
use weir_env::clock::Instant;

use crate::broker::Broker;
use crate::metrics::Metrics;

/// What the broker's counters say.
pub(super) struct Reading<'a> {
    metrics: &'a Metrics,
    retained: RetainedUsage,
    uptime: Duration,
    clients_max: u64,
}

type Text = fn(&Reading<'_>) -> String;
type Count = fn(&Reading<'_>) -> u64;

/// Figures published as they are.
pub(super) const FIGURES: &[(&str, Text)] = &[
    ("version", |_| concat!("weir version ", env!("CARGO_PKG_VERSION")).to_owned()),
    ("uptime", |now| format!("{} seconds", now.uptime.as_secs())),
    ("clients/total", |now| now.clients().to_string()),
    ("clients/maximum", |now| now.clients_max.to_string()),
    ("clients/connected", |now| now.connected().to_string()),
    ("clients/active", |now| now.connected().to_string()),
    ("clients/disconnected", |now| now.disconnected().to_string()),
    ("clients/inactive", |now| now.disconnected().to_string()),
    ("clients/expired", |now| now.metrics.sessions_expired.get().to_string()),
    ("messages/received", |now| now.metrics.packets_received.sum().to_string()),
    ("messages/sent", |now| now.metrics.packets_sent.sum().to_string()),
    ("messages/stored", |now| now.retained.messages.to_string()),
    ("store/messages/count", |now| now.retained.messages.to_string()),
    ("store/messages/bytes", |now| now.retained.bytes.to_string()),
    ("retained messages/count", |now| now.retained.messages.to_string()),
    ("publish/messages/received", |now| now.metrics.publishes.sum().to_string()),
    ("publish/messages/sent", |now| now.metrics.deliveries.sum().to_string()),
    ("publish/messages/dropped", |now| now.metrics.messages_dropped.sum().to_string()),
    ("publish/bytes/received", |now| now.metrics.published_bytes.get().to_string()),
    ("publish/bytes/sent", |now| now.metrics.delivered_bytes.get().to_string()),
    ("bytes/received", |now| now.metrics.bytes_received.get().to_string()),
    ("bytes/sent", |now| now.metrics.bytes_sent.get().to_string()),
    ("subscriptions/count", |now| now.subscriptions().to_string()),
    ("shared_subscriptions/count", |now| positive(now.metrics.shared_subscriptions.get()).to_string()),
];

/// Counters published as averages a minute.
pub(super) const LOADS: &[(&str, Count)] = &[
    ("load/messages/received", |now| now.metrics.packets_received.sum()),
    ("load/messages/sent", |now| now.metrics.packets_sent.sum()),
    ("load/publish/received", |now| now.metrics.publishes.sum()),
    ("load/publish/sent", |now| now.metrics.deliveries.sum()),
    ("load/publish/dropped", |now| now.metrics.messages_dropped.sum()),
    ("load/bytes/received", |now| now.metrics.bytes_received.get()),
    ("load/bytes/sent", |now| now.metrics.bytes_sent.get()),
    ("load/sockets", |now| now.metrics.connections_opened.get()),
    ("load/connections", |now| now.metrics.packets_received.of(PacketType::Connect).get()),
];

impl<'a> Reading<'a> {
    /// Reads `broker`, which started at `started`. `clients_max` is the most clients that earlier readings saw.
    pub(super) fn take(broker: &'a Broker, started: Instant, clients_max: u64) -> Self {
        let mut reading = Self {
            metrics: &broker.metrics,
            retained: broker.retained.usage(),
            uptime: broker.clock.now().saturating_duration_since(started),
            clients_max,
        };
        reading.clients_max = clients_max.max(reading.clients());
        reading
    }

    /// The most clients that this and earlier readings saw.
    pub(super) fn clients_max(&self) -> u64 {
        self.clients_max
    }

    fn connected(&self) -> u64 {
        positive(self.metrics.connections.get())
    }

    /// Persistent sessions whose client is away. A session that ends counts in neither gauge for a moment.
    fn disconnected(&self) -> u64 {
        positive(self.metrics.sessions.get() - self.metrics.sessions_connected.get())
    }

    fn clients(&self) -> u64 {
        self.connected() + self.disconnected()
    }

    fn subscriptions(&self) -> u64 {
        positive(self.metrics.subscriptions.get() - self.metrics.shared_subscriptions.get())
    }
}

fn positive(gauge: i64) -> u64 {
    u64::try_from(gauge).unwrap_or(0)
}
