//! Notices tasks that panicked, so that a process that lost one of them does not look healthy. Knows nothing of what
//! the tasks do; whoever starts them asks.

use std::future::Future;

use tokio_util::sync::CancellationToken;

/// Whether one of the tasks it watches has panicked. Clones share the answer.
#[derive(Clone, Debug, Default)]
pub struct Panics(CancellationToken);

/// Told of a panic by being dropped while it unwinds.
struct Witness(CancellationToken);

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.cancel();
        }
    }
}

impl Panics {
    /// `task`, watched.
    pub fn watch<F: Future>(&self, task: F) -> impl Future<Output = F::Output> + use<F> {
        let witness = Witness(self.0.clone());
        async move {
            let _witness = witness;
            task.await
        }
    }

    /// Waits for the first panic. Cancel-safe.
    pub async fn panicked(&self) {
        self.0.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio_util::task::TaskTracker;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_noticed_and_an_end_is_not() {
        let (panics, tasks) = (Panics::default(), TaskTracker::new());
        tasks.spawn(panics.watch(async {})).await.unwrap();
        let aborted = tasks.spawn(panics.watch(std::future::pending::<()>()));
        aborted.abort();
        assert!(aborted.await.unwrap_err().is_cancelled());
        assert_eq!(panics.panicked().now_or_never(), None);
        let task = async {
            tokio::task::yield_now().await;
            panic!("on purpose");
        };
        assert!(tasks.spawn(panics.watch(task)).await.unwrap_err().is_panic());
        assert_eq!(panics.panicked().now_or_never(), Some(()));
    }
}
