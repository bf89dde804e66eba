//! Writing and reading of fixed-width and variable-length fields. Reading never panics: the store may hold
//! anything.

use bytes::{Buf, Bytes};
use bytestring::ByteString;

/// A stored record that does not have the form it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The record ends within a field.
    #[error("record ends within {0}")]
    Truncated(&'static str),
    /// A field has a value that is not allowed.
    #[error("{0} has a value that is not allowed")]
    Invalid(&'static str),
    /// The record was written by a version of Weir that this one does not know.
    #[error("{what} has format {found}, this version reads up to {known}")]
    Format {
        /// The record kind.
        what: &'static str,
        /// Format found.
        found: u8,
        /// Newest format known.
        known: u8,
    },
    /// The keyspace was written by a version of Weir whose layout this one has left behind.
    #[error(
        "the store has layout {found}, of a version before the first release; this version uses layout {known}: begin a \
         new store"
    )]
    Outdated {
        /// Format found.
        found: u8,
        /// The only one that is read.
        known: u8,
    },
    /// The keyspace is what a restore has left that did not come to its end.
    #[error("a restore into this store did not come to its end: empty the store, then restore again")]
    Unfinished,
}

/// Bytes of a varint that has 64 bits.
const VARINT_BYTES_MAX: usize = 10;

/// Appends fields to a byte vector.
#[derive(Clone, Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// A key of table `tag`, or a value of format `tag`.
    #[must_use]
    pub fn new(tag: u8) -> Self {
        let mut bytes = Vec::with_capacity(64);
        bytes.push(tag);
        Self(bytes)
    }

    /// One byte.
    #[must_use]
    pub fn u8(mut self, n: u8) -> Self {
        self.0.push(n);
        self
    }

    /// Two bytes, big-endian.
    #[must_use]
    pub fn u16(mut self, n: u16) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    /// Four bytes, big-endian.
    #[must_use]
    pub fn u32(mut self, n: u32) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    /// Eight bytes, big-endian.
    #[must_use]
    pub fn u64(mut self, n: u64) -> Self {
        self.0.extend_from_slice(&n.to_be_bytes());
        self
    }

    /// Seven bits a byte, least significant first.
    #[must_use]
    pub fn varint(mut self, n: u64) -> Self {
        put_varint(&mut self.0, n);
        self
    }

    /// The bytes as they are: only as the last field, or of fixed length.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A varint length, then the bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        put_varint(&mut self.0, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    /// A two-byte length, then the bytes: for strings inside keys. Longer than 65,535 is cut, which the
    /// limits on what goes into keys exclude.
    #[must_use]
    pub fn key_bytes(self, bytes: &[u8]) -> Self {
        let bytes = bytes.get(..usize::from(u16::MAX)).unwrap_or(bytes);
        self.u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX)).raw(bytes)
    }

    /// Bytes written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing has been written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was written.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Appends `n` as a varint.
fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(low_bits(n) | 0x80);
        n >>= 7;
    }
    out.push(low_bits(n));
}

/// Takes fields off the front of a record. Slices share the record's buffer.
#[derive(Clone, Debug)]
pub struct Reader(Bytes);

impl Reader {
    /// Reads from the first byte on.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Reads a value whose format byte must be at most `known`; returns the format too.
    ///
    /// # Errors
    /// If the record is empty or of a newer format.
    pub fn value(bytes: Bytes, what: &'static str, known: u8) -> Result<(Self, u8), DecodeError> {
        let mut reader = Self(bytes);
        let found = reader.u8(what)?;
        if found == 0 || found > known {
            return Err(DecodeError::Format { what, found, known });
        }
        Ok((reader, found))
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn take(&mut self, n: usize, what: &'static str) -> Result<Bytes, DecodeError> {
        if self.0.len() < n {
            return Err(DecodeError::Truncated(what));
        }
        Ok(self.0.split_to(n))
    }

    /// The next `N` bytes. They are copied out: a slice of the buffer would count as one more owner of it.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let array = *self.0.first_chunk().ok_or(DecodeError::Truncated(what))?;
        self.0.advance(N);
        Ok(array)
    }

    /// One byte.
    ///
    /// # Errors
    /// At the end of the record.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(what).map(|[n]| n)
    }

    /// Two bytes, big-endian.
    ///
    /// # Errors
    /// At the end of the record.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_be_bytes)
    }

    /// Four bytes, big-endian.
    ///
    /// # Errors
    /// At the end of the record.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_be_bytes)
    }

    /// Eight bytes, big-endian.
    ///
    /// # Errors
    /// At the end of the record.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_be_bytes)
    }

    /// Sixteen bytes: an identifier.
    ///
    /// # Errors
    /// At the end of the record.
    pub fn id(&mut self, what: &'static str) -> Result<[u8; 16], DecodeError> {
        self.array(what)
    }

    /// A varint.
    ///
    /// # Errors
    /// At the end of the record, or if it has more than 64 bits.
    pub fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let (n, width) = scan_varint(&self.0, what)?;
        self.0.advance(width);
        Ok(n)
    }

    /// Takes what [`Reader::bytes`] would, if that is `expected`; else takes nothing. False for bytes that are none.
    #[must_use]
    pub fn bytes_are(&mut self, expected: &[u8]) -> bool {
        let Ok((len, width)) = scan_varint(&self.0, "bytes") else { return false };
        let are = len == expected.len() as u64 && self.0[width..].starts_with(expected);
        if are {
            self.0.advance(width + expected.len());
        }
        are
    }

    /// A varint length, then that many bytes.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn bytes(&mut self, what: &'static str) -> Result<Bytes, DecodeError> {
        let len = usize::try_from(self.varint(what)?).map_err(|_| DecodeError::Invalid(what))?;
        self.take(len, what)
    }

    /// A varint length, then that many bytes of UTF-8.
    ///
    /// # Errors
    /// If there are fewer, or they are not UTF-8.
    pub fn string(&mut self, what: &'static str) -> Result<ByteString, DecodeError> {
        ByteString::try_from(self.bytes(what)?).map_err(|_| DecodeError::Invalid(what))
    }

    /// A two-byte length, then that many bytes: a string inside a key.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn key_bytes(&mut self, what: &'static str) -> Result<Bytes, DecodeError> {
        let len = self.u16(what)?;
        self.take(usize::from(len), what)
    }

    /// A two-byte length, then that many bytes of UTF-8: a string inside a key.
    ///
    /// # Errors
    /// If there are fewer, or they are not UTF-8.
    pub fn key_string(&mut self, what: &'static str) -> Result<ByteString, DecodeError> {
        ByteString::try_from(self.key_bytes(what)?).map_err(|_| DecodeError::Invalid(what))
    }

    /// All that is left.
    #[must_use]
    pub fn rest(self) -> Bytes {
        self.0
    }

    /// Bytes left.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.0.len()
    }
}

/// The varint that `bytes` begin with, and how many of them it takes.
fn scan_varint(bytes: &[u8], what: &'static str) -> Result<(u64, usize), DecodeError> {
    let mut n = 0u64;
    for (at, &byte) in bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
        n |= u64::from(byte & 0x7f) << (7 * at);
        if byte < 0x80 {
            return Ok((n, at + 1));
        }
    }
    let whole = bytes.len() >= VARINT_BYTES_MAX;
    Err(if whole { DecodeError::Invalid(what) } else { DecodeError::Truncated(what) })
}

const fn low_bits(n: u64) -> u8 {
    (n & 0x7f) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_as_written() {
        let written =
            Writer::new(1).u16(7).u64(u64::MAX).varint(300).bytes(b"abc").key_bytes(b"k").raw(b"rest");
        let (mut r, format) = Reader::value(Bytes::from(written.finish()), "test", 1).unwrap();
        assert_eq!(format, 1);
        assert_eq!(r.u16("a"), Ok(7));
        assert_eq!(r.u64("b"), Ok(u64::MAX));
        assert_eq!(r.varint("c"), Ok(300));
        assert_eq!(r.bytes("d").unwrap(), "abc");
        assert_eq!(r.key_string("e").unwrap(), "k");
        assert_eq!(r.rest(), "rest");
    }

    #[test]
    fn bytes_are_taken_if_they_are_the_expected_ones() {
        let mut r = Reader::new(Writer::default().bytes(b"abc").varint(u64::MAX).finish().into());
        for other in [&b""[..], b"ab", b"abd", b"abcd"] {
            assert!(!r.bytes_are(other), "{other:?}");
        }
        assert!(r.bytes_are(b"abc"));
        assert!(!r.bytes_are(b"abc"));
        assert_eq!(r.varint("rest"), Ok(u64::MAX));
        assert!(!r.bytes_are(b""));
        assert!(!Reader::new(Bytes::from_static(&[3, b'a'])).bytes_are(b"abc"));
    }

    #[test]
    fn bad_records_are_errors() {
        assert_eq!(Reader::value(Bytes::new(), "x", 1).unwrap_err(), DecodeError::Truncated("x"));
        let newer = Reader::value(Bytes::from_static(&[2]), "x", 1).unwrap_err();
        assert_eq!(newer, DecodeError::Format { what: "x", found: 2, known: 1 });
        assert_eq!(Reader::new(Bytes::from_static(&[0xff; 11])).varint("v"), Err(DecodeError::Invalid("v")));
        let cut = Reader::new(Bytes::from_static(&[0xff; 9])).varint("v");
        assert_eq!(cut, Err(DecodeError::Truncated("v")));
        assert_eq!(Reader::new(Bytes::from_static(&[5, 1])).bytes("b"), Err(DecodeError::Truncated("b")));
    }
}
