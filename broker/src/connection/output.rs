//! Bytes on their way to one client: small ones gathered in a buffer, large payloads shared with everybody else who gets
//! them, all in the order in which they were added.
//!
//! Knows no socket: it says what is next, and is told how much of it was taken. Owned by the wire.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Payloads of fewer bytes are copied: to gather them costs less than to keep track of them.
pub(super) const LARGE_MIN: usize = 4 * 1024;
/// Pieces that are handed over at once: more than the bytes do that may wait.
const PIECES_MAX: usize = 64;
/// Capacity from which an empty buffer is let go at once.
const KEEP_CAPACITY: usize = 256 * 1024;

/// What waits to be written.
#[derive(Debug, Default)]
pub(super) struct Output {
    /// Everything but the large payloads.
    small: BytesMut,
    large: VecDeque<Large>,
    /// Bytes of `small` behind the last large payload.
    behind: usize,
    /// Bytes of all payloads in `large`.
    large_bytes: usize,
}

#[derive(Debug)]
struct Large {
    /// Bytes of `small` between the large payload before it and this one.
    ahead: usize,
    payload: Bytes,
}

/// Where pieces of the output are gathered for a vectored write.
pub(super) struct Pieces<'a> {
    slices: [IoSlice<'a>; PIECES_MAX],
    used: usize,
}

impl<'a> Pieces<'a> {
    fn push(&mut self, piece: &'a [u8]) {
        if !piece.is_empty()
            && let Some(slice) = self.slices.get_mut(self.used)
        {
            *slice = IoSlice::new(piece);
            self.used += 1;
        }
    }

    fn is_full(&self) -> bool {
        self.used == PIECES_MAX
    }
}

impl<'a> std::ops::Deref for Pieces<'a> {
    type Target = [IoSlice<'a>];

    fn deref(&self) -> &[IoSlice<'a>] {
        &self.slices[..self.used]
    }
}

impl Output {
    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.small.len() + self.large_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds whatever `write` appends to the buffer it is given, if it succeeds.
    pub(super) fn put<E>(&mut self, write: impl FnOnce(&mut BytesMut) -> Result<(), E>) -> Result<(), E> {
        let before = self.small.len();
        let written = write(&mut self.small);
        if written.is_err() {
            self.small.truncate(before);
        }
        self.behind += self.small.len() - before;
        written
    }

    /// Adds these bytes.
    pub(super) fn put_bytes(&mut self, bytes: &[u8]) {
        self.small.extend_from_slice(bytes);
        self.behind += bytes.len();
    }

    /// Adds a large payload, which stays shared.
    pub(super) fn put_large(&mut self, payload: Bytes) {
        self.large_bytes += payload.len();
        self.large.push_back(Large { ahead: std::mem::take(&mut self.behind), payload });
    }

    /// The first bytes as one piece; empty if there are none.
    pub(super) fn first(&self) -> &[u8] {
        match self.large.front() {
            Some(Large { ahead: 0, payload }) => payload,
            Some(Large { ahead, .. }) => &self.small[..*ahead],
            None => &self.small,
        }
    }

    /// Whether there is more than one piece.
    pub(super) fn is_in_pieces(&self) -> bool {
        !self.large.is_empty()
    }

    /// The first pieces, in order.
    pub(super) fn pieces(&self) -> Pieces<'_> {
        let mut pieces = Pieces { slices: [IoSlice::new(&[]); PIECES_MAX], used: 0 };
        let mut small = &self.small[..];
        for Large { ahead, payload } in &self.large {
            if pieces.is_full() {
                return pieces;
            }
            let (before, rest) = small.split_at(*ahead);
            pieces.push(before);
            pieces.push(payload);
            small = rest;
        }
        pieces.push(small);
        pieces
    }

    /// The first `taken` bytes are written.
    pub(super) fn advance(&mut self, mut taken: usize) {
        while let Some(first) = self.large.front_mut() {
            let small = taken.min(first.ahead);
            // Unlike a split, this leaves the buffer in one piece and allocates nothing.
            self.small.advance(small);
            first.ahead -= small;
            taken -= small;
            let large = taken.min(first.payload.len());
            first.payload.advance(large);
            self.large_bytes -= large;
            taken -= large;
            if first.ahead > 0 || !first.payload.is_empty() {
                return;
            }
            self.large.pop_front();
        }
        self.small.advance(taken);
        self.behind -= taken;
    }

    /// Makes room for what comes next, when all is written.
    pub(super) fn reset(&mut self) {
        if self.small.capacity() > KEEP_CAPACITY {
            self.small = BytesMut::new();
        } else {
            self.small.clear();
        }
    }

    /// Lets go of buffers that hold nothing.
    pub(super) fn compact(&mut self) {
        // Also of one that has no capacity left: it still holds what it was part of.
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Adds pieces of these sizes, those that are large shared; the bytes that must come out.
    fn add(output: &mut Output, sizes: &[usize]) -> Vec<u8> {
        let mut expected = Vec::new();
        for (n, &size) in sizes.iter().enumerate() {
            let bytes: Vec<u8> = (0..size).map(|at| u8::try_from((n * 31 + at) % 251).unwrap()).collect();
            expected.extend_from_slice(&bytes);
            if size >= 10 {
                output.put_large(bytes.into());
            } else {
                let put: Result<(), Infallible> = output.put(|buffer| {
                    buffer.extend_from_slice(&bytes);
                    Ok(())
                });
                put.unwrap();
            }
        }
        expected
    }

    /// What a socket gets that takes `at_once` bytes of what it is offered.
    fn drain(output: &mut Output, at_once: usize, vectored: bool) -> Vec<u8> {
        let mut taken = Vec::new();
        while !output.is_empty() {
            let length = output.len();
            let offered = if vectored {
                output.pieces().iter().flat_map(|piece| piece.to_vec()).collect()
            } else {
                output.first().to_vec()
            };
            assert!(!offered.is_empty());
            let n = at_once.min(offered.len());
            taken.extend_from_slice(&offered[..n]);
            output.advance(n);
            assert_eq!(output.len(), length - n);
        }
        taken
    }

    #[test]
    fn bytes_come_out_in_order_however_few_are_taken_at_once() {
        let sizes = [3, 12, 1, 2, 10, 11, 0, 9, 40, 5];
        for at_once in 1..=sizes.iter().sum() {
            for vectored in [false, true] {
                let mut output = Output::default();
                // Also if more is added when some has been taken.
                let (first, second) = sizes.split_at(at_once % sizes.len());
                let mut expected = add(&mut output, first);
                let early = at_once.min(output.len());
                output.advance(early);
                expected.drain(..early);
                expected.extend(add(&mut output, second));
                assert_eq!(output.len(), expected.len());
                assert_eq!(drain(&mut output, at_once, vectored), expected, "{at_once} at once");
                assert!(!output.is_in_pieces());
                assert!(output.first().is_empty());
            }
        }
    }

    #[test]
    fn more_pieces_than_are_handed_over_at_once_come_out_in_turns() {
        let mut output = Output::default();
        let expected = add(&mut output, &[1, 10].repeat(PIECES_MAX));
        assert_eq!(output.pieces().len(), PIECES_MAX);
        assert_eq!(drain(&mut output, usize::MAX, true), expected);
    }

    #[test]
    fn a_large_payload_is_not_copied() {
        let mut output = Output::default();
        let payload = Bytes::from(vec![7; LARGE_MIN]);
        output.put_large(payload.clone());
        assert_eq!(output.first().as_ptr(), payload.as_ptr());
        assert!(!payload.is_unique());
        output.advance(payload.len());
        assert!(payload.is_unique());
    }

    #[test]
    fn what_could_not_be_encoded_adds_nothing() {
        let mut output = Output::default();
        let expected = add(&mut output, &[3]);
        let half_way = |buffer: &mut BytesMut| {
            buffer.extend_from_slice(b"half");
            Err(1)
        };
        assert_eq!(output.put(half_way), Err(1));
        assert_eq!(drain(&mut output, 1, false), expected);
    }
}
