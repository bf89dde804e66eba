//! The persistent sessions that the router knows, connected or not: which subscriber each of them is.
//!
//! Bounded by `limits.maxSessions`. A session stays until [`Persistent::remove`]: whoever ends it has heard so from the
//! store, which may take a while; its client may have a new one by then.

use std::sync::Arc;

use bytestring::ByteString;
use parking_lot::Mutex;
use smallvec::SmallVec;
use weir_core::keyspace::session::Incarnation;
use weir_env::seed::HashMap;

use crate::metrics::Metrics;
use crate::router::Subscriber;

/// Subscribers of persistent sessions.
#[derive(Debug)]
pub(crate) struct Persistent {
    /// Of each client: one, and those that have ended and are not removed yet.
    by_client: Mutex<HashMap<ByteString, SmallVec<[Arc<Subscriber>; 1]>>>,
    metrics: Metrics,
}

impl Persistent {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { by_client: Mutex::default(), metrics }
    }

    /// The subscriber of a session, made if need be.
    pub(crate) fn get_or_insert_with(
        &self,
        client_id: &ByteString,
        incarnation: Incarnation,
        make: impl FnOnce() -> Arc<Subscriber>,
    ) -> Arc<Subscriber> {
        let mut by_client = self.by_client.lock();
        let sessions = by_client.entry(client_id.clone()).or_default();
        if let Some(known) = sessions.iter().find(|known| known.incarnation == Some(incarnation)) {
            return Arc::clone(known);
        }
        let subscriber = make();
        sessions.push(Arc::clone(&subscriber));
        self.metrics.sessions.inc();
        subscriber
    }

    /// Forgets a session; which subscriber it was.
    pub(crate) fn remove(&self, client_id: &ByteString, incarnation: Incarnation) -> Option<Arc<Subscriber>> {
        let mut by_client = self.by_client.lock();
        let sessions = by_client.get_mut(client_id)?;
        let at = sessions.iter().position(|known| known.incarnation == Some(incarnation))?;
        let removed = sessions.remove(at);
        if sessions.is_empty() {
            by_client.remove(client_id);
        }
        self.metrics.sessions.dec();
        Some(removed)
    }

    /// Whether there is a session of `client_id`.
    pub(crate) fn contains(&self, client_id: &ByteString) -> bool {
        self.by_client.lock().contains_key(client_id)
    }

    /// How many clients have one.
    pub(crate) fn len(&self) -> usize {
        self.by_client.lock().len()
    }
}
