//! A store that fails in every way it may: nothing acknowledged is lost, nothing is there twice, no offset is
//! left out, one epoch has one committer.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::Kind;
use weir_core::error::Error;
use weir_core::key::Publisher;
use weir_core::keyspace::PublishId;
use weir_core::keyspace::owner::Owner;
use weir_core::shard::{AppendError, read_segments};
use weir_core::stream::Start;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{CommitFault, FaultHandle, FaultStore, Isolation, SharedStore};

use crate::support::{TestConsumer, definition, memory, message, open, publish, reader, text};

fn faulty(seed: u64) -> (SharedStore, FaultHandle, Clock) {
    let (store, clock) = memory();
    let store = FaultStore::wrap(store, Seed::fixed(seed));
    let faults = store.handle();
    (Arc::new(store), faults, clock)
}

/// A core with a stream `s` and a queue `q` of one shard each, both of topic `a`.
async fn open_both(store: &SharedStore, clock: Clock, seed: u64) -> (Core, Arc<Object>, Arc<Object>) {
    let core = open(store, clock, seed).await;
    core.apply(&[definition(Kind::Stream, "s", "a", 1), definition(Kind::Queue, "q", "a", 1)]).await.unwrap();
    let view = core.catalog().view();
    let (stream, queue) = (view.find(Kind::Stream, "s").unwrap(), view.find(Kind::Queue, "q").unwrap());
    (core, stream, queue)
}

/// Everything kept in the logs of `object`, which must be dense (a stream's from 0) and read twice the same.
pub(crate) async fn contents(store: &SharedStore, object: &Object) -> Vec<String> {
    let read = read_all(store, object).await;
    assert_eq!(read, read_all(store, object).await, "two reads are the same");
    read
}

async fn read_all(store: &SharedStore, object: &Object) -> Vec<String> {
    let is_queue = object.definition.kind == Kind::Queue;
    let mut payloads = Vec::new();
    for log in &object.logs {
        let segments = read_segments(store, log, 0, usize::MAX).await.unwrap();
        let mut expected = segments.first().filter(|_| is_queue).map_or(0, |first| first.header().base);
        for mut segment in segments {
            while let Some((offset, record)) = segment.next_record().unwrap() {
                assert_eq!(offset, expected, "offsets are dense");
                expected += 1;
                payloads.push(String::from_utf8(record.message.payload.to_vec()).unwrap());
            }
        }
    }
    payloads
}

async fn depth(core: &Core, queue: &Arc<Object>) -> u64 {
    core.describe(queue).await.unwrap()[0].queue.as_ref().unwrap().depth
}

#[tokio::test(start_paused = true)]
async fn a_refused_batch_is_never_acknowledged_and_leaves_no_gap() {
    use weir_storage::Error as StoreError;
    let (store, faults, clock) = faulty(1);
    let (core, stream, queue) = open_both(&store, clock, 1).await;
    publish(&core, clock, "a", "first").await.unwrap();
    let too_large = StoreError::TooLarge { what: "transaction", size: 2, limit: 1 };
    let refusals = [StoreError::Unavailable("x".into()), too_large, StoreError::Damaged("x".into())];
    for error in refusals {
        // One commit for each of the two logs, unless both are on one virtual shard.
        faults.fail_next_commit(CommitFault::Refused(error.clone()));
        faults.fail_next_commit(CommitFault::Refused(error));
        let targets = core.catalog().view().targets(&message(clock, "a", "").topic);
        let refused = message(clock, "a", "refused");
        let receipt = core.append(&targets, &refused, &Publisher::default(), None).await.unwrap();
        let failures = receipt.settled().await;
        assert_eq!(failures.len(), 2, "{failures:?}");
        faults.heal();
    }
    publish(&core, clock, "a", "last").await.unwrap();
    assert_eq!(contents(&store, &stream).await, ["first", "last"]);
    assert_eq!(contents(&store, &queue).await, ["first", "last"]);
    assert_eq!(depth(&core, &queue).await, 2);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn only_the_target_that_failed_is_named() {
    let (store, faults, clock) = faulty(1);
    let (core, stream, _) = open_both(&store, clock, 1).await;
    publish(&core, clock, "a", "first").await.unwrap();
    let error = weir_storage::Error::Unavailable("x".into());
    let prefix = stream.logs[0].key(b'l').finish();
    faults.fail_commits_matching(&prefix, CommitFault::Refused(error));
    let record = message(clock, "a", "second");
    let targets = core.targets(&record.topic);
    let receipt = core.append(&targets, &record, &Publisher::default(), None).await.unwrap();
    let failures = receipt.settled().await;
    let names: Vec<&str> = failures.iter().map(|(object, _)| object.definition.name.as_str()).collect();
    assert_eq!(names, ["s"]);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_commit_of_unknown_outcome_is_there_exactly_once() {
    let faults_of_commit = [
        CommitFault::SettledCommitted,
        CommitFault::SettledLost,
        CommitFault::OpenLost,
        CommitFault::OpenCommittedLater(Duration::ZERO),
        CommitFault::OpenCommittedLater(Duration::from_millis(20)),
        CommitFault::OpenCommittedLater(Duration::from_secs(3)),
        CommitFault::Stalled(Duration::from_secs(8)),
    ];
    for fault in faults_of_commit {
        let (store, faults, clock) = faulty(1);
        let (core, stream, queue) = open_both(&store, clock, 1).await;
        publish(&core, clock, "a", "0").await.unwrap();
        for _ in 0..3 {
            faults.fail_next_commit(fault.clone());
        }
        let payloads: Vec<String> = (1..=5).map(|n| n.to_string()).collect();
        let results = join_all(payloads.iter().map(|payload| publish(&core, clock, "a", payload))).await;
        assert!(results.iter().all(Result::is_ok), "{fault:?}: {results:?}");
        tokio::time::sleep(Duration::from_secs(10)).await;
        faults.settle().await;
        publish(&core, clock, "a", "6").await.unwrap();
        let expected: Vec<String> = (0..=6).map(|n| n.to_string()).collect();
        assert_eq!(contents(&store, &stream).await, expected, "{fault:?}");
        assert_eq!(contents(&store, &queue).await, expected, "{fault:?}");
        let mut consumer = TestConsumer::attach(&core, &queue, 1, 3).await;
        for payload in &expected {
            let delivery = consumer.next().await;
            assert_eq!((text(&delivery), delivery.delivery_count), (payload.clone(), 1), "{fault:?}");
            consumer.ack(&core, &delivery).await;
        }
        assert_eq!(depth(&core, &queue).await, 0, "{fault:?}");
        core.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_of_unknown_outcome_counts_once() {
    for fault in [CommitFault::SettledCommitted, CommitFault::SettledLost, CommitFault::OpenLost] {
        let (store, faults, clock) = faulty(1);
        let (core, _, queue) = open_both(&store, clock, 1).await;
        for n in 0..3 {
            publish(&core, clock, "a", &n.to_string()).await.unwrap();
        }
        let mut consumer = TestConsumer::attach(&core, &queue, 1, 1).await;
        let delivery = consumer.next().await;
        faults.fail_next_commit(fault.clone());
        consumer.ack(&core, &delivery).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(depth(&core, &queue).await, 2, "{fault:?}");
        drop(core);
        let (core, _, queue) = open_both(&store, clock, 2).await;
        assert_eq!(depth(&core, &queue).await, 2, "{fault:?} after a crash");
        core.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_took_the_shard_over_last_commits_and_nobody_else() {
    // Within a second ownership is assumed and the conflict tells; later it is read.
    for pause in [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(20)] {
        let (store, _, clock) = faulty(1);
        let (first, stream, queue) = open_both(&store, clock, 1).await;
        let (second, ..) = open_both(&store, clock, 2).await;
        publish(&first, clock, "a", "a").await.unwrap();
        publish(&second, clock, "a", "b").await.unwrap();
        tokio::time::sleep(pause).await;
        let fenced = publish(&first, clock, "a", "never").await.unwrap_err();
        assert!(matches!(fenced, AppendError::Failed(Error::Fenced)), "{fenced:?}");
        publish(&first, clock, "a", "c").await.unwrap();
        tokio::time::sleep(pause).await;
        let fenced = publish(&second, clock, "a", "never").await.unwrap_err();
        assert!(matches!(fenced, AppendError::Failed(Error::Fenced)), "{fenced:?}");
        for object in [&stream, &queue] {
            assert_eq!(contents(&store, object).await, ["a", "b", "c"], "{pause:?}");
            let segments = read_segments(&store, &object.logs[0], 0, usize::MAX).await.unwrap();
            let epochs: Vec<u64> = segments.iter().map(|segment| segment.header().epoch.0).collect();
            assert!(epochs.is_sorted_by(|a, b| a < b), "each segment has its owner's epoch: {epochs:?}");
        }
        first.close().await;
        second.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn consumers_and_readers_outlive_the_loss_of_a_shard() {
    let (store, _, clock) = faulty(1);
    let (first, stream, queue) = open_both(&store, clock, 1).await;
    let mut consumer = TestConsumer::attach(&first, &queue, 1, 10).await;
    let mut reader = reader(&first, &stream, Start::Earliest).await;
    publish(&first, clock, "a", "a").await.unwrap();
    assert_eq!(text(&consumer.next().await), "a");
    let (second, ..) = open_both(&store, clock, 2).await;
    publish(&second, clock, "a", "b").await.unwrap();
    second.close().await;
    publish(&first, clock, "a", "never").await.unwrap_err();
    // What the consumer held comes again, as after a restart, and what the other pod took in follows.
    for expected in ["a", "b"] {
        let delivery = consumer.next().await;
        assert_eq!((text(&delivery).as_str(), delivery.delivery_count), (expected, 1));
        consumer.ack(&first, &delivery).await;
    }
    let mut read = Vec::new();
    while read.len() < 2 {
        for (_, record) in reader.next().await.unwrap().records {
            read.push(record.message.payload.clone());
        }
    }
    assert_eq!(read, ["a", "b"]);
    assert_eq!(depth(&first, &queue).await, 0);
    first.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_to_publishers_and_over_for_consumers_when_it_is_over() {
    let (store, faults, clock) = faulty(1);
    let (core, _, queue) = open_both(&store, clock, 1).await;
    publish(&core, clock, "a", "before").await.unwrap();
    let mut consumer = TestConsumer::attach(&core, &queue, 1, 10).await;
    let delivery = consumer.next().await;
    faults.unavailable(true);
    consumer.ack(&core, &delivery).await;
    for _ in 0..30 {
        publish(&core, clock, "a", "during").await.unwrap_err();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    faults.unavailable(false);
    publish(&core, clock, "a", "after").await.unwrap();
    assert_eq!(text(&consumer.next().await), "after");
    assert_eq!(depth(&core, &queue).await, 1, "the acknowledgement waited for the store");
    faults.unavailable(true);
    consumer.settle(&core, &delivery, weir_core::queue::Verdict::Rejected).await;
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_repeated_publish_is_appended_once_even_before_the_first_is_durable() {
    let (store, faults, clock) = faulty(1);
    let (core, stream, _) = open_both(&store, clock, 1).await;
    publish(&core, clock, "a", "first").await.unwrap();
    let record = message(clock, "a", "once");
    let targets = core.targets(&record.topic);
    let id = PublishId([7; 16]);
    let publisher = Publisher::default();
    for fault in [None, Some(CommitFault::SettledLost), Some(CommitFault::Stalled(Duration::from_secs(1)))] {
        if let Some(fault) = fault {
            faults.fail_next_commit(fault.clone());
            faults.fail_next_commit(fault);
        }
        let mut receipts = Vec::new();
        for repeat in [false, true, true] {
            // The original is only sent once; later rounds are repeats after the fact.
            let repeat = repeat || contents(&store, &stream).await.len() > 1;
            receipts.push(core.append(&targets, &record, &publisher, Some((id, repeat))).await.unwrap());
        }
        for receipt in receipts {
            assert!(receipt.settled().await.is_empty());
        }
        assert_eq!(contents(&store, &stream).await, ["first", "once"]);
    }
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn one_message_too_large_for_a_segment_is_refused_alone() {
    let (store, _, clock) = faulty(1);
    let (core, stream, _) = open_both(&store, clock, 1).await;
    let mut huge = message(clock, "a", "huge");
    huge.properties.user = vec![("k".into(), "v".repeat(100_000).into())];
    let mut large = message(clock, "a", &"p".repeat(60_000));
    large.properties.user = vec![("k".into(), "v".repeat(60_000).into())];
    let targets = core.targets(&huge.topic);
    let mut receipts = Vec::new();
    for record in [&message(clock, "a", "small"), &huge, &large] {
        receipts.push(core.append(&targets, record, &Publisher::default(), None).await.unwrap());
    }
    let failures: Vec<usize> =
        join_all(receipts.into_iter().map(|receipt| async { receipt.settled().await.len() })).await;
    assert_eq!(failures, [0, 2, 0]);
    let mut reader = reader(&core, &stream, Start::Earliest).await;
    let mut sizes = Vec::new();
    while sizes.len() < 2 {
        sizes.extend(
            reader.next().await.unwrap().records.iter().map(|(_, record)| record.message.payload.len()),
        );
    }
    assert_eq!(sizes, [5, 60_000]);
    core.close().await;
}

/// The epoch of the owner of the only log of `object`.
async fn epoch(store: &SharedStore, object: &Object) -> u64 {
    let mut tx = store.begin();
    let stored = tx.get(&Owner::key(object.logs[0].vs), Isolation::Snapshot).await.unwrap();
    Owner::decode(stored.unwrap()).unwrap().epoch.0
}

#[tokio::test(start_paused = true)]
async fn a_lost_shard_is_taken_over_again_also_if_nobody_consumes() {
    let (store, _, clock) = faulty(1);
    let (first, _, queue) = open_both(&store, clock, 1).await;
    publish(&first, clock, "a", "a").await.unwrap();
    let (second, ..) = open_both(&store, clock, 2).await;
    publish(&second, clock, "a", "b").await.unwrap();
    second.close().await;
    let before = epoch(&store, &queue).await;
    publish(&first, clock, "a", "never").await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(epoch(&store, &queue).await, before + 1);
    first.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_counts_while_the_shard_is_lost() {
    let (store, _, clock) = faulty(1);
    let (first, _, queue) = open_both(&store, clock, 1).await;
    let mut consumer = TestConsumer::attach(&first, &queue, 1, 10).await;
    publish(&first, clock, "a", "a").await.unwrap();
    publish(&first, clock, "a", "b").await.unwrap();
    let held = consumer.next().await;
    assert_eq!(text(&consumer.next().await), "b");
    let (second, ..) = open_both(&store, clock, 2).await;
    publish(&second, clock, "a", "c").await.unwrap();
    second.close().await;
    publish(&first, clock, "a", "never").await.unwrap_err();
    consumer.ack(&first, &held).await;
    for expected in ["b", "c"] {
        let delivery = consumer.next().await;
        assert_eq!(text(&delivery), expected);
        consumer.ack(&first, &delivery).await;
    }
    assert_eq!(depth(&first, &queue).await, 0);
    first.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_acknowledgement_that_waits_for_another_try_is_stored_at_the_end() {
    let (store, faults, clock) = faulty(1);
    let (core, _, queue) = open_both(&store, clock, 1).await;
    publish(&core, clock, "a", "a").await.unwrap();
    let mut consumer = TestConsumer::attach(&core, &queue, 1, 10).await;
    let delivery = consumer.next().await;
    faults.fail_next_commit(CommitFault::Refused(weir_storage::Error::Unavailable("x".into())));
    consumer.ack(&core, &delivery).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    core.close().await;
    let (core, _, queue) = open_both(&store, clock, 2).await;
    assert_eq!(depth(&core, &queue).await, 0);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_changed_is_told_though_nobody_knew_whether_it_was_stored() {
    let (store, faults, clock) = faulty(1);
    let (core, ..) = open_both(&store, clock, 1).await;
    let mut changed = definition(Kind::Queue, "q", "a", 1);
    changed.retention.max_messages = 7;
    let fresh = definition(Kind::Queue, "r", "b", 1);
    faults.fail_next_commit(CommitFault::SettledCommitted);
    core.apply(&[changed.clone(), fresh.clone()]).await.unwrap_err();
    let applied = core.apply(&[changed, fresh]).await.unwrap();
    let names = |objects: &[Arc<Object>]| -> Vec<String> {
        objects.iter().map(|object| object.definition.name.clone()).collect()
    };
    assert_eq!((names(&applied.created), names(&applied.updated)), (vec!["r".into()], vec!["q".into()]));
    assert_eq!(applied.orphaned, ["s"]);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_log_of_many_segments_is_cut_as_fast_as_cuts_are_stored() {
    let (store, _, clock) = faulty(1);
    let (core, _, queue) = open_both(&store, clock, 1).await;
    let mut consumer = TestConsumer::attach(&core, &queue, 1, 10).await;
    core.pause("q", true).await.unwrap();
    for _ in 0..2_500 {
        publish(&core, clock, "a", "x").await.unwrap();
    }
    assert_eq!(read_segments(&store, &queue.logs[0], 0, usize::MAX).await.unwrap().len(), 2_500);
    core.pause("q", false).await.unwrap();
    for _ in 0..2_500 {
        let delivery = consumer.next().await;
        consumer.ack(&core, &delivery).await;
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let left = read_segments(&store, &queue.logs[0], 0, usize::MAX).await.unwrap().len();
    assert!(left <= 1, "{left}");
    core.close().await;
}
