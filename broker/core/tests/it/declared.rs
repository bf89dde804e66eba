//! What objects of Kubernetes clusters declare: who may have what, and which of two writers.

use std::sync::Arc;
use std::time::Duration;

use weir_core::Core;
use weir_core::catalog::{
    ApplyError, ChangeError, Claim, Declare, Declared, Deleted, OBJECTS_MAX, Origin, Outcome, Refusal,
    Release, Released, WRITERS_MAX,
};
use weir_core::cluster::{ClusterOptions, PodInfo};
use weir_core::definition::{Definition, Kind};
use weir_core::keyspace::catalog::EntryState;
use weir_core::metrics::Metrics;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{CommitFault, FaultRates, FaultStore, SharedStore};

use crate::support::{definition, in_memory, memory, message, open, publish};

fn queue(name: &str) -> Definition {
    definition(Kind::Queue, name, &format!("{name}/#"), 2)
}

fn claim(cluster: &str, uid: &str, generation: u64) -> Claim {
    Claim { cluster: cluster.into(), uid: uid.into(), generation }
}

async fn declare(
    core: &Core,
    writer: u64,
    definition: &Definition,
    claim: Claim,
) -> Result<Declared, ChangeError> {
    core.declare(&Declare { definition, claim: &claim, writer }).await
}

async fn release(
    core: &Core,
    writer: u64,
    definition: &Definition,
    cluster: &str,
    delete_data: Option<bool>,
) -> Result<Released, ChangeError> {
    let Definition { kind, name, namespace, object, .. } = definition;
    let (kind, now) = (*kind, core.now());
    core.release(&Release { kind, name, cluster, namespace, object, writer, delete_data, now }).await
}

/// What is there before somebody asks.
#[derive(Clone, Copy, Debug)]
enum There {
    Nothing,
    /// As that one has declared it.
    By(Who),
    /// The same, no longer declared.
    Left(Who),
}

/// Who declares a queue.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    Manifest,
    Person,
    Subscription,
    /// An object: its cluster, its uid and its generation.
    Object(&'static str, &'static str, u64),
    /// The same with another name of the object.
    Other(&'static str),
}

const OWN: Who = Who::Object("eu", "u1", 5);

/// The outcome, or the word for why not.
async fn asks(core: &Core, who: Who, definition: &Definition) -> String {
    let refusal = |error: &ApplyError| match error {
        ApplyError::Invalid { refusal: Refusal::NameConflict { owner }, .. } => format!("conflict {owner}"),
        ApplyError::Invalid { refusal, .. } => format!("{refusal:?}"),
        ApplyError::Failed(error) => panic!("{error}"),
    };
    let change = |error: ChangeError| match error {
        ChangeError::Refused(error) => refusal(&error),
        ChangeError::Exists { .. } => "exists".to_owned(),
        ChangeError::StaleGeneration { .. } => "stale generation".to_owned(),
        error => panic!("{error}"),
    };
    let create = async |origin| match core.create(definition, origin).await {
        Ok(_) => "created".to_owned(),
        Err(error) => change(error),
    };
    let declared = async |definition: &Definition, claim: Claim| {
        let writer = core.catalog().acquire_writer(&claim.cluster).await.unwrap().unwrap();
        match declare(core, writer, definition, claim).await {
            Ok(Declared { outcome, drifted: true, .. }) => format!("{outcome:?}, drifted"),
            Ok(Declared { outcome, .. }) => format!("{outcome:?}"),
            Err(error) => change(error),
        }
    };
    match who {
        Who::Manifest => match core.apply(std::slice::from_ref(definition)).await {
            Ok(applied) => format!(
                "{} created {} updated {} yielded",
                applied.created.len(),
                applied.updated.len(),
                applied.yielded.len()
            ),
            Err(error) => refusal(&error),
        },
        Who::Person => create(Origin::Admin).await,
        Who::Subscription => create(Origin::Automatic).await,
        Who::Object(cluster, uid, generation) => declared(definition, claim(cluster, uid, generation)).await,
        Who::Other(cluster) => {
            let other = Definition { object: "other".into(), ..definition.clone() };
            declared(&other, claim(cluster, "u9", 1)).await
        }
    }
}

/// A core in which `there` is, and the id of the queue.
async fn with(there: There, definition: &Definition) -> (Core, Option<u32>) {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    if let There::By(who) | There::Left(who) = there {
        let made = asks(&core, who, definition).await;
        assert!(["Created", "created", "1 created 0 updated 0 yielded"].contains(&&*made), "{made}");
    }
    if let There::Left(who) = there {
        match who {
            Who::Manifest => _ = core.apply(&[]).await.unwrap(),
            _ => {
                let deleted = core.delete_as(Kind::Queue, "q", (Some(false), true)).await.unwrap();
                assert!(matches!(deleted, Deleted::Orphaned));
            }
        }
    }
    let id = core.catalog().found(Kind::Queue, "q").await.map(|found| found.entry.id);
    (core, id)
}

#[tokio::test(start_paused = true)]
async fn who_has_a_name_and_who_takes_it_over() {
    use There::{By, Left, Nothing};
    use Who::{Manifest, Object, Other, Person, Subscription};
    let (same, older, newer) = (OWN, Object("eu", "u1", 4), Object("eu", "u1", 6));
    let (rebuilt, elsewhere) = (Object("eu", "u2", 1), Object("us", "u1", 5));
    let conflict = "conflict eu/default/q";
    let table: &[(There, &[(Who, &str)])] = &[
        (Nothing, &[(same, "Created"), (Other("eu"), "Created"), (Person, "created")]),
        (By(Manifest), &[(same, "Adopted"), (Other("eu"), "conflict default/q"), (Person, "exists")]),
        (By(Person), &[(same, "Adopted"), (Other("eu"), "conflict default/q"), (Subscription, "exists")]),
        (By(Subscription), &[(same, "Adopted"), (Other("eu"), "conflict default/q")]),
        (
            By(OWN),
            &[
                (same, "Unchanged"),
                (newer, "Unchanged"),
                (older, "stale generation"),
                (rebuilt, "Adopted"),
                (elsewhere, conflict),
                (Other("eu"), conflict),
                (Other("us"), conflict),
                (Manifest, "0 created 0 updated 1 yielded"),
                (Person, "exists"),
                (Subscription, "exists"),
            ],
        ),
        (By(Other("eu")), &[(same, "conflict eu/default/other"), (Manifest, "conflict eu/default/other")]),
        (
            Left(OWN),
            &[
                (same, "Adopted, drifted"),
                (newer, "Adopted"),
                (older, "stale generation"),
                (rebuilt, "Adopted"),
                (elsewhere, "Adopted"),
                (Other("us"), "Adopted"),
                (Manifest, "1 created 0 updated 0 yielded"),
                (Person, "created"),
                (Subscription, "created"),
            ],
        ),
        (Left(Manifest), &[(same, "Adopted"), (Other("eu"), "Adopted")]),
        (Left(Person), &[(same, "Adopted"), (Other("eu"), "Adopted")]),
    ];
    let definition = queue("q");
    for (there, askers) in table {
        for (who, expected) in *askers {
            let (core, id) = with(*there, &definition).await;
            assert_eq!(asks(&core, *who, &definition).await, *expected, "{who:?} where {there:?}");
            let now = core.catalog().found(Kind::Queue, "q").await.unwrap().entry;
            assert!(id.is_none_or(|id| now.id == id), "its messages stay: {who:?} where {there:?}");
            core.close().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_change_is_named_with_both_values_whoever_had_it() {
    use There::{By, Left};
    let stored = queue("q");
    let different = Definition { shards: 4, ..queue("q") };
    for there in [By(Who::Manifest), By(Who::Person), By(OWN), Left(OWN), Left(Who::Subscription)] {
        let (core, _) = with(there, &stored).await;
        let before = core.catalog().found(Kind::Queue, "q").await.unwrap().entry;
        let writer = core.catalog().acquire_writer("eu").await.unwrap().unwrap();
        let refused = declare(&core, writer, &different, claim("eu", "u1", 6)).await.unwrap_err();
        let ChangeError::Refused(ApplyError::Invalid { field, problem, refusal, .. }) = refused else {
            panic!("{refused}");
        };
        assert_eq!((field, refusal), ("spec.shards", Refusal::ImmutableMismatch));
        assert!(problem.contains("shards cannot change from 2 to 4") && problem.contains("set it back"));
        assert_eq!(core.catalog().found(Kind::Queue, "q").await.unwrap().entry, before, "{there:?}");
        core.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn people_leave_what_an_object_declares_alone_unless_they_insist() {
    let (core, _) = with(There::By(OWN), &queue("q")).await;
    let object = core.catalog().view().find(Kind::Queue, "q").unwrap();
    let mut changed = object.definition.clone();
    changed.retention.max_messages = 9;
    let refused = core.update(&changed, object.generation).await.unwrap_err().to_string();
    let hint = "declared by default/q of the Kubernetes cluster `eu`";
    assert!(refused.contains(hint) && refused.contains("kubectl -n default delete"), "{refused}");
    let refused = core.delete(Kind::Queue, "q", None).await.unwrap_err().to_string();
    assert!(refused.contains(hint) && refused.contains("--force"), "{refused}");
    // A pause is an operation, not a declaration.
    let paused = core.pause("q", true).await.unwrap();
    let changed = core.update_as(&changed, paused.generation, true).await.unwrap();
    assert_eq!(changed.origin.claim(), Some(&claim("eu", "u1", 5)), "it is the object's still");
    // The operator sees that, and sets it back.
    let writer = core.catalog().acquire_writer("eu").await.unwrap().unwrap();
    let declared = declare(&core, writer, &queue("q"), claim("eu", "u1", 5)).await.unwrap();
    assert_eq!((declared.outcome, declared.drifted), (Outcome::Updated, true));
    assert!(declared.object.paused, "who paused it resumes it");
    let declared = declare(&core, writer, &queue("q"), claim("eu", "u1", 5)).await.unwrap();
    assert_eq!((declared.outcome, declared.drifted), (Outcome::Unchanged, false));
    let deleted = core.delete_as(Kind::Queue, "q", (Some(true), true)).await.unwrap();
    assert!(matches!(deleted, Deleted::Removed(_)));
    let declared = declare(&core, writer, &queue("q"), claim("eu", "u1", 5)).await.unwrap();
    assert_eq!(declared.outcome, Outcome::Created);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn only_its_object_releases_a_queue() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let q = queue("q");
    let writer = core.catalog().acquire_writer("eu").await.unwrap().unwrap();
    let us = core.catalog().acquire_writer("us").await.unwrap().unwrap();
    assert!(matches!(release(&core, writer, &q, "eu", None).await.unwrap(), Released::Missing));
    core.create(&q, Origin::Admin).await.unwrap();
    assert!(matches!(release(&core, writer, &q, "eu", Some(true)).await.unwrap(), Released::NotOwned));
    let made = declare(&core, writer, &q, claim("eu", "u1", 1)).await.unwrap().object;
    publish(&core, clock, "q/1", "kept").await.unwrap();
    let other = Definition { object: "other".into(), ..q.clone() };
    for (writer, definition, cluster) in [(us, &q, "us"), (writer, &other, "eu")] {
        let released = release(&core, writer, definition, cluster, Some(true)).await.unwrap();
        assert!(matches!(released, Released::NotOwned));
    }
    // One that is made anew with the same name releases what the one before has declared.
    assert!(matches!(release(&core, writer, &q, "eu", None).await.unwrap(), Released::Orphaned));
    assert!(core.catalog().view().find(Kind::Queue, "q").is_none());
    assert!(matches!(release(&core, writer, &q, "eu", Some(false)).await.unwrap(), Released::Orphaned));
    let again = declare(&core, writer, &q, claim("eu", "u2", 1)).await.unwrap();
    assert_eq!((again.outcome, again.object.id), (Outcome::Adopted, made.id));
    let reports = core.describe(&again.object).await.unwrap();
    assert_eq!(reports.iter().map(|log| log.queue.as_ref().unwrap().depth).sum::<u64>(), 1);
    let released = release(&core, writer, &q, "eu", Some(true)).await.unwrap();
    assert!(matches!(released, Released::Removed(object) if object.id == made.id));
    assert!(matches!(release(&core, writer, &q, "eu", Some(true)).await.unwrap(), Released::Missing));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_older_writer_changes_nothing_though_its_call_began_first() {
    let (inner, clock) = in_memory();
    let faulty = FaultStore::wrap(Arc::clone(&inner), Seed::fixed(1));
    let faults = faulty.handle();
    let (a, b) = (open(&(Arc::new(faulty) as SharedStore), clock, 1).await, open(&inner, clock, 2).await);
    let old = a.catalog().acquire_writer("eu").await.unwrap().unwrap();
    let mut from_old = queue("q");
    from_old.retention.max_messages = 100;
    // Its commit is on the way when another operator takes over.
    faults.fail_next_commit(CommitFault::Stalled(Duration::from_secs(1)));
    let overtaken = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let new = b.catalog().acquire_writer("eu").await.unwrap().unwrap();
        assert!(new > old);
        declare(&b, new, &queue("q"), claim("eu", "u1", 1)).await.unwrap();
        new
    };
    let (refused, new) = tokio::join!(declare(&a, old, &from_old, claim("eu", "u1", 2)), overtaken);
    let refused = refused.unwrap_err();
    assert!(matches!(refused, ChangeError::StaleWriter { newest, .. } if newest == new), "{refused}");
    let refused = release(&a, old, &from_old, "eu", Some(true)).await.unwrap_err();
    assert!(matches!(refused, ChangeError::StaleWriter { .. }), "{refused}");
    // One that nobody has acquired, of this cluster or of another.
    for (cluster, writer) in [("eu", new + 1), ("us", 1)] {
        let refused = declare(&a, writer, &from_old, claim(cluster, "u1", 2)).await.unwrap_err();
        assert!(matches!(refused, ChangeError::StaleWriter { .. }), "{refused}");
    }
    b.catalog().reload().await.unwrap();
    let stored = b.catalog().found(Kind::Queue, "q").await.unwrap().entry;
    assert_eq!(stored.definition, queue("q"));
}

#[tokio::test(start_paused = true)]
async fn two_writers_that_race_leave_what_the_newer_one_has_said() {
    for seed in 0..30 {
        let (inner, clock) = in_memory();
        let faulty = FaultStore::wrap(inner, Seed::fixed(seed));
        let faults = faulty.handle();
        let store: SharedStore = Arc::new(faulty);
        let (a, b) = (open(&store, clock, seed).await, open(&store, clock, seed + 100).await);
        faults.set_rates(FaultRates::rough());
        let mut refused = 0;
        let old = acquired(&a).await;
        let race = async {
            for n in 1..40_u64 {
                let mut q = queue("q");
                q.retention.max_messages = 1000 + n;
                match declare(&a, old, &q, claim("eu", "u1", n)).await {
                    Err(ChangeError::StaleWriter { .. } | ChangeError::StaleGeneration { .. }) => {
                        refused += 1
                    }
                    Ok(_) => assert_eq!(refused, 0, "seed {seed}: it wrote after it had been refused"),
                    Err(_) => {}
                }
            }
        };
        let takeover = async {
            tokio::time::sleep(Duration::from_millis(seed)).await;
            let new = acquired(&b).await;
            let q = queue("q");
            while declare(&b, new, &q, claim("eu", "u1", 100)).await.is_err() {}
        };
        tokio::join!(race, takeover);
        faults.heal();
        faults.settle().await;
        b.catalog().reload().await.unwrap();
        let stored = b.catalog().found(Kind::Queue, "q").await.unwrap().entry;
        assert_eq!(stored.definition, queue("q"), "seed {seed}");
        assert!(refused > 0, "seed {seed}: there was no race");
    }
}

async fn acquired(core: &Core) -> u64 {
    loop {
        if let Ok(Some(writer)) = core.catalog().acquire_writer("eu").await {
            return writer;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_declaration_whose_outcome_was_unknown_is_made_once_by_asking_again() {
    for (fault, is_lost) in [(CommitFault::SettledCommitted, false), (CommitFault::SettledLost, true)] {
        let (store, clock) = memory();
        let faulty = FaultStore::wrap(store, Seed::fixed(1));
        let faults = faulty.handle();
        let store: SharedStore = Arc::new(faulty);
        let core = open(&store, clock, 1).await;
        let writer = acquired(&core).await;
        let twice = async |definition: &Definition, generation: u64| {
            faults.fail_next_commit(fault.clone());
            declare(&core, writer, definition, claim("eu", "u1", generation)).await.unwrap_err();
            declare(&core, writer, definition, claim("eu", "u1", generation)).await.unwrap()
        };
        let made = twice(&queue("q"), 1).await;
        let expected = if is_lost { Outcome::Created } else { Outcome::Unchanged };
        assert_eq!((made.outcome, made.object.generation), (expected, 1));
        publish(&core, clock, "q/1", "0").await.unwrap();
        let mut changed = queue("q");
        changed.delete_data = true;
        changed.retention.max_messages = 2;
        let made = twice(&changed, 2).await;
        let expected = if is_lost { Outcome::Updated } else { Outcome::Unchanged };
        assert_eq!((made.outcome, made.object.generation), (expected, 2));
        publish(&core, clock, "q/1", "1").await.unwrap_err();
        faults.fail_next_commit(fault.clone());
        release(&core, writer, &changed, "eu", None).await.unwrap_err();
        let released = release(&core, writer, &changed, "eu", None).await.unwrap();
        assert_eq!(matches!(released, Released::Removed(_)), is_lost, "{released:?}");
        assert!(matches!(release(&core, writer, &changed, "eu", None).await.unwrap(), Released::Missing));
        assert!(core.catalog().view().find(Kind::Queue, "q").is_none());
        // The process ends: the next one knows all of it.
        core.close().await;
        let core = open(&store, clock, 2).await;
        assert!(core.catalog().found(Kind::Queue, "q").await.is_none());
        assert_eq!(acquired(&core).await, writer + 1);
        core.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_are_listed_in_pages_and_no_more_are_taken() {
    let (store, clock) = in_memory();
    let core = open(&store, clock, 1).await;
    let writer = acquired(&core).await;
    let most: Vec<Definition> = (1..OBJECTS_MAX).map(|n| queue(&format!("q{n:05}"))).collect();
    core.apply(&most).await.unwrap();
    let own = declare(&core, writer, &most[17], claim("eu", "u1", 1)).await.unwrap();
    assert_eq!(own.outcome, Outcome::Adopted);
    let stream = definition(Kind::Stream, "a-stream", "s", 1);
    declare(&core, writer, &stream, claim("eu", "u2", 1)).await.unwrap();
    let refused = declare(&core, writer, &queue("beyond"), claim("eu", "u3", 1)).await.unwrap_err();
    let ChangeError::Refused(ApplyError::Invalid { refusal: Refusal::TooMany, .. }) = refused else {
        panic!("{refused}");
    };
    let (mut after, mut names) = (None, Vec::new());
    loop {
        let page = core.catalog().page(after.as_ref(), 1000, |_| true).await;
        assert!(page.len() <= 1000);
        let Some(last) = page.last() else { break };
        after = Some((last.entry.definition.kind, last.entry.definition.name.clone()));
        names.extend(page.into_iter().map(|found| found.entry.definition.name));
    }
    let mut all: Vec<String> = most.iter().map(|q| q.name.clone()).collect();
    all.push("a-stream".to_owned());
    assert_eq!(names, all);
    let of_cluster = core
        .catalog()
        .page(None, 1000, |entry| entry.origin.claim().is_some_and(|c| c.cluster == "eu"))
        .await;
    assert_eq!(of_cluster.len(), 2);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn clusters_that_write_are_bounded() {
    let (store, clock) = in_memory();
    let core = open(&store, clock, 1).await;
    for n in 0..WRITERS_MAX {
        let writer = core.catalog().acquire_writer(&format!("c{n}")).await.unwrap();
        assert_eq!(writer, Some(1));
    }
    assert_eq!(core.catalog().acquire_writer("one-more").await.unwrap(), None);
    assert_eq!(core.catalog().acquire_writer("c7").await.unwrap(), Some(2));
    core.close().await;
}

/// Pods of one cluster that follow each other's changes.
async fn pods(store: &SharedStore, clock: Clock, count: u64) -> Vec<Arc<Core>> {
    let mut pods = Vec::new();
    for seed in 0..count {
        let cluster = Some(ClusterOptions::new(PodInfo::default()));
        let options = weir_core::core::Options { cluster, ..weir_core::core::Options::default() };
        let (store, seed) = (Arc::clone(store), Seed::fixed(seed));
        let core = Core::open_with(store, clock, &seed, Metrics::default(), options).await.unwrap();
        pods.push(Arc::new(core));
    }
    pods
}

#[tokio::test(start_paused = true)]
async fn a_pod_tells_of_what_another_has_done() {
    let (store, clock) = in_memory();
    let pods = pods(&store, clock, 3).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let tracker = tokio_util::task::TaskTracker::new();
    for core in &pods {
        let (core, stop) = (Arc::clone(core), stop.clone());
        tracker.spawn(async move { core.follow_others(&stop).await });
    }
    let mut told = pods[2].catalog().told();
    let writer = acquired(&pods[0]).await;
    declare(&pods[0], writer, &queue("q"), claim("eu", "u1", 1)).await.unwrap();
    assert_eq!(told.recv().await.unwrap(), (Kind::Queue, "q".to_owned()));
    let found = pods[2].catalog().found(Kind::Queue, "q").await.unwrap().entry;
    assert_eq!((found.state, found.origin.as_str()), (EntryState::Active, "operator"));
    // Any pod takes the next call of the same writer.
    let changed = Definition { delete_data: true, ..queue("q") };
    declare(&pods[1], writer, &changed, claim("eu", "u1", 2)).await.unwrap();
    told.recv().await.unwrap();
    assert!(pods[2].catalog().found(Kind::Queue, "q").await.unwrap().entry.definition.delete_data);
    // What changes nothing is no news.
    declare(&pods[1], writer, &changed, claim("eu", "u1", 2)).await.unwrap();
    release(&pods[0], writer, &changed, "eu", None).await.unwrap();
    told.recv().await.unwrap();
    assert!(pods[2].catalog().found(Kind::Queue, "q").await.is_none());
    assert!(told.is_empty());
    stop.cancel();
    tracker.close();
    tracker.wait().await;
}

#[tokio::test(start_paused = true)]
async fn messages_go_on_while_their_queue_moves_into_a_cluster() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[queue("q")]).await.unwrap();
    publish(&core, clock, "q/1", "0").await.unwrap();
    let writer = acquired(&core).await;
    let adopted = declare(&core, writer, &queue("q"), claim("eu", "u1", 1)).await.unwrap();
    assert_eq!(adopted.outcome, Outcome::Adopted);
    // The manifests are there still, and then they are not.
    assert_eq!(core.apply(&[queue("q")]).await.unwrap().yielded, ["q"]);
    assert!(core.apply(&[]).await.unwrap().is_empty());
    assert_eq!(core.targets(&message(clock, "q/1", "").topic).len(), 1);
    core.close().await;
}
