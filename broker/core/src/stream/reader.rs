//! Some shards of a stream read as one: each in its turn, waiting only while all of them are at their end.
//!
//! A shard is in one state at a time: in line, being read (a task reads one page of it), or idle until its owner
//! announces more, a time comes, or a failure is long enough ago. While a batch is on its way to whoever reads, the
//! next page is read: that many pages, and no more than the budget allows.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use weir_env::clock::{Clock, Timestamp};

use super::ReadBatch;
use super::budget::{Holder, ReadBudget, ReadPermit};
use super::shard::{PAGE_BYTES, Page, ShardReader, Stand};
use crate::activity::Presence;
use crate::error::{Error, Result};
use crate::shard::Extent;

/// Batches that are ready or being read.
const READ_AHEAD: usize = 2;
/// Bytes of a page when the budget is used up: about one segment.
const PAGE_BYTES_MIN: usize = 1;
/// First wait before a shard that could not be read is read again; it doubles.
const RETRY_WAIT: Duration = Duration::from_millis(100);
/// Longest wait before that.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);
/// Longest wait for a time: the clock on the wall may be set.
const CLOCK_WAIT_MAX: Duration = Duration::from_secs(60);
/// First wait for a store that does not show yet what the owner announced; it doubles.
const STALE_WAIT: Duration = Duration::from_millis(1);

/// Reads a stream.
#[derive(Debug)]
pub struct StreamReader {
    clock: Clock,
    budget: Arc<ReadBudget>,
    /// Pages that this reader, or whoever has its batches, holds.
    holder: Arc<Holder>,
    /// What people see of it.
    presence: Option<Presence>,
    shards: BTreeMap<u8, Slot>,
    /// Shards to be read, and shards of which nobody knows.
    line: VecDeque<u8>,
    idle: FuturesUnordered<BoxFuture<'static, Wake>>,
    reads: JoinSet<PageDone>,
    ready: VecDeque<ReadBatch>,
    failed: Option<Error>,
    /// The next page has to wait until one that was read is let go.
    is_held_up: bool,
    /// Most messages of one shard before others have their turn.
    turn_max: usize,
    /// Shards there have been: tells one from a later one of the same number.
    added: u64,
}

/// A shard in a reader.
#[derive(Debug)]
struct Slot {
    reader: ShardReader,
    /// Tells it from others that had its number.
    id: u64,
    state: State,
    /// The position after the last batch that was given out.
    given: u64,
    /// Its end was given out.
    ended: bool,
    retry_wait: Duration,
    stale_wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    InLine,
    Reading,
    /// Until there is more, or a time comes.
    Idle(Option<Timestamp>),
    /// Until the owner has nothing older under way.
    Settling,
    /// After a failure.
    Failed,
    Ended,
}

/// What became of the read of a page.
struct PageDone {
    shard: u8,
    id: u64,
    result: Result<(Page, ReadPermit)>,
}

/// Why a shard is not idle any more.
enum Wake {
    Look(u8, u64),
    /// Nothing older than the time at which reading ends is under way.
    Settled(u8, u64),
    Closed(u8, u64),
}

impl StreamReader {
    /// A reader of no shards.
    pub(crate) fn new(clock: Clock, budget: Arc<ReadBudget>) -> Self {
        Self {
            clock,
            budget,
            holder: Arc::default(),
            presence: None,
            shards: BTreeMap::new(),
            line: VecDeque::new(),
            idle: FuturesUnordered::new(),
            reads: JoinSet::new(),
            ready: VecDeque::new(),
            failed: None,
            is_held_up: false,
            turn_max: usize::MAX,
            added: 0,
        }
    }

    /// Shows itself to people.
    pub(crate) fn attend(&mut self, presence: Presence) {
        self.presence = Some(presence);
    }

    /// Gives out at most so many messages of a shard while others wait for their turn, for one who takes long for each.
    pub fn limit_turns(&mut self, messages: usize) {
        self.turn_max = messages.max(1);
    }

    /// Reads this shard too. Another of the same number is removed.
    pub fn add(&mut self, reader: ShardReader) {
        let shard = reader.log().shard;
        self.remove(shard);
        self.added += 1;
        let given = reader.position();
        if let Some(presence) = &self.presence {
            presence.stands(shard, given);
        }
        let slot = Slot {
            reader,
            id: self.added,
            state: State::InLine,
            given,
            ended: false,
            retry_wait: RETRY_WAIT,
            stale_wait: STALE_WAIT,
        };
        self.shards.insert(shard, slot);
        self.line.push_back(shard);
    }

    /// Stops reading `shard`; the position after the last batch of it that was given out, if it was read.
    pub fn remove(&mut self, shard: u8) -> Option<u64> {
        let slot = self.shards.remove(&shard)?;
        if let Some(presence) = &self.presence {
            presence.leaves(shard);
        }
        self.ready.retain(|batch| batch.log.shard != shard);
        self.line.retain(|other| *other != shard);
        if matches!(slot.state, State::Idle(_) | State::Settling | State::Failed) {
            self.wait_anew();
        }
        Some(slot.given)
    }

    /// Forgets what was waited for, which would stay for as long as it does not happen, and waits for the shards there are.
    fn wait_anew(&mut self) {
        self.idle.clear();
        for (shard, slot) in &mut self.shards {
            match slot.state {
                State::Idle(at) => self.idle.push(slot.wait(*shard, &self.clock, at)),
                State::Settling => self.idle.push(slot.settle(*shard)),
                State::Failed => {
                    slot.state = State::InLine;
                    self.line.push_back(*shard);
                }
                State::InLine | State::Reading | State::Ended => {}
            }
        }
    }

    /// For one who has not asked for a long time: gives back what was read ahead if others go without. It is read again
    /// when it is asked for. Whether there is anything left to give back, now or later.
    pub fn give_back(&mut self) -> bool {
        if self.ready.iter().all(|batch| batch.permit.is_none()) && self.reads.is_empty() {
            return false;
        }
        if !self.budget.is_short_of(PAGE_BYTES as u64) {
            return true;
        }
        self.budget.metrics.given_back.inc();
        self.ready.clear();
        // Those under way end here, and what they hold.
        self.reads = JoinSet::new();
        for (shard, slot) in &mut self.shards {
            // Of one that has ended, that may be what was ready.
            let has_ended_ahead = slot.state == State::Ended && !slot.ended;
            if slot.reader.position() > slot.given || slot.state == State::Reading || has_ended_ahead {
                slot.reader.go_back(slot.given);
                if slot.state != State::InLine {
                    slot.state = State::InLine;
                    self.line.push_back(*shard);
                }
            }
        }
        self.wait_anew();
        false
    }

    /// Whether every shard has reached the place where reading ends, and the last batch was given out. Never without
    /// such a place, nor while there is no shard.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        !self.shards.is_empty() && self.shards.values().all(|slot| slot.ended)
    }

    /// Of each shard the position after the last batch that was given out.
    #[must_use]
    pub fn positions(&self) -> Vec<(u8, u64)> {
        self.shards.iter().map(|(shard, slot)| (*shard, slot.given)).collect()
    }

    /// The next batch of the shard whose turn it is; waits while all are at their end, for ever once all have ended.
    /// After an error other than [`Error::Closed`] reading goes on: the shard that failed waits by itself, the others
    /// do not. Cancel-safe.
    ///
    /// # Errors
    /// If the store fails, what is stored is damaged, or a shard's owner is gone.
    pub async fn next(&mut self) -> Result<ReadBatch> {
        loop {
            self.fill();
            if let Some(batch) = self.ready.pop_front() {
                if let Some(slot) = self.shards.get_mut(&batch.log.shard) {
                    (slot.given, slot.ended) = (batch.next, batch.ended);
                }
                if let Some(presence) = &self.presence {
                    let count = batch.records.len() as u64;
                    presence.read(batch.log.shard, batch.next, count, self.clock.now());
                }
                // The next one is read while this one is on its way.
                self.fill();
                return Ok(batch);
            }
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            tokio::select! {
                Some(read) = self.reads.join_next(), if !self.reads.is_empty() => self.finish_read(read),
                Some(wake) = self.idle.next(), if !self.idle.is_empty() => self.handle_wake(&wake),
                () = self.holder.freed(), if self.is_held_up => self.is_held_up = false,
                else => std::future::pending().await,
            }
        }
    }

    /// Gives shards their turn, as far as that needs no waiting.
    fn fill(&mut self) {
        while self.ready.len() + self.reads.len() < READ_AHEAD {
            let Some(shard) = self.line.pop_front() else { return };
            let Some(slot) = self.shards.get_mut(&shard) else { continue };
            match slot.reader.stand() {
                Stand::Ended => {
                    slot.state = State::Ended;
                    let (log, next) = (slot.reader.log(), slot.reader.position());
                    let batch = ReadBatch { log, records: Vec::new(), next, ended: true, permit: None };
                    self.ready.push_back(batch);
                }
                Stand::AtEnd(at) => {
                    slot.state = State::Idle(at);
                    self.idle.push(slot.wait(shard, &self.clock, at));
                }
                Stand::Overdue => {
                    slot.state = State::Settling;
                    self.idle.push(slot.settle(shard));
                }
                Stand::More => {
                    let has_room = match slot.reader.read_tail() {
                        Some(page) => self.take_tail(shard, page),
                        None => self.read(shard),
                    };
                    if !has_room {
                        self.line.push_front(shard);
                        return;
                    }
                }
            }
        }
    }

    /// Takes a page of `shard` that is in memory, unless that would be too much: whoever is slow to take it keeps it
    /// there.
    fn take_tail(&mut self, shard: u8, page: Page) -> bool {
        let permit = if page.records.is_empty() {
            None
        } else if let Some(permit) = self.budget.try_take(page.bytes, &self.holder) {
            Some(permit)
        } else if self.holder.is_empty() {
            Some(self.budget.take(page.bytes, &self.holder))
        } else {
            self.hold_up();
            return false;
        };
        self.budget.metrics.tail_hits.inc();
        self.take_page(shard, page, permit);
        true
    }

    /// The next page has to wait.
    fn hold_up(&mut self) {
        if !std::mem::replace(&mut self.is_held_up, true) {
            self.budget.metrics.held_up.inc();
        }
    }

    /// Reads a page of `shard` from the store, unless that would be too much in memory.
    fn read(&mut self, shard: u8) -> bool {
        let Some(slot) = self.shards.get_mut(&shard) else { return true };
        let room = self.budget.try_take(PAGE_BYTES as u64, &self.holder);
        let (permit, target) = match room {
            Some(permit) => (permit, PAGE_BYTES),
            None if self.holder.is_empty() => (self.budget.take(0, &self.holder), PAGE_BYTES_MIN),
            None => {
                self.hold_up();
                return false;
            }
        };
        slot.state = State::Reading;
        self.budget.metrics.tail_misses.inc();
        let (id, read) = (slot.id, slot.reader.page_read());
        self.reads.spawn(async move {
            let mut permit = permit;
            let page = read.run(target).await;
            if let Ok(page) = &page {
                permit.resize(page.bytes);
            }
            PageDone { shard, id, result: page.map(|page| (page, permit)) }
        });
        true
    }

    fn finish_read(&mut self, read: std::result::Result<PageDone, JoinError>) {
        let PageDone { shard, id, result } = match read.map_err(JoinError::try_into_panic) {
            Ok(read) => read,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(Err(_)) => {
                self.failed = Some(Error::Closed);
                return;
            }
        };
        let Some(slot) = self.shards.get_mut(&shard).filter(|slot| slot.id == id) else { return };
        match result {
            Ok((page, permit)) => {
                slot.retry_wait = RETRY_WAIT;
                if page.next <= slot.reader.position() && !page.ended {
                    if slot.reader.is_gone() {
                        // What was announced has gone with its log: it never comes.
                        slot.state = State::Ended;
                        self.failed = Some(Error::Closed);
                        return;
                    }
                    slot.state = State::Failed;
                    self.idle.push(slot.pause(shard, slot.stale_wait));
                    slot.stale_wait = (slot.stale_wait * 2).min(RETRY_WAIT_MAX);
                } else {
                    slot.stale_wait = STALE_WAIT;
                    let permit = (!page.records.is_empty()).then_some(permit);
                    self.take_page(shard, page, permit);
                }
            }
            Err(error) => {
                slot.state = State::Failed;
                self.idle.push(slot.pause(shard, slot.retry_wait));
                slot.retry_wait = (slot.retry_wait * 2).min(RETRY_WAIT_MAX);
                self.failed.get_or_insert(error);
            }
        }
    }

    /// A page of `shard` is to be given out, and the shard goes on behind the others.
    fn take_page(&mut self, shard: u8, page: Page, permit: Option<ReadPermit>) {
        let is_alone = self.shards.len() == 1;
        let Some(slot) = self.shards.get_mut(&shard) else { return };
        let Page { mut records, mut next, mut ended, .. } = page;
        if let Some((left, _)) = records.get(self.turn_max).filter(|_| !is_alone) {
            // The rest is read again.
            (next, ended) = (*left, false);
            records.truncate(self.turn_max);
        }
        slot.reader.go_to(next);
        slot.state = if ended { State::Ended } else { State::InLine };
        if !ended {
            self.line.push_back(shard);
        }
        self.ready.push_back(ReadBatch { log: slot.reader.log(), records, next, ended, permit });
    }

    fn handle_wake(&mut self, wake: &Wake) {
        let (Wake::Look(shard, id) | Wake::Settled(shard, id) | Wake::Closed(shard, id)) = *wake;
        let Some(slot) = self.shards.get_mut(&shard).filter(|slot| slot.id == id) else { return };
        match wake {
            Wake::Look(..) => {}
            Wake::Settled(..) => slot.reader.settle(),
            Wake::Closed(..) => {
                slot.state = State::Ended;
                self.failed = Some(Error::Closed);
                return;
            }
        }
        slot.state = State::InLine;
        self.line.push_back(shard);
    }
}

impl Slot {
    /// Waits for more, or until `at`.
    fn wait(&self, shard: u8, clock: &Clock, at: Option<Timestamp>) -> BoxFuture<'static, Wake> {
        let (id, extent) = (self.id, self.reader.extent());
        let wait = at.map(|at| at.saturating_since(clock.wall()).min(CLOCK_WAIT_MAX));
        Box::pin(async move {
            let has_more = changed(extent);
            let Some(wait) = wait else { return has_more.await.wake(shard, id) };
            tokio::select! {
                changed = has_more => changed.wake(shard, id),
                () = tokio::time::sleep(wait) => Wake::Look(shard, id),
            }
        })
    }

    /// Waits until the owner has nothing under way that is older than this moment.
    fn settle(&self, shard: u8) -> BoxFuture<'static, Wake> {
        let (id, owner) = (self.id, self.reader.owner());
        Box::pin(async move {
            match owner.settled().await {
                Ok(()) => Wake::Settled(shard, id),
                Err(_) => Wake::Closed(shard, id),
            }
        })
    }

    fn pause(&self, shard: u8, wait: Duration) -> BoxFuture<'static, Wake> {
        let id = self.id;
        Box::pin(async move {
            tokio::time::sleep(wait).await;
            Wake::Look(shard, id)
        })
    }
}

/// Whether the owner has announced something, or is gone.
struct Changed(std::result::Result<(), watch::error::RecvError>);

impl Changed {
    fn wake(self, shard: u8, id: u64) -> Wake {
        if self.0.is_ok() { Wake::Look(shard, id) } else { Wake::Closed(shard, id) }
    }
}

async fn changed(mut extent: watch::Receiver<Extent>) -> Changed {
    Changed(extent.changed().await)
}
