//! A page of a range: the pairs of the store with the transaction's own writes among them. Knows no engine.

use std::iter::Peekable;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::{KeyRange, WriteSet};
use crate::{RangePage, RangeQuery};

type Own<'a> = Box<dyn Iterator<Item = (&'a Bytes, Option<&'a Bytes>)> + Send + 'a>;

/// Builds the page that answers a query from the store's pairs, given one by one in the order of the query.
pub struct PageMerge<'a> {
    query: &'a RangeQuery,
    writes: &'a WriteSet,
    own: Peekable<Own<'a>>,
    page: RangePage,
    bytes: usize,
}

impl<'a> PageMerge<'a> {
    /// An empty page of `query`, whose range must not be empty, for a transaction that has made `writes`.
    #[must_use]
    pub fn new(query: &'a RangeQuery, writes: &'a WriteSet) -> Self {
        let own = writes.keys_in(&KeyRange::new(query.begin.clone(), query.end.clone()));
        let own: Own<'a> = if query.reverse { Box::new(own.rev()) } else { Box::new(own) };
        Self { query, writes, own: own.peekable(), page: RangePage::default(), bytes: 0 }
    }

    /// Takes the next pair of the store and breaks once the page is full and knows that there is more.
    pub fn push(&mut self, key: Bytes, value: Bytes) -> ControlFlow<()> {
        let reverse = self.query.reverse;
        let is_before = |own: &Bytes| if reverse { *own > key } else { *own < key };
        while let Some((own_key, own_value)) = self.own.next_if(|(own_key, _)| is_before(own_key)) {
            self.take_own(own_key, own_value)?;
        }
        if let Some((own_key, own_value)) = self.own.next_if(|(own_key, _)| **own_key == key) {
            self.take_own(own_key, own_value)
        } else if self.writes.is_cleared(&key) {
            ControlFlow::Continue(())
        } else {
            self.take(key, value)
        }
    }

    /// Pairs the page still needs, one to know of more included; zero if the query has no limit.
    #[must_use]
    pub fn pairs_wanted(&self) -> usize {
        match self.query.limit {
            0 => 0,
            limit => limit.saturating_sub(self.page.pairs.len()).saturating_add(1),
        }
    }

    /// Bytes the page still needs, at least one; zero if the query has no target.
    #[must_use]
    pub fn bytes_wanted(&self) -> usize {
        match self.query.target_bytes {
            0 => 0,
            target => target.saturating_sub(self.bytes).max(1),
        }
    }

    /// The page, after the last pair of the store or after [`PageMerge::push`] broke.
    #[must_use]
    pub fn finish(mut self) -> RangePage {
        while !self.page.more
            && let Some((key, value)) = self.own.next()
        {
            // A page that is full stops at the first pair it can't take, whose key is not needed.
            let _ = self.take_own(key, value);
        }
        self.page
    }

    fn take_own(&mut self, key: &Bytes, value: Option<&Bytes>) -> ControlFlow<()> {
        match value {
            Some(value) => self.take(key.clone(), value.clone()),
            None => ControlFlow::Continue(()),
        }
    }

    /// Takes the pair, or notes that there is more and breaks.
    fn take(&mut self, key: Bytes, value: Bytes) -> ControlFlow<()> {
        let is_full = |limit: usize, taken: usize| limit != 0 && taken >= limit;
        let RangeQuery { limit, target_bytes, .. } = *self.query;
        if is_full(limit, self.page.pairs.len()) || is_full(target_bytes, self.bytes) {
            self.page.more = true;
            return ControlFlow::Break(());
        }
        self.bytes += key.len() + value.len();
        self.page.pairs.push((key, value));
        ControlFlow::Continue(())
    }
}
