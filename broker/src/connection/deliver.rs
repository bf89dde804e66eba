//! What the client receives: from its mailbox, its inbox, queues, streams and retained messages.
//!
//! Each source is asked only while the session has a free slot and the socket keeps up.

use std::collections::VecDeque;
use std::sync::Arc;

use weir_codec::{PacketId, QoS, ReasonCode};
use weir_core::keyspace::session::OutgoingPhase;
use weir_core::queue::{ConsumerId, Handout, QueueDelivery, Verdict};
use weir_core::sessions::SessionOp;
use weir_session::{Delivery, Refusal};

use super::external::{Source, queue_properties};
use super::handshake::inbox_delivery;
use super::{Connection, Tag, Unwritten};
use crate::convert;
use crate::mailbox::Letter;
use crate::metrics::Dropped;

/// Messages read from the inbox in one go.
const INBOX_PAGE: usize = 256;
/// Bytes of them.
const INBOX_BYTES: usize = 256 * 1024;
/// Changes of the stored session in one write.
const OPS_PER_WRITE: usize = 500;
/// Deliveries prepared before they are encoded.
pub(super) const DELIVERIES_PER_TURN: usize = 256;

/// What became of a delivery.
pub(super) enum Sent {
    /// The session has it.
    Yes,
    /// Never, for this reason.
    Dropped(Dropped),
    /// Not now: the connection ends.
    Later,
}

impl Connection {
    /// Gives the session what waits for the client, as far as it and the socket have room. True if it took
    /// anything. Every source is the first in turn: one that never ends must not take all of a small Receive
    /// Maximum.
    pub(super) async fn deliver(&mut self) -> bool {
        const SOURCES: u8 = 5;
        self.turn = (self.turn + 1) % SOURCES;
        let mut any = false;
        for n in 0..SOURCES {
            any |= match (self.turn + n) % SOURCES {
                0 if self.has_retained() => false,
                0 => self.deliver_mailbox(),
                1 if self.held.is_empty() && self.queue.is_empty() => false,
                1 => Box::pin(self.deliver_queue()).await,
                2 if !self.stored.persistent || self.inbox.is_exhausted() => false,
                2 if self.has_retained() => false,
                2 => Box::pin(self.deliver_inbox()).await,
                3 => self.deliver_stream(),
                _ if self.retained.is_empty() => false,
                _ => Box::pin(self.deliver_retained()).await,
            };
        }
        any
    }

    /// Whether retained messages have been read and wait to be sent. What is live, or comes from the inbox, may be newer
    /// and goes behind them.
    fn has_retained(&self) -> bool {
        self.retained.front().is_some_and(|scan| !scan.messages.is_empty())
    }

    /// Whether a delivery of this QoS would be taken now.
    pub(super) fn can_take(&self, qos: QoS) -> bool {
        let quota = qos == QoS::AtMostOnce || self.free_slots() > 0;
        quota && self.has_room() && self.session.can_send()
    }

    /// Slots for all but queues, for which the last one may be kept.
    fn free_slots(&self) -> usize {
        let kept = usize::from(self.queue_slot.is_kept(!self.held.is_empty()));
        self.session.send_quota().saturating_sub(kept)
    }

    fn can_take_from_queue(&self, qos: QoS) -> bool {
        let quota = qos == QoS::AtMostOnce || self.session.send_quota() > 0;
        quota && self.has_room() && self.session.can_send()
    }

    pub(super) fn send(&mut self, delivery: Delivery<Tag>) -> Sent {
        let qos = delivery.qos;
        let now = self.broker.clock.now().into_std();
        match self.session.deliver(delivery, now) {
            Ok(_) => {
                if qos != QoS::AtMostOnce {
                    self.window.take_anyway();
                    self.queue_slot.others_took_one();
                }
                Sent::Yes
            }
            Err(refused) => match refused.why {
                Refusal::TooLarge => Sent::Dropped(Dropped::TooLarge),
                Refusal::Expired => Sent::Dropped(Dropped::Expired),
                Refusal::Closed | Refusal::NoQuota | Refusal::Busy | Refusal::NotReserved => Sent::Later,
            },
        }
    }

    fn deliver_mailbox(&mut self) -> bool {
        let mut any = false;
        for _ in 0..DELIVERIES_PER_TURN {
            if !self.mailbox.peek_qos().is_some_and(|qos| self.can_take(qos)) {
                break;
            }
            let Some(letter) = self.mailbox.pop() else { break };
            let delivery = live_delivery(letter, self.stored.persistent);
            if let Sent::Dropped(why) = self.send(delivery) {
                self.metrics.messages_dropped.inc(why);
            }
            self.transmit();
            any = true;
        }
        any
    }

    async fn deliver_queue(&mut self) -> bool {
        let mut any = false;
        for _ in 0..DELIVERIES_PER_TURN {
            let Some(delivery) = self.held.pop_front().or_else(|| self.queue.try_recv()) else {
                break;
            };
            let qos = if delivery.acknowledged { QoS::AtLeastOnce } else { QoS::AtMostOnce };
            if !self.can_take_from_queue(qos) {
                self.held.push_front(delivery);
                break;
            }
            any = true;
            self.queue_slot.queue_took_one();
            let (handout, acknowledged) = (delivery.handout(), delivery.acknowledged);
            let Some(prepared) = self.prepare(&delivery, qos) else {
                // Its subscription has ended meanwhile, which returned the message to its queue.
                if self.give_back(handout.consumer, acknowledged) {
                    self.kick_queues().await;
                }
                continue;
            };
            let now = self.broker.clock.now().into_std();
            match self.session.deliver(prepared, now).map_err(|refused| refused.why) {
                Ok(_) => {
                    self.transmit();
                    let (end, _) = self.wire.positions();
                    self.unwritten.push_back(Unwritten { end, handout, acknowledged });
                }
                Err(Refusal::NoQuota | Refusal::Busy | Refusal::NotReserved | Refusal::Closed) => {
                    self.held.push_front(delivery);
                    break;
                }
                Err(Refusal::TooLarge) => {
                    self.metrics.messages_dropped.inc(Dropped::TooLarge);
                    self.settle(handout, acknowledged, Verdict::Rejected).await;
                }
                Err(Refusal::Expired) => {
                    self.settle(handout, acknowledged, Verdict::Returned).await;
                }
            }
        }
        any
    }

    /// A queue message as the session takes it; `None` if its subscription has ended.
    fn prepare(&self, delivery: &QueueDelivery, qos: QoS) -> Option<Delivery<Tag>> {
        let (external, object) = self.externals.iter().find_map(|external| match &external.source {
            Source::Queue { object, consumer } if consumer.id == delivery.consumer => {
                Some((external, object))
            }
            _ => None,
        })?;
        let message = &delivery.record.message;
        let v5 = self.version == weir_codec::ProtocolVersion::V5;
        Some(Delivery {
            message: convert::to_wire(message),
            qos,
            retain: false,
            subscription_identifiers: external.identifier.into_iter().collect(),
            extra: if v5 { queue_properties(object, delivery) } else { Vec::new() },
            expires_at: convert::expires_at(self.broker.clock, message.expires_at),
            resumable: false,
            store_release: false,
            tag: Tag::Queue {
                handout: delivery.handout(),
                _span: tracing::debug_span!(
                    parent: &delivery.record.span, "deliver", queue = object.definition.name,
                    offset = delivery.offset
                ),
            },
        })
    }

    /// Gives the room of a queue message back. True if queues wait for it.
    fn give_back(&self, consumer: ConsumerId, acknowledged: bool) -> bool {
        let attached = self.externals.iter().find_map(|external| match &external.source {
            Source::Queue { consumer: attached, .. } if attached.id == consumer => Some(attached),
            _ => None,
        });
        match attached {
            Some(attached) => attached.give_back(),
            // Its subscription has ended; only the connection's room is still taken.
            None => acknowledged && self.window.give_back(),
        }
    }

    /// Gives the room of a queue message back and tells its queue what became of it.
    async fn settle(&mut self, handout: Handout, acknowledged: bool, verdict: Verdict) {
        let starved = self.give_back(handout.consumer, acknowledged);
        // At shutdown the shards are gone, and what is not acknowledged comes again.
        let _ = self.broker.core.settle(handout, verdict).await;
        if starved {
            self.kick_queues().await;
        }
    }

    /// Tells the shards of all queues consumed here that there is room again.
    pub(super) async fn kick_queues(&mut self) {
        self.queue_slot.queues_told(self.broker.clock.now());
        for external in &self.externals {
            if let Source::Queue { object, consumer } = &external.source {
                // At shutdown there is nobody left to hand out anything.
                let _ = self.broker.core.kick(object, consumer.id).await;
            }
        }
    }

    /// Queue messages have been written to the socket: that acknowledges those of QoS 0.
    pub(super) async fn settle_written(&mut self) {
        let (_, written) = self.wire.positions();
        while let Some(Unwritten { end, handout, acknowledged }) = self.unwritten.front().copied() {
            if end > written {
                break;
            }
            self.unwritten.pop_front();
            if !acknowledged {
                self.settle(handout, false, Verdict::Acknowledged).await;
            }
        }
    }

    async fn deliver_inbox(&mut self) -> bool {
        if !self.stored.persistent || !self.can_take(QoS::AtLeastOnce) {
            return false;
        }
        // A page may hold nothing but what is in flight already.
        let inbox = self.inbox.state();
        let unread = inbox.items.is_empty() && inbox.more;
        while self.inbox.state().items.is_empty() && self.inbox.state().more {
            if !self.read_inbox().await {
                return false;
            }
        }
        let mut batch = Vec::new();
        let mut ops = Vec::new();
        let room = self.free_slots().min(DELIVERIES_PER_TURN);
        let mut left_out = 0;
        while batch.len() < room && left_out < DELIVERIES_PER_TURN {
            let Some(item) = self.inbox.state().items.pop_front() else { break };
            let id = item.id;
            let inbox = self.inbox.state();
            if inbox.scanned.is_superseded(&item) {
                inbox.ops.push(SessionOp::Remove(id));
                left_out += 1;
                continue;
            }
            // Rules may have changed since it was put there, or its session may be another client's by now.
            if self.auth.as_ref().is_some_and(|auth| auth.access().receive_from(&item.message.topic).is_err())
            {
                self.metrics.messages_dropped.inc(Dropped::NotAuthorized);
                self.inbox.state().ops.push(SessionOp::Remove(id));
                left_out += 1;
                continue;
            }
            let reserved = if convert::qos(item.qos) == QoS::ExactlyOnce {
                let Some(packet_id) = self.session.reserve_packet_id() else {
                    self.inbox.state().items.push_front(item);
                    break;
                };
                self.inbox.state().recorded.insert(packet_id.get(), OutgoingPhase::Published);
                ops.push(SessionOp::StoreOutgoing(packet_id.get(), id));
                Some(packet_id)
            } else {
                None
            };
            let delivery = inbox_delivery(&self.broker, item);
            batch.push((reserved, id, delivery));
        }
        if !ops.is_empty() && !self.update_session(&ops).await {
            return false;
        }
        // An inbox that turns out to be empty is what a scan of retained messages waits for.
        let any = left_out > 0 || !batch.is_empty() || unread && !self.retained.is_empty();
        for (reserved, id, delivery) in batch {
            self.deliver_inbox_item(reserved, id, delivery);
            self.transmit();
        }
        any
    }

    fn deliver_inbox_item(
        &mut self,
        reserved: Option<PacketId>,
        id: weir_core::keyspace::inbox::InboxId,
        delivery: Delivery<Tag>,
    ) {
        let now = self.broker.clock.now().into_std();
        let result = match reserved {
            Some(packet_id) => self.session.deliver_reserved(packet_id, delivery, now),
            None => self.session.deliver(delivery, now).map(drop),
        };
        let why = match result {
            Ok(()) => {
                self.window.take_anyway();
                self.queue_slot.others_took_one();
                return;
            }
            Err(refused) => refused.why,
        };
        match why {
            Refusal::TooLarge => self.metrics.messages_dropped.inc(Dropped::TooLarge),
            Refusal::Expired => self.metrics.messages_dropped.inc(Dropped::Expired),
            // It stays in the inbox, and is read again by the next connection.
            Refusal::Closed | Refusal::NoQuota | Refusal::Busy | Refusal::NotReserved => return,
        }
        self.inbox.state().ops.push(SessionOp::Remove(id));
        if let Some(packet_id) = reserved {
            self.inbox.state().ops.push(SessionOp::ClearOutgoing(packet_id.get()));
        }
    }

    async fn read_inbox(&mut self) -> bool {
        let inbox = self.inbox.state();
        inbox.more = false;
        let read = self.broker.inbox.read(&self.stored, inbox.cursor, INBOX_PAGE, INBOX_BYTES);
        match Box::pin(read).await {
            Ok(items) => {
                let inbox = self.inbox.state();
                if let Some(last) = items.last() {
                    inbox.cursor = Some(last.id);
                    inbox.more = true;
                } else {
                    inbox.scanned.clear();
                }
                let restored = &mut inbox.restored;
                inbox.items.extend(items.into_iter().filter(|item| !restored.remove(&item.id)));
                true
            }
            Err(error) => {
                self.fail(&error);
                false
            }
        }
    }

    async fn deliver_retained(&mut self) -> bool {
        let mut any = false;
        for _ in 0..DELIVERIES_PER_TURN {
            if !self.can_take(QoS::AtMostOnce) {
                break;
            }
            let Some(mut scan) = self.retained.pop_front() else { break };
            let Some(message) = scan.messages.pop_front() else {
                // Between two pages the mailbox has its turn, and the inbox too.
                if any && self.mailbox.peek_qos().is_some() || !self.may_read_retained(&scan) {
                    self.retained.push_front(scan);
                    break;
                }
                // A page that holds nothing for the client is a step forward all the same.
                any = true;
                match self.read_retained(&mut scan).await {
                    Ok(true) => self.retained.push_front(scan),
                    Ok(false) => {}
                    Err(error) => self.fail(&error),
                }
                continue;
            };
            let delivery = scan.delivery(&self.broker, &message);
            if !self.can_take(delivery.qos) {
                scan.messages.push_front(message);
                self.retained.push_front(scan);
                break;
            }
            self.retained.push_front(scan);
            if let Sent::Dropped(why) = self.send(delivery) {
                self.metrics.messages_dropped.inc(why);
            }
            self.transmit();
            any = true;
        }
        if self.retained.is_empty() {
            // At once rather than when the connection is idle: the next one to subscribe takes the same memory.
            self.retained = VecDeque::new();
        }
        any
    }

    /// A delivery has ended, which its queue is to know if it came from one.
    pub(super) async fn handle_acked(&mut self, packet_id: PacketId, tag: &Tag, reason: ReasonCode) {
        if let Tag::Queue { handout, .. } = *tag {
            let verdict = if reason.is_error() { Verdict::Rejected } else { Verdict::Acknowledged };
            self.settle(handout, true, verdict).await;
        } else if self.note_acked(packet_id, tag) {
            self.kick_queues().await;
        }
    }

    /// A delivery of no queue has ended. True if queues wait for its room.
    pub(super) fn note_acked(&mut self, packet_id: PacketId, tag: &Tag) -> bool {
        match *tag {
            Tag::Inbox(id) => {
                let inbox = self.inbox.state();
                let recorded = inbox.recorded.remove(&packet_id.get());
                if recorded.is_some() {
                    inbox.ops.push(SessionOp::ClearOutgoing(packet_id.get()));
                }
                if recorded != Some(OutgoingPhase::Released) {
                    inbox.ops.push(SessionOp::Remove(id));
                }
            }
            Tag::Stream { place, at } => self.note_read(place, at),
            Tag::Live { .. } | Tag::Queue { .. } => {}
        }
        let starved = self.window.give_back();
        if !starved {
            self.queue_slot.freed(self.broker.clock.now());
        }
        starved
    }

    /// PUBRECs of stored QoS 2 deliveries: stored before PUBREL goes out.
    pub(super) async fn handle_received(&mut self, received: Vec<(PacketId, Tag)>) {
        let ops: Vec<SessionOp> = received
            .iter()
            .filter_map(|(packet_id, tag)| match tag {
                Tag::Inbox(id) => Some(SessionOp::Release(packet_id.get(), *id)),
                Tag::Live { .. } | Tag::Queue { .. } | Tag::Stream { .. } => None,
            })
            .collect();
        if ops.is_empty() || !self.update_session(&ops).await {
            return;
        }
        for (packet_id, tag) in received {
            if matches!(tag, Tag::Inbox(_)) {
                self.inbox.state().recorded.insert(packet_id.get(), OutgoingPhase::Released);
            }
            self.session.handle_stored(packet_id);
        }
    }

    /// Starts writing what has gathered of changes to the stored session, one write at a time.
    pub(super) fn start_write(&mut self) {
        let Some(ops) = self.inbox.take_ops(OPS_PER_WRITE) else { return };
        let sessions = self.broker.sessions.clone();
        let stored = self.stored.clone();
        self.inbox.state().writing = Some(Box::pin(async move { sessions.update(&stored, &ops).await }));
    }

    pub(super) fn handle_written(&mut self, result: weir_core::Result<()>) {
        self.inbox.state().writing = None;
        if let Err(error) = result {
            self.touch_positions();
            self.fail(&error);
        }
    }
}

fn live_delivery(letter: Letter, persistent: bool) -> Delivery<Tag> {
    let Letter { message, qos, retain, subscription_identifiers, expires_at, shared, span, .. } = letter;
    let span = tracing::debug_span!(parent: &span, "deliver", qos = qos.as_u8());
    Delivery {
        message: Arc::clone(&message),
        qos,
        retain,
        subscription_identifiers,
        extra: Vec::new(),
        expires_at,
        // Only a session that outlives the connection resumes; its QoS 1 and 2 come from its inbox.
        resumable: !persistent,
        store_release: false,
        tag: Tag::Live { shared, _span: span },
    }
}
