//! The orderly end of a broker.

use weir_codec::{Packet, ReasonCode};

use super::client::{AtLeastOnce, V5, V311, clean, persistent, publish, text};
use super::{TestBroker, faulty, memory, queue};
use weir_core::keyspace::tag;
use weir_storage::CommitFault;

// Conformance v5: 4.2-1
#[tokio::test]
async fn clients_are_told_and_what_was_acknowledged_is_there_afterwards() {
    let store = memory();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[queue("work", "t")]).await;
    let mut subscriber = broker.connect(persistent("s", V5)).await;
    subscriber.subscribe("t", AtLeastOnce).await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    let mut old = broker.connect(clean("old", V311)).await;
    let idle = broker.open(V5).await;
    broker.publish("t", &["0", "1", "2"]).await;
    assert_eq!(text(&subscriber.take().await), "0");
    assert_eq!(text(&subscriber.message().await), "1");
    assert_eq!(text(&subscriber.message().await), "2");
    assert_eq!(text(&consumer.take().await), "0");
    consumer.message().await;
    consumer.message().await;
    subscriber.synced().await;
    consumer.synced().await;
    broker.begin_stop();
    subscriber.told(ReasonCode::ServerShuttingDown).await;
    consumer.told(ReasonCode::ServerShuttingDown).await;
    old.ended().await;
    drop(idle);
    broker.stop().await;

    let broker = TestBroker::start_on(&store).await;
    let mut subscriber = broker.resume(persistent("s", V5)).await;
    for expected in ["1", "2"] {
        let message = subscriber.take().await;
        assert_eq!((text(&message), message.header.dup), (expected, true));
    }
    subscriber.quiet().await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    for expected in ["1", "2"] {
        let message = consumer.take().await;
        assert_eq!((text(&message), super::client::number(&message, "delivery-count")), (expected, 1));
    }
    consumer.quiet().await;
}

#[tokio::test]
async fn publishes_under_way_are_answered_before_the_farewell() {
    let (store, faults) = faulty();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[queue("work", "t")]).await;
    broker.publish("t", &["before"]).await;
    let mut publisher = broker.connect(clean("p", V5)).await;
    faults
        .fail_commits_matching(&[tag::SEGMENT], CommitFault::Stalled(std::time::Duration::from_millis(500)));
    publisher.send_all([Packet::Publish(Box::new(publish(AtLeastOnce, 1, "t", "x"))), Packet::PingReq]).await;
    assert_eq!(publisher.recv().await, Packet::PingResp);
    broker.begin_stop();
    assert_eq!(publisher.pubacked(1).await, ReasonCode::Success);
    publisher.told(ReasonCode::ServerShuttingDown).await;
    broker.stop().await;
}
