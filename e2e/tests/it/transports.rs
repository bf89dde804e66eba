//! The drivers of foreign clients over TLS, WebSocket and both, against mosquitto's broker: what fails here is the
//! driver's fault.

use anyhow::{Context, Result, ensure};
use weir_e2e::clients::{Client, Connect, Publish, Subscribe};
use weir_e2e::endpoint::{Endpoint, Transport};
use weir_e2e::mosquitto::Mosquitto;

use crate::scenarios::{payloads, publish, received};

/// Messages with QoS 1 and 2, there and back, and a will.
async fn messages(client: Client, broker: &Endpoint) -> Result<()> {
    let mut subscriber =
        client.subscribe(Connect::clean(broker, "subscriber"), Subscribe::to("way/#", 2)).await?;
    ensure!(subscriber.granted() == [2], "granted {:?}", subscriber.granted());
    // More than a frame of WebSocket or a record of TLS holds.
    let large = "x".repeat(100_000);
    for qos in 1..=2 {
        let mut sent = payloads("message", 10);
        sent.push(large.clone());
        publish(client, broker, Publish::to(&format!("way/{qos}"), qos, sent.clone())).await?;
        let got = subscriber.collect(sent.len()).await?;
        ensure!(received(&got) == sent, "QoS {qos}: {} messages, not as sent", got.len());
        ensure!(got.iter().all(|message| message.qos == qos), "QoS {qos}: {:?}", got.first());
    }
    let mortal = Connect::clean(broker, "mortal").with_will("way/will", "died", 1);
    client.subscribe(mortal, Subscribe::to("life", 0)).await?.kill().await?;
    let last_words = subscriber.next().await?;
    // It is not asked to disconnect: mosquitto_sub fails at that over WebSocket in TLS, whatever the broker.
    ensure!(last_words.payload == "died" && last_words.topic == "way/will", "{last_words:?}");
    Ok(())
}

async fn against_mosquitto(client: Client, transport: fn() -> Transport) -> Result<()> {
    let broker = Mosquitto::start_for(transport()).await?;
    messages(client, broker.endpoint()).await.with_context(|| client.to_string())
}

fn tls() -> Transport {
    Transport::Tls
}

fn ws() -> Transport {
    Transport::Ws
}

fn wss() -> Transport {
    Transport::Wss
}

mod control {
    use super::{against_mosquitto, tls, ws, wss};
    use crate::matrix::matrix;

    matrix!(against_mosquitto; [tls, ws, wss]);
}
