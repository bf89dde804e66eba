//! Consumer groups of streams: every message goes to one member, over joins, leaves, crashes and seeks.

use std::collections::{BTreeMap, BTreeSet};

use weir_codec::{Connect, Publish, QoS, ReasonCode};
use weir_core::definition::{Definition, Kind};
use weir_core::keyspace::tag;
use weir_core::stream::Start;
use weir_storage::{Isolation, RangeQuery, SharedStore};

use super::client::{
    AtLeastOnce, AtMostOnce, Client, V5, V311, clean, filter, persistent, property, receive_maximum, text,
};
use super::{TestBroker, config, memory, stream};

const GROUP: &str = "$share/g/$stream/log";

fn sharded(shards: u8) -> Definition {
    Definition { shards, ..stream("log", "log/#") }
}

async fn start(shards: u8) -> TestBroker {
    let broker = TestBroker::start().await;
    broker.declare(&[sharded(shards)]).await;
    broker
}

/// Messages `from` to `to`, spread over shards by their topics.
async fn publish(broker: &TestBroker, from: u32, to: u32) {
    let mut publisher = broker.clean("").await;
    for n in from..to {
        assert!(!publisher.publish(&format!("log/{n}"), &n.to_string()).await.is_error());
    }
}

async fn join(broker: &TestBroker, connect: Connect, qos: QoS) -> Client {
    let mut member = broker.connect(connect).await;
    member.read_with(GROUP, qos, &[("stream-offset", "earliest")]).await;
    member
}

fn value(message: &Publish) -> u32 {
    text(message).parse().unwrap()
}

/// Takes messages of several clients in turn, as they come, until all of `wanted` are there; what each got.
async fn drain(members: &mut [&mut Client], wanted: impl IntoIterator<Item = u32>) -> Vec<Vec<u32>> {
    let mut missing: BTreeSet<u32> = wanted.into_iter().collect();
    let mut found = vec![Vec::new(); members.len()];
    while !missing.is_empty() {
        let next = members.iter_mut().map(|member| Box::pin(member.message()));
        let (message, which, _) = futures_util::future::select_all(next).await;
        if message.header.qos == AtLeastOnce {
            members[which].puback(&message, ReasonCode::Success).await;
        }
        missing.remove(&value(&message));
        found[which].push(value(&message));
    }
    found
}

/// No message came twice.
fn assert_once(found: &[Vec<u32>]) {
    let all: Vec<u32> = found.concat();
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{found:?}");
}

/// Waits until members with these client ids, and no others, have the shards, so many each; sorted by client id.
async fn divided(broker: &TestBroker, expected: &[(&str, usize)]) {
    let object = broker.core.catalog().view().find(Kind::Stream, "log").unwrap();
    let expected: BTreeMap<String, usize> =
        expected.iter().map(|(id, count)| ((*id).to_owned(), *count)).collect();
    let mut found = BTreeMap::new();
    let reached = async {
        while found != expected {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            found.clear();
            for shard in broker.core.groups().list(&object).await.unwrap().into_iter().flat_map(|g| g.shards)
            {
                let member = shard.member.map_or_else(String::new, |member| member.to_string());
                *found.entry(member).or_insert(0) += 1;
            }
        }
    };
    let reached = tokio::time::timeout(super::DEADLINE, reached).await;
    assert!(reached.is_ok(), "{found:?} is not {expected:?}");
}

#[tokio::test]
async fn members_of_both_versions_share_a_stream() {
    for qos in [AtLeastOnce, AtMostOnce] {
        let broker = start(4).await;
        let mut five = join(&broker, clean("five", V5), qos).await;
        let mut old = broker.connect(clean("old", V311)).await;
        old.subscribe(GROUP, qos).await;
        divided(&broker, &[("five", 2), ("old", 2)]).await;
        publish(&broker, 0, 40).await;
        let found = drain(&mut [&mut five, &mut old], 0..40).await;
        assert_once(&found);
        assert!(found.iter().all(|found| !found.is_empty()), "{found:?}");
        // A reader of its own, and one of another group, get everything.
        let mut other = broker.connect(clean("other", V311)).await;
        let both = ["$share/other/$s/earliest/log/#", "$s/earliest/log/#"].map(|to| filter(to, qos));
        let suback = other.try_subscribe(both.into(), None, Vec::new()).await;
        assert!(suback.reasons.iter().all(|reason| !reason.is_error()), "{suback:?}");
        let mut all = Vec::new();
        for _ in 0..80 {
            let message = other.message().await;
            all.push(value(&message));
            if qos == AtLeastOnce {
                other.puback(&message, ReasonCode::Success).await;
            }
        }
        all.sort_unstable();
        assert!(all.chunks(2).zip(0..40).all(|(pair, n)| pair == [n, n]), "{all:?}");
        for mut client in [five, old, other] {
            client.quiet().await;
        }
    }
}

#[tokio::test]
async fn who_comes_and_goes_in_order_loses_and_repeats_nothing() {
    let broker = start(4).await;
    let mut first = join(&broker, clean("a", V5), AtLeastOnce).await;
    publish(&broker, 0, 20).await;
    let mut all = drain(&mut [&mut first], 0..20).await;
    let mut second = join(&broker, clean("b", V5), AtLeastOnce).await;
    divided(&broker, &[("a", 2), ("b", 2)]).await;
    publish(&broker, 20, 40).await;
    all.extend(drain(&mut [&mut first, &mut second], 20..40).await);
    first.disconnect().await;
    divided(&broker, &[("b", 4)]).await;
    publish(&broker, 40, 60).await;
    all.extend(drain(&mut [&mut second], 40..60).await);
    second.unsubscribe(GROUP).await;
    // The group keeps its place without members, whatever the next one says.
    publish(&broker, 60, 80).await;
    let mut third = broker.clean("c").await;
    third.read_with(GROUP, AtLeastOnce, &[("stream-offset", "latest")]).await;
    all.extend(drain(&mut [&mut third], 60..80).await);
    assert_once(&all);
    third.quiet().await;
}

#[tokio::test]
async fn what_is_in_flight_is_finished_before_its_shard_moves() {
    let broker = start(2).await;
    let mut first = join(&broker, clean("a", V5), AtLeastOnce).await;
    publish(&broker, 0, 10).await;
    let mut held = Vec::new();
    for _ in 0..10 {
        held.push(first.message().await);
    }
    let mut second = join(&broker, clean("b", V5), AtLeastOnce).await;
    // Acknowledged while its shard is being taken away, within two seconds.
    for message in &held {
        first.puback(message, ReasonCode::Success).await;
    }
    divided(&broker, &[("a", 1), ("b", 1)]).await;
    publish(&broker, 10, 20).await;
    let found = drain(&mut [&mut first, &mut second], 10..20).await;
    assert_once(&found);
    for mut client in [first, second] {
        client.quiet().await;
    }
}

#[tokio::test]
async fn what_is_not_acknowledged_goes_to_who_has_the_shard_next() {
    for at_once in [true, false] {
        let broker = start(2).await;
        let mut first = join(&broker, receive_maximum(clean("a", V5), 8), AtLeastOnce).await;
        publish(&broker, 0, 20).await;
        for _ in 0..8 {
            first.message().await;
        }
        let mut second = join(&broker, clean("b", V5), AtLeastOnce).await;
        if !at_once {
            // It says nothing for as long as a shard is waited for.
            divided(&broker, &[("a", 1), ("b", 1)]).await;
        }
        first.vanish();
        divided(&broker, &[("b", 2)]).await;
        assert_once(&drain(&mut [&mut second], 0..20).await);
        second.quiet().await;
    }
}

#[tokio::test]
async fn who_is_one_too_many_stands_by() {
    let broker = start(1).await;
    let mut first = join(&broker, clean("a", V5), AtLeastOnce).await;
    let mut second = join(&broker, clean("b", V5), AtLeastOnce).await;
    publish(&broker, 0, 3).await;
    assert_eq!(first.take_texts(3).await, ["0", "1", "2"]);
    second.quiet().await;
    first.disconnect().await;
    publish(&broker, 3, 5).await;
    assert_eq!(second.take_texts(2).await, ["3", "4"]);
}

#[tokio::test]
async fn a_group_goes_on_after_a_restart() {
    let store = memory();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[sharded(2)]).await;
    publish(&broker, 0, 20).await;
    let mut member = join(&broker, persistent("a", V5), AtLeastOnce).await;
    let mut all = drain(&mut [&mut member], 0..20).await;
    member.synced().await;
    broker.stop().await;
    let broker = TestBroker::start_on(&store).await;
    publish(&broker, 20, 30).await;
    // The membership is part of the session.
    let mut member = broker.resume(persistent("a", V5)).await;
    all.extend(drain(&mut [&mut member], 20..30).await);
    assert_once(&all);
    // Nothing is lost by a crash, whatever of it was stored.
    drop(broker);
    let broker = TestBroker::start_on(&store).await;
    publish(&broker, 30, 40).await;
    let mut member = broker.resume(persistent("a", V5)).await;
    let found = drain(&mut [&mut member], 30..40).await;
    assert!(found.concat().iter().all(|n| *n >= 20), "{found:?}");
}

#[tokio::test]
async fn a_group_that_is_moved_goes_on_there() {
    let broker = start(2).await;
    let mut member = join(&broker, clean("a", V5), AtLeastOnce).await;
    publish(&broker, 0, 10).await;
    drain(&mut [&mut member], 0..10).await;
    let object = broker.core.catalog().view().find(Kind::Stream, "log").unwrap();
    broker.core.groups().seek(&object, "g", &Start::Earliest, false).await.unwrap();
    assert_once(&drain(&mut [&mut member], 0..10).await);
    // One that is deleted under its members is a new one, which begins where they said.
    broker.core.groups().delete(&object, "g", true).await.unwrap();
    assert_once(&drain(&mut [&mut member], 0..10).await);
    member.quiet().await;
}

#[tokio::test]
async fn a_group_waits_for_its_stream_and_narrows_it() {
    let broker = TestBroker::start().await;
    let mut member = broker.clean("a").await;
    let asked = [("stream-offset", "earliest"), ("stream-filter", "log/+"), ("stream-rate", "1000")];
    member.read_with(GROUP, AtLeastOnce, &asked).await;
    broker.declare(&[sharded(3)]).await;
    broker.publish("log/a/b", &["0"]).await;
    publish(&broker, 1, 10).await;
    assert_once(&drain(&mut [&mut member], 1..10).await);
    // In another way, but where it is.
    member.read_with(GROUP, AtMostOnce, &[("stream-offset", "earliest")]).await;
    publish(&broker, 10, 20).await;
    assert_once(&drain(&mut [&mut member], 10..20).await);
    broker.declare(&[]).await;
    broker.declare(&[sharded(3)]).await;
    publish(&broker, 20, 30).await;
    assert_once(&drain(&mut [&mut member], 20..30).await);
    member.quiet().await;
}

#[tokio::test]
async fn what_a_group_cannot_do_is_refused() {
    let mut config = config();
    config.limits.stream_groups = 2;
    let broker = TestBroker::start_with(config, &memory()).await;
    broker.declare(&[sharded(1)]).await;
    let mut client = broker.clean("c").await;
    for (to, properties, reason, words) in [
        (GROUP, &[("stream-until", "latest")][..], ReasonCode::ImplementationSpecificError, "stream-until"),
        (GROUP, &[("stream-key", "k")], ReasonCode::ImplementationSpecificError, "stream-key"),
        (GROUP, &[], ReasonCode::GrantedQoS1, ""),
        (GROUP, &[], ReasonCode::GrantedQoS1, ""),
        ("$share/g/$stream/log/log/#", &[], ReasonCode::TopicFilterInvalid, "already"),
        ("$share/g2/$stream/log", &[], ReasonCode::GrantedQoS1, ""),
        ("$share/g3/$stream/log", &[], ReasonCode::QuotaExceeded, "group"),
        ("$share/g/$queue/log", &[], ReasonCode::TopicFilterInvalid, ""),
    ] {
        let suback = client.ask_to_read(to, AtLeastOnce, properties).await;
        assert_eq!(suback.reasons, [reason], "{to} {properties:?}: {suback:?}");
        assert!(suback.properties.reason_string.unwrap_or_default().contains(words), "{to}");
    }
    // What was refused leaves nothing behind.
    broker.publish("log/1", &["x"]).await;
    for _ in 0..2 {
        assert_eq!(property(&client.take().await, "stream"), Some("log"));
    }
    client.quiet().await;
    let mut old = broker.connect(clean("old", V311)).await;
    assert_eq!(old.subscribed("$share/g4/$stream/log", AtLeastOnce).await, ReasonCode::UnspecifiedError);
}

/// Damages the positions of groups in the store; how many there are.
async fn damage_positions(store: &SharedStore) -> usize {
    let mut tx = store.begin();
    let query = RangeQuery::new(vec![tag::GROUP], vec![tag::GROUP + 1]);
    let pairs = tx.get_range(query, Isolation::Snapshot).await.unwrap().pairs;
    for (key, _) in &pairs {
        tx.set(key, b"x");
    }
    tx.commit().await.unwrap();
    pairs.len()
}

#[tokio::test]
async fn a_damaged_position_keeps_only_its_own_subscription_waiting() {
    let store = memory();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[sharded(1)]).await;
    let mut member = join(&broker, persistent("a", V5), AtLeastOnce).await;
    member.subscribe("other", AtLeastOnce).await;
    publish(&broker, 0, 1).await;
    assert_eq!(member.take_texts(1).await, ["0"]);
    member.synced().await;
    broker.stop().await;
    assert_eq!(damage_positions(&store).await, 1);
    let broker = TestBroker::start_on(&store).await;
    publish(&broker, 1, 2).await;
    broker.publish("other", &["x"]).await;
    let mut member = broker.resume(persistent("a", V5)).await;
    assert_eq!(member.take_texts(1).await, ["x"]);
    member.synced().await;
    // Once a person has seen to it, it goes on by itself.
    let object = broker.core.catalog().view().find(Kind::Stream, "log").unwrap();
    broker.core.groups().delete(&object, "g", true).await.unwrap();
    assert_eq!(member.take_texts(2).await, ["0", "1"]);
}

#[tokio::test]
async fn a_subscription_that_a_packet_repeats_is_one_member() {
    let broker = start(2).await;
    let mut member = broker.clean("a").await;
    let both = [AtLeastOnce, AtLeastOnce].map(|qos| filter(GROUP, qos));
    let properties = vec![("stream-offset".into(), "earliest".into())];
    let suback = member.try_subscribe(both.into(), None, properties).await;
    assert_eq!(suback.reasons, [ReasonCode::GrantedQoS1; 2]);
    // Two would have a shard each.
    divided(&broker, &[("a", 2)]).await;
    publish(&broker, 0, 20).await;
    assert_once(&drain(&mut [&mut member], 0..20).await);
    member.unsubscribe(GROUP).await;
    divided(&broker, &[("", 2)]).await;
}

#[tokio::test]
async fn a_slow_member_that_is_moved_reads_nothing_more_of_where_it_was() {
    let broker = start(1).await;
    publish(&broker, 0, 100).await;
    for qos in [AtLeastOnce, AtMostOnce] {
        let mut member = broker.clean("a").await;
        member.read_with(GROUP, qos, &[("stream-offset", "earliest"), ("stream-rate", "1")]).await;
        let first = member.message().await;
        assert_eq!(text(&first), "0");
        if qos == AtLeastOnce {
            member.puback(&first, ReasonCode::Success).await;
        }
        let object = broker.core.catalog().view().find(Kind::Stream, "log").unwrap();
        broker.core.groups().seek(&object, "g", &Start::Latest, false).await.unwrap();
        broker.publish("log/new", &["new"]).await;
        // What was let through already may come before that.
        let mut skipped = 0;
        while text(&member.message().await) != "new" {
            skipped += 1;
            assert!(skipped < 10);
        }
        member.unsubscribe(GROUP).await;
        broker.core.groups().delete(&object, "g", true).await.unwrap();
    }
}

#[tokio::test]
async fn the_latest_of_a_stream_that_came_back_is_all_that_it_has_and_of_a_new_group_nothing() {
    const SUBSCRIPTIONS: &str = "weir_store_written_keys_total{record=\"subscription\"}";
    let broker = start(2).await;
    let mut member = broker.connect(persistent("a", V5)).await;
    member.read_with(GROUP, AtLeastOnce, &[]).await;
    publish(&broker, 0, 4).await;
    drain(&mut [&mut member], 0..4).await;
    let stored = broker.metric(SUBSCRIPTIONS).await;
    broker.declare(&[]).await;
    broker.metric_reaches(SUBSCRIPTIONS, stored + 1.0).await;
    member.disconnect().await;
    broker.declare(&[sharded(2)]).await;
    publish(&broker, 10, 14).await;
    let mut member = broker.resume(persistent("a", V5)).await;
    assert_once(&drain(&mut [&mut member], 10..14).await);
    member.disconnect().await;
    let object = broker.core.catalog().view().find(Kind::Stream, "log").unwrap();
    broker.core.groups().delete(&object, "g", true).await.unwrap();
    let mut member = broker.resume(persistent("a", V5)).await;
    divided(&broker, &[("a", 2)]).await;
    publish(&broker, 20, 24).await;
    assert_eq!(drain(&mut [&mut member], 20..24).await.concat().len(), 4);
}

#[tokio::test]
async fn a_member_that_was_away_while_its_stream_was_made_anew_gets_all_of_it() {
    let store = memory();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[sharded(2)]).await;
    for (client, version) in [("a", V5), ("b", V311)] {
        let mut member = broker.connect(persistent(client, version)).await;
        assert!(!member.subscribed(&format!("$share/{client}/$stream/log"), AtLeastOnce).await.is_error());
        member.disconnect().await;
    }
    broker.stop().await;
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[]).await;
    broker.declare(&[sharded(2)]).await;
    publish(&broker, 0, 8).await;
    for (client, version) in [("a", V5), ("b", V311)] {
        let mut member = broker.resume(persistent(client, version)).await;
        assert_once(&drain(&mut [&mut member], 0..8).await);
        member.quiet().await;
    }
}

#[tokio::test]
async fn a_group_that_nobody_has_used_ends_with_who_leaves_it_for_good() {
    let mut config = config();
    config.limits.stream_groups = 2;
    let broker = TestBroker::start_with(config, &memory()).await;
    broker.declare(&[sharded(1)]).await;
    let object = broker.core.catalog().view().find(Kind::Stream, "log").unwrap();
    let names = async || -> Vec<String> {
        let groups = broker.core.groups().list(&object).await.unwrap();
        groups.iter().map(|group| group.name.to_string()).collect()
    };
    let mut client = broker.clean("c").await;
    client.read_with(GROUP, AtLeastOnce, &[]).await;
    client.unsubscribe(GROUP).await;
    assert_eq!(names().await, [""; 0]);
    // A session that comes back misses nothing.
    let mut away = broker.connect(persistent("a", V311)).await;
    away.subscribed("$share/away/$stream/log", AtLeastOnce).await;
    away.disconnect().await;
    publish(&broker, 0, 2).await;
    let mut away = broker.resume(persistent("a", V311)).await;
    assert_once(&drain(&mut [&mut away], 0..2).await);
    away.synced().await;
    away.disconnect().await;
    // Whoever makes one after the other keeps nobody from the stream.
    for n in 0..5 {
        client.read_with(&format!("$share/n{n}/$stream/log"), AtLeastOnce, &[]).await;
        client.unsubscribe(&format!("$share/n{n}/$stream/log")).await;
    }
    client.read_with("$share/mine/$stream/log", AtLeastOnce, &[]).await;
    assert_eq!(names().await, ["away", "mine"]);
}
