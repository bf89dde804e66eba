//! Consumer groups of streams: the members of a group divide the shards of the stream among themselves, and the
//! positions up to which they have acknowledged are kept for them.
//!
//! [`Groups`] is the front. Each stream whose groups are in use has a coordinator (`coordinator`), the only one that
//! knows who is a member of what: it lets members in (`joining`), divides shards (`state`), takes what members say of their progress (`board`) and
//! has the owners of the shards store it (`positions`). Members are told by messages and answer by messages, so that
//! they need not be in this process. The coordinator never waits for a member, and knows nothing of connections.

mod board;
mod coordinator;
mod delegate;
mod guests;
mod hub;
mod joining;
mod lag;
mod listener;
mod positions;
mod roll;
mod state;
#[cfg(test)]
mod state_tests;
mod term;
mod upkeep;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytestring::ByteString;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use weir_env::clock::Timestamp;
use weir_env::seed::HashMap;

use crate::catalog::{Catalog, Object};
use crate::error::{Error, Result};
use crate::panics::Panics;
use crate::queue::ConsumerId;
use crate::shard::Owners;
use crate::stream::Start;

pub(crate) use hub::{Hub, HubSlot};

use board::Board;
use coordinator::{Command, Coordinator};
use delegate::Delegate;
use joining::{Join, Joined};
use listener::Listener;

/// Commands a coordinator accepts before senders wait.
const COMMANDS_MAX: usize = 1024;
/// Groups a stream may have, unless the configuration says otherwise.
pub const GROUPS_PER_STREAM: usize = 100;
/// Members a group may have, unless the configuration says otherwise.
pub const MEMBERS_PER_GROUP: usize = 1000;

/// What a member of a group is told. Its channel needs room for four events of each shard of the stream; a member that
/// lets it run full is taken for gone, and the channel closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupEvent {
    /// It has a shard now, and reads it from offset `from` on. What it says of it bears this generation.
    Assigned {
        /// Which.
        shard: u8,
        /// Of this assignment.
        generation: u64,
        /// Everything below is acknowledged.
        from: u64,
    },
    /// It is to stop reading a shard, and to [release](Groups::release) it once what is in flight is acknowledged, or
    /// two seconds have gone by.
    Revoked {
        /// Which.
        shard: u8,
        /// Of the assignment that ends.
        generation: u64,
    },
    /// It is a member no longer: the stream or the group was deleted, or a newer connection of its client has joined.
    Ended,
}

/// A group as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupReport {
    /// Its name.
    pub name: ByteString,
    /// Client ids of its members, in the order in which they joined; those without a shard wait for one.
    pub members: Vec<ByteString>,
    /// Of each shard of the stream.
    pub shards: Vec<GroupShard>,
}

/// How far a group has read a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupShard {
    /// Which.
    pub shard: u8,
    /// Everything below is acknowledged.
    pub position: u64,
    /// The offset of the next message published.
    pub end: u64,
    /// Messages from the position, or from the first message kept, to the end.
    pub lag: u64,
    /// When the oldest of them came.
    pub oldest: Option<Timestamp>,
    /// Client id of the member that has it.
    pub member: Option<ByteString>,
    /// Of its last assignment.
    pub generation: u64,
    /// When the position was stored.
    pub committed_at: Timestamp,
}

/// Why a group was not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GroupError {
    /// The stream has no such group.
    #[error("there is no such group")]
    Missing,
    /// It has members.
    #[error("the group has {0} members: disconnect them, or force its deletion")]
    InUse(usize),
    /// It is changed in memory, but not, or not everywhere, in the store; that is tried again.
    #[error("store the group: {0}")]
    Failed(#[from] Error),
}

/// How many groups and members there may be.
#[derive(Debug)]
struct Bounds {
    groups: AtomicUsize,
    members: AtomicUsize,
}

#[derive(Clone, Debug)]
struct Handle {
    commands: mpsc::Sender<Command>,
    board: Arc<Board>,
}

/// The groups of all streams.
#[derive(Debug)]
pub struct Groups {
    owners: Arc<Owners>,
    bounds: Arc<Bounds>,
    /// Coordinators by stream; `None` at shutdown.
    streams: Mutex<Option<HashMap<u32, Handle>>>,
    tasks: TaskTracker,
    panics: Panics,
    /// The way to coordinators in other pods; none in a pod that is alone.
    hub: Option<Arc<Hub>>,
}

impl Groups {
    pub(crate) fn new(owners: Arc<Owners>, catalog: &Arc<Catalog>) -> Self {
        let bounds = Arc::new(Bounds {
            groups: AtomicUsize::new(GROUPS_PER_STREAM),
            members: AtomicUsize::new(MEMBERS_PER_GROUP),
        });
        let (tasks, panics) = (TaskTracker::new(), Panics::default());
        let hub = owners.context().remote.clone().map(|remote| {
            let (owners, bounds) = (Arc::clone(&owners), Arc::clone(&bounds));
            let hub = Hub::new(owners, remote, bounds, tasks.clone(), panics.clone());
            hub.look_after(Arc::clone(catalog));
            hub
        });
        Self { owners, bounds, streams: Mutex::new(Some(HashMap::default())), tasks, panics, hub }
    }

    /// How many groups a stream may have, and members a group, of those that come from now on.
    pub fn limit(&self, groups_per_stream: usize, members_per_group: usize) {
        self.bounds.groups.store(groups_per_stream, Ordering::Relaxed);
        self.bounds.members.store(members_per_group, Ordering::Relaxed);
    }

    /// Joins `group` of `stream`; what follows from it comes through `events`. A group that has no position begins at
    /// `start`, which is stored before this returns. If this is dropped before it returns, the member leaves by itself.
    ///
    /// # Errors
    /// [`Error::Full`] if there are as many groups or members as may be; if the store fails; [`Error::Closed`] at
    /// shutdown or if the stream is deleted.
    pub async fn join(
        &self,
        stream: &Arc<Object>,
        group: &str,
        member: ConsumerId,
        client_id: impl Into<ByteString>,
        start: &Start,
        events: mpsc::Sender<GroupEvent>,
    ) -> Result<()> {
        let (group, client_id) = (ByteString::from(group), client_id.into());
        let mut places = None;
        loop {
            let (reply, answer) = oneshot::channel();
            let (stream, group) = (Arc::clone(stream), group.clone());
            let (client_id, events) = (client_id.clone(), Listener::Here(events.clone()));
            let join = Join { stream: Arc::clone(&stream), group, member, client_id, events, places, reply };
            self.handle(&stream)?.send(Command::Join(join)).await?;
            match answer.await.map_err(|_| Error::Closed)?? {
                Joined::Member => return Ok(()),
                Joined::NeedsPlaces => places = Some(lag::places(&self.owners, &stream, start).await?),
            }
        }
    }

    /// Everything below `position` of a shard is acknowledged by the member that has it as `generation`. Never waits;
    /// stored within a second.
    pub fn progress(&self, stream: &Object, group: &str, shard: u8, generation: u64, position: u64) {
        if let Some(handle) = self.find(stream) {
            handle.board.tell(group, shard, generation, position);
        }
    }

    /// Gives back a shard that was revoked: everything below `position` is acknowledged.
    ///
    /// # Errors
    /// [`Error::Closed`] at shutdown or if the stream is deleted.
    pub async fn release(
        &self,
        stream: &Object,
        group: &str,
        shard: u8,
        generation: u64,
        position: u64,
    ) -> Result<()> {
        let handle = self.find(stream).ok_or(Error::Closed)?;
        handle.send(Command::Release { group: group.into(), shard, generation, position }).await
    }

    /// A member leaves, and may come back: others go on with its shards where it has said that it was.
    ///
    /// # Errors
    /// As [`Groups::release`].
    pub async fn leave(&self, stream: &Object, group: &str, member: ConsumerId) -> Result<()> {
        let handle = self.find(stream).ok_or(Error::Closed)?;
        handle.send(Command::Leave { group: group.into(), member, for_good: false }).await
    }

    /// As [`Groups::leave`], of one that does not come back: its group is forgotten at once if it was the last member,
    /// nothing was ever acknowledged, and no other may come back.
    ///
    /// # Errors
    /// As [`Groups::release`].
    pub async fn leave_for_good(&self, stream: &Object, group: &str, member: ConsumerId) -> Result<()> {
        let handle = self.find(stream).ok_or(Error::Closed)?;
        handle.send(Command::Leave { group: group.into(), member, for_good: true }).await
    }

    /// The groups of a stream, by name, as they are now.
    ///
    /// # Errors
    /// If the store fails, or at shutdown.
    pub async fn list(&self, stream: &Arc<Object>) -> Result<Vec<GroupReport>> {
        if self.find(stream).is_none() && !lag::has_groups(&self.owners, stream).await? {
            return Ok(Vec::new());
        }
        let reports = self.handle(stream)?.ask(|reply| Command::List { reply }).await??;
        lag::measure(&self.owners, stream, reports, &lag::Times::new()).await
    }

    /// Has `group` go on at `start`, whatever has been read; members are moved there. Where `start` is an offset for each
    /// of some shards, the others stay where they are. Returns the offsets by shard; `is_dry`: nothing is changed.
    ///
    /// # Errors
    /// If there is no such group, or the store fails.
    pub async fn seek(
        &self,
        stream: &Arc<Object>,
        group: &str,
        start: &Start,
        is_dry: bool,
    ) -> std::result::Result<Vec<(u8, u64)>, GroupError> {
        let places = lag::places(&self.owners, stream, start).await?;
        let is_named = |shard: u8| match start {
            Start::Offsets(named) => named.iter().any(|(of, _)| *of == shard),
            Start::Earliest | Start::Latest | Start::Time(_) | Start::Offset(_) => true,
        };
        let places: Vec<(u8, u64)> = stream.logs.iter().map(|log| log.shard).zip(places).collect();
        let places: Vec<(u8, u64)> = places.into_iter().filter(|(shard, _)| is_named(*shard)).collect();
        let group = ByteString::from(group);
        if is_dry {
            let known = self.list(stream).await?.into_iter().any(|report| report.name == group);
            return if known { Ok(places) } else { Err(GroupError::Missing) };
        }
        let moved = places.clone();
        let seek = |reply| Command::Seek { group, places: moved, reply };
        self.handle(stream)?.ask(seek).await??;
        Ok(places)
    }

    /// Forgets `group`; its members, if `force` says that there may be some, are told that it has ended.
    ///
    /// # Errors
    /// If there is no such group, it has members, or the store fails.
    pub async fn delete(
        &self,
        stream: &Arc<Object>,
        group: &str,
        force: bool,
    ) -> std::result::Result<(), GroupError> {
        let group = ByteString::from(group);
        self.handle(stream)?.ask(|reply| Command::Delete { group, force, reply }).await?
    }

    /// Has the groups of `stream` be looked after if there are some: they expire although nobody joins.
    ///
    /// # Errors
    /// If the store fails; calling again goes on.
    pub(crate) async fn take_up(&self, stream: &Arc<Object>) -> Result<()> {
        self.list(stream).await.map(drop)
    }

    /// Follows a change of the declaration of `stream`.
    pub(crate) async fn follow(&self, stream: &Arc<Object>) {
        if let Some(handle) = self.find(stream) {
            // Fails only at shutdown, or if it is deleted.
            let _ = handle.send(Command::Update { stream: Arc::clone(stream) }).await;
        }
        if let Some(hub) = &self.hub {
            hub.follow(stream).await;
        }
    }

    /// Ends the groups of a stream whose records are being removed; nothing of them is written from now on.
    pub(crate) async fn forget(&self, stream: &Object) {
        let handle = self.streams.lock().as_mut().and_then(|streams| streams.remove(&stream.id));
        if let Some(handle) = handle {
            let _ = handle.ask(|reply| Command::Forget { reply }).await;
        }
        if let Some(hub) = &self.hub {
            hub.forget(stream.id).await;
        }
    }

    /// Waits until a coordinator panicked. Cancel-safe.
    pub(crate) async fn panicked(&self) {
        self.panics.panicked().await;
    }

    /// Stores what members have said, and ends all coordinators.
    pub(crate) async fn close(&self) {
        let streams = self.streams.lock().take();
        self.tasks.close();
        let mut closed = Vec::new();
        for handle in streams.into_iter().flatten().map(|(_, handle)| handle) {
            let (reply, answer) = oneshot::channel();
            if handle.send(Command::Close { reply }).await.is_ok() {
                closed.push(answer);
            }
        }
        for answer in closed {
            // One that has ended has nothing left to store.
            let _ = answer.await;
        }
        if let Some(hub) = &self.hub {
            hub.close().await;
        }
        self.tasks.wait().await;
    }

    fn find(&self, stream: &Object) -> Option<Handle> {
        self.streams.lock().as_ref()?.get(&stream.id).cloned()
    }

    /// The coordinator of `stream`; it is started if need be.
    fn handle(&self, stream: &Arc<Object>) -> Result<Handle> {
        let mut streams = self.streams.lock();
        let streams = streams.as_mut().ok_or(Error::Closed)?;
        let handle = streams.entry(stream.id).or_insert_with(|| {
            let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
            let board = Arc::new(Board::default());
            let (owners, bounds) = (Arc::clone(&self.owners), Arc::clone(&self.bounds));
            let (stream, told) = (Arc::clone(stream), Arc::clone(&board));
            if let Some(hub) = &self.hub {
                let delegate = Delegate::new(Arc::clone(hub), stream, inbox, told, hub.now());
                self.tasks.spawn(self.panics.watch(delegate.run()));
            } else {
                let coordinator = Coordinator::new(owners, stream, bounds, inbox, told, None);
                self.tasks.spawn(self.panics.watch(coordinator.run()));
            }
            Handle { commands, board }
        });
        Ok(handle.clone())
    }
}

impl Handle {
    async fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).await.map_err(|_| Error::Closed)
    }

    /// Sends a command that carries its reply, and waits for it.
    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.send(make(reply)).await?;
        answer.await.map_err(|_| Error::Closed)
    }
}
