//! What pods say to each other about a virtual shard: one of them owns it, the other has clients who want something
//! of it.

use crate::keyspace::VirtualShard;

/// Bytes that a message is counted as beside its records and texts.
const BASE_BYTES: usize = 96;

/// Something about one virtual shard.
#[derive(Clone, Debug)]
pub enum ShardMessage {
    /// From a new owner, to all: whoever has consumers of it announces them, before anything is given out.
    RollCall {
        /// Which shard.
        vs: VirtualShard,
    },
    /// The answer of a pod that has nobody to announce.
    Absent {
        /// Which shard.
        vs: VirtualShard,
    },
}

impl ShardMessage {
    /// Bytes it holds in memory, nearly.
    #[must_use]
    pub fn size(&self) -> usize {
        BASE_BYTES
    }
}
