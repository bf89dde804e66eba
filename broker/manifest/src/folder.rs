//! The files of a folder, as one snapshot of bounded size. Knows no YAML.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use crate::ManifestError;
use crate::set::{self, ManifestSet};

/// Most bytes of all manifests of a folder together: a Kubernetes object has at most 1.5 MiB, and parsing takes
/// a multiple of this in memory.
pub const BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Most manifest files in a folder.
pub const FILES_MAX: usize = 1000;

/// The manifest files of a folder at one moment.
#[derive(Clone, Debug)]
pub struct Folder {
    files: Vec<(String, Vec<u8>)>,
}

/// What a folder's manifests hash to: equal for equal names and contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u128);

impl Folder {
    /// Reads the manifest files of `dir`.
    ///
    /// # Errors
    /// The folder or a file cannot be read, is no regular file, or a limit is exceeded.
    pub fn read(dir: &Path) -> Result<Self, Vec<ManifestError>> {
        let paths = manifest_paths(dir)?;
        let mut files = Vec::with_capacity(paths.len());
        let mut bytes_left = BYTES_MAX;
        let mut errors = Vec::new();
        for (name, path) in paths {
            match read_file(&path, bytes_left) {
                Ok(Some(content)) => {
                    bytes_left = bytes_left.saturating_sub(content.len() as u64);
                    files.push((name, content));
                }
                Ok(None) => {
                    let mib = BYTES_MAX >> 20;
                    let message =
                        format!("the manifests of the folder are too large; allowed: {mib} MiB together");
                    return Err(vec![file_error(name, message)]);
                }
                Err(error) => errors.push(file_error(name, format!("cannot be read: {error}"))),
            }
        }
        if errors.is_empty() { Ok(Self { files }) } else { Err(errors) }
    }

    /// What these files hash to.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = Xxh3::new();
        for (name, content) in &self.files {
            for part in [name.as_bytes(), content] {
                hash.update(&(part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        Fingerprint(hash.digest128())
    }

    /// Parses and checks all files.
    ///
    /// # Errors
    /// Every mistake in every file, in the order of files and lines.
    pub fn parse(&self) -> Result<ManifestSet, Vec<ManifestError>> {
        set::parse(self.files.iter().map(|(name, content)| (name.as_str(), content.as_slice())))
    }
}

/// Name and path of each manifest file, in the order of names.
fn manifest_paths(dir: &Path) -> Result<Vec<(String, PathBuf)>, Vec<ManifestError>> {
    let fail = |message| vec![file_error(dir.display().to_string(), message)];
    let entries = fs::read_dir(dir).map_err(|error| fail(format!("cannot be read: {error}")))?;
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| fail(format!("cannot be read: {error}")))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // A ConfigMap mount has its files in the hidden `..data`, and links of the real names beside it.
        let is_manifest = !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".yml"));
        if !is_manifest || entry.path().is_dir() {
            continue;
        }
        if paths.len() == FILES_MAX {
            return Err(fail(format!("has too many manifest files; allowed: {FILES_MAX}")));
        }
        paths.push((name, entry.path()));
    }
    paths.sort();
    Ok(paths)
}

/// The content of a file; nothing if it has more than `bytes_max`.
fn read_file(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    // Looked at before it is opened, since opening a pipe waits for a writer.
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if metadata.len() > bytes_max {
        return Ok(None);
    }
    let mut content = Vec::new();
    File::open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= bytes_max).then_some(content))
}

fn file_error(file: String, message: String) -> ManifestError {
    ManifestError { file, line: None, path: String::new(), message }
}
