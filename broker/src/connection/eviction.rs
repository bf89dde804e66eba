//! The last moments of a connection that must go: another one of its client has come, or it reads too slowly.
//!
//! What the client sent before it came back counts: after a DISCONNECT its will is withdrawn, and what it published is
//! published. It is read as far as it has been received, within bounds of bytes and time, because the new connection
//! waits.

use std::task::Poll;
use std::time::Duration;

use weir_codec::ReasonCode;

use super::close::{HAND_ON_PATIENCE, LATE_TIME_MAX};
use super::{Connection, FAREWELL_TIMEOUT, HELD_UP_WAIT};
use crate::clients::EVICTION_WAIT_MAX;
use crate::mailbox::Eviction;

/// Most bytes read of what a client sent before it came back: about what a socket holds.
const LAST_BYTES_MAX: usize = 8 << 20;
/// Longest time for it.
const LAST_TIME_MAX: Duration = Duration::from_millis(1_500);
// The new connection waits for all that a connection does at its end.
const _: () = assert!(
    LAST_TIME_MAX.as_millis()
        + FAREWELL_TIMEOUT.as_millis()
        + LATE_TIME_MAX.as_millis()
        + HAND_ON_PATIENCE.as_millis()
        < EVICTION_WAIT_MAX.as_millis()
);

impl Connection {
    pub(super) async fn handle_eviction(&mut self, eviction: Eviction) {
        // Closing a closed session does nothing.
        match eviction {
            Eviction::TakenOver => {
                let handled = tokio::time::timeout(LAST_TIME_MAX, self.handle_last_input()).await;
                if handled.is_err() {
                    let client = &self.stored.client_id;
                    tracing::info!(%client, "taken over before all that it had sent was handled");
                }
                self.session.close(ReasonCode::SessionTakenOver, None);
            }
            Eviction::Elsewhere => self.begin_drain(),
            Eviction::TooSlow => self.shed("limits.outboxBytesPerClient"),
        }
    }

    /// Handles what the client has sent until now. Cancelled, what was being handled counts as not
    /// received.
    async fn handle_last_input(&mut self) {
        let mut left = LAST_BYTES_MAX;
        // Whether the socket had nothing when it was asked last: a sender that waited for room has its turn then.
        let mut quiet = false;
        while !self.session.is_closed() {
            if self.undecoded && !self.wants_read() && self.pending.is_empty() {
                return;
            }
            if self.undecoded && (!self.wants_read() || self.held_up_by(0).is_some()) {
                self.await_room().await;
            } else if self.undecoded {
                self.handle_input().await;
            } else if self.input_ended || left == 0 {
                return;
            } else {
                let before = self.wire.input.len();
                self.fill();
                let read = self.wire.input.len().saturating_sub(before);
                left = left.saturating_sub(read);
                self.undecoded = read > 0;
                if read == 0 && self.wire.has_input() {
                    // What has arrived is not known here before another thread has looked.
                    if self.wire.ready(true).await.is_err() {
                        return;
                    }
                } else if read == 0 && std::mem::replace(&mut quiet, true) {
                    return;
                }
                quiet = read == 0;
            }
            self.transmit();
            if self.wire.flush().is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the next publish may begin, or some time.
    async fn await_room(&mut self) {
        let pending = &mut self.pending;
        let answer = std::future::poll_fn(|context| match pending.poll_next(context) {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        });
        if let Ok((asker, outcome)) = tokio::time::timeout(HELD_UP_WAIT, answer).await {
            self.answer(asker, outcome);
        }
    }
}
