//! How much a pod has to do: gauges as they are, and counters as rates over the last seconds. [`Meter`] is without IO; what it
//! finds belongs to the core, which tells the other pods.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tokio_util::sync::CancellationToken;
use weir_core::cluster::PodLoad;
use weir_env::clock::Instant;

use crate::broker::Broker;
use crate::process;

/// Time over which rates are averages.
const WINDOW: Duration = Duration::from_secs(10);
/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Looks that are kept; more do not fit into the window.
const LOOKS_MAX: usize = 12;

/// Counters of which the rates are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    connects: u64,
    publishes: u64,
    deliveries: u64,
    appends: u64,
    bytes_in: u64,
    bytes_out: u64,
    /// Milliseconds.
    cpu: u64,
}

/// What counters have shown lately.
#[derive(Debug, Default)]
struct Meter {
    looks: VecDeque<(Instant, Counts)>,
}

impl Meter {
    /// Takes note of what counters show `now`; the rates since the oldest look within the window, or just before it.
    fn look(&mut self, now: Instant, counts: Counts) -> PodLoad {
        self.looks.push_back((now, counts));
        let is_over = |at: &Instant| now.saturating_duration_since(*at) >= WINDOW;
        while self.looks.len() > LOOKS_MAX || self.looks.get(1).is_some_and(|(at, _)| is_over(at)) {
            self.looks.pop_front();
        }
        let (since, before) = self.looks.front().copied().unwrap_or((now, counts));
        let elapsed = u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX);
        // Of 1000 seconds.
        let rate = |count: fn(&Counts) -> u64| {
            let grown = count(&counts).saturating_sub(count(&before));
            grown.saturating_mul(1_000_000).checked_div(elapsed).unwrap_or_default()
        };
        PodLoad {
            connects: rate(|counts| counts.connects),
            publishes: rate(|counts| counts.publishes),
            deliveries: rate(|counts| counts.deliveries),
            appends: rate(|counts| counts.appends),
            bytes_in: rate(|counts| counts.bytes_in),
            bytes_out: rate(|counts| counts.bytes_out),
            cpu: rate(|counts| counts.cpu),
            ..PodLoad::default()
        }
    }
}

/// Has the core know what `broker` has to do, until `stop`. `appended` counts messages appended to shards.
pub(crate) async fn run(broker: Arc<Broker>, appended: Counter, stop: CancellationToken) {
    let mut meter = Meter::default();
    loop {
        let load = meter.look(broker.clock.now(), counts(&broker, &appended));
        broker.core.report_load(broker.drainage.tell(PodLoad {
            connections: positive(&broker.metrics.connections),
            subscriptions: positive(&broker.metrics.subscriptions),
            ..load
        }));
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn counts(broker: &Broker, appended: &Counter) -> Counts {
    let metrics = &broker.metrics;
    Counts {
        connects: metrics.connections_opened.get(),
        publishes: metrics.publishes.sum(),
        deliveries: metrics.deliveries.sum(),
        appends: appended.get(),
        bytes_in: metrics.bytes_received.get(),
        bytes_out: metrics.bytes_sent.get(),
        cpu: process::processor_time().map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
    }
}

fn positive(gauge: &Gauge) -> u64 {
    u64::try_from(gauge.get()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use weir_env::clock::Clock;

    use super::*;

    #[test]
    fn rates_are_of_the_last_ten_seconds() {
        let start = Clock::system().now();
        let mut meter = Meter::default();
        let mut look = |seconds: u64, publishes: u64| {
            let counts = Counts { publishes, ..Counts::default() };
            meter.look(start + Duration::from_secs(seconds), counts).publishes
        };
        assert_eq!(look(0, 1_000), 0, "nothing to compare with");
        assert_eq!(look(1, 1_003), 3_000);
        assert_eq!(look(2, 1_003), 1_500);
        for second in 3..=10 {
            look(second, 1_003);
        }
        assert_eq!(look(11, 1_003), 0, "the three are out of the window");
        assert_eq!(look(12, 1_001), 0, "a counter that fell");
        // Nobody looked for a while.
        assert_eq!(look(100, 1_091), 1_022);
        assert_eq!(look(101, 1_181), 2_022);
        assert_eq!(look(101, 1_181), 2_022, "no time");
        assert!(meter.looks.len() <= LOOKS_MAX);
    }
}
