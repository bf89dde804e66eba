//! The packet model: one set of types for MQTT 3.1.1 and 5.0.
//!
//! The protocol version is a value, not a type: what only one version can express is an `Option` or a default
//! here, and the decoder and encoder know the difference. Strings and payloads are slices of the received
//! buffer; cloning a packet copies no payload.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use smallvec::SmallVec;
use weir_topic::TopicName;

use crate::reason::ReasonCode;

/// The protocol spoken on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ProtocolVersion {
    /// MQTT 3.1 (`MQIsdp`, protocol level 3): 3.1.1 with fewer words. What differs is in this crate alone, so
    /// elsewhere ask [`Self::is_v5`].
    V31,
    /// MQTT 3.1.1 (protocol level 4).
    V311,
    /// MQTT 5.0 (protocol level 5).
    #[default]
    V5,
}

impl ProtocolVersion {
    /// Whether packets have properties and reason codes, and a server may send DISCONNECT.
    #[must_use]
    pub const fn is_v5(self) -> bool {
        matches!(self, Self::V5)
    }
}

/// Quality of service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum QoS {
    /// At most once.
    #[default]
    AtMostOnce = 0,
    /// At least once.
    AtLeastOnce = 1,
    /// Exactly once.
    ExactlyOnce = 2,
}

/// A packet identifier, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketId(pub NonZeroU16);

/// Pairs of strings in the order received; names may repeat.
pub type UserProperties = Vec<(ByteString, ByteString)>;

/// Any MQTT control packet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant holds the packet of its name")]
pub enum Packet {
    Connect(Box<Connect>),
    ConnAck(Box<ConnAck>),
    Publish(Box<Publish>),
    PubAck(Ack),
    PubRec(Ack),
    PubRel(Ack),
    PubComp(Ack),
    Subscribe(Box<Subscribe>),
    SubAck(Box<SubAck>),
    Unsubscribe(Box<Unsubscribe>),
    UnsubAck(Box<UnsubAck>),
    PingReq,
    PingResp,
    Disconnect(Box<Disconnect>),
    Auth(Box<Auth>),
}

/// CONNECT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connect {
    /// From the protocol name and level.
    pub version: ProtocolVersion,
    /// The protocol level has the bit by which bridges of 3.1 and 3.1.1 make themselves known; 5.0 has none.
    pub bridge: bool,
    /// Clean Start (5.0), Clean Session (3.1.1).
    pub clean_start: bool,
    /// Seconds; zero switches the check off.
    pub keep_alive: u16,
    /// Empty if the server shall assign one.
    pub client_id: ByteString,
    /// Published when the connection ends without a DISCONNECT of reason 0x00.
    pub will: Option<Will>,
    /// User name.
    pub username: Option<ByteString>,
    /// Password, any bytes.
    pub password: Option<Bytes>,
    /// Seconds the session outlives the connection; `None` if absent (3.1.1 has none). `u32::MAX`: for ever.
    pub session_expiry_interval: Option<u32>,
    /// QoS 1 and 2 publishes the client accepts unacknowledged; 65,535 if absent.
    pub receive_maximum: Option<NonZeroU16>,
    /// Largest packet the client accepts, in bytes; no limit if absent.
    pub maximum_packet_size: Option<NonZeroU32>,
    /// Highest topic alias the client accepts; zero: none.
    pub topic_alias_maximum: u16,
    /// The client asks for Response Information in CONNACK.
    pub request_response_information: bool,
    /// `Some(false)`: no Reason String or user properties except on PUBLISH, CONNACK and DISCONNECT.
    pub request_problem_information: Option<bool>,
    /// Enhanced authentication method.
    pub authentication_method: Option<ByteString>,
    /// Enhanced authentication data.
    pub authentication_data: Option<Bytes>,
    /// User properties.
    pub user_properties: UserProperties,
}

/// The will in a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    /// What is published.
    pub message: Message,
    /// At this quality of service.
    pub qos: QoS,
    /// As a retained message.
    pub retain: bool,
    /// Seconds between the end of the connection and the publish.
    pub delay_interval: u32,
    /// Seconds the published message may wait.
    pub message_expiry_interval: Option<u32>,
}

/// An application message: what a PUBLISH carries from publisher to subscriber unaltered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it was published.
    pub topic: TopicName,
    /// Any bytes.
    pub payload: Bytes,
    /// MQTT 5 properties that are forwarded unaltered.
    pub properties: MessageProperties,
}

/// The properties of an application message that a server forwards unaltered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessageProperties {
    /// `Some(true)`: the payload is UTF-8 text.
    pub payload_format_utf8: Option<bool>,
    /// Media type of the payload.
    pub content_type: Option<ByteString>,
    /// Where a response is awaited.
    pub response_topic: Option<TopicName>,
    /// Tells the requester which request a response answers.
    pub correlation_data: Option<Bytes>,
    /// User properties, in order.
    pub user_properties: UserProperties,
}

/// The per-hop part of a PUBLISH.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishHeader {
    /// Sent before.
    pub dup: bool,
    /// Quality of service of this hop.
    pub qos: QoS,
    /// Retained.
    pub retain: bool,
    /// Present exactly if `qos` is not 0.
    pub packet_id: Option<PacketId>,
    /// Stands for, or sets, the topic on this connection.
    pub topic_alias: Option<NonZeroU16>,
    /// Seconds left to live.
    pub message_expiry_interval: Option<u32>,
    /// Server to client only: of every matching subscription that has one.
    pub subscription_identifiers: SmallVec<[u32; 1]>,
}

/// PUBLISH as received. `topic` is `None` if only a topic alias was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Flags, packet id and per-hop properties.
    pub header: PublishHeader,
    /// Topic Name; `None`: see `header.topic_alias`, which is then present.
    pub topic: Option<TopicName>,
    /// Any bytes.
    pub payload: Bytes,
    /// Forwarded unaltered.
    pub properties: MessageProperties,
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP. In 3.1.1 the reason is always `Success`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Of the PUBLISH.
    pub packet_id: PacketId,
    /// One that the packet type allows.
    pub reason: ReasonCode,
    /// Reason String and user properties, rarely present.
    pub properties: Option<Box<AckProperties>>,
}

/// Reason String and user properties.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AckProperties {
    /// For people.
    pub reason_string: Option<ByteString>,
    /// User properties.
    pub user_properties: UserProperties,
}

/// CONNACK.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnAck {
    /// The server had state of this client.
    pub session_present: bool,
    /// Outcome: the encoder writes the code of the connection's protocol version.
    pub code: ReasonCode,
    /// Session expiry that the server uses instead, seconds.
    pub session_expiry_interval: Option<u32>,
    /// Unacknowledged QoS 1 and 2 publishes the server accepts.
    pub receive_maximum: Option<NonZeroU16>,
    /// Highest QoS the server accepts, if below 2.
    pub maximum_qos: Option<QoS>,
    /// `Some(false)`: no retained messages.
    pub retain_available: Option<bool>,
    /// Largest packet the server accepts, bytes.
    pub maximum_packet_size: Option<NonZeroU32>,
    /// Id the server chose for a client that sent an empty one.
    pub assigned_client_identifier: Option<ByteString>,
    /// Highest topic alias the server accepts.
    pub topic_alias_maximum: u16,
    /// For people.
    pub reason_string: Option<ByteString>,
    /// User properties.
    pub user_properties: UserProperties,
    /// `Some(false)`: no wildcard subscriptions.
    pub wildcard_subscription_available: Option<bool>,
    /// `Some(false)`: no subscription identifiers.
    pub subscription_identifiers_available: Option<bool>,
    /// `Some(false)`: no shared subscriptions.
    pub shared_subscription_available: Option<bool>,
    /// Keep-alive the client must use, seconds.
    pub server_keep_alive: Option<u16>,
    /// Basis for response topics.
    pub response_information: Option<ByteString>,
    /// Another server to use.
    pub server_reference: Option<ByteString>,
    /// Enhanced authentication method.
    pub authentication_method: Option<ByteString>,
    /// Enhanced authentication data.
    pub authentication_data: Option<Bytes>,
}

/// SUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// Answered by the SUBACK of the same id.
    pub packet_id: PacketId,
    /// 1 to 268,435,455.
    pub subscription_identifier: Option<NonZeroU32>,
    /// User properties; they carry the `stream-*` options.
    pub user_properties: UserProperties,
    /// At least one.
    pub filters: Vec<SubscribeFilter>,
}

/// One entry of a SUBSCRIBE. The filter is UTF-8 checked here and parsed by its user, because one bad filter
/// fails alone, in the SUBACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscribeFilter {
    /// Topic filter as sent.
    pub filter: ByteString,
    /// Options.
    pub options: SubscriptionOptions,
}

/// Subscription options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionOptions {
    /// Highest QoS of deliveries.
    pub qos: QoS,
    /// Not what this client published itself.
    pub no_local: bool,
    /// Keep the RETAIN flag as published.
    pub retain_as_published: bool,
    /// Which retained messages follow the subscription.
    pub retain_handling: RetainHandling,
}

/// Which retained messages follow a subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetainHandling {
    /// 0: at every SUBSCRIBE.
    #[default]
    OnSubscribe,
    /// 1: only if the subscription is new.
    OnNewSubscription,
    /// 2: never.
    Never,
}

/// SUBACK. In 3.1.1 every failure is written as 0x80.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubAck {
    /// Of the SUBSCRIBE.
    pub packet_id: PacketId,
    /// One per filter, in order.
    pub reasons: Vec<ReasonCode>,
    /// Reason String and user properties.
    pub properties: AckProperties,
}

/// UNSUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsubscribe {
    /// Answered by the UNSUBACK of the same id.
    pub packet_id: PacketId,
    /// At least one, as sent.
    pub filters: Vec<ByteString>,
    /// User properties.
    pub user_properties: UserProperties,
}

/// UNSUBACK. In 3.1.1 the reasons are not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsubAck {
    /// Of the UNSUBSCRIBE.
    pub packet_id: PacketId,
    /// One per filter, in order.
    pub reasons: Vec<ReasonCode>,
    /// Reason String and user properties.
    pub properties: AckProperties,
}

/// DISCONNECT. In 3.1.1 only clients send it, and without a reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disconnect {
    /// Why.
    pub reason: ReasonCode,
    /// New session expiry, seconds; clients only.
    pub session_expiry_interval: Option<u32>,
    /// For people.
    pub reason_string: Option<ByteString>,
    /// User properties.
    pub user_properties: UserProperties,
    /// Another server to use; servers only.
    pub server_reference: Option<ByteString>,
}

/// AUTH (5.0 only).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Auth {
    /// `Success`, `ContinueAuthentication` or `ReAuthenticate`.
    pub reason: ReasonCode,
    /// Required by the specification, except with `Success` and nothing else.
    pub authentication_method: Option<ByteString>,
    /// Any bytes.
    pub authentication_data: Option<Bytes>,
    /// For people.
    pub reason_string: Option<ByteString>,
    /// User properties.
    pub user_properties: UserProperties,
}

impl QoS {
    /// The number on the wire.
    #[must_use]
    pub const fn as_u8(self) -> u8 {
        self as u8
    }

    /// From the number on the wire: 0, 1 or 2.
    #[must_use]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

impl PacketId {
    /// `None` for zero, which is no packet identifier.
    #[must_use]
    pub const fn new(id: u16) -> Option<Self> {
        match NonZeroU16::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl Connect {
    /// How long the session outlives the connection: 3.1.1's Clean Session 0 keeps it for ever.
    #[must_use]
    pub fn session_expiry(&self) -> u32 {
        match (self.version, self.session_expiry_interval) {
            (ProtocolVersion::V5, interval) => interval.unwrap_or(0),
            (ProtocolVersion::V31 | ProtocolVersion::V311, _) if self.clean_start => 0,
            (ProtocolVersion::V31 | ProtocolVersion::V311, _) => u32::MAX,
        }
    }

    /// Time without a packet after which the server closes the connection [MQTT-3.1.2-22].
    #[must_use]
    pub fn keep_alive_timeout(&self) -> Option<Duration> {
        (self.keep_alive != 0).then(|| Duration::from_millis(u64::from(self.keep_alive).saturating_mul(1500)))
    }
}
