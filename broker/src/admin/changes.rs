//! Making, changing and deleting queues and streams for callers of the admin API.
//!
//! What one is to be comes as the `spec` of its manifest, and is judged as one. The catalog holds what is made.

use std::sync::Arc;

use serde_json::Value;
use tonic::Status;
use tracing::Instrument;
use weir_core::Core;
use weir_core::catalog::{ApplyError, ChangeError, Deleted, Object, Origin, Refusal};
use weir_core::definition::{Definition, Kind};
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::{update_queue_request, update_stream_request};
use weir_topic::ObjectName;

use super::convert::word;
use super::{Service, convert};
use crate::manifests::{definition_of, merge, spec_of};

/// Times that a change is made anew because somebody else changed the same queue or stream.
const ATTEMPTS_MAX: usize = 5;

/// How a queue or stream is to change.
pub(super) enum Change {
    /// Its whole `spec`.
    Spec(String),
    /// A JSON merge patch of it.
    Patch(String),
}

impl From<update_queue_request::Change> for Change {
    fn from(change: update_queue_request::Change) -> Self {
        match change {
            update_queue_request::Change::Spec(spec) => Self::Spec(spec),
            update_queue_request::Change::Patch(patch) => Self::Patch(patch),
        }
    }
}

impl From<update_stream_request::Change> for Change {
    fn from(change: update_stream_request::Change) -> Self {
        match change {
            update_stream_request::Change::Spec(spec) => Self::Spec(spec),
            update_stream_request::Change::Patch(patch) => Self::Patch(patch),
        }
    }
}

impl Service {
    /// Makes what `spec` declares; how often it has changed.
    pub(super) async fn make(
        &self,
        kind: Kind,
        name: &str,
        namespace: &str,
        spec: &str,
    ) -> Result<u64, Status> {
        let name = name_of(kind, name)?;
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        let definition = definition_of(kind, namespace, name.as_str(), spec).map_err(|lines| bad(&lines))?;
        let create = |core: Arc<Core>| async move {
            let made = core.create(&definition, Origin::Admin).await?;
            tell(&made, "was created");
            Ok(made.generation)
        };
        self.to_the_end(create).await?.map_err(|error| refused(&error))
    }

    /// Changes it in place; how often it has changed.
    pub(super) async fn change(
        &self,
        kind: Kind,
        name: &str,
        change: Option<impl Into<Change>>,
        force: bool,
    ) -> Result<u64, Status> {
        let change = change.ok_or_else(|| bad(&["there is nothing to change".to_owned()]))?.into();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let object = self.find(kind, name)?;
            let definition = changed(&object, &change)?;
            let generation = object.generation;
            let update = |core: Arc<Core>| async move {
                let now = core.update_as(&definition, generation, force).await?;
                tell(&now, "was changed");
                Ok(now.generation)
            };
            match self.to_the_end(update).await? {
                Err(ChangeError::Changed { .. }) if attempts < ATTEMPTS_MAX => {}
                outcome => return outcome.map_err(|error| refused(&error)),
            }
        }
    }

    /// Deletes it; whether its messages are kept.
    pub(super) async fn remove(
        &self,
        kind: Kind,
        name: &str,
        policy: wire::DeletionPolicy,
        force: bool,
    ) -> Result<bool, Status> {
        let name = name_of(kind, name)?;
        let delete_data = delete_data(policy);
        let delete = |core: Arc<Core>| async move {
            let name = name.as_str();
            let deleted = core.delete_as(kind, name, (delete_data, force)).await?;
            let retained = matches!(deleted, Deleted::Orphaned);
            tracing::info!(kind = word(kind), name, retained, origin = "admin", "was deleted");
            Ok(retained)
        };
        self.to_the_end(delete).await?.map_err(|error| refused(&error))
    }

    /// Does something that must not end half-way because its caller has gone or waited too long.
    pub(super) async fn to_the_end<T, F>(&self, change: impl FnOnce(Arc<Core>) -> F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let changing = self.tasks.spawn(change(Arc::clone(&self.core)).in_current_span());
        changing.await.map_err(|_| convert::shutting_down())
    }
}

/// Whether the messages of what is deleted go; none: as it was declared.
pub(super) const fn delete_data(policy: wire::DeletionPolicy) -> Option<bool> {
    match policy {
        wire::DeletionPolicy::Unspecified => None,
        wire::DeletionPolicy::Retain => Some(false),
        wire::DeletionPolicy::Delete => Some(true),
    }
}

/// Says in the log what was done to `object`.
fn tell(object: &Object, what: &'static str) {
    let Definition { kind, name, .. } = &object.definition;
    tracing::info!(kind = word(*kind), name, generation = object.generation, origin = "admin", "{what}");
}

/// What `object` is to be after `change`.
fn changed(object: &Object, change: &Change) -> Result<Definition, Status> {
    let before = &object.definition;
    let spec = match change {
        Change::Spec(spec) => spec.clone(),
        Change::Patch(patch) => {
            let patch: Value = serde_json::from_str(patch)
                .map_err(|error| bad(&[format!("the patch is not JSON: {error}")]))?;
            let mut spec = spec_of(before);
            merge(&mut spec, patch);
            spec.to_string()
        }
    };
    let definition =
        definition_of(before.kind, &before.namespace, &before.name, &spec).map_err(|lines| bad(&lines))?;
    Ok(Definition { object: before.object.clone(), ..definition })
}

pub(super) fn name_of(kind: Kind, name: &str) -> Result<ObjectName, Status> {
    ObjectName::parse(name.to_owned()).map_err(|error| {
        let allowed = "allowed: letters, digits and, behind the first, `-`, `.`, `_`";
        Status::invalid_argument(format!("not the name of a {}: {error}; {allowed}", word(kind)))
    })
}

fn bad(problems: &[String]) -> Status {
    Status::invalid_argument(problems.join("\n"))
}

/// What a caller is told of a change that was not made.
pub(super) fn refused(error: &ChangeError) -> Status {
    let text = error.to_string();
    match error {
        ChangeError::Exists { .. } => Status::already_exists(text),
        ChangeError::Missing { kind, .. } => {
            let word = if *kind == "Stream" { word(Kind::Stream) } else { word(Kind::Queue) };
            Status::not_found(format!("{text}; `weir {word} list` shows what there is"))
        }
        ChangeError::Declared { .. } => Status::failed_precondition(text),
        ChangeError::Changed { .. } => Status::aborted(format!("{text}; try again")),
        ChangeError::Refused(ApplyError::Failed(_)) => Status::unavailable(format!("{text}; try again")),
        ChangeError::StaleWriter { .. } | ChangeError::StaleGeneration { .. } => {
            Status::failed_precondition(text)
        }
        ChangeError::Refused(ApplyError::Invalid { refusal, .. }) => match refusal {
            Refusal::Field => Status::invalid_argument(text),
            Refusal::NameConflict { .. } => Status::already_exists(text),
            Refusal::ImmutableMismatch => Status::failed_precondition(text),
            Refusal::TooMany => Status::resource_exhausted(text),
        },
    }
}
