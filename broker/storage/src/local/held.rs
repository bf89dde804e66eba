//! Versions that are kept readable: views that somebody holds, beyond the lifetime of a transaction.
//!
//! The views live here and not with their holders, so that closing the store lets go of them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::{KeyRange, Shared, View, WriteSet, closed};
use crate::pending::PageMerge;
use crate::{Error, RangePage, RangeQuery, Result, Snapshot, Version};

/// The views that are held, by a number that is given once.
#[derive(Debug)]
pub(super) struct Holds<V> {
    views: BTreeMap<u64, (Version, V)>,
    next: u64,
}

impl<V> Default for Holds<V> {
    fn default() -> Self {
        Self { views: BTreeMap::new(), next: 0 }
    }
}

impl<V: View> Holds<V> {
    pub(super) fn add(&mut self, version: Version, view: V) -> u64 {
        self.next += 1;
        self.views.insert(self.next, (version, view));
        self.next
    }

    pub(super) fn view(&self, id: u64) -> Result<V> {
        self.views.get(&id).map(|(_, view)| view.clone()).ok_or_else(closed)
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<(Version, V)> {
        self.views.remove(&id)
    }

    pub(super) fn take_all(&mut self) -> BTreeMap<u64, (Version, V)> {
        std::mem::take(&mut self.views)
    }

    /// The oldest version that is held.
    pub(super) fn oldest(&self) -> Option<Version> {
        self.views.values().map(|(version, _)| *version).min()
    }
}

/// A snapshot of a local engine.
pub(crate) struct HeldSnapshot<V: View> {
    shared: Arc<Shared<V>>,
    id: u64,
    version: Version,
}

impl<V: View> HeldSnapshot<V> {
    /// Holds the store as it is now.
    pub(crate) fn new(shared: Arc<Shared<V>>) -> Result<Self> {
        let (id, version) = shared.hold()?;
        Ok(Self { shared, id, version })
    }
}

impl<V: View> Drop for HeldSnapshot<V> {
    fn drop(&mut self) {
        self.shared.release(self.id);
    }
}

#[async_trait]
impl<V: View> Snapshot for HeldSnapshot<V> {
    fn version(&self) -> Version {
        self.version
    }

    async fn get_range(&mut self, query: RangeQuery) -> Result<RangePage> {
        let view = self.shared.held_view(self.id)?;
        // Whoever reads a whole store reads what is in no cache: nobody else is to wait for the disk.
        let read = tokio::task::spawn_blocking(move || page(&view, &query));
        read.await.unwrap_or_else(|_| Err(Error::Unavailable("reading a snapshot was cut off".into())))
    }
}

impl<V: View> fmt::Debug for HeldSnapshot<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldSnapshot").field("version", &self.version).finish_non_exhaustive()
    }
}

fn page<V: View>(view: &V, query: &RangeQuery) -> Result<RangePage> {
    let range = KeyRange::new(query.begin.clone(), query.end.clone());
    if range.is_empty() {
        return Ok(RangePage::default());
    }
    let unwritten = WriteSet::default();
    let mut page = PageMerge::new(query, &unwritten);
    view.scan(&range, query.reverse, &mut |key, value| page.push(key, value))?;
    Ok(page.finish())
}
