//! Input that no client sends: the broker keeps its memory, its calm and its other clients.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rumqttc::v5;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_e2e::http;
use weir_e2e::weir::{Setup, Weir};
use weir_env::seed::Seed;

use crate::scenarios;
use crate::seed;
use crate::wire;

const CASES: usize = 100_000;
/// Connections at once.
const PARALLEL: usize = 64;
/// The cases after which memory must have settled: the store remembers some seconds of writes.
const WARM_UP: usize = CASES / 2;
/// Growth of resident memory allowed after that: one kibibyte lost in each case would exceed it.
const GROWTH_BYTES_MAX: u64 = 48 << 20;

/// Queues and streams are under attack too.
const MANIFEST: &str = "
apiVersion: weir.dev/v1alpha1
kind: MessageQueue
metadata: { name: target }
spec:
  topicFilter: target/queue
  retention: { maxMessages: 1000 }
---
apiVersion: weir.dev/v1alpha1
kind: Stream
metadata: { name: target }
spec:
  topicFilter: target/stream
  retention: { maxMessages: 1000 }
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_input_costs_only_its_own_connection() -> Result<()> {
    let seed = seed("hostile")?;
    // The memory store has no write buffer that fills up slowly, and what clients may leave behind is small
    // and soon gone: memory that grows is memory that leaks.
    let limits = ["--session-expiry-max", "2s", "--inbox-messages-per-client", "20"];
    let setup = Setup::memory()?
        .with_manifest("target.yaml", MANIFEST)?
        .with_arguments(&["--connect-timeout", "2s"])
        .with_arguments(&limits);
    let weir = Arc::new(setup.start().await?);
    let result = attack(&weir, &seed).await;
    println!("{}", result.with_context(|| weir.to_string())?);
    weir.no_panic()?;
    Arc::into_inner(weir).context("the only user of the broker")?.terminate().await
}

/// MQTT 3.1.1 has no Receive Maximum: a client may send any number of publishes before it looks at an answer.
#[tokio::test]
async fn a_publisher_that_does_not_wait_gets_every_answer() -> Result<()> {
    const COUNT: usize = 20_000;
    let setup = Setup::memory()?.with_manifest("target.yaml", MANIFEST)?;
    let weir = setup.start().await?;
    let mut stream = TcpStream::connect(weir.mqtt()).await?;
    let (mut answers, mut input) = stream.split();
    let send = async {
        input.write_all(&wire::connect(&Seed::fixed(0), false)).await?;
        let publishes: Vec<u8> = (0..COUNT).flat_map(|n| wire::publish_to("target/stream", n)).collect();
        input.write_all(&publishes).await.context("publish")
    };
    let receive = async {
        // CONNACK and each PUBACK have four bytes.
        let mut answered = vec![0; 4 + 4 * COUNT];
        answers.read_exact(&mut answered).await.context("read the answers")
    };
    let both = async { tokio::try_join!(send, receive).map(drop) };
    let result = weir_e2e::within("every publish to be answered", both).await;
    result.with_context(|| weir.to_string())?;
    weir.terminate().await
}

/// Returns how it went, in figures.
async fn attack(weir: &Arc<Weir>, seed: &Seed) -> Result<String> {
    let bystanding = CancellationToken::new();
    let mut bystander = JoinSet::new();
    bystander.spawn(stand_by(weir.mqtt(), bystanding.clone()));

    let progress = Arc::new(Progress::default());
    let mut attackers = JoinSet::new();
    for n in 0..PARALLEL {
        let (weir, progress, seed) = (weir.clone(), progress.clone(), seed.fork(&n.to_string()));
        attackers.spawn(async move { progress.attack(&weir, &seed).await });
    }
    while let Some(attacker) = attackers.join_next().await {
        attacker??;
    }
    bystanding.cancel();
    let round_trips = bystander.join_next().await.context("the bystander")???;

    let (settled, peak) = (progress.settled.load(Ordering::Relaxed), progress.peak.load(Ordering::Relaxed));
    ensure!(settled > 0 && peak < settled + GROWTH_BYTES_MAX, "memory grew from {settled} to {peak} bytes");
    ensure!(round_trips > 100, "the bystander was served only {round_trips} times");
    ensure!(http::get(weir.http(), "/readyz").await?.0 == 200, "not ready");
    for client in weir_e2e::clients::Client::all() {
        scenarios::live(client, &weir.mqtt().into())
            .await
            .with_context(|| format!("{client}, afterwards"))?;
    }
    Ok(format!(
        "{CASES} cases, {round_trips} round trips beside them, {} MiB settled, {} MiB at most",
        settled >> 20,
        peak >> 20
    ))
}

#[derive(Default)]
struct Progress {
    cases: AtomicUsize,
    /// Largest resident memory while warming up.
    settled: AtomicU64,
    /// Largest resident memory after that.
    peak: AtomicU64,
}

impl Progress {
    /// Runs cases until all have begun.
    async fn attack(&self, weir: &Weir, seed: &Seed) -> Result<()> {
        loop {
            let case = self.cases.fetch_add(1, Ordering::Relaxed);
            if case >= CASES {
                return Ok(());
            }
            let attack = Attack::new(seed);
            let run = tokio::time::timeout(weir_e2e::DEADLINE, attack.run(weir.mqtt(), case));
            run.await.context("the broker does not close the connection").flatten().with_context(|| {
                let start: Vec<u8> = attack.bytes.iter().copied().take(200).collect();
                format!("case {case}, {:?}, {} bytes: {start:02x?}", attack.manner, attack.bytes.len())
            })?;
            if case.is_multiple_of(256) {
                let watermark = if case < WARM_UP { &self.settled } else { &self.peak };
                watermark.fetch_max(weir.resident_bytes()?, Ordering::Relaxed);
            }
        }
    }
}

/// One hostile connection.
struct Attack {
    bytes: Vec<u8>,
    manner: Manner,
}

#[derive(Clone, Copy, Debug)]
enum Manner {
    /// Sent at once, then the end of the stream.
    AtOnce,
    /// Sent byte by byte, then the end of the stream.
    Drip,
    /// Sent at once; it is the broker that must end the connection.
    Hold,
}

impl Attack {
    fn new(seed: &Seed) -> Self {
        let at_once = |bytes| Self { bytes, manner: Manner::AtOnce };
        let v5 = seed.below(2) == 1;
        match seed.below(2_000) {
            0..300 => at_once(wire::noise(seed, 1 + wire::below(seed, 500))),
            300..600 => {
                let mut bytes = wire::connect(seed, v5);
                bytes.extend(wire::noise(seed, wire::below(seed, 500)));
                at_once(bytes)
            }
            600..1300 => at_once(mutated(seed, wire::conversation(seed).concat())),
            1300..1600 => {
                let mut bytes = wire::conversation(seed).concat();
                bytes.truncate(wire::below(seed, bytes.len()));
                at_once(bytes)
            }
            1600..1800 => {
                let mut packets = wire::conversation(seed);
                for n in 1..packets.len() {
                    packets.swap(n, wire::below(seed, n + 1));
                }
                at_once(packets.concat())
            }
            1800..1960 => {
                let mut bytes = if seed.below(2) == 0 { wire::connect(seed, v5) } else { Vec::new() };
                bytes.extend(wire::oversized_header(seed));
                bytes.extend(wire::noise(seed, wire::below(seed, 60_000)));
                Self { bytes, manner: Manner::Hold }
            }
            1960..1999 => {
                Self { bytes: mutated(seed, wire::conversation(seed).concat()), manner: Manner::Drip }
            }
            _ => {
                let mut bytes = wire::connect(seed, v5);
                bytes.truncate(wire::below(seed, bytes.len()));
                Self { bytes, manner: Manner::Hold }
            }
        }
    }

    /// Sends everything and reads until the broker has closed the connection.
    async fn run(&self, broker: SocketAddr, case: usize) -> Result<()> {
        let socket = TcpSocket::new_v4()?;
        // Many addresses: a closed connection occupies its port for a while.
        let last = u8::try_from(2 + case % 200)?;
        socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), 0))?;
        let mut stream = socket.connect(broker).await.context("connect")?;
        stream.set_nodelay(true)?;
        let (mut answers, mut input) = stream.split();
        let send = async {
            // The broker may close the connection at any byte.
            match self.manner {
                Manner::AtOnce | Manner::Hold => drop(input.write_all(&self.bytes).await),
                Manner::Drip => {
                    for byte in &self.bytes {
                        if input.write_all(std::slice::from_ref(byte)).await.is_err() {
                            break;
                        }
                        // Part of the attack: each byte is read by itself.
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            }
            if !matches!(self.manner, Manner::Hold) {
                drop(input.shutdown().await);
            }
        };
        let mut buffer = vec![0; 4096];
        let read = async { while let Ok(1..) = answers.read(&mut buffer).await {} };
        tokio::join!(send, read);
        Ok(())
    }
}

/// The same with some bytes changed, removed or repeated.
fn mutated(seed: &Seed, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..=seed.below(6) {
        let (from, to) = (wire::below(seed, bytes.len()), wire::below(seed, bytes.len()));
        match seed.below(4) {
            0 => bytes[from] = bytes[to],
            1 => bytes[from] ^= 1 << seed.below(8),
            2 => bytes.insert(to, bytes[from]),
            _ if bytes.len() > 1 => drop(bytes.remove(from)),
            _ => {}
        }
    }
    bytes
}

/// A well-behaved client that sends itself one message after the other; returns how many came back. None may
/// get lost, come twice or take long.
async fn stand_by(broker: SocketAddr, until: CancellationToken) -> Result<u64> {
    const TOPIC: &str = "bystander/ball";
    let mut options = v5::MqttOptions::new("bystander", broker.ip().to_string(), broker.port());
    options.set_clean_start(true);
    let (client, mut events) = v5::AsyncClient::new(options, 10);
    client.subscribe(TOPIC, v5::mqttbytes::QoS::AtLeastOnce).await?;
    let mut round_trips = 0;
    loop {
        let event = tokio::time::timeout(weir_e2e::DEADLINE, events.poll()).await;
        match event.with_context(|| format!("the bystander waits after {round_trips} round trips"))?? {
            v5::Event::Incoming(v5::mqttbytes::v5::Packet::SubAck(_)) => {}
            v5::Event::Incoming(v5::mqttbytes::v5::Packet::Publish(ball)) => {
                ensure!(ball.payload == round_trips.to_string(), "{ball:?} instead of {round_trips}");
                round_trips += 1;
                if until.is_cancelled() {
                    return Ok(round_trips);
                }
            }
            _ => continue,
        }
        client.publish(TOPIC, v5::mqttbytes::QoS::AtLeastOnce, false, round_trips.to_string()).await?;
    }
}
