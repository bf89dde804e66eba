//! Keeps queues from starving where Receive Maximum is small: live messages are there at once when a slot becomes
//! free, those of a queue only when its shard has heard of it.
//!
//! So after others have had a slot, the next one that queues wait for is kept for them, for a moment. Queues wait from
//! when they are told of room until one of their messages comes: a shard that is slow to hear of it must not lose its
//! turn to others that are quick. Knows slots and time, nothing of messages. Owned by the connection's task.

use std::time::Duration;

use weir_env::clock::Instant;

/// How long a slot is kept. A shard answers in much less; a queue that turns out to be empty costs this much.
const KEPT_FOR: Duration = Duration::from_millis(100);

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct QueueSlot {
    /// Others had a slot since a queue had one.
    owed: bool,
    /// Queues have been told of room and have not answered.
    told: bool,
    kept_until: Option<Instant>,
}

impl QueueSlot {
    /// A live, inbox, stream or retained message took a slot.
    pub(super) fn others_took_one(&mut self) {
        self.owed = true;
    }

    /// A queue message has come.
    pub(super) fn queue_took_one(&mut self) {
        *self = Self::default();
    }

    /// A slot is free, and queues that wait for one are told.
    pub(super) fn queues_told(&mut self, now: Instant) {
        self.told = true;
        self.freed(now);
    }

    /// A slot is free; queues may have been told of an earlier one.
    pub(super) fn freed(&mut self, now: Instant) {
        if self.told && std::mem::take(&mut self.owed) {
            self.kept_until = Some(now + KEPT_FOR);
        }
    }

    /// Whether the last slot is kept for a queue, of which messages may be here already.
    pub(super) fn is_kept(&self, any_here: bool) -> bool {
        self.kept_until.is_some() || any_here && self.owed
    }

    /// When the slot is no longer kept.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.kept_until
    }

    /// The time may have come: then nobody waits for an answer any more.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.kept_until.is_some_and(|until| until <= now) {
            self.kept_until = None;
            self.told = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_env::clock::Clock;

    use super::*;

    #[test]
    fn a_slot_is_kept_for_queues_that_wait_once_others_had_one() {
        let now = Clock::system().now();
        let mut slot = QueueSlot::default();
        slot.queues_told(now);
        assert!(!slot.is_kept(false), "nobody else had one");
        slot.queue_took_one();
        slot.others_took_one();
        slot.freed(now);
        assert!(!slot.is_kept(false), "no queue waits");
        assert!(slot.is_kept(true));
        slot.queues_told(now);
        assert!(slot.is_kept(false));
        slot.queue_took_one();
        assert!(!slot.is_kept(true));
    }

    #[test]
    fn queues_that_are_slow_to_answer_keep_their_turn() {
        let now = Clock::system().now();
        let mut slot = QueueSlot::default();
        // Told when it was the others' turn, and these came and went before an answer did.
        slot.queues_told(now);
        slot.others_took_one();
        slot.freed(now);
        assert!(slot.is_kept(false));
    }

    #[test]
    fn a_slot_is_not_kept_for_ever() {
        let now = Clock::system().now();
        let mut slot = QueueSlot::default();
        slot.others_took_one();
        slot.queues_told(now);
        slot.handle_timeout(now);
        assert!(slot.is_kept(false));
        slot.handle_timeout(slot.poll_timeout().unwrap());
        assert!(!slot.is_kept(false));
        // Nor is the next one, until queues are told again.
        slot.others_took_one();
        slot.freed(now);
        assert!(!slot.is_kept(false));
    }
}
