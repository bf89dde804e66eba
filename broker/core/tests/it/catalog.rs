//! Queues and streams come, change and go: by sets of manifests, and one by one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use weir_core::Core;
use weir_core::catalog::{ApplyError, ChangeError, Deleted, OBJECTS_MAX, Object, Origin};
use weir_core::definition::{Definition, Kind, Strategy};
use weir_core::inspect;
use weir_core::key::Publisher;
use weir_core::keyspace::record::RecordKind;
use weir_core::queue::Verdict;
use weir_core::shard::{AppendError, QueueReport};
use weir_env::clock::{Clock, Timestamp};
use weir_storage::SharedStore;

use crate::support::{TestConsumer, definition, memory, message, open, publish, text};

fn queue(name: &str, filter: &str) -> Definition {
    definition(Kind::Queue, name, filter, 1)
}

fn find(core: &Core, name: &str) -> Option<Arc<Object>> {
    core.catalog().view().find(Kind::Queue, name)
}

async fn report(core: &Core, queue: &Arc<Object>) -> QueueReport {
    core.describe(queue).await.unwrap().remove(0).queue.unwrap()
}

/// Kinds of which there are records in the store.
async fn kinds(store: &SharedStore) -> Vec<RecordKind> {
    let counts = inspect::count(&**store).await.unwrap();
    counts.into_iter().filter(|(_, count)| count.records > 0).map(|(kind, _)| kind).collect()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ChangeError>) -> String {
    result.unwrap_err().to_string()
}

#[tokio::test(start_paused = true)]
async fn a_set_of_manifests_retires_only_what_a_set_has_declared() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.create(&queue("made", "a"), Origin::Admin).await.unwrap();
    core.create(&queue("came", "b"), Origin::Automatic).await.unwrap();
    core.apply(&[queue("declared", "c")]).await.unwrap();
    let applied = core.apply(&[]).await.unwrap();
    assert_eq!(applied.orphaned, ["declared"]);
    core.close().await;
    let core = open(&store, clock, 2).await;
    let origins =
        ["made", "came", "declared"].map(|name| find(&core, name).map(|object| object.origin.clone()));
    assert_eq!(origins, [Some(Origin::Admin), Some(Origin::Automatic), None]);

    // A manifest of the same namespace and name takes it over, another one may not have its name.
    let mut other = queue("came", "b");
    other.namespace = "elsewhere".into();
    let refused = core.apply(&[other]).await.unwrap_err().to_string();
    assert!(refused.contains("NameConflict") && refused.contains("by a subscription"), "{refused}");
    let refused = core.apply(&[queue("came", "other")]).await.unwrap_err();
    assert!(matches!(&refused, ApplyError::Invalid { problem, .. } if problem.contains("ImmutableMismatch")));
    let applied = core.apply(&[queue("came", "b")]).await.unwrap();
    assert_eq!((applied.created.len(), applied.updated.len()), (0, 1));
    let taken = find(&core, "came").unwrap();
    assert_eq!((taken.origin.clone(), taken.generation), (Origin::Manifest, 2));
    // From then on it is the manifests' affair.
    let declared = "declared by the manifest of default/came";
    assert!(refusal(core.update(&queue("came", "b"), 2).await).contains(declared));
    assert!(refusal(core.delete(Kind::Queue, "came", None).await).contains(declared));
    assert_eq!(core.apply(&[]).await.unwrap().orphaned, ["came"]);
    assert!(find(&core, "made").is_some());
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn one_is_made_changed_and_deleted() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let made = core.create(&queue("q", "a"), Origin::Admin).await.unwrap();
    assert!(refusal(core.create(&queue("q", "a"), Origin::Admin).await).contains("exists already"));
    assert!(refusal(core.update(&queue("none", "a"), 1).await).contains("there is no MessageQueue `none`"));
    let mut change = queue("q", "a");
    change.retention.max_messages = 1;
    assert!(refusal(core.update(&change, 7).await).contains("has changed meanwhile"));
    let changed = core.update(&change, made.generation).await.unwrap();
    assert_eq!((changed.id, changed.generation), (made.id, 2));
    publish(&core, clock, "a", "0").await.unwrap();
    assert!(matches!(publish(&core, clock, "a", "1").await, Err(AppendError::Full { .. })));
    change.shards = 2;
    let refused = refusal(core.update(&change, 2).await);
    assert!(refused.contains("spec.retention.maxMessages: 1 for 2 shards"), "{refused}");
    change.retention.max_messages = 2;
    let refused = refusal(core.update(&change, 2).await);
    assert!(refused.contains("ImmutableMismatch: shards cannot change"), "{refused}");
    change.shards = 0;
    assert!(refusal(core.update(&change, 2).await).contains("spec.shards"));
    let deleted = core.delete(Kind::Queue, "q", None).await.unwrap();
    assert!(matches!(deleted, Deleted::Orphaned) && find(&core, "q").is_none());
    assert!(refusal(core.update(&queue("q", "a"), 3).await).contains("there is no"));
    // What an orphan holds can be deleted after all.
    let deleted = core.delete(Kind::Queue, "q", Some(true)).await.unwrap();
    assert!(matches!(deleted, Deleted::Removed(object) if object.id == made.id));
    assert!(refusal(core.delete(Kind::Queue, "q", None).await).contains("there is no"));
    let again = core.create(&queue("q", "other"), Origin::Admin).await.unwrap();
    assert!(again.id > made.id, "ids are not given twice");
    assert_eq!(report(&core, &again).await.depth, 0);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_leaves_nothing_though_the_process_ends_half_way() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let before = kinds(&store).await;
    let mut q = queue("q", "a/#");
    q.shards = 4;
    let object = core.create(&q, Origin::Admin).await.unwrap();
    for n in 0..20 {
        publish(&core, clock, &format!("a/{n}"), &"x".repeat(100_000)).await.unwrap();
    }
    core.close().await;
    let core = open(&store, clock, 2).await;
    // The name is free at once; the process ends before a record is removed.
    core.catalog().delete(Kind::Queue, "q", (Some(true), false), clock.wall()).await.unwrap();
    let again = core.create(&q, Origin::Admin).await.unwrap();
    publish(&core, clock, "a/0", "new").await.unwrap();
    core.close().await;
    let core = open(&store, clock, 3).await;
    assert_eq!(core.finish_deletions(Timestamp::from_micros(u64::MAX)).await.unwrap(), 1);
    assert_eq!(core.finish_deletions(Timestamp::from_micros(u64::MAX)).await.unwrap(), 0);
    assert_eq!(core.describe(&object).await.unwrap().iter().map(|log| log.extent.next).sum::<u64>(), 0);
    assert_eq!(core.describe(&again).await.unwrap().iter().map(|log| log.extent.next).sum::<u64>(), 1);
    core.delete(Kind::Queue, "q", Some(true)).await.unwrap();
    // Who did not know of it yet writes once more.
    let (message, publisher) = (message(clock, "a/0", "late"), Publisher::default());
    let late = core.append(&[again], &message, &publisher, None).await.unwrap();
    assert!(late.settled().await.is_empty());
    assert_eq!(core.finish_deletions(clock.wall()).await.unwrap(), 0, "too young");
    core.finish_deletions(Timestamp::from_micros(u64::MAX)).await.unwrap();
    core.close().await;
    let left: Vec<RecordKind> =
        kinds(&store).await.into_iter().filter(|kind| !before.contains(kind)).collect();
    // Fences of the shards, and the next catalog id.
    assert_eq!(left, [RecordKind::Catalog, RecordKind::Owner]);
}

#[tokio::test(start_paused = true)]
async fn an_orphan_takes_nothing_grows_old_and_is_taken_over_with_what_it_holds() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut q = queue("q", "a");
    q.retention.max_age_ms = 3_600_000;
    core.apply(&[q.clone(), queue("other", "a")]).await.unwrap();
    publish(&core, clock, "a", "0").await.unwrap();
    core.apply(&[queue("other", "a")]).await.unwrap();
    publish(&core, clock, "a", "1").await.unwrap();
    let mut different = q.clone();
    different.topic_filter = Some("b".into());
    let refused = refusal(core.create(&different, Origin::Admin).await);
    assert!(refused.contains("ImmutableMismatch: topicFilter"), "{refused}");
    let object = core.create(&q, Origin::Admin).await.unwrap();
    assert_eq!(report(&core, &object).await.depth, 1, "what was published meanwhile is not there");
    core.delete(Kind::Queue, "q", None).await.unwrap();
    core.close().await;

    let core = open(&store, clock, 2).await;
    core.age_orphans().await.unwrap();
    tokio::time::sleep(Duration::from_secs(7200)).await;
    let object = core.create(&q, Origin::Admin).await.unwrap();
    assert_eq!(report(&core, &object).await.depth, 0);
    core.close().await;
}

/// A core with a queue and a consumer of it, in which declarations change.
struct Running {
    core: Core,
    clock: Clock,
    object: Arc<Object>,
    consumer: TestConsumer,
}

impl Running {
    async fn new(first: Definition) -> Self {
        let (store, clock) = memory();
        let core = open(&store, clock, 1).await;
        let object = core.create(&first, Origin::Admin).await.unwrap();
        let consumer = TestConsumer::attach(&core, &object, 1, 10).await;
        Self { core, clock, object, consumer }
    }

    async fn change(&mut self, change: impl FnOnce(&mut Definition)) {
        let mut definition = self.object.definition.clone();
        change(&mut definition);
        self.object = self.core.update(&definition, self.object.generation).await.unwrap();
    }

    async fn publish(&self, payload: &str) -> Result<(), AppendError> {
        publish(&self.core, self.clock, "a", payload).await
    }
}

const HOUR_MS: u64 = 3_600_000;

#[tokio::test(start_paused = true)]
async fn a_changed_ack_timeout_holds_for_what_is_in_flight() {
    let mut q = queue("q", "a");
    q.dispatch.ack_timeout_ms = HOUR_MS;
    let mut run = Running::new(q).await;
    run.publish("x").await.unwrap();
    run.consumer.next().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    run.change(|q| q.dispatch.ack_timeout_ms = 12_000).await;
    let since = run.clock.now();
    assert_eq!(run.consumer.next().await.delivery_count, 2);
    let waited = run.clock.now() - since;
    // Two seconds of the time-out were left, then comes the backoff of one.
    assert!((Duration::from_secs(3)..Duration::from_secs(4)).contains(&waited), "{waited:?}");
    run.change(|q| q.dispatch.ack_timeout_ms = HOUR_MS).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    run.consumer.nothing().await;
    run.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_shorter_backoff_holds_for_what_waits() {
    let mut q = queue("q", "a");
    q.dispatch.backoff_initial_ms = HOUR_MS;
    q.dispatch.backoff_max_ms = HOUR_MS;
    let mut run = Running::new(q).await;
    run.publish("x").await.unwrap();
    let delivery = run.consumer.next().await;
    run.consumer.settle(&run.core, &delivery, Verdict::Rejected).await;
    run.consumer.nothing().await;
    run.change(|q| q.dispatch.backoff_max_ms = 1000).await;
    let since = run.clock.now();
    assert_eq!(run.consumer.next().await.delivery_count, 2);
    assert!(run.clock.now() - since < Duration::from_secs(2));
    run.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn fewer_deliveries_hold_from_the_next_failure_on() {
    let mut run = Running::new(queue("q", "a")).await;
    run.publish("x").await.unwrap();
    let delivery = run.consumer.next().await;
    run.change(|q| q.dispatch.max_deliveries = 1).await;
    run.consumer.settle(&run.core, &delivery, Verdict::Rejected).await;
    run.consumer.nothing().await;
    let report = report(&run.core, &run.object).await;
    assert_eq!((report.depth, report.counters.exhausted), (0, 1));
    run.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn another_strategy_holds_at_once() {
    let mut run = Running::new(queue("q", "a")).await;
    for payload in ["0", "1", "2"] {
        run.publish(payload).await.unwrap();
        run.consumer.next().await;
    }
    let mut other = TestConsumer::attach(&run.core, &run.object, 2, 10).await;
    run.publish("3").await.unwrap();
    assert_eq!(text(&other.next().await), "3", "it holds fewer");
    run.change(|q| q.dispatch.strategy = Strategy::RoundRobin).await;
    for payload in ["4", "5"] {
        run.publish(payload).await.unwrap();
    }
    let mut got = [text(&run.consumer.next().await), text(&other.next().await)];
    got.sort();
    assert_eq!(got, ["4", "5"]);
    run.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn other_limits_hold_at_once() {
    let mut run = Running::new(queue("q", "a")).await;
    run.publish("0").await.unwrap();
    run.change(|q| q.retention.max_messages = 1).await;
    assert!(matches!(run.publish("1").await, Err(AppendError::Full { .. })));
    run.change(|q| q.retention.max_messages = 2).await;
    run.publish("1").await.unwrap();
    run.change(|q| (q.retention.max_messages, q.retention.max_bytes) = (0, 1)).await;
    assert!(matches!(run.publish("2").await, Err(AppendError::Full { .. })));
    run.change(|q| q.retention.max_bytes = 0).await;
    run.publish("2").await.unwrap();
    assert_eq!(report(&run.core, &run.object).await.depth, 3);
    run.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn another_age_holds_for_what_is_stored() {
    let mut run = Running::new(queue("q", "a")).await;
    run.core.detach(&run.object, run.consumer.consumer.id, weir_core::queue::Lost::Left).await.unwrap();
    run.publish("x").await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(report(&run.core, &run.object).await.depth, 1);
    run.change(|q| q.retention.max_age_ms = HOUR_MS / 2).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let report = report(&run.core, &run.object).await;
    assert_eq!((report.depth, report.counters.expired), (0, 1));
    run.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn another_key_is_that_of_later_messages() {
    let mut run = Running::new(queue("q", "a")).await;
    run.publish("0").await.unwrap();
    run.change(|q| q.key = Some("message.topic".into())).await;
    run.publish("1").await.unwrap();
    let keys = [run.consumer.next().await, run.consumer.next().await]
        .map(|delivery| delivery.record.key_bytes().map(<[u8]>::to_vec));
    assert_eq!(keys, [None, Some(b"a".to_vec())]);
    run.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn queues_and_streams_are_bounded() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut definitions: Vec<Definition> =
        (0..=OBJECTS_MAX).map(|n| queue(&format!("q{n}"), &format!("t/{n}"))).collect();
    let refused = core.apply(&definitions).await.unwrap_err().to_string();
    assert!(refused.contains("10000 queues and streams at most"), "{refused}");
    assert!(find(&core, "q0").is_none());
    let [beyond, last] = [(); 2].map(|()| definitions.pop().unwrap());
    // One transaction does not take all of them.
    assert_eq!(core.apply(&definitions).await.unwrap().created.len(), OBJECTS_MAX - 1);
    assert!(core.apply(&definitions).await.unwrap().is_empty());
    let ids: BTreeSet<u32> = core.catalog().stored().await.iter().map(|(_, object)| object.id).collect();
    assert_eq!(ids.len(), OBJECTS_MAX - 1);
    core.create(&last, Origin::Automatic).await.unwrap();
    let refused = refusal(core.create(&beyond, Origin::Admin).await);
    assert!(refused.contains("10000 queues and streams at most"), "{refused}");
    core.delete(Kind::Queue, &last.name, Some(true)).await.unwrap();
    core.create(&beyond, Origin::Admin).await.unwrap();
    // Nor do they leave in one.
    assert_eq!(core.apply(&[]).await.unwrap().orphaned.len(), OBJECTS_MAX - 1);
}
