//! Retained messages.
//!
//! Key: `R`, then each level of the topic followed by a null byte, which no topic holds: `a/b` is `a 00 b 00`.
//! So the topics below a level are one range, and a level sorts before the levels below it. Value: format 1,
//! storage u8; inline (0): an encoded message; in chunks (1): id (16, random), length varint, expiry flag u8 and
//! u64 (µs). Chunk: `Q`, id (16), number u16; value: format 1, then at most 89,999 bytes of the message.
//!
//! Usage: `r`, bucket u8 (hash of the topic mod 16); value: format 1, messages u64, bytes u64 of what is retained
//! in that bucket, rewritten with it.

use bytes::Bytes;
use bytestring::ByteString;
use weir_env::clock::Timestamp;
use weir_storage::limits::VALUE_BYTES_MAX;
use weir_topic::TopicName;

use super::{DecodeError, Reader, Writer, placement_hash, tag};

const FORMAT: u8 = 1;

/// Names the chunks of a large retained message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RetainedBlobId(pub [u8; 16]);

impl RetainedBlobId {
    /// The key of chunk `number`.
    #[must_use]
    pub fn chunk(&self, number: u16) -> Vec<u8> {
        Writer::new(tag::RETAINED_BLOB).raw(&self.0).u16(number).finish()
    }

    /// The keys of all chunks.
    #[must_use]
    pub fn chunks(&self) -> (Vec<u8>, Vec<u8>) {
        let begin = Writer::new(tag::RETAINED_BLOB).raw(&self.0).finish();
        let end = weir_storage::prefix_end(&begin);
        (begin, end)
    }
}

/// The key of the message retained at `topic`.
#[must_use]
pub fn key(topic: &TopicName) -> Vec<u8> {
    prefix(topic.levels())
}

/// The beginning of the keys of all topics whose first levels are `levels`.
#[must_use]
pub fn prefix<'a>(levels: impl Iterator<Item = &'a str>) -> Vec<u8> {
    levels.fold(Writer::new(tag::RETAINED), |out, level| out.raw(level.as_bytes()).u8(0)).finish()
}

/// The keys of all retained messages.
#[must_use]
pub fn all() -> (Vec<u8>, Vec<u8>) {
    (vec![tag::RETAINED], vec![tag::RETAINED + 1])
}

/// The topic of a key.
///
/// # Errors
/// If it is not the key of a retained message.
pub fn decode_key(key: &[u8]) -> Result<TopicName, DecodeError> {
    let invalid = DecodeError::Invalid("retained key");
    let Some(([tag::RETAINED], levels)) = key.split_first_chunk::<1>() else { return Err(invalid) };
    let Some((0, levels)) = levels.split_last() else { return Err(invalid) };
    let text: Vec<u8> = levels.iter().map(|&byte| if byte == 0 { b'/' } else { byte }).collect();
    let text = ByteString::try_from(text).map_err(|_| invalid)?;
    TopicName::parse(text).map_err(|_| invalid)
}

/// Bytes of the message in a chunk that isn't the last.
pub const CHUNK_BYTES: usize = VALUE_BYTES_MAX - 1;

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
    Reader::value(value, "retained chunk", FORMAT).map(|(reader, _)| reader.rest())
}

/// How many messages are retained in a part of all topics, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetainedUsage {
    /// Messages.
    pub messages: u64,
    /// Bytes of keys and messages.
    pub bytes: u64,
}

impl RetainedUsage {
    /// Parts into which the topics are divided.
    pub const BUCKETS: u8 = 16;

    /// The part that `topic` is in.
    #[must_use]
    pub fn bucket(topic: &TopicName) -> u8 {
        u8::try_from(placement_hash(topic.as_bytes()) % u64::from(Self::BUCKETS)).unwrap_or(0)
    }

    /// The key of a part.
    #[must_use]
    pub fn key(bucket: u8) -> Vec<u8> {
        vec![tag::RETAINED_USAGE, bucket]
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new(FORMAT).u64(self.messages).u64(self.bytes).finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "retained usage", FORMAT)?;
        Ok(Self { messages: reader.u64("retained messages")?, bytes: reader.u64("retained bytes")? })
    }
}

/// The value of a retained message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RetainedValue {
    /// An encoded message.
    Inline(Bytes),
    /// A message in chunks.
    Chunks {
        /// Which.
        id: RetainedBlobId,
        /// Bytes of the encoded message.
        len: u64,
        /// When it stops being worth delivering.
        expires_at: Option<Timestamp>,
    },
}

impl RetainedValue {
    /// Bytes of the encoded message.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an encoded message is never empty")]
    pub fn len(&self) -> u64 {
        match self {
            Self::Inline(message) => message.len() as u64,
            Self::Chunks { len, .. } => *len,
        }
    }

    /// The value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let out = Writer::new(FORMAT);
        match self {
            Self::Inline(message) => out.u8(0).raw(message),
            Self::Chunks { id, len, expires_at } => {
                let out = out.u8(1).raw(&id.0).varint(*len);
                match expires_at {
                    None => out.u8(0),
                    Some(at) => out.u8(1).u64(at.as_micros()),
                }
            }
        }
        .finish()
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If it is not one, or of a newer format.
    pub fn decode(value: Bytes) -> Result<Self, DecodeError> {
        let (mut reader, _) = Reader::value(value, "retained message", FORMAT)?;
        match reader.u8("retained storage")? {
            0 => Ok(Self::Inline(reader.rest())),
            1 => Ok(Self::Chunks {
                id: RetainedBlobId(reader.id("retained chunks")?),
                len: reader.varint("retained length")?,
                expires_at: match reader.u8("retained expiry flag")? {
                    0 => None,
                    _ => Some(Timestamp::from_micros(reader.u64("retained expiry")?)),
                },
            }),
            _ => Err(DecodeError::Invalid("retained storage")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden() {
        let topic = TopicName::parse("a//b").unwrap();
        assert_eq!(key(&topic), b"Ra\0\0b\0");
        assert_eq!(decode_key(b"Ra\0\0b\0"), Ok(topic));
        assert_eq!(prefix(["a"].into_iter()), b"Ra\0");
        assert_eq!(RetainedBlobId([9; 16]).chunk(258), [b"Q".as_slice(), &[9; 16], b"\x01\x02"].concat());
        let inline = RetainedValue::Inline(Bytes::from_static(b"message"));
        assert_eq!(inline.encode(), b"\x01\0message");
        let expires_at = Some(Timestamp::from_micros(5));
        let chunks = RetainedValue::Chunks { id: RetainedBlobId([9; 16]), len: 300, expires_at };
        let expected = [b"\x01\x01".as_slice(), &[9; 16], b"\xac\x02\x01\0\0\0\0\0\0\0\x05"].concat();
        assert_eq!(chunks.encode(), expected);
        assert_eq!(encode_chunk(b"abc"), b"\x01abc");
        assert_eq!(decode_chunk(Bytes::from_static(b"\x01abc")).unwrap(), "abc");
        let usage = RetainedUsage { messages: 1, bytes: 2 };
        assert_eq!(RetainedUsage::key(3), b"r\x03");
        assert_eq!(usage.encode(), b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02");
        assert_eq!(RetainedUsage::decode(usage.encode().into()), Ok(usage));
        for value in [inline, chunks] {
            assert_eq!(RetainedValue::decode(value.encode().into()), Ok(value));
        }
    }

    #[test]
    fn other_keys_are_refused() {
        for bytes in [b"".as_slice(), b"R", b"Ra", b"Sa\0", b"R\xff\0", b"R+\0"] {
            assert!(decode_key(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn topics_come_back_and_parents_sort_first(text in "[a-c/$]{1,8}", below in "[a-c/]{0,4}") {
            let parent = TopicName::parse(text.clone()).unwrap();
            prop_assert_eq!(decode_key(&key(&parent)).unwrap(), parent.clone());
            let child = TopicName::parse(format!("{text}/{below}")).unwrap();
            prop_assert!(key(&parent) < key(&child));
            prop_assert!(key(&child).starts_with(&key(&parent)));
        }

        #[test]
        fn damaged_values_never_panic(bytes: Vec<u8>) {
            let _ = decode_key(&bytes);
            let _ = RetainedValue::decode(bytes.into());
        }
    }
}
