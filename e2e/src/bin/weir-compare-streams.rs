//! `weir-compare-streams`: streams beside those of other brokers, on one machine in one run. It writes
//! docs/benchmarks-streams.md.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use weir_e2e::load::{self, LoadArgs};
use weir_e2e::streams::{self, Contestant, Options, Section};

/// Compares streams of Weir with those of other brokers on this machine
#[derive(Debug, Parser)]
#[command(name = "weir-compare-streams", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    load: Option<Load>,
    #[command(flatten)]
    compare: Compare,
}

#[derive(Debug, Subcommand)]
enum Load {
    /// Loads one broker and prints what came of it, as JSON
    Load(LoadArgs),
}

#[derive(Debug, Args)]
struct Compare {
    /// What to measure [default: everything]
    #[arg(value_enum, value_name = "SECTION")]
    sections: Vec<SectionName>,
    /// The brokers
    #[arg(long, value_enum, value_delimiter = ',', default_value = "weir,rabbitmq,nats")]
    brokers: Vec<ContestantName>,
    /// Runs of each load on each broker
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,
    /// Length of a run in milliseconds
    #[arg(long, value_name = "MILLIS", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    duration: u64,
    /// Messages to replay
    #[arg(long, value_name = "N", default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    messages: u64,
    /// Minutes after which no run is started
    #[arg(long, value_name = "N", default_value_t = 14)]
    minutes: u32,
    /// Markdown file to write
    #[arg(long, value_name = "FILE", default_value = "weir-compare-streams.md")]
    out: PathBuf,
    /// Weir's binary [default: the release build, made if it is not up to date]
    #[arg(long, value_name = "FILE")]
    weir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SectionName {
    /// Publish, confirmed, as fast as can be
    Append,
    /// Read what is stored from its beginning
    Replay,
    /// Publish at a rate to readers at the end
    Tail,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ContestantName {
    Weir,
    Rabbitmq,
    Nats,
}

impl From<SectionName> for Section {
    fn from(name: SectionName) -> Self {
        match name {
            SectionName::Append => Self::Append,
            SectionName::Replay => Self::Replay,
            SectionName::Tail => Self::Tail,
        }
    }
}

impl From<ContestantName> for Contestant {
    fn from(name: ContestantName) -> Self {
        match name {
            ContestantName::Weir => Self::Weir,
            ContestantName::Rabbitmq => Self::Rabbitmq,
            ContestantName::Nats => Self::Nats,
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Load::Load(arguments)) = arguments.load {
        let report = load::run(arguments).await?;
        return Ok(writeln!(std::io::stdout(), "{report}")?);
    }
    let compare = arguments.compare;
    let mut sections: Vec<Section> = compare.sections.into_iter().map(Section::from).collect();
    if sections.is_empty() {
        sections = Section::ALL.to_vec();
    }
    streams::run(Options {
        sections,
        contestants: compare.brokers.into_iter().map(Contestant::from).collect(),
        repeats: compare.repeats,
        duration: Duration::from_millis(compare.duration),
        messages: compare.messages,
        time_limit: Duration::from_secs(60 * u64::from(compare.minutes)),
        out: compare.out,
        command: load::shown(std::env::args().skip(1)),
        weir: compare.weir,
    })
    .await
}
