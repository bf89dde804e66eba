//! What a shard of a queue has done lately: rates, the age of its oldest message, and its share of the metrics of
//! its queue.
//!
//! Looks at the shard after each of its turns and decides nothing. The shard owns it.

use std::collections::VecDeque;
use std::time::Duration;

use weir_env::clock::{Instant, Timestamp};

use super::{AckLatency, ConsumerId, QueueShard, Verdict};
use crate::keyspace::segment::Record;
use crate::metrics::{Gauges, QueueEvent, SeriesShare};

/// Over how long rates are taken.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Time between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Things that happened a second, over the last ten.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Messages that came in.
    pub published: f64,
    /// Deliveries, redeliveries included.
    pub delivered: f64,
    /// Deliveries of a message of which a delivery had failed.
    pub redelivered: f64,
    /// Messages acknowledged.
    pub acknowledged: f64,
}

/// A consumer as its shard knows it.
#[derive(Clone, Debug)]
pub struct ConsumerReport {
    /// Which.
    pub id: ConsumerId,
    /// Of the client it belongs to.
    pub client_id: String,
    /// When it began to consume.
    pub since: Timestamp,
    /// Deliveries it has not settled.
    pub inflight: u32,
    /// Messages it has room for, over all shards.
    pub free: i64,
    /// Deliveries to it.
    pub delivered: u64,
    /// Messages it acknowledged.
    pub acknowledged: u64,
    /// Deliveries it refused.
    pub rejected: u64,
    /// How long it takes to acknowledge.
    pub latency: AckLatency,
}

/// What one consumer has done with messages of one shard.
#[derive(Clone, Debug, Default)]
pub(super) struct Work {
    pub(super) delivered: u64,
    pub(super) acknowledged: u64,
    pub(super) rejected: u64,
    pub(super) latency: AckLatency,
}

/// What has happened since the shard was loaded; of `published` differences count alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    published: u64,
    delivered: u64,
    redelivered: u64,
    acknowledged: u64,
}

/// What a shard remembers for those who look at it.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) delivered: u64,
    pub(super) redelivered: u64,
    pub(super) rejected: u64,
    pub(super) timeouts: u64,
    /// Every second in which something happened, the first older than the window.
    samples: VecDeque<(Instant, Totals)>,
    /// The first message that is not done, and when it came.
    oldest: Option<(u64, Timestamp)>,
    share: Option<SeriesShare>,
}

impl Work {
    /// Its consumer has said `verdict` of a message that it held for `took`, or held no more.
    pub(super) fn settled(&mut self, verdict: Verdict, took: Option<Duration>) {
        match verdict {
            Verdict::Acknowledged => {
                self.acknowledged += 1;
                took.into_iter().for_each(|took| self.latency.record(took));
            }
            Verdict::Rejected => self.rejected += 1,
            Verdict::Returned => {}
        }
    }
}

impl QueueShard {
    /// The message at `offset`, if it is in memory.
    fn held_at(&self, offset: u64) -> Option<&Record> {
        let leased = self.leases.get(&offset).map(|lease| &*lease.record);
        let again = || self.again.get(&offset).map(|(record, _)| &**record);
        let delayed =
            || self.delayed.get(&(*self.delayed_until.get(&offset)?, offset)).map(|(record, _)| &**record);
        let ready = || self.ready.front().filter(|(first, _)| *first == offset).map(|(_, record)| &**record);
        leased.or_else(again).or_else(delayed).or_else(ready)
    }

    /// Counts what happens here into the metrics of the queue too.
    pub(crate) fn count_into(&mut self, share: SeriesShare) {
        self.stats.share = Some(share);
    }

    /// Takes note of what has happened by `now`. To be called after each turn.
    pub fn observe(&mut self, now: Instant) {
        let totals = self.totals();
        let samples = &mut self.stats.samples;
        if samples.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= SAMPLE_INTERVAL) {
            while samples.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= RATE_WINDOW) {
                samples.pop_front();
            }
            samples.push_back((now, totals));
        }
        let floor = self.acks.floor();
        if self.stats.oldest.is_none_or(|(offset, _)| offset != floor) {
            self.stats.oldest = self.held_at(floor).map(|record| (floor, record.message.published_at));
        }
        self.share_metrics();
    }

    fn totals(&self) -> Totals {
        Totals {
            published: self.next,
            delivered: self.stats.delivered,
            redelivered: self.stats.redelivered,
            acknowledged: self.counters.acknowledged,
        }
    }

    fn share_metrics(&mut self) {
        let gauges = Gauges {
            depth: self.depth(),
            bytes: self.bytes(),
            inflight: self.inflight() as u64,
            waiting: self.waiting() as u64,
            // A consumer is attached to every shard.
            consumers: if self.log.shard == 0 && self.log.class == 0 {
                self.consumers.len() as u64
            } else {
                0
            },
            oldest: self.oldest(),
        };
        let counters = &self.counters;
        let events = [
            (QueueEvent::Published, self.next),
            (QueueEvent::Delivered, self.stats.delivered),
            (QueueEvent::Redelivered, self.stats.redelivered),
            (QueueEvent::Acknowledged, counters.acknowledged),
            (QueueEvent::Rejected, self.stats.rejected),
            (QueueEvent::TimedOut, self.stats.timeouts),
            (QueueEvent::DeadLettered, counters.dead_lettered),
            (QueueEvent::Expired, counters.expired),
            (QueueEvent::Exhausted, counters.exhausted),
            (QueueEvent::Overflowed, counters.overflowed),
            (QueueEvent::Superseded, counters.superseded),
            (QueueEvent::Purged, counters.purged),
            (QueueEvent::Redriven, counters.redriven),
        ];
        if let Some(share) = &mut self.stats.share {
            share.set(gauges, &events);
        }
    }

    /// A record that passes by, in case it is the oldest.
    pub(super) fn note_oldest(&mut self, offset: u64, record: &Record) {
        if offset == self.acks.floor() {
            self.stats.oldest = Some((offset, record.message.published_at));
        }
    }

    /// When the oldest message that is not done came, if that is known.
    #[must_use]
    pub fn oldest(&self) -> Option<Timestamp> {
        let floor = self.acks.floor();
        let at_floor = self.stats.oldest.filter(|(offset, _)| *offset == floor && floor < self.next);
        self.asides.oldest().or(at_floor.map(|(_, at)| at))
    }

    /// Messages that wait to be delivered again.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.delayed.len() + self.again.len()
    }

    /// Deliveries since the shard was loaded, and those among them after one that had failed.
    #[must_use]
    pub fn deliveries(&self) -> (u64, u64) {
        (self.stats.delivered, self.stats.redelivered)
    }

    /// What has happened a second, lately.
    #[must_use]
    pub fn rates(&self, now: Instant) -> Rates {
        let recent = |at: &Instant| now.saturating_duration_since(*at) < RATE_WINDOW + SAMPLE_INTERVAL;
        // What happened since the last sample happened within an interval of it.
        let is_idle = self.stats.samples.back().is_none_or(|(at, _)| !recent(at));
        let first = self.stats.samples.iter().find(|(at, _)| recent(at));
        let (false, Some((since, then))) = (is_idle, first) else { return Rates::default() };
        let seconds = now.saturating_duration_since(*since).max(SAMPLE_INTERVAL).as_secs_f64();
        let totals = self.totals();
        #[expect(clippy::cast_precision_loss, reason = "rates are for people")]
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        Rates {
            published: rate(totals.published, then.published),
            delivered: rate(totals.delivered, then.delivered),
            redelivered: rate(totals.redelivered, then.redelivered),
            acknowledged: rate(totals.acknowledged, then.acknowledged),
        }
    }

    /// The consumers and what each has done.
    #[must_use]
    pub fn consumer_reports(&self) -> Vec<ConsumerReport> {
        let report = |attached: &super::shard::Attached| ConsumerReport {
            id: attached.consumer.id,
            client_id: attached.consumer.client_id.to_string(),
            since: attached.consumer.since,
            inflight: attached.inflight,
            free: attached.consumer.window.free(),
            delivered: attached.work.delivered,
            acknowledged: attached.work.acknowledged,
            rejected: attached.work.rejected,
            latency: attached.work.latency.clone(),
        };
        self.consumers.iter().map(report).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::mpsc;
    use weir_env::clock::Clock;
    use weir_env::seed::Seed;

    use super::*;
    use crate::keyspace::segment::RecordKey;
    use crate::keyspace::{LogId, VirtualShard};
    use crate::message::Message;
    use crate::message::tests::full_message;
    use crate::metrics::Metrics;
    use crate::queue::{Consumer, Settings, StoredQueue, Window};

    fn shard() -> QueueShard {
        let log = LogId { vs: VirtualShard(0), object: 1, shard: 0, class: 0 };
        let stored = StoredQueue::default();
        QueueShard::restore(log, stored, Settings::default(), Seed::fixed(1), Metrics::default())
    }

    fn append(shard: &mut QueueShard, at: u64) {
        let message =
            Message { published_at: Timestamp::from_micros(at), expires_at: None, ..full_message() };
        let record = Record { message, key: RecordKey::None, blob_len: None, span: tracing::Span::none() };
        let next = shard.next;
        shard.appended(next, std::iter::once(Arc::new(record)));
    }

    fn consumer() -> (Consumer, mpsc::Receiver<super::super::QueueDelivery>) {
        let (deliveries, received) = mpsc::channel(100);
        let consumer = Consumer {
            id: ConsumerId(1),
            client_id: "worker".into(),
            since: Timestamp::from_micros(7),
            window: Arc::new(Window::new(100)),
            connection_window: None,
            deliveries,
        };
        (consumer, received)
    }

    #[tokio::test(start_paused = true)]
    async fn rates_are_those_of_the_last_seconds() {
        let (mut shard, clock) = (shard(), Clock::system());
        shard.observe(clock.now());
        for _ in 0..60 {
            append(&mut shard, 1);
            append(&mut shard, 1);
            tokio::time::advance(Duration::from_millis(500)).await;
            shard.observe(clock.now());
        }
        let published = shard.rates(clock.now()).published;
        assert!((3.6..4.4).contains(&published), "{published}");
        tokio::time::advance(Duration::from_secs(5)).await;
        let published = shard.rates(clock.now()).published;
        assert!((1.5..3.0).contains(&published), "half of the window was quiet: {published}");
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(shard.rates(clock.now()), Rates::default());
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_message_is_the_first_that_is_not_done() {
        let (mut shard, clock) = (shard(), Clock::system());
        let micros = |n| Some(Timestamp::from_micros(n));
        shard.observe(clock.now());
        assert_eq!(shard.oldest(), None);
        (10..13).for_each(|at| append(&mut shard, at));
        shard.observe(clock.now());
        assert_eq!(shard.oldest(), micros(10), "nobody consumes");
        let (consumer, _received) = consumer();
        shard.attach(consumer);
        let records = shard.wants_records().unwrap();
        assert_eq!(records, 0);
        shard.detach(ConsumerId(1), crate::queue::Lost::Left);
        assert_eq!(shard.oldest(), micros(10));
    }

    #[tokio::test(start_paused = true)]
    async fn consumers_are_known_by_what_they_do() {
        let (mut shard, clock) = (shard(), Clock::system());
        let (consumer, mut received) = consumer();
        shard.attach(consumer);
        for _ in 0..4 {
            append(&mut shard, 10);
        }
        let wall = Timestamp::from_micros(20);
        shard.dispatch(clock.now(), wall);
        tokio::time::advance(Duration::from_millis(100)).await;
        for verdict in [Verdict::Acknowledged, Verdict::Acknowledged, Verdict::Rejected] {
            let delivery = received.try_recv().unwrap();
            shard.settle(delivery.handout(), verdict, clock.now(), wall);
        }
        shard.observe(clock.now());
        let [report] = shard.consumer_reports().try_into().unwrap();
        assert_eq!(
            (report.client_id.as_str(), report.since, report.inflight),
            ("worker", Timestamp::from_micros(7), 1)
        );
        assert_eq!((report.delivered, report.acknowledged, report.rejected), (4, 2, 1));
        let p99 = report.latency.percentile(99).unwrap();
        assert!((Duration::from_millis(75)..Duration::from_millis(125)).contains(&p99), "{p99:?}");
        assert_eq!((shard.waiting(), shard.deliveries()), (1, (4, 0)));
    }
}
