//! One queue or stream at a time: made, changed or deleted by a person or by a subscription, beside the sets of
//! manifests. What manifests declare is theirs: only a set changes or retires it.

use std::sync::Arc;

use parking_lot::Mutex;
use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery, Transaction, transact};

use super::{
    ApplyError, Catalog, OBJECTS_MAX, Object, Plan, Tell, check, invalid, kind_name, owner, plan_one,
    read_next_id, remove,
};
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
    /// A manifest declares it.
    #[error("{kind} `{name}` is declared by the manifest of {by}: change or remove that")]
    Declared {
        /// `MessageQueue` or `Stream`.
        kind: &'static str,
        /// Of the queue or stream.
        name: String,
        /// Namespace and name of the manifest.
        by: String,
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
enum Op<'a> {
    Create { definition: &'a Definition, origin: Origin },
    Update { definition: &'a Definition, generation: u64 },
    Delete { delete_data: Option<bool>, now: Timestamp },
    Pause { paused: bool },
}

/// What a transaction made of an entry.
#[derive(Clone, Debug)]
enum Change {
    Kept(CatalogEntry),
    Removed(CatalogEntry),
}

type Changed = Result<Change, ChangeError>;

impl Catalog {
    /// Makes a queue or stream, or takes over an orphan of its name whose immutable fields are the same.
    ///
    /// # Errors
    /// If there is one of its name, it cannot be, or the store fails.
    pub async fn create(&self, definition: &Definition, origin: Origin) -> Result<Arc<Object>, ChangeError> {
        check(definition)?;
        let change =
            self.change(definition.kind, &definition.name, Op::Create { definition, origin }).await?;
        Ok(self.of(&change))
    }

    /// Gives a queue or stream another definition, if its generation is still `generation`.
    ///
    /// # Errors
    /// If there is none, a manifest declares it, it has changed, the definition cannot be or differs in what is
    /// immutable, or the store fails.
    pub async fn update(&self, definition: &Definition, generation: u64) -> Result<Arc<Object>, ChangeError> {
        check(definition)?;
        let op = Op::Update { definition, generation };
        let change = self.change(definition.kind, &definition.name, op).await?;
        Ok(self.of(&change))
    }

    /// Deletes a queue or stream, an orphaned one too. `delete_data` says whether its records are removed; by
    /// default, as it was declared.
    ///
    /// # Errors
    /// If there is none, a manifest declares it, or the store fails.
    pub async fn delete(
        &self,
        kind: Kind,
        name: &str,
        delete_data: Option<bool>,
        now: Timestamp,
    ) -> Result<Deleted, ChangeError> {
        let change = self.change(kind, name, Op::Delete { delete_data, now }).await?;
        Ok(match &change {
            Change::Kept(_) => Deleted::Orphaned,
            Change::Removed(_) => Deleted::Removed(self.of(&change)),
        })
    }

    /// Pauses or resumes a queue, whoever declared it.
    ///
    /// # Errors
    /// If there is none, or the store fails.
    pub async fn pause(&self, name: &str, paused: bool) -> Result<Arc<Object>, ChangeError> {
        let change = self.change(Kind::Queue, name, Op::Pause { paused }).await?;
        Ok(self.of(&change))
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
    async fn change(&self, kind: Kind, name: &str, op: Op<'_>) -> Changed {
        let mut entries = self.entries.lock().await;
        if let Op::Create { definition, .. } = op
            && entries.len() >= OBJECTS_MAX
            && !entries.contains_key(&(kind, name.to_owned()))
        {
            let problem = format!(
                "there may be {OBJECTS_MAX} queues and streams at most, orphaned ones included; delete one first"
            );
            return Err(invalid(definition, "metadata.name", problem).into());
        }
        // What an attempt made whose outcome was unknown: the next one must know its own work.
        let attempted = Mutex::new(None);
        let tell = Tell(self.cluster.as_ref());
        let changed =
            transact(&*self.store, |tx| Box::pin(change_in(tx, (kind, name), &op, &attempted, tell)));
        let (change, committed) = changed.await.map_err(|error| ApplyError::from(Error::Store(error)))?;
        let change = change?;
        match &change {
            Change::Kept(entry) => entries.insert((kind, name.to_owned()), entry.clone()),
            Change::Removed(_) => entries.remove(&(kind, name.to_owned())),
        };
        self.publish(&entries);
        drop(entries);
        self.known_everywhere(committed.version).await;
        Ok(change)
    }

    fn of(&self, change: &Change) -> Arc<Object> {
        let (Change::Kept(entry) | Change::Removed(entry)) = change;
        self.object(entry)
    }
}

async fn change_in(
    tx: &mut dyn Transaction,
    (kind, name): (Kind, &str),
    op: &Op<'_>,
    attempted: &Mutex<Option<Change>>,
    tell: Tell<'_>,
) -> weir_storage::Result<Changed> {
    let key = CatalogEntry::key(kind, name);
    let damaged = |error| ApplyError::from(error).into();
    let stored = match tx.get(&key, Isolation::Serializable).await?.map(CatalogEntry::decode).transpose() {
        Ok(stored) => stored,
        Err(error) => return Ok(Err(damaged(Error::Record(error)))),
    };
    let earlier = attempted.lock().clone();
    match (&stored, earlier) {
        (Some(entry), Some(Change::Kept(made))) if *entry == made => return Ok(Ok(Change::Kept(made))),
        (None, Some(Change::Removed(entry))) => return Ok(Ok(Change::Removed(entry))),
        _ => {}
    }
    let mut next_id = match read_next_id(tx).await? {
        Ok(id) => id,
        Err(error) => return Ok(Err(damaged(error))),
    };
    let first_free = next_id;
    let changed = planned(stored, (kind, name), op, &mut next_id);
    if next_id != first_free {
        tx.set(&catalog::next_id_key(), &catalog::encode_next_id(next_id));
    }
    match (&changed, op) {
        (Ok(Change::Kept(entry)), _) => tx.set(&key, &entry.encode()),
        (Ok(Change::Removed(entry)), Op::Delete { now, .. }) => remove(tx, entry, *now),
        (Ok(Change::Removed(_)), Op::Create { .. } | Op::Update { .. } | Op::Pause { .. }) | (Err(_), _) => {}
    }
    if changed.is_ok() {
        tell.others(tx, kind, name);
    }
    *attempted.lock() = changed.as_ref().ok().cloned();
    Ok(changed)
}

/// What `op` makes of the entry that is stored.
fn planned(
    stored: Option<CatalogEntry>,
    (kind, name): (Kind, &str),
    op: &Op<'_>,
    next_id: &mut u32,
) -> Changed {
    let named = (kind_name(kind), name.to_owned());
    let is_active = |entry: &CatalogEntry| entry.state == EntryState::Active;
    let declared = |entry: &CatalogEntry| {
        let (kind, name) = named.clone();
        let by = is_active(entry) && entry.origin == Origin::Manifest;
        if by { Err(ChangeError::Declared { kind, name, by: owner(entry) }) } else { Ok(()) }
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
        Op::Create { definition, origin } => defined(stored, definition, *origin, next_id),
        Op::Update { definition, generation } => {
            let entry = stored.filter(is_active).ok_or_else(missing)?;
            declared(&entry)?;
            if entry.generation != *generation {
                let (kind, name) = named;
                return Err(ChangeError::Changed { kind, name });
            }
            let origin = entry.origin;
            defined(Some(entry), definition, origin, next_id)
        }
        Op::Delete { delete_data, .. } => {
            let mut entry = stored.ok_or_else(missing)?;
            declared(&entry)?;
            if delete_data.unwrap_or(entry.definition.delete_data) {
                return Ok(Change::Removed(entry));
            }
            entry.generation += u64::from(is_active(&entry));
            entry.state = EntryState::Orphaned;
            Ok(Change::Kept(entry))
        }
        Op::Pause { paused } => {
            let mut entry = stored.filter(is_active).ok_or_else(missing)?;
            entry.generation += u64::from(entry.paused != *paused);
            entry.paused = *paused;
            Ok(Change::Kept(entry))
        }
    }
}

/// The entry that `definition` makes of the one stored.
fn defined(
    stored: Option<CatalogEntry>,
    definition: &Definition,
    origin: Origin,
    next_id: &mut u32,
) -> Changed {
    let key = (definition.kind, definition.name.clone());
    let mut plan = Plan::default();
    plan.entries.extend(stored.map(|entry| (key.clone(), entry)));
    plan_one(&mut plan, definition, origin, next_id)?;
    let entry = plan.entries.remove(&key).expect("a plan has an entry for each definition");
    Ok(Change::Kept(entry))
}
