//! Backups: every pair of a store at one version, as a file that shows when it is not whole.
//!
//! Knows no engine and no record, and does no IO but that of a reader it is given: [`Backup`] makes the bytes,
//! [`BackupReader`] takes them apart. What a record means after a restore is the caller's business.
//!
//! # Format
//! ```text
//! magic     "weir backup 1\n"
//! frame     kind(1) length(4) body(length) checksum(8)
//! ```
//! Numbers are big-endian. The checksum is the XXH3-64 of the frame's number (8, counted from zero), its kind, length
//! and body: a frame that is changed, missing, repeated or moved shows. Frames in their order:
//! * `h`, first: version(8), microseconds since 1970 (8), engine and program (each a length(2) and text)
//! * `c`, any number: pairs, each key_length(2) key value_length(4) value; keys ascend over all chunks
//! * `e`, last: pairs(8), bytes of keys and values (8), XXH3-64 of all bytes before this frame (8). Nothing follows.

mod reader;
mod writer;

pub use reader::{BackupError, BackupReader, Pairs};
pub use writer::Backup;

const MAGIC: &[u8] = b"weir backup 1\n";
/// What every version of the format begins with.
const MAGIC_PREFIX: &[u8] = b"weir backup ";
const HEADER: u8 = b'h';
const CHUNK: u8 = b'c';
const END: u8 = b'e';
/// Bytes of keys and values in a chunk, about.
const CHUNK_BYTES_TARGET: usize = 256 << 10;
/// Longest body that is read: a chunk is full once it reaches its target, and its pairs have lengths.
const BODY_BYTES_MAX: usize = 4 << 20;

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The version of the store that it shows. No versionstamp in it is greater.
    pub version: crate::Version,
    /// When it was begun, in microseconds since 1970.
    pub created_micros: u64,
    /// The engine that it comes from.
    pub engine: String,
    /// The program that made it, with its version.
    pub program: String,
}

/// How much is in a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Pairs of key and value.
    pub pairs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The checksum of a frame.
fn checksum(number: u64, kind: u8, body: &[u8]) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(&number.to_be_bytes());
    hasher.update(&[kind]);
    hasher.update(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    hasher.update(body);
    hasher.digest()
}

#[cfg(test)]
mod tests;
