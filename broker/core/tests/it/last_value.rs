//! Queues that keep only the newest message of each key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::{Definition, Kind, Retention};
use weir_core::key::Publisher;
use weir_core::queue::{Lost, Verdict};
use weir_core::shard::{AppendError, QueueReport};
use weir_env::clock::Clock;
use weir_storage::SharedStore;

use crate::support::{TestConsumer, definition, memory, message, open, publish, text};

struct World {
    store: SharedStore,
    clock: Clock,
    core: Core,
    queue: Arc<Object>,
}

fn last_value() -> Definition {
    Definition { last_value: true, ..definition(Kind::Queue, "q", "a/#", 1) }
}

impl World {
    async fn start(definition: Definition) -> Self {
        let (store, clock) = memory();
        let core = open(&store, clock, 1).await;
        core.apply(&[definition]).await.unwrap();
        let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
        Self { store, clock, core, queue }
    }

    /// Ends the process without a word and starts another.
    async fn crash(&mut self) {
        self.core = open(&self.store, self.clock, 2).await;
    }

    async fn publish(&self, topic: &str, payload: &str) {
        publish(&self.core, self.clock, topic, payload).await.unwrap();
    }

    /// Publishes one message to each of `topics`, many at once.
    async fn publish_all(&self, topics: impl Iterator<Item = String>) {
        let mut receipts = Vec::new();
        for topic in topics {
            let message = message(self.clock, &topic, "m");
            let targets = self.core.targets(&message.topic);
            receipts.push(self.core.append(&targets, &message, &Publisher::default(), None).await.unwrap());
        }
        for receipt in receipts {
            assert!(receipt.settled().await.is_empty());
        }
    }

    async fn report(&self) -> QueueReport {
        self.core.describe(&self.queue).await.unwrap().remove(0).queue.unwrap()
    }

    async fn attach(&self, id: u64) -> TestConsumer {
        TestConsumer::attach(&self.core, &self.queue, id, 100).await
    }
}

/// Takes and acknowledges `count` messages: payloads by topic.
async fn drain(world: &World, count: usize) -> BTreeMap<String, String> {
    let mut consumer = world.attach(99).await;
    let mut seen = BTreeMap::new();
    for _ in 0..count {
        let delivery = consumer.next().await;
        consumer.ack(&world.core, &delivery).await;
        let topic = delivery.record.message.topic.as_str().to_owned();
        assert_eq!(seen.insert(topic, text(&delivery)), None);
    }
    consumer.nothing().await;
    seen
}

fn pairs(expected: &[(&str, &str)]) -> BTreeMap<String, String> {
    expected.iter().map(|(topic, payload)| ((*topic).to_owned(), (*payload).to_owned())).collect()
}

#[tokio::test(start_paused = true)]
async fn the_newest_message_of_each_key_is_delivered() {
    let mut world = World::start(last_value()).await;
    for n in 0..5 {
        world.publish("a/1", &n.to_string()).await;
        world.publish("a/2", &n.to_string()).await;
    }
    let report = world.report().await;
    assert_eq!((report.depth, report.counters.superseded), (2, 8));
    world.crash().await;
    world.publish("a/2", "newer").await;
    let report = world.report().await;
    assert_eq!((report.depth, report.counters.superseded), (2, 9));
    assert_eq!(drain(&world, 2).await, pairs(&[("a/1", "4"), ("a/2", "newer")]));
    let report = world.report().await;
    assert_eq!((report.depth, report.bytes, report.counters.acknowledged), (0, 0, 2));
    world.publish("a/1", "after").await;
    assert_eq!(drain(&world, 1).await, pairs(&[("a/1", "after")]));
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_in_flight_when_it_is_replaced_does_not_come_again() {
    for how in ["rejected", "returned", "left", "vanished", "timeout", "crash", "acknowledged"] {
        let mut world = World::start(last_value()).await;
        let mut consumer = world.attach(1).await;
        world.publish("a/1", "old").await;
        let old = consumer.next().await;
        world.publish("a/1", "new").await;
        let new = consumer.next().await;
        assert_eq!(text(&new), "new", "both are in flight");
        consumer.ack(&world.core, &new).await;
        match how {
            "rejected" => consumer.settle(&world.core, &old, Verdict::Rejected).await,
            "returned" => consumer.settle(&world.core, &old, Verdict::Returned).await,
            "acknowledged" => consumer.ack(&world.core, &old).await,
            "left" => world.core.detach(&world.queue, consumer.consumer.id, Lost::Left).await.unwrap(),
            "vanished" => {
                world.core.detach(&world.queue, consumer.consumer.id, Lost::Vanished).await.unwrap();
            }
            "timeout" => tokio::time::sleep(Duration::from_secs(60)).await,
            _ => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                world.crash().await;
            }
        }
        assert_eq!(drain(&world, 0).await, pairs(&[]), "{how}");
        let report = world.report().await;
        let replaced = u64::from(how != "acknowledged");
        assert_eq!((report.depth, report.bytes), (0, 0), "{how}");
        let counters = (report.counters.acknowledged, report.counters.superseded);
        assert_eq!(counters, (2 - replaced, replaced), "{how}");
        world.core.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_key_replaces_nothing_and_stays() {
    let world = World::start(Definition { key: Some("message.username".into()), ..last_value() }).await;
    for n in 0..3 {
        world.publish("a/1", &n.to_string()).await;
    }
    assert_eq!(world.report().await.depth, 3);
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_computed_key_says_what_replaces_what() {
    let key = Some("message.json.device".to_owned());
    let mut world = World::start(Definition { key, ..last_value() }).await;
    let (one, two) = (r#"{"device": "one"}"#, r#"{"device": 2}"#);
    world.publish("a/1", one).await;
    world.publish("a/2", two).await;
    world.publish("a/3", one).await;
    world.crash().await;
    world.publish("a/4", two).await;
    let report = world.report().await;
    assert_eq!((report.depth, report.counters.superseded), (2, 2));
    world.publish("a/5", "no JSON").await;
    world.publish("a/6", "no JSON").await;
    let all = [("a/3", one), ("a/4", two), ("a/5", "no JSON"), ("a/6", "no JSON")];
    assert_eq!(drain(&world, 4).await, pairs(&all));
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn another_key_is_for_later_messages_only() {
    let mut world = World::start(last_value()).await;
    world.publish("a/1", "by topic").await;
    let by_client = Definition { key: Some("message.clientId".into()), ..last_value() };
    world.core.apply(&[by_client]).await.unwrap();
    world.queue = world.core.catalog().view().find(Kind::Queue, "q").unwrap();
    world.publish("a/1", "by client").await;
    assert_eq!(world.report().await.depth, 2, "the keys differ, `a/1` and the client's id");
    world.publish("a/2", "by client").await;
    assert_eq!(drain(&world, 2).await, pairs(&[("a/1", "by topic"), ("a/2", "by client")]));
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_takes_newer_values_of_its_keys() {
    let retention = Retention { max_messages: 2, ..Retention::default() };
    let world = World::start(Definition { retention, ..last_value() }).await;
    for n in 0..10 {
        world.publish("a/1", &n.to_string()).await;
        world.publish("a/2", &n.to_string()).await;
    }
    let refused = publish(&world.core, world.clock, "a/3", "x").await.unwrap_err();
    assert!(matches!(&refused, AppendError::Full { what: "retention.maxMessages", .. }), "{refused}");
    assert_eq!(drain(&world, 2).await, pairs(&[("a/1", "9"), ("a/2", "9")]));
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn rare_keys_do_not_keep_the_log_and_nobody_has_to_consume_for_that() {
    let mut world = World::start(last_value()).await;
    world.publish("a/rare", "rare").await;
    world.publish_all((0..30_000).map(|n| format!("a/{}", n % 10))).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let report = world.core.describe(&world.queue).await.unwrap().remove(0);
    assert!(report.bytes < 128 * 1024, "{} bytes of the log are left", report.bytes);
    let queue = report.queue.unwrap();
    assert_eq!((queue.depth, queue.aside, queue.counters.superseded), (11, 1, 29_990));

    world.crash().await;
    let expected: Vec<(String, String)> = (0..10).map(|n| (format!("a/{n}"), "m".into())).collect();
    world.publish("a/rare", "newer").await;
    let queue = world.report().await;
    assert_eq!((queue.depth, queue.aside, queue.counters.superseded), (11, 0, 29_991));
    let mut expected: BTreeMap<String, String> = expected.into_iter().collect();
    expected.insert("a/rare".into(), "newer".into());
    assert_eq!(drain(&world, 11).await, expected);
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn keys_are_bounded() {
    let world = World::start(last_value()).await;
    world.publish_all((0..50_000).map(|n| format!("a/{n}"))).await;
    let refused = publish(&world.core, world.clock, "a/more", "x").await.unwrap_err();
    assert!(refused.to_string().contains("number of keys"), "{refused}");
    world.publish("a/7", "newer").await;
    assert_eq!(world.report().await.depth, 50_000);
    let mut consumer = world.attach(1).await;
    let delivery = consumer.next().await;
    consumer.ack(&world.core, &delivery).await;
    world.publish("a/more", "there is room again").await;
    world.core.close().await;
}
