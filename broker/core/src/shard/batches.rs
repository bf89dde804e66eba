//! The owner's batches: when one starts, and what becomes of everybody in it.

use std::time::Duration;

use weir_env::clock::Instant;
use weir_env::seed::HashMap;

use super::batch::{self, Batch};
use super::commit::{self, Outcome};
use super::compaction::Compacted;
use super::fence::Tenure;
use super::log::{Kept, Log};
use super::logs::{LogKey, base_of, key_of};
use super::owner::ShardOwner;
use super::{AppendError, Command};
use crate::error::Error;
use crate::queue::{Consumer, ConsumerId, Held, QueueShard};

/// How often ownership is checked by a read, well below the age at which the store forgets a version.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Wait after a batch that failed, so that a store in trouble is not asked all the time.
const RETRY_WAIT: Duration = Duration::from_millis(100);
/// Wait before a lost shard is taken over again for the consumers and readers who wait for it.
pub(super) const RETAKE_WAIT: Duration = Duration::from_secs(1);

impl ShardOwner {
    /// Starts a commit of all that waits, unless one is in flight. True if there was nothing to commit since all was
    /// refused: repeats of what was refused have their turn then.
    pub(super) fn start_batch(&mut self, now: Instant) -> bool {
        if self.committing.is_some() || (self.retry_at.is_some_and(|at| at > now) && !self.is_ending()) {
            return false;
        }
        self.retry_at = None;
        if !self.logs.has_dirty() {
            self.acks_due = None;
        }
        let acks_wait = self.acks_due.is_some_and(|due| due > now) && !self.is_ending();
        if !self.logs.has_writable() && (!self.logs.has_dirty() || acks_wait) {
            return false;
        }
        let Some(tenure) = self.tenure else { return false };
        let id = self.context.seed.next_id();
        let mut batch = batch::build(&mut self.logs, id, tenure.owner.epoch, self.context.clock.wall());
        self.acks_due = self.logs.has_dirty().then_some(now);
        if !batch.unread.is_empty() {
            batch.unread.drain(..).for_each(|key| self.logs.touch(key));
            self.pump(now);
        }
        if batch.refused > 0 {
            self.count_refused(AppendError::FULL, batch.refused);
        }
        let released = std::mem::take(&mut batch.released);
        let any_released = !released.is_empty();
        for (key, names) in released {
            if let Some(log) = self.logs.get_mut(key) {
                log.repeats.settle(names);
            }
        }
        if batch.is_empty() {
            return any_released;
        }
        let is_checked = self.checked_at.is_some_and(|at| now.saturating_duration_since(at) < CHECK_INTERVAL);
        if !is_checked {
            self.checked_at = Some(now);
        }
        let seen = is_checked.then_some(tenure.seen);
        let (context, vs) = (self.context.clone(), self.vs);
        self.committing = Some(Box::pin(async move {
            let (batch, outcome) = commit::commit(context, vs, tenure.owner, seen, batch).await;
            (batch, outcome, Some(tenure))
        }));
        false
    }

    pub(super) fn finish_batch(&mut self, batch: Batch, outcome: Outcome, tenure: Option<Tenure>) {
        if tenure.is_some() {
            self.tenure = tenure;
        }
        match outcome {
            Outcome::Committed(seen) => {
                if let Some(tenure) = &mut self.tenure {
                    tenure.seen = tenure.seen.max(seen);
                }
                self.apply(batch);
            }
            Outcome::Failed(error) => {
                tracing::warn!(shard = self.vs.0, %error, "store refused a batch; publishers are told");
                self.checked_at = None;
                self.give_up(batch, AppendError::Failed(error));
            }
            Outcome::Fenced => {
                tracing::warn!(shard = self.vs.0, "virtual shard was taken over by another pod");
                self.lose_shard(batch, Error::Fenced);
            }
            Outcome::Unknown(error) => match (tenure, &error) {
                (Some(tenure), Error::Store(_)) => {
                    tracing::warn!(shard = self.vs.0, %error, "looking whether a batch was committed");
                    let (context, vs) = (self.context.clone(), self.vs);
                    self.committing = Some(Box::pin(commit::recover(context, vs, tenure.owner, batch)));
                }
                _ => {
                    tracing::warn!(shard = self.vs.0, %error, "outcome of a batch stays unknown; publishers are told");
                    self.lose_shard(batch, error);
                }
            },
        }
    }

    /// Makes a committed batch visible.
    fn apply(&mut self, mut batch: Batch) {
        let metrics = &self.context.metrics;
        metrics.batches.inc();
        metrics.appended.inc_by(batch.records);
        metrics.appended_bytes.inc_by(batch.bytes);
        let now = self.context.clock.now();
        let compactions = std::mem::take(&mut batch.compactions);
        for (place, change) in std::mem::take(&mut batch.changes).into_iter().enumerate() {
            let key = key_of(&change.id);
            let Some(log) = self.logs.get_mut(key) else { continue };
            log.state = change.state;
            if log.tail.readers() > 0 {
                let records: Vec<_> = (change.base..).zip(change.records.iter().cloned()).collect();
                log.tail.push((change.base, change.state.next), &records);
            }
            log.publish_extent();
            let has_records = !change.records.is_empty();
            if let Some(rows) = &mut log.rows {
                let done = compactions.iter().find(|compaction| compaction.is_of(place)).and_then(|c| c.done);
                let Compacted { look, replaced, dropped, swept } = done.unwrap_or_default();
                rows.apply(look.as_ref(), change.records.iter().map(|record| &**record));
                metrics.rows_replaced.inc_by(replaced);
                metrics.rows_dropped.inc_by(dropped);
                metrics.tombstones_swept.inc_by(swept);
            }
            if let Some(queue) = &mut log.queue {
                queue.written();
                queue.evicted(change.evicted);
                queue.appended(change.base, change.records.into_iter());
                if let Some(replaced) = &change.replaced {
                    queue.replaced(replaced);
                }
            }
            log.batch_stored(has_records, change.trim.as_ref(), now);
            if log.queue.is_none() && log.rows.is_none() {
                log.segments_stored(&change.segments, change.retained.as_ref(), now);
            }
            log.observe(now);
            log.answer_trims();
            self.logs.touch(key);
        }
        self.settle(&batch, true);
        batch.answer(Ok(()));
    }

    /// A batch will not be written: its publishers are told, queue state is written later.
    fn give_up(&mut self, mut batch: Batch, error: AppendError) {
        let retry_at = self.context.clock.now() + RETRY_WAIT;
        self.retry_at = Some(retry_at);
        let compactions = std::mem::take(&mut batch.compactions);
        for (place, change) in std::mem::take(&mut batch.changes).into_iter().enumerate() {
            let key = key_of(&change.id);
            let Some(log) = self.logs.get_mut(key) else { continue };
            if let Some(trim) = change.trim {
                log.cut_by(trim);
            }
            if let Some(rows) = &mut log.rows
                && compactions.iter().any(|compaction| compaction.is_of(place) && compaction.is_due)
            {
                rows.put_back();
            }
            if let (Some(queue), Some(dirty)) = (&mut log.queue, &change.queue) {
                queue.restore_dirty(dirty);
                queue.put_back(change.evicted);
                self.acks_due = Some(retry_at);
            }
            self.logs.list(key);
        }
        self.settle(&batch, false);
        self.count_refused(error.label(), batch.waiting.len() as u64);
        batch.answer(Err(error));
        // It stays the owner: what it has to write is not written.
        self.leaving = None;
        if self.closing.is_some() {
            // There is no later: what was not written is forgotten as in a crash.
            drop(self.logs.take_all());
        }
    }

    /// What this task remembers of the shard may be wrong: it is read again when next needed, and soon in any case.
    pub(super) fn lose_shard(&mut self, batch: Batch, error: Error) {
        let refused = batch.waiting.len() as u64;
        let failed = AppendError::Failed(error.clone());
        let label = failed.label();
        batch.answer(Err(failed));
        self.context.metrics.shards_lost.inc();
        self.context.metrics.shards_owned.dec_by(i64::from(self.tenure.take().is_some()));
        (self.checked_at, self.acks_due, self.retry_at) = (None, None, None);
        let refused = refused + self.let_go(&error);
        self.count_refused(label, refused);
        self.is_lost = self.context.cluster.is_some();
        if !self.kept.is_empty() {
            self.retake_at = Some(self.context.clock.now() + RETAKE_WAIT);
        }
    }

    /// Forgets the logs, and keeps those who wait for them. In a cluster what is in line stays in line; alone its
    /// publishers are told: how many.
    pub(super) fn let_go(&mut self, error: &Error) -> u64 {
        let mut refused = 0;
        let stays = self.context.cluster.is_some();
        let logs: Vec<Log> = self.logs.take_all().collect();
        // Alone, what they hold is handed out again: nobody else has had the shard meanwhile.
        let mut held = if stays { held_of(&logs) } else { HashMap::default() };
        for mut log in logs {
            log.refuse_trims(error);
            let Log { id, object, extent, tail, queue, pending, positions, .. } = log;
            tail.clear();
            // What nobody waits for is in the store, and comes again.
            let pending = pending.into_iter().filter(|pending| pending.reply.is_some());
            if stays {
                self.carried.extend(pending.map(Command::Append));
                self.carried.extend(positions.into_iter().map(Command::Positions));
            } else {
                for pending in pending {
                    refused += 1;
                    pending.answer(Err(AppendError::Failed(error.clone())));
                }
            }
            let consumers = queue.map(QueueShard::into_consumers).unwrap_or_default();
            // Consumers of a shard are those of all its priorities. Also without any, what happens by itself goes on:
            // expiry, retention, dead letters.
            if id.class == 0 {
                let key = key_of(&id);
                let with_held = |consumer: Consumer| {
                    let held = held.remove(&(key, consumer.id)).unwrap_or_default();
                    (consumer, held)
                };
                let consumers = consumers.into_iter().map(with_held).collect();
                let kept = Kept { object, id, extent, tail, consumers, acknowledged: Vec::new() };
                self.kept.insert(key, kept);
            }
        }
        refused
    }

    /// The publishes of `batch` have their answer: repeats of them need not wait any longer. What waits for its time is
    /// what the batch made of it, or not.
    fn settle(&mut self, batch: &Batch, is_stored: bool) {
        let (now, wall) = (self.context.clock.now(), self.context.clock.wall());
        for (key, change) in &batch.shards {
            let Some(log) = self.logs.get_mut(*key) else { continue };
            for names in &change.names {
                log.repeats.settle(*names);
                if let Some(id) = names.dedup.filter(|_| is_stored) {
                    log.repeats.remember(change.at, id);
                    log.repeats.sweep_by(now, log.object.definition.dedup_window());
                }
            }
            if let Some(delays) = change.delays {
                if is_stored {
                    log.delays.apply(delays, now, wall);
                } else {
                    log.delays.give_up(delays, now);
                }
                if let Some(queue) = &mut log.queue {
                    queue.set_scheduled(&log.delays.state());
                }
            }
            self.logs.list(*key);
        }
    }
}

/// What consumers hold of `logs`, by shard and consumer.
fn held_of(logs: &[Log]) -> HashMap<(LogKey, ConsumerId), Vec<Held>> {
    let mut all: HashMap<(LogKey, ConsumerId), Vec<Held>> = HashMap::default();
    for (log, queue) in logs.iter().filter_map(|log| Some((log, log.queue.as_ref()?))) {
        for (consumer, held) in queue.held() {
            all.entry((base_of(key_of(&log.id)), consumer)).or_default().push(held);
        }
    }
    all
}
