//! Wills: after which ends they are published, how, and that DISCONNECT withdraws them.

use std::time::Duration;

use weir_codec::{Connect, Will};
use weir_env::clock::Clock;

use super::super::TestBroker;
use super::super::client::{AtLeastOnce, AtMostOnce, ExactlyOnce, V311, clean, persistent, text};
use super::with_will;

// Conformance v311: 3.1.2-8, 3.1.2-10, 3.14.4-3
#[tokio::test]
async fn a_will_follows_every_end_but_disconnect() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.watcher().await;
    for connect in [clean("c", V311), persistent("c", V311)] {
        // Cut off.
        broker.connect(with_will(connect.clone())).await.vanish();
        assert_eq!(text(&watcher.take().await), "gone");
        // Taken over.
        let old = broker.connect(with_will(connect.clone())).await;
        let new = broker.connect(connect.clone()).await;
        assert_eq!(text(&watcher.take().await), "gone");
        drop(old);
        // The new one has none, and what is published or withdrawn does not come again.
        new.vanish();
        broker.connect(with_will(connect.clone())).await.disconnect().await;
        broker.connect(connect.clone()).await.vanish();
        broker.connect(connect).await.disconnect().await;
        watcher.quiet().await;
    }
    // For breaking the protocol, before or behind what it says in order.
    broker.breaks(&mut watcher, vec![0xff]).await;
    broker.breaks(&mut watcher, vec![0x36, 0]).await;
    // DISCONNECT counts even if the connection is cut off with it.
    let mut raw = broker.raw_after("10: `MQTT` 04 06 00 00 `c` `will` `gone`", "20: 00 00").await;
    raw.send("e0:").await;
    drop(raw);
    // What follows it does not.
    let mut raw = broker.raw_after("10: `MQTT` 04 06 00 00 `c` `will` `gone`", "20: 00 00").await;
    raw.send("e0:; ff:").await;
    raw.ends_silently("after DISCONNECT").await;
    watcher.quiet().await;
}

/// Its DISCONNECT is in the socket when its next connection takes the session over.
// Conformance v311: 3.1.2-10, 3.14.4-3
#[tokio::test]
async fn who_says_goodbye_and_comes_back_at_once_has_withdrawn_its_will() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.watcher().await;
    for _ in 0..100 {
        let mut raw = broker.raw_after("10: `MQTT` 04 06 00 00 `c` `will` `gone`", "20: 00 00").await;
        raw.send("e0:").await;
    }
    watcher.quiet().await;
}

// Conformance v311: 3.1.2-12
#[tokio::test]
async fn who_has_no_will_leaves_none() {
    let broker = TestBroker::start().await;
    let mut all = broker.old_subscriber("all", "#", AtLeastOnce).await;
    broker.connect(clean("c", V311)).await.vanish();
    let mut raw = broker.raw_clean("c").await;
    raw.send("00:").await;
    raw.ends_silently("a packet that does not exist").await;
    all.quiet().await;
}

// Conformance v311: 3.1.2-9, 3.1.2-14, 3.1.2-16, 3.1.2-17
#[tokio::test]
async fn a_will_is_published_as_it_says() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.old_subscriber("watcher", "will", ExactlyOnce).await;
    for qos in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
        for retain in [false, true] {
            // What is kept from before goes away.
            broker.publish("will", &[]).await;
            let mut client = broker.old("clears").await;
            client.post(super::super::client::retained(AtLeastOnce, 1, "will", "")).await;
            client.pubacked(1).await;
            watcher.take().await;
            let connect = with_will(clean("c", V311));
            let will = connect.will.map(|will| Will { qos, retain, ..will });
            broker.connect(Connect { will, ..clean("c", V311) }).await.vanish();
            let message = watcher.message().await;
            assert_eq!((text(&message), message.header.qos, message.header.retain), ("gone", qos, false));
            match qos {
                AtMostOnce => {}
                AtLeastOnce => watcher.puback(&message, weir_codec::ReasonCode::Success).await,
                ExactlyOnce => watcher.receive_twice_acknowledged(&message).await,
            }
            broker.metric_reaches("weir_retained_messages", f64::from(u8::from(retain))).await;
            let mut later = broker.old_subscriber("later", "will", ExactlyOnce).await;
            if retain {
                let kept = later.message().await;
                assert_eq!((text(&kept), kept.header.qos, kept.header.retain), ("gone", qos, true));
                if kept.header.qos == ExactlyOnce {
                    later.receive_twice_acknowledged(&kept).await;
                }
            }
            later.synced().await;
        }
    }
}

/// One and a half times the interval, in which any packet counts.
// Conformance v311: 3.1.2-24, 3.1.2-8
#[tokio::test]
async fn a_silent_client_is_cut_off_and_its_will_published() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.watcher().await;
    let clock = Clock::system();
    let connect = Connect { keep_alive: 1, ..with_will(clean("c", V311)) };
    let mut client = broker.connect(connect.clone()).await;
    let mut lasting = broker.connect(Connect { keep_alive: 0, ..with_will(clean("lasting", V311)) }).await;
    let since = clock.now();
    client.ended().await;
    assert!(clock.now() - since >= Duration::from_millis(1400), "{:?}", clock.now() - since);
    assert_eq!(text(&watcher.take().await), "gone");
    lasting.synced().await;
}
