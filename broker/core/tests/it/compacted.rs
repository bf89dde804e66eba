//! Streams that keep only the newest message of each key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::{Definition, Kind, Retention};
use weir_core::key::Publisher;
use weir_core::keyspace::last_value::{self, Newest, Tombstone};
use weir_core::keyspace::log_state::LogState;
use weir_core::keyspace::{LogId, log_blob, tag};
use weir_core::metrics::Metrics;
use weir_core::shard::{LogReport, TOMBSTONE_KEPT};
use weir_core::stream::{ReadOptions, Start};
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{CommitFault, FaultHandle, FaultStore, Isolation, RangeQuery, SharedStore};

use crate::support::{definition, memory, message, open, publish, reader};

pub(crate) fn compacted(shards: u8) -> Definition {
    Definition { last_value: true, ..definition(Kind::Stream, "s", "a/#", shards) }
}

struct World {
    store: SharedStore,
    faults: FaultHandle,
    clock: Clock,
    metrics: Metrics,
    core: Core,
    stream: Arc<Object>,
}

impl World {
    async fn start(definition: Definition) -> Self {
        let (store, clock) = memory();
        let store = FaultStore::wrap(store, Seed::fixed(1));
        let (faults, store): (_, SharedStore) = (store.handle(), Arc::new(store));
        let metrics = Metrics::default();
        let core = Core::open(Arc::clone(&store), clock, &Seed::fixed(1), metrics.clone()).await.unwrap();
        core.apply(&[definition]).await.unwrap();
        let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
        Self { store, faults, clock, metrics, core, stream }
    }

    async fn publish(&self, topic: &str, payload: &str) {
        publish(&self.core, self.clock, topic, payload).await.unwrap();
    }

    /// All at once, so that they share batches.
    async fn publish_all(&self, messages: &[(&str, &str)]) {
        let all = messages.iter().map(|(topic, payload)| publish(&self.core, self.clock, topic, payload));
        for result in join_all(all).await {
            result.unwrap();
        }
    }

    async fn report(&self) -> LogReport {
        self.core.describe(&self.stream).await.unwrap().remove(0)
    }

    /// What a reader gets that begins at `start`, up to what is there now.
    async fn read(&self, start: Start) -> Vec<(u64, String, String)> {
        read(&self.core, &self.stream, &start).await
    }

    async fn payloads(&self, start: Start) -> Vec<String> {
        self.read(start).await.into_iter().map(|(_, _, payload)| payload).collect()
    }

    /// Ends the process without a word and starts another.
    async fn crash(&mut self) {
        self.core = open(&self.store, self.clock, 2).await;
        self.stream = self.core.catalog().view().find(Kind::Stream, "s").unwrap();
    }

    async fn check(&self) -> Vec<u64> {
        check_rows(&self.store, &self.stream.logs[0], true).await
    }

    async fn pass(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

/// What a reader of `stream` gets that begins at `start`, up to what is there now: offset, topic and payload.
pub(crate) async fn read(core: &Core, stream: &Arc<Object>, start: &Start) -> Vec<(u64, String, String)> {
    let options = ReadOptions { start: start.clone(), until: Some(Start::Latest), ..ReadOptions::default() };
    let mut reader = core.reader(stream, &options).await.unwrap();
    let mut all = Vec::new();
    while !reader.is_ended() {
        for (offset, record) in reader.next().await.unwrap().records {
            let payload = String::from_utf8(record.message.payload.to_vec()).unwrap();
            all.push((offset, record.message.topic.as_str().to_owned(), payload));
        }
    }
    all
}

async fn pairs(store: &SharedStore, (begin, end): (Vec<u8>, Vec<u8>)) -> Vec<(bytes::Bytes, bytes::Bytes)> {
    let query = RangeQuery::new(begin, end);
    store.begin().get_range(query, Isolation::Snapshot).await.unwrap().pairs
}

/// Whether rows, newest rows, tombstones, chunks and state of a log say the same; offsets of its rows.
/// `has_no_rubble`: no batch with large payloads has failed.
pub(crate) async fn check_rows(store: &SharedStore, log: &LogId, has_no_rubble: bool) -> Vec<u64> {
    let stored = store.begin().get(&LogState::key(log), Isolation::Snapshot).await.unwrap();
    let state = stored.map(|value| LogState::decode(value).unwrap()).unwrap_or_default();
    let (mut newest, mut tombstones, mut chunks) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    let (mut offsets, mut bytes) = (Vec::new(), 0);
    for (key, value) in pairs(store, log.range(tag::ROW)).await {
        let offset = last_value::offset_of_key(&key).unwrap();
        let len = value.len();
        let record = last_value::decode(value).unwrap();
        let row_bytes = last_value::row_bytes(&record, len);
        let is_tombstone = last_value::is_tombstone(&record);
        let has_blob = record.blob_len.is_some();
        if let Some(key) = record.key_bytes() {
            let newest_row = Newest { offset, bytes: row_bytes, has_blob, is_tombstone };
            let older = newest.insert(Newest::key(log, key), newest_row);
            assert_eq!(older, None, "two rows of one key");
            if is_tombstone {
                let key = bytes::Bytes::copy_from_slice(key);
                let tombstone = Tombstone { at: record.message.published_at, bytes: row_bytes, key };
                tombstones.insert(Tombstone::key(log, offset), tombstone);
            }
        }
        for chunk in 0..record.blob_len.unwrap_or(0).div_ceil(90_000) {
            chunks.insert(log_blob::key(log, offset, u16::try_from(chunk).unwrap()));
        }
        bytes += row_bytes;
        offsets.push(offset);
    }
    assert!(offsets.iter().all(|offset| (state.start..state.next).contains(offset)), "{state:?} {offsets:?}");
    assert_eq!((state.rows(), state.bytes()), (offsets.len() as u64, bytes), "{state:?}");
    let (found_tombstones, found_newest): (Vec<_>, Vec<_>) = {
        let (begin, end) = Tombstone::range(log);
        let all = pairs(store, log.range(tag::LAST_VALUE)).await;
        all.into_iter().partition(|(key, _)| *begin <= **key && **key < *end)
    };
    let found_newest: BTreeMap<_, _> =
        found_newest.into_iter().map(|(key, value)| (key.to_vec(), Newest::decode(value).unwrap())).collect();
    assert_eq!(found_newest, newest);
    let found_tombstones: BTreeMap<_, _> = found_tombstones
        .into_iter()
        .map(|(key, value)| (key.to_vec(), Tombstone::decode(value).unwrap()))
        .collect();
    assert_eq!(found_tombstones, tombstones);
    let found: BTreeSet<_> =
        pairs(store, log.range(tag::LOG_BLOB)).await.into_iter().map(|(key, _)| key.to_vec()).collect();
    assert!(found.is_superset(&chunks), "a payload has no chunks");
    assert!(!has_no_rubble || found == chunks, "chunks of messages that are gone");
    assert_eq!(pairs(store, log.range(tag::SEGMENT)).await.len(), 0);
    offsets
}

#[tokio::test(start_paused = true)]
async fn a_reader_gets_the_state_and_then_the_changes() {
    let world = World::start(compacted(1)).await;
    for (topic, payload) in [("a/1", "x"), ("a/2", "y"), ("a/1", "z"), ("a/3", "u"), ("a/3", "v")] {
        world.publish(topic, payload).await;
    }
    let state = [(1, "a/2", "y"), (2, "a/1", "z"), (4, "a/3", "v")];
    let state = state.map(|(offset, topic, payload)| (offset, topic.to_owned(), payload.to_owned()));
    assert_eq!(world.read(Start::Earliest).await, state);
    assert_eq!(world.read(Start::Offset(2)).await, state[1..], "offsets that are gone are skipped");
    assert_eq!(world.read(Start::Offset(3)).await, state[2..]);
    assert_eq!(world.check().await, [1, 2, 4]);
    let mut live = reader(&world.core, &world.stream, Start::Latest).await;
    world.publish("a/2", "w").await;
    assert_eq!(crate::support::read(&mut live, 1).await, [(5, "w".to_owned())]);
    let report = world.report().await;
    assert_eq!((report.messages, report.extent.next), (3, 6));
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn of_one_batch_only_the_newest_of_a_key_is_written() {
    let world = World::start(compacted(1)).await;
    world.publish("a/1", "before").await;
    let batches = world.metrics.batches.get();
    world.publish_all(&[("a/1", "1"), ("a/2", "2"), ("a/1", "3"), ("a/1", "4"), ("a/3", "5")]).await;
    assert!(world.metrics.batches.get() <= batches + 2, "they shared batches");
    assert_eq!(world.payloads(Start::Earliest).await, ["2", "4", "5"]);
    assert_eq!(world.check().await, [2, 4, 5]);
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn messages_without_a_key_are_kept_each() {
    let key = Some("message.userProperties['k']".to_owned());
    let mut world = World::start(Definition { key, ..compacted(1) }).await;
    for (n, key) in [(0, Some("x")), (1, None), (2, Some("x")), (3, None), (4, None)] {
        let payload = if n == 3 { String::new() } else { n.to_string() };
        let mut message = message(world.clock, "a/1", &payload);
        message.properties.user.extend(key.map(|key| ("k".into(), key.into())));
        let targets = world.core.targets(&message.topic);
        let receipt = world.core.append(&targets, &message, &Publisher::default(), None).await.unwrap();
        assert!(receipt.settled().await.is_empty());
    }
    assert_eq!(world.check().await, [1, 2, 3, 4], "an empty payload without a key removes nothing");
    world.crash().await;
    assert_eq!(world.payloads(Start::Earliest).await, ["1", "2", "", "4"]);
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_tombstone_is_seen_by_a_reader_that_was_away_and_then_goes() {
    let mut world = World::start(compacted(1)).await;
    for (topic, payload) in [("a/1", "x"), ("a/2", "y"), ("a/3", "z")] {
        world.publish(topic, payload).await;
    }
    let position = 3;
    world.publish("a/1", "").await;
    world.publish("a/9", "").await;
    world.pass(3600).await;
    world.publish("a/3", "").await;
    assert_eq!(world.check().await, [1, 3, 4, 5]);
    let away: Vec<(u64, String)> =
        world.read(Start::Offset(position)).await.into_iter().map(|(n, topic, _)| (n, topic)).collect();
    assert_eq!(away, [(3, "a/1".into()), (4, "a/9".into()), (5, "a/3".into())]);
    // In the life of another owner too.
    world.crash().await;
    world.publish("a/4", "u").await;
    world.pass(TOMBSTONE_KEPT.as_secs() - 3600 - 60).await;
    assert_eq!(world.check().await, [1, 3, 4, 5, 6], "not yet");
    world.pass(120).await;
    assert_eq!(world.check().await, [1, 5, 6], "those of the first hour are gone");
    world.pass(3600).await;
    assert_eq!(world.check().await, [1, 6]);
    assert_eq!(world.report().await.messages, 2);
    world.publish("a/1", "again").await;
    assert_eq!(world.payloads(Start::Earliest).await, ["y", "u", "again"]);
    world.check().await;
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn tombstones_go_after_a_restart_although_nobody_asks_for_the_stream() {
    let mut world = World::start(compacted(1)).await;
    world.publish("a/1", "x").await;
    world.publish("a/1", "").await;
    world.publish("a/2", "y").await;
    world.crash().await;
    world.core.take_up_streams(Duration::from_millis(50)).await.unwrap();
    world.pass(TOMBSTONE_KEPT.as_secs() + 5).await;
    assert_eq!(world.check().await, [2]);
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_busy_for_a_while_is_waited_for() {
    let world = World::start(compacted(1)).await;
    world.publish("a/1", "x").await;
    for _ in 0..15 {
        world.faults.fail_next_read(weir_storage::Error::Busy("x".into()));
    }
    world.publish("a/1", "y").await;
    assert_eq!(world.check().await, [1]);
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn many_tombstones_go_in_several_transactions() {
    let world = World::start(compacted(1)).await;
    let topics: Vec<String> = (0..2500).map(|n| format!("a/{n}")).collect();
    for payload in ["x", ""] {
        let messages: Vec<(&str, &str)> = topics.iter().map(|topic| (topic.as_str(), payload)).collect();
        world.publish_all(&messages).await;
    }
    world.publish("a/kept", "x").await;
    assert_eq!(world.check().await.len(), 2501);
    world.pass(TOMBSTONE_KEPT.as_secs() + 5).await;
    assert_eq!(world.check().await, [5000]);
    assert_eq!(world.metrics.tombstones_swept.get(), 2500);
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn small_messages_of_many_keys_go_into_several_transactions() {
    let world = World::start(compacted(1)).await;
    let topics: Vec<String> = (0..14_000).map(|n| format!("a/{n}")).collect();
    let messages: Vec<(&str, &str)> = topics.iter().map(|topic| (topic.as_str(), "")).collect();
    for _ in 0..2 {
        // All others are in line when this one is done. A transaction that were too large would refuse them.
        world.faults.fail_next_commit(CommitFault::Stalled(Duration::from_secs(1)));
        world.publish_all(&messages).await;
    }
    assert_eq!(world.check().await, (14_000..28_000).collect::<Vec<u64>>());
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn limits_remove_the_oldest_in_the_same_transaction() {
    let retention = Retention { max_messages: 3, ..Retention::default() };
    let world = World::start(Definition { retention, ..compacted(1) }).await;
    for n in 0..5 {
        world.publish(&format!("a/{n}"), "x").await;
        assert!(world.report().await.messages <= 3);
        world.check().await;
    }
    assert_eq!(world.check().await, [2, 3, 4]);
    world.publish("a/2", "again").await;
    assert_eq!(world.check().await, [3, 4, 5], "what is replaced makes room");
    world.publish("a/0", "again").await;
    assert_eq!(world.check().await, [4, 5, 6]);
    let many: Vec<String> = (10..30).map(|n| format!("a/{n}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|topic| (topic.as_str(), "y")).collect();
    world.publish_all(&many).await;
    assert_eq!(world.check().await, [24, 25, 26], "also of what is new");
    assert_eq!(world.report().await.extent.start, 24);
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_lower_limit_removes_in_pages_what_is_too_much() {
    let world = World::start(compacted(1)).await;
    let topics: Vec<String> = (0..3000).map(|n| format!("a/{n}")).collect();
    let messages: Vec<(&str, &str)> = topics.iter().map(|topic| (topic.as_str(), "x")).collect();
    world.publish_all(&messages).await;
    let bytes = world.report().await.bytes;
    let retention = Retention { max_bytes: bytes / 3, ..Retention::default() };
    world.core.apply(&[Definition { retention, ..compacted(1) }]).await.unwrap();
    world.pass(5).await;
    let rows = world.check().await;
    let report = world.report().await;
    assert!((bytes / 3 - 100..=bytes / 3).contains(&report.bytes), "{} bytes", report.bytes);
    assert_eq!(rows, (3000 - rows.len() as u64..3000).collect::<Vec<u64>>());
    assert_eq!(world.metrics.rows_dropped.get(), 3000 - rows.len() as u64);
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn old_messages_go_although_nobody_publishes() {
    let retention = Retention { max_age_ms: 3_600_000, ..Retention::default() };
    let mut world = World::start(Definition { retention, ..compacted(1) }).await;
    for n in 0..4 {
        world.publish(&format!("a/{}", n % 3), &n.to_string()).await;
        world.pass(600).await;
    }
    assert_eq!(world.check().await, [1, 2, 3]);
    world.pass(3600 - 3 * 600 + 5).await;
    assert_eq!(world.check().await, [2, 3]);
    world.crash().await;
    world.report().await;
    world.pass(600).await;
    assert_eq!(world.check().await, [3]);
    world.pass(600).await;
    assert_eq!(world.check().await, Vec::<u64>::new());
    let extent = world.report().await.extent;
    assert_eq!((extent.start, extent.next), (4, 4), "offsets are never given twice");
    world.publish("a/1", "new").await;
    assert_eq!(world.check().await, [4]);
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn payloads_stored_apart_go_with_their_message() {
    let mut world = World::start(compacted(1)).await;
    let large = "x".repeat(300_000);
    let larger = "y".repeat(200_000);
    world.publish("a/1", &large).await;
    world.publish("a/2", "small").await;
    assert_eq!(world.payloads(Start::Earliest).await, [large.clone(), "small".into()]);
    assert!(world.report().await.bytes > 300_000);
    world.publish_all(&[("a/1", &larger), ("a/2", &large), ("a/2", &larger)]).await;
    world.check().await;
    assert_eq!(world.payloads(Start::Earliest).await, [larger.clone(), larger.clone()]);
    world.crash().await;
    world.publish("a/1", "").await;
    world.check().await;
    let bytes = world.report().await.bytes;
    assert!((200_000..201_000).contains(&bytes), "{bytes}");
    let retention = Retention { max_messages: 1, ..Retention::default() };
    world.core.apply(&[Definition { retention, ..compacted(1) }]).await.unwrap();
    world.pass(5).await;
    assert_eq!(world.check().await.len(), 1);
    assert!(world.report().await.bytes < 100);
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn every_time_finds_its_place() {
    let world = World::start(compacted(1)).await;
    let mut times = Vec::new();
    for n in 0..40 {
        times.push(world.clock.wall());
        world.publish(&format!("a/{}", n % 7 * (n % 3)), &n.to_string()).await;
        world.pass(1).await;
    }
    let all = world.read(Start::Earliest).await;
    assert!(all.len() < 20);
    for (n, at) in times.iter().enumerate() {
        let expected: Vec<_> = all.iter().filter(|(offset, ..)| *offset >= n as u64).cloned().collect();
        assert_eq!(world.read(Start::Time(*at)).await, expected, "since message {n}");
    }
    assert_eq!(world.read(Start::Time(world.clock.wall())).await, []);
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_commit_of_unknown_outcome_replaces_once() {
    let faults_of_commit = [
        CommitFault::SettledCommitted,
        CommitFault::SettledLost,
        CommitFault::OpenLost,
        CommitFault::OpenCommittedLater(Duration::ZERO),
        CommitFault::OpenCommittedLater(Duration::from_millis(20)),
        CommitFault::OpenCommittedLater(Duration::from_secs(3)),
        CommitFault::Stalled(Duration::from_secs(8)),
    ];
    for fault in faults_of_commit {
        let retention = Retention { max_messages: 4, ..Retention::default() };
        let mut world = World::start(Definition { retention, ..compacted(1) }).await;
        for n in 0..4 {
            world.publish(&format!("a/{n}"), "old").await;
        }
        for _ in 0..3 {
            world.faults.fail_next_commit(fault.clone());
        }
        world.publish_all(&[("a/1", "1"), ("a/5", "2"), ("a/1", "3"), ("a/2", "")]).await;
        world.pass(10).await;
        world.faults.settle().await;
        assert_eq!(world.check().await, [3, 5, 6, 7], "{fault:?}");
        world.publish("a/1", "4").await;
        assert_eq!(world.check().await, [3, 5, 7, 8], "{fault:?}");
        world.crash().await;
        assert_eq!(world.payloads(Start::Earliest).await, ["old", "2", "", "4"], "{fault:?}");
        world.core.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_looked_up_is_refused_and_changes_nothing() {
    use weir_storage::Error as StoreError;
    let world = World::start(compacted(1)).await;
    world.publish("a/1", "x").await;
    world.faults.fail_next_read(StoreError::Busy("x".into()));
    world.publish("a/1", "y").await;
    world.faults.fail_next_read(StoreError::Unavailable("x".into()));
    publish(&world.core, world.clock, "a/1", "refused").await.unwrap_err();
    assert_eq!(world.payloads(Start::Earliest).await, ["y"]);
    world.publish("a/1", "z").await;
    assert_eq!(world.check().await, [2], "the offset of what was refused is given to the next");
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_row_keeps_nobody_from_publishing() {
    let world = World::start(Definition {
        retention: Retention { max_messages: 3, ..Retention::default() },
        ..compacted(1)
    })
    .await;
    let log = world.stream.logs[0];
    for n in 0..3 {
        world.publish(&format!("a/{n}"), "x").await;
    }
    let mut tx = world.store.begin();
    tx.set(&Newest::key(&log, b"a/1"), b"\x07");
    tx.set(&last_value::key(&log, 0), b"\x07");
    tx.commit().await.unwrap();
    world.publish("a/1", "y").await;
    world.publish("a/2", "z").await;
    assert_eq!(world.payloads(Start::Earliest).await, ["x", "y", "z"], "the older one could not be found");
    assert_eq!(world.metrics.damaged.get(), 2);
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_lost_the_shard_replaces_nothing() {
    let first = World::start(compacted(1)).await;
    first.publish("a/1", "a").await;
    let second = open(&first.store, first.clock, 2).await;
    publish(&second, first.clock, "a/1", "b").await.unwrap();
    publish(&first.core, first.clock, "a/1", "never").await.unwrap_err();
    assert_eq!(first.check().await, [1]);
    first.publish("a/1", "c").await;
    assert_eq!(first.check().await, [2]);
    assert_eq!(first.payloads(Start::Earliest).await, ["c"]);
    first.core.close().await;
    second.close().await;
}

#[tokio::test(start_paused = true)]
async fn deleted_with_its_messages_nothing_is_left() {
    let definition = Definition { delete_data: true, ..compacted(1) };
    let world = World::start(definition.clone()).await;
    world.publish_all(&[("a/1", "x"), ("a/2", ""), ("a/3", &"y".repeat(100_000))]).await;
    world.core.apply(&[]).await.unwrap();
    for table in [tag::ROW, tag::LAST_VALUE, tag::LOG_BLOB, tag::LOG_STATE] {
        assert_eq!(pairs(&world.store, world.stream.logs[0].range(table)).await, []);
    }
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_trim_removes_what_came_before_a_place_key_by_key_and_nothing_else() {
    let mut world = World::start(compacted(1)).await;
    for (n, topic) in ["a/1", "a/2", "a/1", "a/3", "a/2", "a/4"].into_iter().enumerate() {
        world.publish(topic, &n.to_string()).await;
    }
    world.publish("a/3", "").await;
    // 2, 4, 5 and the tombstone 6 are left.
    let trim = async |world: &World, before: Start, dry_run: bool| {
        let trimmed = world.core.trim(&world.stream, &before, None, dry_run).await.unwrap()[0];
        (trimmed.extent.start, trimmed.extent.next, trimmed.removed)
    };
    assert_eq!(trim(&world, Start::Offset(5), true).await, (5, 7, 2));
    assert_eq!(world.check().await, [2, 4, 5, 6], "it has changed nothing");
    // A commit that fails is repeated.
    world.faults.fail_next_commit(CommitFault::SettledLost);
    assert_eq!(trim(&world, Start::Offset(5), false).await, (5, 7, 2));
    assert_eq!(world.check().await, [5, 6]);
    assert_eq!(trim(&world, Start::Offset(3), false).await, (5, 7, 0), "that has gone already");
    // What has gone is no key any more; what comes has its place.
    world.publish("a/1", "again").await;
    world.crash().await;
    assert_eq!(world.payloads(Start::Earliest).await, ["5", "", "again"]);
    assert_eq!(trim(&world, Start::Latest, false).await, (8, 8, 3));
    assert_eq!(world.check().await, [0; 0]);
    assert_eq!(world.payloads(Start::Earliest).await, [""; 0]);
    world.publish("a/1", "new").await;
    assert_eq!(world.check().await, [8]);
}

#[tokio::test(start_paused = true)]
async fn a_trim_of_many_keys_takes_several_transactions_and_readers_go_on_behind_it() {
    let world = World::start(compacted(1)).await;
    let topics: Vec<String> = (0..5000).map(|n| format!("a/{n:0>200}")).collect();
    for topics in topics.chunks(500) {
        let messages: Vec<(&str, &str)> = topics.iter().map(|topic| (topic.as_str(), "x")).collect();
        world.publish_all(&messages).await;
    }
    let before = world.metrics.batches.get();
    let trimmed = world.core.trim(&world.stream, &Start::Offset(4990), None, false).await.unwrap()[0];
    assert_eq!((trimmed.extent.start, trimmed.removed), (4990, 4990));
    assert!(world.metrics.batches.get() > before + 1);
    assert_eq!(world.check().await, (4990..5000).collect::<Vec<u64>>());
    assert_eq!(world.read(Start::Earliest).await.len(), 10);
}
