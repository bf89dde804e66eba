//! Building one transaction out of all that waits: records of many publishers, queue state, retention.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use weir_env::clock::Timestamp;

use super::log::{Log, Trim};
use super::{AppendError, PendingAppend};
use crate::keyspace::log_blob::{self, CHUNK_BYTES_MAX};
use crate::keyspace::log_state::LogState;
use crate::keyspace::mark::{Mark, PublishId};
use crate::keyspace::owner::Epoch;
use crate::keyspace::queue::{AckBlock, Attempts, QueueFloor};
use crate::keyspace::segment::{self, INLINE_PAYLOAD_BYTES_MAX, Record, SegmentBuilder};
use crate::keyspace::time_index::{self, IndexEntry};
use crate::keyspace::{LogId, tag};
use crate::queue::DirtyQueue;

/// Bytes of records in one batch, about; the transaction stays below its target with what comes on top.
const BATCH_BYTES_TARGET: u64 = 500_000;
/// Bytes of blob chunks in one transaction.
const BLOB_TRANSACTION_BYTES: usize = 900_000;

/// A write of a batch.
#[derive(Clone, Debug)]
pub(crate) enum Mutation {
    Set(Vec<u8>, Bytes),
    Clear(Vec<u8>),
    ClearRange(Vec<u8>, Vec<u8>),
}

/// A publisher that waits for a batch.
#[derive(Debug)]
pub(crate) struct Waiting {
    offset: u64,
    reply: oneshot::Sender<Result<u64, AppendError>>,
    _permit: OwnedSemaphorePermit,
}

/// What a batch does to one log, applied to the log in memory once it is committed.
#[derive(Debug)]
pub(crate) struct LogChange {
    pub(crate) id: LogId,
    pub(crate) state: LogState,
    pub(crate) base: u64,
    pub(crate) records: Vec<Arc<Record>>,
    pub(crate) queue: Option<DirtyQueue>,
    pub(crate) trim: Option<Trim>,
}

/// One transaction of a shard, which may be repeated with the same bytes.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Identifies it in the log states it writes.
    pub(crate) id: [u8; 16],
    /// Chunks of large payloads: transactions of their own, before.
    pub(crate) blobs: Vec<Vec<Mutation>>,
    pub(crate) mutations: Vec<Mutation>,
    pub(crate) changes: Vec<LogChange>,
    pub(crate) waiting: Vec<Waiting>,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

impl Batch {
    /// Answers everybody who waits.
    pub(crate) fn answer(self, outcome: Result<(), AppendError>) {
        for waiting in self.waiting {
            // A publisher whose connection is gone does not want the answer.
            let _ = waiting.reply.send(outcome.clone().map(|()| waiting.offset));
        }
    }
}

/// Gathers a batch from `logs` for the owner of `epoch`.
pub(crate) fn build(
    logs: &mut BTreeMap<(u32, u8), Log>,
    id: [u8; 16],
    epoch: Epoch,
    now: Timestamp,
) -> Batch {
    let mut batch = Batch { id, ..Batch::default() };
    let mut blob_chunks = Vec::new();
    for log in logs.values_mut().filter(|log| log.has_work()) {
        if batch.bytes >= BATCH_BYTES_TARGET {
            break;
        }
        add_log(&mut batch, &mut blob_chunks, log, epoch, now);
    }
    batch.blobs = group_chunks(blob_chunks);
    batch
}

fn add_log(batch: &mut Batch, chunks: &mut Vec<Mutation>, log: &mut Log, epoch: Epoch, now: Timestamp) {
    let id = log.id;
    let base = log.state.next;
    let mut state = LogState { batch: batch.id, epoch, ..log.state };
    let mut segments = Segments { batch, log: id, builder: None, epoch };
    let mut records = Vec::new();
    let mut cost = 0;
    let limits = Limits::of(log);
    while segments.batch.bytes + cost < BATCH_BYTES_TARGET {
        let Some(pending) = log.pending.pop_front() else { break };
        if let Err(what) = limits.check(records.len() as u64, cost, pending.record.cost()) {
            let name = pending.object.definition.name.clone();
            let _ = pending.reply.send(Err(AppendError::Full { name, what }));
            continue;
        }
        let PendingAppend { mut record, publish, reply, permit, .. } = pending;
        record.message.published_at = now.max(state.last_ts);
        state.last_ts = record.message.published_at;
        let offset = state.next;
        state.next += 1;
        if record.message.payload.len() > INLINE_PAYLOAD_BYTES_MAX {
            chunk_payload(chunks, &id, offset, &mut record);
        }
        cost += record.cost();
        let record = segments.push(&mut state, offset, record);
        if let Some((publish, _)) = publish {
            segments.batch.mutations.push(mark(&id, &publish, offset, now));
        }
        segments.batch.waiting.push(Waiting { offset, reply, _permit: permit });
        records.push(record);
    }
    segments.finish(&mut state);
    batch.bytes += cost;
    batch.records += records.len() as u64;
    let trim = log.trim.take();
    if let Some(trim) = trim {
        state.start = state.start.max(trim.start);
        state.bytes_trimmed = state.bytes_trimmed.max(trim.bytes_trimmed);
        clear_below(batch, &id, &trim);
    }
    let mut queue = None;
    if let Some(shard) = &mut log.queue
        && (shard.is_dirty() || !records.is_empty())
    {
        let mut dirty = shard.take_dirty();
        dirty.floor.bytes += cost;
        dirty.floor.epoch = epoch;
        write_queue(batch, &id, &dirty);
        queue = Some(dirty);
    }
    if !records.is_empty() || trim.is_some() {
        batch.mutations.push(Mutation::Set(LogState::key(&id), state.encode().into()));
    } else {
        state = log.state;
    }
    batch.changes.push(LogChange { id, state, base, records, queue, trim });
}

/// What the declaration of a queue or stream allows its shard to hold.
struct Limits {
    messages: Option<u64>,
    bytes: Option<u64>,
    depth: u64,
    held: u64,
}

impl Limits {
    /// Queues refuse what is over their limits; streams make room by retention instead.
    fn of(log: &Log) -> Self {
        let definition = &log.object.definition;
        match &log.queue {
            Some(queue) => Self {
                messages: definition.share(definition.retention.max_messages),
                bytes: definition.share(definition.retention.max_bytes),
                depth: queue.depth(),
                held: queue.bytes(),
            },
            None => Self { messages: None, bytes: None, depth: 0, held: 0 },
        }
    }

    fn check(&self, added: u64, added_bytes: u64, cost: u64) -> Result<(), &'static str> {
        if self.messages.is_some_and(|max| self.depth + added >= max) {
            return Err("retention.maxMessages");
        }
        if self.bytes.is_some_and(|max| self.held + added_bytes + cost > max) {
            return Err("retention.maxBytes");
        }
        Ok(())
    }
}

/// Fills segments with records, one after the other.
struct Segments<'a> {
    batch: &'a mut Batch,
    log: LogId,
    builder: Option<(u64, SegmentBuilder)>,
    epoch: Epoch,
}

impl Segments<'_> {
    fn push(&mut self, state: &mut LogState, offset: u64, record: Record) -> Arc<Record> {
        if self.builder.as_ref().is_some_and(|(_, builder)| !builder.has_room(record.encoded_len())) {
            self.finish(state);
        }
        let first_ts = record.message.published_at;
        let (_, builder) = self.builder.get_or_insert_with(|| (offset, SegmentBuilder::new(first_ts)));
        builder.push(&record);
        Arc::new(record)
    }

    fn finish(&mut self, state: &mut LogState) {
        let Some((base, builder)) = self.builder.take() else { return };
        let log_bytes_before = state.bytes_appended;
        let first_ts = builder.first_ts();
        let value = builder.finish(self.epoch, log_bytes_before);
        state.bytes_appended += value.len() as u64;
        let entry = IndexEntry { first_ts, base, log_bytes_before };
        let mutations = &mut self.batch.mutations;
        mutations.push(Mutation::Set(segment::key(&self.log, base), value.into()));
        mutations.push(Mutation::Set(time_index::key(&self.log, first_ts, base), entry.encode().into()));
    }
}

/// Moves the payload into chunks; the record keeps it in memory for those who read the tail.
fn chunk_payload(chunks: &mut Vec<Mutation>, log: &LogId, offset: u64, record: &mut Record) {
    let payload = &record.message.payload;
    for (n, from) in (0..payload.len()).step_by(CHUNK_BYTES_MAX).enumerate() {
        let chunk = payload.slice(from..payload.len().min(from + CHUNK_BYTES_MAX));
        let n = u16::try_from(n).unwrap_or(u16::MAX);
        chunks.push(Mutation::Set(log_blob::key(log, offset, n), chunk));
    }
    record.blob_len = Some(u32::try_from(payload.len()).unwrap_or(u32::MAX));
}

fn group_chunks(chunks: Vec<Mutation>) -> Vec<Vec<Mutation>> {
    let per_transaction = BLOB_TRANSACTION_BYTES / CHUNK_BYTES_MAX;
    let mut groups = Vec::new();
    let mut chunks = chunks.into_iter().peekable();
    while chunks.peek().is_some() {
        groups.push(chunks.by_ref().take(per_transaction).collect());
    }
    groups
}

fn mark(log: &LogId, publish: &PublishId, offset: u64, at: Timestamp) -> Mutation {
    Mutation::Set(Mark::key(log, publish), Mark { offset, at }.encode().into())
}

fn clear_below(batch: &mut Batch, log: &LogId, trim: &Trim) {
    batch.mutations.push(Mutation::ClearRange(segment::key(log, 0), segment::key(log, trim.base)));
    let (index, _) = log.range(tag::TIME_INDEX);
    batch.mutations.push(Mutation::ClearRange(index, time_index::key(log, trim.first_ts, trim.base)));
    let (from, to) = log_blob::range(log, 0, trim.base);
    batch.mutations.push(Mutation::ClearRange(from, to));
}

fn write_queue(batch: &mut Batch, log: &LogId, dirty: &DirtyQueue) {
    let mutations = &mut batch.mutations;
    mutations.push(Mutation::Set(QueueFloor::key(log), dirty.floor.encode().into()));
    for (block, bits) in &dirty.blocks {
        let key = AckBlock::key(log, *block);
        mutations.push(match bits {
            Some(bits) => Mutation::Set(key, bits.encode().into()),
            None => Mutation::Clear(key),
        });
    }
    for (offset, attempts) in &dirty.attempts {
        let key = Attempts::key(log, *offset);
        mutations.push(match attempts {
            Some(n) => Mutation::Set(key, Attempts(*n).encode().into()),
            None => Mutation::Clear(key),
        });
    }
}

/// The ranges of everything that is stored of `log`.
pub(crate) fn all_of(log: &LogId) -> Vec<Mutation> {
    [tag::SEGMENT, tag::TIME_INDEX, tag::LOG_STATE, tag::QUEUE, tag::MARK, tag::LOG_BLOB]
        .into_iter()
        .map(|table| {
            let (begin, end) = log.range(table);
            Mutation::ClearRange(begin, end)
        })
        .collect()
}
