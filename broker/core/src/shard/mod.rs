//! Virtual shards: one owner task each, which assigns offsets, commits batches and dispatches queues.
//!
//! The task is the only writer of its shard's logs and queue state. Whoever wants something from it holds a
//! [`ShardHandle`] and sends a [`Command`]; what is to become durable is counted in bytes until it is, so
//! a slow store turns into waiting publishers, never into growing memory.

mod asides;
mod batch;
#[cfg(test)]
mod batch_tests;
mod batches;
mod classes;
mod commit;
mod compaction;
mod dead_letters;
mod delays;
mod fence;
mod handed;
mod horizon;
mod load;
mod log;
mod logs;
mod moves;
mod mutations;
mod ops;
mod owner;
mod owners;
mod positions;
pub(crate) mod remote;
mod repeats;
mod retention;
mod roll;
mod rows;
mod seat;
mod stats;
mod trims;
mod upkeep;

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_storage::SharedStore;

use crate::activity::Activities;
use crate::catalog::Object;
use crate::cluster::Cluster;
use crate::controls::{ControlError, Wishes};
use crate::error::{Error, Result};
use crate::keyspace::delayed::DelayedId;
use crate::keyspace::mark::PublishId;
use crate::keyspace::owner::PodId;
use crate::keyspace::queue::QueueFloor;
use crate::keyspace::segment::Record;
use crate::keyspace::{LogId, VirtualShard};
use crate::metrics::Metrics;
use crate::panics::Panics;
use crate::queue::{Consumer, ConsumerId, ConsumerReport, Handout, Held, Lag, Lost, Rates, Verdict};
use crate::stream::{ReadMemory, TailReader};

pub use dead_letters::{
    DELIVERY_COUNT_PROPERTY, PublishLetters, QUEUE_PROPERTY, REASON_PROPERTY, TOPIC_PROPERTY, TopicLetter,
};
pub(crate) use dead_letters::{DeadLetter, DeadLetters, Sent};
pub(crate) use handed::Offer;
pub(crate) use load::{blob, read_asides, read_records};
pub use load::{load_blob, read_segments};
pub(crate) use ops::{Operation, States};
pub(crate) use owners::Owners;
use positions::PendingPositions;
pub(crate) use positions::write_positions;
pub(crate) use remote::Remote;
pub use repeats::DEDUP_IDS_MAX;
use repeats::Names;
pub use rows::TOMBSTONE_KEPT;
pub(crate) use seat::is_ours;
use trims::TrimReply;

/// Commands a shard accepts before senders wait.
const COMMANDS_MAX: usize = 4096;
/// Bytes of records that may wait for one shard's commits before publishers wait.
pub const APPEND_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What owner tasks share.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where everything is kept.
    pub store: SharedStore,
    /// Time.
    pub clock: Clock,
    /// Randomness.
    pub seed: Seed,
    /// Counters.
    pub metrics: Metrics,
    /// This process.
    pub pod: PodId,
    /// When messages of queues are moved out of their log.
    pub lag: Lag,
    /// What readers of streams share.
    pub(crate) reading: ReadMemory,
    /// What is going on in streams.
    pub(crate) activities: Activities,
    /// The way of dead letters to their targets.
    pub(crate) dead_letters: Arc<DeadLetters>,
    /// Shards of other pods; none if there can be no others.
    pub(crate) remote: Option<Arc<Remote>>,
    /// Where there are other pods.
    pub(crate) cluster: Option<Cluster>,
    /// Cancelled when shards are closed: what cannot be finished is not waited for.
    pub(crate) closed: CancellationToken,
}

/// Why a record was not appended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The queue or stream has reached a limit its owner set, and refuses more.
    #[error("{name} is full: {what} has reached its limit")]
    Full {
        /// Of the queue or stream.
        name: String,
        /// `retention.maxMessages`, `retention.maxBytes` or `dedup.window`.
        what: &'static str,
    },
    /// Its publisher asks for what the queue cannot do.
    #[error("{name} refuses the message: {problem}")]
    Invalid {
        /// Of the queue.
        name: String,
        /// What is wrong.
        problem: ControlError,
    },
    /// It is not durable, as far as is known.
    #[error("store the message: {0}")]
    Failed(#[from] Error),
}

impl AppendError {
    /// The label of [`AppendError::Full`].
    pub(crate) const FULL: &'static str = "full";

    /// A bounded label for metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Full { .. } => Self::FULL,
            Self::Invalid { .. } => "invalid",
            Self::Failed(Error::Closed) => "closed",
            Self::Failed(_) => "store",
        }
    }
}

/// Records with their offsets, and the offset at which the next read begins.
pub(crate) type ReadRecords = (Vec<(u64, Arc<Record>)>, u64);

/// The answer to an append, once it is durable.
pub type AppendReply = oneshot::Receiver<std::result::Result<(), AppendError>>;

/// The readable part of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// First offset kept.
    pub start: u64,
    /// End of the committed log.
    pub next: u64,
}

/// A log of a stream as its owner shows it to a reader.
#[derive(Debug)]
pub(crate) struct Watched {
    /// Announced with each change.
    pub(crate) extent: watch::Receiver<Extent>,
    /// Its newest records.
    pub(crate) tail: TailReader,
}

/// What an owner says of one of its logs.
#[derive(Clone, Debug, Default)]
pub struct LogReport {
    /// First offset kept and end of the log.
    pub extent: Extent,
    /// Bytes of segments kept, or of the rows of a compacted stream.
    pub bytes: u64,
    /// Messages kept of a stream: of a compacted one fewer than its offsets.
    pub messages: u64,
    /// Microseconds since the Unix epoch of the last record; zero if there is none.
    pub last_ts_micros: u64,
    /// Readers of a stream that have it open.
    pub readers: usize,
    /// When the first message that a stream keeps came, about, if there is one and the owner knows.
    pub oldest: Option<Timestamp>,
    /// Of a queue.
    pub queue: Option<QueueReport>,
}

/// What an owner says of one shard of a queue.
#[derive(Clone, Debug, Default)]
pub struct QueueReport {
    /// Everything below is done.
    pub floor: u64,
    /// Messages that are not done.
    pub depth: u64,
    /// Bytes of messages that are not done.
    pub bytes: u64,
    /// Messages of those that wait for their time.
    pub delayed: u64,
    /// Messages that consumers hold.
    pub inflight: u64,
    /// Messages that were moved out of the log and are not done.
    pub aside: u64,
    /// What has become of its messages, ever.
    pub counters: QueueFloor,
    /// Messages that were given up and are not in the dead letters yet; they are part of the depth.
    pub dying: u64,
    /// Why they cannot leave, if they cannot, and what to do.
    pub dead_letter_blocked: Option<Arc<str>>,
    /// Messages that wait to be delivered again.
    pub waiting: u64,
    /// When the oldest message that is not done came, if there is one and the owner knows.
    pub oldest: Option<Timestamp>,
    /// Deliveries since the shard was loaded.
    pub delivered: u64,
    /// Deliveries of a message of which a delivery had failed, among them.
    pub redelivered: u64,
    /// What has happened lately.
    pub rates: Rates,
    /// Consumers and what each holds and does.
    pub consumers: Vec<ConsumerReport>,
}

/// What a shard can be asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Append(PendingAppend),
    Watch {
        object: Arc<Object>,
        log: LogId,
        reply: oneshot::Sender<Result<Watched>>,
    },
    /// Answered once nothing is in flight.
    Settled {
        reply: oneshot::Sender<()>,
    },
    Attach {
        object: Arc<Object>,
        log: LogId,
        consumer: Consumer,
        reply: oneshot::Sender<Result<()>>,
    },
    Detach {
        log: LogId,
        consumer: ConsumerId,
        lost: Lost,
    },
    Settle {
        handout: Handout,
        verdict: Verdict,
    },
    Kick {
        log: LogId,
        consumer: ConsumerId,
    },
    Update {
        object: Arc<Object>,
        log: LogId,
    },
    Classes {
        object: Arc<Object>,
        log: LogId,
        reply: oneshot::Sender<Result<Vec<LogId>>>,
    },
    Delete {
        log: LogId,
        reply: oneshot::Sender<Result<()>>,
    },
    Describe {
        object: Arc<Object>,
        log: LogId,
        reply: oneshot::Sender<Result<LogReport>>,
    },
    Operate {
        object: Arc<Object>,
        log: LogId,
        operation: Operation,
    },
    Positions(PendingPositions),
    Trim {
        object: Arc<Object>,
        log: LogId,
        below: u64,
        reply: TrimReply,
    },
    /// Another pod's consumer comes, or comes back: with what it holds, which nobody else gets, and what it was called
    /// before.
    Resume {
        object: Arc<Object>,
        log: LogId,
        consumer: Consumer,
        held: Vec<Held>,
        replaces: Option<ConsumerId>,
        reply: oneshot::Sender<Result<()>>,
    },
    /// Another pod has announced its consumers.
    Present {
        pod: PodId,
    },
    /// Asked by another pod: for the owner alone, never to be sent on.
    Foreign(Box<Self>),
    /// Somebody is about to give the shard to another pod: what came before is committed, and the owner stops.
    HandOver {
        reply: oneshot::Sender<Offer>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
}

impl Command {
    /// What is asked, whoever asks it.
    fn of_anybody(self) -> Self {
        match self {
            Self::Foreign(command) => *command,
            own => own,
        }
    }
}

impl PendingAppend {
    /// What names it.
    pub(crate) fn names(&self) -> Names {
        Names { publish: self.publish.map(|(id, _)| id), dedup: self.wishes.dedup }
    }

    /// Tells its publisher what became of it.
    pub(crate) fn answer(self, result: std::result::Result<(), AppendError>) {
        if let Some(reply) = self.reply {
            // A publisher whose connection is gone does not want the answer.
            let _ = reply.send(result);
        }
    }
}

/// A record on its way into a log.
#[derive(Debug)]
pub(crate) struct PendingAppend {
    pub(crate) object: Arc<Object>,
    pub(crate) log: LogId,
    pub(crate) record: Arc<Record>,
    /// Set for publishes that may be repeated; `true` if this is a repeat.
    pub(crate) publish: Option<(PublishId, bool)>,
    pub(crate) wishes: Wishes,
    /// It comes from another pod: never to be sent on.
    pub(crate) is_foreign: bool,
    /// Set for a message that has waited for its time, of which nobody wants to hear.
    pub(crate) moved: Option<DelayedId>,
    pub(crate) reply: Option<oneshot::Sender<std::result::Result<(), AppendError>>>,
    /// Held until the record is durable.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// The cheap front of a shard's owner task.
#[derive(Clone, Debug)]
pub struct ShardHandle {
    commands: mpsc::Sender<Command>,
    bytes: Arc<Semaphore>,
}

impl ShardHandle {
    /// Starts the task of `vs` on `tasks`, watched by `panics`; alone it takes the shard over when it first has to, in a
    /// cluster at once if it is this pod's.
    #[must_use]
    pub fn spawn(context: Context, vs: VirtualShard, tasks: &TaskTracker, panics: &Panics) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        tasks.spawn(panics.watch(seat::run(context, vs, inbox)));
        Self { commands, bytes: Arc::new(Semaphore::new(APPEND_BYTES_MAX)) }
    }

    /// Puts a record in line for `log`; waits while too much is in line. Records are appended in the order
    /// of these calls. The reply comes once the record is durable.
    pub(crate) async fn append(
        &self,
        object: Arc<Object>,
        log: LogId,
        record: Record,
        publish: Option<(PublishId, bool)>,
        wishes: Wishes,
    ) -> Result<AppendReply> {
        self.put_in_line(object, log, Arc::new(record), publish, wishes, false).await
    }

    /// The same for a record that another pod has: only an owner takes it, else there is no reply.
    pub(crate) async fn append_foreign(
        &self,
        object: Arc<Object>,
        log: LogId,
        record: Arc<Record>,
        publish: Option<(PublishId, bool)>,
        wishes: Wishes,
    ) -> Result<AppendReply> {
        self.put_in_line(object, log, record, publish, wishes, true).await
    }

    async fn put_in_line(
        &self,
        object: Arc<Object>,
        log: LogId,
        record: Arc<Record>,
        publish: Option<(PublishId, bool)>,
        wishes: Wishes,
        is_foreign: bool,
    ) -> Result<AppendReply> {
        let cost = record.message.size();
        let permits = u32::try_from(cost.min(APPEND_BYTES_MAX)).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(permits).await;
        let permit = bytes.map_err(|_| Error::Closed)?;
        let (reply, answer) = oneshot::channel();
        self.send(Command::Append(PendingAppend {
            object,
            log,
            record,
            publish,
            wishes,
            is_foreign,
            moved: None,
            reply: Some(reply),
            permit: Some(permit),
        }))
        .await?;
        Ok(answer)
    }

    /// Waits until all that was in flight is stored, or will never be. What is stored later is not older than this call.
    pub(crate) async fn settled(&self) -> Result<()> {
        self.ask(|reply| Command::Settled { reply }).await
    }

    pub(crate) async fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).await.map_err(|_| Error::Closed)
    }

    /// Sends a command that carries its reply, and waits for it.
    pub(crate) async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.send(make(reply)).await?;
        answer.await.map_err(|_| Error::Closed)
    }
}
