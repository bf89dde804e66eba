//! Pods over one store that do not talk to each other: who is a member, who owns what, and that never two own the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::cluster::links::{LinkOptions, Links};
use weir_core::cluster::network::{Identity, Peer};
use weir_core::cluster::testing::MemoryNetwork;
use weir_core::cluster::{Change, Cluster, ClusterOptions, FeedEvent, PodInfo, Topic};
use weir_core::core::Options;
use weir_core::definition::Kind;
use weir_core::keyspace::VirtualShard;
use weir_core::keyspace::change::{self, Floor};
use weir_core::keyspace::owner::{Owner, PodId};
use weir_core::metrics::{Metrics, PeerMetrics};
use weir_core::shard::read_segments;
use weir_env::clock::Clock;
use weir_env::seed::{Seed, trials};
use weir_storage::{FaultHandle, FaultRates, FaultStore, Isolation, RangeQuery, SharedStore};

use crate::support::{definition, in_memory, publish};

const SHARDS: u8 = 32;

fn options() -> ClusterOptions {
    ClusterOptions::new(PodInfo { peer: "peer".into(), ..PodInfo::default() })
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

struct Pod {
    core: Core,
    faults: FaultHandle,
    metrics: Metrics,
}

impl Pod {
    async fn join(store: &SharedStore, clock: Clock, seed: u64) -> Self {
        Self::join_with(store, clock, seed, options()).await
    }

    async fn join_with(store: &SharedStore, clock: Clock, seed: u64, cluster: ClusterOptions) -> Self {
        let store = FaultStore::wrap(Arc::clone(store), Seed::fixed(seed));
        let (faults, metrics) = (store.handle(), Metrics::default());
        let options = Options { cluster: Some(cluster), ..Options::default() };
        let seed = Seed::fixed(seed);
        let core = Core::open_with(Arc::new(store), clock, &seed, metrics.clone(), options).await.unwrap();
        Self { core, faults, metrics }
    }

    fn cluster(&self) -> &Cluster {
        self.core.cluster().unwrap()
    }

    fn id(&self) -> PodId {
        self.core.pod()
    }

    /// The pods that this one takes for members.
    fn sees(&self) -> BTreeSet<PodId> {
        self.cluster().view().pods.iter().map(|pod| pod.id).collect()
    }

    /// How many shards of `stream` this pod has, as it thinks.
    fn owned(&self, stream: &Object) -> usize {
        shards_of(stream).iter().filter(|vs| self.cluster().owner_of(**vs) == Some(self.id())).count()
    }

    fn has_failed(&self) -> bool {
        self.core.failed().now_or_never().is_some()
    }

    fn link(&self, network: &MemoryNetwork, clock: Clock) -> Links {
        let me = Identity { pod: self.id(), cluster: self.core.format().cluster_id };
        let (over, seed) = (Arc::new(network.clone()), Seed::fixed(9));
        let links = Links::new(me, over, clock, &seed, &PeerMetrics::default(), LinkOptions::default());
        network.attach(&links);
        self.cluster().talk_over(&links);
        links
    }

    /// Dead from one moment to the next.
    async fn kill(self) {
        self.cluster().stop().await;
    }
}

fn ids(pods: &[&Pod]) -> BTreeSet<PodId> {
    pods.iter().map(|pod| pod.id()).collect()
}

fn shards_of(stream: &Object) -> BTreeSet<VirtualShard> {
    stream.logs.iter().map(|log| log.vs).collect()
}

/// A pod with a stream `s` of topics below `a`.
async fn first(store: &SharedStore, clock: Clock, seed: u64) -> (Pod, Arc<Object>) {
    let pod = Pod::join(store, clock, seed).await;
    pod.core.apply(&[definition(Kind::Stream, "s", "a/#", SHARDS)]).await.unwrap();
    let stream = pod.core.catalog().view().find(Kind::Stream, "s").unwrap();
    (pod, stream)
}

/// Something in every shard, so that each has an owner.
async fn fill(pod: &Pod, clock: Clock) {
    for n in 0..400 {
        publish(&pod.core, clock, &format!("a/{n}"), "0").await.unwrap();
    }
}

/// Waits for what is to happen within `limit`.
async fn within(limit: Duration, mut happens: impl FnMut() -> bool) -> Duration {
    let begun = Clock::system().now();
    while !happens() {
        assert!(begun.elapsed() < limit, "not within {limit:?}");
        tokio::time::sleep(ms(10)).await;
    }
    begun.elapsed()
}

async fn owner_in_store(store: &SharedStore, vs: VirtualShard) -> Option<Owner> {
    let stored = store.begin().get(&Owner::key(vs), Isolation::Snapshot).await.unwrap();
    stored.map(|value| Owner::decode(value).unwrap())
}

#[tokio::test(start_paused = true)]
async fn pods_join_and_leave_and_everybody_knows() {
    let (store, clock) = in_memory();
    let a = Pod::join(&store, clock, 1).await;
    let b = Pod::join(&store, clock, 2).await;
    assert_eq!(b.sees(), ids(&[&a, &b]), "who joins knows the others at once");
    within(ms(300), || a.sees() == ids(&[&a, &b])).await;
    let c = Pod::join(&store, clock, 3).await;
    within(ms(300), || a.sees().len() == 3 && b.sees().len() == 3).await;
    let member = a.cluster().view().member(c.id()).cloned().unwrap();
    assert_eq!((member.info.peer.as_ref(), member.is_draining), ("peer", false));
    b.core.close().await;
    within(ms(300), || a.sees() == ids(&[&a, &c]) && c.sees() == ids(&[&a, &c])).await;
    assert!(!a.has_failed() && !b.has_failed() && !c.has_failed());
    assert_eq!(a.metrics.cluster.declared_dead.get() + c.metrics.cluster.declared_dead.get(), 0);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(a.sees(), ids(&[&a, &c]), "who lives is not declared dead");
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_signs_of_life_is_dead_after_its_ttl_or_soon_after_its_link_broke() {
    let (store, clock) = in_memory();
    let (a, b) = (Pod::join(&store, clock, 1).await, Pod::join(&store, clock, 2).await);
    let c = Pod::join(&store, clock, 3).await;
    tokio::time::sleep(ms(1000)).await;
    let gone = c.id();
    c.kill().await;
    let took = within(ms(6000), || !a.sees().contains(&gone)).await;
    assert!(took >= ms(4700), "{took:?}: not before its TTL is over");
    let d = Pod::join(&store, clock, 4).await;
    tokio::time::sleep(ms(1000)).await;
    // A broken link alone is no death.
    a.cluster().suspect(d.id());
    tokio::time::sleep(ms(5000)).await;
    assert!(a.sees().contains(&d.id()));
    a.cluster().trust(d.id());
    let gone = d.id();
    d.kill().await;
    a.cluster().suspect(gone);
    let took = within(ms(1200), || !b.sees().contains(&gone)).await;
    assert!(took >= ms(500), "{took:?}");
    assert_eq!(a.metrics.cluster.declared_dead.get() + b.metrics.cluster.declared_dead.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_store_kills_nobody() {
    let (store, clock) = in_memory();
    let (a, b) = (Pod::join(&store, clock, 1).await, Pod::join(&store, clock, 2).await);
    tokio::time::sleep(ms(2000)).await;
    b.faults.unavailable(true);
    // The last that `a` has seen of `b` is older than its TTL when the store is there again.
    tokio::time::sleep(ms(500)).await;
    a.faults.unavailable(true);
    let quiet = a.cluster().quiet();
    within(ms(3500), || *quiet.borrow()).await;
    assert!(a.cluster().is_quiet());
    tokio::time::sleep(Duration::from_secs(20)).await;
    // One of them has the store again before the other.
    a.faults.unavailable(false);
    tokio::time::sleep(ms(4000)).await;
    b.faults.unavailable(false);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!((a.sees(), b.sees()), (ids(&[&a, &b]), ids(&[&a, &b])));
    assert!(!a.has_failed() && !b.has_failed() && !*quiet.borrow() && !a.cluster().is_quiet());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_was_stopped_is_quiet_from_its_first_moment_on() {
    let (store, clock) = in_memory();
    let a = Pod::join(&store, clock, 1).await;
    tokio::time::sleep(ms(1000)).await;
    assert!(!a.cluster().is_quiet());
    // None of its tasks has a turn meanwhile.
    let mut stop = std::pin::pin!(tokio::time::advance(ms(3100)));
    let stopped = std::future::poll_fn(|context| Poll::Ready(stop.as_mut().poll(context))).await;
    assert!(stopped.is_pending() && a.cluster().is_quiet());
    stop.await;
    tokio::time::sleep(ms(500)).await;
    assert!(!a.cluster().is_quiet() && !a.has_failed());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_was_away_finds_itself_gone_and_cannot_commit() {
    let (store, clock) = in_memory();
    let (a, stream) = first(&store, clock, 1).await;
    fill(&a, clock).await;
    let all = shards_of(&stream).len();
    assert_eq!(a.owned(&stream), all);
    a.faults.unavailable(true);
    let b = Pod::join(&store, clock, 2).await;
    let quiet = a.cluster().quiet();
    within(ms(4000), || *quiet.borrow()).await;
    assert!(b.sees().contains(&a.id()), "quiet comes before death");
    within(ms(6000), || b.sees() == ids(&[&b])).await;
    within(ms(2000), || b.owned(&stream) == all).await;
    publish(&b.core, clock, "a/1", "b").await.unwrap();
    a.faults.unavailable(false);
    publish(&a.core, clock, "a/1", "never").await.unwrap_err();
    within(ms(2000), || a.has_failed()).await;
    for vs in shards_of(&stream) {
        assert_eq!(owner_in_store(&store, vs).await.unwrap().pod, b.id());
    }
    let mut stored = Vec::new();
    for log in &stream.logs {
        for (_, payload) in contents(&store, log).await {
            stored.push(payload);
        }
    }
    assert_eq!((stored.len(), stored.iter().filter(|payload| *payload == "b").count()), (401, 1));
}

/// Records of a log: the epoch of their segment, and the payload.
async fn contents(store: &SharedStore, log: &weir_core::keyspace::LogId) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    for mut segment in read_segments(store, log, 0, usize::MAX).await.unwrap() {
        let epoch = segment.header().epoch.0;
        while let Some((_, record)) = segment.next_record().unwrap() {
            found.push((epoch, String::from_utf8(record.message.payload.to_vec()).unwrap()));
        }
    }
    found
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_gets_its_share_little_by_little() {
    let (store, clock) = in_memory();
    let (a, stream) = first(&store, clock, 1).await;
    fill(&a, clock).await;
    let slowly = ClusterOptions { moves_per_second: 8, ..options() };
    drop(a);
    let (store, clock) = in_memory();
    let a = Pod::join_with(&store, clock, 1, slowly.clone()).await;
    a.core.apply(&[definition(Kind::Stream, "s", "a/#", SHARDS)]).await.unwrap();
    fill(&a, clock).await;
    let b = Pod::join_with(&store, clock, 2, slowly).await;
    let should = shards_of(&stream).iter().filter(|vs| b.cluster().should_own(**vs)).count();
    assert!(should >= 6, "there is something to move");
    let mut before = 0;
    for _ in 0..20 {
        tokio::time::sleep(ms(250)).await;
        let now = b.metrics.cluster.takeovers.get_or_create(&takeover("given")).get();
        assert!(now - before <= 4, "{} shards in a quarter of a second", now - before);
        before = now;
    }
    assert_eq!((b.owned(&stream), a.metrics.cluster.handed_over.get()), (should, should as u64));
    assert_eq!(a.owned(&stream), shards_of(&stream).len() - should);
    // Nothing was lost on the way, and each goes on where it is.
    for n in 0..400 {
        let topic = format!("a/{n}");
        let outcomes = [
            publish(&a.core, clock, &topic, "a").await.is_ok(),
            publish(&b.core, clock, &topic, "b").await.is_ok(),
        ];
        assert_eq!(outcomes.iter().filter(|ok| **ok).count(), 1, "{topic}: {outcomes:?}");
    }
}

fn takeover(reason: &'static str) -> weir_core::metrics::Takeover {
    weir_core::metrics::Takeover { reason }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_leaves_hands_everything_over_at_once() {
    let (store, clock) = in_memory();
    let (a, stream) = first(&store, clock, 1).await;
    fill(&a, clock).await;
    let b = Pod::join(&store, clock, 2).await;
    let all = shards_of(&stream).len();
    let handed = a.core.hand_over_all().await.unwrap();
    assert!(handed > 0);
    within(ms(1000), || b.owned(&stream) == all).await;
    assert!(b.cluster().view().member(a.id()).unwrap().is_draining);
    // In one transaction: those that were not moved before have one version.
    let mut versions: BTreeMap<u64, usize> = BTreeMap::new();
    let (begin, end) = change::range_after(weir_storage::Version(0));
    let page = store.begin().get_range(RangeQuery::new(begin, end), Isolation::Snapshot).await.unwrap();
    for (key, value) in page.pairs {
        if matches!(Change::decode(value).unwrap(), Change::Owner { pod, .. } if pod == b.id()) {
            *versions.entry(change::version_of(&key).unwrap().0).or_default() += 1;
        }
    }
    assert!(versions.values().any(|count| *count == handed), "{versions:?}");
    a.core.close().await;
    within(ms(500), || b.sees() == ids(&[&b])).await;
    fill(&b, clock).await;
    assert_eq!(b.metrics.cluster.takeovers.get_or_create(&takeover("dead")).get(), 0);
}

#[tokio::test(start_paused = true)]
async fn changes_come_in_order_and_who_has_missed_some_reads_again() {
    let (store, clock) = in_memory();
    let trimmed = ClusterOptions { changes_kept: Duration::from_secs(15), ..options() };
    let a = Pod::join_with(&store, clock, 1, trimmed.clone()).await;
    let b = Pod::join_with(&store, clock, 2, trimmed).await;
    let mut catalog = b.cluster().feed().subscribe(&[Topic::Catalog]);
    assert!(matches!(catalog.next().await, FeedEvent::Reload { .. }));
    let write = async |name: &str| {
        let mut tx = store.begin();
        for kind in [Kind::Queue, Kind::Stream] {
            a.cluster().feed().write(&mut *tx, &Change::Catalog { kind, name: name.into() });
        }
        tx.commit().await.unwrap().version
    };
    let version = write("x").await;
    let wait = a.cluster().wait_everywhere(version);
    tokio::pin!(wait);
    for expected in [Kind::Queue, Kind::Stream] {
        let FeedEvent::Change { version: of, change } = catalog.next().await else {
            panic!("nothing was missed")
        };
        assert_eq!((of, &*change), (version, &Change::Catalog { kind: expected, name: "x".into() }));
        tokio::time::sleep(ms(2000)).await;
        assert_eq!(wait.as_mut().now_or_never(), None, "it is in hand");
    }
    assert_eq!(catalog.next().now_or_never().map(drop), None);
    tokio::time::timeout(ms(1000), wait).await.unwrap();
    // While a pod is away, what it misses is trimmed.
    b.faults.unavailable(true);
    a.cluster().suspect(b.id());
    for n in 0..10 {
        write(&n.to_string()).await;
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    let floor = store.begin().get(&Floor::key(), Isolation::Snapshot).await.unwrap().unwrap();
    assert!(Floor::decode(floor).unwrap().0 > version);
    let (begin, end) = change::range_after(weir_storage::Version(0));
    let page = store.begin().get_range(RangeQuery::new(begin, end), Isolation::Snapshot).await.unwrap();
    assert!((2..=12).contains(&page.pairs.len()), "{} changes are kept", page.pairs.len());
    let reloads = b.metrics.cluster.reloads.get();
    b.faults.unavailable(false);
    assert!(matches!(catalog.next().await, FeedEvent::Reload { version: of } if of > version));
    assert_eq!(b.metrics.cluster.reloads.get(), reloads + 1);
}

#[tokio::test(start_paused = true)]
async fn who_trims_late_does_not_have_others_believe_that_nothing_is_missing() {
    let (store, clock) = in_memory();
    let (kept, interval) = (ms(500), ms(500));
    let trims = ClusterOptions { changes_kept: kept, trim_interval: interval, ..options() };
    let pod = Pod::join_with(&store, clock, 1, trims).await;
    let floor = async || {
        let floor = store.begin().get(&Floor::key(), Isolation::Snapshot).await.unwrap();
        floor.map(|floor| Floor::decode(floor).unwrap().0)
    };
    tokio::time::sleep(ms(3000)).await;
    let own = floor().await.expect("it trims");
    // Another one trims, which was the one to do so a moment before or after, and is further.
    let further = weir_storage::Version(own.0 + 3_000_000);
    let mut tx = store.begin();
    tx.set(&Floor::key(), &Floor(further).encode());
    tx.commit().await.unwrap();
    tokio::time::sleep(ms(1500)).await;
    assert_eq!(floor().await, Some(further));
    tokio::time::sleep(ms(5000)).await;
    assert!(floor().await > Some(further), "it goes on");
    pod.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn links_tell_at_once_what_signs_of_life_would() {
    let (store, clock) = in_memory();
    let (a, b) = (Pod::join(&store, clock, 1).await, Pod::join(&store, clock, 2).await);
    let network = MemoryNetwork::new(clock, &Seed::fixed(1));
    let linked: Vec<Links> = [&a, &b].map(|pod| pod.link(&network, clock)).into();
    within(ms(1000), || a.sees().len() == 2).await;
    let peers: Vec<Peer> =
        [&a, &b].map(|pod| Peer { pod: pod.id(), address: pod.id().to_string() }).into_iter().collect();
    linked.iter().for_each(|links| links.set_peers(&peers));
    within(ms(1000), || linked[0].is_up(b.id())).await;
    let mut catalog = b.cluster().feed().subscribe(&[Topic::Catalog]);
    catalog.next().await;
    assert_eq!(catalog.next().now_or_never().map(drop), None);
    for n in 0..20 {
        tokio::time::sleep(ms(13)).await;
        let mut tx = store.begin();
        let name = n.to_string().into();
        a.cluster().feed().write(&mut *tx, &Change::Catalog { kind: Kind::Queue, name });
        let version = tx.commit().await.unwrap().version;
        let applying = async {
            catalog.next().await;
            assert_eq!(catalog.next().now_or_never().map(drop), None);
        };
        let everywhere = tokio::time::timeout(ms(15), a.cluster().wait_everywhere(version));
        assert!(tokio::join!(applying, everywhere).1.is_ok(), "round {n}: no sign of life is waited for");
    }
    for links in linked {
        links.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn records_that_cannot_be_read_stop_nobody() {
    let (store, clock) = in_memory();
    let a = Pod::join(&store, clock, 1).await;
    let mut catalog = a.cluster().feed().subscribe(&[Topic::Catalog]);
    catalog.next().await;
    let mut tx = store.begin();
    let stranger = PodId([7; 16]);
    tx.set(&weir_core::keyspace::pod::Pod::key(stranger), b"\xffnewer");
    tx.set(&weir_core::keyspace::pod::Heartbeat::key(stranger), b"\xffnewer");
    tx.set(b"m-no-pod", b"x");
    tx.set(&Owner::key(VirtualShard(3)), b"\xff");
    tx.set_versionstamped_key(b"ce\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 2, b"\xff");
    a.cluster().feed().write(&mut *tx, &Change::PodJoined(stranger));
    tx.commit().await.unwrap();
    assert!(matches!(catalog.next().await, FeedEvent::Reload { .. }), "what was missed is not known");
    assert!(a.sees().contains(&stranger) && a.metrics.cluster.unreadable.get() == 1);
    let b = Pod::join(&store, clock, 2).await;
    within(ms(8000), || a.sees() == ids(&[&a, &b]) && b.sees() == ids(&[&a, &b])).await;
    assert!((0..256).all(|vs| a.cluster().view().assigned(VirtualShard(vs)) != Some(stranger)));
}

#[tokio::test(start_paused = true)]
async fn a_dead_pod_holds_up_nobody_who_waits_for_all() {
    let (store, clock) = in_memory();
    let (a, b) = (Pod::join(&store, clock, 1).await, Pod::join(&store, clock, 2).await);
    let mut tx = store.begin();
    a.cluster().feed().write(&mut *tx, &Change::Catalog { kind: Kind::Queue, name: "q".into() });
    b.kill().await;
    let version = tx.commit().await.unwrap().version;
    let begun = clock.now();
    tokio::time::timeout(ms(7000), a.cluster().wait_everywhere(version)).await.unwrap();
    assert!(begun.elapsed() >= ms(4500), "it might have come back until then");
}

/// Pods that come, go, die, pause and meet with every kind of fault.
struct World {
    store: SharedStore,
    clock: Clock,
    seed: Seed,
    stream: Arc<Object>,
    pods: Vec<(u64, Pod)>,
    joined: u64,
    /// Paused pods and when they go on.
    away: BTreeMap<u64, weir_env::clock::Instant>,
    acknowledged: BTreeSet<String>,
    published: u64,
}

impl World {
    async fn new(seed: u64) -> Self {
        let (store, clock) = in_memory();
        let (pod, stream) = first(&store, clock, seed * 1000).await;
        let mut world = Self {
            store,
            clock,
            seed: Seed::fixed(seed).fork("world"),
            stream,
            pods: vec![(0, pod)],
            joined: 1,
            away: BTreeMap::new(),
            acknowledged: BTreeSet::new(),
            published: 0,
        };
        world.join(seed).await;
        world.join(seed).await;
        world
    }

    async fn join(&mut self, seed: u64) {
        let number = self.joined;
        self.joined += 1;
        let pod = Pod::join(&self.store, self.clock, seed * 1000 + number).await;
        self.pods.push((number, pod));
    }

    /// A publish at each pod; what it stores bears the pod's number.
    async fn publish(&mut self) {
        for (number, pod) in &self.pods {
            let (topic, n) = (format!("a/{}", self.seed.below(200)), self.published);
            self.published += 1;
            let payload = format!("{number} {n}");
            let publishing = publish(&pod.core, self.clock, &topic, &payload);
            // One that waits for a store that is away is not waited for.
            if let Ok(Ok(())) = tokio::time::timeout(ms(50), publishing).await {
                self.acknowledged.insert(payload);
            }
        }
    }

    async fn step(&mut self, seed: u64) {
        let now = self.clock.now();
        let at = usize::try_from(self.seed.below(self.pods.len() as u64)).unwrap();
        let (number, pod) = &self.pods[at];
        match self.seed.below(12) {
            0 if self.pods.len() > 1 => self.pods.remove(at).1.kill().await,
            1 if self.pods.len() > 1 => {
                let (_, pod) = self.pods.remove(at);
                // What it cannot say others find out.
                let _ = tokio::time::timeout(Duration::from_secs(2), pod.core.close()).await;
                pod.kill().await;
            }
            2 if self.pods.len() < 5 => self.join(seed).await,
            3 => {
                pod.faults.unavailable(true);
                self.away.insert(*number, now + ms(2500 + self.seed.below(12_500)));
            }
            4 => {
                let id = self.pods[usize::try_from(self.seed.below(self.pods.len() as u64)).unwrap()].1.id();
                pod.cluster().suspect(id);
            }
            5 => pod.faults.set_rates(rates(self.seed.below(3))),
            _ => self.publish().await,
        }
        for (number, pod) in &self.pods {
            if self.away.get(number).is_some_and(|until| *until <= now) {
                pod.faults.unavailable(false);
                self.away.remove(number);
            }
        }
        // As a process ends that finds itself gone.
        while let Some(at) = self.pods.iter().position(|(_, pod)| pod.has_failed()) {
            self.pods.remove(at).1.kill().await;
            if self.pods.is_empty() {
                self.join(seed).await;
            }
        }
        tokio::time::sleep(ms(self.seed.below(400))).await;
    }

    /// Each shard is owned by exactly one pod, the one that should, and all know it.
    async fn check_owners(&self) {
        let live: BTreeSet<PodId> = self.pods.iter().map(|(_, pod)| pod.id()).collect();
        for (number, pod) in &self.pods {
            assert_eq!(pod.sees(), live, "members as pod {number} sees them");
        }
        for vs in shards_of(&self.stream) {
            let Some(owner) = owner_in_store(&self.store, vs).await else { continue };
            for (number, pod) in &self.pods {
                let cluster = pod.cluster();
                assert_eq!(cluster.owner_of(vs), Some(owner.pod), "owner of {vs:?} as pod {number} sees it");
                assert_eq!(cluster.view().assigned(vs), Some(owner.pod), "{vs:?} is where it belongs");
            }
        }
    }

    /// Nothing acknowledged is lost, nothing is there twice, and one epoch has one writer.
    async fn check_contents(&self) {
        let mut stored = BTreeSet::new();
        for log in &self.stream.logs {
            let mut writers: BTreeMap<(VirtualShard, u64), String> = BTreeMap::new();
            for (epoch, payload) in contents(&self.store, log).await {
                let writer = payload.split_once(' ').unwrap().0.to_owned();
                let first = writers.entry((log.vs, epoch)).or_insert_with(|| writer.clone());
                assert_eq!(*first, writer, "two wrote {:?} in epoch {epoch}", log.vs);
                assert!(stored.insert(payload.clone()), "{payload} is there twice");
            }
        }
        let lost: Vec<&String> = self.acknowledged.difference(&stored).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
    }
}

fn rates(profile: u64) -> FaultRates {
    match profile {
        0 => FaultRates { slow_max: ms(20), read_slow: 50_000, commit_slow: 50_000, ..FaultRates::default() },
        1 => FaultRates {
            commit_conflict: 30_000,
            commit_too_old: 20_000,
            read_too_old: 10_000,
            watch_lost: 100_000,
            watch_spurious: 100_000,
            ..FaultRates::default()
        },
        _ => FaultRates {
            settled_committed: 20_000,
            settled_lost: 20_000,
            open_committed_later: 20_000,
            open_lost: 20_000,
            detached: 10_000,
            delay_max: ms(3000),
            slow_max: ms(20),
            ..FaultRates::default()
        },
    }
}

#[tokio::test(start_paused = true)]
async fn after_any_deaths_every_shard_has_exactly_one_living_owner() {
    let mut acknowledged = 0;
    for trial in trials(150) {
        let seed = trial.seed();
        let mut world = World::new(seed).await;
        for _ in 0..60 {
            world.step(seed).await;
        }
        for (_, pod) in &world.pods {
            pod.faults.unavailable(false);
            pod.faults.heal();
        }
        // Death takes its TTL, and a pod that is found dead now still has to go.
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_secs(3)).await;
            while let Some(at) = world.pods.iter().position(|(_, pod)| pod.has_failed()) {
                world.pods.remove(at).1.kill().await;
            }
        }
        world.check_owners().await;
        world.publish().await;
        world.check_contents().await;
        acknowledged += world.acknowledged.len();
        for (_, pod) in world.pods {
            pod.kill().await;
        }
    }
    assert!(acknowledged > 0, "something happens");
}
