//! Which transactions exclude each other.

use std::time::Duration;

use super::{Must, Subject, assert_fails};
use crate::limits::LIFETIME;
use crate::{ConflictKind, Isolation, RangeQuery, Transaction};

impl Subject {
    /// A transaction that has read `name` and will write elsewhere.
    async fn reader(&self, name: &str, isolation: Isolation) -> Box<dyn Transaction> {
        let mut tx = self.begin();
        tx.get(&self.key(name), isolation).await.must();
        tx.set(&self.key("elsewhere"), b"x");
        tx
    }

    /// A transaction that has read a range and will write elsewhere.
    async fn range_reader(&self, query: RangeQuery) -> Box<dyn Transaction> {
        let mut tx = self.begin();
        tx.get_range(query, Isolation::Serializable).await.must();
        tx.set(&self.key("elsewhere"), b"x");
        tx
    }
}

/// Reading a key, there or not, conflicts with a later set, clear or range clear of exactly that key.
pub async fn what_was_read_and_then_written_conflicts(subject: Subject) {
    subject.put("present", "x").await;
    for name in ["present", "absent"] {
        let tx = subject.reader(name, Isolation::Serializable).await;
        subject.put(name, "changed").await;
        assert_fails!(tx.commit().await, Conflict);

        let tx = subject.reader(name, Isolation::Serializable).await;
        let mut other = subject.begin();
        other.clear(&subject.key(name));
        other.commit().await.must();
        assert_fails!(tx.commit().await, Conflict);

        let tx = subject.reader(name, Isolation::Serializable).await;
        let mut other = subject.begin();
        other.clear_range(&subject.key("a"), &subject.key("z"));
        other.commit().await.must();
        assert_fails!(tx.commit().await, Conflict);

        let tx = subject.reader(name, Isolation::Serializable).await;
        subject.put(format!("{name}\0"), "neighbour").await;
        subject.put(&name[..name.len() - 1], "neighbour").await;
        tx.commit().await.must();
    }
    // Its own write is not a read.
    let mut tx = subject.begin();
    tx.read_version().await.must();
    tx.set(&subject.key("own"), b"x");
    tx.get(&subject.key("own"), Isolation::Serializable).await.must();
    subject.put("own", "other").await;
    tx.commit().await.must();
}

/// A key that appears in, or vanishes from, a range that was read conflicts.
pub async fn a_new_key_in_a_range_read_conflicts(subject: Subject) {
    subject.put("b", "x").await;
    let read = || subject.range("a", "d");
    for (name, conflicts) in
        [("a", true), ("b", true), ("c", true), ("czz", true), ("d", false), ("Z", false)]
    {
        let tx = subject.range_reader(read()).await;
        subject.put(name, "changed").await;
        match conflicts {
            true => assert_fails!(tx.commit().await, Conflict),
            false => drop(tx.commit().await.must()),
        }
    }
    let tx = subject.range_reader(read()).await;
    let mut other = subject.begin();
    other.clear_range(&subject.key("c"), &subject.key("x"));
    other.commit().await.must();
    assert_fails!(tx.commit().await, Conflict);
}

/// A page that a limit cut short conflicts up to its last pair and no further.
pub async fn a_page_conflicts_on_what_it_returned(subject: Subject) {
    for name in ["b", "d", "f", "h"] {
        subject.put(name, "x").await;
    }
    let forwards = || subject.range("a", "z").limit(2);
    let cases = [
        (forwards(), "a", true),
        (forwards(), "d", true),
        (forwards(), "e", false),
        (forwards(), "h", false),
        (forwards().reverse(), "e", false),
        (forwards().reverse(), "y", true),
        (subject.range("a", "z").limit(100), "y", true),
    ];
    for (query, name, conflicts) in cases {
        let tx = subject.range_reader(query.clone()).await;
        subject.put(name, "changed").await;
        let outcome = tx.commit().await;
        assert_eq!(outcome.is_err(), conflicts, "write of {name}: {query:?}");
        let mut undo = subject.begin();
        ["a", "e", "y"].iter().for_each(|name| undo.clear(&subject.key(name)));
        undo.commit().await.must();
    }
}

/// Pages read one after the other conflict like the range they make up: no gap is left between them.
pub async fn pages_conflict_as_the_range_they_make_up(subject: Subject) {
    for name in ["b", "d", "f", "h"] {
        subject.put(name, "x").await;
    }
    for first in [subject.range("a", "z").limit(1), subject.range("a", "z").target_bytes(1).reverse()] {
        for (name, conflicts) in
            [("a", true), ("c", true), ("d\0", true), ("g", true), ("y", true), ("z", false)]
        {
            let (mut tx, mut next, mut pages) = (subject.begin(), Some(first.clone()), 0);
            while let Some(query) = next {
                let page = tx.get_range(query.clone(), Isolation::Serializable).await.must();
                next = query.after(&page);
                pages += 1;
            }
            assert!(pages >= 4, "{pages} pages");
            tx.set(&subject.key("~elsewhere"), b"x");
            subject.put(name, "new").await;
            assert_eq!(tx.commit().await.is_err(), conflicts, "write of {name}: {first:?}");
            let mut undo = subject.begin();
            undo.clear(&subject.key(name));
            undo.commit().await.must();
        }
    }
}

/// A versionstamped key conflicts with readers of the place it gets at its commit.
pub async fn a_stamped_key_conflicts_where_it_comes_to_lie(subject: Subject) {
    let prefix = subject.key("feed/");
    for (query, conflicts) in [(subject.range("feed/", "feed0"), true), (subject.range("feed0", "g"), false)]
    {
        let tx = subject.range_reader(query.clone()).await;
        let mut other = subject.begin();
        other.set_versionstamped_key(&[&prefix[..], &[0; 10]].concat(), prefix.len(), b"x");
        other.commit().await.must();
        assert_eq!(tx.commit().await.is_err(), conflicts, "{query:?}");
    }
    let tx = subject.reader("value", Isolation::Serializable).await;
    let mut other = subject.begin();
    other.set_versionstamped_value(&subject.key("value"), &[0; 10], 0);
    other.commit().await.must();
    assert_fails!(tx.commit().await, Conflict);
}

/// Snapshot reads see one version and take no part in conflicts.
pub async fn snapshot_reads_never_conflict(subject: Subject) {
    let mut tx = subject.reader("key", Isolation::Snapshot).await;
    tx.get_range(subject.all(), Isolation::Snapshot).await.must();
    subject.put("key", "changed").await;
    assert_eq!(tx.get(&subject.key("key"), Isolation::Snapshot).await.must(), None);
    tx.commit().await.must();
}

/// Conflicts can be added by hand, to either side, without touching a key.
pub async fn added_conflicts_count_as_reads_and_writes(subject: Subject) {
    let mut tx = subject.reader("unrelated", Isolation::Snapshot).await;
    tx.add_conflict_key(&subject.key("fence"), ConflictKind::Read);
    subject.put("fence", "changed").await;
    assert_fails!(tx.commit().await, Conflict);

    for range in [false, true] {
        let tx = subject.reader("guarded", Isolation::Serializable).await;
        let mut other = subject.begin();
        match range {
            false => other.add_conflict_key(&subject.key("guarded"), ConflictKind::Write),
            true => other.add_conflict_range(&subject.key("g"), &subject.key("h"), ConflictKind::Write),
        }
        other.commit().await.must();
        assert_fails!(tx.commit().await, Conflict);
        assert_eq!(subject.get("guarded").await, None);
    }
}

/// A conflict range that ends where it begins, or before, holds nothing.
pub async fn empty_conflict_ranges_count_for_nothing(subject: Subject) {
    let (a, b) = (subject.key("a"), subject.key("b"));
    let mut tx = subject.reader("guarded", Isolation::Snapshot).await;
    tx.add_conflict_range(&a, &a, ConflictKind::Read);
    tx.add_conflict_range(&b, &a, ConflictKind::Read);
    let mut guard = subject.begin();
    guard.get(&a, Isolation::Serializable).await.must();
    guard.set(&subject.key("elsewhere"), b"x");
    let mut other = subject.begin();
    other.set(&subject.key("other"), b"x");
    other.add_conflict_range(&a, &a, ConflictKind::Write);
    other.add_conflict_range(&b, &a, ConflictKind::Write);
    other.commit().await.must();
    guard.commit().await.must();
    subject.put("a", "x").await;
    tx.commit().await.must();
}

/// Transactions that only write, or only read, always succeed.
pub async fn blind_writes_and_readers_never_conflict(subject: Subject) {
    let mut writer = subject.begin();
    writer.read_version().await.must();
    writer.set(&subject.key("key"), b"mine");
    writer.clear_range(&subject.key("x"), &subject.key("z"));
    let mut reader = subject.begin();
    reader.get(&subject.key("key"), Isolation::Serializable).await.must();
    reader.get_range(subject.all(), Isolation::Serializable).await.must();
    subject.put("key", "theirs").await;
    subject.put("y", "theirs").await;
    reader.commit().await.must();
    writer.commit().await.must();
    assert_eq!(subject.names(&mut *subject.begin(), subject.all()).await, "key");
    assert_eq!(subject.get("key").await.as_deref(), Some(&b"mine"[..]));
}

/// The fence: a blind write under a remembered read version and a conflict on the owner's key commits as long
/// as the key has not changed since, and never afterwards.
pub async fn a_stale_fence_conflicts(subject: Subject) {
    subject.put("owner", "1").await;
    let mut lease = subject.begin();
    lease.get(&subject.key("owner"), Isolation::Serializable).await.must();
    let seen = lease.read_version().await.must();
    let append = |offset: &str| {
        let mut tx = subject.begin();
        tx.set_read_version(seen);
        tx.add_conflict_key(&subject.key("owner"), ConflictKind::Read);
        tx.set(&subject.key(offset), b"record");
        tx
    };
    for offset in ["log 0", "log 1", "log 2"] {
        append(offset).commit().await.must();
    }
    subject.put("other owner", "2").await;
    append("log 3").commit().await.must();
    subject.put("owner", "2").await;
    assert_fails!(append("log 4").commit().await, Conflict);
    assert_fails!(append("log 4").commit().await, Conflict);
    assert_eq!(subject.get("log 4").await, None);
}

/// After five seconds reads fail, and commits that depend on reads; blind writes do not.
pub async fn an_old_transaction_is_too_old(subject: Subject) {
    subject.put("key", "x").await;
    let mut reading = subject.begin();
    let version = reading.read_version().await.must();
    let committing = subject.reader("key", Isolation::Serializable).await;
    let writing = subject.reader("key", Isolation::Snapshot).await;
    let mut young = subject.begin();

    tokio::time::sleep(LIFETIME - Duration::from_secs(1)).await;
    reading.get(&subject.key("key"), Isolation::Serializable).await.must();
    tokio::time::sleep(Duration::from_secs(2)).await;

    assert_fails!(reading.get(&subject.key("key"), Isolation::Snapshot).await, TooOld);
    assert_fails!(reading.get_range(subject.all(), Isolation::Snapshot).await, TooOld);
    assert_fails!(committing.commit().await, TooOld);
    writing.commit().await.must();
    let mut fenced = subject.begin();
    fenced.set_read_version(version);
    fenced.add_conflict_key(&subject.key("key"), ConflictKind::Read);
    fenced.set(&subject.key("late"), b"x");
    assert_fails!(fenced.commit().await, TooOld);
    assert_eq!(subject.get("late").await, None);
    // The clock starts with the first read, not with the transaction.
    assert!(young.get(&subject.key("key"), Isolation::Serializable).await.must().is_some());
    young.set(&subject.key("key"), b"y");
    young.commit().await.must();
}
