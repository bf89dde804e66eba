//! What waits to be delivered to one connected client: filled by other connections, emptied by its own.
//!
//! Bounded in bytes. A full mailbox refuses more, and whoever fills it counts what was refused: a slow
//! client costs only itself.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use weir_codec::{Message, QoS};

/// Bytes a waiting message takes beside its own: the entry and the shared message's counters.
const ENTRY_BYTES: usize = 128;

/// A live message for one client.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) message: Arc<Message>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) subscription_identifiers: SmallVec<[u32; 1]>,
    pub(crate) expires_at: Option<std::time::Instant>,
    /// Of the publish, so that delivery and acknowledgement show up under it.
    pub(crate) span: tracing::Span,
}

/// Why a connection is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// Another connection of the same client id.
    TakenOver,
}

#[derive(Debug, Default)]
struct State {
    letters: VecDeque<Letter>,
    bytes: usize,
    inbox_changed: bool,
    eviction: Option<Eviction>,
}

/// A client's mailbox.
#[derive(Debug)]
pub(crate) struct Mailbox {
    state: Mutex<State>,
    bytes_max: usize,
    changed: Notify,
}

impl Mailbox {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { state: Mutex::default(), bytes_max, changed: Notify::new() }
    }

    /// Adds a message. False if there is no room: it was not added.
    pub(crate) fn push(&self, letter: Letter) -> bool {
        let size = size(&letter);
        let mut state = self.state.lock();
        if state.bytes.saturating_add(size) > self.bytes_max && !state.letters.is_empty() {
            return false;
        }
        let wake = state.letters.is_empty();
        state.bytes += size;
        state.letters.push_back(letter);
        drop(state);
        if wake {
            self.changed.notify_one();
        }
        true
    }

    /// The next message.
    pub(crate) fn pop(&self) -> Option<Letter> {
        let mut state = self.state.lock();
        let letter = state.letters.pop_front()?;
        state.bytes = state.bytes.saturating_sub(size(&letter));
        if state.letters.is_empty() && state.letters.capacity() > 64 {
            state.letters = VecDeque::new();
        }
        Some(letter)
    }

    /// QoS of the next message, which stays.
    pub(crate) fn peek_qos(&self) -> Option<QoS> {
        self.state.lock().letters.front().map(|letter| letter.qos)
    }

    /// Says that the client's inbox has more.
    pub(crate) fn inbox_changed(&self) {
        self.state.lock().inbox_changed = true;
        self.changed.notify_one();
    }

    /// Whether the inbox has changed since the last call.
    pub(crate) fn take_inbox_changed(&self) -> bool {
        std::mem::take(&mut self.state.lock().inbox_changed)
    }

    /// Tells the connection to end.
    pub(crate) fn evict(&self, eviction: Eviction) {
        self.state.lock().eviction = Some(eviction);
        self.changed.notify_one();
    }

    pub(crate) fn eviction(&self) -> Option<Eviction> {
        self.state.lock().eviction
    }

    /// Waits until something has been added or said. May wake for no reason; cancel-safe.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

fn size(letter: &Letter) -> usize {
    let properties = &letter.message.properties;
    let user: usize =
        properties.user_properties.iter().map(|(name, value)| name.len() + value.len() + 64).sum();
    let message = letter.message.topic.as_str().len() + letter.message.payload.len();
    message + user + ENTRY_BYTES + letter.subscription_identifiers.len() * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(bytes: usize) -> Letter {
        let topic = weir_topic::TopicName::parse("t").unwrap();
        let message = Message { topic, payload: vec![0; bytes].into(), properties: Default::default() };
        Letter {
            message: Arc::new(message),
            qos: QoS::AtMostOnce,
            retain: false,
            subscription_identifiers: SmallVec::new(),
            expires_at: None,
            span: tracing::Span::none(),
        }
    }

    #[test]
    fn a_full_mailbox_refuses_until_it_is_emptied() {
        let mailbox = Mailbox::new(3000);
        assert!(mailbox.push(letter(1000)) && mailbox.push(letter(1000)));
        assert!(!mailbox.push(letter(1000)));
        assert!(mailbox.pop().is_some());
        assert!(mailbox.push(letter(1000)));
    }

    #[test]
    fn one_message_always_fits() {
        let mailbox = Mailbox::new(10);
        assert!(mailbox.push(letter(1000)));
        assert!(!mailbox.push(letter(0)));
    }
}
