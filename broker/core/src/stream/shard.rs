//! One shard of a stream that is being read: its position, its end, and what is wanted of it.
//!
//! It neither waits nor reads; what is to be done next it says, and [`super::StreamReader`] does it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use weir_env::clock::{Clock, Timestamp};
use weir_storage::SharedStore;
use weir_topic::TopicFilter;

use super::damage::{Damage, Damages, locate};
use super::{ReadOptions, Start, TailReader, place, read_page};
use crate::catalog::Object;
use crate::error::{Error, Result};
use crate::keyspace::segment::Record;
use crate::keyspace::{DecodeError, LogId};
use crate::shard::{Context, Extent, ReadRecords, ShardHandle};

/// Bytes of segments read in one go.
pub(super) const PAGE_BYTES: usize = 256 * 1024;

/// What every shard of a reader needs.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) store: SharedStore,
    pub(crate) clock: Clock,
    stream: Arc<Object>,
    damages: Arc<Damages>,
    wanted: Arc<Wanted>,
}

impl Shared {
    pub(crate) fn new(context: &Context, stream: &Arc<Object>, options: &ReadOptions) -> Self {
        let wanted = Wanted { filter: options.filter.clone(), key: options.key.clone() };
        Self {
            store: Arc::clone(&context.store),
            clock: context.clock,
            stream: Arc::clone(stream),
            damages: Arc::clone(&context.reading.damages),
            wanted: Arc::new(wanted),
        }
    }

    /// What is to be said of a page of `log` that could not be read, which was because of `why` when it was tried.
    async fn damage(&self, log: &LogId, (from, end): (u64, u64), why: DecodeError) -> Error {
        let definition = &self.stream.definition;
        match locate(&self.store, log, definition.last_value, (from, end)).await {
            Ok(Some(found)) => {
                let stream = definition.name.clone();
                let damage =
                    Damage { stream, shard: log.shard, at: found.at, next: found.next, why: found.why };
                self.damages.tell(log, &damage);
                Error::Damaged(Box::new(damage))
            }
            Ok(None) => Error::Record(why),
            Err(error) => error,
        }
    }
}

/// Which records are given to the reader.
#[derive(Debug)]
struct Wanted {
    filter: Option<TopicFilter>,
    key: Option<Bytes>,
}

impl Wanted {
    fn has(&self, record: &Record) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.matches(&record.message.topic))
            && self.key.as_ref().is_none_or(|key| record.key_bytes() == Some(key))
    }
}

/// Where a shard ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    Never,
    Offset(u64),
    /// No record at or after it was there yet.
    Time(Timestamp),
}

/// What a shard is opened with.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) log: LogId,
    pub(crate) last_value: bool,
    /// From the shard's owner.
    pub(crate) extent: watch::Receiver<Extent>,
    pub(crate) tail: TailReader,
    pub(crate) owner: ShardHandle,
}

/// Reads one shard of a stream, as part of a [`super::StreamReader`].
#[derive(Debug)]
pub struct ShardReader {
    shared: Shared,
    log: LogId,
    last_value: bool,
    /// The offset of the next record to be read.
    next: u64,
    /// Records before it are skipped.
    since: Timestamp,
    until: Until,
    /// All that is older than the time at which reading ends is committed.
    is_settled: bool,
    extent: watch::Receiver<Extent>,
    owner: ShardHandle,
    tail: TailReader,
}

/// Records of a page that are wanted.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) records: Vec<(u64, Arc<Record>)>,
    pub(super) next: u64,
    /// Bytes of all records of the page, if some of them are wanted.
    pub(super) bytes: u64,
    /// The shard ends with it.
    pub(super) ended: bool,
}

/// A read of the store for a shard, which knows all it needs.
pub(super) struct PageRead {
    shared: Shared,
    log: LogId,
    last_value: bool,
    from: u64,
    end: u64,
    since: Timestamp,
    until: Until,
}

/// Where a shard stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// There is more.
    More,
    /// All that is committed was read. With a time, it is waited for that too.
    AtEnd(Option<Timestamp>),
    /// The time at which reading ends is over, and so is the shard once its owner has nothing older under way.
    Overdue,
    /// It has reached its end.
    Ended,
}

impl ShardReader {
    /// A reader that begins where `options` say, or at `from` if that is told.
    ///
    /// # Errors
    /// If the store fails, or what is stored is damaged.
    pub(crate) async fn open(
        shared: Shared,
        opening: Opening,
        options: &ReadOptions,
        from: Option<u64>,
    ) -> Result<Self> {
        let Opening { log, last_value, extent, tail, owner } = opening;
        let now = *extent.borrow();
        let store = &shared.store;
        let next = match from {
            Some(from) => from.clamp(now.start, now.next),
            None => place::begin(store, &log, last_value, &options.start, now).await?,
        };
        let since = match options.start {
            Start::Time(at) if from.is_none() => at,
            _ => Timestamp::default(),
        };
        let until = match &options.until {
            None => Until::Never,
            Some(Start::Earliest) => Until::Offset(now.start),
            Some(Start::Latest) => Until::Offset(now.next),
            Some(Start::Time(at)) => match place::first_at(store, &log, last_value, *at, now).await? {
                offset if offset < now.next => Until::Offset(offset),
                _ => Until::Time(*at),
            },
            Some(offsets @ (Start::Offset(_) | Start::Offsets(_))) => {
                Until::Offset(offsets.offset(log.shard).unwrap_or(0))
            }
        };
        Ok(Self { shared, log, last_value, next, since, until, is_settled: false, extent, owner, tail })
    }

    /// The shard.
    #[must_use]
    pub fn log(&self) -> LogId {
        self.log
    }

    /// The offset of the next message that is read.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// The end of all that is committed: the offset that the next message published gets.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.extent.borrow().next
    }

    /// Where it stands. Changes of the end from here on are news to whoever waits for some.
    pub(super) fn stand(&mut self) -> Stand {
        let Extent { start, next: end } = *self.extent.borrow_and_update();
        self.next = self.next.max(start.min(end));
        match self.until {
            Until::Offset(until) if self.next >= until => Stand::Ended,
            _ if self.next < end => Stand::More,
            Until::Time(_) if self.is_settled => Stand::Ended,
            Until::Time(until) if until <= self.shared.clock.wall() => Stand::Overdue,
            Until::Time(until) => Stand::AtEnd(Some(until)),
            Until::Never | Until::Offset(_) => Stand::AtEnd(None),
        }
    }

    /// What was before `next` has been read.
    pub(super) fn go_to(&mut self, next: u64) {
        self.next = self.next.max(next);
    }

    /// What was read from `next` on is to be read again.
    pub(super) fn go_back(&mut self, next: u64) {
        self.next = next;
    }

    /// The end as its owner announces it; what comes after the last [`ShardReader::stand`] is news.
    pub(super) fn extent(&self) -> watch::Receiver<Extent> {
        self.extent.clone()
    }

    /// Whether its owner announces nothing any more: it has given the log up, or the log is deleted.
    pub(super) fn is_gone(&self) -> bool {
        self.extent.has_changed().is_err()
    }

    pub(super) fn owner(&self) -> ShardHandle {
        self.owner.clone()
    }

    /// Its owner has nothing older than the time at which reading ends under way any more. What was committed meanwhile
    /// may be older, or not.
    pub(super) fn settle(&mut self) {
        self.is_settled = true;
    }

    /// What its owner has in memory from here on.
    pub(super) fn read_tail(&mut self) -> Option<Page> {
        let (records, next) = self.tail.read(self.next, PAGE_BYTES)?;
        Some(self.page_read().narrow((records, next)))
    }

    /// A read of the next page from the store.
    pub(super) fn page_read(&self) -> PageRead {
        PageRead {
            shared: self.shared.clone(),
            log: self.log,
            last_value: self.last_value,
            from: self.next,
            end: self.end(),
            since: self.since,
            until: self.until,
        }
    }
}

impl PageRead {
    /// Reads about `target_bytes`.
    pub(super) async fn run(self, target_bytes: usize) -> Result<Page> {
        let Self { shared, log, last_value, from, end, .. } = &self;
        match read_page(&shared.store, log, *last_value, (*from, *end), target_bytes).await {
            Ok(read) => Ok(self.narrow(read)),
            Err(Error::Record(why)) => Err(shared.damage(log, (*from, *end), why).await),
            Err(error) => Err(error),
        }
    }

    /// What is wanted of `records`, which end at `next`.
    fn narrow(&self, (mut records, mut next): ReadRecords) -> Page {
        let mut ended = false;
        match self.until {
            Until::Never => {}
            Until::Offset(until) => {
                ended = next >= until;
                next = next.min(until);
                records.truncate(records.partition_point(|(offset, _)| *offset < until));
            }
            Until::Time(until) => {
                let end = records.partition_point(|(_, record)| record.message.published_at < until);
                if let Some((offset, _)) = records.get(end) {
                    (ended, next) = (true, *offset);
                    records.truncate(end);
                }
            }
        }
        let bytes = records.iter().map(|(_, record)| record.message.size() as u64).sum();
        records.retain(|(_, record)| {
            record.message.published_at >= self.since && self.shared.wanted.has(record)
        });
        let bytes = if records.is_empty() { 0 } else { bytes };
        Page { records, next, bytes, ended }
    }
}
