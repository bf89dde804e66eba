//! The store: a database handle, the tasks of its watches, and what ends with it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use foundationdb::options::TransactionOption;
use foundationdb::{Database, FdbResult};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use weir_env::clock::{Clock, Instant};
use weir_storage::limits::LIFETIME;
use weir_storage::{Error, Result, Store, StoreStats, Transaction, Version};

use crate::keys::Prefix;
use crate::transaction::FdbTransaction;
use crate::{FdbNetwork, FdbOptions, cluster_file, errors, network, status};

/// A store in a FoundationDB cluster.
#[derive(Debug)]
pub struct FdbStore {
    shared: Arc<Shared>,
}

/// What transactions and watches use of their store. Fields are dropped in this order: the database before the network.
pub(crate) struct Shared {
    database: Database,
    pub(crate) prefix: Prefix,
    pub(crate) clock: Clock,
    pub(crate) stats: Arc<StoreStats>,
    /// Cancelled when the store is closed.
    pub(crate) closed: CancellationToken,
    /// Commits under way and watches, for `close` to wait for.
    pub(crate) tasks: TaskTracker,
    pub(crate) watches: AtomicUsize,
    cluster_file: PathBuf,
    coordinators: String,
    timeout: Duration,
    network: FdbNetwork,
}

impl FdbStore {
    /// Opens the store that `options` name and asks the cluster for a version, so that one that is not there is told
    /// here. Runs within a tokio runtime whose time is real.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the cluster file can't be used or the cluster does not answer in time.
    pub async fn open(network: &FdbNetwork, options: &FdbOptions, clock: Clock) -> Result<Self> {
        let prefix = Prefix::new(&options.name)?;
        let coordinators = cluster_file::check(&options.cluster_file)?;
        let path = options.cluster_file.to_str().ok_or_else(|| {
            Error::Unavailable("the path of a FoundationDB cluster file must be UTF-8".into())
        })?;
        let database = Database::new(Some(path)).map_err(errors::of_read)?;
        let shared = Arc::new(Shared {
            database,
            prefix,
            clock,
            stats: Arc::default(),
            closed: CancellationToken::new(),
            tasks: TaskTracker::new(),
            watches: AtomicUsize::new(0),
            cluster_file: options.cluster_file.clone(),
            coordinators,
            timeout: options.timeout,
            network: network.clone(),
        });
        let store = Self { shared };
        let answered = store.begin().read_version().await;
        network::stop_at_exit()?;
        answered.map(|_| store)
    }

    /// What this process has done to the store since it was opened.
    #[must_use]
    pub fn stats(&self) -> Arc<StoreStats> {
        Arc::clone(&self.shared.stats)
    }
}

#[async_trait]
impl Store for FdbStore {
    fn begin(&self) -> Box<dyn Transaction> {
        Box::new(FdbTransaction::new(Arc::clone(&self.shared)))
    }

    fn engine(&self) -> &'static str {
        "fdb"
    }

    /// A cluster that is away may come back; the network of a process does not.
    async fn failed(&self) -> Arc<str> {
        self.shared.network.died().await
    }

    /// The versions of a cluster are its own: only an operator moves them.
    async fn advance(&self, version: Version) -> Result<()> {
        let now = self.begin().read_version().await?;
        if now > version {
            return Ok(());
        }
        let (now, file) = (now.0, self.shared.cluster_file.display());
        let why = format!(
            "the version of the FoundationDB cluster of {file} is {now} and has to be beyond {}: \
             `fdbcli -C {file} --exec 'advanceversion {}'` moves it on, for everything in the cluster",
            version.0,
            version.0.saturating_add(1)
        );
        Err(Error::Unavailable(why.into()))
    }

    async fn describe(&self) -> Result<Vec<(&'static str, String)>> {
        let shared = &self.shared;
        let library = format!("{} ({})", shared.network.client_version(), shared.network.library().display());
        let mut facts = vec![
            ("cluster file", shared.cluster_file.display().to_string()),
            ("coordinators", shared.coordinators.clone()),
            ("client library", library),
        ];
        facts.extend(status::facts(shared).await?);
        Ok(facts)
    }

    async fn close(&self) {
        self.shared.closed.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Shared {
    /// Fails if the store is closed; else holds up `close` for as long as the token lives.
    pub(crate) fn enter(&self) -> Result<TaskTrackerToken> {
        let token = self.tasks.token();
        match self.closed.is_cancelled() {
            true => Err(Error::Unavailable("the store is closed".into())),
            false => self.network.check().map(|()| token),
        }
    }

    /// A transaction of FoundationDB that sees nothing of its own writes.
    pub(crate) fn transaction(&self) -> Result<foundationdb::Transaction> {
        let make = || {
            let transaction = self.database.create_trx()?;
            transaction.set_option(TransactionOption::ReadYourWritesDisable)?;
            // Ours comes first; this one ends what the client would go on with behind our back.
            let timeout = (self.timeout + LIFETIME).as_millis();
            transaction.set_option(TransactionOption::Timeout(i32::try_from(timeout).unwrap_or(i32::MAX)))?;
            Ok(transaction)
        };
        make().map_err(errors::of_read)
    }

    /// A transaction of FoundationDB as it comes.
    pub(crate) fn plain_transaction(&self) -> Result<foundationdb::Transaction> {
        self.database.create_trx().map_err(errors::of_read)
    }

    /// Until when an operation that begins now may take, all that it asks the cluster for included.
    pub(crate) fn deadline(&self) -> Instant {
        self.clock.now() + self.timeout
    }

    /// What a read or anything else that commits nothing gives, in time.
    pub(crate) async fn answer<T>(
        &self,
        future: impl Future<Output = FdbResult<T>>,
        deadline: Instant,
    ) -> Result<T> {
        match tokio::time::timeout_at(deadline, future).await {
            Ok(answer) => answer.map_err(errors::of_read),
            Err(_) => Err(self.silent()),
        }
    }

    /// How a commit ended, as far as can be told in time.
    pub(crate) async fn outcome<T, E>(
        &self,
        commit: impl Future<Output = std::result::Result<T, E>>,
        deadline: Instant,
    ) -> Result<T>
    where
        foundationdb::FdbError: From<E>,
    {
        match tokio::time::timeout_at(deadline, commit).await {
            Ok(outcome) => outcome.map_err(|error| errors::of_commit(error.into())),
            Err(_) => Err(Error::UnknownOpen),
        }
    }

    fn silent(&self) -> Error {
        let (file, coordinators) = (self.cluster_file.display(), &self.coordinators);
        Error::Unavailable(
            format!(
                "the FoundationDB cluster of {file} (coordinators {coordinators}) has not answered within {:?}; \
                 `fdbcli -C {file} --exec status` tells more; a client library of another release can't talk to it",
                self.timeout
            )
            .into(),
        )
    }

    pub(crate) fn count(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("cluster_file", &self.cluster_file)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
