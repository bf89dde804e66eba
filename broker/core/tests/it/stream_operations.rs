//! What people and pulling workers do to streams: trims, fetches, and what is seen of who reads.

use std::sync::Arc;
use std::time::Duration;

use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::Kind;
use weir_core::keyspace::record::RecordKind;
use weir_core::stream::{FETCH_BYTES_AT_ONCE, FETCH_BYTES_MAX, Fetch, Fetched, ReadOptions, Start};
use weir_env::clock::Clock;
use weir_storage::{CommitFault, FaultStore, Meter, MeteredStore, SharedStore};
use weir_topic::TopicFilter;

use crate::support::{definition, memory, open, publish, read, reader};

fn find(core: &Core) -> Arc<Object> {
    core.catalog().view().find(Kind::Stream, "s").unwrap()
}

/// A core with the stream `s` of the topics `a/+`.
async fn open_stream(store: &SharedStore, clock: Clock, shards: u8) -> (Core, Arc<Object>) {
    let core = open(store, clock, 1).await;
    core.apply(&[definition(Kind::Stream, "s", "a/+", shards)]).await.unwrap();
    let stream = find(&core);
    (core, stream)
}

async fn publish_all(core: &Core, clock: Clock, numbers: std::ops::Range<u64>) {
    for n in numbers {
        publish(core, clock, "a/b", &n.to_string()).await.unwrap();
    }
}

/// Start, next and removed of the first shard.
async fn trim(core: &Core, stream: &Arc<Object>, before: Start, dry_run: bool) -> (u64, u64, u64) {
    let trimmed = core.trim(stream, &before, None, dry_run).await.unwrap();
    let first = trimmed[0];
    (first.extent.start, first.extent.next, first.removed)
}

#[tokio::test(start_paused = true)]
async fn a_trim_removes_what_is_before_a_place_and_nothing_else() {
    let (store, clock) = memory();
    let (core, stream) = open_stream(&store, clock, 1).await;
    publish_all(&core, clock, 0..5).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let at = clock.wall();
    publish_all(&core, clock, 5..10).await;
    let mut below = reader(&core, &stream, Start::Earliest).await;
    assert_eq!(
        trim(&core, &stream, Start::Offset(4), true).await,
        (4, 10, 4),
        "a dry run says what would go"
    );
    assert_eq!(trim(&core, &stream, Start::Earliest, false).await, (0, 10, 0), "it has changed nothing");
    assert_eq!(trim(&core, &stream, Start::Offset(4), false).await, (4, 10, 4));
    assert_eq!(trim(&core, &stream, Start::Offset(2), false).await, (4, 10, 0), "that has gone already");
    // Who stood there goes on behind it, and new readers begin there.
    assert_eq!(read(&mut below, 6).await[0], (4, "4".to_owned()));
    assert_eq!(read(&mut reader(&core, &stream, Start::Offset(0)).await, 6).await[0].0, 4);
    assert_eq!(trim(&core, &stream, Start::Time(at), false).await, (5, 10, 1));
    core.close().await;

    // For good, also for who comes after a restart.
    let core = open(&store, clock, 2).await;
    let stream = find(&core);
    assert_eq!(read(&mut reader(&core, &stream, Start::Earliest).await, 5).await[0], (5, "5".to_owned()));
    assert_eq!(trim(&core, &stream, Start::Offset(99), false).await, (10, 10, 5), "never beyond the end");
    let report = &core.describe(&stream).await.unwrap()[0];
    assert_eq!((report.bytes, report.oldest), (0, None), "nothing is left of it");
    let mut live = reader(&core, &stream, Start::Earliest).await;
    publish_all(&core, clock, 10..12).await;
    assert_eq!(
        read(&mut live, 2).await,
        [(10, "10".to_owned()), (11, "11".to_owned())],
        "no offset comes again"
    );
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_trim_of_one_shard_or_of_a_place_in_some_leaves_the_others() {
    let (store, clock) = memory();
    let (core, stream) = open_stream(&store, clock, 3).await;
    for n in 0..60 {
        publish(&core, clock, &format!("a/{n}"), "x").await.unwrap();
    }
    let starts = async || -> Vec<u64> {
        core.describe(&stream).await.unwrap().iter().map(|report| report.extent.start).collect()
    };
    core.trim(&stream, &Start::Offset(3), Some(1), false).await.unwrap();
    assert_eq!(starts().await, [0, 3, 0]);
    core.trim(&stream, &Start::Offsets(vec![(2, 5)]), None, false).await.unwrap();
    assert_eq!(starts().await, [0, 3, 5]);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_trim_of_much_is_a_few_range_clears_and_is_made_although_a_commit_fails() {
    let (store, clock) = memory();
    let faults = FaultStore::wrap(store, weir_env::seed::Seed::fixed(1));
    let handle = faults.handle();
    let meter = Arc::new(Meter::new(RecordKind::ALL.len(), RecordKind::index_of));
    let store: SharedStore = Arc::new(MeteredStore::new(Arc::new(faults), Arc::clone(&meter)));
    let (core, stream) = open_stream(&store, clock, 1).await;
    let payload = "x".repeat(30_000);
    for _ in 0..300 {
        publish(&core, clock, "a/b", &payload).await.unwrap();
    }
    let cleared = || {
        let costs = RecordKind::ALL.iter().map(|kind| meter.cost(*kind as usize));
        costs
            .map(|cost| (cost.keys_cleared, cost.ranges_cleared))
            .fold((0, 0), |sum, n| (sum.0 + n.0, sum.1 + n.1))
    };
    let before = cleared();
    handle.fail_next_commit(CommitFault::Refused(weir_storage::Error::Unavailable("by this test".into())));
    assert_eq!(trim(&core, &stream, Start::Offset(250), false).await, (250, 300, 250));
    // Of segments, of the index and of payloads, each in one piece; perhaps once more, as the first attempt failed.
    let (keys, ranges) = (cleared().0 - before.0, cleared().1 - before.1);
    assert!(keys == 0 && (3..=6).contains(&ranges), "{keys} keys and {ranges} ranges were cleared");
    let records = read(&mut reader(&core, &stream, Start::Earliest).await, 50).await;
    assert_eq!((records[0].0, records[49].0), (250, 299));
    core.close().await;
}

fn fetch(start: Start, max_messages: usize) -> Fetch {
    let options = ReadOptions { start, ..ReadOptions::default() };
    Fetch { options, max_messages, max_bytes: 1 << 20, wait: Duration::ZERO }
}

fn offsets(fetched: &Fetched) -> Vec<u64> {
    fetched.messages.iter().map(|(_, offset, _)| *offset).collect()
}

#[tokio::test(start_paused = true)]
async fn a_fetch_gives_a_batch_and_the_place_to_go_on_at() {
    let (store, clock) = memory();
    let (core, stream) = open_stream(&store, clock, 1).await;
    publish_all(&core, clock, 0..10).await;
    let fetched = core.fetch(&stream, &fetch(Start::Offset(2), 3)).await.unwrap();
    assert_eq!(offsets(&fetched), [2, 3, 4]);
    assert_eq!((fetched.next.clone(), fetched.ends), ([(0, 5)].into(), [(0, 10)].into()));
    let next = Start::Offsets(fetched.next.into_iter().collect());
    assert_eq!(offsets(&core.fetch(&stream, &fetch(next, 100)).await.unwrap()), [5, 6, 7, 8, 9]);
    // By bytes, but one at least.
    let size =
        core.fetch(&stream, &fetch(Start::Earliest, 1)).await.unwrap().messages[0].2.message.size() as u64;
    for (max_bytes, count) in [(1, 1), (size * 2, 2), (size * 3 + 1, 3)] {
        let fetch = Fetch { max_bytes, ..fetch(Start::Earliest, 100) };
        let fetched = core.fetch(&stream, &fetch).await.unwrap();
        assert_eq!((fetched.messages.len(), fetched.next[&0]), (count, count as u64));
    }
    // What is filtered away is passed.
    publish(&core, clock, "a/c", "c").await.unwrap();
    let mut filtered = fetch(Start::Earliest, 100);
    filtered.options.filter = Some(TopicFilter::parse("a/c").unwrap());
    let fetched = core.fetch(&stream, &filtered).await.unwrap();
    assert_eq!((offsets(&fetched), fetched.next[&0]), (vec![10], 11));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_fetch_waits_for_a_message_as_long_as_it_is_told() {
    let (store, clock) = memory();
    let (core, stream) = open_stream(&store, clock, 2).await;
    let waiting = Fetch { wait: Duration::from_secs(20), ..fetch(Start::Latest, 10) };
    let began = clock.now();
    let nothing = core.fetch(&stream, &waiting).await.unwrap();
    assert!(nothing.messages.is_empty());
    assert_eq!(nothing.next, [(0, 0), (1, 0)].into());
    assert_eq!(clock.now() - began, Duration::from_secs(20));
    let publish = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        publish(&core, clock, "a/b", "it").await.unwrap();
    };
    let (fetched, ()) = tokio::join!(core.fetch(&stream, &waiting), publish);
    assert_eq!(offsets(&fetched.unwrap()), [0]);
    assert!(clock.now() - began < Duration::from_secs(26));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn fetches_bounded_by_bytes_leave_no_message_out() {
    let (store, clock) = memory();
    let (core, stream) = open_stream(&store, clock, 2).await;
    // Many pages of each shard, and small ones behind those that do not fit.
    let sizes = [10, 40_000, 300, 90_000, 7, 5_000, 20_000];
    for n in 0..210 {
        publish(&core, clock, &format!("a/{n}"), &"x".repeat(sizes[n % sizes.len()])).await.unwrap();
    }
    for (shard, max_bytes) in [(None, 60_000), (None, 100_000), (Some(0), 300_000), (Some(1), 45_000)] {
        let ends: Vec<u64> =
            core.describe(&stream).await.unwrap().iter().map(|report| report.extent.next).collect();
        let mut next: std::collections::BTreeMap<u8, u64> = [(0, 0), (1, 0)].into();
        next.retain(|of, _| shard.is_none_or(|shard| shard == *of));
        while next.iter().any(|(shard, next)| *next < ends[usize::from(*shard)]) {
            let start = Start::Offsets(next.iter().map(|(shard, next)| (*shard, *next)).collect());
            let mut fetch = Fetch { max_bytes, ..fetch(start, 1000) };
            fetch.options.shard = shard;
            let fetched = core.fetch(&stream, &fetch).await.unwrap();
            assert!(!fetched.messages.is_empty());
            for (shard, offset, _) in &fetched.messages {
                assert_eq!(next.insert(*shard, offset + 1), Some(*offset), "of shard {shard}");
            }
            assert_eq!(fetched.next, next);
        }
    }
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn fetches_share_a_budget_and_have_none_of_it_while_they_wait() {
    let (store, clock) = memory();
    let (core, stream) = open_stream(&store, clock, 1).await;
    publish_all(&core, clock, 0..3).await;
    let large = Fetch { max_bytes: FETCH_BYTES_MAX, ..fetch(Start::Earliest, 10) };
    let count = FETCH_BYTES_AT_ONCE as u64 / (2 * FETCH_BYTES_MAX);
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(core.fetch(&stream, &large).await.unwrap());
    }
    let second = Duration::from_secs(1);
    tokio::time::timeout(second, core.fetch(&stream, &large)).await.expect_err("there is no room");
    held.pop();
    held.push(tokio::time::timeout(second, core.fetch(&stream, &large)).await.unwrap().unwrap());
    drop(held);
    let waiting = Fetch { options: ReadOptions::default(), wait: Duration::from_secs(20), ..large.clone() };
    let each = async || offsets(&core.fetch(&stream, &waiting).await.unwrap());
    let waited = futures_util::future::join_all((0..3 * count).map(|_| each()));
    let others = async {
        tokio::time::sleep(second).await;
        let fetched = tokio::time::timeout(second, core.fetch(&stream, &large)).await;
        assert_eq!(offsets(&fetched.expect("there is room").unwrap()), [0, 1, 2]);
        publish_all(&core, clock, 3..4).await;
    };
    let (waited, ()) = tokio::join!(waited, others);
    assert!(waited.iter().all(|offsets| offsets == &[3]), "{waited:?}");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn fetches_from_place_to_place_get_every_shard() {
    let (store, clock) = memory();
    let (core, stream) = open_stream(&store, clock, 4).await;
    for n in 0..200 {
        publish(&core, clock, &format!("a/{n}"), "x").await.unwrap();
    }
    let mut start = Start::Earliest;
    let mut first_shards = std::collections::BTreeSet::new();
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 200 {
        let fetched = core.fetch(&stream, &fetch(start, 7)).await.unwrap();
        assert!((1..=7).contains(&fetched.messages.len()));
        first_shards.insert(fetched.messages[0].0);
        for (shard, offset, _) in &fetched.messages {
            assert!(seen.insert((*shard, *offset)), "{offset} of {shard} came twice");
        }
        start = Start::Offsets(fetched.next.into_iter().collect());
    }
    assert!(first_shards.len() > 1, "no shard has to wait until another one is read to its end");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn it_is_seen_who_reads_from_where_and_how_fast() {
    let (store, clock) = memory();
    let (core, stream) = open_stream(&store, clock, 1).await;
    assert!(core.activity(&stream).readers.is_empty());
    let options = ReadOptions { start: Start::Earliest, name: "r1".into(), ..ReadOptions::default() };
    let mut reader = core.reader(&stream, &options).await.unwrap();
    for n in 0..30 {
        publish_all(&core, clock, n..n + 1).await;
        read(&mut reader, 1).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let activity = core.activity(&stream);
    for rate in [activity.published, activity.read] {
        assert!((0.9..1.2).contains(&rate), "{rate} a second");
    }
    let shown = &activity.readers[0];
    assert_eq!((&*shown.name, shown.read, shown.positions.clone()), ("r1", 30, vec![(0, 30)]));
    assert!(shown.since < clock.wall());
    let report = &core.describe(&stream).await.unwrap()[0];
    assert!(report.oldest.is_some_and(|at| at <= shown.since.saturating_add(Duration::from_secs(1))));
    drop(reader);
    assert!(core.activity(&stream).readers.is_empty());
    core.close().await;
}
