//! The core's objects and errors as messages of the admin API. Reads nothing, owns nothing.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use tonic::Status;
use weir_core::Error;
use weir_core::activity::{ReaderReport, StreamReport};
use weir_core::catalog::Object;
use weir_core::definition::{DeadLetterTarget, Kind, Ordering, Overflow, Strategy};
use weir_core::queue::ConsumerReport;
use weir_core::shard::{LogReport, QueueReport};
use weir_env::clock::Timestamp;
use weir_proto::admin::v1 as wire;

use crate::manifests::spec_of;

/// Consumers that a description names.
const CONSUMERS_MAX: usize = 1000;

/// Readers that a description names.
const READERS_MAX: usize = 1000;

/// What the owners of the shards of a queue or stream say of them, or why they cannot.
pub(super) struct Reports {
    pub(super) shards: Vec<LogReport>,
    damage: Option<String>,
}

impl Reports {
    pub(super) fn new(shards: Vec<LogReport>) -> Self {
        Self { shards, damage: None }
    }

    /// No report, if `error` means that the records of the one queue or stream cannot be read.
    pub(super) fn damaged(error: &Error) -> Option<Self> {
        match error {
            Error::Record(damage) => {
                Some(Self { shards: Vec::new(), damage: Some(format!("read stored record: {damage}")) })
            }
            Error::Store(_)
            | Error::Damaged(_)
            | Error::Fenced
            | Error::NotOwner(_)
            | Error::Remote(_)
            | Error::NoOwner
            | Error::Full(_)
            | Error::Closed => None,
        }
    }

    fn sum(&self, of: impl Fn(&LogReport) -> u64) -> u64 {
        self.shards.iter().map(of).sum()
    }

    fn sum_queue(&self, of: impl Fn(&QueueReport) -> u64) -> u64 {
        self.shards.iter().filter_map(|report| report.queue.as_ref()).map(of).sum()
    }

    /// Consumers and what each does, over all shards, by id.
    fn consumers(&self) -> BTreeMap<u64, ConsumerReport> {
        let mut consumers: BTreeMap<u64, ConsumerReport> = BTreeMap::new();
        let queues = self.shards.iter().filter_map(|report| report.queue.as_ref());
        for report in queues.flat_map(|queue| &queue.consumers) {
            match consumers.entry(report.id.0) {
                Entry::Vacant(entry) => _ = entry.insert(report.clone()),
                Entry::Occupied(mut entry) => {
                    let whole = entry.get_mut();
                    whole.inflight += report.inflight;
                    whole.delivered += report.delivered;
                    whole.acknowledged += report.acknowledged;
                    whole.rejected += report.rejected;
                    whole.latency.merge(&report.latency);
                }
            }
        }
        consumers
    }

    fn rates(&self) -> wire::QueueRates {
        let mut sum = wire::QueueRates::default();
        for queue in self.shards.iter().filter_map(|report| report.queue.as_ref()) {
            sum.published += queue.rates.published;
            sum.delivered += queue.rates.delivered;
            sum.redelivered += queue.rates.redelivered;
            sum.acknowledged += queue.rates.acknowledged;
        }
        sum
    }

    fn totals(&self) -> wire::QueueTotals {
        wire::QueueTotals {
            delivered: self.sum_queue(|queue| queue.delivered),
            redelivered: self.sum_queue(|queue| queue.redelivered),
            acknowledged: self.sum_queue(|queue| queue.counters.acknowledged),
            dead_lettered: self.sum_queue(|queue| queue.counters.dead_lettered),
            expired: self.sum_queue(|queue| queue.counters.expired),
            exhausted: self.sum_queue(|queue| queue.counters.exhausted),
            overflowed: self.sum_queue(|queue| queue.counters.overflowed),
            superseded: self.sum_queue(|queue| queue.counters.superseded),
            purged: self.sum_queue(|queue| queue.counters.purged),
            redriven: self.sum_queue(|queue| queue.counters.redriven),
        }
    }

    /// When the oldest message of a queue came; zero if there is none.
    fn oldest(&self) -> u64 {
        let oldest = self.shards.iter().filter_map(|report| report.queue.as_ref()?.oldest);
        oldest.min().unwrap_or_default().as_micros()
    }

    /// When the oldest message of a stream came, about; zero if there is none, or nobody knows.
    fn horizon(&self) -> u64 {
        let of_shards = self.shards.iter().filter_map(|report| report.oldest);
        of_shards.min().unwrap_or_default().as_micros()
    }

    fn conditions(&self) -> Vec<wire::Condition> {
        let (status, reason, message) = match (&self.damage, self.dead_letter_blocked()) {
            (Some(damage), _) => ("False", "Damaged", damage.clone()),
            (None, Some(blocked)) => ("False", "DeadLetterBlocked", blocked),
            (None, None) => ("True", "Serving", String::new()),
        };
        vec![wire::Condition {
            r#type: "Ready".into(),
            status: status.into(),
            reason: reason.into(),
            message,
        }]
    }

    /// What keeps dead letters in the queue, and how many of them, if anything does.
    fn dead_letter_blocked(&self) -> Option<String> {
        let queues = || self.shards.iter().filter_map(|report| report.queue.as_ref());
        let why = queues().find_map(|queue| queue.dead_letter_blocked.clone())?;
        let waiting: u64 = queues().map(|queue| queue.dying).sum();
        Some(format!("dead letters cannot leave ({waiting} wait): {why}"))
    }
}

/// What people call the kind.
pub(super) const fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Queue => "queue",
        Kind::Stream => "stream",
    }
}

/// What a failure of the core means to the caller who asked about `object`.
pub(super) fn status(error: &Error, object: &Object) -> Status {
    let (word, name) = (word(object.definition.kind), &object.definition.name);
    let retry = || Status::unavailable(format!("{word} `{name}`: {error}; try again"));
    let damaged = || Status::data_loss(format!("{word} `{name}`: {error}; restore the store from a backup"));
    match error {
        Error::Store(store) => match store {
            weir_storage::Error::Conflict
            | weir_storage::Error::TooOld
            | weir_storage::Error::UnknownSettled
            | weir_storage::Error::UnknownOpen
            | weir_storage::Error::Busy(_)
            | weir_storage::Error::Unavailable(_) => retry(),
            weir_storage::Error::TooLarge { .. } => Status::internal(format!("{word} `{name}`: {error}")),
            weir_storage::Error::Damaged(_) => damaged(),
        },
        Error::Record(_) => damaged(),
        // It says what to do.
        Error::Damaged(_) => Status::data_loss(format!("{word} `{name}`: {error}")),
        Error::Fenced | Error::NotOwner(_) | Error::NoOwner => retry(),
        Error::Remote(_) => Status::internal(format!("{word} `{name}`: {error}")),
        Error::Full(_) => Status::resource_exhausted(format!("{word} `{name}`: {error}")),
        Error::Closed => shutting_down(),
    }
}

/// What callers are told at shutdown.
pub(super) fn shutting_down() -> Status {
    Status::unavailable("it is shutting down; try again when it is back")
}

pub(super) fn queue(object: &Object, reports: &Reports) -> wire::Queue {
    let definition = &object.definition;
    wire::Queue {
        name: definition.name.clone(),
        topic_filter: definition.topic_filter.clone().unwrap_or_default(),
        shards: definition.shards.into(),
        ordering: match definition.queue.ordering {
            Ordering::None => wire::Ordering::None,
            Ordering::Key => wire::Ordering::Key,
        }
        .into(),
        depth: reports.sum_queue(|queue| queue.depth),
        in_flight: reports.sum_queue(|queue| queue.inflight),
        consumers: count(reports.consumers().len()),
        bytes: reports.sum_queue(|queue| queue.bytes),
        paused: object.paused,
        waiting: reports.sum_queue(|queue| queue.waiting),
        oldest_ts_micros: reports.oldest(),
        rates: Some(reports.rates()),
        totals: Some(reports.totals()),
        declaration: Some(declaration(object)),
        conditions: conditions(object, reports),
    }
}

/// How a queue or stream is.
pub(super) fn conditions(object: &Object, reports: &Reports) -> Vec<wire::Condition> {
    let mut conditions = reports.conditions();
    if object.paused {
        conditions.push(wire::Condition {
            r#type: "Paused".into(),
            status: "True".into(),
            reason: "PausedByAdmin".into(),
            message: "nothing is delivered until `weir queue resume`".into(),
        });
    }
    conditions
}

pub(super) fn queue_description(object: &Object, reports: &Reports) -> wire::DescribeQueueResponse {
    let consumers = reports.consumers();
    let mut warnings = Vec::new();
    let max_deliveries = object.definition.dispatch.max_deliveries;
    if max_deliveries != 0 && object.definition.queue.dead_letter.is_none() {
        warnings.push(format!(
            "No dead letters are kept: after {max_deliveries} deliveries a message is dropped."
        ));
    }
    if consumers.len() > CONSUMERS_MAX {
        warnings.push(format!("Of {} consumers the first {CONSUMERS_MAX} are shown.", consumers.len()));
    }
    wire::DescribeQueueResponse {
        queue: Some(queue(object, reports)),
        settings: Some(queue_settings(object)),
        shards: reports.shards.iter().zip(0..).map(|(report, n)| queue_shard(n, report)).collect(),
        consumers: consumers.into_values().take(CONSUMERS_MAX).map(queue_consumer).collect(),
        warnings,
        spec: spec_of(&object.definition).to_string(),
    }
}

fn queue_consumer(report: ConsumerReport) -> wire::QueueConsumer {
    let latency = |percent| {
        let latency = report.latency.percentile(percent).unwrap_or_default();
        u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)
    };
    wire::QueueConsumer {
        in_flight: report.inflight.into(),
        window: u64::try_from(report.free.saturating_add(report.inflight.into())).unwrap_or(0),
        delivered: report.delivered,
        acknowledged: report.acknowledged,
        rejected: report.rejected,
        since_micros: report.since.as_micros(),
        ack_p50_micros: latency(50),
        ack_p99_micros: latency(99),
        id: report.client_id,
    }
}

fn queue_settings(object: &Object) -> wire::QueueSettings {
    let (definition, dispatch) = (&object.definition, &object.definition.dispatch);
    wire::QueueSettings {
        key: definition.key.clone().unwrap_or_default(),
        last_value: definition.last_value,
        ack_timeout_millis: dispatch.ack_timeout_ms,
        max_deliveries: dispatch.max_deliveries,
        max_inflight_per_consumer: dispatch.max_inflight_per_consumer,
        dispatch_strategy: match dispatch.strategy {
            Strategy::Random => "random",
            Strategy::RoundRobin => "roundRobin",
            Strategy::LeastInflight => "leastInflight",
        }
        .into(),
        retention_age_millis: definition.retention.max_age_ms,
        retention_bytes: definition.retention.max_bytes,
        retention_messages: definition.retention.max_messages,
        overflow: match definition.queue.overflow {
            Overflow::RejectPublish => "RejectPublish",
            Overflow::DropOldest => "DropOldest",
        }
        .into(),
        dead_letter: match &definition.queue.dead_letter {
            None => String::new(),
            Some(DeadLetterTarget::Object(name)) => format!("queue {name}"),
            Some(DeadLetterTarget::Topic(topic)) => format!("topic {topic}"),
        },
    }
}

fn queue_shard(shard: u32, report: &LogReport) -> wire::QueueShard {
    let queue = report.queue.clone().unwrap_or_default();
    wire::QueueShard {
        shard,
        floor: queue.floor,
        next_offset: report.extent.next,
        depth: queue.depth,
        bytes: queue.bytes,
        in_flight: queue.inflight,
        delayed: queue.delayed,
        leaving: queue.dying,
    }
}

pub(super) fn stream(object: &Object, reports: &Reports, activity: &StreamReport) -> wire::Stream {
    let definition = &object.definition;
    wire::Stream {
        name: definition.name.clone(),
        topic_filter: definition.topic_filter.clone().unwrap_or_default(),
        shards: definition.shards.into(),
        messages: reports.sum(|report| report.messages),
        bytes: reports.sum(|report| report.bytes),
        readers: count(activity.readers.len()),
        declaration: Some(declaration(object)),
        conditions: reports.conditions(),
        oldest_ts_micros: reports.horizon(),
        rates: Some(wire::StreamRates { published: activity.published, read: activity.read }),
    }
}

/// A stream and its shards, whose oldest messages are of the times `oldest`.
pub(super) fn stream_description(
    object: &Object,
    reports: &Reports,
    activity: &StreamReport,
    oldest: &[Timestamp],
) -> wire::DescribeStreamResponse {
    let definition = &object.definition;
    let mut warnings = Vec::new();
    if activity.readers.len() > READERS_MAX {
        warnings.push(format!("Of {} readers the first {READERS_MAX} are shown.", activity.readers.len()));
    }
    let shards = reports.shards.iter().zip(oldest).zip(0..);
    wire::DescribeStreamResponse {
        stream: Some(stream(object, reports, activity)),
        settings: Some(wire::StreamSettings {
            key: definition.key.clone().unwrap_or_default(),
            last_value: definition.last_value,
            retention_age_millis: definition.retention.max_age_ms,
            retention_bytes: definition.retention.max_bytes,
            retention_messages: definition.retention.max_messages,
        }),
        shards: shards.map(|((report, oldest), n)| stream_shard(n, report, *oldest)).collect(),
        readers: activity.readers.iter().take(READERS_MAX).map(stream_reader).collect(),
        warnings,
        spec: spec_of(definition).to_string(),
        id: object.id,
    }
}

fn stream_reader(reader: &ReaderReport) -> wire::StreamReader {
    let next = |(shard, offset): &(u8, u64)| wire::ShardOffset { shard: (*shard).into(), offset: *offset };
    wire::StreamReader {
        id: reader.name.to_string(),
        next: reader.positions.iter().map(next).collect(),
        since_micros: reader.since.as_micros(),
        read: reader.read,
    }
}

fn stream_shard(shard: u32, report: &LogReport, oldest: Timestamp) -> wire::StreamShard {
    let is_empty = report.extent.start >= report.extent.next;
    wire::StreamShard {
        shard,
        start_offset: report.extent.start,
        next_offset: report.extent.next,
        bytes: report.bytes,
        first_ts_micros: if is_empty { 0 } else { oldest.as_micros() },
        last_ts_micros: if is_empty { 0 } else { report.last_ts_micros },
    }
}

/// Neither the file nor the time of a declaration is in the catalog.
fn declaration(object: &Object) -> wire::Declaration {
    wire::Declaration {
        namespace: object.definition.namespace.clone(),
        object: object.definition.object.clone(),
        source: String::new(),
        created_micros: 0,
        generation: object.generation,
        origin: object.origin.as_str().to_owned(),
        cluster: object.origin.claim().map(|claim| claim.cluster.clone()).unwrap_or_default(),
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
