//! What the driver has to write.

use std::sync::Arc;

use weir_codec::{Message, Packet, PublishHeader, UserProperties};

/// One packet to encode and write, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transmit {
    /// Any packet but PUBLISH.
    Packet(Packet),
    /// A PUBLISH; the message is shared with its other receivers.
    Publish {
        /// Flags, packet id and per-hop properties.
        header: PublishHeader,
        /// False: the topic is written empty, because `header.topic_alias` stands for it.
        topic_on_wire: bool,
        /// Topic, payload and properties.
        message: Arc<Message>,
        /// User properties written after those of the message.
        extra: UserProperties,
    },
}
