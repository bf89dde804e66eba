//! Reading streams: from any place on, up to any place, then live.
//!
//! A [`StreamReader`] reads some shards of one stream, each a [`ShardReader`] in it. Where a shard begins and ends is
//! worked out in `place`; pages of history come from the store (`pages`), under a budget (`budget`), and what was just
//! appended from memory (`tail`), where the shard's owner puts it. What cannot be read is told of in `damage`. Readers are independent of each other and of
//! publishers: none waits for another, and the owner waits for none.
//!
//! Must never know who reads, or what the records are turned into. The state of a reader is its own.

mod budget;
mod damage;
mod fetch;
mod pages;
mod place;
mod reader;
mod rows;
mod shard;
mod tail;
mod trim;

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;
use weir_env::clock::Timestamp;
use weir_topic::TopicFilter;

use crate::keyspace::LogId;
use crate::keyspace::segment::Record;
use crate::metrics::Metrics;

pub(crate) use budget::ReadBudget;
pub use budget::ReadPermit;
pub use damage::Damage;
pub(crate) use damage::Damages;
pub use fetch::{FETCH_BYTES_AT_ONCE, FETCH_BYTES_MAX, FETCH_MESSAGES_MAX, Fetch, Fetched};
pub(crate) use pages::read_page;
pub(crate) use place::begin;
pub use reader::StreamReader;
pub use rows::oldest_row;
pub use shard::ShardReader;
pub(crate) use shard::{Opening, Shared};
pub(crate) use tail::{Tail, TailReader, Tails};
pub use trim::Trimmed;

/// A place in a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// The first message kept.
    Earliest,
    /// The next message published.
    #[default]
    Latest,
    /// The first message taken at or after this time.
    Time(Timestamp),
    /// This offset, of every shard.
    Offset(u64),
    /// An offset for each of some shards; of the others the first message kept.
    Offsets(Vec<(u8, u64)>),
}

impl Start {
    /// The offset that it names in `shard`, if it names one.
    pub(crate) fn offset(&self, shard: u8) -> Option<u64> {
        match self {
            Self::Earliest | Self::Latest | Self::Time(_) => None,
            Self::Offset(offset) => Some(*offset),
            Self::Offsets(offsets) => {
                Some(offsets.iter().find(|(of, _)| *of == shard).map_or(0, |(_, offset)| *offset))
            }
        }
    }
}

/// What is to be read of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Where reading begins. What is below the first message kept begins there, what is beyond the end begins with the
    /// next message published.
    pub start: Start,
    /// Where it ends, this message excluded. `latest` is the end of each shard as it is when the reader is opened; an
    /// offset or a time that is yet to come is waited for.
    pub until: Option<Start>,
    /// Only messages of these topics.
    pub filter: Option<TopicFilter>,
    /// Only messages with this key; shards that cannot hold it are not read.
    pub key: Option<Bytes>,
    /// Who reads, in the words of people; empty: nobody in particular.
    pub name: Arc<str>,
    /// Only this shard; a stream that does not have it is not read at all.
    pub shard: Option<u8>,
}

/// Messages of one shard, in order.
#[derive(Debug)]
pub struct ReadBatch {
    /// The shard.
    pub log: LogId,
    /// The messages with their offsets; none if all that was read was not wanted.
    pub records: Vec<(u64, Arc<Record>)>,
    /// The position after this batch: everything below was given or is not wanted.
    pub next: u64,
    /// The shard has reached the place where reading ends: nothing more comes of it.
    pub ended: bool,
    /// Held while the records are in memory for this reader.
    pub permit: Option<ReadPermit>,
}

/// Bounds on what readers of streams hold in memory, over all streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    /// Bytes that were read, from the store or from memory, and not yet taken. A reader that has none may
    /// always have one page; what is read ahead beyond that takes half of it at most.
    pub read_bytes: u64,
    /// Bytes of the newest messages kept for those who read them as they come.
    pub tail_bytes: u64,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { read_bytes: 64 * 1024 * 1024, tail_bytes: 64 * 1024 * 1024 }
    }
}

/// What all readers of a process share.
#[derive(Clone, Debug)]
pub(crate) struct ReadMemory {
    pub(crate) budget: Arc<ReadBudget>,
    pub(crate) tails: Arc<Tails>,
    pub(crate) damages: Arc<Damages>,
    /// Bytes that fetches may still have.
    pub(crate) fetches: Arc<Semaphore>,
}

impl ReadMemory {
    pub(crate) fn new(limits: ReadLimits, metrics: &Metrics) -> Self {
        let damages = Arc::new(Damages::new(metrics.damaged.clone()));
        let metrics = &metrics.reading;
        Self {
            damages,
            budget: Arc::new(ReadBudget::new(limits.read_bytes, metrics.clone())),
            tails: Arc::new(Tails::new(limits.tail_bytes, metrics.clone())),
            fetches: Arc::new(Semaphore::new(FETCH_BYTES_AT_ONCE)),
        }
    }
}
