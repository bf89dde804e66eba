//! What waits to be delivered to one connected client: filled by other connections, emptied by its own.
//!
//! Bounded in bytes; a slow client costs only itself. A full mailbox refuses messages of QoS 0. For one of QoS 1
//! or 2 it lets go of those of QoS 0; if that is not enough the client is shed, because what it was promised must
//! not go missing unsaid. What a shared subscription had for it is set aside for another member. Whoever fills a mailbox counts what that cost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Waker};

use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use tokio_util::sync::CancellationToken;
use weir_codec::{Message, QoS};

use crate::router::Group;

/// Bytes a waiting message takes beside its own: the entry and the shared message's counters.
const ENTRY_BYTES: usize = 128;

/// Letters for which an empty mailbox keeps room while its connection is busy, so that bursts up to this allocate
/// nothing.
const KEEP_LETTERS: usize = 256;

/// A live message for one client.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) message: Arc<Message>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) subscription_identifiers: SmallVec<[u32; 1]>,
    pub(crate) expires_at: Option<std::time::Instant>,
    /// The shared subscriptions that chose this client for it.
    pub(crate) shared: SmallVec<[Arc<Group>; 1]>,
    /// How often these have handed it from pod to pod, for want of a member.
    pub(crate) hops: u8,
    /// Of the publish, so that delivery and acknowledgement show up under it.
    pub(crate) span: tracing::Span,
}

/// Why a connection is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// Another connection of the same client id.
    TakenOver,
    /// Messages of QoS 1 or 2 for it are more than may wait.
    TooSlow,
    /// It is to go to another pod, once its publishes have their answers.
    Elsewhere,
}

/// What became of a message for a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It waits. To make room so many of QoS 0 were let go.
    Added { dropped: u64 },
    /// There is no room: it was not added.
    Refused,
    /// So many, this one perhaps among them, will not be delivered: the client is told to end.
    Shed { dropped: u64 },
    /// The client is ending: the message may go to somebody else.
    Gone,
}

#[derive(Debug, Default)]
struct State {
    letters: VecDeque<Letter>,
    bytes: usize,
    /// Those of QoS 0 among the letters.
    droppable: usize,
    /// Of a client that is shed: what another member of a shared subscription may have.
    left_behind: Vec<Letter>,
    closed: bool,
    /// Something has been added or said that the connection has not seen.
    changed: bool,
    /// Of the connection, while it waits.
    waker: Option<Waker>,
    inbox_changed: bool,
    eviction: Option<Eviction>,
    left: bool,
    /// Cancelled when the connection has left, for who waits for that.
    leaving: Option<CancellationToken>,
}

/// A client's mailbox.
#[derive(Debug)]
pub(crate) struct Mailbox {
    state: Mutex<State>,
    bytes_max: usize,
}

impl Mailbox {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { state: Mutex::default(), bytes_max }
    }

    /// Adds a message, one at least.
    pub(crate) fn push(&self, letter: Letter) -> Pushed {
        let size = size(&letter);
        let mut state = self.state.lock();
        let mut dropped = 0;
        if state.closed {
            return Pushed::Gone;
        }
        if state.eviction == Some(Eviction::TooSlow) {
            return if letter.shared.is_empty() { Pushed::Shed { dropped: 1 } } else { Pushed::Gone };
        }
        if !state.has_room(size, self.bytes_max) {
            if letter.qos == QoS::AtMostOnce {
                return Pushed::Refused;
            }
            dropped = state.drop_droppable();
            if !state.has_room(size, self.bytes_max) {
                let letters = std::mem::take(&mut state.letters).into_iter().chain([letter]);
                let (kept, lost): (Vec<_>, Vec<_>) = letters.partition(|letter| !letter.shared.is_empty());
                (state.bytes, state.droppable, state.left_behind) = (0, 0, kept);
                state.eviction = Some(Eviction::TooSlow);
                dropped += lost.len() as u64;
                wake(state);
                return Pushed::Shed { dropped };
            }
        }
        self.add(state, letter, size);
        Pushed::Added { dropped }
    }

    /// Adds a message if there is room; costs nobody anything. Whether it was added.
    pub(crate) fn offer(&self, letter: Letter) -> bool {
        let size = size(&letter);
        let state = self.state.lock();
        let fits = !state.closed && state.eviction.is_none() && state.has_room(size, self.bytes_max);
        if fits {
            self.add(state, letter, size);
        }
        fits
    }

    fn add(&self, mut state: MutexGuard<'_, State>, letter: Letter, size: usize) {
        let is_first = state.letters.is_empty();
        state.bytes += size;
        state.droppable += usize::from(letter.qos == QoS::AtMostOnce);
        state.letters.push_back(letter);
        if is_first {
            wake(state);
        }
    }

    /// Takes no more; what is in it.
    pub(crate) fn close(&self) -> Vec<Letter> {
        let mut state = self.state.lock();
        state.closed = true;
        (state.bytes, state.droppable) = (0, 0);
        let mut letters = std::mem::take(&mut state.left_behind);
        letters.extend(std::mem::take(&mut state.letters));
        letters
    }

    /// Whether a message would be added now.
    pub(crate) fn has_room_for(&self, message: &Message) -> bool {
        let state = self.state.lock();
        !state.closed && state.eviction.is_none() && state.has_room(size_of(message), self.bytes_max)
    }

    /// The next message.
    pub(crate) fn pop(&self) -> Option<Letter> {
        let mut state = self.state.lock();
        let letter = state.letters.pop_front()?;
        state.bytes = state.bytes.saturating_sub(size(&letter));
        state.droppable -= usize::from(letter.qos == QoS::AtMostOnce);
        if state.letters.capacity() > KEEP_LETTERS && state.letters.is_empty() {
            state.letters = VecDeque::new();
        }
        Some(letter)
    }

    /// Lets go of room for letters, if there are none.
    pub(crate) fn compact(&self) {
        let mut state = self.state.lock();
        if state.letters.is_empty() {
            state.letters = VecDeque::new();
        }
    }

    /// QoS of the next message, which stays.
    pub(crate) fn peek_qos(&self) -> Option<QoS> {
        self.state.lock().letters.front().map(|letter| letter.qos)
    }

    /// Says that the client's inbox has more.
    pub(crate) fn inbox_changed(&self) {
        let mut state = self.state.lock();
        state.inbox_changed = true;
        wake(state);
    }

    /// Whether the inbox has changed since the last call.
    pub(crate) fn take_inbox_changed(&self) -> bool {
        std::mem::take(&mut self.state.lock().inbox_changed)
    }

    /// Wakes the connection: something else than the mailbox has changed.
    pub(crate) fn wake(&self) {
        wake(self.state.lock());
    }

    /// Tells the connection to end.
    pub(crate) fn evict(&self, eviction: Eviction) {
        let mut state = self.state.lock();
        state.eviction = Some(eviction);
        wake(state);
    }

    /// Tells the connection to go elsewhere, unless it ends already. Whether it was told so now.
    pub(crate) fn send_away(&self) -> bool {
        let mut state = self.state.lock();
        let stays = state.eviction.is_none() && !state.left;
        if stays {
            state.eviction = Some(Eviction::Elsewhere);
            wake(state);
        }
        stays
    }

    pub(crate) fn eviction(&self) -> Option<Eviction> {
        self.state.lock().eviction
    }

    /// The connection has given up its place.
    pub(crate) fn leave(&self) {
        let mut state = self.state.lock();
        state.left = true;
        let leaving = state.leaving.take();
        drop(state);
        if let Some(leaving) = leaving {
            leaving.cancel();
        }
    }

    /// Waits until the connection has given up its place. Cancel-safe.
    pub(crate) async fn left(&self) {
        let leaving = {
            let mut state = self.state.lock();
            if state.left {
                return;
            }
            state.leaving.get_or_insert_default().clone()
        };
        leaving.cancelled().await;
    }

    /// Whether something has been added or said since the last call. `context` is woken when it is.
    pub(crate) fn poll_changed(&self, context: &mut Context<'_>) -> bool {
        let mut state = self.state.lock();
        let changed = std::mem::take(&mut state.changed);
        if !changed && !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            state.waker = Some(context.waker().clone());
        }
        changed
    }
}

/// Tells the connection that something has changed.
fn wake(mut state: MutexGuard<'_, State>) {
    state.changed = true;
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl State {
    fn has_room(&self, size: usize, bytes_max: usize) -> bool {
        self.letters.is_empty() || self.bytes.saturating_add(size) <= bytes_max
    }

    /// Lets go of the messages of QoS 0; how many there were.
    fn drop_droppable(&mut self) -> u64 {
        if self.droppable == 0 {
            return 0;
        }
        self.letters.retain(|letter| letter.qos != QoS::AtMostOnce);
        self.bytes = self.letters.iter().map(size).sum();
        std::mem::take(&mut self.droppable) as u64
    }
}

fn size(letter: &Letter) -> usize {
    size_of(&letter.message) + letter.subscription_identifiers.len() * 4
}

/// Bytes a waiting message takes.
pub(crate) fn size_of(message: &Message) -> usize {
    let user = message.properties.user_properties.iter().map(|(name, value)| name.len() + value.len() + 64);
    message.topic.as_str().len() + message.payload.len() + user.sum::<usize>() + ENTRY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDED: Pushed = Pushed::Added { dropped: 0 };

    fn letter(bytes: usize) -> Letter {
        letter_of(QoS::AtMostOnce, bytes)
    }

    fn letter_of(qos: QoS, bytes: usize) -> Letter {
        let topic = weir_topic::TopicName::parse("t").unwrap();
        let message = Message { topic, payload: vec![0; bytes].into(), properties: Default::default() };
        Letter {
            message: Arc::new(message),
            qos,
            retain: false,
            subscription_identifiers: SmallVec::new(),
            expires_at: None,
            shared: SmallVec::new(),
            hops: 0,
            span: tracing::Span::none(),
        }
    }

    #[test]
    fn a_full_mailbox_refuses_until_it_is_emptied() {
        let mailbox = Mailbox::new(3000);
        assert_eq!((mailbox.push(letter(1000)), mailbox.push(letter(1000))), (ADDED, ADDED));
        assert_eq!(mailbox.push(letter(1000)), Pushed::Refused);
        assert!(mailbox.pop().is_some());
        assert_eq!(mailbox.push(letter(1000)), ADDED);
    }

    #[test]
    fn room_is_kept_for_the_next_burst_until_the_connection_is_idle() {
        let mailbox = Mailbox::new(1 << 20);
        let capacity_after = |burst: usize| {
            (0..burst).for_each(|_| assert_eq!(mailbox.push(letter(1)), ADDED));
            while mailbox.pop().is_some() {}
            mailbox.state.lock().letters.capacity()
        };
        assert!((200..=KEEP_LETTERS).contains(&capacity_after(200)));
        assert_eq!(capacity_after(KEEP_LETTERS + 1), 0, "a burst that is rarely so large");
        assert!(capacity_after(200) > 0);
        mailbox.compact();
        assert_eq!(mailbox.state.lock().letters.capacity(), 0);
    }

    #[test]
    fn one_message_always_fits() {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
            let mailbox = Mailbox::new(10);
            assert_eq!(mailbox.push(letter_of(qos, 1000)), ADDED);
            assert_eq!(mailbox.push(letter(0)), Pushed::Refused);
        }
    }

    #[test]
    fn qos_0_makes_room_and_then_the_client_is_shed() {
        let mailbox = Mailbox::new(4000);
        mailbox.push(letter(1000));
        mailbox.push(letter_of(QoS::AtLeastOnce, 1000));
        mailbox.push(letter(1000));
        assert_eq!(mailbox.push(letter_of(QoS::ExactlyOnce, 1000)), Pushed::Added { dropped: 2 });
        assert_eq!(mailbox.push(letter_of(QoS::AtLeastOnce, 1000)), ADDED);
        assert_eq!(mailbox.eviction(), None);
        assert_eq!(mailbox.push(letter_of(QoS::AtLeastOnce, 1000)), Pushed::Shed { dropped: 4 });
        assert_eq!(mailbox.eviction(), Some(Eviction::TooSlow));
        assert!(mailbox.pop().is_none());
        assert_eq!(mailbox.push(letter_of(QoS::AtLeastOnce, 0)), Pushed::Shed { dropped: 1 });
        mailbox.close();
        assert_eq!(mailbox.push(letter(0)), Pushed::Gone);
    }
}
