//! Publishers that do not wait for answers: so many large messages of QoS 2 at once that lines between pods fill up.

use std::collections::BTreeMap;

use weir_codec::{Packet, PacketId, Publish, PublishHeader, QoS, ReasonCode};
use weir_topic::TopicName;

use super::client::{Client, ack};
use super::history::{Event, Message};
use super::wire::Wire;

/// Messages of a burst, and bytes of each: more than there is room for in a line to another pod.
const BURST: u16 = 8;
const BYTES: usize = 60_000;
/// Longest time between two bursts, in milliseconds.
const PAUSE_MAX: u64 = 4_000;

/// A publish that is not done with.
struct Flight {
    publish: Publish,
    /// It was answered, and is to be released.
    is_answered: bool,
}

/// A session with what is in flight in it.
struct Pumper {
    client: Client,
    /// In the order of their ids, which is that in which they were sent.
    flight: BTreeMap<PacketId, Flight>,
}

/// Publishes so many bursts, each in whatever order its answers come.
pub(super) async fn run(client: Client, bursts: u16) {
    let mut pumper = Pumper { client, flight: BTreeMap::new() };
    let mut wire = None;
    for burst in 0..bursts {
        pumper.client.idle(PAUSE_MAX).await;
        for n in 1..=BURST {
            pumper.add(burst * BURST + n);
        }
        while !pumper.flight.is_empty() {
            // What it sends first after it has come back is all there is.
            let mut open = match wire.take() {
                Some(open) => open,
                None => pumper.client.connect(true, 10).await.0,
            };
            if pumper.pump(&mut open).await.is_some() {
                wire = Some(open);
            } else {
                pumper.client.lost();
            }
        }
    }
}

impl Pumper {
    fn add(&mut self, n: u16) {
        let (id, topic) = (self.client.id.clone(), format!("in/{}", n % 5));
        let (payload, qos, packet_id) = (format!("{id}-2-{n}"), QoS::ExactlyOnce, PacketId::new(n).unwrap());
        let publish = Publish {
            header: PublishHeader { qos, packet_id: Some(packet_id), ..PublishHeader::default() },
            topic: Some(TopicName::parse(topic.clone()).unwrap()),
            payload: format!("{payload} {:BYTES$}", "").into(),
            properties: weir_codec::MessageProperties::default(),
        };
        self.client.history.note(Event::Sent(id, Message { payload, topic, qos }));
        self.flight.insert(packet_id, Flight { publish, is_answered: false });
    }

    /// Sends all there is, and takes answers until nothing is in flight. `None` if the connection is over first.
    async fn pump(&mut self, wire: &mut Wire) -> Option<()> {
        for (packet_id, flight) in &mut self.flight {
            let packet = if flight.is_answered {
                Packet::PubRel(ack(*packet_id, ReasonCode::Success))
            } else {
                let publish = Box::new(flight.publish.clone());
                flight.publish.header.dup = true;
                Packet::Publish(publish)
            };
            wire.send(&packet).await?;
        }
        while !self.flight.is_empty() {
            match self.client.next(wire).await? {
                Packet::PubRec(answer) => {
                    let (id, payload) =
                        (self.client.id.clone(), format!("{}-2-{}", self.client.id, answer.packet_id.get()));
                    self.client.history.note(Event::Answered(id, payload, answer.reason));
                    if answer.reason.is_error() {
                        self.flight.remove(&answer.packet_id);
                        continue;
                    }
                    if let Some(flight) = self.flight.get_mut(&answer.packet_id) {
                        flight.is_answered = true;
                    }
                    wire.send(&Packet::PubRel(ack(answer.packet_id, ReasonCode::Success))).await?;
                }
                Packet::PubComp(answer) => _ = self.flight.remove(&answer.packet_id),
                Packet::Disconnect(_) => return None,
                other => panic!("{}: not an answer: {other:?}", self.client.id),
            }
        }
        Some(())
    }
}
