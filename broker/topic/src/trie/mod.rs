//! The match trie: from a topic name to everyone whose filter matches it, among a million subscriptions.
//!
//! Most subscriptions of a fleet of devices have no wildcard. Those lie in one hash table keyed by the whole
//! topic and cost a match one look-up. The others form a trie with one node per level. A level's text is
//! stored once however many nodes bear it, so a match hashes each level of the topic once and from there on
//! compares numbers. Children hang off one hash table keyed by (parent, level): a node with a hundred thousand
//! children is as quick as one with two.
//!
//! The owner decides what keys and values mean. Nothing here knows sessions, quality of service or shared
//! groups, and nothing is locked: the owner wraps the trie in what suits it.

mod arena;
mod entries;
#[cfg(test)]
mod tests;
mod text_table;

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};

use hashbrown::HashTable;
use smallvec::SmallVec;
use weir_env::seed::SeededHash;

use self::arena::Arena;
use self::entries::Entries;
use self::text_table::TextTable;
use crate::{TopicFilter, TopicName};

/// Subscriptions by filter. A key names a subscriber and occurs at most once per filter; under different
/// filters it may occur often.
///
/// Memory of removed subscriptions is used again by later ones, but not given back before the trie is
/// dropped. The owner keeps [`len`](Self::len) below [`LEN_MAX`](Self::LEN_MAX).
pub struct MatchTrie<K, V> {
    len: usize,
    /// Filters without wildcard, whole.
    exact: TextTable<Entries<K, V>>,
    /// Literal levels of filters with wildcards, each with the number of nodes that bear it.
    labels: TextTable<u32>,
    nodes: Arena<Node>,
    /// Nodes by (parent, label), but for those that are a [`Node::first`].
    children: HashTable<u32>,
    /// What [`Node::here`] and [`Node::below`] refer to; never empty in use.
    entries: Arena<Entries<K, V>>,
    hash: SeededHash,
}

const ROOT: u32 = 0;
const NONE: u32 = u32::MAX;
/// Label of a node for `+`.
const PLUS: u32 = u32::MAX - 1;

/// The filters that begin with one sequence of levels.
#[derive(Clone, Copy)]
struct Node {
    /// `NONE` for the root.
    parent: u32,
    /// Text of the last level, or `PLUS`.
    label: u32,
    /// Children, `plus` and `first` included.
    children: u32,
    /// The child for `+`, or `NONE`.
    plus: u32,
    /// A child for a literal level, or `NONE`. Most nodes have no other, so most steps need no hash table.
    first: u32,
    /// Subscriptions to the filter that ends here, or `NONE`.
    here: u32,
    /// Subscriptions to the filter that goes on with `#`, or `NONE`.
    below: u32,
}

impl Default for Node {
    fn default() -> Self {
        Self { parent: NONE, label: NONE, children: 0, plus: NONE, first: NONE, here: NONE, below: NONE }
    }
}

impl<K: Eq + Hash, V> MatchTrie<K, V> {
    /// Up to this many subscriptions no internal index can overflow, whatever the filters.
    pub const LEN_MAX: usize = 1 << 24;

    /// An empty trie.
    #[must_use]
    pub fn new() -> Self {
        let mut nodes = Arena::default();
        let root = nodes.insert(Node::default());
        debug_assert_eq!(root, ROOT, "the first slot is the root's");
        Self {
            len: 0,
            exact: TextTable::default(),
            labels: TextTable::default(),
            nodes,
            children: HashTable::new(),
            entries: Arena::default(),
            hash: SeededHash::default(),
        }
    }

    /// Subscriptions: pairs of filter and key.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no subscription.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Subscribes `key` to `filter`; returns the value it had there before.
    pub fn insert(&mut self, filter: &TopicFilter, key: K, value: V) -> Option<V> {
        let entries = if filter.is_exact() {
            let id = self.exact.find_or_insert(filter.as_str());
            &mut self.exact[id]
        } else {
            let id = self.find_or_insert_wildcard(filter);
            &mut self.entries[id]
        };
        let previous = entries.insert(key, value);
        self.len += usize::from(previous.is_none());
        previous
    }

    /// Ends the subscription of `key` to `filter`; returns its value if there was one.
    pub fn remove(&mut self, filter: &TopicFilter, key: &K) -> Option<V> {
        let removed = if filter.is_exact() {
            let id = self.exact.find(filter.as_str())?;
            let removed = self.exact[id].remove(key)?;
            if self.exact[id].is_empty() {
                self.exact.remove(id);
            }
            removed
        } else {
            let (node, is_below) = self.find_wildcard(filter)?;
            let id = if is_below { self.nodes[node].below } else { self.nodes[node].here };
            if id == NONE {
                return None;
            }
            let removed = self.entries[id].remove(key)?;
            if self.entries[id].is_empty() {
                self.entries.remove(id);
                let node_mut = &mut self.nodes[node];
                *(if is_below { &mut node_mut.below } else { &mut node_mut.here }) = NONE;
                self.prune(node);
            }
            removed
        };
        self.len -= 1;
        Some(removed)
    }

    /// Calls `f` once for every subscription whose filter matches `topic`, in no particular order. A key whose
    /// filters overlap comes once for each.
    pub fn for_each_match(&self, topic: &TopicName, f: impl FnMut(&K, &V)) {
        self.for_each_match_str(topic.as_str(), f);
    }

    /// As [`for_each_match`](Self::for_each_match), for a text that is known to be a topic name, such as one
    /// read back from the store. Other texts match something or nothing, but do no harm.
    pub fn for_each_match_str(&self, topic: &str, mut f: impl FnMut(&K, &V)) {
        if let Some(id) = self.exact.find(topic) {
            self.exact[id].for_each(&mut f);
        }
        if self.entries.is_empty() {
            return;
        }
        // No filter goes deeper than `TOPIC_LEVELS_MAX`, so neither does the recursion.
        let labels: SmallVec<[u32; 16]> =
            topic.split('/').map(|level| self.labels.find(level).unwrap_or(NONE)).collect();
        let root = &self.nodes[ROOT];
        if !topic.starts_with('$') {
            // Filters that begin with a wildcard do not match reserved topics. [MQTT-4.7.2-1]
            self.emit(root.below, &mut f);
            self.descend_plus(root, &labels, &mut f);
        }
        self.descend_literal(ROOT, &labels, &mut f);
    }

    /// All matches at and below `id`, a child of the root or deeper; `labels` are the levels still to match.
    fn descend(&self, id: u32, labels: &[u32], f: &mut impl FnMut(&K, &V)) {
        let node = &self.nodes[id];
        self.emit(node.below, f);
        if labels.is_empty() {
            self.emit(node.here, f);
        } else if node.children > 0 {
            self.descend_plus(node, labels, f);
            self.descend_literal(id, labels, f);
        }
    }

    fn descend_plus(&self, node: &Node, labels: &[u32], f: &mut impl FnMut(&K, &V)) {
        if node.plus != NONE
            && let [_, rest @ ..] = labels
        {
            self.descend(node.plus, rest, f);
        }
    }

    fn descend_literal(&self, id: u32, labels: &[u32], f: &mut impl FnMut(&K, &V)) {
        if let [label, rest @ ..] = labels
            && *label != NONE
            && let Some(child) = self.child(id, *label)
        {
            self.descend(child, rest, f);
        }
    }

    fn emit(&self, entries: u32, f: &mut impl FnMut(&K, &V)) {
        if entries != NONE {
            self.entries[entries].for_each(f);
        }
    }

    /// The entries of a filter with wildcards.
    fn find_or_insert_wildcard(&mut self, filter: &TopicFilter) -> u32 {
        let (mut node, mut is_below) = (ROOT, false);
        for level in filter.levels() {
            match level {
                "#" => is_below = true, // always the last level
                "+" => node = self.find_or_insert_plus(node),
                literal => node = self.find_or_insert_literal(node, literal),
            }
        }
        let node = &mut self.nodes[node];
        let entries = if is_below { &mut node.below } else { &mut node.here };
        if *entries == NONE {
            *entries = self.entries.insert(Entries::default());
        }
        *entries
    }

    /// The node where `filter` ends, and whether by `#`.
    fn find_wildcard(&self, filter: &TopicFilter) -> Option<(u32, bool)> {
        let (mut node, mut is_below) = (ROOT, false);
        for level in filter.levels() {
            match level {
                "#" => is_below = true,
                "+" => node = Some(self.nodes[node].plus).filter(|&plus| plus != NONE)?,
                literal => node = self.child(node, self.labels.find(literal)?)?,
            }
        }
        Some((node, is_below))
    }

    fn child(&self, parent: u32, label: u32) -> Option<u32> {
        let Node { children, plus, first, .. } = self.nodes[parent];
        if first != NONE && self.nodes[first].label == label {
            return Some(first);
        }
        if children == u32::from(plus != NONE) + u32::from(first != NONE) {
            return None;
        }
        let is_it = |&id: &u32| self.nodes[id].parent == parent && self.nodes[id].label == label;
        self.children.find(child_hash(&self.hash, parent, label), is_it).copied()
    }

    fn find_or_insert_plus(&mut self, parent: u32) -> u32 {
        if self.nodes[parent].plus == NONE {
            let child = self.nodes.insert(Node { parent, label: PLUS, ..Node::default() });
            self.nodes[parent].plus = child;
            self.nodes[parent].children += 1;
        }
        self.nodes[parent].plus
    }

    fn find_or_insert_literal(&mut self, parent: u32, text: &str) -> u32 {
        let label = self.labels.find_or_insert(text);
        if let Some(child) = self.child(parent, label) {
            return child;
        }
        let child = self.nodes.insert(Node { parent, label, ..Node::default() });
        self.labels[label] += 1;
        self.nodes[parent].children += 1;
        if self.nodes[parent].first == NONE {
            self.nodes[parent].first = child;
        } else {
            let Self { nodes, children, hash, .. } = self;
            children.insert_unique(child_hash(hash, parent, label), child, |&id| {
                child_hash(hash, nodes[id].parent, nodes[id].label)
            });
        }
        child
    }

    /// Frees `id` and its ancestors as far as no filter needs them any more.
    fn prune(&mut self, mut id: u32) {
        while id != ROOT {
            let Node { parent, label, children, here, below, .. } = self.nodes[id];
            if children > 0 || here != NONE || below != NONE {
                return;
            }
            if label == PLUS {
                self.nodes[parent].plus = NONE;
            } else {
                if self.nodes[parent].first == id {
                    self.nodes[parent].first = NONE;
                } else {
                    let hash = child_hash(&self.hash, parent, label);
                    if let Ok(entry) = self.children.find_entry(hash, |&child| child == id) {
                        entry.remove();
                    }
                }
                self.labels[label] -= 1;
                if self.labels[label] == 0 {
                    self.labels.remove(label);
                }
            }
            self.nodes.remove(id);
            self.nodes[parent].children -= 1;
            id = parent;
        }
    }
}

fn child_hash(hash: &SeededHash, parent: u32, label: u32) -> u64 {
    let mut hasher = hash.build_hasher();
    hasher.write_u64(u64::from(parent) << 32 | u64::from(label));
    hasher.finish()
}

impl<K: Eq + Hash, V> Default for MatchTrie<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

/// Sizes only: there may be a million subscriptions.
impl<K, V> fmt::Debug for MatchTrie<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MatchTrie")
            .field("len", &self.len)
            .field("exact_filters", &self.exact.len())
            .field("wildcard_filters", &self.entries.len())
            .field("nodes", &self.nodes.len())
            .finish_non_exhaustive()
    }
}
