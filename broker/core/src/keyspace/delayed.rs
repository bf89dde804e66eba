//! Messages whose publisher wants them kept from consumers for a while.
//!
//! State: key `y`, log id of class 0. Value: format 1, messages varint, bytes varint, next sequence u64.
//!
//! Message: key `y`, log id of class 0, due u64 (µs), sequence u64, part u16. Part 0: format 1, class u8, parts varint,
//! then the beginning of: key (tag byte: none, the topic, or bytes) and an encoded message. The other parts go on with
//! it. Parts are written last to first, so that without part 0 there is no message.

use bytes::{Bytes, BytesMut};
use weir_env::clock::Timestamp;

use super::segment::{Record, RecordKey};
use super::{DecodeError, LogId, Reader, Writer, tag};
use crate::message::Message;

const FORMAT: u8 = 1;
/// Bytes of one part, its head included.
const PART_BYTES: usize = weir_storage::limits::VALUE_BYTES_MAX;
/// Bytes of the head of part 0, at most.
const HEAD_BYTES_MAX: usize = 16;

/// When a message is due, and which of those due then it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DelayedId {
    /// When.
    pub due: Timestamp,
    /// In the order of the publishes.
    pub seq: u64,
}

/// How much waits in one shard of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DelayedState {
    /// Messages.
    pub messages: u64,
    /// What they count against the limits of the queue.
    pub bytes: u64,
    /// Of the next message.
    pub next_seq: u64,
}

impl DelayedState {
    /// The key.
    #[must_use]
    pub fn key(log: &LogId) -> Vec<u8> {
        log.of_class(0).key(tag::DELAYED).finish()
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(FORMAT).varint(self.messages).varint(self.bytes).u64(self.next_seq).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "delayed state", FORMAT)?;
        Ok(Self {
            messages: reader.varint("delayed messages")?,
            bytes: reader.varint("delayed bytes")?,
            next_seq: reader.u64("delayed sequence")?,
        })
    }
}

impl DelayedId {
    fn part_key(self, log: &LogId, part: u16) -> Vec<u8> {
        let key = log.of_class(0).key(tag::DELAYED).u64(self.due.as_micros()).u64(self.seq);
        key.u16(part).finish()
    }

    /// The keys of all parts.
    #[must_use]
    pub fn range(self, log: &LogId) -> (Vec<u8>, Vec<u8>) {
        let begin = log.of_class(0).key(tag::DELAYED).u64(self.due.as_micros()).u64(self.seq).finish();
        let end = weir_storage::prefix_end(&begin);
        (begin, end)
    }

    /// Which message a key is of, and which part of it.
    ///
    /// # Errors
    /// If it is not the key of a part.
    pub fn decode_key(key: &Bytes) -> Result<(Self, u16), DecodeError> {
        let mut reader = Reader::new(key.clone());
        reader.take(LogId::KEY_BYTES, "delayed key")?;
        let due = Timestamp::from_micros(reader.u64("delayed due")?);
        let id = Self { due, seq: reader.u64("delayed sequence")? };
        Ok((id, reader.u16("delayed part")?))
    }
}

/// The keys of messages of `log` that are due before `end`; without one, of all.
#[must_use]
pub fn messages_before(log: &LogId, end: Option<Timestamp>) -> (Vec<u8>, Vec<u8>) {
    let log = log.of_class(0);
    let end = end.map(|end| log.key(tag::DELAYED).u64(end.as_micros()).finish());
    (log.key(tag::DELAYED).u64(0).finish(), end.unwrap_or_else(|| log.range(tag::DELAYED).1))
}

/// The rows of a message, part 0 first.
#[must_use]
pub fn rows(log: &LogId, id: DelayedId, class: u8, record: &Record) -> Vec<(Vec<u8>, Bytes)> {
    let out = match &record.key {
        RecordKey::None => Writer::new(0),
        RecordKey::Topic => Writer::new(1),
        RecordKey::Bytes(key) => Writer::new(2).bytes(key),
    };
    let body = Bytes::from(record.message.encode(out).finish());
    let first = body.len().min(PART_BYTES - HEAD_BYTES_MAX);
    let rest = body.slice(first..);
    let parts = 1 + rest.len().div_ceil(PART_BYTES);
    let head = Writer::new(FORMAT).u8(class).varint(parts as u64).raw(&body[..first]).finish();
    let mut rows = vec![(id.part_key(log, 0), head.into())];
    for (n, from) in (0..rest.len()).step_by(PART_BYTES).enumerate() {
        let part = rest.slice(from..rest.len().min(from + PART_BYTES));
        rows.push((id.part_key(log, u16::try_from(n + 1).unwrap_or(u16::MAX)), part));
    }
    rows
}

/// The class and the record in the values of a message's parts, in order. None: it was never stored as a whole.
///
/// # Errors
/// If they are not those of a message, or of a newer format.
pub fn decode(parts: &[(u16, Bytes)]) -> Result<Option<(u8, Record)>, DecodeError> {
    let Some((0, first)) = parts.first() else { return Ok(None) };
    let (mut reader, _) = Reader::value(first.clone(), "delayed message", FORMAT)?;
    let class = reader.u8("delayed class")?;
    let count = reader.varint("delayed parts")?;
    let mut body = BytesMut::from(&*reader.take(reader.remaining(), "delayed message")?);
    // A shorter message may have been written over a longer one that was never committed.
    for n in 1..count {
        let part = usize::try_from(n).ok().and_then(|n| parts.get(n));
        let (_, part) = part
            .filter(|(part, _)| u64::from(*part) == n)
            .ok_or(DecodeError::Truncated("delayed message"))?;
        body.extend_from_slice(part);
    }
    let mut reader = Reader::new(body.freeze());
    let key = match reader.u8("delayed key")? {
        0 => RecordKey::None,
        1 => RecordKey::Topic,
        2 => RecordKey::Bytes(reader.bytes("delayed key")?),
        _ => return Err(DecodeError::Invalid("delayed key")),
    };
    let message = Message::decode(&mut reader)?;
    Ok(Some((class, Record { message, key, blob_len: None, span: tracing::Span::none() })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::VirtualShard;
    use crate::message::tests::full_message;

    const LOG: LogId = LogId { vs: VirtualShard(1), object: 2, shard: 3, class: 0 };

    fn id() -> DelayedId {
        DelayedId { due: Timestamp::from_micros(4), seq: 5 }
    }

    #[test]
    fn golden() {
        assert_eq!(DelayedState::key(&LOG.of_class(7)), b"y\0\x01\0\0\0\x02\x03\0");
        let state = DelayedState { messages: 1, bytes: 300, next_seq: 2 };
        assert_eq!(state.encode(), b"\x01\x01\xac\x02\0\0\0\0\0\0\0\x02");
        assert_eq!(DelayedState::decode(state.encode().into()), Ok(state));

        let key = id().part_key(&LOG.of_class(7), 6);
        assert_eq!(key, b"y\0\x01\0\0\0\x02\x03\0\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x05\0\x06");
        assert_eq!(DelayedId::decode_key(&key.clone().into()), Ok((id(), 6)));
        let (begin, end) = id().range(&LOG);
        assert!((begin..end).contains(&key));
        for (due, is_in) in [(None, true), (Some(5), true), (Some(4), false)] {
            let (begin, end) = messages_before(&LOG, due.map(Timestamp::from_micros));
            assert_eq!((&begin..&end).contains(&&key), is_in, "{due:?}");
            assert!(!(begin..end).contains(&DelayedState::key(&LOG)));
        }
        let message = Message {
            topic: weir_topic::TopicName::parse("t").unwrap(),
            payload: Bytes::from_static(b"p"),
            qos: 1,
            retain: false,
            published_at: Timestamp::from_micros(3),
            expires_at: None,
            properties: crate::message::Properties::default(),
            ..full_message()
        };
        let record = Record { message, key: RecordKey::Topic, blob_len: None, span: tracing::Span::none() };
        let rows = rows(&LOG, id(), 8, &record);
        assert_eq!(rows.len(), 1);
        assert_eq!(&*rows[0].1, b"\x01\x08\x01\x01\x01\x03\x01t\x01p");
    }

    #[test]
    fn messages_of_any_size_come_back() {
        for len in [0, 1, 80_000, 90_000, 200_000, 1_000_000] {
            for key in [RecordKey::None, RecordKey::Topic, RecordKey::Bytes(Bytes::from_static(b"k"))] {
                let message = Message { payload: Bytes::from(vec![7; len]), ..full_message() };
                let record = Record { message, key, blob_len: None, span: tracing::Span::none() };
                let rows = rows(&LOG, id(), 3, &record);
                assert!(rows.iter().all(|(_, value)| value.len() <= weir_storage::limits::VALUE_BYTES_MAX));
                let parts: Vec<(u16, Bytes)> = rows
                    .into_iter()
                    .map(|(key, value)| (DelayedId::decode_key(&key.into()).unwrap().1, value))
                    .collect();
                assert_eq!(decode(&parts), Ok(Some((3, record))));
                assert_eq!(decode(&parts[1..]).unwrap(), None, "only once part 0 is there");
                if parts.len() > 1 {
                    assert!(decode(&parts[..parts.len() - 1]).is_err());
                }
            }
        }
    }
}
