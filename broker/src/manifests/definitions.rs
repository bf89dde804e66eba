//! What the resources of a folder mean to the core, and what of them it cannot do. Owns nothing, reads no
//! files.
//!
//! A field that asks for something this version does not have is refused, never ignored. Its default passes,
//! so that the manifests people have stay good.

use std::time::Duration;

use weir_core::definition::{
    Controls, DeadLetterTarget, Definition, DispatchSettings, Kind, QueueSettings as Queue, Retention,
    Strategy,
};
use weir_core::key::KeyExpression;
use weir_manifest::{Declared, ERRORS_MAX, ManifestSet, Source};
use weir_operator_api::{
    Broker, DeadLetter, DeletionPolicy, DispatchStrategy, MessageQueue, MessageQueueSpec, Ordering, Overflow,
    PublisherControl, QueueSettings, QueueTemplate, Stream, StreamSettings, StreamSpec, StreamTemplate,
};

use crate::auto_create::{NamePattern, Policy, Template};

/// The queues and streams of `set`.
///
/// # Errors
/// Every field that asks for what this version cannot do, each in a line with its place; [`ERRORS_MAX`] and a
/// line that counts the others at most.
pub(crate) fn definitions(set: &ManifestSet) -> Result<Vec<Definition>, Vec<String>> {
    let mut problems = Problems::default();
    let mut definitions = Vec::with_capacity(set.queues.len() + set.streams.len());
    for declared in &set.queues {
        definitions.extend(queue(declared, &mut problems.of(&declared.source)));
    }
    for declared in &set.streams {
        definitions.extend(stream(declared, &mut problems.of(&declared.source)));
    }
    match problems.into_lines() {
        lines if lines.is_empty() => Ok(definitions),
        lines => Err(lines),
    }
}

/// The queue that is declared alone.
///
/// # Errors
/// As [`definitions`], without places.
pub(super) fn one_queue(declared: &Declared<MessageQueue>) -> Result<Definition, Vec<String>> {
    one(&declared.source, |document| queue(declared, document))
}

/// The stream that is declared alone.
///
/// # Errors
/// As [`definitions`], without places.
pub(super) fn one_stream(declared: &Declared<Stream>) -> Result<Definition, Vec<String>> {
    one(&declared.source, |document| stream(declared, document))
}

fn one(
    source: &Source,
    read: impl FnOnce(&mut Document<'_>) -> Option<Definition>,
) -> Result<Definition, Vec<String>> {
    let mut problems = Problems::default();
    let definition = read(&mut problems.of(source));
    let place = format!("{source}: ");
    let lines = problems.into_lines().into_iter();
    let lines: Vec<_> = lines.map(|line| line.strip_prefix(&place).unwrap_or(&line).to_owned()).collect();
    definition.filter(|_| lines.is_empty()).ok_or(lines)
}

/// What a Broker says of queues and streams that do not exist.
///
/// # Errors
/// As [`definitions`].
pub(super) fn policy(declared: &Declared<Broker>) -> Result<Policy, Vec<String>> {
    let mut problems = Problems::default();
    let spec = &declared.object.spec;
    // References of their settings are to the Broker's namespace.
    let namespace = declared.object.metadata.namespace.as_deref();
    let mut templates = Vec::new();
    for (n, QueueTemplate { name_pattern, spec }) in spec.auto_create.queues.iter().enumerate() {
        let mut document = problems.of(&declared.source);
        let at = format!("spec.autoCreate.queues[{n}]");
        document.spec_at = Some(format!("{at}.spec"));
        let definition = nameless_queue(spec.clone(), namespace, &mut document);
        templates.extend(document.template(&at, name_pattern, definition));
    }
    for (n, StreamTemplate { name_pattern, spec }) in spec.auto_create.streams.iter().enumerate() {
        let mut document = problems.of(&declared.source);
        let at = format!("spec.autoCreate.streams[{n}]");
        document.spec_at = Some(format!("{at}.spec"));
        let definition = nameless_stream(spec.clone(), namespace, &mut document);
        templates.extend(document.template(&at, name_pattern, definition));
    }
    match problems.into_lines() {
        lines if lines.is_empty() => Ok(Policy { wait: spec.wait_for_queue, templates }),
        lines => Err(lines),
    }
}

/// What is created for `pattern` where nothing more is said: what a manifest declares that says nothing more.
pub(super) fn template(kind: Kind, pattern: NamePattern) -> Template {
    let source = Source { file: String::new(), line: 0 };
    let mut problems = Problems::default();
    let mut document = problems.of(&source);
    let definition = match kind {
        Kind::Queue => nameless_queue(QueueSettings::default(), Some("default"), &mut document),
        Kind::Stream => nameless_stream(StreamSettings::default(), Some("default"), &mut document),
    };
    Template { pattern, definition: definition.expect("the defaults of a manifest are good") }
}

fn nameless_queue(
    settings: QueueSettings,
    namespace: Option<&str>,
    document: &mut Document<'_>,
) -> Option<Definition> {
    let spec = MessageQueueSpec { broker_ref: None, topic_filter: None, queue_name: None, settings };
    let mut object = MessageQueue::new("", spec);
    object.metadata.namespace = namespace.map(str::to_owned);
    queue(&Declared { object, source: document.source.clone() }, document)
}

fn nameless_stream(
    settings: StreamSettings,
    namespace: Option<&str>,
    document: &mut Document<'_>,
) -> Option<Definition> {
    let spec = StreamSpec { broker_ref: None, topic_filter: String::new(), stream_name: None, settings };
    let mut object = Stream::new("", spec);
    object.metadata.namespace = namespace.map(str::to_owned);
    stream(&Declared { object, source: document.source.clone() }, document)
}

/// What cannot be done, one line each.
#[derive(Default)]
struct Problems {
    lines: Vec<String>,
    left_out: usize,
}

/// Takes the problems of one document.
struct Document<'a> {
    problems: &'a mut Problems,
    source: &'a Source,
    /// Where its `spec` stands, if it is part of another.
    spec_at: Option<String>,
}

impl Problems {
    fn of<'a>(&'a mut self, source: &'a Source) -> Document<'a> {
        Document { problems: self, source, spec_at: None }
    }

    fn into_lines(mut self) -> Vec<String> {
        if self.left_out > 0 {
            self.lines.push(format!("and {} problems more", self.left_out));
        }
        self.lines
    }
}

impl Document<'_> {
    fn refuse(&mut self, field: &str, problem: &str) {
        let below = field.strip_prefix("spec").unwrap_or(field);
        let field = self.spec_at.as_ref().map_or_else(|| field.to_owned(), |at| format!("{at}{below}"));
        if self.problems.lines.len() < ERRORS_MAX {
            self.problems.lines.push(format!("{}: {field}: {problem}", self.source));
        } else {
            self.problems.left_out += 1;
        }
    }

    /// `value` in the type that the core has for it. The schema's ranges see to it that it fits.
    fn number<T: TryFrom<i64>>(&mut self, field: &str, value: i64) -> Option<T> {
        let number = T::try_from(value).ok();
        if number.is_none() {
            self.refuse(field, &format!("{value} is out of range"));
        }
        number
    }

    fn key(&mut self, key: Option<&str>) {
        if let Some(Err(error)) = key.map(KeyExpression::parse) {
            self.refuse("spec.key", &error.to_string());
        }
    }

    /// The template at `at`, which is not below the `spec` that the fields of its definition are in.
    fn template(&mut self, at: &str, pattern: &str, definition: Option<Definition>) -> Option<Template> {
        match NamePattern::parse(pattern) {
            Ok(pattern) => definition.map(|definition| Template { pattern, definition }),
            // The schema sees to it that it is one.
            Err(problem) => {
                self.spec_at = None;
                self.refuse(&format!("{at}.namePattern"), &problem);
                None
            }
        }
    }
}

fn queue(declared: &Declared<MessageQueue>, document: &mut Document<'_>) -> Option<Definition> {
    let object = &declared.object;
    let spec = &object.spec.settings;
    document.key(spec.key.as_deref());
    let shards = document.number("spec.shards", i64::from(spec.shards));
    let retention = Retention {
        max_age_ms: millis(spec.retention.max_age.as_duration()),
        max_bytes: spec.retention.max_bytes.as_bytes(),
        max_messages: document.number("spec.retention.maxMessages", spec.retention.max_messages)?,
    };
    Some(Definition {
        kind: Kind::Queue,
        name: object.queue_name().to_owned(),
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        object: object.metadata.name.clone().unwrap_or_default(),
        topic_filter: object.spec.topic_filter.clone(),
        shards: shards?,
        key: spec.key.clone(),
        retention,
        last_value: spec.last_value,
        dispatch: dispatch(spec, document)?,
        queue: queue_settings(spec),
        group_expiry_ms: 0,
        delete_data: spec.deletion_policy == DeletionPolicy::Delete,
    })
}

fn queue_settings(spec: &QueueSettings) -> Queue {
    let allowed = |control| spec.publisher_controls.contains(&control);
    Queue {
        ordering: match spec.ordering {
            Ordering::None => weir_core::definition::Ordering::None,
            Ordering::Key => weir_core::definition::Ordering::Key,
        },
        overflow: match spec.retention.overflow {
            Overflow::RejectPublish => weir_core::definition::Overflow::RejectPublish,
            Overflow::DropOldest => weir_core::definition::Overflow::DropOldest,
        },
        dead_letter: spec.dead_letter.as_ref().and_then(dead_letter),
        dedup_window_ms: millis(spec.dedup.window.as_duration()),
        controls: Controls {
            delay: allowed(PublisherControl::Delay),
            priority: allowed(PublisherControl::Priority),
            dedup: allowed(PublisherControl::Dedup),
        },
    }
}

/// The schema sees to it that there is exactly one target.
fn dead_letter(target: &DeadLetter) -> Option<DeadLetterTarget> {
    let object = target.queue_ref.as_ref().map(|queue| DeadLetterTarget::Object(queue.name.clone()));
    object.or_else(|| target.topic.clone().map(DeadLetterTarget::Topic))
}

fn dispatch(spec: &QueueSettings, document: &mut Document<'_>) -> Option<DispatchSettings> {
    let max_inflight = document
        .number("spec.dispatch.maxInflightPerConsumer", i64::from(spec.dispatch.max_inflight_per_consumer));
    let max_deliveries = document.number("spec.maxDeliveries", i64::from(spec.max_deliveries));
    let percent = i64::from(spec.retry_backoff.factor).saturating_mul(100);
    let factor = document.number("spec.retryBackoff.factor", percent);
    Some(DispatchSettings {
        strategy: match spec.dispatch.strategy {
            DispatchStrategy::Random => Strategy::Random,
            DispatchStrategy::RoundRobin => Strategy::RoundRobin,
            DispatchStrategy::LeastInflight => Strategy::LeastInflight,
        },
        max_inflight_per_consumer: max_inflight?,
        ack_timeout_ms: millis(spec.ack_timeout.as_duration()),
        max_deliveries: max_deliveries?,
        backoff_initial_ms: millis(spec.retry_backoff.initial.as_duration()),
        backoff_max_ms: millis(spec.retry_backoff.max.as_duration()),
        backoff_factor_percent: factor?,
    })
}

fn stream(declared: &Declared<Stream>, document: &mut Document<'_>) -> Option<Definition> {
    let object = &declared.object;
    let spec = &object.spec.settings;
    document.key(spec.key.as_deref());
    let shards = document.number("spec.shards", i64::from(spec.shards));
    Some(Definition {
        kind: Kind::Stream,
        name: object.stream_name().to_owned(),
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        object: object.metadata.name.clone().unwrap_or_default(),
        topic_filter: Some(object.spec.topic_filter.clone()),
        shards: shards?,
        key: spec.key.clone(),
        retention: Retention {
            max_age_ms: millis(spec.retention.max_age.as_duration()),
            max_bytes: spec.retention.max_bytes.as_bytes(),
            max_messages: document.number("spec.retention.maxMessages", spec.retention.max_messages)?,
        },
        last_value: spec.last_value,
        dispatch: DispatchSettings::default(),
        queue: Queue::default(),
        group_expiry_ms: millis(spec.groups.expire_after.as_duration()),
        delete_data: spec.deletion_policy == DeletionPolicy::Delete,
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
