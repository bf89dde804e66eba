//! A message as it is stored: what a publisher sent, when, and until when it is worth something.

use bytes::Bytes;
use bytestring::ByteString;
use weir_env::clock::Timestamp;
use weir_topic::TopicName;

use crate::keyspace::{DecodeError, Reader, Writer};

/// An application message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it was published.
    pub topic: TopicName,
    /// Any bytes.
    pub payload: Bytes,
    /// Quality of service it was published with: 0, 1 or 2.
    pub qos: u8,
    /// Whether it was published with RETAIN set.
    pub retain: bool,
    /// When the broker took it.
    pub published_at: Timestamp,
    /// When it stops being worth delivering.
    pub expires_at: Option<Timestamp>,
    /// Catalog id of the queue that this message left as a dead letter: it never enters that one again, and is never
    /// dead-lettered once more. Nothing that a publisher sends sets it.
    pub dead_letter: Option<u32>,
    /// Forwarded unaltered.
    pub properties: Properties,
}

/// What MQTT 5 forwards beside topic and payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// `Some(true)`: the payload is UTF-8 text.
    pub payload_format_utf8: Option<bool>,
    /// Media type.
    pub content_type: Option<ByteString>,
    /// Where a response is awaited.
    pub response_topic: Option<TopicName>,
    /// Tells the requester which request a response answers.
    pub correlation_data: Option<Bytes>,
    /// User properties, in order.
    pub user: Vec<(ByteString, ByteString)>,
}

/// Which fields follow, in the first byte of an encoded message.
mod flag {
    pub(super) const QOS: u8 = 0b0000_0011;
    pub(super) const RETAIN: u8 = 0b0000_0100;
    pub(super) const EXPIRES: u8 = 0b0000_1000;
    pub(super) const PROPERTIES: u8 = 0b0001_0000;
    pub(super) const DEAD_LETTER: u8 = 0b0010_0000;
}

/// Kinds of property in an encoded message.
mod property {
    pub(super) const PAYLOAD_FORMAT: u8 = 1;
    pub(super) const CONTENT_TYPE: u8 = 2;
    pub(super) const RESPONSE_TOPIC: u8 = 3;
    pub(super) const CORRELATION_DATA: u8 = 4;
    pub(super) const USER: u8 = 5;
}

impl Message {
    /// Whether it is past its expiry at `now`.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Bytes it holds in memory, nearly.
    #[must_use]
    pub fn size(&self) -> usize {
        let user: usize = self.properties.user.iter().map(|(k, v)| k.len() + v.len() + 64).sum();
        self.topic.as_str().len() + self.payload.len() + user + 128
    }

    /// Appends everything but the payload: flags, times relative to `base`, topic and properties.
    #[must_use]
    pub fn encode_head(&self, mut out: Writer, base: Timestamp) -> Writer {
        let mut flags = self.qos & flag::QOS;
        flags |= if self.retain { flag::RETAIN } else { 0 };
        flags |= if self.expires_at.is_some() { flag::EXPIRES } else { 0 };
        let has_properties = self.properties != Properties::default();
        flags |= if has_properties { flag::PROPERTIES } else { 0 };
        flags |= if self.dead_letter.is_some() { flag::DEAD_LETTER } else { 0 };
        out = out.u8(flags).varint(self.published_at.as_micros().saturating_sub(base.as_micros()));
        if let Some(at) = self.expires_at {
            out = out.varint(at.as_micros().saturating_sub(self.published_at.as_micros()));
        }
        if let Some(queue) = self.dead_letter {
            out = out.varint(u64::from(queue));
        }
        out = out.bytes(self.topic.as_str().as_bytes());
        if has_properties { self.properties.encode(out) } else { out }
    }

    /// Takes what [`Message::encode_head`] wrote; the payload is left empty.
    ///
    /// # Errors
    /// If the bytes are not an encoded message.
    pub fn decode_head(reader: &mut Reader, base: Timestamp) -> Result<Self, DecodeError> {
        Self::decode_head_after(reader, base, None)
    }

    /// The same after a message with the topic `last`: neighbours often share one, which is then not checked again.
    pub(crate) fn decode_head_after(
        reader: &mut Reader,
        base: Timestamp,
        last: Option<&TopicName>,
    ) -> Result<Self, DecodeError> {
        let flags = reader.u8("message flags")?;
        let micros = base.as_micros().saturating_add(reader.varint("message time")?);
        let published_at = Timestamp::from_micros(micros);
        let expires_at = if flags & flag::EXPIRES != 0 {
            Some(Timestamp::from_micros(micros.saturating_add(reader.varint("message expiry")?)))
        } else {
            None
        };
        let dead_letter = if flags & flag::DEAD_LETTER != 0 {
            let queue = u32::try_from(reader.varint("queue of a dead letter")?);
            Some(queue.map_err(|_| DecodeError::Invalid("queue of a dead letter"))?)
        } else {
            None
        };
        let topic = match last {
            Some(last) if reader.bytes_are(last.as_str().as_bytes()) => last.clone(),
            _ => TopicName::parse(reader.string("message topic")?)
                .map_err(|_| DecodeError::Invalid("message topic"))?,
        };
        let properties =
            if flags & flag::PROPERTIES != 0 { Properties::decode(reader)? } else { Properties::default() };
        Ok(Self {
            topic,
            payload: Bytes::new(),
            qos: (flags & flag::QOS).min(2),
            retain: flags & flag::RETAIN != 0,
            published_at,
            expires_at,
            dead_letter,
            properties,
        })
    }

    /// Appends the whole message.
    #[must_use]
    pub fn encode(&self, out: Writer) -> Writer {
        self.encode_head(out, Timestamp::default()).bytes(&self.payload)
    }

    /// Takes what [`Message::encode`] wrote.
    ///
    /// # Errors
    /// If the bytes are not an encoded message.
    pub fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let mut message = Self::decode_head(reader, Timestamp::default())?;
        message.payload = reader.bytes("message payload")?;
        Ok(message)
    }
}

impl Properties {
    fn encode(&self, mut out: Writer) -> Writer {
        let fixed = [
            self.payload_format_utf8.is_some(),
            self.content_type.is_some(),
            self.response_topic.is_some(),
            self.correlation_data.is_some(),
        ];
        let count = fixed.iter().filter(|present| **present).count() + self.user.len();
        out = out.varint(count as u64);
        if let Some(utf8) = self.payload_format_utf8 {
            out = out.u8(property::PAYLOAD_FORMAT).u8(u8::from(utf8));
        }
        if let Some(content_type) = &self.content_type {
            out = out.u8(property::CONTENT_TYPE).bytes(content_type.as_bytes());
        }
        if let Some(topic) = &self.response_topic {
            out = out.u8(property::RESPONSE_TOPIC).bytes(topic.as_str().as_bytes());
        }
        if let Some(data) = &self.correlation_data {
            out = out.u8(property::CORRELATION_DATA).bytes(data);
        }
        for (name, value) in &self.user {
            out = out.u8(property::USER).bytes(name.as_bytes()).bytes(value.as_bytes());
        }
        out
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        let mut properties = Self::default();
        for _ in 0..reader.varint("property count")? {
            match reader.u8("property kind")? {
                property::PAYLOAD_FORMAT => {
                    properties.payload_format_utf8 = Some(reader.u8("payload format")? != 0);
                }
                property::CONTENT_TYPE => properties.content_type = Some(reader.string("content type")?),
                property::RESPONSE_TOPIC => {
                    let topic = TopicName::parse(reader.string("response topic")?)
                        .map_err(|_| DecodeError::Invalid("response topic"))?;
                    properties.response_topic = Some(topic);
                }
                property::CORRELATION_DATA => {
                    properties.correlation_data = Some(reader.bytes("correlation data")?);
                }
                property::USER => {
                    let name = reader.string("user property name")?;
                    properties.user.push((name, reader.string("user property value")?));
                }
                _ => return Err(DecodeError::Invalid("property kind")),
            }
        }
        Ok(properties)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A message with every field set.
    pub(crate) fn full_message() -> Message {
        Message {
            topic: TopicName::parse("a/b").unwrap(),
            payload: Bytes::from_static(b"payload"),
            qos: 2,
            retain: true,
            published_at: Timestamp::from_micros(1_700_000_000_000_000),
            expires_at: Some(Timestamp::from_micros(1_700_000_060_000_000)),
            dead_letter: None,
            properties: Properties {
                payload_format_utf8: Some(true),
                content_type: Some("text/plain".into()),
                response_topic: Some(TopicName::parse("r").unwrap()),
                correlation_data: Some(Bytes::from_static(b"\x00\x01")),
                user: vec![("k".into(), "v".into()), ("k".into(), "w".into())],
            },
        }
    }

    #[test]
    fn a_message_comes_back_as_stored() {
        let plain = Message { properties: Properties::default(), expires_at: None, qos: 0, ..full_message() };
        let dead = Message { dead_letter: Some(300), ..full_message() };
        for message in [full_message(), plain, dead] {
            let bytes = Bytes::from(message.encode(Writer::new(1)).finish());
            let (mut reader, _) = Reader::value(bytes.clone(), "message", 1).unwrap();
            assert_eq!(Message::decode(&mut reader).unwrap(), message);
            for cut in 1..bytes.len() {
                let (mut reader, _) = Reader::value(bytes.slice(..cut), "message", 1).unwrap();
                assert!(Message::decode(&mut reader).is_err(), "cut at {cut} was accepted");
            }
        }
    }
}
