//! Places for connections: `limits.maxConnections` of them, and a few for those that have not said who they are.
//!
//! Without the few, a client could not take over its own session while all places are taken: its old connection
//! gives its place up only when the new one has said CONNECT. Knows nothing of clients.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of so many places there is one more for a newcomer.
const NEWCOMERS_PER: u32 = 16;
/// Newcomers beyond the limit, at most.
const NEWCOMERS_MAX: u32 = 1_024;
/// Longest wait for the place of a connection that has ended already.
const LEAVING_MAX: Duration = Duration::from_secs(1);

/// The places of all listeners. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    places: Arc<Semaphore>,
    newcomers: Arc<Semaphore>,
}

/// The place of one connection, given up when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    permit: OwnedSemaphorePermit,
    /// Of a newcomer: where it must get a place.
    places: Option<Arc<Semaphore>>,
}

impl Slots {
    /// Places for `connections_max` connections.
    pub(crate) fn new(connections_max: u32) -> Self {
        let semaphore = |n: u32| {
            let n = usize::try_from(n).unwrap_or(usize::MAX);
            Arc::new(Semaphore::new(n.min(Semaphore::MAX_PERMITS)))
        };
        let newcomers = connections_max.div_ceil(NEWCOMERS_PER).min(NEWCOMERS_MAX);
        Self { places: semaphore(connections_max), newcomers: semaphore(newcomers) }
    }

    /// A place for somebody who has just come; `None` if there is none even for newcomers.
    pub(crate) fn enter(&self) -> Option<Slot> {
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            return Some(Slot { permit, places: None });
        }
        let permit = Arc::clone(&self.newcomers).try_acquire_owned().ok()?;
        Some(Slot { permit, places: Some(Arc::clone(&self.places)) })
    }
}

impl Slot {
    /// Takes one of the places, if there is one and this is not one already. True if it is now.
    pub(crate) fn try_settle(&mut self) -> bool {
        if let Some(places) = self.places.take() {
            match Arc::clone(&places).try_acquire_owned() {
                Ok(permit) => self.permit = permit,
                Err(_) => self.places = Some(places),
            }
        }
        self.places.is_none()
    }

    /// The same, and waits a moment for a connection that is leaving. Cancel-safe.
    pub(crate) async fn settle(&mut self) -> bool {
        if let Some(places) = self.places.clone() {
            let waited = tokio::time::timeout(LEAVING_MAX, places.acquire_owned()).await;
            if let Ok(Ok(permit)) = waited {
                *self = Self { permit, places: None };
            }
        }
        self.places.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn newcomers_get_a_place_when_one_is_given_up() {
        let slots = Slots::new(2);
        let first = slots.enter().unwrap();
        let mut second = slots.enter().unwrap();
        assert!(second.try_settle());
        let mut third = slots.enter().unwrap();
        assert!(slots.enter().is_none());
        assert!(!third.try_settle());
        assert!(!third.settle().await);
        drop(first);
        assert!(third.settle().await);
        let mut fourth = slots.enter().unwrap();
        drop(second);
        assert!(fourth.try_settle());
    }
}
