//! What clients of each pod want live, in the store: written by the pod itself, read by all. Knows nothing of topics.

use weir_storage::{ConflictKind, Isolation, RangeQuery, Version, transact};

use super::{Cluster, membership};
use crate::error::{Error, Result};
use crate::keyspace::change::Change;
use crate::keyspace::interest::{InterestKey, PodInterest, Want};

/// Rows in one page.
const PAGE: usize = 1000;

/// Where a reading of the interest of all pods goes on.
#[derive(Debug)]
pub struct InterestCursor(RangeQuery);

/// A part of the interest of all pods.
#[derive(Debug)]
pub struct InterestPage {
    /// In the order of the pods.
    pub rows: Vec<PodInterest>,
    /// Where it goes on; none at the end.
    pub next: Option<InterestCursor>,
}

impl Cluster {
    /// Writes what clients of this pod want, all or nothing, and tells the other pods. Returns the version in which it is
    /// true. After an unknown outcome it may be written again.
    ///
    /// # Errors
    /// [`Error::Fenced`] if this pod is no member any more; if the store fails.
    pub async fn write_interest(&self, rows: &[(InterestKey, Want)]) -> Result<Version> {
        let (me, feed) = (self.inner.me, &self.inner.feed);
        let body = transact(&*self.inner.store, |tx| {
            Box::pin(async move {
                // Whoever declares this pod dead removes its rows: none may come after that.
                if !membership::is_member(tx, me).await? {
                    return Ok(false);
                }
                for (key, want) in rows {
                    let row = PodInterest::key(me, key);
                    // Of two writes whose outcomes are open, the older one does not come last.
                    tx.add_conflict_key(&row, ConflictKind::Read);
                    if want.is_none() {
                        tx.clear(&row);
                    } else {
                        tx.set(&row, &PodInterest::value(*want));
                    }
                    let interest = PodInterest { pod: me, key: key.clone(), want: *want };
                    feed.write(tx, &Change::Interest(interest));
                }
                Ok(true)
            })
        });
        let (is_member, committed) = body.await?;
        if !is_member {
            return Err(Error::Fenced);
        }
        feed.wake();
        Ok(committed.version)
    }

    /// Reads what clients of all pods want, a page of it.
    ///
    /// # Errors
    /// If the store fails, or a row is damaged.
    pub async fn read_interest(&self, cursor: Option<InterestCursor>) -> Result<InterestPage> {
        let query = match cursor {
            Some(InterestCursor(query)) => query,
            None => {
                let (begin, end) = PodInterest::range();
                RangeQuery::new(begin, end).limit(PAGE)
            }
        };
        let mut tx = self.inner.store.begin();
        let page = tx.get_range(query.clone(), Isolation::Snapshot).await?;
        let next = query.after(&page).map(InterestCursor);
        let rows = page.pairs.into_iter().map(|(key, value)| PodInterest::decode(key, value));
        Ok(InterestPage { rows: rows.collect::<std::result::Result<_, _>>()?, next })
    }
}
