//! One connection under load: bytes in, bytes out, in batches.

use std::collections::VecDeque;
use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::Interest;
use weir_codec::{PacketType, Publish, ReasonCode};

use super::frame::{self, Frame};
use crate::client::Client;
use crate::transport::Stream;

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// Bytes that may wait to be written before nothing more is added.
pub(super) const OUTPUT_BYTES_MAX: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Wire {
    stream: Stream,
    input: BytesMut,
    pub(super) output: BytesMut,
}

impl Wire {
    /// Takes the connection over from the client that made it, with the messages it has received already.
    pub(super) fn new(client: Client) -> (Self, VecDeque<Publish>) {
        let parts = client.into_parts();
        let wire = Self { stream: parts.stream, input: parts.input, output: parts.output };
        (wire, parts.received)
    }

    /// Waits until there is something to read, or to write if something waits. Cancel-safe.
    pub(super) async fn ready(&self) -> io::Result<()> {
        let interest =
            if self.output.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        self.stream.ready(interest).await.map(|_| ())
    }

    /// Writes what can be written and reads what is there, without waiting.
    pub(super) fn transfer(&mut self) -> anyhow::Result<()> {
        self.write()?;
        self.input.reserve(READ_BYTES);
        match self.stream.try_read_buf(&mut self.input) {
            Ok(0) => anyhow::bail!("connection closed by the server"),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what can be written, without waiting.
    pub(super) fn write(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.try_write(&self.output) {
                Ok(written) => self.output.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.stream.try_flush()
    }

    /// Hands every whole packet that was received to `take`, with the bytes to answer.
    pub(super) fn packets(
        &mut self,
        mut take: impl FnMut(PacketType, Frame<'_>, &mut BytesMut) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut taken = 0;
        while let Some(frame) = frame::first(&self.input[taken..])? {
            let packet = frame.packet_type()?;
            if packet == PacketType::Disconnect {
                anyhow::bail!("disconnected by the server: {}", reason(frame.disconnect_reason()));
            }
            take(packet, frame, &mut self.output)?;
            taken += frame.length;
        }
        self.input.advance(taken);
        Ok(())
    }

    /// Says goodbye, without waiting for anything that does not come at once.
    pub(super) async fn close(mut self) {
        self.output.extend_from_slice(&frame::DISCONNECT);
        // Nobody is left to be told of a failure.
        let _ = self.write();
        self.stream.shutdown().await;
    }
}

/// The name of a reason code.
pub(super) fn reason(code: u8) -> String {
    ReasonCode::from_u8(code).map_or_else(|| format!("reason code 0x{code:02x}"), |reason| reason.to_string())
}
