//! Whole brokers that crash over a store that fails, in every weather there is, and publishers that do what MQTT
//! asks of them: nothing acknowledged is lost to a queue, a stream or an inbox, and at QoS 2 nothing is there twice.

use std::collections::BTreeMap;
use std::time::Duration;

use weir_codec::{Packet, QoS, ReasonCode};
use weir_storage::FaultRates;

use super::client::{AtLeastOnce, Client, ExactlyOnce, V5, again, id, number, persistent, publish, text};
use super::{TestBroker, faulty, queue, stream};

const LIVES: usize = 3;
const MESSAGES: usize = 12;
/// After which a publisher thinks that its connection is dead.
const PATIENCE: Duration = Duration::from_secs(3);

/// A publisher with a session that outlives connections and brokers.
#[derive(Default)]
struct Publisher {
    client: Option<Client>,
    has_session: bool,
    published: usize,
    /// Payloads that the broker has taken responsibility for.
    accepted: Vec<String>,
}

impl Publisher {
    /// A connection, whatever it takes.
    async fn connected(&mut self, broker: &TestBroker) -> &mut Client {
        while self.client.is_none() {
            let (client, connack) = broker.connack(persistent("publisher", V5)).await;
            if connack.code == ReasonCode::Success {
                assert!(connack.session_present || !self.has_session, "the session was lost");
                self.has_session = true;
                self.client = Some(client);
            } else {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        self.client.as_mut().expect("has just been connected")
    }

    /// Sends a packet and returns the answer; `None` if the connection is over first.
    async fn ask(&mut self, broker: &TestBroker, packet: Packet) -> Option<Packet> {
        let client = self.connected(broker).await;
        let answer = async {
            client.try_send(packet).await.ok()?;
            client.next().await
        };
        let answer = tokio::time::timeout(PATIENCE, answer).await.ok().flatten();
        let is_over = matches!(answer, None | Some(Packet::Disconnect(_)));
        if is_over {
            self.client = None;
        }
        answer.filter(|_| !is_over)
    }

    /// Publishes one message, again after each lost connection, until it is acknowledged or refused.
    async fn publish(&mut self, broker: &TestBroker, qos: QoS) {
        self.published += 1;
        let payload = format!("{qos:?}-{}", self.published);
        let n = u16::try_from(self.published).unwrap();
        let mut message = publish(qos, n, "to/all", &payload);
        let reason = loop {
            match self.ask(broker, Packet::Publish(Box::new(message.clone()))).await {
                Some(Packet::PubAck(ack) | Packet::PubRec(ack)) => {
                    assert_eq!(ack.packet_id, id(n));
                    break ack.reason;
                }
                None => message = again(message),
                Some(other) => panic!("not an answer to {payload}: {other:?}"),
            }
        };
        if reason.is_error() {
            return;
        }
        self.accepted.push(payload);
        if qos == ExactlyOnce {
            self.release(broker, n).await;
        }
    }

    /// PUBREL until PUBCOMP.
    async fn release(&mut self, broker: &TestBroker, n: u16) {
        loop {
            let release = Packet::PubRel(weir_codec::Ack {
                packet_id: id(n),
                reason: ReasonCode::Success,
                properties: None,
            });
            match self.ask(broker, release).await {
                Some(Packet::PubComp(ack)) if ack.packet_id == id(n) => break,
                None => {}
                Some(other) => panic!("not PUBCOMP {n}: {other:?}"),
            }
        }
    }

    /// Everything accepted is among `found`; what is there at QoS 2 is there once.
    fn check(&self, place: &str, found: &[String]) {
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        found.iter().for_each(|payload| *times.entry(payload).or_default() += 1);
        let lost: Vec<_> =
            self.accepted.iter().filter(|payload| !times.contains_key(payload.as_str())).collect();
        assert!(lost.is_empty(), "acknowledged and not in the {place}: {lost:?} of {found:?}");
        let twice: Vec<_> =
            times.iter().filter(|(payload, times)| payload.starts_with("Exactly") && **times > 1).collect();
        assert!(twice.is_empty(), "more than once in the {place}: {twice:?}");
    }
}

/// All that comes until nothing comes for a while, by order of arrival.
async fn all(client: &mut Client) -> Vec<weir_codec::Publish> {
    let mut messages = Vec::new();
    while let Ok(packet) = tokio::time::timeout(Duration::from_secs(1), client.next()).await {
        match packet {
            Some(Packet::Publish(message)) if message.header.qos == ExactlyOnce => {
                client.receive_twice_acknowledged(&message).await;
                messages.push(*message);
            }
            Some(Packet::Publish(message)) => {
                client.puback(&message, ReasonCode::Success).await;
                messages.push(*message);
            }
            other => panic!("not a PUBLISH: {other:?}"),
        }
    }
    messages
}

async fn run(rates: FaultRates) {
    let (store, faults) = faulty();
    let definitions = [queue("q", "to/all"), stream("s", "to/all")];
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&definitions).await;
    let mut inbox = broker.connect(persistent("inbox", V5)).await;
    inbox.subscribe("to/all", ExactlyOnce).await;
    inbox.disconnect().await;
    drop(broker);

    let mut publisher = Publisher::default();
    for _ in 0..LIVES {
        let broker = TestBroker::start_on(&store).await;
        faults.set_rates(rates);
        for n in 0..MESSAGES {
            publisher.publish(&broker, [AtLeastOnce, ExactlyOnce][n % 2]).await;
        }
        // With a publish under way that nobody asks for any more.
        let client = publisher.connected(&broker).await;
        let _ = client
            .try_send(Packet::Publish(Box::new(publish(AtLeastOnce, 60_000, "to/all", "cut off"))))
            .await;
        drop(broker);
        publisher.client = None;
        faults.heal();
    }
    assert!(!publisher.accepted.is_empty());

    let broker = TestBroker::start_on(&store).await;
    let texts =
        |messages: &[weir_codec::Publish]| messages.iter().map(|m| text(m).to_owned()).collect::<Vec<_>>();
    let mut inbox = broker.resume(persistent("inbox", V5)).await;
    publisher.check("inbox", &texts(&all(&mut inbox).await));
    let mut consumer = broker.clean("consumer").await;
    consumer.subscribe("$queue/q", AtLeastOnce).await;
    publisher.check("queue", &texts(&all(&mut consumer).await));
    let mut reader = broker.clean("reader").await;
    assert!(!reader.read_from("$stream/s", AtLeastOnce, "earliest").await.is_error());
    let read = all(&mut reader).await;
    publisher.check("stream", &texts(&read));
    let offsets: Vec<u64> = read.iter().map(|message| number(message, "offset")).collect();
    assert!(offsets.iter().copied().eq(0..offsets.len() as u64), "{offsets:?}");
}

/// Longest stall that leaves the tests quick: shorter than what anybody waits for here.
const SHORT: Duration = Duration::from_millis(300);

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_it_is_calm() {
    run(FaultRates::calm()).await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_it_is_rough() {
    run(FaultRates { delay_max: SHORT, ..FaultRates::rough() }).await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_it_is_hostile() {
    run(FaultRates { delay_max: SHORT, ..FaultRates::hostile() }).await;
}
