//! Retained messages: the last message of each topic that asked to be kept.
//!
//! Writes to one topic go through one task, so the last call wins; reads go to the store. How much is retained
//! is written with it, so the limits need no count at the start; tasks that write at the same time may exceed
//! them by what is in flight. With other pods a write is refused whose pod is no member any more, or whose publisher
//! has connected elsewhere: see `fence`.

mod fence;
mod scan;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use smallvec::SmallVec;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_storage::{Isolation, RangeQuery, SharedStore, Transaction, key_after};
use weir_topic::{TopicFilter, TopicName};

use crate::cluster::Cluster;
pub use crate::inbox::Completion;
use crate::inbox::Waiter;
use crate::keyspace::retained::{self, RetainedUsage, RetainedValue, decode_chunk};
use crate::keyspace::{DecodeError, Reader, placement_hash};
use crate::message::Message;
use crate::sessions::SessionRef;
use crate::{Error, Result};
use writer::{Change, Request, Task};

/// Requests waiting for one task, beside the bound on their bytes.
const QUEUE_MAX: usize = 1_024;
/// Topics that one call of [`Retained::matching`] or [`Retained::sweep`] looks at.
const LOOKS_MAX: usize = 20_000;
/// Format of an encoded message.
const MESSAGE_FORMAT: u8 = 1;

/// How retained messages are kept.
#[derive(Clone, Copy, Debug)]
pub struct RetainedOptions {
    /// Writing tasks, each with one commit in flight; at most sixteen.
    pub tasks: u8,
    /// Bytes of messages that are not yet durable; who adds more waits.
    pub pending_bytes_max: u32,
    /// Messages kept; more are refused.
    pub messages_max: u64,
    /// Bytes of topics and messages kept; more are refused.
    pub bytes_max: u64,
}

impl Default for RetainedOptions {
    fn default() -> Self {
        Self { tasks: 2, pending_bytes_max: 32 << 20, messages_max: 1_000_000, bytes_max: 1 << 30 }
    }
}

/// What is counted of retained messages. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct RetainedMetrics {
    /// Messages kept.
    pub stored: Counter,
    /// Messages removed by a publisher.
    pub cleared: Counter,
    /// Messages removed because they had expired.
    pub expired: Counter,
    /// Messages refused because of a limit.
    pub refused: Counter,
    /// Messages refused because their publisher has connected elsewhere, or this pod is no member any more.
    pub fenced: Counter,
}

impl RetainedMetrics {
    /// Makes the counters part of `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("retained_stored", "Retained messages stored", self.stored.clone());
        registry.register("retained_cleared", "Retained messages removed", self.cleared.clone());
        registry.register("retained_expired", "Retained messages expired", self.expired.clone());
        registry.register("retained_refused", "Retained messages refused", self.refused.clone());
        registry.register(
            "retained_fenced",
            "Retained messages refused because their publisher has connected elsewhere, or this pod is gone",
            self.fenced.clone(),
        );
    }
}

/// Where the next page of a filter begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetainedCursor(Bytes);

/// Some of the retained messages that a filter matches.
#[derive(Clone, Debug, Default)]
pub struct RetainedPage {
    /// In the order of their topics.
    pub messages: Vec<Message>,
    /// Where the next page begins; absent after the last one. A page may be empty and not the last.
    pub next: Option<RetainedCursor>,
}

/// The retained messages in a store. Cheap to clone.
#[derive(Clone)]
pub struct Retained {
    shared: Arc<Shared>,
    lines: Arc<[Line]>,
    pending_bytes: Arc<Semaphore>,
    pending_bytes_max: u32,
    /// Where the sweep goes on.
    swept: Arc<Mutex<Option<RetainedCursor>>>,
}

/// A moment in the life of the line, for each task.
#[derive(Clone, Debug)]
pub struct LineEnd(SmallVec<[u64; 2]>);

/// The way to one task.
struct Line {
    task_tx: mpsc::Sender<Request>,
    /// Requests put in line, each counted before it can be done.
    taken: AtomicU64,
    /// Requests done, one way or another.
    done_rx: watch::Receiver<u64>,
}

impl Line {
    fn put(&self, permit: mpsc::Permit<'_, Request>, request: Request) {
        self.taken.fetch_add(1, Ordering::Relaxed);
        permit.send(request);
    }
}

/// What the handle and the tasks have in common.
struct Shared {
    store: SharedStore,
    clock: Clock,
    seed: Seed,
    virtual_shards: u16,
    cluster: Option<Cluster>,
    options: RetainedOptions,
    metrics: RetainedMetrics,
    usage: Usage,
}

/// The usage of each bucket as this process knows it.
#[derive(Default)]
struct Usage([(AtomicU64, AtomicU64); RetainedUsage::BUCKETS as usize]);

impl Usage {
    fn set(&self, bucket: u8, usage: RetainedUsage) {
        if let Some((messages, bytes)) = self.0.get(usize::from(bucket)) {
            messages.store(usage.messages, Ordering::Relaxed);
            bytes.store(usage.bytes, Ordering::Relaxed);
        }
    }

    /// Of all buckets for which `counts`.
    fn sum(&self, counts: impl Fn(u8) -> bool) -> RetainedUsage {
        let buckets = (0..).zip(&self.0).filter(|(bucket, _)| counts(*bucket));
        buckets.fold(RetainedUsage::default(), |sum, (_, (messages, bytes))| RetainedUsage {
            messages: sum.messages.saturating_add(messages.load(Ordering::Relaxed)),
            bytes: sum.bytes.saturating_add(bytes.load(Ordering::Relaxed)),
        })
    }
}

impl Shared {
    async fn read_usage(&self) -> Result<()> {
        let mut tx = self.store.begin();
        for bucket in 0..RetainedUsage::BUCKETS {
            if let Some(value) = tx.get(&RetainedUsage::key(bucket), Isolation::Snapshot).await? {
                self.usage.set(bucket, RetainedUsage::decode(value)?);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Retained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retained").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

/// Where retained messages live, and what their tasks run on.
#[derive(Clone, Debug)]
pub struct RetainedContext {
    /// The store.
    pub store: SharedStore,
    /// For expiry.
    pub clock: Clock,
    /// For the ids of large messages.
    pub seed: Seed,
    /// Of the keyspace.
    pub virtual_shards: u16,
    /// The other pods, if there may be any.
    pub cluster: Option<Cluster>,
}

impl Retained {
    /// Reads how much is retained and starts the tasks on `tracker`. After `stop` they finish what they have been
    /// given and end.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn spawn(
        context: RetainedContext,
        options: RetainedOptions,
        metrics: &RetainedMetrics,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self> {
        let RetainedContext { store, clock, seed, virtual_shards, cluster } = context;
        let (usage, seed) = (Usage::default(), seed.fork("retained"));
        let metrics = metrics.clone();
        let shared =
            Arc::new(Shared { store, clock, seed, virtual_shards, cluster, options, metrics, usage });
        shared.read_usage().await?;
        // Each bucket belongs to one task, so that tasks do not conflict about its usage.
        let lines = (0..options.tasks.clamp(1, RetainedUsage::BUCKETS)).map(|_| {
            let (task_tx, task_rx) = mpsc::channel(QUEUE_MAX);
            let (done_tx, done_rx) = watch::channel(0);
            tracker.spawn(Task::new(Arc::clone(&shared), done_tx, stop.clone()).run(task_rx));
            Line { task_tx, taken: AtomicU64::new(0), done_rx }
        });
        let lines = lines.collect();
        let pending_bytes = Arc::new(Semaphore::new(options.pending_bytes_max as usize));
        let pending_bytes_max = options.pending_bytes_max;
        Ok(Self { shared, lines, pending_bytes, pending_bytes_max, swept: Arc::default() })
    }

    /// Keeps `message` as the one retained at its topic; an empty payload keeps none. Waits while too much is
    /// pending. Its place in the order of its topic is fixed when this returns.
    ///
    /// The completion is [`Error::Full`] if a limit is reached, and [`Error::Fenced`] if this pod is no member of its
    /// cluster any more; what was retained before stays.
    ///
    /// # Errors
    /// [`Error::Closed`] after the stop. Cancel-safe: a message whose future is dropped was not taken.
    pub async fn set(&self, message: Arc<Message>) -> Result<Completion> {
        self.request_set(message, None).await
    }

    /// As [`Self::set`], for the connection that has `publisher`. With other pods the completion is [`Error::Fenced`]
    /// also if the session has ended or another connection has taken it over before the message is kept.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub async fn set_by(&self, message: Arc<Message>, publisher: &SessionRef) -> Result<Completion> {
        let publisher = self.shared.cluster.is_some().then(|| Box::new(publisher.clone()));
        self.request_set(message, publisher).await
    }

    async fn request_set(
        &self,
        message: Arc<Message>,
        publisher: Option<Box<SessionRef>>,
    ) -> Result<Completion> {
        let topic = message.topic.clone();
        if message.payload.is_empty() {
            return self.request(topic, 256, Change::Clear, publisher).await;
        }
        self.request(topic, message.size(), Change::set(&message), publisher).await
    }

    /// Keeps nothing at `topic`.
    ///
    /// # Errors
    /// As [`Retained::set`].
    pub async fn clear(&self, topic: TopicName) -> Result<Completion> {
        self.request(topic, 256, Change::Clear, None).await
    }

    async fn request(
        &self,
        topic: TopicName,
        bytes: usize,
        change: Change,
        publisher: Option<Box<SessionRef>>,
    ) -> Result<Completion> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.pending_bytes_max);
        let permit = Arc::clone(&self.pending_bytes).acquire_many_owned(bytes).await;
        let (waiter, completion) = Waiter::new(permit.map_err(|_| Error::Closed)?);
        let line = self.line_of(&topic).ok_or(Error::Closed)?;
        let place = line.task_tx.reserve().await.map_err(|_| Error::Closed)?;
        line.put(place, Request { topic, change, publisher, waiter: Some(waiter) });
        Ok(completion)
    }

    fn line_of(&self, topic: &TopicName) -> Option<&Line> {
        let bucket = usize::from(RetainedUsage::bucket(topic));
        self.lines.get(bucket % self.lines.len())
    }

    /// Where the line ends now, for [`Self::caught_up`].
    #[must_use]
    pub fn line_end(&self) -> LineEnd {
        LineEnd(self.lines.iter().map(|line| line.taken.load(Ordering::Relaxed)).collect())
    }

    /// Waits until everything that was in line then can be read, or has failed. Cancel-safe.
    pub async fn caught_up(&self, end: &LineEnd) {
        for (line, taken) in self.lines.iter().zip(&end.0) {
            // A task that has stopped does no more.
            let _ = line.done_rx.clone().wait_for(|done| done >= taken).await;
        }
    }

    /// Reads again how much is retained: other pods retain too.
    ///
    /// # Errors
    /// If the store fails, or a record is damaged.
    pub async fn refresh_usage(&self) -> Result<()> {
        self.shared.read_usage().await
    }

    /// How much is retained.
    #[must_use]
    pub fn usage(&self) -> RetainedUsage {
        self.shared.usage.sum(|_| true)
    }

    /// Messages retained at topics that `filter` matches: at most `limit` (at least one), and none more once
    /// there are `target_bytes` of them. What has expired is left out.
    ///
    /// Without wildcard it is one read; a filter that ends in `#` is one range; levels of `+` are searched
    /// without reading what lies between the matches.
    ///
    /// # Errors
    /// If the store fails, or a record is damaged.
    pub async fn matching(
        &self,
        filter: &TopicFilter,
        after: Option<RetainedCursor>,
        limit: usize,
        target_bytes: usize,
    ) -> Result<RetainedPage> {
        let mut tx = self.shared.store.begin();
        let mut scan = scan::Scan::new(filter, after.map(|cursor| cursor.0), LOOKS_MAX);
        let mut page = RetainedPage::default();
        let mut bytes = 0;
        while page.messages.len() < limit.max(1) && (bytes < target_bytes || page.messages.is_empty()) {
            let Some((topic, value)) = scan.next(&mut *tx).await? else {
                page.next = scan.rest().map(RetainedCursor);
                return Ok(page);
            };
            if let Some(message) = self.live(&mut *tx, topic, value).await? {
                bytes += message.size();
                page.messages.push(message);
            }
        }
        page.next = scan.rest().map(RetainedCursor);
        Ok(page)
    }

    /// Reads the rest of a retained message that has not expired.
    async fn live(
        &self,
        tx: &mut dyn Transaction,
        topic: TopicName,
        value: Bytes,
    ) -> Result<Option<Message>> {
        let now = self.shared.clock.wall();
        let encoded = match RetainedValue::decode(value)? {
            RetainedValue::Inline(encoded) => Some(encoded),
            RetainedValue::Chunks { expires_at: Some(at), .. } if at <= now => None,
            RetainedValue::Chunks { id, len, .. } => {
                let mut bytes = BytesMut::new();
                let (begin, end) = id.chunks();
                let mut next = Some(RangeQuery::new(begin, end));
                while let Some(query) = next {
                    let page = tx.get_range(query.clone(), Isolation::Snapshot).await?;
                    next = query.after(&page);
                    for (_, chunk) in page.pairs {
                        bytes.extend_from_slice(&decode_chunk(chunk)?);
                    }
                }
                if bytes.len() as u64 != len {
                    return Err(DecodeError::Truncated("retained chunks").into());
                }
                Some(bytes.freeze())
            }
        };
        let message = encoded.map(decode_message).transpose()?.filter(|message| !message.is_expired(now));
        if message.is_none() {
            self.expire(topic);
        }
        Ok(message)
    }

    /// Has an expired message removed, if its task has room: the sweep meets it again otherwise.
    fn expire(&self, topic: TopicName) {
        if let Some(line) = self.line_of(&topic)
            && let Ok(place) = line.task_tx.try_reserve()
        {
            line.put(place, Request { topic, change: Change::Expire, publisher: None, waiter: None });
        }
    }

    /// Looks at some of the retained messages for ones that have expired, going round all of them in many calls,
    /// and clears what interrupted writes have left: call it each second or each minute. Returns how many
    /// expired messages it met.
    ///
    /// # Errors
    /// If the store fails, or a record is damaged.
    pub async fn sweep(&self, now: Timestamp) -> Result<usize> {
        writer::sweep_holds(&self.shared, now).await?;
        let (first, end) = retained::all();
        let begin = self.swept.lock().clone().map_or_else(|| first.into(), |cursor| cursor.0);
        let query = RangeQuery::new(begin, end).limit(LOOKS_MAX).target_bytes(1_000_000);
        let mut tx = self.shared.store.begin();
        let page = tx.get_range(query, Isolation::Snapshot).await?;
        let last = page.pairs.last().map(|(key, _)| RetainedCursor(key_after(key)));
        *self.swept.lock() = last.filter(|_| page.more);
        let mut met = 0;
        for (key, value) in page.pairs {
            let expires_at = match RetainedValue::decode(value)? {
                RetainedValue::Inline(encoded) => decode_message(encoded)?.expires_at,
                RetainedValue::Chunks { expires_at, .. } => expires_at,
            };
            if expires_at.is_some_and(|at| at <= now) {
                self.expire(retained::decode_key(&key)?);
                met += 1;
            }
        }
        Ok(met)
    }
}

fn decode_message(encoded: Bytes) -> Result<Message> {
    let (mut reader, _) = Reader::value(encoded, "retained message", MESSAGE_FORMAT)?;
    Ok(Message::decode(&mut reader)?)
}

/// Places the timers of `topic`.
fn topic_hash(topic: &TopicName) -> u64 {
    placement_hash(topic.as_bytes())
}
