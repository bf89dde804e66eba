//! The admin API of Brokers over gRPC. Owns a connection per address. The wire types are converted here and go no
//! further.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use opentelemetry::propagation::Injector;
use parking_lot::Mutex;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use weir_env::seed::HashMap;
use weir_operator_api::Broker;
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::declarations_client::DeclarationsClient;

use super::admin::{
    Admin, AdminError, Applied, Changes, Declaration, Declared, Kind, Outcome, Owner, Page, Pending, Policy,
    Refusal, Released, State, Told,
};
use super::find::BrokerId;
use super::pods::{Door, Pods};

/// Time for a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// Time for a call.
const CALL: Duration = Duration::from_secs(10);
/// An idle connection is tried as often: a watch must notice that its pod is gone.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// Metadata of a refusal.
const REASON: &str = "weir-reason";

/// Connections that are kept; with more, those to pods that are gone have piled up.
const CHANNELS_MAX: usize = 1024;

/// Brokers by their pods, or by addresses that do not change.
pub(crate) struct Remote {
    addresses: Arc<HashMap<BrokerId, Uri>>,
    pods: Arc<Pods>,
    channels: Mutex<HashMap<Uri, Channel>>,
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

type Client = DeclarationsClient<InterceptedService<Channel, Proof>>;

impl Remote {
    /// Brokers that are reached at `addresses`, all others by their ready pods.
    pub(crate) fn new(addresses: HashMap<BrokerId, Uri>, pods: Arc<Pods>) -> Self {
        Self { addresses: Arc::new(addresses), pods, channels: Mutex::default() }
    }

    fn client(&self, broker: &Broker) -> Result<Client, AdminError> {
        let id = BrokerId::of(broker);
        let door = match self.addresses.get(&id) {
            Some(address) => Some(Door { address: address.clone(), token: None }),
            None => self.pods.next(broker),
        };
        let Some(Door { address, token }) = door else {
            return Err(AdminError::Unavailable(format!("no pod of the Broker {id} is ready")));
        };
        let mut channels = self.channels.lock();
        if channels.len() >= CHANNELS_MAX && !channels.contains_key(&address) {
            channels.clear();
        }
        let channel = channels.entry(address.clone()).or_insert_with(|| {
            Endpoint::from(address.clone())
                .connect_timeout(CONNECT)
                .http2_keep_alive_interval(KEEPALIVE.0)
                .keep_alive_timeout(KEEPALIVE.1)
                .keep_alive_while_idle(true)
                .connect_lazy()
        });
        Ok(DeclarationsClient::with_interceptor(channel.clone(), Proof(token)))
    }
}

impl Admin for Remote {
    fn acquire_writer<'a>(&'a self, broker: &'a Broker, cluster: &'a str) -> Pending<'a, u64> {
        Box::pin(async move {
            let request = wire::AcquireWriterRequest { cluster: cluster.to_owned() };
            let answer = self.client(broker)?.acquire_writer(bounded(request)).await;
            answer.map(|answer| answer.into_inner().writer).map_err(refused)
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
            let answer = self.client(broker)?.apply_object(bounded(request)).await.map_err(refused)?;
            applied(answer.into_inner())
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
            let answer = self.client(broker)?.release_object(bounded(request)).await.map_err(refused)?;
            match answer.into_inner().outcome() {
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
            let answer = self.client(broker)?.list_declared(bounded(request)).await.map_err(refused)?;
            let answer = answer.into_inner();
            let objects = answer.objects.into_iter().filter_map(declared).collect();
            Ok(Page { objects, next: answer.next_page })
        })
    }

    fn watch<'a>(&'a self, broker: &'a Broker) -> Pending<'a, Changes> {
        Box::pin(async move {
            let mut client = self.client(broker)?;
            let begun = client.watch_declared(traced(wire::WatchDeclaredRequest {}));
            let Ok(begun) = tokio::time::timeout(CALL, begun).await else {
                return Err(AdminError::Unavailable("the watch did not begin in time".to_owned()));
            };
            let changes = begun.map_err(refused)?.into_inner();
            let changes = changes.filter_map(async |told| match told {
                Ok(told) => self::told(told).map(Ok),
                Err(status) => Some(Err(refused(status))),
            });
            Ok(Box::pin(changes) as Changes)
        })
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
        (None, code) => AdminError::Unavailable(format!("{}: {message}", code.description())),
    }
}

fn unknown() -> AdminError {
    AdminError::Unavailable("the broker answers with a word that this operator does not know".to_owned())
}
