//! Retention of streams that are long or busy: their limits hold, and what is beyond them goes in few transactions.

use std::sync::Arc;
use std::time::Duration;

use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::{Definition, Kind, Retention};
use weir_core::keyspace::record::RecordKind;
use weir_core::keyspace::tag;
use weir_core::stream::Start;
use weir_env::clock::Clock;
use weir_storage::{Isolation, Meter, MeteredStore, Outcome, RangeQuery, SharedStore};

use crate::support::{definition, memory, open, publish, read, reader};

fn limited(retention: Retention) -> Definition {
    Definition { retention, ..definition(Kind::Stream, "s", "a", 1) }
}

fn stream(core: &Core) -> Arc<Object> {
    core.catalog().view().find(Kind::Stream, "s").unwrap()
}

/// Segments that are stored of `stream`, by its time index.
async fn segments(store: &SharedStore, stream: &Object) -> usize {
    let (begin, end) = stream.logs[0].range(tag::TIME_INDEX);
    store.begin().get_range(RangeQuery::new(begin, end), Isolation::Snapshot).await.unwrap().pairs.len()
}

/// Each is a segment of its own.
async fn publish_segments(core: &Core, clock: Clock, count: u64) {
    for _ in 0..count {
        publish(core, clock, "a", "x").await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_stream_comes_within_new_limits_at_once_and_in_a_few_transactions() {
    const MANY: u64 = 4500;
    for (retention, kept) in [
        (Retention { max_messages: 100, ..Retention::default() }, 100),
        (Retention { max_bytes: 2_000, ..Retention::default() }, 100),
        (Retention { max_age_ms: 60_000, ..Retention::default() }, 0),
    ] {
        let (store, clock) = memory();
        let meter = Arc::new(Meter::new(RecordKind::ALL.len(), RecordKind::index_of));
        let metered: SharedStore = Arc::new(MeteredStore::new(Arc::clone(&store), Arc::clone(&meter)));
        let core = open(&metered, clock, 1).await;
        core.apply(&[limited(Retention::default())]).await.unwrap();
        publish_segments(&core, clock, MANY).await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(segments(&store, &stream(&core)).await as u64, MANY);
        core.apply(&[limited(retention)]).await.unwrap();
        let before = meter.transactions(Outcome::Committed);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let transactions = meter.transactions(Outcome::Committed) - before;
        let report = core.describe(&stream(&core)).await.unwrap().remove(0);
        assert!(report.messages <= kept, "{retention:?}: {} messages are left", report.messages);
        assert!(segments(&store, &stream(&core)).await as u64 <= kept, "{retention:?}");
        assert!(transactions <= 6, "{retention:?}: {transactions} transactions");
        // Nothing that is kept has gone.
        publish(&core, clock, "a", "last").await.unwrap();
        let mut reader = reader(&core, &stream(&core), Start::Earliest).await;
        let start = core.describe(&stream(&core)).await.unwrap()[0].extent.start;
        let records = read(&mut reader, usize::try_from(MANY + 1 - start).unwrap()).await;
        assert_eq!((records[0].0, records.last().cloned()), (start, Some((MANY, "last".to_owned()))));
        core.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn hundreds_of_segments_a_second_do_not_outgrow_their_limits() {
    const A_SECOND: u32 = 300;
    for retention in [
        Retention { max_messages: 1000, ..Retention::default() },
        Retention { max_bytes: 20_000, ..Retention::default() },
        Retention { max_age_ms: 3_000, ..Retention::default() },
    ] {
        let (store, clock) = memory();
        let core = open(&store, clock, 1).await;
        core.apply(&[limited(retention)]).await.unwrap();
        let mut most = 0;
        for _ in 0..15 {
            for _ in 0..A_SECOND {
                publish(&core, clock, "a", "x").await.unwrap();
                tokio::time::sleep(Duration::from_secs(1) / A_SECOND).await;
            }
            most = most.max(segments(&store, &stream(&core)).await);
            let report = core.describe(&stream(&core)).await.unwrap().remove(0);
            assert!(report.messages <= 1010, "{retention:?}: {} messages", report.messages);
        }
        assert!(most <= 1100, "{retention:?}: {most} segments");
        core.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn large_payloads_beyond_the_limit_do_not_stay_for_long() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[limited(Retention { max_bytes: 3_500_000, ..Retention::default() })]).await.unwrap();
    let payload = "x".repeat(1_000_000);
    for _ in 0..20 {
        publish(&core, clock, "a", &payload).await.unwrap();
        // Three that are kept, the new one, and up to 4 MiB that are not worth a look yet.
        let stored = segments(&store, &stream(&core)).await;
        assert!(stored <= 3 + 1 + 4, "{stored} messages of 1 MB");
    }
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn the_oldest_message_of_a_stream_without_limits_is_known_after_a_restart() {
    for is_compacted in [false, true] {
        let (store, clock) = memory();
        let first = open(&store, clock, 1).await;
        let stored = Definition { last_value: is_compacted, ..limited(Retention::default()) };
        first.apply(&[stored]).await.unwrap();
        let began = clock.wall();
        publish_segments(&first, clock, 1).await;
        let oldest = async |core: &Core| core.describe(&stream(core)).await.unwrap()[0].oldest;
        assert_eq!(oldest(&first).await, Some(began));
        first.close().await;
        let second = open(&store, clock, 2).await;
        // The owner reads it once it has the stream in memory.
        second.describe(&stream(&second)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(oldest(&second).await, Some(began), "compacted: {is_compacted}");
        second.close().await;
    }
}
