//! Interest: what clients of this pod want live is told to the other pods, and what theirs want is put among the routes.
//!
//! One task writes what is wanted here, in batches; another follows what the others write. SUBACK waits until every pod
//! knows what it acknowledges: from then on each of their publishes comes here. What a client wants is held by its
//! connection ([`Held`]), and given up with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use weir_core::cluster::{Change, Cluster, FeedEvent, FeedReceiver, InterestKey, PodInterest, Topic, Want};
use weir_core::keyspace::owner::PodId;
use weir_env::clock::{Clock, Instant};
use weir_env::seed::HashMap;
use weir_storage::Version;
use weir_topic::Subscription;

pub(crate) use super::ledger::Need;

use super::ledger::Ledger;
use crate::broker::Broker;
use crate::router::Router;

/// Rows written in one transaction.
const ROWS_MAX: usize = 1000;
/// Wait before a write that failed is tried again.
const RETRY_WAIT: Duration = Duration::from_millis(100);
/// Longest wait for other pods to know of a subscription. Then it is acknowledged all the same, and counted: a pod that does
/// not answer keeps no client waiting for longer.
const KNOWN_WAIT_MAX: Duration = Duration::from_secs(5);
/// Topics of the feed that are followed.
const TOPICS: &[Topic] = &[Topic::Pods, Topic::Interest];

/// What clients of this pod want live.
#[derive(Debug)]
pub(crate) struct Interest {
    cluster: Cluster,
    clock: Clock,
    ledger: Mutex<Ledger>,
    changed: Notify,
    /// Grows with each write.
    written_tx: watch::Sender<u64>,
}

/// What a client wants live, as long as this is held.
#[derive(Debug)]
pub(crate) struct Held {
    interest: Arc<Interest>,
    key: InterestKey,
    need: Need,
}

impl Held {
    /// What it is for [`Interest::known`].
    pub(crate) fn what(&self) -> (InterestKey, Need) {
        (self.key.clone(), self.need)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let interest = &self.interest;
        if interest.ledger.lock().release(&self.key, self.need, interest.clock.now()) {
            interest.changed.notify_one();
        }
    }
}

/// What other pods are told of a subscription; nothing if publishes never come from them: to topics below `$SYS`, and into
/// queues and streams.
pub(crate) fn key_of(to: &Subscription) -> Option<InterestKey> {
    let (group, filter) = match to {
        Subscription::Plain(filter) => (None, filter),
        Subscription::Shared { group, filter } => (Some(group.as_str().into()), filter),
        Subscription::Queue { .. }
        | Subscription::QueueByFilter { .. }
        | Subscription::Stream { .. }
        | Subscription::StreamByFilter { .. } => return None,
    };
    let is_own = filter.levels().next() == Some("$SYS");
    (!is_own).then(|| InterestKey { group, filter: filter.as_str().into() })
}

impl Interest {
    pub(crate) fn new(cluster: &Cluster, clock: Clock) -> Self {
        Self {
            cluster: cluster.clone(),
            clock,
            ledger: Mutex::default(),
            changed: Notify::new(),
            written_tx: watch::Sender::new(0),
        }
    }

    /// A client wants this from now on; [`Interest::known`] tells when it gets it.
    pub(crate) fn hold(self: &Arc<Self>, key: InterestKey, need: Need) -> Held {
        if self.ledger.lock().hold(&key, need, self.clock.now()) {
            self.changed.notify_one();
        }
        Held { interest: Arc::clone(self), key, need }
    }

    /// Waits until all pods know of `held`, or some seconds.
    pub(crate) async fn known(self: Arc<Self>, held: Vec<(InterestKey, Need)>) {
        let known = async {
            let mut written = self.written_tx.subscribe();
            loop {
                written.borrow_and_update();
                if let Some(version) = self.since(&held) {
                    self.cluster.wait_everywhere(version).await;
                    return;
                }
                if written.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(KNOWN_WAIT_MAX, known).await.is_err() {
            self.cluster.metrics().interest_late.inc();
            tracing::warn!(
                "not all pods know of a subscription yet: what they publish may not reach it at first"
            );
        }
    }

    /// Since when the store has all of `held`.
    fn since(&self, held: &[(InterestKey, Need)]) -> Option<Version> {
        let ledger = self.ledger.lock();
        held.iter()
            .map(|(key, need)| ledger.since(key, *need))
            .try_fold(Version::default(), |latest, since| Some(latest.max(since?)))
    }

    /// Writes what is wanted, until `stop`.
    pub(crate) async fn write(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let due = self.ledger.lock().next_due();
            tokio::select! {
                () = self.changed.notified() => {}
                () = until(due) => {}
                () = stop.cancelled() => return,
            }
            loop {
                let (rows, len) = {
                    let mut ledger = self.ledger.lock();
                    (ledger.take_due(self.clock.now(), ROWS_MAX), ledger.len())
                };
                self.cluster.metrics().interest.set(i64::try_from(len).unwrap_or(i64::MAX));
                if rows.is_empty() {
                    break;
                }
                let outcome = self.cluster.write_interest(&rows).await;
                let now = self.clock.now();
                match outcome {
                    Ok(version) => {
                        self.ledger.lock().written(rows, version, now);
                        self.written_tx.send_modify(|n| *n += 1);
                    }
                    Err(error) => {
                        tracing::debug!(%error, "tell other pods what clients want; trying again");
                        self.ledger.lock().failed(rows, now);
                        tokio::select! {
                            () = tokio::time::sleep(RETRY_WAIT) => {}
                            () = stop.cancelled() => return,
                        }
                    }
                }
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Follows what clients of other pods want.
pub(crate) struct InterestFollower {
    broker: Arc<Broker>,
    cluster: Cluster,
    receiver: FeedReceiver,
    pods: OtherPods,
}

/// What is among the routes for other pods.
#[derive(Debug, Default)]
struct OtherPods(BTreeMap<PodId, OtherPod>);

#[derive(Debug)]
struct OtherPod {
    /// Its name among the routes.
    key: u64,
    wants: HashMap<InterestKey, Want>,
}

impl InterestFollower {
    /// Reads what there is. Then publishes may come.
    pub(crate) async fn start(broker: &Arc<Broker>, cluster: &Cluster) -> Self {
        let receiver = cluster.feed().subscribe(TOPICS);
        let (broker, cluster) = (Arc::clone(broker), cluster.clone());
        let mut follower = Self { broker, cluster, receiver, pods: OtherPods::default() };
        let first = follower.receiver.next().await;
        follower.follow(first).await;
        follower
    }

    /// Follows until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while let Some(event) = stop.run_until_cancelled(self.receiver.next()).await {
            if stop.run_until_cancelled(self.follow(event)).await.is_none() {
                return;
            }
        }
    }

    async fn follow(&mut self, event: FeedEvent) {
        let router = &self.broker.router;
        match event {
            FeedEvent::Reload { .. } => {
                // Until it is read nothing counts as applied, so no pod relies on it.
                while let Err(error) = self.reload().await {
                    tracing::warn!(%error, "read what clients of other pods want; trying again");
                    tokio::time::sleep(RETRY_WAIT).await;
                }
            }
            FeedEvent::Change { change, .. } => match &*change {
                Change::Interest(interest) if interest.pod != self.cluster.me() => {
                    self.pods.set(router, interest);
                }
                Change::PodGone(pod) => self.pods.forget(router, *pod),
                _ => {}
            },
        }
        let count = self.pods.0.values().map(|pod| pod.wants.len()).sum::<usize>();
        self.cluster.metrics().interest_elsewhere.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    async fn reload(&mut self) -> weir_core::Result<()> {
        let mut there: BTreeMap<PodId, HashMap<InterestKey, Want>> = BTreeMap::new();
        let mut cursor = None;
        loop {
            let page = self.cluster.read_interest(cursor).await?;
            for PodInterest { pod, key, want } in page.rows {
                there.entry(pod).or_default().insert(key, want);
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        there.remove(&self.cluster.me());
        self.pods.replace(&self.broker.router, &there);
        Ok(())
    }
}

impl OtherPods {
    fn set(&mut self, router: &Router, interest: &PodInterest) {
        let PodInterest { pod, key, want } = interest;
        let known = self
            .0
            .entry(*pod)
            .or_insert_with(|| OtherPod { key: router.pod_key(), wants: HashMap::default() });
        router.set_interest(known.key, *pod, key, *want);
        if want.is_none() {
            known.wants.remove(key);
        } else {
            known.wants.insert(key.clone(), *want);
        }
    }

    fn forget(&mut self, router: &Router, pod: PodId) {
        let Some(known) = self.0.remove(&pod) else { return };
        for key in known.wants.keys() {
            router.set_interest(known.key, pod, key, Want::default());
        }
    }

    /// Has there be what is `there`, and nothing else.
    fn replace(&mut self, router: &Router, there: &BTreeMap<PodId, HashMap<InterestKey, Want>>) {
        let gone: Vec<PodId> = self.0.keys().filter(|pod| !there.contains_key(pod)).copied().collect();
        gone.into_iter().for_each(|pod| self.forget(router, pod));
        for (pod, wants) in there {
            let known = self.0.get(pod).into_iter().flat_map(|known| known.wants.keys());
            let dropped: Vec<InterestKey> = known.filter(|key| !wants.contains_key(*key)).cloned().collect();
            let rows = dropped.into_iter().map(|key| (key, Want::default()));
            for (key, want) in rows.chain(wants.iter().map(|(key, want)| (key.clone(), *want))) {
                self.set(router, &PodInterest { pod: *pod, key, want });
            }
        }
    }
}
