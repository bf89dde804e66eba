//! `queue-priority`: which messages go first.

use std::time::Duration;

use weir_core::definition::{Kind, Ordering, Overflow, Retention};
use weir_core::queue::Verdict;
use weir_core::shard::AppendError;

use crate::controls::Bench;
use crate::support::{TestConsumer, definition, memory, text};

async fn publish(bench: &Bench, payload: &str, priority: &str) -> Result<(), AppendError> {
    bench.publish("a", payload, &[("queue-priority", priority)]).await
}

async fn take(bench: &Bench, consumer: &mut TestConsumer, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    for _ in 0..count {
        let delivery = consumer.next().await;
        texts.push(text(&delivery));
        consumer.ack(&bench.core, &delivery).await;
    }
    texts
}

#[tokio::test(start_paused = true)]
async fn higher_priorities_go_first_and_keep_their_order_over_a_restart() {
    let (store, clock) = memory();
    let q = definition(Kind::Queue, "q", "a", 1);
    let bench = Bench::open(&store, clock, &q, 1).await;
    for (payload, priority) in [("b1", "0"), ("c1", "5"), ("a1", "9"), ("c2", "5"), ("a2", "9"), ("b2", "0")]
    {
        publish(&bench, payload, priority).await.unwrap();
    }
    bench.publish("a", "b3", &[]).await.unwrap();
    assert_eq!(bench.depth().await, 7);
    // One at a time: the order is that of the queue.
    let mut consumer = TestConsumer::attach(&bench.core, &bench.queue, 1, 1).await;
    assert_eq!(take(&bench, &mut consumer, 1).await, ["a1"]);
    bench.core.close().await;

    let bench = Bench::open(&store, clock, &q, 2).await;
    assert_eq!(bench.depth().await, 6);
    let mut consumer = TestConsumer::attach(&bench.core, &bench.queue, 1, 1).await;
    assert_eq!(take(&bench, &mut consumer, 2).await, ["a2", "c1"]);
    // What comes later overtakes what waits; a priority that was never asked for before too.
    publish(&bench, "a3", "9").await.unwrap();
    publish(&bench, "d1", "7").await.unwrap();
    let held = consumer.next().await;
    assert_eq!(text(&held), "c2", "handed out before they came");
    consumer.ack(&bench.core, &held).await;
    assert_eq!(take(&bench, &mut consumer, 5).await, ["a3", "d1", "b1", "b2", "b3"]);
    assert_eq!(bench.depth().await, 0);
    bench.core.close().await;

    let bench = Bench::open(&store, clock, &q, 3).await;
    assert_eq!(bench.depth().await, 0);
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_backlog_of_high_priority_goes_first_although_it_has_to_be_read() {
    let (store, clock) = memory();
    let q = definition(Kind::Queue, "q", "a", 1);
    let bench = Bench::open(&store, clock, &q, 1).await;
    let large = "x".repeat(10_000);
    for n in 0..100 {
        publish(&bench, &format!("low {n}"), "0").await.unwrap();
        publish(&bench, &format!("high {large}"), "1").await.unwrap();
    }
    bench.core.close().await;
    let bench = Bench::open(&store, clock, &q, 2).await;
    let mut consumer = TestConsumer::attach(&bench.core, &bench.queue, 1, 10).await;
    let texts = take(&bench, &mut consumer, 200).await;
    let first_low = texts.iter().position(|text| text.starts_with("low")).unwrap();
    assert_eq!(first_low, 100);
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn limits_hold_over_all_priorities_and_delays() {
    let (store, clock) = memory();
    let mut q = definition(Kind::Queue, "q", "a", 1);
    q.retention = Retention { max_messages: 6, ..Retention::default() };
    let bench = Bench::open(&store, clock, &q, 1).await;
    // All in one batch.
    let publishes = (0..12).map(|n| {
        let bench = &bench;
        async move {
            let priority = (n % 4).to_string();
            let delay = if n % 3 == 0 { "10s" } else { "0" };
            let properties = [("queue-priority", priority.as_str()), ("queue-delay", delay)];
            bench.publish("a", &n.to_string(), &properties).await.is_ok()
        }
    });
    let accepted = futures_util::future::join_all(publishes).await;
    assert_eq!(accepted.iter().filter(|ok| **ok).count(), 6);
    assert_eq!(bench.depth().await, 6);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(bench.depth().await, 6);
    assert!(publish(&bench, "one more", "9").await.is_err());
    let mut consumer = TestConsumer::attach(&bench.core, &bench.queue, 1, 1).await;
    take(&bench, &mut consumer, 1).await;
    publish(&bench, "one more", "9").await.unwrap();
    assert!(publish(&bench, "another", "3").await.is_err());
    // Until it is empty again.
    let held = consumer.next().await;
    consumer.ack(&bench.core, &held).await;
    assert_eq!(take(&bench, &mut consumer, 5).await[0], "one more");
    let reports = bench.core.describe(&bench.queue).await.unwrap();
    let report = reports[0].queue.as_ref().unwrap();
    assert_eq!((report.depth, report.bytes, report.counters.acknowledged), (0, 0, 7));
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_delayed_message_keeps_its_priority() {
    let (store, clock) = memory();
    let q = definition(Kind::Queue, "q", "a", 1);
    let bench = Bench::open(&store, clock, &q, 1).await;
    bench.publish("a", "high", &[("queue-priority", "3"), ("queue-delay", "10s")]).await.unwrap();
    bench.publish("a", "low", &[("queue-delay", "10s")]).await.unwrap();
    bench.core.close().await;
    let bench = Bench::open(&store, clock, &q, 2).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    let mut consumer = TestConsumer::attach(&bench.core, &bench.queue, 1, 1).await;
    assert_eq!(take(&bench, &mut consumer, 2).await, ["high", "low"]);
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn consumers_come_and_go_over_all_priorities() {
    let (store, clock) = memory();
    let q = definition(Kind::Queue, "q", "a", 1);
    let bench = Bench::open(&store, clock, &q, 1).await;
    // Attached before the priority has a log.
    let mut first = TestConsumer::attach(&bench.core, &bench.queue, 1, 10).await;
    publish(&bench, "1", "4").await.unwrap();
    publish(&bench, "2", "0").await.unwrap();
    let held = [first.next().await, first.next().await];
    assert_eq!(held.each_ref().map(text), ["1", "2"]);
    let reports = bench.core.describe(&bench.queue).await.unwrap();
    let report = reports[0].queue.as_ref().unwrap();
    assert_eq!((report.inflight, report.consumers.len(), report.consumers[0].inflight), (2, 1, 2));
    first.settle(&bench.core, &held[0], Verdict::Rejected).await;
    let again = first.next().await;
    assert_eq!((text(&again), again.delivery_count), ("1".into(), 2));
    bench.core.detach(&bench.queue, first.consumer.id, weir_core::queue::Lost::Left).await.unwrap();
    let mut second = TestConsumer::attach(&bench.core, &bench.queue, 2, 10).await;
    assert_eq!(take(&bench, &mut second, 2).await, ["1", "2"]);
    second.nothing().await;
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn where_order_matters_priorities_are_ignored_and_counted() {
    for change in [
        |q: &mut weir_core::definition::Definition| q.queue.ordering = Ordering::Key,
        |q: &mut weir_core::definition::Definition| q.queue.overflow = Overflow::DropOldest,
    ] {
        let (store, clock) = memory();
        let mut q = definition(Kind::Queue, "q", "a", 1);
        change(&mut q);
        let bench = Bench::open(&store, clock, &q, 1).await;
        publish(&bench, "1", "0").await.unwrap();
        publish(&bench, "2", "9").await.unwrap();
        let mut consumer = TestConsumer::attach(&bench.core, &bench.queue, 1, 1).await;
        assert_eq!(take(&bench, &mut consumer, 2).await, ["1", "2"]);
        assert_eq!(bench.metrics.priorities_ignored.get(), 2);
        bench.core.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_queue_leaves_nothing_of_its_priorities() {
    let (store, clock) = memory();
    let mut q = definition(Kind::Queue, "q", "a", 1);
    q.delete_data = true;
    let bench = Bench::open(&store, clock, &q, 1).await;
    for priority in 0..=9 {
        publish(&bench, "m", &priority.to_string()).await.unwrap();
    }
    bench.core.apply(&[]).await.unwrap();
    let counts = weir_core::inspect::count(&*store).await.unwrap();
    let left: Vec<_> =
        counts.iter().filter(|(_, count)| count.records > 0).map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(left, ["format", "catalog", "owner"]);
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn peek_and_purge_reach_all_priorities() {
    let (store, clock) = memory();
    let bench = Bench::open(&store, clock, &definition(Kind::Queue, "q", "a", 1), 1).await;
    for (payload, priority) in [("low", "0"), ("high", "9"), ("middle", "5")] {
        publish(&bench, payload, priority).await.unwrap();
    }
    bench.publish("a", "later", &[("queue-delay", "1h")]).await.unwrap();
    let peek = weir_core::operations::Peek { count: 10, ..Default::default() };
    let peeked = bench.core.peek(&bench.queue, &peek).await.unwrap();
    assert_eq!(peeked.messages.len(), 3);
    let purge =
        weir_core::operations::Purge { before: None, filter: weir_core::queue::StateFilter::Any, from: None };
    let purged = bench.core.purge(&bench.queue, &purge).await.unwrap();
    assert_eq!(purged.purged, 3);
    let reports = bench.core.describe(&bench.queue).await.unwrap();
    let report = reports[0].queue.as_ref().unwrap();
    assert_eq!((report.depth, report.delayed, report.counters.purged), (1, 1, 3));
    bench.core.close().await;
}
