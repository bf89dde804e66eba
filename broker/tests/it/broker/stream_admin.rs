//! `weir stream create`, `update` and `delete` on a running broker, while it is read.

use serde_json::{Value, json};
use weir_codec::ReasonCode;
use weir_core::catalog::Origin;
use weir_core::definition::Kind;

use super::client::{AtLeastOnce, V5, clean, receive_maximum};
use super::{TestBroker, stream};
use crate::cli::{Finished, weir};

async fn run(broker: &TestBroker, args: &[&str]) -> Finished {
    let admin = broker.admin.to_string();
    weir(&[&["stream"], args, &["--admin", &admin]].concat(), "").await
}

async fn done(broker: &TestBroker, args: &[&str]) -> String {
    let ran = run(broker, args).await;
    assert!(ran.code == 0, "{args:?}: {ran:?}");
    ran.stdout
}

async fn refused(broker: &TestBroker, args: &[&str], why: &str) {
    let ran = run(broker, args).await;
    assert!(ran.code != 0 && ran.stderr.contains(why), "{args:?}: {ran:?}");
}

#[tokio::test]
async fn a_stream_is_created_changed_and_deleted_while_it_is_read() {
    let broker = TestBroker::start().await;
    let mut reader = broker.clean("r").await;
    reader.read_from("$stream/log", AtLeastOnce, "earliest").await;
    assert_eq!(done(&broker, &["create", "log", "--filter", "log/#"]).await, "stream log created\n");
    broker.publish("log/1", &["0", "1", "2"]).await;
    assert_eq!(reader.take_texts(3).await, ["0", "1", "2"]);

    // The new limit holds for what is stored, and the reader goes on.
    let args = ["update", "log", "--max-messages", "2", "--output", "json"];
    let told: Value = serde_json::from_str(&done(&broker, &args).await).unwrap();
    assert_eq!(told, json!({"name": "log", "generation": 2}));
    broker.metric_reaches("weir_shard_batches_total", 2.0).await;
    let shown = described_until(&broker, |shown| shown["shards"][0]["startOffset"] == 1).await;
    assert_eq!(shown["stream"]["declaration"]["origin"], "admin");
    broker.publish("log/1", &["3"]).await;
    assert_eq!(reader.take_texts(1).await, ["3"]);
    // No limit again, and a key for what comes.
    done(&broker, &["update", "log", "--max-messages", "0", "--message-key", "message.clientId"]).await;
    broker.publish("log/1", &["4", "5", "6"]).await;
    let last = reader.take_texts(3).await;
    assert_eq!(last, ["4", "5", "6"]);

    // Its messages wait for it to come back, if it is as it was.
    assert!(done(&broker, &["delete", "log"]).await.contains("its messages are kept"));
    refused(&broker, &["update", "log", "--max-messages", "9"], "there is no stream `log`").await;
    refused(&broker, &["create", "log", "--filter", "other"], "ImmutableMismatch: topicFilter").await;
    done(&broker, &["create", "log", "--filter", "log/#"]).await;
    let again = done(&broker, &["tail", "log", "--offset", "offset:4"]).await;
    assert_eq!(again.lines().count(), 3, "{again}");
    assert!(done(&broker, &["delete", "log", "--messages", "delete"]).await.contains("with its messages"));
    refused(&broker, &["delete", "log"], "there is no Stream `log`; `weir stream list`").await;
}

#[tokio::test]
async fn who_reads_is_named_and_a_trim_moves_them_on() {
    let broker = TestBroker::start().await;
    broker.declare(&[stream("log", "log/#")]).await;
    let texts: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    broker.publish("log/1", &texts.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut slow = broker.connect(receive_maximum(clean("slow", V5), 1)).await;
    slow.read_from("$stream/log", AtLeastOnce, "earliest").await;
    let held = slow.message().await;
    let shown = described_until(&broker, |shown| shown["readers"][0]["read"].as_u64() > Some(0)).await;
    assert_eq!((&shown["readers"][0]["id"], &shown["stream"]["readers"]), (&json!("slow"), &json!(1)));
    broker.metric_reaches("weir_stream_readers{stream=\"log\"}", 1.0).await;

    let dry = done(&broker, &["trim", "log", "--before", "6", "--dry-run"]).await;
    assert!(dry.ends_with("would remove 6\n"), "{dry}");
    assert!(done(&broker, &["trim", "log", "--before", "6"]).await.ends_with("\nremoved 6\n"));
    assert!(done(&broker, &["trim", "log", "--before", "6"]).await.ends_with("\nremoved 0\n"));
    broker.metric_reaches("weir_stream_messages_total{stream=\"log\",event=\"removed\"}", 6.0).await;
    assert_eq!(broker.metric("weir_stream_kept{stream=\"log\"}").await, 4.0);
    // What had been read before goes on its way; the next reader begins at the new start.
    slow.puback(&held, ReasonCode::Success).await;
    let tailed = done(&broker, &["tail", "log", "--offset", "earliest"]).await;
    assert_eq!(tailed.lines().count(), 4, "{tailed}");
    let tailed =
        done(&broker, &["tail", "log", "--offset", "0:8", "--until", "offset:9", "-o", "json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&tailed).unwrap()["payload"], "8");
    refused(&broker, &["trim", "log", "--before", "6", "--shard", "3"], "has no shard 3; allowed: 0 to 0")
        .await;
    refused(&broker, &["trim", "none", "--before", "6"], "there is no stream `none`").await;
    done(&broker, &["create", "last", "--filter", "last/#", "--last-value"]).await;
    broker.publish("last/1", &["0", "1"]).await;
    broker.publish("last/2", &["2"]).await;
    let trimmed = done(&broker, &["trim", "last", "--before", "2", "--dry-run"]).await;
    assert!(trimmed.ends_with("\nwould remove 1\n"), "{trimmed}");
    assert!(done(&broker, &["trim", "last", "--before", "latest"]).await.ends_with("\nremoved 2\n"));
    assert_eq!(done(&broker, &["tail", "last", "--offset", "earliest"]).await, "");
    slow.disconnect().await;
    described_until(&broker, |shown| shown["readers"] == json!([])).await;
}

/// What `weir stream describe` says of `log` once `is_so`.
async fn described_until(broker: &TestBroker, is_so: impl Fn(&Value) -> bool) -> Value {
    let looking = async {
        loop {
            let text = done(broker, &["describe", "log", "--output", "json"]).await;
            let shown: Value = serde_json::from_str(&text).unwrap();
            if is_so(&shown) {
                return shown;
            }
        }
    };
    tokio::time::timeout(super::DEADLINE, looking).await.expect("it becomes so")
}

#[tokio::test]
async fn every_flag_arrives() {
    let broker = TestBroker::start().await;
    let flags = [
        "--filter",
        "a",
        "--shards",
        "2",
        "--message-key",
        "message.clientId",
        "--max-age",
        "1h",
        "--max-bytes",
        "5Mi",
        "--max-messages",
        "9",
        "--groups-expire-after",
        "2h",
        "--deletion-policy",
        "Delete",
        "--namespace",
        "city",
    ];
    done(&broker, &[&["create", "s"], &flags[..]].concat()).await;
    let find = || broker.core.catalog().view().find(Kind::Stream, "s").unwrap();
    let made = find();
    let definition = &made.definition;
    let of = (made.origin.clone(), definition.namespace.as_str(), definition.object.as_str());
    assert_eq!(of, (Origin::Admin, "city", "s"));
    assert_eq!((definition.topic_filter.as_deref(), definition.shards), (Some("a"), 2));
    assert_eq!(definition.key.as_deref(), Some("message.clientId"));
    assert!(!definition.last_value, "nobody asked for it");
    let retention = &definition.retention;
    assert_eq!((retention.max_age_ms, retention.max_bytes, retention.max_messages), (3_600_000, 5 << 20, 9));
    assert!(definition.delete_data);
    // What is not named stays.
    done(&broker, &["update", "s", "--max-age", "0s", "--no-message-key"]).await;
    let mut expected = definition.clone();
    expected.retention.max_age_ms = 0;
    expected.key = None;
    assert_eq!(find().definition, expected);
}

#[tokio::test]
async fn a_manifest_in_a_file_is_created_and_is_the_whole_of_a_change() {
    let broker = TestBroker::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.yaml");
    let file = path.to_str().unwrap();
    let manifest = "apiVersion: weir.dev/v1alpha1\nkind: Stream\nmetadata: { name: obj, namespace: city }\n\
                    spec:\n  streamName: S_1\n  topicFilter: a\n  key: message.topic\n";
    std::fs::write(&path, manifest).unwrap();
    done(&broker, &["create", "--file", file]).await;
    let find = || broker.core.catalog().view().find(Kind::Stream, "S_1").unwrap().definition.clone();
    assert_eq!(find().key.as_deref(), Some("message.topic"));
    std::fs::write(&path, manifest.replace("  key: message.topic\n", "  retention: {maxMessages: 3}\n"))
        .unwrap();
    done(&broker, &["update", "S_1", "--file", file]).await;
    assert_eq!((find().key, find().retention.max_messages), (None, 3), "what it leaves out is the default");
    std::fs::write(&path, manifest.replace("message.topic", "7 +")).unwrap();
    refused(&broker, &["update", "--file", file], "spec.key").await;
    refused(&broker, &["update", "other", "--file", file], "declares the stream S_1").await;
    refused(&broker, &["create", "x", "--file", file, "--max-age", "1h"], "exclude each other").await;
    std::fs::write(&path, manifest.replace("kind: Stream", "kind: MessageQueue")).unwrap();
    refused(&broker, &["create", "--file", file], "spec.streamName: unknown field").await;
}

#[tokio::test]
async fn mistakes_say_what_to_do() {
    let broker = TestBroker::start().await;
    broker.declare(&[stream("declared", "a")]).await;
    for (args, why) in [
        (&["create", "declared", "--filter", "a"][..], "Stream `declared` exists already"),
        (
            &["update", "declared", "--max-age", "1h"],
            "declared by the manifest of default/declared: change or remove",
        ),
        (&["delete", "declared"], "declared by the manifest of default/declared"),
        (&["create", "a/b", "--filter", "a"], "not the name of a stream"),
        (&["create", "s"], "spec.topicFilter"),
        (&["create", "s", "--filter", "$SYS/#"], "spec.topicFilter"),
        (&["create", "s", "--filter", "a", "--shards", "99"], "spec.shards"),
        (&["create", "s", "--filter", "a", "--max-age", "soon"], "spec.retention.maxAge"),
        (&["create", "s", "--filter", "a", "--message-key", "1 +"], "spec.key"),
        (&["create"], "a name is needed"),
        (&["update", "s"], "there is nothing to change"),
        (&["update", "none", "--max-age", "1h"], "there is no stream `none`; `weir stream list`"),
    ] {
        refused(&broker, args, why).await;
    }
    assert_eq!(broker.core.catalog().stored().await.len(), 1);
}
