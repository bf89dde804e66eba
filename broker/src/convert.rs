//! Between the packets of the wire and the messages of the core: the one place where either becomes the other.

use std::sync::Arc;
use std::time::Duration;

use weir_codec::{Message as WireMessage, MessageProperties, QoS};
use weir_core::message::{Message, Properties};
use weir_env::clock::{Clock, Instant, Timestamp};

/// A published message as the core keeps it.
pub(crate) fn to_core(
    message: &WireMessage,
    qos: QoS,
    retain: bool,
    expiry: Option<u32>,
    now: Timestamp,
) -> Message {
    let properties = &message.properties;
    Message {
        topic: message.topic.clone(),
        payload: message.payload.clone(),
        qos: qos.as_u8(),
        retain,
        published_at: now,
        dead_letter: None,
        expires_at: expiry.map(|seconds| now.saturating_add(Duration::from_secs(u64::from(seconds)))),
        properties: Properties {
            payload_format_utf8: properties.payload_format_utf8,
            content_type: properties.content_type.clone(),
            response_topic: properties.response_topic.clone(),
            correlation_data: properties.correlation_data.clone(),
            user: properties.user_properties.clone(),
        },
    }
}

/// A kept message as it goes on the wire.
pub(crate) fn to_wire(message: &Message) -> Arc<WireMessage> {
    let properties = &message.properties;
    Arc::new(WireMessage {
        topic: message.topic.clone(),
        payload: message.payload.clone(),
        properties: MessageProperties {
            payload_format_utf8: properties.payload_format_utf8,
            content_type: properties.content_type.clone(),
            response_topic: properties.response_topic.clone(),
            correlation_data: properties.correlation_data.clone(),
            user_properties: properties.user.clone(),
        },
    })
}

/// Whether the payload is text if it is said to be [MQTT 5, 3.3.2.3.2].
pub(crate) fn is_as_it_says(message: &WireMessage) -> bool {
    message.properties.payload_format_utf8 != Some(true) || std::str::from_utf8(&message.payload).is_ok()
}

/// A stored quality of service; what is out of range counts as the highest.
pub(crate) fn qos(n: u8) -> QoS {
    QoS::from_u8(n).unwrap_or(QoS::ExactlyOnce)
}

/// When a stored expiry is on the monotonic clock; what is past is now.
pub(crate) fn expires_at(clock: Clock, at: Option<Timestamp>) -> Option<std::time::Instant> {
    let left = at?.saturating_since(clock.wall());
    deadline(clock.now(), left)
}

/// `after` from `now`, unless that is beyond what the clock can express.
pub(crate) fn deadline(now: Instant, after: Duration) -> Option<std::time::Instant> {
    now.into_std().checked_add(after)
}
