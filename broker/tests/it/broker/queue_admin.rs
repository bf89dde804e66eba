//! `weir queue create`, `update` and `delete` on a running broker.

use serde_json::{Value, json};
use weir_codec::ReasonCode;
use weir_core::catalog::Origin;
use weir_core::definition::{DeadLetterTarget, Kind, Ordering, Strategy};

use super::client::AtLeastOnce;
use super::{TestBroker, queue};
use crate::cli::{Finished, weir};

async fn run(broker: &TestBroker, args: &[&str]) -> Finished {
    let admin = broker.admin.to_string();
    weir(&[&["queue"], args, &["--admin", &admin]].concat(), "").await
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
async fn a_queue_is_created_changed_and_deleted_while_it_is_consumed() {
    let broker = TestBroker::start().await;
    let mut consumer = broker.clean("c").await;
    consumer.subscribe("$queue/work", AtLeastOnce).await;
    assert_eq!(
        done(&broker, &["create", "work", "--filter", "job/#", "--max-inflight", "1", "--max-messages", "3"])
            .await,
        "queue work created\n"
    );
    broker.publish("job/1", &["0", "1", "2"]).await;
    let first = consumer.message().await;
    consumer.quiet().await;
    let mut publisher = broker.clean("p").await;
    assert_eq!(publisher.publish("job/1", "3").await, ReasonCode::QuotaExceeded);
    let args = ["update", "work", "--max-inflight", "3", "--max-messages", "4", "--output", "json"];
    let told: Value = serde_json::from_str(&done(&broker, &args).await).unwrap();
    assert_eq!(told, json!({"name": "work", "generation": 2}));
    assert_eq!(publisher.publish("job/1", "3").await, ReasonCode::Success);
    consumer.message().await;
    consumer.message().await;
    consumer.puback(&first, ReasonCode::Success).await;
    consumer.message().await;
    let shown: Value =
        serde_json::from_str(&done(&broker, &["describe", "work", "--output", "json"]).await).unwrap();
    assert_eq!(shown["queue"]["declaration"]["origin"], "admin");

    // Its messages wait for it to come back, if it is as it was.
    assert!(done(&broker, &["delete", "work"]).await.contains("its messages are kept"));
    refused(&broker, &["update", "work", "--max-messages", "9"], "there is no queue `work`").await;
    refused(&broker, &["create", "work", "--filter", "other"], "ImmutableMismatch: topicFilter").await;
    done(&broker, &["create", "work", "--filter", "job/#"]).await;
    assert_eq!(consumer.take_texts(3).await, ["1", "2", "3"]);
    assert!(done(&broker, &["delete", "work", "--messages", "delete"]).await.contains("with its messages"));
    consumer.synced().await;
    refused(&broker, &["delete", "work"], "there is no MessageQueue `work`").await;
}

#[tokio::test]
async fn every_flag_arrives() {
    let broker = TestBroker::start().await;
    let flags = [
        "--filter",
        "a",
        "--shards",
        "2",
        "--ordering",
        "key",
        "--message-key",
        "message.clientId",
        "--strategy",
        "roundRobin",
        "--max-inflight",
        "7",
        "--ack-timeout",
        "1500ms",
        "--max-deliveries",
        "3",
        "--backoff-initial",
        "2s",
        "--backoff-max",
        "3s",
        "--backoff-factor",
        "5",
        "--dead-letter-queue",
        "dead",
        "--max-age",
        "1h",
        "--max-bytes",
        "5Mi",
        "--max-messages",
        "9",
        "--overflow",
        "DropOldest",
        "--dedup-window",
        "9s",
        "--publisher-controls",
        "delay,dedup",
        "--deletion-policy",
        "Delete",
        "--namespace",
        "city",
    ];
    done(&broker, &[&["create", "q"], &flags[..]].concat()).await;
    let find = || broker.core.catalog().view().find(Kind::Queue, "q").unwrap();
    let made = find();
    let definition = &made.definition;
    assert_eq!(
        (made.origin.clone(), definition.namespace.as_str(), definition.object.as_str()),
        (Origin::Admin, "city", "q")
    );
    assert_eq!((definition.topic_filter.as_deref(), definition.shards), (Some("a"), 2));
    assert_eq!(
        (definition.queue.ordering, definition.key.as_deref()),
        (Ordering::Key, Some("message.clientId"))
    );
    assert!(!definition.last_value, "nobody asked for it");
    let dispatch = &definition.dispatch;
    assert_eq!((dispatch.strategy, dispatch.max_inflight_per_consumer), (Strategy::RoundRobin, 7));
    assert_eq!((dispatch.ack_timeout_ms, dispatch.max_deliveries), (1500, 3));
    let backoff = (dispatch.backoff_initial_ms, dispatch.backoff_max_ms, dispatch.backoff_factor_percent);
    assert_eq!(backoff, (2000, 3000, 500));
    let retention = &definition.retention;
    assert_eq!((retention.max_age_ms, retention.max_bytes, retention.max_messages), (3_600_000, 5 << 20, 9));
    assert_eq!(definition.queue.dead_letter, Some(DeadLetterTarget::Object("dead".into())));
    let controls = definition.queue.controls;
    assert_eq!((controls.delay, controls.priority, controls.dedup), (true, false, true));
    assert_eq!((definition.queue.dedup_window_ms, definition.delete_data), (9000, true));
    // What is not named stays; one target of dead letters takes the place of the other.
    done(
        &broker,
        &["update", "q", "--dead-letter-topic", "dead/q", "--no-message-key", "--publisher-controls", ""],
    )
    .await;
    let mut expected = definition.clone();
    expected.queue.dead_letter = Some(DeadLetterTarget::Topic("dead/q".into()));
    expected.key = None;
    expected.queue.controls = weir_core::definition::Controls { delay: false, priority: false, dedup: false };
    assert_eq!(find().definition, expected);
    done(&broker, &["update", "q", "--no-dead-letter"]).await;
    assert_eq!(find().definition.queue.dead_letter, None);
}

#[tokio::test]
async fn a_manifest_in_a_file_is_created_and_is_the_whole_of_a_change() {
    let broker = TestBroker::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q.yaml");
    let file = path.to_str().unwrap();
    let manifest = "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata: { name: obj, namespace: city }\n\
                    spec:\n  queueName: Q_1\n  topicFilter: a\n  ackTimeout: 5s\n";
    std::fs::write(&path, manifest).unwrap();
    done(&broker, &["create", "--file", file]).await;
    let find = || broker.core.catalog().view().find(Kind::Queue, "Q_1").unwrap();
    assert_eq!(find().definition.dispatch.ack_timeout_ms, 5000);
    std::fs::write(&path, manifest.replace("  ackTimeout: 5s\n", "  maxDeliveries: 2\n")).unwrap();
    done(&broker, &["update", "Q_1", "--file", file]).await;
    let dispatch = find().definition.dispatch.clone();
    assert_eq!(
        (dispatch.ack_timeout_ms, dispatch.max_deliveries),
        (30_000, 2),
        "what it leaves out is the default"
    );
    std::fs::write(&path, manifest.replace("5s", "soon")).unwrap();
    refused(&broker, &["update", "--file", file], "q.yaml:7: spec.ackTimeout").await;
    refused(&broker, &["update", "other", "--file", file], "spec.ackTimeout").await;
    refused(
        &broker,
        &["create", "x", "--file", file, "--message-key", "message.topic"],
        "exclude each other",
    )
    .await;
}

#[tokio::test]
async fn mistakes_say_what_to_do() {
    let broker = TestBroker::start().await;
    broker.declare(&[queue("declared", "a")]).await;
    for (args, why) in [
        (&["create", "declared", "--filter", "a"][..], "MessageQueue `declared` exists already"),
        (
            &["update", "declared", "--max-age", "1h"],
            "declared by the manifest of default/declared: change or remove",
        ),
        (&["delete", "declared"], "declared by the manifest of default/declared"),
        (&["create", "-a", "--filter", "a"], "unexpected argument"),
        (&["create", "a/b", "--filter", "a"], "not the name of a queue"),
        (&["create", "q", "--filter", "$SYS/#"], "spec.topicFilter"),
        (&["create", "q", "--shards", "99"], "spec.shards"),
        (&["create", "q", "--ack-timeout", "soon"], "spec.ackTimeout"),
        (&["create", "q", "--ordering", "any"], "spec.ordering"),
        (&["create", "q", "--dead-letter-queue", "q"], "its own dead-letter queue"),
        (&["create"], "a name is needed"),
        (&["update", "q"], "there is nothing to change"),
        (&["update", "none", "--max-age", "1h"], "there is no queue `none`"),
    ] {
        refused(&broker, args, why).await;
    }
    assert_eq!(broker.core.catalog().stored().await.len(), 1);
}
