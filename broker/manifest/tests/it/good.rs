//! What is accepted, and what it becomes.

use std::path::Path;

use proptest::prelude::*;
use weir_manifest::load;
use weir_operator_api::{
    BrokerRef, ByteSize, DeadLetter, KubeDuration, ObjectRef, Ordering, Overflow, PublisherControl,
    QueueSettings, StreamSettings,
};

use crate::load_files;

const DESIGN: &str = include_str!("design.yaml");

#[test]
fn the_whole_of_every_kind() {
    let set = load_files(&[("all.yaml", DESIGN)]).unwrap();
    assert_eq!(set.warnings, Vec::<String>::new());

    let queue = &set.queues[0];
    assert_eq!(queue.source.to_string(), "all.yaml:1");
    assert_eq!(queue.object.metadata.namespace.as_deref(), Some("city"));
    assert_eq!(queue.object.queue_name(), "traffic");
    assert_eq!(queue.object.spec.topic_filter.as_deref(), Some("sensor/+/data"));
    assert_eq!(queue.object.spec.broker_ref, Some(BrokerRef { name: "main".into(), namespace: None }));
    let settings = &queue.object.spec.settings;
    assert_eq!(settings.shards, 4);
    assert_eq!(settings.ordering, Ordering::None);
    assert_eq!(settings.key.as_deref(), Some("message.topic"));
    assert_eq!(settings.retention.max_age, KubeDuration::from_hours(168));
    assert_eq!(settings.retention.max_bytes, ByteSize::from_gibibytes(10));
    assert_eq!(settings.retention.overflow, Overflow::RejectPublish);
    let target = Some(ObjectRef { name: "traffic-dead".into() });
    assert_eq!(settings.dead_letter, Some(DeadLetter { queue_ref: target, topic: None }));

    let stream = &set.streams[0].object;
    assert_eq!(stream.stream_name(), "telemetry");
    assert_eq!(stream.spec.settings.shards, 8);
    assert_eq!(stream.spec.settings.retention.max_bytes, ByteSize::from_gibibytes(500));

    let broker = &set.brokers[0].object;
    assert_eq!(broker.metadata.namespace.as_deref(), Some("messaging"));
    assert!(broker.spec.wait_for_queue);
    assert_eq!(broker.spec.auto_create.queues[0].name_pattern, "auto-*");
    assert_eq!(broker.spec.auto_create.queues[0].spec.max_deliveries, 3);
}

#[test]
fn defaults_are_filled_in() {
    let set = load_files(&[(
        "a.yml",
        "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata: {name: q}\nspec: {}\n---\n\
         apiVersion: weir.dev/v1alpha1\nkind: Stream\nmetadata: {name: s}\nspec: {topicFilter: '#'}\n",
    )])
    .unwrap();
    let queue = &set.queues[0].object;
    assert_eq!(queue.metadata.namespace.as_deref(), Some("default"));
    assert_eq!(queue.queue_name(), "q");
    assert_eq!(queue.spec.settings, QueueSettings::default());
    assert_eq!(set.streams[0].object.spec.settings, StreamSettings::default());
    assert_eq!(set.streams[0].source.to_string(), "a.yml:6");
}

#[test]
fn nested_defaults_are_filled_in_where_a_part_is_given() {
    let set = load_files(&[(
        "a.yaml",
        "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata: {name: q}\nspec:\n  \
         retention: {overflow: DropOldest}\n  dispatch:\n  key: null\n  publisherControls: [delay]\n",
    )])
    .unwrap();
    let settings = &set.queues[0].object.spec.settings;
    assert_eq!(settings.retention.overflow, Overflow::DropOldest);
    assert_eq!(settings.retention.max_bytes, ByteSize::from_gibibytes(10));
    assert_eq!(settings.dispatch, QueueSettings::default().dispatch);
    assert_eq!(settings.key, None);
    assert_eq!(settings.publisher_controls, [PublisherControl::Delay]);
}

#[test]
fn what_kubectl_prints_is_read_back() {
    let set = load_files(&[(
        "exported.yaml",
        r#"
apiVersion: v1
kind: List
items:
- apiVersion: weir.dev/v1alpha1
  kind: MessageQueue
  metadata:
    annotations: {note: "text"}
    creationTimestamp: "2026-11-22T00:00:00Z"
    generation: 3
    labels: {app: city}
    managedFields: [{manager: kubectl}]
    name: traffic
    namespace: city
    resourceVersion: "123"
    uid: 6f1c
  spec: {topicFilter: a, retention: {maxBytes: 1024}}
  status: {observedGeneration: 3, conditions: []}
metadata: {resourceVersion: ""}
"#,
    )])
    .unwrap();
    let queue = &set.queues[0].object;
    assert_eq!(queue.metadata.labels.as_ref().unwrap()["app"], "city");
    assert_eq!(queue.spec.settings.retention.max_bytes, ByteSize::from_bytes(1024));
    assert_eq!(queue.status, None);
    assert_eq!(set.queues[0].source.to_string(), "exported.yaml:5");
}

#[test]
fn resources_of_others_are_ignored_aloud() {
    let set = load_files(&[(
        "a.yaml",
        "# only a comment\n---\n---\napiVersion: apps/v1\nkind: Deployment\nspec: {a: 1, a: 2}\n---\n\
         apiVersion: v1\nkind: ConfigMap\n",
    )])
    .unwrap();
    assert!(set.queues.is_empty() && set.streams.is_empty() && set.brokers.is_empty());
    assert_eq!(
        set.warnings,
        [
            "a.yaml:4: \"Deployment\" of \"apps/v1\" is not a resource of weir.dev: ignored",
            "a.yaml:8: \"ConfigMap\" of \"v1\" is not a resource of weir.dev: ignored",
        ]
    );
}

#[test]
fn anchors_repeat_values() {
    let set = load_files(&[(
        "a.yaml",
        "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata: {name: &n q}\nspec:\n  queueName: *n\n  \
         retryBackoff: {initial: &d 5s, max: *d}\n",
    )])
    .unwrap();
    assert_eq!(set.queues[0].object.spec.queue_name.as_deref(), Some("q"));
    assert_eq!(set.queues[0].object.spec.settings.retry_backoff.max, KubeDuration::from_secs(5));
}

#[test]
fn the_example_of_the_readme() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples");
    let set = load(&dir).unwrap();
    assert_eq!(set.warnings, Vec::<String>::new());
    let queue = &set.queues[0].object;
    assert_eq!((queue.queue_name(), queue.spec.settings.shards), ("traffic", 4));
    assert_eq!(queue.spec.topic_filter.as_deref(), Some("sensor/+/data"));
    let stream = &set.streams[0].object;
    assert_eq!((stream.stream_name(), stream.spec.settings.shards), ("telemetry", 2));
    assert_eq!(stream.spec.topic_filter, "vehicle/+/telemetry");
    assert_eq!(stream.spec.settings.key.as_deref(), Some("message.topic"));
}

proptest! {
    /// Whatever becomes of a manifest on its way: an answer, and every mistake has a place in the file.
    #[test]
    fn damaged_manifests_get_an_answer(
        edits in prop::collection::vec((any::<prop::sample::Index>(), "[ -~\n\t]{0,3}", 0..4_usize), 1..6),
    ) {
        let mut text = DESIGN.as_bytes().to_vec();
        for (at, insert, remove) in edits {
            let at = at.index(text.len());
            let end = (at + remove).min(text.len());
            text.splice(at..end, insert.into_bytes());
        }
        let text = String::from_utf8(text).unwrap();
        if let Err(errors) = load_files(&[("a.yaml", &text)]) {
            prop_assert!(!errors.is_empty());
            let lines = text.lines().count() + 1;
            for error in errors {
                let line = error.split(':').nth(1).and_then(|line| line.parse::<usize>().ok());
                prop_assert!(line.is_some_and(|line| (1..=lines).contains(&line)), "{error}\n{text}");
            }
        }
    }

    /// Any bytes at all get an answer.
    #[test]
    fn garbage_gets_an_answer(text in "[\\-:\\[\\]{}&*!|>'\"%@`,?# \n\ta1~]{0,200}") {
        let _ = load_files(&[("a.yaml", &text)]);
    }
}
