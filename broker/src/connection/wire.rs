//! The socket of one client and its two buffers.
//!
//! Reading takes what the socket has; writing gathers packets and hands them over in one piece. Both buffers
//! are let go when they are empty, so that an idle connection holds none.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::Interest;
use weir_codec::{EncodeError, ProtocolVersion};
use weir_session::Transmit;

use super::wait::Socket;
use crate::listen::{self, Peer};
use crate::metrics::{Closed, Metrics};
use crate::transport::Stream;

/// Bytes read in one go at most.
const READ_BYTES: usize = 64 * 1024;
/// Bytes that may wait to be written before sources of deliveries are asked for no more.
pub(super) const WRITE_HIGH_WATER: usize = 128 * 1024;
/// Capacity from which an empty write buffer is let go at once.
const KEEP_CAPACITY: usize = 256 * 1024;

thread_local! {
    /// Where reads go first, so that a connection holds just what has come: most packets are tiny, and a payload keeps
    /// alive the whole buffer that it is part of.
    static SCRATCH: RefCell<BytesMut> = RefCell::default();
}

/// One client's socket.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Stream,
    peer: Peer,
    /// Largest packet the client takes, once its CONNECT has said so.
    pub(super) packet_size_max: u32,
    pub(super) input: BytesMut,
    output: BytesMut,
    /// Bytes that the stream has taken.
    written: u64,
    metrics: Metrics,
}

impl Wire {
    pub(super) fn new(stream: Stream, peer: Peer, metrics: Metrics) -> Self {
        let packet_size_max = u32::MAX;
        let (input, output) = (BytesMut::new(), BytesMut::new());
        Self { stream, peer, packet_size_max, input, output, written: 0, metrics }
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

    /// Reads what there is. False at the end of the stream.
    pub(super) fn fill(&mut self) -> io::Result<bool> {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            scratch.reserve(READ_BYTES);
            match self.stream.try_read_buf(scratch) {
                Ok(0) => Ok(false),
                Ok(n) => {
                    self.input.extend_from_slice(scratch);
                    self.metrics.bytes_received.inc_by(n as u64);
                    self.peer.listener.metrics.received.inc_by(n as u64);
                    Ok(true)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
                Err(error) => Err(error),
            }
        })
    }

    /// Adds a packet to what will be written.
    pub(super) fn put(&mut self, transmit: &Transmit, version: ProtocolVersion) -> Result<(), EncodeError> {
        match transmit {
            Transmit::Packet(packet) => {
                weir_codec::encode(packet, version, &mut self.output)?;
                self.metrics.packets_sent.inc(packet.packet_type());
            }
            Transmit::Publish { header, topic_on_wire, message, extra } => {
                let topic = if *topic_on_wire { message.topic.as_str() } else { "" };
                let out = &mut self.output;
                let properties = &message.properties;
                weir_codec::encode_publish(out, version, header, topic, properties, extra, &message.payload)?;
                self.metrics.packets_sent.inc(weir_codec::PacketType::Publish);
                self.metrics.deliveries.inc(header.qos);
                self.metrics.delivered_bytes.inc_by(message.payload.len() as u64);
            }
        }
        Ok(())
    }

    /// Writes as much as the socket takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.try_write(&self.output) {
                Ok(n) => {
                    // Unlike a split, this leaves the buffer in one piece and allocates nothing.
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
        if self.output.capacity() > KEEP_CAPACITY {
            self.output = BytesMut::new();
        } else {
            self.output.clear();
        }
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

    /// Lets go of buffers that hold nothing.
    pub(super) fn compact(&mut self) {
        // Also of those that have no capacity left: they still hold what they were part of.
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        if self.output.is_empty() {
            self.output = BytesMut::new();
        }
        self.stream.compact();
    }
}
