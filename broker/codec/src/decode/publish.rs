//! Reads PUBLISH.

use weir_topic::{TopicError, TopicName};

use super::{Context, Sender};
use crate::error::{Parsed, Problem};
use crate::packet::{MessageProperties, Publish, PublishHeader, QoS};
use crate::property::{Properties, Property};
use crate::read::Reader;

const DUP: u8 = 0b1000;
const RETAIN: u8 = 0b0001;

/// The QoS in the flags of the fixed header.
fn qos(flags: u8) -> Parsed<QoS> {
    QoS::from_u8((flags >> 1) & 0b11).ok_or(Problem::QoS3.at("fixed header"))
}

/// Refuses flags that no PUBLISH has. `[MQTT-3.3.1-2]`, `[MQTT-3.3.1-4]`
pub(super) fn check_flags(flags: u8) -> Parsed<()> {
    if qos(flags)? == QoS::AtMostOnce && flags & DUP != 0 {
        return Err(Problem::DupAtQoS0.at("fixed header"));
    }
    Ok(())
}

pub(super) fn publish(body: &mut Reader, context: Context) -> Parsed<Publish> {
    let topic = body.string("topic name")?;
    let qos = qos(context.flags)?;
    let mut header = PublishHeader {
        dup: context.flags & DUP != 0,
        qos,
        retain: context.flags & RETAIN != 0,
        packet_id: if qos == QoS::AtMostOnce { None } else { Some(body.packet_id()?) },
        ..PublishHeader::default()
    };
    let mut forwarded = MessageProperties::default();
    if context.version.is_v5() {
        properties(body, context.sender, &mut header, &mut forwarded)?;
    }
    let topic = if !topic.is_empty() {
        Some(TopicName::parse(topic).map_err(|why| Problem::TopicName(why).at("topic name"))?)
    } else if !context.version.is_v5() {
        return Err(Problem::TopicName(TopicError::Empty).at("topic name"));
    } else if header.topic_alias.is_none() {
        return Err(Problem::TopicMissing.at("topic name"));
    } else {
        None
    };
    Ok(Publish { header, topic, payload: body.take_rest(), properties: forwarded })
}

fn properties(
    body: &mut Reader,
    sender: Sender,
    header: &mut PublishHeader,
    forwarded: &mut MessageProperties,
) -> Parsed<()> {
    let mut properties = Properties::read(body)?;
    while let Some(property) = properties.next()? {
        match property {
            Property::MessageExpiryInterval(seconds) => header.message_expiry_interval = Some(seconds),
            Property::TopicAlias(alias) => header.topic_alias = Some(alias),
            // `[MQTT-3.3.4-6]`
            Property::SubscriptionIdentifier(_) if sender == Sender::Client => {
                return Err(properties.wrong_sender());
            }
            Property::SubscriptionIdentifier(id) => header.subscription_identifiers.push(id.get()),
            other => {
                if !take_message_property(other, forwarded) {
                    return Err(properties.not_allowed());
                }
            }
        }
    }
    Ok(())
}

/// Takes a property that belongs to the message, in a PUBLISH or a will; `false` if it is none.
pub(super) fn take_message_property(property: Property, message: &mut MessageProperties) -> bool {
    match property {
        Property::PayloadFormatIndicator(utf8) => message.payload_format_utf8 = Some(utf8),
        Property::ContentType(text) => message.content_type = Some(text),
        Property::ResponseTopic(topic) => message.response_topic = Some(topic),
        Property::CorrelationData(data) => message.correlation_data = Some(data),
        Property::User(name, value) => message.user_properties.push((name, value)),
        _ => return false,
    }
    true
}
