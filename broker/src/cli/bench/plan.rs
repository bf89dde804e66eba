//! What one run does, as plain data.

use std::fmt;
use std::num::NonZeroU16;
use std::time::Duration;

use weir_codec::{QoS, UserProperties};

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
    pub(super) properties: UserProperties,
    /// Subscribes when the clock starts, not before.
    pub(super) at_start: bool,
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
        Self { filter: filter.to_owned(), qos, properties: UserProperties::new(), at_start: false }
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
