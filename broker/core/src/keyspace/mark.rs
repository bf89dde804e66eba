//! Marks of idempotent publishes: where a publish that may be repeated has been appended.
//!
//! Key: `u`, log id, publish id (16). Value: format 1, offset u64, time u64 (µs), by which sweeps judge its age.

use bytes::Bytes;
use weir_env::clock::Timestamp;

use super::{DecodeError, LogId, Reader, Writer, tag};

const FORMAT: u8 = 1;

/// Identifies one publish, however often it is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishId(pub [u8; 16]);

/// Where a publish was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its offset in the log.
    pub offset: u64,
    /// When.
    pub at: Timestamp,
}

impl Mark {
    /// The key of publish `id` in `log`.
    #[must_use]
    pub fn key(log: &LogId, id: &PublishId) -> Vec<u8> {
        log.key(tag::MARK).raw(&id.0).finish()
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(FORMAT).u64(self.offset).u64(self.at.as_micros()).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "publish mark", FORMAT)?;
        Ok(Self { offset: reader.u64("offset")?, at: Timestamp::from_micros(reader.u64("time")?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::VirtualShard;

    #[test]
    fn golden() {
        let log = LogId { vs: VirtualShard(1), object: 2, shard: 3 };
        let mut expected = b"u\0\x01\0\0\0\x02\x03".to_vec();
        expected.extend([8; 16]);
        assert_eq!(Mark::key(&log, &PublishId([8; 16])), expected);
        let mark = Mark { offset: 1, at: Timestamp::from_micros(2) };
        assert_eq!(mark.encode(), b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02");
        assert_eq!(Mark::decode(mark.encode().into()), Ok(mark));
    }
}
