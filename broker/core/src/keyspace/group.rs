//! Positions of consumer groups in streams.
//!
//! Key: `g`, log id, name of the group (rest). Value: format 1, offset u64, generation u64, time u64 (µs), client id of
//! the member (bytes; none: empty). A group has a row on every shard of its stream, or it is none.

use bytes::Bytes;
use bytestring::ByteString;
use weir_env::clock::Timestamp;

use super::{DecodeError, LogId, Reader, Writer, tag};

const FORMAT: u8 = 1;

/// How far a group has read one shard of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupPosition {
    /// Every message below is acknowledged.
    pub offset: u64,
    /// Of the last assignment of the shard to a member; who has an older one may not move the position.
    pub generation: u64,
    /// When this was written.
    pub committed_at: Timestamp,
    /// Client id of the member that has the shard; empty if none has.
    pub member: ByteString,
}

impl GroupPosition {
    /// The key of the position of `group` in `log`.
    #[must_use]
    pub fn key(log: &LogId, group: &str) -> Vec<u8> {
        log.key(tag::GROUP).raw(group.as_bytes()).finish()
    }

    /// The group in a key.
    ///
    /// # Errors
    /// If the key is none.
    pub fn group_of_key(key: &Bytes) -> Result<ByteString, DecodeError> {
        let mut reader = Reader::new(key.clone());
        reader.take(LogId::KEY_BYTES, "group key")?;
        ByteString::try_from(reader.rest()).map_err(|_| DecodeError::Invalid("group name"))
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(FORMAT)
            .u64(self.offset)
            .u64(self.generation)
            .u64(self.committed_at.as_micros())
            .bytes(self.member.as_bytes())
            .finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "group position", FORMAT)?;
        Ok(Self {
            offset: reader.u64("group offset")?,
            generation: reader.u64("group generation")?,
            committed_at: Timestamp::from_micros(reader.u64("group commit time")?),
            member: reader.string("group member")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::VirtualShard;

    #[test]
    fn golden() {
        let log = LogId { vs: VirtualShard(1), object: 2, shard: 3, class: 0 };
        let key = GroupPosition::key(&log, "workers");
        assert_eq!(key, b"g\0\x01\0\0\0\x02\x03\0workers");
        assert_eq!(GroupPosition::group_of_key(&key.clone().into()).unwrap(), "workers");
        let (begin, end) = log.range(tag::GROUP);
        assert!((begin..end).contains(&key));
        let position = GroupPosition {
            offset: 4,
            generation: 5,
            committed_at: Timestamp::from_micros(6),
            member: "c1".into(),
        };
        let value = position.encode();
        let expected = b"\x01\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x06\x02c1";
        assert_eq!(value, expected);
        assert_eq!(GroupPosition::decode(value.clone().into()), Ok(position));
        assert!(GroupPosition::decode(Bytes::from(value).slice(..20)).is_err());
        assert!(GroupPosition::group_of_key(&Bytes::from_static(b"g\0\x01\0\0\0\x02\x03\0\xff")).is_err());
    }
}
