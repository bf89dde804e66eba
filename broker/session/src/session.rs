//! The session itself: it sorts packets to its two halves, watches the keep-alive and ends the connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bytestring::ByteString;
use weir_codec::{
    Ack, AckProperties, Auth, ConnAck, Connect, Disconnect, Message, Packet, PacketId, ProtocolVersion,
    Publish, ReasonCode, SubAck, UnsubAck,
};

use crate::acks::Answers;
use crate::authentication::Authentication;
use crate::inbound::{Answer, Arrival, Inbound, NO_TOKEN, Release};
use crate::outbound::{Outbound, Received, refused};
use crate::{
    CloseCause, Closed, Delivery, Event, Limits, ProtocolError, PublishToken, Refusal, Refused, Restored,
    SessionState, Transmit,
};

/// SUBSCRIBE and UNSUBSCRIBE that may wait for the broker before the client is not read: each may hold many
/// filters, and clients send one at a time or a few.
const REQUESTS_MAX: u16 = 16;

/// The protocol state of one connected client. `T` is the broker's own name for a delivery.
///
/// A driver that asks [`Self::wants_read`] before each packet and drains both `poll_*` queues bounds everything
/// in here by [`Limits`].
#[derive(Debug)]
pub struct Session<T> {
    answers: Answers,
    /// Of a client that named an authentication method in CONNECT.
    authentication: Option<Box<Authentication>>,
    inbound: Inbound,
    outbound: Outbound<T>,
    /// At most one for each packet handled and one for each restored delivery since the last drain, and
    /// [`Event::Closed`].
    events: VecDeque<Event<T>>,
    keep_alive: Option<Duration>,
    last_received: Instant,
    /// As the client sent it in CONNECT.
    requested_expiry: u32,
    session_expiry: u32,
    session_expiry_maximum: u32,
    has_will: bool,
    closed: bool,
    requests: u16,
    unknown_acks: u64,
}

/// What a client is told at its CONNECT that the session does not know.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The last Authentication Data of an enhanced authentication.
    pub authentication_data: Option<Bytes>,
    /// Response Information, for a client that asks for it.
    pub response_information: Option<ByteString>,
}

impl<T: Clone> Session<T> {
    /// Begins a session for a client that the broker has let in, and queues the CONNACK and the resends of
    /// `restored`, whose presence is told as Session Present.
    #[must_use]
    pub fn accept(
        connect: &Connect,
        assigned_client_id: Option<ByteString>,
        limits: &Limits,
        restored: Option<Restored<T>>,
        now: Instant,
    ) -> Self {
        Self::accept_telling(connect, assigned_client_id, Told::default(), limits, restored, now)
    }

    /// As [`Self::accept`], with more for CONNACK.
    #[must_use]
    pub fn accept_telling(
        connect: &Connect,
        assigned_client_id: Option<ByteString>,
        told: Told,
        limits: &Limits,
        restored: Option<Restored<T>>,
        now: Instant,
    ) -> Self {
        let v5 = connect.version.is_v5();
        let server_keep_alive = limits
            .keep_alive_maximum
            .map(std::num::NonZeroU16::get)
            .filter(|&maximum| v5 && (connect.keep_alive == 0 || connect.keep_alive > maximum));
        let keep_alive = server_keep_alive.unwrap_or(connect.keep_alive);
        let requested_expiry = connect.session_expiry();
        let session_expiry = requested_expiry.min(limits.session_expiry_maximum);
        let connack = ConnAck {
            session_present: restored.is_some(),
            session_expiry_interval: (v5 && session_expiry != requested_expiry).then_some(session_expiry),
            receive_maximum: (v5 && limits.receive_maximum.get() != u16::MAX)
                .then_some(limits.receive_maximum),
            maximum_packet_size: v5.then_some(limits.maximum_packet_size),
            assigned_client_identifier: assigned_client_id.filter(|_| v5),
            topic_alias_maximum: if v5 { limits.topic_alias_maximum } else { 0 },
            server_keep_alive,
            // [MQTT-4.12.0-5]
            authentication_method: connect.authentication_method.clone(),
            authentication_data: told.authentication_data,
            // [MQTT-3.1.2-28]
            response_information: told
                .response_information
                .filter(|_| v5 && connect.request_response_information),
            ..ConnAck::default()
        };
        let method = connect.authentication_method.as_ref();
        let Restored { outgoing, incoming_qos2 } = restored.unwrap_or_default();
        let answers = Answers::new(connect);
        let mut session = Self {
            answers,
            // A copy: the received buffer holds the whole CONNECT.
            authentication: method.map(|method| Box::new(Authentication::new(method.to_string().into()))),
            inbound: Inbound::new(limits, connack.topic_alias_maximum, &incoming_qos2),
            outbound: Outbound::new(connect, answers, limits),
            events: VecDeque::new(),
            // One and a half times the interval [MQTT-3.1.2-22].
            keep_alive: (keep_alive != 0).then(|| Duration::from_millis(u64::from(keep_alive) * 1500)),
            last_received: now,
            requested_expiry,
            session_expiry,
            session_expiry_maximum: limits.session_expiry_maximum,
            has_will: connect.will.is_some(),
            closed: false,
            requests: 0,
            unknown_acks: 0,
        };
        session.outbound.restore(outgoing);
        let connack = Packet::ConnAck(Box::new(connack));
        if answers.fits(&connack) {
            session.outbound.push(connack);
            session.outbound.pump_resends(now, &mut session.events);
        } else {
            session.end(CloseCause::Protocol(ReasonCode::PacketTooLarge), None);
        }
        session
    }

    /// Takes one packet of the client. After the end of the session packets are ignored.
    ///
    /// # Errors
    /// The client broke the protocol: the session has queued a DISCONNECT, for 5.0, and [`Event::Closed`].
    pub fn handle_packet(&mut self, packet: Packet, now: Instant) -> Result<(), ProtocolError> {
        if self.closed {
            return Ok(());
        }
        self.last_received = now;
        let handled = self.dispatch(packet);
        if let Err(error) = handled {
            let words = ByteString::from_static(error.what);
            self.end(CloseCause::Protocol(error.reason), Some(farewell(error.reason, Some(words))));
            return handled;
        }
        self.outbound.pump_resends(now, &mut self.events);
        Ok(())
    }

    fn dispatch(&mut self, packet: Packet) -> Result<(), ProtocolError> {
        match packet {
            Packet::Publish(publish) => self.handle_publish(*publish),
            Packet::PubAck(ack) => {
                let finished = self.outbound.puback(ack.packet_id, ack.reason)?;
                self.finished(finished);
                Ok(())
            }
            Packet::PubRec(ack) => self.handle_pubrec(&ack),
            Packet::PubRel(ack) => self.handle_pubrel(ack.packet_id),
            Packet::PubComp(ack) => {
                let finished = self.outbound.pubcomp(ack.packet_id, ack.reason)?;
                self.finished(finished);
                Ok(())
            }
            Packet::Subscribe(subscribe) => {
                self.requests = self.requests.saturating_add(1);
                self.events.push_back(Event::Subscribe(subscribe));
                Ok(())
            }
            Packet::Unsubscribe(unsubscribe) => {
                self.requests = self.requests.saturating_add(1);
                self.events.push_back(Event::Unsubscribe(unsubscribe));
                Ok(())
            }
            Packet::PingReq => {
                self.outbound.push(Packet::PingResp);
                Ok(())
            }
            Packet::Disconnect(disconnect) => self.handle_disconnect(&disconnect),
            Packet::Connect(_) => Err(violation("second CONNECT")),
            Packet::Auth(auth) => self.handle_auth(*auth),
            Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {
                Err(violation("packet that only a server sends"))
            }
        }
    }

    fn handle_publish(&mut self, publish: Publish) -> Result<(), ProtocolError> {
        if !publish.header.subscription_identifiers.is_empty() {
            return Err(violation("PUBLISH of a client with a subscription identifier"));
        }
        let topic = self.inbound.aliases.resolve(&publish)?;
        let Publish { header, payload, properties, .. } = publish;
        let arrival = match header.packet_id {
            None if header.qos as u8 > 0 => return Err(violation("PUBLISH of QoS 1 or 2 without packet id")),
            Some(packet_id) if header.qos as u8 > 0 => {
                self.inbound.publish(header.qos, packet_id, self.answers.version.is_v5())?
            }
            _ => Arrival::New(NO_TOKEN),
        };
        let (token, repeated) = match arrival {
            Arrival::New(token) => (token, false),
            Arrival::Repeated(token) => (token, true),
        };
        self.events.push_back(Event::Publish {
            token,
            packet_id: header.packet_id.filter(|_| header.qos as u8 > 0),
            qos: header.qos,
            retain: header.retain,
            dup: header.dup,
            message: Arc::new(Message { topic, payload, properties }),
            expiry: header.message_expiry_interval,
            repeated,
        });
        self.send_due_answers();
        Ok(())
    }

    fn handle_pubrec(&mut self, ack: &Ack) -> Result<(), ProtocolError> {
        match self.outbound.pubrec(ack.packet_id, ack.reason)? {
            Received::Event(event) => self.events.push_back(event),
            Received::Release(reason) => self.send_ack(Packet::PubRel, ack.packet_id, reason, None),
            Received::Unknown => {
                self.unknown_acks += 1;
                // A refusal leaves nothing to release.
                if (ack.reason as u8) < 0x80 {
                    self.send_ack(Packet::PubRel, ack.packet_id, ReasonCode::PacketIdentifierNotFound, None);
                }
            }
            Received::Ignore => {}
        }
        Ok(())
    }

    fn handle_pubrel(&mut self, packet_id: PacketId) -> Result<(), ProtocolError> {
        match self.inbound.release(packet_id)? {
            Release::Ask => self.events.push_back(Event::Release { packet_id }),
            Release::Underway => {}
            Release::Unknown => {
                self.send_ack(Packet::PubComp, packet_id, ReasonCode::PacketIdentifierNotFound, None);
            }
        }
        Ok(())
    }

    fn handle_disconnect(&mut self, disconnect: &Disconnect) -> Result<(), ProtocolError> {
        if let Some(expiry) = disconnect.session_expiry_interval {
            if self.requested_expiry == 0 && expiry != 0 {
                return Err(violation("DISCONNECT extends a session that was to end with its connection"));
            }
            self.session_expiry = expiry.min(self.session_expiry_maximum);
        }
        self.end(CloseCause::Client(disconnect.reason), None);
        Ok(())
    }

    fn handle_auth(&mut self, auth: Auth) -> Result<(), ProtocolError> {
        let Some(authentication) = &mut self.authentication else {
            // [MQTT-4.12.0-7]
            return Err(violation("AUTH without an authentication method"));
        };
        let begins = authentication.accept(&auth)?;
        self.events.push_back(Event::Auth { begins, data: auth.authentication_data });
        Ok(())
    }

    /// Answers [`Event::Auth`]: the client has to send more.
    pub fn handle_auth_continued(&mut self, data: Bytes) {
        self.send_auth(ReasonCode::ContinueAuthentication, Some(data));
    }

    /// Answers [`Event::Auth`]: the client has proved who it is. One that has not, is told by [`Self::close`].
    pub fn handle_authenticated(&mut self, data: Option<Bytes>) {
        self.send_auth(ReasonCode::Success, data);
    }

    fn send_auth(&mut self, reason: ReasonCode, authentication_data: Option<Bytes>) {
        let Some(authentication) = &mut self.authentication else { return };
        let packet = authentication.answer(reason, authentication_data);
        if self.answers.fits(&packet) {
            self.send(Some(packet));
        } else {
            // Without it the exchange can't go on.
            self.end(CloseCause::Protocol(ReasonCode::PacketTooLarge), None);
        }
    }

    fn finished(&mut self, event: Option<Event<T>>) {
        match event {
            Some(event) => self.events.push_back(event),
            None => self.unknown_acks += 1,
        }
    }

    /// The bytes of the client could not be decoded: ends the session with the decoder's reason.
    pub fn handle_malformed(&mut self, reason: ReasonCode, what: impl Into<ByteString>) {
        self.end(CloseCause::Protocol(reason), Some(farewell(reason, Some(what.into()))));
    }

    /// The connection is gone without a DISCONNECT.
    pub fn handle_lost(&mut self) {
        self.end(CloseCause::Lost, None);
    }

    /// The connection did not read until `now` for a reason of our own, so silence says nothing of the client.
    pub fn handle_read_paused(&mut self, now: Instant) {
        self.last_received = self.last_received.max(now);
    }

    /// The next thing asked of the broker.
    pub fn poll_event(&mut self) -> Option<Event<T>> {
        self.events.pop_front()
    }

    /// The next packet to write.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.outbound.poll()
    }

    /// When [`Self::handle_timeout`] is due. Packets move it.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.closed {
            return None;
        }
        self.keep_alive.and_then(|timeout| self.last_received.checked_add(timeout))
    }

    /// Ends the session if the keep-alive has run out; while we do not read the client, it starts anew.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return;
        }
        if self.wants_read() {
            self.end(CloseCause::KeepAlive, Some(farewell(ReasonCode::KeepAliveTimeout, None)));
        } else {
            self.last_received = now;
        }
    }

    /// Whether the driver may hand in another packet now. False while too many publishes of a 3.1.1 client,
    /// too many subscriptions or too many packets wait for the broker or the socket.
    #[must_use]
    pub fn wants_read(&self) -> bool {
        let held_back = !self.answers.version.is_v5() && self.inbound.is_full();
        !held_back && self.requests < REQUESTS_MAX && !self.outbound.is_busy()
    }

    /// How many more publishes of QoS 1 and 2 the client may have unacknowledged.
    #[must_use]
    pub fn publish_permits(&self) -> usize {
        self.inbound.permits()
    }

    /// How many publishes of the client have not been answered.
    #[must_use]
    pub fn unanswered_publishes(&self) -> usize {
        self.inbound.unanswered()
    }

    /// Answers a publish with PUBACK or PUBREC, in the order of the publishes. 3.1.1 cannot be told of an error:
    /// there a reason from 0x80 ends the connection.
    pub fn handle_published(
        &mut self,
        token: PublishToken,
        reason: ReasonCode,
        reason_string: Option<ByteString>,
    ) {
        self.inbound.answer(token, Answer { reason, reason_string });
        self.send_due_answers();
    }

    /// The broker has forgotten the id of [`Event::Release`]: PUBCOMP.
    pub fn handle_released(&mut self, packet_id: PacketId) {
        if self.inbound.released(packet_id) {
            self.send_ack(Packet::PubComp, packet_id, ReasonCode::Success, None);
        }
    }

    /// The broker has stored what [`Event::Received`] said: PUBREL.
    pub fn handle_stored(&mut self, packet_id: PacketId) {
        if self.outbound.stored(packet_id) {
            self.send_ack(Packet::PubRel, packet_id, ReasonCode::Success, None);
        }
    }

    /// Answers [`Event::Subscribe`], one reason for each filter.
    pub fn handle_subscribed(
        &mut self,
        packet_id: PacketId,
        reasons: Vec<ReasonCode>,
        properties: AckProperties,
    ) {
        self.requests = self.requests.saturating_sub(1);
        let packet = self.answers.list_ack(properties, |properties| {
            Packet::SubAck(Box::new(SubAck { packet_id, reasons: reasons.clone(), properties }))
        });
        self.send(packet);
    }

    /// Answers [`Event::Unsubscribe`], one reason for each filter.
    pub fn handle_unsubscribed(
        &mut self,
        packet_id: PacketId,
        reasons: Vec<ReasonCode>,
        properties: AckProperties,
    ) {
        self.requests = self.requests.saturating_sub(1);
        let packet = self.answers.list_ack(properties, |properties| {
            Packet::UnsubAck(Box::new(UnsubAck { packet_id, reasons: reasons.clone(), properties }))
        });
        self.send(packet);
    }

    /// How many deliveries of QoS 1 and 2 can be taken now.
    #[must_use]
    pub fn send_quota(&self) -> usize {
        if self.closed { 0 } else { self.outbound.quota() }
    }

    /// How many packet ids of deliveries are taken.
    #[must_use]
    pub fn inflight(&self) -> usize {
        self.outbound.inflight()
    }

    /// Whether a delivery of QoS 0 would be taken: not closed, and not too much waiting to be written.
    #[must_use]
    pub fn can_send(&self) -> bool {
        !self.closed && !self.outbound.is_busy()
    }

    /// Sends a message to the client: the packet id for QoS 1 and 2. A delivery of QoS 0 is finished with this
    /// call, and its tag dropped.
    ///
    /// # Errors
    /// The delivery, and why it was not taken.
    pub fn deliver(&mut self, delivery: Delivery<T>, now: Instant) -> Result<Option<PacketId>, Refused<T>> {
        if self.closed {
            return Err(refused(Refusal::Closed, delivery));
        }
        self.outbound.deliver(delivery, now)
    }

    /// Takes a packet id, and a slot of the send quota, for a delivery that the broker stores before it is sent.
    pub fn reserve_packet_id(&mut self) -> Option<PacketId> {
        if self.closed { None } else { self.outbound.reserve() }
    }

    /// Sends a message of QoS 1 or 2 under a reserved packet id.
    ///
    /// # Errors
    /// The delivery, and why it was not taken; the id is free again, except after `Busy`.
    pub fn deliver_reserved(
        &mut self,
        packet_id: PacketId,
        delivery: Delivery<T>,
        now: Instant,
    ) -> Result<(), Refused<T>> {
        if self.closed {
            return Err(refused(Refusal::Closed, delivery));
        }
        self.outbound.deliver_reserved(packet_id, delivery, now)
    }

    /// Gives up a reserved packet id or a delivery. True if it had not gone out: its id is free and nothing more
    /// will be heard of it. Otherwise the id stays taken until the client's late answer, which is reported by
    /// [`Event::Acked`] as ever. Not for QoS 2 in flight: its packet id is part of the session state at both ends.
    pub fn forget(&mut self, packet_id: PacketId) -> bool {
        self.outbound.forget(packet_id)
    }

    /// Ends the session from our side: DISCONNECT in 5.0, nothing in 3.1.1.
    pub fn close(&mut self, reason: ReasonCode, reason_string: Option<ByteString>) {
        self.end(CloseCause::Server(reason), Some(farewell(reason, reason_string)));
    }

    /// As [`Session::close`], for a client that is to go to another server, which `server_reference` names if it is known.
    pub fn close_for(&mut self, reason: ReasonCode, server_reference: Option<ByteString>) {
        let disconnect = Disconnect { server_reference, ..farewell(reason, None) };
        self.end(CloseCause::Server(reason), Some(disconnect));
    }

    /// Whether [`Event::Closed`] was or will be reported.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// PUBACK, PUBREC and PUBCOMP that named no delivery.
    #[must_use]
    pub fn unknown_acks(&self) -> u64 {
        self.unknown_acks
    }

    /// The protocol spoken.
    #[must_use]
    pub fn version(&self) -> ProtocolVersion {
        self.answers.version
    }

    /// Frees the buffers that are empty; for a connection that has been idle for a while.
    pub fn compact(&mut self) {
        self.inbound.compact();
        self.outbound.compact();
        if self.events.is_empty() {
            self.events = VecDeque::new();
        }
    }

    /// What outlives the connection.
    #[must_use]
    pub fn into_state(self) -> SessionState<T> {
        let (outgoing, returned) = self.outbound.into_left();
        SessionState { outgoing, returned, incoming_qos2: self.inbound.into_unreleased() }
    }

    fn send_due_answers(&mut self) {
        while !self.closed
            && let Some(due) = self.inbound.next_due()
        {
            let Answer { reason, reason_string } = due.answer;
            if reason as u8 >= 0x80 && !self.answers.version.is_v5() {
                self.end(CloseCause::Server(reason), None);
                return;
            }
            let wrap = if due.qos2 { Packet::PubRec } else { Packet::PubAck };
            self.send_ack(wrap, due.packet_id, reason, reason_string);
        }
    }

    fn send_ack(
        &mut self,
        wrap: fn(Ack) -> Packet,
        packet_id: PacketId,
        reason: ReasonCode,
        reason_string: Option<ByteString>,
    ) {
        let packet = self.answers.ack(wrap, packet_id, reason, reason_string);
        self.send(packet);
    }

    fn send(&mut self, packet: Option<Packet>) {
        if !self.closed
            && let Some(packet) = packet
        {
            self.outbound.push(packet);
        }
    }

    fn end(&mut self, cause: CloseCause, disconnect: Option<Disconnect>) {
        if self.closed {
            return;
        }
        if let Some(disconnect) = disconnect {
            self.send(self.answers.disconnect(disconnect));
        }
        self.closed = true;
        let withdrawn = cause == CloseCause::Client(ReasonCode::Success);
        self.events.push_back(Event::Closed(Closed {
            cause,
            publish_will: self.has_will && !withdrawn,
            session_expiry: self.session_expiry,
        }));
    }
}

fn farewell(reason: ReasonCode, reason_string: Option<ByteString>) -> Disconnect {
    Disconnect { reason, reason_string, ..Disconnect::default() }
}

pub(crate) fn violation(what: &'static str) -> ProtocolError {
    ProtocolError { reason: ReasonCode::ProtocolError, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_session_holds_no_buffer() {
        #[expect(clippy::disallowed_methods, reason = "an arbitrary origin")]
        let now = Instant::now();
        let mut session = Session::<u64>::accept(&Connect::default(), None, &Limits::default(), None, now);
        assert!(session.handle_packet(Packet::PingReq, now).is_ok());
        session.close(ReasonCode::Success, None);
        while session.poll_event().is_some() {}
        while session.poll_transmit().is_some() {}
        let before = session.events.capacity();
        session.compact();
        assert!(before > 0, "there was something to free");
        assert_eq!(session.events.capacity() + session.outbound.capacity() + session.inbound.capacity(), 0);
    }
}
