//! CONNECT and CONNACK.

use std::collections::BTreeSet;

use weir_codec::{Connect, ReasonCode};

use super::super::client::{AtLeastOnce, V311, clean, persistent, publish, text};
use super::super::{TestBroker, config, memory};
use super::bytes;

// Conformance v311: 3.1.2-1, 3.1.2-2, 3.2.2-5, 3.1.4-4
#[tokio::test]
async fn only_known_protocols_are_spoken() {
    let broker = TestBroker::start().await;
    for name in ["MQTTT", "mqtt", "MQT", "", "HTTP"] {
        broker.refuses_silently(bytes(&format!("10: `{name}` 04 02 00 00 `c`"))).await;
    }
    for level in ["00", "01", "02", "03", "80", "83"] {
        let mut raw = broker.raw().await;
        raw.send(&format!("10: `MQTT` {level} 02 00 00 `c`")).await;
        raw.expect("20: 00 01").await;
        raw.ends_silently(level).await;
    }
    // Those of the future speak as 5.0 does.
    let mut raw = broker.raw().await;
    raw.send("10: `MQTT` 06 02 00 00 00 `c`").await;
    raw.expect("20: 00 84 00").await;
    raw.ends_silently("level 6").await;
    broker.raw_clean("c").await.synced().await;
}

// Conformance v311: 3.1.2-3, 3.1.2-9, 3.1.2-11, 3.1.2-13, 3.1.2-14, 3.1.2-15, 3.1.4-1, 3.2.2-6
#[tokio::test]
async fn connect_flags_that_contradict_the_rest_are_not_answered() {
    let broker = TestBroker::start().await;
    for connect in [
        "03 00 00 `c`",               // the reserved bit
        "0a 00 00 `c`",               // QoS of a will without a will
        "12 00 00 `c`",               //
        "22 00 00 `c`",               // retain of a will without a will
        "1e 00 00 `c` `will` `gone`", // QoS 3
        "06 00 00 `c`",               // no will
        "06 00 00 `c` `will`",        // no message of the will
        "02 00 00 `c` `will` `gone`", // a will without its flag
    ] {
        broker.refuses_silently(bytes(&format!("10: `MQTT` 04 {connect}"))).await;
    }
}

// Conformance v311: 3.1.2-18, 3.1.2-19, 3.1.2-20, 3.1.2-21, 3.1.2-22, 3.1.4-1
#[tokio::test]
async fn user_name_and_password_are_there_as_their_flags_say() {
    let broker = TestBroker::start().await;
    for connect in [
        "02 00 00 `c` `user`",            // no flag
        "82 00 00 `c`",                   // no user name
        "82 00 00 `c` `user` `password`", // no flag of the password
        "c2 00 00 `c` `user`",            // no password
        "42 00 00 `c` `password`",        // no user name
    ] {
        broker.refuses_silently(bytes(&format!("10: `MQTT` 04 {connect}"))).await;
    }
    for connect in ["82 00 00 `c` `user`", "c2 00 00 `c` `user` `password`", "c2 00 00 `c` `` 00 01 ff"] {
        broker.raw_after(&format!("10: `MQTT` 04 {connect}"), "20: 00 00").await.synced().await;
    }
}

// Conformance v311: 3.1.3-1, 3.1.3-2, 3.1.3-3
#[tokio::test]
async fn the_fields_of_the_payload_have_their_order() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.old_subscriber("watcher", "second", AtLeastOnce).await;
    // Client identifier, topic and message of the will, user name, password.
    let all = "10: `MQTT` 04 cc 00 00 `first` `second` `third` `fourth` `fifth`";
    drop(broker.raw_after(all, "20: 00 00").await);
    assert_eq!(text(&watcher.take().await), "third");
    broker.resume(persistent("first", V311)).await;
    let (_, connack) = broker.connack(persistent("second", V311)).await;
    assert!(!connack.session_present);
}

// Conformance v311: 3.1.3-5
#[tokio::test]
async fn ids_of_up_to_23_digits_and_letters_are_taken() {
    let broker = TestBroker::start().await;
    let letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for at in 0..letters.len() {
        let id: String = letters.chars().cycle().skip(at).take(at % 23 + 1).collect();
        broker.raw_clean(&id).await.synced().await;
    }
}

// Conformance v311: 3.1.3-6, 3.1.3-7, 3.1.3-8, 3.2.2-4, 3.2.2-5
#[tokio::test]
async fn an_empty_id_is_for_clean_sessions() {
    let broker = TestBroker::start().await;
    let mut raw = broker.raw().await;
    raw.send("10: `MQTT` 04 00 00 00 ``").await;
    raw.expect("20: 00 02").await;
    raw.ends_silently("an empty id").await;
    // Two of them are two clients.
    let (mut one, mut other) = (broker.raw_clean("").await, broker.raw_clean("").await);
    for client in [&mut one, &mut other] {
        client.send("82: 00 01 `t` 00").await;
        client.expect("90: 00 01 00").await;
    }
    one.send("30: `t` 'x'").await;
    one.expect("30: `t` 'x'").await;
    other.expect("30: `t` 'x'").await;
    one.synced().await;
}

// Conformance v311: 3.1.3-9, 3.2.2-4, 3.2.2-5
#[tokio::test]
async fn an_id_that_is_not_taken_is_answered() {
    let broker = TestBroker::start().await;
    broker.connect(clean(&"x".repeat(256), V311)).await.disconnect().await;
    for connect in [clean(&"x".repeat(257), V311), persistent(&"x".repeat(257), V311)] {
        let (mut client, connack) = broker.connack(connect).await;
        assert_eq!((connack.code, connack.session_present), (ReasonCode::ClientIdentifierNotValid, false));
        client.ended().await;
    }
}

// Conformance v311: 3.2.2-4, 3.2.2-5
#[tokio::test]
async fn a_refusal_says_that_no_session_is_present() {
    let broker = TestBroker::start().await;
    broker.connect(persistent("c", V311)).await.disconnect().await;
    // There is a session, but its client may not have that will.
    let mut raw = broker.raw().await;
    raw.send("10: `MQTT` 04 04 00 00 `c` `$SYS/x` `x`").await;
    raw.expect("20: 00 05").await;
    raw.ends_silently("a forbidden will").await;
    broker.resume(persistent("c", V311)).await;
}

// Conformance v311: 3.1.4-5
#[tokio::test]
async fn nothing_behind_a_refused_connect_is_done() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.old_subscriber("watcher", "#", AtLeastOnce).await;
    for (connect, answer) in [("04 00 00 00 ``", "20: 00 02"), ("03 02 00 00 `c`", "20: 00 01")] {
        let mut raw = broker.raw().await;
        raw.send(&format!("10: `MQTT` {connect}; 31: `t` 'x'; 82: 00 01 `t` 00; c0:")).await;
        raw.expect(answer).await;
        raw.ends_silently(connect).await;
    }
    let mut later = broker.old_subscriber("later", "#", AtLeastOnce).await;
    later.synced().await;
    watcher.synced().await;
    // Behind one that is taken it is, even before CONNACK has been seen.
    let mut raw = broker.raw().await;
    raw.send("10: `MQTT` 04 02 00 00 `c`; 30: `t` 'y'; c0:").await;
    raw.expect("20: 00 00; d0:").await;
    assert_eq!(text(&watcher.message().await), "y");
}

// Conformance v311: 3.1.4-2
#[tokio::test]
async fn an_older_connection_with_the_same_id_is_closed() {
    let broker = TestBroker::start().await;
    for old in ["02", "00"] {
        for new in ["02", "00"] {
            let connect = |flags: &str| format!("10: `MQTT` 04 {flags} 00 00 `same`");
            broker.connect(clean("same", V311)).await.disconnect().await;
            let mut first = broker.raw_after(&connect(old), "20: 00 00").await;
            let present = if (old, new) == ("00", "00") { "20: 01 00" } else { "20: 00 00" };
            let mut second = broker.raw_after(&connect(new), present).await;
            first.ends_silently("taken over").await;
            second.synced().await;
        }
    }
}

// Conformance v311: 3.2.0-1
#[tokio::test]
async fn connack_comes_first() {
    let broker = TestBroker::start().await;
    let mut subscriber = broker.connect(persistent("s", V311)).await;
    subscriber.subscribe("t", AtLeastOnce).await;
    broker.publish("t", &["0"]).await;
    let first = subscriber.message().await;
    subscriber.disconnect().await;
    // In flight, in the inbox, and live: all of it waits for CONNACK.
    broker.publish("t", &["1"]).await;
    let mut raw = broker.raw().await;
    let mut publisher = broker.old("p").await;
    for n in 0..50 {
        publisher.publish("t", &n.to_string()).await;
        if n == 25 {
            raw.send("10: `MQTT` 04 00 00 00 `s`").await;
        }
    }
    raw.expect("20: 01 00").await;
    let n = first.header.packet_id.unwrap().get().to_be_bytes();
    raw.expect(&format!("3a: `t` {:02x} {:02x} '0'", n[0], n[1])).await;
    // Who says nothing is told nothing.
    let mut silent = broker.raw().await;
    publisher.post(publish(AtLeastOnce, 1, "t", "x")).await;
    publisher.pubacked(1).await;
    silent.quiet().await;
}

// Conformance v311: 3.2.2-4, 3.2.2-5
#[tokio::test]
async fn a_session_over_the_limit_is_answered_with_server_unavailable() {
    let mut config = config();
    config.limits.max_sessions = 1;
    let broker = TestBroker::start_with(config, &memory()).await;
    broker.connect(persistent("a", V311)).await.disconnect().await;
    let mut raw = broker.raw().await;
    raw.send("10: `MQTT` 04 00 00 00 `b`").await;
    raw.expect("20: 00 03").await;
    raw.ends_silently("too many sessions").await;
}

// Conformance v311: 3.1.4-3, 3.2.2-1, 3.2.2-2, 3.2.2-3
#[tokio::test]
async fn session_present_says_what_there_is() {
    let broker = TestBroker::start().await;
    let mut seen = BTreeSet::new();
    // Clean session of each connection in turn, and what CONNACK says.
    for (clean_start, present) in [
        (true, false),
        (false, false),
        (false, true),
        (true, false),
        (true, false),
        (false, false),
        (false, true),
    ] {
        let connect = Connect { clean_start, ..clean("c", V311) };
        let (client, connack) = broker.connack(connect).await;
        assert_eq!(connack.session_present, present, "after {seen:?}");
        client.disconnect().await;
        seen.insert(present);
    }
}
