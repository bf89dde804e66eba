//! A batch of a stream from a place on, for those who pull: nothing is kept of it here.
//!
//! Whoever asks keeps the places that come with the answer. Reads by a [`StreamReader`] and owns nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weir_env::clock::Instant;

use super::{ReadBatch, ReadOptions, Start, StreamReader};
use crate::catalog::Object;
use crate::core::Core;
use crate::error::Result;
use crate::keyspace::segment::Record;

/// Longest time that one fetch reads: it may filter most of what it reads away. It goes on at `next`.
const READ_TIME: Duration = Duration::from_secs(1);

/// Messages of a fetch at most.
pub const FETCH_MESSAGES_MAX: usize = 10_000;
/// Bytes of messages of a fetch at most, but for one that is larger.
pub const FETCH_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Fetch {
    /// What of the stream. Reading ends at the ends that the shards have now, whatever this says of that.
    pub options: ReadOptions,
    /// Messages at most, one at least.
    pub max_messages: usize,
    /// Bytes of messages at most; but the first message is there, however large it is.
    pub max_bytes: u64,
    /// How long to wait for a message if there is none.
    pub wait: Duration,
}

/// What a fetch gives.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    /// Shard, offset and message; those of one shard in order.
    pub messages: Vec<(u8, u64, Arc<Record>)>,
    /// Where to go on, of each shard that was asked for.
    pub next: BTreeMap<u8, u64>,
    /// Where each shard ended when this began.
    pub ends: BTreeMap<u8, u64>,
}

impl Core {
    /// Messages of a stream.
    ///
    /// # Errors
    /// If a shard cannot be taken over or read.
    pub async fn fetch(&self, stream: &Arc<Object>, fetch: &Fetch) -> Result<Fetched> {
        let started = self.clock().now();
        let mut done = Fetched::default();
        for (report, log) in self.describe(stream).await?.iter().zip(&stream.logs) {
            done.ends.insert(log.shard, report.extent.next);
        }
        // What is there is read first, up to the ends as they are: reading never waits for it.
        let options = ReadOptions { until: Some(Start::Latest), ..fetch.options.clone() };
        let places: Vec<(u8, u64)> = self.reader(stream, &options).await?.positions();
        done.next.extend(places.iter().copied());
        done.ends.retain(|shard, _| places.iter().any(|(asked, _)| asked == shard));
        let count = places.len().max(1);
        let first = usize::try_from(self.context.seed.next_u64()).unwrap_or(0) % count;
        for n in 0..places.len() {
            // Each time another shard is the first: none takes all the room for ever.
            let Some((shard, from)) = places.get((first + n) % count) else { continue };
            let options = ReadOptions { shard: Some(*shard), ..options.clone() };
            let mut reader = self.idle_reader();
            self.introduce(&mut reader, stream, &options.name);
            reader.add(self.shard_reader(stream, *shard, *from, &options).await?);
            self.read_until(&mut reader, fetch, &mut done, started + READ_TIME).await?;
            if done.is_full(fetch) {
                return Ok(done);
            }
        }
        if done.messages.is_empty() && !fetch.wait.is_zero() {
            self.wait_for(stream, fetch, &mut done, started + fetch.wait).await?;
        }
        Ok(done)
    }

    /// Reads until the place where reading ends, or until there is enough.
    async fn read_until(
        &self,
        reader: &mut StreamReader,
        fetch: &Fetch,
        done: &mut Fetched,
        deadline: Instant,
    ) -> Result<()> {
        while !reader.is_ended() && !done.is_full(fetch) && self.clock().now() < deadline {
            done.take(reader.next().await?, fetch);
        }
        Ok(())
    }

    /// Waits at the ends for a message, until `deadline`.
    async fn wait_for(
        &self,
        stream: &Arc<Object>,
        fetch: &Fetch,
        done: &mut Fetched,
        deadline: Instant,
    ) -> Result<()> {
        let options = ReadOptions { until: None, ..fetch.options.clone() };
        let mut reader = self.idle_reader();
        self.introduce(&mut reader, stream, &options.name);
        for (shard, from) in done.next.clone() {
            reader.add(self.shard_reader(stream, shard, from, &options).await?);
        }
        while done.messages.is_empty() {
            match tokio::time::timeout_at(deadline, reader.next()).await {
                Ok(batch) => done.take(batch?, fetch),
                Err(_) => break,
            }
        }
        Ok(())
    }
}

impl Fetched {
    fn is_full(&self, fetch: &Fetch) -> bool {
        self.messages.len() >= fetch.max_messages || self.bytes() >= fetch.max_bytes
    }

    fn bytes(&self) -> u64 {
        self.messages.iter().map(|(_, _, record)| record.message.size() as u64).sum()
    }

    /// Adds a batch as far as there is room.
    fn take(&mut self, batch: ReadBatch, fetch: &Fetch) {
        let shard = batch.log.shard;
        let mut bytes = self.bytes();
        for (offset, record) in batch.records {
            let size = record.message.size() as u64;
            let fits = self.messages.is_empty()
                || (self.messages.len() < fetch.max_messages && bytes + size <= fetch.max_bytes);
            if !fits {
                self.next.insert(shard, offset);
                return;
            }
            bytes += size;
            self.messages.push((shard, offset, record));
        }
        self.next.insert(shard, batch.next);
    }
}
