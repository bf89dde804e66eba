//! Sessions that are being ended, until it is known that they have: what they had subscribed to, of which the store
//! may have no trace any more, and whose routes must be forgotten.
//!
//! Whoever ends a session notes what it removes before it commits. It may give up, half-way or because the outcome is
//! unknown; then [`Sessions::settle_doubts`] finds out. One entry for each session that this process tried to end.

use std::time::Duration;

use bytestring::ByteString;
use parking_lot::Mutex;
use weir_env::clock::Instant;
use weir_env::seed::{HashMap, HashSet};
use weir_storage::Isolation;

use super::{EndedSession, Retry, Sessions, Shared, read_fence};
use crate::keyspace::session::{Incarnation, SessionState};
use crate::{Error, Result};

/// Time after which whoever noted a session has given up: longer than any attempt.
const SETTLE_AFTER: Duration = Duration::from_secs(15);
/// Sessions looked at in one call.
const SETTLE_MAX: usize = 1_000;

/// The sessions that are being ended.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    sessions: Mutex<HashMap<(ByteString, Incarnation), Doubt>>,
}

#[derive(Debug)]
struct Doubt {
    /// Each once, however often it was tried.
    filters: HashSet<ByteString>,
    noted: Instant,
}

/// What became of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Ended,
    /// It is there; a timer will end it.
    Ending,
    Lives,
}

impl Doubts {
    fn older_than(&self, noted: Instant) -> Vec<(ByteString, Incarnation)> {
        let sessions = self.sessions.lock();
        let old = sessions.iter().filter(|(_, doubt)| doubt.noted <= noted);
        old.take(SETTLE_MAX).map(|(session, _)| session.clone()).collect()
    }

    /// Looks at a session again as if it had been noted now.
    fn postpone(&self, session: &(ByteString, Incarnation), now: Instant) {
        if let Some(doubt) = self.sessions.lock().get_mut(session) {
            doubt.noted = now;
        }
    }

    /// Forgets a session that goes on, unless somebody is about to end it again.
    fn drop(&self, session: (ByteString, Incarnation), noted: Instant) {
        let mut sessions = self.sessions.lock();
        if sessions.get(&session).is_some_and(|doubt| doubt.noted <= noted) {
            sessions.remove(&session);
        }
    }
}

impl Sessions {
    /// Finds out what became of sessions whose end was given up; returns those that have ended. Costs nothing while
    /// there are none: call it each second.
    ///
    /// # Errors
    /// If the store fails; calling again goes on.
    pub async fn settle_doubts(&self) -> Result<Vec<EndedSession>> {
        let shared = &*self.shared;
        let Some(noted) = shared.clock.now().checked_sub(SETTLE_AFTER) else { return Ok(Vec::new()) };
        let mut ended = Vec::new();
        for (client_id, incarnation) in shared.doubts.older_than(noted) {
            match shared.fate(&client_id, incarnation).await {
                Ok(Fate::Ended) => ended.push(shared.end(&client_id, incarnation)),
                // Its timer needs what is known of it.
                Ok(Fate::Ending) => shared.doubts.postpone(&(client_id, incarnation), shared.clock.now()),
                Ok(Fate::Lives) => shared.doubts.drop((client_id, incarnation), noted),
                // It keeps nobody from the others.
                Err(error @ Error::Record(_)) => {
                    tracing::error!(client = %client_id, %error, "what became of a session is not known");
                    shared.doubts.postpone(&(client_id, incarnation), shared.clock.now());
                }
                // What has been found must be told.
                Err(error) if ended.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(ended)
    }
}

impl Shared {
    /// Notes what is about to be removed of a session; which session that is.
    pub(super) fn note(&self, ended: Option<EndedSession>) -> Option<Incarnation> {
        let EndedSession { client_id, incarnation, filters } = ended?;
        let noted = self.clock.now();
        let mut sessions = self.doubts.sessions.lock();
        let doubt = sessions
            .entry((client_id, incarnation))
            .or_insert_with(|| Doubt { filters: HashSet::default(), noted });
        doubt.noted = noted;
        doubt.filters.extend(filters);
        Some(incarnation)
    }

    /// A session is over: forgets what is counted of it, and tells what it had subscribed to, each filter once.
    pub(super) fn end(&self, client_id: &ByteString, incarnation: Incarnation) -> EndedSession {
        self.counters.forget(client_id, incarnation);
        let known = self.doubts.sessions.lock().remove(&(client_id.clone(), incarnation));
        let mut filters: Vec<_> = known.into_iter().flat_map(|doubt| doubt.filters).collect();
        filters.sort_unstable();
        EndedSession { client_id: client_id.clone(), incarnation, filters }
    }

    /// Whether a session is there. If it lives, earlier attempts to end it cannot commit any more.
    pub(super) async fn fate(&self, client_id: &str, incarnation: Incarnation) -> Result<Fate> {
        let keys = self.keys(client_id);
        let mut retry = Retry::new(self.clock);
        loop {
            let mut tx = self.store.begin();
            let outcome = async {
                let fence = read_fence(&mut *tx, &keys).await?;
                let Some(fence) = fence.filter(|f| f.persistent && f.incarnation == incarnation) else {
                    return Ok(Fate::Ended);
                };
                let state = tx.get(&keys.state(), Isolation::Serializable).await?;
                let state = state.map(SessionState::decode).transpose()?;
                let timer = state.as_ref().and_then(SessionState::expiry);
                if timer.is_some() {
                    return Ok(Fate::Ending);
                }
                tx.set(&keys.fence(), &fence.encode());
                Ok(Fate::Lives)
            };
            let outcome = outcome.await;
            if let Some(outcome) = retry.commit(tx, outcome).await {
                return outcome.map(|(fate, _)| fate);
            }
        }
    }
}
