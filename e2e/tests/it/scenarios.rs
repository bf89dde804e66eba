//! What ordinary MQTT clients may expect of any broker.

use anyhow::{Result, ensure};
use weir_e2e::clients::{Client, Connect, Kind, Message, Publish, Subscribe, Version};
use weir_e2e::endpoint::Endpoint;

/// What a publisher sends in one go.
pub(crate) fn payloads(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix} {n}")).collect()
}

/// The payloads of messages.
pub(crate) fn received(messages: &[Message]) -> Vec<&str> {
    messages.iter().map(|message| message.payload.as_str()).collect()
}

/// Publishes and demands that every message is accepted.
pub(crate) async fn publish(client: Client, broker: impl Into<Endpoint>, publish: Publish) -> Result<()> {
    let topic = publish.topic.clone();
    let reasons = client.publish(Connect::clean(broker, format!("publisher of {topic}")), publish).await?;
    // 0x10: nobody is subscribed, which is a success.
    ensure!(reasons.iter().all(|reason| matches!(reason, 0 | 0x10)), "refused on `{topic}`: {reasons:?}");
    Ok(())
}

/// Live messages of each QoS arrive once, in order, as they were sent.
pub(crate) async fn live(client: Client, broker: &Endpoint) -> Result<()> {
    live_messages(client, broker, 20).await
}

/// The same with so many messages that clients and broker have to wait for each other. Not for mosquitto's
/// broker, which drops what is too much at once.
pub(crate) async fn live_many(client: Client, broker: &Endpoint) -> Result<()> {
    live_messages(client, broker, 300).await
}

async fn live_messages(client: Client, broker: &Endpoint, count: usize) -> Result<()> {
    let sent = payloads("message", count);
    let mut subscriber =
        client.subscribe(Connect::clean(broker, "live"), Subscribe::to("live/+/data", 2)).await?;
    ensure!(subscriber.granted() == [2], "granted {:?}", subscriber.granted());
    for qos in 0..=2 {
        let topic = format!("live/{qos}/data");
        publish(client, broker, Publish::to(&topic, qos, sent.clone())).await?;
        publish(client, broker, Publish::to(&topic, qos, ["end"])).await?;
        let messages = subscriber.until("end").await?;
        ensure!(received(&messages) == sent, "QoS {qos}: {messages:?}");
        let as_sent = |message: &Message| message.topic == topic && message.qos == qos && !message.retain;
        ensure!(messages.iter().all(as_sent), "QoS {qos}: {messages:?}");
    }
    subscriber.disconnect().await
}

/// A subscription is granted its own QoS, and deliveries never exceed it.
pub(crate) async fn downgrade(client: Client, broker: &Endpoint) -> Result<()> {
    for qos in 0..=1 {
        let connect = Connect::clean(broker, format!("downgraded to {qos}"));
        let mut subscriber = client.subscribe(connect, Subscribe::to("down/#", qos)).await?;
        ensure!(subscriber.granted() == [qos], "granted {:?}", subscriber.granted());
        publish(client, broker, Publish::to("down/a", 2, payloads("message", 5))).await?;
        let messages = subscriber.collect(5).await?;
        ensure!(messages.iter().all(|message| message.qos == qos), "{messages:?}");
    }
    Ok(())
}

/// The last retained message of a topic greets later subscribers, until an empty one clears it.
pub(crate) async fn retained(client: Client, broker: &Endpoint) -> Result<()> {
    let subscribe =
        async |id: &str| client.subscribe(Connect::clean(broker, id), Subscribe::to("retained/#", 1)).await;
    let mut early = subscribe("early").await?;
    publish(client, broker, Publish::to("retained/a", 1, ["old", "new"]).retained()).await?;
    let live = early.collect(2).await?;
    ensure!(live.iter().all(|message| !message.retain), "live messages are not marked: {live:?}");

    let mut late = subscribe("late").await?;
    let greeting = late.next().await?;
    ensure!(greeting.retain && greeting.payload == "new" && greeting.topic == "retained/a", "{greeting:?}");

    publish(client, broker, Publish::to("retained/a", 1, [""]).retained()).await?;
    let mut later = subscribe("later").await?;
    publish(client, broker, Publish::to("retained/b", 1, ["end"])).await?;
    let nothing = later.until("end").await?;
    ensure!(nothing.is_empty(), "cleared, yet: {nothing:?}");
    Ok(())
}

/// A will is published when its connection breaks, and not after a DISCONNECT.
pub(crate) async fn will(client: Client, broker: &Endpoint) -> Result<()> {
    let mut witness = client.subscribe(Connect::clean(broker, "witness"), Subscribe::to("will/+", 1)).await?;
    let mortal = async |id: &str| {
        let connect = Connect::clean(broker, id).with_will("will/topic", "died", 1);
        client.subscribe(connect, Subscribe::to("life", 0)).await
    };
    mortal("mortal").await?.kill().await?;
    let last_words = witness.next().await?;
    ensure!(last_words.payload == "died" && last_words.topic == "will/topic", "{last_words:?}");

    mortal("leaving").await?.disconnect().await?;
    // When the same client id is connected again, the broker is done with the connection before.
    let again = client.subscribe(Connect::clean(broker, "leaving"), Subscribe::to("life", 0)).await?;
    publish(client, broker, Publish::to("will/end", 1, ["end"])).await?;
    let words = witness.until("end").await?;
    // mosquitto_sub, when it is told to end, asks for its will with reason 0x04 where there are reasons.
    let asked = client == Client { kind: Kind::Mosquitto, version: Version::V5 };
    ensure!(words.len() == usize::from(asked), "wills after DISCONNECT: {words:?}");
    again.disconnect().await
}

/// A session that outlives its connection keeps what was published meanwhile, once.
pub(crate) async fn backlog(client: Client, broker: &Endpoint) -> Result<()> {
    missed_messages(client, broker, 9).await
}

/// The same with more than a client takes at once. Not for mosquitto's broker, which then breaks its own bound.
pub(crate) async fn backlog_many(client: Client, broker: &Endpoint) -> Result<()> {
    missed_messages(client, broker, 200).await
}

async fn missed_messages(client: Client, broker: &Endpoint, count: usize) -> Result<()> {
    let subscribe =
        async || client.subscribe(Connect::persistent(broker, "sleeper"), Subscribe::to("home/+", 2)).await;
    subscribe().await?.disconnect().await?;
    publish(client, broker, Publish::to("home/1", 1, payloads("once", count))).await?;
    publish(client, broker, Publish::to("home/2", 2, payloads("twice", count))).await?;
    let mut sleeper = subscribe().await?;
    // With QoS 2, so that what comes with QoS 2 before it is complete when it is.
    publish(client, broker, Publish::to("home/end", 2, ["end"])).await?;
    let messages = sleeper.until("end").await?;
    let of = |topic: &str| messages.iter().filter(|m| m.topic == topic).cloned().collect::<Vec<_>>();
    ensure!(received(&of("home/1")) == payloads("once", count), "QoS 1: {messages:?}");
    ensure!(received(&of("home/2")) == payloads("twice", count), "QoS 2: {messages:?}");
    sleeper.disconnect().await?;

    let mut again = subscribe().await?;
    publish(client, broker, Publish::to("home/end", 2, ["end"])).await?;
    let nothing = again.until("end").await?;
    ensure!(nothing.is_empty(), "acknowledged, yet again: {nothing:?}");
    Ok(())
}
