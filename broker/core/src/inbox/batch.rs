//! What one transaction adds to inboxes: as much of the queue's front as fits.
//!
//! A message is in its rows if it is small, or if it has one row and isn't large. Otherwise it is a blob: in
//! the rows' own transaction if all of that fits, else written before, under a hold that the transaction of the
//! last row releases. A hold that nobody releases is swept an hour later, by its timer.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use smallvec::SmallVec;
use weir_env::seed::Seed;
use weir_storage::{Isolation, Transaction};

use super::waiter::Waiter;
use super::writer::{InboxAppend, InboxTarget};
use super::{MESSAGE_FORMAT, release_blob};
use crate::Result;
use crate::keyspace::inbox::{InboxId, InboxKeys, InboxMark, InboxRow, MarkProgress};
use crate::keyspace::inbox_blob::{BlobId, CHUNK_BYTES, encode_chunk};
use crate::keyspace::session::{Incarnation, IncomingPublish};
use crate::keyspace::timer::{Timer, TimerId, TimerKind};
use crate::keyspace::{PublishId, Writer};
use crate::sessions::{Retry, Shared};

/// Longest encoded message that is written into each of several rows.
const SHARED_INLINE_MAX: usize = 1_024;
/// Longest encoded message that is written into its only row, or into the transaction of its rows.
const INLINE_MAX: usize = 65_536;
/// Bytes of one transaction.
const BATCH_BYTES: usize = 500_000;
/// Chunks of a blob in one transaction.
const CHUNKS_PER_TRANSACTION: usize = 5;
/// Bytes of a row or a reference beside the client id and the message, at most.
const ROW_BYTES: usize = 80;
/// Time after which a hold is swept. Much longer than a writer ever needs.
const HOLD: Duration = Duration::from_secs(3_600);

/// Where a message is put.
#[derive(Debug)]
enum Body {
    Inline,
    /// In the transaction of its rows, which must all be in one.
    Blob(BlobId),
    /// In transactions of its own.
    Written(BlobId, Option<TimerId>),
}

/// A message that waits to be added.
#[derive(Debug)]
pub(super) struct Pending {
    append: InboxAppend,
    encoded: Bytes,
    body: Body,
    /// Targets that are committed.
    done: usize,
    waiter: Waiter,
}

impl Pending {
    pub(super) fn new(append: InboxAppend, waiter: Waiter) -> Self {
        let encoded = append.message.encode(Writer::new(MESSAGE_FORMAT)).finish().into();
        Self { append, encoded, body: Body::Inline, done: 0, waiter }
    }

    pub(super) fn encoded_len(&self) -> u64 {
        self.encoded.len() as u64
    }

    /// Names it, if it may be a repeat.
    pub(super) fn mark(&self) -> Option<PublishId> {
        self.append.mark
    }

    pub(super) fn retain_targets(&mut self, mut keep: impl FnMut(&InboxTarget) -> bool) {
        self.append.targets.retain(|target| keep(target));
    }

    /// Decides where the message goes. Without targets it is complete at once.
    pub(super) fn prepare(mut self, seed: &Seed) -> Option<Self> {
        let targets = &mut self.append.targets;
        if targets.is_empty() {
            self.waiter.complete(Ok(()));
            return None;
        }
        // The order in which a mark tells how far a publish has come.
        targets.sort_unstable_by(|a, b| a.client_id.cmp(&b.client_id));
        let inline_max = if targets.len() == 1 { INLINE_MAX } else { SHARED_INLINE_MAX };
        if self.encoded.len() > inline_max {
            let id = BlobId(seed.next_id());
            self.body = Body::Blob(id);
            // Half a transaction, so that the number of rows is far below what one can hold.
            if self.encoded.len() > INLINE_MAX || self.bytes() > BATCH_BYTES / 2 {
                self.body = Body::Written(id, None);
            }
        }
        Some(self)
    }

    pub(super) fn is_done(&self) -> bool {
        self.done >= self.append.targets.len()
    }

    pub(super) fn remaining(&self) -> &[InboxTarget] {
        self.append.targets.get(self.done..).unwrap_or_default()
    }

    pub(super) fn into_waiter(self) -> Waiter {
        self.waiter
    }

    /// Writes the blob if it needs transactions of its own and has not been written.
    pub(super) async fn write_blob(&mut self, shared: &Shared) -> Result<()> {
        let Body::Written(blob, hold @ None) = &mut self.body else { return Ok(()) };
        let timer = shared.timer_at(shared.clock.wall().saturating_add(HOLD));
        let chunks: Vec<&[u8]> = self.encoded.chunks(CHUNK_BYTES).collect();
        for (nth, some) in chunks.chunks(CHUNKS_PER_TRANSACTION).enumerate() {
            let mut retry = Retry::new(shared.clock);
            loop {
                let mut tx = shared.store.begin();
                if nth == 0 {
                    let key = Timer::key(blob.shard(shared.virtual_shards), TimerKind::BlobHold, timer);
                    tx.set(&key, &Timer::BlobHold(*blob).encode());
                    tx.set(&blob.hold(), &[]);
                }
                set_chunks(&mut *tx, blob, nth * CHUNKS_PER_TRANSACTION, some);
                if let Some(outcome) = retry.commit(tx, Ok(())).await {
                    outcome?;
                    break;
                }
            }
        }
        *hold = Some(timer);
        Ok(())
    }

    /// Bytes of the remaining rows, and of the blob.
    fn bytes(&self) -> usize {
        let rows: usize = self.remaining().iter().map(|target| self.row_bytes(target)).sum();
        rows + if let Body::Blob(_) = self.body { self.encoded.len() } else { 0 }
    }

    fn row_bytes(&self, target: &InboxTarget) -> usize {
        let ids = target.subscription_ids.len() * 5;
        match self.body {
            Body::Inline => target.client_id.len() + ROW_BYTES + ids + self.encoded.len(),
            Body::Blob(_) | Body::Written(..) => 2 * (target.client_id.len() + ROW_BYTES) + ids,
        }
    }
}

fn set_chunks(tx: &mut dyn Transaction, blob: &BlobId, first: usize, chunks: &[&[u8]]) {
    for (number, chunk) in (first..).zip(chunks) {
        // A packet of 16 MiB has 187 chunks; one that had more than there are numbers cannot be received.
        if let Ok(number) = u16::try_from(number) {
            tx.set(&blob.chunk(number), &encode_chunk(chunk));
        }
    }
}

/// An inbox that has a message already.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) client_id: ByteString,
    pub(super) incarnation: Incarnation,
    pub(super) bytes: u64,
}

/// Which messages of a plan other pods have brought to their end, by their place in it.
pub(super) type Over = SmallVec<[usize; 1]>;

/// Which targets of the first messages of the queue one transaction takes.
#[derive(Debug)]
pub(super) struct Plan {
    parts: Vec<Range<usize>>,
}

impl Plan {
    pub(super) fn new(queue: &VecDeque<Pending>) -> Self {
        let (mut parts, mut bytes, mut rows) = (Vec::new(), 0, 0);
        for pending in queue {
            let room = match pending.body {
                Body::Written(_, None) => break, // Its blob is written when it comes to the front.
                // All or nothing; alone it always fits.
                Body::Blob(_) if rows == 0 => usize::MAX,
                Body::Blob(_) if bytes + pending.bytes() > BATCH_BYTES => break,
                Body::Blob(_) | Body::Inline | Body::Written(..) => BATCH_BYTES,
            };
            let mut end = pending.done;
            for target in pending.remaining() {
                bytes += pending.row_bytes(target);
                if rows > 0 && bytes > room || rows == usize::from(InboxId::PLACES) {
                    break;
                }
                rows += 1;
                end += 1;
            }
            if let Body::Blob(_) = pending.body {
                bytes += pending.encoded.len();
            }
            if end > pending.done {
                parts.push(pending.done..end);
            }
            if end < pending.append.targets.len() {
                break;
            }
        }
        Self { parts }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The messages of this transaction, each with the targets it takes.
    pub(super) fn parts<'a>(
        &'a self,
        queue: &'a VecDeque<Pending>,
    ) -> impl Iterator<Item = (&'a Pending, &'a [InboxTarget])> {
        queue
            .iter()
            .zip(&self.parts)
            .map(|(pending, part)| (pending, pending.append.targets.get(part.clone()).unwrap_or_default()))
    }

    /// Writes the rows. May run again after an unknown outcome: marked messages are then not added twice. `known` gets
    /// what is not added because an earlier attempt has, `over` which messages nothing is added of any more.
    pub(super) async fn apply(
        &self,
        shared: &Shared,
        tx: &mut dyn Transaction,
        queue: &VecDeque<Pending>,
        known: &mut Vec<Known>,
        over: &mut Over,
    ) -> Result<()> {
        let mut place = 0;
        for (nth, (pending, targets)) in self.parts(queue).enumerate() {
            let is_last = targets.len() == pending.remaining().len();
            let progress = match &pending.append.mark {
                None => None,
                Some(_) if is_over(shared, tx, &pending.append).await? => {
                    over.push(nth);
                    Some(MarkProgress::Complete)
                }
                Some(id) => progress(shared, tx, id).await?,
            };
            let mut added = false;
            for target in targets {
                if has_it(progress.as_ref(), target) {
                    let (client_id, incarnation) = (target.client_id.clone(), target.incarnation);
                    known.push(Known { client_id, incarnation, bytes: pending.encoded_len() });
                    continue;
                }
                set_row(shared, tx, pending, target, place);
                place += 1;
                added = true;
            }
            if let (Body::Blob(blob), true) = (&pending.body, added) {
                set_chunks(tx, blob, 0, &pending.encoded.chunks(CHUNK_BYTES).collect::<Vec<_>>());
            }
            if let (Some(id), Some(last)) = (&pending.append.mark, targets.last())
                && progress != Some(MarkProgress::Complete)
                && (added || is_last)
            {
                let through = MarkProgress::Through(last.client_id.clone());
                let progress = if is_last { MarkProgress::Complete } else { through };
                let mark = InboxMark { at: shared.clock.wall(), progress };
                tx.set(&InboxMark::key(id, shared.virtual_shards), &mark.encode());
            }
            if let (Body::Written(blob, Some(timer)), true) = (&pending.body, is_last) {
                tx.clear(&Timer::key(blob.shard(shared.virtual_shards), TimerKind::BlobHold, *timer));
                release_blob(tx, blob, &blob.hold()).await?;
            }
        }
        Ok(())
    }

    /// Takes note that the transaction is committed; returns the messages that are complete.
    pub(super) fn finish(self, queue: &mut VecDeque<Pending>) -> Vec<Pending> {
        for (pending, part) in queue.iter_mut().zip(&self.parts) {
            pending.done = part.end;
        }
        let complete = queue.iter().take_while(|pending| pending.is_done()).count();
        queue.drain(..complete).collect()
    }

    /// Takes the messages of a transaction that failed off the queue.
    pub(super) fn abandon(self, queue: &mut VecDeque<Pending>) -> Vec<Pending> {
        queue.drain(..self.parts.len().min(queue.len())).collect()
    }
}

/// Whether a publish is not noted any more, so that its mark tells nothing: its publisher has ended it by way of another
/// pod, which has added what there was to add. Without other pods whatever repeats a publish is in line behind it.
async fn is_over(shared: &Shared, tx: &mut dyn Transaction, append: &InboxAppend) -> Result<bool> {
    let Some((client_id, packet_id)) = append.noted.as_ref().filter(|_| shared.cluster.is_some()) else {
        return Ok(false);
    };
    let noted = tx.get(&shared.keys(client_id).incoming(*packet_id), Isolation::Serializable).await?;
    Ok(noted.map(IncomingPublish::decode).transpose()?.map(|noted| noted.id) != append.mark)
}

/// How far earlier attempts at a publish have come.
pub(super) async fn progress(
    shared: &Shared,
    tx: &mut dyn Transaction,
    id: &PublishId,
) -> Result<Option<MarkProgress>> {
    let value = tx.get(&InboxMark::key(id, shared.virtual_shards), Isolation::Serializable).await?;
    Ok(value.map(InboxMark::decode).transpose()?.map(|mark| mark.progress))
}

/// Whether an earlier attempt at this publish has reached `target`.
pub(super) fn has_it(progress: Option<&MarkProgress>, target: &InboxTarget) -> bool {
    match progress {
        None => false,
        Some(MarkProgress::Complete) => true,
        Some(MarkProgress::Through(last)) => target.client_id <= *last,
    }
}

fn set_row(shared: &Shared, tx: &mut dyn Transaction, pending: &Pending, target: &InboxTarget, place: u16) {
    let client = shared.keys(&target.client_id);
    let inbox = InboxKeys::new(&client, target.incarnation);
    let head = InboxRow::encode_head(target.qos, target.retain, &target.subscription_ids);
    let (value, is_blob) = match &pending.body {
        Body::Inline => (head.raw(&pending.encoded), false),
        Body::Blob(blob) | Body::Written(blob, _) => {
            let reference = blob.reference(&target.client_id, target.incarnation, shared.virtual_shards);
            tx.set(&reference, &[]);
            (head.raw(&blob.0).varint(pending.encoded_len()), true)
        }
    };
    let (key, stamp_at) = inbox.unstamped(place, is_blob);
    tx.set_versionstamped_key(&key, stamp_at, &value.finish());
}
