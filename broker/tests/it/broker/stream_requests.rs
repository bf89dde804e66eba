//! What a stream subscription may ask for: an end, some topics, one key, a speed; and what is refused.

use std::collections::BTreeSet;

use weir_codec::{Publish, ReasonCode, SubscribeFilter, SubscriptionOptions};
use weir_core::definition::Definition;

use super::client::{
    AtLeastOnce, AtMostOnce, Client, V5, V311, clean, filter, number, persistent, property, receive_maximum,
    text,
};
use super::{TestBroker, memory, stream};

fn sharded(shards: u8) -> Definition {
    Definition { shards, key: Some("message.topic".into()), ..stream("log", "log/#") }
}

/// A broker with a stream of messages `0` to `count - 1`, each on a topic, and so with a key, of its own.
async fn start(shards: u8, count: u32) -> TestBroker {
    let broker = TestBroker::start().await;
    broker.declare(&[sharded(shards)]).await;
    publish(&broker, 0, count).await;
    broker
}

async fn publish(broker: &TestBroker, from: u32, to: u32) {
    let mut publisher = broker.clean("").await;
    for n in from..to {
        assert!(!publisher.publish(&format!("log/{n}"), &n.to_string()).await.is_error());
    }
}

fn identifiers(message: &Publish) -> Vec<u32> {
    message.header.subscription_identifiers.to_vec()
}

fn is_end(message: &Publish) -> bool {
    property(message, "stream-end").is_some()
}

fn assert_is_end(message: &Publish) {
    assert_eq!(property(message, "stream-end"), Some("true"), "{message:?}");
    assert_eq!(property(message, "stream"), Some("log"));
    assert_eq!(message.topic.as_ref().unwrap().as_str(), "$stream/log");
    assert!(message.payload.is_empty() && !message.header.retain);
}

/// What comes up to the end mark.
async fn replay(reader: &mut Client) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    loop {
        let message = reader.message().await;
        if message.header.qos == AtLeastOnce {
            reader.puback(&message, ReasonCode::Success).await;
        }
        if is_end(&message) {
            assert_is_end(&message);
            return found;
        }
        assert!(found.insert(text(&message).parse().unwrap()), "twice: {message:?}");
    }
}

#[tokio::test]
async fn a_bounded_replay_ends_with_one_mark_behind_the_last_message_of_all_shards() {
    let broker = start(4, 40).await;
    for qos in [AtMostOnce, AtLeastOnce] {
        let mut reader = broker.clean("r").await;
        let bounded = [("stream-offset", "earliest"), ("stream-until", "latest")];
        reader.read_with("$stream/log", qos, &bounded).await;
        assert_eq!(replay(&mut reader).await, (0..40).collect());
        publish(&broker, 40, 41).await;
        reader.quiet().await;
        // Asked for again, it is said again.
        reader.read_with("$stream/log", qos, &bounded).await;
        assert_is_end(&reader.message().await);
        broker.declare(&[]).await;
        broker.declare(&[sharded(4)]).await;
        publish(&broker, 0, 40).await;
    }
}

#[tokio::test]
async fn ends_of_every_form() {
    let broker = start(1, 10).await;
    let mut probe = broker.clean("probe").await;
    probe.read_from("$stream/log", AtLeastOnce, "offset:4").await;
    let at = number(&probe.take().await, "ts");
    for (from, until, expected) in [
        ("earliest", "offset:3", 0..3),
        ("earliest", "0:3", 0..3),
        ("offset:2", "0:3", 2..3),
        ("offset:3", "offset:3", 3..3),
        ("offset:7", "offset:3", 0..0),
        ("earliest", &at.to_string(), 0..4),
        ("earliest", "earliest", 0..0),
        ("0:8", "latest", 8..10),
        ("latest", "latest", 0..0),
        ("earliest", "2100-01-01T00:00:00+00:00", 0..10),
    ] {
        let mut reader = broker.clean("r").await;
        let bounded = [("stream-offset", from), ("stream-until", until)];
        reader.read_with("$stream/log", AtLeastOnce, &bounded).await;
        if until.starts_with("21") {
            assert_eq!(reader.take_texts(10).await.last().unwrap(), "9");
            reader.quiet().await;
            continue;
        }
        assert_eq!(replay(&mut reader).await, expected.collect(), "{from} {until}");
        reader.quiet().await;
    }
    // What is yet to come is waited for.
    let mut reader = broker.clean("r").await;
    reader.read_with("$stream/log", AtLeastOnce, &[("stream-offset", "0:9"), ("stream-until", "0:12")]).await;
    assert_eq!(reader.take_texts(1).await, ["9"]);
    reader.quiet().await;
    publish(&broker, 10, 20).await;
    assert_eq!(replay(&mut reader).await, (10..12).collect());
}

#[tokio::test]
async fn a_session_keeps_its_end_and_hears_of_it_once() {
    let store = memory();
    let mut broker = TestBroker::start_on(&store).await;
    broker.declare(&[sharded(2)]).await;
    publish(&broker, 0, 10).await;
    let mut reader = broker.connect(receive_maximum(persistent("r", V5), 1)).await;
    let bounded = [("stream-offset", "earliest"), ("stream-until", "latest")];
    reader.read_with("$stream/log", AtLeastOnce, &bounded).await;
    let mut found: BTreeSet<u32> = [text(&reader.take().await).parse().unwrap()].into();
    let unacknowledged = reader.message().await;
    publish(&broker, 10, 20).await;
    // The last that was acknowledged may not have been stored.
    drop(broker);
    broker = TestBroker::start_on(&store).await;
    let mut reader = broker.resume(persistent("r", V5)).await;
    found.extend(replay(&mut reader).await);
    assert_eq!(found, (0..10).collect(), "it ends where it did");
    assert!(found.contains(&text(&unacknowledged).parse().unwrap()));
    reader.disconnect().await;
    let mut reader = broker.resume(persistent("r", V5)).await;
    reader.quiet().await;
    reader.disconnect().await;
    // A mark that was not acknowledged comes again.
    let mut reader = broker.resume(persistent("r", V5)).await;
    reader.read_with("$stream/log", AtLeastOnce, &bounded).await;
    assert_is_end(&reader.message().await);
    reader.disconnect().await;
    let mut reader = broker.resume(persistent("r", V5)).await;
    assert_is_end(&reader.take().await);
}

#[tokio::test]
async fn only_what_is_asked_for() {
    let broker = start(4, 20).await;
    let until = ("stream-until", "latest");
    for (asked, expected) in [
        (&[("stream-filter", "log/7")][..], &[7][..]),
        (&[("stream-filter", "other/#")], &[]),
        (&[("stream-key", "log/12")], &[12]),
        (&[("stream-key", "log/99")], &[]),
        (&[("stream-key", "log/12"), ("stream-filter", "log/7")], &[]),
    ] {
        let mut reader = broker.clean("r").await;
        let properties: Vec<_> =
            [("stream-offset", "earliest"), until].iter().chain(asked).copied().collect();
        reader.read_with("$stream/log", AtLeastOnce, &properties).await;
        assert_eq!(replay(&mut reader).await, expected.iter().copied().collect(), "{asked:?}");
    }
    // Live too.
    let mut reader = broker.clean("r").await;
    reader.read_with("$stream/log", AtMostOnce, &[("stream-key", "log/3")]).await;
    publish(&broker, 2, 5).await;
    assert_eq!(text(&reader.message().await), "3");
    reader.quiet().await;
}

#[tokio::test]
async fn a_slow_replay_comes_one_by_one_and_a_fast_one_as_a_whole() {
    let broker = start(4, 20).await;
    let rate = async |client: &mut Client, rate: &str| {
        let properties = [("stream-offset", "earliest"), ("stream-until", "latest"), ("stream-rate", rate)];
        client.read_with("$stream/log", AtLeastOnce, &properties).await;
    };
    let mut slow = broker.clean("slow").await;
    rate(&mut slow, "1").await;
    slow.take().await;
    slow.quiet().await;
    slow.take().await;
    let mut fast = broker.clean("fast").await;
    rate(&mut fast, "100000").await;
    assert_eq!(replay(&mut fast).await, (0..20).collect());
    // Another speed goes on where it is.
    let mut found: BTreeSet<u32> = BTreeSet::new();
    rate(&mut slow, "1000").await;
    found.extend(replay(&mut slow).await);
    assert_eq!(found.len(), 18);
}

#[tokio::test]
async fn several_subscriptions_to_one_stream_are_read_apart() {
    let broker = start(1, 3).await;
    let mut reader = broker.clean("r").await;
    let subscribe = async |reader: &mut Client, to: &str, identifier, offset: &str| {
        let properties = vec![("stream-offset".into(), offset.to_owned().into())];
        let suback = reader.try_subscribe(vec![filter(to, AtLeastOnce)], Some(identifier), properties).await;
        assert_eq!(suback.reasons, [ReasonCode::GrantedQoS1]);
    };
    subscribe(&mut reader, "$stream/log", 1, "0:2").await;
    let first = reader.take().await;
    subscribe(&mut reader, "$stream/log/log/#", 2, "0:1").await;
    let (second, third) = (reader.take().await, reader.take().await);
    let seen = [&first, &second, &third].map(|message| (identifiers(message), number(message, "offset")));
    assert_eq!(seen, [(vec![1], 2), (vec![2], 1), (vec![2], 2)]);
    publish(&broker, 3, 4).await;
    let both: BTreeSet<_> = [reader.take().await, reader.take().await]
        .iter()
        .map(|message| (identifiers(message), number(message, "offset")))
        .collect();
    assert_eq!(both, [(vec![1], 3), (vec![2], 3)].into());
    reader.unsubscribe("$stream/log").await;
    publish(&broker, 4, 5).await;
    assert_eq!(identifiers(&reader.take().await), [2]);
    reader.quiet().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_a_reason() {
    let broker = start(2, 1).await;
    broker.declare(&[sharded(2), stream("plain", "plain/#")]).await;
    let mut client = broker.clean("c").await;
    for (to, properties, words) in [
        ("$stream/log", &[("stream-offset", "offset:1")][..], "2"),
        ("$stream/log", &[("stream-offset", "2:1")], "no shard 2"),
        ("$stream/log", &[("stream-until", "0:1,5:1")], "no shard 5"),
        ("$stream/plain", &[("stream-key", "k")], "no key"),
        ("$stream/log", &[("stream-rate", "fast")], "stream-rate"),
        ("$stream/log", &[("stream-offset", "0:1"), ("stream-offset", "0:1")], "more than once"),
        ("$stream/log", &[("stream-tpyo", "1")], "stream-tpyo"),
        ("$s/0:1,1:x/log/#", &[], "0:1,1:x"),
    ] {
        let suback = client.ask_to_read(to, AtLeastOnce, properties).await;
        assert_eq!(suback.reasons, [ReasonCode::ImplementationSpecificError], "{to} {properties:?}");
        let said = suback.properties.reason_string.unwrap();
        assert!(said.contains(words), "{said}");
    }
    let no_local = SubscriptionOptions { no_local: true, ..filter("", AtLeastOnce).options };
    let suback = client
        .try_subscribe(
            vec![SubscribeFilter { options: no_local, ..filter("$stream/log", AtLeastOnce) }],
            None,
            Vec::new(),
        )
        .await;
    assert_eq!(suback.reasons, [ReasonCode::TopicFilterInvalid]);
    let mut old = broker.connect(clean("old", V311)).await;
    for to in ["$s/0:1,0:2/log/#", "$s/2:0/log/#", "$s/2023-11-15T00:13:20-02:00/log/#"] {
        assert_eq!(old.subscribed(to, AtLeastOnce).await, ReasonCode::UnspecifiedError, "{to}");
    }
}

#[tokio::test]
async fn offsets_by_shard_are_exact_in_both_versions() {
    let broker = start(2, 20).await;
    let mut probe = broker.clean("probe").await;
    probe.read_from("$stream/log", AtMostOnce, "earliest").await;
    let mut ends = [0; 2];
    for _ in 0..20 {
        let shard = usize::try_from(number(&probe.message().await, "shard")).unwrap();
        ends[shard] += 1;
    }
    let place = format!("1:{},0:{}", ends[1] - 1, ends[0] - 2);
    let mut reader = broker.clean("r").await;
    reader.read_from("$stream/log", AtLeastOnce, &place).await;
    let mut found: Vec<(u64, u64)> = Vec::new();
    for _ in 0..3 {
        let message = reader.take().await;
        found.push((number(&message, "shard"), number(&message, "offset")));
    }
    found.sort_unstable();
    assert_eq!(found, [(0, ends[0] - 2), (0, ends[0] - 1), (1, ends[1] - 1)]);
    reader.quiet().await;
    let mut old = broker.connect(clean("old", V311)).await;
    old.subscribe(&format!("$s/{place}/log/#"), AtLeastOnce).await;
    old.take_texts(3).await;
    old.quiet().await;
}

#[tokio::test]
async fn a_stream_that_is_waited_for_is_read_as_was_asked() {
    let asked = [
        ("stream-offset", "earliest"),
        ("stream-until", "0:4"),
        ("stream-filter", "log/+"),
        ("stream-rate", "500"),
    ];
    for is_away in [false, true] {
        let broker = TestBroker::start().await;
        let mut reader = broker.connect(persistent("r", V5)).await;
        let suback = reader.ask_to_read("$stream/log", AtLeastOnce, &asked).await;
        assert_eq!(suback.reasons, [ReasonCode::GrantedQoS1]);
        assert!(suback.properties.reason_string.unwrap().contains("does not exist yet"));
        if is_away {
            reader.disconnect().await;
            reader = broker.clean("other").await;
        }
        broker.declare(&[sharded(1)]).await;
        broker.publish("log/a/b", &["0"]).await;
        publish(&broker, 1, 9).await;
        if is_away {
            reader = broker.resume(persistent("r", V5)).await;
        }
        assert_eq!(replay(&mut reader).await, (1..4).collect());
        reader.quiet().await;
    }
}

#[tokio::test]
async fn what_a_log_keeps_is_said_of_a_message_that_would_have_expired() {
    let broker = start(1, 0).await;
    let mut publisher = broker.clean("p").await;
    let mut message = super::client::publish(AtLeastOnce, 1, "log/1", "x");
    message.header.message_expiry_interval = Some(7);
    publisher.post(message).await;
    publisher.pubacked(1).await;
    for version in [V5, V311] {
        let mut reader = broker.connect(clean("r", version)).await;
        reader.subscribe("$s/earliest/log/#", AtLeastOnce).await;
        let message = reader.take().await;
        let expected = (version == V5).then_some("7");
        assert_eq!(property(&message, "message-expiry"), expected);
        assert_eq!(message.header.message_expiry_interval, None);
    }
}
