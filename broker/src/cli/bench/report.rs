//! What came of a run: a table for people, a document for programs.

use serde_json::{Value, json};

use super::cost::{StoreCost, Work};
use super::latency::{Latencies, Latency};
use super::plan::Plan;
use super::run::expected;
use super::shared::{Shared, read};
use super::usage::Used;
use crate::cli::output::Table;
pub(super) use crate::cli::output::nanos;

/// All runs of a scenario.
#[derive(Debug)]
pub(super) struct Report {
    scenario: &'static str,
    runs: Vec<(Plan, Outcome)>,
}

/// Numbers of one run. Times are nanoseconds.
#[derive(Debug)]
pub(super) struct Outcome {
    sent: u64,
    unsent: u64,
    acked: u64,
    refused: u64,
    received: u64,
    /// Of the subscriber with the fewest, and the most.
    received_by: (u64, u64),
    foreign: u64,
    expected: u64,
    connected: u64,
    errors: u64,
    first_error: Option<String>,
    /// From the start to the last publish, and to the last arrival.
    sent_for: u64,
    received_for: u64,
    /// From the first connection to the last.
    set_up: u64,
    latencies: Latencies,
    used: Used,
    cost: Option<StoreCost>,
}

/// When things happened, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// Of the first message, or the first idle connection.
    pub(super) started: u64,
    /// From the first connection to the last.
    pub(super) set_up: u64,
}

impl Outcome {
    pub(super) fn new(
        plan: &Plan,
        shared: &Shared,
        latencies: Latencies,
        times: Times,
        used: Used,
        cost: Option<StoreCost>,
    ) -> Self {
        let counts = &shared.counts;
        let Times { started, set_up } = times;
        Self {
            sent: read(&counts.sent),
            unsent: read(&counts.unsent),
            acked: read(&counts.acked),
            refused: read(&counts.refused),
            received: read(&counts.received),
            received_by: {
                let each = || counts.received_by.iter().map(read);
                (each().min().unwrap_or(0), each().max().unwrap_or(0))
            },
            foreign: read(&counts.foreign),
            expected: expected(plan, counts),
            connected: read(&counts.ready),
            errors: read(&counts.errors),
            first_error: shared.first_error(),
            sent_for: read(&counts.last_sent).saturating_sub(started),
            received_for: read(&counts.last_received).saturating_sub(started),
            set_up,
            latencies,
            used,
            cost,
        }
    }

    fn lost(&self) -> u64 {
        self.expected.saturating_sub(self.received)
    }

    /// Messages that arrived more often than they should.
    fn extra(&self, plan: &Plan) -> u64 {
        // Publishes without acknowledgement may arrive as well.
        let most = (self.sent + plan.stored) * plan.copies;
        self.received.saturating_sub(most.max(self.expected))
    }

    /// Time from the last publish to the last arrival.
    fn drain(&self) -> u64 {
        self.received_for.saturating_sub(self.sent_for)
    }

    /// What the broker's processor time is shared by: arrivals, or else acknowledged publishes or connections.
    const fn work(&self) -> (&'static str, u64) {
        match (self.received + self.foreign, self.acked) {
            (0, 0) => ("connection", self.connected),
            (0, acked) => ("message", acked),
            (received, _) => ("message", received),
        }
    }

    /// What the cost of the store is shared by: publishes, or else arrivals or connections.
    fn store_work(&self, plan: &Plan) -> Work {
        let payload_bytes = plan.publishers.first().map_or(0, |publisher| publisher.size as u64 * self.sent);
        let (unit, count) = if self.sent > 0 { ("message", self.sent) } else { self.work() };
        Work { unit, count, payload_bytes }
    }

    /// Which latencies mean something in this run.
    fn latencies(&self, plan: &Plan) -> Vec<(&'static str, &'static str, &Latency)> {
        let mut latencies = vec![
            ("connect", "connect", &self.latencies.connect),
            ("publish to ack", "ack", &self.latencies.ack),
            ("subscribe to first arrival", "first", &self.latencies.first),
        ];
        // What was stored long before it is read has no latency.
        if plan.stored == 0 {
            latencies.push(("publish to arrival", "endToEnd", &self.latencies.end_to_end));
        }
        latencies.retain(|(_, _, latency)| !latency.is_empty());
        latencies
    }
}

impl Report {
    pub(super) const fn new(scenario: &'static str) -> Self {
        Self { scenario, runs: Vec::new() }
    }

    pub(super) fn add(&mut self, plan: Plan, outcome: Outcome) {
        self.runs.push((plan, outcome));
    }

    /// Fails if something failed, after all has been printed.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        for (_, outcome) in &self.runs {
            let what = outcome.first_error.as_deref().unwrap_or_default();
            anyhow::ensure!(outcome.errors == 0, "{} connections failed; the first: {what}", outcome.errors);
            anyhow::ensure!(outcome.refused == 0, "{} publishes refused; the first: {what}", outcome.refused);
        }
        Ok(())
    }

    pub(super) fn text(&self) -> String {
        self.runs.iter().map(|(plan, outcome)| text(plan, outcome)).collect()
    }

    pub(super) fn json(&self) -> Value {
        let runs = self.runs.iter().map(|(plan, outcome)| document(plan, outcome));
        json!({ "scenario": self.scenario, "runs": runs.collect::<Value>() })
    }
}

fn text(plan: &Plan, outcome: &Outcome) -> String {
    let mut text = format!("\n{}\n\n", plan.title);
    let mut counts = Table::new(&["", "TOTAL#", "PER SECOND#"]);
    let mut row = |name: &str, total: u64, per_second: String| {
        counts.row(vec![name.to_owned(), total.to_string(), per_second]);
    };
    if plan.idle > 0 {
        row("connected", outcome.connected, rate(outcome.connected, seconds(outcome.set_up)));
    }
    if !plan.publishers.is_empty() {
        row("sent", outcome.sent, rate(outcome.sent, seconds(outcome.sent_for)));
        for (name, n) in
            [("acknowledged", outcome.acked), ("refused", outcome.refused), ("not sent", outcome.unsent)]
        {
            if n > 0 {
                row(name, n, String::new());
            }
        }
    }
    if !plan.subscribers.is_empty() {
        let all = outcome.received + outcome.foreign;
        row("received", outcome.received, rate(all, seconds(outcome.received_for)));
        for (name, n) in [
            ("of other runs", outcome.foreign),
            ("lost", outcome.lost()),
            ("received again", outcome.extra(plan)),
        ] {
            if n > 0 || name == "lost" {
                row(name, n, String::new());
            }
        }
    }
    if plan.subscribers.len() > 1 && plan.copies == 1 {
        row("by the busiest subscriber", outcome.received_by.1, String::new());
        row("by the least busy", outcome.received_by.0, String::new());
    }
    row("errors", outcome.errors, String::new());
    text.push_str(&counts.to_string());

    let latencies = outcome.latencies(plan);
    if !latencies.is_empty() {
        let mut table = Table::new(&["LATENCY", "P50#", "P90#", "P99#", "P99.9#", "MAX#"]);
        for (name, _, latency) in latencies {
            let percentiles = [50.0, 90.0, 99.0, 99.9].map(|percent| nanos(latency.percentile(percent)));
            let [p50, p90, p99, p999] = percentiles;
            table.row(vec![name.to_owned(), p50, p90, p99, p999, nanos(latency.max())]);
        }
        text.push_str(&format!("\n{table}"));
    }
    if !plan.subscribers.is_empty() && !plan.publishers.is_empty() {
        text.push_str(&format!("\nlast arrival {} after the last publish\n", nanos(outcome.drain())));
    }
    text.push_str(&used(outcome));
    if let Some(cost) = &outcome.cost {
        text.push_str(&cost.text(outcome.store_work(plan)));
    }
    text
}

/// What processes used, where it is known.
fn used(outcome: &Outcome) -> String {
    let mut text = String::new();
    let (what, n) = outcome.work();
    if let Some(cpu) = outcome.used.load_cpu {
        text.push_str(&format!("processor time of the load generator: {:.2} s\n", cpu.as_secs_f64()));
    }
    if let Some(cpu) = outcome.used.broker_cpu.filter(|_| n > 0) {
        let each = (cpu / u32::try_from(n).unwrap_or(u32::MAX)).as_secs_f64() * 1e6;
        text.push_str(&format!("of the broker: {:.2} s, {each:.2} us a {what}\n", cpu.as_secs_f64()));
    }
    if let Some((before, after)) = outcome.used.broker_memory {
        let kibibytes = |bytes: u64| bytes.div_ceil(1024);
        let highest = outcome.used.broker_memory_highest.unwrap_or(after);
        text.push_str(&format!(
            "memory of the broker: {} KiB, before {} KiB, highest {} KiB\n",
            kibibytes(after),
            kibibytes(before),
            kibibytes(highest)
        ));
    }
    text
}

fn document(plan: &Plan, outcome: &Outcome) -> Value {
    let latencies = outcome.latencies(plan).into_iter().map(|(_, key, latency)| {
        let value = json!({
            "p50Nanos": latency.percentile(50.0),
            "p90Nanos": latency.percentile(90.0),
            "p99Nanos": latency.percentile(99.0),
            "p999Nanos": latency.percentile(99.9),
            "maxNanos": latency.max(),
        });
        (key.to_owned(), value)
    });
    let received = outcome.received + outcome.foreign;
    json!({
        "title": plan.title,
        "connected": outcome.connected,
        "sent": outcome.sent,
        "sentPerSecond": per_second(outcome.sent, seconds(outcome.sent_for)),
        "notSent": outcome.unsent,
        "acknowledged": outcome.acked,
        "refused": outcome.refused,
        "subscribers": plan.subscribers.len(),
        "received": outcome.received,
        "receivedByFewest": outcome.received_by.0,
        "receivedByMost": outcome.received_by.1,
        "receivedOfOtherRuns": outcome.foreign,
        "receivedPerSecond": per_second(received, seconds(outcome.received_for)),
        "lost": outcome.lost(),
        "receivedAgain": outcome.extra(plan),
        "drainNanos": outcome.drain(),
        "errors": outcome.errors,
        "firstError": outcome.first_error,
        "connectNanos": outcome.set_up,
        "measuredNanos": outcome.received_for.max(outcome.sent_for),
        "latency": latencies.collect::<serde_json::Map<_, _>>(),
        "used": outcome.used.document(),
        "store": outcome.cost.as_ref().map(|cost| cost.document(outcome.store_work(plan))),
    })
}

/// A rate in whole messages, with its thousands set off.
pub(super) fn rate(n: u64, seconds: f64) -> String {
    let rate = format!("{:.0}", per_second(n, seconds));
    let mut text = String::new();
    for (place, digit) in rate.chars().enumerate() {
        if place > 0 && (rate.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn per_second(n: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { n as f64 / seconds } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(rate(0, 1.0), "0");
        assert_eq!(rate(999, 1.0), "999");
        assert_eq!(rate(1_234_567, 1.0), "1,234,567");
        assert_eq!(rate(10, 0.0), "0");
    }

    #[test]
    fn losses_and_repeats_are_told_from_what_may_be() {
        let plan = Plan { copies: 2, ..Plan::default() };
        let outcome = |sent, expected, received| Outcome {
            sent,
            unsent: 0,
            acked: 0,
            refused: 0,
            received,
            received_by: (0, 0),
            foreign: 0,
            expected,
            connected: 0,
            errors: 0,
            first_error: None,
            sent_for: 0,
            received_for: 0,
            set_up: 0,
            latencies: Latencies::default(),
            used: Used::default(),
            cost: None,
        };
        let check =
            |outcome: Outcome, lost, extra| assert_eq!((outcome.lost(), outcome.extra(&plan)), (lost, extra));
        check(outcome(10, 20, 20), 0, 0);
        check(outcome(10, 20, 17), 3, 0);
        check(outcome(10, 16, 18), 0, 0);
        check(outcome(10, 16, 23), 0, 3);
    }
}
