//! The state of one shard of a queue in its owner's memory.
//!
//! Every message above the floor is in exactly one place: still in the store (from `read_next` on), ready,
//! waiting for another delivery, waiting for its backoff, leased to a consumer, or done. Bounds: ready is
//! filled up to [`READY_BYTES_MAX`]; leases are bounded by the consumers' windows; messages that wait for
//! a retry by [`RETRY_MAX`], beyond which nothing new is handed out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use weir_env::clock::{Instant, Timestamp};
use weir_env::seed::{HashMap, Seed};

use super::{Acks, Consumer, ConsumerId, QueueDelivery};
use crate::definition::{DispatchSettings, Strategy};
use crate::keyspace::LogId;
use crate::keyspace::queue::{AckBlock, QueueFloor};
use crate::keyspace::segment::Record;
use crate::metrics::Metrics;

/// Bytes of messages read ahead of what consumers have room for.
pub const READY_BYTES_MAX: usize = 1024 * 1024;
/// Messages of one shard that may wait for a retry before handing out new ones stops.
pub const RETRY_MAX: usize = 10_000;

/// What a consumer says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done.
    Acknowledged,
    /// Refused: to be delivered again after a backoff.
    Rejected,
    /// Not seen by the consumer: to be delivered again at once, without counting.
    Returned,
}

/// How a consumer went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Orderly: what it held does not count as an attempt.
    Left,
    /// Without a word: each message it held counts as a failed attempt.
    Vanished,
}

#[derive(Debug)]
struct Lease {
    consumer: ConsumerId,
    deadline: Instant,
    record: Arc<Record>,
}

#[derive(Debug)]
struct Attached {
    consumer: Consumer,
    inflight: u32,
}

/// What the store knows of a shard of a queue.
#[derive(Debug, Default)]
pub struct StoredQueue {
    /// Floor and counters.
    pub counters: QueueFloor,
    /// Acknowledgements above the floor, by block.
    pub blocks: BTreeMap<u64, AckBlock>,
    /// Failed attempts by offset.
    pub attempts: BTreeMap<u64, u32>,
    /// End of the log.
    pub next: u64,
}

/// What the queue's declaration says about handing out.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Strategy, windows, time-outs, retries.
    pub dispatch: DispatchSettings,
    /// Age from which a message is not delivered.
    pub max_age: Option<Duration>,
}

/// One shard of a queue.
#[derive(Debug)]
pub struct QueueShard {
    log: LogId,
    settings: DispatchSettings,
    max_age: Option<Duration>,
    counters: QueueFloor,
    acks: Acks,
    attempts: BTreeMap<u64, u32>,
    attempts_dirty: Vec<u64>,
    changed: bool,
    /// End of the committed log.
    next: u64,
    /// First offset that has not been read into `ready`.
    read_next: u64,
    ready: VecDeque<(u64, Arc<Record>)>,
    ready_bytes: usize,
    again: BTreeMap<u64, (Arc<Record>, Option<ConsumerId>)>,
    delayed: BTreeMap<(Instant, u64), (Arc<Record>, ConsumerId)>,
    leases: HashMap<u64, Lease>,
    deadlines: VecDeque<(Instant, u64)>,
    consumers: Vec<Attached>,
    turn: usize,
    sweeping: bool,
    seed: Seed,
    metrics: Metrics,
}

impl QueueShard {
    /// The shard as stored: its floor, acknowledgements and attempts, and the end of its log.
    #[must_use]
    pub fn restore(log: LogId, stored: StoredQueue, settings: Settings, seed: Seed, metrics: Metrics) -> Self {
        let StoredQueue { counters, blocks, attempts, next } = stored;
        Self {
            log,
            settings: settings.dispatch,
            max_age: settings.max_age,
            acks: Acks::new(counters.floor, blocks),
            attempts,
            attempts_dirty: Vec::new(),
            changed: false,
            next,
            read_next: counters.floor,
            counters,
            ready: VecDeque::new(),
            ready_bytes: 0,
            again: BTreeMap::new(),
            delayed: BTreeMap::new(),
            leases: HashMap::default(),
            deadlines: VecDeque::new(),
            consumers: Vec::new(),
            turn: 0,
            sweeping: false,
            seed,
            metrics,
        }
    }

    /// New settings, for the next delivery on.
    pub fn update(&mut self, settings: Settings) {
        self.settings = settings.dispatch;
        self.max_age = settings.max_age;
    }

    /// Messages that are not done.
    #[must_use]
    pub fn depth(&self) -> u64 {
        self.next.saturating_sub(self.counters.done())
    }

    /// Bytes of messages that are not done.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.counters.bytes
    }

    /// Messages that consumers hold.
    #[must_use]
    pub fn inflight(&self) -> usize {
        self.leases.len()
    }

    /// Everything below is done.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.acks.floor()
    }

    /// The consumers and how many messages each holds.
    pub fn consumers(&self) -> impl Iterator<Item = (ConsumerId, u32)> {
        self.consumers.iter().map(|attached| (attached.consumer.id, attached.inflight))
    }

    /// Records appended at the end of the log and committed. Kept if everything before is in memory.
    pub fn appended(&mut self, base: u64, records: impl Iterator<Item = Arc<Record>>) {
        let caught_up = self.read_next == base && !self.consumers.is_empty();
        let mut offset = base;
        for record in records {
            self.counters.bytes += record.cost();
            if caught_up && self.read_next == offset && self.ready_bytes < READY_BYTES_MAX {
                self.push_ready(offset, record);
            }
            offset += 1;
        }
        self.next = offset;
    }

    /// Where the owner should read on, if consumers could take more than is in memory.
    #[must_use]
    pub fn wants_records(&self) -> Option<u64> {
        let low = self.ready_bytes < READY_BYTES_MAX / 2;
        let wanted = !self.consumers.is_empty() || (self.sweeping && self.ready.is_empty());
        (low && wanted && self.read_next < self.next).then_some(self.read_next)
    }

    /// Looks for expired messages at the front although nobody consumes, until one is found that is not.
    pub fn sweep(&mut self) {
        self.sweeping = self.consumers.is_empty();
    }

    /// Records read from the store, beginning at `from`; `end` is where the next read begins. Ignored if
    /// the shard has moved on since it asked.
    pub fn loaded(&mut self, from: u64, end: u64, records: Vec<(u64, Arc<Record>)>) {
        if from != self.read_next {
            return;
        }
        for (offset, record) in records {
            if offset >= self.read_next && !self.acks.is_done(offset) {
                self.push_ready(offset, record);
            }
        }
        self.read_next = self.read_next.max(end);
    }

    fn push_ready(&mut self, offset: u64, record: Arc<Record>) {
        self.ready_bytes += record.message.size();
        self.ready.push_back((offset, record));
        self.read_next = offset + 1;
    }

    /// A consumer joins; it gets its share at once.
    pub fn attach(&mut self, consumer: Consumer) {
        self.detach(consumer.id, Lost::Left, None);
        self.consumers.push(Attached { consumer, inflight: 0 });
    }

    /// A consumer leaves: what it holds is to be delivered again, at once.
    pub fn detach(&mut self, id: ConsumerId, lost: Lost, now: Option<Instant>) {
        let Some(at) = self.consumers.iter().position(|attached| attached.consumer.id == id) else { return };
        self.consumers.remove(at);
        let held: Vec<u64> =
            self.leases.iter().filter(|(_, lease)| lease.consumer == id).map(|(offset, _)| *offset).collect();
        for offset in held {
            let Some(lease) = self.leases.remove(&offset) else { continue };
            match (lost, now) {
                (Lost::Vanished, Some(_)) => {
                    if !self.count_attempt(offset, &lease.record) {
                        self.again.insert(offset, (lease.record, Some(id)));
                    }
                }
                (Lost::Vanished, None) | (Lost::Left, _) => {
                    self.again.insert(offset, (lease.record, None));
                }
            }
        }
    }

    /// What `consumer` says of the message at `offset`. A late acknowledgement counts if nobody else's did.
    pub fn settle(&mut self, consumer: ConsumerId, offset: u64, verdict: Verdict, now: Instant) {
        let held = self.leases.get(&offset).is_some_and(|lease| lease.consumer == consumer);
        if held {
            self.release(consumer);
        }
        match verdict {
            Verdict::Acknowledged => self.acknowledge(offset),
            Verdict::Rejected if held => {
                self.metrics.rejected.inc();
                self.retry_later(offset, now);
            }
            Verdict::Returned if held => {
                if let Some(lease) = self.leases.remove(&offset) {
                    self.again.insert(offset, (lease.record, None));
                }
            }
            Verdict::Rejected | Verdict::Returned => {}
        }
    }

    fn acknowledge(&mut self, offset: u64) {
        let record = if let Some(lease) = self.leases.remove(&offset) {
            self.release(lease.consumer);
            Some(lease.record)
        } else if let Some((record, _)) = self.again.remove(&offset) {
            Some(record)
        } else {
            let key = self.delayed.keys().find(|(_, delayed)| *delayed == offset).copied();
            key.and_then(|key| self.delayed.remove(&key)).map(|(record, _)| record)
        };
        let Some(record) = record else { return };
        if self.done(offset, &record) {
            self.counters.acknowledged += 1;
            self.metrics.acknowledged.inc();
        }
    }

    fn release(&mut self, consumer: ConsumerId) {
        if let Some(attached) = self.consumers.iter_mut().find(|a| a.consumer.id == consumer) {
            attached.inflight = attached.inflight.saturating_sub(1);
        }
    }

    /// Marks a message as done; the caller counts why.
    fn done(&mut self, offset: u64, record: &Record) -> bool {
        if !self.acks.set(offset, self.next) {
            return false;
        }
        if self.attempts.remove(&offset).is_some() {
            self.attempts_dirty.push(offset);
        }
        self.counters.bytes = self.counters.bytes.saturating_sub(record.cost());
        self.counters.floor = self.acks.floor();
        self.changed = true;
        true
    }

    /// Counts a failed attempt. True if it was the last one allowed, and the message is dropped.
    fn count_attempt(&mut self, offset: u64, record: &Record) -> bool {
        let attempts = self.attempts.entry(offset).or_default();
        *attempts = attempts.saturating_add(1);
        let exhausted = self.settings.max_deliveries != 0 && *attempts >= self.settings.max_deliveries;
        self.attempts_dirty.push(offset);
        self.changed = true;
        if exhausted && self.done(offset, record) {
            self.counters.exhausted += 1;
            self.metrics.exhausted.inc();
        }
        exhausted
    }

    fn retry_later(&mut self, offset: u64, now: Instant) {
        let Some(lease) = self.leases.remove(&offset) else { return };
        if !self.count_attempt(offset, &lease.record) {
            let attempts = self.attempts.get(&offset).copied().unwrap_or(1);
            let due = now + self.settings.backoff(attempts);
            self.delayed.insert((due, offset), (lease.record, lease.consumer));
        }
    }

    /// When [`QueueShard::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadline = self.deadlines.front().map(|(at, _)| *at);
        let delayed = self.delayed.keys().next().map(|(at, _)| *at);
        [deadline, delayed].into_iter().flatten().min()
    }

    /// Ends leases whose time is over and makes messages ready whose backoff is.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, offset)) = self.deadlines.front().copied() {
            // Entries of leases that have ended are dropped early, so that the queue stays as long as the leases.
            let live = self.leases.get(&offset).is_some_and(|lease| lease.deadline == at);
            if live && at > now {
                break;
            }
            self.deadlines.pop_front();
            if live {
                self.metrics.ack_timeouts.inc();
                self.retry_later(offset, now);
            }
        }
        while let Some(entry) = self.delayed.first_entry() {
            let (due, offset) = *entry.key();
            if due > now {
                break;
            }
            let (record, consumer) = entry.remove();
            self.again.insert(offset, (record, Some(consumer)));
        }
    }

    /// Hands out messages while there are some and consumers have room.
    pub fn dispatch(&mut self, now: Instant, wall: Timestamp) {
        loop {
            let from_again = self.again.first_key_value().map(|(offset, (record, avoid))| {
                (*offset, Arc::clone(record), *avoid)
            });
            let next = match from_again {
                Some(next) => Some(next),
                None if self.delayed.len() >= RETRY_MAX => None,
                None => self.ready.front().map(|(offset, record)| (*offset, Arc::clone(record), None)),
            };
            let Some((offset, record, avoid)) = next else { break };
            if self.acks.is_done(offset) {
                self.forget_next(offset);
                continue;
            }
            if self.is_expired(&record, wall) {
                self.forget_next(offset);
                if self.done(offset, &record) {
                    self.counters.expired += 1;
                    self.metrics.expired.inc();
                }
                continue;
            }
            self.sweeping = false;
            if self.consumers.is_empty() {
                break;
            }
            let Some(to) = self.choose(avoid) else { break };
            self.forget_next(offset);
            self.lease(to, offset, record, now);
        }
    }

    fn is_expired(&self, record: &Record, wall: Timestamp) -> bool {
        record.message.is_expired(wall)
            || self.max_age.is_some_and(|age| wall.saturating_since(record.message.published_at) >= age)
    }

    fn forget_next(&mut self, offset: u64) {
        if self.again.remove(&offset).is_none()
            && let Some((_, record)) = self.ready.pop_front()
        {
            self.ready_bytes = self.ready_bytes.saturating_sub(record.message.size());
        }
    }

    /// A consumer with room, whose room is then taken; `avoid` only if no other has any.
    fn choose(&mut self, avoid: Option<ConsumerId>) -> Option<usize> {
        let count = self.consumers.len();
        let first = match self.settings.strategy {
            Strategy::Random => usize::try_from(self.seed.below(count as u64)).unwrap_or(0),
            Strategy::RoundRobin => self.turn % count,
            Strategy::LeastInflight => {
                let others = self.consumers.iter().enumerate().filter(|(_, a)| Some(a.consumer.id) != avoid);
                others.min_by_key(|(_, attached)| attached.inflight).map_or(0, |(at, _)| at)
            }
        };
        let others = (0..count).map(|n| (first + n) % count).find(|at| {
            let consumer = &self.consumers[*at].consumer;
            Some(consumer.id) != avoid && consumer.try_take()
        });
        let chosen = others.or_else(|| {
            let avoid = avoid?;
            let at = self.consumers.iter().position(|attached| attached.consumer.id == avoid)?;
            self.consumers[at].consumer.try_take().then_some(at)
        })?;
        self.turn = chosen + 1;
        Some(chosen)
    }

    fn lease(&mut self, to: usize, offset: u64, record: Arc<Record>, now: Instant) {
        let failed = self.attempts.get(&offset).copied().unwrap_or(0);
        let attached = &mut self.consumers[to];
        let delivery = QueueDelivery {
            log: self.log,
            offset,
            delivery_count: failed.saturating_add(1),
            record: Arc::clone(&record),
        };
        if attached.consumer.deliveries.try_send(delivery).is_err() {
            // Its connection is gone and says so in a moment.
            let id = attached.consumer.id;
            self.again.insert(offset, (record, None));
            self.detach(id, Lost::Left, None);
            return;
        }
        attached.inflight += 1;
        self.metrics.dispatched.inc();
        if failed > 0 {
            self.metrics.redelivered.inc();
        }
        let deadline = now + self.settings.ack_timeout();
        let consumer = attached.consumer.id;
        self.leases.insert(offset, Lease { consumer, deadline, record });
        if self.deadlines.len() > 2 * self.leases.len() + 1024 {
            let leases = &self.leases;
            self.deadlines.retain(|(at, offset)| leases.get(offset).is_some_and(|l| l.deadline == *at));
        }
        self.deadlines.push_back((deadline, offset));
    }

    /// Whether something has to be written.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.changed
    }

    /// What has to be written: the floor, ack blocks and attempts that changed.
    pub(crate) fn take_dirty(&mut self) -> DirtyQueue {
        self.changed = false;
        let mut offsets = std::mem::take(&mut self.attempts_dirty);
        offsets.sort_unstable();
        offsets.dedup();
        let attempts = offsets.into_iter().map(|offset| (offset, self.attempts.get(&offset).copied())).collect();
        DirtyQueue { floor: self.counters, blocks: self.acks.take_dirty(), attempts }
    }

    /// A write did not happen: what it held has to be written again.
    pub(crate) fn restore_dirty(&mut self, dirty: &DirtyQueue) {
        self.changed = true;
        self.acks.mark_dirty(dirty.blocks.iter().map(|(block, _)| *block));
        self.attempts_dirty.extend(dirty.attempts.iter().map(|(offset, _)| *offset));
    }

    /// The counters as they are in memory.
    #[must_use]
    pub fn counters(&self) -> &QueueFloor {
        &self.counters
    }
}

/// Changed state of a queue's shard, to be written in one transaction.
#[derive(Clone, Debug)]
pub(crate) struct DirtyQueue {
    pub(crate) floor: QueueFloor,
    pub(crate) blocks: Vec<(u64, Option<AckBlock>)>,
    pub(crate) attempts: Vec<(u64, Option<u32>)>,
}
