//! Opening a session: fencing off its last connection, and finding or wiping what that one left.

use bytestring::ByteString;
use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery, Transaction, Version};

use super::close::Wipe;
use super::{EndedSession, Retry, SessionRef, Sessions, Shared, read_fence};
use crate::Result;
use crate::keyspace::change::{Change, SessionPhase};
use crate::keyspace::owner::PodId;
use crate::keyspace::session::{
    ClientKeys, Fence, Incarnation, IncomingPublish, OutgoingEntry, SessionEpoch, SessionState,
    SessionStatus, StoredSubscription, suffix,
};
use crate::keyspace::session_position::SessionPosition;
use crate::keyspace::timer::{Timer, TimerKind};
use crate::keyspace::will::WillId;
use crate::keyspace::{DecodeError, Reader};
use crate::wills::{self, StoredWill};

/// How to open a session.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Forget what an earlier session of the client left.
    pub clean_start: bool,
    /// Seconds the session outlives the connection; zero: it ends with it, `u32::MAX`: it never ends by itself.
    pub expiry_seconds: u32,
    /// Published when the connection ends without a farewell.
    pub will: Option<StoredWill>,
}

/// An open session.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The connection's hold on it.
    pub session: SessionRef,
    /// Whether it has state of earlier connections.
    pub present: bool,
    /// What it has subscribed to.
    pub subscriptions: Vec<(ByteString, StoredSubscription)>,
    /// Where those of streams stand, by filter.
    pub positions: Vec<(ByteString, SessionPosition)>,
    /// Publishes to the client whose handshake is under way, by packet id.
    pub outgoing: Vec<OutgoingEntry>,
    /// QoS 2 publishes of the client whose handshake is under way.
    pub incoming: Vec<(u16, IncomingPublish)>,
    /// The session of the client that has ended by this.
    pub replaced: Option<EndedSession>,
    /// The connection that the fence named before: it may not know yet that it has lost the session.
    pub previous: Option<Holder>,
    /// The version of the store in which it was opened.
    pub version: Version,
}

/// A connection that holds, or has held, the session of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The pod that it is, or was, connected to.
    pub pod: PodId,
    /// Of the session.
    pub incarnation: Incarnation,
    /// Of the connection.
    pub epoch: SessionEpoch,
}

impl From<&Fence> for Holder {
    fn from(fence: &Fence) -> Self {
        let Fence { pod, incarnation, epoch, .. } = *fence;
        Self { pod: PodId(pod), incarnation, epoch }
    }
}

/// What one transaction came to.
enum Step {
    Done(Box<Opened>),
    /// There is more to wipe than fits into a transaction.
    Wiping,
}

impl Sessions {
    /// Opens the session of `client_id`, which fences off every earlier connection of that client.
    ///
    /// Costs one read, and no write, for a client without state that wants none and has no will.
    ///
    /// # Errors
    /// If the store fails. Not cancel-safe: the session may have been opened.
    pub async fn open(&self, client_id: &ByteString, options: &OpenOptions) -> Result<Opened> {
        let shared = &*self.shared;
        let opening = Opening {
            shared,
            client_id,
            options,
            keys: shared.keys(client_id),
            fresh: Incarnation(shared.seed.next_u64()),
            connection: shared.seed.next_u64(),
        };
        let mut replaced = None;
        let mut retry = Retry::new(shared.clock);
        loop {
            let mut tx = shared.store.begin();
            let mut ended = None;
            let outcome = opening.run(&mut *tx, &mut ended).await;
            replaced = shared.note(ended).or(replaced);
            match retry.commit(tx, outcome).await {
                None => {}
                Some(Err(error)) => return Err(error),
                Some(Ok((Step::Wiping, _))) => retry = Retry::new(shared.clock),
                Some(Ok((Step::Done(mut opened), committed))) => {
                    opened.version = committed.version;
                    // An attempt in vain may have met another session than the one that is open now.
                    let replaced = replaced.filter(|replaced| *replaced != opened.session.incarnation);
                    opened.replaced = replaced.map(|replaced| shared.end(client_id, replaced));
                    return Ok(*opened);
                }
            }
        }
    }

    /// The connection that opened the session of `client_id` last, if the store knows of one. It may have ended.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn holder(&self, client_id: &str) -> Result<Option<Holder>> {
        let keys = self.shared.keys(client_id);
        let fence = read_fence(&mut *self.shared.store.begin(), &keys).await?;
        Ok(fence.as_ref().map(Holder::from))
    }
}

struct Opening<'a> {
    shared: &'a Shared,
    client_id: &'a ByteString,
    options: &'a OpenOptions,
    keys: ClientKeys,
    /// Of the session, if a new one begins.
    fresh: Incarnation,
    /// Tells a repeat that it meets its own work.
    connection: u64,
}

impl Opening<'_> {
    async fn run(&self, tx: &mut dyn Transaction, replaced: &mut Option<EndedSession>) -> Result<Step> {
        let now = self.shared.clock.wall();
        let fence = read_fence(tx, &self.keys).await?;
        let state = match &fence {
            Some(fence) if fence.persistent => self.state(tx).await?,
            _ => None,
        };
        let is_own = fence.is_some_and(|fence| fence.connection == self.connection);
        let usable = state.filter(|state| is_own || !self.options.clean_start && !has_ended(state, now));
        if let Some(fence) = &fence {
            let id = WillId {
                pod: fence.pod,
                client_id: self.client_id.clone(),
                incarnation: fence.incarnation,
                epoch: fence.epoch,
            };
            if is_own {
                wills::clear(tx, &id);
            } else {
                wills::supersede(self.shared, tx, &id, usable.is_some(), now).await?;
            }
        }
        if let Some(id) = state.as_ref().and_then(SessionState::expiry) {
            tx.clear(&Timer::key(self.keys.shard(), TimerKind::SessionEnd, id));
        }
        let epoch = SessionEpoch(fence.map_or(0, |fence| fence.epoch.0) + 1);
        if let Some(fence) = fence.filter(|fence| fence.persistent && usable.is_none()) {
            let wipe = Wipe { shared: self.shared, keys: &self.keys, client_id: self.client_id };
            if !wipe.page(tx, fence.incarnation, now, replaced).await? {
                // The session counts as ended from here on, whoever finishes this.
                wipe.leave_ending(tx, Fence { epoch, pod: self.shared.pod, has_will: false, ..fence }, now);
                return Ok(Step::Wiping);
            }
        }
        let incarnation = match &fence {
            Some(fence) if usable.is_some() => fence.incarnation,
            _ => self.fresh,
        };
        let present = incarnation != self.fresh;
        let persistent = self.options.expiry_seconds > 0 || present;
        let session = SessionRef { client_id: self.client_id.clone(), epoch, incarnation, persistent };
        let previous = fence.filter(|_| !is_own).as_ref().map(Holder::from);
        self.begin(tx, session, fence.is_some(), present, previous).await
    }

    /// Writes the records of the open session and reads what it has.
    async fn begin(
        &self,
        tx: &mut dyn Transaction,
        mut session: SessionRef,
        had_fence: bool,
        present: bool,
        previous: Option<Holder>,
    ) -> Result<Step> {
        let persistent = session.persistent;
        let has_will = self.options.will.is_some();
        // Where there are other pods, each connection has a fence: they must know whom it takes the place of.
        if persistent || has_will || self.shared.cluster.is_some() {
            let (epoch, incarnation) = (session.epoch, session.incarnation);
            let (pod, connection) = (self.shared.pod, self.connection);
            let fence = Fence { epoch, pod, connection, incarnation, persistent, has_will };
            tx.set(&self.keys.fence(), &fence.encode());
            self.shared.tell(tx, || Change::Session {
                pod: PodId(pod),
                client: self.client_id.clone(),
                incarnation,
                epoch,
                now: if persistent { SessionPhase::Connected } else { SessionPhase::Clean },
            });
            let id = self.shared.will_id(&session);
            wills::store(tx, &id, self.keys.shard(), self.options.will.as_ref());
        } else {
            session.epoch = SessionEpoch(0);
            if had_fence {
                tx.clear(&self.keys.fence());
            }
        }
        if persistent {
            let expiry_seconds = self.options.expiry_seconds;
            let state = SessionState { expiry_seconds, status: SessionStatus::Connected };
            tx.set(&self.keys.state(), &state.encode());
        }
        let mut opened = Opened {
            session,
            present,
            subscriptions: Vec::new(),
            positions: Vec::new(),
            outgoing: Vec::new(),
            incoming: Vec::new(),
            replaced: None,
            previous,
            version: Version::default(),
        };
        if present {
            self.load(tx, &mut opened).await?;
        }
        Ok(Step::Done(Box::new(opened)))
    }

    async fn state(&self, tx: &mut dyn Transaction) -> Result<Option<SessionState>> {
        let value = tx.get(&self.keys.state(), Isolation::Serializable).await?;
        Ok(value.map(SessionState::decode).transpose()?)
    }

    /// Reads what the session has. The reads conflict with what its last connection may still be writing.
    async fn load(&self, tx: &mut dyn Transaction, opened: &mut Opened) -> Result<()> {
        for (filter, value) in rows(tx, self.keys.subscriptions()).await? {
            let filter =
                ByteString::try_from(filter).map_err(|_| DecodeError::Invalid("subscription filter"))?;
            opened.subscriptions.push((filter, StoredSubscription::decode(value)?));
        }
        for (filter, value) in rows(tx, self.keys.positions()).await? {
            let filter =
                ByteString::try_from(filter).map_err(|_| DecodeError::Invalid("filter of a position"))?;
            opened.positions.push((filter, SessionPosition::decode(value)?));
        }
        for (packet_id, value) in rows(tx, self.keys.all_outgoing()).await? {
            opened.outgoing.push(OutgoingEntry::decode(packet_id, value)?);
        }
        for (packet_id, value) in rows(tx, self.keys.all_incoming()).await? {
            let packet_id = Reader::new(packet_id).u16("incoming packet id")?;
            opened.incoming.push((packet_id, IncomingPublish::decode(value)?));
        }
        Ok(())
    }
}

/// Whether the session has ended, although its records may still be there.
fn has_ended(state: &SessionState, now: Timestamp) -> bool {
    state.expiry().is_some_and(|timer| timer.due <= now)
}

/// All rows of a range whose ends begin with the same prefix, each with what follows the prefix in its key.
pub(super) async fn rows(
    tx: &mut dyn Transaction,
    (begin, end): (Vec<u8>, Vec<u8>),
) -> Result<Vec<(bytes::Bytes, bytes::Bytes)>> {
    let prefix = begin.len();
    let mut next = Some(RangeQuery::new(begin, end).target_bytes(500_000));
    let mut rows = Vec::new();
    while let Some(query) = next {
        let page = tx.get_range(query.clone(), Isolation::Serializable).await?;
        next = query.after(&page);
        for (key, value) in page.pairs {
            rows.push((suffix(&key, prefix, "session row")?, value));
        }
    }
    Ok(rows)
}
