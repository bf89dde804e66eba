//! The store's folder: who has it open, and in which format it is. Knows nothing of what the store holds.
//!
//! ```text
//! DIR/lock      locked while a process has the store open; holds its process id
//! DIR/FORMAT    one line that names the format
//! DIR/data/     the tree
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// What `FORMAT` holds.
const FORMAT: &str = "weir embedded store, format 1\n";

/// A locked folder of the right format. The lock is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
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
        match fs::read(&format_path) {
            Ok(found) if found == FORMAT.as_bytes() => {}
            Ok(found) => {
                let found = String::from_utf8_lossy(&found[..found.len().min(80)]).trim().to_owned();
                let known = FORMAT.trim();
                return Err(Error::Damaged(
                    format!(
                        "{} is of another format (`{found}`, this program reads `{known}`): use the program \
                         that wrote it, or another folder",
                        path.display()
                    )
                    .into(),
                ));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                write_format(path, &format_path).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the tree lives.
    pub(super) fn data(&self) -> PathBuf {
        self.path.join("data")
    }
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

/// Written aside and renamed, so that a crash leaves either no format or a whole one.
fn write_format(path: &Path, format_path: &Path) -> io::Result<()> {
    let new_path = path.join("FORMAT.new");
    let mut file = File::create(&new_path)?;
    file.write_all(FORMAT.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new_path, format_path)?;
    File::open(path)?.sync_all()
}

/// An error of the operating system in words that say what to do.
pub(super) fn disk_error(path: &Path, verb: &str, error: &io::Error) -> Error {
    let advice = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => ": make room on the disk, then restart",
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            ": make the folder writable, then restart"
        }
        _ => "",
    };
    Error::Unavailable(format!("{verb} {}: {error}{advice}", path.display()).into())
}
