//! A publisher under load: sends each message when it is due, or as fast as it can.

use std::time::Duration;

use anyhow::ensure;
use bytes::BytesMut;
use weir_codec::{
    MessageProperties, PacketId, PacketType, ProtocolVersion, PublishHeader, QoS, encode_publish,
};

use super::SIZE_MIN;
use super::frame;
use super::pacer::Pacer;
use super::plan::{PublisherPlan, Rate};
use super::shared::{Member, add, check_qos, read};
use super::wire::{OUTPUT_BYTES_MAX, Wire, reason};
use crate::client::Client;

/// Time after the end to wait for acknowledgements.
const GRACE: Duration = Duration::from_secs(5);
/// Time without an arrival after which a closed loop goes on, in nanoseconds.
const ARRIVALS_MISSED: u64 = 200_000_000;

/// Connects, waits for the start, publishes, waits for the last acknowledgement.
pub(super) async fn run(plan: PublisherPlan, member: Member) -> anyhow::Result<()> {
    let client = member.connect().await?;
    check_qos(&client, plan.qos)?;
    let templates = Templates::new(&plan, client.version())?;
    let ids = Ids::new(&plan, &client);
    let mut phases = member.shared.phases();
    let pacer = Pacer::new(member.shared.clock)?;
    let Some((start, end)) = member.started().await else { return Ok(()) };
    let schedule = Schedule::new(&plan, member.shared.nanos(start), member.shared.nanos(end));
    let (wire, _) = Wire::new(client);
    let turn = if member.shared.follows_arrivals() { plan.window.get().into() } else { u64::MAX };
    let mut publisher = Publisher { wire, templates, ids, schedule, member, turn };
    let published = tokio::select! {
        published = publisher.publish(&pacer) => published,
        () = Member::stopped(&mut phases) => Ok(()),
    };
    publisher.wire.close().await;
    published
}

struct Publisher {
    wire: Wire,
    templates: Templates,
    ids: Ids,
    schedule: Schedule,
    member: Member,
    /// Most messages at once.
    turn: u64,
}

impl Publisher {
    async fn publish(&mut self, pacer: &Pacer) -> anyhow::Result<()> {
        let shared = std::sync::Arc::clone(&self.member.shared);
        let give_up = self.schedule.end + u64::try_from(GRACE.as_nanos()).unwrap_or(u64::MAX);
        loop {
            let mut now = shared.now();
            if self.send_due(now) {
                self.wire.write()?;
                now = shared.now();
            }
            let over = self.schedule.is_over(now);
            if over && self.ids.in_flight() == 0 && self.wire.output.is_empty() {
                break;
            }
            ensure!(now < give_up, "{} publishes not acknowledged in time", self.ids.in_flight());
            // A closed loop waits for acknowledgements, or for its turn after arrivals; the clock only ends it.
            let due = self.schedule.next_due(now);
            let follows = shared.follows_arrivals() && !over && due.is_none() && self.has_room();
            let wake = match due {
                _ if over => give_up,
                Some(due) if self.has_room() => due,
                None if follows => self.schedule.end.min(now + ARRIVALS_MISSED),
                _ => self.schedule.end,
            };
            let coarse = self.schedule.is_closed();
            tokio::select! {
                ready = self.wire.ready() => ready?,
                () = shared.room(), if follows => {}
                () = tokio::time::sleep_until(shared.instant(wake)), if coarse => {}
                slept = pacer.sleep_until(shared.instant(wake)), if !coarse => slept?,
            }
            self.wire.transfer()?;
            self.take_acks()?;
        }
        add(&shared.counts.unsent, self.schedule.unsent());
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.wire.output.len() < OUTPUT_BYTES_MAX && self.ids.has_room()
    }

    /// Buffers what is due and has room; whether there was anything.
    fn send_due(&mut self, now: u64) -> bool {
        let counts = &self.member.shared.counts;
        let room = self.member.shared.backlog_room();
        let progress = read(&counts.last_sent).max(read(&counts.last_received));
        if room == 0 && now.saturating_sub(progress) > ARRIVALS_MISSED {
            self.member.shared.forgive_backlog();
        }
        // Each publisher in turn: none takes more of the room than its window.
        let turn = room.min(self.turn);
        let mut sent = 0;
        while sent < turn && self.has_room() {
            let Some(due) = self.schedule.take_due(now) else { break };
            let packet_id = self.ids.take(due);
            self.templates.next().write(&mut self.wire.output, packet_id, self.member.shared.run, due);
            sent += 1;
        }
        if sent > 0 {
            let counts = &self.member.shared.counts;
            add(&counts.sent, sent);
            counts.last_sent.fetch_max(now, std::sync::atomic::Ordering::Relaxed);
        }
        if sent < room && now >= self.schedule.start {
            self.member.shared.announce_room();
        }
        sent > 0
    }

    fn take_acks(&mut self) -> anyhow::Result<()> {
        let (ids, shared) = (&mut self.ids, &self.member.shared);
        let now = shared.now();
        let mut latencies = self.member.latencies.lock();
        let (mut acked, mut refused) = (0, 0);
        self.wire.packets(|packet, frame, output| {
            let (packet_id, code) = match packet {
                PacketType::PubAck | PacketType::PubRec | PacketType::PubComp => frame.ack()?,
                PacketType::PingResp => return Ok(()),
                other => anyhow::bail!("unexpected {other} from the server"),
            };
            if packet == PacketType::PubRec && code < 0x80 {
                output.extend_from_slice(&frame::success(PacketType::PubRel, packet_id));
                return Ok(());
            }
            let due = ids.free(packet_id)?;
            if code < 0x80 {
                acked += 1;
                latencies.ack.record(now.saturating_sub(due));
            } else {
                refused += 1;
                shared.note(format!("publish refused: {}", reason(code)));
            }
            Ok(())
        })?;
        add(&shared.counts.acked, acked);
        add(&shared.counts.refused, refused);
        Ok(())
    }
}

/// One for each topic, in turn.
struct Templates {
    all: Vec<Template>,
    next: usize,
}

impl Templates {
    fn new(plan: &PublisherPlan, version: ProtocolVersion) -> anyhow::Result<Self> {
        let all: Vec<Template> =
            plan.topics.iter().map(|topic| Template::new(plan, topic, version)).collect::<Result<_, _>>()?;
        ensure!(!all.is_empty(), "a publisher has no topic");
        Ok(Self { all, next: 0 })
    }

    fn next(&mut self) -> &Template {
        let at = self.next;
        self.next = (at + 1) % self.all.len();
        &self.all[at]
    }
}

/// An encoded PUBLISH, of which each message changes a few bytes.
struct Template {
    bytes: Vec<u8>,
    /// Where the payload begins.
    payload: usize,
    /// Where the packet id is; not at QoS 0.
    packet_id: Option<usize>,
}

impl Template {
    fn new(plan: &PublisherPlan, topic: &str, version: ProtocolVersion) -> anyhow::Result<Self> {
        let packet_id = (plan.qos > QoS::AtMostOnce).then_some(PacketId::new(1)).flatten();
        let header = PublishHeader { qos: plan.qos, packet_id, ..PublishHeader::default() };
        let mut bytes = BytesMut::new();
        let extra: &[(&str, &str)] = &[];
        let payload = vec![b'.'; plan.size.max(SIZE_MIN as usize)];
        let properties = MessageProperties::default();
        encode_publish(&mut bytes, version, &header, topic, &properties, extra, &payload)?;
        let payload = bytes.len() - payload.len();
        // Between the packet id and the payload there are only the properties, of which there are none.
        let properties = usize::from(version == ProtocolVersion::V5);
        Ok(Self { bytes: bytes.to_vec(), payload, packet_id: packet_id.map(|_| payload - properties - 2) })
    }

    fn write(&self, output: &mut BytesMut, packet_id: u16, run: u64, due: u64) {
        let start = output.len();
        output.extend_from_slice(&self.bytes);
        let message = &mut output[start..];
        if let Some(at) = self.packet_id {
            message[at..at + 2].copy_from_slice(&packet_id.to_be_bytes());
        }
        message[self.payload..self.payload + 8].copy_from_slice(&run.to_be_bytes());
        message[self.payload + 8..self.payload + 16].copy_from_slice(&due.to_be_bytes());
    }
}

/// The run and the time that a payload was due, if it is one of ours.
pub(super) fn stamp(payload: &[u8]) -> Option<(u64, u64)> {
    let (run, rest) = payload.split_first_chunk()?;
    let due = rest.first_chunk()?;
    Some((u64::from_be_bytes(*run), u64::from_be_bytes(*due)))
}

/// Packet ids and the times their messages were due.
struct Ids {
    /// By packet id less one; `None` for ids that are free.
    due: Vec<Option<u64>>,
    free: Vec<u16>,
    /// QoS 0 needs none.
    needed: bool,
}

impl Ids {
    fn new(plan: &PublisherPlan, client: &Client) -> Self {
        let maximum = client.conn_ack().receive_maximum.unwrap_or(plan.window);
        let window = plan.window.min(maximum).get();
        let needed = plan.qos > QoS::AtMostOnce;
        let window = if needed { window } else { 0 };
        Self { due: vec![None; window.into()], free: (1..=window).rev().collect(), needed }
    }

    fn has_room(&self) -> bool {
        !self.needed || !self.free.is_empty()
    }

    fn in_flight(&self) -> usize {
        self.due.len() - self.free.len()
    }

    /// A free id; zero at QoS 0. There must be room.
    fn take(&mut self, due: u64) -> u16 {
        let Some(id) = self.free.pop() else { return 0 };
        self.due[usize::from(id) - 1] = Some(due);
        id
    }

    /// When the message with this id was due; the id is free then.
    fn free(&mut self, id: u16) -> anyhow::Result<u64> {
        let slot = usize::from(id).checked_sub(1).and_then(|n| self.due.get_mut(n));
        let Some(due) = slot.and_then(Option::take) else {
            anyhow::bail!("unexpected packet identifier {id} from the server")
        };
        self.free.push(id);
        Ok(due)
    }
}

/// When messages are due. Times are nanoseconds.
struct Schedule {
    start: u64,
    end: u64,
    /// Between messages; `None`: as fast as can be.
    interval: Option<f64>,
    /// Messages taken.
    taken: u64,
    /// Messages there are.
    count: u64,
}

impl Schedule {
    fn new(plan: &PublisherPlan, start: u64, end: u64) -> Self {
        let interval = match plan.rate {
            Rate::Max => None,
            Rate::PerSecond(rate) => Some(1e9 / rate),
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below one interval")]
        let start = start + interval.map_or(0, |interval| (interval * plan.lag) as u64);
        let mut schedule = Self { start, end, interval, taken: 0, count: plan.count };
        if interval.is_some() {
            schedule.count = schedule.count.min(schedule.messages_before(end));
        }
        schedule
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a run has fewer messages than a float counts"
    )]
    fn messages_before(&self, end: u64) -> u64 {
        let interval = self.interval.unwrap_or(1.0);
        (end.saturating_sub(self.start) as f64 / interval).ceil() as u64
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a run has fewer messages than a float counts"
    )]
    fn due(&self, n: u64) -> u64 {
        self.start + (n as f64 * self.interval.unwrap_or(0.0)) as u64
    }

    /// Whether messages have no times of their own.
    const fn is_closed(&self) -> bool {
        self.interval.is_none()
    }

    /// When the next message is due, which may be past; in a closed loop only before the start.
    fn next_due(&self, now: u64) -> Option<u64> {
        match self.interval {
            Some(_) => Some(self.due(self.taken).min(self.end)),
            None => (now < self.start).then_some(self.start),
        }
    }

    /// The time of the next message, if it is due.
    fn take_due(&mut self, now: u64) -> Option<u64> {
        if self.is_over(now) || now < self.start {
            return None;
        }
        let due = match self.interval {
            Some(_) => self.due(self.taken),
            None => now,
        };
        (due <= now).then(|| {
            self.taken += 1;
            due
        })
    }

    fn is_over(&self, now: u64) -> bool {
        now >= self.end || self.taken >= self.count
    }

    /// Messages that were due and not taken.
    fn unsent(&self) -> u64 {
        if self.interval.is_some() { self.count - self.taken } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    fn plan(rate: Rate, qos: QoS) -> PublisherPlan {
        PublisherPlan {
            topics: vec!["a/b".into()],
            qos,
            size: 20,
            rate,
            lag: 0.5,
            window: NonZeroU16::new(2).unwrap(),
            count: u64::MAX,
        }
    }

    #[test]
    fn an_open_loop_keeps_its_times_however_late_it_is() {
        let plan = plan(Rate::PerSecond(1000.0), QoS::AtMostOnce);
        let mut schedule = Schedule::new(&plan, 1_000_000, 11_000_000);
        assert_eq!(schedule.take_due(1_400_000), None);
        assert_eq!(schedule.next_due(1_400_000), Some(1_500_000));
        assert_eq!(schedule.take_due(1_500_000), Some(1_500_000));
        assert_eq!(schedule.take_due(1_600_000), None);
        // Held up for five milliseconds: what was due meanwhile is due at its own time.
        assert_eq!(schedule.take_due(6_600_000), Some(2_500_000));
        assert_eq!(schedule.take_due(6_600_000), Some(3_500_000));
        assert!(!schedule.is_over(10_999_999));
        assert!(schedule.is_over(11_000_000));
        assert_eq!(schedule.take_due(11_000_000), None);
        assert_eq!(schedule.unsent(), 7);
    }

    #[test]
    fn a_closed_loop_sends_now_until_the_end_or_the_count() {
        let mut schedule = Schedule::new(&plan(Rate::Max, QoS::AtMostOnce), 100, 200);
        assert_eq!(
            [99, 100, 150, 199, 200].map(|now| schedule.take_due(now)),
            [None, Some(100), Some(150), Some(199), None]
        );
        assert_eq!(schedule.unsent(), 0);
        let mut schedule =
            Schedule::new(&PublisherPlan { count: 1, ..plan(Rate::Max, QoS::AtMostOnce) }, 100, 200);
        assert_eq!(schedule.take_due(100), Some(100));
        assert!(schedule.is_over(100));
    }

    #[test]
    fn templates_become_messages() {
        for version in [ProtocolVersion::V311, ProtocolVersion::V5] {
            for (qos, id) in [(QoS::AtMostOnce, 0), (QoS::AtLeastOnce, 0x1234)] {
                let template = Template::new(&plan(Rate::Max, qos), "a/b", version).unwrap();
                let mut output = BytesMut::from(&b"before"[..]);
                template.write(&mut output, id, 7, 9);
                let frame = frame::first(&output[6..]).unwrap().unwrap();
                let delivery = frame.delivery(version).unwrap();
                assert_eq!((delivery.qos, delivery.packet_id, delivery.payload.len()), (qos, id, 20));
                assert_eq!(stamp(delivery.payload), Some((7, 9)));
            }
        }
        assert_eq!(stamp(b"too short"), None);
    }

    #[test]
    fn topics_take_turns() {
        let topics = ["a/1", "a/2"].map(str::to_owned).to_vec();
        let plan = PublisherPlan { topics, ..plan(Rate::Max, QoS::AtMostOnce) };
        let mut templates = Templates::new(&plan, ProtocolVersion::V5).unwrap();
        for expected in [b"a/1", b"a/2", b"a/1"] {
            assert!(templates.next().bytes.windows(3).any(|part| part == expected));
        }
        let none = PublisherPlan { topics: Vec::new(), ..plan };
        assert!(Templates::new(&none, ProtocolVersion::V5).is_err());
    }

    #[test]
    fn ids_are_used_once_at_a_time() {
        let mut ids = Ids { due: vec![None; 2], free: vec![2, 1], needed: true };
        let (a, b) = (ids.take(10), ids.take(20));
        assert_eq!((a, b, ids.has_room(), ids.in_flight()), (1, 2, false, 2));
        assert_eq!(ids.free(b).unwrap(), 20);
        assert!(ids.free(b).is_err(), "acknowledged twice");
        assert!(ids.free(0).is_err());
        assert!(ids.free(3).is_err());
        assert_eq!((ids.take(30), ids.in_flight()), (2, 2));
    }
}
