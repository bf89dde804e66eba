//! What the client publishes.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use weir_codec::{Message, PacketId, QoS, ReasonCode};
use weir_core::keyspace::PublishId;
use weir_core::sessions::SessionOp;
use weir_session::{Event, PublishToken};

use super::fetch::is_request;
use super::{Asker, Connection, Incoming, Tag};
use crate::broker::{Accepted, Begun, Inbound, Outcome};
use crate::convert;
use crate::metrics::Dropped;

/// A publish that is to be put in line.
pub(super) type Enqueued = (Asker, BoxFuture<'static, Accepted>);

/// Why a publish is refused whoever sent it.
struct Unfit {
    reason: ReasonCode,
    text: &'static str,
    /// How it is counted where it cannot be answered.
    dropped: Dropped,
}

fn unfit(message: &Message) -> Option<Unfit> {
    if weir_topic::is_publish_forbidden(&message.topic) {
        return Some(Unfit {
            reason: ReasonCode::TopicNameInvalid,
            text: "topics below $queue, $q, $stream, $s and $SYS are not published to",
            dropped: Dropped::TopicNotAllowed,
        });
    }
    (!convert::is_as_it_says(message)).then_some(Unfit {
        reason: ReasonCode::PayloadFormatInvalid,
        text: "the payload is said to be UTF-8 and is not",
        dropped: Dropped::PayloadFormatInvalid,
    })
}

impl Connection {
    /// Takes publishes in the order they came. Those of QoS 2 in a persistent session are first noted in the
    /// store, all in one transaction, so that a repeat after a crash is known for one.
    pub(super) async fn handle_publishes(&mut self, publishes: &mut Vec<Event<Tag>>) {
        if publishes.is_empty() {
            return;
        }
        if !self.refresh_access() || self.stored.persistent && !Box::pin(self.note_incoming(publishes)).await
        {
            publishes.clear();
            return;
        }
        for event in publishes.drain(..) {
            if let Some(enqueued) = self.handle_publish(event) {
                self.enqueue(enqueued).await;
            }
        }
    }

    /// Takes one publish, as far as that goes without waiting. What is left is for [`Self::enqueue`].
    pub(super) fn handle_publish(&mut self, event: Event<Tag>) -> Option<Enqueued> {
        let Event::Publish { token, packet_id, qos, retain, message, expiry, repeated, .. } = event else {
            return None;
        };
        self.metrics.publishes.inc(qos);
        self.metrics.published_bytes.inc_by(message.payload.len() as u64);
        if !repeated && is_request(&message.topic) {
            self.handle_request(token, qos, retain, &message);
            return None;
        }
        if repeated || self.refuse(token, qos, retain, &message) {
            return None;
        }
        let noted = packet_id.filter(|_| qos == QoS::ExactlyOnce);
        let publish = noted.and_then(|id| self.incoming.get_mut(&id.get())).map(|noted| {
            // From now on it may have been stored: a repeat must look for it.
            noted.left = false;
            (noted.publish, std::mem::replace(&mut noted.tried, true))
        });
        let holder = self.broker.pods.is_some() && retain;
        // What follows one that waits does not overtake it.
        self.is_late = self.is_late && !self.pending.is_empty() || holder;
        let inbound = Inbound {
            message,
            qos,
            retain,
            keep: true,
            expiry,
            publish,
            noted: noted.filter(|_| publish.is_some()).map(PacketId::get),
            from: Some(self.subscriber.id),
            holder: holder.then(|| Box::new(self.stored.clone())),
            is_late: self.is_late,
            publisher: Arc::clone(&self.publisher),
            version: self.version,
            live: true,
            dead_letter: None,
        };
        let asker = packet_id.map(|id| (token, id));
        match self.broker.begin_publish(inbound) {
            Begun::Accepted(accepted) => {
                self.handle_accepted(asker, accepted);
                None
            }
            Begun::Enqueue(enqueue) => Some((asker, enqueue)),
        }
    }

    /// Puts a publish in line. The next one must wait for that: they keep their order.
    pub(super) async fn enqueue(&mut self, (asker, enqueue): Enqueued) {
        let accepted = enqueue.await;
        self.handle_accepted(asker, accepted);
    }

    fn handle_accepted(&mut self, asker: Asker, accepted: Accepted) {
        match accepted {
            // Behind those before it, if it is still to be delivered.
            Accepted::Done(outcome) => match outcome.live.as_ref().filter(|_| !self.pending.is_empty()) {
                Some(live) => {
                    let under_way = self.broker.under_way.enter(live.size());
                    self.pending.push_answered(under_way, (asker, outcome));
                }
                None => self.answer(asker, outcome),
            },
            Accepted::Pending(bytes, outcome) => {
                self.pending.push_back(bytes, Box::pin(async move { (asker, outcome.await) }));
            }
        }
    }

    /// Whether nobody gets this publish: it is unfit, or not allowed. The client has been told then, if it can be.
    fn refuse(&mut self, token: PublishToken, qos: QoS, retain: bool, message: &Message) -> bool {
        if let Some(Unfit { reason, text, dropped }) = unfit(message) {
            match qos {
                QoS::AtMostOnce => self.metrics.messages_dropped.inc(dropped),
                QoS::AtLeastOnce | QoS::ExactlyOnce => {
                    self.session.handle_published(token, reason, Some(text.into()));
                }
            }
            if qos == QoS::AtMostOnce && !self.version.is_v5() {
                self.session.close(reason, None);
            }
            return true;
        }
        let Err(denied) = self.may_publish(&message.topic, retain) else { return false };
        self.log_refused(&message.topic, &denied);
        match qos {
            QoS::AtMostOnce => self.metrics.messages_dropped.inc(Dropped::NotAuthorized),
            // A 3.1.1 client can't be told: its connection ends, as it must or else be lied to [MQTT-3.3.5-2].
            QoS::AtLeastOnce | QoS::ExactlyOnce => {
                let text = denied.text().into();
                self.session.handle_published(token, ReasonCode::NotAuthorized, Some(text));
            }
        }
        true
    }

    /// Tells the client what became of its publish, and delivers it if that is left to do. Where that has to wait the answer is
    /// put off, and with it those of all later ones.
    pub(super) fn answer(&mut self, asker: Asker, mut outcome: Outcome) {
        if let Some(mut live) = outcome.live.take() {
            let noted = asker.and_then(|(_, id)| Some((id.get(), self.incoming.get(&id.get())?)));
            let may_have_moved =
                noted.is_some_and(|(_, noted)| self.broker.may_have_moved(noted.all_heard.as_ref()));
            if live.is_to_wait(&self.broker, may_have_moved) {
                let bytes = u64::try_from(live.size()).unwrap_or(u64::MAX);
                let noted = noted.map(|(id, noted)| (self.stored.clone(), id, noted.publish));
                let sent = self.broker.deliver_put_off(live, noted);
                self.pending.push_front(
                    bytes,
                    Box::pin(async move {
                        let sent = sent.await.unwrap_or(Err(weir_core::Error::Closed));
                        outcome.unstored = sent.err().map(Box::new);
                        (asker, outcome)
                    }),
                );
                return;
            }
            self.broker.deliver(&mut live);
            if live.is_waiting() {
                // It has begun to go out, and does so whatever becomes of this connection.
                if let Some((_, packet_id)) = asker {
                    self.note_received(packet_id, outcome.reason);
                }
                let bytes = u64::try_from(live.size()).unwrap_or(u64::MAX);
                let sent = self.broker.deliver_rest(live);
                self.pending.push_front(
                    bytes,
                    Box::pin(async move {
                        // It is sent, or there are no links any more.
                        let _ = sent.await;
                        (asker, outcome)
                    }),
                );
                return;
            }
        }
        let Outcome { reason, refusal, full, unstored, .. } = outcome;
        if let Some(error) = unstored {
            return self.fail(&error);
        }
        let Some((token, packet_id)) = asker else { return };
        // PUBACK and PUBREC have no word for it.
        let reason = match reason {
            ReasonCode::ServerShuttingDown => ReasonCode::ImplementationSpecificError,
            other => other,
        };
        let text = match reason {
            ReasonCode::QuotaExceeded => Some(match full {
                Some(full) => format!("{full}; publish again later").into(),
                None => "a limit is reached; publish again later".into(),
            }),
            ReasonCode::ImplementationSpecificError if refusal.is_some() => {
                refusal.map(|text| (*text).into())
            }
            ReasonCode::ImplementationSpecificError => {
                Some("the message could not be stored; publish it again".into())
            }
            _ => None,
        };
        self.note_received(packet_id, reason);
        self.session.handle_published(token, reason, text);
    }

    /// Notes that a QoS 2 publish has been delivered to everybody. After a failure the id stays noted: the client may not
    /// learn of it, and send the same publish again.
    fn note_received(&self, packet_id: PacketId, reason: ReasonCode) {
        if !reason.is_error()
            && let Some(noted) = self.incoming.get(&packet_id.get()).filter(|noted| !noted.left)
        {
            self.subscriber.note_received(packet_id, noted.publish);
        }
    }

    /// Stores the ids of new QoS 2 publishes. False if that failed: the connection then ends, and the client
    /// sends them again.
    async fn note_incoming(&mut self, publishes: &[Event<Tag>]) -> bool {
        let mut ops = Vec::new();
        // Once for all of them, and before they are stored.
        let mut all_heard = None;
        for event in publishes {
            if let Event::Publish {
                packet_id: Some(id),
                qos: QoS::ExactlyOnce,
                repeated: false,
                dup,
                retain,
                message,
                ..
            } = event
                && !self.is_noted(*id, *dup, message)
                && unfit(message).is_none()
                && self.may_publish(&message.topic, *retain).is_ok()
            {
                let publish = PublishId::new(self.broker.clock.wall(), self.broker.seed.next_id());
                let publish = publish.with_content(message.topic.as_str(), &message.payload);
                let all_heard = all_heard
                    .get_or_insert_with(|| self.broker.elsewhere.as_ref().and_then(|e| e.all_heard()))
                    .clone();
                self.incoming.insert(id.get(), Incoming { publish, tried: false, left: false, all_heard });
                ops.push(SessionOp::StoreIncoming(id.get(), publish));
            }
        }
        ops.is_empty() || self.update_session(&ops).await
    }

    /// Whether the id of this QoS 2 publish is noted for this very publish. Without DUP it is another one [MQTT-3.3.1-1],
    /// which has the id of one that failed, unless it says the same: libraries that are widely used send what was not
    /// answered again without DUP.
    fn is_noted(&self, packet_id: PacketId, dup: bool, message: &Message) -> bool {
        let noted = self.incoming.get(&packet_id.get());
        noted.is_some_and(|noted| dup || noted.publish.is_of(message.topic.as_str(), &message.payload))
    }

    /// PUBREL: the ids of QoS 2 publishes are free again.
    pub(super) async fn handle_releases(&mut self, releases: Vec<PacketId>) {
        let known = releases.iter().filter(|id| self.incoming.remove(&id.get()).is_some());
        let ops: Vec<SessionOp> = known.map(|id| SessionOp::ClearIncoming(id.get())).collect();
        if !ops.is_empty() && !self.update_session(&ops).await {
            return;
        }
        for id in releases {
            self.subscriber.forget_received(id);
            self.session.handle_released(id);
        }
    }

    /// Whether an earlier life of the broker answered this QoS 2 publish: the session does not know it.
    pub(super) fn is_left(&self, packet_id: PacketId) -> bool {
        self.incoming.get(&packet_id.get()).is_some_and(|noted| noted.left)
    }

    /// PUBREL of a QoS 2 publish that [is left](Self::is_left): the next publish with this id is another one. False if
    /// that could not be stored.
    pub(super) async fn release_left(&mut self, packet_id: PacketId) -> bool {
        self.incoming.remove(&packet_id.get());
        self.update_session(&[SessionOp::ClearIncoming(packet_id.get())]).await
    }

    /// Changes the stored session now, after what waits to be stored: a packet id may be in both. False if that
    /// failed: the session is then closed.
    pub(super) async fn update_session(&mut self, ops: &[SessionOp]) -> bool {
        if !self.written().await {
            return false;
        }
        let mut all = std::mem::take(&mut self.inbox.state().ops);
        all.extend_from_slice(ops);
        let (sessions, stored) = (self.broker.sessions.clone(), self.stored.clone());
        // There it is brought to its end by whoever ends the connection, if nobody waits for it here any more.
        self.inbox.state().writing = Some(Box::pin(async move { sessions.update(&stored, &all).await }));
        self.written().await
    }

    /// Waits for the write under way. False if it failed: the session is then closed. Cancel-safe.
    pub(super) async fn written(&mut self) -> bool {
        let Some(writing) = &mut self.inbox.state().writing else { return true };
        let result = writing.await;
        let is_written = result.is_ok();
        self.handle_written(result);
        is_written
    }

    /// Ends the connection because the store failed, or because the session was taken over elsewhere.
    pub(super) fn fail(&mut self, error: &weir_core::Error) {
        let reason = match error {
            weir_core::Error::Fenced => ReasonCode::SessionTakenOver,
            other => crate::broker::reason_of(other),
        };
        tracing::warn!(client = %self.stored.client_id, %error, "session could not be stored");
        self.session.close(reason, None);
    }
}
