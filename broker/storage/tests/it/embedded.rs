//! What only the embedded engine promises: durability, recovery, and one process at a time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use weir_env::clock::Clock;
use weir_storage::{
    EmbeddedOptions, EmbeddedStore, Error, Isolation, RangeQuery, Store, Transaction, Version,
};

pub(crate) fn open(dir: &Path) -> EmbeddedStore {
    try_open(dir).unwrap()
}

fn try_open(dir: &Path) -> Result<EmbeddedStore, Error> {
    EmbeddedStore::open(dir, &EmbeddedOptions::default(), Clock::system())
}

pub(crate) async fn rows(store: &EmbeddedStore, prefix: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let page = store.begin().get_range(RangeQuery::prefix(prefix), Isolation::Snapshot).await.unwrap();
    page.pairs.into_iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

async fn put(store: &EmbeddedStore, key: &str, value: &[u8]) -> Version {
    let mut tx = store.begin();
    tx.set(key.as_bytes(), value);
    tx.commit().await.unwrap().version
}

/// The segment of the journal that is written to.
fn journal(dir: &Path) -> PathBuf {
    let entries = fs::read_dir(dir.join("journal")).unwrap();
    entries.map(|entry| entry.unwrap().path()).max().unwrap()
}

/// Where the batches in a journal end, to within the zeroes that fill the last of them.
fn written(journal: &[u8]) -> usize {
    journal.iter().rposition(|byte| *byte != 0).unwrap() + 1
}

/// Says that a test needs what is not allowed here. Fails if `WEIR_REQUIRE_PRIVILEGED` says that it must be.
pub(crate) fn not_run(why: &str) {
    assert!(std::env::var_os("WEIR_REQUIRE_PRIVILEGED").is_none_or(|value| value != "1"), "not run: {why}");
    eprintln!("not run: {why}");
}

/// Makes an orderly stop look like a crash.
pub(crate) fn crash(dir: &Path) {
    fs::remove_file(dir.join("stopped")).unwrap();
}

#[tokio::test]
async fn reopening_keeps_everything_and_versions_grow() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = Version(0);
    for life in 0..4u8 {
        let store = open(dir.path());
        let started = store.begin().read_version().await.unwrap();
        assert!(started >= last, "{started:?} after {last:?}");
        let kept = rows(&store, "life").await;
        assert_eq!(
            kept,
            (0..life).map(|n| (format!("life {n}").into_bytes(), vec![n; 9_000])).collect::<Vec<_>>()
        );
        let version = put(&store, &format!("life {life}"), &vec![life; 9_000]).await;
        assert!(version > last);
        last = version;
        store.close().await;
    }
}

#[tokio::test]
async fn the_empty_key_and_the_widest_range_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "", b"empty").await;
    let mut tx = store.begin();
    tx.set(&[0xff; 20], b"high");
    tx.commit().await.unwrap();
    assert_eq!(rows(&store, "").await.len(), 2);
    store.close().await;
    let store = open(dir.path());
    assert_eq!(rows(&store, "").await[0], (vec![], b"empty".to_vec()));
    assert_eq!(rows(&store, "").await[1].0, [0xff; 20]);
    store.close().await;
}

#[tokio::test]
async fn a_second_open_is_refused_with_words_that_help() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let refused = try_open(dir.path()).unwrap_err().to_string();
    for word in [dir.path().to_str().unwrap(), &std::process::id().to_string(), "stop it"] {
        assert!(refused.contains(word), "{refused}");
    }
    store.close().await;
    open(dir.path()).close().await;
}

#[tokio::test]
async fn a_folder_of_another_kind_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("letter.txt"), "dear diary").unwrap();
    let refused = try_open(dir.path()).unwrap_err();
    assert!(matches!(&refused, Error::Unavailable(why) if why.contains("holds no weir store")), "{refused}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).close().await;
    fs::write(dir.path().join("FORMAT"), "weir embedded store, format 9\n").unwrap();
    let refused = try_open(dir.path()).unwrap_err().to_string();
    for word in ["format 9", "format 2", "use the program that wrote the folder"] {
        assert!(refused.contains(word), "{refused}");
    }
}

/// The bytes of the last commit are garbled, as a power failure in the middle of it would: the commits before it are
/// there, and the store goes on.
#[tokio::test]
async fn a_torn_tail_loses_nothing_that_came_before() {
    for tear in [1, 5, 30, 200] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        for n in 0..20u8 {
            put(&store, &format!("row {n:02}"), &[n; 100]).await;
        }
        store.close().await;
        crash(dir.path());
        let path = journal(dir.path());
        let mut bytes = fs::read(&path).unwrap();
        let end = written(&bytes);
        bytes[end - tear..].fill(if tear == 200 { 0xaa } else { 0 });
        fs::write(&path, bytes).unwrap();
        for life in 0..2 {
            let store = open(dir.path());
            let kept = rows(&store, "row").await;
            assert_eq!(kept.len(), 19, "torn by {tear}, life {life}");
            assert!(kept.iter().zip(0u8..).all(|((_, value), n)| *value == [n; 100]));
            put(&store, &format!("later {life}"), b"x").await;
            store.close().await;
            crash(dir.path());
        }
        let store = open(dir.path());
        assert_eq!(rows(&store, "later").await.len(), 2);
        store.close().await;
    }
}

/// Pages of the last commit that did not reach the disk, though those behind them did.
#[tokio::test]
async fn a_last_commit_with_holes_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, "row 1", b"x").await;
    put(&store, "row 2", &[7; 60_000]).await;
    store.close().await;
    crash(dir.path());
    let path = journal(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[8_192..16_384].fill(0);
    fs::write(&path, bytes).unwrap();
    let store = open(dir.path());
    assert_eq!(rows(&store, "row").await, [(b"row 1".to_vec(), b"x".to_vec())]);
    put(&store, "row 3", b"x").await;
    store.close().await;
    let store = open(dir.path());
    assert_eq!(rows(&store, "row").await.len(), 2);
    store.close().await;
}

/// A damaged commit with others behind it was acknowledged: the store says so instead of forgetting them. After an
/// orderly stop that is true of the last one too.
#[tokio::test]
async fn a_damaged_journal_is_reported_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..20u8 {
        put(&store, &format!("row {n:02}"), &[n; 100]).await;
    }
    store.close().await;
    let path = journal(dir.path());
    let (good, mark) = (fs::read(&path).unwrap(), fs::read(dir.path().join("stopped")).unwrap());
    let last = written(&good) - 1;
    for (at, flip, is_stopped) in [(40, 1, false), (8_300, 0xff, false), (4_100, 4, true), (last, 1, true)] {
        let mut bytes = good.clone();
        bytes[at] ^= flip;
        fs::write(&path, &bytes).unwrap();
        fs::write(dir.path().join("stopped"), &mark).unwrap();
        if !is_stopped {
            crash(dir.path());
        }
        let refused = try_open(dir.path()).unwrap_err();
        let name = path.to_str().unwrap();
        assert!(
            matches!(&refused, Error::Damaged(why) if why.contains("restore") && why.contains(name)),
            "byte {at}: {refused}"
        );
        assert!(fs::read(&path).unwrap() == bytes, "not touched");
    }
    fs::write(&path, &good[..good.len() - 4_096]).unwrap();
    let refused = try_open(dir.path()).unwrap_err();
    assert!(matches!(&refused, Error::Damaged(why) if why.contains("16777216 bytes")), "{refused}");
    fs::write(&path, &good).unwrap();
    let store = open(dir.path());
    assert_eq!(rows(&store, "row").await.len(), 20);
    store.close().await;
}

#[tokio::test]
async fn transactions_that_wait_share_one_sync() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(dir.path()));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let store = Arc::clone(&store);
        tasks.spawn(async move { put(&store, &n.to_string(), b"x").await });
    }
    tasks.join_all().await;
    let stats = store.stats();
    assert_eq!(stats.commits.load(Ordering::Relaxed), 200);
    let batches = stats.batches.load(Ordering::Relaxed);
    assert!((1..100).contains(&batches), "{batches} batches");
    assert_eq!(stats.sync_count.load(Ordering::Relaxed), batches);
    store.close().await;
}

/// Close waits for what was handed over before it.
#[tokio::test]
async fn closing_finishes_commits_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let commits = (0..50).map(|n| {
        let mut tx = store.begin();
        tx.set(format!("row {n}").as_bytes(), b"x");
        tx.commit()
    });
    let mut commits = tokio::task::JoinSet::from_iter(commits);
    // The first answer means that all have been handed over: they were polled in order on one thread.
    commits.join_next().await.unwrap().unwrap().unwrap();
    store.close().await;
    let mut acknowledged = 1;
    while let Some(outcome) = commits.join_next().await {
        acknowledged += usize::from(outcome.unwrap().is_ok());
    }
    let store = open(dir.path());
    assert_eq!(rows(&store, "row").await.len(), acknowledged);
    store.close().await;
}

#[derive(Clone, Debug)]
enum Step {
    Set(u8, u16),
    Clear(u8),
    ClearRange(u8, u8),
    Commit,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..40u8;
    prop_oneof![
        6 => (key.clone(), prop_oneof![0..50u16, 4_000..9_000u16]).prop_map(|(k, len)| Step::Set(k, len)),
        2 => key.clone().prop_map(Step::Clear),
        1 => (key.clone(), key).prop_map(|(a, b)| Step::ClearRange(a, b)),
        4 => Just(Step::Commit),
        1 => Just(Step::Reopen),
    ]
}

/// Applies the steps to a store and to a map, and compares them after each commit and each reopening.
async fn follow(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let (mut model, mut next) = (BTreeMap::new(), BTreeMap::new());
    let mut tx: Box<dyn Transaction> = store.begin();
    for step in steps {
        match step {
            Step::Set(key, len) => {
                let value = vec![key; usize::from(len)];
                tx.set(&[key], &value);
                next.insert(vec![key], value);
            }
            Step::Clear(key) => {
                tx.clear(&[key]);
                next.remove(&vec![key]);
            }
            Step::ClearRange(begin, end) => {
                tx.clear_range(&[begin], &[end]);
                next.retain(|key, _| key[0] < begin || key[0] >= end);
            }
            Step::Commit => {
                tx.commit().await.unwrap();
                model.clone_from(&next);
                tx = store.begin();
            }
            Step::Reopen => {
                store.close().await;
                store = open(dir.path());
                next.clone_from(&model);
                tx = store.begin();
            }
        }
        if matches!(step, Step::Commit | Step::Reopen) {
            assert_eq!(rows(&store, "").await, model.clone().into_iter().collect::<Vec<_>>());
        }
    }
    store.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_a_map_across_lives(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(follow(steps));
    }
}
