//! `weir store serve`: opens a store and serves it to brokers until it is told to stop.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::StoreArgs;
use crate::cli::serve::stop_on_signals;
use crate::config::AdminAccess;
use crate::store::serve::ServeOptions;
use crate::{store, telemetry};

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct ServeArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Where brokers ask, with --store remote:HOST:PORT
    #[arg(long, env = "WEIR_STORE_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:8083")]
    listen: SocketAddr,
    /// Serves /healthz, /readyz and /metrics
    #[arg(long, env = "WEIR_STORE_HTTP", value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Secret, from 16 bytes, that brokers must send
    #[arg(long, env = "WEIR_STORE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificate chain (PEM) of the server, which then speaks TLS
    #[arg(long, env = "WEIR_STORE_CERTIFICATE_FILE", value_name = "FILE")]
    certificate_file: Option<PathBuf>,
    /// Private key (PEM) of --certificate-file
    #[arg(long, env = "WEIR_STORE_KEY_FILE", value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Authorities (PEM) of which brokers must show a certificate
    #[arg(long, env = "WEIR_STORE_CLIENT_CA_FILE", value_name = "FILE")]
    client_ca_file: Option<PathBuf>,
}

pub(super) async fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let config = args.store.load()?;
    let options = ServeOptions {
        listen: args.listen,
        http: args.http,
        access: AdminAccess {
            token_file: args.token_file.clone(),
            certificate_file: args.certificate_file.clone(),
            key_file: args.key_file.clone(),
            client_ca_file: args.client_ca_file.clone(),
        },
    };
    let telemetry = telemetry::init(&config.log, config.otlp_endpoint.as_deref())?;
    let shutdown = CancellationToken::new();
    // Nobody asks.
    let (started, _) = oneshot::channel();
    let served = tokio::select! {
        served = store::serve::run(&options, &config, shutdown.clone(), started) => served,
        stopped = stop_on_signals(&shutdown) => stopped,
    };
    telemetry.shutdown().await;
    served
}
