//! The state of a log, rewritten with each batch.
//!
//! Key: `s`, log id. Value: format 1, next offset u64, start offset u64, time of the last record u64 (µs),
//! bytes ever appended u64, bytes of those that are gone u64, id of the last batch (16), epoch u64. Format 2, of a
//! compacted stream: then the number of records that are gone varint.

use bytes::Bytes;
use weir_env::clock::Timestamp;

use super::owner::Epoch;
use super::{DecodeError, LogId, Reader, Writer, tag};

const FORMAT: u8 = 1;
const COMPACTED_FORMAT: u8 = 2;

/// The state of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// Offset of the next record.
    pub next: u64,
    /// Offset of the first record that is kept.
    pub start: u64,
    /// Time of the last record; records never go back in time.
    pub last_ts: Timestamp,
    /// Bytes of all segments ever appended, and of payloads stored apart.
    pub bytes_appended: u64,
    /// Bytes of those that are gone.
    pub bytes_trimmed: u64,
    /// Identifies the batch that wrote this state.
    pub batch: [u8; 16],
    /// Of the owner that wrote this state.
    pub epoch: Epoch,
    /// Of a compacted stream: records ever appended that are gone, replaced or removed. Otherwise zero.
    pub removed: u64,
}

impl LogState {
    /// The key of `log`.
    #[must_use]
    pub fn key(log: &LogId) -> Vec<u8> {
        log.key(tag::LOG_STATE).finish()
    }

    /// Bytes that are kept.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes_appended.saturating_sub(self.bytes_trimmed)
    }

    /// Rows that a compacted stream has.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.next.saturating_sub(self.removed)
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let format = if self.removed == 0 { FORMAT } else { COMPACTED_FORMAT };
        let out = Writer::new(format)
            .u64(self.next)
            .u64(self.start)
            .u64(self.last_ts.as_micros())
            .u64(self.bytes_appended)
            .u64(self.bytes_trimmed)
            .raw(&self.batch)
            .u64(self.epoch.0);
        if self.removed == 0 { out.finish() } else { out.varint(self.removed).finish() }
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, format) = Reader::value(value, "log state", COMPACTED_FORMAT)?;
        Ok(Self {
            next: reader.u64("next offset")?,
            start: reader.u64("start offset")?,
            last_ts: Timestamp::from_micros(reader.u64("last time")?),
            bytes_appended: reader.u64("bytes appended")?,
            bytes_trimmed: reader.u64("bytes trimmed")?,
            batch: reader.id("batch id")?,
            epoch: Epoch(reader.u64("epoch")?),
            removed: if format == COMPACTED_FORMAT { reader.varint("records removed")? } else { 0 },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::VirtualShard;

    #[test]
    fn golden() {
        let state = LogState {
            next: 1,
            start: 2,
            last_ts: Timestamp::from_micros(3),
            bytes_appended: 4,
            bytes_trimmed: 5,
            batch: [6; 16],
            epoch: Epoch(7),
            removed: 0,
        };
        let log = LogId { vs: VirtualShard(1), object: 2, shard: 3, class: 0 };
        assert_eq!(LogState::key(&log), b"s\0\x01\0\0\0\x02\x03\0");
        let bytes = state.encode();
        assert_eq!(bytes.len(), 1 + 5 * 8 + 16 + 8);
        assert_eq!(&bytes[..17], b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02");
        assert_eq!(LogState::decode(bytes.clone().into()), Ok(state));

        let compacted = LogState { next: 400, removed: 300, ..state };
        assert_eq!(compacted.rows(), 100);
        let of_compacted = compacted.encode();
        assert_eq!((of_compacted[0], &of_compacted[17..bytes.len()]), (2, &bytes[17..]));
        assert_eq!(&of_compacted[bytes.len()..], b"\xac\x02");
        assert_eq!(LogState::decode(of_compacted.into()), Ok(compacted));
    }
}
