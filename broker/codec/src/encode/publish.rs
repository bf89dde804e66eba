//! Writes PUBLISH, the packet of which there are most: straight from the parts that a delivery has at hand,
//! without a [`Packet`](crate::Packet).

use bytes::BytesMut;

use super::frame_len;
use super::sink::{Counter, Sink, WriteProperties};
use crate::error::EncodeError;
use crate::packet::{MessageProperties, ProtocolVersion, PublishHeader, QoS};
use crate::packet_type::PacketType;
use crate::property::id;

/// A PUBLISH without its payload. `extra` user properties follow the publisher's own.
pub(super) struct Body<'a, K, V> {
    pub(super) version: ProtocolVersion,
    pub(super) header: &'a PublishHeader,
    pub(super) topic: &'a str,
    pub(super) properties: &'a MessageProperties,
    pub(super) extra: &'a [(K, V)],
}

/// Appends a PUBLISH to `buf`. `topic` is empty where only `header.topic_alias` is sent. `extra_user_properties`
/// are written after the publisher's own. MQTT 3.1.1 gets no properties.
///
/// # Errors
/// Whatever can not be expressed on the wire: a string or packet that is too long, a QoS over 0 without packet
/// id, neither topic nor alias. `buf` is then unchanged.
pub fn encode_publish<K: AsRef<str>, V: AsRef<str>>(
    buf: &mut BytesMut,
    version: ProtocolVersion,
    header: &PublishHeader,
    topic: &str,
    properties: &MessageProperties,
    extra_user_properties: &[(K, V)],
    payload: &[u8],
) -> Result<(), EncodeError> {
    let length = payload.len();
    write_head(buf, version, header, topic, properties, extra_user_properties, (length, length))?;
    buf.put(payload);
    Ok(())
}

/// Appends a PUBLISH up to its payload, which has `payload_len` bytes and is written by the caller.
///
/// # Errors
/// As [`encode_publish`].
pub fn encode_publish_head<K: AsRef<str>, V: AsRef<str>>(
    buf: &mut BytesMut,
    version: ProtocolVersion,
    header: &PublishHeader,
    topic: &str,
    properties: &MessageProperties,
    extra_user_properties: &[(K, V)],
    payload_len: usize,
) -> Result<(), EncodeError> {
    write_head(buf, version, header, topic, properties, extra_user_properties, (payload_len, 0))
}

/// Writes all but the payload, with room behind for as many bytes of it as `room` says.
fn write_head<K: AsRef<str>, V: AsRef<str>>(
    buf: &mut BytesMut,
    version: ProtocolVersion,
    header: &PublishHeader,
    topic: &str,
    properties: &MessageProperties,
    extra: &[(K, V)],
    (payload_len, room): (usize, usize),
) -> Result<(), EncodeError> {
    if header.packet_id.is_some() != (header.qos != QoS::AtMostOnce) {
        return Err(EncodeError::Contradiction("PUBLISH has a packet id exactly if its QoS is not 0"));
    }
    if header.dup && header.qos == QoS::AtMostOnce {
        return Err(EncodeError::Contradiction("PUBLISH with DUP at QoS 0"));
    }
    if topic.is_empty() && (!version.is_v5() || header.topic_alias.is_none()) {
        return Err(EncodeError::Contradiction("PUBLISH without topic name or topic alias"));
    }
    let body = Body { version, header, topic, properties, extra };
    let mut counter = Counter::default();
    body.write(&mut counter, &[]);
    let head = counter.bytes();
    counter.add(payload_len);
    let remaining = counter.remaining_length()?;
    buf.reserve(frame_len(head).saturating_add(room));
    let flags = u8::from(header.dup) << 3 | header.qos.as_u8() << 1 | u8::from(header.retain);
    buf.u8(PacketType::Publish.as_u8() << 4 | flags);
    buf.variable_byte_integer(remaining);
    body.write(buf, &[]);
    Ok(())
}

/// How many bytes [`encode_publish`] appends for a payload of `payload_len` bytes, fixed header included.
#[must_use]
pub fn publish_len<K: AsRef<str>, V: AsRef<str>>(
    version: ProtocolVersion,
    header: &PublishHeader,
    topic: &str,
    properties: &MessageProperties,
    extra_user_properties: &[(K, V)],
    payload_len: usize,
) -> usize {
    let mut counter = Counter::default();
    Body { version, header, topic, properties, extra: extra_user_properties }.write(&mut counter, &[]);
    frame_len(counter.bytes().saturating_add(payload_len))
}

impl<K: AsRef<str>, V: AsRef<str>> Body<'_, K, V> {
    pub(super) fn write<S: Sink>(&self, out: &mut S, payload: &[u8]) {
        out.string(self.topic);
        if let Some(packet_id) = self.header.packet_id {
            out.u16(packet_id.get());
        }
        if self.version.is_v5() {
            out.properties(self);
        }
        out.put(payload);
    }
}

impl<K: AsRef<str>, V: AsRef<str>> WriteProperties for Body<'_, K, V> {
    fn write_properties<S: Sink>(&self, out: &mut S) {
        out.u16_property(id::TOPIC_ALIAS, self.header.topic_alias.map(|alias| alias.get()));
        out.u32_property(id::MESSAGE_EXPIRY_INTERVAL, self.header.message_expiry_interval);
        for identifier in &self.header.subscription_identifiers {
            out.subscription_identifier(*identifier);
        }
        message_properties(self.properties, out);
        for (name, value) in self.extra {
            out.user_property(name.as_ref(), value.as_ref());
        }
    }
}

/// The properties that a PUBLISH and a will share, user properties last.
pub(super) fn message_properties<S: Sink>(properties: &MessageProperties, out: &mut S) {
    out.flag_property(id::PAYLOAD_FORMAT_INDICATOR, properties.payload_format_utf8);
    out.string_property(id::CONTENT_TYPE, properties.content_type.as_ref());
    if let Some(topic) = &properties.response_topic {
        out.u8(id::RESPONSE_TOPIC);
        out.string(topic.as_str());
    }
    out.binary_property(id::CORRELATION_DATA, properties.correlation_data.as_deref());
    out.user_properties(&properties.user_properties);
}
