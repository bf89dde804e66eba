//! Starting, stopping and changing a broker.

use anyhow::{Context, Result, ensure};
use weir_e2e::clients::{Client, Connect, Kind, Publish, Subscribe, Subscriber, Version};
use weir_e2e::http;
use weir_e2e::weir::{Setup, Weir};

use crate::scenarios::{payloads, publish, received};

const CLIENT: Client = Client { kind: Kind::Rumqttc, version: Version::V5 };

const BOTH: &str = "
apiVersion: weir.dev/v1alpha1
kind: MessageQueue
metadata: { name: jobs }
spec:
  topicFilter: work/#
---
apiVersion: weir.dev/v1alpha1
kind: Stream
metadata: { name: journal }
spec:
  topicFilter: work/#
";

fn queue(name: &str, filter: &str) -> String {
    format!(
        "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata: {{ name: {name} }}\n\
         spec:\n  topicFilter: {filter}\n"
    )
}

async fn subscribe(weir: &Weir, filter: &str) -> Result<Subscriber> {
    let connect = Connect::clean(weir.mqtt(), format!("subscriber of {filter}"));
    CLIENT.subscribe(connect, Subscribe::to(filter, 1)).await
}

#[tokio::test]
async fn sigterm_exits_with_0_and_loses_nothing() -> Result<()> {
    let setup = Setup::embedded()?.with_manifest("both.yaml", BOTH)?;
    let weir = setup.start().await?;
    let sleeper = Connect::persistent(weir.mqtt(), "sleeper");
    CLIENT.subscribe(sleeper, Subscribe::to("work/+", 1)).await?.disconnect().await?;
    let mut worker = subscribe(&weir, "$queue/jobs").await?;
    publish(CLIENT, weir.mqtt(), Publish::to("work/1", 1, payloads("done", 20))).await?;
    ensure!(received(&worker.collect(20).await?) == payloads("done", 20), "before the stop");
    worker.disconnect().await?;
    publish(CLIENT, weir.mqtt(), Publish::to("work/1", 1, payloads("open", 20))).await?;
    publish(CLIENT, weir.mqtt(), Publish::to("work/1", 1, ["kept"]).retained()).await?;
    weir.terminate().await?;

    let weir = setup.start().await?;
    publish(CLIENT, weir.mqtt(), Publish::to("work/1", 1, ["end"])).await?;
    let open: Vec<String> = payloads("open", 20).into_iter().chain(["kept".to_owned()]).collect();
    let all: Vec<String> = payloads("done", 20).into_iter().chain(open.clone()).collect();
    let consumed = subscribe(&weir, "$queue/jobs").await?.until("end").await?;
    ensure!(received(&consumed) == open, "queue: {consumed:?}");
    let replayed = subscribe(&weir, "$s/earliest/work/#").await?.until("end").await?;
    ensure!(received(&replayed) == all, "stream: {replayed:?}");
    let sleeper = Connect::persistent(weir.mqtt(), "sleeper");
    let missed = CLIENT.subscribe(sleeper, Subscribe::to("work/+", 1)).await?.until("end").await?;
    let missed: Vec<&str> = missed.iter().filter(|m| !m.retain).map(|m| m.payload.as_str()).collect();
    ensure!(missed == all, "session: {missed:?}");
    let greeting = subscribe(&weir, "work/1").await?.next().await?;
    ensure!(greeting.retain && greeting.payload == "kept", "retained: {greeting:?}");
    weir.terminate().await
}

#[tokio::test]
async fn sigterm_is_obeyed_while_clients_are_connected() -> Result<()> {
    let setup = Setup::embedded()?.with_manifest("both.yaml", BOTH)?;
    let weir = setup.start().await?;
    let mut clients = Vec::new();
    for client in Client::all() {
        let connect = Connect::clean(weir.mqtt(), client.to_string());
        clients.push(client.subscribe(connect, Subscribe::to("$queue/jobs", 1)).await?);
    }
    weir.terminate().await
}

#[tokio::test]
async fn a_store_belongs_to_one_process() -> Result<()> {
    let setup = Setup::embedded()?;
    let weir = setup.start().await?;
    let (_, said) = setup.start_refused().await?;
    ensure!(said.contains("store is open in another process"), "the second process said: {said}");
    let mut subscriber = subscribe(&weir, "still/here").await?;
    publish(CLIENT, weir.mqtt(), Publish::to("still/here", 1, ["yes"])).await?;
    ensure!(subscriber.next().await?.payload == "yes", "the first process is disturbed");
    weir.terminate().await
}

#[tokio::test]
async fn a_bad_manifest_is_refused_and_nothing_of_it_applied() -> Result<()> {
    let bad = format!("{}---\n{}  ackTimeot: 30s\n", queue("good", "good/#"), queue("bad", "bad/#"));
    let setup = Setup::embedded()?.with_manifest("queues.yaml", &bad)?;
    let (_, said) = setup.start_refused().await?;
    for part in ["queues.yaml:12", "spec.ackTimeot", "ackTimeout"] {
        ensure!(said.contains(part), "`{part}` is not in: {said}");
    }
    setup.manifest("queues.yaml", &queue("other", "other/#"))?;
    let weir = setup.start().await?;
    let mut consumer = subscribe(&weir, "$queue/good").await?;
    publish(CLIENT, weir.mqtt(), Publish::to("good/a", 1, ["into nothing"])).await?;
    setup.manifest("more.yaml", &queue("good", "good/#"))?;
    let before = until_queued(&weir, &mut consumer, "good/b", "now good").await?;
    ensure!(before.is_empty(), "the queue existed before its manifest was good: {before:?}");
    weir.terminate().await
}

#[tokio::test]
async fn the_folder_of_manifests_is_followed() -> Result<()> {
    let setup = Setup::embedded()?.with_manifest("one.yaml", &queue("one", "one/#"))?;
    let weir = setup.start().await?;
    let mut one = subscribe(&weir, "$queue/one").await?;
    let mut two = subscribe(&weir, "$queue/two").await?;

    setup.manifest("two.yaml", &queue("two", "two/#"))?;
    until_queued(&weir, &mut two, "two/a", "added").await?;

    let mistake = format!("{}  shards: many\n---\n{}", queue("two", "two/#"), queue("three", "three/#"));
    setup.manifest("two.yaml", &mistake)?;
    let logged = weir.logged(&["two.yaml:6", "spec.shards"]).await?;
    ensure!(logged.contains("ERROR"), "{logged}");
    until_queued(&weir, &mut one, "one/a", "beside a mistake").await?;
    until_queued(&weir, &mut two, "two/a", "despite a mistake").await?;

    let mut three = subscribe(&weir, "$queue/three").await?;
    publish(CLIENT, weir.mqtt(), Publish::to("three/a", 1, ["beside a mistake"])).await?;
    setup.manifest("two.yaml", &mistake.replace("many", "1"))?;
    let before = until_queued(&weir, &mut three, "three/a", "mended").await?;
    ensure!(before.is_empty(), "a manifest was applied beside one with a mistake: {before:?}");
    weir.terminate().await
}

/// Publishes `payload` to `topic` again and again until the consumer gets it: only then is its queue known to
/// take messages. Returns what the consumer got before.
async fn until_queued(
    weir: &Weir,
    consumer: &mut Subscriber,
    topic: &str,
    payload: &str,
) -> Result<Vec<String>> {
    let publishing = async {
        loop {
            publish(CLIENT, weir.mqtt(), Publish::to(topic, 1, [payload])).await?;
        }
    };
    tokio::select! {
        before = consumer.until(payload) => {
            let before = before.with_context(|| weir.to_string())?;
            Ok(before.into_iter().map(|message| message.payload).collect())
        }
        failed = publishing => failed,
    }
}

#[tokio::test]
async fn probes_and_metrics_answer() -> Result<()> {
    let setup = Setup::memory()?.with_manifest("both.yaml", BOTH)?;
    let weir = setup.start().await?;
    publish(CLIENT, weir.mqtt(), Publish::to("work/1", 1, payloads("counted", 5))).await?;
    for path in ["/healthz", "/readyz"] {
        let (status, body) = http::get(weir.http(), path).await?;
        ensure!(status == 200, "{path}: {status} {body}");
    }
    let (status, metrics) = http::get(weir.http(), "/metrics").await?;
    ensure!(status == 200 && metrics.ends_with("# EOF\n"), "/metrics: {status} {metrics}");
    ensure!(metrics.contains("\nweir_publishes_total{qos=\"1\"} 5\n"), "/metrics: {metrics}");
    ensure!(http::get(weir.http(), "/else").await?.0 == 404, "an unknown path");
    weir.terminate().await
}

#[tokio::test]
async fn without_authentication_only_loopback_listens() -> Result<()> {
    let setup = Setup::memory()?;
    let weir = setup.start().await?;
    weir.logged(&["no authentication is configured", "only this machine"]).await?;
    weir.terminate().await?;

    let open = Setup::memory()?.with_arguments(&["--listen", "mqtt://0.0.0.0:0"]);
    let (_, said) = open.start_refused().await?;
    ensure!(said.contains("allow-anonymous"), "refused with: {said}");
    Ok(())
}
