//! Readers of streams: from where to where, which messages, and what they cost.

use std::sync::Arc;
use std::time::Duration;

use weir_core::catalog::Object;
use weir_core::core::Options;
use weir_core::definition::{Definition, Kind, Retention};
use weir_core::key::Publisher;
use weir_core::keyspace::record::RecordKind;
use weir_core::metrics::Metrics;
use weir_core::queue::ConsumerId;
use weir_core::stream::{ReadBatch, ReadLimits, ReadOptions, Start, StreamReader};
use weir_core::{Core, Error};
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_storage::{CommitFault, FaultRates, FaultStore, Meter, MeteredStore, Outcome, SharedStore};
use weir_topic::TopicFilter;

use crate::support::{definition, memory, message, open, publish, read, reader};

fn until(start: Start, until: Start) -> ReadOptions {
    ReadOptions { start, until: Some(until), ..ReadOptions::default() }
}

fn payload(batch: &ReadBatch) -> impl Iterator<Item = String> {
    batch.records.iter().map(|(_, record)| String::from_utf8(record.message.payload.to_vec()).unwrap())
}

/// All that a reader gives until it ends.
async fn read_to_end(reader: &mut StreamReader) -> Vec<String> {
    let mut payloads = Vec::new();
    while !reader.is_ended() {
        payloads.extend(payload(&reader.next().await.unwrap()));
    }
    payloads
}

/// Whether `reader` has nothing to give within an hour.
async fn is_waiting(reader: &mut StreamReader) -> bool {
    tokio::time::timeout(Duration::from_secs(3600), reader.next()).await.is_err()
}

/// A core with the stream `s` of the topics `a/+`.
async fn open_stream(shards: u8) -> (Core, Arc<Object>, Clock) {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Stream, "s", "a/+", shards)]).await.unwrap();
    let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
    (core, stream, clock)
}

/// Publishes what `numbers` say, one a second; when each was.
async fn publish_each_second(core: &Core, clock: Clock, numbers: std::ops::Range<u64>) -> Vec<Timestamp> {
    let mut times = Vec::new();
    for n in numbers {
        times.push(clock.wall());
        publish(core, clock, "a/b", &n.to_string()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    times
}

#[tokio::test(start_paused = true)]
async fn a_read_ends_where_it_is_told() {
    let (core, stream, clock) = open_stream(1).await;
    let times = publish_each_second(&core, clock, 0..20).await;
    let just_after = |n: usize| Start::Time(Timestamp::from_micros(times[n].as_micros() + 1));
    for (from, to, expected) in [
        (Start::Earliest, Start::Latest, 0..20),
        (Start::Earliest, Start::Earliest, 0..0),
        (Start::Latest, Start::Latest, 20..20),
        (Start::Earliest, Start::Offset(7), 0..7),
        (Start::Earliest, Start::Offset(0), 0..0),
        (Start::Offset(5), Start::Offset(6), 5..6),
        (Start::Offset(6), Start::Offset(5), 6..6),
        (Start::Earliest, Start::Time(times[4]), 0..4),
        (Start::Time(times[4]), Start::Time(times[9]), 4..9),
        (Start::Time(times[9]), Start::Time(times[4]), 9..9),
        (just_after(4), just_after(9), 5..10),
        (Start::Offset(18), just_after(19), 18..20),
        (Start::Earliest, Start::Time(Timestamp::default()), 0..0),
        (Start::Offsets(vec![(0, 3)]), Start::Offsets(vec![(0, 5)]), 3..5),
        (Start::Offsets(vec![(1, 3)]), Start::Offset(2), 0..2),
        (Start::Offsets(vec![(0, 99)]), Start::Latest, 20..20),
    ] {
        let name = format!("{from:?} to {to:?}");
        let mut reader = core.reader(&stream, &until(from, to)).await.unwrap();
        let read = tokio::time::timeout(Duration::from_secs(1), read_to_end(&mut reader)).await.expect(&name);
        let (start, end) = (expected.start, expected.end);
        assert_eq!(read, expected.map(|n: u64| n.to_string()).collect::<Vec<_>>(), "{name}");
        assert_eq!(reader.positions(), [(0, end.max(start))], "{name}");
        assert!(is_waiting(&mut reader).await, "{name}: nothing after the end");
    }
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn each_shard_ends_once_and_all_of_them_end_the_read() {
    let (core, stream, clock) = open_stream(4).await;
    for n in 0..100 {
        publish(&core, clock, &format!("a/{n}"), &n.to_string()).await.unwrap();
    }
    let mut reader = core.reader(&stream, &until(Start::Earliest, Start::Latest)).await.unwrap();
    publish(&core, clock, "a/later", "later").await.unwrap();
    let (mut read, mut ended) = (Vec::new(), Vec::new());
    while !reader.is_ended() {
        let batch = reader.next().await.unwrap();
        read.extend(payload(&batch));
        ended.extend(batch.ended.then_some(batch.log.shard));
    }
    read.sort_unstable_by_key(|text| text.parse::<u64>().unwrap());
    assert_eq!(read, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
    ended.sort_unstable();
    assert_eq!(ended, [0, 1, 2, 3]);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_place_to_come_is_waited_for() {
    let (core, stream, clock) = open_stream(1).await;
    publish_each_second(&core, clock, 0..3).await;
    let at = clock.wall().saturating_add(Duration::from_secs(10));
    let mut by_time = core.reader(&stream, &until(Start::Earliest, Start::Time(at))).await.unwrap();
    let mut by_offset = core.reader(&stream, &until(Start::Earliest, Start::Offset(5))).await.unwrap();
    for reader in [&mut by_time, &mut by_offset] {
        assert_eq!(payload(&reader.next().await.unwrap()).collect::<Vec<_>>(), ["0", "1", "2"]);
    }
    publish_each_second(&core, clock, 3..4).await;
    assert_eq!(read_to_end(&mut by_time).await, ["3"]);
    let late = clock.wall().saturating_since(at);
    assert!(late < Duration::from_secs(1), "it ends when the time has come, not {late:?} later");
    publish_each_second(&core, clock, 4..7).await;
    assert_eq!(read_to_end(&mut by_offset).await, ["3", "4"]);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_when_the_time_is_over_is_still_read() {
    let (store, clock) = memory();
    let store = FaultStore::wrap(store, Seed::fixed(1));
    let faults = store.handle();
    let store: SharedStore = Arc::new(store);
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Stream, "s", "a/+", 1)]).await.unwrap();
    let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
    publish(&core, clock, "a/b", "0").await.unwrap();
    let at = clock.wall().saturating_add(Duration::from_secs(1));
    let mut reader = core.reader(&stream, &until(Start::Earliest, Start::Time(at))).await.unwrap();
    faults.fail_next_commit(CommitFault::Stalled(Duration::from_secs(5)));
    let (published, read) = tokio::join!(publish(&core, clock, "a/b", "1"), read_to_end(&mut reader));
    published.unwrap();
    assert_eq!(read, ["0", "1"], "the second was taken before the time, and stored after it");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_filter_leaves_out_moves_the_position_on() {
    let (core, stream, clock) = open_stream(1).await;
    for n in 0..50 {
        publish(&core, clock, if n % 10 == 0 { "a/ten" } else { "a/one" }, &n.to_string()).await.unwrap();
    }
    let filtered = |filter: &str| ReadOptions {
        filter: Some(TopicFilter::parse(filter.to_owned()).unwrap()),
        ..until(Start::Earliest, Start::Latest)
    };
    for (filter, expected) in [("a/ten", vec!["0", "10", "20", "30", "40"]), ("b/#", vec![])] {
        let mut reader = core.reader(&stream, &filtered(filter)).await.unwrap();
        assert_eq!(read_to_end(&mut reader).await, expected, "{filter}");
        assert_eq!(reader.positions(), [(0, 50)], "{filter}");
    }
    let live = ReadOptions { until: None, ..filtered("b/#") };
    let mut live = core.reader(&stream, &live).await.unwrap();
    let batch = live.next().await.unwrap();
    assert_eq!((batch.records.len(), batch.next, batch.ended), (0, 50, false), "live readers are told too");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_is_looked_for_in_its_shard_alone() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let key = Some("message.topic".into());
    core.apply(&[Definition { key, ..definition(Kind::Stream, "s", "a/+", 8) }]).await.unwrap();
    let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
    for n in 0..200 {
        publish(&core, clock, &format!("a/{}", n % 20), &n.to_string()).await.unwrap();
    }
    let mut shards = std::collections::BTreeSet::new();
    for key in 0..20 {
        let options =
            ReadOptions { key: Some(format!("a/{key}").into()), ..until(Start::Earliest, Start::Latest) };
        let mut reader = core.reader(&stream, &options).await.unwrap();
        let expected: Vec<String> = (0..10).map(|n| (n * 20 + key).to_string()).collect();
        assert_eq!(read_to_end(&mut reader).await, expected);
        let positions = reader.positions();
        assert_eq!(positions.len(), 1, "one shard");
        shards.insert(positions[0].0);
    }
    assert!(shards.len() > 2, "keys are spread: {shards:?}");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn shards_come_and_go_under_a_reader() {
    let (core, stream, clock) = open_stream(3).await;
    for n in 0..60 {
        publish(&core, clock, &format!("a/{n}"), &n.to_string()).await.unwrap();
    }
    let ends: Vec<u64> =
        core.describe(&stream).await.unwrap().iter().map(|report| report.extent.next).collect();
    let options = ReadOptions::default();
    let mut reader = core.idle_reader();
    assert!(!reader.is_ended() && is_waiting(&mut reader).await, "no shard, nothing to read");
    for shard in [0, 2] {
        reader.add(core.shard_reader(&stream, shard, ends[usize::from(shard)] - 1, &options).await.unwrap());
    }
    for _ in 0..2 {
        let batch = reader.next().await.unwrap();
        assert_eq!((batch.records.len(), batch.next), (1, ends[usize::from(batch.log.shard)]));
    }
    assert!(is_waiting(&mut reader).await);
    assert_eq!(reader.remove(2), Some(ends[2]));
    assert_eq!(reader.remove(2), None);
    reader.add(core.shard_reader(&stream, 1, 0, &options).await.unwrap());
    assert_eq!(reader.next().await.unwrap().log.shard, 1);
    // The others go on, and what is taken away gives nothing more.
    for n in 0..20 {
        publish(&core, clock, &format!("a/{n}"), "again").await.unwrap();
    }
    let mut more = 0;
    while !is_waiting(&mut reader).await {
        more += 1;
    }
    assert_eq!(reader.positions().iter().map(|(shard, _)| *shard).collect::<Vec<_>>(), [0, 1]);
    assert!(more >= 2);
    assert!(core.shard_reader(&stream, 3, 0, &options).await.is_err(), "there is no such shard");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_behind_the_end_of_a_deleted_stream_is_told() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let definition = Definition { delete_data: true, ..definition(Kind::Stream, "s", "a/+", 1) };
    core.apply(&[definition]).await.unwrap();
    let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
    for _ in 0..20 {
        publish(&core, clock, "a/b", &"x".repeat(100_000)).await.unwrap();
    }
    let mut reader = reader(&core, &stream, Start::Earliest).await;
    reader.next().await.unwrap();
    core.apply(&[]).await.unwrap();
    let told = async {
        loop {
            if let Err(error) = reader.next().await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(60), told).await.expect("an end");
    assert!(matches!(error, Error::Closed), "{error}");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_cut_while_it_is_read_is_no_damage() {
    for seed in 0..20 {
        let (store, clock) = memory();
        let store = FaultStore::wrap(store, Seed::fixed(seed));
        let faults = store.handle();
        let core = open(&(Arc::new(store) as SharedStore), clock, 1).await;
        core.apply(&[definition(Kind::Stream, "s", "a/+", 1)]).await.unwrap();
        let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
        // Their payloads are apart from them.
        for _ in 0..6 {
            publish(&core, clock, "a/b", &"x".repeat(100_000)).await.unwrap();
        }
        let slow_max = Duration::from_millis(20);
        faults.set_rates(FaultRates { read_slow: 1000, slow_max, ..FaultRates::NONE });
        let mut reader = reader(&core, &stream, Start::Earliest).await;
        let cut = async {
            tokio::time::sleep(Duration::from_millis(2 * seed)).await;
            core.trim(&stream, &Start::Latest, None, false).await.unwrap();
            publish(&core, clock, "a/b", "last").await.unwrap();
        };
        let read = async { while reader.next().await.expect("nothing is damaged").next < 7 {} };
        tokio::join!(cut, read);
        core.close().await;
    }
}

/// A core over a store whose cost is counted.
struct Metered {
    core: Core,
    clock: Clock,
    meter: Arc<Meter>,
    metrics: Metrics,
    stream: Arc<Object>,
}

impl Metered {
    async fn open(reading: ReadLimits) -> Self {
        let (store, clock) = memory();
        let meter = Arc::new(Meter::new(RecordKind::ALL.len(), RecordKind::index_of));
        let store: SharedStore = Arc::new(MeteredStore::new(store, Arc::clone(&meter)));
        let (metrics, options) = (Metrics::default(), Options { reading, ..Options::default() });
        let core = Core::open_with(store, clock, &Seed::fixed(1), metrics.clone(), options).await.unwrap();
        core.apply(&[definition(Kind::Stream, "s", "a/+", 1)]).await.unwrap();
        let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
        Self { core, clock, meter, metrics, stream }
    }

    async fn publish(&self, count: usize, size: usize) {
        let message = message(self.clock, "a/b", &"x".repeat(size));
        let targets = self.core.targets(&message.topic);
        let mut receipts = Vec::new();
        for _ in 0..count {
            receipts.push(self.core.append(&targets, &message, &Publisher::default(), None).await.unwrap());
        }
        for receipt in receipts {
            assert!(receipt.settled().await.is_empty());
        }
    }

    fn reads(&self, kind: RecordKind) -> u64 {
        self.meter.cost(kind as usize).keys_read
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_is_found_by_one_entry_and_one_segment() {
    let metered = Metered::open(ReadLimits::default()).await;
    let mut times = Vec::new();
    for _ in 0..200 {
        times.push(metered.clock.wall());
        // All of the same time, over two segments.
        metered.publish(2, 60_000).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // Until nothing happens by itself.
    tokio::time::sleep(Duration::from_secs(10)).await;
    for (n, time) in times.iter().enumerate() {
        let kinds = [RecordKind::Segment, RecordKind::TimeIndex];
        let before = kinds.map(|kind| metered.reads(kind));
        let options = ReadOptions { start: Start::Time(*time), ..ReadOptions::default() };
        let reader = metered.core.reader(&metered.stream, &options).await.unwrap();
        assert_eq!(reader.positions(), [(0, 2 * n as u64)], "the first of those of that time");
        let cost = [0, 1].map(|kind| metered.reads(kinds[kind]) - before[kind]);
        assert!(cost.iter().all(|reads| *reads <= 1), "{cost:?}");
    }
    metered.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_readers_at_the_end_do_not_read_the_store() {
    const READERS: usize = 1_000;
    let metered = Metered::open(ReadLimits::default()).await;
    metered.publish(100, 100).await;
    let (core, stream) = (&metered.core, &metered.stream);
    let mut readers = Vec::new();
    for _ in 0..READERS {
        readers.push(reader(core, stream, Start::Latest).await);
    }
    let before = metered.reads(RecordKind::Segment);
    for round in 0..3 {
        metered.publish(10, 100).await;
        for reader in &mut readers {
            assert_eq!(read(reader, 10).await.len(), 10, "round {round}");
        }
    }
    assert_eq!(metered.reads(RecordKind::Segment), before);
    assert!(metered.metrics.reading.tail_hits.get() >= 3 * READERS as u64);
    assert_eq!(metered.metrics.reading.tail_misses.get(), 0);
    // One that reads all of it from the beginning takes nothing away from the others.
    let held = metered.metrics.reading.tail_bytes.get();
    assert!(held > 0);
    assert_eq!(read(&mut reader(core, stream, Start::Earliest).await, 130).await.len(), 130);
    assert_eq!(metered.metrics.reading.tail_bytes.get(), held);
    readers.clear();
    assert_eq!(metered.metrics.reading.tail_bytes.get(), 0, "what nobody reads is not kept");
    metered.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn memory_and_store_give_the_same_records() {
    let (core, stream, clock) = open_stream(1).await;
    let mut live = reader(&core, &stream, Start::Latest).await;
    let mut full = message(clock, "a/b", "full");
    full.retain = true;
    full.expires_at = Some(clock.wall().saturating_add(Duration::from_secs(60)));
    full.properties.user = vec![("k".into(), "v".into())];
    full.properties.content_type = Some("text/plain".into());
    let large = message(clock, "a/large", &"x".repeat(200_000));
    for message in [full, message(clock, "a/b", ""), large] {
        let targets = core.targets(&message.topic);
        let receipt = core.append(&targets, &message, &Publisher::default(), None).await.unwrap();
        assert!(receipt.settled().await.is_empty());
    }
    let (mut from_memory, mut from_store) = (Vec::new(), Vec::new());
    while from_memory.len() < 3 {
        from_memory.extend(live.next().await.unwrap().records);
    }
    drop(live);
    let mut history = reader(&core, &stream, Start::Earliest).await;
    while from_store.len() < 3 {
        from_store.extend(history.next().await.unwrap().records);
    }
    assert!(from_memory == from_store);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn readers_that_have_stalled_leave_others_whole_pages() {
    const STALLED: usize = 100;
    const MESSAGES: usize = 200;
    let metered = Metered::open(ReadLimits::default()).await;
    metered.publish(MESSAGES, 60_000).await;
    let (core, stream, metrics) = (&metered.core, &metered.stream, &metered.metrics.reading);
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let mut reader = reader(core, stream, Start::Earliest).await;
        // As for a client that takes nothing: some batches are on the way to it, then nobody asks any more.
        let mut batches = Vec::new();
        while batches.len() < 4
            && let Ok(batch) = tokio::time::timeout(Duration::from_secs(1), reader.next()).await
        {
            batches.push(batch.unwrap());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        stalled.push((reader, batches));
    }
    assert!(metrics.held_up.get() >= 1, "so many that they are bounded");
    let held = metrics.bytes.get();
    let before = metrics.tail_misses.get();
    let mut running = reader(core, stream, Start::Earliest).await;
    assert_eq!(read(&mut running, MESSAGES).await.len(), MESSAGES);
    let reads = metrics.tail_misses.get() - before;
    // A page has four messages, or five.
    assert!(reads <= MESSAGES as u64 / 4 + 1, "{reads} reads while others hold {held} bytes");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_read_ahead_is_given_back_while_others_go_without() {
    const PAGES: u64 = 8;
    let limits = ReadLimits { read_bytes: PAGES * 256 * 1024, ..ReadLimits::default() };
    let metered = Metered::open(limits).await;
    metered.publish(40, 60_000).await;
    let (core, stream, metrics) = (&metered.core, &metered.stream, &metered.metrics.reading);
    let mut stalled = reader(core, stream, Start::Earliest).await;
    let batch = stalled.next().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let alone = metrics.bytes.get();
    assert!(stalled.give_back(), "it may be asked for later");
    assert_eq!(metrics.bytes.get(), alone, "nobody goes without");
    let mut other = reader(core, stream, Start::Earliest).await;
    let mut others = vec![other.next().await.unwrap()];
    while let Ok(batch) = tokio::time::timeout(Duration::from_secs(1), other.next()).await {
        others.push(batch.unwrap());
    }
    let full = metrics.bytes.get();
    assert!(!stalled.give_back() && !stalled.give_back(), "nothing is left");
    assert_eq!(metrics.given_back.get(), 1);
    assert!(metrics.bytes.get() <= full - 250_000, "{} of {full}", metrics.bytes.get());
    drop((other, others));
    let mut next = batch.next;
    drop(batch);
    while next < 40 {
        let batch = stalled.next().await.unwrap();
        let offsets: Vec<u64> = batch.records.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, (next..batch.next).collect::<Vec<_>>(), "none is left out or comes again");
        next = batch.next;
    }
    assert!(is_waiting(&mut stalled).await);
    // At its end too, where it waits for more, what is ahead comes again.
    metered.publish(1, 10).await;
    assert_eq!(read(&mut stalled, 1).await, [(40, "x".repeat(10))]);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn slow_readers_share_a_budget_and_starve_nobody() {
    const PAGES: u64 = 4;
    const SLOW: usize = 10;
    let limits = ReadLimits { read_bytes: PAGES * 256 * 1024, ..ReadLimits::default() };
    let metered = Metered::open(limits).await;
    metered.publish(60, 60_000).await;
    let (core, stream, metrics) = (&metered.core, &metered.stream, &metered.metrics.reading);
    // Each takes a batch, keeps it and asks for no more.
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        let mut reader = reader(core, stream, Start::Earliest).await;
        let batch = reader.next().await.unwrap();
        assert!(!batch.records.is_empty());
        slow.push((reader, batch));
    }
    // What was read ahead is there in the end.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let held = u64::try_from(metrics.bytes.get()).unwrap();
    let most = limits.read_bytes + 300_000 + 2 * 70_000 * SLOW as u64;
    assert!(held >= limits.read_bytes / 2 && held <= most, "{held} bytes of {}", limits.read_bytes);
    assert!(metrics.held_up.get() >= 1, "somebody did not read ahead");
    let mut quick = reader(core, stream, Start::Earliest).await;
    assert_eq!(read(&mut quick, 60).await.len(), 60, "one that takes what it gets is not held up");
    // And those that begin to take go on.
    let (mut reader, batch) = slow.pop().unwrap();
    let first = batch.records.len();
    drop(batch);
    assert_eq!(read(&mut reader, 60 - first).await.len(), 60 - first);
    drop((reader, quick, slow));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(metrics.bytes.get(), 0);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn slow_readers_at_the_end_share_the_budget_too() {
    const SLOW: u64 = 10;
    let limits = ReadLimits { read_bytes: 1024 * 1024, ..ReadLimits::default() };
    let metered = Metered::open(limits).await;
    let (core, stream, metrics) = (&metered.core, &metered.stream, &metered.metrics.reading);
    let mut readers = Vec::new();
    for _ in 0..SLOW {
        readers.push(reader(core, stream, Start::Latest).await);
    }
    metered.publish(60, 60_000).await;
    let mut slow = Vec::new();
    for mut reader in readers {
        let batch = reader.next().await.unwrap();
        let bytes: u64 = batch.records.iter().map(|(_, record)| record.message.size() as u64).sum();
        slow.push((reader, batch, bytes));
    }
    // Each has its batch, whatever the budget is; what was read ahead is within it.
    let given: u64 = slow.iter().map(|(_, _, bytes)| bytes).sum();
    let held = u64::try_from(metrics.bytes.get()).unwrap();
    assert!(held >= given && held <= given + limits.read_bytes, "{held} bytes, {given} given out");
    assert!(metrics.held_up.get() >= 1, "somebody did not read ahead");
    let (mut reader, batch, _) = slow.pop().unwrap();
    let first = batch.records.len();
    drop(batch);
    assert_eq!(read(&mut reader, 60 - first).await.len(), 60 - first);
    drop((reader, slow));
    assert_eq!(metrics.bytes.get(), 0);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn how_long_a_group_is_behind_is_read_once_for_a_place_and_without_payloads() {
    let metered = Metered::open(ReadLimits::default()).await;
    let (core, stream) = (&metered.core, &metered.stream);
    let (events, _told) = tokio::sync::mpsc::channel(4);
    let join = core.groups().join(stream, "g", ConsumerId(1), "c", &Start::Earliest, events);
    join.await.unwrap();
    metered.publish(2, 200_000).await;
    let before = metered.reads(RecordKind::LogBlob);
    tokio::time::sleep(Duration::from_secs(25)).await;
    let segments = metered.reads(RecordKind::Segment);
    assert!(segments > 0, "it was measured");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(metered.reads(RecordKind::Segment), segments);
    assert_eq!(metered.reads(RecordKind::LogBlob), before);
    core.close().await;
}

/// Reads and writes of the store for `rounds` messages of each of `streams` streams, one each second, once all is under
/// way: range reads and keys read, transactions, keys and ranges cleared.
async fn cost_of_streams(streams: u64, retention: Retention, rounds: u64) -> [u64; 4] {
    let (store, clock) = memory();
    let meter = Arc::new(Meter::new(RecordKind::ALL.len(), RecordKind::index_of));
    let store: SharedStore = Arc::new(MeteredStore::new(store, Arc::clone(&meter)));
    let core = open(&store, clock, 1).await;
    let definitions: Vec<Definition> = (0..streams)
        .map(|n| {
            let stream = definition(Kind::Stream, &format!("s{n}"), &format!("a/{n}"), 1);
            Definition { retention, ..stream }
        })
        .collect();
    core.apply(&definitions).await.unwrap();
    let round = async || {
        for n in 0..streams {
            publish(&core, clock, &format!("a/{n}"), "x").await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let cost = || {
        let costs: Vec<_> = RecordKind::ALL.iter().map(|kind| meter.cost(*kind as usize)).collect();
        [
            costs.iter().map(|cost| cost.keys_read).sum(),
            meter.transactions(Outcome::Committed),
            costs.iter().map(|cost| cost.keys_written).sum(),
            costs.iter().map(|cost| cost.ranges_cleared).sum(),
        ]
    };
    for _ in 0..100 {
        round().await;
    }
    let before = cost();
    for _ in 0..rounds {
        round().await;
    }
    let after = cost();
    core.close().await;
    [0, 1, 2, 3].map(|n| after[n] - before[n])
}

#[tokio::test(start_paused = true)]
async fn retention_of_many_quiet_streams_costs_next_to_nothing() {
    const STREAMS: u64 = 20;
    const ROUNDS: u64 = 300;
    let messages = STREAMS * ROUNDS;
    for retention in [
        Retention { max_messages: 10, ..Retention::default() },
        Retention { max_bytes: 2_000, ..Retention::default() },
        Retention { max_age_ms: 60_000, ..Retention::default() },
        Retention { max_age_ms: 3_600_000, max_bytes: 1 << 30, max_messages: 1 << 30 },
    ] {
        let [read, transactions, written, cleared] = cost_of_streams(STREAMS, retention, ROUNDS).await;
        let cost = format!("{retention:?}: {read} {transactions} {written} {cleared} for {messages}");
        // The owner record of each shard is read each second, and an entry of the index once at most; a message is a
        // segment, an entry and a state.
        assert!(read <= 2 * messages, "{cost}");
        assert!(transactions <= messages + messages / 100, "{cost}");
        assert!(written <= 3 * messages + messages / 100, "{cost}");
        assert!(cleared <= messages, "{cost}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_takes_long_gets_a_few_messages_of_each_shard_in_turn() {
    let (core, stream, clock) = open_stream(2).await;
    for n in 0..100 {
        publish(&core, clock, &format!("a/{n}"), &n.to_string()).await.unwrap();
    }
    let mut reader = core.reader(&stream, &until(Start::Earliest, Start::Latest)).await.unwrap();
    reader.limit_turns(5);
    let (mut read, mut shards) = (Vec::new(), Vec::new());
    while !reader.is_ended() {
        let batch = reader.next().await.unwrap();
        assert!(batch.records.len() <= 5);
        shards.push(batch.log.shard);
        read.extend(payload(&batch).map(|text| text.parse::<u32>().unwrap()));
    }
    assert_ne!(shards[0], shards[1]);
    assert_ne!(shards[2], shards[3]);
    read.sort_unstable();
    assert_eq!(read, (0..100).collect::<Vec<_>>());
    core.close().await;
}
