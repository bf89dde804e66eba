//! The writes of a transaction, and how large they are as the store counts.
//!
//! Knows keys and values, nothing of what they mean.

use std::ops::Deref;

use bytes::Bytes;
use weir_storage::TransactionSize;

/// Size of a transaction from which on nothing is added to it, as the store counts it: rows of single messages are
/// mostly keys. It may end at three times this, as one log adds up to 900 kB of rows after its records.
const WRITTEN_BYTES_TARGET: usize = 1_000_000;

/// A write of a batch.
#[derive(Clone, Debug)]
pub(crate) enum Mutation {
    Set(Vec<u8>, Bytes),
    Clear(Vec<u8>),
    ClearRange(Vec<u8>, Vec<u8>),
}

impl Mutation {
    /// What it adds to the size of a transaction; a range counts about what a write does.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Set(key, value) => TransactionSize::of_write(key.len(), value.len()),
            Self::Clear(key) => TransactionSize::of_write(key.len(), 0),
            Self::ClearRange(begin, end) => TransactionSize::of_write(begin.len().max(end.len()), 0),
        }
    }
}

/// Writes, and what they add to the size of a transaction.
#[derive(Debug, Default)]
pub(crate) struct Mutations {
    list: Vec<Mutation>,
    pub(super) size: usize,
    /// Of `size`, for what is yet to come.
    reserved: usize,
}

impl Mutations {
    pub(super) fn push(&mut self, mutation: Mutation) {
        self.size += mutation.size();
        self.list.push(mutation);
    }

    /// Keeps `bytes` of the transaction free.
    pub(super) fn reserve(&mut self, bytes: usize) {
        self.size += bytes;
        self.reserved += bytes;
    }

    /// What was kept free is there.
    pub(super) fn release(&mut self) {
        self.size -= std::mem::take(&mut self.reserved);
    }

    /// Whether no more should be added.
    pub(super) fn is_full(&self) -> bool {
        self.size >= WRITTEN_BYTES_TARGET
    }
}

impl Extend<Mutation> for Mutations {
    fn extend<I: IntoIterator<Item = Mutation>>(&mut self, mutations: I) {
        mutations.into_iter().for_each(|mutation| self.push(mutation));
    }
}

impl FromIterator<Mutation> for Mutations {
    fn from_iter<I: IntoIterator<Item = Mutation>>(mutations: I) -> Self {
        let mut all = Self::default();
        all.extend(mutations);
        all
    }
}

impl Deref for Mutations {
    type Target = [Mutation];

    fn deref(&self) -> &[Mutation] {
        &self.list
    }
}
