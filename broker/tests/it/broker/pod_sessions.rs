//! Sessions that move between the pods of a cluster, whole brokers over one store in this process: a client finds what it
//! left, wherever it connects, and never has two connections that work.

use std::time::Duration;

use weir_codec::{ConnAck, Connect, Packet, ReasonCode};
use weir_core::cluster::testing::MemoryNetwork;
use weir_core::keyspace::session::IncomingPublish;
use weir_core::keyspace::tag;
use weir_core::sessions::{OpenOptions, Sessions};
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{CommitFault, SharedStore};

use super::client::{
    AtLeastOnce, AtMostOnce, Client, ExactlyOnce, V5, V311, again, clean, id, persistent, publish, retained,
    text, will,
};
use super::{DEADLINE, TestBroker, faulty, memory};

/// Pods of one cluster.
struct Cluster {
    store: SharedStore,
    network: MemoryNetwork,
}

impl Cluster {
    fn new() -> Self {
        Self { store: memory(), network: MemoryNetwork::new(Clock::system(), &Seed::fixed(1)) }
    }

    async fn pod(&self) -> TestBroker {
        TestBroker::start_pod(&self.store, &self.network).await
    }

    async fn two(&self) -> [TestBroker; 2] {
        let pods = [self.pod().await, self.pod().await];
        self.meet(&pods).await;
        pods
    }

    /// Waits until each pod has a link to all others.
    async fn meet(&self, pods: &[TestBroker]) {
        for pod in pods {
            let mut up = pod.core.links().unwrap().link_events();
            let all = up.wait_for(|up| up.len() == pods.len() - 1);
            assert!(tokio::time::timeout(DEADLINE, all).await.is_ok(), "links are not up");
        }
    }

    /// Kills a pod and waits until the other one knows.
    async fn kill(&self, pod: TestBroker, other: &TestBroker) {
        let gone = pod.core.pod();
        self.network.kill(gone);
        drop(pod);
        let mut members = other.core.cluster().unwrap().members();
        let found = members.wait_for(|view| !view.contains(gone));
        assert!(tokio::time::timeout(DEADLINE, found).await.is_ok(), "the dead pod is not found out");
    }
}

fn with_will(connect: Connect, delay_interval: u32) -> Connect {
    let mut will = will("will", "gone");
    will.delay_interval = delay_interval;
    Connect { will: Some(will), ..connect }
}

fn expiring(name: &str, seconds: u32) -> Connect {
    Connect { session_expiry_interval: Some(seconds), ..persistent(name, V5) }
}

/// Sends a publish and waits for the first answer.
async fn sent(client: &mut Client, message: weir_codec::Publish) -> Packet {
    client.send(Packet::Publish(Box::new(message))).await;
    client.recv().await
}

#[tokio::test]
async fn a_client_finds_its_session_at_another_pod() {
    for version in [V5, V311] {
        let cluster = Cluster::new();
        let [a, b] = cluster.two().await;
        let mut watcher = b.connect(persistent("watcher", V5)).await;
        watcher.subscribe("will", AtLeastOnce).await;
        let mut client = a.connect(with_will(persistent("c", version), 0)).await;
        client.subscribe("t/#", ExactlyOnce).await;
        // What it has received and not acknowledged, what it has published and not released.
        a.publish("t/1", &["one"]).await;
        b.publish("t/1", &["two"]).await;
        assert_eq!(text(&client.message().await), "one");
        let two = publish(ExactlyOnce, 7, "t/own", "own");
        assert!(matches!(sent(&mut client, two.clone()).await, Packet::Publish(_) | Packet::PubRec(_)));

        let mut moved = b.resume(persistent("c", version)).await;
        let mut texts = moved.take_texts(3).await;
        texts.sort();
        assert_eq!(texts, ["one", "own", "two"], "{version:?}");
        // The answer was lost: the same publish again does nothing twice.
        let answer = sent(&mut moved, again(two)).await;
        assert!(matches!(answer, Packet::PubRec(_)), "{answer:?}");
        moved.pubrel(id(7)).await;
        moved.pubcomped(7).await;
        moved.synced().await;
        // It was taken over, so the will of the connection before is published, as at one pod.
        assert_eq!(text(&watcher.take().await), "gone");
        a.publish("t/2", &["three"]).await;
        assert_eq!(text(&moved.take().await), "three");
        moved.unsubscribe("t/#").await;
        a.publish("t/3", &["four"]).await;
        b.publish("t/3", &["four"]).await;
        moved.synced().await;
    }
}

#[tokio::test]
async fn what_was_published_live_at_a_pod_that_has_stopped_is_not_published_again() {
    for version in [V5, V311] {
        let cluster = Cluster::new();
        let [a, b] = cluster.two().await;
        let mut watcher = b.connect(clean("watcher", V5)).await;
        watcher.subscribe("t", AtLeastOnce).await;
        let mut client = a.connect(persistent("c", version)).await;
        let own = publish(ExactlyOnce, 7, "t", "own");
        assert!(matches!(sent(&mut client, own.clone()).await, Packet::PubRec(_)));
        drop(client);
        a.stop().await;

        let mut moved = b.resume(persistent("c", version)).await;
        assert!(matches!(sent(&mut moved, again(own.clone())).await, Packet::PubRec(_)));
        // Nor by way of yet another connection.
        drop(moved);
        let mut moved = b.resume(persistent("c", version)).await;
        assert!(matches!(sent(&mut moved, again(own)).await, Packet::PubRec(_)));
        moved.pubrel(id(7)).await;
        moved.pubcomped(7).await;
        // The packet id is free.
        assert!(matches!(sent(&mut moved, publish(ExactlyOnce, 7, "t", "next")).await, Packet::PubRec(_)));
        assert_eq!(watcher.take_texts(2).await, ["own", "next"], "{version:?}");
    }
}

#[tokio::test]
async fn one_of_two_connections_of_a_client_lives() {
    let cluster = Cluster::new();
    let [a, b] = cluster.two().await;
    for round in 0..200 {
        let connect = if round % 2 == 0 { clean("c", V5) } else { persistent("c", V5) };
        let (one, other) = tokio::join!(a.connack(connect.clone()), b.connack(connect));
        let mut clients: Vec<(Client, ConnAck)> = vec![one, other];
        for (_, connack) in &clients {
            assert!(matches!(connack.code, ReasonCode::Success), "round {round}: {connack:?}");
        }
        // Whoever is told to end has lost; the other one answers.
        let (mut first, mut second) = (clients.remove(0).0, clients.remove(0).0);
        let lost = |packet: Option<Packet>| match packet {
            Some(Packet::Disconnect(disconnect)) => {
                assert_eq!(disconnect.reason, ReasonCode::SessionTakenOver, "round {round}");
            }
            other => panic!("round {round}: {other:?}"),
        };
        let mut winner = tokio::time::timeout(DEADLINE, async {
            tokio::select! {
                packet = first.next() => { lost(packet); second }
                packet = second.next() => { lost(packet); first }
            }
        })
        .await
        .unwrap_or_else(|_| panic!("round {round}: both live"));
        winner.synced().await;
        winner.disconnect().await;
    }
}

#[tokio::test]
async fn what_comes_at_another_pod_is_in_the_inbox_at_once() {
    let cluster = Cluster::new();
    let [a, b] = cluster.two().await;
    let mut client = b.connect(persistent("c", V5)).await;
    client.subscribe("t", AtLeastOnce).await;
    for n in 0..50 {
        let payload = n.to_string();
        a.publish("t", &[&payload]).await;
        assert_eq!(text(&client.take().await), payload);
    }
    // Also when it has just come from there.
    let mut client = a.resume(persistent("c", V5)).await;
    b.publish("t", &["moved"]).await;
    assert_eq!(text(&client.take().await), "moved");
    client.disconnect().await;
    b.publish("t", &["away"]).await;
    a.publish("t", &["away too"]).await;
    let mut client = b.resume(persistent("c", V5)).await;
    assert_eq!(client.take_texts(2).await, ["away", "away too"]);
}

#[tokio::test]
async fn nothing_is_lost_while_a_client_moves_to_and_fro() {
    let cluster = Cluster::new();
    let [a, b] = cluster.two().await;
    let mut client = a.connect(persistent("c", V5)).await;
    client.subscribe("t", AtLeastOnce).await;
    let mut publisher = a.clean("p").await;
    let mut received = std::collections::BTreeSet::new();
    for n in 1..=40_u16 {
        let answer = sent(&mut publisher, publish(AtLeastOnce, n, "t", &n.to_string())).await;
        assert!(matches!(answer, Packet::PubAck(_)), "{answer:?}");
        let to = if n % 2 == 0 { &a } else { &b };
        client = to.resume(persistent("c", V5)).await;
        if n % 5 == 0 {
            received.insert(text(&client.take().await).to_owned());
        }
    }
    while received.len() < 40 {
        received.insert(text(&client.take().await).to_owned());
    }
}

#[tokio::test]
async fn wills_and_sessions_of_a_pod_that_dies_end_once() {
    let cluster = Cluster::new();
    let [a, b] = cluster.two().await;
    let mut watcher = b.connect(persistent("watcher", V5)).await;
    watcher.subscribe("will", AtLeastOnce).await;
    let _clean = a.connect(with_will(clean("clean", V5), 0)).await;
    let _delayed = a.connect(with_will(expiring("delayed", 60), 1)).await;
    let mut short = a.connect(expiring("short", 1)).await;
    short.subscribe("s", AtLeastOnce).await;
    let returning = a.connect(with_will(expiring("returning", 60), 2)).await;
    cluster.kill(a, &b).await;
    drop(returning);
    // It is back before its will is due.
    let mut back = b.resume(expiring("returning", 60)).await;
    assert_eq!(watcher.take_texts(2).await, ["gone", "gone"]);
    b.metric_reaches("weir_sessions_expired_total", 1.0).await;
    let (_, connack) = b.connack(expiring("short", 1)).await;
    assert!(!connack.session_present);
    // Another look for what is due.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    watcher.synced().await;
    back.synced().await;
}

#[tokio::test]
async fn a_publish_that_waits_for_a_pod_goes_out_only_if_no_other_pod_may_send_it_again() {
    let cluster = Cluster::new();
    let [a, b] = cluster.two().await;
    let mut here = a.subscriber("here", "t", ExactlyOnce).await;
    let mut there = b.subscriber("there", "t", ExactlyOnce).await;
    a.metric_reaches("weir_cluster_interest_elsewhere", 1.0).await;
    cluster.network.partition(a.core.pod(), b.core.pod());
    cluster.network.cut(a.core.pod(), b.core.pod());
    let mut up = a.core.links().unwrap().link_events();
    let down = up.wait_for(|up| up.is_empty());
    assert!(tokio::time::timeout(DEADLINE, down).await.is_ok(), "the link stays up");
    let mut moved = a.connect(persistent("moved", V5)).await;
    moved.post(publish(ExactlyOnce, 1, "t", "of moved")).await;
    a.metric_reaches("weir_publish_under_way_bytes", 1.0).await;
    // Another pod opens its session, of which nobody here hears.
    let sessions = Sessions::new(
        SharedStore::clone(&cluster.store),
        Clock::system(),
        &Seed::fixed(2),
        [9; 16],
        a.core.format().virtual_shards,
    );
    let options = OpenOptions { clean_start: false, expiry_seconds: u32::MAX, will: None };
    let open = async |client_id: &str| sessions.open(&client_id.into(), &options).await.unwrap().incoming;
    assert!(matches!(open("moved").await[..], [(1, IncomingPublish { is_answered: false, .. })]));
    let mut stays = a.connect(persistent("stays", V5)).await;
    stays.post(publish(ExactlyOnce, 1, "t", "of stays")).await;
    cluster.network.heal();
    moved.told(ReasonCode::SessionTakenOver).await;
    assert_eq!(stays.pubreced(1).await, ReasonCode::Success);
    for client in [&mut here, &mut there] {
        assert_eq!(client.take_texts(1).await, ["of stays"]);
        client.quiet().await;
    }
    // Whoever opens its session now knows, without a word from the pod that it was at.
    assert!(matches!(open("stays").await[..], [(1, IncomingPublish { is_answered: true, .. })]));
}

#[tokio::test]
async fn a_publish_under_way_while_a_link_was_down_goes_out_only_if_no_other_pod_may_send_it_again() {
    let (store, faults) = faulty();
    let cluster = Cluster { store, network: MemoryNetwork::new(Clock::system(), &Seed::fixed(1)) };
    let pods = cluster.two().await;
    let [a, b] = &pods;
    let mut here = a.subscriber("here", "t", ExactlyOnce).await;
    let mut keeper = a.connect(persistent("keeper", V5)).await;
    keeper.subscribe("t", ExactlyOnce).await;
    keeper.disconnect().await;
    let break_link = async || {
        cluster.network.partition(a.core.pod(), b.core.pod());
        cluster.network.cut(a.core.pod(), b.core.pod());
        let mut up = a.core.links().unwrap().link_events();
        let down = up.wait_for(|up| up.is_empty());
        assert!(tokio::time::timeout(DEADLINE, down).await.is_ok(), "the link stays up");
    };
    for breaks_first in [true, false] {
        let (mut moved, mut stays) =
            (a.connect(persistent("moved", V5)).await, a.connect(persistent("stays", V5)).await);
        // Large, so that it is stored in rows of its own.
        let payload = |of: &str| of.repeat(20_000);
        faults.fail_commits_matching(&[tag::INBOX_BLOB], CommitFault::Stalled(DEADLINE));
        if breaks_first {
            break_link().await;
        }
        for (client, of) in [(&mut moved, "moved"), (&mut stays, "stays")] {
            client.post(publish(ExactlyOnce, 1, "t", &payload(of))).await;
        }
        a.metric_reaches("weir_publish_under_way_bytes", 200_000.0).await;
        if !breaks_first {
            break_link().await;
        }
        // Another pod opens a session, of which nobody here hears.
        let virtual_shards = a.core.format().virtual_shards;
        let (store, seed) = (SharedStore::clone(&cluster.store), Seed::fixed(2 + u64::from(breaks_first)));
        let sessions = Sessions::new(store, Clock::system(), &seed, [9; 16], virtual_shards);
        let options = OpenOptions { clean_start: false, expiry_seconds: u32::MAX, will: None };
        let noted = sessions.open(&"moved".into(), &options).await.unwrap().incoming;
        assert!(matches!(noted[..], [(1, IncomingPublish { is_answered: false, .. })]), "{noted:?}");
        // Every pod is heard again when the message is durable.
        cluster.network.heal();
        cluster.meet(&pods).await;
        faults.heal();
        faults.release_stalled();
        moved.told(ReasonCode::SessionTakenOver).await;
        assert_eq!(stays.pubreced(1).await, ReasonCode::Success);
        assert_eq!(here.take_texts(1).await, [payload("stays")]);
        here.quiet().await;
        let noted = sessions.open(&"stays".into(), &options).await.unwrap().incoming;
        assert!(matches!(noted[..], [(1, IncomingPublish { is_answered: true, .. })]), "{noted:?}");
        for name in ["moved", "stays"] {
            let clean = OpenOptions { clean_start: true, expiry_seconds: 0, will: None };
            sessions.open(&name.into(), &clean).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_is_retained_at_one_pod_is_found_at_the_other() {
    let cluster = Cluster::new();
    let [a, b] = cluster.two().await;
    let (mut at_a, mut at_b) = (a.clean("a").await, b.clean("b").await);
    let answer = sent(&mut at_a, retained(AtLeastOnce, 1, "r/1", "one")).await;
    assert!(matches!(answer, Packet::PubAck(_)), "{answer:?}");
    let mut reader = b.subscriber("reader", "r/#", AtMostOnce).await;
    assert_eq!(text(&reader.message().await), "one");
    for n in 0..20 {
        let (one, other) = (format!("a{n}"), format!("b{n}"));
        tokio::join!(
            sent(&mut at_a, retained(AtLeastOnce, 2, "r/2", &one)),
            sent(&mut at_b, retained(AtLeastOnce, 2, "r/2", &other))
        );
        let (mut from_a, mut from_b) =
            (a.subscriber("ra", "r/2", AtMostOnce).await, b.subscriber("rb", "r/2", AtMostOnce).await);
        let (one, other) = (from_a.message().await, from_b.message().await);
        assert_eq!(text(&one), text(&other), "both find the same, round {n}");
    }
}

#[tokio::test]
async fn a_pod_that_is_cut_off_from_the_store_says_nothing_until_it_has_it_again() {
    let (store, faults) = faulty();
    let network = MemoryNetwork::new(Clock::system(), &Seed::fixed(1));
    let pod = TestBroker::start_pod(&store, &network).await;
    let mut clients = Vec::new();
    for version in [V5, V311] {
        let mut client = pod.connect(clean(&format!("c-{version:?}"), version)).await;
        client.subscribe("t", AtMostOnce).await;
        clients.push((version, client));
    }
    let ready = async |status: &str, word: &str| {
        let answer = pod.get("/readyz").await;
        assert!(answer.contains(status) && answer.contains(word), "{answer}");
        assert!(pod.get("/healthz").await.contains("200"));
    };
    ready("200", "ready").await;
    faults.unavailable(true);
    pod.metric_reaches("weir_cluster_quiet", 1.0).await;
    ready("503", "not ready: quiet").await;
    clients[0].1.send(Packet::Publish(Box::new(publish(AtMostOnce, 0, "t", "late")))).await;
    for (version, client) in &mut clients {
        let said = tokio::time::timeout(Duration::from_millis(300), client.next()).await;
        assert!(said.is_err(), "{version:?}: {said:?}");
        // Who comes now is to go elsewhere.
        let (mut other, connack) = pod.connack(clean("other", *version)).await;
        assert_eq!(connack.code, ReasonCode::ServerUnavailable, "{version:?}");
        assert_eq!(other.try_recv().await, None);
    }
    faults.unavailable(false);
    for (_, client) in &mut clients {
        assert_eq!(text(&client.message().await), "late");
    }
    ready("200", "ready").await;
    pod.stop().await;
}
