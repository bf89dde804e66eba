//! Messages of a queue that were moved out of the log, so that it can be cut although they are not done.
//!
//! Key: `q`, log id, `m`, offset u64. Value: format 1, the record as in a segment, with times since the Unix epoch. A
//! payload in a blob stays where it is. What else is known of the message is in its attempts.

use bytes::Bytes;
use weir_env::clock::Timestamp;

use super::segment::Record;
use super::{DecodeError, LogId, Reader, Writer, tag};

const FORMAT: u8 = 1;
/// What follows the log id in a key.
pub(super) const MOVED: u8 = b'm';

/// The key of the message at `offset` of `log`.
#[must_use]
pub fn key(log: &LogId, offset: u64) -> Vec<u8> {
    log.key(tag::QUEUE).u8(MOVED).u64(offset).finish()
}

/// The keys of the messages of `log` from offset `from` on.
#[must_use]
pub fn range_from(log: &LogId, from: u64) -> (Vec<u8>, Vec<u8>) {
    let all = log.key(tag::QUEUE).u8(MOVED).finish();
    (key(log, from), weir_storage::prefix_end(&all))
}

/// The offset in a key.
///
/// # Errors
/// If the key is none.
pub fn offset_of_key(key: &Bytes) -> Result<u64, DecodeError> {
    let mut reader = Reader::new(key.clone());
    reader.take(LogId::KEY_BYTES + 1, "aside key")?;
    reader.u64("aside offset")
}

/// The value.
#[must_use]
pub fn encode(record: &Record) -> Vec<u8> {
    record.encode(Writer::new(FORMAT), Timestamp::default()).finish()
}

/// Reads a value.
///
/// # Errors
/// If it is not one, or of a newer format.
pub fn decode(value: Bytes) -> Result<Record, DecodeError> {
    let (mut reader, _) = Reader::value(value, "message aside", FORMAT)?;
    Record::decode(&mut reader, Timestamp::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::VirtualShard;
    use crate::keyspace::segment::{RECORD_BYTES_MAX, RecordKey};
    use crate::message::tests::full_message;
    use crate::message::{Message, Properties};

    const LOG: LogId = LogId { vs: VirtualShard(1), object: 2, shard: 3, class: 0 };

    #[test]
    fn golden() {
        let at = key(&LOG, 5);
        assert_eq!(at, b"q\0\x01\0\0\0\x02\x03\0m\0\0\0\0\0\0\0\x05");
        assert_eq!(offset_of_key(&at.clone().into()), Ok(5));
        let (begin, end) = range_from(&LOG, 5);
        assert!(begin == at && key(&LOG, u64::MAX) < end);
        let message = Message {
            topic: weir_topic::TopicName::parse("t").unwrap(),
            payload: Bytes::from_static(b"p"),
            qos: 1,
            retain: false,
            published_at: Timestamp::from_micros(300),
            expires_at: None,
            properties: Properties::default(),
            dead_letter: None,
        };
        let record = Record { message, key: RecordKey::Topic, blob_len: None, span: tracing::Span::none() };
        let value = encode(&record);
        assert_eq!(value, b"\x01\x01\xac\x02\x01t\x01\0\x01p");
        assert_eq!(decode(value.into()), Ok(record));
    }

    #[test]
    fn what_a_segment_holds_fits_in_a_row() {
        let mut record = Record {
            message: full_message(),
            key: RecordKey::Topic,
            blob_len: None,
            span: tracing::Span::none(),
        };
        let room = RECORD_BYTES_MAX - record.encoded_len();
        record.message.properties.user.push(("k".into(), "v".repeat(room - 8).into()));
        assert!(record.check_size().is_ok());
        let value = encode(&record);
        assert!((RECORD_BYTES_MAX - 100..weir_storage::limits::VALUE_BYTES_MAX).contains(&value.len()));
        assert_eq!(decode(value.into()), Ok(record));
    }
}
