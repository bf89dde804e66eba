//! The coordinator of the groups of one stream: a task that owns them all, reads their positions when it is first asked
//! for something, and has the owners of the shards write what becomes of them.
//!
//! It waits for nothing but the store, and that only at first: writes are under way beside it. What is in memory is what
//! counts; the store follows within a second, and goes on being tried.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use weir_env::clock::{Instant, Timestamp};

use super::board::Board;
use super::guests::{Answered, Guests};
use super::joining::{Creating, Join};
use super::lag::Times;
use super::listener::Listener;
use super::positions::{Then, Unwritten};
use super::state::Group;
use super::term::Term;
use super::{Bounds, GroupError, GroupEvent, GroupReport, guests};
use crate::catalog::Object;
use crate::cluster::message::group::ToCoordinator;
use crate::error::{Error, Result};
use crate::keyspace::DecodeError;
use crate::keyspace::group::GroupPosition;
use crate::keyspace::owner::PodId;
use crate::metrics::{GroupShare, Metrics};
use crate::queue::ConsumerId;
use crate::shard::{Owners, write_positions};

/// How often a pod without a sign of life looks whether it has given one.
const QUIET_LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Longest time that a position waits to be written. With the write itself it stays below a second.
const COMMIT_DELAY: Duration = Duration::from_millis(500);
/// Wait after a write that failed.
const RETRY_WAIT: Duration = Duration::from_millis(500);
/// Time in which what a member said last arrives, once its channel is closed.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(5);
/// How often groups are looked at that may have expired, and members that are gone without a word.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// How often it is measured how far groups are behind.
pub(super) const LAG_INTERVAL: Duration = Duration::from_secs(10);

/// What a coordinator can be asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Join(Join),
    Release {
        group: ByteString,
        shard: u8,
        generation: u64,
        position: u64,
    },
    Leave {
        group: ByteString,
        member: ConsumerId,
        /// It does not come back.
        for_good: bool,
    },
    List {
        reply: oneshot::Sender<Result<Vec<GroupReport>>>,
    },
    Seek {
        group: ByteString,
        places: Vec<(u8, u64)>,
        reply: oneshot::Sender<std::result::Result<(), GroupError>>,
    },
    Delete {
        group: ByteString,
        force: bool,
        reply: oneshot::Sender<std::result::Result<(), GroupError>>,
    },
    /// Another pod, or this one as one of many, says something.
    Words {
        from: PodId,
        talk: u64,
        seq: u64,
        words: ToCoordinator,
    },
    /// A pod has nobody to announce.
    Absent {
        from: PodId,
    },
    /// There is something to look after.
    Wake,
    Update {
        stream: Arc<Object>,
    },
    Forget {
        reply: oneshot::Sender<()>,
    },
    Close {
        reply: oneshot::Sender<()>,
    },
}

impl Command {
    /// Whether it is about groups that may only be in the store.
    const fn is_of_stored(&self) -> bool {
        match self {
            Self::Join(_)
            | Self::List { .. }
            | Self::Seek { .. }
            | Self::Delete { .. }
            | Self::Words { .. }
            | Self::Wake => true,
            Self::Release { .. }
            | Self::Absent { .. }
            | Self::Leave { .. }
            | Self::Update { .. }
            | Self::Forget { .. }
            | Self::Close { .. } => false,
        }
    }
}

/// Something under way that has ended.
pub(super) enum Done {
    Written {
        shard: u8,
        at: Timestamp,
        groups: Vec<ByteString>,
        result: Result<()>,
    },
    Measured(Result<Vec<GroupReport>>),
    /// What another pod has asked for.
    Answered(Answered),
}

/// A group that is to be read on elsewhere, and who waits for it.
pub(super) struct Seek {
    pub(super) group: ByteString,
    pub(super) places: Vec<(u8, u64)>,
    pub(super) reply: oneshot::Sender<std::result::Result<(), GroupError>>,
}

/// A group that is known.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) group: Group,
    pub(super) events: BTreeMap<ConsumerId, Listener>,
    /// Members whose channel is closed, and when they are taken for gone: their last words may be on the way.
    pub(super) closed: BTreeMap<ConsumerId, Instant>,
    /// When the position of each shard was last stored.
    pub(super) committed: Vec<Timestamp>,
    /// When it last had members, as far as the store knows.
    pub(super) used_at: Timestamp,
    /// Somebody who was a member may come back to where it begins.
    pub(super) is_awaited: bool,
    pub(super) share: GroupShare,
}

impl Running {
    /// The channel of a member is closed.
    pub(super) fn is_closed(&mut self, member: ConsumerId, now: Instant) {
        self.closed.entry(member).or_insert(now + LAST_WORDS_WAIT);
    }

    /// A member is gone. False if it was none.
    pub(super) fn lose(&mut self, member: ConsumerId, now: Instant, wall: Timestamp) -> bool {
        self.forget(member);
        let was_member = self.group.leave(member, now);
        if was_member {
            // What it had is written, and with it that the group was in use until now.
            (self.used_at, self.is_awaited) = (wall, true);
        }
        was_member
    }

    /// Whether there is nothing to lose with it: nobody reads it, and nobody has acknowledged anything.
    pub(super) fn is_unused(&self) -> bool {
        self.group.member_count() == 0 && !self.group.has_moved()
    }

    fn forget(&mut self, member: ConsumerId) {
        self.events.remove(&member);
        self.closed.remove(&member);
    }

    /// When something is to be done although nobody asks.
    fn poll_timeout(&self) -> Option<Instant> {
        let gone = self.closed.values().min().copied();
        [self.group.poll_timeout(), gone].into_iter().flatten().min()
    }
}

/// Why the loop ends.
pub(super) enum Ending {
    /// What is not stored is stored once more.
    Closing(oneshot::Sender<()>),
    /// Nothing is written any more.
    Forgotten(oneshot::Sender<()>),
}

/// State of the task.
pub(super) struct Coordinator {
    pub(super) owners: Arc<Owners>,
    pub(super) stream: Arc<Object>,
    pub(super) bounds: Arc<Bounds>,
    pub(super) metrics: Metrics,
    commands: mpsc::Receiver<Command>,
    pub(super) board: Arc<Board>,
    pub(super) is_loaded: bool,
    pub(super) groups: BTreeMap<ByteString, Running>,
    pub(super) creating: BTreeMap<ByteString, Creating>,
    /// What waits until all members that have shards are known, as its callers do: what a member then says that was
    /// given a shard before, and not in the store, would count for more.
    pub(super) seeks: Vec<Seek>,
    /// Groups of which a stored position cannot be read: a person must act.
    pub(super) damaged: BTreeMap<ByteString, DecodeError>,
    pub(super) unwritten: Unwritten,
    /// Groups whose members are to be told something once this pod has given a sign of life again.
    untold: BTreeSet<ByteString>,
    pub(super) work: FuturesUnordered<BoxFuture<'static, Done>>,
    write_at: Option<Instant>,
    sweep_at: Instant,
    pub(super) measure_at: Option<Instant>,
    /// What was measured last.
    pub(super) times: Times,
    pub(super) started_at: Instant,
    pub(super) ending: Option<Ending>,
    /// The pods that it has to do with; none in a pod that is alone.
    pub(super) guests: Option<Guests>,
}

impl Coordinator {
    pub(super) fn new(
        owners: Arc<Owners>,
        stream: Arc<Object>,
        bounds: Arc<Bounds>,
        commands: mpsc::Receiver<Command>,
        board: Arc<Board>,
        guests: Option<Guests>,
    ) -> Self {
        let context = owners.context();
        let (metrics, now) = (context.metrics.clone(), context.clock.now());
        Self {
            owners,
            stream,
            bounds,
            metrics,
            commands,
            board,
            is_loaded: false,
            groups: BTreeMap::new(),
            creating: BTreeMap::new(),
            seeks: Vec::new(),
            damaged: BTreeMap::new(),
            unwritten: Unwritten::default(),
            untold: BTreeSet::new(),
            work: FuturesUnordered::new(),
            write_at: None,
            sweep_at: now + SWEEP_INTERVAL,
            measure_at: Some(now + LAG_INTERVAL),
            times: Times::new(),
            started_at: now,
            ending: None,
            guests,
        }
    }

    pub(super) async fn run(mut self) {
        let board = Arc::clone(&self.board);
        loop {
            let now = self.now();
            let is_quiet = self.is_quiet();
            if !is_quiet {
                std::mem::take(&mut self.untold).iter().for_each(|name| self.tell(name));
                self.handle_timeouts(now);
            }
            if !self.follow_cluster(now) {
                // Whoever has taken the shard over reads what is stored, and nothing of this one is written any more.
                return;
            }
            if self.ending.is_some() && !self.unwritten.is_writing() {
                break;
            }
            let due = self.next_timeout().unwrap_or(now + SWEEP_INTERVAL);
            let due = if is_quiet { now + QUIET_LOOK_INTERVAL } else { due };
            let guests = &mut self.guests;
            tokio::select! {
                biased;
                Some(done) = self.work.next(), if !self.work.is_empty() => self.finish(done),
                command = self.commands.recv(), if self.ending.is_none() => {
                    // Without a farewell, what is not stored is forgotten as in a crash.
                    let Some(command) = command else { return };
                    self.handle(command).await;
                }
                () = board.told(), if self.ending.is_none() => self.write_by(now + COMMIT_DELAY),
                () = guests::changed(guests) => {}
                () = tokio::time::sleep_until(due) => {}
            }
        }
        if let Some(Ending::Closing(reply) | Ending::Forgotten(reply)) = self.ending {
            let _ = reply.send(());
        }
    }

    /// Whether another pod may be about to divide the stream, or does so already: members are told nothing then. What is
    /// written is fenced anyway.
    fn is_quiet(&self) -> bool {
        self.guests.as_ref().is_some_and(Guests::are_quiet)
    }

    pub(super) fn now(&self) -> Instant {
        self.owners.context().clock.now()
    }

    pub(super) fn wall(&self) -> Timestamp {
        self.owners.context().clock.wall()
    }

    pub(super) fn write_by(&mut self, at: Instant) {
        self.write_at = Some(self.write_at.map_or(at, |due| due.min(at)));
    }

    fn next_timeout(&self) -> Option<Instant> {
        let revoked = self.groups.values().filter_map(Running::poll_timeout).min();
        let call = self.guests.as_ref().and_then(Guests::poll_timeout);
        [self.write_at, self.measure_at, Some(self.sweep_at), revoked, call].into_iter().flatten().min()
    }

    fn handle_timeouts(&mut self, now: Instant) {
        if self.groups.values().any(|running| running.poll_timeout().is_some_and(|at| at <= now)) {
            self.take_progress();
            let wall = self.wall();
            let names: Vec<ByteString> = self.groups.keys().cloned().collect();
            for name in names {
                if let Some(running) = self.groups.get_mut(&name) {
                    running.group.handle_timeout(now);
                    let gone = running.closed.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id);
                    for member in gone.collect::<Vec<_>>() {
                        running.lose(member, now, wall);
                    }
                    self.metrics.groups.revocations_timed_out.inc_by(running.group.take_timed_out());
                }
                self.tell(&name);
            }
        }
        if self.sweep_at <= now {
            self.sweep_at = now + SWEEP_INTERVAL;
            self.sweep(now);
        }
        if self.measure_at.is_some_and(|at| at <= now) {
            self.measure();
        }
        if self.write_at.is_some_and(|at| at <= now) {
            self.write_at = None;
            self.take_progress();
            self.write();
        }
    }

    async fn handle(&mut self, command: Command) {
        self.take_progress();
        if !self.is_loaded
            && command.is_of_stored()
            && let Err(error) = self.load().await
        {
            let stream = &self.stream.definition.name;
            tracing::warn!(stream, %error, "read positions of consumer groups");
            return self.refuse(command, error);
        }
        match command {
            Command::Join(join) => self.join(join),
            Command::Release { group, shard, generation, position } => {
                let now = self.now();
                if let Some(running) = self.groups.get_mut(&group) {
                    running.group.release(shard, generation, position, now);
                }
                self.tell(&group);
            }
            Command::Leave { group, member, for_good } => self.leave(&group, member, for_good),
            Command::List { reply } => {
                let _ = reply.send(Ok(self.reports()));
            }
            Command::Seek { group, places, reply } => self.seek(&group, places, reply),
            Command::Delete { group, force, reply } => self.delete(&group, force, reply),
            Command::Words { from, talk, seq, words } => self.hear(from, talk, seq, words),
            Command::Absent { from } => self.is_present(from),
            Command::Wake => {}
            Command::Update { stream } => self.follow(stream),
            Command::Forget { reply } => {
                let names: Vec<ByteString> = self.groups.keys().cloned().collect();
                names.iter().for_each(|name| drop(self.end(name)));
                self.creating.clear();
                self.ending = Some(Ending::Forgotten(reply));
            }
            Command::Close { reply } => {
                self.write();
                self.ending = Some(Ending::Closing(reply));
            }
        }
    }

    /// Answers a command that cannot be done.
    fn refuse(&mut self, command: Command, error: Error) {
        match command {
            Command::Join(join) => _ = join.reply.send(Err(error)),
            Command::List { reply } => _ = reply.send(Err(error)),
            Command::Seek { reply, .. } | Command::Delete { reply, .. } => _ = reply.send(Err(error.into())),
            Command::Words { from, talk, .. } => self.refuse_words(from, talk),
            Command::Release { .. } | Command::Leave { .. } | Command::Absent { .. } | Command::Wake => {}
            Command::Update { stream } => self.follow(stream),
            Command::Forget { reply } => self.ending = Some(Ending::Forgotten(reply)),
            Command::Close { reply } => self.ending = Some(Ending::Closing(reply)),
        }
    }

    pub(super) fn follow(&mut self, stream: Arc<Object>) {
        if stream.generation > self.stream.generation {
            self.stream = stream;
        }
    }

    pub(super) fn running(&self, name: &ByteString, group: Group, committed: Vec<Timestamp>) -> Running {
        let used_at = committed.iter().max().copied().unwrap_or_default();
        let share = self.metrics.groups.share(&self.stream.definition.name, name);
        let (events, closed) = (BTreeMap::new(), BTreeMap::new());
        Running { group, events, closed, committed, used_at, is_awaited: false, share }
    }

    pub(super) fn numbers(&self) -> Vec<u8> {
        self.stream.logs.iter().map(|log| log.shard).collect()
    }

    /// Takes in what members have said of their progress.
    pub(super) fn take_progress(&mut self) {
        for (name, shards) in self.board.take() {
            let Some(running) = self.groups.get_mut(&name) else { continue };
            for (shard, (generation, position)) in shards {
                if !running.group.progress(shard, generation, position) {
                    self.metrics.groups.stale_progress.inc();
                }
            }
            self.mark(&name);
        }
    }

    /// What has changed of a group is to be written.
    fn mark(&mut self, name: &ByteString) {
        let Some(running) = self.groups.get_mut(name) else { return };
        let dirty = running.group.take_dirty();
        if !dirty.is_empty() {
            dirty.iter().for_each(|shard| self.unwritten.mark(*shard, name));
            self.write_by(self.now() + COMMIT_DELAY);
        }
    }

    /// Tells members of a group what concerns them. One that does not listen is gone.
    pub(super) fn tell(&mut self, name: &ByteString) {
        if self.is_quiet() {
            self.untold.insert(name.clone());
            return;
        }
        let (now, wall) = (self.now(), self.wall());
        let Some(running) = self.groups.get_mut(name) else { return };
        while let Some((member, event)) = running.group.poll_event() {
            if matches!(event, GroupEvent::Assigned { .. }) {
                self.metrics.groups.assigned.inc();
            }
            let told = running.events.get(&member).map(|events| events.try_send(event));
            if event == GroupEvent::Ended {
                running.forget(member);
                continue;
            }
            match told {
                Some(Ok(())) => {}
                Some(Err(TrySendError::Closed(_))) => running.is_closed(member, now),
                Some(Err(TrySendError::Full(_))) | None => _ = running.lose(member, now, wall),
            }
        }
        running.share.set_members(running.group.member_count());
        self.mark(name);
    }

    pub(super) fn seek(
        &mut self,
        name: &ByteString,
        places: Vec<(u8, u64)>,
        reply: oneshot::Sender<std::result::Result<(), GroupError>>,
    ) {
        if self.guests.as_ref().is_some_and(Guests::are_awaited) {
            self.seeks.push(Seek { group: name.clone(), places, reply });
            return;
        }
        let now = self.now();
        let Some(running) = self.groups.get_mut(name) else {
            let _ = reply.send(Err(GroupError::Missing));
            return;
        };
        if places.is_empty() {
            // There is no write to wait for.
            let _ = reply.send(Ok(()));
            return;
        }
        running.group.seek(&places, now);
        self.tell(name);
        self.unwritten.mark_then(places.iter().map(|(shard, _)| *shard), name, Then::Reply(reply));
        self.write_by(now);
    }

    pub(super) fn delete(
        &mut self,
        name: &ByteString,
        force: bool,
        reply: oneshot::Sender<std::result::Result<(), GroupError>>,
    ) {
        let members = self.groups.get(name).map_or(0, |running| running.group.member_count());
        if members > 0 && !force {
            let _ = reply.send(Err(GroupError::InUse(members)));
            return;
        }
        if self.end(name).is_none() && self.damaged.remove(name).is_none() {
            let _ = reply.send(Err(GroupError::Missing));
            return;
        }
        self.unwritten.mark_then(self.numbers(), name, Then::Reply(reply));
        self.write_by(self.now());
    }

    /// Takes a group out of memory and tells its members.
    pub(super) fn end(&mut self, name: &ByteString) -> Option<Running> {
        let mut running = self.groups.remove(name)?;
        for events in std::mem::take(&mut running.events).into_values() {
            // Who does not listen learns it from the end of its channel.
            let _ = events.try_send(GroupEvent::Ended);
        }
        Some(running)
    }

    /// Begins to write all that is to be written, but for shards of which a write is under way.
    fn write(&mut self) {
        if matches!(self.ending, Some(Ending::Forgotten(_))) {
            return;
        }
        let at = self.wall();
        while let Some((shard, groups)) = self.unwritten.next() {
            let Some(log) = self.stream.logs.get(usize::from(shard)).copied() else { continue };
            let rows = groups.iter().map(|name| (name.clone(), self.row(name, shard, at))).collect();
            let (owners, stream, term) = (Arc::clone(&self.owners), Arc::clone(&self.stream), self.term());
            self.work.push(Box::pin(async move {
                let result = match term {
                    Some(term) => term.write_positions(owners.context(), &stream, log, rows).await,
                    None => write_positions(&owners, &stream, log, rows).await,
                };
                Done::Written { shard, at, groups, result }
            }));
        }
    }

    /// What is to be stored of a group in one shard; nothing if there is no such group.
    fn row(&self, name: &ByteString, shard: u8, committed_at: Timestamp) -> Option<GroupPosition> {
        if let Some(creating) = self.creating.get(name) {
            let offset = creating.places.get(usize::from(shard)).copied().unwrap_or_default();
            return Some(GroupPosition { offset, committed_at, ..GroupPosition::default() });
        }
        let (place, member) = self.groups.get(name)?.group.place(shard);
        let member = member.cloned().unwrap_or_default();
        Some(GroupPosition { offset: place.position, generation: place.generation, committed_at, member })
    }

    fn term(&self) -> Option<Term> {
        self.guests.as_ref().map(Guests::term)
    }

    fn finish(&mut self, done: Done) {
        let now = self.now();
        match done {
            Done::Answered(answered) => self.answered(answered),
            Done::Written { shard, at, groups, result } => {
                if let Err(error) = &result {
                    let stream = &self.stream.definition.name;
                    tracing::warn!(stream, shard, %error, "store positions of consumer groups; trying again");
                    self.metrics.groups.write_failures.inc();
                    self.write_by(now + RETRY_WAIT);
                } else {
                    for name in &groups {
                        if let Some(running) = self.groups.get_mut(name)
                            && let Some(committed) = running.committed.get_mut(usize::from(shard))
                        {
                            *committed = at;
                        }
                    }
                }
                for (name, then, result) in self.unwritten.finish(shard, &result) {
                    match then {
                        Then::Create => self.finish_creation(&name, result),
                        Then::Reply(reply) => _ = reply.send(result.map_err(GroupError::Failed)),
                    }
                }
                if self.unwritten.is_urgent() && result.is_ok() {
                    self.write_by(now);
                } else if self.unwritten.is_marked() {
                    self.write_by(now + COMMIT_DELAY);
                }
                if matches!(self.ending, Some(Ending::Closing(_))) && result.is_ok() {
                    self.write();
                }
            }
            Done::Measured(result) => {
                self.measure_at = Some(now + LAG_INTERVAL);
                match result {
                    Ok(reports) => self.show(&reports),
                    Err(error) => {
                        let stream = &self.stream.definition.name;
                        tracing::debug!(stream, %error, "measure how far consumer groups are behind");
                    }
                }
            }
        }
    }
}
