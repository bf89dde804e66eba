//! A channel into a connection that costs nothing until somebody sends: most connections never consume a queue
//! or stream, and the first block of a channel alone is larger than everything else an idle connection holds.

use std::task::{Context, Poll};

use tokio::sync::mpsc;

/// Both ends of a bounded channel, made when first needed. Whoever sends into a full one waits or is told.
#[derive(Debug)]
pub(super) struct Inlet<T> {
    capacity: usize,
    ends: Option<Box<(mpsc::Sender<T>, mpsc::Receiver<T>)>>,
}

impl<T> Inlet<T> {
    /// A channel for `capacity` things.
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, ends: None }
    }

    /// An end to send from.
    pub(super) fn sender(&mut self) -> mpsc::Sender<T> {
        self.ends.get_or_insert_with(|| Box::new(mpsc::channel(self.capacity))).0.clone()
    }

    /// Whether there is nothing to receive.
    pub(super) fn is_empty(&self) -> bool {
        self.ends.as_ref().is_none_or(|ends| ends.1.is_empty())
    }

    /// The next thing, if it is there.
    pub(super) fn try_recv(&mut self) -> Option<T> {
        self.ends.as_mut()?.1.try_recv().ok()
    }

    /// The next thing, if it is there; `context` is woken when it is.
    pub(super) fn poll_recv(&mut self, context: &mut Context<'_>) -> Option<T> {
        match self.ends.as_mut()?.1.poll_recv(context) {
            Poll::Ready(received) => received,
            Poll::Pending => None,
        }
    }
}
