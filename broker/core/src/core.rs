//! The front of this crate: opens a keyspace and routes what is asked to the catalog and the shard owners.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::try_join_all;
use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_storage::{Isolation, RangeQuery, SharedStore, transact};
use weir_topic::TopicName;

use crate::activity::{Activities, StreamReport};
use crate::catalog::{Applied, ApplyError, Catalog, Object};
use crate::cluster::links::{LinkOptions, Links};
use crate::cluster::message::Lane;
use crate::cluster::network::{Identity, Network};
use crate::cluster::{Cluster, ClusterOptions, PodInfo, meeting};
use crate::controls::{Asked, is_ordered};
use crate::definition::{Definition, Kind};
use crate::error::{Error, Result};
use crate::groups::Groups;
use crate::key::Publisher;
use crate::keyspace::dedup::DedupId;
use crate::keyspace::format::{KeyspaceFormat, VIRTUAL_SHARDS_DEFAULT};
use crate::keyspace::mark::Mark;
use crate::keyspace::owner::PodId;
use crate::keyspace::segment::{Record, RecordKey};
use crate::keyspace::{LogId, PublishId, VirtualShard, placement_hash};
use crate::message::Message;
use crate::metrics::{Metrics, Reason};
use crate::panics::Panics;
use crate::pods::Alone;
use crate::queue::{Consumer, ConsumerId, Handout, Lag, Lost, Verdict};
use crate::shard::{
    AppendError, AppendReply, Command, Context, DeadLetters, LogReport, Owners, PublishLetters, Remote,
    ShardHandle,
};
use crate::stream::{Opening, ReadLimits, ReadMemory, ReadOptions, ShardReader, Shared, StreamReader};

/// Logs whose marks are swept in one transaction.
const LOGS_PER_SWEEP: usize = 500;
/// Marks of dead letters looked at in one transaction.
const MARKS_PER_SWEEP: usize = 2000;

/// What a core may hold, and when it moves things.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// When messages of queues are moved out of their log.
    pub lag: Lag,
    /// What readers of streams hold in memory.
    pub reading: ReadLimits,
    /// How this pod takes part in a cluster; none: it is alone.
    pub cluster: Option<ClusterOptions>,
    /// The way to the other pods of the cluster; none: this one talks to nobody.
    pub network: Option<PeerNetwork>,
    /// What it says of itself; in a cluster, what its options there say.
    pub info: PodInfo,
}

/// The way to other pods.
#[derive(Clone, Debug)]
pub struct PeerNetwork {
    /// How they are reached.
    pub network: Arc<dyn Network>,
    /// How links behave.
    pub links: LinkOptions,
}

/// Queues, streams and their shards in one pod. Cheap to share.
#[derive(Debug)]
pub struct Core {
    pub(crate) context: Context,
    format: KeyspaceFormat,
    catalog: Arc<Catalog>,
    owners: Arc<Owners>,
    groups: Groups,
    meeting: Meeting,
    /// This pod, if it is alone.
    pub(crate) alone: Alone,
}

/// The task that keeps links to other pods.
#[derive(Debug, Default)]
struct Meeting {
    tasks: TaskTracker,
    stop: CancellationToken,
    panics: Panics,
}

/// What a publish waits for: an answer of every target.
#[derive(Debug, Default)]
pub struct Receipt {
    replies: SmallVec<[(Arc<Object>, AppendReply); 2]>,
}

/// The targets that did not take a message, and why.
pub type Failures = SmallVec<[(Arc<Object>, AppendError); 1]>;

impl Receipt {
    /// Waits until each target has made the message durable or failed to. Returns those that failed, so that
    /// only they need be tried again; empty means durable everywhere.
    pub async fn settled(self) -> Failures {
        let mut failures = Failures::new();
        for (object, reply) in self.replies {
            let result = reply.await.unwrap_or(Err(AppendError::Failed(Error::Closed)));
            if let Err(error) = result {
                failures.push((object, error));
            }
        }
        failures
    }

    /// `object` does not take the message.
    fn refuse(&mut self, object: &Arc<Object>, error: AppendError) {
        let (reply, answer) = oneshot::channel();
        // Cannot fail: the receiver is there.
        let _ = reply.send(Err(error));
        self.replies.push((Arc::clone(object), answer));
    }

    /// Whether there is nothing to wait for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }
}

impl Core {
    /// Opens the keyspace in `store`, creating it if the store is empty.
    ///
    /// # Errors
    /// If the store fails, or its records are damaged or of a newer version.
    pub async fn open(store: SharedStore, clock: Clock, seed: &Seed, metrics: Metrics) -> Result<Self> {
        Self::open_with(store, clock, seed, metrics, Options::default()).await
    }

    /// As [`Core::open`], with bounds of one's own.
    ///
    /// # Errors
    /// As [`Core::open`].
    pub async fn open_with(
        store: SharedStore,
        clock: Clock,
        seed: &Seed,
        metrics: Metrics,
        options: Options,
    ) -> Result<Self> {
        let pod = PodId(seed.fork("pod").next_id());
        let format = open_format(&store, seed).await?;
        let cluster = match options.cluster {
            Some(options) => {
                let (store, counters) = (Arc::clone(&store), metrics.cluster.clone());
                Some(Cluster::join(store, clock, pod, format.virtual_shards, options, counters).await?)
            }
            None => None,
        };
        let links = match (&cluster, options.network) {
            (Some(_), Some(PeerNetwork { network, links })) => {
                let me = Identity { pod, cluster: format.cluster_id };
                Some(Links::new(me, network, clock, seed, &metrics.peers, links))
            }
            _ => None,
        };
        let catalog = Catalog::load_in(cluster.clone(), Arc::clone(&store), format.virtual_shards).await?;
        let catalog = Arc::new(catalog);
        let owners = Arc::new_cyclic(|owners| {
            let dead_letters = Arc::new(DeadLetters::new(Arc::clone(&catalog), Weak::clone(owners)));
            let reading = ReadMemory::new(options.reading, &metrics);
            let (seed, lag, activities) = (seed.fork("shards"), options.lag, Activities::default());
            let (cluster, closed) = (cluster.clone(), CancellationToken::new());
            let remote = cluster.clone().zip(links).map(|(cluster, links)| {
                let held_up = metrics.cluster.words_held_up.clone();
                Remote::new(cluster, links, clock, Arc::clone(&catalog), Weak::clone(owners), held_up)
            });
            let context = Context {
                store,
                clock,
                seed,
                metrics,
                pod,
                lag,
                reading,
                activities,
                dead_letters,
                remote,
                cluster,
                closed,
            };
            Owners::new(context, format.virtual_shards)
        });
        if let Some(cluster) = cluster {
            owners.follow_cluster(cluster, Arc::clone(&catalog));
        }
        let context = owners.context().clone();
        let groups = Groups::new(Arc::clone(&owners), &catalog);
        let alone = Alone::new(options.info);
        Ok(Self { context, format, catalog, owners, groups, meeting: Meeting::default(), alone })
    }

    /// Says who publishes dead letters whose target is a topic. Until then they stay where they are.
    pub fn publish_letters_with(&self, publisher: Arc<dyn PublishLetters>) {
        self.context.dead_letters.publish_with(publisher);
    }

    /// What the keyspace is.
    #[must_use]
    pub fn format(&self) -> &KeyspaceFormat {
        &self.format
    }

    /// This process.
    #[must_use]
    pub fn pod(&self) -> PodId {
        self.context.pod
    }

    /// The pods of which this is one; none if it is alone.
    #[must_use]
    pub fn cluster(&self) -> Option<&Cluster> {
        self.context.cluster.as_ref()
    }

    /// The links to other pods; none if this one talks to nobody.
    #[must_use]
    pub fn links(&self) -> Option<&Links> {
        self.context.remote.as_ref().map(|remote| remote.links())
    }

    /// Has links to all other pods of the cluster from now on. To be called once, when whoever handles their messages is
    /// registered with [`Core::links`].
    pub fn meet(&self) {
        let (Some(cluster), Some(remote)) = (&self.context.cluster, &self.context.remote) else { return };
        remote.links().handle_with(Lane::Shard, remote.handler());
        cluster.talk_over(remote.links());
        remote.follow_members();
        let stop = self.meeting.stop.clone();
        let meeting = meeting::run(cluster.clone(), remote.links().clone(), stop);
        self.meeting.tasks.spawn(self.meeting.panics.watch(meeting));
    }

    /// The time, as records have it.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.context.clock.wall()
    }

    /// Where everything is kept.
    #[must_use]
    pub fn store(&self) -> &SharedStore {
        &self.context.store
    }

    /// Which queues and streams there are.
    #[must_use]
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Consumer groups of streams.
    #[must_use]
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Makes the catalog be what `definitions` declare, and the shards follow.
    ///
    /// # Errors
    /// See [`Catalog::apply`].
    pub async fn apply(&self, definitions: &[Definition]) -> std::result::Result<Applied, ApplyError> {
        let applied = self.catalog.apply(definitions, self.context.clock.wall()).await?;
        for object in &applied.updated {
            self.follow(object).await?;
        }
        for object in &applied.deleted {
            self.remove_records(object).await?;
        }
        Ok(applied)
    }

    /// The queues and streams that take messages published to `topic`.
    #[must_use]
    pub fn targets(&self, topic: &TopicName) -> SmallVec<[Arc<Object>; 2]> {
        self.catalog.view().targets(topic)
    }

    /// Puts a message in line for every one of `targets`; waits while a shard has too much in line. Messages
    /// of one topic are appended in the order of these calls. `publish` names a publish that may be repeated,
    /// and says whether this is a repeat.
    ///
    /// # Errors
    /// [`Error::Closed`] at shutdown.
    pub async fn append(
        &self,
        targets: &[Arc<Object>],
        message: &Message,
        publisher: &Publisher,
        publish: Option<(PublishId, bool)>,
    ) -> Result<Receipt> {
        let mut receipt = Receipt::default();
        // A dead letter asks for nothing: it has waited, and is not the message that had its id.
        let asked = if message.dead_letter.is_some() { Asked::default() } else { Asked::of(message) };
        // It never enters the queue it left.
        for object in targets.iter().filter(|object| message.dead_letter != Some(object.id)) {
            let key =
                object.key.as_ref().map_or(Some(RecordKey::None), |key| key.evaluate(message, publisher));
            if key.is_none() {
                self.context.metrics.key_failures.inc();
            }
            let wishes = match asked.of_queue(&object.definition) {
                Ok(wishes) => wishes,
                Err(problem) => {
                    let error = AppendError::Invalid { name: object.definition.name.clone(), problem };
                    self.count_refused(&error);
                    receipt.refuse(object, error);
                    continue;
                }
            };
            if wishes.priority_ignored {
                self.context.metrics.priorities_ignored.inc();
            }
            let (message, key) = (message.clone(), key.unwrap_or_default());
            let record = Record { message, key, blob_len: None, span: tracing::Span::current() };
            let Some(log) = place(object, &record, wishes.dedup) else { continue };
            let shard = self.shard(log.vs)?;
            let reply = shard.append(Arc::clone(object), log, record, publish, wishes).await?;
            receipt.replies.push((Arc::clone(object), reply));
        }
        Ok(receipt)
    }

    /// Attaches a consumer to every shard of a queue; messages begin to flow.
    ///
    /// # Errors
    /// If a shard cannot be taken over or read; the consumer is then attached to none.
    pub async fn attach(&self, queue: &Arc<Object>, consumer: &Consumer) -> Result<()> {
        if let Some(remote) = &self.context.remote {
            remote.attached(queue, consumer);
        }
        for log in &queue.logs {
            let (object, consumer) = (Arc::clone(queue), consumer.clone());
            let id = consumer.id;
            let attach = |reply| Command::Attach { object, log: *log, consumer, reply };
            let attached = self.shard(log.vs)?.ask(attach).await;
            if let Err(error) = attached.and_then(|attached| attached) {
                self.detach(queue, id, Lost::Left).await?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Detaches a consumer: what it holds goes to others at once.
    ///
    /// # Errors
    /// [`Error::Closed`] at shutdown.
    pub async fn detach(&self, queue: &Object, consumer: ConsumerId, lost: Lost) -> Result<()> {
        if let Some(remote) = &self.context.remote {
            remote.detached(consumer);
        }
        for log in &queue.logs {
            self.shard(log.vs)?.send(Command::Detach { log: *log, consumer, lost }).await?;
        }
        Ok(())
    }

    /// Tells a shard what a consumer says of a message.
    ///
    /// # Errors
    /// [`Error::Closed`] at shutdown.
    pub async fn settle(&self, handout: Handout, verdict: Verdict) -> Result<()> {
        self.shard(handout.log.vs)?.send(Command::Settle { handout, verdict }).await
    }

    /// Tells the shards of a queue that one of its consumers has room again.
    ///
    /// # Errors
    /// [`Error::Closed`] at shutdown.
    pub async fn kick(&self, queue: &Object, consumer: ConsumerId) -> Result<()> {
        for log in &queue.logs {
            self.shard(log.vs)?.send(Command::Kick { log: *log, consumer }).await?;
        }
        Ok(())
    }

    /// A reader of the shards of a stream that `options` ask for.
    ///
    /// # Errors
    /// If a shard cannot be taken over or read.
    pub async fn reader(&self, stream: &Arc<Object>, options: &ReadOptions) -> Result<StreamReader> {
        let by_key = options.key.as_ref().and_then(|key| shard_of(stream, key));
        let is_wanted = |log: &&LogId| {
            options.shard.is_none_or(|shard| log.shard == shard)
                && by_key.is_none_or(|by_key| log.shard == by_key.shard)
        };
        let logs = stream.logs.iter().filter(is_wanted);
        let opened = logs.map(|log| self.open_shard(stream, *log, options, None));
        let mut reader = self.idle_reader();
        self.introduce(&mut reader, stream, &options.name);
        try_join_all(opened).await?.into_iter().for_each(|shard| reader.add(shard));
        Ok(reader)
    }

    /// A reader of no shards: they are added to it.
    #[must_use]
    pub fn idle_reader(&self) -> StreamReader {
        StreamReader::new(self.context.clock, Arc::clone(&self.context.reading.budget))
    }

    /// Says of which stream `reader` reads shards, and who it is, so that people see it. To be called before shards are
    /// added.
    pub fn introduce(&self, reader: &mut StreamReader, stream: &Object, name: &Arc<str>) {
        let activity = self.context.activities.of(stream, &self.context.metrics.streams);
        reader.attend(activity.attend(Arc::clone(name), &self.context.clock));
    }

    /// A reader of one shard of a stream, to be added to others, which begins at offset `from`, whatever `options` say of
    /// that; a position below what is kept is moved up.
    ///
    /// # Errors
    /// [`Error::Closed`] if the stream has no such shard; if the shard cannot be taken over or read.
    pub async fn shard_reader(
        &self,
        stream: &Arc<Object>,
        shard: u8,
        from: u64,
        options: &ReadOptions,
    ) -> Result<ShardReader> {
        let log = stream.logs.iter().find(|log| log.shard == shard).ok_or(Error::Closed)?;
        self.open_shard(stream, *log, options, Some(from)).await
    }

    async fn open_shard(
        &self,
        stream: &Arc<Object>,
        log: LogId,
        options: &ReadOptions,
        from: Option<u64>,
    ) -> Result<ShardReader> {
        let (object, owner) = (Arc::clone(stream), self.shard(log.vs)?.clone());
        let watched = owner.ask(|reply| Command::Watch { object, log, reply }).await??;
        let shared = Shared::new(&self.context, stream, options);
        let last_value = stream.definition.last_value;
        let opening = Opening { log, last_value, extent: watched.extent, tail: watched.tail, owner };
        ShardReader::open(shared, opening, options, from).await
    }

    /// What the owners say of each shard of a queue or stream.
    ///
    /// # Errors
    /// If a shard cannot be taken over or read.
    pub async fn describe(&self, object: &Arc<Object>) -> Result<Vec<LogReport>> {
        let reports = object.logs.iter().map(|log| async {
            let (object, log) = (Arc::clone(object), *log);
            self.shard(log.vs)?.ask(|reply| Command::Describe { object, log, reply }).await?
        });
        try_join_all(reports).await
    }

    /// What is going on in a stream: rates, and who reads it.
    #[must_use]
    pub fn activity(&self, stream: &Object) -> StreamReport {
        self.context.activities.report(stream, self.context.clock.now())
    }

    /// Has every queue be owned by somebody, so that what happens by itself does: expiry, retries, dead letters.
    ///
    /// # Errors
    /// If a shard cannot be taken over or read, the first of them, after all others were; calling again goes on.
    pub async fn take_up_queues(&self) -> Result<()> {
        let mut outcome = Ok(());
        if self.context.cluster.is_some() {
            // With the ownership of their shards.
            return outcome;
        }
        for queue in self.catalog.view().all(Kind::Queue) {
            let taken_up = self.describe(queue).await.map(drop);
            outcome = outcome.and(told(taken_up, queue, "take up"));
        }
        outcome
    }

    /// Has consumer groups expire and be measured although nobody joins them.
    ///
    /// # Errors
    /// As [`Core::take_up_queues`].
    pub async fn take_up_groups(&self) -> Result<()> {
        let mut outcome = Ok(());
        for stream in self.catalog.view().all(Kind::Stream) {
            outcome = outcome.and(told(self.groups.take_up(stream).await, stream, "take up consumer groups"));
        }
        outcome
    }

    /// Has streams that age, or may have tombstones, be owned by somebody, one each `pace`: so they also age if nobody
    /// has asked for them since the start.
    ///
    /// # Errors
    /// As [`Core::take_up_queues`].
    pub async fn take_up_streams(&self, pace: Duration) -> Result<()> {
        let mut outcome = Ok(());
        if self.context.cluster.is_some() {
            // With the ownership of their shards.
            return outcome;
        }
        let view = self.catalog.view();
        let goes_by_itself = |stream: &&Arc<Object>| {
            stream.definition.retention.max_age_ms > 0 || stream.definition.last_value
        };
        for stream in view.all(Kind::Stream).filter(goes_by_itself) {
            tokio::time::sleep(pace).await;
            outcome = outcome.and(told(self.describe(stream).await.map(drop), stream, "take up"));
        }
        outcome
    }

    /// Counts a refused append that never reached a shard.
    pub fn count_refused(&self, error: &AppendError) {
        self.context.metrics.append_refused.get_or_create(&Reason { reason: error.label() }).inc();
    }

    /// Forgets where publishes named before `before` were appended: they are not repeated any more.
    ///
    /// # Errors
    /// If the store fails or a mark is damaged, after all others were looked at; calling again goes on.
    pub async fn sweep_marks(&self, before: Timestamp) -> Result<()> {
        let stored = self.catalog.stored().await;
        let logs: Vec<LogId> = stored.iter().flat_map(|(_, object)| object.logs.iter().copied()).collect();
        for page in logs.chunks(LOGS_PER_SWEEP) {
            let mut tx = self.context.store.begin();
            for log in page {
                let (begin, end) = Mark::range_before(log, before);
                tx.clear_range(&begin, &end);
            }
            // An unknown outcome is as good as another sweep.
            tx.commit().await?;
        }
        let mut outcome = Ok(());
        for log in logs {
            outcome = outcome.and(self.sweep_letter_marks(&log, before).await);
        }
        outcome
    }

    /// Forgets dead letters that were appended to `log` before `before`: the queue they left has long known.
    async fn sweep_letter_marks(&self, log: &LogId, before: Timestamp) -> Result<()> {
        let (begin, end) = Mark::range_of_dead_letters(log);
        let mut next = Some(RangeQuery::new(begin, end).limit(MARKS_PER_SWEEP));
        while let Some(query) = next {
            let mut tx = self.context.store.begin();
            let page = tx.get_range(query.clone(), Isolation::Snapshot).await?;
            next = query.after(&page);
            let mut is_changed = false;
            for (key, value) in page.pairs {
                if Mark::decode(value)?.at < before {
                    tx.clear(&key);
                    is_changed = true;
                }
            }
            if is_changed {
                tx.commit().await?;
            }
        }
        Ok(())
    }

    /// Waits until this can never work as a whole again, and says why: the store takes no more commits, or a shard has
    /// lost its owner. Cancel-safe.
    pub async fn failed(&self) -> Arc<str> {
        tokio::select! {
            why = self.context.store.failed() => why,
            why = cluster_failed(self.context.cluster.as_ref()) => why,
            () = self.owners.panicked() => "the owner of a shard panicked".into(),
            () = self.peers_panicked() => "a task that talks to other pods panicked".into(),
            () = self.groups.panicked() => "the coordinator of consumer groups panicked".into(),
        }
    }

    /// Hands all shards to other pods of the cluster, if there are any: this one is about to stop, and gets no more.
    /// Clients go on meanwhile. Returns how many there were.
    ///
    /// # Errors
    /// If the store fails, or this pod is no member any more.
    pub async fn hand_over_all(&self) -> Result<usize> {
        match &self.context.cluster {
            Some(cluster) => self.owners.hand_over_all(cluster).await,
            None => Ok(0),
        }
    }

    /// As [`Core::hand_over_all`], of a pod that was asked to drain, until it is asked to stay.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn hand_over_rest(&self) -> Result<usize> {
        match &self.context.cluster {
            Some(cluster) => self.owners.hand_over_rest(cluster).await,
            None => Ok(0),
        }
    }

    async fn peers_panicked(&self) {
        let Some(remote) = &self.context.remote else { return std::future::pending().await };
        tokio::select! {
            () = self.meeting.panics.panicked() => {}
            () = remote.panicked() => {}
            () = remote.links().panicked() => {}
        }
    }

    /// Commits what is in line, hands it on to other pods if there are any, and ends the owner tasks. The store stays open.
    pub async fn close(&self) {
        self.groups.close().await;
        if let Err(error) = self.hand_over_all().await {
            tracing::warn!(%error, "hand virtual shards over; other pods take them over");
        }
        self.owners.close().await;
        self.meeting.stop.cancel();
        self.meeting.tasks.close();
        self.meeting.tasks.wait().await;
        if let Some(remote) = &self.context.remote {
            remote.close().await;
            remote.links().close().await;
        }
        if let Some(cluster) = &self.context.cluster
            && let Err(error) = cluster.leave().await
        {
            tracing::warn!(%error, "leave the cluster; other pods find out");
        }
    }

    /// Time.
    pub fn clock(&self) -> &Clock {
        &self.context.clock
    }

    pub(crate) fn shard(&self, vs: VirtualShard) -> Result<&ShardHandle> {
        self.owners.get(vs)
    }
}

/// Waits until this pod is no member of its cluster any more; for ever if it is alone.
async fn cluster_failed(cluster: Option<&Cluster>) -> Arc<str> {
    match cluster {
        Some(cluster) => cluster.failed().await,
        None => std::future::pending().await,
    }
}

/// `outcome` of what was done with `object`, a failure told: others go on.
pub(crate) fn told(outcome: Result<()>, object: &Object, what: &'static str) -> Result<()> {
    outcome.inspect_err(|error| {
        let Object { id, definition, .. } = object;
        tracing::warn!(queue_or_stream = definition.name, id, %error, "{what}");
    })
}

/// The shard of `object` that `record` belongs to: by its key, or by its topic; where keys do not depend on it, one that
/// is stored once by its id, so that this holds for the whole queue.
pub(crate) fn place(object: &Object, record: &Record, dedup: Option<DedupId>) -> Option<LogId> {
    let dedup = dedup.as_ref().filter(|_| !is_ordered(&object.definition)).map(|id| id.0.as_slice());
    let by_key = || record.key_bytes().unwrap_or(record.message.topic.as_str().as_bytes());
    shard_of(object, dedup.unwrap_or_else(by_key))
}

/// The shard of `object` in which messages are that are placed by `name`.
fn shard_of(object: &Object, name: &[u8]) -> Option<LogId> {
    let count = u64::try_from(object.logs.len()).unwrap_or(1).max(1);
    let shard = usize::try_from(placement_hash(name) % count).unwrap_or(0);
    object.logs.get(shard).copied()
}

async fn open_format(store: &SharedStore, seed: &Seed) -> Result<KeyspaceFormat> {
    let cluster_id = seed.fork("cluster").next_id();
    let body = transact(&**store, |tx| {
        Box::pin(async move {
            let key = KeyspaceFormat::key();
            if let Some(stored) = tx.get(&key, Isolation::Serializable).await? {
                return Ok(KeyspaceFormat::decode(stored));
            }
            let format = KeyspaceFormat { virtual_shards: VIRTUAL_SHARDS_DEFAULT, cluster_id };
            tx.set(&key, &format.encode());
            Ok(Ok(format))
        })
    });
    Ok(body.await?.0?)
}
