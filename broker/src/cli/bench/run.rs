//! One run from the first connection to the last: starts the workers, watches the counts, stops everybody.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::CommonArgs;
use super::cost::StoreCost;
use super::latency::Latencies;
use super::plan::{IdlePlan, Plan, PublisherPlan, SubscriberPlan};
use super::report::{self, Outcome, Times};
use super::shared::{Counts, Member, Phase, Shared, read};
use super::usage::{Processes, Used};
use super::{idle, publisher, subscriber};
use crate::client::Endpoint;

/// Longest wait until all connections are made.
const SETUP_MAX: Duration = Duration::from_mins(1);
/// Silence after which what has not arrived counts as lost.
const QUIET: Duration = Duration::from_secs(3);
/// How often the counts are looked at.
const TICK: Duration = Duration::from_millis(20);
/// Time from the last connection to the first message.
const LEAD: Duration = Duration::from_millis(100);
/// Time that connections get to end.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// What one connection does.
#[derive(Debug)]
enum Role {
    Publisher(PublisherPlan),
    Subscriber(SubscriberPlan),
    Idle(IdlePlan),
}

/// Runs `plan` and says what came of it. `run` marks its messages.
pub(super) fn execute(plan: &Plan, common: &CommonArgs, run: u64) -> anyhow::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shared = Arc::new(Shared::new(common.broker.clone(), plan, run)?);
    if !common.allow_remote {
        runtime.block_on(check_loopback(common))?;
    }
    let mut workers = Workers::spawn(plan, &shared, common.threads.into())?;
    let executed = runtime.block_on(async {
        tokio::select! {
            controlled = control(plan, &shared, &mut workers, common) => controlled,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                eprintln!("interrupted");
                let now = shared.now();
                Ok((Times { started: now, set_up: 0 }, Used::default(), None))
            }
        }
    });
    shared.set_phase(Phase::Stop);
    workers.join();
    let (times, used, cost) = executed?;
    workers.collect();
    Ok(Outcome::new(plan, &shared, workers.total, times, used, cost))
}

async fn check_loopback(common: &CommonArgs) -> anyhow::Result<()> {
    let endpoint = &common.broker.url;
    let Endpoint::Net { host, port, .. } = endpoint else { return Ok(()) };
    let addresses = tokio::net::lookup_host((host.as_str(), *port)).await;
    for address in addresses.with_context(|| format!("look up {endpoint}"))? {
        ensure!(
            address.ip().is_loopback(),
            "{endpoint} is not on this machine; to load it all the same, add --allow-remote"
        );
    }
    Ok(())
}

/// Follows the run to its end; returns when it started, and what processes used and the store had to do from then on.
/// Idle connections are what is measured, so making them counts.
async fn control(
    plan: &Plan,
    shared: &Shared,
    workers: &mut Workers,
    common: &CommonArgs,
) -> anyhow::Result<(Times, Used, Option<StoreCost>)> {
    let counts = &shared.counts;
    let processes = Processes { broker: common.broker_pid };
    let mut cost_before = store_cost(common).await?;
    let (setup_start, mut before) = (shared.now(), processes.read());
    set_up(shared, workers.members).await?;
    let set_up = shared.now() - setup_start;
    if plan.idle == 0 {
        cost_before = store_cost(common).await?;
    }
    let start = shared.clock.now() + LEAD;
    let end = start + plan.duration;
    shared.set_phase(Phase::Run { start, end });
    tokio::time::sleep_until(start).await;
    if plan.idle == 0 {
        before = processes.read();
    }

    let mut progress = Progress::new(start);
    let mut highest = None;
    loop {
        let now = shared.clock.now();
        if now >= progress.next {
            workers.collect();
            progress.print(now, counts, &workers.interval, plan);
        }
        let published = read(&counts.published) == plan.publishers.len() as u64;
        if read(&counts.ended) >= workers.members || (published && is_over(plan, shared, start, now)) {
            break;
        }
        highest = highest.max(processes.broker_memory());
        tokio::time::sleep(TICK).await;
    }
    let started = if plan.idle > 0 { setup_start } else { shared.nanos(start) };
    let used = processes.read().since(&before).with_highest(highest);
    // What was measured counts also if the broker is gone by now.
    let cost_after = store_cost(common).await.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        None
    });
    let cost = cost_after.zip(cost_before).map(|(after, before)| after.since(&before));
    Ok((Times { started, set_up }, used, cost))
}

/// What the broker's store had to do so far, if the broker is to be asked.
async fn store_cost(common: &CommonArgs) -> anyhow::Result<Option<StoreCost>> {
    match &common.http {
        Some(address) => StoreCost::read(address).await.map(Some),
        None => Ok(None),
    }
}

async fn set_up(shared: &Shared, members: u64) -> anyhow::Result<()> {
    let give_up = shared.clock.now() + SETUP_MAX;
    while read(&shared.counts.ready) < members {
        if read(&shared.counts.errors) > 0 {
            bail!(shared.first_error().unwrap_or_default());
        }
        let ready = read(&shared.counts.ready);
        ensure!(shared.clock.now() < give_up, "only {ready} of {members} connections within {SETUP_MAX:?}");
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}

/// Whether nothing more is to be waited for, once all has been published.
fn is_over(plan: &Plan, shared: &Shared, start: Instant, now: Instant) -> bool {
    let end = start + plan.duration;
    if plan.subscribers.is_empty() {
        return plan.idle == 0 || now >= end;
    }
    if read(&shared.counts.received) >= expected(plan, &shared.counts) {
        return true;
    }
    let last = read(&shared.counts.last_received).max(read(&shared.counts.last_sent));
    let is_quiet = now.saturating_duration_since(shared.instant(last).max(start)) >= QUIET;
    if plan.publishers.is_empty() { now >= end || (is_quiet && plan.ends_in_silence) } else { is_quiet }
}

/// Deliveries that the run should see.
pub(super) fn expected(plan: &Plan, counts: &Counts) -> u64 {
    let published = plan.publishers.first().map_or(0, |publisher| match publisher.qos {
        weir_codec::QoS::AtMostOnce => read(&counts.sent),
        // What is not acknowledged may arrive or not.
        _ => read(&counts.acked),
    });
    (published + plan.stored) * plan.copies
}

/// The threads that carry the load.
struct Workers {
    threads: Vec<JoinHandle<()>>,
    latencies: Vec<Arc<Mutex<Latencies>>>,
    /// Connections of all threads.
    members: u64,
    /// What was recorded since the last [`Workers::collect`], and in all.
    interval: Latencies,
    total: Latencies,
}

impl Workers {
    fn spawn(plan: &Plan, shared: &Arc<Shared>, threads: usize) -> anyhow::Result<Self> {
        let subscribers = plan.subscribers.iter().cloned().map(Role::Subscriber);
        let publishers = plan.publishers.iter().cloned().map(Role::Publisher);
        let idle = (0..plan.idle).map(|_| Role::Idle(plan.idle_as.clone()));
        let roles: Vec<Role> = subscribers.chain(publishers).chain(idle).collect();
        let members = roles.len() as u64;
        let mut shares: Vec<Vec<(usize, Role)>> = (0..threads).map(|_| Vec::new()).collect();
        for (number, role) in roles.into_iter().enumerate() {
            shares[number % threads].push((number, role));
        }
        let mut workers = Self {
            threads: Vec::new(),
            latencies: Vec::new(),
            members,
            interval: Latencies::default(),
            total: Latencies::default(),
        };
        for share in shares {
            let latencies = Arc::<Mutex<Latencies>>::default();
            workers.latencies.push(Arc::clone(&latencies));
            let shared = Arc::clone(shared);
            let thread = std::thread::Builder::new().name("weir-bench".to_owned());
            workers
                .threads
                .push(thread.spawn(move || work(share, &shared, &latencies)).context("start a thread")?);
        }
        Ok(workers)
    }

    /// Takes what the workers have recorded.
    fn collect(&mut self) {
        self.interval.clear();
        for latencies in &self.latencies {
            let mut latencies = latencies.lock();
            self.interval.add(&latencies);
            latencies.clear();
        }
        self.total.add(&self.interval);
    }

    fn join(&mut self) {
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// The life of one thread: drives its connections until the last has ended.
fn work(share: Vec<(usize, Role)>, shared: &Arc<Shared>, latencies: &Arc<Mutex<Latencies>>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return shared.fail(&anyhow!(error)),
    };
    runtime.block_on(async {
        let mut connections = JoinSet::new();
        for (number, role) in share {
            let member = Member { shared: Arc::clone(shared), latencies: Arc::clone(latencies), number };
            connections.spawn(play(role, member));
        }
        let mut phases = shared.phases();
        tokio::select! {
            () = join_all(&mut connections) => return,
            () = Member::stopped(&mut phases) => {}
        }
        // What does not end in time is cut off when the set is dropped.
        let _ = tokio::time::timeout(CLOSE_MAX, join_all(&mut connections)).await;
    });
}

async fn join_all(connections: &mut JoinSet<()>) {
    while connections.join_next().await.is_some() {}
}

async fn play(role: Role, member: Member) {
    let shared = Arc::clone(&member.shared);
    let publishes = matches!(role, Role::Publisher(_));
    let played = match role {
        Role::Publisher(plan) => publisher::run(plan, member).await,
        Role::Subscriber(plan) => subscriber::run(plan, member).await,
        Role::Idle(plan) => idle::run(plan, member).await,
    };
    if let Err(error) = played {
        shared.fail(&error);
    }
    let count = |counter: &AtomicU64| super::shared::add(counter, 1);
    count(&shared.counts.ended);
    if publishes {
        count(&shared.counts.published);
    }
}

/// The line of each second.
struct Progress {
    start: Instant,
    next: Instant,
    last: Instant,
    sent: u64,
    received: u64,
}

impl Progress {
    fn new(start: Instant) -> Self {
        Self { start, next: start + Duration::from_secs(1), last: start, sent: 0, received: 0 }
    }

    fn print(&mut self, now: Instant, counts: &Counts, interval: &Latencies, plan: &Plan) {
        let seconds = (now - self.last).as_secs_f64();
        let (sent, received) = (read(&counts.sent), read(&counts.received) + read(&counts.foreign));
        let mut line = format!("{:>4}s", (now - self.start).as_secs());
        if plan.idle > 0 {
            line.push_str(&format!("  connections {}", read(&counts.ready) - read(&counts.ended)));
        }
        if !plan.publishers.is_empty() {
            line.push_str(&format!("  sent {}/s", report::rate(sent - self.sent, seconds)));
        }
        if !plan.subscribers.is_empty() {
            line.push_str(&format!("  received {}/s", report::rate(received - self.received, seconds)));
        }
        for (name, latency) in [("ack", &interval.ack), ("end to end", &interval.end_to_end)] {
            if !latency.is_empty() && plan.stored == 0 {
                line.push_str(&format!("  {name} p99 {}", report::nanos(latency.percentile(99.0))));
            }
        }
        let errors = read(&counts.errors);
        if errors > 0 {
            line.push_str(&format!("  errors {errors}"));
        }
        eprintln!("{line}");
        (self.sent, self.received, self.last) = (sent, received, now);
        self.next += Duration::from_secs(1);
    }
}
