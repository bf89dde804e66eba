//! What the server keeps for its clients: how commits ended whose answer may be lost, watches, snapshots. One session
//! for each call of `Attach`; it is remembered for a while when the call has ended, and takes no commits then.
//!
//! Knows neither the store nor the network. Each session's state is behind its own short lock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use weir_env::clock::{Clock, Instant};
use weir_env::seed::{HashMap, Seed};
use weir_proto::store::v1 as wire;
use weir_storage::{Snapshot, Watch};

/// Sessions there may be, those that have ended and are remembered included.
pub const SESSIONS_MAX: usize = 1_024;
/// Watches of a session; one more is never armed.
pub const WATCHES_MAX: usize = 10_000;
/// Commits of a session that are under way or not known to be heard of.
const COMMITS_MAX: usize = 4_096;
/// Snapshots of a session.
const HOLDS_MAX: usize = 4;
/// Time for which it is remembered how the commits of an ended session ended.
const REMEMBERED: Duration = Duration::from_mins(1);
/// Watches that have fired and wait for the client; more wait with their tasks.
const FIRED_MAX: usize = 256;

/// A snapshot that one call at a time reads.
pub(super) type Held = Arc<tokio::sync::Mutex<Box<dyn Snapshot>>>;

/// How a commit ended, once it has.
pub(super) type Outcome = watch::Receiver<Option<wire::CommitResponse>>;

pub(super) struct Sessions {
    /// Of this life of the server.
    server: Bytes,
    clock: Clock,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    sessions: HashMap<u64, Arc<Session>>,
    last: u64,
}

/// Of one client, for as long as it is attached.
pub(super) struct Session {
    number: u64,
    fired_tx: mpsc::Sender<u64>,
    /// Cancelled when it ends.
    pub(super) over: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ended_at: Option<Instant>,
    /// Lower numbers are settled.
    floor: u64,
    commits: BTreeMap<u64, Commit>,
    watches: HashMap<u64, AbortOnDropHandle<()>>,
    holds: HashMap<u64, Held>,
    last_hold: u64,
}

enum Commit {
    Begun(Outcome),
    /// Given up before it came.
    Never,
}

/// What is known of a commit.
pub(super) enum Known {
    Begun(Outcome),
    Never,
    Forgotten,
}

/// Why a commit does not begin.
pub(super) enum Refused {
    Detached,
    GivenUp,
    TooMany,
    /// It has begun already.
    Begun(Outcome),
}

impl Sessions {
    pub(super) fn new(clock: Clock, seed: &Seed) -> Self {
        Self { server: Bytes::copy_from_slice(&seed.next_id()), clock, table: Mutex::default() }
    }

    /// A new session and what fires in it; `None` if there are too many.
    pub(super) fn open(&self) -> Option<(Arc<Session>, mpsc::Receiver<u64>)> {
        self.forget_old();
        let mut table = self.table.lock();
        if table.sessions.len() >= SESSIONS_MAX {
            let ended = table.sessions.values().filter_map(|s| Some((s.state.lock().ended_at?, s.number)));
            let (_, oldest) = ended.min()?;
            table.sessions.remove(&oldest);
        }
        table.last += 1;
        let (fired_tx, fired_rx) = mpsc::channel(FIRED_MAX);
        let session = Arc::new(Session {
            number: table.last,
            fired_tx,
            over: CancellationToken::new(),
            state: Mutex::default(),
        });
        table.sessions.insert(session.number, Arc::clone(&session));
        Some((session, fired_rx))
    }

    /// The name of a session for its client.
    pub(super) fn name(&self, session: &Session) -> wire::Session {
        wire::Session { server: self.server.clone(), number: session.number }
    }

    pub(super) fn find(&self, name: Option<&wire::Session>) -> Option<Arc<Session>> {
        let name = name.filter(|name| name.server == self.server)?;
        self.table.lock().sessions.get(&name.number).cloned()
    }

    /// Ends a session: its watches and snapshots go at once, its commits are remembered for a while.
    pub(super) fn end(&self, session: &Session) {
        let released = {
            let mut state = session.state.lock();
            state.ended_at.get_or_insert(self.clock.now());
            (std::mem::take(&mut state.watches), std::mem::take(&mut state.holds))
        };
        drop(released);
        session.over.cancel();
    }

    pub(super) fn end_all(&self) {
        let all: Vec<_> = self.table.lock().sessions.values().cloned().collect();
        all.iter().for_each(|session| self.end(session));
    }

    /// Forgets sessions that ended long ago.
    pub(super) fn forget_old(&self) {
        let now = self.clock.now();
        let is_old = |session: &Session| {
            let ended_at = session.state.lock().ended_at;
            ended_at.is_some_and(|at| now.saturating_duration_since(at) >= REMEMBERED)
        };
        self.table.lock().sessions.retain(|_, session| !is_old(session));
    }

    /// Sessions that are attached, and their watches.
    pub(super) fn count(&self) -> (usize, usize) {
        let table = self.table.lock();
        let attached = table.sessions.values().filter_map(|session| {
            let state = session.state.lock();
            state.ended_at.is_none().then_some(state.watches.len())
        });
        attached.fold((0, 0), |(sessions, watches), armed| (sessions + 1, watches + armed))
    }
}

impl Session {
    /// Begins a commit, unless it must not happen; what to tell its outcome to.
    pub(super) fn begin_commit(
        &self,
        number: u64,
        settled_below: u64,
    ) -> Result<watch::Sender<Option<wire::CommitResponse>>, Refused> {
        let mut state = self.state.lock();
        if state.ended_at.is_some() {
            return Err(Refused::Detached);
        }
        if settled_below > state.floor {
            state.floor = settled_below;
            state.commits = state.commits.split_off(&settled_below);
        }
        if number < state.floor {
            return Err(Refused::GivenUp);
        }
        match state.commits.get(&number) {
            Some(Commit::Begun(outcome)) => return Err(Refused::Begun(outcome.clone())),
            Some(Commit::Never) => return Err(Refused::GivenUp),
            None => {}
        }
        if state.commits.len() >= COMMITS_MAX {
            return Err(Refused::TooMany);
        }
        let (told_tx, told_rx) = watch::channel(None);
        state.commits.insert(number, Commit::Begun(told_rx));
        Ok(told_tx)
    }

    /// What is known of a commit. One that has not begun never will.
    pub(super) fn settle(&self, number: u64, now: Instant) -> Known {
        let mut state = self.state.lock();
        if number < state.floor {
            return Known::Forgotten;
        }
        match state.commits.get(&number) {
            Some(Commit::Begun(outcome)) => return Known::Begun(outcome.clone()),
            Some(Commit::Never) => return Known::Never,
            None => {}
        }
        if state.commits.len() >= COMMITS_MAX {
            // Whoever gives up that many is not heard again.
            state.ended_at.get_or_insert(now);
            self.over.cancel();
        }
        if state.ended_at.is_none() {
            state.commits.insert(number, Commit::Never);
        }
        Known::Never
    }

    /// Tells the client when `watch` fires, until it forgets it. There may be one too many.
    pub(super) fn arm(self: &Arc<Self>, number: u64, mut watch: Watch, tasks: &TaskTracker) {
        let mut state = self.state.lock();
        if state.ended_at.is_some() {
            return;
        }
        if state.watches.len() >= WATCHES_MAX {
            tracing::warn!(limit = WATCHES_MAX, "too many watches of one client: one is not armed");
            return;
        }
        let session = Arc::clone(self);
        let task = tasks.spawn(async move {
            watch.changed().await;
            // The client has gone, and nobody waits.
            let _ = session.fired_tx.send(number).await;
            let this = session.state.lock().watches.remove(&number);
            drop(this);
        });
        state.watches.insert(number, AbortOnDropHandle::new(task));
    }

    /// Nobody waits for these watches any more.
    pub(super) fn forget_watches(&self, numbers: &[u64]) {
        let mut state = self.state.lock();
        for number in numbers {
            state.watches.remove(number);
        }
    }

    /// Keeps a snapshot; its number, or `None` if there are too many.
    pub(super) fn hold(&self, snapshot: Box<dyn Snapshot>) -> Option<u64> {
        let mut state = self.state.lock();
        if state.ended_at.is_some() || state.holds.len() >= HOLDS_MAX {
            return None;
        }
        state.last_hold += 1;
        let number = state.last_hold;
        state.holds.insert(number, Arc::new(tokio::sync::Mutex::new(snapshot)));
        Some(number)
    }

    pub(super) fn held(&self, number: u64) -> Option<Held> {
        self.state.lock().holds.get(&number).cloned()
    }

    pub(super) fn release(&self, number: u64) {
        let released = self.state.lock().holds.remove(&number);
        drop(released);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions() -> Sessions {
        Sessions::new(Clock::system(), &Seed::fixed(1))
    }

    #[tokio::test(start_paused = true)]
    async fn ended_sessions_are_remembered_for_a_while_and_make_room() {
        let sessions = sessions();
        let open: Vec<_> = (0..SESSIONS_MAX).map(|_| sessions.open().unwrap()).collect();
        assert!(sessions.open().is_none(), "one too many");
        let (ended, _) = &open[3];
        let name = sessions.name(ended);
        sessions.end(ended);
        assert!(sessions.find(Some(&name)).is_some(), "to say how commits ended");
        assert!(sessions.open().is_some());
        assert!(sessions.find(Some(&name)).is_none(), "its place was needed");
        assert!(sessions.open().is_none());

        let (ended, _) = &open[5];
        let name = sessions.name(ended);
        sessions.end(ended);
        tokio::time::sleep(REMEMBERED).await;
        sessions.forget_old();
        assert!(sessions.find(Some(&name)).is_none());
        assert_eq!(sessions.count(), (SESSIONS_MAX - 1, 0));
    }

    #[test]
    fn an_ended_session_takes_no_commits_and_says_how_they_ended() {
        let (sessions, now) = (sessions(), Clock::system().now());
        let (session, _fired_rx) = sessions.open().unwrap();
        let told_tx = session.begin_commit(1, 0).ok().unwrap();
        sessions.end(&session);
        assert!(session.over.is_cancelled());
        assert!(matches!(session.begin_commit(2, 0), Err(Refused::Detached)));
        assert!(matches!(session.settle(2, now), Known::Never));
        told_tx.send_replace(Some(wire::CommitResponse::default()));
        assert!(matches!(session.settle(1, now), Known::Begun(outcome) if outcome.borrow().is_some()));
    }

    #[test]
    fn whoever_is_never_heard_of_again_has_a_bound() {
        let (sessions, now) = (sessions(), Clock::system().now());
        let (session, _fired_rx) = sessions.open().unwrap();
        let begun: Vec<_> =
            (0..COMMITS_MAX as u64).map(|n| session.begin_commit(n, 0).ok().unwrap()).collect();
        let one_more = COMMITS_MAX as u64;
        assert!(matches!(session.begin_commit(one_more, 0), Err(Refused::TooMany)));
        assert!(session.begin_commit(one_more, 1).is_ok(), "one of them is settled");
        drop(begun);
        assert!(matches!(session.settle(one_more + 1, now), Known::Never));
        assert!(matches!(session.begin_commit(one_more + 1, 0), Err(Refused::Detached)), "it has ended");
    }
}
