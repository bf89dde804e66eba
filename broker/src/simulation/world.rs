//! One run: pods over a store that they share, clients of all kinds, and trouble, all of it out of one seed.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use weir_codec::QoS;
use weir_core::catalog::Object;
use weir_core::cluster::testing::MemoryNetwork;
use weir_core::definition::{Definition, DispatchSettings, Kind, QueueSettings, Retention};
use weir_core::shard::LogReport;
use weir_core::stream::{ReadOptions, Start};
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_storage::{FaultRates, Isolation, MemoryStore, RangeQuery, SharedStore};
use weir_topic::TopicFilter;

use super::client::{Client, Net, name_of};
use super::gate::Writers;
use super::history::{End, Event, History};
use super::live::SHADOW;
use super::movers;
use super::pod::{Ground, Pod, TTL};
use super::probers;
use super::publishers::Publisher;
use super::pumpers;
use super::subscribers::{Phase, Taker};
use super::testators;
use super::trouble::{Trouble, Troubles};

const PUBLISHERS: usize = 4;
const MESSAGES: u16 = 20;
/// Of a client with a will.
const CONNECTIONS: u16 = 6;
const PROBES: u16 = 10;
const VISITS: u16 = 4;
/// Of the consumer group.
const MOVES: u16 = 3;
/// Of publishes that do not wait for each other.
const BURSTS: u16 = 4;
/// Of each publisher once nothing goes wrong any more.
const LAST_MESSAGES: u16 = 6;
const LAST_PROBES: u16 = 4;
/// Nothing happens any more if nothing has happened for this long, and nothing is wrong.
const QUIET: Duration = Duration::from_secs(40);
/// By when all that was published has come, once nothing goes wrong any more.
const DRAINED: Duration = Duration::from_secs(900);
/// How often it is looked for pods that could not go on.
const LOOK: Duration = Duration::from_secs(1);
/// How long frames between pods take, if nothing is wrong.
const DELAY: Range<Duration> = Duration::from_micros(100)..Duration::from_millis(2);

/// How much goes wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    /// Clients alone do harm.
    Fair,
    /// Pods are killed, paused, stopped, and do not hear each other.
    Crashes,
    /// The store fails as well.
    Storm,
}

/// A run that goes on.
struct World {
    seed: Seed,
    weather: Weather,
    ground: Ground,
    net: Net,
    pods: Vec<Arc<Pod>>,
    started: usize,
    troubles: Troubles,
    /// Pods that end if they cannot go on.
    ending: JoinSet<()>,
    phase: watch::Sender<Phase>,
    clients: JoinSet<()>,
    publishers: JoinSet<()>,
}

/// Carries out the run of `seed`, with so many pods at a time: what is there in the end.
pub(super) async fn run(seed: u64, pods: usize, history: &History) -> End {
    let mut world = World::new(seed, pods > 1, history);
    for _ in 0..pods {
        world.start_pod().await;
    }
    world.declare().await;
    world.start_clients();
    world.make_trouble().await;
    world.heal();
    world.publish_last().await;
    world.drain().await;
    world.finish().await
}

fn definition(kind: Kind, name: &str, shards: u8) -> Definition {
    Definition {
        kind,
        name: name.into(),
        namespace: "default".into(),
        object: name.into(),
        topic_filter: Some("in/#".into()),
        shards,
        key: None,
        retention: Retention::default(),
        dispatch: DispatchSettings {
            ack_timeout_ms: 5_000,
            max_deliveries: 0,
            backoff_initial_ms: 20,
            backoff_max_ms: 1_000,
            ..DispatchSettings::default()
        },
        last_value: false,
        queue: QueueSettings::default(),
        group_expiry_ms: 0,
        delete_data: true,
    }
}

/// How much the store was used, to the last commit, and what is left in it, to the last byte.
async fn left_in(store: &SharedStore) -> String {
    let mut tx = store.begin();
    let version = tx.read_version().await.unwrap();
    // Not as maps hash, whose seed is the process's.
    let mut digest: u64 = 0xcbf2_9ce4_8422_2325;
    let mut rows = 0;
    let mut query = RangeQuery::new([], [0xff]);
    loop {
        let page = tx.get_range(query.clone(), Isolation::Snapshot).await.unwrap();
        for (key, value) in &page.pairs {
            rows += 1;
            for byte in key.iter().chain(value) {
                digest = (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        match query.after(&page) {
            Some(next) => query = next,
            None => break format!("ends at {version:?} with {rows} rows, {digest:016x}"),
        }
    }
}

impl World {
    fn new(seed: u64, is_cluster: bool, history: &History) -> Self {
        let clock = Clock::simulated(Timestamp::from_micros(1_700_000_000_000_000));
        let weather = [Weather::Fair, Weather::Crashes, Weather::Storm][usize::try_from(seed % 3).unwrap()];
        history.set_clock(clock);
        let store = Arc::new(MemoryStore::new(clock));
        let network = is_cluster.then(|| {
            let network = MemoryNetwork::new(clock, &Seed::fixed(seed));
            network.set_delay(DELAY);
            network
        });
        let ground = Ground { store, clock, writers: Writers::default(), history: history.clone(), network };
        Self {
            seed: Seed::fixed(seed),
            weather,
            net: Net::default(),
            pods: Vec::new(),
            started: 0,
            troubles: Troubles::new(ground.network.clone(), DELAY, history.clone()),
            ending: JoinSet::new(),
            ground,
            phase: watch::Sender::new(Phase::Busy),
            clients: JoinSet::new(),
            publishers: JoinSet::new(),
        }
    }

    fn below(&self, bound: u64) -> u64 {
        self.seed.below(bound)
    }

    fn rates(&self) -> FaultRates {
        match self.weather {
            Weather::Fair | Weather::Crashes => FaultRates::NONE,
            Weather::Storm if *self.phase.borrow() != Phase::Busy => FaultRates::NONE,
            Weather::Storm => FaultRates::rough(),
        }
    }

    async fn start_pod(&mut self) {
        let seed = self.seed.fork(&format!("pod {}", self.started));
        let pod = Arc::new(Pod::start(&self.ground, self.started, &seed, self.rates()).await);
        self.started += 1;
        self.net.add(&pod);
        let ending = Arc::clone(&pod);
        self.ending.spawn(async move { ending.end_by_itself().await });
        self.pods.push(pod);
    }

    async fn declare(&self) {
        let definitions = [definition(Kind::Queue, "q", 2), definition(Kind::Stream, "s", 2)];
        while let Err(error) = self.pods[0].broker.core.apply(&definitions).await {
            self.ground.history.note(Event::Trouble(format!("not declared: {error}")));
        }
    }

    fn client(&self, id: &str) -> Client {
        Client::new(id, &self.seed.fork("clients"), &self.net, &self.ground.history)
    }

    fn start_clients(&mut self) {
        for n in 0..PUBLISHERS {
            let publisher = Publisher::new(self.client(&format!("publisher-{n}")));
            self.publishers.spawn(publisher.run(MESSAGES, false, |n| format!("in/{}", n % 5)));
        }
        let keeper = Publisher::new(self.client("keeper"));
        self.publishers.spawn(keeper.run(MESSAGES, true, |n| format!("keep/{}", n % 2)));
        self.publishers.spawn(pumpers::run(self.client("pumper"), BURSTS));
        self.publishers.spawn(testators::run(self.client("testator"), CONNECTIONS));
        for (id, delay) in [("visitor-prompt", 0), ("visitor-late", testators::DELAY)] {
            self.publishers.spawn(testators::visit(self.client(id), VISITS, delay));
        }
        self.publishers.spawn(movers::run(self.client("mover"), "s", "g", MOVES));
        let (inward, outward) = (self.client("prober-in"), self.client("prober-out"));
        self.publishers.spawn(probers::run(inward, outward, PROBES));
        let earliest = &[("stream-offset", "earliest")][..];
        let takers = [
            ("consumer-1", "$queue/q", QoS::AtLeastOnce, &[][..], false),
            ("consumer-2", "$queue/q", QoS::AtLeastOnce, &[][..], false),
            ("inbox-1", "in/#", QoS::AtLeastOnce, &[][..], true),
            ("inbox-2", "in/#", QoS::ExactlyOnce, &[][..], true),
            ("reader-lasting", "$stream/s", QoS::AtLeastOnce, earliest, true),
            ("member-1", "$share/g/$stream/s", QoS::AtLeastOnce, earliest, false),
            ("member-2", "$share/g/$stream/s", QoS::AtLeastOnce, earliest, false),
            ("reader-anew", "$stream/s", QoS::AtMostOnce, earliest, false),
            ("live-1", "in/#", QoS::AtLeastOnce, &[][..], false),
            ("live-2", "in/#", QoS::ExactlyOnce, &[][..], false),
            ("shared-1", "$share/h/in/#", QoS::ExactlyOnce, &[][..], false),
            ("shared-2", "$share/h/in/#", QoS::ExactlyOnce, &[][..], false),
            ("lasting-1", "$share/l/in/#", QoS::ExactlyOnce, &[][..], true),
            ("lasting-2", "$share/l/in/#", QoS::ExactlyOnce, &[][..], true),
        ];
        for (id, filter, qos, properties, persistent) in takers {
            let taker = Taker::new(self.client(id), &self.phase.subscribe(), filter, qos, properties);
            self.clients.spawn(taker.run(persistent));
        }
    }

    /// Until all is published.
    async fn make_trouble(&mut self) {
        let clock = self.ground.clock;
        let limit = clock.now() + DRAINED;
        let mut next = clock.now();
        while !self.publishers.is_empty() {
            let wake = self.troubles.next_end().into_iter().chain([next, clock.now() + LOOK]).min();
            let wake = wake.expect("is one of three");
            if let Ok(Some(ended)) = tokio::time::timeout_at(wake, self.publishers.join_next()).await {
                ended.unwrap();
                continue;
            }
            assert!(clock.now() < limit, "publishers do not come to an end");
            self.troubles.end_until(clock.now(), &self.pods);
            self.replace_ended().await;
            if clock.now() >= next {
                if self.weather != Weather::Fair {
                    self.make_one_trouble().await;
                }
                next = clock.now() + Duration::from_millis(200 + self.below(4000));
            }
        }
    }

    fn any_pod(&self) -> Arc<Pod> {
        Arc::clone(&self.pods[usize::try_from(self.below(self.pods.len() as u64)).unwrap()])
    }

    async fn make_one_trouble(&mut self) {
        let (pod, other) = (self.any_pod(), self.any_pod());
        let (one, two) = (pod.number, other.number);
        let between = if one == two { 4 } else { 7 };
        if self.below(2) == 0 {
            // Else nothing is on its way, as a rule.
            let _ = tokio::time::timeout(LOOK, pod.commit_sent()).await;
        }
        match self.below(between) {
            0 => {
                pod.kill();
                self.replace(&pod).await;
            }
            1 if !pod.is_held() => {
                self.net.remove(&pod);
                pod.stop().await;
                self.replace(&pod).await;
            }
            1 | 2 => self.begin(Trouble::Paused(one), TTL / 2..TTL * 3),
            3 => {
                self.ground.history.note(Event::Trouble(format!("clients of {one} are cut off")));
                pod.cut();
            }
            4 => self.begin(Trouble::Apart(one, two), LOOK..TTL * 2),
            5 => self.begin(Trouble::Deaf { from: one, to: two }, LOOK..TTL * 2),
            _ => self.begin(Trouble::Slow(one, two), LOOK..TTL * 2),
        }
    }

    fn begin(&mut self, trouble: Trouble, lasts: Range<Duration>) {
        let span = u64::try_from((lasts.end - lasts.start).as_micros()).unwrap();
        let until = self.ground.clock.now() + lasts.start + Duration::from_micros(self.below(span));
        self.ground.history.note(Event::Trouble(format!("{trouble:?}")));
        self.troubles.begin(trouble, until, &self.pods);
    }

    async fn replace(&mut self, pod: &Pod) {
        self.net.remove(pod);
        self.pods.retain(|other| other.number != pod.number);
        // Often about when others take over what it had.
        let millis = if self.below(2) == 0 { 500 + self.below(500) } else { self.below(2000) };
        tokio::time::sleep(Duration::from_millis(millis)).await;
        self.start_pod().await;
    }

    /// Puts others in the place of pods that could not go on.
    async fn replace_ended(&mut self) {
        while let Some(pod) = self.pods.iter().find(|pod| pod.ends()).cloned() {
            self.replace(&pod).await;
        }
    }

    fn heal(&mut self) {
        self.phase.send_replace(Phase::Draining);
        self.troubles.end_all(&self.pods);
        for pod in &self.pods {
            pod.set_rates(FaultRates::NONE);
        }
        self.ground.history.note(Event::Trouble("is over".to_owned()));
    }

    /// As before, when all is well again: whatever pods have missed shows by what does not come.
    async fn publish_last(&mut self) {
        let clock = self.ground.clock;
        let well = clock.now() + SHADOW + LOOK * 2;
        while clock.now() < well {
            tokio::time::sleep(LOOK).await;
            self.replace_ended().await;
        }
        for n in 0..PUBLISHERS {
            let publisher = Publisher::new(self.client(&format!("late-{n}")));
            self.publishers.spawn(publisher.run(LAST_MESSAGES, false, |n| format!("in/{}", n % 5)));
        }
        let (inward, outward) = (self.client("prober-in-late"), self.client("prober-out-late"));
        self.publishers.spawn(probers::run(inward, outward, LAST_PROBES));
        let limit = clock.now() + DRAINED;
        while !self.publishers.is_empty() {
            assert!(clock.now() < limit, "publishers do not come to an end");
            if let Ok(Some(ended)) = tokio::time::timeout(LOOK, self.publishers.join_next()).await {
                ended.unwrap();
            }
            self.replace_ended().await;
        }
    }

    /// Until nothing comes any more.
    async fn drain(&mut self) {
        let clock = self.ground.clock;
        let limit = clock.now() + DRAINED;
        let mut before = 0;
        loop {
            let until = clock.now() + QUIET;
            while clock.now() < until {
                tokio::time::sleep(LOOK).await;
                self.replace_ended().await;
            }
            let now = self.ground.history.progress();
            if now == before {
                break;
            }
            assert!(clock.now() < limit, "messages come without end");
            before = now;
        }
    }

    async fn finish(mut self) -> End {
        self.phase.send_replace(Phase::Over);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        let end = self.look().await;
        for pod in &self.pods {
            pod.stop().await;
        }
        let left = left_in(&self.ground.store).await;
        self.ground.history.note(Event::Trouble(left));
        end
    }

    /// An owner may have gone a moment ago.
    async fn described(&self, queue: &Arc<Object>) -> Vec<LogReport> {
        let limit = self.ground.clock.now() + DRAINED;
        loop {
            match self.pods[0].broker.core.describe(queue).await {
                Ok(reports) => break reports,
                Err(error) => {
                    assert!(self.ground.clock.now() < limit, "the queue is not described: {error}");
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
    }

    async fn look(&self) -> End {
        let core = &self.pods[0].broker.core;
        let find = |kind, name: &str| -> Arc<Object> { core.catalog().view().find(kind, name).unwrap() };
        let (queue, stream) = (find(Kind::Queue, "q"), find(Kind::Stream, "s"));
        let mut end = End::default();
        for report in self.described(&queue).await {
            let queue = report.queue.unwrap();
            let [accepted, acknowledged] = [report.extent.next, queue.counters.acknowledged];
            end.queue.push([accepted, queue.depth, acknowledged, queue.counters.done()]);
        }
        if let Err(error) = self.read_stream(&stream, &mut end).await {
            end.unseen.push(format!("stream: a pod that is well does not read it: {error}"));
        }
        let filter = TopicFilter::parse("keep/#".to_owned()).unwrap();
        let retained = &self.pods[0].broker.retained;
        for message in retained.matching(&filter, None, 100, 1 << 20).await.unwrap().messages {
            let payload = name_of(&message.payload);
            end.retained.insert(message.topic.to_string(), payload);
        }
        end
    }

    async fn read_stream(&self, stream: &Arc<Object>, end: &mut End) -> weir_core::Result<()> {
        let until = Some(Start::Latest);
        let options = ReadOptions { start: Start::Earliest, until, ..ReadOptions::default() };
        let mut reader = self.pods[0].broker.core.reader(stream, &options).await?;
        while !reader.is_ended() {
            let batch = reader.next().await?;
            for (offset, record) in batch.records {
                let payload = name_of(&record.message.payload);
                end.stream.insert((batch.log.shard, offset), payload);
            }
        }
        Ok(())
    }
}
