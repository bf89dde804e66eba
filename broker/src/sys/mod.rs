//! The broker's figures under `$SYS/broker`, for dashboards that were made for mosquitto.
//!
//! A task of its own reads them each `sys.interval` and publishes those that have changed to live subscribers, at
//! QoS 0. What was said last stays here for new subscriptions, which get it as they get retained messages. Nothing
//! of it reaches the store: no inbox, no queue, no stream, no retained record. Without the task there is nothing
//! under `$SYS`.

mod load;
mod reading;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use weir_codec::{Message as WireMessage, MessageProperties, QoS};
use weir_core::message::Message;
use weir_env::clock::Instant;
use weir_topic::{TopicFilter, TopicName};

use crate::broker::Broker;
use crate::convert;
use load::{Load, WINDOWS};
use reading::{FIGURES, LOADS, Reading};

/// What has been published last, in the order of [`topics`]; empty while `$SYS` is off.
#[derive(Debug, Default)]
pub(crate) struct Sys(Mutex<Vec<Arc<WireMessage>>>);

impl Sys {
    /// What a new subscription to `filter` gets.
    pub(crate) fn matching(&self, broker: &Broker, filter: &TopicFilter) -> Vec<Message> {
        // Most filters begin with another character and match nothing here [MQTT-4.7.2-1].
        if !filter.is_reserved() {
            return Vec::new();
        }
        let now = broker.clock.wall();
        let current = self.0.lock();
        let matching = current.iter().filter(|message| filter.matches(&message.topic));
        matching.map(|message| convert::to_core(message, QoS::AtMostOnce, true, None, now)).collect()
    }
}

/// Publishes the figures of one broker.
pub(crate) struct Publisher {
    broker: Arc<Broker>,
    interval: Duration,
    topics: Vec<TopicName>,
    loads: Vec<Load>,
    started: Instant,
    read: Instant,
    clients_max: u64,
}

impl Publisher {
    /// Publishes for the first time, so that the first subscription finds everything.
    pub(crate) fn start(broker: Arc<Broker>, interval: Duration) -> Self {
        let now = broker.clock.now();
        let mut publisher = Self {
            broker,
            interval,
            topics: topics().collect(),
            loads: vec![Load::default(); LOADS.len()],
            started: now,
            read: now,
            clients_max: 0,
        };
        publisher.publish();
        publisher
    }

    /// Publishes what changes until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.interval) => self.publish(),
                () = stop.cancelled() => return,
            }
        }
    }

    fn publish(&mut self) {
        let texts = self.read();
        let mut changed = Vec::new();
        {
            let mut current = self.broker.sys.0.lock();
            for (n, (topic, text)) in self.topics.iter().zip(texts).enumerate() {
                let known = current.get_mut(n);
                if known.as_ref().is_some_and(|known| known.payload == text.as_bytes()) {
                    continue;
                }
                let message = Arc::new(WireMessage {
                    topic: topic.clone(),
                    payload: text.into(),
                    properties: MessageProperties::default(),
                });
                changed.push(Arc::clone(&message));
                match known {
                    Some(known) => *known = message,
                    None => current.push(message),
                }
            }
        }
        for message in changed {
            // At QoS 0 nobody gets it from an inbox.
            let matched = self.broker.router.matches(&message, QoS::AtMostOnce, true, None);
            self.broker.deliver_to(&matched, &message, None, &tracing::Span::none());
        }
    }

    /// The payloads now, in the order of [`topics`].
    fn read(&mut self) -> Vec<String> {
        let reading = Reading::take(&self.broker, self.started, self.clients_max);
        self.clients_max = reading.clients_max();
        let now = self.broker.clock.now();
        let elapsed = now - self.read;
        self.read = now;
        let mut texts: Vec<String> = FIGURES.iter().map(|(_, figure)| figure(&reading)).collect();
        for (load, (_, count)) in self.loads.iter_mut().zip(LOADS) {
            load.update(count(&reading), elapsed);
            texts.extend(load.averages().map(|average| format!("{average:.2}")));
        }
        texts
    }
}

/// Every topic there is under `$SYS`.
fn topics() -> impl Iterator<Item = TopicName> {
    let figures = FIGURES.iter().map(|(name, _)| format!("$SYS/broker/{name}"));
    let loads =
        LOADS.iter().flat_map(|(name, _)| WINDOWS.map(|(window, _)| format!("$SYS/broker/{name}/{window}")));
    figures.chain(loads).map(|topic| TopicName::parse(topic).expect("a topic name without wildcards"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// `docs/sys-topics.md` has a row for each topic and no other. A row of a load stands for its windows.
    #[test]
    fn every_topic_is_documented() {
        let text = include_str!("../../../docs/sys-topics.md");
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `$SYS/")?.split('`').next());
        let documented: BTreeSet<String> = rows
            .flat_map(|row| match row.strip_suffix("/{1min,5min,15min}") {
                Some(load) => super::WINDOWS.map(|(window, _)| format!("$SYS/{load}/{window}")).to_vec(),
                None => vec![format!("$SYS/{row}")],
            })
            .collect();
        let published: BTreeSet<String> = super::topics().map(|topic| topic.to_string()).collect();
        assert_eq!(documented, published);
    }
}
