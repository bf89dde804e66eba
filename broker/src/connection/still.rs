//! Connections of a pod that has given no sign of life for so long that others may be about to take its place: nothing is
//! read, delivered or acknowledged until it gives signs of life again, or the connection must end.
//!
//! Order and the fences in the store do not depend on this. It keeps a pod that was stopped, or is cut off from the store,
//! from handing out what others hand out by then, and from answering clients that have gone elsewhere.

use std::task::Poll;
use std::time::Duration;

use super::Connection;
use crate::broker::Broker;

/// How often it is looked whether there are signs of life again, if nobody tells.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

impl Broker {
    /// Whether other pods may be about to take this one's place.
    pub(crate) fn is_quiet(&self) -> bool {
        self.elsewhere.as_ref().is_some_and(|elsewhere| elsewhere.cluster.is_quiet())
    }
}

impl Connection {
    /// Whether nothing may be written: what this pod still has to say when it ends is no harm.
    pub(super) fn is_still(&self) -> bool {
        self.drain_until.is_none() && self.broker.is_quiet()
    }

    /// Waits for as long as nothing may be read or written.
    pub(super) async fn keep_still(&mut self) {
        let Some(elsewhere) = self.broker.elsewhere.clone() else { return };
        let mut quiet = elsewhere.cluster.quiet();
        while self.is_still() && !self.broker.clients.is_draining() && !self.session.is_closed() {
            let mailbox = &self.mailbox;
            let mail = std::future::poll_fn(|context| match mailbox.poll_changed(context) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            });
            tokio::select! {
                () = mail => {
                    if let Some(eviction) = self.handle_mail() {
                        self.handle_eviction(eviction).await;
                    }
                }
                changed = quiet.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }
}
