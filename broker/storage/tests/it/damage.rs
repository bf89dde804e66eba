//! Bits that flip and bytes that are lost in any file of a store: what was acknowledged is there, or an error says that
//! it isn't. Never wrong, never silently missing.
//!
//! Each seed damages one place of one file of a copy of a store with journal, tables and value files.
//! `WEIR_DAMAGE_SEED=n` runs one seed alone, `WEIR_DAMAGE_RUNS=n` more of them.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{EmbeddedOptions, EmbeddedStore, Error, Isolation, RangeQuery, Store};

use crate::embedded::crash;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

const RUNS: u64 = 300;

/// Small, so that a few megabytes make tables.
fn options() -> EmbeddedOptions {
    EmbeddedOptions { write_buffer_bytes: 1 << 20, ..EmbeddedOptions::default() }
}

fn open(dir: &Path) -> Result<EmbeddedStore, Error> {
    EmbeddedStore::open(dir, &options(), Clock::system())
}

/// A store with everything that one can have: several tables, value files, a journal with commits that are in no table.
async fn build(dir: &Path, seed: &Seed) -> Rows {
    let (store, mut rows) = (open(dir).unwrap(), Rows::new());
    for n in 0..260u64 {
        let mut tx = store.begin();
        for m in 0..20 {
            let key = format!("row {:04} {m}", seed.below(400)).into_bytes();
            let len = if m == 0 { 20_000 } else { 40 + seed.below(200) };
            let value: Vec<u8> = (0..len).map(|_| seed.next_u64().to_be_bytes()[0]).collect();
            tx.set(&key, &value);
            rows.insert(key, value);
        }
        if n % 13 == 0 {
            let key = format!("row {:04}", seed.below(400)).into_bytes();
            let end = [&key[..], b"~"].concat();
            tx.clear_range(&key, &end);
            rows.retain(|found, _| *found < key || *found >= end);
        }
        tx.commit().await.unwrap();
    }
    store.close().await;
    rows
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => copy_file(&entry.path(), &target),
        }
    }
}

/// Keeps holes, of which a journal has many.
fn copy_file(from: &Path, to: &Path) {
    use std::os::unix::fs::FileExt;
    let bytes = fs::read(from).unwrap();
    let file = fs::File::create(to).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (at, chunk) in (0u64..).step_by(4_096).zip(bytes.chunks(4_096)) {
        if chunk.iter().any(|byte| *byte != 0) {
            file.write_all_at(chunk, at).unwrap();
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(self::files(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files.sort();
    files
}

/// The kind of a file: its folder, or its name if there is only one.
fn kind(path: &Path) -> String {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    match name(path.parent().unwrap()).as_str() {
        folder @ ("tables" | "blobs" | "journal") => folder.to_owned(),
        _ if name(path).starts_with('v') => "version".to_owned(),
        _ => name(path),
    }
}

#[derive(Debug)]
enum Damage {
    Flip(usize, u8),
    Zero(Range<usize>),
    Cut(usize),
}

/// Where something is: behind it only zeroes.
fn written(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1)
}

fn damage(path: &Path, seed: &Seed) -> Damage {
    let mut bytes = fs::read(path).unwrap();
    let len = written(&bytes).max(1);
    let below = |bound: usize| usize::try_from(seed.below(bound as u64)).unwrap();
    // Half of the places are near the end, where the parts are that tell what the rest means.
    let at = if seed.below(2) == 0 { below(len) } else { len - 1 - below(len.min(600)) };
    let damage = match seed.below(4) {
        0 => Damage::Zero(at..(at + 1 + below(5_000)).min(bytes.len())),
        1 => Damage::Cut(at),
        _ => Damage::Flip(at, 1 << seed.below(8)),
    };
    match &damage {
        Damage::Flip(at, bit) => match bytes.get_mut(*at) {
            Some(byte) => *byte ^= bit,
            None => bytes.push(*bit),
        },
        Damage::Zero(range) => bytes[range.clone()].fill(0),
        Damage::Cut(len) => bytes.truncate(*len),
    }
    fs::write(path, bytes).unwrap();
    damage
}

/// What is in the store, read both ways. Reads that fail say that a file is damaged.
async fn read(store: &EmbeddedStore, keys: impl Iterator<Item = &Vec<u8>>) -> Result<Rows, Error> {
    let (mut found, mut begin) = (Rows::new(), Vec::new());
    loop {
        let query = RangeQuery::new(begin.clone(), [0xff]).limit(100);
        let page = store.begin().get_range(query, Isolation::Snapshot).await?;
        found.extend(page.pairs.iter().map(|(key, value)| (key.to_vec(), value.to_vec())));
        match page.pairs.last() {
            Some((key, _)) if page.more => begin = [key, &[0][..]].concat(),
            _ => break,
        }
    }
    for key in keys.step_by(37) {
        let value = store.begin().get(key, Isolation::Snapshot).await?;
        assert_eq!(value.as_deref(), found.get(key).map(Vec::as_slice), "a scan and a get differ");
    }
    Ok(found)
}

/// Opens the copy and compares it; returns what kind of outcome it was. `may_lack_last` if the end of the journal may
/// have been lost in a crash.
async fn judge(dir: &Path, rows: &Rows, may_lack_last: Option<&Rows>) -> Result<&'static str, Error> {
    let store = open(dir)?;
    let found = read(&store, rows.keys()).await;
    store.close().await;
    let found = found?;
    match may_lack_last {
        Some(before) if found == *before => Ok("last commit gone"),
        _ => {
            assert!(found == *rows, "{} rows instead of {}, or others", found.len(), rows.len());
            Ok("all there")
        }
    }
}

#[tokio::test]
async fn damage_is_never_silent() {
    let chosen = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seeds = match chosen("WEIR_DAMAGE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..chosen("WEIR_DAMAGE_RUNS").unwrap_or(RUNS),
    };
    let original = TempDir::new().unwrap();
    let rows = build(original.path(), &Seed::fixed(1)).await;
    // Then one more commit, the last, so that a crash may take it.
    let store = open(original.path()).unwrap();
    let mut tx = store.begin();
    tx.set(b"last", &[7; 300]);
    tx.commit().await.unwrap();
    store.close().await;
    let mut all = rows.clone();
    all.insert(b"last".to_vec(), vec![7; 300]);

    let mut kinds: BTreeMap<String, BTreeMap<&str, u32>> = BTreeMap::new();
    for (kind, files) in by_kind(original.path()) {
        assert!(!files.is_empty());
        kinds.insert(kind, BTreeMap::new());
    }
    for kind in ["FORMAT", "lock", "stopped", "journal", "tables", "blobs", "current", "version"] {
        assert!(kinds.contains_key(kind), "the store has no {kind}: {:?}", kinds.keys());
    }
    for number in seeds {
        let seed = Seed::fixed(number);
        let dir = TempDir::new().unwrap();
        copy(original.path(), dir.path());
        let is_crash = seed.below(3) == 0;
        if is_crash {
            crash(dir.path());
        }
        let by_kind = by_kind(dir.path());
        let kind_at = usize::try_from(seed.below(by_kind.len() as u64)).unwrap();
        let (kind, files) = by_kind.into_iter().nth(kind_at).unwrap();
        let path = &files[usize::try_from(seed.below(files.len() as u64)).unwrap()];
        let damage = damage(path, &seed);
        let what = format!("seed {number}: {damage:?} of {}, after a crash: {is_crash}", path.display());
        println!("{what}");
        let outcome = match judge(dir.path(), &all, is_crash.then_some(&rows)).await {
            Ok(outcome) => outcome,
            Err(Error::Damaged(why)) => {
                let names_it = why.contains(path.to_str().unwrap()) || kind == "current" || kind == "version";
                assert!(names_it, "{what}: {why}");
                "named"
            }
            Err(other) => panic!("{what}: {other}"),
        };
        *kinds.get_mut(&kind).unwrap().entry(outcome).or_default() += 1;
    }
    println!("{kinds:#?}");
}

/// Compaction meets what nobody read: no commit is taken any more, and the reason names the file.
#[tokio::test]
async fn damage_that_compaction_meets_is_told() {
    let dir = TempDir::new().unwrap();
    build(dir.path(), &Seed::fixed(2)).await;
    let tables = by_kind(dir.path()).remove("tables").unwrap();
    for path in &tables {
        // Among the rows; the first block is read at the start.
        let mut bytes = fs::read(path).unwrap();
        let at = bytes.len() / 3;
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    let store = open(dir.path()).unwrap();
    let mut refused = None;
    for n in 0..2_000u32 {
        let mut tx = store.begin();
        tx.set(format!("row {:04} {n}", n % 400).as_bytes(), &vec![7; 20_000]);
        refused = tx.commit().await.err();
        if refused.is_some() {
            break;
        }
    }
    assert!(matches!(refused, Some(Error::UnknownOpen)), "{refused:?}");
    let why = store.failed().await;
    assert!(tables.iter().any(|path| why.contains(path.to_str().unwrap())), "{why}");
    assert!(why.contains("restore the folder from a backup"), "{why}");
    store.close().await;
}

fn by_kind(dir: &Path) -> BTreeMap<String, Vec<PathBuf>> {
    let mut kinds: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in files(dir) {
        kinds.entry(kind(&path)).or_default().push(path);
    }
    kinds
}
