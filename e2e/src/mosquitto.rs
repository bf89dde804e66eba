//! mosquitto's own broker: the control that proves the clients, and the peer that benchmarks run beside.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result, bail};

use crate::process::{Process, on_cpus};
use crate::tools::{self, Tool};
use crate::within;

/// Ports tried before giving up: another process may take a free port before mosquitto opens it.
const ATTEMPTS: u32 = 20;

/// A running mosquitto broker; it ends when this is dropped.
#[derive(Debug)]
pub struct Mosquitto {
    address: SocketAddr,
    process: Process,
    _folder: tempfile::TempDir,
}

impl Mosquitto {
    /// Starts a broker with mosquitto's defaults for anonymous clients on a free loopback port.
    pub async fn start() -> Result<Self> {
        Self::start_with(&tools::mosquitto().await?.broker, "", None).await
    }

    /// Starts the broker `tool` with more lines of configuration, on the processors `cpus` or on all.
    pub async fn start_with(tool: &Tool, more: &str, cpus: Option<&str>) -> Result<Self> {
        for _ in 0..ATTEMPTS {
            // mosquitto cannot choose a port by itself and tell which.
            let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            let folder = tempfile::tempdir()?;
            let config = folder.path().join("mosquitto.conf");
            let (ip, port) = (address.ip(), address.port());
            let text = format!("{more}listener {port} {ip}\nallow_anonymous true\nuser root\n");
            std::fs::write(&config, text)?;
            let mut command = tool.command();
            command.arg("-c").arg(&config);
            let process = Process::spawn("mosquitto", on_cpus(cpus, &command))?;
            let log = process.log();
            let running = within("mosquitto to start", async {
                Ok(log.find(|line| line.ends_with(" running").then_some(())).await.is_some())
            });
            if running.await? {
                return Ok(Self { address, process, _folder: folder });
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

    /// Its process id, unless it has ended.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }
}
