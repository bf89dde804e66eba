//! The subscribers of one filter: mostly one, sometimes a hundred thousand. Must never know the filter.

use std::hash::Hash;

use weir_env::seed::HashMap;

/// Values by key; as small as can be while there is one, and without linear search when there are many.
pub(super) enum Entries<K, V> {
    One(K, V),
    Few(Vec<(K, V)>),
    Many(Box<HashMap<K, V>>),
}

/// More entries than this are hashed: about where a linear search costs as much as a look-up.
const FEW_MAX: usize = 32;
/// Below this they are listed again; well under [`FEW_MAX`], so that no change back and forth is paid for by
/// fewer than that many removals.
const MANY_MIN: usize = 8;

impl<K: Eq + Hash, V> Entries<K, V> {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::One(..) => false,
            Self::Few(list) => list.is_empty(),
            Self::Many(map) => map.is_empty(),
        }
    }

    /// Returns the value that `key` had before.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self {
            Self::One(only, previous) if *only == key => Some(std::mem::replace(previous, value)),
            Self::One(..) => {
                let mut list = Vec::with_capacity(2);
                if let Self::One(first_key, first_value) = std::mem::take(self) {
                    list.push((first_key, first_value));
                }
                list.push((key, value));
                *self = Self::Few(list);
                None
            }
            Self::Few(list) if list.is_empty() => {
                *self = Self::One(key, value);
                None
            }
            Self::Few(list) => {
                if let Some((_, previous)) = list.iter_mut().find(|(listed, _)| *listed == key) {
                    return Some(std::mem::replace(previous, value));
                }
                list.push((key, value));
                if list.len() > FEW_MAX {
                    *self = Self::Many(Box::new(list.drain(..).collect()));
                }
                None
            }
            Self::Many(map) => map.insert(key, value),
        }
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        match self {
            Self::One(only, _) if only == key => match std::mem::take(self) {
                Self::One(_, value) => Some(value),
                Self::Few(_) | Self::Many(_) => None,
            },
            Self::One(..) => None,
            Self::Few(list) => {
                let at = list.iter().position(|(listed, _)| listed == key)?;
                let (_, value) = list.swap_remove(at);
                if list.len() == 1
                    && let Some((last_key, last_value)) = list.pop()
                {
                    *self = Self::One(last_key, last_value);
                }
                Some(value)
            }
            Self::Many(map) => {
                let value = map.remove(key)?;
                if map.len() < MANY_MIN {
                    *self = Self::Few(map.drain().collect());
                } else if map.len() < map.capacity() / 4 {
                    map.shrink_to(map.len() * 2);
                }
                Some(value)
            }
        }
    }

    pub(super) fn for_each(&self, f: &mut impl FnMut(&K, &V)) {
        match self {
            Self::One(key, value) => f(key, value),
            Self::Few(list) => list.iter().for_each(|(key, value)| f(key, value)),
            Self::Many(map) => map.iter().for_each(|(key, value)| f(key, value)),
        }
    }
}

/// Empty, without allocation.
impl<K, V> Default for Entries<K, V> {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn contents(entries: &Entries<u64, u64>) -> BTreeMap<u64, u64> {
        let mut contents = BTreeMap::new();
        entries.for_each(&mut |&key, &value| assert_eq!(contents.insert(key, value), None, "twice: {key}"));
        contents
    }

    #[test]
    fn every_size_holds_what_was_put_in_on_the_way_up_and_down() {
        let (mut entries, mut model) = (Entries::default(), BTreeMap::new());
        for key in 0..200 {
            assert_eq!(entries.insert(key, key), None);
            assert_eq!(entries.insert(key, key + 1), Some(key));
            model.insert(key, key + 1);
            assert_eq!(contents(&entries), model);
        }
        assert!(matches!(entries, Entries::Many(_)));
        assert_eq!(entries.remove(&1000), None);
        for key in (0..200).map(|n| n * 77 % 200) {
            assert_eq!(entries.remove(&key), Some(key + 1));
            assert_eq!(entries.remove(&key), None);
            model.remove(&key);
            assert_eq!(contents(&entries), model);
            assert_eq!(entries.is_empty(), model.is_empty());
        }
        assert!(matches!(&entries, Entries::Few(list) if list.capacity() == 0));
    }

    #[test]
    fn a_map_gives_memory_back_when_it_empties() {
        let mut entries = Entries::default();
        (0..10_000).for_each(|key| assert_eq!(entries.insert(key, 0), None));
        (100..10_000).for_each(|key| assert_eq!(entries.remove(&key), Some(0)));
        assert!(matches!(&entries, Entries::Many(map) if map.capacity() < 1_000));
    }

    #[test]
    fn sixteen_bytes_of_key_and_value_are_stored_in_place() {
        assert_eq!(size_of::<Entries<u64, u64>>(), 24);
    }
}
