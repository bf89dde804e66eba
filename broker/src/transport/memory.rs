//! A socket in memory, for tests: a broker and its clients in one thread, whose runs a seed decides. Compiled into tests
//! only.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BufMut, BytesMut};
use parking_lot::Mutex;
use tokio::io::Interest;

/// Bytes that may be under way in one direction.
const ROOM: usize = 64 << 10;

/// One end of a connection; dropped, the other end reads what was sent and then the end.
#[derive(Debug)]
pub struct MemorySocket {
    /// What this end reads.
    incoming: Arc<Direction>,
    /// What this end writes.
    outgoing: Arc<Direction>,
}

/// The ways to cut a connection from outside, as a network does.
#[derive(Clone, Debug)]
pub struct Cable([Arc<Direction>; 2]);

#[derive(Debug, Default)]
struct Direction(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    bytes: BytesMut,
    /// Nobody writes any more.
    ended: bool,
    /// Nothing goes through any more, and both ends are told.
    reset: bool,
    /// Bytes stay where they are for now.
    stalled: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl State {
    fn wake(&mut self) {
        [self.reader.take(), self.writer.take()].into_iter().flatten().for_each(Waker::wake);
    }

    fn readable(&self) -> bool {
        self.reset || (!self.stalled && (self.ended || !self.bytes.is_empty()))
    }

    fn writable(&self) -> bool {
        self.reset || self.ended || self.bytes.len() < ROOM
    }
}

impl MemorySocket {
    /// Both ends of a connection, and the cable between them.
    pub fn pair() -> (Self, Self, Cable) {
        let (there, back) = (Arc::<Direction>::default(), Arc::<Direction>::default());
        let first = Self { incoming: Arc::clone(&back), outgoing: Arc::clone(&there) };
        let second = Self { incoming: Arc::clone(&there), outgoing: Arc::clone(&back) };
        (first, second, Cable([there, back]))
    }

    pub(crate) async fn ready(&self, interest: Interest) -> io::Result<tokio::io::Ready> {
        std::future::poll_fn(|context| {
            let readable = interest.is_readable() && self.poll_read_ready(context).is_ready();
            let writable = interest.is_writable() && self.poll_write_ready(context).is_ready();
            match (readable, writable) {
                (true, true) => Poll::Ready(Ok(tokio::io::Ready::READABLE | tokio::io::Ready::WRITABLE)),
                (true, false) => Poll::Ready(Ok(tokio::io::Ready::READABLE)),
                (false, true) => Poll::Ready(Ok(tokio::io::Ready::WRITABLE)),
                (false, false) => Poll::Pending,
            }
        })
        .await
    }

    pub(super) fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.incoming.0.lock();
        if state.readable() {
            return Poll::Ready(Ok(()));
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }

    pub(super) fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.outgoing.0.lock();
        if state.writable() {
            return Poll::Ready(Ok(()));
        }
        state.writer = Some(context.waker().clone());
        Poll::Pending
    }

    pub(super) fn has_input(&self) -> bool {
        self.incoming.0.lock().readable()
    }

    pub(crate) fn try_read_buf(&self, into: &mut impl BufMut) -> io::Result<usize> {
        let mut state = self.incoming.0.lock();
        if state.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if !state.readable() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = state.bytes.len().min(into.chunk_mut().len());
        into.put((&mut state.bytes).take(count));
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
        Ok(count)
    }

    pub(super) fn try_read(&self, mut into: &mut [u8]) -> io::Result<usize> {
        self.try_read_buf(&mut into)
    }

    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.outgoing.0.lock();
        if state.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if state.ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = ROOM.saturating_sub(state.bytes.len()).min(bytes.len());
        if count == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.bytes.extend_from_slice(bytes.get(..count).unwrap_or_default());
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Ok(count)
    }

    pub(super) fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut written = 0;
        for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
            match self.try_write(piece) {
                Ok(count) => written += count,
                Err(_) if written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    pub(super) fn shutdown(&self) {
        let mut state = self.outgoing.0.lock();
        state.ended = true;
        state.wake();
    }
}

impl Drop for MemorySocket {
    fn drop(&mut self) {
        self.shutdown();
        // Whoever still writes is told that nobody reads.
        let mut state = self.incoming.0.lock();
        state.ended = true;
        state.wake();
    }
}

impl Cable {
    /// Cuts the connection: both ends are told at once, and what was under way is gone.
    pub fn cut(&self) {
        for direction in &self.0 {
            let mut state = direction.0.lock();
            state.reset = true;
            state.bytes.clear();
            state.wake();
        }
    }

    /// Has nothing arrive until it is called with `false`; nobody is told.
    pub fn stall(&self, stalled: bool) {
        for direction in &self.0 {
            let mut state = direction.0.lock();
            state.stalled = stalled;
            state.wake();
        }
    }
}
