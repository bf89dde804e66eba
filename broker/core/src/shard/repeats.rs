//! Publishes that may come more than once: those with a publish id (QoS 2), and those with a `queue-dedup-id`.
//!
//! One per shard of a queue or stream, in its log of class 0, owned by the shard's owner. A publish that is in line or
//! in the batch in flight is *unsettled*: whoever repeats it waits for what becomes of it. Publish ids are looked up in
//! the store, as only a crash has them repeated; ids of publishers are all in memory for as long as they count.

use std::collections::VecDeque;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use weir_env::clock::{Instant, Timestamp};
use weir_env::seed::HashSet;

use crate::keyspace::dedup::DedupId;
use crate::keyspace::mark::PublishId;

/// Ids of publishers remembered for one shard of a queue, about 50 bytes each; beyond them publishes are refused.
pub const DEDUP_IDS_MAX: usize = 1_000_000;
/// Shortest time between two clearings of ids that do not count any more.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// What names a publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// By the broker.
    pub(crate) publish: Option<PublishId>,
    /// By its publisher.
    pub(crate) dedup: Option<DedupId>,
}

impl Names {
    pub(crate) const fn is_empty(&self) -> bool {
        self.publish.is_none() && self.dedup.is_none()
    }
}

/// What is known of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing.
    Never,
    /// A publish of this id is in line or about to be committed.
    Unsettled,
    /// A publish of this id was stored.
    Stored,
    /// Nothing, and no more ids can be remembered.
    Full,
}

/// The publishes of one shard that may come again.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    unsettled: HashSet<PublishId>,
    unsettled_ids: HashSet<DedupId>,
    stored: HashSet<DedupId>,
    /// Those of `stored`, oldest first.
    order: VecDeque<(Timestamp, DedupId)>,
    sweep_at: Option<Instant>,
    /// Ids from before are to be cleared with the next batch.
    clear_before: Option<Timestamp>,
    /// Ids remembered by all shards.
    gauge: Gauge,
}

impl Repeats {
    /// Remembers `stored`, oldest first.
    pub(crate) fn restore(stored: Vec<(Timestamp, DedupId)>, now: Instant, gauge: Gauge) -> Self {
        let mut repeats = Self::default();
        repeats.gauge = gauge;
        for (at, id) in stored {
            repeats.remember(at, id);
        }
        // What an earlier owner did not clear.
        repeats.sweep_at = Some(now + SWEEP_INTERVAL);
        repeats
    }

    /// Whether the publish `id` is on its way.
    pub(crate) fn is_unsettled(&self, id: &PublishId) -> bool {
        self.unsettled.contains(id)
    }

    /// What is known of `id` at `wall`.
    pub(crate) fn look(&mut self, id: &DedupId, wall: Timestamp, window: Duration) -> Seen {
        self.forget(wall, window);
        if self.stored.contains(id) {
            Seen::Stored
        } else if self.unsettled_ids.contains(id) {
            Seen::Unsettled
        } else if self.stored.len() + self.unsettled_ids.len() >= DEDUP_IDS_MAX {
            Seen::Full
        } else {
            Seen::Never
        }
    }

    /// A publish is on its way.
    pub(crate) fn begin(&mut self, names: Names) {
        self.unsettled.extend(names.publish);
        self.unsettled_ids.extend(names.dedup);
    }

    /// A publish has its answer; if it was stored, [`Self::remember`] follows.
    pub(crate) fn settle(&mut self, names: Names) {
        if let Some(id) = names.publish {
            self.unsettled.remove(&id);
        }
        if let Some(id) = names.dedup {
            self.unsettled_ids.remove(&id);
        }
    }

    /// A publish of `id` was stored at `at`.
    pub(crate) fn remember(&mut self, at: Timestamp, id: DedupId) {
        if self.stored.insert(id) {
            self.gauge.inc();
            // In order although the clock may have gone back.
            let last = self.order.back().map_or(at, |(last, _)| at.max(*last));
            self.order.push_back((last, id));
        }
    }

    /// Ids do not count any more once `window` has gone by.
    fn forget(&mut self, wall: Timestamp, window: Duration) {
        while let Some((at, id)) = self.order.front().copied() {
            if at.saturating_add(window) > wall {
                break;
            }
            self.order.pop_front();
            self.stored.remove(&id);
            self.gauge.dec();
        }
    }

    /// Makes sure that ids are cleared some day.
    pub(crate) fn sweep_by(&mut self, now: Instant, window: Duration) {
        self.sweep_at.get_or_insert(now + window.max(SWEEP_INTERVAL));
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.sweep_at
    }

    /// Forgets ids, and has what is stored of them cleared.
    pub(crate) fn handle_timeout(&mut self, now: Instant, wall: Timestamp, window: Duration) {
        if self.sweep_at.is_none_or(|at| at > now) {
            return;
        }
        self.forget(wall, window);
        let before = wall.as_micros().saturating_sub(u64::try_from(window.as_micros()).unwrap_or(u64::MAX));
        self.clear_before = Some(Timestamp::from_micros(before));
        self.sweep_at = (!self.order.is_empty()).then(|| now + window.max(SWEEP_INTERVAL));
    }

    /// Whether ids are to be cleared.
    pub(crate) fn has_writes(&self) -> bool {
        self.clear_before.is_some()
    }

    /// Ids from before this time are to be cleared, with the batch that is being built. If it fails, the next sweep
    /// clears them.
    pub(crate) fn take_clear(&mut self) -> Option<Timestamp> {
        self.clear_before.take()
    }
}

impl Drop for Repeats {
    fn drop(&mut self) {
        self.gauge.dec_by(i64::try_from(self.stored.len()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(120);

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_micros(secs * 1_000_000)
    }

    fn id(n: u32) -> DedupId {
        DedupId::of(&n.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn an_id_counts_for_its_window() {
        let gauge = Gauge::default();
        let now = weir_env::clock::Clock::simulated(at(0)).now();
        let mut repeats = Repeats::restore(vec![(at(10), id(1))], now, gauge.clone());
        assert_eq!(repeats.look(&id(1), at(129), WINDOW), Seen::Stored);
        let names = Names { publish: None, dedup: Some(id(2)) };
        repeats.begin(names);
        assert_eq!(repeats.look(&id(2), at(20), WINDOW), Seen::Unsettled);
        repeats.settle(names);
        assert_eq!(repeats.look(&id(2), at(20), WINDOW), Seen::Never);
        // The clock went back: not remembered for less than one from before.
        repeats.remember(at(5), id(2));
        assert_eq!(gauge.get(), 2);
        assert_eq!(repeats.look(&id(2), at(129), WINDOW), Seen::Stored);
        assert_eq!(repeats.look(&id(1), at(130), WINDOW), Seen::Never);
        assert_eq!((repeats.look(&id(2), at(130), WINDOW), gauge.get()), (Seen::Never, 0));
        repeats.remember(at(130), id(3));
        drop(repeats);
        assert_eq!(gauge.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_sweep_clears_what_does_not_count_any_more() {
        let now = weir_env::clock::Clock::simulated(at(0)).now();
        let mut repeats = Repeats::restore(Vec::new(), now, Gauge::default());
        repeats.remember(at(10), id(1));
        repeats.sweep_by(now, WINDOW);
        let due = repeats.poll_timeout().unwrap();
        assert_eq!(due, now + SWEEP_INTERVAL, "what an earlier owner left");
        repeats.handle_timeout(due, at(200), WINDOW);
        assert_eq!((repeats.has_writes(), repeats.take_clear()), (true, Some(at(80))));
        assert_eq!(repeats.poll_timeout(), None, "nothing is left to forget");
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_limit_nothing_is_remembered_until_ids_are_forgotten() {
        let now = weir_env::clock::Clock::simulated(at(0)).now();
        let mut repeats = Repeats::restore(Vec::new(), now, Gauge::default());
        let nth = |n: usize| DedupId((n as u128).to_be_bytes());
        for n in 0..DEDUP_IDS_MAX {
            repeats.remember(at(n as u64 / 1_000_000), nth(n));
        }
        assert_eq!(repeats.look(&nth(DEDUP_IDS_MAX), at(1), WINDOW), Seen::Full);
        assert_eq!(repeats.look(&nth(7), at(1), WINDOW), Seen::Stored);
        assert_eq!(repeats.look(&nth(DEDUP_IDS_MAX), at(120), WINDOW), Seen::Never);
    }
}
