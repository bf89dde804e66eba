//! The owner tasks of this pod, by virtual shard: each is started when it is first needed.

use std::sync::OnceLock;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use super::{Command, Context, ShardHandle};
use crate::error::{Error, Result};
use crate::keyspace::VirtualShard;
use crate::panics::Panics;

/// Handles of the owner tasks.
#[derive(Debug)]
pub(crate) struct Owners {
    context: Context,
    handles: Box<[OnceLock<ShardHandle>]>,
    /// Held while an owner task is started: none is once it is true.
    is_closed: Mutex<bool>,
    tasks: TaskTracker,
    panics: Panics,
}

impl Owners {
    pub(crate) fn new(context: Context, virtual_shards: u16) -> Self {
        Self {
            context,
            handles: (0..virtual_shards).map(|_| OnceLock::new()).collect(),
            is_closed: Mutex::new(false),
            tasks: TaskTracker::new(),
            panics: Panics::default(),
        }
    }

    /// What the owners share.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// The owner of `vs`.
    ///
    /// # Errors
    /// [`Error::Closed`] at shutdown.
    pub(crate) fn get(&self, vs: VirtualShard) -> Result<&ShardHandle> {
        let slot = self.handles.get(usize::from(vs.0)).ok_or(Error::Closed)?;
        if let Some(handle) = slot.get() {
            return Ok(handle);
        }
        let is_closed = self.is_closed.lock();
        if *is_closed {
            return Err(Error::Closed);
        }
        Ok(slot.get_or_init(|| ShardHandle::spawn(self.context.clone(), vs, &self.tasks, &self.panics)))
    }

    /// Starts a task that ends when the shards are closed.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(self.panics.watch(task));
    }

    /// Whether `vs` has a task.
    pub(crate) fn is_running(&self, vs: VirtualShard) -> bool {
        self.handles.get(usize::from(vs.0)).is_some_and(|slot| slot.get().is_some())
    }

    /// Waits until an owner panicked. Cancel-safe.
    pub(crate) async fn panicked(&self) {
        self.panics.panicked().await;
    }

    /// Lets every owner commit what is in line, and waits for their ends.
    pub(crate) async fn close(&self) {
        *self.is_closed.lock() = true;
        self.context.closed.cancel();
        self.tasks.close();
        let mut closed = Vec::new();
        for handle in self.handles.iter().filter_map(OnceLock::get) {
            let (reply, answer) = oneshot::channel();
            if handle.send(Command::Close { reply }).await.is_ok() {
                closed.push(answer);
            }
        }
        for answer in closed {
            // An owner that has already ended has nothing left to commit.
            let _ = answer.await;
        }
        self.tasks.wait().await;
    }
}
