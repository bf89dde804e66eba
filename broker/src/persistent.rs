//! The persistent sessions that the router knows, connected or not: which subscriber each of them is, and with other
//! pods, what it has subscribed to.
//!
//! Bounded by `limits.maxSessions`. A session stays until [`Persistent::remove`]: whoever ends it has heard so from the
//! store, which may take a while; its client may have a new one by then.

use std::sync::Arc;

use bytestring::ByteString;
use parking_lot::Mutex;
use smallvec::SmallVec;
use weir_core::keyspace::session::Incarnation;
use weir_env::seed::HashMap;
use weir_storage::Version;

use crate::metrics::Metrics;
use crate::router::Subscriber;

/// Subscribers of persistent sessions.
#[derive(Debug)]
pub(crate) struct Persistent {
    /// Of each client: one, and those that have ended and are not removed yet.
    by_client: Mutex<HashMap<ByteString, SmallVec<[Known; 1]>>>,
    metrics: Metrics,
}

/// A session.
#[derive(Debug)]
struct Known {
    subscriber: Arc<Subscriber>,
    /// With other pods.
    shared: Option<Box<Shared>>,
}

/// What is known of a session because other pods may have it.
#[derive(Debug, Default)]
struct Shared {
    /// What it has subscribed to as the change feed tells it, each with the number of the reading that met it last.
    filters: HashMap<ByteString, u64>,
    /// When it was opened here: what other pods have done before is part of what was read then.
    opened: Version,
}

impl Known {
    fn is(&self, incarnation: Incarnation) -> bool {
        self.subscriber.incarnation == Some(incarnation)
    }
}

/// What a session that is removed had.
#[derive(Debug)]
pub(crate) struct Removed {
    pub(crate) subscriber: Arc<Subscriber>,
    /// What it had subscribed to as far as the change feed told.
    pub(crate) filters: Vec<ByteString>,
}

/// Filters that are gone with whose they were, and sessions that are.
type NotMet = (Vec<(Arc<Subscriber>, ByteString)>, Vec<Arc<Subscriber>>);

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
        if let Some(known) = sessions.iter().find(|known| known.is(incarnation)) {
            return Arc::clone(&known.subscriber);
        }
        let subscriber = make();
        sessions.push(Known { subscriber: Arc::clone(&subscriber), shared: None });
        self.metrics.sessions.inc();
        subscriber
    }

    /// The subscriber of a session, if it is known.
    pub(crate) fn find(&self, client_id: &ByteString, incarnation: Incarnation) -> Option<Arc<Subscriber>> {
        let by_client = self.by_client.lock();
        let known = by_client.get(client_id)?.iter().find(|known| known.is(incarnation))?;
        Some(Arc::clone(&known.subscriber))
    }

    /// Forgets a session; which subscriber it was.
    pub(crate) fn remove(&self, client_id: &ByteString, incarnation: Incarnation) -> Option<Removed> {
        let mut by_client = self.by_client.lock();
        let sessions = by_client.get_mut(client_id)?;
        let at = sessions.iter().position(|known| known.is(incarnation))?;
        let Known { subscriber, shared } = sessions.remove(at);
        if sessions.is_empty() {
            by_client.remove(client_id);
        }
        self.metrics.sessions.dec();
        let filters = shared.map(|shared| shared.filters.into_keys().collect()).unwrap_or_default();
        Some(Removed { subscriber, filters })
    }

    /// A session has been opened here as of `version`.
    pub(crate) fn opened_here(&self, client_id: &ByteString, incarnation: Incarnation, version: Version) {
        self.change(client_id, incarnation, |shared| shared.opened = version);
    }

    /// A session has subscribed to `filter`, says the change feed, or a reading of the whole store with number `reading`.
    pub(crate) fn note_filter(
        &self,
        client_id: &ByteString,
        incarnation: Incarnation,
        filter: &ByteString,
        reading: u64,
    ) {
        self.change(client_id, incarnation, |shared| {
            shared.filters.insert(filter.clone(), reading);
        });
    }

    /// A session has unsubscribed from `filter`, says the change feed.
    pub(crate) fn forget_filter(
        &self,
        client_id: &ByteString,
        incarnation: Incarnation,
        filter: &ByteString,
    ) {
        self.change(client_id, incarnation, |shared| {
            shared.filters.remove(filter);
        });
    }

    /// Whether what another pod has done to a session in `version` is news here: it has not been opened here since.
    pub(crate) fn is_news(&self, client_id: &ByteString, incarnation: Incarnation, version: Version) -> bool {
        let by_client = self.by_client.lock();
        let known = by_client.get(client_id).and_then(|known| known.iter().find(|k| k.is(incarnation)));
        let opened = known.and_then(|known| known.shared.as_ref()).map(|shared| shared.opened);
        opened.is_none_or(|opened| opened < version)
    }

    /// Filters that the reading with number `reading` has not met although they were known before, of sessions that are
    /// not connected here, and sessions of which it has met none: they are gone.
    pub(crate) fn not_met(&self, reading: u64) -> NotMet {
        let (mut filters, mut sessions) = (Vec::new(), Vec::new());
        for known in self.by_client.lock().values_mut().flatten() {
            if known.subscriber.mailbox().is_some() {
                continue;
            }
            let Some(shared) = &mut known.shared else { continue };
            let subscriber = &known.subscriber;
            let before = shared.filters.len();
            shared.filters.retain(|filter, met| {
                if *met < reading {
                    filters.push((Arc::clone(subscriber), filter.clone()));
                }
                *met >= reading
            });
            if before > 0 && shared.filters.is_empty() {
                sessions.push(Arc::clone(subscriber));
            }
        }
        (filters, sessions)
    }

    fn change(&self, client_id: &ByteString, incarnation: Incarnation, change: impl FnOnce(&mut Shared)) {
        let mut by_client = self.by_client.lock();
        let mut sessions = by_client.get_mut(client_id).into_iter().flatten();
        if let Some(known) = sessions.find(|known| known.is(incarnation)) {
            change(known.shared.get_or_insert_default());
        }
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
