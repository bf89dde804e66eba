//! Messages on their way to the client, and the part of them that outlives a connection. Plain data.

use std::sync::Arc;
use std::time::Instant;

use smallvec::SmallVec;
use weir_codec::{Message, PacketId, QoS, UserProperties};

/// A message for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery<T> {
    /// What was published.
    pub message: Arc<Message>,
    /// Of this delivery, already the lower of publish and subscription.
    pub qos: QoS,
    /// RETAIN flag to send.
    pub retain: bool,
    /// Of every matching subscription that has one.
    pub subscription_identifiers: SmallVec<[u32; 1]>,
    /// User properties sent after the publisher's own.
    pub extra: UserProperties,
    /// When the message expires; what is left is sent, in seconds rounded up.
    pub expires_at: Option<Instant>,
    /// Part of the session state, so resent with DUP and its packet id after a reconnect [MQTT-4.4.0-1]. False for
    /// deliveries of queues and streams, whose packet ids die with the connection.
    pub resumable: bool,
    /// QoS 2: PUBREL waits until the broker has stored the PUBREC. See [`Event::Received`](crate::Event::Received).
    pub store_release: bool,
    /// The broker's own name for this delivery, reported with its end.
    pub tag: T,
}

/// Why a delivery was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The session is closed.
    Closed,
    /// No free slot for QoS 1 and 2: wait for [`Event::Acked`](crate::Event::Acked).
    NoQuota,
    /// Too much is waiting to be written: call [`Session::poll_transmit`](crate::Session::poll_transmit) first.
    Busy,
    /// Larger than the client's Maximum Packet Size: to be treated as delivered [MQTT-3.1.2-25].
    TooLarge,
    /// Expired: to be dropped [MQTT-3.3.2-5].
    Expired,
    /// The packet id was not reserved.
    NotReserved,
}

/// A delivery handed back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused<T> {
    /// Why.
    pub why: Refusal,
    /// As it came.
    pub delivery: Box<Delivery<T>>,
}

/// An unfinished QoS 1 or 2 delivery that outlives its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outgoing<T> {
    /// Sent, or about to be; neither PUBACK nor PUBREC has come.
    Published {
        /// Kept for the resend.
        packet_id: PacketId,
        /// Resent with DUP.
        delivery: Delivery<T>,
    },
    /// PUBREC has come, PUBCOMP has not: PUBREL is resent.
    Released {
        /// Kept for the resend.
        packet_id: PacketId,
        /// Of the delivery.
        tag: T,
    },
}

/// State of an earlier connection that a new one goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored<T> {
    /// In the order of the first sending.
    pub outgoing: Vec<Outgoing<T>>,
    /// QoS 2 publishes of the client that were answered with success and are not released yet.
    pub incoming_qos2: Vec<PacketId>,
}

/// What is left of a session at the end of its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionState<T> {
    /// To be resumed: becomes [`Restored::outgoing`].
    pub outgoing: Vec<Outgoing<T>>,
    /// Unfinished deliveries that are not resumable, in the order they were taken.
    pub returned: Vec<Returned<T>>,
    /// QoS 2 publishes that were answered with success and not released; becomes [`Restored::incoming_qos2`].
    pub incoming_qos2: Vec<PacketId>,
}

/// An unfinished delivery that ends with its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returned<T> {
    /// Of the delivery.
    pub tag: T,
    /// It left through [`Session::poll_transmit`](crate::Session::poll_transmit), so the client may have seen it.
    pub written: bool,
}

impl<T> Default for Restored<T> {
    fn default() -> Self {
        Self { outgoing: Vec::new(), incoming_qos2: Vec::new() }
    }
}

impl<T> From<SessionState<T>> for Restored<T> {
    fn from(state: SessionState<T>) -> Self {
        Self { outgoing: state.outgoing, incoming_qos2: state.incoming_qos2 }
    }
}

impl<T> Outgoing<T> {
    /// The id that the delivery keeps.
    #[must_use]
    pub const fn packet_id(&self) -> PacketId {
        match self {
            Self::Published { packet_id, .. } | Self::Released { packet_id, .. } => *packet_id,
        }
    }
}
