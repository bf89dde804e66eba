//! What may stand in a SUBSCRIBE: shared subscriptions, queues and streams.

use bytestring::ByteString;
use weir_topic::SubscriptionError as Error;
use weir_topic::{ObjectName, ShareName, Subscription, TOPIC_BYTES_MAX, TopicError};

use crate::filter;

fn group(text: &str) -> ShareName {
    ShareName::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn object(text: &str) -> ObjectName {
    ObjectName::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn check(cases: &[(&str, Result<Subscription, Error>)]) {
    for (text, expected) in cases {
        let parsed = Subscription::parse(*text);
        assert_eq!(parsed, *expected, "{text:?}");
        if let Ok(parsed) = parsed {
            assert_eq!(parsed.to_string(), *text);
        }
    }
}

fn bad_filter(offset: usize, source: TopicError) -> Result<Subscription, Error> {
    Err(Error::Filter { offset, source })
}

#[test]
fn ordinary_filters() {
    for text in
        ["a/b", "#", "+/a", "$SYS/#", "$", "$share", "$queue", "$q", "$stream", "$s", "$Queue/a", "$sh/a/b"]
    {
        check(&[(text, Ok(Subscription::Plain(filter(text))))]);
    }
    check(&[
        ("", bad_filter(0, TopicError::Empty)),
        ("a/#/b", bad_filter(0, TopicError::MultiLevelNotLast { at: 2 })),
        ("a\0", bad_filter(0, TopicError::Null { at: 1 })),
    ]);
}

// Conformance v5: 4.8.2-1, 4.8.2-2
#[test]
fn shared_subscriptions() {
    let shared = |g, f| Ok(Subscription::Shared { group: group(g), filter: filter(f) });
    check(&[
        ("$share/g/a/+/#", shared("g", "a/+/#")),
        ("$share/g//", shared("g", "/")),
        ("$share/$g/$SYS/a", shared("$g", "$SYS/a")),
        ("$share/g h/#", shared("g h", "#")),
        ("$share/g/$queue", shared("g", "$queue")),
        ("$share/g/x/$queue/a", shared("g", "x/$queue/a")),
        // [MQTT-4.8.2-1]
        ("$share/", Err(Error::ShareNameEmpty)),
        ("$share//a", Err(Error::ShareNameEmpty)),
        // [MQTT-4.8.2-2]
        ("$share/+/a", Err(Error::ShareNameCharacter { character: '+', at: 0 })),
        ("$share/g#/a", Err(Error::ShareNameCharacter { character: '#', at: 1 })),
        ("$share/g\0/a", Err(Error::ShareNameCharacter { character: '\0', at: 1 })),
        ("$share/g", Err(Error::ShareFilterMissing)),
        ("$share/g/", Err(Error::ShareFilterMissing)),
        ("$share/g/a/b#", bad_filter(9, TopicError::WildcardNotAlone { wildcard: '#', at: 3 })),
        ("$share/g/$share/h/a", Err(Error::ShareInShare)),
        ("$share/g/$queue/a", Err(Error::ShareBeforeQueue { prefix: "$queue/" })),
        ("$share/g/$q/a", Err(Error::ShareBeforeQueue { prefix: "$q/" })),
    ]);
    assert_eq!(ShareName::parse("g/h"), Err(Error::ShareNameCharacter { character: '/', at: 1 }));
}

#[test]
fn queues() {
    let named = |n, f: Option<&str>| Ok(Subscription::Queue { name: object(n), filter: f.map(filter) });
    check(&[
        ("$queue/orders", named("orders", None)),
        ("$queue/orders/sensor/+/data", named("orders", Some("sensor/+/data"))),
        ("$queue/orders/#", named("orders", Some("#"))),
        ("$queue/orders//", named("orders", Some("/"))),
        ("$q/sensor/+/data", Ok(Subscription::QueueByFilter { filter: filter("sensor/+/data") })),
        ("$q//", Ok(Subscription::QueueByFilter { filter: filter("/") })),
        ("$queue/", Err(Error::ObjectNameEmpty)),
        ("$queue//a", Err(Error::ObjectNameEmpty)),
        ("$queue/#", Err(Error::ObjectNameCharacter { character: '#', at: 0 })),
        ("$queue/a b/c", Err(Error::ObjectNameCharacter { character: ' ', at: 1 })),
        ("$queue/orders/", bad_filter(14, TopicError::Empty)),
        ("$queue/orders/a#", bad_filter(14, TopicError::WildcardNotAlone { wildcard: '#', at: 1 })),
        ("$queue/orders/$SYS/#", Err(Error::ObjectFilterReserved)),
        ("$q/", bad_filter(3, TopicError::Empty)),
        ("$q/$queue/a", Err(Error::ObjectFilterReserved)),
    ]);
}

#[test]
fn streams() {
    let named = |g: Option<&str>, n, f: Option<&str>| {
        Ok(Subscription::Stream { group: g.map(group), name: object(n), filter: f.map(filter) })
    };
    let by_filter = |g: Option<&str>, start: &str, f| {
        let start = ByteString::from(start);
        Ok(Subscription::StreamByFilter { group: g.map(group), start, filter: filter(f) })
    };
    check(&[
        ("$stream/log", named(None, "log", None)),
        ("$stream/log/a/+", named(None, "log", Some("a/+"))),
        ("$share/g/$stream/log", named(Some("g"), "log", None)),
        ("$share/g/$stream/log/#", named(Some("g"), "log", Some("#"))),
        ("$s/earliest/a/#", by_filter(None, "earliest", "a/#")),
        ("$s/2026-01-02T03:04:05Z/a", by_filter(None, "2026-01-02T03:04:05Z", "a")),
        ("$s/0:17,1:+#/a", by_filter(None, "0:17,1:+#", "a")),
        ("$s/latest//", by_filter(None, "latest", "/")),
        ("$share/g/$s/latest/a/b", by_filter(Some("g"), "latest", "a/b")),
        ("$stream/", Err(Error::ObjectNameEmpty)),
        ("$share/g/$stream/", Err(Error::ObjectNameEmpty)),
        ("$stream/-a", Err(Error::ObjectNameCharacter { character: '-', at: 0 })),
        ("$stream/log/$SYS", Err(Error::ObjectFilterReserved)),
        ("$s/", Err(Error::StartEmpty)),
        ("$s//a", Err(Error::StartEmpty)),
        ("$s/latest", Err(Error::StartFilterMissing)),
        ("$s/latest/", Err(Error::StartFilterMissing)),
        ("$share/g/$s/latest/#/a", bad_filter(19, TopicError::MultiLevelNotLast { at: 0 })),
        ("$s/latest/$SYS/a", Err(Error::ObjectFilterReserved)),
    ]);
}

#[test]
fn names_of_queues_and_streams() {
    let longest = "a".repeat(ObjectName::BYTES_MAX);
    for text in ["a", "0", "Z9", "a-b.c_d", "auto-abc", "a.", &longest] {
        assert_eq!(object(text).as_str(), text);
    }
    let bad = |character, at| Error::ObjectNameCharacter { character, at };
    for (text, expected) in [
        ("", Error::ObjectNameEmpty),
        (".a", bad('.', 0)),
        ("_", bad('_', 0)),
        ("a/b", bad('/', 1)),
        ("aé", bad('é', 1)),
        ("a\0", bad('\0', 1)),
        ("a+", bad('+', 1)),
        (&format!("{longest}a"), Error::ObjectNameTooLong { bytes: ObjectName::BYTES_MAX + 1 }),
    ] {
        assert_eq!(ObjectName::parse(text), Err(expected), "{text:?}");
    }
}

#[test]
fn the_whole_text_is_limited() {
    let of_length = |bytes: usize| format!("$share/g/{}", "a".repeat(bytes - "$share/g/".len()));
    assert!(Subscription::parse(of_length(TOPIC_BYTES_MAX)).is_ok());
    for text in [of_length(TOPIC_BYTES_MAX + 1), "$".repeat(TOPIC_BYTES_MAX + 1)] {
        let expected = Error::TooLong { bytes: TOPIC_BYTES_MAX + 1 };
        assert_eq!(Subscription::parse(text), Err(expected));
    }
    let expected = Error::TooLong { bytes: TOPIC_BYTES_MAX + 1 };
    assert_eq!(ShareName::parse("a".repeat(TOPIC_BYTES_MAX + 1)), Err(expected));
}

#[test]
fn parts_share_the_bytes_of_the_whole() {
    let text = ByteString::from("$share/g/$s/latest/a/b".to_owned());
    let Ok(Subscription::StreamByFilter { group: Some(group), start, filter }) =
        Subscription::parse(text.clone())
    else {
        panic!("not a stream by filter");
    };
    let offsets = [group.as_str(), &start, filter.as_str()].map(|part| part.as_ptr() as usize);
    assert_eq!(offsets.map(|at| at - text.as_ptr() as usize), [7, 12, 19]);
}
