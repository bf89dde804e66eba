//! Which fault comes next: the scripted ones first, then chance. Knows no store.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use weir_env::seed::Seed;

use crate::{Error, prefix_end};

/// How a commit goes wrong.
#[derive(Clone, Debug)]
pub enum CommitFault {
    /// It fails with this error and has not happened.
    Refused(Error),
    /// It happened; the caller is told [`Error::UnknownSettled`].
    SettledCommitted,
    /// It did not happen and never will; the caller is told [`Error::UnknownSettled`].
    SettledLost,
    /// It happens after this time, if nothing conflicts by then; the caller is told [`Error::UnknownOpen`] at
    /// once.
    OpenCommittedLater(Duration),
    /// It never happens; the caller is told [`Error::UnknownOpen`].
    OpenLost,
    /// It panics and has not happened.
    Panic,
    /// It is held up for this time and then takes its course.
    Stalled(Duration),
}

/// How a watch goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFault {
    /// It never fires.
    Lost,
    /// It fires at once.
    Spurious,
}

/// How often faults happen by chance, each in thousandths of the operations it can befall.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultRates {
    /// Reads that fail as too old.
    pub read_too_old: u32,
    /// Reads that fail as unavailable.
    pub read_unavailable: u32,
    /// Commits refused as a conflict.
    pub commit_conflict: u32,
    /// Commits refused as too old.
    pub commit_too_old: u32,
    /// Commits refused as unavailable.
    pub commit_unavailable: u32,
    /// [`CommitFault::SettledCommitted`].
    pub settled_committed: u32,
    /// [`CommitFault::SettledLost`].
    pub settled_lost: u32,
    /// [`CommitFault::OpenCommittedLater`], by up to `delay_max`.
    pub open_committed_later: u32,
    /// [`CommitFault::OpenLost`].
    pub open_lost: u32,
    /// [`CommitFault::Stalled`], for up to `delay_max`.
    pub stalled: u32,
    /// Watches that never fire.
    pub watch_lost: u32,
    /// Watches that fire at once.
    pub watch_spurious: u32,
    /// Longest stall or delay.
    pub delay_max: Duration,
}

impl FaultRates {
    /// Every fault equally often, with delays of up to a second.
    #[must_use]
    pub const fn uniform(thousandths: u32) -> Self {
        Self {
            read_too_old: thousandths,
            read_unavailable: thousandths,
            commit_conflict: thousandths,
            commit_too_old: thousandths,
            commit_unavailable: thousandths,
            settled_committed: thousandths,
            settled_lost: thousandths,
            open_committed_later: thousandths,
            open_lost: thousandths,
            stalled: thousandths,
            watch_lost: thousandths,
            watch_spurious: thousandths,
            delay_max: Duration::from_secs(1),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) next_commits: VecDeque<CommitFault>,
    pub(super) matching_commits: Vec<(Vec<u8>, CommitFault)>,
    pub(super) next_reads: VecDeque<Error>,
    pub(super) next_watches: VecDeque<WatchFault>,
    pub(super) rates: FaultRates,
    pub(super) is_unavailable: bool,
    pub(super) injected: u64,
}

impl Plan {
    pub(super) fn next_read(&mut self, seed: &Seed) -> Option<Error> {
        let FaultRates { read_too_old, read_unavailable, .. } = self.rates;
        let fault = if self.is_unavailable {
            Some(injected_outage())
        } else {
            self.next_reads.pop_front().or_else(|| {
                let choices = [(read_too_old, Error::TooOld), (read_unavailable, injected_outage())];
                draw(seed, choices)
            })
        };
        self.count(fault)
    }

    pub(super) fn next_watch(&mut self, seed: &Seed) -> Option<WatchFault> {
        let FaultRates { watch_lost, watch_spurious, .. } = self.rates;
        let fault = self
            .next_watches
            .pop_front()
            .or_else(|| draw(seed, [(watch_lost, WatchFault::Lost), (watch_spurious, WatchFault::Spurious)]));
        self.count(fault)
    }

    /// The fate of a commit that touches the ranges `touched` (begin, end); none if it only reads.
    pub(super) fn next_commit(&mut self, seed: &Seed, touched: &[(Bytes, Bytes)]) -> Option<CommitFault> {
        let fault = if self.is_unavailable {
            Some(CommitFault::Refused(injected_outage()))
        } else if touched.is_empty() {
            None
        } else if let Some((_, fault)) =
            self.matching_commits.iter().find(|(prefix, _)| touches(touched, prefix))
        {
            Some(fault.clone())
        } else {
            self.next_commits.pop_front().or_else(|| self.rates.draw_commit(seed))
        };
        self.count(fault)
    }

    fn count<T>(&mut self, fault: Option<T>) -> Option<T> {
        self.injected += u64::from(fault.is_some());
        fault
    }
}

impl FaultRates {
    fn draw_commit(&self, seed: &Seed) -> Option<CommitFault> {
        let choices = [
            (self.commit_conflict, CommitFault::Refused(Error::Conflict)),
            (self.commit_too_old, CommitFault::Refused(Error::TooOld)),
            (self.commit_unavailable, CommitFault::Refused(injected_outage())),
            (self.settled_committed, CommitFault::SettledCommitted),
            (self.settled_lost, CommitFault::SettledLost),
            (self.open_committed_later, CommitFault::OpenCommittedLater(Duration::ZERO)),
            (self.open_lost, CommitFault::OpenLost),
            (self.stalled, CommitFault::Stalled(Duration::ZERO)),
        ];
        let delay = |seed: &Seed| {
            let micros = u64::try_from(self.delay_max.as_micros()).unwrap_or(u64::MAX);
            Duration::from_micros(seed.below(micros))
        };
        draw(seed, choices).map(|fault| match fault {
            CommitFault::OpenCommittedLater(_) => CommitFault::OpenCommittedLater(delay(seed)),
            CommitFault::Stalled(_) => CommitFault::Stalled(delay(seed)),
            fault => fault,
        })
    }
}

/// At most one of `choices`, each with its chance in thousandths.
fn draw<T, const N: usize>(seed: &Seed, choices: [(u32, T); N]) -> Option<T> {
    if choices.iter().all(|(rate, _)| *rate == 0) {
        return None;
    }
    let mut ticket = seed.below(1_000);
    for (rate, choice) in choices {
        if ticket < u64::from(rate) {
            return Some(choice);
        }
        ticket -= u64::from(rate);
    }
    None
}

fn touches(touched: &[(Bytes, Bytes)], prefix: &[u8]) -> bool {
    let prefix_end = prefix_end(prefix);
    touched.iter().any(|(begin, end)| begin[..] < prefix_end[..] && &end[..] > prefix)
}

fn injected_outage() -> Error {
    Error::Unavailable("injected by a test".into())
}
