//! MQTT 5.0 packets byte for byte.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::Bytes;
use smallvec::smallvec;
use weir_codec::{
    Ack, AckProperties, Auth, ConnAck, Connect, Disconnect, Message, MessageProperties, Packet, Publish,
    PublishHeader, QoS, ReasonCode, RetainHandling, SubAck, Subscribe, SubscribeFilter, SubscriptionOptions,
    UnsubAck, Unsubscribe, Will,
};

use crate::support::Side::{Client, Server};
use crate::support::{ACKNOWLEDGEMENTS, V5, check, check_decode, check_encode, id, topic};

#[test]
fn connect_with_nothing() {
    check(
        Server,
        V5,
        "10 0d            # CONNECT
         00 04 'MQTT' 05
         00               # no flags
         00 00            # keep alive
         00               # no properties
         00 00            # client identifier",
        Packet::Connect(Box::default()),
    );
}

// Conformance v5: 3.1.2-9, 3.1.3-1, 3.1.3-3
#[test]
fn connect_with_everything() {
    check(
        Server,
        V5,
        "10 6e
         00 04 'MQTT' 05
         ee               # user name, password, will retain, QoS 1, will, clean start
         00 3c            # keep alive 60
         2f               # properties
         11 00 00 0e 10   # session expiry 3600
         21 00 0a         # receive maximum 10
         27 00 01 00 00   # maximum packet size 65536
         22 00 10         # topic alias maximum 16
         19 01            # request response information
         17 00            # request problem information: no
         15 00 05 'TOKEN' # authentication method
         16 00 03 00 01 02 # authentication data
         26 00 01 'a' 00 01 'b'
         26 00 01 'a' 00 00
         00 02 'id'       # client identifier
         1f               # will properties
         18 00 00 00 05   # will delay
         02 00 00 00 64   # message expiry
         01 01            # UTF-8
         03 00 01 't'     # content type
         08 00 01 'r'     # response topic
         09 00 01 ff      # correlation data
         26 00 01 'k' 00 01 'v'
         00 03 'w/t' 00 02 'by' # will
         00 01 'u'        # user name
         00 02 00 ff      # password",
        Packet::Connect(Box::new(Connect {
            version: V5,
            bridge: false,
            clean_start: true,
            keep_alive: 60,
            client_id: "id".into(),
            will: Some(Will {
                message: Message {
                    topic: topic("w/t"),
                    payload: Bytes::from_static(b"by"),
                    properties: MessageProperties {
                        payload_format_utf8: Some(true),
                        content_type: Some("t".into()),
                        response_topic: Some(topic("r")),
                        correlation_data: Some(Bytes::from_static(&[0xff])),
                        user_properties: vec![("k".into(), "v".into())],
                    },
                },
                qos: QoS::AtLeastOnce,
                retain: true,
                delay_interval: 5,
                message_expiry_interval: Some(100),
            }),
            username: Some("u".into()),
            password: Some(Bytes::from_static(&[0, 0xff])),
            session_expiry_interval: Some(3600),
            receive_maximum: NonZeroU16::new(10),
            maximum_packet_size: NonZeroU32::new(65_536),
            topic_alias_maximum: 16,
            request_response_information: true,
            request_problem_information: Some(false),
            authentication_method: Some("TOKEN".into()),
            authentication_data: Some(Bytes::from_static(&[0, 1, 2])),
            user_properties: vec![("a".into(), "b".into()), ("a".into(), "".into())],
        })),
    );
}

#[test]
fn a_password_needs_no_user_name() {
    check(
        Server,
        V5,
        "10 10 00 04 'MQTT' 05 40 00 00 00 00 00 00 01 'p'",
        Packet::Connect(Box::new(Connect { password: Some(Bytes::from_static(b"p")), ..Connect::default() })),
    );
}

#[test]
fn connack_with_everything() {
    check(
        Client,
        V5,
        "20 45 01 00
         42
         11 00 00 00 0a      # session expiry
         21 00 14            # receive maximum
         24 01               # maximum QoS
         25 00               # no retain
         27 00 00 04 00      # maximum packet size
         12 00 01 'c'        # assigned client identifier
         22 00 05            # topic alias maximum
         1f 00 01 's'        # reason string
         28 00 29 00 2a 00   # nothing available
         13 00 1e            # server keep alive
         1a 00 01 'i'        # response information
         1c 00 01 'h'        # server reference
         15 00 01 'm' 16 00 01 'd' # authentication
         26 00 03 'key' 00 05 'value'",
        Packet::ConnAck(Box::new(ConnAck {
            session_present: true,
            code: ReasonCode::Success,
            session_expiry_interval: Some(10),
            receive_maximum: NonZeroU16::new(20),
            maximum_qos: Some(QoS::AtLeastOnce),
            retain_available: Some(false),
            maximum_packet_size: NonZeroU32::new(1024),
            assigned_client_identifier: Some("c".into()),
            topic_alias_maximum: 5,
            reason_string: Some("s".into()),
            user_properties: vec![("key".into(), "value".into())],
            wildcard_subscription_available: Some(false),
            subscription_identifiers_available: Some(false),
            shared_subscription_available: Some(false),
            server_keep_alive: Some(30),
            response_information: Some("i".into()),
            server_reference: Some("h".into()),
            authentication_method: Some("m".into()),
            authentication_data: Some(Bytes::from_static(b"d")),
        })),
    );
    check(
        Client,
        V5,
        "20 03 00 84 00",
        Packet::ConnAck(Box::new(ConnAck {
            code: ReasonCode::UnsupportedProtocolVersion,
            ..ConnAck::default()
        })),
    );
    let qos_2 = ConnAck { maximum_qos: Some(QoS::ExactlyOnce), ..ConnAck::default() };
    check_encode(V5, &Packet::ConnAck(Box::new(qos_2)), "20 03 00 00 00");
    let refused = ConnAck { session_present: true, code: ReasonCode::NotAuthorized, ..ConnAck::default() };
    check_encode(V5, &Packet::ConnAck(Box::new(refused)), "20 03 00 87 00");
}

fn publish(header: PublishHeader, payload: &'static [u8]) -> Publish {
    Publish {
        header,
        topic: Some(topic("a/b")),
        payload: Bytes::from_static(payload),
        properties: MessageProperties::default(),
    }
}

// Conformance v5: 2.2.1-2, 2.2.2-1
#[test]
fn publish_at_each_qos() {
    let at = |qos, packet_id| PublishHeader { qos, packet_id, ..PublishHeader::default() };
    let check = |text, publish| check(Server, V5, text, Packet::Publish(Box::new(publish)));
    check("30 08 00 03 'a/b' 00 'hi'", publish(at(QoS::AtMostOnce, None), b"hi"));
    check("32 08 00 03 'a/b' 00 0a 00", publish(at(QoS::AtLeastOnce, Some(id(10))), b""));
    check("34 08 00 03 'a/b' ff ff 00", publish(at(QoS::ExactlyOnce, Some(id(65_535))), b""));
    let header = PublishHeader { dup: true, retain: true, ..at(QoS::AtLeastOnce, Some(id(1))) };
    check("3b 08 00 03 'a/b' 00 01 00", publish(header, b""));
}

#[test]
fn publish_with_everything() {
    let header = PublishHeader {
        topic_alias: NonZeroU16::new(2),
        message_expiry_interval: Some(258),
        ..PublishHeader::default()
    };
    let properties = MessageProperties {
        payload_format_utf8: Some(false),
        content_type: Some("json".into()),
        response_topic: Some(topic("re")),
        correlation_data: Some(Bytes::from_static(&[0])),
        user_properties: vec![("x".into(), "1".into()), ("x".into(), "2".into())],
    };
    let packet = |header, topic| {
        Packet::Publish(Box::new(Publish {
            header,
            topic,
            payload: Bytes::from_static(b"{}"),
            properties: properties.clone(),
        }))
    };
    let properties = "01 00 03 00 04 'json' 08 00 02 're' 09 00 01 00
        26 00 01 'x' 00 01 '1' 26 00 01 'x' 00 01 '2'";
    let text = format!("30 30 00 03 'a/b' 28 23 00 02 02 00 00 01 02 {properties} '{{}}'");
    check(Server, V5, &text, packet(header.clone(), Some(topic("a/b"))));

    // Only the alias; and what a server adds.
    let header = PublishHeader { subscription_identifiers: smallvec![1, 128, 268_435_455], ..header };
    let ids = "0b 01 0b 80 01 0b ff ff ff 7f";
    let text = format!("30 37 00 00 32 23 00 02 02 00 00 01 02 {ids} {properties} '{{}}'");
    check(Client, V5, &text, packet(header, None));
}

#[test]
fn acknowledgements_take_the_shortest_form() {
    for (first, kind) in ACKNOWLEDGEMENTS {
        let error =
            if first < 0x60 { ReasonCode::NotAuthorized } else { ReasonCode::PacketIdentifierNotFound };
        let code = error.as_u8();
        let ack = |reason, properties| kind(Ack { packet_id: id(258), reason, properties });
        let properties = Some(Box::new(AckProperties {
            reason_string: Some("no".into()),
            user_properties: vec![("a".into(), "b".into())],
        }));
        check(Server, V5, &format!("{first:x} 02 01 02"), ack(ReasonCode::Success, None));
        check(Client, V5, &format!("{first:x} 03 01 02 {code:x}"), ack(error, None));
        check(
            Server,
            V5,
            &format!("{first:x} 10 01 02 {code:x} 0c 1f 00 02 'no' 26 00 01 'a' 00 01 'b'"),
            ack(error, properties),
        );
        // Longer than needed, and allowed.
        check_decode(Client, V5, &format!("{first:x} 03 01 02 00"), ack(ReasonCode::Success, None));
        check_decode(Client, V5, &format!("{first:x} 04 01 02 00 00"), ack(ReasonCode::Success, None));
        check_encode(V5, &ack(ReasonCode::Success, Some(Box::default())), &format!("{first:x} 02 01 02"));
    }
}

#[test]
fn subscribe_options() {
    let filter = |filter: &'static str, options| SubscribeFilter { filter: filter.into(), options };
    check(
        Server,
        V5,
        "82 26 00 0a
         0d 0b ff 7f             # subscription identifier 16383
         26 00 03 'key' 00 02 'v '
         00 01 '#' 00
         00 01 '+' 2d            # QoS 1, no local, retain as published, never
         00 0b '$share/g/ab' 12  # QoS 2, if new",
        Packet::Subscribe(Box::new(Subscribe {
            packet_id: id(10),
            subscription_identifier: NonZeroU32::new(16_383),
            user_properties: vec![("key".into(), "v ".into())],
            filters: vec![
                filter("#", SubscriptionOptions::default()),
                filter(
                    "+",
                    SubscriptionOptions {
                        qos: QoS::AtLeastOnce,
                        no_local: true,
                        retain_as_published: true,
                        retain_handling: RetainHandling::Never,
                    },
                ),
                filter(
                    "$share/g/ab",
                    SubscriptionOptions {
                        qos: QoS::ExactlyOnce,
                        retain_handling: RetainHandling::OnNewSubscription,
                        ..SubscriptionOptions::default()
                    },
                ),
            ],
        })),
    );
    // One bad filter fails alone, in the SUBACK, so it is not the decoder's matter.
    let bad = Subscribe {
        packet_id: id(1),
        subscription_identifier: None,
        user_properties: vec![],
        filters: vec![
            filter("a#", SubscriptionOptions::default()),
            filter("", SubscriptionOptions::default()),
        ],
    };
    check(Server, V5, "82 0b 00 01 00 00 02 'a#' 00 00 00 00", Packet::Subscribe(Box::new(bad)));
}

// Conformance v5: 2.2.2-1
#[test]
fn suback_unsubscribe_unsuback() {
    check(
        Client,
        V5,
        "90 0e 00 01 04 1f 00 01 'r' 00 01 02 80 8f 97 a2",
        Packet::SubAck(Box::new(SubAck {
            packet_id: id(1),
            reasons: vec![
                ReasonCode::Success,
                ReasonCode::GrantedQoS1,
                ReasonCode::GrantedQoS2,
                ReasonCode::UnspecifiedError,
                ReasonCode::TopicFilterInvalid,
                ReasonCode::QuotaExceeded,
                ReasonCode::WildcardSubscriptionsNotSupported,
            ],
            properties: AckProperties { reason_string: Some("r".into()), user_properties: vec![] },
        })),
    );
    check(
        Server,
        V5,
        "a2 11 00 02 07 26 00 01 'a' 00 01 'b' 00 01 'x' 00 02 'y/'",
        Packet::Unsubscribe(Box::new(Unsubscribe {
            packet_id: id(2),
            filters: vec!["x".into(), "y/".into()],
            user_properties: vec![("a".into(), "b".into())],
        })),
    );
    check(
        Client,
        V5,
        "b0 06 00 02 00 00 11 8f",
        Packet::UnsubAck(Box::new(UnsubAck {
            packet_id: id(2),
            reasons: vec![
                ReasonCode::Success,
                ReasonCode::NoSubscriptionExisted,
                ReasonCode::TopicFilterInvalid,
            ],
            properties: AckProperties::default(),
        })),
    );
}

#[test]
fn ping() {
    check(Server, V5, "c0 00", Packet::PingReq);
    check(Client, V5, "d0 00", Packet::PingResp);
}

#[test]
fn disconnect() {
    let packet = |disconnect| Packet::Disconnect(Box::new(disconnect));
    check(Server, V5, "e0 00", packet(Disconnect::default()));
    let with_will = Disconnect { reason: ReasonCode::DisconnectWithWill, ..Disconnect::default() };
    check(Server, V5, "e0 02 04 00", packet(with_will.clone()));
    check_decode(Server, V5, "e0 01 04", packet(with_will));
    check_decode(Server, V5, "e0 01 00", packet(Disconnect::default()));
    check(
        Server,
        V5,
        "e0 07 00 05 11 00 00 00 07",
        packet(Disconnect { session_expiry_interval: Some(7), ..Disconnect::default() }),
    );
    check(
        Client,
        V5,
        "e0 11 9d 0f 1f 00 01 'm' 1c 00 01 'h' 26 00 01 'a' 00 01 'b'",
        packet(Disconnect {
            reason: ReasonCode::ServerMoved,
            session_expiry_interval: None,
            reason_string: Some("m".into()),
            user_properties: vec![("a".into(), "b".into())],
            server_reference: Some("h".into()),
        }),
    );
}

#[test]
fn auth() {
    check(Client, V5, "f0 00", Packet::Auth(Box::default()));
    check(
        Server,
        V5,
        "f0 15 18 13 15 00 01 'M' 16 00 01 00 1f 00 01 'r' 26 00 01 'a' 00 01 'b'",
        Packet::Auth(Box::new(Auth {
            reason: ReasonCode::ContinueAuthentication,
            authentication_method: Some("M".into()),
            authentication_data: Some(Bytes::from_static(&[0])),
            reason_string: Some("r".into()),
            user_properties: vec![("a".into(), "b".into())],
        })),
    );
}
