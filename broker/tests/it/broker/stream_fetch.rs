//! Workers that pull messages of a stream by requests to `$weir/stream/<name>/fetch`.

use serde_json::{Value, json};
use weir_codec::{Publish, ReasonCode};
use weir_core::definition::Kind;
use weir_core::keyspace::segment;
use weir_core::stream::Start;
use weir_topic::TopicName;

use super::auth::{RULES, anna, guarded, with};
use super::client::{
    AtLeastOnce, AtMostOnce, Client, ExactlyOnce, V5, V311, clean, filter, id, publish, text,
};
use super::{TestBroker, memory, stream};

const FETCH: &str = "$weir/stream/log/fetch";

/// A request whose answer is to come to `answers/r`, and say `tag`.
fn request(n: u16, payload: &str, tag: &str) -> Publish {
    let mut request = publish(AtLeastOnce, n, FETCH, payload);
    request.properties.response_topic = Some(TopicName::parse("answers/r").unwrap());
    request.properties.correlation_data = Some(tag.to_owned().into());
    request
}

/// What is answered to a request with this payload.
async fn asked(client: &mut Client, payload: &Value) -> Value {
    client.post(request(7, &payload.to_string(), "tag")).await;
    assert_eq!(client.pubacked(7).await, ReasonCode::Success);
    answer(client, "tag").await
}

async fn answer(client: &mut Client, tag: &str) -> Value {
    let answer = client.take().await;
    let properties = &answer.properties;
    assert_eq!(properties.correlation_data.as_deref(), Some(tag.as_bytes()));
    assert_eq!(properties.content_type.as_deref(), Some("application/json"));
    assert_eq!(answer.topic.as_ref().unwrap().as_str(), "answers/r");
    serde_json::from_str(text(&answer)).unwrap()
}

async fn start() -> (TestBroker, Client) {
    let broker = TestBroker::start().await;
    broker.declare(&[stream("log", "log/#")]).await;
    let client = broker.subscriber("r", "answers/r", AtLeastOnce).await;
    (broker, client)
}

fn payloads(answer: &Value) -> Vec<&str> {
    answer["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["payload"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn a_worker_pulls_a_stream_batch_by_batch() {
    let (broker, mut worker) = start().await;
    // Nobody gets a request, and no stream takes one.
    let mut everything = broker.subscriber("all", "#", AtMostOnce).await;
    broker.publish("log/1", &["0", "1", "2", "3", "4"]).await;
    for _ in 0..5 {
        everything.message().await;
    }
    let mut offset = json!("earliest");
    let mut seen = Vec::new();
    loop {
        let answer = asked(&mut worker, &json!({"offset": offset, "maxMessages": 2})).await;
        assert_eq!((&answer["stream"], &answer["end"]), (&json!("log"), &json!({"0": 5})));
        let payloads = payloads(&answer);
        assert!(payloads.len() <= 2);
        seen.extend(payloads.iter().map(ToString::to_string));
        offset = answer["next"].clone();
        if payloads.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["0", "1", "2", "3", "4"]);
    assert_eq!(offset, json!({"0": 5}));
    let one = asked(&mut worker, &json!({"offset": 3, "shard": 0, "maxMessages": 1})).await;
    assert_eq!((&one["messages"][0]["offset"], &one["messages"][0]["topic"]), (&json!(3), &json!("log/1")));
    assert!(
        payloads(&asked(&mut worker, &json!({"offset": "earliest", "filter": "log/2"})).await).is_empty()
    );
    // It waits for what comes.
    worker.post(request(8, r#"{"offset": {"0": 5}, "waitMs": 20000}"#, "late")).await;
    assert_eq!(worker.pubacked(8).await, ReasonCode::Success);
    broker.publish("log/1", &["5"]).await;
    assert_eq!(payloads(&answer(&mut worker, "late").await), ["5"]);
    // At QoS 2 and 0 too.
    let mut twice = request(9, "{}", "twice");
    twice.header.qos = ExactlyOnce;
    worker.post(twice).await;
    assert_eq!(worker.pubreced(9).await, ReasonCode::Success);
    assert!(payloads(&answer(&mut worker, "twice").await).is_empty());
    worker.pubrel(id(9)).await;
    worker.pubcomped(9).await;
    let mut once = request(1, "", "once");
    (once.header.qos, once.header.packet_id) = (AtMostOnce, None);
    worker.post(once).await;
    assert_eq!(worker.message().await.header.qos, AtMostOnce);
    for _ in 0..10 {
        // The answers are ordinary publishes.
        let seen = everything.message().await;
        assert!(!seen.topic.as_ref().unwrap().as_str().starts_with('$'), "{seen:?}");
    }
    broker.metric_reaches("weir_stream_fetches_total{outcome=\"answered\"}", 9.0).await;
}

#[tokio::test]
async fn a_worker_is_told_of_damage_and_the_way_past_it() {
    let store = memory();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[stream("log", "log/#")]).await;
    let mut worker = broker.subscriber("r", "answers/r", AtLeastOnce).await;
    broker.publish("log/1", &["0"]).await;
    broker.publish("log/1", &["1"]).await;
    let log = broker.core.catalog().view().find(Kind::Stream, "log").unwrap().logs[0];
    let mut tx = store.begin();
    tx.set(&segment::key(&log, 0), b"not a segment");
    tx.commit().await.unwrap();
    for _ in 0..2 {
        let error = asked(&mut worker, &json!({"offset": "earliest"})).await["error"].clone();
        assert_eq!(error["code"], "damaged");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("at 0:0 is damaged"), "{message}");
        assert!(message.contains("`weir stream trim log --before 0:1`"), "{message}");
    }
    broker.metric_reaches("weir_damaged_records_total", 1.0).await;
    // It is as it says, and a subscriber that waits there goes on.
    let mut reader = broker.clean("reader").await;
    reader.read_from("$stream/log", AtLeastOnce, "earliest").await;
    reader.quiet().await;
    let object = broker.core.catalog().view().find(Kind::Stream, "log").unwrap();
    broker.core.trim(&object, &Start::Offsets(vec![(0, 1)]), None, false).await.unwrap();
    assert_eq!(text(&reader.take().await), "1");
    assert_eq!(payloads(&asked(&mut worker, &json!({"offset": "earliest"})).await), ["1"]);
    assert!((broker.metric("weir_damaged_records_total").await - 1.0).abs() < 0.1, "once");
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said() {
    let (broker, mut worker) = start().await;
    broker.publish("log/1", &["x"]).await;
    for (payload, code, why) in [
        (json!({"ofset": 1}), "bad-request", "unknown field `ofset`"),
        (json!({"shard": 1}), "bad-request", "allowed: 0 to 0"),
        (json!({"offset": "soon"}), "bad-request", "offset: allowed: earliest"),
        (json!({"waitMs": 60_000}), "bad-request", "waitMs: allowed: 0 to 30000"),
    ] {
        let error = &asked(&mut worker, &payload).await["error"];
        assert_eq!(error["code"], code);
        assert!(error["message"].as_str().unwrap().contains(why), "{error}");
    }
    let mut other = request(3, "{}", "t");
    other.topic = Some(TopicName::parse("$weir/stream/none/fetch").unwrap());
    worker.post(other).await;
    assert_eq!(worker.pubacked(3).await, ReasonCode::Success);
    assert_eq!(answer(&mut worker, "t").await["error"]["code"], "not-found");

    // What has no answer is refused.
    assert_eq!(
        worker.publish(FETCH, "{}").await,
        ReasonCode::ImplementationSpecificError,
        "no Response Topic"
    );
    let mut retained = request(4, "{}", "t");
    retained.header.retain = true;
    worker.post(retained).await;
    assert_eq!(worker.pubacked(4).await, ReasonCode::ImplementationSpecificError);
    for forbidden in ["$weir/stream/log/fetch", "$queue/q", "$SYS/x"] {
        let mut request = request(5, "{}", "t");
        request.properties.response_topic = Some(TopicName::parse(forbidden).unwrap());
        worker.post(request).await;
        assert_eq!(worker.pubacked(5).await, ReasonCode::TopicNameInvalid, "{forbidden}");
    }
    for topic in ["$weir/x", "$weir/stream/log", "$weir/stream/a b/fetch"] {
        assert_eq!(worker.publish(topic, "{}").await, ReasonCode::TopicNameInvalid, "{topic}");
    }
    for to in ["$weir/#", "$weir/stream/log/fetch", "$share/g/$weir/+"] {
        let suback = worker.try_subscribe(vec![filter(to, AtMostOnce)], None, Vec::new()).await;
        assert_eq!(suback.reasons, [ReasonCode::TopicFilterInvalid], "{to}");
    }
    let mut old = broker.connect(clean("old", V311)).await;
    old.post(publish(AtLeastOnce, 1, FETCH, "{}")).await;
    old.ended().await;
}

#[tokio::test]
async fn an_answer_fits_what_its_client_takes() {
    let (broker, _) = start().await;
    broker.publish("log/1", &["x".repeat(300).as_str(); 5]).await;
    broker.publish("log/1", &["y".repeat(2000).as_str()]).await;
    let mut connect = clean("small", V5);
    connect.maximum_packet_size = std::num::NonZeroU32::new(1500);
    let mut worker = broker.connect(connect).await;
    worker.subscribe("answers/r", AtLeastOnce).await;
    let first = asked(&mut worker, &json!({"offset": "earliest"})).await;
    let count = payloads(&first).len() as u64;
    assert!((1..5).contains(&count), "{first}");
    assert_eq!(first["next"], json!({"0": count}));
    let error = &asked(&mut worker, &json!({"offset": 5})).await["error"];
    assert_eq!(error["code"], "too-large");
    assert!(error["message"].as_str().unwrap().contains("{\"0\": 6}"), "{error}");
}

#[tokio::test]
async fn fetches_under_way_are_few_and_end_with_their_connection() {
    let (broker, mut worker) = start().await;
    for n in 1..=4 {
        worker.post(request(n, r#"{"waitMs": 30000}"#, "t")).await;
        assert_eq!(worker.pubacked(n).await, ReasonCode::Success);
    }
    worker.post(request(5, "{}", "t")).await;
    assert_eq!(worker.pubacked(5).await, ReasonCode::QuotaExceeded);
    broker.metric_reaches("weir_stream_readers{stream=\"log\"}", 4.0).await;
    let mut other = broker.subscriber("other", "answers/r", AtLeastOnce).await;
    worker.disconnect().await;
    let gone = async {
        while broker.metric("weir_stream_readers{stream=\"log\"}").await > 0.0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(super::DEADLINE, gone).await.expect("they end");
    broker.publish("log/1", &["x"]).await;
    other.quiet().await;
    assert!(broker.metric("weir_stream_fetches_total{outcome=\"refused\"}").await >= 1.0);
}

#[tokio::test]
async fn no_message_is_left_out_between_fetches() {
    let (broker, mut worker) = start().await;
    let payloads: Vec<String> = (0..60).map(|n| "x".repeat([10, 30_000, 300, 45_000][n % 4])).collect();
    for payloads in payloads.chunks(4) {
        broker.publish("log/1", &payloads.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    let mut next = 0;
    while next < 60 {
        let answer = asked(&mut worker, &json!({"offset": next, "maxBytes": 40_000})).await;
        for message in answer["messages"].as_array().unwrap() {
            assert_eq!(message["offset"], next);
            next += 1;
        }
        assert_eq!(answer["next"], json!({"0": next}));
    }
}

#[tokio::test]
async fn workers_that_wait_hold_up_nobody() {
    let (broker, mut worker) = start().await;
    broker.publish("log/1", &["x"]).await;
    let mut waiting = Vec::new();
    for n in 0..40 {
        let mut idle = broker.connect(clean(&format!("idle-{n}"), V5)).await;
        for n in 1..=4 {
            idle.post(request(n, r#"{"waitMs": 30000, "maxBytes": 4194304}"#, "t")).await;
            assert_eq!(idle.pubacked(n).await, ReasonCode::Success);
        }
        waiting.push(idle);
    }
    broker.metric_reaches("weir_stream_readers{stream=\"log\"}", 160.0).await;
    assert_eq!(payloads(&asked(&mut worker, &json!({"offset": "earliest"})).await), ["x"]);
}

#[tokio::test]
async fn who_may_not_read_the_stream_may_not_fetch_it() {
    let (broker, _dir) = guarded(RULES).await;
    broker.declare(&[stream("log", "log/#")]).await;
    let ask = |n: u16, to: &str| {
        let mut request = request(n, "{}", "t");
        request.properties.response_topic = Some(TopicName::parse(to.to_owned()).unwrap());
        request
    };
    let mut anna = broker.connect(anna(V5)).await;
    anna.post(ask(1, "open/a")).await;
    assert_eq!(anna.pubacked(1).await, ReasonCode::Success);
    anna.post(ask(2, "nowhere/allowed")).await;
    assert_eq!(anna.pubacked(2).await, ReasonCode::NotAuthorized, "she may not publish there");
    // Bob may have the name, and not what is in it.
    let mut bob = broker.connect(with(clean("bob-1", V5), "bob", "bob")).await;
    bob.post(ask(1, "open/b")).await;
    assert_eq!(bob.pubacked(1).await, ReasonCode::NotAuthorized);
}
