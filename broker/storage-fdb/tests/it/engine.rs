//! What holds on a real cluster: the suite of every engine, and what FoundationDB adds to it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use weir_env::clock::Clock;
use weir_storage::conformance::Fixture;
use weir_storage::limits::TRANSACTION_BYTES_MAX;
use weir_storage::{
    ConflictKind, Error, Isolation, RangeQuery, Store, TransactionSize, Version, conformance,
};
use weir_storage_fdb::FdbStore;

use crate::cluster;

async fn fdb_store() -> Option<Fixture> {
    cluster::store().await.map(|store| Fixture::new(Arc::new(store), ()))
}

conformance!(fdb, [#[tokio::test(flavor = "multi_thread", worker_threads = 2)]], fdb_store());

#[tokio::test]
async fn stores_of_different_names_never_meet() {
    let Some(options) = cluster::options() else { return };
    let network = cluster::network();
    let longer =
        weir_storage_fdb::FdbOptions { name: format!("{}0", &options.name[..20]), ..options.clone() };
    let shorter = weir_storage_fdb::FdbOptions { name: options.name[..20].to_owned(), ..options };
    let longer = FdbStore::open(&network, &longer, Clock::system()).await.unwrap();
    let shorter = FdbStore::open(&network, &shorter, Clock::system()).await.unwrap();
    for key in [&b""[..], b"0", b"\xff\xff"] {
        let mut tx = longer.begin();
        tx.set(key, b"x");
        tx.commit().await.unwrap();
    }
    let mut tx = shorter.begin();
    assert!(tx.get_range(RangeQuery::prefix(""), Isolation::Serializable).await.unwrap().pairs.is_empty());
    tx.clear_range(b"", &weir_storage::prefix_end(b""));
    tx.commit().await.unwrap();
    let all = longer.begin().get_range(RangeQuery::prefix(""), Isolation::Snapshot).await.unwrap();
    assert_eq!(all.pairs.len(), 3);
    assert_eq!(shorter.stats().commits.load(Ordering::Relaxed), 1);
}

/// A range of several of FoundationDB's answers, with own writes all over it.
#[tokio::test]
async fn long_ranges_are_read_to_their_end_in_both_directions() {
    let Some(store) = cluster::store().await else { return };
    let key = |n: u32| format!("{n:05}").into_bytes();
    for part in 0..3 {
        let mut tx = store.begin();
        (0..300).for_each(|n| tx.set(&key(part * 600 + n * 2), &[b'v'; 1_000]));
        tx.commit().await.unwrap();
    }
    let mut tx = store.begin();
    (0..900).step_by(3).for_each(|n| tx.set(&key(n * 2 + 1), b"own"));
    tx.clear_range(&key(600), &key(1_200));
    let expected: Vec<Vec<u8>> = (0..1_800)
        .filter(|n| !(600..1_200).contains(n) && (n % 2 == 0 || (n - 1) % 6 == 0))
        .map(key)
        .collect();
    for query in [RangeQuery::prefix(""), RangeQuery::prefix("").reverse()] {
        for query in [query.clone(), query.clone().limit(7), query.target_bytes(30_000)] {
            let (mut found, mut next) = (Vec::new(), Some(query.clone()));
            while let Some(query) = next {
                let page = tx.get_range(query.clone(), Isolation::Serializable).await.unwrap();
                next = query.after(&page);
                found.extend(page.pairs.into_iter().map(|(key, _)| key.to_vec()));
            }
            if query.reverse {
                found.reverse();
            }
            assert!(found == expected, "{query:?}: {} of {}", found.len(), expected.len());
        }
    }
}

/// The append of a shard's owner in one round trip: the version of the last look at the ownership, a read conflict on
/// its key, blind writes. One that has lost the shard never commits, whatever version it remembers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_was_replaced_never_commits() {
    let Some(store) = cluster::store().await else { return };
    for round in 0..20u8 {
        let mut tx = store.begin();
        tx.set(b"owner", &[round, 1]);
        tx.commit().await.unwrap();
        let mut look = store.begin();
        assert_eq!(look.get(b"owner", Isolation::Snapshot).await.unwrap().as_deref(), Some(&[round, 1][..]));
        let seen = look.read_version().await.unwrap();
        let append = |row: u8| {
            let mut tx = store.begin();
            tx.set_read_version(seen);
            tx.add_conflict_key(b"owner", ConflictKind::Read);
            tx.set(&[b'l', round, row], b"record");
            tx
        };
        append(0).commit().await.unwrap();
        let mut replace = store.begin();
        replace.set(b"owner", &[round, 2]);
        // At the same time: whichever order they commit in, a row means that it came first.
        let (late, replaced) = tokio::join!(append(1).commit(), replace.commit());
        let replaced = replaced.unwrap();
        match late {
            Ok(late) => assert!(late.version <= replaced.version),
            Err(Error::Conflict) => {
                assert_eq!(store.begin().get(&[b'l', round, 1], Isolation::Snapshot).await.unwrap(), None);
            }
            Err(error) => panic!("{error}"),
        }
        for row in 2..4 {
            assert!(matches!(append(row).commit().await, Err(Error::Conflict)));
            assert_eq!(store.begin().get(&[b'l', round, row], Isolation::Snapshot).await.unwrap(), None);
        }
    }
}

/// The limit of the contract comes before that of FoundationDB, which counts in another way, for the shortest keys too.
#[tokio::test]
async fn a_transaction_full_of_tiny_keys_is_within_what_foundationdb_takes() {
    let Some(store) = cluster::store().await else { return };
    let (mut tx, mut size) = (store.begin(), TransactionSize::default());
    for number in 0u32.. {
        let key = &number.to_be_bytes()[1..];
        tx.clear(key);
        size.add_write(key.len(), 0);
        if size.total() + 2 * TransactionSize::of_write(key.len(), 0) >= TRANSACTION_BYTES_MAX {
            break;
        }
    }
    tx.commit().await.unwrap();
}

/// Versions are the cluster's: one that is behind is moved on by its operator, who is told how.
#[tokio::test]
async fn a_cluster_that_is_behind_is_not_moved_on_but_says_how() {
    let Some(store) = cluster::store().await else { return };
    store.advance(Version(1)).await.unwrap();
    let beyond = Version::MAX.0;
    let error = store.advance(Version::MAX).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)));
    let advice = format!("--exec 'advanceversion {}'", beyond + 1);
    assert!(error.to_string().contains(&advice), "{error}");
    assert!(store.begin().read_version().await.unwrap() < Version::MAX);
}

#[tokio::test]
async fn a_store_describes_its_cluster() {
    let Some(store) = cluster::store().await else { return };
    let facts = store.describe().await.unwrap();
    let fact = |name: &str| facts.iter().find(|(found, _)| *found == name).map(|(_, value)| value.as_str());
    assert!(fact("client library").is_some_and(|version| version.starts_with("7.")), "{facts:?}");
    assert!(
        cluster::real().is_none() || fact("server").is_some_and(|version| version.starts_with("7.")),
        "{facts:?}"
    );
    assert!(fact("coordinators").is_some(), "{facts:?}");
}

/// A watch whose holder is gone leaves its place to others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_nobody_holds_are_let_go() {
    let Some(store) = cluster::store().await else { return };
    for _ in 0..3 {
        let mut tx = store.begin();
        let watches: Vec<_> = (0..4_000u32).map(|n| tx.watch(&n.to_be_bytes())).collect();
        tx.commit().await.unwrap();
        drop(watches);
    }
    // Their tasks have to notice first; until then there is no room.
    let mut fired = false;
    for round in 0..60u8 {
        let mut tx = store.begin();
        let mut watch = tx.watch(b"key");
        tx.commit().await.unwrap();
        let mut tx = store.begin();
        tx.set(b"key", &[round]);
        tx.commit().await.unwrap();
        fired = tokio::time::timeout(Duration::from_secs(1), watch.changed()).await.is_ok();
        if fired {
            break;
        }
    }
    assert!(fired, "there is room for a watch again");
    store.close().await;
}
