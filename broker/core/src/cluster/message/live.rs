//! What pods say to each other about publishes that have live subscribers elsewhere.

use std::sync::Arc;

use bytestring::ByteString;

use crate::message::Message;

/// Bytes that a message is counted as beside what it carries.
const BASE_BYTES: usize = 96;

/// Something about a publish.
#[derive(Clone, Debug)]
pub enum LiveMessage {
    /// To a pod with matching interest, which gives it to its own subscribers and no further.
    Forward(Forward),
}

/// A publish on its way to the live subscribers of another pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// What was published, with the QoS and the RETAIN flag it was published with.
    pub message: Arc<Message>,
    /// Who published it, for No Local.
    pub publisher: Option<ByteString>,
    /// Shared subscriptions (`$share/GROUP/FILTER`) of which a member of that pod gets it.
    pub groups: Vec<ByteString>,
    /// How often its groups have been handed from pod to pod, for want of a member. Other subscribers get it the first time
    /// alone.
    pub hops: u8,
}

impl LiveMessage {
    /// Bytes it holds in memory, nearly.
    #[must_use]
    pub fn size(&self) -> usize {
        let Self::Forward(forward) = self;
        let publisher = forward.publisher.as_ref().map_or(0, |publisher| publisher.len());
        let groups: usize = forward.groups.iter().map(|group| group.len() + size_of::<ByteString>()).sum();
        BASE_BYTES + forward.message.size() + publisher + groups
    }
}
