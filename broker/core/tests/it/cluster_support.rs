//! Several cores over one store, as pods of a cluster, on a network in memory.

use std::sync::Arc;
use std::time::Duration;

use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::cluster::links::LinkOptions;
use weir_core::cluster::testing::MemoryNetwork;
use weir_core::cluster::{ClusterOptions, PodInfo};
use weir_core::core::{Options, PeerNetwork};
use weir_core::definition::{Definition, Kind};
use weir_core::metrics::Metrics;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{FaultHandle, FaultStore, SharedStore};

use crate::support::in_memory;

/// A cluster whose pods have the same queues and streams.
pub(crate) struct Pods {
    pub(crate) network: MemoryNetwork,
    pub(crate) store: SharedStore,
    pub(crate) clock: Clock,
    pub(crate) cores: Vec<Core>,
    /// In the order in which pods have joined.
    pub(crate) metrics: Vec<Metrics>,
    /// Of pods that join.
    pub(crate) links: LinkOptions,
    seed: u64,
    joined: u64,
}

impl Pods {
    pub(crate) async fn open(count: usize, seed: u64, definitions: &[Definition]) -> Self {
        let (store, clock) = in_memory();
        Self::over(store, clock, count, seed, definitions).await
    }

    /// Over a store that can be made to fail for all.
    pub(crate) async fn over_faults(
        count: usize,
        seed: u64,
        definitions: &[Definition],
    ) -> (Self, FaultHandle) {
        let (store, clock) = in_memory();
        let store = FaultStore::wrap(store, Seed::fixed(seed));
        let faults = store.handle();
        (Self::over(Arc::new(store), clock, count, seed, definitions).await, faults)
    }

    pub(crate) async fn over(
        store: SharedStore,
        clock: Clock,
        count: usize,
        seed: u64,
        definitions: &[Definition],
    ) -> Self {
        let network = MemoryNetwork::new(clock, &Seed::fixed(seed));
        network.set_delay(Duration::from_micros(100)..Duration::from_micros(900));
        let links = LinkOptions::default();
        let mut pods =
            Self { network, store, clock, cores: Vec::new(), metrics: Vec::new(), links, seed, joined: 0 };
        for n in 0..count {
            pods.join().await;
            if n == 0 {
                pods.cores[0].apply(definitions).await.unwrap();
            }
        }
        pods.settle().await;
        pods
    }

    /// One more pod.
    pub(crate) async fn join(&mut self) -> usize {
        let n = self.joined;
        self.joined += 1;
        let info = PodInfo { peer: format!("pod-{n}").into(), ..PodInfo::default() };
        let options = Options {
            cluster: Some(ClusterOptions::new(info)),
            network: Some(PeerNetwork { network: Arc::new(self.network.clone()), links: self.links }),
            ..Options::default()
        };
        let seed = Seed::fixed(self.seed * 1000 + n);
        let store = Arc::clone(&self.store);
        let metrics = Metrics::default();
        self.metrics.push(metrics.clone());
        let core = Core::open_with(store, self.clock, &seed, metrics, options).await.unwrap();
        self.network.attach(core.links().unwrap());
        core.meet();
        self.cores.push(core);
        self.cores.len() - 1
    }

    /// Waits until the shards are where they belong.
    pub(crate) async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(8)).await;
    }

    /// A pod is dead from one moment to the next.
    pub(crate) async fn kill(&mut self, pod: usize) -> Core {
        let core = self.cores.remove(pod);
        self.network.kill(core.pod());
        core.cluster().unwrap().stop().await;
        core
    }

    pub(crate) fn find(&self, pod: usize, kind: Kind, name: &str) -> Arc<Object> {
        self.cores[pod].catalog().view().find(kind, name).unwrap()
    }

    /// The pod that owns a shard of a queue or stream.
    pub(crate) fn owner(&self, object: &Object, shard: usize) -> usize {
        let vs = object.logs[shard].vs;
        let owner = self.cores[0].cluster().unwrap().whom_to_ask(vs).unwrap();
        self.cores.iter().position(|core| core.pod() == owner).unwrap()
    }

    /// One that does not.
    pub(crate) fn other(&self, object: &Object, shard: usize) -> usize {
        let owner = self.owner(object, shard);
        (0..self.cores.len()).find(|pod| *pod != owner).unwrap()
    }
}
