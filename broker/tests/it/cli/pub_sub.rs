//! `weir pub` and `weir sub`.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use weir_codec::{
    AckProperties, ConnAck, MessageProperties, Packet, PacketId, ProtocolVersion, Publish, PublishHeader,
    QoS, ReasonCode, SubAck,
};
use weir_topic::TopicName;

use super::peer::{Listening, LittleBroker, Peer, ack};
use super::weir;

fn message(qos: QoS, packet_id: u16, payload: &'static str, properties: &[(&str, &str)]) -> Packet {
    let user_properties = properties.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Packet::Publish(Box::new(Publish {
        header: PublishHeader { qos, packet_id: PacketId::new(packet_id), ..PublishHeader::default() },
        topic: Some(TopicName::parse("sensor/1/data").unwrap()),
        payload: Bytes::from_static(payload.as_bytes()),
        properties: MessageProperties { user_properties, ..MessageProperties::default() },
    }))
}

/// Answers the SUBSCRIBE that comes next, and returns its user properties.
async fn grant(peer: &mut Peer, reason: ReasonCode, said: Option<&str>) -> Vec<(String, String)> {
    let Some(Packet::Subscribe(subscribe)) = peer.recv().await else { panic!("not a SUBSCRIBE") };
    let answer = SubAck {
        packet_id: subscribe.packet_id,
        reasons: vec![reason; subscribe.filters.len()],
        properties: AckProperties { reason_string: said.map(Into::into), ..AckProperties::default() },
    };
    peer.send(&Packet::SubAck(Box::new(answer))).await;
    subscribe.user_properties.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

#[tokio::test]
async fn nothing_listens() {
    let listening = Listening::start().await;
    let url = listening.url();
    drop(listening);
    for args in [["pub", "a", "b"], ["sub", "a", "-q0"]] {
        let [command, first, second] = args;
        let failure = weir(&[command, first, second, "--url", &url], "").await.failure();
        assert!(failure.contains("no broker answers at 127.0.0.1:"), "{failure}");
        assert!(failure.contains("start one with `weir serve`"), "{failure}");
    }
}

#[tokio::test]
async fn a_publish_carries_what_the_flags_say() {
    let listening = Listening::start().await;
    let url = listening.url();
    let args =
        ["pub", "a/b", "hello", "-q2", "-r", "-P", "k=v=w", "--expiry", "9", "--id", "c1", "--url", &url];
    let server = async {
        let (mut peer, connect) = listening.connected(ConnAck::default()).await;
        assert_eq!(connect.client_id, "c1");
        let publish = peer.recv_publish().await;
        let packet_id = publish.header.packet_id.unwrap();
        peer.send(&Packet::PubRec(ack(packet_id, ReasonCode::Success))).await;
        peer.recv().await;
        peer.send(&Packet::PubComp(ack(packet_id, ReasonCode::Success))).await;
        assert_eq!(peer.recv().await, Some(Packet::Disconnect(Box::default())));
        publish
    };
    let (finished, publish) = tokio::join!(weir(&args, ""), server);
    finished.output();
    assert_eq!(publish.topic.unwrap().as_str(), "a/b");
    assert_eq!(publish.payload, "hello");
    assert_eq!((publish.header.qos, publish.header.retain), (QoS::ExactlyOnce, true));
    assert_eq!(publish.header.message_expiry_interval, Some(9));
    assert_eq!(publish.properties.user_properties, [("k".into(), "v=w".into())]);
}

#[tokio::test]
async fn lines_files_and_repeats() {
    let listening = Listening::start().await;
    let url = listening.url();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("message");
    std::fs::write(&path, b"of\nfile").unwrap();
    let path = path.to_str().unwrap();
    let cases: [(&[&str], &str, &[&str]); 4] = [
        (&["--stdin-lines"], "one\n\ntwo", &["one", "", "two"]),
        (&["--file", path, "--repeat", "2"], "", &["of\nfile", "of\nfile"]),
        (&["--file", "-"], "of\ninput\n", &["of\ninput\n"]),
        (&["", "-V", "3.1.1"], "", &[""]),
    ];
    for (flags, input, expected) in cases {
        let args = [&["pub", "t", "--url", &url], flags].concat();
        let server = async {
            let (mut peer, _) = listening.connected(ConnAck::default()).await;
            let mut payloads = Vec::new();
            while let Some(packet) = peer.recv().await {
                if let Packet::Publish(publish) = packet {
                    let packet_id = publish.header.packet_id.unwrap();
                    peer.send(&Packet::PubAck(ack(packet_id, ReasonCode::Success))).await;
                    payloads.push(publish.payload);
                }
            }
            payloads
        };
        let (finished, payloads) = tokio::join!(weir(&args, input), server);
        finished.output();
        assert_eq!(payloads, expected, "{flags:?}");
    }
}

#[tokio::test]
async fn a_refused_publish_is_a_failure_with_its_reason() {
    let listening = Listening::start().await;
    let url = listening.url();
    let args = ["pub", "jobs", "--stdin-lines", "--url", &url];
    let server = async {
        let (mut peer, _) = listening.connected(ConnAck::default()).await;
        for reason in [ReasonCode::Success, ReasonCode::QuotaExceeded, ReasonCode::Success] {
            let mut answer = ack(peer.recv_publish().await.header.packet_id.unwrap(), reason);
            let said = AckProperties {
                reason_string: Some("queue `jobs` is full".into()),
                ..AckProperties::default()
            };
            answer.properties = reason.is_error().then(|| Box::new(said));
            peer.send(&Packet::PubAck(answer)).await;
        }
    };
    let (finished, ()) = tokio::join!(weir(&args, "1\n2\n3\n"), server);
    let failure = finished.failure();
    assert!(
        failure.contains("publish to `jobs` refused: QuotaExceeded (0x97): queue `jobs` is full"),
        "{failure}"
    );
    assert!(failure.contains("1 of 3 messages were not published"), "{failure}");
}

#[tokio::test]
async fn command_lines_that_make_no_sense() {
    for (args, expected) in [
        (&["pub", "a"][..], "<MESSAGE>"),
        (&["pub", "a", "b", "--stdin-lines"], "cannot be used with"),
        (&["pub", "a", "b", "-q", "3"], "allowed: 0, 1, 2"),
        (&["sub"], "<FILTER>"),
        (&["sub", "a", "--persistent"], "--id"),
        (&["sub", "a", "--url", "tcp://x"], "allowed: mqtt://HOST[:PORT], mqtts://"),
    ] {
        let finished = weir(args, "").await;
        assert_eq!(finished.code, 2, "{args:?}: {finished:?}");
        assert!(finished.stderr.contains(expected), "{args:?}: {finished:?}");
    }
    for (args, expected) in [
        (["pub", "a/+", "b", "-q0", "-r"], "topic `a/+`"),
        (["pub", "a", "-Pk=v", "-V3.1.1", "b"], "--property needs MQTT 5"),
        (["sub", "a", "--offset=earliest", "-V3.1.1", "-q0"], "need MQTT 5"),
    ] {
        let failure = weir(&[&args[..], &["--url", "mqtt://127.0.0.1:1"]].concat(), "").await.failure();
        assert!(failure.contains(expected), "{args:?}: {failure}");
    }
}

#[tokio::test]
async fn subscribers_print_and_then_acknowledge() {
    let listening = Listening::start().await;
    let url = listening.url();
    let format = "{topic}|{payload}|{queue}|{delivery-count}";
    let args = ["sub", "$queue/traffic", "-n2", "--format", format, "--url", &url];
    let server = async {
        let (mut peer, connect) = listening.connected(ConnAck::default()).await;
        assert!(connect.clean_start);
        assert!(connect.client_id.starts_with("weir-sub-"));
        assert_eq!(grant(&mut peer, ReasonCode::GrantedQoS1, None).await, []);
        for packet_id in [1, 2, 3] {
            let properties = [("queue", "traffic"), ("delivery-count", "1")];
            peer.send(&message(QoS::AtLeastOnce, packet_id, "hi", &properties)).await;
        }
        let mut acknowledged = Vec::new();
        while let Some(packet) = peer.recv().await {
            match packet {
                Packet::PubAck(ack) => acknowledged.push(ack.packet_id.get()),
                other => assert_eq!(other, Packet::Disconnect(Box::default())),
            }
        }
        assert_eq!(acknowledged, [1, 2], "what was not asked for is left to others");
    };
    let (finished, ()) = tokio::join!(weir(&args, ""), server);
    assert_eq!(finished.output(), "sensor/1/data|hi|traffic|1\n".repeat(2));
}

#[tokio::test]
async fn a_bounded_replay_ends_with_the_stream() {
    let listening = Listening::start().await;
    let url = listening.url();
    let args = [
        "sub",
        "$stream/t",
        "--offset",
        "earliest",
        "--until",
        "latest",
        "-P",
        "a=b",
        "--json",
        "--url",
        &url,
    ];
    let server = async {
        let (mut peer, _) = listening.connected(ConnAck::default()).await;
        let asked = grant(&mut peer, ReasonCode::GrantedQoS1, None).await;
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            asked,
            [pair("a", "b"), pair("stream-offset", "earliest"), pair("stream-until", "latest")]
        );
        peer.send(&message(QoS::AtMostOnce, 0, "hi", &[("offset", "0")])).await;
        let mut end = message(QoS::AtMostOnce, 0, "", &[("stream-end", "true")]);
        if let Packet::Publish(publish) = &mut end {
            publish.topic = Some(TopicName::parse("$stream/t").unwrap());
        }
        peer.send(&end).await;
        while peer.recv().await.is_some() {}
    };
    let (finished, ()) = tokio::join!(weir(&args, ""), server);
    let line: serde_json::Value = serde_json::from_str(&finished.output()).unwrap();
    assert_eq!(line["payload"], "hi");
    assert_eq!(line["properties"], serde_json::json!([["offset", "0"]]));
}

#[tokio::test]
async fn a_refused_subscription_is_a_failure_and_a_waiting_one_is_said() {
    let listening = Listening::start().await;
    let url = listening.url();
    let args = ["sub", "$queue/nope", "-n1", "--url", &url];
    let server = async {
        let (mut peer, _) = listening.connected(ConnAck::default()).await;
        grant(&mut peer, ReasonCode::TopicFilterInvalid, Some("no such name")).await;
        while peer.recv().await.is_some() {}
    };
    let (finished, ()) = tokio::join!(weir(&args, ""), server);
    let failure = finished.failure();
    assert!(
        failure.contains("subscription to `$queue/nope` refused: TopicFilterInvalid (0x8f)"),
        "{failure}"
    );
    assert!(failure.contains("no such name"), "{failure}");

    let server = async {
        let (mut peer, _) = listening.connected(ConnAck::default()).await;
        grant(&mut peer, ReasonCode::Success, Some("queue `nope` does not exist yet")).await;
        peer.send(&message(QoS::AtMostOnce, 0, "hi", &[])).await;
        while peer.recv().await.is_some() {}
    };
    let (finished, ()) = tokio::join!(weir(&args, ""), server);
    assert!(finished.stderr.contains("queue `nope` does not exist yet"), "{finished:?}");
    assert_eq!(finished.output(), "sensor/1/data hi\n");
}

#[tokio::test]
async fn sessions_are_kept_when_asked_for() {
    let listening = Listening::start().await;
    let url = listening.url();
    for (version, expiry) in [(ProtocolVersion::V5, Some(3600)), (ProtocolVersion::V311, None)] {
        let flag = if version == ProtocolVersion::V5 { "-V5" } else { "-V3.1.1" };
        let args = ["sub", "a", "--persistent", "--id", "me", "--for", "1ms", "--url", &url, flag];
        let server = async {
            let (mut peer, connect) = listening.connected(ConnAck::default()).await;
            assert_eq!((connect.version, connect.clean_start), (version, false));
            assert_eq!(connect.session_expiry_interval, expiry);
            grant(&mut peer, ReasonCode::GrantedQoS1, None).await;
            while peer.recv().await.is_some() {}
        };
        let (finished, ()) = tokio::join!(weir(&args, ""), server);
        assert_eq!(finished.output(), "");
    }
}

/// A subscriber that runs until it is stopped.
struct Subscriber(Child);

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_subscriber_in_peace() {
    let listening = Listening::start().await;
    let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["sub", "a", "-q0", "--url", &listening.url()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut stderr = child.stderr.take().unwrap();
    let mut subscriber = Subscriber(child);
    let (mut peer, _) = listening.connected(ConnAck::default()).await;
    grant(&mut peer, ReasonCode::Success, None).await;
    peer.send(&message(QoS::AtMostOnce, 0, "first", &[])).await;
    // A line is there without waiting for a second one.
    let line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        line
    });
    assert_eq!(line.await.unwrap(), "sensor/1/data first\n");
    peer.send(&message(QoS::AtMostOnce, 0, "second", &[])).await;
    while peer.recv().await.is_some() {}
    let ended = tokio::task::spawn_blocking(move || {
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        (subscriber.0.wait().unwrap().code(), said)
    });
    assert_eq!(ended.await.unwrap(), (Some(0), String::new()));
}

#[tokio::test]
async fn pub_and_sub_meet_at_a_broker() {
    let broker = LittleBroker::start().await;
    let url = broker.url();
    let publish = async {
        // Until the subscriber is there.
        loop {
            weir(&["pub", "a/b", "hello", "--url", &url], "").await.output();
        }
    };
    let args = ["sub", "a/+", "-n1", "--url", &url];
    tokio::select! {
        finished = weir(&args, "") => assert_eq!(finished.output(), "a/b hello\n"),
        () = publish => {}
    }
}
