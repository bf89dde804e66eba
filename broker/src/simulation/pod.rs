//! Brokers of a run, and the ways to harm them. A pod that is killed stays in memory as what cannot reach anything any
//! more: neither the store nor a client.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_core::cluster::links::{LinkOptions, Links, PEER_BYTES_MIN};
use weir_core::cluster::testing::MemoryNetwork;
use weir_core::cluster::{ClusterOptions, PodInfo};
use weir_core::core::PeerNetwork;
use weir_core::keyspace::owner::PodId;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{FaultHandle, FaultRates, FaultStore, SharedStore};

use super::gate::{Gate, Writers};
use super::history::{Event, History, PodEvent};
use super::wire::Wire;
use crate::broker::Broker;
use crate::config::Config;
use crate::listen::{Accepting, Listener, PeerAddr};
use crate::server::{self, Extras, Peering};
use crate::transport::memory::{Cable, MemorySocket};

/// Time without a sign of life after which a pod counts as dead.
pub(super) const TTL: Duration = Duration::from_secs(5);

/// How long changes stay in the feed, about: a pod that is held up for longer, and lives, has missed some.
const KEPT: Duration = Duration::from_secs(1);

/// Longest time that a pod takes to stop in order.
const GRACE: Duration = Duration::from_secs(30);

/// What pods of a run share.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) store: SharedStore,
    pub(super) clock: Clock,
    pub(super) writers: Writers,
    pub(super) history: History,
    /// Between the pods of a cluster; none: there is one at a time, which is alone.
    pub(super) network: Option<MemoryNetwork>,
}

/// A broker that serves.
pub(super) struct Pod {
    pub(super) number: usize,
    pub(super) broker: Arc<Broker>,
    gate: Gate,
    faults: FaultHandle,
    listener: Arc<Listener>,
    accepting: Accepting,
    clients: TaskTracker,
    background: TaskTracker,
    stop_background: CancellationToken,
    shutdown: CancellationToken,
    cables: Mutex<Vec<Cable>>,
    /// It has been killed or stopped, or stops.
    ends: CancellationToken,
    history: History,
    network: Option<MemoryNetwork>,
}

/// How a pod is one of many on `network`.
fn peering(network: &MemoryNetwork, number: usize) -> Peering {
    let info = PodInfo { peer: format!("pod-{number}").into(), ..PodInfo::default() };
    let (way, reached) = (Arc::new(network.clone()), network.clone());
    Peering {
        options: ClusterOptions {
            ttl: TTL,
            changes_kept: KEPT,
            trim_interval: KEPT,
            ..ClusterOptions::new(info)
        },
        network: PeerNetwork {
            network: way,
            links: LinkOptions { peer_bytes: PEER_BYTES_MIN, ..LinkOptions::default() },
        },
        attach: Box::new(move |links: &Links| reached.attach(links)),
    }
}

impl Pod {
    /// Starts a broker, again until it has started.
    pub(super) async fn start(ground: &Ground, number: usize, seed: &Seed, rates: FaultRates) -> Self {
        loop {
            match Self::try_start(ground, number, &seed.fork(&seed.next_u64().to_string()), rates).await {
                Ok(pod) => return pod,
                Err(error) => ground.history.note(Event::Trouble(format!("{number} not started: {error:#}"))),
            }
        }
    }

    async fn try_start(
        ground: &Ground,
        number: usize,
        seed: &Seed,
        rates: FaultRates,
    ) -> anyhow::Result<Self> {
        let writers = ground.writers.clone();
        let gate = Gate::new(Arc::clone(&ground.store), number, seed.fork("gate"), writers);
        let outcome = Self::begin(ground, number, seed, rates, &gate).await;
        if outcome.is_err() {
            // A process that does not start ends, with all that it has begun.
            gate.close_for_good();
        }
        outcome
    }

    async fn begin(
        ground: &Ground,
        number: usize,
        seed: &Seed,
        rates: FaultRates,
        gate: &Gate,
    ) -> anyhow::Result<Self> {
        let store = FaultStore::wrap(Arc::new(gate.clone()), seed.fork("faults"));
        let faults = store.handle();
        faults.set_rates(rates);
        let config = Config { allow_anonymous: true, ..Config::default() };
        let mut registry = Registry::default();
        let (background, stop_background) = (TaskTracker::new(), CancellationToken::new());
        let listener = Arc::new(Listener::in_memory(ground.clock, &mut registry));
        let peering = ground.network.as_ref().map(|network| peering(network, number));
        let extras = Extras { methods: Vec::new(), peering };
        let parts = (&mut registry, &background, &stop_background, extras);
        let broker = server::begin(&config, Arc::new(store), ground.clock, seed, parts).await?;
        server::go_on_by_itself(&broker, &config, (&background, &stop_background));
        let (clients, shutdown) = (TaskTracker::new(), CancellationToken::new());
        ground.history.note(Event::Pod(number, PodEvent::Started));
        Ok(Self {
            number,
            accepting: Accepting::new(&broker, &clients, &shutdown),
            broker,
            gate: gate.clone(),
            faults,
            listener,
            clients,
            background,
            stop_background,
            shutdown,
            cables: Mutex::default(),
            ends: CancellationToken::new(),
            history: ground.history.clone(),
            network: ground.network.clone(),
        })
    }

    /// A connection of a client to it.
    pub(super) fn connect(&self) -> Wire {
        let (ours, theirs, cable) = MemorySocket::pair();
        cable.stall(self.gate.is_held());
        self.cables.lock().push(cable);
        self.accepting.serve(&self.listener, ours.into(), PeerAddr::Local);
        Wire::new(theirs, self.number)
    }

    /// Cuts all connections of clients.
    pub(super) fn cut(&self) {
        self.cables.lock().drain(..).for_each(|cable| cable.cut());
    }

    pub(super) fn set_rates(&self, rates: FaultRates) {
        self.faults.set_rates(rates);
    }

    /// As others know it.
    pub(super) fn id(&self) -> PodId {
        self.broker.core.pod()
    }

    /// Stops it in order if it cannot go on, as it is if others took it for dead.
    pub(super) async fn end_by_itself(&self) {
        let why = tokio::select! {
            biased;
            () = self.ends.cancelled() => return,
            why = self.broker.core.failed() => why,
        };
        self.history.note(Event::Trouble(format!("{} cannot go on: {why}", self.number)));
        self.stop().await;
    }

    /// Whether it has been told to end, or ends by itself.
    pub(super) fn ends(&self) -> bool {
        self.ends.is_cancelled()
    }

    pub(super) fn kill(&self) {
        self.ends.cancel();
        self.history.note(Event::Pod(self.number, PodEvent::Killed));
        self.gate.close_for_good();
        if let Some(network) = &self.network {
            network.kill(self.id());
        }
        self.cut();
    }

    /// Holds it up, or lets it go on: neither the store nor clients hear of it meanwhile.
    pub(super) fn hold_up(&self, held: bool) {
        let event = if held { PodEvent::Paused } else { PodEvent::GoesOn };
        self.history.note(Event::Pod(self.number, event));
        self.gate.hold_up(held);
        self.cables.lock().iter().for_each(|cable| cable.stall(held));
    }

    /// Until a commit of it is on its way to the store.
    pub(super) async fn commit_sent(&self) {
        self.gate.commit_sent().await;
    }

    /// Whether it is held up.
    pub(super) fn is_held(&self) -> bool {
        self.gate.is_held()
    }

    /// Stops it in order.
    pub(super) async fn stop(&self) {
        self.ends.cancel();
        self.history.note(Event::Pod(self.number, PodEvent::Stops));
        self.shutdown.cancel();
        server::wind_down(&self.broker, &self.clients, GRACE).await;
        self.stop_background.cancel();
        self.background.close();
        // What does not end in time is as good as killed.
        let _ = tokio::time::timeout(GRACE, self.background.wait()).await;
        self.gate.close_for_good();
        if let Some(network) = &self.network {
            network.kill(self.id());
        }
        self.cut();
        self.history.note(Event::Pod(self.number, PodEvent::Stopped));
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use futures_util::FutureExt;
    use weir_codec::{Connect, Packet, ReasonCode};
    use weir_core::keyspace::change;
    use weir_env::clock::Timestamp;
    use weir_storage::{MemoryStore, Version};

    use super::super::client::{Client, Net};
    use super::*;

    fn ground(delay: Range<Duration>) -> Ground {
        let clock = Clock::simulated(Timestamp::from_micros(1_700_000_000_000_000));
        let network = MemoryNetwork::new(clock, &Seed::fixed(0));
        network.set_delay(delay);
        let history = History::default();
        history.set_clock(clock);
        let (store, writers) = (Arc::new(MemoryStore::new(clock)), Writers::default());
        Ground { store, clock, writers, history, network: Some(network) }
    }

    async fn start(ground: &Ground, number: usize) -> Arc<Pod> {
        let seed = Seed::fixed(0).fork(&number.to_string());
        Arc::new(Pod::start(ground, number, &seed, FaultRates::NONE).await)
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_opened_elsewhere_is_lost_though_nobody_could_say_so() {
        let ground = ground(ms(1)..ms(2));
        let network = ground.network.clone().unwrap();
        let (one, other) = (start(&ground, 0).await, start(&ground, 1).await);
        let net = Net::default();
        net.add(&one);
        let mut client = Client::new("c", &Seed::fixed(1), &net, &ground.history);
        let (mut first, _) = client.connect(false, 10).await;
        net.remove(&one);
        net.add(&other);
        // Nothing goes from pod to pod, and the change feed has something that cannot be read.
        network.partition(one.id(), other.id());
        let mut tx = ground.store.begin();
        let version = tx.read_version().await.unwrap();
        tx.set(&change::range_after(Version(version.0 + 3_600_000_000)).0, b"?");
        tx.commit().await.unwrap();
        let connect = Connect { client_id: "c".into(), clean_start: true, ..Connect::default() };
        let mut second = other.connect();
        second.send(&Packet::Connect(Box::new(connect))).await.unwrap();
        let answer = second.next().await;
        assert!(matches!(answer, Some(Packet::ConnAck(_))), "{answer:?}");
        let told = tokio::time::timeout(ms(2_000), first.next()).await;
        let Ok(Some(Packet::Disconnect(told))) = told else { panic!("{told:?}") };
        assert_eq!(told.reason, ReasonCode::SessionTakenOver);
        assert!(tokio::time::timeout(ms(20_000), second.next()).await.is_err(), "it stays");
        assert!(one.broker.core.failed().now_or_never().is_none(), "it was taken for dead");
        network.heal();
        one.stop().await;
        other.stop().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_starts_meets_the_others_before_clients_come() {
        let ground = ground(ms(200)..ms(300));
        let mut pods = Vec::new();
        for number in 0..3 {
            let pod = start(&ground, number).await;
            assert!(pod.broker.elsewhere.as_ref().unwrap().hears_all(), "pod {number}");
            pods.push(pod);
        }
        for pod in pods {
            pod.stop().await;
        }
    }
}
