//! Inboxes: what waits for persistent sessions, from before the publisher's ack until the subscriber's.
//!
//! [`InboxWriter`] adds messages to the inboxes of many sessions at once, without asking who owns them;
//! [`Inbox`] reads and clears. Rows carry the incarnation of the session they are for, so what comes too late
//! for a session is never seen by the next one. This module knows no packet and no connection.

mod batch;
mod limits;
#[cfg(test)]
mod tests;
mod trim;
mod waiter;
mod writer;

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery, Transaction, key_after};

pub use limits::{InboxCounters, InboxLimits, InboxOverflow, InboxRoom, InboxUsage};
pub use waiter::Completion;
pub(crate) use waiter::Waiter;
pub use writer::{InboxAppend, InboxMetrics, InboxOptions, InboxTarget, InboxWriter, Notify};

use crate::Result;
pub use crate::keyspace::inbox::InboxId;
use crate::keyspace::inbox::{InboxBody, InboxKeys, InboxMark, InboxRow};
use crate::keyspace::inbox_blob::{BlobId, decode_chunk};
use crate::keyspace::session::{ClientKeys, Incarnation};
use crate::keyspace::timer::{Timer, TimerId, TimerKind};
use crate::keyspace::{DecodeError, Reader, VirtualShard};
use crate::message::Message;
use crate::sessions::{Retry, SessionOp, SessionRef, Sessions, Shared};

/// Rows of an ended session cleared in one transaction.
const DRAIN_ROWS: usize = 500;
/// Ended sessions and left-over blobs handled in one sweep.
const SWEEP_MAX: usize = 100;
/// Format of a message in a blob or a row.
const MESSAGE_FORMAT: u8 = 1;

/// A message that waits for a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboxItem {
    /// Names it.
    pub id: InboxId,
    /// Quality of service of the delivery.
    pub qos: u8,
    /// RETAIN of the delivery.
    pub retain: bool,
    /// Identifiers of the subscriptions that matched.
    pub subscription_ids: Vec<u32>,
    /// The message.
    pub message: Message,
}

/// Reads and clears inboxes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inbox {
    sessions: Sessions,
}

impl Inbox {
    /// The inboxes of `sessions`.
    #[must_use]
    pub fn new(sessions: &Sessions) -> Self {
        Self { sessions: sessions.clone() }
    }

    /// What waits for `session` behind `after`, in order: at most `limit` messages (at least one), and none
    /// more once there are `target_bytes` of them. Nothing for a session that isn't persistent.
    ///
    /// A message added later comes behind all that have been read.
    ///
    /// # Errors
    /// If the store fails, or a record is damaged.
    pub async fn read(
        &self,
        session: &SessionRef,
        after: Option<InboxId>,
        limit: usize,
        target_bytes: usize,
    ) -> Result<Vec<InboxItem>> {
        if !session.persistent {
            return Ok(Vec::new());
        }
        let keys = InboxKeys::new(&self.sessions.shared.keys(&session.client_id), session.incarnation);
        let (first, end) = keys.range();
        let begin = after.map_or_else(|| first.into(), |id| key_after(&keys.row(&id)));
        let mut next =
            Some(RangeQuery::new(begin, end).limit(limit.max(1)).target_bytes(target_bytes.max(1)));
        let mut tx = self.sessions.shared.store.begin();
        let (mut items, mut emptied) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        while let Some(query) = next.take_if(|_| items.is_empty()) {
            let page = tx.get_range(query.clone(), Isolation::Snapshot).await?;
            next = query.after(&page);
            for (key, value) in page.pairs {
                if bytes >= target_bytes && !items.is_empty() {
                    break;
                }
                let id = keys.decode(key)?;
                match item(&mut *tx, id, value).await? {
                    Some(item) => {
                        bytes += item.message.size();
                        items.push(item);
                    }
                    None => emptied.push(id),
                }
            }
        }
        if !emptied.is_empty()
            && let Err(error) = self.remove(session, &emptied).await
        {
            tracing::debug!(%error, "second copies without their message stay until they are read again");
        }
        Ok(items)
    }

    /// Removes messages that are done with; ones that are gone already do no harm. Callers gather some.
    ///
    /// # Errors
    /// As [`Sessions::update`].
    pub async fn remove(&self, session: &SessionRef, ids: &[InboxId]) -> Result<()> {
        let ops: Vec<SessionOp> = ids.iter().map(|id| SessionOp::Remove(*id)).collect();
        self.sessions.update(session, &ops).await
    }

    /// Clears inboxes of sessions that have ended, and blobs whose writer never finished, some at a time: call
    /// it each second. Returns how many rows and blobs went.
    ///
    /// # Errors
    /// If the store fails; calling again goes on.
    pub async fn sweep(&self, now: Timestamp) -> Result<usize> {
        let shared = &*self.sessions.shared;
        let mut cleared = 0;
        for (shard, id, timer) in shared.due_timers(TimerKind::InboxDrain, now, SWEEP_MAX).await? {
            if let Timer::InboxDrain(client_id, incarnation) = timer {
                cleared += self.drain(shard, id, &client_id, incarnation).await?;
            }
        }
        for (shard, id, timer) in shared.due_timers(TimerKind::BlobHold, now, SWEEP_MAX).await? {
            let Timer::BlobHold(blob) = timer else { continue };
            let mut retry = Retry::new(shared.clock);
            loop {
                let mut tx = shared.store.begin();
                tx.clear(&Timer::key(shard, TimerKind::BlobHold, id));
                let outcome = release_blob(&mut *tx, &blob, &blob.hold()).await;
                if let Some(outcome) = retry.commit(tx, outcome).await {
                    outcome?;
                    break;
                }
            }
            cleared += 1;
        }
        Ok(cleared)
    }

    async fn drain(
        &self,
        shard: VirtualShard,
        timer: TimerId,
        client_id: &ByteString,
        incarnation: Incarnation,
    ) -> Result<usize> {
        let shared = &*self.sessions.shared;
        let inbox = InboxKeys::new(&shared.keys(client_id), incarnation);
        let mut cleared = 0;
        let mut retry = Retry::new(shared.clock);
        loop {
            let mut tx = shared.store.begin();
            let outcome = drain_page(shared, &mut *tx, &inbox, client_id, incarnation).await;
            if let Ok((_, true)) = outcome {
                tx.clear(&Timer::key(shard, TimerKind::InboxDrain, timer));
            }
            if let Some(outcome) = retry.commit(tx, outcome).await {
                let ((rows, is_last), _) = outcome?;
                cleared += rows;
                if is_last {
                    // Also what was counted of a message that came after the end.
                    shared.counters.forget(client_id, incarnation);
                    return Ok(cleared);
                }
                retry = Retry::new(shared.clock);
            }
        }
    }

    /// Forgets marks older than `before`: publishes from then are not repeated any more. Marks of publishers
    /// with persistent sessions go with PUBREL; this is for the others. Returns how many went.
    ///
    /// # Errors
    /// If the store fails; calling again goes on.
    pub async fn sweep_marks(&self, before: Timestamp) -> Result<usize> {
        let shared = &*self.sessions.shared;
        let (begin, end) = InboxMark::all();
        let mut next = Some(RangeQuery::new(begin, end).limit(2_000));
        let mut cleared = 0;
        while let Some(query) = next {
            let mut tx = shared.store.begin();
            let page = tx.get_range(query.clone(), Isolation::Snapshot).await?;
            next = query.after(&page);
            let mut old = 0;
            for (key, value) in page.pairs {
                if InboxMark::decode(value)?.at < before {
                    tx.clear(&key);
                    old += 1;
                }
            }
            if old > 0 {
                // An unknown outcome is as good as another sweep.
                tx.commit().await?;
                cleared += old;
            }
        }
        Ok(cleared)
    }
}

/// Clears one transaction's worth of an inbox; returns how much, and whether that was all.
async fn drain_page(
    shared: &Shared,
    tx: &mut dyn Transaction,
    inbox: &InboxKeys,
    client_id: &str,
    incarnation: Incarnation,
) -> Result<(usize, bool)> {
    let (begin, end) = inbox.range();
    let query = RangeQuery::new(begin, end).limit(DRAIN_ROWS).target_bytes(500_000);
    let page = tx.get_range(query, Isolation::Serializable).await?;
    for (key, value) in &page.pairs {
        let row = InboxRow::decode(&inbox.decode(key.clone())?, value.clone())?;
        if let InboxBody::Blob { id, .. } = row.body {
            release_blob(tx, &id, &id.reference(client_id, incarnation, shared.virtual_shards)).await?;
        }
        tx.clear(key);
    }
    Ok((page.pairs.len(), !page.more))
}

/// Removes a row, and the blob it refers to if nobody else does.
pub(crate) async fn remove_row(
    shared: &Shared,
    tx: &mut dyn Transaction,
    client: &ClientKeys,
    session: &SessionRef,
    id: &InboxId,
) -> Result<()> {
    let key = InboxKeys::new(client, session.incarnation).row(id);
    if id.is_blob()
        && let Some(value) = tx.get(&key, Isolation::Serializable).await?
        && let InboxBody::Blob { id: blob, .. } = InboxRow::decode(id, value)?.body
    {
        let reference = blob.reference(&session.client_id, session.incarnation, shared.virtual_shards);
        release_blob(tx, &blob, &reference).await?;
    }
    tx.clear(&key);
    Ok(())
}

/// Clears one reference to a blob, and its chunks if it was the last. Two who clear the last two at the same
/// time conflict, because each reads what the other clears.
async fn release_blob(tx: &mut dyn Transaction, blob: &BlobId, reference: &[u8]) -> Result<()> {
    tx.clear(reference);
    let (begin, end) = blob.references();
    let left = tx.get_range(RangeQuery::new(begin, end).limit(1), Isolation::Serializable).await?;
    if left.pairs.is_empty() {
        let (begin, end) = blob.chunks();
        tx.clear_range(&begin, &end);
    }
    Ok(())
}

/// Reads the rest of a row. `None`: its blob is gone, because this is the second copy of a message that was
/// written twice after an unknown outcome, and the first copy has been removed.
async fn item(tx: &mut dyn Transaction, id: InboxId, value: Bytes) -> Result<Option<InboxItem>> {
    let row = InboxRow::decode(&id, value)?;
    let encoded = match row.body {
        InboxBody::Inline(encoded) => encoded,
        InboxBody::Blob { id, len } => {
            let Some(encoded) = read_blob(tx, &id, len).await? else { return Ok(None) };
            encoded
        }
    };
    let (mut reader, _) = Reader::value(encoded, "inbox message", MESSAGE_FORMAT)?;
    let message = Message::decode(&mut reader)?;
    let InboxRow { qos, retain, subscription_ids, .. } = row;
    Ok(Some(InboxItem { id, qos, retain, subscription_ids, message }))
}

async fn read_blob(tx: &mut dyn Transaction, id: &BlobId, len: u64) -> Result<Option<Bytes>> {
    let (begin, end) = id.chunks();
    let mut next = Some(RangeQuery::new(begin, end));
    let mut bytes = BytesMut::new();
    while let Some(query) = next {
        let page = tx.get_range(query.clone(), Isolation::Snapshot).await?;
        next = query.after(&page);
        for (_, value) in page.pairs {
            bytes.extend_from_slice(&decode_chunk(value)?);
        }
    }
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.len() as u64 != len {
        return Err(DecodeError::Truncated("inbox blob").into());
    }
    Ok(Some(bytes.freeze()))
}
