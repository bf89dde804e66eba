//! The results: kept, printed as they come, and written as Markdown.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Contestant;
use crate::compare::report::{load_average, machine};
use crate::compare::stats::{Spread, as_f64, ratio, thousands};

/// A load, but for its rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) publishers: u32,
    /// Bytes of payload.
    pub(super) size: usize,
    /// Publishes in flight of each publisher.
    pub(super) window: u32,
}

/// How fast to publish.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// A closed loop.
    Max,
    /// An open loop: publishes per second, over all publishers.
    PerSecond(f64),
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Messages consumed and acknowledged, per second.
    per_second: f64,
    pub(super) received: u64,
    /// Messages that were confirmed and did not arrive.
    lost: u64,
    /// Milliseconds to the confirmation, and to the arrival: p50 and p99.
    confirm: [f64; 2],
    arrival: [f64; 2],
    /// Microseconds of the broker's processor time for each message.
    broker_micros: f64,
}

/// What a tracer saw.
#[derive(Clone, Debug)]
pub(super) struct Syncs {
    /// How often each call was made.
    pub(super) calls: Vec<(String, u64)>,
    pub(super) messages: u64,
}

/// A backlog was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fill {
    per_second: f64,
    /// Resident memory of the broker.
    before: u64,
    after: u64,
}

/// A backlog was worked off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    consumers: u64,
    pub(super) per_second: f64,
    fewest: u64,
    most: u64,
    /// Resident memory of the broker at its highest.
    peak: u64,
    lost: u64,
    again: u64,
}

/// A queue was filled, and worked off several times.
type Backlog = (Fill, Vec<Drain>);

/// Everything that is known so far.
#[derive(Debug)]
pub(super) struct Results {
    markdown: PathBuf,
    command: String,
    machine: String,
    versions: Vec<String>,
    runs: Vec<(Pace, Cell, Contestant, Result<Sample, String>)>,
    syncs: Vec<(Contestant, Result<Syncs, String>)>,
    backlogs: Vec<(u64, Result<Backlog, String>)>,
    topics: Vec<(u32, Result<f64, String>)>,
    notes: Vec<String>,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { publishers, size, window } = self;
        write!(f, "{publishers} publishers, {size} B, {window} in flight")
    }
}

impl Sample {
    /// Reads the report of the load; `used` is the broker's processor time.
    pub(super) fn read(report: &Value, used: Duration) -> Result<Self> {
        let received = number(report, "/received")?;
        let latency = |kind: &str| -> Result<[f64; 2]> {
            let of = |part| Ok(as_f64(number(report, &format!("/latency/{kind}/{part}"))?) / 1e6);
            [of("p50Nanos"), of("p99Nanos")]
                .into_iter()
                .collect::<Result<Vec<_>>>()?
                .try_into()
                .ok()
                .context("two")
        };
        Ok(Self {
            per_second: ratio(as_f64(received), as_f64(number(report, "/measuredNanos")?) / 1e9),
            received,
            lost: number(report, "/confirmed")?.saturating_sub(received),
            confirm: latency("confirm")?,
            arrival: latency("arrival")?,
            broker_micros: ratio(used.as_secs_f64() * 1e6, as_f64(received)),
        })
    }
}

impl Fill {
    /// Reads a run of `weir bench` that fills a queue.
    pub(super) fn read(run: &Value) -> Result<Self> {
        Ok(Self {
            per_second: ratio(
                as_f64(number(run, "/acknowledged")?),
                as_f64(number(run, "/measuredNanos")?) / 1e9,
            ),
            before: number(run, "/used/brokerResidentBytesBefore")?,
            after: number(run, "/used/brokerResidentBytesAfter")?,
        })
    }
}

impl Drain {
    /// Reads a run of `weir bench` that consumes.
    pub(super) fn read(run: &Value) -> Result<Self> {
        let received = as_f64(number(run, "/received")?);
        Ok(Self {
            consumers: number(run, "/subscribers")?,
            per_second: ratio(received, as_f64(number(run, "/measuredNanos")?) / 1e9),
            fewest: number(run, "/receivedByFewest")?,
            most: number(run, "/receivedByMost")?,
            peak: number(run, "/used/brokerResidentBytesPeak")?,
            lost: number(run, "/lost")?,
            again: number(run, "/receivedAgain")?,
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
            syncs: Vec::new(),
            backlogs: Vec::new(),
            topics: Vec::new(),
            notes: Vec::new(),
        };
        results.write()?;
        Ok(results)
    }

    pub(super) fn version(&mut self, contestant: Contestant, version: &str) {
        eprintln!("{contestant}: {version}");
        if !self.versions.iter().any(|known| known == version) {
            self.versions.push(version.to_owned());
        }
    }

    /// What a reader must know besides the figures.
    pub(super) fn note(&mut self, note: String) -> Result<()> {
        eprintln!("{note}");
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
        self.write()
    }

    pub(super) fn add(
        &mut self,
        pace: Pace,
        cell: Cell,
        contestant: Contestant,
        outcome: Result<Sample>,
    ) -> Result<()> {
        let outcome = outcome.map_err(|error| format!("{error:#}"));
        match &outcome {
            Ok(sample) => eprintln!(
                "{pace:?}, {cell}, {contestant}: {} msg/s, {} lost, confirm p99 {:.2} ms, arrival p99 {:.2} ms, {:.1} us",
                thousands(sample.per_second),
                sample.lost,
                sample.confirm[1],
                sample.arrival[1],
                sample.broker_micros
            ),
            Err(error) => self.failed(&format!("{cell}, {contestant}"), error),
        }
        self.runs.push((pace, cell, contestant, outcome));
        self.write()
    }

    pub(super) fn add_syncs(&mut self, contestant: Contestant, outcome: Result<Syncs>) -> Result<()> {
        let outcome = outcome.map_err(|error| format!("{error:#}"));
        match &outcome {
            Ok(syncs) => eprintln!("syncs, {contestant}: {syncs:?}"),
            Err(error) => self.failed(&format!("syncs, {contestant}"), error),
        }
        self.syncs.push((contestant, outcome));
        self.write()
    }

    pub(super) fn add_backlog(&mut self, messages: u64, outcome: Result<Backlog>) -> Result<()> {
        let outcome = outcome.map_err(|error| format!("{error:#}"));
        match &outcome {
            Ok(backlog) => eprintln!("backlog of {messages}: {backlog:?}"),
            Err(error) => self.failed(&format!("a backlog of {messages}"), error),
        }
        self.backlogs.push((messages, outcome));
        self.write()
    }

    pub(super) fn add_topics(&mut self, topics: u32, outcome: Result<f64>) -> Result<()> {
        let outcome = outcome.map_err(|error| format!("{error:#}"));
        match &outcome {
            Ok(rate) => eprintln!("{topics} topics: {} msg/s", thousands(*rate)),
            Err(error) => self.failed(&format!("{topics} topics"), error),
        }
        self.topics.push((topics, outcome));
        self.write()
    }

    fn failed(&mut self, what: &str, error: &str) {
        eprintln!("{what}: failed: {error}");
        // The first line says what; what a broker wrote is for the screen.
        let first = error.lines().next().unwrap_or_default();
        self.notes.push(format!("A run failed: {what}: {first}"));
    }

    /// The middle of all runs of a closed loop that went well, in messages per second.
    pub(super) fn median(&self, pace: Pace, cell: Cell, contestant: Contestant) -> Option<f64> {
        let of = self.samples(pace == Pace::Max, cell, contestant);
        Some(Spread::of(of.map(|sample| sample.per_second))?.median)
    }

    fn samples(&self, closed: bool, cell: Cell, of: Contestant) -> impl Iterator<Item = &Sample> {
        let wanted = move |run: &&(Pace, Cell, Contestant, Result<Sample, String>)| {
            (run.0 == Pace::Max) == closed && run.1 == cell && run.2 == of
        };
        self.runs.iter().filter(wanted).filter_map(|run| run.3.as_ref().ok())
    }

    /// An error if a run of Weir failed.
    pub(super) fn finish(mut self) -> Result<()> {
        let now = load_average();
        self.note(format!("Load average at the end: {now}."))?;
        let failed = self.runs.iter().filter(|run| run.2 == Contestant::Weir && run.3.is_err()).count()
            + self.backlogs.iter().filter(|(_, outcome)| outcome.is_err()).count()
            + self.topics.iter().filter(|(_, outcome)| outcome.is_err()).count();
        ensure!(failed == 0, "{failed} runs of Weir failed; see {}", self.markdown.display());
        Ok(())
    }

    fn write(&self) -> Result<()> {
        let mut text = include_str!("intro.md").to_owned();
        let _ = writeln!(text, "\n## Figures\n\n`weir-compare-queues {}`\n", self.command);
        text.push_str(&self.machine);
        let _ = writeln!(text, "* {}", self.versions.join(", "));
        for note in &self.notes {
            let _ = writeln!(text, "* {note}");
        }
        for part in [self.closed(), self.open(), self.sync_table(), self.backlog_table(), self.topics_table()]
        {
            text.push_str(&part);
        }
        std::fs::write(&self.markdown, text).with_context(|| format!("write {}", self.markdown.display()))
    }

    fn columns(&self) -> Vec<Contestant> {
        Contestant::ALL.into_iter().filter(|&of| self.runs.iter().any(|run| run.2 == of)).collect()
    }

    /// The cells of the closed or the open runs, in the order of their first run.
    fn cells(&self, closed: bool) -> Vec<(Pace, Cell)> {
        let mut cells: Vec<(Pace, Cell)> = Vec::new();
        for (pace, cell, _, _) in self.runs.iter().filter(|run| (run.0 == Pace::Max) == closed) {
            if !cells.iter().any(|(_, known)| known == cell) {
                cells.push((*pace, *cell));
            }
        }
        cells
    }

    fn closed(&self) -> String {
        let cells = self.cells(true);
        if cells.is_empty() {
            return String::new();
        }
        let columns = self.columns();
        let mut text = format!(
            "\n### As fast as can be\n\nMessages published, confirmed, consumed and acknowledged per second: the median, with the \
             lowest and the highest run. The ratio is Weir's to the better of the others.\n\n| publishers | payload B | in flight each | {} | \
             ratio | us/msg: {} |\n|---|---|---|{}---|---|\n",
            names(&columns),
            names(&columns).replace(" |", " /"),
            "---|".repeat(columns.len())
        );
        for (_, cell) in cells {
            let _ = write!(text, "| {} | {} | {} |", cell.publishers, cell.size, cell.window);
            for &of in &columns {
                let spread = Spread::of(self.samples(true, cell, of).map(|sample| sample.per_second));
                let shown = spread.map_or("-".to_owned(), |spread| {
                    let [median, min, max] = [spread.median, spread.min, spread.max].map(thousands);
                    format!("{median} ({min} to {max})")
                });
                let _ = write!(text, " {shown} |");
            }
            let others = columns.iter().filter(|&&of| of != Contestant::Weir);
            let best = others.filter_map(|&of| self.median(Pace::Max, cell, of)).max_by(f64::total_cmp);
            let ours = self.median(Pace::Max, cell, Contestant::Weir);
            let ratio = ours.zip(best).map_or("-".to_owned(), |(ours, best)| format!("{:.2}", ours / best));
            let micros = columns.iter().map(|&of| {
                let spread = Spread::of(self.samples(true, cell, of).map(|sample| sample.broker_micros));
                spread.map_or("-".to_owned(), |spread| format!("{:.1}", spread.median))
            });
            let _ = writeln!(text, " {ratio} | {} |", micros.collect::<Vec<_>>().join(" / "));
        }
        text
    }

    fn open(&self) -> String {
        let cells = self.cells(false);
        if cells.is_empty() {
            return String::new();
        }
        let columns = self.columns();
        let mut text = format!(
            "\n### At an equal rate\n\nHalf of what the better of the others took with 32 in flight. Milliseconds from the time a \
             publish was due, p50 / p99: to its confirmation, and to the arrival at a consumer.\n\n| publishers | payload B | \
             msg/s | {} |\n|---|---|---|{}\n",
            names(&columns),
            "---|".repeat(columns.len())
        );
        for (pace, cell) in cells {
            let rate = if let Pace::PerSecond(rate) = pace { rate } else { 0.0 };
            let _ = write!(text, "| {} | {} | {} |", cell.publishers, cell.size, thousands(rate));
            for &of in &columns {
                let middle = |value: fn(&Sample) -> f64| {
                    Spread::of(self.samples(false, cell, of).map(value)).map(|spread| spread.median)
                };
                let values = [
                    middle(|sample| sample.confirm[0]),
                    middle(|sample| sample.confirm[1]),
                    middle(|sample| sample.arrival[0]),
                    middle(|sample| sample.arrival[1]),
                ];
                let shown = match values {
                    [Some(a), Some(b), Some(c), Some(d)] => format!("{a:.2} / {b:.2}, {c:.2} / {d:.2}"),
                    _ => "-".to_owned(),
                };
                let _ = write!(text, " {shown} |");
            }
            text.push('\n');
        }
        text
    }

    fn sync_table(&self) -> String {
        if self.syncs.is_empty() {
            return String::new();
        }
        let mut text = "\n### Syncs\n\nWhat `strace` counted with one publisher and one publish in flight.\n\n| broker | messages | \
                        calls | calls a message |\n|---|---|---|---|\n"
            .to_owned();
        for (contestant, outcome) in &self.syncs {
            let Ok(syncs) = outcome else { continue };
            let all: u64 = syncs.calls.iter().map(|(_, calls)| calls).sum();
            let calls: Vec<String> = syncs
                .calls
                .iter()
                .map(|(name, calls)| format!("{name} {}", thousands(as_f64(*calls))))
                .collect();
            let each = ratio(as_f64(all), as_f64(syncs.messages));
            let messages = thousands(as_f64(syncs.messages));
            let _ = writeln!(text, "| {contestant} | {messages} | {} | {each:.2} |", calls.join(", "));
        }
        text
    }

    fn backlog_table(&self) -> String {
        let mut text = String::new();
        for (messages, outcome) in &self.backlogs {
            let Ok((fill, drains)) = outcome else { continue };
            let mebibytes = |bytes: u64| bytes >> 20;
            let _ = writeln!(
                text,
                "\n### A backlog of {} messages\n\nFilled at {} msg/s by 16 publishers; resident memory of the broker {} MiB before and {} MiB \
                 after.\n\n| consumers | msg/s | most and fewest messages of a consumer | ratio | lost | again | memory MiB, highest |\n\
                 |---|---|---|---|---|---|---|",
                thousands(as_f64(*messages)),
                thousands(fill.per_second),
                mebibytes(fill.before),
                mebibytes(fill.after)
            );
            for drain in drains {
                let [rate, most, fewest] =
                    [drain.per_second, as_f64(drain.most), as_f64(drain.fewest)].map(thousands);
                let _ = writeln!(
                    text,
                    "| {} | {rate} | {most}, {fewest} | {:.3} | {} | {} | {} |",
                    drain.consumers,
                    ratio(as_f64(drain.most), as_f64(drain.fewest)),
                    drain.lost,
                    drain.again,
                    mebibytes(drain.peak)
                );
            }
        }
        text
    }

    fn topics_table(&self) -> String {
        let mut text = String::new();
        for (topics, _) in self.topics.iter().take(2) {
            let runs = self.topics.iter().filter(|(of, _)| of == topics);
            let Some(spread) = Spread::of(runs.filter_map(|(_, rate)| rate.as_ref().ok().copied())) else {
                continue;
            };
            if text.is_empty() {
                text.push_str("\n### One queue over many topics\n\n| topics | msg/s |\n|---|---|\n");
            }
            let [median, min, max] = [spread.median, spread.min, spread.max].map(thousands);
            let _ = writeln!(text, "| {} | {median} ({min} to {max}) |", thousands(f64::from(*topics)));
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

    fn sample(received: u64) -> Result<Sample> {
        let latency = json!({ "p50Nanos": 1_000_000, "p99Nanos": 2_500_000, "maxNanos": 9 });
        let report = json!({
            "received": received, "confirmed": received, "measuredNanos": 1_000_000_000_u64,
            "latency": { "confirm": latency, "arrival": latency },
        });
        Sample::read(&report, Duration::from_millis(10))
    }

    #[test]
    fn a_failed_run_costs_nobody_elses_results() {
        let folder = tempfile::tempdir().unwrap();
        let markdown = folder.path().join("out.md");
        let mut results = Results::create(&markdown, "closed").unwrap();
        let cell = Cell { publishers: 128, size: 100, window: 32 };
        let mut add = |of, outcome| results.add(Pace::Max, cell, of, outcome).unwrap();
        add(Contestant::Weir, sample(30_000));
        add(Contestant::RabbitmqAmqp, sample(10_000));
        add(Contestant::Nats, Err(anyhow!("it fell over\nwith many words")));
        add(Contestant::Weir, sample(50_000));
        let open = Pace::PerSecond(5_000.0);
        results.add(open, Cell { window: 500, ..cell }, Contestant::Weir, sample(5_000)).unwrap();
        results
            .add_syncs(Contestant::Weir, Ok(Syncs { calls: vec![("fdatasync".into(), 8)], messages: 4 }))
            .unwrap();
        let text = std::fs::read_to_string(&markdown).unwrap();
        for row in [
            "* A run failed: 128 publishers, 100 B, 32 in flight, NATS JetStream: it fell over\n",
            "| 128 | 100 | 32 | 40,000 (30,000 to 50,000) | 10,000 (10,000 to 10,000) | - | 4.00 | 0.3 / 1.0 / - |\n",
            "| 128 | 100 | 5,000 | 1.00 / 2.50, 1.00 / 2.50 | - | - |\n",
            "| Weir | 4 | fdatasync 8 | 2.00 |\n",
        ] {
            assert!(text.contains(row), "{row}{text}");
        }
        results.finish().unwrap();
    }

    #[test]
    fn the_runs_of_a_backlog_are_read() {
        let drain = json!({
            "received": 10, "measuredNanos": 2_000_000_000_u64, "subscribers": 2, "receivedByFewest": 4, "receivedByMost": 6,
            "lost": 0, "receivedAgain": 0, "used": { "brokerResidentBytesPeak": 5 << 20 },
        });
        let fill = json!({
            "acknowledged": 10, "measuredNanos": 1_000_000_000_u64,
            "used": { "brokerResidentBytesBefore": 1 << 20, "brokerResidentBytesAfter": 3 << 20 },
        });
        let folder = tempfile::tempdir().unwrap();
        let markdown = folder.path().join("out.md");
        let mut results = Results::create(&markdown, "backlog").unwrap();
        let read = (Fill::read(&fill).unwrap(), vec![Drain::read(&drain).unwrap()]);
        results.add_backlog(1_000, Ok(read)).unwrap();
        let text = std::fs::read_to_string(&markdown).unwrap();
        assert!(text.contains("1 MiB before and 3 MiB after"), "{text}");
        assert!(text.contains("| 2 | 5 | 6, 4 | 1.500 | 0 | 0 | 5 |\n"), "{text}");
        results.add_backlog(1_000, Err(anyhow!("no"))).unwrap();
        assert!(results.finish().is_err());
    }
}
