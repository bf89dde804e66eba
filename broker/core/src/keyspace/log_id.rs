//! What names a log: one shard of a queue or stream, and the virtual shard it is placed on.

use super::{VirtualShard, Writer, placement_hash};

/// A shard of a queue or stream. Every key of a log begins with its table tag and these seven bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId {
    /// Where it is placed.
    pub vs: VirtualShard,
    /// The catalog id of the queue or stream.
    pub object: u32,
    /// Number of the shard within it.
    pub shard: u8,
}

impl LogId {
    /// Shard `shard` of `object`, placed by hash on one of `virtual_shards` (at least one).
    #[must_use]
    pub fn place(object: u32, shard: u8, virtual_shards: u16) -> Self {
        let mut name = [0; 5];
        name[..4].copy_from_slice(&object.to_be_bytes());
        name[4] = shard;
        let vs = placement_hash(&name) % u64::from(virtual_shards.max(1));
        Self { vs: VirtualShard(u16::try_from(vs).unwrap_or(0)), object, shard }
    }

    /// The beginning of this log's keys in table `tag`.
    #[must_use]
    pub fn key(&self, tag: u8) -> Writer {
        Writer::new(tag).u16(self.vs.0).u32(self.object).u8(self.shard)
    }

    /// The range of this log's keys in table `tag`.
    #[must_use]
    pub fn range(&self, tag: u8) -> (Vec<u8>, Vec<u8>) {
        let begin = self.key(tag).finish();
        let end = weir_storage::prefix_end(&begin);
        (begin, end)
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
    fn keys_sort_by_virtual_shard_object_and_shard() {
        let log = LogId { vs: VirtualShard(0x0102), object: 3, shard: 4 };
        assert_eq!(log.key(b'l').finish(), b"l\x01\x02\0\0\0\x03\x04");
    }
}
