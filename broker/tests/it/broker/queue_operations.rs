//! `weir queue` against a broker with MQTT clients: what people do to a queue is what its consumers see.

use weir_codec::ReasonCode;
use weir_core::definition::{DeadLetterTarget, Definition};

use super::client::{AtLeastOnce, text};
use super::{TestBroker, queue};
use crate::cli::weir;

async fn command(broker: &TestBroker, args: &[&str]) -> String {
    let admin = broker.admin.to_string();
    weir(&[&["queue"], args, &["--admin", &admin]].concat(), "").await.output()
}

#[tokio::test]
async fn a_queue_is_looked_at_paused_purged_and_fed_with_its_dead_letters() {
    let broker = TestBroker::start().await;
    let mut work = queue("work", "job/#");
    work.dispatch.max_deliveries = 1;
    work.queue.dead_letter = Some(DeadLetterTarget::Object("dead".into()));
    let dead = Definition { topic_filter: None, ..queue("dead", "unused") };
    broker.declare(&[work, dead]).await;
    assert_eq!(command(&broker, &["pause", "work"]).await, "work is paused\n");
    broker.publish("job/1", &["one", "two", "three"]).await;
    let mut worker = broker.subscriber("worker", "$queue/work", AtLeastOnce).await;
    worker.synced().await;
    let shown = command(&broker, &["peek", "work", "-n", "2"]).await;
    assert!(shown.contains("0:0 ") && shown.contains("job/1, ready\n    one\n"), "{shown}");
    assert!(!shown.contains("three"), "{shown}");
    let list = command(&broker, &["list"]).await;
    assert!(list.contains("paused"), "{list}");

    assert_eq!(command(&broker, &["resume", "work"]).await, "work delivers\n");
    let one = worker.message().await;
    assert_eq!(text(&one), "one");
    worker.puback(&one, ReasonCode::UnspecifiedError).await;
    let two = worker.message().await;
    let consumers = command(&broker, &["consumers", "work"]).await;
    assert!(consumers.contains("worker"), "{consumers}");
    assert_eq!(command(&broker, &["purge", "work", "--state", "in-flight"]).await, "purged 2\n");
    worker.puback(&two, ReasonCode::Success).await;

    let mut moved = String::new();
    // The refusal of the first is on its way.
    for _ in 0..100 {
        moved = command(&broker, &["redrive", "dead"]).await;
        if moved == "moved 1\n" {
            break;
        }
    }
    assert_eq!(moved, "moved 1\n");
    let mut again = worker.message().await;
    while text(&again) == "three" {
        // It was in flight when the queue was purged.
        again = worker.message().await;
    }
    assert_eq!((text(&again), again.topic.as_ref().unwrap().as_str()), ("one", "job/1"));
}
