//! KEDA's external scaler: how many messages wait in a queue, or for a consumer group of a stream, so that KEDA gives the
//! workload that consumes them as many replicas as it needs. Decides nothing about the pods of a
//! Broker. Owns the watches by which it finds them.

mod trigger;
mod waiting;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::Stream;
use futures_util::stream::unfold;
use http::Uri;
use kube::Client;
use kube::runtime::watcher;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use weir_env::clock::Clock;
use weir_env::seed::{HashMap, Seed};
use weir_proto::externalscaler::external_scaler_server::{ExternalScaler, ExternalScalerServer};
use weir_proto::externalscaler::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
};

use crate::brokers::{self, BrokerId, Pods};
use crate::controllers::Scope;
use crate::tasks::Tasks;
use crate::telemetry::{self, LogFormat};

use trigger::Trigger;
use waiting::{Brokers, Directory, Fixed, Waiting, header};

/// How often a Broker is asked for those who want to be told.
const LOOK: Duration = Duration::from_secs(5);
/// ScaledObjects that can wait to be told at once.
const STREAMS_MAX: usize = 1000;
/// Largest request.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Requests of one connection that are worked on at once.
const REQUESTS_MAX: usize = 64;
/// Time that what is under way has to end.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// Tells KEDA how much there is to consume.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address of the gRPC service; port 0 takes a free one, which the log says.
    #[arg(
        long,
        env = "WEIR_OPERATOR_EXTERNAL_SCALER",
        default_value = "0.0.0.0:9090",
        value_name = "ADDRESS"
    )]
    listen: SocketAddr,
    /// A Broker and the address of its admin API, as `messaging/main=http://127.0.0.1:8081`. May be repeated. Default: the
    /// Brokers of the Kubernetes cluster, by their pods.
    #[arg(long, env = "WEIR_OPERATOR_BROKER_ADDRESS", value_delimiter = ',',
          value_parser = crate::run::broker_address, value_name = "NAMESPACE/NAME=URL")]
    broker_address: Vec<(BrokerId, Uri)>,
    /// Namespaces whose Brokers are asked, separated by commas. Empty: all.
    #[arg(long, env = "WEIR_OPERATOR_WATCH_NAMESPACES", value_delimiter = ',', value_name = "NAMESPACE")]
    watch_namespaces: Vec<String>,
    /// File with the token that the Brokers of `--broker-address` want.
    #[arg(long, requires = "broker_address", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How log lines look.
    #[arg(long, env = "WEIR_OPERATOR_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Which log lines there are, such as `info,weir_operator=debug`.
    #[arg(long, env = "WEIR_OPERATOR_LOG_FILTER", default_value = "info")]
    log_filter: String,
}

/// Runs the command until SIGTERM or SIGINT.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let guard = telemetry::init(args.log_format, &args.log_filter)?;
    let ended = process(args).await;
    guard.shutdown().await;
    ended
}

async fn process(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    Seed::from_entropy().install_for_hashing();
    let tasks = Tasks::default();
    let clock = Clock::system();
    let brokers = if args.broker_address.is_empty() {
        let client = Client::try_default().await.context("find the Kubernetes cluster")?;
        watched(&client, &crate::run::scopes(&args.watch_namespaces), HashMap::default(), clock, &tasks)
    } else {
        let fixed = fixed(&args)?;
        Brokers::new(fixed.directory(), HashMap::default(), Arc::new(fixed), clock)
    };
    let listener = TcpListener::bind(args.listen).await;
    let listener = listener.with_context(|| format!("listen at {}", args.listen))?;
    tracing::info!(address = %listener.local_addr()?, "listens for KEDA");
    let cancel = CancellationToken::new();
    let served = serve(listener, brokers, LOOK, cancel.clone());
    let mut served = std::pin::pin!(served);
    tokio::select! {
        ended = &mut served => return ended.context("serve KEDA"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = tasks.failed() => bail!("a task has panicked"),
    }
    tasks.end().await;
    cancel.cancel();
    // A client that does not read is not waited for.
    tokio::time::timeout(SHUTDOWN, served).await.unwrap_or(Ok(())).context("serve KEDA")
}

/// Answers for the Brokers of the cluster that `client` belongs to, in the `scopes`, until cancelled. Those that have one
/// are reached at their address.
pub(crate) async fn beside(
    address: SocketAddr,
    client: Client,
    scopes: Vec<Scope>,
    addresses: HashMap<BrokerId, Uri>,
    clock: Clock,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen at {address}"))?;
    tracing::info!(address = %listener.local_addr()?, "listens for KEDA");
    let tasks = Tasks::default();
    let brokers = watched(&client, &scopes, addresses, clock, &tasks);
    let served = tokio::select! {
        served = serve(listener, brokers, LOOK, cancel) => served.context("serve KEDA"),
        () = tasks.failed() => bail!("a task has panicked"),
    };
    tasks.end().await;
    served
}

/// The Brokers of the cluster that `client` belongs to, for as long as `tasks` run.
fn watched(
    client: &Client,
    scopes: &[Scope],
    addresses: HashMap<BrokerId, Uri>,
    clock: Clock,
    tasks: &Tasks,
) -> Brokers {
    let brokers = brokers::watched(client, scopes, &watcher::Config::default(), tasks);
    let pods = Pods::follow(client, scopes, clock, tasks);
    Brokers::new(Directory::Cluster(brokers), addresses, pods, clock)
}

fn fixed(args: &Args) -> anyhow::Result<Fixed> {
    let addresses = args.broker_address.iter().cloned().collect();
    let token = args.token_file.as_ref().map(|path| {
        let token = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        header(&token).with_context(|| format!("{} holds no token", path.display()))
    });
    Ok(Fixed { addresses, token: token.transpose()? })
}

/// Answers until cancelled; asks Brokers every `look` for those who want to be told.
async fn serve(
    listener: TcpListener,
    brokers: Brokers,
    look: Duration,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let scaler = Scaler {
        brokers: Arc::new(brokers),
        streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        look,
        cancel: cancel.clone(),
    };
    Server::builder()
        .concurrency_limit_per_connection(REQUESTS_MAX)
        .max_concurrent_streams(u32::try_from(STREAMS_MAX).ok())
        .add_service(ExternalScalerServer::new(scaler).max_decoding_message_size(REQUEST_BYTES_MAX))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener), cancel.cancelled_owned())
        .await
}

struct Scaler {
    brokers: Arc<Brokers>,
    /// A permit for each stream.
    streams: Arc<Semaphore>,
    look: Duration,
    cancel: CancellationToken,
}

/// Whether there is to be a replica. A group that nobody has joined yet has one: its first member makes it.
fn is_active(trigger: &Trigger, waiting: Waiting) -> bool {
    waiting.is_new || waiting.messages > trigger.activation
}

#[tonic::async_trait]
impl ExternalScaler for Scaler {
    async fn is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<IsActiveResponse>, Status> {
        let trigger = Trigger::parse(request.get_ref())?;
        let waiting = self.brokers.waiting(&trigger).await?;
        Ok(Response::new(IsActiveResponse { result: is_active(&trigger, waiting) }))
    }

    type StreamIsActiveStream = Pin<Box<dyn Stream<Item = Result<IsActiveResponse, Status>> + Send>>;

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let trigger = Trigger::parse(request.get_ref())?;
        let Ok(permit) = self.streams.clone().try_acquire_owned() else {
            let message = format!("{STREAMS_MAX} ScaledObjects are told already: use the type `external`");
            return Err(Status::resource_exhausted(message));
        };
        let mut interval = tokio::time::interval(self.look);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watch = Watch { trigger, brokers: self.brokers.clone(), interval, told: None, _permit: permit };
        let cancel = self.cancel.clone();
        let told = unfold((watch, cancel), async |(mut watch, cancel)| {
            let told = cancel.run_until_cancelled(watch.changed()).await?;
            Some((Ok(IsActiveResponse { result: told }), (watch, cancel)))
        });
        Ok(Response::new(Box::pin(told)))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let trigger = Trigger::parse(request.get_ref())?;
        let spec = MetricSpec {
            metric_name: trigger.metric(),
            target_size: i64::try_from(trigger.target).unwrap_or(i64::MAX),
            target_size_float: float(trigger.target),
        };
        Ok(Response::new(GetMetricSpecResponse { metric_specs: vec![spec] }))
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let GetMetricsRequest { scaled_object_ref, metric_name } = request.into_inner();
        let Some(object) = scaled_object_ref else {
            return Err(Status::invalid_argument("scaledObjectRef is missing"));
        };
        let trigger = Trigger::parse(&object)?;
        let waiting = self.brokers.waiting(&trigger).await?;
        let messages = if waiting.is_new { 1 } else { waiting.messages };
        let value = MetricValue {
            // As it was asked for: KEDA may have put something before.
            metric_name: if metric_name.is_empty() { trigger.metric() } else { metric_name },
            metric_value: i64::try_from(messages).unwrap_or(i64::MAX),
            metric_value_float: float(messages),
        };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }
}

/// Exact up to 2^53, and near enough above.
#[expect(clippy::cast_precision_loss, reason = "so many messages need no exact count")]
fn float(count: u64) -> f64 {
    count as f64
}

/// Somebody who wants to be told.
struct Watch {
    trigger: Trigger,
    brokers: Arc<Brokers>,
    interval: Interval,
    told: Option<bool>,
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    /// Waits until the workload is active where it was not, or the other way round; the first time for what it is. While the
    /// Broker does not answer nothing is said, so that the workload stays as it is.
    async fn changed(&mut self) -> bool {
        loop {
            self.interval.tick().await;
            match self.brokers.waiting(&self.trigger).await {
                Ok(waiting) => {
                    let active = is_active(&self.trigger, waiting);
                    if self.told.replace(active) != Some(active) {
                        return active;
                    }
                }
                Err(status) => tracing::warn!(code = ?status.code(), "{}", status.message()),
            }
        }
    }
}

#[cfg(test)]
mod tests;
