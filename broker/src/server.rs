//! Starting a broker, running it, and stopping it in order: not ready, no new clients, farewells, what is in
//! flight, the store.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::BoxFuture;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_core::Core;
use weir_core::cluster::links::Links;
use weir_core::cluster::message::Lane;
use weir_core::cluster::{Cluster, ClusterOptions};
use weir_core::core::{Options, PeerNetwork};
use weir_core::inbox::{Inbox, InboxLimits, InboxMetrics, InboxOptions, InboxWriter};
use weir_core::keyspace::VirtualShard;
use weir_core::panics::Panics;
use weir_core::retained::{Retained, RetainedContext, RetainedMetrics, RetainedOptions};
use weir_core::sessions::{Place, Sessions};
use weir_core::stream::ReadLimits;
use weir_core::wills::Wills;
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_manifest::Watcher;
use weir_storage::SharedStore;

use crate::auth::{Auth, Method};
use crate::auto_create::AutoCreate;
use crate::broker::{Broker, session_limits};
use crate::clients::Clients;
use crate::cluster::Pods;
use crate::cluster::follow::SessionFollower;
use crate::cluster::forward::LiveHandler;
use crate::cluster::orphans;
use crate::cluster::takeover::{Elsewhere, SessionHandler};
use crate::config::{self, Config};
use crate::dead_letters::LetterPublisher;
use crate::http::{self, Readiness, ReadyState};
use crate::listen::{self, Accepting};
use crate::metrics::Metrics;
use crate::persistent::Persistent;
use crate::pod::drain::{self, Drainage};
use crate::router::{self, Router};
use crate::sys::{self, Sys};
use crate::under_way::UnderWay;
use crate::{admin, disk, manifests, peer, pod, process, store};

/// Wait before queues that could not be read are tried again.
const TAKE_UP_RETRY: Duration = Duration::from_secs(10);
/// Why a pod that is quiet serves no clients.
const QUIET: &str =
    "quiet: this pod could not give a sign of life to the store for too long, and others may take its place";
/// Time between two streams that are taken up at the start, so that thousands of them are not all read at once.
const STREAM_PACE: Duration = Duration::from_millis(50);
/// How often due wills, expired sessions and leftovers are looked for.
const MAINTAIN_INTERVAL: Duration = Duration::from_secs(1);
/// How often the folder of manifests is looked at.
const MANIFEST_INTERVAL: Duration = Duration::from_secs(1);
/// Due wills published at the same time.
const WILLS_AT_ONCE: usize = 256;
/// Age from which marks of QoS 2 publishes are swept.
const MARK_AGE: Duration = Duration::from_secs(24 * 3600);
/// Age from which a deletion is known to everybody, and what is left of its records is removed.
const DELETED_AGE: Duration = Duration::from_secs(10);
/// How often marks and expired retained messages are swept.
const SWEEP_TICKS: u64 = 60;

/// A broker that has started.
#[derive(Debug)]
pub struct Started {
    /// Where clients connect over TCP, in the order of the configuration; free ports have been taken by now.
    pub mqtt: Vec<SocketAddr>,
    /// `/healthz`, `/readyz` and `/metrics`.
    pub http: SocketAddr,
    /// gRPC `weir.admin.v1`.
    pub admin: SocketAddr,
    /// Its queues and streams.
    pub core: Arc<Core>,
}

/// What a broker can be given that no configuration names.
#[derive(Default)]
pub struct Extras {
    /// Methods of enhanced authentication besides the built-in one.
    pub methods: Vec<Arc<dyn Method>>,
    /// How it is one of many pods on its store; none: it is alone.
    pub peering: Option<Peering>,
}

/// How a broker is one of many pods.
pub struct Peering {
    /// As what it takes part.
    pub options: ClusterOptions,
    /// The way to the other pods.
    pub network: PeerNetwork,
    /// Told of its links before there are any: has other pods reach it.
    pub attach: Box<dyn FnOnce(&Links) + Send>,
}

/// Runs a broker on the store that `config` names until `shutdown`, then stops it in order and closes the store.
///
/// # Errors
/// If it cannot start, or stopped because it cannot go on: the message says what to do. Not cancel-safe.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let clock = Clock::system();
    let seed = Seed::from_entropy();
    seed.install_for_hashing();
    process::raise_file_limit();
    let store = store::open(&config, clock).await?;
    // Nobody asks.
    let (started, _) = oneshot::channel();
    let result = run_on(&config, Arc::clone(&store), clock, &seed, shutdown, started).await;
    if tokio::time::timeout(config.limits.shutdown_grace, store.close()).await.is_err() {
        tracing::warn!("the store did not close in time and is cut off");
    }
    if result.is_ok() {
        tracing::info!("stopped");
    }
    result
}

/// Runs a broker on `store`, which stays open, until `shutdown`, then stops it in order. `started` is told when
/// clients are accepted.
///
/// # Errors
/// If it cannot start, or stopped because it cannot go on: the message says what to do. Not cancel-safe.
pub async fn run_on(
    config: &Config,
    store: SharedStore,
    clock: Clock,
    seed: &Seed,
    shutdown: CancellationToken,
    started: oneshot::Sender<Started>,
) -> anyhow::Result<()> {
    run_with(config, store, clock, seed, shutdown, started, Extras::default()).await
}

/// As [`run_on`], with what no configuration names.
///
/// # Errors
/// If it cannot start, or stopped because it cannot go on: the message says what to do. Not cancel-safe.
pub async fn run_with(
    config: &Config,
    store: SharedStore,
    clock: Clock,
    seed: &Seed,
    shutdown: CancellationToken,
    started: oneshot::Sender<Started>,
    extras: Extras,
) -> anyhow::Result<()> {
    let background = TaskTracker::new();
    let stop_background = CancellationToken::new();
    // A child: a broker that stops by itself does not stop its caller.
    let shutdown = shutdown.child_token();
    let background_of = (&background, &stop_background, extras);
    let result = serve(config, store, clock, seed, shutdown, started, background_of).await;
    // Also after a start that failed, so that nothing is left behind.
    stop_background.cancel();
    background.close();
    if tokio::time::timeout(config.limits.shutdown_grace, background.wait()).await.is_err() {
        tracing::warn!(left = background.len(), "background tasks did not end in time");
    }
    result
}

async fn serve(
    config: &Config,
    store: SharedStore,
    clock: Clock,
    seed: &Seed,
    shutdown: CancellationToken,
    started: oneshot::Sender<Started>,
    (background, stop_background, extras): (&TaskTracker, &CancellationToken, Extras),
) -> anyhow::Result<()> {
    let mut registry = Registry::default();
    let readiness = Readiness::default();
    readiness.set(ReadyState::Starting("reading the store"));
    let parts = (&mut registry, background, stop_background, extras);
    let broker = begin(config, store, clock, seed, parts).await?;
    let mut watcher = config.manifests.as_ref().map(|dir| Watcher::new(dir, MANIFEST_INTERVAL));
    if let Some(watcher) = &mut watcher {
        manifests::load_and_apply(&broker.core, &broker.auto_create, watcher).await?;
    }

    let admin_access = admin::Access::read(&config.admin_access, config.auth.reload_interval)
        .context("protect the admin API")?;
    let listeners = listen::bind_all(config, clock, &mut registry)?;
    let http_listener =
        listen::bind(config.http).with_context(|| format!("listen on http://{}", config.http))?;
    let admin_listener =
        listen::bind(config.admin).with_context(|| format!("listen on grpc://{}", config.admin))?;
    let started_as = Started {
        mqtt: listeners.iter().filter_map(|bound| bound.addr).collect(),
        http: http_listener.local_addr()?,
        admin: admin_listener.local_addr()?,
        core: Arc::clone(&broker.core),
    };
    tracing::info!(url = %format!("http://{}", started_as.http), "listening");
    tracing::info!(url = %format!("grpc://{}", started_as.admin), "listening");

    let registry = Arc::new(registry);
    background.spawn(http::serve(http_listener, readiness.clone(), registry, stop_background.child_token()));
    // Clients go first, those who look on last.
    let end = CancellationToken::new();
    let _ended = end.clone().drop_guard();
    background.spawn(serve_admin(admin_listener, Arc::clone(&broker), admin_access, end.child_token()));
    background.spawn(Arc::clone(&broker.auth).follow(stop_background.child_token()));
    let panics = go_on_by_itself(&broker, config, (background, stop_background));
    if let Some(watcher) = watcher {
        let (core, auto_create) = (Arc::clone(&broker.core), Arc::clone(&broker.auto_create));
        background.spawn(manifests::follow(core, auto_create, watcher, shutdown.child_token()));
    }
    let clients = TaskTracker::new();
    let accepting = Accepting::new(&broker, &clients, &end);
    let ways_in = listeners.iter().map(|bound| Arc::clone(&bound.listener)).collect();
    background.spawn(listen::follow(ways_in, stop_background.child_token()));
    for bound in listeners {
        tracing::info!(listener = %bound.listener.name, url = %bound.url, "listening");
        clients.spawn(accepting.clone().run(bound));
    }
    let open = !config.allow_anonymous && !broker.auth.authenticates();
    if open && config.listeners.iter().all(config::Listener::is_local) {
        tracing::info!("no authentication is configured: only this machine can connect");
    }
    let witness = Arc::downgrade(&broker);
    readiness.ask(move || witness.upgrade().filter(|broker| broker.is_quiet()).map(|_| QUIET));
    readiness.set(ReadyState::Ready);
    tracing::info!("ready");
    // Whoever started it may not want to know.
    let _ = started.send(started_as);
    let orders =
        drain::follow_orders(Arc::clone(&broker), readiness.clone(), config.drain.clone(), shutdown.clone());
    background.spawn(panics.watch(orders));

    let until_stopped = async {
        shutdown.cancelled().await;
        readiness.set(ReadyState::Draining);
        drain::leave(&broker, &config.drain).await;
    };
    let failure = tokio::select! {
        () = until_stopped => None,
        why = broker.core.failed() => Some(why),
        () = pods_panicked(&broker) => Some("a task that tells other pods what clients want panicked".into()),
        () = panics.panicked() => Some("a task of the broker itself panicked".into()),
        () = others_panicked(&broker) => Some("a task that follows what other pods do panicked".into()),
    };
    if let Some(why) = &failure {
        tracing::error!(why = &**why, "the broker cannot go on");
        readiness.set(ReadyState::Failed);
        shutdown.cancel();
    }
    end.cancel();
    wind_down(&broker, &clients, config.limits.shutdown_grace).await;
    match failure {
        None => Ok(()),
        Some(why) => {
            anyhow::bail!("{why}; restart the broker; if it happens again, check the disk and the log")
        }
    }
}

/// A broker that has read the store, and serves nobody yet.
pub(crate) async fn begin(
    config: &Config,
    store: SharedStore,
    clock: Clock,
    seed: &Seed,
    parts: Background<'_>,
) -> anyhow::Result<Arc<Broker>> {
    let stop = parts.2.clone();
    let broker = build(config, store, clock, seed, parts).await?;
    // All who take what other pods say are there.
    broker.core.meet();
    recover(&broker, &stop).await.context("read the store")?;
    if let Some(pods) = &broker.pods {
        // Before clients come: what they publish goes to whoever wants it.
        pods.start(&broker, &stop).await;
    }
    if let Some(elsewhere) = &broker.elsewhere {
        elsewhere.meet().await;
    }
    Ok(broker)
}

/// Waits until a task panics that live routing between pods needs; for ever without other pods. Cancel-safe.
async fn pods_panicked(broker: &Broker) {
    match &broker.pods {
        Some(pods) => pods.panicked().await,
        None => std::future::pending().await,
    }
}

/// Starts what `broker` does without being asked, until it is told to stop. Panics of what it cannot be without are told.
pub(crate) fn go_on_by_itself(
    broker: &Arc<Broker>,
    config: &Config,
    (background, stop): (&TaskTracker, &CancellationToken),
) -> Panics {
    let panics = Panics::default();
    background.spawn(panics.watch(maintain(Arc::clone(broker), stop.child_token())));
    background.spawn(take_up(Arc::clone(&broker.core), stop.child_token()));
    if !config.sys_interval.is_zero() {
        let publisher = sys::Publisher::start(Arc::clone(broker), config.sys_interval);
        background.spawn(publisher.run(stop.child_token()));
    }
    panics
}

/// Ends the connections of `broker` in order, cuts off those that do not end, and has its shards commit what is in line.
pub(crate) async fn wind_down(broker: &Broker, clients: &TaskTracker, grace: Duration) {
    broker.clients.drain();
    tracing::info!(connections = broker.metrics.connections.get(), "shutting down");
    clients.close();
    if tokio::time::timeout(grace, clients.wait()).await.is_err() {
        tracing::warn!(left = clients.len(), "connections did not end in time and are cut off");
    }
    if tokio::time::timeout(grace, broker.core.close()).await.is_err() {
        tracing::warn!("shards did not end in time and are cut off");
    }
}

pub(crate) type Background<'a> = (&'a mut Registry, &'a TaskTracker, &'a CancellationToken, Extras);

async fn build(
    config: &Config,
    store: SharedStore,
    clock: Clock,
    seed: &Seed,
    (registry, tasks, stop, extras): Background<'_>,
) -> anyhow::Result<Arc<Broker>> {
    let metrics = Metrics::register(registry);
    let auth = Auth::open(config, extras.methods, metrics.clone(), clock)?;
    process::register(registry);
    let registry = registry.sub_registry_with_prefix("weir");
    disk::register(registry, store.engine_stats());
    let store = store::metered(store, registry);
    let core_metrics = weir_core::metrics::Metrics::default();
    core_metrics.register(registry);
    let reading = ReadLimits {
        read_bytes: config.limits.stream_read_bytes.0,
        tail_bytes: config.limits.stream_tail_bytes.0,
    };
    let peering = match (extras.peering, peer::Entrance::open(config, tasks)?) {
        (Some(peering), _) => Some(peering),
        (None, Some(entrance)) => Some(entrance.peering(config, clock, (tasks, stop))),
        (None, None) => None,
    };
    let (cluster, network, attach) = match peering {
        Some(Peering { options, network, attach }) => (Some(options), Some(network), Some(attach)),
        None => (None, None, None),
    };
    if cluster.is_some() {
        core_metrics.peers.register(registry);
    }
    let info = pod::info(config, clock);
    let appended = core_metrics.appended.clone();
    let options = Options { reading, cluster, network, info, ..Options::default() };
    let core = Core::open_with(Arc::clone(&store), clock, seed, core_metrics, options);
    let core = core.await.context("open keyspace")?;
    core.groups().limit(config.limits.stream_groups as usize, config.limits.stream_group_members as usize);
    let virtual_shards = core.format().virtual_shards;
    let cluster = core.cluster().cloned();
    let sessions =
        Sessions::new_in(cluster.clone(), Arc::clone(&store), clock, seed, core.pod().0, virtual_shards);
    let elsewhere = cluster.zip(core.links().cloned());
    let elsewhere = elsewhere.map(|(cluster, links)| Arc::new(Elsewhere::new(cluster, links, &metrics)));
    let inbox_metrics = InboxMetrics::default();
    inbox_metrics.register(registry);
    let clients = Arc::new(Clients::default());
    let inbox_options = InboxOptions {
        limits: InboxLimits {
            messages_max: config.limits.inbox_messages_per_client,
            bytes_max: config.limits.inbox_bytes_per_client.0,
            overflow: config.limits.inbox_overflow,
        },
        ..InboxOptions::default()
    };
    let notify = {
        let (clients, sessions, elsewhere) = (Arc::clone(&clients), sessions.clone(), elsewhere.clone());
        Arc::new(move |target: &weir_core::inbox::InboxTarget| {
            clients.notify_inbox(&target.client_id);
            if let Some(elsewhere) = &elsewhere {
                elsewhere.inbox_changed(&sessions, target);
            }
        })
    };
    let inbox_writer = InboxWriter::spawn(&sessions, inbox_options, &inbox_metrics, notify, tasks, stop);
    let retained_metrics = RetainedMetrics::default();
    retained_metrics.register(registry);
    let context = RetainedContext {
        store,
        clock,
        seed: seed.clone(),
        virtual_shards,
        cluster: core.cluster().cloned(),
    };
    let retained_options = RetainedOptions {
        messages_max: config.limits.retained_messages,
        bytes_max: config.limits.retained_bytes.0,
        ..RetainedOptions::default()
    };
    let retained = Retained::spawn(context, retained_options, &retained_metrics, tasks, stop)
        .await
        .context("read retained messages")?;
    let pods = core.cluster().zip(core.links()).map(|(cluster, links)| Pods::new(cluster, links, clock));
    let elsewhere_of = elsewhere_of(&sessions, core.cluster());
    let broker = Arc::new(Broker {
        core: Arc::new(core),
        auth,
        inbox: Inbox::new(&sessions),
        router: Router::new(metrics.clone(), inbox_writer.room()).among(elsewhere_of),
        pods,
        inbox_writer,
        retained,
        sys: Sys::default(),
        wills: Wills::new(&sessions),
        due_wills: Arc::new(Semaphore::new(WILLS_AT_ONCE)),
        sessions,
        under_way: UnderWay::new(
            config.limits.publish_bytes_under_way.0,
            config.limits.publish_bytes_under_way_per_client.0,
            metrics.publish_bytes_under_way.clone(),
        ),
        clients,
        drainage: Drainage::default(),
        persistent: Persistent::new(metrics.clone()),
        elsewhere,
        metrics,
        clock,
        seed: seed.fork("broker"),
        limits: config.limits.clone(),
        session_limits: session_limits(&config.limits),
        auto_create: Arc::new(AutoCreate::new(manifests::configured(config), config.limits.auto_created)),
        response_information: config.response_information.clone(),
        tasks: tasks.clone(),
        next_consumer: AtomicU64::new(1),
    });
    tasks.spawn(pod::load::run(Arc::clone(&broker), appended, stop.child_token()));
    broker.core.publish_letters_with(Arc::new(LetterPublisher::new(&broker)));
    if let Some(pods) = &broker.pods {
        pods.links.handle_with(Lane::Live, Arc::new(LiveHandler::new(&broker)));
    }
    if let (Some(links), Some(attach)) = (broker.core.links(), attach) {
        links.handle_with(Lane::Session, Arc::new(SessionHandler::new(&broker)));
        attach(links);
    }
    Ok(broker)
}

/// Who is connected to another pod, as far as the change feed has told.
fn elsewhere_of(sessions: &Sessions, cluster: Option<&Cluster>) -> router::Elsewhere {
    let Some(cluster) = cluster.cloned() else { return router::Elsewhere::default() };
    let sessions = sessions.clone();
    router::Elsewhere::new(move |client_id| match sessions.whereabouts(client_id) {
        Place::At(pod) => pod != cluster.me() && cluster.view().contains(pod),
        Place::Away | Place::Unknown => false,
    })
}

/// Takes up what earlier processes left: on an exclusive store every one of them is gone. Among other pods, those that
/// are no members.
async fn recover(broker: &Arc<Broker>, stop: &CancellationToken) -> weir_core::Result<()> {
    let (orphans, routes) = match SessionFollower::start(broker).await? {
        None => {
            let pod = broker.core.pod().0;
            let orphans = broker.sessions.close_orphans(|other| *other != pod).await?;
            broker.core.finish_deletions(Timestamp::from_micros(u64::MAX)).await?;
            (orphans, broker.load_routes(0).await?)
        }
        Some((follower, routes)) => {
            follow_others(broker, follower, stop);
            (0, routes)
        }
    };
    tracing::info!(
        subscriptions = routes,
        sessions = broker.persistent.len(),
        wills = orphans,
        retained = broker.retained.usage().messages,
        "store is read"
    );
    Ok(())
}

/// Waits until a task that follows what other pods do has panicked; for ever without other pods. Cancel-safe.
async fn others_panicked(broker: &Broker) {
    match &broker.elsewhere {
        Some(elsewhere) => elsewhere.panics.panicked().await,
        None => std::future::pending().await,
    }
}

/// Follows what other pods do until `stop`.
fn follow_others(broker: &Arc<Broker>, follower: SessionFollower, stop: &CancellationToken) {
    let Some(elsewhere) = broker.elsewhere.clone() else { return };
    let spawn = |task: BoxFuture<'static, ()>| drop(broker.tasks.spawn(elsewhere.panics.watch(task)));
    spawn(Box::pin(follower.run(stop.clone())));
    spawn(Box::pin(orphans::follow(Arc::clone(broker), Arc::clone(&elsewhere), stop.clone())));
    let (core, stopped) = (Arc::clone(&broker.core), stop.clone());
    spawn(Box::pin(async move { core.follow_others(&stopped).await }));
    let (teller, stop) = (Arc::clone(&elsewhere), stop.clone());
    spawn(Box::pin(async move { teller.notices.run(&teller.cluster, &teller.links, &stop).await }));
}

async fn serve_admin(
    listener: TcpListener,
    broker: Arc<Broker>,
    access: admin::Access,
    shutdown: CancellationToken,
) {
    if let Err(error) = admin::serve(listener, Arc::clone(&broker.core), access, shutdown).await {
        tracing::error!(%error, "admin API ended; `weir queue` and `weir stream` do not work until a restart");
    }
}

/// Publishes due wills, ends expired sessions and sweeps leftovers, each second.
async fn maintain(broker: Arc<Broker>, stop: CancellationToken) {
    let mut ticks: u64 = 0;
    loop {
        tokio::select! {
            () = tokio::time::sleep(MAINTAIN_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
        ticks += 1;
        let now = broker.clock.wall();
        if let Err(error) = maintain_once(&broker, now, ticks.is_multiple_of(SWEEP_TICKS)).await {
            tracing::warn!(%error, "due wills and expired sessions wait: the store does not answer");
        }
    }
}

/// Has queues, consumer groups and streams go on where the process before stopped, also those that nobody asks for.
async fn take_up(core: Arc<Core>, stop: CancellationToken) {
    let taken_up = async {
        while let Err(error) = core.take_up_queues().await {
            tracing::warn!(%error, "expiry and dead letters of some queues wait: the store does not answer");
            tokio::time::sleep(TAKE_UP_RETRY).await;
        }
        while let Err(error) = core.take_up_groups().await {
            tracing::warn!(%error, "expiry of some consumer groups waits: the store does not answer");
            tokio::time::sleep(TAKE_UP_RETRY).await;
        }
        while let Err(error) = core.take_up_streams(STREAM_PACE).await {
            tracing::warn!(%error, "some streams do not age yet: the store does not answer");
            tokio::time::sleep(TAKE_UP_RETRY).await;
        }
    };
    tokio::select! {
        () = taken_up => {}
        () = stop.cancelled() => {}
    }
}

/// Publishes the wills that are due, each in a task of its own: they must not wait for each other, nor anybody for
/// them.
async fn publish_wills(broker: &Arc<Broker>, now: Timestamp) -> weir_core::Result<()> {
    loop {
        let free = broker.due_wills.available_permits();
        if free == 0 {
            return Ok(());
        }
        let due = broker.wills.due(now, free).await?;
        let is_last = due.len() < free;
        for will in due {
            // Nobody else takes permits.
            let permit = Arc::clone(&broker.due_wills).try_acquire_owned();
            let broker_of_it = Arc::clone(broker);
            broker.tasks.spawn(async move {
                broker_of_it.publish_will(will).await;
                drop(permit);
            });
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Does each task though another one failed; the first failure.
async fn maintain_once(broker: &Arc<Broker>, now: Timestamp, sweep: bool) -> weir_core::Result<()> {
    let wills = publish_wills(broker, now).await;
    let expired = broker.sessions.expire_due(now).await.map(|ended| {
        for ended in ended {
            broker.forget(&ended);
            broker.metrics.sessions_expired.inc();
        }
    });
    let settled = broker.sessions.settle_doubts().await.map(|ended| {
        for ended in ended {
            broker.forget(&ended);
        }
    });
    let inboxes = broker.inbox.sweep(now).await.map(|_| ());
    broker.metrics.retained_messages.set(i64::try_from(broker.retained.usage().messages).unwrap_or(i64::MAX));
    let retained = match &broker.elsewhere {
        Some(_) => broker.retained.refresh_usage().await,
        None => Ok(()),
    };
    let elsewhere = broker.elsewhere.as_ref();
    if elsewhere.is_some_and(|elsewhere| !elsewhere.hears_all()) {
        // What a pod without a link has added to inboxes is told to nobody.
        broker.look_at_inboxes();
    }
    // One pod does for all.
    let sweeps = elsewhere.is_none_or(|elsewhere| elsewhere.cluster.should_own(VirtualShard(0)));
    let swept = if sweep && sweeps { sweep_once(broker, now).await } else { Ok(()) };
    wills.and(expired).and(settled).and(inboxes).and(retained).and(swept)
}

/// As [`maintain_once`]: what fails keeps nothing else from being done.
async fn sweep_once(broker: &Broker, now: Timestamp) -> weir_core::Result<()> {
    let retained = broker.retained.sweep(now).await;
    let age = u64::try_from(MARK_AGE.as_micros()).unwrap_or(u64::MAX);
    let before = Timestamp::from_micros(now.as_micros().saturating_sub(age));
    let received = broker.inbox.sweep_marks(before).await.map(drop);
    let appended = broker.core.sweep_marks(before).await;
    let before = now.as_micros().saturating_sub(u64::try_from(DELETED_AGE.as_micros()).unwrap_or(u64::MAX));
    let deleted = broker.core.finish_deletions(Timestamp::from_micros(before)).await.map(drop);
    let aged = broker.core.age_orphans().await;
    retained.map(drop).and(received).and(appended).and(deleted).and(aged)
}
