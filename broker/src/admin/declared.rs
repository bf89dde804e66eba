//! What operators of Kubernetes clusters declare: the calls of `Declarations`.
//!
//! A declaration comes as the `spec` of its object and is judged as a manifest. The catalog judges who may have what, and
//! fences writers; here is only said what came of it, and why not, in a word that a program can read. Owns no state but
//! what a watch reads from.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{OwnedSemaphorePermit, broadcast};
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};
use weir_core::Core;
use weir_core::catalog::{
    ApplyError, ChangeError, Claim, Declare, Declared, Found, Object, Origin, Outcome, Refusal, Release,
    Released, WRITERS_MAX,
};
use weir_core::definition::{Definition, Kind};
use weir_core::keyspace::catalog::EntryState;
use weir_env::clock::Clock;
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::declarations_server::Declarations;
use weir_proto::admin::v1::watch_declared_response::Event;

use super::changes::{delete_data, name_of, refused};
use super::convert::{Reports, conditions, shutting_down, word};
use super::{ASKED_AT_ONCE, Service};
use crate::manifests::{changed_fields, definition_of_object};

/// Largest request: the `spec` of an object, which Kubernetes lets grow further than people write it.
pub(super) const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Watches at the same time: each pod of an operator has one.
pub(super) const WATCHES_MAX: usize = 16;
/// Objects of a page, unless asked otherwise.
const PAGE_DEFAULT: usize = 500;
/// Objects of a page at most.
const PAGE_MAX: usize = 1000;
/// Changes that one look at the catalog tells.
const TOLD_AT_ONCE: usize = 200;
/// Longest wait for the shards of one queue or stream to say how it is.
const CONDITIONS_WAIT: Duration = Duration::from_secs(1);
/// The same for those of a page, all together.
const PAGE_CONDITIONS_WAIT: Duration = Duration::from_secs(4);
/// Longest id of a Kubernetes cluster, as of a DNS label.
const CLUSTER_BYTES_MAX: usize = 63;
/// Longest name of a namespace or an object.
const NAME_BYTES_MAX: usize = 253;
/// Longest `metadata.uid`.
const UID_BYTES_MAX: usize = 128;

/// Why a call was refused, for programs.
const REASON: &str = "weir-reason";
/// The field that is wrong.
const FIELD: &str = "weir-field";
/// Who has a name.
const OWNER: &str = "weir-owner";

/// An object of a Kubernetes cluster.
struct Owner {
    namespace: String,
    object: String,
    claim: Claim,
}

impl Owner {
    fn read(owner: Option<wire::ObjectOwner>) -> Result<Self, Status> {
        let wire::ObjectOwner { cluster, namespace, object, uid, generation } = owner.unwrap_or_default();
        let cluster = cluster_id(cluster)?;
        for (field, name) in [("owner.namespace", &namespace), ("owner.object", &object)] {
            if !is_dns_name(name, NAME_BYTES_MAX) {
                let allowed =
                    "allowed: as of an object of Kubernetes, lower-case letters, digits, `-` and `.`";
                return Err(invalid(field, &format!("{field}: {name:?} is not a name; {allowed}")));
            }
        }
        if uid.is_empty() || uid.len() > UID_BYTES_MAX {
            let problem = format!("owner.uid: of {} bytes; allowed: 1 to {UID_BYTES_MAX}", uid.len());
            return Err(invalid("owner.uid", &problem));
        }
        Ok(Self { namespace, object, claim: Claim { cluster, uid, generation } })
    }
}

#[tonic::async_trait]
impl Declarations for Service {
    type WatchDeclaredStream =
        Pin<Box<dyn Stream<Item = Result<wire::WatchDeclaredResponse, Status>> + Send>>;

    async fn acquire_writer(
        &self,
        request: Request<wire::AcquireWriterRequest>,
    ) -> Result<Response<wire::AcquireWriterResponse>, Status> {
        self.answer(async {
            let cluster = cluster_id(request.into_inner().cluster)?;
            let acquire = |core: Arc<Core>| async move {
                let acquired = core.catalog().acquire_writer(&cluster).await;
                if let Ok(Some(writer)) = acquired {
                    tracing::info!(cluster, writer, "an operator writes from now on");
                }
                acquired
            };
            let writer = self.to_the_end(acquire).await?;
            let writer = writer.map_err(|error| refused(&ApplyError::from(error).into()))?;
            let writer = writer.ok_or_else(|| {
                let problem = format!(
                    "{WRITERS_MAX} Kubernetes clusters have declared queues and streams here; use one of their ids"
                );
                with_reason(Status::resource_exhausted(problem), "TooMany")
            })?;
            Ok(wire::AcquireWriterResponse { writer })
        })
        .await
    }

    async fn apply_object(
        &self,
        request: Request<wire::ApplyObjectRequest>,
    ) -> Result<Response<wire::ApplyObjectResponse>, Status> {
        self.answer(self.declare(request.into_inner())).await
    }

    async fn release_object(
        &self,
        request: Request<wire::ReleaseObjectRequest>,
    ) -> Result<Response<wire::ReleaseObjectResponse>, Status> {
        self.answer(self.release(request.into_inner())).await
    }

    async fn list_declared(
        &self,
        request: Request<wire::ListDeclaredRequest>,
    ) -> Result<Response<wire::ListDeclaredResponse>, Status> {
        self.answer(self.list(request.into_inner())).await
    }

    async fn watch_declared(
        &self,
        _: Request<wire::WatchDeclaredRequest>,
    ) -> Result<Response<Self::WatchDeclaredStream>, Status> {
        let permit = Arc::clone(&self.watches).try_acquire_owned().map_err(|_| {
            let problem =
                format!("{WATCHES_MAX} watches are under way at this pod; end one, or try another pod");
            with_reason(Status::resource_exhausted(problem), "TooMany")
        })?;
        let watch = Watch {
            told: self.core.catalog().told(),
            core: Arc::clone(&self.core),
            ready: vec![Event::Reload(wire::DeclaredReload {})],
            _permit: permit,
        };
        let shutdown = self.shutdown.clone();
        let events = stream::unfold(Some((watch, shutdown)), |state| async {
            let (mut watch, shutdown) = state?;
            match shutdown.run_until_cancelled(watch.next()).await {
                Some(event) => {
                    let event = wire::WatchDeclaredResponse { event: Some(event) };
                    Some((Ok(event), Some((watch, shutdown))))
                }
                None => Some((Err(shutting_down()), None)),
            }
        });
        Ok(Response::new(Box::pin(events)))
    }
}

impl Service {
    async fn declare(&self, request: wire::ApplyObjectRequest) -> Result<wire::ApplyObjectResponse, Status> {
        let kind = kind_of(request.kind())?;
        let owner = Owner::read(request.owner)?;
        let Owner { namespace, object, claim } = owner;
        let definition = definition_of_object(kind, &namespace, &object, &request.spec)
            .map_err(|lines| wrong_fields(&lines))?;
        if definition.name != request.name {
            let problem = format!(
                "name: `{}` is not what the spec says, which is `{}`; send that one",
                request.name, definition.name
            );
            return Err(invalid("name", &problem));
        }
        name_of(kind, &definition.name).map_err(|status| with_reason(status, "Invalid"))?;
        let writer = request.writer;
        let declare = |core: Arc<Core>| async move {
            let declared = core.declare(&Declare { definition: &definition, claim: &claim, writer }).await?;
            tell(&declared);
            Ok(declared)
        };
        let declared = self.to_the_end(declare).await?.map_err(|error| explained(&error))?;
        let object = &declared.object;
        let before = declared.before.as_ref();
        Ok(wire::ApplyObjectResponse {
            outcome: match declared.outcome {
                Outcome::Created => wire::ApplyOutcome::Created,
                Outcome::Updated => wire::ApplyOutcome::Updated,
                Outcome::Unchanged => wire::ApplyOutcome::Unchanged,
                Outcome::Adopted => wire::ApplyOutcome::Adopted,
            }
            .into(),
            drifted: declared.drifted,
            changed: before.map(|before| changed_fields(before, &object.definition)).unwrap_or_default(),
            generation: object.generation,
            hash: object.definition.hash(),
            conditions: self.conditions(object, CONDITIONS_WAIT).await,
        })
    }

    async fn release(
        &self,
        request: wire::ReleaseObjectRequest,
    ) -> Result<wire::ReleaseObjectResponse, Status> {
        let kind = kind_of(request.kind())?;
        let delete_data = delete_data(request.policy());
        let Owner { namespace, object, claim } = Owner::read(request.owner)?;
        let (name, writer) = (request.name, request.writer);
        let release = |core: Arc<Core>| async move {
            let release = Release {
                kind,
                name: &name,
                cluster: &claim.cluster,
                namespace: &namespace,
                object: &object,
                writer,
                delete_data,
                now: core.now(),
            };
            let released = core.release(&release).await?;
            let outcome = match released {
                Released::Orphaned => wire::ReleaseOutcome::Released,
                Released::Removed(_) => wire::ReleaseOutcome::Deleted,
                Released::Missing => wire::ReleaseOutcome::Missing,
                Released::NotOwned => wire::ReleaseOutcome::NotOwned,
            };
            let outcome_name = outcome.as_str_name();
            tracing::info!(
                kind = word(kind),
                name,
                namespace,
                object,
                outcome = outcome_name,
                "was released"
            );
            Ok(outcome)
        };
        let outcome = self.to_the_end(release).await?.map_err(|error| explained(&error))?;
        Ok(wire::ReleaseObjectResponse { outcome: outcome.into() })
    }

    async fn list(&self, request: wire::ListDeclaredRequest) -> Result<wire::ListDeclaredResponse, Status> {
        let after = Some(request.page).filter(|page| !page.is_empty()).map(|page| read_page(&page));
        let after = after.transpose()?;
        let limit = match usize::try_from(request.page_size).unwrap_or(PAGE_MAX) {
            0 => PAGE_DEFAULT,
            limit => limit.min(PAGE_MAX),
        };
        let cluster = request.cluster;
        let is_wanted = |origin: &Origin| {
            cluster.is_empty() || origin.claim().is_some_and(|claim| claim.cluster == cluster)
        };
        let catalog = self.core.catalog();
        let mut found = catalog.page(after.as_ref(), limit + 1, |entry| is_wanted(&entry.origin)).await;
        let more = found.len() > limit;
        found.truncate(limit);
        let next_page = match found.last() {
            Some(Found { entry }) if more => page(entry.definition.kind, &entry.definition.name),
            _ => String::new(),
        };
        let clock = Clock::system();
        let until = clock.now() + PAGE_CONDITIONS_WAIT;
        let asked = found.into_iter().map(|found| async move {
            let conditions = match self.in_use(&found) {
                Some(object) if request.with_conditions => {
                    let wait = until.saturating_duration_since(clock.now()).min(CONDITIONS_WAIT);
                    self.conditions(&object, wait).await
                }
                _ => Vec::new(),
            };
            wire::DeclaredObject { conditions, ..declared_object(&found) }
        });
        let objects = stream::iter(asked).buffered(ASKED_AT_ONCE).collect().await;
        Ok(wire::ListDeclaredResponse { objects, next_page })
    }

    fn in_use(&self, found: &Found) -> Option<Arc<Object>> {
        let Definition { kind, name, .. } = &found.entry.definition;
        self.core.catalog().view().find(*kind, name)
    }

    /// How a queue or stream is, as far as its shards say so in time.
    async fn conditions(&self, object: &Arc<Object>, wait: Duration) -> Vec<wire::Condition> {
        let unknown = |message: String| {
            vec![wire::Condition {
                r#type: "Ready".into(),
                status: "Unknown".into(),
                reason: "NotAnswering".into(),
                message,
            }]
        };
        match tokio::time::timeout(wait, self.reports(object)).await {
            Ok(Ok(reports)) => conditions(object, &reports),
            Ok(Err(error)) => match Reports::damaged(&error) {
                Some(reports) => conditions(object, &reports),
                None => unknown(format!("its shards do not answer: {error}")),
            },
            Err(_) => unknown("its shards do not answer in time".to_owned()),
        }
    }
}

/// What a client of `WatchDeclared` has not been told yet.
struct Watch {
    told: broadcast::Receiver<(Kind, String)>,
    core: Arc<Core>,
    /// To be told next, the last one first.
    ready: Vec<Event>,
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.ready.pop() {
                return event;
            }
            let mut names = BTreeSet::new();
            match self.told.recv().await {
                Ok(name) => _ = names.insert(name),
                Err(RecvError::Lagged(_)) => return Event::Reload(wire::DeclaredReload {}),
                // The catalog is gone, and with it this process.
                Err(RecvError::Closed) => std::future::pending().await,
            }
            while names.len() < TOLD_AT_ONCE {
                match self.told.try_recv() {
                    Ok(name) => _ = names.insert(name),
                    Err(TryRecvError::Lagged(_)) => return Event::Reload(wire::DeclaredReload {}),
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
            for (kind, name) in names.into_iter().rev() {
                let event = match self.core.catalog().found(kind, &name).await {
                    Some(found) => Event::Changed(declared_object(&found)),
                    None => {
                        let kind = kind_to(kind).into();
                        Event::Gone(wire::DeclaredObject { kind, name, ..wire::DeclaredObject::default() })
                    }
                };
                self.ready.push(event);
            }
        }
    }
}

fn declared_object(found: &Found) -> wire::DeclaredObject {
    let entry = &found.entry;
    let Definition { kind, name, namespace, object, .. } = &entry.definition;
    let claim = entry.origin.claim();
    wire::DeclaredObject {
        kind: kind_to(*kind).into(),
        name: name.clone(),
        owner: Some(wire::ObjectOwner {
            cluster: claim.map(|claim| claim.cluster.clone()).unwrap_or_default(),
            namespace: namespace.clone(),
            object: object.clone(),
            uid: claim.map(|claim| claim.uid.clone()).unwrap_or_default(),
            generation: claim.map(|claim| claim.generation).unwrap_or_default(),
        }),
        origin: entry.origin.as_str().to_owned(),
        state: match entry.state {
            EntryState::Active => wire::DeclaredState::Active,
            EntryState::Orphaned => wire::DeclaredState::Orphaned,
        }
        .into(),
        generation: entry.generation,
        hash: entry.definition.hash(),
        conditions: Vec::new(),
    }
}

/// Says in the log what was declared.
fn tell(declared: &Declared) {
    let Definition { kind, name, namespace, object, .. } = &declared.object.definition;
    let what = match declared.outcome {
        Outcome::Created => "was created",
        Outcome::Updated => "was changed",
        Outcome::Adopted => "was adopted",
        Outcome::Unchanged => return,
    };
    let (generation, drifted) = (declared.object.generation, declared.drifted);
    tracing::info!(
        kind = word(*kind),
        name,
        namespace,
        object,
        generation,
        drifted,
        origin = "operator",
        "{what}"
    );
}

fn kind_of(kind: wire::ObjectKind) -> Result<Kind, Status> {
    match kind {
        wire::ObjectKind::Queue => Ok(Kind::Queue),
        wire::ObjectKind::Stream => Ok(Kind::Stream),
        wire::ObjectKind::Unspecified => Err(invalid("kind", "kind: is missing; allowed: QUEUE, STREAM")),
    }
}

const fn kind_to(kind: Kind) -> wire::ObjectKind {
    match kind {
        Kind::Queue => wire::ObjectKind::Queue,
        Kind::Stream => wire::ObjectKind::Stream,
    }
}

fn page(kind: Kind, name: &str) -> String {
    format!("{}/{name}", word(kind))
}

fn read_page(page: &str) -> Result<(Kind, String), Status> {
    let kinds = [Kind::Queue, Kind::Stream].into_iter();
    let mut read = kinds.filter_map(|kind| {
        let name = page.strip_prefix(word(kind))?.strip_prefix('/')?;
        Some((kind, name.to_owned()))
    });
    let problem = "page: is not a `next_page` of an answer; leave it out to begin";
    read.next().ok_or_else(|| invalid("page", problem))
}

fn cluster_id(cluster: String) -> Result<String, Status> {
    if is_dns_name(&cluster, CLUSTER_BYTES_MAX) && !cluster.contains('.') {
        return Ok(cluster);
    }
    let problem = format!(
        "owner.cluster: {cluster:?} is not an id of a cluster; allowed: 1 to {CLUSTER_BYTES_MAX} lower-case letters, digits \
         and `-`, such as `default`"
    );
    Err(invalid("owner.cluster", &problem))
}

fn is_dns_name(name: &str, bytes_max: usize) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    (1..=bytes_max).contains(&bytes.len())
        && bytes.iter().copied().all(is_inner)
        && is_end(bytes.first())
        && is_end(bytes.last())
}

fn with_reason(mut status: Status, reason: &'static str) -> Status {
    status.metadata_mut().insert(REASON, MetadataValue::from_static(reason));
    status
}

fn with_text(mut status: Status, key: &'static str, text: &str) -> Status {
    // Paths and names of objects are ASCII; what is not is in the message all the same.
    if let Ok(text) = MetadataValue::try_from(text) {
        status.metadata_mut().insert(key, text);
    }
    status
}

fn invalid(field: &str, problem: &str) -> Status {
    with_text(with_reason(Status::invalid_argument(problem), "Invalid"), FIELD, field)
}

fn wrong_fields(lines: &[String]) -> Status {
    let path = |line: &String| {
        let line =
            line.split_once(": ").filter(|(place, _)| place.starts_with("line ")).map_or(&**line, |l| l.1);
        line.split_once(": ").map(|(path, _)| path.to_owned()).filter(|path| path.starts_with("spec"))
    };
    let field = lines.iter().find_map(path).unwrap_or_else(|| "spec".to_owned());
    invalid(&field, &lines.join("\n"))
}

/// What an operator is told of a change that was not made.
fn explained(error: &ChangeError) -> Status {
    let status = refused(error);
    match error {
        ChangeError::StaleWriter { .. } => with_reason(status, "StaleWriter"),
        ChangeError::StaleGeneration { .. } => with_reason(status, "StaleGeneration"),
        ChangeError::Refused(ApplyError::Invalid { refusal, field, .. }) => {
            let reason = match refusal {
                Refusal::Field => "Invalid",
                Refusal::NameConflict { .. } => "NameConflict",
                Refusal::ImmutableMismatch => "ImmutableMismatch",
                Refusal::TooMany => "TooMany",
            };
            let status = with_text(with_reason(status, reason), FIELD, field);
            match refusal {
                Refusal::NameConflict { owner } => with_text(status, OWNER, owner),
                Refusal::Field | Refusal::ImmutableMismatch | Refusal::TooMany => status,
            }
        }
        ChangeError::Refused(ApplyError::Failed(_))
        | ChangeError::Exists { .. }
        | ChangeError::Missing { .. }
        | ChangeError::Declared { .. }
        | ChangeError::Changed { .. } => status,
    }
}
