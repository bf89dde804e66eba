//! A store that one process serves to others: [`Served`] is the server around a local engine, [`RemoteStore`] the
//! engine that its clients have. For tests of several brokers, and for installations that are too small for
//! FoundationDB: what the server's disk holds is the store, and there is no other copy.
//!
//! A transaction keeps its writes and conflict ranges to itself ([`weir_storage::pending`]), as on the other engines,
//! and sends them with its commit. So the server has no open transactions: it answers reads at a version, and commits
//! in one go. Knows nothing of MQTT, nor of what the keys mean; it must never know which engine it serves.
//!
//! # Lost answers
//! A commit has a number in its client's session, and the server keeps how it ended until the client has heard so.
//! When an answer is lost the client asks for it ([`weir_proto::store`]'s `Settle`), over another connection if need
//! be. A commit that has not begun by then never will; of one in an earlier life of the server nobody knows, but it is
//! over. Only a server that does not answer at all leaves a commit
//! [open](weir_storage::Error::UnknownOpen).
//!
//! # A server that starts again
//! Clients remember versions beyond the life of a server. None that it has given out may be given out by the next one,
//! for another state of the store. So versions leap at each start, as they do when FoundationDB recovers, by more than
//! a server gives out beyond its last commit (`server/horizon.rs`).
//!
//! # Time
//! A client waits for an answer for no longer than [`RemoteOptions::timeout`]: a read is then
//! [`Error::Unavailable`](weir_storage::Error::Unavailable). Of a commit it asks as long again how it ended.

mod client;
mod convert;
mod options;
mod server;
pub mod testing;

pub use client::RemoteStore;
pub use options::{ClientTls, RemoteOptions};
pub use server::{Calls, REQUEST_BYTES_MAX, SESSIONS_MAX, Served, ServedStats, WATCHES_MAX};
