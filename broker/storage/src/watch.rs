//! Watches: a future for the reader's side, a trigger for the engine's side. Knows neither keys nor engines.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// Tells that a key may have changed. Fires once and stays fired; see
/// [`Transaction::watch`](crate::Transaction::watch).
#[derive(Debug)]
pub struct Watch {
    state: Arc<State>,
}

/// The engine's end of a [`Watch`]. Dropping it fires the watch, so that nobody waits for an engine that is
/// gone or for a transaction that never committed.
#[derive(Debug)]
pub struct WatchTrigger {
    state: Arc<State>,
    fires_on_drop: bool,
}

#[derive(Debug, Default)]
struct State {
    fired: AtomicBool,
    notify: Notify,
    /// Nobody holds the watch any more.
    orphaned: AtomicBool,
    let_go: Notify,
}

impl Watch {
    /// A watch and what fires it.
    #[must_use]
    pub fn new() -> (WatchTrigger, Self) {
        let state = Arc::new(State::default());
        (WatchTrigger { state: Arc::clone(&state), fires_on_drop: true }, Self { state })
    }

    /// Waits until the key may have changed; returns at once if that was already told. Cancel-safe.
    pub async fn changed(&mut self) {
        while !self.state.fired.load(Ordering::Acquire) {
            self.state.notify.notified().await;
        }
    }

    /// Whether the watch has fired.
    #[must_use]
    pub fn has_fired(&self) -> bool {
        self.state.fired.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.state.orphaned.store(true, Ordering::Release);
        self.state.let_go.notify_one();
    }
}

impl WatchTrigger {
    /// Fires the watch.
    pub fn fire(self) {
        drop(self);
    }

    /// Gives the watch up: it never fires. For an engine that has no room for more watches, and for tests.
    pub fn abandon(mut self) {
        self.fires_on_drop = false;
    }

    /// Whether nobody holds the watch any more.
    #[must_use]
    pub fn is_orphaned(&self) -> bool {
        self.state.orphaned.load(Ordering::Acquire)
    }

    /// Waits until nobody holds the watch any more. Cancel-safe.
    pub async fn orphaned(&self) {
        while !self.is_orphaned() {
            self.state.let_go.notified().await;
        }
    }
}

impl Drop for WatchTrigger {
    fn drop(&mut self) {
        if self.fires_on_drop {
            self.state.fired.store(true, Ordering::Release);
            // `changed` takes `&mut`, so there is at most one waiter; the permit is kept if it is not there yet.
            self.state.notify.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn fires_when_the_trigger_is_gone_and_stays_fired() {
        let (trigger, mut watch) = Watch::new();
        assert!(!watch.has_fired());
        let waiting = tokio::join!(watch.changed(), async { trigger.fire() });
        assert_eq!(waiting, ((), ()));
        watch.changed().await;
        assert!(watch.has_fired());
    }

    #[tokio::test(start_paused = true)]
    async fn an_abandoned_watch_never_fires() {
        let (trigger, mut watch) = Watch::new();
        assert!(!trigger.is_orphaned());
        trigger.abandon();
        let limit = std::time::Duration::from_secs(3600);
        assert!(tokio::time::timeout(limit, watch.changed()).await.is_err());
        let (trigger, watch) = Watch::new();
        let waiting = tokio::join!(trigger.orphaned(), async { drop(watch) });
        assert_eq!(waiting, ((), ()));
        assert!(trigger.is_orphaned());
    }
}
