//! Changes to the store in their final form: what a transaction sees of its own writes, and what a batch
//! hands to the engine.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::KeyRange;

/// Ranges to clear, then keys to set or clear. Every key in `keys` counts, also inside a cleared range.
#[derive(Clone, Debug, Default)]
pub struct WriteSet {
    keys: BTreeMap<Bytes, Option<Bytes>>,
    /// Disjoint, by their first key.
    cleared: BTreeMap<Bytes, Bytes>,
}

impl WriteSet {
    /// Whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.cleared.is_empty()
    }

    pub(crate) fn set(&mut self, key: Bytes, value: Bytes) {
        self.keys.insert(key, Some(value));
    }

    pub(crate) fn clear(&mut self, key: Bytes) {
        self.keys.insert(key, None);
    }

    pub(crate) fn clear_range(&mut self, range: KeyRange) {
        if range.is_empty() {
            return;
        }
        let KeyRange { mut begin, mut end } = range;
        let bounds = (Bound::Included(begin.clone()), Bound::Excluded(end.clone()));
        self.keys.extract_if(bounds, |_, _| true).for_each(drop);
        if let Some((first, last)) = self.cleared.range(..=begin.clone()).next_back()
            && *last >= begin
        {
            end = end.max(last.clone());
            begin = first.clone();
        }
        let bounds = (Bound::Included(begin.clone()), Bound::Included(end.clone()));
        for (_, last) in self.cleared.extract_if(bounds, |_, _| true) {
            end = end.max(last);
        }
        self.cleared.insert(begin, end);
    }

    /// Adds what `later` changes on top.
    pub(crate) fn extend(&mut self, later: Self) {
        for (begin, end) in later.cleared {
            self.clear_range(KeyRange { begin, end });
        }
        self.keys.extend(later.keys);
    }

    /// What this set says about `key`: nothing, cleared, or a value.
    #[must_use]
    pub fn lookup(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        match self.keys.get(key) {
            Some(value) => Some(value.as_ref()),
            None => self.is_cleared(key).then_some(None),
        }
    }

    /// Whether a cleared range holds `key`.
    #[must_use]
    pub fn is_cleared(&self, key: &[u8]) -> bool {
        let before = (Bound::Unbounded, Bound::Included(key));
        self.cleared.range::<[u8], _>(before).next_back().is_some_and(|(_, end)| end > key)
    }

    /// Whether `keys` decides about `key`.
    pub(crate) fn has_key(&self, key: &[u8]) -> bool {
        self.keys.contains_key(key)
    }

    /// Keys to set (`Some`) or to clear (`None`), in order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = (&Bytes, Option<&Bytes>)> {
        self.keys.iter().map(|(key, value)| (key, value.as_ref()))
    }

    /// The part of [`WriteSet::keys`] that lies in `range`, which must not be empty.
    pub(crate) fn keys_in<'a>(
        &'a self,
        range: &KeyRange,
    ) -> impl DoubleEndedIterator<Item = (&'a Bytes, Option<&'a Bytes>)> + Send + use<'a> {
        let bounds = (Bound::Included(&range.begin), Bound::Excluded(&range.end));
        self.keys.range::<Bytes, _>(bounds).map(|(key, value)| (key, value.as_ref()))
    }

    /// Ranges to clear before [`WriteSet::keys`] are set: disjoint, in order.
    pub fn cleared(&self) -> impl Iterator<Item = KeyRange> {
        self.cleared.iter().map(|(begin, end)| KeyRange { begin: begin.clone(), end: end.clone() })
    }

    /// Bytes of keys and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let keys = self.keys.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Bytes::len));
        let cleared = self.cleared.iter().map(|(begin, end)| begin.len() + end.len());
        keys.sum::<usize>() + cleared.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(begin: u8, end: u8) -> KeyRange {
        KeyRange::copy(&[begin], &[end])
    }

    #[test]
    fn cleared_ranges_merge_and_later_sets_win() {
        let mut set = WriteSet::default();
        set.set(Bytes::from_static(&[3]), Bytes::from_static(b"x"));
        set.clear_range(range(1, 4));
        set.clear_range(range(6, 8));
        set.clear_range(range(4, 6));
        assert_eq!(set.cleared().collect::<Vec<_>>(), [range(1, 8)]);
        assert_eq!(set.lookup(&[3]), Some(None));
        assert_eq!(set.lookup(&[8]), None);
        set.set(Bytes::from_static(&[3]), Bytes::from_static(b"y"));
        assert_eq!(set.lookup(&[3]), Some(Some(&Bytes::from_static(b"y"))));
        set.clear_range(range(9, 9));
        set.clear_range(range(9, 2));
        assert_eq!(set.cleared().count(), 1);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Set(u8, u8),
        Clear(u8),
        ClearRange(u8, u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        let key = 0u8..24;
        prop_oneof![
            (key.clone(), any::<u8>()).prop_map(|(k, v)| Op::Set(k, v)),
            key.clone().prop_map(Op::Clear),
            (key.clone(), key).prop_map(|(a, b)| Op::ClearRange(a, b)),
        ]
    }

    fn build(ops: &[Op]) -> WriteSet {
        let mut set = WriteSet::default();
        for op in ops {
            match *op {
                Op::Set(k, v) => set.set(Bytes::copy_from_slice(&[k]), Bytes::copy_from_slice(&[v])),
                Op::Clear(k) => set.clear(Bytes::copy_from_slice(&[k])),
                Op::ClearRange(a, b) => set.clear_range(range(a, b)),
            }
        }
        set
    }

    proptest! {
        #[test]
        fn says_what_the_operations_left(first in prop::collection::vec(op(), 0..12),
                                         second in prop::collection::vec(op(), 0..12)) {
            let mut model: [Option<Option<u8>>; 24] = [None; 24];
            for op in first.iter().chain(&second) {
                match *op {
                    Op::Set(k, v) => model[usize::from(k)] = Some(Some(v)),
                    Op::Clear(k) => model[usize::from(k)] = Some(None),
                    Op::ClearRange(a, b) => (a..b).for_each(|k| model[usize::from(k)] = Some(None)),
                }
            }
            let mut set = build(&first);
            set.extend(build(&second));
            for (key, expected) in (0u8..).zip(model) {
                let found = set.lookup(&[key]).map(|value| value.map(|bytes| bytes[0]));
                prop_assert_eq!(found, expected, "key {}", key);
            }
            let mut last = None;
            for cleared in set.cleared() {
                prop_assert!(last.is_none_or(|end| end < cleared.begin), "ranges touch");
                last = Some(cleared.end);
            }
        }
    }
}
