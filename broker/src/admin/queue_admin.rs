//! Making, changing and deleting queues for callers of the admin API.
//!
//! What a queue is to be comes as the `spec` of its manifest, and is judged as one. The catalog holds what is made.

use std::sync::Arc;

use serde_json::Value;
use tonic::Status;
use weir_core::Core;
use weir_core::catalog::{ApplyError, ChangeError, Deleted, Object, Origin};
use weir_core::definition::{Definition, Kind};
use weir_proto::admin::v1 as wire;
use weir_proto::admin::v1::update_queue_request::Change;
use weir_topic::ObjectName;

use super::convert::word;
use super::{Service, convert};
use crate::manifests::{merge, queue_of, spec_of};

/// Times that a change is made anew because somebody else changed the same queue.
const ATTEMPTS_MAX: usize = 5;

impl Service {
    pub(super) async fn make_queue(
        &self,
        request: wire::CreateQueueRequest,
    ) -> Result<wire::CreateQueueResponse, Status> {
        let name = name_of(Kind::Queue, &request.name)?;
        let namespace = if request.namespace.is_empty() { "default" } else { &request.namespace };
        let definition = queue_of(namespace, name.as_str(), &request.spec).map_err(|lines| bad(&lines))?;
        let create = |core: Arc<Core>| async move {
            let made = core.create(&definition, Origin::Admin).await?;
            let name = &made.definition.name;
            tracing::info!(queue = name, generation = made.generation, origin = "admin", "queue was created");
            Ok(made)
        };
        let made = self.to_the_end(create).await?.map_err(|error| refused(&error))?;
        Ok(wire::CreateQueueResponse { generation: made.generation })
    }

    pub(super) async fn change_queue(
        &self,
        request: wire::UpdateQueueRequest,
    ) -> Result<wire::UpdateQueueResponse, Status> {
        let change = request.change.ok_or_else(|| bad(&["there is nothing to change".to_owned()]))?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let object = self.find(Kind::Queue, &request.name)?;
            let definition = changed(&object, &change)?;
            let generation = object.generation;
            let update = |core: Arc<Core>| async move {
                let now = core.update(&definition, generation).await?;
                let name = &now.definition.name;
                tracing::info!(
                    queue = name,
                    generation = now.generation,
                    origin = "admin",
                    "queue was changed"
                );
                Ok(now)
            };
            match self.to_the_end(update).await? {
                Ok(object) => return Ok(wire::UpdateQueueResponse { generation: object.generation }),
                Err(ChangeError::Changed { .. }) if attempts < ATTEMPTS_MAX => {}
                Err(error) => return Err(refused(&error)),
            }
        }
    }

    pub(super) async fn remove_queue(
        &self,
        request: wire::DeleteQueueRequest,
    ) -> Result<wire::DeleteQueueResponse, Status> {
        let name = name_of(Kind::Queue, &request.name)?;
        let delete_data = match request.policy() {
            wire::DeletionPolicy::Unspecified => None,
            wire::DeletionPolicy::Retain => Some(false),
            wire::DeletionPolicy::Delete => Some(true),
        };
        let delete = |core: Arc<Core>| async move {
            let name = name.as_str();
            let deleted = core.delete(Kind::Queue, name, delete_data).await?;
            let retained = matches!(deleted, Deleted::Orphaned);
            tracing::info!(queue = name, retained, origin = "admin", "queue was deleted");
            Ok(deleted)
        };
        let deleted = self.to_the_end(delete).await?.map_err(|error| refused(&error))?;
        Ok(wire::DeleteQueueResponse { retained: matches!(deleted, Deleted::Orphaned) })
    }

    /// Does something that must not end half-way because its caller has gone or waited too long.
    pub(super) async fn to_the_end<T, F>(&self, change: impl FnOnce(Arc<Core>) -> F) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let changing = self.tasks.spawn(change(Arc::clone(&self.core)));
        changing.await.map_err(|_| convert::shutting_down())
    }
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
    let definition = queue_of(&before.namespace, &before.name, &spec).map_err(|lines| bad(&lines))?;
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
        ChangeError::Missing { .. } => {
            Status::not_found(format!("{text}; `weir queue list` shows what there is"))
        }
        ChangeError::Declared { .. } => Status::failed_precondition(text),
        ChangeError::Changed { .. } => Status::aborted(format!("{text}; try again")),
        ChangeError::Refused(ApplyError::Failed(_)) => Status::unavailable(format!("{text}; try again")),
        // Of the whole `spec`: it does not fit what is stored. Of the name: there are too many.
        ChangeError::Refused(ApplyError::Invalid { field: "spec", .. }) => Status::failed_precondition(text),
        ChangeError::Refused(ApplyError::Invalid { field: "metadata.name", .. }) => {
            Status::resource_exhausted(text)
        }
        ChangeError::Refused(ApplyError::Invalid { .. }) => Status::invalid_argument(text),
    }
}
