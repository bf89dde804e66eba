//! Throughput of the shard owners over the memory store: what queues and streams cost without a disk. Each
//! publisher waits for its message to be durable before the next.
//!
//! `cargo bench -p weir-core --bench append [-- SECONDS]`

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a program that prints figures or dies")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use weir_core::Core;
use weir_core::definition::{Definition, DispatchSettings, Kind, Overflow, QueueSettings, Retention};
use weir_core::key::Publisher;
use weir_core::message::{Message, Properties};
use weir_core::metrics::Metrics;
use weir_core::queue::{Consumer, ConsumerId, Verdict, Window};
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::MemoryStore;
use weir_topic::TopicName;

const PUBLISHERS: u64 = 128;
const CONSUMERS: u64 = 16;
const WINDOW: u32 = 1000;
const PAYLOAD_BYTES: usize = 100;

struct Load {
    kind: Kind,
    shards: u8,
    consumers: u64,
    /// The newest messages that are kept; zero: all.
    newest: u64,
}

fn main() {
    let seconds = std::env::args().filter_map(|arg| arg.parse().ok()).next_back().unwrap_or(3);
    let duration = Duration::from_secs(seconds);
    println!("{PUBLISHERS} publishers, {PAYLOAD_BYTES} B, memory store, {seconds} s each");
    for (name, kind, shards, consumers, newest) in [
        ("stream, 1 shard: publish", Kind::Stream, 1, 0, 0),
        ("stream, 4 shards: publish", Kind::Stream, 4, 0, 0),
        ("queue, 1 shard: publish", Kind::Queue, 1, 0, 0),
        ("queue, 1 shard: publish, consume, ack", Kind::Queue, 1, CONSUMERS, 0),
        ("queue, 4 shards: publish, consume, ack", Kind::Queue, 4, CONSUMERS, 0),
        ("queue, 1 shard: the same, 1,000 consumers", Kind::Queue, 1, 1000, 0),
        ("queue, 1 shard: publish, full of 10,000, DropOldest", Kind::Queue, 1, 0, 10_000),
        ("queue, 1 shard: publish, full of 100,000, DropOldest", Kind::Queue, 1, 0, 100_000),
    ] {
        let load = Load { kind, shards, consumers, newest };
        let [published, acked, batches] = Runtime::new().unwrap().block_on(run(load, duration));
        let per_second = |n: u64| n / seconds;
        println!(
            "{name:<52} {:>9} msg/s, {:>9} acked/s, {:>7} batches/s",
            per_second(published),
            per_second(acked),
            per_second(batches)
        );
    }
}

async fn run(load: Load, duration: Duration) -> [u64; 3] {
    let clock = Clock::system();
    let store = Arc::new(MemoryStore::new(clock));
    let metrics = Metrics::default();
    let core = Arc::new(Core::open(store, clock, &Seed::fixed(1), metrics.clone()).await.unwrap());
    let definition = Definition {
        kind: load.kind,
        name: "o".into(),
        namespace: "default".into(),
        object: "o".into(),
        topic_filter: Some("a/+".into()),
        shards: load.shards,
        key: None,
        retention: Retention { max_messages: load.newest, ..Retention::default() },
        dispatch: DispatchSettings::default(),
        last_value: false,
        queue: QueueSettings { overflow: Overflow::DropOldest, ..QueueSettings::default() },
        group_expiry_ms: 0,
        delete_data: false,
    };
    core.apply(&[definition]).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (published, acked) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut publishers = JoinSet::new();
    let mut consumers = JoinSet::new();
    for n in 0..load.consumers {
        consumers.spawn(consume(Arc::clone(&core), n, Arc::clone(&acked)));
    }
    for n in 0..PUBLISHERS {
        let topic = TopicName::parse(format!("a/{n}")).unwrap();
        publishers.spawn(publish(Arc::clone(&core), clock, topic, Arc::clone(&stop), Arc::clone(&published)));
    }
    tokio::time::sleep(duration).await;
    let counts = [published.load(Ordering::Relaxed), acked.load(Ordering::Relaxed), metrics.batches.get()];
    stop.store(true, Ordering::Relaxed);
    publishers.join_all().await;
    consumers.shutdown().await;
    core.close().await;
    counts
}

async fn publish(
    core: Arc<Core>,
    clock: Clock,
    topic: TopicName,
    stop: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
) {
    let message = Message {
        topic,
        payload: Bytes::from(vec![0x5a; PAYLOAD_BYTES]),
        qos: 1,
        retain: false,
        published_at: clock.wall(),
        dead_letter: None,
        expires_at: None,
        properties: Properties::default(),
    };
    while !stop.load(Ordering::Relaxed) {
        let targets = core.targets(&message.topic);
        let receipt = core.append(&targets, &message, &Publisher::default(), None).await.unwrap();
        assert!(receipt.settled().await.is_empty());
        published.fetch_add(1, Ordering::Relaxed);
    }
}

async fn consume(core: Arc<Core>, id: u64, acked: Arc<AtomicU64>) {
    let queue = core.catalog().view().find(Kind::Queue, "o").unwrap();
    let (tx, mut deliveries) = mpsc::channel(WINDOW as usize);
    let consumer = Consumer {
        id: ConsumerId(id),
        client_id: format!("c{id}").into(),
        since: weir_env::clock::Timestamp::default(),
        window: Arc::new(Window::new(WINDOW)),
        connection_window: None,
        deliveries: tx,
    };
    core.attach(&queue, &consumer).await.unwrap();
    while let Some(delivery) = deliveries.recv().await {
        let starved = consumer.give_back();
        core.settle(delivery.handout(), Verdict::Acknowledged).await.unwrap();
        acked.fetch_add(1, Ordering::Relaxed);
        if starved {
            core.kick(&queue, consumer.id).await.unwrap();
        }
    }
}
