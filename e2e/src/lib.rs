//! The end-to-end harness: real brokers and clients that others wrote, seen from outside only.
//!
//! [`weir`] and [`mosquitto`] start brokers, [`clients`] drives foreign MQTT clients, [`tools`] brings the
//! foreign programs onto a machine that has only the Rust toolchain and a C compiler. Nothing here knows how
//! Weir works inside: it starts the binary, speaks MQTT and HTTP to it and reads its log.

pub mod certificates;
pub mod clients;
pub mod compare;
pub mod crowd;
pub mod endpoint;
pub mod foundationdb;
pub mod generator;
pub mod http;
pub mod kubernetes;
pub mod load;
pub mod mosquitto;
pub mod nats;
pub mod pods;
pub mod process;
pub mod queues;
pub mod rabbitmq;
pub mod streams;
pub mod tools;
pub mod weir;

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use weir_env::clock::Clock;

/// How long a single step of a test may take before the test fails. Generous: it is a bound on hanging, not
/// an expectation of speed, and two cores may be shared by many tests.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits for `step`, at most [`DEADLINE`]; the error names `what` was waited for.
pub async fn within<T>(what: &str, step: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(DEADLINE, step)
        .await
        .with_context(|| format!("waited {} s for: {what}", DEADLINE.as_secs()))?
        .with_context(|| what.to_owned())
}

/// The time as RFC 3339 in UTC, to the microsecond.
#[must_use]
pub fn now_rfc3339() -> String {
    let micros = i64::try_from(Clock::system().wall().as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX).to_string()
}
