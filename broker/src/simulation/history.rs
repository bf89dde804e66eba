//! What happened in a run, as its clients and whoever made trouble saw it. Judges nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use weir_codec::{QoS, ReasonCode};
use weir_env::clock::{Clock, Timestamp};

use super::trouble::Trouble;

/// Something that happened. Names of clients come first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Pod(usize, PodEvent),
    Trouble(String),
    /// Something is wrong between pods from now on, or not any more.
    Link(Trouble, bool),
    /// With the pod, and whether the session was there.
    Connected(String, usize, bool),
    Lost(String),
    /// With the filter.
    Subscribed(String, String),
    /// The first attempt; repeats are not told.
    Sent(String, Message),
    /// The broker has taken responsibility for the payload, or has not.
    Answered(String, String, ReasonCode),
    Received(String, Received),
    /// What a subscriber heard or told of a packet id at QoS 2.
    Step(String, u16, &'static str),
    /// A client is back whose session went on without it.
    Back(String, Visit),
    /// A consumer group is to be moved to the beginning of its stream, for the nth time, and has been.
    Moves(u16),
    Moved(u16),
    /// The client has told how it judges the message of this payload.
    Settled(String, String, ReasonCode),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PodEvent {
    Started,
    Killed,
    Paused,
    GoesOn,
    Stops,
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) payload: String,
    pub(super) topic: String,
    pub(super) qos: QoS,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) payload: String,
    pub(super) dup: bool,
    /// Shard and offset, of a message of a queue or stream.
    pub(super) at: Option<Place>,
}

/// The connection that a client had before it came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Visit {
    pub(super) will: String,
    /// Seconds until it is published.
    pub(super) delay: u32,
    pub(super) pod: usize,
    pub(super) connected: Timestamp,
    /// When it saw the connection end, and whether it has ended it: else the pod did, which may have been earlier.
    pub(super) left: Timestamp,
    pub(super) is_own_end: bool,
    /// When it came back: it asked for that, and had it.
    pub(super) asked: Timestamp,
    pub(super) came: Timestamp,
    /// Whether the session was there.
    pub(super) present: bool,
}

/// A shard and an offset in it.
pub(super) type Place = (u8, u64);

/// All that happened, in order. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct History(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    clock: Option<Clock>,
    events: Vec<(Timestamp, Event)>,
}

impl History {
    /// Before the first event.
    pub(super) fn set_clock(&self, clock: Clock) {
        self.0.lock().clock = Some(clock);
    }

    pub(super) fn now(&self) -> Timestamp {
        self.0.lock().clock.expect("is set before the first event").wall()
    }

    pub(super) fn note(&self, event: Event) {
        let mut inner = self.0.lock();
        let now = inner.clock.expect("is set before the first event").wall();
        inner.events.push((now, event));
    }

    pub(super) fn events(&self) -> Vec<(Timestamp, Event)> {
        self.0.lock().events.clone()
    }

    /// How many messages have been received, and publishes answered.
    pub(super) fn progress(&self) -> usize {
        let inner = self.0.lock();
        inner
            .events
            .iter()
            .filter(|(_, event)| matches!(event, Event::Received(..) | Event::Answered(..)))
            .count()
    }

    /// A line for each event.
    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().events.iter().map(|(at, event)| format!("{at} {event:?}")).collect()
    }
}

/// What is there in the end, as the broker tells.
#[derive(Debug, Default)]
pub(super) struct End {
    pub(super) stream: BTreeMap<Place, String>,
    /// Of the shards of the queue: messages ever accepted, those that are not done, those that ended by being
    /// acknowledged, and those that ended in whatever way.
    pub(super) queue: Vec<[u64; 4]>,
    /// What a pod could not tell.
    pub(super) unseen: Vec<String>,
    /// By topic.
    pub(super) retained: BTreeMap<String, String>,
}
