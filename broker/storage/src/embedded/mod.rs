//! The embedded engine: one folder on the local disk, for a broker that runs alone.
//!
//! A commit is reported once its batch is in the journal (`journal.rs`) and `fdatasync` has returned. One thread
//! commits: while it waits for the disk, transactions gather for the next batch. From the journal the changes go into
//! the write buffer of an LSM tree of the `lsm-tree` crate (`tree.rs`), which two more threads move into tables and
//! compact (`upkeep.rs`); nothing outside this module knows that.
//!
//! # Reads
//! Reads run on the task that asks, without another thread: recent and cached data are answered from memory
//! in microseconds, anything else costs one or a few reads of the disk. Ask for large ranges in pages.
//!
//! # When the disk is full
//! The journal has its blocks before a batch is accepted. Below [`EmbeddedOptions::reserve_bytes`] of free space only
//! transactions are taken that clear something and write little, below a quarter of it none: the rest is refused as
//! [`Error::Unavailable`] before anything is written. What was cleared is given back to the disk after some seconds,
//! when nobody reads it any more, if all tables (without large values) fit once more; else as they are compacted, a few
//! at a time. When there is room again the store goes on by itself. Tables
//! that cannot be written are tried again; meanwhile their data is in the journal, and commits are refused when that
//! is full too.
//!
//! # When files are damaged
//! Batches, blocks, values and the lists of tables have sums, which are checked at each read: a read or the start fails
//! as [`Error::Damaged`] with the name of the file, if it can be found. What is damaged at the end of the journal after
//! a crash was never acknowledged as far as anyone can tell, and is cut off; after an orderly stop it is reported.
//!
//! # When the disk fails
//! After a failed write or sync nothing is known about what is on the disk, so the store takes no more
//! commits ([`Error::Unavailable`]) until it is opened again, which recovers what was acknowledged. The
//! commits in that batch end as [`Error::UnknownOpen`]. Reads go on.

mod batch;
mod committer;
mod folder;
mod inspect;
mod journal;
mod pins;
mod space;
mod tree;
mod upkeep;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use weir_env::clock::Clock;

use self::committer::Committer;
use self::folder::Folder;
use self::tree::{TreeView, TreeWriter};
use crate::local::{HeldSnapshot, LocalTransaction, Sequencer, Shared};
use crate::{Error, Result, Snapshot, Store, StoreStats, Transaction, Version};

/// How an [`EmbeddedStore`] uses memory and disk.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// Memory for blocks read from disk, in bytes.
    pub cache_bytes: u64,
    /// Memory for recent writes before they move from the journal to the tree, in bytes; at least 1 MiB.
    pub write_buffer_bytes: u64,
    /// Free space on the disk, in bytes, below which only what frees room is taken.
    pub reserve_bytes: u64,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20, write_buffer_bytes: 64 << 20, reserve_bytes: 256 << 20 }
    }
}

/// A durable store in a folder that one process at a time has open.
#[derive(Debug)]
pub struct EmbeddedStore {
    shared: Arc<Shared<TreeView>>,
    committer: Arc<Committer>,
    stats: Arc<StoreStats>,
}

impl EmbeddedStore {
    /// Opens the store in `dir`, which is created if it does not exist, and recovers what was acknowledged
    /// before a crash. Versions age by `clock`. Blocks while it reads the disk.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if another process has the folder open, if it holds something else, or if the
    /// disk refuses; [`Error::Damaged`] if what it holds cannot be read or is of another format. The text
    /// names the folder and what to do.
    pub fn open(dir: &Path, options: &EmbeddedOptions, clock: Clock) -> Result<Self> {
        let folder = Folder::open(dir)?;
        let stats = Arc::new(StoreStats::default());
        let (writer, version, view) = TreeWriter::open(folder, options, Arc::clone(&stats), clock)?;
        let shared = Shared::new(version, view, clock, Arc::clone(&stats));
        let sequencer = Sequencer::new(Arc::clone(&shared), writer, version);
        let committer = Arc::new(Committer::start(sequencer, clock).map_err(|error| {
            Error::Unavailable(format!("start the thread that commits to {}: {error}", dir.display()).into())
        })?);
        Ok(Self { shared, committer, stats })
    }

    /// What the store has done since it was opened.
    #[must_use]
    pub fn stats(&self) -> Arc<StoreStats> {
        Arc::clone(&self.stats)
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    fn begin(&self) -> Box<dyn Transaction> {
        let committer: Arc<Committer> = Arc::clone(&self.committer);
        Box::new(LocalTransaction::new(Arc::clone(&self.shared), committer))
    }

    fn engine(&self) -> &'static str {
        "embedded"
    }

    fn engine_stats(&self) -> Option<Arc<StoreStats>> {
        Some(self.stats())
    }

    async fn describe(&self) -> Result<Vec<(&'static str, String)>> {
        Ok(vec![("format", folder::format().to_owned())])
    }

    async fn hold(&self) -> Option<Result<Box<dyn Snapshot>>> {
        let held = HeldSnapshot::new(Arc::clone(&self.shared));
        Some(held.map(|held| Box::new(held) as Box<dyn Snapshot>))
    }

    async fn advance(&self, version: Version) -> Result<()> {
        self.shared.advance(version)
    }

    async fn failed(&self) -> Arc<str> {
        self.shared.failed().await
    }

    async fn close(&self) {
        self.committer.close(|| self.shared.close()).await;
    }
}
