//! `weir store` against a broker that runs, and brokers on what comes of a restore.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use weir_codec::ReasonCode;
use weir_env::clock::Clock;
use weir_storage::{EmbeddedOptions, EmbeddedStore, SharedStore};

use super::client::{AtLeastOnce, ExactlyOnce, V5, clean, persistent, publish, retained, text, will};
use super::{TestBroker, config, memory, queue, stream};
use crate::cli::weir;

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn embedded(dir: &Path) -> SharedStore {
    Arc::new(EmbeddedStore::open(dir, &EmbeddedOptions::default(), Clock::system()).unwrap())
}

/// A broker with something of every kind, which goes on running.
async fn busy(store: &SharedStore) -> TestBroker {
    let broker = TestBroker::start_on(store).await;
    broker.declare(&[queue("jobs", "job/#"), stream("log", "log/#")]).await;
    broker.publish("job/1", &["0", "1", "2"]).await;
    broker.publish("log/1", &["0", "1", "2"]).await;
    let mut consumer = broker.subscriber("worker", "$queue/jobs", AtLeastOnce).await;
    assert_eq!(text(&consumer.message().await), "0");
    let first = consumer.message().await;
    consumer.puback(&first, ReasonCode::Success).await;
    consumer.disconnect().await;
    let mut client = broker.connect(persistent("s", V5)).await;
    client.subscribe("inbox/#", ExactlyOnce).await;
    client.disconnect().await;
    broker.publish("inbox/1", &["a", "b", "c"]).await;
    let mut publisher = broker.clean("p").await;
    publisher.post(retained(AtLeastOnce, 9, "state/door", "open")).await;
    assert_eq!(publisher.pubacked(9).await, ReasonCode::Success);
    let large = "x".repeat(200_000);
    assert_eq!(publisher.publish("log/1", &large).await, ReasonCode::Success);
    publisher.disconnect().await;
    broker
}

async fn back_up(broker: &TestBroker, to: &Path) -> Value {
    let admin = broker.admin.to_string();
    let args = ["store", "backup", "--to", path(to), "--admin", &admin, "-o", "json"];
    serde_json::from_str(&weir(&args, "").await.output()).unwrap()
}

async fn restore(from: &Path, into: &Path) -> crate::cli::Finished {
    let store = format!("embedded:{}", into.display());
    weir(&["store", "restore", "--from", path(from), "--store", &store, "-o", "json"], "").await
}

#[tokio::test]
async fn a_broker_on_a_restored_store_goes_on_where_the_backup_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let (file, restored) = (dir.path().join("b"), dir.path().join("restored"));
    let source = memory();
    let broker = busy(&source).await;
    // Somebody is connected, with a will.
    let mut connect = clean("w", V5);
    connect.will = Some(will("job/will", "gone"));
    let connected = broker.connect(connect).await;
    let made = back_up(&broker, &file).await;
    assert!(made["records"].as_u64().unwrap() > 10 && made["engine"] == source.engine(), "{made}");
    broker.publish("job/1", &["after"]).await;
    broker.publish("inbox/1", &["after"]).await;
    drop(connected);
    broker.stop().await;

    let said: Value = serde_json::from_str(&restore(&file, &restored).await.output()).unwrap();
    assert_eq!(said["records"], made["records"]);
    let store = embedded(&restored);
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[queue("jobs", "job/#"), stream("log", "log/#")]).await;
    let mut consumer = broker.subscriber("worker", "$queue/jobs", AtLeastOnce).await;
    let mut jobs = consumer.take_texts(3).await;
    jobs.sort();
    assert_eq!(jobs, ["0", "2", "gone"], "what was not acknowledged, and the will of who was cut off");
    consumer.quiet().await;

    let mut reader = broker.clean("r").await;
    assert_eq!(reader.read_from("$stream/log", AtLeastOnce, "earliest").await, ReasonCode::GrantedQoS1);
    assert_eq!(reader.take_texts(3).await, ["0", "1", "2"]);
    assert_eq!(text(&reader.take().await).len(), 200_000);
    let mut late = broker.clean("late").await;
    late.subscribe("state/#", AtLeastOnce).await;
    assert_eq!(text(&late.take().await), "open");

    // What is new comes after what was restored, although this store is much younger.
    broker.publish("inbox/1", &["d"]).await;
    let mut client = broker.resume(persistent("s", V5)).await;
    assert_eq!(client.take_texts(4).await, ["a", "b", "c", "d"]);
    late.publish_twice_acknowledged(1, "inbox/2", "e").await;
    assert_eq!(text(&client.take().await), "e");
    broker.publish("log/1", &["4"]).await;
    assert_eq!(text(&reader.take().await), "4");
    broker.stop().await;
    store.close().await;
}

#[tokio::test]
async fn a_backup_shows_one_moment_of_a_broker_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("live");
    let store = embedded(&folder);
    let broker = busy(&store).await;
    let mut publisher = broker.clean("load").await;
    let mut sent = 0_u32;
    let (made, during) = {
        let backup = back_up(&broker, dir.path());
        tokio::pin!(backup);
        let during = sent;
        loop {
            tokio::select! {
                made = &mut backup => break (made, during),
                () = async {
                    publisher.post(publish(AtLeastOnce, 1, "log/2", &format!("n{sent}"))).await;
                    publisher.pubacked(1).await;
                } => sent += 1,
            }
        }
    };
    assert!(sent > during, "nothing was published while the backup was made");
    broker.stop().await;
    store.close().await;
    drop(store);

    let file = made["file"].as_str().unwrap();
    let restored = dir.path().join("restored");
    restore(Path::new(file), &restored).await.output();
    let store = embedded(&restored);
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[queue("jobs", "job/#"), stream("log", "log/#")]).await;
    let log = broker.core.catalog().view().find(weir_core::definition::Kind::Stream, "log").unwrap();
    let kept = broker.core.describe(&log).await.unwrap()[0].extent.next - 4;
    assert!(kept <= u64::from(sent) + 1, "{kept} of {sent}");
    let mut reader = broker.clean("r").await;
    reader.read_from("$stream/log", AtLeastOnce, "offset:4").await;
    let texts = reader.take_texts(usize::try_from(kept).unwrap()).await;
    let expected: Vec<String> = (0..kept).map(|n| format!("n{n}")).collect();
    assert_eq!(texts, expected, "dense up to the moment of the backup");
    broker.stop().await;
    store.close().await;
}

#[tokio::test]
async fn a_backup_of_a_stopped_broker_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (live, restored) = (dir.path().join("live"), dir.path().join("restored"));
    let store = embedded(&live);
    busy(&store).await.stop().await;
    let name = format!("embedded:{}", live.display());
    let file = dir.path().join("b");
    let args = ["store", "backup", "--to", path(&file), "--store", &name];
    let failure = weir(&args, "").await.failure();
    assert!(failure.contains("is open in another process") && !file.exists(), "{failure}");
    store.close().await;
    drop(store);
    let text = weir(&args, "").await.output();
    assert!(text.contains("Records:") && text.contains("embedded"), "{text}");
    restore(&file, &restored).await.output();
    let count = async |dir: &Path| {
        let name = format!("embedded:{}", dir.display());
        let args = ["store", "check", "--store", &name, "--count", "-o", "json"];
        let document: Value = serde_json::from_str(&weir(&args, "").await.output()).unwrap();
        (document["records"].clone(), document["keyspace"].clone())
    };
    assert_eq!(count(&live).await, count(&restored).await);
    let again = weir(&args, "").await.failure();
    assert!(again.contains("is not overwritten"), "{again}");
}

#[tokio::test]
async fn a_restore_that_cannot_be_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b");
    let broker = busy(&memory()).await;
    back_up(&broker, &file).await;
    let whole = std::fs::read(&file).unwrap();
    let target = dir.path().join("target");
    for (damaged, why) in [
        (whole[..whole.len() - 1].to_vec(), "is cut off after"),
        ([&whole[..100], &[whole[100] ^ 1], &whole[101..]].concat(), "is damaged"),
        (b"something else".to_vec(), "is no backup"),
    ] {
        let bad = dir.path().join("bad");
        std::fs::write(&bad, damaged).unwrap();
        let failure = restore(&bad, &target).await.failure();
        assert!(failure.contains(why) && failure.contains(path(&bad)), "{failure}");
        assert!(!target.exists(), "nothing is written, not even a folder");
    }
    restore(&file, &target).await.output();
    let failure = restore(&file, &target).await.failure();
    assert!(failure.contains("the store is not empty: restore into a new one"), "{failure}");
    let failure =
        weir(&["store", "restore", "--from", path(&file), "--store", "memory:"], "").await.failure();
    assert!(failure.contains("is gone at once"), "{failure}");
    broker.stop().await;
}

#[tokio::test]
async fn check_says_what_a_store_is() {
    let dir = tempfile::tempdir().unwrap();
    let live = dir.path().join("live");
    let name = format!("embedded:{}", live.display());
    let failure = weir(&["store", "check", "--store", &name], "").await.failure();
    assert!(failure.contains("there is no store in") && !live.exists(), "{failure}");

    let store = embedded(&live);
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[queue("jobs", "job/#")]).await;
    broker.publish("job/1", &["0"]).await;
    let failure = weir(&["store", "check", "--store", &name], "").await.failure();
    assert!(failure.contains("is open in another process"), "{failure}");
    broker.stop().await;
    store.close().await;
    drop(store);

    let text = weir(&["store", "check", "--store", &name, "--count", "--tries", "5"], "").await.output();
    for part in ["embedded, format", "format 2, 256 virtual shards", "Commit:", "of 5", "segment", "total"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let output = weir(&["store", "check", "--store", &name, "-o", "json"], "").await.output();
    let document: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(document["keyspace"]["virtualShards"], 256);
    assert!(document["commit"]["p50Nanos"].as_u64() <= document["commit"]["maxNanos"].as_u64());
    assert!(document["records"].is_null());
    let failure = weir(&["store", "check", "--store", "memory:"], "").await.failure();
    assert!(failure.contains("in the memory of its broker"), "{failure}");
    let failure = weir(&["store", "check", "--store", "floppy:a"], "").await.failure();
    assert!(failure.contains("`floppy:a` is not allowed"), "{failure}");
}

#[tokio::test]
async fn a_run_of_the_bench_says_what_it_cost_the_store() {
    let broker = TestBroker::start_with(config(), &memory()).await;
    broker.declare(&[queue("jobs", "job/#")]).await;
    let (url, http) = (format!("mqtt://{}", broker.addr), broker.http.to_string());
    let args = ["bench", "queue", "jobs", "-t", "job/{}", "-p2", "-c2", "--rate", "500", "-s", "200"];
    let more = ["-d", "400ms", "-o", "json", "--url", &url, "--http", &http];
    let output = weir(&[&args[..], &more].concat(), "").await.output();
    let document: Value = serde_json::from_str(&output).unwrap();
    let run = &document["runs"][0];
    let sent = run["sent"].as_u64().unwrap();
    let store = &run["store"];
    let segments = store["records"]["segment"]["bytesWritten"].as_u64().unwrap();
    assert!(segments > sent * 200 && segments < sent * 400, "{run}");
    assert!(store["records"]["queue_floor"]["keysWritten"].as_u64().unwrap() > 0, "{run}");
    assert!(store["commits"].as_u64().unwrap() > 0, "{run}");
    let each = store["bytesWrittenPerUnit"].as_f64().unwrap();
    assert!(
        each > 200.0 && store["bytesWrittenPerPayloadByte"].as_f64().unwrap() * 200.0 > each - 1.0,
        "{run}"
    );
    let written = broker.metric("weir_store_written_bytes_total{record=\"segment\"}").await;
    assert!(written >= f64::from(u32::try_from(segments).unwrap()));
    broker.stop().await;
}
