//! How a coordinator tells a member something: through a channel if the member is in this process and the process is
//! alone, through the pod of the member otherwise. Knows nothing of what is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::GroupEvent;
use crate::cluster::message::group::FromCoordinator;
use crate::queue::ConsumerId;

/// Words that wait for a pod, at most: more than four events for each shard of a hundred streams' members.
pub(super) const WORDS_MAX: usize = 16_384;

/// Whom a coordinator tells what concerns a member.
#[derive(Clone, Debug)]
pub(super) enum Listener {
    Here(mpsc::Sender<GroupEvent>),
    Elsewhere {
        /// As its pod calls it.
        member: ConsumerId,
        voice: Arc<Voice>,
    },
}

impl Listener {
    pub(super) fn try_send(&self, event: GroupEvent) -> Result<(), TrySendError<GroupEvent>> {
        match self {
            Self::Here(events) => events.try_send(event),
            Self::Elsewhere { member, voice } => {
                // Without room the talk is over, and its pod announces the member anew.
                voice.say(FromCoordinator::Event { member: *member, event });
                Ok(())
            }
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Here(events) => events.is_closed(),
            // It leaves, or its pod does.
            Self::Elsewhere { .. } => false,
        }
    }
}

/// What is said to one pod in one talk. Never waits.
#[derive(Debug)]
pub(super) struct Voice {
    words: mpsc::Sender<(u64, FromCoordinator)>,
    next: AtomicU64,
    is_over: AtomicBool,
}

impl Voice {
    pub(super) fn new() -> (Arc<Self>, mpsc::Receiver<(u64, FromCoordinator)>) {
        let (words, said) = mpsc::channel(WORDS_MAX);
        (Arc::new(Self { words, next: AtomicU64::new(0), is_over: AtomicBool::new(false) }), said)
    }

    /// Says `words`, unless so much was not heard yet that there is no room: then the talk is over.
    pub(super) fn say(&self, words: FromCoordinator) {
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        if self.words.try_send((seq, words)).is_err() {
            self.is_over.store(true, Ordering::Relaxed);
        }
    }

    /// Something could not be sent, and nothing more is.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Whether something could not be said.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_numbered_and_where_there_is_no_room_the_talk_is_over() {
        let (voice, mut said) = Voice::new();
        let listener = Listener::Elsewhere { member: ConsumerId(7), voice: Arc::clone(&voice) };
        for _ in 0..WORDS_MAX {
            listener.try_send(GroupEvent::Ended).unwrap();
        }
        assert!(!voice.is_over());
        listener.try_send(GroupEvent::Ended).unwrap();
        assert!(voice.is_over());
        let event = FromCoordinator::Event { member: ConsumerId(7), event: GroupEvent::Ended };
        assert_eq!(said.try_recv().unwrap(), (0, event.clone()));
        assert_eq!(said.try_recv().unwrap(), (1, event));
    }
}
