//! A transaction: reads of a snapshot, and at the commit everything else at once.
//!
//! FoundationDB's own transactions serve as a read version with reads and as a commit; neither sees the other. Reads
//! leave no conflict ranges there, and writes none of what this transaction reads later.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use foundationdb::options::{ConflictRangeType, MutationType, StreamingMode};
use foundationdb::{KeySelector, RangeOption, TransactionCommitted};
use weir_env::clock::Instant;
use weir_storage::limits::{KEY_BYTES_MAX, LIFETIME};
use weir_storage::pending::{KeyRange, Mutation, PageMerge, Pending};
use weir_storage::{
    Committed, ConflictKind, Error, Isolation, RangePage, RangeQuery, Result, Transaction, Version,
    Versionstamp, Watch, WatchTrigger, key_after,
};

use crate::errors;
use crate::store::Shared;
use crate::watches;

pub(crate) struct FdbTransaction {
    /// For reads; made at the first one. Before the store, which it must not outlive.
    reader: Option<foundationdb::Transaction>,
    shared: Arc<Shared>,
    read_version: Option<i64>,
    /// When `read_version` was given out to this transaction, or chosen for it.
    since: Option<Instant>,
    pending: Pending,
    watches: Vec<(Bytes, WatchTrigger)>,
}

impl FdbTransaction {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let (reader, read_version, since) = (None, None, None);
        Self { shared, reader, read_version, since, pending: Pending::default(), watches: Vec::new() }
    }

    /// The read version, however old.
    async fn version(&mut self, deadline: Instant) -> Result<i64> {
        let _entered = self.shared.enter()?;
        if self.reader.is_none() {
            let reader = self.shared.transaction()?;
            if let Some(version) = self.read_version {
                reader.set_read_version(version);
            }
            self.reader = Some(reader);
        }
        match (self.read_version, &self.reader) {
            (Some(version), _) => Ok(version),
            (None, Some(reader)) => {
                let version = self.shared.answer(reader.get_read_version(), deadline).await?;
                self.since = Some(self.shared.clock.now());
                Ok(*self.read_version.insert(version))
            }
            (None, None) => Err(Error::TooOld),
        }
    }

    /// The read version while it can be read, and what reads at it.
    async fn reader(&mut self, deadline: Instant) -> Result<(i64, &foundationdb::Transaction)> {
        let version = self.version(deadline).await?;
        // FoundationDB forgets in steps; here it is to the moment, as on the other engines.
        if self.since.is_some_and(|since| self.shared.clock.now().saturating_duration_since(since) > LIFETIME)
        {
            return Err(Error::TooOld);
        }
        Ok((version, self.reader.as_ref().ok_or(Error::TooOld)?))
    }

    /// Everything that is to be committed, as a transaction of FoundationDB.
    async fn writer(&mut self, deadline: Instant) -> Result<foundationdb::Transaction> {
        let writer = self.shared.transaction()?;
        // Without conflicts to check the age of what was read does not matter.
        if !self.pending.reads.is_empty() {
            writer.set_read_version(self.reader(deadline).await?.0);
        }
        let Self { shared, pending, .. } = self;
        let prefix = &shared.prefix;
        let add = |ranges: &[KeyRange], kind: fn() -> ConflictRangeType| {
            ranges.iter().try_for_each(|range| {
                let (begin, end) = (prefix.join(&range.begin), prefix.join(&range.end));
                writer.add_conflict_range(&begin, &end, kind()).map_err(errors::of_read)
            })
        };
        add(&pending.reads, || ConflictRangeType::Read)?;
        add(&pending.write_conflicts, || ConflictRangeType::Write)?;
        let clear_range =
            |range: &KeyRange| writer.clear_range(&prefix.join(&range.begin), &prefix.join(&range.end));
        for mutation in pending.mutations() {
            match mutation {
                Mutation::Set(key, value) => writer.set(&prefix.join(&key), &value),
                Mutation::Clear(key) => writer.clear(&prefix.join(&key)),
                Mutation::ClearRange(range) => clear_range(&range),
                Mutation::StampedKey { key, offset, value } => {
                    let key = with_offset(prefix.join(&key), prefix.len() + offset);
                    writer.atomic_op(&key, &value, MutationType::SetVersionstampedKey);
                }
                Mutation::StampedValue { key, value, offset } => {
                    let value = with_offset(value, offset);
                    writer.atomic_op(&prefix.join(&key), &value, MutationType::SetVersionstampedValue);
                }
            }
        }
        Ok(writer)
    }

    /// Commits writes that are within the limits.
    async fn commit_writes(&mut self, deadline: Instant) -> Result<Committed> {
        let writer = self.writer(deadline).await?;
        let shared = &self.shared;
        let stamp = writer.get_versionstamp();
        let committed: TransactionCommitted = shared.outcome(writer.commit(), deadline).await?;
        // From here on it is committed, and what fails can only hide how.
        let version = committed.committed_version().map_err(|_| Error::UnknownSettled)?;
        let stamp = shared.answer(stamp, deadline).await.map_err(|_| Error::UnknownSettled)?;
        let stamp = Versionstamp(stamp[..].try_into().map_err(|_| Error::UnknownSettled)?);
        Shared::count(&shared.stats.commits, 1);
        Shared::count(&shared.stats.batches, 1);
        Shared::count(&shared.stats.bytes, self.pending.writes.bytes());
        Ok(Committed { version: external(version)?, versionstamp: Some(stamp) })
    }
}

/// The version as the contract has it.
fn external(version: i64) -> Result<Version> {
    let version =
        u64::try_from(version).map_err(|_| Error::Damaged("FoundationDB gave a negative version".into()))?;
    Ok(Version(version))
}

/// FoundationDB takes the place of the versionstamp behind the bytes.
fn with_offset(mut bytes: Vec<u8>, offset: usize) -> Vec<u8> {
    bytes.extend_from_slice(&u32::try_from(offset).unwrap_or(u32::MAX).to_le_bytes());
    bytes
}

#[async_trait]
impl Transaction for FdbTransaction {
    async fn read_version(&mut self) -> Result<Version> {
        external(self.version(self.shared.deadline()).await?)
    }

    fn set_read_version(&mut self, version: Version) {
        // One beyond what FoundationDB counts to was never given out, and this one won't be either.
        self.read_version = Some(i64::try_from(version.0).unwrap_or(i64::MAX));
        (self.reader, self.since) = (None, Some(self.shared.clock.now()));
    }

    async fn get(&mut self, key: &[u8], isolation: Isolation) -> Result<Option<Bytes>> {
        if let Some(own) = self.pending.lookup(key) {
            return Ok(own.cloned());
        }
        let in_cluster = self.shared.prefix.join(key);
        let shared = Arc::clone(&self.shared);
        let deadline = shared.deadline();
        let (_, reader) = self.reader(deadline).await?;
        let value = match key.len() <= KEY_BYTES_MAX {
            true => shared.answer(reader.get(&in_cluster, true), deadline).await?,
            // It can't be there, and FoundationDB might not take the question.
            false => None,
        };
        self.pending.note_get(key, isolation);
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    async fn get_range(&mut self, query: RangeQuery, isolation: Isolation) -> Result<RangePage> {
        if query.begin >= query.end {
            return Ok(RangePage::default());
        }
        let deadline = self.shared.deadline();
        self.reader(deadline).await?;
        let (shared, prefix) = (&self.shared, &self.shared.prefix);
        let reader = self.reader.as_ref().ok_or(Error::TooOld)?;
        let (mut begin, mut end) = (prefix.join(&query.begin), prefix.join(&query.end));
        let mut merge = PageMerge::new(&query, &self.pending.writes);
        for iteration in 1.. {
            let part = RangeOption {
                begin: KeySelector::first_greater_or_equal(&begin[..]),
                end: KeySelector::first_greater_or_equal(&end[..]),
                limit: Some(merge.pairs_wanted()),
                target_bytes: merge.bytes_wanted(),
                mode: StreamingMode::WantAll,
                reverse: query.reverse,
                ..RangeOption::default()
            };
            let values = shared.answer(reader.get_range(&part, iteration, true), deadline).await?;
            let is_full = values.iter().any(|pair| {
                merge.push(prefix.strip(pair.key()), Bytes::copy_from_slice(pair.value())).is_break()
            });
            let Some(last) = values.last().filter(|_| values.more() && !is_full) else { break };
            match query.reverse {
                true => end = last.key().to_vec(),
                false => begin = key_after(last.key()).into(),
            }
        }
        let page = merge.finish();
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
        let deadline = self.shared.deadline();
        let is_foreign = |(key, _): &(Bytes, _)| self.pending.lookup(key).is_none();
        let seen = match self.pending.is_read_only() || self.watches.iter().any(is_foreign) {
            true => Some(self.version(deadline).await?),
            false => None,
        };
        let committed = match seen.filter(|_| self.pending.is_read_only()) {
            Some(version) => Committed { version: external(version)?, versionstamp: None },
            None => {
                self.pending.size.check()?;
                let outcome = self.commit_writes(deadline).await;
                match &outcome {
                    Err(Error::Conflict) => Shared::count(&self.shared.stats.conflicts, 1),
                    Err(Error::TooOld) => Shared::count(&self.shared.stats.too_old, 1),
                    Ok(_) | Err(_) => {}
                }
                outcome?
            }
        };
        let after = i64::try_from(committed.version.0).unwrap_or(i64::MAX);
        for (key, trigger) in std::mem::take(&mut self.watches) {
            // Its own write is no change to it: the value to compare with is the one it has left.
            let is_own = self.pending.lookup(&key).is_some() || self.pending.stamps_value_of(&key);
            watches::arm(&self.shared, &key, seen.filter(|_| !is_own).unwrap_or(after), trigger);
        }
        Ok(committed)
    }
}

impl fmt::Debug for FdbTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FdbTransaction")
            .field("read_version", &self.read_version)
            .field("size", &self.pending.size)
            .finish_non_exhaustive()
    }
}
