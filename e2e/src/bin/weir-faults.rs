//! `weir-faults`: kills, stops and terminates pods of a cluster under load, and checks what the clients saw.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use weir_e2e::pods::{self, Fault, Options};

/// Strikes pods of a cluster on this machine under load, and checks that no promise to a client is broken
#[derive(Debug, Parser)]
#[command(name = "weir-faults")]
struct Arguments {
    /// What is done to the pods, one after the other
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "kill,short-pause,pause,long-pause,terminate"
    )]
    faults: Vec<FaultName>,
    /// How often all of it
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    rounds: u16,
    /// Pods; one is alone, and knows nothing of others
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pods: u16,
    /// Milliseconds from one publish of a publisher to its next
    #[arg(long, value_name = "MILLIS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pace: u64,
    /// A folder for the logs of all pods
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FaultName {
    /// kill -9
    Kill,
    /// SIGSTOP for 0.5 TTL
    ShortPause,
    /// SIGSTOP for 1.5 TTL
    Pause,
    /// SIGSTOP for 3 TTL
    LongPause,
    /// SIGTERM
    Terminate,
}

impl From<FaultName> for Fault {
    fn from(name: FaultName) -> Self {
        match name {
            FaultName::Kill => Self::Kill,
            FaultName::ShortPause => Self::ShortPause,
            FaultName::Pause => Self::Pause,
            FaultName::LongPause => Self::LongPause,
            FaultName::Terminate => Self::Terminate,
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let report = pods::run(&Options {
        pods: arguments.pods.into(),
        faults: arguments.faults.into_iter().map(Fault::from).collect(),
        rounds: arguments.rounds.into(),
        pace: Duration::from_millis(arguments.pace),
        logs: arguments.logs,
    })
    .await?;
    writeln!(std::io::stdout(), "{report}")?;
    report.check()
}
