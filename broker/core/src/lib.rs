//! What Weir keeps: queues, streams, retained messages, sessions and their inboxes, over a
//! [`weir_storage::Store`].
//!
//! This crate knows keys, records and ownership of shards. It knows no wire format and no socket: the
//! connection turns what a session asks for into calls here, and what comes out of here into packets.

pub mod activity;
pub mod catalog;
pub mod cluster;
pub mod controls;
pub mod core;
pub mod definition;
pub mod error;
pub mod groups;
pub mod inbox;
pub mod inspect;
pub mod key;
pub mod keyspace;
pub mod message;
pub mod metrics;
mod objects;
pub mod operations;
pub mod panics;
pub mod pods;
pub mod queue;
pub mod restore;
pub mod retained;
pub mod sessions;
pub mod shard;
pub mod stream;
pub mod wills;

pub use self::core::Core;
pub use error::{Error, Result};
