//! Folders of manifests, good and bad, from outside.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad;
mod folders;
mod good;
mod single;

use std::fs;

use tempfile::TempDir;
use weir_manifest::{ManifestSet, load};

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

/// Loads a folder with these files, the errors as people read them.
fn load_files(files: &[(&str, &str)]) -> Result<ManifestSet, Vec<String>> {
    load(folder(files).path()).map_err(|errors| errors.iter().map(ToString::to_string).collect())
}
