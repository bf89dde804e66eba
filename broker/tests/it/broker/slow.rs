//! Clients that do not read: what the broker holds for them is bounded, and nobody else notices.

use std::time::Duration;

use weir::config::ByteCount;
use weir_codec::{Packet, ReasonCode};
use weir_core::inbox::InboxOverflow;

use super::client::{
    AtLeastOnce, AtMostOnce, ExactlyOnce, V5, clean, persistent, publish, receive_maximum, text,
};
use super::{DEADLINE, Extras, TestBroker, config, memory, queue};

const TOO_SLOW: &str = "weir_connections_closed_total{reason=\"too_slow\"}";
const SHED: &str = "weir_messages_dropped_total{reason=\"client_shed\"}";
const DROPPED: &str = "weir_messages_dropped_total{reason=\"outbox_full\"}";

#[tokio::test]
async fn messages_for_a_client_that_does_not_read_are_dropped_and_counted() {
    let mut config = config();
    config.limits.outbox_bytes_per_client = ByteCount::mib(1);
    let broker = TestBroker::start_with(config, &memory()).await;
    let stuck = broker.subscriber("stuck", "t", AtMostOnce).await;
    let mut reader = broker.subscriber("reader", "t", AtLeastOnce).await;
    let mut publisher = broker.clean("p").await;
    let payload = "x".repeat(50_000);
    // What the sockets and the mailbox of the stuck one hold is far less.
    let mut sent = 0;
    while broker.metric(DROPPED).await == 0.0 {
        assert!(sent < 2000, "nothing was dropped");
        for _ in 0..20 {
            assert_eq!(publisher.publish("t", &payload).await, ReasonCode::Success);
            assert_eq!(text(&reader.take().await).len(), payload.len());
        }
        sent += 20;
    }
    let dropped = broker.metric(DROPPED).await;
    for _ in 0..20 {
        publisher.publish("t", &payload).await;
        reader.take().await;
    }
    assert_eq!(broker.metric(DROPPED).await, dropped + 20.0);
    // It reads again: what was kept comes, and then what is new.
    let mut stuck = stuck;
    let mut kept = 0.0;
    while kept + dropped + 20.0 < f64::from(sent + 20) {
        assert_eq!(text(&stuck.message().await).len(), payload.len());
        kept += 1.0;
    }
    publisher.publish("t", "new").await;
    assert_eq!(text(&stuck.message().await), "new");
}

/// On one processor too: what a publisher may send in one go is more than may wait for the reader.
#[tokio::test]
async fn a_reader_that_keeps_up_has_its_turn_before_a_publisher_fills_its_mailbox() {
    let mut config = config();
    config.limits.outbox_bytes_per_client = ByteCount::mib(1);
    let broker = TestBroker::start_on_threads(1, config, &memory(), Extras::default()).await;
    let mut publisher = broker.clean("p").await;
    let payload = "x".repeat(16 << 10);
    for round in 0..8 {
        let mut reader = broker.subscriber(&format!("reader {round}"), "t", AtLeastOnce).await;
        let many = (1..=128).map(|n| Packet::Publish(Box::new(publish(AtLeastOnce, n, "t", &payload))));
        publisher.send_all(many).await;
        for n in 1..=128 {
            assert_eq!(publisher.pubacked(n).await, ReasonCode::Success);
        }
        assert_eq!(reader.take_texts(128).await, vec![payload.clone(); 128]);
        reader.disconnect().await;
    }
    assert_eq!(broker.metric(TOO_SLOW).await, 0.0);
}

#[tokio::test]
async fn a_client_for_which_too_much_is_promised_is_shed_and_nobody_else() {
    let mut config = config();
    config.limits.outbox_bytes_per_client = ByteCount::mib(1);
    let broker = TestBroker::start_with(config, &memory()).await;
    // The one does not read, the other does not acknowledge.
    let _stuck = broker.subscriber("stuck", "t", AtLeastOnce).await;
    let mut silent = broker.connect(receive_maximum(clean("silent", V5), 1)).await;
    silent.subscribe("t", AtLeastOnce).await;
    let mut reader = broker.subscriber("reader", "t", AtLeastOnce).await;
    let mut publisher = broker.clean("p").await;
    let payload = "x".repeat(50_000);
    let flood = async {
        while broker.metric(TOO_SLOW).await < 2.0 {
            for _ in 0..20 {
                assert_eq!(publisher.publish("t", &payload).await, ReasonCode::Success);
                assert_eq!(text(&reader.take().await).len(), payload.len());
            }
        }
    };
    tokio::time::timeout(DEADLINE, flood).await.expect("both are shed");
    silent.message().await;
    silent.told(ReasonCode::QuotaExceeded).await;
    assert!(broker.metric(SHED).await > 2.0);
    assert_eq!(broker.metric(DROPPED).await, 0.0);
    assert_eq!(broker.metric("weir_connections").await, 2.0);
}

#[tokio::test]
async fn a_client_that_takes_nothing_for_a_while_is_shed() {
    let mut config = config();
    config.limits.slow_client_timeout = Duration::from_millis(300);
    let broker = TestBroker::start_with(config, &memory()).await;
    let mut stuck = broker.subscriber("stuck", "t", AtMostOnce).await;
    let mut reader = broker.subscriber("reader", "t", AtMostOnce).await;
    let mut publisher = broker.clean("p").await;
    let payload = "x".repeat(50_000);
    while broker.metric(TOO_SLOW).await == 0.0 {
        publisher.publish("t", &payload).await;
        reader.message().await;
        // It is alive, and does not read.
        let _ = stuck.try_send(Packet::PingReq).await;
    }
    reader.synced().await;
    assert_eq!(broker.metric("weir_connections").await, 2.0);
}

#[tokio::test]
async fn live_messages_leave_a_small_receive_maximum_to_queues_as_well() {
    let broker = TestBroker::start().await;
    broker.declare(&[queue("work", "w")]).await;
    let mut client = broker.connect(receive_maximum(clean("c", V5), 1)).await;
    client.subscribe("t", AtLeastOnce).await;
    client.subscribe("$queue/work", AtLeastOnce).await;
    let mut publisher = broker.clean("p").await;
    let live: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    for text in &live {
        publisher.publish("t", text).await;
    }
    for _ in 0..10 {
        publisher.publish("w", "work").await;
    }
    let (mut work, mut others) = (0, 0);
    while work < 10 {
        if text(&client.take().await) == "work" {
            work += 1
        } else {
            others += 1
        };
    }
    assert!(others < 290, "the queue waited for {others} live messages");
    client.take_texts(300 - others).await;
}

#[tokio::test]
async fn a_consumer_that_does_not_read_leaves_the_rest_to_others() {
    let broker = TestBroker::start().await;
    let mut work = queue("work", "t");
    work.dispatch.max_inflight_per_consumer = 10;
    broker.declare(&[work]).await;
    let stuck = broker.subscriber("stuck", "$queue/work", AtLeastOnce).await;
    let mut reader = broker.subscriber("reader", "$queue/work", AtLeastOnce).await;
    let mut publisher = broker.clean("p").await;
    let payload = "x".repeat(50_000);
    for _ in 0..100 {
        publisher.post(publish(AtLeastOnce, 1, "t", &payload)).await;
        publisher.pubacked(1).await;
    }
    for _ in 0..90 {
        reader.take().await;
    }
    reader.quiet().await;
    stuck.vanish();
    for _ in 0..10 {
        reader.take().await;
    }
}

#[tokio::test]
async fn what_a_full_inbox_does_not_take_is_counted() {
    let mut config = config();
    config.limits.inbox_messages_per_client = 3;
    let broker = TestBroker::start_with(config, &memory()).await;
    let mut subscriber = broker.connect(persistent("s", V5)).await;
    subscriber.subscribe("t", AtLeastOnce).await;
    subscriber.disconnect().await;
    broker.publish("t", &["0", "1", "2", "3", "4"]).await;
    assert_eq!(broker.metric("weir_inbox_dropped_full_total").await, 2.0);
    let mut subscriber = broker.resume(persistent("s", V5)).await;
    assert_eq!(subscriber.take_texts(3).await, ["0", "1", "2"]);
    subscriber.synced().await;
    subscriber.disconnect().await;
    broker.publish("t", &["5"]).await;
    let mut subscriber = broker.resume(persistent("s", V5)).await;
    assert_eq!(text(&subscriber.take().await), "5");
}

#[tokio::test]
async fn a_full_inbox_gives_up_its_oldest_or_refuses_as_configured() {
    for (overflow, answers, kept) in [
        (InboxOverflow::DropOldest, [false; 5], ["2", "3", "4"]),
        (InboxOverflow::RejectPublish, [false, false, false, true, true], ["0", "1", "2"]),
    ] {
        let mut config = config();
        config.limits.inbox_messages_per_client = 3;
        config.limits.inbox_overflow = overflow;
        let broker = TestBroker::start_with(config, &memory()).await;
        let mut subscriber = broker.connect(persistent("s", V5)).await;
        subscriber.subscribe("t", AtLeastOnce).await;
        subscriber.disconnect().await;
        let mut publisher = broker.clean("p").await;
        for (n, refused) in answers.into_iter().enumerate() {
            let answer = publisher.publish("t", &n.to_string()).await;
            let expected = if refused { ReasonCode::QuotaExceeded } else { ReasonCode::Success };
            assert_eq!(answer, expected, "{overflow:?} {n}");
        }
        let (dropped, refused) = if answers[4] { (0.0, 2.0) } else { (2.0, 0.0) };
        assert_eq!(broker.metric("weir_inbox_dropped_full_total").await, dropped);
        assert_eq!(broker.metric("weir_inbox_refused_full_total").await, refused);
        let mut subscriber = broker.resume(persistent("s", V5)).await;
        assert_eq!(subscriber.take_texts(3).await, kept);
        subscriber.synced().await;
    }
}

#[tokio::test]
async fn a_message_of_qos_2_leaves_the_inbox_once() {
    let mut config = config();
    config.limits.inbox_messages_per_client = 2;
    let broker = TestBroker::start_with(config, &memory()).await;
    let mut subscriber = broker.connect(persistent("s", V5)).await;
    subscriber.subscribe("t", ExactlyOnce).await;
    let mut publisher = broker.clean("p").await;
    for n in 1..=2 {
        publisher.publish_twice_acknowledged(n, "t", &n.to_string()).await;
    }
    let first = subscriber.message().await;
    subscriber.message().await;
    subscriber.receive_twice_acknowledged(&first).await;
    // Stored behind that.
    subscriber.synced().await;
    subscriber.subscribe("other", ExactlyOnce).await;
    // There is room for one beside the second, which is on its way.
    for n in 3..=4 {
        publisher.publish_twice_acknowledged(n, "t", &n.to_string()).await;
    }
    assert_eq!(broker.metric("weir_inbox_dropped_full_total").await, 1.0);
}
