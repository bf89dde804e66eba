//! Reads CONNECT and CONNACK.

use weir_topic::TopicName;

use super::{Context, publish};
use crate::error::{Fault, Parsed, Problem};
use crate::packet::{ConnAck, Connect, Message, MessageProperties, ProtocolVersion, QoS, Will};
use crate::packet_type::PacketType;
use crate::property::{Properties, Property};
use crate::read::Reader;
use crate::reason::ReasonCode;

const FLAGS: &str = "connect flags";
const RESERVED: u8 = 0b0000_0001;
const CLEAN_START: u8 = 0b0000_0010;
const WILL: u8 = 0b0000_0100;
const WILL_QOS_AND_RETAIN: u8 = 0b0011_1000;
const WILL_RETAIN: u8 = 0b0010_0000;
const PASSWORD: u8 = 0b0100_0000;
const USER_NAME: u8 = 0b1000_0000;

/// The highest bit of the protocol level, by which bridges of 3.1 and 3.1.1 make themselves known.
const BRIDGE: u8 = 0x80;

/// The protocol name and level, which decide how the rest is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Protocol {
    pub(super) version: ProtocolVersion,
    pub(super) bridge: bool,
}

/// A protocol that is not spoken here.
pub(super) struct Unsupported {
    pub(super) fault: Fault,
    /// The version whose CONNACK the client understands all the same, if it is known to speak some MQTT.
    pub(super) answer_in: Option<ProtocolVersion>,
}

impl From<Fault> for Unsupported {
    fn from(fault: Fault) -> Self {
        Self { fault, answer_in: None }
    }
}

pub(super) fn protocol(body: &mut Reader) -> Result<Protocol, Unsupported> {
    let name = body.binary("protocol name")?;
    let is_v31 = match &name[..] {
        b"MQTT" => false,
        b"MQIsdp" => true,
        _ => return Err(Problem::ProtocolName.at("protocol name").into()),
    };
    let level = body.u8("protocol level")?;
    let (version, bridge) = match (is_v31, level & !BRIDGE) {
        (true, 3) => (ProtocolVersion::V31, level & BRIDGE != 0),
        (false, 4) => (ProtocolVersion::V311, level & BRIDGE != 0),
        (false, 5) if level & BRIDGE == 0 => (ProtocolVersion::V5, false),
        (_, plain) => {
            let answer_in = match (is_v31, plain) {
                (true, _) => ProtocolVersion::V31,
                (false, 0..=4) => ProtocolVersion::V311,
                (false, _) => ProtocolVersion::V5,
            };
            let fault = Problem::ProtocolLevel(level).at("protocol level");
            return Err(Unsupported { fault, answer_in: Some(answer_in) });
        }
    };
    Ok(Protocol { version, bridge })
}

/// What follows the protocol level.
pub(super) fn connect(body: &mut Reader, context: Context, bridge: bool) -> Parsed<Connect> {
    let flags = body.u8(FLAGS)?;
    check_flags(flags, context.version)?;
    let mut connect = Connect {
        version: context.version,
        bridge,
        clean_start: flags & CLEAN_START != 0,
        keep_alive: body.u16("keep alive")?,
        ..Connect::default()
    };
    if context.version.is_v5() {
        connect_properties(body, &mut connect)?;
    }
    connect.client_id = body.string("client identifier")?;
    if flags & WILL != 0 {
        connect.will = Some(will(body, flags, context.version)?);
    }
    // In 3.1 the length of the packet takes precedence over these two flags.
    let absent = |body: &Reader| context.version == ProtocolVersion::V31 && body.is_empty();
    if flags & USER_NAME != 0 && !absent(body) {
        connect.username = Some(body.string("user name")?);
    }
    if flags & PASSWORD != 0 && !absent(body) {
        connect.password = Some(body.binary("password")?);
    }
    Ok(connect)
}

fn check_flags(flags: u8, version: ProtocolVersion) -> Parsed<()> {
    // `[MQTT-3.1.2-3]`, `[MQTT-3.1.2-11]`, `[MQTT-3.1.2-13]`; 3.1 disregards these bits.
    let disregarded = version == ProtocolVersion::V31;
    if !disregarded && (flags & RESERVED != 0 || flags & WILL == 0 && flags & WILL_QOS_AND_RETAIN != 0) {
        return Err(Problem::ReservedBits(flags).at(FLAGS));
    }
    // MQTT 5 allows a password, for example a token, without a user name.
    if !version.is_v5() && flags & PASSWORD != 0 && flags & USER_NAME == 0 {
        return Err(Problem::PasswordWithoutUserName.at(FLAGS));
    }
    Ok(())
}

fn connect_properties(body: &mut Reader, connect: &mut Connect) -> Parsed<()> {
    let mut properties = Properties::read(body)?;
    while let Some(property) = properties.next()? {
        match property {
            Property::SessionExpiryInterval(seconds) => connect.session_expiry_interval = Some(seconds),
            Property::ReceiveMaximum(count) => connect.receive_maximum = Some(count),
            Property::MaximumPacketSize(bytes) => connect.maximum_packet_size = Some(bytes),
            Property::TopicAliasMaximum(count) => connect.topic_alias_maximum = count,
            Property::RequestResponseInformation(yes) => connect.request_response_information = yes,
            Property::RequestProblemInformation(yes) => connect.request_problem_information = Some(yes),
            Property::AuthenticationMethod(text) => connect.authentication_method = Some(text),
            Property::AuthenticationData(data) => connect.authentication_data = Some(data),
            Property::User(name, value) => connect.user_properties.push((name, value)),
            _ => return Err(properties.not_allowed()),
        }
    }
    if connect.authentication_data.is_some() && connect.authentication_method.is_none() {
        return Err(Problem::AuthenticationMethodMissing.at("authentication method"));
    }
    Ok(())
}

fn will(body: &mut Reader, flags: u8, version: ProtocolVersion) -> Parsed<Will> {
    let qos = QoS::from_u8((flags >> 3) & 0b11).ok_or(Problem::QoS3.at("will QoS"))?;
    let mut message_properties = MessageProperties::default();
    let mut delay_interval = 0;
    let mut message_expiry_interval = None;
    if version.is_v5() {
        let mut properties = Properties::read(body)?;
        while let Some(property) = properties.next()? {
            match property {
                Property::WillDelayInterval(seconds) => delay_interval = seconds,
                Property::MessageExpiryInterval(seconds) => message_expiry_interval = Some(seconds),
                other => {
                    if !publish::take_message_property(other, &mut message_properties) {
                        return Err(properties.not_allowed());
                    }
                }
            }
        }
    }
    let topic = TopicName::parse(body.string("will topic")?)
        .map_err(|why| Problem::TopicName(why).at("will topic"))?;
    let payload = body.binary("will payload")?;
    Ok(Will {
        message: Message { topic, payload, properties: message_properties },
        qos,
        retain: flags & WILL_RETAIN != 0,
        delay_interval,
        message_expiry_interval,
    })
}

pub(super) fn connack(body: &mut Reader, context: Context) -> Parsed<ConnAck> {
    let mut flags = body.u8("acknowledge flags")?;
    // 3.1 does not use this byte.
    if context.version == ProtocolVersion::V31 {
        flags = 0;
    }
    if flags > 1 {
        return Err(Problem::ReservedBits(flags).at("acknowledge flags"));
    }
    let code = body.u8("reason code")?;
    let reason = match context.version {
        ProtocolVersion::V5 => {
            ReasonCode::from_u8(code).filter(|reason| reason.is_allowed_in(PacketType::ConnAck))
        }
        ProtocolVersion::V31 | ProtocolVersion::V311 => ReasonCode::from_connect_return_code(code),
    };
    let mut connack = ConnAck {
        session_present: flags == 1,
        code: reason.ok_or(Problem::ReasonCode(code).at("reason code"))?,
        ..ConnAck::default()
    };
    if connack.session_present && connack.code != ReasonCode::Success {
        return Err(Problem::SessionPresentOnRefusal.at("acknowledge flags"));
    }
    if context.version.is_v5() {
        connack_properties(body, &mut connack)?;
    }
    Ok(connack)
}

fn connack_properties(body: &mut Reader, connack: &mut ConnAck) -> Parsed<()> {
    let mut properties = Properties::read(body)?;
    while let Some(property) = properties.next()? {
        match property {
            Property::SessionExpiryInterval(seconds) => connack.session_expiry_interval = Some(seconds),
            Property::ReceiveMaximum(count) => connack.receive_maximum = Some(count),
            Property::MaximumQoS(qos) => connack.maximum_qos = Some(qos),
            Property::RetainAvailable(yes) => connack.retain_available = Some(yes),
            Property::MaximumPacketSize(bytes) => connack.maximum_packet_size = Some(bytes),
            Property::AssignedClientIdentifier(text) => connack.assigned_client_identifier = Some(text),
            Property::TopicAliasMaximum(count) => connack.topic_alias_maximum = count,
            Property::ReasonString(text) => connack.reason_string = Some(text),
            Property::User(name, value) => connack.user_properties.push((name, value)),
            Property::WildcardSubscriptionAvailable(yes) => {
                connack.wildcard_subscription_available = Some(yes);
            }
            Property::SubscriptionIdentifiersAvailable(yes) => {
                connack.subscription_identifiers_available = Some(yes);
            }
            Property::SharedSubscriptionAvailable(yes) => connack.shared_subscription_available = Some(yes),
            Property::ServerKeepAlive(seconds) => connack.server_keep_alive = Some(seconds),
            Property::ResponseInformation(text) => connack.response_information = Some(text),
            Property::ServerReference(text) => connack.server_reference = Some(text),
            Property::AuthenticationMethod(text) => connack.authentication_method = Some(text),
            Property::AuthenticationData(data) => connack.authentication_data = Some(data),
            _ => return Err(properties.not_allowed()),
        }
    }
    Ok(())
}
