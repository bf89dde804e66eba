//! Watches that wait for a write, by key. Knows keys, not values. Owned by [`Shared`](super::Shared).

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::{KeyRange, WriteSet};
use crate::WatchTrigger;

/// Watches armed at most, as on FoundationDB. One more is not armed and never fires; whoever waits polls.
pub(super) const WATCHES_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Watches {
    by_key: BTreeMap<Bytes, Vec<WatchTrigger>>,
    count: usize,
}

impl Watches {
    /// Arms `trigger` for the next write of `key`.
    pub(super) fn arm(&mut self, key: Bytes, trigger: WatchTrigger) {
        if self.count >= WATCHES_MAX {
            self.drop_orphans();
        }
        if self.count >= WATCHES_MAX {
            tracing::warn!(limit = WATCHES_MAX, "too many watches: one is not armed");
            trigger.abandon();
            return;
        }
        let waiting = self.by_key.entry(key).or_default();
        // A key whose readers come and go without a write must not gather dead triggers.
        let before = waiting.len();
        waiting.retain(|trigger| !trigger.is_orphaned());
        self.count -= before - waiting.len();
        waiting.push(trigger);
        self.count += 1;
    }

    fn drop_orphans(&mut self) {
        self.by_key.retain(|_, waiting| {
            waiting.retain(|trigger| !trigger.is_orphaned());
            !waiting.is_empty()
        });
        self.count = self.by_key.values().map(Vec::len).sum();
    }

    /// Takes the watches of everything `changes` touches; dropping them fires them.
    pub(super) fn take(&mut self, changes: &WriteSet) -> Vec<WatchTrigger> {
        let mut taken = Vec::new();
        if self.count == 0 {
            return taken;
        }
        for (key, _) in changes.keys() {
            taken.extend(self.by_key.remove(key).into_iter().flatten());
        }
        for KeyRange { begin, end } in changes.cleared() {
            let bounds = (Bound::Included(begin), Bound::Excluded(end));
            taken.extend(self.by_key.extract_if(bounds, |_, _| true).flat_map(|(_, waiting)| waiting));
        }
        self.count -= taken.len();
        taken
    }

    /// Takes all watches.
    pub(super) fn take_all(&mut self) -> Vec<WatchTrigger> {
        self.count = 0;
        std::mem::take(&mut self.by_key).into_values().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Watch;

    #[test]
    fn a_write_fires_the_watches_of_its_keys_alone() {
        let mut watches = Watches::default();
        let [a, b, c] = ["a", "b", "c"].map(|key| {
            let (trigger, watch) = Watch::new();
            watches.arm(Bytes::from(key), trigger);
            watch
        });
        let mut changes = WriteSet::default();
        changes.set(Bytes::from("a"), Bytes::new());
        changes.clear_range(KeyRange::copy(b"b", b"c"));
        drop(watches.take(&changes));
        assert_eq!([a.has_fired(), b.has_fired(), c.has_fired()], [true, true, false]);
        assert_eq!(watches.count, 1);
        drop(watches.take_all());
        assert!(c.has_fired());
    }

    #[test]
    fn orphans_make_room_and_one_too_many_is_not_armed() {
        let mut watches = Watches::default();
        let mut held: Vec<Watch> = Vec::new();
        for n in 0..WATCHES_MAX {
            let (trigger, watch) = Watch::new();
            watches.arm(Bytes::from(n.to_string()), trigger);
            held.push(watch);
        }
        let (trigger, one_too_many) = Watch::new();
        watches.arm(Bytes::from("x"), trigger);
        assert!(!one_too_many.has_fired());
        assert_eq!(watches.count, WATCHES_MAX);
        held.truncate(10);
        let (trigger, _watch) = Watch::new();
        watches.arm(Bytes::from("x"), trigger);
        assert_eq!(watches.count, 11);
    }
}
