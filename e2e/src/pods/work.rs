//! What a message costs as pods and subscribers grow: processor time, transactions of the store, bytes between pods.
//!
//! One machine cannot show how fast a cluster gets with more machines. It can show what each message makes the pods and the
//! store do, and [docs/scaling.md](../../../docs/scaling.md) reckons from that. The load is well below what the pods can do,
//! so that nothing waits and nothing is batched because it had to wait; what the cluster does without any load is
//! measured first and taken off.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;
use tokio::time::{interval_at, sleep};
use tokio_util::sync::CancellationToken;
use weir_codec::{Packet, QoS};
use weir_env::clock::Clock;

use super::cluster::{Cluster, Store};
use super::wire::{Wire, ack};
use crate::http;
use crate::process::processor_time;

/// A queue and a stream, each with topics of its own.
const MANIFEST: &str = "
apiVersion: weir.dev/v1alpha1
kind: MessageQueue
metadata: { name: jobs }
spec:
  topicFilter: jobs/#
  shards: 8
---
apiVersion: weir.dev/v1alpha1
kind: Stream
metadata: { name: journal }
spec:
  topicFilter: journal/#
  shards: 8
";
/// Topics of each publisher; their hashes spread over the shards.
const TOPICS: usize = 64;
/// From the start of the load to the start of the measurement.
const WARM_UP: Duration = Duration::from_secs(2);
/// From the last connection to the measurement of a cluster at rest.
const SETTLE: Duration = Duration::from_secs(3);
const PAYLOAD: usize = 100;

/// What is measured.
#[derive(Clone, Debug)]
pub struct Options {
    /// Numbers of pods.
    pub pods: Vec<usize>,
    /// Numbers of subscribers of live messages, over all pods.
    pub subscribers: Vec<usize>,
    /// Publishes per second, over all publishers.
    pub rate: u32,
    /// How long each load is measured.
    pub duration: Duration,
}

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    /// Live messages, to every subscriber.
    Live(QoS),
    /// Messages of a queue, each to one consumer.
    Queue,
    /// Messages of a stream, to one reader at each pod.
    Stream,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Live(qos) => write!(f, "live, QoS {}", *qos as u8),
            Self::Queue => f.write_str("queue, QoS 1, consumed and acknowledged"),
            Self::Stream => f.write_str("stream, QoS 1, read once at each pod at QoS 0"),
        }
    }
}

/// What pods and store have done up to a moment.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    pods: Duration,
    store: Duration,
    transactions: f64,
    read_keys: f64,
    written_keys: f64,
    written_bytes: f64,
    peer_bytes: f64,
    peer_messages: f64,
}

impl Work {
    async fn so_far(cluster: &Cluster) -> Result<Self> {
        let mut work = Self { store: processor_time(cluster.store_pid()?)?, ..Self::default() };
        for (pid, http) in cluster.pods()? {
            work.pods += processor_time(pid)?;
            let (status, metrics) = http::get(http, "/metrics").await?;
            ensure!(status == 200, "the metrics of a pod: status {status}");
            let sum = |name: &str| sum(&metrics, name);
            work.transactions += sum("weir_store_transactions_total");
            work.read_keys += sum("weir_store_read_keys_total");
            work.written_keys += sum("weir_store_written_keys_total");
            work.written_bytes += sum("weir_store_written_bytes_total");
            work.peer_bytes += sum("weir_peer_sent_bytes_total");
            work.peer_messages += sum("weir_peer_sent_messages_total");
        }
        Ok(work)
    }

    /// What was done from `self` to `later`.
    fn until(self, later: Self) -> Self {
        Self {
            pods: later.pods.saturating_sub(self.pods),
            store: later.store.saturating_sub(self.store),
            transactions: later.transactions - self.transactions,
            read_keys: later.read_keys - self.read_keys,
            written_keys: later.written_keys - self.written_keys,
            written_bytes: later.written_bytes - self.written_bytes,
            peer_bytes: later.peer_bytes - self.peer_bytes,
            peer_messages: later.peer_messages - self.peer_messages,
        }
    }
}

/// All series of a metric.
fn sum(metrics: &str, name: &str) -> f64 {
    let series = metrics.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
    });
    series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Measures all that `options` ask for; `row` hears each line of the table, its head first.
pub async fn measure(options: &Options, mut row: impl FnMut(String)) -> Result<()> {
    row(
        "| load | pods | subscribers | messages | pods, CPU us | store, CPU us | transactions | keys read | \
         keys written | bytes written | messages between pods | bytes between pods |"
            .to_owned(),
    );
    row("|---|---|---|---|---|---|---|---|---|---|---|---|".to_owned());
    for &pods in &options.pods {
        let idle = at_rest(pods, options.duration).await?;
        row(line("at rest, in a second", pods, 0, options.duration.as_secs_f64(), idle));
        for load in [Load::Live(QoS::AtMostOnce), Load::Live(QoS::AtLeastOnce), Load::Queue, Load::Stream] {
            let subscribers = match load {
                Load::Live(_) => options.subscribers.clone(),
                Load::Queue => vec![8],
                Load::Stream => vec![pods],
            };
            for subscribers in subscribers {
                let (messages, work) = under(load, pods, subscribers, options).await?;
                row(line(&load.to_string(), pods, subscribers, messages, idle.until(work)));
            }
        }
    }
    Ok(())
}

/// A row: `work` divided by `messages`.
fn line(load: &str, pods: usize, subscribers: usize, messages: f64, work: Work) -> String {
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / messages;
    let each = |count: f64| count / messages;
    format!(
        "| {load} | {pods} | {subscribers} | {messages:.0} | {:.1} | {:.1} | {:.3} | {:.2} | {:.2} | {:.0} | {:.2} | {:.0} |",
        micros(work.pods),
        micros(work.store),
        each(work.transactions),
        each(work.read_keys),
        each(work.written_keys),
        each(work.written_bytes),
        each(work.peer_messages),
        each(work.peer_bytes),
    )
}

/// What a cluster does for `duration` though nobody asks for anything.
async fn at_rest(pods: usize, duration: Duration) -> Result<Work> {
    let cluster = Cluster::start(pods, &Store::Served, MANIFEST, None, false).await?;
    sleep(SETTLE).await;
    let before = Work::so_far(&cluster).await?;
    sleep(duration).await;
    let work = before.until(Work::so_far(&cluster).await?);
    cluster.end().await?;
    Ok(work)
}

/// The messages that arrived while it was measured, and the work of that time.
async fn under(load: Load, pods: usize, subscribers: usize, options: &Options) -> Result<(f64, Work)> {
    let cluster = Cluster::start(pods, &Store::Served, MANIFEST, None, false).await?;
    let doors: Vec<_> = cluster.doors().into_iter().flatten().collect();
    let done = CancellationToken::new();
    let mut clients = JoinSet::new();
    let (filter, qos) = match load {
        Load::Live(qos) => ("live/#", qos),
        Load::Queue => ("$queue/jobs", QoS::AtLeastOnce),
        Load::Stream => ("$stream/journal", QoS::AtMostOnce),
    };
    for n in 0..subscribers {
        let mut wire = Wire::connect(doors[n % doors.len()], &format!("subscriber-{n}"), 0).await?;
        let early = wire.subscribe(filter, qos, None).await?;
        ensure!(early.is_empty(), "messages before the first publish");
        clients.spawn(done.clone().run_until_cancelled_owned(receive(wire)));
    }
    let (topic, qos) = match load {
        Load::Live(qos) => ("live", qos),
        Load::Queue => ("jobs", QoS::AtLeastOnce),
        Load::Stream => ("journal", QoS::AtLeastOnce),
    };
    for (n, &door) in doors.iter().enumerate() {
        let wire = Wire::connect(door, &format!("publisher-{n}"), 0).await?;
        let pace = Duration::from_secs(1) * u32::try_from(pods)? / options.rate;
        clients.spawn(done.clone().run_until_cancelled_owned(publish(
            wire,
            format!("{topic}/{n}"),
            qos,
            pace,
        )));
    }
    sleep(WARM_UP).await;
    let before = (Work::so_far(&cluster).await?, published(&cluster).await?);
    sleep(options.duration).await;
    let after = (Work::so_far(&cluster).await?, published(&cluster).await?);
    done.cancel();
    while let Some(ended) = clients.join_next().await {
        if let Some(ended) = ended? {
            ended.with_context(|| format!("{load}, {pods} pods, {subscribers} subscribers"))?;
        }
    }
    cluster.end().await?;
    Ok((after.1 - before.1, before.0.until(after.0)))
}

/// PUBLISH packets that pods have taken from clients.
async fn published(cluster: &Cluster) -> Result<f64> {
    let mut total = 0.0;
    for (_, http) in cluster.pods()? {
        total += sum(&http::get(http, "/metrics").await?.1, "weir_publishes_total");
    }
    Ok(total)
}

/// Publishes at a steady pace until it is told to end.
async fn publish(mut wire: Wire, topic: String, qos: QoS, pace: Duration) -> Result<()> {
    let payload = "x".repeat(PAYLOAD);
    let mut due = interval_at(Clock::system().now(), pace);
    let mut id = 0_u16;
    for n in 0.. {
        loop {
            tokio::select! {
                biased;
                packet = wire.next() => settle(&mut wire, packet?).await?,
                _ = due.tick() => break,
            }
        }
        // Ids come round again long after they were acknowledged.
        id = id % 10_000 + 1;
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { id };
        wire.publish(&format!("{topic}/{}", n % TOPICS), qos, packet_id, false, &payload).await?;
    }
    Ok(())
}

/// Takes what comes until it is told to end.
async fn receive(mut wire: Wire) -> Result<()> {
    loop {
        let packet = wire.next().await?;
        settle(&mut wire, packet).await?;
    }
}

/// Does with a packet what a client has to.
async fn settle(wire: &mut Wire, packet: Packet) -> Result<()> {
    match packet {
        Packet::Publish(publish) => match (publish.header.qos, publish.header.packet_id) {
            (QoS::AtLeastOnce, Some(id)) => wire.send(&Packet::PubAck(ack(id))).await,
            _ => Ok(()),
        },
        Packet::PubAck(ack) => {
            ensure!(!ack.reason.is_error(), "a publish was refused with {:?}", ack.reason);
            Ok(())
        }
        Packet::PingResp => Ok(()),
        other => anyhow::bail!("{} came", other.packet_type().name()),
    }
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn all_series_of_a_metric_count_and_no_other() {
        let metrics =
            "# TYPE a counter\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3.5\na_total_more 7\na_total 1\n";
        assert!((sum(metrics, "a_total") - 6.5).abs() < 1e-9);
    }
}
