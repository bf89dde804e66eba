//! The catalog: which queues and streams there are, and which of them a topic belongs to.
//!
//! The store holds the truth; a [`CatalogView`] of it is in memory, replaced as a whole with each change.
//! A set of declarations is applied if all of them can be, else not at all; one transaction takes about 2,000 changes, and
//! a larger set several, the next of which goes on where the last one stopped. Single queues and streams are made, changed and
//! deleted beside it (`change`), and by operators of Kubernetes clusters (`declared`); a set retires only what a set has
//! declared. Who may have what is in `rules`.

mod change;
mod declared;
mod refresh;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use smallvec::SmallVec;
use tokio::sync::{broadcast, watch};
use weir_env::clock::Timestamp;
use weir_env::seed::HashMap;
use weir_storage::{Isolation, RangeQuery, SharedStore, Transaction, Version, transact};
use weir_topic::{MatchTrie, TopicFilter, TopicName};

use crate::cluster::Cluster;
use crate::definition::{Definition, Kind};
use crate::error::{Error, Result};
use crate::key::KeyExpression;
use crate::keyspace::LogId;
use crate::keyspace::catalog::{self, CatalogEntry, EntryState, Removal};
use crate::keyspace::change::Change;

use rules::{check, is_of_operator, plan_one, too_many};

pub use crate::keyspace::catalog::{Claim, Origin};
pub use change::{ChangeError, Deleted};
pub use declared::{Declare, Declared, Found, Outcome, Release, Released, WRITERS_MAX};
pub use refresh::Refreshed;

/// Queues and streams there may be.
pub const OBJECTS_MAX: usize = 10_000;
/// Bytes of entries that one transaction changes, about.
const CHANGED_BYTES: usize = 1_000_000;
/// Longest wait for other pods to know of a change before whoever made it is told.
const KNOWN_WAIT_MAX: Duration = Duration::from_secs(5);
/// Shards one may have.
pub const SHARDS_MAX: u8 = 64;

/// A queue or stream that is in use.
#[derive(Clone, Debug)]
pub struct Object {
    /// Names it in keys.
    pub id: u32,
    /// Nothing is delivered until it is resumed.
    pub paused: bool,
    /// Grows with each change.
    pub generation: u64,
    /// Who declared it.
    pub origin: Origin,
    /// What it is declared to be.
    pub definition: Definition,
    /// Parsed from the definition.
    pub filter: Option<TopicFilter>,
    /// Parsed from the definition.
    pub key: Option<KeyExpression>,
    /// Its shards.
    pub logs: Vec<LogId>,
}

/// Why declarations were not applied.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApplyError {
    /// One of them cannot be. Nothing was applied.
    #[error("{kind} `{name}`: {field}: {problem}")]
    Invalid {
        /// `MessageQueue` or `Stream`.
        kind: &'static str,
        /// Of the queue or stream.
        name: String,
        /// Path of the field.
        field: &'static str,
        /// What is wrong, and what to do.
        problem: String,
        /// Of which sort that is.
        refusal: Refusal,
    },
    /// The store did not take them. Nothing was applied.
    #[error("store the catalog: {0}")]
    Failed(#[from] Error),
}

/// The sort of a problem of a declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A field is wrong in itself.
    Field,
    /// Another one has the name.
    NameConflict {
        /// Who: cluster, if an operator declared it, namespace and object.
        owner: String,
    },
    /// What cannot change differs from what is stored.
    ImmutableMismatch,
    /// There are as many as there may be.
    TooMany,
}

/// What applying declarations changed.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// New, or taking messages again.
    pub created: Vec<Arc<Object>>,
    /// Changed in place.
    pub updated: Vec<Arc<Object>>,
    /// No longer declared: they take no more messages, what they hold stays.
    pub orphaned: Vec<String>,
    /// No longer declared, with their messages.
    pub deleted: Vec<Arc<Object>>,
    /// Not touched: an object of a Kubernetes cluster, of the same namespace and name, declares them.
    pub yielded: Vec<String>,
}

impl Applied {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.created.is_empty()
            && self.updated.is_empty()
            && self.orphaned.is_empty()
            && self.deleted.is_empty()
    }
}

/// The catalog in memory.
#[derive(Debug, Default)]
pub struct CatalogView {
    by_name: BTreeMap<(Kind, String), Arc<Object>>,
    by_topic: MatchTrie<u32, Arc<Object>>,
    by_filter: HashMap<(Kind, TopicFilter), Vec<Arc<Object>>>,
}

impl CatalogView {
    fn new(objects: impl IntoIterator<Item = Arc<Object>>) -> Self {
        let mut view = Self::default();
        for object in objects {
            if let Some(filter) = &object.filter {
                view.by_topic.insert(filter, object.id, Arc::clone(&object));
                let same = (object.definition.kind, filter.clone());
                view.by_filter.entry(same).or_default().push(Arc::clone(&object));
            }
            view.by_name.insert((object.definition.kind, object.definition.name.clone()), object);
        }
        view
    }

    /// The queue or stream called `name`.
    #[must_use]
    pub fn find(&self, kind: Kind, name: &str) -> Option<Arc<Object>> {
        self.by_name.get(&(kind, name.to_owned())).cloned()
    }

    /// All queues or streams, by name.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &Arc<Object>> {
        self.by_name.values().filter(move |object| object.definition.kind == kind)
    }

    /// The queues or streams whose own filter is `filter`, byte for byte, by name.
    #[must_use]
    pub fn with_filter(&self, kind: Kind, filter: &TopicFilter) -> &[Arc<Object>] {
        self.by_filter.get(&(kind, filter.clone())).map_or(&[], Vec::as_slice)
    }

    /// The queues and streams that take messages published to `topic`.
    #[must_use]
    pub fn targets(&self, topic: &TopicName) -> SmallVec<[Arc<Object>; 2]> {
        let mut targets = SmallVec::new();
        self.by_topic.for_each_match(topic, |_, object| targets.push(Arc::clone(object)));
        targets
    }
}

/// The catalog: its truth in the store, and the view of it in memory.
#[derive(Debug)]
pub struct Catalog {
    store: SharedStore,
    virtual_shards: u16,
    view: RwLock<Arc<CatalogView>>,
    /// All entries, orphaned ones included. Held while they change: views follow each other as the transactions did.
    entries: tokio::sync::Mutex<Entries>,
    changes: watch::Sender<u64>,
    /// Names of what has changed, for who follows that.
    told: broadcast::Sender<(Kind, String)>,
    /// The other pods, if there may be any: each change is told them.
    cluster: Option<Cluster>,
}

impl Catalog {
    /// Reads the catalog from the store.
    ///
    /// # Errors
    /// If the store fails or an entry is damaged.
    pub async fn load(store: SharedStore, virtual_shards: u16) -> Result<Self> {
        Self::load_in(None, store, virtual_shards).await
    }

    /// As [`Catalog::load`], in one pod of `cluster`.
    ///
    /// # Errors
    /// As [`Catalog::load`].
    pub async fn load_in(cluster: Option<Cluster>, store: SharedStore, virtual_shards: u16) -> Result<Self> {
        let mut tx = store.begin();
        let entries = read_entries(&mut *tx, Isolation::Snapshot).await??;
        let catalog = Self {
            store: Arc::clone(&store),
            virtual_shards,
            view: RwLock::new(Arc::new(CatalogView::default())),
            entries: tokio::sync::Mutex::default(),
            changes: watch::Sender::new(0),
            told: broadcast::Sender::new(declared::TOLD_MAX),
            cluster,
        };
        catalog.publish(&entries);
        *catalog.entries.lock().await = entries;
        Ok(catalog)
    }

    /// The catalog as of now.
    #[must_use]
    pub fn view(&self) -> Arc<CatalogView> {
        Arc::clone(&self.view.read())
    }

    /// Changes with every change of the catalog.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// All there are, those that take no more messages included.
    pub async fn stored(&self) -> Vec<(EntryState, Arc<Object>)> {
        let entries = self.entries.lock().await;
        entries.values().map(|entry| (entry.state, self.object(entry))).collect()
    }

    /// Makes the catalog be what `definitions` declare: all of them, or none if one cannot be. Entries that an earlier
    /// set declared and that are not among them are orphaned, or deleted if they were declared so.
    ///
    /// # Errors
    /// If a declaration is invalid or contradicts what exists, or the store fails; of a large set some may be applied
    /// then, and calling again goes on.
    pub async fn apply(
        &self,
        definitions: &[Definition],
        now: Timestamp,
    ) -> std::result::Result<Applied, ApplyError> {
        for definition in definitions {
            check(definition)?;
        }
        let mut entries = self.entries.lock().await;
        let before = entries.clone();
        let mut deleted = Vec::new();
        loop {
            let tell = Tell(self.cluster.as_ref());
            let (made, committed) =
                transact(&*self.store, |tx| Box::pin(apply_in(tx, definitions, now, tell)))
                    .await
                    .map_err(|error| ApplyError::Failed(Error::Store(error)))?;
            let made = made?;
            self.publish(&made.entries);
            self.tell(&entries, &made.entries);
            *entries = made.entries;
            deleted.extend(made.deleted.iter().map(|entry| self.object(entry)));
            if !made.more {
                let yields = |definition: &&Definition| {
                    let entry = entries.get(&(definition.kind, definition.name.clone()));
                    entry.is_some_and(|entry| is_of_operator(entry, definition))
                };
                let yielded = definitions.iter().filter(yields).map(|definition| definition.name.clone());
                let yielded = yielded.collect();
                let applied = Applied { deleted, yielded, ..self.changed(&before, &entries) };
                drop(entries);
                if !applied.is_empty() {
                    self.known_everywhere(committed.version).await;
                }
                return Ok(applied);
            }
        }
    }

    /// Waits until every pod knows of a change of `version`, or some seconds.
    async fn known_everywhere(&self, version: Version) {
        let Some(cluster) = &self.cluster else { return };
        if tokio::time::timeout(KNOWN_WAIT_MAX, cluster.wait_everywhere(version)).await.is_err() {
            tracing::warn!(
                "a pod has not heard of a queue or stream in time: its publishes may not reach it yet"
            );
        }
    }

    /// What became of the entries in `before`, but for those that are gone. Not what the transaction did: an earlier one
    /// whose outcome was unknown may have done it, and nobody has been told.
    fn changed(&self, before: &Entries, after: &Entries) -> Applied {
        let is_active = |entry: &CatalogEntry| entry.state == EntryState::Active;
        let view = self.view();
        let mut applied = Applied::default();
        for (key, entry) in after {
            // Of the same name may be another one.
            let known = before.get(key).filter(|known| known.id == entry.id);
            if known.is_some_and(|known| known.generation == entry.generation) {
                continue;
            }
            match (known.is_some_and(is_active), view.find(key.0, &key.1)) {
                (false, Some(object)) => applied.created.push(object),
                (true, Some(object)) => applied.updated.push(object),
                (_, None) => applied.orphaned.push(key.1.clone()),
            }
        }
        applied
    }

    fn publish(&self, entries: &BTreeMap<(Kind, String), CatalogEntry>) {
        let active = entries.values().filter(|entry| entry.state == EntryState::Active);
        let before = self.view();
        let same = |entry: &CatalogEntry| {
            let object = before.find(entry.definition.kind, &entry.definition.name)?;
            let is_same = object.id == entry.id
                && object.generation == entry.generation
                && object.origin == entry.origin;
            is_same.then_some(object)
        };
        let view = CatalogView::new(active.map(|entry| same(entry).unwrap_or_else(|| self.object(entry))));
        *self.view.write() = Arc::new(view);
        self.changes.send_modify(|n| *n += 1);
    }

    fn object(&self, entry: &CatalogEntry) -> Arc<Object> {
        let definition = entry.definition.clone();
        let place = |shard| LogId::place(entry.id, shard, self.virtual_shards);
        Arc::new(Object {
            id: entry.id,
            generation: entry.generation,
            origin: entry.origin.clone(),
            paused: entry.paused,
            filter: definition.topic_filter.as_deref().and_then(|f| TopicFilter::parse(f.to_owned()).ok()),
            key: definition.effective_key().and_then(|key| KeyExpression::parse(key).ok()),
            logs: (0..definition.shards).map(place).collect(),
            definition,
        })
    }
}

type Entries = BTreeMap<(Kind, String), CatalogEntry>;

async fn read_entries(
    tx: &mut dyn Transaction,
    isolation: Isolation,
) -> weir_storage::Result<Result<Entries>> {
    let (begin, end) = CatalogEntry::range();
    let query = RangeQuery {
        begin: begin.into(),
        end: end.into(),
        limit: OBJECTS_MAX,
        target_bytes: 0,
        reverse: false,
    };
    let mut entries = Entries::new();
    for (_, value) in tx.get_range(query, isolation).await?.pairs {
        match CatalogEntry::decode(value) {
            Ok(entry) => {
                entries.insert((entry.definition.kind, entry.definition.name.clone()), entry);
            }
            Err(error) => return Ok(Err(error.into())),
        }
    }
    Ok(Ok(entries))
}

/// What the catalog is to become.
#[derive(Debug, Default)]
struct Plan {
    entries: Entries,
    /// Those in `entries` that are new or changed, new ones first and in the order of their ids.
    created: Vec<(Kind, String)>,
    changed: Vec<(Kind, String)>,
    deleted: Vec<CatalogEntry>,
}

/// What a transaction of [`Catalog::apply`] made of the catalog.
#[derive(Debug)]
struct Made {
    entries: Entries,
    deleted: Vec<CatalogEntry>,
    /// There is more to do than it could hold.
    more: bool,
}

async fn apply_in(
    tx: &mut dyn Transaction,
    definitions: &[Definition],
    now: Timestamp,
    tell: Tell<'_>,
) -> weir_storage::Result<std::result::Result<Made, ApplyError>> {
    let stored = match read_entries(tx, Isolation::Serializable).await? {
        Ok(entries) => entries,
        Err(error) => return Ok(Err(error.into())),
    };
    let first_free = match read_next_id(tx).await? {
        Ok(id) => id,
        Err(error) => return Ok(Err(error.into())),
    };
    let plan = match planned(stored.clone(), definitions, first_free) {
        Ok(plan) => plan,
        Err(error) => return Ok(Err(error)),
    };
    Ok(Ok(carry_out(tx, plan, stored, first_free, (now, tell))))
}

/// What `definitions` make of what is `stored`.
fn planned(
    stored: Entries,
    definitions: &[Definition],
    first_free: u32,
) -> std::result::Result<Plan, ApplyError> {
    let mut plan = Plan { entries: stored, ..Plan::default() };
    let mut next_id = first_free;
    let mut declared = BTreeSet::new();
    for definition in definitions {
        let key = (definition.kind, definition.name.clone());
        let yields = plan.entries.get(&key).is_some_and(|entry| is_of_operator(entry, definition));
        declared.insert(key);
        if yields {
            continue;
        }
        plan_one(&mut plan, definition, &Origin::Manifest, &mut next_id)?;
    }
    if let Some(last) = definitions.last().filter(|_| plan.entries.len() > OBJECTS_MAX) {
        return Err(too_many(last));
    }
    retire(&mut plan, &declared);
    Ok(plan)
}

/// Does of `plan` what fits into a transaction.
fn carry_out(
    tx: &mut dyn Transaction,
    plan: Plan,
    stored: Entries,
    first_free: u32,
    (now, tell): (Timestamp, Tell<'_>),
) -> Made {
    let mut made = Made { entries: stored, deleted: Vec::new(), more: false };
    let (mut left, mut next_id) = (CHANGED_BYTES, first_free);
    for key in plan.created.iter().chain(&plan.changed) {
        let Some(entry) = plan.entries.get(key) else { continue };
        let value = entry.encode();
        if left < value.len() {
            made.more = true;
            break;
        }
        left -= value.len();
        next_id = next_id.max(entry.id.saturating_add(1));
        tx.set(&CatalogEntry::key(key.0, &key.1), &value);
        tell.others(tx, key.0, &key.1);
        made.entries.insert(key.clone(), entry.clone());
    }
    for entry in plan.deleted {
        let size = entry.encode().len();
        if made.more || left < size {
            made.more = true;
            break;
        }
        left -= size;
        remove(tx, &entry, now);
        tell.others(tx, entry.definition.kind, &entry.definition.name);
        made.entries.remove(&(entry.definition.kind, entry.definition.name.clone()));
        made.deleted.push(entry);
    }
    if next_id != first_free {
        tx.set(&catalog::next_id_key(), &catalog::encode_next_id(next_id));
    }
    made
}

/// Tells other pods, if there may be any, of a change with the transaction that makes it.
#[derive(Clone, Copy, Debug)]
struct Tell<'a>(Option<&'a Cluster>);

impl Tell<'_> {
    fn others(self, tx: &mut dyn Transaction, kind: Kind, name: &str) {
        if let Some(cluster) = self.0 {
            cluster.feed().write(tx, &Change::Catalog { kind, name: name.into() });
        }
    }
}

async fn read_next_id(tx: &mut dyn Transaction) -> weir_storage::Result<Result<u32>> {
    let next_id = tx.get(&catalog::next_id_key(), Isolation::Serializable).await?;
    let next_id = next_id.map(catalog::decode_next_id).transpose();
    Ok(next_id.map(|id| id.unwrap_or(1)).map_err(Error::Record))
}

/// Frees the name of `entry`, and notes that its records are to be removed.
fn remove(tx: &mut dyn Transaction, entry: &CatalogEntry, now: Timestamp) {
    tx.clear(&CatalogEntry::key(entry.definition.kind, &entry.definition.name));
    tx.set(&Removal::key(entry.id), &Removal { at: now, entry: entry.clone() }.encode());
}

/// Entries that sets of manifests have declared and do not any more.
fn retire(plan: &mut Plan, declared: &BTreeSet<(Kind, String)>) {
    let gone: Vec<(Kind, String)> = plan
        .entries
        .iter()
        .filter(|(_, entry)| entry.state == EntryState::Active && entry.origin == Origin::Manifest)
        .filter(|(key, _)| !declared.contains(key))
        .map(|(key, _)| key.clone())
        .collect();
    for key in gone {
        let Some(entry) = plan.entries.get_mut(&key) else { continue };
        if entry.definition.delete_data {
            plan.deleted.extend(plan.entries.remove(&key));
        } else {
            entry.state = EntryState::Orphaned;
            entry.generation += 1;
            plan.changed.push(key);
        }
    }
}
