use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::{DispatchSettings, Kind, Retention};
use weir_core::queue::{Consumer, ConsumerId, Lost, Verdict, Window};
use weir_core::shard::AppendError;

use crate::support::{TestConsumer, definition, memory, open, publish, text};

async fn depth(core: &Core, queue: &Arc<Object>) -> u64 {
    let reports = core.describe(queue).await.unwrap();
    reports.iter().map(|report| report.queue.as_ref().unwrap().depth).sum()
}

#[tokio::test(start_paused = true)]
async fn a_backlog_waits_for_its_consumer_and_survives_a_restart() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let applied = core.apply(&[definition(Kind::Queue, "q", "a/#", 2)]).await.unwrap();
    assert_eq!(applied.created.len(), 1);
    for n in 0..100 {
        publish(&core, clock, &format!("a/{n}"), &n.to_string()).await.unwrap();
    }
    core.close().await;

    let core = open(&store, clock, 2).await;
    let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
    assert_eq!(depth(&core, &queue).await, 100);
    let mut consumer = TestConsumer::attach(&core, &queue, 1, 200).await;
    let mut seen = BTreeMap::new();
    for _ in 0..100 {
        let delivery = consumer.next().await;
        assert_eq!(delivery.delivery_count, 1);
        *seen.entry(text(&delivery)).or_insert(0) += 1;
        consumer.ack(&core, &delivery).await;
    }
    assert_eq!(seen.len(), 100);
    consumer.nothing().await;
    assert_eq!(depth(&core, &queue).await, 0);
    core.close().await;

    let core = open(&store, clock, 3).await;
    assert_eq!(depth(&core, &queue).await, 0, "acknowledgements are durable after an orderly end");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn two_consumers_share_and_a_late_one_gets_its_share_at_once() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Queue, "q", "a", 1)]).await.unwrap();
    let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
    for n in 0..40 {
        publish(&core, clock, "a", &n.to_string()).await.unwrap();
    }
    let mut first = TestConsumer::attach(&core, &queue, 1, 10).await;
    for n in 0..10 {
        assert_eq!(text(&first.next().await), n.to_string());
    }
    first.nothing().await;
    let mut late = TestConsumer::attach(&core, &queue, 2, 10).await;
    for n in 10..20 {
        assert_eq!(text(&late.next().await), n.to_string());
    }
    late.nothing().await;
    let reports = core.describe(&queue).await.unwrap();
    let report = reports[0].queue.as_ref().unwrap();
    assert_eq!((report.depth, report.inflight, report.consumers.len()), (40, 20, 2));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_consumer_held_goes_to_another() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Queue, "q", "a", 1)]).await.unwrap();
    let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
    publish(&core, clock, "a", "m").await.unwrap();
    for (id, lost, count) in [(1, Lost::Left, 1), (2, Lost::Vanished, 1), (3, Lost::Vanished, 2)] {
        let mut consumer = TestConsumer::attach(&core, &queue, id, 10).await;
        let delivery = consumer.next().await;
        assert_eq!(delivery.delivery_count, count, "consumer {id}");
        core.detach(&queue, consumer.consumer.id, lost).await.unwrap();
    }
    let mut last = TestConsumer::attach(&core, &queue, 4, 10).await;
    let delivery = last.next().await;
    assert_eq!(delivery.delivery_count, 3);
    last.ack(&core, &delivery).await;
    last.nothing().await;
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn no_acknowledgement_in_time_means_another_delivery_and_a_late_one_still_counts() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut q = definition(Kind::Queue, "q", "a", 1);
    q.dispatch = DispatchSettings { ack_timeout_ms: 5000, ..DispatchSettings::default() };
    core.apply(&[q]).await.unwrap();
    let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
    publish(&core, clock, "a", "m").await.unwrap();
    let mut slow = TestConsumer::attach(&core, &queue, 1, 10).await;
    let started = clock.now();
    let first = slow.next().await;
    let second = slow.next().await;
    let waited = clock.now() - started;
    assert!(waited >= Duration::from_secs(6), "ack time-out and backoff, was {waited:?}");
    assert_eq!((first.delivery_count, second.delivery_count), (1, 2));
    tokio::time::sleep(Duration::from_secs(6)).await;
    slow.ack(&core, &first).await;
    assert_eq!(depth(&core, &queue).await, 0);
    slow.nothing().await;
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_message_comes_again_after_backoff_until_its_last_attempt() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut q = definition(Kind::Queue, "q", "a", 1);
    q.dispatch = DispatchSettings { max_deliveries: 3, ..DispatchSettings::default() };
    core.apply(&[q]).await.unwrap();
    let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
    publish(&core, clock, "a", "m").await.unwrap();
    let mut consumer = TestConsumer::attach(&core, &queue, 1, 10).await;
    let mut times = Vec::new();
    for count in 1..=3 {
        let delivery = consumer.next().await;
        assert_eq!(delivery.delivery_count, count);
        times.push(clock.now());
        consumer.settle(&core, &delivery, Verdict::Rejected).await;
    }
    let waits: Vec<u64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert_eq!(waits, [1, 2]);
    tokio::time::sleep(Duration::from_secs(120)).await;
    consumer.nothing().await;
    let reports = core.describe(&queue).await.unwrap();
    let report = reports[0].queue.as_ref().unwrap();
    assert_eq!((report.depth, report.counters.exhausted), (0, 1));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn attempts_and_what_is_left_of_a_backoff_survive_a_restart() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut q = definition(Kind::Queue, "q", "a", 1);
    q.dispatch = DispatchSettings { backoff_initial_ms: 60_000, ..DispatchSettings::default() };
    core.apply(&[q]).await.unwrap();
    let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
    publish(&core, clock, "a", "refused").await.unwrap();
    let mut consumer = TestConsumer::attach(&core, &queue, 1, 10).await;
    let refused_at = clock.now();
    let delivery = consumer.next().await;
    consumer.settle(&core, &delivery, Verdict::Rejected).await;
    publish(&core, clock, "a", "fresh").await.unwrap();
    core.close().await;

    tokio::time::sleep(Duration::from_secs(20)).await;
    let core = open(&store, clock, 2).await;
    let mut consumer = TestConsumer::attach(&core, &queue, 1, 10).await;
    let fresh = consumer.next().await;
    assert_eq!((text(&fresh).as_str(), fresh.delivery_count), ("fresh", 1));
    let again = consumer.next().await;
    assert_eq!((text(&again).as_str(), again.delivery_count), ("refused", 2));
    assert_eq!((clock.now() - refused_at).as_secs(), 60);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_until_there_is_room() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut q = definition(Kind::Queue, "q", "a", 1);
    q.retention = Retention { max_messages: 2, ..Retention::default() };
    core.apply(&[q]).await.unwrap();
    let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
    publish(&core, clock, "a", "1").await.unwrap();
    publish(&core, clock, "a", "2").await.unwrap();
    let refused = publish(&core, clock, "a", "3").await.unwrap_err();
    assert!(matches!(&refused, AppendError::Full { what: "retention.maxMessages", .. }), "{refused}");
    let mut consumer = TestConsumer::attach(&core, &queue, 1, 10).await;
    let delivery = consumer.next().await;
    consumer.ack(&core, &delivery).await;
    assert_eq!(depth(&core, &queue).await, 1);
    publish(&core, clock, "a", "4").await.unwrap();
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn bytes_in_a_queue_return_to_zero() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Queue, "q", "a", 1)]).await.unwrap();
    let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
    let large = "x".repeat(200_000);
    for payload in ["small", &large] {
        publish(&core, clock, "a", payload).await.unwrap();
    }
    core.close().await;
    let core = open(&store, clock, 2).await;
    assert!(core.describe(&queue).await.unwrap()[0].queue.as_ref().unwrap().bytes > 200_000);
    let mut consumer = TestConsumer::attach(&core, &queue, 1, 10).await;
    for payload in ["small", &large] {
        let delivery = consumer.next().await;
        assert_eq!(text(&delivery), payload);
        consumer.ack(&core, &delivery).await;
    }
    assert_eq!(core.describe(&queue).await.unwrap()[0].queue.as_ref().unwrap().bytes, 0);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn expired_messages_are_never_delivered_and_leave_the_depth_without_consumers() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut q = definition(Kind::Queue, "q", "a", 1);
    q.retention = Retention { max_age_ms: 60_000, ..Retention::default() };
    core.apply(&[q]).await.unwrap();
    let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
    publish(&core, clock, "a", "old").await.unwrap();
    tokio::time::sleep(Duration::from_secs(61)).await;
    publish(&core, clock, "a", "new").await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(depth(&core, &queue).await, 1);
    let mut consumer = TestConsumer::attach(&core, &queue, 1, 10).await;
    assert_eq!(text(&consumer.next().await), "new");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn done_segments_leave_the_store() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Queue, "q", "a", 1)]).await.unwrap();
    let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
    let mut consumer = TestConsumer::attach(&core, &queue, 1, 10).await;
    for n in 0..50 {
        publish(&core, clock, "a", &n.to_string()).await.unwrap();
        let delivery = consumer.next().await;
        consumer.ack(&core, &delivery).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let reports = core.describe(&queue).await.unwrap();
    let segment = reports[0].bytes;
    assert!(segment < 200, "one small segment is left, not {segment} bytes");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn room_that_shards_and_queues_share_wakes_all_who_wait_for_it() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Queue, "q", "a/#", 4), definition(Kind::Queue, "r", "b/#", 1)])
        .await
        .unwrap();
    for n in 0..20 {
        publish(&core, clock, &format!("a/{n}"), "q").await.unwrap();
        publish(&core, clock, &format!("b/{n}"), "r").await.unwrap();
    }
    let connection = Arc::new(Window::new(1));
    let view = core.catalog().view();
    let (tx, mut deliveries) = mpsc::channel(20);
    let mut windows = Vec::new();
    for name in ["q", "r"] {
        let consumer = Consumer {
            id: ConsumerId(1),
            client_id: "c".into(),
            since: weir_env::clock::Timestamp::default(),
            window: Arc::new(Window::new(10)),
            connection_window: Some(Arc::clone(&connection)),
            deliveries: tx.clone(),
        };
        core.attach(&view.find(Kind::Queue, name).unwrap(), &consumer).await.unwrap();
        windows.push((name, consumer));
    }
    for _ in 0..40 {
        let delivery =
            tokio::time::timeout(Duration::from_secs(1), deliveries.recv()).await.expect("woken").unwrap();
        assert!(deliveries.try_recv().is_err(), "one at a time");
        let (_, consumer) = windows.iter().find(|(name, _)| *name == text(&delivery)).unwrap();
        let starved = consumer.give_back();
        core.settle(delivery.handout(), Verdict::Acknowledged).await.unwrap();
        if starved {
            for (name, consumer) in &windows {
                core.kick(&view.find(Kind::Queue, name).unwrap(), consumer.id).await.unwrap();
            }
        }
    }
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_closed_core_refuses_and_starts_nothing() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Queue, "q", "a", 1), definition(Kind::Queue, "unused", "b", 1)])
        .await
        .unwrap();
    publish(&core, clock, "a", "1").await.unwrap();
    core.close().await;
    for topic in ["a", "b"] {
        let error = publish(&core, clock, topic, "2").await.unwrap_err();
        assert!(matches!(error, AppendError::Failed(weir_core::Error::Closed)), "{error:?}");
    }
    core.close().await;
}
