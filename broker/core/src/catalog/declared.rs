//! What operators of Kubernetes clusters declare, one object at a time.
//!
//! An operator that takes over acquires a token, a counter in the store; each change reads it in its own transaction, so
//! that whoever holds an older one changes nothing any more, however long ago its call began. No clock takes part. The
//! store holds all of it; who has a name is judged as for everybody (`rules`).

use std::ops::Bound;
use std::sync::Arc;

use tokio::sync::broadcast;
use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery, Transaction, transact};

use super::change::{Change, ChangeError, Op};
use super::rules::{check, kind_name, owner};
use super::{ApplyError, Catalog, Entries, Object};
use crate::definition::{Definition, Kind};
use crate::error::Error;
use crate::keyspace::catalog::{CatalogEntry, Claim, EntryState, NewestWriter};

/// Kubernetes clusters whose operators may ever declare queues and streams in one store.
pub const WRITERS_MAX: usize = 64;
/// Changes that who follows them may be behind; beyond, all is looked at again.
pub(super) const TOLD_MAX: usize = 1024;

/// What an object of a Kubernetes cluster declares.
#[derive(Clone, Copy, Debug)]
pub struct Declare<'a> {
    /// With the namespace and name of the object.
    pub definition: &'a Definition,
    /// The object.
    pub claim: &'a Claim,
    /// As acquired.
    pub writer: u64,
}

/// What a declaration did.
#[derive(Clone, Debug)]
pub struct Declared {
    /// As it is now.
    pub object: Arc<Object>,
    /// What was done.
    pub outcome: Outcome,
    /// The same generation of the same object had declared it, and somebody else had changed it since.
    pub drifted: bool,
    /// What it was, if there was one.
    pub before: Option<Definition>,
    /// This process knew something else.
    pub is_news: bool,
}

/// What was done for a declaration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There was none of the name.
    Created,
    /// It was the object's, and differed.
    Updated,
    /// It was so already.
    Unchanged,
    /// It was there, and is the object's now.
    Adopted,
}

/// An object of a Kubernetes cluster that declares a queue or stream no more.
#[derive(Clone, Copy, Debug)]
pub struct Release<'a> {
    /// Of what it declared.
    pub kind: Kind,
    /// Of the queue or stream.
    pub name: &'a str,
    /// Id of the cluster.
    pub cluster: &'a str,
    /// Of the object.
    pub namespace: &'a str,
    /// Name of the object.
    pub object: &'a str,
    /// As acquired.
    pub writer: u64,
    /// Whether the records are removed; by default, as it was declared.
    pub delete_data: Option<bool>,
    /// The time.
    pub now: Timestamp,
}

/// What became of a queue or stream whose object is gone.
#[derive(Clone, Debug)]
pub enum Released {
    /// It takes no more messages; what it holds stays.
    Orphaned,
    /// It is gone, and its records are to be removed.
    Removed(Arc<Object>),
    /// There is none.
    Missing,
    /// Somebody else has it.
    NotOwned,
}

/// A queue or stream as it is stored.
#[derive(Clone, Debug)]
pub struct Found {
    /// The record.
    pub entry: CatalogEntry,
}

impl Declare<'_> {
    /// Whether the object has not been declared at a later generation.
    pub(super) fn is_newest(&self, entry: &CatalogEntry) -> Result<(), ChangeError> {
        match self.known(entry) {
            Some(known) if known.generation > self.claim.generation => {
                let (kind, name) = (kind_name(entry.definition.kind), entry.definition.name.clone());
                let (stored, asked) = (known.generation, self.claim.generation);
                Err(ChangeError::StaleGeneration { kind, name, stored, asked })
            }
            _ => Ok(()),
        }
    }

    /// What this very object has declared of `entry`.
    fn known<'e>(&self, entry: &'e CatalogEntry) -> Option<&'e Claim> {
        let claim = entry.origin.claim()?;
        let (stored, asked) = (&entry.definition, self.definition);
        let same_object = stored.namespace == asked.namespace && stored.object == asked.object;
        (same_object && claim.cluster == self.claim.cluster && claim.uid == self.claim.uid).then_some(claim)
    }

    fn outcome(&self, before: Option<&CatalogEntry>) -> Outcome {
        let Some(before) = before else { return Outcome::Created };
        let is_own = before.state == EntryState::Active && self.known(before).is_some();
        match (is_own, before.definition == *self.definition) {
            (false, _) => Outcome::Adopted,
            (true, false) => Outcome::Updated,
            (true, true) => Outcome::Unchanged,
        }
    }

    fn drifted(&self, before: Option<&CatalogEntry>) -> bool {
        before.is_some_and(|before| {
            let same = self.known(before).is_some_and(|known| known.generation == self.claim.generation);
            same && (before.state != EntryState::Active || before.definition != *self.definition)
        })
    }
}

impl Release<'_> {
    /// Whether `entry` is the object's.
    pub(super) fn owns(&self, entry: &CatalogEntry) -> Result<(), ChangeError> {
        let definition = &entry.definition;
        let same_object = definition.namespace == self.namespace && definition.object == self.object;
        let same_cluster = entry.origin.claim().is_some_and(|claim| claim.cluster == self.cluster);
        if same_object && same_cluster {
            return Ok(());
        }
        let (kind, name) = (kind_name(definition.kind), definition.name.clone());
        Err(ChangeError::Declared { kind, name, by: owner(entry) })
    }
}

impl Catalog {
    /// A token for the operator of `cluster`: greater than all before. None: as many clusters as there may be have one.
    ///
    /// # Errors
    /// If the store fails or a record is damaged.
    pub async fn acquire_writer(&self, cluster: &str) -> crate::error::Result<Option<u64>> {
        let (acquired, _) =
            transact(&*self.store, |tx| Box::pin(acquire(tx, cluster))).await.map_err(Error::Store)?;
        acquired
    }

    /// Has a queue or stream be what an object of a Kubernetes cluster declares: new, changed, or taken over with its
    /// messages.
    ///
    /// # Errors
    /// If the writer is not the newest, the name is another's, the declaration cannot be or differs in what is
    /// immutable, or the store fails.
    pub async fn declare(&self, declare: &Declare<'_>) -> Result<Declared, ChangeError> {
        let definition = declare.definition;
        check(definition)?;
        let made = self.change(definition.kind, &definition.name, Op::Declare(declare)).await?;
        let before = made.before.as_ref();
        Ok(Declared {
            object: self.of(&made.change),
            outcome: declare.outcome(before),
            drifted: declare.drifted(before),
            is_news: made.is_news,
            before: made.before.map(|entry| entry.definition),
        })
    }

    /// Ends what an object of a Kubernetes cluster has declared, if it is the object's.
    ///
    /// # Errors
    /// If the writer is not the newest, or the store fails.
    pub async fn release(&self, release: &Release<'_>) -> Result<Released, ChangeError> {
        match self.change(release.kind, release.name, Op::Release(release)).await {
            Ok(made) => Ok(match &made.change {
                Change::Kept(_) => Released::Orphaned,
                Change::Removed(_) => Released::Removed(self.of(&made.change)),
            }),
            Err(ChangeError::Missing { .. }) => Ok(Released::Missing),
            Err(ChangeError::Declared { .. }) => Ok(Released::NotOwned),
            Err(error) => Err(error),
        }
    }

    /// At most `limit` queues and streams behind `after`, orphaned ones included, in the order of kinds and names.
    pub async fn page(
        &self,
        after: Option<&(Kind, String)>,
        limit: usize,
        is_wanted: impl Fn(&CatalogEntry) -> bool,
    ) -> Vec<Found> {
        let entries = self.entries.lock().await;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let wanted = entries.range((from, Bound::Unbounded)).filter(|(_, entry)| is_wanted(entry));
        wanted.take(limit).map(|(_, entry)| Found { entry: entry.clone() }).collect()
    }

    /// The queue or stream called `name`, an orphaned one too.
    pub async fn found(&self, kind: Kind, name: &str) -> Option<Found> {
        let entries = self.entries.lock().await;
        entries.get(&(kind, name.to_owned())).map(|entry| Found { entry: entry.clone() })
    }

    /// Names of queues and streams as they change from now on, whoever changes them. Who is too far behind misses some,
    /// and is told so.
    #[must_use]
    pub fn told(&self) -> broadcast::Receiver<(Kind, String)> {
        self.told.subscribe()
    }

    /// Tells who follows of what is different in two states.
    pub(super) fn tell(&self, before: &Entries, after: &Entries) {
        if self.told.receiver_count() == 0 {
            return;
        }
        let changed = after.iter().filter(|(key, entry)| before.get(*key) != Some(*entry));
        let gone = before.keys().filter(|key| !after.contains_key(*key));
        changed.map(|(key, _)| key).chain(gone).for_each(|key| self.tell_of(key.clone()));
    }

    pub(super) fn tell_of(&self, key: (Kind, String)) {
        // An error means that nobody follows.
        let _ = self.told.send(key);
    }
}

/// Reads, for conflicts too, whether `writer` is the newest of `cluster`.
pub(super) async fn fence(
    tx: &mut dyn Transaction,
    cluster: &str,
    writer: u64,
) -> weir_storage::Result<Result<(), ChangeError>> {
    let newest = tx.get(&NewestWriter::key(cluster), Isolation::Serializable).await?;
    Ok(match newest.map(NewestWriter::decode).transpose() {
        Ok(newest) if newest == Some(writer) => Ok(()),
        Ok(newest) => {
            let (cluster, newest) = (cluster.to_owned(), newest.unwrap_or(0));
            Err(ChangeError::StaleWriter { cluster, writer, newest })
        }
        Err(error) => Err(ApplyError::from(Error::Record(error)).into()),
    })
}

async fn acquire(
    tx: &mut dyn Transaction,
    cluster: &str,
) -> weir_storage::Result<crate::error::Result<Option<u64>>> {
    let key = NewestWriter::key(cluster);
    let stored = tx.get(&key, Isolation::Serializable).await?;
    let writer = match stored.map(NewestWriter::decode).transpose() {
        Ok(Some(newest)) => newest.saturating_add(1),
        Ok(None) => {
            let (begin, end) = NewestWriter::range();
            let (begin, end) = (begin.into(), end.into());
            let query = RangeQuery { begin, end, limit: WRITERS_MAX, target_bytes: 0, reverse: false };
            if tx.get_range(query, Isolation::Serializable).await?.pairs.len() >= WRITERS_MAX {
                return Ok(Ok(None));
            }
            1
        }
        Err(error) => return Ok(Err(Error::Record(error))),
    };
    tx.set(&key, &NewestWriter::encode(writer));
    Ok(Ok(Some(writer)))
}
