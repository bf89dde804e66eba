//! A connection as a member of consumer groups of streams: it reads the shards that it is given, says how far it has
//! come, and gives back what is taken from it once nothing of that is in flight.
//!
//! Who has which shard is for the group to know. The state belongs to the subscription.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytestring::ByteString;
use tokio::sync::{mpsc, watch};
use weir_codec::ReasonCode;
use weir_core::catalog::{Object, SHARDS_MAX};
use weir_core::groups::GroupEvent;
use weir_core::keyspace::session_position::SessionPosition;
use weir_core::queue::ConsumerId;
use weir_core::{Core, Error};
use weir_env::clock::Instant;
use weir_topic::Subscription;

use super::positions::Positions;
use super::request::StreamRequest;
use super::task::Shares;
use super::{PlaceId, Reading};
use crate::broker::Broker;
use crate::connection::Connection;
use crate::connection::external::{External, Refusal, Source, group_of, resolve};

/// Events of a group that may wait for a connection: as many as a group may have under way.
const EVENTS_MAX: usize = 4 * SHARDS_MAX as usize;
/// Time in which what is in flight of a shard that is taken away may be acknowledged.
const RELEASE_AFTER: Duration = Duration::from_secs(2);

/// A member of a group.
#[derive(Debug)]
pub(in crate::connection) struct Member {
    group: ByteString,
    id: ConsumerId,
    events: mpsc::Receiver<GroupEvent>,
    /// What it reads, for the task that does.
    shares: watch::Sender<Shares>,
    /// Shards that were taken from it and are not given back: their generations, and until when that may take.
    leaving: BTreeMap<u8, (u64, Instant)>,
    /// Once it leaves, it does not come back.
    is_last_time: bool,
}

impl Member {
    fn new(group: ByteString, id: ConsumerId) -> (Self, mpsc::Sender<GroupEvent>) {
        let (events_tx, events) = mpsc::channel(EVENTS_MAX);
        let shares = watch::Sender::new(Shares::new());
        (Self { group, id, events, shares, leaving: BTreeMap::new(), is_last_time: false }, events_tx)
    }

    /// What it reads, now and later.
    pub(super) fn shares(&self) -> watch::Receiver<Shares> {
        self.shares.subscribe()
    }

    /// The same for a new reader, which goes on with the next messages.
    pub(super) fn shares_from(&self, positions: &Positions) -> watch::Receiver<Shares> {
        self.shares.send_modify(|shares| {
            for (shard, next) in positions.next() {
                if let Some((_, from)) = shares.get_mut(&shard) {
                    *from = next;
                }
            }
        });
        let mut shares = self.shares.subscribe();
        shares.mark_changed();
        shares
    }

    /// Whether it reads this shard by this assignment.
    pub(super) fn reads(&self, shard: u8, generation: u64) -> bool {
        self.shares.borrow().get(&shard).is_some_and(|(of, _)| *of == generation)
    }

    /// Tells the group how far it has come.
    pub(super) fn report(&self, core: &Core, object: &Object, positions: &mut Positions) {
        let shares = self.shares.borrow();
        for at in positions.take() {
            let leaving = self.leaving.get(&at.shard).map(|(generation, _)| *generation);
            let generation = leaving.or(shares.get(&at.shard).map(|(generation, _)| *generation));
            if let Some(generation) = generation {
                core.groups().progress(object, &self.group, at.shard, generation, at.position);
            }
        }
    }

    /// Gives shards back that are settled, or whose time is over; all if `now` is not told.
    async fn release(
        &mut self,
        core: &Core,
        object: &Object,
        positions: &mut Positions,
        now: Option<Instant>,
    ) {
        let is_due = |shard, until| positions.is_settled(shard) || now.is_none_or(|now| until <= now);
        let due: Vec<(u8, u64)> = self
            .leaving
            .iter()
            .filter(|(shard, (_, until))| is_due(**shard, *until))
            .map(|(shard, (generation, _))| (*shard, *generation))
            .collect();
        for (shard, generation) in due {
            self.leaving.remove(&shard);
            if let Some(position) = positions.remove(shard) {
                // Without an answer the shard is taken all the same; at shutdown nobody waits for it.
                let _ = core.groups().release(object, &self.group, shard, generation, position).await;
            }
        }
    }

    /// Leaves the group, with its last words.
    pub(super) async fn leave(mut self, core: &Core, object: &Object, positions: &mut Positions) {
        self.report(core, object, positions);
        self.release(core, object, positions, None).await;
        let groups = core.groups();
        // The stream may be gone, or the broker stop.
        let _ = if self.is_last_time {
            groups.leave_for_good(object, &self.group, self.id).await
        } else {
            groups.leave(object, &self.group, self.id).await
        };
    }

    /// Once it leaves, it does not come back.
    pub(super) fn leave_for_good(&mut self) {
        self.is_last_time = true;
    }

    /// Leaves the group before it has read anything.
    pub(in crate::connection) async fn leave_anew(self, core: &Core, object: &Object) {
        self.leave(core, object, &mut Positions::default()).await;
    }

    /// When a shard is to be given back at the latest.
    fn due_at(&self, positions: &Positions, now: Instant) -> Option<Instant> {
        let at = |(shard, (_, until)): (&u8, &(u64, Instant))| {
            if positions.is_settled(*shard) { now } else { *until }
        };
        self.leaving.iter().map(at).min()
    }
}

impl Reading {
    /// Whether what was read of a shard, by this assignment if it is a member's, is still to be sent.
    pub(super) fn wants(&self, shard: u8, generation: u64) -> bool {
        self.member.as_ref().is_none_or(|member| member.reads(shard, generation))
    }
}

impl External {
    /// What its group has to say; `context` is woken when there is something.
    pub(in crate::connection) fn poll_group(
        &mut self,
        context: &mut Context<'_>,
    ) -> Option<(PlaceId, GroupEvent)> {
        let Source::Stream(reading) = &mut self.source else { return None };
        match reading.member.as_mut()?.events.poll_recv(context) {
            Poll::Ready(event) => Some((reading.place, event.unwrap_or(GroupEvent::Ended))),
            Poll::Pending => None,
        }
    }
}

impl Connection {
    /// Joins the group of a subscription that is about to be granted, if it has one and its stream exists; unless it is
    /// a member already that goes on as it is.
    pub(in crate::connection) async fn join_for(
        &mut self,
        text: &ByteString,
        to: &Subscription,
        request: &StreamRequest,
    ) -> Result<Option<Member>, Refusal> {
        let Some(group) = group_of(to) else { return Ok(None) };
        let Ok(Some(object)) = resolve(&self.broker.core.catalog().view(), to) else { return Ok(None) };
        let known = self.externals.iter().position(|external| external.text == *text);
        let mut left = None;
        if let Some(external) = known.and_then(|at| self.externals.get_mut(at)) {
            if external.request.is_same(request) && external.object().is_some() {
                return Ok(None);
            }
            left = external.left.clone().filter(|_| external.request.goes_on_as(request));
            // What it has acknowledged counts for the new membership, which takes the place of this one.
            let source = std::mem::replace(&mut external.source, Source::Missing);
            self.release(source, weir_core::queue::Lost::Left).await;
        }
        let group = ByteString::from(group.as_str().to_owned());
        let client_id = self.stored.client_id.clone();
        let error = match join(&self.broker, client_id, &object, group, request, left.as_deref()).await {
            Ok(member) => return Ok(Some(member)),
            Err(error) => error,
        };
        if let Some(at) = known {
            // What it was before goes on once it can.
            self.put_off(at, error.to_string());
        }
        let reason = match &error {
            Error::Full(_) => ReasonCode::QuotaExceeded,
            Error::Store(_)
            | Error::Record(_)
            | Error::Damaged(_)
            | Error::Fenced
            | Error::NotOwner(_)
            | Error::Remote(_)
            | Error::NoOwner
            | Error::Closed => ReasonCode::UnspecifiedError,
        };
        Err(Refusal { reason, text: format!("{text}: join the consumer group: {error}") })
    }

    /// What becomes of a membership whose subscription could not be granted.
    pub(in crate::connection) async fn leave_at_once(
        &mut self,
        mut member: Member,
        text: &ByteString,
        to: &Subscription,
    ) {
        member.is_last_time = self.externals.iter().all(|external| external.text != *text);
        if let Ok(Some(object)) = resolve(&self.broker.core.catalog().view(), to) {
            member.leave_anew(&self.broker.core, &object).await;
        }
        if let Some(at) = self.externals.iter().position(|external| external.text == *text) {
            // What it was before goes on.
            self.put_off(at, "its new form could not be stored".to_owned());
        }
    }

    /// A group has said something.
    pub(in crate::connection) async fn handle_group_event(&mut self, place: PlaceId, event: GroupEvent) {
        let now = self.broker.clock.now();
        let is_its = |external: &External| matches!(&external.source, Source::Stream(reading) if reading.place == place);
        let Some(at) = self.externals.iter().position(is_its) else { return };
        let Some(external) = self.externals.get_mut(at) else { return };
        let Source::Stream(reading) = &mut external.source else { return };
        let Some(member) = &mut reading.member else { return };
        match event {
            GroupEvent::Assigned { shard, generation, from } => {
                member.leaving.remove(&shard);
                reading.positions.begin(shard, from, None);
                member.shares.send_modify(|shares| _ = shares.insert(shard, (generation, from)));
            }
            GroupEvent::Revoked { shard, generation } => {
                if !member.reads(shard, generation) {
                    return;
                }
                // What was read and not sent is not wanted any more.
                member.shares.send_modify(|shares| _ = shares.remove(&shard));
                member.leaving.insert(shard, (generation, now + RELEASE_AFTER));
                self.release_shards().await;
            }
            GroupEvent::Ended => {
                external.source = Source::Missing;
                self.note_since(at).await;
                self.put_off(at, "its consumer group has ended, or has put it out".to_owned());
            }
        }
    }

    /// Gives back what was taken away and is settled, or has had its time.
    pub(in crate::connection) async fn release_shards(&mut self) {
        let now = self.broker.clock.now();
        let mut next = None;
        for external in &mut self.externals {
            let Source::Stream(reading) = &mut external.source else { continue };
            let Reading { member: Some(member), object, positions, .. } = &mut **reading else { continue };
            member.release(&self.broker.core, object, positions, Some(now)).await;
            next = next.into_iter().chain(member.due_at(positions, now)).min();
        }
        self.timers.release = next;
    }

    /// Whether a shard that is taken away is settled may have changed: then it is given back at once.
    pub(super) fn schedule_release(&mut self, at: usize) {
        let Some(external) = self.externals.get(at) else { return };
        let Source::Stream(reading) = &external.source else { return };
        let Some(member) = &reading.member else { return };
        if !member.leaving.is_empty() {
            let due = member.due_at(&reading.positions, self.broker.clock.now());
            self.timers.release = self.timers.release.into_iter().chain(due).min();
        }
    }
}

/// Joins a group, which begins where `request` does if it is new; of a subscription that was `left`, perhaps in another
/// stream of that name.
pub(super) async fn join(
    broker: &Broker,
    client_id: ByteString,
    object: &Arc<Object>,
    group: ByteString,
    request: &StreamRequest,
    left: Option<&SessionPosition>,
) -> weir_core::Result<Member> {
    let (member, events) = Member::new(group, broker.consumer_id());
    // In the same stream the group is new although the subscription is not.
    let start = request.options(object.id, left.filter(|left| left.stream != object.id)).start;
    broker.core.groups().join(object, &member.group, member.id, client_id, &start, events).await?;
    Ok(member)
}
