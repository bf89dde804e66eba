//! What can go wrong in this crate.

use std::sync::Arc;

use crate::keyspace::DecodeError;
use crate::keyspace::owner::Owner;
use crate::stream::Damage;

/// A failed operation.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The store did not do it; the variant says what that means.
    #[error("{0}")]
    Store(#[from] weir_storage::Error),
    /// A stored record is damaged or from a newer version: a person must act.
    #[error("read stored record: {0}")]
    Record(#[from] DecodeError),
    /// Part of a stream is damaged: a person must act, and is told how.
    #[error("{0}")]
    Damaged(Box<Damage>),
    /// Another pod has taken over what this one thought it owned.
    #[error("taken over by another owner")]
    Fenced,
    /// A pod that lives owns the shard.
    #[error("pod {} owns the shard", .0.pod)]
    NotOwner(Owner),
    /// A limit that its owner set is reached; what it is of.
    #[error("limit of {0} is reached")]
    Full(&'static str),
    /// The pod that owns a shard did not do it; its words.
    #[error("the shard's owner: {0}")]
    Remote(Arc<str>),
    /// The pod that owns a shard did not answer in time, or there is none: it may have done it.
    #[error("no answer from the shard's owner")]
    NoOwner,
    /// The core is shutting down.
    #[error("shutting down")]
    Closed,
}

/// The result of an operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;
