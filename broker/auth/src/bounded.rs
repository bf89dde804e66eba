//! A map that holds so much and no more: when it is full, its older half goes.

use std::hash::Hash;

use weir_env::seed::HashMap;

/// Two generations of entries. What is written is young; when the young are half of what there may be, they become
/// the old and the old are forgotten. So every operation is one or two look-ups, whoever chooses the keys.
#[derive(Debug)]
pub(crate) struct Bounded<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
}

impl<K: Hash + Eq, V> Bounded<K, V> {
    /// Room for `max` entries, at least two.
    pub(crate) fn new(max: usize) -> Self {
        Self { young: HashMap::default(), old: HashMap::default(), half: (max / 2).max(1) }
    }

    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let old = self.old.remove(key);
        self.young.remove(key).or(old)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= self.half && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_holds_more_and_keeps_the_younger_half() {
        let mut map = Bounded::new(10);
        for n in 0..1000 {
            map.insert(n, n);
            assert!(map.len() <= 10, "{n}");
            assert!((n.max(4) - 4..=n).all(|younger| map.get(&younger) == Some(&younger)), "{n}");
        }
        assert_eq!(map.get(&0), None);
    }

    #[test]
    fn a_key_has_one_value() {
        let mut map = Bounded::new(4);
        for n in 0..20 {
            map.insert("a", n);
            map.insert("b", n);
            map.insert("c", n);
            assert_eq!(map.get(&"a"), Some(&n));
        }
        assert_eq!(map.remove(&"a"), Some(19));
        assert_eq!(map.get(&"a"), None);
    }
}
