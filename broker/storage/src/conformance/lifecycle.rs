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

/// Nobody waits for a transaction that was refused.
pub async fn a_watch_of_a_refused_transaction_fires(subject: Subject) {
    let mut tx = subject.begin();
    tx.get(&subject.key("read"), Isolation::Serializable).await.must();
    let watch = tx.watch(&subject.key("key"));
    tx.set(&subject.key("written"), b"x");
    subject.put("read", "changed").await;
    assert!(!watch.has_fired(), "it is still to commit");
    assert_fails!(tx.commit().await, Conflict);
    fires("its transaction was refused", watch).await;
}

/// A change back may be missed; the next one that stays is not.
pub async fn a_change_that_is_undone_leaves_a_watch_armed_or_fired(subject: Subject) {
    subject.put("key", "a").await;
    let watch = subject.watch("key").await;
    subject.put("key", "b").await;
    subject.put("key", "a").await;
    subject.put("key", "c").await;
    fires("changed at last", watch).await;
}

/// Each watch is about its own key, however many there are.
pub async fn each_of_many_watches_waits_for_its_own_key(subject: Subject) {
    const WATCHES: usize = 500;
    let name = |number: usize| format!("key {number:04}");
    let (mut tx, mut watches) = (subject.begin(), Vec::new());
    for number in 0..WATCHES {
        watches.push(tx.watch(&subject.key(name(number))));
    }
    tx.commit().await.must();
    let mut tx = subject.begin();
    (0..WATCHES).step_by(2).for_each(|number| tx.set(&subject.key(name(number)), b"x"));
    tx.commit().await.must();
    let mut others = Vec::new();
    for (number, watch) in watches.into_iter().enumerate() {
        match number % 2 {
            0 => fires(&name(number), watch).await,
            _ => others.push(watch),
        }
    }
    assert_eq!(others.iter().filter(|watch| watch.has_fired()).count(), 0, "nobody wrote those");
    let mut tx = subject.begin();
    tx.clear_range(&subject.key("key"), &subject.key("kez"));
    tx.set(&subject.key(name(1)), b"x");
    tx.commit().await.must();
    fires("written after a range clear", others.swap_remove(0)).await;
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
