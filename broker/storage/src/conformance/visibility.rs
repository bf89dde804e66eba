//! Who sees which commit when.

use super::{Must, Subject, assert_fails};
use crate::{Error, Isolation, Version};

/// A transaction reads the store as it was at its first read, whatever is committed meanwhile.
pub async fn reads_see_one_version(subject: Subject) {
    subject.put("a", "old").await;
    subject.put("b", "old").await;
    let mut tx = subject.begin();
    assert_eq!(tx.get(&subject.key("a"), Isolation::Serializable).await.must().as_deref(), Some(&b"old"[..]));
    let mut other = subject.begin();
    other.set(&subject.key("a"), b"new");
    other.clear(&subject.key("b"));
    other.set(&subject.key("c"), b"new");
    other.commit().await.must();
    for isolation in [Isolation::Serializable, Isolation::Snapshot] {
        for (name, expected) in [("a", Some("old")), ("b", Some("old")), ("c", None)] {
            let found = tx.get(&subject.key(name), isolation).await.must();
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{name}");
        }
    }
    assert_eq!(subject.names(&mut *tx, subject.all()).await, "a b");
    assert_eq!(subject.names(&mut *subject.begin(), subject.all()).await, "a c");
    tx.commit().await.must();
}

/// Once a commit has returned, every transaction that begins afterwards sees it, at a version not below.
pub async fn a_commit_is_seen_by_whoever_begins_after_it(subject: Subject) {
    let mut previous = subject.begin().read_version().await.must();
    for round in 0..50u8 {
        let committed = subject.put("key", [round]).await;
        assert!(committed.version > previous, "versions grow");
        let mut tx = subject.begin();
        let version = tx.read_version().await.must();
        assert!(version >= committed.version);
        let found = tx.get(&subject.key("key"), Isolation::Snapshot).await.must();
        assert_eq!(found.as_deref(), Some(&[round][..]));
        assert_eq!(tx.commit().await.must().version, version, "a reader's commit is at its read version");
        previous = version;
    }
}

/// A transaction that is dropped or refused leaves no trace.
pub async fn without_a_commit_nothing_is_left(subject: Subject) {
    let mut tx = subject.begin();
    tx.set(&subject.key("dropped"), b"x");
    drop(tx);
    let mut tx = subject.begin();
    tx.get(&subject.key("read"), Isolation::Serializable).await.must();
    tx.set(&subject.key("refused"), b"x");
    subject.put("read", "x").await;
    assert_fails!(tx.commit().await, Conflict);
    assert_eq!(subject.names(&mut *subject.begin(), subject.all()).await, "read");
}

/// A recent version can be read again.
pub async fn a_chosen_read_version_is_read(subject: Subject) {
    let mut versions = Vec::new();
    for round in 0..5u8 {
        versions.push(subject.put("key", [round]).await.version);
        subject.put(format!("row {round}"), "x").await;
    }
    for (round, version) in (0u8..).zip(versions) {
        let mut tx = subject.begin();
        tx.set_read_version(version);
        assert_eq!(tx.read_version().await.must(), version);
        let found = tx.get(&subject.key("key"), Isolation::Serializable).await.must();
        assert_eq!(found.as_deref(), Some(&[round][..]));
        let rows = subject.pairs(&mut *tx, subject.range("row", "rox")).await;
        assert_eq!(rows.len(), usize::from(round));
    }
}

/// A version from the future is refused, not waited for.
pub async fn a_version_never_given_out_is_refused(subject: Subject) {
    let version = subject.put("key", "x").await.version;
    let future = || {
        let mut tx = subject.begin();
        tx.set_read_version(Version(version.0 + 1_000_000_000_000));
        tx
    };
    let get = future().get(&subject.key("key"), Isolation::Snapshot).await.map(drop);
    let range = future().get_range(subject.all(), Isolation::Serializable).await.map(drop);
    for outcome in [get, range] {
        assert!(matches!(outcome, Err(Error::Unavailable(_) | Error::Busy(_))), "{outcome:?}");
    }
}

/// A read that is not waited for leaves its transaction as it was. A commit that is not waited for has happened
/// as a whole, is still to happen, or never will: never in part, and not once its fence has moved.
pub async fn what_is_cancelled_is_whole_or_absent(subject: Subject) {
    for round in 0..20u8 {
        let mut tx = subject.begin();
        let (left, right) = (subject.key([b'l', round]), subject.key([b'r', round]));
        let fence = subject.key("fence");
        let all = subject.all();
        for _ in 0..2 {
            poll_once(tx.get(&fence, Isolation::Snapshot)).await;
            poll_once(tx.get_range(all.clone(), Isolation::Snapshot)).await;
            poll_once(tx.read_version()).await;
        }
        tx.get(&fence, Isolation::Serializable).await.must();
        tx.set(&left, &[round]);
        tx.set(&right, &[round]);
        poll_once(tx.commit()).await;

        subject.put("fence", [round]).await;
        let there = [subject.get([b'l', round]).await, subject.get([b'r', round]).await];
        assert!(there[0] == there[1], "{there:?}");
        tokio::task::yield_now().await;
        let later = [subject.get([b'l', round]).await, subject.get([b'r', round]).await];
        assert!(there == later, "it was settled before, and has happened since");
    }
}

/// Polls a future, and drops it if it is not ready.
async fn poll_once<T>(future: impl Future<Output = T>) {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| {
        // Whether it is ready makes no difference.
        let _ = future.as_mut().poll(context);
        std::task::Poll::Ready(())
    })
    .await;
}
