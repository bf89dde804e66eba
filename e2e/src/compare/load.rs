//! The loads: what is published to whom, and how the load generator is told so.

use std::fmt;

/// Bytes of payload that may be under way to one subscriber: less than any of the brokers keeps for a client that
/// reads, so that what is lost was lost for another reason.
const UNDER_WAY_BYTES: u32 = 2 << 20;

/// Who publishes to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    OneToOne,
    OneToHundred,
    ThousandToOne,
}

/// A load, but for its rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) shape: Shape,
    pub(crate) qos: u8,
    /// Bytes of payload.
    pub(crate) size: u32,
}

/// How fast to publish.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// A closed loop.
    Max,
    /// An open loop: publishes per second, over all publishers.
    PerSecond(f64),
}

impl Shape {
    pub(crate) const ALL: [Self; 3] = [Self::OneToOne, Self::OneToHundred, Self::ThousandToOne];

    const fn clients(self) -> (u32, u32) {
        match self {
            Self::OneToOne => (1, 1),
            Self::OneToHundred => (1, 100),
            Self::ThousandToOne => (1_000, 1),
        }
    }

    /// How often each message arrives.
    pub(crate) fn copies(self) -> u64 {
        self.clients().1.into()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OneToOne => "1 to 1",
            Self::OneToHundred => "1 to 100",
            Self::ThousandToOne => "1,000 to 1",
        })
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, QoS {}, {} B", self.shape, self.qos, self.size)
    }
}

impl Cell {
    /// Every combination of `sizes` with all shapes and qualities.
    pub(crate) fn matrix(sizes: &[u32]) -> Vec<Self> {
        let mut cells = Vec::new();
        for shape in Shape::ALL {
            for qos in 0..=2 {
                cells.extend(sizes.iter().map(|&size| Self { shape, qos, size }));
            }
        }
        cells
    }

    /// The scenario of the load generator.
    pub(crate) fn arguments(&self, pace: Pace) -> Vec<String> {
        let (publishers, subscribers) = self.shape.clients();
        // Enough to keep a broker busy, and no more than it can hold for a subscriber.
        let most = if self.shape == Shape::OneToHundred { 100 } else { 1_000 };
        let under_way = (UNDER_WAY_BYTES / self.size).clamp(16, most);
        let window = under_way.div_ceil(publishers).max(if publishers > 1 { 10 } else { 1 });
        let mut arguments = vec!["fanout".to_owned()];
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        option("-p", publishers.to_string());
        option("-c", subscribers.to_string());
        option("-q", self.qos.to_string());
        option("-s", self.size.to_string());
        match pace {
            Pace::Max => {
                option("-r", "max".to_owned());
                option("--window", window.to_string());
                option("--under-way", under_way.to_string());
            }
            Pace::PerSecond(rate) => {
                option("-r", format!("{rate:.3}"));
                // The clock sets the pace; a broker that stalls shall not be spared by a small window.
                option("--window", "1000".to_owned());
            }
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix_has_every_combination_once() {
        let cells = Cell::matrix(&[64, 1_024, 16_384]);
        assert_eq!(cells.len(), 27);
        for (n, cell) in cells.iter().enumerate() {
            assert!(!cells[..n].contains(cell), "{cell} twice");
        }
    }

    #[test]
    fn closed_loops_stay_within_what_brokers_keep() {
        for cell in Cell::matrix(&[64, 1_024, 16_384]) {
            let arguments = cell.arguments(Pace::Max);
            let at = arguments.iter().position(|argument| argument == "--under-way").unwrap();
            let under_way: u32 = arguments[at + 1].parse().unwrap();
            assert!((16..=1_000).contains(&under_way), "{cell}");
            assert!(under_way * cell.size <= UNDER_WAY_BYTES, "{cell}");
            let paced = cell.arguments(Pace::PerSecond(1_234.5));
            assert!(paced.contains(&"1234.500".to_owned()) && !paced.contains(&"--under-way".to_owned()));
        }
    }
}
