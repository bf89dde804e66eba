//! What can be wrong with a packet, and which reason code the specification asks for.
//!
//! Owns the one mapping from a decoding problem to a [`ReasonCode`]. Whether and how the peer is told is
//! decided by the connection.

use weir_topic::TopicError;

use crate::REMAINING_LENGTH_MAX;
use crate::packet::ProtocolVersion;
use crate::packet_type::PacketType;
use crate::reason::ReasonCode;

/// Why received bytes are no packet that may be taken: what is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{field}: {problem}", .packet.map(|packet| format!("{packet} ")).unwrap_or_default())]
pub struct DecodeError {
    /// The packet it was found in, if its type was known.
    pub packet: Option<PacketType>,
    /// The field of the packet.
    pub field: &'static str,
    /// What is wrong there.
    pub problem: Problem,
    /// The version in which an answer can be written; `None` if the peer has not named one that tells.
    pub version: Option<ProtocolVersion>,
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Packet type 0, and 15 in MQTT 3.1.1.
    #[error("packet type {0} is reserved")]
    ReservedPacketType(u8),
    /// The first packet of a client must be a CONNECT. `[MQTT-3.1.0-1]`
    #[error("first packet is not a CONNECT")]
    NotConnect,
    /// `[MQTT-3.1.0-2]`
    #[error("second CONNECT on the connection")]
    SecondConnect,
    /// A packet, property or reason code that only the other side may send.
    #[error("may not be sent by this side of the connection")]
    WrongSender,
    /// `[MQTT-2.1.3-1]`
    #[error("flags 0b{0:04b} are not those of this packet type")]
    Flags(u8),
    /// Bits that must be zero are not.
    #[error("reserved bits are set in 0x{0:02x}")]
    ReservedBits(u8),
    /// QoS 3. `[MQTT-3.3.1-4]`, `[MQTT-3.1.2-12]`
    #[error("QoS 3 does not exist")]
    QoS3,
    /// `[MQTT-3.3.1-2]`
    #[error("DUP is set at QoS 0")]
    DupAtQoS0,
    /// Over four bytes, or in MQTT 5 not the shortest form. `[MQTT-1.5.5-1]`
    #[error("ill-formed variable byte integer")]
    VariableByteInteger,
    /// Over the limit of this decoder.
    #[error("packet of {size} bytes is over the limit of {max}")]
    PacketTooLarge {
        /// Fixed header included.
        size: u64,
        /// The limit.
        max: u32,
    },
    /// Over the limit of the decoder.
    #[error("more than {max} user properties")]
    TooManyUserProperties {
        /// The limit.
        max: u16,
    },
    /// The packet ends inside of the field.
    #[error("packet ends too early")]
    Truncated,
    /// The packet goes on after its last field.
    #[error("{0} bytes too many")]
    TrailingBytes(usize),
    /// `[MQTT-1.5.4-1]`
    #[error("ill-formed UTF-8")]
    Utf8,
    /// `[MQTT-1.5.4-2]`
    #[error("null character in a string")]
    NullCharacter,
    /// Neither "MQTT" nor, of 3.1, "MQIsdp". `[MQTT-3.1.2-1]`
    #[error("is neither `MQTT` nor `MQIsdp`")]
    ProtocolName,
    /// None that belongs to the protocol name: 3 to `MQIsdp`, 4 (3.1.1) and 5 to `MQTT`. `[MQTT-3.1.2-2]`
    #[error("protocol level {0} is not supported")]
    ProtocolLevel(u8),
    /// MQTT 3.1 and 3.1.1 only.
    #[error("password without user name")]
    PasswordWithoutUserName,
    /// No such property.
    #[error("property 0x{0:02x} does not exist")]
    UnknownProperty(u8),
    /// Not in this packet type.
    #[error("property is not allowed in this packet")]
    PropertyNotAllowed,
    /// Only user properties, and Subscription Identifiers in PUBLISH, may repeat.
    #[error("property is there more than once")]
    PropertyRepeated,
    /// The field is there, but its value is none that the specification allows.
    #[error("{0} is not an allowed value")]
    Value(u32),
    /// `[MQTT-3.3.2-8]`
    #[error("topic alias is zero")]
    TopicAliasZero,
    /// `[MQTT-2.2.1-3]`
    #[error("packet identifier is zero")]
    PacketIdZero,
    /// No topic and no alias either.
    #[error("neither topic name nor topic alias")]
    TopicMissing,
    /// The Topic Name of a PUBLISH or will.
    #[error(transparent)]
    TopicName(TopicError),
    /// The Response Topic of a PUBLISH or will. `[MQTT-3.3.2-14]`
    #[error(transparent)]
    ResponseTopic(TopicError),
    /// A SUBSCRIBE, SUBACK, UNSUBSCRIBE or UNSUBACK without entries. `[MQTT-3.8.3-2]`, `[MQTT-3.10.3-2]`
    #[error("no entry")]
    Empty,
    /// `[MQTT-3.8.3-4]`
    #[error("No Local on a shared subscription")]
    NoLocalOnShared,
    /// A reason code that does not exist, or not in this packet type.
    #[error("reason code 0x{0:02x} is not allowed in this packet")]
    ReasonCode(u8),
    /// `[MQTT-3.2.2-6]`
    #[error("session present although the connection was refused")]
    SessionPresentOnRefusal,
    /// Authentication data without a method, or AUTH without one.
    #[error("authentication method is missing")]
    AuthenticationMethodMissing,
}

/// Why a packet can not be written. The buffer is then as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Strings and binary data have a length of two bytes.
    #[error("string or binary data of {bytes} bytes is over the limit of 65535")]
    FieldTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The fixed header can not say a longer one.
    #[error("packet of {bytes} bytes is over the limit of {REMAINING_LENGTH_MAX}")]
    PacketTooLong {
        /// Its length after the fixed header.
        bytes: usize,
    },
    /// Subscription Identifiers are 1 to 268,435,455.
    #[error("subscription identifier {0} is not in 1 to {REMAINING_LENGTH_MAX}")]
    SubscriptionIdentifier(u32),
    /// Only MQTT 5 can express it.
    #[error("{0} exists in MQTT 5 only")]
    NotInVersion(&'static str),
    /// The parts of the packet contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
}

/// A problem and its place, before the decoder adds the packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) field: &'static str,
    pub(crate) problem: Problem,
}

/// What every parsing function returns.
pub(crate) type Parsed<T> = Result<T, Fault>;

impl DecodeError {
    /// The reason code the specification asks for, to be sent in CONNACK or DISCONNECT where the version has
    /// it. MQTT 3.1.1 closes the connection without one, except that an unsupported version is answered with
    /// return code 1.
    #[must_use]
    pub const fn reason(&self) -> ReasonCode {
        self.problem.reason()
    }
}

impl Problem {
    /// The reason code the specification asks for.
    #[must_use]
    pub const fn reason(&self) -> ReasonCode {
        match self {
            Self::ReservedPacketType(_)
            | Self::Flags(_)
            | Self::ReservedBits(_)
            | Self::QoS3
            | Self::DupAtQoS0
            | Self::VariableByteInteger
            | Self::Truncated
            | Self::TrailingBytes(_)
            | Self::Utf8
            | Self::NullCharacter
            | Self::PasswordWithoutUserName
            | Self::UnknownProperty(_)
            | Self::PropertyNotAllowed => ReasonCode::MalformedPacket,
            Self::NotConnect
            | Self::SecondConnect
            | Self::WrongSender
            | Self::PropertyRepeated
            | Self::Value(_)
            | Self::PacketIdZero
            | Self::TopicMissing
            | Self::ResponseTopic(_)
            | Self::Empty
            | Self::NoLocalOnShared
            | Self::ReasonCode(_)
            | Self::SessionPresentOnRefusal
            | Self::AuthenticationMethodMissing => ReasonCode::ProtocolError,
            Self::ProtocolName | Self::ProtocolLevel(_) => ReasonCode::UnsupportedProtocolVersion,
            Self::TopicName(_) => ReasonCode::TopicNameInvalid,
            Self::TopicAliasZero => ReasonCode::TopicAliasInvalid,
            Self::PacketTooLarge { .. } => ReasonCode::PacketTooLarge,
            Self::TooManyUserProperties { .. } => ReasonCode::QuotaExceeded,
        }
    }

    /// This problem, found in `field`.
    pub(crate) const fn at(self, field: &'static str) -> Fault {
        Fault { field, problem: self }
    }
}
