//! What a queue is to be, as flags or as a manifest in a file. The broker judges it; the file is judged here too, so
//! that mistakes have their line.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use serde_json::{Map, Value, json};

use crate::cli::spec::{Declared, declared_as, fixed, manifests, put};

/// Flags for the fields of a MessageQueue that can change. Names and values are those of its manifest.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "What it is like")]
pub(super) struct SettingArgs {
    /// Order of delivery: none, or key for one message of a key at a time
    #[arg(long, value_name = "ORDERING")]
    ordering: Option<String>,
    /// Expression for a message's key, as in message.topic
    #[arg(long, value_name = "EXPRESSION")]
    message_key: Option<String>,
    /// Which consumer with room gets a message: leastInflight, roundRobin or random
    #[arg(long, value_name = "STRATEGY")]
    strategy: Option<String>,
    /// Messages that one consumer may hold unacknowledged
    #[arg(long, value_name = "COUNT")]
    max_inflight: Option<u32>,
    /// Time for an acknowledgement, as in 30s
    #[arg(long, value_name = "DURATION")]
    ack_timeout: Option<String>,
    /// Deliveries until a message is dead-lettered or dropped; 0: no limit
    #[arg(long, value_name = "COUNT")]
    max_deliveries: Option<u32>,
    /// Pause before the first retry
    #[arg(long, value_name = "DURATION")]
    backoff_initial: Option<String>,
    /// Longest pause before a retry
    #[arg(long, value_name = "DURATION")]
    backoff_max: Option<String>,
    /// Growth from one pause to the next
    #[arg(long, value_name = "FACTOR")]
    backoff_factor: Option<u32>,
    /// Queue for messages that cannot be delivered
    #[arg(long, value_name = "QUEUE", conflicts_with = "dead_letter_topic")]
    dead_letter_queue: Option<String>,
    /// Topic to which messages are published that cannot be delivered
    #[arg(long, value_name = "TOPIC")]
    dead_letter_topic: Option<String>,
    /// Age from which a message has expired; 0s: no limit
    #[arg(long, value_name = "DURATION")]
    max_age: Option<String>,
    /// Bytes of messages, as in 10Gi; 0: no limit
    #[arg(long, value_name = "SIZE")]
    max_bytes: Option<String>,
    /// Number of messages; 0: no limit
    #[arg(long, value_name = "COUNT")]
    max_messages: Option<u64>,
    /// When it is full: RejectPublish or DropOldest
    #[arg(long, value_name = "OVERFLOW")]
    overflow: Option<String>,
    /// Time for which a queue-dedup-id is remembered; 0s: not at all
    #[arg(long, value_name = "DURATION")]
    dedup_window: Option<String>,
    /// What publishers may ask for: delay, priority, dedup, or nothing (an empty text); by commas
    #[arg(long, value_name = "LIST")]
    publisher_controls: Option<String>,
    /// What becomes of the messages when it is deleted: Retain or Delete
    #[arg(long, value_name = "POLICY")]
    deletion_policy: Option<String>,
}

/// Flags for the fields that never change.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "What never changes")]
pub(super) struct FixedArgs {
    /// Topic filter; without it only dead letters and redriven messages come in
    #[arg(long, value_name = "FILTER")]
    filter: Option<String>,
    /// Parts that work in parallel, 1 to 64
    #[arg(long, value_name = "COUNT")]
    shards: Option<u32>,
    /// Keep only the newest unconsumed message of each key
    #[arg(long)]
    last_value: bool,
}

impl SettingArgs {
    /// The part of a `spec` that the flags speak of.
    pub(super) fn spec(&self) -> Map<String, Value> {
        let text = |value: &Option<String>| value.clone().map(Value::from);
        let number = |value: Option<u32>| value.map(Value::from);
        let controls = self.publisher_controls.as_ref().map(|list| {
            list.split(',').map(str::trim).filter(|control| !control.is_empty()).collect::<Value>()
        });
        let queue = self.dead_letter_queue.as_ref();
        let dead_letter = match (queue, &self.dead_letter_topic) {
            (Some(name), _) => Some(json!({"queueRef": {"name": name}})),
            (None, Some(topic)) => Some(json!({"topic": topic})),
            (None, None) => None,
        };
        let mut spec = Map::new();
        put(
            &mut spec,
            "",
            [
                ("ordering", text(&self.ordering)),
                ("key", text(&self.message_key)),
                ("ackTimeout", text(&self.ack_timeout)),
                ("maxDeliveries", number(self.max_deliveries)),
                ("deadLetter", dead_letter),
                ("publisherControls", controls),
                ("deletionPolicy", text(&self.deletion_policy)),
            ],
        );
        let max_inflight = number(self.max_inflight);
        let strategy = text(&self.strategy);
        put(&mut spec, "dispatch", [("strategy", strategy), ("maxInflightPerConsumer", max_inflight)]);
        let (initial, max) = (text(&self.backoff_initial), text(&self.backoff_max));
        put(
            &mut spec,
            "retryBackoff",
            [("initial", initial), ("max", max), ("factor", number(self.backoff_factor))],
        );
        put(
            &mut spec,
            "retention",
            [
                ("maxAge", text(&self.max_age)),
                ("maxBytes", text(&self.max_bytes)),
                ("maxMessages", self.max_messages.map(Value::from)),
                ("overflow", text(&self.overflow)),
            ],
        );
        put(&mut spec, "dedup", [("window", text(&self.dedup_window))]);
        spec
    }
}

impl FixedArgs {
    /// The part of a `spec` that the flags speak of.
    pub(super) fn spec(&self) -> Map<String, Value> {
        fixed(self.filter.as_deref(), self.shards, self.last_value)
    }
}

/// The only MessageQueue that the manifest `file` holds; it must be called `name`, if one is given.
pub(super) fn read(file: &Path, name: Option<&str>) -> anyhow::Result<Declared> {
    let (shown, set) = manifests(file)?;
    let [declared] = &set.queues[..] else {
        bail!("{shown} holds {} MessageQueues; allowed: one", set.queues.len());
    };
    let (object, meta) = (&declared.object, &declared.object.metadata);
    declared_as(&shown, "queue", object.queue_name(), name, meta.namespace.as_deref(), &object.spec)
}

/// The manifest to read instead of flags.
#[derive(Clone, Debug, Args)]
pub(super) struct FileArgs {
    /// Manifest (YAML) with one MessageQueue, instead of flags
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
}
