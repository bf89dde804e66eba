//! Cost of the packets that a busy broker sees most. `cargo bench -p weir-codec`

use bytes::{Bytes, BytesMut};
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use weir_codec::{
    Connect, Decoder, DecoderConfig, MessageProperties, Packet, ProtocolVersion, Publish, PublishHeader,
    Role, encode, encode_publish, publish_len,
};
use weir_topic::TopicName;

const TOPIC: &str = "vehicle/4711/telemetry";
const NO_EXTRA: &[(&str, &str)] = &[];
/// Packets in the buffer that a decoder is given, as a busy connection reads them.
const BATCH: usize = 64;

fn main() {
    divan::main();
}

fn publish(payload_len: usize) -> Packet {
    Packet::Publish(Box::new(Publish {
        header: PublishHeader::default(),
        topic: Some(TopicName::parse(TOPIC).expect("is a topic name")),
        payload: Bytes::from(vec![0x5a; payload_len]),
        properties: MessageProperties::default(),
    }))
}

fn connect() -> Packet {
    Packet::Connect(Box::new(Connect {
        clean_start: true,
        keep_alive: 60,
        client_id: "vehicle-4711".into(),
        username: Some("fleet".into()),
        password: Some(Bytes::from_static(b"correct horse battery staple")),
        session_expiry_interval: Some(3600),
        ..Connect::default()
    }))
}

fn decoder(role: Role) -> Decoder {
    Decoder::new(DecoderConfig { max_packet_size: 1 << 20, role })
}

#[divan::bench(args = [100, 16_384])]
fn decode_publish_qos0(bencher: Bencher<'_, '_>, payload_len: usize) {
    let mut stream = BytesMut::new();
    for _ in 0..BATCH {
        encode(&publish(payload_len), ProtocolVersion::V5, &mut stream).expect("is short");
    }
    let stream = stream.freeze();
    bencher
        .counter(BytesCount::new(stream.len()))
        .counter(divan::counter::ItemsCount::new(BATCH))
        .with_inputs(|| (decoder(Role::Client { version: ProtocolVersion::V5 }), BytesMut::from(&stream[..])))
        .bench_values(|(mut decoder, mut buf)| {
            while let Some(packet) = decoder.decode(&mut buf).expect("is well formed") {
                black_box(packet);
            }
        });
}

#[divan::bench(args = [100, 16_384])]
fn encode_publish_qos0(bencher: Bencher<'_, '_>, payload_len: usize) {
    let (header, properties) = (PublishHeader::default(), MessageProperties::default());
    let payload = vec![0x5a; payload_len];
    let len = publish_len(ProtocolVersion::V5, &header, TOPIC, &properties, NO_EXTRA, payload_len);
    bencher
        .counter(BytesCount::new(len * BATCH))
        .counter(divan::counter::ItemsCount::new(BATCH))
        .with_inputs(|| BytesMut::with_capacity(len * BATCH))
        .bench_values(|mut buf| {
            for _ in 0..BATCH {
                let (header, payload) = (black_box(&header), black_box(&payload));
                encode_publish(&mut buf, ProtocolVersion::V5, header, TOPIC, &properties, NO_EXTRA, payload)
                    .expect("is short");
            }
            buf
        });
}

#[divan::bench]
fn decode_connect(bencher: Bencher<'_, '_>) {
    let mut frame = BytesMut::new();
    encode(&connect(), ProtocolVersion::V5, &mut frame).expect("is short");
    bencher
        .with_inputs(|| (decoder(Role::Server), frame.clone()))
        .bench_values(|(mut decoder, mut buf)| decoder.decode(&mut buf).expect("is well formed"));
}

#[divan::bench]
fn encode_connect(bencher: Bencher<'_, '_>) {
    let packet = connect();
    bencher.with_inputs(|| BytesMut::with_capacity(256)).bench_values(|mut buf| {
        encode(black_box(&packet), ProtocolVersion::V5, &mut buf).expect("is short");
        buf
    });
}
