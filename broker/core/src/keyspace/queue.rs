//! What a queue knows of its log: the floor, acknowledgements above it, and failed attempts.
//!
//! * Floor: key `q`, log id, `f`. Value: format 3, floor u64, then the counters as varints, bytes held varint, offset from
//!   which no message has an expiry varint, epoch u64.
//! * Acks: key `q`, log id, `a`, block u64. Value: format 1, bitmap of 4,096 offsets: bit `n` of the block is
//!   bit `n % 8` of byte `n / 8`; trailing zero bytes are left out.
//! * Attempts: key `q`, log id, `r`, offset u64. Value: format 1, failed attempts varint, time before which it is not
//!   delivered again varint (µs, 0: at once), why it failed last u8 (0 not known, 1 rejected, 2 no acknowledgement in
//!   time, 3 consumer gone, 4 it made room and leaves for the dead letters), flags u8 (1 moved aside, 2 with a payload
//!   in a blob, 4 replaced); if it is moved aside, bytes it counts as varint, time of its publish varint and of its expiry varint (µs; 0: never).

use bytes::Bytes;
use weir_env::clock::Timestamp;

use super::owner::Epoch;
use super::{DecodeError, LogId, Reader, Writer, tag};

const FORMAT: u8 = 1;
const FLOOR_FORMAT: u8 = 3;
const FLOOR: u8 = b'f';
const ACKS: u8 = b'a';
const ATTEMPTS: u8 = b'r';

/// Offsets in one block of acknowledgements.
pub const BLOCK_OFFSETS: u64 = 4096;

/// The floor of a queue's log and its counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueFloor {
    /// Everything below is done.
    pub floor: u64,
    /// Messages acknowledged, ever.
    pub acknowledged: u64,
    /// Messages dropped because they had expired, ever.
    pub expired: u64,
    /// Messages dropped after their last attempt, ever.
    pub exhausted: u64,
    /// Messages dropped by a purge, ever.
    pub purged: u64,
    /// Messages that went to the dead letters, ever.
    pub dead_lettered: u64,
    /// Messages dropped to make room for newer ones, ever.
    pub overflowed: u64,
    /// Messages replaced by a newer one of their key, ever.
    pub superseded: u64,
    /// Dead letters that were moved back to where they came from, ever.
    pub redriven: u64,
    /// Bytes of messages that are neither acknowledged nor dropped.
    pub bytes: u64,
    /// From here on no message has an expiry of its own.
    pub expires_below: u64,
    /// Of the owner that wrote this.
    pub epoch: Epoch,
}

impl QueueFloor {
    /// The key of `log`'s floor.
    #[must_use]
    pub fn key(log: &LogId) -> Vec<u8> {
        log.key(tag::QUEUE).u8(FLOOR).finish()
    }

    /// Messages that are done, one way or the other.
    #[must_use]
    pub fn done(&self) -> u64 {
        let counts = [
            self.acknowledged,
            self.expired,
            self.exhausted,
            self.purged,
            self.dead_lettered,
            self.overflowed,
            self.superseded,
            self.redriven,
        ];
        counts.into_iter().fold(0, u64::saturating_add)
    }

    /// Adds the counters of another log.
    pub fn add(&mut self, other: &Self) {
        self.acknowledged = self.acknowledged.saturating_add(other.acknowledged);
        self.expired = self.expired.saturating_add(other.expired);
        self.exhausted = self.exhausted.saturating_add(other.exhausted);
        self.purged = self.purged.saturating_add(other.purged);
        self.dead_lettered = self.dead_lettered.saturating_add(other.dead_lettered);
        self.overflowed = self.overflowed.saturating_add(other.overflowed);
        self.superseded = self.superseded.saturating_add(other.superseded);
        self.redriven = self.redriven.saturating_add(other.redriven);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(FLOOR_FORMAT)
            .u64(self.floor)
            .varint(self.acknowledged)
            .varint(self.expired)
            .varint(self.exhausted)
            .varint(self.purged)
            .varint(self.dead_lettered)
            .varint(self.overflowed)
            .varint(self.superseded)
            .varint(self.redriven)
            .varint(self.bytes)
            .varint(self.expires_below)
            .u64(self.epoch.0)
            .finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, format) = Reader::value(value, "queue floor", FLOOR_FORMAT)?;
        let mut floor = Self {
            floor: reader.u64("floor")?,
            acknowledged: reader.varint("acknowledged")?,
            expired: reader.varint("expired")?,
            exhausted: reader.varint("exhausted")?,
            purged: reader.varint("purged")?,
            ..Self::default()
        };
        if format > 1 {
            floor.dead_lettered = reader.varint("dead-lettered")?;
            floor.overflowed = reader.varint("overflowed")?;
            floor.superseded = reader.varint("superseded")?;
            floor.redriven = reader.varint("redriven")?;
        }
        floor.bytes = reader.varint("bytes")?;
        // Before, nobody noted where messages expire.
        floor.expires_below = if format > 2 { reader.varint("expiry")? } else { u64::MAX };
        floor.epoch = Epoch(reader.u64("epoch")?);
        Ok(floor)
    }
}

/// Acknowledgements of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckBlock {
    bits: Box<[u8; 512]>,
    count: u16,
}

impl Default for AckBlock {
    fn default() -> Self {
        Self { bits: Box::new([0; 512]), count: 0 }
    }
}

impl AckBlock {
    /// The key of block `block` of `log`: offsets from `block * 4096` on.
    #[must_use]
    pub fn key(log: &LogId, block: u64) -> Vec<u8> {
        log.key(tag::QUEUE).u8(ACKS).u64(block).finish()
    }

    /// The keys of all blocks of `log`.
    #[must_use]
    pub fn range(log: &LogId) -> (Vec<u8>, Vec<u8>) {
        let begin = log.key(tag::QUEUE).u8(ACKS).finish();
        let end = weir_storage::prefix_end(&begin);
        (begin, end)
    }

    /// The number of the block in a key.
    ///
    /// # Errors
    /// If the key is none.
    pub fn block_of_key(key: &Bytes) -> Result<u64, DecodeError> {
        let mut reader = Reader::new(key.clone());
        reader.take(LogId::KEY_BYTES + 1, "ack block key")?;
        reader.u64("ack block")
    }

    /// Sets the bit of `offset`; false if it was set.
    pub fn set(&mut self, offset: u64) -> bool {
        let (byte, mask) = Self::place(offset);
        let fresh = self.bits[byte] & mask == 0;
        self.bits[byte] |= mask;
        self.count += u16::from(fresh);
        fresh
    }

    /// Clears the bit of `offset`; false if it was not set.
    pub fn clear(&mut self, offset: u64) -> bool {
        let (byte, mask) = Self::place(offset);
        let was_set = self.bits[byte] & mask != 0;
        self.bits[byte] &= !mask;
        self.count -= u16::from(was_set);
        was_set
    }

    /// Whether the bit of `offset` is set.
    #[must_use]
    pub fn contains(&self, offset: u64) -> bool {
        let (byte, mask) = Self::place(offset);
        self.bits[byte] & mask != 0
    }

    /// The last offset set, counted from the block's first; `None` if none is.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        let byte = self.bits.iter().rposition(|byte| *byte != 0)?;
        Some(byte as u64 * 8 + u64::from(self.bits[byte].ilog2()))
    }

    /// Number of bits set.
    #[must_use]
    pub fn count(&self) -> u64 {
        u64::from(self.count)
    }

    fn place(offset: u64) -> (usize, u8) {
        let n = usize::try_from(offset % BLOCK_OFFSETS).unwrap_or(0);
        (n / 8, 1 << (n % 8))
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let used = self.bits.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        Writer::new(FORMAT).raw(&self.bits[..used]).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (reader, _) = Reader::value(value, "ack block", FORMAT)?;
        let bytes = reader.rest();
        let mut block = Self::default();
        let into = block.bits.get_mut(..bytes.len()).ok_or(DecodeError::Invalid("ack block"))?;
        into.copy_from_slice(&bytes);
        block.count = bytes.iter().map(|byte| u16::from(u8::try_from(byte.count_ones()).unwrap_or(0))).sum();
        Ok(block)
    }
}

/// Why an attempt to deliver a message failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Its consumer refused it.
    Rejected,
    /// No acknowledgement came in time.
    TimedOut,
    /// Its consumer went away without a word.
    Disconnected,
    /// None did: it made room for newer messages, and leaves for the dead letters.
    MadeRoom,
}

impl Failure {
    const fn code(failure: Option<Self>) -> u8 {
        match failure {
            None => 0,
            Some(Self::Rejected) => 1,
            Some(Self::TimedOut) => 2,
            Some(Self::Disconnected) => 3,
            Some(Self::MadeRoom) => 4,
        }
    }

    fn of_code(code: u8) -> Result<Option<Self>, DecodeError> {
        match code {
            0 => Ok(None),
            1 => Ok(Some(Self::Rejected)),
            2 => Ok(Some(Self::TimedOut)),
            3 => Ok(Some(Self::Disconnected)),
            4 => Ok(Some(Self::MadeRoom)),
            _ => Err(DecodeError::Invalid("failure")),
        }
    }
}

/// A message that was moved aside: it is done as far as the floor and the bitmaps say, and kept in a row of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aside {
    /// Bytes it counts as.
    pub cost: u64,
    /// Whether its payload is in blob chunks.
    pub blob: bool,
    /// When it was published.
    pub published_at: Timestamp,
    /// When it expires, if ever.
    pub expires_at: Option<Timestamp>,
}

mod flag {
    pub(super) const ASIDE: u8 = 1;
    pub(super) const BLOB: u8 = 2;
    pub(super) const SUPERSEDED: u8 = 4;
}

impl Aside {
    fn flags(&self) -> u8 {
        flag::ASIDE | if self.blob { flag::BLOB } else { 0 }
    }

    fn encode(&self, out: Writer) -> Writer {
        out.varint(self.cost)
            .varint(self.published_at.as_micros())
            .varint(self.expires_at.map_or(0, Timestamp::as_micros))
    }

    fn decode(flags: u8, reader: &mut Reader) -> Result<Self, DecodeError> {
        let cost = reader.varint("aside bytes")?;
        let published_at = Timestamp::from_micros(reader.varint("aside time")?);
        let expires_at = Some(reader.varint("aside expiry")?).filter(|at| *at != 0);
        let expires_at = expires_at.map(Timestamp::from_micros);
        Ok(Self { cost, blob: flags & flag::BLOB != 0, published_at, expires_at })
    }
}

/// Failed attempts at one message: stored once there is one, or once the message was moved aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// How many failed.
    pub failed: u32,
    /// When it may be delivered again; zero: at once.
    pub not_before: Timestamp,
    /// Why the last one failed, if that is known.
    pub failure: Option<Failure>,
    /// Set once the message was moved aside.
    pub aside: Option<Aside>,
    /// Whether a newer message of its key replaces it as soon as its consumer gives it back.
    pub superseded: bool,
}

impl Attempts {
    /// The key of `offset` in `log`.
    #[must_use]
    pub fn key(log: &LogId, offset: u64) -> Vec<u8> {
        log.key(tag::QUEUE).u8(ATTEMPTS).u64(offset).finish()
    }

    /// The keys of all attempts of `log`.
    #[must_use]
    pub fn range(log: &LogId) -> (Vec<u8>, Vec<u8>) {
        let begin = log.key(tag::QUEUE).u8(ATTEMPTS).finish();
        let end = weir_storage::prefix_end(&begin);
        (begin, end)
    }

    /// The offset in a key.
    ///
    /// # Errors
    /// If the key is none.
    pub fn offset_of_key(key: &Bytes) -> Result<u64, DecodeError> {
        let mut reader = Reader::new(key.clone());
        reader.take(LogId::KEY_BYTES + 1, "attempts key")?;
        reader.u64("attempts offset")
    }

    /// The value.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        let superseded = if self.superseded { flag::SUPERSEDED } else { 0 };
        let out = Writer::new(FORMAT)
            .varint(u64::from(self.failed))
            .varint(self.not_before.as_micros())
            .u8(Failure::code(self.failure))
            .u8(self.aside.map_or(0, |aside| aside.flags()) | superseded);
        self.aside.iter().fold(out, |out, aside| aside.encode(out)).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "attempts", FORMAT)?;
        let failed = reader.varint("attempts")?;
        let failed = u32::try_from(failed).map_err(|_| DecodeError::Invalid("attempts"))?;
        let not_before = Timestamp::from_micros(reader.varint("not before")?);
        let failure = Failure::of_code(reader.u8("failure")?)?;
        let flags = reader.u8("attempts flags")?;
        let is_aside = flags & flag::ASIDE != 0;
        let aside = is_aside.then(|| Aside::decode(flags, &mut reader)).transpose()?;
        Ok(Self { failed, not_before, failure, aside, superseded: flags & flag::SUPERSEDED != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::VirtualShard;

    const LOG: LogId = LogId { vs: VirtualShard(1), object: 2, shard: 3, class: 0 };

    #[test]
    fn golden() {
        assert_eq!(QueueFloor::key(&LOG), b"q\0\x01\0\0\0\x02\x03\0f");
        let floor = QueueFloor {
            floor: 9,
            acknowledged: 300,
            expired: 1,
            exhausted: 2,
            purged: 3,
            dead_lettered: 4,
            overflowed: 5,
            superseded: 6,
            redriven: 7,
            bytes: 8,
            expires_below: 10,
            epoch: Epoch(9),
        };
        let bytes = floor.encode();
        let expected =
            b"\x03\0\0\0\0\0\0\0\x09\xac\x02\x01\x02\x03\x04\x05\x06\x07\x08\x0a\0\0\0\0\0\0\0\x09";
        assert_eq!(bytes, expected);
        assert_eq!(QueueFloor::decode(bytes.into()), Ok(floor));
        let format_1 = b"\x01\0\0\0\0\0\0\0\x09\xac\x02\x01\x02\x03\x04\0\0\0\0\0\0\0\x05";
        let old = QueueFloor::decode(Bytes::from_static(format_1)).unwrap();
        assert_eq!((old.done(), old.bytes, old.epoch), (306, 4, Epoch(5)));

        assert_eq!(AckBlock::key(&LOG, 1), b"q\0\x01\0\0\0\x02\x03\0a\0\0\0\0\0\0\0\x01");
        let mut block = AckBlock::default();
        assert!(block.set(4096) && block.set(4105) && !block.set(4105));
        assert_eq!(block.encode(), b"\x01\x01\x02");
        assert_eq!(AckBlock::decode(block.encode().into()), Ok(block));

        assert_eq!(Attempts::key(&LOG, 2), b"q\0\x01\0\0\0\x02\x03\0r\0\0\0\0\0\0\0\x02");
        let attempts = Attempts {
            failed: 3,
            not_before: Timestamp::from_micros(300),
            failure: Some(Failure::TimedOut),
            ..Attempts::default()
        };
        assert_eq!(attempts.encode(), b"\x01\x03\xac\x02\x02\0");
        let replaced = Attempts { superseded: true, ..attempts };
        assert_eq!(replaced.encode(), b"\x01\x03\xac\x02\x02\x04");
        assert_eq!(Attempts::decode(replaced.encode().into()), Ok(replaced));
        assert_eq!(Attempts::decode(attempts.encode().into()), Ok(attempts));
        let (published_at, expires_at) = (Timestamp::from_micros(5), Some(Timestamp::from_micros(6)));
        let aside = Some(Aside { cost: 300, blob: true, published_at, expires_at });
        let moved = Attempts { aside, ..Attempts::default() };
        assert_eq!(moved.encode(), b"\x01\0\0\0\x03\xac\x02\x05\x06");
        assert_eq!(Attempts::decode(moved.encode().into()), Ok(moved));
        for failure in [None, Some(Failure::Rejected), Some(Failure::Disconnected), Some(Failure::MadeRoom)] {
            let other = Attempts { failure, ..attempts };
            assert_eq!(Attempts::decode(other.encode().into()), Ok(other));
        }
        assert!(Attempts::decode(Bytes::from_static(b"\x01\x03\0\x05")).is_err());
    }

    #[test]
    fn a_full_block_and_an_oversized_one() {
        let mut block = AckBlock::default();
        assert!((0..BLOCK_OFFSETS).all(|n| block.set(n)));
        assert_eq!(block.count(), BLOCK_OFFSETS);
        assert_eq!(AckBlock::decode(block.encode().into()).unwrap().count(), BLOCK_OFFSETS);
        assert!(AckBlock::decode(Bytes::from(vec![1; 514])).is_err());
    }
}
