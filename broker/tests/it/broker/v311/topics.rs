//! Topic names and filters.

use weir_codec::ReasonCode;

use super::super::TestBroker;
use super::super::client::{AtLeastOnce, AtMostOnce, V311, clean, publish, retained, text};

// Conformance v311: 4.7.1-2, 4.7.1-3, 4.7.3-1
#[tokio::test]
async fn wildcards_stand_alone_in_their_level_and_the_multi_level_one_at_the_end() {
    let broker = TestBroker::start().await;
    let mut client = broker.old("c").await;
    for good in ["#", "+", "+/+", "/#", "a/#", "a/+/b", "+/#", "/+", "a//+", "/"] {
        assert_eq!(client.subscribed(good, AtMostOnce).await, ReasonCode::Success, "{good}");
        client.unsubscribe(good).await;
    }
    for bad in ["", "a#", "#a", "a/#/b", "#/", "##", "a+", "+a", "a/b+/c", "++", "a/+#", "a/#+"] {
        assert_eq!(client.subscribed(bad, AtMostOnce).await, ReasonCode::UnspecifiedError, "{bad}");
    }
    broker.publish("a/b", &["x"]).await;
    client.synced().await;
}

// Conformance v311: 4.7.2-1
#[tokio::test]
async fn a_leading_wildcard_does_not_match_topics_that_begin_with_a_dollar_sign() {
    let broker = TestBroker::start().await;
    let mut publisher = broker.old("p").await;
    publisher.post(retained(AtLeastOnce, 1, "$house/lamp", "kept")).await;
    publisher.pubacked(1).await;
    let mut all = broker.old("all").await;
    for to in ["#", "+/lamp", "+/+", "+/#"] {
        all.subscribe(to, AtLeastOnce).await;
    }
    let mut exact = broker.old("exact").await;
    for to in ["$house/lamp", "$house/+", "$house/#"] {
        exact.subscribe(to, AtLeastOnce).await;
        assert_eq!(text(&exact.take().await), "kept");
    }
    publisher.publish("$house/lamp", "live").await;
    // A dollar sign elsewhere is a character like any other.
    publisher.publish("a/$house", "other").await;
    assert_eq!(text(&exact.take().await), "live");
    exact.synced().await;
    assert_eq!(text(&all.take().await), "other");
    all.synced().await;
}

// Conformance v311: 4.7.3-4, 3.3.2-3
#[tokio::test]
async fn topics_are_compared_character_by_character() {
    let broker = TestBroker::start().await;
    let topics = [
        "accounts",
        "ACCOUNTS",
        "Accounts",
        "/accounts",
        "accounts/",
        "accounts//",
        "caf\u{e9}",
        "cafe\u{301}",
        " accounts",
    ];
    let mut clients = Vec::new();
    for (n, topic) in topics.iter().enumerate() {
        clients.push(broker.old_subscriber(&format!("c{n}"), topic, AtMostOnce).await);
    }
    let mut publisher = broker.connect(clean("p", V311)).await;
    for topic in topics {
        publisher.post(publish(AtMostOnce, 0, topic, topic)).await;
    }
    publisher.synced().await;
    for (client, topic) in clients.iter_mut().zip(topics) {
        let message = client.message().await;
        assert_eq!((text(&message), message.topic.as_ref().unwrap().as_str()), (topic, topic));
        client.synced().await;
    }
}
