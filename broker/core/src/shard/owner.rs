//! The owner task of one virtual shard.
//!
//! One commit is in flight at a time; what arrives meanwhile goes into the next batch, so an idle shard
//! commits at once and a busy one in large batches, without a fixed delay. Acknowledgements ride along
//! with appends, or go alone after [`ACK_DELAY`].

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot, watch};
use weir_env::clock::Instant;

use super::batch::{self, Batch};
use super::commit::{self, Outcome};
use super::fence::{self, Tenure};
use super::log::{Log, Trim};
use super::retention::{self, Rule};
use super::{AppendError, Command, Context, Extent, LogReport, PendingAppend, QueueReport, load};
use crate::catalog::Object;
use crate::definition::Kind;
use crate::error::{Error, Result};
use crate::keyspace::segment::Record;
use crate::keyspace::{LogId, VirtualShard};
use crate::metrics::Reason;
use crate::queue::{Consumer, QueueShard, Settings};

/// Longest time that an acknowledgement waits for a batch to ride along with.
const ACK_DELAY: Duration = Duration::from_millis(5);
/// How often ownership is checked by a read, well below the age at which the store forgets a version.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often retention of a log in use is looked at.
const MAINTAIN_INTERVAL: Duration = Duration::from_secs(1);
/// Commands handled between two looks at everything else.
const COMMANDS_PER_TURN: usize = 256;
/// Bytes read ahead for a queue in one go.
const REFILL_BYTES: usize = 256 * 1024;
/// Wait after a failed background read.
const RETRY_WAIT: Duration = Duration::from_millis(100);

type Background = Pin<Box<dyn Future<Output = Done> + Send>>;
type Committing = Pin<Box<dyn Future<Output = (Batch, Outcome, Option<Tenure>)> + Send>>;

/// A background read that has ended.
enum Done {
    Refill { log: LogId, from: u64, result: Result<(Vec<(u64, Arc<Record>)>, u64)> },
    Retention { log: LogId, result: Result<Option<Trim>> },
}

/// State of the task.
pub(crate) struct ShardOwner {
    context: Context,
    vs: VirtualShard,
    commands: mpsc::Receiver<Command>,
    tenure: Option<Tenure>,
    checked_at: Option<Instant>,
    logs: BTreeMap<(u32, u8), Log>,
    committing: Option<Committing>,
    background: FuturesUnordered<Background>,
    acks_due: Option<Instant>,
    closing: Option<oneshot::Sender<()>>,
}

impl ShardOwner {
    pub(crate) fn new(context: Context, vs: VirtualShard, commands: mpsc::Receiver<Command>) -> Self {
        Self {
            context,
            vs,
            commands,
            tenure: None,
            checked_at: None,
            logs: BTreeMap::new(),
            committing: None,
            background: FuturesUnordered::new(),
            acks_due: None,
            closing: None,
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            self.start_batch();
            if self.committing.is_none() && self.closing.is_some() {
                break;
            }
            let due = self.next_timeout();
            let deadline = due.unwrap_or_else(|| self.context.clock.now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                (batch, outcome, tenure) = poll_optional(&mut self.committing) => {
                    self.committing = None;
                    self.finish_batch(batch, outcome, tenure);
                }
                Some(done) = self.background.next(), if !self.background.is_empty() => {
                    self.finish_background(done);
                }
                command = self.commands.recv(), if self.closing.is_none() => {
                    let Some(command) = command else { break };
                    self.handle_commands(command).await;
                }
                () = tokio::time::sleep_until(deadline), if due.is_some() => self.handle_timeout(),
            }
        }
        self.context.metrics.shards_owned.dec_by(i64::from(self.tenure.is_some()));
        if let Some(reply) = self.closing {
            let _ = reply.send(());
        }
    }

    async fn handle_commands(&mut self, first: Command) {
        self.handle(first).await;
        for _ in 1..COMMANDS_PER_TURN {
            let Ok(command) = self.commands.try_recv() else { break };
            self.handle(command).await;
        }
    }

    async fn handle(&mut self, command: Command) {
        match command {
            Command::Append(pending) => self.handle_append(pending).await,
            Command::Watch { object, log, reply } => {
                let result = self.log_mut(&object, log).await.map(|log| log.extent.subscribe());
                let _ = reply.send(result);
            }
            Command::Attach { object, log, consumer, reply } => {
                let result = self.attach(&object, log, consumer).await;
                let _ = reply.send(result);
            }
            Command::Detach { log, consumer, lost } => {
                let now = self.context.clock.now();
                self.with_queue(log, |queue| queue.detach(consumer, lost, Some(now)));
            }
            Command::Settle { log, consumer, offset, verdict } => {
                let now = self.context.clock.now();
                self.with_queue(log, |queue| queue.settle(consumer, offset, verdict, now));
            }
            Command::Kick { log } => self.with_queue(log, |_| ()),
            Command::Update { object, log } => self.update(object, log),
            Command::Delete { object, log, reply } => {
                let result = self.delete(&object, log).await;
                let _ = reply.send(result);
            }
            Command::Describe { object, log, reply } => {
                let result = self.log_mut(&object, log).await.map(|log| report(log));
                let _ = reply.send(result);
            }
            Command::Close { reply } => self.closing = Some(reply),
        }
    }

    async fn handle_append(&mut self, pending: PendingAppend) {
        let result = self.log_mut(&Arc::clone(&pending.object), pending.log).await.map(|_| ());
        if let Err(error) = result {
            self.refuse(pending, error);
            return;
        }
        if let Some((publish, true)) = pending.publish {
            match load::find_mark(&self.context, &pending.log, &publish).await {
                Ok(None) => {}
                Ok(Some(mark)) => {
                    let _ = pending.reply.send(Ok(mark.offset));
                    return;
                }
                Err(error) => {
                    self.refuse(pending, error);
                    return;
                }
            }
        }
        if let Some(log) = self.logs.get_mut(&(pending.log.object, pending.log.shard)) {
            log.pending.push_back(pending);
        }
    }

    fn refuse(&self, pending: PendingAppend, error: Error) {
        let error = AppendError::Failed(error);
        self.context.metrics.append_refused.get_or_create(&Reason { reason: error.label() }).inc();
        let _ = pending.reply.send(Err(error));
    }

    /// The log in memory: taken over and read from the store if need be.
    async fn log_mut(&mut self, object: &Arc<Object>, id: LogId) -> Result<&mut Log> {
        if self.tenure.is_none() {
            let (tenure, _) = fence::take_over(&self.context, self.vs, None).await?;
            self.checked_at = Some(self.context.clock.now());
            self.tenure = Some(tenure);
            self.context.metrics.shards_owned.inc();
            tracing::debug!(shard = self.vs.0, epoch = tenure.owner.epoch.0, "took virtual shard over");
        }
        let key = (id.object, id.shard);
        if !self.logs.contains_key(&key) {
            let log = load_log(&self.context, object, id).await?;
            self.logs.insert(key, log);
        }
        self.logs.get_mut(&key).ok_or(Error::Closed)
    }

    async fn attach(&mut self, object: &Arc<Object>, id: LogId, consumer: Consumer) -> Result<()> {
        let log = self.log_mut(object, id).await?;
        if let Some(queue) = &mut log.queue {
            queue.attach(consumer);
        }
        self.pump(id);
        Ok(())
    }

    /// Changes a queue in memory, if it is there, and lets what follows from it happen.
    fn with_queue(&mut self, id: LogId, change: impl FnOnce(&mut QueueShard)) {
        let log = self.logs.get_mut(&(id.object, id.shard));
        if let Some(queue) = log.and_then(|log| log.queue.as_mut()) {
            change(queue);
            self.pump(id);
        }
    }

    /// Hands out what can be handed out, and reads on if more could be.
    fn pump(&mut self, id: LogId) {
        let Some(log) = self.logs.get_mut(&(id.object, id.shard)) else { return };
        let Some(queue) = &mut log.queue else { return };
        queue.dispatch(self.context.clock.now(), self.context.clock.wall());
        if queue.is_dirty() && self.acks_due.is_none() {
            self.acks_due = Some(self.context.clock.now() + ACK_DELAY);
        }
        if !log.refilling
            && let Some(from) = queue.wants_records()
        {
            log.refilling = true;
            let store = Arc::clone(&self.context.store);
            self.background.push(Box::pin(async move {
                let result = load::read_records(&store, &id, from, REFILL_BYTES).await;
                if result.is_err() {
                    tokio::time::sleep(RETRY_WAIT).await;
                }
                Done::Refill { log: id, from, result }
            }));
        }
    }

    fn update(&mut self, object: Arc<Object>, id: LogId) {
        let Some(log) = self.logs.get_mut(&(id.object, id.shard)) else { return };
        if let Some(queue) = &mut log.queue {
            queue.update(settings(&object));
        }
        log.object = object;
    }

    /// Removes everything stored of a log. Waits for the batch in flight, which may write it.
    async fn delete(&mut self, object: &Arc<Object>, id: LogId) -> Result<()> {
        self.log_mut(object, id).await?;
        if let Some(committing) = self.committing.take() {
            let (batch, outcome, tenure) = committing.await;
            self.finish_batch(batch, outcome, tenure);
        }
        if let Some(log) = self.logs.remove(&(id.object, id.shard)) {
            for pending in log.pending {
                self.refuse(pending, Error::Closed);
            }
        }
        let Some(tenure) = self.tenure else { return Err(Error::Fenced) };
        let batch = Batch { mutations: batch::all_of(&id), ..Batch::default() };
        match commit::commit(self.context.clone(), self.vs, tenure, batch).await.1 {
            Outcome::Committed(_) => Ok(()),
            Outcome::Fenced => Err(Error::Fenced),
            Outcome::Failed(error) | Outcome::Unknown(error) => Err(error),
        }
    }

    fn start_batch(&mut self) {
        if self.committing.is_some() {
            return;
        }
        let now = self.context.clock.now();
        let acks_wait = self.acks_due.is_some_and(|due| due > now) && self.closing.is_none();
        let has_appends = self.logs.values().any(|log| !log.pending.is_empty() || log.trim.is_some());
        let has_acks = self.logs.values().any(Log::has_dirty_queue);
        if !has_appends && (!has_acks || acks_wait) {
            return;
        }
        let Some(mut tenure) = self.tenure else { return };
        let id = self.context.seed.next_id();
        let batch = batch::build(&mut self.logs, id, tenure.owner.epoch, self.context.clock.wall());
        if !self.logs.values().any(Log::has_dirty_queue) {
            self.acks_due = None;
        }
        if batch.mutations.is_empty() {
            batch.answer(Ok(()));
            return;
        }
        let check = self.checked_at.is_none_or(|at| now.saturating_duration_since(at) >= CHECK_INTERVAL);
        if check {
            self.checked_at = Some(now);
        }
        let (context, vs) = (self.context.clone(), self.vs);
        self.committing = Some(Box::pin(async move {
            if check {
                match check_tenure(&context, vs, &tenure).await {
                    Ok(seen) => tenure.seen = seen,
                    Err(Error::Fenced) => return (batch, Outcome::Fenced, None),
                    Err(error) => return (batch, Outcome::Failed(error), Some(tenure)),
                }
            }
            let (batch, outcome) = commit::commit(context, vs, tenure, batch).await;
            (batch, outcome, Some(tenure))
        }));
    }

    fn finish_batch(&mut self, batch: Batch, outcome: Outcome, tenure: Option<Tenure>) {
        match outcome {
            Outcome::Committed(seen) => {
                self.tenure = tenure.map(|tenure| Tenure { seen: seen.max(tenure.seen), ..tenure });
                self.apply(batch);
            }
            Outcome::Failed(error) => {
                tracing::warn!(shard = self.vs.0, %error, "store refused a batch; publishers are told");
                self.checked_at = None;
                self.give_up(batch, error, false);
            }
            Outcome::Fenced => {
                tracing::warn!(shard = self.vs.0, "virtual shard was taken over by another pod");
                self.give_up(batch, Error::Fenced, true);
            }
            Outcome::Unknown(error) => match (tenure, &error) {
                (Some(tenure), Error::Store(_)) => {
                    tracing::warn!(shard = self.vs.0, %error, "looking whether a batch was committed");
                    let (context, vs) = (self.context.clone(), self.vs);
                    self.committing = Some(Box::pin(commit::recover(context, vs, tenure.owner, batch)));
                }
                _ => self.give_up(batch, error, true),
            },
        }
    }

    /// Makes a committed batch visible.
    fn apply(&mut self, batch: Batch) {
        let metrics = &self.context.metrics;
        metrics.batches.inc();
        metrics.appended.inc_by(batch.records);
        metrics.appended_bytes.inc_by(batch.bytes);
        let mut changed = Vec::with_capacity(batch.changes.len());
        let mut batch = batch;
        for change in std::mem::take(&mut batch.changes) {
            let Some(log) = self.logs.get_mut(&(change.id.object, change.id.shard)) else { continue };
            log.state = change.state;
            log.publish_extent();
            if let Some(queue) = &mut log.queue {
                queue.appended(change.base, change.records.into_iter());
            }
            changed.push(change.id);
        }
        batch.answer(Ok(()));
        for id in changed {
            self.pump(id);
        }
    }

    /// A batch will not be written: its publishers are told, queue state is written later. With `forget`
    /// what this task remembers of the shard may be wrong and is read again when next needed.
    fn give_up(&mut self, mut batch: Batch, error: Error, forget: bool) {
        for change in std::mem::take(&mut batch.changes) {
            let Some(log) = self.logs.get_mut(&(change.id.object, change.id.shard)) else { continue };
            log.trim = log.trim.or(change.trim);
            if let (Some(queue), Some(dirty)) = (&mut log.queue, &change.queue) {
                queue.restore_dirty(dirty);
            }
        }
        let error = AppendError::Failed(error);
        let refused = self.context.metrics.append_refused.get_or_create(&Reason { reason: error.label() });
        refused.inc_by(batch.records);
        drop(refused);
        batch.answer(Err(error.clone()));
        self.acks_due = Some(self.context.clock.now() + RETRY_WAIT);
        if forget {
            self.context.metrics.shards_lost.inc();
            self.context.metrics.shards_owned.dec_by(i64::from(self.tenure.is_some()));
            self.tenure = None;
            for log in std::mem::take(&mut self.logs).into_values() {
                for pending in log.pending {
                    let _ = pending.reply.send(Err(error.clone()));
                }
            }
        }
    }

    fn next_timeout(&self) -> Option<Instant> {
        let mut due = if self.committing.is_none() { self.acks_due } else { None };
        let mut earliest = |at: Instant| due = Some(due.map_or(at, |due| due.min(at)));
        for log in self.logs.values() {
            if let Some(at) = log.queue.as_ref().and_then(QueueShard::poll_timeout) {
                earliest(at);
            }
            if !log.trimming {
                earliest(log.maintain_at);
            }
        }
        due
    }

    fn handle_timeout(&mut self) {
        let now = self.context.clock.now();
        let ids: Vec<LogId> = self.logs.values().map(|log| log.id).collect();
        for id in ids {
            let Some(log) = self.logs.get_mut(&(id.object, id.shard)) else { continue };
            let timed_out = log.queue.as_mut().filter(|q| q.poll_timeout().is_some_and(|at| at <= now));
            if let Some(queue) = timed_out {
                queue.handle_timeout(now);
                self.pump(id);
            }
            self.maintain(id, now);
        }
    }

    fn maintain(&mut self, id: LogId, now: Instant) {
        let Some(log) = self.logs.get_mut(&(id.object, id.shard)) else { return };
        if log.trimming || log.maintain_at > now {
            return;
        }
        let wall = self.context.clock.wall();
        let rule = match &mut log.queue {
            Some(queue) => {
                queue.sweep();
                Rule::Floor(queue.floor())
            }
            None => Rule::of_stream(&log.object.definition, wall),
        };
        log.trimming = true;
        let (context, state) = (self.context.clone(), log.state);
        self.background.push(Box::pin(async move {
            let result = retention::find_cut(&context, &id, &state, &rule).await;
            Done::Retention { log: id, result }
        }));
        self.pump(id);
    }

    fn finish_background(&mut self, done: Done) {
        let (Done::Refill { log: id, .. } | Done::Retention { log: id, .. }) = &done;
        let id = *id;
        let Some(log) = self.logs.get_mut(&(id.object, id.shard)) else { return };
        let failure = match done {
            Done::Refill { from, result, .. } => {
                log.refilling = false;
                match (result, &mut log.queue) {
                    (Ok((records, end)), Some(queue)) => {
                        queue.loaded(from, end, records);
                        None
                    }
                    (Ok(_), None) => None,
                    (Err(error), _) => Some(error),
                }
            }
            Done::Retention { result, .. } => {
                log.trimming = false;
                log.maintain_at = self.context.clock.now() + MAINTAIN_INTERVAL;
                match result {
                    Ok(trim) => {
                        log.trim = trim;
                        None
                    }
                    Err(error) => Some(error),
                }
            }
        };
        if let Some(error) = failure {
            if matches!(error, Error::Record(_)) {
                self.context.metrics.damaged.inc();
            }
            tracing::error!(queue_or_stream = log.object.definition.name, shard = id.shard, %error, "read log");
        }
        self.pump(id);
    }
}

async fn load_log(context: &Context, object: &Arc<Object>, id: LogId) -> Result<Log> {
    let state = load::log_state(context, &id).await?;
    let queue = match object.definition.kind {
        Kind::Stream => None,
        Kind::Queue => {
            let stored = load::queue_state(context, &id, state.next).await?;
            let seed = context.seed.fork(&format!("queue {} {}", id.object, id.shard));
            let metrics = context.metrics.clone();
            Some(QueueShard::restore(id, stored, settings(object), seed, metrics))
        }
    };
    Ok(Log {
        id,
        object: Arc::clone(object),
        state,
        extent: watch::Sender::new(Extent { start: state.start, next: state.next }),
        queue,
        pending: std::collections::VecDeque::new(),
        refilling: false,
        trim: None,
        trimming: false,
        maintain_at: context.clock.now() + MAINTAIN_INTERVAL,
    })
}

async fn check_tenure(context: &Context, vs: VirtualShard, tenure: &Tenure) -> Result<weir_storage::Version> {
    let mut tx = context.store.begin();
    fence::fence(&mut *tx, vs, &tenure.owner, None).await
}

/// Waits for `future` if there is one, and for ever if not.
async fn poll_optional(future: &mut Option<Committing>) -> (Batch, Outcome, Option<Tenure>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

fn settings(object: &Object) -> Settings {
    let definition = &object.definition;
    let age = definition.retention.max_age_ms;
    Settings {
        dispatch: definition.dispatch.clone(),
        max_age: (age != 0).then(|| Duration::from_millis(age)),
    }
}

fn report(log: &Log) -> LogReport {
    LogReport {
        extent: Extent { start: log.state.start, next: log.state.next },
        bytes: log.state.bytes(),
        last_ts_micros: log.state.last_ts.as_micros(),
        queue: log.queue.as_ref().map(|queue| QueueReport {
            floor: queue.floor(),
            depth: queue.depth(),
            bytes: queue.bytes(),
            inflight: queue.inflight() as u64,
            acknowledged: queue.counters().acknowledged,
            expired: queue.counters().expired,
            exhausted: queue.counters().exhausted,
            consumers: queue.consumers().collect(),
        }),
    }
}
