//! The engines against the contract.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod backup;
mod damage;
mod embedded;
mod engines;
mod faults;
mod full;
mod histories;
mod kill;
mod sync;
