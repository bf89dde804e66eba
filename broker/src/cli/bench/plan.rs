//! What one run does, as plain data.

use std::fmt;
use std::num::NonZeroU16;
use std::time::Duration;

use weir_codec::{QoS, UserProperties};
use weir_env::clock::Timestamp;

/// One run: who publishes, who subscribes, when it ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// What people read.
    pub(super) title: String,
    pub(super) publishers: Vec<PublisherPlan>,
    pub(super) subscribers: Vec<SubscriberPlan>,
    /// Connections that do nothing.
    pub(super) idle: u32,
    /// How those connect.
    pub(super) idle_as: IdlePlan,
    /// Deliveries that one message makes.
    pub(super) copies: u64,
    /// Messages that may be sent and not yet arrived, over all publishers; `None` if the arrivals set no pace.
    pub(super) under_way: Option<u64>,
    /// Messages that are stored already and will be delivered.
    pub(super) stored: u64,
    /// Time to publish, or to read what is stored.
    pub(super) duration: Duration,
    /// Reading what is stored ends early when nothing comes any more.
    pub(super) ends_in_silence: bool,
    /// Messages of earlier runs count as well.
    pub(super) any_run: bool,
    /// Its beginning is the time that [`From::Middle`] means.
    pub(super) is_middle: bool,
}

#[derive(Clone, Debug)]
pub(super) struct PublisherPlan {
    /// Published to in turn.
    pub(super) topics: Vec<String>,
    pub(super) qos: QoS,
    /// Bytes of payload.
    pub(super) size: usize,
    pub(super) rate: Rate,
    /// Part of an interval by which this publisher is behind the first, so that they don't all send at once.
    pub(super) lag: f64,
    /// Publishes in flight.
    pub(super) window: NonZeroU16,
    /// Ends after so many.
    pub(super) count: u64,
}

#[derive(Clone, Debug)]
pub(super) struct SubscriberPlan {
    pub(super) filter: String,
    pub(super) qos: QoS,
    /// Where in a stream to begin.
    pub(super) from: Option<From>,
    /// The time that [`From::Middle`] means, once it is known.
    pub(super) middle: Timestamp,
    /// Subscribes when the clock starts, not before.
    pub(super) at_start: bool,
}

/// Where in a stream to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Earliest,
    /// At the time at which the second half was published.
    Middle,
    Latest,
}

/// How connections that do nothing connect.
#[derive(Clone, Debug, Default)]
pub(super) struct IdlePlan {
    /// So many a second, whatever becomes of them; `None`: as they can.
    pub(super) rate: Option<f64>,
    /// The session outlives the connection.
    pub(super) persistent: bool,
    /// There is a will.
    pub(super) will: bool,
    /// Subscribed to at QoS 1; `{}` stands for the number of the connection.
    pub(super) filter: Option<String>,
    /// Seconds.
    pub(super) keep_alive: u16,
}

/// How fast to publish.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rate {
    /// As fast as can be.
    Max,
    /// At fixed times.
    PerSecond(f64),
}

impl SubscriberPlan {
    pub(super) fn new(filter: &str, qos: QoS) -> Self {
        Self { filter: filter.to_owned(), qos, from: None, middle: Timestamp::default(), at_start: false }
    }

    /// What goes with its SUBSCRIBE.
    pub(super) fn properties(&self) -> UserProperties {
        let offset = self.from.map(|from| match from {
            From::Middle => self.middle.as_micros().to_string().into(),
            From::Earliest | From::Latest => from.to_string().into(),
        });
        offset.map(|offset| ("stream-offset".into(), offset)).into_iter().collect()
    }
}

impl Plan {
    /// Says when the second half of what is read began, if it has.
    pub(super) fn set_middle(&mut self, at: Option<Timestamp>) {
        for subscriber in &mut self.subscribers {
            subscriber.middle = at.unwrap_or_default();
        }
    }
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Earliest => "earliest",
            Self::Middle => "middle by time",
            Self::Latest => "latest",
        })
    }
}

impl Rate {
    /// The share of each of `n`.
    pub(super) fn shared_by(self, n: u32) -> Self {
        match self {
            Self::Max => Self::Max,
            Self::PerSecond(rate) => Self::PerSecond(rate / f64::from(n)),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Max => f.write_str("max rate (closed loop)"),
            Self::PerSecond(rate) => write!(f, "{rate} msg/s (open loop)"),
        }
    }
}
