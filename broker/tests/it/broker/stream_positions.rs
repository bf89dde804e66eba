//! How far a session has come in a stream: over connections, restarts and crashes, for as long as it is subscribed.

use std::time::Duration;

use weir_codec::{Packet, ProtocolVersion, Publish, QoS, ReasonCode};
use weir_core::keyspace::tag;

use super::client::{AtLeastOnce, AtMostOnce, Client, V5, V311, number, persistent, receive_maximum, text};
use super::{TestBroker, faulty, memory, refused, stream};

const STORED: &str = "weir_store_written_keys_total{record=\"session_position\"}";

/// A broker with a stream of messages `0` to `9`.
async fn start() -> TestBroker {
    let broker = TestBroker::start().await;
    broker.declare(&[stream("log", "log/#")]).await;
    publish(&broker, 0, 10).await;
    broker
}

async fn publish(broker: &TestBroker, from: u32, to: u32) {
    let texts: Vec<String> = (from..to).map(|n| n.to_string()).collect();
    broker.publish("log/1", &texts.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

/// Both versions with the subscription that reads from the beginning.
const READERS: [(ProtocolVersion, &str); 2] = [(V5, "$stream/log"), (V311, "$s/earliest/log/#")];

async fn read(broker: &TestBroker, (version, to): (ProtocolVersion, &str), qos: QoS) -> Client {
    let mut reader = broker.connect(persistent("r", version)).await;
    let reason = match version {
        V5 => reader.read_from(to, qos, "earliest").await,
        _ => reader.subscribed(to, qos).await,
    };
    assert!(!reason.is_error());
    reader
}

/// What was acknowledged has been heard, whatever else is on its way.
async fn heard(client: &mut Client) {
    client.send(Packet::PingReq).await;
    while client.recv().await != Packet::PingResp {}
}

async fn texts(client: &mut Client, count: usize) -> Vec<String> {
    client.take_texts(count).await
}

#[tokio::test]
async fn a_session_goes_on_behind_the_last_that_it_acknowledged_without_a_gap() {
    for like in READERS {
        let broker = start().await;
        let mut reader = read(&broker, like, AtLeastOnce).await;
        assert_eq!(texts(&mut reader, 4).await, ["0", "1", "2", "3"]);
        let held: Vec<Publish> =
            [reader.message().await, reader.message().await, reader.message().await].into();
        // Whatever the reason says, and in any order.
        let refused = if like.0 == V5 { ReasonCode::UnspecifiedError } else { ReasonCode::Success };
        reader.puback(&held[1], refused).await;
        reader.disconnect().await;
        publish(&broker, 10, 12).await;
        let mut reader = broker.resume(persistent("r", like.0)).await;
        // Sent as new: they are no part of the session.
        let again = reader.take().await;
        assert_eq!((text(&again), again.header.dup), ("4", false));
        assert_eq!(texts(&mut reader, 7).await, ["5", "6", "7", "8", "9", "10", "11"]);
        reader.quiet().await;
        reader.disconnect().await;
        // Nor is anything repeated that a lost connection has acknowledged.
        publish(&broker, 12, 13).await;
        let mut reader = broker.resume(persistent("r", like.0)).await;
        assert_eq!(texts(&mut reader, 1).await, ["12"]);
        reader.synced().await;
        reader.vanish();
        let mut reader = broker.resume(persistent("r", like.0)).await;
        reader.quiet().await;
    }
}

#[tokio::test]
async fn at_qos_0_what_is_on_its_way_is_done_with() {
    for like in READERS {
        let broker = start().await;
        let mut reader = read(&broker, like, AtMostOnce).await;
        for n in 0..10 {
            assert_eq!(text(&reader.message().await), n.to_string());
        }
        reader.disconnect().await;
        publish(&broker, 10, 11).await;
        let mut reader = broker.resume(persistent("r", like.0)).await;
        assert_eq!(text(&reader.message().await), "10");
        reader.quiet().await;
    }
}

#[tokio::test]
async fn positions_outlive_the_broker() {
    for like in READERS {
        let store = memory();
        let broker = TestBroker::start_on(&store).await;
        broker.declare(&[stream("log", "log/#")]).await;
        publish(&broker, 0, 10).await;
        let mut reader = read(&broker, like, AtLeastOnce).await;
        texts(&mut reader, 4).await;
        heard(&mut reader).await;
        // In order: nothing acknowledged comes again.
        broker.stop().await;
        let broker = TestBroker::start_on(&store).await;
        let mut reader = broker.resume(persistent("r", like.0)).await;
        let mut held = Vec::new();
        for n in 4..7 {
            held.push(reader.message().await);
            assert_eq!(text(&held[n - 4]), n.to_string());
        }
        // By a crash: nothing that was stored, which the last of these brings about.
        for message in held.iter().rev() {
            reader.puback(message, ReasonCode::Success).await;
        }
        broker.metric_reaches(STORED, 1.0).await;
        drop(broker);
        let broker = TestBroker::start_on(&store).await;
        let mut reader = broker.resume(persistent("r", like.0)).await;
        assert_eq!(texts(&mut reader, 3).await, ["7", "8", "9"]);
        reader.quiet().await;
    }
}

#[tokio::test]
async fn a_subscription_to_the_latest_misses_nothing_from_its_suback_on() {
    let store = memory();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[stream("log", "log/#")]).await;
    publish(&broker, 0, 3).await;
    let mut reader = broker.connect(persistent("r", V5)).await;
    reader.subscribe("$stream/log", AtLeastOnce).await;
    drop(broker);
    let broker = TestBroker::start_on(&store).await;
    publish(&broker, 3, 5).await;
    let mut reader = broker.resume(persistent("r", V5)).await;
    assert_eq!(texts(&mut reader, 2).await, ["3", "4"]);
    reader.quiet().await;
}

#[tokio::test]
async fn the_same_words_keep_the_place_and_others_seek() {
    let store = memory();
    let mut broker = TestBroker::start_on(&store).await;
    broker.declare(&[stream("log", "log/#")]).await;
    publish(&broker, 0, 10).await;
    let mut reader = read(&broker, READERS[0], AtLeastOnce).await;
    texts(&mut reader, 5).await;
    reader.disconnect().await;
    let mut reader = broker.resume(receive_maximum(persistent("r", V5), 1)).await;
    let held = reader.message().await;
    assert_eq!(text(&held), "5");
    reader.read_from("$stream/log", AtLeastOnce, "earliest").await;
    reader.puback(&held, ReasonCode::Success).await;
    assert_eq!(texts(&mut reader, 2).await, ["6", "7"]);
    let held = reader.message().await;
    reader.read_from("$stream/log", AtLeastOnce, "0:2").await;
    reader.puback(&held, ReasonCode::Success).await;
    let next = reader.message().await;
    assert_eq!(text(&next), "2", "8 was read before the seek, and counts for nothing");
    // From the SUBACK on nothing leads back.
    drop(broker);
    broker = TestBroker::start_on(&store).await;
    let mut reader = broker.resume(persistent("r", V5)).await;
    assert_eq!(texts(&mut reader, 8).await.first().unwrap(), "2");
    reader.quiet().await;
    // Back in the first words, which are others again.
    reader.read_from("$stream/log", AtLeastOnce, "earliest").await;
    assert_eq!(texts(&mut reader, 10).await[0], "0");
}

#[tokio::test]
async fn another_qos_or_filter_goes_on_with_the_next_message() {
    let broker = start().await;
    let mut reader = broker.connect(receive_maximum(persistent("r", V5), 1)).await;
    reader.read_from("$stream/log", AtLeastOnce, "earliest").await;
    let held = reader.message().await;
    let filtered = [("stream-offset", "earliest"), ("stream-filter", "log/+")];
    reader.read_with("$stream/log", AtLeastOnce, &filtered).await;
    reader.puback(&held, ReasonCode::Success).await;
    let held = reader.message().await;
    assert_eq!(text(&held), "1");
    reader.read_with("$stream/log", AtMostOnce, &filtered).await;
    for offset in 2..10 {
        let message = reader.message().await;
        assert_eq!((number(&message, "offset"), message.header.qos), (offset, AtMostOnce));
    }
    reader.disconnect().await;
    // What was sent at QoS 1 is still to be acknowledged.
    let mut reader = broker.resume(persistent("r", V5)).await;
    assert_eq!(number(&reader.message().await, "offset"), 1);
}

#[tokio::test]
async fn a_position_is_gone_with_its_subscription_and_its_session() {
    let broker = start().await;
    let mut reader = read(&broker, READERS[0], AtLeastOnce).await;
    texts(&mut reader, 5).await;
    reader.unsubscribe("$stream/log").await;
    reader.disconnect().await;
    let mut reader = read(&broker, READERS[0], AtLeastOnce).await;
    assert_eq!(texts(&mut reader, 10).await[0], "0");
    reader.disconnect().await;
    let clean = weir_codec::Connect { clean_start: true, ..persistent("r", V5) };
    let mut reader = broker.connect(clean).await;
    reader.read_from("$stream/log", AtLeastOnce, "earliest").await;
    assert_eq!(texts(&mut reader, 10).await[0], "0");
}

#[tokio::test]
async fn positions_in_a_stream_that_is_gone_mean_nothing_in_the_next_of_that_name() {
    for offset in ["earliest", "latest"] {
        for is_connected in [false, true] {
            let broker = TestBroker::start().await;
            broker.declare(&[stream("log", "log/#")]).await;
            let mut reader = broker.connect(persistent("r", V5)).await;
            reader.read_from("$stream/log", AtLeastOnce, offset).await;
            publish(&broker, 0, 7).await;
            texts(&mut reader, 7).await;
            if !is_connected {
                reader.disconnect().await;
                reader = broker.clean("other").await;
            }
            broker.declare(&[]).await;
            broker.declare(&[stream("log", "log/#")]).await;
            publish(&broker, 10, 13).await;
            if !is_connected {
                reader = broker.resume(persistent("r", V5)).await;
            }
            // All of the new one came after the subscription.
            assert_eq!(texts(&mut reader, 3).await, ["10", "11", "12"], "{offset}");
            reader.quiet().await;
        }
    }
}

#[tokio::test]
async fn what_is_filtered_out_is_not_looked_at_twice() {
    let broker = start().await;
    let filtered = [("stream-offset", "earliest"), ("stream-filter", "log/2")];
    let mut reader = broker.connect(persistent("r", V5)).await;
    reader.read_with("$stream/log", AtLeastOnce, &filtered).await;
    broker.publish("log/2", &["x"]).await;
    assert_eq!(texts(&mut reader, 1).await, ["x"]);
    reader.disconnect().await;
    let mut reader = broker.resume(persistent("r", V5)).await;
    reader.read_from("$stream/log", AtLeastOnce, "earliest").await;
    reader.quiet().await;
    broker.publish("log/1", &["y"]).await;
    assert_eq!(texts(&mut reader, 1).await, ["y"]);
}

#[tokio::test]
async fn a_session_that_waits_for_a_stream_gets_all_of_it() {
    let broker = TestBroker::start().await;
    let mut reader = broker.connect(persistent("r", V5)).await;
    reader.subscribe("$stream/log", AtLeastOnce).await;
    reader.disconnect().await;
    broker.declare(&[stream("log", "log/#")]).await;
    publish(&broker, 0, 3).await;
    let mut reader = broker.resume(persistent("r", V5)).await;
    assert_eq!(texts(&mut reader, 3).await, ["0", "1", "2"]);
}

#[tokio::test]
async fn a_session_that_was_away_while_its_stream_was_made_anew_gets_all_of_it() {
    for version in [V5, V311] {
        let store = memory();
        let broker = TestBroker::start_on(&store).await;
        broker.declare(&[stream("log", "log/#")]).await;
        let mut reader = broker.connect(persistent("r", version)).await;
        assert!(!reader.subscribed("$stream/log", AtLeastOnce).await.is_error());
        reader.disconnect().await;
        broker.stop().await;
        let broker = TestBroker::start_on(&store).await;
        broker.declare(&[]).await;
        broker.declare(&[stream("log", "log/#")]).await;
        publish(&broker, 0, 4).await;
        let mut reader = broker.resume(persistent("r", version)).await;
        assert_eq!(texts(&mut reader, 4).await, ["0", "1", "2", "3"]);
        reader.quiet().await;
    }
}

#[tokio::test]
async fn a_disconnect_that_the_store_refuses_at_first_loses_no_position() {
    for like in READERS {
        let (store, faults) = faulty();
        let broker = TestBroker::start_on(&store).await;
        broker.declare(&[stream("log", "log/#")]).await;
        publish(&broker, 0, 6).await;
        let mut reader = read(&broker, like, AtLeastOnce).await;
        let mut messages = Vec::new();
        for _ in 0..4 {
            messages.push(reader.message().await);
        }
        faults.fail_commits_matching(&[tag::SESSION], refused());
        for message in &messages {
            reader.puback(message, ReasonCode::Success).await;
        }
        reader.send(Packet::Disconnect(Box::default())).await;
        let refused = async {
            // What is tried but once has been.
            while faults.injected() < 3 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), refused).await.expect("tries");
        let stored = broker.metric(STORED).await;
        faults.heal();
        drop(reader);
        // A connection that comes before that would not wait for it.
        broker.metric_reaches(STORED, stored + 1.0).await;
        let mut reader = broker.resume(persistent("r", like.0)).await;
        assert_eq!(texts(&mut reader, 2).await, ["4", "5"]);
        reader.quiet().await;
        reader.disconnect().await;
    }
}
