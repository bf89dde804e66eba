//! Many pods over one store: how they talk to each other.
//!
//! Truth is in the store; what pods say to each other only saves them from asking it, or moves what need not be kept.
//! A pod that runs alone uses none of this.

pub mod links;
pub mod message;
pub mod network;
pub mod testing;
