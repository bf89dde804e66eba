//! Marks of idempotent publishes: where a publish that may be repeated has been appended.
//!
//! Key: `u`, log id, publish id (16). Value: format 1, offset u64, time u64 (µs). A publish id begins with the
//! time it was made (6 bytes, milliseconds), so that all marks of a log before some time are one range. That of a
//! client's publish ends with a digest of its content (4 bytes). That of a
//! dead letter is 0xff, the object u32, shard u8, class u8 and offset u64 it comes from, 0: the same however often it
//! is sent; its mark is swept by the time in its value.

use bytes::Bytes;
use weir_env::clock::Timestamp;
use xxhash_rust::xxh3::Xxh3;

use super::{DecodeError, LogId, Reader, Writer, tag};

const FORMAT: u8 = 1;
const DEAD_LETTER: u8 = 0xff;
/// Where the digest of the content begins in an id.
const DIGEST_AT: usize = 12;

/// Identifies one publish, however often it is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishId(pub [u8; 16]);

impl PublishId {
    /// An id made at `at`, of which all but the time is `random`.
    #[must_use]
    pub fn new(at: Timestamp, random: [u8; 16]) -> Self {
        let mut id = random;
        let millis = (at.as_micros() / 1000).to_be_bytes();
        id[..6].copy_from_slice(&millis[2..]);
        Self(id)
    }

    /// The same for a publish with this content, which [`Self::is_of`] then knows again.
    #[must_use]
    pub fn with_content(mut self, topic: &str, payload: &[u8]) -> Self {
        self.0[DIGEST_AT..].copy_from_slice(&digest(topic, payload));
        self
    }

    /// Whether this may be the id of a publish with this content: always if it is, and of others by a rare chance.
    #[must_use]
    pub fn is_of(&self, topic: &str, payload: &[u8]) -> bool {
        self.0[DIGEST_AT..] == digest(topic, payload)
    }

    /// The id under which the message at `offset` of `log` leaves for the dead letters, whenever it does.
    #[must_use]
    pub fn of_dead_letter(log: &LogId, offset: u64) -> Self {
        let mut id = [0; 16];
        // No time begins with this byte for 6,000 years.
        id[0] = DEAD_LETTER;
        id[1..5].copy_from_slice(&log.object.to_be_bytes());
        id[5] = log.shard;
        id[6] = log.class;
        id[7..15].copy_from_slice(&offset.to_be_bytes());
        Self(id)
    }
}

fn digest(topic: &str, payload: &[u8]) -> [u8; 16 - DIGEST_AT] {
    let mut hasher = Xxh3::new();
    // No topic has a zero byte.
    hasher.update(topic.as_bytes());
    hasher.update(&[0]);
    hasher.update(payload);
    let [a, b, c, d, ..] = hasher.digest().to_be_bytes();
    [a, b, c, d]
}

/// Where a publish was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its offset in the log.
    pub offset: u64,
    /// When.
    pub at: Timestamp,
}

impl Mark {
    /// In place of the offset of a message that waits for its time.
    pub const DELAYED: u64 = u64::MAX;

    /// The key of publish `id` in `log`.
    #[must_use]
    pub fn key(log: &LogId, id: &PublishId) -> Vec<u8> {
        log.key(tag::MARK).raw(&id.0).finish()
    }

    /// The keys in `log` of all publishes whose ids were made before `before`.
    #[must_use]
    pub fn range_before(log: &LogId, before: Timestamp) -> (Vec<u8>, Vec<u8>) {
        let end = PublishId::new(before, [0; 16]);
        (log.key(tag::MARK).finish(), Self::key(log, &end))
    }

    /// The keys in `log` of all publishes that are dead letters of other logs.
    #[must_use]
    pub fn range_of_dead_letters(log: &LogId) -> (Vec<u8>, Vec<u8>) {
        let begin = log.key(tag::MARK).u8(DEAD_LETTER).finish();
        let (_, end) = log.range(tag::MARK);
        (begin, end)
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
        let log = LogId { vs: VirtualShard(1), object: 2, shard: 3, class: 0 };
        let mut expected = b"u\0\x01\0\0\0\x02\x03\0".to_vec();
        expected.extend([8; 16]);
        assert_eq!(Mark::key(&log, &PublishId([8; 16])), expected);
        let mark = Mark { offset: 1, at: Timestamp::from_micros(2) };
        assert_eq!(mark.encode(), b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02");
        assert_eq!(Mark::decode(mark.encode().into()), Ok(mark));
        let letter = PublishId::of_dead_letter(&LogId { class: 4, ..log }, 5);
        assert_eq!(&letter.0, b"\xff\0\0\0\x02\x03\x04\0\0\0\0\0\0\0\x05\0");
        let (begin, end) = Mark::range_of_dead_letters(&log);
        let key = Mark::key(&log, &letter);
        assert!(begin < key && key < end && expected < begin);
    }

    #[test]
    fn an_id_knows_its_content_again() {
        let id = PublishId::new(Timestamp::from_micros(1_000), [7; 16]).with_content("t", b"x");
        assert_eq!(&id.0, b"\0\0\0\0\0\x01\x07\x07\x07\x07\x07\x07\x3b\xd4\xaf\xe3");
        assert!(id.is_of("t", b"x"));
        for (topic, payload) in [("t", "y"), ("u", "x"), ("tx", ""), ("", "tx")] {
            assert!(!id.is_of(topic, payload.as_bytes()), "{topic} {payload}");
        }
    }

    #[test]
    fn ids_sort_by_the_time_they_were_made() {
        let log = LogId { vs: VirtualShard(1), object: 2, shard: 3, class: 0 };
        let at = |millis: u64| Timestamp::from_micros(millis * 1000);
        let (begin, end) = Mark::range_before(&log, at(1_700_000_000_000));
        let old = Mark::key(&log, &PublishId::new(at(1_699_999_999_999), [0xff; 16]));
        let new = Mark::key(&log, &PublishId::new(at(1_700_000_000_000), [0; 16]));
        assert!(begin < old && old < end && end <= new);
    }
}
