//! The protocol state machine of one connected MQTT client, for 3.1.1 and 5.0, clean and persistent sessions.
//!
//! Packets go in by [`Session::handle_packet`], answers of the broker by the other `handle_*` methods, messages for
//! the client by [`Session::deliver`]. What the session wants of the broker comes out of [`Session::poll_event`],
//! what it wants written out of [`Session::poll_transmit`], and [`Session::poll_timeout`] says when
//! [`Session::handle_timeout`] is due. After each input the driver drains both `poll_*` queues.
//!
//! This crate knows no socket, no clock and no store: time comes in as `now`, state that outlives the
//! connection comes in as [`Restored`] and leaves as [`SessionState`]. A session is owned by the task of its
//! connection.
#![warn(missing_docs)]

mod acks;
mod alias;
mod authentication;
mod delivery;
mod event;
#[doc(hidden)]
pub mod fuzz;
mod inbound;
mod limits;
mod outbound;
mod packet_ids;
mod session;
mod transmit;

pub use delivery::{Delivery, Outgoing, Refusal, Refused, Restored, Returned, SessionState};
pub use event::{CloseCause, Closed, Event, ProtocolError, PublishToken};
pub use limits::Limits;
pub use session::{Session, Told};
pub use transmit::Transmit;
