//! The store's folder: who has it open, and in which format it is. Knows nothing of what the store holds.
//!
//! ```text
//! DIR/lock        locked while a process has the store open; holds its process id
//! DIR/FORMAT      three lines: the format, a random id of the store, a sum over both
//! DIR/stopped     the version of the last commit and a sum, only after an orderly stop
//! DIR/journal/    see `journal.rs`
//! DIR/tree/       see `inspect.rs`
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use weir_env::seed::Seed;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{Error, Result, Version};

/// What `FORMAT` begins with.
const FORMAT: &str = "weir embedded store, format 2\n";

/// The number of the format that this program writes.
pub(super) fn format() -> &'static str {
    FORMAT.trim_end().rsplit_once(" ").map_or(FORMAT, |(_, format)| format)
}

/// A locked folder of the right format. The lock is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    id: u64,
    _lock: File,
}

impl Folder {
    /// Locks the folder, and prepares it if it is new.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| disk_error(path, "open", &error);
        fs::create_dir_all(path).map_err(failed)?;
        let format_path = path.join("FORMAT");
        if !format_path.exists() && holds_something_else(path).map_err(failed)? {
            return Err(Error::Unavailable(
                format!("{} is not empty and holds no weir store: give another folder", path.display())
                    .into(),
            ));
        }
        let lock = lock(path)?;
        let id = match fs::read(&format_path) {
            Ok(found) => read_format(&format_path, &found)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let id = Seed::from_entropy().next_u64();
                write_whole(&format_path, &format_of(id)).map_err(failed)?;
                id
            }
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { path: path.to_owned(), id, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What tells this store from every other.
    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    /// Where the journal lies.
    pub(super) fn journal(&self) -> PathBuf {
        self.path.join("journal")
    }

    /// Whether anything was ever committed.
    pub(super) fn has_journal(&self) -> bool {
        fs::read_dir(self.journal()).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Where the tree lies.
    pub(super) fn tree(&self) -> PathBuf {
        self.path.join("tree")
    }

    /// The version of the last commit, if the last stop was an orderly one.
    pub(super) fn stopped_at(&self) -> Result<Option<Version>> {
        let path = self.stopped_path();
        let found = match fs::read(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(disk_error(&path, "read", &error)),
        };
        let version = str::from_utf8(&found).ok().and_then(|text| text.split_once(' ')?.0.parse().ok());
        match version.map(Version) {
            Some(version) if self.stopped_mark(version).as_bytes() == found => Ok(Some(version)),
            _ => Err(Error::Damaged(
                format!("{} is not readable: remove it to start as after a crash", path.display()).into(),
            )),
        }
    }

    /// Forgets the last stop: from here on there are commits that it does not know of.
    pub(super) fn started(&self) -> Result<()> {
        let removed = match fs::remove_file(self.stopped_path()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            // Also if it is not there: it may be so only until the power fails.
            _ => sync_folder(&self.path),
        };
        removed.map_err(|error| disk_error(&self.path, "open", &error))
    }

    /// Notes an orderly stop after the commit `version`.
    pub(super) fn stopped(&self, version: Version) {
        if let Err(error) = write_whole(&self.stopped_path(), &self.stopped_mark(version)) {
            tracing::warn!(folder = %self.path.display(), %error, "the next start is one as after a crash");
        }
    }

    fn stopped_path(&self) -> PathBuf {
        self.path.join("stopped")
    }

    fn stopped_mark(&self, version: Version) -> String {
        let version = version.0.to_string();
        format!("{version} {:016x}\n", xxh3_64_with_seed(version.as_bytes(), self.id))
    }
}

fn format_of(id: u64) -> String {
    let text = format!("{FORMAT}{id:016x}\n");
    format!("{text}{:016x}\n", xxh3_64(text.as_bytes()))
}

/// The id in `found`, which is what `FORMAT` holds.
fn read_format(path: &Path, found: &[u8]) -> Result<u64> {
    let text = String::from_utf8_lossy(&found[..found.len().min(80)]);
    let id = text.lines().nth(1).and_then(|id| u64::from_str_radix(id, 16).ok());
    if let Some(id) = id.filter(|id| format_of(*id).as_bytes() == found) {
        return Ok(id);
    }
    let (known, first) = (FORMAT.trim(), text.lines().next().unwrap_or_default());
    let what = if first == known {
        format!("{} is not readable: restore the folder from a backup", path.display())
    } else {
        format!(
            "{} says `{first}`, this program reads `{known}`: use the program that wrote the folder, or another \
             folder",
            path.display()
        )
    };
    Err(Error::Damaged(what.into()))
}

/// A folder that another program uses; `lost+found` is what a fresh volume holds.
fn holds_something_else(path: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if name != "lock" && name != "FORMAT.new" && name != "lost+found" {
            return Ok(true);
        }
    }
    Ok(false)
}

fn lock(path: &Path) -> Result<File> {
    let failed = |error: io::Error| disk_error(path, "lock", &error);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(path.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0).map_err(failed)?;
            file.rewind().map_err(failed)?;
            writeln!(file, "{}", std::process::id()).map_err(failed)?;
            Ok(file)
        }
        Err(TryLockError::Error(error)) => Err(failed(error)),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only to be helpful: without it the message is still true.
            let _ = file.take(20).read_to_string(&mut holder);
            let holder = holder.trim();
            Err(Error::Unavailable(
                format!(
                    "{} is open in another process ({holder}): stop it, or give another folder",
                    path.display()
                )
                .into(),
            ))
        }
    }
}

/// Written aside and renamed, so that a crash leaves either nothing or all of it.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let new_path = path.with_extension("new");
    let mut file = File::create(&new_path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new_path, path)?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Makes durable which files the folder holds, and under which names.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Whether the operating system says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// An error of the operating system in words that say what to do.
pub(super) fn disk_error(path: &Path, verb: &str, error: &io::Error) -> Error {
    let advice = match error.kind() {
        _ if is_full(error) => ": make room on the disk",
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            ": make the folder writable, then restart"
        }
        _ => "",
    };
    Error::Unavailable(format!("{verb} {}: {error}{advice}", path.display()).into())
}
