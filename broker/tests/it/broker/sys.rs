//! Figures of the broker under `$SYS`: there at once, then as they change, and nowhere but with who asked.

use std::collections::BTreeMap;
use std::time::Duration;

use weir_codec::{Publish, ReasonCode};

use super::client::{AtLeastOnce, AtMostOnce, Client, V5, clean, persistent, publish, text};
use super::{TestBroker, config, memory};

/// So long that nothing changes in a test.
const ONCE: Duration = Duration::from_hours(1);
/// As often as can be.
const OFTEN: Duration = Duration::from_millis(100);
/// Topics under `$SYS`.
const TOPICS: usize = 51;

async fn broker(interval: Duration) -> TestBroker {
    let mut config = config();
    config.sys_interval = interval;
    TestBroker::start_with(config, &memory()).await
}

impl Client {
    /// The next message, which is a figure of QoS 0.
    async fn figure(&mut self) -> Publish {
        let message = self.message().await;
        assert!(topic(&message).starts_with("$SYS/broker/"), "{message:?}");
        assert_eq!(message.header.qos, AtMostOnce);
        message
    }

    /// The figures that a new subscription gets.
    async fn figures(&mut self) -> BTreeMap<String, String> {
        let mut figures = BTreeMap::new();
        for _ in 0..TOPICS {
            let message = self.figure().await;
            assert!(message.header.retain, "{message:?}");
            figures.insert(topic(&message).to_owned(), text(&message).to_owned());
        }
        figures
    }

    /// Waits until a figure has this value.
    async fn figure_reaches(&mut self, name: &str, value: &str) -> Publish {
        let reached = async {
            loop {
                let message = self.figure().await;
                if topic(&message) == format!("$SYS/broker/{name}") && text(&message) == value {
                    return message;
                }
            }
        };
        let reached = tokio::time::timeout(super::DEADLINE, reached).await;
        reached.unwrap_or_else(|_| panic!("{name} does not become {value}"))
    }
}

fn topic(message: &Publish) -> &str {
    message.topic.as_ref().expect("no aliases were asked for").as_str()
}

#[tokio::test]
async fn by_default_there_is_nothing() {
    let broker = TestBroker::start().await;
    let mut client = broker.subscriber("c", "$SYS/#", AtLeastOnce).await;
    client.subscribe("$SYS/broker/uptime", AtMostOnce).await;
    client.synced().await;
}

#[tokio::test]
async fn a_new_subscription_gets_every_figure_at_once() {
    let broker = broker(ONCE).await;
    for connect in [clean("c", V5), persistent("c", V5)] {
        let mut client = broker.connect(connect).await;
        client.subscribe("$SYS/#", AtLeastOnce).await;
        let figures = client.figures().await;
        assert_eq!(figures.len(), TOPICS);
        let version = concat!("weir version ", env!("CARGO_PKG_VERSION"));
        for (name, value) in [
            ("version", version),
            ("uptime", "0 seconds"),
            ("clients/total", "0"),
            ("retained messages/count", "0"),
            ("load/messages/received/1min", "0.00"),
        ] {
            assert_eq!(figures[&format!("$SYS/broker/{name}")], value, "{name}");
        }
        client.unsubscribe("$SYS/#").await;
        client.subscribe("$SYS/broker/clients/+", AtMostOnce).await;
        for _ in 0..7 {
            client.figure().await;
        }
        client.synced().await;
        client.disconnect().await;
    }
    let kept =
        broker.metric("weir_retained_stored_total").await + broker.metric("weir_inbox_appended_total").await;
    assert_eq!(kept, 0.0, "nothing of it is stored");
}

#[tokio::test]
async fn wildcards_do_not_reach_them() {
    let broker = broker(OFTEN).await;
    let mut all = broker.clean("all").await;
    for filter in ["#", "+/#", "+/broker/bytes/sent", "$share/g/#"] {
        all.subscribe(filter, AtLeastOnce).await;
    }
    // So that two rounds have passed.
    let mut watcher = broker.subscriber("watcher", "$SYS/broker/bytes/sent", AtMostOnce).await;
    for _ in 0..3 {
        watcher.figure().await;
    }
    all.synced().await;
}

#[tokio::test]
async fn figures_follow_what_happens() {
    let broker = broker(OFTEN).await;
    let watch = async |filter| broker.subscriber("", filter, AtMostOnce).await;
    let mut busy = broker.connect(persistent("busy", V5)).await;
    let mut publishes = watch("$SYS/broker/publish/messages/received").await;
    assert_eq!(text(&publishes.figure().await), "0");
    for n in 1..=3 {
        busy.post(publish(AtMostOnce, 0, "t", &"x".repeat(n * 100))).await;
    }
    let change = publishes.figure_reaches("publish/messages/received", "3").await;
    assert!(!change.header.retain, "a change is an ordinary message");
    watch("$SYS/broker/publish/bytes/received").await.figure_reaches("publish/bytes/received", "600").await;

    let mut shared = watch("$SYS/broker/shared_subscriptions/count").await;
    busy.subscribe("$share/g/t", AtLeastOnce).await;
    shared.figure_reaches("shared_subscriptions/count", "1").await;
    busy.unsubscribe("$share/g/t").await;
    shared.figure_reaches("shared_subscriptions/count", "0").await;

    let mut away = watch("$SYS/broker/clients/disconnected").await;
    busy.disconnect().await;
    away.figure_reaches("clients/disconnected", "1").await;
    let resumed = broker.resume(persistent("busy", V5)).await;
    away.figure_reaches("clients/disconnected", "0").await;
    let mut all = watch("$SYS/broker/clients/total").await;
    resumed.disconnect_with(ReasonCode::Success, Some(0)).await;
    // Those that watch publishes, shares, who is away, and this.
    all.figure_reaches("clients/total", "4").await;
}

#[tokio::test]
async fn sessions_that_are_away_get_nothing_later() {
    let broker = broker(OFTEN).await;
    let mut away = broker.connect(persistent("away", V5)).await;
    away.subscribe("$SYS/broker/bytes/sent", AtLeastOnce).await;
    away.figure().await;
    away.disconnect().await;
    let mut watcher = broker.subscriber("watcher", "$SYS/broker/bytes/sent", AtMostOnce).await;
    for _ in 0..3 {
        watcher.figure().await;
    }
    let mut back = broker.resume(persistent("away", V5)).await;
    // Of a round after the return, not kept: that would be of QoS 1.
    back.figure().await;
    assert_eq!(broker.metric("weir_inbox_appended_total").await, 0.0);
}
