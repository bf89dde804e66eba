//! Many pods over one store: who is a member, who owns which virtual shard, and what has changed.
//!
//! Truth is in the store; what a pod keeps in memory of it follows by the change feed (`feed`, read by `tail`). Whether a
//! pod lives is told by its counter in the store (`membership`) as others see it on their own clocks (`pods`). Who should
//! own a shard follows from the members (`rendezvous`); who does is what its owner record says. A pod that runs alone uses
//! none of this.
//!
//! Knows nothing of what a shard does, nor of clients.

mod beat;
pub mod feed;
pub mod interest;
pub mod links;
pub(crate) mod meeting;
pub(crate) mod membership;
pub mod message;
pub mod network;
mod owners;
mod pods;
pub mod rendezvous;
mod tail;
mod telling;
pub mod testing;
mod view;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_env::clock::{Clock, Instant};
use weir_storage::{SharedStore, Transaction, Version};

pub use self::feed::{Feed, FeedEvent, FeedReceiver};
pub use self::view::{Member, View};
pub use crate::keyspace::change::{Change, Topic};
pub use crate::keyspace::interest::{InterestKey, PodInterest, Want};
pub use crate::keyspace::load::{DrainState, PodLoad};
pub use crate::keyspace::pod::{DrainOrder, PodInfo};

use self::links::Links;
use self::message::Lane;
use self::owners::OwnerCache;
use self::pods::Pods;
use crate::error::{Error, Result};
use crate::keyspace::VirtualShard;
use crate::keyspace::owner::{Owner, PodId};
use crate::keyspace::pod::Pod;
use crate::metrics::ClusterMetrics;
use crate::panics::Panics;

/// How a pod takes part in a cluster.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// What it says of itself.
    pub info: PodInfo,
    /// Time between its signs of life, and between two looks at those of others.
    pub heartbeat: Duration,
    /// Without a sign of life for so long it is dead.
    pub ttl: Duration,
    /// Another pod is dead without a sign of life for so long after the link to it broke.
    pub suspect_after: Duration,
    /// Virtual shards handed to other pods in a second, unless this one leaves.
    pub moves_per_second: u32,
    /// How long changes stay in the feed. A pod that has missed more reads everything again.
    pub changes_kept: Duration,
    /// How many changes stay in the feed, about.
    pub changes_kept_max: u64,
    /// How often older ones are removed.
    pub trim_interval: Duration,
}

impl ClusterOptions {
    /// The defaults, for a pod that says `info` of itself.
    #[must_use]
    pub const fn new(info: PodInfo) -> Self {
        Self {
            info,
            heartbeat: Duration::from_millis(200),
            ttl: Duration::from_secs(5),
            suspect_after: Duration::from_millis(600),
            moves_per_second: 64,
            changes_kept: Duration::from_secs(300),
            changes_kept_max: 100_000,
            trim_interval: Duration::from_secs(10),
        }
    }
}

/// This pod's part in the cluster. Clones share it.
#[derive(Clone, Debug)]
pub struct Cluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    me: PodId,
    store: SharedStore,
    clock: Clock,
    options: ClusterOptions,
    virtual_shards: u16,
    metrics: ClusterMetrics,
    feed: Feed,
    view_tx: watch::Sender<Arc<View>>,
    owners: Mutex<OwnerCache>,
    owners_tx: watch::Sender<u64>,
    /// What other pods' counters say; held with no other lock but for a look at the members.
    pods: Mutex<Pods>,
    /// All changes up to this version have been applied by every other member, as far as is known.
    others_tx: watch::Sender<Version>,
    /// When the last sign of life was begun that is in the store.
    beaten_at: Mutex<Instant>,
    beats: AtomicU64,
    quiet_tx: watch::Sender<bool>,
    /// Why this pod is no member any more.
    failed_tx: watch::Sender<Option<Arc<str>>>,
    /// What it says with its signs of life.
    load: Mutex<PodLoad>,
    tasks: TaskTracker,
    stopped: CancellationToken,
    panics: Panics,
}

impl Cluster {
    /// Makes pod `me` a member of the cluster of `store`, which has `virtual_shards`. Returns once it knows the others.
    ///
    /// # Errors
    /// If the store fails, or records of members or owners are damaged.
    pub async fn join(
        store: SharedStore,
        clock: Clock,
        me: PodId,
        virtual_shards: u16,
        options: ClusterOptions,
        metrics: ClusterMetrics,
    ) -> Result<Self> {
        let inner = Arc::new(Inner {
            me,
            store,
            clock,
            virtual_shards,
            metrics,
            feed: Feed::default(),
            view_tx: watch::Sender::new(Arc::default()),
            owners: Mutex::new(OwnerCache::new(virtual_shards)),
            owners_tx: watch::Sender::new(0),
            pods: Mutex::new(Pods::new(options.suspect_after)),
            others_tx: watch::Sender::new(Version::default()),
            beaten_at: Mutex::new(clock.now()),
            beats: AtomicU64::new(0),
            quiet_tx: watch::Sender::new(false),
            failed_tx: watch::Sender::new(None),
            load: Mutex::default(),
            tasks: TaskTracker::new(),
            stopped: CancellationToken::new(),
            panics: Panics::default(),
            options,
        });
        membership::join(&inner).await?;
        let mut tail = tail::Tail::new(Arc::clone(&inner));
        tail.start().await?;
        tracing::info!(pod = %me, "joined the cluster");
        let beats = beat::run(Arc::clone(&inner));
        inner.tasks.spawn(inner.panics.watch(beats));
        inner.tasks.spawn(inner.panics.watch(tail.run()));
        Ok(Self { inner })
    }

    /// This pod.
    #[must_use]
    pub fn me(&self) -> PodId {
        self.inner.me
    }

    /// The members, and each change of them.
    #[must_use]
    pub fn members(&self) -> watch::Receiver<Arc<View>> {
        self.inner.view_tx.subscribe()
    }

    /// The members as they are known now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.inner.view_tx.borrow())
    }

    /// The pod that owns `vs`, as far as is known: none if nobody has ever, or its owner is no member any more.
    #[must_use]
    pub fn owner_of(&self, vs: VirtualShard) -> Option<PodId> {
        let owner = self.inner.owners.lock().get(vs)?.pod;
        self.view().contains(owner).then_some(owner)
    }

    /// The pod to ask for `vs`: its owner, or who should be.
    #[must_use]
    pub fn whom_to_ask(&self, vs: VirtualShard) -> Option<PodId> {
        self.owner_of(vs).or_else(|| self.view().assigned(vs))
    }

    /// Told whenever some shard has another owner.
    #[must_use]
    pub fn owners_changed(&self) -> watch::Receiver<u64> {
        self.inner.owners_tx.subscribe()
    }

    /// Whether this pod is the one that should own `vs`.
    #[must_use]
    pub fn should_own(&self, vs: VirtualShard) -> bool {
        self.view().assigned(vs) == Some(self.inner.me)
    }

    /// The link to `pod` broke: without a sign of life soon it is dead.
    pub fn suspect(&self, pod: PodId) {
        self.inner.pods.lock().suspect(pod, Some(self.inner.clock.now()));
    }

    /// The link to `pod` is there.
    pub fn trust(&self, pod: PodId) {
        self.inner.pods.lock().suspect(pod, None);
    }

    /// Told when this changes: true while this pod has not been able to give a sign of life for so long that others may be about to declare it
    /// dead: nothing should be delivered or acknowledged meanwhile.
    #[must_use]
    pub fn quiet(&self) -> watch::Receiver<bool> {
        self.inner.quiet_tx.subscribe()
    }

    /// Whether that is so at this moment: a process that was stopped is quiet before it can find out anything else.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.inner.clock.now() >= self.inner.quiet_at()
    }

    /// The change feed.
    #[must_use]
    pub fn feed(&self) -> &Feed {
        &self.inner.feed
    }

    /// `pod` says that its caches have all changes up to `version`.
    pub fn peer_applied(&self, pod: PodId, version: Version) {
        self.inner.pods.lock().has_applied(pod, version);
        self.inner.progressed();
    }

    /// Tells other members over `links` what this pod has applied, and hears it of them. To be called once, before there are
    /// peers. Without it they find out by signs of life.
    pub fn talk_over(&self, links: &Links) {
        links.handle_with(Lane::Feed, telling::handler(self.clone()));
        let telling = telling::run(self.clone(), links.clone(), self.inner.stopped.clone());
        self.inner.tasks.spawn(self.inner.panics.watch(telling));
    }

    /// Waits until every member has applied all changes up to `version`, which a commit of this pod has returned. A pod that
    /// dies meanwhile does not count. Cancel-safe; without an end if a member is stuck, so it is to be bounded in time.
    pub fn wait_everywhere(&self, version: Version) -> impl Future<Output = ()> + Send + use<> {
        let inner = Arc::clone(&self.inner);
        inner.feed.wake();
        async move {
            let has_all = |applied: &Version| *applied >= version;
            let (mut own, mut others) = (inner.feed.applied(), inner.others_tx.subscribe());
            // Who this pod does not know of yet may be a member. Both end only with the cluster.
            let _ = own.wait_for(has_all).await;
            let _ = others.wait_for(has_all).await;
        }
    }

    /// Gives this pod no more shards: it is about to leave.
    ///
    /// # Errors
    /// If the store fails, or this pod is no member any more.
    pub async fn drain(&self) -> Result<()> {
        if !membership::change_pod(&self.inner, self.inner.me, |pod| pod.is_draining = true).await? {
            return Err(Error::Fenced);
        }
        self.inner.feed.wake();
        Ok(())
    }

    /// Asks `pod` to have its clients go and gives it no more shards, or takes that back. False if it is no member.
    ///
    /// # Errors
    /// If the store fails, or what is written of the pod cannot be read.
    pub async fn order_drain(&self, pod: PodId, order: Option<DrainOrder>) -> Result<bool> {
        let change = |pod: &mut Pod| (pod.is_draining, pod.order) = (order.is_some(), order);
        let is_member = membership::change_pod(&self.inner, pod, change).await?;
        self.inner.feed.wake();
        Ok(is_member)
    }

    /// What this pod says of its load from now on.
    pub fn report(&self, load: PodLoad) {
        *self.inner.load.lock() = load;
    }

    /// What `pod` has said last of its load, and how long ago; of this one what it says now. None if it is not known.
    #[must_use]
    pub fn load_of(&self, pod: PodId) -> Option<(PodLoad, Duration)> {
        if pod == self.inner.me {
            return Some((*self.inner.load.lock(), Duration::ZERO));
        }
        self.inner.pods.lock().load_of(pod, self.inner.clock.now())
    }

    /// Ends the membership. Shards that are not handed over are taken over by others at once.
    ///
    /// # Errors
    /// If the store fails; others then find out by the TTL.
    pub async fn leave(&self) -> Result<()> {
        self.stop().await;
        membership::leave(&self.inner).await
    }

    /// Ends the tasks, as if the process had been killed: others find out.
    pub async fn stop(&self) {
        self.inner.stopped.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Waits until this pod can be a member no more, and says why: others have declared it dead, or a task has panicked.
    /// Cancel-safe.
    pub async fn failed(&self) -> Arc<str> {
        let mut failed = self.inner.failed_tx.subscribe();
        let told = async {
            loop {
                if let Some(why) = failed.borrow_and_update().clone() {
                    return why;
                }
                if failed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            why = told => why,
            () = self.inner.panics.panicked() => "a task of the cluster panicked".into(),
        }
    }

    /// Which virtual shards this pod owns, as far as is known, in which epoch.
    pub(crate) fn owned(&self) -> Vec<(VirtualShard, Owner)> {
        self.inner.owners.lock().of(self.inner.me)
    }

    /// Who owns `vs` as of its newest record that is known, member or not.
    pub(crate) fn record_of(&self, vs: VirtualShard) -> Option<Owner> {
        self.inner.owners.lock().get(vs)
    }

    /// How many virtual shards there are.
    pub(crate) fn virtual_shards(&self) -> u16 {
        self.inner.virtual_shards
    }

    /// As it takes part.
    pub(crate) fn options(&self) -> &ClusterOptions {
        &self.inner.options
    }

    /// What it counts.
    #[must_use]
    pub fn metrics(&self) -> &ClusterMetrics {
        &self.inner.metrics
    }

    /// Writes who owns `vs`, in the transaction of a takeover.
    pub(crate) fn write_owner(&self, tx: &mut dyn Transaction, vs: VirtualShard, owner: &Owner) {
        membership::write_owner(&self.inner, tx, vs, owner);
    }

    /// What was found in the store, or written to it.
    pub(crate) fn learn_owner(&self, vs: VirtualShard, owner: Owner) {
        self.inner.learn_owners([(vs, owner)]);
    }

    /// Gives shards of this pod to others, all or none.
    ///
    /// # Errors
    /// See [`membership::hand_over`].
    pub(crate) async fn hand_over(&self, moves: &[membership::Move]) -> Result<()> {
        let owners = membership::hand_over(&self.inner, moves).await?;
        self.inner.learn_owners(owners);
        self.inner.feed.wake();
        Ok(())
    }
}

impl Inner {
    /// The version up to which the caches of this pod are.
    fn applied(&self) -> Version {
        *self.feed.applied().borrow()
    }

    /// A pod may have applied more, or need not any more.
    fn progressed(&self) {
        // All of it under the lock, so that of two that do it at once the one that knows more is the last.
        let pods = self.pods.lock();
        let view = Arc::clone(&self.view_tx.borrow());
        let others = view.pods.iter().map(|pod| pod.id).filter(|pod| *pod != self.me);
        let all = pods.all_have_applied(others);
        self.others_tx.send_if_modified(|told| std::mem::replace(told, all) != all);
    }

    fn learn_owners(&self, owners: impl IntoIterator<Item = (VirtualShard, Owner)>) {
        let mut cache = self.owners.lock();
        let mut any = false;
        for (vs, owner) in owners {
            any |= cache.learn(vs, owner);
        }
        drop(cache);
        if any {
            self.owners_tx.send_modify(|n| *n += 1);
        }
    }

    /// This pod cannot go on.
    fn fail(&self, why: &str) {
        self.failed_tx.send_if_modified(|told| {
            let is_first = told.is_none();
            told.get_or_insert_with(|| why.into());
            is_first
        });
    }

    fn set_quiet(&self, is_quiet: bool) {
        let was = self.quiet_tx.send_replace(is_quiet);
        if was != is_quiet {
            self.metrics.quiet.set(i64::from(is_quiet));
            if is_quiet {
                tracing::warn!(pod = %self.me, "no sign of life for too long: other pods may declare this one dead");
            } else {
                tracing::info!(pod = %self.me, "signs of life again");
            }
        }
    }

    /// When nothing may be delivered any more unless there is a sign of life before.
    fn quiet_at(&self) -> Instant {
        *self.beaten_at.lock() + self.options.ttl * 3 / 5
    }

    fn next_beat(&self) -> u64 {
        self.beats.fetch_add(1, Ordering::Relaxed) + 1
    }
}
