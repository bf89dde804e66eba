//! One connection of a raw MQTT 5 client: packets in and out, and nothing that repairs what a broker does.

use std::net::SocketAddr;
use std::num::NonZeroU16;

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weir_codec::{
    Ack, Connect, Decoder, DecoderConfig, MessageProperties, Packet, PacketId, ProtocolVersion,
    PublishHeader, QoS, ReasonCode, Role, Subscribe, SubscribeFilter, SubscriptionOptions, encode,
    encode_publish,
};

/// Longest packet from a broker.
const PACKET_BYTES_MAX: u32 = 1 << 20;
/// What a client lets a broker have in flight.
const RECEIVE_MAXIMUM: NonZeroU16 = NonZeroU16::new(100).expect("not zero");
const V5: ProtocolVersion = ProtocolVersion::V5;

/// A connection whose CONNECT was accepted.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    input: BytesMut,
    decoder: Decoder,
    /// The broker knew the session.
    pub(super) session_present: bool,
}

impl Wire {
    /// Connects as `client_id`. With a session that lasts for `expiry` seconds an old one is taken up.
    pub(super) async fn connect(address: SocketAddr, client_id: &str, expiry: u32) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        let role = Role::Client { version: V5 };
        let decoder = Decoder::new(DecoderConfig { max_packet_size: PACKET_BYTES_MAX, role });
        let mut wire = Self { stream, input: BytesMut::new(), decoder, session_present: false };
        let connect = Connect {
            version: V5,
            clean_start: expiry == 0,
            keep_alive: 10,
            client_id: client_id.into(),
            session_expiry_interval: Some(expiry),
            receive_maximum: Some(RECEIVE_MAXIMUM),
            ..Connect::default()
        };
        wire.send(&Packet::Connect(Box::new(connect))).await?;
        match wire.next().await? {
            Packet::ConnAck(ack) => {
                ensure!(!ack.code.is_error(), "CONNECT was refused with {:?}", ack.code);
                wire.session_present = ack.session_present;
                Ok(wire)
            }
            other => bail!("{} instead of CONNACK", other.packet_type().name()),
        }
    }

    /// Subscribes to `filter` and waits for the answer; what is delivered before it is returned.
    pub(super) async fn subscribe(
        &mut self,
        filter: &str,
        qos: QoS,
        offset: Option<&str>,
    ) -> Result<Vec<Packet>> {
        let packet_id = PacketId::new(u16::MAX).context("a packet id")?;
        let options = SubscriptionOptions { qos, ..SubscriptionOptions::default() };
        let subscribe = Subscribe {
            packet_id,
            subscription_identifier: None,
            user_properties: offset
                .map(|offset| ("stream-offset".into(), offset.into()))
                .into_iter()
                .collect(),
            filters: vec![SubscribeFilter { filter: filter.into(), options }],
        };
        self.send(&Packet::Subscribe(Box::new(subscribe))).await?;
        let mut early = Vec::new();
        loop {
            match self.next().await? {
                Packet::SubAck(ack) => {
                    let refused = ack.reasons.iter().find(|reason| reason.is_error());
                    ensure!(refused.is_none(), "SUBSCRIBE to {filter} was refused with {refused:?}");
                    return Ok(early);
                }
                packet => early.push(packet),
            }
        }
    }

    /// Publishes with a packet id.
    pub(super) async fn publish(
        &mut self,
        topic: &str,
        qos: QoS,
        id: u16,
        dup: bool,
        payload: &str,
    ) -> Result<()> {
        let header = PublishHeader { dup, qos, packet_id: PacketId::new(id), ..PublishHeader::default() };
        self.send_publish(&header, topic, payload).await
    }

    /// As [`Self::publish`] at QoS 1, to be retained.
    pub(super) async fn publish_retained(
        &mut self,
        topic: &str,
        id: u16,
        dup: bool,
        payload: &str,
    ) -> Result<()> {
        let (qos, packet_id) = (QoS::AtLeastOnce, PacketId::new(id));
        let header = PublishHeader { dup, qos, retain: true, packet_id, ..PublishHeader::default() };
        self.send_publish(&header, topic, payload).await
    }

    async fn send_publish(&mut self, header: &PublishHeader, topic: &str, payload: &str) -> Result<()> {
        let none: [(&str, &str); 0] = [];
        let mut output = BytesMut::new();
        let properties = MessageProperties::default();
        encode_publish(&mut output, V5, header, topic, &properties, &none, payload.as_bytes())?;
        Ok(self.stream.write_all(&output).await?)
    }

    /// Sends a packet.
    pub(super) async fn send(&mut self, packet: &Packet) -> Result<()> {
        let mut output = BytesMut::new();
        encode(packet, V5, &mut output)?;
        Ok(self.stream.write_all(&output).await?)
    }

    /// The next packet. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Packet> {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.input)? {
                return Ok(packet);
            }
            ensure!(self.stream.read_buf(&mut self.input).await? > 0, "the connection ended");
        }
    }
}

/// An acknowledgement that all is well.
pub(super) fn ack(packet_id: PacketId) -> Ack {
    Ack { packet_id, reason: ReasonCode::Success, properties: None }
}
