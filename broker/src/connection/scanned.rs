//! Retained messages that go to a persistent session through its inbox: whether they come too late.
//!
//! Such a message is read first and put in line then. A newer one of its topic may have come between, and is in the
//! inbox before it; the client must not take the old one for what is retained. Knows the messages that were read since
//! the inbox was empty; it is forgotten with the connection, after which an old one may come late.

use weir_core::inbox::InboxItem;
use weir_core::message::Message;
use weir_env::clock::Timestamp;
use weir_env::seed::HashMap;
use weir_topic::TopicName;

/// Retained messages on their way. Costs nothing while there are none.
#[derive(Debug, Default)]
pub(super) struct Scanned(Option<Box<HashMap<TopicName, Latest>>>);

#[derive(Debug)]
struct Latest {
    published_at: Timestamp,
    /// A newer one to be retained has gone to the client.
    superseded: bool,
}

impl Scanned {
    /// A message was read that is going to be put into the inbox.
    pub(super) fn note(&mut self, message: &Message) {
        let latest = Latest { published_at: message.published_at, superseded: false };
        self.0.get_or_insert_default().insert(message.topic.clone(), latest);
    }

    /// Whether what comes next from the inbox is a retained message that follows a newer one.
    pub(super) fn is_superseded(&mut self, item: &InboxItem) -> bool {
        let message = &item.message;
        let Some(latest) = self.0.as_mut().and_then(|topics| topics.get_mut(&message.topic)) else {
            return false;
        };
        latest.superseded |= message.retain && message.published_at > latest.published_at;
        item.retain && latest.superseded && message.published_at == latest.published_at
    }

    /// The inbox is empty.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use weir_core::inbox::InboxId;
    use weir_core::message::Properties;

    use super::*;

    fn message(topic: &str, at: u64, retain: bool) -> Message {
        Message {
            topic: TopicName::parse(topic.to_owned()).unwrap(),
            payload: Bytes::new(),
            qos: 1,
            retain,
            published_at: Timestamp::from_micros(at),
            dead_letter: None,
            expires_at: None,
            properties: Properties::default(),
        }
    }

    fn item(message: Message, retain: bool) -> InboxItem {
        InboxItem { id: InboxId([0; 12]), qos: 1, retain, subscription_ids: Vec::new(), message }
    }

    #[test]
    fn a_retained_message_behind_a_newer_one_is_left_out() {
        // What comes before it: topic, time, published with RETAIN.
        let cases = [
            (vec![], false),
            (vec![("t", 6, true)], true),
            (vec![("t", 6, true), ("t", 7, false)], true),
            // Nothing that is retained, an older one, the same one, another topic's.
            (vec![("t", 6, false)], false),
            (vec![("t", 4, true), ("t", 5, true)], false),
            (vec![("u", 6, true)], false),
        ];
        for (before, left_out) in cases {
            let mut scanned = Scanned::default();
            scanned.note(&message("t", 5, true));
            for (topic, at, retain) in &before {
                for as_published in [false, true] {
                    let item = item(message(topic, *at, *retain), as_published && *retain);
                    assert!(!scanned.is_superseded(&item), "{before:?}");
                }
            }
            let late = item(message("t", 5, true), true);
            assert_eq!(scanned.is_superseded(&late), left_out, "{before:?}");
            // The next subscription gets what is retained then.
            scanned.note(&message("t", 8, true));
            assert!(!scanned.is_superseded(&item(message("t", 8, true), true)), "{before:?}");
            scanned.clear();
            assert!(!scanned.is_superseded(&late), "{before:?}");
        }
    }
}
