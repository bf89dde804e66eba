//! `weir-scaling`: what a message costs pods and store as pods and subscribers grow, as a table.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use weir_e2e::pods::work::{Options, measure};

/// Measures the work that a message causes on clusters of this machine, for docs/scaling.md
#[derive(Debug, Parser)]
#[command(name = "weir-scaling")]
struct Arguments {
    /// Numbers of pods
    #[arg(long, value_delimiter = ',', default_value = "1,2,3", value_parser = clap::value_parser!(u8).range(1..=16))]
    pods: Vec<u8>,
    /// Numbers of subscribers of live messages, over all pods
    #[arg(long, value_delimiter = ',', default_value = "1,3,12", value_parser = clap::value_parser!(u16).range(1..=1000))]
    subscribers: Vec<u16>,
    /// Publishes per second, over all publishers
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Seconds that each load is measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let options = Options {
        pods: arguments.pods.into_iter().map(usize::from).collect(),
        subscribers: arguments.subscribers.into_iter().map(usize::from).collect(),
        rate: arguments.rate,
        duration: Duration::from_secs(arguments.seconds),
    };
    let mut out = std::io::stdout();
    let mut written = Ok(());
    measure(&options, |row| {
        if written.is_ok() {
            written = writeln!(out, "{row}").and_then(|()| out.flush());
        }
    })
    .await?;
    Ok(written?)
}
