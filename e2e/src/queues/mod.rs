//! Durable queues beside those of other brokers, on one machine in one run: publish, confirmed when it is durable, to
//! consume and acknowledge.
//!
//! [`run`] works through the sections and writes after every step what is known, so that a broker that fails costs
//! nobody else's results. What a broker does wrong is a result; only what keeps the comparison from being made is an
//! error. The load is a process of its own ([`crate::load`]), the same for all. Nothing here knows how any of the brokers
//! works inside.

mod backlog;
mod peers;
mod report;
mod syncs;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::time::Instant;
use weir_env::clock::Clock;

use crate::load::LoadArgs;
use crate::process::processor_time;
use crate::weir::release_binary;
pub use peers::Contestant;
use peers::Running;
use report::{Cell, Pace, Results, Sample};

/// The processor of the broker; the load has another.
const BROKER_CPU: &str = "0";
/// What a run may take beyond its load.
const SLACK: Duration = Duration::from_secs(40);
/// Publishes in flight of each publisher where the clock sets the pace: a broker that stalls shall not be spared.
const OPEN_WINDOW: u32 = 500;
/// Publishers, bytes of payload, and publishes in flight of each publisher.
const PUBLISHERS: [u32; 3] = [1, 16, 128];
const SIZES: [usize; 2] = [100, 1_000];
const WINDOWS: [u32; 2] = [1, 32];

/// A part of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Publish, consume and acknowledge as fast as can be.
    Closed,
    /// The same at a rate that all are given.
    Open,
    /// How often each broker syncs.
    Syncs,
    /// A backlog, and consumers that work it off. Weir alone.
    Backlog,
    /// One queue over many topics. Weir alone.
    Topics,
}

impl Section {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Closed, Self::Open, Self::Syncs, Self::Backlog, Self::Topics];
}

/// What to compare, and how long to take.
#[derive(Clone, Debug)]
pub struct Options {
    /// The parts to run.
    pub sections: Vec<Section>,
    /// The brokers.
    pub contestants: Vec<Contestant>,
    /// Only loads whose name holds this, such as `128 publishers`.
    pub only: Option<String>,
    /// Runs of each load on each broker.
    pub repeats: u32,
    /// Length of a run.
    pub duration: Duration,
    /// Messages of the backlog.
    pub backlog: u64,
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
    let mut comparison = Comparison { options, weir, contestants, ends, results, running: Vec::new() };
    for section in comparison.options.sections.clone() {
        match section {
            Section::Closed => comparison.closed().await?,
            Section::Open => comparison.open().await?,
            Section::Syncs => comparison.syncs().await?,
            Section::Backlog => {
                // Alone on the machine.
                comparison.running.clear();
                comparison.backlog().await?;
            }
            Section::Topics => comparison.topics().await?,
        }
    }
    comparison.results.finish()
}

struct Comparison {
    options: Options,
    /// Weir's binary.
    weir: PathBuf,
    /// Those that could be found.
    contestants: Vec<Contestant>,
    ends: Instant,
    results: Results,
    /// The brokers that run, started when they are needed.
    running: Vec<Running>,
}

impl Comparison {
    fn cells(&self, windows: &[u32]) -> Vec<Cell> {
        let mut cells = Vec::new();
        for publishers in PUBLISHERS {
            for size in SIZES {
                cells.extend(windows.iter().map(|&window| Cell { publishers, size, window }));
            }
        }
        if let Some(only) = &self.options.only {
            cells.retain(|cell| cell.to_string().contains(only.as_str()));
        }
        cells
    }

    fn is_over(&mut self) -> Result<bool> {
        let over = Clock::system().now() >= self.ends;
        if over {
            let minutes = self.options.time_limit.as_secs() / 60;
            self.results
                .note(format!("Ended after {minutes} minutes, before every load had all its runs."))?;
        }
        Ok(over)
    }

    /// Every load on every broker in turn, and that several times over.
    async fn closed(&mut self) -> Result<()> {
        self.rounds(&WINDOWS, |_, _| Pace::Max).await
    }

    /// The same at half of the rate that the better of the others reached.
    async fn open(&mut self) -> Result<()> {
        let basis = *WINDOWS.last().context("a window")?;
        self.rounds(&[OPEN_WINDOW], |results, cell| {
            let others = Contestant::ALL.into_iter().filter(|&other| other != Contestant::Weir);
            let closed = Cell { window: basis, ..cell };
            let best =
                others.filter_map(|other| results.median(Pace::Max, closed, other)).max_by(f64::total_cmp);
            // Nothing to compare with leaves a rate that is as good as any.
            Pace::PerSecond(best.map_or(1_000.0, |best| (best / 2.0).round().max(1.0)))
        })
        .await
    }

    async fn rounds(&mut self, windows: &[u32], pace: impl Fn(&Results, Cell) -> Pace) -> Result<()> {
        for repeat in 0..self.options.repeats as usize {
            for cell in self.cells(windows) {
                let pace = pace(&self.results, cell);
                for turn in 0..self.contestants.len() {
                    if self.is_over()? {
                        return Ok(());
                    }
                    // Who goes first changes from round to round.
                    let contestant = self.contestants[(turn + repeat) % self.contestants.len()];
                    let outcome = self.measured(contestant, cell, pace, self.options.duration).await;
                    if outcome.is_err() {
                        self.end(contestant);
                    }
                    self.results.add(pace, cell, contestant, outcome)?;
                }
            }
        }
        Ok(())
    }

    async fn measured(
        &mut self,
        contestant: Contestant,
        cell: Cell,
        pace: Pace,
        duration: Duration,
    ) -> Result<Sample> {
        let at = self.broker(contestant).await?;
        let broker = &self.running[at];
        let pid = broker.pid()?;
        let before = processor_time(pid)?;
        let report = load(broker, cell, pace, duration).await?;
        let used = processor_time(pid)?.saturating_sub(before);
        broker.check()?;
        Sample::read(&report, used)
    }

    /// The place of the broker among those that run; a new one has been loaded a little, so that no measurement
    /// finds it cold.
    async fn broker(&mut self, contestant: Contestant) -> Result<usize> {
        if let Some(at) = self.running.iter().position(|running| running.contestant == contestant) {
            return Ok(at);
        }
        let broker = contestant.start(&self.weir, Some(BROKER_CPU)).await?;
        let warm_up = Cell { publishers: 16, size: 100, window: 32 };
        load(&broker, warm_up, Pace::Max, Duration::from_secs(1)).await.context("warm up")?;
        self.running.push(broker);
        Ok(self.running.len() - 1)
    }

    /// Ends a broker that may no longer be well; the next turn starts another.
    fn end(&mut self, contestant: Contestant) {
        self.running.retain(|running| running.contestant != contestant);
    }
}

/// Loads the broker from a process on a processor of its own.
async fn load(broker: &Running, cell: Cell, pace: Pace, duration: Duration) -> Result<Value> {
    let load = LoadArgs {
        protocol: broker.contestant.protocol(),
        address: broker.address,
        publishers: cell.publishers,
        consumers: broker.contestant.consumers(),
        window: cell.window,
        size: cell.size,
        rate: if let Pace::PerSecond(rate) = pace { Some(rate) } else { None },
        duration: u64::try_from(duration.as_millis())?,
        count: None,
        stored: None,
    };
    let report = load.apart(duration + SLACK).await?;
    ensure!(report["received"].as_u64() > Some(0), "nothing arrived");
    Ok(report)
}
