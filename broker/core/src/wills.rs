//! Wills: kept from CONNECT on, published when the connection ends without a farewell.
//!
//! Publishing is the broker's. A will that falls due is handed out under a lease; until the broker says that
//! it is [done](Wills::done) it is handed out again, so a crash in between repeats a will and never loses it.
//! Sessions write wills in their own transactions, through the crate-private functions here.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use weir_env::clock::Timestamp;
use weir_storage::limits::VALUE_BYTES_MAX;
use weir_storage::{Isolation, RangeQuery, Transaction};

use crate::Result;
use crate::keyspace::timer::{Timer, TimerId, TimerKind};
use crate::keyspace::will::{WillHeader, WillId};
use crate::keyspace::{PublishId, Reader, VirtualShard, Writer};
use crate::message::Message;
use crate::sessions::{Retry, Sessions, Shared};

/// Format of an encoded will message.
const FORMAT: u8 = 1;
/// Time after which a will that was handed out and isn't done is handed out again.
const LEASE: Duration = Duration::from_secs(30);
/// Wills claimed at the same time: their commits share a sync.
const CLAIMS_MAX: usize = 64;

/// A will as a client gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredWill {
    /// What is published, at its QoS and with its RETAIN. Its times mean nothing: they are set when it is.
    pub message: Message,
    /// Seconds between the end of the connection and the publish.
    pub delay_seconds: u32,
    /// Seconds the published message may wait.
    pub expiry_seconds: Option<u32>,
}

/// A will to publish now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DueWill {
    /// Names it.
    pub id: WillId,
    /// When it fell due for the first time.
    pub first_due: Timestamp,
    /// Whether it has not been handed out before.
    pub is_first: bool,
    /// Whether an earlier attempt saw to what is retained at its topic: what is there now is newer.
    pub retained: bool,
    /// What to publish.
    pub will: StoredWill,
}

impl DueWill {
    /// Names its publish, however often it is tried.
    #[must_use]
    pub fn publish_id(&self) -> PublishId {
        let key = self.id.key(0);
        PublishId::new(self.first_due, xxhash_rust::xxh3::xxh3_128(&key).to_be_bytes())
    }
}

/// The wills in a store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Wills {
    sessions: Sessions,
}

impl Wills {
    /// The wills in the store of `sessions`.
    #[must_use]
    pub fn new(sessions: &Sessions) -> Self {
        Self { sessions: sessions.clone() }
    }

    /// Wills due at `now`, at most `max`, each handed out to one caller for thirty seconds. Call it each second.
    ///
    /// # Errors
    /// If the store fails for all of them; what was not handed out stays due.
    pub async fn due(&self, now: Timestamp, max: usize) -> Result<Vec<DueWill>> {
        let timers = self.sessions.shared.due_timers(TimerKind::Will, now, max).await?;
        let claims = timers.into_iter().filter_map(|(shard, id, timer)| match timer {
            Timer::Will(will) => Some(self.claim((shard, id), will, now)),
            _ => None,
        });
        let claims: Vec<_> = stream::iter(claims).buffered(CLAIMS_MAX).collect().await;
        let (mut due, mut failed) = (Vec::new(), None);
        for claimed in claims {
            match claimed {
                Ok(claimed) => due.extend(claimed),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if due.is_empty() => Err(error),
            _ => Ok(due),
        }
    }

    async fn claim(
        &self,
        timer: (VirtualShard, TimerId),
        will: WillId,
        now: Timestamp,
    ) -> Result<Option<DueWill>> {
        let shared = &*self.sessions.shared;
        let lease = shared.timer_at(now.saturating_add(LEASE));
        let mut retry = Retry::new(shared.clock);
        loop {
            let mut tx = shared.store.begin();
            let outcome = claim(&mut *tx, timer, &will, lease).await;
            if let Some(outcome) = retry.commit(tx, outcome).await {
                return outcome.map(|(claimed, _)| claimed);
            }
        }
    }

    /// Forgets a will that has been published, or that isn't to be.
    ///
    /// # Errors
    /// If the store fails; the will is then handed out again.
    pub async fn done(&self, will: &DueWill) -> Result<()> {
        self.change(will, None).await
    }

    /// Hands out the will again at `at`: it could not be published. `retained`: what is left to do is not to retain it.
    ///
    /// # Errors
    /// If the store fails; the will is then handed out again when its lease is over.
    pub async fn retry_at(&self, will: &DueWill, at: Timestamp, retained: bool) -> Result<()> {
        self.change(will, Some((at, retained))).await
    }

    async fn change(&self, will: &DueWill, again: Option<(Timestamp, bool)>) -> Result<()> {
        let shared = &*self.sessions.shared;
        let again = again.map(|(at, retained)| (shared.timer_at(at), retained));
        let mut retry = Retry::new(shared.clock);
        loop {
            let mut tx = shared.store.begin();
            let outcome = change(&mut *tx, &will.id, again).await;
            if let Some(outcome) = retry.commit(tx, outcome).await {
                return outcome.map(drop);
            }
        }
    }
}

async fn change(tx: &mut dyn Transaction, id: &WillId, again: Option<(TimerId, bool)>) -> Result<()> {
    match (header(tx, id).await?, again) {
        (None, _) => {}
        (Some(header), None) => {
            if let Some(timer) = header.timer {
                tx.clear(&Timer::key(header.shard, TimerKind::Will, timer));
            }
            clear(tx, id);
        }
        (Some(header), Some((timer, retained))) => {
            schedule(tx, id, WillHeader { retained, ..header }, timer, header.first_due);
        }
    }
    Ok(())
}

/// Moves a due timer to the end of the lease and reads its will.
async fn claim(
    tx: &mut dyn Transaction,
    (shard, timer): (VirtualShard, TimerId),
    id: &WillId,
    lease: TimerId,
) -> Result<Option<DueWill>> {
    let header = header(tx, id).await?;
    // A repeat after an unknown outcome finds its own lease.
    let Some(header) = header.filter(|header| header.timer == Some(timer) || header.timer == Some(lease))
    else {
        tx.clear(&Timer::key(shard, TimerKind::Will, timer));
        return Ok(None);
    };
    // A repeat after an unknown outcome finds its own lease, and when it fell due.
    let is_first = header.first_due == Timestamp::default() || header.timer == Some(lease);
    let first_due = if header.first_due == Timestamp::default() { timer.due } else { header.first_due };
    schedule(tx, id, header, lease, first_due);
    let WillHeader { retained, .. } = header;
    let will = load(tx, id, &header).await?;
    Ok(Some(DueWill { id: id.clone(), first_due, is_first, retained, will }))
}

/// Writes the will of a connection, or a row that only says that the connection exists.
pub(crate) fn store(tx: &mut dyn Transaction, id: &WillId, shard: VirtualShard, will: Option<&StoredWill>) {
    let message = will.map(|will| will.message.encode(Writer::new(FORMAT)).finish()).unwrap_or_default();
    let mut parts = 0;
    for part in message.chunks(VALUE_BYTES_MAX) {
        parts += 1;
        tx.set(&id.key(parts), part);
    }
    let header = WillHeader {
        shard,
        has_will: will.is_some(),
        retained: false,
        delay_seconds: will.map_or(0, |will| will.delay_seconds),
        expiry_seconds: will.and_then(|will| will.expiry_seconds),
        timer: None,
        first_due: Timestamp::default(),
        parts,
    };
    tx.set(&id.key(0), &header.encode());
}

/// Removes the will of a connection.
pub(crate) fn clear(tx: &mut dyn Transaction, id: &WillId) {
    let (begin, end) = id.range();
    tx.clear_range(&begin, &end);
}

/// Sees to the will of a connection that another one takes over from, or that has ended. A session that
/// `continues` cancels a will that still waits for its delay `[MQTT-3.1.3-9]`; one that ends brings it forward.
pub(crate) async fn supersede(
    shared: &Shared,
    tx: &mut dyn Transaction,
    id: &WillId,
    continues: bool,
    now: Timestamp,
) -> Result<()> {
    let Some(header) = header(tx, id).await? else { return Ok(()) };
    let is_due =
        header.timer.is_some_and(|timer| timer.due <= now) || header.first_due > Timestamp::default();
    if !header.has_will || continues && header.delay_seconds > 0 && !is_due {
        if let Some(timer) = header.timer {
            tx.clear(&Timer::key(header.shard, TimerKind::Will, timer));
        }
        clear(tx, id);
    } else if !is_due {
        schedule(tx, id, header, shared.timer_at(now), Timestamp::default());
    }
    Ok(())
}

/// Whether a will that [`release`] has handed out still waits to be published: its transaction was committed, and
/// nobody has handed it out again.
pub(crate) async fn is_handed_out(shared: &Shared, due: &DueWill) -> Result<bool> {
    let mut tx = shared.store.begin();
    let header = header(&mut *tx, &due.id).await?;
    Ok(header.is_some_and(|header| header.first_due == due.first_due))
}

/// Who publishes a will that is due at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Publisher {
    /// This pod. `is_repeat`: it may have been told so before, by an attempt of unknown outcome.
    Here { is_repeat: bool },
    /// Whoever sees first that it is due.
    Anybody,
}

/// Starts the delay of the will of a connection that has ended; the end of its session cuts the delay short.
pub(crate) async fn release(
    shared: &Shared,
    tx: &mut dyn Transaction,
    id: &WillId,
    expiry_seconds: u32,
    now: Timestamp,
    publisher: Publisher,
) -> Result<Option<DueWill>> {
    let Some(header) = header(tx, id).await? else { return Ok(None) };
    if !header.has_will {
        clear(tx, id);
        return Ok(None);
    }
    let wait = Duration::from_secs(header.delay_seconds.min(expiry_seconds).into());
    if let Publisher::Here { is_repeat } = publisher
        && wait.is_zero()
    {
        // Another pod may have taken this one for dead and have it in hand: then both publish the same.
        let is_known = header.first_due > Timestamp::default();
        let first_due = if is_known { header.first_due } else { now };
        let is_first = is_repeat || !is_known;
        schedule(tx, id, header, shared.timer_at(now.saturating_add(LEASE)), first_due);
        let will = load(tx, id, &header).await?;
        let (id, retained) = (id.clone(), header.retained);
        return Ok(Some(DueWill { id, first_due, is_first, retained, will }));
    }
    if header.timer.is_none() {
        schedule(tx, id, header, shared.timer_at(now.saturating_add(wait)), Timestamp::default());
    }
    Ok(None)
}

/// Replaces the timer of a will.
fn schedule(tx: &mut dyn Transaction, id: &WillId, header: WillHeader, timer: TimerId, first_due: Timestamp) {
    if let Some(old) = header.timer {
        tx.clear(&Timer::key(header.shard, TimerKind::Will, old));
    }
    tx.set(&Timer::key(header.shard, TimerKind::Will, timer), &Timer::Will(id.clone()).encode());
    tx.set(&id.key(0), &WillHeader { timer: Some(timer), first_due, ..header }.encode());
}

async fn header(tx: &mut dyn Transaction, id: &WillId) -> Result<Option<WillHeader>> {
    let value = tx.get(&id.key(0), Isolation::Serializable).await?;
    Ok(value.map(WillHeader::decode).transpose()?)
}

async fn load(tx: &mut dyn Transaction, id: &WillId, header: &WillHeader) -> Result<StoredWill> {
    let (begin, end) = id.message_range();
    let mut message = BytesMut::new();
    let mut next = Some(RangeQuery::new(begin, end));
    while let Some(query) = next {
        let page = tx.get_range(query.clone(), Isolation::Snapshot).await?;
        page.pairs.iter().for_each(|(_, part)| message.extend_from_slice(part));
        next = query.after(&page);
    }
    let (mut reader, _) = Reader::value(Bytes::from(message), "will message", FORMAT)?;
    let message = Message::decode(&mut reader)?;
    Ok(StoredWill { message, delay_seconds: header.delay_seconds, expiry_seconds: header.expiry_seconds })
}
