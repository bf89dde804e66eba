//! Who waits for something to be durable, and the pending bytes it holds until then.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::{Error, Result};

/// Resolves when what was handed over is durable, or isn't going to be. Dropping it changes nothing.
#[derive(Debug)]
pub struct Completion(oneshot::Receiver<Result<()>>);

impl Completion {
    /// One whose outcome is known.
    pub(crate) fn ready(outcome: Result<()>) -> Self {
        let (completion_tx, completion_rx) = oneshot::channel();
        // The receiver is here.
        let _ = completion_tx.send(outcome);
        Self(completion_rx)
    }
}

impl Future for Completion {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.0).poll(cx).map(|received| received.unwrap_or(Err(Error::Closed)))
    }
}

/// The other end of a [`Completion`].
#[derive(Debug)]
pub(crate) struct Waiter {
    completion_tx: oneshot::Sender<Result<()>>,
    _permit: OwnedSemaphorePermit,
}

impl Waiter {
    pub(crate) fn new(permit: OwnedSemaphorePermit) -> (Self, Completion) {
        let (completion_tx, completion_rx) = oneshot::channel();
        (Self { completion_tx, _permit: permit }, Completion(completion_rx))
    }

    pub(crate) fn complete(self, outcome: Result<()>) {
        // Whoever has stopped waiting does not want to know.
        let _ = self.completion_tx.send(outcome);
    }
}
