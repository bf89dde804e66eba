//! What the broker counts, by the names Prometheus sees.
//!
//! Every label is an enum, so the number of series is fixed when the process starts, whatever clients send; all of
//! them exist from the start, at zero. Counting is one atomic addition: no lock and no lookup. Nobody reads these
//! numbers to decide anything.

use std::marker::PhantomData;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use weir_codec::{PacketType, QoS, ReasonCode};

/// The broker's metrics. Clones count into the same numbers.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

impl std::ops::Deref for Metrics {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// The numbers behind [`Metrics`].
#[derive(Debug)]
pub struct Inner {
    /// Clients connected now: CONNACK sent, connection open.
    pub connections: Gauge,
    /// Connections accepted, before anything is read from them.
    pub connections_opened: Counter,
    /// Waits before the next connection was accepted, because `limits.connectionRate` was reached.
    pub accept_waits: Counter,
    /// Connections ended, by who or what ended them.
    pub connections_closed: CounterBy<Closed>,
    /// CONNECTs refused for who the client is or what it may do.
    pub auth_refusals: CounterBy<AuthRefusal>,
    /// Time to find out who a client is, the wait before a refusal included.
    pub auth_seconds: Histogram,
    /// Clients whose password was verified lately, and not again.
    pub auth_recent: Counter,
    /// Addresses and user names whose failures are remembered.
    pub auth_throttled_entries: Gauge,
    /// Times that users, rules and keys were read again.
    pub auth_reloads: CounterBy<Reload>,
    /// What access rules did not allow.
    pub forbidden: CounterBy<Forbidden>,
    /// Queues and streams that subscriptions were to make.
    pub auto_created: CounterBy<AutoCreated>,
    /// Packets read, by type.
    pub packets_received: CounterBy<PacketType>,
    /// Packets written, by type.
    pub packets_sent: CounterBy<PacketType>,
    /// Bytes read from clients.
    pub bytes_received: Counter,
    /// Bytes written to clients.
    pub bytes_sent: Counter,
    /// Bytes of payload of the PUBLISHes received.
    pub published_bytes: Counter,
    /// Bytes of payload of the PUBLISHes written to subscribers.
    pub delivered_bytes: Counter,
    /// PUBLISHes received, by QoS.
    pub publishes: CounterBy<QoS>,
    /// PUBLISHes written to subscribers, by QoS.
    pub deliveries: CounterBy<QoS>,
    /// Messages not delivered to a subscriber that should have had them.
    pub messages_dropped: CounterBy<Dropped>,
    /// Outcomes of making a publish durable in all its queues, streams and inboxes.
    pub durable_publishes: CounterBy<DurableOutcome>,
    /// Bytes of publishes that are becoming durable.
    pub publish_bytes_under_way: Gauge,
    /// Times that a client was not read because too much was becoming durable.
    pub publish_waits: CounterBy<PublishWait>,
    /// Requests of MQTT clients for messages of streams.
    pub stream_fetches: CounterBy<FetchOutcome>,
    /// Time from a PUBLISH to its commit, for publishes that need one.
    pub publish_commit_seconds: Histogram,
    /// Clients that broke the protocol, by what they did.
    pub protocol_errors: CounterBy<ProtocolError>,
    /// Sessions, connected or not.
    pub sessions: Gauge,
    /// Sessions that outlive their connections and are connected now.
    pub sessions_connected: Gauge,
    /// Sessions that ended because their client stayed away too long.
    pub sessions_expired: Counter,
    /// Subscriptions acknowledged before every pod knew of them.
    pub routes_late: Counter,
    /// Connections that end because other pods have asked for their clients.
    pub kicks: Gauge,
    /// Times that more clients had more in their inboxes than a pod is told one by one.
    pub inbox_notices_all: Counter,
    /// Subscriptions of all sessions.
    pub subscriptions: Gauge,
    /// Shared ones among them.
    pub shared_subscriptions: Gauge,
    /// Retained messages.
    pub retained_messages: Gauge,
    /// Whether clients go to other pods: 1 while they are sent away, 2 when none is left.
    pub draining: Gauge,
}

/// Counters of one name, one for each value of a label.
#[derive(Debug)]
pub struct CounterBy<L> {
    counters: Box<[Counter]>,
    label: PhantomData<fn(L)>,
}

/// The values a label can take.
pub trait Label: Copy + 'static {
    /// Name of the label.
    const NAME: &'static str;
    /// Every value, in the order of [`Label::index`].
    const ALL: &'static [Self];
    /// The value as Prometheus sees it.
    fn as_str(self) -> &'static str;
    /// Place in [`Label::ALL`].
    fn index(self) -> usize;
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident($label:literal) { $($(#[$value_doc:meta])* $value:ident = $text:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$value_doc])* $value,)+
        }

        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$value),+];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)+
                }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    )+};
}

labels! {
    /// Why a connection ended.
    Closed("reason") {
        /// The client sent DISCONNECT.
        Disconnect = "disconnect",
        /// The client closed the connection, or the network did.
        ConnectionLost = "connection_lost",
        /// No CONNECT came in time.
        ConnectTimeout = "connect_timeout",
        /// Nothing came for one and a half times the keep-alive.
        KeepAliveTimeout = "keep_alive_timeout",
        /// No MQTT came through: PROXY header, TLS or WebSocket failed.
        TransportError = "transport_error",
        /// The client broke the protocol.
        ProtocolError = "protocol_error",
        /// CONNECT was refused.
        Refused = "refused",
        /// Another connection of the same client id took the session over.
        TakenOver = "taken_over",
        /// There are as many connections as there may be.
        TooManyConnections = "too_many_connections",
        /// It may not do what it did, or its proof of who it is has ended.
        NotAuthorized = "not_authorized",
        /// The client reads more slowly than it must.
        TooSlow = "too_slow",
        /// The broker stops.
        Shutdown = "shutdown",
        /// It is to go to another pod.
        Moved = "moved",
        /// An error of the broker or its store.
        Internal = "internal",
    }

    /// Why a client was refused.
    AuthRefusal("reason") {
        /// Unknown user or wrong password.
        BadCredentials = "bad_credentials",
        /// A known client that may not do this.
        NotAuthorized = "not_authorized",
        /// It did not say who it is.
        Anonymous = "anonymous",
        /// An authentication method that there is not.
        BadMethod = "bad_method",
        /// Too many failures of its address or user.
        Throttled = "throttled",
        /// Too many passwords wait to be hashed.
        Busy = "busy",
    }

    /// What a connected client may not do.
    Forbidden("action") {
        /// Connect with a client id.
        Connect = "connect",
        /// Publish to a topic.
        Publish = "publish",
        /// Subscribe to a filter, its own or that of a queue or stream.
        Subscribe = "subscribe",
        /// Consume a queue or stream of that name.
        Consume = "consume",
        /// Make a queue or stream by subscribing to it.
        Create = "create",
        /// Leave a will.
        Will = "will",
    }

    /// What became of a queue or stream that a subscription was to make.
    AutoCreated("outcome") {
        /// It was made.
        Created = "created",
        /// A limit, the catalog or the store refused it.
        Refused = "refused",
    }

    /// What became of reading users, rules and keys again.
    Reload("outcome") {
        /// They are in force.
        Done = "done",
        /// There is a mistake; what was in force stays.
        Failed = "failed",
    }

    /// Why a subscriber did not get a message.
    Dropped("reason") {
        /// QoS 0, and too much waits to be written to the client.
        OutboxFull = "outbox_full",
        /// It waited, or was to wait, for a client that was shed because it reads too slowly.
        ClientShed = "client_shed",
        /// The inbox of a persistent session is at its limit.
        InboxFull = "inbox_full",
        /// The message expired before it could be sent.
        Expired = "expired",
        /// Larger than the Maximum Packet Size of the subscriber.
        TooLarge = "too_large",
        /// A QoS 0 publish to a topic that clients may not publish to.
        TopicNotAllowed = "topic_not_allowed",
        /// A QoS 0 publish whose payload is not the text it says.
        PayloadFormatInvalid = "payload_format_invalid",
        /// Access rules do not allow it: a QoS 0 publish, or what waited in the inbox of a client that may not receive it.
        NotAuthorized = "not_authorized",
        /// A QoS 0 publish or a will that the store did not take.
        StoreFailed = "store_failed",
        /// A QoS 0 publish or a will that asks for what a queue cannot do.
        QueueRefused = "queue_refused",
        /// QoS 0, and too much waits to be sent to the pod of the subscriber.
        PodBusy = "pod_busy",
        /// There is no link to the pod of the subscriber.
        PodUnreachable = "pod_unreachable",
        /// QoS 2, of a shared subscription, when its member left a pod that gives no sign of life.
        Quiet = "quiet",
    }

    /// Of whom too much is becoming durable.
    PublishWait("of") {
        /// Of the client itself: `limits.publishBytesUnderWayPerClient`.
        Client = "client",
        /// Of all clients: `limits.publishBytesUnderWay`.
        All = "all",
    }

    /// What became of a request for messages of a stream.
    FetchOutcome("outcome") {
        /// It was answered with messages, or with none.
        Answered = "answered",
        /// It was answered with why not.
        Failed = "failed",
        /// Its client was told in PUBACK or PUBREC.
        Refused = "refused",
    }

    /// What became of a publish that must be durable.
    DurableOutcome("outcome") {
        /// Committed everywhere.
        Committed = "committed",
        /// A queue or inbox is full and rejects.
        QuotaExceeded = "quota_exceeded",
        /// The store failed.
        Failed = "failed",
    }

    /// How a client broke the protocol.
    ProtocolError("reason") {
        /// Bytes that are no packet.
        MalformedPacket = "malformed_packet",
        /// A packet that must not come here or now.
        ProtocolError = "protocol_error",
        /// Larger than the Maximum Packet Size.
        PacketTooLarge = "packet_too_large",
        /// More user properties than a packet may have.
        TooManyUserProperties = "too_many_user_properties",
        /// More unacknowledged publishes than the Receive Maximum.
        ReceiveMaximumExceeded = "receive_maximum_exceeded",
        /// An alias out of range or never set.
        TopicAliasInvalid = "topic_alias_invalid",
        /// A topic name that is none, or that may not be published to.
        TopicNameInvalid = "topic_name_invalid",
        /// A topic filter that is none.
        TopicFilterInvalid = "topic_filter_invalid",
        /// A protocol name or level that is not served.
        UnsupportedProtocolVersion = "unsupported_protocol_version",
        /// A client identifier that is not accepted.
        ClientIdentifierNotValid = "client_identifier_not_valid",
        /// Anything else.
        Other = "other",
    }
}

impl ProtocolError {
    /// The label of what a client was, or would have been, told.
    #[must_use]
    pub const fn of(reason: ReasonCode) -> Self {
        match reason {
            ReasonCode::MalformedPacket => Self::MalformedPacket,
            ReasonCode::ProtocolError => Self::ProtocolError,
            ReasonCode::PacketTooLarge => Self::PacketTooLarge,
            ReasonCode::QuotaExceeded => Self::TooManyUserProperties,
            ReasonCode::ReceiveMaximumExceeded => Self::ReceiveMaximumExceeded,
            ReasonCode::TopicAliasInvalid => Self::TopicAliasInvalid,
            ReasonCode::TopicNameInvalid => Self::TopicNameInvalid,
            ReasonCode::TopicFilterInvalid => Self::TopicFilterInvalid,
            ReasonCode::UnsupportedProtocolVersion => Self::UnsupportedProtocolVersion,
            ReasonCode::ClientIdentifierNotValid => Self::ClientIdentifierNotValid,
            _ => Self::Other,
        }
    }
}

impl Label for PacketType {
    const NAME: &'static str = "type";
    const ALL: &'static [Self] = &[
        Self::Connect,
        Self::ConnAck,
        Self::Publish,
        Self::PubAck,
        Self::PubRec,
        Self::PubRel,
        Self::PubComp,
        Self::Subscribe,
        Self::SubAck,
        Self::Unsubscribe,
        Self::UnsubAck,
        Self::PingReq,
        Self::PingResp,
        Self::Disconnect,
        Self::Auth,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::ConnAck => "connack",
            Self::Publish => "publish",
            Self::PubAck => "puback",
            Self::PubRec => "pubrec",
            Self::PubRel => "pubrel",
            Self::PubComp => "pubcomp",
            Self::Subscribe => "subscribe",
            Self::SubAck => "suback",
            Self::Unsubscribe => "unsubscribe",
            Self::UnsubAck => "unsuback",
            Self::PingReq => "pingreq",
            Self::PingResp => "pingresp",
            Self::Disconnect => "disconnect",
            Self::Auth => "auth",
        }
    }

    fn index(self) -> usize {
        // Numbers on the wire start at 1.
        usize::from(self.as_u8()) - 1
    }
}

impl Label for QoS {
    const NAME: &'static str = "qos";
    const ALL: &'static [Self] = &[Self::AtMostOnce, Self::AtLeastOnce, Self::ExactlyOnce];

    fn as_str(self) -> &'static str {
        match self {
            Self::AtMostOnce => "0",
            Self::AtLeastOnce => "1",
            Self::ExactlyOnce => "2",
        }
    }

    fn index(self) -> usize {
        usize::from(self.as_u8())
    }
}

impl From<ReasonCode> for ProtocolError {
    /// How a client broke the protocol, from the reason code it is told.
    fn from(reason: ReasonCode) -> Self {
        match reason {
            ReasonCode::MalformedPacket => Self::MalformedPacket,
            ReasonCode::ProtocolError => Self::ProtocolError,
            ReasonCode::PacketTooLarge => Self::PacketTooLarge,
            ReasonCode::QuotaExceeded => Self::TooManyUserProperties,
            ReasonCode::ReceiveMaximumExceeded => Self::ReceiveMaximumExceeded,
            ReasonCode::TopicAliasInvalid => Self::TopicAliasInvalid,
            ReasonCode::TopicNameInvalid => Self::TopicNameInvalid,
            ReasonCode::TopicFilterInvalid => Self::TopicFilterInvalid,
            ReasonCode::UnsupportedProtocolVersion => Self::UnsupportedProtocolVersion,
            ReasonCode::ClientIdentifierNotValid => Self::ClientIdentifierNotValid,
            _ => Self::Other,
        }
    }
}

impl Metrics {
    /// Registers every metric, all at zero.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let r = registry.sub_registry_with_prefix("weir");
        r.register("build", "What runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self(Arc::new(Inner {
            connections: gauge(r, "connections", "Clients connected now"),
            connections_opened: counter(r, "connections_opened", "Connections accepted"),
            accept_waits: counter(r, "accept_waits", "Waits because of limits.connectionRate"),
            connections_closed: counter_by(r, "connections_closed", "Connections ended"),
            auth_refusals: counter_by(r, "auth_refusals", "Clients refused"),
            auth_seconds: seconds(r, "auth", "Time to find out who a client is"),
            auth_recent: counter(r, "auth_recent", "Passwords verified lately and not again"),
            auth_throttled_entries: gauge(
                r,
                "auth_throttled_entries",
                "Addresses and users that have failed",
            ),
            auth_reloads: counter_by(r, "auth_reloads", "Times that users, rules and keys were read again"),
            forbidden: counter_by(r, "forbidden", "Requests that access rules did not allow"),
            auto_created: counter_by(r, "auto_created", "Queues and streams made by subscriptions"),
            packets_received: counter_by(r, "packets_received", "Packets read from clients"),
            packets_sent: counter_by(r, "packets_sent", "Packets written to clients"),
            bytes_received: bytes(r, "received", "Bytes read from clients"),
            bytes_sent: bytes(r, "sent", "Bytes written to clients"),
            published_bytes: bytes(r, "published", "Bytes of payload of PUBLISH packets received"),
            delivered_bytes: bytes(r, "delivered", "Bytes of payload of PUBLISH packets written"),
            publishes: counter_by(r, "publishes", "PUBLISH packets received"),
            deliveries: counter_by(r, "deliveries", "PUBLISH packets written to subscribers"),
            messages_dropped: counter_by(r, "messages_dropped", "Messages that did not reach a subscriber"),
            durable_publishes: counter_by(r, "durable_publishes", "Publishes to queues, streams and inboxes"),
            publish_bytes_under_way: gauge_of_bytes(
                r,
                "publish_under_way",
                "Bytes of publishes that are becoming durable",
            ),
            publish_waits: counter_by(r, "publish_waits", "Waits because too much is becoming durable"),
            stream_fetches: counter_by(r, "stream_fetches", "Requests over MQTT for messages of streams"),
            publish_commit_seconds: seconds(r, "publish_commit", "Time from PUBLISH to its commit"),
            protocol_errors: counter_by(r, "protocol_errors", "Clients that broke the protocol"),
            sessions: gauge(r, "sessions", "Sessions, connected or not"),
            sessions_connected: gauge(r, "sessions_connected", "Persistent sessions connected now"),
            sessions_expired: counter(r, "sessions_expired", "Persistent sessions that expired"),
            routes_late: counter(
                r,
                "routes_late",
                "Subscriptions acknowledged before every pod knew of them",
            ),
            kicks: gauge(r, "kicks", "Connections that end because other pods have asked for their clients"),
            inbox_notices_all: counter(
                r,
                "inbox_notices_all",
                "Times that a pod was told to look at all inboxes, because too many had more",
            ),
            subscriptions: gauge(r, "subscriptions", "Subscriptions of all sessions"),
            shared_subscriptions: gauge(r, "shared_subscriptions", "Shared subscriptions of all sessions"),
            retained_messages: gauge(r, "retained_messages", "Retained messages"),
            draining: gauge(r, "draining", "1 while clients are sent to other pods, 2 when none is left"),
        }))
    }
}

impl<L: Label> CounterBy<L> {
    /// Counts one.
    pub fn inc(&self, label: L) {
        self.add(label, 1);
    }

    /// Counts `n`.
    pub fn add(&self, label: L, n: u64) {
        self.of(label).inc_by(n);
    }

    /// All of them together.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.counters.iter().map(Counter::get).sum()
    }

    /// The counter of one value.
    #[must_use]
    pub fn of(&self, label: L) -> &Counter {
        &self.counters[label.index()]
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

fn gauge_of_bytes(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register_with_unit(name, help, Unit::Bytes, gauge.clone());
    gauge
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

fn bytes(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register_with_unit(name, help, Unit::Bytes, counter.clone());
    counter
}

fn seconds(registry: &mut Registry, name: &str, help: &str) -> Histogram {
    // 100 us to 26 s in factors of two.
    let histogram = Histogram::new(exponential_buckets(0.0001, 2.0, 19));
    registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
    histogram
}

fn counter_by<L: Label>(registry: &mut Registry, name: &str, help: &str) -> CounterBy<L> {
    let family = Family::<[(&'static str, &'static str); 1], Counter>::default();
    let counters =
        L::ALL.iter().map(|value| family.get_or_create(&[(L::NAME, value.as_str())]).clone()).collect();
    registry.register(name, help, family);
    CounterBy { counters, label: PhantomData }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write;

    use super::*;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn list_of_metrics() {
        let mut registry = Registry::default();
        let _metrics = Metrics::register(&mut registry);
        let mut list = String::new();
        let mut series = BTreeSet::new();
        for line in text(&registry).lines() {
            if line.starts_with("# HELP") || line.starts_with("# TYPE") {
                writeln!(list, "{line}").unwrap();
            } else if !line.starts_with('#') && !line.contains("le=") {
                series.insert(line.rsplit_once(' ').unwrap().0.to_owned());
            }
        }
        for name in series {
            writeln!(list, "{name}").unwrap();
        }
        insta::assert_snapshot!(list);
    }

    #[test]
    fn every_label_value_counts_on_its_own() {
        fn check<L: Label + std::fmt::Debug>() {
            let counters = counter_by::<L>(&mut Registry::default(), "x", "x");
            for (n, label) in L::ALL.iter().enumerate() {
                assert_eq!(label.index(), n, "{label:?}");
                counters.add(*label, n as u64 + 1);
            }
            for (n, label) in L::ALL.iter().enumerate() {
                assert_eq!(counters.of(*label).get(), n as u64 + 1, "{label:?}");
            }
        }
        check::<PacketType>();
        check::<QoS>();
        check::<Closed>();
        check::<AuthRefusal>();
        check::<Forbidden>();
        check::<AutoCreated>();
        check::<Reload>();
        check::<Dropped>();
        check::<PublishWait>();
        check::<FetchOutcome>();
        check::<DurableOutcome>();
        check::<ProtocolError>();
    }

    #[test]
    fn clones_count_into_the_registry() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.clone().publishes.inc(QoS::AtLeastOnce);
        metrics.publishes.inc(QoS::AtLeastOnce);
        assert!(text(&registry).contains("weir_publishes_total{qos=\"1\"} 2\n"));
    }
}
