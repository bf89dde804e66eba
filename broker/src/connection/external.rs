//! Subscriptions of one connection to queues and streams.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use bytestring::ByteString;
use weir_codec::{QoS, ReasonCode, UserProperties};
use weir_core::catalog::{CatalogView, Object};
use weir_core::definition::Kind;
use weir_core::keyspace::segment::Record;
use weir_core::keyspace::session_position::SessionPosition;
use weir_core::queue::{Consumer, QueueDelivery};
use weir_topic::{ShareName, Subscription, TopicFilter};

use super::stream::Reading;
use super::stream::request::StreamRequest;
use super::waiting::Waiting;

/// Queue and stream subscriptions of one connection.
pub(super) const EXTERNALS_MAX: usize = 64;
/// Messages a consumer may hold, whatever its queue allows: bounds the channel they come through.
pub(super) const CONSUMER_WINDOW_MAX: u32 = 4096;
/// Room in the channel of queue messages: every consumer's window at once.
pub(super) const QUEUE_CHANNEL: usize = EXTERNALS_MAX * CONSUMER_WINDOW_MAX as usize;

/// Characters of a hash in a derived name: 130 bits.
const DERIVED_CHARS: usize = 26;
/// Bytes of the hash that they stand for.
const DERIVED_BYTES: usize = 17;
/// The digits of RFC 4648, in lower case.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A subscription to a queue or stream.
#[derive(Debug)]
pub(super) struct External {
    /// As the client wrote it.
    pub(super) text: ByteString,
    pub(super) to: Subscription,
    pub(super) qos: QoS,
    pub(super) identifier: Option<u32>,
    /// What is asked for of a stream.
    pub(super) request: Box<StreamRequest>,
    /// Where it was left in a stream that is not read now.
    pub(super) left: Option<Box<SessionPosition>>,
    /// It cannot have what exists already, and is tried again.
    pub(super) waiting: Option<Box<Waiting>>,
    pub(super) source: Source,
}

/// Where the messages of an [`External`] come from now.
#[derive(Debug)]
pub(super) enum Source {
    /// The queue or stream does not exist yet.
    Missing,
    Queue {
        object: Arc<Object>,
        consumer: Consumer,
    },
    Stream(Box<Reading>),
}

impl Source {
    /// Once it is released, the client does not come back to it.
    pub(super) fn leave_for_good(&mut self) {
        match self {
            Self::Stream(reading) => reading.leave_for_good(),
            Self::Missing | Self::Queue { .. } => {}
        }
    }
}

/// Why a subscription to a queue or stream is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) reason: ReasonCode,
    pub(super) text: String,
}

impl External {
    pub(super) fn kind(&self) -> Kind {
        kind_of(&self.to).unwrap_or(Kind::Queue)
    }

    /// Whether it is a bounded replay whose end the client knows of.
    pub(super) fn has_ended(&self) -> bool {
        matches!(&self.source, Source::Stream(reading) if reading.has_ended())
    }

    /// Whether it is a stream whose reader could not go on.
    pub(super) fn lost_reader(&self) -> bool {
        matches!(&self.source, Source::Stream(reading) if reading.is_lost())
    }

    pub(super) fn object(&self) -> Option<&Arc<Object>> {
        match &self.source {
            Source::Missing => None,
            Source::Queue { object, .. } => Some(object),
            Source::Stream(reading) => Some(&reading.object),
        }
    }
}

/// Whether a subscription is to a queue or to a stream.
pub(super) fn kind_of(to: &Subscription) -> Option<Kind> {
    match to {
        Subscription::Plain(_) | Subscription::Shared { .. } => None,
        Subscription::Queue { .. } | Subscription::QueueByFilter { .. } => Some(Kind::Queue),
        Subscription::Stream { .. } | Subscription::StreamByFilter { .. } => Some(Kind::Stream),
    }
}

/// The consumer group of a stream that a subscription is to join.
pub(super) fn group_of(to: &Subscription) -> Option<&ShareName> {
    match to {
        Subscription::Stream { group, .. } | Subscription::StreamByFilter { group, .. } => group.as_ref(),
        Subscription::Plain(_)
        | Subscription::Shared { .. }
        | Subscription::Queue { .. }
        | Subscription::QueueByFilter { .. } => None,
    }
}

/// Whether two subscriptions to one queue or stream share its messages: a connection has only one of such.
pub(super) fn share(one: &Subscription, other: &Subscription) -> bool {
    match kind_of(one) {
        Some(Kind::Queue) => true,
        Some(Kind::Stream) | None => group_of(one).is_some() && group_of(one) == group_of(other),
    }
}

/// The queue or stream a subscription names; `None` if there is none yet.
pub(super) fn resolve(view: &CatalogView, to: &Subscription) -> Result<Option<Arc<Object>>, Refusal> {
    let Some(kind) = kind_of(to) else { return Ok(None) };
    match to {
        Subscription::Plain(_) | Subscription::Shared { .. } => Ok(None),
        Subscription::Queue { name, filter } | Subscription::Stream { name, filter, .. } => {
            let Some(object) = view.find(kind, name.as_str()) else { return Ok(None) };
            match (filter, &object.filter) {
                (Some(asked), own) if own.as_ref() != Some(asked) => {
                    Err(other_filter(name.as_str(), asked, own.as_ref()))
                }
                _ => Ok(Some(object)),
            }
        }
        Subscription::QueueByFilter { filter } | Subscription::StreamByFilter { filter, .. } => {
            // The name that automatic creation gives it, whoever made it.
            if let Some(derived) = view.find(kind, &derived_name(filter))
                && derived.filter.as_ref() == Some(filter)
            {
                return Ok(Some(derived));
            }
            let found = view.with_filter(kind, filter);
            if found.len() > 1 {
                let names: Vec<&str> = found.iter().map(|o| o.definition.name.as_str()).collect();
                let text =
                    format!("several have the filter {filter}: {}; subscribe by name", names.join(", "));
                return Err(Refusal { reason: ReasonCode::TopicFilterInvalid, text });
            }
            Ok(found.first().cloned())
        }
    }
}

/// The name of the queue or stream that a subscription by `filter` creates: `auto-` and the beginning of a hash, in
/// base32.
pub(super) fn derived_name(filter: &TopicFilter) -> String {
    let mut name = "auto-".to_owned();
    // What is left of the bytes so far: fewer than five bits.
    let (mut bits, mut count) = (0_u32, 0);
    for byte in digest(&SHA256, filter.as_str().as_bytes()).as_ref().iter().take(DERIVED_BYTES) {
        bits = (bits << 8 | u32::from(*byte)) & 0xfff;
        count += 8;
        while count >= 5 {
            count -= 5;
            let digit = (bits >> count & 31) as usize;
            name.push(char::from(BASE32[digit]));
        }
    }
    // The last byte may have bits for one character more.
    name.truncate("auto-".len() + DERIVED_CHARS);
    name
}

/// Refuses a subscription by name and filter to what has another filter.
pub(super) fn other_filter(name: &str, asked: &TopicFilter, own: Option<&TopicFilter>) -> Refusal {
    let own = own.map_or_else(|| "no filter".to_owned(), |own| format!("the filter {own}"));
    let text = format!("{name} has {own}, not {asked}");
    Refusal { reason: ReasonCode::TopicFilterInvalid, text }
}

/// User properties that say where a queue message comes from; they come after the publisher's own.
pub(super) fn queue_properties(object: &Object, delivery: &QueueDelivery) -> UserProperties {
    let mut extra: UserProperties = vec![
        ("queue".into(), object.definition.name.clone().into()),
        ("offset".into(), delivery.offset.to_string().into()),
        ("shard".into(), delivery.log.shard.to_string().into()),
        ("delivery-count".into(), delivery.delivery_count.to_string().into()),
    ];
    if delivery.log.class != 0 {
        extra.push(("priority".into(), delivery.log.class.to_string().into()));
    }
    extra.extend(key_property(&delivery.record));
    extra
}

pub(super) fn key_property(record: &Record) -> Option<(ByteString, ByteString)> {
    let key = std::str::from_utf8(record.key_bytes()?).ok()?;
    Some(("key".into(), key.to_owned().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_names() {
        for (filter, name) in [
            ("job/#", "auto-wxa3zjf7ntwm5miwjxmkacmf33"),
            ("sensor/+/data", "auto-lnlvv4d2mzv7nuih3lq3ki5bow"),
        ] {
            assert_eq!(derived_name(&TopicFilter::parse(filter).unwrap()), name);
        }
    }
}
