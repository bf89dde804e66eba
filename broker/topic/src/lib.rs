//! Topic names, topic filters, the subscription grammar and the match trie.
//!
//! The parsers are the only way to have a [`TopicName`], a [`TopicFilter`] or a [`Subscription`], so whoever
//! holds one need not check it again. The crate must never know packets, sessions or storage; it does no IO
//! and keeps no state but what a [`MatchTrie`]'s owner puts into one.
//!
//! "Clause" below means a normative statement of the MQTT 5.0 specification, such as `[MQTT-4.7.1-1]`; 3.1.1
//! has the same rules.

mod error;
mod filter;
#[doc(hidden)]
pub mod fuzz;
mod name;
mod subscription;
mod text;
mod trie;

pub use error::{SubscriptionError, TopicError};
pub use filter::TopicFilter;
pub use name::{TopicName, is_publish_forbidden};
pub use subscription::{ObjectName, ShareName, Subscription};
pub use trie::MatchTrie;

/// Longest topic name, topic filter or text of a subscription, in UTF-8 bytes. They become parts of keys in
/// the store, whose length is limited.
pub const TOPIC_BYTES_MAX: usize = 1_024;

/// Most levels of a topic name or filter. Bounds the depth of the match trie, and with it the stack and the
/// time that one match takes; real hierarchies stay far below.
pub const TOPIC_LEVELS_MAX: usize = 128;
