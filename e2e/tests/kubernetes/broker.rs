//! Brokers that are declared by `kubectl apply`: their pods are made, reached, scaled and replaced.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use weir_e2e::clients::{Client, Connect, Kind, Publish, Subscribe, Version};
use weir_e2e::kubernetes::{Cluster, Daemon, until};

use crate::on_kubernetes;
use crate::pods::service;

const CLIENT: Client = Client { kind: Kind::Rumqttc, version: Version::V5 };
/// From one publish of the load to its next.
const PACE: Duration = Duration::from_millis(50);
/// Attempts at one publish: a client that is told to go elsewhere goes there, and needs no third.
const ATTEMPTS_MAX: u32 = 3;

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
spec: { store: { embedded: { storage: 1Gi } }, auth: { allowAnonymous: true } }
"#;

/// A store server, and two pods on it.
const SHARED: &str = r#"
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
apiVersion: apps/v1
kind: Deployment
metadata: { name: store, namespace: messaging }
spec:
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
      volumes: [{ name: data, emptyDir: {} }, { name: token, secret: { secretName: store-token } }]
---
apiVersion: weir.dev/v1alpha1
kind: MessageQueue
metadata: { name: jobs, namespace: messaging }
spec: { topicFilter: work/# }
---
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
            let _operator = operator(cluster)?;
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
            let _operator = operator(cluster)?;
            let kubectl = cluster.kubectl();
            kubectl.apply(SHARED).await?;
            kubectl.run("rollout status deployment/store -n messaging --timeout=55s").await?;
            kubectl.run("wait broker/main -n messaging --for=condition=Ready --timeout=55s").await?;
            kubectl.run("wait mq/jobs -n messaging --for=condition=Ready --timeout=55s").await?;
            let broker = service(cluster, "messaging", "main", 1883).await?;
            let load = Load::start(broker);

            kubectl.run("scale broker main -n messaging --replicas=3").await?;
            pods_ready(cluster, 3).await?;
            kubectl.run("scale broker main -n messaging --replicas=2").await?;
            pods_ready(cluster, 2).await?;
            let before = pod_names(cluster).await?;
            let patch = r#"{"spec":{"pods":{"annotations":{"example.com/version":"2"}}}}"#;
            kubectl.run(&format!("patch broker main -n messaging --type=merge -p {patch}")).await?;
            until("all pods to be others", || async {
                let now = pod_names(cluster).await?;
                Ok((now.len() == 2 && now.iter().all(|name| !before.contains(name))).then_some(()))
            })
            .await?;

            let published = load.end().await?;
            let consumer =
                CLIENT.subscribe(Connect::clean(broker, "consumer"), Subscribe::to("$queue/jobs", 1)).await;
            let (mut consumer, mut seen) = (consumer?, BTreeSet::new());
            while seen.len() < published {
                // One whose acknowledgement was lost may be there twice.
                let messages =
                    consumer.collect(1).await.with_context(|| format!("{} of {published}", seen.len()))?;
                seen.extend(messages.into_iter().map(|message| message.payload));
            }
            eprintln!("{published} publishes, none failed");
            Ok(())
        },
    )
}

fn operator(cluster: &Cluster) -> Result<Daemon> {
    let mut command = Command::new(&cluster.programs().operator);
    command.args([
        "run",
        "--http",
        "127.0.0.1:9080",
        "--broker-image",
        "weir:e2e",
        "--lease-namespace",
        "default",
    ]);
    command.args(["--resync", "10s"]).env("KUBECONFIG", cluster.kubectl().kubeconfig());
    Daemon::start(command, cluster.logs().join("pods").join("operator.log"))
}

async fn pod_names(cluster: &Cluster) -> Result<Vec<String>> {
    let names = cluster.kubectl().run("get pods -n messaging -l weir.dev/broker=main -o name").await?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// Waits until the Broker has `wanted` pods, each ready.
async fn pods_ready(cluster: &Cluster, wanted: u64) -> Result<()> {
    until(&format!("{wanted} ready pods"), || async {
        let deployment = cluster.kubectl().get("deployment main -n messaging").await?;
        let status = &deployment["status"];
        Ok((status["readyReplicas"] == wanted && status["replicas"] == wanted).then_some(()))
    })
    .await
}

/// A client that connects anew for each publish.
struct Load {
    task: JoinSet<Result<()>>,
    enough: CancellationToken,
    published: Arc<AtomicU64>,
}

impl Load {
    fn start(broker: SocketAddr) -> Self {
        let (enough, published) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let mut task = JoinSet::new();
        task.spawn(load(broker, enough.clone(), published.clone()));
        Self { task, enough, published }
    }

    /// Messages that were acknowledged; an error if a publish failed.
    async fn end(mut self) -> Result<usize> {
        self.enough.cancel();
        self.task.join_next().await.context("the load runs")???;
        Ok(usize::try_from(self.published.load(Ordering::Acquire))?)
    }
}

async fn load(broker: SocketAddr, enough: CancellationToken, published: Arc<AtomicU64>) -> Result<()> {
    for n in 0_u64.. {
        if enough.is_cancelled() {
            break;
        }
        let mut attempts = 0;
        loop {
            attempts += 1;
            let connect = Connect::clean(broker, format!("load-{n}-{attempts}"));
            match CLIENT.publish(connect, Publish::to("work/load", 1, [n.to_string()])).await {
                Ok(reasons) => {
                    ensure!(reasons == [0], "publish {n} was answered {reasons:?}");
                    break;
                }
                Err(error) if attempts >= ATTEMPTS_MAX => {
                    return Err(error.context(format!("publish {n}, attempt {attempts}")));
                }
                Err(_) => {}
            }
        }
        published.fetch_add(1, Ordering::AcqRel);
        sleep(PACE).await;
    }
    Ok(())
}
