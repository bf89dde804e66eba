//! Stream subscriptions: where they begin, that nothing is missed, and that readers do not feel each other.

use std::time::Duration;

use weir_codec::{Publish, ReasonCode};

use super::client::{
    AtLeastOnce, AtMostOnce, Client, V5, V311, clean, filter, number, property, publish, receive_maximum,
    text,
};
use super::{TestBroker, stream};

async fn start() -> TestBroker {
    let broker = TestBroker::start().await;
    broker.declare(&[stream("log", "log/#")]).await;
    broker
}

async fn reader(broker: &TestBroker, id: &str, offset: &str) -> Client {
    let mut reader = broker.clean(id).await;
    assert_eq!(
        reader.read_from("$stream/log", AtLeastOnce, offset).await,
        ReasonCode::GrantedQoS1,
        "{offset}"
    );
    reader
}

#[tokio::test]
async fn every_way_to_say_where_to_begin() {
    let broker = start().await;
    broker.publish("log/1", &["0", "1"]).await;
    let mut probe = reader(&broker, "probe", "earliest").await;
    let first: Publish = probe.take().await;
    let expected = [("stream", "log"), ("shard", "0"), ("offset", "0")];
    assert!(expected.iter().all(|(name, value)| property(&first, name) == Some(value)), "{first:?}");
    probe.take().await;
    // Microseconds that no earlier message shares.
    tokio::time::sleep(Duration::from_millis(5)).await;
    broker.publish("log/1", &["2", "3"]).await;
    let at = number(&probe.take().await, "ts");
    let rfc3339 = jiff::Timestamp::from_microsecond(i64::try_from(at).unwrap()).unwrap().to_string();
    for (offset, texts) in [
        ("earliest", &["0", "1", "2", "3", "4"][..]),
        ("offset:1", &["1", "2", "3", "4"]),
        ("offset:4", &["4"]),
        ("offset:999", &["4"]),
        (&at.to_string(), &["2", "3", "4"]),
        (&rfc3339, &["2", "3", "4"]),
        ("latest", &["4"]),
    ] {
        let mut reader = reader(&broker, "reader", offset).await;
        let (last, backlog) = texts.split_last().unwrap();
        assert_eq!(reader.take_texts(backlog.len()).await, backlog, "{offset}");
        reader.quiet().await;
        assert_eq!(*last, "4");
    }
    let mut latest = reader(&broker, "latest", "latest").await;
    let mut beyond = reader(&broker, "beyond", "offset:999").await;
    broker.publish("log/1", &["4"]).await;
    assert_eq!(text(&latest.take().await), "4");
    assert_eq!(text(&beyond.take().await), "4");
    for (to, count) in [("$s/earliest/log/#", 5), ("$s/offset:3/log/#", 2)] {
        let mut old = broker.connect(clean("old", V311)).await;
        old.subscribe(to, AtLeastOnce).await;
        assert_eq!(old.take_texts(count).await.last().unwrap(), "4", "{to}");
        old.quiet().await;
    }
}

#[tokio::test]
async fn what_is_not_understood_is_refused() {
    let broker = start().await;
    let mut client = broker.clean("c").await;
    for value in ["yesterday", "", "offset:", "offset:-1", "0:1,0:2"] {
        let reason = client.read_from("$stream/log", AtLeastOnce, value).await;
        assert_eq!(reason, ReasonCode::ImplementationSpecificError, "{value}");
    }
    for name in ["stream-until", "stream-filter", "stream-key", "stream-rate", "stream-typo"] {
        let properties = vec![(name.to_owned().into(), "".into())];
        let suback =
            client.try_subscribe(vec![filter("$stream/log", AtLeastOnce)], None, properties.clone()).await;
        assert_eq!(suback.reasons, [ReasonCode::ImplementationSpecificError], "{name}");
        assert!(suback.properties.reason_string.unwrap().contains(name));
        // It says nothing about what is no stream.
        let suback = client.try_subscribe(vec![filter("t", AtLeastOnce)], None, properties).await;
        assert_eq!(suback.reasons, [ReasonCode::GrantedQoS1]);
    }
    assert!(client.subscribed("$s/sometime/log/#", AtLeastOnce).await.is_error());
    broker.publish("log/1", &["x"]).await;
    client.synced().await;
}

#[tokio::test]
async fn replay_runs_into_live_without_gap_or_repeat() {
    let broker = start().await;
    broker.publish("log/1", &["-"; 50]).await;
    let publisher = async {
        let mut client = broker.clean("p").await;
        for _ in 0..500 {
            assert_eq!(client.publish("log/1", "x").await, ReasonCode::Success);
        }
    };
    let readers = async |id: &str, qos| {
        let mut reader = broker.clean(id).await;
        reader.read_from("$stream/log", qos, "earliest").await;
        for offset in 0..550 {
            let message = if qos == AtMostOnce { reader.message().await } else { reader.take().await };
            assert_eq!(number(&message, "offset"), offset);
        }
        reader.quiet().await;
    };
    tokio::join!(publisher, readers("a", AtMostOnce), readers("b", AtLeastOnce));
}

#[tokio::test]
async fn receive_maximum_paces_a_reader() {
    let broker = start().await;
    let payloads: Vec<String> = (0..1500).map(|n| n.to_string()).collect();
    let mut publisher = broker.connect(clean("p", V311)).await;
    publisher
        .send_all(
            (1..).zip(&payloads).map(|(n, text)| {
                weir_codec::Packet::Publish(Box::new(publish(AtLeastOnce, n, "log/1", text)))
            }),
        )
        .await;
    for n in 1..=1500 {
        publisher.pubacked(n).await;
    }
    for maximum in [1, 7] {
        let mut reader = broker.connect(receive_maximum(clean("r", V5), maximum)).await;
        reader.read_from("$stream/log", AtLeastOnce, "earliest").await;
        let mut held = Vec::new();
        for _ in 0..maximum {
            held.push(reader.message().await);
        }
        reader.synced().await;
        for message in &held {
            // Any answer moves a stream on.
            reader.puback(message, ReasonCode::UnspecifiedError).await;
        }
        assert_eq!(reader.take_texts(1500 - usize::from(maximum)).await, payloads[usize::from(maximum)..]);
    }
    // More than a connection may have in flight, and the reader says nothing for a while.
    let mut reader = broker.connect(clean("r", V5)).await;
    reader.read_from("$stream/log", AtLeastOnce, "earliest").await;
    let mut held = Vec::new();
    for _ in 0..1024 {
        held.push(reader.message().await);
    }
    reader.synced().await;
    for message in &held {
        reader.puback(message, ReasonCode::Success).await;
    }
    assert_eq!(reader.take_texts(1500 - 1024).await, payloads[1024..]);
}

#[tokio::test]
async fn a_reader_that_does_not_read_costs_only_itself() {
    let broker = start().await;
    let payload = "x".repeat(20_000);
    for qos in [AtMostOnce, AtLeastOnce] {
        let mut stuck = broker.clean("stuck").await;
        stuck.read_from("$stream/log", qos, "earliest").await;
        let mut reader = reader(&broker, "reader", "latest").await;
        let mut publisher = broker.clean("p").await;
        // More than the sockets of the stuck one hold.
        for _ in 0..1000 {
            assert_eq!(publisher.publish("log/1", &payload).await, ReasonCode::Success);
            reader.take().await;
        }
        drop(stuck);
    }
}

#[tokio::test]
async fn what_is_not_acknowledged_stops_no_stream_at_qos_0() {
    // As many as may be in flight, and some that wait behind them.
    const BEFORE: usize = 1_200;
    let broker = TestBroker::start().await;
    broker.declare(&[stream("slow", "slow/#"), stream("quick", "quick/#")]).await;
    broker.publish("slow/1", &["x"; BEFORE]).await;
    for (version, in_flight) in [(V5, 1), (V311, 1_024)] {
        let connect = clean("r", version);
        let connect = if version == V5 { receive_maximum(connect, 1) } else { connect };
        let mut reader = broker.connect(connect).await;
        reader.subscribed("$s/earliest/slow/#", AtLeastOnce).await;
        for _ in 0..in_flight {
            assert_eq!(text(&reader.message().await), "x");
        }
        reader.subscribed("$stream/quick", AtMostOnce).await;
        for n in 0..3 {
            broker.publish("quick/1", &[&n.to_string()]).await;
            assert_eq!(text(&reader.message().await), n.to_string());
        }
        reader.quiet().await;
    }
}

#[tokio::test]
async fn a_reader_waits_for_its_stream_and_seeks() {
    let broker = TestBroker::start().await;
    let mut reader = broker.clean("r").await;
    reader.read_from("$stream/log", AtLeastOnce, "earliest").await;
    broker.declare(&[stream("log", "log/#")]).await;
    broker.publish("log/1", &["0", "1", "2"]).await;
    assert_eq!(reader.take_texts(3).await, ["0", "1", "2"]);
    // The same again changes nothing; another text seeks.
    reader.read_from("$stream/log", AtLeastOnce, "earliest").await;
    reader.quiet().await;
    reader.read_from("$stream/log", AtLeastOnce, "offset:1").await;
    assert_eq!(reader.take_texts(2).await, ["1", "2"]);
    reader.quiet().await;
    reader.unsubscribe("$stream/log").await;
    broker.publish("log/1", &["3"]).await;
    reader.quiet().await;
}

#[tokio::test]
async fn a_seek_forgets_what_was_read_before_it() {
    let broker = start().await;
    broker.publish("log/1", &["0", "1", "2"]).await;
    let mut reader = broker.connect(receive_maximum(clean("r", V5), 1)).await;
    reader.read_from("$stream/log", AtLeastOnce, "earliest").await;
    let held = reader.message().await;
    reader.read_from("$stream/log", AtLeastOnce, "offset:1").await;
    reader.puback(&held, ReasonCode::Success).await;
    assert_eq!(reader.take_texts(2).await, ["1", "2"]);
    reader.quiet().await;
}
