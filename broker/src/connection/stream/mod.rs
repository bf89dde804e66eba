//! What a connection does for its stream subscriptions: understands what they ask for, has them read, gives the
//! session what was read, and keeps how far the client has come.
//!
//! Knows nothing of how a stream is stored. The state is the connection's, of what is read that of a task for each
//! subscription.

mod deliver;
mod frames;
mod group;
mod lanes;
mod positions;
mod rate;
pub(super) mod request;
mod task;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use weir_codec::{QoS, SubscriptionOptions};
use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::keyspace::segment::Record;
use weir_core::keyspace::session_position::SessionPosition;
use weir_core::queue::Lost;
use weir_core::sessions::SessionOp;
use weir_core::stream::{ReadOptions, ReadPermit, Start};
use weir_env::clock::Instant;

use super::Connection;
use super::external::{Source, group_of};
use super::subscribe::stored;
use crate::router::Wish;
use frames::Encoder;
pub(super) use frames::Frames;
pub(super) use group::Member;
use group::join;
pub(super) use lanes::Lanes;
use positions::Positions;
use rate::Rate;
use task::{Shares, Task};

/// Longest time from a move of a position until it is on its way to the store.
const STORE_AFTER: Duration = Duration::from_millis(400);

/// Tells the batches of a reader from those of one that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::connection) struct ReaderId(u64);

/// Tells what was sent for a subscription from what was sent before it sought another place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::connection) struct PlaceId(u64);

/// What was read of a stream, on its way to the client.
#[derive(Debug)]
pub(in crate::connection) struct StreamBatch {
    reader: ReaderId,
    part: Part,
}

/// When something is to be done for streams.
#[derive(Debug, Default)]
pub(in crate::connection) struct Timers {
    /// Positions are stored, or told to groups.
    pub(in crate::connection) store: Option<Instant>,
    /// Shards are given back to groups.
    pub(in crate::connection) release: Option<Instant>,
    /// Subscriptions that wait are tried again.
    pub(in crate::connection) retry: Option<Instant>,
}

impl Timers {
    pub(in crate::connection) fn poll_timeout(&self) -> Option<Instant> {
        [self.store, self.release, self.retry].into_iter().flatten().min()
    }
}

/// A part of what there is to read.
#[derive(Debug)]
enum Part {
    /// Records of one shard.
    Records {
        shard: u8,
        /// Of the assignment to this member of a consumer group.
        generation: u64,
        records: VecDeque<(u64, Arc<Record>)>,
        /// Everything below is in these records, has been before, or is not wanted.
        next: u64,
        /// Held while the records are in memory.
        _permit: Option<ReadPermit>,
    },
    /// The same, encoded already.
    Frames {
        shard: u8,
        /// As of records.
        generation: u64,
        frames: Frames,
        /// As of records.
        next: u64,
        _permit: Option<ReadPermit>,
    },
    /// Everything up to where the subscription ends has come.
    End,
    /// The reader cannot go on.
    Lost,
}

/// A stream that is read for a subscription.
#[derive(Debug)]
pub(in crate::connection) struct Reading {
    pub(in crate::connection) object: Arc<Object>,
    reader: ReaderId,
    place: PlaceId,
    positions: Positions,
    /// Of a consumer group.
    member: Option<Member>,
    /// The client knows that there is no more.
    ended: bool,
    /// Its reader could not go on.
    is_lost: bool,
    /// The session is told, or about to be, which stream this is; of a reader without a group its positions say it.
    is_noted: bool,
    /// The reader runs until it is dropped.
    _stop: Option<DropGuard>,
}

/// A reader that has begun.
struct Begun {
    reader: ReaderId,
    /// Where its shards begin.
    from: Vec<(u8, u64)>,
    /// Where they end, if that was known when it began.
    ends: Vec<(u8, u64)>,
    stop: DropGuard,
}

impl Reading {
    /// Whether it is a bounded replay whose end the client knows of.
    pub(in crate::connection) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether its reader could not go on: it is to be read anew.
    pub(in crate::connection) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// How far the client has come, which counts as told.
    pub(in crate::connection) fn position(&mut self) -> SessionPosition {
        SessionPosition { stream: self.object.id, ended: self.ended, shards: self.positions.take() }
    }

    /// The client does not come back to it.
    pub(in crate::connection) fn leave_for_good(&mut self) {
        if let Some(member) = &mut self.member {
            member.leave_for_good();
        }
    }

    /// The subscription ends.
    pub(in crate::connection) async fn end(mut self, core: &Core) {
        if let Some(member) = self.member.take() {
            member.leave(core, &self.object, &mut self.positions).await;
        }
    }
}

impl Connection {
    /// Begins to read a stream, where the subscription was left or wants to begin; as a `member` of its group, which
    /// it joins if it has not.
    pub(super) async fn read(
        &mut self,
        at: usize,
        object: Arc<Object>,
        mut member: Option<Member>,
    ) -> weir_core::Result<Source> {
        let Some(external) = self.externals.get(at) else { return Ok(Source::Missing) };
        if let Some(group) = group_of(&external.to).filter(|_| member.is_none()) {
            let group = ByteString::from(group.as_str().to_owned());
            let client_id = self.stored.client_id.clone();
            let left = external.left.as_deref();
            member = Some(join(&self.broker, client_id, &object, group, &external.request, left).await?);
        }
        let left = external.left.as_deref().filter(|_| member.is_none());
        let mut reading = Reading {
            reader: ReaderId(self.broker.consumer_id().0),
            place: PlaceId(self.broker.consumer_id().0),
            positions: Positions::default(),
            member,
            ended: false,
            is_lost: false,
            is_noted: true,
            object,
            _stop: None,
        };
        if let Some(left) = left.filter(|left| left.ended && left.stream == reading.object.id) {
            reading.ended = true;
            for at in &left.shards {
                reading.positions.begin(at.shard, at.position, at.end);
            }
            return Ok(Source::Stream(Box::new(reading)));
        }
        let options = external.request.options(reading.object.id, left);
        let shares = reading.member.as_ref().map(Member::shares);
        let Begun { reader, from, ends, stop } = match self.begin(at, &reading.object, options, shares).await
        {
            Ok(begun) => begun,
            Err(error) => {
                reading.end(&self.broker.core).await;
                return Err(error);
            }
        };
        for (shard, offset) in from {
            let end = ends.iter().find(|(of, _)| *of == shard).map(|(_, end)| *end);
            reading.positions.begin(shard, offset, end);
        }
        (reading.reader, reading._stop) = (reader, Some(stop));
        // What is stored already need not be told.
        let left = self.externals.get(at).and_then(|external| external.left.as_deref());
        let position = reading.position();
        if left != Some(&position) {
            reading.positions.touch();
            reading.is_noted = reading.member.is_none();
            self.schedule_positions();
        }
        Ok(Source::Stream(Box::new(reading)))
    }

    /// What a subscription asks for has changed, but not where it begins: it goes on in the new way with the next
    /// message. `is_same_end`: it ends where it did.
    pub(super) async fn read_otherwise(&mut self, at: usize, is_same_end: bool, member: Option<Member>) {
        let Some(external) = self.externals.get(at) else { return };
        let Source::Stream(reading) = &external.source else {
            return self.connect_external(at, member).await;
        };
        let object = Arc::clone(&reading.object);
        let mut options = external.request.options(object.id, None);
        options.start = Start::Offsets(reading.positions.next());
        if let Some(ends) = reading.positions.ends().filter(|_| is_same_end) {
            options.until = Some(Start::Offsets(ends));
        }
        let shares = reading.member.as_ref().map(|member| member.shares_from(&reading.positions));
        match self.begin(at, &object, options, shares).await {
            Ok(Begun { reader, ends, stop, .. }) => {
                let external = self.externals.get_mut(at);
                if let Some(Source::Stream(reading)) = external.map(|external| &mut external.source) {
                    reading.positions.end_at(&ends);
                    (reading.reader, reading.ended, reading._stop) = (reader, false, Some(stop));
                    reading.is_lost = false;
                }
            }
            Err(error) => {
                self.lose(at).await;
                if let Some(external) = self.externals.get_mut(at)
                    && let Some(left) = external.left.as_deref_mut().filter(|_| !is_same_end)
                {
                    left.ended = false;
                    left.shards.iter_mut().for_each(|at| at.end = None);
                }
                self.put_off(at, error.to_string());
            }
        }
    }

    /// Begins a reader for the subscription `at`.
    async fn begin(
        &mut self,
        at: usize,
        object: &Arc<Object>,
        mut options: ReadOptions,
        shares: Option<watch::Receiver<Shares>>,
    ) -> weir_core::Result<Begun> {
        let core = Arc::clone(&self.broker.core);
        if options.until == Some(Start::Latest) {
            // As offsets, which do not move when the client comes back.
            let ends =
                ReadOptions { start: Start::Latest, key: options.key.clone(), ..ReadOptions::default() };
            options.until = Some(Start::Offsets(core.reader(object, &ends).await?.positions()));
        }
        options.name = (*self.stored.client_id).into();
        let reader = match shares {
            Some(_) => {
                let mut reader = core.idle_reader();
                core.introduce(&mut reader, object, &options.name);
                reader
            }
            None => core.reader(object, &options).await?,
        };
        let id = ReaderId(self.broker.consumer_id().0);
        let from = reader.positions();
        let ends = match &options.until {
            Some(Start::Offsets(ends)) => ends.clone(),
            _ => Vec::new(),
        };
        let clock = self.broker.clock;
        let external = self.externals.get(at);
        let rate = external.and_then(|external| external.request.rate);
        let qos = external.map_or(QoS::AtMostOnce, |external| external.qos);
        let encoder = external.filter(|_| qos == QoS::AtMostOnce).map(|external| {
            let packet_size_max = self.wire.packet_size_max;
            Encoder::new(&object.definition.name, self.version, packet_size_max, external.identifier)
        });
        let task = Task {
            id,
            core,
            clock,
            object: Arc::clone(object),
            options,
            reader,
            rate: rate.map(|rate| Rate::new(rate, clock.now())),
            encoder,
            shares,
            batches: self.streams.sender(qos),
        };
        let stop = CancellationToken::new();
        self.broker.tasks.spawn(task.run(stop.clone()));
        Ok(Begun { reader: id, from, ends, stop: stop.drop_guard() })
    }

    /// Positions have moved, perhaps: they are stored before long.
    pub(super) fn schedule_positions(&mut self) {
        if self.timers.store.is_none() {
            self.timers.store = Some(self.broker.clock.now() + STORE_AFTER);
        }
    }

    /// The time may have come for something.
    pub(super) async fn handle_stream_timers(&mut self, now: Instant) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.timers.store) {
            self.store_positions();
        }
        if is_due(self.timers.release) {
            self.release_shards().await;
        }
        if is_due(self.timers.retry) {
            self.retry_externals(now).await;
        }
    }

    /// The time has come to store positions, unless an earlier write is under way: then a little later.
    fn store_positions(&mut self) {
        self.timers.store = None;
        for external in &mut self.externals {
            if let Source::Stream(reading) = &mut external.source
                && let Reading { member: Some(member), object, positions, .. } = &mut **reading
                && positions.has_moved()
            {
                member.report(&self.broker.core, object, positions);
            }
        }
        if self.inbox.known().is_some_and(|inbox| inbox.writing.is_some()) {
            return self.schedule_positions();
        }
        let ops = self.moved_positions();
        if !ops.is_empty() {
            self.inbox.state().ops.extend(ops);
        }
    }

    /// Where subscriptions stand that have moved, as far as that is stored with the session.
    pub(super) fn moved_positions(&mut self) -> Vec<SessionOp> {
        if !self.stored.persistent {
            return Vec::new();
        }
        let moved = self.externals.iter_mut().filter_map(|external| match &mut external.source {
            Source::Stream(reading) if reading.member.is_none() && reading.positions.has_moved() => {
                Some(SessionOp::StorePosition(Box::new((external.text.clone(), reading.position()))))
            }
            // The group keeps its positions. But a member that is away when its stream is made anew finds out by this.
            Source::Stream(reading) if !reading.is_noted => {
                reading.is_noted = true;
                let note = SessionPosition { stream: reading.object.id, ended: false, shards: Vec::new() };
                Some(SessionOp::StorePosition(Box::new((external.text.clone(), note))))
            }
            Source::Stream(_) | Source::Missing | Source::Queue { .. } => None,
        });
        moved.collect()
    }

    /// What was on its way to the store may not have come there.
    pub(super) fn touch_positions(&mut self) {
        for external in &mut self.externals {
            if let Source::Stream(reading) = &mut external.source {
                reading.positions.touch();
            }
        }
    }

    /// The queue or stream of a subscription is gone. It may come back as the same.
    pub(super) async fn lose(&mut self, at: usize) {
        self.note_since(at).await;
        let Some(external) = self.externals.get_mut(at) else { return };
        let mut source = std::mem::replace(&mut external.source, Source::Missing);
        if let Source::Stream(reading) = &mut source
            && reading.member.is_none()
        {
            let position = reading.position();
            if self.stored.persistent {
                let op = SessionOp::StorePosition(Box::new((external.text.clone(), position.clone())));
                self.inbox.state().ops.push(op);
            }
            external.left = Some(Box::new(position));
        }
        self.release(source, Lost::Left).await;
    }

    /// A member of a group has lost its stream: if that comes back without the group, the latest is what is published
    /// from now on.
    pub(super) async fn note_since(&mut self, at: usize) {
        let now = self.broker.clock.wall();
        let Some(external) = self.externals.get_mut(at) else { return };
        if group_of(&external.to).is_some() && external.request.start == Start::Latest {
            external.request.since = Some(now);
            self.store_request(at).await;
        }
    }

    /// The group of a subscription has its place: one that begins later begins with the latest of then.
    pub(super) async fn forget_since(&mut self, at: usize) {
        let Some(external) = self.externals.get_mut(at) else { return };
        if group_of(&external.to).is_some() && external.request.since.take().is_some() {
            self.store_request(at).await;
        }
    }

    async fn store_request(&mut self, at: usize) {
        let Some(external) = self.externals.get(at).filter(|_| self.stored.persistent) else { return };
        let options = SubscriptionOptions { qos: external.qos, ..SubscriptionOptions::default() };
        let wish = Wish { options, identifier: external.identifier };
        let subscription = [(external.text.clone(), stored(&wish, &external.request))];
        if let Err(error) = self.broker.sessions.subscribe(&self.stored, &subscription).await {
            self.fail(&error);
        }
    }

    /// Subscriptions to these are about to be written anew: nothing that was noted before is written after that. False
    /// if the session cannot be stored.
    pub(super) async fn forget_positions(&mut self, of: impl Fn(&str) -> bool) -> bool {
        if !self.stored.persistent || self.externals.is_empty() {
            return true;
        }
        let ops = &mut self.inbox.state().ops;
        ops.retain(|op| !matches!(op, SessionOp::StorePosition(stored) if of(&stored.0)));
        self.written().await
    }
}
