//! Consumer groups in a pod of many: which coordinators this pod has, and what pods say to each other about groups.
//!
//! The coordinator of a stream is at the pod that owns the stream's first shard. In every pod with members there is a
//! `delegate`, also in the coordinator's: the two only talk by messages, so that members on any pod are the same.
//! Knows nothing of what is said.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_env::clock::Instant;
use weir_env::seed::HashMap;

use super::board::Board;
use super::coordinator::{Command, Coordinator};
use super::delegate::Heard;
use super::guests::Guests;
use super::listener::Voice;
use super::term::Term;
use super::{Bounds, lag};
use crate::catalog::{Catalog, Object};
use crate::cluster::Cluster;
use crate::cluster::links::{Links, Unreachable};
use crate::cluster::message::GroupMessage;
use crate::cluster::message::group::FromCoordinator;
use crate::definition::Kind;
use crate::keyspace::owner::PodId;
use crate::metrics::GaugeShare;
use crate::panics::Panics;
use crate::shard::{Owners, Remote, is_ours};

/// Words that a coordinator has not heard yet, at most; a pod that says more has to begin anew.
const COMMANDS_MAX: usize = 16_384;
/// How long it waits with a look at the streams after shards have moved.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What coordinators are told through, by stream.
type Coordinators = HashMap<u32, (Term, mpsc::Sender<Command>)>;

/// The coordinators of this pod, and the way to those of others.
pub(crate) struct Hub {
    this: Weak<Self>,
    owners: Arc<Owners>,
    remote: Arc<Remote>,
    bounds: Arc<Bounds>,
    /// Coordinators by stream; `None` at shutdown.
    coordinators: Mutex<Option<Coordinators>>,
    delegates: Mutex<HashMap<u32, mpsc::Sender<Heard>>>,
    talks: AtomicU64,
    tasks: TaskTracker,
    panics: Panics,
    stop: CancellationToken,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

impl Hub {
    pub(super) fn new(
        owners: Arc<Owners>,
        remote: Arc<Remote>,
        bounds: Arc<Bounds>,
        tasks: TaskTracker,
        panics: Panics,
    ) -> Arc<Self> {
        let hub = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            owners,
            remote: Arc::clone(&remote),
            bounds,
            coordinators: Mutex::new(Some(HashMap::default())),
            delegates: Mutex::default(),
            talks: AtomicU64::new(0),
            tasks,
            panics,
            stop: CancellationToken::new(),
        });
        remote.hear_groups_with(&hub);
        hub
    }

    pub(super) fn cluster(&self) -> &Cluster {
        self.remote.cluster()
    }

    pub(super) fn links(&self) -> &Links {
        self.remote.links()
    }

    pub(super) fn now(&self) -> Instant {
        self.owners.context().clock.now()
    }

    /// What one delegate has not sent yet.
    pub(super) fn words_waiting(&self) -> GaugeShare {
        GaugeShare::new(&self.owners.context().metrics.cluster.group_words_waiting)
    }

    pub(super) fn next_talk(&self) -> u64 {
        self.talks.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// What coordinators say of `stream` goes to `heard` from now on.
    pub(super) fn listen(&self, stream: u32, heard: mpsc::Sender<Heard>) {
        self.delegates.lock().insert(stream, heard);
    }

    pub(super) fn listen_no_more(&self, stream: u32) {
        self.delegates.lock().remove(&stream);
    }

    /// Says something to a pod, which may be this one; waits for room.
    pub(super) async fn send(&self, to: PodId, message: GroupMessage) -> Result<(), Unreachable> {
        if to == self.cluster().me() {
            self.handle(to, message).await;
            return Ok(());
        }
        self.links().send(to, message).await
    }

    /// Asks a pod, which may be this one, who its members are. What is lost of that is asked again.
    pub(super) fn call_roll(&self, to: PodId, stream: u32) {
        if to == self.cluster().me() {
            match self.delegates.lock().get(&stream) {
                Some(delegate) => _ = delegate.try_send(Heard::RollCall { from: to }),
                None => self.is_absent(to, stream),
            }
        } else {
            let _ = self.links().try_send(to, GroupMessage::RollCall { stream });
        }
    }

    /// Has a pod begin a new talk about a stream. What is lost of that it notices by itself.
    pub(super) fn refuse(&self, to: PodId, stream: u32, talk: u64) {
        let words = FromCoordinator::NotCoordinator;
        if to != self.cluster().me() {
            let _ = self.links().try_send(to, GroupMessage::FromCoordinator { stream, talk, seq: 0, words });
        } else if let Some(delegate) = self.delegates.lock().get(&stream) {
            let _ = delegate.try_send(Heard::Words { from: to, talk, seq: 0, words });
        }
    }

    /// This pod has nobody to announce to `to`.
    pub(super) fn is_absent_here(&self, to: PodId, stream: u32) {
        if to == self.cluster().me() {
            self.is_absent(to, stream);
        } else {
            let _ = self.links().try_send(to, GroupMessage::Absent { stream });
        }
    }

    /// `from` has no members of a stream's groups. A coordinator that does not hear it asks again.
    fn is_absent(&self, from: PodId, stream: u32) {
        if let Some(commands) = self.find(stream) {
            let _ = commands.try_send(Command::Absent { from });
        }
    }

    /// What a coordinator says to a pod in one talk; sent one by one, until nobody says anything any more.
    pub(super) fn voice(&self, to: PodId, stream: u32, talk: u64) -> Arc<Voice> {
        let (voice, mut said) = Voice::new();
        let (hub, weak) = (Weak::clone(&self.this), Arc::downgrade(&voice));
        let speaking = async move {
            while let Some((seq, words)) = said.recv().await {
                let Some(hub) = hub.upgrade() else { return };
                let message = GroupMessage::FromCoordinator { stream, talk, seq, words };
                if hub.send(to, message).await.is_err() {
                    // Its pod begins anew over the next link, or when it is told to.
                    return weak.upgrade().iter().for_each(|voice| voice.end());
                }
                if weak.upgrade().is_some_and(|voice| voice.is_over()) {
                    return hub.refuse(to, stream, talk);
                }
            }
        };
        let stop = self.stop.clone();
        self.tasks.spawn(self.panics.watch(async move { stop.run_until_cancelled(speaking).await }));
        voice
    }

    /// Takes what a pod says. Does not wait for a coordinator.
    pub(crate) fn handle(&self, from: PodId, message: GroupMessage) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.take(from, message).await })
    }

    async fn take(&self, from: PodId, message: GroupMessage) {
        match message {
            GroupMessage::ToCoordinator { stream, talk, seq, words } => {
                let commands = match self.remote.find_object(stream).await {
                    Ok(object) => self.coordinator(&object),
                    Err(_) => None,
                };
                let words = Command::Words { from, talk, seq, words };
                if commands.is_none_or(|commands| commands.try_send(words).is_err()) {
                    self.refuse(from, stream.id, talk);
                }
            }
            GroupMessage::FromCoordinator { stream, talk, seq, words } => {
                let delegate = self.delegates.lock().get(&stream).cloned();
                if let Some(delegate) = delegate {
                    // It always listens. One that ends meanwhile does not want to hear it.
                    let _ = delegate.send(Heard::Words { from, talk, seq, words }).await;
                }
            }
            GroupMessage::RollCall { stream } => {
                let delegate = self.delegates.lock().get(&stream).cloned();
                match delegate {
                    Some(delegate) => _ = delegate.send(Heard::RollCall { from }).await,
                    None => self.is_absent_here(from, stream),
                }
            }
            GroupMessage::Absent { stream } => self.is_absent(from, stream),
        }
    }

    /// The coordinator of `stream`, started if need be, if this pod is to have it. Where it is to and does not own the
    /// shard yet, it takes that over.
    fn coordinator(&self, stream: &Arc<Object>) -> Option<mpsc::Sender<Command>> {
        let vs = stream.logs.first()?.vs;
        let Some(term) = Term::of(self.cluster(), stream) else {
            if is_ours(self.cluster(), vs) {
                // Its task takes it over. Fails at shutdown only.
                let _ = self.owners.get(vs);
            }
            return None;
        };
        let mut coordinators = self.coordinators.lock();
        let coordinators = coordinators.as_mut()?;
        let known = coordinators.get(&stream.id);
        if let Some((_, commands)) = known.filter(|(of, commands)| *of == term && !commands.is_closed()) {
            return Some(commands.clone());
        }
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let guests = Guests::new(self.this.upgrade()?, term);
        let (owners, bounds) = (Arc::clone(&self.owners), Arc::clone(&self.bounds));
        let board = Arc::new(Board::default());
        let coordinator = Coordinator::new(owners, Arc::clone(stream), bounds, inbox, board, Some(guests));
        self.tasks.spawn(self.panics.watch(coordinator.run()));
        coordinators.insert(stream.id, (term, commands.clone()));
        Some(commands)
    }

    /// Has a coordinator for every stream with groups whose first shard this pod owns: they expire and are measured
    /// although nobody talks of them. Runs until closed.
    pub(super) fn look_after(&self, catalog: Arc<Catalog>) {
        let (hub, stop) = (Weak::clone(&self.this), self.stop.clone());
        let mut owners = self.cluster().owners_changed();
        let looking = async move {
            while owners.changed().await.is_ok() {
                // Shards come in swarms.
                tokio::time::sleep(LOOK_INTERVAL).await;
                owners.mark_unchanged();
                let Some(hub) = hub.upgrade() else { return };
                for stream in catalog.view().all(Kind::Stream) {
                    hub.look_at(stream).await;
                }
            }
        };
        self.tasks.spawn(self.panics.watch(async move { stop.run_until_cancelled(looking).await }));
    }

    async fn look_at(&self, stream: &Arc<Object>) {
        let is_its =
            Term::of(self.cluster(), stream).is_some_and(|term| !self.has_coordinator(stream.id, term));
        // Where the store does not answer now, whoever uses the group asks again.
        if is_its
            && matches!(lag::has_groups(&self.owners, stream).await, Ok(true))
            && let Some(commands) = self.coordinator(stream)
        {
            // One that has much to do is awake.
            let _ = commands.try_send(Command::Wake);
        }
    }

    fn has_coordinator(&self, stream: u32, term: Term) -> bool {
        let coordinators = self.coordinators.lock();
        let known = coordinators.as_ref().and_then(|coordinators| coordinators.get(&stream));
        known.is_some_and(|(of, commands)| *of == term && !commands.is_closed())
    }

    /// Follows a change of the declaration of `stream`.
    pub(super) async fn follow(&self, stream: &Arc<Object>) {
        if let Some(commands) = self.find(stream.id) {
            // Fails only at its end.
            let _ = commands.send(Command::Update { stream: Arc::clone(stream) }).await;
        }
    }

    /// Ends the coordinator of a stream that is deleted.
    pub(super) async fn forget(&self, stream: u32) {
        let known = self.coordinators.lock().as_mut().and_then(|coordinators| coordinators.remove(&stream));
        if let Some((_, commands)) = known {
            let (reply, answer) = oneshot::channel();
            if commands.send(Command::Forget { reply }).await.is_ok() {
                // One that has ended writes nothing any more.
                let _ = answer.await;
            }
        }
    }

    /// Stores what members have said, and ends all coordinators.
    pub(super) async fn close(&self) {
        let coordinators = self.coordinators.lock().take();
        let mut closed = Vec::new();
        for (_, commands) in coordinators.into_iter().flatten().map(|(_, known)| known) {
            let (reply, answer) = oneshot::channel();
            if commands.send(Command::Close { reply }).await.is_ok() {
                closed.push(answer);
            }
        }
        for answer in closed {
            // One that has ended has nothing left to store.
            let _ = answer.await;
        }
        self.stop.cancel();
    }

    fn find(&self, stream: u32) -> Option<mpsc::Sender<Command>> {
        let coordinators = self.coordinators.lock();
        coordinators.as_ref()?.get(&stream).map(|(_, commands)| commands.clone())
    }
}

/// Where other pods' words about groups go. Held loosely: the hub knows who holds it.
pub(crate) type HubSlot = std::sync::OnceLock<Weak<Hub>>;
