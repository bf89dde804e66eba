//! The file of a backup: nothing has its name before it is whole, on the disk and read back.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use weir_env::clock::Timestamp;
use weir_storage::backup::{About, BackupReader, Extent};

/// A backup that is being written beside the place where it will be. Dropped before [`BackupFile::finish`] it leaves
/// nothing.
#[derive(Debug)]
pub(super) struct BackupFile {
    path: PathBuf,
    partial: PathBuf,
    /// `None` once the partial file is gone.
    out: Option<BufWriter<File>>,
    written: u64,
}

impl BackupFile {
    /// Begins the file `to`, or a new one in the folder `to`.
    pub(super) fn create(to: &Path, now: Timestamp) -> anyhow::Result<Self> {
        let path = if to.is_dir() { to.join(file_name(now)) } else { to.to_owned() };
        if path.exists() {
            bail!("{} exists and is not overwritten: name another file", path.display());
        }
        let name = path.file_name().ok_or_else(|| anyhow!("{} is not the name of a file", path.display()))?;
        let mut partial_name = name.to_owned();
        partial_name.push(".partial");
        let partial = path.with_file_name(partial_name);
        // Whoever can read a backup can read every message in it.
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial);
        let file = match opened {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
                "{} is of a backup that is under way, or did not end: in that case delete it",
                partial.display()
            ),
            opened => opened.with_context(|| format!("create {}", partial.display()))?,
        };
        Ok(Self { path, partial, out: Some(BufWriter::new(file)), written: 0 })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let out = self.out.as_mut().expect("written to before its end");
        out.write_all(bytes).with_context(|| format!("write {}", self.partial.display()))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Bytes written so far.
    pub(super) const fn written(&self) -> u64 {
        self.written
    }

    /// Reads it back from the disk and gives it its name.
    pub(super) fn finish(mut self) -> anyhow::Result<(PathBuf, About, Extent)> {
        let shown = self.partial.display().to_string();
        let out = self.out.take().expect("ended once");
        let outcome: anyhow::Result<_> = (|| {
            let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all().with_context(|| format!("write {shown}"))?;
            let (about, extent) =
                open(&self.partial)?.verify().context("what was written is not a backup")?;
            give_name(&self.partial, &self.path)
                .with_context(|| format!("name it {}", self.path.display()))?;
            Ok((about, extent))
        })();
        // It has its name, or is of no use; there is nothing else to be done about it.
        let _ = fs::remove_file(&self.partial);
        let (about, extent): (About, Extent) = outcome?;
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder).and_then(|folder| folder.sync_all()).context("write the folder of the backup")?;
        Ok((self.path.clone(), about, extent))
    }
}

impl Drop for BackupFile {
    fn drop(&mut self) {
        if self.out.take().is_some() {
            // There is nothing else to be done about it.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Gives the file `partial` the name `path`, unless another file has got that meanwhile.
fn give_name(partial: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(partial, path) {
        // Not every file system has links: there the name is taken first.
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            OpenOptions::new().write(true).create_new(true).open(path)?;
            fs::rename(partial, path)
        }
        linked => linked,
    }
}

/// Begins to read a backup.
pub(super) fn open(path: &Path) -> anyhow::Result<BackupReader<BufReader<File>>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    BackupReader::open(BufReader::new(file)).with_context(|| path.display().to_string())
}

/// The name of a new backup, by the second.
fn file_name(now: Timestamp) -> String {
    let micros = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_microsecond(micros).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("weir-{}.backup", time.strftime("%Y%m%dT%H%M%SZ"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weir_env::clock::Clock;
    use weir_storage::backup::Backup;
    use weir_storage::{MemoryStore, SharedStore};

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_no_backup_gets_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b");
        let mut file = BackupFile::create(&path, Timestamp::default()).unwrap();
        file.write(b"weir backup 1\nnot at all").unwrap();
        assert_eq!(names(dir.path()), ["b.partial"]);
        let second = BackupFile::create(&path, Timestamp::default()).unwrap_err().to_string();
        assert!(second.contains("under way"), "{second}");
        assert!(file.finish().is_err());
        assert!(names(dir.path()).is_empty());
        drop(BackupFile::create(&path, Timestamp::default()).unwrap());
        assert!(names(dir.path()).is_empty());
    }

    #[tokio::test]
    async fn a_file_that_appears_meanwhile_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b");
        let store: SharedStore = Arc::new(MemoryStore::new(Clock::system()));
        let mut backup = Backup::begin(&store, "weir test", 1).await.unwrap();
        let mut whole = Vec::new();
        while let Some(part) = backup.next().await.unwrap() {
            whole.extend_from_slice(&part);
        }
        for appears in [true, false] {
            let mut file = BackupFile::create(&path, Timestamp::default()).unwrap();
            file.write(&whole).unwrap();
            if appears {
                fs::write(&path, "precious").unwrap();
                let error = format!("{:#}", file.finish().unwrap_err());
                assert!(error.contains("name it"), "{error}");
                assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
                fs::remove_file(&path).unwrap();
            } else {
                file.finish().unwrap();
                assert_eq!(fs::read(&path).unwrap(), whole);
                assert_eq!(names(dir.path()), ["b"]);
            }
        }
    }

    #[test]
    fn a_folder_gets_a_file_by_the_time_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        drop(BackupFile::create(dir.path(), now).unwrap());
        let name = "weir-20231114T221320Z.backup";
        fs::write(dir.path().join(name), "precious").unwrap();
        for to in [dir.path().to_owned(), dir.path().join(name)] {
            let error = BackupFile::create(&to, now).unwrap_err().to_string();
            assert!(error.contains("not overwritten"), "{error}");
        }
        assert_eq!(names(dir.path()), [name]);
    }
}
