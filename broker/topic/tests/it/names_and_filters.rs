//! Section 4.7 of the specification, clause by clause.

use weir_topic::{
    MatchTrie, TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX, TopicError, TopicFilter, TopicName, is_publish_forbidden,
};

use crate::{filter, name};

/// Both the filter itself and a trie with it alone.
fn check_matches(clause: &str, cases: &[(&str, &[&str], &[&str])]) {
    for (text, wanted, unwanted) in cases {
        let filter = filter(text);
        let mut trie = MatchTrie::new();
        trie.insert(&filter, 7_u32, ());
        let topics = wanted.iter().map(|t| (t, 1)).chain(unwanted.iter().map(|t| (t, 0)));
        for (topic, expected) in topics {
            let topic = name(topic);
            assert_eq!(filter.matches(&topic), expected == 1, "{clause}: {filter} on {topic}");
            let mut found = 0;
            trie.for_each_match(&topic, |_, ()| found += 1);
            assert_eq!(found, expected, "{clause}: trie of {filter} on {topic}");
        }
    }
}

fn check_filters(clause: &str, cases: &[(&str, Result<(), TopicError>)]) {
    for (text, expected) in cases {
        assert_eq!(TopicFilter::parse(*text).map(|_| ()), *expected, "{clause}: {text:?}");
    }
}

fn not_alone(wildcard: char, at: usize) -> Result<(), TopicError> {
    Err(TopicError::WildcardNotAlone { wildcard, at })
}

// Conformance v5: 4.7.0-1
#[test]
fn names_have_no_wildcards() {
    let clause = "[MQTT-4.7.0-1] [MQTT-3.3.2-2]";
    for (text, wildcard, at) in
        [("+", '+', 0), ("#", '#', 0), ("a/+", '+', 2), ("a/#", '#', 2), ("é#+", '#', 2), ("a+/#", '+', 1)]
    {
        let expected = TopicError::WildcardInName { wildcard, at };
        assert_eq!(TopicName::parse(text), Err(expected), "{clause}: {text:?}");
    }
}

// Conformance v5: 4.7.1-1
#[test]
fn multi_level_wildcard() {
    let clause = "[MQTT-4.7.1-1]";
    let not_last = |at| Err(TopicError::MultiLevelNotLast { at });
    check_filters(
        clause,
        &[
            ("#", Ok(())),
            ("/#", Ok(())),
            ("sport/tennis/#", Ok(())),
            ("sport/tennis#", not_alone('#', 12)),
            ("sport/tennis/#/ranking", not_last(13)),
            ("#/", not_last(0)),
            ("##", not_alone('#', 0)),
            ("#/#", not_last(0)),
            ("a/#b", not_alone('#', 2)),
            ("+#", not_alone('+', 0)),
        ],
    );
    check_matches(
        clause,
        &[
            (
                "sport/tennis/player1/#",
                &[
                    "sport/tennis/player1",
                    "sport/tennis/player1/",
                    "sport/tennis/player1/ranking",
                    "sport/tennis/player1/score/wimbledon",
                ],
                &["sport/tennis/player2", "sport/tennis", "sport/tennis/player11", "/sport/tennis/player1"],
            ),
            ("#", &["a", "/", "/a", "a/b/c"], &[]),
            ("/#", &["/", "/a", "//"], &["a", "a/b"]),
            ("a//#", &["a/", "a//", "a//b"], &["a", "a/b"]),
        ],
    );
}

// Conformance v5: 4.7.1-2
#[test]
fn single_level_wildcard() {
    let clause = "[MQTT-4.7.1-2]";
    check_filters(
        clause,
        &[
            ("+", Ok(())),
            ("+/tennis/#", Ok(())),
            ("sport/+/player1", Ok(())),
            ("+/+", Ok(())),
            ("/+", Ok(())),
            ("sport+", not_alone('+', 5)),
            ("+sport", not_alone('+', 0)),
            ("a/b+/c", not_alone('+', 3)),
            ("++", not_alone('+', 0)),
            ("a/+#", not_alone('+', 2)),
        ],
    );
    check_matches(
        clause,
        &[
            (
                "sport/tennis/+",
                &["sport/tennis/player1", "sport/tennis/"],
                &["sport/tennis", "sport/tennis/a/b"],
            ),
            ("sport/+", &["sport/"], &["sport", "sport/a/b"]),
            ("+", &["finance"], &["/finance", "finance/"]),
            ("+/+", &["/finance", "/", "a/b"], &["a", "a/b/c"]),
            ("/+", &["/finance", "/"], &["finance", "//finance"]),
            ("+/a/+/#", &["x/a/y", "x/a/y/z/z", "/a/"], &["x/a", "x/b/y"]),
        ],
    );
}

// Conformance v5: 4.7.2-1
#[test]
fn wildcards_at_the_start_skip_reserved_topics() {
    check_matches(
        "[MQTT-4.7.2-1]",
        &[
            ("#", &["SYS/a"], &["$SYS", "$SYS/a", "$"]),
            ("+/monitor/Clients", &["SYS/monitor/Clients"], &["$SYS/monitor/Clients"]),
            ("+", &["a$"], &["$a"]),
            ("+/#", &["a/$SYS"], &["$SYS/a"]),
            ("$SYS/#", &["$SYS", "$SYS/a", "$SYS/$a"], &["SYS/a", "$SYSTEM"]),
            ("$SYS/monitor/+", &["$SYS/monitor/Clients"], &["$SYS/other/Clients"]),
            ("a/+", &["a/$b"], &[]),
        ],
    );
}

// Conformance v5: 4.7.3-1, 4.7.3-2
#[test]
fn at_least_one_character_and_no_null() {
    let clause = "[MQTT-4.7.3-1] [MQTT-4.7.3-2]";
    let null = |at| TopicError::Null { at };
    for (text, expected) in
        [("", TopicError::Empty), ("\0", null(0)), ("a/\0", null(2)), ("+/\0/#", null(2)), ("é\0", null(2))]
    {
        assert_eq!(TopicName::parse(text), Err(expected), "{clause}: name {text:?}");
        assert_eq!(TopicFilter::parse(text), Err(expected), "{clause}: filter {text:?}");
    }
    for text in [" ", "/", "//", "a b", "$", "\u{feff}", "\u{1}", "日本/語"] {
        assert_eq!(name(text).as_str(), text, "{clause}");
        assert_eq!(filter(text).as_str(), text, "{clause}");
    }
}

// Conformance v5: 4.7.3-3
#[test]
fn length_and_levels_are_limited() {
    let longest = "é".repeat(TOPIC_BYTES_MAX / 2);
    assert_eq!(name(&longest).as_str(), longest);
    assert_eq!(filter(&longest).as_str(), longest);
    let too_long = TopicError::TooLong { bytes: TOPIC_BYTES_MAX + 1 };
    assert_eq!(TopicName::parse(format!("{longest}a")), Err(too_long));
    assert_eq!(TopicFilter::parse(format!("{longest}a")), Err(too_long));

    let deepest = "/".repeat(TOPIC_LEVELS_MAX - 1);
    assert_eq!(name(&deepest).levels().count(), TOPIC_LEVELS_MAX);
    let too_deep = TopicError::TooManyLevels { levels: TOPIC_LEVELS_MAX + 1 };
    assert_eq!(TopicName::parse(format!("{deepest}/")), Err(too_deep));
    assert_eq!(TopicFilter::parse(format!("{deepest}/#")), Err(too_deep));
}

// Conformance v5: 4.7.3-4
#[test]
fn no_normalization_and_case_matters() {
    check_matches(
        "[MQTT-4.7.3-4]",
        &[
            ("ACCOUNTS", &["ACCOUNTS"], &["Accounts", "ACCOUNTS/", "/ACCOUNTS"]),
            ("\u{c5}", &["\u{c5}"], &["A\u{30a}", "\u{212b}"]),
            ("a b", &["a b"], &["a  b", "a_b"]),
            ("a//b", &["a//b"], &["a/b", "a///b"]),
        ],
    );
}

#[test]
fn levels_wildcards_and_reserved_are_told() {
    let parts = |text: &str| filter(text).levels().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(parts("/a//+/#"), ["", "a", "", "+", "#"]);
    assert_eq!(name("/").levels().collect::<Vec<_>>(), ["", ""]);
    for (text, wildcard) in [("a/b", false), ("+", true), ("a/#", true), ("$SYS/a", false)] {
        assert_eq!((filter(text).has_wildcard(), filter(text).is_exact()), (wildcard, !wildcard), "{text}");
    }
    assert!(name("$SYS").is_reserved() && !name("a/$SYS").is_reserved());
    assert!(filter("$SYS/#").is_reserved() && !filter("#").is_reserved());
}

#[test]
fn publishing_to_queues_streams_and_the_brokers_topics_is_forbidden() {
    for text in [
        "$queue/",
        "$queue/a",
        "$q/a/b",
        "$stream/x",
        "$s/earliest/a",
        "$s/",
        "$SYS",
        "$SYS/",
        "$SYS/a",
        "$weir/a",
    ] {
        assert!(is_publish_forbidden(&name(text)), "{text}");
    }
    for text in [
        "$queue",
        "$q",
        "$stream",
        "$s",
        "$SYSTEM/a",
        "$sys/a",
        "$queues/a",
        "$weirs/a",
        "$share/g/a",
        "a/$queue/b",
        "queue/a",
    ] {
        assert!(!is_publish_forbidden(&name(text)), "{text}");
    }
}

#[test]
fn errors_say_what_and_where() {
    for (text, expected) in [
        ("", "topic is empty"),
        ("a/#/b", "wildcard `#` at byte 2 is not in the last level"),
        ("a/b+", "wildcard `+` at byte 3 does not fill its whole level"),
        ("a\0", "topic has the null character at byte 1"),
    ] {
        assert_eq!(TopicFilter::parse(text).map_err(|error| error.to_string()), Err(expected.to_owned()));
    }
    let error = TopicName::parse("a/+").map_err(|error| error.to_string());
    assert_eq!(error, Err("topic name has the wildcard `+` at byte 2".to_owned()));
}

#[test]
fn parsing_copies_nothing() {
    let text = bytestring::ByteString::from("a/b/c".to_owned());
    let parsed = TopicName::parse(text.clone()).map(TopicName::into_inner);
    assert_eq!(parsed.map(|parsed| parsed.as_ptr()), Ok(text.as_ptr()));
    let parsed = TopicFilter::parse(text.clone()).map(TopicFilter::into_inner);
    assert_eq!(parsed.map(|parsed| parsed.as_ptr()), Ok(text.as_ptr()));
}

#[test]
fn maps_keyed_by_topics_are_asked_with_text() {
    let mut map = weir_env::seed::HashMap::default();
    map.insert(name("a/b"), 1);
    assert_eq!((map.get("a/b"), map.get("a")), (Some(&1), None));
}
