//! The change feed as a pod follows it: changes are handed to whoever keeps something of the store in memory, and it is
//! known up to which version all of them have applied them. Knows neither how the feed is read (`tail`) nor what is made
//! of a change.
//!
//! The state is behind one short lock: the tail adds, followers take.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use weir_storage::{Transaction, Version};

use crate::keyspace::change::{Change, Topic};

/// Changes that wait for a follower: with more it reads what it keeps again.
pub const CHANGES_WAITING_MAX: usize = 65_536;

/// The change feed in this pod. Clones share it.
#[derive(Clone, Debug)]
pub struct Feed {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    applied_tx: watch::Sender<Version>,
    /// Asks for the feed to be read at once.
    wake: Notify,
    sequence: AtomicU32,
}

#[derive(Debug, Default)]
struct State {
    /// All changes up to this version have been handed to the followers.
    tail: Version,
    /// When something last changed.
    newest: Version,
    followers: Vec<Follower>,
    next_id: u64,
}

#[derive(Debug)]
struct Follower {
    id: u64,
    topics: &'static [Topic],
    waiting: VecDeque<FeedEvent>,
    arrived: Arc<Notify>,
    /// It has something in hand and has not come back for more.
    is_busy: bool,
    applied: Version,
}

/// What a follower of the feed is told.
#[derive(Clone, Debug)]
pub enum FeedEvent {
    /// What the store had at `version` or later is to be read whole: this is the first event, and follows whenever
    /// changes were missed.
    Reload {
        /// At least of this version. Whatever is read from now on is.
        version: Version,
    },
    /// Something has changed. It may have been in what was read whole before.
    Change {
        /// When it was committed.
        version: Version,
        /// What.
        change: Arc<Change>,
    },
}

impl FeedEvent {
    const fn version(&self) -> Version {
        match self {
            Self::Reload { version } | Self::Change { version, .. } => *version,
        }
    }
}

impl Default for Feed {
    fn default() -> Self {
        let shared = Shared {
            state: Mutex::default(),
            applied_tx: watch::Sender::new(Version::default()),
            wake: Notify::new(),
            sequence: AtomicU32::new(0),
        };
        Self { shared: Arc::new(shared) }
    }
}

impl Feed {
    /// Adds a change to the transaction that makes it.
    pub fn write(&self, tx: &mut dyn Transaction, change: &Change) {
        change.write(tx, self.shared.sequence.fetch_add(1, Ordering::Relaxed));
    }

    /// Follows changes of `topics`. To be called before anything of them is read from the store.
    #[must_use]
    pub fn subscribe(&self, topics: &'static [Topic]) -> FeedReceiver {
        let mut state = self.shared.state.lock();
        let id = state.next_id;
        state.next_id += 1;
        let arrived = Arc::new(Notify::new());
        let version = state.tail;
        state.followers.push(Follower {
            id,
            topics,
            waiting: VecDeque::from([FeedEvent::Reload { version }]),
            arrived: Arc::clone(&arrived),
            is_busy: false,
            applied: Version::default(),
        });
        self.shared.tell_applied(&state);
        drop(state);
        FeedReceiver { shared: Arc::clone(&self.shared), id, arrived }
    }

    /// The version up to which every follower in this pod has applied all changes.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<Version> {
        self.shared.applied_tx.subscribe()
    }

    /// Has the feed be read now: something was written to it.
    pub fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// Waits for [`Feed::wake`]. Cancel-safe.
    pub(super) async fn woken(&self) {
        self.shared.wake.notified().await;
    }

    /// Hands `changes` to the followers: there are no others up to `version`.
    pub(super) fn deliver(&self, changes: &[(Version, Arc<Change>)], version: Version) {
        let mut state = self.shared.state.lock();
        state.tail = state.tail.max(version);
        if let Some((version, _)) = changes.last() {
            state.newest = state.newest.max(*version);
        }
        let tail = state.tail;
        for follower in &mut state.followers {
            for (version, change) in changes {
                if follower.topics.contains(&change.topic()) {
                    follower.push(FeedEvent::Change { version: *version, change: Arc::clone(change) });
                }
            }
            follower.settle(tail);
        }
        self.shared.tell_applied(&state);
    }

    /// Changes up to `version` were missed: followers read again what they keep.
    pub(super) fn reload(&self, version: Version) {
        let mut state = self.shared.state.lock();
        state.tail = state.tail.max(version);
        state.newest = state.newest.max(version);
        for follower in &mut state.followers {
            follower.waiting.clear();
            follower.push(FeedEvent::Reload { version });
        }
        self.shared.tell_applied(&state);
    }

    /// The version of the newest change that was read.
    pub(super) fn newest(&self) -> Version {
        self.shared.state.lock().newest
    }

    /// Changes that wait for the follower that has most to do.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().followers.iter().map(|follower| follower.waiting.len()).max().unwrap_or(0)
    }
}

impl Shared {
    fn tell_applied(&self, state: &State) {
        let applied = state.followers.iter().map(|follower| follower.applied).min().unwrap_or(state.tail);
        self.applied_tx.send_if_modified(|told| std::mem::replace(told, applied) != applied);
    }
}

impl Follower {
    fn push(&mut self, event: FeedEvent) {
        if self.waiting.len() < CHANGES_WAITING_MAX {
            self.waiting.push_back(event);
        } else {
            // What it has missed is up to here.
            let version = event.version();
            self.waiting.clear();
            self.waiting.push_back(FeedEvent::Reload { version });
        }
        self.arrived.notify_one();
    }

    /// Works out what it has applied, if nothing is in its hand.
    fn settle(&mut self, tail: Version) {
        if self.is_busy {
            return;
        }
        self.applied = match self.waiting.front() {
            None => tail,
            Some(FeedEvent::Change { version, .. }) => self.applied.max(Version(version.0.saturating_sub(1))),
            Some(FeedEvent::Reload { .. }) => self.applied,
        };
    }
}

/// A follower's end of the feed.
#[derive(Debug)]
pub struct FeedReceiver {
    shared: Arc<Shared>,
    id: u64,
    arrived: Arc<Notify>,
}

impl FeedReceiver {
    /// The next event. Asking for it says that all earlier ones have been applied. Cancel-safe.
    pub async fn next(&mut self) -> FeedEvent {
        loop {
            if let Some(event) = self.try_next() {
                return event;
            }
            self.arrived.notified().await;
        }
    }

    /// The next events, `max` at most and one at least. Asking for them says that all earlier ones have been applied, of
    /// these none. Cancel-safe.
    pub async fn next_many(&mut self, max: usize) -> Vec<FeedEvent> {
        loop {
            let events = self.take(max.max(1));
            if !events.is_empty() {
                return events;
            }
            self.arrived.notified().await;
        }
    }

    /// The next event if there is one. Asking for it says that all earlier ones have been applied.
    pub fn try_next(&mut self) -> Option<FeedEvent> {
        self.take(1).pop()
    }

    fn take(&mut self, max: usize) -> Vec<FeedEvent> {
        let mut state = self.shared.state.lock();
        let tail = state.tail;
        let Some(follower) = state.followers.iter_mut().find(|follower| follower.id == self.id) else {
            return Vec::new();
        };
        follower.is_busy = false;
        follower.settle(tail);
        let count = follower.waiting.len().min(max);
        let events: Vec<FeedEvent> = follower.waiting.drain(..count).collect();
        follower.is_busy = !events.is_empty();
        self.shared.tell_applied(&state);
        events
    }
}

impl Drop for FeedReceiver {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.followers.retain(|follower| follower.id != self.id);
        self.shared.tell_applied(&state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::owner::PodId;

    fn change(pod: u8) -> Arc<Change> {
        Arc::new(Change::PodGone(PodId([pod; 16])))
    }

    fn deliver(feed: &Feed, version: u64) {
        feed.deliver(&[(Version(version), change(1))], Version(version));
    }

    fn next(receiver: &mut FeedReceiver) -> Option<(bool, u64)> {
        let event = receiver.try_next()?;
        Some((matches!(event, FeedEvent::Reload { .. }), event.version().0))
    }

    #[test]
    fn what_is_in_hand_or_waits_is_not_applied() {
        let feed = Feed::default();
        let applied = feed.applied();
        feed.deliver(&[], Version(5));
        assert_eq!(*applied.borrow(), Version(5), "nobody follows");
        let mut pods = feed.subscribe(&[Topic::Pods]);
        let mut owners = feed.subscribe(&[Topic::Owners]);
        assert_eq!(*applied.borrow(), Version(0), "nothing is read yet");
        assert_eq!(next(&mut pods), Some((true, 5)));
        assert_eq!(next(&mut owners), Some((true, 5)));
        assert_eq!((next(&mut pods), next(&mut owners)), (None, None));
        assert_eq!(*applied.borrow(), Version(5));
        deliver(&feed, 7);
        deliver(&feed, 9);
        assert_eq!(*applied.borrow(), Version(6));
        assert_eq!(next(&mut pods), Some((false, 7)));
        assert_eq!(*applied.borrow(), Version(6), "it is in hand");
        assert_eq!(next(&mut pods), Some((false, 9)));
        assert_eq!(*applied.borrow(), Version(8));
        feed.deliver(&[], Version(12));
        assert_eq!(*applied.borrow(), Version(8));
        assert_eq!(next(&mut pods), None);
        assert_eq!(*applied.borrow(), Version(12));
        feed.deliver(&[], Version(13));
        assert_eq!(*applied.borrow(), Version(13), "nobody has anything in hand");
        assert_eq!(next(&mut owners), None, "it does not follow pods");
        feed.reload(Version(20));
        assert_eq!(*applied.borrow(), Version(13));
        drop(pods);
        assert_eq!((next(&mut owners), next(&mut owners)), (Some((true, 20)), None));
        assert_eq!(*applied.borrow(), Version(20));
    }

    #[tokio::test]
    async fn what_is_taken_together_is_applied_together() {
        let feed = Feed::default();
        let mut pods = feed.subscribe(&[Topic::Pods]);
        (1..=3).for_each(|version| deliver(&feed, version));
        assert_eq!(pods.next_many(3).await.len(), 3);
        assert_eq!(*feed.applied().borrow(), Version(0));
        assert_eq!(pods.next_many(9).await.len(), 1);
        assert_eq!(*feed.applied().borrow(), Version(2));
        assert_eq!(next(&mut pods), None);
        assert_eq!(*feed.applied().borrow(), Version(3));
    }

    #[test]
    fn a_follower_that_is_too_slow_reads_again() {
        let feed = Feed::default();
        let mut slow = feed.subscribe(&[Topic::Pods]);
        assert_eq!((next(&mut slow), next(&mut slow)), (Some((true, 0)), None));
        let max = CHANGES_WAITING_MAX as u64;
        (1..=max).for_each(|version| deliver(&feed, version));
        assert_eq!(feed.waiting(), CHANGES_WAITING_MAX);
        deliver(&feed, max + 1);
        deliver(&feed, max + 2);
        assert_eq!(*feed.applied().borrow(), Version(0));
        assert_eq!(next(&mut slow), Some((true, max + 1)));
        assert_eq!(next(&mut slow), Some((false, max + 2)));
        assert_eq!(next(&mut slow), None);
        assert_eq!(*feed.applied().borrow(), Version(max + 2));
    }
}
