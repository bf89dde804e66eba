//! What people do to a whole queue: look at its messages, remove them, move dead letters back.
//!
//! Reads logs from the store page by page and asks their owners about the messages found. Every call is bounded, in
//! bytes read and in time, and says where to go on: whoever calls repeats it, and nothing is lost if that stops.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use weir_env::clock::{Instant, Timestamp};
use weir_storage::Isolation;
use weir_topic::{TopicFilter, TopicName};

use crate::catalog::Object;
use crate::controls::Wishes;
use crate::core::{Core, place};
use crate::definition::Kind;
use crate::error::{Error, Result};
use crate::key::Publisher;
use crate::keyspace::segment::Record;
use crate::keyspace::{LogId, PublishId, log_blob};
use crate::message::Message;
use crate::queue::{MessageState, StateFilter};
use crate::shard::{
    AppendError, Command, DELIVERY_COUNT_PROPERTY, Operation, QUEUE_PROPERTY, REASON_PROPERTY, States,
    TOPIC_PROPERTY, load_blob, read_asides, read_segments,
};

/// Messages that one look may show.
pub const PEEK_MESSAGES_MAX: usize = 1000;
/// Bytes of each payload that a look may show.
pub const PEEK_PAYLOAD_MAX: usize = 64 * 1024;
/// Bytes of all that one look shows, beside its first message: an answer of the admin API holds four times as many.
pub const PEEK_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of a log read in one go.
const PAGE_BYTES: usize = 256 * 1024;
/// Bytes of logs read in one call.
const SCAN_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Time after which a call ends with the page it is at.
const CALL_TIME: Duration = Duration::from_secs(3);
/// Messages moved at once, and bytes of them, beside the first.
const MOVE_MAX: usize = 128;
const MOVE_BYTES_MAX: u64 = 1024 * 1024;

/// A place in a queue: where a call has ended, and the next one begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Number of the shard.
    pub shard: u8,
    /// Priority class of the log.
    pub class: u8,
    /// Offset in it.
    pub offset: u64,
}

/// Which messages are to be shown.
#[derive(Clone, Debug, Default)]
pub struct Peek {
    /// Where to begin; none: at the front.
    pub from: Option<Position>,
    /// Only this shard.
    pub shard: Option<u8>,
    /// Only topics that match.
    pub topic: Option<TopicFilter>,
    /// Only this key.
    pub key: Option<Bytes>,
    /// How many, up to [`PEEK_MESSAGES_MAX`].
    pub count: usize,
    /// Bytes of each payload, up to [`PEEK_PAYLOAD_MAX`].
    pub payload_max: usize,
}

/// A message as it is in its queue.
#[derive(Clone, Debug)]
pub struct PeekedMessage {
    /// Its log.
    pub log: LogId,
    /// Its offset there.
    pub offset: u64,
    /// The message; its payload may be cut.
    pub record: Record,
    /// Bytes of its whole payload.
    pub payload_len: u64,
    /// Where it is.
    pub state: MessageState,
    /// Deliveries without success.
    pub failed: u32,
}

/// Messages shown, and where to go on if there may be more.
#[derive(Clone, Debug, Default)]
pub struct Peeked {
    /// In the order of shards and offsets.
    pub messages: Vec<PeekedMessage>,
    /// None at the end.
    pub next: Option<Position>,
}

/// Which messages are to be removed.
#[derive(Clone, Copy, Debug)]
pub struct Purge {
    /// Where to begin; none: at the front.
    pub from: Option<Position>,
    /// Only those that came before.
    pub before: Option<Timestamp>,
    /// Only those in such a state.
    pub filter: StateFilter,
}

/// What a purge did, and where to go on if there may be more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Messages removed.
    pub purged: u64,
    /// None at the end.
    pub next: Option<Position>,
}

/// Which dead letters are to be moved back.
#[derive(Clone, Debug, Default)]
pub struct Redrive {
    /// Where to begin; none: at the front.
    pub from: Option<Position>,
    /// Only those that left the queue of this name.
    pub only: Option<String>,
    /// Where all go; none: each to the queue it left.
    pub to: Option<Arc<Object>>,
    /// How many at most; zero for no limit.
    pub count: u64,
}

/// What a redrive did, and where to go on if there may be more.
#[derive(Clone, Debug, Default)]
pub struct Redriven {
    /// Messages that are at their target and no longer here.
    pub moved: u64,
    /// Messages left because a consumer holds them.
    pub busy: u64,
    /// Messages left because they are no dead letters, or the queue they left is not there.
    pub homeless: u64,
    /// Why a target did not take a message; nothing was moved from that one on.
    pub failure: Option<String>,
    /// None at the end.
    pub next: Option<Position>,
}

/// Reads the logs of a queue, one after the other.
struct Scan {
    logs: Vec<LogId>,
    /// Index of the log that is read.
    at: usize,
    offset: u64,
    /// First message of this log that is not done and not moved aside, and where reading ends: as it was when it began.
    extent: Option<(u64, u64)>,
    budget: usize,
    deadline: Instant,
}

type Page = (LogId, Vec<(u64, Record)>);

impl Core {
    /// Shows messages of `queue` without consuming them.
    ///
    /// # Errors
    /// If the store fails or a record is damaged.
    pub async fn peek(&self, queue: &Arc<Object>, peek: &Peek) -> Result<Peeked> {
        let count = peek.count.min(PEEK_MESSAGES_MAX);
        let mut scan = self.scan(queue, peek.from, peek.shard).await?;
        let mut peeked = Peeked::default();
        let mut bytes = 0;
        while let Some((log, mut records)) = scan.page(self, queue).await? {
            records.retain(|(_, record)| peek.admits(record));
            let offsets = records.iter().map(|(offset, _)| *offset).collect();
            let states = self.states(queue, log, offsets).await?;
            let mut states = states.into_iter().peekable();
            for (offset, record) in records {
                let Some((_, state, failed)) = states.next_if(|(at, ..)| *at == offset) else { continue };
                if peeked.messages.len() == count {
                    peeked.next = Some(Position { shard: log.shard, class: log.class, offset });
                    return Ok(peeked);
                }
                let (record, payload_len) = self.shown(&log, offset, record, peek.payload_max).await?;
                bytes += record.encoded_len();
                if bytes > PEEK_BYTES_MAX && !peeked.messages.is_empty() {
                    peeked.next = Some(Position { shard: log.shard, class: log.class, offset });
                    return Ok(peeked);
                }
                peeked.messages.push(PeekedMessage { log, offset, record, payload_len, state, failed });
            }
        }
        peeked.next = scan.position();
        Ok(peeked)
    }

    /// A record with the beginning of its payload, and the length of all of it.
    async fn shown(&self, log: &LogId, offset: u64, mut record: Record, max: usize) -> Result<(Record, u64)> {
        let max = max.min(PEEK_PAYLOAD_MAX);
        let message = &mut record.message;
        let payload_len = record.blob_len.map_or(message.payload.len() as u64, u64::from);
        if record.blob_len.is_some() {
            let first = log_blob::key(log, offset, 0);
            let chunk = self.store().begin().get(&first, Isolation::Snapshot).await?;
            message.payload = chunk.unwrap_or_default();
        }
        if message.payload.len() > max {
            // Not a part of the page that would keep all of it in memory.
            message.payload = Bytes::copy_from_slice(&message.payload[..max]);
        }
        Ok((record, payload_len))
    }

    /// Removes messages of `queue`, those that consumers hold too.
    ///
    /// # Errors
    /// If the store fails or a record is damaged; what was removed stays so.
    pub async fn purge(&self, queue: &Arc<Object>, purge: &Purge) -> Result<Purged> {
        let mut scan = self.scan(queue, purge.from, None).await?;
        if purge.before.is_none() && purge.filter == StateFilter::Any {
            return self.purge_all(queue, &mut scan).await;
        }
        let mut purged = Purged::default();
        while let Some((log, records)) = scan.page(self, queue).await? {
            let is_old = |record: &Record| purge.before.is_none_or(|at| record.message.published_at < at);
            let found = records.len();
            let costs: Vec<(u64, u64)> = records
                .iter()
                .filter(|(_, record)| is_old(record))
                .map(|(offset, record)| (*offset, record.cost()))
                .collect();
            if costs.len() < found && costs.is_empty() {
                // A log is in the order of time.
                scan.skip_log();
                continue;
            }
            let filter = purge.filter;
            let step = |reply| Operation::Purge { costs, filter, reply };
            purged.purged += self.operate(queue, log, step).await?;
        }
        purged.next = scan.position();
        Ok(purged)
    }

    async fn purge_all(&self, queue: &Arc<Object>, scan: &mut Scan) -> Result<Purged> {
        let mut purged = Purged::default();
        while let Some(log) = scan.log() {
            let end = self.extent(queue, log).await?.1;
            loop {
                let step = |reply| Operation::PurgeBelow { end, reply };
                let (count, more) = self.operate(queue, log, step).await?;
                purged.purged += count;
                if !more {
                    break;
                }
                if scan.is_over(self) {
                    purged.next = scan.position();
                    return Ok(purged);
                }
            }
            scan.skip_log();
        }
        Ok(purged)
    }

    /// Moves dead letters in `queue` back to the queues they left. Each is appended there under an id made of where it
    /// is here, then ends here: whatever stops this, none is lost, and going on repeats none.
    ///
    /// # Errors
    /// If the store fails or a record is damaged; what was moved stays so.
    pub async fn redrive(&self, queue: &Arc<Object>, redrive: &Redrive) -> Result<Redriven> {
        let mut scan = self.scan(queue, redrive.from, None).await?;
        let mut done = Redriven::default();
        while let Some((log, records)) = scan.page(self, queue).await? {
            let mut found = Vec::new();
            for (offset, record) in records {
                match self.home(queue, redrive, &record) {
                    Home::Other => {}
                    Home::None => done.homeless += self.states(queue, log, vec![offset]).await?.len() as u64,
                    Home::At(target) => found.push((offset, record, target)),
                }
            }
            let mut found = found.into_iter().peekable();
            while let Some((first, _, _)) = found.peek() {
                let at = Position { shard: log.shard, class: log.class, offset: *first };
                let room =
                    if redrive.count == 0 { u64::MAX } else { redrive.count.saturating_sub(done.moved) };
                if room == 0 {
                    done.next = Some(at);
                    return Ok(done);
                }
                let mut batch = Vec::new();
                let mut bytes = 0;
                let max = MOVE_MAX.min(usize::try_from(room).unwrap_or(usize::MAX));
                while let Some((offset, record, target)) =
                    found.next_if(|_| batch.len() < max && bytes < MOVE_BYTES_MAX)
                {
                    bytes += record.cost();
                    batch.push((offset, record, target));
                }
                self.move_batch(queue, log, batch, &mut done).await?;
                if done.failure.is_some() {
                    done.next = Some(at);
                    return Ok(done);
                }
            }
        }
        done.next = scan.position();
        Ok(done)
    }

    async fn move_batch(
        &self,
        queue: &Arc<Object>,
        log: LogId,
        batch: Vec<(u64, Record, Arc<Object>)>,
        done: &mut Redriven,
    ) -> Result<()> {
        let mut records = Vec::with_capacity(batch.len());
        for (offset, record, _) in &batch {
            let mut record = record.clone();
            if let Some(len) = record.blob_len {
                match load_blob(self.store(), &log, *offset, len).await {
                    Ok(payload) => record.message.payload = payload,
                    // Its log was cut meanwhile: it is done.
                    Err(Error::Record(_)) => continue,
                    Err(error) => return Err(error),
                }
            }
            records.push((*offset, Arc::new(record)));
        }
        let known = self.states(queue, log, records.iter().map(|(offset, _)| *offset).collect()).await?.len();
        let to_take = records.clone();
        let taken = self.operate(queue, log, |reply| Operation::TakeOut { records: to_take, reply }).await?;
        done.busy += known.saturating_sub(taken.len()) as u64;
        let mut replies = Vec::with_capacity(taken.len());
        for (offset, record) in records.iter().filter(|(offset, _)| taken.binary_search(offset).is_ok()) {
            let Some((_, _, target)) = batch.iter().find(|(at, ..)| at == offset) else { continue };
            replies.push((*offset, self.send_home(queue, log, *offset, record, target).await));
        }
        let mut results = Vec::with_capacity(replies.len());
        for (offset, reply) in replies {
            let result = match reply {
                Ok(reply) => reply.await.unwrap_or(Err(AppendError::Failed(Error::Closed))),
                Err(error) => Err(AppendError::Failed(error)),
            };
            results.push((offset, result.is_ok()));
            if let (Err(error), None) = (result, &done.failure) {
                done.failure = Some(error.to_string());
            }
        }
        done.moved += self.operate(queue, log, |reply| Operation::Moved { results, reply }).await?;
        Ok(())
    }

    async fn send_home(
        &self,
        queue: &Object,
        log: LogId,
        offset: u64,
        record: &Record,
        target: &Arc<Object>,
    ) -> Result<crate::shard::AppendReply> {
        let message = restored(&record.message);
        let same_key = target.definition.effective_key() == queue.definition.effective_key();
        let key = match &target.key {
            _ if same_key => record.key.clone(),
            Some(key) => key.evaluate(&message, &Publisher::default()).unwrap_or_default(),
            None => Default::default(),
        };
        let record = Record { message, key, blob_len: None, span: tracing::Span::none() };
        let to = place(target, &record, None).ok_or(Error::Closed)?;
        let publish = (PublishId::of_dead_letter(&log, offset), true);
        self.shard(to.vs)?.append(Arc::clone(target), to, record, Some(publish), Wishes::default()).await
    }

    /// Where a message of `queue` is to be moved.
    fn home(&self, queue: &Object, redrive: &Redrive, record: &Record) -> Home {
        let view = self.catalog().view();
        let name = last_property(&record.message, QUEUE_PROPERTY);
        // A publisher can write the property, but not the mark.
        let left = record.message.dead_letter.and_then(|id| {
            let by_id = view.all(Kind::Queue).find(|object| object.id == id).cloned();
            by_id.or_else(|| view.find(Kind::Queue, name?))
        });
        if let Some(only) = &redrive.only {
            let is_it = match &left {
                Some(left) => left.definition.name == *only,
                None => record.message.dead_letter.is_some() && name == Some(only.as_str()),
            };
            if !is_it {
                return Home::Other;
            }
        }
        match redrive.to.clone().or(left) {
            Some(target) if target.id != queue.id => Home::At(target),
            Some(_) | None => Home::None,
        }
    }

    async fn states(&self, queue: &Arc<Object>, log: LogId, offsets: Vec<u64>) -> Result<States> {
        if offsets.is_empty() {
            return Ok(States::new());
        }
        self.operate(queue, log, |reply| Operation::States { offsets, reply }).await
    }

    /// The first message of a log that is not done, and the end.
    async fn extent(&self, queue: &Arc<Object>, log: LogId) -> Result<(u64, u64)> {
        let object = Arc::clone(queue);
        let report = self.shard(log.vs)?.ask(|reply| Command::Describe { object, log, reply }).await??;
        Ok((report.queue.map_or(0, |queue| queue.floor), report.extent.next))
    }

    async fn operate<T>(
        &self,
        queue: &Arc<Object>,
        log: LogId,
        step: impl FnOnce(oneshot::Sender<Result<T>>) -> Operation,
    ) -> Result<T> {
        let object = Arc::clone(queue);
        let command = |reply| Command::Operate { object, log, operation: step(reply) };
        self.shard(log.vs)?.ask(command).await?
    }

    async fn scan(&self, queue: &Arc<Object>, from: Option<Position>, shard: Option<u8>) -> Result<Scan> {
        let from = from.unwrap_or_default();
        let is_wanted = |log: &&LogId| log.shard >= from.shard && shard.is_none_or(|only| log.shard == only);
        let mut logs = Vec::with_capacity(queue.logs.len());
        for log in queue.logs.iter().filter(is_wanted) {
            let classes = |reply| Command::Classes { object: Arc::clone(queue), log: *log, reply };
            logs.extend(self.shard(log.vs)?.ask(classes).await??);
        }
        logs.retain(|log| (log.shard, log.class) >= (from.shard, from.class));
        logs.sort_unstable_by_key(|log| (log.shard, log.class));
        let is_in = logs.first().is_some_and(|log| (log.shard, log.class) == (from.shard, from.class));
        Ok(Scan {
            logs,
            at: 0,
            offset: if is_in { from.offset } else { 0 },
            extent: None,
            budget: SCAN_BYTES_MAX,
            deadline: self.clock().now() + CALL_TIME,
        })
    }
}

/// Where a dead letter belongs.
enum Home {
    At(Arc<Object>),
    /// It came from another queue than the one asked for.
    Other,
    None,
}

impl Peek {
    fn admits(&self, record: &Record) -> bool {
        self.topic.as_ref().is_none_or(|filter| filter.matches(&record.message.topic))
            && self.key.as_ref().is_none_or(|key| record.key_bytes() == Some(key))
    }
}

impl Scan {
    fn log(&self) -> Option<LogId> {
        self.logs.get(self.at).copied()
    }

    fn position(&self) -> Option<Position> {
        let log = self.log()?;
        Some(Position { shard: log.shard, class: log.class, offset: self.offset })
    }

    fn skip_log(&mut self) {
        self.at += 1;
        (self.offset, self.extent) = (0, None);
    }

    fn is_over(&self, core: &Core) -> bool {
        self.budget == 0 || core.clock().now() >= self.deadline
    }

    /// The next records; none at the end or once the call has read enough: [`Scan::position`] tells which. Payloads in
    /// chunks are not with them.
    async fn page(&mut self, core: &Core, queue: &Arc<Object>) -> Result<Option<Page>> {
        let is_over = self.is_over(core);
        while let Some(log) = self.log() {
            let (floor, end) = match self.extent {
                Some(extent) => extent,
                None => *self.extent.insert(core.extent(queue, log).await?),
            };
            if self.offset >= end {
                self.skip_log();
                continue;
            }
            if is_over {
                return Ok(None);
            }
            if self.offset < floor {
                let (records, next) = read_asides(core.store(), &log, self.offset, PAGE_BYTES).await?;
                self.offset = next.min(floor);
                if records.is_empty() {
                    continue;
                }
                let own = |(offset, record): (u64, Arc<Record>)| (offset, Arc::unwrap_or_clone(record));
                let records: Vec<(u64, Record)> = records.into_iter().map(own).collect();
                let read = records.iter().map(|(_, record)| record.encoded_len()).sum();
                self.budget = self.budget.saturating_sub(read);
                return Ok(Some((log, records)));
            }
            let from = self.offset;
            let mut records = Vec::new();
            for mut segment in read_segments(core.store(), &log, from, PAGE_BYTES).await? {
                while let Some((offset, record)) = segment.next_record()? {
                    if (from..end).contains(&offset) {
                        self.budget = self.budget.saturating_sub(record.encoded_len());
                        records.push((offset, record));
                    }
                }
                self.offset = self.offset.max(segment.end());
            }
            if records.is_empty() {
                // Cut meanwhile: all of it is done.
                self.skip_log();
                continue;
            }
            return Ok(Some((log, records)));
        }
        Ok(None)
    }
}

fn last_property<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.properties.user.iter().rfind(|(key, _)| *key == *name).map(|(_, value)| &**value)
}

/// A dead letter as it was before it became one; other messages as they are.
fn restored(letter: &Message) -> Message {
    let mut message = letter.clone();
    if message.dead_letter.take().is_none() {
        return message;
    }
    if let Some(topic) = last_property(letter, TOPIC_PROPERTY)
        && let Ok(topic) = TopicName::parse(topic.to_owned())
    {
        message.topic = topic;
    }
    let added = [REASON_PROPERTY, QUEUE_PROPERTY, DELIVERY_COUNT_PROPERTY, TOPIC_PROPERTY];
    let user = &mut message.properties.user;
    let own = user.len().saturating_sub(added.len());
    if user.iter().skip(own).map(|(name, _)| &**name).eq(added) {
        user.truncate(own);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::tests::full_message;

    #[test]
    fn a_dead_letter_becomes_what_it_was() {
        let original = full_message();
        let mut letter = original.clone();
        letter.dead_letter = Some(7);
        letter.topic = TopicName::parse("dead/a").unwrap();
        let added = [
            (REASON_PROPERTY, "rejected"),
            (QUEUE_PROPERTY, "q"),
            (DELIVERY_COUNT_PROPERTY, "3"),
            (TOPIC_PROPERTY, original.topic.as_str()),
        ];
        letter.properties.user.extend(added.map(|(name, value)| (name.into(), value.into())));
        assert_eq!(restored(&letter), original);
        let forged = Message { dead_letter: None, ..letter };
        assert_eq!(restored(&forged), forged, "it is none");
    }
}
