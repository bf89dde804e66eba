//! The NATS server as an MQTT broker: a peer that benchmarks run beside.

use std::net::SocketAddr;

use anyhow::{Context, Result};

use crate::process::{Process, on_cpus};
use crate::{tools, within};

/// A running NATS server; it ends when this is dropped.
#[derive(Debug)]
pub struct Nats {
    address: SocketAddr,
    process: Process,
    _folder: tempfile::TempDir,
}

impl Nats {
    /// Starts a server on free loopback ports, on the processors `cpus` or on all. MQTT needs its JetStream, which
    /// keeps sessions in files that it does not sync.
    pub async fn start(cpus: Option<&str>) -> Result<Self> {
        let tool = &tools::nats().await?.broker;
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("nats.conf");
        let store = folder.path().join("store");
        let text = format!(
            "server_name: peer\nlisten: \"127.0.0.1:-1\"\njetstream {{ store_dir: {store:?} }}\n\
             mqtt {{ listen: \"127.0.0.1:-1\", max_ack_pending: 10000 }}\n"
        );
        std::fs::write(&config, text)?;
        let mut command = tool.command();
        command.arg("-c").arg(&config);
        let process = Process::spawn("nats-server", on_cpus(cpus, &command))?;
        let log = process.log();
        let address = within("the NATS server to listen", async {
            let url =
                log.find(|line| Some(line.split_once("for MQTT clients on mqtt://")?.1.to_owned())).await;
            log.find(|line| line.contains("Server is ready").then_some(())).await;
            url.with_context(|| format!("the NATS server did not start:\n{}", log.tail()))
        });
        let address = address.await?.parse().context("its address")?;
        Ok(Self { address, process, _folder: folder })
    }

    /// Where it listens for MQTT.
    #[must_use]
    pub fn mqtt(&self) -> SocketAddr {
        self.address
    }

    /// Its process id, unless it has ended.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }
}
