//! Numbered slots that are used again once freed. Must never know what lies in them.

use std::ops::{Index, IndexMut};

/// Values by a number that stays theirs until they are removed.
pub(super) struct Arena<T> {
    slots: Vec<T>,
    /// Numbers of slots that hold nothing but a default.
    free: Vec<u32>,
}

impl<T: Default> Arena<T> {
    /// Slots in use.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(id) = self.free.pop() {
            self[id] = value;
            return id;
        }
        let id = u32::try_from(self.slots.len()).expect("`MatchTrie::LEN_MAX` keeps slots below 2^32");
        if self.slots.len() == self.slots.capacity() {
            // By a quarter instead of double: a large arena wastes a fifth of its memory at most.
            self.slots.reserve_exact((self.slots.len() / 4).max(16));
        }
        self.slots.push(value);
        id
    }

    /// The value at `id`, which must be in use.
    pub(super) fn remove(&mut self, id: u32) -> T {
        self.free.push(id);
        std::mem::take(&mut self[id])
    }

    /// Slots ever used at once.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Index<u32> for Arena<T> {
    type Output = T;

    fn index(&self, id: u32) -> &T {
        &self.slots[id as usize]
    }
}

impl<T> IndexMut<u32> for Arena<T> {
    fn index_mut(&mut self, id: u32) -> &mut T {
        &mut self.slots[id as usize]
    }
}
