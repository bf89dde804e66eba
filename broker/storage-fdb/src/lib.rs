//! The FoundationDB engine: a cluster of FoundationDB 7.3 or later, for any number of brokers.
//!
//! A transaction keeps its writes and conflict ranges to itself ([`weir_storage::pending`]), as on the other engines,
//! and hands them to FoundationDB at its commit; so own writes, sizes and conflicts are the same everywhere, and
//! FoundationDB answers for versions, snapshots, serializability and durability.
//!
//! Knows nothing of MQTT, nor of what the keys mean. The client library is opened by [`FdbNetwork::start`] and not
//! before, so a program with this engine in it runs where the library is not installed.
//!
//! # Start and end
//! The network thread of the client library runs once per process and must have ended before the process does.
//! Whoever owns the process keeps a [`FdbNetwork`] for as long as there are stores, closes the stores, drops them,
//! and drops the network last, which joins the thread. Stores and transactions hold the network too, so dropping them
//! late delays the end and breaks nothing; what calls `exit` meanwhile also waits for the thread.
//!
//! # Time
//! No operation waits for longer than [`FdbOptions::timeout`], however many answers of the cluster it takes: a read or
//! the start of a transaction is then [`Error::Unavailable`](weir_storage::Error::Unavailable), and a commit
//! [`Error::UnknownOpen`](weir_storage::Error::UnknownOpen), because the cluster may still carry it out.

mod cluster_file;
mod errors;
mod keys;
mod network;
mod options;
mod status;
mod store;
pub mod testing;
mod transaction;
mod watches;

pub use network::FdbNetwork;
pub use options::{FdbOptions, NAME_BYTES_MAX};
pub use store::FdbStore;
