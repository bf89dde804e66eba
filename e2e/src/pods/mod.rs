//! A cluster of real pods under faults: what the clients saw must agree with what they were promised.
//!
//! [`run`] starts a store server and pods, loads them with publishers, consumers of a queue, a session that lasts and
//! clients that fight for one id, strikes the pods one after the other, and says what came of it. It knows pods from
//! outside only, and owns all that it starts.

mod clients;
mod cluster;
mod foreign;
mod keepers;
mod ledger;
pub mod network;
mod probes;
mod wire;
pub mod work;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use weir_codec::QoS;
use weir_env::clock::Clock;

use clients::{Field, Twins};
use cluster::Cluster;
pub use cluster::{Fault, Store};
use foreign::Foreign;
pub use foreign::Library;
use ledger::{Ledger, Outage};
use probes::{Probes, ShardOutages};

use crate::within;

/// Publishers at each QoS for each pod.
const PUBLISHERS: usize = 2;
const CONSUMERS: usize = 2;
const TWINS: usize = 2;
/// Publishers of retained messages.
const KEEPERS: usize = 4;
/// A publisher that is not told for so long that its publish is safe has failed.
const FAILED: Duration = Duration::from_secs(30);
/// Load between two faults.
const BETWEEN: Duration = Duration::from_secs(1);
/// Longest wait for what is under way at the end.
const DRAIN_MAX: Duration = Duration::from_secs(60);
const ASKED_EACH: Duration = Duration::from_millis(20);

/// The queue and the stream take the same. Redelivery has no limit: each fault counts as an attempt.
const MANIFEST: &str = "
apiVersion: weir.dev/v1alpha1
kind: MessageQueue
metadata: { name: jobs }
spec:
  topicFilter: faults/#
  shards: 4
  maxDeliveries: 0
---
apiVersion: weir.dev/v1alpha1
kind: Stream
metadata: { name: journal }
spec:
  topicFilter: faults/#
  shards: 4
";

/// What is done.
#[derive(Clone, Debug)]
pub struct Options {
    /// Pods; a single one is alone.
    pub pods: usize,
    /// Where they keep their data.
    pub store: Store,
    /// Shards of which is measured how long they are without service; none if it is 0.
    pub shards: usize,
    /// Libraries that others wrote, whose clients take part beside our own; each once.
    pub libraries: Vec<Library>,
    /// In this order, each at the next pod.
    pub faults: Vec<Fault>,
    /// How often all of them.
    pub rounds: usize,
    /// From one publish of a publisher to its next.
    pub pace: Duration,
    /// A folder for the logs of all pods.
    pub logs: Option<PathBuf>,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// Every promise that was broken; empty if all is well.
    pub problems: Vec<String>,
    /// Publishes that were acknowledged.
    pub acknowledged: u64,
    /// Publishes that were refused, and accepted when they were sent again; with the reasons.
    pub refused: Vec<String>,
    /// Publishes for which no success came within 30 s.
    pub failed: u64,
    /// Connections of the client id that several fought for.
    pub fights: u64,
    /// Messages of the queue that came again.
    pub redelivered: u64,
    /// Pods that ended without being told to.
    pub ended: u64,
    struck: Vec<Struck>,
}

/// One fault.
#[derive(Debug)]
struct Struck {
    fault: Fault,
    outages: Vec<Outage>,
    shards: ShardOutages,
}

/// One fault, while it is not known what it was to publishers.
#[derive(Debug)]
struct Span {
    fault: Fault,
    victim: usize,
    from: Instant,
    until: Instant,
    shards: ShardOutages,
}

/// Runs it.
///
/// # Errors
/// If the harness itself could not do its work; broken promises are in the report.
pub async fn run(options: &Options) -> Result<Report> {
    foreign::check(&options.libraries)?;
    let clock = Clock::system();
    let mut cluster = {
        let is_cut = options.faults.iter().any(|fault| matches!(fault, Fault::Cut(_)));
        let mut manifest = MANIFEST.to_owned();
        if options.shards > 0 {
            manifest.push_str(&probes::manifest(options.shards));
        }
        Cluster::start(options.pods, &options.store, &manifest, options.logs.clone(), is_cut).await?
    };
    let field = Arc::new(Field {
        clock,
        doors: Mutex::new(cluster.doors()),
        ledger: Mutex::new(Ledger::default()),
        probes: Probes::new(options.shards),
        pace: options.pace,
        enough: CancellationToken::new(),
        open: 0.into(),
        twins: Mutex::new(Twins::default()),
    });
    let result = load(options, &mut cluster, &field).await;
    cluster.keep_logs()?;
    let report = result.with_context(|| cluster.logs())?;
    if !report.problems.is_empty() {
        return Ok(report);
    }
    cluster.end().await?;
    Ok(report)
}

async fn load(options: &Options, cluster: &mut Cluster, field: &Arc<Field>) -> Result<Report> {
    let (subscribed_tx, subscribed_rx) = oneshot::channel();
    let mut others = JoinSet::new();
    others.spawn(clients::subscribe(Arc::clone(field), subscribed_tx));
    within("the session's subscription", async { Ok(subscribed_rx.await?) }).await?;
    for n in 0..CONSUMERS {
        others.spawn(clients::consume(Arc::clone(field), n));
    }
    for n in 0..TWINS {
        others.spawn(clients::be_twin(Arc::clone(field), n));
    }
    let publishers = PUBLISHERS * 2 * options.pods;
    let mut foreign = Foreign::start(field, &options.libraries, publishers).await?;
    let mut publishing = JoinSet::new();
    foreign.publish(&mut publishing).await?;
    for n in 0..publishers {
        // Neighbours begin at different pods; each pod has publishers of both kinds.
        let qos = if (n / options.pods).is_multiple_of(2) { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        publishing.spawn(clients::publish(Arc::clone(field), n, qos));
    }
    for n in 0..KEEPERS {
        publishing.spawn(keepers::keep(Arc::clone(field), n));
    }
    for shard in 0..options.shards {
        (0..options.pods).for_each(|pod| drop(others.spawn(probes::probe(Arc::clone(field), shard, pod))));
    }
    let mut spans = Vec::new();
    let mut ended = 0;
    for n in 0..options.rounds * options.faults.len() {
        sleep(BETWEEN).await;
        look_at_shards(field, &mut spans);
        let fault = options.faults[n % options.faults.len()];
        ended += strike(cluster, field, n % options.pods, fault, &mut spans).await?;
    }
    sleep(BETWEEN).await;
    look_at_shards(field, &mut spans);
    field.enough.cancel();
    let drained = drain(field, &mut publishing).await;
    ended += cluster.revive(|n, door| field.doors.lock()[n] = door).await?;
    let complete = |places: &ledger::Places| {
        let seen = |payload: &str| places.seen.contains_key(payload);
        field.ledger.lock().missing(seen).is_empty()
    };
    let first = clients::read_stream(field, complete).await?;
    let second = clients::read_stream(field, |places| places.messages.len() >= first.messages.len()).await?;
    let retained = keepers::read(field).await?;
    others.shutdown().await;
    foreign.end().await;
    let mut ledger = std::mem::take(&mut *field.ledger.lock());
    if !drained {
        let open = field.open.load(Ordering::Relaxed);
        ledger.problem(format!("{open} publishes were not acknowledged within {} s", DRAIN_MAX.as_secs()));
    }
    ledger.audit(&first, &second);
    ledger.audit_retained(&retained);
    let struck = spans.into_iter().map(|span| Struck {
        fault: span.fault,
        outages: ledger.without_service(publishers, span.from, span.until),
        shards: span.shards,
    });
    let struck = struck.collect();
    Ok(report(&mut ledger, field.twins.lock().connections, ended, struck))
}

/// One fault, and what begins and ends it.
async fn strike(
    cluster: &mut Cluster,
    field: &Field,
    victim: usize,
    fault: Fault,
    spans: &mut Vec<Span>,
) -> Result<u64> {
    let from = field.clock.now();
    let door = |door| field.doors.lock()[victim] = door;
    let said = cluster.strike(victim, fault, door).await.with_context(|| fault.name().to_owned())?;
    if let Some(said) = said {
        field.ledger.lock().problem(format!("pod {victim}, {}: {said}", fault.name()));
    }
    let until = field.clock.now();
    field.twins.lock().calm = Some(until);
    spans.push(Span { fault, victim, from, until, shards: ShardOutages::default() });
    cluster.revive(|n, door| field.doors.lock()[n] = door).await
}

/// What the last fault, if there was one, was to the shards until now.
fn look_at_shards(field: &Field, spans: &mut [Span]) {
    let now = field.clock.now();
    if let Some(span) = spans.last_mut() {
        let victim = (span.fault != Fault::StoreRestart).then_some(span.victim);
        span.shards = field.probes.take(victim, span.from, now);
    }
}

/// Waits until all is acknowledged and has arrived. Says whether all was acknowledged; what did not arrive is found by
/// the audit.
async fn drain(field: &Field, publishing: &mut JoinSet<()>) -> bool {
    let all = async { while publishing.join_next().await.is_some() {} };
    let acknowledged = tokio::time::timeout(DRAIN_MAX, all).await.is_ok();
    publishing.shutdown().await;
    let arrived = async {
        while !field.ledger.lock().has_arrived() {
            sleep(ASKED_EACH).await;
        }
    };
    // What is still missing then is told of by the audit.
    let _ = tokio::time::timeout(DRAIN_MAX, arrived).await;
    acknowledged
}

fn report(ledger: &mut Ledger, fights: u64, ended: u64, struck: Vec<Struck>) -> Report {
    let waited = |payload: &&String| {
        let published = &ledger.published[*payload];
        published.acknowledged - published.sent > FAILED
    };
    let failed: Vec<String> = ledger.published.keys().filter(waited).take(10).cloned().collect();
    let count = ledger.published.keys().filter(waited).count();
    if count > 0 {
        ledger.problem(format!("{count} publishes had no success within 30 s, such as {failed:?}"));
    }
    let mut refused: Vec<String> = ledger.refused.values().cloned().collect();
    refused.sort_unstable();
    Report {
        problems: ledger.problems(),
        acknowledged: ledger.published.len() as u64,
        refused,
        failed: count as u64,
        fights,
        redelivered: ledger.queue.again,
        ended,
        struck,
    }
}

impl Report {
    /// Fails if a promise was broken.
    pub fn check(&self) -> Result<()> {
        ensure!(self.problems.is_empty(), "{}\n{self}", self.problems.join("\n"));
        Ok(())
    }
}

/// For each kind of fault how long shards and publishers were without service, and what else was counted.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| fault | times | shards without service: p50, p90, p99, max | publishers, to the next acknowledgement | \
             publishers, slowest publish |"
        )?;
        writeln!(f, "|---|---|---|---|---|")?;
        let mut kinds: Vec<Fault> = self.struck.iter().map(|struck| struck.fault).collect();
        kinds.sort_unstable();
        kinds.dedup();
        for fault in kinds {
            let struck: Vec<&Struck> = self.struck.iter().filter(|struck| struck.fault == fault).collect();
            let outages = || struck.iter().flat_map(|struck| &struck.outages);
            let next = outages().filter_map(|outage| outage.next).collect();
            let slowest = outages().map(|outage| outage.slowest).collect();
            let interrupted: Vec<Duration> =
                struck.iter().flat_map(|struck| struck.shards.outages.iter().copied()).collect();
            let of: usize = struck.iter().map(|struck| struck.shards.of).sum();
            let shards = match of {
                0 => "not looked at".to_owned(),
                _ => format!("{} of {of}: {}", interrupted.len(), distribution(interrupted)),
            };
            let (next, slowest) = (distribution(next), distribution(slowest));
            writeln!(f, "| {} | {} | {shards} | {next} | {slowest} |", fault.name(), struck.len())?;
        }
        writeln!(
            f,
            "\n{} publishes acknowledged, {} refused and sent again, {} without success within 30 s; {} deliveries of \
             the queue again; {} connections of one client id; {} pods ended by themselves",
            self.acknowledged,
            self.refused.len(),
            self.failed,
            self.redelivered,
            self.fights,
            self.ended
        )
    }
}

/// Median, 90th and 99th percentile and maximum in milliseconds.
fn distribution(mut of: Vec<Duration>) -> String {
    of.sort_unstable();
    let at = |percent: usize| of.get((of.len() * percent / 100).min(of.len().saturating_sub(1)));
    let shown = |of: Option<&Duration>| of.map_or("-".to_owned(), |of| format!("{} ms", of.as_millis()));
    format!("{}, {}, {}, {}", shown(at(50)), shown(at(90)), shown(at(99)), shown(of.last()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_of_all_values() {
        assert_eq!(distribution(Vec::new()), "-, -, -, -");
        let millis = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(distribution(millis), "101 ms, 181 ms, 199 ms, 200 ms");
    }
}
