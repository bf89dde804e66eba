//! A network in memory, as bad as a test asks: delays, pods that do not hear each other one way or both, connections
//! that are cut, pods that are dead. On paused time the same seed is the same run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_env::clock::Clock;
use weir_env::seed::Seed;

use super::links::{Links, WeakLinks};
use super::network::{Broken, Frame, Identity, Network, Peer, Pipe, PipeEnd};
use crate::keyspace::owner::PodId;

/// Time that a connection without a sign of life lasts, as on a real network.
pub const SILENCE: Duration = Duration::from_secs(3);
/// Time until a pod that does not answer counts as one that cannot be reached.
const CONNECT_WAIT: Duration = Duration::from_secs(1);

/// The network of all pods of a test. Cheap to clone.
#[derive(Clone)]
pub struct MemoryNetwork(Arc<Inner>);

struct Inner {
    clock: Clock,
    seed: Seed,
    state: Mutex<State>,
    /// Changes whenever it is to be looked at again who hears whom.
    changed: watch::Sender<u64>,
    tasks: TaskTracker,
}

#[derive(Default)]
struct State {
    pods: BTreeMap<PodId, WeakLinks>,
    dead: BTreeSet<PodId>,
    /// From whom to whom nothing gets through.
    blocked: BTreeSet<(PodId, PodId)>,
    delays: BTreeMap<(PodId, PodId), Range<Duration>>,
    delay: Range<Duration>,
    connections: Vec<Connection>,
}

struct Connection {
    ends: [PodId; 2],
    broken: CancellationToken,
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryNetwork").finish_non_exhaustive()
    }
}

impl MemoryNetwork {
    /// A network on which everything arrives at once.
    #[must_use]
    pub fn new(clock: Clock, seed: &Seed) -> Self {
        Self(Arc::new(Inner {
            clock,
            seed: seed.fork("network"),
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            tasks: TaskTracker::new(),
        }))
    }

    /// Others reach the pod of `links` from now on.
    pub fn attach(&self, links: &Links) {
        self.0.state.lock().pods.insert(links.me().pod, links.downgrade());
    }

    /// How long frames take, where nothing else is said.
    pub fn set_delay(&self, delay: Range<Duration>) {
        self.0.state.lock().delay = delay;
    }

    /// How long frames take from one pod to another.
    pub fn set_delay_between(&self, from: PodId, to: PodId, delay: Range<Duration>) {
        self.0.state.lock().delays.insert((from, to), delay);
    }

    /// Nothing gets from one pod to another, and it is held back, until [`MemoryNetwork::heal`] or the connection
    /// breaks, after [`SILENCE`].
    pub fn block(&self, from: PodId, to: PodId) {
        self.0.state.lock().blocked.insert((from, to));
        self.0.look_again();
    }

    /// As [`MemoryNetwork::block`], both ways.
    pub fn partition(&self, one: PodId, other: PodId) {
        self.block(one, other);
        self.block(other, one);
    }

    /// Everybody hears everybody.
    pub fn heal(&self) {
        self.0.state.lock().blocked.clear();
        self.0.look_again();
    }

    /// Breaks the connections between two pods, with all that is under way. They may connect again at once.
    pub fn cut(&self, one: PodId, other: PodId) {
        self.0.break_where(|ends| ends.contains(&one) && ends.contains(&other));
    }

    /// Breaks all connections of a pod, which nobody reaches from now on, and which reaches nobody.
    pub fn kill(&self, pod: PodId) {
        self.0.state.lock().dead.insert(pod);
        self.0.break_where(|ends| ends.contains(&pod));
    }
}

impl Network for MemoryNetwork {
    fn connect(&self, me: &Identity, peer: &Peer) -> BoxFuture<'static, Result<Pipe, Broken>> {
        let (inner, me, to) = (Arc::clone(&self.0), *me, peer.pod);
        Box::pin(async move {
            tokio::time::sleep(inner.delay(me.pod, to)).await;
            let links = {
                let state = inner.state.lock();
                if state.dead.contains(&me.pod) || state.dead.contains(&to) {
                    return Err(Broken(format!("pod {to} is dead")));
                }
                let blocked = state.blocked.contains(&(me.pod, to)) || state.blocked.contains(&(to, me.pod));
                if blocked { None } else { state.pods.get(&to).cloned() }
            };
            let Some(links) = links.and_then(|links| links.upgrade()) else {
                tokio::time::sleep(CONNECT_WAIT).await;
                return Err(Broken(format!("pod {to} does not answer")));
            };
            if links.me().cluster != me.cluster {
                return Err(Broken(format!("pod {to} works on another keyspace")));
            }
            let ((mine, my_end), (theirs, their_end)) = (Pipe::new(), Pipe::new());
            links.accept(me.pod, theirs)?;
            inner.connect_ends([me.pod, to], my_end, their_end);
            Ok(mine)
        })
    }
}

impl Inner {
    fn look_again(&self) {
        self.changed.send_modify(|number| *number += 1);
    }

    fn break_where(&self, concerned: impl Fn(&[PodId; 2]) -> bool) {
        let mut state = self.state.lock();
        state.connections.retain(|connection| !connection.broken.is_cancelled());
        for connection in state.connections.iter().filter(|connection| concerned(&connection.ends)) {
            connection.broken.cancel();
        }
    }

    fn delay(&self, from: PodId, to: PodId) -> Duration {
        let state = self.state.lock();
        let Range { start, end } = state.delays.get(&(from, to)).unwrap_or(&state.delay).clone();
        drop(state);
        let span = u64::try_from(end.saturating_sub(start).as_micros()).unwrap_or(u64::MAX);
        start + Duration::from_micros(self.seed.below(span))
    }

    fn is_blocked(&self, from: PodId, to: PodId) -> bool {
        self.state.lock().blocked.contains(&(from, to))
    }

    fn connect_ends(self: &Arc<Self>, [one, other]: [PodId; 2], of_one: PipeEnd, of_other: PipeEnd) {
        let broken = CancellationToken::new();
        let connection = Connection { ends: [one, other], broken: broken.clone() };
        self.state.lock().connections.push(connection);
        let there = (of_one.frames_rx, of_other.frames_tx);
        let back = (of_other.frames_rx, of_one.frames_tx);
        self.tasks.spawn(Arc::clone(self).carry([one, other], there, broken.clone()));
        self.tasks.spawn(Arc::clone(self).carry([other, one], back, broken));
    }

    /// Carries frames one way until the connection is broken, by this way or the other.
    async fn carry(
        self: Arc<Self>,
        [from, to]: [PodId; 2],
        (mut frames_rx, frames_tx): (mpsc::Receiver<Frame>, mpsc::Sender<Result<Frame, Broken>>),
        broken: CancellationToken,
    ) {
        let carrying = async {
            let mut last = self.clock.now();
            while let Some(frame) = frames_rx.recv().await {
                // Frames do not overtake each other.
                last = last.max(self.clock.now() + self.delay(from, to));
                tokio::time::sleep_until(last).await;
                if tokio::time::timeout(SILENCE, self.unblocked(from, to)).await.is_err() {
                    return "no sign of life";
                }
                if frames_tx.send(Ok(frame)).await.is_err() {
                    break;
                }
            }
            "the other side is gone"
        };
        let why = tokio::select! {
            why = carrying => why,
            () = broken.cancelled() => "the connection was cut",
        };
        broken.cancel();
        // If it does not fit, the reader finds the channel closed.
        let _ = frames_tx.try_send(Err(Broken(why.to_owned())));
    }

    async fn unblocked(&self, from: PodId, to: PodId) {
        let mut changed = self.changed.subscribe();
        while self.is_blocked(from, to) {
            // Cannot fail: the sender is in `self`.
            let _ = changed.changed().await;
        }
    }
}
