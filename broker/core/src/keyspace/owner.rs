//! The owner of a virtual shard: the fence that every append and queue write conflicts on.
//!
//! Key: `o`, virtual shard u16. Value: format 1, epoch u64, pod (16). Written only at takeover and handover.

use std::fmt;

use bytes::Bytes;

use super::{DecodeError, Reader, VirtualShard, Writer, tag};

const FORMAT: u8 = 1;

/// Counts the takeovers of a virtual shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// Identifies one process of the broker: fresh at each start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId(pub [u8; 16]);

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Who may write a virtual shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Grows by one with each takeover.
    pub epoch: Epoch,
    /// The owner in this epoch.
    pub pod: PodId,
}

impl Owner {
    /// The key of `vs`.
    #[must_use]
    pub fn key(vs: VirtualShard) -> Vec<u8> {
        Writer::new(tag::OWNER).u16(vs.0).finish()
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(FORMAT).u64(self.epoch.0).raw(&self.pod.0).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "shard owner", FORMAT)?;
        Ok(Self { epoch: Epoch(reader.u64("epoch")?), pod: PodId(reader.id("pod")?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let owner = Owner { epoch: Epoch(3), pod: PodId([9; 16]) };
        assert_eq!(Owner::key(VirtualShard(258)), b"o\x01\x02");
        let mut bytes = vec![1, 0, 0, 0, 0, 0, 0, 0, 3];
        bytes.extend([9; 16]);
        assert_eq!(owner.encode(), bytes);
        assert_eq!(Owner::decode(bytes.into()), Ok(owner));
    }
}
