//! Arbitrary input never panics and never goes beyond a bound, and an idle session is small.

use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;
use smallvec::SmallVec;
use weir_codec::*;
use weir_session::*;

use crate::script::{message, origin};

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_packets_in_any_order(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        weir_session::fuzz::run(&data, origin());
    }
}

/// What a fuzzer has found worth keeping: see `broker/fuzz/README.md`.
#[test]
fn the_corpus_of_the_fuzzer_is_safe() {
    let mut inputs = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/session")).unwrap() {
        let path = entry.unwrap().path();
        let data = std::fs::read(&path).unwrap();
        assert!(
            std::panic::catch_unwind(|| weir_session::fuzz::run(&data, origin())).is_ok(),
            "{}",
            path.display()
        );
        inputs += 1;
    }
    assert!(inputs > 100, "{inputs} inputs");
}

fn accepted(connect: &Connect) -> (Session<u64>, Instant) {
    let now = origin();
    let mut session = Session::accept(connect, None, &Limits::default(), None, now);
    while session.poll_transmit().is_some() {}
    (session, now)
}

fn qos_0(message: &Arc<Message>) -> Delivery<u64> {
    Delivery {
        message: Arc::clone(message),
        qos: QoS::AtMostOnce,
        retain: false,
        subscription_identifiers: SmallVec::new(),
        extra: Vec::new(),
        expires_at: None,
        resumable: false,
        store_release: false,
        tag: 0,
    }
}

#[test]
fn an_idle_session_is_small() {
    let size = size_of::<Session<u64>>();
    assert!(size < 600, "{size} bytes");
}

#[test]
fn deliveries_that_nobody_writes_are_refused_at_a_bound() {
    let (mut session, now) = accepted(&Connect::default());
    let message = Arc::new(message("t", "x"));
    let taken = (0..100_000).take_while(|_| session.deliver(qos_0(&message), now).is_ok()).count();
    assert_eq!(taken, 1024);
    assert!(!session.can_send() && !session.wants_read());
    let refused = session.deliver(qos_0(&message), now).expect_err("the queue is full");
    assert_eq!(refused.why, Refusal::Busy);
    assert!(session.poll_transmit().is_some());
    assert!(session.can_send() && session.wants_read());
}

#[test]
fn pings_that_nobody_answers_stop_the_reading() {
    let (mut session, now) = accepted(&Connect::default());
    let mut read = 0;
    while session.wants_read() {
        session.handle_packet(Packet::PingReq, now).unwrap();
        read += 1;
    }
    assert_eq!(read, 1024);
}

#[test]
fn a_client_that_never_acknowledges_gets_no_more_than_the_limit() {
    let (mut session, now) = accepted(&Connect::default());
    let message = Arc::new(message("t", "x"));
    let mut taken = 0;
    while session.deliver(Delivery { qos: QoS::AtLeastOnce, ..qos_0(&message) }, now).is_ok() {
        while session.poll_transmit().is_some() {}
        taken += 1;
    }
    assert_eq!((taken, session.inflight()), (Limits::default().inflight_maximum.get().into(), 1024));
}

// Conformance v5: 2.2.1-4, 4.3.2-1, 4.3.3-1
#[test]
fn all_65535_packet_ids_can_be_in_flight() {
    let now = origin();
    let limits = Limits { inflight_maximum: std::num::NonZeroU16::MAX, ..Limits::default() };
    let mut session = Session::<u64>::accept(&Connect::default(), None, &limits, None, now);
    for id in 1..=u16::MAX {
        assert_eq!(session.reserve_packet_id(), PacketId::new(id));
    }
    assert_eq!(session.reserve_packet_id(), None);
    assert!(session.forget(PacketId::new(700).unwrap()));
    assert_eq!(session.reserve_packet_id(), PacketId::new(700));
}

#[test]
fn every_packet_that_leaves_can_be_encoded() {
    let connect = Connect { topic_alias_maximum: 4, ..Connect::default() };
    let (mut session, now) = accepted(&connect);
    let message = Arc::new(message("topic/long/enough", "x"));
    let mut lens = Vec::new();
    for _ in 0..2 {
        session.deliver(qos_0(&message), now).expect("taken");
        let Some(Transmit::Publish { header, topic_on_wire, message, extra }) = session.poll_transmit()
        else {
            panic!("a publish is due");
        };
        let topic = if topic_on_wire { message.topic.as_str() } else { "" };
        let mut buffer = bytes::BytesMut::new();
        encode_publish(
            &mut buffer,
            session.version(),
            &header,
            topic,
            &message.properties,
            &extra,
            &message.payload,
        )
        .unwrap();
        lens.push(buffer.len());
    }
    assert_eq!(lens, [26, 9], "the alias alone takes the place of the topic");
}
