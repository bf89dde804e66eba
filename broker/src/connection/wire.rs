//! The socket of one client and its two buffers.
//!
//! Reading takes what the socket has; writing gathers packets and hands them over at once. Both buffers are let go when
//! they are empty, so that an idle connection holds none.

use std::io;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::Interest;
use weir_codec::{EncodeError, ProtocolVersion, encode_publish, encode_publish_head};
use weir_session::Transmit;

use super::intake::Intake;
use super::output::{LARGE_MIN, Output};
use super::stream::Frames;
use super::wait::Socket;
use crate::listen::{self, Peer};
use crate::metrics::{Closed, Metrics};
use crate::transport::Stream;

/// Bytes that may wait to be written before sources of deliveries are asked for no more.
pub(super) const WRITE_HIGH_WATER: usize = 128 * 1024;

/// Bytes read before other connections have their turn: far less than may wait for one of them.
const READ_SHARE: usize = 256 * 1024;

/// One client's socket.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Stream,
    peer: Peer,
    /// Largest packet the client takes, once its CONNECT has said so.
    pub(super) packet_size_max: u32,
    pub(super) input: BytesMut,
    intake: Intake,
    output: Output,
    /// Bytes that the stream has taken.
    written: u64,
    /// Bytes read in this turn.
    read: usize,
    metrics: Metrics,
}

impl Wire {
    pub(super) fn new(stream: Stream, peer: Peer, metrics: Metrics) -> Self {
        let packet_size_max = u32::MAX;
        let (input, intake, output) = (BytesMut::new(), Intake::default(), Output::default());
        Self { stream, peer, packet_size_max, input, intake, output, written: 0, read: 0, metrics }
    }

    /// Goes through what the listener asks for before MQTT.
    ///
    /// # Errors
    /// If the connection is to be closed: why. Not cancel-safe.
    pub(super) async fn establish(&mut self) -> Result<(), Closed> {
        listen::establish(&mut self.stream, &mut self.peer, &mut self.input).await
    }

    /// Who is at the other end. Known as a whole once it is established.
    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Counts a packet that was decoded.
    pub(super) fn count_received(&self, packet: weir_codec::PacketType) {
        self.metrics.packets_received.inc(packet);
    }

    /// Waits until the socket can be read or written, as asked. Cancel-safe.
    pub(super) async fn ready(&self, read: bool) -> io::Result<tokio::io::Ready> {
        let interest = match (read, self.output.is_empty()) {
            (true, true) => Interest::READABLE,
            (true, false) => Interest::READABLE | Interest::WRITABLE,
            (false, _) => Interest::WRITABLE,
        };
        self.stream.ready(interest).await
    }

    /// Whether the socket can be read, if that is wanted, or written, if something waits. `context` is woken when it can.
    pub(super) fn poll_ready(&self, read: bool, context: &mut Context<'_>) -> Poll<Socket> {
        self.stream.poll_ready(read, !self.output.is_empty(), context).map(|ready| match ready {
            Ok(true) => Socket::Readable,
            Ok(false) => Socket::Writable,
            Err(_) => Socket::Lost,
        })
    }

    /// Waits until the socket is gone. Cancel-safe.
    pub(super) async fn lost(&self) {
        // An error says so as well.
        let _ = self.stream.ready(Interest::ERROR).await;
    }

    /// Whether something has come that [`Self::fill`] may not be able to read yet.
    pub(super) fn has_input(&self) -> bool {
        self.stream.has_input()
    }

    /// Reads what there is. False at the end of the stream. The packet that has begun lacks `missing` bytes.
    pub(super) fn fill(&mut self, missing: usize) -> io::Result<bool> {
        let Self { stream, input, intake, .. } = self;
        match intake.read(input, missing, |into, room| stream.try_read_at_most(into, room)) {
            Ok(0) => Ok(false),
            Ok(n) => {
                self.read += n;
                self.metrics.bytes_received.inc_by(n as u64);
                self.peer.listener.metrics.received.inc_by(n as u64);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Whether so much was read that others must have their turn, which begins with this.
    pub(super) fn has_read_its_share(&mut self) -> bool {
        let has = self.read >= READ_SHARE;
        if has {
            self.read = 0;
        }
        has
    }

    /// Adds a packet to what will be written.
    pub(super) fn put(&mut self, transmit: &Transmit, version: ProtocolVersion) -> Result<(), EncodeError> {
        match transmit {
            Transmit::Packet(packet) => {
                self.output.put(|out| weir_codec::encode(packet, version, out))?;
                self.metrics.packets_sent.inc(packet.packet_type());
            }
            Transmit::Publish { header, topic_on_wire, message, extra } => {
                let topic = if *topic_on_wire { message.topic.as_str() } else { "" };
                let (properties, payload) = (&message.properties, &message.payload);
                if payload.len() >= LARGE_MIN && self.stream.is_plain() {
                    let length = payload.len();
                    self.output.put(|out| {
                        encode_publish_head(out, version, header, topic, properties, extra, length)
                    })?;
                    self.output.put_large(payload.clone());
                } else {
                    self.output
                        .put(|out| encode_publish(out, version, header, topic, properties, extra, payload))?;
                }
                self.metrics.packets_sent.inc(weir_codec::PacketType::Publish);
                self.metrics.deliveries.inc(header.qos);
                self.metrics.delivered_bytes.inc_by(message.payload.len() as u64);
            }
        }
        Ok(())
    }

    /// Adds packets that are encoded already.
    pub(super) fn put_frames(&mut self, frames: &Frames) {
        if frames.messages == 0 {
            return;
        }
        if frames.bytes.len() >= LARGE_MIN && self.stream.is_plain() {
            self.output.put_large(frames.bytes.clone());
        } else {
            self.output.put_bytes(&frames.bytes);
        }
        self.metrics.packets_sent.add(weir_codec::PacketType::Publish, frames.messages);
        self.metrics.deliveries.add(weir_codec::QoS::AtMostOnce, frames.messages);
        self.metrics.delivered_bytes.inc_by(frames.payload_bytes);
    }

    /// Writes as much as the socket takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            let taken = if self.output.is_in_pieces() {
                self.stream.try_write_vectored(&self.output.pieces())
            } else {
                self.stream.try_write(self.output.first())
            };
            match taken {
                Ok(n) => {
                    self.output.advance(n);
                    self.written += n as u64;
                    self.metrics.bytes_sent.inc_by(n as u64);
                    self.peer.listener.metrics.sent.inc_by(n as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.stream.try_flush()?;
        self.output.reset();
        Ok(())
    }

    /// Bytes that wait to be written, in TLS and WebSocket too.
    pub(super) fn backlog(&self) -> usize {
        self.output.len() + self.stream.pending()
    }

    /// Bytes ever added, and bytes that the socket has for certain.
    pub(super) fn positions(&self) -> (u64, u64) {
        let written = self.written.saturating_sub(self.stream.pending() as u64);
        (self.written + self.output.len() as u64, written)
    }

    /// Says that nothing more comes, where there is a way to say it.
    pub(super) fn close(&mut self) {
        self.stream.try_close();
    }

    /// Ends the connection, as the other end can see.
    pub(super) async fn shutdown(&mut self) {
        self.stream.shutdown().await;
    }

    /// Waits until the other end has read what was written last, and has ended too. Cancel-safe.
    pub(super) async fn linger(&self) {
        self.stream.linger().await;
    }

    /// Lets go of buffers that hold nothing.
    pub(super) fn compact(&mut self) {
        // Also if it has no capacity left: it still holds what it was part of.
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        self.output.compact();
        self.stream.compact();
    }
}
