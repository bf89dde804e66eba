//! The other side of a client: one that a test scripts packet by packet, and a little broker that forwards.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use weir::client::{ConnectOptions, Endpoint};
use weir_codec::{
    Ack, ConnAck, Connect, Decoder, DecoderConfig, Packet, PacketId, ProtocolVersion, Publish, QoS,
    ReasonCode, Role, SubAck, encode,
};
use weir_topic::TopicFilter;

/// A server whose every packet the test sends and receives by itself.
pub(super) struct Peer {
    stream: TcpStream,
    decoder: Decoder,
    input: BytesMut,
    version: ProtocolVersion,
}

/// Where a [`Peer`] listens.
pub(super) struct Listening(TcpListener);

impl Listening {
    pub(super) async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        let addr = self.0.local_addr().unwrap();
        Endpoint::tcp(addr.ip().to_string(), addr.port())
    }

    pub(super) fn url(&self) -> String {
        format!("mqtt://{}", self.0.local_addr().unwrap())
    }

    /// The next connection, before its CONNECT is read.
    pub(super) async fn accept(&self) -> Peer {
        let (stream, _) = self.0.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let config = DecoderConfig { max_packet_size: 32 << 20, role: Role::Server };
        Peer { stream, decoder: Decoder::new(config), input: BytesMut::new(), version: ProtocolVersion::V5 }
    }

    /// The next connection, its CONNECT answered by `conn_ack`.
    pub(super) async fn connected(&self, conn_ack: ConnAck) -> (Peer, Connect) {
        let mut peer = self.accept().await;
        let Some(Packet::Connect(connect)) = peer.recv().await else { panic!("not a CONNECT") };
        peer.version = connect.version;
        peer.send(&Packet::ConnAck(Box::new(conn_ack))).await;
        (peer, *connect)
    }
}

impl Peer {
    /// The next packet; `None` at the end of the connection.
    pub(super) async fn recv(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.input).unwrap() {
                return Some(packet);
            }
            if self.stream.read_buf(&mut self.input).await.unwrap() == 0 {
                return None;
            }
        }
    }

    pub(super) async fn send(&mut self, packet: &Packet) {
        let mut bytes = BytesMut::new();
        encode(packet, self.version, &mut bytes).unwrap();
        self.send_bytes(&bytes).await;
    }

    pub(super) async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(super) async fn recv_publish(&mut self) -> Publish {
        match self.recv().await {
            Some(Packet::Publish(publish)) => *publish,
            other => panic!("{other:?} is not a PUBLISH"),
        }
    }
}

/// An acknowledgement with nothing but its reason.
pub(super) fn ack(packet_id: PacketId, reason: ReasonCode) -> Ack {
    Ack { packet_id, reason, properties: None }
}

/// Options for tests: a named client.
pub(super) fn options() -> ConnectOptions {
    ConnectOptions { client_id: "test".into(), ..ConnectOptions::default() }
}

/// A broker of a hundred lines: it grants every subscription and forwards every publish, at QoS 0 and 1.
pub(super) struct LittleBroker {
    pub(super) addr: SocketAddr,
    _tasks: TaskTracker,
}

#[derive(Clone, Default)]
struct Subscribers(Arc<Mutex<Vec<Subscriber>>>);

#[derive(Clone)]
struct Subscriber {
    filter: TopicFilter,
    qos: QoS,
    publish_tx: mpsc::Sender<(QoS, Publish)>,
}

impl LittleBroker {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let tasks = TaskTracker::new();
        let (subscribers, connections) = (Subscribers::default(), tasks.clone());
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, subscribers.clone()));
            }
        });
        Self { addr, _tasks: tasks }
    }

    pub(super) fn url(&self) -> String {
        format!("mqtt://{}", self.addr)
    }
}

async fn serve(mut stream: TcpStream, subscribers: Subscribers) {
    let config = DecoderConfig { max_packet_size: 1 << 20, role: Role::Server };
    let (mut decoder, mut input, mut output) = (Decoder::new(config), BytesMut::new(), BytesMut::new());
    let (publish_tx, mut publish_rx) = mpsc::channel::<(QoS, Publish)>(10_000);
    let mut next_id = 0_u16;
    loop {
        while let Some(packet) = decoder.decode(&mut input).unwrap() {
            let version = decoder.version().unwrap();
            let answer = match packet {
                Packet::Connect(_) => Some(Packet::ConnAck(Box::default())),
                Packet::Subscribe(subscribe) => {
                    let filters = subscribe.filters.iter();
                    subscribers.0.lock().extend(filters.map(|f| Subscriber {
                        filter: TopicFilter::parse(f.filter.clone()).unwrap(),
                        qos: f.options.qos.min(QoS::AtLeastOnce),
                        publish_tx: publish_tx.clone(),
                    }));
                    let reasons = vec![ReasonCode::Success; subscribe.filters.len()];
                    let answer =
                        SubAck { packet_id: subscribe.packet_id, reasons, properties: Default::default() };
                    Some(Packet::SubAck(Box::new(answer)))
                }
                Packet::Publish(publish) => {
                    let answer =
                        publish.header.packet_id.map(|id| Packet::PubAck(ack(id, ReasonCode::Success)));
                    forward(&subscribers, &publish).await;
                    answer
                }
                Packet::PingReq => Some(Packet::PingResp),
                Packet::Disconnect(_) => return,
                _ => None,
            };
            if let Some(answer) = answer {
                encode(&answer, version, &mut output).unwrap();
            }
        }
        if stream.write_all_buf(&mut output).await.is_err() {
            return;
        }
        tokio::select! {
            read = stream.read_buf(&mut input) => if !read.is_ok_and(|n| n > 0) { return },
            Some((qos, mut publish)) = publish_rx.recv() => {
                publish.header.qos = qos;
                publish.header.packet_id = (qos > QoS::AtMostOnce).then(|| {
                    next_id = next_id.checked_add(1).unwrap_or(1);
                    PacketId::new(next_id).unwrap()
                });
                let version = decoder.version().unwrap();
                encode(&Packet::Publish(Box::new(publish)), version, &mut output).unwrap();
            }
        }
    }
}

async fn forward(subscribers: &Subscribers, publish: &Publish) {
    let topic = publish.topic.as_ref().unwrap();
    let matching: Vec<Subscriber> =
        subscribers.0.lock().iter().filter(|subscriber| subscriber.filter.matches(topic)).cloned().collect();
    for Subscriber { qos, publish_tx, .. } in matching {
        // A subscriber that is gone misses it.
        let _ = publish_tx.send((qos.min(publish.header.qos), publish.clone())).await;
    }
}
