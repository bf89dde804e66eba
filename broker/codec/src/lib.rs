//! MQTT packets on the wire: 3.1, 3.1.1 and 5.0, decoded from and encoded to byte buffers.
//!
//! One [`Packet`] model serves all versions. [`Decoder`] turns received bytes into packets, [`encode`] and
//! [`encode_publish`] turn packets into bytes. This crate must never know sockets, clocks or sessions: what a
//! packet means on a connection is its user's matter, what it may contain is decided here. The only state is
//! a [`Decoder`], owned by the task that reads its connection.
//!
//! "Clause" means a normative statement of the MQTT 5.0 specification, such as `[MQTT-3.3.1-4]`.
#![warn(missing_docs)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod decode;
mod encode;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod packet;
mod packet_type;
mod property;
mod read;
mod reason;

pub use decode::{Decoder, DecoderConfig, OWN_FRAME_BELOW, Role};
pub use encode::{PublishTemplate, encode, encode_publish, encode_publish_head, encoded_len, publish_len};
pub use error::{DecodeError, EncodeError, Problem};
pub use packet::{
    Ack, AckProperties, Auth, ConnAck, Connect, Disconnect, Message, MessageProperties, Packet, PacketId,
    ProtocolVersion, Publish, PublishHeader, QoS, RetainHandling, SubAck, Subscribe, SubscribeFilter,
    SubscriptionOptions, UnsubAck, Unsubscribe, UserProperties, Will,
};
pub use packet_type::PacketType;
pub use reason::ReasonCode;

/// Largest number that a variable byte integer holds, and so the longest packet without its fixed header.
pub const REMAINING_LENGTH_MAX: u32 = 268_435_455;
