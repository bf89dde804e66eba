//! Reason codes: which packet allows which, and who may send them.

use weir_codec::{Problem, ReasonCode};

use crate::support::Side::{Client, Server};
use crate::support::{Side, V5, check_refused, frame, wire};

/// Exactly the codes of `allowed` are taken in a packet of first byte `first`, between `before` and `behind`.
/// Codes of `other_side` exist in the packet, but not from this sender.
#[track_caller]
fn check(side: Side, first: u8, before: &str, behind: &str, allowed: &[u8], other_side: &[u8]) {
    for code in 0..=u8::MAX {
        let body = wire(&format!("{before} {code:x} {behind}"));
        let packet = frame(first, &body);
        if allowed.contains(&code) {
            let decoded = side.decode(V5, packet);
            assert!(matches!(decoded, Ok(Some(_))), "0x{code:02x} in 0x{first:02x}: {decoded:?}");
        } else if other_side.contains(&code) {
            check_refused(side, V5, packet, Problem::WrongSender, ReasonCode::ProtocolError);
        } else {
            check_refused(side, V5, packet, Problem::ReasonCode(code), ReasonCode::ProtocolError);
        }
    }
}

// Conformance v5: 3.2.2-8, 3.4.2-1, 3.5.2-1, 3.6.2-1, 3.7.2-1, 3.9.3-2, 3.11.3-2
#[test]
fn each_packet_takes_its_reason_codes_only() {
    let connack = [
        0x00, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8c, 0x90, 0x95, 0x97, 0x99,
        0x9a, 0x9b, 0x9c, 0x9d, 0x9f,
    ];
    check(Client, 0x20, "00", "00", &connack, &[]);
    let puback = [0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
    check(Server, 0x40, "00 01", "", &puback, &[]);
    check(Client, 0x50, "00 01", "", &puback, &[]);
    check(Client, 0x62, "00 01", "", &[0x00, 0x92], &[]);
    check(Server, 0x70, "00 01", "", &[0x00, 0x92], &[]);
    let suback = [0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8f, 0x91, 0x97, 0x9e, 0xa1, 0xa2];
    check(Client, 0x90, "00 01 00", "", &suback, &[]);
    check(Client, 0xb0, "00 01 00", "", &[0x00, 0x11, 0x80, 0x83, 0x87, 0x8f, 0x91], &[]);
}

// Conformance v5: 3.14.2-1, 3.15.2-1
#[test]
fn each_side_disconnects_for_its_own_reasons() {
    let client = [0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99];
    let server = [
        0x00, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f, 0x90, 0x93, 0x94, 0x95, 0x96,
        0x97, 0x98, 0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f, 0xa0, 0xa1, 0xa2,
    ];
    check(Server, 0xe0, "", "", &client, &server);
    check(Client, 0xe0, "", "", &server, &client);
    let method = "04 15 00 01 'm'";
    check(Server, 0xf0, "", method, &[0x18, 0x19], &[0x00]);
    check(Client, 0xf0, "", method, &[0x00, 0x18], &[0x19]);
}

#[test]
fn numbers_and_codes_are_one_to_one() {
    let codes: Vec<_> = (0..=u8::MAX).filter_map(ReasonCode::from_u8).collect();
    assert_eq!(codes.len(), 43);
    for code in codes {
        assert_eq!(ReasonCode::from_u8(code.as_u8()), Some(code));
        assert_eq!(code.is_error(), code.as_u8() >= 0x80);
        let return_code = code.connect_return_code();
        assert_eq!(return_code == 0, !code.is_error(), "{code}");
        let back = ReasonCode::from_connect_return_code(return_code).unwrap();
        assert_eq!(back.connect_return_code(), return_code);
    }
    assert_eq!(ReasonCode::from_connect_return_code(6), None);
    assert_eq!(ReasonCode::QuotaExceeded.to_string(), "QuotaExceeded (0x97)");
}
