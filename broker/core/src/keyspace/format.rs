//! The format record: what this keyspace is, written once.
//!
//! Key: `f`. Value: format 2, number of virtual shards u16, cluster id (16). While a restore goes on: format 0, and an
//! id (16) of that restore, so that nobody takes for a keyspace what is only half of one. Format 1 was one whose logs had
//! no priority class in their keys; it is not read.

use bytes::Bytes;

use super::{DecodeError, Reader, Writer, tag};

/// Newest value format known.
const FORMAT: u8 = 2;
/// Format of the value while a restore goes on.
const RESTORING: u8 = 0;

/// Virtual shards of a new keyspace; fixed when it is created.
pub const VIRTUAL_SHARDS_DEFAULT: u16 = 256;

/// What a keyspace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyspaceFormat {
    /// Number of virtual shards, at least one.
    pub virtual_shards: u16,
    /// Identifies the installation.
    pub cluster_id: [u8; 16],
}

impl KeyspaceFormat {
    /// The format that this program writes.
    pub const VERSION: u8 = FORMAT;

    /// The only key of the table.
    #[must_use]
    pub fn key() -> Vec<u8> {
        Writer::new(tag::FORMAT).finish()
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(FORMAT).u16(self.virtual_shards).raw(&self.cluster_id).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of another format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        if value.first() == Some(&RESTORING) {
            return Err(DecodeError::Unfinished);
        }
        let (mut reader, format) = Reader::value(value, "keyspace format", FORMAT)?;
        if format < FORMAT {
            return Err(DecodeError::Outdated { found: format, known: FORMAT });
        }
        let virtual_shards = reader.u16("virtual shards")?;
        if virtual_shards == 0 {
            return Err(DecodeError::Invalid("virtual shards"));
        }
        Ok(Self { virtual_shards, cluster_id: reader.id("cluster id")? })
    }
}

/// The value while the restore `id` goes on.
#[must_use]
pub(crate) fn restoring(id: &[u8; 16]) -> Vec<u8> {
    Writer::new(RESTORING).raw(id).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let format = KeyspaceFormat { virtual_shards: 256, cluster_id: [7; 16] };
        assert_eq!(KeyspaceFormat::key(), b"f");
        let mut bytes = vec![2, 1, 0];
        bytes.extend([7; 16]);
        assert_eq!(format.encode(), bytes);
        assert_eq!(KeyspaceFormat::decode(bytes.clone().into()), Ok(format));
        bytes[0] = 1;
        let outdated = DecodeError::Outdated { found: 1, known: 2 };
        assert_eq!(KeyspaceFormat::decode(bytes.into()), Err(outdated));
        assert_eq!(restoring(&[7; 16]), [[0].as_slice(), &[7; 16]].concat());
        assert_eq!(KeyspaceFormat::decode(restoring(&[7; 16]).into()), Err(DecodeError::Unfinished));
    }
}
