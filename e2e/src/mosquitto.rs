//! mosquitto's own broker: the control that proves the clients, and the peer that benchmarks run beside.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result, bail};

use crate::process::Process;
use crate::{tools, within};

/// Ports tried before giving up: another process may take a free port before mosquitto opens it.
const ATTEMPTS: u32 = 20;

/// A running mosquitto broker; it ends when this is dropped.
#[derive(Debug)]
pub struct Mosquitto {
    address: SocketAddr,
    _process: Process,
    _folder: tempfile::TempDir,
}

impl Mosquitto {
    /// Starts a broker with mosquitto's defaults for anonymous clients on a free loopback port.
    pub async fn start() -> Result<Self> {
        let tool = &tools::mosquitto().await?.broker;
        for _ in 0..ATTEMPTS {
            // mosquitto cannot choose a port by itself and tell which.
            let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            let folder = tempfile::tempdir()?;
            let config = folder.path().join("mosquitto.conf");
            let (ip, port) = (address.ip(), address.port());
            std::fs::write(&config, format!("listener {port} {ip}\nallow_anonymous true\nuser root\n"))?;
            let mut command = tool.command();
            command.arg("-c").arg(&config);
            let process = Process::spawn("mosquitto", command)?;
            let log = process.log();
            let running = within("mosquitto to start", async {
                Ok(log.find(|line| line.ends_with(" running").then_some(())).await.is_some())
            });
            if running.await? {
                return Ok(Self { address, _process: process, _folder: folder });
            }
            if !log.lines().iter().any(|line| line.contains("Address already in use")) {
                bail!("mosquitto did not start:\n{}", log.tail());
            }
        }
        None.context("a free port for mosquitto")
    }

    /// Where it listens for MQTT.
    #[must_use]
    pub fn mqtt(&self) -> SocketAddr {
        self.address
    }
}
