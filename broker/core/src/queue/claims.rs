//! Messages that consumers held when their shard lost its owner: the next one leaves them where they are.
//!
//! Whoever consumes says what it holds when it is attached. The message itself may not be in memory yet, so what is
//! said waits here until dispatch comes to the message, which then is leased as if it had been handed out: to the same
//! consumer, until the same time. A claim that an attempt counted since contradicts is void. Bounded by the windows of
//! the consumers.

use std::collections::BTreeMap;
use std::sync::Arc;

use weir_env::clock::Instant;

use super::shard::{Lease, QueueShard};
use super::{Consumer, ConsumerId};
use crate::definition::Ordering;
use crate::keyspace::segment::Record;

/// A message that a consumer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Priority class of its log.
    pub class: u8,
    /// Its offset there.
    pub offset: u64,
    /// 1 for the first delivery.
    pub delivery_count: u32,
    /// When it was handed out.
    pub at: Instant,
}

/// What consumers hold of one log, and is not leased to them yet.
#[derive(Debug, Default)]
pub(super) struct Claims(BTreeMap<u64, Claim>);

#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    consumer: ConsumerId,
    delivery_count: u32,
    at: Instant,
}

impl Claims {
    pub(super) fn take(&mut self, offset: u64) -> Option<Claim> {
        self.0.remove(&offset)
    }

    /// `consumer` holds nothing any more.
    pub(super) fn forget(&mut self, consumer: ConsumerId) {
        self.0.retain(|_, claim| claim.consumer != consumer);
    }

    /// Ends a claim that a consumer has settled.
    pub(super) fn settle(&mut self, offset: u64, consumer: ConsumerId, delivery_count: u32) {
        let is_its = |claim: &Claim| claim.consumer == consumer && claim.delivery_count == delivery_count;
        if self.0.get(&offset).is_some_and(is_its) {
            self.0.remove(&offset);
        }
    }
}

impl QueueShard {
    /// A consumer joins that holds messages already, of this log and of others: those of this log go to nobody else
    /// while it does.
    pub fn attach_holding(&mut self, consumer: Consumer, held: &[Held]) {
        let id = consumer.id;
        self.attach(consumer);
        let mut inflight = 0;
        for held in held.iter().filter(|held| held.class == self.log.class) {
            let Held { offset, delivery_count, at, .. } = *held;
            let failed = self.attempts.get(&offset).map_or(0, |attempts| attempts.failed);
            // Its time was over, or it is another's: it may still be acknowledged.
            let is_void = delivery_count <= failed || self.leases.contains_key(&offset);
            if is_void || self.is_over(offset) || offset >= self.next {
                continue;
            }
            self.claims.0.insert(offset, Claim { consumer: id, delivery_count, at });
            inflight += 1;
        }
        if let Ok(at) = self.find(id) {
            self.consumers[at].inflight = inflight;
        }
    }

    /// What each consumer holds.
    pub(crate) fn held(&self) -> Vec<(ConsumerId, Held)> {
        let class = self.log.class;
        let leased = self.leases.iter().map(|(offset, lease)| {
            let Lease { consumer, delivery_count, at, .. } = *lease;
            (consumer, Held { class, offset: *offset, delivery_count, at })
        });
        let claimed = self.claims.0.iter().map(|(offset, claim)| {
            let Claim { consumer, delivery_count, at } = *claim;
            (consumer, Held { class, offset: *offset, delivery_count, at })
        });
        let mut held: Vec<(ConsumerId, Held)> = leased.chain(claimed).collect();
        held.sort_unstable_by_key(|(consumer, held)| (*consumer, held.offset));
        held
    }

    /// Leases a message to the consumer who holds it.
    pub(super) fn resume_lease(&mut self, offset: u64, record: Arc<Record>, claim: Claim) {
        if self.ordering == Ordering::Key {
            self.keys.start(offset, &record);
        }
        let Claim { consumer, delivery_count, at } = claim;
        let deadline = at + self.settings.ack_timeout();
        self.leases.insert(offset, Lease { consumer, delivery_count, deadline, at, record });
        let place = self.deadlines.partition_point(|(at, _)| *at <= deadline);
        self.deadlines.insert(place, (deadline, offset));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;
    use weir_env::clock::{Clock, Timestamp};
    use weir_env::seed::Seed;

    use super::*;
    use crate::keyspace::LogId;
    use crate::keyspace::queue::Attempts;
    use crate::keyspace::segment::RecordKey;
    use crate::message::tests::full_message;
    use crate::metrics::Metrics;
    use crate::queue::{Limits, Lost, QueueDelivery, Settings, StoredQueue, Verdict, Window};

    fn records(count: u64) -> Vec<(u64, Arc<Record>)> {
        let mut message = full_message();
        message.expires_at = None;
        let record =
            Arc::new(Record { message, key: RecordKey::None, blob_len: None, span: tracing::Span::none() });
        (0..count).map(|offset| (offset, Arc::clone(&record))).collect()
    }

    /// A shard of `count` messages, none of which is in memory.
    fn shard(count: u64, failed: &[(u64, u32)]) -> QueueShard {
        let attempts = failed
            .iter()
            .map(|(offset, failed)| (*offset, Attempts { failed: *failed, ..Attempts::default() }));
        let stored = StoredQueue { next: count, attempts: attempts.collect(), ..StoredQueue::default() };
        let settings = Settings { limits: Limits::default(), ..Settings::default() };
        QueueShard::restore(LogId::place(1, 0, 8), stored, settings, Seed::fixed(1), Metrics::default())
    }

    fn consumer(id: u64) -> (Consumer, mpsc::Receiver<QueueDelivery>) {
        let (deliveries, received) = mpsc::channel(100);
        let consumer = Consumer {
            id: ConsumerId(id),
            client_id: "c".into(),
            since: Timestamp::default(),
            window: Arc::new(Window::new(100)),
            connection_window: None,
            deliveries,
        };
        (consumer, received)
    }

    fn held(offset: u64, delivery_count: u32, at: Instant) -> Held {
        Held { class: 0, offset, delivery_count, at }
    }

    fn offsets(received: &mut mpsc::Receiver<QueueDelivery>) -> Vec<u64> {
        std::iter::from_fn(|| received.try_recv().ok()).map(|delivery| delivery.offset).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_goes_to_nobody_else_until_its_time_is_over() {
        let clock = Clock::system();
        let (now, wall) = (clock.now(), clock.wall());
        let mut shard = shard(4, &[(2, 1)]);
        let ((first, mut to_first), (second, mut to_second)) = (consumer(1), consumer(2));
        // Its attempt at 2 has been counted as failed since; what it says of 9 cannot be.
        let claims = [held(1, 1, now), held(2, 1, now), held(3, 1, now), held(9, 1, now)];
        shard.attach_holding(first, &claims);
        shard.attach(second);
        let timeout = shard.settings.ack_timeout();
        shard.loaded(0, 4, records(4), now, wall);
        shard.dispatch(now, wall);
        let mut given = [offsets(&mut to_first), offsets(&mut to_second)].concat();
        given.sort_unstable();
        assert_eq!(given, [0, 2]);
        let handout =
            crate::queue::Handout { log: shard.log, consumer: ConsumerId(1), offset: 1, delivery_count: 1 };
        shard.settle(handout, Verdict::Acknowledged, now, wall);
        assert!(shard.is_over(1), "its acknowledgement counts");
        tokio::time::advance(timeout).await;
        let now = clock.now();
        shard.handle_timeout(now, wall);
        assert_eq!(shard.attempts.get(&3).map(|attempts| attempts.failed), Some(1), "its time is over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_ends_with_its_consumer_or_its_settlement() {
        let clock = Clock::system();
        let (now, wall) = (clock.now(), clock.wall());
        let mut shard = shard(3, &[]);
        let ((first, _to_first), (second, mut to_second)) = (consumer(1), consumer(2));
        shard.attach_holding(first, &[held(0, 1, now), held(1, 1, now), held(2, 1, now)]);
        shard.attach(second);
        assert_eq!(shard.held().len(), 3);
        let handout = |offset| crate::queue::Handout {
            log: LogId::place(1, 0, 8),
            consumer: ConsumerId(1),
            offset,
            delivery_count: 1,
        };
        shard.settle(handout(0), Verdict::Acknowledged, now, wall);
        shard.settle(handout(1), Verdict::Returned, now, wall);
        assert_eq!(shard.held().len(), 1);
        shard.detach(ConsumerId(1), Lost::Left);
        shard.loaded(0, 3, records(3), now + Duration::ZERO, wall);
        shard.dispatch(now, wall);
        assert_eq!(offsets(&mut to_second), [1, 2]);
    }
}
