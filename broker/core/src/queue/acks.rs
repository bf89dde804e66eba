//! Which messages of a log are done: a floor below which all are, and bitmaps above it.

use std::collections::{BTreeMap, BTreeSet};

use crate::keyspace::queue::{AckBlock, BLOCK_OFFSETS};

/// Done messages of one log, and which blocks have changed since they were last written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Acks {
    floor: u64,
    blocks: BTreeMap<u64, AckBlock>,
    dirty: BTreeSet<u64>,
}

impl Acks {
    pub(crate) fn new(floor: u64, blocks: BTreeMap<u64, AckBlock>) -> Self {
        Self { floor, blocks, dirty: BTreeSet::new() }
    }

    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    pub(crate) fn is_done(&self, offset: u64) -> bool {
        offset < self.floor
            || self.blocks.get(&(offset / BLOCK_OFFSETS)).is_some_and(|block| block.contains(offset))
    }

    /// Marks `offset` as done and moves the floor up to the first that is not; `next` is the end of the
    /// log. False if it was done before.
    pub(crate) fn set(&mut self, offset: u64, next: u64) -> bool {
        if self.is_done(offset) || offset >= next {
            return false;
        }
        let block = offset / BLOCK_OFFSETS;
        self.blocks.entry(block).or_default().set(offset);
        self.dirty.insert(block);
        self.advance(next);
        true
    }

    fn advance(&mut self, next: u64) {
        while self.floor < next && self.is_done(self.floor) {
            self.floor += 1;
            if self.floor.is_multiple_of(BLOCK_OFFSETS) {
                // The floor's own record says it all; the block's row is cleared with the next write.
                let done = self.floor / BLOCK_OFFSETS - 1;
                self.blocks.remove(&done);
                self.dirty.insert(done);
            }
        }
    }

    /// What has to be written since the last call: block numbers with their bitmap, or `None` to clear.
    pub(crate) fn take_dirty(&mut self) -> Vec<(u64, Option<AckBlock>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|block| (block, self.blocks.get(&block).cloned())).collect()
    }

    /// Marks blocks as changed again: their write did not happen.
    pub(crate) fn mark_dirty(&mut self, blocks: impl IntoIterator<Item = u64>) {
        self.dirty.extend(blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_follows_acks_in_any_order() {
        let mut acks = Acks::new(10, BTreeMap::new());
        assert!(acks.set(11, 20) && !acks.set(11, 20) && !acks.set(3, 20) && !acks.set(20, 20));
        assert_eq!(acks.floor(), 10);
        assert!(acks.set(10, 20));
        assert_eq!(acks.floor(), 12);
    }

    #[test]
    fn a_finished_block_is_cleared() {
        let mut acks = Acks::default();
        for offset in (0..BLOCK_OFFSETS + 5).rev() {
            assert!(acks.set(offset, BLOCK_OFFSETS + 5));
        }
        assert_eq!(acks.floor(), BLOCK_OFFSETS + 5);
        let dirty: Vec<(u64, bool)> =
            acks.take_dirty().into_iter().map(|(block, bits)| (block, bits.is_some())).collect();
        assert_eq!(dirty, [(0, false), (1, true)]);
        assert!(acks.take_dirty().is_empty());
        assert!(acks.is_done(4) && acks.is_done(BLOCK_OFFSETS + 4) && !acks.is_done(BLOCK_OFFSETS + 5));
    }
}
