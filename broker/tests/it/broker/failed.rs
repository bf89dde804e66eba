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
    // A commit under way keeps the broker from being gone before anybody has asked: for longer than this test lasts.
    config.limits.shutdown_grace = 4 * DEADLINE;
    let broker = TestBroker::start_with(config, &store).await;
    broker.declare(&[queue("work", "t")]).await;
    broker.publish("t", &["before"]).await;
    assert!(broker.get("/healthz").await.starts_with("HTTP/1.1 200 "));
    faults.fail_commits_matching(&[tag::SEGMENT], CommitFault::Stalled(4 * DEADLINE));
    let mut client = broker.connect(clean("c", V5)).await;
    client.post(publish(AtLeastOnce, 1, "t", "x")).await;
    let stalled = async {
        while faults.injected() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, stalled).await.expect("a commit in time");
    faults.fail_for_good("the disk is gone");
    let unhealthy = async { while !broker.get("/healthz").await.starts_with("HTTP/1.1 503 ") {} };
    tokio::time::timeout(DEADLINE, unhealthy).await.expect("503 in time");
    let ready = broker.get("/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503 ") && ready.ends_with("failed\n"), "{ready}");
    faults.release_stalled();
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
