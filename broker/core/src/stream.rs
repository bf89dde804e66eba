//! Reading a stream: from any position on, then live.
//!
//! A [`ShardReader`] reads one shard from the store and waits at its end for the owner to announce more.
//! Readers are independent of each other and of publishers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery, SharedStore};

use crate::error::{Error, Result};
use crate::keyspace::segment::Record;
use crate::keyspace::time_index::{self, IndexEntry};
use crate::keyspace::{LogId, tag};
use crate::shard::{Extent, read_records};

/// Bytes of segments read in one go.
const READ_BYTES: usize = 256 * 1024;

/// Where reading begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the first message kept.
    Earliest,
    /// With the next message published.
    Latest,
    /// With the first message taken at or after this time.
    Time(Timestamp),
    /// With this offset, of every shard.
    Offset(u64),
}

/// Reads one shard of a stream.
#[derive(Debug)]
pub struct ShardReader {
    store: SharedStore,
    log: LogId,
    next: u64,
    /// Messages before it are skipped.
    since: Timestamp,
    extent: watch::Receiver<Extent>,
}

impl ShardReader {
    /// A reader of `log` that begins at `start`; `extent` comes from the shard's owner.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn open(
        store: SharedStore,
        log: LogId,
        start: &Start,
        extent: watch::Receiver<Extent>,
    ) -> Result<Self> {
        let Extent { start: first, next: end } = *extent.borrow();
        let mut since = Timestamp::default();
        let next = match start {
            Start::Earliest => first,
            Start::Latest => end,
            Start::Offset(offset) => (*offset).clamp(first, end),
            Start::Time(at) => {
                since = *at;
                segment_at(&store, &log, *at).await?.unwrap_or(first).max(first)
            }
        };
        Ok(Self { store, log, next, since, extent })
    }

    /// The shard.
    #[must_use]
    pub fn log(&self) -> LogId {
        self.log
    }

    /// The offset of the next message.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Whether everything committed so far has been read.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.next >= self.extent.borrow().next
    }

    /// The end of everything committed so far: the offset that the next message published gets.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.extent.borrow().next
    }

    /// The next messages, at least one; waits at the end of the log. Cancel-safe.
    ///
    /// # Errors
    /// If the store fails, a segment is damaged, or the shard's owner is gone.
    pub async fn read(&mut self) -> Result<Vec<(u64, Arc<Record>)>> {
        loop {
            self.readable().await?;
            let records = self.try_read().await?;
            if !records.is_empty() {
                return Ok(records);
            }
        }
    }

    /// Waits at the end of the log until there is more. Cancel-safe.
    ///
    /// # Errors
    /// If the shard's owner is gone.
    pub async fn readable(&mut self) -> Result<()> {
        while self.is_at_end() {
            self.extent.changed().await.map_err(|_| Error::Closed)?;
        }
        Ok(())
    }

    /// The next messages, without waiting for more: none at the end of the log, nor if all that was read is
    /// to be skipped. Cancel-safe.
    ///
    /// # Errors
    /// If the store fails or a segment is damaged.
    pub async fn try_read(&mut self) -> Result<Vec<(u64, Arc<Record>)>> {
        if self.is_at_end() {
            return Ok(Vec::new());
        }
        let first = self.extent.borrow().start;
        let from = self.next.max(first);
        let (mut records, next) = read_records(&self.store, &self.log, from, READ_BYTES).await?;
        records.retain(|(_, record)| record.message.published_at >= self.since);
        if next <= from {
            // The store does not show yet what the owner announced.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.next = next.max(from);
        Ok(records)
    }
}

/// The base of the segment in which the first message at or after `at` may be.
async fn segment_at(store: &SharedStore, log: &LogId, at: Timestamp) -> Result<Option<u64>> {
    let (begin, _) = log.range(tag::TIME_INDEX);
    let end = time_index::key(log, at, 0);
    let query = RangeQuery { begin: begin.into(), end: end.into(), limit: 1, target_bytes: 0, reverse: true };
    let page = store.begin().get_range(query, Isolation::Snapshot).await?;
    let Some((key, value)) = page.pairs.into_iter().next() else { return Ok(None) };
    Ok(Some(IndexEntry::decode(&key, value)?.base))
}
