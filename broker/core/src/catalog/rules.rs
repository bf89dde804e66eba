//! Who may have a name, and what a declaration may make of what is stored: one set of rules for manifests, people,
//! subscriptions and operators. Knows nothing of transactions; owns nothing.

use weir_topic::TopicFilter;

use super::{ApplyError, OBJECTS_MAX, Plan, Refusal, SHARDS_MAX};
use crate::definition::{Definition, Difference, Kind};
use crate::key::KeyExpression;
use crate::keyspace::catalog::{CatalogEntry, EntryState, Origin};

type Result<T> = std::result::Result<T, ApplyError>;

pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Queue => "MessageQueue",
        Kind::Stream => "Stream",
    }
}

/// Of the commands that show one.
fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Queue => "queue",
        Kind::Stream => "stream",
    }
}

fn refused(
    definition: &Definition,
    field: &'static str,
    problem: impl Into<String>,
    refusal: Refusal,
) -> ApplyError {
    ApplyError::Invalid {
        kind: kind_name(definition.kind),
        name: definition.name.clone(),
        field,
        problem: problem.into(),
        refusal,
    }
}

fn invalid(definition: &Definition, field: &'static str, problem: impl Into<String>) -> ApplyError {
    refused(definition, field, problem, Refusal::Field)
}

/// There is no room for `definition`.
pub(super) fn too_many(definition: &Definition) -> ApplyError {
    let problem = format!(
        "there may be {OBJECTS_MAX} queues and streams at most, orphaned ones included; delete one first"
    );
    refused(definition, "metadata.name", problem, Refusal::TooMany)
}

/// What is wrong with a declaration in itself.
pub(super) fn check(definition: &Definition) -> Result<()> {
    if definition.shards == 0 || definition.shards > SHARDS_MAX {
        let problem = format!("{} is not allowed; allowed: 1 to {SHARDS_MAX}", definition.shards);
        return Err(invalid(definition, "spec.shards", problem));
    }
    let (retention, shards) = (&definition.retention, definition.shards);
    for (field, limit) in [
        ("spec.retention.maxMessages", retention.max_messages),
        ("spec.retention.maxBytes", retention.max_bytes),
    ] {
        if limit != 0 && limit < u64::from(shards) {
            let problem = format!(
                "{limit} for {shards} shards leaves some with nothing; allowed: 0, or {shards} and more"
            );
            return Err(invalid(definition, field, problem));
        }
    }
    if let Some(filter) = &definition.topic_filter {
        match TopicFilter::parse(filter.clone()) {
            Ok(_) if filter.starts_with('$') => {
                return Err(invalid(definition, "spec.topicFilter", "may not begin with `$`"));
            }
            Ok(_) => {}
            Err(error) => return Err(invalid(definition, "spec.topicFilter", error.to_string())),
        }
    }
    if let Some(Err(error)) = definition.key.as_deref().map(KeyExpression::parse) {
        return Err(invalid(definition, "spec.key", error.to_string()));
    }
    Ok(())
}

/// What `definition`, declared by `origin`, makes of the plan's entry of its name.
pub(super) fn plan_one(
    plan: &mut Plan,
    definition: &Definition,
    origin: &Origin,
    next_id: &mut u32,
) -> Result<()> {
    let key = (definition.kind, definition.name.clone());
    let Some(entry) = plan.entries.get_mut(&key) else {
        let entry = CatalogEntry {
            id: *next_id,
            state: EntryState::Active,
            origin: origin.clone(),
            paused: false,
            generation: 1,
            definition: definition.clone(),
        };
        *next_id += 1;
        plan.entries.insert(key.clone(), entry);
        plan.created.push(key);
        return Ok(());
    };
    if entry.state == EntryState::Active && !may_have(entry, definition, origin) {
        return Err(name_conflict(entry, definition));
    }
    if let Some(difference) = entry.definition.immutable_difference(definition) {
        return Err(immutable_mismatch(definition, &difference));
    }
    let revived = entry.state == EntryState::Orphaned;
    if revived || entry.definition != *definition || !is_same_declarer(&entry.origin, origin) {
        entry.state = EntryState::Active;
        // Nobody who makes a queue expects a pause of the one that was deleted.
        entry.paused &= !revived;
        entry.generation += 1;
        entry.definition = definition.clone();
    } else if entry.origin == *origin {
        return Ok(());
    }
    entry.origin = origin.clone();
    plan.changed.push(key);
    Ok(())
}

/// Whether who declares `definition` may have the active `entry`. What an operator declares is its object's alone; all
/// else goes by namespace and object, whoever made it.
fn may_have(entry: &CatalogEntry, definition: &Definition, origin: &Origin) -> bool {
    let stored = &entry.definition;
    let same_object = stored.namespace == definition.namespace && stored.object == definition.object;
    let open = entry.origin.claim().is_none() || is_same_declarer(&entry.origin, origin);
    same_object && open
}

/// Whether the manifest of `definition` has moved into a Kubernetes cluster: an object of its namespace and name has the
/// active `entry`.
pub(super) fn is_of_operator(entry: &CatalogEntry, definition: &Definition) -> bool {
    let stored = &entry.definition;
    entry.state == EntryState::Active
        && entry.origin.claim().is_some()
        && stored.namespace == definition.namespace
        && stored.object == definition.object
}

/// Whether two declarations of one namespace and object come from the same place.
fn is_same_declarer(a: &Origin, b: &Origin) -> bool {
    match (a, b) {
        (Origin::Operator(a), Origin::Operator(b)) => a.cluster == b.cluster,
        _ => a == b,
    }
}

fn name_conflict(entry: &CatalogEntry, definition: &Definition) -> ApplyError {
    let (kind, name) = (word(definition.kind), &definition.name);
    let problem = format!(
        "NameConflict: {} has this name; change metadata.name or spec.{kind}Name, or delete that one \
         (`weir {kind} describe {name}` shows it)",
        owner(entry)
    );
    let Definition { namespace, object, .. } = &entry.definition;
    let owner = match entry.origin.claim() {
        Some(claim) => format!("{}/{namespace}/{object}", claim.cluster),
        None => format!("{namespace}/{object}"),
    };
    refused(definition, "metadata.name", problem, Refusal::NameConflict { owner })
}

fn immutable_mismatch(definition: &Definition, difference: &Difference) -> ApplyError {
    let Difference { field, path, stored, declared } = difference;
    let problem = format!(
        "ImmutableMismatch: {field} cannot change from {stored} to {declared} while the stored messages exist; \
         use another name, or set it back"
    );
    refused(definition, path, problem, Refusal::ImmutableMismatch)
}

/// Who has a name, for people.
pub(super) fn owner(entry: &CatalogEntry) -> String {
    let Definition { namespace, object, .. } = &entry.definition;
    match &entry.origin {
        Origin::Manifest => format!("{namespace}/{object}"),
        Origin::Admin => format!("{namespace}/{object}, made by the admin API,"),
        Origin::Automatic => format!("{namespace}/{object}, made by a subscription,"),
        Origin::Operator(claim) => {
            format!("{namespace}/{object} of the Kubernetes cluster `{}`", claim.cluster)
        }
    }
}

/// Where to change or remove what declares `entry`, if that is not for people to do here.
pub(super) fn declared_elsewhere(entry: &CatalogEntry) -> Option<String> {
    let Definition { kind, namespace, object, .. } = &entry.definition;
    match &entry.origin {
        Origin::Admin | Origin::Automatic => None,
        Origin::Manifest => Some(format!("the manifest of {namespace}/{object}: change or remove that")),
        Origin::Operator(claim) => Some(format!(
            "{namespace}/{object} of the Kubernetes cluster `{}`: change or delete that one \
             (`kubectl -n {namespace} delete {}.weir.dev {object}`); if the cluster or its operator is gone, `--force`",
            claim.cluster,
            kind_name(*kind).to_lowercase() + "s",
        )),
    }
}
