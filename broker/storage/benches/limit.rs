//! The embedded engine against the disk: the same bytes with the same number of fdatasyncs, written by a plain loop into
//! a file that has its blocks. Rounds of both take turns, because a disk that others use changes from second to second.
//! Prints tables for `docs/benchmarks-storage.md`.
//!
//! `cargo bench -p weir-storage --bench limit [-- ROUNDS [TASKS BYTES]]`; `WEIR_BENCH_DIR` chooses the disk.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program that prints figures or dies")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{ConflictKind, EmbeddedOptions, EmbeddedStore, Store};

/// How long the store runs in each round.
const ROUND: Duration = Duration::from_millis(700);
/// The plain file is written again and again.
const PLAIN_BYTES: usize = 256 << 20;

/// What one round did.
#[derive(Clone, Copy)]
struct Round {
    batches: usize,
    bytes: usize,
    took: Duration,
    p50: Duration,
    p99: Duration,
}

impl Round {
    fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.took.as_secs_f64() / 1e6
    }
}

fn percentiles(mut took: Vec<Duration>) -> (Duration, Duration) {
    took.sort_unstable();
    (took[took.len() / 2], took[took.len() * 99 / 100])
}

/// A task that appends a record, replaces a small state and waits, as the owner of a shard does.
async fn appends(store: Arc<EmbeddedStore>, task: u64, first: u64, value: Arc<[u8]>) -> Vec<Duration> {
    let clock = Clock::system();
    let (started, mut took) = (clock.now(), Vec::new());
    while started.elapsed() < ROUND {
        let asked = clock.now();
        let n = first + took.len() as u64;
        let mut tx = store.begin();
        tx.set(&[&b"l"[..], &task.to_be_bytes(), &n.to_be_bytes()].concat(), &value);
        tx.set(&[&b"s"[..], &task.to_be_bytes()].concat(), &[7; 40]);
        tx.add_conflict_key(b"owner", ConflictKind::Read);
        tx.commit().await.unwrap();
        took.push(asked.elapsed());
    }
    took
}

fn store_round(
    runtime: &Runtime,
    store: &Arc<EmbeddedStore>,
    tasks: u64,
    round: u64,
    value: &Arc<[u8]>,
) -> Round {
    let stats = store.stats();
    let count = || (stats.batches.load(Ordering::Relaxed), stats.bytes.load(Ordering::Relaxed));
    let ((batches, bytes), started) = (count(), Clock::system().now());
    let mut set = JoinSet::new();
    for task in 0..tasks {
        set.spawn_on(appends(Arc::clone(store), task, round << 32, Arc::clone(value)), runtime.handle());
    }
    let latencies = runtime.block_on(set.join_all()).concat();
    let took = started.elapsed();
    let (p50, p99) = percentiles(latencies);
    let (batches, bytes) = (count().0 - batches, count().1 - bytes);
    Round { batches: batches.try_into().unwrap(), bytes: bytes.try_into().unwrap(), took, p50, p99 }
}

/// The same bytes and syncs.
fn plain_round(file: &File, at: &mut usize, of: &Round, random: &[u8]) -> Round {
    let clock = Clock::system();
    let len = of.bytes / of.batches;
    let (started, mut latencies) = (clock.now(), Vec::with_capacity(of.batches));
    for _ in 0..of.batches {
        let asked = clock.now();
        if *at + len > PLAIN_BYTES {
            *at = 0;
        }
        file.write_all_at(&random[..len], *at as u64).unwrap();
        file.sync_data().unwrap();
        *at += len;
        latencies.push(asked.elapsed());
    }
    let took = started.elapsed();
    let (p50, p99) = percentiles(latencies);
    Round { bytes: len * of.batches, took, p50, p99, ..*of }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn compare(base: &Path, plain: &File, tasks: usize, bytes: usize, rounds: usize) {
    let tasks = tasks as u64;
    let dir = base.join(format!("limit-{tasks}-{bytes}"));
    let _ = std::fs::remove_dir_all(&dir);
    let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let store = Arc::new(EmbeddedStore::open(&dir, &EmbeddedOptions::default(), Clock::system()).unwrap());
    let seed = Seed::fixed(tasks);
    let random: Vec<u8> = (0..2 << 20).flat_map(|_| seed.next_u64().to_be_bytes()).collect();
    let value: Arc<[u8]> = random[..bytes].into();
    let mut at = 0;
    let pairs: Vec<(Round, Round)> = (0..rounds as u64 + 1)
        .map(|round| {
            let store_round = store_round(&runtime, &store, tasks, round, &value);
            (store_round, plain_round(plain, &mut at, &store_round, &random))
        })
        .skip(1)
        .collect();
    runtime.block_on(store.close());
    let _ = std::fs::remove_dir_all(&dir);
    let each = |of: fn(&(Round, Round)) -> f64| median(pairs.iter().map(of).collect());
    println!(
        "| {tasks} | {bytes} | {:.0} | {:.0} | {:.1} | {:.1} | {:.0} % | {:.0} | {:.0} | {:.2} | {:.0} |",
        each(|(store, _)| store.batches as f64 / store.took.as_secs_f64()),
        each(|(store, _)| (store.bytes / store.batches) as f64 / 1e3),
        each(|(store, _)| store.megabytes_per_second()),
        each(|(_, plain)| plain.megabytes_per_second()),
        each(|(store, plain)| 100.0 * store.megabytes_per_second() / plain.megabytes_per_second()),
        each(|(store, _)| store.p50.as_secs_f64() * 1e6),
        each(|(_, plain)| plain.p50.as_secs_f64() * 1e6),
        each(|(store, plain)| store.p50.as_secs_f64() / plain.p50.as_secs_f64()),
        each(|(store, _)| store.p99.as_secs_f64() * 1e6),
    );
}

fn main() {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let mut number = || words.next().and_then(|word| word.parse().ok());
    let rounds = number().unwrap_or(7);
    let only = number().zip(number());
    let base = std::env::var_os("WEIR_BENCH_DIR").map_or(env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    std::fs::create_dir_all(&base).unwrap();
    let path = base.join("plain");
    let plain = File::create(&path).unwrap();
    for chunk in 0..PLAIN_BYTES >> 20 {
        plain.write_all_at(&vec![0; 1 << 20], (chunk << 20) as u64).unwrap();
    }
    plain.sync_all().unwrap();
    println!("Medians of {rounds} pairs of rounds.");
    println!(
        "| tasks | value B | batches/s | kB a batch | store MB/s | plain MB/s | of plain | commit p50 us | plain p50 us | \
         times plain | commit p99 us |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let all = [104, 1_000, 60_000].into_iter().flat_map(|bytes| [1, 64, 256].map(|tasks| (tasks, bytes)));
    for (tasks, bytes) in only.map_or_else(|| all.collect(), |only| vec![only]) {
        compare(&base, &plain, tasks, bytes, rounds);
    }
    drop(plain);
    std::fs::remove_file(path).unwrap();
}
