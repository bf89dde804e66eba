//! Serving a store to brokers, over gRPC: `weir store serve`. What the calls do is [`weir_storage_remote`]'s business;
//! here are the socket, who may call, probes and metrics, start and stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::SharedStore;
use weir_storage_remote::Served;

use crate::admin::{Access, connections};
use crate::config::{AdminAccess, Config, StoreConfig};
use crate::http::{self, Readiness, ReadyState};
use crate::{disk, process};

/// Connections there may be, one for each broker.
pub const CONNECTIONS_MAX: usize = 256;
/// Calls that one connection may have under way; more wait. Each holds a request of up to 4 MB.
const CALLS_PER_CONNECTION_MAX: usize = 256;
/// How often a silent client is asked whether it is still there, and how long its answer may take.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// What may be on its way to one call, and to all of a connection.
const WINDOWS_BYTES: (u32, u32) = (2 << 20, 16 << 20);
/// Longest wait at the end for clients that do not take what was sent to them.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(2);

/// Where a store is served, and to whom.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// gRPC `weir.store.v1`.
    pub listen: SocketAddr,
    /// `/healthz`, `/readyz` and `/metrics`, if anywhere.
    pub http: Option<SocketAddr>,
    /// Certificates, and a token.
    pub access: AdminAccess,
}

/// A server that has started; free ports have been taken by now.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// gRPC `weir.store.v1`.
    pub listen: SocketAddr,
    /// Probes and metrics.
    pub http: Option<SocketAddr>,
}

impl ServeOptions {
    /// Fails if other machines could do anything with the store.
    ///
    /// # Errors
    /// The message says what is allowed.
    pub fn check(&self) -> anyhow::Result<()> {
        let access = &self.access;
        if access.certificate_file.is_some() != access.key_file.is_some() {
            bail!("--certificate-file and --key-file go together: one of them is missing");
        }
        if access.client_ca_file.is_some() && access.certificate_file.is_none() {
            bail!("--client-ca-file needs --certificate-file and --key-file");
        }
        if !self.listen.ip().is_loopback() && access.token_file.is_none() && access.client_ca_file.is_none() {
            bail!(
                "{} is reachable from other machines, and anyone may change the store: use a loopback address, ask for \
                 certificates (--client-ca-file) or for a token (--token-file)",
                self.listen
            );
        }
        Ok(())
    }
}

/// Serves the store that `config` names until `shutdown`, then closes it.
///
/// # Errors
/// If it cannot start, or stopped because it cannot go on: the message says what to do. Not cancel-safe.
pub async fn run(
    options: &ServeOptions,
    config: &Config,
    shutdown: CancellationToken,
    started: oneshot::Sender<Started>,
) -> anyhow::Result<()> {
    options.check()?;
    match &config.store {
        StoreConfig::Embedded(_) | StoreConfig::Memory => {}
        StoreConfig::Fdb(_) | StoreConfig::Remote(_) => bail!(
            "{}: brokers use this one directly, with the same --store; to be served: embedded:DIR, memory:",
            config.store
        ),
    }
    process::raise_file_limit();
    let clock = Clock::system();
    let store = super::open(config, clock).await?;
    let served = serve(options, config, Arc::clone(&store), shutdown, started).await;
    if tokio::time::timeout(config.limits.shutdown_grace, store.close()).await.is_err() {
        tracing::warn!("the store did not close in time and is cut off");
    }
    served
}

async fn serve(
    options: &ServeOptions,
    config: &Config,
    store: SharedStore,
    shutdown: CancellationToken,
    started: oneshot::Sender<Started>,
) -> anyhow::Result<()> {
    let mut registry = Registry::default();
    process::register(&mut registry);
    let ours = registry.sub_registry_with_prefix("weir");
    disk::register(ours, store.engine_stats());
    let counted = super::metered(Arc::clone(&store), ours);
    let served =
        Served::new(counted, Clock::system(), &Seed::from_entropy()).await.context("use the store")?;
    ours.register_collector(Box::new(Calls(served.clone())));
    let access = Access::read(&options.access, config.auth.reload_interval).context("protect the store")?;
    let listener = bind(options.listen).await?;
    let listen = listener.local_addr()?;
    let readiness = Readiness::default();
    readiness.set(ReadyState::Ready);
    let ended = CancellationToken::new();
    let (http, probes) = match options.http {
        None => (None, None),
        Some(address) => {
            let listener = bind(address).await?;
            let http = listener.local_addr()?;
            tracing::info!(url = %format!("http://{http}"), "listening");
            let (readiness, ended) = (readiness.clone(), ended.child_token());
            (Some(http), Some(http::serve(listener, readiness, Arc::new(registry), ended)))
        }
    };
    tracing::info!(url = %format!("grpc://{listen}"), store = %config.store, "listening");
    // Whoever started it may not want to know.
    let _ = started.send(Started { listen, http });

    let probes = async {
        match probes {
            Some(probes) => probes.await,
            None => ended.cancelled().await,
        }
    };
    let calls = async {
        let outcome = answer(listener, access, &served, &store, &readiness, &shutdown).await;
        served.close().await;
        ended.cancel();
        outcome
    };
    tokio::join!(calls, probes, served.maintain()).0
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}: is another server running?"))
}

/// Answers calls until `shutdown`, or until the store takes no more commits.
async fn answer(
    listener: TcpListener,
    access: Access,
    served: &Served,
    store: &SharedStore,
    readiness: &Readiness,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let followed = access.follow();
    let stop = CancellationToken::new();
    let server = Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX)
        .max_concurrent_streams(u32::try_from(2 * CALLS_PER_CONNECTION_MAX).ok())
        .initial_stream_window_size(WINDOWS_BYTES.0)
        .initial_connection_window_size(WINDOWS_BYTES.1)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(InterceptedService::new(served.calls(), access.guard))
        .serve_with_incoming_shutdown(
            connections::incoming(listener, CONNECTIONS_MAX, access.tls),
            stop.clone().cancelled_owned(),
        );
    let mut failure = None;
    let stopped = async {
        tokio::select! {
            () = shutdown.cancelled() => readiness.set(ReadyState::Draining),
            why = store.failed() => {
                tracing::error!(why = &*why, "the store takes no more commits");
                readiness.set(ReadyState::Failed);
                failure = Some(why);
            }
        }
        stop.cancel();
        served.close().await;
        tokio::time::sleep(SHUTDOWN_WAIT).await;
    };
    tokio::select! {
        served = server => served.context("serve the store")?,
        () = followed => {}
        () = stopped => tracing::debug!("clients of the store are cut off"),
    }
    match failure {
        None => Ok(()),
        Some(why) => bail!("{why}; start the server again; if it happens again, check the disk and the log"),
    }
}

/// What clients ask for, by the names Prometheus sees.
#[derive(Debug)]
struct Calls(Served);

impl Collector for Calls {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let (sessions, watches) = self.0.sessions();
        for (name, help, value) in [
            ("store_server_clients", "Clients that are attached to the store", sessions),
            ("store_server_watches", "Watches that clients have armed", watches),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let stats = self.0.stats();
        for (name, help, value) in [
            ("store_server_reads", "Reads that clients have asked for", &stats.reads),
            ("store_server_commits", "Commits that clients have asked for", &stats.commits),
            ("store_server_settled", "Commits whose answer was lost and asked for again", &stats.settled),
            ("store_server_refused", "Calls refused because of a bound", &stats.refused),
        ] {
            let counter = ConstCounter::new(value.load(Ordering::Relaxed));
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
