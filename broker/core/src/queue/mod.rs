//! Queues: which message of a log goes to which consumer, and what has been acknowledged.
//!
//! [`QueueShard`] is the state of one shard of a queue in the memory of its owner. It reads no store and
//! keeps no clock: the owner feeds it records and tells it the time, and writes what it reports as changed.

mod acks;
mod aside;
mod claims;
mod consumer;
mod dispatch;
mod dying;
mod ends;
mod expiring;
mod keys;
mod last_value;
mod latency;
#[cfg(test)]
mod model;
mod ops;
mod overflow;
mod restored;
mod retry;
mod shard;
#[cfg(test)]
mod sharing_tests;
mod stats;
mod update;

pub(crate) use aside::AsideChange;
pub use aside::Lag;
pub use claims::Held;
pub use consumer::{Consumer, ConsumerId, Handout, QueueDelivery, Window};
pub use ends::{DeadReason, End};
pub(crate) use expiring::SWEEP_INTERVAL;
pub(crate) use last_value::Replaced;
pub use latency::AckLatency;
pub use ops::{MessageState, StateFilter};
pub use overflow::Limits;
pub(crate) use overflow::{Evicted, Room};
pub use restored::StoredQueue;
pub(crate) use shard::DirtyQueue;
pub use shard::{Lost, QueueShard, Settings, Verdict};
pub use stats::{ConsumerReport, Rates};

use acks::Acks;
