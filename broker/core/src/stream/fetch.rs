//! A batch of a stream from a place on, for those who pull: nothing is kept of it here.
//!
//! Whoever asks keeps the places that come with the answer. Reads by a [`StreamReader`] and owns nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use weir_env::clock::Instant;

use super::{ReadBatch, ReadOptions, Start, StreamReader};
use crate::catalog::Object;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::keyspace::segment::Record;

/// Longest time that one fetch reads: it may filter most of what it reads away. It goes on at `next`.
const READ_TIME: Duration = Duration::from_secs(1);

/// Messages of a fetch at most.
pub const FETCH_MESSAGES_MAX: usize = 10_000;
/// Bytes of messages of a fetch at most, but for one that is larger.
pub const FETCH_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes that all fetches under way may have in memory: messages, and as much again for what is made of them.
pub const FETCH_BYTES_AT_ONCE: usize = 64 * 1024 * 1024;

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
#[derive(Debug, Default)]
pub struct Fetched {
    /// Shard, offset and message; those of one shard in order.
    pub messages: Vec<(u8, u64, Arc<Record>)>,
    /// Where to go on, of each shard that was asked for.
    pub next: BTreeMap<u8, u64>,
    /// Where each shard ended when this began.
    pub ends: BTreeMap<u8, u64>,
    /// Room for them in memory, to be held as long as they or what is made of them.
    pub permit: Option<OwnedSemaphorePermit>,
}

impl Core {
    /// Messages of a stream. Waits for room among other fetches, which have none while they wait for messages.
    ///
    /// # Errors
    /// If a shard cannot be taken over or read.
    pub async fn fetch(&self, stream: &Arc<Object>, fetch: &Fetch) -> Result<Fetched> {
        let deadline = self.clock().now() + fetch.wait;
        let mut done = Fetched { permit: Some(self.fetch_room(fetch).await?), ..Fetched::default() };
        let started = self.clock().now();
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
            if self.read_until(&mut reader, fetch, &mut done, started + READ_TIME).await? {
                return Ok(done);
            }
        }
        if done.messages.is_empty() && !fetch.wait.is_zero() {
            done.permit = None;
            self.wait_for(stream, fetch, &mut done, deadline).await?;
        }
        Ok(done)
    }

    async fn fetch_room(&self, fetch: &Fetch) -> Result<OwnedSemaphorePermit> {
        let reading = &self.context.reading;
        let bytes = u32::try_from(2 * fetch.max_bytes.min(FETCH_BYTES_MAX)).unwrap_or(u32::MAX);
        if let Ok(permit) = Arc::clone(&reading.fetches).try_acquire_many_owned(bytes) {
            return Ok(permit);
        }
        self.context.metrics.reading.fetches_held_up.inc();
        Arc::clone(&reading.fetches).acquire_many_owned(bytes).await.map_err(|_| Error::Closed)
    }

    /// Reads until the place where reading ends, or until there is enough: whether there is.
    async fn read_until(
        &self,
        reader: &mut StreamReader,
        fetch: &Fetch,
        done: &mut Fetched,
        deadline: Instant,
    ) -> Result<bool> {
        while !reader.is_ended() && self.clock().now() < deadline {
            let Ok(batch) = tokio::time::timeout_at(deadline, reader.next()).await else { break };
            if done.take(batch?, fetch) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits at the ends for a message, until `deadline`. What it reads meanwhile has the room of any reader.
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
                Ok(batch) => {
                    let batch = batch?;
                    if !batch.records.is_empty() {
                        done.permit = Some(self.fetch_room(fetch).await?);
                    }
                    done.take(batch, fetch);
                }
                Err(_) => break,
            }
        }
        Ok(())
    }
}

impl Fetched {
    fn bytes(&self) -> u64 {
        self.messages.iter().map(|(_, _, record)| record.message.size() as u64).sum()
    }

    /// Adds a batch as far as there is room. Whether it is full: then nothing may be added that comes later, however
    /// small it is, as it would leave a hole.
    fn take(&mut self, batch: ReadBatch, fetch: &Fetch) -> bool {
        let shard = batch.log.shard;
        let mut bytes = self.bytes();
        for (offset, record) in batch.records {
            let size = record.message.size() as u64;
            let fits = self.messages.is_empty()
                || (self.messages.len() < fetch.max_messages && bytes + size <= fetch.max_bytes);
            if !fits {
                self.next.insert(shard, offset);
                return true;
            }
            bytes += size;
            self.messages.push((shard, offset, record));
        }
        self.next.insert(shard, batch.next);
        self.messages.len() >= fetch.max_messages || bytes >= fetch.max_bytes
    }
}
