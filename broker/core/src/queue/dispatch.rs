//! Handing out: which consumer gets the next message.
//!
//! Knows consumers' room and the strategy; what becomes of a message afterwards is the shard's affair.

use std::sync::Arc;

use tokio::sync::mpsc::error::TrySendError;
use weir_env::clock::{Instant, Timestamp};

use super::shard::{Lease, QueueShard, RETRY_MAX};
use super::{ConsumerId, DeadReason, QueueDelivery};
use crate::definition::Strategy;
use crate::keyspace::segment::Record;

impl QueueShard {
    /// Hands out messages while there are some and consumers have room.
    pub fn dispatch(&mut self, now: Instant, wall: Timestamp) {
        while let Some((offset, record, avoid)) = self.front() {
            if self.is_over(offset) {
                self.forget_front(offset);
                continue;
            }
            let expires = self.expiry(&record);
            if expires.is_some_and(|at| at <= wall) {
                self.forget_front(offset);
                self.give_up(offset, &record, DeadReason::Expired);
                continue;
            }
            if let Some(why) = self.exhausted(offset) {
                // It was before a restart, or by another limit.
                self.forget_front(offset);
                self.give_up(offset, &record, why);
                continue;
            }
            if self.is_idle() {
                self.rest(expires);
                break;
            }
            let Some(to) = self.choose(avoid) else { break };
            self.forget_front(offset);
            self.lease(to, offset, record, now);
        }
    }

    /// The next message: one that has been delivered before, or else the first that has not.
    fn front(&self) -> Option<(u64, Arc<Record>, Option<ConsumerId>)> {
        if let Some((offset, (record, avoid))) = self.again.first_key_value() {
            return Some((*offset, Arc::clone(record), *avoid));
        }
        if self.delayed.len() >= RETRY_MAX || self.dying.is_full() {
            return None;
        }
        self.ready.front().map(|(offset, record)| (*offset, Arc::clone(record), None))
    }

    fn forget_front(&mut self, offset: u64) {
        if self.again.remove(&offset).is_none()
            && let Some((_, record)) = self.ready.pop_front()
        {
            self.ready_bytes = self.ready_bytes.saturating_sub(record.message.size());
        }
    }

    /// A consumer with room, whose room is then taken; `avoid` only if no other has any.
    fn choose(&mut self, avoid: Option<ConsumerId>) -> Option<usize> {
        let turn = match self.settings.strategy {
            Strategy::Random => usize::try_from(self.seed.below(self.consumers.len() as u64)).unwrap_or(0),
            Strategy::RoundRobin | Strategy::LeastInflight => self.turn,
        };
        loop {
            let at = self.candidate(turn, avoid)?;
            let attached = &mut self.consumers[at];
            if attached.consumer.try_take() {
                self.turn = at + 1;
                return Some(at);
            }
            attached.full = true;
        }
    }

    /// Of the consumers that may have room, the first from `turn` on, or the least busy.
    fn candidate(&self, turn: usize, avoid: Option<ConsumerId>) -> Option<usize> {
        let count = self.consumers.len();
        let least = self.settings.strategy == Strategy::LeastInflight;
        let mut best = None;
        for n in 0..count {
            let at = (turn + n) % count;
            let attached = &self.consumers[at];
            if attached.full {
                continue;
            }
            let is_avoided = Some(attached.consumer.id) == avoid;
            let rank = (is_avoided, if least { attached.inflight } else { 0 });
            if best.is_none_or(|(other, _)| rank < other) {
                best = Some((rank, at));
            }
            if rank == (false, 0) {
                break;
            }
        }
        best.map(|(_, at)| at)
    }

    fn lease(&mut self, to: usize, offset: u64, record: Arc<Record>, now: Instant) {
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
