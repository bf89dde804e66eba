//! The admin API of Brokers over gRPC. Owns a connection per address. The wire types are converted here and go no
//! further.
//!
//! A call goes to one ready pod after the other, in turn, until one answers: calls may be repeated. A pod that does not answer
//! goes to the end of the line for a while, so that it costs later calls nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::core::ResourceExt as _;
use opentelemetry::propagation::Injector;
use parking_lot::Mutex;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use weir_env::clock::{Clock, Instant};
use weir_env::seed::HashMap;
use weir_operator_api::Broker;
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::admin_client::AdminClient;
use weir_proto::admin::v1::declarations_client::DeclarationsClient;

use super::admin::{
    Admin, AdminError, Applied, Changes, Declaration, Declared, Kind, Outcome, Owner, Page, Pending, Policy,
    Refusal, Released, State, Told,
};
use super::find::BrokerId;
use super::pods::{Certificates, Door, Whereabouts};
use crate::broker::desired::pod_name;
use crate::scaling::{Figures, Load, PodAdmin, whole};

/// Time for a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// Time for a call.
const CALL: Duration = Duration::from_secs(10);
/// An idle connection is tried as often: a watch must notice that its pod is gone.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// Metadata of a refusal.
const REASON: &str = "weir-reason";
/// Pods that one call tries.
const TRIES_MAX: usize = 3;
/// For so long a pod that did not answer is asked after the others.
const ASIDE: Duration = Duration::from_secs(10);
/// Connections that are kept; with more, those to pods that are gone have piled up.
const CHANNELS_MAX: usize = 1024;

/// Brokers by their pods, or by addresses that do not change.
pub(crate) struct Remote {
    addresses: HashMap<BrokerId, Uri>,
    pods: Arc<dyn Whereabouts>,
    clock: Clock,
    known: Mutex<HashMap<Uri, Known>>,
    /// Pods take turns.
    turn: AtomicUsize,
}

struct Known {
    channel: Channel,
    /// What it was made with.
    certificates: Option<Arc<Certificates>>,
    /// It did not answer then.
    failed: Option<Instant>,
}

/// What a call brings along to prove that it may be made.
#[derive(Clone)]
pub(crate) struct Proof(Option<MetadataValue<Ascii>>);

impl Interceptor for Proof {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// The way to a pod.
pub(crate) type Way = InterceptedService<Channel, Proof>;

impl Remote {
    /// Brokers that are reached at `addresses`, all others by their ready pods.
    pub(crate) fn new(addresses: HashMap<BrokerId, Uri>, pods: Arc<dyn Whereabouts>, clock: Clock) -> Self {
        Self { addresses, pods, clock, known: Mutex::default(), turn: AtomicUsize::new(0) }
    }

    /// Asks one pod of the Broker after the other until one answers.
    async fn call<T, F>(
        &self,
        broker: &Broker,
        call: impl Fn(Way) -> F + Send + Sync,
    ) -> Result<T, AdminError>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        self.ask(broker, call).await.map_err(refused)
    }

    /// The same, for who reads statuses.
    pub(crate) async fn ask<T, F>(
        &self,
        broker: &Broker,
        call: impl Fn(Way) -> F + Send + Sync,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let (line, mut last) = self.line(broker).await;
        for (address, way) in line {
            let answer = call(way).await;
            let is_away = answer.as_ref().err().is_some_and(is_away);
            if let Some(known) = self.known.lock().get_mut(&address) {
                known.failed = is_away.then(|| self.clock.now());
            }
            match answer {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) if is_away => last = Some(status),
                Err(status) => return Err(status),
            }
        }
        let id = BrokerId::of(broker);
        Err(last.unwrap_or_else(|| Status::unavailable(format!("no pod of the Broker {id} is ready"))))
    }

    /// The pods to try, in that order, and why others cannot be called.
    async fn line(&self, broker: &Broker) -> (Vec<(Uri, Way)>, Option<Status>) {
        let mut doors = match self.addresses.get(&BrokerId::of(broker)) {
            Some(address) => vec![Door { address: address.clone(), token: None, certificates: None }],
            None => self.pods.ready(broker),
        };
        let (mut certificates, mut problem) = (HashMap::default(), None);
        let namespace = broker.namespace().unwrap_or_default();
        let secrets: BTreeSet<String> = doors.iter().filter_map(|door| door.certificates.clone()).collect();
        for secret in secrets {
            match self.pods.certificates(&namespace, &secret).await {
                Ok(read) => _ = certificates.insert(secret, read),
                Err(error) => problem = Some(error),
            }
        }
        if !doors.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % doors.len();
            doors.rotate_left(turn);
        }
        let now = self.clock.now();
        let mut known = self.known.lock();
        if known.len().saturating_add(doors.len()) > CHANNELS_MAX {
            known.retain(|address, _| doors.iter().any(|door| door.address == *address));
        }
        let mut line: Vec<(bool, Uri, Way)> = Vec::with_capacity(doors.len());
        for Door { address, token, certificates: secret } in doors {
            let its = secret.as_ref().and_then(|secret| certificates.get(secret));
            if secret.is_some() && its.is_none() {
                continue;
            }
            if known.get(&address).is_none_or(|pod| pod.certificates.as_ref() != its) {
                match connection(&address, its.map(|its| its.client(pod_name(broker)))) {
                    Ok(channel) => {
                        let pod = Known { channel, certificates: its.cloned(), failed: None };
                        known.insert(address.clone(), pod);
                    }
                    Err(error) => {
                        let secret = secret.unwrap_or_default();
                        let message =
                            format!("the Secret {namespace}/{secret} of spec.adminTls is no good: {error}");
                        problem = Some(Status::unavailable(message));
                        continue;
                    }
                }
            }
            let Some(pod) = known.get(&address) else { continue };
            let aside = pod.failed.is_some_and(|at| now.saturating_duration_since(at) < ASIDE);
            let way = InterceptedService::new(pod.channel.clone(), Proof(token));
            line.push((aside, address, way));
        }
        line.sort_by_key(|(aside, ..)| *aside);
        let line = line.into_iter().take(TRIES_MAX).map(|(_, address, way)| (address, way)).collect();
        (line, problem)
    }
}

/// A connection that is made with the first call.
fn connection(address: &Uri, tls: Option<ClientTlsConfig>) -> Result<Channel, String> {
    let endpoint = Endpoint::from(address.clone())
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true);
    let endpoint = match tls {
        Some(tls) => endpoint.tls_config(tls).map_err(|error| in_full(&error))?,
        None => endpoint,
    };
    Ok(endpoint.connect_lazy())
}

/// An error with what caused it.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Whether a pod did not answer, rather than refuse.
fn is_away(status: &Status) -> bool {
    let away = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown];
    away.contains(&status.code()) && !status.metadata().contains_key(REASON)
}

impl Admin for Remote {
    fn acquire_writer<'a>(&'a self, broker: &'a Broker, cluster: &'a str) -> Pending<'a, u64> {
        Box::pin(async move {
            let request = wire::AcquireWriterRequest { cluster: cluster.to_owned() };
            let answer = self
                .call(broker, |way| {
                    let request = bounded(request.clone());
                    async move { DeclarationsClient::new(way).acquire_writer(request).await }
                })
                .await?;
            Ok(answer.writer)
        })
    }

    fn apply<'a>(
        &'a self,
        broker: &'a Broker,
        writer: u64,
        declaration: &'a Declaration,
    ) -> Pending<'a, Applied> {
        Box::pin(async move {
            let request = wire::ApplyObjectRequest {
                writer,
                owner: Some(owner(&declaration.owner)),
                kind: kind(declaration.kind).into(),
                name: declaration.name.clone(),
                spec: declaration.spec.clone(),
            };
            let answer = self
                .call(broker, |way| {
                    let request = bounded(request.clone());
                    async move { DeclarationsClient::new(way).apply_object(request).await }
                })
                .await?;
            applied(answer)
        })
    }

    fn release<'a>(
        &'a self,
        broker: &'a Broker,
        writer: u64,
        declaration: &'a Declaration,
        policy: Policy,
    ) -> Pending<'a, Released> {
        Box::pin(async move {
            let policy = match policy {
                Policy::Retain => wire::DeletionPolicy::Retain,
                Policy::Delete => wire::DeletionPolicy::Delete,
            };
            let request = wire::ReleaseObjectRequest {
                writer,
                owner: Some(owner(&declaration.owner)),
                kind: kind(declaration.kind).into(),
                name: declaration.name.clone(),
                policy: policy.into(),
            };
            let answer = self
                .call(broker, |way| {
                    let request = bounded(request.clone());
                    async move { DeclarationsClient::new(way).release_object(request).await }
                })
                .await?;
            match answer.outcome() {
                wire::ReleaseOutcome::Released => Ok(Released::Kept),
                wire::ReleaseOutcome::Deleted => Ok(Released::Deleted),
                wire::ReleaseOutcome::Missing => Ok(Released::Missing),
                wire::ReleaseOutcome::NotOwned => Ok(Released::NotOwned),
                wire::ReleaseOutcome::Unspecified => Err(unknown()),
            }
        })
    }

    fn list<'a>(&'a self, broker: &'a Broker, page: &'a str) -> Pending<'a, Page> {
        Box::pin(async move {
            let request = wire::ListDeclaredRequest {
                page: page.to_owned(),
                with_conditions: true,
                ..wire::ListDeclaredRequest::default()
            };
            let answer = self
                .call(broker, |way| {
                    let request = bounded(request.clone());
                    async move { DeclarationsClient::new(way).list_declared(request).await }
                })
                .await?;
            let objects = answer.objects.into_iter().filter_map(declared).collect();
            Ok(Page { objects, next: answer.next_page })
        })
    }

    fn watch<'a>(&'a self, broker: &'a Broker) -> Pending<'a, Changes> {
        Box::pin(async move {
            let begin = |way: Way| async move {
                let mut client = DeclarationsClient::new(way);
                let begun = client.watch_declared(traced(wire::WatchDeclaredRequest {}));
                let late = |_| Status::deadline_exceeded("the watch did not begin in time");
                tokio::time::timeout(CALL, begun).await.map_err(late)?
            };
            let changes = self.call(broker, begin).await?;
            let changes = changes.filter_map(async |told| match told {
                Ok(told) => self::told(told).map(Ok),
                Err(status) => Some(Err(refused(status))),
            });
            Ok(Box::pin(changes) as Changes)
        })
    }
}

impl PodAdmin for Remote {
    fn describe<'a>(&'a self, broker: &'a Broker) -> Pending<'a, Vec<Figures>> {
        Box::pin(async move {
            let answer = self
                .call(broker, |way| {
                    let request = bounded(wire::DescribePodsRequest {});
                    async move { AdminClient::new(way).describe_pods(request).await }
                })
                .await?;
            Ok(answer.pods.into_iter().map(figures).collect())
        })
    }

    fn drain<'a>(&'a self, broker: &'a Broker, id: &'a str) -> Pending<'a, ()> {
        Box::pin(async move {
            // At the rate and within the grace that the pod is configured with.
            let request = wire::DrainPodRequest { id: id.to_owned(), rate: 0, grace_millis: 0 };
            let answer = self.call(broker, |way| {
                let request = bounded(request.clone());
                async move { AdminClient::new(way).drain_pod(request).await }
            });
            answer.await.map(drop)
        })
    }

    fn resume<'a>(&'a self, broker: &'a Broker, id: &'a str) -> Pending<'a, ()> {
        Box::pin(async move {
            let request = wire::ResumePodRequest { id: id.to_owned() };
            let answer = self.call(broker, |way| {
                let request = bounded(request.clone());
                async move { AdminClient::new(way).resume_pod(request).await }
            });
            answer.await.map(drop)
        })
    }
}

fn figures(pod: wire::Pod) -> Figures {
    let state = pod.state();
    let load = pod.load.unwrap_or_default();
    let rate = |figure: f64| whole(figure.ceil()).unwrap_or(0);
    let host = pod.peer_address.rsplit_once(':').map_or("", |(host, _)| host);
    Figures {
        id: pod.id,
        host: host.trim_matches(['[', ']']).to_owned(),
        is_drained: state == wire::PodState::Drained,
        age_millis: pod.load_age_millis,
        load: Load {
            connections: load.connections,
            connect_rate: rate(load.connect_rate),
            bytes_rate: rate(load.bytes_in_rate).saturating_add(rate(load.bytes_out_rate)),
            append_rate: rate(load.append_rate),
            deliver_rate: rate(load.deliver_rate),
            shards: load.shards,
            cpu_millis: rate(load.cpu_millis),
            is_draining: state != wire::PodState::Serving,
            ..Load::default()
        },
    }
}

/// The request with the trace that it belongs to, and with the time that it may take.
fn bounded<T>(request: T) -> Request<T> {
    let mut request = traced(request);
    request.set_timeout(CALL);
    request
}

fn traced<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    let context = tracing::Span::current().context();
    opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut Metadata(request.metadata_mut()));
    });
    request
}

struct Metadata<'m>(&'m mut MetadataMap);

impl Injector for Metadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) =
            (MetadataKey::from_bytes(key.as_bytes()), MetadataValue::try_from(value))
        {
            self.0.insert(key, value);
        }
    }
}

fn owner(owner: &Owner) -> wire::ObjectOwner {
    wire::ObjectOwner {
        cluster: owner.cluster.clone(),
        namespace: owner.namespace.clone(),
        object: owner.object.clone(),
        uid: owner.uid.clone(),
        generation: u64::try_from(owner.generation).unwrap_or(0),
    }
}

fn kind(kind: Kind) -> wire::ObjectKind {
    match kind {
        Kind::Queue => wire::ObjectKind::Queue,
        Kind::Stream => wire::ObjectKind::Stream,
    }
}

fn applied(answer: wire::ApplyObjectResponse) -> Result<Applied, AdminError> {
    let outcome = match answer.outcome() {
        wire::ApplyOutcome::Created => Outcome::Created,
        wire::ApplyOutcome::Updated => Outcome::Updated,
        wire::ApplyOutcome::Unchanged => Outcome::Unchanged,
        wire::ApplyOutcome::Adopted => Outcome::Adopted,
        wire::ApplyOutcome::Unspecified => return Err(unknown()),
    };
    Ok(Applied {
        outcome,
        drifted: answer.drifted,
        changed: answer.changed,
        generation: answer.generation,
        hash: answer.hash,
        state: state(&answer.conditions),
    })
}

/// A queue or stream; nothing of a kind that is not known here.
fn declared(object: wire::DeclaredObject) -> Option<Declared> {
    let kind = match object.kind() {
        wire::ObjectKind::Queue => Kind::Queue,
        wire::ObjectKind::Stream => Kind::Stream,
        wire::ObjectKind::Unspecified => return None,
    };
    let active = object.state() == wire::DeclaredState::Active;
    let state = (!object.conditions.is_empty()).then(|| state(&object.conditions));
    Some(Declared {
        kind,
        name: object.name,
        generation: object.generation,
        hash: object.hash,
        active,
        state,
    })
}

fn told(told: wire::WatchDeclaredResponse) -> Option<Told> {
    use wire::watch_declared_response::Event;
    match told.event? {
        Event::Reload(_) => Some(Told::Reload),
        Event::Changed(object) => declared(object).map(Told::Changed),
        Event::Gone(object) => declared(object).map(|object| Told::Gone(object.kind, object.name)),
    }
}

/// The condition `Ready`; none: it is.
fn state(conditions: &[wire::Condition]) -> State {
    match conditions.iter().find(|condition| condition.r#type == "Ready") {
        Some(ready) if ready.status == "False" => {
            State::NotReady { reason: ready.reason.clone(), message: ready.message.clone() }
        }
        Some(ready) if ready.status == "Unknown" => State::Unknown,
        _ => State::Ready,
    }
}

/// What a status means. A refusal says why in its metadata; everything else may be tried again.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(status: Status) -> AdminError {
    let reason = status.metadata().get(REASON).and_then(|reason| reason.to_str().ok());
    let message = status.message().to_owned();
    match (reason.and_then(Refusal::parse), status.code()) {
        (Some(refusal), _) => AdminError::Refused { refusal, message },
        (None, Code::InvalidArgument) => AdminError::Refused { refusal: Refusal::Invalid, message },
        (None, Code::Unavailable) => AdminError::Unavailable(message),
        (None, code) => AdminError::Unavailable(format!("{}: {message}", code.description())),
    }
}

fn unknown() -> AdminError {
    AdminError::Unavailable("the broker answers with a word that this operator does not know".to_owned())
}

#[cfg(test)]
mod tests;
