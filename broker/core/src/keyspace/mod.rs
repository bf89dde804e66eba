//! The layout of the store: one file per record kind, each with its key, its value and golden bytes.
//!
//! A key is a one-byte table tag, then fixed-width big-endian fields, strings last where possible; a string
//! that is followed by something is length-prefixed. Never a timestamp or counter right after the tag. A
//! value begins with a format-version byte. `docs/keyspace.md` mirrors this folder. A tag that has been
//! used is never given to another record.

pub mod aside;
mod bytes_io;
pub mod catalog;
pub mod change;
pub mod dedup;
pub mod delayed;
pub mod format;
pub mod group;
pub mod inbox;
pub mod inbox_blob;
pub mod interest;
pub mod last_value;
pub mod load;
pub mod log_blob;
mod log_id;
pub mod log_state;
pub mod mark;
pub mod owner;
pub mod pod;
pub mod queue;
pub mod record;
pub mod retained;
pub mod segment;
pub mod session;
pub mod session_position;
pub mod time_index;
pub mod timer;
pub mod will;

pub use bytes_io::{DecodeError, Reader, Writer};
pub use log_id::LogId;
pub use mark::PublishId;

/// Table tags: the first byte of every key.
pub mod tag {
    /// Keyspace version, number of virtual shards, cluster id.
    pub const FORMAT: u8 = b'f';
    /// Catalog entries.
    pub const CATALOG: u8 = b'C';
    /// Pods.
    pub const POD: u8 = b'm';
    /// Signs of life of pods.
    pub const HEARTBEAT: u8 = b'h';
    /// The change feed.
    pub const CHANGE: u8 = b'c';
    /// Owners of virtual shards: the fences.
    pub const OWNER: u8 = b'o';
    /// What clients of pods want live.
    pub const INTEREST: u8 = b'F';
    /// Routes of persistent sessions.
    pub const SESSION_ROUTE: u8 = b'G';
    /// Marks of idempotent publishes.
    pub const MARK: u8 = b'u';
    /// Ids of messages that are stored once.
    pub const DEDUP: u8 = b'd';
    /// Messages that wait for their time.
    pub const DELAYED: u8 = b'y';
    /// Log segments.
    pub const SEGMENT: u8 = b'l';
    /// Time index of log segments.
    pub const TIME_INDEX: u8 = b'i';
    /// Rows of compacted logs.
    pub const ROW: u8 = b'K';
    /// Which row is the newest of its key, and tombstones.
    pub const LAST_VALUE: u8 = b'k';
    /// State of a log.
    pub const LOG_STATE: u8 = b's';
    /// Queue floors, acks and attempts.
    pub const QUEUE: u8 = b'q';
    /// Positions of consumer groups.
    pub const GROUP: u8 = b'g';
    /// Sessions, their subscriptions and inboxes.
    pub const SESSION: u8 = b'S';
    /// Wills.
    pub const WILL: u8 = b'W';
    /// Payloads of log records too large for a segment.
    pub const LOG_BLOB: u8 = b'b';
    /// Payloads shared by inboxes.
    pub const INBOX_BLOB: u8 = b'B';
    /// Marks of publishes that may be repeated into inboxes.
    pub const INBOX_MARK: u8 = b'U';
    /// Retained messages.
    pub const RETAINED: u8 = b'R';
    /// Chunks of retained messages too large for one value.
    pub const RETAINED_BLOB: u8 = b'Q';
    /// How much is retained.
    pub const RETAINED_USAGE: u8 = b'r';
    /// Timers.
    pub const TIMER: u8 = b't';
}

/// A virtual shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualShard(pub u16);

/// The hash that places things: XXH3-64 with seed 0. It never changes.
#[must_use]
pub fn placement_hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}
