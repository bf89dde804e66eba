//! Single queues and streams: made, changed and deleted, and what follows from it in the shards.
//!
//! A deletion is noted in the store with the catalog's change, and forgotten once every record is gone: whatever stops
//! it half-way, it is finished later. The catalog and the shard owners hold all state.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use weir_env::clock::Timestamp;

use crate::catalog::{
    ChangeError, Declare, Declared, Deleted, Object, Origin, Outcome, Refreshed, Release, Released,
};
use crate::cluster::{Change, FeedEvent, Topic};
use crate::core::{Core, told};
use crate::definition::{Definition, Kind};
use crate::error::Result;
use crate::keyspace::catalog::EntryState;
use crate::shard::Command;

/// Changes of other pods taken up at once.
const EVENTS_MAX: usize = 1_000;
/// Wait before a store that failed is read again.
const REFRESH_RETRY: Duration = Duration::from_millis(500);

impl Core {
    /// Makes a queue or stream.
    ///
    /// # Errors
    /// See [`Catalog::create`](crate::catalog::Catalog::create).
    pub async fn create(
        &self,
        definition: &Definition,
        origin: Origin,
    ) -> std::result::Result<Arc<Object>, ChangeError> {
        self.catalog().create(definition, origin).await
    }

    /// Changes a queue or stream in place, also for those who consume it now.
    ///
    /// # Errors
    /// See [`Catalog::update`](crate::catalog::Catalog::update).
    pub async fn update(
        &self,
        definition: &Definition,
        generation: u64,
    ) -> std::result::Result<Arc<Object>, ChangeError> {
        self.update_as(definition, generation, false).await
    }

    /// As [`Core::update`], also what an object of a Kubernetes cluster declares if somebody insists.
    ///
    /// # Errors
    /// See [`Catalog::update`](crate::catalog::Catalog::update).
    pub async fn update_as(
        &self,
        definition: &Definition,
        generation: u64,
        insist: bool,
    ) -> std::result::Result<Arc<Object>, ChangeError> {
        let object = self.catalog().update(definition, generation, insist).await?;
        self.follow_change(&object).await;
        Ok(object)
    }

    /// Has a queue or stream be what an object of a Kubernetes cluster declares, and its shards follow.
    ///
    /// # Errors
    /// See [`Catalog::declare`](crate::catalog::Catalog::declare).
    pub async fn declare(&self, declare: &Declare<'_>) -> std::result::Result<Declared, ChangeError> {
        let declared = self.catalog().declare(declare).await?;
        if declared.is_news && declared.outcome != Outcome::Created {
            self.follow_change(&declared.object).await;
        }
        Ok(declared)
    }

    /// Ends what an object of a Kubernetes cluster has declared.
    ///
    /// # Errors
    /// See [`Catalog::release`](crate::catalog::Catalog::release).
    pub async fn release(&self, release: &Release<'_>) -> std::result::Result<Released, ChangeError> {
        let released = self.catalog().release(release).await?;
        if let Released::Removed(object) = &released {
            self.remove_soon(object).await;
        }
        Ok(released)
    }

    /// The change is stored: a shard that does not hear of it now does with the next thing it is asked.
    async fn follow_change(&self, object: &Arc<Object>) {
        if let Err(error) = self.follow(object).await {
            tracing::warn!(name = object.definition.name, %error, "a change takes effect later");
        }
    }

    /// The deletion is stored: what is not removed now is later.
    async fn remove_soon(&self, object: &Object) {
        if let Err(error) = self.remove_records(object).await {
            let name = &object.definition.name;
            tracing::warn!(name, %error, "records of a deleted queue or stream are removed later");
        }
    }

    /// Ends deliveries of a queue until it is resumed, or resumes it. What consumers hold they may still acknowledge.
    ///
    /// # Errors
    /// See [`Catalog::pause`](crate::catalog::Catalog::pause).
    pub async fn pause(&self, name: &str, paused: bool) -> std::result::Result<Arc<Object>, ChangeError> {
        let object = self.catalog().pause(name, paused).await?;
        if let Err(error) = self.follow(&object).await {
            tracing::warn!(name = object.definition.name, %error, "a pause takes effect later");
        }
        Ok(object)
    }

    /// Deletes a queue or stream; `delete_data` says what becomes of its records, by default as it was declared.
    ///
    /// # Errors
    /// See [`Catalog::delete`](crate::catalog::Catalog::delete).
    pub async fn delete(
        &self,
        kind: Kind,
        name: &str,
        delete_data: Option<bool>,
    ) -> std::result::Result<Deleted, ChangeError> {
        self.delete_as(kind, name, (delete_data, false)).await
    }

    /// As [`Core::delete`], also what an object of a Kubernetes cluster declares if somebody insists.
    ///
    /// # Errors
    /// See [`Catalog::delete`](crate::catalog::Catalog::delete).
    pub async fn delete_as(
        &self,
        kind: Kind,
        name: &str,
        (delete_data, insist): (Option<bool>, bool),
    ) -> std::result::Result<Deleted, ChangeError> {
        let now = self.context.clock.wall();
        let deleted = self.catalog().delete(kind, name, (delete_data, insist), now).await?;
        if let Deleted::Removed(object) = &deleted {
            self.remove_soon(object).await;
        }
        Ok(deleted)
    }

    /// Removes the records of what was deleted before `before`, again if need be: who did not know of the deletion yet
    /// may have added some since. Returns how many deletions are finished.
    ///
    /// # Errors
    /// If the store or a shard fails, the first failure, after all others were done; calling again goes on.
    pub async fn finish_deletions(&self, before: Timestamp) -> Result<usize> {
        let removals = self.catalog().removals(before).await?;
        let mut outcome = Ok(());
        for object in &removals {
            outcome = outcome.and(told(self.finish_deletion(object).await, object, "remove records"));
        }
        outcome.map(|()| removals.len())
    }

    async fn finish_deletion(&self, object: &Object) -> Result<()> {
        self.remove_records(object).await?;
        self.catalog().removed(object.id).await
    }

    /// Sees to it that what orphans hold goes when its time comes, although nobody asks for them.
    ///
    /// # Errors
    /// If a shard cannot be taken over or read, the first of them, after all others were; calling again goes on.
    pub async fn age_orphans(&self) -> Result<()> {
        let mut outcome = Ok(());
        for (state, object) in self.catalog().stored().await {
            if state == EntryState::Orphaned && object.definition.retention.max_age_ms != 0 {
                // An owner looks after the logs that it has in memory.
                let taken_up = self.describe(&object).await.map(drop);
                outcome = outcome.and(told(taken_up, &object, "take up what an orphan holds"));
            }
        }
        outcome
    }

    /// Takes up what other pods do to queues and streams, until `stop`. Ends at once without other pods.
    pub async fn follow_others(&self, stop: &CancellationToken) {
        let Some(cluster) = self.cluster() else { return };
        let mut receiver = cluster.feed().subscribe(&[Topic::Catalog]);
        while let Some(events) = stop.run_until_cancelled(receiver.next_many(EVENTS_MAX)).await {
            let mut names = Some(Vec::new());
            for event in &events {
                match event {
                    FeedEvent::Reload { .. } => names = None,
                    FeedEvent::Change { change, .. } => {
                        if let (Some(names), Change::Catalog { kind, name }) = (&mut names, &**change) {
                            names.push((*kind, name.to_string()));
                        }
                    }
                }
            }
            while let Err(error) = self.refresh(names.as_deref()).await {
                tracing::warn!(%error, "changes of queues and streams wait: the store does not answer");
                if stop.run_until_cancelled(tokio::time::sleep(REFRESH_RETRY)).await.is_none() {
                    return;
                }
            }
        }
    }

    /// Takes up what another pod has done to these queues and streams, or to any of them.
    ///
    /// # Errors
    /// If the store fails or an entry is damaged; calling again goes on.
    pub async fn refresh(&self, changed: Option<&[(Kind, String)]>) -> Result<()> {
        let Refreshed { updated, deleted } = match changed {
            Some(names) => self.catalog().refresh(names).await?,
            None => self.catalog().reload().await?,
        };
        for object in &deleted {
            self.groups().forget(object).await;
        }
        let owns = |vs| self.cluster().is_none_or(|cluster| cluster.owner_of(vs) == Some(cluster.me()));
        for object in &updated {
            if object.definition.kind == Kind::Stream {
                self.groups().follow(object).await;
            }
            // Other shards hear it from their owners.
            for log in object.logs.iter().filter(|log| owns(log.vs)) {
                let update = Command::Update { object: Arc::clone(object), log: *log };
                self.shard(log.vs)?.send(update).await?;
            }
        }
        Ok(())
    }

    /// Tells the shards of a changed queue or stream.
    pub(crate) async fn follow(&self, object: &Arc<Object>) -> Result<()> {
        if object.definition.kind == Kind::Stream {
            self.groups().follow(object).await;
        }
        for log in &object.logs {
            let update = Command::Update { object: Arc::clone(object), log: *log };
            self.shard(log.vs)?.send(update).await?;
        }
        Ok(())
    }

    pub(crate) async fn remove_records(&self, object: &Object) -> Result<()> {
        self.groups().forget(object).await;
        for log in &object.logs {
            self.shard(log.vs)?.ask(|reply| Command::Delete { log: *log, reply }).await??;
        }
        Ok(())
    }
}
