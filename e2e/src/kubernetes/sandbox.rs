//! A machine inside the machine: a test runs again in namespaces of its own.
//!
//! There it has a network, process ids, mounts and `/run` that nobody else sees. Ports may be fixed, addresses
//! of pods and Services are local, and when the test ends, however it ends, the kernel ends all that it started.
//! This module knows nothing of Kubernetes but the programs that must be there.

use std::future::Future;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::tools::{self, Cached, ChartTools, ControlPlane};
use crate::weir;

/// Says to a test that it is inside; its value is the test's name.
const INSIDE: &str = "WEIR_E2E_SANDBOX";
/// Which of the two binaries that are under test; told by the environment, since nothing can be built inside.
const WEIR: &str = "WEIR_BIN";
const OPERATOR: &str = "WEIR_OPERATOR_BIN";
/// What is done before the test starts, as the first process inside.
const ENTER: &str = "ip link set lo up && mount -t tmpfs tmpfs /run && exec \"$0\" \"$@\"";

/// The programs that a cluster is made of.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Kubernetes.
    pub control_plane: ControlPlane,
    /// What installs charts.
    pub charts: ChartTools,
    /// The broker under test.
    pub weir: PathBuf,
    /// The operator under test.
    pub operator: PathBuf,
}

/// Runs `scenario` inside, for at most `limit`. `test` is the full name of the test that calls this: it is started
/// again by that name. Says on the standard error if it is not run, for want of privileges or of the programs.
pub fn run<F>(test: &str, limit: Duration, scenario: impl FnOnce(Programs) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let (control_plane, charts) = match (tools::control_plane()?, tools::chart_tools()?) {
        (Cached::Built(control_plane), Cached::Built(charts)) => (control_plane, charts),
        (Cached::Missing(what), _) | (_, Cached::Missing(what)) => {
            return say(&format!("{test}: NOT RUN on Kubernetes: {what}"));
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if std::env::var(INSIDE).is_ok_and(|name| name == test) {
        let binary = |name| std::env::var_os(name).map(PathBuf::from).context(name);
        let programs = Programs { control_plane, charts, weir: binary(WEIR)?, operator: binary(OPERATOR)? };
        let scenario = Box::pin(scenario(programs));
        return runtime
            .block_on(async { tokio::time::timeout(limit, scenario).await })
            .with_context(|| format!("{test} took longer than {} s", limit.as_secs()))?;
    }
    if !rustix::process::getuid().is_root() {
        return say(&format!("{test}: NOT RUN on Kubernetes: namespaces and mounts need root"));
    }
    let weir = runtime.block_on(weir::binary())?.to_owned();
    let operator =
        std::env::var_os(OPERATOR).map_or_else(|| weir.with_file_name("weir-operator"), PathBuf::from);
    say(&format!("{test}: on Kubernetes, {}", control_plane.api_server.display()))?;
    let mut inside = Command::new("unshare");
    inside
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", ENTER])
        .arg(std::env::current_exe()?)
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(INSIDE, test)
        .env(WEIR, weir)
        .env(OPERATOR, operator)
        .stdin(Stdio::null())
        // Whoever stops this test by its process group stops what is inside too.
        .process_group(rustix::process::getpgrp().as_raw_nonzero().get());
    let status =
        inside.env("RUST_BACKTRACE", "0").status().context("start `unshare`, a program of util-linux")?;
    ensure!(status.success(), "{test} ended with {status} inside its sandbox");
    Ok(())
}

/// To the standard error itself: what the test prints would be shown only if it failed.
fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stderr(), "{line}")?)
}
