//! The pods: real processes of `weir serve` on one store server, and what is done to them.
//!
//! A pod that ends is started again, as Kubernetes would. Nothing here knows what the clients see.

use std::ffi::OsStr;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::time::sleep;

use super::network::{Network, Way};
use crate::foundationdb::FoundationDb;
use crate::weir::{Setup, StoreServer, Weir};

/// Without a sign of life for so long a pod is declared dead by others.
pub(super) const TTL: Duration = Duration::from_secs(5);
/// From a pod that wakes up again to when it must have ended because others took it for dead: it finds that out at once,
/// and its connections have two seconds for what is under way and two for their farewells.
const AWAKE: Duration = Duration::from_secs(10);
/// What pods and store prove to each other where they are not on loopback.
const TOKEN: &str = "of this cluster alone\n";
const ASKED_EACH: Duration = Duration::from_millis(20);

/// What can be done to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9`.
    Kill,
    /// Stopped for a while, in which it may not be taken for dead for good: 0.5 TTL.
    ShortPause,
    /// Stopped for so long that others take its place: 1.5 TTL.
    Pause,
    /// Stopped for 3 TTL.
    LongPause,
    /// SIGTERM.
    Terminate,
    /// Cut off from everybody for 1.5 TTL, which needs a network of the pods' own.
    Cut(Way),
    /// No pod, but the server of their store is killed with `kill -9`, and started again.
    StoreRestart,
}

impl Fault {
    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::ShortPause => "pause of 0.5 TTL",
            Self::Pause => "pause of 1.5 TTL",
            Self::LongPause => "pause of 3 TTL",
            Self::Terminate => "SIGTERM",
            Self::Cut(Way::Both) => "cut off for 1.5 TTL",
            Self::Cut(Way::In) => "nothing reaches it for 1.5 TTL",
            Self::Cut(Way::Out) => "nothing it sends arrives for 1.5 TTL",
            Self::StoreRestart => "kill -9 of the store's server",
        }
    }

    /// How long a pod is stopped, or cut off.
    const fn pause(self) -> Duration {
        match self {
            Self::Kill | Self::Terminate | Self::StoreRestart => Duration::ZERO,
            Self::ShortPause => TTL.checked_div(2).expect("not by zero"),
            Self::Pause | Self::Cut(_) => TTL.saturating_add(TTL.checked_div(2).expect("not by zero")),
            Self::LongPause => TTL.saturating_mul(3),
        }
    }
}

/// The store server and the pods.
#[derive(Debug)]
pub(super) struct Cluster {
    setups: Vec<Setup>,
    pods: Vec<Weir>,
    /// Where the logs of pods that have ended are kept, and how many are there.
    logs: Option<PathBuf>,
    logs_kept: usize,
    /// If pods can be cut off.
    network: Option<Network>,
    // Ended after those that use it.
    store: StoreHandle,
    _secrets: TempDir,
}

/// Where the pods keep their data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Store {
    /// A `weir store serve` is started for them.
    #[default]
    Served,
    /// A FoundationDB server is started for them.
    FoundationDb,
    /// The FoundationDB cluster of this file, below a prefix of their own; nothing is done to the cluster.
    FoundationDbAt(PathBuf),
}

/// What runs for a [`Store`].
#[derive(Debug)]
enum StoreHandle {
    Served(StoreServer),
    FoundationDb(FoundationDb),
    FoundationDbAt(PathBuf),
}

impl StoreHandle {
    async fn start(store: &Store, host: IpAddr, token: &str) -> Result<Self> {
        Ok(match store {
            Store::Served if host.is_loopback() => Self::Served(StoreServer::start().await?),
            Store::Served => Self::Served(StoreServer::start_at(host, &["--token-file", token]).await?),
            Store::FoundationDb => Self::FoundationDb(FoundationDb::start(host).await?),
            Store::FoundationDbAt(file) => {
                ensure!(host.is_loopback(), "pods on a network of their own cannot reach {}", file.display());
                Self::FoundationDbAt(file.clone())
            }
        })
    }

    /// A pod on it; `prefix` sets one cluster apart from another in FoundationDB.
    fn setup(&self, prefix: &str, token: Option<&str>) -> Result<Setup> {
        match self {
            Self::Served(server) => {
                let setup = Setup::remote(server.address())?;
                Ok(match token {
                    Some(token) => setup.with_arguments(&["--remote-token-file", token]),
                    None => setup,
                })
            }
            Self::FoundationDb(server) => Setup::foundationdb(&server.cluster_file(), prefix),
            Self::FoundationDbAt(file) => Setup::foundationdb(file, prefix),
        }
    }

    async fn restart(&mut self) -> Result<()> {
        match self {
            Self::Served(server) => server.restart().await,
            Self::FoundationDb(server) => server.restart().await,
            Self::FoundationDbAt(file) => bail!("the cluster of {} is not ours to restart", file.display()),
        }
    }

    fn pid(&self) -> Option<u32> {
        match self {
            Self::Served(server) => server.pid(),
            Self::FoundationDb(server) => server.pid(),
            Self::FoundationDbAt(_) => None,
        }
    }
}

impl fmt::Display for StoreHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Served(server) => server.fmt(f),
            Self::FoundationDb(server) => server.fmt(f),
            Self::FoundationDbAt(file) => write!(f, "FoundationDB at {}", file.display()),
        }
    }
}

impl Cluster {
    /// Starts what `store` needs and `count` pods; a single one is alone and knows nothing of others. Those that are to be cut
    /// off are on a network of their own.
    pub(super) async fn start(
        count: usize,
        store: &Store,
        manifest: &str,
        logs: Option<PathBuf>,
        is_cut: bool,
    ) -> Result<Self> {
        let secrets = tempfile::tempdir()?;
        let token = secrets.path().join("token");
        std::fs::write(&token, TOKEN)?;
        let token = token.to_str().context("a path in UTF-8")?;
        let network = if is_cut { Some(Network::make(count).await?) } else { None };
        let hub = if is_cut { Network::hub() } else { Ipv4Addr::LOCALHOST.into() };
        let store = StoreHandle::start(store, hub, token).await?;
        // No other run has this folder, at this time or later: a cluster may outlive this machine.
        let unique = secrets.path().file_name().and_then(OsStr::to_str).context("a name in UTF-8")?;
        let unique = unique.trim_start_matches('.');
        let prefix = format!("faults-{}-{unique}", jiff::Timestamp::now().as_second());
        let (setups, pods) = (Vec::new(), Vec::new());
        let mut cluster = Self { setups, pods, logs, logs_kept: 0, network, store, _secrets: secrets };
        for n in 0..count {
            let remote_token = cluster.network.is_some().then_some(token);
            let setup = cluster.store.setup(&prefix, remote_token)?;
            let mut setup = setup.with_manifest("manifest.yaml", manifest)?;
            if cluster.network.is_some() {
                let host = Network::address(n)?;
                setup = setup.in_namespace(Network::name(n), host);
                setup = setup.with_arguments(&["--peer-token-file", token]);
                setup = setup.with_arguments(&["--peer", &format!("{host}:0")]);
            } else if count > 1 {
                setup = setup.with_arguments(&["--peer", "127.0.0.1:0"]);
            }
            let pod = setup.start().await.with_context(|| cluster.store.to_string())?;
            cluster.pods.push(pod);
            cluster.setups.push(setup);
        }
        Ok(cluster)
    }

    /// Where they listen.
    pub(super) fn doors(&self) -> Vec<Option<SocketAddr>> {
        self.pods.iter().map(|pod| Some(pod.mqtt())).collect()
    }

    /// The process id of each pod, and where it tells its metrics.
    pub(super) fn pods(&self) -> Result<Vec<(u32, SocketAddr)>> {
        self.pods.iter().map(|pod| Ok((pod.pid().context("a pod that runs")?, pod.http()))).collect()
    }

    /// The process id of the store server, if it was started here.
    pub(super) fn store_pid(&self) -> Result<u32> {
        self.store.pid().context("a store server that runs")
    }

    /// Does `fault` to the pod `victim` and waits until it is over. `door` hears when the place of the pod is empty,
    /// and when another pod stands there. Returns what the pod said that must not be, if it did.
    pub(super) async fn strike(
        &mut self,
        victim: usize,
        fault: Fault,
        mut door: impl FnMut(Option<SocketAddr>),
    ) -> Result<Option<String>> {
        let pod = &mut self.pods[victim];
        let status = match fault {
            Fault::Kill => {
                pod.signal(Signal::KILL)?;
                Some(pod.wait().await?)
            }
            Fault::Terminate => {
                pod.signal(Signal::TERM)?;
                Some(pod.wait().await?)
            }
            Fault::ShortPause | Fault::Pause | Fault::LongPause => {
                pod.signal(Signal::STOP)?;
                sleep(fault.pause()).await;
                pod.signal(Signal::CONT)?;
                noticed(pod, if fault.pause() > TTL { AWAKE } else { Duration::ZERO }).await?
            }
            Fault::StoreRestart => {
                self.store.restart().await?;
                None
            }
            Fault::Cut(way) => {
                let network = self.network.as_ref().context("a network that can be cut")?;
                network.cut(victim, way).await?;
                sleep(fault.pause()).await;
                network.mend(victim, way).await?;
                noticed(pod, AWAKE).await?
            }
        };
        let mut said = pod.no_panic().err().map(|error| format!("{error:#}"));
        if let Some(status) = status {
            door(None);
            keep(self.logs.as_deref(), &mut self.logs_kept, victim, pod)?;
            if fault == Fault::Terminate && !status.success() {
                said = Some(format!("after SIGTERM it ended with {status}: {pod}"));
            }
            let again = self.setups[victim].start().await;
            *pod = again.with_context(|| self.store.to_string())?;
            door(Some(pod.mqtt()));
        }
        Ok(said)
    }

    /// Starts every pod again that has ended without being told to. Returns how many there were.
    pub(super) async fn revive(&mut self, mut door: impl FnMut(usize, Option<SocketAddr>)) -> Result<u64> {
        let mut ended = 0;
        for (n, pod) in self.pods.iter_mut().enumerate() {
            if pod.ended()?.is_some() {
                ended += 1;
                door(n, None);
                keep(self.logs.as_deref(), &mut self.logs_kept, n, pod)?;
                *pod = self.setups[n].start().await?;
                door(n, Some(pod.mqtt()));
            }
        }
        Ok(ended)
    }

    /// Keeps the logs of all that still run.
    pub(super) fn keep_logs(&mut self) -> Result<()> {
        for (n, pod) in self.pods.iter().enumerate() {
            keep(self.logs.as_deref(), &mut self.logs_kept, n, pod)?;
        }
        Ok(())
    }

    /// Ends all in order.
    pub(super) async fn end(self) -> Result<()> {
        for mut pod in self.pods {
            // One that has ended by itself has been looked at.
            if pod.ended()?.is_none() {
                pod.terminate().await?;
            }
        }
        Ok(())
    }

    /// The ends of all logs.
    pub(super) fn logs(&self) -> String {
        let pods: Vec<String> = self.pods.iter().map(Weir::to_string).collect();
        format!("{}\n{}", pods.join("\n"), self.store)
    }
}

/// Writes the log of the pod `n` to the folder `logs`, if there is one.
fn keep(logs: Option<&Path>, kept: &mut usize, n: usize, pod: &Weir) -> Result<()> {
    let Some(logs) = logs else { return Ok(()) };
    std::fs::create_dir_all(logs)?;
    let file = logs.join(format!("{kept:04}-pod-{n}.log"));
    *kept += 1;
    std::fs::write(&file, pod.log().lines().join("\n")).with_context(|| format!("write {}", file.display()))
}

/// Waits at most `longest` for a pod to end.
async fn noticed(pod: &mut Weir, longest: Duration) -> Result<Option<ExitStatus>> {
    let ended = async {
        loop {
            if let Some(status) = pod.ended()? {
                return Ok(Some(status));
            }
            // The end of a process that need not end can only be asked for, as its owner does.
            sleep(ASKED_EACH).await;
        }
    };
    tokio::time::timeout(longest, ended).await.unwrap_or(Ok(None))
}
