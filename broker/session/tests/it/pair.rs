//! Two ends in memory, a model of a client and a session, over a link that breaks at any moment. Every choice
//! comes from a seed, which a failure prints.
//!
//! Checked over all reconnects: QoS 2 exactly once and QoS 1 at least once, both in order and in both directions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_codec::*;
use weir_env::seed::Seed;
use weir_session::*;

use crate::script::{message, origin};

const MESSAGES: usize = 40;

// Conformance v5: 4.3.3-10, 4.4.0-1, 4.6.0-1, 4.6.0-5
#[test]
fn qos_2_exactly_once_and_qos_1_at_least_once_over_a_lossy_link() {
    let mut losses = 0;
    for seed in 0..400 {
        let version = if seed % 3 == 0 { ProtocolVersion::V311 } else { ProtocolVersion::V5 };
        let mut world = World::new(Seed::fixed(seed), version);
        eprintln!("seed {seed}");
        world.run();
        losses += world.losses;
    }
    assert!(losses > 400, "the link broke only {losses} times");
}

struct World {
    seed: Seed,
    now: Instant,
    connect: Connect,
    limits: Limits,
    session: Session<usize>,
    client: Client,
    broker: Broker,
    to_server: VecDeque<Packet>,
    to_client: VecDeque<Packet>,
    losses: usize,
}

/// A client that keeps its session state.
#[derive(Default)]
struct Client {
    connected: bool,
    send_maximum: usize,
    next: usize,
    last_id: u16,
    /// In the order of the first sending.
    outgoing: Vec<(PacketId, Sent)>,
    incoming_qos2: BTreeSet<PacketId>,
    aliases: BTreeMap<NonZeroU16, String>,
    received: [Vec<usize>; 3],
}

enum Sent {
    Publish(QoS, usize),
    Release,
}

/// What a broker keeps of one persistent session.
#[derive(Default)]
struct Broker {
    next: usize,
    /// Asked for and not answered.
    unanswered: Vec<(PublishToken, Option<PacketId>)>,
    releasing: Vec<PacketId>,
    storing: Vec<PacketId>,
    /// QoS 2 ids of the client, and whether the session was told of success.
    stored: BTreeMap<PacketId, bool>,
    forwarded: [Vec<usize>; 3],
    acked: BTreeSet<usize>,
}

/// The quality of service of message `n`, the same in both directions.
fn qos_of(n: usize) -> QoS {
    if n.is_multiple_of(2) { QoS::AtLeastOnce } else { QoS::ExactlyOnce }
}

impl World {
    fn new(seed: Seed, version: ProtocolVersion) -> Self {
        let connect = Connect {
            version,
            session_expiry_interval: (version == ProtocolVersion::V5).then_some(3600),
            receive_maximum: (version == ProtocolVersion::V5).then_some(NonZeroU16::new(4).unwrap()),
            topic_alias_maximum: 2,
            keep_alive: 60,
            ..Connect::default()
        };
        let limits = Limits { receive_maximum: NonZeroU16::new(5).unwrap(), ..Limits::default() };
        let now = origin();
        let session = Session::accept(&connect, None, &limits, None, now);
        let client = Client { send_maximum: 5, ..Client::default() };
        Self {
            seed,
            now,
            connect,
            limits,
            session,
            client,
            broker: Broker::default(),
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            losses: 0,
        }
    }

    fn run(&mut self) {
        for step in 0.. {
            assert!(step < 100_000, "the two ends have stopped making progress");
            let faulty = step < 3000;
            if faulty && self.seed.below(60) == 0 {
                self.lose();
            }
            self.step();
            if self.is_done() {
                break;
            }
        }
        let all: [Vec<usize>; 2] = [QoS::AtLeastOnce, QoS::ExactlyOnce]
            .map(|qos| (0..MESSAGES).filter(|&n| qos_of(n) == qos).collect());
        for (name, got) in [("server", &self.broker.forwarded), ("client", &self.client.received)] {
            assert_eq!(firsts(&got[1]), all[0], "{name}: QoS 1 all there, first copies in order");
            assert_eq!(got[2], all[1], "{name}: QoS 2 once, in order");
        }
        assert_eq!(self.session.inflight(), 0);
    }

    fn is_done(&self) -> bool {
        self.client.next == MESSAGES
            && self.client.outgoing.is_empty()
            && self.broker.next == MESSAGES
            && self.broker.acked.len() == MESSAGES
            && self.session.inflight() == 0
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(self.seed.below(20));
        match self.seed.below(6) {
            0 => self.client.publish_next(&mut self.to_server),
            1 => {
                if self.session.wants_read()
                    && let Some(packet) = self.to_server.pop_front()
                {
                    self.session.handle_packet(packet, self.now).expect("the client keeps to the protocol");
                }
            }
            2 => {
                if let Some(packet) = self.to_client.pop_front() {
                    self.client.handle(packet, &mut self.to_server);
                }
            }
            3 => self.broker_answers(),
            4 => self.broker_delivers(),
            _ => self.drain(),
        }
    }

    /// The connection breaks: what is on the way is lost, behind a prefix that still arrives.
    fn lose(&mut self) {
        self.losses += 1;
        for _ in 0..self.seed.below(4) {
            if self.session.wants_read()
                && let Some(packet) = self.to_server.pop_front()
            {
                self.session.handle_packet(packet, self.now).expect("the client keeps to the protocol");
            }
            if let Some(packet) = self.to_client.pop_front() {
                self.client.handle(packet, &mut VecDeque::new());
            }
        }
        self.to_server.clear();
        self.to_client.clear();
        self.events();
        self.session.handle_lost();
        self.broker.unanswered.clear();
        self.broker.releasing.clear();
        self.broker.storing.clear();
        let connect = self.connect.clone();
        let fresh = Session::accept(&connect, None, &self.limits, None, self.now);
        let state = std::mem::replace(&mut self.session, fresh).into_state();
        assert!(state.returned.is_empty());
        self.session = Session::accept(&connect, None, &self.limits, Some(state.into()), self.now);
        self.client.connected = false;
        self.client.aliases.clear();
    }

    fn drain(&mut self) {
        self.events();
        for _ in 0..=self.seed.below(3) {
            let Some(transmit) = self.session.poll_transmit() else { return };
            self.to_client.push_back(match transmit {
                Transmit::Packet(packet) => packet,
                Transmit::Publish { header, topic_on_wire, message, .. } => {
                    Packet::Publish(Box::new(Publish {
                        header,
                        topic: topic_on_wire.then(|| message.topic.clone()),
                        payload: message.payload.clone(),
                        properties: MessageProperties::default(),
                    }))
                }
            });
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Publish { token, packet_id, qos, message, repeated, .. } => {
                    self.broker.handle_publish(token, packet_id, qos, &message, repeated);
                }
                Event::Release { packet_id } => {
                    self.broker.stored.remove(&packet_id);
                    self.broker.releasing.push(packet_id);
                }
                Event::Acked { tag, .. } => {
                    assert!(self.broker.acked.insert(tag), "message {tag} is acknowledged once");
                }
                Event::Received { packet_id, .. } => self.broker.storing.push(packet_id),
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    fn pick<V>(seed: &Seed, from: &mut Vec<V>) -> Option<V> {
        let index = usize::try_from(seed.below(from.len() as u64)).unwrap();
        (!from.is_empty()).then(|| from.swap_remove(index))
    }

    fn broker_answers(&mut self) {
        self.events();
        if let Some((token, packet_id)) = Self::pick(&self.seed, &mut self.broker.unanswered) {
            if let Some(packet_id) = packet_id
                && let Some(answered) = self.broker.stored.get_mut(&packet_id)
            {
                *answered = true;
            }
            self.session.handle_published(token, ReasonCode::Success, None);
        }
        if let Some(packet_id) = Self::pick(&self.seed, &mut self.broker.releasing) {
            self.session.handle_released(packet_id);
        }
        if let Some(packet_id) = Self::pick(&self.seed, &mut self.broker.storing) {
            self.session.handle_stored(packet_id);
        }
    }

    fn broker_delivers(&mut self) {
        let n = self.broker.next;
        if n == MESSAGES || self.session.send_quota() == 0 {
            return;
        }
        let delivery = Delivery {
            message: Arc::new(message(&format!("topic/{}", n % 3), &n.to_string())),
            qos: qos_of(n),
            retain: false,
            subscription_identifiers: smallvec::SmallVec::new(),
            extra: Vec::new(),
            expires_at: None,
            resumable: true,
            store_release: n % 4 == 1,
            tag: n,
        };
        self.session.deliver(delivery, self.now).expect("there is quota");
        self.broker.next += 1;
    }
}

impl Broker {
    fn handle_publish(
        &mut self,
        token: PublishToken,
        packet_id: Option<PacketId>,
        qos: QoS,
        message: &Message,
        repeated: bool,
    ) {
        let n = number(&message.payload);
        if repeated {
            let id = packet_id.expect("QoS 2 has an id");
            assert!(self.stored.contains_key(&id), "a repeat of something known");
            return;
        }
        if qos == QoS::AtLeastOnce {
            self.forwarded[1].push(n);
            self.unanswered.push((token, None));
            return;
        }
        let id = packet_id.expect("QoS 2 has an id");
        match self.stored.get(&id) {
            // Forwarded on an earlier connection that did not live to hear the answer.
            Some(answered) => assert!(!answered, "message {n} comes as new after it was answered"),
            None => {
                self.stored.insert(id, false);
                self.forwarded[2].push(n);
            }
        }
        self.unanswered.push((token, Some(id)));
    }
}

impl Client {
    fn publish_next(&mut self, out: &mut VecDeque<Packet>) {
        if !self.connected || self.next == MESSAGES || self.outgoing.len() >= self.send_maximum {
            return;
        }
        self.last_id = self.last_id % 9 + 1;
        let id = PacketId::new(self.last_id).unwrap();
        if self.outgoing.iter().any(|(taken, _)| *taken == id) {
            return;
        }
        let (n, qos) = (self.next, qos_of(self.next));
        self.next += 1;
        self.outgoing.push((id, Sent::Publish(qos, n)));
        out.push_back(publish(id, qos, n, false));
    }

    fn handle(&mut self, packet: Packet, out: &mut VecDeque<Packet>) {
        match packet {
            Packet::ConnAck(_) => {
                self.connected = true;
                for (id, sent) in &self.outgoing {
                    out.push_back(match sent {
                        Sent::Publish(qos, n) => publish(*id, *qos, *n, true),
                        Sent::Release => Packet::PubRel(ack(*id)),
                    });
                }
            }
            Packet::PubAck(ack) | Packet::PubComp(ack) => {
                self.outgoing.retain(|(id, _)| *id != ack.packet_id)
            }
            Packet::PubRec(answer) => {
                let id = answer.packet_id;
                let sent = self.outgoing.iter_mut().find(|(known, _)| *known == id);
                sent.expect("PUBREC for something sent").1 = Sent::Release;
                out.push_back(Packet::PubRel(ack(id)));
            }
            Packet::PubRel(release) => {
                self.incoming_qos2.remove(&release.packet_id);
                out.push_back(Packet::PubComp(ack(release.packet_id)));
            }
            Packet::Publish(publish) => self.handle_publish(&publish, out),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn handle_publish(&mut self, publish: &Publish, out: &mut VecDeque<Packet>) {
        let n = number(&publish.payload);
        let alias = publish.header.topic_alias;
        let topic = match &publish.topic {
            Some(topic) => topic.as_str().to_owned(),
            None => self.aliases[&alias.expect("no topic, so an alias")].clone(),
        };
        assert_eq!(topic, format!("topic/{}", n % 3));
        if let Some(alias) = alias {
            self.aliases.insert(alias, topic);
        }
        let id = publish.header.packet_id.expect("QoS 1 or 2");
        if publish.header.qos == QoS::AtLeastOnce {
            self.received[1].push(n);
            out.push_back(Packet::PubAck(ack(id)));
        } else {
            if self.incoming_qos2.insert(id) {
                self.received[2].push(n);
            }
            assert!(self.incoming_qos2.len() <= 2 * 1024, "the server keeps to a window");
            out.push_back(Packet::PubRec(ack(id)));
        }
    }
}

fn publish(id: PacketId, qos: QoS, n: usize, dup: bool) -> Packet {
    let Message { topic, payload, properties } = message("t", &n.to_string());
    Packet::Publish(Box::new(Publish {
        header: PublishHeader { dup, qos, packet_id: Some(id), ..PublishHeader::default() },
        topic: Some(topic),
        payload,
        properties,
    }))
}

fn ack(packet_id: PacketId) -> Ack {
    Ack { packet_id, reason: ReasonCode::Success, properties: None }
}

fn number(payload: &[u8]) -> usize {
    std::str::from_utf8(payload).unwrap().parse().unwrap()
}

fn firsts(numbers: &[usize]) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    numbers.iter().copied().filter(|n| seen.insert(*n)).collect()
}
