//! The command `weir-operator run`: the process around the controllers. Owns their lifetime: they run while this process
//! leads, and the process ends when it leads no more.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http::Uri;
use kube::client::ClientBuilder;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Client, Config};
use parking_lot::RwLock;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::util::MapRequestLayer;
use weir_env::clock::Clock;
use weir_env::seed::{HashMap, Seed};
use weir_operator_api::KubeDuration;

use crate::brokers::{Admin, BrokerId, Links, Pods, Remote};
use crate::context::{Context, MANAGER};
use crate::controllers::Scope;
use crate::leader::{Alone, Election, Leadership};
use crate::metrics::Metrics;
use crate::tasks::Tasks;
use crate::telemetry::LogFormat;
use crate::{broker, controllers, http as web, keda, scaling, telemetry};

/// Time that what is under way has to end.
const SHUTDOWN: Duration = Duration::from_secs(20);

/// Shortest time after which everything is compared.
const RESYNC_MIN: Duration = Duration::from_secs(10);

/// Shortest time between two looks at the load.
const SCALING_MIN: Duration = Duration::from_millis(500);

/// Runs the operator.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Namespaces to watch, separated by commas. Empty: all.
    #[arg(long, env = "WEIR_OPERATOR_WATCH_NAMESPACES", value_delimiter = ',', value_name = "NAMESPACE")]
    watch_namespaces: Vec<String>,
    /// Id of this Kubernetes cluster at the Brokers: a DNS label. A cluster that replaces another and has the same id takes
    /// over what that one declared.
    #[arg(long, env = "WEIR_OPERATOR_CLUSTER_ID", default_value = "default", value_parser = cluster_id)]
    cluster_id: String,
    /// How often everything is compared with what the Brokers have, more or less, but not more often than every 10s, besides following their
    /// changes.
    #[arg(long, env = "WEIR_OPERATOR_RESYNC", default_value = "5m")]
    resync: KubeDuration,
    /// Objects of one kind that are worked on at once, and as many more that are being deleted.
    #[arg(long, env = "WEIR_OPERATOR_CONCURRENCY", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
    /// Work only while holding a Lease, so that several operators can run of which one works.
    #[arg(long, env = "WEIR_OPERATOR_LEADER_ELECTION", default_value_t = true, num_args = 0..=1,
          default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    leader_election: bool,
    /// Name of the Lease.
    #[arg(long, env = "WEIR_OPERATOR_LEASE_NAME", default_value = "weir-operator")]
    lease_name: String,
    /// Namespace of the Lease. Default: `POD_NAMESPACE`, else that of the kubeconfig.
    #[arg(long, env = "WEIR_OPERATOR_LEASE_NAMESPACE")]
    lease_namespace: Option<String>,
    /// Address of /healthz, /readyz and /metrics; port 0 takes a free one, which the log says.
    #[arg(long, env = "WEIR_OPERATOR_HTTP", default_value = "0.0.0.0:8080")]
    http: SocketAddr,
    /// Reach this Broker at a fixed address rather than by its pods, for an operator outside of the cluster:
    /// `messaging/main=http://127.0.0.1:8081`. May be repeated.
    #[arg(long, env = "WEIR_OPERATOR_BROKER_ADDRESS", value_delimiter = ',', value_parser = broker_address,
          value_name = "NAMESPACE/NAME=URL")]
    broker_address: Vec<(BrokerId, Uri)>,
    /// Address of the gRPC service by which KEDA scales consumers. Absent: none.
    #[arg(long, env = "WEIR_OPERATOR_EXTERNAL_SCALER", value_name = "ADDRESS")]
    external_scaler: Option<SocketAddr>,
    /// How often the load of Brokers with `spec.scaling` is looked at, at least every 500ms.
    #[arg(long, env = "WEIR_OPERATOR_SCALING_INTERVAL", default_value = "15s")]
    scaling_interval: KubeDuration,
    /// Image of the pods of Brokers that name none. Default: that of this version.
    #[arg(long, env = "WEIR_OPERATOR_BROKER_IMAGE", value_name = "IMAGE")]
    broker_image: Option<String>,
    /// How log lines look.
    #[arg(long, env = "WEIR_OPERATOR_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Which log lines there are, such as `info,weir_operator=debug`.
    #[arg(long, env = "WEIR_OPERATOR_LOG_FILTER", default_value = "info")]
    log_filter: String,
    /// Name of this process in the Lease.
    #[arg(long, env = "POD_NAME", hide = true)]
    pod_name: Option<String>,
    /// Namespace of this process.
    #[arg(long, env = "POD_NAMESPACE", hide = true)]
    pod_namespace: Option<String>,
}

impl Args {
    fn scopes(&self) -> Vec<Scope> {
        scopes(&self.watch_namespaces)
    }
}

/// The namespaces of these names; of none: all.
pub(crate) fn scopes(names: &[String]) -> Vec<Scope> {
    let named: Vec<Scope> = names.iter().filter(|name| !name.is_empty()).cloned().map(Some).collect();
    if named.is_empty() { vec![None] } else { named }
}

/// Runs the command until SIGTERM, SIGINT or the loss of the lease.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let guard = telemetry::init(args.log_format, &args.log_filter)?;
    let ended = process(args).await;
    if let Err(error) = &ended {
        tracing::error!("{error:#}");
    }
    guard.shutdown().await;
    ended
}

async fn process(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let seed = Seed::from_entropy();
    seed.install_for_hashing();
    let clock = Clock::system();
    tracing::info!(
        cluster_id = args.cluster_id,
        broker_image = args.broker_image,
        external_scaler = args.external_scaler.map(tracing::field::display),
        "starts"
    );
    let metrics = Arc::new(Metrics::new());
    let config = Config::infer().await.context("find the Kubernetes cluster")?;
    let namespace = args
        .lease_namespace
        .clone()
        .or_else(|| args.pod_namespace.clone())
        .unwrap_or_else(|| config.default_namespace.clone());
    let name = args.pod_name.as_deref().unwrap_or(MANAGER);
    let identity = format!("{name}-{:08x}", seed.next_u64() >> 32);
    // A client of its own: renewals must not queue behind other requests.
    let lease_client = client(config.clone(), &metrics)?;
    let election = args.leader_election.then(|| {
        let seed = seed.fork("election");
        Arc::new(Election::new(lease_client, &namespace, &args.lease_name, identity.clone(), clock, seed))
    });

    let web_cancel = CancellationToken::new();
    let web_tasks = TaskTracker::new();
    let listener = web::bind(args.http).await?;
    let served = web::serve(listener, metrics.clone(), web_cancel.clone());
    web_tasks.spawn(async move {
        if let Err(error) = served.await {
            tracing::error!(%error, "http ended");
        }
    });

    if let Some(address) = args.external_scaler {
        // KEDA may ask any replica: what waits is the Brokers' word, not the leader's.
        let client = client(config.clone(), &metrics)?;
        let addresses = args.broker_address.iter().cloned().collect();
        let scaler = keda::beside(address, client, args.scopes(), addresses, clock, web_cancel.clone());
        web_tasks.spawn(async move {
            if let Err(error) = scaler.await {
                tracing::error!("KEDA gets no answers: {error:#}");
            }
        });
    }

    let shutdown = CancellationToken::new();
    let leader = Leader { args: &args, config, metrics, election, identity, clock, seed };
    let leading = leader.run(shutdown.clone());
    let mut leading = std::pin::pin!(leading);
    let ended = tokio::select! {
        ended = &mut leading => ended,
        _ = terminate.recv() => stop(&shutdown, leading).await,
        _ = interrupt.recv() => stop(&shutdown, leading).await,
    };
    web_cancel.cancel();
    web_tasks.close();
    // A scraper that keeps its connection open is not waited for.
    let _ = tokio::time::timeout(Duration::from_secs(1), web_tasks.wait()).await;
    ended
}

async fn stop(
    shutdown: &CancellationToken,
    leading: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    tracing::info!("stops");
    shutdown.cancel();
    leading.await
}

/// What is needed to lead.
struct Leader<'r> {
    args: &'r Args,
    config: Config,
    metrics: Arc<Metrics>,
    election: Option<Arc<Election>>,
    identity: String,
    clock: Clock,
    seed: Seed,
}

impl Leader<'_> {
    /// Stands by, leads, and gives the lead back.
    async fn run(&self, shutdown: CancellationToken) -> anyhow::Result<()> {
        if let Some(election) = &self.election {
            tracing::info!(identity = self.identity, "stands by");
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = election.win() => {}
            }
        }
        self.metrics.leads(true);
        let tasks = Tasks::default();
        self.start(&tasks)?;
        let held = async {
            match &self.election {
                Some(election) => election.hold().await,
                None => std::future::pending().await,
            }
        };
        let mut held = std::pin::pin!(held);
        let lost = tokio::select! {
            () = &mut held => Some("the lease is lost: another operator works on"),
            () = tasks.failed() => Some("a task has panicked"),
            () = shutdown.cancelled() => None,
        };
        if let Some(why) = lost {
            // Nothing new is begun while this process says its last words.
            tasks.cancel().cancel();
            bail!(why);
        }
        tokio::select! {
            () = &mut held => bail!("the lease is lost: another operator works on"),
            ended = tokio::time::timeout(SHUTDOWN, tasks.end()) => {
                if ended.is_err() {
                    tracing::warn!("what is under way does not end in time");
                }
            }
        }
        if let Some(election) = &self.election {
            election.resign().await;
        }
        self.metrics.leads(false);
        Ok(())
    }

    fn start(&self, tasks: &Tasks) -> anyhow::Result<()> {
        let Self { args, metrics, clock, seed, .. } = self;
        let client = client(self.config.clone(), metrics)?;
        let leadership: Arc<dyn Leadership> = match &self.election {
            Some(election) => election.clone(),
            None => Arc::new(Alone),
        };
        let addresses: HashMap<BrokerId, Uri> = args.broker_address.iter().cloned().collect();
        let scopes = args.scopes();
        let pods = Pods::follow(&client, &scopes, *clock, tasks);
        let remote = Arc::new(Remote::new(addresses, pods, *clock));
        let admin: Arc<dyn Admin> = remote.clone();
        // Half of the workers are left for other Brokers, whatever one does.
        let slots = usize::from(args.concurrency).div_ceil(2);
        let links =
            Links::new(admin.clone(), leadership, args.cluster_id.clone(), slots, metrics.clone(), *clock);
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(self.identity.clone()) };
        let context = Arc::new(Context {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            metrics: metrics.clone(),
            links: Arc::new(links),
            known: RwLock::default(),
            cluster: args.cluster_id.clone(),
            resync: args.resync.as_duration().max(RESYNC_MIN),
            clock: *clock,
            seed: seed.clone(),
        });
        let image =
            args.broker_image.clone().unwrap_or_else(|| concat!("weir:", env!("CARGO_PKG_VERSION")).into());
        broker::start(&context, &scopes, args.concurrency, &image, tasks);
        scaling::start(&context, remote, args.scaling_interval.as_duration().max(SCALING_MIN), tasks);
        controllers::start(&context, &scopes, args.concurrency, admin, tasks);
        Ok(())
    }
}

/// A client that counts its requests.
fn client(config: Config, metrics: &Arc<Metrics>) -> anyhow::Result<Client> {
    let metrics = metrics.clone();
    let count = MapRequestLayer::new(move |request: http::Request<kube::client::Body>| {
        let (verb, resource) = request_of(request.method(), request.uri());
        metrics.asked(verb, resource);
        request
    });
    Ok(ClientBuilder::try_from(config)
        .context("connect to the Kubernetes cluster")?
        .with_layer(&count)
        .build())
}

/// What a request does to which resource: `/apis/weir.dev/v1alpha1/namespaces/city/streams/a/status` is about
/// `streams/status`.
fn request_of(method: &http::Method, uri: &Uri) -> (&'static str, String) {
    let query = uri.query().unwrap_or_default();
    let mut parts = uri.path().split('/').filter(|part| !part.is_empty());
    let skipped = if parts.next() == Some("api") { 1 } else { 2 };
    let parts: Vec<&str> = parts.skip(skipped).collect();
    let rest = match parts.as_slice() {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let resource = match rest {
        [resource, _, subresource] => format!("{resource}/{subresource}"),
        [resource, ..] => (*resource).to_owned(),
        [] => "none".to_owned(),
    };
    let verb = match (method.as_str(), rest.len()) {
        ("GET", _) if query.contains("watch=true") => "watch",
        ("GET", 1) => "list",
        ("GET", _) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", _) => "delete",
        _ => "other",
    };
    (verb, resource)
}

fn cluster_id(text: &str) -> Result<String, String> {
    let is_inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = (1..=63).contains(&text.len())
        && text.bytes().all(is_inside)
        && !text.starts_with('-')
        && !text.ends_with('-');
    match is_label {
        true => Ok(text.to_owned()),
        false => Err("allowed: 1 to 63 lower-case letters, digits and, inside, `-`".to_owned()),
    }
}

pub(crate) fn broker_address(text: &str) -> Result<(BrokerId, Uri), String> {
    let form = || "expected NAMESPACE/NAME=http://ADDRESS:PORT".to_owned();
    let (place, address) = text.split_once('=').ok_or_else(form)?;
    let (namespace, name) = place.split_once('/').ok_or_else(form)?;
    let address: Uri = address.parse().map_err(|error| format!("{address:?} is not a URL: {error}"))?;
    if address.scheme_str() != Some("http") || address.authority().is_none() {
        return Err(form());
    }
    Ok((BrokerId { namespace: namespace.to_owned(), name: name.to_owned() }, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_they_do() {
        for (method, uri, expected) in [
            ("GET", "/apis/weir.dev/v1alpha1/messagequeues?&limit=500", "list messagequeues"),
            ("GET", "/apis/weir.dev/v1alpha1/namespaces/a/streams?watch=true", "watch streams"),
            (
                "PATCH",
                "/apis/weir.dev/v1alpha1/namespaces/a/streams/s/status?force=true",
                "patch streams/status",
            ),
            ("POST", "/apis/events.k8s.io/v1/namespaces/a/events", "create events"),
            ("GET", "/api/v1/namespaces/a", "get namespaces"),
            ("PUT", "/apis/coordination.k8s.io/v1/namespaces/a/leases/l", "update leases"),
            ("GET", "/", "get none"),
        ] {
            let method = method.parse().unwrap();
            let (verb, resource) = request_of(&method, &uri.parse().unwrap());
            assert_eq!(format!("{verb} {resource}"), expected);
        }
    }

    #[test]
    fn flags_that_cannot_be_are_refused() {
        assert!(cluster_id("prod-1").is_ok());
        for wrong in ["", "-a", "a-", "A", "a.b", &"a".repeat(64)] {
            assert!(cluster_id(wrong).is_err(), "{wrong}");
        }
        let (id, uri) = broker_address("msg/main=http://127.0.0.1:8081").unwrap();
        assert_eq!((id.to_string(), uri.to_string()), ("msg/main".into(), "http://127.0.0.1:8081/".into()));
        for wrong in ["", "main=http://a:1", "msg/main", "msg/main=127.0.0.1:1", "msg/main=ftp://a:1"] {
            assert!(broker_address(wrong).is_err(), "{wrong}");
        }
    }
}
