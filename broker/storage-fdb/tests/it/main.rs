//! The FoundationDB engine against the contract, on the cluster that `FDB_CLUSTER_FILE` names or over a stand-in for its
//! client library; and what is said where there is no library or no cluster.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "processes that tests start say how it went")]

mod cluster;
mod engine;
mod faults;
mod missing;
