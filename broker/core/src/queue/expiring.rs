//! Where in the log of a queue messages expire that have an expiry of their own.
//!
//! What is known is the earliest expiry in each block of offsets, so that a sweep reads the blocks in which something
//! has expired and no others: about 50 bytes for 4,096 messages that expire, nothing for those that do not. What an
//! earlier owner appended is read once, if any of it may expire. Messages that grow too old (`maxAge`) do so in order
//! and are found at the front. Reads nothing: the owner brings the records.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use weir_env::clock::Timestamp;

use super::DeadReason;
use super::shard::QueueShard;
use crate::keyspace::queue::BLOCK_OFFSETS;
use crate::keyspace::segment::Record;

/// How often expired messages are looked for.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Expiries of one log.
#[derive(Debug, Default)]
pub(super) struct Expiring {
    /// The earliest in each block; blocks in which nothing expires are left out.
    blocks: BTreeMap<u64, Timestamp>,
    /// Offsets that no one has looked at yet.
    unseen: Range<u64>,
    reading: Option<Reading>,
}

/// A block, or the rest of one, that is being read.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: u64,
    end: u64,
    /// The earliest expiry found in it.
    earliest: Option<Timestamp>,
    /// The first block that this sweep has not come to.
    next_block: u64,
}

impl Expiring {
    /// Nothing is known of the offsets in `unseen`.
    pub(super) fn new(unseen: Range<u64>) -> Self {
        Self { unseen, ..Self::default() }
    }

    /// Messages that were given up before this shard was read have to be found, as if they had expired.
    pub(super) fn seek(&mut self, offsets: impl Iterator<Item = u64>) {
        offsets.for_each(|offset| self.note(offset, Timestamp::default()));
    }

    /// A message that expires was appended.
    pub(super) fn note(&mut self, offset: u64, at: Timestamp) {
        let block = offset / BLOCK_OFFSETS;
        let earliest = self.blocks.entry(block).or_insert(at);
        *earliest = at.min(*earliest);
        if let Some(reading) = self.reading.as_mut().filter(|reading| reading.at / BLOCK_OFFSETS == block) {
            reading.earliest = Some(reading.earliest.map_or(at, |earliest| earliest.min(at)));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.unseen.is_empty() && self.reading.is_none()
    }

    /// Goes on with the first block from `block` on in which something has expired, or else with one that nobody has
    /// looked at.
    fn begin(&mut self, block: u64, floor: u64, next: u64, wall: Timestamp) {
        self.blocks = self.blocks.split_off(&(floor / BLOCK_OFFSETS));
        self.unseen.start = self.unseen.start.max(floor);
        let mut sought = self.blocks.range(block..);
        let due = sought.find(|(_, earliest)| **earliest <= wall).map(|(block, _)| *block);
        let (start, next_block) = match due {
            Some(block) => (block.saturating_mul(BLOCK_OFFSETS), block + 1),
            None if self.unseen.is_empty() => return,
            None => (self.unseen.start, u64::MAX),
        };
        let end = (start / BLOCK_OFFSETS + 1).saturating_mul(BLOCK_OFFSETS).min(next);
        self.reading = Some(Reading { at: start.max(floor), end, earliest: None, next_block });
    }

    /// The block has been read.
    fn end(&mut self, reading: Reading) {
        let block = reading.end.saturating_sub(1) / BLOCK_OFFSETS;
        match reading.earliest {
            Some(earliest) => drop(self.blocks.insert(block, earliest)),
            None => drop(self.blocks.remove(&block)),
        }
        if self.unseen.start / BLOCK_OFFSETS == block {
            self.unseen.start = reading.end;
        }
    }
}

impl QueueShard {
    /// Whether something here may expire.
    #[must_use]
    pub fn expires(&self) -> bool {
        (self.max_age.is_some() && self.depth() > 0) || !self.expiring.is_empty()
    }

    /// Begins to look for expired messages, unless that is under way.
    pub fn sweep_expired(&mut self, wall: Timestamp) {
        if self.expiring.reading.is_none() {
            self.expiring.begin(0, self.floor(), self.next, wall);
        }
    }

    /// Where the owner should read for a sweep.
    #[must_use]
    pub fn wants_sweep(&self) -> Option<u64> {
        self.expiring.reading.map(|reading| reading.at)
    }

    /// A sweep could not read on: what is left is looked at by the next.
    pub fn sweep_failed(&mut self) {
        self.expiring.reading = None;
    }

    /// Records read for a sweep from `from` on; `end` is where the next read begins. Gives up those that have expired,
    /// but for those that consumers hold.
    pub fn swept(&mut self, from: u64, end: u64, records: &[(u64, Arc<Record>)], wall: Timestamp) {
        let Some(mut reading) = self.expiring.reading.filter(|reading| reading.at == from) else { return };
        for (offset, record) in records.iter().filter(|(offset, _)| *offset < reading.end) {
            if self.is_over(*offset) {
                continue;
            }
            let is_free = !self.leases.contains_key(offset) && !self.asides.contains(*offset);
            let expired = record.message.expires_at.filter(|at| *at <= wall).map(|_| DeadReason::Expired);
            match expired.or_else(|| self.exhausted(*offset)).filter(|_| is_free) {
                Some(_) if self.is_mortal(record) && self.dying.is_full() => {
                    // They cannot leave, and would take up memory.
                    self.expiring.reading = None;
                    return;
                }
                Some(why) => self.give_up(*offset, record, why),
                None => {
                    let earliest = [reading.earliest, record.message.expires_at];
                    reading.earliest = earliest.into_iter().flatten().min();
                }
            }
        }
        reading.at = end.max(self.floor());
        if end > from && reading.at < reading.end {
            self.expiring.reading = Some(reading);
            return;
        }
        self.expiring.reading = None;
        self.expiring.end(reading);
        self.expiring.begin(reading.next_block, self.floor(), self.next, wall);
    }
}
