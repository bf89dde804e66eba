//! Streams of which a part cannot be read any more: what readers are told, and how to get past it.

use std::sync::Arc;
use std::time::Duration;

use weir_core::catalog::Object;
use weir_core::core::Options;
use weir_core::definition::{Definition, Kind};
use weir_core::key::Publisher;
use weir_core::keyspace::{LogId, last_value, log_blob, segment, tag};
use weir_core::metrics::Metrics;
use weir_core::stream::{Damage, ReadOptions, Start, StreamReader};
use weir_core::{Core, Error};
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_storage::{Isolation, RangeQuery, SharedStore};

use crate::support::{definition, memory, message, publish, reader};

struct Stream {
    store: SharedStore,
    core: Core,
    clock: Clock,
    metrics: Metrics,
    stream: Arc<Object>,
}

impl Stream {
    async fn open(last_value: bool) -> Self {
        let (store, clock) = memory();
        let metrics = Metrics::default();
        let seed = Seed::fixed(1);
        let core = Core::open_with(Arc::clone(&store), clock, &seed, metrics.clone(), Options::default());
        let core = core.await.unwrap();
        let key = last_value.then(|| "message.topic".into());
        core.apply(&[Definition { last_value, key, ..definition(Kind::Stream, "s", "a/+", 1) }])
            .await
            .unwrap();
        let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
        Self { store, core, clock, metrics, stream }
    }

    fn log(&self) -> LogId {
        self.stream.logs[0]
    }

    /// Ten messages in one segment, and when they were published.
    async fn publish_segment(&self) -> Timestamp {
        let message = message(self.clock, "a/b", "x");
        let targets = self.core.targets(&message.topic);
        let mut receipts = Vec::new();
        for _ in 0..10 {
            receipts.push(self.core.append(&targets, &message, &Publisher::default(), None).await.unwrap());
        }
        for receipt in receipts {
            assert!(receipt.settled().await.is_empty());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        message.published_at
    }

    async fn bases(&self) -> Vec<u64> {
        let (begin, end) = self.log().range(tag::SEGMENT);
        let page =
            self.store.begin().get_range(RangeQuery::new(begin, end), Isolation::Snapshot).await.unwrap();
        page.pairs.iter().map(|(key, _)| segment::base_of_key(key).unwrap()).collect()
    }

    async fn damage(&self, key: &[u8]) {
        let mut tx = self.store.begin();
        let value = tx.get(key, Isolation::Snapshot).await.unwrap().expect("something to damage");
        let half = value.len() / 2;
        let mut value = value.to_vec();
        value[half] ^= 1;
        value.truncate(value.len() - 1);
        tx.set(key, &value);
        tx.commit().await.unwrap();
    }
}

/// The offsets that `reader` gives until it has an error, and the error.
async fn read_to_error(reader: &mut StreamReader) -> (Vec<u64>, Box<Damage>) {
    let mut offsets = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_secs(60), reader.next()).await.expect("something") {
            Ok(batch) => offsets.extend(batch.records.iter().map(|(offset, _)| *offset)),
            Err(Error::Damaged(damage)) => return (offsets, damage),
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_segment_is_told_once_with_the_way_past_it() {
    let stream = Stream::open(false).await;
    for _ in 0..4 {
        stream.publish_segment().await;
    }
    let bases = stream.bases().await;
    let [_, second, third, _] = bases[..] else { panic!("four segments: {bases:?}") };
    stream.damage(&segment::key(&stream.log(), second)).await;
    for _ in 0..3 {
        let mut reader = reader(&stream.core, &stream.stream, Start::Offset(5)).await;
        let (read, damage) = read_to_error(&mut reader).await;
        assert!(read.is_empty() || read == (5..second).collect::<Vec<_>>(), "{read:?}");
        assert_eq!((damage.shard, damage.at, damage.next), (0, second, third));
        let text = Error::Damaged(damage).to_string();
        let (at, way) = (format!("at 0:{second} is"), format!("`weir stream trim s --before 0:{third}`"));
        assert!(text.contains(&at) && text.contains(&way), "{text}");
        // It tries again, and others come there too.
        read_to_error(&mut reader).await;
    }
    assert_eq!(stream.metrics.damaged.get(), 1);
    let way = Start::Offsets(vec![(0, third)]);
    stream.core.trim(&stream.stream, &way, None, false).await.unwrap();
    let mut reader = reader(&stream.core, &stream.stream, Start::Earliest).await;
    assert_eq!(reader.next().await.unwrap().records[0].0, third);
    stream.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_trimmed_within_a_damaged_segment() {
    let stream = Stream::open(false).await;
    let mut times = Vec::new();
    for _ in 0..4 {
        times.push(stream.publish_segment().await);
    }
    let bases = stream.bases().await;
    let (second, third) = (bases[1], bases[2]);
    stream.damage(&segment::key(&stream.log(), second)).await;
    // A time within it is where it begins.
    let later = Start::Time(Timestamp::from_micros(times[1].as_micros() + 1));
    let options = ReadOptions { start: later.clone(), ..ReadOptions::default() };
    let mut by_time = stream.core.reader(&stream.stream, &options).await.unwrap();
    assert_eq!(by_time.positions(), [(0, second)]);
    assert_eq!(read_to_error(&mut by_time).await.1.next, third);
    for (before, start) in
        [(later, second), (Start::Offset(second + 5), second + 5), (Start::Offset(third), third)]
    {
        let trimmed = stream.core.trim(&stream.stream, &before, None, false).await.unwrap();
        assert_eq!(trimmed[0].extent.start, start);
        let described = stream.core.describe(&stream.stream).await.unwrap();
        assert_eq!(described[0].extent.start, start);
    }
    assert_eq!(stream.bases().await, bases[2..], "what is below is gone");
    let mut reader = reader(&stream.core, &stream.stream, Start::Earliest).await;
    assert_eq!(reader.next().await.unwrap().records[0].0, third);
    stream.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_without_its_payload_is_damaged_alone() {
    let stream = Stream::open(false).await;
    publish(&stream.core, stream.clock, "a/b", "0").await.unwrap();
    publish(&stream.core, stream.clock, "a/b", &"x".repeat(200_000)).await.unwrap();
    publish(&stream.core, stream.clock, "a/b", "2").await.unwrap();
    let (begin, end) = log_blob::range(&stream.log(), 1, 2);
    let mut tx = stream.store.begin();
    tx.clear_range(&begin, &end);
    tx.commit().await.unwrap();
    let mut all = reader(&stream.core, &stream.stream, Start::Earliest).await;
    let (_, damage) = read_to_error(&mut all).await;
    assert_eq!((damage.at, damage.next), (1, 2));
    assert_eq!(
        crate::support::read(&mut reader(&stream.core, &stream.stream, Start::Offset(2)).await, 1)
            .await
            .len(),
        1
    );
    stream.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_row_of_a_compacted_stream_is_told_too() {
    let stream = Stream::open(true).await;
    for n in 0..3 {
        publish(&stream.core, stream.clock, &format!("a/{n}"), "x").await.unwrap();
    }
    stream.damage(&last_value::key(&stream.log(), 1)).await;
    let (_, damage) = read_to_error(&mut reader(&stream.core, &stream.stream, Start::Earliest).await).await;
    assert_eq!((damage.at, damage.next), (1, 2));
    assert_eq!(stream.metrics.damaged.get(), 1);
    stream.core.close().await;
}
