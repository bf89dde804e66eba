//! The form of packets: what is well-formed, and that everything else ends the connection without a word.

use super::super::TestBroker;
use super::super::client::AtLeastOnce;
use super::bytes;

/// Bytes that are no string.
const ILL_FORMED: [&[u8]; 5] = [
    b"\xff",
    b"a\xc3",
    b"\xed\xa0\x80", // U+D800
    b"\xc0\x80",     // null, the long way
    b"a\x00b",
];

/// `before`, the string with its length, `after`, as one packet.
fn around(first: u8, before: &[u8], string: &[u8], after: &[u8]) -> Vec<u8> {
    let length = u16::try_from(string.len()).unwrap().to_be_bytes();
    let body = [before, &length, string, after].concat();
    [&[first, u8::try_from(body.len()).unwrap()], &body[..]].concat()
}

// Conformance v311: 1.5.3-1, 1.5.3-2, 3.3.2-1, 3.8.3-1, 3.10.3-1, 4.7.3-2, 4.8.0-1
#[tokio::test]
async fn ill_formed_strings_end_the_connection() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.watcher().await;
    for string in ILL_FORMED {
        broker.breaks(&mut watcher, around(0x30, b"", string, b"payload")).await;
        broker.breaks(&mut watcher, around(0x82, b"\0\x01", string, b"\0")).await;
        broker.breaks(&mut watcher, around(0xa2, b"\0\x01", string, b"")).await;
        // Behind one that is well-formed.
        broker.breaks(&mut watcher, around(0xa2, b"\0\x01\0\x01t", string, b"")).await;
    }
}

// Conformance v311: 1.5.3-1, 1.5.3-2, 3.1.3-4, 3.1.3-10, 3.1.3-11, 3.1.4-1, 3.2.2-6
#[tokio::test]
async fn a_connect_with_an_ill_formed_string_is_not_answered() {
    let broker = TestBroker::start().await;
    for string in ILL_FORMED {
        broker.refuses_silently(around(0x10, b"\0\x04MQTT\x04\x02\0\0", string, b"")).await;
        broker.refuses_silently(around(0x10, b"\0\x04MQTT\x04\x06\0\0\0\x01c", string, b"\0\0")).await;
        broker.refuses_silently(around(0x10, b"\0\x04MQTT\x04\x82\0\0\0\x01c", string, b"")).await;
    }
}

// Conformance v311: 1.5.3-3
#[tokio::test]
async fn a_byte_order_mark_is_kept() {
    let broker = TestBroker::start().await;
    let mut all = broker.raw_clean("all").await;
    all.send("82: 00 01 `\u{feff}t/#` 00; 82: 00 02 `t/#` 00").await;
    all.expect("90: 00 01 00; 90: 00 02 00").await;
    all.send("30: `\u{feff}t/\u{feff}` 'with'; 30: `t/x` 'without'").await;
    all.expect("30: `\u{feff}t/\u{feff}` 'with'; 30: `t/x` 'without'").await;
    all.synced().await;
}

// Conformance v311: 2.2.2-1, 2.2.2-2, 3.6.1-1, 3.8.1-1, 3.10.1-1, 3.14.1-1, 4.8.0-1
#[tokio::test]
async fn reserved_flags_end_the_connection() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.watcher().await;
    for packet in [
        "40: 00 01",
        "50: 00 01",
        "62: 00 01",
        "70: 00 01",
        "82: 00 01 `t` 00",
        "a2: 00 01 `t`",
        "c0:",
        "e0:",
    ] {
        for bit in 0..4 {
            let mut bytes = bytes(packet);
            bytes[0] ^= 1 << bit;
            broker.breaks(&mut watcher, bytes).await;
        }
    }
    for bit in 0..4 {
        let mut bytes = bytes("10: `MQTT` 04 02 00 00 `c`");
        bytes[0] ^= 1 << bit;
        broker.refuses_silently(bytes).await;
    }
    // The two types that do not exist, and those that only servers send.
    for packet in ["00:", "f0:", "20: 00 00", "90: 00 01 00", "b0: 00 01", "d0:"] {
        broker.breaks(&mut watcher, bytes(packet)).await;
    }
}

// Conformance v311: 3.3.1-2, 3.3.1-4
#[tokio::test]
async fn qos_3_and_dup_at_qos_0_end_the_connection() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.watcher().await;
    for packet in ["36: `t` 00 01", "3e: `t` 00 01", "38: `t`", "39: `t`"] {
        broker.breaks(&mut watcher, bytes(packet)).await;
    }
}

// Conformance v311: 2.3.1-1
#[tokio::test]
async fn packet_identifiers_are_there_and_not_zero() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.watcher().await;
    for packet in [
        "32: `t` 00 00 'x'",
        "34: `t` 00 00 'x'",
        "82: 00 00 `t` 00",
        "a2: 00 00 `t`",
        "40: 00 00",
        "62: 00 00",
        "32: `t`",
        "82:",
        "a2: 01",
    ] {
        broker.breaks(&mut watcher, bytes(packet)).await;
    }
}

// Conformance v311: 2.3.1-5, 3.3.1-2, 4.3.1-1
#[tokio::test]
async fn a_publish_of_qos_0_has_neither_packet_identifier_nor_dup() {
    let broker = TestBroker::start().await;
    let mut raw = broker.raw_clean("c").await;
    raw.send("82: 00 01 `t` 00").await;
    raw.expect("90: 00 01 00").await;
    // What stands behind the topic is payload; an empty one is none.
    raw.send("30: `t` 00 07 'x'; 30: `t`").await;
    raw.expect("30: `t` 00 07 'x'; 30: `t`").await;
    // Nor where the publish had both.
    let mut publisher = broker.raw_clean("p").await;
    publisher.send("3a: `t` 00 07 'y'").await;
    publisher.expect("40: 00 07").await;
    raw.expect("30: `t` 'y'").await;
    raw.synced().await;
}

// Conformance v311: 3.8.3-3, 3.8.3-4, 3.10.3-2
#[tokio::test]
async fn subscribe_and_unsubscribe_have_filters_and_no_more_than_that() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.watcher().await;
    for packet in ["82: 00 01", "a2: 00 01", "82: 00 01 `t`", "82: 00 01 `t` 00 `u`", "a2: 00 01 00 05 't'"] {
        broker.breaks(&mut watcher, bytes(packet)).await;
    }
    for bit in 2..8 {
        broker.breaks(&mut watcher, bytes(&format!("82: 00 01 `t` {:02x}", 1 << bit))).await;
    }
    broker.breaks(&mut watcher, bytes("82: 00 01 `t` 03")).await;
    broker.breaks(&mut watcher, bytes("82: 00 01 `t` 00 `u` 03")).await;
}

// Conformance v311: 3.3.2-2, 4.7.1-1, 4.7.3-1
#[tokio::test]
async fn a_topic_name_is_not_empty_and_has_no_wildcards() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.watcher().await;
    let mut all = broker.old_subscriber("all", "t/#", AtLeastOnce).await;
    for topic in ["", "t/#", "t/+/x", "t/a#", "t/a+b"] {
        broker.breaks(&mut watcher, bytes(&format!("30: `{topic}` 'x'"))).await;
        broker.breaks(&mut watcher, bytes(&format!("32: `{topic}` 00 01 'x'"))).await;
    }
    all.synced().await;
    for topic in ["", "t/#", "+"] {
        broker.refuses_silently(bytes(&format!("10: `MQTT` 04 06 00 00 `c` `{topic}` `x`"))).await;
    }
}

// Conformance v311: 3.1.0-1, 3.1.0-2
#[tokio::test]
async fn connect_comes_first_and_once() {
    let broker = TestBroker::start().await;
    for packet in [
        "30: `t` 'x'",
        "82: 00 01 `t` 00",
        "a2: 00 01 `t`",
        "c0:",
        "e0:",
        "40: 00 01",
        "20: 00 00",
        "00:",
        "f0:",
    ] {
        broker.refuses_silently(bytes(packet)).await;
    }
    let mut watcher = broker.watcher().await;
    broker.breaks(&mut watcher, bytes("10: `MQTT` 04 02 00 00 `breaker`")).await;
    broker.breaks(&mut watcher, bytes("10: `MQTT` 04 02 00 00 `other`")).await;
}
