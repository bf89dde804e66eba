//! MQTT 3.1.1 packets byte for byte, and what the version can not say.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::{Bytes, BytesMut};
use weir_codec::{
    Ack, AckProperties, Auth, ConnAck, Connect, Disconnect, EncodeError, Message, MessageProperties, Packet,
    Publish, PublishHeader, QoS, ReasonCode, RetainHandling, SubAck, Subscribe, SubscribeFilter,
    SubscriptionOptions, UnsubAck, Unsubscribe, Will, encode,
};

use crate::support::Side::{Client, Server};
use crate::support::{ACKNOWLEDGEMENTS, V311, check, check_encode, id, topic};

#[test]
fn connect() {
    check(
        Server,
        V311,
        "10 0e 00 04 'MQTT' 04 00 00 0a 00 02 'id'",
        Packet::Connect(Box::new(Connect {
            version: V311,
            keep_alive: 10,
            client_id: "id".into(),
            ..Connect::default()
        })),
    );
    check(
        Server,
        V311,
        "10 1c 00 04 'MQTT' 04
         d6                        # user name, password, will QoS 2, clean session
         00 0a 00 02 'id'
         00 03 'w/t' 00 01 00      # will
         00 01 'u' 00 01 'p'",
        Packet::Connect(Box::new(Connect {
            version: V311,
            clean_start: true,
            keep_alive: 10,
            client_id: "id".into(),
            will: Some(Will {
                message: Message {
                    topic: topic("w/t"),
                    payload: Bytes::from_static(&[0]),
                    properties: MessageProperties::default(),
                },
                qos: QoS::ExactlyOnce,
                retain: false,
                delay_interval: 0,
                message_expiry_interval: None,
            }),
            username: Some("u".into()),
            password: Some(Bytes::from_static(b"p")),
            ..Connect::default()
        })),
    );
}

#[test]
fn connack() {
    let connack = |session_present, code| {
        Packet::ConnAck(Box::new(ConnAck { session_present, code, ..ConnAck::default() }))
    };
    check(Client, V311, "20 02 01 00", connack(true, ReasonCode::Success));
    check(Client, V311, "20 02 00 01", connack(false, ReasonCode::UnsupportedProtocolVersion));
    check(Client, V311, "20 02 00 02", connack(false, ReasonCode::ClientIdentifierNotValid));
    check(Client, V311, "20 02 00 03", connack(false, ReasonCode::ServerUnavailable));
    check(Client, V311, "20 02 00 04", connack(false, ReasonCode::BadUserNameOrPassword));
    check(Client, V311, "20 02 00 05", connack(false, ReasonCode::NotAuthorized));
    // Reasons of MQTT 5 become the return code that is nearest, and properties are not written.
    check_encode(V311, &connack(true, ReasonCode::Banned), "20 02 00 05");
    check_encode(V311, &connack(false, ReasonCode::ServerBusy), "20 02 00 03");
    check_encode(V311, &connack(false, ReasonCode::BadAuthenticationMethod), "20 02 00 04");
    check_encode(V311, &connack(false, ReasonCode::TopicNameInvalid), "20 02 00 05");
    let limited = ConnAck { receive_maximum: NonZeroU16::new(1), ..ConnAck::default() };
    check_encode(V311, &Packet::ConnAck(Box::new(limited)), "20 02 00 00");
}

#[test]
fn publish() {
    let publish = |qos, packet_id| Publish {
        header: PublishHeader { qos, packet_id, ..PublishHeader::default() },
        topic: Some(topic("a/b")),
        payload: Bytes::from_static(b"hi"),
        properties: MessageProperties::default(),
    };
    let bare = publish(QoS::AtMostOnce, None);
    check(Server, V311, "30 07 00 03 'a/b' 'hi'", Packet::Publish(Box::new(bare.clone())));
    let acknowledged = publish(QoS::AtLeastOnce, Some(id(3)));
    check(Client, V311, "32 09 00 03 'a/b' 00 03 'hi'", Packet::Publish(Box::new(acknowledged)));
    let mut rich = bare;
    rich.header.topic_alias = NonZeroU16::new(1);
    rich.properties.user_properties.push(("a".into(), "b".into()));
    check_encode(V311, &Packet::Publish(Box::new(rich)), "30 07 00 03 'a/b' 'hi'");
}

#[test]
fn acknowledgements_have_no_reason() {
    for (first, kind) in ACKNOWLEDGEMENTS {
        let text = format!("{first:x} 02 00 07");
        check(
            Server,
            V311,
            &text,
            kind(Ack { packet_id: id(7), reason: ReasonCode::Success, properties: None }),
        );
        let properties = AckProperties { reason_string: Some("no".into()), user_properties: vec![] };
        let failed = Ack {
            packet_id: id(7),
            reason: ReasonCode::QuotaExceeded,
            properties: Some(Box::new(properties)),
        };
        check_encode(V311, &kind(failed), &text);
    }
}

#[test]
fn subscribe_and_unsubscribe() {
    let subscribe = |options| {
        Packet::Subscribe(Box::new(Subscribe {
            packet_id: id(10),
            subscription_identifier: None,
            user_properties: vec![],
            filters: vec![SubscribeFilter { filter: "a/+".into(), options }],
        }))
    };
    let qos_1 = SubscriptionOptions { qos: QoS::AtLeastOnce, ..SubscriptionOptions::default() };
    check(Server, V311, "82 08 00 0a 00 03 'a/+' 01", subscribe(qos_1));
    let newer = SubscriptionOptions { no_local: true, retain_handling: RetainHandling::Never, ..qos_1 };
    check_encode(V311, &subscribe(newer), "82 08 00 0a 00 03 'a/+' 01");
    let identified = Subscribe {
        packet_id: id(10),
        subscription_identifier: NonZeroU32::new(1),
        user_properties: vec![("a".into(), "b".into())],
        filters: vec![SubscribeFilter { filter: "a/+".into(), options: qos_1 }],
    };
    check_encode(V311, &Packet::Subscribe(Box::new(identified)), "82 08 00 0a 00 03 'a/+' 01");

    let suback = |reasons| {
        Packet::SubAck(Box::new(SubAck { packet_id: id(10), reasons, properties: AckProperties::default() }))
    };
    use ReasonCode::{GrantedQoS1, GrantedQoS2, NotAuthorized, Success, UnspecifiedError};
    let all = vec![Success, GrantedQoS1, GrantedQoS2, UnspecifiedError];
    check(Client, V311, "90 06 00 0a 00 01 02 80", suback(all));
    check_encode(V311, &suback(vec![NotAuthorized]), "90 03 00 0a 80");

    let unsubscribe =
        Unsubscribe { packet_id: id(1), filters: vec!["x".into(), "y".into()], user_properties: vec![] };
    check(Server, V311, "a2 08 00 01 00 01 'x' 00 01 'y'", Packet::Unsubscribe(Box::new(unsubscribe)));
    let unsuback = |reasons| {
        Packet::UnsubAck(Box::new(UnsubAck {
            packet_id: id(1),
            reasons,
            properties: AckProperties::default(),
        }))
    };
    check(Client, V311, "b0 02 00 01", unsuback(vec![]));
    check_encode(V311, &unsuback(vec![NotAuthorized]), "b0 02 00 01");
}

#[test]
fn ping_and_disconnect() {
    check(Server, V311, "c0 00", Packet::PingReq);
    check(Client, V311, "d0 00", Packet::PingResp);
    check(Server, V311, "e0 00", Packet::Disconnect(Box::default()));
    let reason = Disconnect { reason: ReasonCode::DisconnectWithWill, ..Disconnect::default() };
    check_encode(V311, &Packet::Disconnect(Box::new(reason)), "e0 00");
}

#[test]
fn what_only_mqtt_5_can_say_is_not_encoded() {
    let refused = |packet: Packet| {
        let mut buf = BytesMut::from("before");
        let error = encode(&packet, V311, &mut buf).unwrap_err();
        assert_eq!(buf, "before", "the buffer is as it was");
        error
    };
    assert_eq!(refused(Packet::Auth(Box::<Auth>::default())), EncodeError::NotInVersion("AUTH"));
    let password = Connect { version: V311, password: Some(Bytes::new()), ..Connect::default() };
    assert!(matches!(refused(Packet::Connect(Box::new(password))), EncodeError::NotInVersion(_)));
    let alias_only = Publish {
        header: PublishHeader { topic_alias: NonZeroU16::new(1), ..PublishHeader::default() },
        topic: None,
        payload: Bytes::new(),
        properties: MessageProperties::default(),
    };
    assert!(matches!(refused(Packet::Publish(Box::new(alias_only))), EncodeError::Contradiction(_)));
}
