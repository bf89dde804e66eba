//! A TCP or Unix socket.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::task::{Context, Poll};

use bytes::{BufMut, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncWriteExt, Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

#[cfg(test)]
use super::memory::MemorySocket;

/// Bytes that are read to be thrown away at once.
const DISCARDED_AT_ONCE: usize = 4096;

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    /// Over the network.
    Tcp(TcpStream),
    /// On this machine.
    Unix(UnixStream),
    /// In a test.
    #[cfg(test)]
    Memory(MemorySocket),
}

impl Socket {
    /// Waits until it is ready. Cancel-safe. A socket that is always ready has its task yield now and then: nobody
    /// sends so fast that timers and other tasks have no turn.
    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        tokio::task::coop::consume_budget().await;
        match self {
            Self::Tcp(stream) => stream.ready(interest).await,
            Self::Unix(stream) => stream.ready(interest).await,
            #[cfg(test)]
            Self::Memory(stream) => stream.ready(interest).await,
        }
    }

    pub(super) fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(context),
            Self::Unix(stream) => stream.poll_read_ready(context),
            #[cfg(test)]
            Self::Memory(stream) => stream.poll_read_ready(context),
        }
    }

    pub(super) fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_write_ready(context),
            Self::Unix(stream) => stream.poll_write_ready(context),
            #[cfg(test)]
            Self::Memory(stream) => stream.poll_write_ready(context),
        }
    }

    /// Whether bytes or the end have come that were not read, asked of the system itself: the runtime may not have heard
    /// of them.
    pub(super) fn has_input(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let socket = match self {
            Self::Tcp(stream) => SockRef::from(stream),
            Self::Unix(stream) => SockRef::from(stream),
            #[cfg(test)]
            Self::Memory(stream) => return stream.has_input(),
        };
        socket.peek(&mut byte).is_ok()
    }

    /// Fills the room there is, of which `into` must have some.
    pub(super) fn try_read_buf(&self, into: &mut impl BufMut) -> io::Result<usize> {
        let room = into.chunk_mut().len();
        self.try_io(Interest::READABLE, room, || match self {
            Self::Tcp(stream) => stream.try_read_buf(into),
            Self::Unix(stream) => stream.try_read_buf(into),
            #[cfg(test)]
            Self::Memory(stream) => stream.try_read_buf(into),
        })
    }

    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.try_io(Interest::WRITABLE, bytes.len(), || match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
            #[cfg(test)]
            Self::Memory(stream) => stream.try_write(bytes),
        })
    }

    pub(super) fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        self.try_io(Interest::WRITABLE, length, || match self {
            Self::Tcp(stream) => stream.try_write_vectored(pieces),
            Self::Unix(stream) => stream.try_write_vectored(pieces),
            #[cfg(test)]
            Self::Memory(stream) => stream.try_write_vectored(pieces),
        })
    }

    /// Has `once` move `wanted` bytes. Moving fewer says that there is no more for now, as an attempt to move more would,
    /// which it saves: readiness is told by its edges (epoll, kqueue).
    fn try_io(
        &self,
        interest: Interest,
        wanted: usize,
        once: impl FnOnce() -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut moved = 0;
        let short = || {
            moved = once()?;
            if (1..wanted).contains(&moved) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(moved) }
        };
        let result = match self {
            Self::Tcp(stream) => stream.try_io(interest, short),
            Self::Unix(stream) => stream.try_io(interest, short),
            #[cfg(test)]
            Self::Memory(_) => short(),
        };
        match result {
            // What comes from here on is told anew: readiness was looked at before.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && moved > 0 => Ok(moved),
            result => result,
        }
    }

    pub(super) async fn shutdown(&mut self) {
        // The other end may have been faster, which is as good.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown().await,
            Self::Unix(stream) => stream.shutdown().await,
            #[cfg(test)]
            Self::Memory(stream) => {
                stream.shutdown();
                Ok(())
            }
        };
    }

    /// Reads what still comes, and throws it away, until the other end ends or is gone. Cancel-safe.
    pub(super) async fn discard(&self) {
        let mut bytes = BytesMut::with_capacity(DISCARDED_AT_ONCE);
        while self.ready(Interest::READABLE).await.is_ok() {
            bytes.clear();
            match self.try_read_buf(&mut bytes) {
                Ok(0) => return,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Fills `bytes`, and reads no byte more. False if the connection ended before.
    ///
    /// # Errors
    /// If the socket fails. `check` sees what has come so far, each time more has come, and may refuse it. Not
    /// cancel-safe.
    pub(crate) async fn read_exact<E: From<io::Error>>(
        &self,
        bytes: &mut [u8],
        check: impl Fn(&[u8]) -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut filled = 0;
        while filled < bytes.len() {
            self.ready(Interest::READABLE).await?;
            match io::Read::read(&mut &*self, &mut bytes[filled..]) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    filled += n;
                    check(&bytes[..filled])?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

impl From<TcpStream> for Socket {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl From<UnixStream> for Socket {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

#[cfg(test)]
impl From<MemorySocket> for Socket {
    fn from(stream: MemorySocket) -> Self {
        Self::Memory(stream)
    }
}

/// What goes at once.
impl io::Read for &Socket {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.try_io(Interest::READABLE, into.len(), || match self {
            Socket::Tcp(stream) => stream.try_read(into),
            Socket::Unix(stream) => stream.try_read(into),
            #[cfg(test)]
            Socket::Memory(stream) => stream.try_read(into),
        })
    }
}

/// What goes at once.
impl io::Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.try_write(bytes)
    }

    /// Several records in one call.
    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write_vectored(pieces)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
