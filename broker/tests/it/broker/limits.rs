//! What clients can make the broker hold, and what they are told beyond it.

use weir_codec::{Connect, Packet, ReasonCode};
use weir_core::keyspace::tag;
use weir_storage::{CommitFault, FaultHandle};

use super::client::{AtLeastOnce, Client, V5, V311, clean, persistent, publish, retained};
use super::{DEADLINE, TestBroker, config, faulty, memory, queue};

const TOO_MANY: &str = "weir_connections_closed_total{reason=\"too_many_connections\"}";
const TOO_LARGE: &str = "weir_protocol_errors_total{reason=\"packet_too_large\"}";

async fn start(limit: impl FnOnce(&mut weir::config::Limits)) -> TestBroker {
    let mut config = config();
    limit(&mut config.limits);
    TestBroker::start_with(config, &memory()).await
}

#[tokio::test]
async fn connections_are_bounded_whether_they_connect_or_not() {
    let broker = start(|limits| limits.max_connections = 2).await;
    let connected = broker.clean("connected").await;
    let silent = broker.open(V5).await;
    broker.metric_reaches("weir_connections_opened_total", 2.0).await;
    for (version, code) in [(V5, ReasonCode::QuotaExceeded), (V311, ReasonCode::ServerUnavailable)] {
        let (mut client, connack) = broker.connack(clean("another", version)).await;
        assert_eq!(connack.code, code);
        let text = connack.reason_string.map(|text| text.contains("limits.maxConnections"));
        assert_eq!(text, (version == V5).then_some(true));
        client.ended().await;
    }
    assert_eq!(broker.metric(TOO_MANY).await, 2.0);
    // There is room for one who has not said who it is, and not for two.
    let newcomer = broker.open(V5).await;
    broker.metric_reaches("weir_connections_opened_total", 5.0).await;
    broker.open(V5).await.ended().await;
    assert_eq!(broker.metric(TOO_MANY).await, 3.0);
    newcomer.vanish();

    connected.disconnect().await;
    let mut connected = next_served(&broker, "connected").await;
    silent.vanish();
    next_served(&broker, "another").await.synced().await;
    connected.synced().await;
}

#[tokio::test]
async fn a_client_takes_over_its_own_session_when_there_is_room_for_no_other() {
    let broker = start(|limits| limits.max_connections = 2).await;
    let mut other = broker.clean("other").await;
    let mut old = broker.connect(persistent("c", V5)).await;
    for _ in 0..3 {
        let mut new = broker.resume(persistent("c", V5)).await;
        old.told(ReasonCode::SessionTakenOver).await;
        new.synced().await;
        old = new;
    }
    other.synced().await;
    assert_eq!(broker.metric(TOO_MANY).await, 0.0);
    assert_eq!(broker.connack(clean("third", V5)).await.1.code, ReasonCode::QuotaExceeded);
}

/// Comes again until it is served: the broker sees the end of another a little later than that one.
async fn next_served(broker: &TestBroker, id: &str) -> Client {
    let tried = async {
        loop {
            let (client, connack) = broker.connack(clean(id, V5)).await;
            if connack.code == ReasonCode::Success {
                return client;
            }
        }
    };
    tokio::time::timeout(DEADLINE, tried).await.expect("a free slot")
}

/// As large as `bytes` and little more.
fn connect_of(bytes: usize) -> Connect {
    let mut connect = clean("large", V5);
    for _ in 0..bytes.div_ceil(1000) {
        connect.user_properties.push(("".into(), "x".repeat(995).into()));
    }
    connect
}

#[tokio::test]
async fn a_connect_is_smaller_than_what_may_follow() {
    let broker = TestBroker::start().await;
    let mut client = broker.open(V5).await;
    // Its length is enough.
    client.send_beginning(Packet::Connect(Box::new(connect_of(256 * 1024))), 5).await;
    client.ended().await;
    assert_eq!(broker.metric(TOO_LARGE).await, 1.0);

    let mut client = broker.connect(connect_of(255 * 1000)).await;
    let payload = "x".repeat(512 * 1024);
    assert!(!client.publish("t", &payload).await.is_error());
    assert_eq!(broker.metric(TOO_LARGE).await, 1.0);
}

#[tokio::test]
async fn persistent_sessions_are_bounded() {
    let broker = start(|limits| limits.max_sessions = 2).await;
    for id in ["a", "b"] {
        broker.connect(persistent(id, V5)).await.disconnect().await;
    }
    for (version, code) in [(V5, ReasonCode::QuotaExceeded), (V311, ReasonCode::ServerUnavailable)] {
        let (mut client, connack) = broker.connack(persistent("c", version)).await;
        assert_eq!(connack.code, code);
        let text = connack.reason_string.map(|text| text.contains("limits.maxSessions"));
        assert_eq!(text, (version == V5).then_some(true));
        client.ended().await;
    }
    broker.resume(persistent("a", V5)).await.disconnect().await;
    let mut anew = persistent("a", V5);
    anew.clean_start = true;
    broker.connect(anew).await.disconnect().await;
    broker.clean("c").await.subscribe("t", AtLeastOnce).await;

    let b = broker.resume(persistent("b", V5)).await;
    b.disconnect_with(ReasonCode::Success, Some(0)).await;
    broker.connect(persistent("c", V5)).await.disconnect().await;
}

#[tokio::test]
async fn user_properties_are_bounded() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.subscriber("watcher", "t", AtLeastOnce).await;
    let mut client = broker.clean("c").await;
    let mut packet = publish(AtLeastOnce, 1, "t", "x");
    packet.properties.user_properties = vec![("".into(), "".into()); 1000];
    client.post(packet.clone()).await;
    client.pubacked(1).await;
    assert_eq!(watcher.take().await.properties.user_properties.len(), 1000);
    packet.properties.user_properties.push(("".into(), "".into()));
    client.post(packet).await;
    client.told(ReasonCode::QuotaExceeded).await;
    let mut connect = clean("d", V5);
    connect.user_properties = vec![("".into(), "".into()); 1001];
    let (mut client, connack) = broker.connack(connect).await;
    assert_eq!(connack.code, ReasonCode::QuotaExceeded);
    client.ended().await;
    assert_eq!(broker.metric("weir_protocol_errors_total{reason=\"too_many_user_properties\"}").await, 2.0);
}

#[tokio::test]
async fn retained_messages_are_bounded() {
    let broker = start(|limits| {
        limits.retained_messages = 2;
        limits.retained_bytes = weir::config::ByteCount::kib(64);
    })
    .await;
    let mut client = broker.clean("c").await;
    for (topic, payload, reason) in [
        ("a", "1".to_owned(), ReasonCode::NoMatchingSubscribers),
        ("b", "1".to_owned(), ReasonCode::NoMatchingSubscribers),
        ("c", "1".to_owned(), ReasonCode::QuotaExceeded),
        ("a", "x".repeat(65_000), ReasonCode::NoMatchingSubscribers),
        ("b", "x".repeat(65_000), ReasonCode::QuotaExceeded),
        ("a", String::new(), ReasonCode::NoMatchingSubscribers),
        ("c", "1".to_owned(), ReasonCode::NoMatchingSubscribers),
    ] {
        client.post(retained(AtLeastOnce, 1, topic, &payload)).await;
        let answer = client.pubacked(1).await;
        assert_eq!(answer.is_error(), reason.is_error(), "{topic}: {answer}");
        if reason.is_error() {
            assert_eq!(answer, reason, "{topic}");
        }
    }
    assert_eq!(broker.metric("weir_retained_refused_total").await, 2.0);
}

const UNDER_WAY: &str = "weir_publish_under_way_bytes";

/// A broker in which what is published to `t` becomes durable once the faults are healed.
async fn start_slow(limit: impl FnOnce(&mut weir::config::Limits)) -> (TestBroker, FaultHandle) {
    let (store, faults) = faulty();
    let mut config = config();
    limit(&mut config.limits);
    let broker = TestBroker::start_with(config, &store).await;
    broker.declare(&[queue("work", "t")]).await;
    broker.publish("t", &["the shard is taken over"]).await;
    faults.fail_commits_matching(&[tag::SEGMENT], CommitFault::Stalled(DEADLINE));
    (broker, faults)
}

fn heal(faults: &FaultHandle) {
    faults.heal();
    faults.release_stalled();
}

#[tokio::test]
async fn publishes_under_way_of_a_client_are_bounded_and_hold_up_nobody_else() {
    let limit = weir::config::ByteCount::kib(64);
    let (broker, faults) = start_slow(|limits| limits.publish_bytes_under_way_per_client = limit).await;
    let mut busy = broker.clean("busy").await;
    let mut other = broker.clean("other").await;
    let payload = "x".repeat(40_000);
    for n in 1..=3 {
        busy.post(publish(AtLeastOnce, n, "t", &payload)).await;
    }
    broker.metric_reaches("weir_publish_waits_total{of=\"client\"}", 1.0).await;
    other.post(publish(AtLeastOnce, 1, "t", &payload)).await;
    broker.metric_reaches(UNDER_WAY, 120_000.0).await;
    assert!(broker.metric(UNDER_WAY).await < 130_000.0, "the third of the busy client waits");
    heal(&faults);
    for n in 1..=3 {
        assert!(!busy.pubacked(n).await.is_error());
    }
    assert!(!other.pubacked(1).await.is_error());
    assert_eq!(broker.metric(UNDER_WAY).await, 0.0);
    assert_eq!(broker.metric("weir_publish_waits_total{of=\"all\"}").await, 0.0);
}

#[tokio::test]
async fn publishes_under_way_are_bounded_over_all_clients() {
    const WAITS: &str = "weir_publish_waits_total{of=\"all\"}";
    let limit = weir::config::ByteCount::kib(128);
    let (broker, faults) = start_slow(|limits| limits.publish_bytes_under_way = limit).await;
    let mut first = broker.clean("first").await;
    let mut second = broker.clean("second").await;
    let mut other = broker.clean("other").await;
    let payload = "x".repeat(40_000);
    // More than is left by then is not for one client.
    for n in 1..=3 {
        first.post(publish(AtLeastOnce, n, "t", &payload)).await;
    }
    broker.metric_reaches(WAITS, 1.0).await;
    assert!(broker.metric(UNDER_WAY).await < 90_000.0);
    for n in 1..=2 {
        second.post(publish(AtLeastOnce, n, "t", &payload)).await;
    }
    broker.metric_reaches(WAITS, 2.0).await;
    // Who has nothing under way finds what is left, until there is nothing.
    let mut third = broker.clean("third").await;
    third.post(publish(AtLeastOnce, 1, "t", &payload)).await;
    broker.metric_reaches(UNDER_WAY, 160_000.0).await;
    other.post(publish(AtLeastOnce, 1, "elsewhere", "waits")).await;
    broker.metric_reaches(WAITS, 3.0).await;
    // Only what is published waits.
    let mut reader = broker.clean("reader").await;
    reader.synced().await;
    reader.subscribe("news", AtLeastOnce).await;
    assert!(broker.metric(UNDER_WAY).await > 160_000.0, "all of that while too much was under way");
    assert!(broker.metric(UNDER_WAY).await < 170_000.0);
    heal(&faults);
    for n in 1..=3 {
        assert!(!first.pubacked(n).await.is_error());
    }
    for n in 1..=2 {
        assert!(!second.pubacked(n).await.is_error());
    }
    for client in [&mut third, &mut other] {
        assert!(!client.pubacked(1).await.is_error());
    }
    assert_eq!(broker.metric(UNDER_WAY).await, 0.0);
}
