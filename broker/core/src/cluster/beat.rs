//! The task that gives this pod's signs of life, and makes it quiet when it cannot.

use std::sync::Arc;

use super::{Inner, membership};

/// Time in heartbeats without a sign of life of its own after which a pod does not judge others: they may have met with the
/// same.
const HEALTHY_BEATS: u32 = 3;

/// Beats until stopped, or declared dead by others.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut next = inner.clock.now();
    loop {
        next = (next + inner.options.heartbeat).max(inner.clock.now());
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = inner.stopped.cancelled() => return,
        }
        if !beat(&inner).await {
            return;
        }
    }
}

/// One sign of life. False if this pod is dead.
async fn beat(inner: &Inner) -> bool {
    let begun = inner.clock.now();
    let attempt = membership::beat(inner, inner.next_beat());
    tokio::pin!(attempt);
    let outcome = loop {
        let is_quiet = *inner.quiet_tx.borrow();
        tokio::select! {
            outcome = &mut attempt => break outcome,
            () = tokio::time::sleep_until(inner.quiet_at()), if !is_quiet => inner.set_quiet(true),
            // Whether it is committed does not matter any more.
            () = inner.stopped.cancelled() => return false,
        }
    };
    let now = inner.clock.now();
    match outcome {
        Ok(true) => {
            let last = std::mem::replace(&mut *inner.beaten_at.lock(), begun);
            if now.saturating_duration_since(last) > inner.options.heartbeat * HEALTHY_BEATS {
                inner.pods.lock().begin_again(now);
            }
            // One that took long says nothing of now.
            inner.set_quiet(now >= inner.quiet_at());
        }
        Ok(false) => {
            inner.set_quiet(true);
            inner.fail("other pods have declared this one dead: it gave no sign of life for too long");
            return false;
        }
        Err(error) => {
            inner.metrics.missed_beats.inc();
            tracing::debug!(%error, "sign of life");
            if now >= inner.quiet_at() {
                inner.set_quiet(true);
            }
        }
    }
    let age = inner.clock.now().saturating_duration_since(*inner.beaten_at.lock());
    inner.metrics.beat_age_ms.set(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
    true
}

impl Inner {
    /// Whether this pod gives signs of life itself, so that it may say that another does not.
    pub(super) fn may_judge(&self) -> bool {
        let last = *self.beaten_at.lock();
        self.clock.now().saturating_duration_since(last) <= self.options.heartbeat * HEALTHY_BEATS
    }
}
