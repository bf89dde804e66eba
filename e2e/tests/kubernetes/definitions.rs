//! The resource definitions on a real API server: what it refuses, what may not change, what people read.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weir_e2e::kubernetes::{Cluster, Kubectl, until};

use crate::on_kubernetes;

#[path = "../../../operator/api/tests/it/rules.rs"]
mod rules;

#[test]
fn the_api_server_refuses_what_the_rules_refuse() -> Result<()> {
    on_kubernetes(
        "definitions::the_api_server_refuses_what_the_rules_refuse",
        async |cluster: &mut Cluster| {
            let kubectl = cluster.kubectl();
            queues(kubectl).await?;
            streams(kubectl).await?;
            brokers(kubectl).await?;
            immutable(kubectl).await?;
            explained(kubectl).await?;
            listed(kubectl).await
        },
    )
}

fn object(kind: &str, name: &str, spec: &Value) -> String {
    json!({
        "apiVersion": "weir.dev/v1alpha1",
        "kind": kind,
        "metadata": { "name": name, "namespace": "default" },
        "spec": spec,
    })
    .to_string()
}

async fn refused(kubectl: &Kubectl, kind: &str, name: &str, spec: Value, why: &str) -> Result<()> {
    let refusal = kubectl.refused(&object(kind, name, &spec)).await?;
    ensure!(refusal.contains(why), "{why:?} is not in the refusal of {spec}: {refusal}");
    Ok(())
}

async fn queues(kubectl: &Kubectl) -> Result<()> {
    for (spec, why, _) in rules::queues() {
        refused(kubectl, "MessageQueue", "traffic", spec, why).await?;
    }
    for (spec, why) in [
        (json!({ "ackTimeout": "soon" }), "spec.ackTimeout"),
        (json!({ "shards": 0 }), "spec.shards"),
        (json!({ "ordering": "sometimes" }), "Unsupported value"),
        (json!({ "topicFiler": "a/#" }), "unknown field"),
    ] {
        refused(kubectl, "MessageQueue", "traffic", spec, why).await?;
    }
    refused(kubectl, "MessageQueue", &"q".repeat(129), json!({}), "queueName is needed").await
}

async fn streams(kubectl: &Kubectl) -> Result<()> {
    for (spec, why, _) in rules::streams() {
        refused(kubectl, "Stream", "telemetry", spec, why).await?;
    }
    refused(kubectl, "Stream", "telemetry", json!({}), "spec.topicFilter: Required").await?;
    refused(kubectl, "Stream", &"s".repeat(129), json!({ "topicFilter": "#" }), "streamName is needed").await
}

async fn brokers(kubectl: &Kubectl) -> Result<()> {
    for (changes, why, _) in rules::brokers() {
        refused(kubectl, "Broker", "main", rules::broker(changes), why).await?;
    }
    Ok(())
}

async fn immutable(kubectl: &Kubectl) -> Result<()> {
    let queue = json!({ "topicFilter": "a/+", "queueName": "a", "shards": 2 });
    kubectl.apply(&object("MessageQueue", "kept", &queue)).await?;
    for (field, value) in [
        ("topicFilter", json!("b/+")),
        ("queueName", json!("b")),
        ("shards", json!(3)),
        ("lastValue", json!(true)),
    ] {
        let mut changed = queue.clone();
        changed[field] = value;
        refused(kubectl, "MessageQueue", "kept", changed, &format!("{field} is immutable")).await?;
    }
    let mut changed = queue.clone();
    changed["ackTimeout"] = json!("1m");
    kubectl.apply(&object("MessageQueue", "kept", &changed)).await?;

    let stream = json!({ "topicFilter": "a/+", "streamName": "a" });
    kubectl.apply(&object("Stream", "kept", &stream)).await?;
    for (kinds, field, value) in [
        ("mq", "spec.topicFilter", "a/+"),
        ("mq", "spec.queueName", "a"),
        ("streams.weir.dev", "spec.topicFilter", "a/+"),
        ("streams.weir.dev", "spec.streamName", "a"),
    ] {
        for (selected, is_there) in [("=", true), ("!=", false)] {
            let found = kubectl
                .run(&format!("get {kinds} -o name --field-selector {field}{selected}{value}"))
                .await?;
            ensure!(found.contains("/kept") == is_there, "{kinds}, {field}{selected}{value}: {found}");
        }
    }
    for (field, value) in [
        ("topicFilter", json!("b/+")),
        ("streamName", json!("b")),
        ("shards", json!(3)),
        ("lastValue", json!(true)),
    ] {
        let mut changed = stream.clone();
        changed[field] = value;
        refused(kubectl, "Stream", "kept", changed, &format!("{field} is immutable")).await?;
    }

    let broker = json!({ "store": { "embedded": { "storage": "1Gi" } } });
    kubectl.apply(&object("Broker", "kept", &broker)).await?;
    let changed = json!({ "store": { "remote": { "address": "store:4600" } } });
    refused(kubectl, "Broker", "kept", changed, "the kind of store is immutable").await?;
    let fdb = |prefix: &str| json!({ "store": { "fdb": { "clusterFile": { "configMapRef": { "name": "fdb", "key": "f" } }, "prefix": prefix } } });
    kubectl.apply(&object("Broker", "prefixed", &fdb("a"))).await?;
    refused(kubectl, "Broker", "prefixed", fdb("b"), "prefix is immutable").await?;
    for bytes in ["storage", "memory"] {
        let mut negative = broker.clone();
        match bytes {
            "storage" => negative["store"]["embedded"]["storage"] = json!(-1),
            _ => negative["resources"] = json!({ "limits": { "memory": -1 } }),
        }
        let message = "should be greater than or equal to 0";
        refused(kubectl, "Broker", "negative", negative, message).await?;
    }
    Ok(())
}

/// Every field says what it is for.
async fn explained(kubectl: &Kubectl) -> Result<()> {
    // What the API server tells of its kinds is published some seconds after they are.
    let text = until("the API server to explain", || async {
        Ok(kubectl.call("explain messagequeue.spec.retention", "").await?.ok())
    })
    .await?;
    ensure!(text.contains("DESCRIPTION:") && !text.contains("<empty>"), "{text}");
    for kind in ["messagequeue", "stream", "broker"] {
        let text = kubectl.run(&format!("explain {kind}.spec")).await?;
        ensure!(!text.contains("<no description>"), "{text}");
    }
    Ok(())
}

/// The usual list fits a terminal, also when something is wrong.
async fn listed(kubectl: &Kubectl) -> Result<()> {
    let queue = json!({ "topicFilter": "city/+/traffic/lights/#" });
    kubectl.apply(&object("MessageQueue", "traffic-lights-of-a-city", &queue)).await?;
    let condition = json!({
        "type": "Ready", "status": "False", "reason": "NamespaceNotAllowed", "message": "no",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let status = json!({ "status": { "conditions": [condition] } });
    kubectl
        .run(&format!("patch mq traffic-lights-of-a-city --subresource=status --type=merge -p {status}"))
        .await?;
    for kinds in ["mq", "streams", "brokers"] {
        let list = kubectl.run(&format!("get {kinds}")).await?;
        let wide = list.lines().map(str::len).max().unwrap_or_default();
        ensure!(wide <= 100, "`kubectl get {kinds}` is {wide} wide:\n{list}");
    }
    let all = kubectl.run("get weir").await?;
    ensure!(all.contains("messagequeue.weir.dev/kept") && all.contains("stream.weir.dev/kept"), "{all}");
    Ok(())
}
