//! The load: publishers that wait for confirmations, consumers that acknowledge, and what they measured.
//!
//! Closed loop: a publisher has as many publishes in flight as its window allows, and a message counts when it was
//! consumed. Open loop: every message has its time, and latency counts from that time, so that a broker that stalls
//! is charged for all that it held up. One thread carries it all; it runs as a process of its own, so that it can be
//! kept on a processor of its own. Nothing here knows which broker it loads beyond the protocol it speaks.
//!
//! Of a queue each message goes to one consumer; of a stream each goes to all of them, and they may begin with what is
//! stored already.

mod pacer;
pub(crate) mod wire;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use weir_env::clock::Clock;
use weir_env::seed::Seed;

use crate::process::on_cpus;
use pacer::Pacer;
use wire::{Amqp, Connection, Event, Mqtt, Nats, QUEUE, RabbitmqStream, Role, Subscribe, Wire};

/// The processor of the load.
const LOAD_CPU: &str = "1";
/// Time from the last connection to the first message.
const LEAD: Duration = Duration::from_millis(100);
/// Longest wait for what is still under way when publishing has ended.
const DRAIN_MAX: Duration = Duration::from_secs(20);
/// How often the counts are looked at.
const TICK: Duration = Duration::from_millis(5);
/// Bytes of a payload that hold the run and the time.
const STAMP: usize = 16;
/// Latencies longer than this count as this.
const LATENCY_MAX: u64 = 60_000_000_000;

/// What a broker is spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// MQTT 5, consumed from a queue of Weir.
    MqttQueue,
    /// MQTT 5, consumed by a subscription whose session lasts.
    MqttSession,
    /// AMQP 0-9-1.
    Amqp,
    /// NATS with JetStream.
    Nats,
    /// MQTT 5, read from a stream of Weir.
    MqttStream,
    /// NATS with a stream of JetStream, read by ordered consumers.
    NatsStream,
    /// The protocol of RabbitMQ's streams.
    RabbitmqStream,
}

/// A load.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// What to speak
    #[arg(long, value_enum)]
    pub protocol: Protocol,
    /// Where the broker listens
    #[arg(long)]
    pub address: SocketAddr,
    /// Publishers
    #[arg(long)]
    pub publishers: u32,
    /// Consumers
    #[arg(long)]
    pub consumers: u32,
    /// Publishes in flight per publisher
    #[arg(long)]
    pub window: u32,
    /// Bytes of payload
    #[arg(long)]
    pub size: usize,
    /// Messages per second over all publishers [default: a closed loop]
    #[arg(long)]
    pub rate: Option<f64>,
    /// Milliseconds of publishing, or of reading what is stored, at most
    #[arg(long)]
    pub duration: u64,
    /// Messages to publish at most, over all publishers
    #[arg(long)]
    pub count: Option<u64>,
    /// Read a stream from its beginning, of so many messages, instead of what comes
    #[arg(long)]
    pub stored: Option<u64>,
}

impl Protocol {
    const fn is_stream(self) -> bool {
        match self {
            Self::MqttStream | Self::NatsStream | Self::RabbitmqStream => true,
            Self::MqttQueue | Self::MqttSession | Self::Amqp | Self::Nats => false,
        }
    }
}

impl LoadArgs {
    /// Carries the load from a process and a processor of its own, by the command `load` of the program that runs.
    pub(crate) async fn apart(&self, longest: Duration) -> Result<Value> {
        let mut command = Command::new(std::env::current_exe()?);
        let protocol = self.protocol.to_possible_value().context("a protocol")?;
        command.args(["load", "--protocol", protocol.get_name(), "--address", &self.address.to_string()]);
        let numbers = [
            ("--publishers", Some(u64::from(self.publishers))),
            ("--consumers", Some(self.consumers.into())),
            ("--window", Some(self.window.into())),
            ("--size", Some(u64::try_from(self.size)?)),
            ("--duration", Some(self.duration)),
            ("--count", self.count),
            ("--stored", self.stored),
        ];
        for (name, number) in numbers {
            command.args(number.map(|number| format!("{name}={number}")));
        }
        command.args(self.rate.map(|rate| format!("--rate={rate}")));
        json_of(command, longest).await
    }
}

/// Runs a generator of load on its processor and reads what it prints.
pub(crate) async fn json_of(command: Command, longest: Duration) -> Result<Value> {
    let mut command = on_cpus(Some(LOAD_CPU), &command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(longest, command.output())
        .await
        .with_context(|| format!("the load took longer than {longest:?}"))??;
    let said = String::from_utf8_lossy(&output.stderr);
    let error = said.split("Stack backtrace").next().unwrap_or_default().split_whitespace();
    let error = error.collect::<Vec<_>>().join(" ");
    ensure!(output.status.success(), "the load ended with {}: {error}", output.status);
    serde_json::from_slice(&output.stdout).context("read the report of the load")
}

/// The arguments as a reader may repeat them: without the places of files.
#[must_use]
pub fn shown(arguments: impl Iterator<Item = String>) -> String {
    let mut shown = Vec::new();
    let mut arguments =
        arguments.filter(|argument| !["--out=", "--weir="].iter().any(|of| argument.starts_with(of)));
    while let Some(argument) = arguments.next() {
        if ["--out", "--weir"].contains(&argument.as_str()) {
            arguments.next();
        } else {
            shown.push(if argument.contains(' ') { format!("\"{argument}\"") } else { argument });
        }
    }
    shown.join(" ")
}

/// What all connections share.
struct Shared {
    load: LoadArgs,
    clock: Clock,
    base: Instant,
    /// Marks this run's messages.
    run: u64,
    start: watch::Sender<Option<Instant>>,
    stop: watch::Sender<bool>,
    counts: Counts,
    latencies: Mutex<Latencies>,
}

#[derive(Default)]
struct Counts {
    ready: AtomicU64,
    published: AtomicU64,
    sent: AtomicU64,
    confirmed: AtomicU64,
    received: AtomicU64,
    last_confirmed: AtomicU64,
    last_received: AtomicU64,
}

struct Latencies {
    confirm: Histogram<u64>,
    arrival: Histogram<u64>,
}

/// Carries the load, and says what it measured.
pub async fn run(load: LoadArgs) -> Result<Value> {
    ensure!(load.size >= STAMP, "a payload of {STAMP} bytes at least");
    ensure!(load.window > 0 && load.window <= 1_000, "a window of 1 to 1000");
    let clock = Clock::system();
    let histogram = || Histogram::new_with_bounds(1_000, LATENCY_MAX, 3).context("a histogram");
    let shared = Arc::new(Shared {
        clock,
        base: clock.now(),
        run: Seed::from_entropy().next_u64(),
        start: watch::Sender::new(None),
        stop: watch::Sender::new(false),
        counts: Counts::default(),
        latencies: Mutex::new(Latencies { confirm: histogram()?, arrival: histogram()? }),
        load,
    });
    let mut connections = JoinSet::new();
    let before = clock.now();
    for n in 0..shared.load.consumers {
        connections.spawn(consumer(Arc::clone(&shared), n));
    }
    if let Some(stored) = shared.load.stored {
        let all = stored * u64::from(shared.load.consumers);
        wait(&shared, &mut connections, |counts| counts.received.load(Ordering::Relaxed) >= all).await?;
        shared.stop.send_replace(true);
        while let Some(ended) = connections.join_next().await {
            ended??;
        }
        return Ok(report(&shared, before));
    }
    wait(&shared, &mut connections, |counts| {
        counts.ready.load(Ordering::Relaxed) >= shared.load.consumers.into()
    })
    .await?;
    for n in 0..shared.load.publishers {
        connections.spawn(publisher(Arc::clone(&shared), n));
    }
    let all = u64::from(shared.load.consumers) + u64::from(shared.load.publishers);
    wait(&shared, &mut connections, |counts| counts.ready.load(Ordering::Relaxed) >= all).await?;
    let start = clock.now() + LEAD;
    shared.start.send_replace(Some(start));
    let publishers = u64::from(shared.load.publishers);
    let copies = if shared.load.protocol.is_stream() { shared.load.consumers.into() } else { 1 };
    wait(&shared, &mut connections, |counts| {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        read(&counts.published) >= publishers && read(&counts.received) >= read(&counts.confirmed) * copies
    })
    .await?;
    shared.stop.send_replace(true);
    while let Some(ended) = connections.join_next().await {
        ended??;
    }
    Ok(report(&shared, start))
}

/// Waits until `done`; an error if a connection fails or it takes too long.
async fn wait(
    shared: &Shared,
    connections: &mut JoinSet<Result<()>>,
    done: impl Fn(&Counts) -> bool,
) -> Result<()> {
    let give_up = shared.clock.now() + LEAD + Duration::from_millis(shared.load.duration) + DRAIN_MAX;
    while !done(&shared.counts) {
        while let Some(ended) = connections.try_join_next() {
            ended??;
        }
        let counts = &shared.counts;
        ensure!(
            shared.clock.now() < give_up,
            "{} connections ready, {} publishes confirmed, {} messages arrived, and no more",
            counts.ready.load(Ordering::Relaxed),
            counts.confirmed.load(Ordering::Relaxed),
            counts.received.load(Ordering::Relaxed)
        );
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}

fn report(shared: &Shared, start: Instant) -> Value {
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let counts = &shared.counts;
    let latencies = shared.latencies.lock();
    let distribution = |of: &Histogram<u64>| {
        json!({
            "p50Nanos": of.value_at_percentile(50.0), "p99Nanos": of.value_at_percentile(99.0), "maxNanos": of.max(),
        })
    };
    json!({
        "sent": read(&counts.sent), "confirmed": read(&counts.confirmed), "received": read(&counts.received),
        "measuredNanos": read(&counts.last_received).saturating_sub(shared.nanos(start)),
        "confirmedNanos": read(&counts.last_confirmed).saturating_sub(shared.nanos(start)),
        "latency": { "confirm": distribution(&latencies.confirm), "arrival": distribution(&latencies.arrival) },
    })
}

impl Shared {
    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.base).as_nanos()).unwrap_or(u64::MAX)
    }

    async fn connect(&self, role: Role, n: u32) -> Result<(Connection, Box<dyn Wire>)> {
        let address = self.load.address;
        let run = self.run & 0xffff;
        // Consumers of queues come back under their names: sessions that last belong to them. Those of streams must
        // not: a consumer that a broker has not forgotten yet would feed the next of its name.
        let id = match role {
            Role::Publisher => format!("bench-p-{run:x}-{n}"),
            Role::Consumer if self.load.protocol.is_stream() => format!("bench-c-{run:x}-{n}"),
            Role::Consumer => format!("bench-c-{n}"),
        };
        let topic = format!("{QUEUE}/{n}/data");
        Ok(match self.load.protocol {
            Protocol::MqttQueue => {
                let subscribe = Subscribe::queue(&format!("$queue/{QUEUE}"), false);
                boxed(Mqtt::connect(address, role, &id, &topic, &subscribe).await?)
            }
            Protocol::MqttSession => {
                let subscribe = Subscribe::queue(&format!("{QUEUE}/+/data"), role == Role::Consumer);
                boxed(Mqtt::connect(address, role, &id, &topic, &subscribe).await?)
            }
            Protocol::Amqp => boxed(Amqp::connect(address, role).await?),
            Protocol::Nats => boxed(Nats::connect(address, role, &id, self.load.consumers).await?),
            Protocol::MqttStream => {
                let subscribe = Subscribe::stream(&format!("$stream/{QUEUE}"), self.load.stored.is_some());
                boxed(Mqtt::connect(address, role, &id, &topic, &subscribe).await?)
            }
            Protocol::NatsStream => {
                boxed(Nats::connect_stream(address, role, &id, self.load.stored.is_some()).await?)
            }
            Protocol::RabbitmqStream => {
                boxed(RabbitmqStream::connect(address, role, self.load.stored.is_some()).await?)
            }
        })
    }
}

impl Shared {
    /// Counts what has arrived.
    fn take_arrivals(&self, connection: &mut Connection, wire: &mut dyn Wire) -> Result<()> {
        let now = self.nanos(self.clock.now());
        let mut latencies = self.latencies.lock();
        let mut received = 0;
        let stored = self.load.stored.is_some();
        connection.events(wire, |event| {
            let Event::Delivered(payload) = event else { return };
            // What was stored by another run has no latency in this one.
            if stored {
                received += 1;
            } else if let Some((run, due)) = stamp(payload)
                && run == self.run
            {
                latencies.arrival.saturating_record(now.saturating_sub(due));
                received += 1;
            }
        })?;
        if received > 0 {
            self.counts.received.fetch_add(received, Ordering::Relaxed);
            self.counts.last_received.fetch_max(now, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Takes out of `in_flight` what was confirmed.
    fn take_confirmations(
        &self,
        connection: &mut Connection,
        wire: &mut dyn Wire,
        in_flight: &mut InFlight,
    ) -> Result<()> {
        let now = self.nanos(self.clock.now());
        let mut latencies = self.latencies.lock();
        let mut confirmed = 0;
        connection.events(wire, |event| {
            if let Event::Confirmed { tag, multiple } = *event {
                confirmed += in_flight.confirm(tag, multiple, |due| {
                    latencies.confirm.saturating_record(now.saturating_sub(due));
                });
            }
        })?;
        if confirmed > 0 {
            self.counts.confirmed.fetch_add(confirmed, Ordering::Relaxed);
            self.counts.last_confirmed.fetch_max(now, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn boxed((connection, wire): (Connection, impl Wire + 'static)) -> (Connection, Box<dyn Wire>) {
    (connection, Box::new(wire))
}

async fn consumer(shared: Arc<Shared>, n: u32) -> Result<()> {
    let (mut connection, mut wire) = shared.connect(Role::Consumer, n).await?;
    shared.counts.ready.fetch_add(1, Ordering::Relaxed);
    let mut stop = shared.stop.subscribe();
    loop {
        shared.take_arrivals(&mut connection, &mut *wire)?;
        connection.write()?;
        tokio::select! {
            ready = connection.ready() => ready?,
            _ = stop.wait_for(|&stop| stop) => break,
        }
        connection.read()?;
    }
    connection.close().await
}

/// The run and the time that a message was due.
fn stamp(payload: &[u8]) -> Option<(u64, u64)> {
    let (run, rest) = payload.split_first_chunk()?;
    Some((u64::from_be_bytes(*run), u64::from_be_bytes(*rest.first_chunk()?)))
}

async fn publisher(shared: Arc<Shared>, n: u32) -> Result<()> {
    let (mut connection, mut wire) = shared.connect(Role::Publisher, n).await?;
    let pacer = Pacer::new(shared.clock)?;
    shared.counts.ready.fetch_add(1, Ordering::Relaxed);
    let mut started = shared.start.subscribe();
    let start = started.wait_for(Option::is_some).await?.context("a start")?;
    pacer.sleep_until(start).await?;
    let mut schedule = Schedule::new(&shared.load, n, shared.nanos(start));
    let mut payload = vec![b'.'; shared.load.size];
    payload[..8].copy_from_slice(&shared.run.to_be_bytes());
    let window = usize::try_from(shared.load.window)?;
    let mut in_flight = InFlight::default();
    loop {
        let now = shared.nanos(shared.clock.now());
        let mut sent = 0;
        wire.begin_turn();
        while in_flight.0.len() < window
            && let Some(due) = schedule.take(now)
        {
            payload[8..STAMP].copy_from_slice(&due.to_be_bytes());
            in_flight.0.push_back((wire.publish(&mut connection.output, &payload), due));
            sent += 1;
        }
        shared.counts.sent.fetch_add(sent, Ordering::Relaxed);
        connection.write()?;
        let next = schedule.next(now);
        if next.is_none() && in_flight.0.is_empty() {
            break;
        }
        let wake =
            next.filter(|_| in_flight.0.len() < window).map(|next| shared.base + Duration::from_nanos(next));
        tokio::select! {
            ready = connection.ready() => ready?,
            slept = pacer.sleep_until(wake.unwrap_or(start)), if wake.is_some() => { slept?; continue },
        }
        connection.read()?;
        shared.take_confirmations(&mut connection, &mut *wire, &mut in_flight)?;
    }
    shared.counts.published.fetch_add(1, Ordering::Relaxed);
    // The connection stays until everything has arrived, as it would in life.
    let mut stop = shared.stop.subscribe();
    stop.wait_for(|&stop| stop).await?;
    Ok(())
}

/// Publishes that wait for their confirmation: the tag of each, and when it was due.
#[derive(Default)]
struct InFlight(VecDeque<(u64, u64)>);

impl InFlight {
    /// Takes out what is confirmed; how many that were.
    fn confirm(&mut self, tag: u64, multiple: bool, mut due: impl FnMut(u64)) -> u64 {
        let Some(at) = self.0.iter().position(|&(other, _)| other == tag) else { return 0 };
        let from = if multiple { 0 } else { at };
        self.0.drain(from..=at).map(|(_, at)| due(at)).count() as u64
    }
}

/// When messages are due, in nanoseconds.
struct Schedule {
    first: u64,
    end: u64,
    /// Between two messages of this publisher; `None`: as fast as can be.
    interval: Option<f64>,
    taken: u64,
    /// Messages there are.
    count: u64,
}

impl Schedule {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below one interval")]
    fn new(load: &LoadArgs, n: u32, start: u64) -> Self {
        let interval = load.rate.map(|rate| 1e9 * f64::from(load.publishers) / rate);
        // So that publishers do not all send at once.
        let lag = interval.map_or(0.0, |interval| interval * f64::from(n) / f64::from(load.publishers));
        let publishers = u64::from(load.publishers);
        // The first ones take what is left over.
        let share = |count: u64| count / publishers + u64::from(u64::from(n) < count % publishers);
        let count = load.count.map_or(u64::MAX, share);
        Self { first: start + lag as u64, end: start + load.duration * 1_000_000, interval, taken: 0, count }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a run has fewer messages than a float counts"
    )]
    fn due(&self, now: u64) -> u64 {
        self.interval.map_or(now, |interval| self.first + (self.taken as f64 * interval) as u64)
    }

    /// When the next message is due, if there is another.
    fn next(&self, now: u64) -> Option<u64> {
        Some(self.due(now)).filter(|&due| due < self.end && self.taken < self.count)
    }

    /// The time of the next message, if it is due.
    fn take(&mut self, now: u64) -> Option<u64> {
        let due = self.next(now).filter(|&due| due <= now)?;
        self.taken += 1;
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(rate: Option<f64>) -> LoadArgs {
        LoadArgs {
            protocol: Protocol::Amqp,
            address: ([127, 0, 0, 1], 1).into(),
            publishers: 2,
            consumers: 1,
            window: 1,
            size: 100,
            rate,
            duration: 10,
            count: None,
            stored: None,
        }
    }

    #[test]
    fn an_open_loop_keeps_its_times_however_late_it_is() {
        let mut schedule = Schedule::new(&load(Some(2_000.0)), 1, 1_000_000);
        assert_eq!((schedule.take(1_400_000), schedule.next(1_400_000)), (None, Some(1_500_000)));
        assert_eq!([schedule.take(9_000_000), schedule.take(9_000_000)], [Some(1_500_000), Some(2_500_000)]);
        let mut left = 0;
        while schedule.take(50_000_000).is_some() {
            left += 1;
        }
        assert_eq!((left, schedule.next(50_000_000)), (8, None));
    }

    #[test]
    fn a_closed_loop_sends_now_until_its_end() {
        let mut schedule = Schedule::new(&load(None), 1, 0);
        assert_eq!((schedule.take(5), schedule.take(9_999_999)), (Some(5), Some(9_999_999)));
        assert_eq!((schedule.take(10_000_000), schedule.next(10_000_000)), (None, None));
    }

    #[test]
    fn publishers_share_what_is_to_be_published() {
        let load = LoadArgs { count: Some(3), ..load(None) };
        let taken = |n| {
            let mut schedule = Schedule::new(&load, n, 0);
            std::iter::from_fn(|| schedule.take(5)).count()
        };
        assert_eq!([taken(0), taken(1)], [2, 1]);
    }

    #[test]
    fn confirmations_come_in_any_order_and_several_at_once() {
        let mut in_flight = InFlight((1..=5).map(|tag| (tag, tag * 10)).collect());
        let mut seen = Vec::new();
        assert_eq!(in_flight.confirm(2, false, |due| seen.push(due)), 1);
        assert_eq!(in_flight.confirm(2, false, |due| seen.push(due)), 0);
        assert_eq!(in_flight.confirm(4, true, |due| seen.push(due)), 3);
        assert_eq!((seen, in_flight.0.len()), (vec![20, 10, 30, 40], 1));
    }
}
