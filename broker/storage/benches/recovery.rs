//! How long the embedded store takes to start on a large folder: after an orderly stop and after a crash, with a full
//! journal. Fills the folder with segments of 60 kB and small rows first, removes it after.
//!
//! `cargo bench -p weir-storage --bench recovery [-- GIGABYTES]`; `WEIR_BENCH_DIR` chooses the disk, which needs half as
//! much again. Without `WEIR_BENCH_COLD=1` (as root: drops the page cache before each start) the cache is warm.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program that prints figures or dies")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::task::JoinSet;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{EmbeddedOptions, EmbeddedStore, Isolation, Store};

const TASKS: u64 = 16;

fn open(dir: &Path) -> EmbeddedStore {
    EmbeddedStore::open(dir, &EmbeddedOptions::default(), Clock::system()).unwrap()
}

/// A task's share: per transaction one segment of 60 kB and ten rows of 1 kB, in keys of its own.
async fn fill(store: Arc<EmbeddedStore>, task: u64, transactions: u64, random: Arc<[u8]>) {
    for n in 0..transactions {
        let mut tx = store.begin();
        let at = usize::try_from((n * 7_919 + task * 104_729) % 1_000_000).unwrap();
        tx.set(&[&b"l"[..], &task.to_be_bytes(), &n.to_be_bytes()].concat(), &random[at..at + 60_000]);
        for row in 0..10 {
            let key = [&b"u"[..], &task.to_be_bytes(), &(n * 10 + row).to_be_bytes()].concat();
            let at = at + usize::try_from(row).unwrap() * 1_000;
            tx.set(&key, &random[at..at + 1_000]);
        }
        tx.commit().await.unwrap();
    }
}

fn stored_bytes(dir: &Path) -> (u64, usize) {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.fold((0, 0), |(bytes, files), entry| match entry.metadata().unwrap() {
        meta if meta.is_dir() => {
            let (more, inside) = stored_bytes(&entry.path());
            (bytes + more, files + inside)
        }
        meta => (bytes + meta.len(), files + 1),
    })
}

fn start(dir: &Path, what: &str) -> EmbeddedStore {
    if std::env::var_os("WEIR_BENCH_COLD").is_some() {
        rustix::fs::sync();
        std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    }
    let started = Clock::system().now();
    let store = open(dir);
    let opened = started.elapsed();
    let runtime = Builder::new_current_thread().build().unwrap();
    let key = [&b"l"[..], &3u64.to_be_bytes(), &5u64.to_be_bytes()].concat();
    let found = runtime.block_on(async { store.begin().get(&key, Isolation::Snapshot).await.unwrap() });
    assert_eq!(found.map(|value| value.len()), Some(60_000));
    let read = started.elapsed();
    runtime.block_on(async {
        let mut tx = store.begin();
        tx.set(b"started", b"x");
        tx.commit().await.unwrap();
    });
    let millis = |took: Duration| took.as_secs_f64() * 1e3;
    println!("| {what} | {:.0} | {:.0} | {:.0} |", millis(opened), millis(read), millis(started.elapsed()),);
    store
}

fn main() {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let gigabytes: f64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(10.0);
    let base = std::env::var_os("WEIR_BENCH_DIR").map_or(env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    let dir = base.join("recovery");
    let _ = std::fs::remove_dir_all(&dir);
    let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let (store, clock, seed) = (Arc::new(open(&dir)), Clock::system(), Seed::fixed(1));
    let random: Arc<[u8]> = (0..140_000).flat_map(|_| seed.next_u64().to_be_bytes()).collect();
    let transactions = (gigabytes * 1e9 / 70_000.0 / TASKS as f64).ceil();
    let started = clock.now();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        // The figure is positive and far below 2^53.
        let transactions = format!("{transactions}").parse().unwrap();
        tasks.spawn_on(fill(Arc::clone(&store), task, transactions, Arc::clone(&random)), runtime.handle());
    }
    runtime.block_on(tasks.join_all());
    let took = started.elapsed();
    // As a crash leaves it: the mark of an orderly stop is removed below.
    runtime.block_on(store.close());
    drop(store);
    let (bytes, files) = stored_bytes(&dir);
    println!("{:.1} GB in {files} files, filled in {:.0} s", bytes as f64 / 1e9, took.as_secs_f64());
    println!("| start after | open ms | first read ms | first commit ms |");
    println!("|---|---|---|---|");
    std::fs::remove_file(dir.join("stopped")).unwrap();
    let store = start(&dir, "a crash, the journal full");
    runtime.block_on(store.close());
    drop(store);
    let store = start(&dir, "an orderly stop");
    runtime.block_on(store.close());
    drop(store);
    std::fs::remove_dir_all(&dir).unwrap();
}
