//! Reads the manifests of a folder: the same YAML that `kubectl apply` takes, judged by the same schema.
//!
//! A folder is read as a whole. Either every manifest in it is good, and [`load`] gives all of them with the
//! schema's defaults filled in, or nothing is given and every mistake is named with file, line, field and what
//! is allowed. This crate must never know what a queue or a stream does, nor start anything: the caller owns
//! the loop that polls a [`Watcher`]. Reading blocks; async callers use a blocking thread.

mod document;
mod folder;
mod schema;
mod set;
mod single;
mod watch;
mod yaml;

use std::fmt;
use std::path::Path;

pub use folder::{BYTES_MAX, FILES_MAX, Fingerprint, Folder};
pub use set::{Declared, ERRORS_MAX, ManifestSet, Source};
pub use single::{parse_file, parse_queue_spec, parse_stream_spec};
pub use watch::Watcher;
pub use yaml::{DEPTH_MAX, KEY_BYTES_MAX, NODES_MAX};

/// A mistake in a manifest: where, and what is allowed there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ManifestError {
    /// Name of the file inside of the folder.
    pub file: String,
    /// Line in the file, the first being 1; absent where the file as a whole is meant.
    pub line: Option<usize>,
    /// Path of the field, such as `spec.retention.overflow`; empty where a document or file is meant.
    pub path: String,
    /// What is wrong and what is allowed, in one line.
    pub message: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Reads all manifests of the folder `dir`: files that end in `.yaml` or `.yml` and are not hidden, through
/// symbolic links too, in the order of their names; no folders inside.
///
/// # Errors
/// Every mistake in every file, in the order of files and lines; about [`ERRORS_MAX`] at most.
pub fn load(dir: &Path) -> Result<ManifestSet, Vec<ManifestError>> {
    Folder::read(dir)?.parse()
}
