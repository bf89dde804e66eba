//! Which states of the tree are being read: what a reader sees must not be compacted away.

use std::collections::BTreeMap;
use std::sync::Arc;

use lsm_tree::SeqNo;
use parking_lot::Mutex;

/// The states that are read, with the number of readers of each.
#[derive(Clone, Debug, Default)]
pub(super) struct Pins(Arc<Mutex<BTreeMap<SeqNo, usize>>>);

/// Keeps one state. Dropping it gives the state back to compaction.
#[derive(Debug)]
pub(super) struct Pin {
    seqno: SeqNo,
    pins: Pins,
}

impl Pins {
    /// Keeps what is visible below `seqno`.
    pub(super) fn pin(&self, seqno: SeqNo) -> Pin {
        *self.0.lock().entry(seqno).or_default() += 1;
        Pin { seqno, pins: self.clone() }
    }

    /// What was replaced below this is not read any more.
    pub(super) fn watermark(&self) -> SeqNo {
        self.0.lock().keys().next().map_or(0, |oldest| oldest.saturating_sub(1))
    }
}

impl Pin {
    pub(super) const fn seqno(&self) -> SeqNo {
        self.seqno
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.0.lock();
        if let Some(count) = pins.get_mut(&self.seqno) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.seqno);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_reader_holds_the_watermark() {
        let pins = Pins::default();
        assert_eq!(pins.watermark(), 0);
        let (old, twice, new) = (pins.pin(10), pins.pin(10), pins.pin(20));
        assert_eq!(pins.watermark(), 9);
        drop(old);
        assert_eq!(pins.watermark(), 9);
        drop(twice);
        assert_eq!(pins.watermark(), 19);
        assert_eq!(new.seqno(), 20);
    }
}
