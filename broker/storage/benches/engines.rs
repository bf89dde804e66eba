//! Compares the crates that could carry the embedded engine under its own write pattern: many tasks with one
//! small append each, gathered into one atomic batch with one fdatasync, one batch in flight. Prints tables
//! for `docs/benchmarks-storage.md`.
//!
//! `cargo bench -p weir-storage --bench engines [-- SECONDS [ENGINE]]`; `WEIR_BENCH_DIR` chooses the disk.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program that prints figures or dies")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fjall::{Readable, config::CompressionPolicy};
use redb::{Durability, ReadableDatabase, TableDefinition};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{ConflictKind, EmbeddedOptions, EmbeddedStore, SharedStore, Store};

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;
type Job = (Pairs, oneshot::Sender<()>);

const CACHE_BYTES: usize = 256 << 20;

trait Engine: Send + 'static {
    fn open(dir: &Path) -> Self
    where
        Self: Sized;
    fn apply(&mut self, batch: &[Job]);
    fn get(&self, key: &[u8]) -> usize;
    fn scan(&self, begin: &[u8], end: &[u8]) -> usize;
}

struct Fjall {
    db: fjall::Database,
    keys: fjall::Keyspace,
}

impl Engine for Fjall {
    fn open(dir: &Path) -> Self {
        let db = fjall::Database::builder(dir)
            .cache_size(CACHE_BYTES as u64)
            .manual_journal_persist(true)
            .journal_compression(fjall::CompressionType::None)
            .open()
            .unwrap();
        let options = || {
            let large_values_apart = fjall::KvSeparationOptions::default().separation_threshold(4_096);
            fjall::KeyspaceCreateOptions::default()
                .data_block_compression_policy(CompressionPolicy::disabled())
                .with_kv_separation(Some(large_values_apart.compression(fjall::CompressionType::None)))
        };
        let keys = db.keyspace("data", options).unwrap();
        Self { db, keys }
    }

    fn apply(&mut self, batch: &[Job]) {
        let mut writes = self.db.batch().durability(Some(fjall::PersistMode::SyncData));
        for (key, value) in batch.iter().flat_map(|(pairs, _)| pairs) {
            writes.insert(&self.keys, key.as_slice(), value.as_slice());
        }
        writes.commit().unwrap();
    }

    fn get(&self, key: &[u8]) -> usize {
        self.db.snapshot().get(&self.keys, key).unwrap().map_or(0, |value| sum(&value))
    }

    fn scan(&self, begin: &[u8], end: &[u8]) -> usize {
        let pairs = self.db.snapshot().range(&self.keys, begin..end);
        pairs.map(|pair| sum(&pair.into_inner().unwrap().1)).sum()
    }
}

/// The length of a value of which every cache line was touched.
fn sum(value: &[u8]) -> usize {
    std::hint::black_box(value.iter().step_by(64).map(|byte| usize::from(*byte)).sum::<usize>());
    value.len()
}

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("data");

struct Redb(redb::Database);

impl Engine for Redb {
    fn open(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let db = redb::Database::builder().set_cache_size(CACHE_BYTES).create(dir.join("data.redb")).unwrap();
        let init = db.begin_write().unwrap();
        drop(init.open_table(TABLE).unwrap());
        init.commit().unwrap();
        Self(db)
    }

    fn apply(&mut self, batch: &[Job]) {
        let mut writes = self.0.begin_write().unwrap();
        writes.set_durability(Durability::Immediate).unwrap();
        {
            let mut table = writes.open_table(TABLE).unwrap();
            for (key, value) in batch.iter().flat_map(|(pairs, _)| pairs) {
                table.insert(key.as_slice(), value.as_slice()).unwrap();
            }
        }
        writes.commit().unwrap();
    }

    fn get(&self, key: &[u8]) -> usize {
        let table = self.0.begin_read().unwrap().open_table(TABLE).unwrap();
        table.get(key).unwrap().map_or(0, |value| sum(value.value()))
    }

    fn scan(&self, begin: &[u8], end: &[u8]) -> usize {
        let table = self.0.begin_read().unwrap().open_table(TABLE).unwrap();
        let pairs = table.range(begin..end).unwrap();
        pairs.map(|pair| sum(pair.unwrap().1.value())).sum()
    }
}

/// The committer: one batch at a time of whatever has come in meanwhile.
fn commit_batches<E: Engine>(engine: &mut E, mut jobs: mpsc::Receiver<Job>) -> u64 {
    let mut batches = 0;
    while let Some(first) = jobs.blocking_recv() {
        let mut batch = vec![first];
        while let Ok(job) = jobs.try_recv() {
            batch.push(job);
        }
        engine.apply(&batch);
        batches += 1;
        for (_, done) in batch {
            done.send(()).unwrap();
        }
    }
    batches
}

fn append_key(task: u64, n: u64) -> Vec<u8> {
    [&b"l"[..], &task.to_be_bytes(), &n.to_be_bytes()].concat()
}

/// Where a task's appends go.
#[derive(Clone)]
enum Target {
    Engine(mpsc::Sender<Job>),
    Store(SharedStore),
}

impl Target {
    async fn commit(&self, pairs: Pairs) {
        match self {
            Self::Engine(jobs) => {
                let (done_tx, done_rx) = oneshot::channel();
                jobs.send((pairs, done_tx)).await.unwrap();
                done_rx.await.unwrap();
            }
            Self::Store(store) => {
                let mut tx = store.begin();
                pairs.iter().for_each(|(key, value)| tx.set(key, value));
                tx.add_conflict_key(b"owner", ConflictKind::Read);
                tx.commit().await.unwrap();
            }
        }
    }
}

async fn appends(task: u64, bytes: usize, target: Target, time: Duration) -> (u64, Vec<Duration>) {
    let (clock, seed) = (Clock::system(), Seed::fixed(task));
    let started = clock.now();
    let mut took = Vec::new();
    while started.elapsed() < time {
        let n = took.len() as u64;
        let value: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| seed.next_u64().to_be_bytes()).collect();
        let state = ([&b"s"[..], &task.to_be_bytes()].concat(), vec![7; 40]);
        let asked = clock.now();
        target.commit(vec![(append_key(task, n), value), state]).await;
        took.push(asked.elapsed());
    }
    (task, took)
}

fn written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok()).unwrap_or(0)
}

fn stored_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| match entry.metadata().unwrap() {
            meta if meta.is_dir() => stored_bytes(&entry.path()),
            meta => meta.blocks() * 512,
        })
        .sum()
}

fn run<E: Engine>(name: &str, base: &Path, tasks: u64, bytes: usize, time: Duration) {
    let dir = base.join(format!("{name}-{tasks}-{bytes}"));
    let _ = std::fs::remove_dir_all(&dir);
    let mut engine = E::open(&dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let (jobs_tx, jobs_rx) = mpsc::channel(1024);
    let written = written_bytes();
    let committer = runtime.spawn_blocking(move || (commit_batches(&mut engine, jobs_rx), engine));
    let load = Load::run(&runtime, Target::Engine(jobs_tx), tasks, bytes, time);
    let (batches, engine) = runtime.block_on(committer).unwrap();
    load.print(name, batches, written_bytes() - written, stored_bytes(&dir));
    let counts = load.counts;
    if bytes > 10_000 && tasks > 1 {
        reads(name, engine, &dir, &counts);
    }
    let _ = std::fs::remove_dir_all(&dir);
}

/// The same load through the embedded store itself, fence included.
fn run_store(base: &Path, tasks: u64, bytes: usize, time: Duration) {
    let dir = base.join(format!("store-{tasks}-{bytes}"));
    let _ = std::fs::remove_dir_all(&dir);
    let store = EmbeddedStore::open(&dir, &EmbeddedOptions::default(), Clock::system()).unwrap();
    let (stats, store) = (store.stats(), Arc::new(store));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let written = written_bytes();
    let load = Load::run(&runtime, Target::Store(Arc::<EmbeddedStore>::clone(&store)), tasks, bytes, time);
    let batches = stats.batches.load(Ordering::Relaxed);
    load.print("weir", batches, written_bytes() - written, stored_bytes(&dir));
    runtime.block_on(store.close());
    let _ = std::fs::remove_dir_all(&dir);
    let synced = stats.sync_micros.load(Ordering::Relaxed) as f64 / batches as f64;
    let mean = load.latencies.iter().sum::<Duration>().as_secs_f64() * 1e6 / load.latencies.len() as f64;
    if tasks == 1 {
        println!("weir, one task: a commit takes {mean:.0} us, of which {synced:.0} us in the engine's sync");
    }
}

/// What the tasks saw.
struct Load {
    /// Appends of each task.
    counts: Vec<u64>,
    latencies: Vec<Duration>,
    took: f64,
    payload: f64,
}

impl Load {
    fn run(runtime: &Runtime, target: Target, tasks: u64, bytes: usize, time: Duration) -> Self {
        let mut set = JoinSet::new();
        let started = Clock::system().now();
        for task in 0..tasks {
            set.spawn_on(appends(task, bytes, target.clone(), time), runtime.handle());
        }
        drop(target);
        let mut per_task = runtime.block_on(set.join_all());
        let took = started.elapsed().as_secs_f64();
        per_task.sort_unstable_by_key(|(task, _)| *task);
        let counts = per_task.iter().map(|(_, took)| took.len() as u64).collect();
        let mut latencies: Vec<Duration> = per_task.into_iter().flat_map(|(_, took)| took).collect();
        latencies.sort_unstable();
        let payload = latencies.len() as f64 * (bytes + 17 + 49) as f64;
        Self { counts, latencies, took, payload }
    }

    fn print(&self, name: &str, batches: u64, written: u64, stored: u64) {
        let Self { counts, latencies, took, payload } = self;
        let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        println!(
            "| {name} | {} | {:.0} | {:.0} | {:.0} | {:.1} | {:.2} | {:.2} | {:.1} | {:.1} |",
            counts.len(),
            payload / latencies.len() as f64 - 66.0,
            batches as f64 / took,
            latencies.len() as f64 / took,
            payload / took / 1e6,
            at(50),
            at(99),
            written as f64 / payload,
            stored as f64 / payload,
        );
    }
}

fn reads<E: Engine>(name: &str, engine: E, dir: &Path, counts: &[u64]) {
    let (clock, seed) = (Clock::system(), Seed::fixed(1));
    drop(engine);
    let started = clock.now();
    let engine = E::open(dir);
    let reopened = started.elapsed();
    let tasks: Vec<(u64, u64)> = (0u64..).zip(counts.iter().copied()).collect();
    let started = clock.now();
    let scanned: usize =
        (0u64..).zip(counts).map(|(t, n)| engine.scan(&append_key(t, 0), &append_key(t, *n))).sum();
    let scan = started.elapsed().as_secs_f64();
    let started = clock.now();
    let points = 20_000;
    for n in 0..points {
        let (task, count) = tasks[n % tasks.len()];
        let found = engine.get(&append_key(task, seed.below(count)));
        assert!(found > 0, "an acknowledged append is missing");
    }
    let point = started.elapsed();
    println!(
        "reads of {name}: reopen {:.0} ms, {:.0} point reads/s, scan {:.0} MB/s ({:.0} MB)",
        reopened.as_secs_f64() * 1e3,
        points as f64 / point.as_secs_f64(),
        scanned as f64 / scan / 1e6,
        scanned as f64 / 1e6,
    );
}

/// What the disk itself can do: an append of 4 kB and fdatasync, again and again.
fn sync_alone(base: &Path) {
    use std::io::Write;
    let clock = Clock::system();
    let path = base.join("sync-alone");
    let mut file = std::fs::File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    file.sync_all().unwrap();
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..2_000 {
        let started = clock.now();
        file.write_all(&[7; 4096]).unwrap();
        file.sync_data().unwrap();
        took.push(started.elapsed());
    }
    took.sort_unstable();
    println!("fdatasync after 4 kB: p50 {:?}, p99 {:?}", took[1_000], took[1_980]);
    std::fs::remove_file(path).unwrap();
}

fn main() {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let time = Duration::from_secs(words.next().and_then(|word| word.parse().ok()).unwrap_or(5));
    let only = words.next();
    let base = std::env::var_os("WEIR_BENCH_DIR").map_or(env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    let base = Arc::<Path>::from(base.join("engines"));
    std::fs::create_dir_all(&base).unwrap();
    sync_alone(&base);
    println!(
        "| engine | tasks | value B | batches/s | records/s | MB/s | p50 ms | p99 ms | written x | on disk x |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (tasks, bytes) in [(1, 104), (1, 1_000), (1, 60_000), (128, 104), (128, 1_000), (128, 60_000)] {
        if only.as_deref().is_none_or(|only| only == "fjall") {
            run::<Fjall>("fjall", &base, tasks, bytes, time);
        }
        if only.as_deref().is_none_or(|only| only == "redb") {
            run::<Redb>("redb", &base, tasks, bytes, time);
        }
        if only.as_deref().is_none_or(|only| only == "weir") {
            run_store(&base, tasks, bytes, time);
        }
    }
}
