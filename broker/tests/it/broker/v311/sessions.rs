//! Clean sessions and kept ones, over reconnects with messages in flight.

use weir_codec::{Packet, PacketId, Publish, QoS, ReasonCode};

use super::super::client::{
    AtLeastOnce, AtMostOnce, Client, ExactlyOnce, V311, again, clean, id, persistent, publish, text,
};
use super::super::{DEADLINE, TestBroker, memory};
use super::packet;

/// A message on `t` of each QoS given, in this order, from one publisher.
async fn publish_each(broker: &TestBroker, first: u16, qualities: &[QoS]) {
    let mut publisher = broker.old("publisher").await;
    for (n, qos) in (first..).zip(qualities) {
        match qos {
            ExactlyOnce => publisher.publish_twice_acknowledged(n, "t", &n.to_string()).await,
            AtLeastOnce => {
                publisher.post(publish(AtLeastOnce, n, "t", &n.to_string())).await;
                publisher.pubacked(n).await;
            }
            AtMostOnce => publisher.post(publish(AtMostOnce, 0, "t", &n.to_string())).await,
        }
    }
    publisher.synced().await;
    publisher.disconnect().await;
}

/// A kept session with one subscription of QoS 2, connected.
async fn subscribed(broker: &TestBroker) -> Client {
    let mut client = broker.connect(persistent("s", V311)).await;
    client.subscribe("t", ExactlyOnce).await;
    client
}

/// What a PUBLISH says of itself.
fn said(message: &Publish) -> (&str, QoS, Option<PacketId>, bool) {
    (text(message), message.header.qos, message.header.packet_id, message.header.dup)
}

// Conformance v311: 3.1.2-4, 3.1.2-5, 3.2.2-2, 3.2.2-3, 4.1.0-1, 4.5.0-1
#[tokio::test]
async fn a_kept_session_collects_messages_of_qos_1_and_2() {
    for crash in [false, true] {
        let store = memory();
        let mut broker = TestBroker::start_on(&store).await;
        let (mut client, connack) = broker.connack(persistent("s", V311)).await;
        assert!(!connack.session_present);
        client.subscribe("t", ExactlyOnce).await;
        client.disconnect().await;
        let mut other = broker.connect(persistent("other", V311)).await;
        other.subscribe("+", AtLeastOnce).await;
        other.vanish();
        publish_each(&broker, 1, &[AtLeastOnce, ExactlyOnce, AtLeastOnce]).await;
        if crash {
            drop(broker);
            broker = TestBroker::start_on(&store).await;
        }
        let mut client = broker.resume(persistent("s", V311)).await;
        for (n, qos) in [("1", AtLeastOnce), ("2", ExactlyOnce), ("3", AtLeastOnce)] {
            let message = client.take().await;
            assert_eq!((text(&message), message.header.qos, message.header.dup), (n, qos, false));
        }
        // Nor has its subscription to be made again.
        publish_each(&broker, 4, &[ExactlyOnce]).await;
        assert_eq!(text(&client.take().await), "4");
        let mut other = broker.resume(persistent("other", V311)).await;
        assert_eq!(other.take_texts(4).await, ["1", "2", "3", "4"]);
    }
}

// Conformance v311: 3.1.2-6, 3.1.4-3, 3.2.2-1, 4.1.0-2
#[tokio::test]
async fn a_clean_session_discards_what_there_was_and_leaves_nothing() {
    let broker = TestBroker::start().await;
    let mut client = subscribed(&broker).await;
    publish_each(&broker, 1, &[AtLeastOnce, ExactlyOnce]).await;
    // In flight, and in the inbox.
    client.message().await;
    client.message().await;
    client.disconnect().await;
    publish_each(&broker, 3, &[AtLeastOnce]).await;

    let (mut client, connack) = broker.connack(clean("s", V311)).await;
    assert!(!connack.session_present);
    publish_each(&broker, 4, &[AtLeastOnce]).await;
    client.synced().await;
    // It lasts as long as its connection: subscription, and the ids of QoS 2 in both directions.
    client.subscribe("t", ExactlyOnce).await;
    client.post(publish(ExactlyOnce, 1, "other", "x")).await;
    assert_eq!(client.pubreced(1).await, ReasonCode::Success);
    publish_each(&broker, 5, &[ExactlyOnce]).await;
    let message = client.message().await;
    assert_eq!((text(&message), message.header.dup), ("5", false));
    client.vanish();

    // Neither its messages nor its subscription come back, and its ids are free.
    let mut watcher = broker.old_subscriber("watcher", "other", ExactlyOnce).await;
    let (mut client, connack) = broker.connack(persistent("s", V311)).await;
    assert!(!connack.session_present);
    publish_each(&broker, 6, &[AtLeastOnce]).await;
    client.synced().await;
    client.post(again(publish(ExactlyOnce, 1, "other", "y"))).await;
    assert_eq!(client.pubreced(1).await, ReasonCode::Success);
    assert_eq!(text(&watcher.take().await), "y");
}

// Conformance v311: 4.4.0-1, 4.6.0-1, 3.3.1-1, 2.3.1-4, 4.3.2-1, 4.3.3-1
#[tokio::test]
async fn what_was_in_flight_comes_again_in_its_order() {
    let broker = TestBroker::start().await;
    let mut client = subscribed(&broker).await;
    let qualities = [AtLeastOnce, ExactlyOnce, ExactlyOnce, AtLeastOnce, ExactlyOnce, AtLeastOnce];
    publish_each(&broker, 1, &qualities).await;
    let mut sent = Vec::new();
    for _ in &qualities {
        let message = client.message().await;
        assert!(!message.header.dup);
        assert!(sent.iter().all(|other: &Publish| other.header.packet_id != message.header.packet_id));
        sent.push(message);
    }
    // The third is received, the fourth done.
    let released = sent[2].header.packet_id.unwrap();
    client.pubrec(released).await;
    assert!(matches!(client.recv().await, Packet::PubRel(ack) if ack.packet_id == released));
    client.puback(&sent[3], ReasonCode::Success).await;
    client.synced().await;
    // Silence alone repeats nothing, and a new connection all of it, as often as there is one.
    for _ in 0..3 {
        client.vanish();
        client = broker.resume(persistent("s", V311)).await;
        for (n, message) in sent.iter().enumerate().filter(|(n, _)| *n != 3) {
            match client.recv().await {
                Packet::Publish(resent) if n != 2 => {
                    let (text, qos, packet_id, _) = said(message);
                    assert_eq!(said(&resent), (text, qos, packet_id, true));
                }
                Packet::PubRel(ack) if n == 2 => assert_eq!(ack.packet_id, released),
                other => panic!("{other:?} for {n}"),
            }
        }
        client.synced().await;
    }
    // What comes now comes behind it, under an id that is free.
    publish_each(&broker, 7, &[AtLeastOnce]).await;
    let new = client.take().await;
    assert_eq!((text(&new), new.header.dup), ("7", false));
    assert!(sent.iter().enumerate().all(|(n, old)| n == 3 || old.header.packet_id != new.header.packet_id));
    for n in [0, 5] {
        client.puback(&sent[n], ReasonCode::Success).await;
    }
    client.pubcomp(released).await;
    for n in [1, 4] {
        client.receive_twice_acknowledged(&sent[n]).await;
    }
    client.synced().await;
    client.vanish();
    let mut client = broker.resume(persistent("s", V311)).await;
    client.quiet().await;
}

// Conformance v311: 4.3.3-2, 3.1.2-4, 4.1.0-1
#[tokio::test]
async fn a_publish_of_qos_2_is_delivered_once_over_reconnects() {
    let broker = TestBroker::start().await;
    let mut live = broker.old_subscriber("live", "t", ExactlyOnce).await;
    let mut kept = broker.connect(persistent("kept", V311)).await;
    kept.subscribe("t", ExactlyOnce).await;
    kept.disconnect().await;
    let publisher = persistent("p", V311);
    let mut client = broker.connect(publisher.clone()).await;
    client.post(publish(ExactlyOnce, 1, "t", "once")).await;
    assert_eq!(client.pubreced(1).await, ReasonCode::Success);
    for _ in 0..2 {
        client.vanish();
        client = broker.resume(publisher.clone()).await;
        client
            .send_all([
                packet(again(publish(ExactlyOnce, 1, "t", "once"))),
                packet(again(publish(ExactlyOnce, 1, "t", "once"))),
            ])
            .await;
        assert_eq!(client.pubreced(1).await, ReasonCode::Success);
        // The second repeat may share that answer.
        client.send(Packet::PingReq).await;
        loop {
            match client.recv().await {
                Packet::PubRec(ack) => assert_eq!(ack.packet_id, id(1)),
                Packet::PingResp => break,
                other => panic!("{other:?}"),
            }
        }
    }
    client.pubrel(id(1)).await;
    client.pubcomped(1).await;
    client.vanish();
    // PUBCOMP was lost, as far as the client knows.
    client = broker.resume(publisher).await;
    client.pubrel(id(1)).await;
    client.pubcomped(1).await;
    // The id is free: this is another message, whatever its DUP says.
    client.post(again(publish(ExactlyOnce, 1, "t", "twice"))).await;
    assert_eq!(client.pubreced(1).await, ReasonCode::Success);
    assert_eq!(text(&live.take().await), "once");
    assert_eq!(text(&live.take().await), "twice");
    live.synced().await;
    let mut kept = broker.resume(persistent("kept", V311)).await;
    assert_eq!(kept.take_texts(2).await, ["once", "twice"]);
    kept.synced().await;
}

/// Broken off at each of its steps, a delivery of QoS 2 is a PUBLISH until PUBREC and never again after it.
// Conformance v311: 4.3.3-1, 4.4.0-1
#[tokio::test]
async fn a_delivery_of_qos_2_goes_on_where_it_was() {
    let broker = TestBroker::start().await;
    let mut client = subscribed(&broker).await;
    publish_each(&broker, 1, &[ExactlyOnce]).await;
    let first = client.message().await;
    let packet_id = first.header.packet_id.unwrap();
    client.vanish();
    client = broker.resume(persistent("s", V311)).await;
    assert_eq!(said(&client.message().await), ("1", ExactlyOnce, Some(packet_id), true));
    client.pubrec(packet_id).await;
    assert!(matches!(client.recv().await, Packet::PubRel(_)));
    for _ in 0..2 {
        client.vanish();
        client = broker.resume(persistent("s", V311)).await;
        assert!(matches!(client.recv().await, Packet::PubRel(ack) if ack.packet_id == packet_id));
        // It may say so again.
        client.pubrec(packet_id).await;
        assert!(matches!(client.recv().await, Packet::PubRel(ack) if ack.packet_id == packet_id));
        client.synced().await;
    }
    client.pubcomp(packet_id).await;
    client.synced().await;
    client.vanish();
    client = broker.resume(persistent("s", V311)).await;
    client.quiet().await;
}

// Conformance v311: 3.1.2-4
#[tokio::test]
async fn the_end_of_a_connection_is_not_the_end_of_its_session() {
    let broker = TestBroker::start().await;
    let mut client = subscribed(&broker).await;
    // In order, cut off, taken over, and for breaking the protocol.
    for end in 0..4 {
        match end {
            0 => client.disconnect().await,
            1 => client.vanish(),
            2 => {
                let new = broker.resume(persistent("s", V311)).await;
                client.ended().await;
                client = new;
                client.vanish();
            }
            _ => {
                client.send(Packet::Connect(persistent("s", V311).into())).await;
                client.ended().await;
            }
        }
        publish_each(&broker, end + 1, &[ExactlyOnce]).await;
        client = broker.resume(persistent("s", V311)).await;
        let message = tokio::time::timeout(DEADLINE, client.take()).await.expect("the message");
        assert_eq!(text(&message), (end + 1).to_string());
        // PUBCOMP has arrived before the next end.
        client.synced().await;
    }
}
