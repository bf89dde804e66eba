//! `weir-kubernetes`: builds a Kubernetes control plane, and runs the end-to-end tests on it.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use tokio::process::Command;
use weir_e2e::kubernetes::{Cluster, Programs, sandbox};
use weir_e2e::tools;

/// Tests Weir on the real components of Kubernetes, on this machine alone
#[derive(Debug, Parser)]
#[command(name = "weir-kubernetes")]
struct Arguments {
    #[command(subcommand)]
    command: Do,
}

#[derive(Debug, Subcommand)]
enum Do {
    /// Builds etcd, the Kubernetes control plane, kubectl, helm and kubeconform into the user's cache folder, unless
    /// they are there; needs Go
    Build,
    /// Starts a cluster with the definitions of this checkout, and a shell in its network; the cluster ends with the shell
    Up,
    /// Builds what is missing, and runs the tests
    Test {
        /// Only tests whose names contain this
        filter: Option<OsString>,
    },
}

fn main() -> Result<()> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    match Arguments::parse().command {
        Do::Build => runtime()?.block_on(build()),
        Do::Up => sandbox::stay("weir-kubernetes", &["up"], up),
        Do::Test { filter } => runtime()?.block_on(async {
            build().await?;
            test(filter).await
        }),
    }
}

async fn up(programs: Programs) -> Result<()> {
    let cluster = Cluster::start("up", programs).await?;
    cluster.define().await?;
    let programs = cluster.programs();
    let tools = [&programs.control_plane.kubectl, &programs.charts.helm, &programs.weir, &programs.operator];
    let folders = tools.into_iter().filter_map(|tool| tool.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(folders.chain(std::env::split_paths(&path)))?;
    let shell = std::env::var_os("SHELL").unwrap_or_else(|| "sh".into());
    let mut shell = Command::new(shell);
    // How it ends is its user's business.
    shell.env("PATH", path).env("KUBECONFIG", cluster.kubectl().kubeconfig()).status().await?;
    Ok(())
}

async fn build() -> Result<()> {
    let control_plane = tools::build_control_plane().await?;
    let charts = tools::build_chart_tools().await?;
    let mut out = std::io::stdout();
    for program in [&control_plane.api_server, &control_plane.kubectl, &charts.helm, &charts.kubeconform] {
        writeln!(out, "{}", program.display())?;
    }
    Ok(())
}

async fn test(filter: Option<OsString>) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--package", "weir-e2e", "--test", "kubernetes", "--manifest-path"]);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"));
    command.args(filter).args(["--", "--test-threads", "1", "--nocapture"]);
    // Also what takes long.
    let status = command.env("WEIR_E2E_LONG", "1").status().await?;
    ensure!(status.success(), "the tests ended with {status}");
    Ok(())
}
