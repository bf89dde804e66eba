//! MQTT 3.1 where it differs from 3.1.1, byte for byte.

use bytes::{Bytes, BytesMut};
use weir_codec::{
    AckProperties, ConnAck, Connect, Packet, Problem, Publish, PublishHeader, QoS, ReasonCode, SubAck, encode,
};

use crate::support::Side::{Client, Server};
use crate::support::{
    V31, V311, check, check_decode, check_encode, check_refused, connected, id, topic, wire,
};

fn connect() -> Connect {
    Connect { version: V31, keep_alive: 10, client_id: "id".into(), ..Connect::default() }
}

#[test]
fn a_connect_has_its_own_name_and_level() {
    let text = "10 10 00 06 'MQIsdp' 03 00 00 0a 00 02 'id'";
    check(Server, V31, text, Packet::Connect(Box::new(connect())));
}

#[test]
fn bridges_make_themselves_known_by_a_bit_of_the_level() {
    let bridge = Connect { bridge: true, ..connect() };
    let text = "10 10 00 06 'MQIsdp' 83 00 00 0a 00 02 'id'";
    check(Server, V31, text, Packet::Connect(Box::new(bridge.clone())));
    let bridge = Connect { version: V311, ..bridge };
    check(Server, V311, "10 0e 00 04 'MQTT' 84 00 00 0a 00 02 'id'", Packet::Connect(Box::new(bridge)));
}

/// The length of the packet takes precedence over the flags.
#[test]
fn user_name_and_password_may_be_missing() {
    let packet = |username: Option<&'static str>| {
        Packet::Connect(Box::new(Connect { username: username.map(Into::into), ..connect() }))
    };
    check_decode(Server, V31, "10 10 00 06 'MQIsdp' 03 80 00 0a 00 02 'id'", packet(None));
    check_decode(Server, V31, "10 10 00 06 'MQIsdp' 03 c0 00 0a 00 02 'id'", packet(None));
    check_decode(Server, V31, "10 13 00 06 'MQIsdp' 03 c0 00 0a 00 02 'id' 00 01 'u'", packet(Some("u")));
    let cut = wire("10 12 00 06 'MQIsdp' 03 80 00 0a 00 02 'id' 00 01");
    check_refused(Server, V31, cut, Problem::Truncated, ReasonCode::MalformedPacket);
    let password_alone = wire("10 13 00 06 'MQIsdp' 03 40 00 0a 00 02 'id' 00 01 'p'");
    let problem = Problem::PasswordWithoutUserName;
    check_refused(Server, V31, password_alone, problem, ReasonCode::MalformedPacket);
}

#[test]
fn bits_without_a_meaning_are_disregarded() {
    for flags in ["01", "08", "20"] {
        let text = format!("10 10 00 06 'MQIsdp' 03 {flags} 00 0a 00 02 'id'");
        check_decode(Server, V31, &text, Packet::Connect(Box::new(connect())));
    }
    // DUP on what is sent again.
    for (again, first) in [
        ("6a 02 00 01", "62 02 00 01"),
        ("8a 06 00 01 00 01 'f' 00", "82 06 00 01 00 01 'f' 00"),
        ("aa 05 00 01 00 01 'f'", "a2 05 00 01 00 01 'f'"),
    ] {
        let decoded = Server.decode(V31, wire(again)).unwrap();
        assert_eq!(decoded, Server.decode(V311, wire(first)).unwrap(), "{again}");
        assert!(matches!(Server.decode(V311, wire(again)).unwrap_err().problem, Problem::Flags(_)));
    }
    let mut decoder = connected(Server, V31);
    assert!(decoder.decode(&mut wire("39 04 00 01 't' 'x'")).is_err(), "those of PUBLISH have one");
}

#[test]
fn a_publish_is_that_of_3_1_1() {
    let header = PublishHeader { qos: QoS::AtLeastOnce, packet_id: Some(id(3)), ..PublishHeader::default() };
    let publish = Publish {
        header,
        topic: Some(topic("a/b")),
        payload: Bytes::from_static(b"hi"),
        properties: Default::default(),
    };
    check(Client, V31, "32 09 00 03 'a/b' 00 03 'hi'", Packet::Publish(Box::new(publish)));
}

#[test]
fn connack_says_nothing_of_the_session() {
    let connack = |session_present, code| {
        Packet::ConnAck(Box::new(ConnAck { session_present, code, ..ConnAck::default() }))
    };
    check_encode(V31, &connack(true, ReasonCode::Success), "20 02 00 00");
    check(Client, V31, "20 02 00 05", connack(false, ReasonCode::NotAuthorized));
    check_decode(Client, V31, "20 02 01 00", connack(false, ReasonCode::Success));
}

/// There is no word for a refusal, and an answer there must be.
#[test]
fn suback_has_no_failure() {
    let suback = |reasons| {
        Packet::SubAck(Box::new(SubAck { packet_id: id(10), reasons, properties: AckProperties::default() }))
    };
    use ReasonCode::{GrantedQoS1, NotAuthorized, Success};
    check_encode(V31, &suback(vec![GrantedQoS1, NotAuthorized]), "90 04 00 0a 01 00");
    check_decode(Client, V31, "90 04 00 0a 01 00", suback(vec![GrantedQoS1, Success]));
    let failure = wire("90 03 00 0a 80");
    check_refused(Client, V31, failure, Problem::ReasonCode(0x80), ReasonCode::ProtocolError);
}

#[test]
fn there_is_no_auth_and_a_server_sends_no_disconnect() {
    let problem = Problem::ReservedPacketType(15);
    check_refused(Server, V31, wire("f0 00"), problem, ReasonCode::MalformedPacket);
    check_refused(Client, V31, wire("e0 00"), Problem::WrongSender, ReasonCode::ProtocolError);
    assert!(encode(&Packet::Auth(Box::default()), V31, &mut BytesMut::new()).is_err());
}
