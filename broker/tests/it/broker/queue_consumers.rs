//! What a queue consumer may rely on besides its messages: its session, other kinds of subscriptions, who may publish,
//! and what the metrics say of it.

use weir_codec::{Publish, ReasonCode};

use super::auth::{RULES, anna, guarded, with};
use super::client::{
    AtLeastOnce, AtMostOnce, V5, V311, again, clean, filter, number, persistent, property, publish, text,
};
use super::{TestBroker, queue, stream};

async fn start() -> TestBroker {
    let broker = TestBroker::start().await;
    broker.declare(&[queue("work", "job/#")]).await;
    broker
}

/// A session resends what is its own; what it held of a queue comes from the queue, once.
#[tokio::test]
async fn what_a_lost_connection_held_comes_once_to_the_session_that_returns() {
    for version in [V5, V311] {
        let broker = start().await;
        let mut consumer = broker.connect(persistent("c", version)).await;
        consumer.subscribe("live", AtLeastOnce).await;
        consumer.subscribe("$queue/work", AtLeastOnce).await;
        broker.publish("job/1", &["queued"]).await;
        let held = consumer.message().await;
        assert_eq!((text(&held), held.header.dup), ("queued", false));
        broker.publish("live", &["live"]).await;
        let live = consumer.message().await;
        consumer.vanish();

        let mut consumer = broker.resume(persistent("c", version)).await;
        let back = [consumer.message().await, consumer.message().await];
        let of = |wanted: &str| -> &Publish { back.iter().find(|message| text(message) == wanted).unwrap() };
        assert_eq!(*of("live"), again(live));
        let queued = of("queued");
        assert!(!queued.header.dup, "{queued:?}");
        assert_ne!(queued.header.packet_id, of("live").header.packet_id);
        if version == V5 {
            assert_eq!(number(queued, "delivery-count"), 2);
        }
        consumer.quiet().await;
        for message in &back {
            consumer.puback(message, ReasonCode::Success).await;
        }
        consumer.synced().await;
        consumer.vanish();
        // An acknowledgement is what ends it, not that it was sent.
        let mut consumer = broker.resume(persistent("c", version)).await;
        consumer.quiet().await;
    }
}

#[tokio::test]
async fn shared_subscriptions_are_no_queues_and_take_nothing_from_them() {
    let broker = start().await;
    let mut shared = broker.clean("shared").await;
    shared.subscribe("$share/work/job/#", AtLeastOnce).await;
    broker.publish("job/1", &["x"]).await;
    let message = shared.take().await;
    assert_eq!((text(&message), property(&message, "queue")), ("x", None));
    // Not a shared subscription to `job/1`, but the queue `job`, which is not there.
    let suback = shared.try_subscribe(vec![filter("$queue/job/1", AtLeastOnce)], None, Vec::new()).await;
    assert!(suback.properties.reason_string.unwrap().contains("does not exist yet"));
    broker.publish("job/1", &["y"]).await;
    assert_eq!(text(&shared.take().await), "y");
    shared.quiet().await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    assert_eq!(consumer.take_texts(2).await, ["x", "y"]);
}

/// Also at QoS 0: stored, delivered at QoS 1, and held until it is acknowledged.
#[tokio::test]
async fn what_is_published_at_qos_0_is_queued_like_the_rest() {
    let broker = start().await;
    let mut publisher = broker.clean("p").await;
    for n in 0..50 {
        publisher.post(publish(AtMostOnce, 0, "job/1", &n.to_string())).await;
    }
    broker.metric_reaches("weir_queue_messages_total{queue=\"work\",event=\"published\"}", 50.0).await;
    let consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    consumer.vanish();
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    let expected: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let mut texts = consumer.take_texts(50).await;
    texts.sort_by_key(|text| text.parse::<u32>().unwrap());
    assert_eq!(texts, expected);
}

#[tokio::test]
async fn whoever_may_publish_to_the_topic_may_publish_to_the_queue() {
    let (broker, _dir) = guarded(RULES).await;
    broker.declare(&[queue("other", "open/#"), stream("all", "#")]).await;
    // Bob has no right on either name, nor to subscribe to all.
    let mut bob = broker.connect(with(clean("bob-1", V5), "bob", "bob")).await;
    assert_eq!(bob.publish("open/a", "x").await, ReasonCode::Success);
    assert_eq!(bob.publish("open/secret/a", "x").await, ReasonCode::NotAuthorized);
    let other = broker.core.catalog().view().find(weir_core::definition::Kind::Queue, "other").unwrap();
    let depth = broker.core.describe(&other).await.unwrap().remove(0).queue.unwrap().depth;
    assert_eq!(depth, 1);
    let mut anna = broker.connect(anna(V5)).await;
    assert_eq!(anna.subscribed("$queue/other", AtLeastOnce).await, ReasonCode::NotAuthorized);
}

#[tokio::test]
async fn the_metrics_tell_what_happened_to_a_queue() {
    let broker = start().await;
    broker.publish("job/1", &["a", "b", "c"]).await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    let [first, second, held] =
        [consumer.message().await, consumer.message().await, consumer.message().await];
    consumer.puback(&first, ReasonCode::Success).await;
    consumer.puback(&second, ReasonCode::UnspecifiedError).await;
    let again = consumer.message().await;
    assert_eq!((text(&again), text(&held)), ("b", "c"));
    let metric = async |rest: &str| broker.metric(&format!("weir_queue_{rest}")).await;
    for (event, count) in [
        ("published", 3.0),
        ("delivered", 4.0),
        ("redelivered", 1.0),
        ("rejected", 1.0),
        ("acknowledged", 1.0),
    ] {
        let name = format!("messages_total{{queue=\"work\",event=\"{event}\"}}");
        assert_eq!(metric(&name).await, count, "{event}");
    }
    for (name, value) in [("depth", 2.0), ("in_flight", 2.0), ("waiting", 0.0), ("consumers", 1.0)] {
        assert_eq!(metric(&format!("{name}{{queue=\"work\"}}")).await, value, "{name}");
    }
    // Who leaves in order has failed nothing: what it held is delivered, and not redelivered.
    consumer.disconnect().await;
    let mut consumer = broker.subscriber("d", "$queue/work", AtLeastOnce).await;
    consumer.take_texts(2).await;
    consumer.synced().await;
    let redelivered = metric("messages_total{queue=\"work\",event=\"redelivered\"}").await;
    assert_eq!(redelivered, 2.0, "only what was refused once");
    assert_eq!(metric("depth{queue=\"work\"}").await, 0.0);
}
