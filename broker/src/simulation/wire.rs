//! A client's end of a connection in memory: packets to bytes and back. Knows nothing of what they mean.

use bytes::{Buf, BytesMut};
use tokio::io::Interest;
use weir_codec::{Decoder, DecoderConfig, Packet, ProtocolVersion, Role, encode};

use crate::transport::memory::MemorySocket;

/// One connection. Dropped, it is cut off.
#[derive(Debug)]
pub(super) struct Wire {
    socket: MemorySocket,
    decoder: Decoder,
    input: BytesMut,
    /// Which pod it goes to.
    pub(super) pod: usize,
}

impl Wire {
    pub(super) fn new(socket: MemorySocket, pod: usize) -> Self {
        let role = Role::Client { version: ProtocolVersion::V5 };
        let decoder = Decoder::new(DecoderConfig { max_packet_size: 1 << 20, role });
        Self { socket, decoder, input: BytesMut::new(), pod }
    }

    /// `None` if the connection is over.
    pub(super) async fn send(&mut self, packet: &Packet) -> Option<()> {
        let mut output = BytesMut::new();
        encode(packet, ProtocolVersion::V5, &mut output).unwrap();
        while !output.is_empty() {
            match self.socket.try_write(&output) {
                Ok(count) => output.advance(count),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.socket.ready(Interest::WRITABLE).await.ok()?;
                }
                Err(_) => return None,
            }
        }
        Some(())
    }

    /// `None` if the connection is over. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = self.decoder.decode(&mut self.input).unwrap() {
                return Some(packet);
            }
            self.input.reserve(4096);
            match self.socket.try_read_buf(&mut self.input) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.socket.ready(Interest::READABLE).await.ok()?;
                }
                Err(_) => return None,
            }
        }
    }
}
