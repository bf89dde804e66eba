//! Stream messages at QoS 0 as the bytes that go to the client: encoded by whoever reads the stream, many at once, so that
//! the connection's task hands them to the socket without a look at any of them.
//!
//! Knows no connection, only what a subscriber gets. Not for QoS 1, whose packets the session numbers, nor for large
//! payloads, which all readers share.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use weir_codec::{EncodeError, ProtocolVersion, PublishHeader, PublishTemplate, encode_publish, publish_len};
use weir_core::keyspace::segment::Record;
use weir_core::message::Properties;

use super::deliver::stream_properties;
use crate::connection::output::LARGE_MIN;
use crate::convert;

/// Bytes after which no further message is added: a socket takes about as much at once.
const FRAMES_BYTES: usize = 64 * 1024;

/// Bytes of a packet beside topic and payload, about.
const OVERHEAD: usize = 128;

/// Bytes to set aside for the packets of `records`: few for one message that has just come.
fn room_for(records: &[(u64, Arc<Record>)]) -> usize {
    const ROOM_MAX: usize = FRAMES_BYTES + FRAMES_BYTES / 8;
    let mut room = 0;
    for (_, record) in records {
        room += OVERHEAD + record.message.topic.as_str().len() + record.message.payload.len();
        if room >= ROOM_MAX {
            return ROOM_MAX;
        }
    }
    room
}

/// Whole PUBLISH packets, one behind the other.
#[derive(Debug, Default)]
pub(in crate::connection) struct Frames {
    pub(in crate::connection) bytes: Bytes,
    /// Messages in it, and bytes of their payloads.
    pub(in crate::connection) messages: u64,
    pub(in crate::connection) payload_bytes: u64,
    /// Messages that are not in it because the client takes no packet as large.
    pub(in crate::connection) too_large: u64,
}

/// Encodes for one subscription.
#[derive(Debug)]
pub(super) struct Encoder {
    /// Name of the stream.
    stream: String,
    version: ProtocolVersion,
    packet_size_max: u32,
    identifier: Option<u32>,
    /// Of the shard whose records came last.
    template: Option<(u8, PublishTemplate)>,
}

impl Encoder {
    /// For a client that takes packets of so many bytes.
    pub(super) fn new(
        stream: &str,
        version: ProtocolVersion,
        packet_size_max: u32,
        identifier: Option<u32>,
    ) -> Self {
        Self { stream: stream.to_owned(), version, packet_size_max, identifier, template: None }
    }

    /// Encodes the first of `records`, and says how many these are: as many as make [`FRAMES_BYTES`], or all up to one
    /// with a large payload.
    pub(super) fn encode(&mut self, shard: u8, records: &[(u64, Arc<Record>)]) -> (Frames, usize) {
        let mut frames = Frames::default();
        let mut bytes = BytesMut::with_capacity(room_for(records));
        let template = self.take_template(shard);
        let mut taken = 0;
        for (offset, record) in records {
            if bytes.len() >= FRAMES_BYTES || Self::is_large(record) {
                break;
            }
            taken += 1;
            let template = template.as_ref().map_err(|error| *error);
            match template.and_then(|template| self.put(&mut bytes, template, shard, *offset, record)) {
                Ok(true) => {
                    frames.messages += 1;
                    frames.payload_bytes += record.message.payload.len() as u64;
                }
                Ok(false) => frames.too_large += 1,
                // Nothing that was published and stored is too long for a field.
                Err(error) => {
                    tracing::error!(stream = self.stream, offset, %error, "encode a message");
                    frames.too_large += 1;
                }
            }
        }
        self.template = template.ok().map(|template| (shard, template));
        frames.bytes = bytes.freeze();
        (frames, taken)
    }

    /// Whether its payload is not to be copied.
    pub(super) fn is_large(record: &Record) -> bool {
        record.message.payload.len() >= LARGE_MIN
    }

    /// False if the client would not take it.
    fn put(
        &self,
        bytes: &mut BytesMut,
        template: &PublishTemplate,
        shard: u8,
        offset: u64,
        record: &Record,
    ) -> Result<bool, EncodeError> {
        let message = &record.message;
        let is_plain = message.properties == Properties::default() && message.expires_at.is_none();
        if self.version.is_v5() && !is_plain {
            return self.put_with_properties(bytes, shard, offset, record);
        }
        let (mut offset_text, mut time_text) = (itoa::Buffer::new(), itoa::Buffer::new());
        let time = message.published_at.as_micros();
        let mut values = [offset_text.format(offset), time_text.format(time), ""];
        let key = record.key_bytes().and_then(|key| std::str::from_utf8(key).ok());
        let values = match key {
            Some(key) => {
                values[2] = key;
                &values[..]
            }
            None => &values[..2],
        };
        let (size_max, topic) = (self.packet_size_max, message.topic.as_str());
        template.write(bytes, size_max, topic, values, &message.payload)
    }

    /// The template for a shard, taken out of its place.
    fn take_template(&mut self, shard: u8) -> Result<PublishTemplate, EncodeError> {
        if let Some((_, template)) = self.template.take_if(|(of, _)| *of == shard) {
            return Ok(template);
        }
        let number = shard.to_string();
        let fixed = [("stream", self.stream.as_str()), ("shard", &number)];
        PublishTemplate::new(self.version, self.identifier.as_slice(), &fixed, &["offset", "ts", "key"])
    }

    fn put_with_properties(
        &self,
        bytes: &mut BytesMut,
        shard: u8,
        offset: u64,
        record: &Record,
    ) -> Result<bool, EncodeError> {
        let message = convert::to_wire(&record.message);
        let header = PublishHeader {
            subscription_identifiers: self.identifier.into_iter().collect(),
            ..PublishHeader::default()
        };
        let extra = stream_properties(&self.stream, shard, offset, record);
        let (topic, payload) = (message.topic.as_str(), &message.payload);
        let length = publish_len(self.version, &header, topic, &message.properties, &extra, payload.len());
        if u32::try_from(length).map_or(true, |length| length > self.packet_size_max) {
            return Ok(false);
        }
        encode_publish(bytes, self.version, &header, topic, &message.properties, &extra, payload)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use weir_core::keyspace::segment::RecordKey;
    use weir_core::message::Message;
    use weir_env::clock::Timestamp;
    use weir_topic::TopicName;

    use super::*;

    fn record(payload: usize, key: RecordKey, properties: Properties, expires: bool) -> Arc<Record> {
        let published_at = Timestamp::from_micros(1_700_000_000_000_000);
        let message = Message {
            topic: TopicName::parse("log/1").unwrap(),
            payload: vec![b'p'; payload].into(),
            qos: 1,
            retain: true,
            published_at,
            expires_at: expires.then(|| Timestamp::from_micros(1_700_000_060_000_000)),
            dead_letter: None,
            properties,
        };
        Arc::new(Record { message, key, blob_len: None, span: tracing::Span::none() })
    }

    fn records() -> Vec<(u64, Arc<Record>)> {
        let rich = Properties { user: vec![("k".into(), "v".into())], ..Properties::default() };
        let (key, none) = (RecordKey::Bytes(Bytes::from_static(b"key")), Properties::default());
        let all = [
            record(0, RecordKey::None, none.clone(), false),
            record(300, RecordKey::Topic, none.clone(), false),
            record(100, key.clone(), none.clone(), true),
            record(200, key, rich, false),
            record(LARGE_MIN - 1, RecordKey::None, none, false),
        ];
        [7, 8, 20, u64::MAX - 1, u64::MAX].into_iter().zip(all).collect()
    }

    /// What every other delivery goes through.
    fn one_by_one(version: ProtocolVersion, size_max: u32, of: &[(u64, Arc<Record>)]) -> (BytesMut, u64) {
        let (mut bytes, mut too_large) = (BytesMut::new(), 0);
        for (offset, record) in of {
            let message = convert::to_wire(&record.message);
            let header = PublishHeader { subscription_identifiers: [9].into(), ..PublishHeader::default() };
            let extra = stream_properties("log", 3, *offset, record);
            let before = bytes.len();
            let (topic, payload) = (message.topic.as_str(), &message.payload);
            encode_publish(&mut bytes, version, &header, topic, &message.properties, &extra, payload)
                .unwrap();
            if bytes.len() - before > size_max as usize {
                bytes.truncate(before);
                too_large += 1;
            }
        }
        (bytes, too_large)
    }

    #[test]
    fn packets_are_those_of_every_other_delivery() {
        for version in [ProtocolVersion::V311, ProtocolVersion::V5] {
            for size_max in [u32::MAX, 1_000, 250] {
                let records = records();
                let mut encoder = Encoder::new("log", version, size_max, Some(9));
                // Of another shard first: what is kept of that one must not stay.
                encoder.encode(2, &records[..1]);
                let (frames, taken) = encoder.encode(3, &records);
                let (expected, too_large) = one_by_one(version, size_max, &records);
                assert_eq!(frames.bytes, expected, "{version:?} {size_max}");
                assert_eq!((taken, frames.too_large), (records.len(), too_large));
                assert_eq!(frames.messages + frames.too_large, 5);
                if too_large == 0 {
                    assert_eq!(frames.payload_bytes, 600 + LARGE_MIN as u64 - 1);
                }
            }
        }
    }

    #[test]
    fn a_piece_ends_where_it_is_full_or_a_payload_is_large() {
        let mut encoder = Encoder::new("log", ProtocolVersion::V5, u32::MAX, None);
        let of = |n: u64, size| (n, record(size, RecordKey::None, Properties::default(), false));
        let many: Vec<_> = (0..1_000).map(|n| of(n, 1_000)).collect();
        let (frames, taken) = encoder.encode(0, &many);
        assert!((FRAMES_BYTES..FRAMES_BYTES + 2_000).contains(&frames.bytes.len()), "{}", frames.bytes.len());
        assert_eq!(frames.messages, taken as u64);
        let large = [of(0, 5), of(1, LARGE_MIN), of(2, 5)];
        assert_eq!(encoder.encode(0, &large).1, 1);
        assert!(Encoder::is_large(&large[1].1));
        assert_eq!(encoder.encode(0, &large[1..]).1, 0);
    }
}
