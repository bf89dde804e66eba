//! Texts, each stored once, with a value and a number that stays theirs until they are removed. Must never
//! know what the texts mean.

use std::hash::{BuildHasher, Hasher};
use std::ops::{Index, IndexMut};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use weir_env::seed::SeededHash;

use super::arena::Arena;

/// Values by text and by number.
pub(super) struct TextTable<T> {
    ids: HashTable<u32>,
    slots: Arena<Slot<T>>,
    hash: SeededHash,
}

#[derive(Default)]
struct Slot<T> {
    text: Text,
    value: T,
}

/// A text that needs no allocation of its own if it is as short as most topic levels and identifiers.
enum Text {
    Inline { len: u8, bytes: [u8; INLINE_BYTES] },
    Heap(Box<[u8]>),
}

/// What fits beside the length and the tag into the three words that `Heap` takes anyway.
const INLINE_BYTES: usize = 22;

impl<T: Default> TextTable<T> {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn find(&self, text: &str) -> Option<u32> {
        let hash = text_hash(&self.hash, text.as_bytes());
        self.ids.find(hash, |&id| self.slots[id].text.as_bytes() == text.as_bytes()).copied()
    }

    /// The number of `text`; if it is new, its value is the default.
    pub(super) fn find_or_insert(&mut self, text: &str) -> u32 {
        let Self { ids, slots, hash } = self;
        let text = text.as_bytes();
        let entry = ids.entry(
            text_hash(hash, text),
            |&id| slots[id].text.as_bytes() == text,
            |&id| text_hash(hash, slots[id].text.as_bytes()),
        );
        match entry {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                let id = slots.insert(Slot { text: Text::new(text), value: T::default() });
                entry.insert(id);
                id
            }
        }
    }

    /// Forgets the text numbered `id`, which must be in use.
    pub(super) fn remove(&mut self, id: u32) {
        let hash = text_hash(&self.hash, self.slots[id].text.as_bytes());
        if let Ok(entry) = self.ids.find_entry(hash, |&found| found == id) {
            entry.remove();
        }
        self.slots.remove(id);
    }

    /// Slots ever used at once.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.slots.slots()
    }
}

impl Text {
    fn new(text: &[u8]) -> Self {
        match u8::try_from(text.len()) {
            Ok(len) if text.len() <= INLINE_BYTES => {
                let mut bytes = [0; INLINE_BYTES];
                bytes[..text.len()].copy_from_slice(text);
                Self::Inline { len, bytes }
            }
            _ => Self::Heap(text.into()),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Self::Heap(bytes) => bytes,
        }
    }
}

impl Default for Text {
    fn default() -> Self {
        Self::Inline { len: 0, bytes: [0; INLINE_BYTES] }
    }
}

fn text_hash(hash: &SeededHash, text: &[u8]) -> u64 {
    let mut hasher = hash.build_hasher();
    hasher.write(text);
    hasher.finish()
}

impl<T> Default for TextTable<T> {
    fn default() -> Self {
        Self { ids: HashTable::new(), slots: Arena::default(), hash: SeededHash::default() }
    }
}

impl<T> Index<u32> for TextTable<T> {
    type Output = T;

    fn index(&self, id: u32) -> &T {
        &self.slots[id].value
    }
}

impl<T> IndexMut<u32> for TextTable<T> {
    fn index_mut(&mut self, id: u32) -> &mut T {
        &mut self.slots[id].value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_around_the_inline_size_keep_their_numbers_and_values() {
        let mut table = TextTable::<usize>::default();
        let texts: Vec<String> = (0..60).map(|n| "x".repeat(n)).collect();
        let ids: Vec<u32> = texts.iter().map(|text| table.find_or_insert(text)).collect();
        for (n, &id) in ids.iter().enumerate() {
            table[id] = n;
        }
        for (n, text) in texts.iter().enumerate() {
            assert_eq!(table.find(text), Some(ids[n]));
            assert_eq!(table.find_or_insert(text), ids[n]);
            assert_eq!(table[ids[n]], n);
        }
        assert_eq!(table.len(), texts.len());
        table.remove(ids[30]);
        assert_eq!(table.find(&texts[30]), None);
        assert_eq!(table.find(&texts[31]), Some(ids[31]));
        assert_eq!(table.find_or_insert("new"), ids[30], "the slot is used again");
        assert_eq!(table[ids[30]], 0, "a new text begins with the default");
    }

    #[test]
    fn a_text_takes_three_words() {
        assert_eq!(size_of::<Text>(), 24);
    }
}
