//! The player of the nodes: what kubelet, kube-proxy, DNS and a provisioner of volumes do, for pods of Weir.
//!
//! Pods that the scheduler binds to one of its nodes are run as processes from their specs, each pod in a network
//! namespace of its own and each container in a root of its own, under the user that the pod names. What is not
//! played is an error in the pod's status. Sidecars, readiness gates, limits of resources and updates of mounted
//! objects are not played.

mod container;
mod environment;
mod network;
mod pod;
mod probe;
mod services;
mod status;
mod storage;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use rustix::process::Pid;
use serde_json::json;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Programs, STATE};
use crate::now_rfc3339;

/// The nodes, each in a zone of its own. They are one machine.
const NODES: [(&str, &str); 3] = [("node-1", "zone-a"), ("node-2", "zone-b"), ("node-3", "zone-c")];
/// The network of pods: a bridge, which has the nodes' address.
const NETWORK: &str =
    "ip link add pods type bridge && ip addr add 10.244.0.1/16 dev pods && ip link set pods up";

/// The running player; pods end with it.
#[derive(Debug)]
pub struct Node {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

/// What all pods need.
struct Shared {
    client: Client,
    programs: Programs,
    logs: PathBuf,
    /// Where pods' folders are.
    state: PathBuf,
    /// `/etc/hosts` of all pods.
    hosts: PathBuf,
    /// Processes by namespace, pod and container.
    running: Mutex<BTreeMap<(String, String, String), Pid>>,
}

impl Node {
    pub(super) async fn start(client: Client, programs: Programs, logs: PathBuf) -> Result<Self> {
        for (name, zone) in NODES {
            register(&client, name, zone).await.with_context(|| format!("register {name}"))?;
        }
        storage::make_class(&client).await?;
        let state = PathBuf::from(STATE).join("pods");
        std::fs::create_dir_all(&state)?;
        let hosts = PathBuf::from(STATE).join("hosts");
        std::fs::write(&hosts, "127.0.0.1 localhost\n")?;
        let shared =
            Shared { client: client.clone(), programs, logs, state, hosts, running: Mutex::default() };
        let shared = Arc::new(shared);
        let mut tasks = JoinSet::new();
        tasks.spawn(services::run(client.clone(), shared.hosts.clone()));
        tasks.spawn(storage::run(client, PathBuf::from(STATE).join("volumes")));
        tasks.spawn(run_pods(shared.clone()));
        Ok(Self { shared, _tasks: tasks })
    }

    /// The process of a container, if it runs.
    #[must_use]
    pub fn process(&self, namespace: &str, pod: &str, container: &str) -> Option<Pid> {
        let key = (namespace.to_owned(), pod.to_owned(), container.to_owned());
        self.shared.running.lock().get(&key).copied()
    }

    /// The file with what a container wrote, over all its restarts.
    #[must_use]
    pub fn log(&self, namespace: &str, pod: &str, container: &str) -> PathBuf {
        self.shared.logs.join(format!("{namespace}_{pod}_{container}.log"))
    }
}

impl Shared {
    fn log(&self, pod: &Pod, container: &str) -> PathBuf {
        let (namespace, name) = named(pod);
        self.logs.join(format!("{namespace}_{name}_{container}.log"))
    }

    fn is_running(&self, pod: &Pod, container: &str, pid: Option<Pid>) {
        let (namespace, name) = named(pod);
        let key = (namespace, name, container.to_owned());
        match pid {
            Some(pid) => self.running.lock().insert(key, pid),
            None => self.running.lock().remove(&key),
        };
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("logs", &self.logs).finish_non_exhaustive()
    }
}

fn named(pod: &Pod) -> (String, String) {
    let meta = &pod.metadata;
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// Starts a task for each pod that is bound to a node, and tells it of all that changes.
async fn run_pods(shared: Arc<Shared>) {
    let pods = watcher(Api::<Pod>::all(shared.client.clone()), watcher::Config::default());
    let mut events = Box::pin(pods.default_backoff());
    let mut lives = JoinSet::new();
    let mut known: BTreeMap<String, watch::Sender<Option<Arc<Pod>>>> = BTreeMap::new();
    let mut listed = BTreeSet::new();
    let mut n = 0;
    while let Some(event) = events.next().await {
        while lives.try_join_next().is_some() {}
        known.retain(|_, updates| !updates.is_closed());
        let pod = match event {
            Ok(Event::Apply(pod)) => pod,
            Ok(Event::InitApply(pod)) => {
                listed.extend(pod.metadata.uid.clone());
                pod
            }
            Ok(Event::Delete(pod)) => {
                if let Some(updates) = pod.metadata.uid.as_ref().and_then(|uid| known.get(uid)) {
                    updates.send_replace(None);
                }
                continue;
            }
            Ok(Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(Event::InitDone) => {
                let missed = known.iter().filter(|(uid, _)| !listed.contains(*uid));
                missed.for_each(|(_, updates)| drop(updates.send_replace(None)));
                continue;
            }
            // The watcher tries again.
            Err(_) => continue,
        };
        let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let ended = matches!(ended, Some("Succeeded" | "Failed"));
        let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let Some(uid) = pod.metadata.uid.clone().filter(|_| bound) else {
            continue;
        };
        let pod = Arc::new(pod);
        if let Some(updates) = known.get(&uid) {
            updates.send_replace(Some(pod));
        } else if !ended {
            n += 1;
            let (updates_tx, mut updates) = watch::channel(Some(pod.clone()));
            // It may be one that is to end already.
            updates.mark_changed();
            known.insert(uid, updates_tx);
            let shared = shared.clone();
            lives.spawn(async move {
                let (namespace, name) = named(&pod);
                if let Err(error) = pod::live(shared, n, pod, updates).await {
                    eprintln!("the pod {namespace}/{name}: {error:#}");
                }
            });
        }
    }
}

/// Makes the network of pods inside the sandbox.
pub(super) async fn make_network() -> Result<()> {
    shell(NETWORK).await
}

/// Runs `script`, which must succeed.
async fn shell(script: &str) -> Result<()> {
    let output = Command::new("sh").args(["-ec", script]).kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Makes the Node object, ready to take pods.
async fn register(client: &Client, name: &str, zone: &str) -> Result<()> {
    let nodes: Api<core::Node> = Api::all(client.clone());
    let node = serde_json::from_value(json!({
        "metadata": { "name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": zone,
        }},
    }))?;
    nodes.create(&PostParams::default(), &node).await?;
    let room = json!({ "cpu": "64", "memory": "256Gi", "ephemeral-storage": "1Ti", "pods": "1000" });
    let now = now_rfc3339();
    let status = json!({ "status": {
        "capacity": room,
        "allocatable": room,
        "addresses": [{ "type": "InternalIP", "address": super::NODE }, { "type": "Hostname", "address": name }],
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "Played", "message": "pods are run as processes",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        }],
    }});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await?;
    Ok(())
}
