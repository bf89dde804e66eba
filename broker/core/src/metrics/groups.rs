//! What consumer groups do, and how far each is behind, by stream and name.
//!
//! Names are chosen by others, so there is a bound: the first [`GROUPS_NAMED_MAX`] groups in use have series of their
//! own, all others share those of [`OTHERS`]: their sums, and the oldest age. Coordinators write here; nobody reads it to
//! decide anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::OTHERS;

/// Groups with series of their own.
pub const GROUPS_NAMED_MAX: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
struct GroupLabels {
    stream: Arc<str>,
    group: Arc<str>,
}

/// What all groups do, and series by group. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct GroupMetrics {
    /// Shards given to members.
    pub assigned: Counter,
    /// Shards that a member did not give back in time.
    pub revocations_timed_out: Counter,
    /// Positions told by members that did not have the shard any more.
    pub stale_progress: Counter,
    /// Members and groups refused because there were too many.
    pub refused: Counter,
    /// Groups forgotten because nobody had used them for long.
    pub expired: Counter,
    /// Writes of positions that failed and were tried again.
    pub write_failures: Counter,
    /// Times that a new coordinator has asked all pods who their members are.
    pub roll_calls: Counter,
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    members: Family<GroupLabels, Gauge>,
    lag: Family<GroupLabels, Gauge>,
    age: Family<GroupLabels, Gauge>,
    /// Shares of each label by their number, and how old the oldest message is that each has not read, in seconds.
    shares: Mutex<BTreeMap<GroupLabels, BTreeMap<u64, i64>>>,
}

/// What one group adds to the series of its label. Takes it back when it is dropped.
#[derive(Debug)]
pub struct GroupShare {
    inner: Arc<Inner>,
    labels: GroupLabels,
    number: u64,
    members: i64,
    lag: i64,
}

impl GroupMetrics {
    /// Makes the series part of `registry`.
    pub(super) fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            (
                "stream_group_assigned",
                "Shards of streams given to members of consumer groups",
                &self.assigned,
            ),
            (
                "stream_group_revocations_timed_out",
                "Shards of streams that a member of a consumer group did not give back in time",
                &self.revocations_timed_out,
            ),
            (
                "stream_group_stale_progress",
                "Positions of consumer groups told by members that did not have the shard any more",
                &self.stale_progress,
            ),
            (
                "stream_group_refused",
                "Members and consumer groups refused because there were too many",
                &self.refused,
            ),
            ("stream_group_expired", "Consumer groups forgotten because nobody used them", &self.expired),
            (
                "stream_group_write_failures",
                "Writes of positions of consumer groups that failed and were tried again",
                &self.write_failures,
            ),
            (
                "stream_group_roll_calls",
                "Times that this pod, having taken over the groups of a stream, asked all pods who their members are",
                &self.roll_calls,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        let inner = &self.inner;
        registry.register("stream_group_members", "Members of a consumer group", inner.members.clone());
        registry.register(
            "stream_group_lag",
            "Messages of a stream that a consumer group has not acknowledged, as of some seconds ago",
            inner.lag.clone(),
        );
        registry.register_with_unit(
            "stream_group_lag_age",
            "How old the oldest of them is; 0: there is none",
            Unit::Seconds,
            inner.age.clone(),
        );
    }

    /// The share of a group of a stream.
    #[must_use]
    pub fn share(&self, stream: &str, group: &str) -> GroupShare {
        let mut shares = self.inner.shares.lock();
        let own = GroupLabels { stream: stream.into(), group: group.into() };
        let others = GroupLabels { stream: OTHERS.into(), group: OTHERS.into() };
        let named = shares.len() - usize::from(shares.contains_key(&others));
        let labels = if named < GROUPS_NAMED_MAX || shares.contains_key(&own) { own } else { others };
        let of_label = shares.entry(labels.clone()).or_default();
        let number = of_label.last_key_value().map_or(0, |(last, _)| last + 1);
        of_label.insert(number, 0);
        drop(shares);
        let mut share = GroupShare { inner: Arc::clone(&self.inner), labels, number, members: 0, lag: 0 };
        share.set_members(0);
        share.set_lag(0, Duration::ZERO);
        share
    }
}

impl GroupShare {
    /// How many members the group has.
    pub(crate) fn set_members(&mut self, members: usize) {
        let members = i64::try_from(members).unwrap_or(i64::MAX);
        let change = members - std::mem::replace(&mut self.members, members);
        self.inner.members.get_or_create(&self.labels).inc_by(change);
    }

    /// How many messages it has not acknowledged, and how old the oldest of them is.
    pub(crate) fn set_lag(&mut self, messages: u64, age: Duration) {
        let lag = i64::try_from(messages).unwrap_or(i64::MAX);
        let change = lag - std::mem::replace(&mut self.lag, lag);
        self.inner.lag.get_or_create(&self.labels).inc_by(change);
        let mut shares = self.inner.shares.lock();
        let Some(of_label) = shares.get_mut(&self.labels) else { return };
        of_label.insert(self.number, i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        let oldest = of_label.values().max().copied().unwrap_or(0);
        self.inner.age.get_or_create(&self.labels).set(oldest);
    }
}

impl Drop for GroupShare {
    fn drop(&mut self) {
        self.set_members(0);
        self.set_lag(0, Duration::ZERO);
        let mut shares = self.inner.shares.lock();
        let Some(of_label) = shares.get_mut(&self.labels) else { return };
        of_label.remove(&self.number);
        if of_label.is_empty() {
            shares.remove(&self.labels);
            for family in [&self.inner.members, &self.inner.lag, &self.inner.age] {
                family.remove(&self.labels);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &GroupMetrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn groups_beyond_the_bound_share_series_and_all_leave_none_behind() {
        let metrics = GroupMetrics::default();
        let mut shares: Vec<GroupShare> =
            (0..GROUPS_NAMED_MAX + 2).map(|n| metrics.share("s", &format!("g{n}"))).collect();
        for (n, share) in shares.iter_mut().enumerate() {
            share.set_members(1);
            share.set_lag(10, Duration::from_secs(n as u64));
        }
        let shown = text(&metrics);
        for line in [
            "stream_group_lag{stream=\"s\",group=\"g0\"} 10\n",
            "stream_group_lag{stream=\"_other\",group=\"_other\"} 20\n",
            "stream_group_members{stream=\"_other\",group=\"_other\"} 2\n",
            "stream_group_lag_age_seconds{stream=\"_other\",group=\"_other\"} 1001\n",
        ] {
            assert!(shown.contains(line), "{line} is not in {shown}");
        }
        assert!(!shown.contains("g1000"));
        shares.clear();
        assert!(!text(&metrics).contains("stream=\""));
    }
}
