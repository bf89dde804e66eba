//! Where a subscription of a persistent session stands in its stream.
//!
//! Key: `S`, the client's virtual shard (2), client id (length-prefixed), `p`, filter. Value: format 1, catalog id of
//! the stream u32, flags u8 (1: all there was to read has been read, and the client knows), number of shards varint;
//! of each: shard u8, position varint, end + 1 varint (0: none).

use bytes::Bytes;

use super::session::ClientKeys;
use super::{DecodeError, Reader, Writer};

const FORMAT: u8 = 1;
const ENDED: u8 = 1;

/// How far a subscription has come in one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardPosition {
    /// Of the stream.
    pub shard: u8,
    /// Everything below is done with.
    pub position: u64,
    /// Where the subscription ends: the first offset that is not for it. Absent if it goes on for ever, or up to what
    /// it says itself.
    pub end: Option<u64>,
}

/// How far a subscription has come in its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPosition {
    /// The stream, by its id in the catalog: one that was deleted and made again is another.
    pub stream: u32,
    /// All there was to read has been read, and the client knows.
    pub ended: bool,
    /// Shard by shard.
    pub shards: Vec<ShardPosition>,
}

impl ClientKeys {
    /// Of the position of the subscription to `filter`.
    #[must_use]
    pub fn position(&self, filter: &str) -> Vec<u8> {
        self.with(b'p').raw(filter.as_bytes()).finish()
    }

    /// Of all positions.
    #[must_use]
    pub fn positions(&self) -> (Vec<u8>, Vec<u8>) {
        (self.with(b'p').finish(), self.with(b'p' + 1).finish())
    }
}

impl SessionPosition {
    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let out = Writer::new(FORMAT).u32(self.stream).u8(if self.ended { ENDED } else { 0 });
        let out = out.varint(self.shards.len() as u64);
        let each = |out: Writer, at: &ShardPosition| {
            out.u8(at.shard).varint(at.position).varint(at.end.map_or(0, |end| end.saturating_add(1)))
        };
        self.shards.iter().fold(out, each).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "session position", FORMAT)?;
        let stream = reader.u32("stream of a position")?;
        let ended = reader.u8("flags of a position")? & ENDED != 0;
        let count = reader.varint("shards of a position")?;
        // Not reserved: a damaged count is found out by what does not follow.
        let mut shards = Vec::new();
        for _ in 0..count {
            let shard = reader.u8("shard of a position")?;
            let position = reader.varint("position")?;
            let end = reader.varint("end of a position")?.checked_sub(1);
            shards.push(ShardPosition { shard, position, end });
        }
        Ok(Self { stream, ended, shards })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes() {
        let keys = ClientKeys::new("c1", 256);
        let shard = keys.shard().0.to_be_bytes();
        let expected = [b"S".as_slice(), &shard, b"\0\x02c1p$stream/log"].concat();
        assert_eq!(keys.position("$stream/log"), expected);
        let (begin, end) = keys.positions();
        assert!(begin < expected && expected < end);
        let (all, inbox) = keys.all_but_inbox();
        assert!(all < expected && expected < inbox, "goes with the session");

        let shards = vec![
            ShardPosition { shard: 0, position: 300, end: None },
            ShardPosition { shard: 7, position: 0, end: Some(0) },
        ];
        let position = SessionPosition { stream: 258, ended: true, shards };
        let expected = b"\x01\0\0\x01\x02\x01\x02\0\xac\x02\0\x07\0\x01";
        assert_eq!(position.encode(), expected);
        assert_eq!(SessionPosition::decode(Bytes::from_static(expected)), Ok(position));
    }

    proptest! {
        #[test]
        fn positions_come_back(
            stream: u32,
            ended: bool,
            shards in prop::collection::vec((any::<u8>(), any::<u64>(), prop::option::of(0..u64::MAX)), 0..70),
        ) {
            let shards = shards.into_iter().map(|(shard, position, end)| ShardPosition { shard, position, end });
            let position = SessionPosition { stream, ended, shards: shards.collect() };
            prop_assert_eq!(SessionPosition::decode(position.encode().into()), Ok(position));
        }

        #[test]
        fn damaged_values_never_panic(bytes: Vec<u8>) {
            let _ = SessionPosition::decode(bytes.into());
        }
    }
}
