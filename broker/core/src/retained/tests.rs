//! Retained messages over the memory engine: search against the definition of a match, order, limits, expiry.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;

use super::*;
use crate::keyspace::tag;
use crate::message::tests::full_message;
use crate::sessions::faults::{Bench, Fault};

struct RetainedBench {
    bench: Bench,
    retained: Retained,
    metrics: RetainedMetrics,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl RetainedBench {
    async fn new() -> Self {
        Self::with(RetainedOptions::default()).await
    }

    async fn with(options: RetainedOptions) -> Self {
        let bench = Bench::new();
        let (tracker, stop, metrics) =
            (TaskTracker::new(), CancellationToken::new(), RetainedMetrics::default());
        let retained =
            Retained::spawn(Self::context(&bench), options, &metrics, &tracker, &stop).await.unwrap();
        Self { bench, retained, metrics, tracker, stop }
    }

    fn context(bench: &Bench) -> RetainedContext {
        RetainedContext {
            store: Arc::clone(&bench.store) as SharedStore,
            clock: bench.clock,
            seed: Seed::fixed(1),
            virtual_shards: Bench::VIRTUAL_SHARDS,
            cluster: None,
        }
    }

    async fn set(&self, topic: &str, payload: impl Into<Bytes>) -> Result<()> {
        self.retained.set(message(topic, payload)).await?.await
    }

    async fn clear(&self, topic: &str) {
        self.retained.clear(TopicName::parse(topic).unwrap()).await.unwrap().await.unwrap();
    }

    async fn matching(&self, filter: &str) -> Vec<(String, Bytes)> {
        self.pages(filter, 1_000, usize::MAX).await
    }

    async fn pages(&self, filter: &str, limit: usize, target_bytes: usize) -> Vec<(String, Bytes)> {
        let filter = TopicFilter::parse(filter).unwrap();
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = self.retained.matching(&filter, after, limit, target_bytes).await.unwrap();
            assert!(page.messages.len() <= limit);
            found.extend(page.messages.into_iter().map(|found| (found.topic.to_string(), found.payload)));
            after = page.next;
            if after.is_none() {
                return found;
            }
        }
    }

    /// Waits until every task has done what it was given before.
    async fn settle(&self) {
        for n in 0..64 {
            self.clear(&format!("nothing/{n}")).await;
        }
    }

    /// How much the store says is retained.
    async fn stored_usage(&self) -> RetainedUsage {
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let metrics = RetainedMetrics::default();
        let options = RetainedOptions::default();
        let context = Self::context(&self.bench);
        Retained::spawn(context, options, &metrics, &tracker, &stop).await.unwrap().usage()
    }
}

fn message(topic: &str, payload: impl Into<Bytes>) -> Arc<Message> {
    let topic = TopicName::parse(topic.to_owned()).unwrap();
    Arc::new(Message { topic, payload: payload.into(), expires_at: None, ..full_message() })
}

fn expiring(topic: &str, payload: impl Into<Bytes>, at: Timestamp) -> Arc<Message> {
    Arc::new(Message { expires_at: Some(at), ..(*message(topic, payload)).clone() })
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(test);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn search_finds_what_the_filter_matches(
        topics in proptest::collection::btree_set("([ab\u{1}]{0,2}|\\$s|/|é)(/([ab\u{1}]{0,2}|\\$x)){0,3}", 1..40),
        filters in proptest::collection::vec("([ab]{1,2}|\\+|\\$s|é)(/([ab\u{1}]{0,2}|\\+)){0,3}(/#)?|#|\\+/#", 1..12),
        limit in 1..5usize,
    ) {
        run(async {
            let it = RetainedBench::new().await;
            let topics: Vec<TopicName> = topics.into_iter().filter_map(|text| TopicName::parse(text).ok()).collect();
            let writes = topics.iter().map(|topic| it.retained.set(message(topic.as_str(), topic.to_string())));
            for completion in join_all(writes).await {
                completion.unwrap().await.unwrap();
            }
            for filter in filters {
                let parsed = TopicFilter::parse(filter.clone()).unwrap();
                let mut expected: Vec<&TopicName> = topics.iter().filter(|topic| parsed.matches(topic)).collect();
                expected.sort_by_key(|topic| retained::key(topic));
                let found = it.pages(&filter, limit, usize::MAX).await;
                let found: Vec<&str> = found.iter().map(|(topic, _)| topic.as_str()).collect();
                let expected: Vec<&str> = expected.iter().map(|topic| topic.as_str()).collect();
                assert_eq!(found, expected, "{filter}");
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_search_reads_about_what_it_finds() {
    let it = RetainedBench::new().await;
    let topics = (0..100).flat_map(|a| (0..200).map(move |b| format!("{a:03}/{b:03}/c")));
    let mut completions = Vec::new();
    for topic in topics {
        completions.push(it.retained.set(message(&topic, "x")).await.unwrap());
    }
    for completion in completions {
        completion.await.unwrap();
    }
    for (filter, found, rows_max) in [
        ("050/100/c", 1, 1),
        ("050/#", 200, 300),
        ("050/+/c", 200, 300),
        ("+/100/c", 100, 3_300),
        ("+/100/+", 100, 3_300),
        ("+/+/d", 0, 20_000),
        ("none/+/c", 0, 0),
    ] {
        let before = it.bench.store.rows_read();
        assert_eq!(it.matching(filter).await.len(), found, "{filter}");
        let read = it.bench.store.rows_read() - before;
        assert!(read <= rows_max, "{filter} read {read} rows");
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_call_for_a_topic_wins() {
    let it = RetainedBench::new().await;
    let mut completions = Vec::new();
    for n in 0..2_000 {
        let message = message(&format!("t/{}", n % 10), n.to_string());
        completions.push(it.retained.set(message).await.unwrap());
    }
    for completion in completions {
        completion.await.unwrap();
    }
    let expected: Vec<_> =
        (0..10).map(|n| (format!("t/{n}"), Bytes::from((1_990 + n).to_string()))).collect();
    assert_eq!(it.matching("t/+").await, expected);
    assert_eq!(it.retained.usage().messages, 10);

    it.set("t/1", "").await.unwrap();
    it.clear("t/2").await;
    it.clear("t/2").await;
    assert_eq!(it.matching("t/+").await.len(), 8);
    assert_eq!((it.metrics.stored.get(), it.metrics.cleared.get()), (2_000, 2));
    assert_eq!(it.stored_usage().await, it.retained.usage());
    for n in 0..10 {
        it.clear(&format!("t/{n}")).await;
    }
    assert_eq!(it.retained.usage(), RetainedUsage::default());
    assert_eq!(it.stored_usage().await, RetainedUsage::default());

    it.stop.cancel();
    it.tracker.close();
    it.tracker.wait().await;
    assert!(matches!(it.set("t", "late").await, Err(Error::Closed)));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_what_is_in_line_finds_it_and_never_waits_for_a_stopped_task() {
    let it = RetainedBench::new().await;
    it.retained.caught_up(&it.retained.line_end()).await;
    for n in 0..100 {
        // Nobody waits for its completion.
        drop(it.retained.set(message(&format!("t/{n}"), "x")).await.unwrap());
    }
    it.retained.caught_up(&it.retained.line_end()).await;
    assert_eq!(it.matching("t/+").await.len(), 100);
    it.stop.cancel();
    it.tracker.close();
    it.tracker.wait().await;
    it.retained.caught_up(&it.retained.line_end()).await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_refuses_new_messages_and_keeps_the_old_ones() {
    let options = RetainedOptions { messages_max: 3, bytes_max: 2_000, ..RetainedOptions::default() };
    let it = RetainedBench::with(options).await;
    for topic in ["a", "b", "c"] {
        it.set(topic, "1").await.unwrap();
    }
    assert!(matches!(it.set("d", "1").await, Err(Error::Full("retained messages"))));
    it.set("a", "22").await.unwrap();
    assert!(matches!(it.set("a", vec![1; 2_000]).await, Err(Error::Full("retained bytes"))));
    it.clear("b").await;
    it.set("d", "1").await.unwrap();
    let expected = [("a".into(), "22".into()), ("c".into(), "1".into()), ("d".into(), "1".into())];
    assert_eq!(it.matching("#").await, expected);
    assert_eq!(it.metrics.refused.get(), 2);

    // Large ones that are refused leave no chunks; what is over the limit may become smaller.
    assert!(it.set("a", vec![1; 200_000]).await.is_err());
    assert_eq!(it.bench.store.keys(tag::RETAINED_BLOB).await, Vec::<Bytes>::new());
    assert_eq!(it.bench.store.keys(tag::TIMER).await, Vec::<Bytes>::new());
    it.set("a", "1").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_expired_message_is_left_out_and_removed() {
    let it = RetainedBench::new().await;
    let at = it.bench.clock.wall().saturating_add(Duration::from_secs(10));
    for (topic, payload) in [("a", 10), ("b", 100_000), ("c", 10)] {
        it.retained.set(expiring(topic, vec![1; payload], at)).await.unwrap().await.unwrap();
    }
    it.set("d", "stays").await.unwrap();
    assert_eq!(it.retained.sweep(it.bench.clock.wall()).await.unwrap(), 0);
    assert_eq!(it.matching("#").await.len(), 4);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(it.matching("+").await.len(), 1);
    it.settle().await;
    assert_eq!(it.retained.sweep(it.bench.clock.wall()).await.unwrap(), 0);
    assert_eq!(it.metrics.expired.get(), 3);
    assert_eq!(it.bench.store.keys(tag::RETAINED_BLOB).await, Vec::<Bytes>::new());
    assert_eq!(it.retained.usage().messages, 1);

    // A message that nobody looks for is found by the sweep; one replaced in time stays.
    let at = it.bench.clock.wall().saturating_add(Duration::from_secs(10));
    for topic in ["e", "f"] {
        it.retained.set(expiring(topic, "x", at)).await.unwrap().await.unwrap();
    }
    tokio::time::advance(Duration::from_secs(10)).await;
    let replaced = it.retained.set(message("f", "new")).await.unwrap();
    let swept = it.retained.sweep(it.bench.clock.wall()).await.unwrap();
    assert!((1..=2).contains(&swept), "{swept}: f too, unless it was replaced by then");
    replaced.await.unwrap();
    it.settle().await;
    assert_eq!(it.matching("#").await.len(), 2);
    assert_eq!(it.metrics.expired.get(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_large_message_comes_back_whole_and_takes_its_chunks_with_it() {
    let it = RetainedBench::new().await;
    for bytes in [65_000, 66_000, 1_000_000] {
        let payload: Vec<u8> = (0..bytes).map(|n: usize| n.to_le_bytes()[0]).collect();
        it.set("a/b", payload.clone()).await.unwrap();
        assert_eq!(it.matching("a/#").await, [("a/b".into(), payload.into())]);
        assert_eq!(it.bench.store.keys(tag::TIMER).await, Vec::<Bytes>::new());
        let chunks = it.bench.store.keys(tag::RETAINED_BLOB).await.len();
        assert_eq!(chunks, if bytes < 65_536 { 0 } else { bytes / 89_999 + 1 });
    }
    it.set("a/b", "small").await.unwrap();
    assert_eq!(it.bench.store.keys(tag::RETAINED_BLOB).await, Vec::<Bytes>::new());
}

#[tokio::test(start_paused = true)]
async fn chunks_whose_message_never_came_are_swept() {
    let it = RetainedBench::new().await;
    it.set("a", vec![1; 100_000]).await.unwrap();
    it.bench.store.expect([Fault::None, Fault::Unavailable]);
    assert!(it.set("a", vec![2; 100_000]).await.is_err());
    assert_eq!(it.bench.store.keys(tag::RETAINED_BLOB).await.len(), 4);
    tokio::time::advance(Duration::from_secs(3_600)).await;
    it.retained.sweep(it.bench.clock.wall()).await.unwrap();
    assert_eq!(it.bench.store.keys(tag::RETAINED_BLOB).await.len(), 2);
    assert_eq!(it.bench.store.keys(tag::TIMER).await, Vec::<Bytes>::new());
    assert_eq!(it.matching("a").await, [("a".into(), vec![1; 100_000].into())]);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_changes_neither_messages_nor_their_count() {
    for fault in [Fault::UnknownCommitted, Fault::UnknownLost, Fault::UnknownOpen] {
        let it = RetainedBench::new().await;
        let mut model: BTreeMap<&str, usize> = BTreeMap::new();
        for (topic, bytes) in [("a", 10), ("b", 100_000), ("a", 100_000), ("b", 200_000), ("a", 20)] {
            it.bench.store.expect([fault, Fault::None, fault]);
            it.set(topic, vec![1; bytes]).await.unwrap();
            model.insert(topic, bytes);
            let found = it.matching("#").await;
            let found: BTreeMap<&str, usize> =
                found.iter().map(|(topic, payload)| (topic.as_str(), payload.len())).collect();
            assert_eq!(found, model, "{fault:?}");
            assert_eq!(it.stored_usage().await, it.retained.usage());
            assert_eq!(it.retained.usage().messages, model.len() as u64);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_adds_more_than_the_pending_bytes_waits() {
    let it =
        RetainedBench::with(RetainedOptions { pending_bytes_max: 1_000, ..RetainedOptions::default() }).await;
    // Larger than all that may be pending: alone it gets through.
    it.set("large", vec![1; 100_000]).await.unwrap();
    let first = it.retained.set(message("a", vec![1; 600])).await.unwrap();
    let mut second = Box::pin(it.retained.set(message("b", vec![1; 600])));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(second.as_mut().poll(&mut cx).is_pending());
    first.await.unwrap();
    second.await.unwrap().await.unwrap();
    assert_eq!(it.matching("+").await.len(), 3);
}
