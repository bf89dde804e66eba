//! Retained publishes at several pods, whole brokers on one store in this process: they go live when they are kept, and in
//! the order in which their publisher sent them.

use std::sync::Arc;

use weir_codec::{Packet, ReasonCode};
use weir_core::cluster::testing::MemoryNetwork;
use weir_core::keyspace::tag;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{CommitFault, Error, FaultHandle, FaultStore, SharedStore};

use super::client::{AtLeastOnce, AtMostOnce, ExactlyOnce, V5, V311, clean, publish, retained, text};
use super::{DEADLINE, TestBroker, memory};

/// Two pods that have a link to each other, what makes the store of the first fail, and their network.
async fn two() -> (TestBroker, TestBroker, FaultHandle, MemoryNetwork) {
    let (store, network) = (memory(), MemoryNetwork::new(Clock::system(), &Seed::fixed(1)));
    let faulty = FaultStore::wrap(Arc::clone(&store), Seed::fixed(1));
    let faults = faulty.handle();
    let faulty: SharedStore = Arc::new(faulty);
    let pods =
        (TestBroker::start_pod(&faulty, &network).await, TestBroker::start_pod(&store, &network).await);
    for pod in [&pods.0, &pods.1] {
        let mut up = pod.core.links().unwrap().link_events();
        let linked = up.wait_for(|up| up.len() == 1);
        assert!(tokio::time::timeout(DEADLINE, linked).await.is_ok(), "no link");
    }
    (pods.0, pods.1, faults, network)
}

/// Nothing is retained until the faults are healed.
fn block(faults: &FaultHandle) {
    let busy = CommitFault::Refused(Error::Busy("by this test".into()));
    faults.fail_commits_matching(&[tag::RETAINED], busy);
}

/// Waits until it has been tried.
async fn tried(faults: &FaultHandle) {
    let tried = async {
        while faults.injected() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, tried).await.expect("it is tried to be kept");
}

/// As after a pause of the pod, shorter than its time to live: its client has gone on elsewhere.
#[tokio::test]
async fn what_its_client_has_sent_anew_elsewhere_is_neither_kept_nor_live() {
    for (version, qos) in [(V5, AtLeastOnce), (V5, AtMostOnce), (V311, AtLeastOnce), (V5, ExactlyOnce)] {
        let (a, b, faults, _) = two().await;
        let mut watcher = a.subscriber("watcher", "t/#", AtMostOnce).await;
        let mut first = a.connect(clean("c", version)).await;
        block(&faults);
        first.post(retained(qos, 1, "t/x", "older")).await;
        tried(&faults).await;
        watcher.quiet().await;
        let mut second = b.connect(clean("c", version)).await;
        second.post(retained(AtLeastOnce, 1, "t/x", "newer")).await;
        assert_eq!(second.pubacked(1).await, ReasonCode::Success);
        assert_eq!(text(&watcher.message().await), "newer", "{version:?} {qos:?}");
        faults.heal();
        a.metric_reaches("weir_retained_fenced_total", 1.0).await;
        watcher.quiet().await;
        let mut reader = b.subscriber("reader", "t/#", AtMostOnce).await;
        assert_eq!(text(&reader.message().await), "newer", "{version:?} {qos:?}");
    }
}

/// The pod does not hear of it before it goes on.
#[tokio::test]
async fn what_is_not_kept_is_not_live_though_its_publisher_is_still_there() {
    for (version, qos) in [(V5, AtLeastOnce), (V5, AtMostOnce), (V311, AtLeastOnce)] {
        let (a, b, faults, network) = two().await;
        let mut watcher = a.subscriber("watcher", "t/#", AtMostOnce).await;
        let mut first = a.connect(clean("c", version)).await;
        block(&faults);
        first.post(retained(qos, 1, "t/x", "older")).await;
        tried(&faults).await;
        network.partition(a.core.pod(), b.core.pod());
        network.cut(a.core.pod(), b.core.pod());
        let mut second = b.connect(clean("c", version)).await;
        second.post(retained(AtLeastOnce, 1, "t/x", "newer")).await;
        // Its answer waits for the link.
        let mut reader = b.subscriber("reader", "t/#", AtMostOnce).await;
        assert_eq!(text(&reader.message().await), "newer", "{version:?} {qos:?}");
        faults.heal();
        a.metric_reaches("weir_retained_fenced_total", 1.0).await;
        network.heal();
        assert_eq!(text(&watcher.message().await), "newer", "{version:?} {qos:?}");
        assert_eq!(second.pubacked(1).await, ReasonCode::Success);
        watcher.quiet().await;
    }
}

#[tokio::test]
async fn what_follows_a_retained_publish_does_not_overtake_it_and_a_farewell_loses_nothing() {
    let (a, b, ..) = two().await;
    for (round, (version, qos)) in
        [(V5, AtLeastOnce), (V311, AtLeastOnce), (V5, AtMostOnce), (V311, AtMostOnce)].into_iter().enumerate()
    {
        let topic = format!("t/{round}");
        let mut readers = Vec::new();
        for (name, pod) in [("at-a", &a), ("at-b", &b)] {
            readers.push(pod.subscriber(name, &topic, AtMostOnce).await);
        }
        let mut client = a.connect(clean("c", version)).await;
        let mut sent: Vec<String> = Vec::new();
        let mut packets = Vec::new();
        for n in 1..=30 {
            sent.push(n.to_string());
            let make = if n % 3 == 1 { retained } else { publish };
            packets.push(Packet::Publish(Box::new(make(qos, n, &topic, &n.to_string()))));
        }
        packets.push(Packet::Disconnect(Box::default()));
        client.send_all(packets).await;
        for reader in &mut readers {
            let mut received = Vec::new();
            for _ in &sent {
                received.push(text(&reader.message().await).to_owned());
            }
            assert_eq!(received, sent, "{version:?} {qos:?}");
        }
        client.rest().await;
        let mut late = b.subscriber("late", &topic, AtMostOnce).await;
        assert_eq!(text(&late.message().await), "28", "{version:?} {qos:?}");
    }
}
