//! Adds messages to inboxes: some tasks, each with one commit in flight that takes along what has come since
//! the last one. Messages of one topic go through one task, so their order holds in every inbox.
//!
//! A message holds its share of the pending bytes until it is durable; who wants to add one more waits.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use bytestring::ByteString;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use smallvec::SmallVec;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_storage::{Error as StoreError, Isolation, RangeQuery, Version};

use super::batch::{Known, Over, Pending, Plan, has_it, progress};
use super::limits::{Admission, InboxRoom};
use super::trim::trim;
use super::waiter::{Completion, Waiter};
use super::{InboxLimits, InboxOverflow, InboxUsage};
use crate::keyspace::inbox::{InboxBody, InboxKeys, InboxRow};
use crate::keyspace::session::Incarnation;
use crate::keyspace::{PublishId, placement_hash};
use crate::message::Message;
use crate::sessions::{Retry, Sessions};
use crate::{Error, Result};

/// Messages waiting for one task, beside the bound on their bytes.
const QUEUE_MAX: usize = 1_024;
/// Inboxes counted at the same time.
const COUNTS_MAX: usize = 2;

/// Called after the commit, once for each inbox that a message was added to. It must not block.
pub type Notify = Arc<dyn Fn(&InboxTarget) + Send + Sync>;

/// The inbox that a message is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxTarget {
    /// Whose.
    pub client_id: ByteString,
    /// Of which of its sessions.
    pub incarnation: Incarnation,
    /// Quality of service of the delivery: 1 or 2.
    pub qos: u8,
    /// RETAIN of the delivery.
    pub retain: bool,
    /// Identifiers of the subscriptions that matched.
    pub subscription_ids: SmallVec<[u32; 2]>,
}

/// A message for some inboxes.
#[derive(Clone, Debug)]
pub struct InboxAppend {
    /// The message.
    pub message: Arc<Message>,
    /// For whom: each client once.
    pub targets: SmallVec<[InboxTarget; 2]>,
    /// Of a QoS 2 publish: repeating it adds nothing to inboxes that have it.
    pub mark: Option<PublishId>,
    /// Where a publish with a mark is noted while it may be repeated: the session and packet id of its publisher. With
    /// other pods nothing is added once it is not: another pod has brought it to its end, and its mark is gone.
    pub noted: Option<(ByteString, u16)>,
}

/// How an [`InboxWriter`] works.
#[derive(Clone, Copy, Debug)]
pub struct InboxOptions {
    /// Tasks, each with one commit in flight.
    pub tasks: usize,
    /// Bytes of messages that are not yet durable; who adds more waits.
    pub pending_bytes_max: u32,
    /// How much one inbox may hold, and what happens beyond.
    pub limits: InboxLimits,
}

impl Default for InboxOptions {
    fn default() -> Self {
        Self { tasks: 4, pending_bytes_max: 64 << 20, limits: InboxLimits::default() }
    }
}

/// What writers count. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct InboxMetrics {
    /// Rows added.
    pub appended: Counter,
    /// Deliveries dropped because the inbox was full, old or new as the rule has it.
    pub dropped_full: Counter,
    /// Publishes refused because an inbox was full.
    pub refused_full: Counter,
    /// Transactions committed.
    pub batches: Counter,
    /// Messages that could not be stored.
    pub failed: Counter,
}

impl InboxMetrics {
    /// Makes the counters part of `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("inbox_appended", "Messages added to inboxes", self.appended.clone());
        registry.register(
            "inbox_dropped_full",
            "Messages dropped for a full inbox",
            self.dropped_full.clone(),
        );
        registry.register(
            "inbox_refused_full",
            "Publishes refused for a full inbox",
            self.refused_full.clone(),
        );
        registry.register("inbox_batches", "Transactions that add to inboxes", self.batches.clone());
        registry.register("inbox_failed", "Messages that could not be stored", self.failed.clone());
    }
}

/// The handle of the writing tasks. Cheap to clone.
#[derive(Clone)]
pub struct InboxWriter {
    task_txs: Arc<[mpsc::Sender<Pending>]>,
    pending_bytes: Arc<Semaphore>,
    options: InboxOptions,
    room: InboxRoom,
}

impl fmt::Debug for InboxWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboxWriter").field("options", &self.options).finish_non_exhaustive()
    }
}

impl InboxWriter {
    /// Starts the tasks on `tracker`. After `stop` they finish what they have been given and end.
    #[must_use]
    pub fn spawn(
        sessions: &Sessions,
        options: InboxOptions,
        metrics: &InboxMetrics,
        notify: Notify,
        tracker: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let counting = Arc::new(Semaphore::new(COUNTS_MAX));
        let trimming = Arc::default();
        let task_txs = (0..options.tasks.max(1)).map(|_| {
            let (task_tx, task_rx) = mpsc::channel(QUEUE_MAX);
            let task = Task {
                sessions: sessions.clone(),
                metrics: metrics.clone(),
                notify: Arc::clone(&notify),
                limits: options.limits,
                tracker: tracker.clone(),
                counting: Arc::clone(&counting),
                trimming: Arc::clone(&trimming),
                stop: stop.clone(),
            };
            tracker.spawn(task.run(task_rx));
            task_tx
        });
        let pending_bytes = Arc::new(Semaphore::new(options.pending_bytes_max as usize));
        let counters = Arc::clone(&sessions.shared.counters);
        let room = InboxRoom { counters, limits: options.limits };
        Self { task_txs: task_txs.collect(), pending_bytes, options, room }
    }

    /// Tells which inboxes have room.
    #[must_use]
    pub fn room(&self) -> InboxRoom {
        self.room.clone()
    }

    /// Takes a message; waits while too much is pending. Its place in the order of its topic is fixed when this
    /// returns; the message is durable when the completion says so.
    ///
    /// # Errors
    /// [`Error::Closed`] after the stop. Cancel-safe: a message whose future is dropped was not taken.
    pub async fn append(&self, append: InboxAppend) -> Result<Completion> {
        if append.targets.is_empty() {
            return Ok(Completion::ready(Ok(())));
        }
        let targets: usize = append.targets.iter().map(|target| target.client_id.len() + 128).sum();
        let bytes = u32::try_from(append.message.size() + targets).unwrap_or(u32::MAX);
        let bytes = bytes.min(self.options.pending_bytes_max);
        let permit = Arc::clone(&self.pending_bytes).acquire_many_owned(bytes).await;
        let permit = permit.map_err(|_| Error::Closed)?;
        let hash = placement_hash(append.message.topic.as_bytes());
        let task = usize::try_from(hash % self.task_txs.len() as u64).unwrap_or(0);
        let (waiter, completion) = Waiter::new(permit);
        let pending = Pending::new(append, waiter);
        let task_tx = self.task_txs.get(task).ok_or(Error::Closed)?;
        task_tx.send(pending).await.map_err(|_| Error::Closed)?;
        Ok(completion)
    }
}

struct Task {
    sessions: Sessions,
    metrics: InboxMetrics,
    notify: Notify,
    limits: InboxLimits,
    tracker: TaskTracker,
    counting: Arc<Semaphore>,
    /// Held by the one task that drops old messages: two would drop twice as many.
    trimming: Arc<tokio::sync::Mutex<()>>,
    stop: CancellationToken,
}

impl Task {
    async fn run(self, mut task_rx: mpsc::Receiver<Pending>) {
        let mut queue = VecDeque::new();
        loop {
            if queue.is_empty() {
                let received = tokio::select! {
                    biased;
                    received = task_rx.recv() => received,
                    () = self.stop.cancelled(), if !task_rx.is_closed() => {
                        task_rx.close();
                        continue;
                    }
                };
                let Some(pending) = received else { return };
                self.admit(&mut queue, pending).await;
            }
            while queue.len() < QUEUE_MAX
                && let Ok(pending) = task_rx.try_recv()
            {
                self.admit(&mut queue, pending).await;
            }
            self.commit(&mut queue).await;
        }
    }

    /// Sees to the targets whose inbox is full, and queues the message for the rest.
    async fn admit(&self, queue: &mut VecDeque<Pending>, mut pending: Pending) {
        if let Err(error) = self.skip_known(&mut pending).await {
            self.metrics.failed.inc();
            return pending.into_waiter().complete(Err(error));
        }
        let counters = &self.sessions.shared.counters;
        let bytes = pending.encoded_len();
        let mut uncounted = Vec::new();
        let mut admit = |target: &InboxTarget| {
            let add = || counters.add(&target.client_id, target.incarnation, bytes, &self.limits);
            let mut admission = add();
            if admission == Admission::Full && self.may_be_emptier(target) {
                admission = add();
            }
            if admission == Admission::First {
                uncounted.push((target.client_id.clone(), target.incarnation));
            }
            admission != Admission::Full
        };
        let rejected = if self.limits.overflow == InboxOverflow::RejectPublish {
            // All or none: its publisher tries again, and must not fill the others meanwhile.
            let targets = pending.remaining();
            let admitted = targets.iter().take_while(|target| admit(target)).count();
            let rejected = admitted < targets.len();
            for target in targets.iter().take(admitted).filter(|_| rejected) {
                counters.undo(&target.client_id, target.incarnation, bytes);
            }
            rejected
        } else {
            let before = pending.remaining().len();
            pending.retain_targets(admit);
            self.metrics.dropped_full.inc_by((before - pending.remaining().len()) as u64);
            false
        };
        if !uncounted.is_empty() {
            let now = self.sessions.shared.clock.now();
            // What is in those inboxes now: not this message, which has counted itself.
            match self.sessions.shared.store.begin().read_version().await {
                Ok(version) => self.spawn_count(uncounted, version),
                Err(error) => {
                    tracing::warn!(%error, "inboxes are not counted, their limits come late");
                    for (client_id, incarnation) in uncounted {
                        counters.add_counted(&client_id, incarnation, InboxUsage::default(), now);
                    }
                }
            }
        }
        if rejected {
            self.metrics.refused_full.inc();
            pending.into_waiter().complete(Err(Error::Full("messages for a session")));
        } else if let Some(pending) = pending.prepare(&self.sessions.shared.seed) {
            queue.push_back(pending);
        }
    }

    /// Whether an inbox that seems to be full is counted anew, because another pod takes from it.
    fn may_be_emptier(&self, target: &InboxTarget) -> bool {
        let shared = &*self.sessions.shared;
        let (client_id, incarnation) = (&target.client_id, target.incarnation);
        shared.is_read_elsewhere(client_id)
            && shared.counters.recount(client_id, incarnation, shared.clock.now(), &self.limits)
    }

    /// Leaves out the targets that a repeated publish has reached before, where the others may be refused: what is
    /// stored is not full.
    async fn skip_known(&self, pending: &mut Pending) -> Result<()> {
        let Some(mark) = pending.mark().filter(|_| self.limits.overflow != InboxOverflow::DropOldest) else {
            return Ok(());
        };
        let shared = &*self.sessions.shared;
        let room = InboxRoom { counters: Arc::clone(&shared.counters), limits: self.limits };
        let bytes = pending.encoded_len();
        let fits = |target: &InboxTarget| room.has_room(&target.client_id, target.incarnation, bytes);
        if pending.remaining().iter().all(fits) {
            return Ok(());
        }
        let progress = progress(shared, &mut *shared.store.begin(), &mark).await?;
        pending.retain_targets(|target| !has_it(progress.as_ref(), target));
        Ok(())
    }

    /// Commits one transaction's worth from the front of the queue.
    async fn commit(&self, queue: &mut VecDeque<Pending>) {
        let shared = &*self.sessions.shared;
        while let Some(pending) = queue.front_mut() {
            match pending.write_blob(shared).await {
                Ok(()) => break,
                Err(error) => {
                    let Some(pending) = queue.pop_front() else { return };
                    self.fail(pending, error);
                }
            }
        }
        let plan = Plan::new(queue);
        if plan.is_empty() {
            return;
        }
        let mut retry = Retry::new(shared.clock);
        let mut known = Vec::new();
        let mut over = Over::default();
        let outcome = loop {
            let mut tx = shared.store.begin();
            let mut known_now = Vec::new();
            over.clear();
            let outcome = plan.apply(shared, &mut *tx, queue, &mut known_now, &mut over).await;
            if !retry.is_repeat() {
                // Later attempts also find what the first one may have added.
                known = known_now;
            }
            if let Some(outcome) = retry.commit(tx, outcome).await {
                break outcome;
            }
        };
        match outcome {
            Ok(((), _)) => {
                self.metrics.batches.inc();
                // They have counted themselves once more.
                for Known { client_id, incarnation, bytes } in known {
                    shared.counters.undo(&client_id, incarnation, bytes);
                }
                let added = plan.parts(queue).enumerate().filter(|(nth, _)| !over.contains(nth));
                for (_, (pending, targets)) in added {
                    self.metrics.appended.inc_by(targets.len() as u64);
                    targets.iter().for_each(|target| (self.notify)(target));
                    debug_assert!(!pending.is_done(), "parts are taken from what is pending");
                }
                if self.limits.overflow == InboxOverflow::DropOldest {
                    self.trim(plan.parts(queue).flat_map(|(_, targets)| targets)).await;
                }
                for (nth, pending) in plan.finish(queue).into_iter().enumerate() {
                    // Whoever asks is not the one who was told that it is done.
                    let outcome = if over.contains(&nth) { Err(Error::Fenced) } else { Ok(()) };
                    pending.into_waiter().complete(outcome);
                }
            }
            Err(error) => {
                for pending in plan.abandon(queue) {
                    self.fail(pending, error.clone());
                }
            }
        }
    }

    /// Drops the oldest messages of inboxes that hold too much.
    async fn trim(&self, targets: impl Iterator<Item = &InboxTarget>) {
        for target in targets {
            let (client_id, incarnation) = (&target.client_id, target.incarnation);
            if self.sessions.shared.counters.excess(client_id, incarnation, &self.limits).is_none()
                || self.may_be_emptier(target)
            {
                continue;
            }
            let _trimming = self.trimming.lock().await;
            match trim(&self.sessions.shared, client_id, incarnation, &self.limits).await {
                Ok(dropped) => drop(self.metrics.dropped_full.inc_by(dropped)),
                // The next message for it tries again.
                Err(error) => tracing::warn!(%error, "old messages of a full inbox stay"),
            }
        }
    }

    fn fail(&self, pending: Pending, error: Error) {
        self.metrics.failed.inc();
        let counters = &self.sessions.shared.counters;
        for target in pending.remaining() {
            counters.undo(&target.client_id, target.incarnation, pending.encoded_len());
        }
        pending.into_waiter().complete(Err(error));
    }

    /// Counts what was in inboxes before this process first added to them. Until that is known an inbox may take
    /// more than its limit.
    fn spawn_count(&self, inboxes: Vec<(ByteString, Incarnation)>, version: Version) {
        let (sessions, limits) = (self.sessions.clone(), self.limits);
        let (counting, stop) = (Arc::clone(&self.counting), self.stop.clone());
        let counted = async move {
            for (client_id, incarnation) in inboxes {
                let _permit = counting.acquire().await;
                let usage = match count(&sessions, &client_id, incarnation, &limits, version).await {
                    Ok(usage) => usage,
                    Err(error) => {
                        tracing::warn!(%error, "an inbox is not counted, its limit comes late");
                        InboxUsage::default()
                    }
                };
                let now = sessions.shared.clock.now();
                sessions.shared.counters.add_counted(&client_id, incarnation, usage, now);
            }
        };
        self.tracker.spawn(async move { stop.run_until_cancelled(counted).await });
    }
}

/// Counts an inbox up to its limits, as of `version` or, if that is too long ago, as it is.
async fn count(
    sessions: &Sessions,
    client_id: &ByteString,
    incarnation: Incarnation,
    limits: &InboxLimits,
    version: Version,
) -> Result<InboxUsage> {
    let keys = InboxKeys::new(&sessions.shared.keys(client_id), incarnation);
    let (begin, end) = keys.range();
    let mut next = Some(RangeQuery::new(begin, end).target_bytes(500_000));
    let mut usage = InboxUsage::default();
    let mut version = Some(version);
    while let Some(query) =
        next.take_if(|_| usage.messages < limits.messages_max && usage.bytes < limits.bytes_max)
    {
        let mut tx = sessions.shared.store.begin();
        if let Some(version) = version {
            tx.set_read_version(version);
        }
        let page = match tx.get_range(query.clone(), Isolation::Snapshot).await {
            Err(StoreError::TooOld) if version.is_some() => {
                version = None;
                next = Some(query);
                continue;
            }
            page => page?,
        };
        next = query.after(&page);
        for (key, value) in page.pairs {
            usage.messages += 1;
            usage.bytes += match InboxRow::decode(&keys.decode(key)?, value)?.body {
                InboxBody::Inline(encoded) => encoded.len() as u64,
                InboxBody::Blob { len, .. } => len,
            };
        }
    }
    Ok(usage)
}
