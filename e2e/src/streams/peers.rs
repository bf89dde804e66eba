//! What is compared: brokers with streams, on one log each.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};

use crate::load::Protocol;
use crate::load::wire::QUEUE;
use crate::nats::Nats;
use crate::rabbitmq::RabbitMq;
use crate::tools;
use crate::weir::{Setup, Weir, version};

/// One of those that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contestant {
    /// The one from here.
    Weir,
    /// RabbitMQ's streams in their own protocol.
    Rabbitmq,
    /// JetStream.
    Nats,
}

/// A broker that runs; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) contestant: Contestant,
    pub(super) address: SocketAddr,
    process: Held,
}

#[derive(Debug)]
enum Held {
    Weir(Box<(Weir, Setup)>),
    Rabbitmq(Box<RabbitMq>),
    Nats(Box<Nats>),
}

impl Contestant {
    /// All of them; the order of turns and of columns.
    pub const ALL: [Self; 3] = [Self::Weir, Self::Rabbitmq, Self::Nats];

    /// What it is spoken to in.
    pub(super) const fn protocol(self) -> Protocol {
        match self {
            Self::Weir => Protocol::MqttStream,
            Self::Rabbitmq => Protocol::RabbitmqStream,
            Self::Nats => Protocol::NatsStream,
        }
    }

    /// What runs, with its version.
    pub(super) async fn version(self, weir: &Path) -> Result<String> {
        Ok(match self {
            Self::Weir => version(weir).await?,
            Self::Rabbitmq => format!("RabbitMQ {}", tools::rabbitmq().await?.version),
            Self::Nats => format!("NATS server {}", tools::nats().await?.version),
        })
    }

    /// Starts it on the processors `cpus`, or on all; `weir` is Weir's binary. If it is to be `synced` and can be, what
    /// it confirms is on the disk.
    pub(super) async fn start(
        self,
        weir: &Path,
        cpus: Option<&'static str>,
        synced: bool,
    ) -> Result<Running> {
        let (address, process) = match self {
            Self::Weir => {
                let manifest = format!(
                    "apiVersion: weir.dev/v1alpha1\nkind: Stream\nmetadata:\n  name: {QUEUE}\nspec:\n  \
                     topicFilter: {QUEUE}/+/data\n  shards: 1\n"
                );
                let setup = Setup::embedded()?.with_binary(weir).on_cpus(cpus);
                let setup = setup.with_manifest("stream.yaml", &manifest)?;
                let weir = setup.start().await?;
                (weir.mqtt(), Held::Weir(Box::new((weir, setup))))
            }
            Self::Rabbitmq => {
                let rabbitmq = RabbitMq::start("", &["rabbitmq_stream"], cpus).await?;
                (rabbitmq.stream(), Held::Rabbitmq(Box::new(rabbitmq)))
            }
            Self::Nats => {
                let nats = if synced { Nats::start_synced(cpus).await? } else { Nats::start(cpus).await? };
                (nats.clients(), Held::Nats(Box::new(nats)))
            }
        };
        Ok(Running { contestant: self, address, process })
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weir => "Weir",
            Self::Rabbitmq => "RabbitMQ streams",
            Self::Nats => "NATS JetStream",
        })
    }
}

impl Running {
    /// Its process; an error if it has ended.
    pub(super) fn pid(&self) -> Result<u32> {
        let pid = match &self.process {
            Held::Weir(weir) => weir.0.pid(),
            Held::Rabbitmq(rabbitmq) => rabbitmq.pid(),
            Held::Nats(nats) => nats.pid(),
        };
        pid.with_context(|| format!("{} has ended", self.contestant))
    }

    /// Fails if it has told of a panic.
    pub(super) fn check(&self) -> Result<()> {
        match &self.process {
            Held::Weir(weir) => weir.0.no_panic(),
            Held::Rabbitmq(_) | Held::Nats(_) => Ok(()),
        }
    }
}
