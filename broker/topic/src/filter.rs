//! Topic filters: which topic names a subscription wants. Must never know queues, streams or groups; see
//! [`Subscription`](crate::Subscription) for those.

use bytestring::ByteString;

use crate::name::check_common;
use crate::text::text_newtype;
use crate::{TopicError, TopicName};

/// A valid topic filter: a topic name in which `+` may stand for one whole level and `#`, as the last level,
/// for any number of them. A clone shares the bytes, which may be a slice of a larger buffer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicFilter(ByteString);

impl TopicFilter {
    /// Checks `text` and takes it over without a copy.
    ///
    /// # Errors
    /// The first rule that `text` breaks.
    pub fn parse(text: impl Into<ByteString>) -> Result<Self, TopicError> {
        let text = text.into();
        check_common(&text)?;
        let bytes = text.as_bytes();
        for (at, &byte) in bytes.iter().enumerate().filter(|(_, byte)| matches!(byte, b'+' | b'#')) {
            let begins_level = at == 0 || bytes[at - 1] == b'/';
            let ends_level = bytes.get(at + 1).is_none_or(|&next| next == b'/');
            if !(begins_level && ends_level) {
                return Err(TopicError::WildcardNotAlone { wildcard: char::from(byte), at });
            }
            if byte == b'#' && at + 1 < bytes.len() {
                return Err(TopicError::MultiLevelNotLast { at });
            }
        }
        Ok(Self(text))
    }

    /// Whether a message published to `topic` is wanted.
    #[must_use]
    pub fn matches(&self, topic: &TopicName) -> bool {
        if topic.is_reserved() && self.0.starts_with(['+', '#']) {
            return false; // [MQTT-4.7.2-1]
        }
        let mut topic_levels = topic.levels();
        for level in self.levels() {
            match (level, topic_levels.next()) {
                ("#", _) => return true, // also when `topic` has ended: `a/#` wants `a`
                ("+", Some(_)) => {}
                (literal, Some(level)) if literal == level => {}
                _ => return false,
            }
        }
        topic_levels.next().is_none()
    }

    /// The texts between the slashes, at least one; each may be empty, `+` or, as the last, `#`.
    pub fn levels(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Whether it can match more than one topic name.
    #[must_use]
    pub fn has_wildcard(&self) -> bool {
        self.0.contains(['+', '#'])
    }

    /// Whether it matches one topic name only, the one that reads like it.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !self.has_wildcard()
    }

    /// Begins with `$`.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with('$')
    }
}

/// The filter that matches `topic` alone.
impl From<TopicName> for TopicFilter {
    fn from(topic: TopicName) -> Self {
        Self(topic.into_inner())
    }
}

text_newtype!(TopicFilter);
