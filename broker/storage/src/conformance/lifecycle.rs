//! Watches, and the end of a store.

use std::time::Duration;

use super::{Must, Subject, assert_fails};
use crate::{Isolation, Watch};

/// Longest that a watch may take; engines that poll do so each second.
const WAIT: Duration = Duration::from_secs(60);

impl Subject {
    /// A watch of `name` as a transaction that only reads sees it.
    async fn watch(&self, name: &str) -> Watch {
        let mut tx = self.begin();
        tx.get(&self.key(name), Isolation::Snapshot).await.must();
        let watch = tx.watch(&self.key(name));
        tx.commit().await.must();
        watch
    }
}

async fn fires(what: &str, mut watch: Watch) {
    assert!(tokio::time::timeout(WAIT, watch.changed()).await.is_ok(), "{what}");
}

/// A watch fires when its key is set, cleared, or cleared with a range.
pub async fn watches_fire_on_changes(subject: Subject) {
    let watch = subject.watch("key").await;
    subject.put("other", "x").await;
    assert!(!watch.has_fired(), "another key changed");
    let mut writing = subject.begin();
    writing.set(&subject.key("key"), b"1");
    assert!(!watch.has_fired(), "nothing is committed yet");
    writing.commit().await.must();
    fires("set", watch).await;

    let watch = subject.watch("key").await;
    let mut tx = subject.begin();
    tx.clear(&subject.key("key"));
    tx.commit().await.must();
    fires("cleared", watch).await;

    subject.put("key", "2").await;
    let watch = subject.watch("key").await;
    let mut tx = subject.begin();
    tx.clear_range(&subject.key("a"), &subject.key("z"));
    tx.commit().await.must();
    fires("cleared with a range", watch).await;

    // Dropped ones do no harm, and one commit fires all that are left.
    drop(subject.watch("key").await);
    let [first, second] = [subject.watch("key").await, subject.watch("key").await];
    subject.put("key", "3").await;
    fires("first", first).await;
    fires("second", second).await;
}

/// A change between the transaction's version and its commit counts; its own write does not.
pub async fn watches_see_changes_made_before_they_are_armed(subject: Subject) {
    let mut tx = subject.begin();
    tx.get(&subject.key("key"), Isolation::Snapshot).await.must();
    let watch = tx.watch(&subject.key("key"));
    subject.put("key", "1").await;
    tx.commit().await.must();
    fires("changed before the commit", watch).await;

    let mut tx = subject.begin();
    tx.set(&subject.key("key"), b"2");
    let watch = tx.watch(&subject.key("key"));
    tx.commit().await.must();
    assert!(!watch.has_fired(), "its own write");
    subject.put("key", "3").await;
    fires("changed after its own write", watch).await;

    let mut tx = subject.begin();
    let watch = tx.watch(&subject.key("key"));
    drop(tx);
    fires("never committed", watch).await;
}

/// After `close` nothing hangs: operations fail as unavailable and watches fire.
pub async fn a_closed_store_says_so(subject: Subject) {
    subject.put("key", "x").await;
    let watch = subject.watch("key").await;
    let mut reading = subject.begin();
    reading.get(&subject.key("key"), Isolation::Serializable).await.must();
    let mut writing = subject.begin();
    writing.set(&subject.key("key"), b"y");
    subject.store.close().await;
    fires("the store is closed", watch).await;
    assert_fails!(reading.get(&subject.key("key"), Isolation::Serializable).await, Unavailable(_));
    assert_fails!(writing.commit().await, Unavailable(_));
    assert_fails!(subject.begin().read_version().await, Unavailable(_));
    subject.store.close().await;
}
