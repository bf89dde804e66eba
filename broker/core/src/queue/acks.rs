//! Which messages of a log are done: a floor below which all are, and bitmaps above it.

use std::collections::{BTreeMap, BTreeSet};

use crate::keyspace::queue::{AckBlock, BLOCK_OFFSETS};

/// Done messages of one log, and which blocks have changed since they were last written.
///
/// A block has a row in the store only while something above the floor is done: acknowledgements in order write
/// the floor and nothing else.
#[derive(Clone, Debug, Default)]
pub(crate) struct Acks {
    floor: u64,
    blocks: BTreeMap<u64, AckBlock>,
    dirty: BTreeSet<u64>,
    /// Blocks that may have a row.
    stored: BTreeSet<u64>,
}

impl Acks {
    pub(crate) fn new(floor: u64, blocks: BTreeMap<u64, AckBlock>) -> Self {
        let stored = blocks.keys().copied().collect();
        Self { floor, blocks, dirty: BTreeSet::new(), stored }
    }

    /// Takes back what lies beyond `next`, the end of the log. Whether there was anything.
    pub(crate) fn cut(&mut self, next: u64) -> bool {
        let mut gone: Vec<u64> = self.blocks.split_off(&next.div_ceil(BLOCK_OFFSETS)).into_keys().collect();
        let (last, first) = (next / BLOCK_OFFSETS, next % BLOCK_OFFSETS);
        if let Some(block) = self.blocks.get_mut(&last).filter(|block| block.last() >= Some(first)) {
            for offset in first..BLOCK_OFFSETS {
                block.clear(offset);
            }
            gone.push(last);
        }
        self.dirty.extend(&gone);
        !gone.is_empty()
    }

    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    pub(crate) fn is_done(&self, offset: u64) -> bool {
        offset < self.floor
            || self.blocks.get(&(offset / BLOCK_OFFSETS)).is_some_and(|block| block.contains(offset))
    }

    /// The last offset above the floor that is done.
    pub(crate) fn last(&self) -> Option<u64> {
        let (number, block) = self.blocks.last_key_value()?;
        let last = number.saturating_mul(BLOCK_OFFSETS).saturating_add(block.last()?);
        (last >= self.floor).then_some(last)
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

    /// Takes back that `offset` is done.
    pub(crate) fn unset(&mut self, offset: u64) {
        // Below the floor all are done, and no block says so.
        for above in offset.saturating_add(1)..self.floor {
            self.blocks.entry(above / BLOCK_OFFSETS).or_default().set(above);
            self.dirty.insert(above / BLOCK_OFFSETS);
        }
        self.floor = self.floor.min(offset);
        let block = offset / BLOCK_OFFSETS;
        self.blocks.entry(block).or_default().clear(offset);
        self.dirty.insert(block);
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
        let mut changes = Vec::new();
        for number in std::mem::take(&mut self.dirty) {
            let bits = self.blocks.get(&number);
            let above_floor = bits
                .and_then(AckBlock::last)
                .is_some_and(|last| number.saturating_mul(BLOCK_OFFSETS).saturating_add(last) >= self.floor);
            if above_floor {
                self.stored.insert(number);
                changes.push((number, bits.cloned()));
            } else if self.stored.remove(&number) {
                changes.push((number, None));
            }
        }
        changes
    }

    /// Marks blocks as changed again: their write did not happen, or nobody knows.
    pub(crate) fn mark_dirty(&mut self, blocks: impl IntoIterator<Item = u64>) {
        for block in blocks {
            self.dirty.insert(block);
            self.stored.insert(block);
        }
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

    /// Blocks to write (true) or clear (false).
    fn dirty(acks: &mut Acks) -> Vec<(u64, bool)> {
        acks.take_dirty().into_iter().map(|(block, bits)| (block, bits.is_some())).collect()
    }

    #[test]
    fn a_finished_block_is_cleared() {
        let next = BLOCK_OFFSETS + 5;
        let mut acks = Acks::default();
        assert!(acks.set(7, next) && acks.set(BLOCK_OFFSETS + 4, next));
        assert_eq!(dirty(&mut acks), [(0, true), (1, true)]);
        for offset in (0..next - 1).rev().filter(|offset| *offset != 7) {
            assert!(acks.set(offset, next));
        }
        assert_eq!(acks.floor(), next);
        assert_eq!(dirty(&mut acks), [(0, false), (1, false)]);
        assert!(acks.take_dirty().is_empty());
        assert!(acks.is_done(4) && acks.is_done(BLOCK_OFFSETS + 4) && !acks.is_done(BLOCK_OFFSETS + 5));
    }

    #[test]
    fn what_is_taken_back_is_done_no_more_and_all_else_is() {
        let next = 2 * BLOCK_OFFSETS;
        for taken in [0, 5, BLOCK_OFFSETS, BLOCK_OFFSETS + 9] {
            let mut acks = Acks::default();
            assert!((0..BLOCK_OFFSETS + 10).all(|offset| acks.set(offset, next)));
            acks.unset(taken);
            assert_eq!(acks.floor(), taken);
            assert!((0..BLOCK_OFFSETS + 10).all(|offset| acks.is_done(offset) == (offset != taken)));
            assert!(acks.set(taken, next));
            assert_eq!(acks.floor(), BLOCK_OFFSETS + 10);
        }
    }

    #[test]
    fn acks_in_order_write_no_block() {
        let mut acks = Acks::default();
        for offset in 0..BLOCK_OFFSETS * 2 + 7 {
            assert!(acks.set(offset, u64::MAX));
            assert!(acks.take_dirty().is_empty(), "offset {offset}");
        }
        assert!(acks.set(BLOCK_OFFSETS * 2 + 9, u64::MAX));
        assert_eq!(dirty(&mut acks), [(2, true)]);
        acks.mark_dirty([2]);
        assert!(acks.set(BLOCK_OFFSETS * 2 + 7, u64::MAX));
        assert_eq!(dirty(&mut acks), [(2, true)], "the last one is still above the floor");
        assert!(acks.set(BLOCK_OFFSETS * 2 + 8, u64::MAX));
        assert_eq!(dirty(&mut acks), [(2, false)]);
    }

    #[test]
    fn a_block_found_in_the_store_is_cleared_once_the_floor_says_it_all() {
        let mut block = AckBlock::default();
        block.set(3);
        let mut acks = Acks::new(2, BTreeMap::from([(0, block)]));
        assert!(acks.take_dirty().is_empty() && acks.is_done(3));
        assert!(acks.set(2, 10));
        assert_eq!((acks.floor(), dirty(&mut acks)), (4, vec![(0, false)]));
        acks.mark_dirty([0]);
        assert_eq!(dirty(&mut acks), [(0, false)], "nobody knows whether it was cleared");
    }
}
