//! Streams read at QoS 0, where many messages go to the client at once: each arrives, in order and as it was published.

use std::time::Duration;

use weir_codec::{Connect, Publish};

use super::client::{AtLeastOnce, AtMostOnce, V311, clean, filter, number, property, publish};
use super::{TestBroker, stream};

/// Payloads small and large, some of them with properties.
fn message(n: u16) -> Publish {
    let size = match n % 50 {
        17 => 5_000,
        18 => 100_000,
        other => usize::from(other) * 10,
    };
    let payload = format!("{n} {}", "x".repeat(size));
    let mut publish = publish(AtLeastOnce, n + 1, &format!("log/{}", n % 3), &payload);
    if n.is_multiple_of(7) {
        publish.properties.user_properties = vec![("n".into(), n.to_string().into())];
        publish.properties.content_type = Some("text/plain".into());
    }
    publish
}

const MESSAGES: u16 = 300;

async fn filled() -> TestBroker {
    let broker = TestBroker::start().await;
    broker.declare(&[stream("log", "log/#")]).await;
    let mut publisher = broker.clean("p").await;
    for n in 0..MESSAGES {
        publisher.post(message(n)).await;
        assert!(!publisher.pubacked(n + 1).await.is_error());
    }
    broker
}

#[tokio::test]
async fn every_message_arrives_as_it_was_published() {
    let broker = filled().await;
    let mut reader = broker.clean("r").await;
    let properties = vec![("stream-offset".into(), "earliest".into())];
    reader.try_subscribe(vec![filter("$stream/log", AtMostOnce)], Some(9), properties).await;
    for n in 0..MESSAGES {
        let (came, sent) = (reader.message().await, message(n));
        assert_eq!((came.topic, came.payload), (sent.topic.clone(), sent.payload.clone()), "{n}");
        assert_eq!(came.header.subscription_identifiers[..], [9]);
        assert_eq!(came.properties.content_type, sent.properties.content_type);
        let names: Vec<_> = came.properties.user_properties.iter().map(|(name, _)| &**name).collect();
        let own = if n.is_multiple_of(7) { &["n"][..] } else { &[] };
        assert_eq!(names, [own, &["stream", "shard", "offset", "ts"]].concat());
    }
    // What is new comes the same way.
    broker.publish("log/1", &["live"]).await;
    assert_eq!(reader.message().await.payload, "live");
    let mut old = broker.connect(clean("old", V311)).await;
    old.subscribe("$s/earliest/log/#", AtMostOnce).await;
    for n in 0..MESSAGES {
        assert_eq!(old.message().await.payload, message(n).payload, "{n}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn what_is_larger_than_the_client_takes_is_left_out_and_counted() {
    let broker = filled().await;
    let dropped = "weir_messages_dropped_total{reason=\"too_large\"}";
    let before = broker.metric(dropped).await;
    let small =
        Connect { maximum_packet_size: std::num::NonZeroU32::new(300), ..clean("r", super::client::V5) };
    let mut reader = broker.connect(small).await;
    reader.read_from("$stream/log", AtMostOnce, "earliest").await;
    broker.publish("log/1", &["end"]).await;
    let (mut came, mut next) = (0, 0);
    while next <= MESSAGES {
        let message = reader.message().await;
        let offset = u16::try_from(number(&message, "offset")).unwrap();
        // With topic and properties a packet of a short payload fits, and that of a long one does not.
        assert!(message.payload.len() < 250);
        assert!((next..offset).all(|n| self::message(n).payload.len() > 150), "{next} to {offset}");
        (came, next) = (came + 1, offset + 1);
    }
    broker.metric_reaches(dropped, before + f64::from(MESSAGES + 1 - came)).await;
    broker.stop().await;
}

#[tokio::test]
async fn a_changed_identifier_is_in_what_comes_from_then_on() {
    let broker = filled().await;
    let mut reader = broker.clean("r").await;
    for (identifier, from) in [(9, 0), (10, 1)] {
        let properties = vec![("stream-offset".into(), "latest".into())];
        reader.try_subscribe(vec![filter("$stream/log", AtMostOnce)], Some(identifier), properties).await;
        broker.publish("log/1", &["live"]).await;
        let came = tokio::time::timeout(Duration::from_secs(20), reader.message()).await.unwrap();
        assert_eq!(came.header.subscription_identifiers[..], [identifier]);
        assert_eq!(property(&came, "offset"), Some(&*(MESSAGES + from).to_string()));
    }
    broker.stop().await;
}
