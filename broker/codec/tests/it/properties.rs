//! Which packet may carry which property (section 2.2.2.2), for every pair of the two, and the values that
//! each property allows.

use bytes::BytesMut;
use weir_codec::{Packet, Problem, ReasonCode};

use crate::support::Side::{Client, Server};
use crate::support::{Side, V5, check_refused, frame, wire};

/// A place for a property block: what is before it, and what is behind.
struct Place {
    name: &'static str,
    side: Side,
    first: u8,
    before: &'static str,
    behind: &'static str,
}

const fn place(
    name: &'static str,
    side: Side,
    first: u8,
    before: &'static str,
    behind: &'static str,
) -> Place {
    Place { name, side, first, before, behind }
}

const PLACES: &[Place] = &[
    place("CONNECT", Server, 0x10, "00 04 'MQTT' 05 00 00 00", "00 00"),
    place("will", Server, 0x10, "00 04 'MQTT' 05 04 00 00 00 00 00", "00 01 'w' 00 00"),
    place("CONNACK", Client, 0x20, "00 00", ""),
    place("PUBLISH", Client, 0x30, "00 01 't'", ""),
    place("PUBACK", Server, 0x40, "00 01 00", ""),
    place("PUBREC", Server, 0x50, "00 01 00", ""),
    place("PUBREL", Server, 0x62, "00 01 00", ""),
    place("PUBCOMP", Server, 0x70, "00 01 00", ""),
    place("SUBSCRIBE", Server, 0x82, "00 01", "00 01 'f' 00"),
    place("SUBACK", Client, 0x90, "00 01", "00"),
    place("UNSUBSCRIBE", Server, 0xa2, "00 01", "00 01 'f'"),
    place("UNSUBACK", Client, 0xb0, "00 01", "00"),
    place("client's DISCONNECT", Server, 0xe0, "00", ""),
    place("server's DISCONNECT", Client, 0xe0, "00", ""),
    place("AUTH", Server, 0xf0, "18", ""),
];

/// Each property with a valid value and the places where it may be.
const PROPERTIES: &[(&str, &[&str])] = &[
    ("01 01", &["PUBLISH", "will"]),
    ("02 00 00 00 01", &["PUBLISH", "will"]),
    ("03 00 01 'x'", &["PUBLISH", "will"]),
    ("08 00 01 'x'", &["PUBLISH", "will"]),
    ("09 00 01 00", &["PUBLISH", "will"]),
    ("0b 01", &["PUBLISH", "SUBSCRIBE"]),
    ("11 00 00 00 01", &["CONNECT", "CONNACK", "client's DISCONNECT"]),
    ("12 00 01 'x'", &["CONNACK"]),
    ("13 00 01", &["CONNACK"]),
    ("15 00 01 'x'", &["CONNECT", "CONNACK", "AUTH"]),
    ("16 00 01 00", &["CONNECT", "CONNACK", "AUTH"]),
    ("17 01", &["CONNECT"]),
    ("18 00 00 00 01", &["will"]),
    ("19 01", &["CONNECT"]),
    ("1a 00 01 'x'", &["CONNACK"]),
    ("1c 00 01 'x'", &["CONNACK", "server's DISCONNECT"]),
    (
        "1f 00 01 'x'",
        &[
            "CONNACK",
            "PUBACK",
            "PUBREC",
            "PUBREL",
            "PUBCOMP",
            "SUBACK",
            "UNSUBACK",
            "client's DISCONNECT",
            "server's DISCONNECT",
            "AUTH",
        ],
    ),
    ("21 00 01", &["CONNECT", "CONNACK"]),
    ("22 00 01", &["CONNECT", "CONNACK"]),
    ("23 00 01", &["PUBLISH"]),
    ("24 01", &["CONNACK"]),
    ("25 01", &["CONNACK"]),
    (
        "26 00 01 'x' 00 00",
        &[
            "CONNECT",
            "will",
            "CONNACK",
            "PUBLISH",
            "PUBACK",
            "PUBREC",
            "PUBREL",
            "PUBCOMP",
            "SUBSCRIBE",
            "SUBACK",
            "UNSUBSCRIBE",
            "UNSUBACK",
            "client's DISCONNECT",
            "server's DISCONNECT",
            "AUTH",
        ],
    ),
    ("27 00 00 00 01", &["CONNECT", "CONNACK"]),
    ("28 01", &["CONNACK"]),
    ("29 01", &["CONNACK"]),
    ("2a 01", &["CONNACK"]),
];

impl Place {
    /// A packet with these properties; where they need an authentication method it is there.
    fn packet(&self, properties: &str) -> BytesMut {
        let needs_method = self.name == "AUTH" || self.name == "CONNECT" && properties.starts_with("16");
        let method = if needs_method && !properties.starts_with("15") { "15 00 01 'm' " } else { "" };
        let properties = wire(&format!("{method}{properties}"));
        let mut body = wire(self.before);
        body.extend_from_slice(&[u8::try_from(properties.len()).unwrap()]);
        body.unsplit(properties);
        body.unsplit(wire(self.behind));
        frame(self.first, &body)
    }

    #[track_caller]
    fn check_refused(&self, properties: &str, problem: Problem, reason: ReasonCode) {
        check_refused(self.side, V5, self.packet(properties), problem, reason);
    }
}

fn place_of(property: &str) -> &'static Place {
    let (_, places) = PROPERTIES.iter().find(|(text, _)| text[..2] == property[..2]).unwrap();
    PLACES.iter().find(|place| place.name == places[0]).unwrap()
}

// Conformance v5: 3.14.2-2
#[test]
fn each_property_is_taken_where_it_is_allowed_and_nowhere_else() {
    for (property, allowed) in PROPERTIES {
        for place in PLACES {
            let packet = place.packet(property);
            if allowed.contains(&place.name) {
                let decoded = place.side.decode(V5, packet);
                assert!(matches!(decoded, Ok(Some(_))), "{property} in {}: {decoded:?}", place.name);
                continue;
            }
            let for_other_side = place.name.ends_with("DISCONNECT")
                && allowed.iter().any(|allowed| allowed.ends_with("DISCONNECT"));
            let (problem, reason) = if for_other_side {
                (Problem::WrongSender, ReasonCode::ProtocolError)
            } else {
                (Problem::PropertyNotAllowed, ReasonCode::MalformedPacket)
            };
            check_refused(place.side, V5, packet, problem, reason);
        }
    }
}

#[test]
fn only_user_properties_and_subscription_identifiers_repeat() {
    for (property, allowed) in PROPERTIES {
        for place in PLACES.iter().filter(|place| allowed.contains(&place.name)) {
            let twice = format!("{property} {property}");
            let may_repeat =
                property.starts_with("26") || property.starts_with("0b") && place.name == "PUBLISH";
            if may_repeat {
                assert!(matches!(place.side.decode(V5, place.packet(&twice)), Ok(Some(_))));
            } else {
                place.check_refused(&twice, Problem::PropertyRepeated, ReasonCode::ProtocolError);
            }
        }
    }
}

#[test]
fn unknown_properties_are_malformed() {
    let known: Vec<u8> = PROPERTIES.iter().map(|(property, _)| wire(property)[0]).collect();
    assert_eq!(known.len(), 27);
    for id in (0..=u8::MAX).filter(|id| !known.contains(id)) {
        for place in PLACES {
            place.check_refused(
                &format!("{id:x} 00"),
                Problem::UnknownProperty(id),
                ReasonCode::MalformedPacket,
            );
        }
    }
}

#[test]
fn every_property_may_be_cut_short_only_to_be_malformed() {
    for (property, allowed) in PROPERTIES {
        for place in PLACES.iter().filter(|place| allowed.contains(&place.name)) {
            let whole = wire(property);
            for length in 1..whole.len() {
                let cut: String = whole[..length].iter().map(|byte| format!("{byte:x} ")).collect();
                place.check_refused(&cut, Problem::Truncated, ReasonCode::MalformedPacket);
            }
        }
    }
}

// Conformance v5: 3.3.2-8
#[test]
fn values_out_of_range_are_protocol_errors() {
    for flag in ["01", "17", "19", "24", "25", "28", "29", "2a"] {
        let place = place_of(flag);
        for value in [2_u8, 0xff] {
            let problem = Problem::Value(u32::from(value));
            place.check_refused(&format!("{flag} {value:x}"), problem, ReasonCode::ProtocolError);
        }
        let zero = place.side.decode(V5, place.packet(&format!("{flag} 00")));
        assert!(matches!(zero, Ok(Some(_))), "{flag}: {zero:?}");
    }
    for zero in ["21 00 00", "27 00 00 00 00", "0b 00"] {
        place_of(zero).check_refused(zero, Problem::Value(0), ReasonCode::ProtocolError);
    }
    place_of("23").check_refused("23 00 00", Problem::TopicAliasZero, ReasonCode::TopicAliasInvalid);
}

// Conformance v5: 1.5.4-1, 1.5.4-2, 1.5.7-1, 3.3.2-13, 3.3.2-19
#[test]
fn strings_in_properties_are_checked() {
    for id in ["03", "08", "12", "15", "1a", "1c", "1f"] {
        let place = place_of(id);
        let check = |text: &str, problem| {
            place.check_refused(&format!("{id} {text}"), problem, ReasonCode::MalformedPacket);
        };
        check("00 01 ff", Problem::Utf8);
        check("00 01 00", Problem::NullCharacter);
    }
    for pair in ["26 00 01 c0 00 00", "26 00 00 00 01 c0"] {
        place_of("26").check_refused(pair, Problem::Utf8, ReasonCode::MalformedPacket);
    }
}

// Conformance v5: 3.3.2-14
#[test]
fn a_response_topic_is_a_topic_name() {
    for bad in ["08 00 00", "08 00 01 '#'", "08 00 03 'a/+'"] {
        for place in ["PUBLISH", "will"] {
            let place = PLACES.iter().find(|candidate| candidate.name == place).unwrap();
            let error = place.side.decode(V5, place.packet(bad)).unwrap_err();
            assert!(matches!(error.problem, Problem::ResponseTopic(_)), "{error}");
            assert_eq!(error.reason(), ReasonCode::ProtocolError);
        }
    }
}

// Conformance v5: 1.5.5-1
#[test]
fn a_property_block_is_within_its_packet() {
    use Problem::{Truncated, VariableByteInteger};
    for place in PLACES {
        let with_length = |length: &str| {
            let mut body = wire(place.before);
            body.unsplit(wire(length));
            frame(place.first, &body)
        };
        let refused = |length, problem| {
            check_refused(place.side, V5, with_length(length), problem, ReasonCode::MalformedPacket);
        };
        refused("01", Truncated);
        refused("ff ff ff 7f", Truncated);
        refused("80", Truncated);
        refused("ff ff ff ff", VariableByteInteger);
        refused("ff ff ff ff 01", VariableByteInteger);
        refused("80 00", VariableByteInteger); // [MQTT-1.5.5-1]
    }
}

#[test]
fn authentication_data_needs_a_method() {
    let check = |first, body: &str| {
        let missing = Problem::AuthenticationMethodMissing;
        check_refused(Server, V5, frame(first, &wire(body)), missing, ReasonCode::ProtocolError);
    };
    check(0x10, "00 04 'MQTT' 05 00 00 00 04 16 00 01 'd' 00 00");
    check(0xf0, "18 00");
    check(0xf0, "19 04 16 00 01 'd'");
}

// Conformance v5: 3.3.4-6
#[test]
fn a_client_sends_no_subscription_identifier_in_publish() {
    let publish = frame(0x30, &wire("00 01 't' 02 0b 01"));
    assert!(matches!(Client.decode(V5, publish.clone()), Ok(Some(Packet::Publish(_)))));
    check_refused(Server, V5, publish, Problem::WrongSender, ReasonCode::ProtocolError);
}
