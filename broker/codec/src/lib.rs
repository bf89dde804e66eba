//! MQTT packets on the wire: 3.1.1 and 5.0, decoded from and encoded to byte buffers.
//!
//! One [`Packet`] model serves both versions. This crate knows no sockets, no clock and no session: what a
//! packet means on a connection is its user's matter, what it may contain is decided here.
#![warn(missing_docs)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod packet;
mod reason;

pub use packet::*;
pub use reason::*;
