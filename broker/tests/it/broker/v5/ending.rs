//! How connections and sessions end: DISCONNECT, wills, session expiry, errors (3.14, 4.1, 4.13).

use std::time::Duration;

use weir_codec::{Connect, Packet, ReasonCode};

use super::super::client::{AtLeastOnce, Client, V5, clean, persistent, text, will};
use super::super::{TestBroker, config, memory};
use super::{frame, told, wire};

fn with_will(connect: Connect) -> Connect {
    Connect { will: Some(will("will", "gone")), ..connect }
}

// Conformance v5: 3.14.1-1, 3.6.1-1, 3.14.4-1, 3.14.4-2, 4.13.1-1
#[tokio::test]
async fn flag_bits_are_checked() {
    let broker = TestBroker::start().await;
    for first in [0x60, 0x63, 0x6a, 0xe1, 0xe8, 0x41, 0x51, 0x71, 0xc1] {
        let body = if first & 0xe0 == 0xe0 || first == 0xc1 { "" } else { "00 01" };
        told(&broker, &frame(first, body), ReasonCode::MalformedPacket).await;
    }
}

// Conformance v5: 3.4.2-1, 3.5.2-1, 3.6.2-1, 3.7.2-1, 3.14.2-1
#[tokio::test]
async fn reason_codes_of_other_packets_end_the_connection() {
    let broker = TestBroker::start().await;
    // A code of another packet; one that only a server sends; one that nobody sends.
    for (first, body) in [
        (0x40, "00 01 8b"),
        (0x50, "00 01 92"),
        (0x62, "00 01 10"),
        (0x70, "00 01 80"),
        (0xe0, "8d"),
        (0xe0, "03"),
    ] {
        told(&broker, &frame(first, body), ReasonCode::ProtocolError).await;
    }
}

// Conformance v5: 3.14.2-2, 3.14.4-1, 3.14.4-2, 4.13.1-1, 4.13.2-1, 3.14.2-1
#[tokio::test]
async fn whenever_the_server_ends_a_connection_it_says_why() {
    let mut config = config();
    config.limits.max_packet_size = weir::config::ByteCount::kib(2);
    config.limits.receive_maximum = 1;
    let broker = TestBroker::start_with(config, &memory()).await;
    for (bytes, reason) in [
        (wire("36 00"), ReasonCode::MalformedPacket),
        (wire("30 ff ff ff ff"), ReasonCode::MalformedPacket),
        (wire("20 03 00 00 00"), ReasonCode::ProtocolError),
        (wire("30 81 10"), ReasonCode::PacketTooLarge),
        (wire("30 04 00 01 '#' 00"), ReasonCode::TopicNameInvalid),
        (wire("30 07 00 01 't' 03 23 ff ff"), ReasonCode::TopicAliasInvalid),
        (wire("34 06 00 01 't' 00 01 00 34 06 00 01 't' 00 02 00"), ReasonCode::ReceiveMaximumExceeded),
    ] {
        let mut client = broker.clean("").await;
        client.send_bytes(&bytes).await;
        let rest = client.rest().await;
        let last = rest.last();
        // The client's decoder takes no session expiry from a server.
        assert!(
            matches!(last, Some(Packet::Disconnect(disconnect)) if disconnect.reason == reason),
            "{bytes:x?}: {rest:?}"
        );
    }
    let quiet = Connect { keep_alive: 1, ..clean("quiet", V5) };
    broker.connect(quiet).await.told(ReasonCode::KeepAliveTimeout).await;
    let mut old = broker.clean("c").await;
    let mut new = broker.clean("c").await;
    old.told(ReasonCode::SessionTakenOver).await;
    broker.begin_stop();
    new.told(ReasonCode::ServerShuttingDown).await;
}

// Conformance v5: 3.1.2-8, 3.1.2-10, 3.14.4-3
#[tokio::test]
async fn a_will_is_published_unless_the_client_says_goodbye() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.subscriber("watcher", "will", AtLeastOnce).await;
    for connect in [clean("c", V5), persistent("c", V5)] {
        broker.connect(with_will(connect.clone())).await.disconnect().await;
        watcher.quiet().await;
        for reason in [ReasonCode::DisconnectWithWill, ReasonCode::UnspecifiedError] {
            let client = broker.connect(with_will(connect.clone())).await;
            client.disconnect_with(reason, None).await;
            assert_eq!(text(&watcher.take().await), "gone");
        }
        broker.connect(with_will(connect.clone())).await.vanish();
        watcher.take().await;
        let mut client = broker.connect(with_will(connect.clone())).await;
        client.send_bytes(&wire("00 00")).await;
        watcher.take().await;
        // It is published once, and the next connection has none.
        broker.connect(connect).await.vanish();
        watcher.quiet().await;
    }
}

// Conformance v5: 3.1.2-14, 3.1.2-15
#[tokio::test]
async fn a_will_is_retained_if_it_says_so() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.subscriber("watcher", "will", AtLeastOnce).await;
    for retain in [false, true] {
        let mut connect = with_will(clean("c", V5));
        connect.will.as_mut().unwrap().retain = retain;
        broker.connect(connect).await.vanish();
        assert!(!watcher.take().await.header.retain);
        broker.metric_reaches("weir_retained_messages", f64::from(u8::from(retain))).await;
        let mut late = broker.subscriber("late", "will", AtLeastOnce).await;
        if retain {
            assert!(late.take().await.header.retain);
        }
        late.synced().await;
        late.quiet().await;
    }
}

// Conformance v5: 3.1.2-8, 3.1.3-9
#[tokio::test]
async fn a_delayed_will_follows_the_end_of_the_session_and_not_a_return() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.subscriber("watcher", "will", AtLeastOnce).await;
    let delayed = |connect: Connect| {
        let mut connect = with_will(connect);
        connect.will.as_mut().unwrap().delay_interval = 3600;
        connect
    };
    // The session ends with the connection: so does the delay.
    broker.connect(delayed(clean("c", V5))).await.vanish();
    watcher.take().await;
    // A DISCONNECT that ends the session ends the delay too.
    let client = broker.connect(delayed(persistent("c", V5))).await;
    client.disconnect_with(ReasonCode::DisconnectWithWill, Some(0)).await;
    watcher.take().await;
    // A clean start ends the old session.
    broker.connect(delayed(persistent("c", V5))).await.vanish();
    watcher.quiet().await;
    let anew = Connect { clean_start: true, ..persistent("c", V5) };
    broker.connect(anew).await.disconnect().await;
    watcher.take().await;
    // A return in time cancels it, also when it is a takeover.
    broker.connect(delayed(persistent("c", V5))).await.vanish();
    let _old = broker.connect(delayed(persistent("c", V5))).await;
    broker.connect(persistent("c", V5)).await.disconnect().await;
    watcher.quiet().await;
}

async fn session_is_there(broker: &TestBroker, id: &str) -> bool {
    let (client, connack) = broker.connack(persistent(id, V5)).await;
    client.disconnect().await;
    connack.session_present
}

// Conformance v5: 3.1.2-23, 4.1.0-2
#[tokio::test]
async fn a_session_lasts_as_long_as_the_client_said_last() {
    let broker = TestBroker::start().await;
    let expiring = |seconds| Connect { session_expiry_interval: seconds, ..persistent("c", V5) };
    for (at_connect, at_disconnect, there) in [
        (None, None, false),
        (Some(0), None, false),
        (Some(3600), None, true),
        (Some(u32::MAX), None, true),
        (Some(3600), Some(0), false),
        (Some(1), Some(3600), true),
    ] {
        let client = broker.connect(expiring(at_connect)).await;
        client.disconnect_with(ReasonCode::Success, at_disconnect).await;
        assert_eq!(session_is_there(&broker, "c").await, there, "{at_connect:?} {at_disconnect:?}");
        broker.connect(clean("c", V5)).await.disconnect().await;
    }
    broker.connect(expiring(Some(1))).await.vanish();
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(!session_is_there(&broker, "c").await);
    // One that was to end with its connection cannot be made to last.
    let mut client: Client = broker.connect(expiring(None)).await;
    client.send_bytes(&frame(0xe0, "00 05 11 00 00 00 01")).await;
    client.told(ReasonCode::ProtocolError).await;
}
