//! What clients of this pod want live, counted, and how far the store knows it: sans-IO.
//!
//! Each key is written once however many want it. What is wanted anew is due at once; what nobody wants any more, a while
//! later, so that a client that comes and goes costs nothing. Groups are different: other pods send to a group as much as it
//! has members here, so each change of their number is due at once.
//!
//! Bounded by the subscriptions of connected clients.

use std::collections::VecDeque;
use std::time::Duration;

use weir_core::cluster::{InterestKey, Want};
use weir_env::clock::Instant;
use weir_env::seed::HashMap;
use weir_storage::Version;

/// How long a filter stays that nobody wants any more.
const GRACE: Duration = Duration::from_secs(1);

/// Bytes of filters written in one transaction, which counts each several times.
const BYTES_MAX: usize = 200_000;

/// What a subscription gets live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// All.
    Live,
    /// Messages of QoS 0; the others come to its inbox.
    Qos0,
}

/// Rows to be written.
pub(super) type Rows = Vec<(InterestKey, Want)>;

/// Who wants what, and what the store knows.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: HashMap<InterestKey, Entry>,
    due: VecDeque<InterestKey>,
    later: VecDeque<(Instant, InterestKey)>,
}

#[derive(Debug, Default)]
struct Entry {
    /// Subscriptions.
    counted: Want,
    /// What the store has at least.
    written: Want,
    /// What is being written.
    writing: Option<Want>,
    /// The store may have more than `written`.
    is_doubtful: bool,
    /// Since when the store has had each need.
    since: [Version; 2],
    is_due: bool,
    is_later: bool,
}

impl Need {
    fn of(self, want: &mut Want) -> &mut u32 {
        match self {
            Self::Live => &mut want.live,
            Self::Qos0 => &mut want.qos0,
        }
    }

    /// Whether who wants this gets it live.
    const fn is_met_by(self, want: Want) -> bool {
        want.live > 0 || matches!(self, Self::Qos0) && want.qos0 > 0
    }
}

impl Entry {
    /// What the store is to have.
    fn wanted(&self, key: &InterestKey) -> Want {
        let Want { live, qos0 } = self.counted;
        if key.group.is_some() { self.counted } else { Want { live: live.min(1), qos0: qos0.min(1) } }
    }

    fn is_in_store(&self, key: &InterestKey) -> bool {
        !self.is_doubtful && self.wanted(key) == self.written
    }
}

impl Ledger {
    /// A client wants this. True if something is due now.
    pub(super) fn hold(&mut self, key: &InterestKey, need: Need, now: Instant) -> bool {
        *need.of(&mut self.entries.entry(key.clone()).or_default().counted) += 1;
        self.schedule(key, now)
    }

    /// It does not any more. True if there is something to be done, now or later.
    pub(super) fn release(&mut self, key: &InterestKey, need: Need, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(key) else { return false };
        let count = need.of(&mut entry.counted);
        *count = count.saturating_sub(1);
        self.schedule(key, now)
    }

    /// Puts `key` in line if the store does not have what it is to have, or it can be forgotten.
    fn schedule(&mut self, key: &InterestKey, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.writing.is_none()) else {
            return false;
        };
        let wanted = entry.wanted(key);
        let is_more = wanted.live > entry.written.live || wanted.qos0 > entry.written.qos0;
        let is_news = !entry.is_in_store(key) || wanted.is_none();
        if is_more || entry.is_doubtful || is_news && key.group.is_some() {
            if !std::mem::replace(&mut entry.is_due, true) {
                self.due.push_back(key.clone());
            }
        } else if is_news && !std::mem::replace(&mut entry.is_later, true) {
            self.later.push_back((now + GRACE, key.clone()));
        }
        is_news
    }

    /// When there is something to be written without anything new.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.later.front().map(|(at, _)| *at)
    }

    /// Takes what is due, `max` rows at most, and no more than fit into one transaction. To be followed by [`Ledger::written`] or [`Ledger::failed`].
    pub(super) fn take_due(&mut self, now: Instant, max: usize) -> Rows {
        let (mut rows, mut bytes) = (Rows::new(), 0);
        while rows.len() < max && bytes < BYTES_MAX {
            let key = if let Some(key) = self.due.pop_front() {
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.is_due = false;
                }
                key
            } else {
                let Some((_, key)) = self.later.pop_front_if(|(at, _)| *at <= now) else { break };
                if let Some(entry) = self.entries.get_mut(&key) {
                    entry.is_later = false;
                }
                key
            };
            let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.writing.is_none()) else {
                continue;
            };
            let wanted = entry.wanted(&key);
            if !entry.is_in_store(&key) {
                entry.writing = Some(wanted);
                bytes += key.filter.len() + key.group.as_ref().map_or(0, |group| group.len());
                rows.push((key, wanted));
            } else if wanted.is_none() && !entry.is_due && !entry.is_later {
                self.entries.remove(&key);
            }
        }
        rows
    }

    /// The store has `rows` as of `version`.
    pub(super) fn written(&mut self, rows: Rows, version: Version, now: Instant) {
        for (key, want) in rows {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            for (need, since) in [Need::Live, Need::Qos0].into_iter().zip(&mut entry.since) {
                if !need.is_met_by(entry.written) {
                    *since = version;
                }
            }
            (entry.written, entry.writing, entry.is_doubtful) = (want, None, false);
            self.schedule(&key, now);
        }
    }

    /// It is not known whether the store has `rows`: they are due again.
    pub(super) fn failed(&mut self, rows: Rows, now: Instant) {
        for (key, want) in rows {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            let Want { live, qos0 } = entry.written;
            entry.written = Want { live: live.min(want.live), qos0: qos0.min(want.qos0) };
            (entry.writing, entry.is_doubtful) = (None, true);
            self.schedule(&key, now);
        }
    }

    /// Since when the store has had what meets `need`, if it has, and keeps it.
    pub(super) fn since(&self, key: &InterestKey, need: Need) -> Option<Version> {
        let entry = self.entries.get(key)?;
        let is_kept = entry.writing.is_none_or(|writing| need.is_met_by(writing));
        let [live, qos0] = entry.since;
        let since = if need == Need::Live { live } else { qos0 };
        (is_kept && need.is_met_by(entry.written)).then_some(since)
    }

    /// How many rows there are, or are to be.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use weir_env::clock::Clock;

    use super::*;

    fn plain(filter: &'static str) -> InterestKey {
        InterestKey { group: None, filter: filter.into() }
    }

    fn live(live: u32) -> Want {
        Want { live, qos0: 0 }
    }

    /// Writes what is due; how many rows.
    fn write(ledger: &mut Ledger, now: Instant, version: u64) -> Rows {
        let rows = ledger.take_due(now, 100);
        ledger.written(rows.clone(), Version(version), now);
        rows
    }

    #[test]
    fn long_filters_are_written_in_parts_that_fit() {
        let (mut ledger, now) = (Ledger::default(), Clock::system().now());
        for n in 0..500 {
            let filter = format!("{n}/{}", "x".repeat(1000)).into();
            ledger.hold(&InterestKey { group: None, filter }, Need::Live, now);
        }
        let mut all = 0;
        while all < 500 {
            let rows = ledger.take_due(now, 1000);
            let bytes: usize = rows.iter().map(|(key, _)| key.filter.len()).sum();
            assert!((1..=200_000 + 1_004).contains(&bytes), "{bytes}");
            all += rows.len();
            ledger.written(rows, Version(1), now);
        }
    }

    #[test]
    fn many_subscriptions_are_one_row_which_goes_a_while_after_the_last() {
        let (mut ledger, key, now) = (Ledger::default(), plain("a"), Clock::system().now());
        assert!(ledger.hold(&key, Need::Live, now));
        assert_eq!(ledger.since(&key, Need::Live), None);
        assert_eq!(write(&mut ledger, now, 3), [(key.clone(), live(1))]);
        assert_eq!(ledger.since(&key, Need::Live), Some(Version(3)));
        assert!(!ledger.hold(&key, Need::Live, now), "it is known");
        assert!(!ledger.release(&key, Need::Live, now));
        assert!(ledger.release(&key, Need::Live, now));
        assert_eq!(write(&mut ledger, now, 4), [], "it may come back");
        assert_eq!(ledger.next_due(), Some(now + GRACE));
        // Back, and gone again: still the same.
        assert!(!ledger.hold(&key, Need::Live, now));
        assert_eq!(ledger.since(&key, Need::Live), Some(Version(3)));
        ledger.release(&key, Need::Live, now);
        assert_eq!(write(&mut ledger, now + GRACE, 5), [(key.clone(), live(0))]);
        write(&mut ledger, now + GRACE * 2, 6);
        assert_eq!((ledger.len(), ledger.next_due()), (0, None), "nothing is left of it");
    }

    #[test]
    fn of_a_group_each_member_counts() {
        let (mut ledger, now) = (Ledger::default(), Clock::system().now());
        let key = InterestKey { group: Some("g".into()), filter: "a".into() };
        ledger.hold(&key, Need::Live, now);
        ledger.hold(&key, Need::Live, now);
        ledger.hold(&key, Need::Qos0, now);
        assert_eq!(write(&mut ledger, now, 1), [(key.clone(), Want { live: 2, qos0: 1 })]);
        ledger.release(&key, Need::Live, now);
        assert_eq!(write(&mut ledger, now, 2), [(key.clone(), Want { live: 1, qos0: 1 })]);
        assert_eq!(ledger.since(&key, Need::Live), Some(Version(1)), "as before");
    }

    #[test]
    fn what_is_being_removed_is_not_there() {
        let (mut ledger, key, now) = (Ledger::default(), plain("a"), Clock::system().now());
        ledger.hold(&key, Need::Live, now);
        write(&mut ledger, now, 1);
        ledger.release(&key, Need::Live, now);
        let removal = ledger.take_due(now + GRACE, 100);
        assert_eq!(removal, [(key.clone(), live(0))]);
        ledger.hold(&key, Need::Live, now);
        assert_eq!(ledger.since(&key, Need::Live), None);
        ledger.written(removal, Version(2), now);
        assert_eq!(ledger.since(&key, Need::Live), None);
        assert_eq!(write(&mut ledger, now, 3), [(key.clone(), live(1))]);
        assert_eq!(ledger.since(&key, Need::Live), Some(Version(3)));
    }

    #[test]
    fn after_a_failure_nothing_is_taken_for_granted() {
        let (mut ledger, key, now) = (Ledger::default(), plain("a"), Clock::system().now());
        ledger.hold(&key, Need::Live, now);
        let rows = ledger.take_due(now, 100);
        ledger.release(&key, Need::Live, now);
        ledger.failed(rows, now);
        // It may be in the store: it is removed although nobody wants it.
        assert_eq!(write(&mut ledger, now, 2), [(key.clone(), live(0))]);
        ledger.hold(&key, Need::Live, now);
        write(&mut ledger, now, 3);
        ledger.release(&key, Need::Live, now);
        let removal = ledger.take_due(now + GRACE, 100);
        ledger.hold(&key, Need::Live, now);
        ledger.failed(removal, now);
        assert_eq!(ledger.since(&key, Need::Live), None, "it may have been removed");
        assert_eq!(write(&mut ledger, now, 4), [(key.clone(), live(1))]);
        assert_eq!(ledger.since(&key, Need::Live), Some(Version(4)));
    }

    #[test]
    fn a_session_with_an_inbox_wants_qos_0_alone() {
        let (mut ledger, key, now) = (Ledger::default(), plain("a"), Clock::system().now());
        ledger.hold(&key, Need::Qos0, now);
        assert_eq!(write(&mut ledger, now, 1), [(key.clone(), Want { live: 0, qos0: 1 })]);
        assert_eq!(ledger.since(&key, Need::Qos0), Some(Version(1)));
        assert_eq!(ledger.since(&key, Need::Live), None);
        ledger.hold(&key, Need::Live, now);
        assert_eq!(ledger.since(&key, Need::Live), None);
        write(&mut ledger, now, 2);
        assert_eq!(ledger.since(&key, Need::Live), Some(Version(2)));
        assert_eq!(ledger.since(&key, Need::Qos0), Some(Version(1)));
        assert_eq!(ledger.take_due(now, 1), []);
    }
}
