//! What clients of all kinds have in common: an id, a way to some pod, and no patience without end.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use weir_codec::{
    Ack, Connect, Packet, PacketId, Publish, QoS, ReasonCode, Subscribe, SubscribeFilter, SubscriptionOptions,
};
use weir_env::seed::Seed;

use super::history::{Event, History, Place, Received};
use super::pod::Pod;
use super::wire::Wire;

/// After which a client thinks that its connection is dead.
pub(super) const PATIENCE: Duration = Duration::from_secs(4);

/// The pods that clients reach. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Net(Arc<Mutex<Vec<Arc<Pod>>>>);

/// One client, connected or not.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) id: String,
    pub(super) seed: Seed,
    pub(super) net: Net,
    pub(super) history: History,
    /// A session of this client must be there.
    has_session: bool,
}

impl Net {
    pub(super) fn add(&self, pod: &Arc<Pod>) {
        self.0.lock().push(Arc::clone(pod));
    }

    pub(super) fn remove(&self, pod: &Pod) {
        self.0.lock().retain(|other| other.number != pod.number);
    }

    pub(super) fn pick(&self, seed: &Seed) -> Option<Arc<Pod>> {
        let pods = self.0.lock();
        let n = usize::try_from(seed.below(pods.len() as u64)).unwrap();
        pods.get(n).cloned()
    }
}

impl Client {
    pub(super) fn new(id: &str, seed: &Seed, net: &Net, history: &History) -> Self {
        let (net, history) = (net.clone(), history.clone());
        Self { id: id.to_owned(), seed: seed.fork(id), net, history, has_session: false }
    }

    pub(super) fn chance(&self, n: u64) -> bool {
        self.seed.below(n) == 0
    }

    /// Lets up to `millis` milliseconds pass.
    pub(super) async fn idle(&self, millis: u64) {
        tokio::time::sleep(Duration::from_micros(self.seed.below(millis * 1000))).await;
    }

    /// A connection, whatever it takes; with a persistent session also whether that was there. It is not lost once it
    /// has been there.
    pub(super) async fn connect(&mut self, persistent: bool, window: u16) -> (Wire, bool) {
        loop {
            if let Some((wire, present)) = self.try_connect(persistent, window).await {
                assert!(present || !self.has_session, "the session of {} is lost", self.id);
                self.has_session = persistent;
                self.history.note(Event::Connected(self.id.clone(), wire.pod, present));
                return (wire, present);
            }
            self.idle(400).await;
        }
    }

    async fn try_connect(&self, persistent: bool, window: u16) -> Option<(Wire, bool)> {
        let connect = Connect {
            client_id: self.id.clone().into(),
            clean_start: !persistent,
            session_expiry_interval: persistent.then_some(u32::MAX),
            receive_maximum: NonZeroU16::new(window),
            ..Connect::default()
        };
        self.open(connect).await
    }

    /// A connection to some pod, and whether the session was there; `None` if it is refused or nothing comes.
    pub(super) async fn open(&self, connect: Connect) -> Option<(Wire, bool)> {
        let mut wire = self.net.pick(&self.seed)?.connect();
        wire.send(&Packet::Connect(Box::new(connect))).await?;
        match self.next(&mut wire).await? {
            Packet::ConnAck(answer) if answer.code == ReasonCode::Success => {
                Some((wire, answer.session_present))
            }
            Packet::ConnAck(_) | Packet::Disconnect(_) => None,
            other => panic!("{}: not CONNACK: {other:?}", self.id),
        }
    }

    /// `None` if the connection is over or nothing comes in time.
    pub(super) async fn next(&self, wire: &mut Wire) -> Option<Packet> {
        tokio::time::timeout(PATIENCE, wire.next()).await.ok().flatten()
    }

    /// What is delivered before the SUBACK. `None` if the connection is over, or that does not come in time: before the
    /// broker would send it although not all pods know of the subscription.
    pub(super) async fn subscribe(
        &self,
        wire: &mut Wire,
        filter: &str,
        qos: QoS,
        properties: &[(&'static str, &'static str)],
    ) -> Option<Vec<Packet>> {
        let asking = self.ask_for(wire, filter, qos, properties);
        tokio::time::timeout(PATIENCE, asking).await.ok().flatten()
    }

    async fn ask_for(
        &self,
        wire: &mut Wire,
        filter: &str,
        qos: QoS,
        properties: &[(&'static str, &'static str)],
    ) -> Option<Vec<Packet>> {
        let packet_id = PacketId::new(u16::MAX).unwrap();
        let options = SubscriptionOptions { qos, ..SubscriptionOptions::default() };
        let subscribe = Subscribe {
            packet_id,
            subscription_identifier: None,
            user_properties: properties
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            filters: vec![SubscribeFilter { filter: filter.into(), options }],
        };
        wire.send(&Packet::Subscribe(Box::new(subscribe))).await?;
        let mut early = Vec::new();
        loop {
            match self.next(wire).await? {
                Packet::SubAck(answer) if answer.reasons.iter().any(|reason| reason.is_error()) => {
                    return None;
                }
                Packet::SubAck(_) => break,
                Packet::Disconnect(_) => return None,
                other => early.push(other),
            }
        }
        self.history.note(Event::Subscribed(self.id.clone(), filter.to_owned()));
        Some(early)
    }

    pub(super) fn lost(&self) {
        self.history.note(Event::Lost(self.id.clone()));
    }

    /// Notes what was delivered.
    pub(super) fn received(&self, publish: &Publish) -> String {
        let payload = name_of(&publish.payload);
        let received = Received { payload: payload.clone(), dup: publish.header.dup, at: place(publish) };
        self.history.note(Event::Received(self.id.clone(), received));
        payload
    }

    /// Says how a message of QoS 1 is judged.
    pub(super) async fn settle(&self, wire: &mut Wire, publish: &Publish, reason: ReasonCode) -> Option<()> {
        let Some(packet_id) = publish.header.packet_id else { return Some(()) };
        let payload = name_of(&publish.payload);
        self.history.note(Event::Settled(self.id.clone(), payload, reason));
        wire.send(&Packet::PubAck(ack(packet_id, reason))).await
    }
}

/// What a payload is known by: all of it to the first space.
pub(super) fn name_of(payload: &[u8]) -> String {
    let name = payload.split(|byte| *byte == b' ').next().unwrap_or_default();
    String::from_utf8(name.to_vec()).unwrap()
}

pub(super) const fn ack(packet_id: PacketId, reason: ReasonCode) -> Ack {
    Ack { packet_id, reason, properties: None }
}

/// Where a message of a queue or stream is from.
fn place(publish: &Publish) -> Option<Place> {
    let property = |wanted: &str| {
        let properties = &publish.properties.user_properties;
        properties.iter().find(|(name, _)| &**name == wanted).map(|(_, value)| value.to_string())
    };
    Some((property("shard")?.parse().ok()?, property("offset")?.parse().ok()?))
}
