//! The threads that move full write buffers into tables and compact those. Knows no journal and no commits: it is told
//! when a buffer is full, and tells up to which version the tables hold everything.
//!
//! A full disk is waited out: what was being written is removed and tried again each second, nothing is lost because
//! the buffer and the journal keep it. Any other error ends the upkeep, and with it the commits.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lsm_tree::compaction::Leveled;
use lsm_tree::{AbstractTree, AnyTree, SeqNo};
use parking_lot::{Condvar, Mutex};

use super::inspect::{Fault, find_damaged, guarded};
use super::pins::Pins;
use super::space::free_bytes;
use crate::{Error, Result, Version};

/// How long a full disk is left alone before the next attempt.
const RETRY: Duration = Duration::from_secs(1);
/// How long tables become when all are written anew.
const TABLE_BYTES: u64 = 64 << 20;
/// Folders that attempts write to.
const WRITTEN: [&str; 2] = ["tables", "blobs"];

/// The front of the threads. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Upkeep {
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<()>>,
}

struct Shared {
    tree: AnyTree,
    dir: PathBuf,
    pins: Pins,
    state: Mutex<State>,
    changed: Condvar,
    /// Held while tables are compacted.
    compacting: Mutex<()>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("dir", &self.dir).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    /// Buffers handed over, and those of them that are in tables.
    buffers: u64,
    written: u64,
    /// The version up to which the buffers that were handed over hold everything.
    handed_over: Version,
    /// The version up to which the tables hold everything.
    persisted: Version,
    compaction_wanted: bool,
    /// What was cleared is to be freed, once nobody reads what was replaced before this.
    freeing_wanted: Option<SeqNo>,
    /// Why the last attempt to write tables failed; it will be tried again.
    full: Option<Error>,
    /// The same of the last attempt to compact them.
    compaction_full: Option<Error>,
    /// Why there will be no further attempt.
    failed: Option<Error>,
    is_closing: bool,
}

impl Upkeep {
    /// Starts the threads over `tree` in `dir`, whose tables hold everything up to `persisted`.
    pub(super) fn start(
        tree: AnyTree,
        dir: PathBuf,
        pins: Pins,
        persisted: Version,
    ) -> std::io::Result<Self> {
        let state = State {
            buffers: 0,
            written: 0,
            handed_over: persisted,
            persisted,
            compaction_wanted: true,
            freeing_wanted: None,
            full: None,
            compaction_full: None,
            failed: None,
            is_closing: false,
        };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let shared = Arc::new(Shared { tree, dir, pins, state, changed, compacting: Mutex::new(()) });
        let mut upkeep = Self { shared, threads: Vec::new() };
        for (name, run) in [("weir-flush", Shared::flush as fn(&Shared)), ("weir-compact", Shared::compact)] {
            let shared = Arc::clone(&upkeep.shared);
            let body = move || {
                let _told = ToldOfPanics(&shared);
                run(&shared);
            };
            upkeep.threads.push(thread::Builder::new().name(name.into()).spawn(body)?);
        }
        Ok(upkeep)
    }

    /// Hands over a buffer. With those before it, it holds everything up to `version`.
    pub(super) fn handed_over(&self, version: Version) {
        let mut state = self.shared.state.lock();
        state.buffers += 1;
        state.handed_over = version;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Asks to give the disk back what is not needed, once nobody reads what was replaced before `seqno`. All of it was
    /// handed over.
    pub(super) fn free_room(&self, seqno: SeqNo) {
        self.shared.state.lock().freeing_wanted = Some(seqno);
        self.shared.changed.notify_all();
    }

    /// The version up to which the tables hold everything.
    pub(super) fn persisted(&self) -> Version {
        self.shared.state.lock().persisted
    }

    /// Waits until `has_room`, which is told up to which version the tables hold everything, says so.
    ///
    /// # Errors
    /// Why nothing can be written now.
    pub(super) fn wait_for_room(&self, mut has_room: impl FnMut(Version) -> bool) -> Result<()> {
        let mut state = self.shared.state.lock();
        loop {
            if let Some(failed) = &state.failed {
                return Err(failed.clone());
            }
            if has_room(state.persisted) {
                return Ok(());
            }
            if let Some(full) = state.full.as_ref().or(state.compaction_full.as_ref()) {
                return Err(full.clone());
            }
            self.shared.changed.wait(&mut state);
        }
    }

    /// Waits until `has_room`, which is told whether the disk is full, says so: for who is in the middle of a batch and
    /// cannot go back.
    ///
    /// # Errors
    /// Why nothing will be written any more.
    pub(super) fn wait_through_full(&self, mut has_room: impl FnMut(bool) -> bool) -> Result<()> {
        let mut state = self.shared.state.lock();
        loop {
            if let Some(failed) = &state.failed {
                return Err(failed.clone());
            }
            if has_room(state.full.is_some() || state.compaction_full.is_some()) {
                return Ok(());
            }
            self.shared.changed.wait(&mut state);
        }
    }

    /// Says that the last attempt to write tables found the disk full.
    #[cfg(test)]
    pub(super) fn assume_full(&self) {
        self.shared.state.lock().full = Some(Error::Unavailable("disk full".into()));
    }

    /// Why nothing is written any more.
    pub(super) fn failure(&self) -> Option<Error> {
        self.shared.state.lock().failed.clone()
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.shared.state.lock().is_closing = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(folder = %self.shared.dir.display(), "a thread of the store panicked");
            }
        }
    }
}

/// Ends the upkeep if the thread that holds it panics: a tree whose locks are poisoned panics at every turn.
struct ToldOfPanics<'a>(&'a Shared);

impl Drop for ToldOfPanics<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let text = format!("write {}: a thread of the store panicked: restart", self.0.dir.display());
            self.0.state.lock().failed.get_or_insert(Error::Unavailable(text.into()));
            self.0.changed.notify_all();
        }
    }
}

impl Shared {
    fn flush(&self) {
        loop {
            let (buffers, version) = {
                let mut state = self.state.lock();
                while !state.is_closing && state.buffers == state.written {
                    self.changed.wait(&mut state);
                }
                if state.is_closing {
                    return;
                }
                (state.buffers, state.handed_over)
            };
            let before = self.files();
            let outcome = guarded(|| {
                let lock = self.tree.get_flush_lock();
                self.tree.flush(&lock, self.pins.watermark())
            });
            match outcome {
                Ok(_) => {
                    let mut state = self.state.lock();
                    (state.written, state.persisted) = (buffers, version);
                    state.full = None;
                    state.compaction_wanted = true;
                    drop(state);
                    self.changed.notify_all();
                }
                Err(fault) => {
                    if fault.is_full() {
                        let _quiet = self.compacting.lock();
                        self.remove_unfinished(&before);
                    }
                    if !self.may_retry(fault, true) {
                        return;
                    }
                }
            }
        }
    }

    fn compact(&self) {
        loop {
            let Some(frees_room) = self.next_compaction() else { return };
            let quiet = self.compacting.lock();
            let (before, version) = (self.files(), self.tree.current_version().id());
            let outcome = guarded(|| match frees_room {
                // The first pass finds out which value files have what nobody needs, the second removes them.
                true => (0..2).try_for_each(|_| self.tree.major_compact(TABLE_BYTES, self.pins.watermark())),
                false => self.tree.compact(Arc::new(Leveled::default()), self.pins.watermark()),
            });
            match outcome {
                Ok(()) => {
                    drop(quiet);
                    // One step may ask for the next.
                    let has_changed = self.tree.current_version().id() != version;
                    let mut state = self.state.lock();
                    state.compaction_wanted |= has_changed;
                    state.compaction_full = None;
                    drop(state);
                    self.changed.notify_all();
                }
                Err(fault) => {
                    if fault.is_full() {
                        self.remove_unfinished(&before);
                    }
                    drop(quiet);
                    self.state.lock().compaction_wanted = true;
                    if !self.may_retry(fault, false) {
                        return;
                    }
                }
            }
        }
    }

    /// Waits until there is something to compact, and tells whether that is all there is, to free room. `None` at the end.
    fn next_compaction(&self) -> Option<bool> {
        let mut state = self.state.lock();
        while !state.is_closing {
            let is_written = state.full.is_none() && state.buffers == state.written;
            let is_due = state.freeing_wanted.is_some_and(|seqno| self.pins.watermark() >= seqno);
            if is_written && is_due {
                state.freeing_wanted = None;
                if self.has_room_for_all() {
                    return Some(true);
                }
                state.compaction_wanted = true;
            }
            if state.compaction_wanted && state.full.is_none() {
                state.compaction_wanted = false;
                return Some(false);
            }
            match state.freeing_wanted {
                // Nobody says when a reader ends.
                Some(_) => drop(self.changed.wait_for(&mut state, RETRY)),
                None => self.changed.wait(&mut state),
            }
        }
        None
    }

    /// Whether all tables fit on the disk once more. If not, freeing has to be left to the compaction of some at a time.
    fn has_room_for_all(&self) -> bool {
        let tables = fs::read_dir(self.dir.join("tables")).into_iter().flatten().flatten();
        let bytes: u64 = tables.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum();
        free_bytes(&self.dir).is_ok_and(|free| bytes < free)
    }

    /// Whether to try again after `fault`: a full disk is waited for, anything else ends the upkeep.
    fn may_retry(&self, fault: Fault, is_flush: bool) -> bool {
        let is_full = fault.is_full();
        let found = fault.is_damage().then(|| find_damaged(&self.tree, None)).flatten();
        let error = fault.into_error(found.as_deref().unwrap_or(&self.dir), "write");
        let mut state = self.state.lock();
        if !is_full {
            tracing::error!(%error, "the store takes no more commits");
            state.failed.get_or_insert(error);
            drop(state);
            self.changed.notify_all();
            return false;
        }
        tracing::warn!(%error, "tables cannot be written until there is room");
        let why = if is_flush { &mut state.full } else { &mut state.compaction_full };
        *why = Some(error);
        self.changed.notify_all();
        if !state.is_closing {
            self.changed.wait_for(&mut state, RETRY);
        }
        true
    }

    fn files(&self) -> BTreeSet<(&'static str, OsString)> {
        let mut files = BTreeSet::new();
        for folder in WRITTEN {
            let entries = fs::read_dir(self.dir.join(folder)).into_iter().flatten().flatten();
            files.extend(entries.map(|entry| (folder, entry.file_name())));
        }
        files
    }

    /// Removes what an attempt on a full disk left: what was not there `before` and the tree does not know. The other
    /// thread must not be writing. After any other failure the next start does it.
    fn remove_unfinished(&self, before: &BTreeSet<(&'static str, OsString)>) {
        let _quiet = self.tree.get_flush_lock();
        let version = self.tree.current_version();
        let is_known = |folder: &str, id: u64| match folder {
            "tables" => version.iter_tables().any(|table| table.id() == id),
            _ => version.blob_files.contains_key(id),
        };
        for (folder, name) in self.files().difference(before) {
            let id = name.to_str().and_then(|name| name.parse().ok());
            if id.is_some_and(|id| !is_known(folder, id)) {
                let path = self.dir.join(folder).join(name);
                if let Err(error) = fs::remove_file(&path) {
                    tracing::warn!(file = %path.display(), %error, "an unfinished file is left");
                }
            }
        }
    }
}
