//! The clients of a cluster under faults. Each goes to another pod when one does not answer, and writes what it saw
//! into the [`Ledger`]. None of them knows of the faults; what a broken connection says is no news to them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use weir_codec::{Packet, PacketId, Publish, QoS};
use weir_env::clock::Clock;

use super::foreign::TOPICS;
use super::ledger::{Ledger, Place, Places, Published};
use super::probes::Probes;
use super::wire::{Wire, ack};

/// How long a client waits for a sign of life before it goes to another pod.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// The subscriber whose session lasts.
const SESSION: &str = "session";
/// How long it waits before it tries the next pod.
const RETRY: Duration = Duration::from_millis(20);
/// Seconds that a session lasts.
const SESSION_SECONDS: u32 = 3_600;
/// Publishes that a publisher has open at once.
const WINDOW: usize = 4;
/// Of so many messages of the queue one is not acknowledged: its consumer leaves instead.
const KEPT_OF: u64 = 200;
/// How long a twin stays if nobody takes its place, and how often it asks whether it is still connected.
const TWIN_STAYS: Duration = Duration::from_secs(4);
const TWIN_ASKS: Duration = Duration::from_millis(50);
/// For so long an answer may still be under way from the connection that had to go.
const TWIN_GRACE: Duration = Duration::from_secs(1);
/// Attempts at reading the stream.
const READS_MAX: usize = 10;

/// What all clients share.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) clock: Clock,
    /// Where the pods listen, as a load balancer knows it: each place is a pod's, empty while it is known to be gone.
    pub(super) doors: Mutex<Vec<Option<SocketAddr>>>,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) probes: Probes,
    /// From one publish of a publisher to its next.
    pub(super) pace: Duration,
    /// Publishers begin nothing new when this is cancelled, and end when all is acknowledged.
    pub(super) enough: CancellationToken,
    /// Publishes that are not acknowledged.
    pub(super) open: AtomicUsize,
    pub(super) twins: Mutex<Twins>,
}

/// The connections of one client id.
#[derive(Debug, Default)]
pub(super) struct Twins {
    lives: BTreeMap<u64, Life>,
    /// Connections so far.
    pub(super) connections: u64,
    /// Since when all pods run.
    pub(super) calm: Option<Instant>,
}

/// A connection, from its CONNACK to the last question that was answered.
#[derive(Clone, Copy, Debug)]
struct Life {
    begun: Instant,
    asked: Instant,
}

impl Field {
    /// Where the pod listens at which `attempt` points, or the next one that may be there.
    pub(super) fn door(&self, attempt: usize) -> Option<SocketAddr> {
        let doors = self.doors.lock();
        doors.iter().cycle().skip(attempt % doors.len()).take(doors.len()).find_map(|door| *door)
    }

    /// A connection to the pod at which `attempt` points, or to the next one that may be there.
    pub(super) async fn connect(&self, client_id: &str, attempt: usize, expiry: u32) -> Result<Wire> {
        let door = self.door(attempt);
        let door = door.context("no pod is there")?;
        timeout(PATIENCE, Wire::connect(door, client_id, expiry)).await.context("no answer to CONNECT")?
    }

    /// The next packet; a broker that says nothing is asked whether it is there.
    async fn next(&self, wire: &mut Wire) -> Result<Packet> {
        if let Ok(packet) = timeout(PATIENCE / 2, wire.next()).await {
            return packet;
        }
        wire.send(&Packet::PingReq).await?;
        timeout(PATIENCE / 2, wire.next()).await.context("no sign of life")?
    }
}

/// A publish that is not acknowledged.
#[derive(Debug)]
struct Open {
    id: u16,
    number: u64,
    sent: Instant,
    /// Sent, and not refused.
    dup: bool,
    /// The broker has it; QoS 2 only.
    received: bool,
}

/// Publishes all the time, each message until it is acknowledged.
#[derive(Debug)]
struct Publisher {
    field: Arc<Field>,
    n: usize,
    qos: QoS,
    open: Vec<Open>,
    next: u64,
    due: Instant,
    had_session: bool,
}

/// Publisher `n`, until there is enough.
pub(super) async fn publish(field: Arc<Field>, n: usize, qos: QoS) {
    let due = field.clock.now();
    let mut publisher = Publisher { field, n, qos, open: Vec::new(), next: 0, due, had_session: false };
    for attempt in n.. {
        // What a connection ended with is of no interest: whatever is open is sent again.
        if publisher.converse(attempt).await.is_ok() {
            return;
        }
        sleep(RETRY).await;
    }
}

impl Publisher {
    /// One connection. `Ok` when there is nothing left to do.
    async fn converse(&mut self, attempt: usize) -> Result<()> {
        let expiry = if self.qos == QoS::ExactlyOnce { SESSION_SECONDS } else { 0 };
        let field = Arc::clone(&self.field);
        let mut wire = field.connect(&format!("publisher-{}", self.n), attempt, expiry).await?;
        if self.had_session && !wire.session_present {
            field.ledger.lock().problem(format!("the session of publisher {} is gone", self.n));
        }
        self.had_session = expiry > 0;
        for at in 0..self.open.len() {
            self.send(&mut wire, at).await?;
        }
        let mut alive = field.clock.now();
        loop {
            let now = field.clock.now();
            let enough = field.enough.is_cancelled();
            if enough && self.open.is_empty() {
                return Ok(());
            }
            let room = !enough && self.open.len() < WINDOW;
            if room && now >= self.due {
                if self.open.is_empty() {
                    alive = now;
                }
                self.begin(now);
                self.send(&mut wire, self.open.len() - 1).await?;
                continue;
            }
            let wake = if room { self.due.min(alive + PATIENCE) } else { alive + PATIENCE };
            match timeout_at(wake.max(now), wire.next()).await {
                Ok(packet) => {
                    alive = field.clock.now();
                    self.handle(&mut wire, packet?).await?;
                }
                Err(_) if field.clock.now() < alive + PATIENCE => {}
                Err(_) => {
                    ensure!(self.open.is_empty(), "no answer");
                    alive = field.clock.now();
                }
            }
        }
    }

    fn begin(&mut self, now: Instant) {
        let id = u16::try_from(self.next % 60_000).unwrap_or(0) + 1;
        self.open.push(Open { id, number: self.next, sent: now, dup: false, received: false });
        self.field.open.fetch_add(1, Ordering::Relaxed);
        self.next += 1;
        self.due = now + self.field.pace;
    }

    async fn send(&mut self, wire: &mut Wire, at: usize) -> Result<()> {
        let payload = self.payload(at);
        let open = &mut self.open[at];
        if open.received {
            return wire.send(&Packet::PubRel(ack(PacketId::new(open.id).context("a packet id")?))).await;
        }
        // Several topics, so that a publisher uses several shards.
        let topic = format!("faults/{}/{}", self.n, open.number % TOPICS);
        let dup = std::mem::replace(&mut open.dup, true);
        wire.publish(&topic, self.qos, open.id, dup, &payload).await
    }

    fn payload(&self, at: usize) -> String {
        format!("{}/{}/{}", self.qos.as_u8(), self.n, self.open[at].number)
    }

    async fn handle(&mut self, wire: &mut Wire, packet: Packet) -> Result<()> {
        let (answer, done) = match packet {
            Packet::PubAck(answer) => (answer, true),
            Packet::PubRec(answer) => (answer, false),
            Packet::PubComp(answer) => {
                // Refused means here that the broker has forgotten it, having done all there was to do.
                if let Some(at) = self.find(answer.packet_id) {
                    self.finish(at);
                }
                return Ok(());
            }
            Packet::Disconnect(disconnect) => bail!("disconnected with {:?}", disconnect.reason),
            _ => return Ok(()),
        };
        let Some(at) = self.find(answer.packet_id) else { return Ok(()) };
        if answer.reason.is_error() {
            self.open[at].dup = false;
            let payload = self.payload(at);
            self.field.ledger.lock().refuse(payload, format!("{:?}", answer.reason));
            bail!("a publish was refused with {:?}", answer.reason);
        }
        if done {
            self.finish(at);
            return Ok(());
        }
        self.open[at].received = true;
        self.send(wire, at).await
    }

    fn find(&self, id: PacketId) -> Option<usize> {
        self.open.iter().position(|open| open.id == id.get())
    }

    fn finish(&mut self, at: usize) {
        let payload = self.payload(at);
        let Open { sent, .. } = self.open.remove(at);
        let acknowledged = self.field.clock.now();
        let published = Published { publisher: self.n, sent, acknowledged };
        self.field.ledger.lock().published.insert(payload, published);
        self.field.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Consumer `n` of the queue, for ever.
pub(super) async fn consume(field: Arc<Field>, n: usize) {
    for attempt in n.. {
        let _: Result<()> = consume_once(&field, n, attempt).await;
        sleep(RETRY).await;
    }
}

async fn consume_once(field: &Field, n: usize, attempt: usize) -> Result<()> {
    let mut wire = field.connect(&format!("consumer-{n}"), attempt, 0).await?;
    let subscribed = wire.subscribe("$queue/jobs", QoS::AtLeastOnce, None);
    let mut packets = timeout(PATIENCE * 5, subscribed).await.context("no SUBACK")??;
    let mut received = 0;
    loop {
        for packet in packets.drain(..) {
            let publish = match packet {
                Packet::Publish(publish) => publish,
                Packet::Disconnect(_) => bail!("disconnected"),
                _ => continue,
            };
            let place = place(&publish)?;
            let payload = std::str::from_utf8(&publish.payload)?;
            received += 1;
            let keeps = received % KEPT_OF == 0;
            field.ledger.lock().dequeue(Some(place), payload, keeps);
            ensure!(!keeps, "leave without an acknowledgement");
            wire.send(&Packet::PubAck(ack(publish.header.packet_id.context("a packet id")?))).await?;
        }
        packets.push(field.next(&mut wire).await?);
    }
}

/// The subscriber whose session lasts, for ever.
///
/// `subscribed_tx` hears when it has subscribed: nothing that is published after may be missing.
pub(super) async fn subscribe(field: Arc<Field>, subscribed_tx: oneshot::Sender<()>) {
    let mut subscriber = Subscriber { field, subscribed_tx: Some(subscribed_tx), half: BTreeSet::new() };
    for attempt in 0.. {
        let _: Result<()> = subscriber.converse(attempt).await;
        sleep(RETRY).await;
    }
}

#[derive(Debug)]
struct Subscriber {
    field: Arc<Field>,
    /// `None` when it has subscribed.
    subscribed_tx: Option<oneshot::Sender<()>>,
    /// Packet ids at QoS 2 that the broker has not released.
    half: BTreeSet<PacketId>,
}

impl Subscriber {
    async fn converse(&mut self, attempt: usize) -> Result<()> {
        let field = Arc::clone(&self.field);
        let mut wire = field.connect(SESSION, attempt, SESSION_SECONDS).await?;
        if !wire.session_present {
            if self.subscribed_tx.is_none() {
                field.ledger.lock().problem("the session of the subscriber is gone".to_owned());
            }
            self.half.clear();
        }
        let mut packets = Vec::new();
        if self.subscribed_tx.is_some() || !wire.session_present {
            let subscribed = wire.subscribe("faults/#", QoS::ExactlyOnce, None);
            packets = timeout(PATIENCE * 5, subscribed).await.context("no SUBACK")??;
            // Whoever waited may have given up.
            let _ = self.subscribed_tx.take().map(|subscribed_tx| subscribed_tx.send(()));
        }
        loop {
            for packet in packets.drain(..) {
                self.handle(&mut wire, packet).await?;
            }
            packets.push(field.next(&mut wire).await?);
        }
    }

    async fn handle(&mut self, wire: &mut Wire, packet: Packet) -> Result<()> {
        match packet {
            Packet::Publish(publish) => {
                let id = publish.header.packet_id.context("a packet id")?;
                let exactly_once = publish.header.qos == QoS::ExactlyOnce;
                if !exactly_once || self.half.insert(id) {
                    self.field.ledger.lock().receive(SESSION, std::str::from_utf8(&publish.payload)?);
                }
                let answer = if exactly_once { Packet::PubRec } else { Packet::PubAck };
                wire.send(&answer(ack(id))).await
            }
            Packet::PubRel(release) => {
                self.half.remove(&release.packet_id);
                wire.send(&Packet::PubComp(ack(release.packet_id))).await
            }
            Packet::Disconnect(_) => bail!("disconnected"),
            _ => Ok(()),
        }
    }
}

/// One of those who use the same client id, for ever.
pub(super) async fn be_twin(field: Arc<Field>, n: usize) {
    for attempt in n.. {
        if let Ok(wire) = field.connect("twin", attempt, 0).await {
            let number = field.twins.lock().begin(field.clock.now());
            let _: Result<()> = stay(&field, wire, number).await;
            field.twins.lock().lives.remove(&number);
        }
        sleep(TWIN_ASKS).await;
    }
}

async fn stay(field: &Field, mut wire: Wire, number: u64) -> Result<()> {
    let end = field.clock.now() + TWIN_STAYS;
    while field.clock.now() < end {
        let asked = field.clock.now();
        wire.send(&Packet::PingReq).await?;
        let answer = timeout(PATIENCE, wire.next()).await??;
        ensure!(matches!(answer, Packet::PingResp), "evicted");
        let both = field.twins.lock().answered(number, asked);
        if both {
            field.ledger.lock().problem("two connections of one client id lived at the same time".to_owned());
        }
        sleep(TWIN_ASKS).await;
    }
    Ok(())
}

impl Twins {
    /// A new connection, and its number.
    fn begin(&mut self, now: Instant) -> u64 {
        self.connections += 1;
        self.lives.insert(self.connections, Life { begun: now, asked: now });
        self.connections
    }

    /// Connection `number` has an answer to what it asked at `asked`. Says whether another one lives as well.
    fn answered(&mut self, number: u64, asked: Instant) -> bool {
        let Some(mine) = self.lives.get_mut(&number) else { return false };
        mine.asked = asked;
        let mine = *mine;
        let calm = self.calm.unwrap_or(mine.begun);
        self.lives.iter().filter(|(other, _)| **other != number).any(|(_, other)| {
            let begun = mine.begun.max(other.begun).max(calm);
            mine.asked.min(other.asked) > begun + TWIN_GRACE
        })
    }
}

/// The whole stream from its beginning, until `complete` and nothing more comes.
pub(super) async fn read_stream(field: &Field, complete: impl Fn(&Places) -> bool) -> Result<Places> {
    let mut last = None;
    for attempt in 0..READS_MAX {
        match read_once(field, attempt, &complete).await {
            Ok(places) => return Ok(places),
            Err(error) => last = Some(error),
        }
        sleep(RETRY).await;
    }
    Err(last.context("an error")?.context("read the stream"))
}

async fn read_once(field: &Field, attempt: usize, complete: impl Fn(&Places) -> bool) -> Result<Places> {
    let mut wire = field.connect(&format!("reader-{attempt}"), attempt, 0).await?;
    let subscribed = wire.subscribe("$stream/journal", QoS::AtMostOnce, Some("earliest"));
    let mut packets = timeout(PATIENCE * 5, subscribed).await.context("no SUBACK")??;
    let mut places = Places::default();
    let mut quiet = 0;
    loop {
        for packet in packets.drain(..) {
            let Packet::Publish(publish) = packet else { continue };
            let text = std::str::from_utf8(&publish.payload)?;
            if let Err(problem) = places.note(Some(place(&publish)?), text) {
                field.ledger.lock().problem(format!("stream: {problem}"));
            }
        }
        match timeout(PATIENCE, wire.next()).await {
            Ok(packet) => {
                packets.push(packet?);
                quiet = 0;
            }
            // What never comes is found by the audit.
            Err(_) if complete(&places) || quiet > 10 => return Ok(places),
            Err(_) => quiet += 1,
        }
    }
}

/// Where a message of a queue or a stream is stored.
fn place(publish: &Publish) -> Result<Place> {
    let number = |name: &str| {
        let mut properties = publish.properties.user_properties.iter();
        let (_, value) = properties.find(|(key, _)| &**key == name).with_context(|| name.to_owned())?;
        value.parse().with_context(|| format!("{name} `{value}`"))
    };
    Ok((number("shard")?, number("offset")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_connections_that_both_are_answered_are_found() {
        let start = Clock::system().now();
        let at = |millis| start + Duration::from_millis(millis);
        let life = |begun| Life { begun: at(begun), asked: at(begun) };
        let mut twins = Twins { lives: [(1, life(0)), (2, life(500))].into(), connections: 2, calm: None };
        assert!(!twins.answered(1, at(900)));
        assert!(!twins.answered(2, at(2_000)), "the older one was last answered within the grace");
        assert!(twins.answered(1, at(1_600)));
        twins.calm = Some(at(1_000));
        assert!(!twins.answered(1, at(1_900)), "pods that were stopped have the same grace");
        twins.answered(2, at(2_100));
        assert!(twins.answered(1, at(2_200)));
    }
}
