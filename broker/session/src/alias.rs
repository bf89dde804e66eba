//! Topic aliases of one connection, a table for each direction. Must never outlive the connection
//! [MQTT-3.3.2-7]. Topics are copied into the tables, because a received topic is a slice of a buffer that
//! would be kept alive with it.

use std::num::NonZeroU16;

use weir_codec::{Publish, ReasonCode};
use weir_env::seed::HashMap;
use weir_topic::TopicName;

use crate::ProtocolError;

/// What the client has named.
#[derive(Debug, Default)]
pub(crate) struct InboundAliases {
    maximum: u16,
    /// Index is alias - 1. At most `maximum` long; grows with the aliases in use.
    topics: Vec<Option<TopicName>>,
}

impl InboundAliases {
    pub(crate) fn new(maximum: u16) -> Self {
        Self { maximum, topics: Vec::new() }
    }

    /// The topic of `publish`, whose alias, if any, is set or looked up.
    pub(crate) fn resolve(&mut self, publish: &Publish) -> Result<TopicName, ProtocolError> {
        let Some(alias) = publish.header.topic_alias else {
            return publish.topic.clone().ok_or(ProtocolError {
                reason: ReasonCode::ProtocolError,
                what: "PUBLISH with neither topic nor topic alias",
            });
        };
        if alias.get() > self.maximum {
            return Err(ProtocolError {
                reason: ReasonCode::TopicAliasInvalid,
                what: "topic alias above the maximum that was granted",
            });
        }
        let index = usize::from(alias.get() - 1);
        match &publish.topic {
            Some(topic) => {
                if self.topics.len() <= index {
                    self.topics.resize(index + 1, None);
                }
                self.topics[index] = Some(copied(topic));
                Ok(topic.clone())
            }
            None => self.topics.get(index).cloned().flatten().ok_or(ProtocolError {
                reason: ReasonCode::ProtocolError,
                what: "topic alias that was never set",
            }),
        }
    }
}

/// What we have named.
#[derive(Debug)]
pub(crate) struct OutboundAliases {
    maximum: u16,
    aliases: HashMap<TopicName, NonZeroU16>,
    /// Index is alias - 1; at most `maximum` long.
    slots: Vec<Slot>,
    /// The last topic that found the table full. Only a topic that comes twice in a row among such replaces
    /// another: when there are far more topics than aliases, setting them would cost more than it saves.
    /// Empty: none. A `String` so that its buffer is used again.
    candidate: String,
    uses: u64,
}

#[derive(Debug)]
struct Slot {
    topic: TopicName,
    last_use: u64,
}

/// How to write a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TopicForm {
    /// The topic alone.
    Plain,
    /// The topic and an alias that stands for it from now on.
    Set(NonZeroU16),
    /// The alias alone.
    Alias(NonZeroU16),
}

/// Topics up to this length are not worth an alias: the property takes three bytes.
const SHORT: usize = 3;

impl OutboundAliases {
    pub(crate) fn new(maximum: u16) -> Self {
        Self { maximum, aliases: HashMap::default(), slots: Vec::new(), candidate: String::new(), uses: 0 }
    }

    /// How to write `topic` next; `may_set` tells if there is room for an alias beside it.
    pub(crate) fn form(&mut self, topic: &TopicName, may_set: impl FnOnce() -> bool) -> TopicForm {
        self.uses += 1;
        if let Some(&alias) = self.aliases.get(topic) {
            if let Some(slot) = self.slots.get_mut(usize::from(alias.get() - 1)) {
                slot.last_use = self.uses;
            }
            return TopicForm::Alias(alias);
        }
        if topic.as_str().len() <= SHORT || !may_set() {
            return TopicForm::Plain;
        }
        if self.slots.len() < usize::from(self.maximum) {
            return self.append(topic);
        }
        if self.candidate == topic.as_str() {
            self.candidate.clear();
            return self.replace_oldest(topic);
        }
        self.candidate.clear();
        self.candidate.push_str(topic.as_str());
        TopicForm::Plain
    }

    fn append(&mut self, topic: &TopicName) -> TopicForm {
        let topic = copied(topic);
        self.slots.push(Slot { topic: topic.clone(), last_use: self.uses });
        match u16::try_from(self.slots.len()).ok().and_then(NonZeroU16::new) {
            Some(alias) => {
                self.aliases.insert(topic, alias);
                TopicForm::Set(alias)
            }
            None => TopicForm::Plain,
        }
    }

    fn replace_oldest(&mut self, topic: &TopicName) -> TopicForm {
        let Some(oldest) = self.slots.iter_mut().min_by_key(|slot| slot.last_use) else {
            return TopicForm::Plain;
        };
        let Some(alias) = self.aliases.remove(&oldest.topic) else {
            return TopicForm::Plain;
        };
        let topic = copied(topic);
        *oldest = Slot { topic: topic.clone(), last_use: self.uses };
        self.aliases.insert(topic, alias);
        TopicForm::Set(alias)
    }
}

fn copied(topic: &TopicName) -> TopicName {
    TopicName::parse(topic.as_str().to_owned()).expect("a copy of a valid topic is valid")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(text: &str) -> TopicName {
        TopicName::parse(text.to_owned()).unwrap()
    }

    fn forms(maximum: u16, topics: &[&str]) -> Vec<String> {
        let mut aliases = OutboundAliases::new(maximum);
        topics
            .iter()
            .map(|text| match aliases.form(&topic(text), || true) {
                TopicForm::Plain => "plain".to_owned(),
                TopicForm::Set(alias) => format!("set {alias}"),
                TopicForm::Alias(alias) => format!("{alias}"),
            })
            .collect()
    }

    #[test]
    fn the_first_topics_get_the_aliases_at_once() {
        assert_eq!(forms(2, &["aaaa", "bbbb", "aaaa", "bbbb"]), ["set 1", "set 2", "1", "2"]);
    }

    #[test]
    fn a_full_table_admits_a_topic_that_repeats_in_place_of_the_longest_unused() {
        let seen = forms(2, &["aaaa", "bbbb", "aaaa", "cccc", "cccc", "cccc", "bbbb", "aaaa"]);
        assert_eq!(seen, ["set 1", "set 2", "1", "plain", "set 2", "2", "plain", "1"]);
    }

    #[test]
    fn many_topics_in_turn_do_not_thrash_the_table() {
        let topics = ["aaaa", "bbbb", "cccc", "dddd", "bbbb", "cccc", "dddd", "aaaa"];
        assert_eq!(forms(1, &topics), ["set 1", "plain", "plain", "plain", "plain", "plain", "plain", "1"]);
    }

    #[test]
    fn a_topic_shorter_than_the_property_gets_none() {
        assert_eq!(forms(1, &["abc", "abc"]), ["plain", "plain"]);
    }

    #[test]
    fn no_alias_is_set_where_there_is_no_room_for_it() {
        let mut aliases = OutboundAliases::new(4);
        assert_eq!(aliases.form(&topic("abcdef"), || false), TopicForm::Plain);
        assert_eq!(aliases.form(&topic("abcdef"), || true), TopicForm::Set(NonZeroU16::MIN));
        assert_eq!(aliases.form(&topic("abcdef"), || false), TopicForm::Alias(NonZeroU16::MIN));
    }
}
