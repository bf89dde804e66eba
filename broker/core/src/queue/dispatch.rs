//! Handing out: which consumer gets the next message.
//!
//! Knows consumers' room, the strategy and whether a key is busy; what becomes of a message afterwards is the
//! shard's affair.

use std::sync::Arc;

use tokio::sync::mpsc::error::TrySendError;
use weir_env::clock::{Instant, Timestamp};

use super::keys::Admission;
use super::shard::{Attached, Lease, QueueShard};
use super::{ConsumerId, DeadReason, QueueDelivery};
use crate::definition::{Ordering, Strategy};
use crate::keyspace::segment::Record;

/// Consumers with room among which the least busy is looked for, beginning with the one whose turn it is.
const LEAST_BUSY_OF: usize = 64;

/// A message that could be handed out next.
struct Candidate {
    offset: u64,
    record: Arc<Record>,
    /// Whether it waits to be delivered again, or has waited for its key.
    again: bool,
    avoid: Option<ConsumerId>,
}

impl QueueShard {
    /// Hands out messages while there are some and consumers have room.
    pub fn dispatch(&mut self, now: Instant, wall: Timestamp) {
        while let Some(next) = self.front() {
            if self.is_over(next.offset) {
                self.forget(&next);
                continue;
            }
            if let Some(claim) = self.claims.take(next.offset) {
                self.forget(&next);
                self.resume_lease(next.offset, next.record, claim);
                continue;
            }
            let expires = self.expiry(&next.record);
            if expires.is_some_and(|at| at <= wall) {
                self.forget(&next);
                self.give_up(next.offset, &next.record, DeadReason::Expired);
                continue;
            }
            if let Some(why) = self.exhausted(next.offset) {
                // It was before a restart, or by another limit.
                self.forget(&next);
                self.give_up(next.offset, &next.record, why);
                continue;
            }
            if self.is_idle() {
                self.rest(expires);
                break;
            }
            match self.admit(&next) {
                Admission::Free => {}
                Admission::Wait => {
                    self.hold_back(next);
                    continue;
                }
                Admission::Full => break,
            }
            let Some(to) = self.choose(next.avoid) else { break };
            self.forget(&next);
            self.lease(to, next.offset, next.record, now);
        }
    }

    /// The next message: one that has been delivered before, or else the first that has not.
    fn front(&self) -> Option<Candidate> {
        if let Some((offset, (record, avoid))) = self.again.first_key_value() {
            let record = Arc::clone(record);
            return Some(Candidate { offset: *offset, record, again: true, avoid: *avoid });
        }
        if self.is_retry_bound() || self.dying.is_full() {
            return None;
        }
        if self.ordering == Ordering::Key && self.asides.are_unread() && !self.is_idle() {
            // They are older, and may be of the same keys.
            return None;
        }
        let (offset, record) = self.ready.front()?;
        Some(Candidate { offset: *offset, record: Arc::clone(record), again: false, avoid: None })
    }

    /// Takes the front away.
    fn forget(&mut self, front: &Candidate) {
        if front.again {
            self.again.remove(&front.offset);
        } else if let Some((_, record)) = self.ready.pop_front() {
            self.ready_bytes = self.ready_bytes.saturating_sub(record.message.size());
        }
    }

    /// Whether the order of its key lets a message go.
    fn admit(&mut self, next: &Candidate) -> Admission {
        if self.ordering == Ordering::None {
            return Admission::Free;
        }
        let admission =
            self.keys.admit(next.offset, &next.record, |offset| self.leases.contains_key(&offset));
        if admission != Admission::Full {
            self.is_key_bound = false;
            return admission;
        }
        if next.again {
            // These are bounded as messages that wait for a retry are, and one of them may be in another's way.
            return Admission::Wait;
        }
        if !std::mem::replace(&mut self.is_key_bound, true) {
            self.metrics.key_lookahead_full.inc();
        }
        admission
    }

    fn hold_back(&mut self, next: Candidate) {
        self.forget(&next);
        self.metrics.key_waits.inc();
        if let Some((offset, record)) = self.keys.hold_back(next.offset, next.record) {
            self.again.insert(offset, (record, None));
        }
    }

    /// A message is not under way any more: the next of its key is.
    pub(super) fn free_key(&mut self, offset: u64) {
        if let Some((next, record)) = self.keys.end(offset) {
            self.again.insert(next, (record, None));
        }
    }

    /// New rules about order: what is under way keeps its key busy, or what waits for its key waits no longer.
    pub(super) fn set_ordering(&mut self, ordering: Ordering) {
        if std::mem::replace(&mut self.ordering, ordering) == ordering {
            return;
        }
        self.is_key_bound = false;
        match ordering {
            Ordering::None => {
                let waiting = self.keys.clear().into_iter();
                self.again.extend(waiting.map(|(offset, record)| (offset, (record, None))));
            }
            Ordering::Key => {
                let delayed = self.delayed.iter().map(|((_, offset), (record, _))| (offset, record));
                let leased = self.leases.iter().map(|(offset, lease)| (offset, &lease.record));
                leased.chain(delayed).for_each(|(offset, record)| self.keys.start(*offset, record));
            }
        }
    }

    /// A consumer with room, whose room is then taken; `avoid` only if no other has any.
    fn choose(&mut self, avoid: Option<ConsumerId>) -> Option<usize> {
        loop {
            let at = self.candidate(avoid)?;
            let attached = &mut self.consumers[at];
            if attached.consumer.try_take() {
                self.turn = at + 1;
                return Some(at);
            }
            attached.full = true;
        }
    }

    /// Of the consumers that may have room, one as the strategy says.
    fn candidate(&mut self, avoid: Option<ConsumerId>) -> Option<usize> {
        let count = self.consumers.len();
        let turn = self.turn;
        let consumers = &self.consumers;
        let is_open = |at: &usize| !consumers[*at].full && Some(consumers[*at].consumer.id) != avoid;
        let mut open = (0..count).map(|n| (turn + n) % count).filter(is_open);
        let chosen = match self.settings.strategy {
            Strategy::RoundRobin => open.next(),
            Strategy::Random => {
                let number = open.clone().count() as u64;
                let nth = if number == 0 { 0 } else { self.seed.below(number) };
                open.nth(usize::try_from(nth).unwrap_or(0))
            }
            Strategy::LeastInflight => least_busy(consumers, open),
        };
        chosen.or_else(|| {
            let avoided = self.find(avoid?).ok()?;
            (!self.consumers[avoided].full).then_some(avoided)
        })
    }

    fn lease(&mut self, to: usize, offset: u64, record: Arc<Record>, now: Instant) {
        if self.ordering == Ordering::Key {
            self.keys.start(offset, &record);
        }
        let failed = self.attempts.get(&offset).map_or(0, |attempts| attempts.failed);
        let delivery_count = failed.saturating_add(1);
        let attached = &mut self.consumers[to];
        let delivery = QueueDelivery {
            consumer: attached.consumer.id,
            acknowledged: attached.consumer.connection_window.is_some(),
            log: self.log,
            offset,
            delivery_count,
            record: Arc::clone(&record),
        };
        let consumer = attached.consumer.id;
        if let Err(error) = attached.consumer.deliveries.try_send(delivery) {
            // Its connection is gone and says so in a moment, or has no place where it should have.
            attached.consumer.put_back();
            attached.gone = matches!(error, TrySendError::Closed(_));
            attached.full = true;
            self.again.insert(offset, (record, None));
            return;
        }
        attached.inflight += 1;
        attached.work.delivered += 1;
        self.metrics.dispatched.inc();
        self.stats.delivered += 1;
        if failed > 0 {
            self.metrics.redelivered.inc();
            self.stats.redelivered += 1;
        }
        let deadline = now + self.settings.ack_timeout();
        self.leases.insert(offset, Lease { consumer, delivery_count, deadline, at: now, record });
        if self.deadlines.len() > 2 * self.leases.len() + 1024 {
            let leases = &self.leases;
            self.deadlines.retain(|(at, offset)| leases.get(offset).is_some_and(|l| l.deadline == *at));
        }
        self.deadlines.push_back((deadline, offset));
    }
}

/// Of the first consumers in `open` the one that holds the fewest messages of its queue, all shards together;
/// of several the first.
fn least_busy(consumers: &[Attached], open: impl Iterator<Item = usize>) -> Option<usize> {
    let mut best = None;
    for at in open.take(LEAST_BUSY_OF) {
        let taken = consumers[at].consumer.window.taken();
        if best.is_none_or(|(least, _)| taken < least) {
            best = Some((taken, at));
        }
        if taken <= 0 {
            break;
        }
    }
    best.map(|(_, at)| at)
}
