//! Queues and streams that come into being by a subscription, and what their declarations change while consumers are
//! connected.

use weir::config::{Config, NamePattern};
use weir_codec::{QoS, ReasonCode, SubAck};
use weir_core::catalog::Origin;
use weir_core::definition::Kind;

use super::auth::{anna, guarded_config};
use super::client::{AtLeastOnce, AtMostOnce, Client, V5, V311, clean, filter, persistent, text};
use super::{TestBroker, config, memory, queue};

/// `$q/job/#` is called so.
const JOB: &str = "auto-wxa3zjf7ntwm5miwjxmkacmf33";

fn patterns(texts: &[&str]) -> Vec<NamePattern> {
    texts.iter().map(|text| NamePattern::parse(text).unwrap()).collect()
}

fn creating(config: Config) -> Config {
    Config {
        auto_create_queues: patterns(&["auto-*", "work"]),
        auto_create_streams: patterns(&["auto-*", "log"]),
        ..config
    }
}

async fn start() -> TestBroker {
    TestBroker::start_with(creating(config()), &memory()).await
}

async fn ask(client: &mut Client, to: &str, qos: QoS) -> SubAck {
    client.try_subscribe(vec![filter(to, qos)], None, Vec::new()).await
}

fn said(suback: &SubAck) -> &str {
    suback.properties.reason_string.as_deref().unwrap_or_default()
}

#[tokio::test]
async fn a_subscription_creates_what_a_pattern_allows_and_only_that() {
    let broker = start().await;
    for (version, name, to, round) in [
        (V5, "work", "$queue/work/job/+", "0"),
        (V311, JOB, "$q/job/#", "1"),
        (V5, "auto-x", "$queue/auto-x/other", "2"),
    ] {
        let mut consumer = broker.connect(clean("c", version)).await;
        let suback = ask(&mut consumer, to, AtLeastOnce).await;
        assert_eq!((suback.reasons[0], said(&suback)), (ReasonCode::GrantedQoS1, ""), "{to}");
        let made = broker.core.catalog().view().find(Kind::Queue, name).unwrap();
        assert_eq!(made.origin, Origin::Automatic);
        // As a manifest that says no more.
        assert_eq!(made.definition.retention.max_bytes, 10 << 30);
        let topic = if round == "2" { "other" } else { "job/1" };
        broker.publish(topic, &[round]).await;
        assert_eq!(text(&consumer.take().await), round);
        consumer.disconnect().await;
        broker.core.delete(Kind::Queue, name, Some(true)).await.unwrap();
    }
    let mut client = broker.clean("c").await;
    for to in ["$queue/work", "$queue/auto-y", "$queue/other/job/#", "$stream/work/job/#"] {
        let suback = ask(&mut client, to, AtLeastOnce).await;
        assert!(said(&suback).contains("does not exist yet"), "{to}: {suback:?}");
    }
    assert_eq!(broker.core.catalog().stored().await.len(), 0);
    for to in ["$stream/log/a/#", "$s/earliest/b/#"] {
        client.subscribe(to, AtLeastOnce).await;
    }
    let view = broker.core.catalog().view();
    assert_eq!(view.all(Kind::Stream).count(), 2);
    assert_eq!(
        client.read_from("$stream/auto-z/c", AtLeastOnce, "nonsense").await,
        ReasonCode::ImplementationSpecificError
    );
    assert_eq!(
        broker.core.catalog().view().all(Kind::Stream).count(),
        2,
        "a refused subscription creates nothing"
    );
}

#[tokio::test]
async fn what_is_created_outlives_its_creator_restarts_and_the_manifests() {
    let store = memory();
    let broker = TestBroker::start_with(creating(config()), &store).await;
    let mut consumer = broker.clean("c").await;
    consumer.subscribe("$q/job/#", AtLeastOnce).await;
    consumer.disconnect().await;
    broker.publish("job/1", &["x"]).await;
    broker.declare(&[queue("other", "o")]).await;
    broker.stop().await;
    // Where nothing is created any more.
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[]).await;
    let mut consumer = broker.subscriber("c", "$q/job/#", AtLeastOnce).await;
    assert_eq!(text(&consumer.take().await), "x");
    let mut same = broker.clean("d").await;
    same.subscribe(&format!("$queue/{JOB}"), AtLeastOnce).await;
}

#[tokio::test]
async fn a_session_that_comes_back_does_not_create_what_was_deleted() {
    for version in [V5, V311] {
        let broker = start().await;
        let mut session = broker.connect(persistent("s", version)).await;
        session.subscribe("$q/job/#", AtLeastOnce).await;
        session.disconnect().await;
        broker.core.delete(Kind::Queue, JOB, Some(true)).await.unwrap();
        let mut session = broker.resume(persistent("s", version)).await;
        session.synced().await;
        assert!(broker.core.catalog().view().find(Kind::Queue, JOB).is_none(), "{version:?}");
        // Subscribing again does.
        session.subscribe("$q/job/#", AtLeastOnce).await;
        broker.publish("job/1", &["x"]).await;
        assert_eq!(text(&session.take().await), "x");
    }
}

/// Many clients that want one queue at once make it once, and share it.
#[tokio::test]
async fn many_who_want_one_queue_make_one() {
    let broker = start().await;
    let mut clients = Vec::new();
    for n in 0..20 {
        clients.push(broker.clean(&format!("c{n}")).await);
    }
    let asked = clients.iter_mut().map(|client| client.subscribed("$q/job/#", AtLeastOnce));
    let reasons = futures_util::future::join_all(asked).await;
    assert!(reasons.iter().all(|reason| *reason == ReasonCode::GrantedQoS1), "{reasons:?}");
    let made = broker.core.catalog().stored().await;
    assert_eq!(made.len(), 1);
    assert_eq!((made[0].1.id, made[0].1.generation), (1, 1));
    assert_eq!(broker.metric("weir_auto_created_total{outcome=\"created\"}").await, 1.0);
    broker.publish("job/1", &["x"]).await;
    let takes = clients.iter_mut().map(|client| Box::pin(client.take()));
    let (message, ..) = futures_util::future::select_all(takes).await;
    assert_eq!(text(&message), "x");
}

#[tokio::test]
async fn what_subscriptions_create_is_bounded() {
    let mut config = creating(config());
    config.limits.auto_created = 2;
    let broker = TestBroker::start_with(config, &memory()).await;
    let mut client = broker.clean("c").await;
    for to in ["$queue/auto-1/a", "$stream/auto-1/a"] {
        client.subscribe(to, AtLeastOnce).await;
    }
    let suback = ask(&mut client, "$queue/auto-2/a", AtLeastOnce).await;
    assert_eq!(suback.reasons, [ReasonCode::QuotaExceeded]);
    assert!(said(&suback).contains("limits.autoCreated is 2"), "{suback:?}");
    let mut old = broker.connect(clean("old", V311)).await;
    assert_eq!(old.subscribed("$queue/auto-2/a", AtLeastOnce).await, ReasonCode::UnspecifiedError);
    assert_eq!(broker.metric("weir_auto_created_total{outcome=\"refused\"}").await, 2.0);
    // What people declare does not count.
    broker.declare(&[queue("declared", "a")]).await;
    broker.core.delete(Kind::Queue, "auto-1", None).await.unwrap();
    client.subscribe("$queue/auto-2/a", AtLeastOnce).await;
    // What an orphan holds is not given to a queue of another filter.
    let suback = ask(&mut client, "$queue/auto-1/b", AtLeastOnce).await;
    assert_eq!(suback.reasons, [ReasonCode::QuotaExceeded]);
    broker.core.delete(Kind::Queue, "auto-2", Some(true)).await.unwrap();
    let suback = ask(&mut client, "$queue/auto-1/b", AtLeastOnce).await;
    assert_eq!(suback.reasons, [ReasonCode::ImplementationSpecificError]);
    assert!(said(&suback).contains("ImmutableMismatch"), "{suback:?}");
}

#[tokio::test]
async fn creation_needs_the_right_to_it_beside_those_to_consume_and_to_subscribe() {
    const CONSUME: &str = "[[rules]]\nallow = [\"consume\"]\nnames = [\"auto-*\", \"work\"]\n";
    const SUBSCRIBE: &str = "[[rules]]\nallow = [\"subscribe\"]\ntopics = [\"job/#\"]\n";
    const CREATE: &str = "[[rules]]\nallow = [\"create\"]\nnames = [\"auto-*\"]\ntopics = [\"job/#\"]\n";
    for (rules, waits, expected) in [
        (format!("{CONSUME}{SUBSCRIBE}{CREATE}"), true, ReasonCode::GrantedQoS1),
        (format!("{SUBSCRIBE}{CREATE}"), false, ReasonCode::NotAuthorized),
        (format!("{CONSUME}{CREATE}"), false, ReasonCode::NotAuthorized),
        (format!("{CONSUME}{SUBSCRIBE}"), false, ReasonCode::NotAuthorized),
        (format!("{CONSUME}{SUBSCRIBE}"), true, ReasonCode::GrantedQoS1),
    ] {
        let (mut config, _dir) = guarded_config(&rules);
        config.wait_for_queue = waits;
        let broker = TestBroker::start_with(creating(config), &memory()).await;
        let mut client = broker.connect(anna(V5)).await;
        let suback = ask(&mut client, "$q/job/#", AtLeastOnce).await;
        assert_eq!(suback.reasons, [expected], "{rules} {suback:?}");
        let may_create = rules.contains(CREATE) && expected == ReasonCode::GrantedQoS1;
        assert_eq!(broker.core.catalog().view().all(Kind::Queue).count(), usize::from(may_create), "{rules}");
        if !rules.contains(CREATE) {
            assert!(said(&suback).contains("not allowed to create"), "{suback:?}");
            assert_eq!(broker.metric("weir_forbidden_total{action=\"create\"}").await, 1.0);
        }
        // Only the names that the rule speaks of.
        client.subscribed("$queue/work/job/#", AtLeastOnce).await;
        assert!(broker.core.catalog().view().find(Kind::Queue, "work").is_none(), "{rules}");
    }
}

#[tokio::test]
async fn a_filter_means_the_queue_of_its_derived_name_or_the_only_one() {
    let broker = TestBroker::start().await;
    broker.declare(&[queue("one", "job/#")]).await;
    let mut client = broker.clean("c").await;
    client.subscribe("$q/job/#", AtLeastOnce).await;
    broker.publish("job/1", &["0"]).await;
    assert_eq!(text(&client.take().await), "0");
    client.unsubscribe("$q/job/#").await;
    broker.declare(&[queue("one", "job/#"), queue("two", "job/#")]).await;
    let suback = ask(&mut client, "$q/job/#", AtLeastOnce).await;
    assert_eq!(suback.reasons, [ReasonCode::TopicFilterInvalid]);
    assert!(said(&suback).contains("one, two"), "{suback:?}");
    let mut old = broker.connect(clean("old", V311)).await;
    assert_eq!(old.subscribed("$q/job/#", AtLeastOnce).await, ReasonCode::UnspecifiedError);
    broker.declare(&[queue("one", "job/#"), queue("two", "job/#"), queue(JOB, "job/#")]).await;
    client.subscribe("$q/job/#", AtLeastOnce).await;
    client.subscribe("$queue/one", AtLeastOnce).await;
    assert_eq!(
        client.subscribed(&format!("$queue/{JOB}"), AtLeastOnce).await,
        ReasonCode::TopicFilterInvalid,
        "the same queue again"
    );
}

#[tokio::test]
async fn the_window_of_a_consumer_follows_the_declaration() {
    let broker = TestBroker::start().await;
    let mut work = queue("work", "job/#");
    work.dispatch.max_inflight_per_consumer = 1;
    broker.declare(&[work.clone()]).await;
    broker.publish("job/1", &["0", "1", "2", "3", "4"]).await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    let first = consumer.message().await;
    consumer.quiet().await;
    work.dispatch.max_inflight_per_consumer = 3;
    broker.declare(&[work.clone()]).await;
    let held = [consumer.message().await, consumer.message().await];
    consumer.quiet().await;
    work.dispatch.max_inflight_per_consumer = 1;
    broker.declare(&[work]).await;
    consumer.synced().await;
    for message in [&first, &held[0]] {
        consumer.puback(message, ReasonCode::Success).await;
        consumer.quiet().await;
    }
    consumer.puback(&held[1], ReasonCode::Success).await;
    assert_eq!(consumer.take_texts(2).await, ["3", "4"]);
}

/// Every form of a queue subscription at every QoS, for clients of every version.
#[tokio::test]
async fn every_form_is_granted_at_qos_1_at_most() {
    for version in [V5, V311] {
        let broker = TestBroker::start().await;
        broker.declare(&[queue("work", "job/#")]).await;
        for to in ["$queue/work", "$queue/work/job/#", "$q/job/#"] {
            for (asked, granted) in [
                (AtMostOnce, ReasonCode::Success),
                (AtLeastOnce, ReasonCode::GrantedQoS1),
                (QoS::ExactlyOnce, ReasonCode::GrantedQoS1),
            ] {
                let mut consumer = broker.connect(clean("c", version)).await;
                assert_eq!(consumer.subscribed(to, asked).await, granted, "{to}");
                broker.publish("job/1", &["x"]).await;
                let message = consumer.message().await;
                assert_eq!(message.header.qos, asked.min(AtLeastOnce));
                if message.header.qos == AtLeastOnce {
                    consumer.puback(&message, ReasonCode::Success).await;
                }
                consumer.synced().await;
                consumer.unsubscribe(to).await;
                consumer.disconnect().await;
            }
        }
    }
}

async fn consumers(broker: &TestBroker, name: &str) -> usize {
    let object = broker.core.catalog().view().find(Kind::Queue, name).unwrap();
    broker.core.describe(&object).await.unwrap()[0].queue.as_ref().unwrap().consumers.len()
}

/// Of two filters for one queue the first has it, in one packet, and when both waited for it.
#[tokio::test]
async fn a_connection_consumes_a_queue_once() {
    let broker = TestBroker::start().await;
    broker.declare(&[queue("work", "job/#")]).await;
    let both = || vec![filter("$queue/work", AtLeastOnce), filter("$q/job/#", AtLeastOnce)];
    let mut client = broker.clean("c").await;
    let suback = client.try_subscribe(both(), None, Vec::new()).await;
    assert_eq!(suback.reasons, [ReasonCode::GrantedQoS1, ReasonCode::TopicFilterInvalid]);
    assert!(said(&suback).contains("already under another filter"), "{suback:?}");
    broker.publish("job/1", &["0"]).await;
    assert_eq!(text(&client.take().await), "0");
    client.disconnect().await;

    broker.declare(&[]).await;
    let mut client = broker.clean("c").await;
    let suback = client.try_subscribe(both(), None, Vec::new()).await;
    assert_eq!(suback.reasons, [ReasonCode::GrantedQoS1; 2]);
    broker.declare(&[queue("work", "job/#")]).await;
    client.synced().await;
    assert_eq!(consumers(&broker, "work").await, 1);
    broker.publish("job/1", &["1"]).await;
    assert_eq!(text(&client.take().await), "1");
    client.unsubscribe("$queue/work").await;
    assert_eq!(consumers(&broker, "work").await, 1, "the other one has it now");
    broker.publish("job/1", &["2"]).await;
    assert_eq!(text(&client.take().await), "2");
}

#[tokio::test]
async fn a_derived_name_that_is_taken_by_another_filter_is_told() {
    let broker = start().await;
    broker.declare(&[queue(JOB, "other/#")]).await;
    let mut client = broker.clean("c").await;
    let suback = ask(&mut client, "$q/job/#", AtLeastOnce).await;
    assert_eq!(suback.reasons, [ReasonCode::TopicFilterInvalid]);
    assert!(said(&suback).contains(&format!("{JOB} has the filter other/#, not job/#")), "{suback:?}");
}
