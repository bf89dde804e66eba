//! What can be wrong with a topic name, a topic filter or a subscription, and where.
//!
//! Offsets count UTF-8 bytes from the start of the text that was parsed. Which reason code an error becomes
//! is decided by the connection, not here.

use crate::{TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX};

/// Why a text is not a topic name or not a topic filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// `[MQTT-4.7.3-1]`
    #[error("topic is empty")]
    Empty,
    /// Over [`TOPIC_BYTES_MAX`].
    #[error("topic of {bytes} bytes is over the limit of {TOPIC_BYTES_MAX}")]
    TooLong {
        /// Length of the text.
        bytes: usize,
    },
    /// Over [`TOPIC_LEVELS_MAX`].
    #[error("topic of {levels} levels is over the limit of {TOPIC_LEVELS_MAX}")]
    TooManyLevels {
        /// Levels of the text.
        levels: usize,
    },
    /// `[MQTT-4.7.3-2]`
    #[error("topic has the null character at byte {at}")]
    Null {
        /// Where.
        at: usize,
    },
    /// `[MQTT-4.7.0-1]`, `[MQTT-3.3.2-2]`
    #[error("topic name has the wildcard `{wildcard}` at byte {at}")]
    WildcardInName {
        /// `+` or `#`.
        wildcard: char,
        /// Where.
        at: usize,
    },
    /// `[MQTT-4.7.1-1]`, `[MQTT-4.7.1-2]`
    #[error("wildcard `{wildcard}` at byte {at} does not fill its whole level")]
    WildcardNotAlone {
        /// `+` or `#`.
        wildcard: char,
        /// Where.
        at: usize,
    },
    /// `[MQTT-4.7.1-1]`
    #[error("wildcard `#` at byte {at} is not in the last level")]
    MultiLevelNotLast {
        /// Where.
        at: usize,
    },
}

/// Why the text of a SUBSCRIBE or UNSUBSCRIBE is no subscription.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscriptionError {
    /// The text as a whole is over [`TOPIC_BYTES_MAX`].
    #[error("subscription of {bytes} bytes is over the limit of {TOPIC_BYTES_MAX}")]
    TooLong {
        /// Length of the text.
        bytes: usize,
    },
    /// A topic filter is malformed; offsets count from `offset`, where it begins.
    #[error("parse topic filter at byte {offset}")]
    Filter {
        /// Where the filter begins in the subscription.
        offset: usize,
        /// What is wrong with it.
        source: TopicError,
    },
    /// `$share/` with an empty group. `[MQTT-4.8.2-1]`
    #[error("group name after `$share/` is empty")]
    ShareNameEmpty,
    /// `[MQTT-4.8.2-2]`
    #[error("group name after `$share/` has the character {character:?} at byte {at}")]
    ShareNameCharacter {
        /// `+`, `#`, `/` or the null character.
        character: char,
        /// Where in the name.
        at: usize,
    },
    /// `$share/<group>` without anything to subscribe to. `[MQTT-4.8.2-2]`
    #[error("no topic filter follows the group name")]
    ShareFilterMissing,
    /// `$share/<group>/$share/...`
    #[error("`$share/` inside of `$share/`")]
    ShareInShare,
    /// The consumers of a queue share it already.
    #[error("`$share/` before `{prefix}`: the consumers of a queue share it without")]
    ShareBeforeQueue {
        /// `$queue/` or `$q/`.
        prefix: &'static str,
    },
    /// An empty name of a queue or stream.
    #[error("name of the queue or stream is empty")]
    ObjectNameEmpty,
    /// A name of a queue or stream over [`ObjectName::BYTES_MAX`](crate::ObjectName::BYTES_MAX).
    #[error(
        "name of the queue or stream has {bytes} bytes, over the limit of {}",
        crate::ObjectName::BYTES_MAX
    )]
    ObjectNameTooLong {
        /// Length of the name.
        bytes: usize,
    },
    /// Names are `[0-9A-Za-z][-._0-9A-Za-z]*`.
    #[error("name of the queue or stream has the character {character:?} at byte {at}")]
    ObjectNameCharacter {
        /// The first that is not allowed.
        character: char,
        /// Where in the name.
        at: usize,
    },
    /// No queue or stream has a filter that begins with `$`.
    #[error("topic filter of a queue or stream begins with `$`")]
    ObjectFilterReserved,
    /// `$s//...`
    #[error("start position after `$s/` is empty")]
    StartEmpty,
    /// `$s/<start>` without anything behind.
    #[error("no topic filter follows the start position")]
    StartFilterMissing,
}
