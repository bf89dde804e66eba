//! The results: kept, printed as they come, and written as Markdown.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Contestant;
use crate::compare::report::{load_average, machine};
use crate::compare::stats::{Spread, as_f64, ratio, thousands};

/// What one run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// As fast as can be, with so many publishes in flight of each publisher.
    Append { publishers: u32, window: u32 },
    /// All that is stored, to each reader.
    Replay { readers: u32 },
    /// So many messages a second, to each reader.
    Tail { readers: u32, rate: u32 },
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Messages confirmed, or delivered to all readers together.
    messages: u64,
    per_second: f64,
    /// Milliseconds to the confirmation of an append, else to the arrival: p50 and p99.
    latency: [f64; 2],
    /// Microseconds of the broker's processor time for each message.
    broker_micros: f64,
    /// Resident memory of the broker.
    resident: u64,
}

/// Everything that is known so far.
#[derive(Debug)]
pub(super) struct Results {
    markdown: PathBuf,
    command: String,
    machine: String,
    versions: Vec<String>,
    runs: Vec<(Load, Contestant, Sample)>,
    failures_of_weir: usize,
    notes: Vec<String>,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Append { publishers, window } => {
                write!(f, "{publishers} publishers, {window} in flight each")
            }
            Self::Replay { readers } => write!(f, "{readers} readers"),
            Self::Tail { readers, rate } => write!(f, "{readers} readers, {rate} msg/s"),
        }
    }
}

impl Sample {
    /// Reads the report of the load; `used` is the broker's processor time.
    pub(super) fn read(load: Load, report: &Value, used: Duration, resident: u64) -> Result<Self> {
        let (messages, nanos, kind) = match load {
            Load::Append { .. } => ("/confirmed", "/confirmedNanos", "confirm"),
            Load::Replay { .. } | Load::Tail { .. } => ("/received", "/measuredNanos", "arrival"),
        };
        let messages = number(report, messages)?;
        ensure!(messages > 0, "no message was confirmed or arrived");
        let latency = |part| Ok(as_f64(number(report, &format!("/latency/{kind}/{part}"))?) / 1e6);
        let latency: Result<Vec<f64>> = ["p50Nanos", "p99Nanos"].into_iter().map(latency).collect();
        Ok(Self {
            messages,
            per_second: ratio(as_f64(messages), as_f64(number(report, nanos)?) / 1e9),
            latency: latency?.try_into().ok().context("two")?,
            broker_micros: ratio(used.as_secs_f64() * 1e6, as_f64(messages)),
            resident,
        })
    }
}

impl Results {
    /// `markdown` is the file to write; what is there already is replaced.
    pub(super) fn create(markdown: &Path, command: &str) -> Result<Self> {
        let results = Self {
            markdown: markdown.to_owned(),
            command: command.to_owned(),
            machine: machine(),
            versions: Vec::new(),
            runs: Vec::new(),
            failures_of_weir: 0,
            notes: Vec::new(),
        };
        results.write()?;
        Ok(results)
    }

    pub(super) fn version(&mut self, contestant: Contestant, version: &str) {
        eprintln!("{contestant}: {version}");
        self.versions.push(version.to_owned());
    }

    /// What a reader must know besides the figures.
    pub(super) fn note(&mut self, note: String) -> Result<()> {
        eprintln!("{note}");
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
        self.write()
    }

    pub(super) fn add(&mut self, load: Load, contestant: Contestant, outcome: Result<Sample>) -> Result<()> {
        let sample = match outcome {
            Ok(sample) => sample,
            Err(error) => return self.failed(&format!("{load}, {contestant}"), contestant, &error),
        };
        eprintln!(
            "{load}, {contestant}: {} messages, {} msg/s, p50 {:.2} ms, p99 {:.2} ms, {:.2} us, {} MiB",
            sample.messages,
            thousands(sample.per_second),
            sample.latency[0],
            sample.latency[1],
            sample.broker_micros,
            sample.resident >> 20
        );
        self.runs.push((load, contestant, sample));
        self.write()
    }

    /// Something could not be measured, which costs nothing else.
    pub(super) fn failed(&mut self, what: &str, contestant: Contestant, error: &anyhow::Error) -> Result<()> {
        let error = format!("{error:#}");
        eprintln!("{what}: failed: {error}");
        self.failures_of_weir += usize::from(contestant == Contestant::Weir);
        // The first line says what; what a broker wrote is for the screen.
        let first = error.lines().next().unwrap_or_default();
        self.notes.push(format!("A run failed: {what}: {first}"));
        self.write()
    }

    /// An error if a run of Weir failed.
    pub(super) fn finish(mut self) -> Result<()> {
        let now = load_average();
        self.note(format!("Load average at the end: {now}."))?;
        let failed = self.failures_of_weir;
        ensure!(failed == 0, "{failed} runs of Weir failed; see {}", self.markdown.display());
        Ok(())
    }

    fn write(&self) -> Result<()> {
        let mut text = include_str!("intro.md").to_owned();
        let _ = writeln!(text, "\n## Figures\n\n`weir-compare-streams {}`\n", self.command);
        text.push_str(&self.machine);
        let _ = writeln!(text, "* {}", self.versions.join(", "));
        for note in &self.notes {
            let _ = writeln!(text, "* {note}");
        }
        for part in [self.appends(), self.replays(), self.tail()] {
            text.push_str(&part);
        }
        std::fs::write(&self.markdown, text).with_context(|| format!("write {}", self.markdown.display()))
    }

    fn columns(&self) -> Vec<Contestant> {
        Contestant::ALL.into_iter().filter(|&of| self.runs.iter().any(|run| run.1 == of)).collect()
    }

    /// Loads that were run, in the order of their first run.
    fn loads(&self, wanted: impl Fn(&Load) -> bool) -> Vec<Load> {
        let mut loads = Vec::new();
        for (load, _, _) in &self.runs {
            if wanted(load) && !loads.contains(load) {
                loads.push(*load);
            }
        }
        loads
    }

    fn spread(&self, load: Load, of: Contestant, value: fn(&Sample) -> f64) -> Option<Spread> {
        Spread::of(self.runs.iter().filter(|run| run.0 == load && run.1 == of).map(|run| value(&run.2)))
    }

    fn appends(&self) -> String {
        let title = "\n### Append\n\nMessages published and confirmed per second: the median, with the lowest and the highest \
                     run. The ratios are Weir's to each of the others.\n";
        let loads = self.loads(|load| matches!(load, Load::Append { .. }));
        self.rates(title, &loads)
    }

    fn replays(&self) -> String {
        let title = "\n### Replay\n\nMessages per second that all readers get together, from the beginning of what is stored: \
                     the median, with the lowest and the highest run. The ratios are Weir's to each of the others.\n";
        let loads = self.loads(|load| matches!(load, Load::Replay { .. }));
        self.rates(title, &loads)
    }

    fn rates(&self, title: &str, loads: &[Load]) -> String {
        if loads.is_empty() {
            return String::new();
        }
        let columns = self.columns();
        let mut text = title.to_owned();
        let _ = writeln!(
            text,
            "\n| load | {} | ratio | us/msg: {} | MiB |\n|---|{}---|---|---|",
            names(&columns),
            names(&columns).replace(" |", " /"),
            "---|".repeat(columns.len())
        );
        for &load in loads {
            let _ = write!(text, "| {load} |");
            for &of in &columns {
                let spread = self.spread(load, of, |sample| sample.per_second);
                let shown = spread.map_or("-".to_owned(), |spread| {
                    let [median, min, max] = [spread.median, spread.min, spread.max].map(thousands);
                    format!("{median} ({min} to {max})")
                });
                let _ = write!(text, " {shown} |");
            }
            let rate = |of| self.spread(load, of, |sample| sample.per_second).map(|spread| spread.median);
            let ours = rate(Contestant::Weir);
            let others = columns.iter().filter(|&&of| of != Contestant::Weir);
            let ratios = others.map(|&of| {
                ours.zip(rate(of)).map_or("-".to_owned(), |(ours, theirs)| format!("{:.2}", ours / theirs))
            });
            let ratios = ratios.collect::<Vec<_>>().join(" / ");
            let each = |value: fn(&Sample) -> f64, digits: usize| {
                let of = columns.iter().map(|&of| {
                    let spread = self.spread(load, of, value);
                    spread.map_or("-".to_owned(), |spread| format!("{:.digits$}", spread.median))
                });
                of.collect::<Vec<_>>().join(" / ")
            };
            let micros = each(|sample| sample.broker_micros, 2);
            let memory = each(|sample| as_f64(sample.resident >> 20), 0);
            let _ = writeln!(text, " {ratios} | {micros} | {memory} |");
        }
        text
    }

    fn tail(&self) -> String {
        let loads = self.loads(|load| matches!(load, Load::Tail { .. }));
        if loads.is_empty() {
            return String::new();
        }
        let columns = self.columns();
        let mut text = format!(
            "\n### Tail\n\nMilliseconds from the time a publish was due to its arrival at each of the readers, p50 / p99, median \
             of the runs.\n\n| load | {} |\n|---|{}\n",
            names(&columns),
            "---|".repeat(columns.len())
        );
        for load in loads {
            let _ = write!(text, "| {load} |");
            for &of in &columns {
                let middle =
                    |value: fn(&Sample) -> f64| self.spread(load, of, value).map(|spread| spread.median);
                let both = middle(|sample| sample.latency[0]).zip(middle(|sample| sample.latency[1]));
                let shown = both.map_or("-".to_owned(), |(p50, p99)| format!("{p50:.2} / {p99:.2}"));
                let _ = write!(text, " {shown} |");
            }
            text.push('\n');
        }
        text
    }
}

fn names(columns: &[Contestant]) -> String {
    columns.iter().map(Contestant::to_string).collect::<Vec<_>>().join(" | ")
}

fn number(report: &Value, pointer: &str) -> Result<u64> {
    report.pointer(pointer).and_then(Value::as_u64).with_context(|| format!("{pointer} in {report}"))
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use serde_json::json;

    use super::*;

    fn sample(load: Load, messages: u64) -> Result<Sample> {
        let latency = json!({ "p50Nanos": 1_000_000, "p99Nanos": 2_500_000, "maxNanos": 9 });
        let report = json!({
            "received": messages, "confirmed": messages, "measuredNanos": 1_000_000_000_u64,
            "confirmedNanos": 2_000_000_000_u64, "latency": { "confirm": latency, "arrival": latency },
        });
        Sample::read(load, &report, Duration::from_millis(10), 5 << 20)
    }

    #[test]
    fn a_failed_run_costs_nobody_elses_results() {
        let folder = tempfile::tempdir().unwrap();
        let markdown = folder.path().join("out.md");
        let mut results = Results::create(&markdown, "append").unwrap();
        let append = Load::Append { publishers: 16, window: 32 };
        let replay = Load::Replay { readers: 1 };
        let tail = Load::Tail { readers: 10, rate: 200 };
        let mut add = |load, of, outcome| results.add(load, of, outcome).unwrap();
        add(append, Contestant::Weir, sample(append, 30_000));
        add(append, Contestant::Weir, sample(append, 50_000));
        add(append, Contestant::Rabbitmq, sample(append, 10_000));
        add(append, Contestant::Nats, Err(anyhow!("it fell over\nwith many words")));
        add(replay, Contestant::Weir, sample(replay, 50_000));
        add(replay, Contestant::Nats, sample(replay, 25_000));
        add(tail, Contestant::Rabbitmq, sample(tail, 1));
        let text = std::fs::read_to_string(&markdown).unwrap();
        for row in [
            "* A run failed: 16 publishers, 32 in flight each, NATS JetStream: it fell over\n",
            "| 16 publishers, 32 in flight each | 20,000 (15,000 to 25,000) | 5,000 (5,000 to 5,000) | - | 4.00 / - | \
             0.27 / 1.00 / - | 5 / 5 / - |\n",
            "| 1 readers | 50,000 (50,000 to 50,000) | - | 25,000 (25,000 to 25,000) | - / 2.00 | 0.20 / - / 0.40 | \
             5 / - / 5 |\n",
            "| 10 readers, 200 msg/s | - | 1.00 / 2.50 | - |\n",
        ] {
            assert!(text.contains(row), "{row}{text}");
        }
        results.finish().unwrap();
    }

    #[test]
    fn a_failed_run_of_weir_fails_the_comparison() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = Results::create(&folder.path().join("out.md"), "").unwrap();
        let load = Load::Replay { readers: 1 };
        results.add(load, Contestant::Weir, sample(load, 0)).unwrap();
        assert!(results.finish().is_err());
    }
}
