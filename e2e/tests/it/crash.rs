//! `kill -9` at random moments under load: what was acknowledged is there afterwards, in order and once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use weir_e2e::clients::{Client, Connect, Kind, Message, Publish, Subscribe, Subscriber, Version};
use weir_e2e::weir::{Setup, Weir};
use weir_env::seed::Seed;

use crate::seed;

const KILLS: usize = 20;
/// Messages that each client would publish in a round if nobody stopped it.
const MESSAGES: usize = 400;

/// Both take the same publishes. Redelivery has no limit: each crash counts as an attempt.
const MANIFEST: &str = "
apiVersion: weir.dev/v1alpha1
kind: MessageQueue
metadata: { name: jobs }
spec:
  topicFilter: crash/#
  shards: 2
  maxDeliveries: 0
---
apiVersion: weir.dev/v1alpha1
kind: Stream
metadata: { name: journal }
spec:
  topicFilter: crash/#
  shards: 4
";

const READER: Client = Client { kind: Kind::Rumqttc, version: Version::V5 };

/// Publishers of a round, in turn the one whose progress says when to kill.
const KINDS: [Kind; 4] = [Kind::Rumqttc, Kind::Mosquitto, Kind::NpmMqtt, Kind::Paho];

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() -> Result<()> {
    let seed = seed("crash")?;
    let setup = Setup::embedded()?.with_manifest("crash.yaml", MANIFEST)?;
    let mut ledger = Ledger::default();
    for round in 0..KILLS {
        let mut weir = setup.start().await?;
        let result = ledger.round(&mut weir, round, &seed).await;
        result.with_context(|| format!("round {round} against {weir}"))?;
    }
    let weir = setup.start().await?;
    let result = ledger.check_all(weir.mqtt()).await;
    result.with_context(|| format!("after {KILLS} kills, against {weir}"))?;
    println!("{} messages acknowledged, {} stored", ledger.acknowledged.len(), ledger.journal.messages.len());
    weir.terminate().await
}

/// What the clients know: it must agree with what the broker says after each crash.
#[derive(Default)]
struct Ledger {
    /// Payloads that the broker has acknowledged.
    acknowledged: BTreeSet<String>,
    /// Payloads that a queue consumer has received and acknowledged.
    consumed: BTreeSet<String>,
    jobs: Places,
    journal: Places,
}

/// Which message stands at which shard and offset. Once read, that never changes; and as every payload is
/// published once, it stands in one place.
#[derive(Default)]
struct Places {
    messages: BTreeMap<(u64, u64), String>,
    places: BTreeMap<String, (u64, u64)>,
}

/// What a client of a round has seen when its broker was killed.
enum Seen {
    Acknowledged(Vec<String>),
    Consumed(Vec<Message>),
}

impl Ledger {
    /// Checks what the last crash left, then loads the broker until the moment to kill it has come.
    async fn round(&mut self, weir: &mut Weir, round: usize, seed: &Seed) -> Result<()> {
        self.check_journal(weir.mqtt()).await?;
        // The moment: a number of acknowledgements of one client, and a little later.
        let moment = usize::try_from(seed.below(MESSAGES as u64 / 2))?;
        let little = Duration::from_micros(seed.below(20_000));
        let (moment_tx, mut moment_rx) = mpsc::channel(1);
        let (killed_tx, killed_rx) = watch::channel(false);

        let mut clients = JoinSet::new();
        let connect = Connect::clean(weir.mqtt(), "worker");
        clients.spawn(consume(READER.subscribe(connect, Subscribe::to("$queue/jobs", 1)).await?));
        let version = if round.is_multiple_of(2) { Version::V5 } else { Version::V311 };
        for (n, kind) in KINDS.into_iter().enumerate() {
            let payloads = (0..MESSAGES).map(|message| format!("{round} {kind:?} {message}"));
            let publish = Publish::to(&format!("crash/{kind:?}"), 1, payloads);
            let trigger = (round % KINDS.len() == n).then(|| (moment, moment_tx.clone()));
            let connect = Connect::clean(weir.mqtt(), format!("{kind:?}"));
            clients.spawn(load(Client { kind, version }, connect, publish, trigger, killed_rx.clone()));
        }
        drop(moment_tx);
        if moment_rx.recv().await.is_some() {
            tokio::time::sleep(little).await;
            weir.kill9().await?;
        }
        killed_tx.send_replace(true);
        while let Some(seen) = clients.join_next().await.transpose()?.transpose()? {
            match seen {
                Seen::Acknowledged(payloads) => self.acknowledged.extend(payloads),
                Seen::Consumed(messages) => {
                    for message in messages {
                        self.jobs.note(&message)?;
                        self.consumed.insert(message.payload);
                    }
                }
            }
        }
        Ok(())
    }

    /// The whole stream: dense in every shard, the same as when it was read before, and nothing lost.
    async fn check_journal(&mut self, broker: SocketAddr) -> Result<()> {
        let earliest = Subscribe::to("$stream/journal", 1).property("stream-offset", "earliest");
        let mut reader = READER.subscribe(Connect::clean(broker, "auditor"), earliest).await?;
        let mut missing = self.acknowledged.clone();
        let mut next = BTreeMap::new();
        while !missing.is_empty() {
            let message = reader.next().await.with_context(|| lost("stream", &missing))?;
            let (shard, offset) = self.journal.note(&message)?;
            let expected = next.entry(shard).or_insert(0);
            ensure!(offset == *expected, "shard {shard}: offset {offset} after {expected} messages");
            *expected += 1;
            missing.remove(&message.payload);
        }
        reader.disconnect().await
    }

    /// Stream and queue together hold, or have delivered, all that was acknowledged.
    async fn check_all(&mut self, broker: SocketAddr) -> Result<()> {
        ensure!(self.acknowledged.len() >= KILLS, "only {} messages acknowledged", self.acknowledged.len());
        self.check_journal(broker).await?;
        let connect = Connect::clean(broker, "worker");
        let mut worker = READER.subscribe(connect, Subscribe::to("$queue/jobs", 1)).await?;
        let mut missing: BTreeSet<String> = self.acknowledged.difference(&self.consumed).cloned().collect();
        while !missing.is_empty() {
            let message = worker.next().await.with_context(|| lost("queue", &missing))?;
            self.jobs.note(&message)?;
            missing.remove(&message.payload);
        }
        worker.disconnect().await
    }
}

impl Places {
    fn note(&mut self, message: &Message) -> Result<(u64, u64)> {
        let place = (message.number("shard")?, message.number("offset")?);
        let before = self.messages.entry(place).or_insert_with(|| message.payload.clone());
        ensure!(*before == message.payload, "at {place:?} first `{before}`, then {message:?}");
        let before = self.places.entry(message.payload.clone()).or_insert(place);
        ensure!(*before == place, "first at {before:?}, then {message:?}");
        Ok(place)
    }
}

fn lost(what: &str, missing: &BTreeSet<String>) -> String {
    let some: Vec<&String> = missing.iter().take(10).collect();
    format!("{} acknowledged messages are not in the {what}, such as {some:?}", missing.len())
}

/// Consumes until the broker is gone.
async fn consume(mut consumer: Subscriber) -> Result<Seen> {
    let mut messages = Vec::new();
    while let Ok(message) = consumer.next().await {
        messages.push(message);
    }
    Ok(Seen::Consumed(messages))
}

/// Publishes until the broker is killed, and says when the moment for that has come.
async fn load(
    client: Client,
    connect: Connect,
    publish: Publish,
    mut trigger: Option<(usize, mpsc::Sender<()>)>,
    mut killed_rx: watch::Receiver<bool>,
) -> Result<Seen> {
    let payloads = publish.payloads.clone();
    let mut publication = client.start_publishing(connect, publish).await?;
    let mut acknowledged = Vec::new();
    loop {
        if let Some((_, moment_tx)) = trigger.take_if(|(moment, _)| acknowledged.len() > *moment) {
            moment_tx.send(()).await?;
        }
        tokio::select! {
            // An error is the connection to the killed broker.
            next = publication.acknowledged() => match next {
                Ok(Some(acknowledgement)) => acknowledged.push(acknowledgement),
                Ok(None) | Err(_) => break,
            },
            _ = killed_rx.wait_for(|killed| *killed) => break,
        }
    }
    acknowledged.extend(publication.kill().await?);
    ensure!(trigger.is_none(), "{client} ended after {} of {MESSAGES} messages", acknowledged.len());
    let payload = |(index, reason): (usize, u8)| {
        // 0x10: nobody is subscribed, which is a success.
        ensure!(matches!(reason, 0 | 0x10), "{client} was refused with {reason:#x}");
        payloads.get(index).cloned().context("a message that was published")
    };
    Ok(Seen::Acknowledged(acknowledged.into_iter().map(payload).collect::<Result<_>>()?))
}
