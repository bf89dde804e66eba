//! Quality of service, retries, order and flow control (4.3 to 4.6, 4.9).

use std::num::NonZeroU16;

use weir_codec::{Connect, Packet, ReasonCode};
use weir_core::keyspace::tag;
use weir_storage::CommitFault;

use super::super::client::{
    AtLeastOnce, AtMostOnce, Client, ExactlyOnce, V5, again, clean, id, persistent, publish, receive_maximum,
    text,
};
use super::super::{DEADLINE, TestBroker, config, faulty, memory, queue};

// Conformance v5: 2.2.1-5, 4.3.2-4, 4.3.2-5
#[tokio::test]
async fn after_puback_a_packet_identifier_means_a_new_message() {
    let broker = TestBroker::start().await;
    let mut subscriber = broker.subscriber("s", "t", AtLeastOnce).await;
    for connect in [clean("p", V5), persistent("p", V5)] {
        let mut publisher = broker.connect(connect).await;
        for n in [1, 65_535] {
            publisher.post(publish(AtLeastOnce, n, "t", "0")).await;
            assert_eq!(publisher.pubacked(n).await, ReasonCode::Success);
            publisher.post(again(publish(AtLeastOnce, n, "t", "1"))).await;
            assert_eq!(publisher.pubacked(n).await, ReasonCode::Success);
            assert_eq!(subscriber.take_texts(2).await, ["0", "1"]);
        }
    }
}

// Conformance v5: 2.2.1-5, 4.3.3-8, 4.3.3-10, 4.3.3-11, 4.3.3-12
#[tokio::test]
async fn a_qos_2_publish_is_delivered_once_until_it_is_released() {
    let broker = TestBroker::start().await;
    let mut subscriber = broker.subscriber("s", "t", AtMostOnce).await;
    for connect in [clean("p", V5), persistent("p", V5)] {
        let mut publisher = broker.connect(connect).await;
        for payload in ["0", "1"] {
            publisher.post(publish(ExactlyOnce, 7, "t", payload)).await;
            assert_eq!(publisher.pubreced(7).await, ReasonCode::Success);
            for _ in 0..2 {
                publisher.post(again(publish(ExactlyOnce, 7, "t", payload))).await;
                assert_eq!(publisher.pubreced(7).await, ReasonCode::Success);
            }
            publisher.pubrel(id(7)).await;
            publisher.pubcomped(7).await;
            assert_eq!(text(&subscriber.message().await), payload);
            subscriber.synced().await;
        }
    }
}

// Conformance v5: 4.3.3-9
#[tokio::test]
async fn after_a_pubrec_with_an_error_a_packet_identifier_means_a_new_message() {
    let broker = TestBroker::start().await;
    let mut subscriber = broker.subscriber("s", "t", AtMostOnce).await;
    for connect in [clean("p", V5), persistent("p", V5)] {
        let mut publisher = broker.connect(connect).await;
        publisher.post(publish(ExactlyOnce, 7, "$queue/none", "0")).await;
        assert_eq!(publisher.pubreced(7).await, ReasonCode::TopicNameInvalid);
        publisher.post(publish(ExactlyOnce, 7, "t", "1")).await;
        assert_eq!(publisher.pubreced(7).await, ReasonCode::Success);
        assert_eq!(text(&subscriber.message().await), "1");
    }
}

// Conformance v5: 2.2.1-4, 4.3.2-1, 4.3.2-3, 4.3.3-1, 4.3.3-3, 4.3.3-4, 4.3.3-5, 4.3.3-6, 4.4.0-1
#[tokio::test]
async fn what_is_open_is_sent_again_after_a_reconnect_and_at_no_other_time() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect(persistent("s", V5)).await;
    client.subscribe("t", ExactlyOnce).await;
    let mut publisher = broker.clean("p").await;
    publisher.publish("t", "1").await;
    publisher.publish_twice_acknowledged(1, "t", "2").await;
    publisher.publish_twice_acknowledged(2, "t", "3").await;
    let open = [client.message().await, client.message().await, client.message().await];
    let ids = open.each_ref().map(|message| message.header.packet_id.unwrap());
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    client.quiet().await;
    // The third is released.
    client.pubrec(ids[2]).await;
    assert!(matches!(client.recv().await, Packet::PubRel(ack) if ack.packet_id == ids[2]));
    for _ in 0..2 {
        client.vanish();
        client = broker.resume(persistent("s", V5)).await;
        let (one, two) = (client.message().await, client.message().await);
        for (message, packet_id) in [(&one, ids[0]), (&two, ids[1])] {
            assert_eq!((message.header.packet_id, message.header.dup), (Some(packet_id), true));
        }
        assert!(matches!(client.recv().await, Packet::PubRel(ack) if ack.packet_id == ids[2]));
        client.quiet().await;
    }
    client.pubcomp(ids[2]).await;
    client.pubrec(ids[1]).await;
    assert!(matches!(client.recv().await, Packet::PubRel(ack) if ack.packet_id == ids[1]));
    client.pubcomp(ids[1]).await;
    client.puback(&open[0], ReasonCode::Success).await;
    client.synced().await;
    client.disconnect().await;
    let mut client = broker.resume(persistent("s", V5)).await;
    client.synced().await;
    client.quiet().await;
}

// Conformance v5: 4.4.0-2
#[tokio::test]
async fn a_refused_delivery_is_not_sent_again() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect(persistent("s", V5)).await;
    client.subscribe("t", ExactlyOnce).await;
    let mut publisher = broker.clean("p").await;
    publisher.publish("t", "1").await;
    publisher.publish_twice_acknowledged(1, "t", "2").await;
    let one = client.message().await;
    client.puback(&one, ReasonCode::ImplementationSpecificError).await;
    let two = client.message().await;
    let refusal = weir_codec::Ack {
        packet_id: two.header.packet_id.unwrap(),
        reason: ReasonCode::QuotaExceeded,
        properties: None,
    };
    client.send(Packet::PubRec(refusal)).await;
    client.synced().await;
    client.disconnect().await;
    let mut client = broker.resume(persistent("s", V5)).await;
    client.synced().await;
    client.quiet().await;
}

// Conformance v5: 4.5.0-1, 3.1.2-23, 4.1.0-1
#[tokio::test]
async fn every_matching_session_gets_the_message_whether_its_client_is_there_or_not() {
    let broker = TestBroker::start().await;
    let mut here = Vec::new();
    for (n, to) in ["t/+", "t/1", "#"].into_iter().enumerate() {
        let mut away = broker.connect(persistent(&format!("away{n}"), V5)).await;
        away.subscribe(to, AtLeastOnce).await;
        away.vanish();
        here.push(broker.subscriber(&format!("here{n}"), to, AtLeastOnce).await);
    }
    let mut other = broker.subscriber("other", "t/2", AtLeastOnce).await;
    broker.publish("t/1", &["x"]).await;
    for (n, here) in here.iter_mut().enumerate() {
        let mut back = broker.resume(persistent(&format!("away{n}"), V5)).await;
        assert_eq!((text(&back.take().await), text(&here.take().await)), ("x", "x"));
    }
    other.synced().await;
}

// Conformance v5: 4.6.0-2, 4.6.0-3, 4.6.0-4, 4.6.0-5, 4.6.0-6
#[tokio::test]
async fn messages_of_a_publisher_keep_their_order() {
    let broker = TestBroker::start().await;
    let mut live = broker.subscriber("live", "t/#", ExactlyOnce).await;
    let mut inbox = broker.connect(persistent("inbox", V5)).await;
    inbox.subscribe("t/#", ExactlyOnce).await;
    let mut publisher = broker.clean("p").await;
    for qos in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
        let packets = (1..=200).map(|n| publish(qos, n, "t/1", &n.to_string()));
        publisher.send_all(packets.map(|publish| Packet::Publish(Box::new(publish)))).await;
        for n in 1..=200 {
            match qos {
                AtMostOnce => {}
                AtLeastOnce => assert_eq!(publisher.pubacked(n).await, ReasonCode::Success),
                ExactlyOnce => assert_eq!(publisher.pubreced(n).await, ReasonCode::Success),
            }
        }
        for client in [&mut live, &mut inbox] {
            let mut texts = Vec::new();
            for _ in 0..200 {
                let message = client.message().await;
                texts.push(text(&message).to_owned());
                match message.header.qos {
                    AtMostOnce => {}
                    AtLeastOnce => client.puback(&message, ReasonCode::Success).await,
                    ExactlyOnce => client.receive_twice_acknowledged(&message).await,
                }
            }
            assert_eq!(texts, (1..=200).map(|n| n.to_string()).collect::<Vec<_>>(), "{qos:?}");
        }
    }
    // PUBREL come in the order of their PUBREC, whatever the order of the messages.
    let mut another = broker.clean("q").await;
    for n in 1..=3 {
        another.publish_twice_acknowledged(n, "t/2", "x").await;
    }
    for client in [&mut live, &mut inbox] {
        let (received, released) = received_in_reverse(client).await;
        assert_eq!(received, released);
    }
}

/// The first waits for the store, the others for nobody but the first; some are refused.
// Conformance v5: 4.6.0-2, 4.6.0-3
#[tokio::test]
async fn answers_keep_the_order_of_the_publishes_however_slow_the_store_is() {
    let (store, faults) = faulty();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[queue("q", "slow")]).await;
    for qos in [AtLeastOnce, ExactlyOnce] {
        for connect in [clean("c", V5), persistent("c", V5)] {
            let mut client = broker.connect(connect).await;
            faults.fail_commits_matching(&[tag::SEGMENT], CommitFault::Stalled(DEADLINE));
            let topics = ["slow", "nobody", "$queue/q", "slow", "nobody"];
            let packets = (1..).zip(topics).map(|(n, topic)| publish(qos, n, topic, "x"));
            client.send_all(packets.map(|publish| Packet::Publish(Box::new(publish)))).await;
            // All are read, and none is answered before the first.
            client.synced().await;
            faults.heal();
            faults.release_stalled();
            for (n, topic) in (1..).zip(topics) {
                let reason = match qos {
                    AtLeastOnce => client.pubacked(n).await,
                    _ => client.pubreced(n).await,
                };
                assert_eq!(reason.is_error(), topic.starts_with('$'), "{qos:?} {n}");
            }
            client.disconnect().await;
        }
    }
}

/// Takes the three messages that `client` is due and answers them backwards: the order of its PUBREC and PUBREL.
async fn received_in_reverse(client: &mut Client) -> (Vec<u16>, Vec<u16>) {
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(client.message().await.header.packet_id.unwrap());
    }
    ids.reverse();
    for n in &ids {
        client.pubrec(*n).await;
    }
    let mut released = Vec::new();
    for _ in 0..3 {
        match client.recv().await {
            Packet::PubRel(ack) => released.push(ack.packet_id),
            other => panic!("{other:?}"),
        }
    }
    for n in &ids {
        client.pubcomp(*n).await;
    }
    (ids.iter().map(|n| n.get()).collect(), released.iter().map(|n| n.get()).collect())
}

// Conformance v5: 3.3.4-9, 3.3.4-10, 4.9.0-1, 4.9.0-2, 4.9.0-3
#[tokio::test]
async fn a_client_with_a_full_window_gets_everything_but_publishes() {
    let broker = TestBroker::start().await;
    for connect in [clean("s", V5), persistent("s", V5)] {
        let mut client = broker.connect(receive_maximum(connect, 2)).await;
        client.subscribe("t", ExactlyOnce).await;
        let mut publisher = broker.clean("p").await;
        for n in 1..=4 {
            publisher.publish_twice_acknowledged(n, "t", &n.to_string()).await;
        }
        let (one, two) = (client.message().await, client.message().await);
        // Everything else goes on, and nothing above QoS 0 comes.
        client.synced().await;
        client.subscribe("other", AtMostOnce).await;
        assert!(!client.publish("nobody", "x").await.is_error());
        client.publish_twice_acknowledged(9, "nobody", "x").await;
        client.unsubscribe("other").await;
        // PUBREC does not make room, PUBCOMP does.
        let id_of = |message: &weir_codec::Publish| message.header.packet_id.unwrap();
        client.pubrec(id_of(&one)).await;
        assert!(matches!(client.recv().await, Packet::PubRel(_)));
        client.synced().await;
        client.pubcomp(id_of(&one)).await;
        let three = client.message().await;
        assert_eq!(text(&three), "3");
        client.synced().await;
        // So does a PUBREC with an error.
        let refusal =
            weir_codec::Ack { packet_id: id_of(&two), reason: ReasonCode::QuotaExceeded, properties: None };
        client.send(Packet::PubRec(refusal)).await;
        assert_eq!(text(&client.message().await), "4");
        client.unsubscribe("t").await;
        client.disconnect().await;
    }
}

// Conformance v5: 3.3.4-7
#[tokio::test]
async fn a_client_that_exceeds_the_receive_maximum_is_told() {
    let mut config = config();
    config.limits.receive_maximum = 2;
    let broker = TestBroker::start_with(config, &memory()).await;
    let (mut client, connack) = broker.connack(clean("c", V5)).await;
    assert_eq!(connack.receive_maximum, NonZeroU16::new(2));
    // Released and answered publishes do not count.
    for n in 1..=5 {
        client.publish_twice_acknowledged(n, "t", "x").await;
        assert!(!client.publish("t", "x").await.is_error());
    }
    for n in 1..=3 {
        client.post(publish(ExactlyOnce, n, "t", "x")).await;
    }
    // How much of it was answered before depends on the pieces in which it came.
    match client.rest().await.last() {
        Some(Packet::Disconnect(disconnect)) => {
            assert_eq!(disconnect.reason, ReasonCode::ReceiveMaximumExceeded);
        }
        other => panic!("{other:?}"),
    }
}

// Conformance v5: 3.1.2-24, 3.1.2-25
#[tokio::test]
async fn a_message_too_large_for_one_subscriber_reaches_the_others_and_holds_nothing_up() {
    let broker = TestBroker::start().await;
    let mut large = broker.subscriber("large", "t", ExactlyOnce).await;
    for connect in [clean("small", V5), persistent("small", V5)] {
        let connect = Connect { maximum_packet_size: std::num::NonZeroU32::new(60), ..connect };
        let mut small = broker.connect(receive_maximum(connect, 1)).await;
        small.subscribe("t", ExactlyOnce).await;
        let mut publisher = broker.clean("p").await;
        let too_large = "x".repeat(60);
        publisher.publish_twice_acknowledged(1, "t", &too_large).await;
        publisher.publish("t", &too_large).await;
        publisher.post(publish(AtMostOnce, 0, "t", &too_large)).await;
        publisher.publish("t", "small").await;
        assert_eq!(text(&small.take().await), "small");
        small.synced().await;
        for expected in [&*too_large, &too_large, &too_large, "small"] {
            let message = large.message().await;
            assert_eq!(text(&message), expected);
            match message.header.qos {
                AtMostOnce => {}
                AtLeastOnce => large.puback(&message, ReasonCode::Success).await,
                ExactlyOnce => large.receive_twice_acknowledged(&message).await,
            }
        }
        small.disconnect().await;
    }
}
