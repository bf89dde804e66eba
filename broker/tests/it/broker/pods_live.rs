//! Live subscribers at several pods, whole brokers on one store in this process: each publish comes to each of them once,
//! from whichever pod, as if there were one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use weir_codec::{Packet, ReasonCode, RetainHandling, SubscribeFilter, SubscriptionOptions};
use weir_core::keyspace::tag;
use weir_storage::{CommitFault, SharedStore};

use super::client::{
    AtLeastOnce, AtMostOnce, Client, ExactlyOnce, V5, V311, clean, filter, persistent, publish, retained,
    text,
};
use super::{DEADLINE, TestBroker, config, faulty, memory, queue};

/// A pod on `store`.
async fn pod(store: &SharedStore) -> TestBroker {
    let mut config = config();
    config.peer.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    TestBroker::start_with(config, store).await
}

/// So many pods that have links to each other.
async fn pods(count: usize) -> Vec<TestBroker> {
    let store = memory();
    let mut pods = Vec::new();
    for _ in 0..count {
        pods.push(pod(&store).await);
    }
    for pod in &pods {
        pod.metric_reaches("weir_peers_up", count as f64 - 1.0).await;
    }
    pods
}

fn with(to: &str, options: SubscriptionOptions) -> SubscribeFilter {
    SubscribeFilter { options, ..filter(to, options.qos) }
}

/// Publishes at any QoS and waits for the answers.
async fn publish_at(client: &mut Client, qos: weir_codec::QoS, n: u16, topic: &str, payload: &str) {
    match qos {
        AtMostOnce => {
            client.post(publish(AtMostOnce, n, topic, payload)).await;
            client.synced().await;
        }
        AtLeastOnce => {
            client.post(publish(AtLeastOnce, n, topic, payload)).await;
            assert_eq!(client.pubacked(n).await, ReasonCode::Success, "{payload}");
        }
        ExactlyOnce => client.publish_twice_acknowledged(n, topic, payload).await,
    }
}

#[tokio::test]
async fn each_publish_comes_once_to_each_subscriber() {
    let pods = pods(3).await;
    for version in [V5, V311] {
        let mut subscribers = Vec::new();
        for (n, pod) in pods.iter().enumerate() {
            let mut client = pod.connect(clean(&format!("s{n}{version:?}"), version)).await;
            // Two subscriptions that overlap are one delivery.
            client.subscribe("t/+", AtLeastOnce).await;
            client.subscribe("t/#", ExactlyOnce).await;
            subscribers.push(client);
        }
        let mut sent = Vec::new();
        for (n, pod) in pods.iter().enumerate() {
            let mut publisher = pod.connect(clean(&format!("p{n}{version:?}"), version)).await;
            for (m, qos) in [AtMostOnce, AtLeastOnce, ExactlyOnce].into_iter().enumerate() {
                let payload = format!("{n} {m}");
                publish_at(&mut publisher, qos, 1, "t/x", &payload).await;
                sent.push((payload, qos));
            }
            publisher.disconnect().await;
        }
        sent.sort();
        for client in &mut subscribers {
            let mut received = Vec::new();
            for _ in &sent {
                let message = client.message().await;
                match message.header.qos {
                    AtMostOnce => {}
                    AtLeastOnce => client.puback(&message, ReasonCode::Success).await,
                    ExactlyOnce => client.receive_twice_acknowledged(&message).await,
                }
                received.push((text(&message).to_owned(), message.header.qos));
            }
            received.sort();
            assert_eq!(received, sent, "{version:?}");
            client.synced().await;
        }
    }
}

#[tokio::test]
async fn what_is_published_after_suback_at_any_pod_arrives() {
    let pods = pods(2).await;
    let mut publisher = pods[1].clean("p").await;
    for n in 0..60 {
        let (topic, has_inbox) = (format!("r/{n}"), n % 3 == 0);
        let name = format!("s{n}");
        let connect = if has_inbox { persistent(&name, V5) } else { clean(&name, V5) };
        let mut client = pods[0].connect(connect).await;
        // A session with an inbox gets live what is of QoS 0.
        client.subscribe(&topic, if has_inbox { AtMostOnce } else { AtLeastOnce }).await;
        publish_at(&mut publisher, AtMostOnce, 0, &topic, "0").await;
        publish_at(&mut publisher, AtLeastOnce, 1, &topic, "1").await;
        assert_eq!(text(&client.message().await), "0", "round {n}");
        assert_eq!(text(&client.message().await), "1", "round {n}");
    }
    // What has gone takes its interest with it.
    let gone = "weir_cluster_interest_elsewhere";
    let none = async {
        while pods[1].metric(gone).await != 0.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, none).await.expect("no interest is left");
    assert_eq!(publisher.publish("r/0", "x").await, ReasonCode::NoMatchingSubscribers);
    assert_eq!(pods[0].metric("weir_cluster_interest_late_total").await, 0.0);
}

#[tokio::test]
async fn options_of_subscriptions_hold_across_pods() {
    let pods = pods(2).await;
    let mut client = pods[0].clean("c").await;
    let options = SubscriptionOptions {
        qos: AtLeastOnce,
        no_local: true,
        retain_as_published: true,
        retain_handling: RetainHandling::Never,
    };
    client.try_subscribe(vec![with("t/#", options)], Some(7), Vec::new()).await;
    client.try_subscribe(vec![filter("+/x", AtLeastOnce)], Some(9), Vec::new()).await;
    let mut publisher = pods[1].clean("p").await;
    publisher.post(retained(AtLeastOnce, 1, "t/x", "kept")).await;
    publisher.pubacked(1).await;
    let message = client.take().await;
    let mut identifiers: Vec<u32> = message.header.subscription_identifiers.iter().copied().collect();
    identifiers.sort_unstable();
    assert_eq!((text(&message), message.header.retain, identifiers), ("kept", true, vec![7, 9]));
    publisher.post(publish(AtLeastOnce, 2, "t/y", "plain")).await;
    publisher.pubacked(2).await;
    let message = client.take().await;
    assert_eq!((text(&message), message.header.retain), ("plain", false));
    // Its own does not come back.
    assert_eq!(client.publish("t/y", "own").await, ReasonCode::NoMatchingSubscribers);
    client.synced().await;
}

#[tokio::test]
async fn a_shared_subscription_has_members_at_all_pods() {
    let pods = pods(3).await;
    let mut members = Vec::new();
    for (n, pod) in [0, 0, 1].into_iter().enumerate() {
        members.push(pods[pod].subscriber(&format!("m{n}"), "$share/g/t", AtLeastOnce).await);
    }
    pods[2].metric_reaches("weir_cluster_interest_elsewhere", 2.0).await;
    // What the second one of a pod adds is known once what comes after it is.
    let _known = pods[0].subscriber("known", "known", AtMostOnce).await;
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    let mut seen = Vec::new();
    for from in [2, 0] {
        let payloads: Vec<String> = (0..30).map(|n| format!("{from} {n}")).collect();
        let payloads: Vec<&str> = payloads.iter().map(String::as_str).collect();
        pods[from].publish("t", &payloads).await;
        // Each has its turn. All of it, before more comes: what is acknowledged is in line for a pod, which counts turns
        // of its own for that and for what is published there.
        for (n, member) in members.iter_mut().enumerate() {
            for payload in member.take_texts(10).await {
                *counts.entry(n).or_default() += 1;
                seen.push(payload);
            }
        }
        for member in &mut members {
            member.synced().await;
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!((seen.len(), counts.len()), (60, 3), "{counts:?}");

    // A pod without members has nobody left to choose.
    members.pop().unwrap().disconnect().await;
    let payloads: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let payloads: Vec<&str> = payloads.iter().map(String::as_str).collect();
    pods[2].publish("t", &payloads).await;
    let (mut first, mut second) = (members.remove(0), members.remove(0));
    let mut texts = Vec::new();
    while texts.len() < payloads.len() {
        tokio::select! {
            message = first.message() => { first.puback(&message, ReasonCode::Success).await; texts.push(text(&message).to_owned()); }
            message = second.message() => { second.puback(&message, ReasonCode::Success).await; texts.push(text(&message).to_owned()); }
        }
    }
    texts.sort_by_key(|text| text.parse::<u32>().unwrap());
    assert_eq!(texts, payloads);
}

#[tokio::test]
async fn a_pod_that_dies_takes_its_interest_with_it() {
    let mut pods = pods(3).await;
    let _gone = pods[2].subscriber("gone", "t", ExactlyOnce).await;
    let mut stays = pods[1].subscriber("stays", "t", ExactlyOnce).await;
    let mut publisher = pods[0].clean("p").await;
    pods[0].metric_reaches("weir_cluster_interest_elsewhere", 2.0).await;
    drop(pods.pop());
    // Its publisher is told in the end, whatever becomes of the pod.
    for n in 1..=4_u16 {
        publisher.post(publish(AtLeastOnce, n, "t", &n.to_string())).await;
        assert_eq!(publisher.pubacked(n).await, ReasonCode::Success);
    }
    assert_eq!(stays.take_texts(4).await, ["1", "2", "3", "4"]);
    let one = async {
        while pods[0].metric("weir_cluster_interest_elsewhere").await != 1.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, one).await.expect("its interest goes");
}

#[tokio::test]
async fn publishes_that_fill_the_line_to_a_pod_hold_up_neither_each_other_nor_the_line() {
    const EACH: u16 = 6;
    let (store, faults) = faulty();
    let mut pods = Vec::new();
    for _ in 0..2 {
        let mut config = config();
        config.peer.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        config.limits.peer_bytes = weir::config::ByteCount::mib(1);
        pods.push(TestBroker::start_with(config, &store).await);
    }
    for pod in &pods {
        pod.metric_reaches("weir_peers_up", 1.0).await;
    }
    pods[0].declare(&[queue("work", "t")]).await;
    pods[0].publish("t", &["the shard is taken over"]).await;
    let mut there = pods[1].connect(clean("there", V5)).await;
    there.subscribe("t", AtLeastOnce).await;
    // More than fits into the line waits to be durable, and goes live then.
    faults.fail_commits_matching(&[tag::SEGMENT], CommitFault::Stalled(DEADLINE));
    let payload = "x".repeat(90_000);
    let mut publishers = Vec::new();
    for name in ["p1", "p2", "p3"] {
        let mut client = pods[0].connect(persistent(name, V5)).await;
        for id in 1..=EACH {
            client.post(publish(ExactlyOnce, id, "t", &payload)).await;
        }
        publishers.push(client);
    }
    // Another one of QoS 1 is in line behind them.
    let mut other = pods[0].connect(clean("other", V5)).await;
    other.post(publish(AtLeastOnce, 1, "t", &payload)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    faults.heal();
    faults.release_stalled();
    for client in &mut publishers {
        for id in 1..=EACH {
            let answer = client.recv().await;
            assert!(matches!(&answer, Packet::PubRec(ack) if ack.packet_id.get() == id), "{id}: {answer:?}");
        }
    }
    assert_eq!(other.pubacked(1).await, ReasonCode::Success);
    assert_eq!(there.take_texts(usize::from(3 * EACH) + 1).await.len(), 19);
}
