//! Blobs of inboxes: messages that are large or go to many sessions, stored once.
//!
//! Chunk: `B`, blob id (16, random), `c`, number u16; value: format 1, then at most 89,999 bytes of an encoded
//! message. Reference of an inbox: `B`, blob id, `r`, virtual shard (2), client id (length-prefixed),
//! incarnation u64; value empty. The bare `r` is the hold of a writer that isn't done with the blob. Whoever
//! clears the last `r` clears the chunks.

use bytes::Bytes;
use weir_storage::limits::VALUE_BYTES_MAX;

use super::session::{Incarnation, client_shard, shard_of};
use super::{DecodeError, Reader, VirtualShard, Writer, placement_hash, tag};

const FORMAT: u8 = 1;

/// Bytes of the message in a chunk that isn't the last.
pub const CHUNK_BYTES: usize = VALUE_BYTES_MAX - 1;

/// Names a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId(pub [u8; 16]);

impl BlobId {
    /// The virtual shard of its timer.
    #[must_use]
    pub fn shard(&self, virtual_shards: u16) -> VirtualShard {
        shard_of(placement_hash(&self.0), virtual_shards)
    }

    /// The key of chunk `number`.
    #[must_use]
    pub fn chunk(&self, number: u16) -> Vec<u8> {
        self.with(b'c').u16(number).finish()
    }

    /// The keys of all chunks.
    #[must_use]
    pub fn chunks(&self) -> (Vec<u8>, Vec<u8>) {
        (self.with(b'c').finish(), self.with(b'c' + 1).finish())
    }

    /// The key of the writer's hold.
    #[must_use]
    pub fn hold(&self) -> Vec<u8> {
        self.with(b'r').finish()
    }

    /// The key of the reference of an inbox.
    #[must_use]
    pub fn reference(&self, client_id: &str, incarnation: Incarnation, virtual_shards: u16) -> Vec<u8> {
        self.with(b'r')
            .u16(client_shard(client_id, virtual_shards).0)
            .key_bytes(client_id.as_bytes())
            .u64(incarnation.0)
            .finish()
    }

    /// The keys of all references, the hold included.
    #[must_use]
    pub fn references(&self) -> (Vec<u8>, Vec<u8>) {
        (self.with(b'r').finish(), self.with(b'r' + 1).finish())
    }

    fn with(&self, kind: u8) -> Writer {
        Writer::new(tag::INBOX_BLOB).raw(&self.0).u8(kind)
    }
}

/// The value of a chunk.
#[must_use]
pub fn encode_chunk(bytes: &[u8]) -> Vec<u8> {
    Writer::new(FORMAT).raw(bytes).finish()
}

/// Reads the value of a chunk.
///
/// # Errors
/// If it is not one, or of a newer format.
pub fn decode_chunk(value: Bytes) -> Result<Bytes, DecodeError> {
    Reader::value(value, "blob chunk", FORMAT).map(|(reader, _)| reader.rest())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden() {
        let blob = BlobId([9; 16]);
        let key = |rest: &[u8]| [b"B".as_slice(), &[9; 16], rest].concat();
        assert_eq!(blob.chunk(258), key(b"c\x01\x02"));
        assert_eq!(blob.hold(), key(b"r"));
        let shard = client_shard("c1", 256).0.to_be_bytes();
        let reference = key(&[b"r".as_slice(), &shard, b"\0\x02c1\0\0\0\0\0\0\0\x02"].concat());
        assert_eq!(blob.reference("c1", Incarnation(2), 256), reference);
        let (begin, end) = blob.references();
        assert!((begin.clone()..end.clone()).contains(&reference) && (begin..end).contains(&blob.hold()));
        let (begin, end) = blob.chunks();
        assert!(
            (begin.clone()..end.clone()).contains(&blob.chunk(u16::MAX))
                && !(begin..end).contains(&reference)
        );
        assert_eq!(encode_chunk(b"abc"), b"\x01abc");
        assert_eq!(decode_chunk(Bytes::from_static(b"\x01abc")).unwrap(), "abc");
        assert!(decode_chunk(Bytes::from_static(b"\x02abc")).is_err());
    }
}
