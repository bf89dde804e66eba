//! The handshakes of QoS 0, 1 and 2 within one connection, byte for byte.

use super::super::TestBroker;
use super::super::client::{AtLeastOnce, AtMostOnce, ExactlyOnce, V311, persistent, publish, text};
use super::Raw;

/// A clean session that has subscribed to `t` with QoS 2.
async fn subscribed(broker: &TestBroker) -> Raw {
    let mut raw = broker.raw_clean("s").await;
    raw.send("82: 00 01 `t` 02").await;
    raw.expect("90: 00 01 02").await;
    raw
}

// Conformance v311: 3.3.4-1, 2.3.1-6, 4.3.1-1, 4.3.2-2, 4.3.3-2, 7.0.0-2
#[tokio::test]
async fn a_publish_is_answered_as_its_qos_asks() {
    let broker = TestBroker::start().await;
    let mut live = broker.old_subscriber("live", "t", ExactlyOnce).await;
    let mut raw = broker.raw_clean("p").await;
    raw.send("30: `t` '0'").await;
    raw.synced().await;
    raw.send("32: `t` 12 34 '1'").await;
    raw.expect("40: 12 34").await;
    raw.send("34: `t` ff ff '2'").await;
    raw.expect("50: ff ff").await;
    raw.send("62: ff ff").await;
    raw.expect("70: ff ff").await;
    raw.synced().await;
    let zero = live.message().await;
    assert_eq!((text(&zero), zero.header.qos), ("0", AtMostOnce));
    for (n, qos) in [("1", AtLeastOnce), ("2", ExactlyOnce)] {
        let message = live.take().await;
        assert_eq!((text(&message), message.header.qos), (n, qos));
    }
}

// Conformance v311: 4.3.2-2
#[tokio::test]
async fn after_puback_an_id_means_a_new_message_whatever_dup_says() {
    let broker = TestBroker::start().await;
    let mut live = broker.old_subscriber("live", "t", AtLeastOnce).await;
    let mut raw = broker.raw_clean("p").await;
    for (packet, expected) in
        [("32: `t` 00 07 'a'", "a"), ("32: `t` 00 07 'b'", "b"), ("3a: `t` 00 07 'c'", "c")]
    {
        raw.send(packet).await;
        raw.expect("40: 00 07").await;
        let message = live.take().await;
        assert_eq!((text(&message), message.header.dup), (expected, false));
    }
}

// Conformance v311: 4.3.3-2
#[tokio::test]
async fn a_qos_2_publish_that_comes_again_before_pubrel_is_only_answered() {
    let broker = TestBroker::start().await;
    let mut live = broker.old_subscriber("live", "t", ExactlyOnce).await;
    let mut raw = broker.raw_clean("p").await;
    raw.send("34: `t` 00 07 'a'").await;
    raw.expect("50: 00 07").await;
    for repeat in ["3c: `t` 00 07 'a'", "34: `t` 00 07 'a'"] {
        raw.send(repeat).await;
        raw.expect("50: 00 07").await;
    }
    // Another id is another message, the same id of QoS 1 too.
    raw.send("34: `t` 00 08 'b'; 32: `t` 00 09 'c'").await;
    raw.expect("50: 00 08; 40: 00 09").await;
    raw.send("62: 00 07").await;
    raw.expect("70: 00 07").await;
    // A PUBREL again is answered again.
    raw.send("62: 00 07").await;
    raw.expect("70: 00 07").await;
    raw.send("3c: `t` 00 07 'd'").await;
    raw.expect("50: 00 07").await;
    let mut texts = live.take_texts(4).await;
    // QoS 1 and 2 have no order between them.
    texts.sort();
    assert_eq!(texts, ["a", "b", "c", "d"]);
    live.synced().await;
}

// Conformance v311: 2.3.1-4, 2.3.1-6, 4.3.2-1, 4.3.3-1
#[tokio::test]
async fn deliveries_are_sent_once_and_under_ids_that_are_free() {
    let broker = TestBroker::start().await;
    let mut raw = subscribed(&broker).await;
    broker.publish("t", &["a", "b"]).await;
    raw.expect("32: `t` 00 01 'a'; 32: `t` 00 02 'b'").await;
    raw.send("40: 00 02").await;
    // The first is open: its id is not used, and it is not sent again.
    broker.publish("t", &["c", "d"]).await;
    raw.expect("32: `t` 00 03 'c'; 32: `t` 00 04 'd'").await;
    raw.send("40: 00 01; 40: 00 03; 40: 00 04").await;
    raw.synced().await;

    let mut publisher = broker.old("p").await;
    publisher.publish_twice_acknowledged(1, "t", "e").await;
    raw.expect("34: `t` 00 05 'e'").await;
    raw.send("50: 00 05").await;
    raw.expect("62: 00 05").await;
    // Never back to PUBLISH.
    raw.send("50: 00 05").await;
    raw.expect("62: 00 05").await;
    raw.send("70: 00 05").await;
    raw.synced().await;
    raw.send("70: 00 05").await;
    raw.synced().await;
}

/// The last ids that there are, with the first ones still open.
// Conformance v311: 2.3.1-4, 4.3.2-1
#[tokio::test]
async fn ids_that_are_open_are_left_out_when_they_begin_anew() {
    let broker = TestBroker::start().await;
    let mut client = broker.old_subscriber("s", "t", AtLeastOnce).await;
    let mut publisher = broker.old("p").await;
    publisher.publish("t", "open").await;
    let open = client.message().await.header.packet_id;
    let mut wrapped = false;
    let mut last = open;
    for _ in 0..70 {
        publisher.send_all((1..=1000).map(|n| super::packet(publish(AtLeastOnce, n, "t", "x")))).await;
        for n in 1..=1000 {
            let message = client.take().await;
            assert_ne!(message.header.packet_id, open);
            wrapped |= message.header.packet_id < last;
            last = message.header.packet_id;
            publisher.pubacked(n).await;
        }
    }
    assert!(wrapped, "ids began anew");
}

// Conformance v311: 3.3.1-3, 3.3.1-1
#[tokio::test]
async fn dup_of_the_publisher_is_not_that_of_a_delivery() {
    let broker = TestBroker::start().await;
    let mut raw = subscribed(&broker).await;
    let mut publisher = broker.raw_clean("p").await;
    publisher.send("3a: `t` 00 07 'a'").await;
    publisher.expect("40: 00 07").await;
    raw.expect("32: `t` 00 01 'a'").await;
    publisher.send("3c: `t` 00 08 'b'").await;
    publisher.expect("50: 00 08").await;
    raw.expect("34: `t` 00 02 'b'").await;
    // And the other way: what is sent again has it although the publish had not.
    let mut kept = broker.connect(persistent("kept", V311)).await;
    kept.subscribe("t", AtLeastOnce).await;
    broker.publish("t", &["c"]).await;
    assert!(!kept.message().await.header.dup);
    kept.vanish();
    assert!(broker.resume(persistent("kept", V311)).await.message().await.header.dup);
}

// Conformance v311: 3.8.4-6
#[tokio::test]
async fn a_delivery_has_the_lower_qos_of_message_and_subscription() {
    let broker = TestBroker::start().await;
    for connect in [super::clean("s", V311), persistent("s", V311)] {
        let mut subscriber = broker.connect(connect).await;
        for granted in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
            subscriber.subscribe("t", granted).await;
            for (n, qos) in (1..).zip([AtMostOnce, AtLeastOnce, ExactlyOnce]) {
                let mut publisher = broker.old("p").await;
                publisher.post(publish(qos, n, "t", "x")).await;
                let message = subscriber.message().await;
                assert_eq!(message.header.qos, qos.min(granted));
                match message.header.qos {
                    AtMostOnce => assert_eq!(message.header.packet_id, None),
                    AtLeastOnce => subscriber.puback(&message, weir_codec::ReasonCode::Success).await,
                    ExactlyOnce => subscriber.receive_twice_acknowledged(&message).await,
                }
                subscriber.synced().await;
            }
        }
        subscriber.disconnect().await;
    }
}

// Conformance v311: 3.12.4-1, 7.1.1-1
#[tokio::test]
async fn pingreq_is_answered() {
    let broker = TestBroker::start().await;
    let mut raw = broker.raw_clean("c").await;
    raw.send("c0:").await;
    raw.expect("d0:").await;
    // Each, and whatever the pieces of the stream are.
    raw.send_bytes(&[0xc0]).await;
    raw.quiet().await;
    raw.send_bytes(&[0, 0xc0, 0, 0xc0, 0]).await;
    raw.expect("d0:; d0:; d0:").await;
}
