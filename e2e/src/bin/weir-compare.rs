//! `weir-compare`: Weir beside other brokers, on one machine in one run. docs/benchmarks.md says how to read it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use weir_e2e::compare::{self, Options, Peer, Section};

/// Compares Weir with other brokers on this machine
#[derive(Debug, Parser)]
#[command(name = "weir-compare")]
struct Arguments {
    /// What to measure [default: everything]
    #[arg(value_enum, value_name = "SECTION")]
    sections: Vec<SectionName>,
    /// One payload, one short run of each load: three minutes or so
    #[arg(long)]
    quick: bool,
    /// Only loads whose name holds this, such as "1 to 100, QoS 0"
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// The brokers
    #[arg(long, value_enum, value_delimiter = ',', default_value = "weir,mosquitto,nats")]
    brokers: Vec<PeerName>,
    /// Runs of each load on each broker [default: 3; 1 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: Option<u32>,
    /// Length of a run in milliseconds [default: 2000; 1000 with --quick]
    #[arg(long, value_name = "MILLIS", value_parser = clap::value_parser!(u64).range(100..=60_000))]
    duration: Option<u64>,
    /// Minutes after which no run is started
    #[arg(long, value_name = "N", default_value_t = 25)]
    minutes: u32,
    /// Markdown file to write; the raw reports go beside it as JSON lines
    #[arg(long, value_name = "FILE", default_value = "weir-compare.md")]
    out: PathBuf,
    /// Weir's binary [default: the release build, made if it is not up to date]
    #[arg(long, value_name = "FILE")]
    weir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SectionName {
    /// Closed loop, the broker on one core and the load on another
    Pinned,
    /// Open loop at half of mosquitto's saturation
    Latency,
    /// Closed loop, everything on all cores
    Unpinned,
    /// Memory and time of idle connections
    Idle,
    /// A live pair beside odd clients by the thousand
    Crowd,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PeerName {
    Weir,
    Mosquitto,
    Nats,
}

impl From<SectionName> for Section {
    fn from(name: SectionName) -> Self {
        match name {
            SectionName::Pinned => Self::Pinned,
            SectionName::Latency => Self::Latency,
            SectionName::Unpinned => Self::Unpinned,
            SectionName::Idle => Self::Idle,
            SectionName::Crowd => Self::Crowd,
        }
    }
}

impl From<PeerName> for Peer {
    fn from(name: PeerName) -> Self {
        match name {
            PeerName::Weir => Self::Weir,
            PeerName::Mosquitto => Self::Mosquitto,
            PeerName::Nats => Self::Nats,
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match compare(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        // What a broker did wrong is no fault of this program: nobody needs its backtrace.
        Err(error) => {
            eprintln!("weir-compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn compare(arguments: Arguments) -> Result<()> {
    let mut sections: Vec<Section> = arguments.sections.into_iter().map(Section::from).collect();
    if sections.is_empty() {
        sections = Section::ALL.to_vec();
    }
    let (repeats, millis) = if arguments.quick { (1, 1_000) } else { (3, 2_000) };
    compare::run(Options {
        quick: arguments.quick,
        sections,
        peers: arguments.brokers.into_iter().map(Peer::from).collect(),
        only: arguments.only,
        repeats: arguments.repeats.unwrap_or(repeats),
        duration: Duration::from_millis(arguments.duration.unwrap_or(millis)),
        time_limit: Duration::from_secs(60 * u64::from(arguments.minutes)),
        out: arguments.out,
        weir: arguments.weir,
    })
    .await
}
