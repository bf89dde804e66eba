//! Streams beside those of other brokers, on one machine in one run: appends confirmed by the broker, replays of what is
//! stored, and how soon readers have what is published.
//!
//! [`run`] works through the sections and writes after every step what is known, so that a broker that fails costs
//! nobody else's results. The load is a process of its own ([`crate::load`]), the same for all. Nothing here knows how
//! any of the brokers works inside.

mod peers;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::Instant;
use weir_env::clock::Clock;

use crate::load::LoadArgs;
use crate::process::{processor_time, resident_bytes};
use crate::weir::release_binary;
pub use peers::Contestant;
use peers::Running;
use report::{Load, Results, Sample};

/// The processor of the broker; the load has another.
const BROKER_CPU: &str = "0";
/// What a run may take beyond its load.
const SLACK: Duration = Duration::from_secs(40);
/// Bytes of payload.
const SIZE: usize = 100;
/// Publishers and publishes in flight of each, where appends are measured.
const APPENDS: [(u32, u32); 4] = [(1, 1), (16, 1), (16, 32), (128, 32)];
/// Readers of a replay and at the tail.
const READERS: [u32; 2] = [1, 10];
/// Publishers that fill a stream or publish to readers at its tail, and their windows.
const PUBLISHERS: u32 = 16;
const FILL_WINDOW: u32 = 1_000;
const OPEN_WINDOW: u32 = 500;
/// Messages per second at the tail.
const TAIL_RATES: [u32; 2] = [200, 2_000];
/// Longest fill and replay.
const STORED_MAX: Duration = Duration::from_secs(120);

/// A part of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Publish, confirmed, as fast as can be.
    Append,
    /// Read what is stored from its beginning.
    Replay,
    /// Publish at a rate to readers at the end.
    Tail,
}

impl Section {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Append, Self::Replay, Self::Tail];
}

/// What to compare, and how long to take.
#[derive(Clone, Debug)]
pub struct Options {
    /// The parts to run.
    pub sections: Vec<Section>,
    /// The brokers.
    pub contestants: Vec<Contestant>,
    /// Runs of each load on each broker.
    pub repeats: u32,
    /// Length of a run.
    pub duration: Duration,
    /// Messages to replay.
    pub messages: u64,
    /// After which no run is started.
    pub time_limit: Duration,
    /// The Markdown file.
    pub out: PathBuf,
    /// The command, for the reader.
    pub command: String,
    /// Weir's binary; built if there is none.
    pub weir: Option<PathBuf>,
}

/// Makes the comparison; an error if Weir failed in any run.
pub async fn run(options: Options) -> Result<()> {
    let weir = match &options.weir {
        Some(binary) => std::path::absolute(binary)?,
        None => release_binary().await?,
    };
    let mut results = Results::create(&options.out, &options.command)?;
    let mut contestants = Vec::new();
    for &contestant in &options.contestants {
        match contestant.version(&weir).await {
            Ok(version) => {
                results.version(contestant, &version);
                contestants.push(contestant);
            }
            Err(error) => results.note(format!("{contestant} takes no part: {error:#}"))?,
        }
    }
    let ends = Clock::system().now() + options.time_limit;
    let mut comparison = Comparison { options, weir, ends, results };
    for section in comparison.options.sections.clone() {
        for repeat in 0..comparison.options.repeats as usize {
            for turn in 0..contestants.len() {
                if comparison.is_over()? {
                    return comparison.results.finish();
                }
                // Who goes first changes from round to round.
                let contestant = contestants[(turn + repeat) % contestants.len()];
                comparison.section(section, contestant).await?;
            }
        }
    }
    comparison.results.finish()
}

struct Comparison {
    options: Options,
    /// Weir's binary.
    weir: PathBuf,
    ends: Instant,
    results: Results,
}

impl Comparison {
    fn is_over(&mut self) -> Result<bool> {
        let over = Clock::system().now() >= self.ends;
        if over {
            let minutes = self.options.time_limit.as_secs() / 60;
            self.results
                .note(format!("Ended after {minutes} minutes, before every load had all its runs."))?;
        }
        Ok(over)
    }

    /// All loads of a section on one broker, which is started for them and alone on the machine.
    async fn section(&mut self, section: Section, contestant: Contestant) -> Result<()> {
        // How messages came into the files makes no difference to those who read them.
        let synced = section != Section::Replay;
        let prepared = async {
            let broker = contestant.start(&self.weir, Some(BROKER_CPU), synced).await?;
            let mut fill = self.load(&broker, PUBLISHERS, FILL_WINDOW, 0);
            fill.duration = 1_000;
            if section == Section::Replay {
                (fill.count, fill.duration) = (Some(self.options.messages), millis(STORED_MAX)?);
            }
            // No measurement is to find it cold.
            let report = fill.apart(STORED_MAX + SLACK).await?;
            let stored = report["confirmed"].as_u64().unwrap_or_default();
            ensure!(stored > 0, "nothing was confirmed");
            Ok((broker, stored))
        };
        let (broker, stored) = match prepared.await {
            Ok(prepared) => prepared,
            Err(error) => {
                return self.results.failed(&format!("{section:?}, {contestant}"), contestant, &error);
            }
        };
        for load in loads(section) {
            if self.is_over()? {
                break;
            }
            let outcome = self.measured(&broker, load, stored).await;
            self.results.add(load, contestant, outcome)?;
        }
        Ok(())
    }

    fn load(&self, broker: &Running, publishers: u32, window: u32, consumers: u32) -> LoadArgs {
        LoadArgs {
            protocol: broker.contestant.protocol(),
            address: broker.address,
            publishers,
            consumers,
            window,
            size: SIZE,
            rate: None,
            duration: u64::try_from(self.options.duration.as_millis()).unwrap_or(u64::MAX),
            count: None,
            stored: None,
        }
    }

    async fn measured(&self, broker: &Running, load: Load, stored: u64) -> Result<Sample> {
        let mut longest = self.options.duration;
        let args = match load {
            Load::Append { publishers, window } => self.load(broker, publishers, window, 0),
            Load::Replay { readers } => {
                longest = STORED_MAX;
                let duration = millis(STORED_MAX)?;
                LoadArgs { stored: Some(stored), duration, ..self.load(broker, 0, 1, readers) }
            }
            Load::Tail { readers, rate } => {
                let rate = Some(f64::from(rate));
                LoadArgs { rate, ..self.load(broker, PUBLISHERS, OPEN_WINDOW, readers) }
            }
        };
        let pid = broker.pid()?;
        let before = processor_time(pid)?;
        let report = args.apart(longest + SLACK).await?;
        let used = processor_time(pid)?.saturating_sub(before);
        broker.check()?;
        Sample::read(load, &report, used, resident_bytes(pid)?)
    }
}

fn loads(section: Section) -> Vec<Load> {
    match section {
        Section::Append => APPENDS.map(|(publishers, window)| Load::Append { publishers, window }).to_vec(),
        Section::Replay => READERS.map(|readers| Load::Replay { readers }).to_vec(),
        Section::Tail => {
            let of = |readers| TAIL_RATES.map(|rate| Load::Tail { readers, rate });
            READERS.map(of).concat()
        }
    }
}

fn millis(duration: Duration) -> Result<u64> {
    Ok(u64::try_from(duration.as_millis())?)
}
