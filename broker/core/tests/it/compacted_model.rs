//! A compacted stream under publishers, readers, crashes and store faults as they come, against a map. A run depends
//! on its seed alone; a failing one prints it.
//!
//! What a reader gets from the first message on is the map: of each key the newest message. Whoever applies what
//! comes in the order in which it comes, and goes on at its position after it was away, has that map too.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::Kind;
use weir_core::shard::TOMBSTONE_KEPT;
use weir_core::stream::Start;
use weir_env::clock::Clock;
use weir_env::seed::{Seed, trials};
use weir_storage::{FaultHandle, FaultRates, FaultStore, SharedStore};

use crate::compacted::{check_rows, compacted, read};
use crate::support::{in_memory, memory, open, publish};

const SEEDS: u64 = 150;
const LIVES: u64 = 5;
const STEPS: u64 = 30;
const KEYS: u64 = 5;

/// The number of a message; none for a tombstone.
type Value = Option<u64>;

struct World {
    seed: Seed,
    store: SharedStore,
    faults: FaultHandle,
    rates: FaultRates,
    clock: Clock,
    published: u64,
    /// By topic, in the order of the publishes: what, and whether its publisher was told that it is durable.
    sent: BTreeMap<String, Vec<(Value, bool)>>,
    /// What one who follows the stream has made of it, and up to where.
    followed: BTreeMap<String, Value>,
    position: u64,
    trace: String,
}

impl World {
    fn new(seed: u64, store: fn() -> (SharedStore, Clock)) -> Self {
        let (store, clock) = store();
        let profiles =
            [FaultRates::uniform(15), FaultRates::calm(), FaultRates::rough(), FaultRates::hostile()];
        let rates = profiles[usize::try_from(seed % 4).unwrap()];
        let seed = Seed::fixed(seed);
        let store = FaultStore::wrap(store, seed.fork("faults"));
        Self {
            faults: store.handle(),
            rates,
            store: Arc::new(store),
            clock,
            seed: seed.fork("world"),
            published: 0,
            sent: BTreeMap::new(),
            followed: BTreeMap::new(),
            position: 0,
            trace: String::new(),
        }
    }

    fn note(&mut self, what: &str) {
        writeln!(self.trace, "{} {what}", self.clock.wall()).unwrap();
    }

    async fn open(&mut self) -> (Core, Arc<Object>) {
        self.faults.heal();
        self.faults.settle().await;
        let core = open(&self.store, self.clock, self.seed.next_u64()).await;
        let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
        (core, stream)
    }

    /// Publishes a few messages at once, some of one key, and gives up waiting at a random moment.
    async fn publish(&mut self, core: &Core) {
        let mut messages = Vec::new();
        for _ in 0..=self.seed.below(8) {
            self.published += 1;
            let topic = format!("a/{}", self.seed.below(KEYS));
            let value = (self.seed.below(4) != 0).then_some(self.published);
            let large = if self.seed.below(8) == 0 { 70_000 } else { 0 };
            let payload = value.map_or(String::new(), |n| format!("{n}{}", " ".repeat(large)));
            messages.push((topic, value, payload));
        }
        let patience = Duration::from_millis(1 + self.seed.below(2000));
        let results = join_all(messages.iter().map(|(topic, _, payload)| {
            tokio::time::timeout(patience, publish(core, self.clock, topic, payload))
        }));
        for ((topic, value, _), result) in messages.iter().zip(results.await) {
            self.note(&format!("{topic} {value:?}: {result:?}"));
            let is_accepted = matches!(result, Ok(Ok(())));
            self.sent.entry(topic.clone()).or_default().push((*value, is_accepted));
        }
    }

    /// Reads on from where the one who follows was.
    async fn follow(&mut self, core: &Core, stream: &Arc<Object>) {
        for (offset, topic, payload) in read(core, stream, &Start::Offset(self.position)).await {
            assert!(offset >= self.position, "{offset} comes after {}", self.position);
            self.position = offset + 1;
            self.followed.insert(topic, value_of(&payload));
        }
    }

    /// One life of a pod, from opening the store to a crash.
    async fn live(&mut self) {
        let (core, stream) = self.open().await;
        self.faults.set_rates(self.rates);
        for _ in 0..self.seed.below(STEPS) {
            match self.seed.below(12) {
                0..=6 => self.publish(&core).await,
                7 | 8 => tokio::time::sleep(Duration::from_millis(self.seed.below(500))).await,
                9 => {
                    self.faults.heal();
                    self.faults.settle().await;
                    // What its publisher no longer waits for is there too.
                    tokio::time::sleep(Duration::from_secs(20)).await;
                    self.follow(&core, &stream).await;
                    // Beyond the time of tombstones that all who follow have seen.
                    tokio::time::sleep(Duration::from_secs(self.seed.below(30 * 3600))).await;
                    self.follow(&core, &stream).await;
                    self.faults.set_rates(self.rates);
                }
                _ => tokio::time::sleep(Duration::from_secs(self.seed.below(60))).await,
            }
        }
        self.note("crash");
    }

    async fn settle_and_check(&mut self) {
        let (core, stream) = self.open().await;
        core.describe(&stream).await.unwrap();
        // An owner of an earlier life may not know yet that nobody is left who asks it for anything.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let state = read(&core, &stream, &Start::Earliest).await;
        assert_eq!(state, read(&core, &stream, &Start::Earliest).await, "two reads are the same");
        check_rows(&self.store, &stream.logs[0], false).await;
        let map: BTreeMap<String, Value> =
            state.iter().map(|(_, topic, payload)| (topic.clone(), value_of(payload))).collect();
        assert_eq!(map.len(), state.len(), "one message of each key");
        for (topic, sent) in &self.sent {
            let newest = sent.iter().rposition(|(_, is_accepted)| *is_accepted).unwrap_or(0);
            let last = map.get(topic).copied().flatten();
            // What a publisher was told nothing of may have come, and later than it was sent.
            let is_one = sent[newest..].iter().any(|(value, _)| *value == last)
                || sent.iter().any(|(value, is_accepted)| *value == last && !is_accepted);
            assert!(is_one, "{topic} is {last:?}, accepted was {:?}", sent[newest]);
        }
        self.follow(&core, &stream).await;
        let live = |map: &BTreeMap<String, Value>| -> BTreeMap<String, u64> {
            map.iter().filter_map(|(topic, value)| value.map(|value| (topic.clone(), value))).collect()
        };
        assert_eq!(live(&self.followed), live(&map), "who follows has the same");
        tokio::time::sleep(TOMBSTONE_KEPT + Duration::from_secs(5)).await;
        let swept = read(&core, &stream, &Start::Earliest).await;
        assert!(swept.iter().all(|(.., payload)| !payload.is_empty()), "tombstones go");
        let swept: BTreeMap<String, Value> =
            swept.into_iter().map(|(_, topic, payload)| (topic, value_of(&payload))).collect();
        assert_eq!(live(&swept), live(&map), "{}", self.trace);
        check_rows(&self.store, &stream.logs[0], false).await;
        self.note(&format!("{map:?} at {}", self.position));
        core.close().await;
    }
}

fn value_of(payload: &str) -> Value {
    (!payload.is_empty()).then(|| payload.trim().parse().unwrap())
}

async fn run(seed: u64, store: fn() -> (SharedStore, Clock)) -> String {
    let mut world = World::new(seed, store);
    let core = open(&world.store, world.clock, world.seed.next_u64()).await;
    core.apply(&[compacted(1)]).await.unwrap();
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
fn the_stream_is_the_map_in_any_weather() {
    for trial in trials(SEEDS) {
        simulate(trial.seed(), memory);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let trace = simulate(3, in_memory);
    assert!(trace.lines().count() > 30, "{trace}");
    assert_eq!(trace, simulate(3, in_memory));
}
