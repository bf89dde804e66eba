//! Malformed packets and protocol errors, clause by clause, with the reason code of each.

use bytes::BytesMut;
use weir_codec::{DecodeError, Problem, ProtocolVersion, ReasonCode, Role};
use weir_topic::TopicError;

use crate::support::Side::{Client, Server};
use crate::support::{Side, V5, V31, V311, check_refused, connected, decoder, frame, wire};

#[track_caller]
fn malformed(side: Side, version: ProtocolVersion, text: &str, problem: Problem) {
    check_refused(side, version, wire(text), problem, ReasonCode::MalformedPacket);
}

#[track_caller]
fn protocol_error(side: Side, version: ProtocolVersion, text: &str, problem: Problem) {
    check_refused(side, version, wire(text), problem, ReasonCode::ProtocolError);
}

/// The error of a server's decoder that has seen nothing yet.
fn first_packet(text: &str) -> DecodeError {
    decoder(Role::Server).decode(&mut wire(text)).unwrap_err()
}

// Conformance v5: 2.1.3-1, 3.3.1-2, 3.3.1-4, 3.6.1-1, 3.8.1-1, 3.10.1-1, 3.14.1-1, 3.15.1-1
#[test]
fn fixed_header_flags_are_fixed() {
    for version in [V311, V5] {
        for (side, first) in [
            (Server, 0x10_u8),
            (Client, 0x20),
            (Server, 0x40),
            (Server, 0x50),
            (Server, 0x62),
            (Server, 0x70),
            (Server, 0x82),
            (Client, 0x90),
            (Server, 0xa2),
            (Client, 0xb0),
            (Server, 0xc0),
            (Client, 0xd0),
            (Server, 0xe0),
            (Server, 0xf0),
        ] {
            for flags in (0..16).filter(|flags| *flags != first & 0x0f) {
                let problem = match (version, first) {
                    (ProtocolVersion::V311, 0xf0) => Problem::ReservedPacketType(15),
                    _ => Problem::Flags(flags),
                };
                // The first byte suffices.
                malformed(side, version, &format!("{:x}", first & 0xf0 | flags), problem);
            }
        }
    }
    malformed(Server, V5, "36", Problem::QoS3); // [MQTT-3.3.1-4]
    malformed(Server, V5, "3e", Problem::QoS3);
    malformed(Server, V5, "38", Problem::DupAtQoS0); // [MQTT-3.3.1-2]
    malformed(Client, V311, "39", Problem::DupAtQoS0);
    malformed(Server, V5, "00 00", Problem::ReservedPacketType(0));
    malformed(Server, V311, "f0 00", Problem::ReservedPacketType(15));
}

// Conformance v5: 1.5.5-1
#[test]
fn remaining_length_has_at_most_four_bytes() {
    for version in [V311, V5] {
        malformed(Server, version, "30 ff ff ff ff", Problem::VariableByteInteger);
        malformed(Server, version, "30 80 80 80 80 00", Problem::VariableByteInteger);
    }
    // [MQTT-1.5.5-1] is new in MQTT 5.
    malformed(Server, V5, "c0 80 00", Problem::VariableByteInteger);
    assert!(matches!(Server.decode(V311, wire("c0 80 00")), Ok(Some(_))));
    malformed(Server, V5, "10 8d 00 00 04 'MQTT' 05 00 00 00 00 00 00", Problem::VariableByteInteger);
}

// Conformance v5: 3.1.0-1, 3.1.0-2
#[test]
fn the_first_packet_is_connect_and_there_is_one() {
    for first in (0x00..=0xf0).step_by(0x10).filter(|first| *first != 0x10) {
        let error = first_packet(&format!("{first:x}"));
        let expected = if first == 0 { Problem::ReservedPacketType(0) } else { Problem::NotConnect };
        assert_eq!(error.problem, expected); // [MQTT-3.1.0-1]
        assert_eq!(error.version, None);
    }
    let mut twice = wire("10 0d 00 04 'MQTT' 05 00 00 00 00 00 00 10");
    let mut decoder = decoder(Role::Server);
    assert!(matches!(decoder.decode(&mut twice), Ok(Some(_))));
    let error = decoder.decode(&mut twice).unwrap_err();
    assert_eq!((error.problem, error.reason()), (Problem::SecondConnect, ReasonCode::ProtocolError));
}

#[test]
fn packets_of_the_other_side_are_protocol_errors() {
    for version in [V311, V5] {
        for first in ["20", "90", "b0", "d0"] {
            protocol_error(Server, version, first, Problem::WrongSender);
        }
        for first in ["82", "a2", "c0"] {
            protocol_error(Client, version, first, Problem::WrongSender);
        }
        let error = connected(Client, version).decode(&mut wire("10")).unwrap_err();
        assert_eq!(error.problem, Problem::WrongSender);
    }
    protocol_error(Client, V311, "e0", Problem::WrongSender);
}

// Conformance v5: 3.1.2-1, 3.1.2-2
#[test]
fn an_unsupported_version_can_be_answered() {
    let check = |text: &str, problem, version| {
        let error = first_packet(text);
        assert_eq!(error.reason(), ReasonCode::UnsupportedProtocolVersion);
        assert_eq!((error.problem, error.version), (problem, version));
    };
    for level in [0x02, 0x04, 0x05, 0x84] {
        let text = format!("10 0a 00 06 'MQIsdp' {level:x} 02");
        check(&text, Problem::ProtocolLevel(level), Some(V31));
    }
    check("10 08 00 04 'MQTT' 03 02", Problem::ProtocolLevel(3), Some(V311));
    check("10 08 00 04 'MQTT' 83 02", Problem::ProtocolLevel(0x83), Some(V311));
    check("10 08 00 04 'MQTT' 85 02", Problem::ProtocolLevel(0x85), Some(V5)); // 5.0 has no bit for bridges
    check("10 08 00 04 'MQTT' 06 02", Problem::ProtocolLevel(6), Some(V5));
    check("10 08 00 04 'MqTT' 05 02", Problem::ProtocolName, None);
    check("10 08 00 00 05 02 00 00 00 00", Problem::ProtocolName, None);
}

#[test]
fn an_error_in_connect_says_which_version_to_answer_in() {
    assert_eq!(first_packet("10 0d 00 04 'MQTT' 05 01 00 00 00 00 00").version, Some(V5));
    assert_eq!(first_packet("10 0c 00 04 'MQTT' 04 01 00 00 00 00").version, Some(V311));
    assert_eq!(first_packet("10 02 00 09").version, None);
}

// Conformance v5: 3.1.2-3, 3.1.2-11, 3.1.2-12, 3.1.2-13
#[test]
fn connect_flags() {
    let connect = |version: &str, flags: u8| format!("10 08 00 04 'MQTT' {version} {flags:x}");
    // [MQTT-3.1.2-3]; without a will, its QoS and retain are zero [MQTT-3.1.2-11], [MQTT-3.1.2-13].
    for flags in [0x01, 0x03, 0xff, 0x08, 0x10, 0x18, 0x20] {
        for level in ["04", "05"] {
            malformed(Server, V5, &connect(level, flags), Problem::ReservedBits(flags));
        }
    }
    malformed(Server, V311, &connect("04", 0x40), Problem::PasswordWithoutUserName);
    malformed(Server, V5, "10 0d 00 04 'MQTT' 05 1c 00 00 00 00 00", Problem::QoS3); // [MQTT-3.1.2-12]
    malformed(Server, V311, "10 0c 00 04 'MQTT' 04 1c 00 00 00 00", Problem::QoS3);
}

#[test]
fn every_packet_ends_where_it_says() {
    let packets = [
        (Server, V5, "10 0d 00 04 'MQTT' 05 00 00 00 00 00 00"),
        (Server, V311, "10 0c 00 04 'MQTT' 04 00 00 00 00 00"),
        (Server, V5, "10 18 00 04 'MQTT' 05 c4 00 00 00 00 00 00 00 01 'w' 00 00 00 01 'u' 00 00"),
        (Client, V5, "20 03 00 00 00"),
        (Client, V311, "20 02 00 00"),
        (Server, V311, "40 02 00 01"),
        (Server, V5, "62 04 00 01 00 00"),
        (Client, V311, "b0 02 00 01"),
        (Server, V5, "c0 00"),
        (Client, V5, "d0 00"),
        (Server, V311, "e0 00"),
        (Server, V5, "e0 02 00 00"),
        (Server, V5, "f0 06 18 04 15 00 01 'm'"),
    ];
    for (side, version, text) in packets {
        let whole = wire(text);
        let (first, body) = (whole[0], &whole[2..]);
        assert_eq!(usize::from(whole[1]), body.len(), "{text}");
        assert!(matches!(side.decode(version, whole.clone()), Ok(Some(_))), "{text}");
        let longer = frame(first, &[body, &[0]].concat());
        check_refused(side, version, longer, Problem::TrailingBytes(1), ReasonCode::MalformedPacket);
        // A frame that says it is whole but ends inside of a field. Short acknowledgements end early by right.
        let may_end_at = |length| match first {
            0x62 => length >= 2,
            0xe0 | 0xf0 => true,
            _ => false,
        };
        for length in (0..body.len()).filter(|length| !may_end_at(*length)) {
            let shorter = frame(first, &body[..length]);
            check_refused(side, version, shorter, Problem::Truncated, ReasonCode::MalformedPacket);
        }
    }
    malformed(Server, V5, "f0 01 18", Problem::Truncated);
}

// Conformance v5: 1.5.4-1, 1.5.4-2
#[test]
fn strings_are_utf8_without_null() {
    let check = |text: &str, problem| {
        let client_id = wire(text);
        let mut body = wire("00 04 'MQTT' 05 00 00 00 00");
        body.extend_from_slice(&u16::try_from(client_id.len()).unwrap().to_be_bytes());
        body.unsplit(client_id);
        let connect = frame(0x10, &body);
        match problem {
            Some(problem) => check_refused(Server, V5, connect, problem, ReasonCode::MalformedPacket),
            None => assert!(matches!(Server.decode(V5, connect), Ok(Some(_))), "{text}"),
        }
    };
    check("80", Some(Problem::Utf8));
    check("c0 80", Some(Problem::Utf8)); // null in an overlong form
    check("ed a0 80", Some(Problem::Utf8)); // U+D800 [MQTT-1.5.4-1]
    check("ed bf bf", Some(Problem::Utf8)); // U+DFFF
    check("f4 90 80 80", Some(Problem::Utf8)); // over U+10FFFF
    check("e2 82", Some(Problem::Utf8));
    check("'a' 00 'b'", Some(Problem::NullCharacter)); // [MQTT-1.5.4-2]
    check("01 1f 7f c2 9f", None); // control characters
    check("ef bb bf", None); // U+FEFF [MQTT-1.5.4-3]
    check("ef bf bf", None); // a non-character
    check("f4 8f bf bf", None);
}

// Conformance v5: 2.2.1-3
#[test]
fn packet_identifiers_are_not_zero() {
    for version in [V311, V5] {
        for first in ["40", "50", "62", "70", "82", "a2"] {
            protocol_error(Server, version, &format!("{first} 02 00 00"), Problem::PacketIdZero);
            malformed(Server, version, &format!("{first} 01 01"), Problem::Truncated);
        }
        for first in ["90", "b0"] {
            protocol_error(Client, version, &format!("{first} 02 00 00"), Problem::PacketIdZero);
        }
        for first in ["32", "34"] {
            protocol_error(Server, version, &format!("{first} 05 00 01 't' 00 00"), Problem::PacketIdZero);
        }
    }
}

// Conformance v5: 3.3.2-1, 3.3.2-2, 4.7.0-1, 4.7.3-1, 4.7.3-2
#[test]
fn topic_names() {
    let invalid = |version, text: &str| {
        let error = Server.decode(version, wire(text)).unwrap_err();
        assert!(matches!(error.problem, Problem::TopicName(_)), "{error}");
        assert_eq!(error.reason(), ReasonCode::TopicNameInvalid);
    };
    invalid(V5, "30 06 00 03 'a/#' 00"); // [MQTT-3.3.2-2]
    invalid(V5, "30 04 00 01 '+' 00");
    invalid(V311, "30 03 00 01 '#'");
    invalid(V5, "10 12 00 04 'MQTT' 05 04 00 00 00 00 00 00 00 01 '#' 00 00");
    invalid(V311, "10 10 00 04 'MQTT' 04 04 00 00 00 00 00 00 00 00");
    let empty = Server.decode(V311, wire("30 02 00 00")).unwrap_err();
    assert_eq!(empty.problem, Problem::TopicName(TopicError::Empty)); // [MQTT-4.7.3-1]
    protocol_error(Server, V5, "30 03 00 00 00", Problem::TopicMissing);
    malformed(Server, V5, "30 04 00 01 00 00", Problem::NullCharacter);
    malformed(Server, V5, "30 02 00 01", Problem::Truncated);
}

// Conformance v5: 3.8.3-2, 3.8.3-4, 3.8.3-5, 3.10.3-2
#[test]
fn subscribe_and_unsubscribe() {
    for first in ["82", "a2"] {
        protocol_error(Server, V5, &format!("{first} 03 00 01 00"), Problem::Empty); // [MQTT-3.8.3-2]
        protocol_error(Server, V311, &format!("{first} 02 00 01"), Problem::Empty);
    }
    let options = |byte: u8| format!("82 07 00 01 00 00 01 'f' {byte:x}");
    malformed(Server, V5, &options(0x40), Problem::ReservedBits(0x40)); // [MQTT-3.8.3-5]
    malformed(Server, V5, &options(0x80), Problem::ReservedBits(0x80));
    protocol_error(Server, V5, &options(0x03), Problem::Value(3));
    protocol_error(Server, V5, &options(0x30), Problem::Value(3));
    for bit in 2..8 {
        let byte = 1_u8 << bit;
        malformed(Server, V311, &format!("82 06 00 01 00 01 'f' {byte:x}"), Problem::ReservedBits(byte));
    }
    protocol_error(Server, V311, "82 06 00 01 00 01 'f' 03", Problem::Value(3));
    malformed(Server, V5, "82 06 00 01 00 00 01 'f'", Problem::Truncated);
    // [MQTT-3.8.3-4]
    protocol_error(Server, V5, "82 10 00 01 00 00 0a '$share/g/f' 04", Problem::NoLocalOnShared);
    assert!(matches!(Server.decode(V5, wire("82 0c 00 01 00 00 06 '$share' 04")), Ok(Some(_))));
}

#[test]
fn acknowledgements_of_a_server() {
    malformed(Client, V5, "20 03 02 00 00", Problem::ReservedBits(2));
    protocol_error(Client, V5, "20 03 01 87 00", Problem::SessionPresentOnRefusal); // [MQTT-3.2.2-6]
    protocol_error(Client, V311, "20 02 00 06", Problem::ReasonCode(6));
    protocol_error(Client, V311, "90 03 00 01 87", Problem::ReasonCode(0x87));
    protocol_error(Client, V5, "90 03 00 01 00", Problem::Empty);
    protocol_error(Client, V311, "90 02 00 01", Problem::Empty);
    protocol_error(Client, V5, "b0 03 00 01 00", Problem::Empty);
}

#[test]
fn an_error_is_final_and_says_what_and_where() {
    let mut decoder = connected(Server, V5);
    let mut buf = BytesMut::from(&b"\x30\x04\x00\x01\x00\x00"[..]);
    let error = decoder.decode(&mut buf).unwrap_err();
    assert_eq!(error.to_string(), "PUBLISH topic name: null character in a string");
    assert_eq!(decoder.decode(&mut wire("c0 00")).unwrap_err(), error);
    assert_eq!(first_packet("00").to_string(), "packet type: packet type 0 is reserved");
    assert_eq!(
        first_packet("10 08 00 04 'MQTT' 06 02").to_string(),
        "CONNECT protocol level: protocol level 6 is not supported"
    );
}
