//! `weir serve`: reads the configuration, sets up telemetry, runs the broker until it is told to stop.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config, Flags, Sources};
use crate::telemetry;

#[derive(Clone, Debug, Args)]
pub(super) struct ServeArgs {
    /// Configuration file (TOML) [env: WEIR_CONFIG]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

pub(super) async fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let env = |name: &str| std::env::var(name).ok();
    let file =
        args.config.clone().or_else(|| env("WEIR_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from));
    let config = config::load(&Sources { file: file.as_deref(), env: &env, flags: &args.flags })?;
    let telemetry = telemetry::init(&config.log, config.otlp_endpoint.as_deref())?;
    warn_about(&config);
    let shutdown = CancellationToken::new();
    let served = tokio::select! {
        served = crate::server::run(config, shutdown.clone()) => served,
        stopped = stop_on_signals(&shutdown) => stopped,
    };
    telemetry.shutdown().await;
    served
}

fn warn_about(config: &Config) {
    if !config.http.ip().is_loopback() {
        tracing::warn!(addr = %config.http, "metrics are readable from other machines");
    }
    if config.allow_anonymous {
        tracing::warn!("clients may connect without authentication");
    }
}

/// Cancels `shutdown` at the first SIGTERM or SIGINT; returns, with an error, at the second.
pub(super) async fn stop_on_signals(shutdown: &CancellationToken) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    for name in ["first", "second"] {
        tokio::select! {
            _ = terminate.recv() => tracing::info!(signal = "SIGTERM", name, "stopping"),
            _ = interrupt.recv() => tracing::info!(signal = "SIGINT", name, "stopping"),
        }
        shutdown.cancel();
    }
    anyhow::bail!("stopped by a second signal before everything had shut down")
}
