//! Links to other pods: one for each member, made again when it breaks; what is in line for a pod is bounded in bytes.
//!
//! Of two pods the one with the lower id dials. Messages of one [`Lane`] arrive in the order in which they were sent;
//! lanes do not wait for each other, and pods do not. A slow pod costs only what is for it: whoever sends to it waits,
//! or is refused, while its lane is full. What was in line or under way when a link breaks is lost, and both sides are
//! told. Knows neither what messages mean nor how they travel; one task for each member owns its link.

mod flow;
mod link;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_env::clock::Clock;
use weir_env::seed::{HashMap, Seed};

use self::link::Link;
use super::message::{Lane, PeerMessage};
use super::network::{Broken, Identity, Network, Peer, Pipe};
use crate::keyspace::owner::PodId;
use crate::metrics::{PeerMetrics, PeerSeries};
use crate::panics::Panics;

/// Bytes that may be in line for one pod, if nobody says otherwise.
pub const PEER_BYTES_DEFAULT: usize = 16 << 20;
/// Fewest bytes that may be in line for one pod.
pub const PEER_BYTES_MIN: usize = 1 << 20;
/// Longest wait, when all links end, for what is in line.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// How links behave.
#[derive(Clone, Copy, Debug)]
pub struct LinkOptions {
    /// Bytes of messages that may be in line for one pod, and as many from one pod that are not handled yet. The lanes
    /// have their shares of it.
    pub peer_bytes: usize,
    /// How often a pod is asked for an answer, to know how long it takes.
    pub ping: Duration,
    /// Wait before a pod is dialled again, at first; it doubles with each failure.
    pub backoff_min: Duration,
    /// Longest such wait.
    pub backoff_max: Duration,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            peer_bytes: PEER_BYTES_DEFAULT,
            ping: Duration::from_secs(1),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
        }
    }
}

impl LinkOptions {
    /// The share of `lane` in what may be in line.
    fn lane_bytes(&self, lane: Lane) -> u32 {
        let sixteenths = match lane {
            Lane::Shard | Lane::Live => 6,
            Lane::Session | Lane::Feed => 2,
        };
        u32::try_from(self.peer_bytes.max(PEER_BYTES_MIN) / 16 * sixteenths).unwrap_or(u32::MAX / 2)
    }
}

/// Takes what other pods say on one lane.
pub trait PeerHandler: Send + Sync {
    /// Takes a message. The next one of the same pod and lane comes when this is done; until then it counts as in line.
    /// It must not wait without end: a new link to the pod waits for it.
    fn handle(&self, from: PodId, message: PeerMessage) -> BoxFuture<'_, ()>;

    /// A link to `pod` is up. Told before the first of its messages.
    fn link_up(&self, _pod: PodId) {}

    /// The link to `pod` is down: nothing that was sent and not answered will be. Told after the last of its messages.
    fn link_down(&self, _pod: PodId) {}
}

/// A pod cannot be reached now; [`Links::link_events`] tells when it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no link to the pod")]
pub struct Unreachable;

/// Why a message was not taken at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrySendError {
    /// Too much is in line for the pod.
    #[error("too much is in line for the pod")]
    Full,
    /// As [`Unreachable`].
    #[error("there is no link to the pod")]
    Unreachable,
}

/// Pods to which a link is up, each with a number that is new with each link.
pub type UpLinks = Arc<BTreeMap<PodId, u64>>;

/// The links of this pod. Cheap to clone.
#[derive(Clone)]
pub struct Links(Arc<Inner>);

/// [`Links`] that end when all others have gone.
#[derive(Clone)]
pub(super) struct WeakLinks(Weak<Inner>);

struct Inner {
    me: Identity,
    network: Arc<dyn Network>,
    clock: Clock,
    seed: Seed,
    options: LinkOptions,
    metrics: PeerMetrics,
    handlers: [OnceLock<Arc<dyn PeerHandler>>; Lane::COUNT],
    peers: RwLock<HashMap<PodId, Arc<PeerState>>>,
    up: watch::Sender<UpLinks>,
    tasks: TaskTracker,
    stop: CancellationToken,
    panics: Panics,
}

/// A pod that is a member.
struct PeerState {
    pod: PodId,
    address: Mutex<String>,
    /// The link, while it is up.
    link: RwLock<Option<Arc<Link>>>,
    /// Pipes that the pod has dialled.
    accepted_tx: mpsc::Sender<Pipe>,
    /// Cancelled when it is no member any more.
    gone: CancellationToken,
    series: Arc<PeerSeries>,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").field("me", &self.0.me).finish_non_exhaustive()
    }
}

impl Links {
    /// The links of pod `me`, none as yet. [`Links::set_peers`] makes them.
    #[must_use]
    pub fn new(
        me: Identity,
        network: Arc<dyn Network>,
        clock: Clock,
        seed: &Seed,
        metrics: &PeerMetrics,
        options: LinkOptions,
    ) -> Self {
        Self(Arc::new(Inner {
            me,
            network,
            clock,
            seed: seed.fork("links"),
            options,
            metrics: metrics.clone(),
            handlers: Default::default(),
            peers: RwLock::default(),
            up: watch::Sender::new(UpLinks::default()),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            panics: Panics::default(),
        }))
    }

    /// Who this pod is.
    #[must_use]
    pub fn me(&self) -> Identity {
        self.0.me
    }

    /// Has `handler` take what comes on `lane`: once, before there are peers. Without one it is dropped and counted.
    pub fn handle_with(&self, lane: Lane, handler: Arc<dyn PeerHandler>) {
        let taken = self.0.handlers[lane.index()].set(handler).is_err();
        debug_assert!(!taken, "{lane:?} has a handler already");
    }

    /// Has a link to each of `peers`, and to no other pod. This pod itself may be among them.
    pub fn set_peers(&self, peers: &[Peer]) {
        if self.0.stop.is_cancelled() {
            return;
        }
        let mut known = self.0.peers.write();
        known.retain(|pod, state| {
            let stays = peers.iter().any(|peer| peer.pod == *pod);
            if !stays {
                state.gone.cancel();
            }
            stays
        });
        for peer in peers.iter().filter(|peer| peer.pod != self.0.me.pod) {
            if let Some(state) = known.get(&peer.pod) {
                state.address.lock().clone_from(&peer.address);
                continue;
            }
            // One that waits is enough: it takes the place of the link there is.
            let (accepted_tx, accepted_rx) = mpsc::channel(1);
            let state = Arc::new(PeerState {
                pod: peer.pod,
                address: Mutex::new(peer.address.clone()),
                link: RwLock::default(),
                accepted_tx,
                gone: self.0.stop.child_token(),
                series: self.0.metrics.of(peer.pod),
            });
            known.insert(peer.pod, Arc::clone(&state));
            let following = Arc::clone(&self.0).follow(state, accepted_rx);
            self.0.tasks.spawn(self.0.panics.watch(following));
        }
    }

    /// Takes a pipe that pod `from` has dialled, in place of the link there is.
    ///
    /// # Errors
    /// If `from` is no member, as far as this pod knows, or it is for this pod to dial. It may try again.
    pub fn accept(&self, from: PodId, pipe: Pipe) -> Result<(), Broken> {
        let me = self.0.me.pod;
        if from >= me {
            return Err(Broken(format!("pod {from} must not dial {me}: the lower id dials")));
        }
        let state = self.0.peer(from).ok_or_else(|| Broken(format!("pod {from} is no member here yet")))?;
        state.accepted_tx.try_send(pipe).map_err(|_| Broken(format!("another link of pod {from} waits")))
    }

    /// Puts a message in line for `to`; waits while its lane is full. `Ok` says nothing of its arrival. Messages of one
    /// lane arrive in the order of these calls. Cancel-safe: it is in line, or it is not.
    ///
    /// # Errors
    /// If there is no link, or it breaks meanwhile.
    pub async fn send(&self, to: PodId, message: impl Into<PeerMessage>) -> Result<(), Unreachable> {
        let link = self.0.link(to).ok_or(Unreachable)?;
        link.send(message.into()).await
    }

    /// As [`Links::send`], without waiting.
    ///
    /// # Errors
    /// If there is no link, or the lane is full.
    pub fn try_send(&self, to: PodId, message: impl Into<PeerMessage>) -> Result<(), TrySendError> {
        let link = self.0.link(to).ok_or(TrySendError::Unreachable)?;
        link.try_send(message.into())
    }

    /// Whether [`Links::try_send`] would take `message` now; none if there is no link.
    #[must_use]
    pub fn has_room(&self, to: PodId, message: impl Into<PeerMessage>) -> Option<bool> {
        Some(self.0.link(to)?.has_room(message.into()))
    }

    /// Whether a link to `pod` is up.
    #[must_use]
    pub fn is_up(&self, pod: PodId) -> bool {
        self.0.link(pod).is_some()
    }

    /// Which links are up, now and with each change. A number that is not the one of before means that the link has
    /// broken meanwhile, and is up again.
    #[must_use]
    pub fn link_events(&self) -> watch::Receiver<UpLinks> {
        self.0.up.subscribe()
    }

    /// The links that are up now: the same `Arc` as long as it is held and nothing changes.
    #[must_use]
    pub fn up(&self) -> UpLinks {
        Arc::clone(&self.0.up.borrow())
    }

    /// Waits until a task of a link panics, which is a bug: the pod should not go on. Cancel-safe.
    pub async fn panicked(&self) {
        self.0.panics.panicked().await;
    }

    /// Ends all links once what is in line has arrived at the other pods, or after a moment, and waits until what they
    /// brought has been handled.
    pub async fn close(&self) {
        let links: Vec<_> =
            self.0.peers.read().values().filter_map(|peer| peer.link.read().clone()).collect();
        let flushed = join_all(links.iter().map(|link| link.flush()));
        if tokio::time::timeout(FLUSH_MAX, flushed).await.is_err() {
            tracing::info!("a pod does not take what is in line for it");
        }
        self.0.stop.cancel();
        self.0.peers.write().clear();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    pub(super) fn downgrade(&self) -> WeakLinks {
        WeakLinks(Arc::downgrade(&self.0))
    }
}

impl WeakLinks {
    pub(super) fn upgrade(&self) -> Option<Links> {
        self.0.upgrade().map(Links)
    }
}

impl Inner {
    fn peer(&self, pod: PodId) -> Option<Arc<PeerState>> {
        self.peers.read().get(&pod).cloned()
    }

    fn link(&self, pod: PodId) -> Option<Arc<Link>> {
        self.peers.read().get(&pod)?.link.read().clone()
    }

    /// Keeps a link to a member until it is none any more.
    async fn follow(self: Arc<Self>, peer: Arc<PeerState>, mut accepted_rx: mpsc::Receiver<Pipe>) {
        let mut failures = 0;
        let mut next = None;
        loop {
            let pipe = match next.take() {
                Some(pipe) => pipe,
                None => {
                    let found = tokio::select! {
                        found = self.next_pipe(&peer, &mut accepted_rx, failures) => found,
                        () = peer.gone.cancelled() => return,
                    };
                    match found {
                        Ok(pipe) => pipe,
                        Err(error) => {
                            if failures == 0 {
                                tracing::warn!(peer = %peer.pod, %error, "no link to a pod; trying again");
                            } else {
                                tracing::debug!(peer = %peer.pod, %error, "no link to a pod");
                            }
                            failures += 1;
                            continue;
                        }
                    }
                }
            };
            let since = self.clock.now();
            let broken;
            (broken, next) = self.run_link(&peer, pipe, &mut accepted_rx).await;
            // One that breaks as soon as it is up is no reason to dial at once.
            let brief = self.clock.now().saturating_duration_since(since) < self.options.backoff_max;
            failures = u32::from(brief);
            if peer.gone.is_cancelled() {
                tracing::info!(peer = %peer.pod, "link to a pod ended");
                return;
            }
            tracing::warn!(peer = %peer.pod, why = %broken, "link to a pod broke");
        }
    }

    /// Dials, after a wait that grows with the `failures`, or waits until the other pod has.
    async fn next_pipe(
        &self,
        peer: &PeerState,
        accepted_rx: &mut mpsc::Receiver<Pipe>,
        failures: u32,
    ) -> Result<Pipe, Broken> {
        if peer.pod < self.me.pod {
            // The sender is in `peer`.
            return accepted_rx.recv().await.ok_or_else(|| Broken("shutting down".to_owned()));
        }
        if failures > 0 {
            let doubled = self.options.backoff_min.saturating_mul(1 << failures.min(16));
            let wait = doubled.min(self.options.backoff_max);
            // Between half of it and all, so that pods do not dial in step.
            let micros = u64::try_from(wait.as_micros() / 2).unwrap_or(u64::MAX);
            tokio::time::sleep(wait / 2 + Duration::from_micros(self.seed.below(micros.max(1)))).await;
        }
        let address = peer.address.lock().clone();
        self.network.connect(&self.me, &Peer { pod: peer.pod, address }).await
    }

    /// Runs a link until it breaks, the pod dials another one (which is returned), or is gone.
    async fn run_link(
        &self,
        peer: &PeerState,
        pipe: Pipe,
        accepted_rx: &mut mpsc::Receiver<Pipe>,
    ) -> (Broken, Option<Pipe>) {
        let (link, ends) = Link::new(&self.options, &peer.series);
        let mut running = link::Running::start(self, peer, ends);
        *peer.link.write() = Some(Arc::clone(&link));
        peer.series.links.inc();
        self.metrics.up.inc();
        let number = peer.series.links.get();
        self.up.send_modify(|up| {
            Arc::make_mut(up).insert(peer.pod, number);
        });
        tracing::info!(peer = %peer.pod, "link to a pod is up");

        let ended = tokio::select! {
            broken = running.carry(pipe) => (broken, None),
            Some(pipe) = accepted_rx.recv() => (Broken("the pod has dialled again".to_owned()), Some(pipe)),
            () = peer.gone.cancelled() => (Broken("the pod is gone".to_owned()), None),
        };
        *peer.link.write() = None;
        link.close();
        self.metrics.up.dec();
        self.up.send_modify(|up| {
            Arc::make_mut(up).remove(&peer.pod);
        });
        running.finish().await;
        ended
    }
}
