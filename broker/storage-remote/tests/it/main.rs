//! A store served over loopback against the contract, and what clients are told when its server is killed, cut off or
//! slow.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod engine;
mod faults;
mod support;
