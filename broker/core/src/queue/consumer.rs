//! The consumer's side of a queue: how much room it has, and where its messages go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};

use bytestring::ByteString;
use tokio::sync::{Notify, mpsc};
use weir_env::clock::Timestamp;

use crate::keyspace::LogId;
use crate::keyspace::segment::Record;

/// Identifies a consumer within this pod, for as long as it is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerId(pub u64);

/// Room for messages in flight, shared by everybody who fills it.
///
/// A taker that finds no room marks the window as starved; whoever gives room back then knows that the
/// shards the consumer is attached to wait for it.
#[derive(Debug)]
pub struct Window {
    size: AtomicU32,
    free: AtomicI64,
    starved: AtomicBool,
    /// Told when the window is starved.
    starving: Option<Arc<Notify>>,
}

impl Window {
    /// A window with room for `size` messages.
    #[must_use]
    pub fn new(size: u32) -> Self {
        let free = AtomicI64::new(i64::from(size));
        Self { size: AtomicU32::new(size), free, starved: AtomicBool::new(false), starving: None }
    }

    /// A window without room, of a consumer on another pod; `starving` is told when somebody looks for some in vain.
    pub(crate) fn remote(starving: Arc<Notify>) -> Self {
        Self { starving: Some(starving), ..Self::new(0) }
    }

    /// Gives the window another size; what is taken stays taken, though it may be more than there is room for now. True
    /// if somebody waits for room that there is now. Only one caller at a time.
    #[must_use]
    pub fn resize(&self, size: u32) -> bool {
        let grown = i64::from(size) - i64::from(self.size.swap(size, Ordering::SeqCst));
        let free = self.free.fetch_add(grown, Ordering::SeqCst) + grown;
        free > 0 && self.starved.swap(false, Ordering::SeqCst)
    }

    /// Takes room for one message if there is any.
    #[must_use]
    pub fn try_take(&self) -> bool {
        let take = |free: i64| (free > 0).then(|| free - 1);
        if self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            return true;
        }
        // Either whoever gives room back sees the mark, or the second look sees the room: that takes one
        // order of both variables for everybody.
        self.starved.store(true, Ordering::SeqCst);
        if let Some(starving) = &self.starving {
            starving.notify_one();
        }
        self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
    }

    /// Takes room for one message although there may be none: it was sent without asking.
    pub fn take_anyway(&self) {
        self.free.fetch_sub(1, Ordering::SeqCst);
    }

    /// Gives room for one message back. True if somebody waits for it.
    #[must_use]
    pub fn give_back(&self) -> bool {
        self.free.fetch_add(1, Ordering::SeqCst) >= 0 && self.starved.swap(false, Ordering::SeqCst)
    }

    /// Gives room for `room` messages more, to a window whose consumer is on another pod and holds `taken` messages.
    pub(crate) fn grant(&self, room: u32, taken: u32) {
        // What it has given room for counts as taken there.
        self.size.store(taken, Ordering::Relaxed);
        self.free.fetch_add(i64::from(room), Ordering::SeqCst);
    }

    /// Takes all room there is: how much.
    pub(crate) fn take_all(&self) -> u32 {
        let taken = self.free.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| Some(free.min(0)));
        let free = taken.unwrap_or_else(|free| free).max(0);
        self.size.fetch_sub(u32::try_from(free).unwrap_or(0), Ordering::Relaxed);
        u32::try_from(free).unwrap_or(u32::MAX)
    }

    /// Whether somebody found no room since this was last asked.
    pub(crate) fn was_starved(&self) -> bool {
        self.starved.swap(false, Ordering::SeqCst)
    }

    /// Undoes a taking. Whoever waits for room goes on waiting for the next that is given back.
    fn put_back(&self) {
        self.free.fetch_add(1, Ordering::SeqCst);
    }

    /// Messages it is taken by.
    #[must_use]
    pub fn taken(&self) -> i64 {
        i64::from(self.size.load(Ordering::Relaxed)) - self.free.load(Ordering::Relaxed)
    }

    /// Messages there is room for.
    #[must_use]
    pub fn free(&self) -> i64 {
        self.free.load(Ordering::SeqCst)
    }
}

/// One message on its way to a consumer.
#[derive(Clone, Debug)]
pub struct QueueDelivery {
    /// Whom it is for.
    pub consumer: ConsumerId,
    /// Whether it takes room in its connection's window.
    pub acknowledged: bool,
    /// Which shard of which queue it comes from.
    pub log: LogId,
    /// Its offset in that log.
    pub offset: u64,
    /// 1 for the first delivery.
    pub delivery_count: u32,
    /// The message and its key.
    pub record: Arc<Record>,
}

impl QueueDelivery {
    /// What its consumer settles.
    #[must_use]
    pub const fn handout(&self) -> Handout {
        let Self { log, consumer, offset, delivery_count, .. } = *self;
        Handout { log, consumer, offset, delivery_count }
    }
}

/// One delivery of a message, told from earlier ones to the same consumer, of which it may still say something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handout {
    /// Which shard of which queue it came from.
    pub log: LogId,
    /// Who has it.
    pub consumer: ConsumerId,
    /// Its offset in that log.
    pub offset: u64,
    /// 1 for the first delivery.
    pub delivery_count: u32,
}

/// Somebody who consumes a queue. Clones are the same consumer.
#[derive(Clone, Debug)]
pub struct Consumer {
    /// Which.
    pub id: ConsumerId,
    /// Of the client it belongs to.
    pub client_id: ByteString,
    /// When it began to consume.
    pub since: Timestamp,
    /// Room of the consumer over all shards of the queue.
    pub window: Arc<Window>,
    /// Room of the connection over everything it receives; `None` for a consumer that does not acknowledge.
    pub connection_window: Option<Arc<Window>>,
    /// Where messages go. Its capacity must be at least the window's size, so that sending never waits.
    pub deliveries: mpsc::Sender<QueueDelivery>,
}

impl Consumer {
    /// Takes room for one message in both windows, or in none.
    pub(crate) fn try_take(&self) -> bool {
        if !self.window.try_take() {
            return false;
        }
        let Some(connection) = &self.connection_window else { return true };
        if connection.try_take() {
            return true;
        }
        // A shard that found this window full meanwhile waits for the connection's room, as this one does.
        self.window.put_back();
        false
    }

    /// Undoes [`Consumer::try_take`].
    pub(crate) fn put_back(&self) {
        self.window.put_back();
        if let Some(connection) = &self.connection_window {
            connection.put_back();
        }
    }

    /// Gives room for one message back. True if shards wait for it: those of every queue that shares one of
    /// the two windows are to be kicked.
    #[must_use]
    pub fn give_back(&self) -> bool {
        let starved = self.window.give_back();
        let connection_starved = self.connection_window.as_ref().is_some_and(|w| w.give_back());
        starved || connection_starved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_tells_when_somebody_waits() {
        let window = Window::new(1);
        assert!(window.try_take());
        assert!(!window.give_back());
        assert!(window.try_take());
        assert!(!window.try_take());
        assert!(window.give_back());
        assert_eq!(window.free(), 1);
    }

    #[test]
    fn room_taken_anyway_is_a_debt() {
        let window = Window::new(1);
        window.take_anyway();
        window.take_anyway();
        assert!(!window.try_take());
        assert!(!window.give_back(), "still no room");
        assert!(window.give_back());
    }

    #[test]
    fn a_window_grows_and_shrinks() {
        let window = Window::new(1);
        assert!(window.try_take());
        assert!(!window.resize(2), "nobody waits");
        assert!(window.try_take() && !window.try_take());
        assert!(!window.resize(1), "no room");
        assert_eq!(window.free(), -1);
        assert!(!window.give_back(), "still no room");
        assert!(window.resize(2), "somebody waits");
        assert_eq!(window.free(), 1);
        assert_eq!(window.taken(), 1);
    }

    #[test]
    fn both_windows_or_none() {
        let (deliveries, _keep) = mpsc::channel(1);
        let connection = Arc::new(Window::new(0));
        let consumer = Consumer {
            id: ConsumerId(1),
            client_id: "c".into(),
            since: Timestamp::default(),
            window: Arc::new(Window::new(5)),
            connection_window: Some(Arc::clone(&connection)),
            deliveries,
        };
        assert!(!consumer.try_take());
        assert_eq!((consumer.window.free(), connection.free()), (5, 0));
    }
}
