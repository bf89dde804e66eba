//! Requests to the broker itself: workers that pull messages of a stream publish them to `$weir/stream/<name>/fetch`.
//!
//! A request is never routed, queued or retained. Whoever may subscribe to the stream may ask; the answer is published,
//! as by the client itself, to the response topic. What requests and answers say is in [`crate::fetch`]. Requests under
//! way end with their connection.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use weir_codec::{Message, MessageProperties, ProtocolVersion, QoS, ReasonCode};
use weir_core::Error;
use weir_core::catalog::Object;
use weir_core::definition::Kind;
use weir_core::key::Publisher;
use weir_session::PublishToken;
use weir_topic::{Subscription, TopicName};

use super::Connection;
use crate::broker::{Accepted, Broker, Inbound};
use crate::fetch::{self, REQUESTS, Refusal};
use crate::metrics::{Dropped, FetchOutcome};

/// Requests that one connection may have under way: each may hold an answer.
const FETCHES_MAX: usize = 4;
/// Bytes of an answer's packet beside topic, correlation data and payload.
const ANSWER_OVERHEAD: usize = 128;

/// Requests under way.
pub(super) type Fetches = Option<Box<JoinSet<()>>>;

/// Why a request is refused before it is looked into.
struct Refused {
    reason: ReasonCode,
    text: String,
}

/// Where the answer goes.
struct Way {
    broker: Arc<Broker>,
    publisher: Arc<Publisher>,
    qos: QoS,
    topic: TopicName,
    correlation_data: Option<Bytes>,
    /// Bytes that the payload may have.
    bytes_max: usize,
}

/// Whether a publish to `topic` is a request.
pub(super) fn is_request(topic: &TopicName) -> bool {
    topic.as_str().starts_with(REQUESTS)
}

impl Connection {
    /// Takes a request. It is acknowledged at once; its answer comes when it comes.
    pub(super) fn handle_request(&mut self, token: PublishToken, qos: QoS, retain: bool, message: &Message) {
        let (reason, text) = match self.begin_fetch(qos, retain, message) {
            Ok(()) => (ReasonCode::Success, None),
            Err(Refused { reason, text }) => {
                self.metrics.stream_fetches.inc(FetchOutcome::Refused);
                (reason, Some(text.into()))
            }
        };
        if qos != QoS::AtMostOnce {
            self.session.handle_published(token, reason, text);
        } else if reason.is_error() {
            self.metrics.messages_dropped.inc(Dropped::TopicNotAllowed);
            if !self.version.is_v5() {
                self.session.close(reason, None);
            }
        }
    }

    fn begin_fetch(&mut self, qos: QoS, retain: bool, message: &Message) -> Result<(), Refused> {
        let refused = |reason, text: &str| Refused { reason, text: text.to_owned() };
        let name = fetch::stream_of(&message.topic).filter(|_| self.version.is_v5()).ok_or_else(|| {
            let text = "nothing is published below $weir but requests of MQTT 5 to $weir/stream/<name>/fetch";
            refused(ReasonCode::TopicNameInvalid, text)
        })?;
        let properties = &message.properties;
        let Some(topic) = properties.response_topic.clone() else {
            let text = "a fetch needs a Response Topic: its answer is published there";
            return Err(refused(ReasonCode::ImplementationSpecificError, text));
        };
        if retain {
            let text = "a fetch is not retained; publish it without RETAIN";
            return Err(refused(ReasonCode::ImplementationSpecificError, text));
        }
        if weir_topic::is_publish_forbidden(&topic) {
            let text = format!("the Response Topic {topic} is not published to");
            return Err(refused(ReasonCode::TopicNameInvalid, &text));
        }
        let stream = self.broker.core.catalog().view().find(Kind::Stream, name.as_str());
        let to = Subscription::Stream { group: None, name: name.clone(), filter: None };
        let allowed = self.may_have(&to).map_err(|denied| (denied, &message.topic));
        let allowed =
            allowed.and_then(|()| self.may_publish(&topic, false).map_err(|denied| (denied, &topic)));
        if let Err((denied, what)) = allowed {
            self.log_refused(what, &denied);
            return Err(refused(ReasonCode::NotAuthorized, denied.text()));
        }
        let fetches = self.fetches.get_or_insert_default();
        while fetches.try_join_next().is_some() {}
        if fetches.len() >= FETCHES_MAX {
            let text = format!("{FETCHES_MAX} fetches of this connection are under way; wait for an answer");
            return Err(refused(ReasonCode::QuotaExceeded, &text));
        }
        let correlation_data = properties.correlation_data.clone();
        let packet_max = self.broker.session_limits.maximum_packet_size.get().min(self.wire.packet_size_max);
        let around = topic.as_str().len() + correlation_data.as_ref().map_or(0, Bytes::len) + ANSWER_OVERHEAD;
        let way = Way {
            broker: Arc::clone(&self.broker),
            publisher: Arc::clone(&self.publisher),
            qos: qos.min(QoS::AtLeastOnce),
            topic,
            correlation_data,
            bytes_max: usize::try_from(packet_max).unwrap_or(usize::MAX).saturating_sub(around),
        };
        let request = message.payload.clone();
        fetches.spawn(async move {
            let answered = way.fetch(name.as_str(), stream, &request).await;
            let outcome = if answered.is_ok() { FetchOutcome::Answered } else { FetchOutcome::Failed };
            way.broker.metrics.stream_fetches.inc(outcome);
            let (payload, permit) = answered.unwrap_or_else(|refusal| (fetch::refusal(&refusal), None));
            way.publish(payload).await;
            drop(permit);
        });
        Ok(())
    }
}

impl Way {
    /// The answer, and what is held as long as it is in memory.
    async fn fetch(
        &self,
        name: &str,
        stream: Option<Arc<Object>>,
        request: &[u8],
    ) -> Result<(String, Option<OwnedSemaphorePermit>), Refusal> {
        let stream = stream.ok_or_else(|| Refusal {
            code: "not-found",
            message: format!("there is no stream {name}; it may come"),
        })?;
        let mut fetch = fetch::request(request, stream.logs.len())?;
        // More would not fit into the answer.
        fetch.max_bytes = fetch.max_bytes.min(self.bytes_max as u64);
        fetch.options.name = (*self.publisher.client_id).into();
        let mut fetched = self.broker.core.fetch(&stream, &fetch).await.map_err(|error| match error {
            // It says what to do.
            Error::Damaged(damage) => Refusal { code: "damaged", message: damage.to_string() },
            error => Refusal { code: "unavailable", message: format!("{error}; try again") },
        })?;
        let permit = fetched.permit.take();
        Ok((fetch::answer(name, &fetched, self.bytes_max)?, permit))
    }

    /// Publishes the answer, to whom it concerns and as far as that goes: a client that misses it asks again.
    async fn publish(&self, payload: String) {
        let properties = MessageProperties {
            payload_format_utf8: Some(true),
            content_type: Some("application/json".into()),
            correlation_data: self.correlation_data.clone(),
            ..MessageProperties::default()
        };
        let message = Message { topic: self.topic.clone(), payload: payload.into(), properties };
        let inbound = Inbound {
            message: Arc::new(message),
            qos: self.qos,
            retain: false,
            keep: false,
            expiry: None,
            publish: None,
            noted: None,
            from: None,
            holder: None,
            is_late: false,
            publisher: Arc::clone(&self.publisher),
            version: ProtocolVersion::V5,
            live: true,
            dead_letter: None,
        };
        let outcome = match self.broker.publish(inbound).await {
            Accepted::Done(outcome) => outcome,
            Accepted::Pending(_, outcome) => outcome.await,
        };
        if outcome.reason.is_error() {
            tracing::debug!(topic = %self.topic, reason = %outcome.reason, "the answer to a fetch was not stored");
        }
    }
}
