//! One queue or stream at a time: made, changed or deleted by a person or by a subscription, beside the sets of
//! manifests. What manifests declare is theirs: only a set changes or retires it. What objects of Kubernetes clusters
//! declare is their operator's (`declared`), unless somebody insists.

use std::sync::Arc;

use parking_lot::Mutex;
use tracing::Instrument;
use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery, Transaction, transact};

use super::declared::{self, Declare, Release};
use super::rules::{check, declared_elsewhere, kind_name, plan_one, too_many};
use super::{ApplyError, Catalog, OBJECTS_MAX, Object, Plan, Tell, read_next_id, remove};
use crate::definition::{Definition, Kind};
use crate::error::Error;
use crate::keyspace::catalog::{self, CatalogEntry, EntryState, Origin, Removal};

/// Why one queue or stream was not changed. Nothing was.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChangeError {
    /// One of this name exists.
    #[error("{kind} `{name}` exists already")]
    Exists {
        /// `MessageQueue` or `Stream`.
        kind: &'static str,
        /// Of the queue or stream.
        name: String,
    },
    /// None of this name exists.
    #[error("there is no {kind} `{name}`")]
    Missing {
        /// `MessageQueue` or `Stream`.
        kind: &'static str,
        /// Of the queue or stream.
        name: String,
    },
    /// It is not for who asks to change it.
    #[error("{kind} `{name}` is declared by {by}")]
    Declared {
        /// `MessageQueue` or `Stream`.
        kind: &'static str,
        /// Of the queue or stream.
        name: String,
        /// Who declares it, and what to do.
        by: String,
    },
    /// A newer writer of the same Kubernetes cluster is there, or this one is not known.
    #[error(
        "writer {writer} of the Kubernetes cluster `{cluster}` may not write: the newest is {newest}; \
         stop, or acquire one if no other operator of this cluster id runs"
    )]
    StaleWriter {
        /// Id of the cluster.
        cluster: String,
        /// Who asked.
        writer: u64,
        /// Who may; zero: nobody has acquired one.
        newest: u64,
    },
    /// The object has been declared at a later generation.
    #[error("{kind} `{name}` is declared at generation {stored} of its object already; {asked} is older")]
    StaleGeneration {
        /// `MessageQueue` or `Stream`.
        kind: &'static str,
        /// Of the queue or stream.
        name: String,
        /// Of the object.
        stored: u64,
        /// Of the object.
        asked: u64,
    },
    /// Somebody else has changed it since it was looked at.
    #[error("{kind} `{name}` has changed meanwhile")]
    Changed {
        /// `MessageQueue` or `Stream`.
        kind: &'static str,
        /// Of the queue or stream.
        name: String,
    },
    /// The declaration cannot be, or the store failed.
    #[error(transparent)]
    Refused(#[from] ApplyError),
}

/// What became of a queue or stream that was deleted.
#[derive(Clone, Debug)]
pub enum Deleted {
    /// It takes no more messages; what it holds stays, for one of its name to take over.
    Orphaned,
    /// It is gone, and its records are to be removed.
    Removed(Arc<Object>),
}

/// What is to become of an entry.
#[derive(Debug)]
pub(super) enum Op<'a> {
    Create { definition: &'a Definition, origin: Origin },
    Update { definition: &'a Definition, generation: u64, insist: bool },
    Delete { delete_data: Option<bool>, now: Timestamp, insist: bool },
    Pause { paused: bool },
    Declare(&'a Declare<'a>),
    Release(&'a Release<'a>),
}

impl Op<'_> {
    /// The definition of what may be new.
    const fn definition(&self) -> Option<&Definition> {
        match self {
            Self::Create { definition, .. } | Self::Declare(Declare { definition, .. }) => Some(definition),
            Self::Update { .. } | Self::Delete { .. } | Self::Pause { .. } | Self::Release(_) => None,
        }
    }

    /// The Kubernetes cluster and the writer that asks, which must be its newest.
    const fn writer(&self) -> Option<(&str, u64)> {
        match self {
            Self::Declare(declare) => Some((declare.claim.cluster.as_str(), declare.writer)),
            Self::Release(release) => Some((release.cluster, release.writer)),
            Self::Create { .. } | Self::Update { .. } | Self::Delete { .. } | Self::Pause { .. } => None,
        }
    }

    const fn now(&self) -> Option<Timestamp> {
        match self {
            Self::Delete { now, .. } | Self::Release(Release { now, .. }) => Some(*now),
            Self::Create { .. } | Self::Update { .. } | Self::Pause { .. } | Self::Declare(_) => None,
        }
    }
}

/// What is made of an entry.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Kept(CatalogEntry),
    Removed(CatalogEntry),
}

/// What a transaction made of an entry.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub(super) change: Change,
    /// What was there.
    pub(super) before: Option<CatalogEntry>,
    /// This process knew something else.
    pub(super) is_news: bool,
}

impl Made {
    /// Whether all is as it was.
    fn is_nothing(&self) -> bool {
        matches!((&self.change, &self.before), (Change::Kept(after), Some(before)) if after == before)
    }
}

type Changed = Result<Made, ChangeError>;

impl Catalog {
    /// Makes a queue or stream, or takes over an orphan of its name whose immutable fields are the same.
    ///
    /// # Errors
    /// If there is one of its name, it cannot be, or the store fails.
    pub async fn create(&self, definition: &Definition, origin: Origin) -> Result<Arc<Object>, ChangeError> {
        check(definition)?;
        let change =
            self.change(definition.kind, &definition.name, Op::Create { definition, origin }).await?;
        Ok(self.of(&change.change))
    }

    /// Gives a queue or stream another definition, if its generation is still `generation`. Who insists may do so with
    /// what an object of a Kubernetes cluster declares.
    ///
    /// # Errors
    /// If there is none, it is declared elsewhere, it has changed, the definition cannot be or differs in what is
    /// immutable, or the store fails.
    pub async fn update(
        &self,
        definition: &Definition,
        generation: u64,
        insist: bool,
    ) -> Result<Arc<Object>, ChangeError> {
        check(definition)?;
        let op = Op::Update { definition, generation, insist };
        let made = self.change(definition.kind, &definition.name, op).await?;
        Ok(self.of(&made.change))
    }

    /// Deletes a queue or stream, an orphaned one too. `delete_data` says whether its records are removed; by
    /// default, as it was declared. Who insists may do so with what an object of a Kubernetes cluster declares.
    ///
    /// # Errors
    /// If there is none, it is declared elsewhere, or the store fails.
    pub async fn delete(
        &self,
        kind: Kind,
        name: &str,
        (delete_data, insist): (Option<bool>, bool),
        now: Timestamp,
    ) -> Result<Deleted, ChangeError> {
        let made = self.change(kind, name, Op::Delete { delete_data, now, insist }).await?;
        Ok(match &made.change {
            Change::Kept(_) => Deleted::Orphaned,
            Change::Removed(_) => Deleted::Removed(self.of(&made.change)),
        })
    }

    /// Pauses or resumes a queue, whoever declared it.
    ///
    /// # Errors
    /// If there is none, or the store fails.
    pub async fn pause(&self, name: &str, paused: bool) -> Result<Arc<Object>, ChangeError> {
        let made = self.change(Kind::Queue, name, Op::Pause { paused }).await?;
        Ok(self.of(&made.change))
    }

    /// Queues and streams that were deleted before `before` and whose records may not all be removed.
    ///
    /// # Errors
    /// If the store fails or a record is damaged.
    pub async fn removals(&self, before: Timestamp) -> crate::error::Result<Vec<Arc<Object>>> {
        let (begin, end) = Removal::range();
        let (begin, end) = (begin.into(), end.into());
        let query = RangeQuery { begin, end, limit: OBJECTS_MAX, target_bytes: 0, reverse: false };
        let mut tx = self.store.begin();
        let mut objects = Vec::new();
        for (_, value) in tx.get_range(query, Isolation::Snapshot).await?.pairs {
            let removal = Removal::decode(value)?;
            if removal.at < before {
                objects.push(self.object(&removal.entry));
            }
        }
        Ok(objects)
    }

    /// Forgets a deletion: nothing is left of it.
    ///
    /// # Errors
    /// If the store fails; calling again is harmless.
    pub async fn removed(&self, id: u32) -> crate::error::Result<()> {
        let mut tx = self.store.begin();
        tx.clear(&Removal::key(id));
        tx.commit().await?;
        Ok(())
    }

    /// Changes one entry in the store, and takes up what became of it.
    pub(super) async fn change(&self, kind: Kind, name: &str, op: Op<'_>) -> Changed {
        let mut entries = self.entries.lock().await;
        let key = (kind, name.to_owned());
        if let Some(definition) = op.definition()
            && entries.len() >= OBJECTS_MAX
            && !entries.contains_key(&key)
        {
            return Err(too_many(definition).into());
        }
        // What an attempt made whose outcome was unknown: the next one must know its own work.
        let attempted = Mutex::new(None);
        let tell = Tell(self.cluster.as_ref());
        let changed =
            transact(&*self.store, |tx| Box::pin(change_in(tx, (kind, name), &op, &attempted, tell)));
        let span = tracing::debug_span!("catalog change", kind = kind_name(kind), name);
        let (made, committed) =
            changed.instrument(span).await.map_err(|error| ApplyError::from(Error::Store(error)))?;
        let mut made = match made {
            // Gone by an attempt whose outcome was unknown, or at another process.
            Err(error @ ChangeError::Missing { .. }) if entries.remove(&key).is_some() => {
                self.publish(&entries);
                self.tell_of(key);
                return Err(error);
            }
            made => made?,
        };
        // It may have known less than the store: of another process, or of an attempt whose outcome was unknown.
        made.is_news = match &made.change {
            Change::Kept(entry) => {
                entries.insert(key.clone(), entry.clone()).is_none_or(|known| known != *entry)
            }
            Change::Removed(_) => entries.remove(&key).is_some(),
        };
        if made.is_news {
            self.publish(&entries);
            self.tell_of(key);
        }
        drop(entries);
        if !made.is_nothing() {
            self.known_everywhere(committed.version).await;
        }
        Ok(made)
    }

    pub(super) fn of(&self, change: &Change) -> Arc<Object> {
        let (Change::Kept(entry) | Change::Removed(entry)) = change;
        self.object(entry)
    }
}

async fn change_in(
    tx: &mut dyn Transaction,
    (kind, name): (Kind, &str),
    op: &Op<'_>,
    attempted: &Mutex<Option<Made>>,
    tell: Tell<'_>,
) -> weir_storage::Result<Changed> {
    let key = CatalogEntry::key(kind, name);
    let damaged = |error| ApplyError::from(error).into();
    let stored = match tx.get(&key, Isolation::Serializable).await?.map(CatalogEntry::decode).transpose() {
        Ok(stored) => stored,
        Err(error) => return Ok(Err(damaged(Error::Record(error)))),
    };
    let earlier = attempted.lock().clone();
    if let Some(made) = earlier {
        match (&stored, &made.change) {
            (Some(entry), Change::Kept(kept)) if entry == kept => return Ok(Ok(made)),
            (None, Change::Removed(_)) => return Ok(Ok(made)),
            _ => {}
        }
    }
    if let Some((cluster, writer)) = op.writer()
        && let Err(error) = declared::fence(tx, cluster, writer).await?
    {
        return Ok(Err(error));
    }
    let mut next_id = match read_next_id(tx).await? {
        Ok(id) => id,
        Err(error) => return Ok(Err(damaged(error))),
    };
    let first_free = next_id;
    let change = match planned(stored.clone(), (kind, name), op, &mut next_id) {
        Ok(change) => change,
        Err(error) => return Ok(Err(error)),
    };
    let made = Made { change, before: stored, is_news: false };
    if made.is_nothing() {
        return Ok(Ok(made));
    }
    if next_id != first_free {
        tx.set(&catalog::next_id_key(), &catalog::encode_next_id(next_id));
    }
    match (&made.change, op.now()) {
        (Change::Kept(entry), _) => tx.set(&key, &entry.encode()),
        (Change::Removed(entry), Some(now)) => remove(tx, entry, now),
        (Change::Removed(_), None) => {}
    }
    tell.others(tx, kind, name);
    *attempted.lock() = Some(made.clone());
    Ok(Ok(made))
}

/// What `op` makes of the entry that is stored.
fn planned(
    stored: Option<CatalogEntry>,
    (kind, name): (Kind, &str),
    op: &Op<'_>,
    next_id: &mut u32,
) -> Result<Change, ChangeError> {
    let named = (kind_name(kind), name.to_owned());
    let is_active = |entry: &CatalogEntry| entry.state == EntryState::Active;
    let declared = |entry: &CatalogEntry, insist: bool| {
        let elsewhere = declared_elsewhere(entry).filter(|_| is_active(entry));
        match elsewhere {
            Some(by) if !insist || entry.origin == Origin::Manifest => {
                let (kind, name) = named.clone();
                Err(ChangeError::Declared { kind, name, by })
            }
            _ => Ok(()),
        }
    };
    let missing = || {
        let (kind, name) = named.clone();
        ChangeError::Missing { kind, name }
    };
    match op {
        Op::Create { .. } if stored.as_ref().is_some_and(is_active) => {
            let (kind, name) = named;
            Err(ChangeError::Exists { kind, name })
        }
        Op::Create { definition, origin } => defined(stored, definition, origin, next_id),
        Op::Update { definition, generation, insist } => {
            let entry = stored.filter(is_active).ok_or_else(missing)?;
            declared(&entry, *insist)?;
            if entry.generation != *generation {
                let (kind, name) = named;
                return Err(ChangeError::Changed { kind, name });
            }
            let origin = entry.origin.clone();
            defined(Some(entry), definition, &origin, next_id)
        }
        Op::Delete { delete_data, insist, .. } => {
            let entry = stored.ok_or_else(missing)?;
            declared(&entry, *insist)?;
            Ok(deleted(entry, *delete_data))
        }
        Op::Pause { paused } => {
            let mut entry = stored.filter(is_active).ok_or_else(missing)?;
            entry.generation += u64::from(entry.paused != *paused);
            entry.paused = *paused;
            Ok(Change::Kept(entry))
        }
        Op::Declare(declare) => {
            stored.as_ref().map_or(Ok(()), |entry| declare.is_newest(entry))?;
            let origin = Origin::Operator(declare.claim.clone());
            defined(stored, declare.definition, &origin, next_id)
        }
        Op::Release(release) => {
            let entry = stored.ok_or_else(missing)?;
            release.owns(&entry)?;
            Ok(deleted(entry, release.delete_data))
        }
    }
}

/// What is left of an entry whose declaration is gone.
fn deleted(mut entry: CatalogEntry, delete_data: Option<bool>) -> Change {
    if delete_data.unwrap_or(entry.definition.delete_data) {
        return Change::Removed(entry);
    }
    entry.generation += u64::from(entry.state == EntryState::Active);
    entry.state = EntryState::Orphaned;
    Change::Kept(entry)
}

/// The entry that `definition` makes of the one stored.
fn defined(
    stored: Option<CatalogEntry>,
    definition: &Definition,
    origin: &Origin,
    next_id: &mut u32,
) -> Result<Change, ChangeError> {
    let key = (definition.kind, definition.name.clone());
    let mut plan = Plan::default();
    plan.entries.extend(stored.map(|entry| (key.clone(), entry)));
    plan_one(&mut plan, definition, origin, next_id)?;
    let entry = plan.entries.remove(&key).expect("a plan has an entry for each definition");
    Ok(Change::Kept(entry))
}
