//! What pods say to each other about the change feed.

use weir_storage::Version;

/// Bytes that a message is counted as.
const BASE_BYTES: usize = 64;

/// Something about the change feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedMessage {
    /// The sender's caches have all changes up to this one.
    Applied(Version),
}

impl FeedMessage {
    /// Bytes it holds in memory, nearly.
    #[must_use]
    pub fn size(&self) -> usize {
        BASE_BYTES
    }
}
