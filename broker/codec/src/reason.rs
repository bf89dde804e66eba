//! Reason codes of MQTT 5.0 and return codes of 3.1.1: their numbers, and which packet may carry which.

use std::fmt;

use crate::packet_type::PacketType;

/// MQTT 5.0 reason codes, by their names in the specification (section 2.4). Code 0x00 has several names there;
/// here it is `Success`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum ReasonCode {
    #[default]
    Success = 0x00,
    GrantedQoS1 = 0x01,
    GrantedQoS2 = 0x02,
    DisconnectWithWill = 0x04,
    NoMatchingSubscribers = 0x10,
    NoSubscriptionExisted = 0x11,
    ContinueAuthentication = 0x18,
    ReAuthenticate = 0x19,
    UnspecifiedError = 0x80,
    MalformedPacket = 0x81,
    ProtocolError = 0x82,
    ImplementationSpecificError = 0x83,
    UnsupportedProtocolVersion = 0x84,
    ClientIdentifierNotValid = 0x85,
    BadUserNameOrPassword = 0x86,
    NotAuthorized = 0x87,
    ServerUnavailable = 0x88,
    ServerBusy = 0x89,
    Banned = 0x8a,
    ServerShuttingDown = 0x8b,
    BadAuthenticationMethod = 0x8c,
    KeepAliveTimeout = 0x8d,
    SessionTakenOver = 0x8e,
    TopicFilterInvalid = 0x8f,
    TopicNameInvalid = 0x90,
    PacketIdentifierInUse = 0x91,
    PacketIdentifierNotFound = 0x92,
    ReceiveMaximumExceeded = 0x93,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    MessageRateTooHigh = 0x96,
    QuotaExceeded = 0x97,
    AdministrativeAction = 0x98,
    PayloadFormatInvalid = 0x99,
    RetainNotSupported = 0x9a,
    QoSNotSupported = 0x9b,
    UseAnotherServer = 0x9c,
    ServerMoved = 0x9d,
    SharedSubscriptionsNotSupported = 0x9e,
    ConnectionRateExceeded = 0x9f,
    MaximumConnectTime = 0xa0,
    SubscriptionIdentifiersNotSupported = 0xa1,
    WildcardSubscriptionsNotSupported = 0xa2,
}

impl ReasonCode {
    /// From the number on the wire; `None` if the specification has no such code.
    #[must_use]
    pub const fn from_u8(code: u8) -> Option<Self> {
        Some(match code {
            0x00 => Self::Success,
            0x01 => Self::GrantedQoS1,
            0x02 => Self::GrantedQoS2,
            0x04 => Self::DisconnectWithWill,
            0x10 => Self::NoMatchingSubscribers,
            0x11 => Self::NoSubscriptionExisted,
            0x18 => Self::ContinueAuthentication,
            0x19 => Self::ReAuthenticate,
            0x80 => Self::UnspecifiedError,
            0x81 => Self::MalformedPacket,
            0x82 => Self::ProtocolError,
            0x83 => Self::ImplementationSpecificError,
            0x84 => Self::UnsupportedProtocolVersion,
            0x85 => Self::ClientIdentifierNotValid,
            0x86 => Self::BadUserNameOrPassword,
            0x87 => Self::NotAuthorized,
            0x88 => Self::ServerUnavailable,
            0x89 => Self::ServerBusy,
            0x8a => Self::Banned,
            0x8b => Self::ServerShuttingDown,
            0x8c => Self::BadAuthenticationMethod,
            0x8d => Self::KeepAliveTimeout,
            0x8e => Self::SessionTakenOver,
            0x8f => Self::TopicFilterInvalid,
            0x90 => Self::TopicNameInvalid,
            0x91 => Self::PacketIdentifierInUse,
            0x92 => Self::PacketIdentifierNotFound,
            0x93 => Self::ReceiveMaximumExceeded,
            0x94 => Self::TopicAliasInvalid,
            0x95 => Self::PacketTooLarge,
            0x96 => Self::MessageRateTooHigh,
            0x97 => Self::QuotaExceeded,
            0x98 => Self::AdministrativeAction,
            0x99 => Self::PayloadFormatInvalid,
            0x9a => Self::RetainNotSupported,
            0x9b => Self::QoSNotSupported,
            0x9c => Self::UseAnotherServer,
            0x9d => Self::ServerMoved,
            0x9e => Self::SharedSubscriptionsNotSupported,
            0x9f => Self::ConnectionRateExceeded,
            0xa0 => Self::MaximumConnectTime,
            0xa1 => Self::SubscriptionIdentifiersNotSupported,
            0xa2 => Self::WildcardSubscriptionsNotSupported,
            _ => return None,
        })
    }

    /// The number on the wire.
    #[must_use]
    pub const fn as_u8(self) -> u8 {
        self as u8
    }

    /// Codes from 0x80 on say that something failed.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.as_u8() >= 0x80
    }

    /// The CONNACK return code that says in MQTT 3.1.1 what this code says in 5.0. Refusals that 3.1.1 has no
    /// word for become 5 (not authorized) if a repeat would fail in the same way, else 3 (unavailable).
    #[must_use]
    pub const fn connect_return_code(self) -> u8 {
        match self {
            Self::UnsupportedProtocolVersion => 1,
            Self::ClientIdentifierNotValid => 2,
            Self::BadUserNameOrPassword | Self::BadAuthenticationMethod => 4,
            Self::NotAuthorized
            | Self::Banned
            | Self::MalformedPacket
            | Self::ProtocolError
            | Self::TopicNameInvalid
            | Self::TopicFilterInvalid
            | Self::PacketTooLarge
            | Self::PayloadFormatInvalid
            | Self::RetainNotSupported
            | Self::QoSNotSupported => 5,
            other if other.is_error() => 3,
            _ => 0,
        }
    }

    /// The code for a CONNACK return code of MQTT 3.1.1; `None` for one that is reserved.
    #[must_use]
    pub const fn from_connect_return_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Success,
            1 => Self::UnsupportedProtocolVersion,
            2 => Self::ClientIdentifierNotValid,
            3 => Self::ServerUnavailable,
            4 => Self::BadUserNameOrPassword,
            5 => Self::NotAuthorized,
            _ => return None,
        })
    }

    /// Whether the specification has this code for packets of this type.
    #[must_use]
    pub const fn is_allowed_in(self, packet: PacketType) -> bool {
        match packet {
            PacketType::ConnAck => matches!(
                self.as_u8(),
                0x00 | 0x80..=0x8a | 0x8c | 0x90 | 0x95 | 0x97 | 0x99..=0x9d | 0x9f
            ),
            PacketType::PubAck | PacketType::PubRec => {
                matches!(self.as_u8(), 0x00 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99)
            }
            PacketType::PubRel | PacketType::PubComp => matches!(self.as_u8(), 0x00 | 0x92),
            PacketType::SubAck => matches!(
                self.as_u8(),
                0x00..=0x02 | 0x80 | 0x83 | 0x87 | 0x8f | 0x91 | 0x97 | 0x9e | 0xa1 | 0xa2
            ),
            PacketType::UnsubAck => {
                matches!(self.as_u8(), 0x00 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8f | 0x91)
            }
            PacketType::Disconnect => matches!(
                self.as_u8(),
                0x00 | 0x04 | 0x80..=0x83 | 0x87 | 0x89 | 0x8b..=0x90 | 0x93..=0xa2
            ),
            PacketType::Auth => matches!(self.as_u8(), 0x00 | 0x18 | 0x19),
            PacketType::Connect
            | PacketType::Publish
            | PacketType::Subscribe
            | PacketType::Unsubscribe
            | PacketType::PingReq
            | PacketType::PingResp => false,
        }
    }
}

impl fmt::Display for ReasonCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?} (0x{:02x})", self.as_u8())
    }
}
