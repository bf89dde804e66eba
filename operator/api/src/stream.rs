//! The kind `Stream`: a durable log that any number of readers replay.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::{BrokerRef, DeletionPolicy, ObjectStatus};
use crate::duration::KubeDuration;
use crate::format::{object_name_schema, topic_filter_schema};
use crate::problem::Problem;
use crate::queue::{check_name_length, check_topic_filter};
use crate::rules::immutable;
use crate::size::ByteSize;

/// What the stream stores and how long it keeps.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "Stream",
    namespaced,
    status = "ObjectStatus",
    derive = "PartialEq",
    shortname = "mqstream",
    category = "weir",
    selectable = ".spec.brokerRef.name",
    selectable = ".spec.streamName",
    selectable = ".spec.topicFilter",
    doc = "A durable log. Every message published to a topic that matches its filter is stored before the \
           publisher's acknowledgement and kept, whoever has read it, until its retention ends. Readers of \
           `$stream/<name>` start at an offset or a time of their choice.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the stream accepts and delivers messages."
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
        description = "Parts that work in parallel, each with its own order."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Stream",
        type_ = "string",
        json_path = ".spec.streamName",
        description = "Name in `$stream/<name>`, where it is not the object's.",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        description = "What a person should know.",
        priority = 1
    ),
    validation = Rule::new("has(self.spec.streamName) || self.metadata.name.size() <= 128")
        .message("streamName is needed, since the object's name has over 128 characters"),
    validation = Rule::new(
        "(has(self.spec.streamName) ? self.spec.streamName : self.metadata.name) == \
         (has(oldSelf.spec.streamName) ? oldSelf.spec.streamName : oldSelf.metadata.name)"
    )
    .message("streamName is immutable")
    .field_path(".spec.streamName")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    immutable("topicFilter"),
    immutable("shards"),
    immutable("lastValue"),
]))]
pub struct StreamSpec {
    /// The Broker that serves the stream. Default: the one of the namespace, else the only one of the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker_ref: Option<BrokerRef>,
    /// MQTT topic filter, 1 to 1024 bytes, not beginning with `$`: matching messages enter the stream.
    /// Immutable.
    #[schemars(schema_with = "topic_filter_schema")]
    pub topic_filter: String,
    /// Name in `$stream/<name>`: 1 to 128 letters, digits, `-`, `.`, `_`. Immutable. Default: `metadata.name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "object_name_schema")]
    pub stream_name: Option<String>,
    /// How the stream works.
    #[serde(flatten)]
    pub settings: StreamSettings,
}

/// How a stream works, apart from its names. Also the template of automatically created streams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StreamSettings {
    /// Parts that store and deliver in parallel, 1 to 64, each with its own order. Immutable. Default 1.
    #[schemars(range(min = 1, max = 64))]
    pub shards: i32,
    /// CEL expression over `message` for a message's key, such as `message.clientId`, up to 4096 characters.
    /// Messages of one key share a shard. Default: none; with `lastValue`, `message.topic`. A change applies
    /// to later messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub key: Option<String>,
    /// Compacted: keep only the newest message of each key. Immutable. Default false.
    pub last_value: bool,
    /// How long and how much is kept.
    pub retention: StreamRetention,
    /// Consumer groups.
    pub groups: Groups,
    /// What happens to the stored messages when this object is deleted. Default `Retain`.
    pub deletion_policy: DeletionPolicy,
}

/// How long and how much a stream keeps; the oldest messages go first. The sizes are divided evenly over the
/// shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct StreamRetention {
    /// Age after which a message is dropped. 0s: no limit. Default 168h.
    pub max_age: KubeDuration,
    /// Bytes of messages. 0: no limit. Default 10Gi.
    pub max_bytes: ByteSize,
    /// Number of messages. 0: no limit. Default 0.
    #[schemars(range(min = 0))]
    pub max_messages: i64,
}

/// Consumer groups of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Groups {
    /// Time without members after which the position of a group is forgotten. 0s: never. Default 168h.
    pub expire_after: KubeDuration,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            shards: 1,
            key: None,
            last_value: false,
            retention: StreamRetention::default(),
            groups: Groups::default(),
            deletion_policy: DeletionPolicy::default(),
        }
    }
}

impl Default for StreamRetention {
    fn default() -> Self {
        Self {
            max_age: KubeDuration::from_hours(168),
            max_bytes: ByteSize::from_gibibytes(10),
            max_messages: 0,
        }
    }
}

impl Default for Groups {
    fn default() -> Self {
        Self { expire_after: KubeDuration::from_hours(168) }
    }
}

impl Stream {
    /// The name in `$stream/<name>`.
    #[must_use]
    pub fn stream_name(&self) -> &str {
        self.spec.stream_name.as_deref().or(self.metadata.name.as_deref()).unwrap_or_default()
    }

    /// What is wrong beyond types, single-field ranges and formats; nothing in a good object.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        check_name_length("streamName", self.stream_name(), &mut problems);
        check_topic_filter("spec.topicFilter", Some(&self.spec.topic_filter), &mut problems);
        problems
    }
}
