//! The arithmetic of a comparison: what one run of the load generator says, and the middle and the ends of several.

use anyhow::{Context, Result};
use serde_json::Value;

/// One run of the load generator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Messages that arrived, per second.
    pub(crate) per_second: f64,
    /// Messages that arrived.
    pub(crate) received: u64,
    /// Messages that were published, with success where that is told, and did not arrive.
    pub(crate) lost: u64,
    /// Arrivals of messages that were due and could not be published in time.
    pub(crate) unsent: u64,
    /// Microseconds of the broker's processor time for each message that arrived.
    pub(crate) broker_micros: f64,
    /// Processor time of the load generator, in hundredths of one core.
    pub(crate) load_percent: f64,
    /// Milliseconds from the time a message was due to its arrival.
    pub(crate) latency: Latency,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

/// What idle connections cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct IdleSample {
    pub(crate) connections: u64,
    /// KiB of resident memory that each connection added.
    pub(crate) kibibytes_each: f64,
    /// Connections made per second.
    pub(crate) per_second: f64,
    /// Microseconds of the broker's processor time for each connection.
    pub(crate) broker_micros: f64,
}

/// The middle of several values, and the ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Sample {
    /// Reads a run in the load generator's report; `copies` is how often each message should arrive.
    pub(crate) fn read(run: &Value, copies: u64) -> Result<Self> {
        let received = number(run, "/received")?;
        let seconds = float(run, "/measuredNanos")? / 1e9;
        let cpu = |pointer| float(run, pointer);
        Ok(Self {
            per_second: ratio(as_f64(received), seconds),
            received,
            lost: number(run, "/lost")?,
            unsent: number(run, "/notSent")? * copies,
            broker_micros: ratio(cpu("/used/brokerCpuNanos")? / 1e3, as_f64(received)),
            load_percent: ratio(cpu("/used/loadCpuNanos")? / 1e7, seconds),
            latency: Latency {
                p50: float(run, "/latency/endToEnd/p50Nanos").unwrap_or_default() / 1e6,
                p99: float(run, "/latency/endToEnd/p99Nanos").unwrap_or_default() / 1e6,
                max: float(run, "/latency/endToEnd/maxNanos").unwrap_or_default() / 1e6,
            },
        })
    }

    /// The part of what was published that did not arrive, in percent.
    pub(crate) fn lost_percent(&self) -> f64 {
        100.0 * ratio(as_f64(self.lost), as_f64(self.lost + self.received))
    }

    /// The part of what was due that was not published, in percent.
    pub(crate) fn unsent_percent(&self) -> f64 {
        100.0 * ratio(as_f64(self.unsent), as_f64(self.unsent + self.lost + self.received))
    }
}

impl IdleSample {
    /// Reads the report of a run that only connects.
    pub(crate) fn read(run: &Value) -> Result<Self> {
        let connections = number(run, "/connected")?;
        let grown =
            float(run, "/used/brokerResidentBytesAfter")? - float(run, "/used/brokerResidentBytesBefore")?;
        Ok(Self {
            connections,
            kibibytes_each: ratio(grown / 1024.0, as_f64(connections)),
            per_second: ratio(as_f64(connections), float(run, "/connectNanos")? / 1e9),
            broker_micros: ratio(float(run, "/used/brokerCpuNanos")? / 1e3, as_f64(connections)),
        })
    }
}

impl Spread {
    /// Of any order; `None` if there are no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), min, max })
    }
}

/// Zero where there is nothing to divide by.
pub(crate) fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// A whole number, with its thousands set off.
pub(crate) fn thousands(n: f64) -> String {
    let digits = format!("{:.0}", n.max(0.0));
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) const fn as_f64(n: u64) -> f64 {
    n as f64
}

fn number(run: &Value, pointer: &str) -> Result<u64> {
    run.pointer(pointer).and_then(Value::as_u64).with_context(|| format!("{pointer} in {run}"))
}

fn float(run: &Value, pointer: &str) -> Result<f64> {
    run.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("{pointer} in {run}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_middle_and_the_ends() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([3.0]), Some(Spread { median: 3.0, min: 3.0, max: 3.0 }));
        assert_eq!(Spread::of([5.0, 1.0, 4.0]), Some(Spread { median: 4.0, min: 1.0, max: 5.0 }));
        assert_eq!(Spread::of([5.0, 1.0, 4.0, 2.0]), Some(Spread { median: 3.0, min: 1.0, max: 5.0 }));
    }

    #[test]
    fn what_is_lost_or_was_not_sent_is_told_apart_and_the_rate_is_what_arrived() {
        let run = json!({
            "received": 3_000, "lost": 1_000, "notSent": 10, "measuredNanos": 2_000_000_000_u64,
            "used": { "brokerCpuNanos": 1_500_000_000, "loadCpuNanos": 1_000_000_000 },
            "latency": { "endToEnd": { "p50Nanos": 1_000_000, "p99Nanos": 2_500_000, "maxNanos": 9_000_000 } },
        });
        let sample = Sample::read(&run, 100).unwrap();
        assert_eq!((sample.per_second, sample.received, sample.lost), (1_500.0, 3_000, 1_000));
        assert_eq!((sample.broker_micros, sample.load_percent), (500.0, 50.0));
        assert_eq!(sample.latency, Latency { p50: 1.0, p99: 2.5, max: 9.0 });
        assert_eq!((sample.lost_percent(), sample.unsent_percent()), (25.0, 20.0));
        assert!(Sample::read(&json!({ "received": 1 }), 1).is_err());
    }

    #[test]
    fn nothing_received_is_no_division_by_zero() {
        let run = json!({
            "received": 0, "lost": 0, "notSent": 0, "measuredNanos": 0,
            "used": { "brokerCpuNanos": 10, "loadCpuNanos": 10 },
        });
        let sample = Sample::read(&run, 1).unwrap();
        assert_eq!((sample.per_second, sample.broker_micros, sample.lost_percent()), (0.0, 0.0, 0.0));
    }

    #[test]
    fn memory_is_shared_by_the_connections() {
        let run = json!({
            "connected": 1_000, "connectNanos": 500_000_000,
            "used": {
                "brokerCpuNanos": 50_000_000, "brokerResidentBytesBefore": 1 << 20,
                "brokerResidentBytesAfter": (1 << 20) + 1_024 * 4_000,
            },
        });
        let expected =
            IdleSample { connections: 1_000, kibibytes_each: 4.0, per_second: 2_000.0, broker_micros: 50.0 };
        assert_eq!(IdleSample::read(&run).unwrap(), expected);
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!([0.0, 999.4, 1_000.0, 1_234_567.0].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
