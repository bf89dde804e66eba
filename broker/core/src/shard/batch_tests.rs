//! However much waits, a batch stays well below what the store takes, and the next ones write the rest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_storage::limits::TRANSACTION_BYTES_MAX;

use super::batch::{Batch, build};
use super::log::{IndexPlace, Listed, Log, Trim};
use super::logs::{Logs, key_of};
use super::mutations::Mutation;
use super::{Extent, PendingAppend};
use crate::catalog::Object;
use crate::controls::Wishes;
use crate::definition::tests::queue;
use crate::keyspace::catalog::Origin;
use crate::keyspace::log_state::LogState;
use crate::keyspace::owner::Epoch;
use crate::keyspace::queue::{Aside, Attempts};
use crate::keyspace::segment::{self, Record, RecordKey};
use crate::keyspace::{LogId, PublishId, VirtualShard, aside, tag, time_index};
use crate::message::tests::full_message;
use crate::metrics::Metrics;
use crate::queue::{QueueShard, Settings, StoredQueue};
use crate::stream::{ReadLimits, ReadMemory, Tail};

/// Messages of a log, and rows.
const MANY: u64 = 12_000;

fn log(shard: u8, stored: StoredQueue) -> Log {
    let id = LogId { vs: VirtualShard(0), object: 1, shard, class: 0 };
    let state = LogState { next: stored.next, ..LogState::default() };
    let shard = QueueShard::restore(id, stored, Settings::default(), Seed::fixed(1), Metrics::default());
    Log {
        id,
        object: Arc::new(Object {
            id: 1,
            paused: false,
            generation: 1,
            origin: Origin::Manifest,
            definition: queue("q"),
            filter: None,
            key: None,
            logs: vec![id],
        }),
        load: 0,
        state,
        extent: tokio::sync::watch::Sender::new(Extent { start: 0, next: state.next }),
        tail: Tail::new(&ReadMemory::new(ReadLimits::default(), &Metrics::default()).tails),
        queue: Some(shard),
        rows: None,
        stats: None,
        trims: Vec::new(),
        pending: VecDeque::new(),
        positions: VecDeque::new(),
        repeats: super::repeats::Repeats::default(),
        delays: super::delays::Delays::default(),
        refilling: false,
        refill_failed: false,
        reading_asides: false,
        sweeping: false,
        trim: None,
        trimming: false,
        maintain_at: None,
        first: IndexPlace::default(),
        uncut: 0,
        horizon: None,
        clears_next: false,
        appended: Vec::new(),
        listed: Listed::default(),
    }
}

fn stored(attempts: Attempts, floor: u64) -> StoredQueue {
    let mut stored = StoredQueue { next: MANY, ..StoredQueue::default() };
    stored.counters.floor = floor;
    stored.counters.bytes = 7 * MANY;
    stored.attempts = (0..MANY).map(|offset| (offset, attempts)).collect();
    stored
}

/// The next batch, which is committed as far as `logs` know.
fn next(logs: &mut Logs) -> Batch {
    let batch = build(logs, [1; 16], Epoch(1), Timestamp::from_micros(1));
    let size = batch.mutations.size;
    assert!(size < TRANSACTION_BYTES_MAX * 3 / 4, "{size} bytes in one batch");
    for change in &batch.changes {
        if let Some(log) = logs.get_mut(key_of(&change.id)) {
            log.state = change.state;
            log.queue.iter_mut().for_each(QueueShard::written);
        }
    }
    batch
}

fn pending(log: &Log, n: u64) -> PendingAppend {
    let delay = if n.is_multiple_of(2) { Duration::ZERO } else { Duration::from_secs(60) };
    let message = crate::message::Message { payload: bytes::Bytes::new(), ..full_message() };
    PendingAppend {
        object: Arc::clone(&log.object),
        log: log.id,
        record: Arc::new(Record {
            message,
            key: RecordKey::None,
            blob_len: None,
            span: tracing::Span::none(),
        }),
        publish: Some((PublishId(u128::from(n).to_be_bytes()), false)),
        wishes: Wishes { delay, ..Wishes::default() },
        is_foreign: false,
        moved: None,
        reply: None,
        permit: None,
    }
}

#[test]
fn small_messages_whose_rows_are_larger_than_they_are_go_into_several_batches() {
    let mut logs = Logs::default();
    let mut log = log(0, StoredQueue::default());
    log.pending = (0..MANY * 2).map(|n| pending(&log, n)).collect();
    let key = key_of(&log.id);
    logs.insert(log);
    logs.list(key);
    let (mut records, mut delayed) = (0, 0);
    while logs.has_writable() {
        let batch = next(&mut logs);
        records += batch.records;
        delayed += batch.changes.iter().map(|change| change.beside.0).sum::<i64>();
    }
    assert_eq!((records, delayed), (MANY, i64::try_from(MANY).unwrap()));
}

#[test]
fn rows_of_attempts_and_of_messages_aside_go_into_several_batches() {
    let mut logs = Logs::default();
    let aside = Aside { cost: 7, blob: true, published_at: Timestamp::default(), expires_at: None };
    for shard in 0..4 {
        let is_aside = shard < 2;
        let attempts = Attempts { failed: 1, aside: is_aside.then_some(aside), ..Attempts::default() };
        let mut log = log(shard, stored(attempts, if is_aside { MANY } else { 0 }));
        let queue = log.queue.as_mut().unwrap();
        assert_eq!(queue.purge_below(MANY), (MANY, false));
        let key = key_of(&log.id);
        logs.insert(log);
        logs.list(key);
    }
    let (mut cleared, mut ends) = ([0; 4], [0; 4]);
    while logs.has_dirty() {
        let batch = next(&mut logs);
        for mutation in &*batch.mutations {
            let Mutation::Clear(key) = mutation else { continue };
            for shard in 0..4 {
                let log = logs.get((1, shard, 0)).unwrap().id;
                let (begin, end) = aside::range_from(&log, 0);
                cleared[usize::from(shard)] += u64::from(begin <= *key && *key < end);
                ends[usize::from(shard)] +=
                    u64::from(Attempts::key(&log, 0) <= *key && *key <= Attempts::key(&log, u64::MAX));
            }
        }
        for change in batch.changes.iter().filter(|change| change.id.shard < 2) {
            let floor = change.queue.as_ref().unwrap().floor;
            let cleared = cleared[usize::from(change.id.shard)];
            assert_eq!(floor.purged, cleared, "an end counts with the batch that clears its row");
            assert_eq!(floor.bytes, (MANY - cleared) * 7);
        }
    }
    assert_eq!((cleared, ends), ([MANY, MANY, 0, 0], [MANY; 4]));
}

#[test]
fn a_cut_begins_with_the_first_segment_there_is() {
    let mut logs = Logs::default();
    let mut log = log(0, StoredQueue { next: 900, ..StoredQueue::default() });
    let place = |n| IndexPlace { first_ts: Timestamp::from_micros(n), base: n };
    log.queue.as_mut().unwrap().purge_below(900);
    log.state.next = 900;
    log.trim = Some(Trim {
        start: 900,
        from: place(500),
        base: 800,
        first_ts: place(800).first_ts,
        bytes_trimmed: 1,
        is_partial: false,
    });
    let (id, key) = (log.id, key_of(&log.id));
    logs.insert(log);
    logs.list(key);
    let batch = next(&mut logs);
    let cleared = |tag: u8| {
        let ranges = batch.mutations.iter().filter_map(|mutation| match mutation {
            Mutation::ClearRange(begin, end) if begin[0] == tag => Some((begin.clone(), end.clone())),
            _ => None,
        });
        ranges.collect::<Vec<_>>()
    };
    assert_eq!(cleared(tag::SEGMENT), [(segment::key(&id, 500), segment::key(&id, 800))]);
    let index = |n| time_index::key(&id, place(n).first_ts, n);
    assert_eq!(cleared(tag::TIME_INDEX), [(index(500), index(800))]);
}

#[test]
fn many_batches_are_looked_at_for_retention_at_once() {
    let mut log = log(0, StoredQueue::default());
    let now = Clock::system().now();
    let due = |log: &Log| log.maintain_at.is_some_and(|at| at <= now);
    for _ in 0..255 {
        log.batch_stored(true, None, now);
        log.batch_stored(false, None, now);
    }
    assert!(!due(&log));
    log.batch_stored(true, None, now);
    assert!(due(&log));
}
