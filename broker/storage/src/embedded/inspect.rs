//! Stands between the tree and damaged files: looks at its metadata before it does, turns its panics into errors, and
//! finds the file that an error is about.
//!
//! Tables and value files carry sums of their blocks and values, which the tree checks at each read. What it does not
//! check is which tables there are. Knows these files of `lsm-tree` 3.1, numbers little-endian:
//! ```text
//! current     version(8) sum of that version's file(16) 0(1)
//! v<version>, tables/<id>, blobs/<id>
//!             sections, then the list of sections, then "SFA!" 1(1) 0(1) sum of the list(16) its offset(8) its length(8)
//! list        "TOC!" count(4) { offset(8) length(8) name_len(2) name }
//! section "tables" of a version
//!             levels(1) { runs(1) { tables(4) { id(8) 0(1) sum of the file(16) seqno(8) } } }
//! section "blob_files" of a version
//!             count(4) { id(8) 0(1) sum of the file(16) }
//! ```
//! Sums are xxh3-128.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use bytes::Buf;
use lsm_tree::{AbstractTree, AnyTree, Config};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::folder::{disk_error, is_full};
use crate::{Error, Result};

const TRAILER_BYTES: usize = 38;
/// The list of sections of a file is far below this.
const LIST_BYTES_MAX: u64 = 64 << 10;
/// How much is read to find out which file is damaged.
const SEARCH_BYTES_MAX: u64 = 1 << 30;

/// Why the tree did not do something.
#[derive(Debug)]
pub(super) enum Fault {
    Tree(lsm_tree::Error),
    /// It met something that it takes to be impossible.
    Panic(String),
}

/// Runs an operation of the tree.
pub(super) fn guarded<T>(operation: impl FnOnce() -> lsm_tree::Result<T>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(operation)) {
        Ok(outcome) => outcome.map_err(Fault::Tree),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
            Err(Fault::Panic(text.to_owned()))
        }
    }
}

impl Fault {
    /// Whether there was no room on the disk.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Tree(lsm_tree::Error::Io(error)) if is_full(error))
    }

    /// Whether stored bytes are not what was written, so that a search for the file makes sense.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Tree(lsm_tree::Error::Io(error)) => {
                matches!(
                    error.kind(),
                    ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::NotFound
                )
            }
            Self::Tree(_) | Self::Panic(_) => true,
        }
    }

    /// In words that say what to do.
    pub(super) fn into_error(self, path: &Path, verb: &str) -> Error {
        let is_damage = self.is_damage();
        match self {
            Self::Tree(lsm_tree::Error::Io(error)) if !is_damage => disk_error(path, verb, &error),
            Self::Tree(error) => damaged(path, &format!("{verb}: {error}")),
            Self::Panic(text) => damaged(path, &format!("{verb}: {text}")),
        }
    }
}

/// An error that names the file and says what to do.
pub(super) fn damaged(path: &Path, what: &str) -> Error {
    Error::Damaged(format!("{}: {what}: restore the folder from a backup", path.display()).into())
}

/// The file of the tree in `dir` that is not what was written, if one is found among the first gigabyte of those that
/// may hold `key`, or of all if there is none.
pub(super) fn find_damaged(tree: &AnyTree, key: Option<&[u8]>) -> Option<PathBuf> {
    // After a panic it may do so again.
    let version = guarded(|| Ok(tree.current_version())).ok()?;
    let tables = version
        .iter_tables()
        .filter(|table| key.is_none_or(|key| table.metadata.key_range.contains_key(key)));
    let tables = tables.map(|table| (table.path.to_path_buf(), table.checksum().into_u128()));
    let blobs = version.blob_files.iter().map(|file| (file.path().to_owned(), file.checksum().into_u128()));
    find_wrong(tables.chain(blobs))
}

/// The first file that does not have its sum.
fn find_wrong(files: impl IntoIterator<Item = (PathBuf, u128)>) -> Option<PathBuf> {
    let mut left = SEARCH_BYTES_MAX;
    files.into_iter().find(|(path, sum)| !has_sum(path, *sum, &mut left)).map(|(path, _)| path)
}

fn has_sum(path: &Path, expected: u128, left: &mut u64) -> bool {
    let mut sum = || -> io::Result<Option<u128>> {
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        let Some(rest) = left.checked_sub(len) else { return Ok(None) };
        *left = rest;
        let (mut sum, mut chunk) = (Xxh3::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut chunk)? {
                0 => return Ok(Some(sum.digest128())),
                read => sum.update(&chunk[..read]),
            }
        }
    };
    matches!(sum(), Ok(found) if found.is_none_or(|found| found == expected))
}

/// Opens the tree of `config` in `dir`, of which `files` are known.
pub(super) fn open(dir: &Path, config: Config, files: Files) -> Result<AnyTree> {
    guarded(|| config.open()).map_err(|fault| {
        let found = fault.is_damage().then(|| find_wrong(files)).flatten();
        fault.into_error(found.as_deref().unwrap_or(dir), "open")
    })
}

/// The files of a tree, each with its sum.
pub(super) type Files = Vec<(PathBuf, u128)>;

/// Checks which tables and value files the tree in `dir` consists of, and their lists of sections. `None` if there is
/// no tree.
///
/// # Errors
/// [`Error::Damaged`] with the name of the file.
pub(super) fn check(dir: &Path) -> Result<Option<Files>> {
    let current_path = dir.join("current");
    let current = match fs::read(&current_path) {
        Ok(current) => current,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let has_tables =
                fs::read_dir(dir.join("tables")).is_ok_and(|mut entries| entries.next().is_some());
            return if has_tables { Err(damaged(&current_path, "it is missing")) } else { Ok(None) };
        }
        Err(error) => return Err(disk_error(&current_path, "read", &error)),
    };
    let mut fields = &current[..];
    let (version, sum, kind) = match current.len() {
        25 => (fields.get_u64_le(), fields.get_u128_le(), fields.get_u8()),
        len => return Err(damaged(&current_path, &format!("it has {len} instead of 25 bytes"))),
    };
    let version_path = dir.join(format!("v{version}"));
    let bytes = match fs::read(&version_path) {
        Ok(bytes) if kind == 0 && xxh3_128(&bytes) == sum => bytes,
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(disk_error(&version_path, "read", &error));
        }
        _ => {
            let names = format!("it and {} do not agree", current_path.display());
            return Err(damaged(&version_path, &names));
        }
    };
    let wrong = || damaged(&version_path, "it is not readable");
    let list = sections(&version_path)?;
    let section = |name: &[u8]| {
        let (_, at, len) = list.iter().find(|(found, ..)| found == name)?;
        let at = usize::try_from(*at).ok()?;
        bytes.get(at..at.checked_add(usize::try_from(*len).ok()?)?)
    };
    let tables = section(b"tables").and_then(table_ids).ok_or_else(wrong)?;
    let blobs = section(b"blob_files").and_then(blob_ids).ok_or_else(wrong)?;
    let named = |folder: &str, ids: Vec<(u64, u128)>| {
        let dir = dir.join(folder);
        ids.into_iter().map(move |(id, sum)| (dir.join(id.to_string()), sum))
    };
    let files: Files = named("tables", tables).chain(named("blobs", blobs)).collect();
    files.iter().try_for_each(|(path, _)| sections(path).map(drop))?;
    Ok(Some(files))
}

fn table_ids(mut input: &[u8]) -> Option<Vec<(u64, u128)>> {
    let mut ids = Vec::new();
    for _ in 0..input.try_get_u8().ok()? {
        for _ in 0..input.try_get_u8().ok()? {
            for _ in 0..input.try_get_u32_le().ok()? {
                ids.push(id_and_sum(&mut input)?);
                input.try_get_u64_le().ok()?;
            }
        }
    }
    Some(ids)
}

fn blob_ids(mut input: &[u8]) -> Option<Vec<(u64, u128)>> {
    let mut ids = Vec::new();
    for _ in 0..input.try_get_u32_le().ok()? {
        ids.push(id_and_sum(&mut input)?);
    }
    Some(ids)
}

fn id_and_sum(input: &mut &[u8]) -> Option<(u64, u128)> {
    let (id, kind) = (input.try_get_u64_le().ok()?, input.try_get_u8().ok()?);
    (kind == 0).then_some((id, input.try_get_u128_le().ok()?))
}

type Section = (Vec<u8>, u64, u64);

/// The sections of a file: name, offset, length.
fn sections(path: &Path) -> Result<Vec<Section>> {
    match read_list(path) {
        Ok(Some(list)) => {
            parse_list(&list).ok_or_else(|| damaged(path, "its list of sections is not readable"))
        }
        Ok(None) => Err(damaged(path, "its end is not readable")),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => {
            Err(damaged(path, &error.to_string()))
        }
        Err(error) => Err(disk_error(path, "read", &error)),
    }
}

/// The list of sections, if its sum is right.
fn read_list(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = File::open(path)?;
    let Some(end) = file.metadata()?.len().checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact_at(&mut trailer, end)?;
    let Some(mut fields) = trailer.strip_prefix(b"SFA!\x01\0") else { return Ok(None) };
    let (sum, at) = (fields.get_u128_le(), fields.get_u64_le());
    let Some(len) = end.checked_sub(at).filter(|len| *len <= LIST_BYTES_MAX) else { return Ok(None) };
    let mut list = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut list, at)?;
    Ok((xxh3_128(&list) == sum).then_some(list))
}

fn parse_list(list: &[u8]) -> Option<Vec<Section>> {
    let mut input = list.strip_prefix(b"TOC!")?;
    let mut sections = Vec::new();
    for _ in 0..input.try_get_u32_le().ok()? {
        let (at, len) = (input.try_get_u64_le().ok()?, input.try_get_u64_le().ok()?);
        let name_len = input.try_get_u16_le().ok()?;
        let (name, rest) = input.split_at_checked(name_len.into())?;
        sections.push((name.to_vec(), at, len));
        input = rest;
    }
    Some(sections)
}
