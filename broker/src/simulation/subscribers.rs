//! Who takes messages: consumers of a queue, subscribers and readers of a stream with sessions that last, and readers
//! that begin anew each time. Until the run comes to its end they also reject, hang up and hold on to what they have.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;
use weir_codec::{Disconnect, Packet, PacketId, Publish, QoS, ReasonCode};

use super::client::{Client, ack};
use super::history::Event;
use super::wire::Wire;

/// What clients are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Do as you like.
    Busy,
    /// Take what there is.
    Draining,
    Over,
}

/// A client that takes messages.
pub(super) struct Taker {
    client: Client,
    phase: watch::Receiver<Phase>,
    filter: &'static str,
    qos: QoS,
    properties: &'static [(&'static str, &'static str)],
    /// Packet ids of QoS 2 messages that are taken and not released.
    taken: BTreeSet<PacketId>,
}

/// How a connection goes on after a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    GoesOn,
    HangsUp,
    Leaves,
}

impl Taker {
    pub(super) fn new(
        client: Client,
        phase: &watch::Receiver<Phase>,
        filter: &'static str,
        qos: QoS,
        properties: &'static [(&'static str, &'static str)],
    ) -> Self {
        Self { client, phase: phase.clone(), filter, qos, properties, taken: BTreeSet::new() }
    }

    fn is_busy(&self) -> bool {
        *self.phase.borrow() == Phase::Busy
    }

    /// Takes messages until the run is over; `persistent`: with one session all the time.
    pub(super) async fn run(mut self, persistent: bool) {
        let mut over = self.phase.clone();
        tokio::select! {
            biased;
            // The sender ends with the run.
            _ = over.wait_for(|phase| *phase == Phase::Over) => {}
            () = self.take(persistent) => {}
        }
    }

    async fn take(&mut self, persistent: bool) {
        let mut is_subscribed = false;
        loop {
            let window = 1 + u16::try_from(self.client.seed.below(8)).unwrap();
            let (mut wire, present) = self.client.connect(persistent, window).await;
            if !present {
                self.taken.clear();
                is_subscribed = false;
            }
            self.take_from(&mut wire, &mut is_subscribed).await;
            drop(wire);
            self.client.lost();
            self.client.idle(1000).await;
        }
    }

    /// Until the connection is over.
    async fn take_from(&mut self, wire: &mut Wire, is_subscribed: &mut bool) {
        let mut early = Vec::new();
        if !*is_subscribed {
            match self.client.subscribe(wire, self.filter, self.qos, self.properties).await {
                Some(packets) => early = packets,
                None => return,
            }
            *is_subscribed = true;
        }
        for packet in early {
            if self.handle(wire, packet).await != Next::GoesOn {
                return;
            }
        }
        loop {
            // Now and then it looks whether the broker is still there.
            let waited = tokio::time::timeout(Duration::from_secs(20), wire.next()).await;
            let next = match waited {
                Ok(Some(packet)) => self.handle(wire, packet).await,
                Ok(None) => return,
                Err(_) => match self.ping(wire).await {
                    Some(packets) => {
                        let mut next = Next::GoesOn;
                        for packet in packets {
                            next = self.handle(wire, packet).await;
                        }
                        next
                    }
                    None => return,
                },
            };
            match next {
                Next::GoesOn => {}
                Next::HangsUp => return,
                Next::Leaves => {
                    // The connection may be over already.
                    let _ = wire.send(&Packet::Disconnect(Box::<Disconnect>::default())).await;
                    return;
                }
            }
        }
    }

    /// What came before the answer; `None` without an answer.
    async fn ping(&self, wire: &mut Wire) -> Option<Vec<Packet>> {
        wire.send(&Packet::PingReq).await?;
        let mut before = Vec::new();
        loop {
            match self.client.next(wire).await? {
                Packet::PingResp => return Some(before),
                other => before.push(other),
            }
        }
    }

    async fn handle(&mut self, wire: &mut Wire, packet: Packet) -> Next {
        let told = match packet {
            Packet::Publish(publish) => {
                if self.is_busy() && self.client.chance(25) {
                    // With what is in flight.
                    return Next::HangsUp;
                }
                self.handle_publish(wire, *publish).await
            }
            Packet::PubRel(release) => {
                self.step(release.packet_id, "is released");
                self.taken.remove(&release.packet_id);
                wire.send(&Packet::PubComp(ack(release.packet_id, ReasonCode::Success))).await
            }
            Packet::Disconnect(_) => return Next::HangsUp,
            other => panic!("{}: unexpected {other:?}", self.client.id),
        };
        match told {
            None => Next::HangsUp,
            Some(()) if self.is_busy() && self.client.chance(40) => Next::Leaves,
            Some(()) => Next::GoesOn,
        }
    }

    fn step(&self, packet_id: PacketId, what: &'static str) {
        self.client.history.note(Event::Step(self.client.id.clone(), packet_id.get(), what));
    }

    async fn handle_publish(&mut self, wire: &mut Wire, publish: Publish) -> Option<()> {
        if let (QoS::ExactlyOnce, Some(packet_id)) = (publish.header.qos, publish.header.packet_id) {
            if self.taken.insert(packet_id) {
                self.step(packet_id, "is taken");
                self.client.received(&publish);
            } else {
                self.step(packet_id, "came again");
            }
            if self.is_busy() && self.client.chance(25) {
                // It has the message, and the broker does not know.
                return None;
            }
            return wire.send(&Packet::PubRec(ack(packet_id, ReasonCode::Success))).await;
        }
        self.client.received(&publish);
        if self.is_busy() && self.client.chance(40) {
            return None;
        }
        if self.is_busy() && self.client.chance(8) {
            self.client.idle(300).await;
        }
        let rejects = self.filter.starts_with("$queue") && self.is_busy() && self.client.chance(10);
        let reason = if rejects { ReasonCode::UnspecifiedError } else { ReasonCode::Success };
        self.client.settle(wire, &publish, reason).await
    }
}
