//! TLS over a socket. Who is trusted is decided by whoever makes the connection's configuration.

use std::io::{self, BufRead, Write};

use bytes::BytesMut;
use rustls::Connection;
use tokio::io::Interest;

use super::socket::Socket;
use super::{CHUNK, READ_BYTES};

/// Largest plaintext of a record [RFC 8446, 5.1].
const RECORD_BYTES: usize = 16 << 10;
/// More than a record adds to it.
const RECORD_OVERHEAD_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Tls {
    connection: Connection,
    /// Bytes that were taken and that the socket may not have, rather too many than too few.
    unwritten: usize,
}

impl Tls {
    pub(super) fn new(mut connection: Connection) -> Self {
        // One piece is taken when all before is written: never more than this is held.
        connection.set_buffer_limit(Some(CHUNK));
        Self { connection, unwritten: 0 }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) async fn handshake(&mut self, socket: &Socket, input: &mut BytesMut) -> io::Result<()> {
        loop {
            self.flush(socket)?;
            let writes = self.connection.wants_write();
            if !self.connection.is_handshaking() && !writes {
                return Ok(());
            }
            let interest = match (self.connection.is_handshaking(), writes) {
                (true, true) => Interest::READABLE | Interest::WRITABLE,
                (true, false) => Interest::READABLE,
                // What comes now is read when the last of ours is written.
                (false, _) => Interest::WRITABLE,
            };
            let ready = socket.ready(interest).await?;
            if interest.is_readable() && ready.is_readable() {
                match self.read_records(socket, input) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Reads and decrypts once; the number of bytes that came.
    fn read_records(&mut self, mut socket: &Socket, into: &mut BytesMut) -> io::Result<usize> {
        let read = self.connection.read_tls(&mut socket)?;
        if read == 0 {
            return Ok(0);
        }
        if let Err(error) = self.connection.process_new_packets() {
            // The alert that says why; whoever does not take it learns from the end.
            let _ = self.flush(socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        let mut reader = self.connection.reader();
        // Fails where there is nothing more: the end is seen by the next read of the socket.
        while let Ok(piece) = reader.fill_buf()
            && !piece.is_empty()
        {
            let length = piece.len();
            into.extend_from_slice(piece);
            reader.consume(length);
        }
        Ok(read)
    }

    pub(super) fn read(&mut self, socket: &Socket, into: &mut BytesMut) -> io::Result<usize> {
        let before = into.len();
        let mut encrypted = 0;
        let ended = loop {
            match self.read_records(socket, into) {
                Ok(0) => break Ok(0),
                Ok(read) => {
                    encrypted += read;
                    // Also if there is nothing in the records.
                    if encrypted >= READ_BYTES {
                        break Err(io::ErrorKind::WouldBlock.into());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(error),
                Err(error) => break Err(error),
            }
        };
        // Tickets, key updates.
        let flushed = self.flush(socket);
        match into.len() - before {
            0 => flushed.and(ended),
            // What came before an end comes first; the end shows again.
            read => Ok(read),
        }
    }

    pub(super) fn write(&mut self, socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
        self.flush(socket)?;
        if self.connection.wants_write() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = self.connection.writer().write(&bytes[..bytes.len().min(CHUNK)])?;
        self.unwritten = taken + (taken / RECORD_BYTES + 1) * RECORD_OVERHEAD_MAX;
        self.flush(socket)?;
        Ok(taken)
    }

    pub(super) fn flush(&mut self, mut socket: &Socket) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.unwritten = self.unwritten.saturating_sub(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.unwritten = 0;
        Ok(())
    }

    pub(super) fn pending(&self) -> usize {
        self.unwritten.max(usize::from(self.connection.wants_write()))
    }

    /// Puts the word that nothing follows in line.
    pub(super) fn close(&mut self) {
        self.connection.send_close_notify();
    }
}
