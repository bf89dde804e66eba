//! The kind `MessageQueue`: a durable queue with competing consumers.

use kube::CustomResource;
use kube::core::Rule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weir_topic::{TopicFilter, TopicName};

use crate::common::{BrokerRef, DeletionPolicy, ObjectRef, ObjectStatus};
use crate::duration::KubeDuration;
use crate::format::{object_name_schema, topic_filter_schema, topic_name_schema};
use crate::problem::Problem;
use crate::rules::{DurationRange, immutable, immutable_option};
use crate::size::ByteSize;

const ACK_TIMEOUT: DurationRange =
    DurationRange::new(KubeDuration::from_millis(100), KubeDuration::from_hours(168));
const BACKOFF: DurationRange = DurationRange::new(KubeDuration::ZERO, KubeDuration::from_hours(24));
const DEDUP_WINDOW: DurationRange = DurationRange::new(KubeDuration::ZERO, KubeDuration::from_hours(24));

/// What the queue stores, how it delivers and how long it keeps.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "MessageQueue",
    namespaced,
    status = "ObjectStatus",
    derive = "PartialEq",
    shortname = "mq",
    category = "weir",
    selectable = ".spec.brokerRef.name",
    selectable = ".spec.queueName",
    selectable = ".spec.topicFilter",
    doc = "A durable queue. Every message published to a topic that matches its filter is stored before the \
           publisher's acknowledgement, and delivered to one of the consumers of `$queue/<name>` until one \
           acknowledges it.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the queue accepts and delivers messages."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        description = "Why it is ready or not."
    ),
    printcolumn(
        name = "Filter",
        type_ = "string",
        json_path = ".spec.topicFilter",
        description = "Topics whose messages are stored."
    ),
    printcolumn(
        name = "Shards",
        type_ = "integer",
        json_path = ".spec.shards",
        description = "Parts that work in parallel."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Queue",
        type_ = "string",
        json_path = ".spec.queueName",
        description = "Name in `$queue/<name>`, where it is not the object's.",
        priority = 1
    ),
    printcolumn(
        name = "Ordering",
        type_ = "string",
        json_path = ".spec.ordering",
        description = "Whether messages of one key are delivered in order.",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        description = "What a person should know.",
        priority = 1
    ),
    validation = Rule::new("has(self.spec.queueName) || self.metadata.name.size() <= 128")
        .message("queueName is needed, since the object's name has over 128 characters"),
    validation = Rule::new(
        "(has(self.spec.queueName) ? self.spec.queueName : self.metadata.name) == \
         (has(oldSelf.spec.queueName) ? oldSelf.spec.queueName : oldSelf.metadata.name)"
    )
    .message("queueName is immutable")
    .field_path(".spec.queueName"),
    validation = Rule::new(
        "!has(self.spec.deadLetter) || !has(self.spec.deadLetter.queueRef) || \
         self.spec.deadLetter.queueRef.name != self.metadata.name"
    )
    .message("a queue cannot be its own dead-letter queue")
    .field_path(".spec.deadLetter.queueRef.name")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    immutable_option("topicFilter"),
    immutable("shards"),
    immutable("lastValue"),
]))]
pub struct MessageQueueSpec {
    /// The Broker that serves the queue. Default: the one of the namespace, else the only one of the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_ref: Option<BrokerRef>,
    /// MQTT topic filter, 1 to 1024 bytes, not beginning with `$`: matching messages enter the queue.
    /// Immutable. Absent: the queue is fed by dead letters and redrive only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "topic_filter_schema")]
    pub topic_filter: Option<String>,
    /// Name in `$queue/<name>`: 1 to 128 letters, digits, `-`, `.`, `_`. Immutable. Default: `metadata.name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "object_name_schema")]
    pub queue_name: Option<String>,
    /// How the queue works.
    #[serde(flatten)]
    pub settings: QueueSettings,
}

/// How a queue works, apart from its names. Also the template of automatically created queues.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueSettings {
    /// Parts that store and deliver in parallel, 1 to 64. Immutable. Default 1.
    #[schemars(range(min = 1, max = 64))]
    pub shards: i32,
    /// `none`: any order. `key`: messages of one key one at a time and in order. Default `none`.
    pub ordering: Ordering,
    /// CEL expression over `message` for a message's key, such as `message.clientId`, up to 4096 characters.
    /// Default: none; with `lastValue` or `ordering: key`, `message.topic`. A change applies to later messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub key: Option<String>,
    /// Keep only the newest unconsumed message of each key. Immutable. Default false.
    pub last_value: bool,
    /// How messages are divided among consumers.
    pub dispatch: Dispatch,
    /// Time for an acknowledgement until the message is delivered again, 100ms to 168h. Default 30s.
    #[schemars(extend("x-kubernetes-validations" = ACK_TIMEOUT.rules()))]
    pub ack_timeout: KubeDuration,
    /// Deliveries after which a message is dead-lettered, or dropped if there is no target, 0 to 10000.
    /// 0: no limit. Default 16.
    #[schemars(range(min = 0, max = 10000))]
    pub max_deliveries: i32,
    /// Pause before a message is delivered again.
    pub retry_backoff: RetryBackoff,
    /// Where messages go that cannot be delivered. Absent: they are dropped and counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetter>,
    /// How long and how much is kept.
    pub retention: QueueRetention,
    /// Refusal of repeated publishes.
    pub dedup: Dedup,
    /// What publishers may ask for with the user properties `queue-delay`, `queue-priority` and
    /// `queue-dedup-id`. Default: all.
    #[schemars(extend("maxItems" = 3, "x-kubernetes-list-type" = "set"))]
    pub publisher_controls: Vec<PublisherControl>,
    /// What happens to the stored messages when this object is deleted. Default `Retain`.
    pub deletion_policy: DeletionPolicy,
}

/// Whether messages of one key are delivered in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Ordering {
    /// Any order.
    #[default]
    None,
    /// One at a time and in order within a key.
    Key,
}

/// How messages are divided among consumers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Dispatch {
    /// Which consumer with room gets the next message. Default `leastInflight`.
    pub strategy: DispatchStrategy,
    /// Messages that one consumer may hold unacknowledged, 1 to 65535. Default 1000.
    #[schemars(range(min = 1, max = 65535))]
    pub max_inflight_per_consumer: i32,
}

/// Which consumer with room gets the next message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DispatchStrategy {
    /// Any of them.
    Random,
    /// Each in turn.
    RoundRobin,
    /// The one with the fewest unacknowledged messages.
    #[default]
    LeastInflight,
}

/// Pause before a message is delivered again: `initial`, then `factor` times the last one, at most `max`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("duration(self.initial) <= duration(self.max)")
        .message("initial must not be longer than max")
        .field_path(".initial")
]))]
pub struct RetryBackoff {
    /// Pause after the first failure, 0s to 24h. Default 1s.
    #[schemars(extend("x-kubernetes-validations" = BACKOFF.rules()))]
    pub initial: KubeDuration,
    /// Longest pause, 0s to 24h. Default 1m.
    #[schemars(extend("x-kubernetes-validations" = BACKOFF.rules()))]
    pub max: KubeDuration,
    /// Growth from one pause to the next, 1 to 10. Default 2.
    #[schemars(range(min = 1, max = 10))]
    pub factor: i32,
}

/// Where undeliverable messages go: exactly one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    Rule::new("has(self.queueRef) != has(self.topic)").message("exactly one of queueRef and topic is needed")
]))]
pub struct DeadLetter {
    /// A MessageQueue of the same namespace, not this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_ref: Option<ObjectRef>,
    /// A topic, 1 to 1024 bytes, without wildcards and not beginning with `$`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "topic_name_schema")]
    pub topic: Option<String>,
}

/// How long and how much a queue keeps. The sizes are divided evenly over the shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueRetention {
    /// Age after which an unconsumed message is dead-lettered as expired. 0s: no limit. Default 0s.
    pub max_age: KubeDuration,
    /// Bytes of unconsumed messages. 0: no limit. Default 10Gi.
    pub max_bytes: ByteSize,
    /// Number of unconsumed messages. 0: no limit. Default 0.
    #[schemars(range(min = 0))]
    pub max_messages: i64,
    /// What happens to a message that does not fit. Default `RejectPublish`.
    pub overflow: Overflow,
}

/// What happens to a message that does not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Overflow {
    /// The publisher is told that the quota is exceeded.
    #[default]
    RejectPublish,
    /// The oldest messages make room.
    DropOldest,
}

/// Refusal of repeated publishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Dedup {
    /// How long a `queue-dedup-id` is remembered, 0s to 24h. 0s: not at all. Default 2m.
    #[schemars(extend("x-kubernetes-validations" = DEDUP_WINDOW.rules()))]
    pub window: KubeDuration,
}

/// Something a publisher may ask of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum PublisherControl {
    /// `queue-delay`: delivery not before some time has passed.
    Delay,
    /// `queue-priority`: delivery before messages of lower priority.
    Priority,
    /// `queue-dedup-id`: a repeat is not stored again.
    Dedup,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            shards: 1,
            ordering: Ordering::default(),
            key: None,
            last_value: false,
            dispatch: Dispatch::default(),
            ack_timeout: KubeDuration::from_secs(30),
            max_deliveries: 16,
            retry_backoff: RetryBackoff::default(),
            dead_letter: None,
            retention: QueueRetention::default(),
            dedup: Dedup::default(),
            publisher_controls: vec![
                PublisherControl::Delay,
                PublisherControl::Priority,
                PublisherControl::Dedup,
            ],
            deletion_policy: DeletionPolicy::default(),
        }
    }
}

impl Default for Dispatch {
    fn default() -> Self {
        Self { strategy: DispatchStrategy::default(), max_inflight_per_consumer: 1000 }
    }
}

impl Default for RetryBackoff {
    fn default() -> Self {
        Self { initial: KubeDuration::from_secs(1), max: KubeDuration::from_secs(60), factor: 2 }
    }
}

impl Default for QueueRetention {
    fn default() -> Self {
        Self {
            max_age: KubeDuration::ZERO,
            max_bytes: ByteSize::from_gibibytes(10),
            max_messages: 0,
            overflow: Overflow::default(),
        }
    }
}

impl Default for Dedup {
    fn default() -> Self {
        Self { window: KubeDuration::from_secs(120) }
    }
}

impl MessageQueue {
    /// The name in `$queue/<name>`.
    #[must_use]
    pub fn queue_name(&self) -> &str {
        self.spec.queue_name.as_deref().or(self.metadata.name.as_deref()).unwrap_or_default()
    }

    /// What is wrong beyond types, single-field ranges and formats; nothing in a good object.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        check_name_length("queueName", self.queue_name(), &mut problems);
        check_topic_filter("spec.topicFilter", self.spec.topic_filter.as_deref(), &mut problems);
        self.spec.settings.check("spec", &mut problems);
        let target = self.spec.settings.dead_letter.as_ref().and_then(|target| target.queue_ref.as_ref());
        if target.is_some_and(|target| Some(&target.name) == self.metadata.name.as_ref()) {
            problems.push(Problem::new(
                "spec.deadLetter.queueRef.name",
                "a queue cannot be its own dead-letter queue; allowed: another queue",
            ));
        }
        problems
    }
}

impl QueueSettings {
    /// Adds what is wrong with these settings, which stand at `at`.
    pub(crate) fn check(&self, at: &str, problems: &mut Vec<Problem>) {
        ACK_TIMEOUT.check(&format!("{at}.ackTimeout"), self.ack_timeout, problems);
        let RetryBackoff { initial, max, .. } = self.retry_backoff;
        BACKOFF.check(&format!("{at}.retryBackoff.initial"), initial, problems);
        BACKOFF.check(&format!("{at}.retryBackoff.max"), max, problems);
        if initial > max {
            let message = format!("{initial} is longer than max; allowed: up to {max}");
            problems.push(Problem::new(format!("{at}.retryBackoff.initial"), message));
        }
        DEDUP_WINDOW.check(&format!("{at}.dedup.window"), self.dedup.window, problems);
        let Some(dead_letter) = &self.dead_letter else { return };
        if dead_letter.queue_ref.is_some() == dead_letter.topic.is_some() {
            problems.push(Problem::new(
                format!("{at}.deadLetter"),
                "exactly one target is needed; allowed: queueRef or topic",
            ));
        }
        if let Some(topic) = &dead_letter.topic {
            let path = format!("{at}.deadLetter.topic");
            match TopicName::parse(topic.clone()) {
                Err(error) => {
                    problems.push(Problem::new(path, format!("{topic:?} is not a topic name: {error}")))
                }
                Ok(topic) if topic.is_reserved() => problems.push(reserved(path, topic.as_str())),
                Ok(_) => {}
            }
        }
    }
}

/// Adds a problem if the object's name stands in for `field` and is too long for that.
pub(crate) fn check_name_length(field: &str, name: &str, problems: &mut Vec<Problem>) {
    let max = weir_topic::ObjectName::BYTES_MAX;
    if name.len() > max {
        let message =
            format!("the name has {} bytes; allowed: up to {max}, or a {field} of its own", name.len());
        problems.push(Problem::new("metadata.name", message));
    }
}

/// Adds what is wrong with a topic filter.
pub(crate) fn check_topic_filter(path: &str, filter: Option<&str>, problems: &mut Vec<Problem>) {
    match filter.map(|filter| TopicFilter::parse(filter.to_owned())) {
        Some(Err(error)) => problems.push(Problem::new(path, format!("not a topic filter: {error}"))),
        Some(Ok(filter)) if filter.is_reserved() => problems.push(reserved(path, filter.as_str())),
        _ => {}
    }
}

fn reserved(path: impl Into<String>, topic: &str) -> Problem {
    Problem::new(path, format!("{topic:?} begins with `$`; allowed: ordinary topics"))
}
