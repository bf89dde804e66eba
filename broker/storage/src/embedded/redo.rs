//! The bytes of a batch that is applied in steps.
//!
//! ```text
//! version(8) count(4) { begin_len(4) begin end_len(4) end } count(4) { key_len(4) key tag(1) [value_len(4) value] }
//! ```
//! Numbers are big-endian; the tag is 0 for a cleared key and 1 for a value. The tree checks the sum.

use bytes::{Buf, BufMut, Bytes};

use crate::Version;
use crate::local::{KeyRange, WriteSet};

pub(super) fn encode(version: Version, changes: &WriteSet) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u64(version.0);
    put_len(&mut out, changes.cleared().count());
    for range in changes.cleared() {
        put_bytes(&mut out, &range.begin);
        put_bytes(&mut out, &range.end);
    }
    put_len(&mut out, changes.keys().count());
    for (key, value) in changes.keys() {
        put_bytes(&mut out, key);
        out.put_u8(u8::from(value.is_some()));
        if let Some(value) = value {
            put_bytes(&mut out, value);
        }
    }
    out
}

/// `None` if the bytes are not whole.
pub(super) fn decode(bytes: &Bytes) -> Option<(Version, WriteSet)> {
    let mut input = bytes.clone();
    let version = Version(input.try_get_u64().ok()?);
    let mut changes = WriteSet::default();
    for _ in 0..input.try_get_u32().ok()? {
        let (begin, end) = (take_bytes(&mut input)?, take_bytes(&mut input)?);
        changes.clear_range(KeyRange::new(begin, end));
    }
    for _ in 0..input.try_get_u32().ok()? {
        let key = take_bytes(&mut input)?;
        match input.try_get_u8().ok()? {
            0 => changes.clear(key),
            _ => changes.set(key, take_bytes(&mut input)?),
        }
    }
    input.is_empty().then_some((version, changes))
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    out.put_u32(u32::try_from(len).expect("a batch is limited to a few megabytes"));
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.put_slice(bytes);
}

fn take_bytes(input: &mut Bytes) -> Option<Bytes> {
    let len = usize::try_from(input.try_get_u32().ok()?).ok()?;
    (len <= input.len()).then(|| input.split_to(len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_comes_back_whole_or_not_at_all() {
        let mut changes = WriteSet::default();
        changes.clear_range(KeyRange::copy(b"a", b"c"));
        changes.clear_range(KeyRange::copy(b"", b"\0"));
        changes.set(Bytes::from("b"), Bytes::from("value"));
        changes.set(Bytes::from("e"), Bytes::new());
        changes.clear(Bytes::from("d"));
        let bytes = Bytes::from(encode(Version(7), &changes));
        let (version, back) = decode(&bytes).unwrap();
        assert_eq!(version, Version(7));
        assert!(back.keys().eq(changes.keys()) && back.cleared().eq(changes.cleared()));
        for len in 0..bytes.len() {
            assert!(decode(&bytes.slice(..len)).is_none(), "{len} bytes");
        }
    }
}
