//! The retry loop around a transaction. Knows the outcomes, not the engines.

use std::pin::Pin;
use std::time::Duration;

use weir_env::clock::Clock;

use crate::{Committed, Error, Result, Store, Transaction};

/// Time after which [`transact`] stops repeating and returns the last error.
const RETRY_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest pause between two attempts. Among transactions that conflict one always commits, so the pause
/// only saves work; it isn't needed for progress.
const BACKOFF_MAX: Duration = Duration::from_millis(32);

/// Shortest and longest pause after [`Error::Busy`]: the store has asked for one.
const BUSY_PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// What the body given to [`transact`] returns: boxed and [`Send`], because the compiler can't yet prove an
/// async closure's future to be so in a spawned task.
pub type BodyFuture<'t, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 't>>;

/// Runs `body` in a transaction and commits it; repeats both after a conflict, when the transaction got too
/// old or when the store is busy, for at most ten seconds.
///
/// `body` may run more than once, so it must have no side effects. What it returned in the run that
/// committed is returned.
///
/// # Errors
/// What `body` or the commit returned, unless it is retryable. An unknown outcome is never repeated, so it
/// can't be hidden by what a later attempt finds: it is returned as it is, and the caller finds out which it was (see [`Error`](crate::Error)).
///
/// Not cancel-safe: the commit may still happen after the future is dropped.
///
/// ```
/// # use weir_storage::{Committed, Isolation, Result, Store, transact};
/// async fn count(store: &dyn Store, key: &[u8]) -> Result<(usize, Committed)> {
///     let body = transact(store, |tx| {
///         Box::pin(async move {
///             let mut value = tx.get(key, Isolation::Serializable).await?.unwrap_or_default().to_vec();
///             value.push(b'+');
///             tx.set(key, &value);
///             Ok(value.len())
///         })
///     });
///     body.await
/// }
/// ```
/// What `body` borrows (here `key`) must be a reference already, because its future may not borrow from the
/// closure itself: `let name = &name;` before the call does it.
pub async fn transact<'a, T, F>(store: &dyn Store, mut body: F) -> Result<(T, Committed)>
where
    F: for<'t> FnMut(&'t mut (dyn Transaction + 'a)) -> BodyFuture<'t, T>,
{
    let started = Clock::system().now();
    let mut pause = Duration::ZERO;
    loop {
        let mut transaction = store.begin();
        let outcome = match body(&mut *transaction).await {
            Ok(value) => transaction.commit().await.map(|committed| (value, committed)),
            Err(error) => Err(error),
        };
        match outcome {
            Err(error) if error.is_retryable() && started.elapsed() < RETRY_TIME_MAX => {
                let is_busy = matches!(error, Error::Busy(_));
                let (pause_min, pause_max) =
                    if is_busy { BUSY_PAUSES } else { (Duration::ZERO, BACKOFF_MAX) };
                pause = pause.max(pause_min);
                tracing::trace!(%error, ?pause, "transaction is repeated");
                if pause.is_zero() {
                    tokio::task::yield_now().await;
                } else {
                    tokio::time::sleep(pause).await;
                }
                pause = (pause * 2).clamp(Duration::from_millis(1), pause_max);
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::task::JoinSet;

    use super::*;
    use crate::{Isolation, MemoryStore, SharedStore};

    async fn increment(store: SharedStore, key: Vec<u8>) -> Result<u8> {
        let key = &key[..];
        let outcome = transact(&*store, |tx| {
            Box::pin(async move {
                let value = tx.get(key, Isolation::Serializable).await?;
                tokio::task::yield_now().await;
                let next = value.map_or(0, |bytes| bytes[0]) + 1;
                tx.set(key, &[next]);
                Ok(next)
            })
        });
        Ok(outcome.await?.0)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn conflicting_transactions_are_repeated_until_each_has_committed() {
        let store: SharedStore = Arc::new(MemoryStore::new(Clock::system()));
        let mut tasks = JoinSet::new();
        for _ in 0..10 {
            tasks.spawn(increment(Arc::clone(&store), b"counter".to_vec()));
        }
        let mut seen: Vec<u8> = tasks.join_all().await.into_iter().map(Result::unwrap).collect();
        seen.sort_unstable();
        assert_eq!(seen, (1..=10).collect::<Vec<_>>());
    }

    /// Runs a body that always fails with `error`; how often it ran.
    async fn runs_until_given_up(error: &Error) -> usize {
        let store = MemoryStore::new(Clock::system());
        let runs = &AtomicUsize::new(0);
        let outcome: Result<((), _)> = transact(&store, |_| {
            Box::pin(async move {
                runs.fetch_add(1, Ordering::Relaxed);
                Err(error.clone())
            })
        })
        .await;
        assert_eq!(outcome.unwrap_err().to_string(), error.to_string());
        runs.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn repeating_ends_with_the_last_error() {
        let started = Clock::system().now();
        let runs = runs_until_given_up(&Error::Conflict).await;
        assert!(runs > 100 && started.elapsed() < 2 * RETRY_TIME_MAX, "{runs} runs");
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_store_gets_longer_pauses() {
        let started = Clock::system().now();
        let runs = runs_until_given_up(&Error::Busy("full".into())).await;
        assert!((8..40).contains(&runs) && started.elapsed() < 2 * RETRY_TIME_MAX, "{runs} runs");
    }

    #[tokio::test]
    async fn what_is_not_retryable_is_returned_at_once() {
        for error in [Error::UnknownSettled, Error::UnknownOpen, Error::Unavailable("down".into())] {
            assert_eq!(runs_until_given_up(&error).await, 1);
        }
    }
}
