//! Backups of a store that others write to at full speed: they show one moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use tokio::task::JoinSet;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::backup::{Backup, BackupReader};
use weir_storage::{
    EmbeddedOptions, EmbeddedStore, Error, MemoryStore, RangeQuery, SharedStore, Versionstamp, prefix_end,
    snapshot,
};

/// Keys that a writer goes round in.
const KEYS: u64 = 500;
/// Commits there are at least before, while and after a backup is made.
const COMMITS: u64 = 300;

/// What a writer has left after its commit `n`: each key has the last number that was written to it; a tenth of all
/// commits clear the half of them; `last` tells `n`.
fn model(n: u64) -> BTreeMap<Vec<u8>, u64> {
    let mut keys = BTreeMap::new();
    for n in 1..=n {
        step(n, &mut |key, value| _ = keys.insert(key, value));
        if n.is_multiple_of(10) {
            keys = model_after_clear(n, keys);
        }
    }
    keys
}

fn key(n: u64) -> Vec<u8> {
    [b"k".as_slice(), &(n * 7 % KEYS).to_be_bytes()].concat()
}

fn step(n: u64, set: &mut dyn FnMut(Vec<u8>, u64)) {
    set(key(n), n);
    set(key(n + 3), n);
    set(b"last".to_vec(), n);
}

fn cleared(n: u64) -> (Vec<u8>, Vec<u8>) {
    let begin = [b"k".as_slice(), &(n % KEYS).to_be_bytes()].concat();
    let end = [b"k".as_slice(), &(n % KEYS + KEYS / 2).to_be_bytes()].concat();
    (begin, end)
}

fn model_after_clear(n: u64, mut keys: BTreeMap<Vec<u8>, u64>) -> BTreeMap<Vec<u8>, u64> {
    let (begin, end) = cleared(n);
    keys.retain(|key, _| *key < begin || *key >= end);
    keys
}

/// Commits one step after the other until it is told to stop.
async fn write(store: SharedStore, done: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let n = done.load(Ordering::Relaxed) + 1;
        let mut tx = store.begin();
        step(n, &mut |key, value| {
            // Large enough for several chunks.
            let padded = [value.to_be_bytes().as_slice(), &[b'x'; 5_000]].concat();
            tx.set(&key, &padded);
        });
        if n.is_multiple_of(10) {
            let (begin, end) = cleared(n);
            tx.clear_range(&begin, &end);
        }
        tx.commit().await.unwrap();
        done.store(n, Ordering::Relaxed);
    }
}

async fn reaches(done: &AtomicU64, n: u64) {
    while done.load(Ordering::Relaxed) < n {
        tokio::task::yield_now().await;
    }
}

fn pairs_in(bytes: &[u8]) -> Vec<(Bytes, Bytes)> {
    let mut reader = BackupReader::open(bytes).unwrap();
    let mut pairs = Vec::new();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        pairs.extend(chunk);
    }
    pairs
}

async fn backed_up_under_load(store: SharedStore) {
    let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut writer = JoinSet::new();
    writer.spawn(write(Arc::clone(&store), Arc::clone(&done), Arc::clone(&stop)));
    reaches(&done, COMMITS).await;

    let before = done.load(Ordering::Relaxed);
    let mut backup = Backup::begin(&store, "test", 0).await.unwrap();
    let mut bytes = Vec::new();
    let (mut parts, mut seen) = (0, before);
    while let Some(part) = backup.next().await.unwrap() {
        bytes.extend_from_slice(&part);
        parts += 1;
        // The writer is busy between any two parts.
        seen = done.load(Ordering::Relaxed).max(seen) + COMMITS / 10;
        reaches(&done, seen).await;
    }
    drop(backup);
    stop.store(true, Ordering::Relaxed);
    writer.join_all().await;
    let after = done.load(Ordering::Relaxed);
    assert!(parts > 3, "{parts} parts");

    let pairs = pairs_in(&bytes);
    let number = |value: &Bytes| u64::from_be_bytes(value[..8].try_into().unwrap());
    let found: BTreeMap<Vec<u8>, u64> =
        pairs.iter().map(|(key, value)| (key.to_vec(), number(value))).collect();
    let n = found[b"last".as_slice()];
    assert!((before..after).contains(&n), "as of {n}, between {before} and {after}");
    assert_eq!(found, model(n));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_memory_while_others_write() {
    backed_up_under_load(Arc::new(MemoryStore::new(Clock::system()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_the_embedded_engine_while_others_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), &EmbeddedOptions::default(), Clock::system()).unwrap();
    let store: SharedStore = Arc::new(store);
    backed_up_under_load(Arc::clone(&store)).await;
    store.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_outlives_the_lifetime_of_transactions() {
    let dir = tempfile::tempdir().unwrap();
    let embedded = EmbeddedStore::open(dir.path(), &EmbeddedOptions::default(), Clock::system()).unwrap();
    let stores: [SharedStore; 2] = [Arc::new(MemoryStore::new(Clock::system())), Arc::new(embedded)];
    for store in stores {
        let put = async |value: u64| {
            let mut tx = store.begin();
            tx.set(b"a", &value.to_be_bytes());
            tx.commit().await.unwrap()
        };
        let version = put(0).await.version;
        let mut held = snapshot(&store).await.unwrap();
        assert!(held.version() >= version);
        for n in 1..60 {
            put(n).await;
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        let all = || RangeQuery::new("", prefix_end(b""));
        let page = held.get_range(all()).await.unwrap();
        assert_eq!(page.pairs, [(Bytes::from_static(b"a"), Bytes::copy_from_slice(&0u64.to_be_bytes()))]);
        drop(held);

        let mut held = snapshot(&store).await.unwrap();
        store.close().await;
        assert!(matches!(held.get_range(all()).await, Err(Error::Unavailable(_))), "closed is closed");
    }
}

#[tokio::test(start_paused = true)]
async fn versions_can_be_advanced_also_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let store = EmbeddedStore::open(dir.path(), &EmbeddedOptions::default(), Clock::system()).unwrap();
        Arc::new(store) as SharedStore
    };
    let stamp = async |store: &SharedStore| {
        let mut tx = store.begin();
        tx.set_versionstamped_key(b"s0123456789", 1, b"");
        tx.commit().await.unwrap().versionstamp.unwrap()
    };
    let store = open();
    let high = weir_storage::Version(1 << 52);
    store.advance(high).await.unwrap();
    let first = stamp(&store).await;
    assert!(first > Versionstamp::new(high, u16::MAX));
    store.advance(weir_storage::Version(1)).await.unwrap();
    assert!(stamp(&store).await > first, "never back");
    store.close().await;
    drop(store);
    let store = open();
    assert!(stamp(&store).await > first);
    store.close().await;
}

/// Whatever becomes of a file on its way, what can be read of it to its end is what was written.
#[tokio::test]
async fn damaged_anywhere_it_is_refused() {
    let store: SharedStore = Arc::new(MemoryStore::new(Clock::system()));
    let mut tx = store.begin();
    for n in 0..2_000_u32 {
        tx.set(&n.to_be_bytes(), &[b'v'; 300]);
    }
    tx.commit().await.unwrap();
    let mut backup = Backup::begin(&store, "test", 0).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(part) = backup.next().await.unwrap() {
        bytes.extend_from_slice(&part);
    }
    assert_eq!(pairs_in(&bytes).len(), 2_000);
    let seed = Seed::fixed(1);
    for _ in 0..200 {
        let at = usize::try_from(seed.next_u64()).unwrap() % bytes.len();
        let mut damaged = bytes.clone();
        match seed.next_u64() % 3 {
            0 => damaged[at] ^= 1 << (seed.next_u64() % 8),
            1 => damaged.truncate(at),
            _ => damaged[at..].fill(0),
        }
        if damaged == bytes {
            continue;
        }
        let outcome = BackupReader::open(&damaged[..]).and_then(BackupReader::verify);
        assert!(outcome.is_err(), "byte {at}");
    }
}
