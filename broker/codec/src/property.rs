//! The properties of MQTT 5 (section 2.2.2): identifiers, data types and the values each allows.
//!
//! Which packet allows which property is said by the packets: each matches on the [`Property`]s it takes and
//! refuses the rest with [`Properties::not_allowed`].

use std::num::{NonZeroU16, NonZeroU32};

use bytes::Bytes;
use bytestring::ByteString;
use weir_topic::TopicName;

use crate::error::{Fault, Parsed, Problem};
use crate::packet::QoS;
use crate::read::Reader;

/// Identifiers on the wire.
pub(crate) mod id {
    pub(crate) const PAYLOAD_FORMAT_INDICATOR: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION_DATA: u8 = 0x09;
    pub(crate) const SUBSCRIPTION_IDENTIFIER: u8 = 0x0b;
    pub(crate) const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
    pub(crate) const ASSIGNED_CLIENT_IDENTIFIER: u8 = 0x12;
    pub(crate) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(crate) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(crate) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(crate) const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub(crate) const WILL_DELAY_INTERVAL: u8 = 0x18;
    pub(crate) const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub(crate) const RESPONSE_INFORMATION: u8 = 0x1a;
    pub(crate) const SERVER_REFERENCE: u8 = 0x1c;
    pub(crate) const REASON_STRING: u8 = 0x1f;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(crate) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(crate) const TOPIC_ALIAS: u8 = 0x23;
    pub(crate) const MAXIMUM_QOS: u8 = 0x24;
    pub(crate) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(crate) const USER_PROPERTY: u8 = 0x26;
    pub(crate) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(crate) const WILDCARD_SUBSCRIPTION_AVAILABLE: u8 = 0x28;
    pub(crate) const SUBSCRIPTION_IDENTIFIERS_AVAILABLE: u8 = 0x29;
    pub(crate) const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 0x2a;
}

/// One property with a value in its range.
#[derive(Debug)]
pub(crate) enum Property {
    PayloadFormatIndicator(bool),
    MessageExpiryInterval(u32),
    ContentType(ByteString),
    ResponseTopic(TopicName),
    CorrelationData(Bytes),
    SubscriptionIdentifier(NonZeroU32),
    SessionExpiryInterval(u32),
    AssignedClientIdentifier(ByteString),
    ServerKeepAlive(u16),
    AuthenticationMethod(ByteString),
    AuthenticationData(Bytes),
    RequestProblemInformation(bool),
    WillDelayInterval(u32),
    RequestResponseInformation(bool),
    ResponseInformation(ByteString),
    ServerReference(ByteString),
    ReasonString(ByteString),
    ReceiveMaximum(NonZeroU16),
    TopicAliasMaximum(u16),
    TopicAlias(NonZeroU16),
    MaximumQoS(QoS),
    RetainAvailable(bool),
    User(ByteString, ByteString),
    MaximumPacketSize(NonZeroU32),
    WildcardSubscriptionAvailable(bool),
    SubscriptionIdentifiersAvailable(bool),
    SharedSubscriptionAvailable(bool),
}

/// User properties of one property block. Each takes a dozen times its bytes on the wire.
pub(crate) const USER_PROPERTIES_MAX: u16 = 1_000;

/// The property block of one packet, read front to back.
pub(crate) struct Properties {
    rest: Reader,
    /// User properties met.
    users: u16,
    /// One bit for each identifier met.
    seen: u64,
    /// Name of the property met last.
    field: &'static str,
}

const fn name(id: u8) -> Option<&'static str> {
    Some(match id {
        id::PAYLOAD_FORMAT_INDICATOR => "payload format indicator",
        id::MESSAGE_EXPIRY_INTERVAL => "message expiry interval",
        id::CONTENT_TYPE => "content type",
        id::RESPONSE_TOPIC => "response topic",
        id::CORRELATION_DATA => "correlation data",
        id::SUBSCRIPTION_IDENTIFIER => "subscription identifier",
        id::SESSION_EXPIRY_INTERVAL => "session expiry interval",
        id::ASSIGNED_CLIENT_IDENTIFIER => "assigned client identifier",
        id::SERVER_KEEP_ALIVE => "server keep alive",
        id::AUTHENTICATION_METHOD => "authentication method",
        id::AUTHENTICATION_DATA => "authentication data",
        id::REQUEST_PROBLEM_INFORMATION => "request problem information",
        id::WILL_DELAY_INTERVAL => "will delay interval",
        id::REQUEST_RESPONSE_INFORMATION => "request response information",
        id::RESPONSE_INFORMATION => "response information",
        id::SERVER_REFERENCE => "server reference",
        id::REASON_STRING => "reason string",
        id::RECEIVE_MAXIMUM => "receive maximum",
        id::TOPIC_ALIAS_MAXIMUM => "topic alias maximum",
        id::TOPIC_ALIAS => "topic alias",
        id::MAXIMUM_QOS => "maximum QoS",
        id::RETAIN_AVAILABLE => "retain available",
        id::USER_PROPERTY => "user property",
        id::MAXIMUM_PACKET_SIZE => "maximum packet size",
        id::WILDCARD_SUBSCRIPTION_AVAILABLE => "wildcard subscription available",
        id::SUBSCRIPTION_IDENTIFIERS_AVAILABLE => "subscription identifiers available",
        id::SHARED_SUBSCRIPTION_AVAILABLE => "shared subscription available",
        _ => return None,
    })
}

impl Properties {
    /// Takes the property block, its length first, from the front of `packet`.
    pub(crate) fn read(packet: &mut Reader) -> Parsed<Self> {
        let length = packet.variable_byte_integer("property length")?;
        let length = usize::try_from(length).map_err(|_| Problem::Truncated.at("properties"))?;
        let rest = Reader::new(packet.take(length, "properties")?);
        Ok(Self { rest, users: 0, seen: 0, field: "properties" })
    }

    /// The next property; `None` at the end of the block.
    pub(crate) fn next(&mut self) -> Parsed<Option<Property>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        // Identifiers are variable byte integers, but all that exist take one byte.
        let id = self.rest.u8("properties")?;
        let field = name(id).ok_or(Problem::UnknownProperty(id).at("properties"))?;
        self.field = field;
        let bit = 1_u64 << (id & 0x3f);
        let repeats = matches!(id, id::USER_PROPERTY | id::SUBSCRIPTION_IDENTIFIER);
        if self.seen & bit != 0 && !repeats {
            return Err(self.repeated());
        }
        self.seen |= bit;
        if id == id::USER_PROPERTY {
            self.users = self.users.saturating_add(1);
            if self.users > USER_PROPERTIES_MAX {
                return Err(Problem::TooManyUserProperties { max: USER_PROPERTIES_MAX }.at(field));
            }
        }
        self.value(id).map(Some)
    }

    /// The fault of a packet that does not take the property met last. `[MQTT-2.2.2-2]`
    pub(crate) const fn not_allowed(&self) -> Fault {
        Problem::PropertyNotAllowed.at(self.field)
    }

    /// The fault of a packet where the property met last was there before.
    pub(crate) const fn repeated(&self) -> Fault {
        Problem::PropertyRepeated.at(self.field)
    }

    /// The fault of a peer that may not send the property met last.
    pub(crate) const fn wrong_sender(&self) -> Fault {
        Problem::WrongSender.at(self.field)
    }

    fn value(&mut self, id: u8) -> Parsed<Property> {
        let field = self.field;
        let rest = &mut self.rest;
        Ok(match id {
            id::PAYLOAD_FORMAT_INDICATOR => Property::PayloadFormatIndicator(self.flag()?),
            id::MESSAGE_EXPIRY_INTERVAL => Property::MessageExpiryInterval(rest.u32(field)?),
            id::CONTENT_TYPE => Property::ContentType(rest.string(field)?),
            id::RESPONSE_TOPIC => Property::ResponseTopic(
                TopicName::parse(rest.string(field)?).map_err(|why| Problem::ResponseTopic(why).at(field))?,
            ),
            id::CORRELATION_DATA => Property::CorrelationData(rest.binary(field)?),
            id::SUBSCRIPTION_IDENTIFIER => Property::SubscriptionIdentifier(
                NonZeroU32::new(rest.variable_byte_integer(field)?).ok_or(Problem::Value(0).at(field))?,
            ),
            id::SESSION_EXPIRY_INTERVAL => Property::SessionExpiryInterval(rest.u32(field)?),
            id::ASSIGNED_CLIENT_IDENTIFIER => Property::AssignedClientIdentifier(rest.string(field)?),
            id::SERVER_KEEP_ALIVE => Property::ServerKeepAlive(rest.u16(field)?),
            id::AUTHENTICATION_METHOD => Property::AuthenticationMethod(rest.string(field)?),
            id::AUTHENTICATION_DATA => Property::AuthenticationData(rest.binary(field)?),
            id::REQUEST_PROBLEM_INFORMATION => Property::RequestProblemInformation(self.flag()?),
            id::WILL_DELAY_INTERVAL => Property::WillDelayInterval(rest.u32(field)?),
            id::REQUEST_RESPONSE_INFORMATION => Property::RequestResponseInformation(self.flag()?),
            id::RESPONSE_INFORMATION => Property::ResponseInformation(rest.string(field)?),
            id::SERVER_REFERENCE => Property::ServerReference(rest.string(field)?),
            id::REASON_STRING => Property::ReasonString(rest.string(field)?),
            id::RECEIVE_MAXIMUM => Property::ReceiveMaximum(
                NonZeroU16::new(rest.u16(field)?).ok_or(Problem::Value(0).at(field))?,
            ),
            id::TOPIC_ALIAS_MAXIMUM => Property::TopicAliasMaximum(rest.u16(field)?),
            id::TOPIC_ALIAS => Property::TopicAlias(
                NonZeroU16::new(rest.u16(field)?).ok_or(Problem::TopicAliasZero.at(field))?,
            ),
            id::MAXIMUM_QOS => {
                Property::MaximumQoS(if self.flag()? { QoS::AtLeastOnce } else { QoS::AtMostOnce })
            }
            id::RETAIN_AVAILABLE => Property::RetainAvailable(self.flag()?),
            id::USER_PROPERTY => Property::User(rest.string(field)?, rest.string(field)?),
            id::MAXIMUM_PACKET_SIZE => Property::MaximumPacketSize(
                NonZeroU32::new(rest.u32(field)?).ok_or(Problem::Value(0).at(field))?,
            ),
            id::WILDCARD_SUBSCRIPTION_AVAILABLE => Property::WildcardSubscriptionAvailable(self.flag()?),
            id::SUBSCRIPTION_IDENTIFIERS_AVAILABLE => {
                Property::SubscriptionIdentifiersAvailable(self.flag()?)
            }
            id::SHARED_SUBSCRIPTION_AVAILABLE => Property::SharedSubscriptionAvailable(self.flag()?),
            unknown => return Err(Problem::UnknownProperty(unknown).at("properties")),
        })
    }

    fn flag(&mut self) -> Parsed<bool> {
        match self.rest.u8(self.field)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(Problem::Value(u32::from(value)).at(self.field)),
        }
    }
}
