//! Dead letters that go to a topic: the broker publishes them as it does a client's messages, on both paths. Which
//! messages are dead letters, and when one is tried again, is the affair of the queue they leave.

use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;
use weir_codec::{ProtocolVersion, QoS};
use weir_core::key::Publisher;
use weir_core::shard::{PublishLetters, TopicLetter};

use crate::broker::{Accepted, Broker, Inbound};
use crate::convert;

/// Publishes dead letters for the queues of a broker, which it does not keep alive.
pub(crate) struct LetterPublisher(Weak<Broker>);

impl LetterPublisher {
    pub(crate) fn new(broker: &Arc<Broker>) -> Self {
        Self(Arc::downgrade(broker))
    }
}

impl std::fmt::Debug for LetterPublisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LetterPublisher")
    }
}

impl PublishLetters for LetterPublisher {
    fn publish(&self, letter: TopicLetter) -> BoxFuture<'static, Result<(), String>> {
        let broker = self.0.upgrade();
        Box::pin(async move {
            let Some(broker) = broker else { return Err("the broker shuts down".to_owned()) };
            let TopicLetter { message, publish, live } = letter;
            let inbound = Inbound {
                message: convert::to_wire(&message),
                qos: QoS::AtLeastOnce,
                retain: false,
                keep: false,
                expiry: None,
                publish: Some(publish),
                noted: None,
                from: None,
                holder: None,
                is_late: false,
                publisher: Arc::new(Publisher::default()),
                version: ProtocolVersion::V5,
                live,
                dead_letter: message.dead_letter,
            };
            let outcome = match broker.publish(inbound).await {
                Accepted::Done(outcome) => outcome,
                Accepted::Pending(_, outcome) => outcome.await,
            };
            if outcome.reason.is_error() {
                return Err(format!("{}; it is tried again", outcome.reason));
            }
            Ok(())
        })
    }
}
