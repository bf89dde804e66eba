//! A broker that cannot go on says so and stops, instead of looking healthy.

use std::time::Duration;

use weir_codec::{Packet, ReasonCode};
use weir_core::keyspace::tag;
use weir_storage::CommitFault;

use super::client::{AtLeastOnce, V5, clean, publish};
use super::{DEADLINE, TestBroker, config, faulty, queue};

#[tokio::test]
async fn a_store_that_commits_no_more_ends_the_broker() {
    let (store, faults) = faulty();
    let mut config = config();
    config.limits.shutdown_grace = Duration::from_secs(3);
    let broker = TestBroker::start_with(config, &store).await;
    broker.declare(&[queue("work", "t")]).await;
    broker.publish("t", &["before"]).await;
    assert!(broker.get("/healthz").await.starts_with("HTTP/1.1 200 "));
    // A publish under way keeps the broker from being gone at once.
    faults.fail_commits_matching(&[tag::SEGMENT], CommitFault::Stalled(DEADLINE));
    let mut client = broker.connect(clean("c", V5)).await;
    client.post(publish(AtLeastOnce, 1, "t", "x")).await;
    client.synced().await;
    faults.fail_for_good("the disk is gone");
    let unhealthy = async { while !broker.get("/healthz").await.starts_with("HTTP/1.1 503 ") {} };
    tokio::time::timeout(DEADLINE, unhealthy).await.expect("503 in time");
    assert!(broker.get("/readyz").await.starts_with("HTTP/1.1 503 "));
    // The publish under way is answered first, if the broker still comes to it.
    match client.recv().await {
        Packet::PubAck(ack) => {
            assert!(ack.reason.is_error(), "{ack:?}");
            client.told(ReasonCode::ServerShuttingDown).await;
        }
        Packet::Disconnect(farewell) => assert_eq!(farewell.reason, ReasonCode::ServerShuttingDown),
        other => panic!("{other:?}"),
    }
    let why = broker.failure().await;
    assert!(why.contains("the disk is gone") && why.contains("restart the broker"), "{why}");
}

#[tokio::test]
async fn an_owner_that_panics_ends_the_broker() {
    let (store, faults) = faulty();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[queue("work", "t")]).await;
    let mut other = broker.clean("other").await;
    let mut client = broker.clean("c").await;
    faults.fail_commits_matching(&[tag::SEGMENT], CommitFault::Panic);
    client.send(Packet::Publish(Box::new(publish(AtLeastOnce, 1, "t", "x")))).await;
    assert!(client.pubacked(1).await.is_error());
    other.told(ReasonCode::ServerShuttingDown).await;
    let why = broker.failure().await;
    assert!(why.contains("panicked") && why.contains("restart the broker"), "{why}");
}
