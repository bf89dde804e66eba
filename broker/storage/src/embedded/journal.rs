//! The journal: batches in files of a fixed length, in the order of their commits. Knows no tree; who owns it commits
//! one batch at a time.
//!
//! ```text
//! DIR/00000000000000000007.log    a segment; the highest number is being written
//! DIR/new.tmp                     a segment that is being made
//! ```
//! A segment has its full length and its blocks before a batch goes into it, so that a full disk is met before a
//! batch is accepted and fdatasync has no metadata to write. Segments whose batches are all in the tree get the next
//! number and are written again; what is left of the old number in them is not a batch of the new one.
//!
//! Each batch names the one before it, and is synced before the next is written. So what is missing at the end was
//! never acknowledged, and what is missing anywhere else is damage. A file that is too short is damage too.
//!
//! A process may have ended between a write or a rename and its sync, and what it did is then seen here though the disk
//! does not have it yet. So a start makes durable what it found before anything is built on it.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::batch::{self, Batch, Place};
use super::folder::{disk_error, sync_folder};
use super::inspect::damaged;
use crate::local::WriteSet;
use crate::{Error, Result, Version};

/// The length of a segment. Holds the largest batch: `committer.rs` keeps them smaller, but for one transaction, which
/// has at most 1.4 million changes in its four million bytes.
const SEGMENT_BYTES: u64 = 16 << 20;
/// How far ahead of the batches a young segment is filled with zeroes.
const FILL_BYTES: u64 = 1 << 20;
/// From this size on a batch is written directly.
const DIRECT_BYTES: usize = 128 << 10;
/// Segments that wait to be written again; more of them are removed.
const SPARES_MAX: usize = 8;
const TEMPORARY: &str = "new.tmp";

/// The files of the journal.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    store: u64,
    active: Segment,
    /// Full segments with batches that are not in the tree yet, oldest first.
    sealed: VecDeque<Sealed>,
    /// Numbers of segments whose batches are all in the tree.
    spares: Vec<u64>,
    /// The version of the last batch.
    last: Version,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    file: File,
    /// The same for writes past the cache of the operating system, if the file system has that.
    direct: Option<File>,
    /// Where the next batch goes.
    at: u64,
    /// The file has its blocks up to here.
    filled: u64,
}

#[derive(Debug)]
struct Sealed {
    number: u64,
    last: Version,
}

impl Journal {
    /// Opens the journal in `dir` of the store with this id, whose tree holds all up to `persisted`, and hands
    /// every batch after that to `replay`.
    ///
    /// # Errors
    /// [`Error::Damaged`] if an acknowledged batch is not readable; `stopped_at` is the last one if that is known.
    pub(super) fn open(
        dir: &Path,
        store: u64,
        persisted: Version,
        stopped_at: Option<Version>,
        mut replay: impl FnMut(Batch) -> Result<()>,
    ) -> Result<Self> {
        let failed = |error: io::Error| disk_error(dir, "open", &error);
        fs::create_dir_all(dir).map_err(failed)?;
        let mut chain = Chain { last: persisted, replay: &mut replay };
        let (mut sealed, mut spares, mut active) = (VecDeque::new(), Vec::new(), None);
        let numbers = numbers(dir).map_err(failed)?;
        if numbers.is_empty() && persisted > Version(1) {
            return Err(damaged(dir, "it holds no segment"));
        }
        for (index, &number) in numbers.iter().enumerate() {
            let path = path(dir, number);
            let bytes = read_whole(&path)?;
            let (batches, newest_at) = batch::decode_all(&bytes, Place { store, segment: number });
            let newest = batches.last().map(|batch| batch.version);
            let before = index.checked_sub(1).map(|before| numbers[before]);
            for (at, batch) in batches.into_iter().enumerate() {
                let suspect = if at == 0 { before.unwrap_or(number) } else { number };
                chain.follow(batch, || unreadable(dir, suspect))?;
            }
            if index + 1 == numbers.len() {
                active = Some((
                    Segment::open(&path, number, newest_at.end as u64).map_err(failed)?,
                    bytes.slice(newest_at),
                ));
            } else if newest.is_some_and(|newest| newest > persisted) {
                sealed.push_back(Sealed { number, last: chain.last });
            } else {
                spares.push(number);
            }
        }
        let last = chain.last;
        if let (Some(stopped_at), Some(number)) = (stopped_at, numbers.last())
            && stopped_at != last
        {
            return Err(unreadable(dir, *number));
        }
        let active = match active {
            Some((active, newest)) => {
                active.make_durable(&newest).and_then(|()| sync_folder(dir)).map_err(failed)?;
                active
            }
            None => Segment::create(dir, 1).map_err(failed)?,
        };
        let mut journal = Self { dir: dir.into(), store, active, sealed, spares, last, buffer: Vec::new() };
        journal.drop_spares().map_err(failed)?;
        Ok(journal)
    }

    /// The version of the last batch.
    pub(super) const fn last(&self) -> Version {
        self.last
    }

    /// How many full segments with batches after `version` there are that the tree did not hold yet at the last
    /// [`Journal::retire`].
    pub(super) fn sealed_after(&self, version: Version) -> usize {
        self.sealed.iter().filter(|segment| segment.last > version).count()
    }

    /// What the tree must hold before the oldest full segment can be let go of.
    pub(super) fn oldest(&self) -> Option<Version> {
        self.sealed.front().map(|segment| segment.last)
    }

    /// Makes sure that a batch of `changes` fits without taking anything from the disk. After an error everything is
    /// as before.
    pub(super) fn reserve(&mut self, changes: &WriteSet) -> io::Result<()> {
        let bytes = batch::encoded_bytes_max(changes) as u64;
        if bytes > SEGMENT_BYTES {
            return Err(io::Error::new(ErrorKind::FileTooLarge, "a batch is larger than a segment"));
        }
        if self.active.at + bytes > SEGMENT_BYTES {
            self.next_segment()?;
        }
        self.active.fill(self.active.at + bytes)
    }

    /// Makes a batch durable, in the room that was reserved for it.
    pub(super) fn append(&mut self, version: Version, changes: &WriteSet) -> io::Result<()> {
        let place = Place { store: self.store, segment: self.active.number };
        let batch = batch::encode(&mut self.buffer, place, version, self.last, changes);
        self.active.write(batch)?;
        self.active.file.sync_data()?;
        self.active.at += batch.len() as u64;
        self.last = version;
        Ok(())
    }

    /// Lets go of the segments whose batches the tree holds: all up to `persisted`.
    pub(super) fn retire(&mut self, persisted: Version) -> io::Result<()> {
        while self.sealed.front().is_some_and(|segment| segment.last <= persisted) {
            self.spares.extend(self.sealed.pop_front().map(|segment| segment.number));
        }
        self.drop_spares()
    }

    fn drop_spares(&mut self) -> io::Result<()> {
        while self.spares.len() > SPARES_MAX {
            if let Some(number) = self.spares.pop() {
                fs::remove_file(path(&self.dir, number))?;
            }
        }
        Ok(())
    }

    fn next_segment(&mut self) -> io::Result<()> {
        let number = self.active.number + 1;
        let next = match self.spares.last() {
            Some(&spare) => {
                fs::rename(path(&self.dir, spare), path(&self.dir, number))?;
                // From here on the file has the new number, also if this fails: it is written over or found again.
                self.spares.pop();
                sync_folder(&self.dir)?;
                Segment::open(&path(&self.dir, number), number, 0)?
            }
            None => Segment::create(&self.dir, number)?,
        };
        let full = std::mem::replace(&mut self.active, next);
        self.sealed.push_back(Sealed { number: full.number, last: self.last });
        Ok(())
    }
}

impl Segment {
    /// An existing segment, to be written from `at` on.
    fn open(path: &Path, number: u64, at: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let has_blocks = file.metadata()?.blocks() * 512 >= SEGMENT_BYTES;
        let filled = if has_blocks { SEGMENT_BYTES } else { at };
        Ok(Self { number, file, direct: open_direct(path), at, filled })
    }

    fn create(dir: &Path, number: u64) -> io::Result<Self> {
        let (made, path) = (dir.join(TEMPORARY), path(dir, number));
        let file = File::create(&made)?;
        file.set_len(SEGMENT_BYTES)?;
        let mut segment = Self { number, file, direct: open_direct(&made), at: 0, filled: 0 };
        segment.fill(0)?;
        segment.file.sync_all()?;
        fs::rename(&made, &path)?;
        sync_folder(dir)?;
        Ok(segment)
    }

    /// Writes a batch to where the next one goes. A large one costs half as much if it is not copied to the cache, page by
    /// page, which nobody reads.
    fn write(&self, batch: &[u8]) -> io::Result<()> {
        if batch.len() >= DIRECT_BYTES
            && let Some(direct) = &self.direct
        {
            match direct.write_all_at(batch, self.at) {
                // A disk that wants larger blocks.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {}
                written => return written,
            }
        }
        self.file.write_all_at(batch, self.at)
    }

    /// Makes durable what was found, whose last batch is `newest`. That one is written once more: after a failed write
    /// the operating system takes it to be on the disk, and a sync would do nothing.
    fn make_durable(&self, newest: &[u8]) -> io::Result<()> {
        self.file.write_all_at(newest, self.at - newest.len() as u64)?;
        self.file.sync_all()
    }

    /// Sees to it that the file has its blocks up to `needed`, and some more.
    fn fill(&mut self, needed: u64) -> io::Result<()> {
        // Page by page: a large write makes large folios, and then each small batch counts as a large write.
        static ZEROES: [u8; batch::ALIGN] = [0; batch::ALIGN];
        if needed <= self.filled && self.filled > 0 {
            return Ok(());
        }
        let until = (needed + FILL_BYTES).min(SEGMENT_BYTES);
        while self.filled < until {
            self.file.write_all_at(&ZEROES, self.filled)?;
            self.filled += batch::ALIGN as u64;
        }
        Ok(())
    }
}

/// A segment to be written directly.
fn open_direct(path: &Path) -> Option<File> {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).ok()?;
        OpenOptions::new().write(true).custom_flags(flags).open(path).ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        None
    }
}

/// Follows the batches from the last one in the tree on.
struct Chain<'a, F> {
    last: Version,
    replay: &'a mut F,
}

impl<F: FnMut(Batch) -> Result<()>> Chain<'_, F> {
    /// Replays the batch, unless the tree holds it. `missing` is the error if there are others before it.
    fn follow(&mut self, batch: Batch, missing: impl FnOnce() -> Error) -> Result<()> {
        let Batch { version, previous, .. } = batch;
        if version <= self.last {
            return Ok(());
        }
        if previous != self.last {
            return Err(missing());
        }
        (self.replay)(batch)?;
        self.last = version;
        Ok(())
    }
}

fn unreadable(dir: &Path, number: u64) -> Error {
    damaged(&path(dir, number), "an acknowledged commit in it is not readable")
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.log"))
}

/// The numbers of the segments in order. Removes what was not finished.
fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name == TEMPORARY) {
            fs::remove_file(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "log") {
            numbers.extend(path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok()));
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn read_whole(path: &Path) -> Result<Bytes> {
    let failed = |error: io::Error| disk_error(path, "read", &error);
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    if len != SEGMENT_BYTES {
        return Err(damaged(path, &format!("it has {len} of {SEGMENT_BYTES} bytes")));
    }
    bytes.reserve_exact(usize::try_from(len).unwrap_or(0));
    file.read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: u64 = 5;

    /// Three of them fill a segment.
    fn large(n: u64) -> WriteSet {
        let mut changes = WriteSet::default();
        changes.set(Bytes::from(format!("key {n}")), Bytes::from(vec![1; 5 << 20]));
        changes
    }

    fn open(dir: &Path, persisted: u64, stopped_at: Option<u64>) -> Result<(Journal, Vec<u64>)> {
        let mut replayed = Vec::new();
        let journal = Journal::open(dir, STORE, Version(persisted), stopped_at.map(Version), |batch| {
            replayed.push(batch.version.0);
            Ok(())
        })?;
        Ok((journal, replayed))
    }

    /// A journal with the batches 2 to `last` in segments of three.
    fn filled(dir: &Path, last: u64) -> Journal {
        let (mut journal, replayed) = open(dir, 1, None).unwrap();
        assert!(replayed.is_empty());
        for version in 2..=last {
            journal.reserve(&large(version)).unwrap();
            journal.append(Version(version), &large(version)).unwrap();
        }
        journal
    }

    #[test]
    fn segments_that_the_tree_holds_are_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = filled(dir.path(), 11);
        assert_eq!(numbers(dir.path()).unwrap(), [1, 2, 3, 4]);
        assert_eq!((journal.sealed_after(Version(0)), journal.oldest()), (3, Some(Version(4))));
        journal.retire(Version(8)).unwrap();
        assert_eq!((journal.sealed_after(Version(0)), journal.oldest()), (1, Some(Version(10))));
        for version in 12..=15 {
            journal.reserve(&large(version)).unwrap();
            journal.append(Version(version), &large(version)).unwrap();
        }
        drop(journal);
        // 2 became 5; what was in it before counts no more.
        assert_eq!(numbers(dir.path()).unwrap(), [1, 3, 4, 5]);
        assert_eq!(open(dir.path(), 8, Some(15)).unwrap().1, (9..=15).collect::<Vec<_>>());
        assert_eq!(open(dir.path(), 13, None).unwrap().1, [14, 15]);
        assert!(open(dir.path(), 15, None).unwrap().1.is_empty());
    }

    #[test]
    fn what_is_missing_anywhere_but_at_the_end_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        drop(filled(dir.path(), 11));
        assert_eq!(open(dir.path(), 1, None).unwrap().1.len(), 10);
        let error = |persisted, stopped_at| open(dir.path(), persisted, stopped_at).unwrap_err().to_string();
        assert!(error(1, Some(12)).contains("4.log: an acknowledged commit in it is not readable"));
        assert!(open(dir.path(), 3, None).is_ok_and(|(_, replayed)| replayed.len() == 8));
        fs::remove_file(path(dir.path(), 2)).unwrap();
        assert!(error(1, None).contains("1.log: an acknowledged commit in it is not readable"));
        // Not if the tree holds it.
        assert_eq!(open(dir.path(), 7, None).unwrap().1, [8, 9, 10, 11]);
        File::options().write(true).open(path(dir.path(), 3)).unwrap().set_len(SEGMENT_BYTES - 1).unwrap();
        assert!(error(7, None).contains("3.log: it has 16777215 of 16777216 bytes"));
        fs::remove_dir_all(dir.path()).unwrap();
        assert!(error(7, None).contains("it holds no segment"));
    }
}
