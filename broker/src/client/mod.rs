//! A small MQTT client: what `weir pub`, `weir sub` and `weir bench` use, and tests.
//!
//! There is no task behind it: it reads, writes, acknowledges and pings while one of its methods is awaited, and
//! does nothing in between. So one owner drives one connection, and whoever holds a [`Client`] for longer than its
//! keep-alive must keep receiving. Everything it holds is bounded, every wait for the server has a deadline. It knows
//! nothing of queues, streams or the broker beside it.

mod connection;
mod error;
mod options;
mod tls;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU16;
use std::time::Duration;

use bytestring::ByteString;
use tokio::time::Instant;
use weir_codec::{
    Ack, AckProperties, ConnAck, Disconnect, MessageProperties, Packet, PacketId, PacketType,
    ProtocolVersion, Publish, PublishHeader, QoS, ReasonCode, SubAck, Subscribe, SubscribeFilter, UnsubAck,
    Unsubscribe, UserProperties,
};

use connection::Connection;
pub use connection::Parts;
pub use error::Error;
pub use options::{Acks, ConnectOptions, Endpoint};
pub use tls::{ClientTls, TlsFiles};

/// Bytes of payload received and not yet taken by [`Client::recv`]; beyond, the connection fails.
pub const RECEIVED_BYTES_MAX: usize = 64 << 20;

/// One connection to a server, after its CONNACK.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    conn_ack: ConnAck,
    version: ProtocolVersion,
    acks: Acks,
    deadline: Duration,
    next_packet_id: u16,
    /// QoS 1 and 2 publishes that may be unacknowledged at once.
    window: NonZeroU16,
    /// What is awaited for each QoS 1 or 2 publish in flight.
    sent: BTreeMap<PacketId, PacketType>,
    completions: VecDeque<Completion>,
    received: VecDeque<Publish>,
    received_bytes: usize,
    /// QoS 2 packet ids taken, of which the PUBREL is awaited.
    taken: BTreeSet<PacketId>,
    answer: Option<Answer>,
}

/// A message to publish.
#[derive(Clone, Debug, Default)]
pub struct Publication<'a> {
    /// Topic name.
    pub topic: &'a str,
    /// Any bytes.
    pub payload: &'a [u8],
    /// Quality of service.
    pub qos: QoS,
    /// Keep as the topic's retained message.
    pub retain: bool,
    /// Seconds the message may wait; MQTT 5 only.
    pub message_expiry_interval: Option<u32>,
    /// Properties; MQTT 5 only.
    pub properties: MessageProperties,
}

/// How a QoS 1 or 2 publish ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Of the PUBLISH.
    pub packet_id: PacketId,
    /// From PUBACK, PUBREC or PUBCOMP.
    pub reason: ReasonCode,
    /// For people, if the server sent it.
    pub reason_string: Option<ByteString>,
}

#[derive(Debug)]
enum Answer {
    SubAck(SubAck),
    UnsubAck(UnsubAck),
}

impl Client {
    /// Connects and waits for CONNACK.
    ///
    /// # Errors
    /// If nothing listens there, the server refuses, or it does not answer in time.
    pub async fn connect(endpoint: &Endpoint, options: &ConnectOptions) -> Result<Self, Error> {
        let limit = options.clock.now().checked_add(options.deadline);
        let mut connection = Connection::open(endpoint, options).await?;
        connection.encode(&Packet::Connect(Box::new(options.connect_packet())))?;
        let answer = connection.packet(limit).await;
        let conn_ack = match answer.map_err(|error| error.waiting_for("CONNACK", options.deadline))? {
            Packet::ConnAck(conn_ack) if conn_ack.code == ReasonCode::Success => *conn_ack,
            Packet::ConnAck(refusal) => {
                return Err(Error::Refused { reason: refusal.code, reason_string: refusal.reason_string });
            }
            other => return Err(Error::Unexpected(other.packet_type())),
        };
        if let Some(seconds) = conn_ack.server_keep_alive {
            connection.set_keep_alive(seconds);
        }
        let window = conn_ack.receive_maximum.unwrap_or(NonZeroU16::MAX).min(options.window);
        Ok(Self {
            connection,
            conn_ack,
            version: options.version,
            acks: options.acks,
            deadline: options.deadline,
            next_packet_id: 1,
            window,
            sent: BTreeMap::new(),
            completions: VecDeque::new(),
            received: VecDeque::new(),
            received_bytes: 0,
            taken: BTreeSet::new(),
            answer: None,
        })
    }

    /// What the server said at the start.
    #[must_use]
    pub const fn conn_ack(&self) -> &ConnAck {
        &self.conn_ack
    }

    /// The protocol spoken.
    #[must_use]
    pub const fn version(&self) -> ProtocolVersion {
        self.version
    }

    /// Subscribes; the reasons in the answer are the caller's to check.
    ///
    /// # Errors
    /// If the connection fails or the server does not answer in time.
    pub async fn subscribe(
        &mut self,
        filters: Vec<SubscribeFilter>,
        user_properties: UserProperties,
    ) -> Result<SubAck, Error> {
        let packet_id = self.free_packet_id();
        let subscribe = Subscribe { packet_id, subscription_identifier: None, user_properties, filters };
        self.connection.encode(&Packet::Subscribe(Box::new(subscribe)))?;
        match self.await_answer("SUBACK").await? {
            Answer::SubAck(answer) if answer.packet_id == packet_id => Ok(answer),
            Answer::SubAck(_) | Answer::UnsubAck(_) => Err(Error::WrongAnswer("SUBACK")),
        }
    }

    /// Unsubscribes; the reasons in the answer are the caller's to check.
    ///
    /// # Errors
    /// If the connection fails or the server does not answer in time.
    pub async fn unsubscribe(&mut self, filters: Vec<ByteString>) -> Result<UnsubAck, Error> {
        let packet_id = self.free_packet_id();
        let unsubscribe = Unsubscribe { packet_id, filters, user_properties: UserProperties::new() };
        self.connection.encode(&Packet::Unsubscribe(Box::new(unsubscribe)))?;
        match self.await_answer("UNSUBACK").await? {
            Answer::UnsubAck(answer) if answer.packet_id == packet_id => Ok(answer),
            Answer::SubAck(_) | Answer::UnsubAck(_) => Err(Error::WrongAnswer("UNSUBACK")),
        }
    }

    /// Publishes one message and waits for its end: `None` at QoS 0, which has none. Must not be mixed with
    /// publishes still in flight.
    ///
    /// # Errors
    /// If the connection fails or the server does not answer in time.
    pub async fn publish(&mut self, publication: &Publication<'_>) -> Result<Option<Completion>, Error> {
        self.start_publish(publication)?;
        self.flush().await?;
        self.completion().await
    }

    /// Puts a message into the buffer that [`Client::flush`] and every waiting method write, and returns its packet
    /// id. The publish counts as in flight until [`Client::completion`] has returned its end.
    ///
    /// # Errors
    /// [`Error::WindowFull`] if as many as may be are in flight, and if the message can't be written.
    pub fn start_publish(&mut self, publication: &Publication<'_>) -> Result<Option<PacketId>, Error> {
        let (packet_id, state) = match publication.qos {
            QoS::AtMostOnce => (None, None),
            QoS::AtLeastOnce => (Some(self.free_packet_id()), Some(PacketType::PubAck)),
            QoS::ExactlyOnce => (Some(self.free_packet_id()), Some(PacketType::PubRec)),
        };
        if packet_id.is_some() && !self.has_room() {
            return Err(Error::WindowFull);
        }
        let header = PublishHeader {
            qos: publication.qos,
            retain: publication.retain,
            packet_id,
            message_expiry_interval: publication.message_expiry_interval,
            ..PublishHeader::default()
        };
        self.connection.encode_publish(
            &header,
            publication.topic,
            &publication.properties,
            publication.payload,
        )?;
        if let (Some(packet_id), Some(state)) = (packet_id, state) {
            self.sent.insert(packet_id, state);
        }
        Ok(packet_id)
    }

    /// Whether another QoS 1 or 2 publish may start.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.sent.len() + self.completions.len() < self.window.get().into()
    }

    /// Waits for the next end of a QoS 1 or 2 publish; `None` if none is in flight. Cancel-safe.
    ///
    /// # Errors
    /// If the connection fails or the server does not answer in time.
    pub async fn completion(&mut self) -> Result<Option<Completion>, Error> {
        let limit = self.limit();
        loop {
            if let Some(completion) = self.completions.pop_front() {
                return Ok(Some(completion));
            }
            if self.sent.is_empty() {
                return Ok(None);
            }
            self.step(limit)
                .await
                .map_err(|error| error.waiting_for("the end of a publish", self.deadline))?;
        }
    }

    /// Writes what is buffered. Cancel-safe.
    ///
    /// # Errors
    /// If the connection fails or the server does not read in time.
    pub async fn flush(&mut self) -> Result<(), Error> {
        let limit = self.limit();
        self.connection
            .flush(limit)
            .await
            .map_err(|error| error.waiting_for("the server to read", self.deadline))
    }

    /// Waits for the next message, for ever. Cancel-safe.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn recv(&mut self) -> Result<Publish, Error> {
        loop {
            if let Some(publish) = self.take_received() {
                return Ok(publish);
            }
            self.step(None).await?;
        }
    }

    /// Waits for the next message until `limit`; `None` if there is none by then. Cancel-safe.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn recv_until(&mut self, limit: Instant) -> Result<Option<Publish>, Error> {
        loop {
            if let Some(publish) = self.take_received() {
                return Ok(Some(publish));
            }
            match self.step(Some(limit)).await {
                Ok(()) => {}
                Err(Error::Deadline) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Acknowledges a message of QoS 1 or 2, for [`Acks::Manual`]; a `reason` that is an error rejects it. It is
    /// written by the next method that waits.
    ///
    /// # Errors
    /// If the acknowledgement can't be written.
    pub fn ack(&mut self, publish: &Publish, reason: ReasonCode) -> Result<(), Error> {
        let Some(packet_id) = publish.header.packet_id else { return Ok(()) };
        let ack = Ack { packet_id, reason, properties: None };
        match publish.header.qos {
            QoS::AtMostOnce => Ok(()),
            QoS::AtLeastOnce => self.connection.encode(&Packet::PubAck(ack)),
            QoS::ExactlyOnce => {
                if reason.is_error() {
                    self.taken.remove(&packet_id);
                }
                self.connection.encode(&Packet::PubRec(ack))
            }
        }
    }

    /// Ends the connection as the protocol wants: what is buffered is written first, the will is discarded.
    ///
    /// # Errors
    /// If the connection fails before all is written.
    pub async fn disconnect(mut self) -> Result<(), Error> {
        self.connection.encode(&Packet::Disconnect(Box::<Disconnect>::default()))?;
        self.flush().await?;
        self.connection.shutdown().await;
        Ok(())
    }

    /// The bare connection, for those who write and read packets themselves.
    #[must_use]
    pub fn into_parts(self) -> Parts {
        self.connection.into_parts(self.received)
    }

    fn limit(&self) -> Option<Instant> {
        self.connection.now().checked_add(self.deadline)
    }

    fn take_received(&mut self) -> Option<Publish> {
        let publish = self.received.pop_front()?;
        self.received_bytes -= publish.payload.len();
        Some(publish)
    }

    fn free_packet_id(&mut self) -> PacketId {
        // At most `window` ids are in use, fewer than there are.
        loop {
            let id = PacketId::new(self.next_packet_id);
            self.next_packet_id = self.next_packet_id.wrapping_add(1);
            match id {
                Some(id) if !self.sent.contains_key(&id) => return id,
                _ => {}
            }
        }
    }

    async fn await_answer(&mut self, what: &'static str) -> Result<Answer, Error> {
        let limit = self.limit();
        loop {
            if let Some(answer) = self.answer.take() {
                return Ok(answer);
            }
            self.step(limit).await.map_err(|error| error.waiting_for(what, self.deadline))?;
        }
    }

    /// Takes one packet and does what the protocol wants.
    async fn step(&mut self, limit: Option<Instant>) -> Result<(), Error> {
        match self.connection.packet(limit).await? {
            Packet::Publish(publish) => self.handle_publish(*publish),
            Packet::PubAck(ack) => self.handle_ack(ack, PacketType::PubAck),
            Packet::PubRec(ack) => self.handle_pub_rec(ack),
            Packet::PubComp(ack) => self.handle_ack(ack, PacketType::PubComp),
            Packet::PubRel(ack) => {
                let reason = if self.taken.remove(&ack.packet_id) {
                    ReasonCode::Success
                } else {
                    ReasonCode::PacketIdentifierNotFound
                };
                self.connection.encode(&Packet::PubComp(Ack { reason, properties: None, ..ack }))
            }
            Packet::SubAck(answer) => {
                self.answer = Some(Answer::SubAck(*answer));
                Ok(())
            }
            Packet::UnsubAck(answer) => {
                self.answer = Some(Answer::UnsubAck(*answer));
                Ok(())
            }
            Packet::Disconnect(disconnect) => Err(Error::Disconnected {
                reason: disconnect.reason,
                reason_string: disconnect.reason_string,
            }),
            other => Err(Error::Unexpected(other.packet_type())),
        }
    }

    fn handle_publish(&mut self, publish: Publish) -> Result<(), Error> {
        if let (QoS::ExactlyOnce, Some(packet_id)) = (publish.header.qos, publish.header.packet_id)
            && !self.taken.insert(packet_id)
        {
            // A repeat of what was taken already.
            return self.ack(&publish, ReasonCode::Success);
        }
        if self.acks == Acks::Auto {
            self.ack(&publish, ReasonCode::Success)?;
        }
        self.received_bytes += publish.payload.len();
        if self.received_bytes > RECEIVED_BYTES_MAX {
            return Err(Error::Overrun);
        }
        self.received.push_back(publish);
        Ok(())
    }

    fn handle_pub_rec(&mut self, ack: Ack) -> Result<(), Error> {
        if ack.reason.is_error() {
            return self.handle_ack(ack, PacketType::PubRec);
        }
        let reason = match self.sent.get_mut(&ack.packet_id) {
            Some(state) => {
                *state = PacketType::PubComp;
                ReasonCode::Success
            }
            None => ReasonCode::PacketIdentifierNotFound,
        };
        self.connection.encode(&Packet::PubRel(Ack { reason, properties: None, ..ack }))
    }

    fn handle_ack(&mut self, ack: Ack, expected: PacketType) -> Result<(), Error> {
        if self.sent.get(&ack.packet_id) != Some(&expected) {
            return Err(Error::UnknownPacketId(ack.packet_id.get()));
        }
        self.sent.remove(&ack.packet_id);
        let reason_string =
            ack.properties.and_then(|properties: Box<AckProperties>| properties.reason_string);
        self.completions.push_back(Completion {
            packet_id: ack.packet_id,
            reason: ack.reason,
            reason_string,
        });
        Ok(())
    }
}
