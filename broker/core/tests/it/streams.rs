use std::time::Duration;

use weir_core::catalog::ApplyError;
use weir_core::definition::{Kind, Retention};
use weir_core::key::Publisher;
use weir_core::keyspace::PublishId;
use weir_core::shard::read_segments;
use weir_core::stream::{ReadOptions, Start};
use weir_env::clock::Timestamp;

use crate::support::{definition, memory, open, publish, read, reader};

#[tokio::test(start_paused = true)]
async fn offsets_are_dense_and_every_start_finds_its_place() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Stream, "s", "a/+", 1)]).await.unwrap();
    let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
    let mut times = Vec::new();
    for n in 0..20 {
        times.push(clock.wall());
        publish(&core, clock, "a/b", &n.to_string()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let expected: Vec<(u64, String)> = (0..20).map(|n| (n, n.to_string())).collect();
    let before = Timestamp::from_micros(times[7].as_micros() - 1);
    for (start, first) in [
        (Start::Earliest, 0),
        (Start::Offset(5), 5),
        (Start::Time(times[7]), 7),
        (Start::Time(before), 7),
        (Start::Time(Timestamp::default()), 0),
    ] {
        let mut reader = reader(&core, &stream, start.clone()).await;
        assert_eq!(reader.positions(), [(0, first as u64)]);
        let records = read(&mut reader, 20 - first).await;
        assert_eq!(records, expected[first..], "{start:?}");
    }
    let mut live = reader(&core, &stream, Start::Latest).await;
    publish(&core, clock, "a/b", "live").await.unwrap();
    assert_eq!(read(&mut live, 1).await, [(20, "live".to_owned())]);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_large_payload_comes_back_whole() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Stream, "s", "a", 1)]).await.unwrap();
    let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
    let large: String = (0..3_000_000).map(|n| char::from(b'a' + u8::try_from(n % 23).unwrap())).collect();
    for payload in ["before", &large, "after"] {
        publish(&core, clock, "a", payload).await.unwrap();
    }
    let records = read(&mut reader(&core, &stream, Start::Earliest).await, 3).await;
    assert!(records[1] == (1, large));
    assert_eq!((records[0].1.as_str(), records[2].1.as_str()), ("before", "after"));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn reading_ahead_of_large_payloads_is_bounded() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Stream, "s", "a", 1)]).await.unwrap();
    let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
    let payload = "x".repeat(100_000);
    for _ in 0..10 {
        publish(&core, clock, "a", &payload).await.unwrap();
    }
    let options =
        ReadOptions { start: Start::Earliest, until: Some(Start::Latest), ..ReadOptions::default() };
    let mut reader = core.reader(&stream, &options).await.unwrap();
    let mut offsets = Vec::new();
    while !reader.is_ended() {
        let records = reader.next().await.unwrap().records;
        assert!(records.len() <= 3, "{} payloads of 100 kB in one go", records.len());
        offsets.extend(records.iter().map(|(offset, _)| *offset));
    }
    assert_eq!(offsets, (0..10).collect::<Vec<u64>>());
    assert_eq!(reader.positions(), [(0, 10)]);
    assert_eq!(core.describe(&stream).await.unwrap()[0].readers, 1);
    drop(reader);
    assert_eq!(core.describe(&stream).await.unwrap()[0].readers, 0);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn retention_moves_the_start_and_readers_skip_to_it() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut s = definition(Kind::Stream, "s", "a", 1);
    s.retention = Retention { max_messages: 10, ..Retention::default() };
    core.apply(&[s]).await.unwrap();
    let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
    for n in 0..30 {
        publish(&core, clock, "a", &n.to_string()).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let extent = core.describe(&stream).await.unwrap()[0].extent;
    assert_eq!((extent.start, extent.next), (20, 30));
    let mut reader = reader(&core, &stream, Start::Offset(3)).await;
    assert_eq!(read(&mut reader, 10).await[0], (20, "20".to_owned()));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn payloads_stored_apart_count_against_the_limit_in_bytes() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut s = definition(Kind::Stream, "s", "a", 1);
    s.retention = Retention { max_bytes: 350_000, ..Retention::default() };
    core.apply(&[s]).await.unwrap();
    let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
    for _ in 0..10 {
        publish(&core, clock, "a", &"x".repeat(100_000)).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let report = &core.describe(&stream).await.unwrap()[0];
    assert_eq!((report.extent.start, report.extent.next), (7, 10));
    assert!((300_000..350_000).contains(&report.bytes), "{} bytes", report.bytes);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_touches_ages() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut s = definition(Kind::Stream, "s", "a", 1);
    s.retention = Retention { max_age_ms: 3_600_000, ..Retention::default() };
    core.apply(&[s]).await.unwrap();
    let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
    for n in 0..3 {
        publish(&core, clock, "a", &n.to_string()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(core.describe(&stream).await.unwrap()[0].extent.start, 0);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let report = &core.describe(&stream).await.unwrap()[0];
    assert_eq!((report.extent.start, report.messages, report.bytes, report.oldest), (3, 0, 0, None));
    assert!(read_segments(&store, &stream.logs[0], 0, usize::MAX).await.unwrap().is_empty());
    // And goes on.
    publish(&core, clock, "a", "3").await.unwrap();
    let mut reader = reader(&core, &stream, Start::Earliest).await;
    assert_eq!(read(&mut reader, 1).await, [(3, "3".to_owned())]);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_ages_after_a_restart_although_nobody_asks_for_it() {
    let (store, clock) = memory();
    let first = open(&store, clock, 1).await;
    let mut s = definition(Kind::Stream, "s", "a", 1);
    s.retention = Retention { max_age_ms: 3_600_000, ..Retention::default() };
    first.apply(&[s]).await.unwrap();
    for n in 0..3 {
        publish(&first, clock, "a", &n.to_string()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    first.close().await;
    let second = open(&store, clock, 2).await;
    second.take_up_streams(Duration::from_millis(50)).await.unwrap();
    // What is in the store, without asking the broker for it.
    let stream = second.catalog().view().find(Kind::Stream, "s").unwrap();
    let bases = async || {
        let segments = read_segments(&store, &stream.logs[0], 0, usize::MAX).await.unwrap();
        segments.iter().map(|segment| segment.header().base).collect::<Vec<_>>()
    };
    // The third is three minutes younger than what is asked for here.
    tokio::time::sleep(Duration::from_secs(3600 - 90)).await;
    assert_eq!(bases().await, [2]);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(bases().await.is_empty());
    second.close().await;
}

#[tokio::test(start_paused = true)]
async fn declarations_apply_together_or_not_at_all() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let good = definition(Kind::Stream, "s", "a", 2);
    core.apply(std::slice::from_ref(&good)).await.unwrap();
    let mut other_shards = good.clone();
    other_shards.shards = 3;
    let extra = definition(Kind::Queue, "q", "b", 1);
    let error = core.apply(&[extra.clone(), other_shards]).await.unwrap_err();
    assert!(error.to_string().contains("ImmutableMismatch: shards"), "{error}");
    assert!(core.catalog().view().find(Kind::Queue, "q").is_none());

    let mut thief = good.clone();
    thief.object = "other".into();
    let error = core.apply(&[thief]).await.unwrap_err();
    assert!(matches!(error, ApplyError::Invalid { .. }) && error.to_string().contains("NameConflict"));

    let applied = core.apply(std::slice::from_ref(&extra)).await.unwrap();
    assert_eq!((applied.created.len(), applied.orphaned), (1, vec!["s".to_owned()]));
    assert!(core.catalog().view().find(Kind::Stream, "s").is_none());
    publish(&core, clock, "b", "1").await.unwrap();

    let applied = core.apply(&[good, extra]).await.unwrap();
    assert_eq!(applied.created.len(), 1, "the orphan is adopted");
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn deleted_with_its_messages_a_stream_starts_anew() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut s = definition(Kind::Stream, "s", "a", 1);
    s.delete_data = true;
    core.apply(std::slice::from_ref(&s)).await.unwrap();
    publish(&core, clock, "a", "1").await.unwrap();
    assert_eq!(core.apply(&[]).await.unwrap().deleted.len(), 1);
    core.apply(&[s]).await.unwrap();
    let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
    assert_eq!(core.describe(&stream).await.unwrap()[0].extent.next, 0);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_swept_mark_no_longer_tells_a_repeat() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Stream, "s", "a", 1)]).await.unwrap();
    let stream = core.catalog().view().find(Kind::Stream, "s").unwrap();
    let publish = PublishId::new(clock.wall(), [1; 16]);
    let message = crate::support::message(clock, "a", "m");
    let targets = core.targets(&message.topic);
    let next = async || core.describe(&stream).await.unwrap()[0].extent.next;
    for (repeat, swept, expected) in [(false, false, 1), (true, false, 1), (true, true, 2)] {
        if swept {
            tokio::time::sleep(Duration::from_secs(60)).await;
            core.sweep_marks(clock.wall()).await.unwrap();
        }
        let receipt =
            core.append(&targets, &message, &Publisher::default(), Some((publish, repeat))).await.unwrap();
        assert!(receipt.settled().await.is_empty());
        assert_eq!(next().await, expected, "repeat {repeat}, swept {swept}");
    }
    core.close().await;
}
