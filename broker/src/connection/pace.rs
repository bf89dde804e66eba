//! Whether a client takes what is written to it: one that takes next to nothing for a while is shed.
//!
//! Knows positions in the output and the time, nothing of sockets. Owned by the connection's task.

use std::time::Duration;

use weir_env::clock::{Clock, Instant};

/// Bytes that a client must take in the time it is given, or all that waits if that is less. Any link that is worth
/// the name carries that; a client that takes a byte now and then is as good as one that takes none.
const BYTES_MIN: u64 = 16 * 1024;

/// Where a client is with its reading.
#[derive(Debug, Default)]
pub(super) struct Pace {
    due: Option<Due>,
    shed: bool,
}

/// What has to be written by when.
#[derive(Debug)]
struct Due {
    position: u64,
    at: Instant,
}

impl Pace {
    /// The output ends at `end`, and `written` bytes of it have been taken.
    pub(super) fn observe(&mut self, end: u64, written: u64, patience: Duration, clock: Clock) {
        if end == written {
            self.due = None;
        } else if self.due.as_ref().is_none_or(|due| due.position <= written) {
            let position = end.min(written.saturating_add(BYTES_MIN));
            self.due = Some(Due { position, at: clock.now() + patience });
        }
    }

    /// When the client is too slow, unless it reads.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due.as_ref().map(|due| due.at)
    }

    /// The client is shed.
    pub(super) fn shed(&mut self) {
        *self = Self { due: None, shed: true };
    }

    pub(super) fn is_shed(&self) -> bool {
        self.shed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_client_has_so_long_for_some_of_it() {
        let clock = Clock::system();
        let mut pace = Pace::default();
        let start = clock.now();
        let mut observe = |end, written| {
            pace.observe(end, written, PATIENCE, clock);
            pace.poll_timeout().map(|at| at - start)
        };
        assert_eq!(observe(0, 0), None);
        let first = observe(100_000, 0);
        assert_eq!(first, Some(PATIENCE));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(observe(200_000, BYTES_MIN - 1), first, "a little is not enough");
        assert_eq!(observe(200_000, BYTES_MIN), Some(Duration::from_secs(90)), "enough");
        assert_eq!(observe(200_000, 200_000), None, "all");
        assert_eq!(observe(200_010, 200_000), Some(Duration::from_secs(90)));
        assert_eq!(observe(300_000, 200_010), Some(Duration::from_secs(90)), "all there was");
    }
}
