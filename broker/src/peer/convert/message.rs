//! Application messages, to protobuf and back.

use weir_core::message::{Message, Properties};
use weir_env::clock::Timestamp;
use weir_proto::peer::v1 as wire;
use weir_topic::TopicName;

use super::{Malformed, narrow};

/// The message as it travels; its payload is shared, not copied.
pub(super) fn to_wire(message: &Message) -> wire::Message {
    let properties = &message.properties;
    let user = properties
        .user
        .iter()
        .map(|(name, value)| wire::UserProperty { name: name.to_string(), value: value.to_string() });
    wire::Message {
        topic: message.topic.as_str().to_owned(),
        payload: message.payload.clone(),
        qos: message.qos.into(),
        retain: message.retain,
        published_at_us: message.published_at.as_micros(),
        expires_at_us: message.expires_at.map(|at| at.as_micros()),
        dead_letter: message.dead_letter,
        payload_format_utf8: properties.payload_format_utf8,
        content_type: properties.content_type.as_ref().map(ToString::to_string),
        response_topic: properties.response_topic.as_ref().map(|topic| topic.as_str().to_owned()),
        correlation_data: properties.correlation_data.clone(),
        user_properties: user.collect(),
    }
}

/// The message that came.
pub(super) fn from_wire(message: Option<wire::Message>) -> Result<Message, Malformed> {
    let message = message.ok_or(Malformed("application message"))?;
    let user = message.user_properties.into_iter().map(|user| (user.name.into(), user.value.into()));
    let response_topic = message.response_topic.map(|topic| topic_of(topic, "response topic")).transpose()?;
    Ok(Message {
        topic: topic_of(message.topic, "topic")?,
        payload: message.payload,
        qos: narrow(message.qos, "QoS")
            .and_then(|qos: u8| (qos <= 2).then_some(qos).ok_or(Malformed("QoS")))?,
        retain: message.retain,
        published_at: Timestamp::from_micros(message.published_at_us),
        expires_at: message.expires_at_us.map(Timestamp::from_micros),
        dead_letter: message.dead_letter,
        properties: Properties {
            payload_format_utf8: message.payload_format_utf8,
            content_type: message.content_type.map(Into::into),
            response_topic,
            correlation_data: message.correlation_data,
            user: user.collect(),
        },
    })
}

fn topic_of(text: String, field: &'static str) -> Result<TopicName, Malformed> {
    TopicName::parse(text).map_err(|_| Malformed(field))
}
