//! Reads a stream for one subscription, for as long as that lasts.
//!
//! Knows no client: what it reads goes into a channel, and it waits while that is full. Which shards a member of a
//! consumer group has, it is told.

use std::collections::{BTreeMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use weir_core::catalog::Object;
use weir_core::keyspace::segment::Record;
use weir_core::stream::{ReadBatch, ReadOptions, ReadPermit, StreamReader};
use weir_core::{Core, Error};
use weir_env::clock::Clock;

use super::rate::Rate;
use super::{Encoder, Part, ReaderId, StreamBatch};

/// First wait before a stream is opened again whose owner has failed; it doubles.
const REOPEN_WAIT: Duration = Duration::from_millis(100);
/// Longest wait before that.
const REOPEN_WAIT_MAX: Duration = Duration::from_secs(5);

/// Time for which the messages of one shard may be all there is, where a rate is set.
const TURN: Duration = Duration::from_secs(2);

/// Time after which a client that has taken nothing is asked to give memory back that others could use; and again.
const STALLED_AFTER: Duration = Duration::from_secs(1);

/// Shards that a member of a consumer group has: of each the generation of the assignment, and where it begins.
pub(super) type Shares = BTreeMap<u8, (u64, u64)>;

/// What reads a stream.
pub(super) struct Task {
    pub(super) id: ReaderId,
    pub(super) core: Arc<Core>,
    pub(super) clock: Clock,
    pub(super) object: Arc<Object>,
    pub(super) options: ReadOptions,
    pub(super) reader: StreamReader,
    pub(super) rate: Option<Rate>,
    /// Of a subscription at QoS 0.
    pub(super) encoder: Option<Encoder>,
    /// Of a member of a consumer group; others read all shards that the reader has.
    pub(super) shares: Option<watch::Receiver<Shares>>,
    pub(super) batches: mpsc::Sender<StreamBatch>,
}

/// Nobody wants more, or the stream is gone.
struct Over;

impl Task {
    /// Reads until told to stop, or until there is no more. A store in trouble is asked again until it answers.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let all = async {
            // Of what is half done after a panic, nothing is used but the way to the connection.
            match AssertUnwindSafe(self.read()).catch_unwind().await {
                Ok(Ok(())) => return,
                Ok(Err(Over)) => {}
                Err(_) => {
                    tracing::error!(stream = self.object.definition.name, "reader of a stream panicked")
                }
            }
            // Nobody listens if it was the connection that has ended.
            let _ = self.send(Part::Lost).await;
        };
        tokio::select! {
            () = all => {}
            () = stop.cancelled() => {}
        }
    }

    async fn read(&mut self) -> Result<(), Over> {
        // The generations of the shards in the reader, of a member of a group.
        let mut held = BTreeMap::new();
        self.limit_turns();
        loop {
            if self.shares.is_none() && self.reader.is_ended() {
                return self.send(Part::End).await;
            }
            let outcome = tokio::select! {
                batch = self.reader.next() => batch.map(Some),
                () = shares_changed(&mut self.shares) => self.take_shares(&mut held).await.map(|()| None),
            };
            match outcome {
                Ok(None) => {}
                Ok(Some(batch)) => {
                    let generation = held.get(&batch.log.shard).copied().unwrap_or_default();
                    self.pass_on(batch, generation).await?;
                }
                // The owner of a shard has failed, unless the stream is gone or the broker stops.
                Err(Error::Closed) => self.reopen().await?,
                // People have been told of that place once, and this comes there again until they have acted.
                Err(Error::Damaged(_)) => {}
                Err(error) => self.warn(&error),
            }
        }
    }

    fn warn(&self, error: &Error) {
        tracing::warn!(stream = self.object.definition.name, %error, "read stream; trying again");
    }

    /// Begins anew where it stood.
    async fn reopen(&mut self) -> Result<(), Over> {
        let positions = self.reader.positions();
        let mut wait = REOPEN_WAIT;
        loop {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(REOPEN_WAIT_MAX);
            let definition = &self.object.definition;
            let found = self.core.catalog().view().find(definition.kind, &definition.name);
            if found.is_none_or(|found| found.id != self.object.id) {
                return Err(Over);
            }
            match self.open(&positions).await {
                Ok(reader) => {
                    self.reader = reader;
                    self.limit_turns();
                    return Ok(());
                }
                Err(error) => self.warn(&error),
            }
        }
    }

    async fn open(&mut self, positions: &[(u8, u64)]) -> weir_core::Result<StreamReader> {
        let mut reader = self.core.idle_reader();
        self.core.introduce(&mut reader, &self.object, &self.options.name);
        for (shard, from) in positions {
            reader.add(self.core.shard_reader(&self.object, *shard, *from, &self.options).await?);
        }
        Ok(reader)
    }

    /// Has the reader read the shards that this member has now.
    async fn take_shares(&mut self, held: &mut BTreeMap<u8, u64>) -> weir_core::Result<()> {
        let Some(shares) = &mut self.shares else { return Ok(()) };
        let now = shares.borrow_and_update().clone();
        let reader = &mut self.reader;
        held.retain(|shard, generation| {
            let is_kept = now.get(shard).is_some_and(|(now, _)| now == generation);
            if !is_kept {
                reader.remove(*shard);
            }
            is_kept
        });
        for (shard, (generation, from)) in now {
            if held.contains_key(&shard) {
                continue;
            }
            match self.core.shard_reader(&self.object, shard, from, &self.options).await {
                Ok(opened) => reader.add(opened),
                Err(error) => {
                    // Looked at again a little later.
                    tokio::time::sleep(REOPEN_WAIT).await;
                    shares.mark_changed();
                    return Err(error);
                }
            }
            held.insert(shard, generation);
        }
        Ok(())
    }

    /// Sends a batch, in pieces if messages are let through one after the other.
    async fn pass_on(&mut self, batch: ReadBatch, generation: u64) -> Result<(), Over> {
        let ReadBatch { log, records, next, mut permit, .. } = batch;
        let shard = log.shard;
        let mut rest: VecDeque<_> = records.into();
        loop {
            let granted = if rest.is_empty() { 0 } else { self.grant(rest.len(), shard, generation).await };
            if granted == 0 && !rest.is_empty() {
                // Another member has the shard, or this one has it from another place on.
                return Ok(());
            }
            let behind = rest.split_off(granted.min(rest.len()));
            let records = std::mem::replace(&mut rest, behind);
            let is_last = rest.is_empty();
            let next = match records.back() {
                Some((offset, _)) if !is_last => offset + 1,
                _ => next,
            };
            // The memory is in use until the last piece is gone.
            let permit = if is_last { permit.take() } else { None };
            self.send_records((shard, generation), records, next, permit).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Sends records as packets where that is all they still have to become, else as they are.
    async fn send_records(
        &mut self,
        (shard, generation): (u8, u64),
        records: VecDeque<(u64, Arc<Record>)>,
        next: u64,
        mut permit: Option<ReadPermit>,
    ) -> Result<(), Over> {
        if self.encoder.is_none() || records.is_empty() {
            return self.send(Part::Records { shard, generation, records, next, _permit: permit }).await;
        }
        let records = Vec::from(records);
        let mut rest = &records[..];
        while let (Some(encoder), false) = (&mut self.encoder, rest.is_empty()) {
            let large = rest.iter().take_while(|(_, record)| Encoder::is_large(record)).count();
            let (frames, taken) = match large {
                0 => {
                    let (frames, taken) = encoder.encode(shard, rest);
                    (Some(frames), taken)
                }
                large => (None, large),
            };
            let (now, behind) = rest.split_at(taken);
            rest = behind;
            let is_last = rest.is_empty();
            let next = match now.last() {
                Some((offset, _)) if !is_last => offset + 1,
                _ => next,
            };
            // The memory is in use until the last piece is gone.
            let permit = if is_last { permit.take() } else { None };
            let part = match frames {
                Some(frames) => Part::Frames { shard, generation, frames, next, _permit: permit },
                None => {
                    let records = now.to_vec().into();
                    Part::Records { shard, generation, records, next, _permit: permit }
                }
            };
            self.send(part).await?;
        }
        Ok(())
    }

    /// Other shards wait for messages that are let through slowly no longer than that takes.
    fn limit_turns(&mut self) {
        if let Some(rate) = &self.rate {
            self.reader.limit_turns(rate.within(TURN));
        }
    }

    /// How many of `wanted` messages may go, once any may; none once this member has lost the shard.
    async fn grant(&mut self, wanted: usize, shard: u8, generation: u64) -> usize {
        let Some(rate) = &mut self.rate else { return wanted };
        let lost = std::pin::pin!(share_lost(&self.shares, shard, generation));
        let granted = async {
            loop {
                match rate.take(wanted, self.clock.now()) {
                    Ok(granted) => return granted,
                    Err(wait) => tokio::time::sleep(wait).await,
                }
            }
        };
        tokio::select! {
            biased;
            () = lost => 0,
            granted = granted => granted,
        }
    }

    async fn send(&mut self, part: Part) -> Result<(), Over> {
        let mut sending = std::pin::pin!(self.batches.send(StreamBatch { reader: self.id, part }));
        loop {
            if let Ok(sent) = tokio::time::timeout(STALLED_AFTER, &mut sending).await {
                return sent.map_err(|_| Over);
            }
            if !self.reader.give_back() {
                return sending.await.map_err(|_| Over);
            }
        }
    }
}

/// Waits until this member has lost a shard of this generation; for ever if it is none.
async fn share_lost(shares: &Option<watch::Receiver<Shares>>, shard: u8, generation: u64) {
    // A receiver of its own: what is new in the other is still to be taken.
    let Some(mut shares) = shares.clone() else { return std::future::pending().await };
    let is_lost = |shares: &Shares| shares.get(&shard).is_none_or(|(of, _)| *of != generation);
    if shares.wait_for(is_lost).await.is_err() {
        // Of a connection that ends, and with it this task.
        std::future::pending().await
    }
}

/// Waits until this member has other shards; for ever if it is none.
async fn shares_changed(shares: &mut Option<watch::Receiver<Shares>>) {
    if let Some(shares) = shares
        && shares.changed().await.is_ok()
    {
        return;
    }
    // Of a connection that ends, and with it this task; or there never are others.
    std::future::pending().await
}
