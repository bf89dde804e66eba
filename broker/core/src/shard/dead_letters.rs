//! Sending dead letters on: to the queue that takes them, or to a topic.
//!
//! A dead letter is appended under an id made of where it comes from, so that sending it again appends nothing.
//! Knows the catalog and the owners of other shards; which messages are dead letters, and when they are sent
//! again, is the affair of the queue they leave.

use std::sync::{Arc, OnceLock, Weak};

use bytestring::ByteString;
use futures_util::future::{BoxFuture, join_all};
use weir_topic::TopicName;

use super::owners::Owners;
use super::{AppendError, AppendReply};
use crate::catalog::{Catalog, Object};
use crate::controls::Wishes;
use crate::core::place;
use crate::definition::{DeadLetterTarget, Kind};
use crate::error::{Error, Result};
use crate::key::Publisher;
use crate::keyspace::segment::{Record, RecordKey};
use crate::keyspace::{LogId, PublishId};
use crate::message::Message;
use crate::queue::DeadReason;

/// User property of a dead letter: why it is one.
pub const REASON_PROPERTY: &str = "dead-letter-reason";
/// User property of a dead letter: the queue it left.
pub const QUEUE_PROPERTY: &str = "dead-letter-queue";
/// User property of a dead letter: how often it was delivered without success.
pub const DELIVERY_COUNT_PROPERTY: &str = "delivery-count";
/// User property of a dead letter: where it was published.
pub const TOPIC_PROPERTY: &str = "original-topic";

/// Whether a letter may have been sent before. Always: an owner that was overtaken without knowing may send it first, or
/// after its successor has, and only who takes it can tell.
const REPEAT: bool = true;

/// A message that leaves its queue.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetter {
    pub(crate) offset: u64,
    pub(crate) record: Arc<Record>,
    pub(crate) reason: DeadReason,
    /// Failed attempts to deliver it.
    pub(crate) attempts: u32,
    /// This owner has not sent it yet.
    pub(crate) is_first: bool,
}

/// Dead letters by offset, and why they could not be sent.
pub(crate) type Sent = Vec<(u64, std::result::Result<(), Arc<str>>)>;

/// A dead letter on its way to a topic.
#[derive(Clone, Debug)]
pub struct TopicLetter {
    /// What is to be published; its mark as a dead letter must be kept.
    pub message: Message,
    /// Names the publish, and says whether it may be a repeat.
    pub publish: (PublishId, bool),
    /// Whether live subscribers are to get it: not once more when it is only tried again to store it.
    pub live: bool,
}

/// Publishes dead letters whose target is a topic.
pub trait PublishLetters: std::fmt::Debug + Send + Sync {
    /// Publishes one to everybody it is for; done once it is durable where it must be, else says why not.
    fn publish(&self, letter: TopicLetter) -> BoxFuture<'static, std::result::Result<(), String>>;
}

/// The way of dead letters to their targets.
#[derive(Debug)]
pub(crate) struct DeadLetters {
    catalog: Arc<Catalog>,
    /// Owners hold this; it must not hold them.
    owners: Weak<Owners>,
    publisher: OnceLock<Arc<dyn PublishLetters>>,
}

impl DeadLetters {
    pub(crate) fn new(catalog: Arc<Catalog>, owners: Weak<Owners>) -> Self {
        Self { catalog, owners, publisher: OnceLock::new() }
    }

    /// Says who publishes to topics; the first time counts.
    pub(crate) fn publish_with(&self, publisher: Arc<dyn PublishLetters>) {
        // Whoever was first stays: there is one broker over a core.
        let _ = self.publisher.set(publisher);
    }

    /// Sends `letters` of `log` to where `queue` wants them. Each is at its target once it is told so.
    pub(crate) async fn send(&self, queue: &Object, log: &LogId, letters: Vec<DeadLetter>) -> Sent {
        match &queue.definition.queue.dead_letter {
            Some(DeadLetterTarget::Object(name)) => self.send_to_queue(queue, log, name, letters).await,
            Some(DeadLetterTarget::Topic(topic)) => self.send_to_topic(queue, log, topic, letters).await,
            None => refuse_all(&letters, "the queue has no dead-letter target any more"),
        }
    }

    async fn send_to_queue(&self, queue: &Object, log: &LogId, name: &str, letters: Vec<DeadLetter>) -> Sent {
        let namespace = &queue.definition.namespace;
        let view = self.catalog.view();
        let is_target = |object: &&Arc<Object>| {
            object.definition.namespace == *namespace && object.definition.object == name
        };
        let Some(target) = view.all(Kind::Queue).find(is_target).filter(|target| target.id != queue.id)
        else {
            let what = format!(
                "there is no other queue `{name}` in namespace `{namespace}`: \
                 create it, or change deadLetter"
            );
            return refuse_all(&letters, &what);
        };
        let mut replies = Vec::with_capacity(letters.len());
        for letter in &letters {
            replies.push(self.append(queue, log, target, letter).await);
        }
        let mut sent = Sent::with_capacity(letters.len());
        for (letter, reply) in letters.iter().zip(replies) {
            let result = match reply {
                Ok(reply) => reply.await.unwrap_or(Err(AppendError::Failed(Error::Closed))),
                Err(error) => Err(AppendError::Failed(error)),
            };
            sent.push((letter.offset, result.map_err(|error| blocked_by(&error).into())));
        }
        sent
    }

    async fn append(
        &self,
        queue: &Object,
        log: &LogId,
        target: &Arc<Object>,
        letter: &DeadLetter,
    ) -> Result<AppendReply> {
        let owners = self.owners.upgrade().ok_or(Error::Closed)?;
        let mut record = record_of(queue, letter, None);
        record.key = if target.definition.effective_key() == queue.definition.effective_key() {
            letter.record.key.clone()
        } else {
            let key =
                target.key.as_ref().and_then(|key| key.evaluate(&record.message, &Publisher::default()));
            key.unwrap_or_default()
        };
        let to = place(target, &record, None).ok_or(Error::Closed)?;
        let handle = owners.get(to.vs)?.clone();
        drop(owners);
        let publish = (PublishId::of_dead_letter(log, letter.offset), REPEAT);
        // It asks for nothing: it has waited, and is not the message that had its id.
        handle.append(Arc::clone(target), to, record, Some(publish), Wishes::default()).await
    }

    async fn send_to_topic(
        &self,
        queue: &Object,
        log: &LogId,
        topic: &str,
        letters: Vec<DeadLetter>,
    ) -> Sent {
        let Some(publisher) = self.publisher.get() else {
            return refuse_all(&letters, "the broker is starting; it is tried again");
        };
        let Ok(topic) = TopicName::parse(topic.to_owned()) else {
            return refuse_all(&letters, &format!("`{topic}` is not a topic name: change deadLetter.topic"));
        };
        let publishes = letters.iter().map(|letter| {
            let mut message = record_of(queue, letter, Some(&topic)).message;
            message.qos = 1;
            let publish = (PublishId::of_dead_letter(log, letter.offset), REPEAT);
            publisher.publish(TopicLetter { message, publish, live: letter.is_first })
        });
        let results = join_all(publishes).await;
        let why = |error: String| format!("publish to topic `{topic}`: {error}").into();
        letters.iter().zip(results).map(|(letter, result)| (letter.offset, result.map_err(why))).collect()
    }
}

/// The dead letter that `letter` becomes, at `topic` if it does not keep its own.
fn record_of(queue: &Object, letter: &DeadLetter, topic: Option<&TopicName>) -> Record {
    let original = &letter.record.message;
    let added = [
        (REASON_PROPERTY, ByteString::from_static(letter.reason.as_str())),
        (QUEUE_PROPERTY, queue.definition.name.as_str().into()),
        (DELIVERY_COUNT_PROPERTY, letter.attempts.to_string().into()),
        (TOPIC_PROPERTY, original.topic.as_str().into()),
    ];
    let added = added.map(|(name, value)| (ByteString::from_static(name), value));
    let mut message = Message {
        topic: topic.unwrap_or(&original.topic).clone(),
        expires_at: None,
        retain: false,
        dead_letter: Some(queue.id),
        ..original.clone()
    };
    message.properties.user.extend(added.iter().cloned());
    let mut record = Record { message, key: RecordKey::None, blob_len: None, span: tracing::Span::none() };
    if record.check_size().is_err() {
        // What we say of a message must not keep it here for ever: its publisher's own properties give way.
        record.message.properties.user = added.into();
    }
    record
}

fn blocked_by(error: &AppendError) -> String {
    match error {
        AppendError::Full { .. } => {
            format!("dead-letter queue {error}: consume or purge it, or raise its limit")
        }
        AppendError::Invalid { .. } | AppendError::Failed(_) => {
            format!("dead-letter queue: {error}; it is tried again")
        }
    }
}

fn refuse_all(letters: &[DeadLetter], why: &str) -> Sent {
    let why: Arc<str> = why.into();
    letters.iter().map(|letter| (letter.offset, Err(Arc::clone(&why)))).collect()
}
