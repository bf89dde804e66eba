//! What publishers and clients are told by a broker whose store fails: never success.

use std::time::Duration;

use weir_codec::{Packet, ProtocolVersion, QoS, ReasonCode};
use weir_core::keyspace::tag;
use weir_storage::{CommitFault, FaultHandle};

use super::client::{
    AtLeastOnce, AtMostOnce, Client, ExactlyOnce, V5, V311, again, clean, id, number, persistent, publish,
    retained, text,
};
use super::{TestBroker, faulty, queue, refused, stream};

/// What must keep a message: how it is published, and the table whose writes then fail.
#[derive(Clone, Copy, Debug)]
enum Target {
    Queue,
    Stream,
    Inbox,
    Retained,
}

const TARGETS: [Target; 4] = [Target::Queue, Target::Stream, Target::Inbox, Target::Retained];

impl Target {
    fn table(self) -> u8 {
        match self {
            Self::Queue | Self::Stream => tag::SEGMENT,
            Self::Inbox => tag::SESSION,
            Self::Retained => tag::RETAINED,
        }
    }

    fn publish(self, qos: QoS, n: u16) -> weir_codec::Publish {
        match self {
            Self::Queue => publish(qos, n, "to/queue", "x"),
            Self::Stream => publish(qos, n, "to/stream", "x"),
            Self::Inbox => publish(qos, n, "to/inbox", "x"),
            Self::Retained => retained(qos, n, "to/retained", "x"),
        }
    }

    /// Expects the message once, and nothing else.
    async fn expect(self, broker: &TestBroker) {
        let mut reader = match self {
            Self::Inbox => broker.resume(persistent("inbox", V5)).await,
            Self::Queue | Self::Stream | Self::Retained => broker.clean("reader").await,
        };
        match self {
            Self::Queue => reader.subscribe("$queue/q", AtLeastOnce).await,
            Self::Stream => assert!(!reader.read_from("$stream/s", AtLeastOnce, "earliest").await.is_error()),
            Self::Retained => reader.subscribe("to/retained", AtLeastOnce).await,
            Self::Inbox => {}
        }
        assert_eq!(text(&reader.take().await), "x", "{self:?}");
        reader.quiet().await;
        reader.disconnect().await;
    }
}

async fn start() -> (TestBroker, FaultHandle) {
    let (store, faults) = faulty();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[queue("q", "to/queue"), stream("s", "to/stream")]).await;
    let mut inbox = broker.connect(persistent("inbox", V5)).await;
    inbox.subscribe("to/inbox", AtLeastOnce).await;
    inbox.disconnect().await;
    (broker, faults)
}

/// The reason in PUBACK or PUBREC.
async fn answer(client: &mut Client, qos: QoS, n: u16) -> ReasonCode {
    if qos == ExactlyOnce { client.pubreced(n).await } else { client.pubacked(n).await }
}

// Conformance v5: 3.4.2-1
#[tokio::test]
async fn a_refused_publish_is_told_and_its_repeat_succeeds() {
    for target in TARGETS {
        for qos in [AtLeastOnce, ExactlyOnce] {
            let (broker, faults) = start().await;
            let mut client = broker.clean("c").await;
            faults.fail_commits_matching(&[target.table()], refused());
            client.post(target.publish(qos, 1)).await;
            let reason = answer(&mut client, qos, 1).await;
            assert_eq!(reason, ReasonCode::ImplementationSpecificError, "{target:?} {qos:?}");
            client.synced().await;
            faults.heal();
            client.post(target.publish(qos, 2)).await;
            assert_eq!(answer(&mut client, qos, 2).await, ReasonCode::Success, "{target:?} {qos:?}");
            assert!(faults.injected() > 0);
            target.expect(&broker).await;
        }
    }
}

#[tokio::test]
async fn an_old_publisher_waits_for_its_answer_until_the_store_is_back() {
    for target in TARGETS {
        for qos in [AtLeastOnce, ExactlyOnce] {
            let (broker, faults) = start().await;
            let mut client = broker.connect(clean("c", V311)).await;
            faults.fail_commits_matching(&[target.table()], refused());
            client.post(target.publish(qos, 1)).await;
            client.quiet().await;
            client.synced().await;
            assert!(faults.injected() > 0);
            faults.heal();
            answer(&mut client, qos, 1).await;
            target.expect(&broker).await;
        }
    }
}

#[tokio::test]
async fn qos_0_and_1_reach_live_subscribers_whatever_the_store_says_and_qos_2_does_not() {
    let (broker, faults) = start().await;
    let mut live = broker.subscriber("live", "to/queue", ExactlyOnce).await;
    let mut client = broker.clean("c").await;
    faults.fail_commits_matching(&[tag::SEGMENT], refused());
    client.post(publish(AtMostOnce, 0, "to/queue", "0")).await;
    client.post(publish(AtLeastOnce, 1, "to/queue", "1")).await;
    assert!(client.pubacked(1).await.is_error());
    client.post(publish(ExactlyOnce, 2, "to/queue", "2")).await;
    assert!(client.pubreced(2).await.is_error());
    assert_eq!(text(&live.message().await), "0");
    assert_eq!(text(&live.take().await), "1");
    live.synced().await;
    faults.heal();
    client.post(publish(ExactlyOnce, 2, "to/queue", "3")).await;
    assert_eq!(client.pubreced(2).await, ReasonCode::Success);
    assert_eq!(text(&live.take().await), "3");
}

#[tokio::test]
async fn a_store_that_does_not_answer_opens_no_session() {
    for (version, reason) in
        [(V5, ReasonCode::ImplementationSpecificError), (V311, ReasonCode::ServerUnavailable)]
    {
        let (broker, faults) = start().await;
        faults.unavailable(true);
        let (mut client, connack) = broker.connack(persistent("c", version)).await;
        assert_eq!(connack.code, reason);
        client.ended().await;
        faults.heal();
        broker.connect(persistent("c", version)).await.disconnect().await;
    }
}

#[tokio::test]
async fn an_unknown_outcome_is_found_out_and_the_message_is_there_once() {
    for version in [V5, V311] {
        for fault in [CommitFault::SettledCommitted, CommitFault::SettledLost] {
            let (broker, faults) = start().await;
            broker.publish("to/stream", &["before"]).await;
            let mut client = broker.connect(clean("c", version)).await;
            faults.fail_next_commit(fault.clone());
            client.post(publish(AtLeastOnce, 1, "to/stream", "x")).await;
            assert_eq!(client.pubacked(1).await, ReasonCode::Success, "{fault:?}");
            assert_eq!(faults.injected(), 1);
            client.post(publish(AtLeastOnce, 2, "to/stream", "after")).await;
            assert_eq!(client.pubacked(2).await, ReasonCode::Success);
            let mut reader = broker.clean("reader").await;
            reader.read_from("$stream/s", AtLeastOnce, "earliest").await;
            for (offset, expected) in ["before", "x", "after"].into_iter().enumerate() {
                let message = reader.take().await;
                assert_eq!((number(&message, "offset"), text(&message)), (offset as u64, expected));
            }
            reader.quiet().await;
        }
    }
}

#[tokio::test]
async fn a_refused_subscription_is_told() {
    let (broker, faults) = start().await;
    let mut client = broker.connect(persistent("c", V5)).await;
    faults.fail_commits_matching(&[tag::SESSION], refused());
    assert!(client.subscribed("t", AtLeastOnce).await.is_error());
    faults.heal();
    client.subscribe("t", AtLeastOnce).await;
}

/// The store fails while QoS 2 is under way in a session that survives: exactly once all the same.
// Conformance v5: 3.5.2-1, 4.3.3-9
#[tokio::test]
async fn a_qos_2_publish_repeated_after_a_failure_is_there_once() {
    let (broker, faults) = start().await;
    let connect = |version: ProtocolVersion| persistent("p", version);
    let mut client = broker.connect(connect(V5)).await;
    faults.fail_commits_matching(&[tag::SEGMENT], refused());
    client.post(publish(ExactlyOnce, 1, "to/stream", "x")).await;
    assert!(client.pubreced(1).await.is_error());
    faults.heal();
    client.post(publish(ExactlyOnce, 1, "to/stream", "x")).await;
    assert_eq!(client.pubreced(1).await, ReasonCode::Success);
    client.vanish();
    let mut client = broker.resume(connect(V5)).await;
    client.post(again(publish(ExactlyOnce, 1, "to/stream", "x"))).await;
    assert_eq!(client.pubreced(1).await, ReasonCode::Success);
    client.pubrel(id(1)).await;
    client.pubcomped(1).await;
    Target::Stream.expect(&broker).await;
}

/// A will whose connection ends while the store does not answer is published when it does.
#[tokio::test]
async fn a_will_waits_for_the_store() {
    let (broker, faults) = start().await;
    let mut watcher = broker.subscriber("watcher", "will", AtLeastOnce).await;
    let mut connect = clean("c", V5);
    connect.will = Some(super::client::will("will", "gone"));
    let client = broker.connect(connect).await;
    faults.unavailable(true);
    client.vanish();
    watcher.quiet().await;
    faults.heal();
    assert_eq!(text(&watcher.take().await), "gone");
}

/// A stream reader outlives a store that does not answer for a while.
#[tokio::test]
async fn a_reader_goes_on_when_the_store_is_back() {
    let (broker, faults) = start().await;
    let mut reader = broker.clean("reader").await;
    // Nobody reads yet, so this comes from the store.
    broker.publish("to/stream", &["0"]).await;
    let before = faults.injected();
    faults.fail_next_read(weir_storage::Error::Unavailable("by this test".into()));
    reader.read_from("$stream/s", AtLeastOnce, "earliest").await;
    assert_eq!(text(&reader.take().await), "0");
    broker.publish("to/stream", &["1"]).await;
    assert_eq!(text(&reader.take().await), "1");
    assert!(faults.injected() > before);
}

/// A client whose packets wait for us has not been silent, however long the store takes.
#[tokio::test]
async fn a_slow_store_is_not_the_clients_silence() {
    let (broker, faults) = start().await;
    let mut clients = Vec::new();
    for n in 0..8 {
        let mut connect = persistent(&format!("c{n}"), V5);
        connect.keep_alive = 1;
        clients.push(broker.connect(connect).await);
    }
    faults.fail_commits_matching(&[tag::SESSION], CommitFault::Stalled(Duration::from_secs(2)));
    for client in &mut clients {
        // The broker waits for the store before it reads on.
        client.post(publish(ExactlyOnce, 1, "t", "x")).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for client in &mut clients {
        client.send(Packet::PingReq).await;
    }
    for client in &mut clients {
        assert!(!client.pubreced(1).await.is_error());
        assert_eq!(client.recv().await, Packet::PingResp);
    }
}
