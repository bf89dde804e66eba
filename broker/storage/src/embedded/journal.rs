//! Looks at the tree's journal before the tree does, to tell a torn tail from damage.
//!
//! Each batch is synced before the next one is written, so after a power failure only the last one can be
//! incomplete: it was never acknowledged and is cut off. A bad batch with a good one behind it was acknowledged,
//! and losing it silently is not an option. The tree alone would cut the journal at the first batch that
//! does not parse, and refuse to start when the last one parses but its pages did not all reach the disk.
//!
//! Knows the journal of `fjall` 3.1, numbers little-endian:
//! ```text
//! start:  1 count(4) seqno(8)
//! item:   2 type(1) compression(1) keyspace(8) key_len(2) value_len(4) stored_len(4) key value
//! clear:  4 keyspace(8)
//! end:    3 xxh3-64 of the items(8) "FJL\x03"
//! ```
//! Zeroes follow the last batch: the file is made longer in advance.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};

use super::folder::disk_error;
use crate::{Error, Result};

const MAGIC: &[u8] = b"FJL\x03";
const END_BYTES: usize = 1 + 8 + MAGIC.len();
const CHUNK_BYTES: usize = 64 << 10;

/// Checks the journals in `data`, which may not exist yet, and cuts off a torn tail.
///
/// # Errors
/// [`Error::Damaged`] if an acknowledged commit is not readable.
pub(super) fn mend(data: &Path) -> Result<()> {
    let journals = journals(data).map_err(|error| disk_error(data, "list", &error))?;
    for (index, (_, path)) in journals.iter().enumerate() {
        let is_active = index + 1 == journals.len();
        let bytes = read_written(path).map_err(|error| disk_error(path, "read", &error))?;
        match inspect(&bytes) {
            Verdict::Good => {}
            Verdict::Torn { from } if is_active => {
                tracing::info!(journal = %path.display(), from, "cutting off a commit that was never finished");
                cut(path, from).map_err(|error| disk_error(path, "cut", &error))?;
            }
            Verdict::Torn { from } | Verdict::Damaged { from } => {
                let path = path.display();
                return Err(Error::Damaged(
                    format!(
                        "{path} is not readable from byte {from} on, and commits follow: restore the folder \
                         from a backup"
                    )
                    .into(),
                ));
            }
        }
    }
    Ok(())
}

/// The journals by number; the last one is being written.
fn journals(data: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(data) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut journals = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|extension| extension == "jnl"))
        {
            journals.push((number, path));
        }
    }
    journals.sort_unstable();
    Ok(journals)
}

/// The file without the zeroes at its end, to within a chunk.
fn read_written(path: &Path) -> io::Result<Vec<u8>> {
    let (mut file, zeroes) = (File::open(path)?, vec![0; CHUNK_BYTES]);
    let (mut chunk, mut read, mut written) = (Vec::with_capacity(CHUNK_BYTES), 0, 0);
    while file.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut chunk)? > 0 {
        read += chunk.len() as u64;
        if chunk != zeroes[..chunk.len()] {
            written = read;
        }
        chunk.clear();
    }
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(written).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn cut(path: &Path, len: usize) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.set_len(len as u64)?;
    file.sync_all()
}

/// What a journal holds, from its first byte on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Good batches, and behind them nothing, zeroes, or the beginning of a batch, which the tree cuts off itself.
    Good,
    /// Good batches up to here, then one that is whole but whose sum is wrong.
    Torn { from: usize },
    /// Good batches behind a bad one, which begins here.
    Damaged { from: usize },
}

fn inspect(bytes: &[u8]) -> Verdict {
    let mut from = 0;
    loop {
        match batch_at(bytes, from) {
            Batch::Good { end } => from = end,
            Batch::BadSum { end } if good_batch_follows(bytes, end - MAGIC.len()) => {
                return Verdict::Damaged { from };
            }
            Batch::BadSum { .. } => return Verdict::Torn { from },
            Batch::Broken if good_batch_follows(bytes, from) => return Verdict::Damaged { from },
            Batch::Broken => return Verdict::Good,
        }
    }
}

/// Whether a good batch begins behind any end marker from `from` on.
fn good_batch_follows(bytes: &[u8], from: usize) -> bool {
    let rest = bytes.get(from..).unwrap_or_default();
    let mut markers = rest.windows(MAGIC.len()).enumerate().filter(|(_, window)| *window == MAGIC);
    markers.any(|(at, _)| matches!(batch_at(bytes, from + at + MAGIC.len()), Batch::Good { .. }))
}

enum Batch {
    Good { end: usize },
    BadSum { end: usize },
    Broken,
}

/// The batch that begins at `from`.
fn batch_at(bytes: &[u8], from: usize) -> Batch {
    parse_batch(bytes, from).unwrap_or(Batch::Broken)
}

/// `None` if there is no whole batch.
fn parse_batch(bytes: &[u8], from: usize) -> Option<Batch> {
    let field = |at: usize, len: usize| bytes.get(at..at.checked_add(len)?);
    let number = |at: usize, len: usize| {
        let mut wide = [0; 8];
        wide[..len].copy_from_slice(field(at, len)?);
        usize::try_from(u64::from_le_bytes(wide)).ok()
    };
    if number(from, 1)? != 1 {
        return None;
    }
    let count = number(from + 1, 4)?;
    let items = from + 13;
    let mut at = items;
    for _ in 0..count {
        at = match number(at, 1)? {
            2 => {
                let (key_len, stored_len) = (number(at + 11, 2)?, number(at + 17, 4)?);
                at + 21 + key_len + stored_len
            }
            4 => at + 9,
            _ => return None,
        };
    }
    let end = at + END_BYTES;
    if number(at, 1)? != 3 || field(at + 9, MAGIC.len())? != MAGIC {
        return None;
    }
    let sum = u64::from_le_bytes(field(at + 1, 8)?.try_into().ok()?);
    let is_good = xxhash_rust::xxh3::xxh3_64(field(items, at - items)?) == sum;
    Some(if is_good { Batch::Good { end } } else { Batch::BadSum { end } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(value: &[u8]) -> Vec<u8> {
        let len = u32::try_from(value.len()).unwrap().to_le_bytes();
        let item = [&[2, 0, 0][..], &[7; 8], &[1, 0], &len, &len, b"k", value].concat();
        let sum = xxhash_rust::xxh3::xxh3_64(&item).to_le_bytes();
        [&[1, 1, 0, 0, 0][..], &[9; 8], &item, &[3], &sum, MAGIC].concat()
    }

    #[test]
    fn only_the_last_batch_may_be_bad() {
        let (a, b, c) = (batch(&[1; 50]), batch(&[2; 50]), batch(&[3; 50]));
        let whole = [&a[..], &b, &c, &[0; 99]].concat();
        assert_eq!(inspect(&[]), Verdict::Good);
        assert_eq!(inspect(&whole), Verdict::Good);
        let starts = [0, a.len(), a.len() + b.len()];
        for at in 0..starts[2] + c.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            let hit = starts.into_iter().rfind(|start| *start <= at).unwrap();
            let is_last = hit == starts[2];
            // The marker is what the batch behind it is found by; the sequence number is under no sum.
            let is_marker = at + MAGIC.len() >= hit + a.len();
            let is_sequence = (5..13).contains(&(at - hit));
            match inspect(&bytes) {
                Verdict::Damaged { from } => assert!(from == hit && !is_last, "byte {at}"),
                Verdict::Torn { from } => assert!(from == hit && is_last, "byte {at}"),
                Verdict::Good => assert!(is_last || is_marker || is_sequence, "byte {at}"),
            }
        }
        for len in 0..a.len() + b.len() {
            assert_eq!(inspect(&whole[..len]), Verdict::Good, "{len} bytes");
        }
    }
}
