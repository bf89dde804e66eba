//! What the load says to each kind of broker: encoders and decoders as small as they can be, and alike, so that the
//! load costs the same whoever is measured.
//!
//! A [`Wire`] turns messages into bytes and bytes into [`Event`]s; a [`Connection`] carries the bytes. Neither knows
//! the time, nor what is measured.

mod amqp;
mod mqtt;
mod nats;
mod rabbitmq_stream;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;

pub(super) use amqp::Amqp;
pub(super) use mqtt::{Mqtt, Subscribe};
pub(super) use nats::Nats;
pub(super) use rabbitmq_stream::RabbitmqStream;

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// How long a broker gets to end a connection.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// Messages that a consumer has not acknowledged, at most.
pub(super) const PREFETCH: u16 = 256;
/// The queue or the stream, in the words of each protocol: the stream of NATS, the topic's beginning for MQTT.
pub(crate) const QUEUE: &str = "bench";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Publishes, each message confirmed by the broker.
    Publisher,
    /// Consumes, and acknowledges each message when it has arrived.
    Consumer,
}

/// What a broker says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// The publish with this tag is durable, and with `multiple` all before it.
    Confirmed { tag: u64, multiple: bool },
    /// A message has arrived; its acknowledgement is written already.
    Delivered(&'a [u8]),
    /// Nothing that matters here.
    Other,
}

/// One side of a protocol, after the connection was set up.
pub(super) trait Wire: Send {
    /// Publishes are about to be written that go out together.
    fn begin_turn(&mut self) {}

    /// Writes a publish; the tag is what its confirmation will carry.
    fn publish(&mut self, output: &mut Vec<u8>, payload: &[u8]) -> u64;

    /// Takes the first whole packet of `input`: its length, and what it says. Answers go to `output`.
    fn take<'a>(&mut self, input: &'a [u8], output: &mut Vec<u8>) -> Result<Option<(usize, Event<'a>)>>;
}

/// A connection with bytes to write and bytes that were read.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    pub(super) output: Vec<u8>,
}

impl Connection {
    pub(super) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, input: Vec::new(), output: Vec::new() })
    }

    /// Waits until there is something to read, or to write if something waits. Cancel-safe.
    pub(super) async fn ready(&self) -> io::Result<()> {
        let interest =
            if self.output.is_empty() { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        self.stream.ready(interest).await.map(drop)
    }

    /// Writes what can be written, without waiting.
    pub(super) fn write(&mut self) -> io::Result<()> {
        let mut written = 0;
        while written < self.output.len() {
            match self.stream.try_write(&self.output[written..]) {
                Ok(more) => written += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.output.drain(..written);
        Ok(())
    }

    /// Reads what is there, without waiting.
    pub(super) fn read(&mut self) -> Result<()> {
        self.input.reserve(READ_BYTES);
        match self.stream.try_read_buf(&mut self.input) {
            Ok(0) => bail!("the broker closed the connection"),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends it so that all that was written is taken: nothing more is written, and what comes is passed over.
    pub(super) async fn close(mut self) -> Result<()> {
        self.stream.write_all(&self.output).await?;
        self.stream.shutdown().await?;
        let ended = async { tokio::io::copy(&mut self.stream, &mut tokio::io::sink()).await.map(drop) };
        // A broker that does not end it in time has had its chance.
        match tokio::time::timeout(CLOSE_MAX, ended).await {
            Ok(Err(error)) if error.kind() != io::ErrorKind::ConnectionReset => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Hands over what every whole packet says.
    pub(super) fn events(&mut self, wire: &mut dyn Wire, mut event: impl FnMut(&Event<'_>)) -> Result<()> {
        let mut taken = 0;
        while let Some((length, said)) = wire.take(&self.input[taken..], &mut self.output)? {
            event(&said);
            taken += length;
        }
        self.input.drain(..taken);
        Ok(())
    }

    /// Sends what waits to be written, and waits for a packet of which `find` makes something. Only to set up.
    async fn ask<T>(
        &mut self,
        mut find: impl FnMut(&[u8]) -> Result<Option<(usize, Option<T>)>>,
    ) -> Result<T> {
        loop {
            while let Some((length, found)) = find(&self.input)? {
                self.input.drain(..length);
                if let Some(found) = found {
                    return Ok(found);
                }
            }
            self.write()?;
            self.ready().await?;
            self.read()?;
        }
    }
}
