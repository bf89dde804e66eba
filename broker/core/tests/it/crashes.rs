//! Crashes at random moments over a store with random faults. A run depends on its seed alone; a failing one
//! prints it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::core::Options;
use weir_core::definition::{Definition, Kind};
use weir_core::keyspace::aside;
use weir_core::metrics::Metrics;
use weir_core::queue::{Lag, Lost, Verdict};
use weir_env::clock::Clock;
use weir_env::seed::{Seed, trials};
use weir_storage::{FaultHandle, FaultRates, FaultStore, Isolation, RangeQuery, SharedStore};

use crate::faults::contents;
use crate::support::{TestConsumer, definition, in_memory, memory, open, publish, text};

const SEEDS: u64 = 100;
const LIVES: u64 = 6;
const STEPS: u64 = 40;

/// What the outside world knows, and what it has seen.
struct World {
    seed: Seed,
    store: SharedStore,
    faults: FaultHandle,
    rates: FaultRates,
    /// In some worlds so small that most messages that wait for something are moved out of their log.
    lag: Lag,
    /// Of this life.
    metrics: Metrics,
    clock: Clock,
    published: u64,
    /// Payloads whose publisher was told that they are durable.
    accepted: BTreeSet<String>,
    /// Payloads that a consumer acknowledged.
    acked: BTreeSet<String>,
    /// Of those, the ones of this life.
    acked_now: BTreeSet<String>,
    /// Those acknowledged long before the end of a life: they are never seen again.
    surely_acked: BTreeSet<String>,
    trace: String,
}

impl World {
    fn new(seed: u64, store: fn() -> (SharedStore, Clock)) -> Self {
        let (store, clock) = store();
        let profiles =
            [FaultRates::uniform(15), FaultRates::calm(), FaultRates::rough(), FaultRates::hostile()];
        let rates = profiles[usize::try_from(seed % 4).unwrap()];
        let lag = if seed.is_multiple_of(3) { Lag::default() } else { Lag { offsets: seed % 5, bytes: 0 } };
        let seed = Seed::fixed(seed);
        let store = FaultStore::wrap(store, seed.fork("faults"));
        Self {
            faults: store.handle(),
            rates,
            lag,
            metrics: Metrics::default(),
            store: Arc::new(store),
            clock,
            seed: seed.fork("world"),
            published: 0,
            accepted: BTreeSet::new(),
            acked: BTreeSet::new(),
            acked_now: BTreeSet::new(),
            surely_acked: BTreeSet::new(),
            trace: String::new(),
        }
    }

    fn note(&mut self, what: &str) {
        writeln!(self.trace, "{} {what}", self.clock.wall()).unwrap();
    }

    async fn open(&mut self) -> Core {
        loop {
            let seed = Seed::fixed(self.seed.next_u64());
            self.metrics = Metrics::default();
            let (store, metrics) = (Arc::clone(&self.store), self.metrics.clone());
            let options = Options { lag: self.lag, ..Options::default() };
            let core = Core::open_with(store, self.clock, &seed, metrics, options).await;
            match core {
                Ok(core) => return core,
                Err(error) => self.note(&format!("open: {error}")),
            }
        }
    }

    /// Publishes a few messages at once and gives up waiting at a random moment.
    async fn publish(&mut self, core: &Core) {
        let count = 1 + self.seed.below(8);
        let payloads: Vec<String> = (0..count).map(|n| format!("m{}", self.published + n)).collect();
        self.published += count;
        let patience = Duration::from_millis(1 + self.seed.below(2000));
        let publish = |payload: String| async {
            let topic = format!("a/{}", payload.len());
            let result = tokio::time::timeout(patience, publish(core, self.clock, &topic, &payload)).await;
            (payload, result)
        };
        for (payload, result) in join_all(payloads.into_iter().map(publish)).await {
            self.note(&format!("{payload}: {result:?}"));
            if matches!(result, Ok(Ok(()))) {
                self.accepted.insert(payload);
            }
        }
    }

    /// Takes what there is for `consumer`, and acknowledges, refuses or keeps it.
    async fn consume(&mut self, core: &Core, consumer: &mut TestConsumer) {
        while let Ok(delivery) = consumer.deliveries.try_recv() {
            let payload = text(&delivery);
            self.note(&format!("got {payload} #{}", delivery.delivery_count));
            assert!(!self.surely_acked.contains(&payload), "{payload} was acknowledged long ago");
            match self.seed.below(10) {
                0 => {}
                1 => consumer.settle(core, &delivery, Verdict::Rejected).await,
                _ => {
                    self.acked.insert(payload.clone());
                    self.acked_now.insert(payload);
                    consumer.ack(core, &delivery).await;
                }
            }
        }
    }

    /// One life of a pod, from opening the store to a crash.
    async fn live(&mut self) {
        self.faults.set_rates(self.rates);
        let core = self.open().await;
        let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
        let mut consumers: BTreeMap<u64, TestConsumer> = BTreeMap::new();
        for _ in 0..self.seed.below(STEPS) {
            match self.seed.below(10) {
                0..=3 => self.publish(&core).await,
                4 if consumers.len() < 3 => {
                    let id = self.seed.next_u64();
                    match TestConsumer::try_attach(&core, &queue, id, 5).await {
                        Ok(consumer) => drop(consumers.insert(id, consumer)),
                        Err(error) => self.note(&format!("attach: {error}")),
                    }
                }
                5 => {
                    if let Some((_, consumer)) = consumers.pop_first() {
                        let lost = if self.seed.below(2) == 0 { Lost::Left } else { Lost::Vanished };
                        core.detach(&queue, consumer.consumer.id, lost).await.unwrap();
                    }
                }
                6 => {
                    self.faults.heal();
                    self.faults.settle().await;
                    tokio::time::sleep(Duration::from_secs(20)).await;
                    // What was acknowledged and not yet written is forgotten with a shard, as in a crash.
                    let lost = self.metrics.shards_lost.get();
                    if lost > 0 {
                        self.acked_now.clear();
                    }
                    // What was on its way twice has arrived twice.
                    for consumer in consumers.values_mut() {
                        self.consume(&core, consumer).await;
                    }
                    tokio::time::sleep(Duration::from_secs(20)).await;
                    if self.metrics.shards_lost.get() > lost {
                        // To an owner of an earlier life: its commit on the way was only met by that of these.
                        self.acked_now.clear();
                    }
                    self.surely_acked.append(&mut self.acked_now);
                    self.faults.set_rates(self.rates);
                }
                _ => {
                    for consumer in consumers.values_mut() {
                        self.consume(&core, consumer).await;
                    }
                    tokio::time::sleep(Duration::from_millis(self.seed.below(500))).await;
                }
            }
        }
        self.acked_now.clear();
        self.note("crash");
    }

    /// Of each topic, the newest message is left in the last-value queue that nobody consumed, or a newer one.
    async fn check_last_values(&self, core: &Core) {
        let queue = core.catalog().view().find(Kind::Queue, "l").unwrap();
        let reports = core.describe(&queue).await.unwrap();
        let depth: u64 = reports.iter().map(|report| report.queue.as_ref().unwrap().depth).sum();
        let mut consumer = TestConsumer::attach(core, &queue, 2, 50).await;
        let mut left = BTreeMap::new();
        for _ in 0..depth {
            let delivery = consumer.next().await;
            let payload = text(&delivery);
            let topic = delivery.record.message.topic.as_str().to_owned();
            let n: u64 = payload[1..].parse().unwrap();
            assert_eq!(left.insert(topic, n), None, "two messages of a key are left");
            consumer.ack(core, &delivery).await;
        }
        consumer.nothing().await;
        for payload in &self.accepted {
            let n: u64 = payload[1..].parse().unwrap();
            let topic = format!("a/{}", payload.len());
            // One whose publisher was told nothing may have come later, from an owner that did not know of its end.
            let is_newer = |last: &u64| *last >= n || !self.accepted.contains(&format!("m{last}"));
            assert!(left.get(&topic).is_some_and(is_newer), "{payload} was lost, left are {left:?}");
        }
    }

    /// What is left, with a store that has recovered.
    async fn settle_and_check(&mut self) {
        self.faults.heal();
        self.faults.settle().await;
        let core = open(&self.store, self.clock, self.seed.next_u64()).await;
        let view = core.catalog().view();
        let (stream, queue) = (view.find(Kind::Stream, "s").unwrap(), view.find(Kind::Queue, "q").unwrap());
        for object in [&stream, &queue] {
            let payloads = contents(&self.store, object).await;
            let mut distinct: BTreeSet<String> = payloads.iter().cloned().collect();
            assert_eq!(distinct.len(), payloads.len(), "a message is there twice");
            distinct.extend(moved_aside(&self.store, object).await);
            // Of a queue, what is done may have been removed.
            let is_done =
                |payload: &&String| object.definition.kind == Kind::Queue && self.acked.contains(*payload);
            let lost: Vec<&String> =
                self.accepted.difference(&distinct).filter(|payload| !is_done(payload)).collect();
            assert!(lost.is_empty(), "acknowledged and not in {}: {lost:?}", object.definition.name);
        }
        let mut appended = contents(&self.store, &queue).await;
        appended.extend(moved_aside(&self.store, &queue).await);
        self.check_last_values(&core).await;
        let mut depth = 0;
        for report in core.describe(&queue).await.unwrap() {
            let queue = report.queue.unwrap();
            assert_eq!(queue.depth, report.extent.next - queue.counters.done());
            depth += queue.depth;
        }
        let mut consumer = TestConsumer::attach(&core, &queue, 1, 50).await;
        let mut left = BTreeSet::new();
        for _ in 0..depth {
            let delivery = consumer.next().await;
            let payload = text(&delivery);
            assert!(!self.surely_acked.contains(&payload), "{payload} was acknowledged long ago");
            assert!(left.insert(payload.clone()), "{payload} was delivered twice");
            consumer.ack(&core, &delivery).await;
        }
        consumer.nothing().await;
        for payload in appended {
            assert!(left.contains(&payload) || self.acked.contains(&payload), "{payload} was lost");
        }
        self.note(&format!("{} accepted, {} left", self.accepted.len(), left.len()));
        core.close().await;
    }
}

/// Messages of `object` that are in rows of their own.
async fn moved_aside(store: &SharedStore, object: &Object) -> Vec<String> {
    let mut payloads = Vec::new();
    for log in &object.logs {
        let (begin, end) = aside::range_from(log, 0);
        let query =
            RangeQuery { begin: begin.into(), end: end.into(), limit: 0, target_bytes: 0, reverse: false };
        for (_, value) in store.begin().get_range(query, Isolation::Snapshot).await.unwrap().pairs {
            let payload = aside::decode(value).unwrap().message.payload;
            payloads.push(String::from_utf8(payload.to_vec()).unwrap());
        }
    }
    payloads
}

async fn run(seed: u64, store: fn() -> (SharedStore, Clock)) -> String {
    let mut world = World::new(seed, store);
    let core = world.open().await;
    let mut queue = definition(Kind::Queue, "q", "a/+", 2);
    queue.dispatch.max_deliveries = 0;
    let last_values = Definition { last_value: true, ..definition(Kind::Queue, "l", "a/+", 2) };
    core.apply(&[definition(Kind::Stream, "s", "a/+", 2), queue, last_values]).await.unwrap();
    drop(core);
    for _ in 0..LIVES {
        world.live().await;
    }
    world.settle_and_check().await;
    world.trace
}

fn simulate(seed: u64, store: fn() -> (SharedStore, Clock)) -> String {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(run(seed, store))
}

#[test]
fn nothing_acknowledged_is_lost_in_any_crash() {
    for trial in trials(SEEDS) {
        simulate(trial.seed(), memory);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 1000, 1001, 1002] {
        let trace = simulate(seed, in_memory);
        assert!(trace.lines().count() > 50, "{trace}");
        assert_eq!(trace, simulate(seed, in_memory));
    }
}
