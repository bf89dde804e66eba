//! The results: kept, printed as they come, and written as Markdown and as JSON lines.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::load::{Cell, Pace, Shape};
use super::stats::{IdleSample, Sample, Spread, ratio, thousands};
use super::{Peer, Section};
use crate::crowd::{self, Crowd};

/// Losses below this part, in percent, do not mark a figure.
const LOST_SHOWN: f64 = 0.005;
/// The same for what was not sent in time: the last few of an open loop are left over when its time is up.
const UNSENT_SHOWN: f64 = 0.5;

/// One run of a load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Run {
    pub(crate) section: Section,
    pub(crate) cell: Cell,
    pub(crate) pace: Pace,
    pub(crate) peer: Peer,
}

/// Everything that is known so far.
#[derive(Debug)]
pub(crate) struct Results {
    markdown: PathBuf,
    raw: File,
    machine: String,
    versions: Vec<(Peer, String)>,
    runs: Vec<(Run, Result<Sample, String>)>,
    idle: Vec<(Peer, Result<IdleSample, String>)>,
    crowds: Vec<(Peer, Crowd, Result<crowd::Report, String>)>,
    notes: Vec<String>,
}

impl Results {
    /// `markdown` is the file to write; what is there already is replaced.
    pub(crate) fn create(markdown: &Path) -> Result<Self> {
        let raw = markdown.with_extension("jsonl");
        let raw = File::create(&raw).with_context(|| format!("write {}", raw.display()))?;
        Ok(Self {
            markdown: markdown.to_owned(),
            raw,
            machine: machine(),
            versions: Vec::new(),
            runs: Vec::new(),
            idle: Vec::new(),
            crowds: Vec::new(),
            notes: Vec::new(),
        })
    }

    pub(crate) fn version(&mut self, peer: Peer, version: String) {
        eprintln!("{peer}: {version}");
        self.versions.push((peer, version));
    }

    /// What a reader must know besides the figures.
    pub(crate) fn note(&mut self, note: String) -> Result<()> {
        eprintln!("{note}");
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
        self.write()
    }

    pub(crate) fn add(&mut self, run: Run, outcome: Result<(Sample, Value)>) -> Result<()> {
        let Run { section, cell, pace, peer } = run;
        let rate = match pace {
            Pace::Max => None,
            Pace::PerSecond(rate) => Some(rate),
        };
        let what = json!({
            "section": format!("{section:?}"), "load": cell.to_string(), "publishesPerSecond": rate,
            "broker": peer.to_string(), "loadAverage": load_average(),
        });
        let outcome = self.keep(what, outcome)?;
        match &outcome {
            Ok(sample) => eprintln!(
                "{section:?}, {cell}, {peer}: {} msg/s, {} lost, p99 {:.2} ms, broker {:.2} us a message, load {:.0} %",
                thousands(sample.per_second),
                sample.lost,
                sample.latency.p99,
                sample.broker_micros,
                sample.load_percent
            ),
            Err(error) => eprintln!("{section:?}, {cell}, {peer}: failed: {error}"),
        }
        self.runs.push((run, outcome));
        self.write()
    }

    pub(crate) fn add_idle(&mut self, peer: Peer, outcome: Result<(IdleSample, Value)>) -> Result<()> {
        let what = json!({ "section": "Idle", "broker": peer.to_string(), "loadAverage": load_average() });
        let outcome = self.keep(what, outcome)?;
        eprintln!("idle, {peer}: {outcome:?}");
        self.idle.push((peer, outcome));
        self.write()
    }

    pub(crate) fn add_crowd(
        &mut self,
        peer: Peer,
        crowd: Crowd,
        outcome: Result<crowd::Report>,
    ) -> Result<()> {
        let what = json!({ "section": "Crowd", "broker": peer.to_string(), "loadAverage": load_average() });
        let outcome = self.keep(what, outcome.map(|report| (report.clone(), report.raw)))?;
        let seen = outcome.as_ref().map(|report| (report.alone, report.crowded, report.odd));
        eprintln!("crowd, {peer}: {seen:?}");
        self.crowds.push((peer, crowd, outcome));
        self.write()
    }

    /// Messages per second of all runs of a load that went well.
    pub(crate) fn per_second(&self, section: Section, cell: Cell, peer: Peer) -> Option<Spread> {
        Spread::of(self.samples(section, cell, peer).map(|sample| sample.per_second))
    }

    /// An error if a run of Weir failed.
    pub(crate) fn finish(mut self) -> Result<()> {
        let now = load_average();
        self.note(format!("load average at the end: {now}"))?;
        let failed = self
            .runs
            .iter()
            .filter(|(run, outcome)| run.peer == Peer::Weir && outcome.is_err())
            .count()
            + self.idle.iter().filter(|(peer, outcome)| *peer == Peer::Weir && outcome.is_err()).count()
            + self.crowds.iter().filter(|(peer, _, outcome)| *peer == Peer::Weir && outcome.is_err()).count();
        ensure!(failed == 0, "{failed} runs of Weir failed; see {}", self.markdown.display());
        Ok(())
    }

    /// Writes the raw report; errors become text, which is how they are shown.
    fn keep<T>(&mut self, mut what: Value, outcome: Result<(T, Value)>) -> Result<Result<T, String>> {
        let outcome = match outcome {
            Ok((outcome, raw)) => {
                what["report"] = raw;
                Ok(outcome)
            }
            Err(error) => {
                let error = format!("{error:#}");
                what["error"] = error.clone().into();
                Err(error)
            }
        };
        writeln!(self.raw, "{what}").context("write the raw reports")?;
        Ok(outcome)
    }

    fn samples(&self, section: Section, cell: Cell, peer: Peer) -> impl Iterator<Item = &Sample> {
        let wanted = move |run: &Run| (run.section, run.cell, run.peer) == (section, cell, peer);
        self.runs.iter().filter(move |(run, _)| wanted(run)).filter_map(|(_, outcome)| outcome.as_ref().ok())
    }

    fn write(&self) -> Result<()> {
        let half = self.markdown.with_extension("part");
        std::fs::write(&half, self.text()).with_context(|| format!("write {}", half.display()))?;
        std::fs::rename(&half, &self.markdown).with_context(|| format!("write {}", self.markdown.display()))
    }

    fn text(&self) -> String {
        let mut text = self.machine.clone();
        for (peer, version) in &self.versions {
            let _ = writeln!(text, "* {peer}: {version}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "* {note}");
        }
        let failures = self.failures();
        for (n, failure) in failures.iter().take(20).enumerate() {
            let _ = writeln!(text, "{}* failed: {failure}", if n == 0 { "\n" } else { "" });
        }
        for section in [Section::Pinned, Section::Unpinned, Section::Latency] {
            for shape in Shape::ALL {
                text.push_str(&self.table(section, shape));
            }
        }
        text.push_str(&self.idle_table());
        text.push_str(&self.crowd_table());
        text
    }

    fn failures(&self) -> Vec<String> {
        let runs = self.runs.iter().filter_map(|(run, outcome)| {
            let error = outcome.as_ref().err()?;
            Some(format!("{:?}, {}, {}: {error}", run.section, run.cell, run.peer))
        });
        let idle = self.idle.iter().filter_map(|(peer, outcome)| {
            Some(format!("idle connections, {peer}: {}", outcome.as_ref().err()?))
        });
        let crowds = self
            .crowds
            .iter()
            .filter_map(|(peer, _, outcome)| Some(format!("crowd, {peer}: {}", outcome.as_ref().err()?)));
        runs.chain(idle).chain(crowds).collect()
    }

    /// One shape of a section; empty if nothing is known of it.
    fn table(&self, section: Section, shape: Shape) -> String {
        let mut cells: Vec<(Cell, Pace)> = Vec::new();
        for (run, _) in &self.runs {
            if run.section == section
                && run.cell.shape == shape
                && !cells.iter().any(|(cell, _)| *cell == run.cell)
            {
                cells.push((run.cell, run.pace));
            }
        }
        if cells.is_empty() {
            return String::new();
        }
        let peers: Vec<Peer> = self.versions.iter().map(|(peer, _)| *peer).collect();
        let mut text = format!("\n### {}: {shape}\n\n| QoS | payload B |", title(section));
        let names: Vec<String> = peers.iter().map(Peer::to_string).collect();
        let (columns, all) = (|what: &str| names.join(&format!(" {what} | ")), names.join(" / "));
        let _ = if section == Section::Latency {
            write!(text, " publishes/s | {} p50 / p99 ms | load core %: {all} |", columns("p50 / p99 ms"))
        } else {
            let rates = columns("msg/s");
            write!(text, " {rates} msg/s | Weir : mosquitto | us/msg: {all} | load core %: {all} |")
        };
        let width = text.lines().last().map_or(0, |line| line.matches('|').count() - 1);
        let _ = writeln!(text, "\n{}|", "|---".repeat(width));
        for (cell, pace) in cells {
            let _ = write!(text, "| {} | {} |", cell.qos, cell.size);
            self.row(&mut text, section, cell, pace, &peers);
            text.push('\n');
        }
        text
    }

    fn row(&self, text: &mut String, section: Section, cell: Cell, pace: Pace, peers: &[Peer]) {
        let spread =
            |peer, value: fn(&Sample) -> f64| Spread::of(self.samples(section, cell, peer).map(value));
        let median = |peer, value, digits: usize| {
            spread(peer, value).map_or_else(|| "-".to_owned(), |spread| format!("{:.digits$}", spread.median))
        };
        let lost = |peer| spread(peer, Sample::lost_percent);
        let unsent = |peer| spread(peer, Sample::unsent_percent);
        if let Pace::PerSecond(rate) = pace {
            let _ = write!(text, " {} |", thousands(rate));
            for &peer in peers {
                let cell = match (spread(peer, |s| s.latency.p50), spread(peer, |s| s.latency.p99)) {
                    (Some(p50), Some(p99)) => {
                        format!("{:.2} / {:.2} ({:.2} to {:.2})", p50.median, p99.median, p99.min, p99.max)
                    }
                    _ => "-".to_owned(),
                };
                let _ = write!(text, " {cell}{} |", missing(lost(peer), unsent(peer)));
            }
        } else {
            for &peer in peers {
                let rate = spread(peer, |sample| sample.per_second);
                let rate = rate.map_or_else(
                    || "-".to_owned(),
                    |rate| {
                        format!(
                            "{} ({} to {})",
                            thousands(rate.median),
                            thousands(rate.min),
                            thousands(rate.max)
                        )
                    },
                );
                let _ = write!(text, " {rate}{} |", missing(lost(peer), unsent(peer)));
            }
            let rate = |peer| spread(peer, |sample| sample.per_second).map_or(0.0, |rate| rate.median);
            let _ = write!(text, " {:.2} |", ratio(rate(Peer::Weir), rate(Peer::Mosquitto)));
            let each: Vec<_> = peers.iter().map(|&peer| median(peer, |s| s.broker_micros, 2)).collect();
            let _ = write!(text, " {} |", each.join(" / "));
        }
        let load: Vec<_> = peers.iter().map(|&peer| median(peer, |s| s.load_percent, 0)).collect();
        let _ = write!(text, " {} |", load.join(" / "));
    }

    fn idle_table(&self) -> String {
        if self.idle.is_empty() {
            return String::new();
        }
        let mut text =
            "\n### Idle connections\n\n| broker | connections | KiB each | connects/s | us of the broker \
                        each |\n|---|---|---|---|---|\n"
                .to_owned();
        for (peer, _) in &self.versions {
            let samples: Vec<&IdleSample> = self
                .idle
                .iter()
                .filter(|(of, _)| of == peer)
                .filter_map(|(_, sample)| sample.as_ref().ok())
                .collect();
            let spread =
                |value: fn(&IdleSample) -> f64| Spread::of(samples.iter().map(|sample| value(sample)));
            let (Some(first), Some(memory), Some(rate), Some(cpu)) = (
                samples.first(),
                spread(|sample| sample.kibibytes_each),
                spread(|sample| sample.per_second),
                spread(|sample| sample.broker_micros),
            ) else {
                continue;
            };
            let _ = writeln!(
                text,
                "| {peer} | {} | {:.2} ({:.2} to {:.2}) | {} ({} to {}) | {:.0} |",
                first.connections,
                memory.median,
                memory.min,
                memory.max,
                thousands(rate.median),
                thousands(rate.min),
                thousands(rate.max),
                cpu.median
            );
        }
        text
    }

    fn crowd_table(&self) -> String {
        let Some((_, crowd, _)) = self.crowds.first() else { return String::new() };
        let mut text = format!(
            "\n### Crowd\n\n{crowd}\n\n| broker | alone p50 / p99 / max ms | in the crowd p50 / p99 / max ms | lost | \
             wills seen | malformed closed | memory MiB before, peak, after |\n|---|---|---|---|---|---|---|\n"
        );
        for (peer, crowd, outcome) in &self.crowds {
            let Ok(report) = outcome else { continue };
            let latency = |live: &crowd::Live| {
                format!("{:.2} / {:.2} / {:.2}", live.p50_millis, live.p99_millis, live.max_millis)
            };
            let mebibytes = report.resident_bytes.map(|bytes| format!("{}", bytes >> 20));
            let _ = writeln!(
                text,
                "| {peer} | {} | {} | {} of {} | {} of {} | {} of {} | {} |",
                latency(&report.alone),
                latency(&report.crowded),
                report.crowded.lost,
                report.crowded.sent,
                report.odd.wills_seen,
                crowd.wills,
                report.odd.malformed_closed,
                crowd.malformed,
                mebibytes.join(", ")
            );
        }
        text
    }
}

const fn title(section: Section) -> &'static str {
    match section {
        Section::Pinned => "Closed loop, broker on one core, load on the other",
        Section::Latency => {
            "Latency at half of mosquitto's saturation, broker on one core, load on the other"
        }
        Section::Unpinned => "Closed loop, both cores for both",
        Section::Idle => "Idle connections",
        Section::Crowd => "Crowd",
    }
}

/// What to say of messages that did not arrive.
fn missing(lost: Option<Spread>, unsent: Option<Spread>) -> String {
    let mut text = String::new();
    for (part, shown, what) in [(lost, LOST_SHOWN, "lost"), (unsent, UNSENT_SHOWN, "not sent")] {
        if let Some(part) = part.filter(|part| part.max >= shown) {
            let _ = write!(text, ", up to {:.2} % {what}", part.max);
        }
    }
    text
}

pub(crate) fn machine() -> String {
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model =
        cpus.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(": ")?.1.to_owned()));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!(
        "* {}, {cores} cores of {}, Linux {}\n* load average at the start: {}\n",
        crate::now_rfc3339(),
        model.unwrap_or_else(|| "an unknown processor".to_owned()),
        read("/proc/sys/kernel/osrelease").split('.').take(2).collect::<Vec<_>>().join("."),
        load_average()
    )
}

pub(crate) fn load_average() -> String {
    let averages = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    averages.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::super::stats::Latency;
    use super::*;

    fn sample(per_second: f64, lost: u64) -> (Sample, Value) {
        let latency = Latency { p50: 0.5, p99: 1.5, max: 9.0 };
        let sample = Sample {
            per_second,
            received: 100,
            lost,
            unsent: 0,
            broker_micros: 2.0,
            load_percent: 90.0,
            latency,
        };
        (sample, json!({}))
    }

    #[test]
    fn a_failed_run_costs_nobody_elses_results() {
        let folder = tempfile::tempdir().unwrap();
        let markdown = folder.path().join("out.md");
        let mut results = Results::create(&markdown).unwrap();
        for peer in [Peer::Weir, Peer::Mosquitto] {
            results.version(peer, format!("{peer} 1"));
        }
        let cell = Cell { shape: Shape::OneToHundred, qos: 1, size: 64 };
        let run = |peer| Run { section: Section::Pinned, cell, pace: Pace::Max, peer };
        results.add(run(Peer::Weir), Ok(sample(3_000.0, 0))).unwrap();
        results.add(run(Peer::Mosquitto), Err(anyhow!("it fell over"))).unwrap();
        results.add(run(Peer::Weir), Ok(sample(1_000.0, 0))).unwrap();
        results.add(run(Peer::Mosquitto), Ok(sample(1_000.0, 100))).unwrap();
        let text = std::fs::read_to_string(&markdown).unwrap();
        assert!(text.contains("failed: Pinned, 1 to 100, QoS 1, 64 B, mosquitto: it fell over"), "{text}");
        let row = "| 1 | 64 | 2,000 (1,000 to 3,000) | 1,000 (1,000 to 1,000), up to 50.00 % lost | 2.00 | 2.00 / 2.00 | 90 / 90 |";
        assert!(text.contains(row), "{text}");
        let raw = std::fs::read_to_string(markdown.with_extension("jsonl")).unwrap();
        assert_eq!(raw.lines().count(), 4);
        results.finish().unwrap();
    }

    #[test]
    fn a_failure_of_weir_is_one_of_the_comparison() {
        let folder = tempfile::tempdir().unwrap();
        let mut results = Results::create(&folder.path().join("out.md")).unwrap();
        results.add_idle(Peer::Weir, Err(anyhow!("no"))).unwrap();
        assert!(results.finish().is_err());
    }
}
