//! Clients that do not read: what the broker holds for them is bounded, and nobody else notices.

use weir::config::ByteCount;
use weir_codec::ReasonCode;

use super::client::{AtLeastOnce, AtMostOnce, V5, persistent, publish, text};
use super::{TestBroker, config, memory, queue};

const DROPPED: &str = "weir_messages_dropped_total{reason=\"outbox_full\"}";

#[tokio::test]
async fn messages_for_a_client_that_does_not_read_are_dropped_and_counted() {
    let mut config = config();
    config.limits.outbox_bytes_per_client = ByteCount::mib(1);
    let broker = TestBroker::start_with(config, &memory()).await;
    let stuck = broker.subscriber("stuck", "t", AtMostOnce).await;
    let mut reader = broker.subscriber("reader", "t", AtLeastOnce).await;
    let mut publisher = broker.clean("p").await;
    let payload = "x".repeat(50_000);
    // What the sockets and the mailbox of the stuck one hold is far less.
    let mut sent = 0;
    while broker.metric(DROPPED).await == 0.0 {
        assert!(sent < 2000, "nothing was dropped");
        for _ in 0..20 {
            assert_eq!(publisher.publish("t", &payload).await, ReasonCode::Success);
            assert_eq!(text(&reader.take().await).len(), payload.len());
        }
        sent += 20;
    }
    let dropped = broker.metric(DROPPED).await;
    for _ in 0..20 {
        publisher.publish("t", &payload).await;
        reader.take().await;
    }
    assert_eq!(broker.metric(DROPPED).await, dropped + 20.0);
    // It reads again: what was kept comes, and then what is new.
    let mut stuck = stuck;
    let mut kept = 0.0;
    while kept + dropped + 20.0 < f64::from(sent + 20) {
        assert_eq!(text(&stuck.message().await).len(), payload.len());
        kept += 1.0;
    }
    publisher.publish("t", "new").await;
    assert_eq!(text(&stuck.message().await), "new");
}

#[tokio::test]
async fn a_consumer_that_does_not_read_leaves_the_rest_to_others() {
    let broker = TestBroker::start().await;
    let mut work = queue("work", "t");
    work.dispatch.max_inflight_per_consumer = 10;
    broker.declare(&[work]).await;
    let stuck = broker.subscriber("stuck", "$queue/work", AtLeastOnce).await;
    let mut reader = broker.subscriber("reader", "$queue/work", AtLeastOnce).await;
    let mut publisher = broker.clean("p").await;
    let payload = "x".repeat(50_000);
    for _ in 0..100 {
        publisher.post(publish(AtLeastOnce, 1, "t", &payload)).await;
        publisher.pubacked(1).await;
    }
    for _ in 0..90 {
        reader.take().await;
    }
    reader.quiet().await;
    stuck.vanish();
    for _ in 0..10 {
        reader.take().await;
    }
}

#[tokio::test]
async fn what_a_full_inbox_does_not_take_is_counted() {
    let mut config = config();
    config.limits.inbox_messages_per_client = 3;
    let broker = TestBroker::start_with(config, &memory()).await;
    let mut subscriber = broker.connect(persistent("s", V5)).await;
    subscriber.subscribe("t", AtLeastOnce).await;
    subscriber.disconnect().await;
    broker.publish("t", &["0", "1", "2", "3", "4"]).await;
    assert_eq!(broker.metric("weir_inbox_dropped_full_total").await, 2.0);
    let mut subscriber = broker.resume(persistent("s", V5)).await;
    assert_eq!(subscriber.take_texts(3).await, ["0", "1", "2"]);
    subscriber.synced().await;
    subscriber.disconnect().await;
    broker.publish("t", &["5"]).await;
    let mut subscriber = broker.resume(persistent("s", V5)).await;
    assert_eq!(text(&subscriber.take().await), "5");
}
