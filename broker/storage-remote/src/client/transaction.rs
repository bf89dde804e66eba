//! A transaction: reads at one version, a call each, and at the commit everything else at once.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use weir_proto::store::v1 as wire;
use weir_storage::pending::{PageMerge, Pending, WriteSet};
use weir_storage::{
    Committed, ConflictKind, Error, Isolation, RangePage, RangeQuery, Result, Transaction, Version, Watch,
    WatchTrigger, key_after,
};

use super::Shared;
use crate::convert;

pub(super) struct RemoteTransaction {
    shared: Arc<Shared>,
    read_version: Option<Version>,
    pending: Pending,
    watches: Vec<(Bytes, WatchTrigger)>,
}

impl RemoteTransaction {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, read_version: None, pending: Pending::default(), watches: Vec::new() }
    }

    async fn version(&mut self) -> Result<Version> {
        let _entered = self.shared.enter()?;
        if let Some(version) = self.read_version {
            return Ok(version);
        }
        let asked = self
            .shared
            .ask(|mut client| async move { client.read_version(wire::ReadVersionRequest {}).await });
        let answer = asked.await?;
        self.shared.checked(answer.failure)?;
        Ok(*self.read_version.insert(Version(answer.version)))
    }

    /// What is to be committed, but for what the session adds.
    fn request(&mut self) -> wire::CommitRequest {
        let pending = std::mem::take(&mut self.pending);
        let mut request = wire::CommitRequest {
            read_version: self.read_version.map(|version| version.0),
            ..wire::CommitRequest::default()
        };
        // What only reads conflicts with nobody.
        if !pending.is_read_only() {
            request.mutations = pending.mutations().into_iter().map(convert::mutation).collect();
            request.reads = pending.reads.into_iter().map(convert::range).collect();
            request.write_conflicts = pending.write_conflicts.into_iter().map(convert::range).collect();
        }
        request
    }
}

/// The page that answers `query`, of as many answers of the server as it takes. Without a version it is read at that of
/// the first of them.
pub(super) async fn read_page(
    shared: &Shared,
    query: &RangeQuery,
    writes: &WriteSet,
    version: &mut Option<Version>,
    held: Option<&wire::Held>,
) -> Result<RangePage> {
    let mut merge = PageMerge::new(query, writes);
    let (mut begin, mut end) = (query.begin.clone(), query.end.clone());
    while begin < end {
        let request = wire::GetRangeRequest {
            begin: begin.clone(),
            end: end.clone(),
            limit: merge.pairs_wanted() as u64,
            target_bytes: merge.bytes_wanted() as u64,
            reverse: query.reverse,
            version: version.map(|version| version.0),
            held: held.cloned(),
        };
        let request = &request;
        let answer = shared.ask(|mut client| async move { client.get_range(request.clone()).await }).await?;
        shared.checked(answer.failure)?;
        version.get_or_insert(Version(answer.version));
        let last = answer.pairs.last().map(|pair| pair.key.clone());
        let is_full = answer.pairs.into_iter().any(|pair| merge.push(pair.key, pair.value).is_break());
        let Some(last) = last.filter(|_| answer.more && !is_full) else { break };
        match query.reverse {
            true => end = last,
            false => begin = key_after(&last),
        }
    }
    Ok(merge.finish())
}

#[async_trait]
impl Transaction for RemoteTransaction {
    async fn read_version(&mut self) -> Result<Version> {
        self.version().await
    }

    fn set_read_version(&mut self, version: Version) {
        self.read_version = Some(version);
    }

    async fn get(&mut self, key: &[u8], isolation: Isolation) -> Result<Option<Bytes>> {
        if let Some(own) = self.pending.lookup(key) {
            return Ok(own.cloned());
        }
        let _entered = self.shared.enter()?;
        let request = &wire::GetRequest {
            key: Bytes::copy_from_slice(key),
            version: self.read_version.map(|version| version.0),
        };
        let answer = self.shared.ask(|mut client| async move { client.get(request.clone()).await }).await?;
        self.shared.checked(answer.failure)?;
        self.read_version.get_or_insert(Version(answer.version));
        self.pending.note_get(key, isolation);
        Ok(answer.value)
    }

    async fn get_range(&mut self, query: RangeQuery, isolation: Isolation) -> Result<RangePage> {
        if query.begin >= query.end {
            return Ok(RangePage::default());
        }
        let _entered = self.shared.enter()?;
        let page =
            read_page(&self.shared, &query, &self.pending.writes, &mut self.read_version, None).await?;
        self.pending.note_page(&query, &page, isolation);
        Ok(page)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.pending.set(key, value);
    }

    fn clear(&mut self, key: &[u8]) {
        self.pending.clear(key);
    }

    fn clear_range(&mut self, begin: &[u8], end: &[u8]) {
        self.pending.clear_range(begin, end);
    }

    fn set_versionstamped_key(&mut self, key: &[u8], offset: usize, value: &[u8]) {
        self.pending.set_versionstamped_key(key, offset, value);
    }

    fn set_versionstamped_value(&mut self, key: &[u8], value: &[u8], offset: usize) {
        self.pending.set_versionstamped_value(key, value, offset);
    }

    fn add_conflict_range(&mut self, begin: &[u8], end: &[u8], kind: ConflictKind) {
        self.pending.add_conflict_range(begin, end, kind);
    }

    fn watch(&mut self, key: &[u8]) -> Watch {
        let (trigger, watch) = Watch::new();
        self.watches.push((Bytes::copy_from_slice(key), trigger));
        watch
    }

    async fn commit(mut self: Box<Self>) -> Result<Committed> {
        let _entered = self.shared.enter()?;
        let is_read_only = self.pending.is_read_only();
        if is_read_only && self.watches.is_empty() {
            return Ok(Committed { version: self.version().await?, versionstamp: None });
        }
        if !is_read_only {
            self.pending.size.check()?;
        }
        let bytes = self.pending.writes.bytes();
        let watches = std::mem::take(&mut self.watches);
        let request = self.request();
        let outcome = self.shared.commit(request, watches).await;
        let stats = &self.shared.stats;
        match &outcome {
            Ok(Committed { versionstamp: Some(_), .. }) => {
                Shared::count(&stats.commits, 1);
                Shared::count(&stats.batches, 1);
                Shared::count(&stats.bytes, bytes);
            }
            Err(Error::Conflict) => Shared::count(&stats.conflicts, 1),
            Err(Error::TooOld) => Shared::count(&stats.too_old, 1),
            Ok(_) | Err(_) => {}
        }
        outcome
    }
}

impl fmt::Debug for RemoteTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteTransaction")
            .field("read_version", &self.read_version)
            .field("size", &self.pending.size)
            .finish_non_exhaustive()
    }
}
