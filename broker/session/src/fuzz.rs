//! Entry point for fuzzers: bytes become packets, calls and time in any order, sensible or not. Panics where the
//! session breaks one of its own bounds. Not part of the interface.

use std::collections::{BTreeSet, VecDeque};
use std::num::{NonZeroU16, NonZeroU32};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bytestring::ByteString;
use weir_codec::{
    Ack, AckProperties, Connect, Disconnect, Message, MessageProperties, Packet, PacketId, ProtocolVersion,
    Publish, PublishHeader, QoS, ReasonCode, Subscribe, Unsubscribe,
};
use weir_topic::TopicName;

use crate::outbound::TRANSMITS_MAX;
use crate::{Delivery, Event, Limits, Outgoing, PublishToken, Restored, Session, Transmit};

const TOPICS: [&str; 6] = ["a", "sensor/1/data", "sensor/2/data", "sensor/3/data", "sensor/4/data", "x/y"];

const REASONS: [ReasonCode; 6] = [
    ReasonCode::Success,
    ReasonCode::DisconnectWithWill,
    ReasonCode::NoMatchingSubscribers,
    ReasonCode::QuotaExceeded,
    ReasonCode::PacketIdentifierNotFound,
    ReasonCode::UnspecifiedError,
];

/// Runs sessions on `data`, one after the other, from `start` on.
///
/// # Panics
/// If a session breaks one of its bounds.
pub fn run(data: &[u8], start: Instant) {
    let mut input = Input(data);
    while !input.0.is_empty() {
        let mut driver = Driver::new(&mut input, start);
        // A few steps more after the end, which must do nothing.
        let mut after_end = 0;
        while !input.0.is_empty() && after_end < 4 {
            driver.step(&mut input);
            driver.check();
            after_end += usize::from(driver.closed);
        }
        driver.finish();
    }
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    /// The next byte, as a number below `bound`; zero when the input has run out.
    fn below(&mut self, bound: u8) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first % bound
    }

    fn one_of<V: Copy>(&mut self, values: &[V]) -> Option<V> {
        let index = self.below(u8::try_from(values.len()).unwrap_or(u8::MAX).max(1));
        values.get(usize::from(index)).copied()
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    /// One of few ids, so that they meet.
    fn packet_id(&mut self) -> PacketId {
        PacketId::new(u16::from(self.below(6)) + 1).expect("at least 1")
    }

    fn qos(&mut self) -> QoS {
        QoS::from_u8(self.below(3)).unwrap_or_default()
    }

    fn reason(&mut self) -> ReasonCode {
        self.one_of(&REASONS).unwrap_or_default()
    }

    fn text(&mut self) -> Option<ByteString> {
        match self.below(3) {
            0 => None,
            1 => Some(ByteString::from_static("why")),
            _ => Some(ByteString::from("w".repeat(100))),
        }
    }

    fn message(&mut self) -> Message {
        let topic = self.one_of(&TOPICS).unwrap_or("a");
        let topic = TopicName::parse(ByteString::from_static(topic)).expect("a valid topic");
        let payload = Bytes::from(vec![0; usize::from(self.below(100))]);
        Message { topic, payload, properties: MessageProperties::default() }
    }

    fn delivery(&mut self, now: Instant) -> Delivery<u8> {
        Delivery {
            message: Arc::new(self.message()),
            qos: self.qos(),
            retain: self.flag(),
            subscription_identifiers: (0..self.below(3)).map(u32::from).collect(),
            extra: Vec::new(),
            expires_at: self.flag().then(|| now + Duration::from_secs(u64::from(self.below(4)))),
            resumable: self.flag(),
            store_release: self.flag(),
            tag: self.below(u8::MAX),
        }
    }

    fn packet(&mut self) -> Packet {
        let kind = self.below(24);
        match kind {
            0..=7 => self.publish(),
            8..=15 => {
                let ack = Ack { packet_id: self.packet_id(), reason: self.reason(), properties: None };
                match kind {
                    8 | 9 => Packet::PubAck(ack),
                    10 | 11 => Packet::PubRec(ack),
                    12 | 13 => Packet::PubRel(ack),
                    _ => Packet::PubComp(ack),
                }
            }
            16 | 17 => Packet::Subscribe(Box::new(Subscribe {
                packet_id: self.packet_id(),
                subscription_identifier: None,
                user_properties: Vec::new(),
                filters: Vec::new(),
            })),
            18 => Packet::Unsubscribe(Box::new(Unsubscribe {
                packet_id: self.packet_id(),
                filters: Vec::new(),
                user_properties: Vec::new(),
            })),
            19..=21 => Packet::PingReq,
            22 => Packet::Disconnect(Box::new(Disconnect {
                reason: self.reason(),
                session_expiry_interval: self.flag().then(|| u32::from(self.below(3))),
                ..Disconnect::default()
            })),
            _ => match self.below(3) {
                0 => Packet::Auth(Box::default()),
                1 => Packet::Connect(Box::default()),
                _ => Packet::PingResp,
            },
        }
    }

    fn publish(&mut self) -> Packet {
        let Message { topic, payload, properties } = self.message();
        let qos = self.qos();
        // Rarely at odds with the QoS, which a decoder would not let through.
        let with_id = if self.below(16) == 0 { self.flag() } else { qos > QoS::AtMostOnce };
        let with_alias = self.below(4) == 0;
        Packet::Publish(Box::new(Publish {
            header: PublishHeader {
                dup: self.flag(),
                qos,
                packet_id: with_id.then(|| self.packet_id()),
                topic_alias: if with_alias { NonZeroU16::new(u16::from(self.below(4))) } else { None },
                ..PublishHeader::default()
            },
            topic: (!with_alias || self.flag()).then_some(topic),
            payload,
            properties,
        }))
    }
}

struct Driver {
    session: Session<u8>,
    version: ProtocolVersion,
    now: Instant,
    window: usize,
    restored: usize,
    packet_size_maximum: usize,
    tokens: VecDeque<PublishToken>,
    /// QoS 1 and 2 publishes that went out and are not finished.
    outstanding: BTreeSet<PacketId>,
    closed: bool,
}

impl Driver {
    fn new(input: &mut Input<'_>, start: Instant) -> Self {
        let small = |n: u8| NonZeroU16::MIN.saturating_add(u16::from(n));
        let version = if input.flag() { ProtocolVersion::V5 } else { ProtocolVersion::V311 };
        let connect = Connect {
            version,
            keep_alive: u16::from(input.below(3)) * 10,
            session_expiry_interval: input.flag().then_some(10),
            receive_maximum: input.flag().then(|| small(input.below(4))),
            maximum_packet_size: if input.below(4) == 0 {
                NonZeroU32::new(u32::from(input.below(100)))
            } else {
                None
            },
            topic_alias_maximum: u16::from(input.below(4)),
            request_problem_information: Some(input.flag()),
            ..Connect::default()
        };
        let limits = Limits {
            receive_maximum: small(input.below(4)),
            inflight_maximum: small(input.below(4)),
            topic_alias_maximum: 2,
            ..Limits::default()
        };
        let restored = Restored {
            outgoing: (0..input.below(6))
                .map(|_| {
                    let packet_id = input.packet_id();
                    if input.flag() {
                        Outgoing::Published { packet_id, delivery: input.delivery(start) }
                    } else {
                        Outgoing::Released { packet_id, tag: 0 }
                    }
                })
                .collect(),
            incoming_qos2: (0..input.below(4)).map(|_| input.packet_id()).collect(),
        };
        let v5 = version == ProtocolVersion::V5;
        let receive_maximum = connect.receive_maximum.filter(|_| v5).unwrap_or(NonZeroU16::MAX);
        let packet_size_maximum = connect.maximum_packet_size.filter(|_| v5);
        let count = restored.outgoing.len();
        Self {
            session: Session::accept(&connect, None, &limits, Some(restored), start),
            version,
            now: start,
            window: usize::from(receive_maximum.min(limits.inflight_maximum).get()),
            restored: count,
            packet_size_maximum: packet_size_maximum.map_or(usize::MAX, |size| size.get() as usize),
            tokens: VecDeque::new(),
            outstanding: BTreeSet::new(),
            closed: false,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0..=5 if self.session.wants_read() => {
                let packet = input.packet();
                let failed = self.session.handle_packet(packet, self.now).is_err();
                assert!(!failed || self.session.is_closed(), "an error ends the session");
            }
            0..=5 => {}
            6 | 7 => {
                // In any order, and sometimes twice.
                if let Some(token) = self.tokens.get(usize::from(input.below(4))) {
                    self.session.handle_published(*token, input.reason(), input.text());
                }
            }
            8 => self.session.handle_released(input.packet_id()),
            9 => self.session.handle_stored(input.packet_id()),
            10 => {
                let properties = AckProperties { reason_string: input.text(), user_properties: Vec::new() };
                self.session.handle_subscribed(input.packet_id(), vec![input.reason()], properties);
            }
            11 => {
                let _refused = self.session.deliver(input.delivery(self.now), self.now);
            }
            12 => match input.below(3) {
                0 => drop(self.session.reserve_packet_id()),
                1 => drop(self.session.forget(input.packet_id())),
                _ => {
                    let (id, delivery) = (input.packet_id(), input.delivery(self.now));
                    let _refused = self.session.deliver_reserved(id, delivery, self.now);
                }
            },
            13 => {
                self.now += Duration::from_secs(u64::from(input.below(4)));
                self.session.handle_timeout(self.now);
            }
            14 => self.transmit(usize::from(input.below(4))),
            _ => match input.below(40) {
                0 => self.session.close(ReasonCode::ServerShuttingDown, input.text()),
                1 => self.session.handle_lost(),
                2 => self.session.handle_malformed(ReasonCode::MalformedPacket, "bytes"),
                _ => self.session.compact(),
            },
        }
        self.events();
    }

    fn events(&mut self) {
        // At most one for the packet, one for each resend that became too large, and the end.
        for count in 0.. {
            let Some(event) = self.session.poll_event() else { return };
            assert!(count < 2 + self.restored, "more events than one step can cause");
            assert!(!self.closed, "Closed is the last event");
            match event {
                Event::Publish { token, qos, repeated: false, .. } if qos > QoS::AtMostOnce => {
                    self.tokens.push_back(token);
                    self.tokens.drain(..self.tokens.len().saturating_sub(8));
                }
                Event::Acked { packet_id, .. } => {
                    self.outstanding.remove(&packet_id);
                }
                Event::Closed(_) => self.closed = true,
                Event::Publish { .. }
                | Event::Release { .. }
                | Event::Auth { .. }
                | Event::Subscribe(_)
                | Event::Unsubscribe(_)
                | Event::Received { .. } => {}
            }
        }
    }

    fn transmit(&mut self, limit: usize) {
        for _ in 0..limit {
            let Some(transmit) = self.session.poll_transmit() else { return };
            self.written(&transmit);
        }
    }

    fn written(&mut self, transmit: &Transmit) {
        let len = match transmit {
            Transmit::Packet(packet) => {
                let server_side =
                    !matches!(packet, Packet::Disconnect(_)) || self.version == ProtocolVersion::V5;
                assert!(server_side, "a 3.1.1 server has no DISCONNECT");
                weir_codec::encoded_len(packet, self.version)
            }
            Transmit::Publish { header, topic_on_wire, message, extra } => {
                if let Some(packet_id) = header.packet_id {
                    assert!(self.outstanding.insert(packet_id), "a packet id is used once at a time");
                    assert!(self.outstanding.len() <= self.window, "within the client's Receive Maximum");
                }
                let topic = if *topic_on_wire { message.topic.as_str() } else { "" };
                let payload = message.payload.len();
                weir_codec::publish_len(self.version, header, topic, &message.properties, extra, payload)
            }
        };
        assert!(len <= self.packet_size_maximum, "within the client's Maximum Packet Size");
    }

    fn check(&self) {
        assert!(self.session.send_quota() <= self.window);
        assert!(self.session.inflight() <= self.window.max(self.restored));
        assert_eq!(self.session.is_closed(), self.closed);
    }

    fn finish(mut self) {
        let mut left = 0;
        while let Some(transmit) = self.session.poll_transmit() {
            self.written(&transmit);
            left += 1;
        }
        // Above the mark: what the broker still answers, and a PUBREL or resend for each id.
        assert!(left <= TRANSMITS_MAX + 64, "{left} packets were queued");
        let state = self.session.into_state();
        assert!(state.outgoing.len() + state.returned.len() <= self.window.max(self.restored));
    }
}
