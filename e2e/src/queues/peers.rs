//! What is compared: brokers with durable queues, each told to sync before it confirms a publish.

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

/// Consumers of a queue, where a broker lets several share one.
const CONSUMERS: u32 = 4;
/// What RabbitMQ is told for MQTT: subscriptions that last are quorum queues, and a window that is not in the way.
const RABBITMQ: &str = "mqtt.durable_queue_type = quorum\nmqtt.prefetch = 256\n";

/// One of those that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contestant {
    /// The one from here.
    Weir,
    /// RabbitMQ's quorum queues over AMQP 0-9-1.
    RabbitmqAmqp,
    /// The same over MQTT.
    RabbitmqMqtt,
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
    pub const ALL: [Self; 4] = [Self::Weir, Self::RabbitmqAmqp, Self::RabbitmqMqtt, Self::Nats];

    /// What it is spoken to in.
    pub(super) const fn protocol(self) -> Protocol {
        match self {
            Self::Weir => Protocol::MqttQueue,
            Self::RabbitmqAmqp => Protocol::Amqp,
            Self::RabbitmqMqtt => Protocol::MqttSession,
            Self::Nats => Protocol::Nats,
        }
    }

    /// Consumers of the queue.
    pub(super) const fn consumers(self) -> u32 {
        match self {
            // A subscription over MQTT has a queue of its own there.
            Self::RabbitmqMqtt => 1,
            Self::Weir | Self::RabbitmqAmqp | Self::Nats => CONSUMERS,
        }
    }

    /// What runs, with its version.
    pub(super) async fn version(self, weir: &Path) -> Result<String> {
        Ok(match self {
            Self::Weir => version(weir).await?,
            Self::RabbitmqAmqp | Self::RabbitmqMqtt => {
                format!("RabbitMQ {}", tools::rabbitmq().await?.version)
            }
            Self::Nats => format!("NATS server {}", tools::nats().await?.version),
        })
    }

    /// Starts it on the processors `cpus`, or on all; `weir` is Weir's binary.
    pub(super) async fn start(self, weir: &Path, cpus: Option<&'static str>) -> Result<Running> {
        let (address, process) = match self {
            Self::Weir => {
                let setup = weir_setup(weir, cpus)?;
                let weir = setup.start().await?;
                (weir.mqtt(), Held::Weir(Box::new((weir, setup))))
            }
            Self::RabbitmqAmqp | Self::RabbitmqMqtt => {
                let rabbitmq = RabbitMq::start(RABBITMQ, &["rabbitmq_mqtt"], cpus).await?;
                let amqp = self == Self::RabbitmqAmqp;
                (if amqp { rabbitmq.amqp() } else { rabbitmq.mqtt() }, Held::Rabbitmq(Box::new(rabbitmq)))
            }
            Self::Nats => {
                let nats = Nats::start_synced(cpus).await?;
                (nats.clients(), Held::Nats(Box::new(nats)))
            }
        };
        Ok(Running { contestant: self, address, process })
    }
}

/// Weir with one queue of one shard, as the queues of the others are one log each.
pub(super) fn weir_setup(weir: &Path, cpus: Option<&str>) -> Result<Setup> {
    let manifest = format!(
        "apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata:\n  name: {QUEUE}\nspec:\n  \
         topicFilter: {QUEUE}/+/data\n  shards: 1\n"
    );
    Setup::embedded()?.with_binary(weir).on_cpus(cpus).with_manifest("queue.yaml", &manifest)
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weir => "Weir",
            Self::RabbitmqAmqp => "RabbitMQ, AMQP",
            Self::RabbitmqMqtt => "RabbitMQ, MQTT",
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
