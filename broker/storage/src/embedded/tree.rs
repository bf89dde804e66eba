//! The LSM tree under the embedded engine: how records lie in it, and how a batch gets into it.
//!
//! A record's key is one table byte and the store's key: `0x01` for data, `0x00` for what the engine keeps
//! about itself (the last version; a large batch that is being applied).

use std::fmt;
use std::io;
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fjall::config::CompressionPolicy;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};
use fjall::{OwnedWriteBatch, Readable, Snapshot};
use weir_env::clock::Clock;

use super::EmbeddedOptions;
use super::folder::{Folder, disk_error};
use super::{journal, redo};
use crate::local::{KeyRange, View, WriteSet, Writer};
use crate::{Error, Result, StoreStats, Version};

const DATA: u8 = 1;
/// The version of the last commit, 8 bytes big-endian.
const VERSION_KEY: &[u8] = b"\0version";
/// The changes of a batch that is applied in steps; absent otherwise.
const REDO_KEY: &[u8] = b"\0redo";
/// Values from this size on lie outside the tree, so that compaction does not copy them.
const LARGE_VALUE_BYTES: u32 = 4_096;
/// Values below this size are copied out of the block they lie in.
const SMALL_VALUE_BYTES: usize = 1_024;
/// Keys removed in one step at most. A batch that clears more is applied in steps.
const CLEARED_KEYS_MAX: usize = 50_000;
/// Threads that move the write buffer into the tree and compact it. One of them always prefers the buffer.
const WORKERS: usize = 2;
/// Data that the journal may hold before the buffer is moved on.
const JOURNAL_BYTES_MAX: u64 = 512 << 20;

/// The tree as it was after one commit.
#[derive(Clone)]
pub(super) struct TreeView {
    snapshot: Snapshot,
    keys: Keyspace,
    dir: Arc<PathBuf>,
}

impl View for TreeView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let value = self.snapshot.get(&self.keys, record_key(key));
        Ok(value.map_err(|error| tree_error(&self.dir, "read", error))?.map(own))
    }

    fn scan(
        &self,
        range: &KeyRange,
        reverse: bool,
        visit: &mut dyn FnMut(Bytes, Bytes) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut pairs = self.snapshot.range(&self.keys, record_range(range));
        while let Some(pair) = if reverse { pairs.next_back() } else { pairs.next() } {
            let (key, value) = pair.into_inner().map_err(|error| tree_error(&self.dir, "read", error))?;
            if visit(Bytes::copy_from_slice(&key[1..]), own(value)).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for TreeView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeView").field("seqno", &self.snapshot.seqno()).finish_non_exhaustive()
    }
}

/// Owns the files. Field order: the tree lets go of them before the folder's lock is given back.
pub(super) struct TreeWriter {
    db: Database,
    keys: Keyspace,
    dir: Arc<PathBuf>,
    stats: Arc<StoreStats>,
    clock: Clock,
    cleared_keys_max: usize,
    _folder: Folder,
}

impl TreeWriter {
    /// Opens or creates the tree, finishes what a crash interrupted, and returns it with the version and the
    /// view it starts from.
    pub(super) fn open(
        folder: Folder,
        options: &EmbeddedOptions,
        stats: Arc<StoreStats>,
        clock: Clock,
    ) -> Result<(Self, Version, TreeView)> {
        let dir = Arc::new(folder.path().to_owned());
        let failed = |error| tree_error(&dir, "open", error);
        journal::mend(&folder.data())?;
        let db = Database::builder(folder.data())
            .cache_size(options.cache_bytes)
            .manual_journal_persist(true)
            .journal_compression(CompressionType::None)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .worker_threads(WORKERS)
            .open()
            .map_err(failed)?;
        let create_options = || {
            let apart = KvSeparationOptions::default().separation_threshold(LARGE_VALUE_BYTES);
            KeyspaceCreateOptions::default()
                .max_memtable_size(options.write_buffer_bytes.max(1 << 20))
                .data_block_compression_policy(CompressionPolicy::disabled())
                .with_kv_separation(Some(apart.compression(CompressionType::None)))
        };
        let keys = db.keyspace("data", create_options).map_err(failed)?;
        let cleared_keys_max = CLEARED_KEYS_MAX;
        let mut writer = Self { db, keys, dir, stats, clock, cleared_keys_max, _folder: folder };
        writer.finish_redo()?;
        let version = writer.stored_version()?;
        let view = writer.view();
        Ok((writer, version, view))
    }

    fn view(&self) -> TreeView {
        TreeView { snapshot: self.db.snapshot(), keys: self.keys.clone(), dir: Arc::clone(&self.dir) }
    }

    /// The version of the last commit; one for a new store.
    fn stored_version(&self) -> Result<Version> {
        let stored = self.keys.get(VERSION_KEY).map_err(|error| tree_error(&self.dir, "read", error))?;
        let Some(stored) = stored else { return Ok(Version(1)) };
        let bytes = stored.as_ref().try_into().map_err(|_| {
            Error::Damaged(format!("{}: the last version is not 8 bytes long", self.dir.display()).into())
        })?;
        Ok(Version(u64::from_be_bytes(bytes)))
    }

    /// Applies what a crash left half applied.
    fn finish_redo(&mut self) -> Result<()> {
        let stored = self.keys.get(REDO_KEY).map_err(|error| tree_error(&self.dir, "read", error))?;
        let Some(stored) = stored else { return Ok(()) };
        let decoded = redo::decode(&stored.into()).ok_or_else(|| {
            Error::Damaged(format!("{}: a half applied commit is not readable", self.dir.display()).into())
        })?;
        let (version, changes) = decoded;
        tracing::info!(folder = %self.dir.display(), "finishing a large commit that was interrupted");
        self.apply_in_steps(version, &changes)
    }

    /// The keys that `changes` clears by range, as long as there are at most `max`; else `None`.
    fn cleared_keys(&self, view: &TreeView, changes: &WriteSet, max: usize) -> Result<Option<Vec<Bytes>>> {
        let mut cleared = Vec::new();
        for range in changes.cleared() {
            for pair in view.snapshot.range(&self.keys, record_range(&range)) {
                let key = pair.key().map_err(|error| tree_error(&self.dir, "read", error))?;
                let key = Bytes::from(key);
                if changes.has_key(&key[1..]) {
                    continue;
                }
                if cleared.len() == max {
                    return Ok(None);
                }
                cleared.push(key);
            }
        }
        Ok(Some(cleared))
    }

    fn final_step(&self, version: Version, changes: &WriteSet, cleared: Vec<Bytes>) -> OwnedWriteBatch {
        let mut batch = self.db.batch();
        for key in cleared {
            batch.remove(&self.keys, key);
        }
        for (key, value) in changes.keys() {
            match value {
                Some(value) => batch.insert(&self.keys, record_key(key), value.clone()),
                None => batch.remove(&self.keys, record_key(key)),
            }
        }
        batch.insert(&self.keys, VERSION_KEY, version.0.to_be_bytes());
        batch
    }

    /// Applies a batch too large for one step: its changes are written down first, which is the moment it is
    /// committed; then the keys are cleared step by step. Nobody sees the steps, because no view is made
    /// before the last one, and a crash between them is made good at the next start.
    fn apply_in_steps(&mut self, version: Version, changes: &WriteSet) -> Result<()> {
        let mut intent = self.db.batch();
        intent.insert(&self.keys, REDO_KEY, redo::encode(version, changes));
        self.commit_durably(intent)?;
        for range in changes.cleared() {
            let view = self.view();
            let mut step = self.db.batch();
            for pair in view.snapshot.range(&self.keys, record_range(&range)) {
                let key = pair.key().map_err(|error| tree_error(&self.dir, "read", error))?;
                let key = Bytes::from(key);
                step.remove(&self.keys, key);
                if step.len() >= self.cleared_keys_max {
                    self.commit_durably(std::mem::replace(&mut step, self.db.batch()))?;
                }
            }
            self.commit_durably(step)?;
        }
        let mut last = self.final_step(version, changes, Vec::new());
        last.remove(&self.keys, REDO_KEY);
        self.commit_durably(last)
    }

    fn commit_durably(&self, batch: OwnedWriteBatch) -> Result<()> {
        let started = self.clock.now();
        let outcome = batch.durability(Some(PersistMode::SyncData)).commit();
        self.stats.record_sync(started.elapsed());
        outcome.map_err(|error| tree_error(&self.dir, "write", error))
    }
}

impl Writer for TreeWriter {
    type View = TreeView;

    fn apply(&mut self, version: Version, changes: &WriteSet) -> Result<TreeView> {
        let before = self.view();
        match self.cleared_keys(&before, changes, self.cleared_keys_max)? {
            Some(cleared) => self.commit_durably(self.final_step(version, changes, cleared))?,
            None => self.apply_in_steps(version, changes)?,
        }
        Ok(self.view())
    }

    /// Nothing to do: a view that is dropped gives its old values back to compaction.
    fn retire(&mut self, _oldest: Version) {}
}

impl fmt::Debug for TreeWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeWriter").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// A small value as bytes of its own: as it comes it keeps the whole block in memory that it was read from.
fn own(value: fjall::Slice) -> Bytes {
    if value.len() < SMALL_VALUE_BYTES { Bytes::copy_from_slice(&value) } else { value.into() }
}

fn record_key(key: &[u8]) -> Bytes {
    let mut record = Vec::with_capacity(key.len() + 1);
    record.push(DATA);
    record.extend_from_slice(key);
    record.into()
}

fn record_range(range: &KeyRange) -> (Bound<Bytes>, Bound<Bytes>) {
    (Bound::Included(record_key(&range.begin)), Bound::Excluded(record_key(&range.end)))
}

/// An error of the tree in words that say what to do.
fn tree_error(dir: &Path, verb: &str, error: fjall::Error) -> Error {
    let io_error = |error: &io::Error| match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => None,
        _ => Some(disk_error(dir, verb, error)),
    };
    let known = match &error {
        fjall::Error::Io(inner) | fjall::Error::Storage(fjall::LsmError::Io(inner)) => io_error(inner),
        fjall::Error::Poisoned => Some(Error::Unavailable(
            format!("{verb} {}: an earlier write failed; look for disk errors, then restart", dir.display())
                .into(),
        )),
        fjall::Error::Locked => Some(Error::Unavailable(
            format!("{} is open in another process: stop it, or give another folder", dir.display()).into(),
        )),
        _ => None,
    };
    known.unwrap_or_else(|| {
        let text = format!("{verb} {}: {error}: restore the folder from a backup", dir.display());
        Error::Damaged(text.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(dir: &Path) -> (TreeWriter, Version, TreeView) {
        let folder = Folder::open(dir).unwrap();
        let (mut writer, version, view) =
            TreeWriter::open(folder, &EmbeddedOptions::default(), Arc::default(), Clock::system()).unwrap();
        writer.cleared_keys_max = 10;
        (writer, version, view)
    }

    fn changes(clear: Option<(&'static str, &'static str)>, keys: impl Iterator<Item = String>) -> WriteSet {
        let mut changes = WriteSet::default();
        if let Some((begin, end)) = clear {
            changes.clear_range(KeyRange::new(begin, end));
        }
        keys.for_each(|key| changes.set(key.into(), Bytes::from("x")));
        changes
    }

    fn keys(view: &TreeView) -> Vec<String> {
        let mut keys = Vec::new();
        view.scan(&KeyRange::new("", "~"), false, &mut |key, _| {
            keys.push(String::from_utf8_lossy(&key).into_owned());
            ControlFlow::Continue(())
        })
        .unwrap();
        keys
    }

    #[test]
    fn clearing_many_keys_is_one_commit_to_those_who_read() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, ..) = writer(dir.path());
        let before = writer.apply(Version(2), &changes(None, (0..95).map(|n| format!("m{n:02}")))).unwrap();
        let kept = ["a".to_owned(), "m33".to_owned(), "z".to_owned()];
        let after = writer.apply(Version(3), &changes(Some(("m", "n")), kept.clone().into_iter())).unwrap();
        assert_eq!(keys(&before).len(), 95);
        assert_eq!(keys(&after), kept);
        assert_eq!(writer.stored_version().unwrap(), Version(3));
        assert!(writer.keys.get(REDO_KEY).unwrap().is_none());
    }

    #[test]
    fn a_large_clear_that_was_interrupted_is_finished_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, ..) = writer(dir.path());
        writer.apply(Version(2), &changes(None, (0..95).map(|n| format!("m{n:02}")))).unwrap();
        let interrupted = changes(Some(("m", "n")), std::iter::once("m50".to_owned()));
        let mut step = writer.db.batch();
        step.insert(&writer.keys, REDO_KEY, redo::encode(Version(3), &interrupted));
        (20..40).for_each(|n| step.remove(&writer.keys, record_key(format!("m{n}").as_bytes())));
        writer.commit_durably(step).unwrap();
        drop(writer);

        let (writer, version, view) = self::writer(dir.path());
        assert_eq!(version, Version(3));
        assert_eq!(keys(&view), ["m50"]);
        assert!(writer.keys.get(REDO_KEY).unwrap().is_none());
    }
}
