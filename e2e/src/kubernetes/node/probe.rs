//! Probes of a container, by the rules of the kubelet.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustix::process::Pid;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::container::User;
use crate::http;

/// What is probed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) container: &'a Container,
    pub(super) address: IpAddr,
    pub(super) pid: Option<Pid>,
    pub(super) user: User,
}

impl Target<'_> {
    /// Probes for as long as the container is well, and tells `ready` of each change. Returns why it must be
    /// ended. Cancel safe.
    pub(super) async fn watch(self, mut ready: impl FnMut(bool)) -> String {
        if let Some(probe) = &self.container.startup_probe {
            let mut failures = 0;
            pause(probe.initial_delay_seconds, 0).await;
            while let Err(error) = self.ask(probe).await {
                failures += 1;
                if failures >= probe.failure_threshold.unwrap_or(3) {
                    return format!("the startup probe failed {failures} times: {error:#}");
                }
                pause(probe.period_seconds, 10).await;
            }
        }
        let readiness = async {
            let Some(probe) = &self.container.readiness_probe else {
                ready(true);
                return std::future::pending().await;
            };
            pause(probe.initial_delay_seconds, 0).await;
            let (mut is_ready, mut in_a_row) = (false, 0);
            loop {
                let well = self.ask(probe).await.is_ok();
                in_a_row = if well == is_ready { 0 } else { in_a_row + 1 };
                let threshold = if well {
                    probe.success_threshold.unwrap_or(1)
                } else {
                    probe.failure_threshold.unwrap_or(3)
                };
                if in_a_row >= threshold {
                    (is_ready, in_a_row) = (well, 0);
                    ready(well);
                }
                pause(probe.period_seconds, 10).await;
            }
        };
        let liveness = async {
            let Some(probe) = &self.container.liveness_probe else {
                return std::future::pending().await;
            };
            pause(probe.initial_delay_seconds, 0).await;
            let mut failures = 0;
            loop {
                match self.ask(probe).await {
                    Ok(()) => failures = 0,
                    Err(error) => {
                        failures += 1;
                        if failures >= probe.failure_threshold.unwrap_or(3) {
                            return format!("the liveness probe failed {failures} times: {error:#}");
                        }
                    }
                }
                pause(probe.period_seconds, 10).await;
            }
        };
        tokio::select! {
            never = readiness => never,
            why = liveness => why,
        }
    }

    async fn ask(self, probe: &Probe) -> Result<()> {
        let limit = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1).unsigned_abs().into());
        timeout(limit, self.ask_once(probe)).await.context("no answer in time")?
    }

    async fn ask_once(self, probe: &Probe) -> Result<()> {
        if let Some(get) = &probe.http_get {
            let path = get.path.as_deref().unwrap_or("/");
            let (status, body) = http::get(self.socket(&get.port)?, path).await?;
            ensure!((200..400).contains(&status), "{path} answered {status}: {body}");
            return Ok(());
        }
        if let Some(socket) = &probe.tcp_socket {
            return Ok(TcpStream::connect(self.socket(&socket.port)?).await.map(drop)?);
        }
        let command = probe.exec.as_ref().and_then(|exec| exec.command.as_deref());
        self.exec(command.context("its kind is not played")?).await
    }

    /// Runs `command` inside the container.
    pub(super) async fn exec(self, command: &[String]) -> Result<()> {
        let pid = self.pid.context("a running container")?.as_raw_nonzero();
        let uid = self.user.uid.to_string();
        let mut inside = Command::new("nsenter");
        inside.args([
            "--target",
            &pid.to_string(),
            "--mount",
            "--net",
            "--root",
            "--wd",
            "--setuid",
            &uid,
            "--",
        ]);
        let output = inside.args(command).kill_on_drop(true).output().await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// `GET` of a hook, which nobody reads the answer of.
    pub(super) async fn get(self, port: &IntOrString, path: &str) -> Result<()> {
        http::get(self.socket(port)?, path).await.map(drop)
    }

    fn socket(self, port: &IntOrString) -> Result<SocketAddr> {
        let number = match port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => {
                let mut ports = self.container.ports.iter().flatten();
                match ports.find(|port| port.name.as_deref() == Some(name)) {
                    Some(port) => port.container_port,
                    None => bail!("the container has no port `{name}`"),
                }
            }
        };
        Ok(SocketAddr::new(self.address, u16::try_from(number)?))
    }
}

async fn pause(seconds: Option<i32>, default: i32) {
    sleep(Duration::from_secs(seconds.unwrap_or(default).max(0).unsigned_abs().into())).await;
}
