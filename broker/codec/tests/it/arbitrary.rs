//! Any packet that a version can express, in the one form in which the decoder returns it.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::Bytes;
use bytestring::ByteString;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use weir_codec::{
    Ack, AckProperties, Auth, ConnAck, Connect, Disconnect, Message, MessageProperties, Packet, PacketId,
    PacketType, ProtocolVersion, Publish, PublishHeader, QoS, ReasonCode, RetainHandling, SubAck, Subscribe,
    SubscribeFilter, SubscriptionOptions, UnsubAck, Unsubscribe, UserProperties, Will,
};
use weir_topic::TopicName;

use crate::support::{Side, V5, V31};

/// A packet that the other side sends to `side`, other than CONNECT.
pub(crate) fn packet(side: Side, version: ProtocolVersion) -> BoxedStrategy<Packet> {
    let either_side = prop_oneof![
        4 => publish(side, version).prop_map(|packet| Packet::Publish(Box::new(packet))),
        1 => ack(PacketType::PubAck, version).prop_map(Packet::PubAck),
        1 => ack(PacketType::PubRec, version).prop_map(Packet::PubRec),
        1 => ack(PacketType::PubRel, version).prop_map(Packet::PubRel),
        1 => ack(PacketType::PubComp, version).prop_map(Packet::PubComp),
    ];
    let of_side = match side {
        Side::Server => prop_oneof![
            subscribe(version).prop_map(|packet| Packet::Subscribe(Box::new(packet))),
            unsubscribe(version).prop_map(|packet| Packet::Unsubscribe(Box::new(packet))),
            Just(Packet::PingReq),
            disconnect(side, version).prop_map(|packet| Packet::Disconnect(Box::new(packet))),
        ]
        .boxed(),
        Side::Client => prop_oneof![
            connack(version).prop_map(|packet| Packet::ConnAck(Box::new(packet))),
            suback(version).prop_map(|packet| Packet::SubAck(Box::new(packet))),
            unsuback(version).prop_map(|packet| Packet::UnsubAck(Box::new(packet))),
            Just(Packet::PingResp),
        ]
        .boxed(),
    };
    if version != V5 {
        return prop_oneof![either_side, of_side].boxed();
    }
    let of_v5 = prop_oneof![
        auth(side).prop_map(|packet| Packet::Auth(Box::new(packet))),
        disconnect(side, version).prop_map(|packet| Packet::Disconnect(Box::new(packet))),
    ];
    prop_oneof![2 => either_side, 2 => of_side, 1 => of_v5].boxed()
}

/// A CONNECT.
pub(crate) fn connect(version: ProtocolVersion) -> impl Strategy<Value = Packet> {
    let payload = (text(), of(will(version)), of(text()), of(binary()), any::<bool>());
    let limits = (of(any::<u32>()), of(non_zero_u16()), of(non_zero_u32()), any::<u16>());
    let requests = (any::<bool>(), of(any::<bool>()), of((text(), of(binary()))), user_properties());
    (any::<bool>(), any::<u16>(), payload, limits, requests).prop_map(
        move |(clean_start, keep_alive, payload, limits, requests)| {
            let (client_id, will, username, password, bridge) = payload;
            let mut connect = Connect {
                version,
                bridge: bridge && version != V5,
                clean_start,
                keep_alive,
                client_id,
                will,
                password: password.filter(|_| version == V5 || username.is_some()),
                username,
                ..Connect::default()
            };
            if version == V5 {
                let (session_expiry_interval, receive_maximum, maximum_packet_size, aliases) = limits;
                let (request_response, request_problem, authentication, user_properties) = requests;
                connect = Connect {
                    session_expiry_interval,
                    receive_maximum,
                    maximum_packet_size,
                    topic_alias_maximum: aliases,
                    request_response_information: request_response,
                    request_problem_information: request_problem,
                    user_properties,
                    ..connect
                };
                if let Some((method, data)) = authentication {
                    connect.authentication_method = Some(method);
                    connect.authentication_data = data;
                }
            }
            Packet::Connect(Box::new(connect))
        },
    )
}

fn will(version: ProtocolVersion) -> impl Strategy<Value = Will> {
    let message = (topic(), binary(), message_properties(version));
    let delay = only_v5(version, 0, any::<u32>());
    let expiry = only_v5(version, None, of(any::<u32>()));
    (message, qos(), any::<bool>(), delay, expiry).prop_map(
        |((topic, payload, properties), qos, retain, delay_interval, message_expiry_interval)| Will {
            message: Message { topic, payload, properties },
            qos,
            retain,
            delay_interval,
            message_expiry_interval,
        },
    )
}

fn connack(version: ProtocolVersion) -> impl Strategy<Value = ConnAck> {
    let code = match version {
        ProtocolVersion::V5 => reason(PacketType::ConnAck),
        ProtocolVersion::V31 | ProtocolVersion::V311 => {
            (0..=5_u8).prop_map(|code| ReasonCode::from_connect_return_code(code).unwrap()).boxed()
        }
    };
    let properties = (
        (of(any::<u32>()), of(non_zero_u16()), of(select(vec![QoS::AtMostOnce, QoS::AtLeastOnce]))),
        (of(any::<bool>()), of(non_zero_u32()), of(text()), any::<u16>(), of(text()), user_properties()),
        (of(any::<bool>()), of(any::<bool>()), of(any::<bool>()), of(any::<u16>())),
        (of(text()), of(text()), of(text()), of(binary())),
    )
        .prop_map(|(limits, general, available, texts)| ConnAck {
            session_expiry_interval: limits.0,
            receive_maximum: limits.1,
            maximum_qos: limits.2,
            retain_available: general.0,
            maximum_packet_size: general.1,
            assigned_client_identifier: general.2,
            topic_alias_maximum: general.3,
            reason_string: general.4,
            user_properties: general.5,
            wildcard_subscription_available: available.0,
            subscription_identifiers_available: available.1,
            shared_subscription_available: available.2,
            server_keep_alive: available.3,
            response_information: texts.0,
            server_reference: texts.1,
            authentication_method: texts.2,
            authentication_data: texts.3,
            ..ConnAck::default()
        });
    (any::<bool>(), code, only_v5(version, ConnAck::default(), properties)).prop_map(
        move |(present, code, properties)| ConnAck {
            session_present: present && code == ReasonCode::Success && version != V31,
            code,
            ..properties
        },
    )
}

fn publish(side: Side, version: ProtocolVersion) -> impl Strategy<Value = Publish> {
    let ids = if side == Side::Client { 0..4 } else { 0..1 };
    let hop = (of(non_zero_u16()), of(any::<u32>()), vec(1..=weir_codec::REMAINING_LENGTH_MAX, ids));
    let hop = only_v5(version, (None, None, vec![]), hop);
    let flags = (any::<bool>(), qos(), any::<bool>(), packet_id());
    (flags, hop, topic(), any::<bool>(), payload(), message_properties(version)).prop_map(
        |((dup, qos, retain, packet_id), hop, topic, alias_only, payload, properties)| {
            let (topic_alias, message_expiry_interval, ids) = hop;
            let acknowledged = qos != QoS::AtMostOnce;
            Publish {
                header: PublishHeader {
                    dup: dup && acknowledged,
                    qos,
                    retain,
                    packet_id: acknowledged.then_some(packet_id),
                    topic_alias,
                    message_expiry_interval,
                    subscription_identifiers: ids.into(),
                },
                topic: Some(topic).filter(|_| !(alias_only && topic_alias.is_some())),
                payload,
                properties,
            }
        },
    )
}

fn message_properties(version: ProtocolVersion) -> impl Strategy<Value = MessageProperties> {
    let properties = (of(any::<bool>()), of(text()), of(topic()), of(binary()), user_properties()).prop_map(
        |(payload_format_utf8, content_type, response_topic, correlation_data, user_properties)| {
            MessageProperties {
                payload_format_utf8,
                content_type,
                response_topic,
                correlation_data,
                user_properties,
            }
        },
    );
    only_v5(version, MessageProperties::default(), properties)
}

fn ack(packet: PacketType, version: ProtocolVersion) -> impl Strategy<Value = Ack> {
    let properties = of(ack_properties())
        .prop_map(|properties| properties.filter(|some| *some != AckProperties::default()).map(Box::new));
    (packet_id(), only_v5(version, ReasonCode::Success, reason(packet)), only_v5(version, None, properties))
        .prop_map(|(packet_id, reason, properties)| Ack { packet_id, reason, properties })
}

fn ack_properties() -> impl Strategy<Value = AckProperties> {
    (of(text()), user_properties())
        .prop_map(|(reason_string, user_properties)| AckProperties { reason_string, user_properties })
}

fn subscribe(version: ProtocolVersion) -> impl Strategy<Value = Subscribe> {
    let handling =
        select(vec![RetainHandling::OnSubscribe, RetainHandling::OnNewSubscription, RetainHandling::Never]);
    let of_v5 = only_v5(
        version,
        (false, false, RetainHandling::OnSubscribe),
        (any::<bool>(), any::<bool>(), handling),
    );
    let filter = (filter(), qos(), of_v5).prop_map(
        |(filter, qos, (no_local, retain_as_published, retain_handling))| SubscribeFilter {
            options: SubscriptionOptions {
                qos,
                no_local: no_local && !filter.starts_with("$share/"),
                retain_as_published,
                retain_handling,
            },
            filter,
        },
    );
    let identifier =
        (1..=weir_codec::REMAINING_LENGTH_MAX).prop_map(|number| NonZeroU32::new(number).unwrap());
    (
        packet_id(),
        only_v5(version, None, of(identifier)),
        only_v5(version, vec![], user_properties()),
        vec(filter, 1..4),
    )
        .prop_map(|(packet_id, subscription_identifier, user_properties, filters)| Subscribe {
            packet_id,
            subscription_identifier,
            user_properties,
            filters,
        })
}

fn suback(version: ProtocolVersion) -> impl Strategy<Value = SubAck> {
    let reasons =
        reason(PacketType::SubAck).prop_filter("3.1 has three codes and 3.1.1 four", move |reason| {
            match version {
                ProtocolVersion::V31 => !reason.is_error(),
                ProtocolVersion::V311 => reason.as_u8() <= 0x80,
                ProtocolVersion::V5 => true,
            }
        });
    (packet_id(), vec(reasons, 1..4), only_v5(version, AckProperties::default(), ack_properties()))
        .prop_map(|(packet_id, reasons, properties)| SubAck { packet_id, reasons, properties })
}

fn unsubscribe(version: ProtocolVersion) -> impl Strategy<Value = Unsubscribe> {
    (packet_id(), vec(filter(), 1..4), only_v5(version, vec![], user_properties()))
        .prop_map(|(packet_id, filters, user_properties)| Unsubscribe { packet_id, filters, user_properties })
}

fn unsuback(version: ProtocolVersion) -> impl Strategy<Value = UnsubAck> {
    let answer = (vec(reason(PacketType::UnsubAck), 1..4), ack_properties());
    (packet_id(), only_v5(version, (vec![], AckProperties::default()), answer))
        .prop_map(|(packet_id, (reasons, properties))| UnsubAck { packet_id, reasons, properties })
}

fn disconnect(side: Side, version: ProtocolVersion) -> impl Strategy<Value = Disconnect> {
    let reasons = match side {
        Side::Server => select(vec![
            ReasonCode::Success,
            ReasonCode::DisconnectWithWill,
            ReasonCode::MalformedPacket,
            ReasonCode::ReceiveMaximumExceeded,
        ])
        .boxed(),
        Side::Client => reason(PacketType::Disconnect)
            .prop_filter("only clients ask for the will", |reason| *reason != ReasonCode::DisconnectWithWill)
            .boxed(),
    };
    let properties = (reasons, of(any::<u32>()), of(text()), user_properties(), of(text())).prop_map(
        move |(reason, expiry, reason_string, user_properties, reference)| Disconnect {
            reason,
            session_expiry_interval: expiry.filter(|_| side == Side::Server),
            reason_string,
            user_properties,
            server_reference: reference.filter(|_| side == Side::Client),
        },
    );
    only_v5(version, Disconnect::default(), prop_oneof![properties, Just(Disconnect::default())])
}

fn auth(side: Side) -> impl Strategy<Value = Auth> {
    let reasons = match side {
        Side::Server => vec![ReasonCode::ContinueAuthentication, ReasonCode::ReAuthenticate],
        Side::Client => vec![ReasonCode::ContinueAuthentication, ReasonCode::Success],
    };
    (select(reasons), text(), of(binary()), of(text()), user_properties()).prop_map(
        |(reason, method, authentication_data, reason_string, user_properties)| Auth {
            reason,
            authentication_method: Some(method),
            authentication_data,
            reason_string,
            user_properties,
        },
    )
}

/// `strategy` in MQTT 5, `otherwise` in 3.1.1.
fn only_v5<S: Strategy<Value: Clone + 'static> + 'static>(
    version: ProtocolVersion,
    otherwise: S::Value,
    strategy: S,
) -> BoxedStrategy<S::Value> {
    if version == V5 { strategy.boxed() } else { Just(otherwise).boxed() }
}

fn reason(packet: PacketType) -> BoxedStrategy<ReasonCode> {
    let allowed = (0..=u8::MAX)
        .filter_map(ReasonCode::from_u8)
        .filter(|reason| reason.is_allowed_in(packet))
        .collect::<Vec<_>>();
    select(allowed).boxed()
}

fn text() -> impl Strategy<Value = ByteString> {
    prop_oneof![4 => "[^\\x00]{0,8}", 1 => "[a-z]{200,300}"].prop_map(ByteString::from)
}

fn topic() -> impl Strategy<Value = TopicName> {
    "[^\\x00+#]{1,8}".prop_map(|text| TopicName::parse(text).unwrap())
}

fn filter() -> impl Strategy<Value = ByteString> {
    prop_oneof!["[^\\x00]{0,8}", "(\\$share/g/)?[a-c+#/]{1,6}"].prop_map(ByteString::from)
}

fn binary() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..8).prop_map(Bytes::from)
}

/// Often of a length around those where the fixed header grows.
fn payload() -> impl Strategy<Value = Bytes> {
    prop_oneof![0..32_usize, 100..140_usize, 16_340..16_400_usize]
        .prop_map(|length| Bytes::from(vec![0xa5; length]))
}

fn user_properties() -> impl Strategy<Value = UserProperties> {
    vec((text(), text()), 0..3)
}

fn qos() -> impl Strategy<Value = QoS> {
    select(vec![QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
}

fn packet_id() -> impl Strategy<Value = PacketId> {
    non_zero_u16().prop_map(PacketId)
}

fn non_zero_u16() -> impl Strategy<Value = NonZeroU16> {
    any::<NonZeroU16>()
}

fn non_zero_u32() -> impl Strategy<Value = NonZeroU32> {
    any::<NonZeroU32>()
}
