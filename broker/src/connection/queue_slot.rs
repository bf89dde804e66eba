//! Keeps queues from starving where Receive Maximum is small: live messages are there at once when a slot becomes
//! free, those of a queue only when its shard has heard of it.
//!
//! So after others have had a slot, the next one that queues wait for is kept for them, for a moment. Knows slots and
//! time, nothing of messages. Owned by the connection's task.

use std::time::Duration;

use weir_env::clock::Instant;

/// How long a slot is kept. A shard answers in much less; a queue that turns out to be empty costs this much.
const KEPT_FOR: Duration = Duration::from_millis(100);

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct QueueSlot {
    /// Others had a slot since a queue had one.
    owed: bool,
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

    /// A slot is free, and queues that wait for one have been told.
    pub(super) fn keep(&mut self, now: Instant) {
        if std::mem::take(&mut self.owed) {
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

    /// The time may have come.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.kept_until = self.kept_until.filter(|until| *until > now);
    }
}
