//! Encoded sizes, for the client's Maximum Packet Size. Mirrors the encoder (a test compares the two) and
//! writes nothing. Only 5.0 clients can set a maximum, so all sizes are those of 5.0.

use bytestring::ByteString;
use weir_codec::{
    AckProperties, ConnAck, Disconnect, Message, MessageProperties, PublishHeader, QoS, ReasonCode,
};

/// Of a PUBLISH; the topic counts if it is on the wire.
pub(crate) fn publish(
    header: &PublishHeader,
    topic_on_wire: bool,
    message: &Message,
    extra: &[(ByteString, ByteString)],
) -> usize {
    let properties = message_properties(&message.properties)
        + user_properties(extra)
        + header.topic_alias.map_or(0, |_| 3)
        + header.message_expiry_interval.map_or(0, |_| 5)
        + header.subscription_identifiers.iter().map(|&id| 1 + varint(id as usize)).sum::<usize>();
    let topic = if topic_on_wire { message.topic.as_str().len() } else { 0 };
    let id = if header.qos == QoS::AtMostOnce { 0 } else { 2 };
    packet(2 + topic + id + block(properties) + message.payload.len())
}

/// Of a PUBACK, PUBREC, PUBREL or PUBCOMP.
pub(crate) fn ack(reason: ReasonCode, properties: Option<&AckProperties>) -> usize {
    let body = match properties.map_or(0, ack_properties) {
        0 if reason == ReasonCode::Success => 2,
        0 => 3,
        properties => 3 + block(properties),
    };
    packet(body)
}

/// Of a SUBACK or UNSUBACK.
pub(crate) fn list_ack(reasons: usize, properties: &AckProperties) -> usize {
    packet(2 + block(ack_properties(properties)) + reasons)
}

/// Of a DISCONNECT from the server.
pub(crate) fn disconnect(packet_: &Disconnect) -> usize {
    let properties = text(packet_.reason_string.as_ref())
        + user_properties(&packet_.user_properties)
        + text(packet_.server_reference.as_ref())
        + packet_.session_expiry_interval.map_or(0, |_| 5);
    let body = match properties {
        0 if packet_.reason == ReasonCode::Success => 0,
        0 => 1,
        properties => 1 + block(properties),
    };
    packet(body)
}

/// Of a CONNACK with the properties that a session sets.
pub(crate) fn connack(packet_: &ConnAck) -> usize {
    let properties = packet_.session_expiry_interval.map_or(0, |_| 5)
        + packet_.receive_maximum.map_or(0, |_| 3)
        + packet_.maximum_packet_size.map_or(0, |_| 5)
        + text(packet_.assigned_client_identifier.as_ref())
        + if packet_.topic_alias_maximum == 0 { 0 } else { 3 }
        + packet_.server_keep_alive.map_or(0, |_| 3);
    packet(2 + block(properties))
}

fn message_properties(properties: &MessageProperties) -> usize {
    properties.payload_format_utf8.map_or(0, |_| 2)
        + text(properties.content_type.as_ref())
        + properties.response_topic.as_ref().map_or(0, |topic| 3 + topic.as_str().len())
        + properties.correlation_data.as_ref().map_or(0, |data| 3 + data.len())
        + user_properties(&properties.user_properties)
}

fn ack_properties(properties: &AckProperties) -> usize {
    text(properties.reason_string.as_ref()) + user_properties(&properties.user_properties)
}

fn user_properties(pairs: &[(ByteString, ByteString)]) -> usize {
    pairs.iter().map(|(name, value)| 5 + name.len() + value.len()).sum()
}

fn text(value: Option<&ByteString>) -> usize {
    value.map_or(0, |value| 3 + value.len())
}

fn block(properties: usize) -> usize {
    varint(properties) + properties
}

fn packet(body: usize) -> usize {
    1 + varint(body) + body
}

fn varint(n: usize) -> usize {
    match n {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}
