//! One queue or stream out of the text of its `spec`, and back. Owns nothing.

use std::collections::BTreeSet;

use serde_json::Value;
use weir_core::definition::{
    DeadLetterTarget, Definition, Kind, Ordering as CoreOrdering, Overflow as CoreOverflow, Strategy,
};
use weir_manifest::{Declared, ManifestError, Source};
use weir_operator_api::{
    ByteSize, DeadLetter, Dedup, DeletionPolicy, Dispatch, DispatchStrategy, Groups, KubeDuration,
    MessageQueueSpec, ObjectRef, Ordering, Overflow, PublisherControl, QueueRetention, QueueSettings,
    RetryBackoff, StreamRetention, StreamSettings, StreamSpec,
};

use super::definitions::{one_queue, one_stream};

/// The queue or stream called `name` that `spec`, YAML or JSON, declares in `namespace`.
///
/// # Errors
/// Every problem, one line each.
pub(crate) fn definition_of(
    kind: Kind,
    namespace: &str,
    name: &str,
    spec: &str,
) -> Result<Definition, Vec<String>> {
    match kind {
        Kind::Queue => queue_of(namespace, name, spec),
        Kind::Stream => stream_of(namespace, name, spec),
    }
}

fn queue_of(namespace: &str, name: &str, spec: &str) -> Result<Definition, Vec<String>> {
    // Names of queues may have characters that those of objects have not; the object only gives it its place here.
    let object = weir_manifest::parse_queue_spec(namespace, PLACEHOLDER, spec)
        .map_err(|errors| errors.into_iter().map(line).collect::<Vec<_>>())?;
    if let Some(other) = object.spec.queue_name.as_deref().filter(|other| *other != name) {
        return Err(vec![format!("spec.queueName: {other:?} is not the name of this queue; leave it out")]);
    }
    let source = Source { file: String::new(), line: 0 };
    let definition = one_queue(&Declared { object, source })?;
    let definition = Definition { name: name.to_owned(), object: name.to_owned(), ..definition };
    if definition.queue.dead_letter == Some(DeadLetterTarget::Object(name.to_owned())) {
        let problem = "a queue cannot be its own dead-letter queue; allowed: another queue";
        return Err(vec![format!("spec.deadLetter.queueRef.name: {problem}")]);
    }
    Ok(definition)
}

fn stream_of(namespace: &str, name: &str, spec: &str) -> Result<Definition, Vec<String>> {
    let object = weir_manifest::parse_stream_spec(namespace, PLACEHOLDER, spec)
        .map_err(|errors| errors.into_iter().map(line).collect::<Vec<_>>())?;
    if let Some(other) = object.spec.stream_name.as_deref().filter(|other| *other != name) {
        return Err(vec![format!("spec.streamName: {other:?} is not the name of this stream; leave it out")]);
    }
    let source = Source { file: String::new(), line: 0 };
    let definition = one_stream(&Declared { object, source })?;
    Ok(Definition { name: name.to_owned(), object: name.to_owned(), ..definition })
}

/// The queue or stream that the object called `object` of `namespace` declares by `spec`, YAML or JSON.
///
/// # Errors
/// Every problem, one line each.
pub(crate) fn definition_of_object(
    kind: Kind,
    namespace: &str,
    object: &str,
    spec: &str,
) -> Result<Definition, Vec<String>> {
    let lines = |errors: Vec<ManifestError>| errors.into_iter().map(line).collect::<Vec<_>>();
    let source = Source { file: String::new(), line: 0 };
    match kind {
        Kind::Queue => {
            let object = weir_manifest::parse_queue_spec(namespace, object, spec).map_err(lines)?;
            one_queue(&Declared { object, source })
        }
        Kind::Stream => {
            let object = weir_manifest::parse_stream_spec(namespace, object, spec).map_err(lines)?;
            one_stream(&Declared { object, source })
        }
    }
}

/// Paths of the fields that have another value in `after`, in the order of their names.
pub(crate) fn changed_fields(before: &Definition, after: &Definition) -> Vec<String> {
    let mut paths = Vec::new();
    collect_changed(&spec_of(before), &spec_of(after), "spec", &mut paths);
    paths
}

fn collect_changed(before: &Value, after: &Value, path: &str, paths: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(a), Value::Object(b)) => {
            let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let of = |map: &serde_json::Map<String, Value>| map.get(name).cloned().unwrap_or_default();
                collect_changed(&of(a), &of(b), &format!("{path}.{name}"), paths);
            }
        }
        _ if before != after => paths.push(path.to_owned()),
        _ => {}
    }
}

/// Not a name that anybody gives a queue to which dead letters go.
const PLACEHOLDER: &str = "without-a-name-of-its-own";

fn line(error: ManifestError) -> String {
    let place = error.line.filter(|line| *line > 1).map(|line| format!("line {line}: ")).unwrap_or_default();
    let path = if error.path.is_empty() { String::new() } else { format!("{}: ", error.path) };
    format!("{place}{path}{}", error.message)
}

/// The `spec` that declares `definition`.
pub(crate) fn spec_of(definition: &Definition) -> Value {
    let spec = match definition.kind {
        Kind::Queue => serde_json::to_value(queue_spec(definition)),
        Kind::Stream => serde_json::to_value(stream_spec(definition)),
    };
    spec.expect("a spec has only string keys")
}

fn stream_spec(definition: &Definition) -> StreamSpec {
    let retention = &definition.retention;
    let settings = StreamSettings {
        shards: definition.shards.into(),
        key: definition.key.clone(),
        last_value: definition.last_value,
        retention: StreamRetention {
            max_age: KubeDuration::from_millis(retention.max_age_ms),
            max_bytes: ByteSize::from_bytes(retention.max_bytes),
            max_messages: i64::try_from(retention.max_messages).unwrap_or(i64::MAX),
        },
        groups: Groups { expire_after: KubeDuration::from_millis(definition.group_expiry_ms) },
        deletion_policy: deletion_policy(definition),
    };
    let topic_filter = definition.topic_filter.clone().unwrap_or_default();
    StreamSpec { broker_ref: None, topic_filter, stream_name: None, settings }
}

const fn deletion_policy(definition: &Definition) -> DeletionPolicy {
    if definition.delete_data { DeletionPolicy::Delete } else { DeletionPolicy::Retain }
}

fn queue_spec(definition: &Definition) -> MessageQueueSpec {
    let Definition { dispatch, queue, retention, .. } = definition;
    let millis = KubeDuration::from_millis;
    let number = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
    let controls = [
        (queue.controls.delay, PublisherControl::Delay),
        (queue.controls.priority, PublisherControl::Priority),
        (queue.controls.dedup, PublisherControl::Dedup),
    ];
    let settings = QueueSettings {
        shards: definition.shards.into(),
        ordering: match queue.ordering {
            CoreOrdering::None => Ordering::None,
            CoreOrdering::Key => Ordering::Key,
        },
        key: definition.key.clone(),
        last_value: definition.last_value,
        dispatch: Dispatch {
            strategy: match dispatch.strategy {
                Strategy::Random => DispatchStrategy::Random,
                Strategy::RoundRobin => DispatchStrategy::RoundRobin,
                Strategy::LeastInflight => DispatchStrategy::LeastInflight,
            },
            max_inflight_per_consumer: number(dispatch.max_inflight_per_consumer),
        },
        ack_timeout: millis(dispatch.ack_timeout_ms),
        max_deliveries: number(dispatch.max_deliveries),
        retry_backoff: RetryBackoff {
            initial: millis(dispatch.backoff_initial_ms),
            max: millis(dispatch.backoff_max_ms),
            factor: number(dispatch.backoff_factor_percent / 100),
        },
        dead_letter: queue.dead_letter.clone().map(|target| match target {
            DeadLetterTarget::Object(name) => DeadLetter { queue_ref: Some(ObjectRef { name }), topic: None },
            DeadLetterTarget::Topic(topic) => DeadLetter { queue_ref: None, topic: Some(topic) },
        }),
        retention: QueueRetention {
            max_age: millis(retention.max_age_ms),
            max_bytes: ByteSize::from_bytes(retention.max_bytes),
            max_messages: i64::try_from(retention.max_messages).unwrap_or(i64::MAX),
            overflow: match queue.overflow {
                CoreOverflow::RejectPublish => Overflow::RejectPublish,
                CoreOverflow::DropOldest => Overflow::DropOldest,
            },
        },
        dedup: Dedup { window: millis(queue.dedup_window_ms) },
        publisher_controls: controls.into_iter().filter(|(on, _)| *on).map(|(_, control)| control).collect(),
        deletion_policy: deletion_policy(definition),
    };
    let topic_filter = definition.topic_filter.clone();
    MessageQueueSpec { broker_ref: None, topic_filter, queue_name: None, settings }
}

/// Changes `target` as a JSON merge patch (RFC 7386) says: `null` takes a field away.
pub(crate) fn merge(target: &mut Value, patch: Value) {
    let Value::Object(fields) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(map) = target else { return };
    for (key, value) in fields {
        if value.is_null() {
            map.remove(&key);
        } else {
            merge(map.entry(key).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn comes_back(kind: Kind, spec: &str) {
        let definition = definition_of(kind, "default", "Q_1", spec).unwrap();
        assert_eq!(definition.name, "Q_1");
        let again = definition_of(kind, "default", "Q_1", &spec_of(&definition).to_string()).unwrap();
        assert_eq!(again, definition);
    }

    #[test]
    fn a_spec_comes_back_as_it_was() {
        for spec in [
            "topicFilter: a/#",
            "{shards: 3, ordering: key, key: message.clientId, dispatch: {strategy: random, \
             maxInflightPerConsumer: 7}, ackTimeout: 1500ms, maxDeliveries: 0, retryBackoff: {initial: 2s, max: 3s, \
             factor: 1}, deadLetter: {queueRef: {name: dead}}, retention: {maxAge: 1h, maxBytes: 5Mi, maxMessages: 9, \
             overflow: DropOldest}, dedup: {window: 0s}, publisherControls: [priority], deletionPolicy: Delete}",
            "deadLetter: {topic: dead/x}",
        ] {
            comes_back(Kind::Queue, spec);
        }
        for spec in [
            "topicFilter: a/#",
            "{topicFilter: a, shards: 3, key: message.clientId, retention: {maxAge: 1h, maxBytes: 5Mi, \
             maxMessages: 9}, deletionPolicy: Delete}",
        ] {
            comes_back(Kind::Stream, spec);
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (spec, problem) in [
            ("ackTimeout: soon", "spec.ackTimeout: "),
            ("shards: 1\nshards: 2", "line 2: spec.shards: "),
            ("queueName: other", "spec.queueName: \"other\" is not the name of this queue"),
            ("deadLetter: {queueRef: {name: q}}", "its own dead-letter queue"),
        ] {
            let problems = queue_of("default", "q", spec).unwrap_err().join("; ");
            assert!(problems.contains(problem), "{spec}: {problems}");
        }
        for (spec, problem) in [
            ("", "spec.topicFilter: the field is missing"),
            ("topicFilter: a\nretention: {maxAge: soon}", "line 2: spec.retention.maxAge: "),
            ("topicFilter: a\nackTimeout: 3s", "line 2: spec.ackTimeout: unknown field"),
            (
                "{topicFilter: a, streamName: other}",
                "spec.streamName: \"other\" is not the name of this stream",
            ),
            ("{topicFilter: a, key: 1 +}", "spec.key: "),
        ] {
            let problems = stream_of("default", "s", spec).unwrap_err().join("; ");
            assert!(problems.contains(problem), "{spec}: {problems}");
        }
    }

    #[test]
    fn fields_that_differ_are_named() {
        let of = |spec| definition_of_object(Kind::Queue, "city", "q", spec).unwrap();
        let before = of("{topicFilter: a, retention: {maxAge: 1h}}");
        assert_eq!(changed_fields(&before, &before), [""; 0]);
        let after = of("{topicFilter: a, retention: {maxAge: 2h}, deadLetter: {topic: dead}, shards: 2}");
        assert_eq!(
            changed_fields(&before, &after),
            ["spec.deadLetter", "spec.retention.maxAge", "spec.shards"]
        );
    }

    #[test]
    fn merges() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "d": [1]});
        merge(&mut target, json!({"a": {"b": null, "e": {"f": null, "g": 3}}, "d": [2]}));
        assert_eq!(target, json!({"a": {"c": 2, "e": {"g": 3}}, "d": [2]}));
    }
}
