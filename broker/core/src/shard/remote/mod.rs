//! Shards that other pods own, and other pods' part in the shards of this one.
//!
//! Where this pod owns a virtual shard, its task is a [`super::owner::ShardOwner`]; where it does not, a [`Forwarder`]
//! with the same commands. What a forwarder says to the owner is taken there by a `guest`, one task for each pod and
//! shard, which asks the owner's task as anybody in that pod does. Who owns what is the affair of the cluster; that
//! this pod may write is the fence's.

mod asks;
mod credit;
mod fills;
mod forwarder;
mod forwarding;
mod guest;
mod objects;
mod proxies;
mod settles;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_env::clock::Clock;
use weir_env::seed::HashMap;

pub(crate) use forwarder::Forwarder;

use self::guest::{Guest, Input};
use self::objects::Objects;
use super::{Command, Owners};
use crate::catalog::{Catalog, Object};
use crate::cluster::Cluster;
use crate::cluster::links::{Links, PeerHandler};
use crate::cluster::message::PeerMessage;
use crate::cluster::message::shard::{FromOwner, ObjectRef, ShardMessage};
use crate::error::Result;
use crate::groups::{Hub, HubSlot};
use crate::keyspace::VirtualShard;
use crate::keyspace::owner::PodId;
use crate::metrics::GaugeShare;
use crate::panics::Panics;
use crate::queue::{Consumer, ConsumerId, Window};

/// Words of other pods that wait for the task they are for, before what these pods say of shards waits with them.
const HEARD_MAX: usize = 65_536;
/// Ids of consumers on other pods begin here: no client's connection gives such a one.
const FOREIGN: u64 = 1 << 63;

/// Something that a forwarder hears.
#[derive(Debug)]
pub(crate) enum Heard {
    Words {
        from: PodId,
        talk: u64,
        words: FromOwner,
    },
    /// A new owner wants to know who consumes.
    RollCall {
        from: PodId,
    },
}

/// What the tasks of shards share that have to do with other pods.
pub(crate) struct Remote {
    cluster: Cluster,
    links: Links,
    clock: Clock,
    owners: Weak<Owners>,
    objects: Objects,
    talks: AtomicU64,
    proxies: AtomicU64,
    listeners: Mutex<Listeners>,
    guests: Mutex<HashMap<(PodId, VirtualShard), mpsc::Sender<Input>>>,
    /// Consumers of this pod, by the window that they share.
    consumers: Mutex<HashMap<ConsumerId, Attached>>,
    /// What is said about consumer groups is for it.
    groups: HubSlot,
    /// Words that had to wait for a task.
    held_up: Counter,
    tasks: TaskTracker,
    stop: CancellationToken,
    panics: Panics,
}

#[derive(Debug, Default)]
struct Listeners {
    forwarders: HashMap<VirtualShard, mpsc::Sender<Heard>>,
    /// Who has called the roll of a shard whose task does not listen yet.
    calls: HashMap<VirtualShard, PodId>,
}

#[derive(Debug)]
struct Attached {
    queue: Arc<Object>,
    connection: Option<Arc<Window>>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").finish_non_exhaustive()
    }
}

/// Whether a consumer is one of another pod.
pub(crate) fn is_foreign(consumer: ConsumerId) -> bool {
    consumer.0 & FOREIGN != 0 && consumer.0 != u64::MAX
}

impl Remote {
    pub(crate) fn new(
        cluster: Cluster,
        links: Links,
        clock: Clock,
        catalog: Arc<Catalog>,
        owners: Weak<Owners>,
        held_up: Counter,
    ) -> Arc<Self> {
        Arc::new(Self {
            cluster,
            links,
            clock,
            owners,
            objects: Objects::new(catalog),
            talks: AtomicU64::new(0),
            proxies: AtomicU64::new(0),
            listeners: Mutex::default(),
            guests: Mutex::default(),
            consumers: Mutex::default(),
            groups: HubSlot::new(),
            held_up,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            panics: Panics::default(),
        })
    }

    /// Who takes what other pods say of shards.
    pub(crate) fn handler(self: &Arc<Self>) -> Arc<dyn PeerHandler> {
        Arc::new(Handler(Arc::downgrade(self)))
    }

    /// What other pods say about consumer groups goes to `hub`. To be called once.
    pub(crate) fn hear_groups_with(&self, hub: &Arc<Hub>) {
        let _ = self.groups.set(Arc::downgrade(hub));
    }

    /// The queue or stream that `reference` names.
    ///
    /// # Errors
    /// [`crate::Error::Closed`] if there is none.
    pub(crate) async fn find_object(&self, reference: ObjectRef) -> Result<Arc<Object>> {
        self.objects.find(reference).await
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    fn next_talk(&self) -> u64 {
        self.talks.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn next_proxy(&self) -> ConsumerId {
        // The first stands for consumers that nobody knows.
        ConsumerId(FOREIGN | (self.proxies.fetch_add(1, Ordering::Relaxed) + 1))
    }

    /// The pod to be asked about `vs`: its owner, or who is to become that.
    fn owner(&self, vs: VirtualShard) -> Option<PodId> {
        self.cluster.whom_to_ask(vs).filter(|owner| *owner != self.cluster.me())
    }

    /// What is said about `vs` goes to a forwarder from now on; who has called its roll before.
    fn listen(&self, vs: VirtualShard) -> (mpsc::Receiver<Heard>, Option<PodId>) {
        let (heard_tx, heard_rx) = mpsc::channel(HEARD_MAX);
        let mut listeners = self.listeners.lock();
        listeners.forwarders.insert(vs, heard_tx);
        (heard_rx, listeners.calls.remove(&vs))
    }

    fn listen_no_more(&self, vs: VirtualShard) {
        self.listeners.lock().forwarders.remove(&vs);
    }

    /// Has every other pod announce its consumers of `vs` to this one, which has just taken it over: which pods are
    /// asked. Each answers with [`Command::Present`], or not at all.
    pub(crate) fn call_roll(self: &Arc<Self>, vs: VirtualShard) -> Vec<PodId> {
        let view = self.cluster.view();
        let me = self.cluster.me();
        let others: Vec<PodId> = view.pods.iter().map(|pod| pod.id).filter(|pod| *pod != me).collect();
        for pod in others.iter().copied() {
            let links = self.links.clone();
            self.tasks.spawn(async move {
                // Without a link it cannot answer either.
                let _ = links.send(pod, ShardMessage::RollCall { vs }).await;
            });
        }
        others
    }

    /// A consumer of this pod consumes `queue`.
    pub(crate) fn attached(&self, queue: &Arc<Object>, consumer: &Consumer) {
        let attached = Attached { queue: Arc::clone(queue), connection: consumer.connection_window.clone() };
        self.consumers.lock().insert(consumer.id, attached);
    }

    /// It does no more.
    pub(crate) fn detached(&self, consumer: ConsumerId) {
        self.consumers.lock().remove(&consumer);
    }

    /// Room has come back to the windows of `consumer`: tells the shards of all consumers that share one.
    fn kick_sharing(&self, consumer: ConsumerId) {
        let sharing: Vec<(ConsumerId, Arc<Object>)> = {
            let consumers = self.consumers.lock();
            let Some(attached) = consumers.get(&consumer) else { return };
            let window = attached.connection.as_ref();
            let shares = |(id, other): &(&ConsumerId, &Attached)| {
                **id == consumer
                    || window.is_some_and(|window| {
                        other.connection.as_ref().is_some_and(|other| Arc::ptr_eq(window, other))
                    })
            };
            let sharing = consumers.iter().filter(shares);
            sharing.map(|(id, attached)| (*id, Arc::clone(&attached.queue))).collect()
        };
        let Some(owners) = self.owners.upgrade() else { return };
        self.tasks.spawn(async move {
            for (consumer, queue) in sharing {
                for log in queue.logs.iter().copied() {
                    // Fails at shutdown only.
                    let Ok(shard) = owners.get(log.vs) else { return };
                    let _ = shard.send(Command::Kick { log, consumer }).await;
                }
            }
        });
    }

    async fn handle(self: &Arc<Self>, from: PodId, message: ShardMessage) {
        match message {
            ShardMessage::ToOwner { vs, talk, words } => {
                let Some(guest) = self.guest(from, vs) else { return };
                hand(&guest, &self.held_up, Input::Words { talk, words }).await;
            }
            ShardMessage::FromOwner { vs, talk, words } => {
                let listener = self.listeners.lock().forwarders.get(&vs).cloned();
                if let Some(listener) = listener {
                    hand(&listener, &self.held_up, Heard::Words { from, talk, words }).await;
                }
            }
            ShardMessage::RollCall { vs } => self.answer_roll_call(from, vs).await,
            ShardMessage::Absent { vs } => {
                let Some(owners) = self.owners.upgrade() else { return };
                if let Ok(shard) = owners.get(vs) {
                    let _ = shard.send(Command::Foreign(Box::new(Command::Present { pod: from }))).await;
                }
            }
        }
    }

    async fn answer_roll_call(&self, from: PodId, vs: VirtualShard) {
        let listener = {
            let mut listeners = self.listeners.lock();
            let listener = listeners.forwarders.get(&vs).cloned();
            let is_running = self.owners.upgrade().is_some_and(|owners| owners.is_running(vs));
            if listener.is_none() && is_running {
                // It learns in a moment that it owns the shard no more, and answers then.
                listeners.calls.insert(vs, from);
                return;
            }
            listener
        };
        match listener {
            Some(listener) => _ = listener.send(Heard::RollCall { from }).await,
            None => _ = self.links.send(from, ShardMessage::Absent { vs }).await,
        }
    }

    /// The guest of `pod` at `vs`, started if need be; none at shutdown.
    fn guest(self: &Arc<Self>, pod: PodId, vs: VirtualShard) -> Option<mpsc::Sender<Input>> {
        let mut guests = self.guests.lock();
        if let Some(guest) = guests.get(&(pod, vs)).filter(|guest| !guest.is_closed()) {
            return Some(guest.clone());
        }
        if self.stop.is_cancelled() {
            return None;
        }
        let owners = self.owners.upgrade()?;
        let shard = owners.get(vs).ok()?.clone();
        let talks = GaugeShare::new(&owners.context().metrics.cluster.talks);
        let (input_tx, input_rx) = mpsc::channel(HEARD_MAX);
        let guest = Guest::new(Arc::clone(self), self.clock, (pod, vs), shard, input_rx, talks);
        self.tasks.spawn(self.panics.watch(guest.run(self.stop.clone())));
        guests.insert((pod, vs), input_tx.clone());
        Some(input_tx)
    }

    /// The link to `pod` is down.
    fn link_down(&self, pod: PodId) {
        let guests = self.guests.lock();
        for (_, guest) in guests.iter().filter(|((of, _), _)| *of == pod) {
            // One with so much before it that there is no room ends its talk when the next begins.
            let _ = guest.try_send(Input::LinkDown);
        }
    }

    /// Has consumers of pods that are members no more leave, for as long as this pod is one.
    pub(crate) fn follow_members(self: &Arc<Self>) {
        let (remote, mut members) = (Arc::clone(self), self.cluster.members());
        let stop = self.stop.clone();
        self.tasks.spawn(self.panics.watch(async move {
            loop {
                let view = members.borrow_and_update().clone();
                let is_member = |pod: &PodId| view.pods.iter().any(|member| member.id == *pod);
                // A guest without a way to it detaches its consumers and ends.
                remote.guests.lock().retain(|(pod, _), _| is_member(pod));
                tokio::select! {
                    changed = members.changed() => if changed.is_err() { break },
                    () = stop.cancelled() => break,
                }
            }
        }));
    }

    /// Waits until a task panicked. Cancel-safe.
    pub(crate) async fn panicked(&self) {
        self.panics.panicked().await;
    }

    /// Tells other pods that this one owns nothing any more, and ends all guests.
    pub(crate) async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.guests.lock().clear();
    }
}

/// Hands `words` to a task. One that ends meanwhile does not want to hear them.
async fn hand<T>(task: &mpsc::Sender<T>, held_up: &Counter, words: T) {
    if let Err(TrySendError::Full(words)) = task.try_send(words) {
        held_up.inc();
        let _ = task.send(words).await;
    }
}

/// Holds what it hands to loosely: links know it.
struct Handler(Weak<Remote>);

impl PeerHandler for Handler {
    fn handle(&self, from: PodId, message: PeerMessage) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(remote) = self.0.upgrade() else { return };
            match message {
                PeerMessage::Shard(message) => remote.handle(from, message).await,
                PeerMessage::Group(message) => {
                    if let Some(hub) = remote.groups.get().and_then(Weak::upgrade) {
                        hub.handle(from, message).await;
                    }
                }
                // They have lanes of their own.
                PeerMessage::Live(_) | PeerMessage::Session(_) | PeerMessage::Feed(_) => {}
            }
        })
    }

    fn link_down(&self, pod: PodId) {
        if let Some(remote) = self.0.upgrade() {
            remote.link_down(pod);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn words_wait_for_a_task_that_has_enough() {
        let (task, mut words) = mpsc::channel(1);
        let held_up = Counter::default();
        hand(&task, &held_up, 1).await;
        assert_eq!(held_up.get(), 0);
        let mut second = std::pin::pin!(hand(&task, &held_up, 2));
        assert!(second.as_mut().now_or_never().is_none());
        assert_eq!((words.recv().await, held_up.get()), (Some(1), 1));
        second.await;
        assert_eq!(words.recv().await, Some(2));
        drop(words);
        hand(&task, &held_up, 3).await;
    }
}
