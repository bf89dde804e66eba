//! What the broker grants a client; plain data, chosen by configuration.

use std::num::{NonZeroU16, NonZeroU32};

/// Bounds of one session. The client's own wishes are honoured up to these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// QoS 1 and 2 publishes of the client that may wait for our answer. A 5.0 client is told and closed with
    /// 0x93 if it sends more; from a 3.1.1 client we stop reading ([`Session::wants_read`]).
    ///
    /// [`Session::wants_read`]: crate::Session::wants_read
    pub receive_maximum: NonZeroU16,
    /// Unacknowledged QoS 1 and 2 deliveries to the client, in addition to its own Receive Maximum: bounds the
    /// memory of a client that never acknowledges.
    pub inflight_maximum: NonZeroU16,
    /// Largest packet we accept, bytes; announced in CONNACK, enforced by the decoder.
    pub maximum_packet_size: NonZeroU32,
    /// Highest topic alias a client may set; zero: none. Each costs one copied topic.
    pub topic_alias_maximum: u16,
    /// Topic aliases we use towards a client that accepts them; zero: none. Each costs one copied topic.
    pub outbound_topic_alias_maximum: u16,
    /// Longest keep-alive of a 5.0 client, seconds; one that asks for a longer one, or for none, is told this in
    /// CONNACK. 3.1.1 has no way to tell, so there the client's own value counts.
    pub keep_alive_maximum: Option<NonZeroU16>,
    /// Longest session expiry, seconds; `u32::MAX`: no limit.
    pub session_expiry_maximum: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            receive_maximum: NonZeroU16::MIN.saturating_add(255),
            inflight_maximum: NonZeroU16::MIN.saturating_add(1023),
            maximum_packet_size: NonZeroU32::MIN.saturating_add((1 << 20) - 1),
            topic_alias_maximum: 32,
            outbound_topic_alias_maximum: 32,
            keep_alive_maximum: None,
            session_expiry_maximum: u32::MAX,
        }
    }
}
