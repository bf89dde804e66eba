//! What pods say to each other, by the part of Weir that it is for. Plain data, without a wire format.

pub mod feed;
pub mod group;
pub mod live;
pub mod session;
pub mod shard;

pub use feed::FeedMessage;
pub use group::GroupMessage;
pub use live::LiveMessage;
pub use session::SessionMessage;
pub use shard::ShardMessage;

/// Something that one pod says to another.
#[derive(Clone, Debug)]
pub enum PeerMessage {
    /// About a virtual shard.
    Shard(ShardMessage),
    /// About a publish that has live subscribers elsewhere.
    Live(LiveMessage),
    /// About the session of a client.
    Session(SessionMessage),
    /// About the change feed.
    Feed(FeedMessage),
    /// About consumer groups of a stream.
    Group(GroupMessage),
}

/// Which part of Weir a message is for. Each has a lane of its own through a link: none holds up another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Virtual shards, and consumer groups of streams.
    Shard,
    /// Live subscribers.
    Live,
    /// Sessions.
    Session,
    /// The change feed.
    Feed,
}

impl Lane {
    /// How many there are.
    pub const COUNT: usize = 4;
    /// All, in the order of their index.
    pub const ALL: [Self; Self::COUNT] = [Self::Shard, Self::Live, Self::Session, Self::Feed];

    /// Its place in an array of all.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// A bounded label for metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shard => "shard",
            Self::Live => "live",
            Self::Session => "session",
            Self::Feed => "feed",
        }
    }
}

impl PeerMessage {
    /// Where it goes through a link.
    #[must_use]
    pub const fn lane(&self) -> Lane {
        match self {
            Self::Shard(_) | Self::Group(_) => Lane::Shard,
            Self::Live(_) => Lane::Live,
            Self::Session(_) => Lane::Session,
            Self::Feed(_) => Lane::Feed,
        }
    }

    /// Bytes it holds in memory, nearly.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Shard(message) => message.size(),
            Self::Live(message) => message.size(),
            Self::Session(message) => message.size(),
            Self::Feed(message) => message.size(),
            Self::Group(message) => message.size(),
        }
    }
}

impl From<ShardMessage> for PeerMessage {
    fn from(message: ShardMessage) -> Self {
        Self::Shard(message)
    }
}

impl From<LiveMessage> for PeerMessage {
    fn from(message: LiveMessage) -> Self {
        Self::Live(message)
    }
}

impl From<SessionMessage> for PeerMessage {
    fn from(message: SessionMessage) -> Self {
        Self::Session(message)
    }
}

impl From<FeedMessage> for PeerMessage {
    fn from(message: FeedMessage) -> Self {
        Self::Feed(message)
    }
}

impl From<GroupMessage> for PeerMessage {
    fn from(message: GroupMessage) -> Self {
        Self::Group(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_in_the_order_of_their_index() {
        for (index, lane) in Lane::ALL.into_iter().enumerate() {
            assert_eq!(lane.index(), index, "{lane:?}");
        }
    }
}
