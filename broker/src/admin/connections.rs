//! Connections over gRPC, to the admin API and others, of which there are only so many at a time: whoever says nothing has no place among
//! them for long. Knows no calls. TLS begins when a connection is first used, so that none waits for the handshake of another.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::KEEPALIVE;
use crate::listen::TlsServer;

/// Connections there may be; others wait in the operating system.
pub(crate) const CONNECTIONS_MAX: usize = 64;
/// Time a handshake of TLS may take, and until the first byte without TLS.
const FIRST_BYTES_WAIT: Duration = Duration::from_secs(5);
/// Longest silence afterwards: whoever speaks HTTP/2 answers a ping within this.
const SILENCE_MAX: Duration = KEEPALIVE.saturating_mul(2);
/// Wait after an error of `accept`, such as too many open files.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

/// A connection and its place among those there may be.
pub(crate) struct Connection {
    stream: Stream,
    info: TcpConnectInfo,
    /// When it is over unless something comes.
    overdue: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

enum Stream {
    Plain(TcpStream),
    Handshake(Box<Accept<TcpStream>>),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The connections that `listener` accepts, for ever, up to `max` at a time, with the TLS that `tls` says at that moment.
pub(crate) fn incoming(
    listener: TcpListener,
    max: usize,
    tls: Option<Arc<TlsServer>>,
) -> impl futures_util::Stream<Item = io::Result<Connection>> {
    let permits = Arc::new(Semaphore::new(max));
    stream::unfold((listener, permits, tls), |(listener, permits, tls)| async move {
        let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Answers are small and waited for.
                    let _ = stream.set_nodelay(true);
                    break stream;
                }
                Err(error) => {
                    tracing::warn!(%error, "gRPC connection not accepted");
                    tokio::time::sleep(ACCEPT_WAIT).await;
                }
            }
        };
        let overdue = Box::pin(tokio::time::sleep(FIRST_BYTES_WAIT));
        let info = stream.connect_info();
        let stream = match &tls {
            Some(tls) => Stream::Handshake(Box::new(TlsAcceptor::from(tls.current()).accept(stream))),
            None => Stream::Plain(stream),
        };
        Some((Ok(Connection { stream, info, overdue, _permit: permit }), (listener, permits, tls)))
    })
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.info.clone()
    }
}

impl Stream {
    /// Ready once the handshake is over.
    fn poll_established(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Self::Handshake(accept) = self {
            let established = ready!(Pin::new(&mut **accept).poll(cx))?;
            *self = Self::Tls(Box::new(established));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_established(cx))?;
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buffer),
            Self::Handshake(_) => Poll::Pending,
        }
    }
}

impl Connection {
    /// Ready once the handshake is over, which may not take longer than the first bytes.
    fn poll_established(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream.poll_established(cx) {
            Poll::Ready(established) => Poll::Ready(established),
            Poll::Pending => self.overdue.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.stream.poll_read(cx, buffer) {
            Poll::Ready(read) => {
                self.overdue.set(tokio::time::sleep(SILENCE_MAX));
                Poll::Ready(read)
            }
            Poll::Pending => self.overdue.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_established(cx))?;
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, bytes),
            Stream::Handshake(_) => Poll::Pending,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
            // Nothing has been written.
            Stream::Handshake(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
            Stream::Handshake(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_established(cx))?;
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, slices),
            Stream::Handshake(_) => Poll::Pending,
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
            Stream::Handshake(_) => false,
        }
    }
}
