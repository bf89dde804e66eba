//! The server: a local store, the sessions of its clients, and the calls of `weir.store.v1`.
//!
//! Where it listens and who may call is its owner's business: [`Served::calls`] is a service to be put behind both.
//! Requests are checked here and nowhere else; a client may send anything and breaks nothing but its own data.

mod calls;
mod horizon;
mod sessions;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_proto::store::v1::store_server::StoreServer;
use weir_storage::limits::TRANSACTION_BYTES_MAX;
use weir_storage::{Result, SharedStore};

pub use self::calls::Calls;
use self::horizon::{Horizon, TOUCH_INTERVAL};
use self::sessions::Sessions;
pub use self::sessions::{SESSIONS_MAX, WATCHES_MAX};

/// Largest request: a transaction at its limit. What the wire adds to each operation is less than it counts.
pub const REQUEST_BYTES_MAX: usize = TRANSACTION_BYTES_MAX + (64 << 10);
/// Commits under way at the same time, of all clients.
const COMMITS_MAX: usize = 1_024;

/// A store that is served. Its owner runs [`Served::maintain`] and ends with [`Served::close`].
#[derive(Clone)]
pub struct Served {
    shared: Arc<Shared>,
}

/// What calls use.
struct Shared {
    store: SharedStore,
    clock: Clock,
    horizon: Horizon,
    sessions: Sessions,
    commits: Arc<Semaphore>,
    /// Commits and watches: they outlive their calls.
    tasks: TaskTracker,
    /// Cancelled when the server ends.
    closing: CancellationToken,
    stats: ServedStats,
}

/// What has been asked so far. Every number only grows.
#[derive(Debug, Default)]
pub struct ServedStats {
    /// Reads of versions, keys and pages.
    pub reads: AtomicU64,
    /// Commits that were asked for.
    pub commits: AtomicU64,
    /// Clients that have asked how a commit ended.
    pub settled: AtomicU64,
    /// Calls that were refused because of a bound.
    pub refused: AtomicU64,
}

impl Served {
    /// Begins to serve `store`, which nobody else has open and whose versions are microseconds: a local engine.
    ///
    /// # Errors
    /// If the store takes no commit.
    pub async fn new(store: SharedStore, clock: Clock, seed: &Seed) -> Result<Self> {
        let horizon = Horizon::begin(&*store).await?;
        let shared = Shared {
            store,
            clock,
            horizon,
            sessions: Sessions::new(clock, seed),
            commits: Arc::new(Semaphore::new(COMMITS_MAX)),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            stats: ServedStats::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The service. Its calls end when the store is closed.
    #[must_use]
    pub fn calls(&self) -> StoreServer<Calls> {
        StoreServer::new(Calls(Arc::clone(&self.shared)))
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(REQUEST_BYTES_MAX)
    }

    /// Keeps versions going and forgets old sessions, until the store is closed.
    pub async fn maintain(&self) {
        let shared = &self.shared;
        let mut last = shared.horizon.last();
        loop {
            tokio::select! {
                () = tokio::time::sleep(TOUCH_INTERVAL) => {}
                () = shared.closing.cancelled() => return,
            }
            shared.sessions.forget_old();
            if shared.horizon.last() == last
                && let Err(error) = shared.horizon.touch(&*shared.store).await
            {
                tracing::warn!(%error, "the store takes no commits; reads go on for an hour");
            }
            last = shared.horizon.last();
        }
    }

    /// What has been asked so far.
    #[must_use]
    pub fn stats(&self) -> &ServedStats {
        &self.shared.stats
    }

    /// Clients that are attached, and the watches they have.
    #[must_use]
    pub fn sessions(&self) -> (usize, usize) {
        self.shared.sessions.count()
    }

    /// Ends the sessions, so that their calls end, and waits for commits under way. The store stays open.
    pub async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.sessions.end_all();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").field("store", &self.shared.store).finish_non_exhaustive()
    }
}

impl Shared {
    fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
