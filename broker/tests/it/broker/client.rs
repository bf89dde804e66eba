//! A client that does what it is told: any packet out, the next packet in, each with a deadline.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use weir_codec::{
    Ack, ConnAck, Connect, Decoder, DecoderConfig, Disconnect, Message, Packet, PacketId, ProtocolVersion,
    Publish, PublishHeader, QoS, ReasonCode, Role, SubAck, Subscribe, SubscribeFilter, SubscriptionOptions,
    Unsubscribe, UserProperties, Will, encode,
};
use weir_topic::TopicName;

use super::{DEADLINE, TestBroker};

pub(super) use weir_codec::ProtocolVersion::{V5, V311};
pub(super) use weir_codec::QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce};

/// Time in which nothing may come where nothing is expected.
const QUIET: Duration = Duration::from_millis(200);

/// What a client speaks MQTT over.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// One connection.
pub(super) struct Client {
    stream: Box<dyn Io>,
    decoder: Decoder,
    input: BytesMut,
    version: ProtocolVersion,
    next_id: u16,
    /// What came while something else was looked for.
    skipped: VecDeque<Packet>,
}

/// A CONNECT with a clean start and no keep-alive.
pub(super) fn clean(id: &str, version: ProtocolVersion) -> Connect {
    Connect { version, clean_start: true, client_id: id.to_owned().into(), ..Connect::default() }
}

/// A CONNECT of a session that outlives its connection.
pub(super) fn persistent(id: &str, version: ProtocolVersion) -> Connect {
    let expiry = (version == V5).then_some(3600);
    Connect { clean_start: false, session_expiry_interval: expiry, ..clean(id, version) }
}

pub(super) fn will(topic: &str, payload: &str) -> Will {
    Will {
        message: message(topic, payload),
        qos: AtLeastOnce,
        retain: false,
        delay_interval: 0,
        message_expiry_interval: None,
    }
}

fn message(topic: &str, payload: &str) -> Message {
    let topic = TopicName::parse(topic.to_owned()).unwrap();
    Message { topic, payload: Bytes::copy_from_slice(payload.as_bytes()), properties: Default::default() }
}

pub(super) fn id(n: u16) -> PacketId {
    PacketId::new(n).unwrap()
}

/// A PUBLISH; `n` is its packet id if `qos` needs one.
pub(super) fn publish(qos: QoS, n: u16, topic: &str, payload: &str) -> Publish {
    let Message { topic, payload, properties } = message(topic, payload);
    let packet_id = (qos != AtMostOnce).then(|| id(n));
    Publish {
        header: PublishHeader { qos, packet_id, ..PublishHeader::default() },
        topic: Some(topic),
        payload,
        properties,
    }
}

/// The same, retained.
pub(super) fn retained(qos: QoS, n: u16, topic: &str, payload: &str) -> Publish {
    let mut publish = publish(qos, n, topic, payload);
    publish.header.retain = true;
    publish
}

/// The same publish again.
pub(super) fn again(mut publish: Publish) -> Publish {
    publish.header.dup = true;
    publish
}

/// One filter of a SUBSCRIBE.
pub(super) fn filter(filter: &str, qos: QoS) -> SubscribeFilter {
    let options = SubscriptionOptions { qos, ..SubscriptionOptions::default() };
    SubscribeFilter { filter: filter.to_owned().into(), options }
}

pub(super) fn text(publish: &Publish) -> &str {
    std::str::from_utf8(&publish.payload).unwrap()
}

/// The last user property of that name, as readers take it.
pub(super) fn property<'a>(publish: &'a Publish, name: &str) -> Option<&'a str> {
    let of_name = |(n, value): &'a (_, bytestring::ByteString)| {
        let n: &bytestring::ByteString = n;
        (**n == *name).then_some(&**value)
    };
    publish.properties.user_properties.iter().rev().find_map(of_name)
}

pub(super) fn number(publish: &Publish, name: &str) -> u64 {
    property(publish, name).unwrap_or_else(|| panic!("no {name} in {publish:?}")).parse().unwrap()
}

fn ack(n: PacketId, reason: ReasonCode) -> Ack {
    Ack { packet_id: n, reason, properties: None }
}

/// A connection without a CONNECT.
pub(super) async fn open_at(addr: SocketAddr, version: ProtocolVersion) -> Client {
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    Client::over(stream, version)
}

impl TestBroker {
    /// A connection without a CONNECT.
    pub(super) async fn open(&self, version: ProtocolVersion) -> Client {
        open_at(self.addr, version).await
    }

    /// A connection whose CONNECT has been answered, somehow.
    pub(super) async fn connack(&self, connect: Connect) -> (Client, ConnAck) {
        let mut client = self.open(connect.version).await;
        client.send(Packet::Connect(Box::new(connect))).await;
        match client.recv().await {
            Packet::ConnAck(connack) => (client, *connack),
            other => panic!("not a CONNACK: {other:?}"),
        }
    }

    pub(super) async fn connect(&self, connect: Connect) -> Client {
        let (client, connack) = self.connack(connect).await;
        assert_eq!(connack.code, ReasonCode::Success, "{connack:?}");
        client
    }

    /// A connection that resumes its session.
    pub(super) async fn resume(&self, connect: Connect) -> Client {
        let (client, connack) = self.connack(connect).await;
        assert!(connack.session_present, "{connack:?}");
        client
    }

    pub(super) async fn clean(&self, id: &str) -> Client {
        self.connect(clean(id, V5)).await
    }

    /// A client with one subscription.
    pub(super) async fn subscriber(&self, id: &str, to: &str, qos: QoS) -> Client {
        let mut client = self.clean(id).await;
        client.subscribe(to, qos).await;
        client
    }

    /// Publishes at QoS 1 from a client of its own and expects success.
    pub(super) async fn publish(&self, topic: &str, payloads: &[&str]) {
        let mut client = self.clean("").await;
        for payload in payloads {
            assert!(!client.publish(topic, payload).await.is_error(), "{payload}");
        }
        client.disconnect().await;
    }
}

impl Client {
    /// A client over something that is connected.
    pub(super) fn over(stream: impl Io + 'static, version: ProtocolVersion) -> Self {
        let role = Role::Client { version };
        let decoder = Decoder::new(DecoderConfig { max_packet_size: 32 << 20, role });
        let stream = Box::new(stream);
        Self { stream, decoder, input: BytesMut::new(), version, next_id: 0, skipped: VecDeque::new() }
    }

    /// Sends a packet in pieces of one byte.
    pub(super) async fn send_bytewise(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        encode(&packet, self.version, &mut bytes).unwrap();
        for byte in bytes {
            self.stream.write_all(&[byte]).await.unwrap();
            self.stream.flush().await.unwrap();
        }
    }

    /// The next packet, or the end.
    pub(super) async fn try_recv(&mut self) -> Option<Packet> {
        tokio::time::timeout(DEADLINE, self.next()).await.expect("a packet or the end")
    }

    pub(super) async fn send(&mut self, packet: Packet) {
        self.send_all([packet]).await;
    }

    /// Sends the beginning of a packet.
    pub(super) async fn send_beginning(&mut self, packet: Packet, length: usize) {
        let mut bytes = BytesMut::new();
        encode(&packet, self.version, &mut bytes).unwrap();
        self.stream.write_all(&bytes[..length]).await.unwrap();
    }

    /// Sends packets in one piece.
    pub(super) async fn send_all(&mut self, packets: impl IntoIterator<Item = Packet>) {
        let mut bytes = BytesMut::new();
        for packet in packets {
            encode(&packet, self.version, &mut bytes).unwrap();
        }
        let write = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        tokio::time::timeout(DEADLINE, write).await.expect("room in the socket").unwrap();
    }

    /// Sends bytes that need not be a packet. The broker may have closed the connection already.
    pub(super) async fn send_bytes(&mut self, bytes: &[u8]) {
        let written = tokio::time::timeout(DEADLINE, self.stream.write_all(bytes)).await;
        let _ = written.expect("room in the socket");
    }

    /// The next bytes, before anything has been decoded.
    pub(super) async fn recv_bytes(&mut self, count: usize) -> Vec<u8> {
        while self.input.len() < count {
            let read = tokio::time::timeout(DEADLINE, self.stream.read_buf(&mut self.input)).await;
            assert!(read.expect("bytes in time").unwrap() > 0, "the connection ended");
        }
        self.input[..count].to_vec()
    }

    /// Everything that comes until the connection ends.
    #[track_caller]
    pub(super) fn rest(&mut self) -> impl Future<Output = Vec<Packet>> {
        let caller = std::panic::Location::caller();
        async move {
            let mut rest = Vec::new();
            while let Some(packet) = tokio::time::timeout(DEADLINE, self.next())
                .await
                .unwrap_or_else(|_| panic!("the connection does not end at {caller}: {rest:?}"))
            {
                rest.push(packet);
            }
            rest
        }
    }

    /// The next packet; `None` at the end of the connection.
    pub(super) async fn next(&mut self) -> Option<Packet> {
        match self.skipped.pop_front() {
            Some(packet) => Some(packet),
            None => self.receive().await,
        }
    }

    async fn receive(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.input).unwrap() {
                return Some(packet);
            }
            // A reset is an end too: what was not read is lost by either.
            match self.stream.read_buf(&mut self.input).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    #[track_caller]
    pub(super) fn recv(&mut self) -> impl Future<Output = Packet> {
        let caller = std::panic::Location::caller();
        async move {
            match tokio::time::timeout(DEADLINE, self.next()).await {
                Ok(Some(packet)) => packet,
                Ok(None) => panic!("connection ended, awaited at {caller}"),
                Err(_) => panic!("nothing came, awaited at {caller}"),
            }
        }
    }

    /// The next packet, which is a PUBLISH.
    #[track_caller]
    pub(super) fn message(&mut self) -> impl Future<Output = Publish> {
        let caller = std::panic::Location::caller();
        async move {
            match self.recv().await {
                Packet::Publish(publish) => *publish,
                other => panic!("not a PUBLISH, awaited at {caller}: {other:?}"),
            }
        }
    }

    /// The next packet, a PUBLISH of QoS 1 or 2, answered.
    #[track_caller]
    pub(super) fn take(&mut self) -> impl Future<Output = Publish> {
        let caller = std::panic::Location::caller();
        async move {
            let message = self.message().await;
            match message.header.qos {
                AtMostOnce => panic!("QoS 0, awaited at {caller}: {message:?}"),
                AtLeastOnce => self.puback(&message, ReasonCode::Success).await,
                ExactlyOnce => {
                    self.receive_twice_acknowledged(&message).await;
                }
            }
            message
        }
    }

    /// The rest of QoS 2; what else comes meanwhile is kept for later.
    pub(super) async fn receive_twice_acknowledged(&mut self, message: &Publish) {
        let n = message.header.packet_id.unwrap();
        self.pubrec(n).await;
        let release = Packet::PubRel(ack(n, ReasonCode::Success));
        loop {
            match tokio::time::timeout(DEADLINE, self.receive()).await.expect("PUBREL").expect("PUBREL") {
                packet if packet == release => break,
                other => self.skipped.push_back(other),
            }
        }
        self.pubcomp(n).await;
    }

    /// Payloads of the next `count` publishes of QoS 1, acknowledged.
    pub(super) async fn take_texts(&mut self, count: usize) -> Vec<String> {
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push(text(&self.take().await).to_owned());
        }
        texts
    }

    pub(super) async fn puback(&mut self, message: &Publish, reason: ReasonCode) {
        self.send(Packet::PubAck(ack(message.header.packet_id.unwrap(), reason))).await;
    }

    pub(super) async fn pubrec(&mut self, n: PacketId) {
        self.send(Packet::PubRec(ack(n, ReasonCode::Success))).await;
    }

    pub(super) async fn pubrel(&mut self, n: PacketId) {
        self.send(Packet::PubRel(ack(n, ReasonCode::Success))).await;
    }

    pub(super) async fn pubcomp(&mut self, n: PacketId) {
        self.send(Packet::PubComp(ack(n, ReasonCode::Success))).await;
    }

    /// The broker has handled everything sent before, and had nothing to say since.
    #[track_caller]
    pub(super) fn synced(&mut self) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            self.send(Packet::PingReq).await;
            let packet = self.recv().await;
            assert_eq!(packet, Packet::PingResp, "awaited at {caller}");
        }
    }

    /// Nothing comes for a while.
    #[track_caller]
    pub(super) fn quiet(&mut self) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            if let Ok(packet) = tokio::time::timeout(QUIET, self.next()).await {
                panic!("unexpected at {caller}: {packet:?}");
            }
        }
    }

    /// The connection ends without another packet.
    #[track_caller]
    pub(super) fn ended(&mut self) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            match tokio::time::timeout(DEADLINE, self.next()).await {
                Ok(None) => {}
                other => panic!("the connection does not end at {caller}: {other:?}"),
            }
        }
    }

    /// The connection ends with a DISCONNECT of this reason.
    #[track_caller]
    pub(super) fn told(&mut self, reason: ReasonCode) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            match self.recv().await {
                Packet::Disconnect(disconnect) => assert_eq!(disconnect.reason, reason, "at {caller}"),
                other => panic!("not a DISCONNECT at {caller}: {other:?}"),
            }
            self.ended().await;
        }
    }

    fn fresh_id(&mut self) -> PacketId {
        // Above the ids that tests choose themselves.
        self.next_id = self.next_id % 30_000 + 1;
        id(30_000 + self.next_id)
    }

    pub(super) async fn try_subscribe(
        &mut self,
        filters: Vec<SubscribeFilter>,
        identifier: Option<u32>,
        user_properties: UserProperties,
    ) -> SubAck {
        let packet_id = self.fresh_id();
        let subscription_identifier = identifier.and_then(NonZeroU32::new);
        let subscribe = Subscribe { packet_id, subscription_identifier, user_properties, filters };
        self.send(Packet::Subscribe(Box::new(subscribe))).await;
        match self.recv().await {
            Packet::SubAck(suback) => {
                assert_eq!(suback.packet_id, packet_id);
                *suback
            }
            other => panic!("not a SUBACK: {other:?}"),
        }
    }

    /// The reason in the SUBACK for one filter.
    pub(super) async fn subscribed(&mut self, to: &str, qos: QoS) -> ReasonCode {
        self.try_subscribe(vec![filter(to, qos)], None, Vec::new()).await.reasons[0]
    }

    pub(super) async fn subscribe(&mut self, to: &str, qos: QoS) {
        let reason = self.subscribed(to, qos).await;
        assert!(!reason.is_error(), "{to}: {reason}");
    }

    /// A subscription with `stream-offset`.
    pub(super) async fn read_from(&mut self, to: &str, qos: QoS, offset: &str) -> ReasonCode {
        let properties = vec![("stream-offset".into(), offset.to_owned().into())];
        self.try_subscribe(vec![filter(to, qos)], None, properties).await.reasons[0]
    }

    /// A subscription with these properties.
    pub(super) async fn ask_to_read(&mut self, to: &str, qos: QoS, properties: &[(&str, &str)]) -> SubAck {
        let own = |text: &str| text.to_owned().into();
        let properties = properties.iter().map(|(name, value)| (own(name), own(value))).collect();
        self.try_subscribe(vec![filter(to, qos)], None, properties).await
    }

    /// A subscription with these properties that is granted.
    pub(super) async fn read_with(&mut self, to: &str, qos: QoS, properties: &[(&str, &str)]) {
        let suback = self.ask_to_read(to, qos, properties).await;
        assert!(!suback.reasons[0].is_error(), "{suback:?}");
    }

    pub(super) async fn unsubscribe(&mut self, from: &str) {
        let packet_id = self.fresh_id();
        let filters = vec![from.to_owned().into()];
        let unsubscribe = Unsubscribe { packet_id, filters, user_properties: Vec::new() };
        self.send(Packet::Unsubscribe(Box::new(unsubscribe))).await;
        loop {
            match self.recv().await {
                Packet::UnsubAck(unsuback) => return assert_eq!(unsuback.packet_id, packet_id),
                // What was on its way.
                Packet::Publish(_) => {}
                other => panic!("not an UNSUBACK: {other:?}"),
            }
        }
    }

    /// Publishes at QoS 1; the reason in the PUBACK.
    pub(super) async fn publish(&mut self, topic: &str, payload: &str) -> ReasonCode {
        let n = self.fresh_id();
        self.send(Packet::Publish(Box::new(publish(AtLeastOnce, n.get(), topic, payload)))).await;
        self.pubacked(n.get()).await
    }

    /// Sends a PUBLISH and does not wait.
    pub(super) async fn post(&mut self, publish: Publish) {
        self.send(Packet::Publish(Box::new(publish))).await;
    }

    /// The reason in the next packet, the PUBACK for `n`.
    #[track_caller]
    pub(super) fn pubacked(&mut self, n: u16) -> impl Future<Output = ReasonCode> {
        let caller = std::panic::Location::caller();
        async move {
            match self.recv().await {
                Packet::PubAck(ack) if ack.packet_id == id(n) => ack.reason,
                other => panic!("not PUBACK {n} at {caller}: {other:?}"),
            }
        }
    }

    /// The reason in the next packet, the PUBREC for `n`.
    #[track_caller]
    pub(super) fn pubreced(&mut self, n: u16) -> impl Future<Output = ReasonCode> {
        let caller = std::panic::Location::caller();
        async move {
            match self.recv().await {
                Packet::PubRec(ack) if ack.packet_id == id(n) => ack.reason,
                other => panic!("not PUBREC {n} at {caller}: {other:?}"),
            }
        }
    }

    /// The next packet is the PUBCOMP for `n`.
    #[track_caller]
    pub(super) fn pubcomped(&mut self, n: u16) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            match self.recv().await {
                Packet::PubComp(ack) if ack.packet_id == id(n) => {}
                other => panic!("not PUBCOMP {n} at {caller}: {other:?}"),
            }
        }
    }

    /// Publishes at QoS 2, to the end.
    pub(super) async fn publish_twice_acknowledged(&mut self, n: u16, topic: &str, payload: &str) {
        self.post(publish(ExactlyOnce, n, topic, payload)).await;
        assert!(!self.pubreced(n).await.is_error());
        self.pubrel(id(n)).await;
        self.pubcomped(n).await;
    }

    pub(super) async fn disconnect_with(mut self, reason: ReasonCode, session_expiry_interval: Option<u32>) {
        let disconnect = Disconnect { reason, session_expiry_interval, ..Disconnect::default() };
        self.send(Packet::Disconnect(Box::new(disconnect))).await;
        while tokio::time::timeout(DEADLINE, self.next()).await.expect("an end").is_some() {}
    }

    /// Ends the connection in order and waits for the end.
    pub(super) async fn disconnect(self) {
        self.disconnect_with(ReasonCode::Success, None).await;
    }

    /// Sends a packet to a broker that may have closed the connection.
    pub(super) async fn try_send(&mut self, packet: Packet) -> std::io::Result<()> {
        let mut bytes = BytesMut::new();
        encode(&packet, self.version, &mut bytes).unwrap();
        self.stream.write_all(&bytes).await
    }

    /// Tells the broker of an end by the socket alone.
    pub(super) fn vanish(self) {
        drop(self.stream);
    }
}

pub(super) fn receive_maximum(connect: Connect, n: u16) -> Connect {
    Connect { receive_maximum: NonZeroU16::new(n), ..connect }
}
