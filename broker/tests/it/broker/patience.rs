//! An MQTT 3.1.1 publisher cannot be told of a failure: its acknowledgement is withheld while the store is tried
//! again, for thirty seconds of a clock that this test moves.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir::server::{self, Started};
use weir_codec::{Packet, ProtocolVersion};
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{FaultHandle, FaultStore, MemoryStore, SharedStore};

use super::client::{AtLeastOnce, Client, ExactlyOnce, V5, V311, clean, open_at, publish, retained};
use super::{config, queue};

struct Publisher {
    client: Client,
    faults: FaultHandle,
    clock: Clock,
    shutdown: CancellationToken,
}

/// A publisher at a broker in this very runtime, whose time does not pass while anybody has something to do.
async fn publisher(version: ProtocolVersion) -> Publisher {
    let (clock, shutdown) = (Clock::system(), CancellationToken::new());
    // In memory whatever other tests run on: a cluster answers in its own time.
    let store = FaultStore::wrap(Arc::new(MemoryStore::new(clock)), Seed::fixed(1));
    let faults = store.handle();
    let store: SharedStore = Arc::new(store);
    let (started_tx, started) = oneshot::channel();
    let tasks = TaskTracker::new();
    tasks.spawn({
        let shutdown = shutdown.clone();
        async move {
            server::run_on(&config(), store, clock, &Seed::fixed(1), shutdown, started_tx).await.unwrap();
        }
    });
    let Started { mqtt, core, .. } = started.await.unwrap();
    core.apply(&[queue("work", "t")]).await.unwrap();
    let mut client = open_at(mqtt[0], version).await;
    client.send(Packet::Connect(Box::new(clean("p", version)))).await;
    assert!(matches!(client.next().await, Some(Packet::ConnAck(_))));
    // The shard is taken over.
    client.post(publish(AtLeastOnce, 1, "t", "x")).await;
    assert!(matches!(client.next().await, Some(Packet::PubAck(_))));
    Publisher { client, faults, clock, shutdown }
}

// Conformance v311: 3.3.5-2, 4.8.0-2
#[tokio::test(start_paused = true)]
async fn a_publisher_that_cannot_be_told_is_closed_after_a_while() {
    for failing in [
        publish(AtLeastOnce, 2, "t", "x"),
        publish(ExactlyOnce, 2, "t", "x"),
        retained(AtLeastOnce, 2, "kept", "x"),
    ] {
        let mut it = publisher(V311).await;
        it.faults.unavailable(true);
        let start = it.clock.now();
        it.client.post(failing).await;
        assert_eq!(it.client.next().await, None, "no acknowledgement");
        let took = it.clock.now() - start;
        assert!((Duration::from_secs(30)..Duration::from_secs(40)).contains(&took), "{took:?}");
        it.shutdown.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_acknowledged_when_the_store_comes_back_in_time() {
    let mut it = publisher(V311).await;
    it.faults.unavailable(true);
    let start = it.clock.now();
    it.client.post(publish(AtLeastOnce, 2, "t", "x")).await;
    let nothing = tokio::time::timeout(Duration::from_secs(20), it.client.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    it.faults.unavailable(false);
    assert!(matches!(it.client.next().await, Some(Packet::PubAck(_))));
    assert!(it.clock.now() - start < Duration::from_secs(25));
    it.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn one_that_can_be_told_is_told_at_once() {
    let mut it = publisher(V5).await;
    it.faults.unavailable(true);
    let start = it.clock.now();
    it.client.post(publish(AtLeastOnce, 2, "t", "x")).await;
    match it.client.next().await {
        Some(Packet::PubAck(ack)) => assert!(ack.reason.is_error(), "{ack:?}"),
        other => panic!("not a PUBACK: {other:?}"),
    }
    assert!(it.clock.now() - start < Duration::from_secs(1));
    it.shutdown.cancel();
}
