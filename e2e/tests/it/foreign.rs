//! Foreign clients against Weir: plain MQTT, queues and streams, in both versions.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use weir_e2e::clients::{Client, Connect, Kind, Message, Publish, Subscribe, Subscriber, Version};
use weir_e2e::endpoint::Endpoint;
use weir_e2e::now_rfc3339;
use weir_e2e::weir::Setup;

use crate::matrix::matrix;
use crate::scenarios::{backlog_many, downgrade, live_many, payloads, publish, received, retained, will};

pub(crate) const MANIFEST: &str = "
apiVersion: weir.dev/v1alpha1
kind: MessageQueue
metadata: { name: traffic }
spec:
  topicFilter: sensor/+/data
---
apiVersion: weir.dev/v1alpha1
kind: Stream
metadata: { name: telemetry }
spec:
  topicFilter: vehicle/+/telemetry
";

const SENSOR: &str = "sensor/7/data";
const SENSORS: &str = "sensor/+/data";
const VEHICLE: &str = "vehicle/v1/telemetry";
const VEHICLES: &str = "vehicle/+/telemetry";

/// Runs a scenario against a fresh broker with one queue and one stream; the broker's log explains a failure.
async fn against_weir(
    client: Client,
    scenario: impl AsyncFnOnce(Client, &Endpoint) -> Result<()>,
) -> Result<()> {
    let setup = Setup::embedded()?.with_manifest("city.yaml", MANIFEST)?;
    let weir = setup.start().await?;
    let result = scenario(client, &weir.mqtt().into()).await;
    result.with_context(|| format!("{client} against {weir}"))?;
    weir.terminate().await
}

matrix!(against_weir; [
    live_many,
    downgrade,
    retained,
    will,
    backlog_many,
    queue_beside_live,
    queue_backlog,
    queue_by_its_filter,
    queue_shared,
    stream_from_earliest,
    stream_from_time,
]);

/// MQTT 3.1, with the clients that still speak it.
#[tokio::test]
async fn mqtt_3_1() -> Result<()> {
    for kind in [Kind::Mosquitto, Kind::Paho, Kind::NpmMqtt] {
        let client = Client { kind, version: Version::V31 };
        against_weir(client, live_many).await?;
        against_weir(client, backlog_many).await?;
        against_weir(client, will).await?;
        against_weir(client, queue_backlog).await?;
        against_weir(client, stream_from_earliest).await?;
    }
    Ok(())
}

async fn subscribe(client: Client, broker: &Endpoint, id: &str, filter: &str) -> Result<Subscriber> {
    let subscriber = client.subscribe(Connect::clean(broker, id), Subscribe::to(filter, 1)).await?;
    ensure!(subscriber.granted() == [1], "`{filter}` granted {:?}", subscriber.granted());
    Ok(subscriber)
}

/// A subscription to the stream of vehicles that starts at `start`: said in the way that the version has.
fn stream(client: Client, start: &str) -> Subscribe {
    match client.version {
        Version::V31 | Version::V311 => Subscribe::to(format!("$s/{start}/{VEHICLES}"), 1),
        Version::V5 => Subscribe::to("$stream/telemetry", 1).property("stream-offset", start),
    }
}

/// Every client that can see user properties must see where a queue message came from.
fn check_queue_properties(client: Client, messages: &[Message]) -> Result<()> {
    if client.version == Version::V5 {
        for message in messages {
            ensure!(message.property("queue") == Some("traffic"), "{message:?}");
            ensure!(message.number("delivery-count")? == 1, "{message:?}");
            ensure!(message.number("shard")? == 0, "{message:?}");
        }
        let offsets: Result<BTreeSet<u64>> =
            messages.iter().map(|message| message.number("offset")).collect();
        ensure!(offsets?.len() == messages.len(), "two messages at one offset: {messages:?}");
    }
    Ok(())
}

/// Offsets and times of a stream that was read from its beginning.
fn check_stream_properties(client: Client, messages: &[Message]) -> Result<()> {
    if client.version == Version::V5 {
        let mut ts_before = 0;
        for (offset, message) in (0..).zip(messages) {
            ensure!(message.property("stream") == Some("telemetry"), "{message:?}");
            ensure!(message.number("shard")? == 0 && message.number("offset")? == offset, "{message:?}");
            let ts = message.number("ts")?;
            ensure!(ts >= ts_before, "time runs backwards: {messages:?}");
            ts_before = ts;
        }
    }
    Ok(())
}

/// A live subscriber and a queue consumer both receive the same publishes.
async fn queue_beside_live(client: Client, broker: &Endpoint) -> Result<()> {
    let mut subscriber = subscribe(client, broker, "live", SENSORS).await?;
    let mut consumer = subscribe(client, broker, "consumer", "$queue/traffic").await?;
    for qos in 0..=2 {
        let sent = payloads(&format!("QoS {qos}, message"), 10);
        publish(client, broker, Publish::to(SENSOR, qos, sent.clone())).await?;
        let live = subscriber.collect(10).await?;
        let consumed = consumer.collect(10).await?;
        ensure!(received(&live) == sent, "live: {live:?}");
        ensure!(received(&consumed) == sent, "consumed: {consumed:?}");
        let original = |message: &Message| message.topic == SENSOR && message.qos <= 1 && !message.retain;
        ensure!(consumed.iter().all(original), "{consumed:?}");
        check_queue_properties(client, &consumed)?;
    }
    Ok(())
}

/// What was published while nobody consumed is there for the first consumer, and what it acknowledged is gone
/// for the next.
async fn queue_backlog(client: Client, broker: &Endpoint) -> Result<()> {
    publish(client, broker, Publish::to(SENSOR, 1, payloads("missed", 30))).await?;
    let mut consumer = subscribe(client, broker, "consumer", "$queue/traffic").await?;
    let consumed = consumer.collect(30).await?;
    ensure!(received(&consumed) == payloads("missed", 30), "{consumed:?}");
    check_queue_properties(client, &consumed)?;
    consumer.disconnect().await?;

    publish(client, broker, Publish::to(SENSOR, 1, payloads("again", 5))).await?;
    publish(client, broker, Publish::to(SENSOR, 1, ["end"])).await?;
    let mut consumer = subscribe(client, broker, "consumer", "$queue/traffic").await?;
    let consumed = consumer.until("end").await?;
    ensure!(received(&consumed) == payloads("again", 5), "{consumed:?}");
    Ok(())
}

/// A queue is found by its filter as well as by its name.
async fn queue_by_its_filter(client: Client, broker: &Endpoint) -> Result<()> {
    for filter in [format!("$queue/traffic/{SENSORS}"), format!("$q/{SENSORS}")] {
        publish(client, broker, Publish::to(SENSOR, 1, [filter.as_str()])).await?;
        let mut consumer = subscribe(client, broker, "consumer", &filter).await?;
        let consumed = consumer.next().await?;
        ensure!(consumed.topic == SENSOR && consumed.payload == filter, "{consumed:?}");
        consumer.disconnect().await?;
    }
    Ok(())
}

/// Two consumers share a queue: each message goes to one of them, and both get some.
async fn queue_shared(client: Client, broker: &Endpoint) -> Result<()> {
    const COUNT: usize = 200;
    let mut one = subscribe(client, broker, "one", "$queue/traffic").await?;
    let mut two = subscribe(client, broker, "two", "$queue/traffic").await?;
    publish(client, broker, Publish::to(SENSOR, 1, payloads("shared", COUNT))).await?;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    while first.len() + second.len() < COUNT {
        tokio::select! {
            message = one.next() => first.push(message?),
            message = two.next() => second.push(message?),
        }
    }
    ensure!(!first.is_empty() && !second.is_empty(), "{} and {} messages", first.len(), second.len());
    let all: BTreeSet<&str> = received(&first).into_iter().chain(received(&second)).collect();
    ensure!(all.len() == COUNT, "only {} different messages", all.len());
    first.append(&mut second);
    check_queue_properties(client, &first)
}

/// A stream is read from its beginning and then live, while a live subscriber is undisturbed.
async fn stream_from_earliest(client: Client, broker: &Endpoint) -> Result<()> {
    let mut live = subscribe(client, broker, "live", VEHICLES).await?;
    publish(client, broker, Publish::to(VEHICLE, 1, payloads("past", 30))).await?;
    ensure!(received(&live.collect(30).await?) == payloads("past", 30), "live, before");

    let connect = Connect::clean(broker, "reader");
    let mut reader = client.subscribe(connect, stream(client, "earliest")).await?;
    ensure!(reader.granted() == [1], "granted {:?}", reader.granted());
    let mut read = reader.collect(30).await?;
    ensure!(received(&read) == payloads("past", 30), "{read:?}");

    publish(client, broker, Publish::to(VEHICLE, 1, payloads("present", 10))).await?;
    publish(client, broker, Publish::to(VEHICLE, 1, ["end"])).await?;
    read.extend(reader.until("end").await?);
    ensure!(received(&read[30..]) == payloads("present", 10), "{read:?}");
    check_stream_properties(client, &read)?;
    let undisturbed = live.until("end").await?;
    ensure!(received(&undisturbed) == payloads("present", 10), "live, after: {undisturbed:?}");
    Ok(())
}

/// A stream is read from a moment on, while a live subscriber is undisturbed.
async fn stream_from_time(client: Client, broker: &Endpoint) -> Result<()> {
    let mut live = subscribe(client, broker, "live", VEHICLES).await?;
    publish(client, broker, Publish::to(VEHICLE, 1, payloads("before", 10))).await?;
    let moment = now_rfc3339();
    publish(client, broker, Publish::to(VEHICLE, 1, payloads("after", 10))).await?;

    let mut reader = client.subscribe(Connect::clean(broker, "reader"), stream(client, &moment)).await?;
    publish(client, broker, Publish::to(VEHICLE, 1, ["end"])).await?;
    let read = reader.until("end").await?;
    ensure!(received(&read) == payloads("after", 10), "from {moment}: {read:?}");
    let undisturbed = live.until("end").await?;
    let all: Vec<String> = payloads("before", 10).into_iter().chain(payloads("after", 10)).collect();
    ensure!(received(&undisturbed) == all, "live: {undisturbed:?}");
    Ok(())
}
