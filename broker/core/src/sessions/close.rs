//! The end of a connection and the end of a session.
//!
//! A session ends with its connection, by its timer, or because the client starts clean. Its inbox is cleared
//! a while later, when nobody can still be writing to it.

use std::time::Duration;

use bytestring::ByteString;
use futures_util::TryStreamExt;
use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery, Transaction};

use super::doubt::Fate;
use super::open::rows;
use super::{EndedSession, Retry, SessionRef, Sessions, Shared, check_fence, read_fence};
use crate::inbox;
use crate::keyspace::PublishId;
use crate::keyspace::change::{Change, SessionPhase};
use crate::keyspace::inbox::{InboxId, InboxMark};
use crate::keyspace::owner::PodId;
use crate::keyspace::pod::Pod;
use crate::keyspace::session::{
    ClientKeys, Fence, Incarnation, IncomingPublish, OutgoingEntry, OutgoingPhase, SessionEpoch,
    SessionRoute, SessionState, SessionStatus, suffix,
};
use crate::keyspace::session_position::SessionPosition;
use crate::keyspace::timer::{Timer, TimerId, TimerKind};
use crate::keyspace::will::{WillHeader, WillId};
use crate::keyspace::{DecodeError, VirtualShard};
use crate::wills::{self, DueWill, Publisher};
use crate::{Error, Result};

/// Time from the end of a session to the clearing of its inbox. Pods that have not heard of the end may write
/// to it for some seconds more.
const DRAIN_AFTER: Duration = Duration::from_secs(60);
/// Most subscriptions removed in one transaction; with [`WIPE_BYTES`] it keeps the transaction small.
const WIPE_SUBSCRIPTIONS: usize = 1_000;
/// Most bytes of subscriptions removed in one transaction.
const WIPE_BYTES: usize = 200_000;
/// Marks of incoming publishes cleared with their session. The sweep of marks finds the rest.
const WIPE_MARKS: usize = 1_000;
/// Timers handled in one call.
const DUE_MAX: usize = 1_000;
/// Connections of dead pods closed in one transaction.
const ORPHANS_PER_TRANSACTION: usize = 50;
/// Such transactions at once.
const ORPHAN_TRANSACTIONS: usize = 8;

/// What becomes of the will when a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WillAction {
    /// It is forgotten.
    Cancel,
    /// It is published, after its delay.
    Fire,
}

/// How a connection ends.
#[derive(Clone, Debug)]
pub struct CloseOptions {
    /// Seconds the session goes on without it; zero: it ends now, `u32::MAX`: it never ends by itself.
    pub expiry_seconds: u32,
    /// What becomes of the will.
    pub will: WillAction,
    /// Publishes that are not finished: they go on under their packet ids. Those of which PUBREC has come leave the inbox.
    pub outgoing: Vec<OutgoingEntry>,
    /// Subscriptions that have come further in their streams than is stored, and how far.
    pub positions: Vec<(ByteString, SessionPosition)>,
    /// QoS 2 publishes of the client that were answered and not released, by packet id: the next connection answers a
    /// repeat without delivering it.
    pub answered: Vec<(u16, PublishId)>,
}

/// What the end of a connection brought about.
#[derive(Clone, Debug, Default)]
pub struct Closed {
    /// A will to publish at once. [`Wills::due`](crate::wills::Wills::due) repeats it later if it isn't done.
    pub will: Option<DueWill>,
    /// The session, if it has ended.
    pub ended: Option<EndedSession>,
}

impl Sessions {
    /// Ends the connection that holds `session`, and the session if its expiry is zero.
    ///
    /// # Errors
    /// [`Error::Fenced`] if another connection has taken it over, which has then seen to the will; or if the
    /// store fails. Not cancel-safe.
    pub async fn close(&self, session: &SessionRef, options: &CloseOptions) -> Result<Closed> {
        if session.epoch.0 == 0 {
            return Ok(Closed::default());
        }
        let shared = &*self.shared;
        let keys = shared.keys(&session.client_id);
        let closing = Closing { shared, keys: &keys, session, options };
        let mut closed = Closed::default();
        let (mut incarnation, mut released, mut handed_out) = (None, Vec::new(), None);
        let mut retry = Retry::new(shared.clock);
        loop {
            let now = shared.clock.wall();
            let mut tx = shared.store.begin();
            let mut ended = None;
            let outcome = closing.run(&mut *tx, now, retry.is_repeat(), &mut ended).await;
            incarnation = shared.note(ended).or(incarnation);
            if let Ok(CloseStep { will: Some(will), .. }) = &outcome {
                handed_out = Some(will.clone());
            }
            // Later attempts also find what the first one may have removed.
            if let (Ok(step), false) = (&outcome, retry.is_repeat()) {
                released.clone_from(&step.released);
            }
            match retry.commit(tx, outcome).await {
                None => {}
                Some(Err(Error::Fenced)) if retry.is_repeat() => {
                    return self.closed_or_fenced(session, handed_out, incarnation).await;
                }
                Some(Err(error)) => return Err(error),
                // What an attempt has found that did not commit may have been another pod's since.
                Some(Ok((CloseStep { done, will, .. }, _))) => {
                    closed.will = closed.will.or(will);
                    if done {
                        break;
                    }
                }
            }
        }
        shared.counters.remove(&session.client_id, session.incarnation, released.into_iter());
        closed.ended = incarnation.map(|incarnation| shared.end(&session.client_id, incarnation));
        Ok(closed)
    }

    /// An attempt of unknown outcome has ended the connection, or another connection has taken the session over. What
    /// became of its will, and of the session if it was to end.
    async fn closed_or_fenced(
        &self,
        session: &SessionRef,
        will: Option<DueWill>,
        to_end: Option<Incarnation>,
    ) -> Result<Closed> {
        let shared = &*self.shared;
        let client_id = &session.client_id;
        let fate = match to_end {
            Some(incarnation) => shared.fate(client_id, incarnation).await?,
            None if session.persistent => Fate::Lives,
            None => Fate::Ended,
        };
        let ended = to_end.filter(|_| fate == Fate::Ended).map(|ended| shared.end(client_id, ended));
        // One that is not handed out here is when its lease is over.
        let will = match will {
            Some(will) if wills::is_handed_out(shared, &will).await.unwrap_or(false) => Some(will),
            _ => None,
        };
        if fate != Fate::Ended && will.is_none() {
            return Err(Error::Fenced);
        }
        Ok(Closed { will, ended })
    }

    /// Ends `session` and its connection, without a will.
    ///
    /// # Errors
    /// As [`Sessions::close`].
    pub async fn end(&self, session: &SessionRef) -> Result<Option<EndedSession>> {
        let options = CloseOptions {
            expiry_seconds: 0,
            will: WillAction::Cancel,
            outgoing: Vec::new(),
            positions: Vec::new(),
            answered: Vec::new(),
        };
        self.close(session, &options).await.map(|closed| closed.ended)
    }

    /// Ends the sessions whose time is over at `now`, some hundreds at a time: call it each second.
    ///
    /// # Errors
    /// If the store fails; what was not handled stays due.
    pub async fn expire_due(&self, now: Timestamp) -> Result<Vec<EndedSession>> {
        let shared = &*self.shared;
        let mut ended = Vec::new();
        for (shard, id, timer) in shared.due_timers(TimerKind::SessionEnd, now, DUE_MAX).await? {
            if let Timer::SessionEnd(client_id) = timer
                && let Some(incarnation) = self.expire(shard, id, &client_id, now).await?
            {
                ended.push(shared.end(&client_id, incarnation));
            }
        }
        Ok(ended)
    }

    async fn expire(
        &self,
        shard: VirtualShard,
        id: TimerId,
        client_id: &ByteString,
        now: Timestamp,
    ) -> Result<Option<Incarnation>> {
        let shared = &*self.shared;
        let keys = shared.keys(client_id);
        let wipe = Wipe { shared, keys: &keys, client_id };
        let mut incarnation = None;
        let mut retry = Retry::new(shared.clock);
        loop {
            let mut tx = shared.store.begin();
            let mut ended = None;
            let outcome = wipe.expire(&mut *tx, shard, id, now, &mut ended).await;
            incarnation = shared.note(ended).or(incarnation);
            match retry.commit(tx, outcome).await {
                None => {}
                Some(Err(error)) => return Err(error),
                Some(Ok((Expired::InPart, _))) => {}
                Some(Ok((Expired::Done, _))) => return Ok(incarnation),
                // An attempt of unknown outcome has done it, or it wasn't to be.
                Some(Ok((Expired::NotDue(lives), _))) => {
                    return Ok(incarnation.filter(|ended| lives != Some(*ended)));
                }
            }
        }
    }

    /// Ends the connections that pods which are gone have left behind, as if each had been cut off now: their
    /// wills fall due and their sessions begin to expire. Returns how many there were.
    ///
    /// Call it when pods have died, and at the start on a store that no other pod can be using.
    ///
    /// # Errors
    /// If the store fails; calling again goes on.
    pub async fn close_orphans(&self, is_gone: impl Fn(&[u8; 16]) -> bool + Send + Sync) -> Result<usize> {
        let shared = &*self.shared;
        let mut closed = 0;
        let (mut begin, end) = WillId::all();
        loop {
            let mut tx = shared.store.begin();
            let query = RangeQuery::new(&begin, &end).limit(500).target_bytes(500_000);
            let page = tx.get_range(query, Isolation::Snapshot).await?;
            drop(tx);
            let mut orphans = Vec::new();
            for (key, value) in page.pairs {
                let (id, part) = WillId::decode_key(key)?;
                // Behind the other parts of this will, or behind the other wills of a pod that lives.
                begin = if is_gone(&id.pod) { id.range().1 } else { WillId::of_pod(&id.pod).1 };
                if part == 0 && is_gone(&id.pod) && WillHeader::decode(value)?.timer.is_none() {
                    orphans.push(id);
                }
            }
            let is_last = !page.more;
            let chunks = futures_util::stream::iter(orphans.chunks(ORPHANS_PER_TRANSACTION).map(Ok));
            let close = async |chunk: &[WillId]| {
                let mut retry = Retry::new(shared.clock);
                loop {
                    let mut tx = shared.store.begin();
                    let outcome = close_all(shared, &mut *tx, chunk, retry.is_repeat()).await;
                    match retry.commit(tx, outcome).await {
                        None => {}
                        Some(outcome) => return outcome.map(drop),
                    }
                }
            };
            chunks.try_for_each_concurrent(ORPHAN_TRANSACTIONS, close).await?;
            closed += orphans.len();
            if is_last {
                return Ok(closed);
            }
        }
    }
}

/// Closes the connections of pods that are gone.
async fn close_all(
    shared: &Shared,
    tx: &mut dyn Transaction,
    orphans: &[WillId],
    is_repeat: bool,
) -> Result<()> {
    let now = shared.clock.wall();
    for id in orphans {
        if lives(shared, tx, PodId(id.pod)).await? {
            continue;
        }
        let keys = shared.keys(&id.client_id);
        let fence = read_fence(tx, &keys).await?;
        let is_latest = |fence: &Fence| {
            fence.pod == id.pod && fence.epoch == id.epoch && fence.incarnation == id.incarnation
        };
        let Some(fence) = fence.filter(is_latest) else {
            wills::supersede(shared, tx, id, false, now).await?;
            continue;
        };
        if is_repeat {
            tx.set(&keys.fence(), &fence.encode());
        }
        let state = tx.get(&keys.state(), Isolation::Serializable).await?;
        let expiry_seconds = match state {
            Some(state) => SessionState::decode(state)?.expiry_seconds,
            None => 0,
        };
        wills::release(shared, tx, id, expiry_seconds, now, Publisher::Anybody).await?;
        if !fence.persistent {
            // It has nothing else, and ends with its connection.
            tx.clear(&keys.fence());
            continue;
        }
        let wipe = Wipe { shared, keys: &keys, client_id: &id.client_id };
        wipe.disconnect(tx, expiry_seconds, now);
    }
    Ok(())
}

/// Whether `pod` is a member of the cluster, whatever this pod has heard.
async fn lives(shared: &Shared, tx: &mut dyn Transaction, pod: PodId) -> Result<bool> {
    Ok(shared.cluster.is_some() && tx.get(&Pod::key(pod), Isolation::Serializable).await?.is_some())
}

struct Closing<'a> {
    shared: &'a Shared,
    keys: &'a ClientKeys,
    session: &'a SessionRef,
    options: &'a CloseOptions,
}

/// What one transaction came to.
struct CloseStep {
    will: Option<DueWill>,
    done: bool,
    /// Messages that are done with, which were not stored as such before.
    released: Vec<InboxId>,
}

impl Closing<'_> {
    async fn run(
        &self,
        tx: &mut dyn Transaction,
        now: Timestamp,
        is_repeat: bool,
        ended: &mut Option<EndedSession>,
    ) -> Result<CloseStep> {
        let fence = check_fence(tx, self.keys, self.session, is_repeat).await?;
        let id = self.shared.will_id(self.session);
        let expiry_seconds = if self.session.persistent { self.options.expiry_seconds } else { 0 };
        let will = match self.options.will {
            WillAction::Cancel => {
                wills::clear(tx, &id);
                None
            }
            WillAction::Fire => {
                let publisher = Publisher::Here { is_repeat };
                wills::release(self.shared, tx, &id, expiry_seconds, now, publisher).await?
            }
        };
        let wipe = Wipe { shared: self.shared, keys: self.keys, client_id: &self.session.client_id };
        let (mut done, mut released) = (true, Vec::new());
        if !self.session.persistent {
            tx.clear(&self.keys.fence());
        } else if expiry_seconds == 0 {
            done = wipe.page(tx, fence.incarnation, now, ended).await?;
            if !done {
                wipe.leave_ending(tx, fence, now);
            }
        } else {
            wipe.disconnect(tx, expiry_seconds, now);
            self.shared.tell(tx, || Change::Session {
                pod: PodId(self.shared.pod),
                client: self.session.client_id.clone(),
                incarnation: self.session.incarnation,
                epoch: self.session.epoch,
                now: SessionPhase::Away,
            });
            for entry in &self.options.outgoing {
                let (key, value) = (self.keys.outgoing(entry.packet_id), entry.encode());
                // A PUBREC that could not be stored when it came: the message itself is done with.
                if entry.phase == OutgoingPhase::Released
                    && tx.get(&key, Isolation::Serializable).await?.as_deref() != Some(&value[..])
                {
                    inbox::remove_row(self.shared, tx, self.keys, self.session, &entry.inbox_id).await?;
                    released.push(entry.inbox_id);
                }
                tx.set(&key, &value);
            }
            for (filter, position) in &self.options.positions {
                tx.set(&self.keys.position(filter), &position.encode());
            }
            for (packet_id, id) in &self.options.answered {
                let publish = IncomingPublish { id: *id, is_answered: true };
                tx.set(&self.keys.incoming(*packet_id), &publish.encode());
            }
        }
        Ok(CloseStep { will, done, released })
    }
}

/// What a transaction found of a session whose timer is due.
enum Expired {
    Done,
    /// There is more than fits into a transaction.
    InPart,
    /// This session lives on, or there is none.
    NotDue(Option<Incarnation>),
}

/// Removes the records of a session.
pub(super) struct Wipe<'a> {
    pub(super) shared: &'a Shared,
    pub(super) keys: &'a ClientKeys,
    pub(super) client_id: &'a ByteString,
}

impl Wipe<'_> {
    /// Removes one transaction's worth of the session `incarnation` and adds what it had subscribed to to
    /// `ended`. Returns whether nothing is left of it but its inbox, for which a timer is set.
    pub(super) async fn page(
        &self,
        tx: &mut dyn Transaction,
        incarnation: Incarnation,
        now: Timestamp,
        ended: &mut Option<EndedSession>,
    ) -> Result<bool> {
        let ended = match ended {
            Some(ended) if ended.incarnation == incarnation => ended,
            ended => ended.insert(EndedSession {
                client_id: self.client_id.clone(),
                incarnation,
                filters: Vec::new(),
            }),
        };
        let (begin, end) = self.keys.subscriptions();
        let query = RangeQuery::new(&begin, &end).limit(WIPE_SUBSCRIPTIONS).target_bytes(WIPE_BYTES);
        let page = tx.get_range(query, Isolation::Serializable).await?;
        for (key, _) in &page.pairs {
            let filter = ByteString::try_from(suffix(key, begin.len(), "subscription key")?)
                .map_err(|_| DecodeError::Invalid("subscription filter"))?;
            tx.clear(&SessionRoute::key(self.client_id, &filter, self.shared.virtual_shards));
            tx.clear(key);
            ended.filters.push(filter);
        }
        if page.more {
            return Ok(false);
        }
        for (_, value) in rows(tx, self.keys.all_incoming()).await?.into_iter().take(WIPE_MARKS) {
            tx.clear(&InboxMark::key(&IncomingPublish::decode(value)?.id, self.shared.virtual_shards));
        }
        let (begin, end) = self.keys.all_but_inbox();
        tx.clear_range(&begin, &end);
        let drain = Timer::InboxDrain(self.client_id.clone(), incarnation);
        let id = self.shared.timer_at(now.saturating_add(DRAIN_AFTER));
        tx.set(&Timer::key(self.keys.shard(), drain.kind(), id), &drain.encode());
        self.shared.tell(tx, || Change::Session {
            pod: PodId(self.shared.pod),
            client: self.client_id.clone(),
            incarnation,
            epoch: SessionEpoch::default(),
            now: SessionPhase::Ended,
        });
        Ok(true)
    }

    /// Marks a session that is partly removed as one that has ended, so that it is never opened again and the
    /// rest goes too if this process does not get to it.
    pub(super) fn leave_ending(&self, tx: &mut dyn Transaction, fence: Fence, now: Timestamp) {
        tx.set(&self.keys.fence(), &fence.encode());
        self.set_disconnected(tx, 0, now, Some(now));
    }

    /// Marks the session as one without a connection, and sets the timer that ends it.
    fn disconnect(&self, tx: &mut dyn Transaction, expiry_seconds: u32, now: Timestamp) {
        let lifetime = Duration::from_secs(expiry_seconds.into());
        let due = (expiry_seconds != u32::MAX).then(|| now.saturating_add(lifetime));
        self.set_disconnected(tx, expiry_seconds, now, due);
    }

    fn set_disconnected(
        &self,
        tx: &mut dyn Transaction,
        expiry_seconds: u32,
        since: Timestamp,
        due: Option<Timestamp>,
    ) {
        let expiry = due.map(|due| self.shared.timer_at(due));
        if let Some(id) = expiry {
            let timer = Timer::SessionEnd(self.client_id.clone());
            tx.set(&Timer::key(self.keys.shard(), timer.kind(), id), &timer.encode());
        }
        let status = SessionStatus::Disconnected { since, expiry };
        tx.set(&self.keys.state(), &SessionState { expiry_seconds, status }.encode());
    }

    /// Removes one transaction's worth of the session if timer `id` is the one that ends it.
    async fn expire(
        &self,
        tx: &mut dyn Transaction,
        shard: VirtualShard,
        id: TimerId,
        now: Timestamp,
        ended: &mut Option<EndedSession>,
    ) -> Result<Expired> {
        let key = Timer::key(shard, TimerKind::SessionEnd, id);
        let fence = read_fence(tx, self.keys).await?;
        let state = tx.get(&self.keys.state(), Isolation::Serializable).await?;
        let state = state.map(SessionState::decode).transpose()?;
        let expiry = state.as_ref().and_then(SessionState::expiry);
        let Some(fence) = fence.filter(|_| expiry == Some(id)) else {
            tx.clear(&key);
            return Ok(Expired::NotDue(fence.map(|fence| fence.incarnation)));
        };
        if !self.page(tx, fence.incarnation, now, ended).await? {
            // Any write of the fence shuts out an attempt of unknown outcome.
            tx.set(&self.keys.fence(), &fence.encode());
            return Ok(Expired::InPart);
        }
        tx.clear(&key);
        Ok(Expired::Done)
    }
}
