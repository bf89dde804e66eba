//! What a Broker stands on goes away for a while: its store, its operator, the API server.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use weir_e2e::clients::{Client, Connect, Kind, Publish, Subscribe, Version};
use weir_e2e::kubernetes::{Cluster, until};
use weir_e2e::within;

use crate::broker::{TWO_PODS, operator, serve_shared};
use crate::on_kubernetes;
use crate::pods::service;

const CLIENT: Client = Client { kind: Kind::Rumqttc, version: Version::V5 };
/// Before a publish that did not succeed is sent again.
const PAUSE: Duration = Duration::from_millis(200);
/// A client takes a connection that says nothing for so long for dead.
const SILENCE_MAX: Duration = Duration::from_secs(5);

#[test]
fn a_store_that_is_away_is_told_of_and_loses_nothing() -> Result<()> {
    on_kubernetes(
        "faults::a_store_that_is_away_is_told_of_and_loses_nothing",
        async |cluster: &mut Cluster| {
            let _operator = operator(cluster, &[])?;
            let kubectl = cluster.kubectl();
            serve_shared(cluster, TWO_PODS).await?;
            let broker = service(cluster, "messaging", "main", 1883).await?;
            publish(broker, "before").await?;

            kubectl.run("scale deployment store -n messaging --replicas=0").await?;
            becomes(cluster, "broker main", "False", "PodsNotReady").await?;
            // What begins now waits, and is there in the end.
            let mut publisher = JoinSet::new();
            publisher.spawn(async move { publish(broker, "meanwhile").await });
            kubectl.apply(&queue("late")).await?;
            becomes(cluster, "mq late", "False", "BrokerUnavailable").await?;
            becomes(cluster, "mq jobs", "Unknown", "BrokerUnavailable").await?;

            kubectl.run("scale deployment store -n messaging --replicas=1").await?;
            becomes(cluster, "broker main", "True", "Ready").await?;
            becomes(cluster, "mq jobs", "True", "Ready").await?;
            becomes(cluster, "mq late", "True", "Ready").await?;
            publisher.join_next().await.context("it runs")???;
            let consumer = Connect::clean(broker, "consumer");
            let mut consumer = CLIENT.subscribe(consumer, Subscribe::to("$queue/jobs", 1)).await?;
            let mut missing = vec!["before", "meanwhile"];
            while !missing.is_empty() {
                let message = consumer.next().await.with_context(|| format!("{missing:?} to come"))?;
                missing.retain(|payload| *payload != message.payload);
            }
            Ok(())
        },
    )
}

/// The first operator is stopped for longer than its Lease lasts; the API server restarts under the second one.
#[test]
fn an_operator_that_lost_its_lease_ends_and_its_successor_goes_on() -> Result<()> {
    on_kubernetes(
        "faults::an_operator_that_lost_its_lease_ends_and_its_successor_goes_on",
        async |cluster: &mut Cluster| {
            let mut first = operator(cluster, &[])?;
            serve_shared(cluster, TWO_PODS).await?;
            let leader = leader(cluster).await?;
            first.signal(Signal::STOP)?;
            let _second = operator(cluster, &[])?;
            cluster.kubectl().apply(&queue("second")).await?;
            becomes(cluster, "mq second", "True", "Ready").await?;
            ensure!(self::leader(cluster).await? != leader, "{leader} leads, and is stopped");

            first.signal(Signal::CONT)?;
            let ended = within("the first operator to end", first.wait()).await?;
            ensure!(ended.code() == Some(1), "it ended with {ended}");
            ensure!(first.tail().contains("the lease is lost"), "{}", first.tail());

            // Every watch ends, and what changes afterwards is seen.
            cluster.kill_api_server().await?;
            cluster.start_api_server().await?;
            let kubectl = cluster.kubectl();
            kubectl.apply(&queue("third")).await?;
            becomes(cluster, "mq third", "True", "Ready").await?;
            let uid = "get service main -n messaging -o jsonpath={.metadata.uid}";
            let before = kubectl.run(uid).await?;
            kubectl.run("delete service main -n messaging").await?;
            until("the Service to be made again", || async {
                let now = kubectl.call(uid, "").await?;
                Ok(now.is_ok_and(|now| now != before).then_some(()))
            })
            .await
        },
    )
}

/// Who holds the Lease of the operators.
async fn leader(cluster: &Cluster) -> Result<String> {
    let holder = "get lease weir-operator -n default -o jsonpath={.spec.holderIdentity}";
    cluster.kubectl().run(holder).await
}

fn queue(name: &str) -> String {
    format!(
        "{{apiVersion: weir.dev/v1alpha1, kind: MessageQueue, metadata: {{name: {name}, namespace: messaging}}, \
         spec: {{topicFilter: {name}/#}}}}"
    )
}

/// Waits until the condition `Ready` of an object says so.
async fn becomes(cluster: &Cluster, object: &str, status: &str, reason: &str) -> Result<()> {
    let told = Mutex::new(String::new());
    let what = format!("{object} to be Ready={status} for {reason}");
    let is_so = until(&what, || async {
        let object = cluster.kubectl().get(&format!("{object} -n messaging")).await?;
        let conditions = object["status"]["conditions"].as_array();
        let ready = conditions.into_iter().flatten().find(|condition| condition["type"] == "Ready");
        let ready = ready.cloned().unwrap_or_default();
        *told.lock() = ready.to_string();
        Ok((ready["status"] == status && ready["reason"] == reason).then_some(()))
    });
    is_so.await.with_context(|| format!("it is {}", told.lock()))
}

/// Publishes to the queue `jobs`, again until that succeeds.
async fn publish(broker: SocketAddr, payload: &str) -> Result<()> {
    loop {
        let connect = Connect::clean(broker, payload);
        let answer = timeout(SILENCE_MAX, CLIENT.publish(connect, Publish::to("work/1", 1, [payload])));
        if matches!(answer.await, Ok(Ok(reasons)) if reasons == [0]) {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}
