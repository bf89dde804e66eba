//! Where what a client sends is read to: a connection holds about what has come and is not decoded, however much its
//! packets say they have, and a stream of large packets is copied as little as can be.
//!
//! Knows neither sockets nor packets. Owned by the wire.

use std::cell::RefCell;
use std::io;

use bytes::BytesMut;

/// Bytes read in one go at most, unless a packet is larger.
pub(super) const READ_BYTES: usize = 64 * 1024;
/// A read that brings this much is taken for one of many.
const BULK_BYTES: usize = READ_BYTES / 2;

thread_local! {
    /// Where reads go first, so that a connection holds just what has come: most packets are tiny.
    static SCRATCH: RefCell<BytesMut> = RefCell::default();
}

/// How the next read is made.
#[derive(Debug, Default)]
pub(super) struct Intake {
    /// The last read brought so much that the next is made without a detour.
    bulk: bool,
    /// The buffer was made for a large packet, and what follows it is not to keep it.
    outgrown: bool,
}

impl Intake {
    /// Has `read` add to a buffer, of which at most so many bytes are to be used, and sees that it ends up in `input`. The
    /// packet that has begun there lacks `missing` bytes. How many have been added.
    pub(super) fn read(
        &mut self,
        input: &mut BytesMut,
        missing: usize,
        read: impl FnOnce(&mut BytesMut, usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if input.is_empty() && std::mem::take(&mut self.outgrown) {
            *input = BytesMut::new();
        }
        let before = input.len();
        let result = if self.bulk {
            // Grows with what has come, whatever was announced, and takes nothing of what follows a large packet.
            input.reserve(READ_BYTES);
            self.outgrown = before.saturating_add(missing) > READ_BYTES;
            let wanted = if self.outgrown { missing } else { READ_BYTES };
            let room = wanted.min(input.capacity() - before);
            read(input, room)
        } else {
            SCRATCH.with_borrow_mut(|scratch| {
                scratch.clear();
                scratch.reserve(READ_BYTES);
                let result = read(scratch, READ_BYTES);
                input.extend_from_slice(scratch);
                result
            })
        };
        let was_bulk = std::mem::replace(&mut self.bulk, input.len() - before >= BULK_BYTES);
        if was_bulk && !self.bulk && input.capacity() > 2 * input.len() {
            *input = BytesMut::from(&input[..]);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that has so many bytes.
    fn read_from(input: &mut BytesMut, intake: &mut Intake, missing: usize, available: usize) -> usize {
        let before = input.len();
        let read = intake.read(input, missing, |into, room| {
            let read = room.min(available);
            into.extend_from_slice(&vec![1; read]);
            Ok(read)
        });
        assert_eq!(read.unwrap(), input.len() - before);
        input.len() - before
    }

    #[test]
    fn what_is_announced_and_not_sent_takes_no_memory() {
        const ANNOUNCED: usize = 16 << 20;
        // In tiny pieces, in large ones, and in large ones that dry up.
        for pieces in
            [&[5, 1, 1, 1][..], &[READ_BYTES; 20], &[READ_BYTES, READ_BYTES, 1], &[READ_BYTES, 0, 0]]
        {
            let (mut input, mut intake) = (BytesMut::new(), Intake::default());
            for &piece in pieces {
                let missing = ANNOUNCED - input.len();
                read_from(&mut input, &mut intake, missing, piece);
                let held = input.capacity();
                assert!(
                    held <= 64.max(2 * (input.len() + READ_BYTES)),
                    "{held} for {} in {pieces:?}",
                    input.len()
                );
            }
        }
    }

    #[test]
    fn a_large_packet_is_read_in_few_pieces_and_no_further() {
        const PACKET: usize = (16 << 20) + 1;
        let (mut input, mut intake) = (BytesMut::new(), Intake::default());
        let mut reads = 0;
        while input.len() < PACKET {
            let missing = PACKET - input.len();
            read_from(&mut input, &mut intake, missing, usize::MAX);
            reads += 1;
        }
        assert_eq!(input.len(), PACKET);
        assert!(reads < 12, "{reads} reads");
        let packet = input.split_to(PACKET);
        read_from(&mut input, &mut intake, 2, usize::MAX);
        assert!(input.capacity() <= 2 * READ_BYTES, "{}: part of {}", input.capacity(), packet.len());
    }

    #[test]
    fn a_stream_of_packets_goes_straight_to_where_it_stays() {
        let (mut input, mut intake) = (BytesMut::new(), Intake::default());
        assert_eq!(read_from(&mut input, &mut intake, 2, usize::MAX), READ_BYTES);
        let packet = input.split_to(READ_BYTES - 10);
        assert_eq!(read_from(&mut input, &mut intake, 100, usize::MAX), READ_BYTES);
        drop((packet, input.split_to(READ_BYTES)));
        // A small read ends it, and nothing is kept for more.
        read_from(&mut input, &mut intake, 2, 10);
        assert_eq!(input.len(), 20);
        assert!(input.capacity() <= 64, "{}", input.capacity());
    }

    #[test]
    fn nothing_is_lost_when_a_read_fails() {
        let (mut input, mut intake) =
            (BytesMut::from(&b"ab"[..]), Intake { bulk: true, ..Intake::default() });
        let failed = intake.read(&mut input, 2, |_, _| Err(io::ErrorKind::WouldBlock.into()));
        assert!(failed.is_err());
        assert_eq!(input, "ab");
        assert!(!intake.bulk);
    }
}
