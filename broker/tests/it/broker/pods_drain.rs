//! Pods whose clients go to the others, whole brokers on one store in this process: nothing that was acknowledged is lost,
//! nothing that is sent again fails, and it can be taken back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;
use weir_codec::{Connect, Packet, ProtocolVersion, QoS, ReasonCode};
use weir_core::cluster::{DrainOrder, DrainState};
use weir_core::pods::{Asked, PodReport};
use weir_storage::SharedStore;

use super::client::{
    AtLeastOnce, Client, ExactlyOnce, V5, V311, again, clean, number, persistent, publish, text,
};
use super::{DEADLINE, TestBroker, config, memory, queue};

/// All at once.
const FAST: DrainOrder = DrainOrder { rate: 1_000_000, grace: Duration::from_secs(20) };

/// A pod on `store` that says it is at `reference`.
async fn pod(store: &SharedStore, reference: &str) -> TestBroker {
    let mut config = config();
    config.peer.listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    config.drain.server_reference = Some(reference.to_owned()).filter(|it| !it.is_empty());
    TestBroker::start_with(config, store).await
}

/// Pods that have links to each other.
async fn pods(references: &[&str]) -> Vec<TestBroker> {
    let store = memory();
    let mut pods = Vec::new();
    for reference in references {
        pods.push(pod(&store, reference).await);
    }
    for pod in &pods {
        pod.metric_reaches("weir_peers_up", references.len() as f64 - 1.0).await;
    }
    pods
}

/// Asks for a drain of `whom`, or takes it back.
async fn ask(by: &TestBroker, whom: &TestBroker, order: Option<DrainOrder>) {
    assert_eq!(by.core.drain_pod(whom.core.pod(), order).await.unwrap(), Asked::Done);
}

/// Waits until a pod says of itself what is awaited, as `by` hears it.
async fn until(by: &TestBroker, whom: &TestBroker, is_so: impl Fn(&PodReport) -> bool) {
    let id = whom.core.pod();
    let said = async {
        while !by.core.pods().iter().any(|report| report.id == id && is_so(report)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(DEADLINE, said).await;
    assert!(waited.is_ok(), "not in time: {:#?}", by.core.pods());
}

/// Where a client is sent.
async fn sent_to(client: &mut Client, reason: ReasonCode) -> Option<String> {
    match client.recv().await {
        Packet::Disconnect(disconnect) => {
            assert_eq!(disconnect.reason, reason);
            client.ended().await;
            disconnect.server_reference.map(|to| to.to_string())
        }
        other => panic!("not a DISCONNECT: {other:?}"),
    }
}

#[tokio::test]
async fn clients_are_sent_to_other_pods_until_that_is_taken_back() {
    let [a, b, c] = <[TestBroker; 3]>::try_from(pods(&["a:1", "b:1", ""]).await).ok().unwrap();
    let mut old = a.connect(persistent("old", V311)).await;
    let mut new = a.connect(persistent("new", V5)).await;
    old.subscribe("t", AtLeastOnce).await;
    new.subscribe("t", AtLeastOnce).await;
    ask(&c, &a, Some(FAST)).await;
    assert_eq!(sent_to(&mut new, ReasonCode::UseAnotherServer).await.as_deref(), Some("b:1"));
    old.ended().await;
    until(&b, &a, |report| report.load.state == DrainState::Drained).await;
    until(&b, &a, |report| (report.load.shed, report.load.connections, report.load.shards) == (2, 0, 0))
        .await;
    let ready = a.get("/readyz").await;
    assert!(ready.contains("503") && ready.ends_with("draining\n"), "{ready}");
    assert!(a.get("/healthz").await.contains("200"));
    assert_eq!(a.metric("weir_draining").await, 2.0);
    a.metric_reaches(r#"weir_connections_closed_total{reason="moved"}"#, 2.0).await;
    // Nobody is let in.
    let (_, refused) = a.connack(clean("late", V5)).await;
    assert_eq!(refused.code, ReasonCode::UseAnotherServer);
    assert_eq!(refused.server_reference.as_deref(), Some("b:1"));
    let (_, refused) = a.connack(clean("late", V311)).await;
    assert_eq!(refused.code, ReasonCode::ServerUnavailable);
    // Their sessions are elsewhere at once.
    c.publish("t", &["x"]).await;
    let (mut old, mut new) = (b.resume(persistent("old", V311)).await, c.resume(persistent("new", V5)).await);
    assert_eq!((text(&old.take().await), text(&new.take().await)), ("x", "x"));

    ask(&b, &a, None).await;
    until(&b, &a, |report| report.load.state == DrainState::Serving && !report.is_draining).await;
    assert!(a.get("/readyz").await.contains("200"));
    assert_eq!(a.metric("weir_draining").await, 0.0);
    let mut back = a.resume(persistent("new", V5)).await;
    back.synced().await;
    until(&b, &a, |report| report.load.connections == 1 && report.load.shed == 0).await;
}

#[tokio::test]
async fn a_slow_drain_goes_on_and_ends_all_when_its_grace_is_over() {
    let [a, b] = <[TestBroker; 2]>::try_from(pods(&["", ""]).await).ok().unwrap();
    let mut clients = Vec::new();
    for n in 0..5 {
        clients.push(a.connect(clean(&format!("c{n}"), V5)).await);
    }
    // It reads nothing, and the socket is full.
    let mut deaf = a.connect(clean("deaf", V5)).await;
    deaf.subscribe("loud", AtLeastOnce).await;
    let loud = "x".repeat(60_000);
    b.publish("loud", &[loud.as_str(); 50]).await;
    let slow = |seconds| Some(DrainOrder { rate: 1, grace: Duration::from_secs(seconds) });
    ask(&b, &a, slow(3600)).await;
    until(&b, &a, |report| report.load.shed >= 1 && report.load.state == DrainState::Draining).await;
    assert!(b.core.pods().iter().any(|report| report.load.connections >= 2), "not all at once");
    // Asked again, it has less time.
    ask(&b, &a, Some(DrainOrder { rate: 1, grace: Duration::from_millis(1) })).await;
    until(&b, &a, |report| report.load.state == DrainState::Drained && report.load.shed == 6).await;
    for mut client in clients {
        assert_eq!(sent_to(&mut client, ReasonCode::UseAnotherServer).await, None);
    }
}

/// It sends without a pause: when its connection ends there is input that nobody reads, and it is to hear why all the same.
#[tokio::test]
async fn a_client_that_goes_on_sending_is_told_and_not_reset() {
    const CONNECT: &[u8] = b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x03bus";
    let pings = [0xC0, 0].repeat(32 * 1024);
    let [a, b] = <[TestBroker; 2]>::try_from(pods(&["", ""]).await).ok().unwrap();
    let (mut from, mut to) = TcpStream::connect(a.addr).await.unwrap().into_split();
    to.write_all(CONNECT).await.unwrap();
    let mut read = vec![0; 64 * 1024];
    let connack = from.read(&mut read).await.unwrap();
    assert_eq!((read[0], read[3]), (0x20, 0), "{connack} bytes");
    let tasks = TaskTracker::new();
    tasks.spawn(async move { while to.write_all(&pings).await.is_ok() {} });
    ask(&b, &a, Some(FAST)).await;
    let mut last = Vec::new();
    loop {
        let length = from.read(&mut read).await.expect("the end, not a reset");
        if length == 0 {
            break;
        }
        last.extend_from_slice(&read[..length]);
        last.drain(..last.len().saturating_sub(4));
    }
    // With the length of its properties: some clients do not read it otherwise.
    assert_eq!(last, [0xE0, 2, 0x9C, 0]);
}

/// What a publisher publishes at one pod after the other.
struct Publisher {
    addrs: Vec<SocketAddr>,
    connect: Connect,
    pod: usize,
}

impl Publisher {
    /// A connection to some pod that takes clients.
    async fn connected(&mut self) -> Client {
        loop {
            let addr = self.addrs[self.pod % self.addrs.len()];
            if let Ok(stream) = TcpStream::connect(addr).await {
                let mut client = Client::over(stream, self.connect.version);
                let packet = Packet::Connect(Box::new(self.connect.clone()));
                let sent = client.try_send(packet).await;
                let answer = if sent.is_ok() { client.try_recv().await } else { None };
                if matches!(answer, Some(Packet::ConnAck(connack)) if connack.code == ReasonCode::Success) {
                    return client;
                }
            }
            self.pod += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Publishes `count` messages, each until it has succeeded; how many connections that took.
    async fn run(mut self, qos: QoS, count: u16) -> usize {
        let mut client = self.connected().await;
        let mut connections = 1;
        for n in 1..=count {
            let payload = format!("{} {n}", self.connect.client_id);
            let message = publish(qos, n, "load", &payload);
            let mut packet = Packet::Publish(Box::new(message.clone()));
            loop {
                let sent = client.try_send(packet.clone()).await;
                let answer = if sent.is_ok() { client.try_recv().await } else { None };
                match answer {
                    Some(Packet::PubAck(ack)) => {
                        assert!(!ack.reason.is_error(), "{payload}: {ack:?}");
                        break;
                    }
                    // It was released before, and the answer was lost.
                    Some(Packet::PubComp(ack)) => {
                        let is_done =
                            matches!(ack.reason, ReasonCode::Success | ReasonCode::PacketIdentifierNotFound);
                        assert!(is_done, "{payload}: {ack:?}");
                        break;
                    }
                    Some(Packet::PubRec(ack)) => {
                        assert!(!ack.reason.is_error(), "{payload}: {ack:?}");
                        packet = Packet::PubRel(weir_codec::Ack {
                            reason: ReasonCode::Success,
                            properties: None,
                            ..ack
                        });
                    }
                    Some(Packet::Disconnect(_)) | None => {
                        client = self.connected().await;
                        connections += 1;
                        if matches!(packet, Packet::Publish(_)) {
                            packet = Packet::Publish(Box::new(again(message.clone())));
                        }
                    }
                    Some(other) => panic!("{payload}: {other:?}"),
                }
            }
        }
        connections
    }
}

/// Takes messages of a queue until `count` different ones are there; the shards and offsets at which each came.
async fn consumed(mut consumer: Client, count: usize) -> BTreeMap<String, Vec<(u64, u64)>> {
    let mut came = BTreeMap::<_, Vec<_>>::new();
    while came.len() < count {
        let message = consumer.take().await;
        assert_eq!(number(&message, "delivery-count"), 1, "{}", text(&message));
        let place = (number(&message, "shard"), number(&message, "offset"));
        came.entry(text(&message).to_owned()).or_default().push(place);
    }
    came
}

#[tokio::test]
async fn a_pod_that_is_stopped_under_load_fails_no_publish_and_loses_nothing() {
    const COUNT: u16 = 150;
    let tasks = TaskTracker::new();
    let [a, b, c] = <[TestBroker; 3]>::try_from(pods(&["", "", ""]).await).ok().unwrap();
    let mut work = queue("work", "load");
    work.shards = 8;
    a.declare(&[work]).await;
    let mut subscriber = a.connect(persistent("s", V5)).await;
    subscriber.subscribe("load", ExactlyOnce).await;
    let consumer = b.subscriber("consumer", "$queue/work", AtLeastOnce).await;
    // It holds something and acknowledges nothing.
    let mut holder = a.connect(clean("holder", V5)).await;
    holder.subscribe("$queue/work", AtLeastOnce).await;
    let addrs = [a.addr, b.addr, c.addr];
    let of = |n: usize, qos, version: ProtocolVersion| {
        let connect = persistent(&format!("p{n}"), version);
        let publisher = Publisher { addrs: addrs.to_vec(), connect, pod: n % 2 };
        tasks.spawn(publisher.run(qos, COUNT))
    };
    let publishers = [
        of(0, AtLeastOnce, V5),
        of(1, AtLeastOnce, V311),
        of(2, ExactlyOnce, V5),
        of(3, ExactlyOnce, V311),
        of(4, ExactlyOnce, V5),
    ];
    let all = publishers.len() * usize::from(COUNT);
    let consuming = tasks.spawn(consumed(consumer, all));
    assert!(matches!(holder.recv().await, Packet::Publish(_)), "it has something");
    a.begin_stop();
    // What comes before is not looked at: it is in the inbox as long as it is not acknowledged.
    while !matches!(subscriber.recv().await, Packet::Disconnect(_)) {}
    while !matches!(holder.recv().await, Packet::Disconnect(_)) {}
    let mut connections = 0;
    for publisher in publishers {
        connections += tokio::time::timeout(DEADLINE * 2, publisher).await.expect("in time").unwrap();
    }
    assert!(connections > 5, "nobody was sent away");
    a.stop().await;
    let came = tokio::time::timeout(DEADLINE, consuming).await.expect("in time").unwrap();
    // Only at QoS 1 may one have come twice.
    let twice: Vec<_> = came
        .iter()
        .filter(|(text, places)| places.len() > 1 && !text.starts_with("p0") && !text.starts_with("p1"))
        .collect();
    assert!(twice.is_empty(), "{twice:?}");
    let mut subscriber = c.resume(persistent("s", V5)).await;
    let mut inbox = BTreeMap::<String, usize>::new();
    while inbox.len() < all {
        match subscriber.recv().await {
            Packet::Publish(message) => {
                *inbox.entry(text(&message).to_owned()).or_default() += 1;
                match (message.header.qos, message.header.packet_id) {
                    (ExactlyOnce, Some(id)) => subscriber.pubrec(id).await,
                    _ => subscriber.puback(&message, ReasonCode::Success).await,
                }
            }
            Packet::PubRel(ack) => subscriber.pubcomp(ack.packet_id).await,
            other => panic!("{other:?}"),
        }
    }
    let twice: Vec<_> = inbox
        .iter()
        .filter(|(text, n)| **n > 1 && !text.starts_with("p0") && !text.starts_with("p1"))
        .collect();
    assert_eq!(twice, Vec::<(&String, &usize)>::new());
}

#[tokio::test]
async fn the_last_pod_stops_at_once_and_says_so() {
    let [a, b] = <[TestBroker; 2]>::try_from(pods(&["a:1", "b:1"]).await).ok().unwrap();
    let mut moved = a.clean("moved").await;
    a.begin_stop();
    // For good, and it is known where to.
    assert_eq!(sent_to(&mut moved, ReasonCode::ServerMoved).await.as_deref(), Some("b:1"));
    a.stop().await;
    let mut last = b.clean("last").await;
    b.begin_stop();
    assert_eq!(sent_to(&mut last, ReasonCode::ServerShuttingDown).await, None);
    b.stop().await;
}
