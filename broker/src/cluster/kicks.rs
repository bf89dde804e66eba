//! Places for connections that end because other pods have asked for their clients. Who finds none waits, and with it what
//! that pod says next of sessions.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections that end at the same time because their clients are elsewhere; other pods wait for a place.
const KICKS_MAX: usize = 4_096;

/// The places.
#[derive(Debug)]
pub(crate) struct Kicks {
    places: Arc<Semaphore>,
    taken: Gauge,
}

/// One of them; free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Kick {
    taken: Gauge,
    _place: Option<OwnedSemaphorePermit>,
}

impl Kicks {
    /// Counts those that are taken in `taken`.
    pub(crate) fn new(taken: Gauge) -> Self {
        Self { places: Arc::new(Semaphore::new(KICKS_MAX)), taken }
    }

    /// Waits for a place.
    pub(crate) async fn begin(&self) -> Kick {
        // Never closed.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        self.taken.inc();
        Kick { taken: self.taken.clone(), _place: place }
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        self.taken.dec();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn one_too_many_waits_until_another_has_ended() {
        let gauge = Gauge::default();
        let kicks = Kicks::new(gauge.clone());
        let mut under_way = Vec::new();
        for _ in 0..KICKS_MAX {
            under_way.push(kicks.begin().await);
        }
        assert_eq!(gauge.get(), KICKS_MAX as i64);
        let mut next = Box::pin(tokio::task::unconstrained(kicks.begin()));
        assert!((&mut next).now_or_never().is_none());
        under_way.pop();
        let next = next.now_or_never().expect("the place of the other");
        assert_eq!(gauge.get(), KICKS_MAX as i64);
        drop((under_way, next));
        assert_eq!(gauge.get(), 0);
    }
}
