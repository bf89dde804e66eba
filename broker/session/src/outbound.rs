//! Deliveries to the client: the queue of what is to be written, packet ids in flight, the send quota, resends
//! after a reconnect. Knows nothing of what the client publishes; owned by the session.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

use weir_codec::{Connect, Message, Packet, PacketId, PublishHeader, QoS, ReasonCode, UserProperties};

use crate::acks::Answers;
use crate::alias::{OutboundAliases, TopicForm};
use crate::packet_ids::PacketIds;
use crate::{Delivery, Event, Limits, Outgoing, ProtocolError, Refusal, Refused, Returned, Transmit};

/// Entries in the queue above which deliveries are refused and the client is not read: enough for a full write
/// buffer of small packets, and bounds what waits in memory.
pub(crate) const TRANSMITS_MAX: usize = 1024;

#[derive(Debug)]
pub(crate) struct Outbound<T> {
    answers: Answers,
    /// The lower of the client's Receive Maximum and our own limit.
    window: u16,
    alias_maximum: u16,
    ids: PacketIds,
    next_order: u64,
    /// Ids that are not free. At most `window`, except for what an earlier connection left, at most 65,535.
    inflight: BTreeMap<PacketId, Entry<T>>,
    /// The entries of `inflight` that are still to be resent, in order.
    resend: VecDeque<PacketId>,
    /// At most `TRANSMITS_MAX` where deliveries and reading stop, plus one for each answer the broker owes
    /// (bounded by Receive Maximum and by open requests) and one PUBREL or resend for each id in `inflight`.
    queue: VecDeque<Queued>,
    aliases: Option<Box<OutboundAliases>>,
}

#[derive(Debug)]
enum Queued {
    Packet(Packet),
    /// QoS 0.
    Once {
        header: PublishHeader,
        message: Arc<Message>,
        extra: UserProperties,
    },
    /// QoS 1 or 2: the rest is in the entry, if that is still the one of this order.
    Inflight {
        packet_id: PacketId,
        order: u64,
        expiry: Option<u32>,
    },
}

#[derive(Debug)]
struct Entry<T> {
    order: u64,
    qos: QoS,
    resumable: bool,
    store_release: bool,
    /// Sent on an earlier connection.
    resent: bool,
    stage: Stage,
    held: Held<T>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for `deliver_reserved`.
    Reserved,
    /// In `resend`, to be published.
    Waiting,
    /// In `resend`, to be released.
    ReleaseWaiting,
    /// In `queue`.
    Queued,
    /// PUBACK or PUBREC is awaited.
    Sent,
    /// The broker is storing the PUBREC.
    Storing,
    /// PUBREL is out or in `queue`; PUBCOMP is awaited.
    Released,
}

/// What is kept of a delivery.
#[derive(Debug)]
enum Held<T> {
    Nothing,
    Tag(T),
    Whole(Delivery<T>),
}

/// What a PUBREC leads to.
pub(crate) enum Received<T> {
    /// Tell the broker.
    Event(Event<T>),
    /// PUBREL with this reason.
    Release(ReasonCode),
    /// PUBREL for an id that is not known.
    Unknown,
    /// Nothing: a repeat.
    Ignore,
}

impl<T: Clone> Outbound<T> {
    pub(crate) fn new(connect: &Connect, answers: Answers, limits: &Limits) -> Self {
        let v5 = connect.version.is_v5();
        let receive_maximum = connect.receive_maximum.filter(|_| v5).unwrap_or(limits.inflight_maximum);
        Self {
            answers,
            window: receive_maximum.min(limits.inflight_maximum).get(),
            alias_maximum: if v5 {
                connect.topic_alias_maximum.min(limits.outbound_topic_alias_maximum)
            } else {
                0
            },
            ids: PacketIds::default(),
            next_order: 0,
            inflight: BTreeMap::new(),
            resend: VecDeque::new(),
            queue: VecDeque::new(),
            aliases: None,
        }
    }

    /// Takes over what an earlier connection left. An id that comes twice keeps its first delivery.
    pub(crate) fn restore(&mut self, outgoing: Vec<Outgoing<T>>) {
        for left in outgoing {
            let packet_id = left.packet_id();
            if self.inflight.contains_key(&packet_id) {
                continue;
            }
            let entry = match left {
                Outgoing::Published { delivery, .. } => Entry {
                    order: self.take_order(),
                    // Only QoS 1 and 2 have packet ids.
                    qos: delivery.qos.max(QoS::AtLeastOnce),
                    resumable: delivery.resumable,
                    store_release: delivery.store_release,
                    resent: true,
                    stage: Stage::Waiting,
                    held: Held::Whole(delivery),
                },
                Outgoing::Released { tag, .. } => Entry {
                    order: self.take_order(),
                    qos: QoS::ExactlyOnce,
                    resumable: true,
                    store_release: false,
                    resent: true,
                    stage: Stage::ReleaseWaiting,
                    held: Held::Tag(tag),
                },
            };
            self.inflight.insert(packet_id, entry);
            self.resend.push_back(packet_id);
        }
    }

    /// Queues resends as far as the window allows; those that can never be sent are finished by the events
    /// returned, at most one for each.
    pub(crate) fn pump_resends(&mut self, now: Instant, events: &mut VecDeque<Event<T>>) {
        // PUBREL takes no quota, but counting it keeps the queue within the window, and its PUBCOMP makes room.
        while self.inflight.len().saturating_sub(self.resend.len()) < usize::from(self.window) {
            let Some(packet_id) = self.resend.pop_front() else { return };
            let Some(entry) = self.inflight.get_mut(&packet_id) else { continue };
            let Held::Whole(delivery) = &entry.held else {
                entry.stage = Stage::Released;
                let packet = self.answers.ack(Packet::PubRel, packet_id, ReasonCode::Success, None);
                self.queue.extend(packet.map(Queued::Packet));
                continue;
            };
            // An expired one is resent all the same: delivery had begun, and a QoS 2 receiver that knows the
            // id would take the next message under it for a repeat.
            let expiry = delivery.expires_at.map(|at| seconds_left(at, now));
            let header = header(delivery, Some(packet_id), true, expiry);
            if self.answers.fits_publish(&header, &delivery.message, &delivery.extra) {
                entry.stage = Stage::Queued;
                self.queue.push_back(Queued::Inflight { packet_id, order: entry.order, expiry });
            } else if let Some(event) = self.finish(packet_id, ReasonCode::PacketTooLarge) {
                events.push_back(event);
            }
        }
    }

    pub(crate) fn push(&mut self, packet: Packet) {
        self.queue.push_back(Queued::Packet(packet));
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.queue.len() >= TRANSMITS_MAX
    }

    pub(crate) fn quota(&self) -> usize {
        usize::from(self.window).saturating_sub(self.inflight.len())
    }

    pub(crate) fn inflight(&self) -> usize {
        self.inflight.len()
    }

    pub(crate) fn reserve(&mut self) -> Option<PacketId> {
        if self.quota() == 0 {
            return None;
        }
        let packet_id = self.ids.allocate(|id| self.inflight.contains_key(&id))?;
        let entry = Entry {
            order: self.take_order(),
            qos: QoS::ExactlyOnce,
            resumable: false,
            store_release: false,
            resent: false,
            stage: Stage::Reserved,
            held: Held::Nothing,
        };
        self.inflight.insert(packet_id, entry);
        Some(packet_id)
    }

    pub(crate) fn deliver(
        &mut self,
        delivery: Delivery<T>,
        now: Instant,
    ) -> Result<Option<PacketId>, Refused<T>> {
        let expiry = match self.admit(&delivery, now) {
            Ok(expiry) => expiry,
            Err(why) => return Err(refused(why, delivery)),
        };
        if delivery.qos == QoS::AtMostOnce {
            // All parts are moved: fan-out to many clients must not allocate.
            let Delivery { message, qos, retain, subscription_identifiers, extra, .. } = delivery;
            let header = PublishHeader {
                qos,
                retain,
                message_expiry_interval: expiry,
                subscription_identifiers,
                ..PublishHeader::default()
            };
            self.queue.push_back(Queued::Once { header, message, extra });
            return Ok(None);
        }
        match self.reserve() {
            Some(packet_id) => {
                self.enqueue(packet_id, delivery, expiry);
                Ok(Some(packet_id))
            }
            None => Err(refused(Refusal::NoQuota, delivery)),
        }
    }

    pub(crate) fn deliver_reserved(
        &mut self,
        packet_id: PacketId,
        delivery: Delivery<T>,
        now: Instant,
    ) -> Result<(), Refused<T>> {
        let reserved = self.inflight.get(&packet_id).is_some_and(|entry| entry.stage == Stage::Reserved);
        if !reserved || delivery.qos == QoS::AtMostOnce {
            return Err(refused(Refusal::NotReserved, delivery));
        }
        match self.admit(&delivery, now) {
            Ok(expiry) => {
                self.enqueue(packet_id, delivery, expiry);
                Ok(())
            }
            Err(why) => {
                if why != Refusal::Busy {
                    self.inflight.remove(&packet_id);
                }
                Err(refused(why, delivery))
            }
        }
    }

    /// The Message Expiry Interval to send, if the delivery can be taken.
    fn admit(&self, delivery: &Delivery<T>, now: Instant) -> Result<Option<u32>, Refusal> {
        if delivery.expires_at.is_some_and(|at| at <= now) {
            return Err(Refusal::Expired);
        }
        if self.is_busy() {
            return Err(Refusal::Busy);
        }
        let expiry = delivery.expires_at.map(|at| seconds_left(at, now));
        if !self.answers.unlimited() {
            // Any id will do to measure, and no alias: one is only set where it fits.
            let packet_id = PacketId::new(1).filter(|_| delivery.qos > QoS::AtMostOnce);
            let header = header(delivery, packet_id, false, expiry);
            if !self.answers.fits_publish(&header, &delivery.message, &delivery.extra) {
                return Err(Refusal::TooLarge);
            }
        }
        Ok(expiry)
    }

    fn enqueue(&mut self, packet_id: PacketId, delivery: Delivery<T>, expiry: Option<u32>) {
        let order = self.take_order();
        let entry = Entry {
            order,
            qos: delivery.qos,
            resumable: delivery.resumable,
            store_release: delivery.store_release,
            resent: false,
            stage: Stage::Queued,
            held: Held::Whole(delivery),
        };
        self.inflight.insert(packet_id, entry);
        self.queue.push_back(Queued::Inflight { packet_id, order, expiry });
    }

    /// Gives a delivery up: true if it had not gone out, so that its id is free.
    pub(crate) fn forget(&mut self, packet_id: PacketId) -> bool {
        let Some(entry) = self.inflight.get_mut(&packet_id) else { return false };
        if !entry.resent && matches!(entry.stage, Stage::Queued | Stage::Reserved) {
            self.inflight.remove(&packet_id);
            return true;
        }
        entry.resumable = false;
        if matches!(entry.stage, Stage::Sent | Stage::Storing | Stage::Released) {
            entry.held = std::mem::replace(&mut entry.held, Held::Nothing).into_tag();
        }
        false
    }

    pub(crate) fn puback(
        &mut self,
        packet_id: PacketId,
        reason: ReasonCode,
    ) -> Result<Option<Event<T>>, ProtocolError> {
        match self.awaited(packet_id) {
            None => Ok(None),
            Some((QoS::AtLeastOnce, _)) => Ok(self.finish(packet_id, reason)),
            Some(_) => Err(ProtocolError {
                reason: ReasonCode::ProtocolError,
                what: "PUBACK for a delivery of QoS 2",
            }),
        }
    }

    pub(crate) fn pubrec(
        &mut self,
        packet_id: PacketId,
        reason: ReasonCode,
    ) -> Result<Received<T>, ProtocolError> {
        let stage = match self.awaited(packet_id) {
            None => return Ok(Received::Unknown),
            Some((QoS::ExactlyOnce, stage)) => stage,
            Some(_) => {
                return Err(ProtocolError {
                    reason: ReasonCode::ProtocolError,
                    what: "PUBREC for a delivery of QoS 1",
                });
            }
        };
        match stage {
            Stage::Storing | Stage::ReleaseWaiting => return Ok(Received::Ignore),
            Stage::Released => return Ok(Received::Release(ReasonCode::Success)),
            Stage::Reserved | Stage::Waiting | Stage::Queued | Stage::Sent => {}
        }
        if reason as u8 >= 0x80 {
            return Ok(self.finish(packet_id, reason).map_or(Received::Unknown, Received::Event));
        }
        self.stop_resend(packet_id, stage);
        let Some(entry) = self.inflight.get_mut(&packet_id) else { return Ok(Received::Unknown) };
        entry.held = std::mem::replace(&mut entry.held, Held::Nothing).into_tag();
        if entry.store_release
            && let Held::Tag(tag) = &entry.held
        {
            entry.stage = Stage::Storing;
            return Ok(Received::Event(Event::Received { packet_id, tag: tag.clone() }));
        }
        entry.stage = Stage::Released;
        Ok(Received::Release(ReasonCode::Success))
    }

    /// The broker has stored the PUBREC; true if PUBREL is due.
    pub(crate) fn stored(&mut self, packet_id: PacketId) -> bool {
        match self.inflight.get_mut(&packet_id) {
            Some(entry) if entry.stage == Stage::Storing => {
                entry.stage = Stage::Released;
                true
            }
            _ => false,
        }
    }

    pub(crate) fn pubcomp(
        &mut self,
        packet_id: PacketId,
        reason: ReasonCode,
    ) -> Result<Option<Event<T>>, ProtocolError> {
        match self.awaited(packet_id) {
            None => Ok(None),
            Some((_, Stage::Released | Stage::ReleaseWaiting)) => Ok(self.finish(packet_id, reason)),
            Some(_) => Err(ProtocolError {
                reason: ReasonCode::ProtocolError,
                what: "PUBCOMP for a delivery that was not released",
            }),
        }
    }

    /// QoS and stage of a delivery that the client can know: what has not gone out counts as unknown.
    fn awaited(&self, packet_id: PacketId) -> Option<(QoS, Stage)> {
        let entry = self.inflight.get(&packet_id)?;
        let seen = entry.resent || matches!(entry.stage, Stage::Sent | Stage::Storing | Stage::Released);
        seen.then_some((entry.qos, entry.stage))
    }

    fn finish(&mut self, packet_id: PacketId, reason: ReasonCode) -> Option<Event<T>> {
        let entry = self.inflight.remove(&packet_id)?;
        self.stop_resend(packet_id, entry.stage);
        match entry.held.into_tag() {
            Held::Tag(tag) => Some(Event::Acked { packet_id, tag, reason }),
            Held::Nothing | Held::Whole(_) => None,
        }
    }

    /// Takes an id out of `resend`, rarely and early in a connection: answers to an earlier one.
    fn stop_resend(&mut self, packet_id: PacketId, stage: Stage) {
        if matches!(stage, Stage::Waiting | Stage::ReleaseWaiting) {
            self.resend.retain(|&id| id != packet_id);
        }
    }

    pub(crate) fn poll(&mut self) -> Option<Transmit> {
        loop {
            match self.queue.pop_front()? {
                Queued::Packet(packet) => return Some(Transmit::Packet(packet)),
                Queued::Once { header, message, extra } => return Some(self.publish(header, message, extra)),
                Queued::Inflight { packet_id, order, expiry } => {
                    let Some(entry) = self.inflight.get_mut(&packet_id) else { continue };
                    if entry.order != order || entry.stage != Stage::Queued {
                        continue;
                    }
                    entry.stage = Stage::Sent;
                    let Some((header, message, extra)) = entry.write(packet_id, expiry) else { continue };
                    return Some(self.publish(header, message, extra));
                }
            }
        }
    }

    fn publish(
        &mut self,
        mut header: PublishHeader,
        message: Arc<Message>,
        extra: UserProperties,
    ) -> Transmit {
        let mut topic_on_wire = true;
        if self.alias_maximum > 0 {
            let answers = self.answers;
            let maximum = self.alias_maximum;
            let aliases = self.aliases.get_or_insert_with(|| Box::new(OutboundAliases::new(maximum)));
            let form = aliases.form(&message.topic, || {
                answers.unlimited() || {
                    let alias = Some(NonZeroU16::MIN);
                    let header = PublishHeader { topic_alias: alias, ..header.clone() };
                    answers.fits_publish(&header, &message, &extra)
                }
            });
            (header.topic_alias, topic_on_wire) = match form {
                TopicForm::Plain => (None, true),
                TopicForm::Set(alias) => (Some(alias), true),
                TopicForm::Alias(alias) => (Some(alias), false),
            };
        }
        Transmit::Publish { header, topic_on_wire, message, extra }
    }

    /// What is left, in the order taken: to be resumed, and to be handed back.
    pub(crate) fn into_left(self) -> (Vec<Outgoing<T>>, Vec<Returned<T>>) {
        let mut left: Vec<(PacketId, Entry<T>)> = self.inflight.into_iter().collect();
        left.sort_by_key(|(_, entry)| entry.order);
        let (mut outgoing, mut returned) = (Vec::new(), Vec::new());
        for (packet_id, entry) in left {
            let written = entry.resent || !matches!(entry.stage, Stage::Reserved | Stage::Queued);
            match entry.held {
                Held::Nothing => {}
                Held::Whole(delivery) if entry.resumable => {
                    outgoing.push(Outgoing::Published { packet_id, delivery });
                }
                Held::Tag(tag) if entry.resumable => outgoing.push(Outgoing::Released { packet_id, tag }),
                Held::Whole(Delivery { tag, .. }) | Held::Tag(tag) => {
                    returned.push(Returned { tag, written })
                }
            }
        }
        (outgoing, returned)
    }

    pub(crate) fn compact(&mut self) {
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
        if self.resend.is_empty() {
            self.resend = VecDeque::new();
        }
        if self.inflight.is_empty() {
            self.inflight = BTreeMap::new();
        }
        // An alias may be set anew at any time, so ours can be forgotten.
        self.aliases = None;
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.queue.capacity() + self.resend.capacity()
    }

    fn take_order(&mut self) -> u64 {
        self.next_order += 1;
        self.next_order
    }
}

impl<T: Clone> Entry<T> {
    /// What to write. Only a resumable delivery is kept whole.
    fn write(
        &mut self,
        packet_id: PacketId,
        expiry: Option<u32>,
    ) -> Option<(PublishHeader, Arc<Message>, UserProperties)> {
        match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Whole(delivery) if self.resumable => {
                let header = header(&delivery, Some(packet_id), self.resent, expiry);
                let (message, extra) = (Arc::clone(&delivery.message), delivery.extra.clone());
                self.held = Held::Whole(delivery);
                Some((header, message, extra))
            }
            Held::Whole(delivery) => {
                let header = header(&delivery, Some(packet_id), self.resent, expiry);
                let Delivery { message, extra, tag, .. } = delivery;
                self.held = Held::Tag(tag);
                Some((header, message, extra))
            }
            other => {
                self.held = other;
                None
            }
        }
    }
}

impl<T> Held<T> {
    fn into_tag(self) -> Self {
        match self {
            Self::Whole(delivery) => Self::Tag(delivery.tag),
            other => other,
        }
    }
}

pub(crate) fn refused<T>(why: Refusal, delivery: Delivery<T>) -> Refused<T> {
    Refused { why, delivery: Box::new(delivery) }
}

fn header<T>(
    delivery: &Delivery<T>,
    packet_id: Option<PacketId>,
    dup: bool,
    message_expiry_interval: Option<u32>,
) -> PublishHeader {
    PublishHeader {
        dup,
        qos: delivery.qos,
        retain: delivery.retain,
        packet_id,
        topic_alias: None,
        message_expiry_interval,
        subscription_identifiers: delivery.subscription_identifiers.clone(),
    }
}

/// Rounded up, so that a message never dies before its time.
fn seconds_left(expires_at: Instant, now: Instant) -> u32 {
    let left = expires_at.saturating_duration_since(now);
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}
