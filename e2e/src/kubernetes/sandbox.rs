//! A machine inside the machine: a test runs again in namespaces of its own.
//!
//! There it has a network, process ids, mounts and `/run` that nobody else sees. Ports may be fixed, addresses
//! of pods and Services are local, and when the test ends, however it ends, the kernel ends all that it started.
//! This module knows nothing of Kubernetes but the programs that must be there.

use std::future::Future;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};
use tokio::runtime::Runtime;

use crate::tools::{self, Cached, ChartTools, ControlPlane};
use crate::weir;

/// Says to a test that it is inside; its value is the test's name.
const INSIDE: &str = "WEIR_E2E_SANDBOX";
/// Which of the two binaries that are under test; told by the environment, since nothing can be built inside.
const WEIR: &str = "WEIR_BIN";
const OPERATOR: &str = "WEIR_OPERATOR_BIN";
/// What starting one takes.
const START: &str = "start `setpriv` and `unshare`, programs of util-linux";
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
    let (control_plane, charts) = match found()? {
        Ok(programs) => programs,
        Err(what) => return say(&format!("{test}: NOT RUN on Kubernetes: {what}")),
    };
    let runtime = runtime()?;
    if is_inside(test) {
        let scenario = Box::pin(scenario(programs(control_plane, charts)?));
        return runtime
            .block_on(async { tokio::time::timeout(limit, scenario).await })
            .with_context(|| format!("{test} took longer than {} s", limit.as_secs()))?;
    }
    say(&format!("{test}: on Kubernetes, {}", control_plane.api_server.display()))?;
    let mut inside = again(test, &runtime, &["--exact", test, "--nocapture", "--test-threads", "1"])?;
    let status = inside.stdin(Stdio::null()).status().context(START)?;
    ensure!(status.success(), "{test} ended with {status} inside its sandbox");
    Ok(())
}

/// Runs `scenario` inside for as long as it takes, with the caller's terminal. The program that calls this is started
/// again with `arguments`, with which it must come here again with the same `name`.
pub fn stay<F>(name: &str, arguments: &[&str], scenario: impl FnOnce(Programs) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let (control_plane, charts) = found()?.map_err(Error::msg)?;
    let runtime = runtime()?;
    if is_inside(name) {
        return runtime.block_on(Box::pin(scenario(programs(control_plane, charts)?)));
    }
    let status = again(name, &runtime, arguments)?.status().context(START)?;
    ensure!(status.success(), "{name} ended with {status} inside its sandbox");
    Ok(())
}

/// What a cluster is made of, or why there can be none.
fn found() -> Result<Result<(ControlPlane, ChartTools), String>> {
    Ok(match (tools::control_plane()?, tools::chart_tools()?) {
        (Cached::Missing(what), _) | (_, Cached::Missing(what)) => Err(what),
        _ if !rustix::process::getuid().is_root() => Err("namespaces and mounts need root".to_owned()),
        (Cached::Built(control_plane), Cached::Built(charts)) => Ok((control_plane, charts)),
    })
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

fn is_inside(name: &str) -> bool {
    std::env::var(INSIDE).is_ok_and(|inside| inside == name)
}

fn programs(control_plane: ControlPlane, charts: ChartTools) -> Result<Programs> {
    let binary = |name| std::env::var_os(name).map(PathBuf::from).context(name);
    Ok(Programs { control_plane, charts, weir: binary(WEIR)?, operator: binary(OPERATOR)? })
}

/// This program once more with `arguments`, inside. It ends with the thread that starts it.
fn again(name: &str, runtime: &Runtime, arguments: &[&str]) -> Result<Command> {
    let weir = runtime.block_on(weir::binary())?.to_owned();
    let operator =
        std::env::var_os(OPERATOR).map_or_else(|| weir.with_file_name("weir-operator"), PathBuf::from);
    let mut inside = Command::new("setpriv");
    inside
        .args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "sh", "-c", ENTER])
        .arg(std::env::current_exe()?)
        .args(arguments)
        .env(INSIDE, name)
        .env(WEIR, weir)
        .env(OPERATOR, operator)
        // An error's message says where it comes from; a panic's place is told as the caller wants it.
        .env("RUST_LIB_BACKTRACE", "0");
    Ok(inside)
}

/// To the standard error itself: what the test prints would be shown only if it failed.
fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stderr(), "{line}")?)
}
