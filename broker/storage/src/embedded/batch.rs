//! The bytes of one batch of changes in the journal. Knows no files.
//!
//! ```text
//! magic(4) sum(8) len(4) segment(8) version(8) previous(8) body
//! body: count(4) { begin_len(4) begin end_len(4) end }  count(4) { key_len(4) key tag(1) [value_len(4) value] }
//! ```
//! Numbers are big-endian; the tag is 0 for a cleared key and 1 for a value. The sum is over all that follows it,
//! seeded with the id of the store: what a client sends cannot pass for a batch. A batch begins at a multiple of
//! [`ALIGN`], with zeroes before it, so no write touches a disk block that holds an earlier batch.

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::Version;
use crate::local::{KeyRange, WriteSet};

/// Where a batch may begin.
pub(super) const ALIGN: usize = 4_096;
const MAGIC: &[u8; 4] = b"wjb2";
const HEADER_BYTES: usize = 40;
/// What a key or a range takes besides its own bytes, at most.
pub(super) const CHANGE_BYTES: usize = 9;
/// The sum and what it covers begin here.
const SUM_AT: usize = 4;
const SUMMED_AT: usize = 12;
const SMALL_BYTES: usize = 1_024;

/// Which journal a batch is in. A batch of another store or segment is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The id of the store.
    pub(super) store: u64,
    /// The number of the segment.
    pub(super) segment: u64,
}

/// Changes that were made durable together.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    pub(super) version: Version,
    /// The version of the batch before it; nothing was committed in between.
    pub(super) previous: Version,
    pub(super) changes: WriteSet,
}

/// Puts a batch, filled up to a multiple of [`ALIGN`], in place of what `out` holds. It begins at an address that is such
/// a multiple too, as direct writes demand.
pub(super) fn encode<'a>(
    out: &'a mut Vec<u8>,
    place: Place,
    version: Version,
    previous: Version,
    changes: &WriteSet,
) -> &'a [u8] {
    out.clear();
    // It must not move from here on.
    out.reserve(encoded_bytes_max(changes) + ALIGN);
    let begin = out.as_ptr().align_offset(ALIGN).min(ALIGN);
    out.resize(begin, 0);
    out.put_slice(MAGIC);
    out.put_bytes(0, SUMMED_AT - SUM_AT);
    put_len(out, 0);
    out.put_u64(place.segment);
    out.put_u64(version.0);
    out.put_u64(previous.0);
    put_len(out, changes.cleared().count());
    for range in changes.cleared() {
        put_bytes(out, &range.begin);
        put_bytes(out, &range.end);
    }
    put_len(out, changes.keys().count());
    for (key, value) in changes.keys() {
        put_bytes(out, key);
        out.put_u8(u8::from(value.is_some()));
        if let Some(value) = value {
            put_bytes(out, value);
        }
    }
    let batch = &mut out[begin..];
    let len = u32::try_from(batch.len() - HEADER_BYTES).expect("a batch is limited to a few megabytes");
    batch[SUMMED_AT..SUMMED_AT + 4].copy_from_slice(&len.to_be_bytes());
    let sum = xxh3_64_with_seed(&batch[SUMMED_AT..], place.store);
    batch[SUM_AT..SUMMED_AT].copy_from_slice(&sum.to_be_bytes());
    let end = begin + batch.len().next_multiple_of(ALIGN);
    out.resize(end, 0);
    &out[begin..]
}

/// The room that a batch of these changes takes at most.
pub(super) fn encoded_bytes_max(changes: &WriteSet) -> usize {
    let counts = (changes.keys().count() + changes.cleared().count()) * CHANGE_BYTES + 8;
    (HEADER_BYTES + counts + changes.bytes()).next_multiple_of(ALIGN)
}

/// Every whole batch of the segment `place` in `bytes`, in order, and where the last of them lies. What is not a batch
/// is passed over: the versions tell whether one is missing.
pub(super) fn decode_all(bytes: &Bytes, place: Place) -> (Vec<Batch>, Range<usize>) {
    let (mut batches, mut at, mut last) = (Vec::new(), 0, 0..0);
    while at < bytes.len() {
        match decode(bytes, at, place) {
            Some((batch, len)) => {
                batches.push(batch);
                last = at..at + len.next_multiple_of(ALIGN);
                at = last.end;
            }
            None => at += ALIGN,
        }
    }
    (batches, last)
}

/// The batch at `at` and its length.
fn decode(bytes: &Bytes, at: usize, place: Place) -> Option<(Batch, usize)> {
    let header = bytes.get(at..at.checked_add(HEADER_BYTES)?)?;
    let mut fields = header.strip_prefix(MAGIC)?;
    let (sum, len) = (fields.get_u64(), usize::try_from(fields.get_u32()).ok()?);
    let segment = fields.get_u64();
    let (version, previous) = (Version(fields.get_u64()), Version(fields.get_u64()));
    let end = at.checked_add(HEADER_BYTES)?.checked_add(len)?;
    if segment != place.segment || xxh3_64_with_seed(bytes.get(at + SUMMED_AT..end)?, place.store) != sum {
        return None;
    }
    let changes = decode_changes(bytes.slice(at + HEADER_BYTES..end))?;
    Some((Batch { version, previous, changes }, end - at))
}

fn decode_changes(mut input: Bytes) -> Option<WriteSet> {
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
    input.is_empty().then_some(changes)
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    out.put_u32(u32::try_from(len).expect("a batch is limited to a few megabytes"));
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.put_slice(bytes);
}

/// Small ones are copied: as they are they would keep the whole segment in memory.
fn take_bytes(input: &mut Bytes) -> Option<Bytes> {
    let len = usize::try_from(input.try_get_u32().ok()?).ok()?;
    let bytes = (len <= input.len()).then(|| input.split_to(len))?;
    Some(if len < SMALL_BYTES { Bytes::copy_from_slice(&bytes) } else { bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { store: 7, segment: 3 };

    fn changes() -> WriteSet {
        let mut changes = WriteSet::default();
        changes.clear_range(KeyRange::copy(b"a", b"c"));
        changes.clear_range(KeyRange::copy(b"", b"\0"));
        changes.set(Bytes::from("b"), Bytes::from("value"));
        changes.set(Bytes::from("e"), Bytes::from(vec![1; 5_000]));
        changes.set(Bytes::from("f"), Bytes::new());
        changes.clear(Bytes::from("d"));
        changes
    }

    fn encoded(version: u64) -> Vec<u8> {
        let mut out = vec![1, 2, 3];
        let batch = encode(&mut out, PLACE, Version(version), Version(version - 1), &changes());
        assert!(batch.as_ptr().addr().is_multiple_of(ALIGN));
        batch.to_vec()
    }

    fn versions(bytes: &[u8], place: Place) -> Vec<u64> {
        let (batches, last) = decode_all(&Bytes::copy_from_slice(bytes), place);
        assert_eq!(last.is_empty(), batches.is_empty());
        batches.iter().map(|batch| batch.version.0).collect()
    }

    #[test]
    fn batches_come_back_whole_and_only_from_their_place() {
        let bytes = [encoded(2), encoded(3)].concat();
        assert_eq!(bytes.len() % ALIGN, 0);
        assert!(bytes.len() / 2 <= encoded_bytes_max(&changes()));
        let (batches, last) = decode_all(&Bytes::from(bytes.clone()), PLACE);
        assert_eq!(last, bytes.len() / 2..bytes.len());
        assert_eq!(batches.iter().map(|b| (b.version.0, b.previous.0)).collect::<Vec<_>>(), [(2, 1), (3, 2)]);
        for batch in batches {
            assert!(batch.changes.keys().eq(changes().keys()));
            assert!(batch.changes.cleared().eq(changes().cleared()));
        }
        assert!(versions(&bytes, Place { segment: 4, ..PLACE }).is_empty());
        assert!(versions(&bytes, Place { store: 8, ..PLACE }).is_empty());
    }

    #[test]
    fn a_batch_with_any_flipped_bit_or_cut_off_is_none_and_hides_no_other() {
        let (one, two) = (encoded(2), encoded(3));
        let used = HEADER_BYTES + u32::from_be_bytes([one[12], one[13], one[14], one[15]]) as usize;
        for at in 0..one.len() {
            let mut bytes = [&one[..], &two].concat();
            bytes[at] ^= 1 << (at % 8);
            let expected: &[u64] = if at < used { &[3] } else { &[2, 3] };
            assert_eq!(versions(&bytes, PLACE), expected, "byte {at}");
        }
        for len in 0..used {
            assert!(versions(&one[..len], PLACE).is_empty(), "{len} bytes");
        }
    }
}
