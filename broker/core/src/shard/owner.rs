//! The owner task of one virtual shard: its loop, and what it is asked to do.
//!
//! One commit is in flight at a time; what arrives meanwhile goes into the next batch, so an idle shard
//! commits at once and a busy one in large batches, without a fixed delay. Acknowledgements ride along
//! with appends, or go alone a few milliseconds later. How batches are committed is in `batches`, what happens
//! unasked (timers, reads, retention) in `upkeep`.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use weir_env::clock::Instant;

use super::batch::{self, Batch};
use super::classes::log_of;
use super::commit::{self, Outcome};
use super::delays::{self, Delays};
use super::fence::{self, Tenure};
use super::handed::{Carried, Handed, Offer, Offering};
use super::log::{ACKNOWLEDGED_MAX, Kept, Log};
use super::logs::{LogKey, Logs, base_of, key_of};
use super::repeats::{Repeats, Seen};
use super::roll::Roll;
use super::upkeep::Done;
use super::{AppendError, Command, Context, PendingAppend, Watched, load, upkeep};
use crate::catalog::Object;
use crate::definition::Kind;
use crate::error::{Error, Result};
use crate::keyspace::mark::PublishId;
use crate::keyspace::segment::RECORD_BYTES_MAX;
use crate::keyspace::{LogId, VirtualShard};
use crate::metrics::Reason;
use crate::queue::{Consumer, ConsumerId, Handout, Held, Lost, QueueShard, StoredQueue, Verdict};
use crate::stream::TailReader;

/// Commands handled between two looks at everything else.
const COMMANDS_PER_TURN: usize = 256;

pub(super) type Background = Pin<Box<dyn Future<Output = Done> + Send>>;
pub(super) type Committing = Pin<Box<dyn Future<Output = (Batch, Outcome, Option<Tenure>)> + Send>>;

/// State of the task.
pub(crate) struct ShardOwner {
    pub(super) context: Context,
    pub(super) vs: VirtualShard,
    commands: mpsc::Receiver<Command>,
    pub(super) tenure: Option<Tenure>,
    /// When ownership was last checked by a read.
    pub(super) checked_at: Option<Instant>,
    pub(super) logs: Logs,
    /// Repeated publishes whose original was not settled when they came.
    pub(super) repeats: VecDeque<PendingAppend>,
    pub(super) committing: Option<Committing>,
    /// Who waits until nothing is in flight; each reader of a stream once at most.
    settling: Vec<oneshot::Sender<()>>,
    pub(super) background: FuturesUnordered<Background>,
    /// When queue state is committed although nothing is appended.
    pub(super) acks_due: Option<Instant>,
    /// No commit before: the last one failed.
    pub(super) retry_at: Option<Instant>,
    /// Who waited for logs when the shard was lost, and when it is taken over for them again.
    pub(super) kept: BTreeMap<LogKey, Kept>,
    pub(super) retake_at: Option<Instant>,
    pub(super) closing: Option<oneshot::Sender<()>>,
    /// Nothing is handed out before other pods have announced their consumers.
    pub(super) roll: Option<Roll>,
    /// Who wants to give the shard to another pod. No more commands are taken.
    pub(super) leaving: Option<oneshot::Sender<Offer>>,
    /// In a cluster: another pod has the shard, so this task ends.
    pub(super) is_lost: bool,
    /// What was not done, to be gone on with by who comes after this task.
    pub(super) carried: VecDeque<Command>,
    /// What is in line may have been put there before the shard was taken from another process: that may have stored a repeat
    /// of it. In a cluster this is always so.
    in_doubt: bool,
}

impl ShardOwner {
    /// In a cluster it has a tenure, and ends with it.
    pub(crate) fn new(
        context: Context,
        vs: VirtualShard,
        commands: mpsc::Receiver<Command>,
        carried: Carried,
        tenure: Option<Tenure>,
    ) -> Self {
        let now = context.clock.now();
        context.metrics.shards_owned.inc_by(i64::from(tenure.is_some()));
        Self {
            context,
            vs,
            commands,
            tenure,
            checked_at: tenure.map(|_| now),
            logs: Logs::default(),
            repeats: VecDeque::new(),
            committing: None,
            settling: Vec::new(),
            background: FuturesUnordered::new(),
            acks_due: None,
            retry_at: None,
            retake_at: (!carried.kept.is_empty()).then_some(now),
            kept: carried.kept,
            closing: None,
            roll: None,
            leaving: None,
            is_lost: false,
            carried: carried.commands,
            in_doubt: false,
        }
    }

    pub(crate) async fn run(mut self) -> Handed {
        self.call_roll();
        self.handle_carried().await;
        while !self.is_lost {
            let now = self.context.clock.now();
            let mut due = self.next_timeout();
            if due.is_some_and(|at| at <= now) {
                self.handle_timeout(now).await;
            }
            if self.committing.is_none() {
                self.settling.drain(..).for_each(|reply| _ = reply.send(()));
                self.handle_repeats().await;
            }
            self.pump(now);
            if self.start_batch(now) && !self.repeats.is_empty() {
                continue;
            }
            if self.committing.is_none() && self.is_ending() {
                break;
            }
            due = self.next_timeout();
            tokio::select! {
                biased;
                (batch, outcome, tenure) = poll_optional(&mut self.committing) => {
                    self.committing = None;
                    self.finish_batch(batch, outcome, tenure);
                }
                Some(done) = self.background.next(), if !self.background.is_empty() => {
                    self.finish_background(done);
                    // Reads may end faster than they are asked for.
                    if !self.is_ending() {
                        self.handle_turn(None).await;
                    }
                }
                command = self.commands.recv(), if !self.is_ending() => {
                    let Some(command) = command else { break };
                    self.handle_commands(command).await;
                }
                () = tokio::time::sleep_until(due.unwrap_or(now)), if due.is_some() => {}
            }
        }
        self.hand_on()
    }

    /// Whether it takes no more commands, and ends with the commits that are under way or due.
    pub(super) fn is_ending(&self) -> bool {
        self.closing.is_some() || self.leaving.is_some()
    }

    /// What is left when the task ends.
    fn hand_on(mut self) -> Handed {
        self.context.metrics.shards_owned.dec_by(i64::from(self.tenure.is_some()));
        if self.leaving.is_some() {
            self.let_go(&Error::Fenced);
        }
        self.carried.extend(self.repeats.drain(..).map(Command::Append));
        self.carried.extend(self.settling.drain(..).map(|reply| Command::Settled { reply }));
        let owner = self.tenure.map(|tenure| tenure.owner);
        Handed {
            commands: self.commands,
            carried: Carried { commands: self.carried, kept: self.kept },
            closing: self.closing,
            offer: self.leaving.map(|reply| Offering { owner, reply }),
        }
    }

    /// Handles what was handed on, in order. What was appended in a row is looked up at once.
    async fn handle_carried(&mut self) {
        let mut appends = Vec::new();
        for command in std::mem::take(&mut self.carried) {
            match command.of_anybody() {
                Command::Append(pending) => appends.push(pending),
                other => {
                    self.handle_appends(std::mem::take(&mut appends)).await;
                    self.handle(other).await;
                }
            }
        }
        self.handle_appends(appends).await;
    }

    async fn handle_commands(&mut self, first: Command) {
        self.handle_turn(Some(first)).await;
        if self.committing.is_none() {
            // Whoever can run now may add to the batch that is about to start: with a fast store it would
            // hold one message otherwise, as whoever sends a command yields to this task at once.
            tokio::task::yield_now().await;
            self.handle_turn(None).await;
        }
    }

    /// Handles `first` and what else is in line, in order.
    async fn handle_turn(&mut self, first: Option<Command>) {
        let mut next = first;
        let mut appends = Vec::new();
        for _ in 0..COMMANDS_PER_TURN {
            if self.is_lost || self.leaving.is_some() {
                break;
            }
            let Some(command) = next.take().or_else(|| self.commands.try_recv().ok()) else { break };
            match command.of_anybody() {
                Command::Append(pending) => appends.push(pending),
                other => {
                    self.handle_appends(std::mem::take(&mut appends)).await;
                    self.handle(other).await;
                }
            }
        }
        self.handle_appends(appends).await;
        self.in_doubt &= !self.commands.is_empty();
    }

    async fn handle(&mut self, command: Command) {
        match command.of_anybody() {
            Command::Append(pending) => self.handle_appends(vec![pending]).await,
            Command::Watch { object, log, reply } => {
                let watched = |log: &mut Log| Watched {
                    extent: log.extent.subscribe(),
                    tail: TailReader::new(&log.tail),
                };
                let result = self.log_mut(&object, log).await.map(watched);
                let _ = reply.send(result);
            }
            Command::Settled { reply } => self.settling.push(reply),
            Command::Attach { object, log, consumer, reply } => {
                let result = self.attach(&object, log, consumer).await;
                let _ = reply.send(result);
            }
            Command::Resume { object, log, consumer, held, replaces, reply } => {
                let result = self.resume(&object, log, consumer, &held, replaces).await;
                let _ = reply.send(result);
            }
            Command::Present { pod } => self.answer_roll(pod),
            // What another pod asks for is never asked by another in its turn.
            Command::Foreign(_) => {}
            Command::Detach { log, consumer, lost } => {
                self.with_queues(log, |queue, _| queue.detach(consumer, lost));
                if let Some(kept) = self.kept.get_mut(&key_of(&log)) {
                    kept.consumers.retain(|(attached, _)| attached.id != consumer);
                }
            }
            Command::Settle { handout, verdict } => {
                self.settle_one(handout, verdict);
                self.find_room(handout.log, handout.consumer);
            }
            Command::Kick { log, consumer } => self.with_queues(log, |queue, _| queue.kick(consumer)),
            Command::Update { object, log } => self.update(object, log),
            Command::Classes { object, log, reply } => {
                let result = self.log_mut(&object, log).await.map(drop);
                let _ = reply.send(result.map(|()| self.class_logs(log)));
            }
            Command::Delete { log, reply } => {
                let result = self.delete(log).await;
                let _ = reply.send(result);
            }
            Command::Describe { object, log, reply } => {
                let now = self.context.clock.now();
                let result = self.log_mut(&object, log).await.map(drop);
                let _ = reply.send(result.map(|()| self.report(log, now)));
            }
            Command::Operate { object, log, operation } => self.operate(&object, log, operation).await,
            Command::Positions(pending) => self.write_positions(pending).await,
            Command::Trim { object, log, below, reply } => self.trim(&object, log, below, reply).await,
            Command::HandOver { reply } => self.leaving = Some(reply),
            Command::Close { reply } => self.closing = Some(reply),
        }
    }

    /// Puts publishes in line, in order, but for those that are stored already. What has to be looked up of them is looked up
    /// at once.
    async fn handle_appends(&mut self, appends: Vec<PendingAppend>) {
        let mut admitted = Vec::with_capacity(appends.len());
        for pending in appends {
            if let Err(size) = pending.record.check_size() {
                let what = "topic, properties and key";
                let error = weir_storage::Error::TooLarge { what, size, limit: RECORD_BYTES_MAX };
                self.refuse(pending, error.into());
            } else if let Err(error) = self.log_mut(&pending.object, pending.log).await {
                self.refuse(pending, error);
            } else {
                admitted.push(pending);
            }
        }
        let lookups = admitted.iter().filter_map(|pending| Some((pending.log, self.may_be_stored(pending)?)));
        let mut stored = load::have_marks(&self.context, lookups.collect()).await.into_iter();
        for pending in admitted {
            let may_be_stored = self.may_be_stored(&pending);
            let is_stored = may_be_stored.and_then(|_| stored.next());
            let key = key_of(&pending.log);
            // Also by one before it in this turn.
            if let Some(publish) = may_be_stored
                && self.logs.get(key).is_some_and(|log| log.repeats.is_unsettled(&publish))
            {
                self.repeats.push_back(pending);
                continue;
            }
            match is_stored {
                None | Some(Ok(false)) => {}
                Some(Ok(true)) => {
                    pending.answer(Ok(()));
                    continue;
                }
                Some(Err(error)) => {
                    self.refuse(pending, error);
                    continue;
                }
            }
            let Some(pending) = self.look_for_duplicate(pending) else { continue };
            if let Some(log) = self.logs.get_mut(key) {
                log.repeats.begin(pending.names());
            }
            // What has to wait goes into its log when it is due.
            let class = if pending.wishes.delay.is_zero() { pending.wishes.priority } else { 0 };
            self.put_in_line(pending, class);
        }
    }

    /// What to look for in the store before a publish is taken. Where there are other pods, a repeat by way of one of them may
    /// have come before what is no repeat: while this pod was held up, its publisher went there.
    fn may_be_stored(&self, pending: &PendingAppend) -> Option<PublishId> {
        let is_doubtful = self.in_doubt || self.context.cluster.is_some();
        pending.publish.filter(|(_, is_repeat)| *is_repeat || is_doubtful).map(|(publish, _)| publish)
    }

    /// Answers a publish whose message is stored already, keeps one for later of which that is not known yet, and gives
    /// back all others.
    fn look_for_duplicate(&mut self, pending: PendingAppend) -> Option<PendingAppend> {
        let Some(id) = pending.wishes.dedup else { return Some(pending) };
        let wall = self.context.clock.wall();
        let log = self.logs.get_mut(key_of(&pending.log))?;
        match log.repeats.look(&id, wall, pending.object.definition.dedup_window()) {
            Seen::Never => return Some(pending),
            Seen::Unsettled => self.repeats.push_back(pending),
            Seen::Stored => {
                self.context.metrics.duplicates.inc();
                pending.answer(Ok(()));
            }
            Seen::Full => {
                let name = pending.object.definition.name.clone();
                self.count_refused(AppendError::FULL, 1);
                pending.answer(Err(AppendError::Full { name, what: "dedup.window" }));
            }
        }
        None
    }

    /// Looks again at repeats that waited for their original.
    async fn handle_repeats(&mut self) {
        let repeats = std::mem::take(&mut self.repeats).into();
        self.handle_appends(repeats).await;
    }

    pub(super) fn refuse(&self, pending: PendingAppend, error: Error) {
        let error = AppendError::Failed(error);
        self.count_refused(error.label(), 1);
        pending.answer(Err(error));
    }

    pub(super) fn count_refused(&self, reason: &'static str, count: u64) {
        self.context.metrics.append_refused.get_or_create(&Reason { reason }).inc_by(count);
    }

    /// The log in memory: taken over and read from the store if need be.
    pub(super) async fn log_mut(&mut self, object: &Arc<Object>, id: LogId) -> Result<&mut Log> {
        self.take_over().await?;
        let base = id.of_class(0);
        let key = key_of(&base);
        if self.logs.get(key).is_none() {
            let mut logs = vec![load_log(&self.context, object, base).await?];
            if object.definition.kind == Kind::Queue {
                for class in load::classes(&self.context, &base).await? {
                    logs.push(load_log(&self.context, object, class).await?);
                }
            }
            let now = self.context.clock.now();
            for mut log in logs {
                log.observe(now);
                self.logs.insert(log);
            }
            self.restore_kept(key);
            self.logs.touch(key);
        }
        if self.logs.get(key).is_some_and(|log| log.object.generation < object.generation) {
            self.update(Arc::clone(object), base);
        }
        // Every priority that has a log is in memory.
        self.logs.get_mut(key_of(&id)).ok_or(Error::Closed)
    }

    async fn take_over(&mut self) -> Result<()> {
        if self.tenure.is_none() {
            if self.context.cluster.is_some() {
                return Err(Error::Fenced);
            }
            let tenure = fence::take_over(&self.context, self.vs, None).await?;
            self.checked_at = Some(self.context.clock.now());
            self.tenure = Some(tenure);
            self.in_doubt = true;
            self.context.metrics.shards_owned.inc();
            tracing::debug!(shard = self.vs.0, epoch = tenure.owner.epoch.0, "took virtual shard over");
        }
        Ok(())
    }

    /// Gives a log that was read again back to those who waited for its predecessor.
    fn restore_kept(&mut self, key: LogKey) {
        let (Some(kept), Some(log)) = (self.kept.remove(&key), self.logs.get_mut(key)) else { return };
        (log.extent, log.tail) = (kept.extent, kept.tail);
        log.publish_extent();
        let id = log.id;
        // Before anything is handed out again.
        for handout in kept.acknowledged {
            self.settle_one(handout, Verdict::Acknowledged);
        }
        for (consumer, held) in kept.consumers {
            self.with_queues(id, |queue, _| queue.attach_holding(consumer.clone(), &held));
        }
    }

    async fn attach(&mut self, object: &Arc<Object>, id: LogId, consumer: Consumer) -> Result<()> {
        self.log_mut(object, id).await?;
        self.with_queues(id, |queue, _| queue.attach(consumer.clone()));
        Ok(())
    }

    /// A consumer of another pod comes, with what it holds.
    async fn resume(
        &mut self,
        object: &Arc<Object>,
        id: LogId,
        consumer: Consumer,
        held: &[Held],
        replaces: Option<ConsumerId>,
    ) -> Result<()> {
        self.log_mut(object, id).await?;
        self.with_queues(id, |queue, _| {
            if let Some(replaces) = replaces {
                queue.detach(replaces, Lost::Left);
            }
            queue.attach_holding(consumer.clone(), held);
        });
        Ok(())
    }

    /// What a consumer says of a message; that it is done counts also while its log is being taken over again.
    fn settle_one(&mut self, handout: Handout, verdict: Verdict) {
        if let (Verdict::Acknowledged, Some(kept)) =
            (verdict, self.kept.get_mut(&base_of(key_of(&handout.log))))
            && kept.acknowledged.len() < ACKNOWLEDGED_MAX
        {
            kept.acknowledged.push(handout);
        }
        if let Some(kept) = self.kept.get_mut(&base_of(key_of(&handout.log))) {
            kept.settled(&handout);
        }
        let wall = self.context.clock.wall();
        self.with_queue(handout.log, |queue, now| queue.settle(handout, verdict, now, wall));
    }

    /// Changes a queue in memory, if it is there; what follows from it happens at the end of the turn.
    fn with_queue(&mut self, id: LogId, change: impl FnOnce(&mut QueueShard, Instant)) {
        let key = key_of(&id);
        let now = self.context.clock.now();
        if let Some(queue) = self.logs.get_mut(key).and_then(|log| log.queue.as_mut()) {
            change(queue, now);
            self.logs.touch(key);
        }
    }

    /// What follows from a change of a log happens at the end of the turn.
    pub(super) fn touch_log(&mut self, id: LogId) {
        self.logs.touch(key_of(&id));
    }

    fn update(&mut self, object: Arc<Object>, id: LogId) {
        let key = key_of(&id);
        if let Some(kept) = self.kept.get_mut(&key) {
            kept.object = Arc::clone(&object);
        }
        let (now, lag) = (self.context.clock.now(), self.context.lag);
        for key in self.logs.classes(key) {
            let Some(log) = self.logs.get_mut(key) else { continue };
            if let Some(queue) = &mut log.queue {
                queue.update(upkeep::settings(&object, id.shard, lag), now);
            }
            log.object = Arc::clone(&object);
            // At once, also if messages flow.
            log.uncut = 0;
            log.maintain_by(now);
            self.logs.touch(key);
        }
    }

    /// Removes everything stored of a log, readable or not. Waits for the batch in flight, which may write it.
    async fn delete(&mut self, id: LogId) -> Result<()> {
        self.take_over().await?;
        while let Some(committing) = self.committing.take() {
            let (batch, outcome, tenure) = committing.await;
            self.finish_batch(batch, outcome, tenure);
        }
        self.kept.remove(&key_of(&id));
        for key in self.logs.classes(key_of(&id)) {
            for pending in self.logs.remove(key).into_iter().flat_map(|log| log.pending) {
                self.refuse(pending, Error::Closed);
            }
        }
        let Some(tenure) = self.tenure else { return Err(Error::Fenced) };
        let batch = Batch { mutations: batch::all_of(&id), ..Batch::default() };
        let (context, seen) = (self.context.clone(), Some(tenure.seen));
        match commit::commit(context, self.vs, tenure.owner, seen, batch).await.1 {
            Outcome::Committed(_) => Ok(()),
            Outcome::Fenced => {
                // The next attempt takes it over again.
                self.lose_shard(Batch::default(), Error::Fenced);
                Err(Error::Fenced)
            }
            Outcome::Failed(error) | Outcome::Unknown(error) => Err(error),
        }
    }
}

/// The log as stored.
async fn load_log(context: &Context, object: &Arc<Object>, id: LogId) -> Result<Log> {
    let state = load::log_state(context, &id).await?;
    if object.definition.kind == Kind::Stream {
        let mut log = log_of(context, object, id, state, StoredQueue::default());
        if object.definition.last_value {
            log.rows = Some(load::rows(context, &id, &state).await?);
        }
        return Ok(log);
    }
    let stored = load::queue_state(context, &id, state.next).await?;
    let mut log = log_of(context, object, id, state, stored);
    if id.class == 0 {
        let (now, wall) = (context.clock.now(), context.clock.wall());
        let ids = load::dedup_ids(context, &id, object.definition.dedup_window()).await?;
        log.repeats = Repeats::restore(ids, now, context.metrics.dedup_ids.clone());
        let (delayed, first_due) = delays::load(context, &id).await?;
        log.delays = Delays::restore(delayed, first_due, now, wall, context.metrics.delayed.clone());
    }
    if let Some(queue) = &mut log.queue {
        if object.definition.last_value {
            load::last_values(context, queue, &id, state.next).await?;
        }
        queue.set_scheduled(&log.delays.state());
    }
    Ok(log)
}

/// Waits for `future` if there is one, and for ever if not.
async fn poll_optional(future: &mut Option<Committing>) -> (Batch, Outcome, Option<Tenure>) {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
