//! Frames in memory of their own, so that what is kept of a packet keeps nothing but that packet.

use bytes::Bytes;

/// A short frame beside its counter: one allocation, however many slices are made of it.
struct Short<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> AsRef<[u8]> for Short<N> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// A copy of `frame`.
pub(super) fn copied(frame: &[u8]) -> Bytes {
    match frame.len() {
        0..=64 => short::<64>(frame),
        65..=128 => short::<128>(frame),
        129..=256 => short::<256>(frame),
        257..=512 => short::<512>(frame),
        513..=1152 => short::<1152>(frame),
        _ => Bytes::copy_from_slice(frame),
    }
}

fn short<const N: usize>(frame: &[u8]) -> Bytes {
    let mut bytes = [0; N];
    match bytes.get_mut(..frame.len()) {
        Some(room) => {
            room.copy_from_slice(frame);
            Bytes::from_owner(Short { bytes, length: frame.len() })
        }
        None => Bytes::copy_from_slice(frame),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_as_long_as_its_frame() {
        for length in (0..1300).chain([16 << 10]) {
            let frame: Vec<u8> = (0..length).map(|n: usize| n.to_le_bytes()[0]).collect();
            assert_eq!(copied(&frame), frame);
        }
    }
}
