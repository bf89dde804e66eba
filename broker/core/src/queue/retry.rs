//! Messages that come again: failed attempts, and how long a message waits for its next.
//!
//! Attempts are stored with the time before which the message is not delivered, so that a shard that is read again
//! waits what is left of it. Knows nothing of consumers' room: what is due goes to `again`.

use std::sync::Arc;

use weir_env::clock::{Instant, Timestamp};

use super::ops::is_operator;
use super::shard::{QueueShard, RETRY_BYTES_MAX, RETRY_MAX};
use super::{ConsumerId, DeadReason};
use crate::definition::Ordering;
use crate::keyspace::queue::{Attempts, Failure};
use crate::keyspace::segment::Record;

impl QueueShard {
    /// Counts a failed attempt. True if it was the last one allowed, and the message is given up.
    pub(super) fn count_attempt(&mut self, offset: u64, record: &Arc<Record>, why: Failure) -> bool {
        let attempts = self.attempts.entry(offset).or_default();
        attempts.failed = attempts.failed.saturating_add(1);
        attempts.failure = Some(why);
        attempts.not_before = Timestamp::default();
        self.touch_attempts(offset);
        let exhausted = self.exhausted(offset);
        if let Some(why) = exhausted {
            self.give_up(offset, record, why);
        }
        exhausted.is_some()
    }

    /// Why the last attempt allowed has failed, if it has.
    pub(super) fn exhausted(&self, offset: u64) -> Option<DeadReason> {
        given_up(self.attempts.get(&offset)?, self.settings.max_deliveries)
    }

    /// Ends a lease whose message is to be delivered again after its backoff.
    pub(super) fn retry_later(&mut self, offset: u64, why: Failure, now: Instant, wall: Timestamp) {
        let Some(lease) = self.leases.remove(&offset) else { return };
        if self.drop_superseded(offset, &lease.record) {
            return;
        }
        if is_operator(&lease) {
            self.again.insert(offset, (lease.record, None));
            return;
        }
        if self.count_attempt(offset, &lease.record, why) {
            return;
        }
        let attempts = self.attempts.entry(offset).or_default();
        let wait = self.settings.backoff(attempts.failed);
        attempts.not_before = wall.saturating_add(wait);
        self.delay(offset, now + wait, lease.record, Some(lease.consumer));
    }

    fn delay(&mut self, offset: u64, due: Instant, record: Arc<Record>, avoid: Option<ConsumerId>) {
        if self.ordering == Ordering::Key {
            self.keys.start(offset, &record);
        }
        self.delayed_bytes += record.message.size();
        self.delayed.insert((due, offset), (record, avoid));
        self.delayed_until.insert(offset, due);
    }

    /// Takes a message out of those whose backoff goes on.
    pub(super) fn take_delayed(&mut self, offset: u64) -> Option<Arc<Record>> {
        let due = self.delayed_until.remove(&offset)?;
        let (record, _) = self.delayed.remove(&(due, offset))?;
        self.delayed_bytes = self.delayed_bytes.saturating_sub(record.message.size());
        Some(record)
    }

    /// Whether so much waits for its backoff that nothing new may be handed out.
    pub(super) fn is_retry_bound(&self) -> bool {
        self.delayed.len() >= RETRY_MAX || self.delayed_bytes >= RETRY_BYTES_MAX
    }

    /// Keeps a message that was read from the store waiting if its backoff is not over. However the clock was set
    /// meanwhile, it waits no longer than a backoff may last. False if it need not wait.
    pub(super) fn resume_delay(
        &mut self,
        offset: u64,
        record: &Arc<Record>,
        now: Instant,
        wall: Timestamp,
    ) -> bool {
        let Some(attempts) = self.attempts.get(&offset).filter(|attempts| attempts.not_before > wall) else {
            return false;
        };
        let longest = self.settings.backoff(attempts.failed);
        let wait = attempts.not_before.saturating_since(wall).min(longest);
        self.delay(offset, now + wait, Arc::clone(record), None);
        true
    }

    /// Makes messages ready whose backoff is over.
    pub(super) fn end_delays(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            let (due, offset) = *entry.key();
            if due > now {
                break;
            }
            let (record, avoid) = entry.remove();
            self.delayed_until.remove(&offset);
            self.delayed_bytes = self.delayed_bytes.saturating_sub(record.message.size());
            self.again.insert(offset, (record, avoid));
        }
    }
}

/// Why the message of this row is given up, if it is: its last of `max` attempts has failed (0: any number is
/// allowed), or it made room.
pub(super) fn given_up(row: &Attempts, max: u32) -> Option<DeadReason> {
    if row.failure == Some(Failure::MadeRoom) {
        return Some(DeadReason::Overflow);
    }
    let is_last = max != 0 && row.failed >= max;
    // A row that was written before failures were noted does not say why.
    is_last.then(|| row.failure.map_or(DeadReason::Rejected, DeadReason::from))
}
