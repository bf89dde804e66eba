//! Ids of messages that are stored once however often they are published.
//!
//! Key: `d`, log id of class 0, time u64 (µs), id of the batch (16), part u8. Value: format 1, ids (16 each): of the
//! messages that the batch took at that time. All ids before some time are one range.

use bytes::Bytes;
use weir_env::clock::Timestamp;

use super::{DecodeError, LogId, Reader, Writer, tag};

const FORMAT: u8 = 1;

/// Ids in one row.
pub const IDS_PER_ROW: usize = 5_000;

/// What a `queue-dedup-id` is remembered as: XXH3-128 of its text, seed 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DedupId(pub [u8; 16]);

impl DedupId {
    /// Of the text of the property.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(text.as_bytes()).to_be_bytes())
    }
}

/// The key of row `part` of the ids that `batch` took at `at`.
#[must_use]
pub fn key(log: &LogId, at: Timestamp, batch: &[u8; 16], part: u8) -> Vec<u8> {
    log.key(tag::DEDUP).u64(at.as_micros()).raw(batch).u8(part).finish()
}

/// The keys of all ids of `log` that were taken before `before`.
#[must_use]
pub fn range_before(log: &LogId, before: Timestamp) -> (Vec<u8>, Vec<u8>) {
    (log.key(tag::DEDUP).finish(), log.key(tag::DEDUP).u64(before.as_micros()).finish())
}

/// The time in a key.
///
/// # Errors
/// If the key is none.
pub fn time_of_key(key: &Bytes) -> Result<Timestamp, DecodeError> {
    let mut reader = Reader::new(key.clone());
    reader.take(LogId::KEY_BYTES, "dedup key")?;
    Ok(Timestamp::from_micros(reader.u64("dedup time")?))
}

/// The value of a row, of at most [`IDS_PER_ROW`] ids.
#[must_use]
pub fn encode(ids: &[DedupId]) -> Vec<u8> {
    ids.iter().fold(Writer::new(FORMAT), |out, id| out.raw(&id.0)).finish()
}

/// The ids in a row.
///
/// # Errors
/// If the value is none, or of a newer format.
pub fn decode(value: Bytes) -> Result<Vec<DedupId>, DecodeError> {
    let count = value.len().saturating_sub(1) / 16;
    let (mut reader, _) = Reader::value(value, "dedup ids", FORMAT)?;
    let mut ids = Vec::with_capacity(count);
    while reader.remaining() > 0 {
        ids.push(DedupId(reader.id("dedup id")?));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::VirtualShard;

    #[test]
    fn golden() {
        let log = LogId { vs: VirtualShard(1), object: 2, shard: 3, class: 0 };
        let at = Timestamp::from_micros(4);
        let mut expected = b"d\0\x01\0\0\0\x02\x03\0\0\0\0\0\0\0\0\x04".to_vec();
        expected.extend([5; 16]);
        expected.push(6);
        let bytes = key(&log, at, &[5; 16], 6);
        assert_eq!(bytes, expected);
        assert_eq!(time_of_key(&bytes.clone().into()), Ok(at));
        let (begin, end) = range_before(&log, Timestamp::from_micros(5));
        assert!((begin..end).contains(&bytes));
        let (begin, end) = range_before(&log, at);
        assert!(!(begin..end).contains(&bytes));

        let ids = [DedupId([1; 16]), DedupId([2; 16])];
        let value = encode(&ids);
        assert_eq!(value, [[1].as_slice(), &[1; 16], &[2; 16]].concat());
        assert_eq!(decode(value.clone().into()), Ok(ids.to_vec()));
        assert!(decode(Bytes::from(value).slice(..20)).is_err());
        // XXH3-128 of "a", seed 0.
        assert_eq!(u128::from_be_bytes(DedupId::of("a").0), 0xa96f_af70_5af1_6834_e6c6_32b6_1e96_4e1f);
    }
}
