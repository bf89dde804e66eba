//! The entry point for fuzzing, shared by the property tests and whatever fuzzer drives it. Panics when an
//! invariant breaks, and must never be called outside of tests.

use bytestring::ByteString;

use crate::{
    MatchTrie, SubscriptionError, TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX, TopicFilter, TopicName,
    is_publish_forbidden,
};

/// Takes `data` as texts with the byte 0xff between them, parses each in every way, and compares the trie of
/// all filters among them with [`TopicFilter::matches`] before, while and after they are removed.
///
/// # Panics
/// If anything is inconsistent.
pub fn fuzz_topic(data: &[u8]) {
    let texts = || data.split(|&byte| byte == 0xff).filter_map(|text| ByteString::try_from(text).ok());
    let names: Vec<TopicName> = texts().filter_map(check_name).collect();
    let filters: Vec<TopicFilter> = texts().filter_map(check_filter).collect();
    texts().for_each(check_subscription);

    let mut trie = MatchTrie::new();
    for (n, filter) in filters.iter().enumerate() {
        assert_eq!(trie.insert(filter, n, n), None);
    }
    for removed in 0..=filters.len() {
        assert_eq!(trie.len(), filters.len() - removed);
        for name in &names {
            let mut found = Vec::new();
            trie.for_each_match(name, |&key, &value| {
                assert_eq!(key, value);
                found.push(key);
            });
            found.sort_unstable();
            let expected: Vec<usize> =
                (removed..filters.len()).filter(|&n| filters[n].matches(name)).collect();
            assert_eq!(found, expected, "{name:?} among {:?}", &filters[removed..]);
        }
        if let Some(filter) = filters.get(removed) {
            assert_eq!(trie.remove(filter, &removed), Some(removed));
            assert_eq!(trie.remove(filter, &removed), None);
        }
    }
    assert!(trie.is_empty());
}

fn check_name(text: ByteString) -> Option<TopicName> {
    let name = TopicName::parse(text.clone()).ok()?;
    check_text(&text, name.as_str(), name.levels().collect());
    assert!(!text.contains(['+', '#']));
    let filter = TopicFilter::parse(text.clone()).ok()?;
    assert!(filter.is_exact() && filter.matches(&name));
    assert_eq!(TopicFilter::from(name.clone()), filter);
    let forbidden = is_publish_forbidden(&name);
    assert!(!forbidden || name.is_reserved());
    Some(name)
}

fn check_filter(text: ByteString) -> Option<TopicFilter> {
    let filter = TopicFilter::parse(text.clone()).ok()?;
    check_text(&text, filter.as_str(), filter.levels().collect());
    assert_eq!(filter.is_exact(), TopicName::parse(text).is_ok());
    Some(filter)
}

fn check_text(text: &str, parsed: &str, levels: Vec<&str>) {
    assert_eq!(parsed, text);
    assert_eq!(levels.join("/"), text);
    assert!((1..=TOPIC_BYTES_MAX).contains(&text.len()) && levels.len() <= TOPIC_LEVELS_MAX);
    assert!(!text.contains('\0'));
}

fn check_subscription(text: ByteString) {
    match crate::Subscription::parse(text.clone()) {
        Ok(subscription) => assert_eq!(text, subscription.to_string()),
        Err(SubscriptionError::Filter { offset, source }) => {
            assert_eq!(TopicFilter::parse(&text[offset..]), Err(source));
        }
        Err(_) => {}
    }
}
