//! What publishers ask of a queue: idempotent publishes, priorities, delays.

use std::sync::Arc;
use std::time::Duration;

use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::{Definition, Kind, Ordering};
use weir_core::key::Publisher;
use weir_core::metrics::Metrics;
use weir_core::shard::AppendError;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{CommitFault, FaultStore, SharedStore};

use crate::support::{TestConsumer, definition, memory, message, text};

pub(crate) struct Bench {
    pub(crate) core: Core,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) queue: Arc<Object>,
}

impl Bench {
    /// A broker's core over `store`, with the queue `q`.
    pub(crate) async fn open(store: &SharedStore, clock: Clock, definition: &Definition, seed: u64) -> Self {
        let metrics = Metrics::default();
        let core = Core::open(Arc::clone(store), clock, &Seed::fixed(seed), metrics.clone()).await.unwrap();
        core.apply(std::slice::from_ref(definition)).await.unwrap();
        let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
        Self { core, clock, metrics, queue }
    }

    pub(crate) async fn publish(
        &self,
        topic: &str,
        payload: &str,
        properties: &[(&str, &str)],
    ) -> Result<(), AppendError> {
        let mut message = message(self.clock, topic, payload);
        message.properties.user =
            properties.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let targets = self.core.targets(&message.topic);
        let receipt = self.core.append(&targets, &message, &Publisher::default(), None).await?;
        receipt.settled().await.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }

    pub(crate) async fn depth(&self) -> u64 {
        let reports = self.core.describe(&self.queue).await.unwrap();
        reports.iter().map(|report| report.queue.as_ref().unwrap().depth).sum()
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_of_one_id_is_stored_once_within_the_window_and_over_restarts() {
    let (store, clock) = memory();
    let q = definition(Kind::Queue, "q", "a/#", 4);
    let bench = Bench::open(&store, clock, &q, 1).await;
    let (one, two) = ([("queue-dedup-id", "one")], [("queue-dedup-id", "two")]);
    bench.publish("a/1", "1", &one).await.unwrap();
    // The same queue, whatever the topic and the shard it would go to.
    for topic in ["a/1", "a/2", "a/3", "a/4"] {
        bench.publish(topic, "1 again", &one).await.unwrap();
    }
    bench.publish("a/2", "2", &two).await.unwrap();
    bench.publish("a/1", "3", &[]).await.unwrap();
    assert_eq!((bench.depth().await, bench.metrics.duplicates.get()), (3, 4));
    assert_eq!(bench.metrics.dedup_ids.get(), 2);
    bench.core.close().await;

    tokio::time::sleep(Duration::from_secs(110)).await;
    let bench = Bench::open(&store, clock, &q, 2).await;
    bench.publish("a/9", "1 after a restart", &one).await.unwrap();
    assert_eq!((bench.depth().await, bench.metrics.duplicates.get()), (3, 1));
    tokio::time::sleep(Duration::from_secs(10)).await;
    bench.publish("a/1", "1 after the window", &one).await.unwrap();
    assert_eq!((bench.depth().await, bench.metrics.duplicates.get()), (4, 1));
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_of_ids_is_cleared_after_the_window() {
    use weir_core::keyspace::record::RecordKind;

    let (store, clock) = memory();
    let bench = Bench::open(&store, clock, &definition(Kind::Queue, "q", "a", 1), 1).await;
    let rows = async || {
        let counts = weir_core::inspect::count(&*store).await.unwrap();
        counts.iter().find(|(kind, _)| *kind == RecordKind::Dedup).unwrap().1.records
    };
    bench.publish("a", "1", &[("queue-dedup-id", "one")]).await.unwrap();
    bench.publish("a", "2", &[("queue-dedup-id", "two")]).await.unwrap();
    assert_eq!(rows().await, 2);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!((rows().await, bench.metrics.dedup_ids.get()), (0, 0));
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_id_whose_message_was_not_stored_does_not_count() {
    let (store, clock) = memory();
    let faults = FaultStore::wrap(store, Seed::fixed(1));
    let handle = faults.handle();
    let store: SharedStore = Arc::new(faults);
    let bench = Bench::open(&store, clock, &definition(Kind::Queue, "q", "a", 1), 1).await;
    let id = [("queue-dedup-id", "one")];
    bench.publish("a", "0", &[]).await.unwrap();
    let error = weir_storage::Error::Unavailable("no disk".into());
    handle.fail_next_commit(CommitFault::Refused(error));
    let (first, second) = tokio::join!(bench.publish("a", "1", &id), bench.publish("a", "2", &id));
    assert!(matches!(first, Err(AppendError::Failed(_))), "{first:?}");
    second.unwrap();
    assert_eq!((bench.depth().await, bench.metrics.duplicates.get()), (2, 0));
    bench.publish("a", "3", &id).await.unwrap();
    assert_eq!((bench.depth().await, bench.metrics.duplicates.get()), (2, 1));
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn ids_of_a_queue_ordered_by_key_do_not_take_keys_apart() {
    let (store, clock) = memory();
    let mut q = definition(Kind::Queue, "q", "a/#", 8);
    q.queue.ordering = Ordering::Key;
    let bench = Bench::open(&store, clock, &q, 1).await;
    for n in 0..20 {
        bench.publish("a/1", "m", &[("queue-dedup-id", &n.to_string())]).await.unwrap();
    }
    bench.publish("a/1", "m", &[("queue-dedup-id", "7")]).await.unwrap();
    let reports = bench.core.describe(&bench.queue).await.unwrap();
    let depths: Vec<u64> = reports.iter().map(|report| report.queue.as_ref().unwrap().depth).collect();
    assert_eq!(depths.iter().filter(|depth| **depth > 0).count(), 1, "{depths:?}");
    assert_eq!(bench.depth().await, 20);
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_followed_is_refused_and_properties_stay_on_the_message() {
    let (store, clock) = memory();
    let mut q = definition(Kind::Queue, "q", "a", 1);
    let bench = Bench::open(&store, clock, &q, 1).await;
    let long = "x".repeat(257);
    for (name, value, what) in [
        ("queue-delay", "soon", "queue-delay \"soon\" is not a delay; allowed: milliseconds, or"),
        ("queue-priority", "12", "queue-priority \"12\" is not a priority; allowed: 0 to 9"),
        ("queue-dedup-id", long.as_str(), "queue-dedup-id has 257 bytes; allowed: 1 to 256"),
    ] {
        let error = bench.publish("a", "m", &[(name, value)]).await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("q refuses the message: {what}")), "{error}");
    }
    assert_eq!(bench.depth().await, 0);
    // A queue that does not allow them leaves them alone.
    (q.queue.controls.delay, q.queue.controls.priority, q.queue.controls.dedup) = (false, false, false);
    bench.core.apply(&[q]).await.unwrap();
    let properties = [("queue-delay", "soon"), ("queue-priority", "12"), ("queue-dedup-id", "")];
    bench.publish("a", "m", &properties).await.unwrap();
    let mut consumer = TestConsumer::attach(&bench.core, &bench.queue, 1, 10).await;
    let delivery = consumer.next().await;
    let user = &delivery.record.message.properties.user;
    let user: Vec<(&str, &str)> = user.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!((text(&delivery), user), ("m".into(), properties.to_vec()));
    bench.core.close().await;
}
