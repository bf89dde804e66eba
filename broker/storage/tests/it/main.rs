//! The engines against the contract.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod engines;
mod faults;
