//! The tasks that write retained messages: each has one commit in flight, which takes along what has come since
//! the last one, in the order it came.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery, Transaction};
use weir_topic::TopicName;

use super::fence::Fences;
use super::{MESSAGE_FORMAT, QUEUE_MAX, Shared, decode_message, topic_hash};
use crate::inbox::Waiter;
use crate::keyspace::retained::{
    self, CHUNK_BYTES, RetainedBlobId, RetainedUsage, RetainedValue, encode_chunk,
};
use crate::keyspace::session::shard_of;
use crate::keyspace::timer::{Timer, TimerId, TimerKind};
use crate::keyspace::{VirtualShard, Writer};
use crate::message::Message;
use crate::sessions::{Retry, SessionRef};
use crate::{Error, Result};

/// Longest encoded message that is kept in one value.
const INLINE_MAX: usize = 65_536;
/// Bytes of one transaction.
const BATCH_BYTES: usize = 500_000;
/// Chunks in one transaction.
const CHUNKS_PER_TRANSACTION: usize = 5;
/// Time after which chunks whose message never came are cleared. Much longer than a write ever takes.
const HOLD: Duration = Duration::from_secs(3_600);
/// Holds handled in one sweep.
const HOLDS_MAX: usize = 100;

/// What is to happen to the message of a topic.
pub(super) enum Change {
    /// It is replaced.
    Set {
        /// The new message, encoded.
        encoded: Bytes,
        /// When the new message expires.
        expires_at: Option<Timestamp>,
        /// Where its chunks are, once they are written.
        chunks: Option<(RetainedBlobId, TimerId)>,
    },
    /// It is removed.
    Clear,
    /// It is removed if it has expired.
    Expire,
}

impl Change {
    pub(super) fn set(message: &Message) -> Self {
        let encoded = message.encode(Writer::new(MESSAGE_FORMAT)).finish().into();
        Self::Set { encoded, expires_at: message.expires_at, chunks: None }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Set { encoded, chunks: None, .. } => encoded.len(),
            Self::Set { .. } | Self::Clear | Self::Expire => 0,
        }
    }
}

/// A change of one topic.
pub(super) struct Request {
    pub(super) topic: TopicName,
    pub(super) change: Change,
    /// The session it comes from, where another connection might take that over.
    pub(super) publisher: Option<Box<SessionRef>>,
    /// Absent if nobody wants to know.
    pub(super) waiter: Option<Waiter>,
}

/// What a change came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Stored,
    Cleared,
    Expired,
    /// There was nothing to do.
    Nothing,
    Full(&'static str),
    /// Its publisher has connected elsewhere.
    Fenced,
}

pub(super) struct Task {
    shared: Arc<Shared>,
    /// Counts what is done.
    done_tx: watch::Sender<u64>,
    stop: CancellationToken,
}

impl Task {
    pub(super) fn new(shared: Arc<Shared>, done_tx: watch::Sender<u64>, stop: CancellationToken) -> Self {
        Self { shared, done_tx, stop }
    }

    pub(super) async fn run(self, mut task_rx: mpsc::Receiver<Request>) {
        let mut queue = VecDeque::new();
        loop {
            if queue.is_empty() {
                let received = tokio::select! {
                    biased;
                    received = task_rx.recv() => received,
                    () = self.stop.cancelled(), if !task_rx.is_closed() => {
                        task_rx.close();
                        continue;
                    }
                };
                let Some(request) = received else { return };
                queue.push_back(request);
            }
            while queue.len() < QUEUE_MAX
                && let Ok(request) = task_rx.try_recv()
            {
                queue.push_back(request);
            }
            let before = queue.len();
            self.commit(&mut queue).await;
            self.done_tx.send_modify(|done| *done += (before - queue.len()) as u64);
        }
    }

    /// Commits one transaction's worth from the front of the queue.
    async fn commit(&self, queue: &mut VecDeque<Request>) {
        let Some(first) = queue.front_mut() else { return };
        if let Err(error) = write_chunks(&self.shared, first).await {
            if let Some(waiter) = queue.pop_front().and_then(|request| request.waiter) {
                waiter.complete(Err(error));
            }
            return;
        }
        let mut bytes = 0;
        let fits = queue.iter().enumerate().take_while(|(nth, request)| {
            // A key and what its conflict ranges add; the second large message waits for its turn.
            bytes += 5 * request.topic.as_bytes().len() + 200 + request.change.bytes();
            *nth == 0 || bytes <= BATCH_BYTES && request.change.bytes() <= INLINE_MAX
        });
        let requests: Vec<Request> = {
            let count = fits.count();
            queue.drain(..count).collect()
        };
        let mut retry = Retry::new(self.shared.clock);
        let outcome = loop {
            let mut tx = self.shared.store.begin();
            let outcome = apply(&self.shared, &mut *tx, &requests).await;
            if let Some(outcome) = retry.commit(tx, outcome).await {
                break outcome;
            }
        };
        match outcome {
            Ok(((outcomes, usages), _)) => {
                for (bucket, usage) in usages {
                    self.shared.usage.set(bucket, usage);
                }
                for (request, outcome) in requests.into_iter().zip(outcomes) {
                    self.count(outcome);
                    if let Some(waiter) = request.waiter {
                        waiter.complete(match outcome {
                            Outcome::Full(what) => Err(Error::Full(what)),
                            Outcome::Fenced => Err(Error::Fenced),
                            Outcome::Stored | Outcome::Cleared | Outcome::Expired | Outcome::Nothing => {
                                Ok(())
                            }
                        });
                    }
                }
            }
            Err(error) => {
                if let Error::Fenced = error {
                    self.shared.metrics.fenced.inc_by(requests.len() as u64);
                }
                for waiter in requests.into_iter().filter_map(|request| request.waiter) {
                    waiter.complete(Err(error.clone()));
                }
            }
        }
    }

    fn count(&self, outcome: Outcome) {
        let metrics = &self.shared.metrics;
        match outcome {
            Outcome::Stored => metrics.stored.inc(),
            Outcome::Cleared => metrics.cleared.inc(),
            Outcome::Expired => metrics.expired.inc(),
            Outcome::Full(_) => metrics.refused.inc(),
            Outcome::Fenced => metrics.fenced.inc(),
            Outcome::Nothing => 0,
        };
    }
}

/// Usage by bucket, as far as it has been read.
type Usages = Vec<(u8, RetainedUsage)>;

/// Applies changes in order. A repeat after an unknown outcome comes to the same records.
async fn apply(
    shared: &Shared,
    tx: &mut dyn Transaction,
    requests: &[Request],
) -> Result<(Vec<Outcome>, Usages)> {
    let mut usages = Usages::new();
    let mut outcomes = Vec::with_capacity(requests.len());
    let mut fences = Fences::new(shared, tx).await?;
    for request in requests {
        if !fences.is_current(shared, tx, request.publisher.as_deref()).await? {
            give_up(shared, tx, request);
            outcomes.push(Outcome::Fenced);
            continue;
        }
        let bucket = RetainedUsage::bucket(&request.topic);
        let at = match usages.iter().position(|(read, _)| *read == bucket) {
            Some(at) => at,
            None => {
                let value = tx.get(&RetainedUsage::key(bucket), Isolation::Serializable).await?;
                usages.push((bucket, value.map(RetainedUsage::decode).transpose()?.unwrap_or_default()));
                usages.len() - 1
            }
        };
        let others = others(shared, &usages, bucket);
        if let Some((_, usage)) = usages.get_mut(at) {
            outcomes.push(apply_one(shared, tx, request, usage, others).await?);
        }
    }
    for (bucket, usage) in &usages {
        tx.set(&RetainedUsage::key(*bucket), &usage.encode());
    }
    Ok((outcomes, usages))
}

/// The usage of all buckets but `bucket`: as of this transaction where it has read it, else as last known.
fn others(shared: &Shared, usages: &Usages, bucket: u8) -> RetainedUsage {
    let known = shared.usage.sum(|other| usages.iter().all(|(read, _)| *read != other));
    usages.iter().filter(|(read, _)| *read != bucket).fold(known, |sum, (_, usage)| RetainedUsage {
        messages: sum.messages.saturating_add(usage.messages),
        bytes: sum.bytes.saturating_add(usage.bytes),
    })
}

async fn apply_one(
    shared: &Shared,
    tx: &mut dyn Transaction,
    request: &Request,
    usage: &mut RetainedUsage,
    others: RetainedUsage,
) -> Result<Outcome> {
    let key = retained::key(&request.topic);
    let old = tx.get(&key, Isolation::Serializable).await?.map(RetainedValue::decode).transpose()?;
    let old_bytes = old.as_ref().map_or(0, |old| stored_bytes(&key, old.len()));
    let without = RetainedUsage {
        messages: usage.messages.saturating_sub(u64::from(old.is_some())),
        bytes: usage.bytes.saturating_sub(old_bytes),
    };
    let (with, new) = match &request.change {
        Change::Set { encoded, expires_at, chunks } => {
            let with = RetainedUsage {
                messages: without.messages + 1,
                bytes: without.bytes.saturating_add(stored_bytes(&key, encoded.len() as u64)),
            };
            let full = exceeded(shared, with, *usage, others);
            match chunks {
                Some(_) if full.is_some() => give_up(shared, tx, request),
                // From now on the message holds its chunks.
                Some((_, timer)) => tx.clear(&hold_key(shared, &request.topic, *timer)),
                None => {}
            }
            if let Some(what) = full {
                return Ok(Outcome::Full(what));
            }
            let len = encoded.len() as u64;
            let value = match chunks {
                None => RetainedValue::Inline(encoded.clone()),
                Some((id, _)) => RetainedValue::Chunks { id: *id, len, expires_at: *expires_at },
            };
            (with, Some(value))
        }
        Change::Expire if !has_expired(old.as_ref(), shared.clock.wall())? => return Ok(Outcome::Nothing),
        Change::Clear | Change::Expire => (without, None),
    };
    // A repeat after an unknown outcome meets the chunks that it is about to refer to.
    if let Some(RetainedValue::Chunks { id, .. }) = &old
        && !matches!(&new, Some(RetainedValue::Chunks { id: new, .. }) if new == id)
    {
        clear_chunks(tx, id);
    }
    *usage = with;
    Ok(match (new, &request.change) {
        (Some(new), _) => {
            tx.set(&key, &new.encode());
            Outcome::Stored
        }
        (None, Change::Expire) => {
            tx.clear(&key);
            Outcome::Expired
        }
        (None, Change::Clear | Change::Set { .. }) => {
            tx.clear(&key);
            if old.is_some() { Outcome::Cleared } else { Outcome::Nothing }
        }
    })
}

/// Clears the chunks of a message that is not kept.
fn give_up(shared: &Shared, tx: &mut dyn Transaction, request: &Request) {
    if let Change::Set { chunks: Some((id, timer)), .. } = &request.change {
        tx.clear(&hold_key(shared, &request.topic, *timer));
        clear_chunks(tx, id);
    }
}

fn hold_key(shared: &Shared, topic: &TopicName, timer: TimerId) -> Vec<u8> {
    Timer::key(hold_shard(shared, topic), TimerKind::RetainedHold, timer)
}

/// Whether there is a message, and it has expired.
fn has_expired(old: Option<&RetainedValue>, now: Timestamp) -> Result<bool> {
    let expires_at = match old {
        None => None,
        Some(RetainedValue::Inline(encoded)) => decode_message(encoded.clone())?.expires_at,
        Some(RetainedValue::Chunks { expires_at, .. }) => *expires_at,
    };
    Ok(expires_at.is_some_and(|at| at <= now))
}

/// Which limit `with` would break, if it is more than `before` of what is limited.
fn exceeded(
    shared: &Shared,
    with: RetainedUsage,
    before: RetainedUsage,
    others: RetainedUsage,
) -> Option<&'static str> {
    let options = &shared.options;
    if with.messages > before.messages && with.messages.saturating_add(others.messages) > options.messages_max
    {
        Some("retained messages")
    } else if with.bytes > before.bytes && with.bytes.saturating_add(others.bytes) > options.bytes_max {
        Some("retained bytes")
    } else {
        None
    }
}

fn stored_bytes(key: &[u8], message: u64) -> u64 {
    (key.len() as u64).saturating_add(message)
}

fn clear_chunks(tx: &mut dyn Transaction, id: &RetainedBlobId) {
    let (begin, end) = id.chunks();
    tx.clear_range(&begin, &end);
}

fn hold_shard(shared: &Shared, topic: &TopicName) -> VirtualShard {
    shard_of(topic_hash(topic), shared.virtual_shards)
}

/// Writes the chunks of a message that is too large for one value, with a timer that clears them again if the
/// message itself never follows.
async fn write_chunks(shared: &Shared, request: &mut Request) -> Result<()> {
    let shard = hold_shard(shared, &request.topic);
    let Change::Set { encoded, chunks: written @ None, .. } = &mut request.change else { return Ok(()) };
    if encoded.len() <= INLINE_MAX {
        return Ok(());
    }
    let id = RetainedBlobId(shared.seed.next_id());
    let timer = TimerId { due: shared.clock.wall().saturating_add(HOLD), seq: shared.seed.next_u64() };
    let chunks: Vec<&[u8]> = encoded.chunks(CHUNK_BYTES).collect();
    for (nth, some) in chunks.chunks(CHUNKS_PER_TRANSACTION).enumerate() {
        let mut retry = Retry::new(shared.clock);
        loop {
            let mut tx = shared.store.begin();
            if nth == 0 {
                let hold = Timer::RetainedHold(id, request.topic.clone());
                tx.set(&Timer::key(shard, hold.kind(), timer), &hold.encode());
            }
            for (number, chunk) in (nth * CHUNKS_PER_TRANSACTION..).zip(some) {
                // A packet of 16 MiB has 187 chunks; one that had more than there are numbers cannot be received.
                if let Ok(number) = u16::try_from(number) {
                    tx.set(&id.chunk(number), &encode_chunk(chunk));
                }
            }
            if let Some(outcome) = retry.commit(tx, Ok(())).await {
                outcome?;
                break;
            }
        }
    }
    *written = Some((id, timer));
    Ok(())
}

/// Clears chunks that an interrupted write has left.
pub(super) async fn sweep_holds(shared: &Shared, now: Timestamp) -> Result<()> {
    let mut left = HOLDS_MAX;
    for shard in (0..shared.virtual_shards).map(VirtualShard) {
        let (begin, end) = Timer::due(shard, TimerKind::RetainedHold, now);
        let mut tx = shared.store.begin();
        let page = tx.get_range(RangeQuery::new(begin, end).limit(left), Isolation::Snapshot).await?;
        for (key, value) in page.pairs {
            let Timer::RetainedHold(id, topic) = Timer::decode(TimerKind::RetainedHold, value)? else {
                continue;
            };
            let mut retry = Retry::new(shared.clock);
            loop {
                let mut tx = shared.store.begin();
                let outcome = release_hold(&mut *tx, &key, &id, &topic).await;
                if let Some(outcome) = retry.commit(tx, outcome).await {
                    outcome?;
                    break;
                }
            }
            left -= 1;
        }
        if left == 0 {
            break;
        }
    }
    Ok(())
}

async fn release_hold(
    tx: &mut dyn Transaction,
    timer: &[u8],
    id: &RetainedBlobId,
    topic: &TopicName,
) -> Result<()> {
    let value = tx.get(&retained::key(topic), Isolation::Serializable).await?;
    let is_wanted = match value.map(RetainedValue::decode).transpose()? {
        Some(RetainedValue::Chunks { id: wanted, .. }) => wanted == *id,
        Some(RetainedValue::Inline(_)) | None => false,
    };
    if !is_wanted {
        clear_chunks(tx, id);
    }
    tx.clear(timer);
    Ok(())
}
