//! Weir as a library: what the `weir` binary is made of, so that tests can drive it.

pub mod cli;
pub mod client;
pub mod config;
pub mod http;
pub mod metrics;
pub mod telemetry;
