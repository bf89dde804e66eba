//! The schema and the Rust checks must agree: one table of changes to a good object, each run through both.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rules;
mod schema;
mod updates;

use kube::CustomResourceExt;
use kube::core::cel::validate_cel;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weir_operator_api::{Broker, MessageQueue, Problem, Stream};

/// The object `kind` with `spec` and the name `name`.
fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "weir.dev/v1alpha1",
        "kind": kind,
        "metadata": { "name": name, "namespace": "city" },
        "spec": spec,
    })
}

/// Runs `object` through the CEL rules and through `problems`, and says what each found at which path.
fn judge<T: CustomResourceExt + Serialize + DeserializeOwned>(
    object: Value,
    problems: fn(&T) -> Vec<Problem>,
) -> (Vec<String>, Vec<String>) {
    let object: T = serde_json::from_value(object).unwrap();
    let by_rule = match validate_cel(&object) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_iter().map(|error| error.message).collect(),
    };
    (by_rule, problems(&object).into_iter().map(|problem| problem.to_string()).collect())
}

/// Expects both to refuse the object: the rule with the text `rule`, the check at the path `path`.
fn refused((by_rule, by_check): (Vec<String>, Vec<String>), rule: &str, path: &str) {
    assert!(by_rule.iter().any(|message| message.contains(rule)), "rule {rule:?} not in {by_rule:?}");
    assert!(by_check.iter().any(|problem| problem.starts_with(path)), "path {path:?} not in {by_check:?}");
    assert_eq!(by_rule.len(), by_check.len(), "{by_rule:?} against {by_check:?}");
}

fn accepted((by_rule, by_check): (Vec<String>, Vec<String>)) {
    assert_eq!((by_rule, by_check), (vec![], vec![]));
}

#[test]
fn queues() {
    let judge = |name: &str, spec: Value| judge(object("MessageQueue", name, &spec), MessageQueue::problems);
    let long = "q".repeat(129);

    accepted(judge("traffic", json!({})));
    accepted(judge(&long, json!({ "queueName": "short" })));
    accepted(judge("traffic", json!({ "topicFilter": "sensor/+/data", "ackTimeout": "100ms" })));
    accepted(judge("traffic", json!({ "deadLetter": { "topic": "dead/traffic" } })));
    accepted(judge("traffic", json!({ "deadLetter": { "queueRef": { "name": "traffic-dead" } } })));
    accepted(judge("traffic", json!({ "retryBackoff": { "initial": "5s", "max": "5s" } })));

    for (spec, rule, path) in rules::queues() {
        refused(judge("traffic", spec), rule, path);
    }
    refused(judge(&long, json!({})), "queueName is needed", "metadata.name: ");
}

#[test]
fn streams() {
    let judge = |name: &str, spec: Value| judge(object("Stream", name, &spec), Stream::problems);
    let long = "s".repeat(129);

    accepted(judge("telemetry", json!({ "topicFilter": "#" })));
    accepted(judge(&long, json!({ "topicFilter": "#", "streamName": "telemetry" })));
    for (spec, rule, path) in rules::streams() {
        refused(judge("telemetry", spec), rule, path);
    }
    refused(judge(&long, json!({ "topicFilter": "#" })), "streamName is needed", "metadata.name: ");
}

#[test]
fn brokers() {
    let judge = |changes: Value| judge(object("Broker", "main", &rules::broker(changes)), Broker::problems);
    let fdb = rules::fdb();
    accepted(judge(json!({})));
    accepted(judge(json!({ "replicas": 1 })));
    accepted(judge(json!({ "store": fdb, "replicas": 3 })));
    accepted(judge(json!({ "store": fdb, "scaling": { "minReplicas": 2, "maxReplicas": 2 } })));
    accepted(judge(json!({ "store": fdb, "scaling": {
        "maxReplicas": 9, "connectRatePerPod": 100, "bytesRatePerPod": 1_000_000_000_000_i64, "appendRatePerPod": 1,
        "deliverRatePerPod": 5000, "shardsPerPod": 64, "cpuPercent": 70, "scaleUpAfter": "1h", "scaleDownAfter": "24h",
    } })));
    accepted(judge(rules::listener("mqtts", json!({ "name": "weir-tls" }))));
    accepted(judge(json!({ "store": { "remote": { "address": "store:4600" } }, "replicas": 3 })));
    accepted(judge(rules::named("web", 8083)));
    accepted(judge(json!({ "store": fdb, "peerTls": { "secretRef": { "name": "pods" } } })));
    accepted(judge(json!({ "autoCreate": { "queues": [{ "namePattern": "auto-*" }] } })));

    for (changes, rule, path) in rules::brokers() {
        refused(judge(changes), rule, path);
    }
}
