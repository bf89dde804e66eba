//! The time index of a log: one entry per segment.
//!
//! Key: `i`, log id, time of the segment's first record u64 (µs), base offset u64. Value: format 1, bytes of
//! the log before the segment varint, by which retention finds its cut without reading segments.

use bytes::Bytes;
use weir_env::clock::Timestamp;

use super::{DecodeError, LogId, Reader, Writer, tag};

const FORMAT: u8 = 1;

/// One segment as the time index knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Time of its first record.
    pub first_ts: Timestamp,
    /// Offset of its first record.
    pub base: u64,
    /// Bytes of the log before it.
    pub log_bytes_before: u64,
}

/// The key of the segment at `base` whose first record has time `first_ts`.
#[must_use]
pub fn key(log: &LogId, first_ts: Timestamp, base: u64) -> Vec<u8> {
    log.key(tag::TIME_INDEX).u64(first_ts.as_micros()).u64(base).finish()
}

impl IndexEntry {
    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(FORMAT).varint(self.log_bytes_before).finish()
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// If key or value are none, or of a newer format.
    pub fn decode(key: &Bytes, value: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(key.clone());
        reader.take(LogId::KEY_BYTES, "time index key")?;
        let first_ts = Timestamp::from_micros(reader.u64("time")?);
        let base = reader.u64("base")?;
        let log_bytes_before = Reader::value(value, "time index", FORMAT)?.0.varint("position")?;
        Ok(Self { first_ts, base, log_bytes_before })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::VirtualShard;

    #[test]
    fn golden() {
        let log = LogId { vs: VirtualShard(1), object: 2, shard: 3, class: 0 };
        let bytes = key(&log, Timestamp::from_micros(9), 5);
        assert_eq!(bytes, b"i\0\x01\0\0\0\x02\x03\0\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x05");
        let entry = IndexEntry { first_ts: Timestamp::from_micros(9), base: 5, log_bytes_before: 300 };
        assert_eq!(entry.encode(), b"\x01\xac\x02");
        assert_eq!(IndexEntry::decode(&bytes.into(), entry.encode().into()), Ok(entry));
    }
}
