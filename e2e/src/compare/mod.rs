//! Weir beside other brokers, on one machine in one run: the same load generator, the same processors, turn by turn.
//!
//! [`run`] works through the sections and writes after every run what is known, so that neither a broker that fails
//! nor an end before its time costs the others' results. What a broker does wrong is a result; only what keeps the
//! comparison from being made is an error. Nothing here knows how any of the brokers works inside.

mod load;
mod peers;
pub(crate) mod report;
pub(crate) mod stats;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::time::Instant;
use weir_env::clock::Clock;

use crate::crowd::{self, Crowd};
use crate::generator::Generator;
use crate::weir::release_binary;
use load::{Cell, Pace};
pub use peers::Peer;
use peers::Running;
use report::{Results, Run};
use stats::{IdleSample, Sample};

/// Idle connections that a broker is asked to hold: below the usual limit of 20,000 files for a process.
const IDLE: u32 = 15_000;
const IDLE_QUICK: u32 = 5_000;
/// How long they are held: long enough for a broker to let go of what connecting took.
const IDLE_HOLD: Duration = Duration::from_secs(6);
/// How long to wait after a run that failed, until the ports of earlier connections are free again.
const IDLE_WAIT: Duration = Duration::from_secs(20);
/// Times that a run of idle connections is made before it counts as failed.
const IDLE_ATTEMPTS: u32 = 3;
/// The processor of the broker, and of the load, where they are pinned.
const BROKER_CPU: Option<&str> = Some("0");
const LOAD_CPU: Option<&str> = Some("1");

/// A part of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Closed loop, the broker on one processor and the load on another.
    Pinned,
    /// Open loop at half of what mosquitto reached in the closed one.
    Latency,
    /// Closed loop, everything on all processors.
    Unpinned,
    /// Idle connections.
    Idle,
    /// Odd clients by the thousand beside a live pair.
    Crowd,
}

impl Section {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Pinned, Self::Latency, Self::Unpinned, Self::Idle, Self::Crowd];
}

/// What to compare, and how long to take.
#[derive(Clone, Debug)]
pub struct Options {
    /// Fewer loads, shorter and once each.
    pub quick: bool,
    /// The parts to run.
    pub sections: Vec<Section>,
    /// The brokers.
    pub peers: Vec<Peer>,
    /// Only loads whose name holds this, such as `1 to 100, QoS 0`.
    pub only: Option<String>,
    /// Runs of each load on each broker.
    pub repeats: u32,
    /// Length of a run.
    pub duration: Duration,
    /// After which no run is started.
    pub time_limit: Duration,
    /// The Markdown file; the raw reports are written beside it, as JSON lines.
    pub out: PathBuf,
    /// Weir's binary; built if there is none.
    pub weir: Option<PathBuf>,
}

/// Makes the comparison; an error if Weir failed in any run.
pub async fn run(options: Options) -> Result<()> {
    let weir = match &options.weir {
        Some(binary) => std::path::absolute(binary)?,
        None => release_binary().await?,
    };
    let mut results = Results::create(&options.out)?;
    let mut peers = Vec::new();
    for &peer in &options.peers {
        match peer.version(&weir).await {
            Ok(version) => {
                results.version(peer, version);
                peers.push(peer);
            }
            Err(error) => results.note(format!("{peer} takes no part: {error:#}"))?,
        }
    }
    let ends = Clock::system().now() + options.time_limit;
    let mut comparison = Comparison { options, weir, peers, ends, results };
    for section in comparison.options.sections.clone() {
        comparison.section(section).await?;
    }
    comparison.results.finish()
}

struct Comparison {
    options: Options,
    /// Weir's binary.
    weir: PathBuf,
    /// Those that could be found.
    peers: Vec<Peer>,
    ends: Instant,
    results: Results,
}

impl Comparison {
    async fn section(&mut self, section: Section) -> Result<()> {
        match section {
            Section::Pinned | Section::Latency | Section::Unpinned => self.loads(section).await,
            Section::Idle => self.idle().await,
            Section::Crowd => self.crowd().await,
        }
    }

    fn generator(&self, section: Section) -> Generator {
        let (cpus, threads) = if section == Section::Unpinned { (None, 2) } else { (LOAD_CPU, 1) };
        Generator { binary: self.weir.clone(), cpus, threads }
    }

    fn cells(&self, section: Section) -> Vec<Cell> {
        let sizes: &[u32] = match section {
            _ if self.options.quick => &[1_024],
            Section::Unpinned => &[64],
            _ => &[64, 1_024, 16_384],
        };
        let mut cells = Cell::matrix(sizes);
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
                .note(format!("ended after {minutes} minutes, before every load had all its runs"))?;
        }
        Ok(over)
    }

    /// Every load on every broker in turn, and that several times over.
    async fn loads(&mut self, section: Section) -> Result<()> {
        let cpus = if section == Section::Unpinned { None } else { BROKER_CPU };
        let generator = self.generator(section);
        let mut stage = Stage::new(self.weir.clone(), cpus);
        for repeat in 0..self.options.repeats {
            for cell in self.cells(section) {
                let pace = match section {
                    Section::Latency => Pace::PerSecond(self.half_of_saturation(cell, &mut stage).await?),
                    _ => Pace::Max,
                };
                for turn in 0..self.peers.len() {
                    if self.is_over()? {
                        return Ok(());
                    }
                    // Who goes first changes from round to round.
                    let peer = self.peers[(turn + repeat as usize) % self.peers.len()];
                    self.load(section, cell, pace, peer, &generator, &mut stage).await?;
                }
            }
        }
        Ok(())
    }

    async fn load(
        &mut self,
        section: Section,
        cell: Cell,
        pace: Pace,
        peer: Peer,
        generator: &Generator,
        stage: &mut Stage,
    ) -> Result<()> {
        let duration = self.options.duration;
        let outcome = async {
            let broker = stage.broker(peer).await?;
            let raw = generator.run(broker.target()?, &cell.arguments(pace), duration).await?;
            broker.check()?;
            Ok((Sample::read(&raw, cell.shape.copies())?, raw))
        };
        let outcome = outcome.await;
        if outcome.is_err() {
            stage.end(peer);
        }
        self.results.add(Run { section, cell, pace, peer }, outcome)
    }

    /// Publishes per second: half of what mosquitto took in the closed loop, which is measured now if it was not.
    async fn half_of_saturation(&mut self, cell: Cell, stage: &mut Stage) -> Result<f64> {
        let reference = self.peers.iter().copied().find(|&peer| peer == Peer::Mosquitto);
        let reference = reference.or(self.peers.first().copied()).context("a broker")?;
        if self.results.per_second(Section::Pinned, cell, reference).is_none() {
            let generator = self.generator(Section::Pinned);
            self.load(Section::Pinned, cell, Pace::Max, reference, &generator, stage).await?;
        }
        let saturation = self.results.per_second(Section::Pinned, cell, reference);
        // A reference that fails leaves a load that is as good as any.
        let saturation =
            saturation.map_or(1_000.0, |spread| spread.median / stats::as_f64(cell.shape.copies()));
        Ok((saturation / 2.0).max(1.0))
    }

    /// A fresh broker each time, since memory that was used once stays.
    async fn idle(&mut self) -> Result<()> {
        for _ in 0..self.options.repeats {
            for peer in self.peers.clone() {
                if self.is_over()? {
                    return Ok(());
                }
                let mut outcome = self.idle_run(peer).await;
                for _ in 1..IDLE_ATTEMPTS {
                    if outcome.is_err() {
                        tokio::time::sleep(IDLE_WAIT).await;
                        outcome = self.idle_run(peer).await;
                    }
                }
                self.results.add_idle(peer, outcome)?;
            }
        }
        Ok(())
    }

    async fn idle_run(&self, peer: Peer) -> Result<(IdleSample, Value)> {
        let connections = if self.options.quick { IDLE_QUICK } else { IDLE };
        let arguments = ["connect".to_owned(), "-n".to_owned(), connections.to_string()];
        let mut stage = Stage::new(self.weir.clone(), BROKER_CPU);
        let broker = stage.broker(peer).await?;
        let raw = self.generator(Section::Idle).run(broker.target()?, &arguments, IDLE_HOLD).await?;
        broker.check()?;
        Ok((IdleSample::read(&raw)?, raw))
    }

    async fn crowd(&mut self) -> Result<()> {
        let (crowd, alone) = if self.options.quick {
            (Crowd::full().scaled_down(6), Duration::from_secs(4))
        } else {
            (Crowd::full(), Duration::from_secs(10))
        };
        let generator = Generator { binary: self.weir.clone(), cpus: None, threads: 1 };
        // NATS has no part: it closes connections of a client id that comes too often.
        for peer in self.peers.clone().into_iter().filter(|&peer| peer != Peer::Nats) {
            if self.is_over()? {
                return Ok(());
            }
            let mut stage = Stage::new(self.weir.clone(), None);
            let outcome = async {
                let broker = stage.broker(peer).await?;
                let report = crowd::measure(&generator, broker.target()?, crowd, alone).await?;
                broker.check()?;
                Ok(report)
            };
            let outcome = outcome.await;
            self.results.add_crowd(peer, crowd, outcome)?;
        }
        Ok(())
    }
}

/// The brokers that run, started when they are needed.
struct Stage {
    weir: PathBuf,
    cpus: Option<&'static str>,
    running: Vec<Running>,
}

impl Stage {
    const fn new(weir: PathBuf, cpus: Option<&'static str>) -> Self {
        Self { weir, cpus, running: Vec::new() }
    }

    async fn broker(&mut self, peer: Peer) -> Result<&Running> {
        let running = self.running.iter().position(|running| running.peer == peer);
        let at = match running {
            Some(at) => at,
            None => {
                self.running.push(peer.start(&self.weir, self.cpus).await?);
                self.running.len() - 1
            }
        };
        Ok(&self.running[at])
    }

    /// Ends a broker that may no longer be well; the next turn starts another.
    fn end(&mut self, peer: Peer) {
        self.running.retain(|running| running.peer != peer);
    }
}
