//! `weir bench`: a bounded load generator.
//!
//! Open loop: with `--rate N` every message has its time, and latency counts from that time, so a broker that stalls
//! is charged for every message it held up (no coordinated omission). Closed loop: with `--rate max` a publisher
//! sends when it can, which finds the throughput; latency then says how full the buffers were, not how fast the
//! broker is.
//!
//! Connections are dealt out to worker threads, each with a runtime of its own; [`run::execute`] is the only place
//! that starts and stops them. Whatever happens, a run ends, with its connections closed.

mod backlog;
mod cost;
mod frame;
mod idle;
mod latency;
mod pacer;
mod plan;
mod publisher;
mod report;
mod run;
mod shared;
mod stream;
mod subscriber;
mod usage;
mod wire;

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use weir_codec::QoS;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_topic::TopicName;

use super::args::{self, BrokerArgs};
use super::output::{Format, Output};
use backlog::BacklogArgs;
use plan::{IdlePlan, Plan, PublisherPlan, Rate, SubscriberPlan};
use report::Report;
use stream::StreamArgs;

/// Longest run.
const DURATION_MAX: Duration = Duration::from_mins(10);
/// Connections of one run.
const CONNECTIONS_MAX: u32 = 100_000;
/// Bytes of a payload that hold the run and the time.
const SIZE_MIN: u32 = 16;
const SIZE_MAX: u32 = 1 << 20;

#[derive(Clone, Debug, Subcommand)]
pub(super) enum Scenario {
    /// Publishers and subscribers on one topic
    Fanout(FanoutArgs),
    /// Pairs of one publisher and one subscriber, each on a topic of its own
    Latency(LatencyArgs),
    /// Publish into a queue and consume it
    Queue(QueueArgs),
    /// Fill a queue, then work its backlog off, with one number of consumers after the other
    Backlog(BacklogArgs),
    /// Fill a stream, then replay it, and read it as it grows
    Stream(StreamArgs),
    /// Open connections and leave them idle
    Connect(ConnectArgs),
}

/// What all scenarios have in common.
#[derive(Clone, Debug, Args)]
pub(super) struct CommonArgs {
    /// How long to measure, up to 10m
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = bench_duration)]
    duration: Duration,
    /// Threads that carry the load
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// Let the load go to another machine
    #[arg(long)]
    allow_remote: bool,
    /// Process id of a broker on this machine, to report the processor time and memory it uses
    #[arg(long, value_name = "PID")]
    broker_pid: Option<u32>,
    /// Address where the broker serves /metrics, to report what the run costs its store
    #[arg(long, value_name = "ADDRESS")]
    http: Option<String>,
    /// How to print the result
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Format,
    #[command(flatten)]
    broker: BrokerArgs,
}

/// What is published.
#[derive(Clone, Debug, Args)]
struct LoadArgs {
    /// Messages per second over all publishers, or max: as many as can be (closed loop)
    #[arg(short, long, default_value = "1000", value_parser = rate)]
    rate: Rate,
    /// Bytes of payload
    #[arg(short, long, value_name = "BYTES", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(i64::from(SIZE_MIN)..=i64::from(SIZE_MAX)))]
    size: u32,
    /// Publishes in flight per publisher, if the broker allows as many; at QoS 0 only with --rate max
    #[arg(long, value_name = "N", default_value = "100")]
    window: NonZeroU16,
}

/// How a closed loop follows the arrivals.
#[derive(Clone, Copy, Debug, Args)]
struct ArrivalArgs {
    /// With --rate max: messages sent and not yet arrived, over all publishers [default: all their windows]
    #[arg(long, value_name = "N")]
    under_way: Option<NonZeroU32>,
}

impl ArrivalArgs {
    /// Most messages under way; `None` where the clock sets the pace.
    fn limit(self, load: &LoadArgs, publishers: u32) -> Option<u64> {
        let windows = u64::from(load.window.get()) * u64::from(publishers);
        (load.rate == Rate::Max).then(|| self.under_way.map_or(windows, |limit| limit.get().into()))
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct FanoutArgs {
    /// Publishers
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = connections())]
    publishers: u32,
    /// Subscribers
    #[arg(short = 'c', long, value_name = "N", default_value_t = 100, value_parser = connections())]
    subscribers: u32,
    /// Topic
    #[arg(short, long, default_value = "bench/fanout")]
    topic: String,
    /// Quality of service, both ways
    #[arg(short, long, default_value = "0", value_parser = args::qos)]
    qos: QoS,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    arrivals: ArrivalArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Clone, Debug, Args)]
pub(super) struct LatencyArgs {
    /// Pairs
    #[arg(short, long, value_name = "N", default_value_t = 10, value_parser = connections())]
    pairs: u32,
    /// Topic, to which the number of the pair is added
    #[arg(short, long, default_value = "bench/latency")]
    topic: String,
    /// Quality of service, both ways
    #[arg(short, long, default_value = "1", value_parser = args::qos)]
    qos: QoS,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    arrivals: ArrivalArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Clone, Debug, Args)]
pub(super) struct QueueArgs {
    /// Name of the queue
    queue: String,
    /// A topic that the queue's filter matches; {} stands for the number of the publisher, or of the topic
    #[arg(short, long)]
    topic: String,
    /// Topics over all publishers, each of which publishes to its share of them in turn [default: one for each]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    topics: Option<u32>,
    /// Publishers, at QoS 1
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = connections())]
    publishers: u32,
    /// Consumers
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = connections())]
    consumers: u32,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Clone, Debug, Args)]
pub(super) struct ConnectArgs {
    /// Connections
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1_000, value_parser = connections())]
    connections: u32,
    /// Connections opened per second (open loop) [default: as many as can be, 64 at a time]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Sessions that outlive their connections, for an hour
    #[arg(long)]
    persistent: bool,
    /// A will for each connection
    #[arg(long)]
    will: bool,
    /// Subscribe each at QoS 1; {} stands for the number of the connection
    #[arg(long, value_name = "FILTER")]
    subscribe: Option<String>,
    /// Keep-alive; 0 is none, and the clients send no pings
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    keep_alive: u16,
    #[command(flatten)]
    common: CommonArgs,
}

pub(super) fn run(scenario: &Scenario) -> anyhow::Result<()> {
    let common = scenario.common();
    let run = Seed::from_entropy().next_u64();
    let mut report = Report::new(scenario.name());
    let mut middle = None;
    for mut plan in scenario.plans()? {
        if plan.is_middle {
            middle = Some(Clock::system().wall());
        }
        plan.set_middle(middle);
        eprintln!("{}", plan.title);
        let outcome = run::execute(&plan, common, run)?;
        report.add(plan, outcome);
    }
    let mut output = Output::stdout();
    match common.output {
        Format::Json => output.json(&report.json())?,
        Format::Text => output.text(&report.text())?,
    }
    report.check()
}

impl Scenario {
    const fn name(&self) -> &'static str {
        match self {
            Self::Fanout(_) => "fanout",
            Self::Latency(_) => "latency",
            Self::Queue(_) => "queue",
            Self::Backlog(_) => "backlog",
            Self::Stream(_) => "stream",
            Self::Connect(_) => "connect",
        }
    }

    const fn common(&self) -> &CommonArgs {
        match self {
            Self::Fanout(args) => &args.common,
            Self::Latency(args) => &args.common,
            Self::Queue(args) => &args.common,
            Self::Backlog(args) => &args.common,
            Self::Stream(args) => &args.common,
            Self::Connect(args) => &args.common,
        }
    }

    /// What to do, one after the other.
    fn plans(&self) -> anyhow::Result<Vec<Plan>> {
        match self {
            Self::Fanout(args) => args.plan().map(|plan| vec![plan]),
            Self::Latency(args) => args.plan().map(|plan| vec![plan]),
            Self::Queue(args) => args.plan().map(|plan| vec![plan]),
            Self::Backlog(args) => args.plans(),
            Self::Stream(args) => args.plans(),
            Self::Connect(args) => Ok(vec![args.plan()]),
        }
    }
}

impl FanoutArgs {
    fn plan(&self) -> anyhow::Result<Plan> {
        let subscriber = SubscriberPlan::new(&self.topic, self.qos);
        Ok(Plan {
            title: format!(
                "fanout: {} publishers, {} subscribers, {}",
                self.publishers,
                self.subscribers,
                self.load.describe(self.qos)
            ),
            publishers: self.load.publishers(self.publishers, self.qos, |_| self.topic.clone())?,
            subscribers: vec![subscriber; self.subscribers as usize],
            copies: self.subscribers.into(),
            under_way: self.arrivals.limit(&self.load, self.publishers),
            duration: self.common.duration,
            ..Plan::default()
        })
    }
}

impl LatencyArgs {
    fn plan(&self) -> anyhow::Result<Plan> {
        let topic = |n| format!("{}/{n}", self.topic);
        Ok(Plan {
            title: format!("latency: {} pairs, {}", self.pairs, self.load.describe(self.qos)),
            publishers: self.load.publishers(self.pairs, self.qos, topic)?,
            subscribers: (0..self.pairs).map(|n| SubscriberPlan::new(&topic(n), self.qos)).collect(),
            copies: 1,
            under_way: self.arrivals.limit(&self.load, self.pairs),
            duration: self.common.duration,
            ..Plan::default()
        })
    }
}

impl QueueArgs {
    fn plan(&self) -> anyhow::Result<Plan> {
        let qos = QoS::AtLeastOnce;
        let consumer = SubscriberPlan::new(&format!("$queue/{}", self.queue), qos);
        Ok(Plan {
            title: format!(
                "queue {}: {} publishers, {} consumers, {}",
                self.queue,
                self.publishers,
                self.consumers,
                self.load.describe(qos)
            ),
            publishers: self.publishers()?,
            subscribers: vec![consumer; self.consumers as usize],
            copies: 1,
            duration: self.common.duration,
            ..Plan::default()
        })
    }

    fn publishers(&self) -> anyhow::Result<Vec<PublisherPlan>> {
        let topic = numbered(&self.topic);
        let mut publishers = self.load.publishers(self.publishers, QoS::AtLeastOnce, &topic)?;
        let Some(topics) = self.topics else { return Ok(publishers) };
        for (publisher, n) in publishers.iter_mut().zip(0..) {
            // With fewer topics than publishers, some share one.
            let share = (n % topics..topics).step_by(self.publishers as usize);
            publisher.topics = share.map(&topic).collect();
        }
        Ok(publishers)
    }
}

impl ConnectArgs {
    fn title(&self) -> String {
        let mut title = format!("connect: {} idle connections", self.connections);
        let parts = [
            self.rate.map(|rate| format!("{rate}/s")),
            self.persistent.then(|| "persistent".to_owned()),
            self.will.then(|| "with a will".to_owned()),
            self.subscribe.as_ref().map(|filter| format!("subscribed to {filter} at QoS 1")),
            (self.keep_alive > 0).then(|| format!("keep-alive {} s", self.keep_alive)),
        ];
        for part in parts.into_iter().flatten() {
            title.push_str(", ");
            title.push_str(&part);
        }
        title
    }

    fn plan(&self) -> Plan {
        Plan {
            title: self.title(),
            idle: self.connections,
            idle_as: IdlePlan {
                rate: self.rate.map(f64::from),
                persistent: self.persistent,
                will: self.will,
                filter: self.subscribe.clone(),
                keep_alive: self.keep_alive,
            },
            duration: self.common.duration,
            ..Plan::default()
        }
    }
}

impl LoadArgs {
    fn publishers(
        &self,
        publishers: u32,
        qos: QoS,
        topic: impl Fn(u32) -> String,
    ) -> anyhow::Result<Vec<PublisherPlan>> {
        let rate = self.rate.shared_by(publishers);
        (0..publishers)
            .map(|n| {
                let topic = topic(n);
                TopicName::parse(topic.as_str()).with_context(|| format!("topic `{topic}`"))?;
                Ok(PublisherPlan {
                    topics: vec![topic],
                    qos,
                    size: self.size as usize,
                    rate,
                    lag: f64::from(n) / f64::from(publishers),
                    window: self.window,
                    count: u64::MAX,
                })
            })
            .collect()
    }

    /// Publishes `messages` at QoS 1, as fast as can be, into the object `name`.
    fn fill(&self, name: &str, messages: u64, publishers: u32, topic: &str) -> anyhow::Result<Plan> {
        let mut plans = self.publishers(publishers, QoS::AtLeastOnce, numbered(topic))?;
        let (each, more) = (messages / u64::from(publishers), messages % u64::from(publishers));
        for (publisher, n) in plans.iter_mut().zip(0..) {
            publisher.count = each + u64::from(n < more);
        }
        let size = self.size;
        Ok(Plan {
            title: format!(
                "fill {name}: {messages} messages of {size} B, {publishers} publishers, QoS 1, max rate"
            ),
            publishers: plans,
            duration: DURATION_MAX,
            ..Plan::default()
        })
    }

    fn describe(&self, qos: QoS) -> String {
        format!("QoS {}, {} B, {}", qos.as_u8(), self.size, self.rate)
    }
}

fn numbered(topic: &str) -> impl Fn(u32) -> String {
    let topic = topic.to_owned();
    move |n| topic.replace("{}", &n.to_string())
}

fn connections() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=i64::from(CONNECTIONS_MAX))
}

fn rate(text: &str) -> Result<Rate, String> {
    match text {
        "max" => Ok(Rate::Max),
        _ => match text.parse::<f64>() {
            Ok(rate) if (0.001..=100_000_000.0).contains(&rate) => Ok(Rate::PerSecond(rate)),
            _ => Err("allowed: messages per second, or max".to_owned()),
        },
    }
}

fn bench_duration(text: &str) -> Result<Duration, String> {
    let allowed = Duration::from_millis(100)..=DURATION_MAX;
    crate::config::parse_duration(text)
        .filter(|duration| allowed.contains(duration))
        .ok_or_else(|| "allowed: a duration from 100ms to 10m".to_owned())
}
