//! The brokers and clients that Weir is compared with and tested by can be had.

use anyhow::{Result, ensure};
use weir_e2e::load::{self, LoadArgs, Protocol};
use weir_e2e::nats::Nats;
use weir_e2e::tools;
use weir_e2e::weir::Setup;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_current_mosquitto_and_its_clients_run() -> Result<()> {
    let mosquitto = tools::mosquitto_current().await?;
    ensure!(mosquitto.version.starts_with("2."), "{mosquitto:?}");
    let help = mosquitto.subscribe.command().arg("--help").output().await?;
    let help = String::from_utf8(help.stdout)?;
    ensure!(help.contains("--ws"), "its clients speak WebSocket:\n{help}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nats_server_runs() -> Result<()> {
    let nats = tools::nats().await?;
    ensure!(nats.version.starts_with("2."), "{nats:?}");
    Ok(())
}

/// In an open loop every message has its time before the end, and is sent however late it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_load_of_the_queues_sees_every_message_confirmed_and_consumed() -> Result<()> {
    let queue = "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata:\n  name: bench\n\
                 spec:\n  topicFilter: bench/+/data\n  shards: 1\n";
    let weir = Setup::memory()?.with_manifest("queue.yaml", queue)?.start().await?;
    let nats = Nats::start_synced(None).await?;
    for (protocol, address) in [
        (Protocol::MqttQueue, weir.mqtt()),
        (Protocol::MqttSession, weir.mqtt()),
        (Protocol::Nats, nats.clients()),
    ] {
        let (consumers, window) = if protocol == Protocol::MqttSession { (1, 1) } else { (2, 4) };
        let (publishers, size, rate, duration) = (2, 100, Some(200.0), 300);
        let (count, stored) = (None, None);
        let load = LoadArgs {
            protocol,
            address,
            publishers,
            consumers,
            window,
            size,
            rate,
            duration,
            count,
            stored,
        };
        let report = load::run(load).await?;
        for count in ["sent", "confirmed", "received"] {
            ensure!(report[count] == 60, "{protocol:?}: {count} in {report}");
        }
    }
    weir.no_panic()
}

/// Of a stream every reader gets every message, as it comes or from the beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_load_of_the_streams_sees_every_message_confirmed_and_read() -> Result<()> {
    let stream = "apiVersion: weir.dev/v1alpha1\nkind: Stream\nmetadata:\n  name: bench\n\
                  spec:\n  topicFilter: bench/+/data\n  shards: 1\n";
    let weir = Setup::memory()?.with_manifest("stream.yaml", stream)?.start().await?;
    let nats = Nats::start(None).await?;
    for (protocol, address) in [(Protocol::MqttStream, weir.mqtt()), (Protocol::NatsStream, nats.clients())] {
        let live = LoadArgs {
            protocol,
            address,
            publishers: 2,
            consumers: 3,
            window: 4,
            size: 100,
            rate: Some(200.0),
            duration: 20_000,
            count: Some(61),
            stored: None,
        };
        let report = load::run(live.clone()).await?;
        for (count, expected) in [("sent", 61), ("confirmed", 61), ("received", 183)] {
            ensure!(report[count] == expected, "{protocol:?}: {count} in {report}");
        }
        let replay = LoadArgs { publishers: 0, stored: Some(61), ..live };
        let report = load::run(replay).await?;
        ensure!(report["received"] == 183, "{protocol:?}: {report}");
    }
    weir.no_panic()
}
