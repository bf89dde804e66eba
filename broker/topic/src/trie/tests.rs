//! What only the inside of the trie shows: that nothing is left behind.

use super::*;

fn filter(text: impl Into<bytestring::ByteString>) -> TopicFilter {
    TopicFilter::parse(text).expect("valid filter")
}

fn matches(trie: &MatchTrie<u32, u32>, topic: &str) -> Vec<u32> {
    let mut keys = Vec::new();
    trie.for_each_match_str(topic, |&key, _| keys.push(key));
    keys.sort_unstable();
    keys
}

/// Slots of every arena, used or free, and slots in use.
fn slots(trie: &MatchTrie<u32, u32>) -> ([usize; 4], [usize; 4]) {
    (
        [trie.exact.slots(), trie.labels.slots(), trie.nodes.slots(), trie.entries.slots()],
        [trie.exact.len(), trie.labels.len(), trie.nodes.len(), trie.entries.len()],
    )
}

#[test]
fn churn_does_not_grow_and_an_emptied_trie_holds_only_its_root() {
    let mut trie = MatchTrie::new();
    let shapes =
        |n: u32| [format!("a/{n}/b"), format!("a/{n}/+"), format!("a/{n}/x/#"), format!("+/{n}/a/#")];
    let mut peak = None;
    for round in 0..200 {
        for n in round * 50..(round + 1) * 50 {
            shapes(n).map(filter).iter().for_each(|f| assert_eq!(trie.insert(f, n, n), None));
        }
        let (all, _) = slots(&trie);
        assert_eq!(*peak.get_or_insert(all), all, "round {round}");
        for n in round * 50..(round + 1) * 50 {
            shapes(n).map(filter).iter().for_each(|f| assert_eq!(trie.remove(f, &n), Some(n)));
        }
        assert_eq!(slots(&trie).1, [0, 0, 1, 0]);
        assert!(trie.is_empty() && trie.children.is_empty());
    }
    assert!(trie.children.capacity() < 2_000, "capacity {}", trie.children.capacity());
}

#[test]
fn removal_keeps_nodes_that_other_filters_need() {
    let mut trie = MatchTrie::new();
    let filters = ["a/+", "a/+/c", "a/+/#", "a/#", "#", "+"].map(filter);
    (0..).zip(&filters).for_each(|(n, f)| assert_eq!(trie.insert(f, n, n), None));
    assert_eq!(trie.remove(&filters[1], &1), Some(1));
    assert_eq!(matches(&trie, "a/b/c"), [2, 3, 4]);
    assert_eq!(trie.remove(&filters[0], &0), Some(0));
    assert_eq!(matches(&trie, "a/b"), [2, 3, 4]);
    assert_eq!(trie.remove(&filters[2], &2), Some(2));
    assert_eq!(matches(&trie, "a"), [3, 4, 5]);
    assert_eq!(trie.nodes.len(), 3, "root, `a` and `+`");
}

#[test]
fn unknown_filters_and_keys_remove_nothing() {
    let mut trie = MatchTrie::new();
    for text in ["a/b", "a/+/c", "a/+/c/#"] {
        trie.insert(&filter(text), 1, 1);
    }
    let before = slots(&trie);
    for text in ["a", "a/b/c", "a/+", "a/+/c/+", "a/#", "+/#", "#", "+", "x/+", "a/+/x"] {
        assert_eq!(trie.remove(&filter(text), &1), None, "{text}");
    }
    for text in ["a/b", "a/+/c", "a/+/c/#"] {
        assert_eq!(trie.remove(&filter(text), &2), None, "{text}");
    }
    assert_eq!((slots(&trie), trie.len()), (before, 3));
}

#[test]
fn a_node_with_a_hundred_thousand_children() {
    let mut trie = MatchTrie::new();
    for n in 0..100_000 {
        trie.insert(&filter(format!("dev/{n}/#")), n, n);
    }
    assert_eq!(trie.len(), 100_000);
    for n in (0..100_000).step_by(97) {
        assert_eq!(matches(&trie, &format!("dev/{n}/state")), [n]);
    }
    for n in 0..100_000 {
        assert_eq!(trie.remove(&filter(format!("dev/{n}/#")), &n), Some(n));
    }
    assert_eq!(slots(&trie).1, [0, 0, 1, 0]);
}

#[test]
fn a_filter_with_a_hundred_thousand_subscribers() {
    let mut trie = MatchTrie::new();
    for text in ["news/#", "news/today"].map(filter) {
        for n in 0..100_000 {
            assert_eq!(trie.insert(&text, n, n), None);
        }
    }
    assert_eq!(matches(&trie, "news/today").len(), 200_000);
    for text in ["news/#", "news/today"].map(filter) {
        for n in 0..99_999 {
            assert_eq!(trie.remove(&text, &n), Some(n));
        }
    }
    assert_eq!(matches(&trie, "news/today"), [99_999, 99_999]);
}
