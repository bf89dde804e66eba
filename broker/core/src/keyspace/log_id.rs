//! What names a log: one shard of a queue or stream, or one priority class of a shard of a queue, and the virtual
//! shard it is placed on.

use bytes::Bytes;

use super::{DecodeError, Reader, VirtualShard, Writer, placement_hash};

/// A shard of a queue or stream. Every key of a log begins with its table tag and these eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// Where it is placed.
    pub vs: VirtualShard,
    /// The catalog id of the queue or stream.
    pub object: u32,
    /// Number of the shard within it.
    pub shard: u8,
    /// Priority class of the messages in it: 0 for streams and for all that ask for none. All classes of a shard are on
    /// one virtual shard.
    pub class: u8,
}

impl LogId {
    /// Bytes of a key before what is of its table: the tag and the log.
    pub const KEY_BYTES: usize = 9;

    /// Shard `shard` of `object`, placed by hash on one of `virtual_shards` (at least one).
    #[must_use]
    pub fn place(object: u32, shard: u8, virtual_shards: u16) -> Self {
        let mut name = [0; 5];
        name[..4].copy_from_slice(&object.to_be_bytes());
        name[4] = shard;
        let vs = placement_hash(&name) % u64::from(virtual_shards.max(1));
        Self { vs: VirtualShard(u16::try_from(vs).unwrap_or(0)), object, shard, class: 0 }
    }

    /// The log of another priority class of the same shard.
    #[must_use]
    pub const fn of_class(self, class: u8) -> Self {
        Self { class, ..self }
    }

    /// The beginning of this log's keys in table `tag`.
    #[must_use]
    pub fn key(&self, tag: u8) -> Writer {
        Writer::new(tag).u16(self.vs.0).u32(self.object).u8(self.shard).u8(self.class)
    }

    /// The range of this log's keys in table `tag`.
    #[must_use]
    pub fn range(&self, tag: u8) -> (Vec<u8>, Vec<u8>) {
        let begin = self.key(tag).finish();
        let end = weir_storage::prefix_end(&begin);
        (begin, end)
    }

    /// The range of the keys in table `tag` of all classes of this log's shard.
    #[must_use]
    pub fn shard_range(&self, tag: u8) -> (Vec<u8>, Vec<u8>) {
        let begin = Writer::new(tag).u16(self.vs.0).u32(self.object).u8(self.shard).finish();
        let end = weir_storage::prefix_end(&begin);
        (begin, end)
    }

    /// The log whose key in some table this is, or begins as.
    ///
    /// # Errors
    /// If it is too short.
    pub fn of_key(key: &Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(key.clone());
        reader.take(1, "log key")?;
        Ok(Self {
            vs: VirtualShard(reader.u16("log key")?),
            object: reader.u32("log key")?,
            shard: reader.u8("log key")?,
            class: reader.u8("log key")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement_never_changes() {
        let places: Vec<u16> = (0..4).map(|shard| LogId::place(7, shard, 256).vs.0).collect();
        assert_eq!(places, [244, 166, 254, 51]);
        assert_eq!(LogId::place(7, 3, 1).vs, VirtualShard(0));
        // The published test vector of XXH3-64 for no input.
        assert_eq!(placement_hash(b""), 0x2d06_8005_38d3_94c2);
    }

    #[test]
    fn keys_sort_by_virtual_shard_object_shard_and_class() {
        let log = LogId { vs: VirtualShard(0x0102), object: 3, shard: 4, class: 5 };
        let key = log.key(b'l').finish();
        assert_eq!(key, b"l\x01\x02\0\0\0\x03\x04\x05");
        assert_eq!(key.len(), LogId::KEY_BYTES);
        assert_eq!(LogId::of_key(&key.clone().into()), Ok(log));
        assert!(LogId::of_key(&Bytes::from(key.clone()).slice(..8)).is_err());
        let (begin, end) = log.shard_range(b'l');
        assert!((&begin..&end).contains(&&key));
        assert!((&begin..&end).contains(&&log.of_class(0).key(b'l').finish()));
        assert!(!(begin..end).contains(&LogId { shard: 5, class: 0, ..log }.key(b'l').finish()));
    }
}
