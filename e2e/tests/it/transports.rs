//! Foreign clients over every transport: the same messages, wills and queues over TLS, WebSocket and both as over
//! TCP, where `foreign` asks for more. What fails against mosquitto's broker too is the driver's fault.

use anyhow::{Context, Result, ensure};
use weir_e2e::clients::{Client, Connect, Kind, Publish, Subscribe, Version};
use weir_e2e::endpoint::{Endpoint, Transport};
use weir_e2e::mosquitto::Mosquitto;
use weir_e2e::weir::Setup;

use crate::foreign::MANIFEST;
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

/// The same, and a queue.
async fn messages_and_queue(client: Client, broker: &Endpoint) -> Result<()> {
    messages(client, broker).await?;
    let sent = payloads("work", 20);
    publish(client, broker, Publish::to("sensor/7/data", 1, sent.clone())).await?;
    let connect = Connect::clean(broker, "consumer");
    let mut consumer = client.subscribe(connect, Subscribe::to("$queue/traffic", 1)).await?;
    let consumed = consumer.collect(sent.len()).await?;
    ensure!(received(&consumed) == sent, "{consumed:?}");
    Ok(())
}

async fn against_weir(client: Client, transport: fn() -> Transport) -> Result<()> {
    let setup = Setup::memory()?.with_manifest("city.yaml", MANIFEST)?.with_every_transport()?;
    let weir = setup.start().await?;
    let broker = weir.endpoint(transport()).await?;
    messages_and_queue(client, &broker).await.with_context(|| format!("{client} against {weir}"))?;
    weir.terminate().await
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

#[tokio::test]
async fn a_client_certificate_opens_the_door_and_nothing_else_does() -> Result<()> {
    let setup = Setup::memory()?.with_client_certificates()?;
    let weir = setup.start().await?;
    for (kind, transport) in [(Kind::Mosquitto, Transport::Tls), (Kind::Rumqttc, Transport::Wss)] {
        let client = Client { kind, version: Version::V5 };
        let broker = weir.endpoint(transport).await?.with_client_certificate();
        messages(client, &broker).await.with_context(|| format!("{client} against {weir}"))?;
    }
    let stranger = Client { kind: Kind::Rumqttc, version: Version::V5 };
    for transport in [Transport::Tls, Transport::Wss] {
        let connect = Connect::clean(weir.endpoint(transport).await?, "stranger");
        let refused = stranger.subscribe(connect, Subscribe::to("way/#", 1)).await;
        ensure!(refused.is_err(), "came in without a certificate by {transport:?}");
    }
    weir.terminate().await
}

#[tokio::test]
async fn a_password_opens_the_door_and_no_other_does() -> Result<()> {
    let setup = Setup::memory()?.with_every_transport()?.with_user("anna", "open sesame").await?;
    let weir = setup.start().await?;
    for client in Client::all() {
        let transport = if client.version == Version::V5 { Transport::Wss } else { Transport::Tcp };
        let broker = weir.endpoint(transport).await?.with_login("anna", "open sesame");
        let came = publish(client, &broker, Publish::to("way/in", 1, ["here I am"])).await;
        came.with_context(|| format!("{client} against {weir}"))?;
    }
    let stranger = Client { kind: Kind::Rumqttc, version: Version::V311 };
    let anonymous = weir.endpoint(Transport::Tcp).await?;
    for broker in [anonymous.clone().with_login("anna", "sesame"), anonymous] {
        let refused = publish(stranger, &broker, Publish::to("way/in", 1, ["me too"])).await;
        ensure!(refused.is_err(), "came in as {:?}", broker.login);
    }
    weir.terminate().await
}

mod weir {
    use super::{against_weir, tls, ws, wss};
    use crate::matrix::matrix;

    matrix!(against_weir; [tls, ws, wss]);
}

mod control {
    use super::{against_mosquitto, tls, ws, wss};
    use crate::matrix::matrix;

    matrix!(against_mosquitto; [tls, ws, wss]);
}
