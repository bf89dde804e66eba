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
    /// It is held up for this time and then takes its course; it never happens if nobody waits for it by then.
    Stalled(Duration),
    /// As [`CommitFault::Stalled`], but it takes its course whether anybody still waits for it or not: so is a
    /// commit that was on its way when its future was dropped. Commits held up for different times happen in
    /// another order than they were asked for.
    Detached(Duration),
}

/// How a watch goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFault {
    /// It never fires.
    Lost,
    /// It fires at once.
    Spurious,
}

/// How often faults happen by chance, each in thousandths of the operations it can befall. Three weathers are
/// made up already: [`FaultRates::calm`], [`FaultRates::rough`] and [`FaultRates::hostile`].
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultRates {
    /// Reads that take up to `slow_max`.
    pub read_slow: u32,
    /// Reads that fail as too old.
    pub read_too_old: u32,
    /// Reads that fail as busy.
    pub read_busy: u32,
    /// Reads that fail as unavailable.
    pub read_unavailable: u32,
    /// Commits refused as a conflict.
    pub commit_conflict: u32,
    /// Commits refused as too old.
    pub commit_too_old: u32,
    /// Commits refused as busy.
    pub commit_busy: u32,
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
    /// [`CommitFault::Detached`] for up to `slow_max`: commits overtake each other.
    pub commit_slow: u32,
    /// [`CommitFault::Stalled`], for up to `delay_max`.
    pub stalled: u32,
    /// [`CommitFault::Detached`], for up to `delay_max`.
    pub detached: u32,
    /// Watches that never fire.
    pub watch_lost: u32,
    /// Watches that fire at once.
    pub watch_spurious: u32,
    /// Longest time that something slow takes: below what anybody gives up after.
    pub slow_max: Duration,
    /// Longest stall or delay.
    pub delay_max: Duration,
}

impl FaultRates {
    /// No faults at all.
    pub const NONE: Self = Self {
        read_slow: 0,
        read_too_old: 0,
        read_busy: 0,
        read_unavailable: 0,
        commit_conflict: 0,
        commit_too_old: 0,
        commit_busy: 0,
        commit_unavailable: 0,
        settled_committed: 0,
        settled_lost: 0,
        open_committed_later: 0,
        open_lost: 0,
        commit_slow: 0,
        stalled: 0,
        detached: 0,
        watch_lost: 0,
        watch_spurious: 0,
        slow_max: Duration::ZERO,
        delay_max: Duration::ZERO,
    };

    /// A healthy cluster on a working day: everything takes its time, commits overtake each other, and about one
    /// in a hundred is refused or of unknown outcome.
    #[must_use]
    pub const fn calm() -> Self {
        Self {
            read_slow: 100,
            commit_slow: 200,
            commit_conflict: 5,
            commit_busy: 2,
            settled_committed: 2,
            settled_lost: 2,
            watch_spurious: 5,
            slow_max: Duration::from_millis(20),
            ..Self::NONE
        }
    }

    /// A cluster that loses processes now and then: each kind of fault befalls about one operation in a hundred,
    /// and what is held up comes within two seconds.
    #[must_use]
    pub const fn rough() -> Self {
        Self { read_slow: 100, commit_slow: 200, delay_max: Duration::from_secs(2), ..Self::uniform(10) }
    }

    /// Worse than any cluster: a third of all commits fail, one in five with an unknown outcome, another third is
    /// held up, for up to eight seconds, when transactions are too old and nobody waits any more.
    #[must_use]
    pub const fn hostile() -> Self {
        Self { read_slow: 200, commit_slow: 200, delay_max: Duration::from_secs(8), ..Self::uniform(50) }
    }

    /// Every fault equally often, with delays of up to a second.
    #[must_use]
    pub const fn uniform(thousandths: u32) -> Self {
        Self {
            read_slow: thousandths,
            read_too_old: thousandths,
            read_busy: thousandths,
            read_unavailable: thousandths,
            commit_conflict: thousandths,
            commit_too_old: thousandths,
            commit_busy: thousandths,
            commit_unavailable: thousandths,
            settled_committed: thousandths,
            settled_lost: thousandths,
            open_committed_later: thousandths,
            open_lost: thousandths,
            commit_slow: thousandths,
            stalled: thousandths,
            detached: thousandths,
            watch_lost: thousandths,
            watch_spurious: thousandths,
            slow_max: Duration::from_millis(50),
            delay_max: Duration::from_secs(1),
        }
    }
}

/// How a read goes wrong.
#[derive(Clone, Debug)]
pub(super) enum ReadFault {
    Refused(Error),
    Slow(Duration),
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
    pub(super) fn next_read(&mut self, seed: &Seed) -> Option<ReadFault> {
        let fault = if self.is_unavailable {
            Some(ReadFault::Refused(injected_outage()))
        } else {
            self.next_reads.pop_front().map(ReadFault::Refused).or_else(|| self.rates.draw_read(seed))
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
    fn draw_read(&self, seed: &Seed) -> Option<ReadFault> {
        let choices = [
            (self.read_slow, ReadFault::Slow(self.slow_max)),
            (self.read_too_old, ReadFault::Refused(Error::TooOld)),
            (self.read_busy, ReadFault::Refused(Error::Busy("injected by a test".into()))),
            (self.read_unavailable, ReadFault::Refused(injected_outage())),
        ];
        draw(seed, choices).map(|fault| match fault {
            ReadFault::Slow(longest) => ReadFault::Slow(below(seed, longest)),
            ReadFault::Refused(error) => ReadFault::Refused(error),
        })
    }

    fn draw_commit(&self, seed: &Seed) -> Option<CommitFault> {
        let choices = [
            (self.commit_conflict, CommitFault::Refused(Error::Conflict)),
            (self.commit_too_old, CommitFault::Refused(Error::TooOld)),
            (self.commit_busy, CommitFault::Refused(Error::Busy("injected by a test".into()))),
            (self.commit_unavailable, CommitFault::Refused(injected_outage())),
            (self.settled_committed, CommitFault::SettledCommitted),
            (self.settled_lost, CommitFault::SettledLost),
            (self.open_committed_later, CommitFault::OpenCommittedLater(self.delay_max)),
            (self.open_lost, CommitFault::OpenLost),
            (self.stalled, CommitFault::Stalled(self.delay_max)),
            (self.detached, CommitFault::Detached(self.delay_max)),
            (self.commit_slow, CommitFault::Detached(self.slow_max)),
        ];
        draw(seed, choices).map(|fault| match fault {
            CommitFault::OpenCommittedLater(longest) => CommitFault::OpenCommittedLater(below(seed, longest)),
            CommitFault::Stalled(longest) => CommitFault::Stalled(below(seed, longest)),
            CommitFault::Detached(longest) => CommitFault::Detached(below(seed, longest)),
            fault => fault,
        })
    }
}

fn below(seed: &Seed, longest: Duration) -> Duration {
    Duration::from_micros(seed.below(u64::try_from(longest.as_micros()).unwrap_or(u64::MAX)))
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
