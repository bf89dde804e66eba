//! A whole broker in this process, on a store that the test chooses, seen through a client that sends and expects
//! single packets.

mod admin_access;
mod auth;
mod auth_methods;
mod auth_peers;
mod auth_rights;
mod backup;
mod bench;
mod client;
mod declared;
mod failed;
mod faults;
mod input;
mod limits;
mod listeners;
mod messages;
mod patience;
mod pod_groups;
mod pod_sessions;
mod pods;
mod pods_drain;
mod pods_live;
mod pods_retained;
mod queue_admin;
mod queue_consumers;
mod queue_controls;
mod queue_dead_letters;
mod queue_keeping;
mod queue_operations;
mod queues;
mod queues_created;
mod queues_order;
mod regressions;
mod sessions;
mod shutdown;
mod slow;
mod store_server;
mod stream_admin;
mod stream_export;
mod stream_fetch;
mod stream_groups;
mod stream_groups_admin;
mod stream_killed;
mod stream_positions;
mod stream_requests;
mod streams;
mod streams_compacted;
mod streams_fast;
mod streams_tail;
mod sys;
mod traces;
mod v311;
mod v5;
mod weather;
mod websockets;
mod wills;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weir::auth::Method;
use weir::config::{Config, Listener};
use weir::server::{self, Extras, Peering, Started};
use weir_core::Core;
use weir_core::cluster::links::LinkOptions;
use weir_core::cluster::testing::MemoryNetwork;
use weir_core::cluster::{ClusterOptions, PodInfo};
use weir_core::core::PeerNetwork;
use weir_core::definition::{Definition, DispatchSettings, Kind, Retention};
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{CommitFault, FaultHandle, FaultRates, FaultStore, MemoryStore, SharedStore};

/// Longest wait for anything that is expected.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// A running broker with a runtime of its own, so that it can be killed at any moment.
pub(super) struct TestBroker {
    /// Of its first listener over TCP.
    pub(super) addr: SocketAddr,
    /// Of all of them.
    pub(super) addrs: Vec<SocketAddr>,
    http: SocketAddr,
    /// Of its admin API.
    pub(super) admin: SocketAddr,
    pub(super) core: Arc<Core>,
    shutdown: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
    runtime: Option<Runtime>,
}

/// Says how bad the store is that all brokers of these tests have: `calm` (not in what clients can see), `rough` or
/// `hostile`, in which tests fail that expect success.
const FAULTS_VARIABLE: &str = "WEIR_TEST_FAULTS";

/// An empty store: in memory, in FoundationDB if `FDB_CLUSTER_FILE` names a cluster for tests, or behind a server if
/// `WEIR_TEST_STORE` is `remote`.
pub(super) fn memory() -> SharedStore {
    let elsewhere = weir_storage_fdb::testing::store().or_else(weir_storage_remote::testing::store);
    let store = elsewhere.unwrap_or_else(|| Arc::new(MemoryStore::new(Clock::system())));
    let rates = match std::env::var(FAULTS_VARIABLE).as_deref() {
        Err(_) => return store,
        Ok("calm") => FaultRates { settled_committed: 0, settled_lost: 0, ..FaultRates::calm() },
        Ok("rough") => FaultRates::rough(),
        Ok("hostile") => FaultRates::hostile(),
        Ok(other) => panic!("{FAULTS_VARIABLE} is calm, rough or hostile, not {other}"),
    };
    let store = FaultStore::wrap(store, Seed::from_entropy());
    store.handle().set_rates(rates);
    Arc::new(store)
}

/// An empty store like [`memory`], and what makes it fail.
pub(super) fn faulty() -> (SharedStore, FaultHandle) {
    let store = FaultStore::wrap(memory(), Seed::fixed(1));
    let handle = store.handle();
    (Arc::new(store), handle)
}

/// A commit that fails and has not happened.
pub(super) fn refused() -> CommitFault {
    CommitFault::Refused(weir_storage::Error::Unavailable("by this test".into()))
}

/// What tests begin with: free ports.
pub(super) fn config() -> Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Config { listeners: vec![Listener::tcp(any)], http: any, admin: any, ..Config::default() }
}

impl TestBroker {
    pub(super) async fn start() -> Self {
        Self::start_on(&memory()).await
    }

    pub(super) async fn start_on(store: &SharedStore) -> Self {
        Self::start_with(config(), store).await
    }

    pub(super) async fn start_with(config: Config, store: &SharedStore) -> Self {
        Self::start_with_methods(config, store, Vec::new()).await
    }

    pub(super) async fn start_with_methods(
        config: Config,
        store: &SharedStore,
        methods: Vec<Arc<dyn Method>>,
    ) -> Self {
        Self::start_on_threads(2, config, store, Extras { methods, peering: None }).await
    }

    /// One of several on `store`, which reach each other through `network`.
    pub(super) async fn start_pod(store: &SharedStore, network: &MemoryNetwork) -> Self {
        let (attached, links) = (network.clone(), LinkOptions::default());
        let peering = Peering {
            options: ClusterOptions::new(PodInfo::default()),
            network: PeerNetwork { network: Arc::new(network.clone()), links },
            attach: Box::new(move |links| attached.attach(links)),
        };
        let extras = Extras { methods: Vec::new(), peering: Some(peering) };
        Self::start_on_threads(2, config(), store, extras).await
    }

    pub(super) async fn start_on_threads(
        threads: usize,
        config: Config,
        store: &SharedStore,
        extras: Extras,
    ) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap();
        let (started_tx, started) = oneshot::channel();
        let shutdown = CancellationToken::new();
        let serving = runtime.spawn({
            let (store, shutdown) = (Arc::clone(store), shutdown.clone());
            async move {
                let seed = Seed::from_entropy();
                server::run_with(&config, store, Clock::system(), &seed, shutdown, started_tx, extras).await
            }
        });
        let started = tokio::time::timeout(DEADLINE, started).await.expect("a start in time");
        let Ok(Started { mqtt, http, admin, core }) = started else {
            panic!("the broker did not start: {:?}", serving.await);
        };
        Self { addr: mqtt[0], addrs: mqtt, http, admin, core, shutdown, serving, runtime: Some(runtime) }
    }

    /// Makes the catalog consist of these.
    pub(super) async fn declare(&self, definitions: &[Definition]) {
        self.core.apply(definitions).await.unwrap();
    }

    /// Stops it in order.
    pub(super) async fn stop(mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, &mut self.serving).await.expect("a stop in time").unwrap().unwrap();
    }

    /// Asks it to stop.
    pub(super) fn begin_stop(&self) {
        self.shutdown.cancel();
    }

    /// Waits until it stops by itself; why it did.
    pub(super) async fn failure(mut self) -> String {
        let ended = tokio::time::timeout(DEADLINE, &mut self.serving).await.expect("an end in time").unwrap();
        ended.expect_err("stops only if it cannot go on").to_string()
    }

    /// What its HTTP listener answers, head and body.
    pub(super) async fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
        text
    }

    /// The value of a metric, its labels included in `name`.
    pub(super) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await;
        value_in(&text, name).unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    /// Waits until a metric is there and has at least this value.
    pub(super) async fn metric_reaches(&self, name: &str, value: f64) {
        let reached = async {
            while value_in(&self.get("/metrics").await, name).is_none_or(|found| found < value) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(DEADLINE, reached).await.is_ok(), "{name} does not reach {value}");
    }
}

fn value_in(metrics: &str, name: &str) -> Option<f64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map(|value| value.parse().unwrap())
}

impl Drop for TestBroker {
    /// As a crash: every task stops where it is, and every socket closes.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn definition(kind: Kind, name: &str, filter: &str) -> Definition {
    Definition {
        kind,
        name: name.into(),
        namespace: "default".into(),
        object: name.into(),
        topic_filter: Some(filter.into()),
        shards: 1,
        key: None,
        retention: Retention::default(),
        dispatch: DispatchSettings {
            backoff_initial_ms: 20,
            backoff_max_ms: 20,
            ..DispatchSettings::default()
        },
        last_value: false,
        queue: weir_core::definition::QueueSettings::default(),
        group_expiry_ms: 0,
        delete_data: true,
    }
}

pub(super) fn queue(name: &str, filter: &str) -> Definition {
    definition(Kind::Queue, name, filter)
}

pub(super) fn stream(name: &str, filter: &str) -> Definition {
    definition(Kind::Stream, name, filter)
}
