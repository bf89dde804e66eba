//! `rumqttc`, in this process: one task polls its event loop and hands on what it sees.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rumqttc::v5;
use rumqttc::v5::mqttbytes::v5 as packet5;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Connect, Event, Message, Publish, Subscribe, Version, check_properties};
use crate::endpoint::{Endpoint, Transport};

/// Events that may wait for the test; past it the client stops reading its socket.
const EVENTS_WAITING_MAX: usize = 10_000;
/// Larger than any packet of these tests.
const PACKET_BYTES_MAX: u32 = 1 << 20;
/// Few, so that the broker has to wait for acknowledgements.
const RECEIVE_MAXIMUM: u16 = 10;
const KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(600);

/// A client and the task that drives it; both end when this is dropped.
#[derive(Debug)]
pub(super) struct Task {
    requests: Requests,
    events: mpsc::Receiver<Result<Event>>,
    running: JoinSet<()>,
}

#[derive(Clone, Debug)]
enum Requests {
    V311(rumqttc::AsyncClient),
    V5(v5::AsyncClient),
}

enum Loop {
    V311(Box<rumqttc::EventLoop>),
    V5(Box<v5::EventLoop>),
}

/// What the event loop reports, in either version.
enum Seen {
    Event(Event),
    /// A message with QoS 2 and this packet id came in.
    Received(u16, Message),
    /// The message with QoS 2 and this packet id is complete.
    Released(u16),
    /// A PUBLISH went out with this packet id; 0 at QoS 0.
    Sent(u16),
    /// A PUBLISH with this packet id is done.
    Acked(u16, Option<u8>),
    /// A DISCONNECT went out.
    Disconnecting,
    Other,
}

pub(super) fn subscribe(version: Version, connect: &Connect, subscribe: Subscribe) -> Result<Task> {
    check_properties(version, &subscribe.properties)?;
    let (requests, events) = client(version, connect, 10)?;
    match &requests {
        Requests::V311(client) => {
            let qos = rumqttc::qos(subscribe.qos)?;
            client.try_subscribe_many(
                subscribe.filters.into_iter().map(|filter| rumqttc::SubscribeFilter::new(filter, qos)),
            )?;
        }
        Requests::V5(client) => {
            let qos = qos5(subscribe.qos)?;
            let filters = subscribe.filters.into_iter().map(|filter| packet5::Filter::new(filter, qos));
            if subscribe.properties.is_empty() {
                client.try_subscribe_many(filters)?;
            } else {
                let properties =
                    packet5::SubscribeProperties { id: None, user_properties: subscribe.properties };
                client.try_subscribe_many_with_properties(filters, properties)?;
            }
        }
    }
    Ok(Task::start(requests, events, usize::MAX))
}

pub(super) fn publish(version: Version, connect: &Connect, publish: Publish) -> Result<Task> {
    check_properties(version, &publish.properties)?;
    let count = publish.payloads.len();
    let (requests, events) = client(version, connect, count + 1)?;
    let Publish { topic, payloads, retain, properties, qos } = publish;
    for payload in payloads {
        match &requests {
            Requests::V311(client) => client.try_publish(&topic, rumqttc::qos(qos)?, retain, payload)?,
            Requests::V5(client) if properties.is_empty() => {
                client.try_publish(&topic, qos5(qos)?, retain, payload)?;
            }
            Requests::V5(client) => {
                let user_properties = properties.clone();
                let properties = packet5::PublishProperties { user_properties, ..Default::default() };
                client.try_publish_with_properties(&topic, qos5(qos)?, retain, payload, properties)?;
            }
        }
    }
    Ok(Task::start(requests, events, count))
}

impl Task {
    /// Drives `events` until `publishes` messages are acknowledged, then disconnects.
    fn start(requests: Requests, events: Loop, publishes: usize) -> Self {
        let (events_tx, events_rx) = mpsc::channel(EVENTS_WAITING_MAX);
        let mut running = JoinSet::new();
        running.spawn(run(events, requests.clone(), events_tx, publishes));
        Self { requests, events: events_rx, running }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Event>> {
        self.events.recv().await.transpose()
    }

    pub(super) async fn disconnect(&mut self) -> Result<()> {
        self.requests.disconnect()?;
        // The task may wait for room for an event: make room until it ends.
        while self.events.recv().await.transpose()?.is_some() {}
        while self.running.join_next().await.transpose()?.is_some() {}
        Ok(())
    }

    pub(super) async fn kill(&mut self) {
        self.running.shutdown().await;
    }
}

impl Requests {
    fn disconnect(&self) -> Result<()> {
        match self {
            Self::V311(client) => client.try_disconnect()?,
            Self::V5(client) => client.try_disconnect()?,
        }
        Ok(())
    }
}

fn client(version: Version, connect: &Connect, requests_max: usize) -> Result<(Requests, Loop)> {
    let (id, broker, port) = (&connect.client_id, &connect.broker, connect.broker.address.port());
    let (host, transport) = transport(broker)?;
    Ok(match version {
        Version::V31 => bail!("rumqttc does not speak MQTT 3.1"),
        Version::V311 => {
            let mut options = rumqttc::MqttOptions::new(id, host, port);
            options.set_keep_alive(KEEP_ALIVE).set_clean_session(!connect.persistent);
            options.set_max_packet_size(PACKET_BYTES_MAX as usize, PACKET_BYTES_MAX as usize);
            options.set_transport(transport);
            if let Some((user, password)) = &broker.login {
                options.set_credentials(user, password);
            }
            if let Some(will) = &connect.will {
                let (topic, payload) = (&will.topic, will.payload.as_str());
                options.set_last_will(rumqttc::LastWill::new(topic, payload, rumqttc::qos(will.qos)?, false));
            }
            let (client, events) = rumqttc::AsyncClient::new(options, requests_max);
            (Requests::V311(client), Loop::V311(Box::new(events)))
        }
        Version::V5 => {
            let mut options = v5::MqttOptions::new(id, host, port);
            options.set_keep_alive(KEEP_ALIVE).set_clean_start(!connect.persistent);
            options.set_session_expiry_interval(Some(if connect.persistent { 3600 } else { 0 }));
            options.set_max_packet_size(Some(PACKET_BYTES_MAX)).set_receive_maximum(Some(RECEIVE_MAXIMUM));
            options.set_transport(transport);
            if let Some((user, password)) = &broker.login {
                options.set_credentials(user, password);
            }
            if let Some(will) = &connect.will {
                let (topic, payload) = (&will.topic, will.payload.as_str());
                options.set_last_will(packet5::LastWill::new(topic, payload, qos5(will.qos)?, false, None));
            }
            let (client, events) = v5::AsyncClient::new(options, requests_max);
            (Requests::V5(client), Loop::V5(Box::new(events)))
        }
    })
}

/// What the client calls the host, and how it gets there.
fn transport(broker: &Endpoint) -> Result<(String, rumqttc::Transport)> {
    let Endpoint { address, transport, .. } = broker;
    let host = address.ip().to_string();
    let url = format!("{}://{address}{}", transport.scheme(), Endpoint::PATH);
    Ok(match transport {
        Transport::Tcp => (host, rumqttc::Transport::Tcp),
        Transport::Tls => (host, rumqttc::Transport::Tls(tls(broker)?)),
        Transport::Ws => (url, rumqttc::Transport::Ws),
        Transport::Wss => (url, rumqttc::Transport::Wss(tls(broker)?)),
    })
}

fn tls(broker: &Endpoint) -> Result<rumqttc::TlsConfiguration> {
    let certificates = broker.certificates.as_deref().context("certificates to check the broker's by")?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&certificates.authority)?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_root_certificates(roots);
    let config = if broker.client_certificate {
        let chain = vec![CertificateDer::from_pem_file(&certificates.client.certificate)?];
        config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&certificates.client.key)?)?
    } else {
        config.with_no_client_auth()
    };
    Ok(rumqttc::TlsConfiguration::Rustls(Arc::new(config)))
}

async fn run(mut events: Loop, requests: Requests, events_tx: mpsc::Sender<Result<Event>>, publishes: usize) {
    // Packet ids in flight, each with the index of its message.
    let mut in_flight = Vec::new();
    // Reported when they are complete, as the other clients do: until then their packet ids must not be
    // forgotten.
    let mut unreleased = BTreeMap::new();
    let (mut sent, mut acked, mut disconnecting) = (0, 0, false);
    loop {
        let event = match events.poll().await {
            Ok(Seen::Event(event)) => event,
            Ok(Seen::Received(id, message)) => {
                unreleased.insert(id, message);
                continue;
            }
            Ok(Seen::Released(id)) => match unreleased.remove(&id) {
                Some(message) => Event::Message(message),
                None => continue,
            },
            Ok(Seen::Sent(0)) => {
                sent += 1;
                Event::Acked { index: sent - 1, reason: None }
            }
            Ok(Seen::Sent(id)) => {
                in_flight.push((id, sent));
                sent += 1;
                continue;
            }
            Ok(Seen::Acked(id, reason)) => {
                let Some(position) = in_flight.iter().position(|(sent, _)| *sent == id) else { continue };
                Event::Acked { index: in_flight.swap_remove(position).1, reason }
            }
            Ok(Seen::Disconnecting) => {
                disconnecting = true;
                continue;
            }
            Ok(Seen::Other) => continue,
            // The broker closes the connection after a DISCONNECT; until then it may still be reading.
            Err(_) if disconnecting => return,
            Err(error) => {
                // What was read in the same breath as the error, and perhaps acknowledged, still counts.
                for event in events.leftovers() {
                    if events_tx.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
                // If nobody is left to hear of it, nobody is wrong about it either.
                let _ = events_tx.send(Err(error)).await;
                return;
            }
        };
        acked += usize::from(matches!(event, Event::Acked { .. }));
        if events_tx.send(Ok(event)).await.is_err() || (acked == publishes && requests.disconnect().is_err())
        {
            return;
        }
    }
}

impl Loop {
    async fn poll(&mut self) -> Result<Seen> {
        match self {
            Self::V311(events) => seen_311(events.poll().await?),
            Self::V5(events) => seen_5(events.poll().await?),
        }
    }

    fn leftovers(&mut self) -> Vec<Event> {
        let seen: Vec<Result<Seen>> = match self {
            Self::V311(events) => events.state.events.drain(..).map(seen_311).collect(),
            Self::V5(events) => events.state.events.drain(..).map(seen_5).collect(),
        };
        let messages = seen.into_iter().filter_map(|seen| match seen {
            Ok(Seen::Event(event @ Event::Message(_))) => Some(event),
            _ => None,
        });
        messages.collect()
    }
}

fn seen_message(id: u16, message: Message) -> Seen {
    if message.qos == 2 { Seen::Received(id, message) } else { Seen::Event(Event::Message(message)) }
}

fn seen_311(event: rumqttc::Event) -> Result<Seen> {
    use rumqttc::{Outgoing, Packet, SubscribeReasonCode};
    Ok(match event {
        rumqttc::Event::Outgoing(Outgoing::Publish(id)) => Seen::Sent(id),
        rumqttc::Event::Outgoing(Outgoing::Disconnect) => Seen::Disconnecting,
        rumqttc::Event::Incoming(Packet::SubAck(suback)) => {
            let code = |code: &SubscribeReasonCode| match code {
                SubscribeReasonCode::Success(qos) => *qos as u8,
                SubscribeReasonCode::Failure => 0x80,
            };
            Seen::Event(Event::Granted { codes: suback.return_codes.iter().map(code).collect() })
        }
        rumqttc::Event::Incoming(Packet::Publish(publish)) => seen_message(
            publish.pkid,
            Message {
                topic: publish.topic,
                payload: String::from_utf8(publish.payload.to_vec())?,
                qos: publish.qos as u8,
                retain: publish.retain,
                properties: Vec::new(),
            },
        ),
        rumqttc::Event::Incoming(Packet::PubRel(release)) => Seen::Released(release.pkid),
        rumqttc::Event::Incoming(Packet::PubAck(ack)) => Seen::Acked(ack.pkid, None),
        rumqttc::Event::Incoming(Packet::PubComp(ack)) => Seen::Acked(ack.pkid, None),
        _ => Seen::Other,
    })
}

fn seen_5(event: v5::Event) -> Result<Seen> {
    use packet5::Packet;
    use rumqttc::Outgoing;
    Ok(match event {
        v5::Event::Outgoing(Outgoing::Publish(id)) => Seen::Sent(id),
        v5::Event::Outgoing(Outgoing::Disconnect) => Seen::Disconnecting,
        v5::Event::Incoming(Packet::SubAck(suback)) => {
            Seen::Event(Event::Granted { codes: suback.return_codes.iter().map(granted_5).collect() })
        }
        v5::Event::Incoming(Packet::Publish(publish)) => seen_message(
            publish.pkid,
            Message {
                topic: String::from_utf8(publish.topic.to_vec())?,
                payload: String::from_utf8(publish.payload.to_vec())?,
                qos: publish.qos as u8,
                retain: publish.retain,
                properties: publish.properties.map(|sent| sent.user_properties).unwrap_or_default(),
            },
        ),
        v5::Event::Incoming(Packet::PubRel(release)) => Seen::Released(release.pkid),
        v5::Event::Incoming(Packet::PubAck(ack)) => Seen::Acked(ack.pkid, Some(puback_5(ack.reason))),
        v5::Event::Incoming(Packet::PubRec(ack)) => match pubrec_5(ack.reason) {
            0..0x80 => Seen::Other,
            refused => Seen::Acked(ack.pkid, Some(refused)),
        },
        v5::Event::Incoming(Packet::PubComp(ack)) => Seen::Acked(ack.pkid, Some(0)),
        v5::Event::Incoming(Packet::Disconnect(disconnect)) => {
            bail!("the broker sent DISCONNECT: {:?}", disconnect.reason_code)
        }
        _ => Seen::Other,
    })
}

fn granted_5(code: &packet5::SubscribeReasonCode) -> u8 {
    use packet5::SubscribeReasonCode as Code;
    match code {
        Code::Success(qos) => *qos as u8,
        Code::Failure | Code::Unspecified => 0x80,
        Code::ImplementationSpecific => 0x83,
        Code::NotAuthorized => 0x87,
        Code::TopicFilterInvalid => 0x8f,
        Code::PkidInUse => 0x91,
        Code::QuotaExceeded => 0x97,
        Code::SharedSubscriptionsNotSupported => 0x9e,
        Code::SubscriptionIdNotSupported => 0xa1,
        Code::WildcardSubscriptionsNotSupported => 0xa2,
    }
}

pub(crate) fn puback_5(reason: packet5::PubAckReason) -> u8 {
    use packet5::PubAckReason as Reason;
    match reason {
        Reason::Success => 0,
        Reason::NoMatchingSubscribers => 0x10,
        Reason::UnspecifiedError => 0x80,
        Reason::ImplementationSpecificError => 0x83,
        Reason::NotAuthorized => 0x87,
        Reason::TopicNameInvalid => 0x90,
        Reason::PacketIdentifierInUse => 0x91,
        Reason::QuotaExceeded => 0x97,
        Reason::PayloadFormatInvalid => 0x99,
    }
}

pub(crate) fn pubrec_5(reason: packet5::PubRecReason) -> u8 {
    use packet5::PubRecReason as Reason;
    match reason {
        Reason::Success => 0,
        Reason::NoMatchingSubscribers => 0x10,
        Reason::UnspecifiedError => 0x80,
        Reason::ImplementationSpecificError => 0x83,
        Reason::NotAuthorized => 0x87,
        Reason::TopicNameInvalid => 0x90,
        Reason::PacketIdentifierInUse => 0x91,
        Reason::QuotaExceeded => 0x97,
        Reason::PayloadFormatInvalid => 0x99,
    }
}

fn qos5(qos: u8) -> Result<v5::mqttbytes::QoS> {
    v5::mqttbytes::qos(qos).context("a QoS of 0, 1 or 2")
}
