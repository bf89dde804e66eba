//! What is going on in each stream of this process: who reads it, from where, and how fast messages come and go.
//!
//! Owners of shards and readers tell what they did, in passing; people look. Nobody decides anything by it, and a stream
//! that nobody owns or reads has none. Holds no messages and must never know connections: a reader has a name, no more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use weir_env::clock::{Clock, Instant, Timestamp};
use weir_env::seed::HashMap;

use crate::catalog::Object;
use crate::metrics::{StreamMetrics, StreamSeries};

/// Over how long rates are taken.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Time between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// What is going on in a stream.
#[derive(Clone, Debug, Default)]
pub struct StreamReport {
    /// Messages published a second, over the last ten.
    pub published: f64,
    /// Messages given to readers a second, over the last ten.
    pub read: f64,
    /// In the order in which they came.
    pub readers: Vec<ReaderReport>,
}

/// One reader of a stream.
#[derive(Clone, Debug)]
pub struct ReaderReport {
    /// Who: a client id; empty if nobody said.
    pub name: Arc<str>,
    /// When it began.
    pub since: Timestamp,
    /// Messages given to it.
    pub read: u64,
    /// Of each shard that it reads the offset that it gets next.
    pub positions: Vec<(u8, u64)>,
}

/// The activity of each stream, by its id, while somebody has a part in it. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Activities(Arc<Mutex<HashMap<u32, Weak<Activity>>>>);

/// What is going on in one stream.
#[derive(Debug)]
pub(crate) struct Activity {
    all: Activities,
    object: u32,
    pub(crate) series: Arc<StreamSeries>,
    published: Mutex<Meter>,
    read: Mutex<Meter>,
    readers: Mutex<BTreeMap<u64, Arc<Reading>>>,
    readers_ever: AtomicU64,
}

/// One reader, until it is dropped.
#[derive(Debug)]
pub(crate) struct Presence {
    activity: Arc<Activity>,
    id: u64,
    reading: Arc<Reading>,
}

#[derive(Debug)]
struct Reading {
    name: Arc<str>,
    since: Timestamp,
    read: AtomicU64,
    positions: Mutex<BTreeMap<u8, u64>>,
}

impl Activities {
    /// That of `stream`.
    pub(crate) fn of(&self, stream: &Object, metrics: &StreamMetrics) -> Arc<Activity> {
        let mut all = self.0.lock();
        if let Some(activity) = all.get(&stream.id).and_then(Weak::upgrade) {
            return activity;
        }
        let activity = Arc::new(Activity {
            all: self.clone(),
            object: stream.id,
            series: metrics.series(&stream.definition.name),
            published: Mutex::default(),
            read: Mutex::default(),
            readers: Mutex::default(),
            readers_ever: AtomicU64::new(0),
        });
        all.insert(stream.id, Arc::downgrade(&activity));
        activity
    }

    /// What is going on in `stream` at `now`.
    pub(crate) fn report(&self, stream: &Object, now: Instant) -> StreamReport {
        let activity = self.0.lock().get(&stream.id).and_then(Weak::upgrade);
        activity.map(|activity| activity.report(now)).unwrap_or_default()
    }
}

impl Activity {
    /// Messages were published.
    pub(crate) fn published(&self, count: u64, now: Instant) {
        self.published.lock().add(count, now);
    }

    /// A reader called `name` begins.
    pub(crate) fn attend(self: Arc<Self>, name: Arc<str>, clock: &Clock) -> Presence {
        let id = self.readers_ever.fetch_add(1, Ordering::Relaxed);
        let (read, positions) = (AtomicU64::new(0), Mutex::default());
        let reading = Arc::new(Reading { name, since: clock.wall(), read, positions });
        self.readers.lock().insert(id, Arc::clone(&reading));
        self.series.count_readers(1);
        Presence { activity: self, id, reading }
    }

    fn report(&self, now: Instant) -> StreamReport {
        let readers = self.readers.lock();
        let report = |reading: &Arc<Reading>| ReaderReport {
            name: Arc::clone(&reading.name),
            since: reading.since,
            read: reading.read.load(Ordering::Relaxed),
            positions: reading.positions.lock().iter().map(|(shard, next)| (*shard, *next)).collect(),
        };
        StreamReport {
            published: self.published.lock().rate(now),
            read: self.read.lock().rate(now),
            readers: readers.values().map(report).collect(),
        }
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        // Another may have taken its place.
        if all.get(&self.object).is_some_and(|activity| activity.strong_count() == 0) {
            all.remove(&self.object);
        }
    }
}

impl Presence {
    /// It reads `shard`, from `next` on.
    pub(crate) fn stands(&self, shard: u8, next: u64) {
        self.reading.positions.lock().insert(shard, next);
    }

    /// It reads `shard` no more.
    pub(crate) fn leaves(&self, shard: u8) {
        self.reading.positions.lock().remove(&shard);
    }

    /// It was given `count` messages of `shard`, and goes on at `next`.
    pub(crate) fn read(&self, shard: u8, next: u64, count: u64, now: Instant) {
        self.stands(shard, next);
        if count > 0 {
            self.reading.read.fetch_add(count, Ordering::Relaxed);
            self.activity.read.lock().add(count, now);
            self.activity.series.count_read(count);
        }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.activity.readers.lock().remove(&self.id);
        self.activity.series.count_readers(-1);
    }
}

/// How often something happens.
#[derive(Debug, Default)]
struct Meter {
    total: u64,
    /// Every second in which something happened, as it was before; the first is older than the window.
    samples: VecDeque<(Instant, u64)>,
}

impl Meter {
    fn add(&mut self, count: u64, now: Instant) {
        let samples = &mut self.samples;
        if samples.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= SAMPLE_INTERVAL) {
            while samples.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= RATE_WINDOW) {
                samples.pop_front();
            }
            samples.push_back((now, self.total));
        }
        self.total += count;
    }

    /// A second, over the last ten.
    fn rate(&self, now: Instant) -> f64 {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < RATE_WINDOW + SAMPLE_INTERVAL;
        let Some((since, then)) = self.samples.iter().find(|(at, _)| recent(at)) else { return 0.0 };
        let seconds = now.saturating_duration_since(*since).max(SAMPLE_INTERVAL).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "rates are for people")]
        let count = self.total.saturating_sub(*then) as f64;
        count / seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_ten_seconds() {
        let start = Clock::system().now();
        let mut meter = Meter::default();
        assert!(meter.rate(start).abs() < 0.01);
        for n in 0..60 {
            meter.add(50, start + Duration::from_millis(n * 500));
        }
        let end = start + Duration::from_secs(30);
        assert!((meter.rate(end) - 100.0).abs() < 10.0, "{}", meter.rate(end));
        assert!(meter.samples.len() < 15, "old samples are forgotten");
        assert!(meter.rate(end + Duration::from_secs(20)).abs() < 0.01, "it has long been quiet");
        meter.add(7, end + Duration::from_secs(60));
        assert!((meter.rate(end + Duration::from_secs(60)) - 7.0).abs() < 0.01);
    }
}
