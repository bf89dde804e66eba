//! Choice of packet ids for deliveries. Knows nothing of what they are used for; owned by the outbound half.

use weir_codec::PacketId;

/// Gives out ids round robin, so that an id rests as long as possible before it is used again.
#[derive(Debug, Default)]
pub(crate) struct PacketIds {
    last: u16,
}

impl PacketIds {
    /// The next id that is not `taken`. The caller makes sure that one is left.
    pub(crate) fn allocate(&mut self, taken: impl Fn(PacketId) -> bool) -> Option<PacketId> {
        // Every id is looked at once: 65,535 of them, and zero, which is none.
        for _ in 0..=u16::MAX {
            self.last = self.last.wrapping_add(1);
            match PacketId::new(self.last) {
                Some(id) if !taken(id) => return Some(id),
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Conformance v5: 2.2.1-4
    #[test]
    fn wraps_past_zero_and_skips_what_is_taken() {
        let mut ids = PacketIds { last: u16::MAX - 1 };
        let next: Vec<u16> =
            (0..3).filter_map(|_| ids.allocate(|id| id.get() == 1)).map(PacketId::get).collect();
        assert_eq!(next, [u16::MAX, 2, 3]);
    }

    #[test]
    fn finds_the_only_free_id_and_then_none() {
        let mut ids = PacketIds::default();
        assert_eq!(ids.allocate(|id| id.get() != 40_000), PacketId::new(40_000));
        assert_eq!(ids.allocate(|_| true), None);
    }
}
