//! Writing a compacted log: what the messages of a batch replace, and what has to go so that limits hold.
//!
//! Which row is the newest of its key is looked up in the store when the batch is about to be committed. The owner is
//! the only writer and has one batch in flight, so what is found is what the transaction meets; if another owner has
//! taken over, the fence refuses it. It is looked up once: a repeat of the batch writes the same bytes.

use std::collections::VecDeque;

use futures_util::future::try_join_all;
use weir_env::clock::Timestamp;
use weir_env::seed::HashSet;
use weir_storage::{Isolation, RangePage, RangeQuery, TransactionSize};

use super::Context;
use super::batch::{Batch, LogChange};
use super::commit::{REPEAT_WAIT, REPEAT_WAIT_MAX, REPEATS_MAX};
use super::mutations::{Mutation, Mutations};
use super::rows::{Look, RowLimits};
use crate::error::{Error, Result};
use crate::keyspace::last_value::{self, Newest, Tombstone};
use crate::keyspace::log_state::LogState;
use crate::keyspace::segment::Record;
use crate::keyspace::{LogId, log_blob};

/// Rows read at once to look which have to go, at first and at most.
const ROWS_PER_PAGE_MIN: usize = 8;
const ROWS_PER_PAGE: usize = 1000;
/// Bytes of them.
const PAGE_BYTES: usize = 256 * 1024;
/// Pages of one transaction.
const PAGES_PER_LOOK: usize = 16;
/// Size of the writes that remove rows in one transaction, about.
const REMOVAL_BYTES: usize = 700_000;
/// Keys are looked up by this many transactions at once: a store may be far away.
const LANES: usize = 16;
/// Keys of one of them at least.
const KEYS_PER_LANE: usize = 16;

/// A compacted log in a batch.
#[derive(Debug)]
pub(crate) struct Compaction {
    /// Its place in the batch's changes.
    change: usize,
    limits: RowLimits,
    /// Whether something may be too old.
    pub(crate) is_due: bool,
    /// No tombstone is older.
    first_tombstone: Option<Timestamp>,
    /// What it came to, once that is worked out.
    pub(crate) done: Option<Compacted>,
}

/// What became of a compacted log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Compacted {
    /// Of the oldest rows, if they were looked at.
    pub(crate) look: Option<Look>,
    /// Messages replaced by a newer one of their key, also by one of the same batch.
    pub(crate) replaced: u64,
    /// Messages removed by limits.
    pub(crate) dropped: u64,
    /// Tombstones removed after their time.
    pub(crate) swept: u64,
}

impl Compaction {
    /// Of the change at place `change`, to which `limits` apply.
    pub(crate) fn new(
        change: usize,
        limits: RowLimits,
        is_due: bool,
        first_tombstone: Option<Timestamp>,
    ) -> Self {
        Self { change, limits, is_due, first_tombstone, done: None }
    }

    /// Whether it is of the change at place `change`.
    pub(crate) fn is_of(&self, change: usize) -> bool {
        self.change == change
    }
}

/// Size of what `record` may write into a transaction, with the removal of what it replaces.
pub(crate) fn written_bytes(log: &LogId, record: &Record) -> usize {
    let key = record.key_bytes().unwrap_or_default();
    let (row, newest) = (last_value::key(log, 0).len(), Newest::key(log, key).len());
    let sets = TransactionSize::of_write(row, record.encoded_len()) + TransactionSize::of_write(newest, 24);
    let tombstone = TransactionSize::of_write(row + 1, key.len() + 20);
    // The older row, its chunks and its entry among the tombstones.
    sets + tombstone + 3 * TransactionSize::of_write(row + 1, 0)
}

/// Adds to `batch` what it writes of compacted logs. Does nothing the second time.
///
/// # Errors
/// If the store fails.
pub(crate) async fn prepare(context: &Context, batch: &mut Batch) -> Result<()> {
    let Batch { compactions, changes, mutations, .. } = batch;
    for compaction in compactions.iter_mut().filter(|compaction| compaction.done.is_none()) {
        let Some(change) = changes.get_mut(compaction.change) else { continue };
        let plan = plan(context, change, compaction).await?;
        change.state = plan.state;
        mutations.extend(plan.mutations.iter().cloned());
        compaction.done = Some(plan.done);
    }
    mutations.release();
    Ok(())
}

/// As patient as the commit of the batch: with one that fails, all its logs do.
async fn plan(context: &Context, change: &LogChange, compaction: &Compaction) -> Result<Plan> {
    let (mut repeats, mut wait) = (1, REPEAT_WAIT);
    loop {
        match try_plan(context, change, compaction).await {
            Err(Error::Store(error)) if error.is_retryable() && repeats < REPEATS_MAX => {
                repeats += 1;
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(REPEAT_WAIT_MAX);
            }
            outcome => return outcome,
        }
    }
}

async fn try_plan(context: &Context, change: &LogChange, compaction: &Compaction) -> Result<Plan> {
    let mut plan = Plan::new(change, compaction.limits);
    let keys: Vec<Vec<u8>> = plan.new.iter().filter_map(|row| row.newest_key.clone()).collect();
    let found = look_up(context, &keys).await?;
    plan.replace(found);
    if compaction.is_due || plan.is_exceeded() {
        let mut look = Look { first_tombstone: compaction.first_tombstone, ..Look::default() };
        look_at_oldest(context, &mut plan, &mut look).await?;
        if compaction.is_due {
            let tombstones = read_page(context, Tombstone::range(&change.id), ROWS_PER_PAGE).await?;
            plan.sweep(tombstones, &mut look)?;
        }
        plan.done.look = Some(look);
    }
    if plan.damaged > 0 {
        tracing::error!(
            object = change.id.object,
            shard = change.id.shard,
            rows = plan.damaged,
            "damaged rows"
        );
        context.metrics.damaged.inc_by(plan.damaged);
    }
    plan.write(change);
    Ok(plan)
}

/// The newest rows of keys as stored, in the order of `keys`; damaged ones as an error of their own.
async fn look_up(context: &Context, keys: &[Vec<u8>]) -> Result<Vec<Option<Result<Newest>>>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let version = context.store.begin().read_version().await?;
    let lanes = keys.chunks(keys.len().div_ceil(LANES).max(KEYS_PER_LANE)).map(|keys| async move {
        let mut tx = context.store.begin();
        tx.set_read_version(version);
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let stored = tx.get(key, Isolation::Snapshot).await?;
            found.push(stored.map(|value| Newest::decode(value).map_err(Error::from)));
        }
        Ok::<_, Error>(found)
    });
    Ok(try_join_all(lanes).await?.into_iter().flatten().collect())
}

/// Has `plan` remove the oldest rows as far as limits ask for it.
async fn look_at_oldest(context: &Context, plan: &mut Plan, look: &mut Look) -> Result<()> {
    let mut from = plan.start;
    let mut limit = plan.excess().saturating_add(ROWS_PER_PAGE_MIN);
    for _ in 0..PAGES_PER_LOOK {
        let range = last_value::range_from(&plan.log, from);
        let page = read_page(context, range, limit.min(ROWS_PER_PAGE)).await?;
        match plan.remove_oldest(page, look)? {
            Some(next) => from = next,
            None => return Ok(()),
        }
        limit = limit.saturating_mul(4);
    }
    look.is_partial = true;
    plan.move_start(from);
    Ok(())
}

async fn read_page(context: &Context, range: (Vec<u8>, Vec<u8>), limit: usize) -> Result<RangePage> {
    let (begin, end) = range;
    let query =
        RangeQuery { begin: begin.into(), end: end.into(), limit, target_bytes: PAGE_BYTES, reverse: false };
    Ok(context.store.begin().get_range(query, Isolation::Snapshot).await?)
}

/// A message that gets a row.
#[derive(Debug)]
struct NewRow {
    offset: u64,
    value: Vec<u8>,
    /// If it has a key: where its newest row is known.
    newest_key: Option<Vec<u8>>,
    newest: Newest,
    /// Set for a tombstone.
    tombstone: Option<Tombstone>,
}

/// A log as it will be, and the writes that make it so.
#[derive(Debug)]
struct Plan {
    log: LogId,
    limits: RowLimits,
    state: LogState,
    /// First offset of the log as stored.
    start: u64,
    /// In the order of their offsets.
    new: VecDeque<NewRow>,
    /// Rows in the store that are gone, above the start.
    gone: HashSet<u64>,
    mutations: Mutations,
    done: Compacted,
    damaged: u64,
}

impl Plan {
    /// Of two messages of one key only the newer gets a row.
    fn new(change: &LogChange, limits: RowLimits) -> Self {
        let mut plan = Self {
            log: change.id,
            limits,
            state: change.state,
            start: change.state.start,
            new: VecDeque::with_capacity(change.records.len()),
            gone: HashSet::default(),
            mutations: Mutations::default(),
            done: Compacted::default(),
            damaged: 0,
        };
        let mut seen = HashSet::<&[u8]>::default();
        for (n, record) in change.records.iter().enumerate().rev() {
            let offset = change.base + n as u64;
            if record.key_bytes().is_some_and(|key| !seen.insert(key)) {
                plan.state.removed += 1;
                plan.done.replaced += 1;
                plan.clear_blob(offset, record.blob_len.is_some());
                continue;
            }
            let row = NewRow::of(&change.id, offset, record);
            plan.state.bytes_appended += row.newest.bytes;
            plan.new.push_front(row);
        }
        plan
    }

    fn is_exceeded(&self) -> bool {
        self.limits.exceeded(self.state.rows(), self.state.bytes())
    }

    /// Removes what is in the store under the keys of new rows, in their order.
    fn replace(&mut self, found: Vec<Option<Result<Newest>>>) {
        for older in found {
            match older {
                None => {}
                Some(Ok(older)) => {
                    self.remove(older.offset, older.bytes);
                    self.mutations.push(Mutation::Clear(last_value::key(&self.log, older.offset)));
                    self.clear_blob(older.offset, older.has_blob);
                    if older.is_tombstone {
                        self.mutations.push(Mutation::Clear(Tombstone::key(&self.log, older.offset)));
                    }
                    self.done.replaced += 1;
                }
                // Its row stays, as that of a message without a key.
                Some(Err(_)) => self.damaged += 1,
            }
        }
    }

    /// How many rows have to go because there are too many, or that is about so.
    fn excess(&self) -> usize {
        let (rows, bytes) = (self.state.rows(), self.state.bytes());
        let by_count = self.limits.messages.map_or(0, |max| rows.saturating_sub(max));
        let too_large = self.limits.bytes.map_or(0, |max| bytes.saturating_sub(max));
        let by_bytes = too_large / (bytes / rows.max(1)).max(1);
        usize::try_from(by_count.max(by_bytes)).unwrap_or(usize::MAX)
    }

    /// Removes the oldest rows, of which `page` has the first, as far as limits ask for it. Where the next page begins,
    /// if they may ask for more.
    fn remove_oldest(&mut self, page: RangePage, look: &mut Look) -> Result<Option<u64>> {
        let mut next = None;
        for (key, value) in page.pairs {
            let offset = last_value::offset_of_key(&key)?;
            next = Some(offset.saturating_add(1));
            if self.gone.contains(&offset) {
                continue;
            }
            let bytes = value.len();
            let Ok(record) = last_value::decode(value) else {
                // Nobody can read it.
                self.damaged += 1;
                self.remove(offset, bytes as u64);
                continue;
            };
            let at = record.message.published_at;
            look.oldest = Some(at);
            let is_trimmed = offset < self.limits.trimmed_below;
            let has_to_go = is_trimmed || self.limits.outlives(at) || self.is_exceeded();
            if !has_to_go || self.mutations.size >= REMOVAL_BYTES {
                look.is_partial = has_to_go;
                self.move_start(offset);
                return Ok(None);
            }
            self.remove(offset, last_value::row_bytes(&record, bytes));
            self.done.dropped += 1;
            if let Some(key) = record.key_bytes() {
                self.mutations.push(Mutation::Clear(Newest::key(&self.log, key)));
            }
            if last_value::is_tombstone(&record) {
                self.mutations.push(Mutation::Clear(Tombstone::key(&self.log, offset)));
            }
        }
        if page.more && next.is_some() {
            return Ok(next);
        }
        look.oldest = None;
        self.remove_new();
        Ok(None)
    }

    /// Removes the first of the new rows as far as limits ask for it: there are no others.
    fn remove_new(&mut self) {
        while self.is_exceeded() {
            let Some(row) = self.new.pop_front() else { break };
            self.state.removed += 1;
            self.state.bytes_trimmed += row.newest.bytes;
            self.done.dropped += 1;
            self.mutations.extend(row.newest_key.map(Mutation::Clear));
        }
        self.move_start(self.new.front().map_or(self.state.next, |row| row.offset));
    }

    /// There is nothing below `start`.
    fn move_start(&mut self, start: u64) {
        if start <= self.start {
            return;
        }
        self.state.start = start;
        self.mutations.push(Mutation::ClearRange(
            last_value::key(&self.log, self.start),
            last_value::key(&self.log, start),
        ));
        // Chunks of a batch that was never stored may be among these too.
        let (begin, end) = log_blob::range(&self.log, self.start, start);
        self.mutations.push(Mutation::ClearRange(begin, end));
    }

    /// Removes tombstones that have been there long enough.
    fn sweep(&mut self, page: RangePage, look: &mut Look) -> Result<()> {
        look.first_tombstone = None;
        for (key, value) in page.pairs {
            let offset = Tombstone::offset_of_key(&key)?;
            if offset < self.state.start || self.gone.contains(&offset) {
                continue;
            }
            let Ok(tombstone) = Tombstone::decode(value) else {
                self.damaged += 1;
                self.mutations.push(Mutation::Clear(key.to_vec()));
                continue;
            };
            look.first_tombstone = Some(tombstone.at);
            if tombstone.at > self.limits.tombstones_until {
                return Ok(());
            }
            if self.mutations.size >= 2 * REMOVAL_BYTES {
                look.is_partial = true;
                return Ok(());
            }
            self.remove(offset, tombstone.bytes);
            self.done.swept += 1;
            self.mutations.push(Mutation::Clear(last_value::key(&self.log, offset)));
            self.mutations.push(Mutation::Clear(Newest::key(&self.log, &tombstone.key)));
            self.mutations.push(Mutation::Clear(key.to_vec()));
        }
        look.is_partial |= page.more;
        look.first_tombstone = look.first_tombstone.filter(|_| page.more);
        Ok(())
    }

    /// A row in the store is gone.
    fn remove(&mut self, offset: u64, bytes: u64) {
        self.gone.insert(offset);
        self.state.removed += 1;
        self.state.bytes_trimmed += bytes;
    }

    fn clear_blob(&mut self, offset: u64, has_blob: bool) {
        if has_blob {
            let (begin, end) = log_blob::range(&self.log, offset, offset.saturating_add(1));
            self.mutations.push(Mutation::ClearRange(begin, end));
        }
    }

    /// Writes the new rows, and the state if anything is different.
    fn write(&mut self, change: &LogChange) {
        for row in std::mem::take(&mut self.new) {
            if let Some(tombstone) = &row.tombstone {
                let key = Tombstone::key(&self.log, row.offset);
                self.mutations.push(Mutation::Set(key, tombstone.encode().into()));
            }
            let newest = row.newest_key.map(|key| Mutation::Set(key, row.newest.encode().into()));
            self.mutations.extend(newest);
            self.mutations.push(Mutation::Set(last_value::key(&self.log, row.offset), row.value.into()));
        }
        if self.state != change.state || !change.records.is_empty() {
            self.mutations.push(Mutation::Set(LogState::key(&self.log), self.state.encode().into()));
        }
    }
}

impl NewRow {
    fn of(log: &LogId, offset: u64, record: &Record) -> Self {
        let value = last_value::encode(record);
        let bytes = last_value::row_bytes(record, value.len());
        let is_tombstone = last_value::is_tombstone(record);
        let tombstone = record.key_bytes().filter(|_| is_tombstone).map(|key| Tombstone {
            at: record.message.published_at,
            bytes,
            key: bytes::Bytes::copy_from_slice(key),
        });
        Self {
            offset,
            value,
            newest_key: record.key_bytes().map(|key| Newest::key(log, key)),
            newest: Newest { offset, bytes, has_blob: record.blob_len.is_some(), is_tombstone },
            tombstone,
        }
    }
}
