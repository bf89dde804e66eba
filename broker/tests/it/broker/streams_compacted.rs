//! Streams that keep the newest message of each key, read by MQTT clients of both versions.

use weir_core::definition::Definition;

use super::client::{AtLeastOnce, Client, V311, clean, property, text};
use super::{TestBroker, stream};
use crate::cli::weir;

async fn start() -> TestBroker {
    let broker = TestBroker::start().await;
    broker.declare(&[Definition { last_value: true, ..stream("log", "log/#") }]).await;
    broker
}

/// Topics and payloads of the next `count` messages.
async fn take(client: &mut Client, count: usize) -> Vec<(String, String)> {
    let mut taken = Vec::new();
    for _ in 0..count {
        let publish = client.take().await;
        taken.push((publish.topic.as_ref().unwrap().as_str().to_owned(), text(&publish).to_owned()));
    }
    taken
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(topic, payload)| ((*topic).to_owned(), (*payload).to_owned())).collect()
}

#[tokio::test]
async fn the_state_and_then_the_changes_come_at_once() {
    let broker = start().await;
    let large = "x".repeat(100_000);
    broker.publish("log/1", &["a", "b"]).await;
    broker.publish("log/2", &["c"]).await;
    broker.publish("log/1", &[&large]).await;
    broker.publish("log/3", &["d", ""]).await;
    let state = pairs(&[("log/2", "c"), ("log/1", &large), ("log/3", "")]);
    let mut reader = broker.clean("v5").await;
    reader.read_from("$stream/log", AtLeastOnce, "earliest").await;
    let first = reader.take().await;
    let told = ["stream", "shard", "offset", "key"].map(|name| property(&first, name));
    assert_eq!(told, ["log", "0", "2", "log/2"].map(Some));
    assert_eq!(take(&mut reader, 2).await, state[1..]);
    reader.quiet().await;
    let mut old = broker.connect(clean("v3", V311)).await;
    old.subscribe("$s/earliest/log/#", AtLeastOnce).await;
    assert_eq!(take(&mut old, 3).await, state);
    broker.publish("log/2", &["e"]).await;
    broker.publish("log/1", &[""]).await;
    let changes = pairs(&[("log/2", "e"), ("log/1", "")]);
    for reader in [&mut reader, &mut old] {
        assert_eq!(take(reader, 2).await, changes);
        reader.quiet().await;
    }
    let (admin, args) = (broker.admin.to_string(), ["stream", "describe", "log", "-o", "json", "--admin"]);
    let shown = weir(&[&args[..], &[&admin]].concat(), "").await.stdout;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&shown["settings"]["lastValue"], &shown["stream"]["messages"]), (&true.into(), &3.into()));
    let mut later = broker.clean("later").await;
    later.read_from("$stream/log", AtLeastOnce, "offset:4").await;
    assert_eq!(take(&mut later, 3).await, pairs(&[("log/3", ""), ("log/2", "e"), ("log/1", "")]));
    later.quiet().await;
}
