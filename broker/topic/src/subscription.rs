//! The grammar of what a client subscribes to: topic filters, shared subscriptions, queues and streams.
//!
//! Parsing only tells the forms apart. Whether a queue exists, whether a filter equals its own and what a
//! start position means is not known here.

use std::fmt;

use bytestring::ByteString;

use crate::text::text_newtype;
use crate::{SubscriptionError, TOPIC_BYTES_MAX, TopicFilter};

const SHARE: &str = "$share/";
const QUEUE: &str = "$queue/";
const QUEUE_BY_FILTER: &str = "$q/";
const STREAM: &str = "$stream/";
const STREAM_BY_FILTER: &str = "$s/";

/// What the text in a SUBSCRIBE or UNSUBSCRIBE asks for. [`Display`](fmt::Display) gives that text back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subscription {
    /// `<filter>`
    Plain(TopicFilter),
    /// `$share/<group>/<filter>`: each message goes to one member of the group.
    Shared {
        /// Members of one group with one filter share its messages.
        group: ShareName,
        /// What the group wants.
        filter: TopicFilter,
    },
    /// `$queue/<name>[/<filter>]`: consume the queue of that name.
    Queue {
        /// The queue's name.
        name: ObjectName,
        /// Must equal the queue's own filter; may create the queue.
        filter: Option<TopicFilter>,
    },
    /// `$q/<filter>`: consume the queue that has this filter.
    QueueByFilter {
        /// Equals the queue's own filter.
        filter: TopicFilter,
    },
    /// `[$share/<group>/]$stream/<name>[/<filter>]`: read the stream of that name.
    Stream {
        /// The consumer group, if it is read by one.
        group: Option<ShareName>,
        /// The stream's name.
        name: ObjectName,
        /// Must equal the stream's own filter; may create the stream.
        filter: Option<TopicFilter>,
    },
    /// `[$share/<group>/]$s/<start>/<filter>`: read the stream that has this filter.
    StreamByFilter {
        /// The consumer group, if it is read by one.
        group: Option<ShareName>,
        /// Where to start, as written: not empty, no slash.
        start: ByteString,
        /// Equals the stream's own filter.
        filter: TopicFilter,
    },
}

impl Subscription {
    /// Parses `text`; the parts share its bytes. A first level that only resembles a prefix, such as `$queue`
    /// without a slash or `$Share/`, is an ordinary topic filter.
    ///
    /// # Errors
    /// The first rule that `text` breaks.
    pub fn parse(text: impl Into<ByteString>) -> Result<Self, SubscriptionError> {
        let text = text.into();
        if text.len() > TOPIC_BYTES_MAX {
            return Err(SubscriptionError::TooLong { bytes: text.len() });
        }
        let parser = Parser { text: &text };
        let Some(shared) = text.strip_prefix(SHARE) else {
            return parser.ungrouped(&text, None);
        };
        let (group, rest) = shared.split_once('/').map_or((shared, None), |(g, rest)| (g, Some(rest)));
        let group = ShareName::parse(text.slice_ref(group))?;
        let rest = rest.filter(|rest| !rest.is_empty()).ok_or(SubscriptionError::ShareFilterMissing)?;
        parser.ungrouped(rest, Some(group))
    }
}

/// Cuts parts out of the text without copying them, and knows where they lie.
struct Parser<'a> {
    text: &'a ByteString,
}

impl Parser<'_> {
    /// `rest` is the text behind `$share/<group>/`, or all of it.
    fn ungrouped(&self, rest: &str, group: Option<ShareName>) -> Result<Subscription, SubscriptionError> {
        if let Some(named) = rest.strip_prefix(QUEUE) {
            refuse_group(group.as_ref(), QUEUE)?;
            let (name, filter) = self.name_and_filter(named)?;
            return Ok(Subscription::Queue { name, filter });
        }
        if let Some(filter) = rest.strip_prefix(QUEUE_BY_FILTER) {
            refuse_group(group.as_ref(), QUEUE_BY_FILTER)?;
            return Ok(Subscription::QueueByFilter { filter: self.object_filter(filter)? });
        }
        if let Some(named) = rest.strip_prefix(STREAM) {
            let (name, filter) = self.name_and_filter(named)?;
            return Ok(Subscription::Stream { group, name, filter });
        }
        if let Some(started) = rest.strip_prefix(STREAM_BY_FILTER) {
            let (start, filter) = started.split_once('/').map_or((started, None), |(s, f)| (s, Some(f)));
            if start.is_empty() {
                return Err(SubscriptionError::StartEmpty);
            }
            let filter = filter.filter(|f| !f.is_empty()).ok_or(SubscriptionError::StartFilterMissing)?;
            let start = self.text.slice_ref(start);
            return Ok(Subscription::StreamByFilter { group, start, filter: self.object_filter(filter)? });
        }
        if group.is_some() && rest.starts_with(SHARE) {
            return Err(SubscriptionError::ShareInShare);
        }
        let filter = self.filter(rest)?;
        Ok(match group {
            Some(group) => Subscription::Shared { group, filter },
            None => Subscription::Plain(filter),
        })
    }

    /// `<name>[/<filter>]`
    fn name_and_filter(&self, text: &str) -> Result<(ObjectName, Option<TopicFilter>), SubscriptionError> {
        let (name, filter) = text.split_once('/').map_or((text, None), |(n, f)| (n, Some(f)));
        let name = ObjectName::parse(self.text.slice_ref(name))?;
        let filter = filter.map(|filter| self.object_filter(filter)).transpose()?;
        Ok((name, filter))
    }

    fn object_filter(&self, text: &str) -> Result<TopicFilter, SubscriptionError> {
        let filter = self.filter(text)?;
        if filter.is_reserved() { Err(SubscriptionError::ObjectFilterReserved) } else { Ok(filter) }
    }

    /// `text` is always a tail of the whole.
    fn filter(&self, text: &str) -> Result<TopicFilter, SubscriptionError> {
        let offset = self.text.len() - text.len();
        TopicFilter::parse(self.text.slice_ref(text))
            .map_err(|source| SubscriptionError::Filter { offset, source })
    }
}

fn refuse_group(group: Option<&ShareName>, prefix: &'static str) -> Result<(), SubscriptionError> {
    match group {
        Some(_) => Err(SubscriptionError::ShareBeforeQueue { prefix }),
        None => Ok(()),
    }
}

impl fmt::Display for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = match self {
            Self::Shared { group, .. } => Some(group),
            Self::Stream { group, .. } | Self::StreamByFilter { group, .. } => group.as_ref(),
            Self::Plain(_) | Self::Queue { .. } | Self::QueueByFilter { .. } => None,
        };
        if let Some(group) = group {
            write!(f, "{SHARE}{group}/")?;
        }
        match self {
            Self::Plain(filter) | Self::Shared { filter, .. } => write!(f, "{filter}"),
            Self::Queue { name, filter: None } => write!(f, "{QUEUE}{name}"),
            Self::Queue { name, filter: Some(filter) } => write!(f, "{QUEUE}{name}/{filter}"),
            Self::QueueByFilter { filter } => write!(f, "{QUEUE_BY_FILTER}{filter}"),
            Self::Stream { name, filter: None, .. } => write!(f, "{STREAM}{name}"),
            Self::Stream { name, filter: Some(filter), .. } => write!(f, "{STREAM}{name}/{filter}"),
            Self::StreamByFilter { start, filter, .. } => write!(f, "{STREAM_BY_FILTER}{start}/{filter}"),
        }
    }
}

/// The name of a group of subscribers: not empty, no `/`, `+`, `#` or null character. `[MQTT-4.8.2-1]`,
/// `[MQTT-4.8.2-2]`
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShareName(ByteString);

impl ShareName {
    /// Checks `text` and takes it over without a copy.
    ///
    /// # Errors
    /// [`SubscriptionError::TooLong`], [`SubscriptionError::ShareNameEmpty`] or
    /// [`SubscriptionError::ShareNameCharacter`].
    pub fn parse(text: impl Into<ByteString>) -> Result<Self, SubscriptionError> {
        let text = text.into();
        if text.len() > TOPIC_BYTES_MAX {
            return Err(SubscriptionError::TooLong { bytes: text.len() });
        }
        if text.is_empty() {
            return Err(SubscriptionError::ShareNameEmpty);
        }
        match text.char_indices().find(|(_, character)| matches!(character, '/' | '+' | '#' | '\0')) {
            Some((at, character)) => Err(SubscriptionError::ShareNameCharacter { character, at }),
            None => Ok(Self(text)),
        }
    }
}

/// The name of a queue or stream: `[0-9A-Za-z][-._0-9A-Za-z]*`, at most [`ObjectName::BYTES_MAX`] long.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(ByteString);

impl ObjectName {
    /// Longest name, in bytes.
    pub const BYTES_MAX: usize = 128;

    /// Checks `text` and takes it over without a copy.
    ///
    /// # Errors
    /// [`SubscriptionError::ObjectNameEmpty`], [`SubscriptionError::ObjectNameTooLong`] or
    /// [`SubscriptionError::ObjectNameCharacter`].
    pub fn parse(text: impl Into<ByteString>) -> Result<Self, SubscriptionError> {
        let text = text.into();
        if text.is_empty() {
            return Err(SubscriptionError::ObjectNameEmpty);
        }
        if text.len() > Self::BYTES_MAX {
            return Err(SubscriptionError::ObjectNameTooLong { bytes: text.len() });
        }
        let allowed = |at: usize, character: char| {
            character.is_ascii_alphanumeric() || (at > 0 && matches!(character, '-' | '.' | '_'))
        };
        match text.char_indices().find(|&(at, character)| !allowed(at, character)) {
            Some((at, character)) => Err(SubscriptionError::ObjectNameCharacter { character, at }),
            None => Ok(Self(text)),
        }
    }
}

text_newtype!(ShareName, ObjectName);
