//! Messages that wait for their time before they go into a log of their queue.
//!
//! They are rows of the store ordered by due time; of one shard's only their number, their bytes and the first due time
//! are in memory. When some are due, a page of them is read and put in line for their logs: the transaction that
//! appends one clears its row. One page is under way at a time. Owned by the log of class 0.

use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use weir_env::clock::{Instant, Timestamp};
use weir_storage::{Isolation, RangeQuery};

use super::Context;
use crate::error::Result;
use crate::keyspace::LogId;
use crate::keyspace::delayed::{self, DelayedId, DelayedState};
use crate::keyspace::segment::Record;

/// Bytes of due messages read in one go.
const DUE_BYTES: usize = 256 * 1024;
/// Longest time between two looks at the clock, which people may set.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Wait after what was due could not be moved.
const RETRY_WAIT: Duration = Duration::from_millis(100);

/// Messages of one shard that wait for their time.
#[derive(Debug, Default)]
pub(crate) struct Delays {
    /// As committed.
    state: DelayedState,
    /// No message is due before.
    first_due: Option<Timestamp>,
    look_at: Option<Instant>,
    reading: bool,
    /// Messages read and not in their logs yet.
    moving: u64,
    /// Rows of messages that were never stored as a whole, to be cleared with the next batch.
    rubble: Vec<DelayedId>,
    /// Messages of all shards.
    gauge: Gauge,
}

/// What a batch does to the messages that wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DelayChange {
    pub(crate) state: DelayedState,
    /// Of those that are new.
    pub(crate) first_due: Option<Timestamp>,
    /// Messages that go into their logs.
    pub(crate) moved: u64,
}

/// Messages that are due.
#[derive(Debug, Default)]
pub(crate) struct DueRead {
    pub(crate) messages: Vec<(DelayedId, u8, Record)>,
    rubble: Vec<DelayedId>,
    /// When the next one is due.
    next_due: Option<Timestamp>,
}

impl Delays {
    /// As stored: what waits, and when the first is due.
    pub(crate) fn restore(
        state: DelayedState,
        first_due: Option<Timestamp>,
        now: Instant,
        wall: Timestamp,
        gauge: Gauge,
    ) -> Self {
        gauge.inc_by(i64::try_from(state.messages).unwrap_or(i64::MAX));
        let mut delays = Self::default();
        (delays.state, delays.gauge) = (state, gauge);
        delays.wait_for(first_due, now, wall);
        delays
    }

    /// What waits, as committed.
    pub(crate) fn state(&self) -> DelayedState {
        self.state
    }

    fn wait_for(&mut self, due: Option<Timestamp>, now: Instant, wall: Timestamp) {
        self.first_due = [self.first_due, due].into_iter().flatten().min();
        self.look_at = self.first_due.map(|due| now + due.saturating_since(wall).min(LOOK_INTERVAL_MAX));
    }

    /// When [`Self::is_due`] may be true.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.look_at.filter(|_| !self.reading && self.moving == 0)
    }

    /// Whether messages are to be read now; they are being read then, until [`Self::read`] is called.
    pub(crate) fn is_due(&mut self, now: Instant, wall: Timestamp) -> bool {
        if self.poll_timeout().is_none_or(|at| at > now) {
            return false;
        }
        if self.first_due.is_some_and(|due| due > wall) {
            self.wait_for(None, now, wall);
            return false;
        }
        self.reading = true;
        // What comes meanwhile says itself when it is due.
        (self.first_due, self.look_at) = (None, None);
        true
    }

    /// Due messages have been read, or could not be: returns them, to be put in line for their logs.
    pub(crate) fn read(
        &mut self,
        result: Result<DueRead>,
        now: Instant,
        wall: Timestamp,
    ) -> Result<Vec<(DelayedId, u8, Record)>> {
        self.reading = false;
        match result {
            Ok(read) => {
                self.moving = read.messages.len() as u64;
                self.rubble.extend(read.rubble);
                self.wait_for(read.next_due, now, wall);
                Ok(read.messages)
            }
            Err(error) => {
                self.try_again(now);
                Err(error)
            }
        }
    }

    fn try_again(&mut self, now: Instant) {
        self.first_due = Some(Timestamp::default());
        self.look_at = Some(now + RETRY_WAIT);
    }

    /// Whether rows are to be cleared.
    pub(crate) fn has_writes(&self) -> bool {
        !self.rubble.is_empty()
    }

    /// Rows to be cleared with the batch that is being built. If it fails they are found again.
    pub(crate) fn take_rubble(&mut self) -> Vec<DelayedId> {
        std::mem::take(&mut self.rubble)
    }

    /// A batch is committed.
    pub(crate) fn apply(&mut self, change: DelayChange, now: Instant, wall: Timestamp) {
        let grown = i64::try_from(change.state.messages).unwrap_or(i64::MAX)
            - i64::try_from(self.state.messages).unwrap_or(i64::MAX);
        self.gauge.inc_by(grown);
        self.state = change.state;
        self.moving = self.moving.saturating_sub(change.moved);
        self.wait_for(change.first_due, now, wall);
    }

    /// A batch was not stored: what it would have moved is read again.
    pub(crate) fn give_up(&mut self, change: DelayChange, now: Instant) {
        self.moving = self.moving.saturating_sub(change.moved);
        if change.moved > 0 {
            self.try_again(now);
        }
    }
}

impl Drop for Delays {
    fn drop(&mut self) {
        self.gauge.dec_by(i64::try_from(self.state.messages).unwrap_or(i64::MAX));
    }
}

/// What waits in the shard of `log`, and when the first is due.
pub(super) async fn load(context: &Context, log: &LogId) -> Result<(DelayedState, Option<Timestamp>)> {
    let mut tx = context.store.begin();
    let state = tx.get(&DelayedState::key(log), Isolation::Snapshot).await?;
    let Some(state) = state.map(DelayedState::decode).transpose()? else {
        return Ok((DelayedState::default(), None));
    };
    let (begin, end) = delayed::messages_before(log, None);
    let page = tx.get_range(RangeQuery::new(&begin, &end).limit(1), Isolation::Snapshot).await?;
    let first = page.pairs.first().map(|(key, _)| DelayedId::decode_key(key)).transpose()?;
    Ok((state, first.map(|(id, _)| id.due)))
}

/// Messages of `log` that are due at `wall`, about [`DUE_BYTES`] of them, at least one if there is one.
pub(super) async fn read_due(context: &Context, log: &LogId, wall: Timestamp) -> Result<DueRead> {
    let soon = Timestamp::from_micros(wall.as_micros().saturating_add(1));
    let (begin, end) = delayed::messages_before(log, Some(soon));
    let mut tx = context.store.begin();
    let query = RangeQuery::new(&begin, &end).target_bytes(DUE_BYTES);
    let mut page = tx.get_range(query, Isolation::Snapshot).await?;
    let mut pairs = std::mem::take(&mut page.pairs);
    let mut next_due = None;
    if page.more
        && let Some((last, _)) = pairs.last()
    {
        // What is left of the last message.
        let (id, _) = DelayedId::decode_key(last)?;
        let after = [last, [0].as_slice()].concat();
        pairs.extend(super::load::pages(&mut *tx, (after, id.range(log).1)).await?);
        next_due = Some(id.due);
    } else {
        let (_, end) = delayed::messages_before(log, None);
        let (begin, _) = (delayed::messages_before(log, Some(soon)).1, ());
        let page = tx.get_range(RangeQuery::new(&begin, &end).limit(1), Isolation::Snapshot).await?;
        if let Some((key, _)) = page.pairs.first() {
            next_due = Some(DelayedId::decode_key(key)?.0.due);
        }
    }
    let mut read = DueRead { next_due, ..DueRead::default() };
    let mut parts = Vec::new();
    let mut pairs = pairs.into_iter().peekable();
    while let Some((key, value)) = pairs.next() {
        let (id, part) = DelayedId::decode_key(&key)?;
        parts.push((part, value));
        let next = pairs.peek().map(|(key, _)| DelayedId::decode_key(key)).transpose()?;
        if next.is_none_or(|(next, _)| next != id) {
            match delayed::decode(&std::mem::take(&mut parts))? {
                Some((class, record)) => read.messages.push((id, class, record)),
                None => read.rubble.push(id),
            }
        }
    }
    Ok(read)
}
