//! MQTT 3.1: the same sessions under another name, with fewer words; and bridges, which make themselves known by a
//! bit of the protocol level.

use super::super::TestBroker;
use super::super::client::{AtLeastOnce, V311, clean, persistent, publish, retained, text};

#[tokio::test]
async fn the_older_name_and_level_are_taken() {
    let broker = TestBroker::start().await;
    let mut raw = broker.raw_after("10: `MQIsdp` 03 02 00 00 `c`", "20: 00 00").await;
    raw.send("82: 00 01 `t/#` 02").await;
    raw.expect("90: 00 01 02").await;
    raw.synced().await;
    let mut publisher = broker.raw_after("10: `MQIsdp` 03 02 00 00 `p`", "20: 00 00").await;
    publisher.send("32: `t/1` 00 02 'x'").await;
    publisher.expect("40: 00 02").await;
    raw.expect("32: `t/1` 00 01 'x'").await;
    publisher.send("34: `t/2` 00 03 'y'").await;
    publisher.expect("50: 00 03").await;
    raw.expect("34: `t/2` 00 02 'y'").await;
    raw.send("40: 00 01; 50: 00 02").await;
    raw.expect("62: 00 02").await;
    // Sent again, with the flag that 3.1 has for it.
    publisher.send("6a: 00 03").await;
    publisher.expect("70: 00 03").await;
    raw.send("70: 00 02; 8a: 00 04 `u` 00").await;
    raw.expect("90: 00 04 00").await;
    raw.send("aa: 00 05 `u`").await;
    raw.expect("b0: 00 05").await;
    raw.send("e0:").await;
    raw.ends_silently("DISCONNECT").await;
}

#[tokio::test]
async fn names_and_levels_that_do_not_belong_together_are_answered() {
    let broker = TestBroker::start().await;
    for (protocol, answer) in [
        ("`MQIsdp` 04", "20: 00 01"),
        ("`MQIsdp` 05", "20: 00 01"),
        ("`MQIsdp` 02", "20: 00 01"),
        ("`MQIsdp` 84", "20: 00 01"),
        ("`MQTT` 03", "20: 00 01"),
        ("`MQTT` 83", "20: 00 01"),
        ("`MQTT` 85", "20: 00 84 00"),
    ] {
        let mut raw = broker.raw().await;
        raw.send(&format!("10: {protocol} 02 00 00 `c`")).await;
        raw.expect(answer).await;
        raw.ends_silently(protocol).await;
    }
}

#[tokio::test]
async fn a_session_is_kept_and_connack_does_not_say_so() {
    let broker = TestBroker::start().await;
    let connect = "10: `MQIsdp` 03 00 00 00 `c`";
    let mut raw = broker.raw_after(connect, "20: 00 00").await;
    raw.send("82: 00 01 `t` 01").await;
    raw.expect("90: 00 01 01").await;
    raw.send("e0:").await;
    raw.ends_silently("DISCONNECT").await;
    broker.publish("t", &["x"]).await;
    let mut raw = broker.raw_after(connect, "20: 00 00").await;
    raw.expect("32: `t` 00 01 'x'").await;
    drop(raw);
    // It is the same session under either name.
    let mut client = broker.resume(persistent("c", V311)).await;
    let message = client.take().await;
    assert_eq!((text(&message), message.header.dup), ("x", true));
}

#[tokio::test]
async fn an_id_is_there_whatever_the_session() {
    let broker = TestBroker::start().await;
    for flags in ["00", "02"] {
        let mut raw = broker.raw().await;
        raw.send(&format!("10: `MQIsdp` 03 {flags} 00 00 ``")).await;
        raw.expect("20: 00 02").await;
        raw.ends_silently("an empty id").await;
    }
    // Over 23 characters, as every client of today may have it.
    let id = "x".repeat(30);
    broker.raw_after(&format!("10: `MQIsdp` 03 02 00 00 `{id}`"), "20: 00 00").await.synced().await;
}

#[tokio::test]
async fn a_refused_subscription_is_answered_as_granted() {
    let broker = TestBroker::start().await;
    let mut raw = broker.raw_after("10: `MQIsdp` 03 02 00 00 `c`", "20: 00 00").await;
    raw.send("82: 00 01 `a` 01 `b/#/c` 02 `d` 02").await;
    raw.expect("90: 00 01 01 00 02").await;
    broker.publish("b/c", &["x"]).await;
    raw.synced().await;
}

#[tokio::test]
async fn a_publish_that_is_not_allowed_ends_the_connection_with_its_will() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.watcher().await;
    let connect = "10: `MQIsdp` 03 06 00 00 `c` `will` `gone`";
    let mut raw = broker.raw_after(connect, "20: 00 00").await;
    raw.send("32: `$queue/q` 00 01 'x'").await;
    raw.ends_silently("not allowed").await;
    assert_eq!(text(&watcher.message().await), "gone");
}

#[tokio::test]
async fn a_bridge_gets_nothing_of_its_own_back_and_sees_what_is_retained() {
    let broker = TestBroker::start().await;
    for protocol in ["`MQIsdp` 83", "`MQTT` 84"] {
        let mut bridge = broker.raw_after(&format!("10: {protocol} 02 00 00 `bridge`"), "20: 00 00").await;
        bridge.send("82: 00 01 `#` 01 `$share/g/own` 01").await;
        bridge.expect("90: 00 01 01 01").await;
        bridge.send("32: `t` 00 01 'own'").await;
        bridge.expect("40: 00 01").await;
        let mut other = broker.connect(clean("other", V311)).await;
        other.post(retained(AtLeastOnce, 1, "t", "kept")).await;
        other.pubacked(1).await;
        bridge.expect("33: `t` 00 01 'kept'").await;
        other.post(publish(AtLeastOnce, 2, "t", "live")).await;
        other.pubacked(2).await;
        bridge.expect("32: `t` 00 02 'live'").await;
        bridge.synced().await;
        other.post(retained(AtLeastOnce, 3, "t", "")).await;
        other.pubacked(3).await;
    }
    // Who is no bridge gets both, and no flag.
    let mut plain = broker.raw_clean("plain").await;
    plain.send("82: 00 01 `t` 00").await;
    plain.expect("90: 00 01 00").await;
    plain.send("31: `t` 'own'").await;
    plain.expect("30: `t` 'own'").await;
}
