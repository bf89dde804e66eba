//! Payloads of log records that are too large for a segment, in chunks.
//!
//! Key: `b`, log id, offset u64, chunk u16. Value: the bytes, at most 90,000. Cleared with the range of the
//! log's segments.

use super::{LogId, tag};

/// Bytes of a chunk.
pub const CHUNK_BYTES_MAX: usize = weir_storage::limits::VALUE_BYTES_MAX;

/// The key of chunk `chunk` of the payload at `offset`.
#[must_use]
pub fn key(log: &LogId, offset: u64, chunk: u16) -> Vec<u8> {
    log.key(tag::LOG_BLOB).u64(offset).u16(chunk).finish()
}

/// The keys of all chunks of payloads at offsets from `from` (inclusive) to `to` (exclusive).
#[must_use]
pub fn range(log: &LogId, from: u64, to: u64) -> (Vec<u8>, Vec<u8>) {
    (log.key(tag::LOG_BLOB).u64(from).finish(), log.key(tag::LOG_BLOB).u64(to).finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::VirtualShard;

    #[test]
    fn golden() {
        let log = LogId { vs: VirtualShard(1), object: 2, shard: 3, class: 0 };
        assert_eq!(key(&log, 5, 6), b"b\0\x01\0\0\0\x02\x03\0\0\0\0\0\0\0\0\x05\0\x06");
        let (begin, end) = range(&log, 5, 6);
        assert!(begin < key(&log, 5, 0) && key(&log, 5, u16::MAX) < end);
    }
}
