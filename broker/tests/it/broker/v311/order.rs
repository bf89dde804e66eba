//! Order of acknowledgements and of messages.

use std::time::Duration;

use weir_codec::{Packet, ReasonCode};
use weir_core::keyspace::tag;
use weir_storage::CommitFault;

use super::super::client::{AtLeastOnce, AtMostOnce, ExactlyOnce, V311, clean, persistent, publish, text};
use super::super::{TestBroker, faulty, queue};
use super::packet;

/// The first waits for the store, the others for nobody but the first.
// Conformance v311: 4.6.0-2, 4.6.0-3
#[tokio::test]
async fn answers_come_in_the_order_of_the_publishes() {
    let (store, faults) = faulty();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[queue("q", "slow")]).await;
    for qos in [AtLeastOnce, ExactlyOnce] {
        let mut client = broker.old("c").await;
        faults.fail_commits_matching(&[tag::SEGMENT], CommitFault::Stalled(Duration::from_millis(300)));
        let topics = ["slow", "nobody", "slow", "nobody", "nobody"];
        client.send_all((1..).zip(topics).map(|(n, topic)| packet(publish(qos, n, topic, "x")))).await;
        for n in 1..=5 {
            match client.recv().await {
                Packet::PubAck(ack) if qos == AtLeastOnce => assert_eq!(ack.packet_id.get(), n),
                Packet::PubRec(ack) if qos == ExactlyOnce => assert_eq!(ack.packet_id.get(), n),
                other => panic!("{other:?}"),
            }
        }
        assert!(faults.injected() > 0);
        faults.heal();
    }
}

// Conformance v311: 4.6.0-4
#[tokio::test]
async fn pubrel_come_in_the_order_of_pubrec() {
    let broker = TestBroker::start().await;
    for connect in [clean("s", V311), persistent("s", V311)] {
        let mut client = broker.connect(connect).await;
        client.subscribe("t", ExactlyOnce).await;
        let mut publisher = broker.old("p").await;
        for n in 1..=5 {
            publisher.publish_twice_acknowledged(n, "t", "x").await;
        }
        let mut ids = Vec::new();
        for _ in 0..5 {
            ids.push(client.message().await.header.packet_id.unwrap());
        }
        let order = [ids[3], ids[0], ids[4], ids[2], ids[1]];
        for packet_id in order {
            client.pubrec(packet_id).await;
        }
        for packet_id in order {
            match client.recv().await {
                Packet::PubRel(ack) => assert_eq!(ack.packet_id, packet_id),
                other => panic!("{other:?}"),
            }
            client.pubcomp(packet_id).await;
        }
        client.synced().await;
    }
}

/// Of each QoS by itself, live, to one who was away, and to one who takes one at a time.
// Conformance v311: 4.6.0-5, 4.6.0-6
#[tokio::test]
async fn messages_of_a_publisher_keep_their_order() {
    const COUNT: u16 = 300;
    let broker = TestBroker::start().await;
    let qualities = [AtMostOnce, AtLeastOnce, ExactlyOnce];
    let mut live = broker.old_subscriber("live", "t", ExactlyOnce).await;
    let mut away = broker.connect(persistent("away", V311)).await;
    away.subscribe("t", ExactlyOnce).await;
    away.disconnect().await;
    let mut publisher = broker.old("p").await;
    let all = (1..=COUNT).map(|n| packet(publish(qualities[usize::from(n % 3)], n, "t", &n.to_string())));
    publisher.send_all(all).await;
    let of_qos =
        |rest: u16| -> Vec<String> { (1..=COUNT).filter(|n| n % 3 == rest).map(|n| n.to_string()).collect() };
    let mut came = [Vec::new(), Vec::new(), Vec::new()];
    while came.iter().map(Vec::len).sum::<usize>() < usize::from(COUNT) {
        let message = live.message().await;
        came[usize::from(message.header.qos.as_u8())].push(text(&message).to_owned());
        match message.header.qos {
            AtMostOnce => {}
            AtLeastOnce => live.puback(&message, ReasonCode::Success).await,
            ExactlyOnce => live.receive_twice_acknowledged(&message).await,
        }
    }
    assert_eq!(came, [of_qos(0), of_qos(1), of_qos(2)]);
    let mut away = broker.resume(persistent("away", V311)).await;
    let mut came = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..of_qos(1).len() + of_qos(2).len() {
        let message = away.take().await;
        came[usize::from(message.header.qos.as_u8())].push(text(&message).to_owned());
    }
    assert_eq!(came, [vec![], of_qos(1), of_qos(2)]);
}
