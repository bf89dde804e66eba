//! Changes of an open session: subscriptions with their routes, packet ids, and messages that are done with.

use bytes::Bytes;
use bytestring::ByteString;
use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery, Transaction, Version, key_after};

use super::{Retry, SessionRef, Sessions, Shared, check_fence};
use crate::Result;
use crate::inbox;
use crate::keyspace::change::Change;
use crate::keyspace::inbox::{InboxId, InboxMark};
use crate::keyspace::owner::PodId;
use crate::keyspace::session::{
    ClientKeys, IncomingPublish, OutgoingEntry, OutgoingPhase, SessionRoute, StoredSubscription,
};
use crate::keyspace::session_position::SessionPosition;
use crate::keyspace::timer::{Timer, TimerId, TimerKind};
use crate::keyspace::{PublishId, VirtualShard};

/// Bytes of subscriptions written in one transaction. Filters are in two keys each.
const SUBSCRIBE_BYTES: usize = 200_000;
/// Operations in one transaction.
const OPS_MAX: usize = 1_000;

/// One change of an open session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionOp {
    /// A QoS 2 publish of the client is being forwarded: before it is.
    StoreIncoming(u16, PublishId),
    /// A QoS 2 publish of the client that is stored goes out to everybody: from now on a repeat of it does not. Does
    /// nothing if it has been released.
    StoreAnswered(u16, PublishId),
    /// PUBREL has come. Its mark in the inboxes is cleared too.
    ClearIncoming(u16),
    /// A QoS 2 publish is being sent: before it is.
    StoreOutgoing(u16, InboxId),
    /// PUBREC has come: the message itself is done with.
    Release(u16, InboxId),
    /// PUBCOMP has come, or PUBACK for what [`Sessions::close`] has stored.
    ClearOutgoing(u16),
    /// A message of the inbox is done with.
    Remove(InboxId),
    /// The subscription of this filter has come so far in its stream.
    StorePosition(Box<(ByteString, SessionPosition)>),
}

/// Where the next page of routes begins.
#[derive(Clone, Debug)]
pub struct RouteCursor(Bytes);

/// Some of the routes of all persistent sessions.
#[derive(Clone, Debug)]
pub struct RoutePage {
    /// The routes.
    pub routes: Vec<SessionRoute>,
    /// Where the next page begins; absent after the last one.
    pub next: Option<RouteCursor>,
}

impl Sessions {
    /// Stores subscriptions, or replaces those to the same filters. Does nothing for a session that isn't
    /// persistent. More than fits into one transaction is stored in several; returns
    /// the version of the last one.
    ///
    /// # Errors
    /// [`Error::Fenced`](crate::Error::Fenced), or if the store fails; then some may have been stored.
    pub async fn subscribe(
        &self,
        session: &SessionRef,
        subscriptions: &[(ByteString, StoredSubscription)],
    ) -> Result<Option<Version>> {
        self.subscribe_anew(session, subscriptions, &[]).await
    }

    /// As [`Sessions::subscribe`], and forgets where the subscriptions to `anew`, some of these, stood in their
    /// streams.
    ///
    /// # Errors
    /// As [`Sessions::subscribe`].
    pub async fn subscribe_anew(
        &self,
        session: &SessionRef,
        subscriptions: &[(ByteString, StoredSubscription)],
        anew: &[ByteString],
    ) -> Result<Option<Version>> {
        let mut version = None;
        let size = |(filter, subscription): &(ByteString, StoredSubscription)| {
            filter.len() + subscription.extra.len() + 100
        };
        for page in pages(subscriptions, size) {
            let stored = self.fenced(session, |shared, tx, keys| {
                for (filter, subscription) in page {
                    tx.set(&keys.subscription(filter), &subscription.encode());
                    if anew.contains(filter) {
                        tx.clear(&keys.position(filter));
                    }
                    let route = SessionRoute::key(&session.client_id, filter, shared.virtual_shards);
                    tx.set(&route, &SessionRoute::value(session.incarnation, subscription));
                    shared.tell(tx, || route_change(shared.pod, session, filter, Some(subscription)));
                }
            });
            version = stored.await?.or(version);
        }
        Ok(version)
    }

    /// Removes subscriptions with their positions, also ones that do not exist; returns as [`Sessions::subscribe`].
    ///
    /// # Errors
    /// As [`Sessions::subscribe`].
    pub async fn unsubscribe(&self, session: &SessionRef, filters: &[ByteString]) -> Result<Option<Version>> {
        let mut version = None;
        for page in pages(filters, |filter| filter.len() + 100) {
            let removed = self.fenced(session, |shared, tx, keys| {
                for filter in page {
                    tx.clear(&keys.subscription(filter));
                    tx.clear(&keys.position(filter));
                    tx.clear(&SessionRoute::key(&session.client_id, filter, shared.virtual_shards));
                    shared.tell(tx, || route_change(shared.pod, session, filter, None));
                }
            });
            version = removed.await?.or(version);
        }
        Ok(version)
    }

    /// Blind writes under the fence.
    async fn fenced(
        &self,
        session: &SessionRef,
        write: impl Fn(&Shared, &mut dyn Transaction, &ClientKeys) + Send + Sync,
    ) -> Result<Option<Version>> {
        if !session.persistent {
            return Ok(None);
        }
        let shared = &*self.shared;
        let keys = shared.keys(&session.client_id);
        let mut retry = Retry::new(shared.clock);
        loop {
            let mut tx = shared.store.begin();
            let outcome = check_fence(&mut *tx, &keys, session, retry.is_repeat()).await;
            if outcome.is_ok() {
                write(shared, &mut *tx, &keys);
            }
            if let Some(outcome) = retry.commit(tx, outcome).await {
                return outcome.map(|(_, committed)| Some(committed.version));
            }
        }
    }

    /// Applies `ops`, in order, in one transaction (several if there are over a thousand). Does nothing for a
    /// session that isn't persistent.
    ///
    /// # Errors
    /// [`Error::Fenced`](crate::Error::Fenced), or if the store fails.
    pub async fn update(&self, session: &SessionRef, ops: &[SessionOp]) -> Result<()> {
        if !session.persistent {
            return Ok(());
        }
        let shared = &*self.shared;
        let keys = shared.keys(&session.client_id);
        for page in ops.chunks(OPS_MAX) {
            let mut retry = Retry::new(shared.clock);
            loop {
                let mut tx = shared.store.begin();
                let outcome = match check_fence(&mut *tx, &keys, session, retry.is_repeat()).await {
                    Ok(_) => apply(shared, &mut *tx, &keys, session, page).await,
                    Err(error) => Err(error),
                };
                if let Some(outcome) = retry.commit(tx, outcome).await {
                    outcome?;
                    break;
                }
            }
            let removed = page.iter().filter_map(|op| match op {
                SessionOp::Release(_, id) | SessionOp::Remove(id) => Some(*id),
                SessionOp::StoreIncoming(..)
                | SessionOp::StoreAnswered(..)
                | SessionOp::ClearIncoming(_)
                | SessionOp::StoreOutgoing(..)
                | SessionOp::ClearOutgoing(_)
                | SessionOp::StorePosition(_) => None,
            });
            shared.counters.remove(&session.client_id, session.incarnation, removed);
        }
        Ok(())
    }

    /// Notes a QoS 2 publish of the client, before it is forwarded.
    ///
    /// # Errors
    /// As [`Sessions::update`].
    pub async fn store_incoming(&self, session: &SessionRef, packet_id: u16, id: PublishId) -> Result<()> {
        self.update(session, &[SessionOp::StoreIncoming(packet_id, id)]).await
    }

    /// Notes that a QoS 2 publish of the client goes out to everybody now: whoever has the session after this one does not
    /// deliver a repeat of it.
    ///
    /// # Errors
    /// As [`Sessions::update`].
    pub async fn store_answered(&self, session: &SessionRef, packet_id: u16, id: PublishId) -> Result<()> {
        self.update(session, &[SessionOp::StoreAnswered(packet_id, id)]).await
    }

    /// Forgets a QoS 2 publish of the client and its mark: PUBREL has come.
    ///
    /// # Errors
    /// As [`Sessions::update`].
    pub async fn clear_incoming(&self, session: &SessionRef, packet_id: u16) -> Result<()> {
        self.update(session, &[SessionOp::ClearIncoming(packet_id)]).await
    }

    /// Routes of all persistent sessions, in no useful order: for the start. Some may be of sessions that have
    /// ended meanwhile.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn load_routes(&self, after: Option<RouteCursor>) -> Result<RoutePage> {
        let (first, end) = SessionRoute::all();
        let begin = after.map_or_else(|| first.into(), |cursor| cursor.0);
        let mut tx = self.shared.store.begin();
        let query = RangeQuery::new(begin, end).limit(5_000).target_bytes(500_000);
        let page = tx.get_range(query, Isolation::Snapshot).await?;
        let last = page.pairs.last().map(|(key, _)| RouteCursor(key_after(key)));
        let routes = page.pairs.into_iter().map(|(key, value)| SessionRoute::decode(key, value));
        Ok(RoutePage {
            routes: routes.collect::<std::result::Result<_, _>>()?,
            next: last.filter(|_| page.more),
        })
    }
}

impl Shared {
    /// Timers of `kind` due at `now`, at most `limit`, from all virtual shards that are this pod's to look after. Another
    /// pod may hold some of them to be its own as well: each timer is handled in a transaction that reads it.
    pub(crate) async fn due_timers(
        &self,
        kind: TimerKind,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<(VirtualShard, TimerId, Timer)>> {
        let mut due = Vec::new();
        let mut tx = self.store.begin();
        let shards = (0..self.virtual_shards).map(VirtualShard);
        let mut with_timers = VirtualShard(0);
        for shard in shards.filter(|shard| self.cluster.as_ref().is_none_or(|c| c.should_own(*shard))) {
            if shard < with_timers {
                continue;
            }
            let (begin, end) = Timer::due(shard, kind, now);
            // The next timer, of whichever shard and kind: shards without any take no read of their own.
            let next = RangeQuery::new(begin.clone(), Timer::end()).limit(1);
            let next = tx.get_range(next, Isolation::Snapshot).await?.pairs.into_iter().next();
            let Some((next, _)) = next else { break };
            if *next >= *end {
                (with_timers, _) = Timer::decode_key(next)?;
                continue;
            }
            let query = RangeQuery::new(begin, end).limit(limit - due.len());
            for (key, value) in tx.get_range(query, Isolation::Snapshot).await?.pairs {
                due.push((shard, Timer::decode_key(key)?.1, Timer::decode(kind, value)?));
            }
            if due.len() >= limit {
                break;
            }
        }
        Ok(due)
    }
}

fn route_change(
    pod: [u8; 16],
    session: &SessionRef,
    filter: &ByteString,
    subscription: Option<&StoredSubscription>,
) -> Change {
    Change::Route {
        pod: PodId(pod),
        client: session.client_id.clone(),
        incarnation: session.incarnation,
        filter: filter.clone(),
        subscription: subscription.cloned(),
    }
}

/// Applies operations; returns how many inbox rows went.
async fn apply(
    shared: &Shared,
    tx: &mut dyn Transaction,
    keys: &ClientKeys,
    session: &SessionRef,
    ops: &[SessionOp],
) -> Result<()> {
    for op in ops {
        match op {
            SessionOp::StoreIncoming(packet_id, id) => {
                tx.set(&keys.incoming(*packet_id), &IncomingPublish { id: *id, is_answered: false }.encode());
            }
            SessionOp::StoreAnswered(packet_id, id) => {
                let key = keys.incoming(*packet_id);
                if let Some(value) = tx.get(&key, Isolation::Serializable).await?
                    && IncomingPublish::decode(value)?.id == *id
                {
                    tx.set(&key, &IncomingPublish { id: *id, is_answered: true }.encode());
                }
            }
            SessionOp::ClearIncoming(packet_id) => {
                let key = keys.incoming(*packet_id);
                if let Some(value) = tx.get(&key, Isolation::Serializable).await? {
                    tx.clear(&InboxMark::key(&IncomingPublish::decode(value)?.id, shared.virtual_shards));
                    tx.clear(&key);
                }
            }
            SessionOp::StoreOutgoing(packet_id, inbox_id) => {
                let (packet_id, inbox_id) = (*packet_id, *inbox_id);
                let entry = OutgoingEntry { packet_id, phase: OutgoingPhase::Published, inbox_id };
                tx.set(&keys.outgoing(packet_id), &entry.encode());
            }
            SessionOp::Release(packet_id, inbox_id) => {
                let (packet_id, inbox_id) = (*packet_id, *inbox_id);
                let entry = OutgoingEntry { packet_id, phase: OutgoingPhase::Released, inbox_id };
                tx.set(&keys.outgoing(packet_id), &entry.encode());
                inbox::remove_row(shared, tx, keys, session, &inbox_id).await?;
            }
            SessionOp::ClearOutgoing(packet_id) => tx.clear(&keys.outgoing(*packet_id)),
            SessionOp::Remove(inbox_id) => {
                inbox::remove_row(shared, tx, keys, session, inbox_id).await?;
            }
            SessionOp::StorePosition(of) => {
                let (filter, position) = &**of;
                tx.set(&keys.position(filter), &position.encode());
            }
        }
    }
    Ok(())
}

/// Cuts `items` into runs of about [`SUBSCRIBE_BYTES`].
fn pages<T>(items: &[T], size: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|item| {
            bytes += size(item);
            bytes <= SUBSCRIBE_BYTES
        });
        let (page, others) = rest.split_at(fits.count().max(1).min(rest.len()));
        rest = others;
        (!page.is_empty()).then_some(page)
    })
}
