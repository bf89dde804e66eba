//! Rows of a compacted stream: one for each message that it has.
//!
//! Row: key `K`, log id, offset u64. Value: format 1, the record as in a segment, with times since the Unix epoch.
//!
//! Newest row of a key: key `k`, log id, `k`, hash of the key u64, key rest. Value: format 1, offset varint, bytes of
//! the row varint, flags u8 (1 its payload is in a blob, 2 it is a tombstone).
//!
//! Tombstone: key `k`, log id, `t`, offset u64. Value: format 1, time u64, bytes of the row varint, key rest. So those
//! that have been there long enough are found in the order in which they came, without reading anything else.

use bytes::Bytes;
use weir_env::clock::Timestamp;

use super::segment::Record;
use super::{DecodeError, LogId, Reader, Writer, placement_hash, tag};

const FORMAT: u8 = 1;
/// What follows the log id in the key of a newest row.
const NEWEST: u8 = b'k';
/// The same of a tombstone.
const TOMBSTONE: u8 = b't';

/// The key of the row at `offset`.
#[must_use]
pub fn key(log: &LogId, offset: u64) -> Vec<u8> {
    log.key(tag::ROW).u64(offset).finish()
}

/// The keys of the rows of `log` from offset `from` on.
#[must_use]
pub fn range_from(log: &LogId, from: u64) -> (Vec<u8>, Vec<u8>) {
    let (_, end) = log.range(tag::ROW);
    (key(log, from), end)
}

/// The offset in the key of a row.
///
/// # Errors
/// If the key is none.
pub fn offset_of_key(key: &Bytes) -> Result<u64, DecodeError> {
    let mut reader = Reader::new(key.clone());
    reader.take(LogId::KEY_BYTES, "row key")?;
    reader.u64("row offset")
}

/// The value of a row.
#[must_use]
pub fn encode(record: &Record) -> Vec<u8> {
    record.encode(Writer::new(FORMAT), Timestamp::default()).finish()
}

/// Reads the value of a row.
///
/// # Errors
/// If it is not one, or of a newer format.
pub fn decode(value: Bytes) -> Result<Record, DecodeError> {
    let (mut reader, _) = Reader::value(value, "row", FORMAT)?;
    Record::decode(&mut reader, Timestamp::default())
}

/// Bytes that `record` counts as, whose row has a value of `value_bytes`: those, and the payload in its blob.
#[must_use]
pub fn row_bytes(record: &Record, value_bytes: usize) -> u64 {
    value_bytes as u64 + u64::from(record.blob_len.unwrap_or(0))
}

/// Whether `record` says that there is nothing any more under its key.
#[must_use]
pub fn is_tombstone(record: &Record) -> bool {
    record.message.payload.is_empty() && record.blob_len.is_none() && record.key_bytes().is_some()
}

/// The newest row of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    /// Where it is.
    pub offset: u64,
    /// What it counts as.
    pub bytes: u64,
    /// Its payload is in a blob.
    pub has_blob: bool,
    /// It is a tombstone, which has an entry of its own.
    pub is_tombstone: bool,
}

impl Newest {
    /// The key of what is known of `key`.
    #[must_use]
    pub fn key(log: &LogId, key: &[u8]) -> Vec<u8> {
        log.key(tag::LAST_VALUE).u8(NEWEST).u64(placement_hash(key)).raw(key).finish()
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let flags = u8::from(self.has_blob) | u8::from(self.is_tombstone) << 1;
        Writer::new(FORMAT).varint(self.offset).varint(self.bytes).u8(flags).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "newest row", FORMAT)?;
        let (offset, bytes) = (reader.varint("offset")?, reader.varint("bytes")?);
        let flags = reader.u8("flags")?;
        Ok(Self { offset, bytes, has_blob: flags & 1 != 0, is_tombstone: flags & 2 != 0 })
    }
}

/// A tombstone, in the order of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// When it came.
    pub at: Timestamp,
    /// What its row counts as.
    pub bytes: u64,
    /// What there is nothing of.
    pub key: Bytes,
}

impl Tombstone {
    /// The key of the tombstone whose row is at `offset`.
    #[must_use]
    pub fn key(log: &LogId, offset: u64) -> Vec<u8> {
        log.key(tag::LAST_VALUE).u8(TOMBSTONE).u64(offset).finish()
    }

    /// The keys of all tombstones of `log`.
    #[must_use]
    pub fn range(log: &LogId) -> (Vec<u8>, Vec<u8>) {
        let begin = log.key(tag::LAST_VALUE).u8(TOMBSTONE).finish();
        let end = weir_storage::prefix_end(&begin);
        (begin, end)
    }

    /// The offset in a key.
    ///
    /// # Errors
    /// If the key is none.
    pub fn offset_of_key(key: &Bytes) -> Result<u64, DecodeError> {
        let mut reader = Reader::new(key.clone());
        reader.take(LogId::KEY_BYTES + 1, "tombstone key")?;
        reader.u64("tombstone offset")
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(FORMAT).u64(self.at.as_micros()).varint(self.bytes).raw(&self.key).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "tombstone", FORMAT)?;
        let at = Timestamp::from_micros(reader.u64("time")?);
        let bytes = reader.varint("bytes")?;
        Ok(Self { at, bytes, key: reader.rest() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keyspace::VirtualShard;
    use crate::keyspace::segment::RecordKey;
    use crate::message::tests::full_message;
    use crate::message::{Message, Properties};

    const LOG: LogId = LogId { vs: VirtualShard(1), object: 2, shard: 3, class: 0 };

    fn record(payload: &'static [u8], key: RecordKey) -> Record {
        let message = Message {
            topic: weir_topic::TopicName::parse("t").unwrap(),
            payload: Bytes::from_static(payload),
            qos: 1,
            published_at: Timestamp::from_micros(300),
            expires_at: None,
            properties: Properties::default(),
            dead_letter: None,
            ..full_message()
        };
        Record {
            message: Message { retain: false, ..message },
            key,
            blob_len: None,
            span: tracing::Span::none(),
        }
    }

    #[test]
    fn golden_rows() {
        let at = key(&LOG, 5);
        assert_eq!(at, b"K\0\x01\0\0\0\x02\x03\0\0\0\0\0\0\0\0\x05");
        assert_eq!(offset_of_key(&at.clone().into()), Ok(5));
        assert!(offset_of_key(&Bytes::from(at.clone()).slice(..12)).is_err());
        let (begin, end) = range_from(&LOG, 5);
        assert!(begin == at && key(&LOG, u64::MAX) < end && end < key(&LogId { shard: 4, ..LOG }, 0));
        let record = record(b"p", RecordKey::Topic);
        let value = encode(&record);
        assert_eq!(value, b"\x01\x01\xac\x02\x01t\x01\0\x01p");
        assert_eq!(row_bytes(&record, value.len()), 10);
        assert_eq!(row_bytes(&Record { blob_len: Some(70_000), ..record.clone() }, 10), 70_010);
        assert_eq!(decode(value.into()), Ok(record));
        let newer = decode(Bytes::from_static(b"\x02\x01"));
        assert_eq!(newer, Err(DecodeError::Format { what: "row", found: 2, known: 1 }));
    }

    #[test]
    fn golden_newest() {
        let at = Newest::key(&LOG, b"ab");
        let hash = placement_hash(b"ab").to_be_bytes();
        assert_eq!(at, [b"k\0\x01\0\0\0\x02\x03\0k".as_slice(), &hash, b"ab"].concat());
        let newest = Newest { offset: 300, bytes: 7, has_blob: true, is_tombstone: false };
        assert_eq!(newest.encode(), b"\x01\xac\x02\x07\x01");
        assert_eq!(Newest::decode(newest.encode().into()), Ok(newest));
        let tombstone = Newest { has_blob: false, is_tombstone: true, ..newest };
        assert_eq!(tombstone.encode(), b"\x01\xac\x02\x07\x02");
        assert_eq!(Newest::decode(tombstone.encode().into()), Ok(tombstone));
    }

    #[test]
    fn golden_tombstones() {
        let at = Tombstone::key(&LOG, 5);
        assert_eq!(at, b"k\0\x01\0\0\0\x02\x03\0t\0\0\0\0\0\0\0\x05");
        assert_eq!(Tombstone::offset_of_key(&at.clone().into()), Ok(5));
        let (begin, end) = Tombstone::range(&LOG);
        assert!(begin < at && Tombstone::key(&LOG, u64::MAX) < end);
        assert!(!(begin..end).contains(&Newest::key(&LOG, b"x")));
        let tombstone =
            Tombstone { at: Timestamp::from_micros(9), bytes: 300, key: Bytes::from_static(b"ab") };
        assert_eq!(tombstone.encode(), b"\x01\0\0\0\0\0\0\0\x09\xac\x02ab");
        assert_eq!(Tombstone::decode(tombstone.encode().into()), Ok(tombstone));
    }

    #[test]
    fn an_empty_payload_under_a_key_is_a_tombstone() {
        assert!(is_tombstone(&record(b"", RecordKey::Topic)));
        assert!(is_tombstone(&record(b"", RecordKey::Bytes(Bytes::new()))));
        assert!(!is_tombstone(&record(b"", RecordKey::None)));
        assert!(!is_tombstone(&record(b"p", RecordKey::Topic)));
        assert!(!is_tombstone(&Record { blob_len: Some(1), ..record(b"", RecordKey::Topic) }));
    }

    #[test]
    fn the_longest_key_fits() {
        let key = vec![b'x'; crate::key::KEY_BYTES_MAX];
        assert!(Newest::key(&LOG, &key).len() < weir_storage::limits::KEY_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(offset: u64, bytes: u64, blob: bool, key: Vec<u8>, at in 0..u64::MAX) {
            let newest = Newest { offset, bytes, has_blob: blob, is_tombstone: !blob };
            prop_assert_eq!(Newest::decode(newest.encode().into()), Ok(newest));
            let tombstone = Tombstone { at: Timestamp::from_micros(at), bytes, key: key.into() };
            prop_assert_eq!(Tombstone::decode(tombstone.encode().into()), Ok(tombstone));
        }

        #[test]
        fn no_bytes_are_too_odd(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            let _ = (decode(bytes.clone()), Newest::decode(bytes.clone()), Tombstone::decode(bytes.clone()));
            let _ = (offset_of_key(&bytes), Tombstone::offset_of_key(&bytes));
        }
    }
}
