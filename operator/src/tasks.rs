//! The tasks of this process. Owned by who leads; one that panics ends the process, since nobody would do its work.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tasks that end together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    cancel: CancellationToken,
    failed: CancellationToken,
}

struct Watchman(CancellationToken);

impl Drop for Watchman {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.cancel();
        }
    }
}

impl Tasks {
    /// Starts one; it ends by itself soon after [`Tasks::cancel`].
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let watchman = Watchman(self.failed.clone());
        self.tracker.spawn(async move {
            let _watchman = watchman;
            task.await;
        });
    }

    /// Starts one that may be dropped at any point.
    pub(crate) fn spawn_droppable(
        &self,
        cancel: CancellationToken,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Tells them to end.
    pub(crate) fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Until one has panicked.
    pub(crate) async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Tells them to end and waits until they have.
    pub(crate) async fn end(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_noticed() {
        let tasks = Tasks::default();
        tasks.spawn(async {});
        tasks.spawn(async { panic!("on purpose") });
        tasks.failed().await;
        tasks.end().await;
    }

    #[tokio::test]
    async fn they_end_together() {
        let tasks = Tasks::default();
        tasks.spawn_droppable(tasks.cancel().child_token(), std::future::pending());
        tasks.end().await;
    }
}
