use std::path::Path;
use std::time::Duration;

use weir_core::definition::{
    Controls, DeadLetterTarget, Definition, Ordering, Overflow, QueueSettings, Strategy,
};
use weir_core::metrics::Metrics;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{FaultHandle, FaultStore, MemoryStore};

use super::*;

const QUEUE: &str = "\
apiVersion: weir.dev/v1alpha1
kind: MessageQueue
metadata: { name: traffic, namespace: city }
spec:
  topicFilter: sensor/+/data
";

const STREAM: &str = "\
apiVersion: weir.dev/v1alpha1
kind: Stream
metadata: { name: telemetry }
spec:
  topicFilter: vehicle/+/telemetry
";

/// A folder of manifests, and a core on a store that fails on request.
struct Bench {
    dir: tempfile::TempDir,
    core: Arc<Core>,
    auto_create: Arc<AutoCreate>,
    faults: FaultHandle,
}

impl Bench {
    async fn new() -> Self {
        let clock = Clock::system();
        let store = FaultStore::wrap(Arc::new(MemoryStore::new(clock)), Seed::fixed(1));
        let faults = store.handle();
        let core = Core::open(Arc::new(store), clock, &Seed::fixed(2), Metrics::default()).await.unwrap();
        let auto_create = Arc::new(AutoCreate::new(Policy { wait: true, templates: Vec::new() }, 10));
        Self { dir: tempfile::tempdir().unwrap(), core: Arc::new(core), auto_create, faults }
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.dir.path().join(file), text).unwrap();
    }

    fn watcher(&self) -> Watcher {
        Watcher::new(self.dir.path(), Duration::from_secs(1))
    }

    fn follower(&self) -> Follower {
        let (core, auto_create) = (Arc::clone(&self.core), Arc::clone(&self.auto_create));
        Follower { core, auto_create, watcher: self.watcher(), waiting: None }
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        self.core.catalog().view().find(kind, name).is_some()
    }
}

/// Steps until the folder's change has settled: a change is taken once two looks have seen the same.
async fn change(follower: &mut Follower) -> Step {
    assert!(matches!(follower.step().await, Step::Unchanged), "the first look at a change waits for another");
    follower.step().await
}

fn created(step: &Step) -> Vec<String> {
    match step {
        Step::Applied(_, applied) => applied.created.iter().map(|object| label(object)).collect(),
        other => panic!("{other:?}"),
    }
}

fn problems(step: &Step) -> &[String] {
    match step {
        Step::Refused(problems) => problems,
        other => panic!("{other:?}"),
    }
}

fn read(dir: &Path) -> ManifestSet {
    weir_manifest::load(dir).unwrap()
}

fn converted(text: &str) -> Result<Vec<Definition>, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("m.yaml"), text).unwrap();
    definitions(&read(dir.path()))
}

#[test]
fn defaults_are_those_of_the_core() {
    let converted = converted(&format!("{QUEUE}---\n{STREAM}")).unwrap();
    let [queue, stream] = &converted[..] else { panic!("{converted:?}") };
    assert_eq!((queue.kind, queue.name.as_str(), queue.shards), (Kind::Queue, "traffic", 1));
    assert_eq!((queue.namespace.as_str(), queue.object.as_str()), ("city", "traffic"));
    assert_eq!(queue.topic_filter.as_deref(), Some("sensor/+/data"));
    assert_eq!(queue.dispatch, weir_core::definition::DispatchSettings::default());
    assert_eq!(queue.queue, QueueSettings::default());
    assert_eq!(queue.retention.max_bytes, 10 << 30);
    assert_eq!((stream.kind, stream.name.as_str()), (Kind::Stream, "telemetry"));
    assert_eq!(stream.retention.max_age_ms, 168 * 3_600_000);
    assert!(!queue.delete_data && !stream.delete_data);
}

#[test]
fn every_setting_arrives() {
    let text = "\
apiVersion: weir.dev/v1alpha1
kind: MessageQueue
metadata: { name: object }
spec:
  brokerRef: { name: main }
  topicFilter: a
  queueName: name
  shards: 4
  ordering: key
  key: message.clientId
  dispatch: { strategy: roundRobin, maxInflightPerConsumer: 7 }
  ackTimeout: 5s
  maxDeliveries: 3
  retryBackoff: { initial: 2s, max: 8s, factor: 3 }
  retention: { maxAge: 1h, maxBytes: 1Ki, maxMessages: 9, overflow: DropOldest }
  dedup: { window: 3m }
  publisherControls: [dedup]
  deadLetter: { queueRef: { name: dead } }
  deletionPolicy: Delete
---
apiVersion: weir.dev/v1alpha1
kind: Stream
metadata: { name: object }
spec:
  topicFilter: b
  streamName: name
  shards: 2
  key: message.userProperties[\"k\"]
  retention: { maxAge: 2h, maxBytes: 2Ki, maxMessages: 8 }
  groups: { expireAfter: 1h }
  deletionPolicy: Delete
";
    let converted = converted(text).unwrap();
    let [queue, stream] = &converted[..] else { panic!("{converted:?}") };
    assert_eq!((queue.name.as_str(), queue.object.as_str(), queue.shards), ("name", "object", 4));
    assert_eq!(queue.key.as_deref(), Some("message.clientId"));
    let dispatch = &queue.dispatch;
    assert_eq!((dispatch.strategy, dispatch.max_inflight_per_consumer), (Strategy::RoundRobin, 7));
    assert_eq!((dispatch.ack_timeout_ms, dispatch.max_deliveries), (5000, 3));
    let backoff = (dispatch.backoff_initial_ms, dispatch.backoff_max_ms, dispatch.backoff_factor_percent);
    assert_eq!(backoff, (2000, 8000, 300));
    let expected = QueueSettings {
        ordering: Ordering::Key,
        overflow: Overflow::DropOldest,
        dead_letter: Some(DeadLetterTarget::Object("dead".into())),
        dedup_window_ms: 180_000,
        controls: Controls { delay: false, priority: false, dedup: true },
    };
    assert_eq!(queue.queue, expected);
    let kept = |d: &Definition| (d.retention.max_age_ms, d.retention.max_bytes, d.retention.max_messages);
    assert_eq!((kept(queue), queue.delete_data), ((3_600_000, 1024, 9), true));
    assert_eq!((stream.name.as_str(), stream.shards), ("name", 2));
    assert_eq!(stream.key.as_deref(), Some("message.userProperties[\"k\"]"));
    assert_eq!((kept(stream), stream.delete_data), ((7_200_000, 2048, 8), true));
    assert_eq!((stream.group_expiry_ms, queue.group_expiry_ms), (3_600_000, 0));
}

#[test]
fn keys_that_cannot_be_are_refused() {
    for manifest in [QUEUE, STREAM] {
        let of_key = |key: &str| converted(&format!("{manifest}  key: {key:?}\n"));
        assert!(of_key("message.json.id + '/' + string(size(message.payload))").is_ok());
        for (key, problem) in [
            ("message.json.id.matches('a')", "`matches` is not allowed; allowed are "),
            ("message.body", "`message.body` is unknown; use one of message.topic, "),
            ("message.json.id +", "it is not in CEL: "),
        ] {
            let lines = of_key(key).unwrap_err();
            let expected = format!("spec.key: `{key}` cannot be a key: {problem}");
            assert!(lines.len() == 1 && lines[0].contains(&expected), "{lines:?}");
        }
    }
}

#[tokio::test]
async fn the_start_applies_all_or_tells_every_problem() {
    let bench = Bench::new().await;
    bench.write("a.yaml", &format!("{QUEUE}  key: a.b\n"));
    bench.write("b.yaml", &format!("{STREAM}  key: a.b\n"));
    let error =
        load_and_apply(&bench.core, &bench.auto_create, &mut bench.watcher()).await.unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("manifests in {} are refused:\n", bench.dir.path().display())),
        "{error}"
    );
    assert!(
        error.contains("\n  a.yaml:1: spec.key: ") && error.contains("\n  b.yaml:1: spec.key: "),
        "{error}"
    );
    assert!(!bench.has(Kind::Stream, "telemetry"), "a part was applied");

    bench.write("a.yaml", QUEUE);
    bench.write("b.yaml", STREAM);
    load_and_apply(&bench.core, &bench.auto_create, &mut bench.watcher()).await.unwrap();
    assert!(bench.has(Kind::Queue, "traffic") && bench.has(Kind::Stream, "telemetry"));

    bench.write("a.yaml", "spec: [");
    let error =
        load_and_apply(&bench.core, &bench.auto_create, &mut bench.watcher()).await.unwrap_err().to_string();
    assert!(error.contains("\n  a.yaml:") && error.contains("not YAML"), "{error}");

    let mut missing = Watcher::new(bench.dir.path().join("missing"), Duration::from_secs(1));
    let error = load_and_apply(&bench.core, &bench.auto_create, &mut missing).await.unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
    bench.core.close().await;
}

#[tokio::test]
async fn what_the_catalog_refuses_is_told_with_its_place() {
    let bench = Bench::new().await;
    bench.write("a.yaml", &format!("{STREAM}---\n{QUEUE}"));
    load_and_apply(&bench.core, &bench.auto_create, &mut bench.watcher()).await.unwrap();
    bench.write("a.yaml", &format!("{STREAM}---\n{QUEUE}  shards: 2\n"));
    let error =
        load_and_apply(&bench.core, &bench.auto_create, &mut bench.watcher()).await.unwrap_err().to_string();
    assert!(
        error.contains("\n  a.yaml:7: spec.shards: ImmutableMismatch: shards cannot change from 1 to 2"),
        "{error}"
    );
    bench.core.close().await;
}

#[tokio::test]
async fn changes_are_followed_and_broken_ones_keep_what_was() {
    let bench = Bench::new().await;
    bench.write("a.yaml", QUEUE);
    let mut follower = bench.follower();
    load_and_apply(&bench.core, &bench.auto_create, &mut follower.watcher).await.unwrap();
    assert!(matches!(follower.step().await, Step::Unchanged), "the start is not applied again");

    bench.write("b.yaml", STREAM);
    assert_eq!(created(&change(&mut follower).await), ["$stream/telemetry"]);

    bench.write("a.yaml", &QUEUE.replace("topicFilter", "topicFitler"));
    let step = change(&mut follower).await;
    assert!(problems(&step)[0].starts_with("a.yaml:"), "{step:?}");
    assert!(bench.has(Kind::Queue, "traffic"), "a broken edit removed a queue");
    assert!(matches!(follower.step().await, Step::Unchanged), "a problem is told once");

    bench.write("a.yaml", &format!("{QUEUE}  lastValue: true\n"));
    assert_eq!(problems(&change(&mut follower).await).len(), 1);
    assert!(matches!(follower.step().await, Step::Unchanged), "a problem is told once");

    bench.write("a.yaml", &format!("{QUEUE}  ackTimeout: 5s\n"));
    let Step::Applied(_, applied) = change(&mut follower).await else { panic!("not applied") };
    assert_eq!((applied.created.len(), applied.updated.len()), (0, 1));

    bench.write("b.yaml", "");
    let Step::Applied(_, applied) = change(&mut follower).await else { panic!("not applied") };
    assert_eq!(applied.orphaned, ["telemetry"]);
    assert!(!bench.has(Kind::Stream, "telemetry"));
    bench.core.close().await;
}

#[tokio::test]
async fn a_change_waits_for_the_store() {
    let bench = Bench::new().await;
    let mut follower = bench.follower();
    bench.write("a.yaml", QUEUE);
    bench.faults.unavailable(true);
    assert!(matches!(follower.step().await, Step::Waiting { is_new: true, .. }));
    assert!(matches!(follower.step().await, Step::Waiting { is_new: false, .. }));

    bench.write("a.yaml", "spec: [");
    assert!(matches!(follower.step().await, Step::Waiting { is_new: false, .. }));
    assert_eq!(problems(&follower.step().await).len(), 1);
    bench.faults.heal();
    assert_eq!(created(&follower.step().await), ["$queue/traffic"], "the last good state is not lost");
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_loop_applies_a_change_and_ends_at_shutdown() {
    let bench = Bench::new().await;
    let shutdown = CancellationToken::new();
    let tasks = tokio_util::task::TaskTracker::new();
    let mut changes = bench.core.catalog().changes();
    changes.mark_unchanged();
    let auto_create = Arc::clone(&bench.auto_create);
    tasks.spawn(follow(Arc::clone(&bench.core), auto_create, bench.watcher(), shutdown.clone()));
    // An empty folder at first, which is a state of its own.
    changes.changed().await.unwrap();
    bench.write("a.yaml", QUEUE);
    changes.changed().await.unwrap();
    assert!(bench.has(Kind::Queue, "traffic"));
    shutdown.cancel();
    tasks.close();
    tasks.wait().await;
    bench.core.close().await;
}

#[test]
fn many_names_are_cut_short() {
    let all: Vec<String> = (0..25).map(|n| n.to_string()).collect();
    assert!(names(all.into_iter()).ends_with(", 18, 19 and 5 more"));
    assert_eq!(names(Vec::new().into_iter()), "");
}

const BROKER: &str = "\
apiVersion: weir.dev/v1alpha1
kind: Broker
metadata: { name: main, namespace: city }
spec:
  store: { embedded: { storage: 1Gi } }
  waitForQueue: false
  autoCreate:
    queues:
    - { namePattern: \"auto-*\", spec: { shards: 3, deadLetter: { queueRef: { name: dead } } } }
    streams:
    - namePattern: log
";

#[tokio::test]
async fn what_subscriptions_create_follows_the_broker_of_the_folder() {
    let bench = Bench::new().await;
    let mut follower = bench.follower();
    bench.write("broker.yaml", BROKER);
    load_and_apply(&bench.core, &bench.auto_create, &mut follower.watcher).await.unwrap();
    let policy = bench.auto_create.policy();
    assert!(!policy.wait);
    let queue = policy.definition(Kind::Queue, "auto-x", "a/#").unwrap();
    assert_eq!((queue.name.as_str(), queue.object.as_str(), queue.shards), ("auto-x", "auto-x", 3));
    assert_eq!(queue.topic_filter.as_deref(), Some("a/#"));
    // References are to the Broker's namespace.
    assert_eq!(queue.namespace, "city");
    assert_eq!(queue.queue.dead_letter, Some(DeadLetterTarget::Object("dead".into())));
    assert!(policy.definition(Kind::Stream, "log", "a").is_some());
    assert!(policy.definition(Kind::Stream, "auto-x", "a").is_none());
    assert!(policy.definition(Kind::Queue, "other", "a").is_none());

    // One that is bad changes nothing, and says where.
    bench.write(
        "broker.yaml",
        &BROKER.replace("namePattern: log", "{ namePattern: log, spec: { key: a.b } }"),
    );
    let step = change(&mut follower).await;
    let [problem] = problems(&step) else { panic!("{step:?}") };
    assert!(problem.contains("broker.yaml:1: spec.autoCreate.streams[0].spec.key"), "{problem}");
    assert_eq!(*bench.auto_create.policy(), *policy);
    bench.write("broker.yaml", &BROKER.replace("namePattern: log", "namePattern: \"-log\""));
    let step = change(&mut follower).await;
    let [problem] = problems(&step) else { panic!("{step:?}") };
    assert!(problem.contains(": spec.autoCreate.streams[0].namePattern: "), "{problem}");

    // Of two none is this process; without any it is as configured.
    bench.write("broker.yaml", &format!("{BROKER}---\n{}", BROKER.replace("name: main", "name: other")));
    assert!(matches!(change(&mut follower).await, Step::Applied(..)));
    assert_eq!(*bench.auto_create.policy(), Policy { wait: true, templates: Vec::new() });
}

#[test]
fn templates_of_the_configuration_are_manifests_that_say_nothing_more() {
    let patterns = vec![crate::auto_create::NamePattern::parse("auto-*").unwrap()];
    let config =
        Config { auto_create_queues: patterns.clone(), auto_create_streams: patterns, ..Config::default() };
    let policy = configured(&config);
    let declared = converted(&format!("{QUEUE}---\n{STREAM}")).unwrap();
    for (kind, declared) in [Kind::Queue, Kind::Stream].into_iter().zip(declared) {
        let Definition { name, object, namespace, topic_filter, .. } = declared.clone();
        let template = policy.definition(kind, "auto-x", "a").unwrap();
        assert_eq!(Definition { name, object, namespace, topic_filter, ..template }, declared);
    }
}
