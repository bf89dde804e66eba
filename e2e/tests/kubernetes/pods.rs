//! The player of the nodes runs a broker as Kubernetes would: what the other tests stand on.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use weir_e2e::clients::{Client, Connect, Kind, Publish, Subscribe, Version};
use weir_e2e::kubernetes::{Cluster, until};

use crate::on_kubernetes;

const CLIENT: Client = Client { kind: Kind::Rumqttc, version: Version::V5 };

/// As restricted as pods can be, with each kind of volume and of variable that the operator's pods use.
const BROKER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: city, labels: { pod-security.kubernetes.io/enforce: restricted } }
---
apiVersion: v1
kind: ConfigMap
metadata: { name: plain-config, namespace: city }
data:
  weir.toml: |
    listen = ["mqtt://0.0.0.0:1883"]
    store = "embedded:/var/lib/weir"
    allowAnonymous = true
  jobs.yaml: |
    apiVersion: weir.dev/v1alpha1
    kind: MessageQueue
    metadata: { name: jobs }
    spec: { topicFilter: work/# }
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: { name: plain-data, namespace: city }
spec: { accessModes: [ReadWriteOnce], resources: { requests: { storage: 1Gi } } }
---
apiVersion: v1
kind: Service
metadata: { name: plain, namespace: city }
spec:
  selector: { app: plain }
  ports: [{ name: mqtt, port: 1883, targetPort: mqtt }]
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: plain, namespace: city }
spec:
  replicas: 1
  strategy: { type: Recreate }
  selector: { matchLabels: { app: plain } }
  template:
    metadata: { labels: { app: plain } }
    spec:
      securityContext:
        { runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532, fsGroup: 65532, seccompProfile: { type: RuntimeDefault } }
      terminationGracePeriodSeconds: 20
      initContainers:
        - name: look
          image: weir:e2e
          command: [weir, --version]
          securityContext: &restricted
            { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: [ALL] } }
      containers:
        - name: broker
          image: registry.example/weir:e2e
          command: [weir]
          args: [serve, --config, /etc/weir/weir.toml, --manifests, $(MANIFESTS)]
          env:
            - { name: MANIFESTS, value: /etc/manifests }
            - { name: POD_IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
            - { name: WEIR_HTTP, value: "$(POD_IP):8080" }
          ports: [{ name: mqtt, containerPort: 1883 }, { name: http, containerPort: 8080 }]
          startupProbe: { httpGet: { path: /healthz, port: http }, periodSeconds: 1, failureThreshold: 60 }
          readinessProbe: { httpGet: { path: /readyz, port: http }, periodSeconds: 1 }
          livenessProbe: { httpGet: { path: /healthz, port: http } }
          lifecycle: { preStop: { sleep: { seconds: 1 } } }
          securityContext: *restricted
          volumeMounts:
            - { name: config, mountPath: /etc/weir, readOnly: true }
            - { name: manifests, mountPath: /etc/manifests, readOnly: true }
            - { name: data, mountPath: /var/lib/weir }
            - { name: tmp, mountPath: /tmp }
      volumes:
        - { name: config, configMap: { name: plain-config } }
        - { name: manifests, projected: { sources: [{ configMap: { name: plain-config, items: [{ key: jobs.yaml, path: jobs.yaml }] } }] } }
        - { name: data, persistentVolumeClaim: { claimName: plain-data } }
        - { name: tmp, emptyDir: {} }
"#;

#[test]
fn a_broker_runs_restarts_and_keeps_its_queue() -> Result<()> {
    on_kubernetes("pods::a_broker_runs_restarts_and_keeps_its_queue", async |cluster: &mut Cluster| {
        let kubectl = cluster.kubectl();
        kubectl.apply(BROKER).await?;
        let rolled = kubectl.run("rollout status deployment/plain -n city --timeout=50s").await;
        rolled.with_context(|| format!("logs: {}", cluster.logs().display()))?;
        let broker = service(cluster, "city", "plain", 1883).await?;

        let connect = Connect::clean(broker, "publisher");
        ensure!(CLIENT.publish(connect, Publish::to("work/1", 1, ["one"])).await? == [0]);

        let pod = pod(cluster, "city", "app=plain").await?;
        let process = cluster.node().process("city", &pod, "broker").context("its process")?;
        kill_process(process, Signal::KILL)?;
        until("the container to be started again", || async {
            let pod = kubectl.get(&format!("pod {pod} -n city")).await?;
            let status = &pod["status"]["containerStatuses"][0];
            let again = status["restartCount"] == 1 && status["ready"] == true;
            ensure!(!again || status["lastState"]["terminated"]["exitCode"] == 137, "{status}");
            Ok(again.then_some(()))
        })
        .await?;

        kubectl.run("rollout restart deployment/plain -n city").await?;
        kubectl.run("rollout status deployment/plain -n city --timeout=50s").await?;
        let mut subscriber =
            CLIENT.subscribe(Connect::clean(broker, "consumer"), Subscribe::to("$queue/jobs", 1)).await?;
        let messages = subscriber.collect(1).await?;
        ensure!(messages[0].payload == "one", "{messages:?}");

        kubectl.run("delete namespace city --timeout=50s").await?;
        Ok(())
    })
}

/// The address of a Service's port.
pub(crate) async fn service(cluster: &Cluster, namespace: &str, name: &str, port: u16) -> Result<SocketAddr> {
    let service = cluster.kubectl().get(&format!("service {name} -n {namespace}")).await?;
    let address = service["spec"]["clusterIP"].as_str().context("a cluster IP")?;
    Ok(SocketAddr::new(address.parse()?, port))
}

/// The name of the one pod with `label`.
async fn pod(cluster: &Cluster, namespace: &str, label: &str) -> Result<String> {
    let pods = cluster.kubectl().get(&format!("pods -n {namespace} -l {label}")).await?;
    let name = pods["items"][0]["metadata"]["name"].as_str();
    Ok(name.context("a pod")?.to_owned())
}
