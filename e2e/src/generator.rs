//! The load generator: `weir bench`, run as a process of its own against any broker.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::process::on_cpus;

/// What a run may take beyond its load: connecting, draining, ending.
const SLACK: Duration = Duration::from_secs(40);

/// How the load generator is run.
#[derive(Clone, Debug)]
pub struct Generator {
    /// Weir's binary.
    pub binary: PathBuf,
    /// The processors that it may use, as `taskset` takes them; all if `None`.
    pub cpus: Option<&'static str>,
    /// Threads that carry the load.
    pub threads: u8,
}

/// A broker to load.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Where it listens for MQTT.
    pub address: SocketAddr,
    /// Its process, to see what it uses.
    pub pid: u32,
    /// The version of MQTT to speak: `5` or `3.1.1`.
    pub protocol: &'static str,
}

impl Generator {
    /// Runs a scenario for `duration`; `arguments` are its name and its options. Returns the report of the run; an
    /// error if a connection failed or a publish was refused.
    pub async fn run(&self, target: Target, arguments: &[String], duration: Duration) -> Result<Value> {
        let mut command = Command::new(&self.binary);
        command.arg("bench").args(arguments);
        command.args(["--duration", &format!("{}ms", duration.as_millis())]);
        command.args(["--threads", &self.threads.to_string(), "--output", "json", "--deadline", "30s"]);
        command.args(["--protocol", target.protocol, "--url", &format!("mqtt://{}", target.address)]);
        command.args(["--broker-pid", &target.pid.to_string()]);
        let mut command = on_cpus(self.cpus, &command);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(duration + SLACK, command.output())
            .await
            .with_context(|| format!("the load generator took {SLACK:?} longer than its load"))??;
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or_default();
        ensure!(
            output.status.success(),
            "bench {} ended with {}: {last}",
            arguments.join(" "),
            output.status
        );
        let report: Value =
            serde_json::from_slice(&output.stdout).context("read the load generator's report")?;
        report.pointer("/runs/0").cloned().context("a run in the report")
    }
}
