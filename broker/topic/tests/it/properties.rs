//! Random filters, topics and bytes against naive models.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use weir_topic::fuzz::fuzz_topic;
use weir_topic::{MatchTrie, Subscription, TopicFilter, TopicName};

/// Few different levels, so that filters and topics meet often; some empty, some longer than what is inline.
fn literal() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        4 => prop::sample::select(vec!["a", "b", "c", "", "$a", "é"]),
        1 => Just("a level that is longer than thirty bytes"),
    ]
}

fn topic() -> impl Strategy<Value = TopicName> {
    (prop::bool::weighted(0.2), vec(literal(), 1..6)).prop_filter_map("empty", |(reserved, levels)| {
        let text = levels.join("/");
        TopicName::parse(if reserved { format!("${text}") } else { text }).ok()
    })
}

fn filter() -> impl Strategy<Value = TopicFilter> {
    let level = prop_oneof![3 => literal(), 2 => Just("+")];
    (prop::bool::weighted(0.1), vec(level, 0..5), any::<bool>()).prop_filter_map(
        "empty, or `$+`",
        |(reserved, mut levels, multi)| {
            levels.extend(multi.then_some("#"));
            let text = levels.join("/");
            TopicFilter::parse(if reserved { format!("${text}") } else { text }).ok()
        },
    )
}

/// A matcher that shares nothing with the crate's: by recursion over lists of levels.
fn naive(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        (["#"], _) | ([], []) => true,
        (["+", filter @ ..], [_, topic @ ..]) => naive(filter, topic),
        ([wanted, filter @ ..], [level, topic @ ..]) => wanted == level && naive(filter, topic),
        _ => false,
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(usize, u8, u16),
    Remove(usize, u8),
    Match(TopicName),
}

fn steps() -> impl Strategy<Value = (Vec<TopicFilter>, Vec<Step>)> {
    let step = prop_oneof![
        4 => (0..30_usize, 0..60_u8, any::<u16>()).prop_map(|(f, k, v)| Step::Insert(f, k, v)),
        3 => (0..30_usize, 0..60_u8).prop_map(|(f, k)| Step::Remove(f, k)),
        2 => topic().prop_map(Step::Match),
    ];
    // Few filters have many subscribers each, many filters share many nodes.
    (vec(filter(), 1..30), vec(step, 0..400))
}

fn fuzz_bytes() -> impl Strategy<Value = Vec<u8>> {
    let token = prop::sample::select(vec![
        "$share/", "$queue/", "$q/", "$stream/", "$s/", "/", "/", "+", "#", "$", "a", "b", "g/", "latest/",
        "é", "\0",
    ]);
    let piece = prop_oneof![
        8 => token.prop_map(|token| token.as_bytes().to_vec()),
        3 => Just(vec![0xff]),
        1 => vec(any::<u8>(), 0..4),
    ];
    vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

/// What a fuzzer has found worth keeping: see `broker/fuzz/README.md`.
#[test]
fn the_corpus_of_the_fuzzer_is_safe() {
    let mut inputs = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/topic")).unwrap() {
        let path = entry.unwrap().path();
        let data = std::fs::read(&path).unwrap();
        assert!(std::panic::catch_unwind(|| fuzz_topic(&data)).is_ok(), "{}", path.display());
        inputs += 1;
    }
    assert!(inputs > 100, "{inputs} inputs");
}

proptest! {
    #[test]
    fn a_filter_matches_as_the_naive_one_does(filter in filter(), topic in topic()) {
        let (f, t): (Vec<_>, Vec<_>) = (filter.levels().collect(), topic.levels().collect());
        let hidden = topic.as_str().starts_with('$') && ["+", "#"].contains(&f[0]);
        prop_assert_eq!(filter.matches(&topic), !hidden && naive(&f, &t), "{} on {}", filter, topic);
    }

    #[test]
    fn the_trie_does_what_a_map_of_filters_does((filters, steps) in steps()) {
        let (mut trie, mut model) = (MatchTrie::new(), BTreeMap::new());
        for step in steps {
            match step {
                Step::Insert(f, key, value) => {
                    let previous = model.insert((filters[f % filters.len()].clone(), key), value);
                    prop_assert_eq!(trie.insert(&filters[f % filters.len()], key, value), previous);
                }
                Step::Remove(f, key) => {
                    let previous = model.remove(&(filters[f % filters.len()].clone(), key));
                    prop_assert_eq!(trie.remove(&filters[f % filters.len()], &key), previous);
                }
                Step::Match(topic) => {
                    let mut found = Vec::new();
                    trie.for_each_match(&topic, |&key, &value| found.push((key, value)));
                    found.sort_unstable();
                    let matching = model.iter().filter(|((filter, _), _)| filter.matches(&topic));
                    let mut expected: Vec<_> = matching.map(|((_, key), &value)| (*key, value)).collect();
                    expected.sort_unstable();
                    prop_assert_eq!(found, expected, "{}", topic);
                }
            }
            prop_assert_eq!((trie.len(), trie.is_empty()), (model.len(), model.is_empty()));
        }
    }

    #[test]
    fn what_is_parsed_is_displayed_as_it_was(text in "\\PC{0,40}", filter in filter(), topic in topic()) {
        for text in [&text, filter.as_str(), topic.as_str()] {
            let parsed = [
                TopicName::parse(text).map(|parsed| parsed.to_string()).ok(),
                TopicFilter::parse(text).map(|parsed| parsed.to_string()).ok(),
                Subscription::parse(text).map(|parsed| parsed.to_string()).ok(),
            ];
            for parsed in parsed.into_iter().flatten() {
                prop_assert_eq!(&parsed, text);
            }
        }
    }

    #[test]
    fn prefixes_in_front_of_a_filter_are_told_apart(filter in filter()) {
        prop_assume!(!filter.is_reserved());
        for prefix in [
            "", "$share/g/", "$queue/n/", "$q/", "$stream/n/", "$s/latest/", "$share/g/$stream/n/",
            "$share/g/$s/latest/",
        ] {
            let text = format!("{prefix}{filter}");
            let parsed = Subscription::parse(text.as_str());
            prop_assert_eq!(parsed.as_ref().map(ToString::to_string), Ok(text));
            let inner = match parsed {
                Ok(Subscription::Plain(inner)) => Some((inner, prefix.is_empty())),
                Ok(Subscription::Shared { filter, .. }) => Some((filter, prefix == "$share/g/")),
                Ok(Subscription::Queue { filter: Some(filter), .. }) => Some((filter, prefix == "$queue/n/")),
                Ok(Subscription::QueueByFilter { filter }) => Some((filter, prefix == "$q/")),
                Ok(Subscription::Stream { filter: Some(filter), .. }) => {
                    Some((filter, prefix.ends_with("$stream/n/")))
                }
                Ok(Subscription::StreamByFilter { filter, .. }) => Some((filter, prefix.ends_with("$s/latest/"))),
                _ => None,
            };
            prop_assert_eq!(inner, Some((filter.clone(), true)));
        }
    }

    #[test]
    fn any_bytes_keep_every_invariant(data in fuzz_bytes(), noise in vec(any::<u8>(), 0..200)) {
        fuzz_topic(&data);
        fuzz_topic(&noise);
    }
}
