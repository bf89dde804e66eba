//! One pod from when it is bound to a node until nothing of it is left, as the kubelet does it.
//!
//! The task in [`live`] owns the pod: it starts its containers, tells the API of their state and deletes the
//! object at the end. Times of waiting before a restart are shorter than the kubelet's.

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use weir_env::clock::Clock;

use super::super::Daemon;
use super::Shared;
use super::container::{Launch, User};
use super::environment::environment;
use super::network::Network;
use super::probe::Target;
use super::status::Report;
use super::volumes;

/// The first wait before a container is started again; it doubles up to the last.
const BACKOFF: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How soon something that the API did not take is tried again.
const TRIED_AGAIN: Duration = Duration::from_millis(500);

/// Runs the `n`-th pod. `updates` has its newest object; `None`: it is gone from the API.
pub(super) async fn live(
    shared: Arc<Shared>,
    n: u32,
    pod: Arc<Pod>,
    mut updates: watch::Receiver<Option<Arc<Pod>>>,
) -> Result<()> {
    let network = Network::make(n).await?;
    let folder = shared.state.join(&network.name);
    let (stop_tx, stop) = watch::channel(None);
    let report = Arc::new(Report::new(&pod, network.address));
    let mut changes = report.changes();
    let api: Api<Pod> =
        Api::namespaced(shared.client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default());
    let life = Life { shared, pod: pod.clone(), network, folder, report: report.clone(), stop };
    let life = Arc::new(life);
    let mut run = JoinSet::new();
    run.spawn(life.clone().run());
    let (mut gone, mut told) = (false, Value::Null);
    while !run.is_empty() || !(gone || stop_tx.borrow().is_some()) {
        let mut retry = false;
        let status = report.status(run.is_empty());
        if !gone && status != told {
            match tell(&api, &pod, &status).await {
                Ok(()) => told = status,
                Err(_) => retry = true,
            }
        }
        tokio::select! {
            _ = run.join_next(), if !run.is_empty() => {}
            _ = changes.changed() => {}
            _ = updates.changed() => {
                let newest = updates.borrow_and_update().clone();
                gone |= newest.is_none();
                if let Some(grace) = grace(newest.as_deref()) {
                    // A second, shorter grace counts.
                    stop_tx.send_if_modified(|stop| {
                        let shorter = stop.is_none_or(|before| grace < before);
                        *stop = Some(stop.map_or(grace, |before: Duration| before.min(grace)));
                        shorter
                    });
                }
            }
            () = sleep(TRIED_AGAIN), if retry => {}
        }
    }
    while !gone {
        match forget(&api, &pod).await {
            Ok(()) => gone = true,
            Err(_) => sleep(TRIED_AGAIN).await,
        }
    }
    drop(run);
    let life = Arc::into_inner(life).context("the containers of the pod ended")?;
    life.network.remove().await?;
    if life.folder.exists() {
        std::fs::remove_dir_all(&life.folder)?;
    }
    Ok(())
}

/// How long the pod may take to end, if it is to end.
fn grace(pod: Option<&Pod>) -> Option<Duration> {
    let Some(pod) = pod else {
        return Some(Duration::ZERO);
    };
    pod.metadata.deletion_timestamp.as_ref()?;
    let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
    Some(Duration::from_secs(seconds.max(0).unsigned_abs()))
}

async fn tell(api: &Api<Pod>, pod: &Pod, status: &Value) -> Result<()> {
    let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": status });
    let name = pod.metadata.name.as_deref().context("a name")?;
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    Ok(())
}

/// Deletes the object for good.
async fn forget(api: &Api<Pod>, pod: &Pod) -> Result<()> {
    let preconditions = Preconditions { uid: pod.metadata.uid.clone(), ..Preconditions::default() };
    let params = DeleteParams::default().grace_period(0).preconditions(preconditions);
    match api.delete(pod.metadata.name.as_deref().context("a name")?, &params).await {
        Ok(_) => Ok(()),
        // Gone, or another of this name.
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

struct Life {
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    network: Network,
    folder: PathBuf,
    report: Arc<Report>,
    /// Set once the pod is to end: in how long.
    stop: watch::Receiver<Option<Duration>>,
}

impl Life {
    async fn run(self: Arc<Self>) {
        let Some(spec) = &self.pod.spec else {
            return;
        };
        while let Err(error) = self.fill_volumes().await {
            self.report.waiting_all("ContainerCreating", &format!("{error:#}"));
            if self.stopped_within(TRIED_AGAIN).await {
                return;
            }
        }
        for container in spec.init_containers.iter().flatten() {
            if !self.supervise(container, true).await {
                return;
            }
        }
        self.report.initialized();
        join_all(spec.containers.iter().map(|container| self.supervise(container, false))).await;
    }

    async fn fill_volumes(&self) -> Result<()> {
        let address = self.network.address.to_string();
        volumes::fill(&self.shared.client, &self.pod, &self.folder.join("volumes"), &address).await
    }

    /// Runs the container for as long as its pod wants it; whether it ended well.
    async fn supervise(&self, container: &Container, init: bool) -> bool {
        let policy =
            self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always");
        let mut backoff = BACKOFF;
        loop {
            let ended = match self.start(container).await {
                Ok(daemon) => Some(self.attend(container, daemon).await),
                Err(error) => {
                    self.report.waiting(&container.name, "CreateContainerConfigError", &format!("{error:#}"));
                    None
                }
            };
            if self.stop.borrow().is_some() {
                return false;
            }
            match (ended, policy) {
                (Some(0), _) if init || policy != "Always" => return true,
                (Some(_), "Never") => return false,
                (Some(_), _) => self.report.restarting(&container.name),
                (None, _) => {}
            }
            if self.stopped_within(backoff).await {
                return false;
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    async fn start(&self, container: &Container) -> Result<Daemon> {
        let (client, pod) = (&self.shared.client, &self.pod);
        let address = self.network.address.to_string();
        let launch = Launch {
            pod,
            container,
            network: &self.network.name,
            folder: self.folder.join("containers").join(&container.name),
            environment: environment(client, pod, container, &address).await?,
            mounts: volumes::mounts(client, pod, container, &self.folder.join("volumes")).await?,
            hosts: &self.shared.hosts,
            programs: &self.shared.programs,
        };
        launch.start(self.shared.log(pod, &container.name))
    }

    /// Watches over the running container until it has ended; its exit code.
    async fn attend(&self, container: &Container, mut daemon: Daemon) -> i32 {
        let name = &container.name;
        self.report.running(name);
        self.shared.is_running(&self.pod, name, daemon.pid());
        let target = Target {
            container,
            address: self.network.address.into(),
            pid: daemon.pid(),
            user: User::of(&self.pod, container),
        };
        let mut stop = self.stop.clone();
        let why = tokio::select! {
            ended = daemon.wait() => Err(ended),
            why = target.watch(|ready| self.report.ready(name, ready)) => Ok(why),
            _ = stop.wait_for(Option::is_some) => Ok("the pod was deleted".to_owned()),
        };
        let (ended, why) = match why {
            Err(ended) => (ended, String::new()),
            Ok(why) => (self.end(target, &mut daemon).await, why),
        };
        self.shared.is_running(&self.pod, name, None);
        let code = ended.map_or(-1, exit_code);
        self.report.terminated(name, code, &why);
        code
    }

    /// Ends the container: its hook, SIGTERM, and SIGKILL if that takes longer than it may.
    async fn end(&self, target: Target<'_>, daemon: &mut Daemon) -> Result<ExitStatus> {
        let of_pod =
            self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        let asked = *self.stop.borrow();
        let grace = asked.unwrap_or_else(|| Duration::from_secs(of_pod.max(0).unsigned_abs()));
        let began = Clock::system().now();
        let hook = timeout(grace, pre_stop(target)).await;
        if let Ok(Err(error)) = hook {
            eprintln!("preStop of {}: {error:#}", target.container.name);
        }
        daemon.signal(Signal::TERM)?;
        let left = grace.saturating_sub(Clock::system().now().duration_since(began));
        let mut stop = self.stop.clone();
        stop.mark_unchanged();
        let ended = tokio::select! {
            ended = timeout(left, daemon.wait()) => ended.ok(),
            // It is to end sooner than was said first.
            _ = stop.wait_for(|now| *now < asked) => None,
        };
        if let Some(ended) = ended {
            return ended;
        }
        daemon.signal(Signal::KILL)?;
        daemon.wait().await
    }

    async fn stopped_within(&self, time: Duration) -> bool {
        let mut stop = self.stop.clone();
        timeout(time, stop.wait_for(Option::is_some)).await.is_ok()
    }
}

async fn pre_stop(target: Target<'_>) -> Result<()> {
    let hook = target.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    let Some(hook) = hook else {
        return Ok(());
    };
    if let Some(pause) = &hook.sleep {
        sleep(Duration::from_secs(pause.seconds.max(0).unsigned_abs())).await;
    }
    if let Some(get) = &hook.http_get {
        target.get(&get.port, get.path.as_deref().unwrap_or("/")).await?;
    }
    if let Some(command) = hook.exec.as_ref().and_then(|exec| exec.command.as_deref()) {
        target.exec(command).await?;
    }
    Ok(())
}

/// As a shell and the kubelet count.
fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}
