//! Log segments: many records in one value.
//!
//! Key: `l`, log id, base offset u64. Value: format 1, count varint, first time u64 (µs), time of the last
//! record after the first varint, epoch varint, bytes of the log before this segment varint, then the
//! records, then CRC-32 (u32) of all before it.
//!
//! A record: the head of a message (times relative to the first), key (tag byte: none, the topic, or bytes),
//! payload tag byte: inline with its length, or in blob chunks with its length.

use bytes::Bytes;
use weir_env::clock::Timestamp;
use weir_topic::TopicName;

use super::owner::Epoch;
use super::{DecodeError, LogId, Reader, Writer, tag};
use crate::message::Message;

const FORMAT: u8 = 1;

/// Bytes a segment is filled up to.
pub const SEGMENT_BYTES_TARGET: usize = 64 * 1024;
/// Payloads longer than this are stored in blob chunks.
pub const INLINE_PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes of one record in a segment: what a value of the store holds, less the segment's header.
pub const RECORD_BYTES_MAX: usize = weir_storage::limits::VALUE_BYTES_MAX - 100;

/// What orders and shards a message within its queue or stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RecordKey {
    /// No key.
    #[default]
    None,
    /// The message's topic.
    Topic,
    /// Other bytes, UTF-8 by construction of key expressions.
    Bytes(Bytes),
}

/// One message in a log.
#[derive(Clone, Debug)]
pub struct Record {
    /// The message. While `blob_len` is set its payload is still in the blob.
    pub message: Message,
    /// Its key.
    pub key: RecordKey,
    /// Length of a payload that is stored in blob chunks.
    pub blob_len: Option<u32>,
    /// Of the publish, so that deliveries show up under it; none once the record was read from the store.
    pub span: tracing::Span,
}

/// Equal if what is stored is: the span is of one process.
impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        (&self.message, &self.key, self.blob_len) == (&other.message, &other.key, other.blob_len)
    }
}

impl Eq for Record {}

/// Header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Offset of the first record.
    pub base: u64,
    /// Number of records, at least one.
    pub count: u32,
    /// Time of the first record.
    pub first_ts: Timestamp,
    /// Time of the last record, not before the first.
    pub last_ts: Timestamp,
    /// Of the owner that wrote it.
    pub epoch: Epoch,
    /// Bytes of all segments of the log before this one.
    pub log_bytes_before: u64,
}

/// The key of the segment of `log` that begins at `base`.
#[must_use]
pub fn key(log: &LogId, base: u64) -> Vec<u8> {
    log.key(tag::SEGMENT).u64(base).finish()
}

/// The base offset in a segment key.
///
/// # Errors
/// If the key is none.
pub fn base_of_key(key: &Bytes) -> Result<u64, DecodeError> {
    let mut reader = Reader::new(key.clone());
    reader.take(LogId::KEY_BYTES, "segment key")?;
    reader.u64("segment base")
}

/// Gathers records into a segment value.
#[derive(Debug)]
pub struct SegmentBuilder {
    first_ts: Timestamp,
    last_ts: Timestamp,
    count: u32,
    records: Writer,
}

impl SegmentBuilder {
    /// A segment whose first record has time `first_ts`.
    #[must_use]
    pub fn new(first_ts: Timestamp) -> Self {
        Self { first_ts, last_ts: first_ts, count: 0, records: Writer::default() }
    }

    /// Whether a record of about `len` bytes still fits under the target.
    #[must_use]
    pub fn has_room(&self, len: usize) -> bool {
        self.count == 0 || self.records.len() + len <= SEGMENT_BYTES_TARGET
    }

    /// Appends `record`, whose time must not be before the previous one's.
    pub fn push(&mut self, record: &Record) {
        self.records = record.encode(std::mem::take(&mut self.records), self.first_ts);
        self.last_ts = record.message.published_at.max(self.last_ts);
        self.count += 1;
    }

    /// Time of the first record.
    #[must_use]
    pub fn first_ts(&self) -> Timestamp {
        self.first_ts
    }

    /// Records so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The segment's value.
    #[must_use]
    pub fn finish(self, epoch: Epoch, log_bytes_before: u64) -> Vec<u8> {
        let mut value = Writer::new(FORMAT)
            .varint(u64::from(self.count))
            .u64(self.first_ts.as_micros())
            .varint(self.last_ts.as_micros() - self.first_ts.as_micros())
            .varint(epoch.0)
            .varint(log_bytes_before)
            .raw(&self.records.finish())
            .finish();
        let crc = crc32fast::hash(&value);
        value.extend_from_slice(&crc.to_be_bytes());
        value
    }
}

/// A segment that is being read, record by record.
#[derive(Clone, Debug)]
pub struct SegmentReader {
    header: SegmentHeader,
    next: u64,
    records: Reader,
    /// Topic of the record before.
    topic: Option<TopicName>,
}

impl SegmentReader {
    /// Opens the segment stored at base offset `base`, checking its checksum.
    ///
    /// # Errors
    /// If the value is damaged or of a newer format.
    pub fn open(base: u64, value: Bytes) -> Result<Self, DecodeError> {
        let body = value.len().checked_sub(4).ok_or(DecodeError::Truncated("segment"))?;
        let crc = Reader::new(value.slice(body..)).u32("segment checksum")?;
        let value = value.slice(..body);
        if crc32fast::hash(&value) != crc {
            return Err(DecodeError::Invalid("segment checksum"));
        }
        let (mut records, _) = Reader::value(value, "segment", FORMAT)?;
        let count = u32::try_from(records.varint("segment count")?)
            .map_err(|_| DecodeError::Invalid("segment count"))?;
        let first = records.u64("segment time")?;
        let last = first.saturating_add(records.varint("segment last time")?);
        let epoch = Epoch(records.varint("segment epoch")?);
        let log_bytes_before = records.varint("segment position")?;
        let header = SegmentHeader {
            base,
            count,
            first_ts: Timestamp::from_micros(first),
            last_ts: Timestamp::from_micros(last),
            epoch,
            log_bytes_before,
        };
        Ok(Self { header, next: base, records, topic: None })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// The offset after the last record.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.header.base.saturating_add(u64::from(self.header.count))
    }

    /// The next record and its offset; `None` at the end.
    ///
    /// # Errors
    /// If the record is damaged.
    pub fn next_record(&mut self) -> Result<Option<(u64, Record)>, DecodeError> {
        if self.next >= self.end() {
            return Ok(None);
        }
        let record = Record::decode_after(&mut self.records, self.header.first_ts, self.topic.as_ref())?;
        if self.topic.as_ref() != Some(&record.message.topic) {
            self.topic = Some(record.message.topic.clone());
        }
        let offset = self.next;
        self.next += 1;
        Ok(Some((offset, record)))
    }
}

impl Record {
    /// Appends it, with times relative to `base`; of a payload in a blob only the length.
    #[must_use]
    pub fn encode(&self, out: Writer, base: Timestamp) -> Writer {
        let out = self.message.encode_head(out, base);
        let out = match &self.key {
            RecordKey::None => out.u8(0),
            RecordKey::Topic => out.u8(1),
            RecordKey::Bytes(key) => out.u8(2).bytes(key),
        };
        match self.blob_len {
            None => out.u8(0).bytes(&self.message.payload),
            Some(len) => out.u8(1).varint(u64::from(len)),
        }
    }

    /// Takes what [`Record::encode`] wrote.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn decode(reader: &mut Reader, base: Timestamp) -> Result<Self, DecodeError> {
        Self::decode_after(reader, base, None)
    }

    /// The same after a record with the topic `last`.
    fn decode_after(
        reader: &mut Reader,
        base: Timestamp,
        last: Option<&TopicName>,
    ) -> Result<Self, DecodeError> {
        let mut message = Message::decode_head_after(reader, base, last)?;
        let key = match reader.u8("record key")? {
            0 => RecordKey::None,
            1 => RecordKey::Topic,
            2 => RecordKey::Bytes(reader.bytes("record key")?),
            _ => return Err(DecodeError::Invalid("record key")),
        };
        let blob_len = match reader.u8("record payload")? {
            0 => {
                message.payload = reader.bytes("record payload")?;
                None
            }
            1 => {
                let len = reader.varint("record payload")?;
                Some(u32::try_from(len).map_err(|_| DecodeError::Invalid("record payload"))?)
            }
            _ => return Err(DecodeError::Invalid("record payload")),
        };
        Ok(Self { message, key, blob_len, span: tracing::Span::none() })
    }

    /// Bytes it takes in a segment, nearly.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let properties = &self.message.properties;
        let user: usize = properties.user.iter().map(|(name, value)| name.len() + value.len() + 7).sum();
        let fixed = properties.content_type.as_ref().map_or(0, |s| s.len() + 4)
            + properties.response_topic.as_ref().map_or(0, |s| s.as_str().len() + 4)
            + properties.correlation_data.as_ref().map_or(0, |s| s.len() + 4);
        let key = match &self.key {
            RecordKey::None | RecordKey::Topic => 0,
            RecordKey::Bytes(key) => key.len() + 3,
        };
        let payload = if self.blob_len.is_some() { 5 } else { self.message.payload.len() };
        self.message.topic.as_str().len() + payload + user + fixed + key + 32
    }

    /// Whether its payload has to be stored apart.
    #[must_use]
    pub fn needs_blob(&self) -> bool {
        self.message.payload.len() > INLINE_PAYLOAD_BYTES_MAX || self.encoded_len() > RECORD_BYTES_MAX
    }

    /// Whether a segment holds it, if need be with its payload stored apart.
    ///
    /// # Errors
    /// The size of topic, properties and key, which cannot be stored apart.
    pub fn check_size(&self) -> Result<(), usize> {
        let payload = if self.blob_len.is_some() { 0 } else { self.message.payload.len() };
        let head = self.encoded_len() - payload;
        if head > RECORD_BYTES_MAX { Err(head) } else { Ok(()) }
    }

    /// Bytes it counts as against the limits of its queue or stream.
    #[must_use]
    pub fn cost(&self) -> u64 {
        self.encoded_len() as u64 + u64::from(self.blob_len.unwrap_or(0))
    }

    /// The key as text.
    #[must_use]
    pub fn key_bytes(&self) -> Option<&[u8]> {
        match &self.key {
            RecordKey::None => None,
            RecordKey::Topic => Some(self.message.topic.as_str().as_bytes()),
            RecordKey::Bytes(key) => Some(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::VirtualShard;
    use crate::message::tests::full_message;

    const LOG: LogId = LogId { vs: VirtualShard(1), object: 2, shard: 3, class: 0 };

    fn records() -> Vec<Record> {
        let plain = Message { properties: crate::message::Properties::default(), ..full_message() };
        vec![
            Record {
                message: full_message(),
                key: RecordKey::None,
                blob_len: None,
                span: tracing::Span::none(),
            },
            Record {
                message: plain.clone(),
                key: RecordKey::Topic,
                blob_len: None,
                span: tracing::Span::none(),
            },
            Record {
                message: plain,
                key: RecordKey::Bytes(Bytes::from_static(b"k")),
                blob_len: None,
                span: tracing::Span::none(),
            },
        ]
    }

    fn build(records: &[Record]) -> Vec<u8> {
        let mut builder = SegmentBuilder::new(records[0].message.published_at);
        records.iter().for_each(|record| builder.push(record));
        builder.finish(Epoch(4), 1000)
    }

    #[test]
    fn records_come_back_with_dense_offsets() {
        let records = records();
        let mut reader = SegmentReader::open(10, build(&records).into()).unwrap();
        assert_eq!((reader.header().count, reader.header().epoch, reader.end()), (3, Epoch(4), 13));
        assert_eq!(reader.header().log_bytes_before, 1000);
        for (n, record) in records.into_iter().enumerate() {
            assert_eq!(reader.next_record().unwrap(), Some((10 + n as u64, record)));
        }
        assert_eq!(reader.next_record().unwrap(), None);
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let value = build(&records());
        for at in 0..value.len() {
            let mut damaged = value.clone();
            damaged[at] ^= 0x10;
            assert!(SegmentReader::open(10, damaged.into()).is_err(), "byte {at}");
        }
    }

    #[test]
    fn golden() {
        assert_eq!(key(&LOG, 5), b"l\0\x01\0\0\0\x02\x03\0\0\0\0\0\0\0\0\x05");
        assert_eq!(base_of_key(&key(&LOG, 5).into()), Ok(5));
        let message = Message {
            topic: TopicName::parse("t").unwrap(),
            payload: Bytes::from_static(b"p"),
            qos: 1,
            retain: false,
            published_at: Timestamp::from_micros(0x0102),
            dead_letter: None,
            expires_at: None,
            properties: crate::message::Properties::default(),
        };
        let value =
            build(&[Record { message, key: RecordKey::Topic, blob_len: None, span: tracing::Span::none() }]);
        let body = b"\x01\x01\0\0\0\0\0\0\x01\x02\0\x04\xe8\x07\x01\0\x01t\x01\0\x01p";
        assert_eq!(&value[..value.len() - 4], body);
    }

    #[test]
    fn a_record_costs_less_than_48_bytes_over_its_content() {
        let message =
            Message { properties: crate::message::Properties::default(), expires_at: None, ..full_message() };
        let content = message.topic.as_str().len() + message.payload.len();
        let record = Record { message, key: RecordKey::Topic, blob_len: None, span: tracing::Span::none() };
        let value = build(&vec![record; 64]);
        assert!(value.len() / 64 < content + 48, "{} bytes each", value.len() / 64);
    }
}
