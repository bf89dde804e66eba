//! A queue with all that it can do, under publishers, consumers, restarts and store faults as they come: against what
//! the outside knows. A run depends on its seed alone; a failing one prints it.
//!
//! Every message ends in exactly one way, and is counted: acknowledged, dead-lettered or dropped for a reason its
//! owner gave. Where nothing is lost by chance (no faults, no crashes) every count is compared exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::{DeadLetterTarget, Definition, Kind, Ordering, Overflow, Strategy};
use weir_core::key::Publisher;
use weir_core::message::Message;
use weir_core::queue::{Lost, QueueDelivery, Verdict};
use weir_core::shard::AppendError;
use weir_env::clock::{Clock, Instant, Timestamp};
use weir_env::seed::{Seed, trials};
use weir_storage::{FaultHandle, FaultRates, FaultStore, SharedStore};

use crate::model::{Trace, Weather, assert_replays, simulate};
use crate::support::{TestConsumer, definition, in_memory, memory, message, text};

const SEEDS: u64 = 200;
const STEPS: u64 = 60;
const KEYS: u64 = 4;
const CONSUMERS_MAX: usize = 5;
/// Between two looks at what was delivered: well below every time-out, so that what is looked at is still held.
const SLICE: Duration = Duration::from_millis(20);
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
const DEDUP_WINDOW: Duration = Duration::from_secs(30);
/// Acknowledgements are in the store after this time, if that does not fail.
const ACK_DELAY: Duration = Duration::from_millis(10);

/// What became of a publish, as far as its publisher knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Accepted,
    Refused,
    Nothing,
}

#[derive(Debug)]
struct Sent {
    key: u64,
    told: Told,
    not_before: Timestamp,
    expires: Option<Timestamp>,
}

/// A message that a consumer has and has not settled.
struct Held {
    payload: String,
    delivery: QueueDelivery,
    consumer: u64,
    at: Instant,
}

/// Counts of a queue over all shards.
#[derive(Debug, Default)]
struct Totals {
    depth: u64,
    acknowledged: u64,
    dead_lettered: u64,
    /// For whatever reason.
    dropped: u64,
}

struct World {
    weather: Weather,
    seed: Seed,
    store: SharedStore,
    faults: FaultHandle,
    clock: Clock,
    definition: Definition,
    sent: BTreeMap<String, Sent>,
    /// Publishes that may be repeated, and when they were first sent.
    dedup: Vec<(String, Message, Instant)>,
    held: Vec<Held>,
    consumers: BTreeMap<u64, TestConsumer>,
    /// Payloads that a consumer acknowledged, and when it did so first.
    acked: BTreeMap<String, Instant>,
    /// Those acknowledged after their time was over: it counts if they had not ended otherwise meanwhile.
    acked_late: BTreeSet<String>,
    dead: BTreeSet<String>,
    delivered: BTreeSet<String>,
    crashed_at: Option<Instant>,
    /// When deliveries were last looked at: what is found was handed out since.
    looked_at: Timestamp,
    trace: Trace,
}

/// A queue of one of the kinds there are.
fn shape(seed: &Seed) -> Definition {
    let mut queue = definition(Kind::Queue, "q", "a/+", 1 + u8::try_from(seed.below(3)).unwrap());
    let dispatch = &mut queue.dispatch;
    dispatch.strategy = [Strategy::Random, Strategy::RoundRobin, Strategy::LeastInflight]
        [usize::try_from(seed.below(3)).unwrap()];
    dispatch.ack_timeout_ms = u64::try_from(ACK_TIMEOUT.as_millis()).unwrap();
    dispatch.max_deliveries = [0, 3][usize::try_from(seed.below(2)).unwrap()];
    dispatch.backoff_initial_ms = 100;
    dispatch.backoff_max_ms = 1000;
    let settings = &mut queue.queue;
    settings.dedup_window_ms = u64::try_from(DEDUP_WINDOW.as_millis()).unwrap();
    if seed.below(2) == 0 {
        settings.dead_letter = Some(DeadLetterTarget::Object("dead".into()));
    }
    match seed.below(4) {
        0 => settings.ordering = Ordering::Key,
        1 => queue.last_value = true,
        _ => {}
    }
    match seed.below(4) {
        0 => queue.retention.max_messages = 12 * u64::from(queue.shards),
        1 => {
            queue.retention.max_messages = 12 * u64::from(queue.shards);
            queue.queue.overflow = Overflow::DropOldest;
        }
        2 => queue.retention.max_age_ms = 20_000,
        _ => {}
    }
    queue
}

fn dead_letters() -> Definition {
    Definition { topic_filter: None, ..definition(Kind::Queue, "dead", "a/+", 1) }
}

impl World {
    fn new(seed: u64, store: fn() -> (SharedStore, Clock)) -> Self {
        let weather = [Weather::Fair, Weather::Fair, Weather::Crashes, Weather::Storm]
            [usize::try_from(seed % 4).unwrap()];
        let (store, clock) = store();
        let seed = Seed::fixed(seed);
        let store = FaultStore::wrap(store, seed.fork("faults"));
        Self {
            weather,
            faults: store.handle(),
            store: Arc::new(store),
            clock,
            definition: shape(&seed.fork("shape")),
            seed: seed.fork("world"),
            sent: BTreeMap::new(),
            dedup: Vec::new(),
            held: Vec::new(),
            consumers: BTreeMap::new(),
            acked: BTreeMap::new(),
            acked_late: BTreeSet::new(),
            dead: BTreeSet::new(),
            delivered: BTreeSet::new(),
            crashed_at: None,
            looked_at: clock.wall(),
            trace: Trace::default(),
        }
    }

    fn note(&mut self, what: String) {
        self.trace.note(self.clock, &what);
    }

    fn chance(&self, n: u64) -> bool {
        self.seed.below(n) == 0
    }

    async fn open(&mut self) -> Core {
        loop {
            let seed = self.seed.next_u64();
            let metrics = weir_core::metrics::Metrics::default();
            let core = Core::open(Arc::clone(&self.store), self.clock, &Seed::fixed(seed), metrics).await;
            match core {
                Ok(core) => return core,
                Err(error) => self.note(format!("open: {error}")),
            }
        }
    }

    fn queue(core: &Core, name: &str) -> Arc<Object> {
        core.catalog().view().find(Kind::Queue, name).unwrap()
    }

    /// Publishes a few messages, one after the other, and waits for all of them, or not long enough.
    async fn publish(&mut self, core: &Core) {
        let mut receipts = Vec::new();
        for _ in 0..=self.seed.below(6) {
            let (payload, publish) = self.next_publish();
            self.note(format!("publish {payload} {:?}", publish.properties.user));
            let targets = core.targets(&publish.topic);
            match core.append(&targets, &publish, &Publisher::default(), None).await {
                Ok(receipt) => receipts.push((payload, receipt)),
                Err(error) => self.note(format!("{payload}: {error}")),
            }
        }
        let patience = self.weather.patience(&self.seed);
        for (payload, receipt) in receipts {
            let answer = tokio::time::timeout(patience, receipt.settled()).await;
            let told = match answer {
                Err(_) => Told::Nothing,
                Ok(failures) => match failures.first() {
                    None => Told::Accepted,
                    Some((_, AppendError::Full { .. })) => Told::Refused,
                    Some((_, error @ AppendError::Invalid { .. })) => panic!("{payload}: {error}"),
                    Some((_, AppendError::Failed(error))) => {
                        assert_ne!(self.weather, Weather::Fair, "{payload}: {error}");
                        Told::Nothing
                    }
                },
            };
            self.note(format!("{payload}: {told:?}"));
            // A repeat of a publish that is there is told so, whatever the first try was told.
            let sent = self.sent.get_mut(&payload).unwrap();
            if sent.told != Told::Accepted {
                sent.told = told;
            }
        }
    }

    fn next_publish(&mut self) -> (String, Message) {
        let keyed = self.definition.last_value || self.definition.queue.ordering == Ordering::Key;
        self.dedup.retain(|(payload, _, at)| {
            self.clock.now().saturating_duration_since(*at) < DEDUP_WINDOW / 2
                && self.sent[payload].told != Told::Refused
        });
        if !self.dedup.is_empty() && self.chance(4) {
            let n = usize::try_from(self.seed.below(self.dedup.len() as u64)).unwrap();
            let (payload, repeat, _) = self.dedup[n].clone();
            return (payload, repeat);
        }
        let key = self.seed.below(KEYS);
        let payload = format!("k{key}-{:04}", self.sent.len());
        let mut publish = message(self.clock, &format!("a/{key}"), &payload);
        let mut not_before = publish.published_at;
        let user = &mut publish.properties.user;
        if self.chance(4) {
            let id = format!("id-{payload}");
            user.push(("queue-dedup-id".into(), id.into()));
        }
        if !keyed && self.chance(4) {
            user.push(("queue-priority".into(), self.seed.below(10).to_string().into()));
        }
        if !keyed && self.chance(6) {
            let delay = self.seed.below(3000);
            user.push(("queue-delay".into(), delay.to_string().into()));
            not_before = not_before.saturating_add(Duration::from_millis(delay));
        }
        if self.chance(8) {
            let expiry = Duration::from_millis(500 + self.seed.below(20_000));
            publish.expires_at = Some(publish.published_at.saturating_add(expiry));
        }
        if publish.properties.user.iter().any(|(name, _)| name == "queue-dedup-id") {
            self.dedup.push((payload.clone(), publish.clone(), self.clock.now()));
        }
        let sent = Sent { key, told: Told::Nothing, not_before, expires: publish.expires_at };
        self.sent.insert(payload.clone(), sent);
        (payload, publish)
    }

    /// Lets time pass, and looks at what is delivered meanwhile.
    async fn pass(&mut self, time: Duration) {
        let end = self.clock.now() + time;
        while self.clock.now() < end {
            tokio::time::sleep(SLICE).await;
            self.receive();
        }
    }

    fn receive(&mut self) {
        let mut received = Vec::new();
        for (id, consumer) in &mut self.consumers {
            while let Ok(delivery) = consumer.deliveries.try_recv() {
                received.push((*id, delivery));
            }
        }
        for (consumer, delivery) in received {
            self.check_delivery(consumer, &delivery);
            let payload = text(&delivery);
            self.delivered.insert(payload.clone());
            self.held.push(Held { payload, delivery, consumer, at: self.clock.now() });
        }
        self.looked_at = self.clock.wall();
    }

    fn check_delivery(&mut self, consumer: u64, delivery: &QueueDelivery) {
        let payload = text(delivery);
        let (now, wall) = (self.clock.now(), self.clock.wall());
        self.note(format!("{consumer} got {payload} #{}", delivery.delivery_count));
        let sent = &self.sent[&payload];
        assert_ne!(sent.told, Told::Refused, "{payload} was refused");
        assert!(sent.not_before <= wall, "{payload} came before its time");
        let is_expired = sent.expires.is_some_and(|at| at < self.looked_at);
        assert!(!is_expired, "{payload} had expired");
        let most = self.definition.dispatch.max_deliveries;
        assert!(
            most == 0 || delivery.delivery_count <= most,
            "{payload} came {} times",
            delivery.delivery_count
        );
        assert!(!self.dead.contains(&payload), "{payload} is a dead letter");
        if let Some(at) = self.acked.get(&payload) {
            match (self.weather, self.crashed_at) {
                (Weather::Crashes, Some(crash)) => {
                    assert!(*at + ACK_DELAY > crash, "{payload} was acknowledged before the crash");
                }
                (Weather::Storm, _) => {}
                _ => panic!("{payload} was acknowledged"),
            }
        }
        let live = |held: &&Held| held.at + ACK_TIMEOUT > now + SLICE;
        let again = self.held.iter().filter(live).find(|held| held.payload == payload);
        assert!(again.is_none() || self.weather == Weather::Storm, "{payload} is with two consumers");
        if self.definition.queue.ordering == Ordering::Key && self.weather != Weather::Storm {
            let key = sent.key;
            // Of a message that has two consumers, one after the other, the first may acknowledge it late.
            let is_over = |held: &Held| {
                self.acked.contains_key(&held.payload) || self.acked_late.contains(&held.payload)
            };
            let mut others = self.held.iter().filter(live).filter(|held| !is_over(held));
            let other = others.find(|held| self.sent[&held.payload].key == key);
            assert!(other.is_none(), "{payload} came beside {:?}", other.map(|held| &held.payload));
            let overtaken = self.sent.range(format!("k{key}-")..payload.clone()).find(|(earlier, sent)| {
                sent.told == Told::Accepted
                    && sent.expires.is_none()
                    && self.definition.retention.max_messages == 0
                    && self.definition.retention.max_age_ms == 0
                    && !self.delivered.contains(*earlier)
            });
            assert!(overtaken.is_none(), "{payload} overtook {overtaken:?}");
        }
    }

    /// Consumers say something of some of what they hold.
    async fn settle(&mut self, core: &Core) {
        for held in std::mem::take(&mut self.held) {
            let verdict = match self.seed.below(12) {
                0..=3 => None,
                4 => Some(Verdict::Rejected),
                5 => Some(Verdict::Returned),
                _ => Some(Verdict::Acknowledged),
            };
            let Some(verdict) = verdict else {
                self.held.push(held);
                continue;
            };
            self.note(format!("{} says {verdict:?} of {}", held.consumer, held.payload));
            if verdict == Verdict::Acknowledged {
                if held.at + ACK_TIMEOUT > self.clock.now() + SLICE * 2 {
                    self.acked.entry(held.payload.clone()).or_insert(self.clock.now());
                } else {
                    self.acked_late.insert(held.payload.clone());
                }
            }
            if let Some(consumer) = self.consumers.get(&held.consumer) {
                consumer.settle(core, &held.delivery, verdict).await;
            }
        }
    }

    async fn attach(&mut self, core: &Core) {
        if self.consumers.len() >= CONSUMERS_MAX {
            return;
        }
        let (id, window) = (self.seed.next_u64(), 1 + u32::try_from(self.seed.below(8)).unwrap());
        match TestConsumer::try_attach(core, &Self::queue(core, "q"), id, window).await {
            Ok(consumer) => drop(self.consumers.insert(id, consumer)),
            Err(error) => self.note(format!("attach: {error}")),
        }
    }

    async fn detach(&mut self, core: &Core) {
        let Some((id, _)) = self.consumers.pop_first() else { return };
        let lost = if self.chance(2) { Lost::Left } else { Lost::Vanished };
        self.note(format!("{id} goes: {lost:?}"));
        core.detach(&Self::queue(core, "q"), weir_core::queue::ConsumerId(id), lost).await.unwrap();
        self.held.retain(|held| held.consumer != id);
    }

    /// What a broker says of a queue, over all shards.
    async fn report(core: &Core, name: &str) -> Totals {
        let mut all = Totals::default();
        for report in core.describe(&Self::queue(core, name)).await.unwrap() {
            let queue = report.queue.unwrap();
            all.depth += queue.depth;
            all.acknowledged += queue.counters.acknowledged;
            all.dead_lettered += queue.counters.dead_lettered;
            all.dropped += queue.counters.done() - queue.counters.acknowledged - queue.counters.dead_lettered;
        }
        all
    }

    /// One life of a broker.
    async fn live(&mut self) {
        if self.weather == Weather::Storm {
            let profiles = [FaultRates::calm(), FaultRates::rough(), FaultRates::hostile()];
            self.faults.set_rates(profiles[usize::try_from(self.seed.below(3)).unwrap()]);
        }
        let core = self.open().await;
        for _ in 0..self.seed.below(STEPS) {
            match self.seed.below(10) {
                0..=2 => self.publish(&core).await,
                3 => self.attach(&core).await,
                4 if self.chance(2) => self.detach(&core).await,
                5 if self.chance(3) => self.pass(ACK_TIMEOUT + SLICE * 2).await,
                _ => {
                    self.receive();
                    self.settle(&core).await;
                    let time = self.seed.below(400);
                    self.pass(Duration::from_millis(time)).await;
                }
            }
        }
        self.receive();
        let orderly = self.weather == Weather::Fair || self.chance(3) && self.weather != Weather::Storm;
        if orderly {
            for id in std::mem::take(&mut self.consumers).into_keys() {
                let id = weir_core::queue::ConsumerId(id);
                core.detach(&Self::queue(&core, "q"), id, Lost::Left).await.unwrap();
            }
            core.close().await;
            self.note("end".into());
        } else {
            drop(core);
            self.crashed_at = Some(self.clock.now());
            self.note("crash".into());
        }
        self.consumers.clear();
        self.held.clear();
    }

    /// Acknowledges all that is left, here and among the dead letters, until nothing is.
    async fn drain(&mut self, core: &Core) {
        let dead_queue = Self::queue(core, "dead");
        let mut dead = TestConsumer::attach(core, &dead_queue, 1, 50).await;
        let consumer = TestConsumer::attach(core, &Self::queue(core, "q"), 2, 50).await;
        self.consumers.insert(2, consumer);
        for _ in 0..2000 {
            self.pass(SLICE * 5).await;
            for held in std::mem::take(&mut self.held) {
                self.acked.entry(held.payload.clone()).or_insert(self.clock.now());
                self.consumers[&2].ack(core, &held.delivery).await;
            }
            while let Ok(delivery) = dead.deliveries.try_recv() {
                let payload = text(&delivery);
                self.note(format!("dead letter {payload} at {}", delivery.offset));
                assert!(
                    self.dead.insert(payload.clone()),
                    "{payload} is a dead letter twice: {:?}",
                    Self::report(core, "q").await
                );
                self.check_dead_letter(&delivery);
                dead.ack(core, &delivery).await;
            }
            let left = Self::report(core, "q").await.depth + Self::report(core, "dead").await.depth;
            if left == 0 {
                return;
            }
        }
        let left = (Self::report(core, "q").await, Self::report(core, "dead").await);
        panic!("something is never delivered: {left:?}");
    }

    fn check_dead_letter(&self, delivery: &QueueDelivery) {
        let user = &delivery.record.message.properties.user;
        let value =
            |name: &str| user.iter().rfind(|(key, _)| *key == *name).map(|(_, value)| value.to_string());
        let reason = value("dead-letter-reason").unwrap();
        let reasons = ["rejected", "timeout", "disconnected", "expired", "overflow"];
        assert!(reasons.contains(&reason.as_str()), "{reason}");
        assert_eq!(value("dead-letter-queue").as_deref(), Some("q"));
        assert!(value("original-topic").unwrap().starts_with("a/"));
    }

    async fn settle_and_check(&mut self) {
        self.faults.heal();
        self.faults.settle().await;
        self.note("the last life".into());
        let core = self.open().await;
        let before = Self::report(&core, "q").await;
        self.drain(&core).await;
        let (queue, dead) = (Self::report(&core, "q").await, Self::report(&core, "dead").await);
        self.note(format!("{queue:?}"));
        core.close().await;
        let dropped = queue.dropped;
        let ended = queue.acknowledged + queue.dead_lettered + dropped;
        let told = |told: Told| self.sent.values().filter(|sent| sent.told == told).count() as u64;
        let (accepted, unknown) = (told(Told::Accepted), told(Told::Nothing));
        assert!(accepted <= ended && ended <= accepted + unknown, "{accepted} + {unknown} in, {ended} out");
        assert!(before.depth <= ended);
        // A crash between the two steps of dead-lettering may show a message to a consumer once more, which takes it.
        let both = self.dead.iter().filter(|payload| self.acked.contains_key(*payload)).count() as u64;
        let slack = if self.weather == Weather::Storm { both } else { 0 };
        assert!(queue.dead_lettered <= dead.acknowledged && dead.acknowledged <= queue.dead_lettered + slack);
        assert_eq!(dead.acknowledged, self.dead.len() as u64);
        let seen = |payload: &&String| self.acked.contains_key(*payload) || self.dead.contains(*payload);
        let of_unknown_end: Vec<&String> = self
            .sent
            .iter()
            .filter(|(_, sent)| sent.told == Told::Accepted)
            .map(|(payload, _)| payload)
            .filter(|payload| !seen(payload))
            .collect();
        let surely_gone = of_unknown_end.iter().filter(|payload| !self.acked_late.contains(**payload));
        assert!(surely_gone.count() as u64 <= dropped, "lost: {of_unknown_end:?}, {dropped} dropped");
        if self.weather == Weather::Fair {
            assert_eq!(unknown, 0);
            let late =
                of_unknown_end.iter().filter(|payload| self.acked_late.contains(**payload)).count() as u64;
            let (acked, gone) = (self.acked.len() as u64, of_unknown_end.len() as u64);
            assert!((acked..=acked + late).contains(&queue.acknowledged), "{acked} + {late}: {queue:?}");
            assert!((gone - late..=gone).contains(&dropped), "{queue:?}: {of_unknown_end:?}");
        }
    }
}

async fn run(seed: u64, store: fn() -> (SharedStore, Clock)) -> Vec<String> {
    let mut world = World::new(seed, store);
    let core = world.open().await;
    let definitions = [world.definition.clone(), dead_letters()];
    core.apply(&definitions).await.unwrap();
    core.close().await;
    world.note(format!("{:?} {:?}", world.weather, world.definition));
    for _ in 0..3 {
        world.live().await;
    }
    world.settle_and_check().await;
    world.trace.take()
}

#[test]
fn every_message_ends_in_one_way_and_is_counted() {
    for trial in trials(SEEDS) {
        simulate(run(trial.seed(), memory));
    }
}

#[test]
fn the_same_seed_is_the_same_history() {
    assert_replays(|seed| run(seed, in_memory));
}
