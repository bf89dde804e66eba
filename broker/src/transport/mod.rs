//! Bytes between two ends: a TCP or Unix socket, and what may lie over it, TLS and WebSocket, on the side of the
//! server and of the client.
//!
//! A [`Stream`] never waits but in [`Stream::ready`] and in its handshakes: reading and writing move what goes at
//! once. A plain socket costs nothing beyond itself; layers are made when they are used. What they hold is bounded:
//! one record or frame header of what was received, one piece of [`CHUNK`] bytes of what is to be sent. Nothing here
//! knows MQTT, but for the name of its WebSocket protocol.

#[cfg(test)]
pub(crate) mod memory;
mod socket;
mod tls;
mod upgrade;
mod ws;

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::{BufMut, BytesMut};
use tokio::io::{Interest, Ready};
use weir_env::seed::Seed;

pub use socket::Socket;
use tls::Tls;
pub use upgrade::UpgradeError;
use ws::WebSocket;

/// Bytes that a layer takes at once and may hold unwritten, before its own overhead.
const CHUNK: usize = 64 << 10;
/// Bytes read at once, about.
const READ_BYTES: usize = 64 << 10;

/// A connection, as bytes of what is spoken over it.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    layers: Option<Box<Layers>>,
}

/// What lies over the socket; WebSocket over TLS if there are both.
#[derive(Debug, Default)]
struct Layers {
    tls: Option<Tls>,
    ws: Option<WebSocket>,
}

/// What a WebSocket lies over.
struct Below<'a> {
    socket: &'a Socket,
    tls: Option<&'a mut Tls>,
}

impl Stream {
    /// A socket with nothing over it.
    #[must_use]
    pub fn new(socket: impl Into<Socket>) -> Self {
        Self { socket: socket.into(), layers: None }
    }

    /// The socket below.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Speaks TLS from here on: waits until the handshake is done. What came with its end is added to `input`. Not
    /// cancel-safe: a connection whose handshake is given up is of no use.
    ///
    /// # Errors
    /// If the socket fails or ends, or with [`rustls::Error`] inside if the other end breaks the protocol or is not
    /// trusted. It has been told so then.
    pub async fn start_tls(
        &mut self,
        connection: impl Into<rustls::Connection>,
        input: &mut BytesMut,
    ) -> io::Result<()> {
        let mut tls = Tls::new(connection.into());
        tls.handshake(&self.socket, input).await?;
        self.layers.get_or_insert_default().tls = Some(tls);
        Ok(())
    }

    /// The TLS connection, if there is one.
    #[must_use]
    pub fn tls(&self) -> Option<&rustls::Connection> {
        self.layers.as_ref()?.tls.as_ref().map(Tls::connection)
    }

    /// Speaks WebSocket from here on, as the server: waits for the request, and answers it, also if it is refused.
    /// `input` is what has been read already; afterwards, what came with the request. Pages of other web sites than
    /// those of `origins` and of the host that is asked are refused. Not cancel-safe.
    ///
    /// # Errors
    /// If the connection fails or ends, or the request is none or not for us.
    pub async fn accept_websocket(
        &mut self,
        (paths, origins): (&[String], &[String]),
        input: &mut BytesMut,
    ) -> Result<(), UpgradeError> {
        let received = upgrade::accept(self, (paths, origins), std::mem::take(input)).await?;
        self.start_websocket(WebSocket::server(received), input)
    }

    /// Speaks WebSocket from here on, as the client. What came with the answer is added to `input`. Not cancel-safe.
    ///
    /// # Errors
    /// If the connection fails or ends, or the server does not agree.
    pub async fn connect_websocket(
        &mut self,
        (host, path): (&str, &str),
        input: &mut BytesMut,
    ) -> Result<(), UpgradeError> {
        let seed = Seed::from_entropy();
        let received = upgrade::connect(self, (host, path), &seed, std::mem::take(input)).await?;
        self.start_websocket(WebSocket::client(received, seed), input)
    }

    fn start_websocket(&mut self, mut ws: WebSocket, input: &mut BytesMut) -> Result<(), UpgradeError> {
        ws.parse(input).map_err(UpgradeError::Io)?;
        self.layers.get_or_insert_default().ws = Some(ws);
        Ok(())
    }

    /// Waits until the socket is ready for `interest`, or to take what the layers hold. An end that a layer has read
    /// already is ready at once. Cancel-safe.
    ///
    /// # Errors
    /// If the socket fails.
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        let ws = self.layers.as_ref().and_then(|layers| layers.ws.as_ref());
        if interest.is_readable() && ws.is_some_and(WebSocket::is_readable) {
            return Ok(Ready::READABLE);
        }
        let interest = if self.pending() > 0 { interest | Interest::WRITABLE } else { interest };
        self.socket.ready(interest).await
    }

    /// As [`Self::ready`], without a future, for one task: whether it can be read, if so wanted, else it can be written.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn poll_ready(&self, read: bool, write: bool, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let ws = self.layers.as_ref().and_then(|layers| layers.ws.as_ref());
        if read && ws.is_some_and(WebSocket::is_readable) {
            return Poll::Ready(Ok(true));
        }
        let readable = read && self.socket.poll_read_ready(context)?.is_ready();
        let writable = (write || self.pending() > 0) && self.socket.poll_write_ready(context)?.is_ready();
        if readable || writable { Poll::Ready(Ok(readable)) } else { Poll::Pending }
    }

    /// Whether the socket has something to read, of which the runtime may not have heard yet.
    #[must_use]
    pub fn has_input(&self) -> bool {
        self.socket.has_input()
    }

    /// Reads what there is; `Ok(0)` is the end. `into` needs room: a plain socket fills what there is.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is nothing, others if the connection is lost or the other end broke a
    /// protocol below; it has been told so then.
    pub fn try_read_buf(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        let Some(layers) = &mut self.layers else { return self.socket.try_read_buf(into) };
        let Layers { tls, ws } = &mut **layers;
        let mut below = Below { socket: &self.socket, tls: tls.as_mut() };
        match ws {
            Some(ws) => ws.read(&mut below, into),
            None => below.read(into),
        }
    }

    /// As [`Self::try_read_buf`], but takes no more than `max` bytes from a plain socket.
    ///
    /// # Errors
    /// As [`Self::try_read_buf`].
    pub fn try_read_at_most(&mut self, into: &mut BytesMut, max: usize) -> io::Result<usize> {
        if self.is_plain() { self.socket.try_read_buf(&mut into.limit(max)) } else { self.try_read_buf(into) }
    }

    /// Whether there is nothing over the socket: then large pieces are written without being copied.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.layers.is_none()
    }

    /// As [`Self::try_write`], of several pieces, as far as a layer takes them at once.
    ///
    /// # Errors
    /// As [`Self::try_write`].
    pub fn try_write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.is_plain() {
            return self.socket.try_write_vectored(pieces);
        }
        self.try_write(pieces.first().map_or(&[], |piece| piece))
    }

    /// Takes bytes to write, as many as go: bytes taken may be [`pending`](Self::pending) for a while.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if none can be taken, others if the connection is lost.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(layers) = &mut self.layers else { return self.socket.try_write(bytes) };
        let Layers { tls, ws } = &mut **layers;
        let mut below = Below { socket: &self.socket, tls: tls.as_mut() };
        match ws {
            Some(ws) => ws.write(&mut below, bytes),
            None => below.write(bytes),
        }
    }

    /// Writes what the layers hold, as far as it goes at once.
    ///
    /// # Errors
    /// If the connection is lost.
    pub fn try_flush(&mut self) -> io::Result<()> {
        let Some(layers) = &mut self.layers else { return Ok(()) };
        let Layers { tls, ws } = &mut **layers;
        let mut below = Below { socket: &self.socket, tls: tls.as_mut() };
        if let Some(ws) = ws {
            ws.flush(&mut below)?;
        }
        below.flush()
    }

    /// Bytes that were taken and that the socket has not, about: zero if and only if there are none.
    #[must_use]
    pub fn pending(&self) -> usize {
        let Some(layers) = &self.layers else { return 0 };
        let tls = layers.tls.as_ref().map_or(0, Tls::pending);
        tls + layers.ws.as_ref().map_or(0, WebSocket::pending)
    }

    /// Says that no more is written, as far as that goes at once. What was taken should have been written before.
    pub fn try_close(&mut self) {
        if let Some(layers) = &mut self.layers {
            if let Some(ws) = &mut layers.ws {
                ws.close();
            }
            // Whoever is gone needs no farewell.
            let _ = self.try_flush();
        }
        if let Some(tls) = self.layers.as_mut().and_then(|layers| layers.tls.as_mut()) {
            tls.close();
            let _ = tls.flush(&self.socket);
        }
    }

    /// Ends the connection in order, and waits until the other end can know.
    pub async fn shutdown(&mut self) {
        self.try_close();
        self.socket.shutdown().await;
    }

    /// After [`shutdown`](Self::shutdown), waits until the other end has ended too or is gone. A socket that is let go with
    /// input that nobody has read is reset, and takes from the other end what it has not read yet. Cancel-safe.
    pub async fn linger(&self) {
        self.socket.discard().await;
    }

    /// Lets go of buffers that hold nothing.
    pub fn compact(&mut self) {
        if let Some(ws) = self.layers.as_mut().and_then(|layers| layers.ws.as_mut()) {
            ws.compact();
        }
    }
}

impl Below<'_> {
    fn read(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => tls.read(self.socket, into),
            None => self.socket.try_read_buf(into),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            Some(tls) => tls.write(self.socket, bytes),
            None => self.socket.try_write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => tls.flush(self.socket),
            None => Ok(()),
        }
    }
}
