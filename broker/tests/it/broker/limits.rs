//! What clients can make the broker hold, and what they are told beyond it.

use weir_codec::{Connect, Packet, ReasonCode};

use super::client::{AtLeastOnce, Client, V5, V311, clean, persistent};
use super::{TestBroker, config, memory};

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
    broker.open(V5).await.ended().await;
    assert_eq!(broker.metric(TOO_MANY).await, 1.0);

    connected.disconnect().await;
    let mut connected = next_served(&broker, "connected").await;
    broker.open(V5).await.ended().await;
    silent.vanish();
    next_served(&broker, "another").await.synced().await;
    connected.synced().await;
}

/// Comes again until it is served: the broker sees the end of another a little later than that one.
async fn next_served(broker: &TestBroker, id: &str) -> Client {
    let tried = async {
        loop {
            if let Some(client) = broker.try_clean(id).await {
                return client;
            }
        }
    };
    tokio::time::timeout(super::DEADLINE, tried).await.expect("a free slot")
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
