//! The LSM tree under the embedded engine: how records lie in it, and how a batch gets into it.
//!
//! A record's key is one table byte and the store's key: `0x01` for data, `0x00` for what the engine keeps
//! about itself (the last version).
//!
//! A batch is in the journal before it is in the tree's write buffer. When the buffer is full it is handed to
//! [`Upkeep`]; the version that is stored with each batch tells after a crash which batches the tables lack. A batch
//! is whole in one buffer, except one that clears very many keys, which may be spread over several: its version comes
//! last, so it is repeated from the journal if a crash comes first.

use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use lsm_tree::{
    AbstractTree, AnyTree, Cache, CompressionType, Config, Guard, KvSeparationOptions, SeqNo,
    SequenceNumberCounter,
};
use weir_env::clock::{Clock, Instant};

use super::EmbeddedOptions;
use super::batch::Batch;
use super::folder::{Folder, disk_error, is_full, sync_folder};
use super::inspect::{self, Fault, Files, damaged, find_damaged, guarded};
use super::journal::Journal;
use super::pins::{Pin, Pins};
use super::space::Space;
use super::upkeep::Upkeep;
use crate::local::{ApplyError, KeyRange, Room, View, WriteSet, Writer};
use crate::{Error, Result, StoreStats, Version, key_after};

const DATA: u8 = 1;
/// The version of the last commit, 8 bytes big-endian.
const VERSION_KEY: &[u8] = b"\0version";
/// Values from this size on lie outside the tree, so that compaction does not copy them.
const LARGE_VALUE_BYTES: u32 = 4_096;
/// Values below this size are copied out of the block they lie in.
const SMALL_VALUE_BYTES: usize = 1_024;
/// Keys removed at once when a range is cleared; then the buffer may be handed over.
const CLEARED_KEYS_MAX: usize = 50_000;
/// Full segments of the journal from which the buffer is handed over, however little is in it.
const SEGMENTS_HANDED_OVER: usize = 8;
/// Full segments from which commits wait for the tables. With the active one this is what a start has to read.
const SEGMENTS_MAX: usize = 15;
/// Buffers that wait to become tables at most.
const BUFFERS_MAX: usize = 4;
/// The same in the middle of a batch while the disk is full.
const BUFFERS_FULL_MAX: usize = 16;
/// Commits on a disk with little room after which what they cleared is freed, and how long it waits at most.
const FREEING_COMMITS: usize = 1_000;
const FREEING_WAIT: Duration = Duration::from_secs(2);
/// Runs of tables that may overlap at most, since each makes reads slower.
const RUNS_MAX: usize = 30;

/// The tree as it was after one commit.
#[derive(Clone)]
pub(super) struct TreeView {
    tree: AnyTree,
    pin: Arc<Pin>,
    place: Arc<TreePlace>,
}

/// Where a tree lies, and what is wrong there.
#[derive(Debug)]
struct TreePlace {
    dir: PathBuf,
    is_searched: AtomicBool,
    damaged: OnceLock<PathBuf>,
}

impl TreePlace {
    /// The damaged file, if one is known. Only the first who asks searches for it, since that reads the disk for long.
    fn find_damaged(&self, tree: &AnyTree, key: Option<&[u8]>) -> Option<&Path> {
        if !self.is_searched.swap(true, Ordering::Relaxed)
            && let Some(found) = find_damaged(tree, key)
        {
            tracing::error!(file = %found.display(), "a file of the store is damaged");
            return Some(self.damaged.get_or_init(|| found));
        }
        self.damaged.get().map(PathBuf::as_path)
    }
}

impl TreeView {
    fn failed(&self, fault: Fault, key: Option<&[u8]>) -> Error {
        let found = fault.is_damage().then(|| self.place.find_damaged(&self.tree, key)).flatten();
        fault.into_error(found.unwrap_or(&self.place.dir), "read")
    }

    /// Calls `visit` with the keys of a range in order until it breaks.
    fn scan_keys(&self, range: &KeyRange, visit: &mut dyn FnMut(Bytes) -> ControlFlow<()>) -> Result<()> {
        let walk = || {
            for pair in self.tree.range(record_range(range), self.pin.seqno(), None) {
                if visit(pair.key()?.into()).is_break() {
                    break;
                }
            }
            Ok(())
        };
        guarded(walk).map_err(|fault| self.failed(fault, None))
    }
}

impl View for TreeView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let record = record_key(key);
        let value = guarded(|| self.tree.get(&record, self.pin.seqno()));
        Ok(value.map_err(|fault| self.failed(fault, Some(&record)))?.map(own))
    }

    fn scan(
        &self,
        range: &KeyRange,
        reverse: bool,
        visit: &mut dyn FnMut(Bytes, Bytes) -> ControlFlow<()>,
    ) -> Result<()> {
        let walk = || {
            let mut pairs = self.tree.range(record_range(range), self.pin.seqno(), None);
            while let Some(pair) = if reverse { pairs.next_back() } else { pairs.next() } {
                let (key, value) = pair.into_inner()?;
                if visit(Bytes::copy_from_slice(&key[1..]), own(value)).is_break() {
                    break;
                }
            }
            Ok(())
        };
        guarded(walk).map_err(|fault| self.failed(fault, None))
    }
}

impl fmt::Debug for TreeView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeView").field("seqno", &self.pin.seqno()).finish_non_exhaustive()
    }
}

/// The tree and its write buffer.
struct Buffer {
    tree: AnyTree,
    pins: Pins,
    seqno: SequenceNumberCounter,
    place: Arc<TreePlace>,
    bytes_max: u64,
    cleared_keys_max: usize,
}

impl Buffer {
    fn open(dir: &Path, files: Files, options: &EmbeddedOptions) -> Result<Self> {
        let (seqno, visible) = (SequenceNumberCounter::default(), SequenceNumberCounter::default());
        let apart = KvSeparationOptions::default()
            .separation_threshold(LARGE_VALUE_BYTES)
            .compression(CompressionType::None);
        let config = Config::new(dir, seqno.clone(), visible)
            .use_cache(Arc::new(Cache::with_capacity_bytes(options.cache_bytes)))
            .with_kv_separation(Some(apart));
        let tree = inspect::open(dir, config, files)?;
        seqno.fetch_max(tree.get_highest_seqno().map_or(1, |seqno| seqno + 1));
        let place =
            TreePlace { dir: dir.to_owned(), is_searched: AtomicBool::new(false), damaged: OnceLock::new() };
        Ok(Self {
            tree,
            pins: Pins::default(),
            seqno,
            place: Arc::new(place),
            bytes_max: options.write_buffer_bytes.max(1 << 20),
            cleared_keys_max: CLEARED_KEYS_MAX,
        })
    }

    /// Everything that was put so far.
    fn view(&self) -> TreeView {
        let pin = Arc::new(self.pins.pin(self.seqno.get()));
        TreeView { tree: self.tree.clone(), pin, place: Arc::clone(&self.place) }
    }

    /// The version of the last batch; one for a new store.
    fn stored_version(&self) -> Result<Version> {
        let view = self.view();
        let stored = guarded(|| self.tree.get(VERSION_KEY, view.pin.seqno()));
        let Some(stored) = stored.map_err(|fault| view.failed(fault, Some(VERSION_KEY)))? else {
            return Ok(Version(1));
        };
        let bytes = stored.as_ref().try_into();
        let bytes = bytes.map_err(|_| damaged(&self.place.dir, "the last version is not 8 bytes long"))?;
        Ok(Version(u64::from_be_bytes(bytes)))
    }

    fn is_full(&self) -> bool {
        self.tree.active_memtable().size() >= self.bytes_max
    }

    /// Makes room: what was put so far waits to become a table.
    fn rotate(&self) {
        self.tree.rotate_memtable();
        self.forget_lists();
    }

    /// Lets go of the lists of tables that nobody reads, and with them of the tables that are in no other.
    fn forget_lists(&self) {
        let watermark = self.pins.watermark();
        if let Err(error) = self.tree.get_version_history_lock().maintenance(&self.place.dir, watermark) {
            tracing::warn!(%error, "old lists of tables are left");
        }
    }

    /// Hands over what was put so far, in the middle of a batch or a start, and waits until few buffers are left of
    /// which the tables lack something: up to `full_max` while the disk is full. What the tables hold then is whole up
    /// to `version`.
    fn make_room(&self, upkeep: &Upkeep, version: Version, full_max: usize) -> Result<()> {
        self.rotate();
        upkeep.handed_over(version);
        upkeep.wait_through_full(|is_full| {
            self.tree.sealed_memtable_count() < if is_full { full_max } else { BUFFERS_MAX }
        })
    }

    /// Puts the changes of a batch. Nobody sees them before there is a new view. When the buffer is full in the middle
    /// of clearing a range, `when_full` is called.
    fn put(
        &self,
        version: Version,
        changes: &WriteSet,
        when_full: &mut dyn FnMut(&Self) -> Result<()>,
    ) -> Result<()> {
        let before = self.view();
        for mut range in changes.cleared() {
            while let Some(last) = self.clear_some(&before, &range, changes)? {
                range.begin = key_after(&last);
                if self.is_full() {
                    when_full(self)?;
                }
            }
        }
        let seqno = self.seqno.next();
        for (key, value) in changes.keys() {
            match value {
                Some(value) => self.tree.insert(record_key(key), value.clone(), seqno),
                None => self.tree.remove(record_key(key), seqno),
            };
        }
        self.tree.insert(VERSION_KEY, version.0.to_be_bytes().as_slice(), seqno);
        Ok(())
    }

    /// Removes the first keys of `range`, and returns the last of them if there may be more.
    fn clear_some(&self, before: &TreeView, range: &KeyRange, changes: &WriteSet) -> Result<Option<Bytes>> {
        let mut keys = Vec::new();
        before.scan_keys(range, &mut |key| {
            keys.push(key);
            if keys.len() < self.cleared_keys_max {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        let seqno = self.seqno.next();
        let last = keys.last().filter(|_| keys.len() == self.cleared_keys_max).map(|key| key.slice(1..));
        for key in keys {
            if !changes.has_key(&key[1..]) {
                self.tree.remove(key, seqno);
            }
        }
        Ok(last)
    }
}

/// Owns the files. Field order: the threads and the files are let go of before the folder's lock is given back.
pub(super) struct TreeWriter {
    buffer: Buffer,
    upkeep: Upkeep,
    journal: Journal,
    space: Space,
    stats: Arc<StoreStats>,
    clock: Clock,
    /// What the buffer had when it was handed over last.
    handed_over: Version,
    /// While there is little room: since when something is cleared that was not handed over, and by how many commits.
    freeing: Option<(Instant, usize)>,
    is_short: bool,
    /// What the view that was returned last shows.
    viewed: SeqNo,
    is_broken: bool,
    folder: Folder,
}

impl TreeWriter {
    /// Opens or creates the tree, brings it up to the journal, and returns it with the version and the view it
    /// starts from.
    pub(super) fn open(
        folder: Folder,
        options: &EmbeddedOptions,
        stats: Arc<StoreStats>,
        clock: Clock,
    ) -> Result<(Self, Version, TreeView)> {
        let (tree_dir, journal_dir) = (folder.tree(), folder.journal());
        let files = inspect::check(&tree_dir)?;
        if files.is_none() && folder.has_journal() {
            return Err(damaged(&tree_dir.join("current"), "it is missing"));
        }
        let buffer = Buffer::open(&tree_dir, files.unwrap_or_default(), options)?;
        let persisted = buffer.stored_version()?;
        let stopped_at = folder.stopped_at()?;
        make_durable(&tree_dir)?;
        let (tree, pins) = (buffer.tree.clone(), buffer.pins.clone());
        let upkeep = Upkeep::start(tree, tree_dir.clone(), pins, persisted)
            .map_err(|error| disk_error(&tree_dir, "start the threads that write tables in", &error))?;
        let mut handed_over = persisted;
        let replay = |Batch { version, changes, .. }| {
            // On a full disk memory has to do: what is in the journal was acknowledged.
            buffer
                .put(version, &changes, &mut |buffer| buffer.make_room(&upkeep, handed_over, usize::MAX))?;
            if buffer.is_full() {
                handed_over = version;
                buffer.make_room(&upkeep, handed_over, usize::MAX)?;
            }
            Ok(())
        };
        let journal = Journal::open(&journal_dir, folder.id(), persisted, stopped_at, replay)?;
        folder.started()?;
        let space = Space::new(folder.path(), options.reserve_bytes, Arc::clone(&stats));
        let (view, last) = (buffer.view(), journal.last());
        let mut writer = Self {
            buffer,
            upkeep,
            journal,
            space,
            stats,
            clock,
            handed_over,
            freeing: None,
            is_short: false,
            viewed: view.pin.seqno(),
            is_broken: false,
            folder,
        };
        writer.hand_over_if_full(last);
        Ok((writer, last, view))
    }

    /// Hands the buffer over if it is full, or if the journal is long.
    fn hand_over_if_full(&mut self, version: Version) {
        let is_long = self.journal.sealed_after(self.handed_over) >= SEGMENTS_HANDED_OVER;
        if self.buffer.is_full() || is_long {
            self.hand_over(version);
        }
    }

    fn hand_over(&mut self, version: Version) {
        self.buffer.rotate();
        self.upkeep.handed_over(version);
        self.handed_over = version;
    }

    /// What is cleared frees nothing as long as it is in the buffer, and below what it clears.
    fn free_room(&mut self) {
        self.buffer.forget_lists();
        if let Some((since, commits)) = self.freeing
            && (commits >= FREEING_COMMITS || since.elapsed() >= FREEING_WAIT)
        {
            self.freeing = None;
            self.hand_over(self.journal.last());
            self.upkeep.free_room(self.buffer.seqno.get().saturating_sub(1));
        }
    }

    fn newest_view(&mut self) -> TreeView {
        let view = self.buffer.view();
        self.viewed = view.pin.seqno();
        view
    }

    /// Waits until the tables have caught up far enough, and makes sure that the journal has room for a batch.
    fn prepare(&mut self, changes: &WriteSet) -> Result<(), ApplyError> {
        let dir = self.folder.journal();
        let failed = |error: io::Error| {
            let is_as_before = is_full(&error) || error.kind() == ErrorKind::FileTooLarge;
            let error = disk_error(&dir, "write", &error);
            if is_as_before { ApplyError::Refused(error) } else { ApplyError::Failed(error) }
        };
        loop {
            self.journal.retire(self.upkeep.persisted()).map_err(failed)?;
            let awaited =
                self.journal.oldest().filter(|_| self.journal.sealed_after(Version(0)) >= SEGMENTS_MAX);
            let tree = &self.buffer.tree;
            let waited = self.upkeep.wait_for_room(|persisted| {
                awaited.is_none_or(|awaited| persisted >= awaited)
                    && tree.sealed_memtable_count() < BUFFERS_MAX
                    && tree.l0_run_count() < RUNS_MAX
            });
            waited.map_err(|error| match self.upkeep.failure() {
                Some(failure) => ApplyError::Failed(failure),
                None => ApplyError::Refused(error),
            })?;
            if awaited.is_none() {
                return self.journal.reserve(changes).map_err(failed);
            }
        }
    }

    fn append(&mut self, version: Version, changes: &WriteSet) -> Result<()> {
        let started = self.clock.now();
        let appended = self.journal.append(version, changes);
        self.stats.record_sync(started.elapsed());
        appended.map_err(|error| disk_error(&self.folder.journal(), "write", &error))?;
        let (upkeep, before) = (&self.upkeep, self.handed_over);
        // Part of a batch: what the tables hold whole does not grow by it.
        self.buffer.put(version, changes, &mut |buffer| buffer.make_room(upkeep, before, BUFFERS_FULL_MAX))
    }
}

impl Writer for TreeWriter {
    type View = TreeView;

    fn room(&mut self) -> Room {
        let room = self.space.room();
        let was_short = std::mem::replace(&mut self.is_short, !matches!(room, Room::Plenty));
        if self.is_short {
            if !was_short {
                // What was cleared before is worth it too.
                self.freeing = Some((self.clock.now(), 0));
            }
            self.free_room();
        }
        room
    }

    fn moved(&mut self) -> Option<TreeView> {
        if !self.is_short || self.buffer.seqno.get() <= self.viewed {
            return None;
        }
        // One above the newest list of tables: the others are let go of below the oldest view less one.
        let _ = self.buffer.seqno.next();
        Some(self.newest_view())
    }

    fn apply(&mut self, version: Version, changes: &WriteSet) -> Result<TreeView, ApplyError> {
        if let Err(error) = self.prepare(changes) {
            self.is_broken |= matches!(error, ApplyError::Failed(_));
            return Err(error);
        }
        if let Err(error) = self.append(version, changes) {
            self.is_broken = true;
            return Err(ApplyError::Failed(error));
        }
        self.hand_over_if_full(version);
        if self.is_short {
            self.freeing.get_or_insert_with(|| (self.clock.now(), 0)).1 += 1;
        }
        Ok(self.newest_view())
    }

    /// Nothing to do: a view that is dropped gives its old values back to compaction.
    fn retire(&mut self, _oldest: Version) {}
}

impl Drop for TreeWriter {
    fn drop(&mut self) {
        if !self.is_broken && !std::thread::panicking() {
            self.folder.stopped(self.journal.last());
        }
    }
}

impl fmt::Debug for TreeWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeWriter").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// Makes durable which files the tree consists of, as it was found: the process that wrote it may have ended before it
/// did so.
fn make_durable(tree_dir: &Path) -> Result<()> {
    for folder in [tree_dir.join("tables"), tree_dir.join("blobs"), tree_dir.to_owned()] {
        sync_folder(&folder).map_err(|error| disk_error(&folder, "open", &error))?;
    }
    Ok(())
}

/// A small value as bytes of its own: as it comes it keeps the whole block in memory that it was read from.
fn own(value: lsm_tree::Slice) -> Bytes {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(dir: &Path) -> (TreeWriter, Version, TreeView) {
        let folder = Folder::open(dir).unwrap();
        let (mut writer, version, view) =
            TreeWriter::open(folder, &EmbeddedOptions::default(), Arc::default(), Clock::system()).unwrap();
        writer.buffer.cleared_keys_max = 10;
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
        // Each step finds the buffer full.
        writer.buffer.bytes_max = 0;
        let before = writer.apply(Version(2), &changes(None, (0..95).map(|n| format!("m{n:02}")))).unwrap();
        let kept = ["a".to_owned(), "m33".to_owned(), "z".to_owned()];
        let after = writer.apply(Version(3), &changes(Some(("m", "n")), kept.clone().into_iter())).unwrap();
        assert_eq!(keys(&before).len(), 95);
        assert_eq!(keys(&after), kept);
        assert_eq!(writer.buffer.stored_version().unwrap(), Version(3));
        drop((writer, before, after));
        assert_eq!(keys(&self::writer(dir.path()).2), kept);
    }

    /// The commit is in the journal, so there is no way back.
    #[test]
    fn a_large_clear_goes_on_while_the_disk_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, ..) = writer(dir.path());
        writer.apply(Version(2), &changes(None, (0..95).map(|n| format!("m{n:02}")))).unwrap();
        let tree = writer.buffer.tree.clone();
        let no_tables = tree.get_flush_lock();
        writer.upkeep.assume_full();
        writer.buffer.bytes_max = 0;
        let view = writer.apply(Version(3), &changes(Some(("m", "n")), std::iter::empty())).unwrap();
        assert!(keys(&view).is_empty());
        assert!(writer.buffer.tree.sealed_memtable_count() > BUFFERS_MAX);
        let more = changes(None, std::iter::once("a".to_owned()));
        assert!(matches!(writer.apply(Version(4), &more), Err(ApplyError::Refused(_))));
        drop(no_tables);
        writer.upkeep.wait_through_full(|is_full| !is_full).unwrap();
        writer.apply(Version(4), &more).unwrap();
    }

    #[test]
    fn a_panic_of_the_tree_ends_the_commits_instead_of_holding_them_up() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, ..) = writer(dir.path());
        let tree = writer.buffer.tree.clone();
        let panicked = std::thread::spawn(move || {
            let _poisoned = tree.get_flush_lock();
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        writer.buffer.bytes_max = 0;
        let failed = (2..20).find_map(|version| {
            writer.apply(Version(version), &changes(None, std::iter::once(format!("{version}")))).err()
        });
        assert!(matches!(failed, Some(ApplyError::Failed(Error::Damaged(_)))), "{failed:?}");
    }

    #[test]
    fn a_thread_that_panics_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (writer, ..) = writer(dir.path());
        let (tree, pins) = (writer.buffer.tree.clone(), writer.buffer.pins.clone());
        let poisoned = tree.clone();
        let panicked = std::thread::spawn(move || {
            let _poisoned = poisoned.get_version_history_lock();
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        let upkeep = Upkeep::start(tree, dir.path().join("tree"), pins, Version(1)).unwrap();
        assert!(upkeep.wait_through_full(|_| false).unwrap_err().to_string().contains("panicked: restart"));
    }

    #[test]
    fn an_error_that_is_not_a_full_disk_ends_the_commits() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, ..) = writer(dir.path());
        let large = |version| {
            let mut changes = WriteSet::default();
            (0..50).for_each(|n| changes.set(format!("{version} {n}").into(), vec![1; 90_000].into()));
            changes
        };
        std::fs::remove_dir_all(dir.path().join("journal")).unwrap();
        let failed = (2..20).find_map(|version| writer.apply(Version(version), &large(version)).err());
        assert!(matches!(failed, Some(ApplyError::Failed(Error::Unavailable(_)))), "{failed:?}");
    }

    #[test]
    fn a_start_moves_what_it_reads_to_tables() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, ..) = writer(dir.path());
        writer.buffer.bytes_max = u64::MAX;
        for version in 2..6 {
            let mut changes = WriteSet::default();
            (0..600).for_each(|n| changes.set(format!("{version} {n:03}").into(), vec![1; 2_000].into()));
            writer.apply(Version(version), &changes).unwrap();
        }
        assert_eq!(writer.buffer.tree.table_count(), 0);
        drop(writer);
        let options = EmbeddedOptions { write_buffer_bytes: 1 << 20, ..EmbeddedOptions::default() };
        let folder = Folder::open(dir.path()).unwrap();
        let (writer, version, view) =
            TreeWriter::open(folder, &options, Arc::default(), Clock::system()).unwrap();
        assert_eq!(version, Version(5));
        assert_eq!(keys(&view).len(), 2_400);
        writer.upkeep.wait_through_full(|_| writer.buffer.tree.table_count() > 0).unwrap();
        assert!(writer.buffer.tree.active_memtable().size() < 2 << 20);
    }

    #[test]
    fn a_large_clear_that_was_interrupted_is_finished_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, ..) = writer(dir.path());
        writer.apply(Version(2), &changes(None, (0..95).map(|n| format!("m{n:02}")))).unwrap();
        let interrupted = changes(Some(("m", "n")), std::iter::once("m50".to_owned()));
        writer.prepare(&interrupted).unwrap();
        writer.journal.append(Version(3), &interrupted).unwrap();
        // The first keys are gone, in a table, and the version is still the one before.
        let seqno = writer.buffer.seqno.next();
        for n in 0..40 {
            writer.buffer.tree.remove(record_key(format!("m{n:02}").as_bytes()), seqno);
        }
        writer.buffer.rotate();
        writer.upkeep.handed_over(Version(1));
        writer.upkeep.wait_for_room(|_| writer.buffer.tree.table_count() > 0).unwrap();
        writer.is_broken = true;
        drop(writer);

        let (writer, version, view) = self::writer(dir.path());
        assert_eq!(version, Version(3));
        assert_eq!(keys(&view), ["m50"]);
        drop(writer);
    }
}
