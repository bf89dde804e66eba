//! What a pod of a cluster says of its load with each sign of life. Part of the value of `h` (`pod.rs`).
//!
//! A count of figures u8, then the figures, varint each, in an order that never changes. Those that a writer does not know
//! are absent, and those that a reader does not know are skipped: a pod's life does not depend on them.

use super::{DecodeError, Reader, Writer};

/// Whether a pod takes clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DrainState {
    /// It does.
    #[default]
    Serving,
    /// It does not, and has those go that it has.
    Draining,
    /// It does not, and has none left.
    Drained,
}

/// What a pod has to do. Rates are of 1000 seconds, so that slow ones have a value too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodLoad {
    /// Clients connected.
    pub connections: u64,
    /// Subscriptions that it knows: of its clients, and of all sessions that last.
    pub subscriptions: u64,
    /// Virtual shards that it owns.
    pub shards: u64,
    /// Rate of connections opened.
    pub connects: u64,
    /// Rate of messages published by clients.
    pub publishes: u64,
    /// Rate of messages delivered to clients.
    pub deliveries: u64,
    /// Rate of messages appended to its shards.
    pub appends: u64,
    /// Rate of bytes from clients.
    pub bytes_in: u64,
    /// Rate of bytes to clients.
    pub bytes_out: u64,
    /// Whether it takes clients.
    pub state: DrainState,
    /// Clients that were told to go since the drain under way began.
    pub shed: u64,
    /// Rate of milliseconds of processor time.
    pub cpu: u64,
}

/// How many figures there are.
const COUNT: u8 = 12;

impl PodLoad {
    /// Appends the figures.
    pub(super) fn write(&self, out: Writer) -> Writer {
        let state = match self.state {
            DrainState::Serving => 0,
            DrainState::Draining => 1,
            DrainState::Drained => 2,
        };
        let figures: [u64; COUNT as usize] = [
            self.connections,
            self.subscriptions,
            self.shards,
            self.connects,
            self.publishes,
            self.deliveries,
            self.appends,
            self.bytes_in,
            self.bytes_out,
            state,
            self.shed,
            self.cpu,
        ];
        figures.into_iter().fold(out.u8(COUNT), Writer::varint)
    }

    /// Reads them, if there are any.
    pub(super) fn read(reader: &mut Reader) -> Result<Self, DecodeError> {
        if reader.remaining() == 0 {
            return Ok(Self::default());
        }
        let mut figures = [0; COUNT as usize];
        let count = reader.u8("figures of a pod")?;
        for place in 0..usize::from(count) {
            let figure = reader.varint("figure of a pod")?;
            if let Some(known) = figures.get_mut(place) {
                *known = figure;
            }
        }
        let [
            connections,
            subscriptions,
            shards,
            connects,
            publishes,
            deliveries,
            appends,
            bytes_in,
            bytes_out,
            state,
            shed,
            cpu,
        ] = figures;
        let state = match state {
            0 => DrainState::Serving,
            2 => DrainState::Drained,
            // What is not known here takes no clients.
            _ => DrainState::Draining,
        };
        Ok(Self {
            connections,
            subscriptions,
            shards,
            connects,
            publishes,
            deliveries,
            appends,
            bytes_in,
            bytes_out,
            state,
            shed,
            cpu,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_that_one_side_does_not_know_do_no_harm() {
        let load = PodLoad {
            connections: 1,
            subscriptions: 2,
            shards: 3,
            connects: 4,
            publishes: 5,
            deliveries: 6,
            appends: 7,
            bytes_in: 8,
            bytes_out: 9,
            state: DrainState::Drained,
            shed: 10,
            cpu: 11,
        };
        let read = |bytes: &[u8]| PodLoad::read(&mut Reader::new(bytes.to_vec().into()));
        let bytes = load.write(Writer::new(0)).finish().split_off(1);
        assert_eq!(bytes, [12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 10, 11]);
        assert_eq!(read(&bytes), Ok(load));
        let newer = [&[13], &bytes[1..], &[99]].concat();
        assert_eq!(read(&newer), Ok(load));
        assert_eq!(read(&[1, 7]), Ok(PodLoad { connections: 7, ..PodLoad::default() }));
        assert_eq!(read(&[]), Ok(PodLoad::default()));
        assert!(read(&[2, 7]).is_err(), "cut off");
    }
}
