//! Watches: a task for each, which ends when the key has changed, when nobody holds the watch any more, or when the
//! store is closed.
//!
//! FoundationDB compares the key with its value at a version, so a watch that is armed after the commit misses nothing
//! if that version is the one the transaction has seen.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use weir_storage::{Result, WatchTrigger};

use crate::store::Shared;

/// Watches armed at most, as FoundationDB has it for a client. One more is not armed and never fires; whoever waits
/// polls.
pub(crate) const WATCHES_MAX: usize = 10_000;

/// Arms a watch of `key` against its value at `version`.
pub(crate) fn arm(shared: &Arc<Shared>, key: &Bytes, version: i64, trigger: WatchTrigger) {
    if shared.watches.fetch_add(1, Ordering::Relaxed) >= WATCHES_MAX {
        shared.watches.fetch_sub(1, Ordering::Relaxed);
        tracing::warn!(limit = WATCHES_MAX, "too many watches: one is not armed");
        trigger.abandon();
        return;
    }
    let (key, task) = (shared.prefix.join(key), Arc::clone(shared));
    shared.tasks.spawn(async move {
        // How it ended does not matter: the watch fires.
        tokio::select! {
            _ = changed(&task, &key, version) => {}
            () = trigger.orphaned() => {}
            () = task.closed.cancelled() => {}
        }
        task.watches.fetch_sub(1, Ordering::Relaxed);
        trigger.fire();
    });
}

/// Waits until `key` has another value than at `version`, or until FoundationDB gives up watching.
async fn changed(shared: &Shared, key: &[u8], version: i64) -> Result<()> {
    let transaction = shared.plain_transaction()?;
    transaction.set_read_version(version);
    let watch = transaction.watch(key);
    shared.outcome(transaction.commit(), shared.deadline()).await?;
    // As long as it takes: this is what the caller waits for.
    watch.await.map_err(crate::errors::of_read)
}
