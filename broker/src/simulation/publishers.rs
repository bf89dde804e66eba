//! Publishers that do what MQTT asks of them: they come back to their sessions and send again what nobody answered.

use weir_codec::{Packet, PacketId, Publish, PublishHeader, QoS, ReasonCode};
use weir_topic::TopicName;

use super::client::{Client, PATIENCE, ack};
use super::history::{Event, Message};
use super::wire::Wire;

/// Longest time between two publishes, in milliseconds.
const PAUSE_MAX: u64 = 600;

/// A publisher with a session that outlives connections.
pub(super) struct Publisher {
    client: Client,
    wire: Option<Wire>,
    last: u16,
}

impl Publisher {
    pub(super) const fn new(client: Client) -> Self {
        Self { client, wire: None, last: 0 }
    }

    /// Publishes so many messages to what topics `topic` gives, in a session that is persistent or ends with each
    /// connection.
    pub(super) async fn run(mut self, messages: u16, retain: bool, topic: impl Fn(u64) -> String) {
        for _ in 0..messages {
            self.client.idle(PAUSE_MAX).await;
            let qos = if retain || self.client.chance(2) { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
            let to = topic(self.client.seed.next_u64());
            self.publish(qos, retain, to).await;
            if self.client.chance(12) {
                self.hang_up();
            }
        }
    }

    /// Its connection, if need be a new one.
    pub(super) async fn connected(&mut self) -> &mut Wire {
        if self.wire.is_none() {
            self.wire = Some(self.client.connect(true, 10).await.0);
        }
        self.wire.as_mut().expect("has just been connected")
    }

    fn hang_up(&mut self) {
        self.wire = None;
        self.client.lost();
    }

    /// Sends a packet and returns the answer; `None` if the connection is over first.
    async fn ask(&mut self, packet: &Packet) -> Option<Packet> {
        let wire = self.connected().await;
        let answer = match wire.send(packet).await {
            Some(()) => tokio::time::timeout(PATIENCE, wire.next()).await.ok().flatten(),
            None => None,
        };
        let answer = answer.filter(|answer| !matches!(answer, Packet::Disconnect(_)));
        if answer.is_none() {
            self.hang_up();
        }
        answer
    }

    /// Publishes one message, again after each lost connection, until it is acknowledged or refused. Returns its payload.
    pub(super) async fn publish(&mut self, qos: QoS, retain: bool, topic: String) -> String {
        self.last += 1;
        let packet_id = PacketId::new(self.last).unwrap();
        let id = self.client.id.clone();
        let payload = format!("{id}-{}-{}", qos.as_u8(), self.last);
        let message = Message { payload: payload.clone(), topic: topic.clone(), qos };
        self.client.history.note(Event::Sent(id.clone(), message));
        let mut publish = Publish {
            header: PublishHeader { qos, retain, packet_id: Some(packet_id), ..PublishHeader::default() },
            topic: Some(TopicName::parse(topic).unwrap()),
            payload: payload.clone().into(),
            properties: weir_codec::MessageProperties::default(),
        };
        let reason = loop {
            match self.ask(&Packet::Publish(Box::new(publish.clone()))).await {
                Some(Packet::PubAck(ack) | Packet::PubRec(ack)) if ack.packet_id == packet_id => {
                    break ack.reason;
                }
                None => publish.header.dup = true,
                Some(other) => panic!("{id}: not an answer to {payload}: {other:?}"),
            }
        };
        self.client.history.note(Event::Answered(id, payload.clone(), reason));
        if qos == QoS::ExactlyOnce && !reason.is_error() {
            self.release(packet_id).await;
        }
        payload
    }

    /// PUBREL until PUBCOMP.
    async fn release(&mut self, packet_id: PacketId) {
        loop {
            match self.ask(&Packet::PubRel(ack(packet_id, ReasonCode::Success))).await {
                Some(Packet::PubComp(ack)) if ack.packet_id == packet_id => break,
                None => {}
                Some(other) => panic!("{}: not PUBCOMP: {other:?}", self.client.id),
            }
        }
    }
}
