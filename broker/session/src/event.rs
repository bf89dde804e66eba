//! What a session asks of, and tells, the broker. Plain data; the driver turns it into calls on the core.

use std::sync::Arc;

use bytes::Bytes;
use weir_codec::{Message, PacketId, QoS, ReasonCode, Subscribe, Unsubscribe};

/// Something the broker has to do or to know, in the order it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<T> {
    /// The client published.
    Publish {
        /// For [`Session::handle_published`](crate::Session::handle_published), which must be called once for each
        /// event of QoS 1 or 2 that is not `repeated`.
        token: PublishToken,
        /// Present if `qos` is not 0.
        packet_id: Option<PacketId>,
        /// As published.
        qos: QoS,
        /// As published.
        retain: bool,
        /// As sent.
        dup: bool,
        /// With the topic alias resolved.
        message: Arc<Message>,
        /// Message Expiry Interval, seconds.
        expiry: Option<u32>,
        /// A QoS 2 publish that was received before: it must not be forwarded again, and the session answers it.
        repeated: bool,
    },
    /// PUBREL of a QoS 2 publish: the broker forgets the packet id, then calls
    /// [`Session::handle_released`](crate::Session::handle_released).
    Release {
        /// Of the publish.
        packet_id: PacketId,
    },
    /// Answer with [`Session::handle_subscribed`](crate::Session::handle_subscribed).
    Subscribe(Box<Subscribe>),
    /// Answer with [`Session::handle_unsubscribed`](crate::Session::handle_unsubscribed).
    Unsubscribe(Box<Unsubscribe>),
    /// The client proves anew who it is, or goes on with that. Answer with
    /// [`Session::handle_auth_continued`](crate::Session::handle_auth_continued),
    /// [`Session::handle_authenticated`](crate::Session::handle_authenticated) or
    /// [`Session::close`](crate::Session::close); until then another AUTH breaks the protocol.
    Auth {
        /// The first of an exchange.
        begins: bool,
        /// Authentication Data.
        data: Option<Bytes>,
    },
    /// A delivery is finished and its packet id free again: PUBACK, PUBCOMP, or a PUBREC that refuses.
    Acked {
        /// Of the delivery.
        packet_id: PacketId,
        /// Of the delivery.
        tag: T,
        /// What the client said. `PacketTooLarge` also for a restored delivery that this connection's Maximum
        /// Packet Size does not admit: it counts as delivered [MQTT-3.1.2-25].
        reason: ReasonCode,
    },
    /// PUBREC of a QoS 2 delivery with `store_release`: the broker stores that it is released, then calls
    /// [`Session::handle_stored`](crate::Session::handle_stored), and only then PUBREL goes out.
    Received {
        /// Of the delivery.
        packet_id: PacketId,
        /// Of the delivery.
        tag: T,
    },
    /// The last event: write what [`Session::poll_transmit`](crate::Session::poll_transmit) still has, close the
    /// connection, and take [`Session::into_state`](crate::Session::into_state).
    Closed(Closed),
}

/// Names one publish of the client until it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishToken(pub(crate) u64);

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Who ended it and why.
    pub cause: CloseCause,
    /// The client set a will and has not withdrawn it [MQTT-3.1.2-10]. The delay is the broker's matter.
    pub publish_will: bool,
    /// Seconds the session state outlives the connection, the client's last word within our limit;
    /// `u32::MAX`: for ever.
    pub session_expiry: u32,
}

/// Who ended a connection and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// The client sent DISCONNECT with this reason.
    Client(ReasonCode),
    /// The client broke the protocol.
    Protocol(ReasonCode),
    /// Nothing came for one and a half keep-alive intervals.
    KeepAlive,
    /// The broker called [`Session::close`](crate::Session::close), or refused a publish of a 3.1.1 client.
    Server(ReasonCode),
    /// The connection ended without DISCONNECT.
    Lost,
}

/// The client broke the protocol. The session has closed itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct ProtocolError {
    /// Sent in DISCONNECT to a 5.0 client.
    pub reason: ReasonCode,
    /// For the log.
    pub what: &'static str,
}
