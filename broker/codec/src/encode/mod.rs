//! From packets to bytes.
//!
//! What MQTT 3.1.1 has no place for is left out: properties, and reasons other than the return codes of
//! CONNACK and SUBACK. Must never decide whether a packet may be sent: that is the session's matter.

mod connect;
mod control;
mod publish;
mod sink;
mod template;

use bytes::BytesMut;
use weir_topic::TopicName;

pub use publish::{encode_publish, encode_publish_head, publish_len};
pub use template::PublishTemplate;

use self::publish::Body;
use self::sink::{Counter, Sink};
use crate::error::EncodeError;
use crate::packet::{Packet, ProtocolVersion, Publish};
use crate::packet_type::PacketType;

/// No user properties beside the publisher's own.
const NO_EXTRA: &[(&str, &str)] = &[];

/// Appends `packet` to `buf` in the format of `version`; a CONNECT in the format of its own version.
///
/// # Errors
/// Whatever can not be expressed on the wire; `buf` is then unchanged.
pub fn encode(packet: &Packet, version: ProtocolVersion, buf: &mut BytesMut) -> Result<(), EncodeError> {
    if let Packet::Publish(publish) = packet {
        let topic = publish.topic.as_ref().map_or("", TopicName::as_str);
        let Publish { header, properties, payload, .. } = publish.as_ref();
        return encode_publish(buf, version, header, topic, properties, NO_EXTRA, payload);
    }
    check(packet, version)?;
    let mut counter = Counter::default();
    write_body(packet, version, &mut counter);
    let remaining = counter.remaining_length()?;
    buf.reserve(frame_len(counter.bytes()));
    let kind = packet.packet_type();
    buf.u8(kind.as_u8() << 4 | kind.fixed_flags().unwrap_or(0));
    buf.variable_byte_integer(remaining);
    write_body(packet, version, buf);
    Ok(())
}

/// How many bytes [`encode`] appends, fixed header included, if it succeeds.
#[must_use]
pub fn encoded_len(packet: &Packet, version: ProtocolVersion) -> usize {
    let mut counter = Counter::default();
    write_body(packet, version, &mut counter);
    frame_len(counter.bytes())
}

/// Length with the fixed header of a packet that has `remaining` bytes after it.
const fn frame_len(remaining: usize) -> usize {
    let header = match remaining {
        0..=0x7f => 2_usize,
        0x80..=0x3fff => 3,
        0x4000..=0x1f_ffff => 4,
        _ => 5,
    };
    header.saturating_add(remaining)
}

/// Refuses packets whose parts contradict each other or the version.
fn check(packet: &Packet, version: ProtocolVersion) -> Result<(), EncodeError> {
    let why = match packet {
        Packet::Auth(_) if !version.is_v5() => {
            return Err(EncodeError::NotInVersion(PacketType::Auth.name()));
        }
        Packet::Connect(connect)
            if !connect.version.is_v5() && connect.password.is_some() && connect.username.is_none() =>
        {
            return Err(EncodeError::NotInVersion("a password without user name"));
        }
        Packet::Subscribe(subscribe) if subscribe.filters.is_empty() => "SUBSCRIBE without a filter",
        Packet::Unsubscribe(unsubscribe) if unsubscribe.filters.is_empty() => "UNSUBSCRIBE without a filter",
        _ => return Ok(()),
    };
    Err(EncodeError::Contradiction(why))
}

fn write_body<S: Sink>(packet: &Packet, version: ProtocolVersion, out: &mut S) {
    match packet {
        Packet::Connect(connect) => connect::connect(connect, out),
        Packet::ConnAck(connack) => connect::connack(connack, version, out),
        Packet::Publish(publish) => Body {
            version,
            header: &publish.header,
            topic: publish.topic.as_ref().map_or("", TopicName::as_str),
            properties: &publish.properties,
            extra: NO_EXTRA,
        }
        .write(out, &publish.payload),
        Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubRel(ack) | Packet::PubComp(ack) => {
            control::ack(ack, version, out);
        }
        Packet::Subscribe(subscribe) => control::subscribe(subscribe, version, out),
        Packet::SubAck(suback) => control::suback(suback, version, out),
        Packet::Unsubscribe(unsubscribe) => control::unsubscribe(unsubscribe, version, out),
        Packet::UnsubAck(unsuback) => control::unsuback(unsuback, version, out),
        Packet::PingReq | Packet::PingResp => {}
        Packet::Disconnect(disconnect) => control::disconnect(disconnect, version, out),
        Packet::Auth(auth) => control::auth(auth, out),
    }
}
