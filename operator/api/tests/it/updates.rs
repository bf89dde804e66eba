//! What may change in an existing object and what may not.

use kube::CustomResourceExt;
use kube::core::cel::validate_cel_update;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weir_operator_api::{Broker, MessageQueue, Stream};

use crate::object;

fn update<T: CustomResourceExt + Serialize + DeserializeOwned>(
    kind: &str,
    old: &Value,
    new: &Value,
) -> Vec<String> {
    let parse = |spec| serde_json::from_value::<T>(object(kind, "a", spec)).unwrap();
    match validate_cel_update(&parse(new), &parse(old)) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_iter().map(|error| error.message).collect(),
    }
}

#[test]
fn queues_keep_what_is_immutable() {
    let old = json!({ "topicFilter": "a/+", "queueName": "a", "shards": 2 });
    let update = |old: &Value, new: &Value| update::<MessageQueue>("MessageQueue", old, new);

    let other_settings = json!({
        "topicFilter": "a/+", "queueName": "a", "shards": 2, "ackTimeout": "1m", "ordering": "key", "key": "'k'",
    });
    assert_eq!(update(&old, &old), Vec::<String>::new());
    assert_eq!(update(&old, &other_settings), Vec::<String>::new());
    for (new, message) in [
        (json!({ "topicFilter": "b/+", "queueName": "a", "shards": 2 }), "topicFilter is immutable"),
        (json!({ "queueName": "a", "shards": 2 }), "topicFilter is immutable"),
        (json!({ "topicFilter": "a/+", "queueName": "b", "shards": 2 }), "queueName is immutable"),
        (json!({ "topicFilter": "a/+", "queueName": "a" }), "shards is immutable"),
        (
            json!({ "topicFilter": "a/+", "queueName": "a", "shards": 2, "lastValue": true }),
            "lastValue is immutable",
        ),
    ] {
        assert_eq!(update(&old, &new), [message]);
    }
    // The default is the object's name, which is `a` here.
    assert_eq!(update(&json!({}), &json!({ "queueName": "a" })), Vec::<String>::new());
    assert_eq!(update(&json!({ "queueName": "a" }), &json!({})), Vec::<String>::new());
    assert_eq!(update(&json!({}), &json!({ "queueName": "b" })), ["queueName is immutable"]);
}

#[test]
fn streams_keep_what_is_immutable() {
    let old = json!({ "topicFilter": "a/+" });
    let update = |new: &Value| update::<Stream>("Stream", &old, new);

    assert_eq!(update(&json!({ "topicFilter": "a/+", "key": "message.clientId" })), Vec::<String>::new());
    for (new, message) in [
        (json!({ "topicFilter": "b" }), "topicFilter is immutable"),
        (json!({ "topicFilter": "a/+", "streamName": "b" }), "streamName is immutable"),
        (json!({ "topicFilter": "a/+", "shards": 2 }), "shards is immutable"),
        (json!({ "topicFilter": "a/+", "lastValue": true }), "lastValue is immutable"),
    ] {
        assert_eq!(update(&new), [message]);
    }
}

#[test]
fn brokers_keep_their_kind_of_store() {
    let store = |store: Value| json!({ "store": store });
    let embedded = store(json!({ "embedded": { "storage": "1Gi" } }));
    let fdb = store(json!({ "fdb": { "clusterFile": { "configMapRef": { "name": "a" } } } }));
    let other_fdb = store(json!({ "fdb": { "clusterFile": { "configMapRef": { "name": "b" } } } }));
    let remote = store(json!({ "remote": { "address": "a:1" } }));
    let update = |old: &Value, new: &Value| update::<Broker>("Broker", old, new);

    assert_eq!(update(&fdb, &other_fdb), Vec::<String>::new());
    let mut named = fdb.clone();
    named["store"]["fdb"]["prefix"] = json!("city");
    assert_eq!(update(&named, &named), Vec::<String>::new());
    for (old, new) in [(&fdb, &named), (&named, &fdb)] {
        assert_eq!(update(old, new), ["prefix is immutable"]);
    }
    for (old, new) in [(&embedded, &fdb), (&fdb, &embedded), (&remote, &fdb), (&embedded, &remote)] {
        let messages = update(old, new);
        assert!(
            messages.len() == 1 && messages[0].contains("the kind of store is immutable"),
            "{messages:?}"
        );
    }
}
