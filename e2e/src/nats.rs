//! The NATS server, as an MQTT broker and for its JetStream: a peer that benchmarks run beside.

use std::net::SocketAddr;

use anyhow::{Context, Result};

use crate::process::{Process, on_cpus};
use crate::{tools, within};

/// A running NATS server; it ends when this is dropped.
#[derive(Debug)]
pub struct Nats {
    mqtt: SocketAddr,
    clients: SocketAddr,
    process: Process,
    _folder: tempfile::TempDir,
}

impl Nats {
    /// Starts a server on free loopback ports, on the processors `cpus` or on all. MQTT needs its JetStream, which
    /// keeps sessions in files that it does not sync.
    pub async fn start(cpus: Option<&str>) -> Result<Self> {
        Self::launch("", cpus).await
    }

    /// The same, where JetStream syncs every write before it says that it has it.
    pub async fn start_synced(cpus: Option<&str>) -> Result<Self> {
        Self::launch(", sync_interval: always", cpus).await
    }

    async fn launch(jetstream: &str, cpus: Option<&str>) -> Result<Self> {
        let tool = &tools::nats().await?.broker;
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("nats.conf");
        let store = folder.path().join("store");
        let text = format!(
            "server_name: peer\nlisten: \"127.0.0.1:-1\"\njetstream {{ store_dir: {store:?}{jetstream} }}\n\
             mqtt {{ listen: \"127.0.0.1:-1\", max_ack_pending: 10000 }}\n"
        );
        std::fs::write(&config, text)?;
        let mut command = tool.command();
        command.arg("-c").arg(&config);
        let process = Process::spawn("nats-server", on_cpus(cpus, &command))?;
        let log = process.log();
        let addresses = within("the NATS server to listen", async {
            let after = async |what: &str| {
                let found = log.find(|line| Some(line.split_once(what)?.1.to_owned())).await;
                let found =
                    found.with_context(|| format!("the NATS server did not start:\n{}", log.tail()))?;
                found.parse().with_context(|| format!("the address `{found}`"))
            };
            let addresses = (
                after("for MQTT clients on mqtt://").await?,
                after("Listening for client connections on ").await?,
            );
            log.find(|line| line.contains("Server is ready").then_some(())).await;
            Ok(addresses)
        });
        let (mqtt, clients) = addresses.await?;
        Ok(Self { mqtt, clients, process, _folder: folder })
    }

    /// Where it listens for MQTT.
    #[must_use]
    pub fn mqtt(&self) -> SocketAddr {
        self.mqtt
    }

    /// Where it listens for its own protocol.
    #[must_use]
    pub fn clients(&self) -> SocketAddr {
        self.clients
    }

    /// Its process id, unless it has ended.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }
}
