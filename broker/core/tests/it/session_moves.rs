//! Sessions, wills, inboxes and the catalog over several pods of one cluster, on one store in memory and paused time.
//! Pods are killed as a process is: nothing is put away, and others find out.

use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_core::cluster::{Cluster, ClusterOptions, FeedEvent, FeedReceiver, PodInfo, Topic};
use weir_core::definition::Kind;
use weir_core::inbox::{
    Inbox, InboxAppend, InboxLimits, InboxMetrics, InboxOptions, InboxTarget, InboxWriter,
};
use weir_core::keyspace::PublishId;
use weir_core::keyspace::catalog::Origin;
use weir_core::keyspace::change::{Change, SessionPhase};
use weir_core::keyspace::owner::PodId;
use weir_core::keyspace::session::{IncomingPublish, StoredSubscription};
use weir_core::keyspace::tag;
use weir_core::metrics::{ClusterMetrics, Metrics};
use weir_core::sessions::{CloseOptions, OpenOptions, Place, SessionRef, Sessions, WillAction};
use weir_core::wills::{StoredWill, Wills};
use weir_core::{Core, Error};
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{Isolation, RangeQuery, SharedStore};

use crate::support::{definition, in_memory, message};

const VIRTUAL_SHARDS: u16 = 16;
/// More than pods take to find out that one is dead.
const DEATH: Duration = Duration::from_secs(7);

/// A pod without its shards and clients.
struct Pod {
    cluster: Cluster,
    sessions: Sessions,
}

impl Pod {
    async fn join(store: &SharedStore, clock: Clock, id: u8) -> Self {
        let (pod, options) = (PodId([id; 16]), ClusterOptions::new(PodInfo::default()));
        let metrics = ClusterMetrics::default();
        let joining = Cluster::join(Arc::clone(store), clock, pod, VIRTUAL_SHARDS, options, metrics);
        let cluster = joining.await.unwrap();
        let (of, seed) = (Some(cluster.clone()), Seed::fixed(id.into()));
        let sessions = Sessions::new_in(of, Arc::clone(store), clock, &seed, pod.0, VIRTUAL_SHARDS);
        Self { cluster, sessions }
    }

    async fn open(&self, options: &OpenOptions) -> weir_core::sessions::Opened {
        self.sessions.open(&client(), options).await.unwrap()
    }

    /// Waits until the pod knows as many members.
    async fn sees(&self, members: usize) {
        let mut view = self.cluster.members();
        let seen = view.wait_for(|view| view.pods.len() == members);
        assert!(tokio::time::timeout(DEATH, seen).await.is_ok(), "not {members} members");
    }

    fn subscribe(&self) -> FeedReceiver {
        self.cluster.feed().subscribe(&[Topic::Routes, Topic::Sessions])
    }

    /// Publishes the wills that are due; their topics.
    async fn publish_wills(&self, clock: Clock) -> Vec<String> {
        let wills = Wills::new(&self.sessions);
        let mut topics = Vec::new();
        for due in wills.due(clock.wall(), 100).await.unwrap() {
            topics.push(due.will.message.topic.to_string());
            wills.done(&due).await.unwrap();
        }
        topics
    }
}

fn client() -> ByteString {
    "c".into()
}

fn clean() -> OpenOptions {
    OpenOptions { clean_start: true, expiry_seconds: 0, will: None }
}

fn lasting(expiry_seconds: u32) -> OpenOptions {
    OpenOptions { clean_start: false, expiry_seconds, will: None }
}

fn with_will(clock: Clock, delay_seconds: u32, options: OpenOptions) -> OpenOptions {
    let will = StoredWill { message: message(clock, "gone", "gone"), delay_seconds, expiry_seconds: None };
    OpenOptions { will: Some(will), ..options }
}

fn ending(expiry_seconds: u32) -> CloseOptions {
    CloseOptions {
        expiry_seconds,
        will: WillAction::Cancel,
        outgoing: Vec::new(),
        positions: Vec::new(),
        answered: Vec::new(),
    }
}

async fn rows(store: &SharedStore, tag: u8) -> usize {
    store.begin().get_range(RangeQuery::prefix([tag]), Isolation::Snapshot).await.unwrap().pairs.len()
}

/// The next change, after the word that what there is should be read.
async fn next(receiver: &mut FeedReceiver) -> Change {
    loop {
        match tokio::time::timeout(DEATH, receiver.next()).await.expect("a change in time") {
            FeedEvent::Reload { .. } => {}
            FeedEvent::Change { change, .. } => return Change::clone(&change),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clean_session_has_a_fence_where_there_are_other_pods() {
    let (store, clock) = in_memory();
    let (a, b) = (Pod::join(&store, clock, 1).await, Pod::join(&store, clock, 2).await);
    let first = a.open(&clean()).await;
    assert_eq!(first.previous, None);
    let holder = b.sessions.holder("c").await.unwrap().expect("the fence names who is connected");
    assert_eq!((holder.pod, holder.epoch), (a.cluster.me(), first.session.epoch));
    let second = b.open(&clean()).await;
    assert_eq!(second.previous, Some(holder));
    assert!(second.version > first.version);
    // Whoever lost it takes nothing from the winner.
    assert!(matches!(a.sessions.close(&first.session, &ending(0)).await, Err(Error::Fenced)));
    assert_eq!(b.sessions.holder("c").await.unwrap().map(|holder| holder.pod), Some(b.cluster.me()));
    b.sessions.close(&second.session, &ending(0)).await.unwrap();
    assert_eq!((rows(&store, tag::SESSION).await, rows(&store, tag::WILL).await), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_becomes_of_a_session_is_told_in_order() {
    let (store, clock) = in_memory();
    let (a, b) = (Pod::join(&store, clock, 1).await, Pod::join(&store, clock, 2).await);
    let mut heard = b.subscribe();
    let opened = a.open(&lasting(60)).await;
    let session = &opened.session;
    let filter = ByteString::from("a/#");
    let stored = StoredSubscription { qos: 1, ..StoredSubscription::default() };
    let version = a.sessions.subscribe(session, &[(filter.clone(), stored.clone())]).await.unwrap();
    assert!(version.unwrap() > opened.version);
    a.sessions.unsubscribe(session, std::slice::from_ref(&filter)).await.unwrap();
    a.sessions.close(session, &ending(60)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(61)).await;
    let ended: usize = a.sessions.expire_due(clock.wall()).await.unwrap().len()
        + b.sessions.expire_due(clock.wall()).await.unwrap().len();
    assert_eq!(ended, 1, "one of the pods looks after it");
    let route = |subscription| Change::Route {
        pod: a.cluster.me(),
        client: client(),
        incarnation: session.incarnation,
        filter: filter.clone(),
        subscription,
    };
    let phase = |change: Change| match change {
        Change::Session { client: of, incarnation, now, .. } => {
            assert_eq!((of, incarnation), (client(), session.incarnation));
            now
        }
        other => panic!("{other:?}"),
    };
    let mut hear = async || {
        let change = next(&mut heard).await;
        b.sessions.follow(&change);
        change
    };
    assert_eq!(b.sessions.whereabouts("c"), Place::Unknown);
    assert_eq!(phase(hear().await), SessionPhase::Connected);
    assert_eq!(b.sessions.whereabouts("c"), Place::At(a.cluster.me()));
    assert_eq!(hear().await, route(Some(stored)));
    assert_eq!(hear().await, route(None));
    assert_eq!(phase(hear().await), SessionPhase::Away);
    assert_eq!(b.sessions.whereabouts("c"), Place::Away);
    assert_eq!(phase(hear().await), SessionPhase::Ended);
    assert_eq!(b.sessions.whereabouts("c"), Place::Unknown);
}

#[tokio::test(start_paused = true)]
async fn connections_of_a_pod_that_lives_are_left_alone_whatever_is_said() {
    let (store, clock) = in_memory();
    let (a, b) = (Pod::join(&store, clock, 1).await, Pod::join(&store, clock, 2).await);
    let opened = a.open(&with_will(clock, 0, clean())).await;
    b.sessions.close_orphans(|_| true).await.unwrap();
    assert!(b.publish_wills(clock).await.is_empty() && a.publish_wills(clock).await.is_empty());
    a.sessions.close(&opened.session, &ending(0)).await.expect("it still has its session");
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_pod_leaves_is_seen_to_once() {
    for delay in [0, 20] {
        let (store, clock) = in_memory();
        let a = Pod::join(&store, clock, 1).await;
        let (b, c) = (Pod::join(&store, clock, 2).await, Pod::join(&store, clock, 3).await);
        let lasting = with_will(clock, delay, lasting(60));
        let lost = a.open(&lasting).await.session;
        let gone = a.cluster.me();
        a.cluster.stop().await;
        b.sees(2).await;
        c.sees(2).await;
        // Both think that it is for them.
        let (one, other) = tokio::join!(
            b.sessions.close_orphans(|pod| *pod == gone.0),
            c.sessions.close_orphans(|pod| *pod == gone.0)
        );
        assert!(one.unwrap() + other.unwrap() >= 1);
        let mut wills = Vec::new();
        let mut ended = 0;
        for _ in 0..90 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            for pod in [&b, &c] {
                wills.extend(pod.publish_wills(clock).await);
                ended += pod.sessions.expire_due(clock.wall()).await.unwrap().len();
            }
        }
        assert_eq!((wills, ended), (vec!["gone".to_owned()], 1), "delay {delay}");
        assert!(matches!(a.sessions.close(&lost, &ending(0)).await, Err(Error::Fenced)));
        tokio::time::sleep(Duration::from_secs(60)).await;
        for pod in [&b, &c] {
            Inbox::new(&pod.sessions).sweep(clock.wall()).await.unwrap();
        }
        for tag in [tag::SESSION, tag::WILL, tag::TIMER] {
            assert_eq!(rows(&store, tag).await, 0, "table {}", char::from(tag));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clean_session_that_is_opened_anew_outlives_the_end_of_the_dead_pods() {
    let (store, clock) = in_memory();
    let (a, b) = (Pod::join(&store, clock, 1).await, Pod::join(&store, clock, 2).await);
    a.open(&with_will(clock, 0, clean())).await;
    a.cluster.stop().await;
    b.sees(1).await;
    b.sessions.close_orphans(|_| true).await.unwrap();
    let anew = b.open(&with_will(clock, 0, clean())).await.session;
    assert_eq!(b.publish_wills(clock).await, ["gone"]);
    assert!(b.sessions.expire_due(clock.wall()).await.unwrap().is_empty());
    b.sessions.close(&anew, &ending(0)).await.expect("nobody has ended it");
}

#[tokio::test(start_paused = true)]
async fn an_inbox_that_another_pod_empties_does_not_fill_up() {
    let (store, clock) = in_memory();
    let (a, b) = (Pod::join(&store, clock, 1).await, Pod::join(&store, clock, 2).await);
    let session = b.open(&lasting(60)).await.session;
    let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
    let limits = InboxLimits { messages_max: 10, ..InboxLimits::default() };
    let options = InboxOptions { limits, ..InboxOptions::default() };
    let metrics = InboxMetrics::default();
    let writer = InboxWriter::spawn(&a.sessions, options, &metrics, Arc::new(|_| {}), &tracker, &stop);
    let inbox = Inbox::new(&b.sessions);
    for round in 0..50 {
        add(&writer, clock, &session).await;
        let items = inbox.read(&session, None, 10, 1_000_000).await.unwrap();
        assert_eq!(items.len(), 1, "round {round}");
        let ids: Vec<_> = items.iter().map(|item| item.id).collect();
        inbox.remove(&session, &ids).await.unwrap();
    }
    assert_eq!(metrics.dropped_full.get(), 0);
    // What is there counts.
    for _ in 0..30 {
        add(&writer, clock, &session).await;
    }
    let left = inbox.read(&session, None, 100, 1_000_000).await.unwrap().len();
    assert!((10..=21).contains(&left), "{left} in an inbox of 10");
    stop.cancel();
    tracker.close();
    tracker.wait().await;
}

fn target(session: &SessionRef) -> InboxTarget {
    InboxTarget {
        client_id: session.client_id.clone(),
        incarnation: session.incarnation,
        qos: 1,
        retain: false,
        subscription_ids: std::iter::empty().collect(),
    }
}

async fn add(writer: &InboxWriter, clock: Clock, session: &SessionRef) {
    let target = target(session);
    let message = Arc::new(message(clock, "t", "x"));
    let append = InboxAppend { message, targets: std::iter::once(target).collect(), mark: None, noted: None };
    writer.append(append).await.unwrap().await.unwrap();
}

/// A pod that was stopped between taking a publish and storing it goes on when all is over.
#[tokio::test(start_paused = true)]
async fn a_publish_that_was_ended_by_way_of_another_pod_is_not_added_again() {
    let (store, clock) = in_memory();
    let (a, b) = (Pod::join(&store, clock, 1).await, Pod::join(&store, clock, 2).await);
    let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
    let spawn = |pod: &Pod| {
        let (options, metrics) = (InboxOptions::default(), InboxMetrics::default());
        InboxWriter::spawn(&pod.sessions, options, &metrics, Arc::new(|_| {}), &tracker, &stop)
    };
    let (at_a, at_b) = (spawn(&a), spawn(&b));
    let reader = b.sessions.open(&"reader".into(), &lasting(60)).await.unwrap().session;
    let (id, other) = (PublishId([1; 16]), PublishId([2; 16]));
    // Small, and so large that it is written ahead of its row.
    for payload in ["x".to_owned(), "x".repeat(200_000)] {
        let publish = InboxAppend {
            message: Arc::new(message(clock, "t", &payload)),
            targets: std::iter::once(target(&reader)).collect(),
            mark: Some(id),
            noted: Some((client(), 7)),
        };
        let publisher = a.open(&lasting(60)).await.session;
        a.sessions.store_incoming(&publisher, 7, id).await.unwrap();
        let moved = b.open(&lasting(60)).await;
        assert_eq!(moved.incoming, [(7, IncomingPublish { id, is_answered: false })]);
        at_b.append(publish.clone()).await.unwrap().await.unwrap();
        // The mark tells.
        at_a.append(publish.clone()).await.unwrap().await.unwrap();
        b.sessions.clear_incoming(&moved.session, 7).await.unwrap();
        let late = at_a.append(publish.clone()).await.unwrap().await;
        assert!(matches!(late, Err(Error::Fenced)), "{late:?}");
        // The packet id is used again.
        b.sessions.store_incoming(&moved.session, 7, other).await.unwrap();
        let late = at_a.append(publish).await.unwrap().await;
        assert!(matches!(late, Err(Error::Fenced)), "{late:?}");
        b.sessions.clear_incoming(&moved.session, 7).await.unwrap();
        let items = Inbox::new(&b.sessions).read(&reader, None, 10, 1_000_000).await.unwrap();
        assert_eq!(items.len(), 1, "{} bytes", payload.len());
        Inbox::new(&b.sessions).remove(&reader, &[items[0].id]).await.unwrap();
        assert_eq!(rows(&store, tag::INBOX_MARK).await, 0);
        assert_eq!(rows(&store, tag::INBOX_BLOB).await, 0);
    }
    stop.cancel();
    tracker.close();
    tracker.wait().await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_one_pod_makes_is_known_to_the_others_when_it_says_so() {
    let (store, clock) = in_memory();
    let core = async |seed| {
        let cluster = Some(ClusterOptions::new(PodInfo::default()));
        let options = weir_core::core::Options { cluster, ..weir_core::core::Options::default() };
        let (seed, metrics) = (Seed::fixed(seed), Metrics::default());
        Arc::new(Core::open_with(Arc::clone(&store), clock, &seed, metrics, options).await.unwrap())
    };
    let (a, b) = (core(1).await, core(2).await);
    let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
    for core in [&a, &b] {
        let (core, stop) = (Arc::clone(core), stop.clone());
        tracker.spawn(async move { core.follow_others(&stop).await });
    }
    let known = |name: &str| b.catalog().view().find(Kind::Queue, name);
    let orders = definition(Kind::Queue, "orders", "orders/#", 1);
    let made = a.create(&orders, Origin::Admin).await.unwrap();
    assert_eq!(known("orders").map(|object| object.id), Some(made.id));
    let paused = a.pause("orders", true).await.unwrap();
    assert!(known("orders").is_some_and(|object| object.paused && object.generation == paused.generation));
    // What the other pod has made is no news to this one, and it may go on with it.
    b.pause("orders", false).await.unwrap();
    assert!(a.catalog().view().find(Kind::Queue, "orders").is_some_and(|object| !object.paused));
    let set = [definition(Kind::Queue, "jobs", "jobs/#", 2), definition(Kind::Queue, "more", "more/#", 1)];
    a.apply(&set).await.unwrap();
    assert!(known("jobs").is_some() && known("more").is_some() && known("orders").is_some());
    // The same set at another pod changes nothing.
    assert!(b.apply(&set).await.unwrap().is_empty());
    b.apply(&set[..1]).await.unwrap();
    assert!(a.catalog().view().find(Kind::Queue, "more").is_none());
    a.delete(Kind::Queue, "orders", Some(false)).await.unwrap();
    assert!(known("orders").is_none());
    stop.cancel();
    tracker.close();
    tracker.wait().await;
}
