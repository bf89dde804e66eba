//! `weir bench`: what it counts is what happened, and it ends.

use serde_json::Value;
use weir_codec::{ConnAck, Packet, ReasonCode};

use super::peer::{Listening, LittleBroker, ack};
use super::{Finished, weir};

fn document(finished: Finished) -> Value {
    serde_json::from_str(&finished.output()).unwrap()
}

#[tokio::test]
async fn scenarios_count_every_message() {
    let broker = LittleBroker::start().await;
    let url = broker.url();
    let open = ["--rate", "1000", "-d", "300ms", "-o", "json", "--url", &url];
    for (args, copies) in [
        (&["bench", "fanout", "-p2", "-c3", "-q0"][..], 3),
        (&["bench", "fanout", "-p2", "-c3", "-q1", "-V3.1.1", "--threads", "2"], 3),
        (&["bench", "latency", "-p5", "-s16"], 1),
    ] {
        let document = document(weir(&[args, &open].concat(), "").await);
        let run = &document["runs"][0];
        assert_eq!(run["sent"].as_u64().unwrap() + run["notSent"].as_u64().unwrap(), 300, "{args:?}: {run}");
        assert_eq!(
            run["received"].as_u64().unwrap(),
            run["sent"].as_u64().unwrap() * copies,
            "{args:?}: {run}"
        );
        for none in ["lost", "receivedAgain", "receivedOfOtherRuns", "refused", "errors"] {
            assert_eq!(run[none], 0, "{args:?} {none}: {run}");
        }
        assert!(run["latency"]["endToEnd"]["maxNanos"].as_u64().unwrap() > 0);
    }
}

#[tokio::test]
async fn closed_loops_and_idle_connections_end() {
    let broker = LittleBroker::start().await;
    let url = broker.url();
    let common = ["-d", "200ms", "-o", "json", "--url", &url];
    for args in [&["-q0"][..], &["-q1"], &["-q0", "-p5", "--under-way", "3"]] {
        let args = [&["bench", "fanout", "-c2", "--rate", "max"], args, &common].concat();
        let run = &document(weir(&args, "").await)["runs"][0];
        assert!(run["sent"].as_u64().unwrap() > 5, "{run}");
        assert_eq!(run["lost"], 0, "{run}");
    }
    let pid = std::process::id().to_string();
    let args = [&["bench", "connect", "-n20", "--broker-pid", &pid][..], &common].concat();
    let run = &document(weir(&args, "").await)["runs"][0];
    assert!(run["connectNanos"].as_u64().unwrap() > 0);
    if cfg!(target_os = "linux") {
        assert!(run["used"]["brokerResidentBytesAfter"].as_u64().unwrap() > 0, "{run}");
    }
    assert_eq!((&run["connected"], &run["errors"]), (&20.into(), &0.into()));
    assert!(run["latency"]["connect"]["p50Nanos"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn the_table_is_for_people() {
    let broker = LittleBroker::start().await;
    let args = ["bench", "latency", "-p1", "-d", "100ms", "--url", &broker.url()];
    let text = weir(&args, "").await.output();
    for part in
        ["latency: 1 pairs, QoS 1, 100 B, 1000 msg/s (open loop)", "P99.9", "publish to arrival", "lost"]
    {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn refused_publishes_are_counted_and_fail_the_run() {
    let listening = Listening::start().await;
    let url = listening.url();
    // A fill has no subscribers: one connection for each half.
    let parts = ["--parts", "fill,replay"];
    let args = ["bench", "stream", "s", "-t", "jobs", "-m5", "-p1", "-o", "json", "--url", &url];
    let args = [&args[..], &parts].concat();
    let server = async {
        for half in [0..2, 2..5] {
            let (mut peer, _) = listening.connected(ConnAck::default()).await;
            for n in half {
                let packet_id = peer.recv_publish().await.header.packet_id.unwrap();
                let reason = if n == 2 { ReasonCode::QuotaExceeded } else { ReasonCode::Success };
                peer.send(&Packet::PubAck(ack(packet_id, reason))).await;
            }
        }
        let (mut peer, _) = listening.connected(ConnAck::default()).await;
        let Some(Packet::Subscribe(subscribe)) = peer.recv().await else { panic!("not a SUBSCRIBE") };
        assert_eq!(subscribe.filters[0].filter, "$stream/s");
        assert_eq!(subscribe.user_properties, [("stream-offset".into(), "earliest".into())]);
        let answer = weir_codec::SubAck {
            packet_id: subscribe.packet_id,
            reasons: vec![ReasonCode::Success],
            properties: weir_codec::AckProperties::default(),
        };
        peer.send(&Packet::SubAck(Box::new(answer))).await;
        while peer.recv().await.is_some() {}
    };
    let (finished, ()) = tokio::join!(weir(&args, ""), server);
    let document: Value = serde_json::from_str(&finished.stdout).unwrap();
    let (fill, read) = (&document["runs"][1], &document["runs"][2]);
    assert_eq!((&fill["sent"], &fill["acknowledged"], &fill["refused"]), (&3.into(), &2.into(), &1.into()));
    assert_eq!((&read["received"], &read["lost"]), (&0.into(), &5.into()));
    let failure = finished.failure();
    assert!(
        failure.contains("1 publishes refused; the first: publish refused: QuotaExceeded (0x97)"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_broken_connection_is_counted_and_fails_the_run() {
    let listening = Listening::start().await;
    let url = listening.url();
    let args = ["bench", "connect", "-n2", "-d", "300ms", "-o", "json", "--url", &url];
    let server = async {
        let (first, _) = listening.connected(ConnAck::default()).await;
        let (mut second, _) = listening.connected(ConnAck::default()).await;
        drop(first);
        while second.recv().await.is_some() {}
    };
    let (finished, ()) = tokio::join!(weir(&args, ""), server);
    assert_eq!(serde_json::from_str::<Value>(&finished.stdout).unwrap()["runs"][0]["errors"], 1);
    let failure = finished.failure();
    assert!(
        failure.contains("1 connections failed; the first: connection closed by the server"),
        "{failure}"
    );
}

#[tokio::test]
async fn loads_that_must_not_be() {
    let failure = weir(&["bench", "fanout", "--url", "mqtt://192.0.2.1"], "").await.failure();
    assert!(
        failure
            .contains("192.0.2.1:1883 is not on this machine; to load it all the same, add --allow-remote")
    );
    let listening = Listening::start().await;
    let url = listening.url();
    drop(listening);
    let failure = weir(&["bench", "latency", "--url", &url], "").await.failure();
    assert!(failure.contains("no broker answers at 127.0.0.1:"), "{failure}");
    for args in [["-d", "11m"], ["--rate", "0"], ["-s", "15"], ["-c", "0"]] {
        assert_eq!(weir(&[&["bench", "fanout"], &args[..]].concat(), "").await.code, 2, "{args:?}");
    }
    let failure = weir(&["bench", "fanout", "-t", "a/+", "--url", &url], "").await.failure();
    assert!(failure.contains("topic `a/+`"), "{failure}");
}
