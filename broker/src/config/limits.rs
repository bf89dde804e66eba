//! Every bound on what clients can make the broker hold, with its default and range.

use std::time::Duration;

use weir_core::inbox::InboxOverflow;

use super::settings::{Setting, one};
use super::value::{ByteCount, Quantity, within};

/// One row per limit: what it bounds, field, type, default, range, and its key, flag and variable.
macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr, $range:expr; $key:literal, $flag:literal, $env:literal;)+) => {
        /// Bounds on what clients can make the broker hold.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Limits {
            $($(#[doc = $doc])+ pub $field: $type,)+
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        pub(super) const SETTINGS: &[Setting] = &[$(Setting {
            key: $key,
            flag: $flag,
            env: $env,
            env_fallback: None,
            value_name: <$type as Quantity>::VALUE_NAME,
            help: concat!($($doc),+),
            many: false,
            switch: false,
            set: |config, values| {
                config.limits.$field = within(one(values)?, &$range)?;
                Ok(())
            },
            show: |config| config.limits.$field.show(),
        }),+];
    };
}

limits! {
    /// Largest packet accepted from a client, announced in CONNACK
    max_packet_size: ByteCount = ByteCount::mib(1), ByteCount::kib(1)..=ByteCount::mib(16);
        "limits.maxPacketSize", "max-packet-size", "WEIR_MAX_PACKET_SIZE";
    /// Clients connected at once; more are turned away
    max_connections: u32 = 50_000, 1..=1_000_000;
        "limits.maxConnections", "max-connections", "WEIR_MAX_CONNECTIONS";
    /// Connections accepted in a second, and at once after a quiet one; who comes faster waits to be accepted
    connection_rate: u32 = 10_000, 1..=1_000_000;
        "limits.connectionRate", "connection-rate", "WEIR_CONNECTION_RATE";
    /// Time a new connection has to send its CONNECT
    connect_timeout: Duration = Duration::from_secs(10), Duration::from_millis(100)..=Duration::from_mins(5);
        "limits.connectTimeout", "connect-timeout", "WEIR_CONNECT_TIMEOUT";
    /// Longest keep-alive of an MQTT 5 client, told in CONNACK to those that ask for a longer one or for none; 0s: as
    /// the client asks
    keep_alive_max: Duration = Duration::ZERO, Duration::ZERO..=Duration::from_secs(65_535);
        "limits.keepAliveMax", "keep-alive-max", "WEIR_KEEP_ALIVE_MAX";
    /// QoS 1 and 2 publishes a client may have unacknowledged, announced in CONNACK
    receive_maximum: u16 = 1_000, 1..=65_535;
        "limits.receiveMaximum", "receive-maximum", "WEIR_RECEIVE_MAXIMUM";
    /// Topic aliases a client may set on a connection, announced in CONNACK
    topic_alias_maximum: u16 = 64, 0..=65_535;
        "limits.topicAliasMaximum", "topic-alias-maximum", "WEIR_TOPIC_ALIAS_MAXIMUM";
    /// Longest time a session outlives its connection; clients that ask for more get this
    session_expiry_max: Duration = Duration::from_hours(168), Duration::ZERO..=Duration::from_hours(876_000);
        "limits.sessionExpiryMax", "session-expiry-max", "WEIR_SESSION_EXPIRY_MAX";
    /// Sessions that outlive their connections; beyond, clients that ask for a new one are refused
    max_sessions: u32 = 100_000, 1..=10_000_000;
        "limits.maxSessions", "max-sessions", "WEIR_MAX_SESSIONS";
    /// Subscriptions of one client
    max_subscriptions_per_client: u32 = 1_000, 1..=1_000_000;
        "limits.maxSubscriptionsPerClient", "max-subscriptions-per-client", "WEIR_MAX_SUBSCRIPTIONS_PER_CLIENT";
    /// Queues and streams that subscriptions may have created; more are refused
    auto_created: u32 = 1_000, 0..=10_000;
        "limits.autoCreated", "auto-created", "WEIR_AUTO_CREATED";
    /// Consumer groups of one stream; more are refused
    stream_groups: u32 = 100, 1..=10_000;
        "limits.streamGroups", "stream-groups", "WEIR_STREAM_GROUPS";
    /// Members of one consumer group of a stream; more are refused
    stream_group_members: u32 = 1_000, 1..=100_000;
        "limits.streamGroupMembers", "stream-group-members", "WEIR_STREAM_GROUP_MEMBERS";
    /// Bytes of live messages that wait for one client; beyond, those of QoS 0 are dropped and counted, and a client
    /// for which more of QoS 1 and 2 wait is disconnected
    outbox_bytes_per_client: ByteCount = ByteCount::mib(4), ByteCount::kib(64)..=ByteCount::gib(1);
        "limits.outboxBytesPerClient", "outbox-bytes-per-client", "WEIR_OUTBOX_BYTES_PER_CLIENT";
    /// Time in which a client must take 16 KiB, or all that waits for it; one that does not is disconnected
    slow_client_timeout: Duration = Duration::from_mins(1), Duration::from_millis(100)..=Duration::from_hours(1);
        "limits.slowClientTimeout", "slow-client-timeout", "WEIR_SLOW_CLIENT_TIMEOUT";
    /// Messages kept for one persistent session
    inbox_messages_per_client: u64 = 10_000, 1..=100_000_000;
        "limits.inboxMessagesPerClient", "inbox-messages-per-client", "WEIR_INBOX_MESSAGES_PER_CLIENT";
    /// Bytes of messages kept for one persistent session
    inbox_bytes_per_client: ByteCount = ByteCount::mib(64), ByteCount::kib(64)..=ByteCount::gib(1024);
        "limits.inboxBytesPerClient", "inbox-bytes-per-client", "WEIR_INBOX_BYTES_PER_CLIENT";
    /// What happens to a message for a full inbox: dropNewest or dropOldest (counted), or rejectPublish (its publisher
    /// is told, and no inbox gets it)
    inbox_overflow: InboxOverflow = InboxOverflow::DropNewest, InboxOverflow::DropNewest..=InboxOverflow::RejectPublish;
        "limits.inboxOverflow", "inbox-overflow", "WEIR_INBOX_OVERFLOW";
    /// Retained messages kept; more are refused
    retained_messages: u64 = 1_000_000, 1..=100_000_000;
        "limits.retainedMessages", "retained-messages", "WEIR_RETAINED_MESSAGES";
    /// Bytes of retained messages kept; more are refused
    retained_bytes: ByteCount = ByteCount::gib(1), ByteCount::kib(64)..=ByteCount::gib(1024);
        "limits.retainedBytes", "retained-bytes", "WEIR_RETAINED_BYTES";
    /// Bytes of publishes that are becoming durable, over all clients; a client with as many as are left is not read
    publish_bytes_under_way: ByteCount = ByteCount::mib(256), ByteCount::kib(64)..=ByteCount::gib(64);
        "limits.publishBytesUnderWay", "publish-bytes-under-way", "WEIR_PUBLISH_BYTES_UNDER_WAY";
    /// Bytes of publishes of one client that are becoming durable; beyond, the client is not read
    publish_bytes_under_way_per_client: ByteCount = ByteCount::mib(16), ByteCount::kib(64)..=ByteCount::gib(64);
        "limits.publishBytesUnderWayPerClient", "publish-bytes-under-way-per-client",
        "WEIR_PUBLISH_BYTES_UNDER_WAY_PER_CLIENT";
    /// Bytes of streams read, from the store or from memory, and not yet taken, over all readers; one that has nothing gets
    /// a page in any case
    stream_read_bytes: ByteCount = ByteCount::mib(64), ByteCount::mib(1)..=ByteCount::gib(64);
        "limits.streamReadBytes", "stream-read-bytes", "WEIR_STREAM_READ_BYTES";
    /// Bytes of the newest messages of streams kept in memory for those who read them as they come
    stream_tail_bytes: ByteCount = ByteCount::mib(64), ByteCount(0)..=ByteCount::gib(64);
        "limits.streamTailBytes", "stream-tail-bytes", "WEIR_STREAM_TAIL_BYTES";
    /// Bytes of messages that may wait for one other pod of a cluster, and as many that came from it and are not handled
    /// yet; beyond, publishers wait, and QoS 0 is dropped and counted
    peer_bytes: ByteCount = ByteCount::mib(16), ByteCount::mib(1)..=ByteCount::gib(1);
        "limits.peerBytes", "peer-bytes", "WEIR_PEER_BYTES";
    /// Time a graceful shutdown may take before what is left is cut off
    shutdown_grace: Duration = Duration::from_secs(10), Duration::from_millis(100)..=Duration::from_mins(5);
        "limits.shutdownGrace", "shutdown-grace", "WEIR_SHUTDOWN_GRACE";
}
