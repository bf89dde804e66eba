//! Priorities: a shard of a queue has a log for each that was ever asked for.
//!
//! The log of class 0 is always there, the others are made by the first message of their priority. All are in memory
//! when one is. Consumers are attached to all of them and share their windows; whenever one can hand out, the higher
//! ones do so first. Limits hold over all of them.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;
use weir_env::clock::{Instant, Timestamp};

use super::delays::{Delays, DueRead};
use super::horizon::Horizon;
use super::log::{IndexPlace, Listed, Log};
use super::logs::{LogKey, base_of, key_of};
use super::owner::ShardOwner;
use super::repeats::Repeats;
use super::stats::StreamStats;
use super::upkeep::{self, MAINTAIN_INTERVAL};
use super::{Context, Extent, LogReport, PendingAppend, QueueReport};
use crate::catalog::Object;
use crate::controls::Wishes;
use crate::definition::Kind;
use crate::error::Result;
use crate::keyspace::LogId;
use crate::keyspace::log_state::LogState;
use crate::queue::{ConsumerId, ConsumerReport, QueueShard, StoredQueue};
use crate::stream::Tail;

impl ShardOwner {
    /// Puts a record in line for the log of `class` of its shard, whose log of class 0 is in memory.
    pub(super) fn put_in_line(&mut self, mut pending: PendingAppend, class: u8) {
        pending.log = pending.log.of_class(class);
        let key = key_of(&pending.log);
        if self.logs.get(key).is_none() {
            self.make_class(pending.log);
        }
        if let Some(log) = self.logs.get_mut(key) {
            log.pending.push_back(pending);
            self.logs.list(key);
        }
    }

    /// Nothing is stored of it: all that is stored is in memory.
    fn make_class(&mut self, id: LogId) {
        let Some(base) = self.logs.get(base_of(key_of(&id))) else { return };
        let (object, consumers) = (Arc::clone(&base.object), base.queue.as_ref().map(QueueShard::attached));
        let mut log = log_of(&self.context, &object, id, LogState::default(), StoredQueue::default());
        if let Some(queue) = &mut log.queue {
            consumers.into_iter().flatten().for_each(|consumer| queue.attach(consumer));
        }
        self.logs.insert(log);
    }

    /// Messages of `id` whose time has come, or why they could not be read.
    pub(super) fn finish_due(&mut self, id: LogId, read: Result<DueRead>) {
        let (now, wall) = (self.context.clock.now(), self.context.clock.wall());
        let key = key_of(&id);
        let Some(log) = self.logs.get_mut(key) else { return };
        let object = Arc::clone(&log.object);
        match log.delays.read(read, now, wall) {
            Ok(messages) => {
                for (delayed, class, record) in messages {
                    let pending = PendingAppend {
                        object: Arc::clone(&object),
                        log: id,
                        record: Arc::new(record),
                        publish: None,
                        wishes: Wishes::default(),
                        is_foreign: false,
                        moved: Some(delayed),
                        reply: None,
                        permit: None,
                    };
                    self.put_in_line(pending, class);
                }
            }
            Err(error) => {
                tracing::error!(queue = object.definition.name, shard = id.shard, %error, "read delayed messages");
            }
        }
        self.logs.touch(key);
    }

    /// Changes the queues of all priorities of a shard, if they are there.
    pub(super) fn with_queues(&mut self, id: LogId, mut change: impl FnMut(&mut QueueShard, Instant)) {
        let now = self.context.clock.now();
        for key in self.logs.classes(key_of(&id)) {
            if let Some(queue) = self.logs.get_mut(key).and_then(|log| log.queue.as_mut()) {
                change(queue, now);
            }
            self.logs.touch(key);
        }
    }

    /// `consumer` has settled a message of `id`: it has room for those of other priorities too.
    pub(super) fn find_room(&mut self, id: LogId, consumer: ConsumerId) {
        for key in self.logs.classes(key_of(&id)) {
            if key == key_of(&id) {
                continue;
            }
            if let Some(queue) = self.logs.get_mut(key).and_then(|log| log.queue.as_mut()) {
                queue.kick(consumer);
            }
        }
    }

    /// Hands out messages of the shard of `key`: those of a lower priority wait for those of a higher one to be read.
    pub(super) fn pump_shard(&mut self, key: LogKey, now: Instant) {
        let mut is_held = self.roll.is_some();
        for key in self.logs.classes(key) {
            self.pump_log(key, now, is_held);
            is_held |= self.logs.get(key).is_some_and(|log| {
                !log.refill_failed && log.queue.as_ref().is_some_and(QueueShard::awaits_records)
            });
        }
    }

    /// The logs of the shard of `id`.
    pub(super) fn class_logs(&self, id: LogId) -> Vec<LogId> {
        self.logs.classes(key_of(&id)).into_iter().map(|(_, _, class)| id.of_class(class)).collect()
    }

    /// What there is in the shard of `id`, all priorities together.
    pub(super) fn report(&self, id: LogId, now: Instant) -> LogReport {
        let mut reports =
            self.logs.classes(key_of(&id)).into_iter().rev().filter_map(|key| self.logs.get(key));
        let mut report = reports.next().map(|log| report(log, now)).unwrap_or_default();
        for log in reports {
            report.bytes += log.state.bytes();
            report.last_ts_micros = report.last_ts_micros.max(log.state.last_ts.as_micros());
            if let (Some(sum), Some(queue)) = (&mut report.queue, &log.queue) {
                add(sum, queue_report(queue, now));
            }
        }
        report
    }
}

/// A log as `state` and `stored` tell, without what its shard knows of repeats and delays.
pub(super) fn log_of(
    context: &Context,
    object: &Arc<Object>,
    id: LogId,
    state: LogState,
    stored: StoredQueue,
) -> Log {
    let queue = (object.definition.kind == Kind::Queue).then(|| {
        let seed = context.seed.fork(&format!("queue {} {} {}", id.object, id.shard, id.class));
        let metrics = context.metrics.clone();
        let share = metrics.queues.share(&object.definition.name, id);
        let settings = upkeep::settings(object, id.shard, context.lag);
        let mut queue = QueueShard::restore(id, stored, settings, seed, metrics);
        queue.count_into(share);
        queue
    });
    Log {
        id,
        load: 0,
        object: Arc::clone(object),
        state,
        extent: watch::Sender::new(Extent { start: state.start, next: state.next }),
        tail: Tail::new(&context.reading.tails),
        queue,
        rows: None,
        stats: (object.definition.kind == Kind::Stream)
            .then(|| StreamStats::new(context, object, id, &state)),
        trims: Vec::new(),
        pending: VecDeque::new(),
        positions: VecDeque::new(),
        repeats: Repeats::default(),
        delays: Delays::default(),
        refilling: false,
        refill_failed: false,
        reading_asides: false,
        sweeping: false,
        trim: None,
        trimming: false,
        maintain_at: Some(context.clock.now() + MAINTAIN_INTERVAL),
        first: IndexPlace::default(),
        uncut: 0,
        horizon: (state == LogState::default() && !object.definition.last_value).then(Horizon::default),
        clears_next: false,
        appended: Vec::new(),
        listed: Listed::default(),
    }
}

fn report(log: &Log, now: Instant) -> LogReport {
    LogReport {
        extent: Extent { start: log.state.start, next: log.state.next },
        bytes: log.state.bytes(),
        messages: log.messages(),
        last_ts_micros: log.state.last_ts.as_micros(),
        readers: log.tail.readers(),
        oldest: log.oldest(),
        queue: log.queue.as_ref().map(|queue| queue_report(queue, now)),
    }
}

fn queue_report(queue: &QueueShard, now: Instant) -> QueueReport {
    QueueReport {
        floor: queue.floor(),
        depth: queue.depth(),
        bytes: queue.bytes(),
        delayed: queue.scheduled(),
        inflight: queue.inflight() as u64,
        aside: queue.asides().count() as u64,
        counters: *queue.counters(),
        dying: queue.dying() as u64,
        dead_letter_blocked: queue.dead_letter_blocked(),
        waiting: queue.waiting() as u64,
        oldest: queue.oldest(),
        delivered: queue.deliveries().0,
        redelivered: queue.deliveries().1,
        rates: queue.rates(now),
        consumers: queue.consumer_reports(),
    }
}

fn add(sum: &mut QueueReport, other: QueueReport) {
    sum.depth += other.depth;
    sum.bytes += other.bytes;
    sum.delayed += other.delayed;
    sum.inflight += other.inflight;
    sum.aside += other.aside;
    sum.counters.add(&other.counters);
    sum.dying += other.dying;
    sum.dead_letter_blocked = sum.dead_letter_blocked.take().or(other.dead_letter_blocked);
    sum.waiting += other.waiting;
    sum.oldest = earlier(sum.oldest, other.oldest);
    sum.delivered += other.delivered;
    sum.redelivered += other.redelivered;
    sum.rates.published += other.rates.published;
    sum.rates.delivered += other.rates.delivered;
    sum.rates.redelivered += other.rates.redelivered;
    sum.rates.acknowledged += other.rates.acknowledged;
    for theirs in other.consumers {
        match sum.consumers.iter_mut().find(|consumer| consumer.id == theirs.id) {
            Some(consumer) => add_consumer(consumer, &theirs),
            None => sum.consumers.push(theirs),
        }
    }
}

fn add_consumer(sum: &mut ConsumerReport, other: &ConsumerReport) {
    sum.inflight += other.inflight;
    sum.delivered += other.delivered;
    sum.acknowledged += other.acknowledged;
    sum.rejected += other.rejected;
    sum.latency.merge(&other.latency);
}

fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    [one, other].into_iter().flatten().min()
}
