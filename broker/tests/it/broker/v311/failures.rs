//! What a server of 3.1.1 has no word for: publishes that it does not take, and a store that fails.

use weir_core::keyspace::tag;

use super::super::client::{AtLeastOnce, AtMostOnce, ExactlyOnce, V311, persistent, publish, text};
use super::super::{TestBroker, faulty, refused};
use super::with_will;

// Conformance v311: 3.3.5-2
#[tokio::test]
async fn a_publish_that_is_not_allowed_ends_the_connection() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.watcher().await;
    let mut all = broker.old_subscriber("all", "#", AtLeastOnce).await;
    for topic in ["$queue/all", "$SYS/broker/x"] {
        for qos in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
            let mut client = broker.connect(with_will(super::clean("c", V311))).await;
            client.post(publish(qos, 1, topic, "x")).await;
            client.ended().await;
            assert_eq!(text(&watcher.take().await), "gone");
            assert_eq!(text(&all.take().await), "gone");
        }
    }
    all.synced().await;
}

// Conformance v311: 4.8.0-2
#[tokio::test]
async fn a_store_that_fails_ends_the_connection() {
    let (store, faults) = faulty();
    let broker = TestBroker::start_on(&store).await;
    let mut client = broker.connect(persistent("c", V311)).await;
    // Its id cannot be noted, so that a repeat would not be known.
    faults.fail_commits_matching(&[tag::SESSION], refused());
    client.post(publish(ExactlyOnce, 1, "t", "x")).await;
    client.ended().await;
    assert!(faults.injected() > 0);
    faults.heal();
    let mut client = broker.resume(persistent("c", V311)).await;
    client.publish_twice_acknowledged(1, "t", "x").await;
}
