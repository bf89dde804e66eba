//! What an owner does unasked: handing out after every turn, timers, reading ahead, retention.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use weir_env::clock::{Instant, Timestamp};

use super::asides::{self, AsideRead};
use super::batches::RETAKE_WAIT;
use super::delays::{self, DueRead};
use super::horizon::Horizon;
use super::log::{Loaded, Log, Trim};
use super::logs::{LogKey, base_of, key_of};
use super::owner::{Background, ShardOwner};
use super::retention::{self, Cut, Rule};
use super::{AppendError, Context, ReadRecords, Sent, load};
use crate::catalog::Object;
use crate::definition::Overflow;
use crate::error::{Error, Result};
use crate::keyspace::LogId;
use crate::queue::{Lag, Limits, SWEEP_INTERVAL, Settings};

/// Longest time that an acknowledgement waits for a batch to ride along with.
const ACK_DELAY: Duration = Duration::from_millis(5);
/// How soon after a change of a log its retention is looked at.
pub(super) const MAINTAIN_INTERVAL: Duration = Duration::from_secs(1);
/// Longest time between two looks at a log whose next expiry is far away.
pub(super) const MAINTAIN_INTERVAL_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often messages moved aside are looked at for expired ones.
const ASIDE_SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// Bytes read ahead for a queue in one go.
const REFILL_BYTES: usize = 256 * 1024;
/// Wait after a failed background read.
pub(super) const READ_RETRY_WAIT: Duration = Duration::from_millis(100);

/// Something in the background that has ended, and for which log.
pub(super) enum Done {
    /// Records for a queue.
    Refill { of: Loaded, from: u64, result: Result<ReadRecords> },
    /// For messages moved aside.
    Asides { of: Loaded, result: Result<AsideRead> },
    /// Records among which those are looked for that have expired.
    Sweep { of: Loaded, from: u64, result: Result<ReadRecords> },
    /// Where a log of a queue can be cut.
    Retention { of: Loaded, result: Result<Cut> },
    /// The oldest segments of a stream.
    Horizon { of: Loaded, result: Result<Horizon> },
    /// The cut that somebody asks for.
    Trim { of: Loaded, below: u64, result: Result<Option<Trim>> },
    /// Messages whose time has come.
    Due { of: Loaded, result: Result<DueRead> },
    /// What became of dead letters.
    DeadLetters { of: Loaded, sent: Sent },
}

impl ShardOwner {
    /// Hands out what can be handed out of the logs that were touched, and reads on if more could be.
    pub(super) fn pump(&mut self, now: Instant) {
        while let Some(key) = self.logs.pop_touched() {
            self.pump_shard(key, now);
        }
    }

    /// Hands out of one log, unless that has to wait.
    pub(super) fn pump_log(&mut self, key: LogKey, now: Instant, is_held: bool) {
        let wall = self.context.clock.wall();
        let Some(log) = self.logs.get_mut(key) else { return };
        let of = log.loaded();
        if let Some(queue) = &mut log.queue {
            if !is_held {
                queue.dispatch(now, wall);
            }
            queue.observe(now);
            if queue.is_dirty() && self.acks_due.is_none() {
                self.acks_due = Some(now + ACK_DELAY);
            }
            let letters = queue.take_dying(now);
            if !letters.is_empty() {
                let (way, object) = (Arc::clone(&self.context.dead_letters), Arc::clone(&log.object));
                self.background.push(in_background(async move {
                    Done::DeadLetters { of, sent: way.send(&object, &of.id, letters).await }
                }));
            }
            let (wanted, sweep_due) = (queue.wants_records(), queue.sweep_due());
            if let Some(at) = sweep_due {
                let wait = at.saturating_since(wall).clamp(MAINTAIN_INTERVAL, MAINTAIN_INTERVAL_MAX);
                log.maintain_by(now + wait);
            }
            if let (false, Some(from)) = (log.refilling, wanted) {
                log.refilling = true;
                let store = Arc::clone(&self.context.store);
                self.background.push(in_background(async move {
                    let result = load::read_records(&store, &of.id, from, REFILL_BYTES).await;
                    if result.is_err() {
                        tokio::time::sleep(READ_RETRY_WAIT).await;
                    }
                    Done::Refill { of, from, result }
                }));
            }
            self.background.extend(asides::next_read(&self.context, log));
            self.background.extend(next_sweep(&self.context, log, now));
        }
        self.logs.list(key);
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let commit = match self.committing {
            Some(_) => None,
            None => self.retry_at.or(self.acks_due),
        };
        [commit, self.retake_at, self.roll_due(), self.logs.next_timeout()].into_iter().flatten().min()
    }

    pub(super) async fn handle_timeout(&mut self, now: Instant) {
        let wall = self.context.clock.wall();
        while let Some(key) = self.logs.pop_due(now) {
            let Some(log) = self.logs.get_mut(key) else { continue };
            if let Some(queue) = &mut log.queue {
                queue.handle_timeout(now, wall);
            }
            log.repeats.handle_timeout(now, wall, log.object.definition.dedup_window());
            if log.delays.is_due(now, wall) {
                let (context, of) = (self.context.clone(), log.loaded());
                self.background.push(in_background(async move {
                    let result = delays::read_due(&context, &of.id, wall).await;
                    Done::Due { of, result }
                }));
            }
            self.maintain(key, now);
            self.logs.touch(key);
        }
        if self.roll_due().is_some_and(|at| at <= now) {
            self.end_roll();
        }
        if self.retake_at.is_some_and(|at| at <= now) {
            self.retake().await;
        }
    }

    /// Takes a lost shard over again for those who wait for its logs.
    async fn retake(&mut self) {
        self.retake_at = None;
        let waiting: Vec<(Arc<Object>, LogId)> =
            self.kept.values().map(|kept| (Arc::clone(&kept.object), kept.id)).collect();
        for (object, id) in waiting {
            let Err(error) = self.log_mut(&object, id).await.map(drop) else { continue };
            let name = &object.definition.name;
            tracing::warn!(queue_or_stream = name, shard = id.shard, %error, "take log over again");
            self.retake_at = Some(self.context.clock.now() + RETAKE_WAIT);
            // What is damaged is its own affair; other failures would be those of the next log too.
            if !matches!(error, Error::Record(_)) {
                return;
            }
        }
    }

    fn maintain(&mut self, key: LogKey, now: Instant) {
        let Some(log) = self.logs.get_mut(key) else { return };
        if log.trimming || log.maintain_at.is_none_or(|at| at > now) {
            return;
        }
        let wall = self.context.clock.wall();
        if let Some(rows) = &mut log.rows {
            let next = rows.maintain(&log.object.definition, log.id.shard, &log.state, wall);
            log.maintain_at = next.map(|wait| now + wait);
            return;
        }
        log.maintain_at = None;
        let flows = std::mem::take(&mut log.uncut) > 0;
        let (context, of, state, first) = (self.context.clone(), log.loaded(), log.state, log.first);
        let Some(queue) = &mut log.queue else {
            if log.horizon.as_ref().is_some_and(|horizon| !horizon.is_short()) {
                log.retain(now, wall, flows);
                return;
            }
            log.trimming = true;
            let rule = Rule::of_stream(&log.object.definition, of.id.shard, wall);
            self.background.push(in_background(async move {
                let result = retention::read_horizon(&context, &of.id, &state, &rule, first).await;
                Done::Horizon { of, result }
            }));
            return;
        };
        queue.sweep(wall);
        queue.sweep_asides(wall);
        queue.sweep_expired(wall);
        let floor = queue.floor();
        log.trimming = true;
        self.background.push(in_background(async move {
            let result = retention::find_cut(&context, &of.id, &state, floor, first).await;
            Done::Retention { of, result }
        }));
    }

    pub(super) fn finish_background(&mut self, done: Done) {
        let (Done::Refill { of, .. }
        | Done::Asides { of, .. }
        | Done::Sweep { of, .. }
        | Done::Retention { of, .. }
        | Done::Horizon { of, .. }
        | Done::Trim { of, .. }
        | Done::Due { of, .. }
        | Done::DeadLetters { of, .. }) = &done;
        let (of, id, key) = (*of, of.id, key_of(&of.id));
        let (now, wall) = (self.context.clock.now(), self.context.clock.wall());
        let Some(log) = self.logs.still(of) else { return };
        let is_refill = matches!(done, Done::Refill { .. });
        let outcome = match done {
            Done::Due { result, .. } => return self.finish_due(id, result),
            Done::Trim { below, result, .. } => return self.finish_trim(id, below, result),
            Done::Refill { from, result, .. } => {
                log.refilling = false;
                log.refill_failed = result.is_err();
                result.map(|(records, end)| {
                    if let Some(queue) = &mut log.queue {
                        queue.loaded(from, end, records, now, wall);
                    }
                })
            }
            Done::Sweep { from, result, .. } => finish_sweep(log, from, result, wall),
            Done::DeadLetters { sent, .. } => {
                if let Some(queue) = &mut log.queue {
                    queue.dead_lettered(sent, now);
                }
                Ok(())
            }
            Done::Asides { result, .. } => asides::finish_read(log, result, now, wall),
            Done::Retention { result, .. } => {
                log.trimming = false;
                match result {
                    Ok(Cut { trim, above_floor, first }) => {
                        if let Some(trim) = trim {
                            log.cut_by(trim);
                        }
                        log.first = first.unwrap_or(log.first);
                        log.observe(now);
                        if let Some(queue) = &mut log.queue {
                            queue.check_lag(above_floor);
                            if queue.asides().next().is_some() {
                                log.maintain_by(now + ASIDE_SWEEP_INTERVAL);
                            }
                        }
                        Ok(())
                    }
                    Err(error) => {
                        log.maintain_by(now + MAINTAIN_INTERVAL);
                        Err(error)
                    }
                }
            }
            Done::Horizon { result, .. } => {
                log.trimming = false;
                match result {
                    Ok(horizon) => {
                        log.restore_horizon(horizon);
                        log.observe(now);
                        log.retain(now, wall, false);
                        Ok(())
                    }
                    Err(error) => {
                        log.appended.clear();
                        log.maintain_by(now + MAINTAIN_INTERVAL);
                        Err(error)
                    }
                }
            }
        };
        if let Err(error) = outcome {
            let waiting = if is_refill { log.take_unread() } else { VecDeque::new() };
            self.count_refused(AppendError::Failed(error.clone()).label(), waiting.len() as u64);
            for pending in waiting {
                if let Some(base) = self.logs.get_mut(base_of(key)) {
                    base.repeats.settle(pending.names());
                }
                pending.answer(Err(AppendError::Failed(error.clone())));
            }
            let Some(log) = self.logs.get_mut(key) else { return };
            if matches!(error, Error::Record(_)) {
                self.context.metrics.damaged.inc();
            }
            tracing::error!(queue_or_stream = log.object.definition.name, shard = id.shard, %error, "read log");
        }
        self.logs.touch(key);
    }
}

/// `work` that leaves everybody else their turn first: a store that answers at once could keep a shard reading, and
/// those who ask it for something waiting.
pub(super) fn in_background(work: impl Future<Output = Done> + Send + 'static) -> Background {
    Box::pin(async move {
        tokio::task::yield_now().await;
        work.await
    })
}

/// The next read that looks for expired messages of `log`, if one is due.
fn next_sweep(context: &Context, log: &mut Log, now: Instant) -> Option<Background> {
    let queue = log.queue.as_ref()?;
    let (expires, from) = (queue.expires(), queue.wants_sweep().filter(|_| !log.sweeping));
    if expires {
        log.maintain_by(now + SWEEP_INTERVAL);
    }
    let from = from?;
    log.sweeping = true;
    let (store, of) = (Arc::clone(&context.store), log.loaded());
    Some(in_background(async move {
        let result = load::read_records(&store, &of.id, from, REFILL_BYTES).await;
        Done::Sweep { of, from, result }
    }))
}

fn finish_sweep(log: &mut Log, from: u64, result: Result<ReadRecords>, wall: Timestamp) -> Result<()> {
    log.sweeping = false;
    let Some(queue) = &mut log.queue else { return Ok(()) };
    match result {
        Ok((records, end)) => queue.swept(from, end, &records, wall),
        Err(error) => {
            queue.sweep_failed();
            return Err(error);
        }
    }
    Ok(())
}

/// What a queue's declaration says about handing out in one of its shards.
pub(super) fn settings(object: &Object, shard: u8, lag: Lag) -> Settings {
    let definition = &object.definition;
    let age = definition.retention.max_age_ms;
    Settings {
        dispatch: definition.dispatch.clone(),
        ordering: definition.queue.ordering,
        max_age: (age != 0).then(|| Duration::from_millis(age)),
        has_dead_letters: definition.queue.dead_letter.is_some(),
        lag,
        limits: Limits {
            messages: definition.share(definition.retention.max_messages, shard),
            bytes: definition.share(definition.retention.max_bytes, shard),
            drops_oldest: definition.queue.overflow == Overflow::DropOldest,
        },
        last_value: definition.last_value,
        paused: object.paused,
    }
}
