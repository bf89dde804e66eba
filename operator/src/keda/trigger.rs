//! What the trigger of a ScaledObject says. Pure.

use tonic::Status;
use weir_proto::externalscaler::ScaledObjectRef;

use crate::brokers::BrokerId;

/// Messages that a replica is to have, if the trigger does not say.
const TARGET: u64 = 100;
/// Largest number that a trigger can say: exact as a float, too.
const NUMBER_MAX: u64 = 1_000_000_000_000;
/// Longest name of a queue, stream or group, in bytes.
const NAME_BYTES_MAX: usize = 253;

/// What to count, and what it comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trigger {
    /// Where the ScaledObject is.
    pub(super) namespace: String,
    pub(super) broker: BrokerId,
    pub(super) counted: Counted,
    /// Messages for each replica.
    pub(super) target: u64,
    /// There are to be replicas with more messages than these.
    pub(super) activation: u64,
}

/// Messages that wait for a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    /// Those of a queue that are not acknowledged.
    Queue(String),
    /// Those of a stream that a consumer group has not acknowledged.
    Group { stream: String, group: String },
}

impl Trigger {
    /// Reads a trigger. Errors say which metadata is wrong and what is allowed.
    pub(super) fn parse(object: &ScaledObjectRef) -> Result<Self, Status> {
        let metadata = |key: &str| object.scaler_metadata.get(key).map(|value| value.trim());
        let name = |key: &str| match metadata(key) {
            Some(name) if name.is_empty() || name.len() > NAME_BYTES_MAX => {
                Err(wrong(object, key, format!("{name:?} is no name; allowed: 1 to {NAME_BYTES_MAX} bytes")))
            }
            name => Ok(name.map(str::to_owned)),
        };
        let number = |key: &str, least: u64, default: u64| match metadata(key) {
            None => Ok(default),
            Some(text) => match text.parse::<u64>() {
                Ok(number) if (least..=NUMBER_MAX).contains(&number) => Ok(number),
                _ => Err(wrong(object, key, format!("{text:?} cannot be; allowed: {least} to {NUMBER_MAX}"))),
            },
        };
        let Some(broker) = name("broker")? else {
            return Err(wrong(
                object,
                "broker",
                "is missing; allowed: NAME or NAMESPACE/NAME of a Broker".into(),
            ));
        };
        let broker = match broker.split_once('/') {
            Some((namespace, name)) => BrokerId { namespace: namespace.to_owned(), name: name.to_owned() },
            None => BrokerId { namespace: object.namespace.clone(), name: broker },
        };
        if !(is_label(&broker.namespace) && is_label(&broker.name)) {
            let message = "is no Broker; allowed: NAME or NAMESPACE/NAME, each up to 63 lower-case letters, digits and `-`";
            return Err(wrong(object, "broker", message.into()));
        }
        let counted = match (name("queue")?, name("stream")?, name("group")?) {
            (Some(queue), None, None) => Counted::Queue(queue),
            (None, Some(stream), Some(group)) => Counted::Group { stream, group },
            _ => {
                let message = "says nothing that can be counted; allowed: queue, or stream and group";
                return Err(wrong(object, "queue", message.into()));
            }
        };
        Ok(Self {
            namespace: object.namespace.clone(),
            broker,
            counted,
            target: number("target", 1, TARGET)?,
            activation: number("activation", 0, 0)?,
        })
    }

    /// Name of the metric, as names of metrics may be.
    pub(super) fn metric(&self) -> String {
        let name = match &self.counted {
            Counted::Queue(queue) => format!("weir-queue-{queue}"),
            Counted::Group { stream, group } => format!("weir-group-{stream}-{group}"),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        name.chars().map(|c| if allowed(c) { c } else { '-' }).collect()
    }
}

/// Whether it can be part of a host name.
fn is_label(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inside)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn wrong(object: &ScaledObjectRef, key: &str, message: String) -> Status {
    let ScaledObjectRef { namespace, name, .. } = object;
    Status::invalid_argument(format!("ScaledObject {namespace}/{name}: metadata.{key} {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(metadata: &[(&str, &str)]) -> ScaledObjectRef {
        let text = |text: &&str| (*text).to_owned();
        ScaledObjectRef {
            name: "workers".into(),
            namespace: "city".into(),
            scaler_metadata: metadata.iter().map(|(key, value)| (text(key), text(value))).collect(),
        }
    }

    #[test]
    fn a_trigger_names_a_queue_or_a_group() {
        let own =
            Trigger::parse(&object(&[("broker", "main"), ("queue", "a/b"), ("scalerAddress", "x:9090")]))
                .unwrap();
        assert_eq!(own.broker.to_string(), "city/main");
        assert_eq!((own.target, own.activation, own.metric().as_str()), (100, 0, "weir-queue-a-b"));
        let other = Trigger::parse(&object(&[
            ("broker", "mq/main"),
            ("stream", "s"),
            ("group", "g"),
            ("target", "7"),
            ("activation", "3"),
        ]));
        let other = other.unwrap();
        assert_eq!(other.broker.to_string(), "mq/main");
        assert_eq!((other.target, other.activation, other.metric().as_str()), (7, 3, "weir-group-s-g"));
    }

    #[test]
    fn what_cannot_be_is_said_with_its_place() {
        for (metadata, key) in [
            (vec![("queue", "a")], "broker"),
            (vec![("broker", ""), ("queue", "a")], "broker"),
            (vec![("broker", "evil.example/x?"), ("queue", "a")], "broker"),
            (vec![("broker", "a/b/c"), ("queue", "a")], "broker"),
            (vec![("broker", "main")], "queue"),
            (vec![("broker", "main"), ("queue", "")], "queue"),
            (vec![("broker", "main"), ("queue", "a"), ("stream", "b")], "queue"),
            (vec![("broker", "main"), ("stream", "b")], "queue"),
            (vec![("broker", "main"), ("queue", "a"), ("target", "0")], "target"),
            (vec![("broker", "main"), ("queue", "a"), ("target", "many")], "target"),
            (vec![("broker", "main"), ("queue", "a"), ("activation", "-1")], "activation"),
        ] {
            let error = Trigger::parse(&object(&metadata)).unwrap_err();
            let at = format!("ScaledObject city/workers: metadata.{key} ");
            assert!(error.message().starts_with(&at) && error.message().contains("allowed: "), "{error}");
        }
    }
}
