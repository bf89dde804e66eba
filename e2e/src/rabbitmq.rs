//! The RabbitMQ server as a broker with durable queues: a peer that benchmarks run beside.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use anyhow::{Context, Result};

use crate::process::{Process, on_cpus};
use crate::tools::{self, RabbitMq as Tool};
use crate::within;

/// How the server is run apart from where: as its own start script does.
const ERL: &str = "-noinput -s rabbit boot -boot start_sasl +W w +pc unicode +P 1048576 +t 5000000 +stbt db \
                   +zdbbl 128000 +sbwt none +sbwtdcpu none +sbwtdio none -syslog logger [] \
                   -syslog syslog_error_logger false -kernel prevent_overlapping_partitions false \
                   -kernel inet_dist_use_interface {127,0,0,1}";

/// A running RabbitMQ server; it ends when this is dropped.
#[derive(Debug)]
pub struct RabbitMq {
    amqp: SocketAddr,
    mqtt: SocketAddr,
    stream: SocketAddr,
    process: Process,
    _names: Process,
    _folder: tempfile::TempDir,
}

impl RabbitMq {
    /// Starts a server on free loopback ports, on the processors `cpus` or on all; `more` is added to its
    /// configuration, which may only be about the `plugins` that it has. Its files are in a folder of their own.
    pub async fn start(more: &str, plugins: &[&str], cpus: Option<&str>) -> Result<Self> {
        let tool = tools::rabbitmq().await?;
        let folder = tempfile::tempdir()?;
        let programs = folder.path().join("bin");
        std::fs::create_dir(&programs)?;
        tool.write_programs(&programs)?;
        // The server cannot choose ports by itself.
        let [amqp, mqtt, stream, names, peers] = free_addresses()?;
        let mut more = more.to_owned();
        if plugins.contains(&"rabbitmq_mqtt") {
            more.push_str(&format!("mqtt.listeners.tcp.1 = {mqtt}\nmqtt.allow_anonymous = true\n"));
        }
        if plugins.contains(&"rabbitmq_stream") {
            more.push_str(&format!("stream.listeners.tcp.1 = {stream}\n"));
        }
        let config = format!(
            "listeners.tcp.1 = {amqp}\n\
             anonymous_login_user = guest\nanonymous_login_pass = guest\nlog.console = true\n\
             log.console.level = info\ndistribution.listener.interface = 127.0.0.1\n\
             distribution.listener.port_range.min = {peers}\ndistribution.listener.port_range.max = {peers}\n{more}",
            peers = peers.port()
        );
        std::fs::write(folder.path().join("rabbitmq.conf"), config)?;
        std::fs::write(folder.path().join("enabled_plugins"), format!("[{}].\n", plugins.join(",")))?;

        let mut command = tool.program(&programs, "epmd");
        command.args(["-address", "127.0.0.1", "-port", &names.port().to_string()]);
        let names_process = Process::spawn("epmd", command)?;
        let command = server(tool, folder.path(), &programs, names);
        let process = Process::spawn("rabbitmq", on_cpus(cpus, &command))?;
        let log = process.log();
        let started = within("RabbitMQ to start", async {
            let started =
                log.find(|line| line.contains("Server startup complete").then_some(())).await.is_some();
            started.then_some(()).with_context(|| format!("RabbitMQ did not start:\n{}", log.tail()))
        });
        started.await?;
        Ok(Self { amqp, mqtt, stream, process, _names: names_process, _folder: folder })
    }

    /// Where it listens for AMQP.
    #[must_use]
    pub fn amqp(&self) -> SocketAddr {
        self.amqp
    }

    /// Where it listens for MQTT.
    #[must_use]
    pub fn mqtt(&self) -> SocketAddr {
        self.mqtt
    }

    /// Where it listens for the protocol of its streams, if it has that plugin.
    #[must_use]
    pub fn stream(&self) -> SocketAddr {
        self.stream
    }

    /// Its process id, unless it has ended.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }
}

fn server(tool: &Tool, folder: &Path, programs: &Path, names: SocketAddr) -> tokio::process::Command {
    let mut command = tool.program(programs, "erl");
    command.args(ERL.split_whitespace()).current_dir(folder);
    command.env("HOME", folder).env("SYS_PREFIX", "").env("RABBITMQ_HOME", tool.home());
    command.env("ERL_EPMD_ADDRESS", "127.0.0.1").env("ERL_EPMD_PORT", names.port().to_string());
    command.env("RABBITMQ_NODENAME", "peer@localhost").env("RABBITMQ_LOGS", "-");
    command.env("RABBITMQ_PLUGINS_DIR", tool.plugins());
    for (name, file) in [
        ("BASE", ""),
        ("MNESIA_BASE", "data"),
        ("QUORUM_DIR", "quorum"),
        ("FEATURE_FLAGS_FILE", "feature_flags"),
        ("GENERATED_CONFIG_DIR", "config"),
        ("LOG_BASE", "log"),
        ("CONFIG_FILE", "rabbitmq.conf"),
        ("CONF_ENV_FILE", "none"),
        ("ENABLED_PLUGINS_FILE", "enabled_plugins"),
    ] {
        command.env(format!("RABBITMQ_{name}"), folder.join(file));
    }
    command
}

/// Different addresses, all free a moment ago.
fn free_addresses() -> Result<[SocketAddr; 5]> {
    let mut listeners = Vec::new();
    for _ in 0..5 {
        listeners.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
    }
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
    addresses.try_into().ok().context("five addresses")
}
