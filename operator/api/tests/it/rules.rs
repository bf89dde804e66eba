//! What the rules of the schema refuse, and why: a spec, what the rule says, the path at which `problems` finds it. Tests on a
//! real API server read this table too.

use serde_json::{Value, json};

/// A spec, words of its refusal, where the mistake is.
type Refused = (Value, &'static str, &'static str);

/// Specs of a MessageQueue with the name `traffic`.
pub(crate) fn queues() -> Vec<Refused> {
    vec![
        (json!({ "topicFilter": "$SYS/#" }), "must not begin with `$`", "spec.topicFilter: "),
        (json!({ "ackTimeout": "99ms" }), "must be 100ms to 168h", "spec.ackTimeout: "),
        (json!({ "ackTimeout": "169h" }), "must be 100ms to 168h", "spec.ackTimeout: "),
        (json!({ "retryBackoff": { "initial": "2m" } }), "initial must not", "spec.retryBackoff.initial: "),
        (json!({ "retryBackoff": { "max": "25h" } }), "must be 0s to 24h", "spec.retryBackoff.max: "),
        (json!({ "dedup": { "window": "24h1ms" } }), "must be 0s to 24h", "spec.dedup.window: "),
        (json!({ "deadLetter": {} }), "exactly one of queueRef and topic", "spec.deadLetter: "),
        (
            json!({ "deadLetter": { "topic": "a", "queueRef": { "name": "b" } } }),
            "exactly one of queueRef and topic",
            "spec.deadLetter: ",
        ),
        (json!({ "deadLetter": { "topic": "$queue/a" } }), "must not begin", "spec.deadLetter.topic: "),
        (
            json!({ "deadLetter": { "queueRef": { "name": "traffic" } } }),
            "cannot be its own",
            "spec.deadLetter.queueRef.name: ",
        ),
    ]
}

/// Specs of a Stream.
pub(crate) fn streams() -> Vec<Refused> {
    vec![(json!({ "topicFilter": "$s" }), "must not begin", "spec.topicFilter: ")]
}

/// What is changed in the spec of a good Broker.
pub(crate) fn brokers() -> Vec<Refused> {
    let fdb = fdb();
    vec![
        (
            json!({ "store": fdb, "replicas": 3, "scaling": { "maxReplicas": 2 } }),
            "exclude each other",
            "spec.replicas: ",
        ),
        (
            json!({ "store": fdb, "scaling": { "minReplicas": 3, "maxReplicas": 2 } }),
            "minReplicas must not",
            "spec.scaling.minReplicas: ",
        ),
        (
            json!({ "store": fdb, "scaling": { "maxReplicas": 2, "scaleUpAfter": "61m" } }),
            "must be 0s to 1h",
            "spec.scaling.scaleUpAfter: ",
        ),
        (
            json!({ "store": fdb, "scaling": { "maxReplicas": 2, "scaleDownAfter": "25h" } }),
            "must be 0s to 24h",
            "spec.scaling.scaleDownAfter: ",
        ),
        (json!({ "replicas": 2 }), "serves one pod", "spec.store.embedded: "),
        (json!({ "scaling": { "maxReplicas": 2 } }), "serves one pod", "spec.store.embedded: "),
        (json!({ "peerTls": { "secretRef": { "name": "pods" } } }), "has no peers", "spec.peerTls: "),
        (json!({ "store": {} }), "exactly one of fdb, embedded and remote", "spec.store: "),
        (
            json!({ "store": { "embedded": { "storage": "1Gi" }, "remote": { "address": "a:1" } } }),
            "exactly one of fdb, embedded and remote",
            "spec.store: ",
        ),
        (
            json!({ "auth": { "clientAuth": "optional" } }),
            "without clientCaSecretRef",
            "spec.auth.clientAuth: ",
        ),
        (
            json!({ "auth": { "certificateAsUser": true } }),
            "certificateAsUser makes no sense",
            "spec.auth.certificateAsUser: ",
        ),
        (
            json!({ "auth": { "clientCaSecretRef": { "name": "devices", "key": "ca.crt" } } }),
            "needs a listener of the type mqtts or wss",
            "spec.auth.clientCaSecretRef: ",
        ),
        (named("http", 1883), "names of ports that every pod has", "spec.listeners[0].name: "),
        (named("a", 8081), "ports that every pod has", "spec.listeners[0].port: "),
        (listener("wss", Value::Null), "tlsSecretRef is needed", "spec.listeners[0]: "),
        (listener("mqtt", json!({ "name": "x" })), "tlsSecretRef is needed", "spec.listeners[0]: "),
        (
            json!({ "autoCreate": { "queues": [{ "namePattern": "auto-*", "spec": { "deadLetter": {} } }] } }),
            "exactly one of queueRef and topic",
            "spec.autoCreate.queues[0].spec.deadLetter: ",
        ),
    ]
}

/// The spec of a good Broker with `changes`.
pub(crate) fn broker(changes: Value) -> Value {
    let mut spec = json!({ "store": { "embedded": { "storage": "10Gi" } } });
    if let (Some(spec), Value::Object(changes)) = (spec.as_object_mut(), changes) {
        spec.extend(changes);
    }
    spec
}

pub(crate) fn fdb() -> Value {
    json!({ "fdb": { "clusterFile": { "configMapRef": { "name": "fdb-config" } } } })
}

pub(crate) fn listener(protocol: &str, tls: Value) -> Value {
    let mut listener = json!({ "name": "a", "type": protocol, "port": 1883 });
    if !tls.is_null() {
        listener["tlsSecretRef"] = tls;
    }
    json!({ "listeners": [listener] })
}

pub(crate) fn named(name: &str, port: i32) -> Value {
    json!({ "listeners": [{ "name": name, "type": "ws", "port": port }] })
}
