//! Wills: when they are published, when not, and that a crash does not lose them.

use std::time::Duration;

use weir_codec::{Connect, ReasonCode};
use weir_core::keyspace::tag;
use weir_storage::CommitFault;

use super::client::{AtLeastOnce, AtMostOnce, Client, V5, V311, clean, persistent, retained, text, will};
use super::{DEADLINE, TestBroker, faulty, memory, queue};

fn with_will(connect: Connect, delay_interval: u32) -> Connect {
    let mut will = will("will", "gone");
    will.delay_interval = delay_interval;
    Connect { will: Some(will), ..connect }
}

async fn watcher(broker: &TestBroker) -> Client {
    broker.subscriber("watcher", "will", AtLeastOnce).await
}

// Conformance v5: 3.1.2-8
#[tokio::test]
async fn a_will_follows_an_end_without_farewell() {
    for version in [V5, V311] {
        let broker = TestBroker::start().await;
        broker.declare(&[queue("wills", "will")]).await;
        let mut watcher = watcher(&broker).await;
        broker.connect(with_will(clean("c", version), 0)).await.vanish();
        assert_eq!(text(&watcher.take().await), "gone");
        let mut consumer = broker.subscriber("consumer", "$queue/wills", AtLeastOnce).await;
        assert_eq!(text(&consumer.take().await), "gone");
        broker.connect(with_will(clean("c", version), 0)).await.disconnect().await;
        watcher.quiet().await;
        // Taken over, it ends without farewell as well.
        let _old = broker.connect(with_will(clean("c", version), 0)).await;
        let _new = broker.connect(clean("c", version)).await;
        watcher.take().await;
        if version == V5 {
            let client = broker.connect(with_will(clean("d", version), 0)).await;
            client.disconnect_with(ReasonCode::DisconnectWithWill, None).await;
            watcher.take().await;
            let mut quiet = with_will(clean("e", version), 0);
            quiet.keep_alive = 1;
            broker.connect(quiet).await.told(ReasonCode::KeepAliveTimeout).await;
            watcher.take().await;
        }
    }
}

// Conformance v5: 3.1.2-8, 3.1.3-9
#[tokio::test]
async fn a_delayed_will_waits_and_a_return_cancels_it() {
    let broker = TestBroker::start().await;
    let mut watcher = watcher(&broker).await;
    broker.connect(with_will(persistent("c", V5), 1)).await.vanish();
    watcher.quiet().await;
    assert_eq!(text(&watcher.take().await), "gone");
    broker.connect(with_will(persistent("c", V5), 1)).await.vanish();
    let mut back = broker.resume(persistent("c", V5)).await;
    // Its time, and the broker's next look for what is due.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    watcher.synced().await;
    back.synced().await;
}

// Conformance v5: 3.1.2-7, 3.1.2-8
#[tokio::test]
async fn wills_survive_a_crash() {
    let store = memory();
    let broker = TestBroker::start_on(&store).await;
    let mut subscriber = broker.connect(persistent("s", V5)).await;
    subscriber.subscribe("will", AtLeastOnce).await;
    subscriber.disconnect().await;
    let _clean = broker.connect(with_will(clean("c", V5), 0)).await;
    let _old = broker.connect(with_will(persistent("d", V311), 0)).await;
    let left = broker.connect(with_will(clean("e", V5), 0)).await;
    left.disconnect().await;
    drop(broker);
    let broker = TestBroker::start_on(&store).await;
    let mut subscriber = broker.resume(persistent("s", V5)).await;
    assert_eq!(subscriber.take_texts(2).await, ["gone", "gone"]);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    subscriber.synced().await;
}

#[tokio::test]
async fn a_will_that_waits_for_its_queue_holds_up_no_other() {
    let (store, faults) = faulty();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[queue("slow", "slow")]).await;
    let mut watcher = broker.subscriber("watcher", "+", AtMostOnce).await;
    faults.fail_commits_matching(&[tag::SEGMENT], CommitFault::Stalled(2 * DEADLINE));
    let mut slow = with_will(persistent("slow", V5), 1);
    slow.will = Some(weir_codec::Will { delay_interval: 1, ..will("slow", "gone") });
    broker.connect(slow).await.vanish();
    assert_eq!(watcher.message().await.topic.unwrap().as_str(), "slow");
    // More than are published at the same time, all due.
    for n in 0..300 {
        broker.connect(with_will(persistent(&n.to_string(), V5), 1)).await.vanish();
    }
    for _ in 0..300 {
        assert_eq!(text(&watcher.message().await), "gone");
    }
}

#[tokio::test]
async fn a_will_that_is_tried_again_replaces_nothing_retained_since() {
    let broker = TestBroker::start().await;
    let mut full = queue("full", "state");
    full.retention.max_messages = 1;
    broker.declare(&[full]).await;
    broker.publish("state", &["first"]).await;
    let offline = weir_codec::Will { retain: true, ..will("state", "offline") };
    broker.connect(Connect { will: Some(offline), ..clean("device", V5) }).await.vanish();
    broker.metric_reaches("weir_durable_publishes_total{outcome=\"quota_exceeded\"}", 1.0).await;
    // It waits for its queue, and is retained already.
    let mut early = broker.subscriber("early", "state", AtLeastOnce).await;
    assert_eq!(text(&early.take().await), "offline");
    let mut consumer = broker.subscriber("consumer", "$queue/full", AtLeastOnce).await;
    assert_eq!(text(&consumer.take().await), "first");
    consumer.synced().await;
    let mut device = broker.clean("device").await;
    device.post(retained(AtLeastOnce, 1, "state", "online")).await;
    assert_eq!(device.pubacked(1).await, ReasonCode::Success);
    assert_eq!(text(&consumer.take().await), "online");
    assert_eq!(text(&consumer.take().await), "offline");
    let mut late = broker.subscriber("late", "state", AtLeastOnce).await;
    assert_eq!(text(&late.take().await), "online");
}
