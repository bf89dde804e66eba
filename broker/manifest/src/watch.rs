//! Notices that the manifests of a folder have changed. Owns what it saw last; the caller owns the loop.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::folder::{Fingerprint, Folder};
use crate::{ManifestError, ManifestSet};

/// Compares a folder's manifests with those that it reported last, by their contents.
#[derive(Debug)]
pub struct Watcher {
    dir: PathBuf,
    interval: Duration,
    seen: Option<Look>,
    reported: Option<Look>,
}

/// What one look at the folder found: what its files hash to, or why they cannot be read.
type Look = Result<Fingerprint, Vec<ManifestError>>;

impl Watcher {
    /// A watcher of `dir` that wants to be polled each `interval`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, interval: Duration) -> Self {
        Self { dir: dir.into(), interval, seen: None, reported: None }
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Time between two polls.
    #[must_use]
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// Looks at the folder; blocks while it reads. Gives what [`load`](crate::load) would at the first call, and
    /// then once for each change, good or bad, as soon as two polls in a row have seen the same: a file that is
    /// being written is not taken for one that was cut off.
    pub fn poll(&mut self) -> Option<Result<ManifestSet, Vec<ManifestError>>> {
        let folder = Folder::read(&self.dir);
        let look = folder.as_ref().map(Folder::fingerprint).map_err(Clone::clone);
        let settled = self.reported.is_none() || self.seen.as_ref() == Some(&look);
        let changed = self.reported.as_ref() != Some(&look);
        self.seen = Some(look.clone());
        if !(settled && changed) {
            return None;
        }
        self.reported = Some(look);
        Some(folder.and_then(|folder| folder.parse()))
    }
}
