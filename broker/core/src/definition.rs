//! What a queue or a stream is declared to be.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::keyspace::placement_hash;

/// A queue or a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// Competing consumers; a message is gone once acknowledged.
    Queue,
    /// Readers with positions; messages stay until retention removes them.
    Stream,
}

/// The declaration of a queue or stream, with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Definition {
    /// Queue or stream.
    pub kind: Kind,
    /// Name that clients use: unique among its kind.
    pub name: String,
    /// Namespace of the declaring object.
    pub namespace: String,
    /// Name of the declaring object.
    pub object: String,
    /// Messages whose topics match are taken; none: nothing is taken from publishers.
    pub topic_filter: Option<String>,
    /// 1 to 64.
    pub shards: u8,
    /// Expression of the key.
    pub key: Option<String>,
    /// How long and how much is kept.
    pub retention: Retention,
    /// Whether only the newest message of each key is kept.
    #[serde(default)]
    pub last_value: bool,
    /// Of queues only.
    pub dispatch: DispatchSettings,
    /// Of queues only.
    #[serde(default)]
    pub queue: QueueSettings,
    /// Of streams only: milliseconds after which a consumer group without members is forgotten; zero: never.
    #[serde(default)]
    pub group_expiry_ms: u64,
    /// Whether deletion removes what is stored.
    pub delete_data: bool,
}

/// A field that two definitions have different values of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name.
    pub field: &'static str,
    /// Where it is in a manifest.
    pub path: &'static str,
    /// What is stored, for people.
    pub stored: String,
    /// What is declared, for people.
    pub declared: String,
}

/// Limits of what is kept; zero for no limit. Counts and bytes are divided evenly over the shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retention {
    /// Age in milliseconds.
    pub max_age_ms: u64,
    /// Bytes.
    pub max_bytes: u64,
    /// Messages.
    pub max_messages: u64,
}

impl Retention {
    /// Whether anything is ever removed because of it.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        *self != Self::default()
    }
}

/// What a queue does beyond handing out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueSettings {
    /// Whether messages of one key are delivered one at a time and in order.
    pub ordering: Ordering,
    /// What happens to a message that does not fit.
    pub overflow: Overflow,
    /// Where messages go that cannot be delivered; none: they are dropped and counted.
    pub dead_letter: Option<DeadLetterTarget>,
    /// Milliseconds for which a `queue-dedup-id` is remembered; zero: not at all.
    pub dedup_window_ms: u64,
    /// What publishers may ask for.
    pub controls: Controls,
}

/// Whether messages of one key are delivered in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ordering {
    /// Any order.
    #[default]
    None,
    /// One at a time and in order within a key.
    Key,
}

/// What happens to a message that does not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Overflow {
    /// Its publisher is told.
    #[default]
    RejectPublish,
    /// The oldest messages make room.
    DropOldest,
}

/// Where messages go that cannot be delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DeadLetterTarget {
    /// To the queue that this object of the same namespace declares.
    Object(String),
    /// Published to this topic.
    Topic(String),
}

/// What publishers may ask of a queue by user properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Controls {
    /// `queue-delay`
    pub delay: bool,
    /// `queue-priority`
    pub priority: bool,
    /// `queue-dedup-id`
    pub dedup: bool,
}

/// Which consumer gets the next message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Strategy {
    /// Any with room.
    Random,
    /// The next with room.
    RoundRobin,
    /// The one with the fewest messages in flight.
    #[default]
    LeastInflight,
}

/// How a queue hands out messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DispatchSettings {
    /// Which consumer gets the next message.
    pub strategy: Strategy,
    /// Unacknowledged messages a consumer may hold.
    pub max_inflight_per_consumer: u32,
    /// Milliseconds until an unacknowledged message counts as refused.
    pub ack_timeout_ms: u64,
    /// Attempts after which a message is dropped; zero for no limit.
    pub max_deliveries: u32,
    /// Milliseconds before the first retry.
    pub backoff_initial_ms: u64,
    /// Longest wait before a retry, milliseconds.
    pub backoff_max_ms: u64,
    /// Growth of the wait per attempt, in hundredths: 200 doubles it.
    pub backoff_factor_percent: u32,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            ordering: Ordering::default(),
            overflow: Overflow::default(),
            dead_letter: None,
            dedup_window_ms: 120_000,
            controls: Controls::default(),
        }
    }
}

impl Default for Controls {
    fn default() -> Self {
        Self { delay: true, priority: true, dedup: true }
    }
}

impl Default for DispatchSettings {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            max_inflight_per_consumer: 1000,
            ack_timeout_ms: 30_000,
            max_deliveries: 16,
            backoff_initial_ms: 1000,
            backoff_max_ms: 60_000,
            backoff_factor_percent: 200,
        }
    }
}

impl DispatchSettings {
    /// Time until an unacknowledged message counts as refused.
    #[must_use]
    pub const fn ack_timeout(&self) -> Duration {
        Duration::from_millis(self.ack_timeout_ms)
    }

    /// Wait before the next delivery of a message that failed `attempts` times.
    #[must_use]
    pub fn backoff(&self, attempts: u32) -> Duration {
        let mut wait = self.backoff_initial_ms;
        for _ in 1..attempts {
            wait = wait.saturating_mul(u64::from(self.backoff_factor_percent)) / 100;
            if wait >= self.backoff_max_ms {
                break;
            }
        }
        Duration::from_millis(wait.min(self.backoff_max_ms))
    }
}

impl Definition {
    /// The first immutable field in which `declared` differs.
    #[must_use]
    pub fn immutable_difference(&self, declared: &Self) -> Option<Difference> {
        let filter = |definition: &Self| match &definition.topic_filter {
            Some(filter) => format!("`{filter}`"),
            None => "none".to_owned(),
        };
        let shards = |definition: &Self| definition.shards.to_string();
        let last_value = |definition: &Self| definition.last_value.to_string();
        let differ = |field, path, value: &dyn Fn(&Self) -> String| {
            let (stored, declared) = (value(self), value(declared));
            (stored != declared).then_some(Difference { field, path, stored, declared })
        };
        differ("topicFilter", "spec.topicFilter", &filter)
            .or_else(|| differ("shards", "spec.shards", &shards))
            .or_else(|| differ("lastValue", "spec.lastValue", &last_value))
    }

    /// Different, as good as surely, for different definitions.
    #[must_use]
    pub fn hash(&self) -> String {
        let text = serde_json::to_vec(self).expect("a definition has only string keys");
        format!("{:016x}", placement_hash(&text))
    }

    /// The expression of the key: the topic where a queue or stream needs one and none is declared.
    #[must_use]
    pub fn effective_key(&self) -> Option<&str> {
        let needed = self.last_value || self.queue.ordering == Ordering::Key;
        self.key.as_deref().or_else(|| needed.then_some("message.topic"))
    }

    /// For how long ids of publishers are remembered.
    #[must_use]
    pub const fn dedup_window(&self) -> Duration {
        Duration::from_millis(self.queue.dedup_window_ms)
    }

    /// The even share of `limit` that shard number `shard` has; zero stays no limit. The first ones have what cannot be
    /// divided, so that all shares are `limit` together.
    #[must_use]
    pub fn share(&self, limit: u64, shard: u8) -> Option<u64> {
        let shards = u64::from(self.shards.max(1));
        let rest = u64::from(u64::from(shard) < limit % shards);
        (limit != 0).then(|| limit / shards + rest)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A queue of one shard with every default.
    pub(crate) fn queue(name: &str) -> Definition {
        Definition {
            kind: Kind::Queue,
            name: name.into(),
            namespace: "default".into(),
            object: name.into(),
            topic_filter: Some("a/#".into()),
            shards: 1,
            key: None,
            retention: Retention::default(),
            last_value: false,
            dispatch: DispatchSettings::default(),
            queue: QueueSettings::default(),
            group_expiry_ms: 0,
            delete_data: false,
        }
    }

    #[test]
    fn shares_are_the_limit_together() {
        for (limit, shards, expected) in [(10, 3, &[4, 3, 3][..]), (4, 4, &[1, 1, 1, 1]), (7, 1, &[7])] {
            let definition = Definition { shards, ..queue("q") };
            let shares: Vec<u64> = (0..shards).filter_map(|shard| definition.share(limit, shard)).collect();
            assert_eq!(shares, expected);
            assert_eq!(definition.share(0, 0), None, "no limit");
        }
    }

    #[test]
    fn backoff_grows_to_its_maximum() {
        let settings = DispatchSettings::default();
        let waits: Vec<u64> = [1, 2, 3, 7, 1000].iter().map(|n| settings.backoff(*n).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 60, 60]);
    }
}
