//! The newest records of logs that are being read, in memory for those who read them as they come.
//!
//! The owner of a log puts each batch here once it is committed, as it has it: nobody reads it from the store or
//! decodes it, however many readers there are. Of a log that another pod owns, it is read once for all. What one log holds is bounded, and all together; the oldest batches of
//! all go first. Readers of history neither find anything here nor put anything in, so they cannot push it out.
//! A log that nobody reads keeps nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::keyspace::segment::Record;
use crate::metrics::ReadMetrics;
use crate::shard::ReadRecords;

/// Bytes that one log holds.
pub(crate) const LOG_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Batches that one log holds, however small.
const LOG_BATCHES_MAX: usize = 4096;
/// Bytes of a record beside its message, and of a batch beside its records.
const RECORD_OVERHEAD: u64 = (size_of::<(u64, Arc<Record>)>() + size_of::<Record>()) as u64;
const BATCH_OVERHEAD: u64 = (size_of::<TailBatch>() + size_of::<(u64, Weak<Tail>, u64)>()) as u64;

/// What the tails of all logs hold together.
#[derive(Debug)]
pub(crate) struct Tails {
    limit: u64,
    order: Mutex<Order>,
    metrics: ReadMetrics,
}

/// The batches of all tails, oldest first.
#[derive(Debug, Default)]
struct Order {
    added: u64,
    bytes: u64,
    batches: BTreeMap<u64, (Weak<Tail>, u64)>,
}

/// The newest batches of one log, without a gap between them.
#[derive(Debug)]
pub(crate) struct Tail {
    tails: Arc<Tails>,
    readers: AtomicUsize,
    kept: Mutex<Kept>,
}

/// Batches of one log, oldest first.
#[derive(Debug, Default)]
struct Kept {
    batches: VecDeque<TailBatch>,
    bytes: u64,
}

impl Kept {
    fn push(&mut self, batch: TailBatch) {
        self.bytes += batch.bytes;
        self.batches.push_back(batch);
    }

    /// The oldest one that there is no room for.
    fn pop_over(&mut self) -> Option<TailBatch> {
        let is_over = self.bytes > LOG_BYTES_MAX || self.batches.len() > LOG_BATCHES_MAX;
        if is_over { self.pop() } else { None }
    }

    /// Takes out what is not newer than `seq`.
    fn forget(&mut self, seq: u64) {
        while self.batches.front().is_some_and(|batch| batch.seq <= seq) {
            self.pop();
        }
    }

    fn pop(&mut self) -> Option<TailBatch> {
        let batch = self.batches.pop_front()?;
        self.bytes -= batch.bytes;
        Some(batch)
    }
}

/// Records of one batch with their offsets, shared by all readers.
type Records = Arc<[(u64, Arc<Record>)]>;

#[derive(Clone, Debug)]
struct TailBatch {
    /// Its place in the order of all.
    seq: u64,
    /// The end of the log before and after it.
    base: u64,
    end: u64,
    /// In memory.
    bytes: u64,
    /// Of its messages.
    size: u64,
    records: Records,
}

impl Tails {
    pub(crate) fn new(limit: u64, metrics: ReadMetrics) -> Self {
        Self { limit, order: Mutex::default(), metrics }
    }

    /// Takes a batch of `tail` into the order, and the oldest out of it that there is no room for.
    fn add(&self, tail: &Arc<Tail>, bytes: u64) -> u64 {
        let mut gone = Vec::new();
        let seq = {
            let mut order = self.order.lock();
            order.added += 1;
            let seq = order.added;
            order.bytes += bytes;
            order.batches.insert(seq, (Arc::downgrade(tail), bytes));
            while order.bytes > self.limit {
                let Some((seq, (tail, bytes))) = order.batches.pop_first() else { break };
                order.bytes -= bytes;
                gone.push((seq, tail));
            }
            self.metrics.tail_bytes.set(i64::try_from(order.bytes).unwrap_or(i64::MAX));
            seq
        };
        for (seq, tail) in gone {
            if let Some(tail) = tail.upgrade() {
                tail.kept.lock().forget(seq);
            }
        }
        seq
    }

    fn has(&self, seq: u64) -> bool {
        self.order.lock().batches.contains_key(&seq)
    }

    fn remove(&self, batches: impl IntoIterator<Item = TailBatch>) {
        let mut order = self.order.lock();
        for batch in batches {
            if let Some((_, bytes)) = order.batches.remove(&batch.seq) {
                order.bytes -= bytes;
            }
        }
        self.metrics.tail_bytes.set(i64::try_from(order.bytes).unwrap_or(i64::MAX));
    }
}

impl Tail {
    pub(crate) fn new(tails: &Arc<Tails>) -> Arc<Self> {
        Arc::new(Self { tails: Arc::clone(tails), readers: AtomicUsize::new(0), kept: Mutex::default() })
    }

    /// How many readers there are.
    pub(crate) fn readers(&self) -> usize {
        self.readers.load(Ordering::Relaxed)
    }

    /// Keeps a committed batch of the log, whose end was `base` and is now `end`, for those who read it.
    pub(crate) fn push(self: &Arc<Self>, (base, end): (u64, u64), records: &[(u64, Arc<Record>)]) {
        if self.readers() == 0 || base == end {
            return;
        }
        let size = records.iter().map(|(_, record)| record.message.size() as u64).sum::<u64>();
        let bytes = size + records.len() as u64 * RECORD_OVERHEAD + BATCH_OVERHEAD;
        let follows = self.kept.lock().batches.back().is_none_or(|last| last.end == base);
        if !follows || bytes > LOG_BYTES_MAX {
            self.clear();
        }
        if bytes > LOG_BYTES_MAX {
            return;
        }
        let seq = self.tails.add(self, bytes);
        let batch = TailBatch { seq, base, end, bytes, size, records: records.into() };
        let gone: Vec<TailBatch> = {
            let mut kept = self.kept.lock();
            kept.push(batch);
            std::iter::from_fn(|| kept.pop_over()).collect()
        };
        self.tails.remove(gone);
        // Others may have pushed it out before it was here.
        if !self.tails.has(seq) {
            self.kept.lock().forget(seq);
        }
    }

    /// As [`Self::push`], of what was read from the store because another pod has committed it.
    pub(crate) fn fill(self: &Arc<Self>, range: (u64, u64), records: &[(u64, Arc<Record>)]) {
        self.tails.metrics.tail_fills.inc();
        self.push(range, records);
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        let gone = std::mem::take(&mut *self.kept.lock());
        self.tails.remove(gone.batches);
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A reader of a [`Tail`], known to it until dropped.
#[derive(Debug)]
pub(crate) struct TailReader(Arc<Tail>);

impl TailReader {
    pub(crate) fn new(tail: &Arc<Tail>) -> Self {
        tail.readers.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(tail))
    }

    /// Records from `from` on, about `target_bytes` of them, and where the next read begins; `None` if they are not
    /// here.
    pub(super) fn read(&self, from: u64, target_bytes: usize) -> Option<ReadRecords> {
        let mut found: Vec<Records> = Vec::new();
        let mut end = from;
        {
            let kept = self.0.kept.lock();
            let batches = &kept.batches;
            let first = batches.partition_point(|batch| batch.end <= from);
            if batches.get(first)?.base > from {
                return None;
            }
            let mut bytes = 0;
            for batch in batches.range(first..) {
                found.push(Arc::clone(&batch.records));
                (bytes, end) = (bytes + batch.size, batch.end);
                if bytes >= target_bytes as u64 {
                    break;
                }
            }
        }
        let records = found.iter().flat_map(|records| records.iter());
        Some((records.filter(|(offset, _)| *offset >= from).cloned().collect(), end))
    }
}

impl Drop for TailReader {
    fn drop(&mut self) {
        if self.0.readers.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::keyspace::segment::RecordKey;
    use crate::message::Message;
    use crate::message::tests::full_message;

    const PAGE: usize = 256 * 1024;

    fn records(base: u64, count: u64, size: usize) -> Vec<(u64, Arc<Record>)> {
        let message = Message { payload: Bytes::from(vec![0; size]), ..full_message() };
        let record = Record { message, key: RecordKey::None, blob_len: None, span: tracing::Span::none() };
        (base..base + count).map(|offset| (offset, Arc::new(record.clone()))).collect()
    }

    fn push(tail: &Arc<Tail>, base: u64, count: u64, size: usize) {
        tail.push((base, base + count), &records(base, count, size));
    }

    /// The offsets that a reader finds from `from` on.
    fn found(reader: &TailReader, from: u64) -> Option<Vec<u64>> {
        let (records, next) = reader.read(from, PAGE)?;
        assert_eq!(records.last().map(|(offset, _)| offset + 1), Some(next));
        Some(records.into_iter().map(|(offset, _)| offset).collect())
    }

    fn tails(limit: u64) -> (Arc<Tails>, ReadMetrics) {
        let metrics = ReadMetrics::default();
        (Arc::new(Tails::new(limit, metrics.clone())), metrics)
    }

    #[test]
    fn readers_find_what_came_since_the_first_of_them() {
        let (tails, metrics) = tails(u64::MAX);
        let tail = Tail::new(&tails);
        push(&tail, 0, 5, 1);
        let reader = TailReader::new(&tail);
        assert_eq!(found(&reader, 0), None);
        push(&tail, 5, 3, 1);
        push(&tail, 8, 2, 1);
        assert_eq!(found(&reader, 4), None, "what was before is history");
        assert_eq!(found(&reader, 5), Some(vec![5, 6, 7, 8, 9]));
        assert_eq!(found(&reader, 7), Some(vec![7, 8, 9]));
        assert_eq!(found(&reader, 10), None, "nothing yet");
        // A gap: what is before it would look like the end.
        push(&tail, 20, 1, 1);
        assert_eq!((found(&reader, 8), found(&reader, 20)), (None, Some(vec![20])));
        drop(reader);
        assert_eq!((tail.readers(), metrics.tail_bytes.get()), (0, 0));
    }

    #[test]
    fn one_read_is_about_a_page() {
        let (tails, _) = tails(u64::MAX);
        let tail = Tail::new(&tails);
        let reader = TailReader::new(&tail);
        for n in 0..10 {
            push(&tail, n, 1, PAGE / 2);
        }
        assert_eq!(found(&reader, 0), Some(vec![0, 1]));
        assert_eq!(found(&reader, 9), Some(vec![9]));
    }

    #[test]
    fn one_log_is_bounded_by_itself() {
        let (tails, metrics) = tails(u64::MAX);
        let (tail, other) = (Tail::new(&tails), Tail::new(&tails));
        let (reader, other_reader) = (TailReader::new(&tail), TailReader::new(&other));
        push(&other, 0, 1, 100);
        for n in 0..100 {
            push(&tail, n, 1, 100_000);
        }
        let held = u64::try_from(metrics.tail_bytes.get()).unwrap();
        assert!(held <= LOG_BYTES_MAX + 1_000 && held > LOG_BYTES_MAX - 200_000, "{held} bytes");
        assert_eq!((found(&reader, 50), found(&reader, 99)), (None, Some(vec![99])));
        assert_eq!(found(&other_reader, 0), Some(vec![0]), "a busy log takes nothing from others");
        // One that is too large alone leaves nothing that could be taken for the end.
        push(&tail, 100, 1, 5_000_000);
        assert_eq!((found(&reader, 99), found(&reader, 100)), (None, None));
        push(&tail, 101, 1, 1);
        assert_eq!(found(&reader, 101), Some(vec![101]));
    }

    #[test]
    fn one_log_is_bounded_however_small_its_batches_are() {
        let (tails, metrics) = tails(u64::MAX);
        let tail = Tail::new(&tails);
        let reader = TailReader::new(&tail);
        let count = 2 * LOG_BATCHES_MAX as u64;
        (0..count).for_each(|n| push(&tail, n, 1, 0));
        let held = tail.kept.lock().batches.len();
        let bytes = tail.kept.lock().bytes;
        assert_eq!(held, LOG_BATCHES_MAX);
        assert_eq!(u64::try_from(metrics.tail_bytes.get()).unwrap(), bytes);
        assert!(bytes >= (held * size_of::<Record>()) as u64, "a record is more than its message");
        assert_eq!((found(&reader, 0), found(&reader, count - 1)), (None, Some(vec![count - 1])));
    }

    #[test]
    fn the_oldest_of_all_logs_go_first() {
        let (tails, metrics) = tails(1_000_000);
        let logs: Vec<Arc<Tail>> = (0..10).map(|_| Tail::new(&tails)).collect();
        let readers: Vec<TailReader> = logs.iter().map(TailReader::new).collect();
        for round in 0..4 {
            for tail in &logs {
                push(tail, round, 1, 40_000);
            }
        }
        assert!(metrics.tail_bytes.get() <= 1_000_000);
        for reader in &readers {
            assert_eq!((found(reader, 0), found(reader, 3)), (None, Some(vec![3])));
        }
        let none = Tails::new(0, ReadMetrics::default());
        let tail = Tail::new(&Arc::new(none));
        let reader = TailReader::new(&tail);
        push(&tail, 0, 1, 1);
        assert_eq!(found(&reader, 0), None, "without room nothing is kept");
    }
}
