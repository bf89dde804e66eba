//! Bytes and packets of one connection, and its pings. Knows no packet's meaning except PINGRESP.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use weir_codec::{
    Decoder, DecoderConfig, MessageProperties, Packet, ProtocolVersion, Publish, PublishHeader, Role, encode,
    encode_publish,
};
use weir_env::clock::Clock;

use super::tls::{ClientTls, TlsFiles};
use super::{ConnectOptions, Endpoint, Error};
use crate::transport::Stream;

/// Bytes asked for in one read.
const READ_BYTES: usize = 64 << 10;
/// Bytes of a buffer from which on the connection stops to read: of received bytes only while it writes, of bytes to
/// write because a server that does not read shall not make this side hold ever more acknowledgements.
const BUFFER_BYTES_MAX: usize = 32 << 20;

#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    decoder: Decoder,
    input: BytesMut,
    output: BytesMut,
    version: ProtocolVersion,
    clock: Clock,
    keep_alive: Duration,
    /// Longest wait for PINGRESP.
    pong_wait: Duration,
    last_write: Instant,
    pinged: Option<Instant>,
}

/// A connection after its CONNACK, without the client around it.
#[derive(Debug)]
pub struct Parts {
    /// The connection below.
    pub stream: Stream,
    /// Decodes what the server sends.
    pub decoder: Decoder,
    /// Received and not yet decoded.
    pub input: BytesMut,
    /// Encoded and not yet written.
    pub output: BytesMut,
    /// Messages received and not yet taken.
    pub received: VecDeque<Publish>,
}

impl Connection {
    pub(super) async fn open(endpoint: &Endpoint, options: &ConnectOptions) -> Result<Self, Error> {
        let failed = |source| Error::Connect { address: endpoint.to_string(), source };
        let mut input = BytesMut::new();
        let connecting = establish(endpoint, options, &mut input);
        let stream = tokio::time::timeout(options.deadline, connecting)
            .await
            .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
            .map_err(failed)?;
        let config = DecoderConfig {
            max_packet_size: options.max_packet_size,
            role: Role::Client { version: options.version },
        };
        Ok(Self {
            stream,
            decoder: Decoder::new(config),
            input,
            output: BytesMut::new(),
            version: options.version,
            clock: options.clock,
            keep_alive: Duration::from_secs(options.keep_alive.into()),
            pong_wait: options.deadline,
            last_write: options.clock.now(),
            pinged: None,
        })
    }

    pub(super) fn now(&self) -> Instant {
        self.clock.now()
    }

    pub(super) fn set_keep_alive(&mut self, seconds: u16) {
        self.keep_alive = Duration::from_secs(seconds.into());
    }

    pub(super) fn encode(&mut self, packet: &Packet) -> Result<(), Error> {
        Ok(encode(packet, self.version, &mut self.output)?)
    }

    pub(super) fn encode_publish(
        &mut self,
        header: &PublishHeader,
        topic: &str,
        properties: &MessageProperties,
        payload: &[u8],
    ) -> Result<(), Error> {
        let extra: &[(&str, &str)] = &[];
        Ok(encode_publish(&mut self.output, self.version, header, topic, properties, extra, payload)?)
    }

    /// The next packet but PINGRESP. Cancel-safe.
    pub(super) async fn packet(&mut self, limit: Option<Instant>) -> Result<Packet, Error> {
        loop {
            match self.decoder.decode(&mut self.input)? {
                Some(Packet::PingResp) => self.pinged = None,
                Some(packet) => return Ok(packet),
                None => self.transfer(limit).await?,
            }
        }
    }

    /// Writes all that is buffered, and reads what comes meanwhile, so that two sides that both write don't wait for
    /// each other for ever. Cancel-safe.
    pub(super) async fn flush(&mut self, limit: Option<Instant>) -> Result<(), Error> {
        while !self.output.is_empty() || self.stream.pending() > 0 {
            self.transfer(limit).await?;
        }
        Ok(())
    }

    /// Ends the connection when all is written.
    pub(super) async fn shutdown(mut self) {
        self.stream.shutdown().await;
    }

    pub(super) fn into_parts(self, received: VecDeque<Publish>) -> Parts {
        Parts { stream: self.stream, decoder: self.decoder, input: self.input, output: self.output, received }
    }

    /// Moves bytes in whichever direction is ready first; pings when it is time. Cancel-safe.
    async fn transfer(&mut self, limit: Option<Instant>) -> Result<(), Error> {
        let may_read = self.output.len() < BUFFER_BYTES_MAX
            && (self.output.is_empty() || self.input.len() < BUFFER_BYTES_MAX);
        let interest = match (may_read, self.output.is_empty()) {
            (true, true) => Interest::READABLE,
            (true, false) => Interest::READABLE | Interest::WRITABLE,
            (false, _) => Interest::WRITABLE,
        };
        let ping_limit = self.ping_limit();
        let ready = match [limit, ping_limit].into_iter().flatten().min() {
            Some(at) => tokio::time::timeout_at(at, self.stream.ready(interest)).await,
            None => Ok(self.stream.ready(interest).await),
        };
        let Ok(ready) = ready else {
            let now = self.now();
            if limit.is_some_and(|limit| limit <= now) {
                return Err(Error::Deadline);
            }
            return if ping_limit.is_some_and(|limit| limit <= now) { self.ping(now) } else { Ok(()) };
        };
        let ready = ready?;
        if ready.is_writable() && self.output.is_empty() {
            self.stream.try_flush()?;
        } else if ready.is_writable() {
            match self.stream.try_write(&self.output) {
                Ok(written) => {
                    self.output.advance(written);
                    self.last_write = self.now();
                    if self.output.is_empty() && self.stream.pending() == 0 {
                        // Who only wanted to write must not fail because the server ends the connection after it.
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        if may_read && ready.is_readable() {
            self.input.reserve(READ_BYTES);
            match self.stream.try_read_buf(&mut self.input) {
                Ok(0) => return Err(Error::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// When to ping, or when to give up the server that does not answer a ping.
    fn ping_limit(&self) -> Option<Instant> {
        match self.pinged {
            Some(pinged) => pinged.checked_add(self.pong_wait),
            None if self.keep_alive.is_zero() => None,
            // Early enough that the ping arrives within the keep-alive.
            None => self.last_write.checked_add(self.keep_alive / 4 * 3),
        }
    }

    fn ping(&mut self, now: Instant) -> Result<(), Error> {
        if self.pinged.is_some() {
            return Err(Error::NoAnswer { what: "PINGRESP", after: self.pong_wait });
        }
        self.pinged = Some(now);
        self.encode(&Packet::PingReq)
    }
}

/// Connects, through TLS and WebSocket if the endpoint says so. What came already is added to `input`.
async fn establish(
    endpoint: &Endpoint,
    options: &ConnectOptions,
    input: &mut BytesMut,
) -> io::Result<Stream> {
    let (transport, host, port, path) = match endpoint {
        Endpoint::Unix(path) => return UnixStream::connect(path).await.map(Stream::new),
        Endpoint::Net { transport, host, port, path } => (transport, host.as_str(), *port, path.as_str()),
    };
    let socket = TcpStream::connect((host, port)).await?;
    socket.set_nodelay(true)?;
    let mut stream = Stream::new(socket);
    if transport.is_tls() {
        let tls = match &options.tls {
            Some(tls) => tls.clone(),
            None => ClientTls::load(&TlsFiles::default()).map_err(io::Error::other)?,
        };
        let alpn: &[u8] = if transport.is_websocket() { b"http/1.1" } else { b"mqtt" };
        let connection = tls.connection(host, alpn).map_err(io::Error::other)?;
        stream.start_tls(connection, input).await?;
    }
    if transport.is_websocket() {
        stream.connect_websocket((&endpoint.to_string(), path), input).await.map_err(io::Error::other)?;
    }
    Ok(stream)
}
