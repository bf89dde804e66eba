//! Connections over gRPC, to the admin API and others, of which there are only so many at a time: whoever says nothing has no place among
//! them for long. Knows no calls.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::KEEPALIVE;

/// Connections there may be; others wait in the operating system.
pub(crate) const CONNECTIONS_MAX: usize = 64;
/// Time a handshake of TLS may take, and until the first byte without TLS.
pub(super) const FIRST_BYTES_WAIT: Duration = Duration::from_secs(5);
/// Longest silence afterwards: whoever speaks HTTP/2 answers a ping within this.
const SILENCE_MAX: Duration = KEEPALIVE.saturating_mul(2);
/// Wait after an error of `accept`, such as too many open files.
const ACCEPT_WAIT: Duration = Duration::from_millis(100);

/// A connection and its place among those there may be.
pub(crate) struct Connection {
    stream: TcpStream,
    /// When it is over unless something comes.
    overdue: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

/// The connections that `listener` accepts, for ever, up to `max` at a time.
pub(crate) fn incoming(listener: TcpListener, max: usize) -> impl Stream<Item = io::Result<Connection>> {
    let permits = Arc::new(Semaphore::new(max));
    stream::unfold((listener, permits), |(listener, permits)| async move {
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
        Some((Ok(Connection { stream, overdue, _permit: permit }), (listener, permits)))
    })
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
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
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
