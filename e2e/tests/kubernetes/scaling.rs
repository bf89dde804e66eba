//! Pods of a Broker that follow their load: they come with its clients, and go one by one when there is less to do.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt as _;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{WatchStreamExt as _, watcher::Event};
use kube::{Api, ResourceExt as _};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use weir_e2e::clients::{Client, Connect, Kind, Subscribe, Version};
use weir_e2e::kubernetes::{Cluster, until};
use weir_e2e::within;

use crate::broker::{Load, operator, patch, pods_ready, serve_shared};
use crate::on_kubernetes;
use crate::pods::service;

const CLIENT: Client = Client { kind: Kind::Rumqttc, version: Version::V5 };
/// Before a client connects again.
const PAUSE: Duration = Duration::from_millis(50);
/// On a pod that is to go, since when.
const LEAVING: &str = "weir.dev/leaving-since";
/// What a client is told that is to go to another pod; the second by a pod that cannot go on, which a busy machine may bring about.
const ELSEWHERE: [&str; 2] = ["UseAnotherServer", "ServerShuttingDown"];

/// A pod for four clients.
const FOLLOWING: &str = r#"
apiVersion: weir.dev/v1alpha1
kind: Broker
metadata: { name: main, namespace: messaging }
spec:
  scaling: { minReplicas: 1, maxReplicas: 3, connectionsPerPod: 4, scaleUpAfter: 0s, scaleDownAfter: 2s }
  store: { remote: { address: "store.messaging:8083", tokenSecretRef: { name: store-token, key: token } } }
  auth: { allowAnonymous: true }
"#;

#[test]
fn pods_come_with_clients_and_go_drained_one_by_one() -> Result<()> {
    on_kubernetes(
        "scaling::pods_come_with_clients_and_go_drained_one_by_one",
        async |cluster: &mut Cluster| {
            let _operator = operator(cluster, &["--scaling-interval", "500ms"])?;
            serve_shared(cluster, FOLLOWING).await?;
            let broker = service(cluster, "messaging", "main", 1883).await?;
            let mut watched = Watched::start(cluster);
            let load = Load::start(broker);
            let consumers = Crowd::start(broker, 2, "$queue/jobs");
            pods_ready(cluster, 1).await?;

            let clients = Crowd::start(broker, 10, "work/#");
            pods_ready(cluster, 3).await?;
            says(cluster, 3, "Steady").await?;
            has_event(cluster, "ScaledUp", "connections at 4 a pod make").await?;

            clients.end().await?;
            pods_ready(cluster, 1).await?;
            says(cluster, 1, "Steady").await?;
            has_event(cluster, "ScalingDown", "is drained").await?;
            has_event(cluster, "ScaledDown", "is drained and goes").await?;
            watched.one_by_one(cluster, &[3, 2, 1])?;

            // As many clients, and fewer pods for them.
            let clients = Crowd::start(broker, 10, "work/#");
            pods_ready(cluster, 3).await?;
            watched.forget();
            patch(cluster, r#"{"spec":{"scaling":{"maxReplicas":1}}}"#).await?;
            pods_ready(cluster, 1).await?;
            watched.one_by_one(cluster, &[2, 1])?;
            clients.end().await?;

            let published = load.end().await?;
            let consumed = consumers.seen.clone();
            until("consumers to have all that was acknowledged", || async {
                let consumed = consumed.lock();
                Ok((0..published).all(|n| consumed.contains(&n.to_string())).then_some(()))
            })
            .await
            .with_context(|| format!("{} of {published}", consumed.lock().len()))?;
            consumers.end().await
        },
    )
}

/// Waits until the status says that there should be so many pods, for this reason.
async fn says(cluster: &Cluster, desired: u64, reason: &str) -> Result<()> {
    let last = Mutex::new(String::new());
    let what = format!("status.scaling to say {desired}, {reason}");
    let said = until(&what, || async {
        let broker = cluster.kubectl().get("broker main -n messaging").await?;
        let scaling = &broker["status"]["scaling"];
        *last.lock() = scaling.to_string();
        let is_whole = scaling["message"].is_string() && scaling["since"].is_string();
        Ok((scaling["desired"] == desired && scaling["reason"] == reason && is_whole).then_some(()))
    });
    said.await.with_context(|| format!("it says {}", last.lock()))
}

/// Waits for an event of the Broker.
async fn has_event(cluster: &Cluster, reason: &str, part: &str) -> Result<()> {
    until(&format!("the event {reason}: {part}"), || async {
        let events = cluster.kubectl().get("events.v1.events.k8s.io -n messaging").await?;
        let events = events["items"].as_array().context("a list")?;
        let is_it = events.iter().any(|event| {
            let says = event["note"].as_str().is_some_and(|note| note.contains(part));
            event["reason"] == reason && event["regarding"]["kind"] == "Broker" && says
        });
        Ok(is_it.then_some(()))
    })
    .await
}

/// What becomes of the pods of the Broker, from the first moment on.
struct Watched {
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    /// Pods that there should be, whenever that changed.
    replicas: Vec<i32>,
    /// Pods that were told to end, and whether they were marked before.
    ended: Vec<(String, bool)>,
}

impl Watched {
    fn start(cluster: &Cluster) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut tasks = JoinSet::new();
        let config = watcher::Config::default().labels("weir.dev/broker=main");
        let deployments: Api<Deployment> = Api::namespaced(cluster.client(), "messaging");
        let mut changes = watcher(deployments, config.clone()).default_backoff().boxed();
        let into = seen.clone();
        tasks.spawn(async move {
            while let Some(change) = changes.next().await {
                let Ok(Event::Apply(deployment) | Event::InitApply(deployment)) = change else { continue };
                let replicas = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(1);
                let mut seen = into.lock();
                if seen.replicas.last() != Some(&replicas) {
                    seen.replicas.push(replicas);
                }
            }
        });
        let pods: Api<Pod> = Api::namespaced(cluster.client(), "messaging");
        let mut changes = watcher(pods, config).default_backoff().boxed();
        let into = seen.clone();
        tasks.spawn(async move {
            while let Some(change) = changes.next().await {
                let Ok(Event::Apply(pod) | Event::InitApply(pod)) = change else { continue };
                let mut seen = into.lock();
                let is_new = !seen.ended.iter().any(|(name, _)| *name == pod.name_any());
                if pod.metadata.deletion_timestamp.is_some() && is_new {
                    seen.ended.push((pod.name_any(), pod.annotations().contains_key(LEAVING)));
                }
            }
        });
        Self { seen, _tasks: tasks }
    }

    /// Begins anew.
    fn forget(&mut self) {
        *self.seen.lock() = Seen::default();
    }

    /// The last numbers of pods were these, and every pod that ended was marked and drained before.
    fn one_by_one(&self, cluster: &Cluster, numbers: &[i32]) -> Result<()> {
        let seen = self.seen.lock();
        ensure!(seen.replicas.ends_with(numbers), "{:?}, expected {numbers:?}", seen.replicas);
        ensure!(seen.ended.len() >= 2 && seen.ended.iter().all(|(_, marked)| *marked), "{:?}", seen.ended);
        for (pod, _) in &seen.ended {
            let log = std::fs::read_to_string(cluster.node().log("messaging", pod, "weir"))?;
            let before = log.split("\"stopping\"").next().unwrap_or_default();
            ensure!(before.contains("\"drained\""), "{pod} was told to end before it was drained");
        }
        Ok(())
    }
}

/// Clients that stay connected: who is sent away connects again. Nobody's connection may end in another way.
pub(crate) struct Crowd {
    /// Payloads that came, at any of them.
    seen: Arc<Mutex<BTreeSet<String>>>,
    clients: JoinSet<Result<()>>,
    enough: CancellationToken,
}

impl Crowd {
    /// So many clients, each with a subscription to `filter`.
    pub(crate) fn start(broker: SocketAddr, count: usize, filter: &str) -> Self {
        let (seen, enough) = (Arc::<Mutex<BTreeSet<String>>>::default(), CancellationToken::new());
        let mut clients = JoinSet::new();
        for n in 0..count {
            let id = format!("{}-{n}", filter.trim_matches(['$', '/', '#']).replace('/', "-"));
            clients.spawn(stay(broker, id, filter.to_owned(), seen.clone(), enough.clone()));
        }
        Self { seen, clients, enough }
    }

    /// Ends them all; an error if the connection of one has ended without a word.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.enough.cancel();
        within("all clients to end", async {
            while let Some(client) = self.clients.join_next().await {
                client??;
            }
            Ok(())
        })
        .await
    }
}

async fn stay(
    broker: SocketAddr,
    id: String,
    filter: String,
    seen: Arc<Mutex<BTreeSet<String>>>,
    enough: CancellationToken,
) -> Result<()> {
    while !enough.is_cancelled() {
        let connect = Connect::clean(broker, id.as_str());
        // It may meet a pod that takes nobody any more.
        let Ok(mut subscriber) = CLIENT.subscribe(connect, Subscribe::to(filter.as_str(), 1)).await else {
            sleep(PAUSE).await;
            continue;
        };
        loop {
            let message = tokio::select! {
                message = subscriber.next() => message,
                () = enough.cancelled() => return subscriber.disconnect().await,
            };
            match message {
                Ok(message) => drop(seen.lock().insert(message.payload)),
                Err(error) => {
                    let ending = format!("{error:#}");
                    let is_told = ELSEWHERE.iter().any(|reason| ending.contains(reason));
                    ensure!(is_told, "the connection of {id} has ended: {ending}");
                    break;
                }
            }
        }
        sleep(PAUSE).await;
    }
    Ok(())
}
