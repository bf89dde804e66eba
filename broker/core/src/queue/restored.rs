//! What the store says of a queue's shard, before anything is made of it.
//!
//! Floor, acknowledgements and attempts are of messages that the log has. A store that has lost a part of itself may say more,
//! and what it says would hold for the messages that get those offsets next: they would count as done, and nobody would ever
//! see them. So that is taken back; its rows are written anew with what changes first.

use std::collections::BTreeMap;

use crate::keyspace::queue::{AckBlock, Attempts, QueueFloor};

/// What the store knows of a shard of a queue.
#[derive(Debug, Default)]
pub struct StoredQueue {
    /// Floor and counters.
    pub counters: QueueFloor,
    /// Acknowledgements above the floor, by block.
    pub blocks: BTreeMap<u64, AckBlock>,
    /// Failed attempts by offset.
    pub attempts: BTreeMap<u64, Attempts>,
    /// End of the log.
    pub next: u64,
}

impl StoredQueue {
    /// Takes back what is said of messages that the log does not have, acknowledgements excepted. Returns whether the
    /// floor was one of them, and whose attempts.
    pub(super) fn cut(&mut self) -> (bool, Vec<u64>) {
        let beyond = self.attempts.split_off(&self.next).into_keys().collect();
        let is_beyond = self.counters.floor > self.next;
        if is_beyond {
            let counters = &mut self.counters;
            counters.floor = self.next;
            counters.bytes = 0;
            // All are done but those aside, however they ended.
            let asides = self.attempts.values().filter(|attempts| attempts.aside.is_some()).count();
            let mut left = self.next.saturating_sub(asides as u64);
            for count in [
                &mut counters.acknowledged,
                &mut counters.expired,
                &mut counters.exhausted,
                &mut counters.purged,
                &mut counters.dead_lettered,
                &mut counters.overflowed,
                &mut counters.superseded,
                &mut counters.redriven,
            ] {
                *count = left.min(*count);
                left -= *count;
            }
            counters.acknowledged += left;
        }
        (is_beyond, beyond)
    }
}
