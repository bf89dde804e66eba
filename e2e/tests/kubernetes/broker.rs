//! Brokers that are declared by `kubectl apply`: their pods are made, reached, scaled and replaced.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use weir_e2e::clients::{Client, Connect, Kind, Publish, Subscribe, Version};
use weir_e2e::kubernetes::{Cluster, Daemon, until};
use weir_env::clock::Clock;

use crate::on_kubernetes;
use crate::pods::service;
use crate::scaling::Crowd;

const CLIENT: Client = Client { kind: Kind::Rumqttc, version: Version::V5 };
/// From one publish of the load to its next.
const PACE: Duration = Duration::from_millis(50);
/// A publish has failed if no success was acknowledged for so long, to a client that connects again and sends again.
const FAILED_AFTER: Duration = Duration::from_secs(30);
/// A client takes a connection that says nothing for so long for dead.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// One pod with a volume, and a queue of another namespace.
const TRIAL: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: messaging, labels: { pod-security.kubernetes.io/enforce: restricted } }
---
apiVersion: v1
kind: Namespace
metadata: { name: city }
---
apiVersion: weir.dev/v1alpha1
kind: MessageQueue
metadata: { name: jobs, namespace: city }
spec: { topicFilter: work/# }
---
apiVersion: weir.dev/v1alpha1
kind: Broker
metadata: { name: main, namespace: messaging }
spec:
  store: { embedded: { storage: 1Gi } }
  auth: { allowAnonymous: true }
  autoCreate: { queues: [{ namePattern: "auto-*", spec: { maxDeliveries: 3 } }] }
"#;

/// A store server that brokers may share, and a queue.
pub(crate) const STORE: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: messaging }
---
apiVersion: v1
kind: Secret
metadata: { name: store-token, namespace: messaging }
stringData: { token: 0123456789abcdef0123456789abcdef }
---
apiVersion: v1
kind: Service
metadata: { name: store, namespace: messaging }
spec: { selector: { app: store }, ports: [{ port: 8083 }] }
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: { name: store, namespace: messaging }
spec: { accessModes: [ReadWriteOnce], resources: { requests: { storage: 1Gi } } }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: store, namespace: messaging }
spec:
  strategy: { type: Recreate }
  selector: { matchLabels: { app: store } }
  template:
    metadata: { labels: { app: store } }
    spec:
      securityContext: { runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532 }
      containers:
        - name: store
          image: weir:e2e
          command: [weir, store, serve, --store, "embedded:/var/lib/weir/store", --listen, "0.0.0.0:8083", --token-file, /etc/token/token]
          readinessProbe: { tcpSocket: { port: 8083 }, periodSeconds: 1 }
          volumeMounts: [{ name: data, mountPath: /var/lib/weir }, { name: token, mountPath: /etc/token }]
      volumes: [{ name: data, persistentVolumeClaim: { claimName: store } }, { name: token, secret: { secretName: store-token } }]
---
apiVersion: weir.dev/v1alpha1
kind: MessageQueue
metadata: { name: jobs, namespace: messaging }
spec: { topicFilter: work/# }
"#;

/// Two pods on that store.
pub(crate) const TWO_PODS: &str = r#"
apiVersion: weir.dev/v1alpha1
kind: Broker
metadata: { name: main, namespace: messaging }
spec:
  replicas: 2
  store: { remote: { address: "store.messaging:8083", tokenSecretRef: { name: store-token, key: token } } }
  auth: { allowAnonymous: true }
"#;

#[test]
fn a_broker_and_a_queue_that_are_applied_together_serve_a_client() -> Result<()> {
    on_kubernetes(
        "broker::a_broker_and_a_queue_that_are_applied_together_serve_a_client",
        async |cluster: &mut Cluster| {
            let _operator = operator(cluster, &[])?;
            let kubectl = cluster.kubectl();
            kubectl.apply(TRIAL).await?;
            kubectl.run("wait broker/main -n messaging --for=condition=Ready --timeout=55s").await?;
            kubectl.run("wait mq/jobs -n city --for=condition=Ready --timeout=55s").await?;
            let broker = service(cluster, "messaging", "main", 1883).await?;
            let connect = Connect::clean(broker, "publisher");
            ensure!(CLIENT.publish(connect, Publish::to("work/1", 1, ["one"])).await? == [0]);
            let consumer =
                CLIENT.subscribe(Connect::clean(broker, "consumer"), Subscribe::to("$queue/jobs", 1)).await;
            let messages = consumer?.collect(1).await?;
            ensure!(messages[0].payload == "one", "{messages:?}");
            created_by_a_subscription(broker).await?;

            kubectl.run("delete broker main -n messaging --timeout=50s").await?;
            until("everything of the Broker but its volume to be gone", || async {
            let left = kubectl.run("get deployments,services,configmaps,pdb,pods -n messaging -l weir.dev/broker=main -o name");
            Ok(left.await?.trim().is_empty().then_some(()))
        })
        .await?;
            // Nobody waits for a Broker that is gone.
            kubectl.run("delete mq jobs -n city --timeout=50s").await.map(drop)
        },
    )
}

#[test]
fn pods_come_go_and_are_replaced_without_a_failed_publish() -> Result<()> {
    on_kubernetes(
        "broker::pods_come_go_and_are_replaced_without_a_failed_publish",
        async |cluster: &mut Cluster| {
            let _operator = operator(cluster, &[])?;
            let kubectl = cluster.kubectl();
            serve_shared(cluster, TWO_PODS).await?;
            let broker = service(cluster, "messaging", "main", 1883).await?;
            let load = Load::start(broker);
            // Of pods that are told to end as of those that come and stay.
            let subscribers = Crowd::start(broker, 6, "work/#");

            kubectl.run("scale broker main -n messaging --replicas=3").await?;
            pods_ready(cluster, 3).await?;
            kubectl.run("scale broker main -n messaging --replicas=2").await?;
            pods_ready(cluster, 2).await?;
            replaced(cluster, r#"{"spec":{"pods":{"annotations":{"example.com/version":"2"}}}}"#).await?;
            replaced(cluster, r#"{"spec":{"image":"registry.example/weir:e2e-2"}}"#).await?;
            let images =
                kubectl.run("get pods -n messaging -l weir.dev/broker=main -o jsonpath={..image}").await?;
            ensure!(images.split_whitespace().all(|image| image.ends_with("weir:e2e-2")), "{images}");

            subscribers.end().await?;
            load.end_and_consume(broker).await?;
            // Broker, queue and store in one namespace: whichever goes first holds up nothing.
            kubectl.run("delete namespace messaging --wait=false").await?;
            // The namespace controller looks again after up to a minute, and as often as anything is left.
            for _ in 0..5 {
                if kubectl.run("wait namespace/messaging --for=delete --timeout=50s").await.is_ok() {
                    return Ok(());
                }
            }
            let left = kubectl.run("get namespace messaging -o jsonpath={.status.conditions}").await?;
            bail!("the namespace does not go: {left}")
        },
    )
}

/// Those who look after the pods go away in the middle of a rolling replacement; then all pods do.
#[test]
fn a_rollout_survives_its_operator_its_api_server_and_its_pods() -> Result<()> {
    on_kubernetes(
        "broker::a_rollout_survives_its_operator_its_api_server_and_its_pods",
        async |cluster: &mut Cluster| {
            let first = operator(cluster, &[])?;
            let kubectl = cluster.kubectl().clone();
            serve_shared(cluster, TWO_PODS).await?;
            let broker = service(cluster, "messaging", "main", 1883).await?;
            let load = Load::start(broker);

            let before = pod_names(cluster).await?;
            patch(cluster, r#"{"spec":{"image":"registry.example/weir:e2e-2"}}"#).await?;
            until("the first new pod", || async {
                let now = pod_names(cluster).await?;
                Ok(now.iter().any(|name| !before.contains(name)).then_some(()))
            })
            .await?;
            drop(first);
            cluster.kill_api_server().await?;
            cluster.start_api_server().await?;
            let _second = operator(cluster, &[])?;
            others_than(cluster, &before).await?;
            load.end_and_consume(broker).await?;

            // No pod is left: what was acknowledged is there when others come.
            let published = CLIENT
                .publish(Connect::clean(broker, "before"), Publish::to("work/before", 1, ["before"]))
                .await?;
            ensure!(published == [0], "{published:?}");
            let before = pod_names(cluster).await?;
            kubectl.run("delete pods -n messaging -l weir.dev/broker=main --force --grace-period=0").await?;
            others_than(cluster, &before).await?;
            pods_ready(cluster, 2).await?;
            kubectl.run("wait mq/jobs -n messaging --for=condition=Ready --timeout=55s").await?;
            let mut consumer =
                CLIENT.subscribe(Connect::clean(broker, "after"), Subscribe::to("$queue/jobs", 1)).await?;
            let messages = consumer.collect(1).await?;
            ensure!(messages[0].payload == "before", "{messages:?}");
            Ok(())
        },
    )
}

/// Another may set the number of pods; the operator leaves it alone.
#[test]
fn an_autoscaler_finds_the_scale_of_a_broker() -> Result<()> {
    on_kubernetes("broker::an_autoscaler_finds_the_scale_of_a_broker", async |cluster: &mut Cluster| {
        let _operator = operator(cluster, &[])?;
        let kubectl = cluster.kubectl();
        serve_shared(cluster, TWO_PODS).await?;
        kubectl.run("autoscale broker main -n messaging --min=2 --max=4 --cpu=80%").await?;
        until("the autoscaler to read the scale", || async {
            let autoscaler = kubectl.get("hpa main -n messaging").await?;
            let status = &autoscaler["status"];
            let conditions = status["conditions"].as_array();
            let able = conditions
                .into_iter()
                .flatten()
                .any(|condition| condition["type"] == "AbleToScale" && condition["status"] == "True");
            Ok((able && status["currentReplicas"] == 2).then_some(()))
        })
        .await?;
        let scale =
            kubectl.run("get broker main -n messaging --subresource=scale -o jsonpath={.status}").await?;
        ensure!(scale.contains("weir.dev/broker=main") && scale.contains(r#""replicas":2"#), "{scale}");
        // As the autoscaler would do it.
        kubectl.run("scale broker main -n messaging --replicas=3").await?;
        pods_ready(cluster, 3).await?;
        let kept = kubectl.run("get broker main -n messaging -o jsonpath={.spec.replicas}").await?;
        ensure!(kept.trim() == "3", "{kept}");
        Ok(())
    })
}

/// A queue that nobody has declared, as a template of the Broker has it.
async fn created_by_a_subscription(broker: SocketAddr) -> Result<()> {
    let subscribe = Subscribe::to("$queue/auto-jobs/auto/#", 1);
    let mut consumer = CLIENT.subscribe(Connect::clean(broker, "creator"), subscribe).await?;
    ensure!(consumer.granted() == [1], "{:?}", consumer.granted());
    ensure!(
        CLIENT.publish(Connect::clean(broker, "publisher"), Publish::to("auto/1", 1, ["two"])).await? == [0]
    );
    let messages = consumer.collect(1).await?;
    ensure!(messages[0].payload == "two", "{messages:?}");
    Ok(())
}

/// Applies [`STORE`] and the Broker `main`, and waits until all of it is ready.
pub(crate) async fn serve_shared(cluster: &Cluster, broker: &str) -> Result<()> {
    let kubectl = cluster.kubectl();
    kubectl.apply(&format!("{STORE}---{broker}")).await?;
    kubectl.run("rollout status deployment/store -n messaging --timeout=55s").await?;
    kubectl.run("wait broker/main -n messaging --for=condition=Ready --timeout=55s").await?;
    kubectl.run("wait mq/jobs -n messaging --for=condition=Ready --timeout=55s").await.map(drop)
}

/// Changes the Broker.
pub(crate) async fn patch(cluster: &Cluster, patch: &str) -> Result<()> {
    let patch = format!("patch broker main -n messaging --type=merge -p {patch}");
    cluster.kubectl().run(&patch).await.map(drop)
}

/// Changes the Broker, and waits until all its pods are others.
async fn replaced(cluster: &Cluster, change: &str) -> Result<()> {
    let before = pod_names(cluster).await?;
    patch(cluster, change).await?;
    let left = async {
        loop {
            let deployment = cluster.kubectl().get("deployment main -n messaging").await?;
            let count = |part: &str, field: &str| deployment[part][field].as_u64().unwrap_or(0);
            let (ready, wanted) = (count("status", "readyReplicas"), count("spec", "replicas"));
            ensure!(ready + 1 >= wanted, "{ready} of {wanted} pods are ready");
            sleep(PACE).await;
        }
    };
    tokio::select! {
        replaced = others_than(cluster, &before) => replaced,
        left = left => left,
    }
}

async fn others_than(cluster: &Cluster, before: &[String]) -> Result<()> {
    until("all pods to be others", || async {
        let now = pod_names(cluster).await?;
        Ok((now.len() == 2 && now.iter().all(|name| !before.contains(name))).then_some(()))
    })
    .await
}

/// The operator as a process beside the cluster, with `more` flags.
pub(crate) fn operator(cluster: &Cluster, more: &[&str]) -> Result<Daemon> {
    let mut command = Command::new(&cluster.programs().operator);
    command.args([
        "run",
        "--http",
        "127.0.0.1:0",
        "--broker-image",
        "weir:e2e",
        "--lease-namespace",
        "default",
    ]);
    command.args(["--resync", "10s"]).args(more).env("KUBECONFIG", cluster.kubectl().kubeconfig());
    Daemon::start(command, cluster.logs().join("pods").join("operator.log"))
}

async fn pod_names(cluster: &Cluster) -> Result<Vec<String>> {
    let names = cluster.kubectl().run("get pods -n messaging -l weir.dev/broker=main -o name").await?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// Waits until the Broker has `wanted` pods, each ready.
pub(crate) async fn pods_ready(cluster: &Cluster, wanted: u64) -> Result<()> {
    until(&format!("{wanted} ready pods"), || async {
        let deployment = cluster.kubectl().get("deployment main -n messaging").await?;
        let status = &deployment["status"];
        Ok((status["readyReplicas"] == wanted && status["replicas"] == wanted).then_some(()))
    })
    .await
}

/// A client that connects anew for each publish.
pub(crate) struct Load {
    task: JoinSet<Result<Counts>>,
    enough: CancellationToken,
}

/// What a load has seen. None of its publishes has failed.
#[derive(Default)]
struct Counts {
    published: usize,
    /// Publishes that were sent more than once.
    resent: usize,
    /// The longest time from the first try of a publish to its success.
    longest: Duration,
}

impl Load {
    pub(crate) fn start(broker: SocketAddr) -> Self {
        let enough = CancellationToken::new();
        let mut task = JoinSet::new();
        task.spawn(load(broker, enough.clone()));
        Self { task, enough }
    }

    /// Ends it; how many payloads were published, from `0` on. An error if a publish failed.
    pub(crate) async fn end(mut self) -> Result<usize> {
        self.enough.cancel();
        let counts = self.task.join_next().await.context("the load runs")???;
        eprintln!(
            "{} publishes, none failed; {} were sent again, and the longest took {:.1} s",
            counts.published,
            counts.resent,
            counts.longest.as_secs_f64()
        );
        Ok(counts.published)
    }

    /// Ends it, and consumes from the queue what was acknowledged; an error if a publish failed or is not there.
    async fn end_and_consume(self, broker: SocketAddr) -> Result<()> {
        let published = self.end().await?;
        let consumer =
            CLIENT.subscribe(Connect::clean(broker, "consumer"), Subscribe::to("$queue/jobs", 1)).await;
        let (mut consumer, mut seen) = (consumer?, BTreeSet::new());
        while seen.len() < published {
            // One whose acknowledgement was lost may be there twice.
            let messages =
                consumer.collect(1).await.with_context(|| format!("{} of {published}", seen.len()))?;
            seen.extend(messages.into_iter().map(|message| message.payload));
        }
        consumer.disconnect().await
    }
}

async fn load(broker: SocketAddr, enough: CancellationToken) -> Result<Counts> {
    let mut counts = Counts::default();
    while !enough.is_cancelled() {
        let n = counts.published;
        let began = Clock::system().now();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let connect = Connect::clean(broker, format!("load-{n}-{attempts}"));
            let publish = CLIENT.publish(connect, Publish::to("work/load", 1, [n.to_string()]));
            let answer = timeout(SILENCE_MAX, publish).await;
            let took = Clock::system().now().duration_since(began);
            let is_success = matches!(&answer, Ok(Ok(reasons)) if *reasons == [0]);
            // A pod that goes ends connections. It refuses nothing that another one would take.
            let is_refused =
                matches!(&answer, Ok(Ok(reasons)) if reasons.iter().any(|reason| *reason >= 0x80));
            ensure!(!is_refused, "publish {n} was refused at try {attempts}: {answer:?}");
            ensure!(
                took < FAILED_AFTER,
                "publish {n} failed: after {took:?} and {attempts} tries: {answer:?}"
            );
            if is_success {
                counts.longest = counts.longest.max(took);
                break;
            }
            sleep(PACE).await;
        }
        counts.resent += usize::from(attempts > 1);
        counts.published += 1;
        sleep(PACE).await;
    }
    Ok(counts)
}
