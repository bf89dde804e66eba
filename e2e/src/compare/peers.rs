//! The brokers that are compared, each started with settings under which it neither drops messages without need nor
//! writes them to disk.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};

use crate::generator::Target;
use crate::mosquitto::Mosquitto;
use crate::nats::Nats;
use crate::tools;
use crate::weir::{Setup, Weir, version};

/// A broker to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// The one from here.
    Weir,
    /// Eclipse mosquitto 2.1 or later.
    Mosquitto,
    /// The NATS server.
    Nats,
}

/// A broker that runs; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) peer: Peer,
    address: SocketAddr,
    process: Held,
}

#[derive(Debug)]
enum Held {
    Weir(Box<(Weir, Setup)>),
    Mosquitto(Mosquitto),
    Nats(Nats),
}

/// What mosquitto is told besides where to listen: nothing is written to disk, nothing is dropped because a queue is
/// short, small packets go out at once, and clients are not logged.
const MOSQUITTO: &str = "\
persistence false
max_inflight_messages 0
max_queued_messages 0
max_queued_bytes 0
set_tcp_nodelay true
sys_interval 0
connection_messages false
";

impl Peer {
    /// All of them; the order of turns and of columns.
    pub const ALL: [Self; 3] = [Self::Weir, Self::Mosquitto, Self::Nats];

    /// The newest version of MQTT that it speaks.
    const fn protocol(self) -> &'static str {
        match self {
            Self::Weir | Self::Mosquitto => "5",
            Self::Nats => "3.1.1",
        }
    }

    /// What runs, with its version.
    pub(crate) async fn version(self, weir: &Path) -> Result<String> {
        Ok(match self {
            Self::Weir => version(weir).await?,
            Self::Mosquitto => format!("mosquitto {}", tools::mosquitto_current().await?.version),
            Self::Nats => format!("NATS server {}", tools::nats().await?.version),
        })
    }

    /// Starts it on the processors `cpus`, or on all; `weir` is Weir's binary.
    pub(crate) async fn start(self, weir: &Path, cpus: Option<&'static str>) -> Result<Running> {
        let (address, process) = match self {
            Self::Weir => {
                let setup = Setup::embedded()?.with_binary(weir).on_cpus(cpus);
                let weir = setup.start().await?;
                (weir.mqtt(), Held::Weir(Box::new((weir, setup))))
            }
            Self::Mosquitto => {
                let tool = &tools::mosquitto_current().await?.broker;
                let mosquitto = Mosquitto::start_with(tool, MOSQUITTO, cpus).await?;
                (mosquitto.mqtt(), Held::Mosquitto(mosquitto))
            }
            Self::Nats => {
                let nats = Nats::start(cpus).await?;
                (nats.mqtt(), Held::Nats(nats))
            }
        };
        Ok(Running { peer: self, address, process })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weir => "Weir",
            Self::Mosquitto => "mosquitto",
            Self::Nats => "NATS",
        })
    }
}

impl Running {
    /// The broker as the load generator knows it; an error if it has ended.
    pub(crate) fn target(&self) -> Result<Target> {
        let pid = match &self.process {
            Held::Weir(weir) => weir.0.pid(),
            Held::Mosquitto(mosquitto) => mosquitto.pid(),
            Held::Nats(nats) => nats.pid(),
        };
        let pid = pid.with_context(|| format!("{} has ended", self.peer))?;
        Ok(Target { address: self.address, pid, protocol: self.peer.protocol() })
    }

    /// Fails if it has told of a panic.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.process {
            Held::Weir(weir) => weir.0.no_panic(),
            Held::Mosquitto(_) | Held::Nats(_) => Ok(()),
        }
    }
}
