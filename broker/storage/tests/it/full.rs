//! A disk without room, a folder that cannot be written. Mounts small file systems, for which it has to be root; where
//! it may not mount it says so, and the tests of `space.rs` and `sequencer.rs` remain.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use tempfile::TempDir;
use weir_env::clock::Clock;
use weir_storage::{EmbeddedOptions, EmbeddedStore, Error, Store};

use crate::embedded::{not_run, rows};

const MIB: u64 = 1 << 20;
const NOT_RUN: &str = "mounting a file system is not allowed here";

/// A file system in memory. Dropping it unmounts it.
struct Mount(TempDir);

impl Mount {
    fn new(mib: u64) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let size = format!("size={mib}m");
        let mounted = Self::run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs"], dir.path());
        mounted.then(|| Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(program: &str, words: &[&str], path: &Path) -> bool {
        let mut command = Command::new(program);
        let command = command.args(words).arg(path).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    fn is_read_only(&self, is_read_only: bool) {
        let option = if is_read_only { "remount,ro" } else { "remount,rw" };
        assert!(Self::run("mount", &["-o", option], self.path()), "{option}");
    }

    /// A file that takes room.
    fn ballast(&self, mib: u64) -> PathBuf {
        let path = self.path().join("ballast");
        fs::write(&path, vec![1; usize::try_from(mib * MIB).unwrap()]).unwrap();
        path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        Self::run("umount", &["-l"], self.path());
    }
}

fn open(dir: &Path, reserve_mib: u64) -> Result<EmbeddedStore, Error> {
    let options = EmbeddedOptions {
        write_buffer_bytes: MIB,
        reserve_bytes: reserve_mib * MIB,
        ..EmbeddedOptions::default()
    };
    EmbeddedStore::open(dir, &options, Clock::system())
}

async fn put(store: &EmbeddedStore, n: u32) -> Result<(), Error> {
    let mut tx = store.begin();
    tx.set(format!("row {n:05}").as_bytes(), &vec![n.to_be_bytes()[3]; 50_000]);
    tx.commit().await.map(drop)
}

async fn assert_all_there(store: &EmbeddedStore, acknowledged: &BTreeSet<u32>) {
    let found = rows(store, "row").await;
    let expected =
        acknowledged.iter().map(|n| (format!("row {n:05}").into_bytes(), vec![n.to_be_bytes()[3]; 50_000]));
    assert!(found.into_iter().eq(expected), "not what was acknowledged");
}

/// Writes until the disk takes no more, and returns the error.
async fn fill(store: &EmbeddedStore, acknowledged: &mut BTreeSet<u32>) -> Error {
    let first = acknowledged.last().map_or(0, |last| last + 1);
    for n in first..first + 5_000 {
        match put(store, n).await {
            Ok(()) => assert!(acknowledged.insert(n)),
            Err(error) => return error,
        }
    }
    panic!("the disk is never full");
}

/// There is no reserve: the operating system refuses. Nothing that was acknowledged is lost, and the same store goes on
/// when there is room.
#[tokio::test]
async fn a_full_disk_is_waited_out() {
    let Some(mount) = Mount::new(160) else { return not_run(NOT_RUN) };
    let (dir, mut acknowledged) = (mount.path().join("store"), BTreeSet::new());
    let store = open(&dir, 0).unwrap();
    let ballast = mount.ballast(40);
    let error = fill(&store, &mut acknowledged).await;
    assert!(matches!(&error, Error::Unavailable(why) if why.contains("make room on the disk")), "{error}");
    assert_all_there(&store, &acknowledged).await;
    assert_eq!(store.failed().now_or_never(), None);
    fs::remove_file(ballast).unwrap();
    // Tables that could not be written are tried again by themselves, which takes its time.
    let next = acknowledged.last().unwrap() + 1;
    for n in next..next + 20 {
        while let Err(error) = put(&store, n).await {
            assert!(matches!(error, Error::Unavailable(_)), "{error}");
            tokio::task::yield_now().await;
        }
        acknowledged.insert(n);
    }
    assert_all_there(&store, &acknowledged).await;
    store.close().await;
    drop(store);
    let store = open(&dir, 0).unwrap();
    assert_all_there(&store, &acknowledged).await;
    store.close().await;
}

/// The store stops before the disk is full, but for what makes room.
#[tokio::test]
async fn the_reserve_is_kept_for_what_frees_room() {
    let Some(mount) = Mount::new(160) else { return not_run(NOT_RUN) };
    let (dir, mut acknowledged) = (mount.path().join("store"), BTreeSet::new());
    let store = open(&dir, 60).unwrap();
    let ballast = mount.ballast(20);
    let error = fill(&store, &mut acknowledged).await.to_string();
    assert!(error.contains("disk full: ") && error.contains("MiB left of a reserve of 60 MiB"), "{error}");
    let stats = store.stats();
    assert_eq!(stats.refused_full.load(Ordering::Relaxed), 1);
    assert!(stats.disk_free_bytes.load(Ordering::Relaxed) < 60 * MIB);

    for n in acknowledged.clone().into_iter().take(20) {
        let mut tx = store.begin();
        tx.clear(format!("row {n:05}").as_bytes());
        tx.set(b"state", b"twenty are done");
        tx.commit().await.unwrap();
        acknowledged.remove(&n);
    }
    assert!(put(&store, 90_000).await.is_err());
    fs::remove_file(ballast).unwrap();
    put(&store, 90_000).await.unwrap();
    acknowledged.insert(90_000);
    assert_all_there(&store, &acknowledged).await;
    store.close().await;
}

/// Nobody makes room but the store itself: what is cleared is given back to the disk, although it is far less than a
/// write buffer and nothing else is written.
#[tokio::test]
async fn clears_alone_make_room() {
    let Some(mount) = Mount::new(160) else { return not_run(NOT_RUN) };
    let (dir, mut acknowledged) = (mount.path().join("store"), BTreeSet::new());
    let store = open(&dir, 60).unwrap();
    fill(&store, &mut acknowledged).await;
    mount.ballast(20);
    let kept = acknowledged.split_off(&100);
    assert!(kept.len() > 100);
    let mut tx = store.begin();
    tx.clear_range(b"row 00000", format!("row {:05}", kept.last().unwrap()).as_bytes());
    tx.commit().await.unwrap();
    let mut acknowledged = BTreeSet::from([*kept.last().unwrap(), 90_000]);
    while put(&store, 90_000).await.is_err() {
        tokio::task::yield_now().await;
    }
    acknowledged.insert(90_001);
    put(&store, 90_001).await.unwrap();
    assert_all_there(&store, &acknowledged).await;
    store.close().await;
}

#[tokio::test]
async fn a_read_only_folder_is_refused_with_words_that_help() {
    let Some(mount) = Mount::new(80) else { return not_run(NOT_RUN) };
    let dir = mount.path().join("store");
    let mut acknowledged = BTreeSet::from([1]);
    let store = open(&dir, 0).unwrap();
    put(&store, 1).await.unwrap();
    store.close().await;
    drop(store);
    mount.is_read_only(true);
    let refused = open(&dir, 0).unwrap_err().to_string();
    for word in [dir.to_str().unwrap(), "Read-only file system", "make the folder writable, then restart"] {
        assert!(refused.contains(word), "{refused}");
    }
    mount.is_read_only(false);
    let store = open(&dir, 0).unwrap();
    put(&store, 2).await.unwrap();
    acknowledged.insert(2);
    assert_all_there(&store, &acknowledged).await;
    store.close().await;
}
