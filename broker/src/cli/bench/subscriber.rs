//! A subscriber under load: counts what arrives, measures how long it took, acknowledges.

use std::sync::atomic::Ordering;

use anyhow::bail;
use weir_codec::{PacketType, ProtocolVersion, QoS, SubscribeFilter, SubscriptionOptions};

use super::frame;
use super::latency::{Latencies, Latency};
use super::plan::SubscriberPlan;
use super::publisher::stamp;
use super::shared::{Member, add, check_qos};
use super::wire::Wire;
use crate::client::Client;

/// Connects, subscribes, receives until the run stops.
pub(super) async fn run(plan: SubscriberPlan, member: Member) -> anyhow::Result<()> {
    let mut client = member.connect().await?;
    check_qos(&client, plan.qos)?;
    let mut phases = member.shared.phases();
    let mut first_since = None;
    if plan.at_start {
        if member.started().await.is_none() {
            return Ok(());
        }
        let asked = member.shared.now();
        subscribe(&mut client, &plan).await?;
        first_since = Some(asked);
    } else {
        subscribe(&mut client, &plan).await?;
        add(&member.shared.counts.ready, 1);
    }
    let version = client.version();
    let (mut wire, early) = Wire::new(client);
    let mut arrivals = Arrivals { member: &member, first_since };
    arrivals.count(|tally| early.iter().for_each(|publish| tally.add(&publish.payload)));
    let received = tokio::select! {
        received = receive(&mut wire, version, &mut arrivals) => received,
        () = Member::stopped(&mut phases) => Ok(()),
    };
    wire.close().await;
    received
}

async fn subscribe(client: &mut Client, plan: &SubscriberPlan) -> anyhow::Result<()> {
    let options = SubscriptionOptions { qos: plan.qos, ..SubscriptionOptions::default() };
    let filter = SubscribeFilter { filter: plan.filter.as_str().into(), options };
    let answer = client.subscribe(vec![filter], plan.properties()).await?;
    match answer.reasons.first() {
        Some(reason) if reason.is_error() => {
            let said = answer.properties.reason_string.map(|text| format!(": {text}")).unwrap_or_default();
            bail!("subscription to `{}` refused: {reason}{said}", plan.filter)
        }
        _ => Ok(()),
    }
}

async fn receive(
    wire: &mut Wire,
    version: ProtocolVersion,
    arrivals: &mut Arrivals<'_>,
) -> anyhow::Result<()> {
    loop {
        // Packets that came with the answer to SUBSCRIBE are there before the socket has more.
        arrivals.count(|tally| take(wire, version, tally))?;
        wire.write()?;
        wire.ready().await?;
        wire.transfer()?;
    }
}

fn take(wire: &mut Wire, version: ProtocolVersion, tally: &mut Tally<'_>) -> anyhow::Result<()> {
    wire.packets(|packet, frame, output| {
        match packet {
            PacketType::Publish => {
                let delivery = frame.delivery(version)?;
                tally.add(delivery.payload);
                let answer = match delivery.qos {
                    QoS::AtMostOnce => return Ok(()),
                    QoS::AtLeastOnce => PacketType::PubAck,
                    QoS::ExactlyOnce => PacketType::PubRec,
                };
                output.extend_from_slice(&frame::success(answer, delivery.packet_id));
            }
            PacketType::PubRel => {
                output.extend_from_slice(&frame::success(PacketType::PubComp, frame.ack()?.0));
            }
            PacketType::PingResp => {}
            other => bail!("unexpected {other} from the server"),
        }
        Ok(())
    })
}

/// What one subscriber has seen.
struct Arrivals<'a> {
    member: &'a Member,
    /// Since when the first message is waited for.
    first_since: Option<u64>,
}

/// What one batch of messages adds to the counts.
struct Tally<'a> {
    run: u64,
    now: u64,
    latency: &'a mut Latency,
    /// What is read was stored before the run, and has no latency.
    stored: bool,
    /// Messages of earlier runs count as well.
    any_run: bool,
    received: u64,
    foreign: u64,
}

impl Arrivals<'_> {
    /// Counts the messages that `batch` adds; all of them have arrived now.
    fn count<T>(&mut self, batch: impl FnOnce(&mut Tally<'_>) -> T) -> T {
        let shared = &self.member.shared;
        let mut latencies = self.member.latencies.lock();
        let Latencies { end_to_end, first, .. } = &mut *latencies;
        let mut tally = Tally {
            run: shared.run,
            now: shared.now(),
            latency: end_to_end,
            stored: shared.stored,
            any_run: shared.any_run,
            received: 0,
            foreign: 0,
        };
        let result = batch(&mut tally);
        if tally.received + tally.foreign > 0 {
            if let Some(since) = self.first_since.take() {
                first.record(tally.now.saturating_sub(since));
            }
            add(&shared.counts.received, tally.received);
            if let Some(own) = shared.counts.received_by.get(self.member.number) {
                add(own, tally.received);
            }
            add(&shared.counts.foreign, tally.foreign);
            shared.counts.last_received.fetch_max(tally.now, Ordering::Relaxed);
            shared.announce_room();
        }
        result
    }
}

impl Tally<'_> {
    fn add(&mut self, payload: &[u8]) {
        match stamp(payload) {
            Some((run, due)) if run == self.run => {
                self.received += 1;
                if !self.stored {
                    self.latency.record(self.now.saturating_sub(due));
                }
            }
            _ if self.any_run => self.received += 1,
            _ => self.foreign += 1,
        }
    }
}
