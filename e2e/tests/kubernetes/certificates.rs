//! Pods that prove themselves by certificates: to each other, and with the operator to each other.

use std::path::Path;
use std::process::Output;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::process::Command;
use weir_e2e::certificates::{Signed, for_both};
use weir_e2e::clients::{Client, Connect, Kind, Publish, Subscribe, Version};
use weir_e2e::kubernetes::{Cluster, until};

use crate::broker::{STORE, operator};
use crate::on_kubernetes;
use crate::pods::service;

const CLIENT: Client = Client { kind: Kind::Rumqttc, version: Version::V5 };
/// As clients connect, some come to the one pod, some to the other.
const PUBLISHERS: usize = 16;
/// Of the pods of the Broker.
const NAME: &str = "main.messaging.weir.internal";

const BROKER: &str = r#"
apiVersion: weir.dev/v1alpha1
kind: Broker
metadata: { name: main, namespace: messaging }
spec:
  replicas: 2
  store: { remote: { address: "store.messaging:8083", tokenSecretRef: { name: store-token, key: token } } }
  auth: { allowAnonymous: true }
  peerTls: { secretRef: { name: main-pods } }
  adminTls: { secretRef: { name: main-pods } }
"#;

#[test]
fn pods_and_operator_prove_themselves_to_each_other() -> Result<()> {
    on_kubernetes(
        "certificates::pods_and_operator_prove_themselves_to_each_other",
        async |cluster: &mut Cluster| {
            let _operator = operator(cluster, &[])?;
            let kubectl = cluster.kubectl();
            let (signed, authority) = for_both(cluster.logs(), NAME)?;
            kubectl.apply(&format!("{STORE}---{BROKER}")).await?;
            // Without their Secret there are no pods; the Broker says what is missing.
            until("the Broker to say what is missing", || async {
                let said = kubectl.run("get broker main -n messaging -o jsonpath={..message}").await?;
                Ok(said
                    .contains("the Secret messaging/main-pods with the key tls.crt is missing")
                    .then_some(()))
            })
            .await?;
            kubectl.apply(&secret(&signed, &authority)?).await?;
            kubectl.run("wait broker/main -n messaging --for=condition=Ready --timeout=55s").await?;
            // It is the operator that has told the pods of the queue.
            kubectl.run("wait mq/jobs -n messaging --for=condition=Ready --timeout=55s").await?;

            let broker = service(cluster, "messaging", "main", 1883).await?;
            for n in 0..PUBLISHERS {
                let connect = Connect::clean(broker, format!("publisher-{n}"));
                let topic = format!("work/{n}");
                ensure!(CLIENT.publish(connect, Publish::to(&topic, 1, [n.to_string()])).await? == [0]);
            }
            let subscribe = Subscribe::to("$queue/jobs", 1);
            let mut consumer = CLIENT.subscribe(Connect::clean(broker, "consumer"), subscribe).await?;
            let mut came: Vec<String> =
                consumer.collect(PUBLISHERS).await?.into_iter().map(|message| message.payload).collect();
            came.sort_unstable();
            came.dedup();
            ensure!(came.len() == PUBLISHERS, "{came:?}");

            let pods = kubectl.get("pods -n messaging -l weir.dev/broker=main").await?;
            let pods = pods["items"].as_array().into_iter().flatten();
            let addresses: Vec<&str> = pods.filter_map(|pod| pod["status"]["podIP"].as_str()).collect();
            ensure!(addresses.len() == 2, "{addresses:?}");
            let token = cluster.logs().join("token");
            let read = "get secret main-internal -n messaging -o go-template={{.data.token|base64decode}}";
            std::fs::write(&token, kubectl.run(read).await?)?;
            for address in addresses {
                let call = Call { cluster, pod: address, token: &token };
                let authority = authority.display().to_string();
                let known = ["--ca-file", &authority, "--server-name", NAME];
                let shown = [
                    "--cert",
                    &signed.certificate.display().to_string(),
                    "--key",
                    &signed.key.display().to_string(),
                ];
                let listed = call.queues(&[known.as_slice(), &shown].concat()).await?;
                ensure!(listed.status.success(), "{listed:?}");
                ensure!(String::from_utf8_lossy(&listed.stdout).contains("jobs"), "{listed:?}");
                for refused in [known.as_slice(), &[]] {
                    let refused = call.queues(refused).await?;
                    ensure!(!refused.status.success(), "the token alone is not enough: {refused:?}");
                }
            }
            Ok(())
        },
    )
}

/// Somebody who calls the admin API of a pod with its token.
struct Call<'a> {
    cluster: &'a Cluster,
    pod: &'a str,
    token: &'a Path,
}

impl Call<'_> {
    async fn queues(&self, proof: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.cluster.programs().weir);
        command.args(["queue", "list", "--admin", &format!("{}:8081", self.pod)]).args(proof);
        Ok(command.arg("--token-file").arg(self.token).kill_on_drop(true).output().await?)
    }
}

fn secret(signed: &Signed, authority: &Path) -> Result<String> {
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": "main-pods", "namespace": "messaging" },
        "stringData": {
            "tls.crt": std::fs::read_to_string(&signed.certificate)?,
            "tls.key": std::fs::read_to_string(&signed.key)?,
            "ca.crt": std::fs::read_to_string(authority)?,
        },
    });
    Ok(secret.to_string())
}
