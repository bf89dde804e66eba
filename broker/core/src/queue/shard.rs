//! The state of one shard of a queue in its owner's memory.
//!
//! Every message above the floor is in exactly one place: still in the store (from `read_next` on), ready,
//! waiting for another delivery, waiting for its backoff, leased to a consumer, held back behind another
//! of its key, or done. So is every message that was
//! moved aside, but that its place in the store is a row of its own. Bounds: ready is
//! filled up to [`READY_BYTES_MAX`] and let go of when nobody consumes; leases are bounded by the consumers'
//! windows; messages that wait for a retry by [`RETRY_MAX`] and [`RETRY_BYTES_MAX`], beyond which nothing new is
//! handed out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use weir_env::clock::{Instant, Timestamp};
use weir_env::seed::{HashMap, Seed};

use super::aside::{AsideChange, Asides, Lag};
use super::claims::Claims;
use super::dying::Dying;
use super::ends::counter;
use super::expiring::Expiring;
use super::keys::KeyOrder;
use super::last_value::LastValues;
use super::ops::Purging;
use super::restored::StoredQueue;
use super::retry::given_up;
use super::stats::{Stats, Work};
use super::{Acks, Consumer, ConsumerId, End, Handout, Limits};
use crate::definition::{DispatchSettings, Ordering};
use crate::keyspace::LogId;
use crate::keyspace::delayed::DelayedState;
use crate::keyspace::queue::{AckBlock, Attempts, Failure, QueueFloor};
use crate::keyspace::segment::Record;
use crate::metrics::Metrics;

/// Bytes of messages read ahead of what consumers have room for.
pub(super) const READY_BYTES_MAX: usize = 1024 * 1024;
/// Messages of one shard that may wait for a retry before handing out new ones stops.
pub(super) const RETRY_MAX: usize = 10_000;
/// Bytes of them. One more may be under way to each place in a consumer's window.
pub(super) const RETRY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Rows of failed attempts written in one batch, which count about 200 bytes each. What is left goes with the next.
const ATTEMPT_ROWS_MAX: usize = 1000;

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
pub(super) struct Lease {
    pub(super) consumer: ConsumerId,
    pub(super) delivery_count: u32,
    pub(super) deadline: Instant,
    /// When it was given out.
    pub(super) at: Instant,
    pub(super) record: Arc<Record>,
}

#[derive(Debug)]
pub(super) struct Attached {
    pub(super) consumer: Consumer,
    /// Deliveries it has not settled, those whose time is over included: they still take its room.
    pub(super) inflight: u32,
    /// It had no room when last asked; whoever makes some says so.
    pub(super) full: bool,
    /// Nobody receives its deliveries any more; its end is about to be told.
    pub(super) gone: bool,
    pub(super) work: Work,
}

/// What the queue's declaration says about handing out.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Strategy, windows, time-outs, retries.
    pub dispatch: DispatchSettings,
    /// Whether messages of one key are delivered one at a time and in order.
    pub ordering: Ordering,
    /// Age from which a message is not delivered.
    pub max_age: Option<Duration>,
    /// Whether messages that are given up leave for the dead letters; else they are dropped.
    pub has_dead_letters: bool,
    /// From when on messages are moved aside.
    pub lag: Lag,
    /// What it may hold.
    pub limits: Limits,
    /// Whether only the newest message of each key is kept.
    pub last_value: bool,
    /// Nothing is delivered.
    pub paused: bool,
}

/// What is known of the first message that is not done while nobody consumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Front {
    /// Nothing: it may have expired.
    Unknown,
    /// It is being looked for.
    Sought,
    /// It expires at this time, if ever.
    Lasts(Option<Timestamp>),
}

/// One shard of a queue.
#[derive(Debug)]
pub struct QueueShard {
    pub(super) log: LogId,
    pub(super) settings: DispatchSettings,
    pub(super) ordering: Ordering,
    /// What waits for its key; empty unless order is kept.
    pub(super) keys: KeyOrder,
    /// Handing out has stopped because too much waits for its key.
    pub(super) is_key_bound: bool,
    pub(super) max_age: Option<Duration>,
    pub(super) has_dead_letters: bool,
    pub(super) limits: Limits,
    /// Its oldest messages had to be read to make room: from then on they are kept in memory.
    pub(super) needs_front: bool,
    /// Messages that wait for their time outside of the log, and their bytes.
    scheduled: (u64, u64),
    pub(super) paused: bool,
    /// Messages of other priorities that count against the limits, and their bytes.
    pub(super) elsewhere: (u64, u64),
    pub(super) counters: QueueFloor,
    pub(super) acks: Acks,
    pub(super) attempts: BTreeMap<u64, Attempts>,
    attempts_dirty: Vec<u64>,
    pub(super) asides: Asides,
    /// Of last-value queues only.
    pub(super) last_values: Option<LastValues>,
    pub(super) lag: Lag,
    pub(super) purging: Option<Purging>,
    pub(super) changed: bool,
    /// End of the committed log.
    pub(super) next: u64,
    /// Its end when this owner read it: what is below may have been sent to the dead letters before.
    pub(super) restored_next: u64,
    /// First offset that has not been read into `ready`.
    pub(super) read_next: u64,
    pub(super) ready: VecDeque<(u64, Arc<Record>)>,
    pub(super) ready_bytes: usize,
    /// To be delivered again; preferably not to the consumer named.
    pub(super) again: BTreeMap<u64, (Arc<Record>, Option<ConsumerId>)>,
    pub(super) delayed: BTreeMap<(Instant, u64), (Arc<Record>, Option<ConsumerId>)>,
    /// Of the messages in it.
    pub(super) delayed_bytes: usize,
    /// When each message of `delayed` is due.
    pub(super) delayed_until: BTreeMap<u64, Instant>,
    pub(super) leases: HashMap<u64, Lease>,
    /// What consumers hold from before this owner.
    pub(super) claims: Claims,
    /// Acknowledged before they were read: what they cost is taken off when they are. No more than consumers held
    /// when the shard was lost.
    owed: BTreeSet<u64>,
    /// Given up, and not in the dead letters yet.
    pub(super) dying: Dying,
    pub(super) expiring: Expiring,
    /// Leases in order of time-out, and some that have ended.
    pub(super) deadlines: VecDeque<(Instant, u64)>,
    /// In order of their ids.
    pub(super) consumers: Vec<Attached>,
    pub(super) turn: usize,
    pub(super) front: Front,
    pub(super) seed: Seed,
    pub(super) metrics: Metrics,
    pub(super) stats: Stats,
}

impl QueueShard {
    /// The shard as stored: its floor, acknowledgements and attempts, and the end of its log.
    #[must_use]
    pub fn restore(
        log: LogId,
        mut stored: StoredQueue,
        settings: Settings,
        seed: Seed,
        metrics: Metrics,
    ) -> Self {
        let (stored_floor, (is_beyond, gone)) = (stored.counters.floor, stored.cut());
        let StoredQueue { counters, blocks, attempts, next } = stored;
        let mut acks = Acks::new(counters.floor, blocks);
        let is_damaged = acks.cut(next) | is_beyond | !gone.is_empty();
        if is_damaged {
            metrics.damaged.inc();
            tracing::error!(
                ?log,
                end = next,
                floor = stored_floor,
                "queue state is beyond the end of its log: the store has lost messages, or was written to by others"
            );
        }
        let asides = attempts.iter().filter_map(|(offset, attempts)| Some((*offset, attempts.aside?)));
        let asides = Asides::restore(asides.collect());
        let mut expiring = Expiring::new(counters.floor..counters.expires_below.min(next));
        let max = settings.dispatch.max_deliveries;
        let given_up = attempts.iter().filter(|(_, row)| given_up(row, max).is_some());
        expiring.seek(given_up.map(|(offset, _)| *offset));
        Self {
            log,
            settings: settings.dispatch,
            ordering: settings.ordering,
            keys: KeyOrder::default(),
            is_key_bound: false,
            max_age: settings.max_age,
            has_dead_letters: settings.has_dead_letters,
            limits: settings.limits,
            needs_front: false,
            scheduled: (0, 0),
            paused: settings.paused,
            elsewhere: (0, 0),
            acks,
            attempts,
            attempts_dirty: gone,
            asides,
            last_values: settings.last_value.then(LastValues::default),
            lag: settings.lag,
            purging: None,
            changed: is_damaged,
            next,
            restored_next: next,
            read_next: counters.floor,
            counters,
            ready: VecDeque::new(),
            ready_bytes: 0,
            again: BTreeMap::new(),
            delayed: BTreeMap::new(),
            delayed_bytes: 0,
            delayed_until: BTreeMap::new(),
            leases: HashMap::default(),
            claims: Claims::default(),
            expiring,
            owed: BTreeSet::new(),
            dying: Dying::new(metrics.dead_letters_waiting.clone()),
            deadlines: VecDeque::new(),
            consumers: Vec::new(),
            // Shards do not all begin with the same consumer.
            turn: usize::from(log.shard),
            front: Front::Unknown,
            seed,
            metrics,
            stats: Stats::default(),
        }
    }

    /// Whether nothing is delivered: nobody consumes, or it is paused.
    pub(super) fn is_idle(&self) -> bool {
        self.paused || self.consumers.is_empty()
    }

    /// Messages that are not done.
    #[must_use]
    pub fn depth(&self) -> u64 {
        self.in_log().saturating_add(self.scheduled.0)
    }

    /// Messages of the log that are not done.
    pub(super) fn in_log(&self) -> u64 {
        self.next.saturating_sub(self.counters.done())
    }

    /// What waits for its time outside of the log.
    pub(crate) fn set_scheduled(&mut self, state: &DelayedState) {
        self.scheduled = (state.messages, state.bytes);
    }

    /// What messages of other priorities count against the limits.
    pub(crate) fn set_elsewhere(&mut self, limited: (u64, u64)) {
        self.elsewhere = limited;
    }

    /// Whether messages have to be read before any can be handed out: lower priorities wait for that.
    pub(crate) fn awaits_records(&self) -> bool {
        !self.is_idle() && self.ready.is_empty() && self.read_next < self.next
    }

    /// Messages that wait for their time.
    #[must_use]
    pub fn scheduled(&self) -> u64 {
        self.scheduled.0
    }

    /// Bytes of messages that are not done.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.counters.bytes.saturating_add(self.scheduled.1)
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

    /// The counters as they are in memory.
    #[must_use]
    pub fn counters(&self) -> &QueueFloor {
        &self.counters
    }

    /// The consumers and how many deliveries each has not settled.
    pub fn consumers(&self) -> impl Iterator<Item = (ConsumerId, u32)> {
        self.consumers.iter().map(|attached| (attached.consumer.id, attached.inflight))
    }

    /// The consumers.
    pub(crate) fn attached(&self) -> Vec<Consumer> {
        self.consumers.iter().map(|attached| attached.consumer.clone()).collect()
    }

    /// Lets go of the consumers, for them to be attached to another incarnation of this shard.
    pub(crate) fn into_consumers(self) -> Vec<Consumer> {
        self.consumers.into_iter().map(|attached| attached.consumer).collect()
    }

    /// Records appended at the end of the log and committed. Kept if everything before is in memory.
    pub fn appended(&mut self, base: u64, records: impl Iterator<Item = Arc<Record>>) {
        let is_wanted = !self.is_idle() || self.keeps_front();
        let mut caught_up = self.read_next == base && is_wanted;
        let mut offset = base;
        for record in records {
            self.add_bytes(offset, record.cost());
            caught_up &= self.ready_bytes < READY_BYTES_MAX;
            self.note_oldest(offset, &record);
            if let Some(at) = record.message.expires_at {
                self.expiring.note(offset, at);
                self.counters.expires_below = offset + 1;
            }
            offset += 1;
            if caught_up {
                self.push_ready(offset - 1, record);
                self.read_next = offset;
            }
        }
        self.next = self.next.max(offset);
    }

    /// Where the owner should read on, if consumers could take more than is in memory.
    #[must_use]
    pub fn wants_records(&self) -> Option<u64> {
        let low = self.ready_bytes < READY_BYTES_MAX / 2;
        let is_sought = self.front == Front::Sought && self.ready.is_empty();
        let wanted = !self.is_idle() || is_sought || self.keeps_front();
        (low && wanted && self.read_next < self.next).then_some(self.read_next)
    }

    /// While nobody consumes: when [`QueueShard::sweep`] could find an expired message.
    #[must_use]
    pub fn sweep_due(&self) -> Option<Timestamp> {
        let idle = self.is_idle() && self.in_log() > 0;
        match self.front {
            Front::Unknown | Front::Sought => idle.then(Timestamp::default),
            Front::Lasts(until) => until.filter(|_| idle),
        }
    }

    /// Looks for expired messages at the front although nobody consumes, until one is found that is not.
    pub fn sweep(&mut self, wall: Timestamp) {
        if self.sweep_due().is_some_and(|at| at <= wall) {
            self.front = Front::Sought;
        }
    }

    /// The front has not expired and nobody consumes: what was read ahead need not stay in memory.
    pub(super) fn rest(&mut self, expires: Option<Timestamp>) {
        self.front = Front::Lasts(expires);
        if let Some((first, _)) = self.ready.front().filter(|_| !self.keeps_front()) {
            self.read_next = *first;
            for (offset, _) in std::mem::take(&mut self.ready) {
                self.asides.forget(offset);
            }
            self.ready_bytes = 0;
        }
    }

    /// What was acknowledged before it was read costs nothing more, if it is before `end`.
    pub(super) fn owe_nothing_below(&mut self, end: u64) {
        self.owed = self.owed.split_off(&end);
    }

    /// Nothing between what is in memory and the end of the log is to be read.
    pub(super) fn skip_to_end(&mut self) {
        self.read_next = self.next;
        self.ready = VecDeque::new();
        self.ready_bytes = 0;
    }

    /// Takes a message out of those that wait for their first delivery.
    pub(super) fn forget_ready(&mut self, offset: u64) {
        let Ok(at) = self.ready.binary_search_by_key(&offset, |(offset, _)| *offset) else { return };
        if let Some((_, record)) = self.ready.remove(at) {
            self.ready_bytes = self.ready_bytes.saturating_sub(record.message.size());
        }
    }

    pub(super) fn expiry(&self, record: &Record) -> Option<Timestamp> {
        let message = &record.message;
        let by_age = self.max_age.map(|age| message.published_at.saturating_add(age));
        [message.expires_at, by_age].into_iter().flatten().min()
    }

    /// Records read from the store, beginning at `from`; `end` is where the next read begins. Ignored if
    /// the shard has moved on since it asked. What is beyond the end of the committed log may have been read
    /// before its commit was told: it comes again with [`QueueShard::appended`].
    pub fn loaded(
        &mut self,
        from: u64,
        end: u64,
        records: Vec<(u64, Arc<Record>)>,
        now: Instant,
        wall: Timestamp,
    ) {
        if from != self.read_next {
            return;
        }
        for (offset, record) in records {
            if offset >= self.next {
                break;
            }
            if self.owed.remove(&offset) {
                self.take_bytes(offset, record.cost());
                self.changed = true;
            }
            if offset < self.read_next || self.acks.is_done(offset) || self.is_at_hand(offset) {
                continue;
            }
            self.note_oldest(offset, &record);
            if !self.resume_delay(offset, &record, now, wall) {
                self.push_ready(offset, record);
            }
        }
        self.read_next = end.clamp(self.read_next, self.next);
    }

    /// Whether a message is in memory beside `ready`: it was read before, and then `ready` was let go of.
    fn is_at_hand(&self, offset: u64) -> bool {
        self.leases.contains_key(&offset)
            || self.again.contains_key(&offset)
            || self.delayed_until.contains_key(&offset)
            || self.dying.contains(offset)
            || self.keys.held_back(offset).is_some()
    }

    fn push_ready(&mut self, offset: u64, record: Arc<Record>) {
        self.ready_bytes += record.message.size();
        self.ready.push_back((offset, record));
    }

    /// A consumer joins; it gets its share at once.
    pub fn attach(&mut self, consumer: Consumer) {
        self.detach(consumer.id, Lost::Left);
        let at = self.find(consumer.id).unwrap_or_else(|at| at);
        self.consumers
            .insert(at, Attached { consumer, inflight: 0, full: false, gone: false, work: Work::default() });
    }

    /// Where a consumer is, or would be.
    pub(super) fn find(&self, id: ConsumerId) -> Result<usize, usize> {
        self.consumers.binary_search_by_key(&id, |attached| attached.consumer.id)
    }

    /// A consumer leaves: what it holds is to be delivered again, at once.
    pub fn detach(&mut self, id: ConsumerId, lost: Lost) {
        let Ok(at) = self.find(id) else { return };
        self.consumers.remove(at);
        self.claims.forget(id);
        let mut held: Vec<u64> =
            self.leases.iter().filter(|(_, lease)| lease.consumer == id).map(|(offset, _)| *offset).collect();
        held.sort_unstable();
        for offset in held {
            let Some(lease) = self.leases.remove(&offset) else { continue };
            if self.drop_superseded(offset, &lease.record) {
                continue;
            }
            let avoid = match lost {
                Lost::Left => None,
                Lost::Vanished if self.count_attempt(offset, &lease.record, Failure::Disconnected) => {
                    continue;
                }
                Lost::Vanished => Some(id),
            };
            self.again.insert(offset, (lease.record, avoid));
        }
        if self.is_idle() {
            self.front = Front::Unknown;
        }
    }

    /// A consumer that had no room has some now.
    pub fn kick(&mut self, id: ConsumerId) {
        if let Ok(at) = self.find(id) {
            let attached = &mut self.consumers[at];
            attached.full = attached.gone;
        }
    }

    /// What a consumer says of a message that was handed to it. A late acknowledgement counts if nobody else's did; a
    /// late refusal says nothing of a later delivery.
    pub fn settle(&mut self, handout: Handout, verdict: Verdict, now: Instant, wall: Timestamp) {
        let Handout { consumer, offset, delivery_count, .. } = handout;
        self.claims.settle(offset, consumer, delivery_count);
        let is_this = |lease: &&Lease| lease.consumer == consumer && lease.delivery_count == delivery_count;
        let lease = self.leases.get(&offset).filter(is_this);
        let (held, took) = (lease.is_some(), lease.map(|lease| now.saturating_duration_since(lease.at)));
        if let Ok(at) = self.find(consumer) {
            let attached = &mut self.consumers[at];
            attached.inflight = attached.inflight.saturating_sub(1);
            attached.full = attached.gone;
            attached.work.settled(verdict, took);
        }
        match verdict {
            Verdict::Acknowledged => self.acknowledge(offset),
            Verdict::Rejected if held => {
                self.metrics.rejected.inc();
                self.stats.rejected += 1;
                self.retry_later(offset, Failure::Rejected, now, wall);
            }
            Verdict::Returned if held => {
                if let Some(lease) = self.leases.remove(&offset)
                    && !self.drop_superseded(offset, &lease.record)
                {
                    self.again.insert(offset, (lease.record, None));
                }
            }
            Verdict::Rejected | Verdict::Returned => {}
        }
    }

    fn acknowledge(&mut self, offset: u64) {
        if self.dying.contains(offset) {
            if let Some(cost) = self.revive(offset) {
                self.finish(offset, cost, End::Acknowledged);
            }
            return;
        }
        let record = if let Some(lease) = self.leases.remove(&offset) {
            Some(lease.record)
        } else if let Some(record) = self.take_waiting(offset) {
            Some(record)
        } else {
            // Delivered in an earlier life of this shard. It stays in `ready` until it comes to the front.
            let at = self.ready.binary_search_by_key(&offset, |(offset, _)| *offset);
            at.ok().and_then(|at| self.ready.get(at)).map(|(_, record)| Arc::clone(record))
        };
        let is_unread = record.is_none() && offset >= self.read_next;
        let is_known = self.last_values.is_some() || self.asides.contains(offset);
        let cost = record.map_or(0, |record| record.cost());
        if self.finish(offset, cost, End::Acknowledged) && is_unread && !is_known {
            self.owed.insert(offset);
        }
    }

    /// Takes a message out of those that are to be delivered again.
    pub(super) fn take_waiting(&mut self, offset: u64) -> Option<Arc<Record>> {
        if let Some((record, _)) = self.again.remove(&offset) {
            return Some(record);
        }
        if let Some(record) = self.keys.held_back(offset) {
            // It is let go of when it ends.
            return Some(Arc::clone(record));
        }
        self.take_delayed(offset)
    }

    /// Marks a message as done and what it held as free; [`QueueShard::finish`] counts why.
    pub(super) fn set_done(&mut self, offset: u64, cost: u64, end: End) -> bool {
        let known = self.last_values.as_mut().and_then(|values| values.remove(offset));
        let cost = match self.asides.end(offset, end) {
            Some(cost) => cost,
            None if self.acks.set(offset, self.next) => known.unwrap_or(cost),
            None => return false,
        };
        if self.attempts.remove(&offset).is_some() {
            self.attempts_dirty.push(offset);
        }
        self.claims.take(offset);
        self.counters.floor = self.acks.floor();
        // An empty queue is right again, whatever was not at hand when it was acknowledged.
        let empty = self.counters.floor == self.next && self.asides.is_empty();
        self.take_bytes(offset, cost);
        if empty {
            self.counters.bytes = 0;
            self.purging = None;
            self.owed.clear();
        }
        self.changed = true;
        true
    }

    /// The attempts at `offset` have to be written.
    pub(super) fn touch_attempts(&mut self, offset: u64) {
        self.attempts_dirty.push(offset);
        self.changed = true;
    }

    /// When [`QueueShard::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let deadline = self.deadlines.front().map(|(at, _)| *at);
        let delayed = self.delayed.keys().next().map(|(at, _)| *at);
        [deadline, delayed, self.dying.poll_timeout()].into_iter().flatten().min()
    }

    /// Ends leases whose time is over and makes messages ready whose backoff is.
    pub fn handle_timeout(&mut self, now: Instant, wall: Timestamp) {
        while let Some((at, offset)) = self.deadlines.front().copied() {
            // Entries of leases that have ended are dropped early, so that the queue stays as long as the leases.
            let live = self.leases.get(&offset).is_some_and(|lease| lease.deadline == at);
            if live && at > now {
                break;
            }
            self.deadlines.pop_front();
            if live {
                self.metrics.ack_timeouts.inc();
                self.stats.timeouts += 1;
                self.retry_later(offset, Failure::TimedOut, now, wall);
            }
        }
        self.end_delays(now);
    }

    /// Whether something has to be written.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.changed
    }

    /// What has to be written: the floor, ack blocks and attempts that changed.
    pub(crate) fn take_dirty(&mut self) -> DirtyQueue {
        let asides = self.asides.take_dirty();
        let left = self.asides.left();
        let mut offsets = std::mem::take(&mut self.attempts_dirty);
        // Both rows of a message aside are cleared at once.
        offsets.retain(|offset| !left.contains_key(offset));
        offsets.sort_unstable();
        offsets.dedup();
        self.attempts_dirty = offsets.split_off(offsets.len().min(ATTEMPT_ROWS_MAX));
        self.changed = !self.attempts_dirty.is_empty() || !left.is_empty();
        let mut floor = self.counters;
        for ended in left.values() {
            floor.bytes = floor.bytes.saturating_add(ended.cost);
            let counted = counter(&mut floor, ended.end);
            *counted = counted.saturating_sub(1);
        }
        // Floor and counters rely on the rows of messages aside.
        let attempts: BTreeMap<u64, Option<Attempts>> = offsets
            .into_iter()
            .chain(asides.iter().map(|(offset, _)| *offset))
            .map(|offset| (offset, self.attempts.get(&offset).copied()))
            .collect();
        DirtyQueue { floor, blocks: self.acks.take_dirty(), attempts, asides }
    }

    /// What was taken last is in the store.
    pub(crate) fn written(&mut self) {
        self.asides.written();
    }

    /// A write did not happen: what it held has to be written again.
    pub(crate) fn restore_dirty(&mut self, dirty: &DirtyQueue) {
        self.changed = true;
        self.acks.mark_dirty(dirty.blocks.iter().map(|(block, _)| *block));
        self.attempts_dirty.extend(dirty.attempts.keys());
        self.asides.restore_dirty(&dirty.asides);
    }
}

/// Changed state of a queue's shard, to be written in one transaction.
#[derive(Clone, Debug)]
pub(crate) struct DirtyQueue {
    pub(crate) floor: QueueFloor,
    pub(crate) blocks: Vec<(u64, Option<AckBlock>)>,
    pub(crate) attempts: BTreeMap<u64, Option<Attempts>>,
    pub(crate) asides: Vec<(u64, AsideChange)>,
}
