//! `weir stream export` from a running broker: whole, interrupted, and of a part of a stream.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use parquet::file::reader::SerializedFileReader;
use parquet::record::RowAccessor;
use serde_json::Value;
use weir_core::definition::{Definition, Kind};
use weir_core::stream::Start;

use super::{TestBroker, stream};
use crate::cli::{Finished, weir};

/// Payloads by shard and offset.
type Messages = BTreeMap<(u64, u64), String>;

async fn export(broker: &TestBroker, out: &Path, args: &[&str]) -> Finished {
    let (admin, out) = (broker.admin.to_string(), out.display().to_string());
    weir(&[&["stream", "export", "log", "--admin", &admin, "--out", &out], args].concat(), "").await
}

async fn done(broker: &TestBroker, out: &Path, args: &[&str]) -> String {
    let ran = export(broker, out, args).await;
    assert!(ran.code == 0, "{args:?}: {ran:?}");
    ran.stdout
}

async fn refused(broker: &TestBroker, out: &Path, args: &[&str], why: &str) {
    let ran = export(broker, out, args).await;
    assert!(ran.code != 0 && ran.stderr.contains(why), "{args:?}: {ran:?}");
}

/// A stream of two shards with 200 messages.
async fn start() -> TestBroker {
    let broker = TestBroker::start().await;
    let log = Definition { shards: 2, key: Some("message.topic".into()), ..stream("log", "log/#") };
    broker.declare(&[log]).await;
    publish(&broker, 0..200).await;
    broker
}

async fn publish(broker: &TestBroker, numbers: std::ops::Range<u32>) {
    for topic in 0..4 {
        let texts: Vec<String> = numbers.clone().filter(|n| n % 4 == topic).map(|n| n.to_string()).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        broker.publish(&format!("log/{topic}"), &texts).await;
    }
}

/// Names of the parts in order.
fn parts(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("log-")).collect();
    names.sort();
    names
}

fn of_jsonl(dir: &Path) -> Messages {
    let mut messages = Messages::new();
    for name in parts(dir) {
        for line in fs::read_to_string(dir.join(name)).unwrap().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let place = (line["shard"].as_u64().unwrap(), line["offset"].as_u64().unwrap());
            let payload = line["payload"].as_str().unwrap().to_owned();
            assert_eq!(messages.insert(place, payload), None, "{place:?} is there twice");
        }
    }
    messages
}

fn of_parquet(dir: &Path) -> Messages {
    let mut messages = Messages::new();
    for name in parts(dir) {
        for row in SerializedFileReader::new(File::open(dir.join(name)).unwrap()).unwrap() {
            let row = row.unwrap();
            let place = (
                u64::try_from(row.get_int(4).unwrap()).unwrap(),
                u64::try_from(row.get_long(3).unwrap()).unwrap(),
            );
            let payload = String::from_utf8(row.get_bytes(5).unwrap().data().to_vec()).unwrap();
            assert_eq!(row.get_bytes(1).unwrap().data(), row.get_string(0).unwrap().as_bytes(), "the key");
            assert_eq!(messages.insert(place, payload), None, "{place:?} is there twice");
        }
    }
    messages
}

#[tokio::test]
async fn an_interrupted_export_goes_on_and_has_the_same_messages() {
    let broker = start().await;
    for (format, read) in [("jsonl", of_jsonl as fn(&Path) -> Messages), ("parquet", of_parquet)] {
        let (whole, torn) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let args = ["--format", format, "--part-messages", "30"];
        let told = done(&broker, whole.path(), &args).await;
        let all = read(whole.path());
        assert_eq!(
            told,
            format!("{} messages in {} files, ", all.len(), parts(whole.path()).len())
                + told.split(", ").last().unwrap()
        );
        let mut payloads: Vec<u32> = all.values().map(|payload| payload.parse().unwrap()).collect();
        payloads.sort_unstable();
        assert!(payloads.len() >= 200 && payloads.is_sorted() && payloads[199] == 199, "{payloads:?}");
        done(&broker, torn.path(), &args).await;
        assert_eq!(read(torn.path()), all);
        // Shard 0 was half done when it was interrupted, and nothing was there of shard 1.
        let kept = parts(torn.path()).into_iter().next().unwrap();
        assert!(kept.starts_with("log-00-00000000000000000000-00000000000000000030."), "{kept}");
        for name in parts(torn.path()) {
            if name != kept {
                fs::remove_file(torn.path().join(name)).unwrap();
            }
        }
        let begun = fs::metadata(torn.path().join(&kept)).unwrap().modified().unwrap();
        fs::write(torn.path().join("0-30.unfinished"), "half a part").unwrap();
        // What is published meanwhile is not of it.
        publish(&broker, 200..210).await;
        done(&broker, torn.path(), &args).await;
        assert_eq!(read(torn.path()), all);
        assert_eq!(
            fs::metadata(torn.path().join(&kept)).unwrap().modified().unwrap(),
            begun,
            "written again"
        );
        assert!(!torn.path().join("0-30.unfinished").exists());
        assert_eq!(done(&broker, torn.path(), &args).await, "nothing was left to export\n");
    }
}

#[tokio::test]
async fn a_part_of_a_stream_is_exported() {
    let broker = start().await;
    let whole = tempfile::tempdir().unwrap();
    done(&broker, whole.path(), &["--format", "jsonl"]).await;
    let all = of_jsonl(whole.path());
    let check = async |args: &[&str], wanted: &dyn Fn(&(u64, u64), &String) -> bool| {
        let out = tempfile::tempdir().unwrap();
        done(&broker, out.path(), &[&["--format", "jsonl"], args].concat()).await;
        let expected: Messages =
            all.clone().into_iter().filter(|(place, payload)| wanted(place, payload)).collect();
        assert!(!expected.is_empty() && expected.len() < all.len());
        assert_eq!(of_jsonl(out.path()), expected, "{args:?}");
    };
    check(&["--shard", "1"], &|(shard, _), _| *shard == 1).await;
    let shard = all.keys().next_back().unwrap().0.to_string();
    let range = ["--shard", &shard, "--from", "offset:5", "--until", "offset:9", "--part-messages", "3"];
    check(&range, &|(of, offset), _| of.to_string() == shard && (5..9).contains(offset)).await;
    check(&["--filter", "log/1", "--part-messages", "7"], &|_, payload| {
        payload.parse::<u32>().unwrap() % 4 == 1
    })
    .await;
    let out = tempfile::tempdir().unwrap();
    let from = ["--from", "2020-01-01T00:00:00Z", "--until", "2020-01-02T00:00:00Z"];
    assert_eq!(done(&broker, out.path(), &from).await, "nothing was left to export\n");
    let out = tempfile::tempdir().unwrap();
    let json = ["-o", "json", "--from", "1h", "--until", "latest"];
    let told: Value = serde_json::from_str(&done(&broker, out.path(), &json).await).unwrap();
    assert_eq!(told["messages"], 200);
}

/// Only the first part is left, as if the export had been interrupted after it.
fn tear(dir: &Path) {
    for name in parts(dir).iter().skip(1) {
        fs::remove_file(dir.join(name)).unwrap();
    }
}

#[tokio::test]
async fn an_export_does_not_go_on_with_another_stream() {
    let broker = TestBroker::start().await;
    let admin = broker.admin.to_string();
    let manage = async |args: &[&str]| {
        let ran = weir(&[&["stream", args[0], "log", "--admin", &admin], &args[1..]].concat(), "").await;
        assert!(ran.code == 0, "{args:?}: {ran:?}");
    };
    let create = ["create", "--filter", "log/#", "--shards", "2", "--message-key", "message.topic"];
    manage(&create).await;
    publish(&broker, 0..200).await;
    let out = tempfile::tempdir().unwrap();
    let args = ["--format", "jsonl", "--part-messages", "30"];
    done(&broker, out.path(), &args).await;
    let complete = parts(out.path());
    tear(out.path());
    manage(&["delete", "--messages", "delete"]).await;
    manage(&create).await;
    // It has grown beyond where the export ends.
    publish(&broker, 0..400).await;
    refused(&broker, out.path(), &args, "stream `log` was made anew since the export in").await;
    assert_eq!(parts(out.path()), complete[..1]);
}

#[tokio::test]
async fn what_had_gone_before_it_was_exported_is_told() {
    let broker = start().await;
    let shard =
        if broker.core.describe(&log(&broker)).await.unwrap()[0].extent.next > 60 { "0" } else { "1" };
    let out = tempfile::tempdir().unwrap();
    let args = ["--shard", shard, "--part-messages", "30"];
    let whole = export(&broker, out.path(), &args).await;
    assert!(whole.code == 0 && !whole.stderr.contains("WARN"), "{whole:?}");
    tear(out.path());
    let of: u8 = shard.parse().unwrap();
    broker.core.trim(&log(&broker), &Start::Offset(45), Some(of), false).await.unwrap();
    let torn = export(&broker, out.path(), &args).await;
    let told = format!("WARN 15 messages of shard {shard} are missing, offsets 30 to 44: ");
    assert!(torn.code == 0 && torn.stderr.contains(&told), "{torn:?}");
    assert!(torn.stdout.contains("; 15 messages are missing"), "{torn:?}");
    tear(out.path());
    // Nothing at all is left.
    let end = broker.core.describe(&log(&broker)).await.unwrap()[usize::from(of)].extent.next;
    broker.core.trim(&log(&broker), &Start::Latest, Some(of), false).await.unwrap();
    let told = done(&broker, out.path(), &[&args[..], &["-o", "json"]].concat()).await;
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["files"], &told["missing"]), (&0.into(), &(end - 30).into()));
    assert_eq!((&told["gaps"][0]["first"], &told["gaps"][0]["end"]), (&30.into(), &end.into()));
}

fn log(broker: &TestBroker) -> std::sync::Arc<weir_core::catalog::Object> {
    broker.core.catalog().view().find(Kind::Stream, "log").unwrap()
}

#[tokio::test]
async fn what_cannot_be_exported_is_told() {
    let broker = start().await;
    let out = tempfile::tempdir().unwrap();
    let dir = out.path();
    refused(
        &broker,
        dir,
        &["--from", "offset:3"],
        "has 2 shards with offsets of their own; name one with --shard",
    )
    .await;
    refused(&broker, dir, &["--shard", "2"], "has no shard 2; allowed: 0 to 1").await;
    refused(&broker, dir, &["--until", "yesterday"], "`yesterday` is not allowed for --until; allowed: ")
        .await;
    refused(&broker, dir, &["--filter", "a/#/b"], "--filter").await;
    done(&broker, dir, &[]).await;
    refused(&broker, dir, &["--filter", "log/1"], "has another export, with another --filter").await;
    fs::remove_file(dir.join("export.json")).unwrap();
    refused(&broker, dir, &[], "is not empty and has no export.json; use another --out").await;
}
