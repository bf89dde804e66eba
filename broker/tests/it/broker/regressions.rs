//! What has been broken before and must not be again: bounds of retained scans, wake-ups that were lost, and
//! messages that some of their targets took and others did not.

use weir::config::ByteCount;
use weir_codec::{Packet, ProtocolVersion, ReasonCode};
use weir_core::keyspace::tag;
use weir_storage::FaultHandle;

use super::client::{
    AtLeastOnce, AtMostOnce, Client, ExactlyOnce, V5, V311, again, clean, filter, id, persistent, publish,
    receive_maximum, retained, text, will,
};
use super::{TestBroker, config, faulty, memory, queue, refused, stream};

/// Retained messages on `r/0`, `r/1`, ...
async fn retain(broker: &TestBroker, payloads: &[&str]) {
    let mut publisher = broker.clean("retainer").await;
    for (n, payload) in (1..).zip(payloads) {
        publisher.post(retained(AtLeastOnce, n, &format!("r/{n}"), payload)).await;
        assert!(!publisher.pubacked(n).await.is_error());
    }
    publisher.disconnect().await;
}

#[tokio::test]
async fn a_repeated_subscription_replaces_the_retained_messages_that_wait_for_it() {
    let broker = TestBroker::start().await;
    retain(&broker, &["0", "1", "2"]).await;
    let mut client = broker.connect(receive_maximum(clean("c", V5), 1)).await;
    client.subscribe("#", AtLeastOnce).await;
    let first = client.message().await;
    for _ in 0..20 {
        client.subscribe("#", AtLeastOnce).await;
    }
    client.puback(&first, ReasonCode::Success).await;
    // What was in flight, and all of the last subscription.
    assert_eq!(text(&first), "0");
    assert_eq!(client.take_texts(3).await, ["0", "1", "2"]);
    client.quiet().await;
}

/// A scan of retained messages goes through the inbox of a persistent session in pieces that fit.
#[tokio::test]
async fn more_retained_messages_than_an_inbox_holds_reach_a_persistent_session() {
    let mut config = config();
    config.limits.inbox_messages_per_client = 4;
    let broker = TestBroker::start_with(config, &memory()).await;
    let texts: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    let mut publisher = broker.clean("retainer").await;
    for (n, payload) in (1..).zip(&texts) {
        publisher.post(retained(AtLeastOnce, n, &format!("r/{n:03}"), payload)).await;
        assert!(!publisher.pubacked(n).await.is_error());
    }
    let mut client = broker.connect(persistent("c", V5)).await;
    client.subscribe("r/+", AtLeastOnce).await;
    // Topics have no order among each other.
    let mut taken = client.take_texts(200).await;
    taken.sort_by_key(|text| text.parse::<u32>().unwrap());
    assert_eq!(taken, texts);
    client.quiet().await;
}

/// The last word about a topic is the newest, however few messages the client takes at a time.
#[tokio::test]
async fn a_retained_message_never_follows_a_newer_one_of_its_topic() {
    let broker = TestBroker::start().await;
    // More than there are sources of deliveries, which take turns.
    let old = ["1", "2", "3", "4", "5", "6", "7", "8", "old"];
    retain(&broker, &old).await;
    let mut client = broker.connect(receive_maximum(clean("c", V5), 1)).await;
    client.subscribe("r/+", AtLeastOnce).await;
    let mut message = client.message().await;
    let mut publisher = broker.clean("publisher").await;
    publisher.post(retained(AtLeastOnce, 1, "r/9", "new")).await;
    assert!(!publisher.pubacked(1).await.is_error());
    let mut texts = vec![text(&message).to_owned()];
    for _ in old {
        client.puback(&message, ReasonCode::Success).await;
        message = client.message().await;
        texts.push(text(&message).to_owned());
    }
    let at = |wanted: &str| texts.iter().position(|text| text == wanted).unwrap();
    assert!(at("old") < at("new"), "{texts:?}");
}

#[tokio::test]
async fn an_ended_subscription_has_no_retained_messages_left() {
    let broker = TestBroker::start().await;
    retain(&broker, &["0", "1", "2"]).await;
    let mut client = broker.connect(receive_maximum(clean("c", V5), 1)).await;
    client.subscribe("#", AtLeastOnce).await;
    let first = client.message().await;
    client.unsubscribe("#").await;
    client.puback(&first, ReasonCode::Success).await;
    client.quiet().await;
}

/// As many filters as take several turns of reading what is retained for them, which is nothing.
#[tokio::test]
async fn filters_without_retained_messages_do_not_hide_the_one_that_has() {
    let broker = TestBroker::start().await;
    retain(&broker, &["x"]).await;
    let mut client = broker.clean("c").await;
    let mut filters: Vec<_> = (0..900).map(|n| filter(&format!("none/{n}"), AtLeastOnce)).collect();
    filters.push(filter("r/+", AtLeastOnce));
    let suback = client.try_subscribe(filters, None, Vec::new()).await;
    assert!(suback.reasons.iter().all(|reason| !reason.is_error()), "{suback:?}");
    assert_eq!(text(&client.take().await), "x");
}

/// Several pages of the inbox hold nothing but what is in flight, and the client keeps silent.
#[tokio::test]
async fn what_follows_a_page_of_messages_in_flight_needs_no_acknowledgement() {
    const INFLIGHT: u16 = 1000;
    let broker = TestBroker::start().await;
    let connect = |maximum| receive_maximum(persistent("s", V5), maximum);
    let mut subscriber = broker.connect(connect(INFLIGHT)).await;
    subscriber.subscribe("t", ExactlyOnce).await;
    let mut publisher = broker.clean("p").await;
    publisher
        .send_all((1..=INFLIGHT).map(|n| Packet::Publish(publish(ExactlyOnce, n, "t", "x").into())))
        .await;
    for n in 1..=INFLIGHT {
        assert_eq!(publisher.pubreced(n).await, ReasonCode::Success);
    }
    publisher.disconnect().await;
    for _ in 0..INFLIGHT {
        assert_eq!(text(&subscriber.message().await), "x");
    }
    broker.publish("t", &["next"]).await;
    subscriber.vanish();
    let mut subscriber = broker.resume(connect(INFLIGHT + 1)).await;
    // Only what it sends wakes the broker again, and is answered after what waited for it.
    subscriber.send(Packet::PingReq).await;
    for _ in 0..INFLIGHT {
        assert!(subscriber.message().await.header.dup);
    }
    assert_eq!(text(&subscriber.message().await), "next");
    assert_eq!(subscriber.recv().await, Packet::PingResp);
}

/// A broker that can store a message in a stream, but cannot retain it.
async fn half_failing() -> (TestBroker, FaultHandle) {
    let (store, faults) = faulty();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[stream("s", "t")]).await;
    faults.fail_commits_matching(&[tag::RETAINED], refused());
    (broker, faults)
}

/// All that the stream holds.
async fn expect_stored(broker: &TestBroker, expected: &[&str]) {
    let mut reader = broker.clean("reader").await;
    assert!(!reader.read_from("$stream/s", AtLeastOnce, "earliest").await.is_error());
    assert_eq!(reader.take_texts(expected.len()).await, expected);
    reader.quiet().await;
    reader.disconnect().await;
}

/// The message is retained now.
async fn expect_retained(broker: &TestBroker, expected: &str) {
    let mut reader = broker.subscriber("retained", "t", AtLeastOnce).await;
    assert_eq!(text(&reader.take().await), expected);
    reader.disconnect().await;
}

/// Resumes the session and repeats its QoS 2 publish, to the end.
async fn repeat(broker: &TestBroker, version: ProtocolVersion, payload: &str) -> Client {
    let mut client = broker.resume(persistent("p", version)).await;
    client.post(again(retained(ExactlyOnce, 1, "t", payload))).await;
    assert_eq!(client.pubreced(1).await, ReasonCode::Success);
    client.pubrel(id(1)).await;
    client.pubcomped(1).await;
    client
}

/// The connection ends before the client has read the answer.
#[tokio::test]
async fn a_qos_2_publish_whose_failure_was_not_heard_is_stored_once() {
    for version in [V5, V311] {
        let (broker, faults) = half_failing().await;
        let mut client = broker.connect(persistent("p", version)).await;
        client.post(retained(ExactlyOnce, 1, "t", "x")).await;
        if version == V5 {
            // For the broker that is the same: it cannot know whether the client read it.
            assert!(client.pubreced(1).await.is_error());
        } else {
            // It has no word for a failure.
            client.quiet().await;
        }
        assert!(faults.injected() > 0);
        client.vanish();
        faults.heal();
        repeat(&broker, version, "x").await;
        expect_stored(&broker, &["x"]).await;
        expect_retained(&broker, "x").await;
    }
}

// Conformance v5: 4.3.3-10
// Conformance v311: 4.3.3-2
/// As libraries do that forget to say that they repeat themselves.
#[tokio::test]
async fn a_qos_2_publish_that_is_sent_again_without_dup_is_stored_once() {
    for version in [V5, V311] {
        let (broker, faults) = half_failing().await;
        let mut client = broker.connect(persistent("p", version)).await;
        client.post(retained(ExactlyOnce, 1, "t", "x")).await;
        if version == V5 {
            assert!(client.pubreced(1).await.is_error());
        } else {
            client.quiet().await;
        }
        client.vanish();
        faults.heal();
        let mut client = broker.resume(persistent("p", version)).await;
        client.post(retained(ExactlyOnce, 1, "t", "x")).await;
        assert_eq!(client.pubreced(1).await, ReasonCode::Success);
        client.pubrel(id(1)).await;
        client.pubcomped(1).await;
        expect_stored(&broker, &["x"]).await;
        // Now the id is free: the same content is another message.
        client.post(retained(ExactlyOnce, 1, "t", "x")).await;
        assert_eq!(client.pubreced(1).await, ReasonCode::Success);
        expect_stored(&broker, &["x", "x"]).await;
    }
}

#[tokio::test]
async fn a_packet_id_without_dup_after_a_failure_is_another_message() {
    let (broker, faults) = half_failing().await;
    let mut client = broker.connect(persistent("p", V5)).await;
    client.post(retained(ExactlyOnce, 1, "t", "x")).await;
    assert!(client.pubreced(1).await.is_error());
    faults.heal();
    client.post(retained(ExactlyOnce, 1, "t", "y")).await;
    assert_eq!(client.pubreced(1).await, ReasonCode::Success);
    client.vanish();
    repeat(&broker, V5, "y").await;
    expect_stored(&broker, &["x", "y"]).await;
    expect_retained(&broker, "y").await;
}

#[tokio::test]
async fn a_will_that_is_tried_again_reaches_the_living_and_the_stream_once() {
    let (broker, faults) = half_failing().await;
    let mut watcher = broker.subscriber("watcher", "t", AtLeastOnce).await;
    let mut connect = clean("c", V5);
    connect.will = Some(weir_codec::Will { retain: true, ..will("t", "gone") });
    broker.connect(connect).await.vanish();
    assert_eq!(text(&watcher.take().await), "gone");
    expect_stored(&broker, &["gone"]).await;
    assert!(faults.injected() > 0);
    faults.heal();
    broker.metric_reaches("weir_retained_messages", 1.0).await;
    watcher.quiet().await;
    expect_retained(&broker, "gone").await;
    expect_stored(&broker, &["gone"]).await;
}

/// A message of QoS 0 larger than what sockets hold, of which the consumer has only a beginning.
#[tokio::test]
async fn a_queue_message_written_in_part_goes_to_another_consumer() {
    let mut config = config();
    config.limits.max_packet_size = ByteCount::mib(16);
    config.limits.outbox_bytes_per_client = ByteCount::mib(16);
    let broker = TestBroker::start_with(config, &memory()).await;
    broker.declare(&[queue("q", "t")]).await;
    let stuck = broker.subscriber("stuck", "$queue/q", AtMostOnce).await;
    let payload = "x".repeat(15 << 20);
    broker.publish("t", &[&payload]).await;
    broker.metric_reaches("weir_sent_bytes_total", 50_000.0).await;
    stuck.vanish();
    let mut other = broker.subscriber("other", "$queue/q", AtLeastOnce).await;
    assert_eq!(other.take().await.payload.len(), payload.len());
}
