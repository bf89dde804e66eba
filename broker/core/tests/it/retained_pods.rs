//! Retained messages over several pods of one cluster, on one store in memory and paused time: what a pod has in line
//! when it is stopped replaces nothing that came after it by way of another pod.

use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_core::cluster::{Cluster, ClusterOptions, PodInfo};
use weir_core::keyspace::owner::PodId;
use weir_core::keyspace::tag;
use weir_core::metrics::ClusterMetrics;
use weir_core::retained::{Retained, RetainedContext, RetainedMetrics, RetainedOptions};
use weir_core::sessions::{CloseOptions, OpenOptions, SessionRef, Sessions, WillAction};
use weir_core::{Error, Result};
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{Isolation, RangeQuery, SharedStore};
use weir_topic::TopicFilter;

use crate::support::{in_memory, message};

const VIRTUAL_SHARDS: u16 = 16;
/// More than pods take to find out that one is dead.
const DEATH: Duration = Duration::from_secs(7);

/// A pod with what keeps sessions and retained messages.
struct Pod {
    clock: Clock,
    cluster: Cluster,
    sessions: Sessions,
    retained: Retained,
    metrics: RetainedMetrics,
}

impl Pod {
    async fn join(store: &SharedStore, clock: Clock, id: u8) -> Self {
        let (pod, options) = (PodId([id; 16]), ClusterOptions::new(PodInfo::default()));
        let metrics = ClusterMetrics::default();
        let joining = Cluster::join(Arc::clone(store), clock, pod, VIRTUAL_SHARDS, options, metrics);
        let cluster = joining.await.unwrap();
        let (of, seed) = (Some(cluster.clone()), Seed::fixed(id.into()));
        let sessions = Sessions::new_in(of.clone(), Arc::clone(store), clock, &seed, pod.0, VIRTUAL_SHARDS);
        let context = RetainedContext {
            store: Arc::clone(store),
            clock,
            seed,
            virtual_shards: VIRTUAL_SHARDS,
            cluster: of,
        };
        let (metrics, tracker, stop) =
            (RetainedMetrics::default(), TaskTracker::new(), CancellationToken::new());
        let retained = Retained::spawn(context, RetainedOptions::default(), &metrics, &tracker, &stop);
        Self { clock, cluster, sessions, retained: retained.await.unwrap(), metrics }
    }

    async fn open(&self, client: &str, expiry_seconds: u32) -> SessionRef {
        let options = OpenOptions { clean_start: expiry_seconds == 0, expiry_seconds, will: None };
        self.sessions.open(&ByteString::from(client), &options).await.unwrap().session
    }

    async fn keep(&self, by: &SessionRef, topic: &str, payload: &str) -> Result<()> {
        self.retained.set_by(Arc::new(message(self.clock, topic, payload)), by).await?.await
    }

    async fn kept(&self, topic: &str) -> Vec<String> {
        let filter = TopicFilter::parse(topic.to_owned()).unwrap();
        let page = self.retained.matching(&filter, None, 10, usize::MAX).await.unwrap();
        let payload =
            |message: &weir_core::message::Message| String::from_utf8_lossy(&message.payload).into();
        page.messages.iter().map(payload).collect()
    }
}

async fn rows(store: &SharedStore, tag: u8) -> usize {
    store.begin().get_range(RangeQuery::prefix([tag]), Isolation::Snapshot).await.unwrap().pairs.len()
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_no_member_any_more_replaces_nothing() {
    let (store, clock) = in_memory();
    let (a, b) = (Pod::join(&store, clock, 1).await, Pod::join(&store, clock, 2).await);
    let (stays, moves) = (a.open("stays", 0).await, a.open("moves", 0).await);
    a.keep(&stays, "t", "first").await.unwrap();
    // It is stopped, and its heart with it; what it has in line is still to be written.
    a.cluster.stop().await;
    let mut view = b.cluster.members();
    let alone = view.wait_for(|view| view.pods.len() == 1);
    assert!(tokio::time::timeout(DEATH, alone).await.is_ok(), "it was not found dead");
    let moved = b.open("moves", 0).await;
    b.keep(&moved, "t", "newer").await.unwrap();
    let message = |payload| Arc::new(message(clock, "t", payload));
    let late = [
        a.retained.set_by(message("of one that moved"), &moves),
        a.retained.set_by(message("of one that did not"), &stays),
        a.retained.set_by(message(""), &stays),
    ];
    for write in late {
        let outcome = write.await.unwrap().await;
        assert!(matches!(outcome, Err(Error::Fenced)), "{outcome:?}");
    }
    // A will.
    let outcome = a.retained.set(message("of nobody")).await.unwrap().await;
    assert!(matches!(outcome, Err(Error::Fenced)), "{outcome:?}");
    assert_eq!(b.kept("t").await, ["newer"]);
    assert_eq!((a.metrics.fenced.get(), a.metrics.stored.get(), b.metrics.fenced.get()), (4, 1, 0));
}

/// A pod that was stopped for less than its time to live is a member still.
#[tokio::test(start_paused = true)]
async fn what_a_client_sent_before_it_went_elsewhere_replaces_nothing_of_what_it_sends_there() {
    for expiry_seconds in [0, 60] {
        let (store, clock) = in_memory();
        let (a, b) = (Pod::join(&store, clock, 1).await, Pod::join(&store, clock, 2).await);
        let (left, stays) = (a.open("moves", expiry_seconds).await, a.open("stays", expiry_seconds).await);
        a.keep(&left, "t", "first").await.unwrap();
        let moved = b.open("moves", expiry_seconds).await;
        b.keep(&moved, "t", "newer").await.unwrap();
        let large = "x".repeat(200_000);
        // In one line, perhaps in one transaction.
        let message = |topic, payload| Arc::new(message(clock, topic, payload));
        let late = a.retained.set_by(message("t", "older"), &left).await.unwrap();
        let of_another = a.retained.set_by(message("t/u", "kept"), &stays).await.unwrap();
        let late_and_large = a.retained.set_by(message("t", &large), &left).await.unwrap();
        let clears = a.retained.set_by(message("t", ""), &left).await.unwrap();
        for write in [late, late_and_large, clears] {
            let outcome = write.await;
            assert!(matches!(outcome, Err(Error::Fenced)), "{outcome:?}");
        }
        of_another.await.unwrap();
        assert_eq!((a.kept("t").await, a.kept("t/u").await), (vec!["newer".into()], vec!["kept".into()]));
        assert_eq!((a.metrics.fenced.get(), a.metrics.refused.get()), (3, 0));
        // Nothing is left of what was not kept.
        assert_eq!((rows(&store, tag::RETAINED_BLOB).await, rows(&store, tag::TIMER).await), (0, 0));
        assert_eq!(a.retained.usage().messages, 2);
        // Nor once the session has ended.
        let options = CloseOptions {
            expiry_seconds: 0,
            will: WillAction::Cancel,
            outgoing: Vec::new(),
            positions: Vec::new(),
            answered: Vec::new(),
        };
        b.sessions.close(&moved, &options).await.unwrap();
        let late = a.keep(&left, "t", "older").await;
        assert!(matches!(late, Err(Error::Fenced)), "{late:?}");
        assert_eq!(a.kept("t").await, ["newer"]);
    }
}
