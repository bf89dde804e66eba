//! Topic names: where a message is published. Must never hold a wildcard.

use bytestring::ByteString;

use crate::text::text_newtype;
use crate::{TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX, TopicError};

/// A valid topic name: not empty, no wildcard, no null character, within [`TOPIC_BYTES_MAX`] and
/// [`TOPIC_LEVELS_MAX`]. A clone shares the bytes, which may be a slice of a larger buffer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(ByteString);

impl TopicName {
    /// Checks `text` and takes it over without a copy.
    ///
    /// # Errors
    /// The first rule that `text` breaks.
    pub fn parse(text: impl Into<ByteString>) -> Result<Self, TopicError> {
        let text = text.into();
        check_common(&text)?;
        match text.bytes().position(|byte| matches!(byte, b'+' | b'#')) {
            Some(at) => Err(TopicError::WildcardInName { wildcard: char::from(text.as_bytes()[at]), at }),
            None => Ok(Self(text)),
        }
    }

    /// The texts between the slashes, at least one; each may be empty.
    pub fn levels(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Begins with `$`: no filter that begins with a wildcard matches it. `[MQTT-4.7.2-1]`
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with('$')
    }
}

/// Whether clients must not publish to `topic`: it begins like a subscription to a queue or a stream, or is one of
/// the broker's own.
#[must_use]
pub fn is_publish_forbidden(topic: &TopicName) -> bool {
    let forbidden = ["$queue/", "$q/", "$stream/", "$s/", "$SYS/", "$weir/"];
    topic.as_str() == "$SYS" || forbidden.iter().any(|prefix| topic.as_str().starts_with(prefix))
}

/// The rules that names and filters share.
pub(crate) fn check_common(text: &str) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    if text.len() > TOPIC_BYTES_MAX {
        return Err(TopicError::TooLong { bytes: text.len() });
    }
    let mut levels = 1;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            0 => return Err(TopicError::Null { at }),
            b'/' => levels += 1,
            _ => {}
        }
    }
    if levels > TOPIC_LEVELS_MAX {
        return Err(TopicError::TooManyLevels { levels });
    }
    Ok(())
}

text_newtype!(TopicName);
