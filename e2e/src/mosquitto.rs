//! mosquitto's own broker: the control that proves the clients, and the peer that benchmarks run beside.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::certificates::{Certificates, Signed};
use crate::endpoint::{Endpoint, Transport};
use crate::process::{Process, on_cpus};
use crate::tools::{self, Tool};
use crate::within;

/// Ports tried before giving up: another process may take a free port before mosquitto opens it.
const ATTEMPTS: u32 = 20;

/// A running mosquitto broker; it ends when this is dropped.
#[derive(Debug)]
pub struct Mosquitto {
    endpoint: Endpoint,
    process: Process,
    _folder: tempfile::TempDir,
}

impl Mosquitto {
    /// Starts a broker with mosquitto's defaults for anonymous clients on a free loopback port.
    pub async fn start() -> Result<Self> {
        Self::start_for(Transport::Tcp).await
    }

    /// The same for clients that come by `transport`.
    pub async fn start_for(transport: Transport) -> Result<Self> {
        // Older ones are built without WebSocket, or with a library that has bugs of its own.
        let tools = match transport {
            Transport::Tcp | Transport::Tls => tools::mosquitto().await?,
            Transport::Ws | Transport::Wss => tools::mosquitto_current().await?,
        };
        Self::launch(&tools.broker, "", None, transport).await
    }

    /// Starts the broker `tool` with more lines of configuration, on the processors `cpus` or on all.
    pub async fn start_with(tool: &Tool, more: &str, cpus: Option<&str>) -> Result<Self> {
        Self::launch(tool, more, cpus, Transport::Tcp).await
    }

    async fn launch(tool: &Tool, more: &str, cpus: Option<&str>, transport: Transport) -> Result<Self> {
        for _ in 0..ATTEMPTS {
            // mosquitto cannot choose a port by itself and tell which.
            let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
            let folder = tempfile::tempdir()?;
            let config = folder.path().join("mosquitto.conf");
            let (ip, port) = (address.ip(), address.port());
            let mut text = format!("{more}listener {port} {ip}\nallow_anonymous true\nuser root\n");
            if transport.is_websocket() {
                text.push_str("protocol websockets\n");
            }
            let mut endpoint = Endpoint { transport, ..Endpoint::from(address) };
            if transport.is_tls() {
                let certificates = Certificates::make(folder.path())?;
                let Signed { certificate, key } = &certificates.server;
                writeln!(text, "certfile {}\nkeyfile {}", certificate.display(), key.display())?;
                endpoint.certificates = Some(Arc::new(certificates));
            }
            std::fs::write(&config, text)?;
            let mut command = tool.command();
            command.arg("-c").arg(&config);
            let process = Process::spawn("mosquitto", on_cpus(cpus, &command))?;
            let log = process.log();
            let running = within("mosquitto to start", async {
                Ok(log.find(|line| line.ends_with(" running").then_some(())).await.is_some())
            });
            if running.await? {
                return Ok(Self { endpoint, process, _folder: folder });
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
        self.endpoint.address
    }

    /// The way to it.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Its process id, unless it has ended.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }
}
