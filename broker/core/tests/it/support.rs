//! A core over an empty store, in memory or in the FoundationDB cluster that `FDB_CLUSTER_FILE` names, and short ways to say things.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::{Definition, DispatchSettings, Kind, Retention};
use weir_core::key::Publisher;
use weir_core::message::{Message, Properties};
use weir_core::metrics::Metrics;
use weir_core::queue::{Consumer, ConsumerId, QueueDelivery, Window};
use weir_core::shard::AppendError;
use weir_core::stream::{ReadOptions, Start, StreamReader};
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_storage::{MemoryStore, SharedStore};
use weir_topic::TopicName;

/// An empty store, and the clock that goes with it.
pub(crate) fn memory() -> (SharedStore, Clock) {
    let (store, clock) = in_memory();
    (weir_storage_fdb::testing::store_apart().unwrap_or(store), clock)
}

/// The same, always in memory: there the same seed is the same run.
pub(crate) fn in_memory() -> (SharedStore, Clock) {
    let clock = Clock::simulated(Timestamp::from_micros(1_700_000_000_000_000));
    (Arc::new(MemoryStore::new(clock)), clock)
}

pub(crate) async fn open(store: &SharedStore, clock: Clock, seed: u64) -> Core {
    Core::open(Arc::clone(store), clock, &Seed::fixed(seed), Metrics::default()).await.unwrap()
}

pub(crate) fn definition(kind: Kind, name: &str, filter: &str, shards: u8) -> Definition {
    Definition {
        kind,
        name: name.into(),
        namespace: "default".into(),
        object: name.into(),
        topic_filter: Some(filter.into()),
        shards,
        key: None,
        retention: Retention::default(),
        dispatch: DispatchSettings::default(),
        last_value: false,
        queue: weir_core::definition::QueueSettings::default(),
        group_expiry_ms: 0,
        delete_data: false,
    }
}

pub(crate) fn message(clock: Clock, topic: &str, payload: &str) -> Message {
    Message {
        topic: TopicName::parse(topic.to_owned()).unwrap(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        qos: 1,
        retain: false,
        published_at: clock.wall(),
        dead_letter: None,
        expires_at: None,
        properties: Properties::default(),
    }
}

pub(crate) async fn publish(
    core: &Core,
    clock: Clock,
    topic: &str,
    payload: &str,
) -> Result<(), AppendError> {
    let message = message(clock, topic, payload);
    let targets = core.targets(&message.topic);
    assert!(!targets.is_empty(), "no target for {topic}");
    let receipt = core.append(&targets, &message, &Publisher::default(), None).await?;
    receipt.settled().await.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
}

/// A reader of all shards of `stream`.
pub(crate) async fn reader(core: &Core, stream: &Arc<Object>, start: Start) -> StreamReader {
    core.reader(stream, &ReadOptions { start, ..ReadOptions::default() }).await.unwrap()
}

/// The next messages, at least `count`.
pub(crate) async fn read(reader: &mut StreamReader, count: usize) -> Vec<(u64, String)> {
    let mut records = Vec::new();
    while records.len() < count {
        for (offset, record) in reader.next().await.unwrap().records {
            records.push((offset, String::from_utf8(record.message.payload.to_vec()).unwrap()));
        }
    }
    records
}

/// A consumer, and what it receives.
pub(crate) struct TestConsumer {
    pub(crate) consumer: Consumer,
    pub(crate) deliveries: mpsc::Receiver<QueueDelivery>,
}

impl TestConsumer {
    pub(crate) async fn attach(core: &Core, queue: &Arc<Object>, id: u64, window: u32) -> Self {
        Self::try_attach(core, queue, id, window).await.unwrap()
    }

    pub(crate) async fn try_attach(
        core: &Core,
        queue: &Arc<Object>,
        id: u64,
        window: u32,
    ) -> weir_core::Result<Self> {
        let (tx, deliveries) = mpsc::channel(window as usize);
        let consumer = Consumer {
            id: ConsumerId(id),
            client_id: format!("c{id}").into(),
            since: Timestamp::default(),
            window: Arc::new(Window::new(window)),
            connection_window: None,
            deliveries: tx,
        };
        core.attach(queue, &consumer).await?;
        Ok(Self { consumer, deliveries })
    }

    /// The next delivery; the paused clock runs on while there is none.
    pub(crate) async fn next(&mut self) -> QueueDelivery {
        self.next_within(std::time::Duration::from_secs(600)).await
    }

    pub(crate) async fn next_within(&mut self, wait: std::time::Duration) -> QueueDelivery {
        tokio::time::timeout(wait, self.deliveries.recv()).await.expect("a delivery").unwrap()
    }

    pub(crate) async fn nothing(&mut self) {
        let wait = std::time::Duration::from_millis(500);
        let delivery = tokio::time::timeout(wait, self.deliveries.recv()).await;
        assert!(delivery.is_err(), "unexpected {delivery:?}");
    }

    pub(crate) async fn ack(&self, core: &Core, delivery: &QueueDelivery) {
        self.settle(core, delivery, weir_core::queue::Verdict::Acknowledged).await;
    }

    pub(crate) async fn settle(&self, core: &Core, d: &QueueDelivery, verdict: weir_core::queue::Verdict) {
        let starved = self.consumer.give_back();
        core.settle(d.handout(), verdict).await.unwrap();
        if starved {
            let view = core.catalog().view();
            for queue in view.all(Kind::Queue) {
                core.kick(queue, self.consumer.id).await.unwrap();
            }
        }
    }
}

pub(crate) fn text(delivery: &QueueDelivery) -> String {
    String::from_utf8(delivery.record.message.payload.to_vec()).unwrap()
}
