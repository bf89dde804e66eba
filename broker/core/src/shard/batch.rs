//! Building one transaction out of all that waits: records of many publishers, queue state, retention.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use weir_env::clock::Timestamp;

use super::compaction::{self, Compaction};
use super::delays::DelayChange;
use super::log::{IndexPlace, Log, Trim};
use super::logs::{LogKey, Logs, base_of, key_of};
use super::mutations::{Mutation, Mutations};
use super::repeats::Names;
use super::retention::Rule;
use super::rows::RowLimits;
use super::{AppendError, PendingAppend, positions};
use crate::error::Error;
use crate::keyspace::dedup::{self, DedupId};
use crate::keyspace::delayed::{self, DelayedId, DelayedState};
use crate::keyspace::log_blob::{self, CHUNK_BYTES_MAX};
use crate::keyspace::log_state::LogState;
use crate::keyspace::mark::{Mark, PublishId};
use crate::keyspace::owner::Epoch;
use crate::keyspace::queue::{AckBlock, Attempts, QueueFloor};
use crate::keyspace::segment::{self, Record, SegmentBuilder};
use crate::keyspace::time_index::{self, IndexEntry};
use crate::keyspace::{LogId, aside, tag};
use crate::queue::{AsideChange, DirtyQueue, Evicted, QueueShard, Replaced, Room};

/// Bytes of records in one batch, about; the transaction stays below its target with what comes on top.
const BATCH_BYTES_TARGET: u64 = 500_000;
/// Bytes of blob chunks in one transaction.
const BLOB_TRANSACTION_BYTES: usize = 900_000;

/// A publisher that waits for a batch.
#[derive(Debug)]
pub(crate) struct Waiting {
    reply: oneshot::Sender<Result<(), AppendError>>,
    _permit: Option<OwnedSemaphorePermit>,
}

/// What a batch does to one log, applied to the log in memory once it is committed.
#[derive(Debug)]
pub(crate) struct LogChange {
    pub(crate) id: LogId,
    pub(crate) state: LogState,
    pub(crate) base: u64,
    pub(crate) records: Vec<Arc<Record>>,
    /// The segments that hold them.
    pub(crate) segments: Vec<IndexEntry>,
    pub(crate) queue: Option<DirtyQueue>,
    /// Of a last-value queue: what its records replace.
    pub(crate) replaced: Option<Replaced>,
    pub(crate) trim: Option<Trim>,
    /// What retention removes because of these records, if there is enough of it.
    pub(crate) retained: Option<Trim>,
    /// Messages that make room for these.
    pub(crate) evicted: Vec<Evicted>,
    /// Messages beside `records`, and their bytes, that are new in the shard; negative if some of `records` are not.
    pub(crate) beside: (i64, i64),
}

/// What a batch does to a shard of a queue or stream beside its logs.
#[derive(Debug)]
pub(crate) struct ShardChange {
    /// Its log of class 0.
    log: LogId,
    /// When.
    pub(crate) at: Timestamp,
    /// Publishes that may be repeated, settled with this batch.
    pub(crate) names: Vec<Names>,
    /// Messages and bytes that are new in it, once it has several logs.
    added: (i64, i64),
    /// What becomes of messages that wait for their time.
    pub(crate) delays: Option<DelayChange>,
}

/// One transaction of a shard, which may be repeated with the same bytes.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Identifies it in the log states it writes.
    pub(crate) id: [u8; 16],
    /// Chunks of large payloads: transactions of their own, before.
    pub(crate) blobs: Vec<Vec<Mutation>>,
    pub(crate) mutations: Mutations,
    pub(crate) changes: Vec<LogChange>,
    /// What is still to be worked out of the changes of compacted logs.
    pub(crate) compactions: Vec<Compaction>,
    /// By the log of class 0.
    pub(crate) shards: BTreeMap<LogKey, ShardChange>,
    pub(crate) waiting: Vec<Waiting>,
    /// Who waits for positions of consumer groups to be written.
    pub(super) positions: Vec<oneshot::Sender<crate::Result<()>>>,
    /// Names of records that were refused, by the log of class 0.
    pub(crate) released: Vec<(LogKey, Names)>,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// Logs whose appends wait for their oldest messages to be read.
    pub(crate) unread: Vec<LogKey>,
    /// Records that a full queue did not take; their publishers have been told.
    pub(crate) refused: u64,
}

impl Batch {
    /// What this does to the shard of `log`, at `at`.
    fn shard(&mut self, log: LogId, at: Timestamp) -> &mut ShardChange {
        let log = log.of_class(0);
        self.shards.entry(key_of(&log)).or_insert_with(|| ShardChange {
            log,
            at,
            names: Vec::new(),
            added: (0, 0),
            delays: None,
        })
    }

    /// What this does to the messages of the shard of `log` that wait for their time, now `state`.
    fn delays(&mut self, log: LogId, at: Timestamp, state: DelayedState) -> &mut DelayChange {
        let unchanged = DelayChange { state, first_due: None, moved: 0 };
        self.shard(log, at).delays.get_or_insert(unchanged)
    }

    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.mutations.is_empty() && self.compactions.is_empty()
    }

    /// Answers everybody who waits.
    pub(crate) fn answer(self, outcome: Result<(), AppendError>) {
        for waiting in self.positions {
            let outcome = outcome.clone().map_err(|error| match error {
                AppendError::Failed(error) => error,
                // Of single records, never of a batch.
                AppendError::Full { .. } | AppendError::Invalid { .. } => Error::Closed,
            });
            let _ = waiting.send(outcome);
        }
        for waiting in self.waiting {
            // A publisher whose connection is gone does not want the answer.
            let _ = waiting.reply.send(outcome.clone());
        }
    }
}

/// In what a log is added to a batch.
#[derive(Clone, Copy)]
struct Setting {
    epoch: Epoch,
    now: Timestamp,
    /// What waits for its time in the shard.
    delayed: DelayedState,
    /// Whether the shard has other logs.
    is_shared: bool,
}

/// Gathers a batch from `logs` for the owner of `epoch`: logs with appends in their turn, then queue state.
pub(crate) fn build(logs: &mut Logs, id: [u8; 16], epoch: Epoch, now: Timestamp) -> Batch {
    let mut batch = Batch { id, ..Batch::default() };
    let mut chunks = Vec::new();
    let mut unfinished = Vec::new();
    while batch.bytes < BATCH_BYTES_TARGET && !batch.mutations.is_full() {
        let Some(key) = logs.pop_writable() else { break };
        let elsewhere = logs.elsewhere(key);
        let Some(log) = logs.get_mut(key) else { continue };
        let setting = Setting { epoch, now, delayed: elsewhere.delayed, is_shared: elsewhere.is_shared };
        if let Some(queue) = &mut log.queue {
            let added = batch.shards.get(&base_of(key)).map_or((0, 0), |change| change.added);
            let (messages, bytes) = elsewhere.limited;
            let limited = (messages.saturating_add_signed(added.0), bytes.saturating_add_signed(added.1));
            queue.set_elsewhere(limited);
        }
        add_log(&mut batch, &mut chunks, log, setting);
        if log.has_writes() {
            unfinished.push(key_of(&log.id));
        }
    }
    while let Some(log) = logs.pop_dirty() {
        add_log_state(&mut batch, log, epoch);
        if log.has_dirty_queue() {
            unfinished.push(key_of(&log.id));
        }
        // At least one has its turn, however much is appended; the others stay listed.
        if batch.mutations.is_full() {
            break;
        }
    }
    for key in unfinished {
        logs.list(key);
    }
    batch.blobs = group_chunks(chunks);
    write_shards(&mut batch);
    batch
}

/// Adds what waits to be appended to `log`, its cut, and with them the state of its queue.
fn add_log(batch: &mut Batch, chunks: &mut Vec<Mutation>, log: &mut Log, setting: Setting) {
    let (id, Setting { epoch, now, .. }) = (log.id, setting);
    let mut change = LogChange {
        id,
        state: LogState { batch: batch.id, epoch, ..log.state },
        base: log.state.next,
        records: Vec::new(),
        segments: Vec::new(),
        queue: None,
        trim: log.take_trim(),
        retained: None,
        evicted: Vec::new(),
        replaced: log.queue.as_ref().and_then(QueueShard::replacing),
        beside: (0, 0),
    };
    positions::add(batch, log);
    let mut segments = Segments { batch, log: id, builder: None, epoch, blob_bytes: 0, entries: Vec::new() };
    let mut cost = 0;
    let mut expires_below = None;
    if let Some(before) = log.repeats.take_clear() {
        let (begin, end) = dedup::range_before(&id, before);
        segments.batch.mutations.push(Mutation::ClearRange(begin, end));
    }
    for rubble in log.delays.take_rubble() {
        let (begin, end) = rubble.range(&id);
        segments.batch.mutations.push(Mutation::ClearRange(begin, end));
    }
    while segments.batch.bytes + cost < BATCH_BYTES_TARGET && !segments.batch.mutations.is_full() {
        if change.replaced.as_ref().is_some_and(Replaced::is_full) {
            break;
        }
        let Some(pending) = log.pending.pop_front() else { break };
        let names = pending.names();
        let fit = match pending.moved {
            Some(_) => Fit::Fits,
            None => fit(log, &mut change, cost, &pending),
        };
        match fit {
            Fit::Fits => {}
            Fit::Waits { unread } => {
                log.pending.push_front(pending);
                if unread {
                    segments.batch.unread.push(key_of(&id));
                }
                break;
            }
            Fit::Refused(what) => {
                segments.batch.released.push((key_of(&id.of_class(0)), names));
                segments.batch.refused += 1;
                let name = pending.object.definition.name.clone();
                pending.answer(Err(AppendError::Full { name, what }));
                continue;
            }
        }
        if !pending.wishes.delay.is_zero() {
            add_delayed(segments.batch, chunks, &mut change, pending, setting);
            continue;
        }
        if let Some(delayed) = pending.moved {
            take_delayed(segments.batch, &mut change, delayed, pending.record.cost(), setting);
        }
        let PendingAppend { mut record, reply, permit, .. } = pending;
        let state = &mut change.state;
        let offset = state.next;
        state.next += 1;
        state.last_ts = now.max(state.last_ts);
        // Nobody else has it yet, so it is not cloned.
        let stored = Arc::make_mut(&mut record);
        stored.message.published_at = state.last_ts;
        if stored.needs_blob() {
            chunk_payload(chunks, &id, offset, stored);
        }
        if record.message.expires_at.is_some() {
            expires_below = Some(offset + 1);
        }
        cost += record.cost();
        if let (Some(queue), Some(replaced)) = (&log.queue, &mut change.replaced) {
            queue.replace(replaced, offset, &record);
        }
        if log.rows.is_some() {
            segments.batch.mutations.reserve(compaction::written_bytes(&id, &record));
        } else {
            segments.push(state, offset, &record);
        }
        if let Some(publish) = names.publish {
            segments.batch.mutations.push(mark(&id, &publish, offset, now));
        }
        if !names.is_empty() {
            segments.batch.shard(id, now).names.push(names);
        }
        segments.batch.waiting.extend(reply.map(|reply| Waiting { reply, _permit: permit }));
        change.records.push(record);
    }
    let state = &mut change.state;
    segments.finish(state);
    change.segments = segments.entries;
    if setting.is_shared {
        let shard = batch.shard(id, now);
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        shard.added.0 += signed(change.records.len() as u64) + change.beside.0;
        shard.added.1 += signed(cost) + change.beside.1;
    }
    batch.bytes += cost;
    batch.records += change.records.len() as u64;
    if log.rows.is_some() {
        add_compaction(batch, log, change, now);
        return;
    }
    if let Some(trim) = &change.trim {
        state.start = state.start.max(trim.start);
        state.bytes_trimmed = state.bytes_trimmed.max(trim.bytes_trimmed);
        clear_below(batch, log, trim);
    }
    if !change.records.is_empty() {
        retain(batch, log, &mut change, now);
    }
    // What waits for its time is not of the log, but what made room for it is.
    let stores = !change.records.is_empty() || (change.beside.0 > 0 && !change.evicted.is_empty());
    if !stores && change.trim.is_none() {
        // All were refused, or wait; what the queue has to write it writes alone. What made room for a message that
        // needs still more is gone for good.
        if let Some(queue) = &mut log.queue {
            queue.evicted(change.evicted);
        }
        return;
    }
    batch.mutations.push(Mutation::Set(LogState::key(&id), change.state.encode().into()));
    change.queue = log.queue.as_mut().map(|queue| {
        let mut dirty = queue.take_dirty_with(change.replaced.as_ref(), cost, change.state.next);
        dirty.floor.expires_below = expires_below.unwrap_or(dirty.floor.expires_below);
        dirty.floor.epoch = epoch;
        dirty
    });
    if let Some(dirty) = &change.queue {
        write_queue(batch, &id, dirty);
    }
    batch.changes.push(change);
}

/// Leaves what `change` writes of a compacted log to be worked out when the batch is committed.
fn add_compaction(batch: &mut Batch, log: &mut Log, change: LogChange, now: Timestamp) {
    let Some(rows) = &mut log.rows else { return };
    let is_due = rows.take_due();
    if change.records.is_empty() && !is_due {
        return;
    }
    let trimmed_below = rows.trimmed_below();
    let limits = RowLimits { trimmed_below, ..RowLimits::of(&log.object.definition, log.id.shard, now) };
    let compaction = Compaction::new(batch.changes.len(), limits, is_due, rows.first_tombstone());
    batch.compactions.push(compaction);
    batch.changes.push(change);
}

/// Stores a message that is to wait before it goes into its log.
fn add_delayed(
    batch: &mut Batch,
    chunks: &mut Vec<Mutation>,
    change: &mut LogChange,
    pending: PendingAppend,
    setting: Setting,
) {
    let (id, now, names) = (change.id, setting.now, pending.names());
    let PendingAppend { mut record, wishes, reply, permit, .. } = pending;
    let cost = record.cost();
    let message = &mut Arc::make_mut(&mut record).message;
    message.published_at = now;
    // What has expired by then need not wait longer to be found so.
    let due = now.saturating_add(wishes.delay);
    let due = message.expires_at.map_or(due, |at| due.min(at));
    let delays = batch.delays(id, now, setting.delayed);
    let delayed = DelayedId { due, seq: delays.state.next_seq };
    delays.state.next_seq += 1;
    delays.state.messages += 1;
    delays.state.bytes += cost;
    delays.first_due = [delays.first_due, Some(due)].into_iter().flatten().min();
    let mut rows = delayed::rows(&id, delayed, wishes.priority, &record).into_iter();
    batch.mutations.extend(rows.next().map(|(key, value)| Mutation::Set(key, value)));
    chunks.extend(rows.map(|(key, value)| Mutation::Set(key, value)));
    if let Some(publish) = names.publish {
        batch.mutations.push(mark(&id, &publish, Mark::DELAYED, now));
    }
    if !names.is_empty() {
        batch.shard(id, now).names.push(names);
    }
    batch.bytes += cost;
    change.beside.0 += 1;
    change.beside.1 += i64::try_from(cost).unwrap_or(i64::MAX);
    batch.waiting.extend(reply.map(|reply| Waiting { reply, _permit: permit }));
}

/// Takes a message that goes into its log from those that wait.
fn take_delayed(batch: &mut Batch, change: &mut LogChange, delayed: DelayedId, cost: u64, setting: Setting) {
    let (begin, end) = delayed.range(&change.id);
    batch.mutations.push(Mutation::ClearRange(begin, end));
    let delays = batch.delays(change.id, setting.now, setting.delayed);
    delays.state.messages = delays.state.messages.saturating_sub(1);
    delays.state.bytes = delays.state.bytes.saturating_sub(cost);
    delays.moved += 1;
    change.beside.0 -= 1;
    change.beside.1 -= i64::try_from(cost).unwrap_or(i64::MAX);
}

/// Adds the state of a queue that has no appends in this batch.
fn add_log_state(batch: &mut Batch, log: &mut Log, epoch: Epoch) {
    let Some(queue) = &mut log.queue else { return };
    let mut dirty = queue.take_dirty();
    dirty.floor.epoch = epoch;
    write_queue(batch, &log.id, &dirty);
    batch.changes.push(LogChange {
        id: log.id,
        state: log.state,
        base: log.state.next,
        records: Vec::new(),
        segments: Vec::new(),
        queue: Some(dirty),
        replaced: None,
        trim: None,
        retained: None,
        evicted: Vec::new(),
        beside: (0, 0),
    });
}

/// What becomes of a record that wants into a log.
enum Fit {
    /// There is room, or there was made some.
    Fits,
    /// It has to wait: for the oldest message to be read, or for this batch to be stored.
    Waits { unread: bool },
    /// It is refused: this limit is reached.
    Refused(&'static str),
}

/// Whether a record fits into `log` beside what this batch adds to it. Only queues refuse, or have their
/// oldest messages make room; streams are cut by retention.
fn fit(log: &mut Log, change: &mut LogChange, added: u64, pending: &PendingAppend) -> Fit {
    let Some(queue) = &mut log.queue else { return Fit::Fits };
    let limits = queue.limits();
    let record = &pending.record;
    let count = (change.records.len() as u64 + 1).saturating_add_signed(change.beside.0);
    let (added, cost) = (added.saturating_add_signed(change.beside.1), record.cost());
    // What waits for its time replaces nothing yet.
    let replaces_now = pending.wishes.delay.is_zero();
    if let Some(what) = limits.exceeded(1, cost) {
        // Not even alone.
        return Fit::Refused(what);
    }
    loop {
        let (depth, held) = queue.limited();
        let replaced = change.replaced.as_ref().filter(|_| replaces_now);
        let freed = match replaced.map(|replaced| queue.makes_room(replaced, record)) {
            Some(Ok(freed)) => freed,
            Some(Err(what)) => return Fit::Refused(what),
            None => (0, 0),
        };
        let (depth, held) =
            ((depth + count).saturating_sub(freed.0), (held + added + cost).saturating_sub(freed.1));
        let Some(what) = limits.exceeded(depth, held) else { return Fit::Fits };
        if !limits.drops_oldest {
            return Fit::Refused(what);
        }
        match queue.make_room() {
            Room::Made(evicted) => {
                if let Some(replaced) = &mut change.replaced {
                    replaced.forget(&evicted);
                }
                change.evicted.push(evicted);
            }
            Room::Unread => return Fit::Waits { unread: true },
            // The oldest are in this batch: once they are stored they make room.
            Room::None if !change.records.is_empty() => return Fit::Waits { unread: false },
            Room::None => return Fit::Refused(what),
        }
    }
}

/// Fills segments with records, one after the other.
struct Segments<'a> {
    batch: &'a mut Batch,
    log: LogId,
    builder: Option<(u64, SegmentBuilder)>,
    epoch: Epoch,
    /// Of the records in the builder.
    blob_bytes: u64,
    /// What is finished.
    entries: Vec<IndexEntry>,
}

impl Segments<'_> {
    fn push(&mut self, state: &mut LogState, offset: u64, record: &Record) {
        if self.builder.as_ref().is_some_and(|(_, builder)| !builder.has_room(record.encoded_len())) {
            self.finish(state);
        }
        let first_ts = record.message.published_at;
        let (_, builder) = self.builder.get_or_insert_with(|| (offset, SegmentBuilder::new(first_ts)));
        builder.push(record);
        self.blob_bytes += u64::from(record.blob_len.unwrap_or(0));
    }

    fn finish(&mut self, state: &mut LogState) {
        let Some((base, builder)) = self.builder.take() else { return };
        let log_bytes_before = state.bytes_appended;
        let first_ts = builder.first_ts();
        let value = builder.finish(self.epoch, log_bytes_before);
        state.bytes_appended += value.len() as u64 + std::mem::take(&mut self.blob_bytes);
        let entry = IndexEntry { first_ts, base, log_bytes_before };
        self.entries.push(entry);
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
    // A repeat looks for it before anybody knows its priority.
    Mutation::Set(Mark::key(&log.of_class(0), publish), Mark { offset, at }.encode().into())
}

fn write_shards(batch: &mut Batch) {
    for change in batch.shards.values() {
        if let Some(delays) = &change.delays {
            let key = DelayedState::key(&change.log);
            batch.mutations.push(Mutation::Set(key, delays.state.encode().into()));
        }
        let ids: Vec<DedupId> = change.names.iter().filter_map(|names| names.dedup).collect();
        for (part, ids) in ids.chunks(dedup::IDS_PER_ROW).enumerate() {
            let key = dedup::key(&change.log, change.at, &batch.id, u8::try_from(part).unwrap_or(u8::MAX));
            batch.mutations.push(Mutation::Set(key, dedup::encode(ids).into()));
        }
    }
}

/// Moves the start of a stream to where its limits have it with the records of `change`, and clears what is below if
/// that is worth it.
fn retain(batch: &mut Batch, log: &Log, change: &mut LogChange, now: Timestamp) {
    let Some(horizon) = &log.horizon else { return };
    let rule = Rule::of_stream(&log.object.definition, log.id.shard, now);
    let state = &mut change.state;
    let Some(place) = horizon.place(&change.segments, state, &rule) else { return };
    if log.clears_next || place.is_worth_clearing() {
        change.retained = horizon.trim(&change.segments, &place, state);
    }
    state.start = state.start.max(place.start);
    state.bytes_trimmed = state.bytes_trimmed.max(place.entry.log_bytes_before);
    if let Some(trim) = &change.retained {
        clear_below(batch, log, trim);
    }
}

/// Clears what is below a cut, but for payloads of messages that were moved aside.
fn clear_below(batch: &mut Batch, log: &Log, trim: &Trim) {
    let (id, mutations) = (&log.id, &mut batch.mutations);
    // From the first that there is: a store may have to look at what was removed before.
    let IndexPlace { first_ts, base: first } = trim.from;
    if first >= trim.base {
        return;
    }
    mutations.push(Mutation::ClearRange(segment::key(id, first), segment::key(id, trim.base)));
    let (begin, end) = (time_index::key(id, first_ts, first), time_index::key(id, trim.first_ts, trim.base));
    mutations.push(Mutation::ClearRange(begin, end));
    let kept = log.queue.iter().flat_map(|queue| queue.aside_blobs(first, trim.base));
    let mut from = first;
    for offset in kept.chain([trim.base]) {
        let (begin, end) = log_blob::range(id, from, offset);
        if from < offset {
            mutations.push(Mutation::ClearRange(begin, end));
        }
        from = offset.saturating_add(1);
    }
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
            Some(attempts) => Mutation::Set(key, attempts.encode().into()),
            None => Mutation::Clear(key),
        });
    }
    for (offset, change) in &dirty.asides {
        let key = aside::key(log, *offset);
        mutations.push(match change {
            AsideChange::Moved(record) => Mutation::Set(key, aside::encode(record).into()),
            AsideChange::Ended(_) => Mutation::Clear(key),
        });
        if let AsideChange::Ended(ended) = change
            && ended.blob
        {
            let (begin, end) = log_blob::range(log, *offset, offset.saturating_add(1));
            mutations.push(Mutation::ClearRange(begin, end));
        }
    }
}

/// The ranges of everything that is stored of the shard of `log`, all its classes.
pub(crate) fn all_of(log: &LogId) -> Mutations {
    [
        tag::SEGMENT,
        tag::TIME_INDEX,
        tag::ROW,
        tag::LAST_VALUE,
        tag::LOG_STATE,
        tag::QUEUE,
        tag::MARK,
        tag::DEDUP,
        tag::DELAYED,
        tag::LOG_BLOB,
        tag::GROUP,
    ]
    .into_iter()
    .map(|table| {
        let (begin, end) = log.shard_range(table);
        Mutation::ClearRange(begin, end)
    })
    .collect()
}
