//! How far a client has come in a stream: in each shard the lowest offset that is not done with. Without input or
//! output.
//!
//! A message is done with when it is acknowledged; at QoS 0 when it is in the output; one that is not wanted, or too
//! large, when it is passed by. Acknowledgements come in any order. Knows offsets, nothing of messages. Holds the
//! offsets of what is in flight, so no more than the client's window. Owned by the subscription.

use std::collections::VecDeque;

use weir_core::keyspace::session_position::ShardPosition;

/// Positions in the shards that a subscription reads.
#[derive(Debug, Default)]
pub(in crate::connection) struct Positions {
    shards: Vec<Shard>,
    moved: bool,
}

#[derive(Debug)]
struct Shard {
    shard: u8,
    /// What is below has been sent, or passed by.
    next: u64,
    end: Option<u64>,
    /// Sent and not acknowledged, ascending.
    unacknowledged: VecDeque<u64>,
}

impl Shard {
    fn position(&self) -> u64 {
        self.unacknowledged.front().copied().unwrap_or(self.next)
    }
}

impl Positions {
    /// Takes a shard up, at `from`; what was known of it is forgotten. It ends at `end`, if it does.
    pub(super) fn begin(&mut self, shard: u8, from: u64, end: Option<u64>) {
        self.remove(shard);
        self.shards.push(Shard { shard, next: from, end, unacknowledged: VecDeque::new() });
        self.moved = true;
    }

    /// Lets a shard go: where it stood.
    pub(super) fn remove(&mut self, shard: u8) -> Option<u64> {
        let at = self.shards.iter().position(|known| known.shard == shard)?;
        Some(self.shards.swap_remove(at).position())
    }

    fn shard(&mut self, shard: u8) -> Option<&mut Shard> {
        self.shards.iter_mut().find(|known| known.shard == shard)
    }

    /// The message at `offset` has been sent, and will be acknowledged.
    pub(super) fn sent(&mut self, shard: u8, offset: u64) {
        let Some(known) = self.shard(shard).filter(|known| known.next <= offset) else { return };
        let before = known.position();
        known.next = offset + 1;
        known.unacknowledged.push_back(offset);
        // Gaps before it are passed by.
        let moved = known.position() != before;
        self.moved |= moved;
    }

    /// Everything below `next` has been sent or is not for the client.
    pub(super) fn passed(&mut self, shard: u8, next: u64) {
        let Some(known) = self.shard(shard).filter(|known| known.next < next) else { return };
        known.next = next;
        let moved = known.unacknowledged.is_empty();
        self.moved |= moved;
    }

    /// The message at `offset` has been acknowledged.
    pub(super) fn acknowledged(&mut self, shard: u8, offset: u64) {
        let Some(known) = self.shard(shard) else { return };
        let Ok(at) = known.unacknowledged.binary_search(&offset) else { return };
        known.unacknowledged.remove(at);
        self.moved |= at == 0;
    }

    /// Whether nothing of a shard is in flight.
    pub(super) fn is_settled(&self, shard: u8) -> bool {
        self.shards.iter().all(|known| known.shard != shard || known.unacknowledged.is_empty())
    }

    /// Where the next message of each shard is.
    pub(super) fn next(&self) -> Vec<(u8, u64)> {
        self.shards.iter().map(|shard| (shard.shard, shard.next)).collect()
    }

    /// Where the shards end, if they do.
    pub(super) fn ends(&self) -> Option<Vec<(u8, u64)>> {
        let ends: Vec<_> = self.shards.iter().filter_map(|shard| Some((shard.shard, shard.end?))).collect();
        (!ends.is_empty()).then_some(ends)
    }

    /// They end elsewhere, or not at all.
    pub(super) fn end_at(&mut self, ends: &[(u8, u64)]) {
        for shard in &mut self.shards {
            shard.end = ends.iter().find(|(of, _)| *of == shard.shard).map(|(_, end)| *end);
        }
        self.moved = true;
    }

    /// Whether there is something to tell since [`Self::take`].
    pub(super) fn has_moved(&self) -> bool {
        self.moved
    }

    /// There is something to tell.
    pub(super) fn touch(&mut self) {
        self.moved = true;
    }

    /// Where every shard stands, which counts as told.
    pub(super) fn take(&mut self) -> Vec<ShardPosition> {
        self.moved = false;
        let at =
            |known: &Shard| ShardPosition { shard: known.shard, position: known.position(), end: known.end };
        self.shards.iter().map(at).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use weir_env::seed::Seed;

    use super::*;

    fn position(positions: &mut Positions) -> u64 {
        positions.take()[0].position
    }

    #[test]
    fn the_lowest_that_is_not_acknowledged_counts() {
        let mut positions = Positions::default();
        positions.begin(3, 10, Some(99));
        assert!(positions.has_moved());
        assert_eq!(positions.take(), [ShardPosition { shard: 3, position: 10, end: Some(99) }]);
        assert!(!positions.has_moved());
        for offset in [10, 11, 14] {
            positions.sent(3, offset);
        }
        positions.passed(3, 20);
        assert!(!positions.has_moved(), "nothing is done with");
        positions.acknowledged(3, 11);
        assert!(!positions.has_moved());
        assert!(!positions.is_settled(3));
        positions.acknowledged(3, 10);
        assert!(positions.has_moved());
        assert_eq!(position(&mut positions), 14);
        // Twice, and of others.
        for (shard, offset) in [(3, 10), (3, 13), (4, 14)] {
            positions.acknowledged(shard, offset);
        }
        assert!(!positions.has_moved());
        positions.acknowledged(3, 14);
        assert_eq!(position(&mut positions), 20);
        assert!(positions.is_settled(3));
    }

    #[test]
    fn what_is_passed_by_moves_the_position_at_once() {
        let mut positions = Positions::default();
        positions.begin(0, 0, None);
        positions.take();
        positions.passed(0, 5);
        assert!(positions.has_moved());
        assert_eq!(position(&mut positions), 5);
        positions.passed(0, 4);
        assert_eq!(position(&mut positions), 5, "never back");
        positions.sent(0, 7);
        assert!(positions.has_moved(), "5 and 6 are passed by");
        assert_eq!(position(&mut positions), 7);
    }

    #[test]
    fn a_shard_that_comes_back_begins_anew() {
        let mut positions = Positions::default();
        positions.begin(0, 0, None);
        positions.sent(0, 0);
        assert_eq!(positions.remove(0), Some(0));
        assert_eq!(positions.remove(0), None);
        assert_eq!(positions.take(), []);
        positions.begin(0, 4, None);
        positions.acknowledged(0, 0);
        assert_eq!(position(&mut positions), 4);
    }

    #[test]
    fn as_a_set_of_all_that_is_not_done() {
        for seed in (0..200).map(Seed::fixed) {
            let mut positions = Positions::default();
            positions.begin(0, 0, None);
            let (mut next, mut open) = (0, BTreeSet::new());
            let mut last = position(&mut positions);
            for step in 0..200 {
                match seed.next_u64() % 4 {
                    0 | 1 => {
                        positions.sent(0, next);
                        open.insert(next);
                        next += 1;
                    }
                    2 => {
                        next += 2;
                        positions.passed(0, next);
                    }
                    _ if open.is_empty() => continue,
                    _ => {
                        let which = usize::try_from(seed.next_u64()).unwrap() % open.len();
                        let offset = *open.iter().nth(which).unwrap();
                        open.remove(&offset);
                        positions.acknowledged(0, offset);
                    }
                }
                let moved = positions.has_moved();
                let expected = open.first().copied().unwrap_or(next);
                let found = position(&mut positions);
                assert_eq!((found, moved), (expected, found != last), "{seed:?}, step {step}");
                last = found;
            }
        }
    }
}
