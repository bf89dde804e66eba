//! The client does what the protocol wants, and fails where it must.

use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use tokio::net::TcpListener;
use weir::client::{Acks, Client, ConnectOptions, Endpoint, Error, Publication};
use weir_codec::{
    AckProperties, ConnAck, Disconnect, Message, MessageProperties, Packet, PacketId, ProtocolVersion,
    Publish, PublishHeader, QoS, ReasonCode, SubAck, SubscribeFilter, SubscriptionOptions, UnsubAck, Will,
};
use weir_env::clock::Clock;
use weir_topic::TopicName;

use super::peer::{Listening, Peer, ack, options};

/// Both sides of a new connection.
async fn pair(options: ConnectOptions, conn_ack: ConnAck) -> (Client, Peer) {
    let listening = Listening::start().await;
    let endpoint = listening.endpoint();
    let (client, (peer, _)) =
        tokio::join!(Client::connect(&endpoint, &options), listening.connected(conn_ack));
    (client.unwrap(), peer)
}

fn publication(qos: QoS) -> Publication<'static> {
    Publication { topic: "a/b", payload: b"hi", qos, ..Publication::default() }
}

fn publish(qos: QoS, packet_id: u16) -> Packet {
    Packet::Publish(Box::new(Publish {
        header: PublishHeader { qos, packet_id: PacketId::new(packet_id), ..PublishHeader::default() },
        topic: Some(TopicName::parse("a/b").unwrap()),
        payload: Bytes::from_static(b"hi"),
        properties: MessageProperties::default(),
    }))
}

fn id(packet_id: u16) -> PacketId {
    PacketId::new(packet_id).unwrap()
}

#[tokio::test]
async fn connect_says_everything_that_is_asked_for() {
    let listening = Listening::start().await;
    let will = Will {
        message: Message {
            topic: TopicName::parse("gone").unwrap(),
            payload: Bytes::from_static(b"x"),
            properties: MessageProperties::default(),
        },
        qos: QoS::AtLeastOnce,
        retain: true,
        delay_interval: 0,
        message_expiry_interval: None,
    };
    for version in [ProtocolVersion::V5, ProtocolVersion::V311] {
        let options = ConnectOptions {
            version,
            clean_start: false,
            session_expiry_interval: Some(60),
            username: Some("u".into()),
            password: Some(Bytes::from_static(b"p")),
            keep_alive: 7,
            will: Some(will.clone()),
            receive_maximum: NonZeroU16::new(9),
            ..options()
        };
        let endpoint = listening.endpoint();
        let conn_ack = ConnAck { session_present: true, ..ConnAck::default() };
        let (client, (_peer, connect)) =
            tokio::join!(Client::connect(&endpoint, &options), listening.connected(conn_ack));
        assert!(client.unwrap().conn_ack().session_present);
        assert_eq!(connect.version, version);
        assert_eq!(connect.client_id, "test");
        assert!(!connect.clean_start);
        assert_eq!(connect.username, Some(ByteString::from("u")));
        assert_eq!(connect.password, Some(Bytes::from_static(b"p")));
        assert_eq!(connect.keep_alive, 7);
        assert_eq!(connect.will.as_ref(), Some(&will));
        let v5 = version == ProtocolVersion::V5;
        assert_eq!(connect.session_expiry_interval, v5.then_some(60));
        assert_eq!(connect.receive_maximum, NonZeroU16::new(9).filter(|_| v5));
    }
}

#[tokio::test]
async fn a_refusal_has_its_reason() {
    let listening = Listening::start().await;
    let conn_ack = ConnAck {
        code: ReasonCode::NotAuthorized,
        reason_string: Some("who are you".into()),
        ..ConnAck::default()
    };
    let (endpoint, options) = (listening.endpoint(), options());
    let (client, _peer) = tokio::join!(Client::connect(&endpoint, &options), listening.connected(conn_ack));
    assert_eq!(client.unwrap_err().to_string(), "connection refused: NotAuthorized (0x87): who are you");
}

#[tokio::test]
async fn nobody_there_is_told_from_nobody_answering() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::tcp("127.0.0.1", listener.local_addr().unwrap().port());
    let options = ConnectOptions { deadline: Duration::from_millis(20), ..options() };
    // The kernel accepts, nobody answers.
    assert!(matches!(
        Client::connect(&endpoint, &options).await,
        Err(Error::NoAnswer { what: "CONNACK", .. })
    ));
    drop(listener);
    assert!(matches!(Client::connect(&endpoint, &options).await, Err(Error::Connect { .. })));
}

#[tokio::test]
async fn publishes_of_every_quality() {
    let (mut client, mut peer) = pair(options(), ConnAck::default()).await;
    assert_eq!(client.publish(&publication(QoS::AtMostOnce)).await.unwrap(), None);
    assert_eq!(peer.recv_publish().await.payload, "hi");

    let server = async {
        let packet_id = peer.recv_publish().await.header.packet_id.unwrap();
        peer.send(&Packet::PubAck(ack(packet_id, ReasonCode::NoMatchingSubscribers))).await;
        let packet_id = peer.recv_publish().await.header.packet_id.unwrap();
        peer.send(&Packet::PubRec(ack(packet_id, ReasonCode::Success))).await;
        assert_eq!(peer.recv().await, Some(Packet::PubRel(ack(packet_id, ReasonCode::Success))));
        peer.send(&Packet::PubComp(ack(packet_id, ReasonCode::Success))).await;
    };
    let publisher = async {
        let completion = client.publish(&publication(QoS::AtLeastOnce)).await.unwrap().unwrap();
        assert_eq!(completion.reason, ReasonCode::NoMatchingSubscribers);
        let completion = client.publish(&publication(QoS::ExactlyOnce)).await.unwrap().unwrap();
        assert_eq!(completion.reason, ReasonCode::Success);
    };
    tokio::join!(server, publisher);
}

#[tokio::test]
async fn a_refused_publish_has_its_reason_and_frees_its_place() {
    let conn_ack = ConnAck { receive_maximum: NonZeroU16::new(1), ..ConnAck::default() };
    let (mut client, mut peer) = pair(options(), conn_ack).await;
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        client.start_publish(&publication(qos)).unwrap();
        assert!(!client.has_room());
        assert!(matches!(client.start_publish(&publication(qos)), Err(Error::WindowFull)));
        let server = async {
            let packet_id = peer.recv_publish().await.header.packet_id.unwrap();
            let properties = AckProperties { reason_string: Some("full".into()), ..AckProperties::default() };
            let mut refusal = ack(packet_id, ReasonCode::QuotaExceeded);
            refusal.properties = Some(Box::new(properties));
            peer.send(&match qos {
                QoS::ExactlyOnce => Packet::PubRec(refusal),
                _ => Packet::PubAck(refusal),
            })
            .await;
        };
        let (completion, ()) = tokio::join!(client.completion(), server);
        let completion = completion.unwrap().unwrap();
        assert_eq!(completion.reason, ReasonCode::QuotaExceeded);
        assert_eq!(completion.reason_string.as_deref(), Some("full"));
        assert!(client.has_room());
        assert_eq!(client.completion().await.unwrap(), None);
    }
}

#[tokio::test]
async fn publishes_are_pipelined_up_to_the_servers_receive_maximum() {
    let conn_ack = ConnAck { receive_maximum: NonZeroU16::new(3), ..ConnAck::default() };
    let (mut client, mut peer) = pair(options(), conn_ack).await;
    let mut ids = Vec::new();
    while client.has_room() {
        ids.extend(client.start_publish(&publication(QoS::AtLeastOnce)).unwrap());
    }
    assert_eq!(ids.len(), 3);
    client.flush().await.unwrap();
    for expected in &ids {
        assert_eq!(peer.recv_publish().await.header.packet_id.as_ref(), Some(expected));
    }
    // Answers come in any order.
    for packet_id in ids.iter().rev() {
        peer.send(&Packet::PubAck(ack(*packet_id, ReasonCode::Success))).await;
        assert_eq!(client.completion().await.unwrap().unwrap().packet_id, *packet_id);
    }
}

#[tokio::test]
async fn received_messages_are_acknowledged_once_and_exactly() {
    let (mut client, mut peer) = pair(options(), ConnAck::default()).await;
    peer.send(&publish(QoS::AtLeastOnce, 5)).await;
    assert_eq!(client.recv().await.unwrap().payload, "hi");
    peer.send(&publish(QoS::ExactlyOnce, 6)).await;
    peer.send(&publish(QoS::ExactlyOnce, 6)).await;
    peer.send(&Packet::PubRel(ack(id(6), ReasonCode::Success))).await;
    peer.send(&publish(QoS::ExactlyOnce, 6)).await;
    peer.send(&Packet::PubRel(ack(id(7), ReasonCode::Success))).await;
    let mut received = 0;
    let mut answers = Vec::new();
    while answers.len() < 6 {
        tokio::select! {
            message = client.recv() => { message.unwrap(); received += 1 }
            answer = peer.recv() => answers.push(answer.unwrap()),
        }
    }
    assert_eq!(received, 2, "the repeat before PUBREL is the same message, the one after it is new");
    let ok = ReasonCode::Success;
    let expected = [
        Packet::PubAck(ack(id(5), ok)),
        Packet::PubRec(ack(id(6), ok)),
        Packet::PubRec(ack(id(6), ok)),
        Packet::PubComp(ack(id(6), ok)),
        Packet::PubRec(ack(id(6), ok)),
        Packet::PubComp(ack(id(7), ReasonCode::PacketIdentifierNotFound)),
    ];
    assert_eq!(answers, expected);
}

#[tokio::test]
async fn manual_acknowledgements_are_the_callers() {
    let (mut client, mut peer) =
        pair(ConnectOptions { acks: Acks::Manual, ..options() }, ConnAck::default()).await;
    peer.send(&publish(QoS::AtLeastOnce, 5)).await;
    peer.send(&publish(QoS::AtLeastOnce, 6)).await;
    let first = client.recv().await.unwrap();
    let second = client.recv().await.unwrap();
    client.ack(&second, ReasonCode::ImplementationSpecificError).unwrap();
    client.ack(&first, ReasonCode::Success).unwrap();
    client.flush().await.unwrap();
    let refusal = Packet::PubAck(ack(id(6), ReasonCode::ImplementationSpecificError));
    assert_eq!(peer.recv().await, Some(refusal));
    assert_eq!(peer.recv().await, Some(Packet::PubAck(ack(id(5), ReasonCode::Success))));
}

#[tokio::test]
async fn subscriptions_keep_what_arrives_before_the_answer() {
    let (mut client, mut peer) = pair(options(), ConnAck::default()).await;
    let server = async {
        let Some(Packet::Subscribe(subscribe)) = peer.recv().await else { panic!("not a SUBSCRIBE") };
        assert_eq!(subscribe.user_properties, [("stream-offset".into(), "earliest".into())]);
        assert_eq!(subscribe.filters[0].filter, "$stream/s");
        peer.send(&publish(QoS::AtMostOnce, 0)).await;
        let answer = SubAck {
            packet_id: subscribe.packet_id,
            reasons: vec![ReasonCode::GrantedQoS1],
            properties: AckProperties::default(),
        };
        peer.send(&Packet::SubAck(Box::new(answer))).await;
        let Some(Packet::Unsubscribe(unsubscribe)) = peer.recv().await else { panic!("not an UNSUBSCRIBE") };
        assert_eq!(unsubscribe.filters, ["$stream/s"]);
        let answer = UnsubAck {
            packet_id: unsubscribe.packet_id,
            reasons: vec![ReasonCode::Success],
            properties: AckProperties::default(),
        };
        peer.send(&Packet::UnsubAck(Box::new(answer))).await;
    };
    let subscriber = async {
        let filter = SubscribeFilter { filter: "$stream/s".into(), options: SubscriptionOptions::default() };
        let properties = vec![("stream-offset".into(), "earliest".into())];
        let answer = client.subscribe(vec![filter], properties).await.unwrap();
        assert_eq!(answer.reasons, [ReasonCode::GrantedQoS1]);
        assert_eq!(client.recv().await.unwrap().payload, "hi");
        client.unsubscribe(vec!["$stream/s".into()]).await.unwrap();
    };
    tokio::join!(server, subscriber);
}

#[tokio::test]
async fn every_wait_for_an_answer_ends() {
    let options = ConnectOptions { deadline: Duration::from_millis(20), ..options() };
    let (mut client, mut peer) = pair(options, ConnAck::default()).await;
    let no_answer = client.publish(&publication(QoS::AtLeastOnce)).await.unwrap_err();
    assert!(no_answer.to_string().starts_with("no answer within 20ms: waited for"), "{no_answer}");
    let filter = SubscribeFilter { filter: "a".into(), options: SubscriptionOptions::default() };
    assert!(matches!(
        client.subscribe(vec![filter], Vec::new()).await,
        Err(Error::NoAnswer { what: "SUBACK", .. })
    ));
    assert!(client.recv_until(Clock::system().now()).await.unwrap().is_none());
    peer.recv_publish().await;
}

#[tokio::test(start_paused = true)]
async fn silence_makes_pings_and_a_ping_wants_an_answer() {
    let options = ConnectOptions { keep_alive: 10, ..options() };
    let (mut client, mut peer) = pair(options, ConnAck::default()).await;
    let clock = Clock::system();
    let start = clock.now();
    for _ in 0..2 {
        tokio::select! {
            message = client.recv() => panic!("{message:?}"),
            packet = peer.recv() => assert_eq!(packet, Some(Packet::PingReq)),
        }
        peer.send(&Packet::PingResp).await;
    }
    assert!(clock.now() - start <= Duration::from_secs(20), "pings come within the keep-alive");
    let given_up = client.recv().await.unwrap_err();
    assert!(matches!(given_up, Error::NoAnswer { what: "PINGRESP", .. }), "{given_up}");
}

#[tokio::test]
async fn the_end_is_told_apart() {
    let (client, mut peer) = pair(options(), ConnAck::default()).await;
    client.disconnect().await.unwrap();
    assert_eq!(peer.recv().await, Some(Packet::Disconnect(Box::default())));
    assert_eq!(peer.recv().await, None);

    let (mut client, mut peer) = pair(options(), ConnAck::default()).await;
    let disconnect = Disconnect { reason: ReasonCode::SessionTakenOver, ..Disconnect::default() };
    peer.send(&Packet::Disconnect(Box::new(disconnect))).await;
    let ended = client.recv().await.unwrap_err();
    assert_eq!(ended.to_string(), "disconnected by the server: SessionTakenOver (0x8e)");

    let (mut client, peer) = pair(options(), ConnAck::default()).await;
    drop(peer);
    assert!(matches!(client.recv().await, Err(Error::Closed)));

    let (mut client, mut peer) = pair(options(), ConnAck::default()).await;
    peer.send_bytes(&[0; 8]).await;
    assert!(matches!(client.recv().await, Err(Error::Decode(_))));

    let (mut client, mut peer) = pair(options(), ConnAck::default()).await;
    peer.send(&Packet::PubAck(ack(id(9), ReasonCode::Success))).await;
    assert!(matches!(client.recv().await, Err(Error::UnknownPacketId(9))));
}

#[tokio::test]
async fn two_sides_that_both_write_do_not_wait_for_each_other() {
    let (mut client, mut peer) = pair(options(), ConnAck::default()).await;
    let payload = vec![7; 1 << 20];
    let big = Publication { payload: &payload, ..publication(QoS::AtMostOnce) };
    for _ in 0..12 {
        client.start_publish(&big).unwrap();
    }
    let mut back = publish(QoS::AtMostOnce, 0);
    if let Packet::Publish(publish) = &mut back {
        publish.payload = Bytes::from(payload.clone());
    }
    // The server reads nothing before it has written all, more than the sockets hold.
    let server = async {
        for _ in 0..12 {
            peer.send(&back).await;
        }
        for _ in 0..12 {
            assert_eq!(peer.recv_publish().await.payload.len(), 1 << 20);
        }
    };
    let (flushed, ()) = tokio::join!(client.flush(), server);
    flushed.unwrap();
    for _ in 0..12 {
        assert_eq!(client.recv().await.unwrap().payload.len(), 1 << 20);
    }
}
