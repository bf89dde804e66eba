//! `weir-kubernetes`: builds a Kubernetes control plane, and runs the end-to-end tests on it.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use tokio::process::Command;
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
    /// Builds what is missing, and runs the tests
    Test {
        /// Also what takes long
        #[arg(long)]
        long: bool,
        /// Only tests whose names contain this
        filter: Option<OsString>,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().command {
        Do::Build => build().await,
        Do::Test { long, filter } => {
            build().await?;
            test(long, filter).await
        }
    }
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

async fn test(long: bool, filter: Option<OsString>) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--package", "weir-e2e", "--test", "kubernetes", "--manifest-path"]);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"));
    command.args(filter).args(["--", "--test-threads", "1", "--nocapture"]);
    if long {
        command.env("WEIR_E2E_LONG", "1");
    }
    let status = command.status().await?;
    ensure!(status.success(), "the tests ended with {status}");
    Ok(())
}
