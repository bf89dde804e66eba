//! The clients with rumqttc, in this process.
//!
//! It forgets what it has not seen acknowledged when the broker has no session for it, so that a publisher of a clean
//! session publishes that again; and it sends again without DUP. When a connection breaks it forgets the packet ids of
//! half-received QoS 2 messages too, and then takes their release for an error, for ever: its session has QoS 1.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rumqttc::v5;
use rumqttc::v5::mqttbytes::v5 as packet5;
use tokio::time::{sleep, sleep_until};
use weir_env::clock::Timestamp;

use super::super::ledger::Place;
use super::{Event, Role, TOPICS, Told};
use crate::clients::rumqttc::{puback_5, pubrec_5};

const HOST: &str = "127.0.0.1";
/// A pod that is silent for so long, once asked, is left.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// The same in MQTT 5, where the library takes nothing shorter.
const KEEP_ALIVE_5: Duration = Duration::from_secs(5);
const CONNECT_SECONDS: u64 = 2;
/// How long it waits before it connects again.
const RETRY: Duration = Duration::from_millis(20);
const SESSION_SECONDS: u32 = 3_600;
const RECEIVE_MAXIMUM: u16 = 100;
/// Requests that may wait for the library: acknowledgements of all that may be under way, and more.
const REQUESTS_MAX: usize = 1_000;
/// Of so many messages of the queue one is not acknowledged: its consumer leaves instead.
const KEPT_OF: u64 = 200;
/// A reader that comes back begins so long before the last message that it had: shards do not go in step.
const AGAIN_MICROS: u64 = 30_000_000;

/// All clients of one version.
pub(super) struct Clients {
    pub(super) publishers: [Publisher; 2],
    pub(super) others: [Pin<Box<dyn Future<Output = ()> + Send>>; 3],
}

/// The clients of `told`, whose publishers are the `first` and the next.
pub(super) fn clients(
    told: &Arc<Told>,
    is_v5: bool,
    ports: &BTreeMap<&str, u16>,
    first: usize,
    topic: u64,
) -> Result<Clients> {
    let client = |role: &str, is_persistent| {
        let port = *ports.get(role).with_context(|| format!("a door for {role}"))?;
        Ok::<_, anyhow::Error>(Client::new(&format!("{}-{role}", told.name), port, is_v5, is_persistent))
    };
    let publisher = |client, n, qos| Publisher { client, n, qos, next: 0, open: None, is_connected: false };
    Ok(Clients {
        publishers: [
            publisher(client("publisher1", false)?, first, 1),
            publisher(client("publisher2", true)?, first + 1, 2),
        ],
        others: [
            Box::pin(consume(Arc::clone(told), client("queue", false)?)),
            Box::pin(keep_a_session(Arc::clone(told), client("session", true)?, topic)),
            Box::pin(read(Arc::clone(told), client("stream", false)?)),
        ],
    })
}

/// The library in either version.
enum Client {
    V311(rumqttc::AsyncClient, Box<rumqttc::EventLoop>),
    V5(v5::AsyncClient, Box<v5::EventLoop>),
}

/// What asks the library for something while its event loop runs.
#[derive(Clone)]
enum Requests {
    V311(rumqttc::AsyncClient),
    V5(v5::AsyncClient),
}

/// What the event loop tells, in either version.
enum Seen {
    Connected { session_present: bool },
    Granted { is_refused: bool },
    Message(Box<Message>),
    Acked { reason: u8 },
    Other,
}

struct Message {
    payload: String,
    place: Option<Place>,
    original: Original,
}

enum Original {
    V311(rumqttc::Publish),
    V5(packet5::Publish),
}

impl Client {
    fn new(id: &str, port: u16, is_v5: bool, is_persistent: bool) -> Self {
        if is_v5 {
            let mut options = v5::MqttOptions::new(id, HOST, port);
            options.set_keep_alive(KEEP_ALIVE_5).set_clean_start(!is_persistent).set_manual_acks(true);
            options.set_session_expiry_interval(Some(if is_persistent { SESSION_SECONDS } else { 0 }));
            options.set_receive_maximum(Some(RECEIVE_MAXIMUM)).set_connection_timeout(CONNECT_SECONDS);
            let (client, events) = v5::AsyncClient::new(options, REQUESTS_MAX);
            return Self::V5(client, Box::new(events));
        }
        let mut options = rumqttc::MqttOptions::new(id, HOST, port);
        options.set_keep_alive(KEEP_ALIVE).set_clean_session(!is_persistent).set_manual_acks(true);
        let (client, mut events) = rumqttc::AsyncClient::new(options, REQUESTS_MAX);
        let mut network = events.network_options();
        network.set_connection_timeout(CONNECT_SECONDS);
        events.set_network_options(network);
        Self::V311(client, Box::new(events))
    }

    fn requests(&self) -> Requests {
        match self {
            Self::V311(client, _) => Requests::V311(client.clone()),
            Self::V5(client, _) => Requests::V5(client.clone()),
        }
    }

    async fn poll(&mut self) -> Result<Seen> {
        match self {
            Self::V311(_, events) => seen_311(events.poll().await?),
            Self::V5(_, events) => seen_5(events.poll().await?),
        }
    }
}

impl Requests {
    fn subscribe(&self, filter: &str, qos: u8, offset: Option<String>) -> Result<()> {
        match self {
            Self::V311(client) => client.try_subscribe(filter, rumqttc::qos(qos)?)?,
            Self::V5(client) => {
                let qos = v5::mqttbytes::qos(qos).context("a QoS")?;
                match offset {
                    None => client.try_subscribe(filter, qos)?,
                    Some(offset) => {
                        let user_properties = vec![("stream-offset".to_owned(), offset)];
                        let properties = packet5::SubscribeProperties { id: None, user_properties };
                        client.try_subscribe_with_properties(filter, qos, properties)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn publish(&self, topic: &str, qos: u8, payload: String) -> Result<()> {
        match self {
            Self::V311(client) => client.try_publish(topic, rumqttc::qos(qos)?, false, payload)?,
            Self::V5(client) => {
                let qos = v5::mqttbytes::qos(qos).context("a QoS")?;
                client.try_publish(topic, qos, false, payload)?;
            }
        }
        Ok(())
    }

    fn ack(&self, message: &Message) -> Result<()> {
        match (self, &message.original) {
            (Self::V311(client), Original::V311(publish)) => client.try_ack(publish)?,
            (Self::V5(client), Original::V5(publish)) => client.try_ack(publish)?,
            (Self::V311(_), Original::V5(_)) | (Self::V5(_), Original::V311(_)) => {}
        }
        Ok(())
    }

    fn disconnect(&self) -> Result<()> {
        match self {
            Self::V311(client) => client.try_disconnect()?,
            Self::V5(client) => client.try_disconnect()?,
        }
        Ok(())
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("n", &self.n).field("qos", &self.qos).finish_non_exhaustive()
    }
}

/// Publishes one message after the other, each until it is acknowledged.
pub(super) struct Publisher {
    client: Client,
    n: usize,
    qos: u8,
    next: u64,
    open: Option<u64>,
    is_connected: bool,
}

impl Publisher {
    /// Until there is enough and all is acknowledged.
    pub(super) async fn run(mut self, told: Arc<Told>) {
        if let Err(error) = self.publish(&told).await {
            told.problem(format!("publisher {}: {error:#}", self.n));
        }
    }

    async fn publish(&mut self, told: &Told) -> Result<()> {
        let requests = self.client.requests();
        let mut due = told.field.clock.now();
        loop {
            let seen = {
                // The event loop is not cancel safe.
                let mut seen = pin!(self.client.poll());
                loop {
                    if self.open.is_none() && told.field.enough.is_cancelled() {
                        return Ok(());
                    }
                    tokio::select! {
                        biased;
                        seen = &mut seen => break seen,
                        () = sleep_until(due), if self.is_connected && self.open.is_none() => {
                            due = told.field.clock.now() + told.field.pace;
                            let payload = format!("{}/{}/{}", self.qos, self.n, self.next);
                            told.tell(Event::Sent { payload: payload.clone() });
                            requests.publish(&topic(self.n, self.next), self.qos, payload)?;
                            self.open = Some(self.next);
                            self.next += 1;
                        }
                        () = told.field.enough.cancelled(), if self.open.is_none() => {}
                    }
                }
            };
            match seen {
                Ok(Seen::Connected { session_present }) => {
                    self.is_connected = true;
                    if let Some(number) = self.open.filter(|_| !session_present) {
                        ensure!(self.qos == 1, "the session is gone");
                        let payload = format!("{}/{}/{number}", self.qos, self.n);
                        requests.publish(&topic(self.n, number), self.qos, payload)?;
                    }
                }
                Ok(Seen::Acked { reason }) => {
                    let Some(number) = self.open else { continue };
                    let payload = format!("{}/{}/{number}", self.qos, self.n);
                    if reason >= 0x80 {
                        told.tell(Event::Refused { payload: payload.clone(), reason });
                        requests.publish(&topic(self.n, number), self.qos, payload)?;
                    } else {
                        self.open = None;
                        told.tell(Event::Acked { payload });
                    }
                }
                Ok(_) => {}
                Err(_) => {
                    self.is_connected = false;
                    sleep(RETRY).await;
                }
            }
        }
    }
}

fn topic(publisher: usize, number: u64) -> String {
    format!("faults/{publisher}/{}", number % TOPICS)
}

async fn consume(told: Arc<Told>, mut client: Client) {
    let requests = client.requests();
    let mut received = 0_u64;
    converse(&told, &mut client, |seen| {
        match seen {
            Seen::Connected { .. } => requests.subscribe("$queue/jobs", 1, None)?,
            Seen::Granted { is_refused: false } => told.tell(Event::Subscribed { role: Role::Queue }),
            Seen::Granted { is_refused: true } => requests.disconnect()?,
            Seen::Message(message) => {
                received += 1;
                let kept = received.is_multiple_of(KEPT_OF);
                let (payload, place) = (message.payload.clone(), message.place);
                told.tell(Event::Queue { payload, place, kept });
                if kept { requests.disconnect()? } else { requests.ack(&message)? }
            }
            Seen::Acked { .. } | Seen::Other => {}
        }
        Ok(())
    })
    .await;
}

async fn keep_a_session(told: Arc<Told>, mut client: Client, topic: u64) {
    let requests = client.requests();
    let mut had_session = false;
    converse(&told, &mut client, |seen| {
        match seen {
            Seen::Connected { session_present: true } | Seen::Acked { .. } | Seen::Other => {}
            Seen::Connected { session_present: false } => {
                ensure!(!had_session, "the session is gone");
                requests.subscribe(&format!("faults/+/{topic}"), 1, None)?;
            }
            Seen::Granted { is_refused } => {
                ensure!(!is_refused, "the subscription was refused");
                had_session = true;
                told.tell(Event::Subscribed { role: Role::Session });
            }
            Seen::Message(message) => {
                told.tell(Event::Session { payload: message.payload.clone(), qos: 1 });
                requests.ack(&message)?;
            }
        }
        Ok(())
    })
    .await;
}

async fn read(told: Arc<Told>, mut client: Client) {
    let requests = client.requests();
    let is_v5 = matches!(requests, Requests::V5(_));
    let mut last = None;
    converse(&told, &mut client, |seen| {
        match seen {
            Seen::Connected { .. } => {
                let begin = last.map_or_else(
                    || "earliest".to_owned(),
                    |last: Timestamp| (last.as_micros() - AGAIN_MICROS).to_string(),
                );
                if is_v5 {
                    requests.subscribe("$stream/journal", 1, Some(begin))?;
                } else {
                    requests.subscribe(&format!("$s/{begin}/faults/#"), 1, None)?;
                }
            }
            Seen::Granted { is_refused: false } => told.tell(Event::Subscribed { role: Role::Stream }),
            Seen::Granted { is_refused: true } => requests.disconnect()?,
            Seen::Message(message) => {
                last = Some(told.field.clock.wall());
                told.tell(Event::Stream { payload: message.payload.clone(), place: message.place });
                requests.ack(&message)?;
            }
            Seen::Acked { .. } | Seen::Other => {}
        }
        Ok(())
    })
    .await;
}

/// Has `client` connected for ever, and `handle` handle what it sees.
async fn converse(told: &Told, client: &mut Client, mut handle: impl FnMut(Seen) -> Result<()>) {
    loop {
        match client.poll().await {
            Ok(seen) => {
                if let Err(error) = handle(seen) {
                    told.problem(format!("{error:#}"));
                }
            }
            // What a connection ended with is of no interest.
            Err(_) => sleep(RETRY).await,
        }
    }
}

fn seen_311(event: rumqttc::Event) -> Result<Seen> {
    use rumqttc::{Incoming, SubscribeReasonCode};
    let rumqttc::Event::Incoming(incoming) = event else { return Ok(Seen::Other) };
    Ok(match incoming {
        Incoming::ConnAck(ack) => Seen::Connected { session_present: ack.session_present },
        Incoming::SubAck(ack) => {
            Seen::Granted { is_refused: ack.return_codes.contains(&SubscribeReasonCode::Failure) }
        }
        Incoming::PubAck(_) | Incoming::PubComp(_) => Seen::Acked { reason: 0 },
        Incoming::Publish(publish) => Seen::Message(Box::new(Message {
            payload: String::from_utf8(publish.payload.to_vec())?,
            place: None,
            original: Original::V311(publish),
        })),
        _ => Seen::Other,
    })
}

fn seen_5(event: v5::Event) -> Result<Seen> {
    use packet5::{Packet, SubscribeReasonCode};
    let v5::Event::Incoming(incoming) = event else { return Ok(Seen::Other) };
    Ok(match incoming {
        Packet::ConnAck(ack) => Seen::Connected { session_present: ack.session_present },
        Packet::SubAck(ack) => {
            let is_granted = |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
            Seen::Granted { is_refused: !ack.return_codes.iter().all(is_granted) }
        }
        Packet::PubAck(ack) => Seen::Acked { reason: puback_5(ack.reason) },
        Packet::PubRec(ack) => match pubrec_5(ack.reason) {
            0..0x80 => Seen::Other,
            reason => Seen::Acked { reason },
        },
        // Refused means here that the broker has forgotten it, having done all there was to do.
        Packet::PubComp(_) => Seen::Acked { reason: 0 },
        Packet::Publish(publish) => Seen::Message(Box::new(Message {
            payload: String::from_utf8(publish.payload.to_vec())?,
            place: place(&publish)?,
            original: Original::V5(publish),
        })),
        _ => Seen::Other,
    })
}

/// Where a message of a queue or a stream is stored.
fn place(publish: &packet5::Publish) -> Result<Option<Place>> {
    let pairs = publish.properties.as_ref().map_or(&[][..], |properties| &properties.user_properties);
    let number = |name| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.parse()).transpose();
    Ok(number("shard")?.zip(number("offset")?))
}
